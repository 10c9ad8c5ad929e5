// adaptive_conv on a CPU: the workspace, and the choice of the instruction-set level.
#include "adaptive/adaptive_cpu.h"

#include <climits>

namespace ovs {
namespace {

// Products per thread at least: waking a thread costs as much as some hundred thousand of them.
constexpr int64_t kProductsPerThread = 1 << 18;

template <class T>
std::size_t workspace_bytes(const AdaptiveParams& p, int num_threads) {
    Workspace counter(nullptr, 0);
    AdaptiveScratch<T>(AdaptiveTileSizes(p), num_threads, counter);
    return counter.used();
}

using ConvFunction = void (*)(const AdaptiveParams&, DType, void*, std::size_t, int);

ConvFunction conv_function(CpuIsa isa) {
#if defined(OVS_X86_LEVELS)
    switch (isa) {
        case CpuIsa::kV4:
            return v4::adaptive_conv_level;
        case CpuIsa::kV3:
            return v3::adaptive_conv_level;
        case CpuIsa::kV2:
            return v2::adaptive_conv_level;
        default:
            throw InvalidArgument("adaptive_conv: this build has the levels v2, v3 and v4");
    }
#else
    OVS_REQUIRE(isa == CpuIsa::kBaseline, "adaptive_conv: this build has the baseline level only");
    return baseline::adaptive_conv_level;
#endif
}

void check_sizes(const AdaptiveParams& p, int num_threads) {
    OVS_REQUIRE(p.batch >= 0 && p.num_channels >= 0 && p.height >= 0 && p.width >= 0 && num_threads >= 1,
                "adaptive_conv: negative size");
    OVS_REQUIRE(p.filter_height >= 1 && p.filter_width >= 1, "adaptive_conv: filters without a tap");
    OVS_REQUIRE(p.filter_height <= INT_MAX && p.filter_width <= INT_MAX, "adaptive_conv: filters too large");
}

}  // namespace

std::size_t adaptive_conv_cpu_workspace_bytes(const AdaptiveParams& p, DType dtype, int num_threads) {
    check_sizes(p, num_threads);
    return dtype == DType::kFloat64 ? workspace_bytes<double>(p, num_threads) : workspace_bytes<float>(p, num_threads);
}

void adaptive_conv_cpu(const AdaptiveParams& p, DType dtype, void* workspace, std::size_t workspace_bytes,
                       int num_threads, CpuIsa isa) {
    check_sizes(p, num_threads);
    const int64_t pixels = p.batch * p.height * p.width;
    if (pixels == 0 || p.num_channels == 0) return;
    const ConvFunction run = conv_function(isa);
    const int64_t products = pixels * p.num_channels * p.filter_height * p.filter_width;
    const int64_t threads = std::min<int64_t>(num_threads, ceil_div(products, kProductsPerThread));
    run(p, dtype, workspace, workspace_bytes, static_cast<int>(threads));
}

}  // namespace ovs
