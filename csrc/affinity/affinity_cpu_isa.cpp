// affinity_pool on a CPU; compiled once per instruction-set level.
//
// Guide rows are packed and normalised. Then pairs of blocks of 96 patches: their affinities, the weights made of them,
// and both blocks' results moved on by the other block's features, while the 96 x 96 weights are in the cache.
//
// Two pairs that share a block must not add to its result at the same time, nor in an order of chance. Pair (i, j)
// belongs to round (i + j) mod blocks: in a round every block occurs exactly once, and a block's result is moved on by
// round 0, 1, .. in that order, whoever does it. A worker whose turn at a block has not come waits; pairs are taken in
// the order of their rounds, so that somebody is always at work on what it waits for, and waiting is rare.
#include <sched.h>

#include <cstring>
#include <limits>

#include "affinity/affinity_tile.h"
#include "common/parallel.h"

namespace ovs {
namespace OVS_ISA {
namespace {

template <class T>
class Pooler {
public:
    Pooler(const AffinityParams& p, void* workspace, std::size_t bytes, int threads)
        : p_(p), threads_(threads), workspace_(workspace, bytes), s_(p, threads, workspace_) {}

    void run() {
        const int64_t n = p_.num_windows, blocks = s_.num_blocks;
        parallel_for(n * s_.num_panels, threads_, [&](int64_t i) { pack_panel(i / s_.num_panels, i % s_.num_panels); });
        parallel_for(n, threads_, [&](int64_t window) { start_window(window); });
        const int64_t slots = blocks / 2 + 1;
        int64_t next = 0;
        parallel_for(threads_, threads_, [&](int64_t worker) {
            for (;;) {
                const int64_t item = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED);
                if (item >= n * blocks * slots) return;
                take_pair(worker, item / (blocks * slots), item / slots % blocks, item % slots);
            }
        });
        if (is_proxy()) parallel_for(n * blocks, threads_, [&](int64_t i) { serve_weak_rows(i / blocks, i % blocks); });
    }

private:
    using V = typename Lanes<T>::V;
    using B = typename Lanes<T>::B;
    using Bits = typename Lanes<T>::Bits;
    static constexpr int kLanes = Lanes<T>::kLanes;

    bool is_proxy() const { return p_.form == AffinityForm::kProxyClip; }
    const T* features(int64_t window, int64_t patch) const {
        return static_cast<const T*>(p_.features) + (window * p_.num_patches + patch) * p_.num_features;
    }
    const T* guide(int64_t window, int64_t patch) const {
        return static_cast<const T*>(p_.guide) + (window * p_.num_patches + patch) * p_.num_guide;
    }
    T* pooled(int64_t window, int64_t patch) const {
        return static_cast<T*>(p_.pooled) + (window * p_.num_patches + patch) * p_.num_features;
    }
    T* panel(int64_t window, int64_t index) const {
        return s_.panels + (window * s_.num_panels + index) * p_.num_guide * kPanel;
    }
    int64_t block_rows(int64_t block) const { return std::min(kBlock, p_.num_patches - block * kBlock); }

    // Packing

    static T sum_of(const V& v) {
        T sum = 0;
        for (int lane = 0; lane < kLanes; ++lane) sum += v[lane];
        return sum;
    }

    // The sum of f(x) over a row, in an order of its own; zero * NaN stays in it.
    template <class Fn>
    static T sum_over(const T* row, int64_t count, const Fn& fn) {
        V sums[4] = {};
        int64_t k = 0;
        for (; k + 4 * kLanes <= count; k += 4 * kLanes) {
            OVS_UNROLL
            for (int i = 0; i < 4; ++i) sums[i] += fn(load<V>(row + k + i * kLanes));
        }
        for (; k < count; k += kLanes) sums[0] += fn(load_some<V>(row + k, std::min<int64_t>(kLanes, count - k)));
        return sum_of((sums[0] + sums[1]) + (sums[2] + sums[3]));
    }

    static T square_of(const T* row, int64_t count) {
        return sum_over(row, count, [](const V& v) { return v * v; });
    }

    // The norm that a row is divided by. Where the squares leave the range of float they are added up in double.
    T norm_of(const T* row, T square) const {
        constexpr T kLow = sizeof(T) == 8 ? T(1e-280) : T(1e-25), kHigh = sizeof(T) == 8 ? T(1e300) : T(1e30);
        double sum = static_cast<double>(square);
        if (sizeof(T) < 8 && !(square > kLow && square < kHigh)) {
            sum = 0.0;
            for (int64_t k = 0; k < p_.num_guide; ++k) sum += static_cast<double>(row[k]) * static_cast<double>(row[k]);
        }
        return static_cast<T>(std::max(__builtin_sqrt(sum), kSmallestNorm));
    }

    void pack_panel(int64_t window, int64_t index) {
        const int64_t first = index * kPanel, rows = std::min(kPanel, p_.num_patches - first);
        T* const to = panel(window, index);
        T poison = 0;
        T norms[kPanel];
        for (int64_t r = 0; r < rows; ++r) {
            const T* const row = guide(window, first + r);
            const T square = square_of(row, p_.num_guide);
            norms[r] = p_.normalize ? norm_of(row, square) : T(1);
            poison += sum_over(row, p_.num_guide, [](const V& v) { return v * T(0); });
            const T unusable =
                sum_over(features(window, first + r), p_.num_features, [](const V& v) { return v * T(0); });
            s_.bad[window * p_.num_patches + first + r] = unusable != T(0) || unusable != unusable;
        }
        s_.poison[window * s_.num_panels + index] = poison;
        turn_rows(guide(window, first), rows, norms, to);
        T squares[kPanel] = {};
        for (int64_t k = 0; k < p_.num_guide; ++k) {
            for (int64_t r = 0; r < kPanel; ++r) squares[r] += to[k * kPanel + r] * to[k * kPanel + r];
        }
        std::copy_n(squares, rows, s_.squares + window * p_.num_patches + first);
        if (!is_proxy()) return;
        T* const sums = s_.panel_sums + (window * s_.num_panels + index) * p_.num_guide;
        for (int64_t k = 0; k < p_.num_guide; ++k)
            sums[k] = sum_over(to + k * kPanel, kPanel, [](const V& v) { return v; });
    }

    // Rows of the guide, divided by their norms, become the columns of a panel; zeros beyond the last.
    void turn_rows(const T* from, int64_t rows, const T* norms, T* to) const {
        const int64_t whole = p_.num_guide / kLanes * kLanes;
        for (int64_t r = 0; r < kPanel; r += kLanes) {
            for (int64_t k = 0; k < whole; k += kLanes) {
                V tile[kLanes];
                OVS_UNROLL
                for (int i = 0; i < kLanes; ++i) {
                    tile[i] = r + i < rows ? load<V>(from + (r + i) * p_.num_guide + k) / norms[r + i] : V{};
                }
                transpose_square<T>(tile);
                OVS_UNROLL
                for (int i = 0; i < kLanes; ++i) store(to + (k + i) * kPanel + r, tile[i]);
            }
            for (int64_t k = whole; k < p_.num_guide; ++k) {
                for (int64_t i = r; i < r + kLanes; ++i) {
                    to[k * kPanel + i] = i < rows ? from[i * p_.num_guide + k] / norms[i] : T(0);
                }
            }
        }
    }

    // What a window needs before its first pair.
    void start_window(int64_t window) {
        T poison = 0, longest = 0;
        for (int64_t i = 0; i < s_.num_panels; ++i) poison += s_.poison[window * s_.num_panels + i];
        for (int64_t i = 0; i < p_.num_patches; ++i) {
            longest = std::max(longest, s_.squares[window * p_.num_patches + i]);
        }
        s_.poison[window * s_.num_panels] = poison;
        s_.longest[window] = longest;
        s_.cut[window] = static_cast<T>(is_proxy() ? p_.beta * mean_affinity(window) : p_.threshold);
        std::fill_n(s_.rounds + window * s_.num_blocks, s_.num_blocks, int64_t{0});
        std::fill_n(s_.totals + window * s_.num_blocks * kBlock, s_.num_blocks * kBlock, T(0));
    }

    double mean_affinity(int64_t window) const {
        double total = 0.0;
        for (int64_t k = 0; k < p_.num_guide; ++k) {
            double sum = 0.0;
            for (int64_t i = 0; i < s_.num_panels; ++i) {
                sum += static_cast<double>(s_.panel_sums[(window * s_.num_panels + i) * p_.num_guide + k]);
            }
            total += sum * sum;
        }
        const double n = static_cast<double>(p_.num_patches);
        return total / n / n;
    }

    // Pairs of blocks

    // The pair in a slot of a round: (c + slot, c - slot) around the c with 2 c = round, modulo the number of blocks.
    // Where there is no such c the pairs lie around the gap between two blocks, and the last slot is empty.
    void take_pair(int64_t worker, int64_t window, int64_t round, int64_t slot) {
        const int64_t blocks = s_.num_blocks;
        int64_t i, j;
        if (round % 2 == 0 || blocks % 2 == 1) {
            const int64_t centre = (round % 2 == 0 ? round : round + blocks) / 2;
            i = (centre + slot) % blocks;
            j = (centre - slot + blocks) % blocks;
        } else {
            if (slot == blocks / 2) return;
            i = ((round + 1) / 2 + slot) % blocks;
            j = ((round - 1) / 2 - slot + blocks) % blocks;
        }
        T* const weights = s_.weights + 2 * worker * kBlock * kBlock;
        T* const turned = weights + kBlock * kBlock;
        make_weights(window, i, j, weights, turned);
        if (i != j && !has_turn(window, i, round) && has_turn(window, j, round)) {
            move_on(window, j, i, round, turned);
            await_turn(window, i, round);
            move_on(window, i, j, round, weights);
            return;
        }
        await_turn(window, i, round);
        move_on(window, i, j, round, weights);
        if (i == j) return;
        await_turn(window, j, round);
        move_on(window, j, i, round, turned);
    }

    bool has_turn(int64_t window, int64_t block, int64_t round) const {
        return __atomic_load_n(s_.rounds + window * s_.num_blocks + block, __ATOMIC_ACQUIRE) == round;
    }
    void await_turn(int64_t window, int64_t block, int64_t round) const {
        constexpr int kPatience = 1000;  // looks, some microseconds, before the processor is offered to others
        for (int looks = 0; !has_turn(window, block, round); ++looks) {
            if (looks > kPatience) sched_yield();
        }
    }

    // The weights of the patches of block i (rows) and j (columns), zero beyond the last patch; and the same turned, so
    // that the rows are the patches of block j. A block with itself is computed above its diagonal and mirrored.
    void make_weights(int64_t window, int64_t i, int64_t j, T* weights, T* turned) const {
        const int64_t rows = block_rows(i), columns = block_rows(j);
        for (int64_t a = 0; a * kPanel < rows; ++a) {
            for (int64_t b = i == j ? a : 0; b * kPanel < columns; ++b) {
                T* const tile = weights + a * kPanel * kBlock + b * kPanel;
                const int64_t r = std::min(kPanel, rows - a * kPanel), c = std::min(kPanel, columns - b * kPanel);
                multiply_panels(panel(window, i * kBlockPanels + a), panel(window, j * kBlockPanels + b), p_.num_guide,
                                r, c, tile);
                weigh(window, r, c, tile, i == j && a == b);
                if (i == j && a == b) continue;
                turn_tile(tile, r, c, (i == j ? weights : turned) + b * kPanel * kBlock + a * kPanel);
            }
        }
    }

    // to[c][r] = from[r][c]. Rows beyond the last are products with a panel's zeros, and no weights.
    static void turn_tile(const T* from, int64_t rows, int64_t columns, T* to) {
        for (int64_t r = 0; r < rows; r += kLanes) {
            for (int64_t c = 0; c < columns; c += kLanes) {
                V tile[kLanes];
                OVS_UNROLL
                for (int k = 0; k < kLanes; ++k) tile[k] = r + k < rows ? load<V>(from + (r + k) * kBlock + c) : V{};
                transpose_square<T>(tile);
                OVS_UNROLL
                for (int k = 0; k < kLanes; ++k) store(to + (c + k) * kBlock + r, tile[k]);
            }
        }
    }

    // Affinities of a tile to weights, in place, and zeros beyond its last column.
    void weigh(int64_t window, int64_t rows, int64_t columns, T* tile, bool diagonal) const {
        const T cut = s_.cut[window], longest = s_.longest[window];
        const T scale = static_cast<T>(std::min(p_.gamma * kLog2E, 0.25 * double{std::numeric_limits<T>::max()}));
        for (int64_t r = 0; r < rows; ++r) {
            T* const row = tile + r * kBlock;
            const T itself = row[r];
            for (int64_t c = 0; c < columns; c += kLanes) {
                const V a = load<V>(row + c);
                V w = a;
                if (is_proxy()) {
                    const V x = (a - longest) * scale;
                    w = exp2_nonpositive(x < V{} ? x : V{});
                }
                store(row + c, a < cut ? V{} : w);
            }
            if (diagonal && is_proxy() && itself < cut) {
                const V x = V{} + std::min((itself - longest) * scale, T(0));
                row[r] = exp2_nonpositive(x)[0];
            }
            for (int64_t c = columns; c % kLanes != 0; ++c) row[c] = T(0);
        }
    }

    // Adds what block `own` gets from block `other`; a row of weights for each of its patches.
    void move_on(int64_t window, int64_t own, int64_t other, int64_t round, const T* weights) {
        const int64_t rows = block_rows(own);
        int64_t r = 0;
        for (; r + kGroup <= rows; r += kGroup) pool_group<kGroup>(window, own, other, r, round, weights);
        for (; r < rows; ++r) pool_group<1>(window, own, other, r, round, weights);
        if (round + 1 == s_.num_blocks) divide_block(window, own);
        __atomic_store_n(s_.rounds + window * s_.num_blocks + own, round + 1, __ATOMIC_RELEASE);
    }

    template <int kRows>
    void pool_group(int64_t window, int64_t own, int64_t other, int64_t r, int64_t round, const T* weights) {
        const int64_t others = block_rows(other), patch = own * kBlock + r;
        const uint8_t* const bad = s_.bad + window * p_.num_patches + other * kBlock;
        T* const out = pooled(window, patch);
        int32_t list[kBlock + 1], unusable[kBlock + 1];
        Survivors<T> survivors = {weights + r * kBlock, list, 0, features(window, other * kBlock), p_.num_features};
        T totals[kRows];
        Bits wanted[kBlock];
        find_wanted<kRows>(survivors.weights, others, totals, wanted);
        int64_t num_unusable = 0;
        for (int64_t j = 0; j < others; ++j) {
            list[survivors.count] = unusable[num_unusable] = static_cast<int32_t>(j);
            const bool is_wanted = wanted[j] != 0, is_bad = bad[j] != 0;
            survivors.count += is_wanted && !is_bad;
            num_unusable += is_wanted && is_bad;
        }
        if (round == 0) {
            add_survivors<true, kRows>(survivors, out);
        } else if (survivors.count > 0) {
            add_survivors<false, kRows>(survivors, out);
        }
        for (int k = 0; k < kRows; ++k) {
            s_.totals[window * s_.num_blocks * kBlock + patch + k] += totals[k];
            for (int64_t u = 0; u < num_unusable; ++u) {
                const T w = survivors.weights[k * kBlock + unusable[u]];
                if (w != T(0)) add_row(w, features(window, other * kBlock + unusable[u]), out + k * p_.num_features);
            }
        }
    }

    // The sums of some rows of weights, and where one of them is not zero.
    template <int kRows>
    static void find_wanted(const T* weights, int64_t count, T* totals, Bits* wanted) {
        V sums[kRows] = {};
        for (int64_t j = 0; j < count; j += kLanes) {
            B any = {};
            OVS_UNROLL
            for (int k = 0; k < kRows; ++k) {
                const V w = load<V>(weights + k * kBlock + j);
                sums[k] += w;
                any |= w != V{};
            }
            store(wanted + j, any);
        }
        for (int k = 0; k < kRows; ++k) totals[k] = sum_of(sums[k]);
    }

    void add_row(T weight, const T* from, T* to) const {
        for (int64_t d = 0; d < p_.num_features; ++d) to[d] += weight * from[d];
    }

    void divide_block(int64_t window, int64_t block) {
        const T* const totals = s_.totals + (window * s_.num_blocks + block) * kBlock;
        const T poison = s_.poison[window * s_.num_panels];
        for (int64_t r = 0; r < block_rows(block); ++r) {
            const T factor = T(1) / (totals[r] + (is_proxy() ? T(0) : T(kAffinityEpsilon))) + poison;
            T* const row = pooled(window, block * kBlock + r);
            for (int64_t d = 0; d < p_.num_features; ++d) row[d] *= factor;
        }
    }

    // Rows whose exponentials vanish beside the longest row's: again, relative to their own largest.
    void serve_weak_rows(int64_t window, int64_t block) {
        const T poison = s_.poison[window * s_.num_panels];
        for (int64_t i = block * kBlock; i < block * kBlock + block_rows(block); ++i) {
            if (is_weak(p_.gamma, s_.longest[window], s_.squares[window * p_.num_patches + i]))
                pool_weak_row(window, i, poison);
        }
    }

    T affinity(int64_t window, int64_t i, int64_t j) const {
        const T *a = panel(window, i / kPanel) + i % kPanel, *b = panel(window, j / kPanel) + j % kPanel;
        T sum = 0;
        for (int64_t k = 0; k < p_.num_guide; ++k) sum += a[k * kPanel] * b[k * kPanel];
        return sum;
    }

    void pool_weak_row(int64_t window, int64_t i, T poison) {
        T* const out = pooled(window, i);
        double largest = -HUGE_VAL, total = 0.0;
        for (int64_t j = 0; j < p_.num_patches; ++j) {
            const T a = affinity(window, i, j);
            if (!(a < s_.cut[window]) || i == j) largest = std::max(largest, double{a});
        }
        std::fill_n(out, p_.num_features, T(0));
        for (int64_t j = 0; j < p_.num_patches; ++j) {
            const T a = affinity(window, i, j);
            if (a < s_.cut[window] && i != j) continue;
            const double weight = __builtin_exp(p_.gamma * (double{a} - largest));
            total += weight;
            const T factor = static_cast<T>(weight);
            if (factor != T(0)) add_row(factor, features(window, j), out);  // 0 x NaN would spread
        }
        for (int64_t d = 0; d < p_.num_features; ++d) out[d] = static_cast<T>(double{out[d]} / total) + poison;
    }

    const AffinityParams& p_;
    const int threads_;
    Workspace workspace_;
    AffinityScratch<T> s_;
};

}  // namespace

void affinity_pool_level(const AffinityParams& p, DType dtype, void* workspace, std::size_t bytes, int threads) {
    if (dtype == DType::kFloat64) {
        Pooler<double>(p, workspace, bytes, threads).run();
    } else {
        Pooler<float>(p, workspace, bytes, threads).run();
    }
}

}  // namespace OVS_ISA
}  // namespace ovs
