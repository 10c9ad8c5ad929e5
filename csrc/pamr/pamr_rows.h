// Rows of pamr: their borders, their weights, and one iteration of a row. Included per instruction-set level.
#pragma once
#include <cstdint>
#include <type_traits>

#include "common/exp2.h"
#include "common/simd.h"
#include "pamr/pamr_cpu.h"

namespace ovs {
namespace OVS_ISA {
namespace {

constexpr int kMaxTaps = kPamrTaps * kMaxPamrDilations;

// Repeats the first and the last of `width` pixels on both sides, so that neighbours need no clamping along x. What
// vectors may read behind them is set, too.
template <class T>
OVS_INLINE void fill_borders(T* row, const PamrGrid<T>& grid, int64_t width) {
    constexpr int kLanes = kVectorBytes / sizeof(T);
    using V = Vec<T, kLanes>;
    const V first = V{} + row[0], last = V{} + row[width - 1];
    const int64_t end = grid.padded_width + grid.left;
    for (int64_t x = -grid.left; x < 0; x += kLanes) store(row + x, first);
    int64_t x = width;
    for (; x + kLanes <= end; x += kLanes) store(row + x, last);
    for (; x < end; ++x) row[x] = row[width - 1];
}

// A row of planes copied to where it has borders. from: [count, H, W] at the row; to: [count, pitch].
template <class T>
OVS_INLINE void load_row(const T* from, int64_t count, int64_t plane, T* to, const PamrGrid<T>& grid, int64_t width) {
    for (int64_t k = 0; k < count; ++k) {
        T* const row = to + k * grid.pitch + grid.left;
        __builtin_memcpy(row, from + k * plane, static_cast<std::size_t>(width) * sizeof(T));
        fill_borders(row, grid, width);
    }
}

// Where each neighbour of the row's pixel 0 lies.
template <class T>
struct TapRows {
    const T* at[kMaxTaps];

    // ring: [ring_rows, ..] with `stride` numbers from row to row, the row of index i in row i % ring_rows. edges: the
    // first and the last row of the image, `edge_stride` apart, where they are not among `rows`.
    OVS_INLINE TapRows(const T* ring, const PamrRows& rows, int64_t stride, const T* edges, int64_t edge_stride,
                       int64_t index, const PamrParams& p, const PamrGrid<T>& grid) {
        const int64_t y = rows.row(index), slot = index % rows.ring_rows;
        for (int64_t i = 0; i < p.num_dilations; ++i) {
            const int64_t dy = pamr_reach(p.dilations[i], p.height), dx = pamr_reach(p.dilations[i], p.width);
            const int64_t apart = dy / rows.step * (rows.two() ? 2 : 1);
            const T* found[3];
            for (int64_t turn = 0; turn < 3; ++turn) {
                const int64_t near = y + (turn - 1) * dy;
                if (turn == 1 || (0 < near && near < p.height - 1)) {
                    int64_t there = slot + (turn - 1) * apart;
                    if (there < 0) there += rows.ring_rows;
                    if (there >= rows.ring_rows) there -= rows.ring_rows;
                    found[turn] = ring + there * stride;
                } else {
                    const int64_t edge = near <= 0 ? 0 : p.height - 1;
                    found[turn] = rows.has(edge) ? ring + rows.index(edge) % rows.ring_rows * stride
                                                 : edges + (edge == 0 ? 0 : edge_stride);
                }
            }
            for (int64_t tap = 0; tap < kPamrTaps; ++tap) {
                const int64_t step = grid.left + pamr_column_step(tap) * dx;
                at[i * kPamrTaps + tap] = found[pamr_row_step(tap) + 1] + step;
            }
        }
    }
};

// Weights of pixels x .. x + kBlock of a row.
template <class T>
class Weights {
public:
    Weights(const PamrParams& p, const PamrGrid<T>& grid)
        : taps_(grid.taps), features_(p.num_features), pitch_(grid.pitch) {
        const PamrCounts counts = pamr_counts(p.num_dilations);
        inverse_count_ = static_cast<T>(counts.inverse_count);
        inverse_freedom_ = static_cast<T>(counts.inverse_freedom);
        factor_ = static_cast<T>(kPamrLog2E / static_cast<double>(p.num_features));
    }

    // centre: the row's pixel x in the first channel; taps: the neighbours of its pixel 0; to: [taps, kBlock].
    OVS_INLINE void make(const T* centre, const TapRows<T>& taps, int64_t x, T* to) const {
        for (int64_t lane = 0; lane < PamrGrid<T>::kBlock; lane += kLanes) {
            for (int64_t k = 0; k < features_; ++k) {
                const T* const here = centre + k * pitch_ + lane;
                const int64_t at = k * pitch_ + x + lane;
                if (taps_ == 2 * kPamrTaps) {
                    add_channel<2 * kPamrTaps>(here, taps, at, to + lane, k == 0);
                } else {
                    add_channel<0>(here, taps, at, to + lane, k == 0);
                }
            }
            normalise(to + lane);
        }
    }

private:
    static constexpr int kLanes = kVectorBytes / sizeof(T);
    static constexpr int64_t kBlock = PamrGrid<T>::kBlock;
    using V = Vec<T, kLanes>;
    static_assert(kBlock % kLanes == 0, "a block has whole vectors");

    // Exponents to the base 2: the channel's share is added to `to`. kTaps: how many, so that the differences stay in
    // registers, or 0.
    template <int kTaps>
    OVS_INLINE void add_channel(const T* centre, const TapRows<T>& taps, int64_t at, T* to, bool first) const {
        const V here = load<V>(centre);
        const int64_t count = kTaps > 0 ? kTaps : taps_;
        V kept[kTaps > 0 ? kTaps : 1], sum = {}, squares = {};
        OVS_UNROLL
        for (int64_t tap = 0; tap < count; ++tap) {
            const V difference = load<V>(taps.at[tap] + at) - here;
            sum += difference;
            squares += difference * difference;
            if (kTaps > 0) kept[tap] = difference;
        }
        V variance = (squares - sum * sum * inverse_count_) * inverse_freedom_;
        variance = variance < T(0) ? V{} : variance;  // a NaN stays
        T deviations[kLanes];                         // in memory, so that the roots become one instruction
        store(deviations, variance);
        for (int lane = 0; lane < kLanes; ++lane) deviations[lane] = root(deviations[lane]);
        const V deviation = load<V>(deviations);
        const V inverse = factor_ / (T(kPamrSmallestScale) + T(kPamrScaleOfDeviation) * deviation);
        OVS_UNROLL
        for (int64_t tap = 0; tap < count; ++tap) {
            const V difference = kTaps > 0 ? kept[tap] : load<V>(taps.at[tap] + at) - here;
            const V share = magnitude(difference) * inverse;
            store(to + tap * kBlock, first ? -share : load<V>(to + tap * kBlock) - share);
        }
    }

    static OVS_INLINE V magnitude(const V& x) {
        using Bits = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;
        typedef Bits BitVector __attribute__((vector_size(sizeof(V))));
        return (V)((BitVector)x & (~Bits(0) >> 1));
    }

    // The largest exponent of a pixel is above -48: the mean magnitude is at most 3.2 deviations. So none has to be
    // subtracted before the powers are taken.
    OVS_INLINE void normalise(T* to) const {
        const V first = load<V>(to);
        V sum = {};
        for (int64_t tap = 0; tap < taps_; ++tap) {
            const V weight = exp2_nonpositive(load<V>(to + tap * kBlock));
            store(to + tap * kBlock, weight);
            sum += weight;
        }
        // Where the image is not finite all exponents of a pixel are NaN, which the powers forget.
        const V inverse = T(1) / sum + (first - first);
        for (int64_t tap = 0; tap < taps_; ++tap) store(to + tap * kBlock, load<V>(to + tap * kBlock) * inverse);
    }

    static OVS_INLINE float root(float x) { return __builtin_sqrtf(x); }
    static OVS_INLINE double root(double x) { return __builtin_sqrt(x); }

    int64_t taps_, features_, pitch_;
    T inverse_count_, inverse_freedom_, factor_;
};

// One iteration: pixels x .. x + kBlock of a row, for all classes of a chunk.
template <class T>
class Step {
public:
    Step(const PamrGrid<T>& grid, int64_t classes) : taps_(grid.taps), pitch_(grid.pitch), classes_(classes) {
        groups_ = ceil_div(classes, kGroup);
    }

    // weights: [taps, kBlock]. to: class 0 at pixel x; `to_stride` from class to class. columns: how many to write.
    OVS_INLINE void operator()(const TapRows<T>& taps, const T* weights, int64_t x, T* to, int64_t to_stride,
                               int64_t columns) const {
        for (int64_t part = 0; part < kBlock && part < columns; part += kVectors * kLanes) {
            int64_t first = 0;
            for (int64_t g = 0; g < groups_; ++g) {
                const int64_t end = classes_ * (g + 1) / groups_;
                T* const out = to + first * to_stride + part;
                run<kGroup>(end - first, taps, weights + part, first * pitch_ + x + part, out, to_stride,
                            columns - part);
                first = end;
            }
        }
    }

private:
    static constexpr bool kFewRegisters = OVS_ISA_LEVEL == 2 || OVS_ISA_LEVEL == 3;  // 16 of them
    static constexpr int kLanes = kVectorBytes / sizeof(T);
    static constexpr int kVectors = 2;
    static constexpr int kGroup = kFewRegisters ? 5 : 12;  // classes whose sums stay in registers
    static constexpr int64_t kBlock = PamrGrid<T>::kBlock;
    using V = Vec<T, kLanes>;
    static_assert(kBlock % (kVectors * kLanes) == 0, "a block has whole pairs of vectors");

    template <int kClasses>
    OVS_INLINE void run(int64_t count, const TapRows<T>& taps, const T* weights, int64_t at, T* to, int64_t to_stride,
                        int64_t columns) const {
        if constexpr (kClasses > 1) {
            if (count < kClasses) return run<kClasses - 1>(count, taps, weights, at, to, to_stride, columns);
        }
        sum<kClasses>(taps, weights, at, to, to_stride, columns);
    }

    template <int kClasses>
    void sum(const TapRows<T>& taps, const T* weights, int64_t at, T* to, int64_t to_stride, int64_t columns) const {
        V sums[kClasses][kVectors];
        OVS_UNROLL
        for (int k = 0; k < kClasses; ++k) {
            OVS_UNROLL
            for (int v = 0; v < kVectors; ++v) {
                sums[k][v] = load<V>(weights + v * kLanes) * load<V>(taps.at[0] + at + k * pitch_ + v * kLanes);
            }
        }
        for (int64_t tap = 1; tap < taps_; ++tap) {
            const T* from = taps.at[tap] + at;
            V w[kVectors];
            OVS_UNROLL
            for (int v = 0; v < kVectors; ++v) w[v] = load<V>(weights + tap * kBlock + v * kLanes);
            OVS_UNROLL
            for (int k = 0; k < kClasses; ++k, from += pitch_) {
                OVS_UNROLL
                for (int v = 0; v < kVectors; ++v) sums[k][v] += w[v] * load<V>(from + v * kLanes);
            }
        }
        if (columns >= kVectors * kLanes) {
            OVS_UNROLL
            for (int k = 0; k < kClasses; ++k, to += to_stride) {
                OVS_UNROLL
                for (int v = 0; v < kVectors; ++v) store(to + v * kLanes, sums[k][v]);
            }
            return;
        }
        T rest[kVectors * kLanes];
        OVS_UNROLL
        for (int k = 0; k < kClasses; ++k, to += to_stride) {
            OVS_UNROLL
            for (int v = 0; v < kVectors; ++v) store(rest + v * kLanes, sums[k][v]);
            __builtin_memcpy(to, rest, static_cast<std::size_t>(columns) * sizeof(T));
        }
    }

    int64_t taps_, pitch_, classes_, groups_;
};

// A row of results takes the pixels where it is the largest so far. NaN is not.
template <class T>
OVS_INLINE void update_best(const T* row, int64_t width, int32_t number, T* best, int32_t* found) {
    OVS_INDEPENDENT
    for (int64_t x = 0; x < width; ++x) {
        const bool better = row[x] > best[x];
        best[x] = better ? row[x] : best[x];
        found[x] = better ? number : found[x];
    }
}

}  // namespace
}  // namespace OVS_ISA
}  // namespace ovs
