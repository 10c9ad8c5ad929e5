// Per level: the vector pieces of knn_graph that the compiler's own vectors cannot express, or only just.
//
//   append       the lanes of a vector that a mask selects, one after another (compressed store)
//   log_normal   natural logarithm as straight-line code
#pragma once
#include "common/simd.h"
#if OVS_ISA_LEVEL >= 3
#include <immintrin.h>
#endif

namespace ovs {
namespace OVS_ISA {
namespace {

template <class T>
constexpr int kLanes = kVectorBytes / sizeof(T);

// Writes the selected lanes of `v` and their columns, `column` being that of lane 0, and returns their number. Up to a
// vector's length may be written past the last one. A lane of `mask` is 0 or -1.
template <class T, class V, class M>
OVS_INLINE int64_t append(T* values, int32_t* columns, const V& v, const M& mask, int32_t column) {
    int64_t count = 0;
    OVS_UNROLL
    for (int lane = 0; lane < kLanes<T>; ++lane) {
        values[count] = v[lane];
        columns[count] = column + lane;
        count -= mask[lane];
    }
    return count;
}

#if OVS_ISA_LEVEL == 4
// Compressed in a register and stored whole: the instruction that compresses into memory is slow on some processors.
OVS_INLINE int64_t append(float* values, int32_t* columns, const Vec<float, 16>& v, const Vec<int32_t, 16>& mask,
                          int32_t column) {
    const __mmask16 bits = _mm512_movepi32_mask((__m512i)mask);
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    _mm512_storeu_ps(values, _mm512_maskz_compress_ps(bits, (__m512)v));
    _mm512_storeu_si512(columns, _mm512_maskz_compress_epi32(bits, _mm512_add_epi32(lanes, _mm512_set1_epi32(column))));
    return __builtin_popcount(bits);
}
#elif OVS_ISA_LEVEL == 3
// For each mask of 8 lanes, the numbers of the selected lanes, a byte each.
struct LaneTable {
    uint64_t rows[256];
    constexpr LaneTable() : rows() {
        for (int mask = 0; mask < 256; ++mask) {
            int count = 0;
            for (uint64_t lane = 0; lane < 8; ++lane) {
                if ((mask >> lane) & 1) rows[mask] |= lane << (8 * count++);
            }
        }
    }
};
constexpr LaneTable kLaneTable;

OVS_INLINE int64_t append(float* values, int32_t* columns, const Vec<float, 8>& v, const Vec<int32_t, 8>& mask,
                          int32_t column) {
    const int bits = _mm256_movemask_ps((__m256)mask);
    const __m256i order = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(static_cast<int64_t>(kLaneTable.rows[bits])));
    _mm256_storeu_ps(values, _mm256_permutevar8x32_ps((__m256)v, order));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(columns), _mm256_add_epi32(order, _mm256_set1_epi32(column)));
    return __builtin_popcount(static_cast<unsigned>(bits));
}
#endif

// ln(x) of a normal float: x = 2^e m with m in [sqrt(1/2), sqrt(2)), and ln m = 2 atanh((m - 1) / (m + 1)) as a series
// whose first term left out is below 3e-9 of the sum.
OVS_INLINE float log_normal(float x) {
    constexpr int32_t kRootHalf = 0x3f3504f3;
    constexpr float kLn2 = 0.693147180559945309f;
    int32_t bits;
    __builtin_memcpy(&bits, &x, sizeof bits);
    const int32_t exponent = (bits - kRootHalf) >> 23;
    bits -= exponent * (1 << 23);
    float m;
    __builtin_memcpy(&m, &bits, sizeof m);
    const float t = (m - 1.0f) / (m + 1.0f), t2 = t * t;
    const float series = 1.0f + t2 * (1.0f / 3 + t2 * (1.0f / 5 + t2 * (1.0f / 7 + t2 * (1.0f / 9))));
    return static_cast<float>(exponent) * kLn2 + 2.0f * t * series;
}

// x^gamma for x in (0, 1].
OVS_INLINE float unit_power(float x, float gamma) { return exp_nonpositive(gamma * log_normal(x)); }
OVS_INLINE double unit_power(double x, double gamma) { return __builtin_pow(x, gamma); }

}  // namespace
}  // namespace OVS_ISA
}  // namespace ovs
