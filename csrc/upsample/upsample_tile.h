// Per level: the weights of a tile, [taps, lanes], a lane being a pixel of it.
#pragma once
#include <limits>

#include "common/exp2.h"
#include "upsample/upsample_product.h"

namespace ovs {
namespace OVS_ISA {
namespace {

// A rectangle of pixels, row by row in the lanes; the last lanes repeat the last pixel.
struct Tile {
    UpsampleSegment rows, columns;
    int64_t height, width, pixels, lanes;
    int64_t node_rows, node_columns, taps;

    Tile() = default;
    Tile(const UpsampleSegment& y, const UpsampleSegment& x, int64_t lanes_per_vector)
        : rows(y),
          columns(x),
          height(y.end - y.begin),
          width(x.end - x.begin),
          pixels(height * width),
          lanes(round_up(pixels, lanes_per_vector)),
          node_rows(y.node_end - y.node_begin),
          node_columns(x.node_end - x.node_begin),
          taps(node_rows * node_columns) {}
};

template <class T>
class TileWeights {
public:
    TileWeights(const UpsampleParams& p, const UpsampleGrid& g, const UpsampleBuffers<T>& b)
        : p_(p), g_(g), b_(b), range_(static_cast<T>(exponent_factor(p.sigma_range))) {}

    // Fills s.weights, which add up to 1 over the taps, and s.exponents; uses the other arrays of `s` for scratch.
    void build(const Tile& t, UpsampleScratch<T>& s) const {
        gather(t, s);
        for (int64_t lane = 0; lane < t.lanes; lane += kLanes<T>) {
            const V best = exponents(t, s, lane);
            V sum = {};
            for (int64_t k = 0; k < t.taps; ++k) {
                const V weight = exp2_nonpositive(load<V>(s.exponents + k * t.lanes + lane) - best);
                store(s.weights + k * t.lanes + lane, weight);
                sum += weight;
            }
            const V inverse = T(1) / sum;
            for (int64_t k = 0; k < t.taps; ++k) {
                T* const weight = s.weights + k * t.lanes + lane;
                store(weight, load<V>(weight) * inverse);
            }
        }
    }

    // Weights of one class that lacks the taps with `missing(k)`, over the same exponents: fn(k, lane, weight) in whole
    // vectors, then end(lane, inverse of their sum), NaN where no tap is left.
    template <class Missing, class Use, class End>
    void without(const Tile& t, const UpsampleScratch<T>& s, const Missing& missing, const Use& use,
                 const End& end) const {
        for (int64_t lane = 0; lane < t.lanes; lane += kLanes<T>) {
            V best = kNone - V{};
            for (int64_t k = 0; k < t.taps; ++k) {
                if (!missing(k)) best = larger(load<V>(s.exponents + k * t.lanes + lane), best);
            }
            V sum = {};
            for (int64_t k = 0; k < t.taps; ++k) {
                if (missing(k)) continue;
                const V weight = exp2_nonpositive(load<V>(s.exponents + k * t.lanes + lane) - best);
                use(k, lane, weight);
                sum += weight;
            }
            end(lane, sum);
        }
    }

    using V = Vec<T, kLanes<T>>;

private:
    static constexpr T kNone = -std::numeric_limits<T>::infinity();

    OVS_INLINE static V larger(const V& a, const V& b) { return a > b ? a : b; }  // b where a is NaN

    // Colours, and the spatial exponents of both axes, -Inf outside of a pixel's own window.
    void gather(const Tile& t, UpsampleScratch<T>& s) const {
        const T* const guide = static_cast<const T*>(p_.guide);
        const int64_t image = p_.height * p_.width, reach = 2 * p_.radius + 1;
        for (int channel = 0; channel < 3; ++channel) {
            T* const lanes = s.colours + channel * t.lanes;
            const T* const plane = guide + channel * image + t.rows.begin * p_.width + t.columns.begin;
            for (int64_t y = 0; y < t.height; ++y) copy_run(plane + y * p_.width, lanes + y * t.width, t.width);
            pad(t, lanes);
        }
        for (int64_t q = 0; q < t.node_rows; ++q) {
            T* const lanes = s.row_spatial + q * t.lanes;
            for (int64_t y = 0; y < t.height; ++y) {
                const int64_t pixel = t.rows.begin + y, j = t.rows.node_begin + q - b_.rows.cell[pixel] + p_.radius;
                const T value = 0 <= j && j < reach ? b_.rows.spatial[pixel * reach + j] : kNone;
                fill_run(value, lanes + y * t.width, t.width);
            }
            pad(t, lanes);
        }
        for (int64_t q = 0; q < t.node_columns; ++q) {
            T* const lanes = s.column_spatial + q * t.lanes;
            for (int64_t x = 0; x < t.width; ++x) {
                const int64_t pixel = t.columns.begin + x;
                const int64_t j = t.columns.node_begin + q - b_.columns.cell[pixel] + p_.radius;
                lanes[x] = 0 <= j && j < reach ? b_.columns.spatial[pixel * reach + j] : kNone;
            }
            for (int64_t y = 1; y < t.height; ++y) copy_run(lanes, lanes + y * t.width, t.width);
            pad(t, lanes);
        }
    }

    static void pad(const Tile& t, T* lanes) {
        for (int64_t i = t.pixels; i < t.lanes; ++i) lanes[i] = lanes[t.pixels - 1];
    }

    // The exponents of one vector of pixels to all taps; returns the largest.
    V exponents(const Tile& t, UpsampleScratch<T>& s, int64_t lane) const {
        const int64_t nodes = b_.nodes;
        V colour[3];
        OVS_UNROLL
        for (int channel = 0; channel < 3; ++channel) colour[channel] = load<V>(s.colours + channel * t.lanes + lane);
        V best = kNone - V{};
        T* to = s.exponents + lane;
        for (int64_t qy = 0; qy < t.node_rows; ++qy) {
            const T* node = b_.node_colours + (t.rows.node_begin + qy) * p_.low_width + t.columns.node_begin;
            const V row = load<V>(s.row_spatial + qy * t.lanes + lane);
            for (int64_t qx = 0; qx < t.node_columns; ++qx, ++node, to += t.lanes) {
                const V d0 = colour[0] - node[0], d1 = colour[1] - node[nodes], d2 = colour[2] - node[2 * nodes];
                const V spatial = row + load<V>(s.column_spatial + qx * t.lanes + lane);
                const V exponent = spatial - range_ * (d0 * d0 + d1 * d1 + d2 * d2);
                store(to, exponent);
                best = larger(exponent, best);
            }
        }
        bool lost = false;
        OVS_UNROLL
        for (int i = 0; i < kLanes<T>; ++i) lost |= best[i] == kNone;
        return lost ? spatial_exponents(t, s, lane, best) : best;
    }

    // Where the guide leaves a pixel no tap: its spatial exponents.
    V spatial_exponents(const Tile& t, UpsampleScratch<T>& s, int64_t lane, const V& so_far) const {
        V best = so_far;
        for (int64_t k = 0; k < t.taps; ++k) {
            T* const at = s.exponents + k * t.lanes + lane;
            const V spatial = load<V>(s.row_spatial + k / t.node_columns * t.lanes + lane) +
                              load<V>(s.column_spatial + k % t.node_columns * t.lanes + lane);
            const V exponent = so_far == kNone - V{} ? spatial : load<V>(at);
            store(at, exponent);
            best = larger(exponent, best);
        }
        return best;
    }

    const UpsampleParams& p_;
    const UpsampleGrid& g_;
    const UpsampleBuffers<T>& b_;
    T range_;
};

}  // namespace
}  // namespace OVS_ISA
}  // namespace ovs
