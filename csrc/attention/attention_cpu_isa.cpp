// attention_mean on a CPU; compiled once per instruction-set level.
//
// A worker takes a tile of queries and computes all heads against it (attention_tile.h), then divides the mean by its
// row sums and writes it, turned from [keys][queries] to rows. A tile of the mean and one of exponentials stay in the
// worker's second-level cache or near it; keys stream by.
#include <cstring>
#include <limits>

#include "attention/attention_tile.h"
#include "common/parallel.h"

namespace ovs {
namespace OVS_ISA {
namespace {

template <class T>
class Averager {
public:
    Averager(const AttentionParams& p, void* workspace, std::size_t bytes, int threads)
        : p_(p), threads_(threads), workspace_(workspace, bytes), scratch_(p, threads, workspace_) {}

    template <class Stored>
    void run() {
        find_key_norms();
        int64_t next = 0;
        parallel_for(threads_, threads_, [&](int64_t worker) {
            for (;;) {
                const int64_t tile = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED);
                if (tile >= scratch_.tiles) return;
                average_tile<Stored>(worker, tile);
            }
        });
        if (p_.column_sums != nullptr) add_up_tiles();
    }

private:
    using V = typename Tile<T>::V;
    using Pair = typename Tile<T>::Pair;
    using PerQuery = typename Tile<T>::PerQuery;
    static constexpr int kLanes = Tile<T>::kLanes, kPairs = Tile<T>::kPairs, kPairLanes = Tile<T>::kPairLanes;

    // fn(block, head of it, number among all heads)
    template <class Fn>
    void for_heads(const Fn& fn) const {
        int64_t number = 0;
        for (int64_t b = 0; b < p_.num_blocks; ++b) {
            for (int64_t h = 0; h < p_.blocks[b].heads; ++h) fn(p_.blocks[b], h, number++);
        }
    }

    // Largest norm of a key, per head. NaN where a key is not finite: the head is then not a safe one.
    void find_key_norms() {
        for_heads([&](const AttentionBlock& b, int64_t h, int64_t number) {
            const T* const keys = static_cast<const T*>(b.keys) + h * b.key_head_stride;
            T largest = 0, poison = 0;
            for (int64_t j = 0; j < p_.num_keys; ++j) {
                const T square = square_of(keys + j * b.key_stride, b.features);
                largest = std::max(largest, square);
                poison += square * T(0);
            }
            scratch_.key_norms[number] = __builtin_sqrt(largest) + poison;
        });
    }

    static T square_of(const T* p, int64_t count) {
        V squares = {};
        int64_t f = 0;
        for (; f + kLanes <= count; f += kLanes) {
            const V v = load<V>(p + f);
            squares += v * v;
        }
        T sum = 0;
        for (int lane = 0; lane < kLanes; ++lane) sum += squares[lane];
        for (; f < count; ++f) sum += p[f] * p[f];
        return sum;
    }

    // Queries first .. first + count of a head as [features][kTileQueries], times the scale and log2(e); the other
    // lanes are zero. Returns the largest norm, NaN where a query is not finite.
    T pack_queries(const AttentionBlock& b, int64_t h, int64_t first, int64_t count, T* packed) const {
        const T* const from = static_cast<const T*>(b.queries) + h * b.query_head_stride + first * b.query_stride;
        const T factor = static_cast<T>(b.scale * kLog2E);
        for (int64_t r = 0; r < kTileQueries; ++r) {
            for (int64_t f = 0; f < b.features; ++f) {
                packed[f * kTileQueries + r] = r < count ? from[r * b.query_stride + f] * factor : T(0);
            }
        }
        T squares[kTileQueries] = {};
        for (int64_t f = 0; f < b.features; ++f) {
            for (int64_t r = 0; r < kTileQueries; ++r) {
                squares[r] += packed[f * kTileQueries + r] * packed[f * kTileQueries + r];
            }
        }
        T largest = 0, poison = 0;
        for (const T square : squares) {
            largest = std::max(largest, square);
            poison += square * T(0);
        }
        return __builtin_sqrt(largest) + poison;
    }

    template <class Stored>
    void average_tile(int64_t worker, int64_t tile) {
        const int64_t first = tile * kTileQueries, count = std::min(kTileQueries, p_.num_queries - first);
        T* const exponentials = scratch_.exponentials + worker * scratch_.tile_stride;
        T* const mean = scratch_.mean + worker * scratch_.tile_stride;
        const PerQuery factor =
            average_heads(first, count, scratch_.queries + worker * scratch_.queries_stride, exponentials, mean);
        add_head(factor, exponentials, mean);
        const PerQuery inverse = inverse_row_sums(mean);
        if (p_.column_sums == nullptr) return write_rows<Stored, false>(tile, first, count, mean, inverse);
        write_rows<Stored, true>(tile, first, count, mean, inverse);
    }

    // The mean of a tile but for its last head, whose factor is returned.
    PerQuery average_heads(int64_t first, int64_t count, T* queries, T* exponentials, T* mean) const {
        std::fill_n(mean, p_.num_keys * kTileQueries, T(0));
        PerQuery factor = {};
        for_heads([&](const AttentionBlock& b, int64_t h, int64_t number) {
            const T norm = pack_queries(b, h, first, count, queries);
            const HeadKeys<T> head = {static_cast<const T*>(b.keys) + h * b.key_head_stride, b.key_stride, p_.num_keys,
                                      b.features};
            PerQuery total;
            if (!(norm * scratch_.key_norms[number] <= safe_exponent<T>())) {
                if (number > 0) add_head(factor, exponentials, mean);
                total = exponentials_of_any_head<T>(queries, head, exponentials);
            } else if (number > 0) {
                total = exponentials_of_safe_head<true, T>(queries, head, factor, exponentials, mean);
            } else {
                total = exponentials_of_safe_head<false, T>(queries, head, factor, exponentials, mean);
            }
            for (int i = 0; i < kPairs; ++i) {
                for (int k = 0; k < 2; ++k) {
                    factor.pairs[i].v[k] = static_cast<T>(b.weight) / total.pairs[i].v[k];
                }
            }
        });
        return factor;
    }

    void add_head(const PerQuery& factor, const T* exponentials, T* mean) const {
        for (int64_t at = 0; at < p_.num_keys * kTileQueries; at += kTileQueries) {
            for (int i = 0; i < kPairs; ++i) {
                Pair m = Pair::load_from(mean + at + i * kPairLanes);
                m.add_product(factor.pairs[i], Pair::load_from(exponentials + at + i * kPairLanes));
                m.store_to(mean + at + i * kPairLanes);
            }
        }
    }

    PerQuery inverse_row_sums(const T* mean) const {
        double totals[kTileQueries] = {};
        for (int64_t begin = p_.first_key; begin < p_.num_keys; begin += kPartKeys) {
            PerQuery part = {};
            for (int64_t j = begin; j < std::min(begin + kPartKeys, p_.num_keys); ++j) {
                for (int i = 0; i < kPairs; ++i) {
                    part.pairs[i].add(Pair::load_from(mean + j * kTileQueries + i * kPairLanes));
                }
            }
            for (int r = 0; r < kTileQueries; ++r) totals[r] += static_cast<double>(part.at(r));
        }
        PerQuery inverse;
        for (int r = 0; r < kTileQueries; ++r) {
            const bool something = totals[r] >= static_cast<double>(std::numeric_limits<T>::min());
            inverse.set(r, something ? static_cast<T>(1.0 / totals[r]) : std::numeric_limits<T>::quiet_NaN());
        }
        return inverse;
    }

    // Rows first .. first + count of the result, and with kInfo their column sums and largest entry, NaN with a NaN.
    template <class Stored, bool kInfo>
    void write_rows(int64_t tile, int64_t first, int64_t count, const T* mean, const PerQuery& inverse) const {
        using Element = typename Stored::Element;
        Element* const out = static_cast<Element*>(p_.mean) + first * scratch_.columns;
        T* const sums = kInfo ? scratch_.column_sums + tile * scratch_.columns : nullptr;
        V most = {};
        for (int64_t column = 0; column < scratch_.columns; column += kLanes) {
            const int64_t columns = std::min<int64_t>(kLanes, scratch_.columns - column);
            V column_sums = {};
            for (int64_t r0 = 0; r0 < count; r0 += kLanes) {
                V rows[kLanes];
                const T* const from = mean + (p_.first_key + column) * kTileQueries + r0;
                const V factor = inverse.pairs[r0 / kPairLanes].v[r0 % kPairLanes / kLanes];
                OVS_UNROLL
                for (int k = 0; k < kLanes; ++k) {
                    rows[k] = k < columns ? load<V>(from + k * kTileQueries) * factor : V{};
                }
                transpose_square<T>(rows);
                OVS_UNROLL
                for (int r = 0; r < kLanes; ++r) {
                    if (r0 + r >= count) break;
                    store_some(out + (r0 + r) * scratch_.columns + column, Stored::convert(rows[r]), columns);
                    if (!kInfo) continue;
                    column_sums += rows[r];
                    most = (rows[r] > most) | (rows[r] != rows[r]) ? rows[r] : most;
                }
            }
            if (kInfo) store_some(sums + column, column_sums, columns);
        }
        if (!kInfo) return;
        scratch_.maxima[tile] = T(0);
        for (int lane = 0; lane < kLanes; ++lane) keep_largest(most[lane], scratch_.maxima[tile]);
    }

    static void keep_largest(T value, T& largest) {
        if (value > largest || value != value) largest = value;
    }

    template <class Element, class Vector>
    OVS_INLINE static void store_some(Element* to, const Vector& v, int64_t count) {
        if (count == kLanes) return store(to, v);
        std::memcpy(to, &v, count * sizeof(Element));
    }

    void add_up_tiles() const {
        T* const out = static_cast<T*>(p_.column_sums);
        constexpr int64_t kColumns = 256;
        parallel_for(ceil_div(scratch_.columns, kColumns), threads_, [&](int64_t part) {
            double sums[kColumns] = {};
            const int64_t begin = part * kColumns, count = std::min(kColumns, scratch_.columns - begin);
            for (int64_t tile = 0; tile < scratch_.tiles; ++tile) {
                const T* const from = scratch_.column_sums + tile * scratch_.columns + begin;
                for (int64_t k = 0; k < count; ++k) sums[k] += static_cast<double>(from[k]);
            }
            for (int64_t k = 0; k < count; ++k) out[begin + k] = static_cast<T>(sums[k]);
        });
        T largest = 0;
        for (int64_t tile = 0; tile < scratch_.tiles; ++tile) keep_largest(scratch_.maxima[tile], largest);
        *static_cast<T*>(p_.maximum) = largest;
    }

    const AttentionParams& p_;
    const int threads_;
    Workspace workspace_;
    AttentionScratch<T> scratch_;
};

}  // namespace

void attention_mean_level(const AttentionParams& p, DType dtype, void* workspace, std::size_t bytes, int threads) {
    if (dtype == DType::kFloat64) return Averager<double>(p, workspace, bytes, threads).run<AsItIs<double>>();
    Averager<float> averager(p, workspace, bytes, threads);
    switch (p.mean_dtype) {
        case DType::kFloat16:
            return averager.run<AsFloat16>();
        case DType::kBFloat16:
            return averager.run<AsBFloat16>();
        default:
            return averager.run<AsItIs<float>>();
    }
}

}  // namespace OVS_ISA
}  // namespace ovs
