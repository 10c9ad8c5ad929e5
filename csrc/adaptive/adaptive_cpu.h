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
constexpr int64_t kColumns = 16;       // columns whose turned filters lie together: whole vectors of every level
constexpr int64_t kMostColumns = 128;  // of a tile of the result: its filters stay in the second-level cache
constexpr int64_t kWideColumns = 32;   // of a tile of a gradient
constexpr int64_t kChannelGroup = 4;   // channels that share a vector of filters, at most
constexpr int64_t kChannelChunk = 32;  // channels that a tile of the filters' gradient takes at a time

// One tile: some columns and up to `kTileRows` rows of the array that the pass makes.
//   taps     the filters of the tile's pixels, or their cotangent; one row of columns per tap
//              result             [columns / kColumns, rows, k1 * k2, kColumns]
//              input's gradient   [rows + k1 - 1, rows * k2, taps_pitch]: of the window's pixels, what leads to it
//              filters' gradient  [rows, k1 * k2, taps_pitch]
//   window   [channels, rows + k1 - 1, window_pitch]    the pixels that meet them, where they are copied
//   centre   [channels, rows, columns]                  v_out; only where the filters' gradient is made
struct AdaptiveTileSizes {
    int64_t columns, taps_pitch, window_pitch, window_plane;
    int64_t taps, window, centre;  // numbers

    explicit AdaptiveTileSizes(const AdaptiveParams& p) {
        const bool forward = p.pass == AdaptivePass::kForward, filters = p.pass == AdaptivePass::kFiltersBackward;
        const int64_t channels = filters ? std::min(p.num_channels, kChannelChunk) : kChannelGroup;
        const int64_t window_rows = kTileRows + p.filter_height - 1, num_taps = p.filter_height * p.filter_width;
        const int64_t strips = std::max<int64_t>(1, ceil_div(p.width, kMostColumns));
        columns = forward ? round_up(ceil_div(p.width, strips), kColumns) : kWideColumns;
        window_pitch = round_up(columns + p.filter_width - 1, kColumns);
        window_plane = window_rows * window_pitch;
        taps_pitch = forward ? kColumns : filters ? columns : round_up(columns + p.filter_width - 1, 4);
        taps = kTileRows * (forward   ? columns * num_taps
                            : filters ? taps_pitch * num_taps
                                      : taps_pitch * window_rows * p.filter_width);
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
