// The formulas of the graph family, shared by the CPU and the CUDA kernels.
#pragma once
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "common/error.h"
#include "common/index.h"
#include "graph/graph.h"

namespace ovs {

// A directed weight below the smallest normal float32 counts as zero, and so does such a similarity.
constexpr float kSmallestLink = 1.1754943508222875e-38f;
// Above every similarity of unit vectors, whatever the rounding: the threshold of a row without neighbours.
constexpr float kAboveAll = 2.0f;

namespace {  // internal linkage, like OVS_HOST_DEVICE

// What separates a row's neighbours from the rest: column j is one if s > threshold, or s == threshold and
// j <= last_tie. `last_tie` is -1 unless some, but not all, of the ties at the last place are neighbours.
template <class T>
struct Cut {
    T threshold, last_tie;
};

template <class T>
OVS_HOST_DEVICE bool joins(T s, const Cut<T>& cut, T column) {
    return s > cut.threshold || (s == cut.threshold && column <= cut.last_tie);
}

// x^kPower by repeated multiplication, 1 <= kPower.
template <int kPower, class T>
OVS_HOST_DEVICE T product_power(T x) {
    if constexpr (kPower == 1) {
        return x;
    } else if constexpr (kPower % 2 == 0) {
        return product_power<kPower / 2>(x * x);
    } else {
        return x * product_power<kPower - 1>(x);
    }
}

// Calls fn(kPower) with the exponent as a constant where products compute it, and with 0 for all others.
template <class Fn>
void with_power(double gamma, const Fn& fn) {
    if (gamma == 1.0) return fn(std::integral_constant<int, 1>{});
    if (gamma == 2.0) return fn(std::integral_constant<int, 2>{});
    if (gamma == 3.0) return fn(std::integral_constant<int, 3>{});
    if (gamma == 7.0) return fn(std::integral_constant<int, 7>{});
    return fn(std::integral_constant<int, 0>{});
}

inline void check_params(const KnnGraphParams& p) {
    OVS_REQUIRE(p.num_nodes >= 0 && p.num_features >= 0, "knn_graph: negative size");
    OVS_REQUIRE(p.num_nodes <= kMaxNodes, "knn_graph: too many nodes");
    OVS_REQUIRE(p.num_others >= 0 && p.num_others <= p.num_nodes, "knn_graph: number of neighbours out of range");
    OVS_REQUIRE(0 <= p.first_row && p.first_row <= p.last_row && p.last_row <= p.num_nodes,
                "knn_graph: rows out of range");
}

}  // namespace
}  // namespace ovs
