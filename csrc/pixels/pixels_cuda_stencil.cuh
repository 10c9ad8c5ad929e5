// The operator v - alpha D^-1 W v on the GPU, and what each solver does with it.
//
// A block owns a tile of 32 x 8 pixels and `classes` classes of the chunk, 4 per thread: a thread has 8 pixels in a row
// x 4 classes = 32 sums in registers. Stages, 2R+1 times one row of taps:
//   1. the block loads the tile and a border of R pixels into shared memory, once, zero outside the image;
//   2. for each dy all threads compute the 256 x (2R+1) weights of that row of taps into shared memory: a weight is one
//      square root and one exponential, recomputed in every step because reading it would cost as much, and shared by
//      all classes of the block;
//   3. each thread walks along the taps with a window of 8 source vectors: per tap one new 16-byte vector and 8 weights
//      (two 16-byte loads, the same for all threads of a pixel group) for 32 multiply-adds.
#pragma once
#include <cstdint>

#include "common/index.h"
#include "common/launch.cuh"
#include "pixels/pixels_math.h"

namespace ovs {
namespace {

constexpr int kTileX = 32, kTileY = 8, kTile = kTileX * kTileY;
constexpr int kRun = 8;                               // pixels per thread, along x
constexpr int kLane = 4;                              // classes per thread: one float4
constexpr int kPixelGroups = kTile / kRun;            // 32
constexpr int kMaxStencilThreads = kPixelGroups * 8;  // 32 classes

struct StencilParams {
    // inputs
    const float* features;        // [F, H, W]
    const float* state;           // [H, W, chunk]
    const float* degree;          // [H, W]
    const float* inverse_degree;  // [H, W]
    int height, width, num_features, radius, chunk, classes;
    float minus_inverse_tau, alpha;
    // what the epilogues read and write
    float* result;         // [H, W, chunk]  official: q   exact: the iterate before, overwritten
    const float* rhs;      // [H, W, chunk]  exact: y
    double* partials;      // [tiles, 2, chunk] inner products of each tile
    float momentum, step;  // exact
};

inline int stencil_weight_floats(int radius, int classes) {
    const int weights = (2 * radius + 1) * kTile, sums = kPixelGroups * 2 * classes;
    return weights > sums ? weights : sums;
}
inline std::size_t stencil_shared_bytes(int radius, int classes) {
    const std::size_t tile = static_cast<std::size_t>(kTileX + 2 * radius) * (kTileY + 2 * radius) * classes;
    return (tile + stencil_weight_floats(radius, classes)) * sizeof(float);
}

__device__ __forceinline__ float pixel_weight(const float* features, int64_t here, int64_t there, int64_t plane,
                                              int num_features, float minus_inverse_tau) {
    float sum = 0.0f;
    for (int f = 0; f < num_features; ++f) {
        const float d = __ldg(features + f * plane + here) - __ldg(features + f * plane + there);
        sum += d * d;
    }
    const float weight = expf(sqrtf(sum) * minus_inverse_tau);
    return weight >= kSmallestWeight ? weight : 0.0f;  // NaN: not >=, so zero
}

// 1. [kTileY + 2R, kTileX + 2R, classes] of the state around the block's tile.
__device__ __forceinline__ void load_tile(const StencilParams& p, int x0, int y0, int c0, float* tile) {
    const int columns = kTileX + 2 * p.radius, rows = kTileY + 2 * p.radius, vectors = p.classes / kLane;
    for (int i = threadIdx.x; i < columns * rows * vectors; i += blockDim.x) {
        const int vector = i % vectors, column = i / vectors % columns, row = i / (vectors * columns);
        const int x = x0 + column - p.radius, y = y0 + row - p.radius;
        float4 v = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (x >= 0 && x < p.width && y >= 0 && y < p.height) {
            const int64_t pixel = static_cast<int64_t>(y) * p.width + x;
            v = *reinterpret_cast<const float4*>(p.state + pixel * p.chunk + c0 + vector * kLane);
        }
        *reinterpret_cast<float4*>(tile + i * kLane) = v;
    }
}

// 2. weights[tap][pixel of the tile] of one row of taps.
__device__ __forceinline__ void compute_weights(const StencilParams& p, int x0, int y0, int dy, float* weights) {
    const int side = 2 * p.radius + 1;
    const int64_t plane = static_cast<int64_t>(p.height) * p.width;
    for (int i = threadIdx.x; i < side * kTile; i += blockDim.x) {
        const int dx = i / kTile - p.radius, x = x0 + i % kTileX, y = y0 + i % kTile / kTileX;
        float weight = 0.0f;
        const bool inside =
            x < p.width && y < p.height && x + dx >= 0 && x + dx < p.width && y + dy >= 0 && y + dy < p.height;
        if (inside && (dx != 0 || dy != 0)) {
            const int64_t here = static_cast<int64_t>(y) * p.width + x;
            weight = pixel_weight(p.features, here, here + static_cast<int64_t>(dy) * p.width + dx, plane,
                                  p.num_features, p.minus_inverse_tau);
        }
        weights[i] = weight;
    }
}

__device__ __forceinline__ void multiply_add(float4& sum, float weight, const float4& v) {
    sum.x += weight * v.x;
    sum.y += weight * v.y;
    sum.z += weight * v.z;
    sum.w += weight * v.w;
}

// 3. One row of taps for 8 pixels x 4 classes. `source` is the tile at the thread's first pixel, dx = -R; the window of
// 8 source vectors is a ring, unrolled by 8 so that it stays in registers.
__device__ __forceinline__ void add_taps(const float* source, const float* weights, int side, int classes,
                                         float4 (&sum)[kRun]) {
    float4 window[kRun];
#pragma unroll
    for (int i = 0; i < kRun - 1; ++i) window[i] = *reinterpret_cast<const float4*>(source + i * classes);
    source += (kRun - 1) * classes;
    for (int tap0 = 0; tap0 < side; tap0 += kRun) {
#pragma unroll
        for (int j = 0; j < kRun; ++j) {
            const int tap = tap0 + j;
            if (tap >= side) return;
            window[(j + kRun - 1) % kRun] = *reinterpret_cast<const float4*>(source + tap * classes);
            const float4 low = *reinterpret_cast<const float4*>(weights + tap * kTile);
            const float4 high = *reinterpret_cast<const float4*>(weights + tap * kTile + 4);
            multiply_add(sum[0], low.x, window[j % kRun]);
            multiply_add(sum[1], low.y, window[(j + 1) % kRun]);
            multiply_add(sum[2], low.z, window[(j + 2) % kRun]);
            multiply_add(sum[3], low.w, window[(j + 3) % kRun]);
            multiply_add(sum[4], high.x, window[(j + 4) % kRun]);
            multiply_add(sum[5], high.y, window[(j + 5) % kRun]);
            multiply_add(sum[6], high.z, window[(j + 6) % kRun]);
            multiply_add(sum[7], high.w, window[(j + 7) % kRun]);
        }
    }
}

// official: q = L p, with <p, q> and |q|^2.
struct ApplyEpilogue {
    static constexpr int kSums = 2;
    __device__ static void run(const StencilParams& p, int64_t pixel, int64_t at, const float (&v)[kLane],
                               const float (&sum)[kLane], float (&dots)[kSums][kLane]) {
        const float scale = p.alpha * p.inverse_degree[pixel], degree = p.degree[pixel];
#pragma unroll
        for (int c = 0; c < kLane; ++c) {
            const float q = v[c] - scale * sum[c];
            p.result[at + c] = q;
            dots[0][c] += degree * q * v[c];
            dots[1][c] += degree * q * q;
        }
    }
};

// exact: the next Chebyshev iterate over the one before.
struct ChebyshevEpilogue {
    static constexpr int kSums = 0;
    __device__ static void run(const StencilParams& p, int64_t pixel, int64_t at, const float (&v)[kLane],
                               const float (&sum)[kLane], float (&)[1][kLane]) {
        const float scale = p.alpha * p.inverse_degree[pixel];
#pragma unroll
        for (int c = 0; c < kLane; ++c) {
            const float gap = (p.rhs[at + c] - v[c]) + scale * sum[c];
            p.result[at + c] = v[c] + p.momentum * (v[c] - p.result[at + c]) + p.step * gap;
        }
    }
};

// exact: |y - L x|^2, nothing written.
struct ResidualEpilogue {
    static constexpr int kSums = 1;
    __device__ static void run(const StencilParams& p, int64_t pixel, int64_t at, const float (&v)[kLane],
                               const float (&sum)[kLane], float (&dots)[1][kLane]) {
        const float scale = p.alpha * p.inverse_degree[pixel], degree = p.degree[pixel];
#pragma unroll
        for (int c = 0; c < kLane; ++c) {
            const float gap = (p.rhs[at + c] - v[c]) + scale * sum[c];
            dots[0][c] += degree * gap * gap;
        }
    }
};

// Adds the sums of the 32 pixel groups, in order, and writes them to the tile's partials.
template <int kSums>
__device__ __forceinline__ void write_partials(const StencilParams& p, int c0, int pixel_group, int class_group,
                                               const float (&dots)[kSums][kLane], float* scratch) {
    __syncthreads();  // the weights that `scratch` held have been read
#pragma unroll
    for (int s = 0; s < kSums; ++s) {
#pragma unroll
        for (int c = 0; c < kLane; ++c) {
            scratch[(s * kPixelGroups + pixel_group) * p.classes + class_group * kLane + c] = dots[s][c];
        }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < kSums * p.classes; i += blockDim.x) {
        const int s = i / p.classes, c = i % p.classes;
        double total = 0.0;
        for (int group = 0; group < kPixelGroups; ++group) {
            total += scratch[(s * kPixelGroups + group) * p.classes + c];
        }
        p.partials[(static_cast<int64_t>(blockIdx.x) * 2 + s) * p.chunk + c0 + c] = total;
    }
}

// grid: (tiles, chunk / classes); block: 32 pixel groups x classes / 4.
template <class Epilogue>
__global__ void __launch_bounds__(kMaxStencilThreads) stencil_kernel(const StencilParams p) {
    GPU_DYN_SHARED(float, tile);
    const int columns = kTileX + 2 * p.radius, rows = kTileY + 2 * p.radius, side = 2 * p.radius + 1;
    float* weights = tile + columns * rows * p.classes;
    const int tiles_x = static_cast<int>(ceil_div(p.width, kTileX));
    const int x0 = static_cast<int>(blockIdx.x) % tiles_x * kTileX,
              y0 = static_cast<int>(blockIdx.x) / tiles_x * kTileY;
    const int c0 = static_cast<int>(blockIdx.y) * p.classes, class_groups = p.classes / kLane;
    const int class_group = static_cast<int>(threadIdx.x) % class_groups;
    const int pixel_group = static_cast<int>(threadIdx.x) / class_groups;
    const int row = pixel_group / (kTileX / kRun), column = pixel_group % (kTileX / kRun) * kRun;

    load_tile(p, x0, y0, c0, tile);
    float4 sum[kRun];
#pragma unroll
    for (int i = 0; i < kRun; ++i) sum[i] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    for (int dy = -p.radius; dy <= p.radius; ++dy) {
        __syncthreads();  // the tile is complete; the weights of the row before have been read
        compute_weights(p, x0, y0, dy, weights);
        __syncthreads();
        const float* source = tile + ((row + p.radius + dy) * columns + column) * p.classes + class_group * kLane;
        add_taps(source, weights + row * kTileX + column, side, p.classes, sum);
    }

    constexpr int kSums = Epilogue::kSums > 0 ? Epilogue::kSums : 1;
    float dots[kSums][kLane] = {};
#pragma unroll
    for (int i = 0; i < kRun; ++i) {
        const int x = x0 + column + i, y = y0 + row;
        if (x >= p.width || y >= p.height) continue;
        const int64_t pixel = static_cast<int64_t>(y) * p.width + x;
        const float* centre =
            tile + ((row + p.radius) * columns + column + i + p.radius) * p.classes + class_group * kLane;
        const float v[kLane] = {centre[0], centre[1], centre[2], centre[3]};
        const float s[kLane] = {sum[i].x, sum[i].y, sum[i].z, sum[i].w};
        Epilogue::run(p, pixel, pixel * p.chunk + c0 + class_group * kLane, v, s, dots);
    }
    if (Epilogue::kSums > 0) write_partials(p, c0, pixel_group, class_group, dots, weights);
}

}  // namespace
}  // namespace ovs
