// The inner loops of adaptive_conv on a CPU: sums that stay in registers, vectors along x.
//
// Included by adaptive_cpu_isa.cpp, once per instruction-set level.
#pragma once
#include <cstdint>
#include <type_traits>
#include <utility>

#include "common/simd.h"

namespace ovs {
namespace OVS_ISA {
namespace {

// body(0), body(1), .. body(kCount - 1), as constants: an array with constant indices only is kept in registers, one
// that a loop runs over may not be, even if the loop is unrolled later.
template <class Body, int... kIndex>
OVS_INLINE void for_each_constant(const Body& body, std::integer_sequence<int, kIndex...>) {
    (body(std::integral_constant<int, kIndex>{}), ...);
}
template <int kCount, class Body>
OVS_INLINE void for_constants(const Body& body) {
    for_each_constant(body, std::make_integer_sequence<int, kCount>{});
}
#define OVS_BODY(name) [&](auto name) __attribute__((always_inline))

// Where the filters of a tile lie: one row of columns per row r of the window, row y of the tile (i = r - y) and tap j:
//     taps + r * per_window_row + y * per_row + j * per_tap
struct TapStrides {
    int64_t per_window_row, per_row, per_tap;
};

// Sums of kChannels channels and kRows rows of one vector of columns, taps from above to below and left to right.
//
// A vector of a window is loaded once for all rows that reach it, and a vector of filters once for all channels: with 6
// rows and 4 channels 24 products need 10 loads.
template <class T, int kRows, int kChannels>
struct TapSums {
    static constexpr int kLanes = kVectorBytes / sizeof(T);
    using V = Vec<T, kLanes>;

    V sums[kChannels][kRows];

    // Products of a row of the window with the filters of the tile's rows kFirst .. kLast - 1.
    template <int kFirst, int kLast>
    OVS_INLINE void add_row(const T* row, int64_t plane, const T* taps, const TapStrides& strides, int64_t width) {
        taps += kFirst * strides.per_row;
        for (int64_t j = 0; j < width; ++j, taps += strides.per_tap) {
            V pixels[kChannels];
            for_constants<kChannels>(OVS_BODY(c) { pixels[c] = load<V>(row + c * plane + j); });
            for_constants<kLast - kFirst>(OVS_BODY(k) {
                const V weight = load<V>(taps + k * strides.per_row);
                for_constants<kChannels>(OVS_BODY(c) { sums[c][kFirst + k] += pixels[c] * weight; });
            });
        }
    }

    // The first kRows - 1 rows of a window: the tile's rows join in one by one.
    template <int kRow = 0>
    OVS_INLINE void add_first_rows(const T* row, int64_t plane, int64_t pitch, const T* taps, const TapStrides& strides,
                                   int64_t width) {
        if constexpr (kRow < kRows - 1) {
            add_row<0, kRow + 1>(row, plane, taps, strides, width);
            add_first_rows<kRow + 1>(row + pitch, plane, pitch, taps + strides.per_window_row, strides, width);
        }
    }
    // The last kRows - 1 rows: they leave one by one.
    template <int kRow = 1>
    OVS_INLINE void add_last_rows(const T* row, int64_t plane, int64_t pitch, const T* taps, const TapStrides& strides,
                                  int64_t width) {
        if constexpr (kRow < kRows) {
            add_row<kRow, kRows>(row, plane, taps, strides, width);
            add_last_rows<kRow + 1>(row + pitch, plane, pitch, taps + strides.per_window_row, strides, width);
        }
    }

    // height >= kRows, of the filters.
    OVS_INLINE void add(const T* window, int64_t plane, int64_t pitch, const T* taps, const TapStrides& strides,
                        int64_t height, int64_t width) {
        for_constants<kChannels * kRows>(OVS_BODY(k) { sums[k / kRows][k % kRows] = V{}; });
        add_first_rows(window, plane, pitch, taps, strides, width);
        for (int64_t r = kRows - 1; r < height; ++r) {
            add_row<0, kRows>(window + r * pitch, plane, taps + r * strides.per_window_row, strides, width);
        }
        add_last_rows(window + height * pitch, plane, pitch, taps + height * strides.per_window_row, strides, width);
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
