// One mistake per kernel. Each kernel would fill g[i] = i for the first 64 threads if it were right.
#include "common/launch.cuh"
#include "common/reduce.cuh"
#include "samples.h"

namespace samples {
namespace {

constexpr int kShared = 64;

__global__ void divergent_barrier_kernel(float* g, int n) {
    const int t = threadIdx.x;
    if (t < 40) {
        __syncthreads();
    } else {
        __syncthreads();
    }
    if (t < n) g[t] = static_cast<float>(t);
}

// Half of a warp waits at a barrier, the other half for the whole warp.
__global__ void barrier_against_shuffle_kernel(float* g, int n) {
    const int t = threadIdx.x;
    int value = t;
    if (t % ovs::kWarpSize < 16) {
        __syncthreads();
    } else {
        value = __shfl_sync(ovs::kFullMask, t, t % ovs::kWarpSize);
    }
    if (t < n) g[t] = static_cast<float>(value);
}

__global__ void lane_outside_mask_kernel(float* g, int n) {
    const int t = threadIdx.x;
    const int value = __shfl_sync(0x7fffffffu, t, t % ovs::kWarpSize);
    if (t < n) g[t] = static_cast<float>(value);
}

__global__ void shared_out_of_bounds_kernel(float* g, int n) {
    GPU_SHARED(float, values, [kShared]);
    const int t = threadIdx.x;
    if (t <= n) values[t] = static_cast<float>(t);
    if (t < n) g[t] = values[t];
}

__global__ void dynamic_shared_too_small_kernel(float* g, int n) {
    GPU_DYN_SHARED(float, values);
    const int t = threadIdx.x;
    if (t < n) values[t] = static_cast<float>(t);
    if (t < n) g[t] = values[t];
}

__global__ void global_out_of_bounds_kernel(float* g, int n) {
    const int t = threadIdx.x;
    if (t <= n) g[t] = static_cast<float>(t);
}

__global__ void uninitialised_shared_kernel(float* g, int n) {
    GPU_SHARED(float, values, [kShared]);
    const int t = threadIdx.x;
    if (t < n && t != 5) values[t] = static_cast<float>(t);
    if (t < n) g[t] = values[t];
}

__global__ void missing_barrier_kernel(float* g, int n) {
    GPU_SHARED(float, values, [kShared]);
    const int t = threadIdx.x;
    if (t < n) values[n - 1 - t] = static_cast<float>(n - 1 - t);
    if (t < n) g[t] = values[t];
}

// Thread 0 writes the next round's value while others may still read this round's.
__global__ void war_race_kernel(float* g, int n) {
    GPU_SHARED(int, round_value, [1]);
    const int t = threadIdx.x;
    int sum = 0;
    for (int round = 0; round < 3; ++round) {
        if (t == 0) round_value[0] = round;
        __syncthreads();
        sum += round_value[0];
    }
    if (t < n) g[t] = static_cast<float>(t + sum - 3);
}

__global__ void early_exit_kernel(float* g, int n) {
    const int t = threadIdx.x;
    if (t >= n) return;
    __syncthreads();
    g[t] = static_cast<float>(t);
}

// A shuffle makes lanes meet, but orders no memory accesses.
__global__ void shuffle_as_fence_kernel(float* g, int n) {
    GPU_SHARED(float, values, [kShared]);
    const int t = threadIdx.x;
    if (t < n) values[t ^ 1] = static_cast<float>(t ^ 1);
    const int self = __shfl_sync(ovs::kFullMask, t, t % ovs::kWarpSize);
    if (t < n) g[self] = values[self];
}

__global__ void too_much_shared_kernel(float* g, int n) {
    GPU_DYN_SHARED(float, dynamic);
    GPU_SHARED(float, values, [4096]);
    const int t = threadIdx.x;
    dynamic[t] = values[t] = static_cast<float>(t);
    if (t < n) g[t] = dynamic[t] + values[t];
}

__global__ void count_up_kernel(float* values, int n) {
    const int t = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
    if (t < n) values[t] = static_cast<float>(t);
}

struct Buggy {
    const char* name;
    void (*kernel)(float*, int);
    int threads;
    std::size_t smem_bytes;
};

constexpr Buggy kBuggy[] = {
    {"none", count_up_kernel, 128, 0},
    {"divergent_barrier", divergent_barrier_kernel, 128, 0},
    {"barrier_against_shuffle", barrier_against_shuffle_kernel, 64, 0},
    {"lane_outside_mask", lane_outside_mask_kernel, 64, 0},
    {"shared_out_of_bounds", shared_out_of_bounds_kernel, 128, 0},
    {"dynamic_shared_too_small", dynamic_shared_too_small_kernel, 128, 63 * sizeof(float)},
    {"global_out_of_bounds", global_out_of_bounds_kernel, 128, 0},
    {"uninitialised_shared", uninitialised_shared_kernel, 128, 0},
    {"missing_barrier", missing_barrier_kernel, 128, 0},
    {"war_race", war_race_kernel, 128, 0},
    {"early_exit", early_exit_kernel, 128, 0},
    {"shuffle_as_fence", shuffle_as_fence_kernel, 64, 0},
    {"too_much_shared", too_much_shared_kernel, 64, 225 * 1024},
    {"too_many_threads", count_up_kernel, 2048, 0},
    {"too_much_dynamic_shared", count_up_kernel, 64, 228 * 1024},
};

}  // namespace

bool launch_buggy(const std::string& name, float* g, int n, cudaStream_t stream) {
    for (const Buggy& buggy : kBuggy) {
        if (name != buggy.name) continue;
        ovs::launch(buggy.kernel, 1, buggy.threads, buggy.smem_bytes, stream, g, n);
        return true;
    }
    return false;
}

void launch_count_up(float* values, int n, cudaStream_t stream) {
    constexpr int kThreads = 64;
    ovs::launch(count_up_kernel, (n + kThreads - 1) / kThreads, kThreads, 0, stream, values, n);
}

}  // namespace samples
