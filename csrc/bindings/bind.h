// What every binding file needs: keyword arguments read by name into a parameter struct, and `bind`, which makes a
// Python function of a core function that takes such a struct.
//
// The core's functions take some twenty pointers and sizes. They cross as keyword arguments only, each is read under
// its own name, and a missing or an unknown name is an error, so that nothing can be swapped in silence. No checks of
// shapes here, and no loops: the Python plan has checked, the core protects memory.
#pragma once
#include <pybind11/pybind11.h>

#include <cstddef>
#include <cstdint>
#include <string>

#include "common/dtype.h"

namespace ovs::bindings {

namespace py = pybind11;

class Fields {
public:
    explicit Fields(py::kwargs values) : values_(std::move(values)) {}

    template <class T>
    T value(const char* name) {
        ++read_;
        if (!values_.contains(name)) throw py::type_error(std::string("missing argument ") + name);
        return values_[name].template cast<T>();
    }
    template <class T>
    T* pointer(const char* name) {
        return reinterpret_cast<T*>(value<std::uintptr_t>(name));
    }
    template <class E>
    E enumeration(const char* name) {
        return static_cast<E>(value<int>(name));
    }
    // Call after the last field was read.
    void done() const {
        if (read_ != values_.size()) {
            throw py::type_error("expected " + std::to_string(read_) + " arguments, got " +
                                 std::to_string(values_.size()));
        }
    }

private:
    py::kwargs values_;
    std::size_t read_ = 0;
};

// Reads the fields of an operator's parameters.
template <class P>
using Reader = P (*)(Fields&);

// What stands before a kernel's own arguments: the scratch memory. Read in one place, so that all have the same names.
struct Workspace {
    explicit Workspace(Fields& f)
        : data(f.pointer<void>("workspace")), bytes(f.value<std::size_t>("workspace_bytes")) {}
    void* data;
    std::size_t bytes;
};

// bind(m, name, read, function) for each signature that the core has: a kernel for the CPU, ...
template <class R, class P>
void bind(py::module_& m, const char* name, Reader<P> read,
          R (*kernel)(const P&, DType, void*, std::size_t, int, CpuIsa)) {
    m.def(name, [read, kernel](const py::kwargs& kwargs) {
        Fields f(kwargs);
        const P p = read(f);
        const auto dtype = f.enumeration<DType>("dtype");
        const Workspace workspace(f);
        const int threads = f.value<int>("num_threads");
        const auto isa = f.enumeration<CpuIsa>("isa");
        f.done();
        const py::gil_scoped_release release;
        return kernel(p, dtype, workspace.data, workspace.bytes, threads, isa);
    });
}

template <class R, class P>
void bind(py::module_& m, const char* name, Reader<P> read, R (*kernel)(const P&, void*, std::size_t, int, CpuIsa)) {
    m.def(name, [read, kernel](const py::kwargs& kwargs) {
        Fields f(kwargs);
        const P p = read(f);
        const Workspace workspace(f);
        const int threads = f.value<int>("num_threads");
        const auto isa = f.enumeration<CpuIsa>("isa");
        f.done();
        const py::gil_scoped_release release;
        return kernel(p, workspace.data, workspace.bytes, threads, isa);
    });
}

// ... a kernel for a device, in the dtype given ...
template <class P>
void bind(py::module_& m, const char* name, Reader<P> read,
          void (*kernel)(const P&, DType, void*, std::size_t, int, void*)) {
    m.def(name, [read, kernel](const py::kwargs& kwargs) {
        Fields f(kwargs);
        const P p = read(f);
        const auto dtype = f.enumeration<DType>("dtype");
        const Workspace workspace(f);
        const int device = f.value<int>("device");
        void* const stream = f.pointer<void>("stream");
        f.done();
        const py::gil_scoped_release release;
        kernel(p, dtype, workspace.data, workspace.bytes, device, stream);
    });
}

// ... or in float32 only, and the bytes of scratch memory that each asks for.
template <class P>
void bind(py::module_& m, const char* name, Reader<P> read, void (*kernel)(const P&, void*, std::size_t, int, void*)) {
    m.def(name, [read, kernel](const py::kwargs& kwargs) {
        Fields f(kwargs);
        const P p = read(f);
        const Workspace workspace(f);
        const int device = f.value<int>("device");
        void* const stream = f.pointer<void>("stream");
        f.done();
        const py::gil_scoped_release release;
        kernel(p, workspace.data, workspace.bytes, device, stream);
    });
}

template <class P>
void bind(py::module_& m, const char* name, Reader<P> read, std::size_t (*bytes)(const P&, DType, int)) {
    m.def(name, [read, bytes](const py::kwargs& kwargs) {
        Fields f(kwargs);
        const P p = read(f);
        const auto dtype = f.enumeration<DType>("dtype");
        const int threads = f.value<int>("num_threads");
        f.done();
        return bytes(p, dtype, threads);
    });
}

template <class P>
void bind(py::module_& m, const char* name, Reader<P> read, std::size_t (*bytes)(const P&, DType)) {
    m.def(name, [read, bytes](const py::kwargs& kwargs) {
        Fields f(kwargs);
        const P p = read(f);
        const auto dtype = f.enumeration<DType>("dtype");
        f.done();
        return bytes(p, dtype);
    });
}

template <class P>
void bind(py::module_& m, const char* name, Reader<P> read, std::size_t (*bytes)(const P&, int)) {
    m.def(name, [read, bytes](const py::kwargs& kwargs) {
        Fields f(kwargs);
        const P p = read(f);
        const int threads = f.value<int>("num_threads");
        f.done();
        return bytes(p, threads);
    });
}

template <class P>
void bind(py::module_& m, const char* name, Reader<P> read, std::size_t (*bytes)(const P&)) {
    m.def(name, [read, bytes](const py::kwargs& kwargs) {
        Fields f(kwargs);
        const P p = read(f);
        f.done();
        return bytes(p);
    });
}

void bind_adaptive(py::module_& m);
void bind_affinity(py::module_& m);
void bind_attention(py::module_& m);
void bind_crf(py::module_& m);
void bind_graph(py::module_& m);
void bind_markov(py::module_& m);
void bind_metrics(py::module_& m);
void bind_pamr(py::module_& m);
void bind_pixels(py::module_& m);
void bind_propagate(py::module_& m);
void bind_templates(py::module_& m);
void bind_transport(py::module_& m);
void bind_upsample(py::module_& m);
void bind_windows(py::module_& m);

}  // namespace ovs::bindings
