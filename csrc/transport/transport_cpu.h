// Inside the CPU half of the transport family: how the work is cut, the workspace's map, and what each instruction-set
// level exports.
#pragma once
#include <algorithm>
#include <cstdint>

#include "common/workspace.h"
#include "transport/transport.h"
#include "transport/transport_math.h"

namespace ovs {

namespace {  // internal linkage: each instruction-set level keeps its own copy

constexpr int64_t kMaxSide = 32;   // rows and columns of a tile, at the widest level in float32
constexpr int64_t kMaxSlabs = 16;  // row ranges with column sums of their own, so that no bit depends on the threads
constexpr int64_t kMaxGroup = 28;  // classes that share a pass over the matrix, at most
constexpr int64_t kFirstKept = 4;  // iteration from which on K is kept in memory; before, it is made again each time

// How the work is cut. A tile is a small square of the matrix, a block a row of tiles, a slab some blocks.
struct TransportGrid {
    int64_t rows, columns, classes;
    int64_t padded_rows, padded_columns;  // to kMaxSide
    bool keeps;                           // whether there is memory for K

    explicit TransportGrid(const TransportParams& p)
        : rows(p.num_rows),
          columns(p.num_columns),
          classes(p.num_classes),
          padded_rows(round_up(p.num_rows, kMaxSide)),
          padded_columns(round_up(p.num_columns, kMaxSide)),
          keeps(p.domain != Domain::kLog && (p.max_iter >= kFirstKept || p.num_classes > kMaxGroup)) {}
};

// What a class is scaled by.
struct ClassScale {
    double a, b;     // to mass 1
    double mass;     // of the result
    int64_t number;  // of the class
};

// Vectors per class come in two layouts. Plain: [tile][class of the group][row or column]. Log: [class][row or column].
template <class T>
struct TransportBuffers {
    ClassScale* scales;        // [C] of the classes that are not empty
    TransportReport* reports;  // [max(C, kMaxSlabs)]
    T *a, *row_sums;           // [C, N']; log: log mu, log K nu
    T *b, *column_sums, *nu;   // [C, M']; log: unused, log K^T mu, log nu
    T* partials;               // [slabs, M', kMaxGroup] column sums of a group
    double* partial_errors;    // [slabs, C]
    double* errors;            // [C]
    double* paid;              // [slabs, C]
    int64_t* guards;           // [slabs + 1]
    T* scratch;                // [slabs, kMaxSide, max(N', M')] a block of K
    T* kernel;                 // [N', M'] K in tiles, or nothing

    TransportBuffers(const TransportGrid& g, Workspace& ws) {
        scales = ws.take<ClassScale>("scales", g.classes);
        reports = ws.take<TransportReport>("reports", std::max(g.classes, kMaxSlabs));
        a = ws.take<T>("a", g.classes * g.padded_rows);
        row_sums = ws.take<T>("row_sums", g.classes * g.padded_rows);
        b = ws.take<T>("b", g.classes * g.padded_columns);
        column_sums = ws.take<T>("column_sums", g.classes * g.padded_columns);
        nu = ws.take<T>("nu", g.classes * g.padded_columns);
        partials = ws.take<T>("partials", kMaxSlabs * g.padded_columns * std::min(g.classes, kMaxGroup));
        partial_errors = ws.take<double>("partial_errors", kMaxSlabs * g.classes);
        errors = ws.take<double>("errors", g.classes);
        paid = ws.take<double>("paid", kMaxSlabs * g.classes);
        guards = ws.take<int64_t>("guards", 2 * kMaxSlabs);
        scratch = ws.take<T>("scratch", kMaxSlabs * kMaxSide * std::max(g.padded_rows, g.padded_columns));
        kernel = ws.take<T>("kernel", g.keeps ? g.padded_rows * g.padded_columns : 0);
    }
};

}  // namespace

#define OVS_DECLARE_TRANSPORT_ISA(isa)                                                                         \
    namespace isa {                                                                                            \
    TransportReport transport_solve(const TransportParams& p, DType dtype, void* workspace, std::size_t bytes, \
                                    int threads);                                                              \
    }
#if defined(OVS_X86_LEVELS)
OVS_DECLARE_TRANSPORT_ISA(v2)
OVS_DECLARE_TRANSPORT_ISA(v3)
OVS_DECLARE_TRANSPORT_ISA(v4)
#else
OVS_DECLARE_TRANSPORT_ISA(baseline)
#endif
#undef OVS_DECLARE_TRANSPORT_ISA

}  // namespace ovs
