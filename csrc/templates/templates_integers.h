// Per level: products of 32 patches with some rows of embeddings, both as 16-bit integers.
//
// Patches lie in blocks [steps][kBlock][2]: a step holds two neighbouring features of 32 patches. A row's two features
// are broadcast to all lanes; one instruction multiplies pairs and adds them, in 32 bits. The sums of kChunk features
// cannot overflow, which the scales see to, and are added up as float32. Level v4 only: with narrower vectors a product
// of float32 takes no longer.
#pragma once
#include <cstdint>

#include "templates/templates_cpu.h"
#include "templates/templates_pack.h"

#if OVS_ISA_LEVEL == 4
#include <immintrin.h>
#endif

namespace ovs {
namespace OVS_ISA {
namespace {

#if OVS_ISA_LEVEL == 4
constexpr bool kHasIntegerProducts = true;
using Integers = __m512i;
constexpr int kTileRows = 12, kTileStrips = 2;  // 24 accumulators, two patch vectors, one broadcast
OVS_INLINE Integers load_integers(const int16_t* p) { return _mm512_loadu_si512(p); }
OVS_INLINE Integers repeat_pair(int32_t pair) { return _mm512_set1_epi32(pair); }
OVS_INLINE Integers no_integers() { return _mm512_setzero_si512(); }
template <bool kAtOnce>
OVS_INLINE Integers multiply_add(Integers sum, const Integers& a, const Integers& b) {
    if constexpr (!kAtOnce) return _mm512_add_epi32(sum, _mm512_madd_epi16(a, b));
    __asm__("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));  // its intrinsic would need a higher level
    return sum;
}
constexpr int kTileVectors = kTileStrips * Pack<float>::kVectors;

// out [kRows, kBlock] = products of kRows rows [.., pitch] with a block of patches. kAtOnce: with the instruction that
// multiplies and adds in one (AVX512-VNNI), which the level does not include.
template <int kRows, bool kAtOnce>
void multiply_tile(const int16_t* block, const int16_t* rows, int64_t pitch, float* out) {
    using Lanes = Marks<float>::M;
    using V = Pack<float>::V;
    for (int strip = 0; strip < kBlock / kStrip; strip += kTileStrips) {
        for (int64_t first = 0; first < pitch; first += kChunk) {
            Integers sums[kRows][kTileVectors];
            OVS_UNROLL
            for (int r = 0; r < kRows; ++r) {
                OVS_UNROLL
                for (int i = 0; i < kTileVectors; ++i) sums[r][i] = no_integers();
            }
            for (int64_t feature = first; feature < first + kChunk; feature += 2) {
                const int16_t* const at = block + feature * kBlock + strip * kStrip * 2;
                Integers patches[kTileVectors];
                OVS_UNROLL
                for (int i = 0; i < kTileVectors; ++i) patches[i] = load_integers(at + i * (kVectorBytes / 2));
                OVS_UNROLL
                for (int r = 0; r < kRows; ++r) {
                    int32_t pair;
                    __builtin_memcpy(&pair, rows + r * pitch + feature, sizeof pair);
                    const Integers both = repeat_pair(pair);
                    OVS_UNROLL
                    for (int i = 0; i < kTileVectors; ++i) {
                        sums[r][i] = multiply_add<kAtOnce>(sums[r][i], patches[i], both);
                    }
                }
            }
            OVS_UNROLL
            for (int r = 0; r < kRows; ++r) {
                OVS_UNROLL
                for (int i = 0; i < kTileVectors; ++i) {
                    float* const to = out + r * kBlock + strip * kStrip + i * Pack<float>::kLanes;
                    const V more = __builtin_convertvector((Lanes)sums[r][i], V);
                    store(to, first == 0 ? more : load<V>(to) + more);
                }
            }
        }
    }
}

using TileFunction = void (*)(const int16_t*, const int16_t*, int64_t, float*);

// By the number of rows, 1 to kTileRows.
struct TileFunctions {
    TileFunction of[kTileRows + 1];
};
template <int kRows = kTileRows>
void fill_tile_functions(TileFunctions& functions, bool at_once) {
    functions.of[kRows] = at_once ? &multiply_tile<kRows, true> : &multiply_tile<kRows, false>;
    if constexpr (kRows > 1) fill_tile_functions<kRows - 1>(functions, at_once);
}

// Products of a block of patches with `count` rows: [count, kBlock].
class IntegerProduct {
public:
    IntegerProduct() { fill_tile_functions(functions_, __builtin_cpu_supports("avx512vnni") != 0); }
    void operator()(const int16_t* block, const int16_t* rows, int64_t count, int64_t pitch, float* out) const {
        for (int64_t first = 0; first < count; first += kTileRows) {
            const int64_t left = count - first, n = left < kTileRows ? left : kTileRows;
            functions_.of[n](block, rows + first * pitch, pitch, out + first * kBlock);
        }
    }

private:
    TileFunctions functions_;
};
#else
constexpr bool kHasIntegerProducts = false;  // no faster than products of float32
class IntegerProduct {
public:
    void operator()(const int16_t*, const int16_t*, int64_t, int64_t, float*) const {}
};
#endif

}  // namespace
}  // namespace OVS_ISA
}  // namespace ovs
