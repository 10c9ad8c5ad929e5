// template_entropy on a CPU; included once per instruction-set level.
//
// Logits lie class by class with the patches innermost, so that a strip of patches, or of pixels, is a vector and no
// sum runs across lanes. Patches: the largest logit and its class, then the exponentials and both sums that the entropy
// is made of. Pixels: the softmax in place, then for each template and strip of the image the source rows stretched to
// the strip when they are first needed, and per image row one pass over the classes that blends, takes logarithms and
// keeps the best. Where all patches of a blend agree on their class it is the pixels' class too (a convex combination),
// and nothing needs to be compared.
#pragma once
#include <cstring>

#include "common/parallel.h"
#include "templates/templates_cpu.h"
#include "templates/templates_pack.h"

namespace ovs {
namespace OVS_ISA {
namespace {

constexpr float kSmallestShare = 1e-30f;  // a probability below it is zero: its products stay normal numbers

template <class T>
class EntropyCounter {
public:
    EntropyCounter(const TemplateEntropyParams& p, void* workspace, std::size_t bytes, int threads)
        : p_(p), threads_(threads), workspace_(workspace, bytes), scratch_(p, threads, workspace_) {}

    void patches() {
        const int64_t strips = p_.pitch / kStrip;
        for_each_item(p_.num_templates, strips, [&](int64_t* tally, int, int64_t m, int64_t s) {
            p_.mano ? patch_strip<true>(tally, m, s) : patch_strip<false>(tally, m, s);
        });
    }

    void pixels() {
        const int64_t strips = p_.pitch / kStrip;
        parallel_for(p_.num_templates * strips, threads_, [&](int64_t i) { softmax_strip(i / strips, i % strips); });
        for_each_item(p_.num_templates, ceil_div(p_.out_width, kStrip),
                      [&](int64_t* tally, int worker, int64_t m, int64_t s) { pixel_strip(tally, worker, m, s); });
    }

private:
    using P = Pack<T>;
    using M = Marks<T>;

    // Calls fn(tally, worker, template, strip). A worker takes neighbouring strips of a template as they come and adds
    // its tally to the result when it goes on to another template: integers, so the order does not matter.
    template <class Fn>
    void for_each_item(int64_t templates, int64_t strips, const Fn& fn) {
        const int64_t items = templates * strips, kinds = p_.mano ? 5 : 2;
        int64_t next = 0;
        parallel_for(std::min<int64_t>(threads_, items), threads_, [&](int64_t worker) {
            int64_t* const tally = scratch_.tallies + worker * scratch_.tally_stride;
            const int64_t numbers = (kinds + 1) * p_.num_classes;
            std::fill_n(tally, numbers, 0);
            int64_t current = -1;
            for (;;) {
                const int64_t item = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED);
                if (item >= items || (current >= 0 && item / strips != current)) {
                    flush(tally, current, kinds);
                    std::fill_n(tally, numbers, 0);
                }
                if (item >= items) return;
                current = item / strips;
                fn(tally, static_cast<int>(worker), current, item % strips);
            }
        });
    }

    void flush(const int64_t* tally, int64_t m, int64_t kinds) {
        if (m < 0) return;
        for (int64_t kind = 0; kind <= kinds; ++kind) {
            int64_t* const to = (kind == 0 ? p_.counts : p_.sums + (kind - 1) * p_.sum_stride) + m * p_.num_classes;
            const int64_t* const from = tally + kind * p_.num_classes;
            for (int64_t k = 0; k < p_.num_classes; ++k) {
                if (from[k] != 0) __atomic_fetch_add(to + k, from[k], __ATOMIC_RELAXED);
            }
        }
    }

    T* logits(int64_t m, int64_t s) const {
        return static_cast<T*>(p_.logits) + m * p_.num_classes * p_.pitch + s * kStrip;
    }
    const T* scales(int64_t m) const { return static_cast<const T*>(p_.row_scale) + m * p_.num_classes; }

    // Logits of a strip: scaled in place, the largest and its class returned.
    void scale_strip(int64_t m, int64_t s, P& top, M& best) const {
        T* at = logits(m, s);
        const T* const scale = scales(m);
        top = load_pack(at) * broadcast(scale[0]);
        store_pack(at, top);
        best = broadcast_mark<T>(0);
        for (int64_t k = 1; k < p_.num_classes; ++k) {
            at += p_.pitch;
            const P logit = load_pack(at) * broadcast(scale[k]);
            store_pack(at, logit);
            const M better = above(logit, top);
            top = select(better, logit, top);
            best = select(better, broadcast_mark<T>(k), best);
        }
    }

    template <bool kMano>
    void patch_strip(int64_t* tally, int64_t m, int64_t s) const {
        P top;
        M best;
        scale_strip(m, s, top, best);
        const T* at = logits(m, s);
        const P zero = broadcast(T(0));
        P sum = zero, weighted = zero, power = zero, logit_sum = zero, taylor = zero, taylor_power = zero;
        for (int64_t k = 0; k < p_.num_classes; ++k, at += p_.pitch) {
            const P q = load_pack(at), below = q - top, e = exp_of_negative(below);
            sum = sum + e;
            weighted = weighted + e * below;
            if constexpr (kMano) {
                const P v = broadcast(T(1)) + q + broadcast(T(0.5)) * q * q, v2 = v * v, e2 = e * e;
                power = power + e2 * e2;
                logit_sum = logit_sum + below;
                taylor = taylor + v;
                taylor_power = taylor_power + v2 * v2;
            }
        }
        T terms[5][kStrip] = {};
        T total[kStrip], u[kStrip];
        store_pack(total, sum);
        store_pack(u, weighted);
        for (int l = 0; l < kStrip; ++l) {
            terms[0][l] = static_cast<T>(__builtin_log(static_cast<double>(total[l]))) - u[l] / total[l];
            terms[1][l] = T(1) / total[l];
        }
        if constexpr (kMano) {
            const P four = sum * sum, taylor2 = taylor * taylor;
            store_pack(terms[2], power / (four * four));
            store_pack(terms[3], taylor_power / (taylor2 * taylor2));
            T mean[kStrip];
            store_pack(mean, logit_sum / broadcast(static_cast<T>(p_.num_classes)));
            for (int l = 0; l < kStrip; ++l) {
                terms[4][l] = static_cast<T>(__builtin_log(static_cast<double>(total[l]))) - mean[l];
            }
        }
        typename M::I classes[kStrip];
        store_marks(classes, best);
        const int64_t first = s * kStrip;
        const int lanes = static_cast<int>(std::min<int64_t>(kStrip, p_.num_patches - first));
        for (int l = 0; l < lanes; ++l) {
            if (!(terms[0][l] == terms[0][l]) || (p_.unknown != nullptr && p_.unknown[first + l] != 0)) continue;
            tally[classes[l]] += 1;
            for (int kind = 0; kind < (kMano ? 5 : 2); ++kind) {
                tally[(kind + 1) * p_.num_classes + classes[l]] += fixed_point(static_cast<double>(terms[kind][l]));
            }
        }
    }

    void softmax_strip(int64_t m, int64_t s) const {
        P top;
        M best;
        scale_strip(m, s, top, best);
        T* at = logits(m, s);
        P sum = broadcast(T(0));
        for (int64_t k = 0; k < p_.num_classes; ++k, at += p_.pitch) {
            const P e = exp_of_negative(load_pack(at) - top);
            store_pack(at, e);
            sum = sum + e;
        }
        const P inverse = broadcast(T(1)) / sum;
        at = logits(m, s);
        for (int64_t k = 0; k < p_.num_classes; ++k, at += p_.pitch) {
            const P share = load_pack(at) * inverse;
            store_pack(at, select(above(broadcast(static_cast<T>(kSmallestShare)), share), broadcast(T(0)), share));
        }
        typename M::I classes[kStrip];
        store_marks(classes, best);
        int16_t* const to = scratch_.best + m * p_.pitch + s * kStrip;
        for (int l = 0; l < kStrip; ++l) to[l] = static_cast<int16_t>(classes[l]);
    }

    // The patch at a source row and a source column.
    int64_t patch_at(int64_t row, int64_t column) const {
        const int64_t window_row = row / p_.grid_height, window_column = column / p_.grid_width;
        const int64_t window = p_.window_order[window_row * p_.window_columns + window_column];
        return (window * p_.grid_height + row % p_.grid_height) * p_.grid_width + column % p_.grid_width;
    }

    // A source row stretched to a strip, all classes: [K, kStrip]; returns the class that its patches agree on, or -1.
    int16_t stretch(int64_t m, int64_t row, int32_t first, int32_t last, T* to) const {
        const T* const share = logits(m, 0);
        const T* const weights = static_cast<const T*>(p_.strip_weight) + first * kStrip;
        const int16_t* const best = scratch_.best + m * p_.pitch;
        int64_t patch = patch_at(row, p_.strip_source[first]);
        int16_t agreed = best[patch];
        P weight = load_pack(weights);
        for (int64_t k = 0; k < p_.num_classes; ++k) {
            store_pack(to + k * kStrip, weight * broadcast(share[k * p_.pitch + patch]));
        }
        int32_t i = first + 1;
        for (; i + 1 < last; i += 2) {
            patch = patch_at(row, p_.strip_source[i]);
            const int64_t next = patch_at(row, p_.strip_source[i + 1]);
            if (best[patch] != agreed || best[next] != agreed) agreed = -1;
            weight = load_pack(weights + (i - first) * kStrip);
            const P other = load_pack(weights + (i + 1 - first) * kStrip);
            for (int64_t k = 0; k < p_.num_classes; ++k) {
                T* const at = to + k * kStrip;
                store_pack(at, load_pack(at) + weight * broadcast(share[k * p_.pitch + patch]) +
                                   other * broadcast(share[k * p_.pitch + next]));
            }
        }
        for (; i < last; ++i) {
            patch = patch_at(row, p_.strip_source[i]);
            if (best[patch] != agreed) agreed = -1;
            weight = load_pack(weights + (i - first) * kStrip);
            for (int64_t k = 0; k < p_.num_classes; ++k) {
                T* const at = to + k * kStrip;
                store_pack(at, load_pack(at) + weight * broadcast(share[k * p_.pitch + patch]));
            }
        }
        return agreed;
    }

    void pixel_strip(int64_t* tally, int worker, int64_t m, int64_t s) const {
        constexpr int16_t kAbsent = -2;
        T* const rows = scratch_.rows + worker * scratch_.rows_stride;
        int16_t* const agreed = scratch_.agreed + worker * scratch_.agreed_stride;
        std::fill_n(agreed, p_.window_rows * p_.grid_height, kAbsent);
        const int32_t begin = p_.strip_first[s], end = p_.strip_first[s + 1];
        const int64_t size = p_.num_classes * kStrip;
        for (int64_t y = 0; y < p_.out_height; ++y) {
            const int32_t first = p_.row_first[y], taps = p_.row_first[y + 1] - first;
            const int32_t* const source = p_.row_source + first;
            int16_t label = kAbsent;
            for (int32_t i = 0; i < taps; ++i) {
                int16_t& known = agreed[source[i]];
                if (known == kAbsent) known = stretch(m, source[i], begin, end, rows + source[i] * size);
                label = label == kAbsent || label == known ? known : int16_t(-1);
            }
            const T* const weights = static_cast<const T*>(p_.row_weight) + first;
            const Row row{rows, source, weights, taps, size};
            Found found;
            if (label >= 0) {
                taps == 2 ? blend<2, false>(row, found) : blend<0, false>(row, found);
                found.top = share_at<0>(row, label);
            } else {
                taps == 2 ? blend<2, true>(row, found) : blend<0, true>(row, found);
            }
            count(tally, found, label, y, s);
        }
    }

    struct Row {
        const T* rows;
        const int32_t* source;
        const T* weights;
        int32_t taps;
        int64_t size;
    };
    struct Found {
        P entropy, top;  // entropy in bits, negative
        M best;
    };

    // Probability of class k; kTaps = 0 for any number of source rows.
    template <int kTaps>
    P share_at(const Row& row, int64_t k) const {
        const int32_t taps = kTaps > 0 ? kTaps : row.taps;
        P share = broadcast(row.weights[0]) * load_pack(row.rows + row.source[0] * row.size + k * kStrip);
        for (int32_t i = 1; i < taps; ++i) {
            share = share + broadcast(row.weights[i]) * load_pack(row.rows + row.source[i] * row.size + k * kStrip);
        }
        return share;
    }

    template <int kTaps, bool kCompare>
    void blend(const Row& row, Found& found) const {
        P entropy = broadcast(T(0)), top = broadcast(T(-1));
        M best = broadcast_mark<T>(0);
        for (int64_t k = 0; k < p_.num_classes; ++k) {
            const P share = share_at<kTaps>(row, k);
            entropy = entropy + share * log2_of_share(share);
            if constexpr (kCompare) {
                const M better = above(share, top);
                top = select(better, share, top);
                best = select(better, broadcast_mark<T>(k), best);
            }
        }
        found.entropy = entropy;
        found.top = top;
        found.best = best;
    }

    void count(int64_t* tally, const Found& found, int16_t label, int64_t y, int64_t s) const {
        constexpr double kMinusLn2 = -0.693147180559945309417;
        T entropy[kStrip], top[kStrip];
        typename M::I best[kStrip];
        store_pack(entropy, found.entropy);
        store_pack(top, found.top);
        if (label < 0) store_marks(best, found.best);
        const int64_t x0 = s * kStrip;
        const int lanes = static_cast<int>(std::min<int64_t>(kStrip, p_.out_width - x0));
        const uint8_t* const unknown = p_.unknown == nullptr ? nullptr : p_.unknown + y * p_.out_width + x0;
        for (int l = 0; l < lanes; ++l) {
            if (!(entropy[l] == entropy[l]) || (unknown != nullptr && unknown[l] != 0)) continue;
            const int64_t k = label >= 0 ? label : best[l];
            tally[k] += 1;
            tally[p_.num_classes + k] += fixed_point(kMinusLn2 * static_cast<double>(entropy[l]));
            tally[2 * p_.num_classes + k] += fixed_point(static_cast<double>(top[l]));
        }
    }

    const TemplateEntropyParams& p_;
    int threads_;
    Workspace workspace_;
    EntropyScratch<T> scratch_;
};

}  // namespace
}  // namespace OVS_ISA
}  // namespace ovs
