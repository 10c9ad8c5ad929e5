// Copies into and out of the tiles of adaptive_conv: filters turned so that each tap is a row of columns, and windows.
//
// Included by adaptive_cpu_isa.cpp, once per instruction-set level.
#pragma once
#include <cstdint>
#include <cstring>

#include "adaptive/adaptive_cpu.h"
#include "common/simd.h"

namespace ovs {
namespace OVS_ISA {
namespace {

// Where the taps of a tile of `rows` rows lie. The product of the row r = y + i of a window is taken with the filters
// of all rows y of the tile that reach it: rows of columns are kept in the order r, j, y, in which they are read.
struct TapOrder {
    int64_t rows, filter_height, filter_width;

    int64_t first_row(int64_t r) const { return std::max<int64_t>(0, r - filter_height + 1); }
    int64_t num_rows(int64_t r) const { return std::min(rows - 1, r) + 1 - first_row(r); }
    // Of (y, i, j = 0); each further j is num_rows(y + i) later.
    int64_t index(int64_t y, int64_t i) const {
        int64_t before = 0;
        for (int64_t r = 0; r < y + i; ++r) before += num_rows(r);
        return before * filter_width + y - first_row(y + i);
    }
};

// A square of 128 bits by as many rows, turned: to[i * to_stride + k] = from[k * from_stride + i].
OVS_INLINE void turn_square(const float* from, int64_t from_stride, float* to, int64_t to_stride) {
    using V = Vec<float, 4>;
    typedef int M __attribute__((vector_size(16)));
    const V a = load<V>(from), b = load<V>(from + from_stride);
    const V c = load<V>(from + 2 * from_stride), d = load<V>(from + 3 * from_stride);
    const V ab_low = __builtin_shuffle(a, b, M{0, 4, 1, 5}), ab_high = __builtin_shuffle(a, b, M{2, 6, 3, 7});
    const V cd_low = __builtin_shuffle(c, d, M{0, 4, 1, 5}), cd_high = __builtin_shuffle(c, d, M{2, 6, 3, 7});
    store(to, __builtin_shuffle(ab_low, cd_low, M{0, 1, 4, 5}));
    store(to + to_stride, __builtin_shuffle(ab_low, cd_low, M{2, 3, 6, 7}));
    store(to + 2 * to_stride, __builtin_shuffle(ab_high, cd_high, M{0, 1, 4, 5}));
    store(to + 3 * to_stride, __builtin_shuffle(ab_high, cd_high, M{2, 3, 6, 7}));
}
OVS_INLINE void turn_square(const double* from, int64_t from_stride, double* to, int64_t to_stride) {
    using V = Vec<double, 2>;
    typedef int64_t M __attribute__((vector_size(16)));
    const V a = load<V>(from), b = load<V>(from + from_stride);
    store(to, __builtin_shuffle(a, b, M{0, 2}));
    store(to + to_stride, __builtin_shuffle(a, b, M{1, 3}));
}

// to[i * to_stride + k] = from[k * from_stride + i] for k < rows, i < columns.
template <class T>
OVS_INLINE void turn(const T* from, int64_t from_stride, T* to, int64_t to_stride, int64_t rows, int64_t columns) {
    constexpr int64_t kSide = 16 / sizeof(T);
    if (rows < kSide || columns < kSide) {
        for (int64_t k = 0; k < rows; ++k) {
            for (int64_t i = 0; i < columns; ++i) to[i * to_stride + k] = from[k * from_stride + i];
        }
        return;
    }
    // The last squares of a row or column overlap those before them.
    for (int64_t k = 0; k < rows; k = k + kSide < rows ? std::min(k + kSide, rows - kSide) : rows) {
        for (int64_t i = 0; i < columns; i = i + kSide < columns ? std::min(i + kSide, columns - kSide) : columns) {
            turn_square(from + k * from_stride + i, from_stride, to + i * to_stride + k, to_stride);
        }
    }
}

// to[0 .. count) = row[first .. first + count), zero outside of [0, length).
template <class T>
void copy_clipped(const T* row, int64_t length, int64_t first, T* to, int64_t count) {
    const int64_t begin = std::clamp<int64_t>(-first, 0, count),
                  end = std::clamp<int64_t>(length - first, begin, count);
    std::memset(to, 0, static_cast<std::size_t>(begin) * sizeof(T));
    if (end > begin) std::memcpy(to + begin, row + first + begin, static_cast<std::size_t>(end - begin) * sizeof(T));
    std::memset(to + end, 0, static_cast<std::size_t>(count - end) * sizeof(T));
}

// A rectangle of a plane of height x width, whose first pixel is (y, x), with zeros outside of the plane. `columns` is
// a multiple of kQuad.
template <class T>
void copy_window(const T* plane, int64_t height, int64_t width, int64_t y, int64_t x, T* to, int64_t rows,
                 int64_t columns, int64_t pitch) {
    constexpr int64_t kLanes = std::min<int64_t>(kVectorBytes / sizeof(T), kQuad * 4);
    const bool inside = x >= 0 && x + round_up(columns, kLanes) <= width;
    for (int64_t k = 0; k < rows; ++k, to += pitch) {
        const int64_t row = y + k;
        if (row < 0 || row >= height) {
            std::memset(to, 0, static_cast<std::size_t>(columns) * sizeof(T));
        } else if (inside) {
            const T* const from = plane + row * width + x;
            for (int64_t i = 0; i < columns; i += kLanes) store(to + i, load<Vec<T, kLanes>>(from + i));
        } else {
            copy_clipped(plane + row * width, width, x, to, columns);
        }
    }
}

}  // namespace
}  // namespace OVS_ISA
}  // namespace ovs
