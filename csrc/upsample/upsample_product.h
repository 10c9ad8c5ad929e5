// Per level: rows of vectors, and the product of a narrow block with rows of lanes, out[g][lane] = sum_k a[k][g]
// b[k][lane].
#pragma once
#include "common/simd.h"
#include "upsample/upsample_cpu.h"

namespace ovs {
namespace OVS_ISA {
namespace {

template <class T>
constexpr int kLanes = kVectorBytes / sizeof(T);

// Vectors of lanes that a block of kBlockClasses is multiplied with at a time: the accumulators stay in registers, of
// which the widest level has 32 and the others 16.
constexpr int kMostVectors = kVectorBytes == 64 ? 4 : 2;

// Copies `count` numbers in whole vectors, the last one shifted back; shorter runs in shorter vectors.
template <class T, int N>
OVS_INLINE void copy_run_of(const T* from, T* to, int64_t count) {
    if constexpr (N == 1) {
        *to = *from;
    } else {
        using V = Vec<T, N>;
        if (count < N) {
            copy_run_of<T, N / 2>(from, to, count);
            return;
        }
        int64_t i = 0;
        for (; i + N <= count; i += N) store(to + i, load<V>(from + i));
        if (i < count) store(to + count - N, load<V>(from + count - N));
    }
}
template <class T>
OVS_INLINE void copy_run(const T* from, T* to, int64_t count) {
    copy_run_of<T, kLanes<T>>(from, to, count);
}
template <class T, int N>
OVS_INLINE void fill_run_of(T value, T* to, int64_t count) {
    if constexpr (N == 1) {
        *to = value;
    } else {
        using V = Vec<T, N>;
        if (count < N) {
            fill_run_of<T, N / 2>(value, to, count);
            return;
        }
        const V v = value - V{};
        int64_t i = 0;
        for (; i + N <= count; i += N) store(to + i, v);
        if (i < count) store(to + count - N, v);
    }
}
template <class T>
OVS_INLINE void fill_run(T value, T* to, int64_t count) {
    fill_run_of<T, kLanes<T>>(value, to, count);
}

// Stores past the caches, for lines that are written whole and not read soon: memory is not read first. `p` is aligned
// like V. Call finish_stream() before another thread may look.
template <class V, class T>
OVS_INLINE void stream(T* p, const V& v) {
#if defined(__GNUC__) && !defined(__clang__) && OVS_ISA_LEVEL >= 3
    if constexpr (sizeof(V) == 32) {
        __builtin_ia32_movntps256(reinterpret_cast<float*>(p), (Vec<float, 8>)v);
        return;
    }
#endif
    store(p, v);
}
OVS_INLINE void finish_stream() {
#if defined(__GNUC__) && !defined(__clang__) && OVS_ISA_LEVEL >= 3
    __builtin_ia32_sfence();
#endif
}

// The left factor: `rows` runs of `columns` steps each, kBlockClasses numbers to a step.
template <class T>
struct Block {
    const T* data;
    int64_t row_stride;
    int64_t rows, columns;
};

template <class T, int kVectors, int kClasses>
void multiply_block(const Block<T>& a, const T* b, int64_t b_stride, T* out, int64_t out_stride) {
    using V = Vec<T, kLanes<T>>;
    V sum[kClasses][kVectors] = {};
    for (int64_t row = 0; row < a.rows; ++row) {
        const T* step = a.data + row * a.row_stride;
        for (int64_t column = 0; column < a.columns; ++column, step += kBlockClasses, b += b_stride) {
            V lanes[kVectors];
            OVS_UNROLL
            for (int v = 0; v < kVectors; ++v) lanes[v] = load<V>(b + v * kLanes<T>);
            OVS_UNROLL
            for (int g = 0; g < kClasses; ++g) {
                OVS_UNROLL
                for (int v = 0; v < kVectors; ++v) sum[g][v] += step[g] * lanes[v];
            }
        }
    }
    OVS_UNROLL
    for (int g = 0; g < kClasses; ++g) {
        OVS_UNROLL
        for (int v = 0; v < kVectors; ++v) store(out + g * out_stride + v * kLanes<T>, sum[g][v]);
    }
}

template <class T, int kVectors>
OVS_INLINE void multiply_vectors(int classes, const Block<T>& a, const T* b, int64_t b_stride, T* out,
                                 int64_t out_stride) {
    static_assert(kBlockClasses == 6, "one case for each number of classes");
    switch (classes) {
        case 1:
            return multiply_block<T, kVectors, 1>(a, b, b_stride, out, out_stride);
        case 2:
            return multiply_block<T, kVectors, 2>(a, b, b_stride, out, out_stride);
        case 3:
            return multiply_block<T, kVectors, 3>(a, b, b_stride, out, out_stride);
        case 4:
            return multiply_block<T, kVectors, 4>(a, b, b_stride, out, out_stride);
        case 5:
            return multiply_block<T, kVectors, 5>(a, b, b_stride, out, out_stride);
        default:
            return multiply_block<T, kVectors, 6>(a, b, b_stride, out, out_stride);
    }
}

// `lanes` is a multiple of kLanes; the first `classes` of a block.
template <class T>
void multiply(int classes, const Block<T>& a, const T* b, int64_t lanes, int64_t b_stride, T* out, int64_t out_stride) {
    int64_t lane = 0;
    for (; lane + kMostVectors * kLanes<T> <= lanes; lane += kMostVectors * kLanes<T>) {
        multiply_vectors<T, kMostVectors>(classes, a, b + lane, b_stride, out + lane, out_stride);
    }
    const int64_t rest = (lanes - lane) / kLanes<T>;
    if constexpr (kMostVectors == 4) {
        if (rest == 3) multiply_vectors<T, 3>(classes, a, b + lane, b_stride, out + lane, out_stride);
        if (rest == 2) multiply_vectors<T, 2>(classes, a, b + lane, b_stride, out + lane, out_stride);
    }
    if (rest == 1) multiply_vectors<T, 1>(classes, a, b + lane, b_stride, out + lane, out_stride);
}

}  // namespace
}  // namespace OVS_ISA
}  // namespace ovs
