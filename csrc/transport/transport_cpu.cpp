// sinkhorn and transport_map on a CPU: workspace, and the choice of the instruction-set level.
#include "transport/transport_cpu.h"

#include "common/error.h"

namespace ovs {
namespace {

template <class T>
std::size_t bytes_needed(const TransportParams& p) {
    Workspace counter(nullptr, 0);
    TransportBuffers<T>(TransportGrid(p), counter);
    return counter.used();
}

using SolveFunction = TransportReport (*)(const TransportParams&, DType, void*, std::size_t, int);

SolveFunction solve_function(CpuIsa isa) {
#if defined(OVS_X86_LEVELS)
    switch (isa) {
        case CpuIsa::kV4:
            return v4::transport_solve;
        case CpuIsa::kV3:
            return v3::transport_solve;
        case CpuIsa::kV2:
            return v2::transport_solve;
        default:
            throw InvalidArgument("sinkhorn: this build has the levels v2, v3 and v4");
    }
#else
    OVS_REQUIRE(isa == CpuIsa::kBaseline, "sinkhorn: this build has the baseline level only");
    return baseline::transport_solve;
#endif
}

}  // namespace

std::size_t transport_cpu_workspace_bytes(const TransportParams& p, DType dtype) {
    check_params(p);
    return dtype == DType::kFloat64 ? bytes_needed<double>(p) : bytes_needed<float>(p);
}

TransportReport transport_cpu(const TransportParams& p, DType dtype, void* workspace, std::size_t workspace_bytes,
                              int num_threads, CpuIsa isa) {
    check_params(p);
    return solve_function(isa)(p, dtype, workspace, workspace_bytes, num_threads);
}

}  // namespace ovs
