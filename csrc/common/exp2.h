// 2^x for x <= 0, on the vectors of common/simd.h: straight-line code, a dozen instructions.
//
// x = n + f with an integer n and |f| <= 1/2; 2^f is a polynomial, 2^n goes into the exponent bits. Exactly 1 at 0;
// exactly 0 below half the smallest normal number or so, for -Inf and for NaN. Included per instruction-set level.
#pragma once
#include "common/simd.h"

namespace ovs {
namespace OVS_ISA {
namespace {

// Adding 1.5 * 2^(mantissa bits) rounds to an integer in the low bits of the mantissa. The bias of the exponent is
// added along, so that a shift brings those bits to their place; n = -bias leaves zero there, which is 0.0.
struct Exp2Float {
    using Bits = uint32_t;
    static constexpr int kMantissaBits = 23, kBias = 127, kDegree = 6;
    static constexpr float kRound = 12582912.0f + kBias, kLowest = -kBias;
    // Relative error 2e-9 in exact arithmetic, 8e-8 in float32.
    static constexpr float kPolynomial[kDegree + 1] = {1.0f,
                                                       6.931472029e-01f,
                                                       2.402264791e-01f,
                                                       5.550332470e-02f,
                                                       9.618437364e-03f,
                                                       1.339887499e-03f,
                                                       1.535336152e-04f};
};

struct Exp2Double {
    using Bits = uint64_t;
    static constexpr int kMantissaBits = 52, kBias = 1023, kDegree = 13;
    static constexpr double kRound = 6755399441055744.0 + kBias, kLowest = -kBias;
    // Taylor's, (ln 2)^k / k!: the next term is below 3e-18.
    static constexpr double kPolynomial[kDegree + 1] = {
        1.0,
        0.6931471805599453,
        0.2402265069591007,
        0.055504108664821576,
        0.009618129107628477,
        0.0013333558146428441,
        0.00015403530393381606,
        1.5252733804059838e-05,
        1.3215486790144305e-06,
        1.0178086009239696e-07,
        7.054911620801121e-09,
        4.44553827187081e-10,
        2.5678435993488196e-11,
        1.3691488853904124e-12,
    };
};

template <int kBytes>
struct Exp2Constants {
    using Type = Exp2Float;
};
template <>
struct Exp2Constants<8> {
    using Type = Exp2Double;
};

// V is a vector of floats or of doubles.
template <class V>
OVS_INLINE V exp2_nonpositive(V x) {
    using K = typename Exp2Constants<sizeof(x[0])>::Type;
    typedef typename K::Bits Bits __attribute__((vector_size(sizeof(V))));
    const V lowest = K::kLowest - V{};
    x = x > lowest ? x : lowest;  // NaN too
    const V shifted = x + K::kRound;
    const V f = x - (shifted - K::kRound);
    V power = K::kPolynomial[K::kDegree] - V{};
    OVS_UNROLL
    for (int k = K::kDegree - 1; k >= 0; --k) power = power * f + K::kPolynomial[k];
    return power * (V)((Bits)shifted << K::kMantissaBits);
}

}  // namespace
}  // namespace OVS_ISA
}  // namespace ovs
