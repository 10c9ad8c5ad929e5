// Correct kernels with numbered barriers, each of which is needed. The test deletes them one at a time: some
// order of the threads must give a wrong result, or ThreadSanitizer must report a race.
#include <algorithm>
#include <cstdint>

#include "common/launch.cuh"
#include "common/reduce.cuh"
#include "samples.h"

#define SAMPLE_BARRIER(number)                    \
    do {                                          \
        if (deleted != (number)) __syncthreads(); \
    } while (false)
#define SAMPLE_SYNCWARP(number)                              \
    do {                                                     \
        if (deleted != (number)) __syncwarp(ovs::kFullMask); \
    } while (false)

namespace samples {
namespace {

constexpr int kThreads = 96;  // three warps
constexpr int kRows = 3;

std::vector<int> sample_values(int count, int modulus) {
    std::vector<int> values(count);
    uint32_t state = 12345;
    for (int& value : values) {
        state = state * 1664525u + 1013904223u;
        value = static_cast<int>((state >> 16) % static_cast<uint32_t>(modulus));
    }
    return values;
}

// Every row backwards, through one buffer.
__global__ void reverse_rows_kernel(const int* x, int* y, int deleted) {
    GPU_SHARED(int, row, [kThreads]);
    const int t = threadIdx.x;
    for (int r = 0; r < kRows; ++r) {
        row[t] = x[r * kThreads + t];
        SAMPLE_BARRIER(0);
        y[r * kThreads + t] = row[kThreads - 1 - t];
        SAMPLE_BARRIER(1);
    }
}

bool run_reverse_rows(int deleted) {
    const std::vector<int> values = sample_values(kRows * kThreads, 1000);
    const DeviceArray<int> x(values), y(std::vector<int>(values.size(), -1));
    ovs::launch(reverse_rows_kernel, 1, kThreads, 0, nullptr, x.data(), y.data(), deleted);
    OVS_CHECK_LAUNCH("reverse_rows");
    std::vector<int> expected = values;
    for (int r = 0; r < kRows; ++r) {
        std::reverse(expected.begin() + r * kThreads, expected.begin() + (r + 1) * kThreads);
    }
    return y.to_host() == expected;
}

// Inclusive sums in place, doubling the distance.
__global__ void scan_kernel(const int* x, int* y, int deleted) {
    GPU_SHARED(int, sums, [kThreads]);
    const int t = threadIdx.x;
    sums[t] = x[t];
    SAMPLE_BARRIER(0);
    for (int distance = 1; distance < kThreads; distance *= 2) {
        const int left = t >= distance ? sums[t - distance] : 0;
        SAMPLE_BARRIER(1);
        sums[t] += left;
        SAMPLE_BARRIER(2);
    }
    y[kThreads - 1 - t] = sums[kThreads - 1 - t];
}

bool run_scan(int deleted) {
    const std::vector<int> values = sample_values(kThreads, 100);
    const DeviceArray<int> x(values), y(std::vector<int>(values.size(), -1));
    ovs::launch(scan_kernel, 1, kThreads, 0, nullptr, x.data(), y.data(), deleted);
    OVS_CHECK_LAUNCH("scan");
    std::vector<int> expected = values;
    for (int i = 1; i < kThreads; ++i) expected[i] += expected[i - 1];
    return y.to_host() == expected;
}

// Counting sort of values below kBins.
constexpr int kBins = 16;

__global__ void counting_sort_kernel(const int* x, int* y, int n, int deleted) {
    GPU_SHARED(int, next, [kBins]);
    const int t = threadIdx.x;
    for (int bin = t; bin < kBins; bin += kThreads) next[bin] = 0;
    SAMPLE_BARRIER(0);
    for (int i = t; i < n; i += kThreads) atomicAdd(&next[x[i]], 1);
    SAMPLE_BARRIER(1);
    if (t == 0) {
        int begin = 0;
        for (int bin = 0; bin < kBins; ++bin) {
            const int count = next[bin];
            next[bin] = begin;
            begin += count;
        }
    }
    SAMPLE_BARRIER(2);
    for (int i = t; i < n; i += kThreads) y[min(atomicAdd(&next[x[i]], 1), n - 1)] = x[i];
}

bool run_counting_sort(int deleted) {
    const std::vector<int> values = sample_values(300, kBins);
    const int n = static_cast<int>(values.size());
    const DeviceArray<int> x(values), y(std::vector<int>(values.size(), -1));
    ovs::launch(counting_sort_kernel, 1, kThreads, 0, nullptr, x.data(), y.data(), n, deleted);
    OVS_CHECK_LAUNCH("counting_sort");
    std::vector<int> expected = values;
    std::sort(expected.begin(), expected.end());
    return y.to_host() == expected;
}

// Sum of every row: shuffles inside the warps, then the first warp over the warps' sums.
__global__ void row_sums_kernel(const float* x, float* y, int deleted) {
    GPU_SHARED(float, partial, [kThreads / ovs::kWarpSize]);
    const int t = threadIdx.x;
    const int lane = t % ovs::kWarpSize;
    for (int r = 0; r < kRows; ++r) {
        const float sum = ovs::warp_sum(x[r * kThreads + t]);
        if (lane == 0) partial[t / ovs::kWarpSize] = sum;
        SAMPLE_BARRIER(0);
        if (t < ovs::kWarpSize) {
            const float total = ovs::warp_sum(lane < kThreads / ovs::kWarpSize ? partial[lane] : 0.0f);
            if (t == 0) y[r] = total;
        }
        SAMPLE_BARRIER(1);
    }
}

bool run_row_sums(int deleted) {
    const std::vector<int> integers = sample_values(kRows * kThreads, 1000);  // their sums are exact in float
    const DeviceArray<float> x(std::vector<float>(integers.begin(), integers.end()));
    const DeviceArray<float> y(std::vector<float>(kRows, -1.0f));
    ovs::launch(row_sums_kernel, 1, kThreads, 0, nullptr, x.data(), y.data(), deleted);
    OVS_CHECK_LAUNCH("row_sums");
    std::vector<float> expected(kRows, 0.0f);
    for (int i = 0; i < kRows * kThreads; ++i) expected[i / kThreads] += static_cast<float>(integers[i]);
    return y.to_host() == expected;
}

// Every 32 values of a row backwards, each warp for itself.
__global__ void reverse_in_warps_kernel(const int* x, int* y, int deleted) {
    GPU_SHARED(int, buffer, [kThreads]);
    const int t = threadIdx.x;
    const int lane = t % ovs::kWarpSize;
    for (int r = 0; r < kRows; ++r) {
        buffer[t] = x[r * kThreads + t];
        SAMPLE_SYNCWARP(0);
        y[r * kThreads + t] = buffer[t - lane + ovs::kWarpSize - 1 - lane];
        SAMPLE_SYNCWARP(1);
    }
}

bool run_reverse_in_warps(int deleted) {
    const std::vector<int> values = sample_values(kRows * kThreads, 1000);
    const DeviceArray<int> x(values), y(std::vector<int>(values.size(), -1));
    ovs::launch(reverse_in_warps_kernel, 1, kThreads, 0, nullptr, x.data(), y.data(), deleted);
    OVS_CHECK_LAUNCH("reverse_in_warps");
    std::vector<int> expected = values;
    for (auto begin = expected.begin(); begin != expected.end(); begin += ovs::kWarpSize) {
        std::reverse(begin, begin + ovs::kWarpSize);
    }
    return y.to_host() == expected;
}

// Sum of each value and its two neighbours: tiles with a halo in dynamic shared memory, several per block.
__global__ void box3_kernel(const int* x, int* y, int n, int deleted) {
    GPU_DYN_SHARED(int, tile);  // [blockDim.x + 2]
    const int t = threadIdx.x, tile_size = blockDim.x;
    for (int begin = 0; begin < n; begin += tile_size) {
        for (int i = t; i < tile_size + 2; i += tile_size) {
            const int position = begin + i - 1;
            tile[i] = position >= 0 && position < n ? x[position] : 0;
        }
        SAMPLE_BARRIER(0);
        if (begin + t < n) y[begin + t] = tile[t] + tile[t + 1] + tile[t + 2];
        SAMPLE_BARRIER(1);
    }
}

bool run_box3(int deleted) {
    const int n = 2 * kThreads + 7;
    const std::vector<int> values = sample_values(n, 1000);
    const DeviceArray<int> x(values), y(std::vector<int>(values.size(), -1));
    ovs::launch(box3_kernel, 1, kThreads, (kThreads + 2) * sizeof(int), nullptr, x.data(), y.data(), n, deleted);
    OVS_CHECK_LAUNCH("box3");
    std::vector<int> expected(n);
    for (int i = 0; i < n; ++i) {
        expected[i] = (i > 0 ? values[i - 1] : 0) + values[i] + (i + 1 < n ? values[i + 1] : 0);
    }
    return y.to_host() == expected;
}

}  // namespace

const std::vector<DeletableSample>& deletable_samples() {
    static const std::vector<DeletableSample> all = {
        {"reverse_rows", 2, run_reverse_rows},         {"scan", 3, run_scan},
        {"counting_sort", 3, run_counting_sort},       {"row_sums", 2, run_row_sums},
        {"reverse_in_warps", 2, run_reverse_in_warps}, {"box3", 2, run_box3},
    };
    return all;
}

}  // namespace samples
