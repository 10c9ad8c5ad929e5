// template_entropy on a GPU: a thread per patch, or per pixel of the original image.
//
//   count_patches   largest logit, sums of the softmax, and the tally
//   softmax         logits of the patches to probabilities, in place (pixels only)
//   count_pixels    a pixel's probabilities from those of its patches, some classes at a time, and the tally
//
// A tally is kept per block in shared memory where it fits and added to the result with integer atomics, so the order
// of the additions does not matter.
#include "common/device.cuh"
#include "common/launch.cuh"
#include "common/reduce.cuh"
#include "common/workspace.h"
#include "templates/templates.h"
#include "templates/templates_math.h"

namespace ovs {
namespace {

constexpr int kThreads = 256;
constexpr int kRowsPerBlock = kThreads / kStrip;
constexpr int kClassesAtOnce = 8;
constexpr int kMostKinds = 6;                   // counts, and five sums
constexpr std::size_t kTallyBytes = 48 * 1024;  // of shared memory
constexpr float kSmallestShare = 1e-30f;        // as on the CPU

using Count = unsigned long long;

struct EntropyView {
    float* logits;
    const float* row_scale;
    const uint8_t* unknown;
    Count* counts;
    Count* sums;
    int64_t sum_stride, num_classes, num_patches, pitch;
    int64_t out_height, out_width, grid_height, grid_width, window_columns;
    const int32_t* window_order;
    const int32_t* row_first;
    const int32_t* row_source;
    const float* row_weight;
    const int32_t* strip_first;
    const int32_t* strip_source;
    const float* strip_weight;
    int kinds;          // counts, and the sums
    bool shared_tally;  // or straight to global memory
};

__device__ __forceinline__ void begin_tally(const EntropyView& v, Count* table) {
    if (!v.shared_tally) return;
    for (int64_t i = threadIdx.x; i < v.kinds * v.num_classes; i += kThreads) table[i] = 0;
    __syncthreads();
}
__device__ __forceinline__ Count* result_of(const EntropyView& v, int kind, int64_t m, int64_t k) {
    return (kind == 0 ? v.counts : v.sums + (kind - 1) * v.sum_stride) + m * v.num_classes + k;
}
__device__ __forceinline__ void add_terms(const EntropyView& v, Count* table, int64_t m, int64_t k,
                                          const float* terms) {
    for (int kind = 0; kind < v.kinds; ++kind) {
        const Count amount = kind == 0 ? 1 : static_cast<Count>(fixed_point(static_cast<double>(terms[kind - 1])));
        Count* const to = v.shared_tally ? table + kind * v.num_classes + k : result_of(v, kind, m, k);
        atomicAdd(to, amount);  // of integers
    }
}
__device__ __forceinline__ void end_tally(const EntropyView& v, const Count* table, int64_t m) {
    if (!v.shared_tally) return;
    __syncthreads();
    for (int64_t i = threadIdx.x; i < v.kinds * v.num_classes; i += kThreads) {
        if (table[i] == 0) continue;
        atomicAdd(result_of(v, static_cast<int>(i / v.num_classes), m, i % v.num_classes), table[i]);
    }
}

// The largest logit of a patch and its class.
__device__ __forceinline__ float find_top(const EntropyView& v, const float* at, const float* scale, int& best) {
    float top = at[0] * scale[0];
    best = 0;
    for (int64_t k = 1; k < v.num_classes; ++k) {
        const float logit = at[k * v.pitch] * scale[k];
        if (logit > top) {
            top = logit;
            best = static_cast<int>(k);
        }
    }
    return top;
}

template <bool kMano>
__global__ void count_patches_kernel(const EntropyView v) {
    GPU_DYN_SHARED(Count, table);
    begin_tally(v, table);
    const int64_t m = blockIdx.y, patch = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
    if (patch < v.num_patches && v.unknown[patch] == 0) {
        const float* const at = v.logits + m * v.num_classes * v.pitch + patch;
        const float* const scale = v.row_scale + m * v.num_classes;
        int best;
        const float top = find_top(v, at, scale, best);
        float sum = 0.0f, weighted = 0.0f, power = 0.0f, below_sum = 0.0f, taylor = 0.0f, taylor_power = 0.0f;
        for (int64_t k = 0; k < v.num_classes; ++k) {
            const float q = at[k * v.pitch] * scale[k], below = q - top, e = expf(below);
            sum += e;
            weighted += e * below;
            if constexpr (kMano) {
                const float t = 1.0f + q + 0.5f * q * q;
                power += e * e * e * e;
                below_sum += below;
                taylor += t;
                taylor_power += (t * t) * (t * t);
            }
        }
        const float log_sum = logf(sum);
        float terms[kMostKinds - 1] = {log_sum - weighted / sum, 1.0f / sum};
        if constexpr (kMano) {
            const float sum2 = sum * sum, taylor2 = taylor * taylor;
            terms[2] = power / (sum2 * sum2);
            terms[3] = taylor_power / (taylor2 * taylor2);
            terms[4] = log_sum - below_sum / static_cast<float>(v.num_classes);
        }
        if (terms[0] == terms[0]) add_terms(v, table, m, best, terms);
    }
    end_tally(v, table, m);
}

__global__ void softmax_kernel(const EntropyView v) {
    const int64_t m = blockIdx.y, patch = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
    if (patch >= v.num_patches) return;
    float* const at = v.logits + m * v.num_classes * v.pitch + patch;
    const float* const scale = v.row_scale + m * v.num_classes;
    int best;
    const float top = find_top(v, at, scale, best);
    float sum = 0.0f;
    for (int64_t k = 0; k < v.num_classes; ++k) {
        const float e = expf(at[k * v.pitch] * scale[k] - top);
        at[k * v.pitch] = e;
        sum += e;
    }
    for (int64_t k = 0; k < v.num_classes; ++k) {
        const float share = at[k * v.pitch] / sum;
        at[k * v.pitch] = share < kSmallestShare ? 0.0f : share;
    }
}

// The patch at a source row and a source column.
__device__ __forceinline__ int64_t patch_at(const EntropyView& v, int64_t row, int64_t column) {
    const int64_t window = v.window_order[row / v.grid_height * v.window_columns + column / v.grid_width];
    return (window * v.grid_height + row % v.grid_height) * v.grid_width + column % v.grid_width;
}

// One block: kRowsPerBlock rows of a strip.
__global__ void count_pixels_kernel(const EntropyView v) {
    GPU_DYN_SHARED(Count, table);
    begin_tally(v, table);
    const int lane = static_cast<int>(threadIdx.x) % kStrip;
    const int64_t m = blockIdx.z, x = static_cast<int64_t>(blockIdx.x) * kStrip + lane;
    const int64_t y = static_cast<int64_t>(blockIdx.y) * kRowsPerBlock + threadIdx.x / kStrip;
    if (x < v.out_width && y < v.out_height && v.unknown[y * v.out_width + x] == 0) {
        const float* const shares = v.logits + m * v.num_classes * v.pitch;
        const int32_t row_begin = v.row_first[y], row_end = v.row_first[y + 1];
        const int32_t begin = v.strip_first[blockIdx.x], end = v.strip_first[blockIdx.x + 1];
        float terms[2] = {0.0f, -1.0f};
        int64_t best = 0;
        for (int64_t k0 = 0; k0 < v.num_classes; k0 += kClassesAtOnce) {
            const int64_t left = v.num_classes - k0;
            const int classes = left < kClassesAtOnce ? static_cast<int>(left) : kClassesAtOnce;
            float share[kClassesAtOnce] = {};
            for (int32_t i = row_begin; i < row_end; ++i) {
                for (int32_t j = begin; j < end; ++j) {
                    const float weight = v.row_weight[i] * v.strip_weight[static_cast<int64_t>(j) * kStrip + lane];
                    const float* const at = shares + k0 * v.pitch + patch_at(v, v.row_source[i], v.strip_source[j]);
#pragma unroll
                    for (int c = 0; c < kClassesAtOnce; ++c) {
                        if (c < classes) share[c] += weight * at[c * v.pitch];
                    }
                }
            }
#pragma unroll
            for (int c = 0; c < kClassesAtOnce; ++c) {
                if (c >= classes) break;
                terms[0] -= share[c] == 0.0f ? 0.0f : share[c] * logf(share[c]);
                if (share[c] > terms[1]) {
                    terms[1] = share[c];
                    best = k0 + c;
                }
            }
        }
        if (terms[0] == terms[0]) add_terms(v, table, m, best, terms);
    }
    end_tally(v, table, m);
}

EntropyView view_of(const TemplateEntropyParams& p) {
    EntropyView v = {};
    v.logits = static_cast<float*>(p.logits);
    v.row_scale = static_cast<const float*>(p.row_scale);
    v.unknown = p.unknown;
    v.counts = reinterpret_cast<Count*>(p.counts);
    v.sums = reinterpret_cast<Count*>(p.sums);
    v.sum_stride = p.sum_stride;
    v.num_classes = p.num_classes;
    v.num_patches = p.num_patches;
    v.pitch = p.pitch;
    v.out_height = p.out_height;
    v.out_width = p.out_width;
    v.grid_height = p.grid_height;
    v.grid_width = p.grid_width;
    v.window_columns = p.window_columns;
    v.window_order = p.window_order;
    v.row_first = p.row_first;
    v.row_source = p.row_source;
    v.row_weight = static_cast<const float*>(p.row_weight);
    v.strip_first = p.strip_first;
    v.strip_source = p.strip_source;
    v.strip_weight = static_cast<const float*>(p.strip_weight);
    v.kinds = p.mano ? kMostKinds : 3;
    return v;
}

}  // namespace

std::size_t template_entropy_cuda_workspace_bytes(const TemplateEntropyParams& p) {
    check_params(p);
    return 0;
}

void template_entropy_cuda(const TemplateEntropyParams& p, void*, std::size_t, int device, void* stream) {
    check_params(p);
    if (p.num_templates == 0 || p.num_classes == 0 || p.num_patches == 0) return;
    OVS_REQUIRE(p.unknown != nullptr, "template_entropy: no mask");
    OVS_REQUIRE(p.num_templates <= kMaxGridYZ, "template_entropy: too many templates in a tile");
    const DeviceGuard guard(device);
    EntropyView v = view_of(p);
    std::size_t bytes = static_cast<std::size_t>(v.kinds * v.num_classes) * sizeof(Count);
    v.shared_tally = bytes <= kTallyBytes;
    if (!v.shared_tally) bytes = 0;
    const cudaStream_t queue = as_stream(stream);
    const dim3 block(kThreads);
    const dim3 patches(static_cast<unsigned>(ceil_div(p.num_patches, kThreads)),
                       static_cast<unsigned>(p.num_templates));
    if (p.out_height == 0) {
        launch(p.mano ? count_patches_kernel<true> : count_patches_kernel<false>, patches, block, bytes, queue, v);
        return OVS_CHECK_LAUNCH("template_entropy: count_patches");
    }
    launch(softmax_kernel, patches, block, 0, queue, v);
    OVS_CHECK_LAUNCH("template_entropy: softmax");
    const int64_t row_blocks = ceil_div(p.out_height, kRowsPerBlock);
    OVS_REQUIRE(row_blocks <= kMaxGridYZ, "template_entropy: too many rows");
    const dim3 pixels(static_cast<unsigned>(ceil_div(p.out_width, kStrip)), static_cast<unsigned>(row_blocks),
                      static_cast<unsigned>(p.num_templates));
    launch(count_pixels_kernel, pixels, block, bytes, queue, v);
    OVS_CHECK_LAUNCH("template_entropy: count_pixels");
}

}  // namespace ovs
