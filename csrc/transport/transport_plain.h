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
          blocks_(ceil_div(g_.rows, kSide)),
          tiles_(ceil_div(g_.columns, kSide)) {
        const int64_t groups = ceil_div(q_.active, kMaxGroup);
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
    static constexpr int kLanes = lanes<T>(), kSide = side<T>();
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

    int64_t rows_in(int64_t block) const { return std::min<int64_t>(kSide, g_.rows - block * kSide); }
    int64_t columns_in(int64_t tile) const { return std::min<int64_t>(kSide, g_.columns - tile * kSide); }
    T* scratch(int64_t slab) const {
        return b_.scratch + slab * kMaxSide * std::max(g_.padded_rows, g_.padded_columns);
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
                    const int64_t row = at / classes * kSide, k = group.first + at % classes;
                    for (int64_t i = 0; i < kSide; ++i) {
                        group.a[at * kSide + i] = row + i < g_.rows ? q_.unit_a(k, row + i) : T(0);
                    }
                }
            });
            q_.for_each_range(tiles_, [&](int64_t, int64_t first, int64_t last) {
                for (int64_t at = first * classes; at < last * classes; ++at) {
                    const int64_t column = at / classes * kSide, k = group.first + at % classes;
                    for (int64_t j = 0; j < kSide; ++j) {
                        group.b[at * kSide + j] = column + j < g_.columns ? q_.unit_b(k, column + j) : T(0);
                        group.nu[at * kSide + j] = T(1);
                    }
                }
            });
        });
    }

    // A block of K, or of cost x K, as tiles in `to`.
    template <bool kPaid>
    void fill(int64_t block, T* to) const {
        q_.with_cost([&](const auto* cost) {
            fill_block<kPaid>(cost + block * kSide * g_.columns, g_.columns, rows_in(block), q_.least,
                              q_.inverse_epsilon, to);
        });
    }

    // A block of K: kept, or made now, to be kept with `keep`.
    const T* block_of(int64_t block, int64_t slab, bool keep) const {
        T* kept = b_.kernel + block * kSide * g_.padded_columns;
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
    // For the two vectors of a tile, of which `used` lanes are used.
    static int64_t count(const Mask (&raised)[2], int64_t used) {
        int64_t sum = 0;
        for (int64_t lane = 0; lane < used; ++lane) sum += raised[lane / kLanes][lane % kLanes];
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
            for (int lane = 0; lane < kSide; ++lane) sum += static_cast<double>(errors[c * kSide + lane]);
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
        const Products<T> products(classes);
        const bool started = iterations_ > 1;
        clear_errors(group);
        q_.for_each_range(blocks_, [&](int64_t slab, int64_t first, int64_t last) {
            T mu[kMaxGroup * kSide], sums[kMaxGroup * kSide], errors[kMaxGroup * kSide] = {};
            for (int64_t block = first; block < last; ++block) {
                const T* tiles = block_of(block, slab, keep);
                products.rows(tiles, group.nu, tiles_, sums);
                Mask raised[2] = {};
                for (int64_t e = 0; e < 2 * classes; ++e) {
                    const int64_t at = block * classes * kSide + e * kLanes;
                    const V a = load<V>(group.a + at), sum = guarded(load<V>(sums + e * kLanes), raised[e % 2]);
                    if (started) {
                        const V error = magnitude(a * (sum / load<V>(group.row_sums + at)) - a);
                        store(errors + e * kLanes, load<V>(errors + e * kLanes) + error);
                    }
                    store(group.row_sums + at, sum);
                    store(mu + e * kLanes, a / sum);
                }
                b_.guards[slab] += count(raised, rows_in(block));
                products.columns(tiles, mu, tiles_, block > first, partials(slab, group));
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
                Mask raised[2] = {};
                for (int64_t e = 0; e < 2 * group.classes; ++e) {
                    const int64_t at = tile * group.classes * kSide + e * kLanes;
                    V sum = load<V>(partials(0, group) + at);
                    for (int64_t slab = 1; slab < slabs; ++slab) sum += load<V>(partials(slab, group) + at);
                    fn(at, sum, raised[e % 2]);
                }
                b_.guards[kMaxSlabs + range] += count(raised, columns_in(tile));
            }
        });
    }

    // |mu (K nu) - a|_1 of the result.
    void measure_errors() {
        for_each_group([&](const Group& group) {
            const Products<T> products(group.classes);
            clear_errors(group);
            q_.for_each_range(blocks_, [&](int64_t slab, int64_t first, int64_t last) {
                T sums[kMaxGroup * kSide], errors[kMaxGroup * kSide] = {};
                for (int64_t block = first; block < last; ++block) {
                    products.rows(block_of(block, slab, false), group.nu, tiles_, sums);
                    for (int64_t e = 0; e < 2 * group.classes; ++e) {
                        const int64_t at = block * group.classes * kSide + e * kLanes;
                        const V a = load<V>(group.a + at), before = load<V>(group.row_sums + at);
                        const V error = magnitude(a * (load<V>(sums + e * kLanes) / before) - a);
                        store(errors + e * kLanes, load<V>(errors + e * kLanes) + error);
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
                        const int64_t tile = at / group.classes, begin = tile * kSide;
                        const ClassScale& scale = b_.scales[group.first + at % group.classes];
                        const int64_t used = std::min<int64_t>(kSide, length - begin);
                        for (int64_t i = 0; i < used; ++i) {
                            fn(scale.number * length + begin + i, at * kSide + i, scale.mass);
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
            const Products<T> products(group.classes);
            q_.for_each_range(blocks_, [&](int64_t slab, int64_t first, int64_t last) {
                T mu[kMaxGroup * kSide];
                for (int64_t block = first; block < last; ++block) {
                    for (int64_t e = 0; e < 2 * group.classes; ++e) {
                        const int64_t at = block * group.classes * kSide + e * kLanes;
                        store(mu + e * kLanes, load<V>(group.a + at) / load<V>(group.row_sums + at));
                    }
                    fill<true>(block, scratch(slab));
                    products.columns(scratch(slab), mu, tiles_, block > first, partials(slab, group));
                }
            });
            add_partials(group, [&](int64_t at, V sum, Mask&) {
                const int64_t column = at / (group.classes * kSide) * kSide + at % kSide;
                const ClassScale& scale = b_.scales[group.first + at / kSide % group.classes];
                T* to = static_cast<T*>(p_.map) + scale.number * g_.columns + column;
                const V b = load<V>(group.b + at);
                const V paid = b * static_cast<T>(scale.mass) * (sum / load<V>(group.column_sums + at));
                const int64_t used = std::min<int64_t>(kLanes, g_.columns - column);
                for (int64_t j = 0; j < used; ++j) to[j] = b[j] > T(0) ? paid[j] : T(0);
            });
        });
    }

    // D_i = mu_i sum_j cost_ij K_ij nu_j, or the sum of that.
    void read_sources() {
        std::fill_n(b_.paid, kMaxSlabs * g_.classes, 0.0);
        for_each_group([&](const Group& group) {
            const Products<T> products(group.classes);
            q_.for_each_range(blocks_, [&](int64_t slab, int64_t first, int64_t last) {
                T sums[kMaxGroup * kSide];
                for (int64_t block = first; block < last; ++block) {
                    fill<true>(block, scratch(slab));
                    products.rows(scratch(slab), group.nu, tiles_, sums);
                    for (int64_t e = 0; e < group.classes * kSide; ++e) {
                        const int64_t at = block * group.classes * kSide + e, k = group.first + e / kSide;
                        const int64_t row = block * kSide + e % kSide;
                        if (row >= g_.rows) continue;
                        const T mu = group.a[at] / group.row_sums[at];
                        const T paid = mu * static_cast<T>(b_.scales[k].mass) * sums[e];
                        b_.paid[slab * g_.classes + k] += static_cast<double>(paid);
                        if (p_.readout != Readout::kSource) continue;
                        static_cast<T*>(p_.map)[b_.scales[k].number * g_.rows + row] = paid;
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
