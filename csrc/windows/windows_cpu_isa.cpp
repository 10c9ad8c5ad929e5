// merge_windows on a CPU; compiled once per instruction-set level.
//
// Forward, one class and a block of image rows at a time: per band the two stretched patch rows that the current image
// row lies between, made when they are first needed, then one pass over the image row that blends all bands and divides
// by the counts. The stretched rows stay in the first-level cache; memory sees the result once.
//
// Backward, one class and band at a time: every image row is added to the two stretched rows it was blended from, and a
// stretched row that has got all its image rows is shared out to its patches.
#include <cstring>

#include "common/parallel.h"
#include "common/simd.h"
#include "windows/windows_cpu.h"

namespace ovs {
namespace OVS_ISA {
namespace {

constexpr int64_t kRowBlock = 32;       // fewest image rows per item
constexpr int64_t kItemsPerWorker = 8;  // enough for an even load where there are few classes

template <class T>
class Merger {
public:
    Merger(const WindowsParams& p, void* workspace, std::size_t bytes, int threads)
        : p_(p),
          h_(*static_cast<const WindowsHeader*>(p.layout)),
          t_(h_, p.layout),
          threads_(threads),
          workspace_(workspace, bytes),
          scratch_(h_, threads, p.backward, workspace_) {}

    void forward() {
        const int64_t wanted = ceil_div(kItemsPerWorker * threads_, p_.num_classes);
        const int64_t blocks = std::clamp<int64_t>(wanted, 1, ceil_div(h_.height, kRowBlock));
        const int64_t block_rows = ceil_div(h_.height, blocks);
        for_each_item(p_.num_classes * blocks, [&](int worker, int64_t item) {
            const int64_t c = item / blocks, y0 = item % blocks * block_rows;
            merge_rows(worker, c, y0, std::min(y0 + block_rows, h_.height));
        });
    }

    void backward() {
        for_each_item(p_.num_classes * h_.num_bands, [&](int worker, int64_t item) {
            share_out(worker, item / h_.num_bands, t_.bands[item % h_.num_bands]);
        });
    }

private:
    static constexpr int kLanes = kVectorBytes / sizeof(T);
    static constexpr int kVectors = 4;                   // independent sums that hide the latency of an addition
    static constexpr int64_t kStep = kVectors * kLanes;  // columns per step; divides a tile
    static_assert(kWindowTile % kStep == 0, "bands begin and end at whole tiles");
    using V = Vec<T, kLanes>;

    // Calls fn(worker, item). Workers take items as they come; what is computed for one does not depend on the worker.
    template <class Fn>
    void for_each_item(int64_t items, const Fn& fn) {
        int64_t next = 0;
        parallel_for(std::min<int64_t>(threads_, items), threads_, [&](int64_t worker) {
            for (;;) {
                const int64_t item = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED);
                if (item >= items) return;
                fn(static_cast<int>(worker), item);
            }
        });
    }

    T* patches(const WindowsWindow& window, const WindowsBand& band, int64_t c, int64_t a) const {
        const int64_t grid = static_cast<int64_t>(band.grid_height) * band.grid_width;
        return static_cast<T*>(p_.scores) + p_.num_classes * window.patches + c * grid + a * band.grid_width;
    }

    void merge_rows(int worker, int64_t c, int64_t y0, int64_t y1) {
        T* const rows = scratch_.rows + worker * scratch_.rows_stride;
        int32_t* const kept = scratch_.kept + worker * scratch_.kept_stride;
        BandBlend<T>* const blend = scratch_.blend + worker * scratch_.blend_stride;
        std::fill_n(kept, 2 * h_.num_bands, -1);
        for (int64_t y = y0; y < y1; ++y) {
            const int32_t run = t_.run_of_row[y];
            const int32_t count = t_.runs[run].num_bands;
            const int32_t* list = t_.band_lists + t_.runs[run].first_band;
            for (int32_t i = 0; i < count; ++i) blend[i] = blend_of(list[i], c, y, rows, kept);
            T* const out = static_cast<T*>(p_.merged) + (c * h_.height + y) * h_.width;
            blend_row(blend, count, inverse_counts(t_, run, 0), out);
        }
    }

    BandBlend<T> blend_of(int32_t index, int64_t c, int64_t y, T* rows, int32_t* kept) const {
        const WindowsBand& band = t_.bands[index];
        const WindowsRamp& ramp = t_.ramps[band.ramp];
        const int32_t low = t_.ramp_index[ramp.taps + y - band.y0], high = upper_index(low, ramp.size);
        const T weight = t_.ramp_weight[ramp.taps + y - band.y0];
        const int64_t columns = band.x1 - band.x0;
        rows += 2 * band.columns;
        kept += 2 * index;
        for (const int32_t a : {low, high}) {
            if (kept[a % 2] == a) continue;
            stretch(band, c, a, rows + a % 2 * columns);
            kept[a % 2] = a;
        }
        return {
            rows + low % 2 * columns, rows + high % 2 * columns, T(1) - weight, weight, band.x0, band.x1, band.setup};
    }

    // The sum over the windows of a band of patch row `a`, stretched to their columns; zero where none is.
    void stretch(const WindowsBand& band, int64_t c, int64_t a, T* row) const {
        std::fill_n(row, band.x1 - band.x0, T(0));
        for (int32_t k = band.first_window; k < band.first_window + band.num_windows; ++k) {
            const WindowsWindow& window = t_.windows[k];
            const WindowsRamp& ramp = t_.ramps[window.ramp];
            const T* const in = patches(window, band, c, a);
            const T* const weight = t_.ramp_weight + ramp.taps;
            const int32_t* const first = t_.ramp_first + ramp.first;
            T* const out = row + (window.x0 - band.x0);
            for (int32_t j = 0; j < ramp.size; ++j) {
                const T low = in[j], high = in[upper_index(j, ramp.size)];
                for (int32_t i = first[j]; i < first[j + 1]; ++i) out[i] += (T(1) - weight[i]) * low + weight[i] * high;
            }
        }
    }

    // out[x] = sum over set-ups of inverse count * sum over bands of the two weighted rows.
    void blend_row(const BandBlend<T>* blend, int32_t count, const T* inverse_count, T* out) const {
        for (int64_t x = 0; x < h_.width; x += kStep) {
            V total[kVectors] = {};
            for (int32_t i = 0; i < count;) {
                const int32_t setup = blend[i].setup;
                V sum[kVectors] = {};
                for (; i < count && blend[i].setup == setup; ++i) {
                    const BandBlend<T>& b = blend[i];
                    if (x < b.x0 || x >= b.x1) continue;
                    const T *const low = b.low + (x - b.x0), *const high = b.high + (x - b.x0);
                    OVS_UNROLL
                    for (int v = 0; v < kVectors; ++v) {
                        sum[v] += b.low_weight * load<V>(low + v * kLanes);
                        sum[v] += b.high_weight * load<V>(high + v * kLanes);
                    }
                }
                const T* const inverse = inverse_count + setup * h_.pitch + x;
                OVS_UNROLL
                for (int v = 0; v < kVectors; ++v) total[v] += sum[v] * load<V>(inverse + v * kLanes);
            }
            if (x + kStep <= h_.width) {
                OVS_UNROLL
                for (int v = 0; v < kVectors; ++v) store(out + x + v * kLanes, total[v]);
            } else {
                T buffer[kStep];
                OVS_UNROLL
                for (int v = 0; v < kVectors; ++v) store(buffer + v * kLanes, total[v]);
                std::memcpy(out + x, buffer, static_cast<std::size_t>(h_.width - x) * sizeof(T));
            }
        }
    }

    // The cotangent of one class of the scores of a band's windows.
    void share_out(int worker, int64_t c, const WindowsBand& band) {
        const WindowsRamp& ramp = t_.ramps[band.ramp];
        const int64_t columns = band.x1 - band.x0, used = std::min<int64_t>(columns, h_.width - band.x0);
        T* const rows = scratch_.rows + worker * scratch_.rows_stride;
        int32_t kept[2] = {-1, -1};
        for (int32_t k = band.first_window; k < band.first_window + band.num_windows; ++k) {
            std::fill_n(patches(t_.windows[k], band, c, 0), static_cast<int64_t>(band.grid_height) * band.grid_width,
                        T(0));
        }
        for (int64_t y = band.y0; y < band.y1; ++y) {
            const int32_t low = t_.ramp_index[ramp.taps + y - band.y0], high = upper_index(low, ramp.size);
            const T weight = t_.ramp_weight[ramp.taps + y - band.y0];
            for (const int32_t a : {low, high}) {
                if (kept[a % 2] == a) continue;
                if (kept[a % 2] >= 0) shrink(band, c, kept[a % 2], rows + a % 2 * columns);
                std::fill_n(rows + a % 2 * columns, columns, T(0));
                kept[a % 2] = a;
            }
            const T* const v_out = static_cast<const T*>(p_.merged) + (c * h_.height + y) * h_.width + band.x0;
            const T* const inverse = inverse_counts(t_, t_.run_of_row[y], band.setup) + band.x0;
            add_row(v_out, inverse, T(1) - weight, used, rows + low % 2 * columns);
            add_row(v_out, inverse, weight, used, rows + high % 2 * columns);
        }
        for (const int slot : {0, 1}) {
            if (kept[slot] >= 0) shrink(band, c, kept[slot], rows + slot * columns);
        }
    }

    static void add_row(const T* __restrict v_out, const T* __restrict inverse, T weight, int64_t count,
                        T* __restrict row) {
        for (int64_t x = 0; x < count; ++x) row[x] += weight * (v_out[x] * inverse[x]);
    }

    // The transpose of `stretch`.
    void shrink(const WindowsBand& band, int64_t c, int64_t a, const T* row) const {
        for (int32_t k = band.first_window; k < band.first_window + band.num_windows; ++k) {
            const WindowsWindow& window = t_.windows[k];
            const WindowsRamp& ramp = t_.ramps[window.ramp];
            T* const out = patches(window, band, c, a);
            const T* const weight = t_.ramp_weight + ramp.taps;
            const int32_t* const first = t_.ramp_first + ramp.first;
            const T* const in = row + (window.x0 - band.x0);
            for (int32_t j = 0; j < ramp.size; ++j) {
                T low = 0, high = 0;
                for (int32_t i = first[j]; i < first[j + 1]; ++i) {
                    low += (T(1) - weight[i]) * in[i];
                    high += weight[i] * in[i];
                }
                out[j] += low;
                out[upper_index(j, ramp.size)] += high;
            }
        }
    }

    const WindowsParams& p_;
    const WindowsHeader& h_;
    WindowsTables<T> t_;
    int threads_;
    Workspace workspace_;
    WindowsScratch<T> scratch_;
};

template <class T>
void run(const WindowsParams& p, void* workspace, std::size_t bytes, int threads) {
    Merger<T> merger(p, workspace, bytes, threads);
    p.backward ? merger.backward() : merger.forward();
}

}  // namespace

void merge_windows_level(const WindowsParams& p, DType dtype, void* workspace, std::size_t bytes, int threads) {
    if (dtype == DType::kFloat64) {
        run<double>(p, workspace, bytes, threads);
    } else {
        run<float>(p, workspace, bytes, threads);
    }
}

}  // namespace OVS_ISA
}  // namespace ovs
