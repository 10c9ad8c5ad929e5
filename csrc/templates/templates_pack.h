// Per level: kStrip numbers as one value, made of as many vectors as it takes, and the functions of probabilities.
#pragma once
#include <cstdint>
#include <cstring>

#include "common/exp2.h"
#include "common/simd.h"
#include "templates/templates.h"

namespace ovs {
namespace OVS_ISA {
namespace {

template <class T>
struct IntegerOf;
template <>
struct IntegerOf<float> {
    using type = int32_t;
};
template <>
struct IntegerOf<double> {
    using type = int64_t;
};

template <class T>
struct Pack {
    using I = typename IntegerOf<T>::type;
    static constexpr int kLanes = kVectorBytes / sizeof(T);
    static constexpr int kVectors = kStrip / kLanes;
    using V = Vec<T, kLanes>;
    V v[kVectors];
};

// Lanes of 0 and -1, or of small integers.
template <class T>
struct Marks {
    using I = typename IntegerOf<T>::type;
    using M = Vec<I, Pack<T>::kLanes>;
    M v[Pack<T>::kVectors];
};

#define OVS_FOR_VECTORS(T, i) OVS_UNROLL for (int i = 0; i < Pack<T>::kVectors; ++i)

template <class T>
OVS_INLINE Pack<T> load_pack(const T* p) {
    Pack<T> r;
    OVS_FOR_VECTORS(T, i) r.v[i] = load<typename Pack<T>::V>(p + i * Pack<T>::kLanes);
    return r;
}
template <class T>
OVS_INLINE void store_pack(T* p, const Pack<T>& a) {
    OVS_FOR_VECTORS(T, i) store(p + i * Pack<T>::kLanes, a.v[i]);
}
template <class T, class I>
OVS_INLINE void store_marks(I* p, const Marks<T>& a) {
    OVS_FOR_VECTORS(T, i) store(p + i * Pack<T>::kLanes, a.v[i]);
}
template <class T>
OVS_INLINE Pack<T> broadcast(T x) {
    Pack<T> r;
    OVS_FOR_VECTORS(T, i) r.v[i] = typename Pack<T>::V{} + x;
    return r;
}
template <class T>
OVS_INLINE Marks<T> broadcast_mark(int64_t x) {
    Marks<T> r;
    OVS_FOR_VECTORS(T, i) r.v[i] = typename Marks<T>::M{} + static_cast<typename Marks<T>::I>(x);
    return r;
}
// 0, 1, .. kStrip - 1
template <class T>
OVS_INLINE Marks<T> lane_numbers() {
    typename Marks<T>::I numbers[kStrip];
    for (int l = 0; l < kStrip; ++l) numbers[l] = l;
    Marks<T> r;
    OVS_FOR_VECTORS(T, i) r.v[i] = load<typename Marks<T>::M>(numbers + i * Pack<T>::kLanes);
    return r;
}

#define OVS_PACK_OPERATOR(op)                                            \
    template <class T>                                                   \
    OVS_INLINE Pack<T> operator op(const Pack<T>& a, const Pack<T>& b) { \
        Pack<T> r;                                                       \
        OVS_FOR_VECTORS(T, i) r.v[i] = a.v[i] op b.v[i];                 \
        return r;                                                        \
    }
OVS_PACK_OPERATOR(+)
OVS_PACK_OPERATOR(-)
OVS_PACK_OPERATOR(*)
OVS_PACK_OPERATOR(/)
#undef OVS_PACK_OPERATOR

#define OVS_PACK_COMPARISON(name, op)                              \
    template <class T>                                             \
    OVS_INLINE Marks<T> name(const Pack<T>& a, const Pack<T>& b) { \
        Marks<T> r;                                                \
        OVS_FOR_VECTORS(T, i) r.v[i] = a.v[i] op b.v[i];           \
        return r;                                                  \
    }
OVS_PACK_COMPARISON(above, >)
OVS_PACK_COMPARISON(equal, ==)
#undef OVS_PACK_COMPARISON

#define OVS_MARKS_OPERATOR(op)                                              \
    template <class T>                                                      \
    OVS_INLINE Marks<T> operator op(const Marks<T>& a, const Marks<T>& b) { \
        Marks<T> r;                                                         \
        OVS_FOR_VECTORS(T, i) r.v[i] = a.v[i] op b.v[i];                    \
        return r;                                                           \
    }
OVS_MARKS_OPERATOR(&)
OVS_MARKS_OPERATOR(|)
OVS_MARKS_OPERATOR(-)
OVS_MARKS_OPERATOR(<)
OVS_MARKS_OPERATOR(==)
#undef OVS_MARKS_OPERATOR

template <class T>
OVS_INLINE Marks<T> operator~(const Marks<T>& a) {
    Marks<T> r;
    OVS_FOR_VECTORS(T, i) r.v[i] = ~a.v[i];
    return r;
}
template <class T>
OVS_INLINE Pack<T> select(const Marks<T>& where, const Pack<T>& a, const Pack<T>& b) {
    Pack<T> r;
    OVS_FOR_VECTORS(T, i) r.v[i] = where.v[i] ? a.v[i] : b.v[i];
    return r;
}
template <class T>
OVS_INLINE Marks<T> select(const Marks<T>& where, const Marks<T>& a, const Marks<T>& b) {
    Marks<T> r;
    OVS_FOR_VECTORS(T, i) r.v[i] = where.v[i] ? a.v[i] : b.v[i];
    return r;
}
template <class T>
OVS_INLINE bool any(const Marks<T>& a) {
    typename Marks<T>::M all = a.v[0];
    for (int i = 1; i < Pack<T>::kVectors; ++i) all |= a.v[i];
    uint64_t words[kVectorBytes / 8], sum = 0;
    std::memcpy(words, &all, sizeof words);
    for (const uint64_t word : words) sum |= word;
    return sum != 0;
}

// log2(x) for x in [0, 1], finite at zero: x = 2^e m with m in [sqrt(1/2), sqrt(2)), and a polynomial for log2(m), off
// by 4e-7 at most.
OVS_INLINE Pack<float> log2_of_share(const Pack<float>& x) {
    constexpr int32_t kRootHalf = 0x3f3504f3;
    Pack<float> r;
    OVS_FOR_VECTORS(float, i) {
        using V = Pack<float>::V;
        using M = Marks<float>::M;
        M bits;
        __builtin_memcpy(&bits, &x.v[i], sizeof bits);
        const M exponent = (bits - kRootHalf) >> 23;
        bits -= exponent << 23;
        V m;
        __builtin_memcpy(&m, &bits, sizeof m);
        const V t = m - 1.0f;
        V s = 0.1706344336271286f * t - 0.27269789576530457f;
        s = s * t + 0.29726260900497437f;
        s = s * t - 0.3589618504047394f;
        s = s * t + 0.48046502470970154f;
        s = s * t - 0.7213758826255798f;
        s = s * t + 1.442699670791626f;
        r.v[i] = s * t + __builtin_convertvector(exponent, V);
    }
    return r;
}
OVS_INLINE Pack<double> log2_of_share(const Pack<double>& x) {
    Pack<double> r;
    OVS_FOR_VECTORS(double, i) {
        for (int l = 0; l < Pack<double>::kLanes; ++l) r.v[i][l] = x.v[i][l] > 0.0 ? __builtin_log2(x.v[i][l]) : 0.0;
    }
    return r;
}

// exp(x) for x <= 0: exp_nonpositive of common/simd.h as vectors; NaN stays NaN.
OVS_INLINE Pack<float> exp_of_negative(const Pack<float>& x) {
    constexpr float kLog2E = 1.44269504088896341f, kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
    constexpr float kRound = 12582912.0f, kLowest = -87.0f;
    Pack<float> r;
    OVS_FOR_VECTORS(float, i) {
        using V = Pack<float>::V;
        using M = Marks<float>::M;
        const M low = x.v[i] < kLowest;
        const V y = low ? V{} + kLowest : x.v[i];
        const V shifted = y * kLog2E + kRound;
        const V n = shifted - kRound;
        const V f = (y - n * kLn2High) - n * kLn2Low;
        V e = 1.9875691500e-4f * f + 1.3981999507e-3f;
        e = e * f + 8.3334519073e-3f;
        e = e * f + 4.1665795894e-2f;
        e = e * f + 1.6666665459e-1f;
        e = e * f + 5.0000001201e-1f;
        e = e * f * f + f + 1.0f;
        M bits;
        __builtin_memcpy(&bits, &shifted, sizeof bits);
        bits = (bits << 23) + 0x3f800000;  // the low bits of `shifted` are n
        V power;
        __builtin_memcpy(&power, &bits, sizeof power);
        r.v[i] = low ? V{} : e * power;
    }
    return r;
}
OVS_INLINE Pack<double> exp_of_negative(const Pack<double>& x) {
    Pack<double> r;
    OVS_FOR_VECTORS(double, i) {
        for (int l = 0; l < Pack<double>::kLanes; ++l) r.v[i][l] = __builtin_exp(x.v[i][l]);
    }
    return r;
}

// 2^x for x <= 0, and a little above; exactly zero from -127 (-1023) on, NaN for NaN.
template <class T>
OVS_INLINE Pack<T> exp2_of_negative(const Pack<T>& x) {
    using V = typename Pack<T>::V;
    constexpr T kLowest = sizeof(T) == 8 ? T(-1023) : T(-127);
    Pack<T> r;
    OVS_FOR_VECTORS(T, i) {
        const V lowest = V{} + kLowest;
        r.v[i] = exp2_vector<V>(x.v[i] < lowest ? lowest : x.v[i]);
    }
    return r;
}

// The largest number, and the sum, in a fixed order.
template <class T>
OVS_INLINE T largest(const Pack<T>& a) {
    T values[kStrip];
    store_pack(values, a);
    T r = values[0];
    for (int l = 1; l < kStrip; ++l) r = values[l] > r ? values[l] : r;
    return r;
}
template <class T>
OVS_INLINE T sum_of(const Pack<T>& a) {
    T values[kStrip];
    store_pack(values, a);
    for (int step = kStrip / 2; step > 0; step /= 2) {
        for (int l = 0; l < step; ++l) values[l] += values[l + step];
    }
    return values[0];
}

}  // namespace
}  // namespace OVS_ISA
}  // namespace ovs
