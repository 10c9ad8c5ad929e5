// pamr on a CPU: workspace, the loop over images, and the choice of the instruction-set level.
#include "pamr/pamr_cpu.h"

namespace ovs {
namespace {

// Products per thread at least: waking a thread costs as much as some hundred thousand of them.
constexpr int64_t kProductsPerThread = 1 << 18;

template <class T>
std::size_t image_bytes(const PamrParams& p, int threads) {
    Workspace counter(nullptr, 0);
    PamrBuffers<T>(p, PamrGrid<T>(p, threads), threads, counter);
    return counter.used();
}

using ImageFunction = void (*)(const PamrParams&, DType, void*, std::size_t, int);

ImageFunction image_function(CpuIsa isa) {
#if defined(OVS_X86_LEVELS)
    switch (isa) {
        case CpuIsa::kV4:
            return v4::pamr_image;
        case CpuIsa::kV3:
            return v3::pamr_image;
        case CpuIsa::kV2:
            return v2::pamr_image;
        default:
            throw InvalidArgument("pamr: this build has the levels v2, v3 and v4");
    }
#else
    OVS_REQUIRE(isa == CpuIsa::kBaseline, "pamr: this build has the baseline level only");
    return baseline::pamr_image;
#endif
}

int useful_threads(const PamrParams& p, int num_threads) {
    const int64_t products = p.height * p.width * p.num_classes * kPamrTaps * p.num_dilations;
    return static_cast<int>(std::min<int64_t>(num_threads, ceil_div(products, kProductsPerThread)));
}

}  // namespace

std::size_t pamr_cpu_workspace_bytes(const PamrParams& p, DType dtype, int num_threads) {
    check_params(p);
    OVS_REQUIRE(num_threads >= 1, "pamr: no thread");
    if (is_empty(p)) return 0;
    const int threads = useful_threads(p, num_threads);
    return dtype == DType::kFloat64 ? image_bytes<double>(p, threads) : image_bytes<float>(p, threads);
}

void pamr_cpu(const PamrParams& p, DType dtype, void* workspace, std::size_t workspace_bytes, int num_threads,
              CpuIsa isa) {
    check_params(p);
    OVS_REQUIRE(num_threads >= 1, "pamr: no thread");
    if (is_empty(p)) return;
    const ImageFunction run = image_function(isa);
    const int64_t pixels = p.height * p.width;
    const int threads = useful_threads(p, num_threads);
    const int64_t real_bytes = static_cast<int64_t>(dtype_bytes(dtype));
    for (int64_t i = 0; i < p.batch; ++i) {
        PamrParams image = p;
        image.image = static_cast<const char*>(p.image) + i * p.num_features * pixels * real_bytes;
        image.scores = static_cast<const char*>(p.scores) + i * p.num_classes * pixels * real_bytes;
        if (p.label_bytes == 0) image.out = static_cast<char*>(p.out) + i * p.num_classes * pixels * real_bytes;
        if (p.label_bytes != 0) image.labels = static_cast<char*>(p.labels) + i * pixels * p.label_bytes;
        image.batch = 1;
        run(image, dtype, workspace, workspace_bytes, threads);
    }
}

}  // namespace ovs
