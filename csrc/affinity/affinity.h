// affinity: features of patches averaged over the patches that resemble them, without the matrix of affinities.
//
//     a_ij = <g_i, g_j>                                             g: rows of the guide, of unit length
//     clip_dinoiser   w_ij = a_ij where a_ij >= threshold, else 0   out_i = sum_j w_ij f_j / (sum_j w_ij + 1e-6)
//     proxyclip       s_ij = gamma (a_ij - beta mean(a)), kept where s_ij >= 0 or i = j
//                     out_i = sum_j exp(s_ij) f_j / sum_j exp(s_ij) over the kept j
//
// How. The matrix is symmetric, so a block of it is computed once and used for its rows and for its columns. The mean
// needs no matrix: it is |sum_i g_i|^2 / N^2. Scores need no search for the largest of a row: g_i and g_j of unit
// length have a_ij <= a_ii = 1, and exp(gamma (a_ij - 1)) is as good as exp(s_ij). Where fewer patches survive, fewer
// rows of features are read: the second product runs over lists of survivors.
//
// Contract.
//   threshold     strict: an affinity below it counts nothing, one equal to it counts.
//   rows of zero  have the affinity 0 with all patches, themselves included. Norms below 1e-12 count as 1e-12.
//   other rows    without `normalize` they may have any length. Where the exponential of a row would vanish beside that
//                 of the longest row, the row's own largest score is found and taken instead.
//   non-finite    a guide row with a NaN or Inf makes its whole window NaN. A feature that is NaN or Inf reaches the
//                 patches that give its patch a weight other than zero.
//   determinism   same bits for the same input, on CPU for any number of threads. No atomics on results.
//   zero extents  nothing is written, nothing is launched.
#pragma once
#include <cstddef>
#include <cstdint>

#include "common/dtype.h"

namespace ovs {

// The values are part of the interface: `ovs_kernels/_ops/affinity.py` holds the same table.
enum class AffinityForm : int { kClipDinoiser = 0, kProxyClip = 1 };

struct AffinityParams {
    const void* features = nullptr;  // [windows, N, D] dtype
    const void* guide = nullptr;     // [windows, N, G] dtype
    void* pooled = nullptr;          // [windows, N, D] dtype
    int64_t num_windows = 0, num_patches = 0, num_features = 0, num_guide = 0;
    AffinityForm form = AffinityForm::kClipDinoiser;
    double threshold = 0.2;  // clip_dinoiser
    double beta = 1.2;       // proxyclip
    double gamma = 3.0;      // proxyclip
    bool normalize = true;   // divide the rows of the guide by their norms
};

// The DType argument is that of all arrays and of the computation: float32 or float64.
std::size_t affinity_pool_cpu_workspace_bytes(const AffinityParams&, DType, int num_threads);
void affinity_pool_cpu(const AffinityParams&, DType, void* workspace, std::size_t workspace_bytes, int num_threads,
                       CpuIsa);

// Everything is queued on `stream`: no host round trip, safe under graph capture.
std::size_t affinity_pool_cuda_workspace_bytes(const AffinityParams&, DType);
void affinity_pool_cuda(const AffinityParams&, DType, void* workspace, std::size_t workspace_bytes, int device,
                        void* stream);

}  // namespace ovs
