// The exact Gaussian over the positions of an image on a CPU: two sums along the axes; included per instruction-set
// level.
#pragma once
#include "crf/crf_rows.h"

namespace ovs {
namespace OVS_ISA {
namespace {

constexpr double kExactReach = 5.0;    // standard deviations
constexpr int64_t kStripColumns = 64;  // of an item of work: its rows within reach stay in the second-level cache
constexpr int64_t kStripRows = 32;

template <class T>
class ExactGaussian {
public:
    ExactGaussian(const CrfProblem& p, const CrfTerm& t, CrfState<T>& s, int64_t pitch, int threads)
        : p_(p), t_(t), s_(s), pitch_(pitch), threads_(threads) {}

    // Weights, and the factors of the normalisation; `after` times `unit`, and the compatibility if that is a number.
    void start(double unit) {
        const double sigma[2] = {t_.sx, t_.sy};
        const int64_t extent[2] = {p_.width, p_.height};
        for (int axis = 0; axis < 2; ++axis) {
            const double reach =
                std::min(__builtin_ceil(kExactReach * sigma[axis]), static_cast<double>(extent[axis] - 1));
            s_.reach[axis] = static_cast<int64_t>(reach);
            for (int64_t d = 0; d <= s_.reach[axis]; ++d) {
                const double x = static_cast<double>(d) / sigma[axis];
                s_.kernel[axis][d] = static_cast<T>(__builtin_exp(-0.5 * x * x));
            }
        }
        const NormPowers powers = norm_powers(static_cast<int>(p_.normalization), false);
        const double scale = unit * (t_.compat_rank == 0 ? t_.compat : 1.0);
        for_each_block(p_.height, 8, threads_, [&](int64_t begin, int64_t end) {
            for (int64_t y = begin; y < end; ++y) {
                const double down = response(1, y, p_.height);
                for (int64_t x = 0; x < p_.width; ++x) {
                    const double norm = down * response(0, x, p_.width);
                    s_.before[y * p_.width + x] = static_cast<T>(norm_factor(norm, powers.before));
                    s_.after[y * p_.width + x] = static_cast<T>(scale * norm_factor(norm, powers.after));
                }
            }
        });
    }

    // The sums along columns of before * q; those along rows are taken where a pixel reads them.
    void sum_down(const T* q) {
        const int64_t strips = ceil_div(p_.width, kStripColumns);
        for_each_item(strips * ceil_div(p_.height, kStripRows), threads_, [&](int, int64_t item) {
            const int64_t x0 = item % strips * kStripColumns, x1 = std::min(p_.width, x0 + kStripColumns);
            const int64_t y0 = item / strips * kStripRows, y1 = std::min(p_.height, y0 + kStripRows);
            for (int64_t y = y0; y < y1; ++y) {
                for (int64_t x = x0; x < x1; ++x) sum_column(q, y, x);
            }
        });
        s_.rows = s_.down;
    }

    // Adds after * the sum along the row of pixel i, which is in column x, to classes c and on.
    template <int kTile>
    OVS_INLINE static void add_across(const CrfState<T>& s, int64_t i, int64_t x, int64_t width, int64_t pitch,
                                      int64_t c, typename Rows<T>::V (&sum)[kTile]) {
        typename Rows<T>::V part[kTile] = {};
        const int64_t first = std::max<int64_t>(0, x - s.reach[0]), last = std::min(width - 1, x + s.reach[0]);
        const T* row = s.rows + (i - x + first) * pitch + c;
        for (int64_t u = first; u <= last; ++u, row += pitch) {
            Rows<T>::add_row(part, s.kernel[0][u < x ? x - u : u - x], row);
        }
        OVS_UNROLL
        for (int k = 0; k < kTile; ++k) sum[k] += s.after[i] * part[k];
    }

private:
    double response(int axis, int64_t at, int64_t extent) const {
        double sum = 0.0;
        const int64_t first = std::max<int64_t>(0, at - s_.reach[axis]),
                      last = std::min(extent - 1, at + s_.reach[axis]);
        for (int64_t k = first; k <= last; ++k) sum += static_cast<double>(s_.kernel[axis][k < at ? at - k : k - at]);
        return sum;
    }

    OVS_INLINE void sum_column(const T* q, int64_t y, int64_t x) const {
        const int64_t first = std::max<int64_t>(0, y - s_.reach[1]), last = std::min(p_.height - 1, y + s_.reach[1]);
        Rows<T>::for_each_tile(pitch_, [&](auto tile, int64_t c) {
            typename Rows<T>::V sum[decltype(tile)::value] = {};
            for (int64_t v = first; v <= last; ++v) {
                const int64_t i = v * p_.width + x;
                Rows<T>::add_row(sum, s_.kernel[1][v < y ? y - v : v - y] * s_.before[i], q + i * pitch_ + c);
            }
            Rows<T>::store_row(s_.down + (y * p_.width + x) * pitch_ + c, sum);
        });
    }

    const CrfProblem& p_;
    const CrfTerm& t_;
    CrfState<T>& s_;
    int64_t pitch_;
    int threads_;
};

}  // namespace
}  // namespace OVS_ISA
}  // namespace ovs
