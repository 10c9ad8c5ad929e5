// Rows of classes through a lattice on a CPU: splat, blur, slice; included per instruction-set level.
//
// A row holds the classes of a pixel or of a vertex, innermost and padded to whole vectors, so that each step is a sum
// of scaled rows kept in registers. Splat gathers: the entries of a vertex are its points in ascending order, so no two
// threads write to one row and the sums have one order.
#pragma once
#include "crf/crf_cpu.h"
#include "crf/crf_lattice.h"

namespace ovs {
namespace OVS_ISA {
namespace {

constexpr int64_t kVertexBlock = 512;  // rows of an item of work
constexpr int64_t kPixelBlock = 256;
constexpr int kMaxTile = 4;        // vectors of a row that are summed at a time
constexpr int32_t kSegment = 256;  // entries of a vertex that are summed by themselves: keeps long sums accurate

template <int kValue>
struct Count {
    static constexpr int value = kValue;
};

template <class T>
struct Rows {
    static constexpr int kLanes = kVectorBytes / sizeof(T) < kClassGranule ? kVectorBytes / sizeof(T) : kClassGranule;
    using V = Vec<T, kLanes>;

    // Calls fn(Count<vectors>, first class) for the tiles of a row.
    template <class Fn>
    OVS_INLINE static void for_each_tile(int64_t pitch, const Fn& fn) {
        int64_t vectors = pitch / kLanes, c = 0;
        for (; vectors >= kMaxTile; vectors -= kMaxTile, c += kMaxTile * kLanes) fn(Count<kMaxTile>{}, c);
        switch (vectors) {
            case 3:
                return fn(Count<3>{}, c);
            case 2:
                return fn(Count<2>{}, c);
            case 1:
                return fn(Count<1>{}, c);
            default:
                return;
        }
    }

    template <int kTile>
    OVS_INLINE static void add_row(V (&sum)[kTile], T weight, const T* row) {
        OVS_UNROLL
        for (int k = 0; k < kTile; ++k) sum[k] += weight * load<V>(row + k * kLanes);
    }
    template <int kTile>
    OVS_INLINE static void store_row(T* row, const V (&sum)[kTile]) {
        OVS_UNROLL
        for (int k = 0; k < kTile; ++k) store(row + k * kLanes, sum[k]);
    }
};

// A built lattice, and the rows of its vertices. Row V is zero: the neighbour that is not there.
template <class T>
class LatticeRows {
public:
    LatticeRows(const CrfTerm& t, T* at, T* next, int64_t pitch, int threads)
        : t_(t), at_(at), next_(next), pitch_(pitch), threads_(threads) {
        std::fill_n(at_ + t.num_vertices * pitch, pitch, T(0));
        std::fill_n(next_ + t.num_vertices * pitch, pitch, T(0));
    }

    const T* rows() const { return at_; }

    // From rows of points; the weights of the entries hold the factors `before`.
    void splat(const T* q) {
        const T* const weights = static_cast<const T*>(t_.entry_weights);
        for_each_block(t_.num_vertices, kVertexBlock, threads_, [&](int64_t begin, int64_t end) {
            R::for_each_tile(pitch_, [&](auto tile, int64_t c) {
                constexpr int kTile = decltype(tile)::value;
                for (int64_t v = begin; v < end; ++v) {
                    typename R::V sum[kTile] = {};
                    for (int64_t e = t_.starts[v]; e < t_.starts[v + 1]; e += kSegment) {
                        typename R::V part[kTile] = {};
                        const int64_t stop = std::min<int64_t>(t_.starts[v + 1], e + kSegment);
                        for (int64_t k = e; k < stop; ++k) {
                            R::add_row(part, weights[k], q + t_.points[k] * pitch_ + c);
                        }
                        OVS_UNROLL
                        for (int k = 0; k < kTile; ++k) sum[k] += part[k];
                    }
                    R::store_row(at_ + v * pitch_ + c, sum);
                }
            });
        });
    }

    void blur(bool reverse) {
        for (int step = 0; step <= t_.num_features; ++step) blur_axis(reverse ? t_.num_features - step : step);
    }

    // A compatibility of one or two axes: every row times `factors`.
    void multiply(const T* factors, int rank, int64_t num_classes) {
        for_each_block(t_.num_vertices, kVertexBlock, threads_, [&](int64_t begin, int64_t end) {
            for (int64_t v = begin; v < end; ++v) {
                multiply_row(at_ + v * pitch_, next_ + v * pitch_, factors, rank, num_classes, pitch_);
            }
        });
        std::swap(at_, next_);
    }

    static void multiply_row(const T* in, T* out, const T* factors, int rank, int64_t num_classes, int64_t pitch) {
        std::fill_n(out, pitch, T(0));
        if (rank == 1) {
            for (int64_t c = 0; c < num_classes; ++c) out[c] = factors[c] * in[c];
            return;
        }
        for (int64_t k = 0; k < num_classes; ++k) {  // symmetric: its row k is its column k
            for (int64_t c = 0; c < num_classes; ++c) out[c] += in[k] * factors[k * num_classes + c];
        }
    }

private:
    using R = Rows<T>;

    void blur_axis(int axis) {
        const int32_t* const pairs = t_.neighbours + axis * t_.num_vertices * 2;
        for_each_block(t_.num_vertices, kVertexBlock, threads_, [&](int64_t begin, int64_t end) {
            R::for_each_tile(pitch_, [&](auto tile, int64_t c) {
                constexpr int kTile = decltype(tile)::value;
                for (int64_t v = begin; v < end; ++v) {
                    typename R::V sum[kTile] = {};
                    R::add_row(sum, T(1), at_ + pairs[2 * v] * pitch_ + c);
                    R::add_row(sum, T(1), at_ + pairs[2 * v + 1] * pitch_ + c);
                    OVS_UNROLL
                    for (int k = 0; k < kTile; ++k) {
                        sum[k] = load<typename R::V>(at_ + v * pitch_ + c + k * R::kLanes) + T(0.5) * sum[k];
                    }
                    R::store_row(next_ + v * pitch_ + c, sum);
                }
            });
        });
        std::swap(at_, next_);
    }

    const CrfTerm& t_;
    T *at_, *next_;
    int64_t pitch_;
    int threads_;
};

// The response of a lattice to ones: norm [N].
template <class T>
void lattice_norm(const CrfTerm& t, int64_t num_points, T* (&at)[2], T* norm, int threads) {
    const int64_t count = t.num_vertices;
    const T* const entry_weights = static_cast<const T*>(t.entry_weights);
    at[0][count] = at[1][count] = T(0);
    for_each_block(count, kVertexBlock, threads, [&](int64_t begin, int64_t end) {
        for (int64_t v = begin; v < end; ++v) {
            double sum = 0.0;
            for (int32_t e = t.starts[v]; e < t.starts[v + 1]; ++e) sum += static_cast<double>(entry_weights[e]);
            at[0][v] = static_cast<T>(sum);
        }
    });
    for (int axis = 0; axis <= t.num_features; ++axis) {
        const int32_t* const pairs = t.neighbours + axis * count * 2;
        const T* const in = at[axis % 2];
        T* const out = at[1 - axis % 2];
        for_each_block(count, 8 * kVertexBlock, threads, [&](int64_t begin, int64_t end) {
            for (int64_t v = begin; v < end; ++v) out[v] = in[v] + T(0.5) * (in[pairs[2 * v]] + in[pairs[2 * v + 1]]);
        });
    }
    const T* const rows = at[(t.num_features + 1) % 2];
    const T* const weights = static_cast<const T*>(t.weights);
    const int corners = t.num_features + 1;
    const T alpha = static_cast<T>(lattice_alpha(t.num_features));
    for_each_block(num_points, 8 * kPixelBlock, threads, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            T sum = 0;
            for (int r = 0; r < corners; ++r) sum += weights[i * corners + r] * rows[t.vertices[i * corners + r]];
            norm[i] = alpha * sum;
        }
    });
}

// Moves the factors of a normalisation into the weights: `before` into those of the entries, `after` times `scale` and
// alpha into those of the points.
template <class T>
void scale_weights(const CrfTerm& t, int64_t num_points, const T* norm, const NormPowers& powers, double scale,
                   int threads) {
    T* const entry_weights = static_cast<T*>(t.entry_weights);
    T* const weights = static_cast<T*>(t.weights);
    const int corners = t.num_features + 1;
    const double factor = scale * lattice_alpha(t.num_features);
    for_each_block(num_points, 8 * kPixelBlock, threads, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            const double n =
                powers.after == 0 ? 1.0 : static_cast<double>(norm[i]);  // without powers there are no norms
            const T after = static_cast<T>(factor * norm_factor(n, powers.after));
            for (int r = 0; r < corners; ++r) weights[i * corners + r] *= after;
        }
    });
    if (powers.before == 0) return;
    for_each_block(t.starts[t.num_vertices], 16 * kPixelBlock, threads, [&](int64_t begin, int64_t end) {
        for (int64_t e = begin; e < end; ++e) {
            entry_weights[e] *= static_cast<T>(norm_factor(static_cast<double>(norm[t.points[e]]), powers.before));
        }
    });
}

}  // namespace
}  // namespace OVS_ISA
}  // namespace ovs
