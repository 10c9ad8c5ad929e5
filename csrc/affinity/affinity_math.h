// affinity: what both backends share: constants of the formulas, and the sizes that protect memory.
#pragma once
#include <cmath>
#include <cstdint>

#include "affinity/affinity.h"
#include "common/error.h"
#include "common/index.h"

namespace ovs {
namespace {  // internal linkage: each instruction-set level keeps its own copy

constexpr double kLog2E = 1.4426950408889634;
constexpr double kSmallestNorm = 1e-12;
constexpr double kAffinityEpsilon = 1e-6;  // added to the sum of a row, as published

// In "proxyclip" all exponentials of a window are taken relative to that of its longest row. A row whose own largest
// would be smaller than 2^-this is not served by that.
template <class T>
OVS_HOST_DEVICE bool is_weak(double gamma, T longest_square, T square) {
    constexpr double kWeakest = sizeof(T) == 8 ? 800.0 : 80.0;
    return gamma * kLog2E * (static_cast<double>(longest_square) - static_cast<double>(square)) > kWeakest;
}

// These sizes protect memory; the Python plan has refused them with better words.
inline void check_params(const AffinityParams& p, DType dtype) {
    OVS_REQUIRE(dtype == DType::kFloat32 || dtype == DType::kFloat64, "affinity_pool: float32 or float64 only");
    OVS_REQUIRE(p.num_windows >= 0 && p.num_patches >= 0 && p.num_features >= 0, "affinity_pool: negative size");
    OVS_REQUIRE(p.num_guide >= 1, "affinity_pool: no guide feature");
    OVS_REQUIRE(p.form == AffinityForm::kClipDinoiser || p.form == AffinityForm::kProxyClip, "affinity_pool: form");
}

inline bool is_empty(const AffinityParams& p) {
    return p.num_windows == 0 || p.num_patches == 0 || p.num_features == 0;
}

}  // namespace
}  // namespace ovs
