// The scalars of conjugate gradients on a GPU: they stay there, so that a solve needs no word from the host.
#pragma once
#include <cstdint>

#include "common/launch.cuh"
#include "common/reduce.cuh"
#include "common/solve.h"

namespace ovs {
namespace {

constexpr int kScalarThreads = 256;

enum class Scalars : int { kStart, kStep, kFinish, kResidual };

// One block per class: adds the partial inner products and advances the class's scalars.
__global__ void scalars_kernel(const double* partials,  // [blocks, 2, chunk]
                               ClassState* classes,     // [chunk]
                               int64_t blocks, int chunk, Scalars what, double tol) {
    const int c = static_cast<int>(blockIdx.x);
    double sums[2] = {0.0, 0.0};
    for (int64_t i = threadIdx.x; i < blocks; i += kScalarThreads) {
        sums[0] += partials[i * 2 * chunk + c];
        if (what == Scalars::kStep) sums[1] += partials[(i * 2 + 1) * chunk + c];
    }
    block_sum<kScalarThreads>(sums);
    if (threadIdx.x != 0) return;
    ClassState s = classes[c];
    switch (what) {
        case Scalars::kStart:
            s = start_class(sums[0]);
            break;
        case Scalars::kStep:
            step_class(s, sums[0], sums[1]);
            break;
        case Scalars::kFinish:
            finish_step(s, sums[0], tol);
            break;
        case Scalars::kResidual:
            s.rho = sums[0];
            break;
    }
    classes[c] = s;
}

}  // namespace
}  // namespace ovs
