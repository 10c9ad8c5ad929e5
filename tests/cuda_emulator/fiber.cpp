#include "fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "sanitizers.h"

namespace cuda_emulator {
namespace {

// Instrumented frames are several times larger. Only pages that are touched cost memory.
#ifdef __SANITIZE_ADDRESS__
constexpr std::size_t kStackBytes = 512 * 1024;
#else
constexpr std::size_t kStackBytes = 128 * 1024;
#endif

#ifdef CUDA_EMULATOR_TSAN
constexpr unsigned kNoOrder = 1;  // a switch is no synchronisation
#endif

Fiber* left = nullptr;  // the fiber that the last change left

}  // namespace

#ifndef CUDA_EMULATOR_USES_UCONTEXT

// Saves the registers that a call preserves on the old stack, its pointer in *save, and takes the new stack.
extern "C" void cuda_emulator_change_stack(void** save, void* restore);
asm(R"(
.text
.globl cuda_emulator_change_stack
.hidden cuda_emulator_change_stack
.type cuda_emulator_change_stack, @function
cuda_emulator_change_stack:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size cuda_emulator_change_stack, . - cuda_emulator_change_stack
)");

#endif

void Fiber::allocate_stack() {
    const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    void* const memory =
        mmap(nullptr, kStackBytes + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED || mprotect(memory, page, PROT_NONE) != 0) {  // the guard page below the stack
        std::perror("cuda_emulator: no memory for the stack of a thread");
        std::abort();
    }
    stack_ = static_cast<char*>(memory) + page;
    bottom_ = stack_;
    size_ = kStackBytes;
#ifdef CUDA_EMULATOR_TSAN
    tsan_fiber_ = __tsan_create_fiber(0);
#endif
}

void Fiber::prepare(void (*entry)()) {
    if (stack_ == nullptr) allocate_stack();
    asan_fake_stack_ = nullptr;
#ifdef CUDA_EMULATOR_USES_UCONTEXT
    getcontext(&position_);
    position_.uc_stack.ss_sp = stack_;
    position_.uc_stack.ss_size = kStackBytes;
    position_.uc_link = nullptr;
    makecontext(&position_, entry, 0);
#else
    // Six registers, the address to return to, and a null return address of the entry itself; the entry then
    // starts with the stack pointer 8 below a multiple of 16, as after a call.
    constexpr int kRegisters = 6;
    void** const top = reinterpret_cast<void**>(stack_ + kStackBytes);
    top[-1] = nullptr;
    top[-2] = reinterpret_cast<void*>(entry);
    std::memset(top - 2 - kRegisters, 0, kRegisters * sizeof(void*));
    position_ = top - 2 - kRegisters;
#endif
}

void Fiber::adopt_os_thread() {
#ifdef CUDA_EMULATOR_TSAN
    tsan_fiber_ = __tsan_get_current_fiber();
#endif
}

void Fiber::change(Fiber& from, Fiber& to, [[maybe_unused]] bool for_good) {
    left = &from;
#ifdef CUDA_EMULATOR_TSAN
    __tsan_switch_to_fiber(to.tsan_fiber_, kNoOrder);
#endif
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(for_good ? nullptr : &from.asan_fake_stack_, to.bottom_, to.size_);
#endif
#ifdef CUDA_EMULATOR_USES_UCONTEXT
    swapcontext(&from.position_, &to.position_);
#else
    cuda_emulator_change_stack(&from.position_, to.position_);
#endif
    from.finish_change(from.asan_fake_stack_);
}

void Fiber::entered() { finish_change(nullptr); }

// Tells AddressSanitizer that the stack has changed, and learns from it where the stack of the OS thread is.
void Fiber::finish_change([[maybe_unused]] void* fake_stack) {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(fake_stack, &left->bottom_, &left->size_);
#endif
}

void Fiber::abandon([[maybe_unused]] const Fiber& os_thread, [[maybe_unused]] char& tag) {
#ifdef __SANITIZE_ADDRESS__
    __asan_unpoison_memory_region(stack_, kStackBytes);
#endif
#ifdef CUDA_EMULATOR_TSAN
    __tsan_switch_to_fiber(tsan_fiber_, kNoOrder);
    tsan_release(tag);
    __tsan_switch_to_fiber(os_thread.tsan_fiber_, kNoOrder);
#endif
}

}  // namespace cuda_emulator
