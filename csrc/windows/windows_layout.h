// The layout of merge_windows: windows sorted into bands, their ramps, the image cut into runs of rows, and counts.
//
// Everything lives in the caller's buffer. Arrays are taken in the order in which their sizes become known;
// `merge_windows_layout_bytes` adds up what they can be at most.
#pragma once
#include <algorithm>
#include <climits>

#include "common/error.h"
#include "common/workspace.h"
#include "windows/windows.h"
#include "windows/windows_math.h"

namespace ovs {
namespace {

struct Box {
    int64_t y0, x0, y1, x1;
};

Box box_of(const WindowsGeometry& g, int64_t k) {
    const int64_t* b = g.boxes + 4 * k;
    return {b[0], b[1], b[2], b[3]};
}

// These sizes protect memory; the Python plan has refused them with better words.
void check_geometry(const WindowsGeometry& g) {
    OVS_REQUIRE(g.height >= 0 && g.width >= 0 && g.num_windows >= 0 && g.num_setups >= 0,
                "merge_windows: negative size");
    OVS_REQUIRE(g.height <= INT_MAX / 4 && g.width <= INT_MAX / 4, "merge_windows: image too large");
    OVS_REQUIRE(g.num_windows <= INT_MAX / 4, "merge_windows: too many windows");
    int64_t windows = 0;
    for (int64_t s = 0; s < g.num_setups; ++s) {
        const int64_t* grid = g.grids + 3 * s;
        OVS_REQUIRE(grid[0] >= 0 && grid[1] >= 1 && grid[2] >= 1, "merge_windows: a grid without patches");
        OVS_REQUIRE(grid[1] <= INT_MAX / 4 && grid[2] <= INT_MAX / 4 / grid[1], "merge_windows: grid too large");
        windows += grid[0];
    }
    OVS_REQUIRE(windows == g.num_windows, "merge_windows: number of windows and grids differ");
    for (int64_t k = 0; k < g.num_windows; ++k) {
        const Box b = box_of(g, k);
        OVS_REQUIRE(0 <= b.y0 && b.y0 < b.y1 && b.y1 <= g.height && 0 <= b.x0 && b.x0 < b.x1 && b.x1 <= g.width,
                    "merge_windows: a box outside of the image, or an empty one");
    }
}

template <class T>
class LayoutBuilder {
public:
    LayoutBuilder(const WindowsGeometry& g, void* layout, std::size_t bytes) : g_(g), ws_(layout, bytes) {
        header_ = ws_.take<WindowsHeader>("header", 1);
        *header_ = WindowsHeader{};
        header_->height = g.height;
        header_->width = g.width;
        header_->pitch = round_up(g.width, kWindowTile);
        header_->num_setups = static_cast<int32_t>(g.num_setups);
        header_->num_windows = static_cast<int32_t>(g.num_windows);
        header_->real_bytes = sizeof(T);
        base_ = static_cast<char*>(layout);
    }

    void build() {
        sort_windows();
        make_bands();
        fill_ramps();
        make_runs();
        count_windows();
        header_->used = static_cast<int64_t>(ws_.used());
    }

private:
    template <class V>
    V* take(const char* name, int64_t count, int64_t& offset) {
        V* const array = ws_.take<V>(name, count);
        offset = reinterpret_cast<char*>(array) - base_;
        return array;
    }

    // Windows by set-up, then rows, then number: bands are consecutive, and sums have one order.
    void sort_windows() {
        order_ = ws_.take<int32_t>("order", g_.num_windows);
        setup_ = ws_.take<int32_t>("setup", g_.num_windows);
        windows_ = take<WindowsWindow>("windows", g_.num_windows, header_->windows);
        int64_t k = 0, patches = 0;
        for (int64_t s = 0; s < g_.num_setups; ++s) {
            const int64_t* grid = g_.grids + 3 * s;
            for (int64_t i = 0; i < grid[0]; ++i, ++k) {
                order_[k] = static_cast<int32_t>(k);
                setup_[k] = static_cast<int32_t>(s);
                windows_[k].patches = patches;  // in the caller's order; make_bands puts it where it belongs
                patches += grid[1] * grid[2];
            }
        }
        std::sort(order_, order_ + g_.num_windows, [&](int32_t a, int32_t b) {
            if (setup_[a] != setup_[b]) return setup_[a] < setup_[b];
            const Box p = box_of(g_, a), q = box_of(g_, b);
            if (p.y0 != q.y0) return p.y0 < q.y0;
            return p.y1 != q.y1 ? p.y1 < q.y1 : a < b;
        });
    }

    bool same_band(int32_t a, int32_t b) const {
        const Box p = box_of(g_, a), q = box_of(g_, b);
        return setup_[a] == setup_[b] && p.y0 == q.y0 && p.y1 == q.y1;
    }

    void make_bands() {
        const int64_t num = g_.num_windows;
        int64_t* const patches = ws_.take<int64_t>("patches", num);
        for (int64_t k = 0; k < num; ++k) patches[k] = windows_[k].patches;
        int32_t count = 0;
        for (int64_t i = 0; i < num; ++i) count += i == 0 || !same_band(order_[i - 1], order_[i]);
        header_->num_bands = count;
        bands_ = take<WindowsBand>("bands", count, header_->bands);
        ramps_ = take<WindowsRamp>("ramps", num + count, header_->ramps);
        int32_t band = -1;
        for (int64_t i = 0; i < num; ++i) {
            const int32_t k = order_[i];
            const Box box = box_of(g_, k);
            const int64_t* grid = g_.grids + 3 * setup_[k];
            if (i == 0 || !same_band(order_[i - 1], k)) {
                WindowsBand& b = bands_[++band];
                b = WindowsBand{};
                b.y0 = static_cast<int32_t>(box.y0);
                b.y1 = static_cast<int32_t>(box.y1);
                b.x0 = INT_MAX;
                b.grid_height = static_cast<int32_t>(grid[1]);
                b.grid_width = static_cast<int32_t>(grid[2]);
                b.ramp = find_ramp(grid[1], box.y1 - box.y0);
                b.setup = setup_[k];
                b.first_window = static_cast<int32_t>(i);
            }
            WindowsBand& b = bands_[band];
            b.x0 = std::min(b.x0, static_cast<int32_t>(box.x0 / kWindowTile * kWindowTile));
            b.x1 = std::max(b.x1, static_cast<int32_t>(round_up(box.x1, kWindowTile)));
            b.num_windows += 1;
            windows_[i] = {static_cast<int32_t>(box.x0), static_cast<int32_t>(box.x1),
                           find_ramp(grid[2], box.x1 - box.x0), band, patches[k]};
            header_->most_patches = std::max(header_->most_patches, static_cast<int32_t>(grid[1] * grid[2]));
            header_->most_rows = std::max(header_->most_rows, b.grid_height);
        }
        for (int32_t i = 0; i < count; ++i) {
            WindowsBand& b = bands_[i];
            b.columns = header_->band_columns;
            b.rows = header_->band_elements;
            header_->widest_band = std::max<int64_t>(header_->widest_band, b.x1 - b.x0);
            header_->band_columns += b.x1 - b.x0;
            header_->band_elements += static_cast<int64_t>(b.x1 - b.x0) * b.grid_height;
        }
    }

    int32_t find_ramp(int64_t size, int64_t length) {
        for (int32_t i = 0; i < num_ramps_; ++i) {
            if (ramps_[i].size == size && ramps_[i].length == length) return i;
        }
        ramps_[num_ramps_] = {static_cast<int32_t>(size), static_cast<int32_t>(length), num_taps_, num_firsts_};
        num_taps_ += length;
        num_firsts_ += size + 1;
        return num_ramps_++;
    }

    void fill_ramps() {
        int32_t* const index = take<int32_t>("ramp_index", num_taps_, header_->ramp_index);
        T* const weight = take<T>("ramp_weight", num_taps_, header_->ramp_weight);
        int32_t* const first = take<int32_t>("ramp_first", num_firsts_, header_->ramp_first);
        for (int32_t i = 0; i < num_ramps_; ++i) {
            const WindowsRamp& r = ramps_[i];
            int32_t patch = 0;
            for (int32_t o = 0; o < r.length; ++o) {
                const BilinearTap tap = bilinear_tap(o, r.size, r.length);
                index[r.taps + o] = tap.index;
                weight[r.taps + o] = static_cast<T>(tap.weight);
                while (patch <= tap.index) first[r.first + patch++] = o;
            }
            while (patch <= r.size) first[r.first + patch++] = r.length;
        }
    }

    // Between two neighbouring cuts no band begins or ends.
    void make_runs() {
        int32_t* const cuts = ws_.take<int32_t>("cuts", 2 * header_->num_bands + 2);
        int64_t num_cuts = 0;
        cuts[num_cuts++] = 0;
        cuts[num_cuts++] = static_cast<int32_t>(g_.height);
        for (int32_t i = 0; i < header_->num_bands; ++i) {
            cuts[num_cuts++] = bands_[i].y0;
            cuts[num_cuts++] = bands_[i].y1;
        }
        std::sort(cuts, cuts + num_cuts);
        num_cuts = std::unique(cuts, cuts + num_cuts) - cuts;
        const int32_t num_runs = static_cast<int32_t>(num_cuts - 1);
        header_->num_runs = num_runs;
        runs_ = take<WindowsRun>("runs", num_runs, header_->runs);
        const auto covers = [&](int32_t band, int32_t y) { return bands_[band].y0 <= y && y < bands_[band].y1; };
        int64_t total = 0;
        for (int32_t r = 0; r < num_runs; ++r) {
            runs_[r] = {cuts[r], cuts[r + 1], static_cast<int32_t>(total), 0};
            for (int32_t i = 0; i < header_->num_bands; ++i) runs_[r].num_bands += covers(i, cuts[r]);
            total += runs_[r].num_bands;
            OVS_REQUIRE(total <= INT_MAX, "merge_windows: too many windows");
            header_->most_bands = std::max(header_->most_bands, runs_[r].num_bands);
        }
        band_lists_ = take<int32_t>("band_lists", total, header_->band_lists);
        int32_t* const run_of_row = take<int32_t>("run_of_row", g_.height, header_->run_of_row);
        for (int32_t r = 0; r < num_runs; ++r) {
            int32_t* list = band_lists_ + runs_[r].first_band;
            for (int32_t i = 0; i < header_->num_bands; ++i) {
                if (covers(i, runs_[r].y0)) *list++ = i;
            }
            std::fill(run_of_row + runs_[r].y0, run_of_row + runs_[r].y1, r);
        }
    }

    void count_windows() {
        const int64_t pitch = header_->pitch;
        const int64_t rows = header_->num_runs * g_.num_setups;
        T* const counts = take<T>("inverse_count", rows * pitch, header_->inverse_count);
        std::fill(counts, counts + rows * pitch, T(0));
        for (int32_t r = 0; r < header_->num_runs; ++r) {
            for (int32_t i = 0; i < runs_[r].num_bands; ++i) {
                const WindowsBand& b = bands_[band_lists_[runs_[r].first_band + i]];
                T* const row = counts + (r * g_.num_setups + b.setup) * pitch;
                for (int32_t k = b.first_window; k < b.first_window + b.num_windows; ++k) {
                    row[windows_[k].x0] += T(1);
                    if (windows_[k].x1 < pitch) row[windows_[k].x1] -= T(1);
                }
            }
            for (int64_t s = 0; s < g_.num_setups; ++s) {
                T* const row = counts + (r * g_.num_setups + s) * pitch;
                T count = 0;
                for (int64_t x = 0; x < pitch; ++x) {
                    count += row[x];
                    row[x] = count > T(0) ? T(1) / (count * static_cast<T>(g_.num_setups)) : T(0);
                }
            }
        }
    }

    const WindowsGeometry& g_;
    Workspace ws_;
    char* base_;
    WindowsHeader* header_;
    int32_t *order_ = nullptr, *setup_ = nullptr, *band_lists_ = nullptr;
    WindowsWindow* windows_ = nullptr;
    WindowsBand* bands_ = nullptr;
    WindowsRamp* ramps_ = nullptr;
    WindowsRun* runs_ = nullptr;
    int32_t num_ramps_ = 0;
    int64_t num_taps_ = 0, num_firsts_ = 0;
};

}  // namespace
}  // namespace ovs
