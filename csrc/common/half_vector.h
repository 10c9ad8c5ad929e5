// Per level: float16 and bfloat16 numbers, as bits in memory, to and from vectors of float32.
#pragma once
#include <cstdint>

#include "common/simd.h"
#if OVS_ISA_LEVEL >= 3
#include <immintrin.h>
#endif

namespace ovs {
namespace OVS_ISA {
namespace {

using HalfLanes = Vec<uint16_t, kVectorBytes / 4>;
using FloatLanes = Vec<float, kVectorBytes / 4>;
using BitLanes = Vec<uint32_t, kVectorBytes / 4>;

// The bits of a vector of numbers, each in the lower half of 32.
OVS_INLINE BitLanes half_bits(const uint16_t* p) { return __builtin_convertvector(load<HalfLanes>(p), BitLanes); }

OVS_INLINE FloatLanes widen_bfloat16(const uint16_t* p) { return (FloatLanes)(half_bits(p) << 16); }

// Of numbers that are not negative: whether a sign is kept depends on the level. The exponent moves from a bias of 15
// to one of 127. Subnormal numbers get the exponent of the smallest normal one, 2^-14, which then is one too much in
// all of them and subtracted: no subnormal float32 comes up, they are slow. One instruction from x86-64-v3 on, which
// the compiler's own conversion of vectors does not use.
OVS_INLINE FloatLanes widen_float16(const uint16_t* p) {
#if OVS_ISA_LEVEL == 4
    return (FloatLanes)_mm512_maskz_cvtph_ps(0xffff, load<__m256i>(p));
#elif OVS_ISA_LEVEL == 3
    return (FloatLanes)_mm256_cvtph_ps(load<__m128i>(p));
#else
    constexpr float kSmallestNormal = 6.103515625e-5f;  // 2^-14
    const BitLanes h = half_bits(p) & 0x7fffu, shifted = h << 13;
    const FloatLanes subnormal = (FloatLanes)(shifted + (113u << 23)) - kSmallestNormal;
    return h < 0x0400u ? subnormal : (FloatLanes)(shifted + (112u << 23));
#endif
}

// Rounded to nearest, ties to even, of numbers that are not negative and not too large, or NaN.
OVS_INLINE HalfLanes bfloat16_bits(const FloatLanes& x) {
    const BitLanes bits = (BitLanes)x;
    const BitLanes rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return __builtin_convertvector(((BitLanes)(x == x) & rounded) | ((BitLanes)(x != x) & 0x7fc0u), HalfLanes);
}

OVS_INLINE HalfLanes float16_bits(const FloatLanes& x) {
    constexpr float kSmallestNormal = 6.103515625e-5f;  // 2^-14; below, float16 counts in steps of 2^-24, as 0.5f does
    const BitLanes bits = (BitLanes)x;
    const BitLanes normal = (bits - (112u << 23) + 0xfffu + ((bits >> 13) & 1u)) >> 13;
    const BitLanes subnormal = (BitLanes)(x + 0.5f) - 0x3f000000u;
    const BitLanes small = (BitLanes)(x < kSmallestNormal), number = (BitLanes)(x == x);
    return __builtin_convertvector((number & ((small & subnormal) | (~small & normal))) | (~number & 0x7e00u),
                                   HalfLanes);
}

}  // namespace
}  // namespace OVS_ISA
}  // namespace ovs
