// adaptive_conv and its two gradients, on CPU and CUDA, and the sizes of their buffers.
#include "adaptive/adaptive.h"
#include "bindings/bind.h"

namespace ovs::bindings {
namespace {

template <AdaptivePass kPass>
AdaptiveParams read_params(Fields& f) {
    AdaptiveParams p;
    p.pass = kPass;
    p.input = f.pointer<void>("input");
    p.filters = f.pointer<void>("filters");
    p.out = f.pointer<void>("out");
    p.batch = f.value<int64_t>("batch");
    p.num_channels = f.value<int64_t>("num_channels");
    p.height = f.value<int64_t>("height");
    p.width = f.value<int64_t>("width");
    p.filter_height = f.value<int64_t>("filter_height");
    p.filter_width = f.value<int64_t>("filter_width");
    return p;
}

template <AdaptivePass kPass>
void bind_pass(py::module_& m, const std::string& name) {
    bind(m, (name + "_cpu").c_str(), &read_params<kPass>, &adaptive_conv_cpu);
    bind(m, (name + "_cpu_workspace_bytes").c_str(), &read_params<kPass>, &adaptive_conv_cpu_workspace_bytes);
#ifdef OVS_WITH_CUDA
    bind(m, (name + "_cuda").c_str(), &read_params<kPass>, &adaptive_conv_cuda);
    bind(m, (name + "_cuda_workspace_bytes").c_str(), &read_params<kPass>, &adaptive_conv_cuda_workspace_bytes);
#endif
}

}  // namespace

void bind_adaptive(py::module_& m) {
    bind_pass<AdaptivePass::kForward>(m, "adaptive_conv");
    bind_pass<AdaptivePass::kInputBackward>(m, "adaptive_conv_input_backward");
    bind_pass<AdaptivePass::kFiltersBackward>(m, "adaptive_conv_filters_backward");
}

}  // namespace ovs::bindings
