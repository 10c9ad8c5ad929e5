// pamr: pixel-adaptive mask refinement. Scores flow between a pixel and its eight neighbours at each dilation.
//
// With x_k the channels of the image, o the 8 D offsets {-d, 0, d}^2 without (0, 0) for the D dilations d, and
// coordinates beyond the border moved back onto it,
//     s_k(p) = standard deviation (divided by n - 1) of x_k over the n = 9 D samples at all o and D times p itself
//     e_o(p) = mean over k of  -|x_k(p) - x_k(p + o)| / (1e-8 + 0.1 s_k(p))
//     a_o(p) = exp(e_o(p)) / sum over o of exp(e_o(p))
//     m(p)  <- sum over o of a_o(p) m(p + o)                                        num_iter times
//
// Contract.
//   borders        replicated: offsets are clamped, so a dilation may be larger than the image.
//   weights        positive; below 2^-126 of the sum of a pixel they become 0.
//   non-finite     a NaN or Inf in the scores reaches, as a product with a weight, each pixel that has it among its
//                  neighbours, in its class. A pixel whose own or neighbouring x holds a NaN or Inf becomes NaN.
//   backward       the transpose: the cotangent of the scores from that of the result.
//   determinism    same bits for the same input, on CPU for any number of threads. No atomics on results.
//   labels         the smallest class wins a tie; NaN never wins, and where all classes are NaN or -Inf it is class 0.
//   zero extents   no batch, class or pixel: nothing is written, nothing is launched. num_iter >= 1.
//   layout         row-major, contiguous; `out` must not overlap the inputs.
#pragma once
#include <cstddef>
#include <cstdint>

#include "common/dtype.h"

namespace ovs {

constexpr int kMaxPamrDilations = 64;

struct PamrParams {
    const void* image = nullptr;   // [B, F, H, W] dtype
    const void* scores = nullptr;  // [B, C, H, W] dtype; backward: the cotangent of the result
    // exactly one of out and labels, the latter not backward and with 1 class or more
    void* out = nullptr;                  // [B, C, H, W] dtype; backward: the cotangent of the scores
    void* labels = nullptr;               // [B, H, W] uint8 or int32: class of the largest result
    int64_t label_bytes = 0;              // 1 or 4
    const int64_t* dilations = nullptr;   // [D] >= 1, on the host
    int64_t batch = 0, num_features = 0;  // F >= 1
    int64_t num_classes = 0, height = 0, width = 0;
    int64_t num_dilations = 0;  // D: 1 .. kMaxPamrDilations
    int64_t num_iter = 0;       // 1 or more
    bool backward = false;
};

std::size_t pamr_cpu_workspace_bytes(const PamrParams&, DType, int num_threads);
void pamr_cpu(const PamrParams&, DType, void* workspace, std::size_t workspace_bytes, int num_threads, CpuIsa);

// Everything is queued on `stream`: no host round trip, safe under graph capture.
std::size_t pamr_cuda_workspace_bytes(const PamrParams&, DType);
void pamr_cuda(const PamrParams&, DType, void* workspace, std::size_t workspace_bytes, int device, void* stream);

}  // namespace ovs
