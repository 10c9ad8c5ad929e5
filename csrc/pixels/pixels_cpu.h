// Inside the CPU half of the pixels family: sizes, the workspace's map, and what each instruction-set level exports.
#pragma once
#include <algorithm>
#include <cstdint>

#include "common/workspace.h"
#include "pixels/pixels.h"
#include "pixels/pixels_math.h"

namespace ovs {

namespace {  // internal linkage: each instruction-set level keeps its own copy

constexpr int kTilePixels = 8;     // pixels per register tile, along x
constexpr int kStripPixels = 128;  // widest strip: its weights and 2R+1 rows of state stay in L2
constexpr int kPlaneClasses = 16;  // classes of a full plane of state: float32 ones of a pixel fill a cache line

// The image is cut into vertical strips, walked top to bottom. Each strip owns the weights of its columns and of R
// columns to either side, so that a tile never leaves its strip's weights.
struct PixelsGrid {
    int64_t height, width;
    int radius, num_offsets;
    int64_t num_strips, strip_pixels;  // strip_pixels: a multiple of kTilePixels
    int64_t weight_stride;             // strip_pixels at most kStripPixels, plus 2R, in one of two fixed strides
    int64_t pitch;                     // pixels per row of state, with R zero pixels to either side
    int chunk;                         // classes solved together

    PixelsGrid(const PixelsParams& p)
        : height(p.height), width(p.width), radius(p.window / 2), num_offsets(num_forward_offsets(radius)) {
        num_strips = std::max<int64_t>(1, ceil_div(width, kStripPixels));
        strip_pixels = round_up(std::max<int64_t>(1, ceil_div(width, num_strips)), kTilePixels);
        weight_stride = radius <= 8 ? kNarrowStride : kWideStride;
        pitch = num_strips * strip_pixels + 2 * radius;
        chunk = static_cast<int>(std::min<int64_t>(p.class_chunk, round_up(p.num_classes, kClassGranule)));
    }
    int64_t weights_per_row() const { return num_offsets * weight_stride; }
    int64_t strip_row(int64_t strip, int64_t y) const { return strip * height + y; }
    int num_planes() const { return static_cast<int>(ceil_div(chunk, kPlaneClasses)); }
    int64_t plane_pixels() const { return height * pitch; }
    int64_t haloed_pixels() const { return (height + 2 * radius) * pitch; }

    // Not powers of two: rows of weights must not fall into the same cache sets.
    static constexpr int64_t kNarrowStride = kStripPixels + 16, kWideStride = kStripPixels + 32;
};

// Classes [begin, begin + classes) of the chunk: `classes` per pixel, innermost.
template <class T>
struct PixelsPlane {
    int begin, classes;
    T *front, *back, *first, *solution, *residual;
};

// State arrays are planes of kPlaneClasses classes one after the other, the last one may be kClassGranule wide. `front`
// and `back` have R zero rows above and below.
template <class T>
struct PixelsBuffers {
    T* features;          // [F, H, W]
    T* weights;           // [strips, H, offsets, weight_stride]
    T* no_weights;        // [offsets, weight_stride] zeros: the row above the image
    T* degree;            // [H, pitch], 0 outside the image
    T* inverse_degree;    // [H, pitch], 0 outside the image
    T* front;             // [plane, H + 2R, pitch, classes]  official: p      exact: the iterate
    T* back;              // [plane, H + 2R, pitch, classes]  official: unused  exact: the iterate before
    T* first;             // [plane, H, pitch, classes]       official: q      exact: y
    T* solution;          // [plane, H, pitch, classes]       official: x
    T* residual;          // [plane, H, pitch, classes]       official: r
    double* dot_rows;     // [strips * H, 2, chunk] partial inner products, added in a fixed order
    T* best;              // [H, W] labels only: the largest score so far
    T* scale;             // [chunk] power of two that brings a class near 1
    uint8_t* finite;      // [chunk]
    ClassState* classes;  // [chunk]

    PixelsBuffers(const PixelsParams& p, const PixelsGrid& g, Workspace& ws) {
        const bool official = p.mode == SolveMode::kOfficial;
        const int64_t pixels = g.plane_pixels(), haloed = g.haloed_pixels();
        weights = ws.take<T>("weights", g.num_strips * g.height * g.weights_per_row());
        front = ws.take<T>("front", haloed * g.chunk);
        back = ws.take<T>("back", official ? 0 : haloed * g.chunk);
        first = ws.take<T>("first", pixels * g.chunk);
        solution = ws.take<T>("solution", official ? pixels * g.chunk : 0);
        residual = ws.take<T>("residual", official ? pixels * g.chunk : 0);
        features = ws.take<T>("features", p.num_features * g.height * g.width);
        no_weights = ws.take<T>("no_weights", g.weights_per_row());
        degree = ws.take<T>("degree", pixels);
        inverse_degree = ws.take<T>("inverse_degree", pixels);
        dot_rows = ws.take<double>("dot_rows", g.num_strips * g.height * 2 * g.chunk);
        best = ws.take<T>("best", p.labels != nullptr ? g.height * g.width : 0);
        scale = ws.take<T>("scale", g.chunk);
        finite = ws.take<uint8_t>("finite", g.chunk);
        classes = ws.take<ClassState>("classes", g.chunk);
    }

    PixelsPlane<T> plane(const PixelsGrid& g, int index) const {
        const int begin = index * kPlaneClasses;
        const int64_t at = begin * g.plane_pixels(), at_haloed = begin * g.haloed_pixels();
        return {begin,
                std::min(kPlaneClasses, g.chunk - begin),
                front + at_haloed,
                back + at_haloed,
                first + at,
                solution + at,
                residual + at};
    }
};

}  // namespace

// One image: pointers of `p` already moved to it.
#define OVS_DECLARE_PIXELS_ISA(isa)                                                                            \
    namespace isa {                                                                                            \
    void lp_pixels_image(const PixelsParams& p, DType dtype, void* workspace, std::size_t bytes, int threads); \
    }
#if defined(OVS_X86_LEVELS)
OVS_DECLARE_PIXELS_ISA(v2)
OVS_DECLARE_PIXELS_ISA(v3)
OVS_DECLARE_PIXELS_ISA(v4)
#else
OVS_DECLARE_PIXELS_ISA(baseline)
#endif
#undef OVS_DECLARE_PIXELS_ISA

}  // namespace ovs
