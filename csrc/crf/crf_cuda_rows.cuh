// Rows of classes through a lattice on a GPU: splat, blur, slice.
//
// A row holds the classes of a pixel or of a vertex, innermost and padded to a multiple of four. Neighbouring threads
// work on it with a pack of four classes each: loads and stores are whole sectors, also where rows are gathered. The
// same kernels with packs of one and no input give the response to ones.
//
// Splat gathers: the entries of a vertex are summed in their order, those of a vertex with many in segments of
// kSegment that are summed by other threads before, so that a large plain region does not wait for one thread.
#pragma once
#include <algorithm>
#include <cstdint>

#include "common/device.cuh"
#include "common/index.h"
#include "common/launch.cuh"
#include "crf/crf.h"
#include "crf/crf_math.h"

namespace ovs {
namespace {

constexpr int kPack = 4;  // classes of a thread
constexpr int kRowThreads = 256;
constexpr int64_t kMaxRowBlocks = 1 << 20;  // further rows are taken in a loop
constexpr int64_t kSegment = 64;            // entries

template <class T, int kLanes>
struct alignas(sizeof(T) * kLanes) Pack {
    T v[kLanes];
};

template <class T, int kLanes>
__device__ __forceinline__ Pack<T, kLanes> zero_pack() {
    Pack<T, kLanes> p;
#pragma unroll
    for (int k = 0; k < kLanes; ++k) p.v[k] = T(0);
    return p;
}
template <class T, int kLanes>
__device__ __forceinline__ const Pack<T, kLanes>& pack_at(const T* at) {
    return *reinterpret_cast<const Pack<T, kLanes>*>(at);
}
template <class T, int kLanes>
__device__ __forceinline__ Pack<T, kLanes>& pack_at(T* at) {
    return *reinterpret_cast<Pack<T, kLanes>*>(at);
}
template <class T, int kLanes>
__device__ __forceinline__ void add(Pack<T, kLanes>& sum, T weight, const Pack<T, kLanes>& p) {
#pragma unroll
    for (int k = 0; k < kLanes; ++k) sum.v[k] += weight * p.v[k];
}

// How a block's threads share rows of `packs` packs.
struct RowShape {
    int group;  // threads of a row
    int rows;   // rows of a block
    int64_t packs;

    explicit RowShape(int64_t num_packs)
        : group(static_cast<int>(std::min<int64_t>(num_packs, kRowThreads))),
          rows(kRowThreads / group),
          packs(num_packs) {}
    dim3 grid(int64_t count) const {
        return dim3(static_cast<unsigned>(std::min(ceil_div(std::max<int64_t>(count, 1), rows), kMaxRowBlocks)));
    }
};

// fn(row, pack) for this thread's packs of the rows 0 .. count - 1.
template <class Fn>
__device__ __forceinline__ void for_each_pack(const RowShape& shape, int64_t count, const Fn& fn) {
    const int mine = static_cast<int>(threadIdx.x) / shape.group, lane = static_cast<int>(threadIdx.x) % shape.group;
    if (mine >= shape.rows) return;
    const int64_t stride = gridDim.x * static_cast<int64_t>(shape.rows);
    for (int64_t row = blockIdx.x * static_cast<int64_t>(shape.rows) + mine; row < count; row += stride) {
        for (int64_t pack = lane; pack < shape.packs; pack += shape.group) fn(row, pack);
    }
}

// fn(item) for this thread's share of 0 .. count - 1.
template <class Fn>
__device__ __forceinline__ void for_each_item(int64_t count, const Fn& fn) {
    const int64_t stride = gridDim.x * static_cast<int64_t>(kRowThreads);
    for (int64_t k = blockIdx.x * static_cast<int64_t>(kRowThreads) + threadIdx.x; k < count; k += stride) fn(k);
}
inline dim3 grid_for(int64_t items) { return RowShape(1).grid(items); }

// A built lattice as kernels see it.
template <class T>
struct LatticeView {
    const int32_t *count, *vertices, *starts, *points, *neighbours;
    T *weights, *entry_weights;
    int64_t room;  // rows of vertices; the row behind them is zero: what is not there
    int64_t num_points;
    int corners;

    LatticeView(const CrfTerm& t, int64_t points_of_image)
        : count(t.count),
          vertices(t.vertices),
          starts(t.starts),
          points(t.points),
          neighbours(t.neighbours),
          weights(static_cast<T*>(t.weights)),
          entry_weights(static_cast<T*>(t.entry_weights)),
          room(t.num_vertices),
          num_points(points_of_image),
          corners(t.num_features + 1) {}
    int64_t num_entries() const { return num_points * corners; }
    int64_t num_segments() const { return num_entries() / kSegment; }
};

// whole[s] <- 1 for the segments of the entries that belong to one vertex; the others are 0 before.
template <class T>
__global__ void segments_kernel(const LatticeView<T> lattice, uint8_t* whole) {
    for_each_item(*lattice.count, [&](int64_t v) {
        const int64_t last = lattice.starts[v + 1] / kSegment;
        for (int64_t s = ceil_div(lattice.starts[v], kSegment); s < last; ++s) whole[s] = 1;
    });
}

// The entries begin .. end - 1, of rows of points, or of ones for a null `q`.
template <class T, int kLanes>
__device__ __forceinline__ void sum_entries(const LatticeView<T>& lattice, const T* q, int64_t pitch, int64_t column,
                                            int64_t begin, int64_t end, Pack<T, kLanes>& sum) {
#pragma unroll 4
    for (int64_t k = begin; k < end; ++k) {
        const T weight = lattice.entry_weights[k];
        if (q == nullptr) {
            sum.v[0] += weight;
        } else {
            add(sum, weight, pack_at<T, kLanes>(q + lattice.points[k] * pitch + column));
        }
    }
}

template <class T, int kLanes>
__global__ void segment_sums_kernel(const RowShape shape, const LatticeView<T> lattice, const uint8_t* whole,
                                    int64_t num_segments, const T* q, T* partial, int64_t pitch) {
    for_each_pack(shape, num_segments, [&](int64_t s, int64_t pack) {
        if (whole[s] == 0) return;
        Pack<T, kLanes> sum = zero_pack<T, kLanes>();
        sum_entries(lattice, q, pitch, pack * kLanes, s * kSegment, (s + 1) * kSegment, sum);
        pack_at<T, kLanes>(partial + s * pitch + pack * kLanes) = sum;
    });
}

// Also makes the row of what is not there, in both buffers of the blur.
template <class T, int kLanes>
__global__ void splat_kernel(const RowShape shape, const LatticeView<T> lattice, const T* q, const T* partial, T* to,
                             T* other, int64_t pitch) {
    const int64_t count = *lattice.count;
    for_each_pack(shape, count + 1, [&](int64_t v, int64_t pack) {
        const int64_t column = pack * kLanes;
        Pack<T, kLanes> sum = zero_pack<T, kLanes>();
        if (v == count) {
            pack_at<T, kLanes>(to + lattice.room * pitch + column) = sum;
            pack_at<T, kLanes>(other + lattice.room * pitch + column) = sum;
            return;
        }
        const int64_t begin = lattice.starts[v], end = lattice.starts[v + 1];
        const int64_t first = ceil_div(begin, kSegment), last = end / kSegment;
        if (first >= last) {
            sum_entries(lattice, q, pitch, column, begin, end, sum);
        } else {
            sum_entries(lattice, q, pitch, column, begin, first * kSegment, sum);
#pragma unroll 4
            for (int64_t s = first; s < last; ++s) add(sum, T(1), pack_at<T, kLanes>(partial + s * pitch + column));
            sum_entries(lattice, q, pitch, column, last * kSegment, end, sum);
        }
        pack_at<T, kLanes>(to + v * pitch + column) = sum;
    });
}

template <class T, int kLanes>
__global__ void blur_kernel(const RowShape shape, const LatticeView<T> lattice, int axis, const T* from, T* to,
                            int64_t pitch) {
    const int32_t* const pairs = lattice.neighbours + axis * lattice.room * 2;
    for_each_pack(shape, *lattice.count, [&](int64_t v, int64_t pack) {
        const T* const column = from + pack * kLanes;
        const Pack<int32_t, 2> pair = pack_at<int32_t, 2>(pairs + 2 * v);
        Pack<T, kLanes> near = pack_at<T, kLanes>(column + pair.v[0] * pitch);
        add(near, T(1), pack_at<T, kLanes>(column + pair.v[1] * pitch));
        Pack<T, kLanes> sum = pack_at<T, kLanes>(column + v * pitch);
        add(sum, T(0.5), near);
        pack_at<T, kLanes>(to + v * pitch + pack * kLanes) = sum;
    });
}

// out: [N, columns].
template <class T, int kLanes>
__global__ void slice_kernel(const RowShape shape, const LatticeView<T> lattice, const T* rows, int64_t pitch, T factor,
                             T* out, int64_t columns) {
    for_each_pack(shape, lattice.num_points, [&](int64_t i, int64_t pack) {
        Pack<T, kLanes> sum = zero_pack<T, kLanes>();
#pragma unroll 3
        for (int r = 0; r < lattice.corners; ++r) {
            const int64_t e = i * lattice.corners + r;
            add(sum, lattice.weights[e], pack_at<T, kLanes>(rows + lattice.vertices[e] * pitch + pack * kLanes));
        }
#pragma unroll
        for (int k = 0; k < kLanes; ++k) {
            if (pack * kLanes + k < columns) out[i * columns + pack * kLanes + k] = factor * sum.v[k];
        }
    });
}

// The factors of a normalisation into the weights: `before` into those of the entries, `after` times `factor` into
// those of the points. norm: [N], or null without powers.
template <class T>
__global__ void scale_points_kernel(const LatticeView<T> lattice, const T* norm, int power, double factor) {
    for_each_item(lattice.num_points, [&](int64_t i) {
        const double n = power == 0 ? 1.0 : static_cast<double>(norm[i]);
        const T scale = static_cast<T>(factor * norm_factor(n, power));
        for (int r = 0; r < lattice.corners; ++r) lattice.weights[i * lattice.corners + r] *= scale;
    });
}

template <class T>
__global__ void scale_entries_kernel(const LatticeView<T> lattice, const T* norm, int power) {
    for_each_item(lattice.starts[*lattice.count], [&](int64_t k) {
        lattice.entry_weights[k] *= static_cast<T>(norm_factor(static_cast<double>(norm[lattice.points[k]]), power));
    });
}

// Rows through a lattice. All launches of one call see the same buffers.
template <class T>
class LatticeRows {
public:
    LatticeRows(const LatticeView<T>& lattice, const uint8_t* whole, T* partial, cudaStream_t stream)
        : lattice_(lattice), whole_(whole), partial_(partial), stream_(stream) {}

    // Once, before anything else; `whole` is written.
    void find_segments(uint8_t* whole) const {
        if (lattice_.num_segments() == 0) return;
        OVS_CUDA(cudaMemsetAsync(whole, 0, static_cast<std::size_t>(lattice_.num_segments()), stream_));
        launch(segments_kernel<T>, grid_for(lattice_.room), dim3(kRowThreads), 0, stream_, lattice_, whole);
        OVS_CHECK_LAUNCH("permutohedral_filter: segments");
    }

    // q: [N, pitch], or null for ones. Splat and blur; the result is in `to`, `other` is used up.
    template <int kLanes>
    void spread(const T* q, int64_t pitch, bool reverse, T* to, T* other) const {
        const RowShape shape(pitch / kLanes);
        if (lattice_.corners % 2 != 0) std::swap(to, other);
        const dim3 block(kRowThreads);
        if (lattice_.num_segments() > 0) {
            launch(segment_sums_kernel<T, kLanes>, shape.grid(lattice_.num_segments()), block, 0, stream_, shape,
                   lattice_, whole_, lattice_.num_segments(), q, partial_, pitch);
            OVS_CHECK_LAUNCH("permutohedral_filter: segment sums");
        }
        launch(splat_kernel<T, kLanes>, shape.grid(lattice_.room + 1), block, 0, stream_, shape, lattice_, q,
               static_cast<const T*>(partial_), to, other, pitch);
        OVS_CHECK_LAUNCH("permutohedral_filter: splat");
        for (int step = 0; step < lattice_.corners; ++step) {
            const int axis = reverse ? lattice_.corners - 1 - step : step;
            launch(blur_kernel<T, kLanes>, shape.grid(lattice_.room), block, 0, stream_, shape, lattice_, axis,
                   static_cast<const T*>(to), other, pitch);
            OVS_CHECK_LAUNCH("permutohedral_filter: blur");
            std::swap(to, other);
        }
    }

    template <int kLanes>
    void slice(const T* rows, int64_t pitch, double factor, T* out, int64_t columns) const {
        const RowShape shape(ceil_div(columns, kLanes));
        launch(slice_kernel<T, kLanes>, shape.grid(lattice_.num_points), dim3(kRowThreads), 0, stream_, shape, lattice_,
               rows, pitch, static_cast<T>(factor), out, columns);
        OVS_CHECK_LAUNCH("permutohedral_filter: slice");
    }

    // `factor`, 1 / (1 + 2^-D) and the factors of the normalisation into the weights. norm [N] and ones are scratch.
    void normalize(Normalization normalization, bool transpose, double factor, T* norm, T* const (&ones)[2]) const {
        const double alpha = lattice_alpha(lattice_.corners - 1);
        if (normalization != Normalization::kNone) {
            spread<1>(nullptr, 1, false, ones[0], ones[1]);
            slice<1>(ones[0], 1, alpha, norm, 1);
        }
        const NormPowers powers = norm_powers(static_cast<int>(normalization), transpose);
        const dim3 block(kRowThreads);
        launch(scale_points_kernel<T>, grid_for(lattice_.num_points), block, 0, stream_, lattice_,
               static_cast<const T*>(norm), powers.after, factor * alpha);
        OVS_CHECK_LAUNCH("permutohedral_filter: scale points");
        if (powers.before == 0) return;
        launch(scale_entries_kernel<T>, grid_for(lattice_.num_entries()), block, 0, stream_, lattice_,
               static_cast<const T*>(norm), powers.before);
        OVS_CHECK_LAUNCH("permutohedral_filter: scale entries");
    }

private:
    LatticeView<T> lattice_;
    const uint8_t* whole_;
    T* partial_;
    cudaStream_t stream_;
};

}  // namespace
}  // namespace ovs
