// Per level: features, affinity weights and degrees of one image.
#pragma once
#include "common/parallel.h"
#include "common/simd.h"
#include "pixels/pixels_cpu.h"

namespace ovs {
namespace OVS_ISA {
namespace {

// x^(-1/kRoot) for normal positive x: a start from the exponent, within 6 %, then Newton's steps in double, each of
// which squares the error. Straight-line code: libm's pow and cbrt would keep the loop over pixels from being
// vectorised.
template <int kRoot, int kSteps>
OVS_INLINE double inverse_root(float x) {
    constexpr float kShare = 1.0f / kRoot;
    constexpr int32_t kStart = static_cast<int32_t>((1.0 + 1.0 / kRoot) * (127.0 - 0.045) * (1 << 23));
    int32_t bits;
    __builtin_memcpy(&bits, &x, sizeof bits);
    bits = kStart - static_cast<int32_t>(static_cast<float>(bits) * kShare);
    float start;
    __builtin_memcpy(&start, &bits, sizeof start);
    double y = start;
    OVS_UNROLL
    for (int step = 0; step < kSteps; ++step) {
        double power = x * y;
        OVS_UNROLL
        for (int i = 1; i < kRoot; ++i) power *= y;
        y *= (1.0 + 1.0 / kRoot) - power * (1.0 / kRoot);
    }
    return y;
}

OVS_INLINE float vector_srgb_to_linear(float u) {
    const float base = (u + 0.055f) / 1.055f;
    const double y = base * inverse_root<5, 4>(base);  // base^(4/5)
    const float curved = static_cast<float>(y * y * y), straight = u / 12.92f;
    return u <= 0.04045f ? straight : curved;
}
OVS_INLINE double vector_srgb_to_linear(double u) { return srgb_to_linear(u); }

OVS_INLINE float vector_lab_curve(float t) {
    const double y = inverse_root<3, 3>(t);
    const float curved = static_cast<float>(t * (y * y)), straight = 7.787f * t + 4.0f / 29.0f;
    return t > 0.008856f ? curved : straight;
}
OVS_INLINE double vector_lab_curve(double t) { return lab_curve(t); }

template <class T>
void compute_features(const PixelsParams& p, T* __restrict features, int threads) {
    const int64_t pixels = p.height * p.width, width = p.width;
    const T* guide = static_cast<const T*>(p.guide);
    parallel_for(p.height, threads, [=](int64_t y) {
        const int64_t begin = y * width, end = begin + width;
        if (!p.lab) {
            for (int64_t f = 0; f < p.num_features; ++f) {
                std::memcpy(features + f * pixels + begin, guide + f * pixels + begin, width * sizeof(T));
            }
            return;
        }
        OVS_INDEPENDENT
        for (int64_t i = begin; i < end; ++i) {
            const Color<T> xyz =
                linear_to_xyz(vector_srgb_to_linear(guide[i]), vector_srgb_to_linear(guide[i + pixels]),
                              vector_srgb_to_linear(guide[i + 2 * pixels]));
            const Color<T> z =
                curve_to_scaled_lab(vector_lab_curve(xyz.x), vector_lab_curve(xyz.y), vector_lab_curve(xyz.z));
            features[i] = z.x;
            features[i + pixels] = z.y;
            features[i + 2 * pixels] = z.z;
        }
    });
}

// weights[i] = exp(-|z(i) - z(i + offset)| / tau) for `count` pixels in a row.
template <class T>
OVS_INLINE void weight_run(const T* here, const T* there, int64_t plane, int64_t num_features, T minus_inverse_tau,
                           int64_t count, T* __restrict weights) {
    if (num_features == 3) {
        for (int64_t i = 0; i < count; ++i) {
            const T d0 = here[i] - there[i], d1 = here[i + plane] - there[i + plane],
                    d2 = here[i + 2 * plane] - there[i + 2 * plane];
            weights[i] = exp_nonpositive(root(d0 * d0 + d1 * d1 + d2 * d2) * minus_inverse_tau);
        }
        return;
    }
    for (int64_t i = 0; i < count; ++i) weights[i] = T(0);
    for (int64_t f = 0; f < num_features; ++f) {
        for (int64_t i = 0; i < count; ++i) {
            const T d = here[i + f * plane] - there[i + f * plane];
            weights[i] += d * d;
        }
    }
    for (int64_t i = 0; i < count; ++i) weights[i] = exp_nonpositive(root(weights[i]) * minus_inverse_tau);
}

// One row of one strip: all forward offsets, zero where either pixel is outside the image.
template <class T>
void weight_row(const PixelsParams& p, const PixelsGrid& g, const T* features, int64_t strip, int64_t y, T* row) {
    const int r = g.radius;
    const int64_t plane = g.height * g.width,
                  x0 = strip * g.strip_pixels - r;  // image column of the row's first weight
    for (int dy = 0; dy <= r; ++dy) {
        for (int dx = dy == 0 ? 1 : -r; dx <= r; ++dx) {
            T* weights = row + forward_offset(r, dy, dx) * g.weight_stride;
            int64_t lo = std::max<int64_t>({x0, 0, -dx}) - x0;
            int64_t hi = std::min<int64_t>({x0 + g.strip_pixels + 2 * r, g.width, g.width - dx}) - x0;
            if (y + dy >= g.height || hi <= lo) lo = hi = 0;
            for (int64_t i = 0; i < lo; ++i) weights[i] = T(0);
            if (lo < hi) {
                const T* here = features + y * g.width + x0 + lo;
                weight_run(here, here + dy * g.width + dx, plane, p.num_features, T(-1.0 / p.tau), hi - lo,
                           weights + lo);
            }
            for (int64_t i = hi; i < g.weight_stride; ++i) weights[i] = T(0);
        }
    }
}

// Sum of the weights of each pixel of one strip row, both halves, and 1 for an isolated pixel.
template <class T>
void degree_row(const PixelsGrid& g, const PixelsBuffers<T>& b, int64_t strip, int64_t y) {
    const int r = g.radius;
    T sum[kStripPixels] = {};
    const auto add = [&](const T* weights) {
        for (int64_t i = 0; i < g.strip_pixels; ++i) sum[i] += weights[i];
    };
    for (int dy = 0; dy <= r && dy <= y; ++dy) {
        const T* here = b.weights + g.strip_row(strip, y) * g.weights_per_row() + r;
        const T* above = b.weights + g.strip_row(strip, y - dy) * g.weights_per_row() + r;
        for (int dx = dy == 0 ? 1 : -r; dx <= r; ++dx) {
            const int64_t offset = forward_offset(r, dy, dx) * g.weight_stride;
            add(here + offset);
            add(above + offset - dx);
        }
    }
    for (int dy = static_cast<int>(y) + 1; dy <= r; ++dy) {  // rows above the image have no weights
        const T* here = b.weights + g.strip_row(strip, y) * g.weights_per_row() + r;
        for (int dx = -r; dx <= r; ++dx) add(here + forward_offset(r, dy, dx) * g.weight_stride);
    }
    const int64_t x0 = strip * g.strip_pixels, count = std::min(g.strip_pixels, g.width - x0);
    T* degree = b.degree + y * g.pitch + r + x0;
    T* inverse = b.inverse_degree + y * g.pitch + r + x0;
    for (int64_t i = 0; i < count; ++i) {
        degree[i] = sum[i] > T(0) ? sum[i] : T(1);
        inverse[i] = T(1) / degree[i];
    }
}

template <class T>
void build_affinity(const PixelsParams& p, const PixelsGrid& g, const PixelsBuffers<T>& b, int threads) {
    compute_features(p, b.features, threads);
    std::fill_n(b.no_weights, g.weights_per_row(), T(0));
    std::fill_n(b.degree, g.height * g.pitch, T(0));
    std::fill_n(b.inverse_degree, g.height * g.pitch, T(0));
    // Rows are grouped, one item a row would be all overhead for a narrow image.
    constexpr int64_t kRows = 8;
    const int64_t blocks = ceil_div(g.height, kRows);
    const auto for_rows = [&](auto&& fn) {
        parallel_for(g.num_strips * blocks, threads, [&](int64_t item) {
            const int64_t strip = item / blocks, y0 = item % blocks * kRows;
            for (int64_t y = y0; y < std::min(y0 + kRows, g.height); ++y) fn(strip, y);
        });
    };
    for_rows([&](int64_t strip, int64_t y) {
        weight_row(p, g, b.features, strip, y, b.weights + g.strip_row(strip, y) * g.weights_per_row());
    });
    for_rows([&](int64_t strip, int64_t y) { degree_row(g, b, strip, y); });
}

}  // namespace
}  // namespace OVS_ISA
}  // namespace ovs
