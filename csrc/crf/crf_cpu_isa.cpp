// dense_crf and permutohedral_filter on a CPU; compiled once per instruction-set level.
//
// An iteration reads and writes Q once: each lattice gathers it onto its vertices and blurs; then a single pass over
// the pixels adds up the slices of all terms on top of the logits, takes the softmax, and stores Q for the next
// iteration, or the probabilities or labels after the last.
#include "common/exp2.h"
#include "crf/crf_gaussian.h"
#include "crf/crf_rows.h"

namespace ovs {
namespace OVS_ISA {
namespace {

constexpr double kPadLogit = -3e38;  // of the classes that pad a row: below every clamped energy, so Q is 0 there
constexpr double kLargestEnergy = 1e30;

// log(x) for normal positive x as straight-line code: x = m 2^n with m near 1, and the series of atanh((m - 1) / (m +
// 1)), worst absolute error 2e-7 max(1, |log x|).
OVS_INLINE float log_positive(float x) {
    uint32_t bits;
    __builtin_memcpy(&bits, &x, sizeof bits);
    const uint32_t shifted = bits - 0x3f3504f3u;  // of sqrt(1/2): m is in [sqrt(1/2), sqrt(2))
    const int32_t n = static_cast<int32_t>(shifted) >> 23;
    const uint32_t mantissa = (shifted & 0x007fffffu) + 0x3f3504f3u;
    float m;
    __builtin_memcpy(&m, &mantissa, sizeof m);
    const float f = (m - 1.0f) / (m + 1.0f), g = f * f;
    const float series = 2.0f * f * (1.0f + g * (0.333333333f + g * (0.2f + g * (0.142857143f + g * 0.111111111f))));
    return static_cast<float>(n) * 0.693147181f + series;
}
OVS_INLINE double log_positive(double x) { return __builtin_log(x); }

template <class T>
class MeanField {
public:
    MeanField(const CrfProblem& p, void* workspace, std::size_t bytes, int threads)
        : p_(p), threads_(threads), ws_(workspace, bytes), b_(p, false, threads, ws_) {}

    void run() {
        read_logits();
        if (p_.iterations == 0) return add_messages(0, true);
        for (int m = 0; m < p_.num_terms; ++m) start(p_.terms[m], b_.states[m]);
        add_messages(0, false);
        for (int64_t step = 1; step <= p_.iterations; ++step) {
            for (int m = 0; m < p_.num_terms; ++m) send(p_.terms[m], b_.states[m]);
            add_messages(p_.num_terms, step == p_.iterations);
        }
    }

private:
    using R = Rows<T>;
    using V = typename R::V;

    // Planes of probabilities or energies to rows of logits.
    void read_logits() {
        const T* const scores = static_cast<const T*>(p_.scores);
        const T clip = static_cast<T>(p_.clip);
        for_each_block(p_.num_points, kOutBlock, threads_, [&](int64_t begin, int64_t end) {
            for (int64_t c = 0; c < b_.pitch; ++c) {
                T column[kOutBlock];
                std::fill_n(column, kOutBlock, static_cast<T>(kPadLogit));
                const int64_t size = end - begin;
                if (c < p_.num_classes) {
                    const T* const plane = scores + c * p_.num_points + begin;
                    if (p_.energies) {
                        for (int64_t k = 0; k < size; ++k) column[k] = -clamped_energy(plane[k]);
                    } else {
                        OVS_INDEPENDENT
                        for (int64_t k = 0; k < size; ++k) {
                            const T at_most_one = plane[k] < T(1)    ? plane[k]
                                                  : plane[k] >= T(1) ? T(1)
                                                                     : clip;  // NaN: clip
                            column[k] = log_positive(at_most_one > clip ? at_most_one : clip);
                        }
                    }
                }
                T* const rows = b_.logits + begin * b_.pitch + c;
                for (int64_t k = 0; k < size; ++k) rows[k * b_.pitch] = column[k];
            }
        });
    }

    static T clamped_energy(T energy) {
        constexpr T kLargest = static_cast<T>(kLargestEnergy);
        if (!(energy < kLargest)) return kLargest;  // NaN too
        return energy > -kLargest ? energy : -kLargest;
    }

    void start(const CrfTerm& t, CrfState<T>& s) {
        if (t.exact) return ExactGaussian<T>(p_, t, s, b_.pitch, threads_).start();
        const NormPowers powers = norm_powers(static_cast<int>(p_.normalization), false);
        if (p_.normalization != Normalization::kNone) lattice_norm(t, p_.num_points, b_.ones, b_.norm, threads_);
        scale_weights(t, p_.num_points, b_.norm, powers, t.compat_rank == 0 ? t.compat : 1.0, threads_);
    }

    // What the pixels of a term will read.
    void send(const CrfTerm& t, CrfState<T>& s) {
        const T* const table = static_cast<const T*>(t.table);
        if (!t.exact) {
            LatticeRows<T> lattice(t, s.at, s.next, b_.pitch, threads_);
            lattice.splat(b_.q);
            lattice.blur(false);
            if (t.compat_rank > 0) lattice.multiply(table, t.compat_rank, p_.num_classes);
            s.rows = lattice.rows();
            return;
        }
        ExactGaussian<T>(p_, t, s, b_.pitch, threads_).sum_down(b_.q);
        if (t.compat_rank == 0) return;
        for_each_item(ceil_div(p_.num_points, kPixelBlock), threads_, [&](int worker, int64_t block) {
            T* const row = b_.scratch + worker * kOutBlock * b_.pitch;
            const int64_t end = std::min(p_.num_points, (block + 1) * kPixelBlock);
            for (int64_t i = block * kPixelBlock; i < end; ++i) {
                T* const down = s.down + i * b_.pitch;
                LatticeRows<T>::multiply_row(down, row, table, t.compat_rank, p_.num_classes, b_.pitch);
                std::copy_n(row, b_.pitch, down);
            }
        });
    }

    // Q = softmax(logits + the messages of the first `num_terms` terms), to b_.q or, the last time, to the caller.
    void add_messages(int num_terms, bool last) {
        for_each_item(ceil_div(p_.num_points, kOutBlock), threads_, [&](int worker, int64_t block) {
            const int64_t begin = block * kOutBlock, end = std::min(p_.num_points, begin + kOutBlock);
            T* const rows = last ? b_.scratch + worker * kOutBlock * b_.pitch : b_.q + begin * b_.pitch;
            R::for_each_tile(b_.pitch, [&](auto tile, int64_t c) {
                constexpr int kTile = decltype(tile)::value;
                for (int64_t i = begin; i < end; ++i) {
                    V sum[kTile] = {};
                    R::add_row(sum, T(1), b_.logits + i * b_.pitch + c);
                    for (int m = 0; m < num_terms; ++m) add_message(m, i, c, sum);
                    R::store_row(rows + (i - begin) * b_.pitch + c, sum);
                }
            });
            for (int64_t i = begin; i < end; ++i) softmax(rows + (i - begin) * b_.pitch);
            if (last) write(rows, begin, end);
        });
    }

    template <int kTile>
    OVS_INLINE void add_message(int m, int64_t i, int64_t c, V (&sum)[kTile]) const {
        const CrfTerm& t = p_.terms[m];
        const CrfState<T>& s = b_.states[m];
        if (t.exact) return ExactGaussian<T>::add_across(s, i, i % p_.width, p_.width, b_.pitch, c, sum);
        const int corners = t.num_features + 1;
        const int32_t* const vertices = t.vertices + i * corners;
        const T* const weights = static_cast<const T*>(t.weights) + i * corners;
        for (int r = 0; r < corners; ++r) R::add_row(sum, weights[r], s.rows + vertices[r] * b_.pitch + c);
    }

    OVS_INLINE void softmax(T* row) const {
        constexpr T kLog2E = static_cast<T>(1.44269504088896340736);
        V top = load<V>(row);
        for (int64_t c = R::kLanes; c < b_.pitch; c += R::kLanes) {
            const V v = load<V>(row + c);
            top = v > top ? v : top;
        }
        T largest = top[0];
        for (int k = 1; k < R::kLanes; ++k) largest = top[k] > largest ? top[k] : largest;
        V total = {};
        for (int64_t c = 0; c < b_.pitch; c += R::kLanes) {
            const V e = exp2_nonpositive<V>((load<V>(row + c) - largest) * kLog2E);
            total += e;
            store(row + c, e);
        }
        T sum = 0;
        for (int k = 0; k < R::kLanes; ++k) sum += total[k];
        const T inverse = T(1) / sum;
        for (int64_t c = 0; c < b_.pitch; c += R::kLanes) store(row + c, load<V>(row + c) * inverse);
    }

    void write(const T* rows, int64_t begin, int64_t end) const {
        if (p_.labels == nullptr) {
            for (int64_t c = 0; c < p_.num_classes; ++c) {
                T* const plane = static_cast<T*>(p_.out) + c * p_.num_points;
                for (int64_t i = begin; i < end; ++i) plane[i] = rows[(i - begin) * b_.pitch + c];
            }
            return;
        }
        for (int64_t i = begin; i < end; ++i) {
            const T* const row = rows + (i - begin) * b_.pitch;
            int64_t best = 0;
            for (int64_t c = 1; c < p_.num_classes; ++c) best = row[c] > row[best] ? c : best;
            if (p_.label_bytes == 1) {
                static_cast<uint8_t*>(p_.labels)[i] = static_cast<uint8_t>(best);
            } else {
                static_cast<int32_t*>(p_.labels)[i] = static_cast<int32_t>(best);
            }
        }
    }

    const CrfProblem& p_;
    int threads_;
    Workspace ws_;
    CrfBuffers<T> b_;
};

template <class T>
void filter(const CrfProblem& p, void* workspace, std::size_t bytes, int threads) {
    using R = Rows<T>;
    Workspace ws(workspace, bytes);
    const CrfBuffers<T> b(p, true, threads, ws);
    const CrfTerm& t = p.terms[0];
    const int64_t classes = p.num_classes;
    const T* const values = static_cast<const T*>(p.scores);
    for_each_block(p.num_points, kPixelBlock, threads, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            std::copy_n(values + i * classes, classes, b.q + i * b.pitch);
            std::fill(b.q + i * b.pitch + classes, b.q + (i + 1) * b.pitch, T(0));
        }
    });
    T* ones[2] = {b.ones[0], b.ones[1]};
    if (p.normalization != Normalization::kNone) lattice_norm(t, p.num_points, ones, b.norm, threads);
    const NormPowers powers = norm_powers(static_cast<int>(p.normalization), p.transpose);
    scale_weights(t, p.num_points, b.norm, powers, 1.0, threads);
    LatticeRows<T> lattice(t, b.states[0].at, b.states[0].next, b.pitch, threads);
    lattice.splat(b.q);
    lattice.blur(p.transpose);
    const int corners = t.num_features + 1;
    for_each_item(ceil_div(p.num_points, kPixelBlock), threads, [&](int worker, int64_t block) {
        T* const row = b.scratch + worker * kOutBlock * b.pitch;
        const int64_t end = std::min(p.num_points, (block + 1) * kPixelBlock);
        for (int64_t i = block * kPixelBlock; i < end; ++i) {
            const T* const weights = static_cast<const T*>(t.weights) + i * corners;
            R::for_each_tile(b.pitch, [&](auto tile, int64_t c) {
                typename R::V sum[decltype(tile)::value] = {};
                for (int r = 0; r < corners; ++r) {
                    R::add_row(sum, weights[r], lattice.rows() + t.vertices[i * corners + r] * b.pitch + c);
                }
                R::store_row(row + c, sum);
            });
            std::copy_n(row, classes, static_cast<T*>(p.out) + i * classes);
        }
    });
}

}  // namespace

int64_t number_vertices(const LatticeProblem& p, void* workspace, std::size_t bytes, int threads) {
    Workspace ws(workspace, bytes);
    const LatticeBuffers b(p, threads, ws);
    int64_t count = 0;
    OVS_LATTICE_SWITCH(p.num_features, count = LatticeBuilder<kD>(p, b, threads).number())
    return count;
}

void link_vertices(const LatticeProblem& p, void* workspace, std::size_t bytes, int threads) {
    Workspace ws(workspace, bytes);
    const LatticeBuffers b(p, threads, ws);
    OVS_LATTICE_SWITCH(p.num_features, LatticeBuilder<kD>(p, b, threads).link())
}

void mean_field(const CrfProblem& p, DType dtype, void* workspace, std::size_t bytes, int threads) {
    if (dtype == DType::kFloat64) {
        MeanField<double>(p, workspace, bytes, threads).run();
    } else {
        MeanField<float>(p, workspace, bytes, threads).run();
    }
}

void lattice_filter(const CrfProblem& p, DType dtype, void* workspace, std::size_t bytes, int threads) {
    if (dtype == DType::kFloat64) {
        filter<double>(p, workspace, bytes, threads);
    } else {
        filter<float>(p, workspace, bytes, threads);
    }
}

}  // namespace OVS_ISA
}  // namespace ovs
