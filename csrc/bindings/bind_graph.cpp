// knn_graph_cpu, knn_graph_cuda and the sizes of their workspaces.
#include "bindings/bind.h"
#include "graph/graph.h"

namespace ovs::bindings {
namespace {

KnnGraphParams read_params(Fields& f) {
    KnnGraphParams p;
    p.features = f.pointer<const void>("features");
    p.positions = f.pointer<const void>("positions");
    p.unit_rows = f.pointer<void>("unit_rows");
    p.products = f.pointer<const void>("products");
    p.tile_numbers = f.pointer<const int32_t>("tile_numbers");
    p.indptr = f.pointer<int32_t>("indptr");
    p.total = f.pointer<int64_t>("total");
    p.indices = f.pointer<int32_t>("indices");
    p.weights = f.pointer<void>("weights");
    p.degrees = f.pointer<void>("degrees");
    p.num_nodes = f.value<int64_t>("num_nodes");
    p.num_features = f.value<int64_t>("num_features");
    p.first_row = f.value<int64_t>("first_row");
    p.last_row = f.value<int64_t>("last_row");
    p.num_others = f.value<int64_t>("num_others");
    p.gamma = f.value<double>("gamma");
    p.sigma = f.value<double>("sigma");
    p.stage = f.enumeration<KnnGraphStage>("stage");
    return p;
}

void run_cpu(const py::kwargs& kwargs) {
    Fields f(kwargs);
    const KnnGraphParams p = read_params(f);
    const auto dtype = f.enumeration<DType>("dtype");
    void* const workspace = f.pointer<void>("workspace");
    const auto bytes = f.value<std::size_t>("workspace_bytes");
    const int threads = f.value<int>("num_threads");
    const auto isa = f.enumeration<CpuIsa>("isa");
    f.done();
    const py::gil_scoped_release release;
    knn_graph_cpu(p, dtype, workspace, bytes, threads, isa);
}

std::size_t cpu_workspace_bytes(const py::kwargs& kwargs) {
    Fields f(kwargs);
    const KnnGraphParams p = read_params(f);
    const auto dtype = f.enumeration<DType>("dtype");
    const int threads = f.value<int>("num_threads");
    f.done();
    return knn_graph_cpu_workspace_bytes(p, dtype, threads);
}

#ifdef OVS_WITH_CUDA
void run_cuda(const py::kwargs& kwargs) {
    Fields f(kwargs);
    const KnnGraphParams p = read_params(f);
    void* const workspace = f.pointer<void>("workspace");
    const auto bytes = f.value<std::size_t>("workspace_bytes");
    const int device = f.value<int>("device");
    void* const stream = f.pointer<void>("stream");
    f.done();
    const py::gil_scoped_release release;
    knn_graph_cuda(p, workspace, bytes, device, stream);
}

std::size_t cuda_workspace_bytes(const py::kwargs& kwargs) {
    Fields f(kwargs);
    const KnnGraphParams p = read_params(f);
    f.done();
    return knn_graph_cuda_workspace_bytes(p);
}
#endif

}  // namespace

void bind_graph(py::module_& m) {
    m.def("knn_graph_cpu", &run_cpu);
    m.def("knn_graph_cpu_workspace_bytes", &cpu_workspace_bytes);
#ifdef OVS_WITH_CUDA
    m.def("knn_graph_cuda", &run_cuda);
    m.def("knn_graph_cuda_workspace_bytes", &cuda_workspace_bytes);
#endif
}

}  // namespace ovs::bindings
