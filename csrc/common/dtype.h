// Element types that cross the border of the core. Kernels compute in float32 and float64; half types are
// storage, read or written by those that say so, and widened before they get to the others.
#pragma once
#include <cstddef>
#include <cstdint>

namespace ovs {

// The values are part of the interface: `ovs_kernels/_native.py` holds the same table and a test compares the two.
enum class DType : int { kFloat32 = 0, kFloat64 = 1, kFloat16 = 2, kBFloat16 = 3 };

inline std::size_t dtype_bytes(DType dtype) { return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2; }

// The instruction-set levels that the CPU kernels are compiled for (x86-64-v2, -v3, -v4); kBaseline elsewhere.
enum class CpuIsa : int { kBaseline = 0, kV2 = 2, kV3 = 3, kV4 = 4 };

}  // namespace ovs
