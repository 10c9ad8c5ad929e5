// merge_windows on a GPU: two launches per chunk of classes on the caller's stream, nothing comes back to the host.
//
//   forward    stretch    patch rows -> stretched rows of every band, summed over its windows     [classes, rows,
//   columns]
//              blend      two stretched rows of every band -> image row, divided by the counts
//   backward   unblend    cotangent of the image -> cotangent of the stretched rows
//              unstretch  ... -> cotangent of the patches
//
// Each thread writes elements that no other thread writes, from sums in a fixed order. Stretched rows of a chunk stay
// below kChunkBytes, so that they are still in the second-level cache when they are read.
#include <algorithm>

#include "common/device.cuh"
#include "common/launch.cuh"
#include "common/workspace.h"
#include "windows/windows.h"
#include "windows/windows_math.h"

namespace ovs {
namespace {

constexpr int kColumns = 64;        // columns of a block of stretch and unblend, one warp wide or two
constexpr int kRows = 4;            // patch rows side by side in such a block
constexpr int kBlendColumns = 128;  // columns of a block of blend
constexpr int kBlendRows = 8;     // image rows of a block of blend: they share stretched rows in the first-level cache
constexpr int kBlendClasses = 4;  // classes of a thread of blend: they share weights and counts
constexpr int kPatchThreads = 128;  // threads of a block of unstretch
constexpr int64_t kChunkBytes = int64_t{64} << 20;

template <class T>
struct DeviceParams {
    WindowsTables<T> tables;
    T* scores;  // [K, C, h, w] of each set-up
    T* merged;  // [C, H, W]
    T* rows;    // [classes, band_elements] stretched rows of this chunk
    int64_t band_elements;
    int64_t num_classes;           // of the call: C
    int64_t first_class, classes;  // of this chunk
    int height, width, num_bands, num_windows;
};

template <class T>
__device__ __forceinline__ T* patch_row(const DeviceParams<T>& p, const WindowsWindow& window, const WindowsBand& band,
                                        int64_t c, int64_t a) {
    const int64_t grid = static_cast<int64_t>(band.grid_height) * band.grid_width;
    return p.scores + p.num_classes * window.patches + (p.first_class + c) * grid + a * band.grid_width;
}

// blockIdx: x column tile, y band, z class.
template <class T>
__global__ void stretch_kernel(const DeviceParams<T> p) {
    const WindowsTables<T>& t = p.tables;
    for (int index = static_cast<int>(blockIdx.y); index < p.num_bands; index += static_cast<int>(gridDim.y)) {
        const WindowsBand band = t.bands[index];
        const int columns = band.x1 - band.x0;
        const int column = static_cast<int>(blockIdx.x) * kColumns + static_cast<int>(threadIdx.x);
        if (column >= columns) continue;
        const int x = band.x0 + column;
        for (int a = static_cast<int>(threadIdx.y); a < band.grid_height; a += kRows) {
            T sum = 0;
            for (int k = band.first_window; k < band.first_window + band.num_windows; ++k) {
                const WindowsWindow window = t.windows[k];
                if (x < window.x0 || x >= window.x1) continue;
                const WindowsRamp ramp = t.ramps[window.ramp];
                const int32_t low = t.ramp_index[ramp.taps + x - window.x0], high = upper_index(low, ramp.size);
                const T weight = t.ramp_weight[ramp.taps + x - window.x0];
                const T* in = patch_row(p, window, band, static_cast<int64_t>(blockIdx.z), a);
                sum += (T(1) - weight) * in[low] + weight * in[high];
            }
            p.rows[blockIdx.z * p.band_elements + band.rows + static_cast<int64_t>(a) * columns + column] = sum;
        }
    }
}

// One image row, one column, up to kBlendClasses classes.
template <class T>
__device__ __forceinline__ void blend_pixel(const DeviceParams<T>& p, int y, int x, int64_t c0, int classes) {
    const WindowsTables<T>& t = p.tables;
    const int run_index = t.run_of_row[y];
    const WindowsRun run = t.runs[run_index];
    T total[kBlendClasses] = {};
    for (int i = 0; i < run.num_bands; ++i) {
        const WindowsBand& band = t.bands[t.band_lists[run.first_band + i]];
        if (x < band.x0 || x >= band.x1) continue;
        const WindowsRamp& ramp = t.ramps[band.ramp];
        const int32_t low = t.ramp_index[ramp.taps + y - band.y0], high = upper_index(low, ramp.size);
        const T inverse = inverse_counts(t, run_index, band.setup)[x];
        const T high_weight = t.ramp_weight[ramp.taps + y - band.y0] * inverse, low_weight = inverse - high_weight;
        const int64_t columns = band.x1 - band.x0, at = c0 * p.band_elements + band.rows + (x - band.x0);
#pragma unroll
        for (int c = 0; c < kBlendClasses; ++c) {
            if (c >= classes) break;
            const T* rows = p.rows + at + c * p.band_elements;
            total[c] += low_weight * rows[low * columns] + high_weight * rows[high * columns];
        }
    }
    const int64_t pixels = static_cast<int64_t>(p.height) * p.width;
    T* out = p.merged + (p.first_class + c0) * pixels + static_cast<int64_t>(y) * p.width + x;
#pragma unroll
    for (int c = 0; c < kBlendClasses; ++c) {
        if (c < classes) out[c * pixels] = total[c];
    }
}

// blockIdx: x column tile, y group of classes, z block of rows.
template <class T>
__global__ void blend_kernel(const DeviceParams<T> p) {
    const int x = static_cast<int>(blockIdx.x) * kBlendColumns + static_cast<int>(threadIdx.x);
    if (x >= p.width) return;
    const int64_t c0 = static_cast<int64_t>(blockIdx.y) * kBlendClasses;
    const int classes = static_cast<int>(p.classes - c0 < kBlendClasses ? p.classes - c0 : kBlendClasses);
    const int64_t row_blocks = ceil_div(p.height, kBlendRows);
    for (int64_t block = blockIdx.z; block < row_blocks; block += gridDim.z) {
        const int y0 = static_cast<int>(block) * kBlendRows;
        for (int y = y0; y < y0 + kBlendRows && y < p.height; ++y) blend_pixel(p, y, x, c0, classes);
    }
}

// Pixels of an axis that patch `a` has a share in, and the share.
struct Share {
    int begin, end;
};
template <class T>
__device__ __forceinline__ Share share_of(const WindowsTables<T>& t, const WindowsRamp& ramp, int a) {
    const int32_t* first = t.ramp_first + ramp.first;
    return {a == 0 ? 0 : first[a - 1], first[a + 1]};
}
template <class T>
__device__ __forceinline__ T weight_of(const WindowsTables<T>& t, const WindowsRamp& ramp, int a, int o) {
    const int32_t low = t.ramp_index[ramp.taps + o];
    const T weight = t.ramp_weight[ramp.taps + o];
    const T from_low = low == a ? T(1) - weight : T(0), from_high = upper_index(low, ramp.size) == a ? weight : T(0);
    return from_low + from_high;
}

// The transpose of blend. blockIdx: x column tile, y band, z class.
template <class T>
__global__ void unblend_kernel(const DeviceParams<T> p) {
    const WindowsTables<T>& t = p.tables;
    const T* v_out = p.merged + (p.first_class + blockIdx.z) * static_cast<int64_t>(p.height) * p.width;
    for (int index = static_cast<int>(blockIdx.y); index < p.num_bands; index += static_cast<int>(gridDim.y)) {
        const WindowsBand band = t.bands[index];
        const WindowsRamp ramp = t.ramps[band.ramp];
        const int columns = band.x1 - band.x0;
        const int column = static_cast<int>(blockIdx.x) * kColumns + static_cast<int>(threadIdx.x);
        if (column >= columns) continue;
        const int x = band.x0 + column;
        for (int a = static_cast<int>(threadIdx.y); a < band.grid_height; a += kRows) {
            T sum = 0;
            const Share share = x < p.width ? share_of(t, ramp, a) : Share{0, 0};
            for (int o = share.begin; o < share.end; ++o) {
                const int y = band.y0 + o;
                const T inverse = inverse_counts(t, t.run_of_row[y], band.setup)[x];
                sum += weight_of(t, ramp, a, o) * (v_out[static_cast<int64_t>(y) * p.width + x] * inverse);
            }
            p.rows[blockIdx.z * p.band_elements + band.rows + static_cast<int64_t>(a) * columns + column] = sum;
        }
    }
}

// The transpose of stretch, one thread per patch. blockIdx: x patches, y window, z class.
template <class T>
__global__ void unstretch_kernel(const DeviceParams<T> p) {
    const WindowsTables<T>& t = p.tables;
    for (int k = static_cast<int>(blockIdx.y); k < p.num_windows; k += static_cast<int>(gridDim.y)) {
        const WindowsWindow window = t.windows[k];
        const WindowsBand band = t.bands[window.band];
        const WindowsRamp ramp = t.ramps[window.ramp];
        const int patch = static_cast<int>(blockIdx.x) * kPatchThreads + static_cast<int>(threadIdx.x);
        if (patch >= band.grid_height * band.grid_width) continue;
        const int a = patch / band.grid_width, j = patch % band.grid_width;
        const int64_t columns = band.x1 - band.x0;
        const T* row = p.rows + blockIdx.z * p.band_elements + band.rows + a * columns + (window.x0 - band.x0);
        const Share share = share_of(t, ramp, j);
        T sum = 0;
        for (int o = share.begin; o < share.end; ++o) sum += weight_of(t, ramp, j, o) * row[o];
        patch_row(p, window, band, static_cast<int64_t>(blockIdx.z), a)[j] = sum;
    }
}

const WindowsHeader& header_of(const WindowsParams& p, DType dtype) {
    OVS_REQUIRE(p.layout != nullptr, "merge_windows: no layout");
    OVS_REQUIRE(p.num_classes >= 0, "merge_windows: negative size");
    const WindowsHeader& header = *static_cast<const WindowsHeader*>(p.layout);
    OVS_REQUIRE(header.real_bytes == static_cast<int32_t>(dtype_bytes(dtype)),
                "merge_windows: a layout for another dtype");
    return header;
}

// Classes whose stretched rows are kept at a time. gridDim.z counts them.
int64_t class_chunk(const WindowsParams& p, const WindowsHeader& header) {
    const int64_t bytes = std::max<int64_t>(1, header.band_elements * header.real_bytes);
    return std::clamp<int64_t>(kChunkBytes / bytes, 1, std::clamp<int64_t>(p.num_classes, 1, kMaxGridYZ));
}

unsigned grid_yz(int64_t items) { return static_cast<unsigned>(std::clamp<int64_t>(items, 1, kMaxGridYZ)); }

template <class T>
void run(const WindowsParams& p, const WindowsHeader& header, Workspace& workspace, cudaStream_t stream) {
    const int64_t chunk = class_chunk(p, header);
    DeviceParams<T> d = {WindowsTables<T>(header, p.device_layout),
                         static_cast<T*>(p.scores),
                         static_cast<T*>(p.merged),
                         workspace.take<T>("rows", chunk * header.band_elements),
                         header.band_elements,
                         p.num_classes,
                         0,
                         0,
                         static_cast<int>(header.height),
                         static_cast<int>(header.width),
                         header.num_bands,
                         header.num_windows};
    const dim3 band_block(kColumns, kRows);
    const unsigned column_tiles = static_cast<unsigned>(ceil_div(header.widest_band, kColumns));
    for (d.first_class = 0; d.first_class < p.num_classes; d.first_class += chunk) {
        d.classes = std::min(chunk, p.num_classes - d.first_class);
        const dim3 band_grid(column_tiles, grid_yz(header.num_bands), grid_yz(d.classes));
        if (!p.backward) {
            launch(stretch_kernel<T>, band_grid, band_block, 0, stream, d);
            OVS_CHECK_LAUNCH("merge_windows: stretch");
            launch(blend_kernel<T>,
                   dim3(static_cast<unsigned>(ceil_div(header.width, kBlendColumns)),
                        grid_yz(ceil_div(d.classes, kBlendClasses)), grid_yz(ceil_div(header.height, kBlendRows))),
                   dim3(kBlendColumns), 0, stream, d);
            OVS_CHECK_LAUNCH("merge_windows: blend");
        } else {
            launch(unblend_kernel<T>, band_grid, band_block, 0, stream, d);
            OVS_CHECK_LAUNCH("merge_windows: unblend");
            launch(unstretch_kernel<T>,
                   dim3(static_cast<unsigned>(ceil_div(header.most_patches, kPatchThreads)),
                        grid_yz(header.num_windows), grid_yz(d.classes)),
                   dim3(kPatchThreads), 0, stream, d);
            OVS_CHECK_LAUNCH("merge_windows: unstretch");
        }
    }
}

}  // namespace

std::size_t merge_windows_cuda_workspace_bytes(const WindowsParams& p, DType dtype) {
    const WindowsHeader& header = header_of(p, dtype);
    Workspace counter(nullptr, 0);
    counter.take<char>("rows", class_chunk(p, header) * header.band_elements * header.real_bytes);
    return counter.used();
}

void merge_windows_cuda(const WindowsParams& p, DType dtype, void* workspace, std::size_t workspace_bytes, int device,
                        void* stream) {
    const WindowsHeader& header = header_of(p, dtype);
    if (p.num_classes == 0 || header.num_windows == 0) return;
    OVS_REQUIRE(p.device_layout != nullptr, "merge_windows: no layout on the device");
    const DeviceGuard guard(device);
    Workspace pieces(workspace, workspace_bytes);
    if (dtype == DType::kFloat64) {
        run<double>(p, header, pieces, as_stream(stream));
    } else {
        run<float>(p, header, pieces, as_stream(stream));
    }
}

}  // namespace ovs
