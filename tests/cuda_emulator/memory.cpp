// cudaMalloc, cudaFree, copies and fills.
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

#include "runtime.h"
#include "settings.h"

namespace cuda_emulator {
namespace {

std::mutex allocations_mutex;
std::map<std::uintptr_t, std::size_t>& allocations() {  // address -> bytes
    static std::map<std::uintptr_t, std::size_t> map;
    return map;
}

// Reads the settings and checks that every pointer that must be the device's is.
cudaError_t check(const char* function, const void* pointer, std::size_t bytes, bool on_device, Settings* settings) {
    const std::string problem = read_settings(settings);
    if (!problem.empty()) return set_error(cudaErrorInvalidValue, problem);
    if (on_device && !settings->host_pointers && !is_device_memory(pointer, bytes)) {
        return set_error(cudaErrorInvalidValue, std::string(function) + ": " + std::to_string(bytes) +
                                                    " bytes are not all in one allocation of the device");
    }
    return cudaSuccess;
}

cudaError_t copy(void* target, const void* source, std::size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
    if (bytes == 0) return cudaSuccess;  // whatever the pointers are
    const bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    const bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    Settings settings;
    cudaError_t status = check("cudaMemcpy: target", target, bytes, to_device, &settings);
    if (status == cudaSuccess) status = check("cudaMemcpy: source", source, bytes, from_device, &settings);
    if (status != cudaSuccess || bytes == 0) return status;
    submit(stream, settings.async, [=] { std::memmove(target, source, bytes); });
    return cudaSuccess;
}

cudaError_t fill(void* target, int value, std::size_t bytes, cudaStream_t stream) {
    Settings settings;
    const cudaError_t status = check("cudaMemset", target, bytes, true, &settings);
    if (status != cudaSuccess || bytes == 0) return status;
    submit(stream, settings.async, [=] { std::memset(target, value, bytes); });
    return cudaSuccess;
}

}  // namespace

bool is_device_memory(const void* pointer, std::size_t bytes) {
    const auto address = reinterpret_cast<std::uintptr_t>(pointer);
    const std::lock_guard<std::mutex> lock(allocations_mutex);
    auto after = allocations().upper_bound(address);
    if (after == allocations().begin()) return false;
    --after;
    return address + bytes <= after->first + after->second;
}

}  // namespace cuda_emulator

using namespace cuda_emulator;

extern "C" {

// Filled with 0xff bytes: NaN for whoever reads it before writing it.
cudaError_t cudaMalloc(void** pointer, std::size_t bytes) {
    *pointer = nullptr;
    if (bytes == 0) return cudaSuccess;
    constexpr std::size_t kAlignment = 256;
    if (posix_memalign(pointer, kAlignment, bytes) != 0) {
        return set_error(cudaErrorMemoryAllocation, "cudaMalloc: no memory for " + std::to_string(bytes) + " bytes");
    }
    std::memset(*pointer, 0xff, bytes);
    const std::lock_guard<std::mutex> lock(allocations_mutex);
    allocations()[reinterpret_cast<std::uintptr_t>(*pointer)] = bytes;
    return cudaSuccess;
}

cudaError_t cudaFree(void* pointer) {
    finish_all();
    if (pointer == nullptr) return cudaSuccess;
    {
        const std::lock_guard<std::mutex> lock(allocations_mutex);
        if (allocations().erase(reinterpret_cast<std::uintptr_t>(pointer)) == 0) {
            return set_error(cudaErrorInvalidValue, "cudaFree: not a pointer from cudaMalloc");
        }
    }
    std::free(pointer);
    return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* target, const void* source, std::size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
    return copy(target, source, bytes, kind, stream);
}

cudaError_t cudaMemcpy(void* target, const void* source, std::size_t bytes, cudaMemcpyKind kind) {
    const cudaError_t status = copy(target, source, bytes, kind, nullptr);
    finish_stream(nullptr);
    return status;
}

// A __constant__ variable is an ordinary one here.
cudaError_t cudaMemcpyToSymbolAsync(const void* symbol, const void* source, std::size_t bytes, std::size_t offset,
                                    cudaMemcpyKind, cudaStream_t stream) {
    char* const target = static_cast<char*>(const_cast<void*>(symbol)) + offset;
    return copy(target, source, bytes, cudaMemcpyHostToHost, stream);
}

cudaError_t cudaMemsetAsync(void* target, int value, std::size_t bytes, cudaStream_t stream) {
    return fill(target, value, bytes, stream);
}

cudaError_t cudaMemset(void* target, int value, std::size_t bytes) {
    const cudaError_t status = fill(target, value, bytes, nullptr);
    finish_stream(nullptr);
    return status;
}

}  // extern "C"
