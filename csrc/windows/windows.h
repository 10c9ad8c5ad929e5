// windows: the average of overlapping sliding windows, each upsampled from its patch grid, without full-frame adds.
//
// Window k of a set-up covers the pixels [y0, y1) x [x0, x1) of the image and brings scores on a grid of h x w patches.
// They are resampled bilinearly to the window's size, half-pixel centres, edges repeated (PyTorch's `interpolate`,
// align_corners = False, no antialiasing):
//     src = max((o + 0.5) n_in / n_out - 0.5, 0),  i0 = floor(src),  i1 = min(i0 + 1, n_in - 1),  t = src - i0
// and out(c, y, x) is the mean over the windows of a set-up that cover (y, x), then the mean over the set-ups.
//
// How. The resampling is separable. Windows of one set-up with the same rows form a band. A patch row of a band is
// stretched and added up along x once, and every image row is a blend of two such rows per band. The backward pass is
// the same with the arrows turned round: both only gather, nothing is added by two threads.
//
// Contract.
//   boxes         inside the image, not empty. Any sizes, any order, any overlap.
//   uncovered     a pixel that no window of a set-up covers gets nothing from it (the Python plan refuses it).
//   non-finite    a NaN or an Inf reaches every pixel that has its patch among the 2 x 2 it is made of, with weight 0
//                 too, as in PyTorch.
//   determinism   same bits for the same input, on CPU for any number of threads. No atomics on results.
//   zero extents  nothing is written, nothing is launched.
//   layout        what depends on the boxes alone, made on the host by `merge_windows_layout`. It serves any number of
//                 calls; CUDA wants a copy in device memory as well.
#pragma once
#include <cstddef>
#include <cstdint>

#include "common/dtype.h"

namespace ovs {

struct WindowsGeometry {
    const int64_t* boxes = nullptr;  // [K, 4] y0, x0, y1, x1, half-open; the set-ups one after another
    const int64_t* grids = nullptr;  // [S, 3] windows, patch rows, patch columns of each set-up
    int64_t num_windows = 0;         // K, of all set-ups
    int64_t num_setups = 0;
    int64_t height = 0, width = 0;
};

// Bytes of the layout at most, from sizes and boxes. `dtype` is that of the computation.
std::size_t merge_windows_layout_bytes(const WindowsGeometry&, DType);
void merge_windows_layout(const WindowsGeometry&, DType, void* layout, std::size_t layout_bytes);

struct WindowsParams {
    // Patch scores of all set-ups, one after another, each [K, C, h, w] dtype; written by the backward pass.
    void* scores = nullptr;
    // [C, H, W] dtype: the merged scores; read by the backward pass, where it is their cotangent.
    void* merged = nullptr;
    const void* layout = nullptr;         // on the host
    const void* device_layout = nullptr;  // the same bytes in device memory; CUDA only
    int64_t num_classes = 0;
    bool backward = false;
};

std::size_t merge_windows_cpu_workspace_bytes(const WindowsParams&, DType, int num_threads);
void merge_windows_cpu(const WindowsParams&, DType, void* workspace, std::size_t workspace_bytes, int num_threads,
                       CpuIsa);

// Everything is queued on `stream`: no host round trip, safe under graph capture.
std::size_t merge_windows_cuda_workspace_bytes(const WindowsParams&, DType);
void merge_windows_cuda(const WindowsParams&, DType, void* workspace, std::size_t workspace_bytes, int device,
                        void* stream);

}  // namespace ovs
