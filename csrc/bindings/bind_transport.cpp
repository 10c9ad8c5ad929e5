// sinkhorn_cpu, sinkhorn_cuda, the same for transport_map, and the sizes of their workspaces: the core has one function
// for both, and the readout says which it is.
#include <tuple>

#include "bindings/bind.h"
#include "transport/transport.h"

namespace ovs::bindings {
namespace {

TransportParams read_params(Fields& f) {
    TransportParams p;
    p.cost = f.pointer<const void>("cost");
    p.a = f.pointer<const void>("a");
    p.b = f.pointer<const void>("b");
    p.f = f.pointer<void>("f");
    p.g = f.pointer<void>("g");
    p.map = f.pointer<void>("map");
    p.errors = f.pointer<double>("errors");
    p.status = f.pointer<int64_t>("status");
    p.num_rows = f.value<int64_t>("num_rows");
    p.num_columns = f.value<int64_t>("num_columns");
    p.num_classes = f.value<int64_t>("num_classes");
    p.epsilon = f.value<double>("epsilon");
    p.tol = f.value<double>("tol");
    p.mass_tolerance = f.value<double>("mass_tolerance");
    p.max_iter = f.value<int>("max_iter");
    p.b_per_class = f.value<bool>("b_per_class");
    p.exact_iters = f.value<bool>("exact_iters");
    p.normalize = f.value<bool>("normalize");
    p.cost_type = f.enumeration<DType>("cost_type");
    p.domain = f.enumeration<Domain>("domain");
    p.readout = f.enumeration<Readout>("readout");
    return p;
}

// Returns (fault, row, column); the fault is 0 where there is none.
std::tuple<int, int64_t, int64_t> run_cpu(const TransportParams& p, DType dtype, void* workspace, std::size_t bytes,
                                          int threads, CpuIsa isa) {
    const TransportReport report = transport_cpu(p, dtype, workspace, bytes, threads, isa);
    return {static_cast<int>(report.fault), report.row, report.column};
}

}  // namespace

void bind_transport(py::module_& m) {
    bind(m, "sinkhorn_cpu", &read_params, &run_cpu);
    bind(m, "sinkhorn_cpu_workspace_bytes", &read_params, &transport_cpu_workspace_bytes);
    bind(m, "transport_map_cpu", &read_params, &run_cpu);
    bind(m, "transport_map_cpu_workspace_bytes", &read_params, &transport_cpu_workspace_bytes);
#ifdef OVS_WITH_CUDA
    bind(m, "sinkhorn_cuda", &read_params, &transport_cuda);
    bind(m, "sinkhorn_cuda_workspace_bytes", &read_params, &transport_cuda_workspace_bytes);
    bind(m, "transport_map_cuda", &read_params, &transport_cuda);
    bind(m, "transport_map_cuda_workspace_bytes", &read_params, &transport_cuda_workspace_bytes);
#endif
}

}  // namespace ovs::bindings
