// markov_velocity on a GPU: launches on the caller's stream, in stages, so that the caller may look at `running`
// between batches of steps and stop when it is 0. No stage waits. A step is
//
//   product   x A for 128 columns, some of the rows and up to 32 classes per block
//   combine   F = (sums over the blocks of rows, in order) * c, and its maximum
//   finish    g = F scaled, the rule's test, times, the next x = g * r
//   keep      the list of classes that still run
//
// and all of them return at once where no class runs. Maxima and counts are made with integer atomics, which do not
// depend on the order.
#include <algorithm>

#include "common/device.cuh"
#include "common/reduce.cuh"
#include "common/workspace.h"
#include "markov/markov_math.h"
#include "markov/markov_storage.cuh"

namespace ovs {
namespace {

constexpr int kLane = 4;                         // columns per thread of the product
constexpr int kTileColumns = kLane * kWarpSize;  // 128
constexpr int kTileClasses = 8;                  // classes per thread, and so per warp
constexpr int kMaxWarps = 4;
constexpr int kSlice = kTileClasses * kMaxWarps;  // classes per block at most
constexpr int kDepth = 16;                        // rows in shared memory at a time
constexpr int64_t kMaxSplits = 8;                 // blocks that share the rows of a tile
constexpr int64_t kWantedBlocks = 528;            // four for each multiprocessor of a large card
constexpr int kThreads = 256;                     // of the kernels without a product
constexpr int kNanBits = 0x7fffffff, kInfinityBits = 0x7f800000;

enum class ClassKind : int { kBad, kWithoutMass, kUsual };

struct ClassNotes {
    int largest;    // bits of the maximum of F
    int low, high;  // bits of the extremes of g over the columns that are not empty
    int open;       // places that may yet be reached
    int moving;     // places that changed by more than the threshold
    int last_step;
    int still_open;  // after the last step
    ClassKind kind;
};

struct ChainParams {
    const void* attention;       // [N, N]
    const float *r, *c;          // [N]
    const float* distributions;  // [C, N]
    float* velocity;             // [C, N] the times until the end
    float* times;                // [C, N] or null
    int32_t* steps;              // [C] or null
    int64_t* unreached;          // [C] or null
    float *g, *x;                // [C, N]
    float* partial;              // [splits, C, N]
    int32_t* active;             // [C] the classes that run
    ClassNotes* notes;           // [C]
    int32_t* running;            // scalar: how many run
    int64_t nodes, num_classes, splits, split_rows;
    float threshold, min_time;
    int max_steps;
    MarkovRule rule;
    StateScale scale;
    bool interpolate;
};

__device__ __forceinline__ void reset(ClassNotes& n) {
    n.largest = n.open = n.moving = n.high = 0;
    n.low = kInfinityBits;
}

__device__ __forceinline__ float scale_factor(const ChainParams& s, float largest) {
    if (s.scale == StateScale::kMax) return inverse_sum(largest);
    return s.scale == StateScale::kN ? static_cast<float>(s.nodes) : 1.0f;
}

// What goes on: the state divided by its maximum, or the state itself.
__device__ __forceinline__ float chain_state(const ChainParams& s, float g) {
    return s.scale == StateScale::kN ? g / static_cast<float>(s.nodes) : g;
}

// Over the lanes of a warp; all of them must take part.
__device__ __forceinline__ int warp_largest(int value) {
    for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
        value = max(value, __shfl_xor_sync(kFullMask, value, offset));
    }
    return value;
}
__device__ __forceinline__ int warp_count(bool value) { return __popc(__ballot_sync(kFullMask, value ? 1 : 0)); }

// Entries verified and their maximum. grid: (blocks, classes).
__global__ void scan_kernel(const ChainParams s) {
    const int64_t k = blockIdx.y, j = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
    const float f = j < s.nodes ? s.distributions[k * s.nodes + j] + 0.0f : 0.0f;  // -0 becomes 0
    const int bad = warp_count(!is_valid(f)), largest = warp_largest(is_valid(f) ? __float_as_int(f) : 0);
    if (threadIdx.x % kWarpSize != 0) return;
    if (bad > 0) atomicMax(&s.notes[k].moving, 1);
    atomicMax(&s.notes[k].largest, largest);
}

__global__ void clear_kernel(const ChainParams s) {
    const int64_t k = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
    if (k == 0) *s.running = static_cast<int32_t>(s.num_classes);
    if (k >= s.num_classes) return;
    reset(s.notes[k]);
    s.notes[k].last_step = 0;
    s.active[k] = static_cast<int32_t>(k);
}

// What the scan found, before its counters are used for the first state.
__global__ void judge_kernel(const ChainParams s) {
    const int64_t k = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
    if (k >= s.num_classes) return;
    ClassNotes& n = s.notes[k];
    const bool scaled = s.r[0] == s.r[0] && s.c[0] == s.c[0];
    const bool has_mass = __int_as_float(n.largest) >= kSmallestSum;
    n.kind = !scaled || n.moving != 0 ? ClassKind::kBad : has_mass ? ClassKind::kUsual : ClassKind::kWithoutMass;
    n.moving = 0;
}

// What a place means for its class after a step.
struct PlaceNotes {
    bool open, moving, counts;  // counts: for the extremes of g
};

// Adds the notes of a warp's places to those of their class; g is the state. All lanes must take part.
__device__ __forceinline__ void add_notes(ClassNotes& n, const ChainParams& s, const PlaceNotes& place, float g) {
    const bool first = threadIdx.x % kWarpSize == 0;
    if (s.rule != MarkovRule::kSettling) {
        const int open = warp_count(place.open);
        if (first && open > 0) atomicAdd(&n.open, open);
        return;
    }
    // The bits of numbers that are not negative order like integers; the smallest is found as the largest negative.
    const int bits = __float_as_int(g);
    const int moving = warp_count(place.moving), high = warp_largest(bits);
    const int low = -warp_largest(place.counts ? -bits : -kInfinityBits);
    if (!first) return;
    if (moving > 0) atomicAdd(&n.moving, moving);
    atomicMax(&n.high, high);
    atomicMin(&n.low, low);
}

// g_0, x_0, and the times that are known before the first step. grid: (blocks, classes).
__global__ void first_kernel(const ChainParams s) {
    const int64_t k = blockIdx.y, j = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
    ClassNotes& n = s.notes[k];
    if (n.kind != ClassKind::kUsual) return;
    PlaceNotes place = {false, false, j < s.nodes};
    float g = 0.0f;
    if (j < s.nodes) {
        const int64_t at = k * s.nodes + j;
        g = s.distributions[at] * scale_factor(s, __int_as_float(n.largest)) + 0.0f;
        s.g[at] = g;
        s.x[at] = chain_state(s, g) * s.r[j];
        const bool reached = s.rule == MarkovRule::kFirstPassage && g > s.threshold;
        s.velocity[at] = s.rule == MarkovRule::kSettling ? 1.0f : reached ? 0.0f : -1.0f;
        place.open = !reached && (s.rule == MarkovRule::kDeltaLiteral || s.c[j] > 0.0f);
    }
    add_notes(n, s, place, g);
}

// grid: (tiles of columns, splits of rows, slices of classes); block: (32, warps).
template <class Storage>
__global__ void __launch_bounds__(kWarpSize* kMaxWarps) product_kernel(const ChainParams s) {
    GPU_SHARED(float, s_a, [kDepth][kTileColumns]);
    GPU_SHARED(float, s_x, [kDepth][kSlice]);
    const int warps = static_cast<int>(blockDim.y), slice = warps * kTileClasses;
    const int first_class = static_cast<int>(blockIdx.z) * slice, running = *s.running;
    if (first_class >= running) return;
    const int thread = thread_in_block(), threads = warps * kWarpSize;
    const int lane = static_cast<int>(threadIdx.x), own = static_cast<int>(threadIdx.y) * kTileClasses;
    const int64_t column = static_cast<int64_t>(blockIdx.x) * kTileColumns;
    const int64_t begin = static_cast<int64_t>(blockIdx.y) * s.split_rows, end = min(s.nodes, begin + s.split_rows);
    const Storage* a = static_cast<const Storage*>(s.attention);
    const bool idle = first_class + own >= running;
    float sums[kTileClasses][kLane] = {};
    for (int64_t row = begin; row < end; row += kDepth) {
        __syncthreads();  // the rows before may still be read
        for (int at = thread; at < kDepth * kTileColumns; at += threads) {
            const int64_t i = row + at / kTileColumns, j = column + at % kTileColumns;
            s_a[at / kTileColumns][at % kTileColumns] = i < end && j < s.nodes ? widen(a[i * s.nodes + j]) : 0.0f;
        }
        for (int at = thread; at < kDepth * slice; at += threads) {
            const int64_t i = row + at % kDepth;
            const int k = at / kDepth;
            const bool used = first_class + k < running && i < end;
            s_x[at % kDepth][k] = used ? s.x[s.active[first_class + k] * s.nodes + i] : 0.0f;
        }
        __syncthreads();
        if (idle) continue;
#pragma unroll
        for (int i = 0; i < kDepth; ++i) {
            float columns[kLane];
#pragma unroll
            for (int v = 0; v < kLane; ++v) columns[v] = s_a[i][v * kWarpSize + lane];
#pragma unroll
            for (int k = 0; k < kTileClasses; ++k) {
                const float x = s_x[i][own + k];
#pragma unroll
                for (int v = 0; v < kLane; ++v) sums[k][v] += x * columns[v];
            }
        }
    }
    for (int k = 0; k < kTileClasses && first_class + own + k < running; ++k) {
        float* to = s.partial + (static_cast<int64_t>(blockIdx.y) * s.num_classes + first_class + own + k) * s.nodes;
        for (int v = 0; v < kLane; ++v) {
            const int64_t j = column + v * kWarpSize + lane;
            if (j < s.nodes) to[j] = sums[k][v];
        }
    }
}

// F into the first of the partial sums, and its maximum. grid: (blocks, classes).
__global__ void combine_kernel(const ChainParams s) {
    const int64_t slot = blockIdx.y, j = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
    if (slot >= *s.running) return;
    float sum = 0.0f;
    if (j < s.nodes) {
        float* to = s.partial + slot * s.nodes + j;
        for (int64_t k = 0; k < s.splits; ++k) sum += to[k * s.num_classes * s.nodes];
        sum *= s.c[j];
        *to = sum;
    }
    const int largest = warp_largest(__float_as_int(sum));
    if (threadIdx.x % kWarpSize == 0) atomicMax(&s.notes[s.active[slot]].largest, largest);
}

// The rule for one place: its time becomes that after this step.
__device__ __forceinline__ PlaceNotes judge_place(const ChainParams& s, float& time, float now, float before,
                                                  bool empty, int step) {
    const float change = now - before, at = static_cast<float>(step);
    if (s.rule == MarkovRule::kFirstPassage) {
        if (time < 0.0f && now > s.threshold) {
            const float slope = step == 1 && s.scale == StateScale::kMax ? 1.0f - s.threshold : change;
            time = s.interpolate ? passage_time(at, now, slope, s.threshold) : at;
        }
        return {time < 0.0f && !empty, false, false};
    }
    const bool large = fabsf(change) > s.threshold;
    if (s.rule == MarkovRule::kDeltaLiteral) {
        if (time < 0.0f && !large) time = at;
        return {time < 0.0f, false, false};
    }
    if (large) time = at + 1.0f;
    return {false, large, !empty};
}

// grid: (blocks, classes).
__global__ void finish_kernel(const ChainParams s, int step) {
    const int64_t slot = blockIdx.y, j = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
    if (slot >= *s.running) return;
    const int64_t k = s.active[slot];
    ClassNotes& n = s.notes[k];
    PlaceNotes place = {false, false, false};
    float now = 0.0f;
    if (j < s.nodes) {
        const int64_t at = k * s.nodes + j;
        now = s.partial[slot * s.nodes + j] * scale_factor(s, __int_as_float(n.largest));
        const float before = s.g[at];
        s.g[at] = now;
        s.x[at] = chain_state(s, now) * s.r[j];
        place = judge_place(s, s.velocity[at], now, before, !(s.c[j] > 0.0f), step);
    }
    add_notes(n, s, place, now);
}

__device__ __forceinline__ bool goes_on(const ChainParams& s, const ClassNotes& n, int step) {
    if (n.kind != ClassKind::kUsual) return false;
    if (s.rule == MarkovRule::kSettling) {
        const float low = n.low == kInfinityBits ? kLargestFloat : __int_as_float(n.low);
        return __int_as_float(n.high) - low > s.threshold;
    }
    if (s.rule == MarkovRule::kFirstPassage && step > 0 && n.largest == 0) return false;  // its mass is lost
    return n.open > 0;
}

// One warp goes through the list of classes that run and keeps those that go on.
__global__ void keep_kernel(const ChainParams s, int step) {
    const int lane = static_cast<int>(threadIdx.x), running = *s.running;
    int kept = 0;
    __syncwarp();  // `running` is written below
    for (int base = 0; base < running; base += kWarpSize) {
        const bool present = base + lane < running;
        const int32_t k = present ? s.active[base + lane] : 0;
        bool keeps = false;
        if (present) {
            ClassNotes& n = s.notes[k];
            keeps = goes_on(s, n, step);
            n.last_step = step;
            n.still_open = keeps ? n.moving : 0;
            reset(n);
        }
        const unsigned ballot = __ballot_sync(kFullMask, keeps ? 1 : 0);
        __syncwarp();
        if (keeps) s.active[kept + __popc(ballot & ((1u << lane) - 1u))] = k;
        kept += __popc(ballot);
        __syncwarp();
    }
    if (lane == 0) *s.running = kept;
}

// The times of a class become what was asked for. grid: classes.
__global__ void report_kernel(const ChainParams s) {
    const int64_t k = blockIdx.x;
    const ClassNotes n = s.notes[k];
    int missing = 0;
    for (int64_t j = threadIdx.x; j < s.nodes; j += kThreads) {
        const int64_t at = k * s.nodes + j;
        float time = s.velocity[at], velocity;
        if (n.kind == ClassKind::kUsual) {
            if (time < 0.0f) {
                time = static_cast<float>(s.max_steps);
                ++missing;
            }
            velocity = velocity_of(time, s.min_time, s.rule);
        } else {
            const bool bad = n.kind == ClassKind::kBad;
            time = __int_as_float(bad ? kNanBits : kInfinityBits);
            velocity = bad ? time : -time;
            ++missing;
        }
        s.velocity[at] = velocity;
        if (s.times != nullptr) s.times[at] = time;
    }
    missing = block_sum<kThreads>(missing);
    if (threadIdx.x != 0) return;
    const bool settling = s.rule == MarkovRule::kSettling && n.kind == ClassKind::kUsual;
    if (s.steps != nullptr) s.steps[k] = n.last_step;
    if (s.unreached != nullptr) s.unreached[k] = settling ? n.still_open : missing;
}

class CudaChain {
public:
    CudaChain(const MarkovParams& p, Workspace& ws, cudaStream_t stream) : p_(p), stream_(stream) {
        const int64_t tiles = std::max<int64_t>(1, ceil_div(p.num_nodes, kTileColumns));
        const int64_t wanted = std::clamp<int64_t>(ceil_div(kWantedBlocks, tiles), 1, kMaxSplits);
        s_.split_rows = round_up(std::max<int64_t>(1, ceil_div(p.num_nodes, wanted)), kDepth);
        s_.splits = std::max<int64_t>(1, ceil_div(p.num_nodes, s_.split_rows));
        const int64_t state = p.num_classes * p.num_nodes;
        s_.g = ws.take<float>("g", state);
        s_.x = ws.take<float>("x", state);
        s_.partial = ws.take<float>("partial", s_.splits * state);
        s_.active = ws.take<int32_t>("active", p.num_classes);
        s_.notes = ws.take<ClassNotes>("notes", p.num_classes);
        s_.attention = p.attention;
        s_.r = static_cast<const float*>(p.r);
        s_.c = static_cast<const float*>(p.c);
        s_.distributions = static_cast<const float*>(p.distributions);
        s_.velocity = static_cast<float*>(p.velocity);
        s_.times = static_cast<float*>(p.times);
        s_.steps = p.steps;
        s_.unreached = p.unreached;
        s_.running = p.running;
        s_.nodes = p.num_nodes;
        s_.num_classes = p.num_classes;
        s_.threshold = static_cast<float>(p.threshold);
        s_.min_time = static_cast<float>(p.min_time);
        s_.max_steps = p.max_steps;
        s_.rule = p.rule;
        s_.scale = p.scale;
        s_.interpolate = p.interpolate;
    }

    void start() {
        by_class(clear_kernel, "clear");
        launch(scan_kernel, by_place(), dim3(kThreads), 0, stream_, s_);
        OVS_CHECK_LAUNCH("markov_velocity: scan");
        by_class(judge_kernel, "judge");
        launch(first_kernel, by_place(), dim3(kThreads), 0, stream_, s_);
        OVS_CHECK_LAUNCH("markov_velocity: first");
        keep(0);
    }

    template <class Storage>
    void steps() {
        const int64_t warps = std::min<int64_t>(kMaxWarps, ceil_div(p_.num_classes, kTileClasses));
        const dim3 grid(static_cast<unsigned>(ceil_div(p_.num_nodes, kTileColumns)), static_cast<unsigned>(s_.splits),
                        static_cast<unsigned>(ceil_div(p_.num_classes, warps * kTileClasses)));
        for (int step = p_.first_step; step <= p_.last_step; ++step) {
            launch(product_kernel<Storage>, grid, dim3(kWarpSize, static_cast<unsigned>(warps)), 0, stream_, s_);
            OVS_CHECK_LAUNCH("markov_velocity: product");
            launch(combine_kernel, by_place(), dim3(kThreads), 0, stream_, s_);
            OVS_CHECK_LAUNCH("markov_velocity: combine");
            launch(finish_kernel, by_place(), dim3(kThreads), 0, stream_, s_, step);
            OVS_CHECK_LAUNCH("markov_velocity: finish");
            keep(step);
        }
    }

    void report() {
        launch(report_kernel, dim3(static_cast<unsigned>(p_.num_classes)), dim3(kThreads), 0, stream_, s_);
        OVS_CHECK_LAUNCH("markov_velocity: report");
    }

private:
    dim3 by_place() const {
        return dim3(static_cast<unsigned>(ceil_div(p_.num_nodes, kThreads)), static_cast<unsigned>(p_.num_classes));
    }
    void by_class(void (*kernel)(const ChainParams), const char* name) {
        launch(kernel, dim3(static_cast<unsigned>(ceil_div(p_.num_classes, kThreads))), dim3(kThreads), 0, stream_, s_);
        OVS_CHECK_LAUNCH(name);
    }
    void keep(int step) {
        launch(keep_kernel, dim3(1), dim3(kWarpSize), 0, stream_, s_, step);
        OVS_CHECK_LAUNCH("markov_velocity: keep");
    }

    const MarkovParams& p_;
    cudaStream_t stream_;
    ChainParams s_ = {};
};

void check_cuda_params(const MarkovParams& p) {
    check_params(p);
    OVS_REQUIRE(p.num_classes <= kMaxGridYZ, "markov_velocity: at most 65,535 classes on a GPU");
}

}  // namespace

std::size_t markov_velocity_cuda_workspace_bytes(const MarkovParams& p, DType) {
    check_cuda_params(p);
    Workspace counter(nullptr, 0);
    CudaChain(p, counter, nullptr);
    return counter.used();
}

void markov_velocity_cuda(const MarkovParams& p, DType dtype, void* workspace, std::size_t workspace_bytes, int device,
                          void* stream) {
    check_cuda_params(p);
    if (p.num_nodes == 0 || p.num_classes == 0) return;
    OVS_REQUIRE(p.running != nullptr, "markov_velocity: missing running");
    const DeviceGuard guard(device);
    Workspace ws(workspace, workspace_bytes);
    CudaChain chain(p, ws, as_stream(stream));
    if (p.stage == ChainStage::kStart) chain.start();
    if (p.stage == ChainStage::kSteps) {
        with_storage(dtype, [&](auto* storage) { chain.steps<std::decay_t<decltype(*storage)>>(); });
    }
    if (p.stage == ChainStage::kReport) chain.report();
}

}  // namespace ovs
