// fuse_experts on a GPU, one window.
//
//   taps      where each row and column of pixels lies between patches
//   softmax   a warp per patch and expert: probabilities in place, the own one, the most likely class
//   mean      mean over the experts (kAverage)
//   cells     a block per cell: each expert is rejected, accepted or open
//   votes     a thread per pixel: walks the accepted and open experts; writes the winner, or who votes
//   write     a thread per pixel and some classes; or labels, a thread per pixel
#include "common/device.cuh"
#include "common/launch.cuh"
#include "common/reduce.cuh"
#include "common/workspace.h"
#include "templates/templates.h"
#include "templates/templates_math.h"

namespace ovs {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;
constexpr int kTileWidth = 32, kTileHeight = kThreads / kTileWidth;  // pixels of a block
constexpr int kClassesPerThread = 16;
constexpr int kWordBits = 32;

enum : uint8_t { kRejected = 0, kAccepted = 1, kOpen = 2 };

struct FuseView {
    float* shares;           // [patches, K + 1, K]
    const uint8_t* unknown;  // [patches]
    float* own;              // [patches, K]
    int16_t* best;           // [patches, K]
    float* mean;             // [patches, K]
    uint8_t* status;         // [patches, K], a cell being named after its top left patch
    Tap<float>* rows;        // [height]
    Tap<float>* columns;     // [width]
    int32_t* winners;        // [height, width]
    uint32_t* voters;        // [words, height, width] bits of the experts that vote; kAverageConflicting only
    float* out;
    const float* weights;
    void* labels;
    int64_t class_stride, row_stride;
    int64_t grid_height, grid_width, height, width, num_classes, words;
    float scale;
    FuseStrategy strategy;
};

struct Pixel {
    int64_t x, y;
    int64_t patch[4];  // top left, top right, bottom left, bottom right
    float down, right;
    bool unknown;
};

__device__ __forceinline__ bool find_pixel(const FuseView& v, Pixel& p) {
    p.x = static_cast<int64_t>(blockIdx.x) * kTileWidth + threadIdx.x % kTileWidth;
    p.y = static_cast<int64_t>(blockIdx.y) * kTileHeight + threadIdx.x / kTileWidth;
    if (p.x >= v.width || p.y >= v.height) return false;
    const Tap<float> row = v.rows[p.y], column = v.columns[p.x];
    p.patch[0] = row.low * v.grid_width + column.low;
    p.patch[1] = row.low * v.grid_width + column.high;
    p.patch[2] = row.high * v.grid_width + column.low;
    p.patch[3] = row.high * v.grid_width + column.high;
    p.down = row.weight;
    p.right = column.weight;
    p.unknown = false;
    for (const int64_t patch : p.patch) p.unknown = p.unknown || v.unknown[patch] != 0;
    return true;
}

// A number of the four patches at a pixel; `stride` numbers per patch.
__device__ __forceinline__ float between(const Pixel& p, const float* numbers, int64_t stride) {
    const float a = numbers[p.patch[0] * stride], b = numbers[p.patch[1] * stride];
    const float c = numbers[p.patch[2] * stride], d = numbers[p.patch[3] * stride];
    const float left = a + p.down * (c - a), end = b + p.down * (d - b);
    return left + p.right * (end - left);
}
__device__ __forceinline__ float share_at(const FuseView& v, const Pixel& p, int64_t e, int64_t j) {
    return between(p, v.shares + e * v.num_classes + j, (v.num_classes + 1) * v.num_classes);
}

__global__ void taps_kernel(const FuseView v) {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
    if (i < v.height) v.rows[i] = tap_of<float>(i, v.grid_height, v.height);
    if (i < v.width) v.columns[i] = tap_of<float>(i, v.grid_width, v.width);
}

__global__ void softmax_kernel(const FuseView v) {
    const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
    const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarpSize;
    const int64_t experts = v.num_classes + 1, patch = row / experts, e = row % experts;
    if (patch >= v.grid_height * v.grid_width) return;
    float* const shares = v.shares + row * v.num_classes;
    const bool unknown = v.unknown[patch] != 0;
    float top = -HUGE_VALF;
    int best = kLargestClassCount;
    for (int64_t j = lane; j < v.num_classes; j += kWarpSize) {
        const float product = unknown ? 0.0f : shares[j];
        if (product > top) {
            top = product;
            best = static_cast<int>(j);
        }
    }
    for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
        const float other = __shfl_xor_sync(kFullMask, top, offset);
        const int other_best = __shfl_xor_sync(kFullMask, best, offset);
        if (other > top || (other == top && other_best < best)) {
            top = other;
            best = other_best;
        }
    }
    float sum = 0.0f;
    for (int64_t j = lane; j < v.num_classes; j += kWarpSize) {
        const float e_j = unknown ? 1.0f : expf((shares[j] - top) * v.scale);
        shares[j] = e_j;
        sum += e_j;
    }
    const float inverse = 1.0f / warp_sum(sum);
    for (int64_t j = lane; j < v.num_classes; j += kWarpSize) {
        const float share = shares[j] * inverse;
        shares[j] = share;
        if (j == e) v.own[patch * v.num_classes + e] = share;
    }
    if (lane == 0 && e < v.num_classes) v.best[patch * v.num_classes + e] = static_cast<int16_t>(best);
}

__global__ void mean_kernel(const FuseView v) {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
    if (i >= v.grid_height * v.grid_width * v.num_classes) return;
    const int64_t patch = i / v.num_classes, j = i % v.num_classes;
    const float* const shares = v.shares + patch * (v.num_classes + 1) * v.num_classes + j;
    float sum = 0.0f;
    for (int64_t e = 0; e < v.num_classes; ++e) sum += shares[e * v.num_classes];
    v.mean[i] = sum / static_cast<float>(v.num_classes);
}

__global__ void cells_kernel(const FuseView v) {
    const int64_t cell = blockIdx.x, a = cell / v.grid_width, b = cell % v.grid_width;
    const int64_t low = a + 1 < v.grid_height ? a + 1 : a, right = b + 1 < v.grid_width ? b + 1 : b;
    const int64_t patches[4] = {cell, a * v.grid_width + right, low * v.grid_width + b, low * v.grid_width + right};
    for (int64_t e = threadIdx.x; e < v.num_classes; e += kThreads) {
        bool all = true, rejected = false;
        for (const int64_t patch : patches) {
            const int64_t j = v.best[patch * v.num_classes + e];
            all = all && j == e;
            if (j == e || rejected) continue;
            bool everywhere = true;
            for (const int64_t other : patches) {
                const float* const shares = v.shares + (other * (v.num_classes + 1) + e) * v.num_classes;
                everywhere = everywhere && beats(shares[j], j, shares[e], e);
            }
            rejected = everywhere;
        }
        v.status[cell * v.num_classes + e] = all ? kAccepted : rejected ? kRejected : kOpen;
    }
}

// Whether expert e votes at a pixel, where it gives its own class the probability `own`.
__device__ __forceinline__ bool asks_for_itself(const FuseView& v, const Pixel& p, int64_t e, float own) {
    for (int64_t j = 0; j < v.num_classes; ++j) {
        if (j != e && beats(share_at(v, p, e, j), j, own, e)) return false;
    }
    return true;
}

__global__ void votes_kernel(const FuseView v) {
    Pixel p;
    if (!find_pixel(v, p)) return;
    const int64_t at = p.y * v.width + p.x;
    const bool counted = v.strategy == FuseStrategy::kDefaultOnConflict;
    const bool listed = v.strategy == FuseStrategy::kAverageConflicting;
    int64_t winner = v.num_classes;
    int votes = 0;
    float best = -1.0f;
    uint32_t bits = 0;
    for (int64_t e = 0; e < v.num_classes; ++e) {
        const uint8_t status = v.status[p.patch[0] * v.num_classes + e];
        bool vote = false;
        float own = 0.0f;
        if (status != kRejected && !p.unknown) {
            own = between(p, v.own + e, v.num_classes);
            vote = own > best || counted || listed;
            if (vote && status == kOpen) vote = asks_for_itself(v, p, e, own);
        }
        if (vote) {
            ++votes;
            bits |= 1u << (e % kWordBits);
            if (own > best) {
                best = own;
                winner = e;
            }
        }
        if (listed && (e % kWordBits == kWordBits - 1 || e == v.num_classes - 1)) {
            v.voters[e / kWordBits * v.height * v.width + at] = bits;
            bits = 0;
        }
    }
    if (counted && votes != 1) winner = v.num_classes;
    v.winners[at] = static_cast<int32_t>(listed ? votes : winner);
}

// The fused probability of class j; `winner` is the number of votes where they are averaged.
__device__ __forceinline__ float fused_share(const FuseView& v, const Pixel& p, int32_t winner, int64_t j) {
    if (v.strategy == FuseStrategy::kAverage) {
        return p.unknown ? share_at(v, p, v.num_classes, j) : between(p, v.mean + j, v.num_classes);
    }
    if (v.strategy != FuseStrategy::kAverageConflicting) return share_at(v, p, winner, j);
    if (winner == 0) return share_at(v, p, v.num_classes, j);
    float sum = 0.0f;
    for (int64_t word = 0; word < v.words; ++word) {
        const uint32_t bits = v.voters[(word * v.height + p.y) * v.width + p.x];
        for (int bit = 0; bit < kWordBits; ++bit) {
            if ((bits >> bit) & 1u) sum += share_at(v, p, word * kWordBits + bit, j);
        }
    }
    return sum / static_cast<float>(winner);
}

__global__ void write_kernel(const FuseView v) {
    Pixel p;
    if (!find_pixel(v, p)) return;
    const int32_t winner = v.strategy == FuseStrategy::kAverage ? 0 : v.winners[p.y * v.width + p.x];
    const int64_t at = p.y * v.row_stride + p.x;
    const int64_t first = static_cast<int64_t>(blockIdx.z) * kClassesPerThread;
    for (int64_t j = first; j < v.num_classes && j < first + kClassesPerThread; ++j) {
        const float share = fused_share(v, p, winner, j);
        if (v.weights == nullptr) {
            v.out[j * v.class_stride + at] = share;
        } else {
            v.out[j * v.class_stride + at] += share * v.weights[at];
        }
    }
}

__global__ void labels_kernel(const FuseView v) {
    Pixel p;
    if (!find_pixel(v, p)) return;
    const int64_t at = p.y * v.width + p.x;
    const int32_t winner = v.strategy == FuseStrategy::kAverage ? 0 : v.winners[at];
    float top = -1.0f;
    int64_t best = 0;
    for (int64_t j = 0; j < v.num_classes; ++j) {
        const float share = fused_share(v, p, winner, j);
        if (share > top) {
            top = share;
            best = j;
        }
    }
    if (v.num_classes <= 255) {
        static_cast<uint8_t*>(v.labels)[at] = static_cast<uint8_t>(best);
    } else {
        static_cast<int32_t*>(v.labels)[at] = static_cast<int32_t>(best);
    }
}

FuseView view_of(const FuseExpertsParams& p, Workspace& ws) {
    const int64_t patches = p.grid_height * p.grid_width, pixels = p.height * p.width;
    FuseView v = {};
    v.shares = static_cast<float*>(p.products);
    v.unknown = p.unknown;
    v.own = ws.take<float>("own", patches * p.num_classes);
    v.best = ws.take<int16_t>("best", patches * p.num_classes);
    v.mean = ws.take<float>("mean", p.strategy == FuseStrategy::kAverage ? patches * p.num_classes : 0);
    v.status = ws.take<uint8_t>("status", patches * p.num_classes);
    v.rows = ws.take<Tap<float>>("rows", p.height);
    v.columns = ws.take<Tap<float>>("columns", p.width);
    v.words = ceil_div(p.num_classes, kWordBits);
    v.voters = ws.take<uint32_t>("voters", p.strategy == FuseStrategy::kAverageConflicting ? v.words * pixels : 0);
    int32_t* const winners = ws.take<int32_t>("winners", p.winners == nullptr ? pixels : 0);
    v.winners = p.winners == nullptr ? winners : p.winners;
    v.out = static_cast<float*>(p.out);
    v.weights = static_cast<const float*>(p.weights);
    v.labels = p.labels;
    v.class_stride = p.class_stride;
    v.row_stride = p.row_stride;
    v.grid_height = p.grid_height;
    v.grid_width = p.grid_width;
    v.height = p.height;
    v.width = p.width;
    v.num_classes = p.num_classes;
    v.scale = static_cast<float>(p.scale);
    v.strategy = p.strategy;
    return v;
}

dim3 blocks_of(int64_t items, int64_t per_block) { return dim3(static_cast<unsigned>(ceil_div(items, per_block))); }

}  // namespace

std::size_t fuse_experts_cuda_workspace_bytes(const FuseExpertsParams& p) {
    check_params(p);
    Workspace counter(nullptr, 0);
    view_of(p, counter);
    return counter.used();
}

void fuse_experts_cuda(const FuseExpertsParams& p, void* workspace, std::size_t workspace_bytes, int device,
                       void* stream) {
    check_params(p);
    if (p.height == 0 || p.width == 0) return;
    OVS_REQUIRE(p.unknown != nullptr, "fuse_experts: no mask");
    const DeviceGuard guard(device);
    Workspace ws(workspace, workspace_bytes);
    const FuseView v = view_of(p, ws);
    const cudaStream_t queue = as_stream(stream);
    const dim3 block(kThreads);
    const int64_t patches = p.grid_height * p.grid_width, classes = p.num_classes;
    launch(taps_kernel, blocks_of(p.height > p.width ? p.height : p.width, kThreads), block, 0, queue, v);
    OVS_CHECK_LAUNCH("fuse_experts: taps");
    launch(softmax_kernel, blocks_of(patches * (classes + 1), kWarps), block, 0, queue, v);
    OVS_CHECK_LAUNCH("fuse_experts: softmax");
    dim3 tiles = blocks_of(p.width, kTileWidth);
    OVS_REQUIRE(ceil_div(p.height, kTileHeight) <= kMaxGridYZ, "fuse_experts: too many rows");
    tiles.y = static_cast<unsigned>(ceil_div(p.height, kTileHeight));
    if (p.strategy == FuseStrategy::kAverage) {
        launch(mean_kernel, blocks_of(patches * classes, kThreads), block, 0, queue, v);
        OVS_CHECK_LAUNCH("fuse_experts: mean");
    } else {
        launch(cells_kernel, dim3(static_cast<unsigned>(patches)), block, 0, queue, v);
        OVS_CHECK_LAUNCH("fuse_experts: cells");
        launch(votes_kernel, tiles, block, 0, queue, v);
        OVS_CHECK_LAUNCH("fuse_experts: votes");
    }
    if (p.labels != nullptr) {
        launch(labels_kernel, tiles, block, 0, queue, v);
        OVS_CHECK_LAUNCH("fuse_experts: labels");
    }
    if (p.out != nullptr) {
        tiles.z = static_cast<unsigned>(ceil_div(classes, kClassesPerThread));
        launch(write_kernel, tiles, block, 0, queue, v);
        OVS_CHECK_LAUNCH("fuse_experts: write");
    }
}

}  // namespace ovs
