// Sums over a warp and over a block, for float and double, the same in every run.
//
// The order of the additions is fixed by the thread numbers, and every thread gets the same bits. All threads
// of the warp or block must take part. A block has a multiple of 32 threads, 1024 at most, in any shape;
// `kThreads` is their number. Calls may follow each other without a barrier in between.
#pragma once
#include "common/launch.cuh"

namespace ovs {

constexpr int kWarpSize = 32;
constexpr int kMaxBlockThreads = 1024;
constexpr unsigned kFullMask = 0xffffffffu;

// Number of this thread in its block, whatever the block's shape.
__device__ __forceinline__ int thread_in_block() {
    return static_cast<int>(threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z));
}

template <class T>
__device__ __forceinline__ T warp_sum(T value) {
#pragma unroll
    for (int offset = kWarpSize / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(kFullMask, value, offset);
    return value;
}

// Sums kCount values at once, each over the block, for the barriers of one.
template <int kThreads, int kCount, class T>
__device__ __forceinline__ void block_sum(T (&values)[kCount]) {
    static_assert(kThreads >= kWarpSize && kThreads <= kMaxBlockThreads && kThreads % kWarpSize == 0,
                  "a block is a multiple of 32 threads, 1024 at most");
    constexpr int kWarps = kThreads / kWarpSize;
#pragma unroll
    for (int i = 0; i < kCount; ++i) values[i] = warp_sum(values[i]);
    if (kWarps == 1) return;

    GPU_SHARED(T, partial, [kCount][kWarps]);
    const int lane = thread_in_block() % kWarpSize;
    const int warp = thread_in_block() / kWarpSize;
    __syncthreads();  // an earlier call may still be reading `partial`
    if (lane == 0) {
#pragma unroll
        for (int i = 0; i < kCount; ++i) partial[i][warp] = values[i];
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kCount; ++i) values[i] = warp_sum(lane < kWarps ? partial[i][lane] : T(0));
}

template <int kThreads, class T>
__device__ __forceinline__ T block_sum(T value) {
    T values[1] = {value};
    block_sum<kThreads>(values);
    return values[0];
}

}  // namespace ovs
