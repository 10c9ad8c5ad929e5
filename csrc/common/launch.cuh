// The one file that knows both compilers: nvcc, and g++ with the test emulator (tests/cuda_emulator).
//
//   ovs::launch(kernel, grid, block, smem_bytes, stream, args...)   instead of kernel<<<...>>>(args...)
//   GPU_SHARED(float, tile, [32][33]);                              instead of __shared__ float tile[32][33];
//   GPU_DYN_SHARED(float, buffer);                                  float* to the smem_bytes of the launch
//
// A launch reports nothing itself: OVS_CHECK_LAUNCH (common/device.cuh) follows it. `grid` must have no zero
// extent. A type with a comma in it needs an alias before it can go into GPU_SHARED. There is one dynamic
// buffer per block, aligned to 16 bytes: every GPU_DYN_SHARED in a kernel names the same bytes.
#pragma once
#include <cstddef>
#include <utility>

#ifdef CUDA_EMULATOR

#include "cuda_emulator.h"

namespace ovs {
using cuda_emulator::launch;
}  // namespace ovs

#else

#include <cuda_runtime.h>

#define GPU_SHARED(T, name, ...) __shared__ T name __VA_ARGS__
#define GPU_DYN_SHARED(T, name)                                         \
    extern __shared__ __align__(16) unsigned char ovs_dynamic_shared[]; \
    T* name = reinterpret_cast<T*>(ovs_dynamic_shared)

namespace ovs {

constexpr std::size_t kDefaultSharedBytes = 48 * 1024;  // more than this per block, a kernel has to ask for

template <class... Params, class... Args>
void launch(void (*kernel)(Params...), dim3 grid, dim3 block, std::size_t smem_bytes, cudaStream_t stream,
            Args&&... args) {
    if (smem_bytes > kDefaultSharedBytes) {
        const cudaError_t status =
            cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(smem_bytes));
        if (status != cudaSuccess) return;  // it stays the last error, which OVS_CHECK_LAUNCH reports
    }
    // clang-format off
    kernel<<<grid, block, smem_bytes, stream>>>(static_cast<Params>(std::forward<Args>(args))...);
    // clang-format on
}

}  // namespace ovs

#endif  // CUDA_EMULATOR
