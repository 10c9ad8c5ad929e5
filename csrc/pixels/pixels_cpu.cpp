// lp_pixels on a CPU: workspace, the loop over images, and the choice of the instruction-set level.
#include "pixels/pixels_cpu.h"

#include "common/error.h"

namespace ovs {
namespace {

void check(const PixelsParams& p) {
    OVS_REQUIRE(p.batch >= 0 && p.num_classes >= 0 && p.height >= 0 && p.width >= 0, "lp_pixels: negative size");
    OVS_REQUIRE(p.num_features >= 1 && (!p.lab || p.num_features == 3), "lp_pixels: unsupported number of features");
    OVS_REQUIRE(p.window >= 1 && p.window <= kMaxWindow && p.window % 2 == 1, "lp_pixels: unsupported window");
    OVS_REQUIRE(p.class_chunk >= kClassGranule && p.class_chunk <= kMaxClassChunk && p.class_chunk % kClassGranule == 0,
                "lp_pixels: unsupported class_chunk");
    OVS_REQUIRE(p.label_bytes == 1 || p.label_bytes == 4, "lp_pixels: unsupported label_bytes");
}

template <class T>
std::size_t image_bytes(const PixelsParams& p) {
    Workspace counter(nullptr, 0);
    PixelsBuffers<T>(p, PixelsGrid(p), counter);
    return counter.used();
}

// The part of the batch that belongs to image `index`.
PixelsParams image_of(const PixelsParams& batch, int64_t index, std::size_t item) {
    PixelsParams p = batch;
    const int64_t pixels = p.height * p.width;
    const auto at = [&](auto* base, int64_t bytes) {
        using Pointer = decltype(base);
        return base == nullptr ? base : (Pointer)((const char*)base + index * bytes);
    };
    p.scores = at(p.scores, p.num_classes * pixels * item);
    p.guide = at(p.guide, p.num_features * pixels * item);
    p.out = at(p.out, p.num_groups * pixels * item);
    p.labels = at(p.labels, pixels * p.label_bytes);
    p.iterations = at(p.iterations, p.num_classes * sizeof(int32_t));
    p.residuals = at(p.residuals, p.num_classes * sizeof(double));
    return p;
}

using ImageFunction = void (*)(const PixelsParams&, DType, void*, std::size_t, int);

ImageFunction image_function(CpuIsa isa) {
#if defined(OVS_X86_LEVELS)
    switch (isa) {
        case CpuIsa::kV4:
            return v4::lp_pixels_image;
        case CpuIsa::kV3:
            return v3::lp_pixels_image;
        case CpuIsa::kV2:
            return v2::lp_pixels_image;
        default:
            throw InvalidArgument("lp_pixels: this build has the levels v2, v3 and v4");
    }
#else
    OVS_REQUIRE(isa == CpuIsa::kBaseline, "lp_pixels: this build has the baseline level only");
    return baseline::lp_pixels_image;
#endif
}

}  // namespace

std::size_t lp_pixels_cpu_workspace_bytes(const PixelsParams& p, DType dtype) {
    check(p);
    return dtype == DType::kFloat64 ? image_bytes<double>(p) : image_bytes<float>(p);
}

void lp_pixels_cpu(const PixelsParams& p, DType dtype, void* workspace, std::size_t workspace_bytes, int num_threads,
                   CpuIsa isa) {
    check(p);
    if (p.batch == 0 || p.num_classes == 0 || p.height == 0 || p.width == 0) return;
    const ImageFunction run = image_function(isa);
    for (int64_t i = 0; i < p.batch; ++i) {
        run(image_of(p, i, dtype_bytes(dtype)), dtype, workspace, workspace_bytes, num_threads);
    }
}

}  // namespace ovs
