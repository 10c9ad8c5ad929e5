// lp_graph on a CPU; compiled once per instruction-set level.
//
// 1. prepare    verify the graph, degrees, repack its links (propagate_pack.h)
// 2. per chunk of classes:
//    pack       scores -> class-innermost state D^-1/2 Y, each class scaled by a power of two to near 1
//    solve      conjugate gradients, all classes of the chunk advanced together (propagate_rows.h)
//    unpack     D^1/2 state -> out
//
// Inner products: float sums over at most kRun nodes, then double partials per block of rows, added in that order
// whatever the number of threads.
#include <limits>

#include "propagate/propagate_pack.h"
#include "propagate/propagate_rows.h"

namespace ovs {
namespace OVS_ISA {
namespace {

constexpr int64_t kRun = 64;  // nodes summed in T before the sum goes on in double

template <class T>
class GraphSolver {
public:
    GraphSolver(const PropagateParams& p, void* workspace, std::size_t bytes, int threads)
        : p_(p), g_(p), threads_(threads), workspace_(workspace, bytes), b_(g_, workspace_) {}

    GraphReport run() {
        const GraphReport report = prepare_graph(p_, g_, b_, threads_);
        if (report.fault != GraphFault::kNone) return report;
        const int64_t chunk = g_.chunk;
        for (int64_t c0 = 0; c0 < p_.num_classes; c0 += chunk) {
            first_class_ = c0;
            classes_ = static_cast<int>(std::min<int64_t>(chunk, p_.num_classes - c0));
            g_.chunk = static_cast<int>(round_up(classes_, kClassGranule));
            scan_classes();
            solve();
        }
        return report;
    }

private:
    static constexpr int kWide = kVectorBytes / sizeof(T);
    static constexpr int kLanes = kWide > kClassGranule ? kClassGranule : kWide;  // for the memory-bound sweeps
    static constexpr int kMaxChunk = max_class_chunk<T>();
    using V = Vec<T, kLanes>;

    const T* scores(int64_t row) const {
        return static_cast<const T*>(p_.scores) + row * p_.num_classes + first_class_;
    }
    bool exact() const { return p_.mode == SolveMode::kExact; }

    template <class Fn>
    void for_each_block(const Fn& fn) {
        parallel_for(g_.blocks, threads_,
                     [&](int64_t block) { fn(block, b_.block_rows[block], b_.block_rows[block + 1]); });
    }

    // Largest magnitude of each class, as a power of two, and whether all its scores are finite.
    void scan_classes() {
        for_each_block([&](int64_t block, int64_t begin, int64_t end) {
            T largest[kMaxChunk] = {}, poison[kMaxChunk] = {};
            for (int64_t i = begin; i < end; ++i) {
                const T* y = scores(i);
                for (int c = 0; c < classes_; ++c) {
                    const T magnitude = y[c] < 0 ? -y[c] : y[c];
                    largest[c] = magnitude > largest[c] ? magnitude : largest[c];
                    poison[c] += y[c] * T(0);  // NaN from the first NaN or Inf on
                }
            }
            for (int c = 0; c < classes_; ++c) b_.largest[block * g_.chunk + c] = largest[c] + poison[c];
        });
        for (int c = 0; c < classes_; ++c) {
            T largest = 0;
            bool finite = true;
            for (int64_t block = 0; block < g_.blocks; ++block) {
                const T value = b_.largest[block * g_.chunk + c];
                finite = finite && value == value;
                largest = value > largest ? value : largest;
            }
            b_.finite[c] = finite;
            const int exponent = largest > T(0) && finite ? std::ilogb(largest) : 0;
            b_.scale[c] = std::ldexp(T(1), std::clamp(-exponent, -120, 120));
        }
        for (int c = classes_; c < g_.chunk; ++c) {
            b_.finite[c] = 0;
            b_.scale[c] = T(1);
        }
    }

    // p = D^-1/2 (scale Y), zero in the classes that are padding or not finite, and |y|^2 of each class.
    void pack() {
        for_each_block([&](int64_t block, int64_t begin, int64_t end) {
            double* sums = b_.partials + block * 2 * g_.chunk;
            std::fill_n(sums, 2 * g_.chunk, 0.0);
            for (int64_t i = begin; i < end; ++i) {
                const T* y = scores(i);
                const T inverse_root = T(1) / root(b_.degree[i]);
                T* p = b_.p + i * g_.chunk;
                for (int c = 0; c < g_.chunk; ++c) {
                    const T value = b_.finite[c] != 0 ? y[c] * b_.scale[c] : T(0);
                    p[c] = value * inverse_root;
                    sums[c] += static_cast<double>(value) * value;
                }
            }
        });
        add_partials();
        for (int c = 0; c < g_.chunk; ++c) b_.classes[c] = start_class(dot(0, c));
    }

    // Adds the partial inner products of all blocks into those of block 0, in order.
    void add_partials() {
        for (int64_t block = 1; block < g_.blocks; ++block) {
            const double* from = b_.partials + block * 2 * g_.chunk;
            for (int c = 0; c < 2 * g_.chunk; ++c) b_.partials[c] += from[c];
        }
    }
    double dot(int which, int c) const { return b_.partials[which * g_.chunk + c]; }

    bool all_frozen() const {
        for (int c = 0; c < classes_; ++c) {
            if (b_.classes[c].frozen == 0) return false;
        }
        return true;
    }

    void solve() {
        pack();
        const int steps = num_steps(p_);
        bool moved = false;
        for (int step = 0; step < steps && !all_frozen(); ++step) {
            apply_operator();
            add_partials();
            for (int c = 0; c < g_.chunk; ++c) step_class(b_.classes[c], dot(0, c), dot(1, c));
            if (moved) {
                update<false>();
            } else {
                update<true>();
            }
            moved = true;
            add_partials();
            for (int c = 0; c < g_.chunk; ++c) finish_step(b_.classes[c], dot(0, c), p_.tol);
        }
        unpack(moved);
        report(moved);
    }

    // alpha D^-1 W `state`, one vector of classes at a time: fn(where it belongs, product, degree, sums 0 and 1 of
    // these classes, which are in T over at most kRun rows).
    template <class Fn>
    void multiply(const T* state, const Fn& fn) {
        with_variant(g_, [&](auto granules, auto index) {
            using Sums = ClassVectors<T, decltype(granules)::value>;
            for_each_block([&](int64_t block, int64_t begin, int64_t) {
                double* sums = b_.partials + block * 2 * Sums::kClasses;
                std::fill_n(sums, 2 * Sums::kClasses, 0.0);
                T run[2][Sums::kClasses] = {};
                const auto flush = [&] {
                    for (int c = 0; c < Sums::kClasses; ++c) {
                        sums[c] += run[0][c];
                        sums[Sums::kClasses + c] += run[1][c];
                        run[0][c] = run[1][c] = T(0);
                    }
                };
                for_each_row<decltype(granules)::value, decltype(index)>(
                    g_, b_, p_.indptr[begin], block, state, b_.q, [&](int64_t i, const Sums& sum) {
                        sum.for_each([&](const auto& v, int c) {
                            using A = std::decay_t<decltype(v)>;
                            A one = load<A>(run[0] + c), two = load<A>(run[1] + c);
                            fn(i * Sums::kClasses + c, v, b_.degree[i], one, two);
                            store<A>(run[0] + c, one);
                            store<A>(run[1] + c, two);
                        });
                        if ((i - begin) % kRun == kRun - 1) flush();
                    });
                flush();
            });
        });
    }

    // q = p - alpha D^-1 W p, with <p, q> and |q|^2.
    void apply_operator() {
        multiply(b_.p, [&](int64_t at, const auto& product, T degree, auto& dot_pq, auto& dot_qq) {
            using A = std::decay_t<decltype(product)>;
            const A p = load<A>(b_.p + at), q = p - product, weighted = degree * q;
            store<A>(b_.q + at, q);
            dot_pq += weighted * p;
            dot_qq += weighted * q;
        });
    }

    // x += a p; r -= a q; p = r + b p, and |r|^2. In the first step x = 0 and r = p.
    template <bool kFirst>
    void update() {
        T a[kMaxChunk], b[kMaxChunk];
        for (int c = 0; c < g_.chunk; ++c) {
            a[c] = static_cast<T>(b_.classes[c].a);
            b[c] = static_cast<T>(b_.classes[c].b);
        }
        for_each_block([&](int64_t block, int64_t begin, int64_t end) {
            double* sums = b_.partials + block * 2 * g_.chunk;
            std::fill_n(sums, g_.chunk, 0.0);
            for (int64_t first = begin; first < end; first += kRun) {
                const int64_t last = std::min(first + kRun, end);
                for (int c = 0; c < g_.chunk; c += kLanes) {
                    const V va = load<V>(a + c), vb = load<V>(b + c);
                    V sum = {};
                    for (int64_t i = first; i < last; ++i) {
                        const int64_t at = i * g_.chunk + c;
                        const V vp = load<V>(b_.p + at);
                        const V vr = (kFirst ? vp : load<V>(b_.r + at)) - va * load<V>(b_.q + at);
                        store<V>(b_.x + at, kFirst ? va * vp : load<V>(b_.x + at) + va * vp);
                        store<V>(b_.r + at, vr);
                        store<V>(b_.p + at, vr + vb * vp);
                        sum += (b_.degree[i] * vr) * vr;
                    }
                    for (int lane = 0; lane < kLanes; ++lane) sums[c + lane] += sum[lane];
                }
            }
        });
    }

    void unpack(bool moved) {
        const T nan = std::numeric_limits<T>::quiet_NaN();
        T undo[kMaxChunk];
        for (int c = 0; c < classes_; ++c) undo[c] = T(1) / b_.scale[c];
        for_each_block([&](int64_t, int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) {
                const T* x = b_.x + i * g_.chunk;
                const T* y = scores(i);
                T* out = static_cast<T*>(p_.out) + i * p_.num_classes + first_class_;
                const T degree_root = root(b_.degree[i]);
                const bool keep = exact() && b_.isolated[i] != 0;
                for (int c = 0; c < classes_; ++c) {
                    const T value = keep ? y[c] : moved ? x[c] * degree_root * undo[c] : T(0);
                    out[c] = b_.finite[c] != 0 ? value : nan;
                }
            }
        });
    }

    void report(bool moved) {
        if (p_.iterations == nullptr && p_.residuals == nullptr) return;
        double residuals[kMaxChunk];
        for (int c = 0; c < classes_; ++c) {
            const ClassState& s = b_.classes[c];
            residuals[c] = s.rho_start > 0 ? std::sqrt(s.rho / s.rho_start) : 0.0;
        }
        if (exact() && moved && p_.residuals != nullptr) measure_residuals(residuals);
        for (int c = 0; c < classes_; ++c) {
            const bool finite = b_.finite[c] != 0;
            if (p_.iterations != nullptr) p_.iterations[first_class_ + c] = finite ? b_.classes[c].iterations : 0;
            if (p_.residuals != nullptr) {
                p_.residuals[first_class_ + c] = finite ? residuals[c] : std::numeric_limits<double>::quiet_NaN();
            }
        }
    }

    // |y - L x| / |y|, with y packed into p once more.
    void measure_residuals(double* residuals) {
        ClassState classes[kMaxChunk];
        std::copy_n(b_.classes, g_.chunk, classes);
        pack();
        std::copy_n(classes, g_.chunk, b_.classes);
        for_each_block([&](int64_t, int64_t begin, int64_t end) {  // the residual is that of the result
            for (int64_t i = begin; i < end; ++i) {
                if (b_.isolated[i] != 0) std::copy_n(b_.p + i * g_.chunk, g_.chunk, b_.x + i * g_.chunk);
            }
        });
        multiply(b_.x, [&](int64_t at, const auto& product, T degree, auto& dot_gap, auto&) {
            using A = std::decay_t<decltype(product)>;
            const A gap = (load<A>(b_.p + at) - load<A>(b_.x + at)) + product;
            dot_gap += (degree * gap) * gap;
        });
        add_partials();
        for (int c = 0; c < classes_; ++c) {
            if (b_.classes[c].rho_start > 0) residuals[c] = std::sqrt(dot(0, c) / b_.classes[c].rho_start);
        }
    }

    const PropagateParams& p_;
    PropagateGrid<T> g_;
    int threads_;
    Workspace workspace_;
    PropagateBuffers<T> b_;
    int64_t first_class_ = 0;
    int classes_ = 0;
};

}  // namespace

GraphReport lp_graph_solve(const PropagateParams& p, DType dtype, void* workspace, std::size_t bytes, int threads) {
    if (dtype == DType::kFloat64) return GraphSolver<double>(p, workspace, bytes, threads).run();
    return GraphSolver<float>(p, workspace, bytes, threads).run();
}

}  // namespace OVS_ISA
}  // namespace ovs
