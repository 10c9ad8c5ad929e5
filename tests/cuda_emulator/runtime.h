// What the parts of the emulated runtime share: the last error, the queue of work, the device's memory.
#pragma once
#include <cuda_runtime_api.h>

#include <functional>
#include <string>

namespace cuda_emulator {

// Leaves `status` as this thread's last error, unless an earlier one is still there; returns it. The message
// is what cudaGetErrorString says about it.
cudaError_t set_error(cudaError_t status, const std::string& message);

// Runs the work, or queues it with CUDAEMU_ASYNC=1. One OS thread works at a time.
void submit(cudaStream_t stream, bool async, std::function<void()> work);

// Runs the work that a synchronisation with `stream` waits for: that stream's, in order, and what the default
// stream orders it behind.
void finish_stream(cudaStream_t stream);
void finish_all();

// Whether cudaMalloc gave these bytes. `bytes` may be 0, and the pointer one past the end.
bool is_device_memory(const void* pointer, std::size_t bytes);

}  // namespace cuda_emulator
