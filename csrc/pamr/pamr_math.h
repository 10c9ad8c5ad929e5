// The formulas of the pamr family, shared by the CPU and the CUDA kernels.
#pragma once
#include <cstdint>

#include "common/error.h"
#include "common/index.h"
#include "pamr/pamr.h"

namespace ovs {

constexpr double kPamrSmallestScale = 1e-8;  // added to 0.1 s_k
constexpr double kPamrScaleOfDeviation = 0.1;
constexpr double kPamrLog2E = 1.4426950408889634;
constexpr int kPamrTaps = 8;  // neighbours at one dilation
constexpr int64_t kMaxPamrExtent = (int64_t{1} << 29) - 1;

// The neighbour of number 0 .. 7 in steps of the dilation, row by row without the centre.
OVS_HOST_DEVICE int64_t pamr_row_step(int64_t tap) { return (tap < 4 ? tap : tap + 1) / 3 - 1; }
OVS_HOST_DEVICE int64_t pamr_column_step(int64_t tap) { return (tap < 4 ? tap : tap + 1) % 3 - 1; }

OVS_HOST_DEVICE int64_t pamr_clamp(int64_t at, int64_t extent) { return at < 0 ? 0 : at < extent ? at : extent - 1; }

// Along an axis of `extent` pixels a dilation acts like one that just leads from one end to the other.
OVS_HOST_DEVICE int64_t pamr_reach(int64_t dilation, int64_t extent) {
    return dilation < extent - 1 ? dilation : extent - 1;
}

// The variance comes from sums of the differences to p itself, of which D among the n = 9 D are zero:
//     (squares - sum^2 * inverse_count) * inverse_freedom
// That keeps the subtraction harmless, as sum^2 / n is at most 8/9 of the sum of squares.
struct PamrCounts {
    double inverse_count, inverse_freedom;  // 1 / n, 1 / (n - 1)
};
OVS_HOST_DEVICE PamrCounts pamr_counts(int64_t num_dilations) {
    const double count = 9.0 * static_cast<double>(num_dilations);
    return {1.0 / count, 1.0 / (count - 1.0)};
}

// These sizes protect memory; the Python plan has refused them with better words.
static inline void check_params(const PamrParams& p) {
    OVS_REQUIRE(p.batch >= 0 && p.num_classes >= 0 && p.height >= 0 && p.width >= 0, "pamr: negative size");
    OVS_REQUIRE(p.height <= kMaxPamrExtent && p.width <= kMaxPamrExtent, "pamr: an image too large");
    OVS_REQUIRE(p.num_features >= 1, "pamr: an image without channels");
    OVS_REQUIRE(p.num_iter >= 1, "pamr: no iteration");
    OVS_REQUIRE(1 <= p.num_dilations && p.num_dilations <= kMaxPamrDilations && p.dilations != nullptr,
                "pamr: too few or too many dilations");
    OVS_REQUIRE(p.label_bytes == 0 || (!p.backward && (p.label_bytes == 1 || p.label_bytes == 4)),
                "pamr: labels of an unknown size");
    OVS_REQUIRE(p.label_bytes != 1 || p.num_classes <= 256, "pamr: too many classes for labels of a byte");
    for (int64_t i = 0; i < p.num_dilations; ++i) {
        OVS_REQUIRE(1 <= p.dilations[i] && p.dilations[i] <= kMaxPamrExtent, "pamr: a dilation out of range");
    }
}

// Nothing to compute.
static inline bool is_empty(const PamrParams& p) {
    return p.batch == 0 || p.num_classes == 0 || p.height == 0 || p.width == 0;
}

}  // namespace ovs
