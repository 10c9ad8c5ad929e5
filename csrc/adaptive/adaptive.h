// adaptive: a convolution with its own filter at every pixel (FeatUp's operator), and its two gradients.
//
//     out(b, c, y, x)           = sum over i < k1, j < k2 of  filters(b, y, x, i, j) * input(b, c, y + i, x + j)
//     v_input(b, c, y, x)       = sum over i, j of  filters(b, y - i, x - j, i, j) * v_out(b, c, y - i, x - j)
//     v_filters(b, y, x, i, j)  = sum over c of  v_out(b, c, y, x) * input(b, c, y + i, x + j)
//
// How. Neighbourhoods are never written out. All three are sums over taps or channels of what is multiplied pixel by
// pixel, so vectors (CPU) and warps (CUDA) run along x, and both gradients gather: nothing is added by two threads.
//
// Contract.
//   padding       none: the input has k1 - 1 rows and k2 - 1 columns more than the result.
//   taps          k1, k2 >= 1, in any combination.
//   non-finite    a NaN or Inf reaches every sum that it is part of, with a factor of 0 too, and no other.
//   determinism   same bits for the same input, on CPU for any number of threads: every sum has one order. No atomics.
//   zero extents  nothing is written, nothing is launched: the caller fills the empty sums with zeros.
//   layout        row-major, contiguous.
#pragma once
#include <cstddef>
#include <cstdint>

#include "common/dtype.h"

namespace ovs {

// Which of the three arrays is the result; the other two are read.
enum class AdaptivePass { kForward, kInputBackward, kFiltersBackward };

struct AdaptiveParams {
    void* input = nullptr;    // [B, C, H + k1 - 1, W + k2 - 1] dtype, or its cotangent
    void* filters = nullptr;  // [B, H, W, k1, k2] dtype, or their cotangent
    void* out = nullptr;      // [B, C, H, W] dtype, in the two gradients the cotangent
    int64_t batch = 0, num_channels = 0;
    int64_t height = 0, width = 0;                // H, W: of the result
    int64_t filter_height = 0, filter_width = 0;  // k1, k2
    AdaptivePass pass = AdaptivePass::kForward;
};

std::size_t adaptive_conv_cpu_workspace_bytes(const AdaptiveParams&, DType, int num_threads);
void adaptive_conv_cpu(const AdaptiveParams&, DType, void* workspace, std::size_t workspace_bytes, int num_threads,
                       CpuIsa);

// Everything is queued on `stream`: no host round trip, safe under graph capture.
std::size_t adaptive_conv_cuda_workspace_bytes(const AdaptiveParams&, DType);
void adaptive_conv_cuda(const AdaptiveParams&, DType, void* workspace, std::size_t workspace_bytes, int device,
                        void* stream);

}  // namespace ovs
