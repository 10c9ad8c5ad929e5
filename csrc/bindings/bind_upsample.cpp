// joint_bilateral_upsample_cpu, joint_bilateral_upsample_cuda, their transposes, and the sizes of their workspaces.
#include "bindings/bind.h"
#include "upsample/upsample.h"

namespace ovs::bindings {
namespace {

template <bool kBackward>
UpsampleParams read_params(Fields& f) {
    UpsampleParams p;
    p.backward = kBackward;
    p.maps = f.pointer<void>("maps");
    p.up = f.pointer<void>("up");
    p.labels = f.pointer<void>("labels");
    p.guide = f.pointer<const void>("guide");
    p.missing = f.pointer<const uint8_t>("missing");
    p.batch = f.value<int64_t>("batch");
    p.num_classes = f.value<int64_t>("num_classes");
    p.low_height = f.value<int64_t>("low_height");
    p.low_width = f.value<int64_t>("low_width");
    p.height = f.value<int64_t>("height");
    p.width = f.value<int64_t>("width");
    p.label_bytes = f.value<int>("label_bytes");
    p.sigma_spatial = f.value<double>("sigma_spatial");
    p.sigma_range = f.value<double>("sigma_range");
    p.radius = f.value<int>("radius");
    p.omit = f.value<bool>("omit");
    return p;
}

template <bool kBackward>
void bind_both(py::module_& m, const std::string& name) {
    const auto read = &read_params<kBackward>;
    bind(m, (name + "_cpu").c_str(), read, &joint_bilateral_upsample_cpu);
    bind(m, (name + "_cpu_workspace_bytes").c_str(), read, &joint_bilateral_upsample_cpu_workspace_bytes);
#ifdef OVS_WITH_CUDA
    bind(m, (name + "_cuda").c_str(), read, &joint_bilateral_upsample_cuda);
    bind(m, (name + "_cuda_workspace_bytes").c_str(), read, &joint_bilateral_upsample_cuda_workspace_bytes);
#endif
}

}  // namespace

void bind_upsample(py::module_& m) {
    bind_both<false>(m, "joint_bilateral_upsample");
    bind_both<true>(m, "joint_bilateral_upsample_backward");
}

}  // namespace ovs::bindings
