// The inner loops of adaptive_conv on a CPU: sums that stay in registers, vectors along x.
//
// Included by adaptive_cpu_isa.cpp, once per instruction-set level.
#pragma once
#include <cstdint>

#include "common/simd.h"

namespace ovs {
namespace OVS_ISA {
namespace {

// Sums of kChannels channels and kRows rows of one vector of columns, taps from above to below and left to right.
//
// A vector of a window is loaded once for all rows that reach it, and a vector of filters once for all channels: with 6
// rows and 4 channels 24 products need about 8 loads.
template <class T, int kRows, int kChannels>
struct TapSums {
    static constexpr int kLanes = kVectorBytes / sizeof(T);
    using V = Vec<T, kLanes>;

    V sums[kChannels][kRows];

    // Products of a window's row with the filters of the tile's rows kFirst .. kLast - 1. Returns where the next
    // filters lie. With step 0 they stand above the result's column, with step 1 above the window's.
    template <int kFirst, int kLast>
    OVS_INLINE const T* add_row(const T* row, int64_t plane, const T* taps, int64_t pitch, int64_t step,
                                int64_t filter_width) {
        for (int64_t j = 0; j < filter_width; ++j, taps += (kLast - kFirst) * pitch) {
            V pixels[kChannels];
            OVS_UNROLL
            for (int c = 0; c < kChannels; ++c) pixels[c] = load<V>(row + c * plane + j);
            OVS_UNROLL
            for (int y = kFirst; y < kLast; ++y) {
                const V weight = load<V>(taps + (y - kFirst) * pitch + j * step);
                OVS_UNROLL
                for (int c = 0; c < kChannels; ++c) sums[c][y] += pixels[c] * weight;
            }
        }
        return taps;
    }

    // Rows 0 .. kRows - 2 of a window: the tile's rows join in one by one.
    template <int kRow>
    OVS_INLINE const T* add_first_rows(const T* window, int64_t plane, int64_t window_pitch, const T* taps,
                                       int64_t pitch, int64_t step, int64_t filter_width) {
        if constexpr (kRow < kRows - 1) {
            taps = add_row<0, kRow + 1>(window + kRow * window_pitch, plane, taps, pitch, step, filter_width);
            return add_first_rows<kRow + 1>(window, plane, window_pitch, taps, pitch, step, filter_width);
        }
        return taps;
    }
    // The last kRows - 1 rows: they leave one by one.
    template <int kRow>
    OVS_INLINE const T* add_last_rows(const T* window, int64_t plane, int64_t window_pitch, const T* taps,
                                      int64_t pitch, int64_t step, int64_t filter_width) {
        if constexpr (kRow < kRows) {
            taps = add_row<kRow, kRows>(window, plane, taps, pitch, step, filter_width);
            return add_last_rows<kRow + 1>(window + window_pitch, plane, window_pitch, taps, pitch, step, filter_width);
        }
        return taps;
    }

    // filter_height >= kRows.
    OVS_INLINE void add(const T* window, int64_t plane, int64_t window_pitch, const T* taps, int64_t pitch,
                        int64_t step, int64_t filter_height, int64_t filter_width) {
        OVS_UNROLL
        for (int c = 0; c < kChannels; ++c) {
            OVS_UNROLL
            for (int y = 0; y < kRows; ++y) sums[c][y] = V{};
        }
        taps = add_first_rows<0>(window, plane, window_pitch, taps, pitch, step, filter_width);
        window += (kRows - 1) * window_pitch;
        for (int64_t r = kRows - 1; r < filter_height; ++r, window += window_pitch) {
            taps = add_row<0, kRows>(window, plane, taps, pitch, step, filter_width);
        }
        add_last_rows<1>(window, plane, window_pitch, taps, pitch, step, filter_width);
    }
};

// Sums over channels for kRows rows of a tile and kTaps neighbouring taps of one vector of columns.
template <class T, int kRows, int kTaps>
OVS_INLINE void add_channels(const T* row, int64_t plane, const T* centre, int64_t centre_plane, int64_t centre_pitch,
                             int64_t channels, T* taps, int64_t row_pitch, int64_t tap_pitch, bool first) {
    using V = Vec<T, kVectorBytes / static_cast<int>(sizeof(T))>;
    V sums[kRows][kTaps];
    OVS_UNROLL
    for (int y = 0; y < kRows; ++y) {
        OVS_UNROLL
        for (int j = 0; j < kTaps; ++j) sums[y][j] = first ? V{} : load<V>(taps + y * row_pitch + j * tap_pitch);
    }
    for (int64_t c = 0; c < channels; ++c, row += plane, centre += centre_plane) {
        V factors[kRows];
        OVS_UNROLL
        for (int y = 0; y < kRows; ++y) factors[y] = load<V>(centre + y * centre_pitch);
        OVS_UNROLL
        for (int j = 0; j < kTaps; ++j) {
            const V pixel = load<V>(row + j);
            OVS_UNROLL
            for (int y = 0; y < kRows; ++y) sums[y][j] += factors[y] * pixel;
        }
    }
    OVS_UNROLL
    for (int y = 0; y < kRows; ++y) {
        OVS_UNROLL
        for (int j = 0; j < kTaps; ++j) store(taps + y * row_pitch + j * tap_pitch, sums[y][j]);
    }
}

}  // namespace
}  // namespace OVS_ISA
}  // namespace ovs
