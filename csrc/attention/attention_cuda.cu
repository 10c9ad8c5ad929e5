// attention_mean on a GPU: two launches on the caller's stream, a third for the info. Nothing comes back to the host.
//
//   statistics  per head and query: the largest logit, the head's weight over the sum of the exponentials, and what of
//               it goes to the columns
//   average     a tile of the result: the products of every head again, their exponentials added up in registers,
//               divided by the row's sum, and written once
//   finish      column sums and the maximum, from those of the tiles, in a fixed order
//
// The products are computed twice, with the same roundings, rather than kept: all maps of Stable Diffusion's 10 heads
// would be 671 MB. Products run in the dtype of the computation, without tensor cores.
#include <algorithm>

#include "attention/attention.h"
#include "attention/attention_math.h"
#include "common/device.cuh"
#include "common/half.h"
#include "common/launch.cuh"
#include "common/reduce.cuh"
#include "common/workspace.h"

namespace ovs {
namespace {

constexpr int kThreads = 256;
constexpr int kSide = 16;     // threads along each side of a tile
constexpr int kFour = 4;      // neighbouring numbers that a thread reads at once
constexpr int kRowsEach = 4;  // queries of a thread, neighbours
constexpr int kGroups = 2;    // groups of four neighbouring keys of a thread
constexpr int kTileRows = kSide * kRowsEach, kTileColumns = kSide * kFour * kGroups;
constexpr int kChunk = 16;  // features in shared memory
constexpr int kWarps = kThreads / kWarpSize;
static_assert(kSide * kSide == kThreads, "a thread has one place in the tile");

// Blocks that a multiprocessor is to hold at once: with two the compiler keeps a thread to 128 registers.
template <class T>
constexpr int kBlocksPerProcessor = sizeof(T) == 4 ? 2 : 1;

template <class T>
struct alignas(4 * sizeof(T)) Four {
    T v[kFour];
};

// One row of padding in every four keeps the stores into shared memory apart.
template <class T>
struct TileMemory {
    Four<T> queries[kChunk][kTileRows / kFour + 1];
    Four<T> keys[kChunk][kTileColumns / kFour + 1];
};

template <class T>
struct DeviceParams {
    AttentionParams p;
    T* largest;      // [heads, Nq] logit to base 2
    T* factors;      // [heads, Nq]
    T* shares;       // [heads, Nq]
    T* tile_sums;    // [row tiles, columns], or null
    T* tile_maxima;  // [row tiles, column tiles], or null
    int64_t columns, row_tiles, column_tiles;
};
static_assert(sizeof(DeviceParams<float>) <= 4096, "the parameters of a kernel have to fit into 4 KB");

__device__ __forceinline__ float power_of_2(float x) { return exp2f(x); }
__device__ __forceinline__ double power_of_2(double x) { return exp2(x); }

// value where it is larger or NaN
template <class T>
__device__ __forceinline__ T larger_or_nan(T value, T most) {
    return value > most || value != value ? value : most;
}

// The features [first, first + kChunk) of some tokens, zero beyond the last token and feature: [feature][token].
template <int kTokens, int kPitch, class T>
__device__ __forceinline__ void load_chunk(const T* tokens, int64_t stride, int64_t count, int64_t first,
                                           int64_t features, T factor, Four<T> (&to)[kChunk][kPitch]) {
    T* const out = to[0][0].v;
    for (int i = static_cast<int>(threadIdx.x); i < kTokens * kChunk; i += kThreads) {
        const int f = i % kChunk, token = i / kChunk;
        const bool inside = token < count && first + f < features;
        out[f * kPitch * kFour + token] = inside ? tokens[token * stride + first + f] * factor : T(0);
    }
}

// Logits to base 2 of the thread's queries and keys in a tile. All threads of the block take part.
template <class T>
__device__ __forceinline__ void tile_logits(const AttentionBlock& b, int64_t head, int64_t row, int64_t rows,
                                            int64_t key, int64_t keys, TileMemory<T>& memory,
                                            T (&logits)[kRowsEach][kGroups * kFour]) {
    const int x = static_cast<int>(threadIdx.x) % kSide, y = static_cast<int>(threadIdx.x) / kSide;
    const T* const from_queries = static_cast<const T*>(b.queries) + head * b.query_head_stride + row * b.query_stride;
    const T* const from_keys = static_cast<const T*>(b.keys) + head * b.key_head_stride + key * b.key_stride;
    const T factor = static_cast<T>(b.scale * kLog2E);
#pragma unroll
    for (int r = 0; r < kRowsEach; ++r) {
#pragma unroll
        for (int c = 0; c < kGroups * kFour; ++c) logits[r][c] = T(0);
    }
    for (int64_t first = 0; first < b.features; first += kChunk) {
        __syncthreads();  // the chunk before may still be read
        load_chunk<kTileRows>(from_queries, b.query_stride, rows, first, b.features, factor, memory.queries);
        load_chunk<kTileColumns>(from_keys, b.key_stride, keys, first, b.features, T(1), memory.keys);
        __syncthreads();
#pragma unroll
        for (int f = 0; f < kChunk; ++f) {
            const Four<T> q = memory.queries[f][y];
#pragma unroll
            for (int g = 0; g < kGroups; ++g) {
                const Four<T> k = memory.keys[f][g * kSide + x];
#pragma unroll
                for (int r = 0; r < kRowsEach; ++r) {
#pragma unroll
                    for (int c = 0; c < kFour; ++c) logits[r][g * kFour + c] += q.v[r] * k.v[c];
                }
            }
        }
    }
}

// The thread's columns in a tile: number c of them.
__device__ __forceinline__ int column_of(int c) {
    const int x = static_cast<int>(threadIdx.x) % kSide;
    return (c / kFour * kSide + x) * kFour + c % kFour;
}

// Sums of exponentials relative to the largest logit so far.
template <class T>
struct RunningSum {
    T largest, sum, kept;

    // Both sums as they are relative to another largest. -Inf has not seen a number; NaN then is in the sum.
    __device__ __forceinline__ void raise_to(T most) {
        const T factor = largest == -static_cast<T>(HUGE_VAL) ? T(1) : power_of_2(largest - most);
        largest = most;
        sum *= factor;
        kept *= factor;
    }
    __device__ __forceinline__ void add(T logit, bool is_kept) {
        // -Inf beside nothing but -Inf: the difference would be NaN.
        const bool nothing = largest == -static_cast<T>(HUGE_VAL) && logit == logit;
        const T e = nothing ? T(0) : power_of_2(logit - largest);
        sum += e;
        if (is_kept) kept += e;
    }
};

// blockIdx: x row tile, y head.
template <class T>
__global__ void __launch_bounds__(kThreads) statistics_kernel(const DeviceParams<T> d) {
    GPU_SHARED(TileMemory<T>, memory, [1]);
    const AttentionParams& p = d.p;
    const int64_t row = static_cast<int64_t>(blockIdx.x) * kTileRows, number = blockIdx.y;
    const int64_t rows = p.num_queries - row;
    int64_t block = 0, head = number;
    while (head >= p.blocks[block].heads) head -= p.blocks[block++].heads;

    RunningSum<T> sums[kRowsEach];
#pragma unroll
    for (int r = 0; r < kRowsEach; ++r) sums[r] = {-static_cast<T>(HUGE_VAL), T(0), T(0)};
    for (int64_t key = 0; key < p.num_keys; key += kTileColumns) {
        T logits[kRowsEach][kGroups * kFour];
        tile_logits(p.blocks[block], head, row, rows, key, p.num_keys - key, memory[0], logits);
#pragma unroll
        for (int r = 0; r < kRowsEach; ++r) {
            T most = sums[r].largest;
#pragma unroll
            for (int c = 0; c < kGroups * kFour; ++c) {
                if (key + column_of(c) < p.num_keys && logits[r][c] > most) most = logits[r][c];
            }
            sums[r].raise_to(most);
#pragma unroll
            for (int c = 0; c < kGroups * kFour; ++c) {
                const int64_t j = key + column_of(c);
                if (j < p.num_keys) sums[r].add(logits[r][c], j >= p.first_key);
            }
        }
    }
#pragma unroll
    for (int r = 0; r < kRowsEach; ++r) {
        RunningSum<T>& s = sums[r];
#pragma unroll
        for (int offset = kSide / 2; offset > 0; offset /= 2) {  // the threads of a row are half a warp
            RunningSum<T> other = {__shfl_xor_sync(kFullMask, s.largest, offset),
                                   __shfl_xor_sync(kFullMask, s.sum, offset),
                                   __shfl_xor_sync(kFullMask, s.kept, offset)};
            const T most = other.largest > s.largest ? other.largest : s.largest;
            s.raise_to(most);
            other.raise_to(most);
            s.sum += other.sum;
            s.kept += other.kept;
        }
        const int64_t i = row + static_cast<int>(threadIdx.x) / kSide * kRowsEach + r;
        if (threadIdx.x % kSide != 0 || i >= p.num_queries) continue;
        const T factor = static_cast<T>(p.blocks[block].weight) / s.sum;
        d.largest[number * p.num_queries + i] = s.largest;
        d.factors[number * p.num_queries + i] = factor;
        d.shares[number * p.num_queries + i] = factor * s.kept;
    }
}

template <class T>
__device__ __forceinline__ void write_entry(const DeviceParams<T>& d, int64_t at, T value) {
    if (d.p.mean_dtype == DType::kFloat16) {
        static_cast<uint16_t*>(d.p.mean)[at] = float16_bits(static_cast<float>(value));
    } else if (d.p.mean_dtype == DType::kBFloat16) {
        static_cast<uint16_t*>(d.p.mean)[at] = bfloat16_bits(static_cast<float>(value));
    } else {
        static_cast<T*>(d.p.mean)[at] = value;
    }
}

// Column sums and the maximum of a tile; `means` are zero outside of the matrix.
template <class T>
__device__ __forceinline__ void write_info(const DeviceParams<T>& d, int64_t row_tile, int64_t column_tile,
                                           const T (&means)[kRowsEach][kGroups * kFour], TileMemory<T>& memory) {
    GPU_SHARED(T, maxima, [kWarps]);
    T(*const sums)[kTileColumns] = reinterpret_cast<T(*)[kTileColumns]>(&memory.keys);  // [kSide][kTileColumns]
    static_assert(sizeof(memory.keys) >= sizeof(T) * kSide * kTileColumns, "reused for sums");
    const int thread = static_cast<int>(threadIdx.x);
    T most = 0;
    __syncthreads();  // the last chunk of keys may still be read
#pragma unroll
    for (int c = 0; c < kGroups * kFour; ++c) {
        T sum = 0;
#pragma unroll
        for (int r = 0; r < kRowsEach; ++r) {
            sum += means[r][c];
            most = larger_or_nan(means[r][c], most);
        }
        sums[thread / kSide][column_of(c)] = sum;
    }
#pragma unroll
    for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
        most = larger_or_nan(__shfl_xor_sync(kFullMask, most, offset), most);
    }
    if (thread % kWarpSize == 0) maxima[thread / kWarpSize] = most;
    __syncthreads();
    const int64_t column = column_tile * kTileColumns + thread;
    if (thread < kTileColumns && column < d.columns) {
        T sum = 0;
        for (int y = 0; y < kSide; ++y) sum += sums[y][thread];
        d.tile_sums[row_tile * d.columns + column] = sum;
    }
    if (thread == 0) {
        for (int warp = 1; warp < kWarps; ++warp) most = larger_or_nan(maxima[warp], most);
        d.tile_maxima[row_tile * d.column_tiles + column_tile] = most;
    }
    // What follows begins with a barrier before it writes to `memory`.
}

// 1 / what the heads give to the columns, NaN where that is nothing.
template <class T>
__device__ __forceinline__ T inverse_row_sum(const DeviceParams<T>& d, int64_t heads, int64_t i) {
    constexpr double kSmallest = sizeof(T) == 8 ? 2.2250738585072014e-308 : 1.1754943508222875e-38;
    double total = 0;
    for (int64_t h = 0; h < heads; ++h) total += static_cast<double>(d.shares[h * d.p.num_queries + i]);
    return total >= kSmallest ? static_cast<T>(1.0 / total) : static_cast<T>(NAN);
}

// blockIdx: x column tile, y row tile.
template <class T>
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor<T>) average_kernel(const DeviceParams<T> d) {
    GPU_SHARED(TileMemory<T>, memory, [1]);
    const AttentionParams& p = d.p;
    const int64_t column = static_cast<int64_t>(blockIdx.x) * kTileColumns, key = p.first_key + column;
    for (int64_t tile = blockIdx.y; tile < d.row_tiles; tile += gridDim.y) {
        const int64_t row = tile * kTileRows, mine = row + static_cast<int>(threadIdx.x) / kSide * kRowsEach;
        T means[kRowsEach][kGroups * kFour] = {};
        int64_t number = 0;
        for (int64_t block = 0; block < p.num_blocks; ++block) {
            for (int64_t head = 0; head < p.blocks[block].heads; ++head, ++number) {
                T logits[kRowsEach][kGroups * kFour];
                tile_logits(p.blocks[block], head, row, p.num_queries - row, key, p.num_keys - key, memory[0], logits);
#pragma unroll
                for (int r = 0; r < kRowsEach; ++r) {
                    if (mine + r >= p.num_queries) continue;
                    const T largest = d.largest[number * p.num_queries + mine + r];
                    const T factor = d.factors[number * p.num_queries + mine + r];
#pragma unroll
                    for (int c = 0; c < kGroups * kFour; ++c) {
                        means[r][c] += power_of_2(logits[r][c] - largest) * factor;
                    }
                }
            }
        }
#pragma unroll
        for (int r = 0; r < kRowsEach; ++r) {
            const bool is_row = mine + r < p.num_queries;
            const T inverse = is_row ? inverse_row_sum(d, number, mine + r) : T(0);
#pragma unroll
            for (int c = 0; c < kGroups * kFour; ++c) {
                const int64_t j = column + column_of(c);
                means[r][c] = is_row && j < d.columns ? means[r][c] * inverse : T(0);
                if (is_row && j < d.columns) write_entry(d, (mine + r) * d.columns + j, means[r][c]);
            }
        }
        if (d.tile_sums != nullptr) write_info(d, tile, static_cast<int64_t>(blockIdx.x), means, memory[0]);
    }
}

// blockIdx.x: 256 columns; the last block finds the maximum.
template <class T>
__global__ void __launch_bounds__(kThreads) finish_kernel(const DeviceParams<T> d) {
    GPU_SHARED(T, maxima, [kThreads]);
    const int thread = static_cast<int>(threadIdx.x);
    if (blockIdx.x + 1 < gridDim.x) {
        const int64_t column = static_cast<int64_t>(blockIdx.x) * kThreads + thread;
        if (column >= d.columns) return;
        double sum = 0.0;
        for (int64_t tile = 0; tile < d.row_tiles; ++tile) {
            sum += static_cast<double>(d.tile_sums[tile * d.columns + column]);
        }
        static_cast<T*>(d.p.column_sums)[column] = static_cast<T>(sum);
        return;
    }
    T most = 0;
    for (int64_t i = thread; i < d.row_tiles * d.column_tiles; i += kThreads) {
        most = larger_or_nan(d.tile_maxima[i], most);
    }
    maxima[thread] = most;
    __syncthreads();
    if (thread != 0) return;
    for (int i = 1; i < kThreads; ++i) most = larger_or_nan(maxima[i], most);
    *static_cast<T*>(d.p.maximum) = most;
}

template <class T>
DeviceParams<T> carve(const AttentionParams& p, Workspace& workspace) {
    DeviceParams<T> d = {};
    d.p = p;
    d.columns = p.num_keys - p.first_key;
    d.row_tiles = ceil_div(p.num_queries, kTileRows);
    d.column_tiles = ceil_div(d.columns, kTileColumns);
    d.largest = workspace.take<T>("largest", num_heads(p) * p.num_queries);
    d.factors = workspace.take<T>("factors", num_heads(p) * p.num_queries);
    d.shares = workspace.take<T>("shares", num_heads(p) * p.num_queries);
    if (p.column_sums != nullptr) {
        d.tile_sums = workspace.take<T>("tile_sums", d.row_tiles * d.columns);
        d.tile_maxima = workspace.take<T>("tile_maxima", d.row_tiles * d.column_tiles);
    }
    return d;
}

template <class T>
void run(const AttentionParams& p, Workspace& workspace, cudaStream_t stream) {
    const DeviceParams<T> d = carve<T>(p, workspace);
    const dim3 block(kThreads);
    if (d.row_tiles > 0) {
        launch(statistics_kernel<T>, dim3(static_cast<unsigned>(d.row_tiles), static_cast<unsigned>(num_heads(p))),
               block, 0, stream, d);
        OVS_CHECK_LAUNCH("attention_mean: statistics");
        launch(average_kernel<T>,
               dim3(static_cast<unsigned>(d.column_tiles),
                    static_cast<unsigned>(std::min<int64_t>(d.row_tiles, kMaxGridYZ))),
               block, 0, stream, d);
        OVS_CHECK_LAUNCH("attention_mean: average");
    }
    if (p.column_sums == nullptr) return;
    launch(finish_kernel<T>, dim3(static_cast<unsigned>(ceil_div(d.columns, kThreads) + 1)), block, 0, stream, d);
    OVS_CHECK_LAUNCH("attention_mean: finish");
}

void check_cuda_params(const AttentionParams& p, DType dtype) {
    check_params(p, dtype);
    OVS_REQUIRE(num_heads(p) <= kMaxGridYZ, "attention_mean: too many heads");
}

}  // namespace

std::size_t attention_mean_cuda_workspace_bytes(const AttentionParams& p, DType dtype) {
    check_cuda_params(p, dtype);
    Workspace counter(nullptr, 0);
    if (dtype == DType::kFloat64) {
        carve<double>(p, counter);
    } else {
        carve<float>(p, counter);
    }
    return counter.used();
}

void attention_mean_cuda(const AttentionParams& p, DType dtype, void* workspace, std::size_t workspace_bytes,
                         int device, void* stream) {
    check_cuda_params(p, dtype);
    const DeviceGuard guard(device);
    Workspace pieces(workspace, workspace_bytes);
    if (dtype == DType::kFloat64) {
        run<double>(p, pieces, as_stream(stream));
    } else {
        run<float>(p, pieces, as_stream(stream));
    }
}

}  // namespace ovs
