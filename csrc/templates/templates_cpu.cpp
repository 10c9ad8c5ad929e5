// template_entropy and fuse_experts on a CPU: the workspaces, and the choice of the instruction-set level.
#include "templates/templates_cpu.h"

#include "common/error.h"

namespace ovs {
namespace {

template <class T>
std::size_t entropy_bytes(const TemplateEntropyParams& p, int num_threads) {
    Workspace counter(nullptr, 0);
    EntropyScratch<T>(p, num_threads, counter);
    return counter.used();
}

template <class T>
std::size_t fuse_bytes(const FuseExpertsParams& p, int num_threads) {
    Workspace counter(nullptr, 0);
    FuseScratch<T>(p, num_threads, counter);
    return counter.used();
}

template <class P>
using LevelFunction = void (*)(const P&, DType, void*, std::size_t, int);

#if defined(OVS_X86_LEVELS)
template <class P>
LevelFunction<P> choose(CpuIsa isa, LevelFunction<P> level2, LevelFunction<P> level3, LevelFunction<P> level4) {
    switch (isa) {
        case CpuIsa::kV4:
            return level4;
        case CpuIsa::kV3:
            return level3;
        case CpuIsa::kV2:
            return level2;
        default:
            throw InvalidArgument("templates: this build has the levels v2, v3 and v4");
    }
}
#define OVS_CHOOSE(P, isa, function) choose<P>(isa, &v2::function, &v3::function, &v4::function)
#else
template <class P>
LevelFunction<P> choose(CpuIsa isa, LevelFunction<P> only) {
    OVS_REQUIRE(isa == CpuIsa::kBaseline, "templates: this build has the baseline level only");
    return only;
}
#define OVS_CHOOSE(P, isa, function) choose<P>(isa, &baseline::function)
#endif

}  // namespace

std::size_t template_entropy_cpu_workspace_bytes(const TemplateEntropyParams& p, DType dtype, int num_threads) {
    check_params(p);
    OVS_REQUIRE(num_threads >= 1, "template_entropy: no threads");
    return dtype == DType::kFloat64 ? entropy_bytes<double>(p, num_threads) : entropy_bytes<float>(p, num_threads);
}

void template_entropy_cpu(const TemplateEntropyParams& p, DType dtype, void* workspace, std::size_t workspace_bytes,
                          int num_threads, CpuIsa isa) {
    check_params(p);
    if (p.num_templates == 0 || p.num_classes == 0 || p.num_patches == 0) return;
    OVS_CHOOSE(TemplateEntropyParams, isa, template_entropy_level)(p, dtype, workspace, workspace_bytes, num_threads);
}

std::size_t template_fixed_cpu_workspace_bytes(const TemplateFixedParams& p, DType dtype, int num_threads) {
    check_params(p);
    OVS_REQUIRE(num_threads >= 1 && dtype == DType::kFloat32, "template_entropy: integers stand for float32");
    Workspace counter(nullptr, 0);
    FixedScratch(p, num_threads, counter);
    return counter.used();
}

void template_fixed_cpu(const TemplateFixedParams& p, DType dtype, void* workspace, std::size_t workspace_bytes,
                        int num_threads, CpuIsa isa) {
    check_params(p);
    if (p.num_templates == 0 || p.num_classes == 0 || p.num_patches == 0) return;
    OVS_CHOOSE(TemplateFixedParams, isa, template_fixed_level)(p, dtype, workspace, workspace_bytes, num_threads);
}

std::size_t fuse_experts_cpu_workspace_bytes(const FuseExpertsParams& p, DType dtype, int num_threads) {
    check_params(p);
    OVS_REQUIRE(num_threads >= 1, "fuse_experts: no threads");
    return dtype == DType::kFloat64 ? fuse_bytes<double>(p, num_threads) : fuse_bytes<float>(p, num_threads);
}

void fuse_experts_cpu(const FuseExpertsParams& p, DType dtype, void* workspace, std::size_t workspace_bytes,
                      int num_threads, CpuIsa isa) {
    check_params(p);
    if (p.height == 0 || p.width == 0) return;
    OVS_CHOOSE(FuseExpertsParams, isa, fuse_experts_level)(p, dtype, workspace, workspace_bytes, num_threads);
}

}  // namespace ovs
