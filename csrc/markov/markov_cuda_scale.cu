// doubly_stochastic on a GPU: one sequence of launches on the caller's stream, nothing comes back to the host.
//
//   rows, columns              t = A^T 1, entries verified; c = 1 / t
//   (rows, columns) x n_iter   r = 1 / (A c) and t = A^T r in one pass over the matrix; c = 1 / t
//   finish                     the column error; NaN everywhere if an entry was bad
//
// A block takes eight rows at a time, a warp each: the sums of the rows, then, while the rows are in its cache, their
// part of its own column sums, which the columns kernel adds over the blocks in a fixed order.
#include <algorithm>

#include "common/device.cuh"
#include "common/reduce.cuh"
#include "common/workspace.h"
#include "markov/markov_math.h"
#include "markov/markov_storage.cuh"

namespace ovs {
namespace {

constexpr int kWarps = 8;        // rows that a block takes at a time
constexpr int kMaxGroups = 264;  // blocks of the rows kernel: two for each multiprocessor of a large card
constexpr int kColumnRows = 8;   // threads that add up one column
constexpr int kPlainThreads = 256;
constexpr int kNanBits = 0x7fffffff;

struct ScaleParams {
    const void* attention;  // [N, N]
    float *r, *c;           // [N]
    float* sums;            // [groups, N]
    int* bad;               // scalar: whether an entry or a first column sum is bad
    int* worst;             // scalar: bits of the largest column error
    double* column_error;   // scalar or null
    int64_t nodes, groups;
};

// What the columns kernel makes of the column sums.
enum class Columns : int { kFirst, kInvert, kMeasure };

// 1 for the first pass; 1 / (A c) in the others. A warp.
template <class Storage, bool kFirst>
__device__ float row_factor(const ScaleParams& s, int64_t row) {
    const Storage* a = static_cast<const Storage*>(s.attention) + row * s.nodes;
    const int lane = static_cast<int>(threadIdx.x);
    if (kFirst) {
        bool bad = false;
        for (int64_t j = lane; j < s.nodes; j += kWarpSize) bad = bad || !is_valid(widen(a[j]));
        if (bad) atomicMax(s.bad, 1);
        return 1.0f;
    }
    double sum = 0.0;
    float run = 0.0f;
    int in_run = 0;
    for (int64_t j = lane; j < s.nodes; j += kWarpSize) {
        run += widen(a[j]) * s.c[j];
        if (++in_run == kWarpSize) {
            sum += static_cast<double>(run);
            run = 0.0f;
            in_run = 0;
        }
    }
    return inverse_sum(static_cast<float>(warp_sum(sum + static_cast<double>(run))));
}

// grid: groups; block: (32, kWarps). Row batches are dealt out to the groups in turn.
template <class Storage, bool kFirst>
__global__ void rows_kernel(const ScaleParams s) {
    GPU_SHARED(float, s_factor, [kWarps]);
    const int warp = static_cast<int>(threadIdx.y);
    float* sums = s.sums + static_cast<int64_t>(blockIdx.x) * s.nodes;
    bool first = true;
    for (int64_t base = static_cast<int64_t>(blockIdx.x) * kWarps; base < s.nodes;
         base += static_cast<int64_t>(gridDim.x) * kWarps) {
        float factor = 0.0f;
        if (base + warp < s.nodes) {
            factor = row_factor<Storage, kFirst>(s, base + warp);
            if (!kFirst && threadIdx.x == 0) s.r[base + warp] = factor;
        }
        __syncthreads();  // the batch before may still be reading
        if (threadIdx.x == 0) s_factor[warp] = factor;
        __syncthreads();
        const int rows = static_cast<int>(min(static_cast<int64_t>(kWarps), s.nodes - base));
        const Storage* a = static_cast<const Storage*>(s.attention) + base * s.nodes;
        for (int64_t j = thread_in_block(); j < s.nodes; j += kWarps * kWarpSize) {
            float sum = first ? 0.0f : sums[j];
            for (int k = 0; k < rows; ++k) sum += s_factor[k] * widen(a[k * s.nodes + j]);
            sums[j] = sum;
        }
        first = false;
    }
}

// A warp of columns, kColumnRows threads each. block: (32, kColumnRows).
__global__ void columns_kernel(const ScaleParams s, Columns what) {
    GPU_SHARED(double, s_sums, [kColumnRows][kWarpSize]);
    const int64_t j = static_cast<int64_t>(blockIdx.x) * kWarpSize + threadIdx.x;
    double sum = 0.0;
    for (int64_t group = threadIdx.y; j < s.nodes && group < s.groups; group += kColumnRows) {
        sum += static_cast<double>(s.sums[group * s.nodes + j]);
    }
    s_sums[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y != 0 || j >= s.nodes) return;
    for (int k = 1; k < kColumnRows; ++k) sum += s_sums[k][threadIdx.x];
    const float t = static_cast<float>(sum);
    if (what == Columns::kMeasure) {
        if (!(s.c[j] > 0.0f)) return;
        const float error = static_cast<float>(fabs(static_cast<double>(s.c[j]) * static_cast<double>(t) - 1.0));
        atomicMax(s.worst, __float_as_int(error));  // a maximum does not depend on the order
        return;
    }
    if (what == Columns::kFirst && !(t <= kLargestFloat)) atomicMax(s.bad, 1);
    s.c[j] = inverse_sum(t);
}

__global__ void ones_kernel(const ScaleParams s) {
    const int64_t j = static_cast<int64_t>(blockIdx.x) * kPlainThreads + threadIdx.x;
    if (j < s.nodes) s.r[j] = s.c[j] = 1.0f;
}

__global__ void finish_kernel(const ScaleParams s) {
    const int64_t j = static_cast<int64_t>(blockIdx.x) * kPlainThreads + threadIdx.x;
    const bool bad = *s.bad != 0;
    if (j == 0 && s.column_error != nullptr) {
        *s.column_error = static_cast<double>(__int_as_float(bad ? kNanBits : *s.worst));
    }
    if (bad && j < s.nodes) s.r[j] = s.c[j] = __int_as_float(kNanBits);
}

class CudaScaler {
public:
    CudaScaler(const ScalingParams& p, Workspace& ws, cudaStream_t stream) : p_(p), stream_(stream) {
        s_.attention = p.attention;
        s_.r = static_cast<float*>(p.r);
        s_.c = static_cast<float*>(p.c);
        s_.column_error = p.column_error;
        s_.nodes = p.num_nodes;
        s_.groups = std::min<int64_t>(kMaxGroups, ceil_div(p.num_nodes, kWarps));
        s_.sums = ws.take<float>("sums", s_.groups * p.num_nodes);
        s_.bad = ws.take<int>("bad", 1);
        s_.worst = ws.take<int>("worst", 1);
    }

    template <class Storage>
    void run() {
        OVS_CUDA(cudaMemsetAsync(s_.bad, 0, sizeof(int), stream_));
        OVS_CUDA(cudaMemsetAsync(s_.worst, 0, sizeof(int), stream_));
        rows<Storage, true>();
        columns(Columns::kFirst);
        if (p_.n_iter == 0) plain(ones_kernel);
        for (int iteration = 1; iteration <= p_.n_iter; ++iteration) {
            rows<Storage, false>();
            if (iteration < p_.n_iter) columns(Columns::kInvert);
        }
        if (p_.column_error != nullptr) columns(Columns::kMeasure);
        plain(finish_kernel);
    }

private:
    template <class Storage, bool kFirst>
    void rows() {
        launch(rows_kernel<Storage, kFirst>, dim3(static_cast<unsigned>(s_.groups)), dim3(kWarpSize, kWarps), 0,
               stream_, s_);
        OVS_CHECK_LAUNCH("doubly_stochastic: rows");
    }
    void columns(Columns what) {
        launch(columns_kernel, dim3(static_cast<unsigned>(ceil_div(s_.nodes, kWarpSize))), dim3(kWarpSize, kColumnRows),
               0, stream_, s_, what);
        OVS_CHECK_LAUNCH("doubly_stochastic: columns");
    }
    void plain(void (*kernel)(const ScaleParams)) {
        launch(kernel, dim3(static_cast<unsigned>(ceil_div(s_.nodes, kPlainThreads))), dim3(kPlainThreads), 0, stream_,
               s_);
        OVS_CHECK_LAUNCH("doubly_stochastic: vectors");
    }

    const ScalingParams& p_;
    cudaStream_t stream_;
    ScaleParams s_ = {};
};

}  // namespace

std::size_t doubly_stochastic_cuda_workspace_bytes(const ScalingParams& p, DType) {
    check_params(p);
    Workspace counter(nullptr, 0);
    CudaScaler(p, counter, nullptr);
    return counter.used();
}

void doubly_stochastic_cuda(const ScalingParams& p, DType dtype, void* workspace, std::size_t workspace_bytes,
                            int device, void* stream) {
    check_params(p);
    if (p.num_nodes == 0) return;
    const DeviceGuard guard(device);
    Workspace ws(workspace, workspace_bytes);
    CudaScaler scaler(p, ws, as_stream(stream));
    with_storage(dtype, [&](auto* storage) { scaler.run<std::decay_t<decltype(*storage)>>(); });
}

}  // namespace ovs
