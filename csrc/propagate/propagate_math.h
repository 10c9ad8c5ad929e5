// The formulas of the propagate family, shared by the CPU and the CUDA kernels.
#pragma once
#include <climits>
#include <cmath>

#include "common/error.h"
#include "common/index.h"
#include "propagate/propagate.h"

namespace ovs {
namespace {  // internal linkage, like OVS_HOST_DEVICE

// A degree below the smallest normal float32 has no inverse in float32 and counts as none: the node is isolated, and D
// is 1 there. So does NaN.
constexpr float kSmallestDegree = 1.1754943508222875e-38f;

template <class T>
OVS_HOST_DEVICE bool is_isolated(T degree) {
    return !(degree >= T(kSmallestDegree));
}

// Steps of conjugate gradients after which |r| <= tol |y| whatever the graph: the bound
// |r_m| / |y| <= 2 sqrt(k) ((sqrt(k) - 1) / (sqrt(k) + 1))^m with k = (1 + alpha) / (1 - alpha), and half as many again
// for what rounding costs. The limit of a solve that would otherwise go on forever.
inline int step_limit(double alpha, double tol) {
    const double root_k = std::sqrt((1.0 + alpha) / (1.0 - alpha));
    const double steps = std::log(2.0 * root_k / tol) / std::log((root_k + 1.0) / (root_k - 1.0));
    return steps < 1e8 ? static_cast<int>(1.5 * steps) + 2 : INT_MAX;
}

inline int num_steps(const PropagateParams& p) {
    const bool official = p.mode == SolveMode::kOfficial;
    const int limit = official ? INT_MAX : step_limit(p.alpha, p.tol);
    return p.max_iter < limit ? p.max_iter : limit;
}

inline void check_params(const PropagateParams& p) {
    OVS_REQUIRE(p.num_nodes >= 0 && p.num_links >= 0 && p.num_classes >= 0, "lp_graph: negative size");
    OVS_REQUIRE(p.num_nodes <= INT_MAX, "lp_graph: more nodes than a column index can name");
    OVS_REQUIRE(p.indptr != nullptr, "lp_graph: missing indptr");
}

}  // namespace
}  // namespace ovs
