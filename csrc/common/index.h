// Integer helpers for sizes and offsets. Offsets into user-sized arrays are int64_t everywhere.
#pragma once
#include <cstdint>

// Internal linkage: each instruction-set level of the CPU kernels keeps its own copy (common/simd.h says why).
#ifdef __CUDACC__
#define OVS_HOST_DEVICE static __host__ __device__ inline
#else
#define OVS_HOST_DEVICE static inline
#endif

namespace ovs {

OVS_HOST_DEVICE constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
OVS_HOST_DEVICE constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

}  // namespace ovs
