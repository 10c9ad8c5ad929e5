// template_entropy on a CPU; included once per instruction-set level.
//
// Logits lie class by class with the patches innermost, so that a strip of patches, or of pixels, is a vector and no
// sum runs across lanes. Patches: the largest logit and its class, then the exponentials and both sums that the entropy
// is made of. Pixels: the softmax in place, then for each template and strip of the image the source rows stretched to
// the strip when they are first needed, and per image row one pass over the classes that blends, takes logarithms and
// keeps the best; or, where logits are interpolated, a pass that blends and keeps the best and one of exponentials.
// Where all patches of a blend agree on their class it is the pixels' class too (a convex combination), and nothing
// needs to be compared.
#pragma once
#include <cstring>

#include "common/parallel.h"
#include "templates/templates_cpu.h"
#include "templates/templates_terms.h"

namespace ovs {
namespace OVS_ISA {
namespace {

constexpr float kSmallestShare = 1e-30f;  // a probability below it is zero: its products stay normal numbers

template <class T>
class EntropyCounter {
public:
    EntropyCounter(const TemplateEntropyParams& p, void* workspace, std::size_t bytes, int threads)
        : p_(p),
          queries_{p.num_queries, p.num_classes, p.group_first, p.group_of},
          threads_(threads),
          workspace_(workspace, bytes),
          scratch_(p, threads, workspace_) {}

    void patches() {
        const int64_t strips = p_.pitch / kStrip;
        for_each_item(p_.num_templates, strips, [&](int64_t* tally, int, int64_t m, int64_t s) {
            if (p_.mano) {
                patch_strip<true, false>(tally, m, s);
            } else if (p_.group_of != nullptr) {
                patch_strip<false, true>(tally, m, s);
            } else {
                patch_strip<false, false>(tally, m, s);
            }
        });
    }

    void pixels() {
        const int64_t strips = p_.pitch / kStrip;
        parallel_for(p_.num_templates * strips, threads_, [&](int64_t i) { prepare_strip(i / strips, i % strips); });
        for_each_item(p_.num_templates, ceil_div(p_.out_width, kStrip),
                      [&](int64_t* tally, int worker, int64_t m, int64_t s) {
                          p_.group_of != nullptr ? pixel_strip<true>(tally, worker, m, s)
                                                 : pixel_strip<false>(tally, worker, m, s);
                      });
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
        return static_cast<T*>(p_.logits) + m * p_.num_queries * p_.pitch + s * kStrip;
    }

    // Logits of a strip in units of ln 2: scaled in place, the largest and its query returned. Queries are in the order
    // of their classes, so the lowest query of equals is of the lowest class.
    void scale_strip(int64_t m, int64_t s, P& top, M& best) const {
        constexpr T kLog2E = T(1.44269504088896340736);
        T* at = logits(m, s);
        const T* const scale = static_cast<const T*>(p_.row_scale) + m * p_.num_queries;
        top = load_pack(at) * broadcast(scale[0] * kLog2E);
        store_pack(at, top);
        best = broadcast_mark<T>(0);
        for (int64_t q = 1; q < p_.num_queries; ++q) {
            at += p_.pitch;
            const P logit = load_pack(at) * broadcast(scale[q] * kLog2E);
            store_pack(at, logit);
            const M better = above(logit, top);
            top = select(better, logit, top);
            best = select(better, broadcast_mark<T>(q), best);
        }
    }

    template <bool kMano, bool kGrouped>
    void patch_strip(int64_t* tally, int64_t m, int64_t s) const {
        P top;
        M best;
        scale_strip(m, s, top, best);
        const T* const at = logits(m, s);
        T terms[5][kStrip] = {};
        const auto sums =
            softmax_sums<T, kGrouped>(queries_, [&](int64_t q) { return load_pack(at + q * p_.pitch) - top; });
        store_terms(sums, terms[0], terms[1]);
        if constexpr (kMano) mano_terms(at, top, sums.all, terms + 2);
        typename M::I queries[kStrip];
        store_marks(queries, best);
        const int64_t first = s * kStrip;
        const int lanes = static_cast<int>(std::min<int64_t>(kStrip, p_.num_patches - first));
        for (int l = 0; l < lanes; ++l) {
            if (!(terms[0][l] == terms[0][l]) || (p_.unknown != nullptr && p_.unknown[first + l] != 0)) continue;
            const int64_t k = queries_.class_of(queries[l]);
            tally[k] += 1;
            for (int kind = 0; kind < (kMano ? 5 : 2); ++kind) {
                tally[(kind + 1) * p_.num_classes + k] += fixed_point(static_cast<double>(terms[kind][l]));
            }
        }
    }

    // MaNo's three: the sums of the fourth powers of the softmax and of the Taylor form, and the divergence.
    void mano_terms(const T* at, const P& top, const P& sum, T (*terms)[kStrip]) const {
        constexpr T kLn2 = T(0.693147180559945309417);
        const P zero = broadcast(T(0));
        P power = zero, below_sum = zero, taylor = zero, taylor_power = zero;
        for (int64_t q = 0; q < p_.num_queries; ++q) {
            const P bits = load_pack(at + q * p_.pitch), below = bits - top, e = exp2_of_negative(below);
            const P logit = bits * broadcast(kLn2);
            const P v = broadcast(T(1)) + logit + broadcast(T(0.5)) * logit * logit, v2 = v * v, e2 = e * e;
            power = power + e2 * e2;
            below_sum = below_sum + below;
            taylor = taylor + v;
            taylor_power = taylor_power + v2 * v2;
        }
        const P four = sum * sum, taylor2 = taylor * taylor;
        store_pack(terms[0], power / (four * four));
        store_pack(terms[1], taylor_power / (taylor2 * taylor2));
        T mean[kStrip], total[kStrip];
        store_pack(mean, below_sum * broadcast(kLn2) / broadcast(static_cast<T>(p_.num_queries)));
        store_pack(total, sum);
        for (int l = 0; l < kStrip; ++l) {
            terms[2][l] = static_cast<T>(__builtin_log(static_cast<double>(total[l]))) - mean[l];
        }
    }

    // What pixels are interpolated from: probabilities or scaled logits, in place, and the most likely queries.
    void prepare_strip(int64_t m, int64_t s) const {
        P top;
        M best;
        scale_strip(m, s, top, best);
        if (!p_.interpolate_logits) softmax_strip(logits(m, s), top);
        typename M::I queries[kStrip];
        store_marks(queries, best);
        int16_t* const to = scratch_.best + m * p_.pitch + s * kStrip;
        for (int l = 0; l < kStrip; ++l) to[l] = static_cast<int16_t>(queries[l]);
    }
    void softmax_strip(T* first, const P& top) const {
        T* at = first;
        P sum = broadcast(T(0));
        for (int64_t q = 0; q < p_.num_queries; ++q, at += p_.pitch) {
            const P e = exp2_of_negative(load_pack(at) - top);
            store_pack(at, e);
            sum = sum + e;
        }
        const P inverse = broadcast(T(1)) / sum;
        at = first;
        for (int64_t q = 0; q < p_.num_queries; ++q, at += p_.pitch) {
            const P share = load_pack(at) * inverse;
            store_pack(at, select(above(broadcast(static_cast<T>(kSmallestShare)), share), broadcast(T(0)), share));
        }
    }

    // The patch at a source row and a source column.
    int64_t patch_at(int64_t row, int64_t column) const {
        const int64_t window_row = row / p_.grid_height, window_column = column / p_.grid_width;
        const int64_t window = p_.window_order[window_row * p_.window_columns + window_column];
        return (window * p_.grid_height + row % p_.grid_height) * p_.grid_width + column % p_.grid_width;
    }

    // A source row stretched to a strip: [queries, kStrip]; returns the query that its patches agree on, or -1.
    int16_t stretch(int64_t m, int64_t row, int32_t first, int32_t last, T* to) const {
        const T* const share = logits(m, 0);
        const T* const weights = static_cast<const T*>(p_.strip_weight) + first * kStrip;
        const int16_t* const best = scratch_.best + m * p_.pitch;
        int64_t patch = patch_at(row, p_.strip_source[first]);
        int16_t agreed = best[patch];
        P weight = load_pack(weights);
        for (int64_t q = 0; q < p_.num_queries; ++q) {
            store_pack(to + q * kStrip, weight * broadcast(share[q * p_.pitch + patch]));
        }
        int32_t i = first + 1;
        for (; i + 1 < last; i += 2) {
            patch = patch_at(row, p_.strip_source[i]);
            const int64_t next = patch_at(row, p_.strip_source[i + 1]);
            if (best[patch] != agreed || best[next] != agreed) agreed = -1;
            weight = load_pack(weights + (i - first) * kStrip);
            const P other = load_pack(weights + (i + 1 - first) * kStrip);
            for (int64_t q = 0; q < p_.num_queries; ++q) {
                T* const at = to + q * kStrip;
                store_pack(at, load_pack(at) + weight * broadcast(share[q * p_.pitch + patch]) +
                                   other * broadcast(share[q * p_.pitch + next]));
            }
        }
        for (; i < last; ++i) {
            patch = patch_at(row, p_.strip_source[i]);
            if (best[patch] != agreed) agreed = -1;
            weight = load_pack(weights + (i - first) * kStrip);
            for (int64_t q = 0; q < p_.num_queries; ++q) {
                T* const at = to + q * kStrip;
                store_pack(at, load_pack(at) + weight * broadcast(share[q * p_.pitch + patch]));
            }
        }
        return agreed;
    }

    template <bool kGrouped>
    void pixel_strip(int64_t* tally, int worker, int64_t m, int64_t s) const {
        constexpr int16_t kAbsent = -2;
        T* const rows = scratch_.rows + worker * scratch_.rows_stride;
        int16_t* const agreed = scratch_.agreed + worker * scratch_.agreed_stride;
        const int64_t sources = p_.window_rows * p_.grid_height, size = p_.num_queries * kStrip;
        std::fill_n(agreed, sources, kAbsent);
        const int32_t begin = p_.strip_first[s], end = p_.strip_first[s + 1];
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
            const Row row{rows, source, weights, rows + sources * size, taps, size};
            Found found;
            switch (taps) {
                case 2:
                    blend_row<2, kGrouped>(row, label, found);
                    break;
                case 3:
                    blend_row<3, kGrouped>(row, label, found);
                    break;
                case 4:
                    blend_row<4, kGrouped>(row, label, found);
                    break;
                default:
                    blend_row<0, kGrouped>(row, label, found);
            }
            count(tally, found, y, s);
        }
    }

    struct Row {
        const T* rows;
        const int32_t* source;
        const T* weights;
        T* blended;  // [queries, kStrip] for logits that are needed twice
        int32_t taps;
        int64_t size;
    };
    struct Found {
        T entropy[kStrip], top[kStrip];
        typename M::I best[kStrip];  // classes
    };

    // What query q has at the pixels; kTaps = 0 for any number of source rows.
    template <int kTaps>
    P value_at(const Row& row, int64_t q) const {
        const int32_t taps = kTaps > 0 ? kTaps : row.taps;
        P value = broadcast(row.weights[0]) * load_pack(row.rows + row.source[0] * row.size + q * kStrip);
        for (int32_t i = 1; i < taps; ++i) {
            value = value + broadcast(row.weights[i]) * load_pack(row.rows + row.source[i] * row.size + q * kStrip);
        }
        return value;
    }

    // `label`: the query that all patches agree on, or -1.
    template <int kTaps, bool kGrouped>
    void blend_row(const Row& row, int16_t label, Found& found) const {
        if (p_.interpolate_logits) {
            label >= 0 ? blend_agreed_logits<kTaps, kGrouped>(row, label, found)
                       : blend_logits<kTaps, kGrouped>(row, found);
        } else {
            label >= 0 ? blend<kTaps, false, kGrouped>(row, label, found)
                       : blend<kTaps, true, kGrouped>(row, label, found);
        }
    }

    template <int kTaps, bool kCompare, bool kGrouped>
    void blend(const Row& row, int16_t label, Found& found) const {
        constexpr double kMinusLn2 = -0.693147180559945309417;
        P entropy = broadcast(T(0)), top = broadcast(T(-1));  // entropy in bits, negative
        M best = broadcast_mark<T>(0);
        int64_t q = 0;
        for (int64_t k = 0; k < p_.num_classes; ++k) {
            P share = value_at<kTaps>(row, q++);
            if constexpr (kGrouped) {
                for (; q < p_.group_first[k + 1]; ++q) {
                    const P other = value_at<kTaps>(row, q);
                    share = select(above(other, share), other, share);
                }
            }
            entropy = entropy + share * log2_of_share(share);
            if constexpr (kCompare) {
                const M better = above(share, top);
                top = select(better, share, top);
                best = select(better, broadcast_mark<T>(k), best);
            }
        }
        if constexpr (!kCompare) {
            top = value_at<kTaps>(row, label);
            best = broadcast_mark<T>(queries_.class_of(label));
        }
        store_pack(found.entropy, entropy);
        for (T& value : found.entropy) value = static_cast<T>(kMinusLn2 * static_cast<double>(value));
        store_pack(found.top, top);
        store_marks(found.best, best);
    }

    // The logits of the pixels have their largest where those of all patches have it.
    template <int kTaps, bool kGrouped>
    void blend_agreed_logits(const Row& row, int16_t label, Found& found) const {
        const P top = value_at<kTaps>(row, label);
        store_terms(softmax_sums<T, kGrouped>(queries_, [&](int64_t q) { return value_at<kTaps>(row, q) - top; }),
                    found.entropy, found.top);
        store_marks(found.best, broadcast_mark<T>(queries_.class_of(label)));
    }
    template <int kTaps, bool kGrouped>
    void blend_logits(const Row& row, Found& found) const {
        P top = value_at<kTaps>(row, 0);
        store_pack(row.blended, top);
        M best = broadcast_mark<T>(0);
        for (int64_t q = 1; q < p_.num_queries; ++q) {
            const P logit = value_at<kTaps>(row, q);
            store_pack(row.blended + q * kStrip, logit);
            const M better = above(logit, top);
            top = select(better, logit, top);
            best = select(better, broadcast_mark<T>(q), best);
        }
        store_terms(
            softmax_sums<T, kGrouped>(queries_, [&](int64_t q) { return load_pack(row.blended + q * kStrip) - top; }),
            found.entropy, found.top);
        store_marks(found.best, best);
        if constexpr (kGrouped) {
            for (auto& label : found.best) label = static_cast<typename M::I>(p_.group_of[label]);
        }
    }

    void count(int64_t* tally, const Found& found, int64_t y, int64_t s) const {
        const int64_t x0 = s * kStrip;
        const int lanes = static_cast<int>(std::min<int64_t>(kStrip, p_.out_width - x0));
        const uint8_t* const unknown = p_.unknown == nullptr ? nullptr : p_.unknown + y * p_.out_width + x0;
        for (int l = 0; l < lanes; ++l) {
            if (!(found.entropy[l] == found.entropy[l]) || (unknown != nullptr && unknown[l] != 0)) continue;
            const int64_t k = found.best[l];
            tally[k] += 1;
            tally[p_.num_classes + k] += fixed_point(static_cast<double>(found.entropy[l]));
            tally[2 * p_.num_classes + k] += fixed_point(static_cast<double>(found.top[l]));
        }
    }

    const TemplateEntropyParams& p_;
    const Queries queries_;
    int threads_;
    Workspace workspace_;
    EntropyScratch<T> scratch_;
};

}  // namespace
}  // namespace OVS_ISA
}  // namespace ovs
