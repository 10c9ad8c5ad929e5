// What mean field does to pixels on a GPU: planes of scores to rows of logits, the update of Q, rows to planes.
#pragma once
#include <cstdint>

#include "common/launch.cuh"
#include "common/reduce.cuh"
#include "crf/crf_cuda_rows.cuh"

namespace ovs {
namespace {

constexpr double kPadLogit = -3e38;  // of the classes that pad a row: below every clamped energy, so Q is 0 there
constexpr double kLargestEnergy = 1e30;
constexpr int kTile = 32;     // pixels and classes that are turned together
constexpr int kTileRows = 8;  // threads along a tile's other side
constexpr int kMostHeld = 2;  // packs that a lane keeps in registers

__device__ __forceinline__ float exp_of(float x) { return expf(x); }
__device__ __forceinline__ double exp_of(double x) { return exp(x); }
__device__ __forceinline__ float log_of(float x) { return logf(x); }
__device__ __forceinline__ double log_of(double x) { return log(x); }

template <class T>
__device__ __forceinline__ T logit_of(T score, bool energies, T clip) {
    constexpr T kLargest = static_cast<T>(kLargestEnergy);
    if (energies) return !(score < kLargest) ? -kLargest : score > -kLargest ? -score : kLargest;
    const T most = score < T(1) ? score : score >= T(1) ? T(1) : clip;  // NaN: clip
    return log_of(most > clip ? most : clip);
}

// scores [C, N] to rows [N, pitch]. blockIdx: x tiles of pixels, y tiles of classes; block: kTile x kTileRows.
template <class T>
__global__ void logits_kernel(const T* scores, int64_t num_classes, int64_t num_points, bool energies, T clip, T* rows,
                              int64_t pitch) {
    GPU_SHARED(T, tile, [kTile][kTile + 1]);
    const int64_t pixels = blockIdx.x * static_cast<int64_t>(kTile);
    for (int64_t first = blockIdx.y * static_cast<int64_t>(kTile); first < pitch;
         first += gridDim.y * static_cast<int64_t>(kTile)) {
        for (int k = threadIdx.y; k < kTile; k += kTileRows) {
            const int64_t c = first + k, i = pixels + threadIdx.x;
            T logit = static_cast<T>(kPadLogit);
            if (c < num_classes && i < num_points) logit = logit_of(scores[c * num_points + i], energies, clip);
            tile[k][threadIdx.x] = logit;
        }
        __syncthreads();
        for (int k = threadIdx.y; k < kTile; k += kTileRows) {
            const int64_t c = first + threadIdx.x, i = pixels + k;
            if (c < pitch && i < num_points) rows[i * pitch + c] = tile[threadIdx.x][k];
        }
        __syncthreads();
    }
}

// The other way: rows [N, pitch] to planes [C, N].
template <class T>
__global__ void planes_kernel(const T* rows, int64_t pitch, int64_t num_classes, int64_t num_points, T* planes) {
    GPU_SHARED(T, tile, [kTile][kTile + 1]);
    const int64_t pixels = blockIdx.x * static_cast<int64_t>(kTile);
    for (int64_t first = blockIdx.y * static_cast<int64_t>(kTile); first < num_classes;
         first += gridDim.y * static_cast<int64_t>(kTile)) {
        for (int k = threadIdx.y; k < kTile; k += kTileRows) {
            const int64_t c = first + threadIdx.x, i = pixels + k;
            tile[k][threadIdx.x] = c < num_classes && i < num_points ? rows[i * pitch + c] : T(0);
        }
        __syncthreads();
        for (int k = threadIdx.y; k < kTile; k += kTileRows) {
            const int64_t c = first + k, i = pixels + threadIdx.x;
            if (c < num_classes && i < num_points) planes[c * num_points + i] = tile[threadIdx.x][k];
        }
        __syncthreads();
    }
}

// A term as the pixels see it. An exact Gaussian has a row for each pixel, and no vertices.
template <class T>
struct TermView {
    const int32_t* vertices;
    const T* weights;
    const T* rows;
    int corners;
};

template <class T>
__global__ void store_term_kernel(const TermView<T> term, TermView<T>* to) {
    *to = term;
}

template <class T>
struct Update {
    const T* logits;
    const TermView<T>* terms;
    int num_terms;
    int64_t num_points, pitch;
    T* q;          // null: labels only
    void* labels;  // null: Q only
    int label_bytes;
    int group;  // lanes of a pixel, a power of two
};

template <class T>
__device__ __forceinline__ Pack<T, kPack> logits_and_messages(const Update<T>& u, int64_t i, int64_t pack) {
    const int64_t column = pack * kPack;
    Pack<T, kPack> sum = pack_at<T, kPack>(u.logits + i * u.pitch + column);
    for (int m = 0; m < u.num_terms; ++m) {
        const TermView<T> t = u.terms[m];
        if (t.vertices == nullptr) {
            add(sum, T(1), pack_at<T, kPack>(t.rows + i * u.pitch + column));
            continue;
        }
#pragma unroll 3
        for (int r = 0; r < t.corners; ++r) {
            const int64_t e = i * t.corners + r;
            add(sum, t.weights[e], pack_at<T, kPack>(t.rows + t.vertices[e] * u.pitch + column));
        }
    }
    return sum;
}

template <class T>
__device__ __forceinline__ T group_max(T value, int group) {
    for (int offset = group / 2; offset > 0; offset /= 2) {
        const T other = __shfl_xor_sync(kFullMask, value, offset);
        value = other > value ? other : value;
    }
    return value;
}
template <class T>
__device__ __forceinline__ T group_sum(T value, int group) {
    for (int offset = group / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(kFullMask, value, offset);
    return value;
}

template <class T>
struct Best {
    T value;
    int64_t index;
};
template <class T>
__device__ __forceinline__ int64_t group_best(Best<T> best, int group) {
    for (int offset = group / 2; offset > 0; offset /= 2) {
        const Best<T> other = {__shfl_xor_sync(kFullMask, best.value, offset),
                               __shfl_xor_sync(kFullMask, best.index, offset)};
        if (other.value > best.value || (other.value == best.value && other.index < best.index)) best = other;
    }
    return best.index;
}

// kHeld: packs of a lane, kept in registers. 0: any number, kept in the rows of q.
template <class T, int kHeld>
__global__ void update_kernel(const Update<T> u) {
    const int64_t packs = u.pitch / kPack;
    const int lane = static_cast<int>(threadIdx.x) % u.group, mine = static_cast<int>(threadIdx.x) / u.group;
    const int64_t rows = kRowThreads / u.group;
    // A warp goes on while one of its pixels is inside: all its lanes take part in the shuffles.
    const int64_t begin = blockIdx.x * rows, stride = gridDim.x * rows;
    for (int64_t base = begin; base < u.num_points; base += stride) {
        const int64_t i = base + mine;
        const bool inside = i < u.num_points;
        Pack<T, kPack> held[kHeld > 0 ? kHeld : 1];
        T* const row = kHeld > 0 || !inside ? nullptr : u.q + i * u.pitch;
        const auto for_each = [&](const auto& fn) {
            if constexpr (kHeld > 0) {
#pragma unroll
                for (int k = 0; k < kHeld; ++k) {
                    if (inside && lane + k * u.group < packs) fn(held[k], int64_t{lane} + k * u.group);
                }
            } else {
                for (int64_t pack = lane; inside && pack < packs; pack += u.group) {
                    fn(pack_at<T, kPack>(row + pack * kPack), pack);
                }
            }
        };
        T top = static_cast<T>(kPadLogit);
        for_each([&](Pack<T, kPack>& p, int64_t pack) {
            const Pack<T, kPack> sum = logits_and_messages(u, i, pack);
#pragma unroll
            for (int k = 0; k < kPack; ++k) top = sum.v[k] > top ? sum.v[k] : top;
            p = sum;
        });
        top = group_max(top, u.group);
        T total = 0;
        for_each([&](Pack<T, kPack>& p, int64_t) {
#pragma unroll
            for (int k = 0; k < kPack; ++k) total += p.v[k] = exp_of(p.v[k] - top);
        });
        const T inverse = T(1) / group_sum(total, u.group);
        Best<T> best = {T(-1), 0};
        for_each([&](Pack<T, kPack>& p, int64_t pack) {
#pragma unroll
            for (int k = 0; k < kPack; ++k) {
                p.v[k] *= inverse;
                if (p.v[k] > best.value) best = {p.v[k], pack * kPack + k};
            }
            if (kHeld > 0 && u.q != nullptr) pack_at<T, kPack>(u.q + i * u.pitch + pack * kPack) = p;
        });
        if (u.labels == nullptr) continue;
        const int64_t label = group_best(best, u.group);
        if (!inside || lane != 0) continue;
        if (u.label_bytes == 1) {
            static_cast<uint8_t*>(u.labels)[i] = static_cast<uint8_t>(label);
        } else {
            static_cast<int32_t*>(u.labels)[i] = static_cast<int32_t>(label);
        }
    }
}

}  // namespace
}  // namespace ovs
