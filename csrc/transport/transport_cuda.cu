// sinkhorn and transport_map on a GPU: one sequence of launches on the caller's stream, nothing comes back to the host.
//
//   masses, spread, decide, build                    scales of the classes, domain, E (K or its logarithm)
//   (rows, finish rows, columns, finish columns, step) x max_iter
//                                                    kernels return at once after the stop, so that a fixed number of
//                                                    iterations can be queued
//   potentials, or the read-out; report
#include <algorithm>

#include "common/device.cuh"
#include "common/launch.cuh"
#include "common/workspace.h"
#include "transport/transport_cuda_tiles.cuh"

namespace ovs {
namespace {

constexpr int kThreads = 256;
constexpr int kSpreadBlocks = 256;
constexpr int kWantedBlocks = 1024;  // of a product: enough for the largest GPU
constexpr int kMaxSplits = 32;
constexpr float kLeastExponent = -1e30f;  // of x: sums of two stay finite

// Sums of a row of a and b. A block per class.
__global__ void masses_kernel(const DeviceArrays d) {
    for (int64_t c = blockIdx.x; c < d.classes; c += gridDim.x) {
        double sums[2] = {0.0, 0.0};
        for (int64_t i = threadIdx.x; i < d.rows; i += kThreads) sums[0] += d.a[c * d.rows + i];
        const float* b = d.b_per_class ? d.b + c * d.columns : d.b;
        for (int64_t j = threadIdx.x; b != nullptr && j < d.columns; j += kThreads) sums[1] += b[j];
        block_sum<kThreads>(sums);
        if (threadIdx.x != 0) continue;
        const double mass = b == nullptr ? 1.0 : sums[1];
        DeviceScale& scale = d.scales[c];
        scale.empty = sums[0] > 0.0 ? 0 : 1;
        scale.a = scale.empty != 0 ? 0.0 : 1.0 / sums[0];
        scale.b = b == nullptr ? 1.0 / static_cast<double>(d.columns) : 1.0 / mass;
        scale.mass = d.normalize ? 1.0f : static_cast<float>(mass);
    }
}

// Smallest and largest of the threads' values, in thread 0.
__device__ void block_spread(float& low, float& high) {
    GPU_SHARED(float, lows, [kThreads]);
    GPU_SHARED(float, highs, [kThreads]);
    lows[threadIdx.x] = low;
    highs[threadIdx.x] = high;
    for (int half = kThreads / 2; half > 0; half /= 2) {
        __syncthreads();
        if (static_cast<int>(threadIdx.x) >= half) continue;
        lows[threadIdx.x] = fminf(lows[threadIdx.x], lows[threadIdx.x + half]);
        highs[threadIdx.x] = fmaxf(highs[threadIdx.x], highs[threadIdx.x + half]);
    }
    if (threadIdx.x != 0) return;
    low = lows[0];
    high = highs[0];
}

__global__ void spread_kernel(const DeviceArrays d) {
    float low = load_cost(d, 0), high = low;
    const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads, count = d.rows * d.columns;
    for (int64_t at = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; at < count; at += stride) {
        const float cost = load_cost(d, at);
        low = fminf(low, cost);
        high = fmaxf(high, cost);
    }
    block_spread(low, high);
    if (threadIdx.x != 0) return;
    d.lows[blockIdx.x] = low;
    d.highs[blockIdx.x] = high;
}

// One block. The domain, and whether there is any class to solve for.
__global__ void decide_kernel(const DeviceArrays d, const Domain domain) {
    GPU_SHARED(int, any, [1]);
    static_assert(kSpreadBlocks == kThreads, "one thread per block of spread_kernel");
    if (threadIdx.x == 0) any[0] = 0;
    float low = d.lows[threadIdx.x], high = d.highs[threadIdx.x];
    block_spread(low, high);
    for (int64_t c = threadIdx.x; c < d.classes; c += kThreads) {
        if (d.scales[c].empty == 0) atomicOr(any, 1);
    }
    __syncthreads();
    if (threadIdx.x != 0) return;
    const double spread = static_cast<double>(high) - low;
    const bool wide = domain == Domain::kAuto && spread / d.wide_epsilon > kPlainRange;
    d.state->least = low;
    d.state->in_log = domain == Domain::kLog || wide ? 1 : 0;
    d.state->stopped = any[0] != 0 ? 0 : 1;
    d.state->iterations = 0;
    d.state->guards = 0;
}

// E, nu = 1, and what a class that is never solved for leaves.
__global__ void build_kernel(const DeviceArrays d) {
    const bool in_log = d.state->in_log != 0;
    const float least = d.state->least;
    const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
    const int64_t start = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
    for (int64_t at = start; at < d.rows * d.columns; at += stride) {
        const float x = (least - load_cost(d, at)) * d.inverse_epsilon;
        d.matrix[at] = in_log ? fmaxf(x, kLeastExponent) : expf(x);
    }
    for (int64_t at = start; at < d.classes * d.columns; at += stride) {
        d.nu[at] = in_log ? 0.0f : 1.0f;
        d.column_sums[at] = 1.0f;
    }
    for (int64_t at = start; at < d.classes * d.rows; at += stride) {
        d.mu[at] = 0.0f;
        d.row_sums[at] = 1.0f;
    }
}

// Adds the parts of K nu, advances mu, and measures the error of the last iteration; only that with `measure`.
// grid: (row blocks, classes).
__global__ void finish_rows_kernel(const DeviceArrays d, const int splits, const bool measure) {
    if (d.state->stopped != 0 && !measure) return;
    const bool in_log = d.state->in_log != 0;
    const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
    for (int64_t c = blockIdx.y; c < d.classes; c += gridDim.y) {
        double error = 0.0;
        const int64_t at = c * d.rows + i;
        if (i < d.rows && d.scales[c].empty == 0) {
            const float a = unit_a(d, c, i), before = d.row_sums[at];
            float sum = add_parts(d, at, d.classes * d.rows, splits, in_log);
            if (!in_log && sum < kSmallestDenominator) {
                sum = kSmallestDenominator;
                if (!measure) atomicAdd(&d.state->guards, 1ull);  // integers: no order
            }
            if (d.state->iterations > 0 && a > 0.0f) {
                const double gap = in_log ? a * expm1(static_cast<double>(sum) - before) : a * (sum / before) - a;
                error = fabs(gap);
            }
            if (!measure) {
                d.row_sums[at] = sum;
                d.mu[at] = in_log ? logf(a) - sum : a / sum;
            }
        }
        error = block_sum<kThreads>(error);
        if (threadIdx.x == 0) d.partial_errors[c * d.row_blocks + blockIdx.x] = error;
    }
}

// grid: (column blocks, classes).
__global__ void finish_columns_kernel(const DeviceArrays d, const int splits) {
    if (d.state->stopped != 0) return;
    const bool in_log = d.state->in_log != 0;
    const int64_t j = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
    if (j >= d.columns) return;
    for (int64_t c = blockIdx.y; c < d.classes; c += gridDim.y) {
        const int64_t at = c * d.columns + j;
        if (d.scales[c].empty != 0) continue;
        const float b = unit_b(d, c, j);
        float sum = add_parts(d, at, d.classes * d.columns, splits, in_log);
        if (!in_log && sum < kSmallestDenominator) {
            sum = kSmallestDenominator;
            atomicAdd(&d.state->guards, 1ull);
        }
        d.column_sums[at] = sum;
        d.nu[at] = in_log ? logf(b) - sum : b / sum;
    }
}

__device__ __forceinline__ double class_error(const DeviceArrays& d, int64_t c) {
    double sum = 0.0;
    for (int block = 0; block < d.row_blocks; ++block) sum += d.partial_errors[c * d.row_blocks + block];
    return sum;
}

// One block: counts the iteration, and stops after the one that found the error of its predecessor small enough.
__global__ void step_kernel(const DeviceArrays d) {
    GPU_SHARED(int, large, [1]);
    if (d.state->stopped != 0) return;
    __syncthreads();  // everybody has read it
    if (threadIdx.x == 0) large[0] = 0;
    __syncthreads();
    for (int64_t c = threadIdx.x; c < d.classes; c += kThreads) {
        if (!(class_error(d, c) <= d.tol)) atomicOr(large, 1);
    }
    __syncthreads();
    if (threadIdx.x != 0) return;
    d.state->iterations += 1;
    if (d.state->iterations > 1 && !d.exact_iters && large[0] == 0) d.state->stopped = 1;
}

__global__ void potentials_kernel(const DeviceArrays d, float* f, float* g) {
    const bool in_log = d.state->in_log != 0;
    const double least = d.state->least;
    const float empty = __int_as_float(static_cast<int>(0xff800000u));  // -inf
    const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
    const int64_t start = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
    for (int64_t at = start; at < d.classes * d.rows; at += stride) {
        const int64_t c = at / d.rows;
        const double sum = d.row_sums[at], log_sum = in_log ? sum : log(sum);
        const double log_a =
            log(static_cast<double>(unit_a(d, c, at % d.rows))) + log(static_cast<double>(d.scales[c].mass));
        f[at] = d.scales[c].empty != 0 ? empty : static_cast<float>(least + d.wide_epsilon * (log_a - log_sum));
    }
    for (int64_t at = start; at < d.classes * d.columns; at += stride) {
        const int64_t c = at / d.columns;
        const double sum = d.column_sums[at], log_sum = in_log ? sum : log(sum);
        const double log_b = log(static_cast<double>(unit_b(d, c, at % d.columns)));
        g[at] = d.scales[c].empty != 0 ? empty : static_cast<float>(d.wide_epsilon * (log_b - log_sum));
    }
}

// Adds the parts of a read-out. grid: (blocks, classes).
template <bool kColumns>
__global__ void finish_readout_kernel(const DeviceArrays d, const int splits, float* map) {
    const bool in_log = d.state->in_log != 0;
    const int64_t outer = kColumns ? d.columns : d.rows;
    const int64_t o = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
    if (o >= outer) return;
    for (int64_t c = blockIdx.y; c < d.classes; c += gridDim.y) {
        const int64_t at = c * outer + o;
        const float sum = add_parts(d, at, d.classes * outer, splits, false), mass = d.scales[c].mass;
        float value = mass * sum;
        if (kColumns) {
            const float b = unit_b(d, c, o);
            value = b > 0.0f ? b * mass * (in_log ? sum : sum / d.column_sums[at]) : 0.0f;
        } else if (!in_log) {
            value = d.mu[at] * mass * sum;
        }
        map[at] = d.scales[c].empty != 0 ? __int_as_float(static_cast<int>(0xff800000u)) : value;
    }
}

// Sums the sources' read-out. A block per class.
__global__ void plan_cost_kernel(const DeviceArrays d, float* map) {
    for (int64_t c = blockIdx.x; c < d.classes; c += gridDim.x) {
        double sum = 0.0;
        for (int64_t i = threadIdx.x; i < d.rows; i += kThreads) sum += d.paid[c * d.rows + i];
        sum = block_sum<kThreads>(sum);
        if (threadIdx.x == 0) map[c] = static_cast<float>(sum);
    }
}

// One block.
__global__ void report_kernel(const DeviceArrays d, double* errors, int64_t* status) {
    for (int64_t c = threadIdx.x; errors != nullptr && c < d.classes; c += kThreads) {
        errors[c] = d.scales[c].empty != 0 ? 0.0 : class_error(d, c);
    }
    if (status == nullptr || threadIdx.x != 0) return;
    status[0] = d.state->iterations;
    status[1] = static_cast<int64_t>(d.state->guards);
    status[2] = d.state->in_log;
}

// Without rows or columns: every class is empty.
__global__ void nothing_kernel(float* to, const int64_t count) {
    const int64_t at = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
    if (at < count) to[at] = __int_as_float(static_cast<int>(0xff800000u));
}
__global__ void nothing_to_report_kernel(double* errors, int64_t* status, const int64_t classes, const int64_t in_log) {
    const int64_t c = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
    if (errors != nullptr && c < classes) errors[c] = 0.0;
    if (status != nullptr && c < 3) status[c] = c == 2 ? in_log : 0;
}

class CudaSolver {
public:
    CudaSolver(const TransportParams& p, Workspace& ws, cudaStream_t stream) : p_(p), stream_(stream) {
        const int64_t of_rows = p.num_classes * p.num_rows, of_columns = p.num_classes * p.num_columns;
        constexpr double kLargest = 1e37;  // so that it stays finite in float32
        d_.cost = p.cost;
        d_.a = static_cast<const float*>(p.a);
        d_.b = static_cast<const float*>(p.b);
        d_.cost_type = p.cost_type;
        d_.b_per_class = p.b_per_class;
        d_.exact_iters = p.exact_iters;
        d_.normalize = p.normalize;
        d_.rows = p.num_rows;
        d_.columns = p.num_columns;
        d_.classes = p.num_classes;
        d_.epsilon = static_cast<float>(p.epsilon);
        d_.inverse_epsilon = static_cast<float>(std::min(1.0 / p.epsilon, kLargest));
        d_.wide_epsilon = p.epsilon;
        d_.tol = p.tol;
        d_.row_blocks = static_cast<int>(ceil_div(p.num_rows, kThreads));
        d_.state = ws.take<DeviceState>("state", 1);
        d_.scales = ws.take<DeviceScale>("scales", p.num_classes);
        d_.matrix = ws.take<float>("matrix", p.num_rows * p.num_columns);
        d_.mu = ws.take<float>("mu", of_rows);
        d_.row_sums = ws.take<float>("row_sums", of_rows);
        d_.nu = ws.take<float>("nu", of_columns);
        d_.column_sums = ws.take<float>("column_sums", of_columns);
        const int64_t parts =
            std::max(splits(p.num_rows, p.num_columns) * of_rows, splits(p.num_columns, p.num_rows) * of_columns);
        d_.partials = ws.take<float>("partials", parts);
        d_.partial_top = ws.take<float>("partial_top", p.domain == Domain::kPlain ? 0 : parts);
        d_.lows = ws.take<float>("lows", kSpreadBlocks);
        d_.highs = ws.take<float>("highs", kSpreadBlocks);
        d_.partial_errors = ws.take<double>("partial_errors", p.num_classes * d_.row_blocks);
        d_.paid = ws.take<float>("paid", p.readout == Readout::kPlanCost ? of_rows : 0);
    }

    void run() {
        prepare();
        for (int iteration = 0; iteration < p_.max_iter; ++iteration) {
            multiply<false>(false);
            launch(finish_rows_kernel, finish_grid(d_.rows), dim3(kThreads), 0, stream_, d_,
                   splits(d_.rows, d_.columns), false);
            OVS_CHECK_LAUNCH("sinkhorn: finish rows");
            multiply<true>(false);
            launch(finish_columns_kernel, finish_grid(d_.columns), dim3(kThreads), 0, stream_, d_,
                   splits(d_.columns, d_.rows));
            OVS_CHECK_LAUNCH("sinkhorn: finish columns");
            launch(step_kernel, dim3(1), dim3(kThreads), 0, stream_, d_);
            OVS_CHECK_LAUNCH("sinkhorn: step");
        }
        report();
        read();
    }

    // All classes are empty.
    static void write_nothing(const TransportParams& p, cudaStream_t stream) {
        const auto clear = [&](void* to, int64_t count) {
            if (to == nullptr || count == 0) return;
            launch(nothing_kernel, dim3(blocks_for(count)), dim3(kThreads), 0, stream, static_cast<float*>(to), count);
            OVS_CHECK_LAUNCH("sinkhorn: nothing");
        };
        const int64_t of_rows = p.num_classes * p.num_rows, of_columns = p.num_classes * p.num_columns;
        clear(p.f, of_rows);
        clear(p.g, of_columns);
        const bool source = p.readout == Readout::kSource, receiver = p.readout == Readout::kReceiver;
        clear(p.map, source ? of_rows : receiver ? of_columns : p.num_classes);
        const int64_t in_log = p.domain == Domain::kLog ? 1 : 0;
        launch(nothing_to_report_kernel, dim3(blocks_for(p.num_classes + 3)), dim3(kThreads), 0, stream, p.errors,
               p.status, p.num_classes, in_log);
        OVS_CHECK_LAUNCH("sinkhorn: nothing to report");
    }

private:
    static unsigned blocks_for(int64_t count) { return static_cast<unsigned>(ceil_div(count, kThreads)); }
    static unsigned some_blocks(int64_t count) {
        return static_cast<unsigned>(std::clamp<int64_t>(ceil_div(count, kThreads), 1, kWantedBlocks));
    }
    unsigned slices() const { return static_cast<unsigned>(ceil_div(p_.num_classes, kSlice)); }
    dim3 finish_grid(int64_t outer) const {
        return dim3(blocks_for(outer), static_cast<unsigned>(std::min<int64_t>(d_.classes, kMaxGridYZ)));
    }

    // Parts that the inner extent of a product is cut into. From sizes alone, so that no bit depends on the device.
    int splits(int64_t outer, int64_t inner) const {
        const int64_t blocks = ceil_div(outer, kOuter) * slices();
        const int64_t most = std::min<int64_t>(kMaxSplits, ceil_div(inner, 2 * kChunk));
        return static_cast<int>(
            std::clamp<int64_t>(kWantedBlocks / std::max<int64_t>(1, blocks), 1, std::max<int64_t>(1, most)));
    }
    int64_t per_split(int64_t outer, int64_t inner) const {
        return round_up(ceil_div(inner, splits(outer, inner)), kChunk);
    }
    template <bool kColumns>
    dim3 product_grid() const {
        const int64_t outer = kColumns ? d_.columns : d_.rows, inner = kColumns ? d_.rows : d_.columns;
        return dim3(static_cast<unsigned>(ceil_div(outer, kOuter)), slices(),
                    static_cast<unsigned>(splits(outer, inner)));
    }

    template <bool kColumns>
    void multiply(bool always) {
        const int64_t outer = kColumns ? d_.columns : d_.rows, inner = kColumns ? d_.rows : d_.columns;
        launch(product_kernel<kColumns>, product_grid<kColumns>(), dim3(kThreadsX, kThreadsY), 0, stream_, d_,
               per_split(outer, inner), always);
        OVS_CHECK_LAUNCH("sinkhorn: product");
    }

    void prepare() {
        launch(masses_kernel, dim3(static_cast<unsigned>(std::min<int64_t>(d_.classes, kWantedBlocks))), dim3(kThreads),
               0, stream_, d_);
        OVS_CHECK_LAUNCH("sinkhorn: masses");
        launch(spread_kernel, dim3(kSpreadBlocks), dim3(kThreads), 0, stream_, d_);
        OVS_CHECK_LAUNCH("sinkhorn: spread");
        launch(decide_kernel, dim3(1), dim3(kThreads), 0, stream_, d_, p_.domain);
        OVS_CHECK_LAUNCH("sinkhorn: decide");
        launch(build_kernel, dim3(some_blocks(d_.rows * d_.columns)), dim3(kThreads), 0, stream_, d_);
        OVS_CHECK_LAUNCH("sinkhorn: build");
    }

    void report() {
        if (p_.errors != nullptr) {
            multiply<false>(true);
            launch(finish_rows_kernel, finish_grid(d_.rows), dim3(kThreads), 0, stream_, d_,
                   splits(d_.rows, d_.columns), true);
            OVS_CHECK_LAUNCH("sinkhorn: measure");
        }
        if (p_.errors == nullptr && p_.status == nullptr) return;
        launch(report_kernel, dim3(1), dim3(kThreads), 0, stream_, d_, p_.errors, p_.status);
        OVS_CHECK_LAUNCH("sinkhorn: report");
    }

    template <bool kColumns>
    void read_out(float* map) {
        const int64_t outer = kColumns ? d_.columns : d_.rows, inner = kColumns ? d_.rows : d_.columns;
        launch(readout_kernel<kColumns>, product_grid<kColumns>(), dim3(kThreadsX, kThreadsY), 0, stream_, d_,
               per_split(outer, inner));
        OVS_CHECK_LAUNCH("transport_map: read-out");
        launch(finish_readout_kernel<kColumns>, finish_grid(outer), dim3(kThreads), 0, stream_, d_,
               splits(outer, inner), map);
        OVS_CHECK_LAUNCH("transport_map: finish read-out");
    }

    void read() {
        switch (p_.readout) {
            case Readout::kNone:
                launch(potentials_kernel, dim3(some_blocks(d_.classes * std::max(d_.rows, d_.columns))), dim3(kThreads),
                       0, stream_, d_, static_cast<float*>(p_.f), static_cast<float*>(p_.g));
                OVS_CHECK_LAUNCH("sinkhorn: potentials");
                break;
            case Readout::kReceiver:
                read_out<true>(static_cast<float*>(p_.map));
                break;
            case Readout::kSource:
                read_out<false>(static_cast<float*>(p_.map));
                break;
            case Readout::kPlanCost:
                read_out<false>(d_.paid);
                launch(plan_cost_kernel, dim3(static_cast<unsigned>(std::min<int64_t>(d_.classes, kWantedBlocks))),
                       dim3(kThreads), 0, stream_, d_, static_cast<float*>(p_.map));
                OVS_CHECK_LAUNCH("transport_map: plan cost");
                break;
        }
    }

    const TransportParams& p_;
    cudaStream_t stream_;
    DeviceArrays d_ = {};
};

}  // namespace

std::size_t transport_cuda_workspace_bytes(const TransportParams& p) {
    check_params(p);
    Workspace counter(nullptr, 0);
    CudaSolver(p, counter, nullptr);
    return counter.used();
}

void transport_cuda(const TransportParams& p, void* workspace, std::size_t workspace_bytes, int device, void* stream) {
    check_params(p);
    OVS_REQUIRE(ceil_div(p.num_classes, kSlice) <= kMaxGridYZ, "sinkhorn: more classes than a launch can have");
    if (p.num_classes == 0) return;
    const DeviceGuard guard(device);
    if (p.num_rows == 0 || p.num_columns == 0) {
        CudaSolver::write_nothing(p, as_stream(stream));
        return;
    }
    Workspace ws(workspace, workspace_bytes);
    CudaSolver(p, ws, as_stream(stream)).run();
}

}  // namespace ovs
