// What every binding file needs: keyword arguments read by name into a parameter struct.
//
// The core's functions take some twenty pointers and sizes. They cross as keyword arguments only, each is read under
// its own name, and a missing or an unknown name is an error, so that nothing can be swapped in silence. No checks of
// shapes here, and no loops: the Python plan has checked, the core protects memory.
#pragma once
#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>

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

void bind_graph(py::module_& m);
void bind_pixels(py::module_& m);
void bind_propagate(py::module_& m);
void bind_windows(py::module_& m);

}  // namespace ovs::bindings
