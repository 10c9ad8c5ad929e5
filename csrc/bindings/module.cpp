// The compiled module ovs_kernels._C: build information and one bind_<family> per family.
#include <pybind11/pybind11.h>

#include <cstdint>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "bindings/bind.h"
#include "common/error.h"

#ifndef OVS_MODULE_NAME
#define OVS_MODULE_NAME _C  // the test emulator builds the same file as _C_emulated
#endif

namespace ovs::bindings {
namespace {

py::dict build_info() {
    py::dict info;
    info["version"] = OVS_VERSION;
    info["build_type"] = OVS_BUILD_TYPE;
    info["compiler"] = OVS_COMPILER;
    info["openmp"] = static_cast<bool>(OVS_HAS_OPENMP);
    info["cuda"] = OVS_CUDA_VERSION;
    info["cuda_archs"] = OVS_CUDA_ARCHS;
    info["isa_levels"] = OVS_ISA_LEVELS;
    return info;
}

// The best compiled level that this processor runs, as the number in CpuIsa.
int detected_isa() {
#if defined(OVS_X86_LEVELS)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("x86-64-v4")) return 4;
    if (__builtin_cpu_supports("x86-64-v3")) return 3;
    if (__builtin_cpu_supports("x86-64-v2")) return 2;
    return -1;
#else
    return 0;
#endif
}

// Asks for huge pages under the whole ones inside [address, address + num_bytes). A hint: no error, and nothing where
// the system has none.
void advise_huge_pages(std::uintptr_t address, std::size_t num_bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    constexpr std::uintptr_t kPage = std::uintptr_t(2) << 20;
    const std::uintptr_t begin = (address + kPage - 1) / kPage * kPage, end = (address + num_bytes) / kPage * kPage;
    if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
    (void)address, (void)num_bytes;
#endif
}

}  // namespace
}  // namespace ovs::bindings

PYBIND11_MODULE(OVS_MODULE_NAME, m) {
    namespace py = pybind11;
    py::register_exception_translator([](std::exception_ptr error) {
        try {
            if (error) std::rethrow_exception(error);
        } catch (const ovs::InvalidArgument& e) {
            py::set_error(PyExc_ValueError, e.what());
        } catch (const ovs::CudaError& e) {
            py::set_error(PyExc_RuntimeError, e.what());
        }
    });
    m.def("build_info", &ovs::bindings::build_info);
    m.def("detected_isa", &ovs::bindings::detected_isa);
    m.def("advise_huge_pages", &ovs::bindings::advise_huge_pages, py::arg("address"), py::arg("num_bytes"));
    ovs::bindings::bind_adaptive(m);
    ovs::bindings::bind_affinity(m);
    ovs::bindings::bind_attention(m);
    ovs::bindings::bind_crf(m);
    ovs::bindings::bind_graph(m);
    ovs::bindings::bind_markov(m);
    ovs::bindings::bind_metrics(m);
    ovs::bindings::bind_pamr(m);
    ovs::bindings::bind_pixels(m);
    ovs::bindings::bind_propagate(m);
    ovs::bindings::bind_templates(m);
    ovs::bindings::bind_transport(m);
    ovs::bindings::bind_upsample(m);
    ovs::bindings::bind_windows(m);
}
