// affinity_pool_cpu, affinity_pool_cuda and the sizes of their workspaces.
#include "affinity/affinity.h"
#include "bindings/bind.h"

namespace ovs::bindings {
namespace {

AffinityParams read_params(Fields& f) {
    AffinityParams p;
    p.features = f.pointer<const void>("features");
    p.guide = f.pointer<const void>("guide");
    p.pooled = f.pointer<void>("pooled");
    p.num_windows = f.value<int64_t>("num_windows");
    p.num_patches = f.value<int64_t>("num_patches");
    p.num_features = f.value<int64_t>("num_features");
    p.num_guide = f.value<int64_t>("num_guide");
    p.form = f.enumeration<AffinityForm>("form");
    p.threshold = f.value<double>("threshold");
    p.beta = f.value<double>("beta");
    p.gamma = f.value<double>("gamma");
    p.normalize = f.value<bool>("normalize");
    return p;
}

}  // namespace

void bind_affinity(py::module_& m) {
    bind(m, "affinity_pool_cpu", &read_params, &affinity_pool_cpu);
    bind(m, "affinity_pool_cpu_workspace_bytes", &read_params, &affinity_pool_cpu_workspace_bytes);
#ifdef OVS_WITH_CUDA
    bind(m, "affinity_pool_cuda", &read_params, &affinity_pool_cuda);
    bind(m, "affinity_pool_cuda_workspace_bytes", &read_params, &affinity_pool_cuda_workspace_bytes);
#endif
}

}  // namespace ovs::bindings
