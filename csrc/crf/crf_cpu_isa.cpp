// dense_crf and permutohedral_filter on a CPU; compiled once per instruction-set level.
//
// An iteration is one pass over the tiles and a blur. The pass reads what the vertices of a tile hold, adds up the
// slices of all terms on top of the logits of a pixel, takes the softmax, and sends it on to the tile's vertices for
// the next iteration right away: Q is never stored, but for an exact Gaussian, and for the caller in the last pass.
#include "crf/crf_gaussian.h"
#include "crf/crf_pixels.h"
#include "crf/crf_rows.h"

namespace ovs {
namespace OVS_ISA {
namespace {

// Threads that are worth waking for so many numbers.
inline int useful_threads(int threads, int64_t numbers) {
    constexpr int64_t kNumbersOfThread = 1 << 16;
    return static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(threads, numbers / kNumbersOfThread)));
}

// Brings the vertices of all lattices from what the tiles sent to what the pixels read. States and terms as in
// CrfProblem; exact Gaussians are left out.
template <class T>
void gather_and_blur(const CrfProblem& p, const CrfBuffers<T>& b, bool reverse, int threads) {
    int steps = 0;
    for (int m = 0; m < p.num_terms; ++m) {
        if (!p.terms[m].exact) steps = std::max(steps, LatticeRows<T>(p.terms[m], b.states[m], b.pitch).steps());
    }
    const auto blocks = [&](int m, int step) -> int64_t {
        if (p.terms[m].exact) return 0;
        const LatticeRows<T> rows(p.terms[m], b.states[m], b.pitch);
        return step < rows.steps() ? rows.blocks() : 0;
    };
    for (int step = 0; step < steps; ++step) {
        int64_t items = 0;
        for (int m = 0; m < p.num_terms; ++m) items += blocks(m, step);
        for_each_item(items, threads, [&](int worker, int64_t item) {
            int m = 0;
            for (int64_t size = blocks(0, step); item >= size; size = blocks(++m, step)) item -= size;
            T* const scratch = b.pixels + worker * kTilePoints * b.pitch;
            LatticeRows<T>(p.terms[m], b.states[m], b.pitch).step(step, item, reverse, p.num_classes, scratch);
        });
    }
}

template <class T>
class MeanField {
public:
    MeanField(const CrfProblem& p, void* workspace, std::size_t bytes, int threads)
        : p_(p),
          threads_(useful_threads(threads, p.num_points * p.num_classes)),
          ws_(workspace, bytes),
          b_(p, false, threads, ws_),
          tiles_(p.num_points, p.width) {}

    void run() {
        if (p_.iterations == 0) return pass(true, true);
        for (int m = 0; m < p_.num_terms; ++m) start(p_.terms[m], b_.states[m]);
        pass(true, false);
        for (int64_t step = 1; step <= p_.iterations; ++step) {
            gather_and_blur(p_, b_, false, threads_);
            for (int m = 0; m < p_.num_terms; ++m) {
                if (p_.terms[m].exact) sum_down(p_.terms[m], b_.states[m]);
            }
            pass(false, step == p_.iterations);
        }
    }

private:
    using R = Rows<T>;
    using V = typename R::V;

    void start(const CrfTerm& t, CrfState<T>& s) {
        if (t.exact) return ExactGaussian<T>(p_, t, s, b_.pitch, threads_).start(kLog2E);
        LatticeRows<T>(t, s, b_.pitch).start();
        LatticeFactors<T>(t, s, tiles_, b_.sums, b_.ones)
            .find(p_.normalization, false, kLog2E * (t.compat_rank == 0 ? t.compat : 1.0), threads_);
    }

    void sum_down(const CrfTerm& t, CrfState<T>& s) {
        ExactGaussian<T>(p_, t, s, b_.pitch, threads_).sum_down(b_.q);
        if (t.compat_rank == 0) return;
        const T* const table = static_cast<const T*>(t.table);
        for_each_item(ceil_div(p_.num_points, kPixelBlock), threads_, [&](int worker, int64_t block) {
            T* const row = b_.pixels + worker * kTilePoints * b_.pitch;
            const int64_t end = std::min(p_.num_points, (block + 1) * kPixelBlock);
            for (int64_t i = block * kPixelBlock; i < end; ++i) {
                T* const down = s.down + i * b_.pitch;
                LatticeRows<T>::multiply_row(down, row, table, t.compat_rank, p_.num_classes, b_.pitch);
                std::copy_n(row, b_.pitch, down);
            }
        });
    }

    // Q = softmax(logits + messages), without messages the first time; to the lattices or, the last time, the caller.
    void pass(bool first, bool last) {
        backward_ = !backward_;  // what the pass before has read last is in the caches still
        for_each_item(tiles_.count, threads_, [&](int worker, int64_t item) {
            const int64_t number = backward_ ? tiles_.count - 1 - item : item;
            const Tile tile = tiles_[number];
            T* const logits = b_.logits + tile.first * b_.pitch;
            T* const rows = b_.pixels + worker * kTilePoints * b_.pitch;
            if (first) Pixels<T>::read_logits(p_, tile, b_.pitch, logits);
            TileTerm<T>* const terms = b_.tile_terms + int64_t{worker} * p_.num_terms;
            const int count = p_.iterations > 0 ? prepare(worker, number, tile, first, last, terms) : 0;
            const T* from = logits;
            if (b_.exact && !first) {
                add_exact(tile, logits, rows);
                from = rows;
            }
            const int in = first ? 0 : count, out = last ? 0 : count;
            const bool keep = last || b_.exact;
            for (int64_t begin = 0; begin < tile.size(); begin += kRun) {
                const int64_t end = std::min(tile.size(), begin + kRun);
                const T* source = from + begin * b_.pitch;
                T* const q = keep ? rows + begin * b_.pitch : rows;
                for (int m = 0; m < in; ++m, source = q) R::slice(terms[m], begin, end, b_.pitch, source, q);
                T inverse[kRun];
                Pixels<T>::softmax(source, q, end - begin, b_.pitch, inverse);
                for (int m = 0; m < out; ++m) R::splat(terms[m], begin, end, b_.pitch, q, inverse);
                if (keep) Pixels<T>::scale(q, end - begin, b_.pitch, inverse);
            }
            if (last) {
                Pixels<T>::write(p_, tile, b_.pitch, rows);
            } else if (b_.exact) {
                const T* row = rows;
                tile.for_each_run([&](int64_t x, int64_t y, int64_t length) {
                    std::copy_n(row, length * b_.pitch, b_.q + (y * p_.width + x) * b_.pitch);
                    row += length * b_.pitch;
                });
            }
        });
    }

    // The lattices of a tile; returns how many there are.
    int prepare(int worker, int64_t number, const Tile& tile, bool first, bool last, TileTerm<T>* terms) {
        T* in = b_.vertices + worker * b_.rows_of_tile * b_.pitch;
        int count = 0;
        for (int m = 0; m < p_.num_terms; ++m) {
            if (p_.terms[m].exact) continue;
            const LatticeRows<T> rows(p_.terms[m], b_.states[m], b_.pitch);
            TileTerm<T>& t = terms[count++] = rows.tile(number, tile, in);
            in += t.num_rows * b_.pitch;
            if (!first) rows.read_tile(number, t);
            if (!last) rows.clear_tile(t);
        }
        return count;
    }

    void add_exact(const Tile& tile, const T* logits, T* rows) const {
        R::for_each_tile(b_.pitch, [&](auto vectors, int64_t c) {
            int64_t at = c;
            tile.for_each_run([&](int64_t first, int64_t y, int64_t length) {
                for (int64_t x = first; x < first + length; ++x, at += b_.pitch) {
                    V sum[decltype(vectors)::value];
                    R::load_row(sum, logits + at);
                    for (int m = 0; m < p_.num_terms; ++m) {
                        if (!p_.terms[m].exact) continue;
                        ExactGaussian<T>::add_across(b_.states[m], y * p_.width + x, x, p_.width, b_.pitch, c, sum);
                    }
                    R::store_row(rows + at, sum);
                }
            });
        });
    }

    static constexpr int64_t kRun = 32;  // pixels that go through one step together: their rows stay in the first cache

    const CrfProblem& p_;
    int threads_;
    Workspace ws_;
    CrfBuffers<T> b_;
    Tiles tiles_;
    bool backward_ = true;
};

template <class T>
class LatticeFilter {
public:
    LatticeFilter(const CrfProblem& p, void* workspace, std::size_t bytes, int threads)
        : p_(p),
          threads_(useful_threads(threads, p.num_points * p.num_classes)),
          ws_(workspace, bytes),
          b_(p, true, threads, ws_),
          tiles_(p.num_points, LatticeView(p.terms[0]).width),
          lattice_(p.terms[0], b_.states[0], b_.pitch) {}

    void run() {
        lattice_.start();
        LatticeFactors<T>(p_.terms[0], b_.states[0], tiles_, b_.sums, b_.ones)
            .find(p_.normalization, p_.transpose, 1.0, threads_);
        for_each_item(tiles_.count, threads_, [&](int worker, int64_t number) { splat(worker, number); });
        gather_and_blur(p_, b_, p_.transpose, threads_);
        for_each_item(tiles_.count, threads_, [&](int worker, int64_t number) { slice(worker, number); });
    }

private:
    using R = Rows<T>;

    void splat(int worker, int64_t number) const {
        const Tile tile = tiles_[number];
        const TileTerm<T> t = lattice_.tile(number, tile, nullptr);
        lattice_.clear_tile(t);
        T* const row = b_.pixels + worker * kTilePoints * b_.pitch;
        std::fill_n(row, b_.pitch, T(0));
        const T one = 1;
        int64_t k = 0;
        tile.for_each_run([&](int64_t x, int64_t y, int64_t length) {
            const T* values = static_cast<const T*>(p_.scores) + (y * tiles_.width + x) * p_.num_classes;
            for (const int64_t end = k + length; k < end; ++k, values += p_.num_classes) {
                std::copy_n(values, p_.num_classes, row);
                R::splat(t, k, k + 1, b_.pitch, row, &one);
            }
        });
    }

    void slice(int worker, int64_t number) const {
        const Tile tile = tiles_[number];
        const TileTerm<T> t = lattice_.tile(number, tile, b_.vertices + worker * b_.rows_of_tile * b_.pitch);
        lattice_.read_tile(number, t);
        T* const zero = b_.pixels + worker * kTilePoints * b_.pitch;
        T* const row = zero + b_.pitch;
        std::fill_n(zero, b_.pitch, T(0));
        int64_t k = 0;
        tile.for_each_run([&](int64_t x, int64_t y, int64_t length) {
            T* out = static_cast<T*>(p_.out) + (y * tiles_.width + x) * p_.num_classes;
            for (const int64_t end = k + length; k < end; ++k, out += p_.num_classes) {
                R::slice(t, k, k + 1, b_.pitch, zero, row);
                std::copy_n(row, p_.num_classes, out);
            }
        });
    }

    const CrfProblem& p_;
    int threads_;
    Workspace ws_;
    CrfBuffers<T> b_;
    Tiles tiles_;
    LatticeRows<T> lattice_;
};

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
        LatticeFilter<double>(p, workspace, bytes, threads).run();
    } else {
        LatticeFilter<float>(p, workspace, bytes, threads).run();
    }
}

}  // namespace OVS_ISA
}  // namespace ovs
