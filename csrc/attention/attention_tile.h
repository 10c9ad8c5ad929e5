// Per level: one tile of queries against all keys of one head, and the half types that a tile is written in.
//
// The lanes of a vector are queries, and a key's feature is broadcast to all of them. So keys are read where they lie,
// row sums and row maxima need no sum over lanes, and a head's factor is a vector. The product of kTileKeys keys and
// two vectors of queries stays in registers until its exponentials are stored.
#pragma once
#include <type_traits>

#include "attention/attention_cpu.h"
#include "common/exp2.h"
#include "common/half_vector.h"
#include "common/simd.h"
#include "common/transpose.h"

namespace ovs {
namespace OVS_ISA {
namespace {

constexpr int64_t kPartKeys = 16;  // a sum over keys is made of sums over so many: fewer roundings

template <class T>
struct Tile {
    static constexpr int kLanes = kVectorBytes / sizeof(T);
    static constexpr int kPairLanes = 2 * kLanes;
    static constexpr int kPairs = kTileQueries / kPairLanes;
    // Keys in registers: 24 sums of 32 registers, or 12 of 16.
    static constexpr int kKeys = OVS_ISA_LEVEL == 4 ? 12 : 6;
    static_assert(kTileQueries % kPairLanes == 0, "a tile is whole pairs of vectors");
    using V = Vec<T, kLanes>;

    struct Pair {
        V v[2];

        OVS_INLINE static Pair load_from(const T* p) { return {{load<V>(p), load<V>(p + kLanes)}}; }
        OVS_INLINE void store_to(T* p) const {
            store(p, v[0]);
            store(p + kLanes, v[1]);
        }
        OVS_INLINE void add(const Pair& other) {
            v[0] += other.v[0];
            v[1] += other.v[1];
        }
        OVS_INLINE void add_product(const Pair& a, const Pair& b) {
            v[0] += a.v[0] * b.v[0];
            v[1] += a.v[1] * b.v[1];
        }
    };

    // A number for each query of the tile.
    struct PerQuery {
        Pair pairs[kPairs];

        T at(int r) const { return pairs[r / kPairLanes].v[r % kPairLanes / kLanes][r % kLanes]; }
        void set(int r, T value) { pairs[r / kPairLanes].v[r % kPairLanes / kLanes][r % kLanes] = value; }
    };
};

template <class T>
struct HeadKeys {
    const T* keys;  // [count, features], `stride` elements from key to key
    int64_t stride, count, features;
};

// sums[u] = the products of key u and a pair of vectors of queries, [features][kTileQueries].
template <class T, int kCount>
OVS_INLINE void multiply(const T* queries, const T* keys, int64_t stride, int64_t features,
                         typename Tile<T>::Pair (&sums)[kCount]) {
    OVS_UNROLL
    for (int u = 0; u < kCount; ++u) sums[u] = {};
    for (int64_t f = 0; f < features; ++f) {
        const auto q = Tile<T>::Pair::load_from(queries + f * kTileQueries);
        OVS_UNROLL
        for (int u = 0; u < kCount; ++u) {
            const T key = keys[u * stride + f];
            sums[u].v[0] += key * q.v[0];
            sums[u].v[1] += key * q.v[1];
        }
    }
}

// fn(number of the pair, its place in the tile's row of the first key, products) for all keys, a few at a time, and all
// pairs of vectors; products is an array with one Pair per key.
template <class T, class Fn>
OVS_INLINE void for_products(const T* queries, const HeadKeys<T>& head, const Fn& fn) {
    const auto some_keys = [&](int64_t j, auto count) {
        for (int i = 0; i < Tile<T>::kPairs; ++i) {
            typename Tile<T>::Pair sums[decltype(count)::value];
            multiply(queries + i * Tile<T>::kPairLanes, head.keys + j * head.stride, head.stride, head.features, sums);
            fn(i, j * kTileQueries + i * Tile<T>::kPairLanes, sums);
        }
    };
    constexpr int kKeys = Tile<T>::kKeys;
    int64_t j = 0;
    for (; j + kKeys <= head.count; j += kKeys) some_keys(j, std::integral_constant<int, kKeys>{});
    for (; j < head.count; ++j) some_keys(j, std::integral_constant<int, 1>{});
}

// The exponentials of a head whose logits (to base 2) are all within safe_exponent, and their sums per query. On the
// way the head before it is added to the mean: its exponentials are overwritten here, and waiting for them is hidden
// behind the products.
template <bool kPending, class T>
typename Tile<T>::PerQuery exponentials_of_safe_head(const T* queries, const HeadKeys<T>& head,
                                                     const typename Tile<T>::PerQuery& pending_factor, T* exponentials,
                                                     T* mean) {
    using Pair = typename Tile<T>::Pair;
    typename Tile<T>::PerQuery total = {};
    for_products(queries, head, [&](int i, int64_t at, const auto& products) {
        Pair part = {};
        OVS_UNROLL
        for (std::size_t u = 0; u < sizeof(products) / sizeof(Pair); ++u) {
            T* const here = exponentials + at + u * kTileQueries;
            if (kPending) {
                Pair m = Pair::load_from(mean + at + u * kTileQueries);
                m.add_product(pending_factor.pairs[i], Pair::load_from(here));
                m.store_to(mean + at + u * kTileQueries);
            }
            const Pair e = {{exp2_vector(products[u].v[0]), exp2_vector(products[u].v[1])}};
            e.store_to(here);
            part.add(e);
        }
        total.pairs[i].add(part);
    });
    return total;
}

// The same for any logits: they are stored, and the exponentials taken once the row's largest is known.
template <class T>
typename Tile<T>::PerQuery exponentials_of_any_head(const T* queries, const HeadKeys<T>& head, T* exponentials) {
    using V = typename Tile<T>::V;
    using Pair = typename Tile<T>::Pair;
    typename Tile<T>::PerQuery largest, total = {}, part = {};
    for (Pair& pair : largest.pairs) pair.v[0] = pair.v[1] = V{} - static_cast<T>(HUGE_VAL);
    for_products(queries, head, [&](int i, int64_t at, const auto& products) {
        Pair& most = largest.pairs[i];
        OVS_UNROLL
        for (std::size_t u = 0; u < sizeof(products) / sizeof(Pair); ++u) {
            products[u].store_to(exponentials + at + u * kTileQueries);
            for (int k = 0; k < 2; ++k) most.v[k] = products[u].v[k] > most.v[k] ? products[u].v[k] : most.v[k];
        }
    });
    for (int64_t j = 0; j < head.count; ++j) {
        for (int i = 0; i < Tile<T>::kPairs; ++i) {
            T* const here = exponentials + j * kTileQueries + i * Tile<T>::kPairLanes;
            Pair e = Pair::load_from(here);
            for (int k = 0; k < 2; ++k) {
                const V x = e.v[k] - largest.pairs[i].v[k];  // NaN where the largest is infinite
                e.v[k] = x < smallest_exponent<T>() ? V{} : exp2_vector(x);
            }
            e.store_to(here);
            part.pairs[i].add(e);
        }
        if (j % kPartKeys != kPartKeys - 1 && j + 1 != head.count) continue;
        for (int i = 0; i < Tile<T>::kPairs; ++i) total.pairs[i].add(part.pairs[i]);
        part = {};
    }
    return total;
}

// What a matrix is stored in: Stored::kLanes numbers at a time.
struct AsFloat16 {
    using Element = uint16_t;
    OVS_INLINE static HalfLanes convert(const FloatLanes& v) { return float16_bits(v); }
};
struct AsBFloat16 {
    using Element = uint16_t;
    OVS_INLINE static HalfLanes convert(const FloatLanes& v) { return bfloat16_bits(v); }
};
template <class T>
struct AsItIs {
    using Element = T;
    OVS_INLINE static typename Tile<T>::V convert(const typename Tile<T>::V& v) { return v; }
};

}  // namespace
}  // namespace OVS_ISA
}  // namespace ovs
