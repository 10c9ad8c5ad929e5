// lp_pixels_cpu, lp_pixels_cuda and the sizes of their workspaces.
#include "bindings/bind.h"
#include "pixels/pixels.h"

namespace ovs::bindings {
namespace {

PixelsParams read_params(Fields& f) {
    PixelsParams p;
    p.scores = f.pointer<const void>("scores");
    p.guide = f.pointer<const void>("guide");
    p.groups = f.pointer<const int32_t>("groups");
    p.out = f.pointer<void>("out");
    p.labels = f.pointer<void>("labels");
    p.iterations = f.pointer<int32_t>("iterations");
    p.residuals = f.pointer<double>("residuals");
    p.batch = f.value<int64_t>("batch");
    p.num_classes = f.value<int64_t>("num_classes");
    p.num_groups = f.value<int64_t>("num_groups");
    p.height = f.value<int64_t>("height");
    p.width = f.value<int64_t>("width");
    p.num_features = f.value<int64_t>("num_features");
    p.label_bytes = f.value<int>("label_bytes");
    p.window = f.value<int>("window");
    p.tau = f.value<double>("tau");
    p.alpha = f.value<double>("alpha");
    p.tol = f.value<double>("tol");
    p.max_iter = f.value<int>("max_iter");
    p.lab = f.value<bool>("lab");
    p.class_chunk = f.value<int>("class_chunk");
    p.mode = f.enumeration<SolveMode>("mode");
    return p;
}

}  // namespace

void bind_pixels(py::module_& m) {
    bind(m, "lp_pixels_cpu", &read_params, &lp_pixels_cpu);
    bind(m, "lp_pixels_cpu_workspace_bytes", &read_params, &lp_pixels_cpu_workspace_bytes);
#ifdef OVS_WITH_CUDA
    bind(m, "lp_pixels_cuda", &read_params, &lp_pixels_cuda);
    bind(m, "lp_pixels_cuda_workspace_bytes", &read_params, &lp_pixels_cuda_workspace_bytes);
#endif
}

}  // namespace ovs::bindings
