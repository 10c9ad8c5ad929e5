// Inside the CPU half of the pamr family: how an image is streamed, the scratch memory, and what each level exports.
//
// Iterations are fused: a pass over the image takes the scores through up to kMaxLevels of them. Level t works on
// blocks of rows that follow those of level t - 1 at a distance, so that the rows it reads are complete, and each level
// leaves its rows in a ring that is as deep as the next one looks back. The last level writes the result, over the rows
// that were read long ago, so `out` is the only array of its size. Weights are made where level 1 meets a row and kept
// until the last level has passed it.
#pragma once
#include <algorithm>
#include <cstdint>

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
constexpr int64_t kBlockBytes = 128;  // of the pixels of a row whose weights lie together: whole vectors of every level
constexpr int64_t kLineBytes = 64;
constexpr int64_t kRingBytes = 6 << 20;  // the rings of the classes that are taken together stay below, for the cache

// How one image is streamed; T is the type of the numbers.
template <class T>
struct PamrGrid {
    static constexpr int64_t kBlock = kBlockBytes / sizeof(T);
    static constexpr int64_t kLine = kLineBytes / sizeof(T);

    int64_t taps, reach_y, reach_x;
    int64_t workers, team;              // chunks of classes that are made at the same time, and the threads of each
    int64_t block_rows;                 // rows that a level advances at a time
    int64_t left, padded_width, pitch;  // a row of a ring: `left` columns of border, the pixels, border again
    int64_t levels;                     // iterations of the longest pass
    int64_t lag;                        // blocks from a level to the next
    int64_t ring_rows, weight_rows;
    int64_t chunk;                     // classes taken together
    int64_t image_stride, row_stride;  // from row to row of a ring
    int64_t weight_stride;             // from row to row of the weights

    // With enough classes a thread has its own rings and never waits; else all threads share the rows of a block.
    PamrGrid(const PamrParams& p, int threads) {
        const bool alone = threads == 1 || p.num_classes >= kClassesPerThread * threads;
        workers = alone ? threads : 1;
        team = alone ? 1 : threads;
        block_rows = alone ? 1 : kTeamRows;
        taps = kPamrTaps * p.num_dilations;
        const int64_t largest = *std::max_element(p.dilations, p.dilations + p.num_dilations);
        reach_y = pamr_reach(largest, p.height);
        reach_x = pamr_reach(largest, p.width);
        left = round_up(reach_x, kLine);
        padded_width = round_up(p.width, kBlock);
        pitch = odd_lines(left + padded_width + round_up(reach_x, kLine));
        levels = p.backward ? 1 : std::min(p.num_iter, kMaxLevels);
        lag = alone ? reach_y : ceil_div(reach_y, block_rows) + 1;
        ring_rows = p.backward ? p.height : std::min(p.height, (lag + 1) * block_rows + reach_y);
        weight_rows = p.backward ? p.height : std::min(p.height, ((levels - 1) * lag + 1) * block_rows);
        weight_stride = padded_width * taps;
        const int64_t class_bytes = levels * ring_rows * pitch * static_cast<int64_t>(sizeof(T));
        const int64_t most = std::max<int64_t>(8, kRingBytes / class_bytes);
        // Two chunks per worker at least, so that all rings together stay below half of the scores.
        const int64_t chunks = std::max(ceil_div(p.num_classes, most), alone ? 2 * workers : 1);
        chunk = ceil_div(p.num_classes, round_up(chunks, workers));
        image_stride = odd_lines(p.num_features * pitch);
        row_stride = odd_lines(chunk * pitch);
    }

    // Rows some powers of two bytes apart would fight for the same lines of the cache.
    static int64_t odd_lines(int64_t count) {
        const int64_t lines = ceil_div(count, kLine);
        return (lines % 2 == 0 ? lines + 1 : lines) * kLine;
    }
};

template <class T>
struct PamrBuffers {
    // Those of a worker follow each other; the transpose has one image and one set of weights.
    T* image;    // [ring_rows, F, pitch]
    T* weights;  // [weight_rows, padded_width / kBlock, taps, kBlock]
    T* rings;    // forward   [levels, ring_rows, chunk, pitch]: what level t reads
    T* planes;   // backward  [threads, 2, H, pitch]

    PamrBuffers(const PamrParams& p, const PamrGrid<T>& grid, int threads, Workspace& ws) {
        const int64_t workers = p.backward ? 1 : grid.workers;
        image = ws.take<T>("image", workers * grid.ring_rows * grid.image_stride);
        weights = ws.take<T>("weights", workers * grid.weight_rows * grid.weight_stride);
        rings = ws.take<T>("rings", p.backward ? 0 : workers * grid.levels * grid.ring_rows * grid.row_stride);
        planes = ws.take<T>("planes", p.backward ? 2 * threads * p.height * grid.pitch : 0);
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
