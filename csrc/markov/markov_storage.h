// Per level: reading numbers of the matrix in the type in which it is stored.
//
// Half types are widened on the way. The numbers are not negative, so the sign is dropped where that is easier; `bad`
// tells, lane by lane, what must not be there: below zero, NaN or infinite.
#pragma once
#include <limits>
#include <type_traits>

#include "common/half.h"
#include "common/half_vector.h"
#include "common/simd.h"

namespace ovs {
namespace OVS_ISA {
namespace {

// Integer lanes as wide as those of T.
template <class T, int kLanes>
using IntVec = Vec<std::conditional_t<sizeof(T) == 8, int64_t, int32_t>, kLanes>;

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

    OVS_INLINE static T one(const Raw* p) { return ovs::widen_bfloat16(*p); }
    OVS_INLINE static V many(const Raw* p) { return widen_bfloat16(p); }
    OVS_INLINE static I bad(const Raw* p) {
        const I h = widen(p);
        return (h > kLargest) & (h != kNegativeZero);
    }
    OVS_INLINE static bool bad_one(const Raw* p) { return *p > kLargest && *p != kNegativeZero; }
};

struct Float16 : HalfBase {
    static constexpr int32_t kNegativeZero = 0x8000, kLargest = 0x7bff;

    OVS_INLINE static T one(const Raw* p) { return ovs::widen_float16(*p & 0x7fffu); }
    OVS_INLINE static V many(const Raw* p) { return widen_float16(p); }
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
