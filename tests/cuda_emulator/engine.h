// What the device-side headers need of the engine that executes kernels (block.cpp, warp.cpp, launch.cpp).
#pragma once
#include <cuda_runtime_api.h>
#include <vector_functions.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

namespace cuda_emulator {

constexpr int kLanes = 32;                           // threads of a warp
constexpr unsigned kMaxThreads = 1024;               // of a block
constexpr std::size_t kMaxSharedBytes = 227 * 1024;  // of a block, static and dynamic together

// What threadIdx and its relatives read.
struct ThreadContext {
    uint3 thread_idx, block_idx;
    dim3 block_dim, grid_dim;
    unsigned index;  // of the thread in its block, x fastest
};

// The thread that is running. One OS thread at a time executes kernels (launch.cpp): a plain global will do.
extern ThreadContext* current;

inline unsigned lane() { return current->index % kLanes; }

// A line of kernel code, as the error messages name it.
struct Site {
    const char* file;
    int line;
};

// Ends the kernel with cudaErrorLaunchFailure and this message. Call from kernel code only.
[[noreturn]] __attribute__((format(printf, 1, 2))) void fail(const char* format, ...);

// Returns the number of threads whose predicate was not zero.
int block_barrier(int predicate, Site site);

enum class WarpOp { kSync, kShuffle, kBallot, kMatch, kAdd, kMin, kMax, kSignedMin, kSignedMax, kAnd, kOr, kXor };

// The live lanes of `mask` meet, each with a value. kShuffle: returns the value of lane `source`, all bits
// set if that lane is not among them. kBallot, kMatch: a mask. The others: the values combined.
std::uint64_t warp_op(WarpOp op, unsigned mask, std::uint64_t value, int source, Site site);

// Shared memory of the running block: one piece per tag, filled with 0xff bytes, which are NaN in every float
// type. The null tag is the dynamic buffer of the launch.
void* shared_memory(const void* tag, std::size_t bytes);

// Checks the configuration and the pointer arguments (null: not a pointer), then runs `thread` for each
// thread of the grid, or queues that with CUDAEMU_ASYNC=1. Failures become the runtime's last error.
void launch_grid(dim3 grid, dim3 block, std::size_t smem_bytes, cudaStream_t stream, const void* const* pointers,
                 int num_pointers, std::function<void()> thread);

}  // namespace cuda_emulator
