// The exact Gaussian over the positions of an image on a GPU: two sums along the axes. A thread sums kStrip
// neighbouring outputs of a pack of classes, and reads each input once.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>

#include "common/launch.cuh"
#include "crf/crf_cuda_rows.cuh"
#include "crf/crf_math.h"

namespace ovs {
namespace {

constexpr double kExactReach = 5.0;  // standard deviations
constexpr int64_t kStrip = 8;        // outputs of a thread

template <class T>
struct ExactView {
    int64_t height, width;
    int64_t reach[2];   // along x and along y
    T* kernel[2];       // [reach + kStrip] weights by distance, 0 beyond the reach
    T* response[2];     // [W] and [H]: of the kernel to ones
    T *before, *after;  // [N] the factors of the normalisation
    T *down, *rows;     // [N, pitch] sums along columns, then along rows too
};

// One block.
template <class T>
__global__ void exact_kernel(const ExactView<T> g, double sx, double sy) {
    for (int axis = 0; axis < 2; ++axis) {
        const double sigma = axis == 0 ? sx : sy;
        const int64_t reach = g.reach[axis], extent = axis == 0 ? g.width : g.height;
        for (int64_t d = threadIdx.x; d < reach + kStrip; d += kRowThreads) {
            const double x = static_cast<double>(d) / sigma;
            g.kernel[axis][d] = d > reach ? T(0) : static_cast<T>(exp(-0.5 * x * x));
        }
        __syncthreads();
        for (int64_t at = threadIdx.x; at < extent; at += kRowThreads) {
            double sum = 0.0;
            const int64_t last = at + reach < extent ? at + reach : extent - 1;
            for (int64_t k = at > reach ? at - reach : 0; k <= last; ++k) {
                sum += static_cast<double>(g.kernel[axis][k < at ? at - k : k - at]);
            }
            g.response[axis][at] = static_cast<T>(sum);
        }
    }
}

template <class T>
__global__ void exact_factors_kernel(const ExactView<T> g, int before, int after, double factor) {
    for_each_item(g.height * g.width, [&](int64_t i) {
        const double n =
            static_cast<double>(g.response[1][i / g.width]) * static_cast<double>(g.response[0][i % g.width]);
        g.before[i] = static_cast<T>(norm_factor(n, before));
        g.after[i] = static_cast<T>(factor * norm_factor(n, after));
    });
}

// Sums along an axis for kStrip neighbours from `at` on; address(k) is the pixel at place k of the axis.
template <class T, class Address>
__device__ __forceinline__ void sum_strip(const T* kernel, int64_t reach, int64_t extent, int64_t at, const T* factor,
                                          const T* from, int64_t pitch, const Address& address,
                                          Pack<T, kPack> (&sums)[kStrip]) {
    for (Pack<T, kPack>& sum : sums) sum = zero_pack<T, kPack>();
    const int64_t end = at + kStrip - 1 + reach < extent ? at + kStrip + reach : extent;
    for (int64_t k = at > reach ? at - reach : 0; k < end; ++k) {
        const int64_t pixel = address(k);
        const Pack<T, kPack> value = pack_at<T, kPack>(from + pixel * pitch);
        const T scale = factor != nullptr ? factor[pixel] : T(1);
#pragma unroll
        for (int64_t j = 0; j < kStrip; ++j) {
            const int64_t d = k < at + j ? at + j - k : k - at - j;
            add(sums[j], d <= reach ? scale * kernel[d] : T(0), value);
        }
    }
}

template <class T>
__global__ void down_kernel(const RowShape shape, const ExactView<T> g, const T* q, int64_t pitch) {
    for_each_pack(shape, ceil_div(g.height, kStrip) * g.width, [&](int64_t item, int64_t pack) {
        const int64_t y = item / g.width * kStrip, x = item % g.width, column = pack * kPack;
        Pack<T, kPack> sums[kStrip];
        sum_strip(
            g.kernel[1], g.reach[1], g.height, y, static_cast<const T*>(g.before), q + column, pitch,
            [&](int64_t k) { return k * g.width + x; }, sums);
#pragma unroll
        for (int64_t j = 0; j < kStrip; ++j) {
            if (y + j < g.height) pack_at<T, kPack>(g.down + ((y + j) * g.width + x) * pitch + column) = sums[j];
        }
    });
}

template <class T>
__global__ void across_kernel(const RowShape shape, const ExactView<T> g, int64_t pitch) {
    const int64_t strips = ceil_div(g.width, kStrip);
    for_each_pack(shape, g.height * strips, [&](int64_t item, int64_t pack) {
        const int64_t y = item / strips, x = item % strips * kStrip, column = pack * kPack;
        Pack<T, kPack> sums[kStrip];
        sum_strip(
            g.kernel[0], g.reach[0], g.width, x, static_cast<const T*>(nullptr), static_cast<const T*>(g.down) + column,
            pitch, [&](int64_t k) { return y * g.width + k; }, sums);
#pragma unroll
        for (int64_t j = 0; j < kStrip; ++j) {
            if (x + j >= g.width) continue;
            const int64_t i = y * g.width + x + j;
            Pack<T, kPack> row = zero_pack<T, kPack>();
            add(row, g.after[i], sums[j]);
            pack_at<T, kPack>(g.rows + i * pitch + column) = row;
        }
    });
}

int64_t reach_of(double sigma, int64_t extent) {
    const double most = static_cast<double>(extent - 1);
    return static_cast<int64_t>(std::min(std::ceil(kExactReach * sigma), most));
}

}  // namespace
}  // namespace ovs
