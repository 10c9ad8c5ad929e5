// The formulas of the markov family, shared by the CPU and the CUDA kernels.
#pragma once
#include <climits>

#include "common/error.h"
#include "common/index.h"
#include "markov/markov.h"

namespace ovs {
namespace {  // internal linkage, like OVS_HOST_DEVICE

// A sum or a maximum below the smallest normal float32 counts as zero: its inverse would not exist in float32.
constexpr float kSmallestSum = 1.1754943508222875e-38f;
// Keeps the interpolation of a crossing finite where the state hardly moves.
constexpr float kSmallestStep = 1e-6f;

template <class T>
OVS_HOST_DEVICE T inverse_sum(T sum) {
    return sum >= T(kSmallestSum) ? T(1) / sum : T(0);
}

// When the state crossed the threshold on its way to `now`, the state of step `step`.
template <class T>
OVS_HOST_DEVICE T passage_time(T step, T now, T slope, T threshold) {
    return step - (now - threshold) / (slope + T(kSmallestStep));
}

template <class T>
OVS_HOST_DEVICE T velocity_of(T time, T min_time, MarkovRule rule) {
    if (rule == MarkovRule::kSettling) return time;
    return T(1) / (time > min_time ? time : min_time);
}

inline void check_params(const ScalingParams& p) {
    OVS_REQUIRE(p.num_nodes >= 0 && p.num_nodes <= INT_MAX, "doubly_stochastic: 0 to 2^31 - 1 nodes");
    OVS_REQUIRE(p.n_iter >= 0, "doubly_stochastic: a negative number of iterations");
}

inline void check_params(const MarkovParams& p) {
    OVS_REQUIRE(p.num_nodes >= 0 && p.num_nodes <= INT_MAX, "markov_velocity: 0 to 2^31 - 1 nodes");
    OVS_REQUIRE(p.num_classes >= 0 && p.num_classes <= INT_MAX, "markov_velocity: 0 to 2^31 - 1 classes");
    OVS_REQUIRE(p.max_steps >= 1, "markov_velocity: less than one step");
}

}  // namespace
}  // namespace ovs
