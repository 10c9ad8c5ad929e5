// Per level: rows of labels as rows of keys, and the runs of equal keys in them.
#pragma once
#include "common/simd.h"
#include "metrics/metrics_math.h"
#if OVS_ISA_LEVEL >= 2
#include <immintrin.h>
#endif

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

// A bit for each key of a word, in their order: whether it is not zero.
template <class K>
OVS_INLINE uint64_t keys_not_zero(uint64_t word) {
    static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the first key is in the lowest bits of a word");
    constexpr int kBits = 8 * sizeof(K);
    constexpr uint64_t kOnes = ~uint64_t(0) / static_cast<K>(~K(0)), kHigh = kOnes << (kBits - 1);
    const uint64_t found = ((((word & ~kHigh) + ~kHigh) | word) & kHigh) >> (kBits - 1);  // the lowest bit of each key
    if (sizeof(K) == 4) return (found | found >> 31) & 3;
    // Key i is moved up by kTop - i (kBits - 1), so that the keys lie side by side at the top.
    constexpr int kTop = 64 - 64 / kBits, kStep = kBits - 1;
    uint64_t moves = 0;
    OVS_UNROLL
    for (int key = 0; key < 64 / kBits; ++key) moves |= uint64_t(1) << (kTop - key * kStep);
    return found * moves >> kTop;
}

// Bit i: whether key i is another than its right neighbour, of 64 keys.
template <class K>
OVS_INLINE uint64_t changes(const K* keys) {
    constexpr int kKeys = 8 / sizeof(K);
    uint64_t bits = 0;
    for (int i = 0; i < 64; i += kKeys) {
        bits |= keys_not_zero<K>(load<uint64_t>(keys + i) ^ load<uint64_t>(keys + i + 1)) << i;
    }
    return bits;
}

#if OVS_ISA_LEVEL == 4
OVS_INLINE uint64_t changes(const uint8_t* keys) {
    return _mm512_cmpneq_epi8_mask(load<__m512i>(keys), load<__m512i>(keys + 1));
}
#elif OVS_ISA_LEVEL == 3
OVS_INLINE uint64_t changes(const uint8_t* keys) {
    uint64_t equal = 0;
    for (int i = 0; i < 64; i += 32) {
        const __m256i same = _mm256_cmpeq_epi8(load<__m256i>(keys + i), load<__m256i>(keys + i + 1));
        equal |= static_cast<uint64_t>(static_cast<uint32_t>(_mm256_movemask_epi8(same))) << i;
    }
    return ~equal;
}
#elif OVS_ISA_LEVEL == 2
OVS_INLINE uint64_t changes(const uint8_t* keys) {
    uint64_t equal = 0;
    for (int i = 0; i < 64; i += 16) {
        const __m128i same = _mm_cmpeq_epi8(load<__m128i>(keys + i), load<__m128i>(keys + i + 1));
        equal |= static_cast<uint64_t>(static_cast<uint32_t>(_mm_movemask_epi8(same))) << i;
    }
    return ~equal;
}
#endif

// run(begin, end) for each longest piece of a row between two changes; find(i): the changes at i to i + 63. Maps of
// labels are made of long runs, and which pixels end one is not known before: one branch per 64 pixels and one per run.
template <class Find, class Run>
OVS_INLINE void for_each_run(int64_t count, const Find& find, const Run& run) {
    int64_t begin = 0;
    for (int64_t i = 0; i + 1 < count; i += 64) {
        const int64_t pairs = count - 1 - i;  // keys that have a right neighbour; what is behind the row is masked away
        uint64_t found = find(i) & (pairs < 64 ? (uint64_t(1) << pairs) - 1 : ~uint64_t(0));
        for (; found != 0; found &= found - 1) {
            const int64_t end = i + __builtin_ctzll(found) + 1;
            run(begin, end);
            begin = end;
        }
    }
    if (begin < count) run(begin, count);
}

template <class K, class Run>
OVS_INLINE void runs_of(const K* keys, int64_t count, const Run& run) {
    for_each_run(count, [keys](int64_t i) { return changes(keys + i); }, run);
}

// Runs in which both rows are constant.
template <class K, class Run>
OVS_INLINE void runs_of(const K* a, const K* b, int64_t count, const Run& run) {
    for_each_run(count, [a, b](int64_t i) { return changes(a + i) | changes(b + i); }, run);
}

}  // namespace
}  // namespace OVS_ISA
}  // namespace ovs
