// lp_graph_cpu, lp_graph_cuda and the sizes of their workspaces.
#include "bindings/bind.h"
#include "propagate/propagate.h"

namespace ovs::bindings {
namespace {

PropagateParams read_params(Fields& f) {
    PropagateParams p;
    p.indptr = f.pointer<const int64_t>("indptr");
    p.indices = f.pointer<const int32_t>("indices");
    p.weights = f.pointer<const void>("weights");
    p.degrees = f.pointer<const void>("degrees");
    p.scores = f.pointer<const void>("scores");
    p.out = f.pointer<void>("out");
    p.iterations = f.pointer<int32_t>("iterations");
    p.residuals = f.pointer<double>("residuals");
    p.num_nodes = f.value<int64_t>("num_nodes");
    p.num_links = f.value<int64_t>("num_links");
    p.num_classes = f.value<int64_t>("num_classes");
    p.alpha = f.value<double>("alpha");
    p.tol = f.value<double>("tol");
    p.max_iter = f.value<int>("max_iter");
    p.check = f.value<bool>("check");
    p.mode = f.enumeration<SolveMode>("mode");
    return p;
}

// Returns (fault, row); the fault is 0 where there is none.
std::pair<int, int64_t> run_cpu(const PropagateParams& p, DType dtype, void* workspace, std::size_t bytes, int threads,
                                CpuIsa isa) {
    const GraphReport report = lp_graph_cpu(p, dtype, workspace, bytes, threads, isa);
    return {static_cast<int>(report.fault), report.row};
}

}  // namespace

void bind_propagate(py::module_& m) {
    bind(m, "lp_graph_cpu", &read_params, &run_cpu);
    bind(m, "lp_graph_cpu_workspace_bytes", &read_params, &lp_graph_cpu_workspace_bytes);
#ifdef OVS_WITH_CUDA
    bind(m, "lp_graph_cuda", &read_params, &lp_graph_cuda);
    bind(m, "lp_graph_cuda_workspace_bytes", &read_params, &lp_graph_cuda_workspace_bytes);
#endif
}

}  // namespace ovs::bindings
