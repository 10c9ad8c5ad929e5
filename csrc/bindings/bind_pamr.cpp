// pamr, its labels and its transpose, on CPU and CUDA, and the sizes of their buffers.
#include "bindings/bind.h"
#include "pamr/pamr.h"

namespace ovs::bindings {
namespace {

enum class Kind { kScores, kLabels, kBackward };

template <Kind kKind>
PamrParams read_params(Fields& f) {
    PamrParams p;
    p.backward = kKind == Kind::kBackward;
    if (kKind == Kind::kLabels) {
        p.labels = f.pointer<void>("labels");
        p.label_bytes = f.value<int64_t>("label_bytes");
    } else {
        p.out = f.pointer<void>("out");
    }
    p.image = f.pointer<const void>("image");
    p.scores = f.pointer<const void>("scores");
    p.dilations = f.pointer<const int64_t>("dilations");
    p.batch = f.value<int64_t>("batch");
    p.num_features = f.value<int64_t>("num_features");
    p.num_classes = f.value<int64_t>("num_classes");
    p.height = f.value<int64_t>("height");
    p.width = f.value<int64_t>("width");
    p.num_dilations = f.value<int64_t>("num_dilations");
    p.num_iter = f.value<int64_t>("num_iter");
    return p;
}

template <Kind kKind>
void bind_kind(py::module_& m, const std::string& name) {
    bind(m, (name + "_cpu").c_str(), &read_params<kKind>, &pamr_cpu);
    bind(m, (name + "_cpu_workspace_bytes").c_str(), &read_params<kKind>, &pamr_cpu_workspace_bytes);
#ifdef OVS_WITH_CUDA
    bind(m, (name + "_cuda").c_str(), &read_params<kKind>, &pamr_cuda);
    bind(m, (name + "_cuda_workspace_bytes").c_str(), &read_params<kKind>, &pamr_cuda_workspace_bytes);
#endif
}

}  // namespace

void bind_pamr(py::module_& m) {
    bind_kind<Kind::kScores>(m, "pamr");
    bind_kind<Kind::kLabels>(m, "pamr_labels");
    bind_kind<Kind::kBackward>(m, "pamr_backward");
}

}  // namespace ovs::bindings
