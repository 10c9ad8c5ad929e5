// upsample: class maps on a grid of nodes brought to the size of an image along its edges (joint bilateral upsampling).
//
// Pixel y of N lies among n nodes at p_low(y) = (y + 1/2) n / N - 1/2; its cell is the nearest node, halves rounded up,
// and a node's colour is that of the pixel nearest to its centre, halves rounded up. Both are worked out in integers
// (upsample_math.h). Over the nodes q of the grid within `radius` of the cell along both axes
//     e(p, q) = -|p_low - q|^2 / (2 sigma_spatial^2) - |I_p - I_centre(q)|^2 / (2 sigma_range^2)
//     U_c(p)  = sum_q exp(e) D_c(q) / sum_q exp(e)
// The largest exponent of a pixel is subtracted from all, so that the lower sum is 1 or more.
//
// Contract.
//   borders        nodes outside of the grid are skipped.
//   guide          a tap whose colour distance is not finite has no weight; a pixel without any tap left goes by the
//                  spatial part alone.
//   non-finite     weights are positive in exact arithmetic: a value that is not finite is added to the result of each
//                  pixel whose window holds it, with weight 1. With `omit` a NaN is missing instead: its class does
//                  without that tap, and is NaN where none is left.
//   labels         the largest U_c(p), formed as for `up` and bit for bit the same; NaN never wins, ties go to the
//                  smallest index, 0 where every class is NaN or -Inf.
//   backward       the transpose: v_maps from the cotangent of `up`; zero at a missing value.
//   determinism    same bits for the same input, on CPU for any number of threads. No atomics on results.
//   zero extents   no batch or no class: nothing is written, nothing is launched.
#pragma once
#include <cstddef>
#include <cstdint>

#include "common/dtype.h"

namespace ovs {

constexpr int kMaxUpsampleRadius = 15;

struct UpsampleParams {
    // forward: read                                   backward: written
    void* maps = nullptr;  // [B, C, h, w] dtype
    // forward: written, unless labels are             backward: read
    void* up = nullptr;                // [B, C, H, W] dtype
    void* labels = nullptr;            // [B, H, W] uint8 or int32; forward only
    const void* guide = nullptr;       // [B, 3, H, W] dtype
    const uint8_t* missing = nullptr;  // [B, C, h, w] not 0 where a value is missing; backward with `omit` only
    // sizes
    int64_t batch = 0, num_classes = 0;
    int64_t low_height = 0, low_width = 0;  // h, w: at least 1
    int64_t height = 0, width = 0;          // H >= h, W >= w
    int label_bytes = 1;                    // 1: uint8, 4: int32
    // parameters
    double sigma_spatial = 1.0;  // in nodes
    double sigma_range = 0.1;    // in the units of the guide
    int radius = 2;              // 0 .. kMaxUpsampleRadius
    bool omit = false;
    bool backward = false;
};

std::size_t joint_bilateral_upsample_cpu_workspace_bytes(const UpsampleParams&, DType, int num_threads);
void joint_bilateral_upsample_cpu(const UpsampleParams&, DType, void* workspace, std::size_t workspace_bytes,
                                  int num_threads, CpuIsa);

// Everything is queued on `stream`: no host round trip, safe under graph capture.
std::size_t joint_bilateral_upsample_cuda_workspace_bytes(const UpsampleParams&, DType);
void joint_bilateral_upsample_cuda(const UpsampleParams&, DType, void* workspace, std::size_t workspace_bytes,
                                   int device, void* stream);

}  // namespace ovs
