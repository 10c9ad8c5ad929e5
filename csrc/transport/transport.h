// transport: entropic optimal transport of C marginals that share one cost matrix (DSLO's optimal path).
//
//   K = exp(-cost / epsilon);  nu = 1;  repeat  mu = a / (K nu),  nu = b / (K^T mu)
//   plan = diag(mu) K diag(nu) = exp((f_i + g_j - cost_ij) / epsilon)
//
// `sinkhorn` writes f and g; `transport_map` writes one of three sums of cost x plan.
//
// Contract.
//   masses         every row of a and b is scaled to mass 1 for the iteration. The result has the mass of b, or 1 with
//                  `normalize`. A row of a without mass is an empty class: all its results are -inf, it takes no part.
//   stop           iteration k + 1 measures the row error of iteration k in every class, and is the last when the
//                  largest is at most tol; `exact_iters` takes max_iter. All classes take the same number.
//   domain         kAuto takes logarithms where (max(cost) - min(cost)) / epsilon is above kPlainRange.
//   denominators   are never below the smallest normal float; status[1] counts those that had to be raised.
//   zero mass      f or g is -inf there, to the bit.
//   determinism    same bits for the same input, on CPU for any number of threads. No atomics.
//   zero extents   without rows or columns all classes must be empty.
//   faults         the CPU verifies every number, reports the first bad one and leaves the outputs undefined. CUDA
//                  verifies nothing.
//   workspace      `*_workspace_bytes`, from sizes and options alone.
#pragma once
#include <cstddef>
#include <cstdint>

#include "common/dtype.h"

namespace ovs {

// The values are part of the interface: `ovs_kernels/_ops/transport.py` holds the same tables.
enum class Domain : int { kAuto = 0, kPlain = 1, kLog = 2 };
enum class Readout : int { kNone = 0, kReceiver = 1, kSource = 2, kPlanCost = 3 };

struct TransportParams {
    // inputs
    const void* cost = nullptr;  // [N, M] cost_type
    const void* a = nullptr;     // [C, N] dtype
    const void* b = nullptr;     // [C, M] dtype, [M] unless b_per_class, or null: 1 / M
    // outputs
    void* f = nullptr;          // [C, N] dtype; readout kNone
    void* g = nullptr;          // [C, M] dtype; readout kNone
    void* map = nullptr;        // [C, M], [C, N] or [C] dtype; other readouts
    double* errors = nullptr;   // [C] row errors of the result as a share of the mass, or null
    int64_t* status = nullptr;  // [3] iterations, raised denominators, 1 in the log domain; or null
    // sizes
    int64_t num_rows = 0, num_columns = 0, num_classes = 0;
    // parameters
    double epsilon = 0.1;
    double tol = 1e-6;
    double mass_tolerance = 1e-4;  // CPU: share by which the masses of a and b may differ
    int max_iter = 50;
    bool b_per_class = false, exact_iters = false, normalize = false;
    DType cost_type = DType::kFloat32;
    Domain domain = Domain::kAuto;
    Readout readout = Readout::kNone;
};

// What is wrong with the numbers.
enum class TransportFault : int { kNone = 0, kCost = 1, kA = 2, kB = 3, kMass = 4 };
struct TransportReport {
    TransportFault fault = TransportFault::kNone;
    int64_t row = 0, column = 0;  // the first such entry; kMass: the class
};

// The readout decides which outputs are written; both operators are this.
std::size_t transport_cpu_workspace_bytes(const TransportParams&, DType);
TransportReport transport_cpu(const TransportParams&, DType, void* workspace, std::size_t workspace_bytes,
                              int num_threads, CpuIsa);

// float32 only. Everything is queued on `stream`: no host round trip, safe under graph capture.
std::size_t transport_cuda_workspace_bytes(const TransportParams&);
void transport_cuda(const TransportParams&, void* workspace, std::size_t workspace_bytes, int device, void* stream);

}  // namespace ovs
