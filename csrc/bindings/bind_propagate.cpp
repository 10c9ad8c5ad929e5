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
std::pair<int, int64_t> run_cpu(const py::kwargs& kwargs) {
    Fields f(kwargs);
    const PropagateParams p = read_params(f);
    const auto dtype = f.enumeration<DType>("dtype");
    void* const workspace = f.pointer<void>("workspace");
    const auto bytes = f.value<std::size_t>("workspace_bytes");
    const int threads = f.value<int>("num_threads");
    const auto isa = f.enumeration<CpuIsa>("isa");
    f.done();
    const py::gil_scoped_release release;
    const GraphReport report = lp_graph_cpu(p, dtype, workspace, bytes, threads, isa);
    return {static_cast<int>(report.fault), report.row};
}

std::size_t cpu_workspace_bytes(const py::kwargs& kwargs) {
    Fields f(kwargs);
    const PropagateParams p = read_params(f);
    const auto dtype = f.enumeration<DType>("dtype");
    f.done();
    return lp_graph_cpu_workspace_bytes(p, dtype);
}

#ifdef OVS_WITH_CUDA
void run_cuda(const py::kwargs& kwargs) {
    Fields f(kwargs);
    const PropagateParams p = read_params(f);
    void* const workspace = f.pointer<void>("workspace");
    const auto bytes = f.value<std::size_t>("workspace_bytes");
    const int device = f.value<int>("device");
    void* const stream = f.pointer<void>("stream");
    f.done();
    const py::gil_scoped_release release;
    lp_graph_cuda(p, workspace, bytes, device, stream);
}

std::size_t cuda_workspace_bytes(const py::kwargs& kwargs) {
    Fields f(kwargs);
    const PropagateParams p = read_params(f);
    f.done();
    return lp_graph_cuda_workspace_bytes(p);
}
#endif

}  // namespace

void bind_propagate(py::module_& m) {
    m.def("lp_graph_cpu", &run_cpu);
    m.def("lp_graph_cpu_workspace_bytes", &cpu_workspace_bytes);
#ifdef OVS_WITH_CUDA
    m.def("lp_graph_cuda", &run_cuda);
    m.def("lp_graph_cuda_workspace_bytes", &cuda_workspace_bytes);
#endif
}

}  // namespace ovs::bindings
