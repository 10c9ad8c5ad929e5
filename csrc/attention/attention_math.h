// attention: what both backends share: exponentials to base 2, and when they need no shift.
#pragma once
#include <cmath>
#include <cstdint>

#include "attention/attention.h"
#include "common/error.h"
#include "common/index.h"

namespace ovs {
namespace {  // internal linkage: each instruction-set level keeps its own copy

constexpr double kLog2E = 1.4426950408889634;

// Softmax does not change when all logits of a row move together, so the usual shift by the row's largest is only
// needed where an exponential could overflow or vanish. |<q, k>| <= |q| |k| says beforehand where: as long as all
// logits, to base 2, stay within this, every exponential is a normal number, and so is the sum of 2^27 of them.
template <class T>
constexpr T safe_exponent() {
    return sizeof(T) == 8 ? T(900) : T(100);
}

// Powers of 2 below this are zero once the largest of the row is 1.
template <class T>
constexpr T smallest_exponent() {
    return sizeof(T) == 8 ? T(-1022) : T(-126);
}

// These sizes protect memory; the Python plan has refused them with better words.
inline void check_params(const AttentionParams& p, DType dtype) {
    OVS_REQUIRE(dtype == DType::kFloat32 || dtype == DType::kFloat64, "attention_mean: float32 or float64 only");
    OVS_REQUIRE((dtype == DType::kFloat64) == (p.mean_dtype == DType::kFloat64),
                "attention_mean: float64 comes from float64 and from nothing else");
    OVS_REQUIRE(p.num_blocks >= 1 && p.num_blocks <= kMaxAttentionBlocks, "attention_mean: number of blocks");
    OVS_REQUIRE(p.num_queries >= 0 && p.num_keys >= 1, "attention_mean: negative size, or no key");
    OVS_REQUIRE(p.num_keys <= int64_t{1} << 27, "attention_mean: too many keys");
    OVS_REQUIRE(p.first_key >= 0 && p.first_key < p.num_keys, "attention_mean: first_key is not a key");
    OVS_REQUIRE((p.column_sums == nullptr) == (p.maximum == nullptr), "attention_mean: column sums without maximum");
    for (int64_t b = 0; b < p.num_blocks; ++b) {
        OVS_REQUIRE(p.blocks[b].heads >= 1 && p.blocks[b].features >= 1, "attention_mean: a block without heads");
    }
}

inline int64_t num_heads(const AttentionParams& p) {
    int64_t heads = 0;
    for (int64_t b = 0; b < p.num_blocks; ++b) heads += p.blocks[b].heads;
    return heads;
}

}  // namespace
}  // namespace ovs
