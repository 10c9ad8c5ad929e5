// Executes one block of threads at a time, each thread on a fiber of its own.
//
// A thread runs until it waits at a barrier or at a warp operation; the last one to arrive lets the others go
// on. The order in which the threads get their turns is the launch's: forward, reverse, or random and changed
// at every barrier.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "engine.h"
#include "fiber.h"
#include "settings.h"

namespace cuda_emulator {

struct Launch {
    dim3 grid, block;
    std::size_t smem_bytes;  // dynamic
    std::function<void()> thread;
    Settings settings;
};

enum class ThreadState { kReady, kAtBarrier, kAtWarpOp, kExited };

struct WarpRequest {
    WarpOp op;
    unsigned mask;
    std::uint64_t value;
    int source;
};

struct Thread {
    ThreadContext context;
    Fiber fiber;
    ThreadState state;
    Site site;  // where it waits
    WarpRequest request;
    std::uint64_t result;  // of the warp operation
    char* sync_tag;        // of the __syncwarp it waits at
};

class Block {
public:
    void begin_launch(const Launch& launch);
    // False when a thread failed: error() then says why, and the launch must stop.
    bool run(uint3 block_idx);
    const std::string& error() const { return error_; }

    // Called by the threads. To fail, a thread leaves a message and stops: in two statements, as what the
    // first one allocates would never be freed by a thread that nobody resumes.
    void set_error(const std::string& message) { error_ = message + position_suffix(running_); }
    [[noreturn]] void stop();
    int barrier(int predicate, Site site);
    std::uint64_t warp_op(const WarpRequest& request, Site site);
    void* shared_memory(const void* tag, std::size_t bytes);

private:
    struct SharedPiece {
        const void* tag;
        void* memory;
    };
    static constexpr int kMaxPieces = 64;
    static constexpr unsigned kMaxWarps = kMaxThreads / kLanes;

    static void enter_thread();
    void run_thread(Thread& self);
    void exit_thread(Thread& self);

    // Turns (block.cpp)
    Thread* next_ready();
    void resume(Thread* next, bool for_good = false);  // null: back to run()
    void wait();
    void give_way();
    void shuffle_order();
    void release_barrier();
    std::string where(const Thread& thread) const;
    std::string describe_deadlock() const;
    std::string position_suffix(const Thread* thread) const;

    // Warps (warp.cpp)
    void resolve_warp_op(unsigned warp, const WarpRequest& request, Site site);
    void resolve_for_exit(const Thread& exited);
    char* join_sync(unsigned warp, unsigned mask);
    Thread* warp_begin(unsigned warp) { return &threads_[warp * kLanes]; }
    int warp_size(unsigned warp) const;

    // Shared memory (shared_memory.cpp)
    void reserve_shared();
    void* allocate_shared(std::size_t bytes);
    void release_shared();

    const Launch* launch_ = nullptr;
    uint3 block_idx_{};
    std::unique_ptr<Thread[]> threads_{new Thread[kMaxThreads]};
    std::vector<unsigned> order_;  // turn -> thread
    std::mt19937 random_;
    Fiber os_thread_;
    Thread* running_ = nullptr;
    unsigned count_ = 0, alive_ = 0, turn_ = 0;
    unsigned an_exited_thread_ = 0;
    std::string error_;

    // Barrier
    unsigned waiting_ = 0, first_waiting_ = 0;
    int predicates_ = 0, predicates_of_last_ = 0;  // how many of the threads gave one that is not zero

    // Shared memory
    SharedPiece pieces_[kMaxPieces];
    int num_pieces_ = 0;
    std::size_t shared_bytes_ = 0;  // of the running block
    char* arena_ = nullptr;
    std::size_t arena_used_ = 0;

    // Addresses that ThreadSanitizer orders accesses by. Two generations, as a fast thread may already wait
    // at the next barrier while a slow one has not yet left this one.
    char start_tag_ = 0, end_tag_ = 0, barrier_tags_[2] = {};
    unsigned barrier_generation_ = 0;
    char sync_tags_[kMaxWarps][kLanes][2] = {};
    unsigned sync_generation_[kMaxWarps][kLanes] = {};
};

// The block whose threads are running.
extern Block* active_block;

}  // namespace cuda_emulator
