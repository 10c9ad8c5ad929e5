// Named, aligned pieces of a flat buffer that the caller owns.
//
// The same carving code runs twice: on a null buffer it only counts (`used()` is then the size to allocate), on a real
// buffer it hands out pointers and throws when the buffer is too small, naming the piece.
#pragma once
#include <cstddef>
#include <cstdint>

#include "common/error.h"
#include "common/index.h"

namespace ovs {
namespace {  // internal linkage: each instruction-set level keeps its own copy

class Workspace {
public:
    static constexpr std::size_t kAlignment = 256;  // covers a cache line, an AVX-512 register and CUDA's texture rule

    Workspace(void* base, std::size_t bytes) : base_(static_cast<char*>(base)), bytes_(bytes) {}

    template <class T>
    T* take(const char* name, int64_t count) {
        const std::size_t begin = used_;
        used_ = begin + static_cast<std::size_t>(round_up(count * static_cast<int64_t>(sizeof(T)), kAlignment));
        if (base_ == nullptr) return nullptr;
        if (used_ > bytes_) throw_workspace_too_small(name, used_, bytes_);
        return reinterpret_cast<T*>(base_ + begin);
    }

    std::size_t used() const { return used_; }

private:
    char* base_;
    std::size_t bytes_;
    std::size_t used_ = 0;
};

}  // namespace
}  // namespace ovs
