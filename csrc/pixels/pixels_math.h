// The formulas of the pixels family, shared by the CPU and the CUDA kernels.
#pragma once
#include <cmath>
#include <cstdint>

#include "common/index.h"
#include "common/solve.h"

namespace ovs {

// A weight below the smallest normal float32 counts as zero: a pixel whose weights are all that small is isolated.
constexpr float kSmallestWeight = 1.1754943508222875e-38f;
// exp(-x) is below kSmallestWeight for every x above this.
constexpr float kLargestExponent = 87.33654475055310f;

namespace {  // internal linkage, like OVS_HOST_DEVICE

template <class T>
struct Color {
    T x, y, z;
};

// sRGB transfer function, encoded value -> linear light.
template <class T>
OVS_HOST_DEVICE T srgb_to_linear(T u) {
    return u <= T(0.04045) ? u / T(12.92) : pow((u + T(0.055)) / T(1.055), T(2.4));
}

// CIE f: cube root with a linear start.
template <class T>
OVS_HOST_DEVICE T lab_curve(T t) {
    return t > T(0.008856) ? cbrt(t) : T(7.787) * t + T(4.0 / 29.0);
}

// sRGB in [0, 1] -> (L/100, a/128, b/128), D65 white. The constants are those of kornia and scikit-image.
template <class T>
OVS_HOST_DEVICE Color<T> srgb_to_scaled_lab(T red, T green, T blue) {
    const T r = srgb_to_linear(red), g = srgb_to_linear(green), b = srgb_to_linear(blue);
    const T fx = lab_curve((T(0.412453) * r + T(0.357580) * g + T(0.180423) * b) / T(0.95047));
    const T fy = lab_curve(T(0.212671) * r + T(0.715160) * g + T(0.072169) * b);
    const T fz = lab_curve((T(0.019334) * r + T(0.119193) * g + T(0.950227) * b) / T(1.08883));
    return {(T(116) * fy - T(16)) / T(100), T(500) * (fx - fy) / T(128), T(200) * (fy - fz) / T(128)};
}

// Half of the neighbours suffice, weights are symmetric. The forward offsets of radius R are numbered
//   dy = 0: dx = 1 .. R          -> 0 .. R-1
//   dy > 0: dx = -R .. R         -> R + (dy-1)(2R+1) + (dx+R)
OVS_HOST_DEVICE constexpr int num_forward_offsets(int radius) { return radius + radius * (2 * radius + 1); }
OVS_HOST_DEVICE constexpr int forward_offset(int radius, int dy, int dx) {
    return dy == 0 ? dx - 1 : radius + (dy - 1) * (2 * radius + 1) + dx + radius;
}

// The Chebyshev semi-iteration on [1 - alpha, 1 + alpha]: |r_m| <= |y| / T_m(1 / alpha).
OVS_HOST_DEVICE int chebyshev_steps(double alpha, double tol) {
    const double steps = std::ceil(std::acosh(1.0 / tol) / std::acosh(1.0 / alpha) - 1e-9);
    return steps < 1.0 ? 1 : static_cast<int>(steps);
}

// x_{k+1} = x_k + momentum (x_k - x_{k-1}) + step (y - L x_k), from x_1 = y. Call `next()` once per step.
class ChebyshevFactors {
public:
    explicit ChebyshevFactors(double alpha) : sigma_(1.0 / alpha), delta_(alpha), rho_(alpha) {}
    void next() {
        const double rho = 1.0 / (2.0 * sigma_ - rho_);
        momentum = rho * rho_;
        step = 2.0 * rho / delta_;
        rho_ = rho;
    }
    double momentum = 0.0, step = 0.0;

private:
    double sigma_, delta_, rho_;
};

}  // namespace
}  // namespace ovs
