// What the label propagation solvers share: their modes, and the scalars of conjugate gradients, one set per class.
#pragma once
#include <cmath>
#include <cstdint>

#include "common/index.h"

namespace ovs {

// The values are part of the interface: `ovs_kernels/_native.py` holds the same table and a test compares the two.
enum class SolveMode : int { kOfficial = 0, kExact = 1 };

OVS_HOST_DEVICE float root(float x) { return sqrtf(x); }
OVS_HOST_DEVICE double root(double x) { return sqrt(x); }

namespace {  // internal linkage, like OVS_HOST_DEVICE

// What conjugate gradients keep of one class. Norms are those of the unscaled problem.
struct ClassState {
    double rho;        // |r|^2
    double rho_start;  // |y|^2
    double a, b;       // this step's factors; 0 once the class is frozen
    int iterations;
    int frozen;
};

OVS_HOST_DEVICE ClassState start_class(double rho) {
    // A class of zeros is solved; a class that is not finite is left alone and reported as NaN.
    const bool idle = !(rho > 0.0) || !(rho < HUGE_VAL);
    return {rho, rho, 0.0, 0.0, 0, idle ? 1 : 0};
}

// a = |r|^2 / <p, Lp>, and b from |r - a q|^2 = a^2 |q|^2 - |r|^2, which needs no second reduction. The next `a` uses
// the |r|^2 that was really measured, so a rounding error of b does not build up.
OVS_HOST_DEVICE void step_class(ClassState& s, double dot_pq, double dot_qq) {
    if (s.frozen != 0 || !(dot_pq > 0.0)) {
        s.frozen = 1;
        s.a = s.b = 0.0;
        return;
    }
    s.a = s.rho / dot_pq;
    const double next = s.a * s.a * dot_qq - s.rho;
    s.b = next > 0.0 ? next / s.rho : 0.0;
}

OVS_HOST_DEVICE void finish_step(ClassState& s, double rho, double tol) {
    if (s.frozen != 0) return;
    s.iterations += 1;
    s.rho = rho;
    if (rho <= tol * tol * s.rho_start) s.frozen = 1;
}

}  // namespace
}  // namespace ovs
