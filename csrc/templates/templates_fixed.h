// Entropies of patches with products of 16-bit integers; included once per instruction-set level.
//
// A softmax does not change when the same number is taken from all logits, so a template's embeddings may be centred;
// and <f, e> = <f - c, e> + <c, e>, so may be the features, about their mean c. What is left of unit vectors that all
// point the same way, as CLIP's do, is short, and fits 16 bits: each vector v has a scale s and is rounded to integers.
// They are multiplied exactly. By the Cauchy-Schwarz inequality a centred product is off by at most
//
//     |df| |e| + (|f| + |df|) |de|,      df = f - round(s f) / s, |f|, |df|, |e|, |de| the largest of the template's
//
// and these lengths are computed, not estimated. Where the bound is above the one that is asked for, the template is
// left to the caller. It asks for features times 2^-23: twice the bound of a dot product in float32, whose rounding
// unit is 2^-24. Typical errors of both are far below (docs/templates.md has numbers).
//
// No overflow: the integers of kChunk features have a length of at most 46340, and 46340^2 < 2^31, so neither the sum
// nor any part of it, again by Cauchy-Schwarz, leaves 32 bits.
#pragma once
#include <algorithm>
#include <cmath>

#include "common/parallel.h"
#include "templates/templates_cpu.h"
#include "templates/templates_integers.h"
#include "templates/templates_terms.h"

namespace ovs {
namespace OVS_ISA {
namespace {

class FixedCounter {
public:
    FixedCounter(const TemplateFixedParams& p, void* workspace, std::size_t bytes, int threads)
        : p_(p),
          queries_{p.num_queries, p.num_classes, p.group_first, p.group_of},
          threads_(threads),
          workspace_(workspace, bytes),
          scratch_(p, threads, workspace_) {}

    void run() {
        pack_features();
        const int64_t blocks = scratch_.blocks;
        // Enough items for all threads; what a template is split into packs it again each time.
        const int64_t wanted = ceil_div(2 * threads_, p_.num_templates);
        const int64_t splits = threads_ == 1 ? 1 : std::min(wanted, blocks), items = p_.num_templates * splits;
        int64_t next = 0;
        parallel_for(std::min<int64_t>(threads_, items), threads_, [&](int64_t worker) {
            for (;;) {
                const int64_t item = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED);
                if (item >= items) return;
                const int64_t part = item % splits;
                template_part(worker, item / splits, blocks * part / splits, blocks * (part + 1) / splits, part == 0);
            }
        });
    }

private:
    using V = Pack<float>::V;
    static constexpr int kLanes = Pack<float>::kLanes;
    static constexpr double kLargestInteger = 32767.0, kLargestLength = 46336.0;  // 4 less: rounding makes it longer

    // The mean of the patches with features, and integers of what they differ from it.
    void pack_features() {
        float* const centre = scratch_.centre;
        std::fill_n(centre, scratch_.pitch, 0.0f);
        int64_t known = 0;
        for (int64_t patch = 0; patch < p_.num_patches; ++patch) {
            if (is_unknown(patch)) continue;
            const float* const row = p_.features + patch * p_.num_features;
            OVS_INDEPENDENT
            for (int64_t i = 0; i < p_.num_features; ++i) centre[i] += row[i];
            ++known;
        }
        const float share = known > 0 ? 1.0f / static_cast<float>(known) : 0.0f;
        for (int64_t i = 0; i < p_.num_features; ++i) centre[i] *= share;
        parallel_for(std::min<int64_t>(threads_, scratch_.blocks), threads_, [&](int64_t worker) {
            for (int64_t b = worker; b < scratch_.blocks; b += threads_) scratch_.roundings[b] = pack_block(worker, b);
        });
        for (int64_t b = 0; b < scratch_.blocks; ++b) features_.include(scratch_.roundings[b]);
    }

    Rounding pack_block(int64_t worker, int64_t b) const {
        const FixedWorker mine = scratch_.of_worker(worker);
        Rounding largest;
        int16_t* const to = scratch_.integers + b * kBlock * scratch_.pitch;
        for (int64_t lane = 0; lane < kBlock; ++lane) {
            const int64_t patch = b * kBlock + lane;
            std::fill_n(mine.row, scratch_.pitch, 0.0f);
            if (patch < p_.num_patches && !is_unknown(patch)) {
                const float* const row = p_.features + patch * p_.num_features;
                OVS_INDEPENDENT
                for (int64_t i = 0; i < p_.num_features; ++i) mine.row[i] = row[i] - scratch_.centre[i];
            }
            float step;
            largest.include(round_row(mine.row, mine.integers, step));
            scratch_.steps[patch] = step;
            for (int64_t i = 0; i < scratch_.pitch; i += 2) {
                std::memcpy(to + i * kBlock + lane * 2, mine.integers + i, 2 * sizeof(int16_t));
            }
        }
        return largest;
    }

    bool is_unknown(int64_t patch) const { return p_.unknown != nullptr && p_.unknown[patch] != 0; }

    static double sum(const V& v) {
        double total = 0.0;
        for (int l = 0; l < kLanes; ++l) total += static_cast<double>(v[l]);
        return total;
    }

    // integers = round(row / step), with the smallest step that keeps them in their bounds.
    Rounding round_row(const float* row, int16_t* integers, float& step) const {
        constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
        V top = V{};
        double length2 = 0.0, chunk2 = 0.0;
        for (int64_t first = 0; first < scratch_.pitch; first += kChunk) {
            V square = V{};
            for (int64_t i = first; i < first + kChunk; i += kLanes) {
                const V x = load<V>(row + i), magnitude = x < 0.0f ? -x : x;
                square += x * x;
                top = magnitude > top ? magnitude : top;
            }
            const double more = sum(square);
            length2 += more;
            chunk2 = std::max(chunk2, more);
        }
        double largest = 0.0;
        for (int l = 0; l < kLanes; ++l) largest = std::max(largest, static_cast<double>(top[l]));
        const double exact = std::max(largest / kLargestInteger, std::sqrt(chunk2) / kLargestLength);
        step = static_cast<float>(exact * (1.0 + 1e-6));
        const float inverse = step > 0.0f ? 1.0f / step : 0.0f;
        V error = V{};
        for (int64_t i = 0; i < scratch_.pitch; i += kLanes) {
            const V x = load<V>(row + i), n = (x * inverse + kRound) - kRound, off = x - n * step;
            error += off * off;
            store(integers + i, __builtin_convertvector(n, ShortVector));
        }
        return {std::sqrt(length2), std::sqrt(sum(error))};
    }
    using ShortVector = Vec<int16_t, kLanes>;

    // Integers of a template's embeddings, centred, and what turns products into logits in units of ln 2.
    Rounding pack_template(const FixedWorker& mine, int64_t m) const {
        const float* const texts = p_.texts + m * p_.num_queries * p_.num_features;
        const double scale = 1.44269504088896340736 * p_.scale;
        std::fill_n(mine.mean, scratch_.pitch, 0.0f);
        std::fill_n(mine.row, scratch_.pitch, 0.0f);
        for (int64_t q = 0; q < p_.num_queries; ++q) {
            const float* const text = texts + original(q) * p_.num_features;
            float inverse = 1.0f;
            if (p_.normalize) {
                std::memcpy(mine.row, text, static_cast<std::size_t>(p_.num_features) * sizeof(float));
                V square = V{};
                for (int64_t i = 0; i < scratch_.pitch; i += kLanes)
                    square += load<V>(mine.row + i) * load<V>(mine.row + i);
                double square_sum = sum(square);
                if (!(square_sum > 1e-25 && square_sum < 1e30)) {  // squares leave the range of float
                    square_sum = 0.0;
                    for (int64_t i = 0; i < p_.num_features; ++i)
                        square_sum += static_cast<double>(text[i]) * static_cast<double>(text[i]);
                }
                inverse = static_cast<float>(1.0 / std::sqrt(square_sum));
            }
            mine.steps[q] = inverse;  // until it is the step
            OVS_INDEPENDENT
            for (int64_t i = 0; i < p_.num_features; ++i) mine.mean[i] += inverse * text[i];
        }
        const float share = 1.0f / static_cast<float>(p_.num_queries);
        for (int64_t i = 0; i < p_.num_features; ++i) mine.mean[i] *= share;
        Rounding largest;
        for (int64_t q = 0; q < p_.num_queries; ++q) {
            const float* const text = texts + original(q) * p_.num_features;
            const float inverse = mine.steps[q];
            OVS_INDEPENDENT
            for (int64_t i = 0; i < p_.num_features; ++i) mine.row[i] = inverse * text[i] - mine.mean[i];
            V product = V{};
            for (int64_t i = 0; i < scratch_.pitch; i += kLanes) {
                product += load<V>(mine.row + i) * load<V>(scratch_.centre + i);
            }
            float step;
            largest.include(round_row(mine.row, mine.integers + q * scratch_.pitch, step));
            mine.steps[q] = static_cast<float>(scale * static_cast<double>(step));
            mine.offsets[q] = static_cast<float>(scale * sum(product));
        }
        return largest;
    }
    int64_t original(int64_t q) const { return p_.query_order == nullptr ? q : p_.query_order[q]; }

    void template_part(int64_t worker, int64_t m, int64_t first, int64_t last, bool reports) {
        const FixedWorker mine = scratch_.of_worker(worker);
        const Rounding texts = pack_template(mine, m);
        // The rounding of the integers only: what is float about a logit is rounded as in any float32 product.
        const double bound = features_.error * texts.length + (features_.length + features_.error) * texts.error;
        const bool fits = bound <= p_.largest_error;  // no if NaN
        if (reports) p_.done[m] = fits ? 1 : 0;
        if (!fits) return;
        std::fill_n(mine.tally, 3 * p_.num_classes, 0);
        for (int64_t b = first; b < last; ++b) {
            const int16_t* const block = scratch_.integers + b * kBlock * scratch_.pitch;
            product_(block, mine.integers, p_.num_queries, scratch_.pitch, mine.logits);
            for (int64_t patch = b * kBlock; patch < std::min((b + 1) * kBlock, p_.num_patches); patch += kStrip) {
                p_.group_of == nullptr ? count_strip<false>(mine, patch) : count_strip<true>(mine, patch);
            }
        }
        for (int64_t kind = 0; kind < 3; ++kind) {
            int64_t* const to = (kind == 0 ? p_.counts : p_.sums + (kind - 1) * p_.sum_stride) + m * p_.num_classes;
            const int64_t* const from = mine.tally + kind * p_.num_classes;
            for (int64_t k = 0; k < p_.num_classes; ++k) {
                if (from[k] != 0) __atomic_fetch_add(to + k, from[k], __ATOMIC_RELAXED);
            }
        }
    }

    template <bool kGrouped>
    void count_strip(const FixedWorker& mine, int64_t patch) const {
        using P = Pack<float>;
        float* const logits = mine.logits + patch % kBlock;
        const P step = load_pack(scratch_.steps + patch);
        P top = broadcast(-1e38f);
        Marks<float> best = broadcast_mark<float>(0);
        for (int64_t q = 0; q < p_.num_queries; ++q) {
            float* const at = logits + q * kBlock;
            const P logit = load_pack(at) * step * broadcast(mine.steps[q]) + broadcast(mine.offsets[q]);
            store_pack(at, logit);
            const Marks<float> better = above(logit, top);
            top = select(better, logit, top);
            best = select(better, broadcast_mark<float>(q), best);
        }
        float entropy[kStrip], share[kStrip];
        store_terms(
            softmax_sums<float, kGrouped>(queries_, [&](int64_t q) { return load_pack(logits + q * kBlock) - top; }),
            entropy, share);
        int32_t winners[kStrip];
        store_marks(winners, best);
        const int lanes = static_cast<int>(std::min<int64_t>(kStrip, p_.num_patches - patch));
        for (int l = 0; l < lanes; ++l) {
            if (is_unknown(patch + l)) continue;
            int64_t* const to = mine.tally + queries_.class_of(winners[l]);
            to[0] += 1;
            to[p_.num_classes] += fixed_point(static_cast<double>(entropy[l]));
            to[2 * p_.num_classes] += fixed_point(static_cast<double>(share[l]));
        }
    }

    const TemplateFixedParams& p_;
    const Queries queries_;
    int threads_;
    Workspace workspace_;
    FixedScratch scratch_;
    Rounding features_;
    IntegerProduct product_;
};

}  // namespace
}  // namespace OVS_ISA
}  // namespace ovs
