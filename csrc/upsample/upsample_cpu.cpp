// joint_bilateral_upsample on a CPU: workspace, the loop over images, and the choice of the instruction-set level.
#include "upsample/upsample_cpu.h"

#include "common/error.h"

namespace ovs {
namespace {

template <class T>
std::size_t image_bytes(const UpsampleParams& p, int threads) {
    Workspace counter(nullptr, 0);
    UpsampleBuffers<T>(p, UpsampleGrid(p, sizeof(T)), threads, counter);
    return counter.used();
}

UpsampleParams image_of(const UpsampleParams& p, int64_t index, int64_t real_bytes) {
    UpsampleParams image = p;
    const int64_t low = p.num_classes * p.low_height * p.low_width, pixels = p.height * p.width;
    const auto at = [&](auto* base, int64_t bytes) {
        using Pointer = decltype(base);
        return base == nullptr ? base : (Pointer)((const char*)base + index * bytes);
    };
    image.maps = at(p.maps, low * real_bytes);
    image.up = at(p.up, p.num_classes * pixels * real_bytes);
    image.labels = at(p.labels, pixels * p.label_bytes);
    image.guide = at(p.guide, 3 * pixels * real_bytes);
    image.missing = at(p.missing, low);
    image.batch = 1;
    return image;
}

using ImageFunction = void (*)(const UpsampleParams&, DType, void*, std::size_t, int);

ImageFunction image_function(CpuIsa isa) {
#if defined(OVS_X86_LEVELS)
    switch (isa) {
        case CpuIsa::kV4:
            return v4::joint_bilateral_upsample_image;
        case CpuIsa::kV3:
            return v3::joint_bilateral_upsample_image;
        case CpuIsa::kV2:
            return v2::joint_bilateral_upsample_image;
        default:
            throw InvalidArgument("joint_bilateral_upsample: this build has the levels v2, v3 and v4");
    }
#else
    OVS_REQUIRE(isa == CpuIsa::kBaseline, "joint_bilateral_upsample: this build has the baseline level only");
    return baseline::joint_bilateral_upsample_image;
#endif
}

}  // namespace

std::size_t joint_bilateral_upsample_cpu_workspace_bytes(const UpsampleParams& p, DType dtype, int num_threads) {
    check_params(p);
    OVS_REQUIRE(num_threads >= 1, "joint_bilateral_upsample: no thread");
    return dtype == DType::kFloat64 ? image_bytes<double>(p, num_threads) : image_bytes<float>(p, num_threads);
}

void joint_bilateral_upsample_cpu(const UpsampleParams& p, DType dtype, void* workspace, std::size_t workspace_bytes,
                                  int num_threads, CpuIsa isa) {
    check_params(p);
    OVS_REQUIRE(num_threads >= 1, "joint_bilateral_upsample: no thread");
    if (p.batch == 0 || p.num_classes == 0) return;
    const ImageFunction run = image_function(isa);
    for (int64_t i = 0; i < p.batch; ++i) {
        run(image_of(p, i, static_cast<int64_t>(dtype_bytes(dtype))), dtype, workspace, workspace_bytes, num_threads);
    }
}

}  // namespace ovs
