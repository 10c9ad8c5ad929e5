// lp_graph on a CPU: workspace, and the choice of the instruction-set level.
#include "propagate/propagate_cpu.h"

#include "common/error.h"

namespace ovs {
namespace {

template <class T>
std::size_t bytes_needed(const PropagateParams& p) {
    Workspace counter(nullptr, 0);
    PropagateBuffers<T>(PropagateGrid<T>(p), counter);
    return counter.used();
}

using SolveFunction = GraphReport (*)(const PropagateParams&, DType, void*, std::size_t, int);

SolveFunction solve_function(CpuIsa isa) {
#if defined(OVS_X86_LEVELS)
    switch (isa) {
        case CpuIsa::kV4:
            return v4::lp_graph_solve;
        case CpuIsa::kV3:
            return v3::lp_graph_solve;
        case CpuIsa::kV2:
            return v2::lp_graph_solve;
        default:
            throw InvalidArgument("lp_graph: this build has the levels v2, v3 and v4");
    }
#else
    OVS_REQUIRE(isa == CpuIsa::kBaseline, "lp_graph: this build has the baseline level only");
    return baseline::lp_graph_solve;
#endif
}

}  // namespace

std::size_t lp_graph_cpu_workspace_bytes(const PropagateParams& p, DType dtype) {
    check_params(p);
    return dtype == DType::kFloat64 ? bytes_needed<double>(p) : bytes_needed<float>(p);
}

GraphReport lp_graph_cpu(const PropagateParams& p, DType dtype, void* workspace, std::size_t workspace_bytes,
                         int num_threads, CpuIsa isa) {
    check_params(p);
    return solve_function(isa)(p, dtype, workspace, workspace_bytes, num_threads);
}

}  // namespace ovs
