// markov: doubly stochastic scaling of an attention matrix, and first-passage times of Markov chains on it (DSLO).
//
// Scaling. For A [N, N] >= 0, row i the query:  r = 1, t = A^T r; n_iter times: c = 1 / t, r = 1 / (A c), t = A^T r.
// T = diag(r) A diag(c) has rows that sum to 1; the largest |c_j t_j - 1| is what its columns are off by.
//
// Chains. F_0 = f;  F_l = ((F_{l-1} * r) A) * c;  g_l = F_l scaled.  All classes take a step together. Times:
//   first_passage  the smallest l >= 0 with g_l > threshold; interpolated l - (g_l - threshold) / (d + 1e-6) for l >=
//   1,
//                  d = g_l - g_{l-1}, but 1 - threshold for l = 1 when the scale is the maximum
//   delta_literal  the smallest l >= 1 with |g_l - g_{l-1}| <= threshold
//   settling       1 + the largest l >= 1 with |g_l - g_{l-1}| > threshold, 1 where there is none
// max_steps where that never happens. Velocity: 1 / max(time, min_time); settling: the time.
//
// Contract.
//   empty          a row or column whose scaled sum is below the smallest normal float32 has the factor 0. Mass on an
//                  empty row is lost; an empty column is reached by no chain and keeps no class from finishing.
//   finished       a class stops when its times can change no more: all of its places are reached, or (first_passage)
//                  its mass is lost, or (settling) g spans no more than the threshold over the columns that are not
//                  empty.
//   without mass   a class whose largest entry is below the smallest normal float32: velocity -Inf, times Inf, no
//   steps. bad entries    a negative, NaN or infinite entry of A, or a column of A whose sum overflows: r and c are all
//   NaN,
//                  and the CPU returns false. Such an entry of a distribution, or NaN in r and c: the class is NaN.
//   determinism    same bits for the same input, on CPU for any number of threads. No atomics on floats.
//   zero extents   nothing is read, nothing is launched; the column error of an empty matrix is 0.
//   dtypes         `DType` is that of A. Everything else is float64 for a float64 matrix and float32 for all others.
//   workspace      `*_workspace_bytes`, from sizes alone.
#pragma once
#include <cstddef>
#include <cstdint>

#include "common/dtype.h"

namespace ovs {

struct ScalingParams {
    const void* attention = nullptr;  // [N, N] A
    void* r = nullptr;                // [N]
    void* c = nullptr;                // [N]
    double* column_error = nullptr;   // scalar, or null
    int64_t num_nodes = 0;
    int n_iter = 15;
};

// The values are part of the interface: `ovs_kernels/_ops/markov.py` holds the same tables and a test compares them.
enum class MarkovRule : int { kFirstPassage = 0, kDeltaLiteral = 1, kSettling = 2 };
enum class StateScale : int { kMax = 0, kNone = 1, kN = 2 };
enum class ChainStage : int { kStart = 0, kSteps = 1, kReport = 2 };

struct MarkovParams {
    const void* attention = nullptr;      // [N, N] A
    const void* r = nullptr;              // [N]
    const void* c = nullptr;              // [N]
    const void* distributions = nullptr;  // [C, N]
    void* velocity = nullptr;             // [C, N]
    void* times = nullptr;                // [C, N], or null
    int32_t* steps = nullptr;             // [C] steps taken, or null
    int64_t* unreached = nullptr;         // [C] places without a time (settling: still changing at the cap), or null
    int64_t num_nodes = 0, num_classes = 0;
    double threshold = 0.3;
    double min_time = 1e-3;
    int max_steps = 1000;
    MarkovRule rule = MarkovRule::kFirstPassage;
    StateScale scale = StateScale::kMax;
    bool interpolate = true;
    // CUDA: one stage per call. kStart; kSteps as often as wanted, with steps that follow each other; kReport. The
    // workspace is kept from call to call.
    ChainStage stage = ChainStage::kStart;
    int first_step = 1, last_step = 0;
    int32_t* running = nullptr;  // scalar: classes that still run after the stage
};

std::size_t doubly_stochastic_cpu_workspace_bytes(const ScalingParams&, DType);
bool doubly_stochastic_cpu(const ScalingParams&, DType, void* workspace, std::size_t workspace_bytes, int num_threads,
                           CpuIsa);

std::size_t markov_velocity_cpu_workspace_bytes(const MarkovParams&, DType);
void markov_velocity_cpu(const MarkovParams&, DType, void* workspace, std::size_t workspace_bytes, int num_threads,
                         CpuIsa);

// Not for float64. Everything is queued on `stream`, without a host round trip, safe under graph capture. Steps after
// the last class has finished return at once; who does not want to queue all of them reads `running` in between.
std::size_t doubly_stochastic_cuda_workspace_bytes(const ScalingParams&, DType);
void doubly_stochastic_cuda(const ScalingParams&, DType, void* workspace, std::size_t workspace_bytes, int device,
                            void* stream);

std::size_t markov_velocity_cuda_workspace_bytes(const MarkovParams&, DType);
void markov_velocity_cuda(const MarkovParams&, DType, void* workspace, std::size_t workspace_bytes, int device,
                          void* stream);

}  // namespace ovs
