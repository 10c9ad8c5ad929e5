#include "common/error.h"

#include <string>

namespace ovs {

void throw_invalid_argument(const char* message) { throw InvalidArgument(message); }

void throw_workspace_too_small(const char* piece, std::size_t needed, std::size_t available) {
    throw InvalidArgument(std::string("workspace: ") + piece + " needs " + std::to_string(needed) +
                          " bytes in all, the buffer has " + std::to_string(available));
}

}  // namespace ovs
