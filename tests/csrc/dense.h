// Linear algebra in float64 as the textbooks have it. It shares nothing with the core.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace cases {

using Matrix = std::vector<double>;  // [N, N]

inline std::vector<double> multiply(const Matrix& a, const std::vector<double>& v) {
    const std::size_t n = v.size();
    std::vector<double> result(n, 0.0);
    for (std::size_t i = 0; i < n; ++i) {
        for (std::size_t j = 0; j < n; ++j) result[i] += a[i * n + j] * v[j];
    }
    return result;
}

inline double dot(const std::vector<double>& a, const std::vector<double>& b) {
    double sum = 0.0;
    for (std::size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
    return sum;
}

struct Iterate {
    std::vector<double> x;
    int32_t iterations;
    double residual;  // |r| / |y|, of the recursive r
};

// From x = 0, until |r| <= tol |y| or for max_iter steps; apply(v) is the matrix times v.
template <class Apply>
Iterate conjugate_gradients(const Apply& apply, const std::vector<double>& y, int max_iter, double tol) {
    Iterate s = {std::vector<double>(y.size(), 0.0), 0, 0.0};
    std::vector<double> r = y, p = y;
    const double start = dot(y, y);
    double rho = start;
    for (; s.iterations < max_iter && std::sqrt(rho) > tol * std::sqrt(start); ++s.iterations) {
        const std::vector<double> q = apply(p);
        const double step = rho / dot(p, q), before = rho;
        for (std::size_t i = 0; i < y.size(); ++i) {
            s.x[i] += step * p[i];
            r[i] -= step * q[i];
        }
        rho = dot(r, r);
        for (std::size_t i = 0; i < y.size(); ++i) p[i] = r[i] + rho / before * p[i];
    }
    if (start > 0.0) s.residual = std::sqrt(rho / start);
    return s;
}

// LU without pivoting, for symmetric and positive definite matrices.
inline Matrix factorise(Matrix a, std::size_t n) {
    for (std::size_t k = 0; k < n; ++k) {
        for (std::size_t i = k + 1; i < n; ++i) {
            const double factor = a[i * n + k] / a[k * n + k];
            a[i * n + k] = factor;
            if (factor == 0.0) continue;
            for (std::size_t j = k + 1; j < n; ++j) a[i * n + j] -= factor * a[k * n + j];
        }
    }
    return a;
}

inline std::vector<double> solve(const Matrix& lu, std::vector<double> y) {
    const std::size_t n = y.size();
    for (std::size_t i = 0; i < n; ++i) {
        for (std::size_t j = 0; j < i; ++j) y[i] -= lu[i * n + j] * y[j];
    }
    for (std::size_t i = n; i-- > 0;) {
        for (std::size_t j = i + 1; j < n; ++j) y[i] -= lu[i * n + j] * y[j];
        y[i] /= lu[i * n + i];
    }
    return y;
}

}  // namespace cases
