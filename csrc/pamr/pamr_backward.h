// The transpose of pamr: classes one by one on each thread, pixels give to their neighbours. Included per
// instruction-set level.
//
// All weights are made first. A plane of the cotangent fits into the second-level cache or is not far from it; a class
// belongs to one thread, which adds in one order. Rows have borders that collect what goes beyond the image, and which
// are added to the first and last pixel after each iteration.
#pragma once
#include <cstdint>

#include "common/parallel.h"
#include "pamr/pamr_cpu.h"
#include "pamr/pamr_rows.h"

namespace ovs {
namespace OVS_ISA {
namespace {

template <class T>
class Transposed {
public:
    Transposed(const PamrParams& p, const PamrGrid<T>& grid, const PamrBuffers<T>& buffers, int threads)
        : p_(p), grid_(grid), buffers_(buffers), weights_(p, grid), threads_(threads) {
        rows_.ring_rows = p.height;
    }

    void run() const {
        parallel_for(p_.height, threads_, [&](int64_t y) {
            load_row(static_cast<const T*>(p_.image) + y * p_.width, p_.num_features, p_.height * p_.width,
                     buffers_.image + y * grid_.image_stride, grid_, p_.width);
        });
        parallel_for(p_.height, threads_, [&](int64_t y) { make_weights(y); });
        int64_t next = 0;
        parallel_for(threads_, threads_, [&](int64_t worker) {
            for (;;) {
                const int64_t k = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED);
                if (k >= p_.num_classes) return;
                make_class(k, buffers_.planes + 2 * worker * plane());
            }
        });
    }

private:
    static constexpr int kLanes = kVectorBytes / sizeof(T);
    static constexpr int64_t kBlock = PamrGrid<T>::kBlock;
    using V = Vec<T, kLanes>;

    int64_t plane() const { return p_.height * grid_.pitch; }
    T* weights_of(int64_t y, int64_t x) const { return buffers_.weights + y * grid_.weight_stride + x * grid_.taps; }

    void make_weights(int64_t y) const {
        const TapRows<T> taps(buffers_.image, rows_, grid_.image_stride, nullptr, 0, y, p_, grid_);
        const T* const centre = buffers_.image + y * grid_.image_stride + grid_.left;
        for (int64_t x = 0; x < p_.width; x += kBlock) {
            T* const to = weights_of(y, x);
            weights_.make(centre + x, taps, x, to);
            for (int64_t lane = p_.width - x; lane < kBlock; ++lane) {  // no pixels there: they give nothing
                for (int64_t tap = 0; tap < grid_.taps; ++tap) to[tap * kBlock + lane] = T(0);
            }
        }
    }

    // planes: two of [H, pitch], which take turns.
    void make_class(int64_t k, T* planes) const {
        const int64_t offset = k * p_.height * p_.width;
        T *from = planes + grid_.left, *to = from + plane();
        const T* const given = static_cast<const T*>(p_.scores) + offset;
        for (int64_t y = 0; y < p_.height; ++y) {
            __builtin_memcpy(from + y * grid_.pitch, given + y * p_.width,
                             sizeof(T) * static_cast<std::size_t>(p_.width));
        }
        for (int64_t iteration = 0; iteration < p_.num_iter; ++iteration) {
            __builtin_memset(to - grid_.left, 0, sizeof(T) * static_cast<std::size_t>(plane()));
            for (int64_t y = 0; y < p_.height; ++y) give_row(from + y * grid_.pitch, to, y);
            for (int64_t y = 0; y < p_.height; ++y) fold_borders(to + y * grid_.pitch);
            T* const swapped = from;
            from = to;
            to = swapped;
        }
        T* const result = static_cast<T*>(p_.out) + offset;
        for (int64_t y = 0; y < p_.height; ++y) {
            __builtin_memcpy(result + y * p_.width, from + y * grid_.pitch,
                             sizeof(T) * static_cast<std::size_t>(p_.width));
        }
    }

    void give_row(T* row, T* to, int64_t y) const {
        for (int64_t x = p_.width; x < grid_.padded_width; ++x) row[x] = T(0);
        T* at[kMaxTaps];
        for (int64_t i = 0; i < p_.num_dilations; ++i) {
            const int64_t dy = pamr_reach(p_.dilations[i], p_.height), dx = pamr_reach(p_.dilations[i], p_.width);
            for (int64_t tap = 0; tap < kPamrTaps; ++tap) {
                const int64_t target = pamr_clamp(y + pamr_row_step(tap) * dy, p_.height);
                at[i * kPamrTaps + tap] = to + target * grid_.pitch + pamr_column_step(tap) * dx;
            }
        }
        for (int64_t x = 0; x < p_.width; x += kBlock) {
            const T* const weights = weights_of(y, x);
            for (int64_t lane = 0; lane < kBlock; lane += kLanes) {
                const V value = load<V>(row + x + lane);
                for (int64_t tap = 0; tap < grid_.taps; ++tap) {
                    T* const target = at[tap] + x + lane;
                    store(target, load<V>(target) + load<V>(weights + tap * kBlock + lane) * value);
                }
            }
        }
    }

    void fold_borders(T* row) const {
        for (int64_t x = 1; x <= grid_.reach_x; ++x) {
            row[0] += row[-x];
            row[p_.width - 1] += row[p_.width - 1 + x];
        }
    }

    const PamrParams& p_;
    const PamrGrid<T>& grid_;
    const PamrBuffers<T>& buffers_;
    PamrRows rows_ = grid_.rows(0);  // all of them
    Weights<T> weights_;
    int threads_;
};

}  // namespace
}  // namespace OVS_ISA
}  // namespace ovs
