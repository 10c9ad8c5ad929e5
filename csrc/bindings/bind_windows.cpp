// merge_windows_layout, merge_windows_cpu, merge_windows_cuda and the sizes of their buffers.
#include "bindings/bind.h"
#include "windows/windows.h"

namespace ovs::bindings {
namespace {

WindowsGeometry read_geometry(Fields& f) {
    WindowsGeometry g;
    g.boxes = f.pointer<const int64_t>("boxes");
    g.grids = f.pointer<const int64_t>("grids");
    g.num_windows = f.value<int64_t>("num_windows");
    g.num_setups = f.value<int64_t>("num_setups");
    g.height = f.value<int64_t>("height");
    g.width = f.value<int64_t>("width");
    return g;
}

std::size_t layout_bytes(const py::kwargs& kwargs) {
    Fields f(kwargs);
    const WindowsGeometry g = read_geometry(f);
    const auto dtype = f.enumeration<DType>("dtype");
    f.done();
    return merge_windows_layout_bytes(g, dtype);
}

void make_layout(const py::kwargs& kwargs) {
    Fields f(kwargs);
    const WindowsGeometry g = read_geometry(f);
    const auto dtype = f.enumeration<DType>("dtype");
    void* const layout = f.pointer<void>("layout");
    const auto bytes = f.value<std::size_t>("layout_bytes");
    f.done();
    merge_windows_layout(g, dtype, layout, bytes);
}

template <bool kBackward>
WindowsParams read_params(Fields& f) {
    WindowsParams p;
    p.backward = kBackward;
    p.scores = f.pointer<void>("scores");
    p.merged = f.pointer<void>("merged");
    p.layout = f.pointer<const void>("layout");
    p.device_layout = f.pointer<const void>("device_layout");
    p.num_classes = f.value<int64_t>("num_classes");
    return p;
}

}  // namespace

void bind_windows(py::module_& m) {
    m.def("merge_windows_layout", &make_layout);
    m.def("merge_windows_layout_bytes", &layout_bytes);
    bind(m, "merge_windows_cpu", &read_params<false>, &merge_windows_cpu);
    bind(m, "merge_windows_cpu_workspace_bytes", &read_params<false>, &merge_windows_cpu_workspace_bytes);
    bind(m, "merge_windows_backward_cpu", &read_params<true>, &merge_windows_cpu);
    bind(m, "merge_windows_backward_cpu_workspace_bytes", &read_params<true>, &merge_windows_cpu_workspace_bytes);
#ifdef OVS_WITH_CUDA
    bind(m, "merge_windows_cuda", &read_params<false>, &merge_windows_cuda);
    bind(m, "merge_windows_cuda_workspace_bytes", &read_params<false>, &merge_windows_cuda_workspace_bytes);
    bind(m, "merge_windows_backward_cuda", &read_params<true>, &merge_windows_cuda);
    bind(m, "merge_windows_backward_cuda_workspace_bytes", &read_params<true>, &merge_windows_cuda_workspace_bytes);
#endif
}

}  // namespace ovs::bindings
