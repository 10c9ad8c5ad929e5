// A stack with a position in it: what one CUDA thread needs to be left inside a kernel and resumed later.
#pragma once
#include <cstddef>

#if defined(CUDA_EMULATOR_UCONTEXT) || !defined(__x86_64__)
#define CUDA_EMULATOR_USES_UCONTEXT 1
#include <ucontext.h>
#endif

namespace cuda_emulator {

class Fiber {
public:
    Fiber() = default;  // without a stack: stands for the stack of the OS thread that switches away from it
    Fiber(const Fiber&) = delete;
    Fiber& operator=(const Fiber&) = delete;

    // The next switch to this fiber calls `entry`, which must call `entered` first and must not return.
    void prepare(void (*entry)());

    // For ThreadSanitizer: this fiber without a stack now stands for the calling OS thread.
    void adopt_os_thread();

    // Leaves `from`, continues in `to`. With `for_good`, `from` is prepared again before it is resumed.
    static void change(Fiber& from, Fiber& to, bool for_good);

    // First thing in an entry.
    void entered();

    // For the sanitizers, when nobody will return to this fiber: its frames are gone, and what it did is
    // ordered before whoever acquires `tag`. Called on the stack of `os_thread`.
    void abandon(const Fiber& os_thread, char& tag);

private:
    void allocate_stack();
    void finish_change(void* fake_stack);

    char* stack_ = nullptr;  // lowest address
    const void* bottom_ = nullptr;
    std::size_t size_ = 0;
    void* asan_fake_stack_ = nullptr;
    void* tsan_fiber_ = nullptr;
#ifdef CUDA_EMULATOR_USES_UCONTEXT
    ucontext_t position_;
#else
    void* position_ = nullptr;  // stack pointer; the registers are on the stack
#endif
};

}  // namespace cuda_emulator
