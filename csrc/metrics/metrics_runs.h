// Per level: rows of labels as rows of keys, and the runs of equal keys in them.
#pragma once
#include "common/simd.h"
#include "metrics/metrics_math.h"

namespace ovs {
namespace OVS_ISA {
namespace {

template <class U, class K>
void convert(const KeyRule<U>& rule, const U* labels, int64_t count, K* keys) {
    OVS_INDEPENDENT
    for (int64_t i = 0; i < count; ++i) keys[i] = key_of<K>(rule, labels[i]);
}

// The keys of one map, whatever the type of its labels.
class KeyReader {
public:
    KeyReader(const MetricsParams& p, bool is_target)
        : map_(is_target ? p.target : p.prediction),
          rule8_(rule<uint8_t>(p, is_target)),
          rule16_(rule<uint16_t>(p, is_target)),
          rule32_(rule<uint32_t>(p, is_target)),
          rule64_(rule<uint64_t>(p, is_target)) {}

    // `count` keys from column x of a row on.
    template <class K>
    void read(int64_t image, int64_t row, int64_t x, int64_t count, K* keys) const {
        const int64_t at = image * map_.image_stride + row * map_.row_stride + x;
        switch (label_bits(map_.type)) {
            case 8:
                return convert(rule8_, static_cast<const uint8_t*>(map_.labels) + at, count, keys);
            case 16:
                return convert(rule16_, static_cast<const uint16_t*>(map_.labels) + at, count, keys);
            case 32:
                return convert(rule32_, static_cast<const uint32_t*>(map_.labels) + at, count, keys);
            default:
                return convert(rule64_, static_cast<const uint64_t*>(map_.labels) + at, count, keys);
        }
    }

private:
    template <class U>
    static KeyRule<U> rule(const MetricsParams& p, bool is_target) {
        return is_target ? rule_of_target<U>(p) : rule_of_prediction<U>(p);
    }

    LabelMap map_;
    KeyRule<uint8_t> rule8_;
    KeyRule<uint16_t> rule16_;
    KeyRule<uint32_t> rule32_;
    KeyRule<uint64_t> rule64_;
};

// The highest bit of each key in a word that is not zero.
template <class K>
OVS_INLINE uint64_t keys_not_zero(uint64_t word) {
    constexpr uint64_t kOnes = ~uint64_t(0) / static_cast<K>(~K(0)), kHigh = kOnes << (8 * sizeof(K) - 1);
    return (((word & ~kHigh) + ~kHigh) | word) & kHigh;
}

template <class K>
OVS_INLINE uint64_t differences(const K* keys) {
    return load<uint64_t>(keys) ^ load<uint64_t>(keys + 1);
}

// run(begin, end) for each longest piece of a row in which differ(i), a word of keys' differences to their right
// neighbours, is zero. Maps of labels are made of long runs: eight pixels without a change are a few instructions.
template <class K, class Differ, class Run>
OVS_INLINE void for_each_run(int64_t count, const Differ& differ, const Run& run) {
    constexpr int kKeys = 8 / sizeof(K);
    static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the first key is in the lowest bits of a word");
    int64_t begin = 0, i = 0;
    const auto end_runs = [&](uint64_t changes) {
        for (; changes != 0; changes &= changes - 1) {
            const int64_t end = i + __builtin_ctzll(changes) / (8 * static_cast<int>(sizeof(K))) + 1;
            run(begin, end);
            begin = end;
        }
    };
    for (; i + kKeys < count; i += kKeys) {
        const uint64_t word = differ(i);
        if (word != 0) end_runs(keys_not_zero<K>(word));
    }
    if (i + 1 < count) {  // keys that have a right neighbour; what is behind the row is read and masked away
        const uint64_t mask = ~uint64_t(0) >> (8 * sizeof(K) * static_cast<uint64_t>(kKeys - (count - 1 - i)));
        end_runs(keys_not_zero<K>(differ(i) & mask));
    }
    if (begin < count) run(begin, count);
}

template <class K, class Run>
OVS_INLINE void runs_of(const K* keys, int64_t count, const Run& run) {
    for_each_run<K>(count, [keys](int64_t i) { return differences(keys + i); }, run);
}

// Runs in which both rows are constant.
template <class K, class Run>
OVS_INLINE void runs_of(const K* a, const K* b, int64_t count, const Run& run) {
    for_each_run<K>(count, [a, b](int64_t i) { return differences(a + i) | differences(b + i); }, run);
}

}  // namespace
}  // namespace OVS_ISA
}  // namespace ovs
