// Per level: verifying a graph and repacking it (see PropagateGrid).
#pragma once
#include <algorithm>
#include <limits>

#include "common/parallel.h"
#include "common/simd.h"
#include "propagate/propagate_cpu.h"

namespace ovs {
namespace OVS_ISA {
namespace {

// Row starts from 0 to L that never fall. Everything else relies on them.
inline GraphReport verify_row_starts(const PropagateParams& p) {
    if (p.indptr[0] != 0) return {GraphFault::kRowStarts, 0};
    for (int64_t i = 0; i < p.num_nodes; ++i) {
        if (p.indptr[i + 1] < p.indptr[i] || p.indptr[i + 1] > p.num_links) return {GraphFault::kRowStarts, i};
    }
    if (p.indptr[p.num_nodes] != p.num_links) return {GraphFault::kRowStarts, p.num_nodes - 1};
    return {};
}

// Cuts the rows into blocks of about the same work: links, and a constant for the row itself.
template <class T>
void choose_blocks(const PropagateParams& p, const PropagateGrid<T>& g, int64_t* block_rows) {
    constexpr int64_t kRowCost = 16;
    const auto work = [&](int64_t row) { return p.indptr[row] + kRowCost * row; };
    const int64_t total = work(g.nodes);
    int64_t row = 0;
    for (int64_t block = 0; block < g.blocks; ++block) {
        while (row < g.nodes && work(row) * g.blocks < total * block) ++row;
        block_rows[block] = row;
    }
    block_rows[g.blocks] = g.nodes;
}

inline bool columns_are_valid(const int32_t* columns, int64_t count, int64_t num_nodes) {
    if (count == 0) return true;
    int bad = 0;
    for (int64_t k = 1; k < count; ++k) bad |= columns[k] <= columns[k - 1];
    return bad == 0 && columns[0] >= 0 && columns[count - 1] < num_nodes;
}

template <class T>
bool weights_are_valid(const T* weights, int64_t count) {
    constexpr T kLargest = std::numeric_limits<T>::max();
    int bad = 0;
    for (int64_t k = 0; k < count; ++k) bad |= !(weights[k] >= T(0) && weights[k] <= kLargest);
    return bad == 0;
}

// In double, over as many lanes as fit.
template <class T>
double sum_of(const T* values, int64_t count) {
    constexpr int kLanes = kVectorBytes / sizeof(double);
    using D = Vec<double, kLanes>;
    D sums = {};
    int64_t k = 0;
    for (; k + kLanes <= count; k += kLanes) {
        sums += __builtin_convertvector((load<Vec<T, kLanes>>(values + k)), D);
    }
    double sum = 0;
    for (int lane = 0; lane < kLanes; ++lane) sum += sums[lane];
    for (; k < count; ++k) sum += values[k];
    return sum;
}

inline GraphReport first_fault(const GraphReport* faults, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
        if (faults[i].fault != GraphFault::kNone) return faults[i];
    }
    return {};
}

// Columns and, with `check`, weights of every row; the degrees.
template <class T>
GraphReport verify_rows(const PropagateParams& p, const PropagateGrid<T>& g, const PropagateBuffers<T>& b,
                        int threads) {
    const T* weights = static_cast<const T*>(p.weights);
    const T* degrees = static_cast<const T*>(p.degrees);
    parallel_for(g.blocks, threads, [&](int64_t block) {
        b.faults[block] = {};
        for (int64_t i = b.block_rows[block]; i < b.block_rows[block + 1]; ++i) {
            const int64_t begin = p.indptr[i], count = p.indptr[i + 1] - begin;
            if (!columns_are_valid(p.indices + begin, count, g.nodes)) {
                b.faults[block] = {GraphFault::kColumns, i};
                return;
            }
            const T degree = degrees != nullptr ? degrees[i] : static_cast<T>(sum_of(weights + begin, count));
            if (p.check && !(degree <= std::numeric_limits<T>::max() && weights_are_valid(weights + begin, count))) {
                b.faults[block] = {GraphFault::kWeights, i};
                return;
            }
            b.isolated[i] = is_isolated(degree);
            b.degree[i] = is_isolated(degree) ? T(1) : degree;
        }
    });
    return first_fault(b.faults, g.blocks);
}

// Every link (i, j) above the diagonal must find its twin (j, i). Rows i in order meet the columns i of row j in order,
// so one cursor per row suffices: O(L). That no link is left over is seen from where the cursors end.
template <class T>
GraphReport verify_symmetry(const PropagateParams& p, const PropagateGrid<T>& g, const PropagateBuffers<T>& b,
                            int threads) {
    const T* weights = static_cast<const T*>(p.weights);
    const int64_t rows_per_item = ceil_div(g.nodes, kCheckItems);
    const auto first_from = [&](int64_t row, int64_t column) {
        return std::lower_bound(p.indices + p.indptr[row], p.indices + p.indptr[row + 1], column) - p.indices;
    };
    parallel_for(kCheckItems, threads, [&](int64_t item) {
        const int64_t begin = std::min(g.nodes, item * rows_per_item), end = std::min(g.nodes, begin + rows_per_item);
        int64_t* cursors = b.cursors + item * g.nodes;
        b.faults[item] = {};
        for (int64_t j = begin; j < g.nodes; ++j) cursors[j] = begin == 0 ? p.indptr[j] : first_from(j, begin);
        for (int64_t i = begin; i < end; ++i) {
            int bad = 0;
            for (int64_t k = p.indptr[i + 1] - 1; k >= p.indptr[i] && p.indices[k] > i; --k) {
                const int64_t twin = cursors[p.indices[k]]++;
                if (twin >= p.num_links || p.indices[twin] != i) {
                    bad = 1;
                    break;
                }
                const T one = weights[k], other = weights[twin], larger = one > other ? one : other;
                const T gap = one > other ? one - other : other - one;
                bad |= !(gap <= T(kSymmetryTolerance) * larger);
            }
            if (bad != 0) {
                b.faults[item] = {GraphFault::kAsymmetric, i};
                return;
            }
        }
        for (int64_t j = begin; j < g.nodes; ++j) {
            if (cursors[j] != first_from(j, std::min(end, j))) {
                b.faults[item] = {GraphFault::kAsymmetric, j};
                return;
            }
        }
    });
    return first_fault(b.faults, kCheckItems);
}

// values, columns and segment_ends. Columns ascend, so the segments of a row lie one after another.
template <class Index, class T>
void pack_links(const PropagateParams& p, const PropagateGrid<T>& g, const PropagateBuffers<T>& b, int threads) {
    const T* weights = static_cast<const T*>(p.weights);
    Index* columns = static_cast<Index*>(b.columns);
    parallel_for(g.blocks, threads, [&](int64_t block) {
        const int64_t row0 = b.block_rows[block], rows = b.block_rows[block + 1] - row0;
        int64_t* ends = b.segment_ends + row0 * g.panels;
        // Where each segment begins in the row, then where it ends in the packed arrays.
        for (int64_t i = 0; i < rows; ++i) {
            const int32_t* from = p.indices + p.indptr[row0 + i];
            const int64_t count = p.indptr[row0 + i + 1] - p.indptr[row0 + i];
            int64_t k = 0;
            for (int64_t panel = 0; panel < g.panels; ++panel) {
                const int64_t limit = (panel + 1) * g.panel_columns, begin = k;
                if (panel + 1 == g.panels) {
                    k = count;
                } else {
                    k = std::lower_bound(from + k, from + count, limit) - from;
                }
                ends[panel * rows + i] = k - begin;
            }
        }
        int64_t at = p.indptr[row0];
        for (int64_t s = 0; s < g.panels * rows; ++s) ends[s] = at += ends[s];
        for (int64_t i = 0; i < rows; ++i) {
            int64_t from = p.indptr[row0 + i];
            const T factor = static_cast<T>(p.alpha) / b.degree[row0 + i];
            for (int64_t panel = 0; panel < g.panels; ++panel) {
                const int64_t s = panel * rows + i, to = s == 0 ? p.indptr[row0] : ends[s - 1], count = ends[s] - to;
                const int32_t base = static_cast<int32_t>(panel * g.panel_columns);
                for (int64_t k = 0; k < count; ++k) b.values[to + k] = factor * weights[from + k];
                for (int64_t k = 0; k < count; ++k) columns[to + k] = static_cast<Index>(p.indices[from + k] - base);
                from += count;
            }
        }
    });
}

// All of the above. What it reports stops the call.
template <class T>
GraphReport prepare_graph(const PropagateParams& p, const PropagateGrid<T>& g, const PropagateBuffers<T>& b,
                          int threads) {
    GraphReport report = verify_row_starts(p);
    if (report.fault != GraphFault::kNone) return report;
    choose_blocks(p, g, b.block_rows);
    report = verify_rows(p, g, b, threads);
    if (report.fault != GraphFault::kNone) return report;
    if (p.check) report = verify_symmetry(p, g, b, threads);
    if (report.fault != GraphFault::kNone) return report;
    if (g.short_columns) {
        pack_links<uint16_t>(p, g, b, threads);
    } else {
        pack_links<int32_t>(p, g, b, threads);
    }
    return report;
}

}  // namespace
}  // namespace OVS_ISA
}  // namespace ovs
