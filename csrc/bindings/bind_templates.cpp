// template_entropy_cpu, template_fixed_cpu, fuse_experts_cpu, their CUDA twins, and the sizes of their workspaces.
#include "bindings/bind.h"
#include "templates/templates.h"

namespace ovs::bindings {
namespace {

TemplateEntropyParams read_entropy(Fields& f) {
    TemplateEntropyParams p;
    p.logits = f.pointer<void>("logits");
    p.row_scale = f.pointer<const void>("row_scale");
    p.unknown = f.pointer<const uint8_t>("unknown");
    p.counts = f.pointer<int64_t>("counts");
    p.sums = f.pointer<int64_t>("sums");
    p.sum_stride = f.value<int64_t>("sum_stride");
    p.num_templates = f.value<int64_t>("num_templates");
    p.num_classes = f.value<int64_t>("num_classes");
    p.num_queries = f.value<int64_t>("num_queries");
    p.group_first = f.pointer<const int32_t>("group_first");
    p.group_of = f.pointer<const int32_t>("group_of");
    p.num_patches = f.value<int64_t>("num_patches");
    p.pitch = f.value<int64_t>("pitch");
    p.mano = f.value<bool>("mano");
    p.interpolate_logits = f.value<bool>("interpolate_logits");
    p.out_height = f.value<int64_t>("out_height");
    p.out_width = f.value<int64_t>("out_width");
    p.grid_height = f.value<int64_t>("grid_height");
    p.grid_width = f.value<int64_t>("grid_width");
    p.window_rows = f.value<int64_t>("window_rows");
    p.window_columns = f.value<int64_t>("window_columns");
    p.window_order = f.pointer<const int32_t>("window_order");
    p.row_first = f.pointer<const int32_t>("row_first");
    p.row_source = f.pointer<const int32_t>("row_source");
    p.row_weight = f.pointer<const void>("row_weight");
    p.strip_first = f.pointer<const int32_t>("strip_first");
    p.strip_source = f.pointer<const int32_t>("strip_source");
    p.strip_weight = f.pointer<const void>("strip_weight");
    return p;
}

TemplateFixedParams read_fixed(Fields& f) {
    TemplateFixedParams p;
    p.features = f.pointer<const float>("features");
    p.texts = f.pointer<const float>("texts");
    p.query_order = f.pointer<const int32_t>("query_order");
    p.unknown = f.pointer<const uint8_t>("unknown");
    p.counts = f.pointer<int64_t>("counts");
    p.sums = f.pointer<int64_t>("sums");
    p.sum_stride = f.value<int64_t>("sum_stride");
    p.done = f.pointer<uint8_t>("done");
    p.num_templates = f.value<int64_t>("num_templates");
    p.num_classes = f.value<int64_t>("num_classes");
    p.num_queries = f.value<int64_t>("num_queries");
    p.num_patches = f.value<int64_t>("num_patches");
    p.num_features = f.value<int64_t>("num_features");
    p.group_first = f.pointer<const int32_t>("group_first");
    p.group_of = f.pointer<const int32_t>("group_of");
    p.normalize = f.value<bool>("normalize");
    p.scale = f.value<double>("scale");
    p.largest_error = f.value<double>("largest_error");
    return p;
}

FuseExpertsParams read_fuse(Fields& f) {
    FuseExpertsParams p;
    p.products = f.pointer<void>("products");
    p.unknown = f.pointer<const uint8_t>("unknown");
    p.out = f.pointer<void>("out");
    p.weights = f.pointer<const void>("weights");
    p.labels = f.pointer<void>("labels");
    p.winners = f.pointer<int32_t>("winners");
    p.class_stride = f.value<int64_t>("class_stride");
    p.row_stride = f.value<int64_t>("row_stride");
    p.grid_height = f.value<int64_t>("grid_height");
    p.grid_width = f.value<int64_t>("grid_width");
    p.height = f.value<int64_t>("height");
    p.width = f.value<int64_t>("width");
    p.num_classes = f.value<int64_t>("num_classes");
    p.scale = f.value<double>("scale");
    p.strategy = f.enumeration<FuseStrategy>("strategy");
    return p;
}

}  // namespace

void bind_templates(py::module_& m) {
    bind(m, "template_entropy_cpu", &read_entropy, &template_entropy_cpu);
    bind(m, "template_entropy_cpu_workspace_bytes", &read_entropy, &template_entropy_cpu_workspace_bytes);
    bind(m, "template_fixed_cpu", &read_fixed, &template_fixed_cpu);
    bind(m, "template_fixed_cpu_workspace_bytes", &read_fixed, &template_fixed_cpu_workspace_bytes);
    bind(m, "fuse_experts_cpu", &read_fuse, &fuse_experts_cpu);
    bind(m, "fuse_experts_cpu_workspace_bytes", &read_fuse, &fuse_experts_cpu_workspace_bytes);
#ifdef OVS_WITH_CUDA
    bind(m, "template_entropy_cuda", &read_entropy, &template_entropy_cuda);
    bind(m, "template_entropy_cuda_workspace_bytes", &read_entropy, &template_entropy_cuda_workspace_bytes);
    bind(m, "fuse_experts_cuda", &read_fuse, &fuse_experts_cuda);
    bind(m, "fuse_experts_cuda_workspace_bytes", &read_fuse, &fuse_experts_cuda_workspace_bytes);
#endif
}

}  // namespace ovs::bindings
