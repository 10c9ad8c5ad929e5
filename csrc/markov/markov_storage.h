// Per level: reading numbers of the matrix in the type in which it is stored.
//
// Half types are widened on the way. The numbers are not negative, so the sign is dropped where that is easier; `bad`
// tells, lane by lane, what must not be there: below zero, NaN or infinite.
#pragma once
#include <limits>
#include <type_traits>

#include "common/simd.h"
#if OVS_ISA_LEVEL >= 3
#include <immintrin.h>
#endif

namespace ovs {
namespace OVS_ISA {
namespace {

// Integer lanes as wide as those of T.
template <class T, int kLanes>
using IntVec = Vec<std::conditional_t<sizeof(T) == 8, int64_t, int32_t>, kLanes>;

template <class To, class From>
OVS_INLINE To bits_as(const From& from) {
    static_assert(sizeof(To) == sizeof(From), "the same bits");
    To to;
    __builtin_memcpy(&to, &from, sizeof to);
    return to;
}

// float32 and float64 as they are
template <class Number>
struct Plain {
    using Raw = Number;
    using T = Number;
    static constexpr int kLanes = kVectorBytes / sizeof(T);
    using V = Vec<T, kLanes>;
    using I = IntVec<T, kLanes>;

    OVS_INLINE static T one(const Raw* p) { return *p; }
    OVS_INLINE static V many(const Raw* p) { return load<V>(p); }
    OVS_INLINE static I bad(const Raw* p) {
        const V v = load<V>(p);
        return ~((v >= T(0)) & (v <= std::numeric_limits<T>::max()));
    }
    OVS_INLINE static bool bad_one(const Raw* p) { return !(*p >= T(0) && *p <= std::numeric_limits<T>::max()); }
};

struct HalfBase {
    using Raw = uint16_t;
    using T = float;
    static constexpr int kLanes = kVectorBytes / sizeof(T);
    using V = Vec<T, kLanes>;
    using I = IntVec<T, kLanes>;

    // `kLanes` numbers of 16 bits, each in the lower half of 32.
    OVS_INLINE static I widen(const Raw* p) { return __builtin_convertvector(load<Vec<uint16_t, kLanes>>(p), I); }
};

struct BFloat16 : HalfBase {
    static constexpr int32_t kNegativeZero = 0x8000, kLargest = 0x7f7f;

    OVS_INLINE static T one(const Raw* p) { return bits_as<float>(static_cast<int32_t>(*p) << 16); }
    OVS_INLINE static V many(const Raw* p) { return bits_as<V>(widen(p) << 16); }
    OVS_INLINE static I bad(const Raw* p) {
        const I h = widen(p);
        return (h > kLargest) & (h != kNegativeZero);
    }
    OVS_INLINE static bool bad_one(const Raw* p) { return *p > kLargest && *p != kNegativeZero; }
};

struct Float16 : HalfBase {
    static constexpr int32_t kNegativeZero = 0x8000, kLargest = 0x7bff, kSmallestNormal = 0x0400, kMagnitude = 0x7fff;
    // The exponent moves from a bias of 15 to one of 127. Subnormal numbers get the exponent of the smallest normal
    // one, 2^-14, which then is one too much in all of them and subtracted: no subnormal float32 comes up, they are
    // slow.
    static constexpr int32_t kRebias = 112 << 23, kRebiasSubnormal = 113 << 23;
    static constexpr float kSmallest = 6.103515625e-5f;  // 2^-14

    OVS_INLINE static T one(const Raw* p) {
        const int32_t h = *p & kMagnitude;
        if (h < kSmallestNormal) return bits_as<float>((h << 13) + kRebiasSubnormal) - kSmallest;
        return bits_as<float>((h << 13) + kRebias);
    }
    // One instruction from x86-64-v3 on, which the compiler's own conversion of vectors does not use.
    OVS_INLINE static V many(const Raw* p) {
#if OVS_ISA_LEVEL == 4
        return bits_as<V>(_mm512_maskz_cvtph_ps(0xffff, load<__m256i>(p)));
#elif OVS_ISA_LEVEL == 3
        return bits_as<V>(_mm256_cvtph_ps(load<__m128i>(p)));
#else
        const I h = widen(p) & kMagnitude, shifted = h << 13;
        const V subnormal = bits_as<V>(shifted + kRebiasSubnormal) - kSmallest;
        return h < kSmallestNormal ? subnormal : bits_as<V>(shifted + kRebias);
#endif
    }
    OVS_INLINE static I bad(const Raw* p) {
        const I h = widen(p);
        return (h > kLargest) & (h != kNegativeZero);
    }
    OVS_INLINE static bool bad_one(const Raw* p) { return *p > kLargest && *p != kNegativeZero; }
};

// Calls fn(Storage{}) for a dtype.
template <class Fn>
OVS_INLINE auto with_storage(DType dtype, const Fn& fn) {
    switch (dtype) {
        case DType::kFloat64:
            return fn(Plain<double>{});
        case DType::kFloat16:
            return fn(Float16{});
        case DType::kBFloat16:
            return fn(BFloat16{});
        default:
            return fn(Plain<float>{});
    }
}

}  // namespace
}  // namespace OVS_ISA
}  // namespace ovs
