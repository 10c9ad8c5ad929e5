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

WindowsParams read_params(Fields& f, bool backward) {
    WindowsParams p;
    p.backward = backward;
    p.scores = f.pointer<void>("scores");
    p.merged = f.pointer<void>("merged");
    p.layout = f.pointer<const void>("layout");
    p.device_layout = f.pointer<const void>("device_layout");
    p.num_classes = f.value<int64_t>("num_classes");
    return p;
}

template <bool kBackward>
void run_cpu(const py::kwargs& kwargs) {
    Fields f(kwargs);
    const WindowsParams p = read_params(f, kBackward);
    const auto dtype = f.enumeration<DType>("dtype");
    void* const workspace = f.pointer<void>("workspace");
    const auto bytes = f.value<std::size_t>("workspace_bytes");
    const int threads = f.value<int>("num_threads");
    const auto isa = f.enumeration<CpuIsa>("isa");
    f.done();
    const py::gil_scoped_release release;
    merge_windows_cpu(p, dtype, workspace, bytes, threads, isa);
}

template <bool kBackward>
std::size_t cpu_workspace_bytes(const py::kwargs& kwargs) {
    Fields f(kwargs);
    const WindowsParams p = read_params(f, kBackward);
    const auto dtype = f.enumeration<DType>("dtype");
    const int threads = f.value<int>("num_threads");
    f.done();
    return merge_windows_cpu_workspace_bytes(p, dtype, threads);
}

#ifdef OVS_WITH_CUDA
template <bool kBackward>
void run_cuda(const py::kwargs& kwargs) {
    Fields f(kwargs);
    const WindowsParams p = read_params(f, kBackward);
    const auto dtype = f.enumeration<DType>("dtype");
    void* const workspace = f.pointer<void>("workspace");
    const auto bytes = f.value<std::size_t>("workspace_bytes");
    const int device = f.value<int>("device");
    void* const stream = f.pointer<void>("stream");
    f.done();
    const py::gil_scoped_release release;
    merge_windows_cuda(p, dtype, workspace, bytes, device, stream);
}

template <bool kBackward>
std::size_t cuda_workspace_bytes(const py::kwargs& kwargs) {
    Fields f(kwargs);
    const WindowsParams p = read_params(f, kBackward);
    const auto dtype = f.enumeration<DType>("dtype");
    f.done();
    return merge_windows_cuda_workspace_bytes(p, dtype);
}
#endif

}  // namespace

void bind_windows(py::module_& m) {
    m.def("merge_windows_layout", &make_layout);
    m.def("merge_windows_layout_bytes", &layout_bytes);
    m.def("merge_windows_cpu", &run_cpu<false>);
    m.def("merge_windows_cpu_workspace_bytes", &cpu_workspace_bytes<false>);
    m.def("merge_windows_backward_cpu", &run_cpu<true>);
    m.def("merge_windows_backward_cpu_workspace_bytes", &cpu_workspace_bytes<true>);
#ifdef OVS_WITH_CUDA
    m.def("merge_windows_cuda", &run_cuda<false>);
    m.def("merge_windows_cuda_workspace_bytes", &cuda_workspace_bytes<false>);
    m.def("merge_windows_backward_cuda", &run_cuda<true>);
    m.def("merge_windows_backward_cuda_workspace_bytes", &cuda_workspace_bytes<true>);
#endif
}

}  // namespace ovs::bindings
