// Per level: the operator v - alpha D^-1 W v on one strip row, the kernel in which nearly all time is spent.
//
// A register tile is kTilePixels pixels x one vector of classes (or, for half vectors, pairs of pixels). For each of
// the 2R+1 image rows the tile walks along the source pixels once: a source vector is loaded once and used for every
// pixel of the tile that it is a neighbour of, each time with one scalar weight, broadcast from memory as part of the
// multiply-add. So a multiply-add costs one 4-byte load and a fifth of a vector load, and the arithmetic units are the
// limit, not the load ports.
//
// Memory: a tile's 2R+1 rows of state and its weights fit in L1, a strip's in L2; the weights stream past once per
// sweep. The weights of one tile lie in as many cache lines as there are offsets, too far apart for the processor's own
// prefetcher, so the next row's are asked for while this row is computed, and so are the state's new pixels.
#pragma once
#include "common/simd.h"
#include "pixels/pixels_cpu.h"

namespace ovs {
namespace OVS_ISA {
namespace {

constexpr int kLine = 64;           // bytes of a cache line
constexpr int kIntoL2 = 2;          // third argument of __builtin_prefetch: L2, not L1
constexpr int kHalfPlaneTile = 16;  // pixels per PairTile: fewer sums would wait for each other

// Sums of 8 pixels x kLanes classes. `add` does sum[i] += weight(tap, i) * source(i + tap) for kTaps taps in a row,
// where weight(tap, i) = weights[tap * kTapStride + i].
template <class T, int kLanes>
struct PixelTile {
    using V = Vec<T, kLanes>;
    V sums[kTilePixels] = {};

    template <int kTaps, int64_t kTapStride>
    OVS_INLINE void add(const T* weights, const T* source, int64_t classes) {
        OVS_UNROLL
        for (int q = 0; q < kTilePixels + kTaps - 1; ++q) {
            const V u = load<V>(source);
            source += classes;
            OVS_UNROLL
            for (int tap = 0; tap < kTaps; ++tap) {
                const int i = q - tap;
                if (i >= 0 && i < kTilePixels) sums[i] += weights[tap * kTapStride + i] * u;
            }
        }
    }

    // fn(sums of 8 pixels, first of them)
    template <class Fn>
    OVS_INLINE void finish(const Fn& fn) const {
        fn(sums, 0);
    }
    static constexpr int kPixels = kTilePixels;
};

#if OVS_ISA_LEVEL == 4
// The same for a half plane of floats, 8 classes per pixel and no more: two neighbouring pixels share a vector, so that
// it is full. Their classes are interleaved on loading, then one 8-byte broadcast holds the weights of both.
template <int kTilePairs>
struct PairTile {
    using V = Vec<float, 16>;
    using Index = Vec<int32_t, 16>;
    V sums[kTilePairs] = {};
    static constexpr int kPixels = 2 * kTilePairs;

    template <int kTaps, int64_t kTapStride>
    OVS_INLINE void add(const float* weights, const float* source, int64_t) {
        const Index interleave = {0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15};
        OVS_UNROLL
        for (int q = 0; q < kPixels + kTaps - 2; ++q) {
            const V u = __builtin_shuffle(load<V>(source + q * kClassGranule), interleave);
            OVS_UNROLL
            for (int tap = 0; tap < kTaps; ++tap) {
                const int i = q - tap;
                if (i < 0 || i >= kPixels || i % 2 != 0) continue;
                const double both = load<double>(weights + tap * kTapStride + i);
                const Vec<double, 8> pair = {both, both, both, both, both, both, both, both};
                sums[i / 2] += (V)pair * u;
            }
        }
    }

    template <class Fn>
    OVS_INLINE void finish(const Fn& fn) const {
        const Index separate = {0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15};
        OVS_UNROLL
        for (int first = 0; first < kPixels; first += kTilePixels) {
            Vec<float, 8> parts[kTilePixels];
            OVS_UNROLL
            for (int i = 0; i < kTilePixels; i += 2) {
                const V pair = __builtin_shuffle(sums[(first + i) / 2], separate);
                __builtin_memcpy(&parts[i], &pair, sizeof pair);
            }
            fn(parts, first);
        }
    }
};
#endif

// A row of `taps` taps. The default window's two lengths are unrolled whole, others go four taps at a time.
template <int64_t kTapStride, class Tile, class T>
OVS_INLINE void add_row(Tile& tile, const T* weights, const T* source, int64_t classes, int taps) {
    for (; taps >= 4; taps -= 4, weights += 4 * kTapStride, source += 4 * classes) {
        tile.template add<4, kTapStride>(weights, source, classes);
    }
    for (; taps > 0; --taps, weights += kTapStride, source += classes) {
        tile.template add<1, kTapStride>(weights, source, classes);
    }
}

// The weights that one strip row needs: rows[dy] is row y - dy of the strip, at the strip's first own pixel.
template <class T>
struct WeightRows {
    const T* rows[kMaxWindow / 2 + 1];
};

// What a tile prefetches: so many cache lines from here on for each of the R rows.
struct Ahead {
    const char* from;
    int lines;
};

// sum_q w_pq v_q for a tile at strip column x. `source` points at the tile's first pixel, first class of the vector.
// kRadius = 0: any radius.
template <int kRadius, int64_t kStride, class Tile, class T>
OVS_INLINE void gather_tile(Tile& tile, const WeightRows<T>& w, int64_t x, const T* source, int64_t row_step,
                            int64_t classes, int radius, Ahead ahead) {
    // Walking against the direction of an offset, the next tap is the offset before, seen from one pixel further.
    constexpr int64_t kForward = kStride, kBackward = 1 - kStride;
    const int r = kRadius > 0 ? kRadius : radius, side = 2 * r + 1;
    const T* here = w.rows[0] + x;
    const auto row = [&](auto stride, const T* weights, const T* from, int taps) {
        constexpr int64_t kTapStride = decltype(stride)::value;
        if constexpr (kRadius > 0) {
            if (taps == kRadius) {
                tile.template add<kRadius, kTapStride>(weights, from, classes);
            } else {
                tile.template add<2 * kRadius + 1, kTapStride>(weights, from, classes);
            }
        } else {
            add_row<kTapStride>(tile, weights, from, classes, taps);
        }
    };
    using Forward = std::integral_constant<int64_t, kForward>;
    using Backward = std::integral_constant<int64_t, kBackward>;
    if (r == 0) return;
    row(Backward{}, here + (r - 1) * kStride - r, source - r * classes, r);
    row(Forward{}, here, source + classes, r);
    for (int dy = 1; dy <= r; ++dy) {
        const int first = r + (dy - 1) * side;
        for (int i = 0; i < ahead.lines; ++i, ahead.from += kLine) __builtin_prefetch(ahead.from, 0, kIntoL2);
        row(Forward{}, here + first * kStride, source + dy * row_step - r * classes, side);
        row(Backward{}, w.rows[dy] + x + (first + 2 * r) * kStride - r, source - dy * row_step - r * classes, side);
    }
}

// fn(acc, x, c) for every tile of a strip row and every vector of classes of a plane; acc = (W v) there, v = front.
template <int kRadius, int64_t kStride, class T, class Fn>
OVS_INLINE void for_each_tile(const PixelsGrid& g, const PixelsBuffers<T>& b, const PixelsPlane<T>& plane,
                              int64_t strip, int64_t y, const Fn& fn) {
    constexpr int kWide = kVectorBytes / sizeof(T), kNarrow = kWide > kClassGranule ? kClassGranule : kWide;
    const int64_t classes = plane.classes, row_step = g.pitch * classes;
    WeightRows<T> w;
    for (int dy = 0; dy <= g.radius; ++dy) {
        w.rows[dy] = (y >= dy ? b.weights + g.strip_row(strip, y - dy) * g.weights_per_row() : b.no_weights) + g.radius;
    }
    const T* row = plane.front + ((y + g.radius) * g.pitch + strip * g.strip_pixels + g.radius) * classes;
    // The tiles of all planes' first sweeps share the next row's weights between them, each a run of memory.
    const int64_t next_bytes = y + 1 < g.height ? g.weights_per_row() * sizeof(T) : 0;
    const int64_t tiles = g.strip_pixels / kTilePixels, shares = tiles * std::max(g.radius, 1) * g.num_planes();
    const int lines = static_cast<int>(ceil_div(ceil_div(next_bytes, kLine), shares));
    const char* next = reinterpret_cast<const char*>(w.rows[0] - g.radius) + next_bytes +
                       plane.begin / kPlaneClasses * tiles * lines * g.radius * kLine;
    // State that the next row reads for the first time, and what it writes or else reads. One request a pixel: a branch
    // that leaves some out costs more than it saves.
    const T* state_below = row + (g.radius + 1) * row_step + g.radius * classes;
    const T* result_below = plane.first + ((y + 1) * g.pitch + strip * g.strip_pixels + g.radius) * classes;
    const auto tile_at = [&](auto tile, int64_t x, int c) {
        OVS_UNROLL
        for (int i = 0; i < decltype(tile)::kPixels; ++i) {
            __builtin_prefetch(result_below + (x + i) * classes + c, 1, kIntoL2);
            __builtin_prefetch(state_below + (x + i) * classes + c, 0, kIntoL2);
        }
        const Ahead ahead{next + x / kTilePixels * lines * g.radius * kLine,
                          c == 0 ? lines * (decltype(tile)::kPixels / kTilePixels) : 0};
        gather_tile<kRadius, kStride>(tile, w, x, row + x * classes + c, row_step, classes, g.radius, ahead);
        tile.finish([&](const auto& acc, int first) { fn(acc, strip * g.strip_pixels + x + first, c); });
    };
#if OVS_ISA_LEVEL == 4
    if constexpr (sizeof(T) == 4) {
        if (classes == kClassGranule) {
            int64_t x = 0;
            for (; x + kHalfPlaneTile <= g.strip_pixels; x += kHalfPlaneTile) {
                tile_at(PairTile<kHalfPlaneTile / 2>{}, x, 0);
            }
            for (; x < g.strip_pixels; x += kTilePixels) tile_at(PairTile<kTilePixels / 2>{}, x, 0);
            return;
        }
    }
#endif
    // One vector of classes after the other, so that what a sweep along the strip comes back to is still in L1.
    const auto sweep = [&](auto lanes, int c) {
        for (int64_t x = 0; x < g.strip_pixels; x += kTilePixels) tile_at(PixelTile<T, decltype(lanes)::value>{}, x, c);
    };
    int c = 0;
    for (; c + kWide <= classes; c += kWide) sweep(std::integral_constant<int, kWide>{}, c);
    for (; c < classes; c += kNarrow) sweep(std::integral_constant<int, kNarrow>{}, c);
}

// fn(plane, acc, x, c) for every tile of a strip row and all classes: one plane after the other, while the row's
// weights are in L2, so that they come from memory once for all planes.
template <int kRadius, int64_t kStride, class T, class Fn>
OVS_INLINE void for_each_plane_tile(const PixelsGrid& g, const PixelsBuffers<T>& b, int64_t strip, int64_t y,
                                    const Fn& fn) {
    for (int index = 0; index < g.num_planes(); ++index) {
        const PixelsPlane<T> plane = b.plane(g, index);
        for_each_tile<kRadius, kStride>(g, b, plane, strip, y,
                                        [&](const auto& acc, int64_t x, int c) { fn(plane, acc, x, c); });
    }
}

// Runs `fn` for every (strip, y) on all threads: strips one after another, rows of a strip in order within an item, so
// that the strip's rows and weights are still in L2 for the next row.
template <class Fn>
void for_each_strip_row(const PixelsGrid& g, int threads, const Fn& fn) {
    const int64_t blocks =
        std::max<int64_t>(1, std::min<int64_t>(ceil_div(g.height, 32), ceil_div(8 * threads, g.num_strips)));
    const int64_t rows = ceil_div(g.height, blocks);
    parallel_for(g.num_strips * blocks, threads, [&](int64_t item) {
        const int64_t strip = item / blocks, y0 = item % blocks * rows;
        for (int64_t y = y0; y < std::min(y0 + rows, g.height); ++y) fn(strip, y);
    });
}

// Calls fn(kRadius, kStride) with the compile-time variant that serves this grid.
template <class Fn>
OVS_INLINE void with_variant(const PixelsGrid& g, const Fn& fn) {
    using Narrow = std::integral_constant<int64_t, PixelsGrid::kNarrowStride>;
    using Wide = std::integral_constant<int64_t, PixelsGrid::kWideStride>;
    if (g.radius == 6) return fn(std::integral_constant<int, 6>{}, Narrow{});
    if (g.radius <= 8) return fn(std::integral_constant<int, 0>{}, Narrow{});
    return fn(std::integral_constant<int, 0>{}, Wide{});
}

}  // namespace
}  // namespace OVS_ISA
}  // namespace ovs
