// Per level: entropy and largest probability of a softmax, from logits in units of ln 2 below the largest.
#pragma once
#include <cstdint>

#include "templates/templates_pack.h"

namespace ovs {
namespace OVS_ISA {
namespace {

// Queries in the order of their classes; group_first is null where every query is a class.
struct Queries {
    int64_t count, classes;
    const int32_t* group_first;
    const int32_t* group_of;

    int64_t class_of(int64_t query) const { return group_of == nullptr ? query : group_of[query]; }
};

// The sum of the exponentials, and over the classes the sums of e and of e times the logit. A class of several queries
// has the largest of their exponentials.
template <class T>
struct SoftmaxSums {
    Pack<T> all, classes, weighted;
};
template <class T, bool kGrouped, class Below>
OVS_INLINE SoftmaxSums<T> softmax_sums(const Queries& queries, const Below& below_of) {
    using P = Pack<T>;
    const P zero = broadcast(T(0));
    SoftmaxSums<T> sums{zero, zero, zero};
    if constexpr (!kGrouped) {
        for (int64_t q = 0; q < queries.count; ++q) {
            const P below = below_of(q), e = exp2_of_negative(below);
            sums.all = sums.all + e;
            sums.weighted = sums.weighted + e * below;
        }
        sums.classes = sums.all;
    } else {
        int64_t q = 0;
        for (int64_t k = 0; k < queries.classes; ++k) {
            P high = below_of(q), share = exp2_of_negative(high);
            sums.all = sums.all + share;
            for (++q; q < queries.group_first[k + 1]; ++q) {
                const P below = below_of(q), e = exp2_of_negative(below);
                sums.all = sums.all + e;
                const Marks<T> better = above(below, high);
                high = select(better, below, high);
                share = select(better, e, share);
            }
            sums.classes = sums.classes + share;
            sums.weighted = sums.weighted + share * high;
        }
    }
    return sums;
}
template <class T>
void store_terms(const SoftmaxSums<T>& sums, T* entropy, T* top) {
    constexpr double kLn2 = 0.693147180559945309417;
    T all[kStrip], classes[kStrip], weighted[kStrip];
    store_pack(all, sums.all);
    store_pack(classes, sums.classes);
    store_pack(weighted, sums.weighted);
    for (int l = 0; l < kStrip; ++l) {
        const double sum = static_cast<double>(all[l]);
        const double product = __builtin_log(sum) * static_cast<double>(classes[l]);
        entropy[l] = static_cast<T>((product - kLn2 * static_cast<double>(weighted[l])) / sum);
        top[l] = static_cast<T>(1.0 / sum);
    }
}

}  // namespace
}  // namespace OVS_ISA
}  // namespace ovs
