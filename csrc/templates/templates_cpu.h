// Inside the CPU half of the templates family: the scratch memory, and what each instruction-set level exports.
#pragma once
#include <algorithm>
#include <cstdint>

#include "common/workspace.h"
#include "templates/templates.h"
#include "templates/templates_math.h"

namespace ovs {
namespace {  // internal linkage: each instruction-set level keeps its own copy

constexpr int64_t kLineNumbers = 16;  // workers stay out of each other's cache lines

template <class T>
struct EntropyScratch {
    T* rows;           // [workers, source rows and one more, queries, kStrip] stretched rows of a strip; a blended one
    int16_t* agreed;   // [workers, source rows] the query that all patches of a stretched row agree on, -1 for none
    int16_t* best;     // [templates, pitch] most likely query of a patch
    int64_t* tallies;  // [workers, 6, K] counts and sums
    int64_t rows_stride, agreed_stride, tally_stride;

    EntropyScratch(const TemplateEntropyParams& p, int workers, Workspace& ws) {
        const int64_t sources = p.window_rows * p.grid_height;
        const bool pixels = p.out_height > 0;
        rows_stride = pixels ? (sources + 1) * p.num_queries * kStrip : 0;
        agreed_stride = pixels ? round_up(sources, 4 * kLineNumbers) : 0;
        tally_stride = round_up(6 * p.num_classes, kLineNumbers);
        rows = ws.take<T>("rows", workers * rows_stride);
        agreed = ws.take<int16_t>("agreed", workers * agreed_stride);
        best = ws.take<int16_t>("best", pixels ? p.num_templates * p.pitch : 0);
        tallies = ws.take<int64_t>("tallies", workers * tally_stride);
    }
};

// Products of integers: patches in blocks, features in chunks whose sums fit 32 bits.
constexpr int kBlock = 32, kChunk = 64;

// Lengths of what was rounded, and of the rounding; the largest of several.
struct Rounding {
    double length = 0.0, error = 0.0;

    void include(const Rounding& other) {
        length = larger(length, other.length);
        error = larger(error, other.error);
    }
    static double larger(double a, double b) { return b > a || b != b ? b : a; }  // NaN stays
};

struct FixedWorker {
    int16_t* integers;  // [queries, pitch] of a template
    float* steps;       // [queries] what integers are multiples of, and what makes logits of them
    float* offsets;     // [queries]
    float* mean;        // [pitch]
    float* row;         // [pitch]
    float* logits;      // [queries, kBlock]
    int64_t* tally;     // [3, K] counts and sums
};

struct FixedScratch {
    int64_t blocks, pitch;  // pitch: features in whole chunks
    float* centre;          // [pitch] mean of the patches
    float* steps;           // [blocks * kBlock] what the integers of a patch are multiples of
    int16_t* integers;      // [blocks, pitch / 2, kBlock, 2]
    Rounding* roundings;    // [blocks]
    FixedWorker first;
    int64_t text_stride, query_stride, tally_stride;

    FixedScratch(const TemplateFixedParams& p, int workers, Workspace& ws)
        : blocks(ceil_div(p.num_patches, kBlock)),
          pitch(round_up(p.num_features, kChunk)),
          text_stride(p.num_queries * pitch),
          query_stride(round_up(p.num_queries, kLineNumbers)),
          tally_stride(round_up(3 * p.num_classes, kLineNumbers)) {
        centre = ws.take<float>("centre", pitch);
        steps = ws.take<float>("steps", blocks * kBlock);
        integers = ws.take<int16_t>("integers", blocks * kBlock * pitch);
        roundings = ws.take<Rounding>("roundings", blocks);
        first.integers = ws.take<int16_t>("texts", workers * text_stride);
        first.steps = ws.take<float>("text steps", workers * query_stride);
        first.offsets = ws.take<float>("offsets", workers * query_stride);
        first.mean = ws.take<float>("mean", workers * pitch);
        first.row = ws.take<float>("row", workers * pitch);
        first.logits = ws.take<float>("logits", workers * query_stride * kBlock);
        first.tally = ws.take<int64_t>("tally", workers * tally_stride);
    }

    FixedWorker of_worker(int64_t worker) const {
        return {first.integers + worker * text_stride,
                first.steps + worker * query_stride,
                first.offsets + worker * query_stride,
                first.mean + worker * pitch,
                first.row + worker * pitch,
                first.logits + worker * query_stride * kBlock,
                first.tally + worker * tally_stride};
    }
};

// An expert's part in up to kStrip pixels of a row: its probabilities left and right of them.
constexpr int64_t kMostParts = 256;  // parts that are kept before they are written out; a few cells' worth

template <class T>
struct FuseScratch {
    T* own;            // [patches, K] probability that an expert gives its own class
    int16_t* best;     // [patches, K] an expert's most likely class
    T* mean;           // [patches, K] mean over the experts; kAverage only
    Tap<T>* rows;      // [height]
    Tap<T>* columns;   // [width]
    T* right;          // [width in strips, and one more] weight of the upper neighbour of each column
    T* ends;           // [workers, parts, 2, K] left end and slope
    T* share;          // [workers, parts, kStrip]
    int32_t* cells;    // [workers, cells_stride] experts of a row of cells: accepted, then open
    int32_t* beaters;  // [workers, K] classes that beat an open expert at a corner
    T* label_best;     // [workers, width in strips]
    int32_t* label;    // [workers, width in strips]
    int64_t parts, ends_stride, share_stride, cells_stride, beaters_stride, label_stride;

    FuseScratch(const FuseExpertsParams& p, int workers, Workspace& ws) {
        const int64_t patches = p.grid_height * p.grid_width, classes = p.num_classes;
        parts = std::max(kMostParts, classes + 1);
        ends_stride = parts * 2 * round_up(classes, kLineNumbers);
        share_stride = parts * kStrip;
        cells_stride = round_up(p.grid_width * (classes + 2), kLineNumbers);
        beaters_stride = round_up(classes, kLineNumbers);
        label_stride = p.labels != nullptr ? round_up(p.width, kStrip) + kStrip : 0;
        own = ws.take<T>("own", patches * classes);
        best = ws.take<int16_t>("best", patches * classes);
        mean = ws.take<T>("mean", p.strategy == FuseStrategy::kAverage ? patches * classes : 0);
        rows = ws.take<Tap<T>>("rows", p.height);
        columns = ws.take<Tap<T>>("columns", p.width);
        right = ws.take<T>("right", round_up(p.width, kStrip) + kStrip);
        ends = ws.take<T>("ends", workers * ends_stride);
        share = ws.take<T>("share", workers * share_stride);
        cells = ws.take<int32_t>("cells", workers * cells_stride);
        beaters = ws.take<int32_t>("beaters", workers * beaters_stride);
        label_best = ws.take<T>("label_best", workers * label_stride);
        label = ws.take<int32_t>("label", workers * label_stride);
    }
};

}  // namespace

#define OVS_DECLARE_TEMPLATES_ISA(isa)                                                                           \
    namespace isa {                                                                                              \
    void template_entropy_level(const TemplateEntropyParams&, DType, void* workspace, std::size_t, int threads); \
    void template_fixed_level(const TemplateFixedParams&, DType, void* workspace, std::size_t, int threads);     \
    void fuse_experts_level(const FuseExpertsParams&, DType, void* workspace, std::size_t, int threads);         \
    }
#if defined(OVS_X86_LEVELS)
OVS_DECLARE_TEMPLATES_ISA(v2)
OVS_DECLARE_TEMPLATES_ISA(v3)
OVS_DECLARE_TEMPLATES_ISA(v4)
#else
OVS_DECLARE_TEMPLATES_ISA(baseline)
#endif
#undef OVS_DECLARE_TEMPLATES_ISA

}  // namespace ovs
