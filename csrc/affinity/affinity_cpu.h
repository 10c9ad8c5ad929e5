// Inside the CPU half of the affinity family: the scratch memory, and what each instruction-set level exports.
#pragma once
#include <algorithm>
#include <cstdint>

#include "affinity/affinity.h"
#include "affinity/affinity_math.h"
#include "common/workspace.h"

namespace ovs {

namespace {  // internal linkage: each instruction-set level keeps its own copy

// Guide rows are packed in panels, [features][kPanel]: a panel is read as vectors, or number by number as the other
// factor. 48 is a whole number of the register tiles of every level.
constexpr int64_t kPanel = 48;
// Two panels make a block, the unit of the matrix. In float32 the two sides of a pair of blocks take 600 KB with 768
// guide features, and the features that they pool 400 KB with 512: about a second-level cache.
constexpr int64_t kBlockPanels = 2;
constexpr int64_t kBlock = kBlockPanels * kPanel;

template <class T>
struct AffinityScratch {
    T* panels;        // [windows, panels, G, kPanel]  guide rows, of unit length unless they are used as they are
    T* squares;       // [windows, N]                  their squared lengths
    T* panel_sums;    // [windows, panels, G]          sums of a panel's rows; proxyclip
    T* totals;        // [windows, blocks * kBlock]    sums of weights
    T* cut;           // [windows]                     affinities below it do not survive
    T* longest;       // [windows]                     largest of squares
    T* poison;        // [windows, panels]             NaN where a guide row is not finite, else 0
    uint8_t* bad;     // [windows, N]                  1 where a row of features is not finite
    int64_t* rounds;  // [windows, blocks]            how many rounds a block is through
    T* weights;       // [workers, 2, kBlock, kBlock]  of a pair of blocks, and turned
    int64_t num_panels, num_blocks;

    AffinityScratch(const AffinityParams& p, int workers, Workspace& ws) {
        num_panels = ceil_div(p.num_patches, kPanel);
        num_blocks = ceil_div(num_panels, kBlockPanels);
        const int64_t n = p.num_windows;
        panels = ws.take<T>("panels", n * num_panels * p.num_guide * kPanel);
        squares = ws.take<T>("squares", n * p.num_patches);
        panel_sums = ws.take<T>("panel_sums", p.form == AffinityForm::kProxyClip ? n * num_panels * p.num_guide : 0);
        totals = ws.take<T>("totals", n * num_blocks * kBlock);
        cut = ws.take<T>("cut", n);
        longest = ws.take<T>("longest", n);
        poison = ws.take<T>("poison", n * num_panels);
        bad = ws.take<uint8_t>("bad", n * p.num_patches);
        rounds = ws.take<int64_t>("rounds", n * num_blocks);
        weights = ws.take<T>("weights", workers * 2 * kBlock * kBlock);
    }
};

}  // namespace

#define OVS_DECLARE_AFFINITY_ISA(isa)                                                                                \
    namespace isa {                                                                                                  \
    void affinity_pool_level(const AffinityParams& p, DType dtype, void* workspace, std::size_t bytes, int threads); \
    }
#if defined(OVS_X86_LEVELS)
OVS_DECLARE_AFFINITY_ISA(v2)
OVS_DECLARE_AFFINITY_ISA(v3)
OVS_DECLARE_AFFINITY_ISA(v4)
#else
OVS_DECLARE_AFFINITY_ISA(baseline)
#endif
#undef OVS_DECLARE_AFFINITY_ISA

}  // namespace ovs
