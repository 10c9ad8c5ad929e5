// Rows of classes through a lattice on a CPU: splat, blur, slice; included per instruction-set level.
//
// A row holds the classes of a pixel or of a vertex, innermost and padded to whole vectors, so that each step is a sum
// of scaled rows kept in registers. crf_tiles.h says where the rows of the vertices lie.
#pragma once
#include "crf/crf_cpu.h"
#include "crf/crf_lattice.h"

namespace ovs {
namespace OVS_ISA {
namespace {

constexpr int64_t kVertexBlock = 512;  // rows of an item of work
constexpr int64_t kPixelBlock = 256;
constexpr int kMaxTile = 4;  // vectors of a row that are summed at a time

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
    OVS_INLINE static void load_row(V (&values)[kTile], const T* row) {
        OVS_UNROLL
        for (int k = 0; k < kTile; ++k) values[k] = load<V>(row + k * kLanes);
    }
    template <int kTile>
    OVS_INLINE static void store_row(T* row, const V (&values)[kTile]) {
        OVS_UNROLL
        for (int k = 0; k < kTile; ++k) store(row + k * kLanes, values[k]);
    }

    // Calls fn(corner); straight-line code for a number known beforehand.
    template <int kCorners, class Fn>
    OVS_INLINE static void for_each_corner(int corners, const Fn& fn) {
        if constexpr (kCorners > 0) {
            for_each_coordinate<kCorners>(fn);
        } else {
            for (int r = 0; r < corners; ++r) fn(r);
        }
    }

    // to = from + after * slice for points `begin` to `end` of a tile, kTile vectors of classes of each: rows of
    // `pitch`, those of `from` and `to` beginning with point `begin`.
    template <int kTile, int kCorners>
    OVS_INLINE static void slice(const TileTerm<T>& t, int64_t begin, int64_t end, int64_t pitch, const T* from, T* to,
                                 const T* in) {
        const int corners = kCorners > 0 ? kCorners : t.corners;
        const uint16_t* local = t.local + begin * corners;
        const T* weights = t.weights + begin * corners;
        for (int64_t k = begin; k < end; ++k, local += corners, weights += corners, from += pitch, to += pitch) {
            V part[kTile] = {}, sum[kTile];
            for_each_corner<kCorners>(
                corners, [&](int r) OVS_INLINE_LAMBDA { add_row(part, weights[r], in + local[r] * pitch); });
            load_row(sum, from);
            const T after = t.after[k];
            OVS_UNROLL
            for (int j = 0; j < kTile; ++j) sum[j] += after * part[j];
            store_row(to, sum);
        }
    }

    // Sends before * factors * q from points `begin` to `end` of a tile, whose factors and rows `q` begin there too.
    template <int kTile, int kCorners>
    OVS_INLINE static void splat(const TileTerm<T>& t, int64_t begin, int64_t end, int64_t pitch, const T* q,
                                 const T* factors, T* parts) {
        const int corners = kCorners > 0 ? kCorners : t.corners;
        const uint16_t* local = t.local + begin * corners;
        const T* weights = t.weights + begin * corners;
        for (int64_t k = begin; k < end; ++k, local += corners, weights += corners, q += pitch) {
            const T before = t.before[k] * factors[k - begin];
            V scaled[kTile];
            load_row(scaled, q);
            OVS_UNROLL
            for (int j = 0; j < kTile; ++j) scaled[j] *= before;
            for_each_corner<kCorners>(corners, [&](int r) OVS_INLINE_LAMBDA {
                T* const row = parts + local[r] * pitch;
                V sum[kTile];
                load_row(sum, row);
                OVS_UNROLL
                for (int j = 0; j < kTile; ++j) sum[j] += weights[r] * scaled[j];
                store_row(row, sum);
            });
        }
    }

    // The same for all classes; straight-line code for the lattices of positions and of positions and colours.
    static void slice(const TileTerm<T>& t, int64_t begin, int64_t end, int64_t pitch, const T* from, T* to) {
        for_each_tile(pitch, [&](auto vectors, int64_t c) {
            constexpr int kTile = decltype(vectors)::value;
            const bool whole = pitch == kTile * kLanes;
            if (t.corners == 3 && whole) return slice<kTile, 3>(t, begin, end, kTile * kLanes, from, to, t.in);
            if (t.corners == 6 && whole) return slice<kTile, 6>(t, begin, end, kTile * kLanes, from, to, t.in);
            slice<kTile, 0>(t, begin, end, pitch, from + c, to + c, t.in + c);
        });
    }
    static void splat(const TileTerm<T>& t, int64_t begin, int64_t end, int64_t pitch, const T* q, const T* factors) {
        for_each_tile(pitch, [&](auto vectors, int64_t c) {
            constexpr int kTile = decltype(vectors)::value;
            const bool whole = pitch == kTile * kLanes;
            if (t.corners == 3 && whole) return splat<kTile, 3>(t, begin, end, kTile * kLanes, q, factors, t.parts);
            if (t.corners == 6 && whole) return splat<kTile, 6>(t, begin, end, kTile * kLanes, q, factors, t.parts);
            splat<kTile, 0>(t, begin, end, pitch, q + c, factors, t.parts + c);
        });
    }
};

// A built lattice, and the rows of its vertices. Row V is zero: the neighbour that is not there.
template <class T>
class LatticeRows {
public:
    LatticeRows(const CrfTerm& t, CrfState<T>& s, int64_t pitch) : lattice_(t), t_(t), s_(s), pitch_(pitch) {}

    // Before the first splat.
    void start() {
        const int64_t count = lattice_.num_vertices;
        std::fill_n(s_.vertex_of, s_.num_rows, static_cast<int32_t>(count));
        for (int64_t v = 0; v < count; ++v) {
            for (int32_t e = lattice_.starts[v]; e < lattice_.starts[v + 1]; ++e) {
                s_.vertex_of[lattice_.rows[e]] = static_cast<int32_t>(v);
            }
        }
        std::fill_n(s_.at + count * pitch_, pitch_, T(0));
        std::fill_n(s_.next + count * pitch_, pitch_, T(0));
        s_.rows = lattice_.corners % 2 == 0 ? s_.at : s_.next;
    }

    // What tile `number` needs; `in` has room for its rows.
    TileTerm<T> tile(int64_t number, const Tile& tile, T* in) const {
        TileTerm<T> t;
        t.corners = lattice_.corners;
        t.local = lattice_.local + tile.first * t.corners;
        t.weights = static_cast<const T*>(t_.weights) + tile.first * t.corners;
        t.before = s_.before + tile.first;
        t.after = s_.after + tile.first;
        t.in = in;
        t.parts = s_.parts + lattice_.first_row(number) * pitch_;
        t.num_rows = lattice_.num_rows(number);
        return t;
    }

    void read_tile(int64_t number, const TileTerm<T>& t) const {
        const int32_t* const vertex_of = s_.vertex_of + lattice_.first_row(number);
        R::for_each_tile(pitch_, [&](auto vectors, int64_t c) {
            for (int64_t k = 0; k < t.num_rows; ++k) {
                typename R::V row[decltype(vectors)::value];
                R::load_row(row, s_.rows + vertex_of[k] * pitch_ + c);
                R::store_row(t.in + k * pitch_ + c, row);
            }
        });
    }
    void clear_tile(const TileTerm<T>& t) const { std::fill_n(t.parts, t.num_rows * pitch_, T(0)); }

    int64_t blocks() const { return ceil_div(lattice_.num_vertices, kVertexBlock); }
    int steps() const { return 1 + lattice_.corners + (t_.compat_rank > 0 ? 1 : 0); }

    // From the parts of the tiles to what the pixels read, in steps, each after all blocks of the one before: the sums
    // of the parts, then the blur along the axes in turn, then a compatibility of one or two axes.
    void step(int step, int64_t block, bool reverse, int64_t num_classes, T* scratch) {
        const int64_t begin = block * kVertexBlock, end = std::min(lattice_.num_vertices, begin + kVertexBlock);
        if (step == 0) return add_parts(begin, end);
        if (step > lattice_.corners) return multiply(begin, end, num_classes, scratch);
        const T* const in = step % 2 != 0 ? s_.at : s_.next;
        T* const out = step % 2 != 0 ? s_.next : s_.at;
        const int axis = reverse ? lattice_.corners - step : step - 1;
        blur(lattice_.neighbours + axis * lattice_.num_vertices * 2, in, out, begin, end);
        if (end == lattice_.num_vertices) std::fill_n(out + end * pitch_, pitch_, T(0));
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

    // Calls fn(Count<vectors>, Count<pitch>, first class) for the tiles of a row; a pitch of one tile is known
    // beforehand, other ones are given as 0.
    template <class Fn>
    OVS_INLINE void for_each_tile(const Fn& fn) const {
        R::for_each_tile(pitch_, [&](auto tile, int64_t c) {
            constexpr int kPitch = decltype(tile)::value * R::kLanes;
            if (pitch_ == kPitch) return fn(tile, Count<kPitch>{}, 0);
            fn(tile, Count<0>{}, c);
        });
    }

    void add_parts(int64_t begin, int64_t end) const {
        for_each_tile([&](auto tile, auto known, int64_t c) OVS_INLINE_LAMBDA {
            const int64_t pitch = decltype(known)::value > 0 ? decltype(known)::value : pitch_;
            constexpr int kTile = decltype(tile)::value;
            for (int64_t v = begin; v < end; ++v) {
                typename R::V sum[kTile] = {};
                for (int32_t e = lattice_.starts[v]; e < lattice_.starts[v + 1]; ++e) {
                    R::add_row(sum, T(1), s_.parts + lattice_.rows[e] * pitch + c);
                }
                R::store_row(s_.at + v * pitch + c, sum);
            }
        });
    }

    void blur(const int32_t* pairs, const T* in, T* out, int64_t begin, int64_t end) const {
        for_each_tile([&](auto tile, auto known, int64_t c) OVS_INLINE_LAMBDA {
            const int64_t pitch = decltype(known)::value > 0 ? decltype(known)::value : pitch_;
            constexpr int kTile = decltype(tile)::value;
            for (int64_t v = begin; v < end; ++v) {
                const T *const forward = in + pairs[2 * v] * pitch + c, *const back = in + pairs[2 * v + 1] * pitch + c;
                const T* const here = in + v * pitch + c;
                OVS_UNROLL
                for (int k = 0; k < kTile * R::kLanes; k += R::kLanes) {
                    const auto sum = load<typename R::V>(forward + k) + load<typename R::V>(back + k);
                    store(out + v * pitch + c + k, load<typename R::V>(here + k) + T(0.5) * sum);
                }
            }
        });
    }

    void multiply(int64_t begin, int64_t end, int64_t num_classes, T* scratch) const {
        T* const rows = lattice_.corners % 2 == 0 ? s_.at : s_.next;
        for (int64_t v = begin; v < end; ++v) {
            T* const row = rows + v * pitch_;
            multiply_row(row, scratch, static_cast<const T*>(t_.table), t_.compat_rank, num_classes, pitch_);
            std::copy_n(scratch, pitch_, row);
        }
    }

    LatticeView lattice_;
    const CrfTerm& t_;
    CrfState<T>& s_;
    int64_t pitch_;
};

// The factors of a normalisation for each point of a lattice: its response to ones gives `before`, and `after` times
// `scale` and alpha.
template <class T>
class LatticeFactors {
public:
    LatticeFactors(const CrfTerm& t, const CrfState<T>& s, const Tiles& tiles, T* sums, T* const (&ones)[2])
        : lattice_(t),
          weights_(static_cast<const T*>(t.weights)),
          s_(s),
          tiles_(tiles),
          sums_(sums),
          at_{ones[0], ones[1]} {}

    void find(Normalization normalization, bool transpose, double scale, int threads) {
        const double factor = scale * lattice_alpha(lattice_.corners - 1);
        const NormPowers powers = norm_powers(static_cast<int>(normalization), transpose);
        if (normalization != Normalization::kNone) respond(threads);
        const T* const ones = at_[lattice_.corners % 2];
        for_each_item(tiles_.count, threads, [&](int, int64_t number) {
            const Tile tile = tiles_[number];
            const int64_t end = tile.first + tile.size();
            if (normalization == Normalization::kNone) {
                std::fill(s_.before + tile.first, s_.before + end, T(1));
                std::fill(s_.after + tile.first, s_.after + end, static_cast<T>(factor));
                return;
            }
            T* const in = sums_ + lattice_.first_row(number);  // what the tile sent is used up
            const int32_t* const vertex_of = s_.vertex_of + lattice_.first_row(number);
            for (int64_t k = 0; k < lattice_.num_rows(number); ++k) in[k] = ones[vertex_of[k]];
            slice(in, tile.first, end);
            scale_factors(powers, static_cast<T>(factor), tile.first, end);
        });
    }

private:
    // The blurred vertices of ones.
    void respond(int threads) {
        for_each_item(tiles_.count, threads, [&](int, int64_t number) {
            const Tile tile = tiles_[number];
            T* const sums = sums_ + lattice_.first_row(number);
            std::fill_n(sums, lattice_.num_rows(number), T(0));
            const int64_t end = (tile.first + tile.size()) * lattice_.corners;
            for (int64_t e = tile.first * lattice_.corners; e < end; ++e) sums[lattice_.local[e]] += weights_[e];
        });
        const int64_t count = lattice_.num_vertices;
        at_[0][count] = at_[1][count] = T(0);
        for_each_block(count, 8 * kVertexBlock, threads, [&](int64_t begin, int64_t end) {
            for (int64_t v = begin; v < end; ++v) {
                T sum = 0;
                for (int32_t e = lattice_.starts[v]; e < lattice_.starts[v + 1]; ++e) sum += sums_[lattice_.rows[e]];
                at_[0][v] = sum;
            }
        });
        for (int axis = 0; axis < lattice_.corners; ++axis) {
            const int32_t* const pairs = lattice_.neighbours + axis * count * 2;
            const T* const in = at_[axis % 2];
            T* const out = at_[1 - axis % 2];
            for_each_block(count, 8 * kVertexBlock, threads, [&](int64_t begin, int64_t end) {
                for (int64_t v = begin; v < end; ++v) {
                    out[v] = in[v] + T(0.5) * (in[pairs[2 * v]] + in[pairs[2 * v + 1]]);
                }
            });
        }
    }

    // The response of points, to `before`.
    void slice(const T* in, int64_t begin, int64_t end) const {
        const int corners = lattice_.corners;
        const T alpha = static_cast<T>(lattice_alpha(corners - 1));
        for (int64_t i = begin; i < end; ++i) {
            T sum = 0;
            for (int r = 0; r < corners; ++r) sum += weights_[i * corners + r] * in[lattice_.local[i * corners + r]];
            s_.before[i] = alpha * sum;
        }
    }

    void scale_factors(const NormPowers& powers, T factor, int64_t begin, int64_t end) const {
        T *const before = s_.before, *const after = s_.after;
        const bool root = powers.before == 1;  // symmetric
        OVS_INDEPENDENT
        for (int64_t i = begin; i < end; ++i) {
            const T n = before[i] + T(1e-20);
            const T inverse = T(1) / (root ? std::sqrt(n) : n);
            before[i] = powers.before > 0 ? inverse : T(1);
            after[i] = powers.after > 0 ? factor * inverse : factor;
        }
    }

    LatticeView lattice_;
    const T* weights_;
    const CrfState<T>& s_;
    const Tiles& tiles_;
    T* sums_;
    T* at_[2];
};

}  // namespace
}  // namespace OVS_ISA
}  // namespace ovs
