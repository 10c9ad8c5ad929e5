// The simplices around several points at once, one point a lane; included per instruction-set level.
//
// What find_simplex of crf_math.h does for one point: the positions are multiples of the quantum, so everything but the
// weights is exact, and the vertices are the same ones.
#pragma once
#include <utility>

#include "common/simd.h"
#include "crf/crf_math.h"

namespace ovs {
namespace OVS_ISA {
namespace {

#define OVS_INLINE_LAMBDA __attribute__((always_inline))

// Calls fn(k) for k = 0 .. kCount - 1; straight-line code if these are few.
template <int... kIndex, class Fn>
OVS_INLINE void call_each(std::integer_sequence<int, kIndex...>, const Fn& fn) {
    (fn(kIndex), ...);
}
template <int kCount, class Fn>
OVS_INLINE void for_each_coordinate(const Fn& fn) {
    if constexpr (kCount <= 6) {
        call_each(std::make_integer_sequence<int, kCount>{}, fn);
    } else {
        for (int k = 0; k < kCount; ++k) fn(k);
    }
}

template <int kD>
struct SimplexBlock {
    static constexpr int kLanes = kVectorBytes / sizeof(double);
    static constexpr int kWords = key_words(kD);
    using V = Vec<double, kLanes>;
    using Mask = Vec<int64_t, kLanes>;
    using Bits = Vec<uint64_t, kLanes>;

    // Of the points without a place, what is left is that of the origin.
    alignas(kVectorBytes) int64_t inside[kLanes];  // 0 or -1
    alignas(kVectorBytes) double weights[kD + 1][kLanes];
    alignas(kVectorBytes) uint64_t keys[kD + 1][kWords][kLanes];

    // features: divided by their scales, overwritten.
    OVS_INLINE void find(V (&features)[kD], const double* lengths) {
        V e[kD + 1], total = {};
        for_each_coordinate<kD>([&](int k) OVS_INLINE_LAMBDA {
            const int i = kD - k;
            const V c = features[i - 1] * lengths[i - 1];
            e[i] = total - static_cast<double>(i) * c;
            total += c;
        });
        e[0] = total;
        const double largest = largest_position(kD);
        Mask valid = Mask{} - 1;
        for_each_coordinate<kD + 1>([&](int i) OVS_INLINE_LAMBDA {
            e[i] = rounded(e[i] * (1.0 / kLatticeQuantum)) * kLatticeQuantum;
            valid &= (Mask)(e[i] <= largest) & (Mask)(e[i] >= -largest);  // NaN: no
        });
        store(inside, valid);
        for_each_coordinate<kD + 1>([&](int i) OVS_INLINE_LAMBDA { e[i] = valid ? e[i] : V{}; });
        V place[kD + 1], base[kD + 1];
        rank(e, place, base);
        locate(e, place, base);
    }

private:
    static constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52: adding it rounds, half to even

    OVS_INLINE static V rounded(const V& x) { return (x + kRound) - kRound; }

    // Vertex 0, and the place of each coordinate in the order of the residuals.
    OVS_INLINE static void rank(const V (&e)[kD + 1], V (&place)[kD + 1], V (&base)[kD + 1]) {
        constexpr double kCorners = kD + 1;
        const V zero = {}, one = zero + 1.0;
        V residual[kD + 1], excess = {};
        for_each_coordinate<kD + 1>([&](int i) OVS_INLINE_LAMBDA {
            base[i] = rounded(e[i] / kCorners);
            residual[i] = e[i] - base[i] * kCorners;
            excess += base[i];
            place[i] = zero;
        });
        for_each_coordinate<kD>([&](int i) OVS_INLINE_LAMBDA {
            for_each_coordinate<kD + 1>([&](int j) OVS_INLINE_LAMBDA {
                if (j <= i) return;
                const Mask second = residual[i] < residual[j];
                place[i] += second ? one : zero;
                place[j] += second ? zero : one;
            });
        });
        for_each_coordinate<kD + 1>([&](int i) OVS_INLINE_LAMBDA {
            const V shifted = place[i] + excess;
            const V turn = shifted > zero + kD ? one : (shifted < zero ? -one : zero);
            place[i] = shifted - turn * kCorners;
            base[i] = (base[i] - turn) * kCorners;
        });
    }

    // Weights and keys.
    OVS_INLINE void locate(const V (&e)[kD + 1], const V (&place)[kD + 1], const V (&base)[kD + 1]) {
        Bits key[kWords] = {};
        for_each_coordinate<kD + 1>([&](int i) OVS_INLINE_LAMBDA {
            const V biased = base[i] + (kRound + 32768.0);
            key[i / kKeyFields] += ((Bits)biased & 0xffffu) << (16 * (i % kKeyFields));
        });
        store_key(0, key);
        V next = {}, first = {};
        for_each_coordinate<kD + 1>(
            [&](int r) OVS_INLINE_LAMBDA {  // the coordinate in place kD - r, smallest residual first
                V sorted = {};
                Bits back[kWords] = {};
                for_each_coordinate<kD + 1>([&](int i) OVS_INLINE_LAMBDA {
                    const Mask here = place[i] == static_cast<double>(kD - r);
                    sorted = here ? e[i] - base[i] : sorted;
                    back[i / kKeyFields] |= (Bits)here & (uint64_t{kD + 1} << (16 * (i % kKeyFields)));
                });
                if (r == 0) {
                    first = sorted;
                } else {
                    store(weights[r], (sorted - next) * (1.0 / (kD + 1)));
                }
                next = sorted;
                if (r == kD) return;
                for (int w = 0; w < kWords; ++w) key[w] += ones(w) - back[w];
                store_key(r + 1, key);
            });
        store(weights[0], 1.0 - (next - first) * (1.0 / (kD + 1)));
    }

    OVS_INLINE static uint64_t ones(int word) {
        const int fields = kD + 1 - word * kKeyFields;
        return fields >= kKeyFields ? kKeyOnes : kKeyOnes & ((uint64_t{1} << (16 * fields)) - 1);
    }

    OVS_INLINE void store_key(int r, const Bits (&key)[kWords]) {
        for (int w = 0; w < kWords; ++w) store(keys[r][w], key[w]);
    }
};

}  // namespace
}  // namespace OVS_ISA
}  // namespace ovs
