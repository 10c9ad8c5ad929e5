// confusion_matrix and boundary_iou for CPU and CUDA, and the sizes of their workspaces.
#include <string>

#include "bindings/bind.h"
#include "metrics/metrics.h"

namespace ovs::bindings {
namespace {

LabelMap read_map(Fields& f, const std::string& name) {
    LabelMap map;
    map.labels = f.pointer<const void>(name.c_str());
    map.type = f.enumeration<LabelType>((name + "_type").c_str());
    map.image_stride = f.value<int64_t>((name + "_image_stride").c_str());
    map.row_stride = f.value<int64_t>((name + "_row_stride").c_str());
    return map;
}

MetricsParams read_maps(Fields& f) {
    MetricsParams p;
    p.prediction = read_map(f, "prediction");
    p.target = read_map(f, "target");
    p.counts = f.pointer<int64_t>("counts");
    p.batch = f.value<int64_t>("batch");
    p.height = f.value<int64_t>("height");
    p.width = f.value<int64_t>("width");
    p.num_classes = f.value<int64_t>("num_classes");
    p.has_ignore_label = f.value<bool>("has_ignore_label");
    p.ignore_label = f.value<int64_t>("ignore_label");
    p.reduce_zero_label = f.value<bool>("reduce_zero_label");
    return p;
}

ConfusionParams read_confusion(Fields& f) {
    ConfusionParams p;
    p.maps = read_maps(f);
    p.others = f.value<bool>("others");
    return p;
}

BoundaryParams read_boundary(Fields& f) {
    BoundaryParams p;
    p.maps = read_maps(f);
    p.distance = f.value<int64_t>("distance");
    return p;
}

}  // namespace

void bind_metrics(py::module_& m) {
    bind(m, "confusion_matrix_cpu", &read_confusion, &confusion_matrix_cpu);
    bind(m, "confusion_matrix_cpu_workspace_bytes", &read_confusion, &confusion_matrix_cpu_workspace_bytes);
    bind(m, "boundary_iou_cpu", &read_boundary, &boundary_iou_cpu);
    bind(m, "boundary_iou_cpu_workspace_bytes", &read_boundary, &boundary_iou_cpu_workspace_bytes);
#ifdef OVS_WITH_CUDA
    bind(m, "confusion_matrix_cuda", &read_confusion, &confusion_matrix_cuda);
    bind(m, "confusion_matrix_cuda_workspace_bytes", &read_confusion, &confusion_matrix_cuda_workspace_bytes);
    bind(m, "boundary_iou_cuda", &read_boundary, &boundary_iou_cuda);
    bind(m, "boundary_iou_cuda_workspace_bytes", &read_boundary, &boundary_iou_cuda_workspace_bytes);
#endif
}

}  // namespace ovs::bindings
