// The rest of the runtime's interface: errors, streams, the one device, attributes.
#include <cuda_runtime_api.h>

#include <cstdint>
#include <cstdio>
#include <cstring>

#include "engine.h"
#include "runtime.h"

namespace cuda_emulator {
namespace {

// As in CUDA, each OS thread has its own last error.
struct LastError {
    cudaError_t status = cudaSuccess;          // pending
    cudaError_t message_status = cudaSuccess;  // what the message is about; stays when the error was fetched
    std::string message;
};
thread_local LastError last_error;

constexpr int kMultiprocessors = 4;  // few, so that grid-stride loops take several rounds
constexpr int kDefaultSharedBytes = 48 * 1024;

struct Attribute {
    cudaDeviceAttr key;
    int value;
};
constexpr Attribute kAttributes[] = {
    {cudaDevAttrMaxThreadsPerBlock, kMaxThreads},
    {cudaDevAttrMaxBlockDimX, kMaxThreads},
    {cudaDevAttrMaxBlockDimY, kMaxThreads},
    {cudaDevAttrMaxBlockDimZ, 64},
    {cudaDevAttrMaxGridDimX, 2147483647},
    {cudaDevAttrMaxGridDimY, 65535},
    {cudaDevAttrMaxGridDimZ, 65535},
    {cudaDevAttrWarpSize, kLanes},
    {cudaDevAttrMultiProcessorCount, kMultiprocessors},
    {cudaDevAttrMaxThreadsPerMultiProcessor, 2048},
    {cudaDevAttrMaxSharedMemoryPerBlock, kDefaultSharedBytes},
    {cudaDevAttrMaxSharedMemoryPerBlockOptin, static_cast<int>(kMaxSharedBytes)},
    {cudaDevAttrMaxSharedMemoryPerMultiprocessor, 228 * 1024},
    {cudaDevAttrMaxRegistersPerBlock, 65536},
    {cudaDevAttrL2CacheSize, 50 * 1024 * 1024},
    {cudaDevAttrComputeCapabilityMajor, 9},
    {cudaDevAttrComputeCapabilityMinor, 0},
};

struct ErrorText {
    cudaError_t status;
    const char* name;
    const char* text;
};
constexpr ErrorText kErrorTexts[] = {
    {cudaSuccess, "cudaSuccess", "no error"},
    {cudaErrorInvalidValue, "cudaErrorInvalidValue", "invalid argument"},
    {cudaErrorMemoryAllocation, "cudaErrorMemoryAllocation", "out of memory"},
    {cudaErrorInvalidConfiguration, "cudaErrorInvalidConfiguration", "invalid configuration argument"},
    {cudaErrorInvalidDevice, "cudaErrorInvalidDevice", "invalid device ordinal"},
    {cudaErrorIllegalAddress, "cudaErrorIllegalAddress", "an illegal memory access was encountered"},
    {cudaErrorLaunchFailure, "cudaErrorLaunchFailure", "unspecified launch failure"},
};

const ErrorText* find_text(cudaError_t status) {
    for (const ErrorText& entry : kErrorTexts) {
        if (entry.status == status) return &entry;
    }
    return nullptr;
}

cudaError_t check_device(int device) {
    if (device == 0) return cudaSuccess;
    return set_error(cudaErrorInvalidDevice, "the emulator has device 0 only, got " + std::to_string(device));
}

}  // namespace

cudaError_t set_error(cudaError_t status, const std::string& message) {
    if (last_error.status == cudaSuccess) last_error = {status, status, message};
    return status;
}

}  // namespace cuda_emulator

using namespace cuda_emulator;

extern "C" {

cudaError_t cudaPeekAtLastError() { return last_error.status; }
cudaError_t cudaGetLastError() {
    const cudaError_t status = last_error.status;
    last_error.status = cudaSuccess;
    return status;
}
const char* cudaGetErrorName(cudaError_t status) {
    const ErrorText* const entry = find_text(status);
    return entry == nullptr ? "unrecognized error code" : entry->name;
}
const char* cudaGetErrorString(cudaError_t status) {
    if (status != cudaSuccess && status == last_error.message_status) return last_error.message.c_str();
    const ErrorText* const entry = find_text(status);
    return entry == nullptr ? "unrecognized error code" : entry->text;
}

// A stream is the address of a byte: only its identity counts.
cudaError_t cudaStreamCreate(cudaStream_t* stream) {
    *stream = reinterpret_cast<cudaStream_t>(new char);
    return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) { return cudaStreamCreate(stream); }
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    finish_stream(stream);
    delete reinterpret_cast<char*>(stream);
    return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    finish_stream(stream);
    return last_error.status;
}
cudaError_t cudaDeviceSynchronize() {
    finish_all();
    return last_error.status;
}

cudaError_t cudaGetDeviceCount(int* count) {
    *count = 1;
    return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
    *device = 0;
    return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) { return check_device(device); }
cudaError_t cudaRuntimeGetVersion(int* version) {
    *version = CUDART_VERSION;
    return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int* version) {
    *version = CUDART_VERSION;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
    for (const Attribute& entry : kAttributes) {
        if (entry.key != attribute) continue;
        *value = entry.value;
        return check_device(device);
    }
    return set_error(cudaErrorInvalidValue, "cudaDeviceGetAttribute: attribute " +
                                                std::to_string(static_cast<int>(attribute)) +
                                                " is not known to the emulator");
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
    std::memset(properties, 0, sizeof(*properties));
    std::snprintf(properties->name, sizeof(properties->name), "CUDA emulator");
    properties->totalGlobalMem = std::size_t{1} << 34;
    properties->major = 9;
    properties->minor = 0;
    properties->warpSize = kLanes;
    properties->multiProcessorCount = kMultiprocessors;
    properties->maxThreadsPerBlock = kMaxThreads;
    properties->maxThreadsPerMultiProcessor = 2048;
    properties->sharedMemPerBlock = kDefaultSharedBytes;
    properties->sharedMemPerBlockOptin = kMaxSharedBytes;
    properties->l2CacheSize = 50 * 1024 * 1024;
    return check_device(device);
}

cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute attribute, int value) {
    const bool too_much = attribute == cudaFuncAttributeMaxDynamicSharedMemorySize &&
                          (value < 0 || static_cast<std::size_t>(value) > kMaxSharedBytes);
    if (!too_much) return cudaSuccess;
    return set_error(cudaErrorInvalidValue, "cudaFuncSetAttribute: at most " + std::to_string(kMaxSharedBytes) +
                                                " bytes of dynamic shared memory, got " + std::to_string(value));
}

}  // extern "C"
