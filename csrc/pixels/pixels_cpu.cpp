// lp_pixels on a CPU: workspace, the loop over images, and the choice of the instruction-set level.
#include "pixels/pixels_cpu.h"

#include "common/error.h"
#include "pixels/pixels_batch.h"

namespace ovs {
namespace {

template <class T>
std::size_t image_bytes(const PixelsParams& p) {
    Workspace counter(nullptr, 0);
    PixelsBuffers<T>(p, PixelsGrid(p), counter);
    return counter.used();
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
    check_params(p);
    return dtype == DType::kFloat64 ? image_bytes<double>(p) : image_bytes<float>(p);
}

void lp_pixels_cpu(const PixelsParams& p, DType dtype, void* workspace, std::size_t workspace_bytes, int num_threads,
                   CpuIsa isa) {
    check_params(p);
    if (p.batch == 0 || p.num_classes == 0 || p.height == 0 || p.width == 0) return;
    const ImageFunction run = image_function(isa);
    for (int64_t i = 0; i < p.batch; ++i) {
        run(image_of(p, i, dtype_bytes(dtype)), dtype, workspace, workspace_bytes, num_threads);
    }
}

}  // namespace ovs
