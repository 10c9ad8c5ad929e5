// crf: mean field in a fully connected CRF, and the permutohedral lattice whose Gaussian filter it is made of.
//
// The lattice. A point with D features has a position on the hyperplane of D + 1 coordinates that sum to zero, rounded
// to multiples of 2^-20, in float64 always; it lies in a simplex of D + 1 vertices with D + 1 barycentric weights
// (crf_math.h). The filter exp(-|f_i - f_j|^2 / 2) is a splat onto the vertices, a blur (1/2, 1, 1/2) along the D + 1
// axes in turn, a slice with the same weights, and a factor 1 / (1 + 2^-D). Vertices are numbered in the order in which
// the points, and the vertices of each, first name them.
//
// Mean field. Q = softmax(-E), then `iterations` times Q = softmax(-E + sum_m compat_m K_m Q), with
// K = diag(after) k diag(before), where n = k 1 + 1e-20 and the factors are 1 ("none"), n^-1/2 and n^-1/2
// ("symmetric"), before n^-1, or after n^-1. Energies are the caller's, or -log(probabilities cut to [clip, 1]).
//
// Contract.
//   borders        nothing lies outside of the image: neither for the lattice nor for the exact Gaussian.
//   non-finite     a point whose features are NaN or Inf, or lie beyond 16-bit coordinates, names no vertex: nothing
//                  comes from it, and it gets zero. A NaN probability counts as `clip`; an energy that is NaN or
//                  beyond 1e30 counts as 1e30 with its sign.
//   ties           labels: the smallest class wins.
//   determinism    same bits for the same input, on CPU for any number of threads. No atomics on floats.
//   zero extents   nothing is written, nothing is launched.
//   workspace      `*_workspace_bytes`. The number of vertices depends on the points: the lattice is built in two
//                  stages, and the caller allocates what is sized by vertices in between.
//   CUDA           everything is queued on `stream`: no host round trip. The number of vertices stays on the device;
//                  the caller reads it between the stages, or makes room for N (D + 1) of them and does not.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

#include "common/dtype.h"

namespace ovs {

constexpr int kMaxLatticeFeatures = 16;

// The values are part of the interface: `ovs_kernels/_ops/crf.py` holds the same order.
enum class Normalization : int { kNone = 0, kSymmetric = 1, kBefore = 2, kAfter = 3 };
enum class LatticeStage : int { kNumber = 0, kLink = 1 };

// Builds a lattice. Both stages get the same workspace. The outputs have the sizes given here on every device; what
// they hold is as written on CUDA, and on a CPU as in crf_tiles.h.
struct LatticeParams {
    // inputs: a point's features are its column and row (with `positions`), then its values in `planes`, each divided
    // by its scale
    const double* planes = nullptr;  // [F, N]
    std::vector<double> scales;      // [D], D = F, or F + 2 with positions
    int64_t num_points = 0;          // N
    int64_t width = 0;               // of the image whose pixels the points are, for dense_crf always; 0: no image
    bool positions = true;           // of the pixels of an image are features
    LatticeStage stage = LatticeStage::kNumber;
    int64_t num_vertices = 0;  // kLink: what kNumber counted; on CUDA any larger number of rows will do
    // outputs of kNumber
    int32_t* vertices = nullptr;  // [N, D + 1]; V for the points without vertices (on CUDA set by kLink)
    void* weights = nullptr;      // [N, D + 1] dtype
    int32_t* count = nullptr;     // CUDA: [1] V
    // outputs of kLink
    int32_t* starts = nullptr;      // [V + 1] where the entries of each vertex begin
    int32_t* points = nullptr;      // [N (D + 1)] the point of each entry; those of a vertex in ascending order
    void* entry_weights = nullptr;  // [N (D + 1)] dtype
    int32_t* neighbours = nullptr;  // [D + 1, V, 2] along each axis, forward and backward; V: there is none
};

// One pairwise term: a built lattice, or the exact Gaussian over positions.
struct CrfTerm {
    bool exact = false;
    int num_features = 0;                 // D
    int64_t num_vertices = 0;             // V; on CUDA the rows that there is room for
    const int32_t* count = nullptr;       // CUDA: [1] V
    const int32_t* vertices = nullptr;    // as above
    void* weights = nullptr;              // is overwritten
    const int32_t* starts = nullptr;      // as above
    const int32_t* points = nullptr;      // as above
    void* entry_weights = nullptr;        // is overwritten
    const int32_t* neighbours = nullptr;  // as above
    double sx = 0.0, sy = 0.0;            // exact: standard deviations in pixels
    int compat_rank = 0;                  // axes of the compatibility
    double compat = 0.0;                  // rank 0: factor of the message
    const void* table = nullptr;          // rank 1: [C], rank 2: [C, C] dtype, factors (minus the penalties)
};

struct CrfParams {
    const void* scores = nullptr;  // [C, N] dtype: probabilities, or energies
    void* out = nullptr;           // [C, N] dtype; exactly one of out and labels
    void* labels = nullptr;        // [N] uint8 or int32
    std::vector<CrfTerm> terms;
    int64_t num_classes = 0, height = 0, width = 0;  // N = height * width
    int64_t iterations = 0;
    int label_bytes = 1;  // 1: uint8, 4: int32
    bool energies = false;
    double clip = 1e-5;
    Normalization normalization = Normalization::kSymmetric;
};

struct FilterParams {
    const void* values = nullptr;  // [N, C] dtype
    void* out = nullptr;           // [N, C] dtype
    std::vector<CrfTerm> terms;    // one, a lattice
    int64_t num_points = 0, num_classes = 0;
    bool transpose = false;
    Normalization normalization = Normalization::kNone;
};

std::size_t permutohedral_lattice_cpu_workspace_bytes(const LatticeParams&, DType, int num_threads);
std::size_t dense_crf_cpu_workspace_bytes(const CrfParams&, DType, int num_threads);
std::size_t permutohedral_filter_cpu_workspace_bytes(const FilterParams&, DType, int num_threads);

// Returns V in stage kNumber.
int64_t permutohedral_lattice_cpu(const LatticeParams&, DType, void* workspace, std::size_t workspace_bytes,
                                  int num_threads, CpuIsa);
void dense_crf_cpu(const CrfParams&, DType, void* workspace, std::size_t workspace_bytes, int num_threads, CpuIsa);
void permutohedral_filter_cpu(const FilterParams&, DType, void* workspace, std::size_t workspace_bytes, int num_threads,
                              CpuIsa);

std::size_t permutohedral_lattice_cuda_workspace_bytes(const LatticeParams&, DType);
std::size_t dense_crf_cuda_workspace_bytes(const CrfParams&, DType);
std::size_t permutohedral_filter_cuda_workspace_bytes(const FilterParams&, DType);

void permutohedral_lattice_cuda(const LatticeParams&, DType, void* workspace, std::size_t workspace_bytes, int device,
                                void* stream);
void dense_crf_cuda(const CrfParams&, DType, void* workspace, std::size_t workspace_bytes, int device, void* stream);
void permutohedral_filter_cuda(const FilterParams&, DType, void* workspace, std::size_t workspace_bytes, int device,
                               void* stream);

}  // namespace ovs
