// Per level: the products of two panels of guide rows, and the sums of features over lists of survivors.
#pragma once
#include <type_traits>

#include "affinity/affinity_cpu.h"
#include "common/exp2.h"
#include "common/simd.h"
#include "common/transpose.h"

namespace ovs {
namespace OVS_ISA {
namespace {

template <class T>
struct Lanes {
    static constexpr int kLanes = kVectorBytes / sizeof(T);
    using V = Vec<T, kLanes>;
    using Bits = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;
    using B = Vec<Bits, kLanes>;
};

// Products of a register tile: kRows numbers of one panel times kVectors vectors of the other: 24 sums of 32 registers,
// or 12 of 16.
template <class T>
struct Product {
    static constexpr int kRows = OVS_ISA_LEVEL == 4 ? 8 : 4;
    static constexpr int kVectors = 3;
    static constexpr int kColumns = kVectors * Lanes<T>::kLanes;
    static_assert(kPanel % kRows == 0 && kPanel % kColumns == 0, "a panel is whole register tiles");
};

// weights[r][c] = <row r of panel a, row c of panel b>, r < rows rounded up to whole register tiles.
template <class T>
void multiply_panels(const T* a, const T* b, int64_t features, int64_t rows, int64_t columns, T* weights) {
    using V = typename Lanes<T>::V;
    using P = Product<T>;
    for (int64_t r0 = 0; r0 < rows; r0 += P::kRows) {
        for (int64_t c0 = 0; c0 < columns; c0 += P::kColumns) {
            V sums[P::kRows][P::kVectors] = {};
            const T* pa = a + r0;
            const T* pb = b + c0;
            for (int64_t f = 0; f < features; ++f, pa += kPanel, pb += kPanel) {
                V v[P::kVectors];
                OVS_UNROLL
                for (int k = 0; k < P::kVectors; ++k) v[k] = load<V>(pb + k * Lanes<T>::kLanes);
                OVS_UNROLL
                for (int r = 0; r < P::kRows; ++r) {
                    OVS_UNROLL
                    for (int k = 0; k < P::kVectors; ++k) sums[r][k] += pa[r] * v[k];
                }
            }
            OVS_UNROLL
            for (int r = 0; r < P::kRows; ++r) {
                OVS_UNROLL
                for (int k = 0; k < P::kVectors; ++k) {
                    store(weights + (r0 + r) * kBlock + c0 + k * Lanes<T>::kLanes, sums[r][k]);
                }
            }
        }
    }
}

// Rows of the result that are summed together. More would read features less often, but the list of a group holds all
// patches that any of its rows wants.
constexpr int kGroup = 4;

template <class T>
struct Sums {
    static constexpr int kVectors = OVS_ISA_LEVEL == 4 ? 4 : 2;
    static constexpr int64_t kColumns = kVectors * Lanes<T>::kLanes;
};

// The patches that a group of rows pools; the weight of row r and patch j is weights[r * kBlock + j].
template <class T>
struct Survivors {
    const T* weights;
    const int32_t* list;
    int64_t count;
    const T* features;  // of patch 0
    int64_t stride;
};

template <class V, class T>
OVS_INLINE V load_some(const T* p, int64_t count) {
    V v = {};
    __builtin_memcpy(&v, p, count * sizeof(T));
    return v;
}

// out[r][column] (+)= sum over the list of weight * feature, for kVectors vectors of columns; `part`: how many columns
// there are of a single vector, or 0 for all.
template <bool kFirst, int kRows, int kVectors, class T>
OVS_INLINE void add_survivors(const Survivors<T>& s, int64_t column, int64_t part, T* out) {
    using V = typename Lanes<T>::V;
    constexpr int kLanes = Lanes<T>::kLanes;
    V sums[kRows][kVectors];
    OVS_UNROLL
    for (int r = 0; r < kRows; ++r) {
        OVS_UNROLL
        for (int k = 0; k < kVectors; ++k) {
            const T* const at = out + r * s.stride + column + k * kLanes;
            sums[r][k] = kFirst ? V{} : part == 0 ? load<V>(at) : load_some<V>(at, part);
        }
    }
    for (int64_t i = 0; i < s.count; ++i) {
        const int64_t j = s.list[i];
        const T* const from = s.features + j * s.stride + column;
        V v[kVectors];
        OVS_UNROLL
        for (int k = 0; k < kVectors; ++k) {
            v[k] = part == 0 ? load<V>(from + k * kLanes) : load_some<V>(from + k * kLanes, part);
        }
        OVS_UNROLL
        for (int r = 0; r < kRows; ++r) {
            OVS_UNROLL
            for (int k = 0; k < kVectors; ++k) sums[r][k] += s.weights[r * kBlock + j] * v[k];
        }
    }
    OVS_UNROLL
    for (int r = 0; r < kRows; ++r) {
        OVS_UNROLL
        for (int k = 0; k < kVectors; ++k) {
            T* const at = out + r * s.stride + column + k * kLanes;
            if (part == 0) {
                store(at, sums[r][k]);
            } else {
                std::memcpy(at, &sums[r][k], part * sizeof(T));
            }
        }
    }
}

template <bool kFirst, int kRows, class T>
void add_survivors(const Survivors<T>& s, T* out) {
    int64_t column = 0;
    for (; column + Sums<T>::kColumns <= s.stride; column += Sums<T>::kColumns) {
        add_survivors<kFirst, kRows, Sums<T>::kVectors>(s, column, 0, out);
    }
    for (; column + Lanes<T>::kLanes <= s.stride; column += Lanes<T>::kLanes) {
        add_survivors<kFirst, kRows, 1>(s, column, 0, out);
    }
    if (column < s.stride) add_survivors<kFirst, kRows, 1>(s, column, s.stride - column, out);
}

}  // namespace
}  // namespace OVS_ISA
}  // namespace ovs
