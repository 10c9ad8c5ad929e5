// Copies into and out of the tiles of adaptive_conv: filters turned so that each tap is a row of columns, and windows.
//
// Included by adaptive_cpu_isa.cpp, once per instruction-set level.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "common/index.h"
#include "common/simd.h"

namespace ovs {
namespace OVS_ISA {
namespace {

// to[i * to_stride + k] = from[k * from_stride + i] for k, i < kSide: a matrix in kSide registers, in which blocks
// off the diagonal change places, halves first.
template <int kSide, class T>
OVS_INLINE void turn_square(const T* from, int64_t from_stride, T* to, int64_t to_stride) {
    using V = Vec<T, kSide>;
    using M = Vec<std::conditional_t<sizeof(T) == 8, int64_t, int32_t>, kSide>;
    V rows[kSide];
    OVS_UNROLL
    for (int k = 0; k < kSide; ++k) rows[k] = load<V>(from + k * from_stride);
    OVS_UNROLL
    for (int half = kSide / 2; half >= 1; half /= 2) {
        M upper{}, lower{};
        OVS_UNROLL
        for (int lane = 0; lane < kSide; ++lane) {
            upper[lane] = (lane & half) != 0 ? kSide + lane - half : lane;
            lower[lane] = (lane & half) != 0 ? kSide + lane : lane + half;
        }
        OVS_UNROLL
        for (int k = 0; k < kSide; ++k) {
            if ((k & half) != 0) continue;
            const V a = rows[k], b = rows[k + half];
            rows[k] = __builtin_shuffle(a, b, upper);
            rows[k + half] = __builtin_shuffle(a, b, lower);
        }
    }
    OVS_UNROLL
    for (int k = 0; k < kSide; ++k) store(to + k * to_stride, rows[k]);
}

// The same for k < rows, i < columns. What is less than a square is done with smaller ones, or overlaps the last.
template <int kSide, class T>
void turn(const T* from, int64_t from_stride, T* to, int64_t to_stride, int64_t rows, int64_t columns) {
    if constexpr (kSide == 1) {
        for (int64_t k = 0; k < rows; ++k) {
            for (int64_t i = 0; i < columns; ++i) to[i * to_stride + k] = from[k * from_stride + i];
        }
    } else {
        if (rows < kSide || columns < kSide) {
            return turn<kSide / 2>(from, from_stride, to, to_stride, rows, columns);
        }
        int64_t i = 0;
        while (i < columns) {
            if (columns - i <= kSide / 2) {
                return turn<kSide / 2>(from + i, from_stride, to + i * to_stride, to_stride, rows, columns - i);
            }
            i = std::min(i, columns - kSide);
            for (int64_t k = 0; k < rows; k += kSide) {
                k = std::min(k, rows - kSide);
                turn_square<kSide>(from + k * from_stride + i, from_stride, to + i * to_stride + k, to_stride);
            }
            i += kSide;
        }
    }
}

// Writes the first `count` lanes.
template <class V, class T>
OVS_INLINE void store_first(T* to, const V& v, int64_t count) {
    constexpr int kLanes = sizeof(V) / sizeof(T);
    if (count >= kLanes) return store(to, v);
    T lanes[kLanes];
    store(lanes, v);
    for (int64_t k = 0; k < count; ++k) to[k] = lanes[k];
}

// A plane of height x width, and for how many numbers from its first one may read: further planes may follow.
template <class T>
struct Plane {
    const T* data;
    int64_t height, width, readable;
};

// The rectangle whose first pixel is (y, x). What lies outside of the plane is zero with kZeros, else any number.
// `columns` is rounded up to whole vectors; `pitch` has room for them.
template <bool kZeros, class T>
void copy_window(const Plane<T>& plane, int64_t y, int64_t x, int64_t rows, int64_t columns, T* to, int64_t pitch) {
    constexpr int kLanes = kVectorBytes / sizeof(T);
    using V = Vec<T, kLanes>;
    for (int64_t k = y; k < y + rows; ++k, to += pitch) {
        const int64_t first = k * plane.width + x;
        const bool inside = kZeros ? k >= 0 && k < plane.height && x >= 0 && x + columns <= plane.width
                                   : first + round_up(columns, kLanes) <= plane.readable;
        if (inside && first + round_up(columns, kLanes) <= plane.readable) {
            for (int64_t i = 0; i < columns; i += kLanes) store(to + i, load<V>(plane.data + first + i));
            continue;
        }
        for (int64_t i = 0; i < columns; i += kLanes) {
            const int64_t at = x + i;
            if (k < 0 || k >= plane.height || at + kLanes <= 0 || at >= plane.width) {
                store(to + i, V{});
            } else if (at >= 0 && at + kLanes <= plane.width) {
                store(to + i, load<V>(plane.data + first + i));
            } else {
                for (int64_t lane = 0; lane < kLanes; ++lane) {
                    const bool in_row = at + lane >= 0 && at + lane < plane.width;
                    to[i + lane] = in_row ? plane.data[first + i + lane] : T(0);
                }
            }
        }
    }
}

}  // namespace
}  // namespace OVS_ISA
}  // namespace ovs
