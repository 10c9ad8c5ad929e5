// 2^x on the vectors of common/simd.h: straight-line code, a dozen instructions. Included per instruction-set level.
#pragma once
#include <cstdint>
#include <type_traits>

#include "common/simd.h"

namespace ovs {
namespace OVS_ISA {
namespace {

// Powers of 2 of all lanes, |x| <= 126 (float) or 1022 (double): x = n + f, |f| <= 1/2, and a polynomial for 2^f, worst
// relative error 7.9e-8 (float), 2e-16 (double). NaN for NaN; beyond the limits some number, no trap.
template <class V>
OVS_INLINE V exp2_vector(const V& x) {
    using T = std::remove_cv_t<std::remove_reference_t<decltype(x[0])>>;
    using Bits = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;
    typedef Bits BitVector __attribute__((vector_size(sizeof(V))));
    constexpr int kMantissa = sizeof(T) == 8 ? 52 : 23;
    // Adding it rounds to an integer, in the low bits, where the exponent's bias already is.
    constexpr T kRound = T(1.5) * T(int64_t{1} << kMantissa) + T(sizeof(T) == 8 ? 1023 : 127);
    const V rounded = x + kRound;
    const V f = x - (rounded - kRound);
    V e;
    if constexpr (sizeof(T) == 8) {
        constexpr double kTaylor[] = {1.0,
                                      6.93147180559945286e-01,
                                      2.40226506959100694e-01,
                                      5.55041086648215762e-02,
                                      9.61812910762847688e-03,
                                      1.33335581464284411e-03,
                                      1.54035303933816061e-04,
                                      1.52527338040598377e-05,
                                      1.32154867901443053e-06,
                                      1.01780860092396960e-07,
                                      7.05491162080112088e-09,
                                      4.44553827187081007e-10,
                                      2.56784359934881958e-11,
                                      1.36914888539041241e-12};
        e = V{} + kTaylor[13];
        OVS_UNROLL
        for (int k = 12; k >= 0; --k) e = e * f + kTaylor[k];
    } else {
        e = V{} + 1.5345811983e-4f;  // least largest relative error
        e = e * f + 1.3399931219e-3f;
        e = e * f + 9.6184889572e-3f;
        e = e * f + 5.5503287770e-2f;
        e = e * f + 2.4022646891e-1f;
        e = e * f + 6.9314720574e-1f;
        e = e * f + 1.0f;
    }
    return e * (V)((BitVector)rounded << kMantissa);
}

// The same for any x <= 0: exactly 1 at 0, exactly 0 at -127 (float) or -1023 (double) and below, for -Inf and for NaN.
template <class V>
OVS_INLINE V exp2_nonpositive(const V& x) {
    using T = std::remove_cv_t<std::remove_reference_t<decltype(x[0])>>;
    constexpr T kLowest = sizeof(T) == 8 ? T(-1023) : T(-127);
    const V lowest = kLowest - V{};
    return exp2_vector<V>(x > lowest ? x : lowest);  // NaN too
}

}  // namespace
}  // namespace OVS_ISA
}  // namespace ovs
