// From labels to keys, for host and device: a key is the class of a label, C for no class, C + 1 for an ignored pixel.
#pragma once
#include <cstdint>
#include <type_traits>

#include "common/index.h"
#include "metrics/metrics.h"

namespace ovs {

// Labels of one map as unsigned numbers U of the same size. Without a branch, so that a loop over it is vectorised.
template <class U>
struct KeyRule {
    U shift;            // 1 where labels are one less than stored
    U last;             // largest class that the type holds
    U ignored;          // the ignored label,
    U without_ignored;  // 0 if there is one, else 1
    U without_zero;     // 0 if the label 0 is ignored, too, else 1
    uint32_t no_class;  // C
};

namespace {  // internal linkage: each instruction-set level keeps its own copy

inline int label_bits(LabelType type) {
    const int n = static_cast<int>(type);
    return type == LabelType::kInt64 ? 64 : 8 << (n / 2);
}
inline bool is_signed(LabelType type) { return type == LabelType::kInt64 || static_cast<int>(type) % 2 == 1; }

// Largest label of a type, as far as int64 goes.
inline int64_t largest_label(LabelType type) {
    const int bits = label_bits(type) - (is_signed(type) ? 1 : 0);
    return static_cast<int64_t>((uint64_t(1) << bits) - 1);
}

inline bool holds(LabelType type, int64_t label) {
    const int64_t largest = largest_label(type);
    return label <= largest && label >= (is_signed(type) ? -largest - 1 : 0);
}

// U may be wider than the type if labels are widened with their sign.
template <class U>
KeyRule<U> rule_of_prediction(const MetricsParams& p) {
    const int64_t largest = largest_label(p.prediction.type), classes = p.num_classes;
    const int64_t last = largest < classes - 1 ? largest : classes - 1;
    return {0, static_cast<U>(last), 0, 1, 1, static_cast<uint32_t>(classes)};
}

template <class U>
KeyRule<U> rule_of_target(const MetricsParams& p) {
    const int64_t shift = p.reduce_zero_label ? 1 : 0;
    const int64_t largest = largest_label(p.target.type) - shift, classes = p.num_classes;
    const bool can_be_ignored = p.has_ignore_label && holds(p.target.type, p.ignore_label);
    KeyRule<U> rule;
    rule.shift = static_cast<U>(shift);
    rule.last = static_cast<U>(largest < classes - 1 ? largest : classes - 1);
    rule.ignored = static_cast<U>(can_be_ignored ? p.ignore_label : 0);
    rule.without_ignored = can_be_ignored ? 0 : 1;
    rule.without_zero = p.reduce_zero_label ? 0 : 1;
    rule.no_class = static_cast<uint32_t>(classes);
    return rule;
}

}  // namespace

// What is below `shift` wraps around to numbers above `last`.
template <class K, class U>
OVS_HOST_DEVICE K key_of(const KeyRule<U>& rule, U label) {
    using Wide = typename std::conditional<(sizeof(U) > sizeof(K)), U, K>::type;
    const U c = static_cast<U>(label - rule.shift);
    const Wide none = static_cast<Wide>(rule.no_class), skipped = static_cast<Wide>(rule.no_class + 1);
    const Wide key = c <= rule.last ? static_cast<Wide>(c) : none;
    const bool ignored = static_cast<U>((label ^ rule.ignored) | rule.without_ignored) == 0;
    const bool zero = static_cast<U>(label | rule.without_zero) == 0;
    return static_cast<K>((ignored | zero) ? skipped : key);
}

}  // namespace ovs
