// Shared memory of the running block.
#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <string>

#include "block.h"

namespace cuda_emulator {
namespace {

constexpr std::size_t kAlignment = 128;

// memset would do, but ThreadSanitizer watches it and would count these writes as the running thread's.
void fill_with_nan(void* memory, std::size_t bytes) {
    volatile unsigned char* byte = static_cast<unsigned char*>(memory);
    unsigned char* const words_end = static_cast<unsigned char*>(memory) + bytes / 8 * 8;
    for (; byte < words_end; byte += 8) *reinterpret_cast<volatile std::uint64_t*>(byte) = ~std::uint64_t{0};
    for (std::size_t i = 0; i < bytes % 8; ++i) byte[i] = 0xff;
}

}  // namespace

void* Block::shared_memory(const void* tag, std::size_t bytes) {
    for (int i = 0; i < num_pieces_; ++i) {
        if (pieces_[i].tag == tag) return pieces_[i].memory;
    }
    if (tag == nullptr) bytes = launch_->smem_bytes;
    shared_bytes_ += bytes;
    if (shared_bytes_ > kMaxSharedBytes) {
        fail("shared memory: at most %zu bytes per block, the kernel needs %zu or more", kMaxSharedBytes,
             shared_bytes_);
    }
    if (num_pieces_ == kMaxPieces) fail("shared memory: at most %d declarations per kernel", kMaxPieces);
    void* const memory = allocate_shared(bytes);
    fill_with_nan(memory, bytes);
    pieces_[num_pieces_++] = {tag, memory};
    return memory;
}

#ifdef __SANITIZE_ADDRESS__

void Block::reserve_shared() {}

// From the heap, where AddressSanitizer surrounds every piece with memory that must not be touched.
void* Block::allocate_shared(std::size_t bytes) {
    void* memory = nullptr;
    if (posix_memalign(&memory, kAlignment, bytes == 0 ? 1 : bytes) != 0) std::abort();
    return memory;
}

void Block::release_shared() {
    for (int i = 0; i < num_pieces_; ++i) std::free(pieces_[i].memory);
    num_pieces_ = 0;
    shared_bytes_ = 0;
}

#else

// From one arena, which exists before the first thread runs: no allocator that ThreadSanitizer would watch.
void Block::reserve_shared() {
    if (arena_ != nullptr) return;
    void* const memory = mmap(nullptr, kMaxSharedBytes + kMaxPieces * kAlignment, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
        std::perror("cuda_emulator: no memory for shared memory");
        std::abort();
    }
    arena_ = static_cast<char*>(memory);
}

void* Block::allocate_shared(std::size_t bytes) {
    void* const memory = arena_ + arena_used_;
    arena_used_ += (bytes + kAlignment - 1) / kAlignment * kAlignment;
    return memory;
}

void Block::release_shared() {
    num_pieces_ = 0;
    shared_bytes_ = 0;
    arena_used_ = 0;
}

#endif

void* shared_memory(const void* tag, std::size_t bytes) { return active_block->shared_memory(tag, bytes); }

}  // namespace cuda_emulator
