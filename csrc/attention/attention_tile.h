// Per level: one tile of queries against all keys of one head, and the half types that a tile is written in.
//
// The lanes of a vector are queries, and a key's feature is broadcast to all of them. So keys are read where they lie,
// row sums and row maxima need no sum over lanes, and a head's factor is a vector. The product of kTileKeys keys and
// two vectors of queries stays in registers until its exponentials are stored.
#pragma once
#include <type_traits>

#include "attention/attention_cpu.h"
#include "common/simd.h"

namespace ovs {
namespace OVS_ISA {
namespace {

template <class T>
struct Tile {
    static constexpr int kLanes = kVectorBytes / sizeof(T);
    static constexpr int kQueries = 2 * kLanes;
    // Keys in registers: 24 sums of 32 registers, or 12 of 16.
    static constexpr int kKeys = OVS_ISA_LEVEL == 4 ? 12 : 6;
    using V = Vec<T, kLanes>;
    struct Pair {
        V v[2];
    };
    static_assert(kItemQueries % kQueries == 0, "items are whole tiles");

    OVS_INLINE static Pair load_pair(const T* p) { return {{load<V>(p), load<V>(p + kLanes)}}; }
    OVS_INLINE static void store_pair(T* p, const Pair& pair) {
        store(p, pair.v[0]);
        store(p + kLanes, pair.v[1]);
    }
};

template <class T>
struct HeadKeys {
    const T* keys;  // [count, features], `stride` elements from key to key
    int64_t stride, count, features;
};

// sums[u] = the products of key u and the tile's queries.
template <class T, int kCount>
OVS_INLINE void multiply(const T* queries, const T* keys, int64_t stride, int64_t features,
                         typename Tile<T>::Pair (&sums)[kCount]) {
    OVS_UNROLL
    for (int u = 0; u < kCount; ++u) sums[u] = {};
    for (int64_t f = 0; f < features; ++f) {
        const auto q = Tile<T>::load_pair(queries + f * Tile<T>::kQueries);
        OVS_UNROLL
        for (int u = 0; u < kCount; ++u) {
            const T key = keys[u * stride + f];
            sums[u].v[0] += key * q.v[0];
            sums[u].v[1] += key * q.v[1];
        }
    }
}

// fn(first key, constant number of keys) for all keys: whole tiles, then one key at a time.
template <class T, class Fn>
OVS_INLINE void for_key_tiles(int64_t count, const Fn& fn) {
    constexpr int kKeys = Tile<T>::kKeys;
    int64_t j = 0;
    for (; j + kKeys <= count; j += kKeys) fn(j, std::integral_constant<int, kKeys>{});
    for (; j < count; ++j) fn(j, std::integral_constant<int, 1>{});
}

// The exponentials of a head whose logits (to base 2) are all within safe_exponent, and their sums per query. On the
// way the head before it is added to the mean: its exponentials are overwritten here, and waiting for them is hidden
// behind the products.
template <bool kPending, class T>
typename Tile<T>::Pair exponentials_of_safe_head(const T* queries, const HeadKeys<T>& head,
                                                 const typename Tile<T>::Pair& pending_factor, T* exponentials,
                                                 T* mean) {
    using Pair = typename Tile<T>::Pair;
    Pair total = {};
    for_key_tiles<T>(head.count, [&](int64_t j, auto count) {
        constexpr int kCount = decltype(count)::value;
        Pair sums[kCount];
        multiply<T, kCount>(queries, head.keys + j * head.stride, head.stride, head.features, sums);
        T* const row = exponentials + j * Tile<T>::kQueries;
        T* const mean_row = mean + j * Tile<T>::kQueries;
        Pair part = {};
        OVS_UNROLL
        for (int u = 0; u < kCount; ++u) {
            const int64_t at = u * Tile<T>::kQueries;
            if (kPending) {
                const Pair e = Tile<T>::load_pair(row + at);
                Pair m = Tile<T>::load_pair(mean_row + at);
                m.v[0] += pending_factor.v[0] * e.v[0];
                m.v[1] += pending_factor.v[1] * e.v[1];
                Tile<T>::store_pair(mean_row + at, m);
            }
            const Pair e = {{exp2_vector(sums[u].v[0]), exp2_vector(sums[u].v[1])}};
            Tile<T>::store_pair(row + at, e);
            part.v[0] += e.v[0];
            part.v[1] += e.v[1];
        }
        total.v[0] += part.v[0];
        total.v[1] += part.v[1];
    });
    return total;
}

// The same for any logits: they are stored, and the exponentials taken once the row's largest is known.
template <class T>
typename Tile<T>::Pair exponentials_of_any_head(const T* queries, const HeadKeys<T>& head, T* exponentials) {
    using V = typename Tile<T>::V;
    using Pair = typename Tile<T>::Pair;
    Pair largest;
    largest.v[0] = largest.v[1] = V{} - static_cast<T>(HUGE_VAL);
    for_key_tiles<T>(head.count, [&](int64_t j, auto count) {
        constexpr int kCount = decltype(count)::value;
        Pair sums[kCount];
        multiply<T, kCount>(queries, head.keys + j * head.stride, head.stride, head.features, sums);
        OVS_UNROLL
        for (int u = 0; u < kCount; ++u) {
            Tile<T>::store_pair(exponentials + (j + u) * Tile<T>::kQueries, sums[u]);
            for (int i = 0; i < 2; ++i) largest.v[i] = sums[u].v[i] > largest.v[i] ? sums[u].v[i] : largest.v[i];
        }
    });
    Pair total = {}, part = {};
    for (int64_t j = 0; j < head.count; ++j) {
        T* const row = exponentials + j * Tile<T>::kQueries;
        Pair e = Tile<T>::load_pair(row);
        for (int i = 0; i < 2; ++i) {
            const V x = e.v[i] - largest.v[i];  // NaN where the largest is infinite
            e.v[i] = x < smallest_exponent<T>() ? V{} : exp2_vector(x);
            part.v[i] += e.v[i];
        }
        Tile<T>::store_pair(row, e);
        if (j % Tile<T>::kKeys == Tile<T>::kKeys - 1 || j + 1 == head.count) {  // the same order as above
            for (int i = 0; i < 2; ++i) total.v[i] += part.v[i];
            part = {};
        }
    }
    return total;
}

// Rounds to nearest, ties to even. The entries of the matrix are in [0, 1] (a little more by rounding), or NaN.
using HalfLanes = Vec<uint16_t, kVectorBytes / 4>;
using FloatLanes = Vec<float, kVectorBytes / 4>;
using BitLanes = Vec<uint32_t, kVectorBytes / 4>;

OVS_INLINE HalfLanes to_bfloat16(const FloatLanes& x) {
    const BitLanes bits = (BitLanes)x;
    const BitLanes rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return __builtin_convertvector(((BitLanes)(x == x) & rounded) | ((BitLanes)(x != x) & 0x7fc0u), HalfLanes);
}

OVS_INLINE HalfLanes to_float16(const FloatLanes& x) {
    constexpr float kSmallestNormal = 6.103515625e-5f;  // 2^-14; below, float16 counts in steps of 2^-24, as 0.5f does
    const BitLanes bits = (BitLanes)x;
    const BitLanes normal = (bits - (112u << 23) + 0xfffu + ((bits >> 13) & 1u)) >> 13;
    const BitLanes subnormal = (BitLanes)(x + 0.5f) - 0x3f000000u;
    const BitLanes small = (BitLanes)(x < kSmallestNormal), number = (BitLanes)(x == x);
    return __builtin_convertvector((number & ((small & subnormal) | (~small & normal))) | (~number & 0x7e00u),
                                   HalfLanes);
}

// What a matrix is stored in: Stored::kLanes numbers at a time.
struct AsFloat16 {
    using Element = uint16_t;
    OVS_INLINE static HalfLanes convert(const FloatLanes& v) { return to_float16(v); }
};
struct AsBFloat16 {
    using Element = uint16_t;
    OVS_INLINE static HalfLanes convert(const FloatLanes& v) { return to_bfloat16(v); }
};
template <class T>
struct AsItIs {
    using Element = T;
    OVS_INLINE static typename Tile<T>::V convert(const typename Tile<T>::V& v) { return v; }
};

// rows[r][k] becomes rows[k][r], in log2(lanes) rounds of exchanges between pairs of vectors.
template <class T>
OVS_INLINE void transpose(typename Tile<T>::V (&rows)[Tile<T>::kLanes]) {
    constexpr int kLanes = Tile<T>::kLanes;
    using Bits = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;
    using Mask = Vec<Bits, kLanes>;
    OVS_UNROLL
    for (int step = 1; step < kLanes; step *= 2) {
        Mask low = {}, high = {};
        OVS_UNROLL
        for (int k = 0; k < kLanes; ++k) {
            low[k] = (k & step) == 0 ? k : kLanes + k - step;
            high[k] = (k & step) == 0 ? k + step : kLanes + k;
        }
        OVS_UNROLL
        for (int r = 0; r < kLanes; ++r) {
            if ((r & step) != 0) continue;
            const auto a = rows[r], b = rows[r + step];
            rows[r] = shuffle(a, b, low);
            rows[r + step] = shuffle(a, b, high);
        }
    }
}

}  // namespace
}  // namespace OVS_ISA
}  // namespace ovs
