// pamr on a CPU; compiled once per instruction-set level. pamr_cpu.h says how the image is streamed.
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
        int64_t next = 0;
        parallel_for(grid_.workers, static_cast<int>(grid_.workers), [&](int64_t worker) {
            for (;;) {
                const int64_t first = __atomic_fetch_add(&next, grid_.chunk, __ATOMIC_RELAXED);
                if (first >= p_.num_classes) return;
                make_classes(worker, first, std::min(grid_.chunk, p_.num_classes - first));
            }
        });
    }

private:
    static constexpr int64_t kBlock = PamrGrid<T>::kBlock;

    // Some iterations of some classes, and where their worker keeps what it needs.
    struct Pass {
        T *image, *weights, *rings;
        const T* from;  // [classes, H, W]
        T* to;          // [classes, H, W], may be `from`
        int64_t classes, levels;
    };

    void make_classes(int64_t worker, int64_t first, int64_t classes) const {
        const int64_t passes = ceil_div(p_.num_iter, grid_.levels), plane = p_.height * p_.width;
        const T* from = static_cast<const T*>(p_.scores) + first * plane;
        T* const to = static_cast<T*>(p_.out) + first * plane;
        T* const image = buffers_.image + worker * grid_.ring_rows * grid_.image_stride;
        T* const weights = buffers_.weights + worker * grid_.weight_rows * grid_.weight_stride;
        T* const rings = buffers_.rings + worker * grid_.levels * grid_.ring_rows * grid_.row_stride;
        for (int64_t pass = 0; pass < passes; ++pass) {
            const int64_t levels = p_.num_iter * (pass + 1) / passes - p_.num_iter * pass / passes;
            run_pass({image, weights, rings, from, to, classes, levels});
            from = to;
        }
    }

    // Between two steps all threads wait for each other. In step s rows of block s are loaded, and level t makes those
    // of block s - t * lag.
    void run_pass(const Pass& pass) const {
        const int64_t blocks = ceil_div(p_.height, grid_.block_rows);
        const Step<T> step(grid_, pass.classes);
        for (int64_t s = 0; s < blocks + pass.levels * grid_.lag; ++s) {
            parallel_for((pass.levels + 1) * grid_.block_rows, static_cast<int>(grid_.team), [&](int64_t item) {
                // One thread goes in order: what a level reads may come from the level before it in the same step. For
                // a team the loads, which are short, come last.
                const int64_t turn = item / grid_.block_rows;
                const int64_t level = grid_.team == 1 ? turn : (turn + 1) % (pass.levels + 1);
                const int64_t y = (s - level * grid_.lag) * grid_.block_rows + item % grid_.block_rows;
                if (y < 0 || y >= p_.height) return;
                level == 0 ? load(pass, y) : make(pass, step, level, y);
            });
        }
    }

    void load(const Pass& pass, int64_t y) const {
        const int64_t plane = p_.height * p_.width, slot = y % grid_.ring_rows;
        load_row(static_cast<const T*>(p_.image) + y * p_.width, p_.num_features, plane,
                 pass.image + slot * grid_.image_stride, grid_, p_.width);
        load_row(pass.from + y * p_.width, pass.classes, plane, ring(pass, 0) + slot * grid_.row_stride, grid_,
                 p_.width);
    }

    void make(const Pass& pass, const Step<T>& step, int64_t level, int64_t y) const {
        const int64_t slot = y % grid_.ring_rows;
        const bool last = level == pass.levels;
        T* const to = last ? pass.to + y * p_.width : ring(pass, level) + slot * grid_.row_stride + grid_.left;
        const int64_t to_stride = last ? p_.height * p_.width : grid_.pitch;
        T* const weights = pass.weights + y % grid_.weight_rows * grid_.weight_stride;
        const TapRows<T> taps(ring(pass, level - 1), grid_.ring_rows, grid_.row_stride, y, p_, grid_);
        if (level == 1) {
            const TapRows<T> image(pass.image, grid_.ring_rows, grid_.image_stride, y, p_, grid_);
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
        if (last) return;
        for (int64_t k = 0; k < pass.classes; ++k) fill_borders(to + k * grid_.pitch, grid_, p_.width);
    }

    T* ring(const Pass& pass, int64_t level) const { return pass.rings + level * grid_.ring_rows * grid_.row_stride; }

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
