// Inside the CPU half of the graph family: the workspace's map, and what each instruction-set level exports.
#pragma once
#include <algorithm>
#include <cstdint>

#include "common/workspace.h"
#include "graph/graph.h"
#include "graph/graph_math.h"

namespace ovs {

namespace {  // internal linkage: each instruction-set level keeps its own copy

constexpr int kGroupRows = 16;    // rows gathered together: 64 bytes of each row of a block that is read by columns
constexpr int kRowMultiple = 64;  // gathered rows are padded to this: four of the widest vectors
constexpr int kPadValues = 16;    // what a compressed store may write past its end

// Everything but `scratch` stays valid from one stage to the next.
template <class T>
struct GraphBuffers {
    T* thresholds;  // [stride] Cut of every row; past N, kAboveAll and -1
    T* last_ties;   // [stride]
    T* y;           // [N] positions
    T* x;           // [N]
    T* scratch;     // [threads, scratch_size]
    int64_t stride, scratch_size;

    // One thread's part of `scratch`.
    struct Rows {
        T* products;       // [kGroupRows, stride]
        T* values;         // [stride + kPadValues]
        T* factors;        // [stride + kPadValues]
        int32_t* columns;  // [stride + kPadValues]
    };
    Rows rows_of(int64_t worker) const {
        T* begin = scratch + worker * scratch_size;
        T* values = begin + kGroupRows * stride;
        T* factors = values + stride + kPadValues;
        return {begin, values, factors, reinterpret_cast<int32_t*>(factors + stride + kPadValues)};
    }

    GraphBuffers(const KnnGraphParams& p, int threads, Workspace& ws) {
        stride = round_up(p.num_nodes, kRowMultiple);
        scratch_size = (kGroupRows + 3) * stride + 3 * kPadValues;
        thresholds = ws.take<T>("thresholds", stride);
        last_ties = ws.take<T>("last_ties", stride);
        y = ws.take<T>("y", p.num_nodes);
        x = ws.take<T>("x", p.num_nodes);
        scratch = ws.take<T>("scratch", threads * scratch_size);
    }
};

}  // namespace

#define OVS_DECLARE_GRAPH_ISA(isa)                                                                               \
    namespace isa {                                                                                              \
    void knn_graph_stage(const KnnGraphParams& p, DType dtype, void* workspace, std::size_t bytes, int threads); \
    }
#if defined(OVS_X86_LEVELS)
OVS_DECLARE_GRAPH_ISA(v2)
OVS_DECLARE_GRAPH_ISA(v3)
OVS_DECLARE_GRAPH_ISA(v4)
#else
OVS_DECLARE_GRAPH_ISA(baseline)
#endif
#undef OVS_DECLARE_GRAPH_ISA

}  // namespace ovs
