// The bilinear rule of the windows family, and the map of a layout that both backends read.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "common/dtype.h"
#include "common/index.h"

namespace ovs {
namespace {  // internal linkage, like OVS_HOST_DEVICE

// Bands are widened to whole tiles of columns and hold zeros there, so that no inner loop has ragged ends.
constexpr int64_t kWindowTile = 64;

// Where output `o` of `n_out` lies among `n_in` patches: the lower neighbour and the weight of the upper one.
struct BilinearTap {
    int32_t index;
    double weight;
};
inline BilinearTap bilinear_tap(int64_t o, int64_t n_in, int64_t n_out) {
    const double source =
        (static_cast<double>(o) + 0.5) * (static_cast<double>(n_in) / static_cast<double>(n_out)) - 0.5;
    const double clamped = source > 0.0 ? source : 0.0;
    int64_t index = static_cast<int64_t>(std::floor(clamped));
    if (index > n_in - 1) index = n_in - 1;  // rounding, at most
    return {static_cast<int32_t>(index), clamped - static_cast<double>(index)};
}
OVS_HOST_DEVICE int32_t upper_index(int32_t index, int32_t size) { return index + 1 < size ? index + 1 : size - 1; }

// One axis of a window: `size` patches stretched over `length` pixels. `first` counts for each patch a in [0, size] the
// pixels whose lower neighbour is below a: those that patch a has a share in are [first[a - 1], first[a + 1]).
struct WindowsRamp {
    int32_t size, length;
    int64_t taps;   // into ramp_index and ramp_weight
    int64_t first;  // into ramp_first
};

struct WindowsWindow {
    int32_t x0, x1;
    int32_t ramp;  // of its columns
    int32_t band;
    int64_t patches;  // patches per class of the windows before it: its scores begin at C * patches
};

// The windows of one set-up that cover the rows [y0, y1).
struct WindowsBand {
    int32_t y0, y1;
    int32_t x0, x1;  // widened to whole tiles
    int32_t grid_height, grid_width;
    int32_t ramp;  // of its rows
    int32_t setup;
    int32_t first_window, num_windows;  // into windows
    int64_t columns;                    // columns of the bands before it
    int64_t rows;                       // elements per class of the stretched rows of the bands before it
};

// Image rows [y0, y1) that the same bands cover.
struct WindowsRun {
    int32_t y0, y1;
    int32_t first_band, num_bands;  // into band_lists, grouped by set-up
};

// At the front of the layout; arrays follow at these offsets in bytes.
struct WindowsHeader {
    int64_t height, width, pitch;  // pitch: width in whole tiles
    int32_t num_setups, num_windows, num_bands, num_runs;
    int32_t most_bands;                   // of any run
    int32_t most_rows, most_patches;      // of any band: patch rows; of any window: patches
    int32_t real_bytes;                   // 4 or 8: of ramp_weight and inverse_count
    int64_t widest_band;                  // columns
    int64_t band_columns, band_elements;  // of all bands: columns; columns times patch rows
    int64_t used;                         // bytes of the layout
    int64_t windows;                      // WindowsWindow [num_windows], by band
    int64_t bands;                        // WindowsBand [num_bands], by set-up
    int64_t ramps;                        // WindowsRamp
    int64_t ramp_index;                   // int32
    int64_t ramp_weight;                  // real
    int64_t ramp_first;                   // int32
    int64_t runs;                         // WindowsRun [num_runs]
    int64_t band_lists;                   // int32
    int64_t run_of_row;                   // int32 [H]
    int64_t inverse_count;                // real [num_runs, num_setups, pitch]: 1 / (set-ups * covering windows)
};

template <class T>
struct WindowsTables {
    const WindowsWindow* windows;
    const WindowsBand* bands;
    const WindowsRamp* ramps;
    const int32_t* ramp_index;
    const T* ramp_weight;
    const int32_t* ramp_first;
    const WindowsRun* runs;
    const int32_t* band_lists;
    const int32_t* run_of_row;
    const T* inverse_count;
    int64_t pitch;
    int32_t num_setups;

    // `layout` may lie in device memory, the header does not.
    WindowsTables(const WindowsHeader& header, const void* layout)
        : windows(at<WindowsWindow>(layout, header.windows)),
          bands(at<WindowsBand>(layout, header.bands)),
          ramps(at<WindowsRamp>(layout, header.ramps)),
          ramp_index(at<int32_t>(layout, header.ramp_index)),
          ramp_weight(at<T>(layout, header.ramp_weight)),
          ramp_first(at<int32_t>(layout, header.ramp_first)),
          runs(at<WindowsRun>(layout, header.runs)),
          band_lists(at<int32_t>(layout, header.band_lists)),
          run_of_row(at<int32_t>(layout, header.run_of_row)),
          inverse_count(at<T>(layout, header.inverse_count)),
          pitch(header.pitch),
          num_setups(header.num_setups) {}

private:
    template <class V>
    static const V* at(const void* layout, int64_t offset) {
        return reinterpret_cast<const V*>(static_cast<const char*>(layout) + offset);
    }
};

// One row of 1 / (set-ups * covering windows): the same for all image rows of a run.
template <class T>
OVS_HOST_DEVICE const T* inverse_counts(const WindowsTables<T>& t, int64_t run, int64_t setup) {
    return t.inverse_count + (run * t.num_setups + setup) * t.pitch;
}

}  // namespace
}  // namespace ovs
