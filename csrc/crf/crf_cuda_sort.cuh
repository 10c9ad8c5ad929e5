// Prefix sums and stable sorts of 32-bit integers on a GPU, for building lattices: same bits in every run.
//
// A sum takes three launches: sums of tiles, their own prefix sum in one block, and the prefix sums inside the tiles. A
// sort takes one round per 8 bits: digits counted per tile, a prefix sum over (digit, tile), and a scatter in which a
// warp ranks 32 items at a time, so that equal digits keep their order.
#pragma once
#include <algorithm>
#include <cstdint>

#include "common/device.cuh"
#include "common/index.h"
#include "common/reduce.cuh"
#include "common/workspace.h"

namespace ovs {
namespace {

constexpr int kScanThreads = 256;
constexpr int kScanItems = 8;  // of a thread
constexpr int64_t kScanTile = kScanThreads * kScanItems;
constexpr int kTotalsThreads = 1024;  // of the one block that sums over tiles

constexpr int kDigitBits = 8;
constexpr int kDigits = 1 << kDigitBits;
constexpr int kSortThreads = kDigits;  // a thread for each digit
constexpr int kSortWarps = kSortThreads / kWarpSize;
constexpr int kSortRounds = 8;  // items of a thread
constexpr int64_t kSortTile = kSortThreads * kSortRounds;

// Sum of the values of the threads before this one, and of all.
template <int kThreads>
__device__ __forceinline__ int32_t block_exclusive_sum(int32_t value, int32_t& total) {
    constexpr int kWarps = kThreads / kWarpSize;
    GPU_SHARED(int32_t, warp_totals, [kWarps]);
    const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
    int32_t inclusive = value;
#pragma unroll
    for (int offset = 1; offset < kWarpSize; offset *= 2) {
        const int32_t before = __shfl_up_sync(kFullMask, inclusive, offset);
        if (lane >= offset) inclusive += before;
    }
    __syncthreads();  // an earlier call may still be reading `warp_totals`
    if (lane == kWarpSize - 1) warp_totals[warp] = inclusive;
    __syncthreads();
    int32_t base = 0;
    total = 0;
    for (int w = 0; w < kWarps; ++w) {
        if (w == warp) base = total;
        total += warp_totals[w];
    }
    return base + inclusive - value;
}

// blockIdx: a tile.
__global__ void tile_sums_kernel(const int32_t* values, int64_t size, int32_t* sums) {
    const int64_t begin = blockIdx.x * kScanTile + threadIdx.x * kScanItems;
    int32_t sum = 0;
#pragma unroll
    for (int k = 0; k < kScanItems; ++k) sum += begin + k < size ? values[begin + k] : 0;
    sum = block_sum<kScanThreads>(sum);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

// One block. `total` may be null.
__global__ void totals_kernel(int32_t* sums, int64_t size, int32_t* total) {
    int32_t carry = 0;
    for (int64_t begin = 0; begin < size; begin += kTotalsThreads) {
        const int64_t at = begin + threadIdx.x;
        int32_t added = 0;
        const int32_t before = block_exclusive_sum<kTotalsThreads>(at < size ? sums[at] : 0, added);
        if (at < size) sums[at] = carry + before;
        carry += added;
    }
    if (total != nullptr && threadIdx.x == 0) *total = carry;
}

__global__ void tile_scan_kernel(int32_t* values, int64_t size, const int32_t* sums) {
    const int64_t begin = blockIdx.x * kScanTile + threadIdx.x * kScanItems;
    int32_t items[kScanItems], sum = 0;
#pragma unroll
    for (int k = 0; k < kScanItems; ++k) sum += items[k] = begin + k < size ? values[begin + k] : 0;
    int32_t total = 0;
    int32_t before = sums[blockIdx.x] + block_exclusive_sum<kScanThreads>(sum, total);
#pragma unroll
    for (int k = 0; k < kScanItems; ++k) {
        if (begin + k < size) values[begin + k] = before;
        before += items[k];
    }
}

inline int64_t scan_tiles(int64_t size) { return ceil_div(size, kScanTile); }

// values[k] <- values[0] + .. + values[k - 1], in place; `sums`: scan_tiles(size) of scratch memory. size >= 1.
inline void exclusive_scan(int32_t* values, int64_t size, int32_t* sums, int32_t* total, cudaStream_t stream) {
    const dim3 tiles(static_cast<unsigned>(scan_tiles(size)));
    launch(tile_sums_kernel, tiles, dim3(kScanThreads), 0, stream, static_cast<const int32_t*>(values), size, sums);
    OVS_CHECK_LAUNCH("permutohedral_lattice: tile sums");
    launch(totals_kernel, dim3(1), dim3(kTotalsThreads), 0, stream, sums, scan_tiles(size), total);
    OVS_CHECK_LAUNCH("permutohedral_lattice: totals");
    launch(tile_scan_kernel, tiles, dim3(kScanThreads), 0, stream, values, size, static_cast<const int32_t*>(sums));
    OVS_CHECK_LAUNCH("permutohedral_lattice: tile scan");
}

__device__ __forceinline__ int digit_of(uint32_t key, int shift) {
    return static_cast<int>((key >> shift) & (kDigits - 1));
}

// counts: [digits, tiles]. blockIdx: a tile.
__global__ void digits_kernel(const uint32_t* keys, int64_t size, int shift, int32_t* counts) {
    GPU_SHARED(int32_t, found, [kDigits]);
    found[threadIdx.x] = 0;
    __syncthreads();
    for (int round = 0; round < kSortRounds; ++round) {
        const int64_t at = blockIdx.x * kSortTile + round * kSortThreads + threadIdx.x;
        if (at < size) atomicAdd(&found[digit_of(keys[at], shift)], 1);
    }
    __syncthreads();
    counts[threadIdx.x * static_cast<int64_t>(gridDim.x) + blockIdx.x] = found[threadIdx.x];
}

// offsets: [digits, tiles], where the items of each go; `values` null: they are the places of the keys.
__global__ void scatter_kernel(const uint32_t* keys, const int32_t* values, int64_t size, int shift,
                               const int32_t* offsets, uint32_t* keys_out, int32_t* values_out) {
    GPU_SHARED(int32_t, next, [kSortWarps][kDigits]);
    const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
    for (int w = 0; w < kSortWarps; ++w) next[w][threadIdx.x] = 0;
    __syncthreads();
    const int64_t begin = blockIdx.x * kSortTile + warp * int64_t{kWarpSize * kSortRounds} + lane;
    uint32_t mine[kSortRounds];
    int32_t ranks[kSortRounds];  // among the same digits of this warp's items
#pragma unroll
    for (int round = 0; round < kSortRounds; ++round) {
        const int64_t at = begin + round * kWarpSize;
        const bool inside = at < size;
        mine[round] = inside ? keys[at] : 0;
        const int digit = inside ? digit_of(mine[round], shift) : kDigits;
        const unsigned same = __match_any_sync(kFullMask, digit);
        const int32_t before = inside ? next[warp][digit] : 0;
        ranks[round] = before + __popc(same & ((1u << lane) - 1u));
        __syncwarp();
        if (inside && (same >> lane) == 1u) next[warp][digit] = before + __popc(same);  // the last of its digit
        __syncwarp();
    }
    __syncthreads();
    int32_t place = offsets[threadIdx.x * static_cast<int64_t>(gridDim.x) + blockIdx.x];
    for (int w = 0; w < kSortWarps; ++w) {
        const int32_t count = next[w][threadIdx.x];
        next[w][threadIdx.x] = place;
        place += count;
    }
    __syncthreads();
#pragma unroll
    for (int round = 0; round < kSortRounds; ++round) {
        const int64_t at = begin + round * kWarpSize;
        if (at >= size) continue;
        const int32_t to = next[warp][digit_of(mine[round], shift)] + ranks[round];
        keys_out[to] = mine[round];
        values_out[to] = values != nullptr ? values[at] : static_cast<int32_t>(at);
    }
}

struct SortBuffers {
    uint32_t* keys[2];
    int32_t* values;   // the other array of values is the result
    int32_t* offsets;  // [digits, tiles]
    int32_t* sums;

    SortBuffers(int64_t size, Workspace& ws) {
        for (uint32_t*& k : keys) k = ws.take<uint32_t>("sort keys", size);
        values = ws.take<int32_t>("sort values", size);
        const int64_t counts = kDigits * ceil_div(size, kSortTile);
        offsets = ws.take<int32_t>("sort offsets", counts);
        sums = ws.take<int32_t>("sort sums", scan_tiles(counts));
    }
};

// Sorts the places 0 .. size - 1 by the lowest `bits` of `keys`, equal ones in order, into `places`; returns the keys
// in that order, in memory of `b`.
inline const uint32_t* stable_sort(const uint32_t* keys, int64_t size, int bits, const SortBuffers& b, int32_t* places,
                                   cudaStream_t stream) {
    const int rounds = std::max(1, static_cast<int>(ceil_div(bits, kDigitBits)));
    const int64_t tiles = ceil_div(size, kSortTile);
    const dim3 grid(static_cast<unsigned>(tiles)), block(kSortThreads);
    const int32_t* values = nullptr;
    for (int round = 0; round < rounds; ++round) {
        const int shift = round * kDigitBits;
        launch(digits_kernel, grid, block, 0, stream, keys, size, shift, b.offsets);
        OVS_CHECK_LAUNCH("permutohedral_lattice: digits");
        exclusive_scan(b.offsets, kDigits * tiles, b.sums, nullptr, stream);
        const bool last = (rounds - 1 - round) % 2 == 0;
        uint32_t* const keys_out = b.keys[last ? 0 : 1];
        int32_t* const values_out = last ? places : b.values;
        launch(scatter_kernel, grid, block, 0, stream, keys, values, size, shift,
               static_cast<const int32_t*>(b.offsets), keys_out, values_out);
        OVS_CHECK_LAUNCH("permutohedral_lattice: scatter");
        keys = keys_out;
        values = values_out;
    }
    return keys;
}

}  // namespace
}  // namespace ovs
