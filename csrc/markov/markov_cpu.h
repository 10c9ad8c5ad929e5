// Inside the CPU half of the markov family: how the work is cut, the workspaces' maps, and what each instruction-set
// level exports.
#pragma once
#include <algorithm>
#include <cstdint>

#include "common/workspace.h"
#include "markov/markov.h"
#include "markov/markov_math.h"

namespace ovs {

namespace {  // internal linkage: each instruction-set level keeps its own copy

constexpr int64_t kMaxGroups = 32;       // groups of rows, each with column sums of its own: bounds their memory
constexpr int64_t kMinGroupRows = 16;    // fewer rows are not worth a set of column sums
constexpr int64_t kPanelColumns = 256;   // columns of a work item: a multiple of every tile
constexpr int64_t kStatePadding = 32;    // classes' rows of state are padded to this: the widest tile
constexpr int64_t kScalingPadding = 16;  // likewise vectors over the columns

// Waking a thread for less of the matrix than this costs more than it saves.
constexpr int64_t kEntriesPerThread = 1 << 17;

inline int useful_threads(int64_t nodes, int threads) {
    return static_cast<int>(std::clamp<int64_t>(nodes * nodes / kEntriesPerThread, 1, std::max(1, threads)));
}

inline int64_t num_panels(int64_t columns) { return ceil_div(columns, kPanelColumns); }

// Rows are cut into groups of equal size. The number of groups depends on N alone, so that sums have the same order for
// any number of threads.
template <class T>
struct ScalingBuffers {
    int64_t group_rows, groups;
    int64_t stride;       // of `sums`
    T* sums;              // [groups, stride] column sums of r A over the rows of a group
    uint8_t* bad_groups;  // [groups] whether a group has a bad entry
    double* errors;       // [panels] largest column errors

    ScalingBuffers(const ScalingParams& p, Workspace& ws) {
        group_rows = std::max(kMinGroupRows, ceil_div(p.num_nodes, kMaxGroups));
        groups = ceil_div(p.num_nodes, group_rows);
        stride = round_up(p.num_nodes, kScalingPadding);
        sums = ws.take<T>("sums", groups * stride);
        bad_groups = ws.take<uint8_t>("bad_groups", groups);
        errors = ws.take<double>("errors", num_panels(p.num_nodes));
    }
};

// What a panel of columns adds up for one class, to be combined over the panels in order.
template <class T>
struct PanelNotes {
    T largest;       // of F
    T low, high;     // of g over the columns that are not empty
    int32_t open;    // places that may yet be reached
    int32_t moving;  // places that changed by more than the threshold
};

struct ChainClass {
    int32_t steps;
    int64_t moving;  // at the last step
    bool valid, has_mass, open;
};

// Classes are rows of `stride` columns in the states, and columns of `x`, the packed F * r of the classes that still
// run. The times are collected in the result.
template <class T>
struct ChainBuffers {
    int64_t stride, panels;
    T *now, *before;       // [C, stride] g_l and g_{l-1}; on the way F_l
    T* x;                  // [N, active classes]
    PanelNotes<T>* notes;  // [panels, C]
    int32_t* active;       // [C] the classes that still run, ascending
    ChainClass* classes;   // [C]
    T* factors;            // [C] what makes g of F

    ChainBuffers(const MarkovParams& p, Workspace& ws) {
        stride = round_up(p.num_nodes, kStatePadding);
        panels = num_panels(p.num_nodes);
        now = ws.take<T>("now", p.num_classes * stride);
        before = ws.take<T>("before", p.num_classes * stride);
        x = ws.take<T>("x", p.num_classes * p.num_nodes);
        notes = ws.take<PanelNotes<T>>("notes", panels * p.num_classes);
        active = ws.take<int32_t>("active", p.num_classes);
        classes = ws.take<ChainClass>("classes", p.num_classes);
        factors = ws.take<T>("factors", p.num_classes);
    }
};

}  // namespace

#define OVS_DECLARE_MARKOV_ISA(isa)                                                                                   \
    namespace isa {                                                                                                   \
    bool doubly_stochastic_run(const ScalingParams& p, DType dtype, void* workspace, std::size_t bytes, int threads); \
    void markov_velocity_run(const MarkovParams& p, DType dtype, void* workspace, std::size_t bytes, int threads);    \
    }
#if defined(OVS_X86_LEVELS)
OVS_DECLARE_MARKOV_ISA(v2)
OVS_DECLARE_MARKOV_ISA(v3)
OVS_DECLARE_MARKOV_ISA(v4)
#else
OVS_DECLARE_MARKOV_ISA(baseline)
#endif
#undef OVS_DECLARE_MARKOV_ISA

}  // namespace ovs
