// Large pages for large results.
//
// A result of a hundred megabytes that was just allocated consists of pages that do not exist yet; the kernel's first
// write to each costs more than the arithmetic. With pages of 2 MB there are 512 times fewer of these faults.
#pragma once
#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace ovs {
namespace {

// Tells the system that `bytes` from `base` on are about to be written from one end to the other. A hint: nothing
// happens where it does not know it, where pages are there already, or below a few large pages.
inline void prefer_large_pages(void* base, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    constexpr int64_t kLargePage = int64_t{2} << 20;
    if (bytes < 4 * kLargePage) return;
    const int64_t begin = reinterpret_cast<int64_t>(base), end = begin + bytes;
    const int64_t first = (begin + kLargePage - 1) / kLargePage * kLargePage, last = end / kLargePage * kLargePage;
    if (first < last)
        (void)madvise(reinterpret_cast<void*>(first), static_cast<std::size_t>(last - first), MADV_HUGEPAGE);
#else
    (void)base;
    (void)bytes;
#endif
}

}  // namespace
}  // namespace ovs
