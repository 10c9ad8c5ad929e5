// Per level: r and c of a matrix, which is read once per iteration.
//
// A pass takes four rows at a time, for which c is known: their sums s = A c, r = 1 / s, and then, while the rows are
// in the cache, their part of the column sums t += r A, from which the next c is made. Between the two the next four
// rows are fetched. Every other pass goes from the last row to the first, so that it begins with what the level-3 cache
// still holds.
#pragma once
#include <limits>

#include "common/parallel.h"
#include "markov/markov_cpu.h"
#include "markov/markov_storage.h"

namespace ovs {
namespace OVS_ISA {
namespace {

constexpr int kRowsAtOnce = 4;
constexpr int64_t kLineBytes = 64;
constexpr int64_t kRun = 2048;  // columns summed in float32 before the sum goes on in double

template <class S>
class Scaler {
    using T = typename S::T;
    using V = typename S::V;
    using Raw = typename S::Raw;
    static constexpr int kLanes = S::kLanes;

public:
    Scaler(const ScalingParams& p, void* workspace, std::size_t bytes, int threads)
        : p_(p),
          n_(p.num_nodes),
          threads_(useful_threads(p.num_nodes, threads)),
          workspace_(workspace, bytes),
          b_(p, workspace_) {}

    bool run() {
        std::fill_n(r(), n_, T(1));
        std::fill_n(c(), n_, T(1));
        pass<true>(false);
        bool valid = columns_are_finite();
        for (int64_t group = 0; group < b_.groups; ++group) valid = valid && b_.bad_groups[group] == 0;
        if (!valid) {
            const T nan = std::numeric_limits<T>::quiet_NaN();
            std::fill_n(r(), n_, nan);
            std::fill_n(c(), n_, nan);
            if (p_.column_error != nullptr) *p_.column_error = nan;
            return false;
        }
        for (int iteration = 1; iteration <= p_.n_iter; ++iteration) {
            for_each_column([&](int64_t j, T t, double&) { c()[j] = inverse_sum(t); });
            pass<false>(iteration % 2 == 1, iteration < p_.n_iter || p_.column_error != nullptr);
        }
        if (p_.column_error != nullptr) *p_.column_error = measure_error();
        return true;
    }

private:
    T* r() const { return static_cast<T*>(p_.r); }
    T* c() const { return static_cast<T*>(p_.c); }
    const Raw* row(int64_t i) const { return static_cast<const Raw*>(p_.attention) + i * n_; }

    // fn(column, its sum over all groups, a double of the panel that starts at 0 and is kept in `errors`)
    template <class Fn>
    void for_each_column(const Fn& fn) {
        parallel_for(num_panels(n_), threads_, [&](int64_t panel) {
            const int64_t begin = panel * kPanelColumns, count = std::min(kPanelColumns, n_ - begin);
            double totals[kPanelColumns] = {}, note = 0.0;
            for (int64_t group = 0; group < b_.groups; ++group) {
                const T* sums = b_.sums + group * b_.stride + begin;
                for (int64_t j = 0; j < count; ++j) totals[j] += sums[j];
            }
            for (int64_t j = 0; j < count; ++j) fn(begin + j, static_cast<T>(totals[j]), note);
            b_.errors[panel] = note;
        });
    }

    double largest_note() const {
        double largest = 0.0;
        for (int64_t panel = 0; panel < num_panels(n_); ++panel) largest = std::max(largest, b_.errors[panel]);
        return largest;
    }

    bool columns_are_finite() {
        for_each_column([](int64_t, T t, double& bad) {
            if (!(t <= std::numeric_limits<T>::max())) bad = 1.0;
        });
        return largest_note() == 0.0;
    }

    double measure_error() {
        for_each_column([&](int64_t j, T t, double& worst) {
            const double error = static_cast<double>(c()[j]) * t - 1.0;
            if (c()[j] > T(0)) worst = std::max(worst, error < 0.0 ? -error : error);
        });
        return largest_note();
    }

    // One pass over the matrix: r from c, and with `column_sums` the sums of r A. In the first pass r is 1, and the
    // entries are verified.
    template <bool kFirst>
    void pass(bool backwards, bool column_sums = true) {
        parallel_for(b_.groups, threads_, [&](int64_t item) {
            const int64_t group = backwards ? b_.groups - 1 - item : item;
            const int64_t begin = group * b_.group_rows, end = std::min(n_, begin + b_.group_rows);
            T* sums = b_.sums + group * b_.stride;
            std::fill_n(sums, n_, T(0));
            bool bad = false;
            const int64_t blocks = ceil_div(end - begin, kRowsAtOnce);
            for (int64_t k = 0; k < blocks; ++k) {
                const int64_t first = begin + (backwards ? blocks - 1 - k : k) * kRowsAtOnce;
                const int64_t next = first + (backwards ? -kRowsAtOnce : kRowsAtOnce);
                const bool fetch = next >= begin && next + kRowsAtOnce <= end;
                if (first + kRowsAtOnce <= end) {
                    rows<kRowsAtOnce, kFirst>(first, fetch ? next : first, column_sums, sums, bad);
                } else {
                    for (int64_t i = first; i < end; ++i) rows<1, kFirst>(i, i, column_sums, sums, bad);
                }
            }
            if (kFirst) b_.bad_groups[group] = bad ? 1 : 0;
        });
    }

    // kCount rows from `first` on; those from `next` on are fetched.
    template <int kCount, bool kFirst>
    OVS_INLINE void rows(int64_t first, int64_t next, bool column_sums, T* sums, bool& bad) {
        T factor[kCount];
        if constexpr (kFirst) {
            std::fill_n(factor, kCount, T(1));
            bad = bad || any_bad<kCount>(first);
        } else {
            row_factors<kCount>(first, next, factor);
            std::copy_n(factor, kCount, r() + first);
            if (!column_sums) return;
        }
        const Raw *a = row(first), *ahead = row(next) + kCount / 2 * n_;
        constexpr int64_t kPerLine = kLineBytes / static_cast<int64_t>(sizeof(Raw));
        int64_t j = 0;
        for (; j + kLanes <= n_; j += kLanes) {
            if (j % kPerLine == 0) fetch<kCount>(ahead + j);
            V sum = load<V>(sums + j);
            OVS_UNROLL
            for (int k = 0; k < kCount; ++k) sum += factor[k] * S::many(a + k * n_ + j);
            store<V>(sums + j, sum);
        }
        for (; j < n_; ++j) {
            for (int k = 0; k < kCount; ++k) sums[j] += factor[k] * S::one(a + k * n_ + j);
        }
    }

    // Half of the rows that come next; the other half is asked for in the other loop.
    template <int kCount>
    OVS_INLINE void fetch(const Raw* ahead) const {
        OVS_UNROLL
        for (int k = 0; k < kCount / 2; ++k) __builtin_prefetch(ahead + k * n_, 0, 2);
    }

    // 1 / (A c)
    template <int kCount>
    OVS_INLINE void row_factors(int64_t first, int64_t next, T* factor) {
        const Raw *a = row(first), *ahead = row(next);
        const T* columns = c();
        constexpr int64_t kPerLine = kLineBytes / static_cast<int64_t>(sizeof(Raw));
        double totals[kCount] = {};
        int64_t j = 0;
        while (j + kLanes <= n_) {
            V sum[kCount] = {};
            for (const int64_t end = std::min(j + kRun, n_); j + kLanes <= end; j += kLanes) {
                if (j % kPerLine == 0) fetch<kCount>(ahead + j);
                const V v = load<V>(columns + j);
                OVS_UNROLL
                for (int k = 0; k < kCount; ++k) sum[k] += v * S::many(a + k * n_ + j);
            }
            for (int k = 0; k < kCount; ++k) {
                for (int lane = 0; lane < kLanes; ++lane) totals[k] += sum[k][lane];
            }
        }
        for (; j < n_; ++j) {
            for (int k = 0; k < kCount; ++k) totals[k] += columns[j] * S::one(a + k * n_ + j);
        }
        for (int k = 0; k < kCount; ++k) factor[k] = inverse_sum(static_cast<T>(totals[k]));
    }

    template <int kCount>
    OVS_INLINE bool any_bad(int64_t first) const {
        const Raw* a = row(first);
        const int64_t count = kCount * n_;
        typename S::I bad = {};
        bool rest = false;
        int64_t j = 0;
        for (; j + kLanes <= count; j += kLanes) bad |= S::bad(a + j);
        for (; j < count; ++j) rest = rest || S::bad_one(a + j);
        for (int lane = 0; lane < kLanes; ++lane) rest = rest || bad[lane] != 0;
        return rest;
    }

    const ScalingParams& p_;
    int64_t n_;
    int threads_;
    Workspace workspace_;
    ScalingBuffers<T> b_;
};

}  // namespace
}  // namespace OVS_ISA
}  // namespace ovs
