// Host side of the CUDA code: error checks, the current device, limits of a launch.
#pragma once
#include <cuda_runtime_api.h>

#include <string>

#include "common/error.h"

namespace ovs {

constexpr int kMaxGridYZ = 65535;  // largest gridDim.y and gridDim.z; gridDim.x may be 2^31 - 1

inline cudaStream_t as_stream(void* stream) { return static_cast<cudaStream_t>(stream); }

// Throws with the runtime's own words. The text is taken before the pending error is cleared, so that the
// next check does not report this failure a second time.
inline void check_cuda(cudaError_t status, const char* what) {
    if (status == cudaSuccess) return;
    const std::string message = std::string(what) + ": " + cudaGetErrorName(status) + ": " + cudaGetErrorString(status);
    (void)cudaGetLastError();
    throw CudaError(message);
}

// After a launch. With OVS_DEBUG_SYNC it also waits for the kernel, so that its errors appear here and not in
// a later call; that breaks graph capture and is meant for debugging.
inline void check_launch(const char* name) {
    check_cuda(cudaGetLastError(), name);
#ifdef OVS_DEBUG_SYNC
    check_cuda(cudaDeviceSynchronize(), name);
#endif
}

// Makes `device` current for a scope. The caller's current device need not be that of its arrays.
class DeviceGuard {
public:
    explicit DeviceGuard(int device) {
        check_cuda(cudaGetDevice(&previous_), "DeviceGuard: cudaGetDevice");
        if (device == previous_) return;
        check_cuda(cudaSetDevice(device), "DeviceGuard: cudaSetDevice");
        changed_ = true;
    }
    ~DeviceGuard() {
        if (changed_) (void)cudaSetDevice(previous_);
    }
    DeviceGuard(const DeviceGuard&) = delete;
    DeviceGuard& operator=(const DeviceGuard&) = delete;

private:
    int previous_ = 0;
    bool changed_ = false;
};

}  // namespace ovs

// Around every runtime call: OVS_CUDA(cudaMemsetAsync(...)).
#define OVS_CUDA(call) ::ovs::check_cuda((call), #call)

// After every launch, with the operator's name: OVS_CHECK_LAUNCH("lp_pixels").
#define OVS_CHECK_LAUNCH(name) ::ovs::check_launch(name)
