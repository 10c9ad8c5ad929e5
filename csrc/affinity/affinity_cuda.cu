// affinity_pool on a GPU: two launches on the caller's stream, four in "proxyclip". Nothing comes back to the host.
//
//   prepare   a warp per patch: the guide row at unit length, its squared length, and what of it is not finite
//   sum       proxyclip: the sums of a window's guide rows, whose square is the mean affinity
//   start     proxyclip: per window the border of the affinities and the longest row
//   pool      32 patches and 256 features per block: a tile of affinities at a time, their weights in shared memory
//             and the sums in registers. Patches that none of eight rows wants are passed over.
//
// Unlike on the CPU no use is made of the symmetry: the rows of a tile belong to one block, so that nothing is added by
// two. Products run in the dtype of the computation, without tensor cores.
#include <algorithm>
#include <climits>

#include "affinity/affinity.h"
#include "affinity/affinity_math.h"
#include "common/device.cuh"
#include "common/launch.cuh"
#include "common/reduce.cuh"
#include "common/workspace.h"

namespace ovs {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;
constexpr int kRows = 32, kColumns = 64;  // patches of a tile
constexpr int kChunk = 16;                // guide features in shared memory
constexpr int kSide = 16;                 // threads along each side of a tile of affinities
constexpr int kRowsEach = kRows / kSide, kColumnsEach = kColumns / kSide;
constexpr int kLane = 64;  // threads side by side that share rows of sums
constexpr int kSumRows = kRows / (kThreads / kLane);
constexpr int kSumColumns = 4;  // features of a thread, kLane apart
constexpr int kFeatures = kLane * kSumColumns;
static_assert(kSide * kSide == kThreads && kLane % kWarpSize == 0, "a thread has one place in the tile");

template <class T>
struct DeviceParams {
    AffinityParams p;
    const T* unit;     // [windows, N, G] guide rows of unit length, or the guide itself
    T* made_unit;      // where they are written, or null
    T* squares;        // [windows, N]
    T* poison;         // [windows, N] NaN where a guide row is not finite, else 0
    uint8_t* bad;      // [windows, N] 1 where a row of features is not finite
    double* sums;      // [windows, G]; proxyclip
    T* cut;            // [windows]
    T* longest;        // [windows]
    T* window_poison;  // [windows]
    T scale;           // of differences of affinities, to base 2; proxyclip
    int64_t row_tiles;
};

// The numbers of a tile in shared memory. A row of padding keeps the stores apart.
template <class T>
struct TileMemory {
    T rows[kChunk][kRows + 1];
    T columns[kChunk][kColumns + 1];
    T weights[kColumns][kRows + 4];
    T totals[kRows];
    T reference[kRows];  // affinity that exponentials are taken relative to
};

__device__ __forceinline__ float power_of_2(float x) { return exp2f(x); }
__device__ __forceinline__ double power_of_2(double x) { return exp2(x); }

// blockIdx.x: as many patches of all windows as the block has warps.
template <class T>
__global__ void __launch_bounds__(kThreads) prepare_kernel(const DeviceParams<T> d) {
    const AffinityParams& p = d.p;
    const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
    const int64_t patch = static_cast<int64_t>(blockIdx.x) * kWarps + static_cast<int>(threadIdx.x) / kWarpSize;
    const bool is_patch = patch < p.num_windows * p.num_patches;
    const T* const row = static_cast<const T*>(p.guide) + patch * p.num_guide;
    const T* const features = static_cast<const T*>(p.features) + patch * p.num_features;
    double square = 0.0;
    T poison = 0, unusable = 0;
    for (int64_t k = lane; is_patch && k < p.num_guide; k += kWarpSize) {
        square += static_cast<double>(row[k]) * static_cast<double>(row[k]);
        poison += row[k] * T(0);
    }
    for (int64_t k = lane; is_patch && k < p.num_features; k += kWarpSize) unusable += features[k] * T(0);
    square = warp_sum(square);
    poison = warp_sum(poison);
    unusable = warp_sum(unusable);
    if (!is_patch) return;
    const T norm = static_cast<T>(fmax(sqrt(square), kSmallestNorm));
    for (int64_t k = lane; d.made_unit != nullptr && k < p.num_guide; k += kWarpSize) {
        d.made_unit[patch * p.num_guide + k] = row[k] / norm;
    }
    if (lane != 0) return;
    const double length = static_cast<double>(norm), share = sqrt(square) / length;
    d.squares[patch] = static_cast<T>(d.made_unit != nullptr ? share * share : square);
    d.poison[patch] = poison;
    d.bad[patch] = unusable == unusable ? 0 : 1;
}

// blockIdx: x guide features, y windows.
template <class T>
__global__ void __launch_bounds__(kThreads) sum_kernel(const DeviceParams<T> d) {
    const int64_t features = d.p.num_guide, k = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
    if (k >= features) return;
    for (int64_t window = blockIdx.y; window < d.p.num_windows; window += gridDim.y) {
        const T* const unit = d.unit + window * d.p.num_patches * features + k;
        double sum = 0.0;
        for (int64_t i = 0; i < d.p.num_patches; ++i) sum += static_cast<double>(unit[i * features]);
        d.sums[window * features + k] = sum;
    }
}

// blockIdx.x: windows.
template <class T>
__global__ void __launch_bounds__(kThreads) start_kernel(const DeviceParams<T> d) {
    const AffinityParams& p = d.p;
    const int64_t window = blockIdx.x, n = p.num_patches;
    double total = 0.0;
    if (p.form == AffinityForm::kProxyClip) {
        for (int64_t k = threadIdx.x; k < p.num_guide; k += kThreads) {
            const double sum = d.sums[window * p.num_guide + k];
            total += sum * sum;
        }
    }
    T poison = 0, longest = 0;
    for (int64_t i = threadIdx.x; i < n; i += kThreads) {
        poison += d.poison[window * n + i];
        longest = d.squares[window * n + i] > longest ? d.squares[window * n + i] : longest;
    }
    GPU_SHARED(T, largest, [kThreads]);
    largest[threadIdx.x] = longest;
    total = block_sum<kThreads>(total);
    poison = block_sum<kThreads>(poison);  // a barrier for `largest`, too
    if (threadIdx.x != 0) return;
    for (int i = 1; i < kThreads; ++i) longest = largest[i] > longest ? largest[i] : longest;
    const double mean = total / static_cast<double>(n) / static_cast<double>(n);
    d.cut[window] = static_cast<T>(p.form == AffinityForm::kProxyClip ? p.beta * mean : p.threshold);
    d.longest[window] = longest;
    d.window_poison[window] = poison;
}

// The features [first, first + kChunk) of some patches, zero beyond the last patch and feature: [feature][patch].
template <int kPatches, class T>
__device__ __forceinline__ void load_chunk(const T* patches, int64_t count, int64_t first, int64_t features,
                                           T (&to)[kChunk][kPatches + 1]) {
    for (int i = static_cast<int>(threadIdx.x); i < kPatches * kChunk; i += kThreads) {
        const int f = i % kChunk, patch = i / kChunk;
        const bool inside = patch < count && first + f < features;
        to[f][patch] = inside ? patches[patch * features + first + f] : T(0);
    }
}

// Affinities of the thread's rows and columns in a tile. All threads of the block take part.
template <class T>
__device__ __forceinline__ void tile_affinities(const T* rows, int64_t num_rows, const T* columns, int64_t num_columns,
                                                int64_t features, TileMemory<T>& memory,
                                                T (&affinities)[kRowsEach][kColumnsEach]) {
    const int x = static_cast<int>(threadIdx.x) % kSide, y = static_cast<int>(threadIdx.x) / kSide;
#pragma unroll
    for (int r = 0; r < kRowsEach; ++r) {
#pragma unroll
        for (int c = 0; c < kColumnsEach; ++c) affinities[r][c] = T(0);
    }
    for (int64_t first = 0; first < features; first += kChunk) {
        __syncthreads();  // the chunk before may still be read
        load_chunk<kRows>(rows, num_rows, first, features, memory.rows);
        load_chunk<kColumns>(columns, num_columns, first, features, memory.columns);
        __syncthreads();
#pragma unroll
        for (int f = 0; f < kChunk; ++f) {
            T a[kRowsEach], b[kColumnsEach];
#pragma unroll
            for (int r = 0; r < kRowsEach; ++r) a[r] = memory.rows[f][y * kRowsEach + r];
#pragma unroll
            for (int c = 0; c < kColumnsEach; ++c) b[c] = memory.columns[f][c * kSide + x];
#pragma unroll
            for (int r = 0; r < kRowsEach; ++r) {
#pragma unroll
                for (int c = 0; c < kColumnsEach; ++c) affinities[r][c] += a[r] * b[c];
            }
        }
    }
}

// What a block knows of its rows.
template <class T>
struct RowTile {
    const T* unit;  // of the window
    int64_t window, first, rows;
    T cut, longest;
};

// The largest kept affinity of every row, into memory.reference, for the rows that are weak; the others keep what is
// there. Once per block, and only where there is a weak row.
template <class T>
__device__ void find_references(const DeviceParams<T>& d, const RowTile<T>& tile, TileMemory<T>& memory) {
    const int64_t n = d.p.num_patches, features = d.p.num_guide;
    const int thread = static_cast<int>(threadIdx.x);
    T largest = -static_cast<T>(HUGE_VAL);
    for (int64_t column = 0; column < n; column += kColumns) {
        T affinities[kRowsEach][kColumnsEach];
        tile_affinities(tile.unit + tile.first * features, tile.rows, tile.unit + column * features, n - column,
                        features, memory, affinities);
#pragma unroll
        for (int r = 0; r < kRowsEach; ++r) {
#pragma unroll
            for (int c = 0; c < kColumnsEach; ++c) {
                memory.weights[c * kSide + thread % kSide][thread / kSide * kRowsEach + r] = affinities[r][c];
            }
        }
        __syncthreads();
        if (thread < kRows && thread < tile.rows) {
            for (int c = 0; c < kColumns && column + c < n; ++c) {
                const T a = memory.weights[c][thread];
                const bool kept = !(a < tile.cut) || column + c == tile.first + thread;
                if (kept && a > largest) largest = a;
            }
        }
        __syncthreads();
    }
    if (thread >= tile.rows || thread >= kRows) return;
    if (is_weak(d.p.gamma, tile.longest, d.squares[tile.window * n + tile.first + thread]))
        memory.reference[thread] = largest;
}

// The weights of a tile into shared memory, zero beyond the last row and column. No barrier behind it.
template <class T>
__device__ __forceinline__ void make_weights(const DeviceParams<T>& d, const RowTile<T>& tile, int64_t column,
                                             TileMemory<T>& memory) {
    const int64_t n = d.p.num_patches, features = d.p.num_guide;
    const int x = static_cast<int>(threadIdx.x) % kSide, y = static_cast<int>(threadIdx.x) / kSide;
    T affinities[kRowsEach][kColumnsEach];
    tile_affinities(tile.unit + tile.first * features, tile.rows, tile.unit + column * features, n - column, features,
                    memory, affinities);
#pragma unroll
    for (int r = 0; r < kRowsEach; ++r) {
        const int row = y * kRowsEach + r;
#pragma unroll
        for (int c = 0; c < kColumnsEach; ++c) {
            const int64_t j = column + c * kSide + x;
            const T a = affinities[r][c];
            const bool outside = row >= tile.rows || j >= n;
            T weight = a;
            bool kept = !(a < tile.cut);
            if (d.p.form == AffinityForm::kProxyClip) {
                const T below = (a - memory.reference[row]) * d.scale;
                weight = power_of_2(below < T(0) ? below : T(0));
                kept = kept || j == tile.first + row;
            }
            memory.weights[c * kSide + x][row] = outside || !kept ? T(0) : weight;
        }
    }
}

// Adds the features of a tile's patches to the thread's sums.
template <class T>
__device__ __forceinline__ void add_tile(const T* features, const uint8_t* bad, int64_t count, int64_t stride,
                                         int64_t first, const TileMemory<T>& memory, T (&sums)[kSumRows][kSumColumns]) {
    const int lane = static_cast<int>(threadIdx.x) % kLane, rows = static_cast<int>(threadIdx.x) / kLane * kSumRows;
    for (int j = 0; j < count; ++j) {
        T weights[kSumRows];
        bool wanted = false;
#pragma unroll
        for (int r = 0; r < kSumRows; ++r) {
            weights[r] = memory.weights[j][rows + r];
            wanted = wanted || weights[r] != T(0);
        }
        if (!wanted) continue;  // the same for all threads of a warp
        T values[kSumColumns];
#pragma unroll
        for (int c = 0; c < kSumColumns; ++c) {
            const int64_t at = first + c * kLane + lane;
            values[c] = at < stride ? features[j * stride + at] : T(0);
        }
        if (bad[j] != 0) {
#pragma unroll
            for (int r = 0; r < kSumRows; ++r) {
#pragma unroll
                for (int c = 0; c < kSumColumns; ++c) {
                    if (weights[r] != T(0)) sums[r][c] += weights[r] * values[c];
                }
            }
            continue;
        }
#pragma unroll
        for (int r = 0; r < kSumRows; ++r) {
#pragma unroll
            for (int c = 0; c < kSumColumns; ++c) sums[r][c] += weights[r] * values[c];
        }
    }
}

// blockIdx: x row tiles of all windows, y ranges of features.
template <class T>
__global__ void __launch_bounds__(kThreads) pool_kernel(const DeviceParams<T> d) {
    GPU_SHARED(TileMemory<T>, shared, [1]);
    TileMemory<T>& memory = shared[0];
    const AffinityParams& p = d.p;
    const int64_t n = p.num_patches, window = static_cast<int64_t>(blockIdx.x) / d.row_tiles;
    const int64_t first = static_cast<int64_t>(blockIdx.x) % d.row_tiles * kRows;
    const int thread = static_cast<int>(threadIdx.x);
    const RowTile<T> tile = {d.unit + window * n * p.num_guide,     window,        first,
                             n - first < kRows ? n - first : kRows, d.cut[window], d.longest[window]};
    if (thread < kRows) {
        memory.totals[thread] = T(0);
        memory.reference[thread] = tile.longest;
    }
    if (p.form == AffinityForm::kProxyClip) {
        bool any_weak = false;
        for (int64_t r = 0; r < tile.rows; ++r) {
            any_weak = any_weak || is_weak(p.gamma, tile.longest, d.squares[window * n + first + r]);
        }
        __syncthreads();
        if (any_weak) find_references(d, tile, memory);  // the same for all threads
    }
    for (int64_t range = blockIdx.y; range * kFeatures < p.num_features; range += gridDim.y) {
        T sums[kSumRows][kSumColumns] = {};
        T total = 0;
        for (int64_t column = 0; column < n; column += kColumns) {
            __syncthreads();  // the weights before may still be read
            make_weights(d, tile, column, memory);
            __syncthreads();
            const int64_t count = n - column < kColumns ? n - column : kColumns;
            if (thread < kRows) {
                for (int c = 0; c < kColumns; ++c) total += memory.weights[c][thread];
            }
            add_tile(static_cast<const T*>(p.features) + (window * n + column) * p.num_features,
                     d.bad + window * n + column, count, p.num_features, range * kFeatures, memory, sums);
        }
        if (thread < kRows) memory.totals[thread] = total;
        __syncthreads();
        const T epsilon = p.form == AffinityForm::kProxyClip ? T(0) : static_cast<T>(kAffinityEpsilon);
#pragma unroll
        for (int r = 0; r < kSumRows; ++r) {
            const int row = thread / kLane * kSumRows + r;
            if (row >= tile.rows) continue;
            const T factor = T(1) / (memory.totals[row] + epsilon) + d.window_poison[window];
            T* const out = static_cast<T*>(p.pooled) + (window * n + first + row) * p.num_features;
#pragma unroll
            for (int c = 0; c < kSumColumns; ++c) {
                const int64_t at = range * kFeatures + c * kLane + thread % kLane;
                if (at < p.num_features) out[at] = sums[r][c] * factor;
            }
        }
    }
}

template <class T>
DeviceParams<T> carve(const AffinityParams& p, Workspace& workspace) {
    constexpr double kLargest = sizeof(T) == 8 ? 1e308 : 1e38;
    const int64_t patches = p.num_windows * p.num_patches;
    DeviceParams<T> d = {};
    d.p = p;
    d.row_tiles = ceil_div(p.num_patches, kRows);
    d.scale = static_cast<T>(std::min(p.gamma * kLog2E, 0.25 * kLargest));
    d.made_unit = p.normalize ? workspace.take<T>("unit", patches * p.num_guide) : nullptr;
    d.unit = p.normalize ? d.made_unit : static_cast<const T*>(p.guide);
    d.squares = workspace.take<T>("squares", patches);
    d.poison = workspace.take<T>("poison", patches);
    d.bad = workspace.take<uint8_t>("bad", patches);
    if (p.form == AffinityForm::kProxyClip) d.sums = workspace.take<double>("sums", p.num_windows * p.num_guide);
    d.cut = workspace.take<T>("cut", p.num_windows);
    d.longest = workspace.take<T>("longest", p.num_windows);
    d.window_poison = workspace.take<T>("window_poison", p.num_windows);
    return d;
}

template <class T>
void run(const AffinityParams& p, Workspace& workspace, cudaStream_t stream) {
    const DeviceParams<T> d = carve<T>(p, workspace);
    const dim3 block(kThreads);
    const auto at_most = [](int64_t count) { return static_cast<unsigned>(std::min<int64_t>(count, kMaxGridYZ)); };
    launch(prepare_kernel<T>, dim3(static_cast<unsigned>(ceil_div(p.num_windows * p.num_patches, kWarps))), block, 0,
           stream, d);
    OVS_CHECK_LAUNCH("affinity_pool: prepare");
    if (p.form == AffinityForm::kProxyClip) {
        launch(sum_kernel<T>, dim3(static_cast<unsigned>(ceil_div(p.num_guide, kThreads)), at_most(p.num_windows)),
               block, 0, stream, d);
        OVS_CHECK_LAUNCH("affinity_pool: sum");
    }
    launch(start_kernel<T>, dim3(static_cast<unsigned>(p.num_windows)), block, 0, stream, d);
    OVS_CHECK_LAUNCH("affinity_pool: start");
    launch(pool_kernel<T>,
           dim3(static_cast<unsigned>(p.num_windows * d.row_tiles), at_most(ceil_div(p.num_features, kFeatures))),
           block, 0, stream, d);
    OVS_CHECK_LAUNCH("affinity_pool: pool");
}

void check_cuda_params(const AffinityParams& p, DType dtype) {
    check_params(p, dtype);
    OVS_REQUIRE(p.num_patches <= INT_MAX && p.num_windows <= INT_MAX && p.num_guide <= INT_MAX,
                "affinity_pool: too many patches for a grid");
    OVS_REQUIRE(p.num_windows * ceil_div(p.num_patches, kWarps) <= INT_MAX - p.num_windows,
                "affinity_pool: too many patches for a grid");
}

}  // namespace

std::size_t affinity_pool_cuda_workspace_bytes(const AffinityParams& p, DType dtype) {
    check_cuda_params(p, dtype);
    Workspace counter(nullptr, 0);
    if (dtype == DType::kFloat64) {
        carve<double>(p, counter);
    } else {
        carve<float>(p, counter);
    }
    return counter.used();
}

void affinity_pool_cuda(const AffinityParams& p, DType dtype, void* workspace, std::size_t workspace_bytes, int device,
                        void* stream) {
    check_cuda_params(p, dtype);
    if (is_empty(p)) return;
    const DeviceGuard guard(device);
    Workspace pieces(workspace, workspace_bytes);
    if (dtype == DType::kFloat64) {
        run<double>(p, pieces, as_stream(stream));
    } else {
        run<float>(p, pieces, as_stream(stream));
    }
}

}  // namespace ovs
