// propagate: label propagation over a graph that is given as a sparse matrix (LPOSS).
//
// The graph. W is a symmetric matrix of weights >= 0 in compressed rows: row i holds the links indptr[i] .. indptr[i +
// 1] with ascending columns. A diagonal entry is a link of a node with itself. deg_i = sum_j w_ij unless the caller
// gives it, 1 where that is not above 0 (an isolated node).
//
// The solve. (I - alpha D^-1/2 W D^-1/2) X = Y for every class by conjugate gradients, x0 = 0:
//   official  `max_iter` steps, a class stops earlier at |r| <= tol |y|;
//   exact     as many steps as |r| <= tol |y| needs, `max_iter` at most.
//
// Contract.
//   isolated       a node without links keeps its scores: X = Y there, to the bit in exact mode. In official mode the
//                  step lengths, which all nodes share, leave it near them.
//   non-finite     a class whose scores hold a NaN or an Inf comes back as NaN everywhere; the others are not touched.
//   determinism    same bits for the same input, on CPU for any number of threads. No atomics.
//   zero extents   nothing is written, nothing is launched.
//   faults         the CPU always verifies row starts and columns, which it needs in order to read within bounds, and
//   with
//                  `check` the weights and the symmetry; it reports a bad row and writes nothing. CUDA verifies
//                  nothing.
//   workspace      `lp_graph_*_workspace_bytes`, from sizes alone.
#pragma once
#include <cstddef>
#include <cstdint>

#include "common/dtype.h"
#include "common/solve.h"

namespace ovs {

struct PropagateParams {
    // inputs
    const int64_t* indptr = nullptr;   // [N + 1]
    const int32_t* indices = nullptr;  // [L] columns, ascending within a row
    const void* weights = nullptr;     // [L] dtype
    const void* degrees = nullptr;     // [N] dtype, or null: the row sums
    const void* scores = nullptr;      // [N, C] dtype
    // outputs
    void* out = nullptr;            // [N, C] dtype
    int32_t* iterations = nullptr;  // [C] steps taken
    double* residuals = nullptr;    // [C] |r| / |y|; official: the recursive residual, exact: recomputed
    // sizes
    int64_t num_nodes = 0, num_links = 0, num_classes = 0;
    // parameters
    double alpha = 0.95;  // in (0, 1)
    double tol = 1e-6;    // relative residual
    int max_iter = 10;
    bool check = false;  // CPU: verify weights and symmetry, too
    SolveMode mode = SolveMode::kOfficial;
};

// Two weights w_ij and w_ji count as equal when they differ by at most this share of the larger one: products of
// features taken in different orders differ in their last digits, and a power makes that more.
constexpr double kSymmetryTolerance = 1e-4;

// What is wrong with a graph. The values are part of the interface, see `ovs_kernels/_ops/propagate.py`.
enum class GraphFault : int { kNone = 0, kRowStarts = 1, kColumns = 2, kWeights = 3, kAsymmetric = 4 };
struct GraphReport {
    GraphFault fault = GraphFault::kNone;
    int64_t row = 0;  // the first such row
};

std::size_t lp_graph_cpu_workspace_bytes(const PropagateParams&, DType);
GraphReport lp_graph_cpu(const PropagateParams&, DType, void* workspace, std::size_t workspace_bytes, int num_threads,
                         CpuIsa);

// float32 only. Everything is queued on `stream`: no host round trip, safe under graph capture.
std::size_t lp_graph_cuda_workspace_bytes(const PropagateParams&);
void lp_graph_cuda(const PropagateParams&, void* workspace, std::size_t workspace_bytes, int device, void* stream);

}  // namespace ovs
