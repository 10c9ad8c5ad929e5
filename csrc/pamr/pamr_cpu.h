// Inside the CPU half of the pamr family: how an image is streamed, the scratch memory, and what each level exports.
//
// Iterations are fused: a pass over rows takes the scores through up to kMaxLevels of them. Level t works on blocks of
// rows that follow those of level t - 1 at a distance, so that the rows it reads are complete, and each level leaves
// its rows in a ring that is as deep as the next one looks back. The last level writes the result, over the rows that
// were read long ago, so `out` is the only array of its size. For labels it leaves them in one more ring, from where
// the best class of each pixel is updated, and earlier passes leave them in `between`, of some classes and rows.
//
// Where all dilations are multiples of a number n, a row is a neighbour only of rows that lie a multiple of n away, and
// of the first and the last of the image, which stand for what is beyond. So a thread takes one row in n at a time
// (PamrRows): their rings are n times shallower and stay in the second-level cache. The rows that go with the first
// and the last come before all others, and leave behind what these two were in every iteration (`edges`).
#pragma once
#include <algorithm>
#include <cstdint>
#include <numeric>

#include "common/error.h"
#include "common/index.h"
#include "common/workspace.h"
#include "pamr/pamr.h"
#include "pamr/pamr_math.h"

namespace ovs {

namespace {  // internal linkage: each instruction-set level keeps its own copy

constexpr int64_t kTeamRows = 8;  // rows that a level advances between two barriers of a team of threads
constexpr int64_t kClassesPerThread = 4;
constexpr int64_t kMaxLevels = 5;     // iterations of a pass
constexpr int64_t kMaxPasses = 4;     // of some rows before the next rows are taken
constexpr int64_t kBlockBytes = 128;  // of the pixels of a row whose weights lie together: whole vectors of every level
constexpr int64_t kLineBytes = 64;
constexpr int64_t kChunkClasses = 8;         // taken together, more if their rings fit into the cache:
constexpr int64_t kRingBytes = 768 << 10;    // the second level, where the weights of all rows are kept,
constexpr int64_t kWideRingBytes = 6 << 20;  // the third, where each chunk makes its own
constexpr int64_t kKeptBytes = 5 << 19;      // of weights that are kept for all chunks and passes
constexpr int64_t kShareClasses = 32;        // a thread's work is cut into pieces of about so many classes

// Rows that see each other: `first`, `first + step`, .. and, if it is another one, `second`, `second + step`, ..; both
// have equally many then.
struct PamrRows {
    int64_t step, first, second;
    int64_t count, reach;  // reach: how far apart neighbours are in this order
    int64_t block_rows;    // that a level advances at a time
    int64_t lag;           // blocks from a level to the next
    int64_t ring_rows, weight_rows;
    bool kept;  // weight_rows are all rows

    bool two() const { return first != second; }
    bool has(int64_t y) const { return y % step == first || y % step == second; }
    int64_t row(int64_t i) const { return two() ? i / 2 * step + (i % 2 == 0 ? first : second) : i * step + first; }
    int64_t index(int64_t y) const { return two() ? y / step * 2 + (y % step == second ? 1 : 0) : y / step; }
};

// How one image is streamed; T is the type of the numbers.
template <class T>
struct PamrGrid {
    static constexpr int64_t kBlock = kBlockBytes / sizeof(T);
    static constexpr int64_t kLine = kLineBytes / sizeof(T);

    int64_t taps, reach_y, reach_x;
    int64_t workers, team;              // chunks of classes that are made at the same time, and the threads of each
    int64_t left, padded_width, pitch;  // a row of a ring: `left` columns of border, the pixels, border again
    int64_t levels;                     // iterations of the longest pass
    int64_t passes, together;           // passes of some rows before the next rows are taken
    int64_t step;                       // every how many-th row is taken together
    int64_t ring_rows = 0, weight_rows = 0;  // of the rows that need most
    int64_t most_rows = 0;                   // of a set
    int64_t rings;                           // of a worker
    int64_t share, chunk;                    // classes of a piece of work, and those of them that are taken together
    int64_t edge_levels;                     // iterations that `edges` holds
    int64_t image_stride, row_stride;        // from row to row of a ring
    int64_t weight_stride;                   // from row to row of the weights

    // With enough classes a thread has its own rings and never waits; else all threads share the rows of a block.
    PamrGrid(const PamrParams& p, int threads) : height_(p.height) {
        const bool alone = threads == 1 || p.num_classes >= kClassesPerThread * threads;
        workers = alone ? threads : 1;
        team = alone ? 1 : threads;
        taps = kPamrTaps * p.num_dilations;
        const int64_t largest = *std::max_element(p.dilations, p.dilations + p.num_dilations);
        reach_y = pamr_reach(largest, p.height);
        reach_x = pamr_reach(largest, p.width);
        left = round_up(reach_x, kLine);
        padded_width = round_up(p.width, kBlock);
        pitch = odd_lines(left + padded_width + left);
        passes = ceil_div(p.num_iter, kMaxLevels);
        levels = p.backward ? 1 : ceil_div(p.num_iter, passes);
        rings = p.backward ? 0 : levels + (p.label_bytes != 0 ? 1 : 0);
        weight_stride = padded_width * taps;
        // For labels nothing but one chunk's rows is kept from pass to pass, so all passes follow each other.
        const bool sets = alone && !p.backward && (p.label_bytes == 0 || passes <= kMaxPasses);
        step = sets ? common_step(p) : 1;
        together = row_sets() > 1 ? kMaxPasses : passes;
        bool kept = row_sets() > 1;
        for (int64_t set = 0; set < row_sets(); ++set) {
            const PamrRows some = rows(set);
            most_rows = std::max(most_rows, some.count);
            ring_rows = std::max(ring_rows, p.backward ? p.height : some.ring_rows);
            weight_rows = std::max(weight_rows, p.backward ? p.height : some.weight_rows);
            kept = kept && (some.kept || set == 0);
        }
        edge_levels = row_sets() > 1 ? std::min(p.num_iter, together * levels) : 0;
        const int64_t class_bytes = levels * rows(row_sets() - 1).ring_rows * pitch * static_cast<int64_t>(sizeof(T));
        const int64_t fitting =
            std::max(kChunkClasses, (kept ? kRingBytes : kWideRingBytes) / std::max<int64_t>(class_bytes, 1));
        // Two chunks per worker at least where they make their own weights, so that all rings together stay below half
        // of the scores.
        const int64_t pieces = kept ? ceil_div(p.num_classes, kShareClasses)
                                    : std::max(ceil_div(p.num_classes, fitting), alone ? 2 * workers : 1);
        share = ceil_div(p.num_classes, round_up(pieces, workers));
        chunk = ceil_div(share, ceil_div(share, fitting));
        image_stride = odd_lines(p.num_features * pitch);
        row_stride = odd_lines(chunk * pitch);
    }

    // Sets of rows; the first has the first and the last row of the image.
    int64_t row_sets() const { return step - (last_rest() != 0 ? 1 : 0); }

    PamrRows rows(int64_t set) const {
        PamrRows found{};
        found.step = step;
        const int64_t last = last_rest();
        if (set == 0) {
            found.second = last;
        } else {
            found.first = found.second = set + (last != 0 && set >= last ? 1 : 0);
        }
        found.count = ceil_div(height_ - found.first, step) * (found.two() ? 2 : 1);
        found.reach = std::min(ceil_div(reach_y, step) * (found.two() ? 2 : 1), found.count - 1);
        if (team > 1) {
            found.block_rows = kTeamRows;
            found.lag = ceil_div(found.reach, kTeamRows) + 1;
        } else {
            found.block_rows = 1;
            found.lag = found.reach;
        }
        found.ring_rows = std::min(found.count, (found.lag + 1) * found.block_rows + found.reach);
        found.kept = found.count * weight_stride * static_cast<int64_t>(sizeof(T)) <= kKeptBytes;
        found.weight_rows = std::min(found.count, ((levels - 1) * found.lag + 1) * found.block_rows);
        if (found.kept) found.weight_rows = found.count;
        return found;
    }

    // Rows some powers of two bytes apart would fight for the same lines of the cache.
    static int64_t odd_lines(int64_t count) {
        const int64_t lines = ceil_div(count, kLine);
        return (lines % 2 == 0 ? lines + 1 : lines) * kLine;
    }

private:
    int64_t last_rest() const { return (height_ - 1) % step; }

    // The greatest common divisor of the dilations that lead from one row of the image to another one within it.
    static int64_t common_step(const PamrParams& p) {
        int64_t found = 0;
        for (int64_t i = 0; i < p.num_dilations; ++i) {
            if (p.dilations[i] < p.height - 1) found = std::gcd(found, p.dilations[i]);
        }
        return found == 0 ? p.height : found;
    }

    int64_t height_;
};

template <class T>
struct PamrBuffers {
    // Those of a worker follow each other; the transpose has one image and one set of weights.
    T* image;        // [ring_rows, F, pitch]
    T* image_edges;  // [2, F, pitch]: the first and the last row
    T* weights;      // [weight_rows, padded_width / kBlock, taps, kBlock]
    T* rings;        // forward   [rings, ring_rows, chunk, pitch]: what level t reads
    T* edges;        // forward   [edge_levels, 2, share, pitch]
    T* planes;       // backward  [threads, 2, H, pitch]
    T* between;      // labels    [chunk, most_rows, W]: of a pass that is not the last one
    T* best;         // labels    [H, W]: the largest result of a worker's classes
    int32_t* found;  // labels    [H, W]: its class

    PamrBuffers(const PamrParams& p, const PamrGrid<T>& grid, int threads, Workspace& ws) {
        const int64_t workers = p.backward ? 1 : grid.workers;
        image = ws.take<T>("image", workers * grid.ring_rows * grid.image_stride);
        image_edges = ws.take<T>("image_edges", grid.edge_levels > 0 ? workers * 2 * grid.image_stride : 0);
        weights = ws.take<T>("weights", workers * grid.weight_rows * grid.weight_stride);
        rings = ws.take<T>("rings", p.backward ? 0 : workers * grid.rings * grid.ring_rows * grid.row_stride);
        edges = ws.take<T>("edges", workers * grid.edge_levels * 2 * grid.share * grid.pitch);
        planes = ws.take<T>("planes", p.backward ? 2 * threads * p.height * grid.pitch : 0);
        const int64_t labelled = p.label_bytes != 0 ? workers * p.width : 0;
        between = ws.take<T>("between", grid.passes > 1 ? labelled * grid.chunk * grid.most_rows : 0);
        best = ws.take<T>("best", labelled * p.height);
        found = ws.take<int32_t>("found", labelled * p.height);
    }
};

}  // namespace

// One image: pointers of `p` already moved to it.
#define OVS_DECLARE_PAMR_ISA(isa)                                                                           \
    namespace isa {                                                                                         \
    void pamr_image(const PamrParams& p, DType dtype, void* workspace, std::size_t bytes, int num_threads); \
    }
#if defined(OVS_X86_LEVELS)
OVS_DECLARE_PAMR_ISA(v2)
OVS_DECLARE_PAMR_ISA(v3)
OVS_DECLARE_PAMR_ISA(v4)
#else
OVS_DECLARE_PAMR_ISA(baseline)
#endif
#undef OVS_DECLARE_PAMR_ISA

}  // namespace ovs
