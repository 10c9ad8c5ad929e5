// Inside the CPU half of the propagate family: how the work is cut, the workspace's map, and what each instruction-set
// level exports.
#pragma once
#include <algorithm>
#include <cstdint>

#include "common/workspace.h"
#include "propagate/propagate.h"
#include "propagate/propagate_math.h"

namespace ovs {

namespace {  // internal linkage: each instruction-set level keeps its own copy

constexpr int kClassGranule = 8;          // classes per node are padded to a multiple of this
constexpr int kMaxClassChunk = 32;        // classes solved together, in float32; half as many in float64
constexpr int kBlockRows = 64;            // rows that one work item takes, about
constexpr int64_t kMaxBlocks = 1024;      // bounds the memory for partial sums
constexpr int64_t kPanelBytes = 40960;    // state of the columns of one panel: little more than an L1 cache
constexpr int64_t kMinSegment = 12;       // links that a row must have per panel, on average, for panels to pay
constexpr int64_t kShortColumns = 65536;  // columns that 16 bits can number
constexpr int kCheckItems = 4;            // work items of the symmetry check, each with N cursors

template <class T>
constexpr int max_class_chunk() {
    return kMaxClassChunk * static_cast<int>(sizeof(float)) / static_cast<int>(sizeof(T));
}

// How the work is cut: rows into blocks with about the same number of links, classes into chunks of equal size, and,
// where rows are long, columns into panels.
//
// The packed matrix holds the links sorted by (block, panel, row, column), so that a block of rows works against a
// piece of the state that stays in the L1 cache, and reads its links strictly in order. Rows without panels were
// slower, and panels without packing slower than either, as their short jumps defeat the prefetcher. A link is
// alpha w_ij / deg_i and its column within the panel, in 16 bits if they do.
template <class T>
struct PropagateGrid {
    int64_t nodes, links, blocks, panels, panel_columns;
    bool short_columns;
    int chunk;  // classes per node of state

    explicit PropagateGrid(const PropagateParams& p) : nodes(p.num_nodes), links(p.num_links) {
        const int64_t classes = std::max<int64_t>(1, p.num_classes), most = max_class_chunk<T>();
        chunk = static_cast<int>(round_up(ceil_div(classes, ceil_div(classes, most)), kClassGranule));
        blocks = std::clamp<int64_t>(ceil_div(nodes, kBlockRows), 1, kMaxBlocks);
        panels = std::max<int64_t>(1, ceil_div(nodes * chunk * static_cast<int64_t>(sizeof(T)), kPanelBytes));
        if (links < kMinSegment * nodes * panels) panels = 1;
        panel_columns = std::max<int64_t>(1, ceil_div(nodes, panels));
        panels = std::max<int64_t>(1, ceil_div(nodes, panel_columns));
        short_columns = panel_columns <= kShortColumns;
    }
};

// State arrays hold `chunk` classes per node, innermost, of the D-scaled problem: D^-1/2 times the vectors of conjugate
// gradients. There the operator is v - alpha D^-1 W v, and inner products carry the factor deg.
template <class T>
struct PropagateBuffers {
    int64_t* block_rows;    // [blocks + 1] first row of each block
    T* degree;              // [N]
    uint8_t* isolated;      // [N]
    T* values;              // [L] packed
    void* columns;          // [L] packed, uint16 or int32
    int64_t* segment_ends;  // [panels, N], block by block: where the links of (block, panel, row) end
    T *p, *q, *x, *r;       // [N, chunk]
    double* partials;       // [blocks, 2, chunk] inner products, added in a fixed order
    T* largest;             // [blocks, chunk] largest magnitudes, NaN where one is not finite
    T* scale;               // [chunk] power of two that brings a class near 1
    uint8_t* finite;        // [chunk]
    ClassState* classes;    // [chunk]
    GraphReport* faults;    // [max(blocks, kCheckItems)]
    int64_t* cursors;       // [kCheckItems, N] of the symmetry check, in the space of p, which is needed later

    PropagateBuffers(const PropagateGrid<T>& g, Workspace& ws) {
        block_rows = ws.take<int64_t>("block_rows", g.blocks + 1);
        degree = ws.take<T>("degree", g.nodes);
        isolated = ws.take<uint8_t>("isolated", g.nodes);
        values = ws.take<T>("values", g.links);
        columns = ws.take<char>("columns", g.links * (g.short_columns ? 2 : 4));
        segment_ends = ws.take<int64_t>("segment_ends", g.panels * g.nodes);
        p = ws.take<T>("p", g.nodes * g.chunk);
        q = ws.take<T>("q", g.nodes * g.chunk);
        x = ws.take<T>("x", g.nodes * g.chunk);
        r = ws.take<T>("r", g.nodes * g.chunk);
        partials = ws.take<double>("partials", g.blocks * 2 * g.chunk);
        largest = ws.take<T>("largest", g.blocks * g.chunk);
        scale = ws.take<T>("scale", g.chunk);
        finite = ws.take<uint8_t>("finite", g.chunk);
        classes = ws.take<ClassState>("classes", g.chunk);
        faults = ws.take<GraphReport>("faults", std::max<int64_t>(g.blocks, kCheckItems));
        static_assert(kCheckItems * sizeof(int64_t) <= kClassGranule * sizeof(float), "the cursors fit into p");
        cursors = reinterpret_cast<int64_t*>(p);
    }
};

}  // namespace

#define OVS_DECLARE_PROPAGATE_ISA(isa)                                                                    \
    namespace isa {                                                                                       \
    GraphReport lp_graph_solve(const PropagateParams& p, DType dtype, void* workspace, std::size_t bytes, \
                               int threads);                                                              \
    }
#if defined(OVS_X86_LEVELS)
OVS_DECLARE_PROPAGATE_ISA(v2)
OVS_DECLARE_PROPAGATE_ISA(v3)
OVS_DECLARE_PROPAGATE_ISA(v4)
#else
OVS_DECLARE_PROPAGATE_ISA(baseline)
#endif
#undef OVS_DECLARE_PROPAGATE_ISA

}  // namespace ovs
