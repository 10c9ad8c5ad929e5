// Inside the CPU half of the adaptive family: how the work is cut, the workers' scratch, and what each level exports.
#pragma once
#include <algorithm>
#include <cstdint>

#include "adaptive/adaptive.h"
#include "common/error.h"
#include "common/workspace.h"

namespace ovs {

namespace {  // internal linkage: each instruction-set level keeps its own copy

constexpr int64_t kTileRows = 6;       // rows of a tile, at most
constexpr int64_t kColumns = 16;       // columns of a tile: its turned filters stay in the first-level cache, ...
constexpr int64_t kWideColumns = 32;   // ... and where tiles overlap by k2 - 1 columns wider ones waste less
constexpr int64_t kMostLanes = 16;     // columns of a vector, at most
constexpr int64_t kChannelGroup = 4;   // channels that share a vector of filters, at most
constexpr int64_t kChannelChunk = 32;  // channels that a tile of the filters' gradient takes at a time

// One tile: some columns and up to `kTileRows` rows of the array that the pass makes.
//   taps     [rows, k1 * k2, taps_pitch]                the filters of the tile's pixels (or their cotangent), one row
//   of
//                                                       columns per tap; for the input's gradient those of the window
//   window   [channels, rows + k1 - 1, window_pitch]    the pixels that meet them, where they are copied
//   centre   [channels, rows, columns]                  v_out; only where the filters' gradient is made
struct AdaptiveTileSizes {
    int64_t columns, taps_pitch, window_pitch, window_plane;
    int64_t taps, window, centre;  // numbers

    explicit AdaptiveTileSizes(const AdaptiveParams& p) {
        const bool wide = p.pass == AdaptivePass::kInputBackward, filters = p.pass == AdaptivePass::kFiltersBackward;
        const int64_t channels = filters ? std::min(p.num_channels, kChannelChunk) : kChannelGroup;
        const int64_t window_rows = kTileRows + p.filter_height - 1;
        columns = p.pass == AdaptivePass::kForward ? kColumns : kWideColumns;
        window_pitch = round_up(columns + p.filter_width - 1, kMostLanes);
        window_plane = window_rows * window_pitch;
        taps_pitch = wide ? round_up(columns + p.filter_width - 1, 4) : columns;
        taps = (wide ? window_rows : kTileRows) * p.filter_height * p.filter_width * taps_pitch;
        window = channels * window_plane;
        centre = filters ? channels * kTileRows * columns : 0;
    }
};

template <class T>
struct AdaptiveScratch {
    T* taps;
    T* window;
    T* centre;
    int64_t taps_stride, window_stride, centre_stride;  // from worker to worker

    AdaptiveScratch(const AdaptiveTileSizes& sizes, int workers, Workspace& ws)
        : taps_stride(round_up(sizes.taps, 64)),
          window_stride(round_up(sizes.window, 64)),
          centre_stride(round_up(sizes.centre, 64)) {
        taps = ws.take<T>("taps", workers * taps_stride);
        window = ws.take<T>("window", workers * window_stride);
        centre = ws.take<T>("centre", workers * centre_stride);
    }
};

}  // namespace

#define OVS_DECLARE_ADAPTIVE_ISA(isa)                                                                                \
    namespace isa {                                                                                                  \
    void adaptive_conv_level(const AdaptiveParams& p, DType dtype, void* workspace, std::size_t bytes, int threads); \
    }
#if defined(OVS_X86_LEVELS)
OVS_DECLARE_ADAPTIVE_ISA(v2)
OVS_DECLARE_ADAPTIVE_ISA(v3)
OVS_DECLARE_ADAPTIVE_ISA(v4)
#else
OVS_DECLARE_ADAPTIVE_ISA(baseline)
#endif
#undef OVS_DECLARE_ADAPTIVE_ISA

}  // namespace ovs
