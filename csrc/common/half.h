// The bits of float16 and bfloat16 numbers, to and from float32, one at a time, on the host and on a device.
// common/half_vector.h has the same for the vectors of a CPU kernel.
#pragma once
#include <cstdint>
#include <cstring>

#include "common/index.h"

namespace ovs {

OVS_HOST_DEVICE uint32_t float32_bits(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}
OVS_HOST_DEVICE float float_of_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

OVS_HOST_DEVICE float widen_bfloat16(uint16_t bits) { return float_of_bits(static_cast<uint32_t>(bits) << 16); }
OVS_HOST_DEVICE float widen_float16(uint16_t half) {
    const uint32_t bits = half, magnitude = (bits & 0x7fffu) << 13, sign = (bits & 0x8000u) << 16;
    // The exponent moves by 112; subnormal numbers come out right, too. Inf and NaN keep a full exponent.
    const uint32_t widened = float32_bits(float_of_bits(magnitude) * 5.192296858534828e33f);  // 2^112
    const uint32_t special = magnitude >= 0x0f800000u ? 0x7f800000u | magnitude : widened;
    return float_of_bits(special | sign);
}

// Rounded to nearest, ties to even, of a number that is not negative and not too large, or NaN.
OVS_HOST_DEVICE uint16_t bfloat16_bits(float x) {
    const uint32_t bits = float32_bits(x);
    return static_cast<uint16_t>(x == x ? (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16 : 0x7fc0u);
}
OVS_HOST_DEVICE uint16_t float16_bits(float x) {
    constexpr float kSmallestNormal = 6.103515625e-5f;  // 2^-14; below, float16 counts in steps of 2^-24, as 0.5f does
    if (x < kSmallestNormal) return static_cast<uint16_t>(float32_bits(x + 0.5f) - float32_bits(0.5f));
    const uint32_t bits = float32_bits(x);
    return static_cast<uint16_t>(x == x ? (bits - (112u << 23) + 0xfffu + ((bits >> 13) & 1u)) >> 13 : 0x7e00u);
}

}  // namespace ovs
