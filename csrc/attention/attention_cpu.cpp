// attention_mean on a CPU: the workspace, and the choice of the instruction-set level.
#include "attention/attention_cpu.h"

#include "common/error.h"

namespace ovs {
namespace {

template <class T>
std::size_t workspace_bytes(const AttentionParams& p, int num_threads) {
    Workspace counter(nullptr, 0);
    AttentionScratch<T>(p, num_threads, counter);
    return counter.used();
}

// More threads than tiles would only take scratch memory.
int useful_threads(const AttentionParams& p, int num_threads) {
    OVS_REQUIRE(num_threads >= 1, "attention_mean: no thread");
    return static_cast<int>(std::clamp<int64_t>(ceil_div(p.num_queries, kTileQueries), 1, num_threads));
}

using MeanFunction = void (*)(const AttentionParams&, DType, void*, std::size_t, int);

MeanFunction mean_function(CpuIsa isa) {
#if defined(OVS_X86_LEVELS)
    switch (isa) {
        case CpuIsa::kV4:
            return v4::attention_mean_level;
        case CpuIsa::kV3:
            return v3::attention_mean_level;
        case CpuIsa::kV2:
            return v2::attention_mean_level;
        default:
            throw InvalidArgument("attention_mean: this build has the levels v2, v3 and v4");
    }
#else
    OVS_REQUIRE(isa == CpuIsa::kBaseline, "attention_mean: this build has the baseline level only");
    return baseline::attention_mean_level;
#endif
}

}  // namespace

std::size_t attention_mean_cpu_workspace_bytes(const AttentionParams& p, DType dtype, int num_threads) {
    check_params(p, dtype);
    const int threads = useful_threads(p, num_threads);
    return dtype == DType::kFloat64 ? workspace_bytes<double>(p, threads) : workspace_bytes<float>(p, threads);
}

void attention_mean_cpu(const AttentionParams& p, DType dtype, void* workspace, std::size_t workspace_bytes,
                        int num_threads, CpuIsa isa) {
    check_params(p, dtype);
    mean_function(isa)(p, dtype, workspace, workspace_bytes, useful_threads(p, num_threads));
}

}  // namespace ovs
