// pixels: label propagation over the r x r pixel-affinity graph of an image (LPOSS+), without a sparse matrix.
//
// The graph. Pixel p has a feature vector z_p: with `lab`, the image's CIELAB colour (L/100, a/128, b/128); otherwise
// whatever the caller gives. Every pixel q != p in the window x window box around p is its neighbour, with weight
// w_pq = exp(-|z_p - z_q| / tau), plain Euclidean norm. A weight below the smallest normal float32, or one that is not
// a number, is zero. deg_p = sum_q w_pq, 1 where that sum is 0 (an isolated pixel, its row stays zero).
//
// The solve. (I - alpha D^-1/2 W D^-1/2) X = Y for every class, x0 = 0:
//   official  conjugate gradients, `max_iter` steps, a class stops earlier at |r| <= tol |y|;
//   exact     the Chebyshev semi-iteration on the interval [1 - alpha, 1 + alpha] that is known beforehand: no dot
//             products, and the number of steps that brings |r| <= tol |y| follows from alpha and tol alone.
// Both work on D^-1/2 X: there the operator needs raw weights and one division, v - alpha D^-1 W v, and inner products
// carry the factor deg.
//
// Contract.
//   borders        a pixel at the border has fewer neighbours: no padding, no reflection.
//   non-finite     a NaN or Inf feature isolates its pixel: X = Y there when solved (ten CG steps, whose lengths all
//                  pixels share, leave it about one per cent away). A class whose scores hold a NaN or an Inf comes
//                  back as NaN everywhere; the other classes are not touched. In labels such a class never wins.
//   ties           labels: the smallest group index wins.
//   determinism    same bits for the same input, on CPU for any number of threads. No atomics.
//   zero extents   nothing is written, nothing is launched.
//   workspace      `lp_pixels_*_workspace_bytes`, from sizes alone; `class_chunk` classes are solved at a time, so it
//                  bounds the memory, and it does not change any result.
#pragma once
#include <cstddef>
#include <cstdint>

#include "common/dtype.h"
#include "common/solve.h"

namespace ovs {

// At most this many classes are solved together; `class_chunk` is a multiple of kClassGranule up to it.
constexpr int kMaxClassChunk = 32;
constexpr int kClassGranule = 8;
constexpr int kMaxWindow = 31;

struct PixelsParams {
    // inputs
    const void* scores = nullptr;     // [B, C, H, W] dtype
    const void* guide = nullptr;      // [B, F, H, W] dtype: sRGB in [0, 1] with lab (F = 3), features without
    const int32_t* groups = nullptr;  // [C] in [0, G): output channel of each class; null: G = C, class = channel
    // outputs: exactly one of out and labels
    void* out = nullptr;            // [B, G, H, W] dtype: propagated scores, the largest of each group
    void* labels = nullptr;         // [B, H, W] uint8 or int32: group of the largest score
    int32_t* iterations = nullptr;  // [B, C] steps taken
    double* residuals = nullptr;    // [B, C] |r| / |y|; official: the recursive residual, exact: recomputed
    // sizes
    int64_t batch = 0, num_classes = 0, num_groups = 0, height = 0, width = 0, num_features = 0;
    int label_bytes = 1;  // 1: uint8, 4: int32
    // parameters
    int window = 13;       // odd, 1 .. kMaxWindow
    double tau = 0.01;     // feature distance at which a weight has fallen to 1/e
    double alpha = 0.95;   // in (0, 1)
    double tol = 1e-6;     // relative residual
    int max_iter = 10;     // official: steps; exact: a cap on the steps
    bool lab = true;       // the guide is an sRGB image
    int class_chunk = 24;  // classes solved together
    SolveMode mode = SolveMode::kOfficial;
};

std::size_t lp_pixels_cpu_workspace_bytes(const PixelsParams&, DType);
void lp_pixels_cpu(const PixelsParams&, DType, void* workspace, std::size_t workspace_bytes, int num_threads, CpuIsa);

// float32 only. Everything is queued on `stream`: no host round trip, safe under graph capture.
std::size_t lp_pixels_cuda_workspace_bytes(const PixelsParams&);
void lp_pixels_cuda(const PixelsParams&, void* workspace, std::size_t workspace_bytes, int device, void* stream);

}  // namespace ovs
