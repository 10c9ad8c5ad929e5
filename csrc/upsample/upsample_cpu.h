// Inside the CPU half of the upsample family: how an image is cut into tiles, the workspace's map, and what each
// instruction-set level exports.
//
// Pixels of one cell have the same window of nodes. A tile is a rectangle of pixels, a part of a cell, a cell or some
// cells, with the union of their windows as its taps; a tap outside of a pixel's own window gets weight zero. So the
// work of a tile is a small product of matrices, [classes x taps] x [taps x pixels], whatever the scale factor.
#pragma once
#include <algorithm>
#include <cstdint>

#include "common/workspace.h"
#include "upsample/upsample.h"
#include "upsample/upsample_math.h"

namespace ovs {

namespace {  // internal linkage: each instruction-set level keeps its own copy

constexpr int kBlockClasses = 6;    // classes of a block of packed maps: with 4 vectors of pixels, 24 accumulators
constexpr int kTileLaneBytes = 64;  // the pixels of a tile are padded to whole vectors of the widest level
constexpr int kMostGrouped = 4;     // cells of a tile along one axis
constexpr int64_t kWeightBytes = 48 * 1024;  // the weights of a tile shall stay in the first-level cache, or nearly
constexpr int64_t kMostNeighbours = 4;
constexpr int64_t kMostBands = 16;  // backward: sums that are formed side by side
constexpr int64_t kBandBytes = int64_t{64} << 20;

// A run of pixels along one axis, and the nodes in the windows of its pixels.
struct UpsampleSegment {
    int32_t begin, end;
    int32_t node_begin, node_end;
};

// Cutting one axis: `grouped` cells to a segment, or one cell in `split` parts.
struct UpsampleCut {
    int grouped = 1, split = 1;
};

struct UpsampleAxis {
    int64_t nodes, pixels;
    int radius;

    int64_t first_pixel(int64_t q) const { return first_pixel_of_cell(q, nodes, pixels); }
    int64_t num_segments(UpsampleCut cut) const {
        return cut.split > 1 ? nodes * cut.split : ceil_div(nodes, cut.grouped);
    }
    UpsampleSegment segment(UpsampleCut cut, int64_t i) const {
        const int64_t q0 = cut.split > 1 ? i / cut.split : i * cut.grouped;
        const int64_t q1 = std::min(nodes, q0 + (cut.split > 1 ? 1 : cut.grouped));
        const int64_t begin = first_pixel(q0), length = first_pixel(q1) - begin,
                      part = cut.split > 1 ? i % cut.split : 0;
        return {static_cast<int32_t>(begin + length * part / cut.split),
                static_cast<int32_t>(begin + length * (part + 1) / cut.split),
                static_cast<int32_t>(std::max<int64_t>(0, q0 - radius)),
                static_cast<int32_t>(std::min(nodes, q1 + radius))};
    }
};

// What is to be known of an axis cut in one way: how long its segments are.
struct UpsampleCutSummary {
    UpsampleCut cut;
    int64_t count, longest, most_nodes;
    double mean;
};

UpsampleCutSummary summarise(const UpsampleAxis& axis, UpsampleCut cut) {
    UpsampleCutSummary s = {cut, axis.num_segments(cut), 1, 1, 0.0};
    for (int64_t i = 0; i < s.count; ++i) {
        const UpsampleSegment segment = axis.segment(cut, i);
        s.longest = std::max<int64_t>(s.longest, segment.end - segment.begin);
        s.most_nodes = std::max<int64_t>(s.most_nodes, segment.node_end - segment.node_begin);
    }
    s.mean = static_cast<double>(axis.pixels) / static_cast<double>(s.count);
    return s;
}

// The tiles of an image: one cut along each axis, that which costs least by a count of vector instructions.
struct UpsampleGrid {
    UpsampleAxis rows, columns;
    UpsampleCutSummary row_cut, column_cut;
    int64_t lanes_per_vector;

    UpsampleGrid(const UpsampleParams& p, int64_t real_bytes)
        : rows{p.low_height, p.height, p.radius},
          columns{p.low_width, p.width, p.radius},
          lanes_per_vector(kTileLaneBytes / real_bytes) {
        double least = -1.0;
        UpsampleCutSummary column_cuts[kMostCuts];
        int num_column_cuts = 0;
        for_each_cut(columns, [&](UpsampleCut cut) { column_cuts[num_column_cuts++] = summarise(columns, cut); });
        for_each_cut(rows, [&](UpsampleCut cut) {
            const UpsampleCutSummary row = summarise(rows, cut);
            for (int i = 0; i < num_column_cuts; ++i) {
                const double needed = cost(row, column_cuts[i], p.num_classes, real_bytes);
                if (least >= 0.0 && needed >= least) continue;
                least = needed;
                row_cut = row;
                column_cut = column_cuts[i];
            }
        });
    }

    int64_t most_lanes() const { return round_up(row_cut.longest * column_cut.longest, lanes_per_vector); }
    int64_t most_taps() const { return row_cut.most_nodes * column_cut.most_nodes; }
    // Tiles side by side that are written together: as many as make up the numbers of a cache line.
    int64_t neighbours() const {
        const int64_t wanted = static_cast<int64_t>(static_cast<double>(lanes_per_vector) / column_cut.mean + 0.5);
        return std::clamp<int64_t>(wanted, 1, kMostNeighbours);
    }
    int64_t nodes() const { return rows.nodes * columns.nodes; }
    // Backward: neighbouring rows of tiles that are summed up together.
    int64_t band_segments() const { return ceil_div(row_cut.count, kMostBands); }
    int64_t num_bands() const { return ceil_div(row_cut.count, band_segments()); }
    int64_t band_rows() const {
        int64_t most = 1;
        for (int64_t band = 0; band < num_bands(); ++band) {
            const int64_t first = band * band_segments(), last = std::min(first + band_segments(), row_cut.count) - 1;
            most = std::max<int64_t>(
                most, rows.segment(row_cut.cut, last).node_end - rows.segment(row_cut.cut, first).node_begin);
        }
        return most;
    }

private:
    static constexpr int kMostCuts = kMostGrouped + 32;

    template <class Fn>
    static void for_each_cut(const UpsampleAxis& axis, const Fn& fn) {
        for (int grouped = 1; grouped <= kMostGrouped && grouped <= axis.nodes; ++grouped) fn({grouped, 1});
        const int64_t shortest_cell = axis.pixels / axis.nodes;
        for (int split = 2; split <= shortest_cell; split = split < 8 ? split + 1 : 2 * split) fn({1, split});
    }

    // Per pixel: products for each class, some twenty instructions for each weight, and what every tile costs.
    double cost(const UpsampleCutSummary& row, const UpsampleCutSummary& column, int64_t classes,
                int64_t real_bytes) const {
        const int64_t taps = row.most_nodes * column.most_nodes;
        const int64_t lanes = round_up(row.longest * column.longest, lanes_per_vector);
        if (lanes > lanes_per_vector && lanes * taps * real_bytes > kWeightBytes) return 1e300;
        const double vectors = static_cast<double>(lanes / lanes_per_vector);
        const double tile = static_cast<double>(taps) * (vectors * static_cast<double>(classes + 24) + 8.0) +
                            20.0 * static_cast<double>(classes) + 300.0;
        return tile / (row.mean * column.mean);
    }
};

// What depends on one axis alone, for every pixel.
template <class T>
struct UpsampleAxisTables {
    T* spatial;       // [pixels, 2 radius + 1] exponents to the base 2
    int32_t* cell;    // [pixels]
    int32_t* centre;  // [nodes]
    UpsampleSegment* segments;

    UpsampleAxisTables(const UpsampleAxis& axis, const UpsampleCutSummary& cut, Workspace& ws) {
        spatial = ws.take<T>("spatial", axis.pixels * (2 * axis.radius + 1));
        cell = ws.take<int32_t>("cell", axis.pixels);
        centre = ws.take<int32_t>("centre", axis.nodes);
        segments = ws.take<UpsampleSegment>("segments", cut.count);
    }

    void fill(const UpsampleAxis& axis, const UpsampleCutSummary& cut, double factor) {
        const int64_t taps = 2 * axis.radius + 1;
        for (int64_t y = 0; y < axis.pixels; ++y) {
            const int64_t q = cell_of_pixel(y, axis.nodes, axis.pixels);
            cell[y] = static_cast<int32_t>(q);
            for (int64_t j = 0; j < taps; ++j) {
                spatial[y * taps + j] =
                    static_cast<T>(spatial_exponent(y, q + j - axis.radius, axis.nodes, axis.pixels, factor));
            }
        }
        for (int64_t q = 0; q < axis.nodes; ++q) {
            centre[q] = static_cast<int32_t>(pixel_of_node(q, axis.nodes, axis.pixels));
        }
        for (int64_t i = 0; i < cut.count; ++i) segments[i] = axis.segment(cut.cut, i);
    }
};

// One worker's.
template <class T>
struct UpsampleScratch {
    T* weights;         // [taps, lanes], or backward [blocks of taps, pixels, kBlockClasses] beside it
    T* exponents;       // [taps, lanes]
    T* colours;         // [3, lanes]
    T* row_spatial;     // [node rows, lanes]
    T* column_spatial;  // [node columns, lanes]
    T* stage;           // [kBlockClasses, lanes or classes]
    T* best;            // [lanes] labels: the largest value so far
    T* values;          // [lanes, classes] backward: the cotangent of a tile
    T* label;           // [lanes]
    int32_t* cell;      // [lanes] node index of each pixel's cell
    T* special;         // [h, w]
};

template <class T>
struct UpsampleBuffers {
    UpsampleAxisTables<T> rows, columns;
    T* packed;             // [blocks of classes, h, w, kBlockClasses] forward: the maps, zero where not finite
    T* special;            // [C, h, w] forward: sum of what is not finite in a node's window; of classes that have such
    uint8_t* class_flags;  // [C]
    T* node_colours;       // [3, h, w]
    T* bands;              // [bands, band rows, w, chunk] backward
    char* scratch;
    int64_t scratch_stride;
    int64_t lanes, taps, row_nodes, column_nodes, nodes, chunk, neighbours;
    bool backward;

    UpsampleBuffers(const UpsampleParams& p, const UpsampleGrid& g, int threads, Workspace& ws)
        : rows(g.rows, g.row_cut, ws),
          columns(g.columns, g.column_cut, ws),
          lanes(g.most_lanes()),
          taps(g.most_taps()),
          row_nodes(g.row_cut.most_nodes),
          column_nodes(g.column_cut.most_nodes),
          nodes(g.nodes()),
          backward(p.backward) {
        const int64_t band_nodes = g.num_bands() * g.band_rows() * g.columns.nodes;
        const int64_t fitting = kBandBytes / (band_nodes * static_cast<int64_t>(sizeof(T)));
        const int64_t wanted = round_up(p.num_classes, g.lanes_per_vector);
        chunk = std::min(wanted, std::max(g.lanes_per_vector, fitting / g.lanes_per_vector * g.lanes_per_vector));
        neighbours = p.backward || p.labels != nullptr ? 1 : g.neighbours();
        packed = ws.take<T>("packed", backward ? 0 : ceil_div(p.num_classes, kBlockClasses) * nodes * kBlockClasses);
        special = ws.take<T>("special", backward ? 0 : p.num_classes * nodes);
        class_flags = ws.take<uint8_t>("class_flags", p.num_classes);
        node_colours = ws.take<T>("node_colours", 3 * nodes);
        bands = ws.take<T>("bands", backward ? band_nodes * chunk : 0);
        Workspace counter(nullptr, 0);
        worker(counter);
        scratch_stride = static_cast<int64_t>(counter.used());
        scratch = ws.take<char>("scratch", scratch_stride * neighbours * threads);
    }

    UpsampleScratch<T> worker(Workspace& ws) const {
        UpsampleScratch<T> s;
        const int64_t padded_taps = round_up(taps, kBlockClasses), width = std::max(lanes, backward ? chunk : 0);
        s.weights = ws.take<T>("weights", taps * lanes);
        s.exponents = ws.take<T>("exponents", taps * lanes);
        s.colours = ws.take<T>("colours", 3 * lanes);
        s.row_spatial = ws.take<T>("row_spatial", row_nodes * lanes);
        s.column_spatial = ws.take<T>("column_spatial", column_nodes * lanes);
        s.stage = ws.take<T>("stage", kBlockClasses * width);
        s.best = ws.take<T>("best", backward ? padded_taps * lanes : lanes);
        s.values = ws.take<T>("values", backward ? lanes * chunk : 0);
        s.label = ws.take<T>("label", lanes);
        s.cell = ws.take<int32_t>("cell", lanes);
        s.special = ws.take<T>("special", backward ? 0 : nodes);
        return s;
    }
    UpsampleScratch<T> of_worker(int64_t index, int64_t neighbour = 0) const {
        Workspace ws(scratch + (index * neighbours + neighbour) * scratch_stride,
                     static_cast<std::size_t>(scratch_stride));
        return worker(ws);
    }
};

}  // namespace

// One image: pointers of `p` already moved to it.
#define OVS_DECLARE_UPSAMPLE_ISA(isa)                                                                             \
    namespace isa {                                                                                               \
    void joint_bilateral_upsample_image(const UpsampleParams& p, DType dtype, void* workspace, std::size_t bytes, \
                                        int threads);                                                             \
    }
#if defined(OVS_X86_LEVELS)
OVS_DECLARE_UPSAMPLE_ISA(v2)
OVS_DECLARE_UPSAMPLE_ISA(v3)
OVS_DECLARE_UPSAMPLE_ISA(v4)
#else
OVS_DECLARE_UPSAMPLE_ISA(baseline)
#endif
#undef OVS_DECLARE_UPSAMPLE_ISA

}  // namespace ovs
