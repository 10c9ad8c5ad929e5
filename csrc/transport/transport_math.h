// The formulas of the transport family, shared by the CPU and the CUDA kernels.
#pragma once
#include <climits>
#include <cstring>

#include "common/error.h"
#include "common/half.h"
#include "common/index.h"
#include "transport/transport.h"

namespace ovs {
namespace {  // internal linkage, like OVS_HOST_DEVICE

// Largest (max(cost) - min(cost)) / epsilon for scaling vectors that are not logarithms: with marginals of mass 1 all
// sums stay within e^-60 / M and M e^60, normal numbers in float32 (docs/transport.md).
constexpr double kPlainRange = 60.0;

// The smallest normal float32: no denominator is below.
constexpr float kSmallestDenominator = 1.1754943508222875e-38f;

// Numbers of 16 bits, as they are stored.
struct Half {
    uint16_t bits;
};
struct BFloat {
    uint16_t bits;
};

OVS_HOST_DEVICE float widen(float x) { return x; }
OVS_HOST_DEVICE double widen(double x) { return x; }
OVS_HOST_DEVICE float widen(BFloat x) { return widen_bfloat16(x.bits); }
OVS_HOST_DEVICE float widen(Half x) { return widen_float16(x.bits); }

inline void check_params(const TransportParams& p) {
    OVS_REQUIRE(p.num_rows >= 0 && p.num_columns >= 0 && p.num_classes >= 0, "sinkhorn: negative size");
    OVS_REQUIRE(p.num_rows <= INT_MAX && p.num_columns <= INT_MAX && p.num_classes <= INT_MAX,
                "sinkhorn: more rows, columns or classes than 2^31 - 1");
    OVS_REQUIRE(p.max_iter >= 1, "sinkhorn: expected at least one iteration");
    OVS_REQUIRE(p.epsilon > 0.0, "sinkhorn: expected epsilon > 0");
}

}  // namespace
}  // namespace ovs
