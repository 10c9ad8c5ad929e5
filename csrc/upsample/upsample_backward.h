// Per level: the transpose. A tile gives the nodes of its window their shares of its cotangents.
//
// Windows of neighbouring tiles overlap. So rows of tiles are cut into bands whose number depends on the sizes alone;
// each band adds up in an array of its own, in a fixed order, and the bands are added up at the end.
#pragma once
#include "common/parallel.h"
#include "upsample/upsample_tile.h"

namespace ovs {
namespace OVS_ISA {
namespace {

template <class T>
class Transposed {
public:
    Transposed(const UpsampleParams& p, const UpsampleGrid& g, const UpsampleBuffers<T>& b)
        : p_(p), g_(g), b_(b), tile_weights_(p, g, b), band_rows_(g.band_rows()) {}

    void run(int threads) const {
        if (p_.missing != nullptr) {
            parallel_for(p_.num_classes, threads, [&](int64_t c) { flag_missing(c); });
        } else {
            std::fill_n(b_.class_flags, p_.num_classes, uint8_t{0});
        }
        const int64_t bands = g_.num_bands();
        for (int64_t first = 0; first < p_.num_classes; first += b_.chunk) {
            const int64_t classes = std::min(b_.chunk, p_.num_classes - first);
            int64_t next = 0;
            parallel_for(std::min<int64_t>(threads, bands), threads, [&](int64_t worker) {
                UpsampleScratch<T> s = b_.of_worker(worker);
                for (;;) {
                    const int64_t band = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED);
                    if (band >= bands) return;
                    add_band(s, band, first, classes);
                }
            });
            parallel_for(p_.low_height, threads, [&](int64_t row) { add_bands(row, first, classes); });
        }
    }

private:
    using V = Vec<T, kLanes<T>>;

    void flag_missing(int64_t c) const {
        const uint8_t* const missing = p_.missing + c * b_.nodes;
        uint8_t any = 0;
        for (int64_t i = 0; i < b_.nodes; ++i) any |= missing[i] != 0;
        b_.class_flags[c] = any;
    }

    int64_t first_segment(int64_t band) const { return band * g_.band_segments(); }
    int64_t last_segment(int64_t band) const {
        return std::min(first_segment(band) + g_.band_segments(), g_.row_cut.count) - 1;
    }
    int64_t first_row(int64_t band) const { return b_.rows.segments[first_segment(band)].node_begin; }
    T* band_sums(int64_t band) const { return b_.bands + band * band_rows_ * p_.low_width * b_.chunk; }

    void add_band(UpsampleScratch<T>& s, int64_t band, int64_t first, int64_t classes) const {
        std::fill_n(band_sums(band), band_rows_ * p_.low_width * b_.chunk, T(0));
        for (int64_t row = first_segment(band); row <= last_segment(band); ++row) {
            for (int64_t column = 0; column < g_.column_cut.count; ++column) {
                const Tile tile(b_.rows.segments[row], b_.columns.segments[column], g_.lanes_per_vector);
                tile_weights_.build(tile, s);
                add_tile(tile, s, band, first, classes);
            }
        }
    }

    // Shares of all nodes of the window in one product, [taps x pixels] x [pixels x classes].
    void add_tile(const Tile& t, UpsampleScratch<T>& s, int64_t band, int64_t first, int64_t classes) const {
        const T* const v_up = static_cast<const T*>(p_.up) + t.rows.begin * p_.width + t.columns.begin;
        const int64_t lanes = round_up(classes, kLanes<T>), image = p_.height * p_.width;
        for (int64_t c = 0; c < lanes; ++c) {
            const bool apart = c >= classes || b_.class_flags[first + c] != 0;
            for (int64_t i = 0; i < t.pixels; ++i) {
                const int64_t at = i / t.width * p_.width + i % t.width;
                s.values[i * lanes + c] = apart ? T(0) : v_up[(first + c) * image + at];
            }
        }
        T* const by_pixel = s.best;  // [blocks of taps, pixels, kBlockClasses]
        for (int64_t k = 0; k < round_up(t.taps, kBlockClasses); ++k) {
            T* const to = by_pixel + k / kBlockClasses * t.pixels * kBlockClasses + k % kBlockClasses;
            for (int64_t i = 0; i < t.pixels; ++i) {
                to[i * kBlockClasses] = k < t.taps ? s.weights[k * t.lanes + i] : T(0);
            }
        }
        for (int64_t k = 0; k < t.taps; k += kBlockClasses) {
            const int taps = static_cast<int>(std::min<int64_t>(kBlockClasses, t.taps - k));
            const Block<T> block = {by_pixel + k * t.pixels, 0, 1, t.pixels};
            multiply(taps, block, s.values, lanes, lanes, s.stage, lanes);
            for (int tap = 0; tap < taps; ++tap) {
                T* const sums = node_sums(t, band, k + tap);
                const T* const from = s.stage + tap * lanes;
                for (int64_t c = 0; c < lanes; ++c) sums[c] += from[c];
            }
        }
        for (int64_t c = 0; c < classes; ++c) {
            if (b_.class_flags[first + c] != 0) add_class(t, s, band, first, c);
        }
    }

    T* node_sums(const Tile& t, int64_t band, int64_t k) const {
        const int64_t row = t.rows.node_begin + k / t.node_columns - first_row(band);
        return band_sums(band) + (row * p_.low_width + t.columns.node_begin + k % t.node_columns) * b_.chunk;
    }

    // A class with missing values: its weights differ.
    void add_class(const Tile& t, UpsampleScratch<T>& s, int64_t band, int64_t first, int64_t c) const {
        const int64_t corner = t.rows.node_begin * p_.low_width + t.columns.node_begin;
        const uint8_t* const missing = p_.missing + (first + c) * b_.nodes + corner;
        const T* const v_up =
            static_cast<const T*>(p_.up) + ((first + c) * p_.height + t.rows.begin) * p_.width + t.columns.begin;
        const auto is_missing = [&](int64_t k) {
            return missing[k / t.node_columns * p_.low_width + k % t.node_columns] != 0;
        };
        // The weights take the place of the tile's, which are not needed any more: they come from the exponents.
        T* const scaled = s.stage;
        tile_weights_.without(
            t, s, is_missing,
            [&](int64_t k, int64_t lane, const V& weight) { store(s.weights + k * t.lanes + lane, weight); },
            [&](int64_t lane, const V& sum) { store(scaled + lane, sum); });
        for (int64_t i = 0; i < t.lanes; ++i) {
            const int64_t at = i / t.width * p_.width + i % t.width;
            scaled[i] = i < t.pixels && scaled[i] > T(0) ? v_up[at] / scaled[i] : T(0);
        }
        for (int64_t k = 0; k < t.taps; ++k) {
            if (is_missing(k)) continue;
            V sum = {};
            for (int64_t lane = 0; lane < t.lanes; lane += kLanes<T>) {
                sum += load<V>(s.weights + k * t.lanes + lane) * load<V>(scaled + lane);
            }
            T total = 0;
            for (int i = 0; i < kLanes<T>; ++i) total += sum[i];
            node_sums(t, band, k)[c] += total;
        }
    }

    // One row of nodes of the result, from all bands that reach it.
    void add_bands(int64_t row, int64_t first, int64_t classes) const {
        T* const v_maps = static_cast<T*>(p_.maps) + first * b_.nodes + row * p_.low_width;
        for (int64_t x = 0; x < p_.low_width; ++x) {
            for (int64_t c = 0; c < classes; ++c) v_maps[c * b_.nodes + x] = T(0);
        }
        for (int64_t band = 0; band < g_.num_bands(); ++band) {
            const int64_t begin = first_row(band), end = b_.rows.segments[last_segment(band)].node_end;
            if (row < begin || row >= end) continue;
            const T* const sums = band_sums(band) + (row - begin) * p_.low_width * b_.chunk;
            for (int64_t x = 0; x < p_.low_width; ++x) {
                for (int64_t c = 0; c < classes; ++c) v_maps[c * b_.nodes + x] += sums[x * b_.chunk + c];
            }
        }
    }

    const UpsampleParams& p_;
    const UpsampleGrid& g_;
    const UpsampleBuffers<T>& b_;
    TileWeights<T> tile_weights_;
    int64_t band_rows_;
};

}  // namespace
}  // namespace OVS_ISA
}  // namespace ovs
