// knn_graph on a GPU: one launch per stage, one block per row. The products are whole rows that torch has made.
//
//   normalize   unit rows
//   select      radix search of a row's cut: four histograms of 256 bins over the bits of its positive numbers
//   count       links of a row
//   offsets     prefix sum of the counts by one block
//   emit        links of a row, in the order of their columns
//
// A weight is computed in `count` and in `emit` by the same code with its roundings spelled out, since both must agree
// on which weights are zero.
#include "common/device.cuh"
#include "common/launch.cuh"
#include "common/reduce.cuh"
#include "common/workspace.h"
#include "graph/graph.h"
#include "graph/graph_math.h"

namespace ovs {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;
constexpr int kDigitBits = 8, kDigits = 1 << kDigitBits;
constexpr int kDigitsPerLane = kDigits / kWarpSize;
static_assert(kDigits == kThreads, "each thread clears one bin");

using CutF = Cut<float>;

struct RowsView {
    const float* products;   // [last - first, N]
    const CutF* cuts;        // [N]
    const float* positions;  // [N, 2] or null
    int64_t num_nodes, first_row;
    float gamma, minus_sigma;
};

__global__ void normalize_kernel(const float* features,  // [N, d]
                                 float* unit_rows,       // [N, d]
                                 int64_t num_features) {
    const int64_t begin = static_cast<int64_t>(blockIdx.x) * num_features;
    double sum = 0.0;
    for (int64_t c = threadIdx.x; c < num_features; c += kThreads) {
        const double v = features[begin + c];
        sum += v * v;
    }
    sum = block_sum<kThreads>(sum);
    const bool usable = sum > 0.0 && sum < HUGE_VAL;  // NaN and Inf poison the sum
    const double inverse = usable ? 1.0 / sqrt(sum) : 0.0;
    for (int64_t c = threadIdx.x; c < num_features; c += kThreads) {
        unit_rows[begin + c] = usable ? static_cast<float>(features[begin + c] * inverse) : 0.0f;
    }
}

// How many threads before this one have the flag; `total`: how many have it in the block.
__device__ __forceinline__ int block_rank(bool flag, int& total) {
    GPU_SHARED(int, s_counts, [kWarps]);
    const int lane = static_cast<int>(threadIdx.x) % kWarpSize, warp = static_cast<int>(threadIdx.x) / kWarpSize;
    const unsigned flags = __ballot_sync(kFullMask, flag);
    __syncthreads();  // an earlier call may still be reading s_counts
    if (lane == 0) s_counts[warp] = __popc(flags);
    __syncthreads();
    int rank = __popc(flags & ((1u << lane) - 1u));
    total = 0;
    for (int w = 0; w < kWarps; ++w) {
        if (w < warp) rank += s_counts[w];
        total += s_counts[w];
    }
    return rank;
}

// The bits of a similarity that can be a neighbour's, ordered like the numbers; 0 for all others.
__device__ __forceinline__ unsigned key_at(const float* row, int64_t j, int64_t self) {
    const float s = row[j];
    return s >= kSmallestLink && j != self ? static_cast<unsigned>(__float_as_int(s)) : 0u;
}

// What a step of the search leaves: the digit of the wanted number, how many of that digit are wanted, and there are.
struct Digit {
    int digit, wanted, equal, total;
};

// By warp 0, from a histogram: lane 0 has the largest digits.
__device__ __forceinline__ void find_digit(const int* histogram, int wanted, Digit* found) {
    const int lane = static_cast<int>(threadIdx.x), top = kDigits - 1 - lane * kDigitsPerLane;
    int own = 0;
    for (int d = 0; d < kDigitsPerLane; ++d) own += histogram[top - d];
    int upto = own;
    for (int offset = 1; offset < kWarpSize; offset *= 2) {
        const int other = __shfl_up_sync(kFullMask, upto, offset);
        if (lane >= offset) upto += other;
    }
    if (lane == kWarpSize - 1) found->total = upto;
    int above = upto - own;
    if (above < wanted && wanted <= upto) {
        int digit = top;
        while (above + histogram[digit] < wanted) above += histogram[digit--];
        found->digit = digit;
        found->wanted = wanted - above;
        found->equal = histogram[digit];
    }
}

// Column of the `wanted`-th appearance of `key`.
__device__ __forceinline__ int64_t find_tie(const float* row, int64_t num_nodes, int64_t self, unsigned key,
                                            int wanted) {
    GPU_SHARED(int64_t, s_column, [1]);
    for (int64_t begin = 0; begin < num_nodes; begin += kThreads) {
        const int64_t j = begin + threadIdx.x;
        const bool equal = j < num_nodes && key_at(row, j, self) == key;
        int total = 0;
        const int rank = block_rank(equal, total);
        if (equal && rank == wanted - 1) s_column[0] = j;
        if (wanted <= total) break;
        wanted -= total;
    }
    __syncthreads();
    return s_column[0];
}

__global__ void select_kernel(const float* products,  // [rows, N]
                              CutF* cuts,             // [N]
                              int64_t num_nodes, int64_t first_row, int num_others) {
    GPU_SHARED(int, s_histogram, [kDigits]);
    GPU_SHARED(Digit, s_found, [1]);
    const float* row = products + static_cast<int64_t>(blockIdx.x) * num_nodes;
    const int64_t self = first_row + blockIdx.x;
    unsigned prefix = 0u;
    int wanted = num_others, equal = 0;
    for (int shift = 32 - kDigitBits; shift >= 0; shift -= kDigitBits) {
        s_histogram[threadIdx.x] = 0;
        __syncthreads();
        for (int64_t j = threadIdx.x; j < num_nodes; j += kThreads) {
            const unsigned key = key_at(row, j, self);
            const bool counts = shift + kDigitBits == 32 || (key >> (shift + kDigitBits)) == prefix;
            if (key != 0u && counts) atomicAdd(&s_histogram[(key >> shift) & (kDigits - 1)], 1);  // of integers
        }
        __syncthreads();
        if (threadIdx.x < kWarpSize) find_digit(s_histogram, wanted, s_found);
        __syncthreads();
        const Digit found = s_found[0];
        if (shift + kDigitBits == 32 && (found.total <= wanted || wanted == 0)) {  // all positive ones, or none
            const float threshold =
                found.total > 0 && wanted > 0 ? __int_as_float(__float_as_int(kSmallestLink) - 1) : kAboveAll;
            if (threadIdx.x == 0) cuts[self] = {threshold, -1.0f};
            return;
        }
        prefix = (prefix << kDigitBits) | static_cast<unsigned>(found.digit);
        wanted = found.wanted;
        equal = found.equal;
    }
    float last_tie = -1.0f;
    if (wanted < equal) last_tie = static_cast<float>(find_tie(row, num_nodes, self, prefix, wanted));
    if (threadIdx.x == 0) {
        cuts[self] = {__int_as_float(static_cast<int>(wanted < equal ? prefix : prefix - 1u)), last_tie};
    }
}

// w_ij, zero where there is no link.
template <int kPower>
__device__ __forceinline__ float link_weight(const RowsView& v, const float* row, int64_t i, int64_t j,
                                             const CutF& cut) {
    const float s = row[j];
    const bool here = joins(s, cut, static_cast<float>(j)), there = joins(s, v.cuts[j], static_cast<float>(i));
    if (i == j || !(here || there)) return 0.0f;
    const float similarity = s < 1.0f ? s : 1.0f;
    float weight = 0.0f;
    if constexpr (kPower > 0) {
        weight = product_power<kPower>(similarity);
    } else {
        weight = powf(similarity, v.gamma);
    }
    if (v.positions != nullptr) {
        const float dy = v.positions[2 * j] - v.positions[2 * i], dx = v.positions[2 * j + 1] - v.positions[2 * i + 1];
        weight *= expf(v.minus_sigma * sqrtf(fmaf(dy, dy, dx * dx)));
    }
    if (!(weight >= kSmallestLink)) return 0.0f;  // true for NaN
    return here && there ? weight + weight : weight;
}

template <int kPower>
__global__ void count_kernel(const RowsView v, int32_t* indptr) {
    const int64_t i = v.first_row + blockIdx.x;
    const float* row = v.products + static_cast<int64_t>(blockIdx.x) * v.num_nodes;
    const CutF cut = v.cuts[i];
    int count = 0;
    for (int64_t j = threadIdx.x; j < v.num_nodes; j += kThreads)
        count += link_weight<kPower>(v, row, i, j, cut) > 0.0f;
    count = block_sum<kThreads>(count);
    if (threadIdx.x == 0) indptr[i + 1] = count;
}

// One block: counts in indptr[1 ..] -> prefix sums, and their total.
__global__ void offsets_kernel(int32_t* indptr, int64_t* total, int64_t num_nodes) {
    GPU_SHARED(long long, s_warps, [kWarps]);
    const int lane = static_cast<int>(threadIdx.x) % kWarpSize, warp = static_cast<int>(threadIdx.x) / kWarpSize;
    long long before = 0;
    for (int64_t begin = 0; begin < num_nodes; begin += kThreads) {
        const int64_t i = begin + threadIdx.x;
        long long sum = i < num_nodes ? indptr[i + 1] : 0;
        for (int offset = 1; offset < kWarpSize; offset *= 2) {
            const long long other = __shfl_up_sync(kFullMask, sum, offset);
            if (lane >= offset) sum += other;
        }
        if (lane == kWarpSize - 1) s_warps[warp] = sum;
        __syncthreads();
        sum += before;
        for (int w = 0; w < kWarps; ++w) {
            if (w < warp) sum += s_warps[w];
            before += s_warps[w];
        }
        if (i < num_nodes) indptr[i + 1] = static_cast<int32_t>(sum);
        __syncthreads();  // before s_warps is written again
    }
    if (threadIdx.x == 0) {
        indptr[0] = 0;
        *total = before;
    }
}

template <int kPower>
__global__ void emit_kernel(const RowsView v,
                            const int32_t* indptr,  // [N + 1]
                            int32_t* indices,       // [links]
                            float* weights,         // [links]
                            float* degrees) {       // [N]
    const int64_t i = v.first_row + blockIdx.x;
    const float* row = v.products + static_cast<int64_t>(blockIdx.x) * v.num_nodes;
    const CutF cut = v.cuts[i];
    int64_t at = indptr[i];
    double sum = 0.0;
    for (int64_t begin = 0; begin < v.num_nodes; begin += kThreads) {
        const int64_t j = begin + threadIdx.x;
        const float weight = j < v.num_nodes ? link_weight<kPower>(v, row, i, j, cut) : 0.0f;
        int total = 0;
        const int rank = block_rank(weight > 0.0f, total);
        if (weight > 0.0f) {
            indices[at + rank] = static_cast<int32_t>(j);
            weights[at + rank] = weight;
            sum += weight;
        }
        at += total;
    }
    sum = block_sum<kThreads>(sum);
    if (threadIdx.x == 0) degrees[i] = static_cast<float>(sum);
}

struct Buffers {
    CutF* cuts;  // [N], from `select` to `emit`

    Buffers(const KnnGraphParams& p, Workspace& ws) { cuts = ws.take<CutF>("cuts", p.num_nodes); }
};

RowsView view_of(const KnnGraphParams& p, const Buffers& b) {
    RowsView v = {};
    v.products = static_cast<const float*>(p.products);
    v.cuts = b.cuts;
    v.positions = static_cast<const float*>(p.positions);
    v.num_nodes = p.num_nodes;
    v.first_row = p.first_row;
    v.gamma = static_cast<float>(p.gamma);
    v.minus_sigma = static_cast<float>(-p.sigma);
    return v;
}

}  // namespace

std::size_t knn_graph_cuda_workspace_bytes(const KnnGraphParams& p) {
    check_params(p);
    Workspace counter(nullptr, 0);
    Buffers(p, counter);
    return counter.used();
}

void knn_graph_cuda(const KnnGraphParams& p, void* workspace, std::size_t workspace_bytes, int device, void* stream) {
    check_params(p);
    if (p.num_nodes == 0) return;
    const DeviceGuard guard(device);
    Workspace ws(workspace, workspace_bytes);
    const Buffers b(p, ws);
    const RowsView v = view_of(p, b);
    const cudaStream_t queue = as_stream(stream);
    const dim3 all(static_cast<unsigned>(p.num_nodes)), some(static_cast<unsigned>(p.last_row - p.first_row));
    const dim3 block(kThreads);
    const bool by_rows = p.stage != KnnGraphStage::kNormalize && p.stage != KnnGraphStage::kOffsets;
    if (by_rows && some.x == 0) return;
    switch (p.stage) {
        case KnnGraphStage::kNormalize:
            launch(normalize_kernel, all, block, 0, queue, static_cast<const float*>(p.features),
                   static_cast<float*>(p.unit_rows), p.num_features);
            return OVS_CHECK_LAUNCH("knn_graph: normalize");
        case KnnGraphStage::kSelect:
            launch(select_kernel, some, block, 0, queue, v.products, b.cuts, p.num_nodes, p.first_row,
                   static_cast<int>(p.num_others));
            return OVS_CHECK_LAUNCH("knn_graph: select");
        case KnnGraphStage::kCount:
            with_power(p.gamma, [&](auto power) {
                launch(count_kernel<decltype(power)::value>, some, block, 0, queue, v, p.indptr);
            });
            return OVS_CHECK_LAUNCH("knn_graph: count");
        case KnnGraphStage::kOffsets:
            launch(offsets_kernel, dim3(1), block, 0, queue, p.indptr, p.total, p.num_nodes);
            return OVS_CHECK_LAUNCH("knn_graph: offsets");
        case KnnGraphStage::kEmit:
            with_power(p.gamma, [&](auto power) {
                launch(emit_kernel<decltype(power)::value>, some, block, 0, queue, v, p.indptr, p.indices,
                       static_cast<float*>(p.weights), static_cast<float*>(p.degrees));
            });
            return OVS_CHECK_LAUNCH("knn_graph: emit");
    }
    throw InvalidArgument("knn_graph: unknown stage");
}

}  // namespace ovs
