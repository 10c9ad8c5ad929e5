// The two exceptions that the core throws, and the macros that throw them.
//
// InvalidArgument protects memory: a size, a type or a workspace that would make a kernel read or write out of bounds.
// Shapes and ranges are checked before, in the Python plan. CudaError carries the runtime's own words.
#pragma once
#include <cstddef>
#include <stdexcept>

namespace ovs {

struct InvalidArgument : std::invalid_argument {
    using std::invalid_argument::invalid_argument;
};

struct CudaError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// Out of line, so that files compiled for one instruction-set level hold no exception or string code.
[[noreturn]] void throw_invalid_argument(const char* message);
[[noreturn]] void throw_workspace_too_small(const char* piece, std::size_t needed, std::size_t available);

}  // namespace ovs

#define OVS_REQUIRE(condition, message)                           \
    do {                                                          \
        if (!(condition)) ::ovs::throw_invalid_argument(message); \
    } while (false)
