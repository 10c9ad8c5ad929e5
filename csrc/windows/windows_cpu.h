// Inside the CPU half of the windows family: the workers' scratch, and what each instruction-set level exports.
#pragma once
#include <algorithm>
#include <cstdint>

#include "common/workspace.h"
#include "windows/windows.h"
#include "windows/windows_math.h"

namespace ovs {

namespace {  // internal linkage: each instruction-set level keeps its own copy

// The part that one band has in an image row: two of its stretched rows, and their weights.
template <class T>
struct BandBlend {
    const T* low;  // column x0 of the image
    const T* high;
    T low_weight, high_weight;
    int32_t x0, x1;
    int32_t setup;
};

// Of each band the last two rows that were needed: patch row a is kept in slot a % 2.
template <class T>
struct WindowsScratch {
    T* rows;              // [workers, rows_stride]   forward: 2 rows of every band   backward: 2 rows of one band
    int32_t* kept;        // [workers, kept_stride]   which patch row is in a slot, -1 for none
    BandBlend<T>* blend;  // [workers, most_bands]    forward only
    int64_t rows_stride, kept_stride, blend_stride;

    WindowsScratch(const WindowsHeader& header, int workers, bool backward, Workspace& ws) {
        rows_stride = 2 * (backward ? header.widest_band : header.band_columns);
        kept_stride = round_up(2 * (backward ? 1 : header.num_bands), 64);  // workers stay out of each other's lines
        blend_stride = backward ? 0 : round_up(header.most_bands, 8);
        rows = ws.take<T>("rows", workers * rows_stride);
        kept = ws.take<int32_t>("kept", workers * kept_stride);
        blend = ws.take<BandBlend<T>>("blend", workers * blend_stride);
    }
};

}  // namespace

#define OVS_DECLARE_WINDOWS_ISA(isa)                                                                                \
    namespace isa {                                                                                                 \
    void merge_windows_level(const WindowsParams& p, DType dtype, void* workspace, std::size_t bytes, int threads); \
    }
#if defined(OVS_X86_LEVELS)
OVS_DECLARE_WINDOWS_ISA(v2)
OVS_DECLARE_WINDOWS_ISA(v3)
OVS_DECLARE_WINDOWS_ISA(v4)
#else
OVS_DECLARE_WINDOWS_ISA(baseline)
#endif
#undef OVS_DECLARE_WINDOWS_ISA

}  // namespace ovs
