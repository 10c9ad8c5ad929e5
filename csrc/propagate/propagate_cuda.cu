// lp_graph on a GPU: one sequence of launches on the caller's stream, nothing comes back to the host.
//
//   links                                          degrees, alpha w_ij / deg_i
//   scan, pack                                     per wave of classes: class-innermost state D^-1/2 Y
//   (multiply, scalars, update, scalars) x steps   kernels return at once where all their classes have stopped, so that
//                                                  a fixed number of steps can be queued
//   unpack                                         D^1/2 state -> out
//
// A slice is 32 classes of the wave, the second coordinate of every grid. Inner products: one double per block and
// class, added by one block per class in a fixed order.
#include <algorithm>

#include "common/device.cuh"
#include "common/launch.cuh"
#include "common/solve.cuh"
#include "common/workspace.h"
#include "propagate/propagate_math.h"

namespace ovs {
namespace {

constexpr int kRows = 8;          // rows side by side in a block: its warps
constexpr int kMaxBlocks = 1024;  // more rows are walked in strides; bounds the memory for partial sums
constexpr int kSlice = kWarpSize;
constexpr int kMaxWave = 256;               // classes solved together
constexpr int kGranule = 8;                 // classes per node are padded to a multiple of this
constexpr int kLane = 4;                    // classes per thread while multiplying: one float4
constexpr int kLargestFinite = 0x7f7fffff;  // bits; as an integer a magnitude orders like the float
constexpr int kNan = 0x7fffffff;

struct SolveParams {
    // graph
    const int64_t* indptr;   // [N + 1]
    const int32_t* indices;  // [L]
    const float* weights;    // [L]
    const float* degrees;    // [N] or null
    float* values;           // [L] alpha w_ij / deg_i
    float* degree;           // [N]
    uint8_t* isolated;       // [N]
    // scores, at the first class of the wave
    const float* scores;  // [N, C]
    float* out;           // [N, C]
    // state of the wave
    float *p, *q, *x, *r;  // [N, stride]
    int* largest;          // [stride] bits of the largest magnitude
    double* partials;      // [blocks, 2, stride]
    ClassState* classes;   // [stride]
    int64_t nodes, num_classes;
    int classes_in_wave, stride;
    float alpha;
    bool exact;
};

__device__ __forceinline__ bool is_finite(const SolveParams& s, int c) { return s.largest[c] <= kLargestFinite; }

// The power of two that brings the largest score of a class near 1.
__device__ __forceinline__ float class_scale(const SolveParams& s, int c) {
    const int bits = s.largest[c];
    const int exponent = bits > 0 && bits <= kLargestFinite ? ilogbf(__int_as_float(bits)) : 0;
    return ldexpf(1.0f, min(max(-exponent, -120), 120));
}

// Whether all classes of the slice have stopped; the same answer for every warp.
__device__ __forceinline__ bool slice_stopped(const SolveParams& s, int first) {
    const int c = first + thread_in_block() % kWarpSize;
    return __all_sync(kFullMask, c >= s.stride || s.classes[c].frozen != 0) != 0;
}

// A warp per row. block: (32, kRows).
__global__ void links_kernel(const SolveParams s) {
    const int lane = static_cast<int>(threadIdx.x);
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * kRows + threadIdx.y; i < s.nodes;
         i += static_cast<int64_t>(gridDim.x) * kRows) {
        const int64_t begin = s.indptr[i], end = s.indptr[i + 1];
        float degree = 0.0f;
        if (s.degrees != nullptr) {
            degree = s.degrees[i];
        } else {
            double sum = 0.0;
            for (int64_t k = begin + lane; k < end; k += kWarpSize) sum += s.weights[k];
            degree = static_cast<float>(warp_sum(sum));
        }
        const bool isolated = is_isolated(degree);
        if (isolated) degree = 1.0f;
        if (lane == 0) {
            s.degree[i] = degree;
            s.isolated[i] = isolated ? 1 : 0;
        }
        const float factor = s.alpha / degree;
        for (int64_t k = begin + lane; k < end; k += kWarpSize) s.values[k] = factor * s.weights[k];
    }
}

// Largest magnitude of each class. grid: (blocks, slices); block: (32, kRows).
__global__ void scan_kernel(const SolveParams s) {
    const int c = static_cast<int>(blockIdx.y) * kSlice + static_cast<int>(threadIdx.x);
    if (c >= s.classes_in_wave) return;
    int largest = 0;
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * kRows + threadIdx.y; i < s.nodes;
         i += static_cast<int64_t>(gridDim.x) * kRows) {
        largest = max(largest, __float_as_int(s.scores[i * s.num_classes + c]) & 0x7fffffff);
    }
    atomicMax(s.largest + c, largest);  // a maximum does not depend on the order
}

// Adds one double per thread of a (32, kRows) block over the rows, for the block's partials.
__device__ __forceinline__ void write_partial(const SolveParams& s, int which, int c, double sum) {
    GPU_SHARED(double, s_sums, [kRows][kSlice]);
    __syncthreads();  // an earlier call may still be reading
    s_sums[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y != 0 || c >= s.stride) return;
    for (int row = 1; row < kRows; ++row) sum += s_sums[row][threadIdx.x];
    s.partials[(static_cast<int64_t>(blockIdx.x) * 2 + which) * s.stride + c] = sum;
}

// p = r = D^-1/2 (scale Y), zero in the classes that are padding or not finite; x = 0; |y|^2.
__global__ void pack_kernel(const SolveParams s) {
    const int c = static_cast<int>(blockIdx.y) * kSlice + static_cast<int>(threadIdx.x);
    const bool used = c < s.classes_in_wave && is_finite(s, c);
    const float scale = used ? class_scale(s, c) : 0.0f;
    double sum = 0.0;
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * kRows + threadIdx.y; c < s.stride && i < s.nodes;
         i += static_cast<int64_t>(gridDim.x) * kRows) {
        const float value = used ? s.scores[i * s.num_classes + c] * scale : 0.0f;
        const float scaled = value / sqrtf(s.degree[i]);
        s.p[i * s.stride + c] = scaled;
        s.r[i * s.stride + c] = scaled;
        s.x[i * s.stride + c] = 0.0f;
        sum += static_cast<double>(value) * value;
    }
    write_partial(s, 0, c, sum);
}

// x += a p; r -= a q; p = r + b p, and |r|^2.
__global__ void update_kernel(const SolveParams s) {
    const int first = static_cast<int>(blockIdx.y) * kSlice, c = first + static_cast<int>(threadIdx.x);
    if (slice_stopped(s, first)) return;
    const float a = c < s.stride ? static_cast<float>(s.classes[c].a) : 0.0f;
    const float b = c < s.stride ? static_cast<float>(s.classes[c].b) : 0.0f;
    double sum = 0.0;
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * kRows + threadIdx.y; c < s.stride && i < s.nodes;
         i += static_cast<int64_t>(gridDim.x) * kRows) {
        const int64_t at = i * s.stride + c;
        const float v = s.p[at], residual = s.r[at] - a * s.q[at];
        s.x[at] += a * v;
        s.r[at] = residual;
        s.p[at] = residual + b * v;
        sum += static_cast<double>(s.degree[i] * residual * residual);
    }
    write_partial(s, 0, c, sum);
}

// Sum over the links of a row, for the thread's 4 classes. `width` threads, a power of two, share a link; the warp's
// 32 / width groups take links in turn, and every thread gets the whole sum.
__device__ __forceinline__ float4 sum_links(const SolveParams& s, const float* state, int64_t row, int width,
                                            bool active) {
    const int lane = thread_in_block() % kWarpSize, groups = kWarpSize / width;
    float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    const int64_t end = s.indptr[row + 1];
    for (int64_t k = s.indptr[row] + lane / width; active && k < end; k += groups) {
        const float value = __ldg(s.values + k);
        const float4 v =
            *reinterpret_cast<const float4*>(state + static_cast<int64_t>(__ldg(s.indices + k)) * s.stride);
        sum.x += value * v.x;
        sum.y += value * v.y;
        sum.z += value * v.z;
        sum.w += value * v.w;
    }
    for (int offset = width; offset < kWarpSize; offset *= 2) {
        sum.x += __shfl_xor_sync(kFullMask, sum.x, offset);
        sum.y += __shfl_xor_sync(kFullMask, sum.y, offset);
        sum.z += __shfl_xor_sync(kFullMask, sum.z, offset);
        sum.w += __shfl_xor_sync(kFullMask, sum.w, offset);
    }
    return sum;
}

// q = p - alpha D^-1 W p, with <p, q> and |q|^2.
struct ApplyEpilogue {
    static constexpr int kSums = 2;
    __device__ static const float* state(const SolveParams& s) { return s.p; }
    __device__ static bool idle(const SolveParams& s, int first) { return slice_stopped(s, first); }
    __device__ static void run(const SolveParams& s, int64_t row, int c, const float (&product)[kLane],
                               double (&sums)[kSums][kLane]) {
        const float degree = s.degree[row];
#pragma unroll
        for (int j = 0; j < kLane; ++j) {
            const float v = s.p[row * s.stride + c + j], q = v - product[j];
            s.q[row * s.stride + c + j] = q;
            sums[0][j] += static_cast<double>(degree * q * v);
            sums[1][j] += static_cast<double>(degree * q * q);
        }
    }
};

// |y - L x|^2, nothing written.
struct ResidualEpilogue {
    static constexpr int kSums = 1;
    __device__ static const float* state(const SolveParams& s) { return s.x; }
    __device__ static bool idle(const SolveParams&, int) { return false; }
    __device__ static void run(const SolveParams& s, int64_t row, int c, const float (&product)[kLane],
                               double (&sums)[kSums][kLane]) {
        const float degree = s.degree[row], root = sqrtf(degree);
#pragma unroll
        for (int j = 0; j < kLane; ++j) {
            if (c + j >= s.classes_in_wave || !is_finite(s, c + j)) continue;
            const float y = s.scores[row * s.num_classes + c + j] * class_scale(s, c + j) / root;
            const float gap = (y - s.x[row * s.stride + c + j]) + product[j];
            sums[0][j] += static_cast<double>(degree * gap * gap);
        }
    }
};

// A warp per row, 4 classes per thread. grid: (blocks, slices); block: 32 x kRows.
template <class Epilogue>
__global__ void __launch_bounds__(kWarpSize* kRows) multiply_kernel(const SolveParams s) {
    constexpr int kSums = Epilogue::kSums;
    GPU_SHARED(double, s_sums, [kSums][kRows][kSlice]);
    const int first = static_cast<int>(blockIdx.y) * kSlice;
    if (Epilogue::idle(s, first)) return;
    const int lane = static_cast<int>(threadIdx.x), warp = static_cast<int>(threadIdx.y);
    const int vectors = min(kSlice, s.stride - first) / kLane;  // 2, 4, 6 or 8
    const int width = vectors > 4 ? 8 : vectors;
    const int c = first + lane % width * kLane;
    const bool active = lane % width < vectors, writes = lane < vectors;
    double sums[kSums][kLane] = {};
    for (int64_t row = static_cast<int64_t>(blockIdx.x) * kRows + warp; row < s.nodes;
         row += static_cast<int64_t>(gridDim.x) * kRows) {
        const float4 sum = sum_links(s, Epilogue::state(s) + (active ? c : first), row, width, active);
        const float product[kLane] = {sum.x, sum.y, sum.z, sum.w};
        if (writes) Epilogue::run(s, row, c, product, sums);
    }
    for (int which = 0; which < kSums; ++which) {
        for (int j = 0; j < kLane; ++j) {
            if (writes) s_sums[which][warp][lane * kLane + j] = sums[which][j];
        }
    }
    __syncthreads();
    if (warp >= kSums || lane >= vectors * kLane) return;
    double total = 0.0;
    for (int row = 0; row < kRows; ++row) total += s_sums[warp][row][lane];
    s.partials[(static_cast<int64_t>(blockIdx.x) * 2 + warp) * s.stride + first + lane] = total;
}

__global__ void unpack_kernel(const SolveParams s) {
    const int c = static_cast<int>(blockIdx.y) * kSlice + static_cast<int>(threadIdx.x);
    if (c >= s.classes_in_wave) return;
    const bool finite = is_finite(s, c);
    const float scale = class_scale(s, c), undo = 1.0f / scale;
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * kRows + threadIdx.y; i < s.nodes;
         i += static_cast<int64_t>(gridDim.x) * kRows) {
        const bool keep = s.exact && s.isolated[i] != 0;
        const float value = keep ? s.scores[i * s.num_classes + c] : s.x[i * s.stride + c] * sqrtf(s.degree[i]) * undo;
        if (keep) s.x[i * s.stride + c] = finite ? value * scale : 0.0f;  // the residual is that of the result
        s.out[i * s.num_classes + c] = finite ? value : __int_as_float(kNan);
    }
}

__global__ void report_kernel(const SolveParams s, int32_t* iterations, double* residuals) {
    const int c = static_cast<int>(threadIdx.x);
    if (c >= s.classes_in_wave) return;
    const ClassState state = s.classes[c];
    const bool finite = is_finite(s, c);
    if (iterations != nullptr) iterations[c] = finite ? state.iterations : 0;
    if (residuals == nullptr) return;
    const double residual = state.rho_start > 0.0 ? sqrt(state.rho / state.rho_start) : 0.0;
    residuals[c] = finite ? residual : static_cast<double>(__int_as_float(kNan));
}

class CudaSolver {
public:
    CudaSolver(const PropagateParams& p, Workspace& ws, cudaStream_t stream)
        : p_(p), blocks_(std::min<int64_t>(kMaxBlocks, ceil_div(p.num_nodes, kRows))), stream_(stream) {
        const int64_t wave = round_up(std::min<int64_t>(kMaxWave, p.num_classes), kGranule);
        s_.indptr = p.indptr;
        s_.indices = p.indices;
        s_.weights = static_cast<const float*>(p.weights);
        s_.degrees = static_cast<const float*>(p.degrees);
        s_.values = ws.take<float>("values", p.num_links);
        s_.degree = ws.take<float>("degree", p.num_nodes);
        s_.isolated = ws.take<uint8_t>("isolated", p.num_nodes);
        s_.p = ws.take<float>("p", p.num_nodes * wave);
        s_.q = ws.take<float>("q", p.num_nodes * wave);
        s_.x = ws.take<float>("x", p.num_nodes * wave);
        s_.r = ws.take<float>("r", p.num_nodes * wave);
        s_.largest = ws.take<int>("largest", wave);
        s_.partials = ws.take<double>("partials", blocks_ * 2 * wave);
        s_.classes = ws.take<ClassState>("classes", wave);
        s_.nodes = p.num_nodes;
        s_.num_classes = p.num_classes;
        s_.alpha = static_cast<float>(p.alpha);
        s_.exact = p.mode == SolveMode::kExact;
    }

    void run() {
        launch(links_kernel, dim3(static_cast<unsigned>(blocks_)), block(), 0, stream_, s_);
        OVS_CHECK_LAUNCH("lp_graph: links");
        for (int64_t c0 = 0; c0 < p_.num_classes; c0 += kMaxWave) {
            s_.classes_in_wave = static_cast<int>(std::min<int64_t>(kMaxWave, p_.num_classes - c0));
            s_.stride = static_cast<int>(round_up(s_.classes_in_wave, kGranule));
            s_.scores = static_cast<const float*>(p_.scores) + c0;
            s_.out = static_cast<float*>(p_.out) + c0;
            solve();
            report(c0);
        }
    }

private:
    static dim3 block() { return dim3(kWarpSize, kRows); }
    dim3 grid() const {
        return dim3(static_cast<unsigned>(blocks_), static_cast<unsigned>(ceil_div(s_.stride, kSlice)));
    }

    void scalars(Scalars what) {
        launch(scalars_kernel, dim3(static_cast<unsigned>(s_.stride)), dim3(kScalarThreads), 0, stream_, s_.partials,
               s_.classes, blocks_, s_.stride, what, p_.tol);
        OVS_CHECK_LAUNCH("lp_graph: scalars");
    }

    void solve() {
        OVS_CUDA(cudaMemsetAsync(s_.largest, 0, static_cast<std::size_t>(s_.stride) * sizeof(int), stream_));
        launch(scan_kernel, grid(), block(), 0, stream_, s_);
        OVS_CHECK_LAUNCH("lp_graph: scan");
        launch(pack_kernel, grid(), block(), 0, stream_, s_);
        OVS_CHECK_LAUNCH("lp_graph: pack");
        scalars(Scalars::kStart);
        for (int step = num_steps(p_); step > 0; --step) {
            launch(multiply_kernel<ApplyEpilogue>, grid(), block(), 0, stream_, s_);
            OVS_CHECK_LAUNCH("lp_graph: multiply");
            scalars(Scalars::kStep);
            launch(update_kernel, grid(), block(), 0, stream_, s_);
            OVS_CHECK_LAUNCH("lp_graph: update");
            scalars(Scalars::kFinish);
        }
        launch(unpack_kernel, grid(), block(), 0, stream_, s_);
        OVS_CHECK_LAUNCH("lp_graph: unpack");
    }

    void report(int64_t c0) {
        if (p_.iterations == nullptr && p_.residuals == nullptr) return;
        if (s_.exact && p_.residuals != nullptr) {
            launch(multiply_kernel<ResidualEpilogue>, grid(), block(), 0, stream_, s_);
            OVS_CHECK_LAUNCH("lp_graph: residual");
            scalars(Scalars::kResidual);
        }
        launch(report_kernel, dim3(1), dim3(kMaxWave), 0, stream_, s_,
               p_.iterations == nullptr ? nullptr : p_.iterations + c0,
               p_.residuals == nullptr ? nullptr : p_.residuals + c0);
        OVS_CHECK_LAUNCH("lp_graph: report");
    }

    const PropagateParams& p_;
    int64_t blocks_;
    cudaStream_t stream_;
    SolveParams s_ = {};
};

}  // namespace

std::size_t lp_graph_cuda_workspace_bytes(const PropagateParams& p) {
    check_params(p);
    Workspace counter(nullptr, 0);
    CudaSolver(p, counter, nullptr);
    return counter.used();
}

void lp_graph_cuda(const PropagateParams& p, void* workspace, std::size_t workspace_bytes, int device, void* stream) {
    check_params(p);
    if (p.num_nodes == 0 || p.num_classes == 0) return;
    const DeviceGuard guard(device);
    Workspace ws(workspace, workspace_bytes);
    CudaSolver(p, ws, as_stream(stream)).run();
}

}  // namespace ovs
