// affinity_pool on a CPU: the workspace, and the choice of the instruction-set level.
#include "affinity/affinity_cpu.h"

#include "common/error.h"

namespace ovs {
namespace {

template <class T>
std::size_t workspace_bytes(const AffinityParams& p, int num_threads) {
    Workspace counter(nullptr, 0);
    AffinityScratch<T>(p, num_threads, counter);
    return counter.used();
}

// More threads than half of the blocks would wait for each other.
int useful_threads(const AffinityParams& p, int num_threads) {
    OVS_REQUIRE(num_threads >= 1, "affinity_pool: no thread");
    const int64_t pairs = p.num_windows * ceil_div(ceil_div(p.num_patches, kBlock), 2);
    return static_cast<int>(std::clamp<int64_t>(pairs, 1, num_threads));
}

using PoolFunction = void (*)(const AffinityParams&, DType, void*, std::size_t, int);

PoolFunction pool_function(CpuIsa isa) {
#if defined(OVS_X86_LEVELS)
    switch (isa) {
        case CpuIsa::kV4:
            return v4::affinity_pool_level;
        case CpuIsa::kV3:
            return v3::affinity_pool_level;
        case CpuIsa::kV2:
            return v2::affinity_pool_level;
        default:
            throw InvalidArgument("affinity_pool: this build has the levels v2, v3 and v4");
    }
#else
    OVS_REQUIRE(isa == CpuIsa::kBaseline, "affinity_pool: this build has the baseline level only");
    return baseline::affinity_pool_level;
#endif
}

}  // namespace

std::size_t affinity_pool_cpu_workspace_bytes(const AffinityParams& p, DType dtype, int num_threads) {
    check_params(p, dtype);
    if (is_empty(p)) return 0;
    const int threads = useful_threads(p, num_threads);
    return dtype == DType::kFloat64 ? workspace_bytes<double>(p, threads) : workspace_bytes<float>(p, threads);
}

void affinity_pool_cpu(const AffinityParams& p, DType dtype, void* workspace, std::size_t workspace_bytes,
                       int num_threads, CpuIsa isa) {
    check_params(p, dtype);
    if (is_empty(p)) return;
    pool_function(isa)(p, dtype, workspace, workspace_bytes, useful_threads(p, num_threads));
}

}  // namespace ovs
