// pamr on a CPU; compiled once per instruction-set level. pamr_cpu.h says how the image is streamed.
#include <limits>

#include "common/parallel.h"
#include "pamr/pamr_backward.h"
#include "pamr/pamr_cpu.h"
#include "pamr/pamr_rows.h"

namespace ovs {
namespace OVS_ISA {
namespace {

template <class T>
class Refiner {
public:
    Refiner(const PamrParams& p, const PamrGrid<T>& grid, const PamrBuffers<T>& buffers)
        : p_(p), grid_(grid), buffers_(buffers), weights_(p, grid) {}

    void run() const {
        const bool labels = p_.label_bytes != 0;
        if (labels) start_labels();
        int64_t next = 0;
        parallel_for(grid_.workers, static_cast<int>(grid_.workers), [&](int64_t worker) {
            for (;;) {
                const int64_t first = __atomic_fetch_add(&next, grid_.share, __ATOMIC_RELAXED);
                if (first >= p_.num_classes) return;
                make_classes(worker, first, std::min(grid_.share, p_.num_classes - first));
            }
        });
        if (labels) finish_labels();
    }

private:
    static constexpr int64_t kBlock = PamrGrid<T>::kBlock;

    // Rows of planes, in the place of their row of the image or of their index.
    template <class U>
    struct Rows {
        U* at;
        int64_t plane;
        bool by_index;
    };

    // Some iterations of some rows of some classes, and where their worker keeps what it needs.
    struct Pass {
        T *image, *image_edges, *weights, *rings;
        T* edges;  // of the first of these classes, before the first of these iterations
        T* between;
        T* best;         // labels: [H, W] of the worker
        int32_t* found;  // labels: the same
        Rows<const T> from;
        Rows<T> to;  // may be the same; not in the last pass to labels
        int64_t first, classes, levels;
        PamrRows rows;
        bool label;         // the last level updates the best classes
        bool leave_edges;   // for the rows that come later
        bool make_weights;  // or they are there from an earlier pass
    };

    void make_classes(int64_t worker, int64_t first, int64_t classes) const {
        Pass pass{};
        pass.image = buffers_.image + worker * grid_.ring_rows * grid_.image_stride;
        pass.image_edges = buffers_.image_edges + (grid_.edge_levels > 0 ? worker * 2 * grid_.image_stride : 0);
        pass.weights = buffers_.weights + worker * grid_.weight_rows * grid_.weight_stride;
        pass.rings = buffers_.rings + worker * grid_.rings * grid_.ring_rows * grid_.row_stride;
        if (p_.label_bytes != 0) {
            if (grid_.passes > 1) pass.between = buffers_.between + worker * grid_.chunk * between_plane();
            pass.best = buffers_.best + worker * p_.height * p_.width;
            pass.found = buffers_.found + worker * p_.height * p_.width;
        }
        T* const edges = buffers_.edges + worker * grid_.edge_levels * edge_stride();
        for (int64_t start = 0; start < grid_.passes; start += grid_.together) {
            for (int64_t set = 0; set < grid_.row_sets(); ++set) {
                pass.rows = grid_.rows(set);
                pass.leave_edges = set == 0 && grid_.row_sets() > 1;
                pass.make_weights = true;
                for (int64_t k = 0; k < classes; k += grid_.chunk) {
                    pass.classes = std::min(grid_.chunk, classes - k);
                    pass.edges = edges + k * grid_.pitch;
                    pass.first = first + k;
                    make_chunk(pass, start);
                    pass.make_weights = !pass.rows.kept;
                }
            }
        }
    }

    // The passes from `start` on that are taken together.
    void make_chunk(Pass pass, int64_t start) const {
        const int64_t plane = p_.height * p_.width, offset = pass.first * plane;
        if (p_.label_bytes != 0) {
            pass.to = {pass.between, between_plane(), true};
        } else {
            pass.to = {static_cast<T*>(p_.out) + offset, plane, false};
        }
        for (int64_t n = start; n < std::min(grid_.passes, start + grid_.together); ++n) {
            const int64_t done = p_.num_iter * n / grid_.passes;
            pass.levels = p_.num_iter * (n + 1) / grid_.passes - done;
            pass.from = {pass.to.at, pass.to.plane, pass.to.by_index};
            if (n == 0) pass.from = {static_cast<const T*>(p_.scores) + offset, plane, false};
            pass.label = p_.label_bytes != 0 && n + 1 == grid_.passes;
            run_pass(pass);
            pass.edges += pass.levels * edge_stride();
            pass.make_weights = pass.make_weights && !pass.rows.kept;
        }
    }

    // In step s rows of block s are loaded, and level t makes those of block s - t * lag.
    void run_pass(const Pass& pass) const {
        const int64_t block_rows = pass.rows.block_rows, lag = pass.rows.lag, count = pass.rows.count;
        const Step<T> step(grid_, pass.classes);
        for (int64_t s = 0; s < ceil_div(count, block_rows) + pass.levels * lag; ++s) {
            if (grid_.team == 1) {
                // In order: what a level reads may come from the level before it in the same step.
                if (s < count) load(pass, s);
                for (int64_t level = 1; level <= pass.levels; ++level) {
                    const int64_t index = s - level * lag;
                    if (0 <= index && index < count) make(pass, step, level, index);
                }
                continue;
            }
            // Between two steps all threads wait for each other. The loads, which are short, come last.
            parallel_for((pass.levels + 1) * block_rows, static_cast<int>(grid_.team), [&](int64_t item) {
                const int64_t level = (item / block_rows + 1) % (pass.levels + 1);
                const int64_t index = (s - level * lag) * block_rows + item % block_rows;
                if (index < 0 || index >= count) return;
                level == 0 ? load(pass, index) : make(pass, step, level, index);
            });
        }
    }

    void load(const Pass& pass, int64_t index) const {
        const int64_t plane = p_.height * p_.width, slot = index % pass.rows.ring_rows, y = pass.rows.row(index);
        if (pass.make_weights) {
            T* const row = pass.image + slot * grid_.image_stride;
            load_row(static_cast<const T*>(p_.image) + y * p_.width, p_.num_features, plane, row, grid_, p_.width);
            if (pass.leave_edges && at_edge(y)) {
                copy(row, pass.image_edges + (y == 0 ? 0 : grid_.image_stride), p_.num_features);
            }
        }
        T* const row = ring(pass, 0) + slot * grid_.row_stride;
        const T* const from = pass.from.at + (pass.from.by_index ? index : y) * p_.width;
        load_row(from, pass.classes, pass.from.plane, row, grid_, p_.width);
        if (pass.leave_edges && at_edge(y)) leave_edge(pass, row, 0, y);
    }

    void make(const Pass& pass, const Step<T>& step, int64_t level, int64_t index) const {
        const int64_t y = pass.rows.row(index), slot = index % pass.rows.ring_rows;
        const bool last = level == pass.levels, leave = last && !pass.label;
        T* const to = leave ? pass.to.at + (pass.to.by_index ? index : y) * p_.width
                            : ring(pass, level) + slot * grid_.row_stride + grid_.left;
        const int64_t to_stride = leave ? pass.to.plane : grid_.pitch;
        T* const weights = pass.weights + index % pass.rows.weight_rows * grid_.weight_stride;
        const TapRows<T> taps(ring(pass, level - 1), pass.rows, grid_.row_stride,
                              pass.edges + (level - 1) * edge_stride(), edge_stride() / 2, index, p_, grid_);
        if (level == 1 && pass.make_weights) {
            const TapRows<T> image(pass.image, pass.rows, grid_.image_stride, pass.image_edges, grid_.image_stride,
                                   index, p_, grid_);
            const T* const centre = pass.image + slot * grid_.image_stride + grid_.left;
            for (int64_t x = 0; x < p_.width; x += kBlock) {
                weights_.make(centre + x, image, x, weights + x * grid_.taps);
                step(taps, weights + x * grid_.taps, x, to + x, to_stride, p_.width - x);
            }
        } else {
            for (int64_t x = 0; x < p_.width; x += kBlock) {
                step(taps, weights + x * grid_.taps, x, to + x, to_stride, p_.width - x);
            }
        }
        for (int64_t k = 0; last && pass.label && k < pass.classes; ++k) {
            const auto number = static_cast<int32_t>(pass.first + k);
            update_best(to + k * grid_.pitch, p_.width, number, pass.best + y * p_.width, pass.found + y * p_.width);
        }
        if (last) return;
        for (int64_t k = 0; k < pass.classes; ++k) fill_borders(to + k * grid_.pitch, grid_, p_.width);
        if (pass.leave_edges && at_edge(y)) leave_edge(pass, to - grid_.left, level, y);
    }

    void start_labels() const {
        parallel_for(p_.height * grid_.workers, num_threads(), [&](int64_t row) {
            for (int64_t x = row * p_.width; x < (row + 1) * p_.width; ++x) {
                buffers_.best[x] = -std::numeric_limits<T>::infinity();
                buffers_.found[x] = 0;
            }
        });
    }

    // The best of the workers' best: each had classes of its own, in any order.
    void finish_labels() const {
        const int64_t pixels = p_.height * p_.width;
        parallel_for(p_.height, num_threads(), [&](int64_t y) {
            for (int64_t x = y * p_.width; x < (y + 1) * p_.width; ++x) {
                T best = buffers_.best[x];
                int32_t found = buffers_.found[x];
                for (int64_t at = x + pixels; at < grid_.workers * pixels; at += pixels) {
                    const T other = buffers_.best[at];
                    const int32_t number = buffers_.found[at];
                    if (other > best || (other == best && number < found)) best = other, found = number;
                }
                if (p_.label_bytes == 1) {
                    static_cast<uint8_t*>(p_.labels)[x] = static_cast<uint8_t>(found);
                } else {
                    static_cast<int32_t*>(p_.labels)[x] = found;
                }
            }
        });
    }

    int num_threads() const { return static_cast<int>(grid_.workers * grid_.team); }
    int64_t between_plane() const { return grid_.most_rows * p_.width; }
    bool at_edge(int64_t y) const { return y == 0 || y == p_.height - 1; }

    // row: [classes, pitch], after `level` iterations of this pass.
    void leave_edge(const Pass& pass, const T* row, int64_t level, int64_t y) const {
        copy(row, pass.edges + level * edge_stride() + (y == 0 ? 0 : edge_stride() / 2), pass.classes);
    }

    void copy(const T* rows, T* to, int64_t count) const {
        __builtin_memcpy(to, rows, static_cast<std::size_t>(count * grid_.pitch) * sizeof(T));
    }

    int64_t edge_stride() const { return 2 * grid_.share * grid_.pitch; }  // from iteration to iteration
    T* ring(const Pass& pass, int64_t level) const {
        return pass.rings + level * pass.rows.ring_rows * grid_.row_stride;
    }

    const PamrParams& p_;
    const PamrGrid<T>& grid_;
    const PamrBuffers<T>& buffers_;
    Weights<T> weights_;
};

template <class T>
void run(const PamrParams& p, void* workspace, std::size_t bytes, int threads) {
    const PamrGrid<T> grid(p, threads);
    Workspace pieces(workspace, bytes);
    const PamrBuffers<T> buffers(p, grid, threads, pieces);
    if (p.backward) {
        Transposed<T>(p, grid, buffers, threads).run();
    } else {
        Refiner<T>(p, grid, buffers).run();
    }
}

}  // namespace

void pamr_image(const PamrParams& p, DType dtype, void* workspace, std::size_t bytes, int threads) {
    if (dtype == DType::kFloat64) {
        run<double>(p, workspace, bytes, threads);
    } else {
        run<float>(p, workspace, bytes, threads);
    }
}

}  // namespace OVS_ISA
}  // namespace ovs
