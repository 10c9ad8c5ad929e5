// adaptive_conv on a GPU: one launch per pass on the caller's stream, nothing comes back to the host.
//
// A block makes a tile of 32 columns x kRows rows. A lane is a column, a warp takes kChannels channels at a time (or,
// for the filters' gradient, kTaps taps of one row of the window) for all rows of the tile: a pixel is loaded once for
// kRows rows, a filter tap once for kChannels channels. The filters of a tile lie in memory pixel by pixel; they are
// read and written in that order and pass through shared memory with an odd pitch, where a warp finds one tap of
// 32 pixels without conflicts. Filters too large for that are read and written where they are.
//
// Each thread writes numbers that no other thread writes, from sums in a fixed order.
#include <algorithm>

#include "adaptive/adaptive.h"
#include "common/device.cuh"
#include "common/index.h"
#include "common/launch.cuh"
#include "common/reduce.cuh"

namespace ovs {
namespace {

constexpr int kWarps = 8;                    // of a block
constexpr int kRows = 4;                     // of a tile
constexpr int kChannels = 4;                 // of a warp's sums
constexpr int kTaps = 4;                     // of a warp's sums in the filters' gradient
constexpr int64_t kWantedBlocks = 512;       // some for every multiprocessor: small images share out channels or taps
constexpr int64_t kSharedLimit = 96 * 1024;  // bytes per block that every card since sm_80 has
constexpr int64_t kMostBlocks = 1 << 14;     // blocks take further tiles in turn

template <class T>
struct DeviceParams {
    T* input;    // [B, C, H + k1 - 1, W + k2 - 1]
    T* filters;  // [B, H, W, k1, k2]
    T* out;      // [B, C, H, W]
    int64_t num_channels;
    int64_t height, width, in_height, in_width;
    int64_t made_height, made_width;  // of the array that tiles cut
    int64_t filter_height, filter_width, num_taps;
    int64_t tile_rows, tile_columns;  // numbers of tiles
    int64_t shares, share;            // blocks per tile; channels (tasks) of each
    int64_t items;                    // batch * shares * tiles
};

// What a block works at.
struct Item {
    int64_t b, share, y, x;
};
template <class T>
__device__ __forceinline__ Item item_of(const DeviceParams<T>& p, int64_t index) {
    const int64_t column = index % p.tile_columns, row = index / p.tile_columns % p.tile_rows;
    const int64_t rest = index / p.tile_columns / p.tile_rows;
    return {rest / p.shares, rest % p.shares, row * kRows, column * kWarpSize};
}

__device__ __forceinline__ int lane_of_thread() { return static_cast<int>(threadIdx.x); }
__device__ __forceinline__ int warp_of_thread() { return static_cast<int>(threadIdx.y); }

// The filters that a tile of the result needs: those of its pixels.
template <class T, bool kShared>
struct TileFilters {
    const DeviceParams<T>& p;
    const Item& item;
    T* shared;
    int64_t pitch;  // of a pixel in shared memory

    static int64_t numbers(int64_t num_taps, int64_t, int64_t) { return kRows * kWarpSize * (num_taps | 1); }

    __device__ TileFilters(const DeviceParams<T>& params, const Item& at, T* buffer)
        : p(params), item(at), shared(buffer), pitch(params.num_taps | 1) {}

    __device__ T* global_row(int y) const {
        return p.filters + ((item.b * p.height + item.y + y) * p.width + item.x) * p.num_taps;
    }
    __device__ int64_t columns() const { return p.width - item.x < kWarpSize ? p.width - item.x : kWarpSize; }

    // Calls use(global, shared) for the addresses of each number of the tile, neighbours by neighbouring threads.
    template <class Use>
    __device__ void for_each_number(const Use& use) const {
        const int64_t count = columns() * p.num_taps;
        for (int y = 0; y < kRows && item.y + y < p.height; ++y) {
            T* const row = global_row(y);
            for (int64_t n = thread_in_block(); n < count; n += kWarps * kWarpSize) {
                use(row + n, shared + (y * kWarpSize + n / p.num_taps) * pitch + n % p.num_taps);
            }
        }
    }
    __device__ void stage() const {
        if (kShared) for_each_number([](const T* global, T* near) { *near = *global; });
    }
    __device__ void write_back() const {
        if (kShared) for_each_number([](T* global, const T* near) { *global = *near; });
    }

    __device__ bool is_pixel(int y) const { return item.y + y < p.height && item.x + lane_of_thread() < p.width; }
    __device__ T* at(int y, int64_t tap) const {
        if (kShared) return shared + (y * kWarpSize + lane_of_thread()) * pitch + tap;
        return global_row(y) + lane_of_thread() * p.num_taps + tap;
    }

    // Row r and tap column j of the window: the tap that leads from there to row y, if there is one.
    __device__ bool reaches(int64_t r, int y) const { return r >= y && r - y < p.filter_height; }
    __device__ T weight(int64_t r, int64_t j, int y) const {
        return kShared || is_pixel(y) ? *at(y, (r - y) * p.filter_width + j) : T(0);
    }
};

// The filters that a tile of the input's gradient needs: of every row of the window the taps that lead to the tile.
template <class T, bool kShared>
struct WindowFilters {
    const DeviceParams<T>& p;
    const Item& item;
    T* shared;  // [kRows, k1, span, pitch]: of row y and tap row i, for every pixel of row y - i
    int64_t pitch, span;

    static int64_t numbers(int64_t, int64_t filter_height, int64_t filter_width) {
        return kRows * filter_height * (kWarpSize + filter_width - 1) * (filter_width | 1);
    }

    __device__ WindowFilters(const DeviceParams<T>& params, const Item& at, T* buffer)
        : p(params),
          item(at),
          shared(buffer),
          pitch(params.filter_width | 1),
          span(kWarpSize + params.filter_width - 1) {}

    // Zero where there is no pixel.
    __device__ T global(int64_t y, int64_t x, int64_t i, int64_t j) const {
        if (y < 0 || y >= p.height || x < 0 || x >= p.width) return T(0);
        return p.filters[((item.b * p.height + y) * p.width + x) * p.num_taps + i * p.filter_width + j];
    }
    __device__ void stage() const {
        if (!kShared) return;
        const int64_t first = item.x - (p.filter_width - 1), count = span * p.filter_width;
        for (int64_t slice = 0; slice < kRows * p.filter_height; ++slice) {
            const int64_t i = slice % p.filter_height, y = item.y + slice / p.filter_height - i;
            for (int64_t n = thread_in_block(); n < count; n += kWarps * kWarpSize) {
                const int64_t pixel = n / p.filter_width, j = n % p.filter_width;
                shared[(slice * span + pixel) * pitch + j] = global(y, first + pixel, i, j);
            }
        }
    }

    __device__ bool reaches(int64_t r, int y) const { return r >= y && r - y < p.filter_height; }
    __device__ T weight(int64_t r, int64_t column, int y) const {
        const int64_t i = p.filter_height - 1 - (r - y), j = p.filter_width - 1 - column;
        if (kShared) return shared[((y * p.filter_height + i) * span + lane_of_thread() + column) * pitch + j];
        return global(item.y + y - i, item.x + lane_of_thread() - j, i, j);
    }
};

// Planes that windows are cut from: the window of the tile at (y, x) begins at (y - up, x - left).
template <class T>
struct Pixels {
    const T* data;
    int64_t height, width, up, left;
};

// The tile of kChannels channels at most, from channel c on.
template <class T, class Filters>
__device__ __forceinline__ void make_channels(const DeviceParams<T>& p, const Item& item, const Pixels<T>& pixels,
                                              const Filters& filters, T* made, int64_t c, int64_t channels) {
    T sums[kChannels][kRows] = {};
    const int64_t size = pixels.height * pixels.width, first = item.b * p.num_channels + c;
    for (int64_t r = 0; r < kRows + p.filter_height - 1; ++r) {
        const int64_t y = item.y + r - pixels.up;
        if (y < 0 || y >= pixels.height) continue;
        const T* row = pixels.data + first * size + y * pixels.width;
        for (int64_t j = 0; j < p.filter_width; ++j) {
            const int64_t x = item.x + lane_of_thread() + j - pixels.left;
            const bool inside = x >= 0 && x < pixels.width;
            T pixel[kChannels];
#pragma unroll
            for (int k = 0; k < kChannels; ++k) pixel[k] = inside && k < channels ? row[k * size + x] : T(0);
#pragma unroll
            for (int k = 0; k < kRows; ++k) {
                if (!filters.reaches(r, k)) continue;
                const T weight = filters.weight(r, j, k);
#pragma unroll
                for (int n = 0; n < kChannels; ++n) sums[n][k] += pixel[n] * weight;
            }
        }
    }
    const int64_t x = item.x + lane_of_thread();
    if (x >= p.made_width) return;
#pragma unroll
    for (int n = 0; n < kChannels; ++n) {
#pragma unroll
        for (int k = 0; k < kRows; ++k) {
            const int64_t y = item.y + k;
            if (n < channels && y < p.made_height)
                made[((first + n) * p.made_height + y) * p.made_width + x] = sums[n][k];
        }
    }
}

// The result, or with kTransposed the input's gradient.
template <class T, bool kTransposed, bool kShared, template <class, bool> class Filters>
__global__ void channels_kernel(const DeviceParams<T> p) {
    GPU_DYN_SHARED(T, buffer);
    const Pixels<T> pixels = kTransposed ? Pixels<T>{p.out, p.height, p.width, p.filter_height - 1, p.filter_width - 1}
                                         : Pixels<T>{p.input, p.in_height, p.in_width, 0, 0};
    for (int64_t index = blockIdx.x; index < p.items; index += gridDim.x) {
        const Item item = item_of(p, index);
        const Filters<T, kShared> filters(p, item, buffer);
        __syncthreads();  // the filters of the block's last tile are still being read
        filters.stage();
        __syncthreads();
        const int64_t end = min((item.share + 1) * p.share, p.num_channels);
        for (int64_t c = item.share * p.share + warp_of_thread() * kChannels; c < end; c += kWarps * kChannels) {
            make_channels(p, item, pixels, filters, kTransposed ? p.input : p.out, c, min(end - c, int64_t{kChannels}));
        }
    }
}

// Taps j .. j + kTaps - 1 that lead from row r of the window to the tile, summed over channels.
template <class T, class Filters>
__device__ __forceinline__ void make_taps(const DeviceParams<T>& p, const Item& item, const Filters& filters, int64_t r,
                                          int64_t j) {
    T sums[kRows][kTaps] = {};
    const int64_t y = item.y + r, x = item.x + lane_of_thread();
    const T* row = p.input + (item.b * p.num_channels * p.in_height + y) * p.in_width + x + j;
    const T* centre = p.out + (item.b * p.num_channels * p.height + item.y) * p.width + x;
    if (y < p.in_height) {
        for (int64_t c = 0; c < p.num_channels; ++c) {
            T factor[kRows];
#pragma unroll
            for (int k = 0; k < kRows; ++k) {
                factor[k] = filters.is_pixel(k) && filters.reaches(r, k) ? centre[k * p.width] : T(0);
            }
#pragma unroll
            for (int n = 0; n < kTaps; ++n) {
                const T pixel = x + j + n < p.in_width ? row[n] : T(0);
#pragma unroll
                for (int k = 0; k < kRows; ++k) sums[k][n] += factor[k] * pixel;
            }
            row += p.in_height * p.in_width;
            centre += p.height * p.width;
        }
    }
#pragma unroll
    for (int k = 0; k < kRows; ++k) {
        if (!filters.is_pixel(k) || !filters.reaches(r, k)) continue;
#pragma unroll
        for (int n = 0; n < kTaps; ++n) {
            if (j + n < p.filter_width) *filters.at(k, (r - k) * p.filter_width + j + n) = sums[k][n];
        }
    }
}

template <class T, bool kShared>
__global__ void filters_kernel(const DeviceParams<T> p) {
    GPU_DYN_SHARED(T, buffer);
    const int64_t groups = ceil_div(p.filter_width, kTaps), tasks = (kRows + p.filter_height - 1) * groups;
    for (int64_t index = blockIdx.x; index < p.items; index += gridDim.x) {
        const Item item = item_of(p, index);
        const TileFilters<T, kShared> filters(p, item, buffer);
        const int64_t end = min((item.share + 1) * p.share, tasks);
        for (int64_t task = item.share * p.share + warp_of_thread(); task < end; task += kWarps) {
            make_taps(p, item, filters, task / groups, task % groups * kTaps);
        }
        __syncthreads();
        filters.write_back();
        __syncthreads();  // the next tile's sums come to the same place
    }
}

void check_sizes(const AdaptiveParams& p) {
    OVS_REQUIRE(p.batch >= 0 && p.num_channels >= 0 && p.height >= 0 && p.width >= 0, "adaptive_conv: negative size");
    OVS_REQUIRE(p.filter_height >= 1 && p.filter_width >= 1, "adaptive_conv: filters without a tap");
}

// `total` channels or tasks are shared out to the blocks of a tile in whole units where there are few tiles.
template <class T>
DeviceParams<T> device_params(const AdaptiveParams& p, int64_t total, int64_t unit) {
    DeviceParams<T> d = {};
    d.input = static_cast<T*>(p.input);
    d.filters = static_cast<T*>(p.filters);
    d.out = static_cast<T*>(p.out);
    d.num_channels = p.num_channels;
    d.height = p.height;
    d.width = p.width;
    d.in_height = p.height + p.filter_height - 1;
    d.in_width = p.width + p.filter_width - 1;
    d.made_height = p.pass == AdaptivePass::kInputBackward ? d.in_height : d.height;
    d.made_width = p.pass == AdaptivePass::kInputBackward ? d.in_width : d.width;
    d.filter_height = p.filter_height;
    d.filter_width = p.filter_width;
    d.num_taps = p.filter_height * p.filter_width;
    d.tile_rows = ceil_div(d.made_height, kRows);
    d.tile_columns = ceil_div(d.made_width, kWarpSize);
    const int64_t tiles = p.batch * d.tile_rows * d.tile_columns;
    d.shares = std::clamp<int64_t>(ceil_div(kWantedBlocks, tiles), 1, ceil_div(total, unit));
    d.share = round_up(ceil_div(total, d.shares), unit);
    d.shares = ceil_div(total, d.share);
    d.items = tiles * d.shares;
    return d;
}

template <class T>
void launch_tiles(void (*kernel)(const DeviceParams<T>), const DeviceParams<T>& d, int64_t shared_numbers,
                  cudaStream_t stream) {
    launch(kernel, dim3(static_cast<unsigned>(std::min(d.items, kMostBlocks))), dim3(kWarpSize, kWarps),
           static_cast<std::size_t>(shared_numbers) * sizeof(T), stream, d);
    OVS_CHECK_LAUNCH("adaptive_conv");
}

template <class T, bool kTransposed, template <class, bool> class Filters>
void run_channels(const AdaptiveParams& p, cudaStream_t stream) {
    const DeviceParams<T> d = device_params<T>(p, p.num_channels, kWarps * kChannels);
    const int64_t numbers = Filters<T, true>::numbers(d.num_taps, d.filter_height, d.filter_width);
    if (numbers * static_cast<int64_t>(sizeof(T)) <= kSharedLimit) {
        launch_tiles(channels_kernel<T, kTransposed, true, Filters>, d, numbers, stream);
    } else {
        launch_tiles(channels_kernel<T, kTransposed, false, Filters>, d, 0, stream);
    }
}

template <class T>
void run_filters(const AdaptiveParams& p, cudaStream_t stream) {
    const int64_t tasks = (kRows + p.filter_height - 1) * ceil_div(p.filter_width, kTaps);
    const DeviceParams<T> d = device_params<T>(p, tasks, kWarps);
    const int64_t numbers = TileFilters<T, true>::numbers(d.num_taps, d.filter_height, d.filter_width);
    if (d.shares == 1 && numbers * static_cast<int64_t>(sizeof(T)) <= kSharedLimit) {
        launch_tiles(filters_kernel<T, true>, d, numbers, stream);
    } else {
        launch_tiles(filters_kernel<T, false>, d, 0, stream);
    }
}

template <class T>
void run(const AdaptiveParams& p, cudaStream_t stream) {
    switch (p.pass) {
        case AdaptivePass::kForward:
            return run_channels<T, false, TileFilters>(p, stream);
        case AdaptivePass::kInputBackward:
            return run_channels<T, true, WindowFilters>(p, stream);
        case AdaptivePass::kFiltersBackward:
            return run_filters<T>(p, stream);
    }
}

}  // namespace

std::size_t adaptive_conv_cuda_workspace_bytes(const AdaptiveParams& p, DType) {
    check_sizes(p);
    return 0;
}

void adaptive_conv_cuda(const AdaptiveParams& p, DType dtype, void*, std::size_t, int device, void* stream) {
    check_sizes(p);
    if (p.batch * p.height * p.width == 0 || p.num_channels == 0) return;
    const DeviceGuard guard(device);
    if (dtype == DType::kFloat64) {
        run<double>(p, as_stream(stream));
    } else {
        run<float>(p, as_stream(stream));
    }
}

}  // namespace ovs
