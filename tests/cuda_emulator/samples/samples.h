// Host side of the sample kernels. The .cu files compile with nvcc as they do with the emulator; the program
// that runs them (main.cpp) expects the emulator.
#pragma once
#include <cuda_runtime_api.h>

#include <string>
#include <vector>

#include "common/device.cuh"

namespace samples {

// An array on the device.
template <class T>
class DeviceArray {
public:
    explicit DeviceArray(const std::vector<T>& values) : size_(values.size()) {
        void* memory = nullptr;
        OVS_CUDA(cudaMalloc(&memory, size_ * sizeof(T)));
        data_ = static_cast<T*>(memory);
        OVS_CUDA(cudaMemcpy(data_, values.data(), size_ * sizeof(T), cudaMemcpyHostToDevice));
    }
    ~DeviceArray() { (void)cudaFree(data_); }
    DeviceArray(const DeviceArray&) = delete;
    DeviceArray& operator=(const DeviceArray&) = delete;

    T* data() const { return data_; }
    std::vector<T> to_host() const {
        std::vector<T> values(size_);
        OVS_CUDA(cudaMemcpy(values.data(), data_, size_ * sizeof(T), cudaMemcpyDeviceToHost));
        return values;
    }

private:
    T* data_ = nullptr;
    std::size_t size_;
};

// A kernel whose barriers can be deleted one at a time (kernels_deletable.cu).
struct DeletableSample {
    const char* name;
    int num_barriers;
    bool (*run)(int deleted);  // -1: none; returns whether the result was right
};
const std::vector<DeletableSample>& deletable_samples();

// Kernels with one mistake each (kernels_buggy.cu): launches the one of that name on g [n], n = 64.
bool launch_buggy(const std::string& name, float* g, int n, cudaStream_t stream);
// Writes values[i] = i, correctly.
void launch_count_up(float* values, int n, cudaStream_t stream);

// Correct kernels (kernels_checked.cu). Each returns an empty string, or what was wrong.
std::string check_warp_operations();
std::string check_block_votes();
std::string check_atomics();
std::string check_math();
std::string check_block_sums();
std::string check_stencil();

// The order in which the threads of 2 blocks of 8 got their first turns, as block * 8 + thread.
std::vector<int> turn_order();

}  // namespace samples
