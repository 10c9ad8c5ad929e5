// Vector types for the CPU kernels: the compiler's own vectors, one width per instruction-set level.
//
// A file that includes this is compiled once per level with OVS_ISA (a namespace name) and OVS_ISA_LEVEL set, and puts
// its code into an unnamed namespace inside ovs::OVS_ISA. That is not decoration: an inline function with external
// linkage, compiled for AVX-512 in one file and for SSE in another, is merged by the linker, and an old machine
// may be handed the wrong copy.
#pragma once
#include <cstdint>
#include <cstring>
#include <type_traits>

#if OVS_ISA_LEVEL == 4
#define OVS_VECTOR_BYTES 64
#elif OVS_ISA_LEVEL == 3
#define OVS_VECTOR_BYTES 32
#else
#define OVS_VECTOR_BYTES 16
#endif

#define OVS_INLINE inline __attribute__((always_inline))
#define OVS_UNROLL _Pragma("GCC unroll 64")
#define OVS_INDEPENDENT _Pragma("GCC ivdep")  // no iteration writes what another reads

namespace ovs {
namespace OVS_ISA {
namespace {

constexpr int kVectorBytes = OVS_VECTOR_BYTES;

// Vec<T, N>: N lanes of T; N * sizeof(T) must not exceed kVectorBytes, wider ones spill.
template <class T, int N>
struct VecType {
    static_assert(N * sizeof(T) <= kVectorBytes, "a vector wider than the machine's registers");
    typedef T type __attribute__((vector_size(N * sizeof(T))));
};
template <class T, int N>
using Vec = typename VecType<T, N>::type;

template <class V, class T>
OVS_INLINE V load(const T* p) {
    V v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
}
template <class V, class T>
OVS_INLINE void store(T* p, const V& v) {
    __builtin_memcpy(p, &v, sizeof v);
}

// The lanes of a and b, numbered one after the other, that `numbers` names. Numbers are constants.
template <class V, class Numbers>
OVS_INLINE V shuffle(const V& a, const V& b, const Numbers& numbers) {
#if defined(__clang__)
    constexpr int kLanes = sizeof(V) / sizeof(a[0]);
    V out = {};
    OVS_UNROLL
    for (int k = 0; k < kLanes; ++k) out[k] = numbers[k] < kLanes ? a[numbers[k]] : b[numbers[k] - kLanes];
    return out;
#else
    return __builtin_shuffle(a, b, numbers);
#endif
}

// exp(x) for x <= 0 as straight-line code, so that a loop over it is vectorised: x = n ln 2 + f, |f| <= ln 2 / 2, and a
// polynomial for exp(f), worst relative error 1.2e-7. Zero below the smallest normal float and for NaN.
OVS_INLINE float exp_nonpositive(float x) {
    constexpr float kLog2E = 1.44269504088896341f, kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
    constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer in the low bits
    const float n = (x * kLog2E + kRound) - kRound;
    const float f = (x - n * kLn2High) - n * kLn2Low;
    float e = 1.9875691500e-4f;
    e = e * f + 1.3981999507e-3f;
    e = e * f + 8.3334519073e-3f;
    e = e * f + 4.1665795894e-2f;
    e = e * f + 1.6666665459e-1f;
    e = e * f + 5.0000001201e-1f;
    e = e * f * f + f + 1.0f;
    const bool normal = x >= -87.33654475f;
    const int32_t exponent = (static_cast<int32_t>(normal ? n : 0.0f) + 127) << 23;
    float power;
    __builtin_memcpy(&power, &exponent, sizeof power);
    return normal ? e * power : 0.0f;
}

OVS_INLINE double exp_nonpositive(double x) {
    const double e = __builtin_exp(x);
    return e >= 1.1754943508222875e-38 ? e : 0.0;  // the same cut as in float32
}

}  // namespace
}  // namespace OVS_ISA
}  // namespace ovs
