// Per level: K in tiles, and its products with the vectors of a group of classes.
//
// A tile is kSide x kSide numbers, two vectors to a row; a block is kSide rows of the matrix as a row of tiles. Both
// products have lanes without waste whatever the number of classes: K nu has the rows of the block in the lanes (tiles
// are transposed in registers first), K^T mu the columns, and a class is a broadcast number, which serves two vectors:
// as the memory operand of each multiplication it is slower on Zen 4. Vectors of classes are stored as
// [tile][class][kSide].
#pragma once
#include <utility>

#include "common/simd.h"
#include "transport/transport_cpu.h"

namespace ovs {
namespace OVS_ISA {
namespace {

constexpr int kPanel = 128;  // columns whose products are added up by themselves: keeps the rounding of long sums small

// Classes whose sums fit the registers, two vectors each.
#if OVS_ISA_LEVEL == 2 || OVS_ISA_LEVEL == 3
constexpr int kRegisterClasses = 6;
#else
constexpr int kRegisterClasses = 14;
#endif

template <class T>
constexpr int lanes() {
    return kVectorBytes / static_cast<int>(sizeof(T));
}
template <class T>
constexpr int side() {
    return 2 * lanes<T>();
}
static_assert(side<float>() <= kMaxSide && kPanel % kMaxSide == 0, "tiles divide panels and the padding");

// Transposing. Each step takes two vectors and makes two, with what processors do in one instruction: exchanges within
// parts of 128 bits, then of such parts.

enum class Pattern { kNumbers, kPairs, kHalves, kAlternate };

// Where lane `lane` of the lower or upper result of a step comes from: kLanes and above is the second vector. kWidth
// numbers are a part.
template <int kLanes, int kWidth, Pattern kPattern, bool kUpper>
constexpr int source_lane(int lane) {
    const int part = lane / kWidth, at = lane % kWidth, parts = kLanes / kWidth;
    switch (kPattern) {
        case Pattern::kNumbers:
            return part * kWidth + at / 2 + at % 2 * kLanes + (kUpper ? kWidth / 2 : 0);
        case Pattern::kPairs:
            return part * kWidth + at % 2 + at / 2 * kLanes + (kUpper ? 2 : 0);
        case Pattern::kHalves:
            return (part % (parts / 2) + (kUpper ? parts / 2 : 0)) * kWidth + at + part / (parts / 2) * kLanes;
        case Pattern::kAlternate:
            return (part % (parts / 2) * 2 + (kUpper ? 1 : 0)) * kWidth + at + part / (parts / 2) * kLanes;
    }
    return 0;
}

template <class T, Pattern kPattern, bool kUpper, class V, std::size_t... kLane>
OVS_INLINE V pick(V a, V b, std::index_sequence<kLane...>) {
    constexpr int kLanes = sizeof...(kLane), kWidth = 16 / sizeof(T);
#if defined(__clang__) || __GNUC__ >= 12
    return __builtin_shufflevector(a, b, source_lane<kLanes, kWidth, kPattern, kUpper>(kLane)...);
#else
    using Index = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;
    return __builtin_shuffle(a, b, Vec<Index, kLanes>{source_lane<kLanes, kWidth, kPattern, kUpper>(kLane)...});
#endif
}

template <class T, Pattern kPattern, class V>
OVS_INLINE void step(V a, V b, V& lower, V& upper) {
    using Lanes = std::make_index_sequence<sizeof(V) / sizeof(T)>;
    lower = pick<T, kPattern, false>(a, b, Lanes());
    upper = pick<T, kPattern, true>(a, b, Lanes());
}

template <class T, class V, int kLanes>
OVS_INLINE void transpose(V (&rows)[kLanes]) {
    constexpr int kWidth = 16 / sizeof(T), kParts = kLanes / kWidth;
    OVS_UNROLL
    for (int i = 0; i < kLanes; i += 2) step<T, Pattern::kNumbers>(rows[i], rows[i + 1], rows[i], rows[i + 1]);
    if constexpr (kWidth == 4) {
        OVS_UNROLL
        for (int i = 0; i < kLanes; i += 4) {
            const V second = rows[i + 1], last = rows[i + 3];
            step<T, Pattern::kPairs>(rows[i], rows[i + 2], rows[i], rows[i + 1]);
            step<T, Pattern::kPairs>(second, last, rows[i + 2], rows[i + 3]);
        }
    }
    OVS_UNROLL
    for (int i = 0; i < kWidth; ++i) {
        if constexpr (kParts == 2) {
            step<T, Pattern::kHalves>(rows[i], rows[kWidth + i], rows[i], rows[kWidth + i]);
        } else if constexpr (kParts == 4) {
            V& a = rows[i];
            V& b = rows[kWidth + i];
            V& c = rows[2 * kWidth + i];
            V& d = rows[3 * kWidth + i];
            V low, high, low_two, high_two;
            step<T, Pattern::kHalves>(a, b, low, high);
            step<T, Pattern::kHalves>(c, d, low_two, high_two);
            step<T, Pattern::kAlternate>(low, low_two, a, b);
            step<T, Pattern::kAlternate>(high, high_two, c, d);
        }
    }
}

template <class T>
OVS_INLINE void transpose_tile(const T* from, T* to) {
    constexpr int kLanes = lanes<T>(), kSide = side<T>();
    using V = Vec<T, kLanes>;
    for (int row = 0; row < kSide; row += kLanes) {
        for (int column = 0; column < kSide; column += kLanes) {
            V k[kLanes];
            OVS_UNROLL
            for (int i = 0; i < kLanes; ++i) k[i] = load<V>(from + (row + i) * kSide + column);
            transpose<T>(k);
            OVS_UNROLL
            for (int j = 0; j < kLanes; ++j) store(to + (column + j) * kSide + row, k[j]);
        }
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
    constexpr int kLanes = lanes<T>(), kSide = side<T>();
    constexpr int kLine = 64 / sizeof(S);  // entries per cache line
    using V = Vec<T, kLanes>;
    for (int64_t j0 = 0; j0 < columns; j0 += kPanel) {
        const int64_t width = std::min<int64_t>(kPanel, columns - j0);
        for (int64_t i = 0; i < kSide; ++i) {
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
            T* to = tiles + (j0 + i) * kSide;
            for (int64_t j = 0; j < width; j += kSide) {
                store(to + j * kSide, load<V>(line + j));
                store(to + j * kSide + kLanes, load<V>(line + j + kLanes));
            }
        }
    }
}

// Products.

constexpr int kLevel2 = 2;  // of __builtin_prefetch: into the level-2 cache

// sums[class][lane] (+)= sum_k vectors[tile][k][lane] weights[tile][class][k] over some tiles. Asks for as many
// numbers at `ahead` on the way, a row at a time: all at once would fill the queue to memory and stall.
template <class T, int kClasses>
void multiply(const T* vectors, const T* weights, const T* ahead, int64_t num_tiles, int64_t weight_stride, bool add,
              T* sums) {
    constexpr int kLanes = lanes<T>(), kSide = side<T>();
    using V = Vec<T, kLanes>;
    V low[kClasses] = {}, high[kClasses] = {};
    for (int64_t tile = 0; tile < num_tiles; ++tile) {
        for (int k = 0; k < kSide; ++k) {
            __builtin_prefetch(ahead + k * kSide, 0, kLevel2);
            __builtin_prefetch(ahead + k * kSide + kLanes, 0, kLevel2);
            const V first = load<V>(vectors + k * kSide), second = load<V>(vectors + k * kSide + kLanes);
            OVS_UNROLL
            for (int c = 0; c < kClasses; ++c) {
                const T weight = weights[c * kSide + k];
                low[c] += first * weight;
                high[c] += second * weight;
            }
        }
        vectors += kSide * kSide;
        ahead += kSide * kSide;
        weights += weight_stride;
    }
    OVS_UNROLL
    for (int c = 0; c < kClasses; ++c) {
        T* to = sums + c * kSide;
        store(to, add ? load<V>(to) + low[c] : low[c]);
        store(to + kLanes, add ? load<V>(to + kLanes) + high[c] : high[c]);
    }
}

template <class T>
using Multiply = void (*)(const T*, const T*, const T*, int64_t, int64_t, bool, T*);

template <class T, std::size_t... kIndex>
Multiply<T> multiply_for(int64_t classes, std::index_sequence<kIndex...>) {
    constexpr Multiply<T> kTable[] = {multiply<T, kIndex + 1>...};
    return kTable[classes - 1];
}

// The products for a number of classes, in parts whose sums fit the registers.
template <class T>
class Products {
public:
    explicit Products(int64_t classes) : classes_(classes) {
        const int64_t parts = ceil_div(classes, kRegisterClasses);
        part_ = ceil_div(classes, parts);
        const int64_t last = classes - (parts - 1) * part_;
        multiply_ = multiply_for<T>(part_, std::make_index_sequence<kRegisterClasses>());
        multiply_last_ = multiply_for<T>(last, std::make_index_sequence<kRegisterClasses>());
    }

    // sums[class][row] = sum_j K[row][j] nu[j][class] for the rows of a block.
    void rows(const T* tiles, const T* nu, int64_t num_tiles, T* sums) const {
        constexpr int64_t kTile = kSide * kSide, kPanelTiles = kPanel / kSide;
        alignas(64) T transposed[kPanelTiles * kTile];
        for (int64_t first = 0; first < num_tiles; first += kPanelTiles) {
            const int64_t count = std::min(kPanelTiles, num_tiles - first);
            for (int64_t t = 0; t < count; ++t) {
                const T* tile = tiles + (first + t) * kTile;
                transpose_tile(tile, transposed + t * kTile);
            }
            const T* ahead = tiles + (first + kPanelTiles) * kTile;
            run(transposed, nu + first * classes_ * kSide, ahead, count, first > 0, sums);
        }
    }

    // sums[j][class] (+)= sum_row K[row][j] mu[row][class] over the rows of a block.
    void columns(const T* tiles, const T* mu, int64_t num_tiles, bool add, T* sums) const {
        for (int64_t tile = 0; tile < num_tiles; ++tile) {
            const T* from = tiles + tile * kSide * kSide;
            run(from, mu, from + kSide * kSide, 1, add, sums + tile * classes_ * kSide);
        }
    }

private:
    static constexpr int kSide = side<T>();

    void run(const T* vectors, const T* weights, const T* ahead, int64_t num_tiles, bool add, T* sums) const {
        const int64_t stride = classes_ * kSide;
        int64_t c = 0;
        for (; c + part_ < classes_; c += part_) {
            multiply_(vectors, weights + c * kSide, ahead, num_tiles, stride, add, sums + c * kSide);
        }
        multiply_last_(vectors, weights + c * kSide, ahead, num_tiles, stride, add, sums + c * kSide);
    }

    int64_t classes_, part_;
    Multiply<T> multiply_, multiply_last_;
};

}  // namespace
}  // namespace OVS_ISA
}  // namespace ovs
