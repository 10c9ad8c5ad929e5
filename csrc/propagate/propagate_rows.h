// Per level: the matrix times the state, the kernel in which nearly all time is spent.
//
// A link costs one weight, broadcast, and one row of the state, `chunk` classes, added into as many sums in registers.
// The columns of a panel keep their state in the L1 cache (PropagateGrid), so that the load ports are the limit. A sum
// that waits for the link before would wait four cycles, hence several links at a time with sums of their own.
#pragma once
#include <type_traits>

#include "common/parallel.h"
#include "common/simd.h"
#include "propagate/propagate_cpu.h"

namespace ovs {
namespace OVS_ISA {
namespace {

// kGranules * kClassGranule classes of one node: full vectors, and a half one for what remains.
template <class T, int kGranules>
struct ClassVectors {
    static constexpr int kClasses = kGranules * kClassGranule;
    static constexpr int kLanes = kVectorBytes / sizeof(T) < kClasses ? kVectorBytes / sizeof(T) : kClasses;
    static constexpr int kFull = kClasses / kLanes, kRest = kClasses % kLanes;
    static constexpr int kRestLanes = kRest > 0 ? kRest : kLanes;
    static constexpr int kRegisters = kFull + (kRest > 0 ? 1 : 0);
    using Full = Vec<T, kLanes>;
    using Rest = Vec<T, kRestLanes>;

    Full full[kFull];
    Rest rest;

    OVS_INLINE static ClassVectors zeros() {
        ClassVectors v;
        OVS_UNROLL
        for (int i = 0; i < kFull; ++i) v.full[i] = Full{};
        v.rest = Rest{};
        return v;
    }
    OVS_INLINE static ClassVectors load_from(const T* p) {
        ClassVectors v;
        OVS_UNROLL
        for (int i = 0; i < kFull; ++i) v.full[i] = load<Full>(p + i * kLanes);
        v.rest = Rest{};
        if constexpr (kRest > 0) v.rest = load<Rest>(p + kFull * kLanes);
        return v;
    }
    OVS_INLINE void store_to(T* p) const {
        OVS_UNROLL
        for (int i = 0; i < kFull; ++i) store<Full>(p + i * kLanes, full[i]);
        if constexpr (kRest > 0) store<Rest>(p + kFull * kLanes, rest);
    }
    // this += weight * (classes at p)
    OVS_INLINE void add(T weight, const T* p) {
        OVS_UNROLL
        for (int i = 0; i < kFull; ++i) full[i] += weight * load<Full>(p + i * kLanes);
        if constexpr (kRest > 0) rest += weight * load<Rest>(p + kFull * kLanes);
    }
    OVS_INLINE void add(const ClassVectors& other) {
        OVS_UNROLL
        for (int i = 0; i < kFull; ++i) full[i] += other.full[i];
        if constexpr (kRest > 0) rest += other.rest;
    }
    // fn(lane vector of this, offset of its first class)
    template <class Fn>
    OVS_INLINE void for_each(const Fn& fn) const {
        OVS_UNROLL
        for (int i = 0; i < kFull; ++i) fn(full[i], i * kLanes);
        if constexpr (kRest > 0) fn(rest, kFull * kLanes);
    }
};

// sum += sum_k values[k] * panel[columns[k]]
template <class Sums, class Index, class T>
OVS_INLINE void add_segment(Sums& sum, const T* values, const Index* columns, int64_t count, const T* panel) {
    constexpr int kLinks = Sums::kRegisters >= 8 ? 1 : Sums::kRegisters >= 3 ? 2 : 4;
    Sums sums[kLinks];
    sums[0] = sum;
    OVS_UNROLL
    for (int u = 1; u < kLinks; ++u) sums[u] = Sums::zeros();
    int64_t k = 0;
    for (; k + kLinks <= count; k += kLinks) {
        OVS_UNROLL
        for (int u = 0; u < kLinks; ++u) {
            sums[u].add(values[k + u], panel + static_cast<int64_t>(columns[k + u]) * Sums::kClasses);
        }
    }
    OVS_UNROLL
    for (int u = 0; u < kLinks - 1; ++u) {
        if (k + u < count) {
            sums[u].add(values[k + u], panel + static_cast<int64_t>(columns[k + u]) * Sums::kClasses);
        }
    }
    OVS_UNROLL
    for (int u = 1; u < kLinks; ++u) sums[0].add(sums[u]);
    sum = sums[0];
}

// fn(row, sums of the row) for the rows of a block; `scratch` [N, chunk] holds the sums from panel to panel.
template <int kGranules, class Index, class T, class Fn>
OVS_INLINE void for_each_row(const PropagateGrid<T>& g, const PropagateBuffers<T>& b, int64_t first_link, int64_t block,
                             const T* state, T* scratch, const Fn& fn) {
    using Sums = ClassVectors<T, kGranules>;
    const int64_t row0 = b.block_rows[block], rows = b.block_rows[block + 1] - row0;
    const Index* columns = static_cast<const Index*>(b.columns);
    const int64_t* ends = b.segment_ends + row0 * g.panels;
    int64_t at = first_link;
    for (int64_t panel = 0; panel < g.panels; ++panel) {
        const T* source = state + panel * g.panel_columns * Sums::kClasses;
        for (int64_t i = 0; i < rows; ++i) {
            const int64_t end = *ends++;
            T* kept = scratch + (row0 + i) * Sums::kClasses;
            Sums sum = panel == 0 ? Sums::zeros() : Sums::load_from(kept);
            add_segment(sum, b.values + at, columns + at, end - at, source);
            at = end;
            if (panel + 1 == g.panels) {
                fn(row0 + i, sum);
            } else {
                sum.store_to(kept);
            }
        }
    }
}

// Calls fn(kGranules, Index{}) with the compile-time variant that serves this grid.
template <class T, class Fn>
OVS_INLINE void with_variant(const PropagateGrid<T>& g, const Fn& fn) {
    const auto with_granules = [&](auto granules) {
        if (g.short_columns) return fn(granules, uint16_t{});
        return fn(granules, int32_t{});
    };
    if (g.chunk == kClassGranule) return with_granules(std::integral_constant<int, 1>{});
    if (g.chunk == 2 * kClassGranule) return with_granules(std::integral_constant<int, 2>{});
    if constexpr (max_class_chunk<T>() > 2 * kClassGranule) {
        if (g.chunk == 3 * kClassGranule) return with_granules(std::integral_constant<int, 3>{});
        return with_granules(std::integral_constant<int, 4>{});
    }
}

}  // namespace
}  // namespace OVS_ISA
}  // namespace ovs
