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
    p.block = f.value<int64_t>("block");
    p.num_others = f.value<int64_t>("num_others");
    p.gamma = f.value<double>("gamma");
    p.sigma = f.value<double>("sigma");
    p.stage = f.enumeration<KnnGraphStage>("stage");
    return p;
}

}  // namespace

void bind_graph(py::module_& m) {
    bind(m, "knn_graph_cpu", &read_params, &knn_graph_cpu);
    bind(m, "knn_graph_cpu_workspace_bytes", &read_params, &knn_graph_cpu_workspace_bytes);
#ifdef OVS_WITH_CUDA
    bind(m, "knn_graph_cuda", &read_params, &knn_graph_cuda);
    bind(m, "knn_graph_cuda_workspace_bytes", &read_params, &knn_graph_cuda_workspace_bytes);
#endif
}

}  // namespace ovs::bindings
