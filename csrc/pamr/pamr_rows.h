// Rows of pamr: their borders, their weights, and one iteration of a row. Included per instruction-set level.
#pragma once
#include <cstdint>

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
    const T first = row[0], last = row[width - 1];
    for (int64_t x = 1; x <= grid.reach_x; ++x) row[-x] = first;
    for (int64_t x = width; x < grid.padded_width + grid.reach_x; ++x) row[x] = last;
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

    // ring: [rows, ..] with `stride` numbers from row to row, the pixel (y, 0) in row y % rows.
    OVS_INLINE TapRows(const T* ring, int64_t rows, int64_t stride, int64_t y, const PamrParams& p,
                       const PamrGrid<T>& grid) {
        for (int64_t i = 0; i < p.num_dilations; ++i) {
            const int64_t dy = pamr_reach(p.dilations[i], p.height), dx = pamr_reach(p.dilations[i], p.width);
            for (int64_t tap = 0; tap < kPamrTaps; ++tap) {
                const int64_t row = pamr_clamp(y + pamr_row_step(tap) * dy, p.height) % rows;
                at[i * kPamrTaps + tap] = ring + row * stride + grid.left + pamr_column_step(tap) * dx;
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
            for (int64_t k = 0; k < features_; ++k)
                add_channel(centre + k * pitch_ + lane, taps, k * pitch_ + x + lane, to + lane, k == 0);
            normalise(to + lane);
        }
    }

private:
    static constexpr int kLanes = kVectorBytes / sizeof(T);
    static constexpr int64_t kBlock = PamrGrid<T>::kBlock;
    using V = Vec<T, kLanes>;
    static_assert(kBlock % kLanes == 0, "a block has whole vectors");

    // Exponents to the base 2, less the sign: the channel's share is added to `to`.
    OVS_INLINE void add_channel(const T* centre, const TapRows<T>& taps, int64_t at, T* to, bool first) const {
        const V here = load<V>(centre);
        V sum = {}, squares = {};
        for (int64_t tap = 0; tap < taps_; ++tap) {
            const V difference = load<V>(taps.at[tap] + at) - here;
            sum += difference;
            squares += difference * difference;
        }
        V variance = (squares - sum * sum * inverse_count_) * inverse_freedom_;
        variance = variance < T(0) ? V{} : variance;  // a NaN stays
        T deviations[kLanes];                         // in memory, so that the roots become one instruction
        store(deviations, variance);
        for (int lane = 0; lane < kLanes; ++lane) deviations[lane] = root(deviations[lane]);
        const V deviation = load<V>(deviations);
        const V inverse = factor_ / (T(kPamrSmallestScale) + T(kPamrScaleOfDeviation) * deviation);
        for (int64_t tap = 0; tap < taps_; ++tap) {
            const V difference = load<V>(taps.at[tap] + at) - here;
            const V magnitude = difference < T(0) ? -difference : difference;
            const V before = first ? V{} : load<V>(to + tap * kBlock);
            store(to + tap * kBlock, before - magnitude * inverse);
        }
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
    static constexpr bool kFewRegisters = OVS_ISA_LEVEL == 2 || OVS_ISA_LEVEL == 3;  // 16 of them
    static constexpr int kGroup = kFewRegisters ? 5 : 8;  // classes whose sums stay in registers

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
                const T* const w = weights + part;
                const int64_t at = first * pitch_ + x + part;
                run(static_cast<int>(end - first), taps, w, at, out, to_stride, columns - part);
                first = end;
            }
        }
    }

private:
    static constexpr int kLanes = kVectorBytes / sizeof(T);
    static constexpr int kVectors = 2;
    static constexpr int64_t kBlock = PamrGrid<T>::kBlock;
    using V = Vec<T, kLanes>;
    static_assert(kBlock % (kVectors * kLanes) == 0, "a block has whole pairs of vectors");

    OVS_INLINE void run(int count, const TapRows<T>& taps, const T* weights, int64_t at, T* to, int64_t to_stride,
                        int64_t columns) const {
        switch (count) {
            case 1:
                return sum<1>(taps, weights, at, to, to_stride, columns);
            case 2:
                return sum<2>(taps, weights, at, to, to_stride, columns);
            case 3:
                return sum<3>(taps, weights, at, to, to_stride, columns);
            case 4:
                return sum<4>(taps, weights, at, to, to_stride, columns);
            case 5:
                return sum<5>(taps, weights, at, to, to_stride, columns);
            case 6:
                return sum<6>(taps, weights, at, to, to_stride, columns);
            case 7:
                return sum<7>(taps, weights, at, to, to_stride, columns);
            default:
                return sum<8>(taps, weights, at, to, to_stride, columns);
        }
    }

    template <int kClasses>
    void sum(const TapRows<T>& taps, const T* weights, int64_t at, T* to, int64_t to_stride, int64_t columns) const {
        V sums[kClasses][kVectors] = {};
        for (int64_t tap = 0; tap < taps_; ++tap) {
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
        OVS_UNROLL
        for (int k = 0; k < kClasses; ++k, to += to_stride) {
            OVS_UNROLL
            for (int v = 0; v < kVectors; ++v) {
                const int64_t left = columns - v * kLanes;
                if (left >= kLanes) {
                    store(to + v * kLanes, sums[k][v]);
                } else if (left > 0) {
                    __builtin_memcpy(to + v * kLanes, &sums[k][v], static_cast<std::size_t>(left) * sizeof(T));
                }
            }
        }
    }

    int64_t taps_, pitch_, classes_, groups_;
};

}  // namespace
}  // namespace OVS_ISA
}  // namespace ovs
