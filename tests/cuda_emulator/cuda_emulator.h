// CUDA device code for g++: what nvcc knows by itself, on top of NVIDIA's headers for types and the runtime.
//
// Include it instead of cuda_runtime.h, with CUDA_EMULATOR defined; csrc/common/launch.cuh does. A .cu file
// is then compiled with `g++ -x c++`. Shared memory is declared with GPU_SHARED and GPU_DYN_SHARED: a plain
// __shared__ is an error here, as it would be a local array. There is no __activemask(): masks are explicit.
#pragma once
#include <cuda_runtime_api.h>
#include <vector_functions.h>

#include <cstring>
#include <tuple>
#include <type_traits>
#include <utility>

#include "device_atomics.h"
#include "device_math.h"
#include "engine.h"

#undef __shared__
#define __shared__ static_assert(false, "declare shared memory with GPU_SHARED")
#undef __launch_bounds__
#define __launch_bounds__(...)

#define threadIdx (::cuda_emulator::current->thread_idx)
#define blockIdx (::cuda_emulator::current->block_idx)
#define blockDim (::cuda_emulator::current->block_dim)
#define gridDim (::cuda_emulator::current->grid_dim)

constexpr int warpSize = cuda_emulator::kLanes;

// GPU_SHARED(float, tile, [32][33]); the address of the static variable tells the declarations apart.
#define GPU_SHARED(T, name, ...)             \
    static const char name##_shared_tag = 0; \
    using name##_shared_t = T __VA_ARGS__;   \
    name##_shared_t& name =                  \
        *static_cast<name##_shared_t*>(::cuda_emulator::shared_memory(&name##_shared_tag, sizeof(name##_shared_t)))
#define GPU_DYN_SHARED(T, name) T* name = static_cast<T*>(::cuda_emulator::shared_memory(nullptr, 0))

// The line of the kernel that calls an operation, as a default argument.
#define CUDA_EMULATOR_SITE ::cuda_emulator::Site site = {__builtin_FILE(), __builtin_LINE()}

namespace cuda_emulator {

template <class T>
std::uint64_t to_bits(T value) {
    static_assert(sizeof(T) <= sizeof(std::uint64_t) && std::is_trivially_copyable_v<T>);
    std::uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof(T));
    return bits;
}

template <class T>
T from_bits(std::uint64_t bits) {
    T value;
    std::memcpy(&value, &bits, sizeof(T));
    return value;
}

template <class T>
T shuffle(unsigned mask, T value, int source, Site site) {
    return from_bits<T>(warp_op(WarpOp::kShuffle, mask, to_bits(value), source, site));
}

inline int segment_begin(int width) { return static_cast<int>(lane()) & ~(width - 1); }

template <class T>
const void* pointer_or_null(const T& argument) {
    if constexpr (std::is_pointer_v<T>) {
        return static_cast<const void*>(argument);
    } else {
        return nullptr;
    }
}

// kernel<<<grid, block, smem_bytes, stream>>>(args...), with errors left in cudaGetLastError as there.
template <class... Params, class... Args>
void launch(void (*kernel)(Params...), dim3 grid, dim3 block, std::size_t smem_bytes, cudaStream_t stream,
            Args&&... args) {
    const std::tuple<Params...> values{static_cast<Params>(std::forward<Args>(args))...};
    const void* pointers[sizeof...(Params) + 1] = {};
    std::apply(
        [&](const auto&... value) {
            int i = 0;
            ((pointers[i++] = pointer_or_null(value)), ...);
            (void)i;
        },
        values);
    launch_grid(grid, block, smem_bytes, stream, pointers, static_cast<int>(sizeof...(Params)),
                [kernel, values] { std::apply(kernel, values); });
}

}  // namespace cuda_emulator

// Barriers of the block
inline void __syncthreads(CUDA_EMULATOR_SITE) { cuda_emulator::block_barrier(0, site); }
inline int __syncthreads_count(int predicate, CUDA_EMULATOR_SITE) {
    return cuda_emulator::block_barrier(predicate, site);
}
inline int __syncthreads_or(int predicate, CUDA_EMULATOR_SITE) {
    return cuda_emulator::block_barrier(predicate, site) > 0;
}
inline int __syncthreads_and(int predicate, CUDA_EMULATOR_SITE) {
    return cuda_emulator::block_barrier(predicate == 0, site) == 0;
}
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}

// Warp operations. Only __syncwarp orders memory accesses, as in CUDA.
inline void __syncwarp(unsigned mask = 0xffffffffu, CUDA_EMULATOR_SITE) {
    cuda_emulator::warp_op(cuda_emulator::WarpOp::kSync, mask, 0, 0, site);
}
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = warpSize, CUDA_EMULATOR_SITE) {
    return cuda_emulator::shuffle(mask, value, cuda_emulator::segment_begin(width) + (source & (width - 1)), site);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = warpSize, CUDA_EMULATOR_SITE) {
    const int self = static_cast<int>(cuda_emulator::lane()), source = self - static_cast<int>(delta);
    return cuda_emulator::shuffle(mask, value, source < cuda_emulator::segment_begin(width) ? self : source, site);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = warpSize, CUDA_EMULATOR_SITE) {
    const int self = static_cast<int>(cuda_emulator::lane()), source = self + static_cast<int>(delta);
    const int end = cuda_emulator::segment_begin(width) + width;
    return cuda_emulator::shuffle(mask, value, source >= end ? self : source, site);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = warpSize, CUDA_EMULATOR_SITE) {
    const int self = static_cast<int>(cuda_emulator::lane()), source = self ^ lane_mask;
    const int end = cuda_emulator::segment_begin(width) + width;
    return cuda_emulator::shuffle(mask, value, source >= end ? self : source, site);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, CUDA_EMULATOR_SITE) {
    return static_cast<unsigned>(cuda_emulator::warp_op(cuda_emulator::WarpOp::kBallot, mask, predicate != 0, 0, site));
}
inline int __any_sync(unsigned mask, int predicate, CUDA_EMULATOR_SITE) {
    return __ballot_sync(mask, predicate, site) != 0;
}
inline int __all_sync(unsigned mask, int predicate, CUDA_EMULATOR_SITE) {
    return __ballot_sync(mask, predicate == 0, site) == 0;
}
template <class T>
unsigned __match_any_sync(unsigned mask, T value, CUDA_EMULATOR_SITE) {
    return static_cast<unsigned>(
        cuda_emulator::warp_op(cuda_emulator::WarpOp::kMatch, mask, cuda_emulator::to_bits(value), 0, site));
}

#define CUDA_EMULATOR_REDUCE(NAME, T, OP)                                                                         \
    inline T NAME(unsigned mask, T value, CUDA_EMULATOR_SITE) {                                                   \
        return static_cast<T>(                                                                                    \
            cuda_emulator::warp_op(cuda_emulator::WarpOp::OP, mask, static_cast<std::uint64_t>(value), 0, site)); \
    }
CUDA_EMULATOR_REDUCE(__reduce_add_sync, unsigned, kAdd)
CUDA_EMULATOR_REDUCE(__reduce_add_sync, int, kAdd)
CUDA_EMULATOR_REDUCE(__reduce_min_sync, unsigned, kMin)
CUDA_EMULATOR_REDUCE(__reduce_min_sync, int, kSignedMin)
CUDA_EMULATOR_REDUCE(__reduce_max_sync, unsigned, kMax)
CUDA_EMULATOR_REDUCE(__reduce_max_sync, int, kSignedMax)
CUDA_EMULATOR_REDUCE(__reduce_and_sync, unsigned, kAnd)
CUDA_EMULATOR_REDUCE(__reduce_or_sync, unsigned, kOr)
CUDA_EMULATOR_REDUCE(__reduce_xor_sync, unsigned, kXor)
#undef CUDA_EMULATOR_REDUCE

// What cuda_runtime.h adds to the C interface
template <class T>
cudaError_t cudaMalloc(T** pointer, std::size_t bytes) {
    return ::cudaMalloc(reinterpret_cast<void**>(pointer), bytes);
}
template <class T>
cudaError_t cudaFuncSetAttribute(T* kernel, cudaFuncAttribute attribute, int value) {
    return ::cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), attribute, value);
}
template <class T>
cudaError_t cudaMemcpyToSymbolAsync(const T& symbol, const void* source, std::size_t bytes, std::size_t offset = 0,
                                    cudaMemcpyKind kind = cudaMemcpyHostToDevice, cudaStream_t stream = nullptr) {
    return ::cudaMemcpyToSymbolAsync(static_cast<const void*>(&symbol), source, bytes, offset, kind, stream);
}
