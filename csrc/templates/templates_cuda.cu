// template_entropy on a GPU: a thread per patch, or per pixel of the original image.
//
//   count_patches   largest logit, sums of the softmax, and the tally
//   softmax         logits of the patches to probabilities, in place (pixels only)
//   count_pixels    a pixel's probabilities from those of its patches, some classes at a time, and the tally; or from
//                   their logits, in two passes
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
constexpr int kQueriesAtOnce = 8;
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
    int64_t sum_stride, num_classes, num_queries, num_patches, pitch;
    const int32_t* group_first;  // null, both, where every query is a class
    const int32_t* group_of;
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

// The first query of a class; queries are in the order of their classes.
__device__ __forceinline__ int64_t first_query(const EntropyView& v, int64_t k) {
    return v.group_first == nullptr ? k : v.group_first[k];
}

// What an entropy is made of, query by query from logits below the largest: the sum of the exponentials, and over the
// classes the sums of e and of e times the logit. A class of several queries has the largest of their exponentials.
struct SoftmaxSums {
    float all = 0.0f, classes = 0.0f, weighted = 0.0f;
    float high = 0.0f, share = 0.0f;  // of the class at hand
    int64_t k = -1, next = 0;

    __device__ __forceinline__ void add(const EntropyView& v, int64_t q, float below) {
        const float e = expf(below);
        all += e;
        if (q == next) {
            close();
            high = below;
            share = e;
            next = first_query(v, ++k + 1);
        } else if (below > high) {
            high = below;
            share = e;
        }
    }
    __device__ __forceinline__ void close() {
        classes += share;
        weighted += share * high;
    }
    __device__ __forceinline__ void finish(float* terms) {
        close();
        terms[0] = (logf(all) * classes - weighted) / all;
        terms[1] = 1.0f / all;
    }
};

__device__ __forceinline__ int64_t class_of(const EntropyView& v, int64_t query) {
    return v.group_of == nullptr ? query : v.group_of[query];
}

// The largest logit of a patch and its query.
__device__ __forceinline__ float find_top(const EntropyView& v, const float* at, const float* scale, int& best) {
    float top = at[0] * scale[0];
    best = 0;
    for (int64_t q = 1; q < v.num_queries; ++q) {
        const float logit = at[q * v.pitch] * scale[q];
        if (logit > top) {
            top = logit;
            best = static_cast<int>(q);
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
        const float* const at = v.logits + m * v.num_queries * v.pitch + patch;
        const float* const scale = v.row_scale + m * v.num_queries;
        int best;
        const float top = find_top(v, at, scale, best);
        SoftmaxSums sums;
        float power = 0.0f, below_sum = 0.0f, taylor = 0.0f, taylor_power = 0.0f;
        for (int64_t q = 0; q < v.num_queries; ++q) {
            const float logit = at[q * v.pitch] * scale[q], below = logit - top;
            sums.add(v, q, below);
            if constexpr (kMano) {
                const float t = 1.0f + logit + 0.5f * logit * logit, e = expf(below);
                power += e * e * e * e;
                below_sum += below;
                taylor += t;
                taylor_power += (t * t) * (t * t);
            }
        }
        float terms[kMostKinds - 1] = {};
        sums.finish(terms);
        if constexpr (kMano) {
            const float sum2 = sums.all * sums.all, taylor2 = taylor * taylor;
            terms[2] = power / (sum2 * sum2);
            terms[3] = taylor_power / (taylor2 * taylor2);
            terms[4] = logf(sums.all) - below_sum / static_cast<float>(v.num_queries);
        }
        if (terms[0] == terms[0]) add_terms(v, table, m, class_of(v, best), terms);
    }
    end_tally(v, table, m);
}

__global__ void softmax_kernel(const EntropyView v) {
    const int64_t m = blockIdx.y, patch = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
    if (patch >= v.num_patches) return;
    float* const at = v.logits + m * v.num_queries * v.pitch + patch;
    const float* const scale = v.row_scale + m * v.num_queries;
    int best;
    const float top = find_top(v, at, scale, best);
    float sum = 0.0f;
    for (int64_t q = 0; q < v.num_queries; ++q) {
        const float e = expf(at[q * v.pitch] * scale[q] - top);
        at[q * v.pitch] = e;
        sum += e;
    }
    for (int64_t q = 0; q < v.num_queries; ++q) {
        const float share = at[q * v.pitch] / sum;
        at[q * v.pitch] = share < kSmallestShare ? 0.0f : share;
    }
}

// The patch at a source row and a source column.
__device__ __forceinline__ int64_t patch_at(const EntropyView& v, int64_t row, int64_t column) {
    const int64_t window = v.window_order[row / v.grid_height * v.window_columns + column / v.grid_width];
    return (window * v.grid_height + row % v.grid_height) * v.grid_width + column % v.grid_width;
}

// What the queries q0, q0 + 1, .. have at a pixel: the values of its patches, blended.
struct Pixel {
    int64_t y, x, strip;
    int lane;
};
__device__ __forceinline__ int blend(const EntropyView& v, const float* values, const Pixel& pixel, int64_t q0,
                                     float* blended) {
    const int64_t left = v.num_queries - q0;
    const int queries = left < kQueriesAtOnce ? static_cast<int>(left) : kQueriesAtOnce;
#pragma unroll
    for (int c = 0; c < kQueriesAtOnce; ++c) blended[c] = 0.0f;
    const int32_t row_begin = v.row_first[pixel.y], row_end = v.row_first[pixel.y + 1];
    const int32_t begin = v.strip_first[pixel.strip], end = v.strip_first[pixel.strip + 1];
    for (int32_t i = row_begin; i < row_end; ++i) {
        for (int32_t j = begin; j < end; ++j) {
            const float weight = v.row_weight[i] * v.strip_weight[static_cast<int64_t>(j) * kStrip + pixel.lane];
            const float* const at = values + q0 * v.pitch + patch_at(v, v.row_source[i], v.strip_source[j]);
#pragma unroll
            for (int c = 0; c < kQueriesAtOnce; ++c) {
                if (c < queries) blended[c] += weight * at[c * v.pitch];
            }
        }
    }
    return queries;
}

// Entropy and largest probability of a pixel from interpolated probabilities; returns its class.
__device__ __forceinline__ int64_t pixel_of_shares(const EntropyView& v, const float* values, const Pixel& pixel,
                                                   float* terms) {
    terms[0] = 0.0f;
    terms[1] = -1.0f;
    int64_t best = 0, k = 0, end = first_query(v, 1);
    float high = 0.0f;
    for (int64_t q0 = 0; q0 < v.num_queries; q0 += kQueriesAtOnce) {
        float share[kQueriesAtOnce];
        const int queries = blend(v, values, pixel, q0, share);
#pragma unroll
        for (int c = 0; c < kQueriesAtOnce; ++c) {
            if (c >= queries) break;
            high = share[c] <= high ? high : share[c];  // NaN is in all queries or in none
            if (q0 + c + 1 < end) continue;             // a class of several queries
            terms[0] -= high == 0.0f ? 0.0f : high * logf(high);
            if (high > terms[1]) {
                terms[1] = high;
                best = k;
            }
            high = 0.0f;
            if (++k < v.num_classes) end = first_query(v, k + 1);
        }
    }
    return best;
}

// The same from interpolated logits: the largest, then the sums of the softmax.
__device__ __forceinline__ int64_t pixel_of_logits(const EntropyView& v, const float* values, const float* scale,
                                                   const Pixel& pixel, float* terms) {
    float top = 0.0f;
    int64_t best = 0;
    for (int64_t q0 = 0; q0 < v.num_queries; q0 += kQueriesAtOnce) {
        float logit[kQueriesAtOnce];
        const int queries = blend(v, values, pixel, q0, logit);
#pragma unroll
        for (int c = 0; c < kQueriesAtOnce; ++c) {
            if (c >= queries) break;
            const float scaled = logit[c] * scale[q0 + c];
            if (q0 + c == 0 || scaled > top) {
                top = scaled;
                best = q0 + c;
            }
        }
    }
    SoftmaxSums sums;
    for (int64_t q0 = 0; q0 < v.num_queries; q0 += kQueriesAtOnce) {
        float logit[kQueriesAtOnce];
        const int queries = blend(v, values, pixel, q0, logit);
#pragma unroll
        for (int c = 0; c < kQueriesAtOnce; ++c) {
            if (c < queries) sums.add(v, q0 + c, logit[c] * scale[q0 + c] - top);
        }
    }
    sums.finish(terms);
    return class_of(v, best);
}

// One block: kRowsPerBlock rows of a strip.
template <bool kLogits>
__global__ void count_pixels_kernel(const EntropyView v) {
    GPU_DYN_SHARED(Count, table);
    begin_tally(v, table);
    Pixel pixel;
    pixel.lane = static_cast<int>(threadIdx.x) % kStrip;
    pixel.strip = blockIdx.x;
    pixel.x = pixel.strip * kStrip + pixel.lane;
    pixel.y = static_cast<int64_t>(blockIdx.y) * kRowsPerBlock + threadIdx.x / kStrip;
    const int64_t m = blockIdx.z;
    if (pixel.x < v.out_width && pixel.y < v.out_height && v.unknown[pixel.y * v.out_width + pixel.x] == 0) {
        const float* const values = v.logits + m * v.num_queries * v.pitch;
        float terms[2];
        int64_t best;
        if constexpr (kLogits) {
            best = pixel_of_logits(v, values, v.row_scale + m * v.num_queries, pixel, terms);
        } else {
            best = pixel_of_shares(v, values, pixel, terms);
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
    v.num_queries = p.num_queries;
    v.group_first = p.group_first;
    v.group_of = p.group_of;
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
    if (!p.interpolate_logits) {
        launch(softmax_kernel, patches, block, 0, queue, v);
        OVS_CHECK_LAUNCH("template_entropy: softmax");
    }
    const int64_t row_blocks = ceil_div(p.out_height, kRowsPerBlock);
    OVS_REQUIRE(row_blocks <= kMaxGridYZ, "template_entropy: too many rows");
    const dim3 pixels(static_cast<unsigned>(ceil_div(p.out_width, kStrip)), static_cast<unsigned>(row_blocks),
                      static_cast<unsigned>(p.num_templates));
    launch(p.interpolate_logits ? count_pixels_kernel<true> : count_pixels_kernel<false>, pixels, block, bytes, queue,
           v);
    OVS_CHECK_LAUNCH("template_entropy: count_pixels");
}

}  // namespace ovs
