// Per level: K in tiles of kLanes x kLanes, and its products with the vectors of a group of classes.
//
// A block is kLanes rows of the matrix as a row of tiles; in a tile, row i is one vector. Both products have lanes
// without waste whatever the number of classes: K nu has the rows of the block in the lanes (a tile is transposed
// in registers first), K^T mu the columns, and each class is one broadcast number. Vectors of classes are stored as
// [tile][class][lane].
#pragma once
#include <utility>

#include "common/simd.h"
#include "transport/transport_cpu.h"

namespace ovs {
namespace OVS_ISA {
namespace {

constexpr int kPanel = 128;  // columns whose products are added up by themselves: keeps the rounding of long sums small

// Classes whose sums fit the registers.
#if OVS_ISA_LEVEL == 2 || OVS_ISA_LEVEL == 3
constexpr int kGroup = 12;
#else
constexpr int kGroup = 28;
#endif
static_assert(kGroup <= kMaxGroup, "the workspace has room for kMaxGroup classes");

template <class T>
constexpr int lanes() {
    return kVectorBytes / static_cast<int>(sizeof(T));
}

// Transposing: exchange of the off-diagonal halves of blocks of 2h x 2h.

template <int kLanes, int kHalf, bool kUpper>
constexpr int source_lane(int lane) {
    const bool high = (lane & kHalf) != 0;
    return kUpper ? (high ? kLanes + lane : lane ^ kHalf) : (high ? kLanes + (lane ^ kHalf) : lane);
}

template <int kHalf, bool kUpper, class V, std::size_t... kLane>
OVS_INLINE V exchange(V a, V b, std::index_sequence<kLane...>) {
    constexpr int kLanes = sizeof...(kLane);
#if defined(__clang__) || __GNUC__ >= 12
    return __builtin_shufflevector(a, b, source_lane<kLanes, kHalf, kUpper>(kLane)...);
#else
    using Index = std::conditional_t<sizeof(V) / kLanes == 4, int32_t, int64_t>;
    return __builtin_shuffle(a, b, Vec<Index, kLanes>{source_lane<kLanes, kHalf, kUpper>(kLane)...});
#endif
}

template <int kHalf, class V, int kLanes>
OVS_INLINE void exchange_halves(V (&rows)[kLanes]) {
    if constexpr (kHalf < kLanes) {
        using Lanes = std::make_index_sequence<kLanes>;
        OVS_UNROLL
        for (int i = 0; i < kLanes; ++i) {
            if ((i & kHalf) != 0) continue;
            const V a = rows[i], b = rows[i | kHalf];
            rows[i] = exchange<kHalf, false>(a, b, Lanes());
            rows[i | kHalf] = exchange<kHalf, true>(a, b, Lanes());
        }
        exchange_halves<2 * kHalf>(rows);
    }
}

// Filling a block from the cost.

// exp(-(cost - least) / epsilon), times the cost where it is paid.
template <bool kPaid, class T>
OVS_INLINE T entry(T cost, T least, T inverse_epsilon) {
    const T k = exp_nonpositive((least - cost) * inverse_epsilon);
    return kPaid ? cost * k : k;
}

// Rows [0, rows) of `cost`, which has `columns` columns, as tiles; zero beyond.
template <bool kPaid, class T, class S>
void fill_block(const S* cost, int64_t columns, int64_t rows, T least, T inverse_epsilon, T* tiles) {
    constexpr int kLanes = lanes<T>();
    constexpr int kLine = 64 / sizeof(S);  // entries per cache line
    using V = Vec<T, kLanes>;
    for (int64_t j0 = 0; j0 < columns; j0 += kPanel) {
        const int64_t width = std::min<int64_t>(kPanel, columns - j0);
        for (int64_t i = 0; i < kLanes; ++i) {
            T line[kPanel];
            if (i >= rows) {
                std::fill_n(line, kPanel, T(0));
            } else {
                const S* from = cost + i * columns + j0;
                for (int ahead = 0; ahead < kPanel; ahead += kLine) __builtin_prefetch(from + kPanel + ahead);
                if (width == kPanel) {
                    for (int j = 0; j < kPanel; ++j) {
                        line[j] = entry<kPaid>(static_cast<T>(widen(from[j])), least, inverse_epsilon);
                    }
                } else {
                    for (int64_t j = 0; j < width; ++j) {
                        line[j] = entry<kPaid>(static_cast<T>(widen(from[j])), least, inverse_epsilon);
                    }
                    std::fill_n(line + width, kPanel - width, T(0));
                }
            }
            T* to = tiles + j0 * kLanes + i * kLanes;
            for (int64_t j = 0; j < width; j += kLanes) store(to + j * kLanes, load<V>(line + j));
        }
    }
}

// Products.

// sums[class][row] = sum_j K[row][j] nu[j][class] for the rows of a block.
template <class T, int kClasses>
void add_rows(const T* tiles, const T* nu, int64_t num_tiles, T* sums) {
    constexpr int kLanes = lanes<T>();
    constexpr int64_t kPanelTiles = kPanel / kLanes;
    using V = Vec<T, kLanes>;
    std::fill_n(sums, kClasses * kLanes, T(0));
    for (int64_t first = 0; first < num_tiles; first += kPanelTiles) {
        const int64_t last = std::min(first + kPanelTiles, num_tiles);
        V sum[kClasses] = {};
        for (int64_t tile = first; tile < last; ++tile) {
            V k[kLanes];
            const T* from = tiles + tile * kLanes * kLanes;
            OVS_UNROLL
            for (int i = 0; i < kLanes; ++i) k[i] = load<V>(from + i * kLanes);
            exchange_halves<1>(k);
            T columns[kLanes * kLanes];
            OVS_UNROLL
            for (int j = 0; j < kLanes; ++j) store(columns + j * kLanes, k[j]);
            const T* weights = nu + tile * kClasses * kLanes;
            for (int j = 0; j < kLanes; ++j) {
                const V column = load<V>(columns + j * kLanes);
                OVS_UNROLL
                for (int c = 0; c < kClasses; ++c) sum[c] += column * weights[c * kLanes + j];
            }
        }
        OVS_UNROLL
        for (int c = 0; c < kClasses; ++c) store(sums + c * kLanes, load<V>(sums + c * kLanes) + sum[c]);
    }
}

template <class T>
using AddRows = void (*)(const T*, const T*, int64_t, T*);

template <class T, std::size_t... kIndex>
AddRows<T> add_rows_for(int classes, std::index_sequence<kIndex...>) {
    constexpr AddRows<T> kTable[] = {add_rows<T, kIndex + 1>...};
    return kTable[classes - 1];
}

template <class T>
AddRows<T> add_rows_for(int classes) {
    return add_rows_for<T>(classes, std::make_index_sequence<kGroup>());
}

// sums[j][class] (+)= sum_row K[row][j] mu[row][class] over the rows of a block.
template <bool kFirst, class T>
void add_columns(const T* tiles, const T* mu, int64_t num_tiles, int classes, T* sums) {
    constexpr int kLanes = lanes<T>();
    using V = Vec<T, kLanes>;
    for (int64_t tile = 0; tile < num_tiles; ++tile) {
        V k[kLanes];
        const T* from = tiles + tile * kLanes * kLanes;
        OVS_UNROLL
        for (int i = 0; i < kLanes; ++i) k[i] = load<V>(from + i * kLanes);
        T* to = sums + tile * classes * kLanes;
        for (int c = 0; c < classes; ++c) {
            const T* weights = mu + c * kLanes;
            V sum = k[0] * weights[0];
            OVS_UNROLL
            for (int i = 1; i < kLanes; ++i) sum += k[i] * weights[i];
            store(to + c * kLanes, kFirst ? sum : load<V>(to + c * kLanes) + sum);
        }
    }
}

}  // namespace
}  // namespace OVS_ISA
}  // namespace ovs
