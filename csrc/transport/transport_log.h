// Per level: the iteration with logarithms, for costs that spread too far for exp(-cost / epsilon) in float32.
//
//   R_i = log sum_j exp(x_ij + log nu_j),  log mu = log a - R;   S_j = log sum_i exp(x_ij + log mu_i),
//   log nu = log b - S;   x_ij = -(cost_ij - least) / epsilon
//
// Every sum is taken relative to its largest term. A class at a time: C times as many exponentials as entries.
#pragma once
#include "transport/transport_problem.h"

namespace ovs {
namespace OVS_ISA {
namespace {

constexpr float kLeastExponent = -1e30f;  // of x: sums of two stay finite

// Sum of exp(x) times a weight, relative to the largest exp(x).
template <class V>
struct LogSum {
    V largest, sum, paid;
};

template <class T>
class LogSolver {
public:
    explicit LogSolver(const Problem<T>& problem)
        : q_(problem), p_(problem.p), g_(problem.g), b_(problem.b), tiles_(ceil_div(g_.columns, kLanes)) {}

    void run() {
        std::fill_n(b_.nu, q_.active * g_.padded_columns, T(0));
        for (iterations_ = 1;; ++iterations_) {
            update_rows(true);
            update_columns(false);
            if (iterations_ == p_.max_iter) break;
            if (iterations_ > 1 && !p_.exact_iters && largest_error() <= p_.tol) break;
        }
        const int taken = iterations_;
        if (p_.errors != nullptr) {
            iterations_ = 2;  // there is an iteration to compare with
            update_rows(false);
            largest_error();
            for (int64_t k = 0; k < q_.active; ++k) p_.errors[b_.scales[k].number] = b_.errors[k];
        }
        if (p_.status != nullptr) p_.status[0] = taken, p_.status[1] = 0;
        switch (p_.readout) {
            case Readout::kNone:
                write_potentials();
                break;
            case Readout::kReceiver:
                update_columns(true);
                break;
            case Readout::kSource:
            case Readout::kPlanCost:
                read_sources();
                break;
        }
    }

private:
    static constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(T));
    using V = Vec<T, kLanes>;

    T* log_mu(int64_t k) const { return b_.a + k * g_.padded_rows; }
    T* log_rows(int64_t k) const { return b_.row_sums + k * g_.padded_rows; }
    T* log_nu(int64_t k) const { return b_.nu + k * g_.padded_columns; }
    T* log_columns(int64_t k) const { return b_.column_sums + k * g_.padded_columns; }
    T* scratch(int64_t slab) const {
        return b_.scratch + slab * kMaxSide * std::max(g_.padded_rows, g_.padded_columns);
    }

    static T logarithm(T x) { return static_cast<T>(std::log(static_cast<double>(x))); }
    static V larger(V a, V b) { return a > b ? a : b; }
    static V exponential(V v) {
        T lanes[kLanes];
        store(lanes, v);
        for (int l = 0; l < kLanes; ++l) lanes[l] = exp_nonpositive(lanes[l]);
        return load<V>(lanes);
    }

    // x of `count` costs, with -inf up to `padded`.
    template <class S>
    void exponents(const S* cost, int64_t count, int64_t padded, T* to) const {
        const T limit = static_cast<T>(kLeastExponent);
        for (int64_t j = 0; j < count; ++j) {
            const T x = (q_.least - static_cast<T>(widen(cost[j]))) * q_.inverse_epsilon;
            to[j] = x > limit ? x : limit;
        }
        std::fill(to + count, to + padded, -std::numeric_limits<T>::infinity());
    }

    // Logarithm of sum_j exp(x_j + log nu_j).
    T row_log_sum(const T* x, const T* log_weights) const {
        V largest = load<V>(x) + load<V>(log_weights);
        for (int64_t j = kLanes; j < g_.padded_columns; j += kLanes) {
            largest = larger(largest, load<V>(x + j) + load<V>(log_weights + j));
        }
        T top = largest[0];
        for (int l = 1; l < kLanes; ++l) top = largest[l] > top ? largest[l] : top;
        V sums = {};
        for (int64_t j = 0; j < g_.padded_columns; j += kLanes) {
            sums += exponential(load<V>(x + j) + load<V>(log_weights + j) - top);
        }
        T sum = 0;
        for (int l = 0; l < kLanes; ++l) sum += sums[l];
        return top + logarithm(sum);
    }

    // R, log mu unless only the error is wanted, and the error of the last iteration.
    void update_rows(bool keep) {
        std::fill_n(b_.partial_errors, kMaxSlabs * g_.classes, 0.0);
        q_.with_cost([&](const auto* cost) {
            q_.for_each_range(g_.rows, [&](int64_t slab, int64_t first, int64_t last) {
                T* x = scratch(slab);
                for (int64_t i = first; i < last; ++i) {
                    exponents(cost + i * g_.columns, g_.columns, g_.padded_columns, x);
                    for (int64_t k = 0; k < q_.active; ++k) {
                        const T a = q_.unit_a(k, i), sum = row_log_sum(x, log_nu(k));
                        if (iterations_ > 1 && a > T(0)) {
                            const double change = std::expm1(static_cast<double>(sum) - log_rows(k)[i]);
                            b_.partial_errors[slab * g_.classes + k] += static_cast<double>(a) * std::fabs(change);
                        }
                        if (!keep) continue;
                        log_rows(k)[i] = sum;
                        log_mu(k)[i] = logarithm(a) - sum;
                    }
                }
            });
        });
    }

    // exp(x_ij + log mu_i) over the rows, for kLanes columns; the weighted sum only where it is asked for.
    LogSum<V> column_log_sum(const T* x, const T* log_weights, bool paid) const {
        LogSum<V> s = {load<V>(x) + log_weights[0], V{}, V{}};
        for (int64_t i = 1; i < g_.rows; ++i) s.largest = larger(s.largest, load<V>(x + i * kLanes) + log_weights[i]);
        for (int64_t i = 0; i < g_.rows; ++i) {
            const V v = load<V>(x + i * kLanes), e = exponential(v + log_weights[i] - s.largest);
            s.sum += e;
            if (paid) s.paid += e * (q_.least - static_cast<T>(p_.epsilon) * v);
        }
        return s;
    }

    // S and log nu; with `paid` the receivers' read-out instead.
    void update_columns(bool paid) {
        q_.with_cost([&](const auto* cost) {
            q_.for_each_range(tiles_, [&](int64_t range, int64_t first, int64_t last) {
                T* x = scratch(range);
                for (int64_t tile = first; tile < last; ++tile) {
                    const int64_t begin = tile * kLanes, used = std::min<int64_t>(kLanes, g_.columns - begin);
                    for (int64_t i = 0; i < g_.rows; ++i) {
                        exponents(cost + i * g_.columns + begin, used, kLanes, x + i * kLanes);
                    }
                    for (int64_t k = 0; k < q_.active; ++k) {
                        const LogSum<V> s = column_log_sum(x, log_mu(k), paid);
                        const ClassScale& scale = b_.scales[k];
                        for (int64_t j = 0; j < used; ++j) {
                            const T b = q_.unit_b(k, begin + j);
                            if (paid) {
                                const T mass = b * static_cast<T>(scale.mass);
                                static_cast<T*>(p_.map)[scale.number * g_.columns + begin + j] =
                                    b > T(0) ? mass * (s.paid[j] / s.sum[j]) : T(0);
                                continue;
                            }
                            log_columns(k)[begin + j] = s.largest[j] + logarithm(s.sum[j]);
                            log_nu(k)[begin + j] = logarithm(b) - log_columns(k)[begin + j];
                        }
                    }
                }
            });
        });
    }

    double largest_error() const {
        double largest = 0.0;
        for (int64_t k = 0; k < q_.active; ++k) {
            double sum = 0.0;
            for (int64_t slab = 0; slab < kMaxSlabs; ++slab) sum += b_.partial_errors[slab * g_.classes + k];
            b_.errors[k] = sum;
            largest = sum > largest ? sum : largest;
        }
        return largest;
    }

    void write_potentials() {
        T *f = static_cast<T*>(p_.f), *g = static_cast<T*>(p_.g);
        q_.for_each_range(q_.active, [&](int64_t, int64_t first, int64_t last) {
            for (int64_t k = first; k < last; ++k) {
                const ClassScale& scale = b_.scales[k];
                for (int64_t i = 0; i < g_.rows; ++i) {
                    const double log_a = std::log(static_cast<double>(q_.unit_a(k, i))) + std::log(scale.mass);
                    f[scale.number * g_.rows + i] =
                        static_cast<T>(q_.least + p_.epsilon * (log_a - static_cast<double>(log_rows(k)[i])));
                }
                for (int64_t j = 0; j < g_.columns; ++j) {
                    const double log_b = std::log(static_cast<double>(q_.unit_b(k, j)));
                    g[scale.number * g_.columns + j] =
                        static_cast<T>(p_.epsilon * (log_b - static_cast<double>(log_columns(k)[j])));
                }
            }
        });
    }

    // sum_j cost_ij b_j exp(x_ij + log mu_i - S_j): no exponent is above zero.
    T paid_by_row(const T* x, const T* b, const T* log_sums, T log_weight) const {
        V sums = {};
        int64_t j = 0;
        for (; j + kLanes <= g_.columns; j += kLanes) {
            const V v = load<V>(x + j), e = exponential(v + log_weight - load<V>(log_sums + j));
            sums += (q_.least - static_cast<T>(p_.epsilon) * v) * load<V>(b + j) * e;
        }
        T sum = 0;
        for (int l = 0; l < kLanes; ++l) sum += sums[l];
        for (; j < g_.columns; ++j) {
            const T cost = q_.least - static_cast<T>(p_.epsilon) * x[j];
            sum += cost * b[j] * exp_nonpositive(x[j] + log_weight - log_sums[j]);
        }
        return sum;
    }

    void read_sources() {
        std::fill_n(b_.paid, kMaxSlabs * g_.classes, 0.0);
        for (int64_t k = 0; k < q_.active; ++k) {
            for (int64_t j = 0; j < g_.columns; ++j) b_.b[k * g_.padded_columns + j] = q_.unit_b(k, j);
        }
        q_.with_cost([&](const auto* cost) {
            q_.for_each_range(g_.rows, [&](int64_t slab, int64_t first, int64_t last) {
                T* x = scratch(slab);
                for (int64_t i = first; i < last; ++i) {
                    exponents(cost + i * g_.columns, g_.columns, g_.padded_columns, x);
                    for (int64_t k = 0; k < q_.active; ++k) {
                        const ClassScale& scale = b_.scales[k];
                        T sum = paid_by_row(x, b_.b + k * g_.padded_columns, log_columns(k), log_mu(k)[i]);
                        sum *= static_cast<T>(scale.mass);
                        b_.paid[slab * g_.classes + k] += static_cast<double>(sum);
                        if (p_.readout == Readout::kSource) {
                            static_cast<T*>(p_.map)[scale.number * g_.rows + i] = sum;
                        }
                    }
                }
            });
        });
        if (p_.readout == Readout::kSource) return;
        for (int64_t k = 0; k < q_.active; ++k) {
            double sum = 0.0;
            for (int64_t slab = 0; slab < kMaxSlabs; ++slab) sum += b_.paid[slab * g_.classes + k];
            static_cast<T*>(p_.map)[b_.scales[k].number] = static_cast<T>(sum);
        }
    }

    const Problem<T>& q_;
    const TransportParams& p_;
    const TransportGrid& g_;
    const TransportBuffers<T>& b_;
    int64_t tiles_;
    int iterations_ = 0;
};

}  // namespace
}  // namespace OVS_ISA
}  // namespace ovs
