// The formulas of the upsample family, shared by the CPU and the CUDA kernels: where pixels and nodes lie, in integers.
#pragma once
#include <cmath>
#include <cstdint>

#include "common/error.h"
#include "common/index.h"
#include "upsample/upsample.h"

namespace ovs {

// Smaller ones act like this one: their squares would leave float32.
constexpr double kSmallestSigma = 8.881784197001252e-16;  // 2^-50
constexpr double kLog2E = 1.4426950408889634;
constexpr int64_t kMaxUpsampleExtent = (int64_t{1} << 29) - 1;

// The node nearest to pixel y of `pixels`: floor(p_low + 1/2).
OVS_HOST_DEVICE int64_t cell_of_pixel(int64_t y, int64_t nodes, int64_t pixels) {
    return (2 * y + 1) * nodes / (2 * pixels);
}
// The pixel nearest to the centre of node q: floor((q + 1/2) pixels / nodes).
OVS_HOST_DEVICE int64_t pixel_of_node(int64_t q, int64_t nodes, int64_t pixels) {
    return (2 * q + 1) * pixels / (2 * nodes);
}
// The first pixel of the cell of node q; `pixels` for q = nodes.
OVS_HOST_DEVICE int64_t first_pixel_of_cell(int64_t q, int64_t nodes, int64_t pixels) {
    return q == 0 ? 0 : (2 * q * pixels - nodes + 2 * nodes - 1) / (2 * nodes);
}
// p_low(y) - q
OVS_HOST_DEVICE double distance_to_node(int64_t y, int64_t q, int64_t nodes, int64_t pixels) {
    return static_cast<double>((2 * y + 1) * nodes - (2 * q + 1) * pixels) / static_cast<double>(2 * pixels);
}
// The spatial part of an exponent along one axis, less that of the cell's own node: 0 there, and never above.
OVS_HOST_DEVICE double spatial_exponent(int64_t y, int64_t q, int64_t nodes, int64_t pixels, double factor) {
    const double there = distance_to_node(y, q, nodes, pixels);
    const double here = distance_to_node(y, cell_of_pixel(y, nodes, pixels), nodes, pixels);
    return -factor * ((there - here) * (there + here));
}

// Exponents are kept to the base 2: log2(e) / (2 sigma^2).
static inline double exponent_factor(double sigma) {
    const double s = sigma > kSmallestSigma ? sigma : kSmallestSigma;
    return 0.5 * kLog2E / s / s;
}

// These sizes protect memory; the Python plan has refused them with better words.
static inline void check_params(const UpsampleParams& p) {
    OVS_REQUIRE(p.batch >= 0 && p.num_classes >= 0, "joint_bilateral_upsample: negative size");
    OVS_REQUIRE(1 <= p.low_height && p.low_height <= p.height && p.height <= kMaxUpsampleExtent && 1 <= p.low_width &&
                    p.low_width <= p.width && p.width <= kMaxUpsampleExtent,
                "joint_bilateral_upsample: a size out of range");
    OVS_REQUIRE(0 <= p.radius && p.radius <= kMaxUpsampleRadius, "joint_bilateral_upsample: radius out of range");
    OVS_REQUIRE(p.sigma_spatial > 0.0 && p.sigma_range > 0.0, "joint_bilateral_upsample: a sigma that is not positive");
    OVS_REQUIRE(p.label_bytes == 1 || p.label_bytes == 4, "joint_bilateral_upsample: labels of 1 or 4 bytes");
    OVS_REQUIRE(p.labels == nullptr || p.label_bytes == 4 || p.num_classes <= 256,
                "joint_bilateral_upsample: too many classes for labels of one byte");
}

}  // namespace ovs
