// The two exceptions that the core throws, and the macros that throw them.
//
// InvalidArgument protects memory: a size, a type or a workspace that would make a kernel read or write out of bounds.
// Shapes and ranges are checked before, in the Python plan. CudaError carries the runtime's own words.
#pragma once
#include <stdexcept>
#include <string>

namespace ovs {

struct InvalidArgument : std::invalid_argument {
    using std::invalid_argument::invalid_argument;
};

struct CudaError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

}  // namespace ovs

#define OVS_REQUIRE(condition, message)                          \
    do {                                                         \
        if (!(condition)) throw ::ovs::InvalidArgument(message); \
    } while (false)
