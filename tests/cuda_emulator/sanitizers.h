// The sanitizers' interfaces for programs that switch stacks; nothing in builds without one.
//
// AddressSanitizer must know which stack is in use. ThreadSanitizer sees every fiber as a thread of its own;
// a switch orders nothing for it, only release and acquire on the same address do, so it finds accesses that
// no barrier orders. The engine is compiled without -fsanitize=thread (CUDA_EMULATOR_TSAN tells it), so only
// the kernels are watched.
#pragma once
#include <cstddef>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#ifdef CUDA_EMULATOR_TSAN
extern "C" {
void* __tsan_get_current_fiber(void);
void* __tsan_create_fiber(unsigned flags);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* address);
void __tsan_release(void* address);
}
#endif

namespace cuda_emulator {

inline void tsan_acquire([[maybe_unused]] char& tag) {
#ifdef CUDA_EMULATOR_TSAN
    __tsan_acquire(&tag);
#endif
}

inline void tsan_release([[maybe_unused]] char& tag) {
#ifdef CUDA_EMULATOR_TSAN
    __tsan_release(&tag);
#endif
}

}  // namespace cuda_emulator
