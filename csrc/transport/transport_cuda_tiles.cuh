// The two products with the matrix on a GPU, as sums or as sums of exponentials, and the read-outs.
//
// The matrix E [N, M] is K in the plain domain and x = -(cost - least) / epsilon in the log domain. A block takes
// kOuter rows (or columns) and a slice of kSlice classes, and walks over a part of the columns (or rows) in chunks; the
// parts of a split are added by another kernel, in order.
#pragma once
#include "common/launch.cuh"
#include "common/reduce.cuh"
#include "transport/transport_math.h"

namespace ovs {
namespace {

constexpr int kOuter = 64, kChunk = 32, kSlice = 32;
constexpr int kThreadsX = 16, kThreadsY = 8;                                     // of a block
constexpr int kOuterEach = kOuter / kThreadsX, kClassEach = kSlice / kThreadsY;  // of a thread
constexpr float kNoMaximum = -3e38f;                                             // below every exponent but -inf

struct DeviceScale {
    double a, b;  // to mass 1
    float mass;   // of the result
    int empty;
};

struct DeviceState {
    float least;  // smallest cost
    int in_log, stopped;
    int64_t iterations;
    unsigned long long guards;
};

struct DeviceArrays {
    // inputs
    const void* cost;  // [N, M] cost_type
    const float* a;    // [C, N]
    const float* b;    // [C, M], [M] or null
    DType cost_type;
    bool b_per_class, exact_iters, normalize;
    int64_t rows, columns, classes;
    float epsilon, inverse_epsilon;
    double wide_epsilon, tol;
    // workspace
    DeviceState* state;
    DeviceScale* scales;            // [C]
    float* matrix;                  // [N, M] E
    float *mu, *row_sums;           // [C, N]; log: log mu, log K nu
    float *nu, *column_sums;        // [C, M]; log: log nu, log K^T mu
    float *partial_top, *partials;  // [splits, C, N or M] largest exponents (log), sums
    float *lows, *highs;            // [kSpreadBlocks]
    double* partial_errors;         // [C, row blocks]
    float* paid;                    // [C, N], plan_cost only
    int row_blocks;
};

__device__ __forceinline__ float unit_a(const DeviceArrays& d, int64_t c, int64_t i) {
    return static_cast<float>(d.a[c * d.rows + i] * d.scales[c].a);
}
__device__ __forceinline__ float unit_b(const DeviceArrays& d, int64_t c, int64_t j) {
    if (d.b == nullptr) return static_cast<float>(d.scales[c].b);
    return static_cast<float>(d.b[(d.b_per_class ? c * d.columns : 0) + j] * d.scales[c].b);
}
__device__ __forceinline__ float load_cost(const DeviceArrays& d, int64_t at) {
    switch (d.cost_type) {
        case DType::kFloat64:
            return static_cast<float>(static_cast<const double*>(d.cost)[at]);
        case DType::kFloat16:
            return widen(static_cast<const Half*>(d.cost)[at]);
        case DType::kBFloat16:
            return widen(static_cast<const BFloat*>(d.cost)[at]);
        default:
            return static_cast<const float*>(d.cost)[at];
    }
}

// Where a block and its threads stand. grid: (outer tiles, slices, splits); block: (kThreadsX, kThreadsY).
template <bool kColumns>
struct Place {
    int64_t outer, inner;                          // extents
    int64_t first_outer, first_class, begin, end;  // of the block: outer and class origins, inner range
    int classes;                                   // of the slice

    __device__ Place(const DeviceArrays& d, int64_t per_split)
        : outer(kColumns ? d.columns : d.rows),
          inner(kColumns ? d.rows : d.columns),
          first_outer(static_cast<int64_t>(blockIdx.x) * kOuter),
          first_class(static_cast<int64_t>(blockIdx.y) * kSlice),
          begin(static_cast<int64_t>(blockIdx.z) * per_split),
          end(begin + per_split < inner ? begin + per_split : inner),
          classes(static_cast<int>(d.classes - first_class < kSlice ? d.classes - first_class : kSlice)) {}
    // Offset in E of row or column `o` of the block and inner index k.
    __device__ int64_t at(const DeviceArrays& d, int o, int64_t k) const {
        return kColumns ? k * d.columns + first_outer + o : (first_outer + o) * d.columns + k;
    }
};

// A chunk of E, or of cost x K with `paid`, as [inner][outer]; `beyond` outside.
template <bool kColumns>
__device__ __forceinline__ void load_tile(const DeviceArrays& d, const Place<kColumns>& place, int64_t first, bool paid,
                                          float beyond, float (&tile)[kChunk][kOuter + 1]) {
    for (int e = thread_in_block(); e < kChunk * kOuter; e += kThreadsX * kThreadsY) {
        const int o = kColumns ? e % kOuter : e / kChunk, k = kColumns ? e / kOuter : e % kChunk;
        float value = beyond;
        if (first + k < place.end && place.first_outer + o < place.outer) {
            const int64_t at = place.at(d, o, first + k);
            value = d.matrix[at];
            if (paid) value *= load_cost(d, at);
        }
        tile[k][o] = value;
    }
}

// A chunk of vectors [C, inner] as [inner][class]; `beyond` outside.
template <bool kColumns>
__device__ __forceinline__ void load_weights(const float* vectors, const Place<kColumns>& place, int64_t first,
                                             float beyond, float (&weights)[kChunk][kSlice + 1]) {
    for (int e = thread_in_block(); e < kChunk * kSlice; e += kThreadsX * kThreadsY) {
        const int k = e % kChunk, c = e / kChunk;
        const bool inside = first + k < place.end && c < place.classes;
        weights[k][c] = inside ? vectors[(place.first_class + c) * place.inner + first + k] : beyond;
    }
}

template <bool kColumns, class Fn>
__device__ __forceinline__ void for_each_sum(const Place<kColumns>& place, const Fn& fn) {
#pragma unroll
    for (int u = 0; u < kOuterEach; ++u) {
#pragma unroll
        for (int v = 0; v < kClassEach; ++v) {
            const int o = static_cast<int>(threadIdx.x) + u * kThreadsX,
                      c = static_cast<int>(threadIdx.y) + v * kThreadsY;
            if (c < place.classes && place.first_outer + o < place.outer) fn(u, v, o, c);
        }
    }
}

// Parts of sum_j E_ij nu_cj (kColumns: sum_i E_ij mu_ci), or of the logarithm of the sum of exp(E + log).
template <bool kColumns>
__global__ void __launch_bounds__(kThreadsX* kThreadsY)
    product_kernel(const DeviceArrays d, const int64_t per_split, const bool always) {
    if (d.state->stopped != 0 && !always) return;
    GPU_SHARED(float, tile, [kChunk][kOuter + 1]);
    GPU_SHARED(float, weights, [kChunk][kSlice + 1]);
    const bool in_log = d.state->in_log != 0;
    const Place<kColumns> place(d, per_split);
    const float minus_infinity = __int_as_float(static_cast<int>(0xff800000u));
    float sum[kOuterEach][kClassEach] = {}, top[kOuterEach][kClassEach];
#pragma unroll
    for (int u = 0; u < kOuterEach; ++u) {
#pragma unroll
        for (int v = 0; v < kClassEach; ++v) top[u][v] = kNoMaximum;
    }
    for (int64_t first = place.begin; first < place.end; first += kChunk) {
        __syncthreads();  // the last chunk has been read
        load_tile(d, place, first, false, in_log ? minus_infinity : 0.0f, tile);
        load_weights(kColumns ? d.mu : d.nu, place, first, 0.0f, weights);
        __syncthreads();
        for (int k = 0; k < kChunk; ++k) {
            for_each_sum(place, [&](int u, int v, int o, int c) {
                const float e = tile[k][o], w = weights[k][c];
                if (!in_log) {
                    sum[u][v] += e * w;
                    return;
                }
                const float exponent = e + w, above = exponent - top[u][v], factor = expf(-fabsf(above));
                sum[u][v] = above > 0.0f ? sum[u][v] * factor + 1.0f : sum[u][v] + factor;
                top[u][v] = fmaxf(top[u][v], exponent);
            });
        }
    }
    for_each_sum(place, [&](int u, int v, int o, int c) {
        const int64_t at = (static_cast<int64_t>(blockIdx.z) * d.classes + place.first_class + c) * place.outer +
                           place.first_outer + o;
        d.partials[at] = sum[u][v];
        if (in_log) d.partial_top[at] = top[u][v];
    });
}

// The sum of the parts; in the log domain its logarithm.
__device__ __forceinline__ float add_parts(const DeviceArrays& d, int64_t at, int64_t stride, int splits, bool in_log) {
    if (!in_log) {
        float sum = 0.0f;
        for (int z = 0; z < splits; ++z) sum += d.partials[z * stride + at];
        return sum;
    }
    float top = kNoMaximum, sum = 0.0f;
    for (int z = 0; z < splits; ++z) top = fmaxf(top, d.partial_top[z * stride + at]);
    for (int z = 0; z < splits; ++z) sum += d.partials[z * stride + at] * expf(d.partial_top[z * stride + at] - top);
    return top + logf(sum);
}

// Parts of sum_i cost_ij plan_ij (kColumns) or sum_j cost_ij plan_ij, up to the factor of the outer index.
template <bool kColumns>
__global__ void __launch_bounds__(kThreadsX* kThreadsY) readout_kernel(const DeviceArrays d, const int64_t per_split) {
    GPU_SHARED(float, tile, [kChunk][kOuter + 1]);
    GPU_SHARED(float, weights, [kChunk][kSlice + 1]);
    GPU_SHARED(float, masses, [kChunk][kSlice + 1]);
    const bool in_log = d.state->in_log != 0;
    const Place<kColumns> place(d, per_split);
    const float* plain = kColumns ? d.mu : d.nu;
    const float* inner_log = kColumns ? d.mu : d.column_sums;
    const float* outer_log = kColumns ? d.column_sums : d.mu;
    float sum[kOuterEach][kClassEach] = {}, outer[kOuterEach][kClassEach] = {};
    for_each_sum(place, [&](int u, int v, int o, int c) {
        if (in_log) outer[u][v] = outer_log[(place.first_class + c) * place.outer + place.first_outer + o];
    });
    for (int64_t first = place.begin; first < place.end; first += kChunk) {
        __syncthreads();  // the last chunk has been read
        load_tile(d, place, first, !in_log, 0.0f, tile);
        load_weights(in_log ? inner_log : plain, place, first, 0.0f, weights);
        for (int e = thread_in_block(); in_log && !kColumns && e < kChunk * kSlice; e += kThreadsX * kThreadsY) {
            const int k = e % kChunk, c = e / kChunk;
            const bool inside = first + k < place.end && c < place.classes;
            masses[k][c] = inside ? unit_b(d, place.first_class + c, first + k) : 0.0f;
        }
        __syncthreads();
        const int used = static_cast<int>(place.end - first < kChunk ? place.end - first : kChunk);
        for (int k = 0; k < used; ++k) {
            for_each_sum(place, [&](int u, int v, int o, int c) {
                const float e = tile[k][o], w = weights[k][c];
                if (!in_log) {
                    sum[u][v] += e * w;
                    return;
                }
                // x + log mu_i - S_j: no exponent is above zero but by rounding.
                const float exponent = kColumns ? (e + w) - outer[u][v] : (e + outer[u][v]) - w;
                const float share = expf(fminf(exponent, 0.0f)) * (kColumns ? 1.0f : masses[k][c]);
                sum[u][v] += (d.state->least - d.epsilon * e) * share;
            });
        }
    }
    for_each_sum(place, [&](int u, int v, int o, int c) {
        const int64_t at = (static_cast<int64_t>(blockIdx.z) * d.classes + place.first_class + c) * place.outer +
                           place.first_outer + o;
        d.partials[at] = sum[u][v];
    });
}

}  // namespace
}  // namespace ovs
