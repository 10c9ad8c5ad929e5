// confusion_matrix and boundary_iou on a GPU, on the caller's stream. Nothing comes back to the host.
//
//   matrix    a thread walks down a column of pixels and adds a run of equal pairs of labels at a time to counters of
//   its
//             block in shared memory; a block adds them to the result at its end. Up to 109 classes fit; with more the
//             runs are added to the result.
//   rows      boundary_iou: a warp per row of the image. A bit for each pixel at which 2 distance + 1 pixels of one key
//             end, of both maps
//   columns   boundary_iou: a thread walks down a column of a band of rows, counts since how many rows those bits were
//             set with one key in the column, and counts the pixels `distance` rows above that are not inside, in runs
//
// Additions are of integers, so that their order does not matter.
#include <algorithm>
#include <climits>

#include "common/device.cuh"
#include "common/launch.cuh"
#include "common/reduce.cuh"
#include "common/workspace.h"
#include "metrics/metrics.h"
#include "metrics/metrics_math.h"

namespace ovs {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;
constexpr int64_t kBandRows = 32;           // of a column that a thread counts at a time
constexpr int64_t kMaxBlocks = 1 << 14;     // each takes several items where there are more
constexpr int64_t kSharedCounters = 12288;  // 32 bits each: what every card has without asking

// A map and what its labels mean. Labels are widened to 64 bits with their sign.
struct DeviceMap {
    LabelMap map;
    KeyRule<uint64_t> rule;

    __device__ __forceinline__ uint64_t label(int64_t at) const {
        switch (map.type) {
            case LabelType::kUInt8:
                return static_cast<const uint8_t*>(map.labels)[at];
            case LabelType::kInt8:
                return static_cast<uint64_t>(int64_t{static_cast<const int8_t*>(map.labels)[at]});
            case LabelType::kUInt16:
                return static_cast<const uint16_t*>(map.labels)[at];
            case LabelType::kInt16:
                return static_cast<uint64_t>(int64_t{static_cast<const int16_t*>(map.labels)[at]});
            case LabelType::kUInt32:
                return static_cast<const uint32_t*>(map.labels)[at];
            case LabelType::kInt32:
                return static_cast<uint64_t>(int64_t{static_cast<const int32_t*>(map.labels)[at]});
            default:
                return static_cast<const uint64_t*>(map.labels)[at];
        }
    }
    __device__ __forceinline__ uint32_t key(int64_t image, int64_t row, int64_t x) const {
        return key_of<uint32_t>(rule, label(image * map.image_stride + row * map.row_stride + x));
    }
};

struct Keys {
    uint32_t target, prediction;
};

__device__ __forceinline__ bool operator==(const Keys& a, const Keys& b) {
    return a.target == b.target && a.prediction == b.prediction;
}

struct Maps {
    DeviceMap prediction, target;
    int64_t batch, height, width;
    uint32_t classes;

    __device__ __forceinline__ Keys keys(int64_t image, int64_t row, int64_t x) const {
        return {target.key(image, row, x), prediction.key(image, row, x)};
    }
    // Ignored pixels are of no class, in both maps.
    __device__ __forceinline__ Keys classes_of(int64_t image, int64_t row, int64_t x) const {
        const Keys found = keys(image, row, x);
        return found.target > classes ? Keys{classes, classes} : found;
    }
};

__device__ __forceinline__ void add(int64_t* counter, uint32_t count) {
    atomicAdd(reinterpret_cast<unsigned long long*>(counter), static_cast<unsigned long long>(count));
}

// Counters in shared memory, or where there are too many the result itself.
struct Counters {
    uint32_t* shared;  // null: none
    int64_t* counts;

    __device__ __forceinline__ void operator()(int64_t at, uint32_t count) const {
        if (shared != nullptr) {
            atomicAdd(shared + at, count);
        } else {
            add(counts + at, count);
        }
    }
};

// All threads of the block take part in both.
__device__ __forceinline__ void clear_shared(uint32_t* shared, int64_t size) {
    for (int64_t i = threadIdx.x; i < size; i += kThreads) shared[i] = 0;
    __syncthreads();
}
__device__ __forceinline__ void add_shared(const uint32_t* shared, int64_t size, int64_t* counts) {
    __syncthreads();
    for (int64_t i = threadIdx.x; i < size; i += kThreads) {
        if (shared[i] != 0) add(counts + i, shared[i]);
    }
}

// Adds runs of equal keys as they end.
template <class Add>
struct Runs {
    const Add& add_run;
    Keys keys = {0, 0};
    uint32_t length = 0;

    __device__ __forceinline__ void next(const Keys& found) {
        if (length != 0 && found == keys) {
            ++length;
            return;
        }
        end();
        keys = found;
        length = 1;
    }
    __device__ __forceinline__ void end() {
        if (length != 0) add_run(keys, length);
        length = 0;
    }
};

struct MatrixParams {
    Maps maps;
    int64_t* counts;
    int64_t side;  // of the result
    bool use_shared;
    int64_t tiles, bands;  // of columns, and of rows of the whole batch
};

// blockIdx.x: tiles of columns in bands of rows, several per block.
__global__ void __launch_bounds__(kThreads) matrix_kernel(const MatrixParams p) {
    GPU_DYN_SHARED(uint32_t, shared);
    const int64_t size = p.side * p.side, lines = p.maps.batch * p.maps.height;
    if (p.use_shared) clear_shared(shared, size);
    const Counters counters = {p.use_shared ? shared : nullptr, p.counts};
    const auto add_run = [&](const Keys& keys, uint32_t length) {
        if (keys.target < p.side && keys.prediction < p.side) {
            counters(keys.target * p.side + keys.prediction, length);
        }
    };
    for (int64_t item = blockIdx.x; item < p.tiles * p.bands; item += gridDim.x) {
        const int64_t x = item % p.tiles * kThreads + threadIdx.x, first = item / p.tiles * kBandRows;
        if (x >= p.maps.width) continue;
        const int64_t end = first + kBandRows < lines ? first + kBandRows : lines;
        Runs<decltype(add_run)> runs = {add_run};
        for (int64_t line = first; line < end; ++line) {
            runs.next(p.maps.keys(line / p.maps.height, line % p.maps.height, x));
        }
        runs.end();
    }
    if (p.use_shared) add_shared(shared, size, p.counts);
}

struct DeviceBoundary {
    Maps maps;
    int64_t* counts;
    int64_t distance;
    bool has_inside;
    bool use_shared;
    int64_t words;          // of 32 bits, of a row
    uint32_t* target_ends;  // [batch, height, words]
    uint32_t* prediction_ends;
    int64_t tiles, bands, band_rows;  // bands: of an image
};

// Where the run of the lane's pixel begins; `begin` is that of the pixel before the warp's first.
__device__ __forceinline__ int64_t begin_of_run(bool changes, int64_t first, int64_t& begin) {
    const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
    const unsigned all = __ballot_sync(kFullMask, changes);
    const unsigned mine = all & (kFullMask >> (kWarpSize - 1 - lane));
    const int64_t found = mine != 0 ? first + kWarpSize - 1 - __clz(static_cast<int>(mine)) : begin;
    if (all != 0) begin = first + kWarpSize - 1 - __clz(static_cast<int>(all));
    return found;
}

// blockIdx.x: as many rows as the block has warps.
__global__ void __launch_bounds__(kThreads) rows_kernel(const DeviceBoundary p) {
    const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
    const int64_t lines = p.maps.batch * p.maps.height, step = static_cast<int64_t>(gridDim.x) * kWarps;
    for (int64_t line = static_cast<int64_t>(blockIdx.x) * kWarps + static_cast<int>(threadIdx.x) / kWarpSize;
         line < lines; line += step) {  // the same line for all lanes of a warp
        int64_t target_begin = 0, prediction_begin = 0;
        Keys last = {0, 0};
        for (int64_t word = 0; word < p.words; ++word) {
            const int64_t x = word * kWarpSize + lane;
            const bool inside = x < p.maps.width;
            const Keys keys =
                inside ? p.maps.classes_of(line / p.maps.height, line % p.maps.height, x) : Keys{~0u, ~0u};
            Keys left = {__shfl_up_sync(kFullMask, keys.target, 1), __shfl_up_sync(kFullMask, keys.prediction, 1)};
            if (lane == 0) left = last;
            last = {__shfl_sync(kFullMask, keys.target, kWarpSize - 1),
                    __shfl_sync(kFullMask, keys.prediction, kWarpSize - 1)};
            const bool starts = x == 0;
            const int64_t of_target =
                begin_of_run(starts || keys.target != left.target, word * kWarpSize, target_begin);
            const int64_t of_prediction =
                begin_of_run(starts || keys.prediction != left.prediction, word * kWarpSize, prediction_begin);
            const unsigned target_bits = __ballot_sync(kFullMask, inside && x - of_target >= 2 * p.distance);
            const unsigned prediction_bits = __ballot_sync(kFullMask, inside && x - of_prediction >= 2 * p.distance);
            if (lane == 0) {
                p.target_ends[line * p.words + word] = target_bits;
                p.prediction_ends[line * p.words + word] = prediction_bits;
            }
        }
    }
}

// How long a column has been inside its rows with one key.
struct Column {
    uint32_t key = 0;
    int64_t rows = 0;

    __device__ __forceinline__ void next(uint32_t found, bool inside) {
        rows = !inside ? 0 : found == key ? rows + 1 : 1;
        key = found;
    }
};

// Rows [first, end) of a column.
template <class Add>
__device__ __forceinline__ void count_column(const DeviceBoundary& p, int64_t image, int64_t first, int64_t end,
                                             int64_t x, const Add& add_run) {
    const int64_t height = p.maps.height, look = p.has_inside ? p.distance : 0;
    const int64_t right = x + p.distance, begin = first > look ? first - look : 0;
    Column of_target, of_prediction;
    Runs<Add> runs = {add_run};
    for (int64_t y = begin; y < end + look; ++y) {
        if (p.has_inside && y < height) {
            const Keys keys = p.maps.classes_of(image, y, x);
            const int64_t word = (image * height + y) * p.words + right / kWarpSize;
            const bool in_row = right < p.maps.width;
            const unsigned bit = 1u << (right % kWarpSize);
            of_target.next(keys.target, in_row && (p.target_ends[word] & bit) != 0);
            of_prediction.next(keys.prediction, in_row && (p.prediction_ends[word] & bit) != 0);
        }
        if (y - look < first) continue;
        Keys keys = p.maps.classes_of(image, y - look, x);
        const bool near_end = !p.has_inside || y >= height;
        if (!near_end && of_target.rows > 2 * p.distance) keys.target = p.maps.classes;
        if (!near_end && of_prediction.rows > 2 * p.distance) keys.prediction = p.maps.classes;
        runs.next(keys);
    }
    runs.end();
}

// blockIdx.x: tiles of columns in bands of rows of all images, several per block.
__global__ void __launch_bounds__(kThreads) columns_kernel(const DeviceBoundary p) {
    GPU_DYN_SHARED(uint32_t, shared);
    const int64_t classes = p.maps.classes, size = 3 * classes, bands = p.maps.batch * p.bands;
    if (p.use_shared) clear_shared(shared, size);
    const Counters counters = {p.use_shared ? shared : nullptr, p.counts};
    const auto add_run = [&](const Keys& keys, uint32_t length) {
        if (keys.target < classes) counters(2 * classes + keys.target, length);
        if (keys.prediction < classes) counters(classes + keys.prediction, length);
        if (keys.target < classes && keys.target == keys.prediction) counters(keys.target, length);
    };
    for (int64_t item = blockIdx.x; item < p.tiles * bands; item += gridDim.x) {
        const int64_t x = item % p.tiles * kThreads + threadIdx.x, band = item / p.tiles;
        if (x >= p.maps.width) continue;
        const int64_t first = band % p.bands * p.band_rows;
        const int64_t end = first + p.band_rows < p.maps.height ? first + p.band_rows : p.maps.height;
        count_column(p, band / p.bands, first, end, x, add_run);
    }
    if (p.use_shared) add_shared(shared, size, p.counts);
}

Maps maps_of(const MetricsParams& p) {
    return {{p.prediction, rule_of_prediction<uint64_t>(p)},
            {p.target, rule_of_target<uint64_t>(p)},
            p.batch,
            p.height,
            p.width,
            static_cast<uint32_t>(p.num_classes)};
}

unsigned blocks_for(int64_t items) { return static_cast<unsigned>(std::min(items, kMaxBlocks)); }

std::size_t shared_bytes(bool use_shared, int64_t counters) {
    return use_shared ? static_cast<std::size_t>(counters) * sizeof(uint32_t) : 0;
}

DeviceBoundary carve(const BoundaryParams& p, Workspace& workspace) {
    DeviceBoundary d = {};
    d.maps = maps_of(p.maps);
    d.counts = p.maps.counts;
    d.distance = p.distance;
    d.has_inside = has_inside(p);
    d.use_shared = num_counts(p) <= kSharedCounters;
    d.words = ceil_div(p.maps.width, kWarpSize);
    const int64_t bits = d.has_inside ? p.maps.batch * p.maps.height * d.words : 0;
    d.target_ends = workspace.take<uint32_t>("target_ends", bits);
    d.prediction_ends = workspace.take<uint32_t>("prediction_ends", bits);
    d.band_rows = d.has_inside ? std::max(p.distance, kBandRows) : kBandRows;  // a band reads 2 distance rows more
    d.bands = ceil_div(p.maps.height, d.band_rows);
    d.tiles = ceil_div(p.maps.width, kThreads);
    return d;
}

template <class P>
void clear(const P& p, cudaStream_t stream) {
    OVS_CUDA(
        cudaMemsetAsync(p.maps.counts, 0, static_cast<std::size_t>(num_counts(p)) * sizeof(*p.maps.counts), stream));
}

}  // namespace

std::size_t confusion_matrix_cuda_workspace_bytes(const ConfusionParams& p) {
    check_params(p);
    return 0;
}

void confusion_matrix_cuda(const ConfusionParams& p, void*, std::size_t, int device, void* stream) {
    check_params(p);
    const DeviceGuard guard(device);
    clear(p, as_stream(stream));
    if (is_empty(p.maps)) return;
    MatrixParams d = {};
    d.maps = maps_of(p.maps);
    d.counts = p.maps.counts;
    d.side = matrix_side(p);
    d.use_shared = num_counts(p) <= kSharedCounters;
    d.tiles = ceil_div(p.maps.width, kThreads);
    d.bands = ceil_div(p.maps.batch * p.maps.height, kBandRows);
    launch(matrix_kernel, dim3(blocks_for(d.tiles * d.bands)), dim3(kThreads),
           shared_bytes(d.use_shared, num_counts(p)), as_stream(stream), d);
    OVS_CHECK_LAUNCH("confusion_matrix");
}

std::size_t boundary_iou_cuda_workspace_bytes(const BoundaryParams& p) {
    check_params(p);
    if (is_empty(p.maps)) return 0;
    Workspace counter(nullptr, 0);
    carve(p, counter);
    return counter.used();
}

void boundary_iou_cuda(const BoundaryParams& p, void* workspace, std::size_t workspace_bytes, int device,
                       void* stream) {
    check_params(p);
    const DeviceGuard guard(device);
    clear(p, as_stream(stream));
    if (is_empty(p.maps)) return;
    Workspace pieces(workspace, workspace_bytes);
    const DeviceBoundary d = carve(p, pieces);
    if (d.has_inside) {
        const int64_t lines = p.maps.batch * p.maps.height;
        launch(rows_kernel, dim3(blocks_for(ceil_div(lines, kWarps))), dim3(kThreads), 0, as_stream(stream), d);
        OVS_CHECK_LAUNCH("boundary_iou: rows");
    }
    launch(columns_kernel, dim3(blocks_for(d.tiles * p.maps.batch * d.bands)), dim3(kThreads),
           shared_bytes(d.use_shared, num_counts(p)), as_stream(stream), d);
    OVS_CHECK_LAUNCH("boundary_iou: columns");
}

}  // namespace ovs
