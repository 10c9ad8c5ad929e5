// What the cases of pixels_cases.cpp are made of, and the dense float64 solve that they are held to.
//
// The solve shares nothing with the core: the matrix I - alpha S of an image with N pixels is built in full, [N, N],
// from the equations of csrc/pixels/pixels.h, then conjugate gradients literally (official) or Gaussian elimination
// (exact).
#pragma once
#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "cases.h"
#include "dense.h"
#include "pixels/pixels.h"

namespace pixels_cases {

using namespace cases;
using ovs::PixelsParams;
using ovs::SolveMode;

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();

// What a case is

struct Inputs;

struct Case {
    std::string name;
    int64_t height = 9, width = 35, num_classes = 5, batch = 1, num_features = 3;
    bool lab = true;
    SolveMode mode = SolveMode::kOfficial;
    int window = 5, class_chunk = 24, max_iter = 10;
    double tau = 0.01, alpha = 0.95, tol = 1e-6;
    int label_bytes = 0;          // 0: scores, 1 or 4: labels of that size
    std::vector<int32_t> groups;  // empty: every class its own
    int64_t num_groups = 0;       // 0: as many as classes
    bool report = true, own_stream = true, dense = true, twice = false, quick = false;
    std::function<void(Inputs&)> change;  // puts NaN and the like into the inputs

    int64_t pixels() const { return height * width; }
    int64_t channels() const { return num_groups > 0 ? num_groups : num_classes; }
    int64_t group_of(int64_t c) const { return groups.empty() ? c : groups[c]; }
};

struct Inputs {
    std::vector<float> scores;  // [B, C, H, W]
    std::vector<float> guide;   // [B, F, H, W]
    int64_t pixels;

    void fill_class(int64_t c, float value) { std::fill_n(scores.begin() + c * pixels, pixels, value); }
    void scale_class(int64_t c, float factor) {
        for (int64_t i = 0; i < pixels; ++i) scores[c * pixels + i] *= factor;
    }
    void copy_class(int64_t from, int64_t to) {
        std::copy_n(scores.begin() + from * pixels, pixels, scores.begin() + to * pixels);
    }
};

// Waves with an edge and a little noise, so that weights of all sizes between 0 and 1 occur; scores between 0 and 1.
inline Inputs make_inputs(const Case& c) {
    Random uniform;
    Inputs in;
    in.pixels = c.pixels();
    for (int64_t plane = 0; plane < c.batch * c.num_features; ++plane) {
        for (int64_t i = 0; i < in.pixels; ++i) {
            const double y = static_cast<double>(i / c.width), x = static_cast<double>(i % c.width);
            const double wave = 0.5 + 0.2 * std::sin(0.07 * x + 0.11 * y + static_cast<double>(plane));
            const double edge = x > 0.6 * static_cast<double>(c.width) ? 0.15 : 0.0;
            in.guide.push_back(static_cast<float>(wave + edge + 0.02 * (uniform() - 0.5)));
        }
    }
    for (int64_t i = 0; i < c.batch * c.num_classes * in.pixels; ++i) {
        in.scores.push_back(static_cast<float>(uniform()));
    }
    if (c.change) c.change(in);
    return in;
}

inline PixelsParams params_of(const Case& c) {
    PixelsParams p;
    p.batch = c.batch;
    p.num_classes = c.num_classes;
    p.num_groups = c.channels();
    p.height = c.height;
    p.width = c.width;
    p.num_features = c.num_features;
    p.label_bytes = c.label_bytes > 0 ? c.label_bytes : 1;
    p.window = c.window;
    p.tau = c.tau;
    p.alpha = c.alpha;
    p.tol = c.tol;
    p.max_iter = c.max_iter;
    p.lab = c.lab;
    p.class_chunk = c.class_chunk;
    p.mode = c.mode;
    return p;
}

// What is expected: every class by itself, [B, C, H, W], [B, C], [B, C]

struct Expected {
    std::vector<double> scores;
    std::vector<int32_t> iterations;
    std::vector<double> residuals;
};

// The dense solve

inline double linear_light(double u) { return u <= 0.04045 ? u / 12.92 : std::pow((u + 0.055) / 1.055, 2.4); }
inline double cie_f(double t) { return t > 0.008856 ? std::cbrt(t) : 7.787 * t + 4.0 / 29.0; }

// [F, N] of image `b`.
inline std::vector<double> features_of(const Case& c, const Inputs& in, int64_t b) {
    const int64_t n = c.pixels(), count = c.num_features * n;
    std::vector<double> z(in.guide.begin() + b * count, in.guide.begin() + (b + 1) * count);
    if (!c.lab) return z;
    for (int64_t i = 0; i < n; ++i) {
        const double red = linear_light(z[i]), green = linear_light(z[n + i]), blue = linear_light(z[2 * n + i]);
        const double fx = cie_f((0.412453 * red + 0.357580 * green + 0.180423 * blue) / 0.95047);
        const double fy = cie_f(0.212671 * red + 0.715160 * green + 0.072169 * blue);
        const double fz = cie_f((0.019334 * red + 0.119193 * green + 0.950227 * blue) / 1.08883);
        z[i] = (116.0 * fy - 16.0) / 100.0;
        z[n + i] = 500.0 * (fx - fy) / 128.0;
        z[2 * n + i] = 200.0 * (fy - fz) / 128.0;
    }
    return z;
}

// I - alpha D^-1/2 W D^-1/2
inline Matrix system_matrix(const Case& c, const std::vector<double>& z) {
    const int64_t n = c.pixels(), radius = c.window / 2;
    Matrix w(n * n, 0.0);
    std::vector<double> degree(n, 0.0);
    for (int64_t i = 0; i < n; ++i) {
        for (int64_t j = 0; j < n; ++j) {
            const bool near =
                std::abs(i / c.width - j / c.width) <= radius && std::abs(i % c.width - j % c.width) <= radius;
            if (i == j || !near) continue;
            double square = 0.0;
            for (int64_t f = 0; f < c.num_features; ++f) square += std::pow(z[f * n + i] - z[f * n + j], 2);
            const double weight = std::exp(-std::sqrt(square) / c.tau);
            if (weight >= static_cast<double>(FLT_MIN)) w[i * n + j] = weight;  // a NaN is not
            degree[i] += w[i * n + j];
        }
    }
    for (double& d : degree) {
        if (d == 0.0) d = 1.0;
    }
    for (int64_t i = 0; i < n; ++i) {
        for (int64_t j = 0; j < n; ++j) {
            w[i * n + j] = (i == j ? 1.0 : 0.0) - c.alpha * w[i * n + j] / std::sqrt(degree[i] * degree[j]);
        }
    }
    return w;
}

// Chebyshev: |r_m| <= |y| / T_m(1 / alpha) with T_m(x) = cosh(m arccosh x); the steps for a given bound.
inline double chebyshev_bound(double alpha, int steps) { return 1.0 / std::cosh(steps * std::acosh(1.0 / alpha)); }
inline int exact_steps(const Case& c) {
    int steps = 1;
    while (steps < c.max_iter && chebyshev_bound(c.alpha, steps) > c.tol) ++steps;
    return steps;
}

inline Expected expect_dense(const Case& c, const Inputs& in, std::vector<Matrix>* matrices) {
    const int64_t n = c.pixels();
    Expected e;
    for (int64_t b = 0; b < c.batch; ++b) {
        matrices->push_back(system_matrix(c, features_of(c, in, b)));
        const Matrix& a = matrices->back();
        const Matrix lu = c.mode == SolveMode::kExact ? factorise(a, n) : Matrix();
        for (int64_t k = b * c.num_classes; k < (b + 1) * c.num_classes; ++k) {
            const std::vector<double> y(in.scores.begin() + k * n, in.scores.begin() + (k + 1) * n);
            const bool finite = std::all_of(y.begin(), y.end(), [](double v) { return std::isfinite(v); });
            const bool zero = std::all_of(y.begin(), y.end(), [](double v) { return v == 0.0; });
            std::vector<double> x(n, finite ? 0.0 : kNaN);
            int32_t iterations = 0;
            double residual = finite ? 0.0 : kNaN;
            if (finite && !zero && c.mode == SolveMode::kOfficial) {
                const auto apply = [&a](const std::vector<double>& v) { return multiply(a, v); };
                const Iterate last = conjugate_gradients(apply, y, c.max_iter, c.tol);
                x = last.x;
                iterations = last.iterations;
                residual = last.residual;
            } else if (finite && !zero) {
                x = solve(lu, y);
                iterations = exact_steps(c);
            }
            e.scores.insert(e.scores.end(), x.begin(), x.end());
            e.iterations.push_back(iterations);
            e.residuals.push_back(residual);
        }
    }
    return e;
}

}  // namespace pixels_cases
