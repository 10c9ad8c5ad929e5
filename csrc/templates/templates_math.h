// What both backends of the templates family share: the bilinear rule, fixed-point numbers, MaNo's terms.
#pragma once
#include <cmath>
#include <cstdint>

#include "common/error.h"
#include "common/index.h"
#include "templates/templates.h"

namespace ovs {
namespace {  // internal linkage, like OVS_HOST_DEVICE

constexpr int kLargestClassCount = 32767;  // classes are kept in 16 bits
constexpr double kFixedPointUnit = 4294967296.0;
constexpr double kLargestTerm = 512.0;  // of a sum; only MaNo's divergence can come near it

// x >= 0, not NaN.
OVS_HOST_DEVICE int64_t fixed_point(double x) {
    const double clipped = x < kLargestTerm ? (x > 0.0 ? x : 0.0) : kLargestTerm;
    return static_cast<int64_t>(clipped * kFixedPointUnit + 0.5);
}

// Where output `o` of `n_out` lies among `n_in` patches: the lower neighbour, the upper one, and the upper's weight.
template <class T>
struct Tap {
    int32_t low, high;
    T weight;
};
template <class T>
OVS_HOST_DEVICE Tap<T> tap_of(int64_t o, int64_t n_in, int64_t n_out) {
    const double source =
        (static_cast<double>(o) + 0.5) * (static_cast<double>(n_in) / static_cast<double>(n_out)) - 0.5;
    const double clamped = source > 0.0 ? source : 0.0;
    int64_t low = static_cast<int64_t>(clamped);
    if (low > n_in - 1) low = n_in - 1;  // rounding, at most
    const int64_t high = low + 1 < n_in ? low + 1 : n_in - 1;
    return {static_cast<int32_t>(low), static_cast<int32_t>(high), static_cast<T>(clamped - static_cast<double>(low))};
}

// Whether class j with probability `other` beats class e with probability `own`: of equals the lower one wins.
template <class T>
OVS_HOST_DEVICE bool beats(T other, int64_t j, T own, int64_t e) {
    return other > own || (other == own && j < e);
}

inline void check_params(const TemplateEntropyParams& p) {
    OVS_REQUIRE(p.num_templates >= 0 && p.num_classes >= 0 && p.num_patches >= 0 && p.out_height >= 0,
                "template_entropy: negative size");
    OVS_REQUIRE(p.num_queries <= kLargestClassCount, "template_entropy: more than 32767 queries");
    const bool groups = p.group_first != nullptr && p.group_of != nullptr;
    OVS_REQUIRE(groups ? p.num_queries >= p.num_classes : p.num_queries == p.num_classes,
                "template_entropy: queries without groups");
    OVS_REQUIRE(!groups || !p.mano, "template_entropy: MaNo of groups");
    OVS_REQUIRE(p.out_height > 0 || !p.interpolate_logits, "template_entropy: interpolated logits of patches");
    OVS_REQUIRE(p.pitch % kStrip == 0 && p.pitch >= p.num_patches, "template_entropy: patches not in whole strips");
    OVS_REQUIRE(p.out_height == 0 || !p.mano, "template_entropy: MaNo of pixels");
    const int64_t patches = p.window_rows * p.window_columns * p.grid_height * p.grid_width;
    OVS_REQUIRE(p.out_height == 0 || patches == p.num_patches, "template_entropy: windows do not make up the patches");
}

inline void check_params(const TemplateFixedParams& p) {
    OVS_REQUIRE(p.num_templates >= 0 && p.num_classes >= 0 && p.num_patches >= 0 && p.num_features >= 0,
                "template_entropy: negative size");
    OVS_REQUIRE(p.num_queries <= kLargestClassCount, "template_entropy: more than 32767 queries");
    const bool groups = p.group_first != nullptr && p.group_of != nullptr;
    OVS_REQUIRE(groups ? p.num_queries >= p.num_classes : p.num_queries == p.num_classes,
                "template_entropy: queries without groups");
}

inline void check_params(const FuseExpertsParams& p) {
    OVS_REQUIRE(p.grid_height >= 1 && p.grid_width >= 1 && p.height >= 0 && p.width >= 0 && p.num_classes >= 1,
                "fuse_experts: negative size");
    OVS_REQUIRE(p.num_classes <= kLargestClassCount, "fuse_experts: more than 32767 classes");
    const int strategy = static_cast<int>(p.strategy);
    OVS_REQUIRE(strategy >= 0 && strategy <= static_cast<int>(FuseStrategy::kAverage), "fuse_experts: strategy");
}

}  // namespace
}  // namespace ovs
