// Points in tiles, and a lattice as the CPU keeps it.
//
// The points of an image are taken tile by tile, those of a tile in strips of a few columns, row by row: so the
// vertices of one point are mostly those of the points just before. Points that are no image are a single row. A tile
// names its vertices by numbers of its own, few enough for 16 bits, and has a row of classes for each: splat adds up
// the pixels of a tile in the tile's rows, one thread a tile, and the rows of each vertex are then summed in the order
// of the tiles. So no two threads write to one row, and each sum has one order, whatever the number of threads. The
// last row of a tile belongs to no vertex: points without a place are sent there, and read zeros.
//
// Inside the arrays of LatticeParams and CrfTerm, whose sizes suffice:
//   vertices       uint16 [N, D + 1], points in the order of the tiles: row in the tile
//   weights        [N, D + 1], in that order
//   starts         [V + 1] where the rows of each vertex begin in
//   points         uint32, the rows of each vertex, ascending
//   entry_weights  int32 [1 + tiles]: the width that the lattice was built with, then for each tile how many rows
//                  of vertices there are up to its end
#pragma once
#include <algorithm>
#include <cstdint>

#include "common/error.h"
#include "common/index.h"
#include "crf/crf_problem.h"

namespace ovs {

namespace {  // internal linkage: each instruction-set level keeps its own copy

constexpr int64_t kTilePoints = 3072;  // at most; times the vertices of a simplex they are counted in 16 bits
constexpr int64_t kStrip = 32;         // columns
constexpr int64_t kTileSide = 48;
static_assert(kTilePoints * (kMaxLatticeFeatures + 1) < 65536, "a tile's vertices are numbered in 16 bits");

struct Tile {
    int64_t first;  // number of its first point, in the order of the tiles
    int64_t x, y, width, height;

    int64_t size() const { return width * height; }

    // Calls fn(x, y, count) for runs of neighbours in a row, in the order of the points.
    template <class Fn>
    void for_each_run(const Fn& fn) const {
        for (int64_t left = x; left < x + width; left += kStrip) {
            const int64_t count = std::min(kStrip, x + width - left);
            for (int64_t row = y; row < y + height; ++row) fn(left, row, count);
        }
    }
};

struct Tiles {
    int64_t width = 0, height = 0;            // of the image
    int64_t tile_width = 1, tile_height = 1;  // of all but the last ones
    int64_t across = 0, count = 0;

    Tiles(int64_t num_points, int64_t image_width) {
        if (num_points == 0) return;
        width = image_width > 0 ? image_width : num_points;
        height = num_points / width;
        tile_width =
            std::min(width, round_up(even_share(width, kTilePoints / std::min(height, kTileSide)), kStrip / 2));
        tile_height = even_share(height, kTilePoints / tile_width);
        across = ceil_div(width, tile_width);
        count = across * ceil_div(height, tile_height);
    }

    Tile operator[](int64_t number) const {
        Tile t;
        t.x = number % across * tile_width;
        t.y = number / across * tile_height;
        t.width = std::min(tile_width, width - t.x);
        t.height = std::min(tile_height, height - t.y);
        t.first = t.y * width + t.x * t.height;
        return t;
    }

private:
    // The least part of `size` of which as few as possible make the whole, none above `most`.
    static int64_t even_share(int64_t size, int64_t most) { return ceil_div(size, ceil_div(size, most)); }
};

struct LatticeView {
    const uint16_t* local;      // [N, D + 1]
    const int32_t* starts;      // [V + 1]
    const uint32_t* rows;       // of each vertex
    const int32_t* ends;        // [tiles]
    const int32_t* neighbours;  // [D + 1, V, 2]
    int64_t width;              // given when it was built
    int64_t num_vertices;
    int corners;  // D + 1

    explicit LatticeView(const CrfTerm& t)
        : local(reinterpret_cast<const uint16_t*>(t.vertices)),
          starts(t.starts),
          rows(reinterpret_cast<const uint32_t*>(t.points)),
          ends(static_cast<const int32_t*>(t.entry_weights) + 1),
          neighbours(t.neighbours),
          width(ends[-1]),
          num_vertices(t.num_vertices),
          corners(t.num_features + 1) {}

    // With the rows that belong to no vertex.
    int64_t first_row(int64_t tile) const { return (tile > 0 ? int64_t{ends[tile - 1]} : 0) + tile; }
    int64_t num_rows(int64_t tile) const { return first_row(tile + 1) - first_row(tile); }
    int64_t most_rows(int64_t tiles) const {
        int64_t most = 0;
        for (int64_t t = 0; t < tiles; ++t) most = std::max(most, num_rows(t));
        return most;
    }
};

}  // namespace
}  // namespace ovs
