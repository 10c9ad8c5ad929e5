// Numbers of the matrix on a GPU, in the type in which it is stored, as float32.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "common/error.h"
#include "common/launch.cuh"
#include "markov/markov.h"

namespace ovs {
namespace {

constexpr float kLargestFloat = 3.402823466e+38f;

__device__ __forceinline__ float widen(float value) { return value; }
__device__ __forceinline__ float widen(__half value) { return __half2float(value); }
__device__ __forceinline__ float widen(__nv_bfloat16 value) { return __bfloat162float(value); }

// False for NaN.
__device__ __forceinline__ bool is_valid(float value) { return value >= 0.0f && value <= kLargestFloat; }

// Calls fn with a null pointer to the type that stands for a dtype.
template <class Fn>
void with_storage(DType dtype, const Fn& fn) {
    OVS_REQUIRE(dtype != DType::kFloat64, "markov: float64 is not for the GPU");
    if (dtype == DType::kFloat16) return fn(static_cast<const __half*>(nullptr));
    if (dtype == DType::kBFloat16) return fn(static_cast<const __nv_bfloat16*>(nullptr));
    fn(static_cast<const float*>(nullptr));
}

}  // namespace
}  // namespace ovs
