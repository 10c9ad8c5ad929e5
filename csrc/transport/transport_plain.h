// Per level: the iteration with scaling vectors (see transport_tiles.h for the layouts).
//
// One pass over K per iteration and group of classes. For a block of rows, which fits the level-2 cache:
//   s = K_block nu;  mu = a / s;  column sums += K_block^T mu
// and the error of the last iteration falls out of s. Each slab of rows has column sums of its own, added in order.
#pragma once
#include "transport/transport_problem.h"
#include "transport/transport_tiles.h"

namespace ovs {
namespace OVS_ISA {
namespace {

template <class T>
class PlainSolver {
public:
    explicit PlainSolver(const Problem<T>& problem)
        : q_(problem),
          p_(problem.p),
          g_(problem.g),
          b_(problem.b),
          blocks_(ceil_div(g_.rows, kLanes)),
          tiles_(ceil_div(g_.columns, kLanes)) {
        const int64_t groups = ceil_div(q_.active, kGroup);
        group_ = ceil_div(q_.active, groups);
        // Where every class needs it many times, K is kept at once.
        eager_ = g_.keeps && (groups > 1 || (p_.exact_iters && p_.max_iter > kFirstKept));
    }

    void run() {
        load_marginals();
        std::fill_n(b_.guards, 2 * kMaxSlabs, 0);
        iterate();
        if (p_.errors != nullptr) measure_errors();
        switch (p_.readout) {
            case Readout::kNone:
                write_potentials();
                break;
            case Readout::kReceiver:
                read_receivers();
                break;
            case Readout::kSource:
            case Readout::kPlanCost:
                read_sources();
                break;
        }
        if (p_.status != nullptr) {
            p_.status[0] = iterations_;
            p_.status[1] = 0;
            for (int64_t i = 0; i < 2 * kMaxSlabs; ++i) p_.status[1] += b_.guards[i];
        }
    }

private:
    static constexpr int kLanes = lanes<T>();
    using V = Vec<T, kLanes>;
    using Mask = decltype(V{} < V{});
    static constexpr T kTiny = static_cast<T>(kSmallestDenominator);

    // Classes that go through the matrix together, and their vectors.
    struct Group {
        int64_t first, classes;  // of those in use
        T *a, *row_sums, *b, *column_sums, *nu;
    };

    template <class Fn>
    void for_each_group(const Fn& fn) const {
        for (int64_t first = 0; first < q_.active; first += group_) {
            const int64_t rows = first * g_.padded_rows, columns = first * g_.padded_columns;
            fn(Group{first, std::min(group_, q_.active - first), b_.a + rows, b_.row_sums + rows, b_.b + columns,
                     b_.column_sums + columns, b_.nu + columns});
        }
    }

    int64_t rows_in(int64_t block) const { return std::min<int64_t>(kLanes, g_.rows - block * kLanes); }
    int64_t columns_in(int64_t tile) const { return std::min<int64_t>(kLanes, g_.columns - tile * kLanes); }
    T* scratch(int64_t slab) const {
        return b_.scratch + slab * kMaxLanes * std::max(g_.padded_rows, g_.padded_columns);
    }
    T* partials(int64_t slab, const Group& group) const {
        return b_.partials + slab * g_.padded_columns * group.classes;
    }

    // a and b into tiles of mass 1, zero in the padding; nu = 1.
    void load_marginals() {
        for_each_group([&](const Group& group) {
            const int classes = static_cast<int>(group.classes);
            q_.for_each_range(blocks_, [&](int64_t, int64_t first, int64_t last) {
                for (int64_t at = first * classes; at < last * classes; ++at) {
                    const int64_t row = at / classes * kLanes, k = group.first + at % classes;
                    for (int64_t i = 0; i < kLanes; ++i) {
                        group.a[at * kLanes + i] = row + i < g_.rows ? q_.unit_a(k, row + i) : T(0);
                    }
                }
            });
            q_.for_each_range(tiles_, [&](int64_t, int64_t first, int64_t last) {
                for (int64_t at = first * classes; at < last * classes; ++at) {
                    const int64_t column = at / classes * kLanes, k = group.first + at % classes;
                    for (int64_t j = 0; j < kLanes; ++j) {
                        group.b[at * kLanes + j] = column + j < g_.columns ? q_.unit_b(k, column + j) : T(0);
                        group.nu[at * kLanes + j] = T(1);
                    }
                }
            });
        });
    }

    // A block of K, or of cost x K, as tiles in `to`.
    template <bool kPaid>
    void fill(int64_t block, T* to) const {
        q_.with_cost([&](const auto* cost) {
            fill_block<kPaid>(cost + block * kLanes * g_.columns, g_.columns, rows_in(block), q_.least,
                              q_.inverse_epsilon, to);
        });
    }

    // A block of K: kept, or made now, to be kept with `keep`.
    const T* block_of(int64_t block, int64_t slab, bool keep) const {
        T* kept = b_.kernel + block * kLanes * g_.padded_columns;
        if (filled_) return kept;
        T* to = keep ? kept : scratch(slab);
        fill<false>(block, to);
        return to;
    }

    // Raises denominators to kTiny; counts those in lanes that are used.
    static V guarded(V sums, Mask& raised) {
        const Mask small = sums < kTiny;
        raised -= small;
        return small ? V{} + kTiny : sums;
    }
    static int64_t count(const Mask& raised, int64_t used) {
        int64_t sum = 0;
        for (int64_t lane = 0; lane < used; ++lane) sum += raised[lane];
        return sum;
    }
    static V magnitude(V v) { return v < T(0) ? -v : v; }

    void iterate() {
        for (iterations_ = 1;; ++iterations_) {
            const bool keep = g_.keeps && (eager_ || iterations_ >= kFirstKept);
            for_each_group([&](const Group& group) {
                pass(group, keep);
                filled_ = filled_ || keep;
            });
            if (iterations_ == p_.max_iter) return;
            if (iterations_ > 1 && !p_.exact_iters && largest_error() <= p_.tol) return;
        }
    }

    // Adds the errors of the slabs; the largest of them.
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

    void write_errors(const Group& group, int64_t slab, const T* errors) const {
        for (int64_t c = 0; c < group.classes; ++c) {
            double sum = 0.0;
            for (int lane = 0; lane < kLanes; ++lane) sum += static_cast<double>(errors[c * kLanes + lane]);
            b_.partial_errors[slab * g_.classes + group.first + c] = sum;
        }
    }

    // Slabs without rows keep nothing of an earlier pass.
    void clear_errors(const Group& group) const {
        for (int64_t slab = 0; slab < kMaxSlabs; ++slab) {
            std::fill_n(b_.partial_errors + slab * g_.classes + group.first, group.classes, 0.0);
        }
    }

    // One iteration of a group.
    void pass(const Group& group, bool keep) {
        const int classes = static_cast<int>(group.classes);
        const AddRows<T> add_rows_of = add_rows_for<T>(classes);
        const bool started = iterations_ > 1;
        clear_errors(group);
        q_.for_each_range(blocks_, [&](int64_t slab, int64_t first, int64_t last) {
            T mu[kGroup * kLanes], sums[kGroup * kLanes], errors[kGroup * kLanes] = {};
            for (int64_t block = first; block < last; ++block) {
                const T* tiles = block_of(block, slab, keep);
                add_rows_of(tiles, group.nu, tiles_, sums);
                Mask raised = {};
                for (int64_t c = 0; c < classes; ++c) {
                    const int64_t at = (block * classes + c) * kLanes;
                    const V a = load<V>(group.a + at), sum = guarded(load<V>(sums + c * kLanes), raised);
                    if (started) {
                        const V error = magnitude(a * (sum / load<V>(group.row_sums + at)) - a);
                        store(errors + c * kLanes, load<V>(errors + c * kLanes) + error);
                    }
                    store(group.row_sums + at, sum);
                    store(mu + c * kLanes, a / sum);
                }
                b_.guards[slab] += count(raised, rows_in(block));
                if (block == first) {
                    add_columns<true>(tiles, mu, tiles_, classes, partials(slab, group));
                } else {
                    add_columns<false>(tiles, mu, tiles_, classes, partials(slab, group));
                }
            }
            write_errors(group, slab, errors);
        });
        add_partials(group, [&](int64_t at, V sum, Mask& raised) {
            const V kept = guarded(sum, raised);
            store(group.column_sums + at, kept);
            store(group.nu + at, load<V>(group.b + at) / kept);
        });
    }

    // fn(offset of a vector of columns, sum of the slabs, mask of raised lanes)
    template <class Fn>
    void add_partials(const Group& group, const Fn& fn) {
        const int64_t length = ceil_div(blocks_, kMaxSlabs), slabs = ceil_div(blocks_, length);
        q_.for_each_range(tiles_, [&](int64_t range, int64_t first, int64_t last) {
            for (int64_t tile = first; tile < last; ++tile) {
                Mask raised = {};
                for (int64_t c = 0; c < group.classes; ++c) {
                    const int64_t at = (tile * group.classes + c) * kLanes;
                    V sum = load<V>(partials(0, group) + at);
                    for (int64_t slab = 1; slab < slabs; ++slab) sum += load<V>(partials(slab, group) + at);
                    fn(at, sum, raised);
                }
                b_.guards[kMaxSlabs + range] += count(raised, columns_in(tile));
            }
        });
    }

    // |mu (K nu) - a|_1 of the result.
    void measure_errors() {
        for_each_group([&](const Group& group) {
            const AddRows<T> add_rows_of = add_rows_for<T>(static_cast<int>(group.classes));
            clear_errors(group);
            q_.for_each_range(blocks_, [&](int64_t slab, int64_t first, int64_t last) {
                T sums[kGroup * kLanes], errors[kGroup * kLanes] = {};
                for (int64_t block = first; block < last; ++block) {
                    add_rows_of(block_of(block, slab, false), group.nu, tiles_, sums);
                    for (int64_t c = 0; c < group.classes; ++c) {
                        const int64_t at = (block * group.classes + c) * kLanes;
                        const V a = load<V>(group.a + at), before = load<V>(group.row_sums + at);
                        const V error = magnitude(a * (load<V>(sums + c * kLanes) / before) - a);
                        store(errors + c * kLanes, load<V>(errors + c * kLanes) + error);
                    }
                }
                write_errors(group, slab, errors);
            });
        });
        largest_error();
        for (int64_t k = 0; k < q_.active; ++k) p_.errors[b_.scales[k].number] = b_.errors[k];
    }

    void write_potentials() {
        T *f = static_cast<T*>(p_.f), *g = static_cast<T*>(p_.g);
        for_each_group([&](const Group& group) {
            const auto for_each_number = [&](int64_t tiles, int64_t length, const auto& fn) {
                q_.for_each_range(tiles, [&](int64_t, int64_t first, int64_t last) {
                    for (int64_t at = first * group.classes; at < last * group.classes; ++at) {
                        const int64_t tile = at / group.classes, begin = tile * kLanes;
                        const ClassScale& scale = b_.scales[group.first + at % group.classes];
                        const int64_t used = std::min<int64_t>(kLanes, length - begin);
                        for (int64_t i = 0; i < used; ++i) {
                            fn(scale.number * length + begin + i, at * kLanes + i, scale.mass);
                        }
                    }
                });
            };
            for_each_number(blocks_, g_.rows, [&](int64_t to, int64_t at, double mass) {
                const double a = static_cast<double>(group.a[at]), sum = static_cast<double>(group.row_sums[at]);
                f[to] = static_cast<T>(q_.least + p_.epsilon * (std::log(a) + std::log(mass / sum)));
            });
            for_each_number(tiles_, g_.columns, [&](int64_t to, int64_t at, double) {
                const double b = static_cast<double>(group.b[at]), sum = static_cast<double>(group.column_sums[at]);
                g[to] = static_cast<T>(p_.epsilon * (std::log(b) - std::log(sum)));
            });
        });
    }

    // D_j = b_j (sum_i mu_i cost_ij K_ij) / (sum_i mu_i K_ij)
    void read_receivers() {
        for_each_group([&](const Group& group) {
            const int classes = static_cast<int>(group.classes);
            q_.for_each_range(blocks_, [&](int64_t slab, int64_t first, int64_t last) {
                T mu[kGroup * kLanes];
                for (int64_t block = first; block < last; ++block) {
                    for (int64_t c = 0; c < classes; ++c) {
                        const int64_t at = (block * classes + c) * kLanes;
                        store(mu + c * kLanes, load<V>(group.a + at) / load<V>(group.row_sums + at));
                    }
                    fill<true>(block, scratch(slab));
                    if (block == first) {
                        add_columns<true>(scratch(slab), mu, tiles_, classes, partials(slab, group));
                    } else {
                        add_columns<false>(scratch(slab), mu, tiles_, classes, partials(slab, group));
                    }
                }
            });
            add_partials(group, [&](int64_t at, V sum, Mask&) {
                const int64_t begin = at / kLanes / classes * kLanes;
                const ClassScale& scale = b_.scales[group.first + at / kLanes % classes];
                T* to = static_cast<T*>(p_.map) + scale.number * g_.columns + begin;
                const V b = load<V>(group.b + at);
                const V paid = b * static_cast<T>(scale.mass) * (sum / load<V>(group.column_sums + at));
                const int64_t used = columns_in(begin / kLanes);
                for (int64_t j = 0; j < used; ++j) to[j] = b[j] > T(0) ? paid[j] : T(0);
            });
        });
    }

    // D_i = mu_i sum_j cost_ij K_ij nu_j, or the sum of that.
    void read_sources() {
        std::fill_n(b_.paid, kMaxSlabs * g_.classes, 0.0);
        for_each_group([&](const Group& group) {
            const AddRows<T> add_rows_of = add_rows_for<T>(static_cast<int>(group.classes));
            q_.for_each_range(blocks_, [&](int64_t slab, int64_t first, int64_t last) {
                T sums[kGroup * kLanes];
                for (int64_t block = first; block < last; ++block) {
                    fill<true>(block, scratch(slab));
                    add_rows_of(scratch(slab), group.nu, tiles_, sums);
                    for (int64_t c = 0; c < group.classes; ++c) {
                        const int64_t at = (block * group.classes + c) * kLanes;
                        const ClassScale& scale = b_.scales[group.first + c];
                        const V mu = load<V>(group.a + at) / load<V>(group.row_sums + at);
                        const V paid = mu * static_cast<T>(scale.mass) * load<V>(sums + c * kLanes);
                        const int64_t used = rows_in(block);
                        for (int64_t i = 0; i < used; ++i) {
                            b_.paid[slab * g_.classes + group.first + c] += static_cast<double>(paid[i]);
                            if (p_.readout != Readout::kSource) continue;
                            static_cast<T*>(p_.map)[scale.number * g_.rows + block * kLanes + i] = paid[i];
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
    int64_t blocks_, tiles_;
    int64_t group_ = 1;
    bool eager_ = false, filled_ = false;
    int iterations_ = 0;
};

}  // namespace
}  // namespace OVS_ISA
}  // namespace ovs
