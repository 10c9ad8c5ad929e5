// A loop over independent items on a given number of threads: OpenMP's, serial where there is none.
//
// Items are handed out one at a time, so uneven items balance. The function may be called in any order and from any
// thread; what it computes for an item must not depend on either. It must not throw.
#pragma once
#include <cstdint>

namespace ovs {
namespace {  // internal linkage: each instruction-set level keeps its own copy

template <class Fn>
void parallel_for(int64_t num_items, int num_threads, const Fn& fn) {
#ifdef _OPENMP
    if (num_threads > 1 && num_items > 1) {
#pragma omp parallel for schedule(dynamic, 1) num_threads(num_threads)
        for (int64_t i = 0; i < num_items; ++i) fn(i);
        return;
    }
#endif
    (void)num_threads;
    for (int64_t i = 0; i < num_items; ++i) fn(i);
}

}  // namespace
}  // namespace ovs
