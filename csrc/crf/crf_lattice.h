// Building a permutohedral lattice on a CPU; included per instruction-set level.
//
// Numbering: chunks of points find their vertices in a table of their own, all chunks side by side; then the vertices
// of the chunks, far fewer than the entries, go one after the other into the table of the whole. So vertices are
// numbered in the order in which the points name them, neighbours in the image are neighbours in memory, and threads
// only decide who works on which chunk.
#pragma once
#include <cstring>

#include "common/parallel.h"
#include "common/simd.h"
#include "crf/crf_cpu.h"

namespace ovs {
namespace OVS_ISA {
namespace {

// Calls fn(worker, item) for all items. What is computed for an item must not depend on the worker.
template <class Fn>
void for_each_item(int64_t items, int threads, const Fn& fn) {
    int64_t next = 0;
    parallel_for(std::min<int64_t>(threads, items), threads, [&](int64_t worker) {
        for (;;) {
            const int64_t item = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED);
            if (item >= items) return;
            fn(static_cast<int>(worker), item);
        }
    });
}

// Calls fn(begin, end) for blocks of a range.
template <class Fn>
void for_each_block(int64_t size, int64_t block, int threads, const Fn& fn) {
    parallel_for(ceil_div(size, block), threads, [&](int64_t b) { fn(b * block, std::min(size, (b + 1) * block)); });
}

// The place of `key` in a table of numbers of keys: where it is, or the free slot where it belongs.
template <int kD>
OVS_INLINE int64_t find_slot(const int32_t* slots, int64_t table, const uint64_t* keys, const uint64_t* key) {
    int64_t at = hash_key<kD>(key) & (table - 1);
    while (slots[at] >= 0 && !same_key<kD>(keys + int64_t{slots[at]} * key_words(kD), key)) at = (at + 1) & (table - 1);
    return at;
}

template <int kD>
class LatticeBuilder {
public:
    LatticeBuilder(const LatticeProblem& p, LatticeBuffers b, int threads) : p_(p), b_(b), threads_(threads) {
        for (int k = 0; k < kD; ++k) lengths_[k] = lattice_length(kD, k);
    }

    int64_t number() {
        for_each_item(b_.num_chunks, threads_, [&](int worker, int64_t chunk) { number_chunk(worker, chunk); });
        const int64_t count = merge_chunks();
        for_each_item(b_.num_chunks, threads_, [&](int, int64_t chunk) { rename_chunk(chunk, count); });
        return count;
    }

    void link() {
        link_entries();
        link_neighbours();
    }

private:
    static constexpr int64_t kCorners = kD + 1;
    static constexpr int kWords = key_words(kD);

    // Local numbers into `vertices`, -1 for points without a place.
    void number_chunk(int worker, int64_t chunk) {
        int32_t* const slots = b_.chunk_slots + worker * b_.chunk_table;
        uint64_t* const keys = b_.chunk_keys + chunk * b_.chunk_entries * kWords;
        std::memset(slots, 0xff, static_cast<std::size_t>(b_.chunk_table) * sizeof(int32_t));
        int32_t count = 0;
        const int64_t begin = chunk * kChunkPoints, end = std::min(p_.num_points, begin + kChunkPoints);
        for (int64_t i = begin; i < end; ++i) {
            int32_t* const vertices = p_.vertices + i * kCorners;
            double features[kD];
            read_features(i, features);
            Simplex<kD> s;
            if (!find_simplex<kD>(features, lengths_, s)) {
                for (int r = 0; r <= kD; ++r) vertices[r] = -1;
                std::fill_n(s.weights, kCorners, 0.0);
                store_weights(i, s.weights);
                continue;
            }
            store_weights(i, s.weights);
            for (int r = 0; r <= kD; ++r) {
                if (r > 0) next_vertex<kD>(s.base, s.order, r);
                const int64_t at = find_slot<kD>(slots, b_.chunk_table, keys, s.base);
                if (slots[at] < 0) {
                    std::memcpy(keys + int64_t{count} * kWords, s.base, sizeof s.base);
                    slots[at] = count++;
                }
                vertices[r] = slots[at];
            }
        }
        b_.chunk_counts[chunk] = count;
    }

    void read_features(int64_t i, double* features) const {
        const int axes = p_.num_axes;
        if (axes > 0) {
            features[0] = static_cast<double>(i % p_.width) / p_.scales[0];
            features[kD > 1 ? 1 : 0] = static_cast<double>(i / p_.width) / p_.scales[1];
        }
        for (int k = axes; k < kD; ++k) features[k] = p_.planes[(k - axes) * p_.num_points + i] / p_.scales[k];
    }

    void store_weights(int64_t i, const double* weights) {
        if (p_.single) {
            float* const out = static_cast<float*>(p_.weights) + i * kCorners;
            for (int r = 0; r <= kD; ++r) out[r] = static_cast<float>(weights[r]);
        } else {
            std::memcpy(static_cast<double*>(p_.weights) + i * kCorners, weights, kCorners * sizeof(double));
        }
    }

    // The vertices of all chunks into one table; returns how many there are.
    int64_t merge_chunks() {
        int64_t found = 0;
        for (int64_t chunk = 0; chunk < b_.num_chunks; ++chunk) found += b_.chunk_counts[chunk];
        const int64_t table = power_of_two_from(2 * std::max<int64_t>(found, 1));
        *b_.table = table;
        std::memset(b_.slots, 0xff, static_cast<std::size_t>(table) * sizeof(int32_t));
        int32_t count = 0;
        for (int64_t chunk = 0; chunk < b_.num_chunks; ++chunk) {
            const uint64_t* const keys = b_.chunk_keys + chunk * b_.chunk_entries * kWords;
            int32_t* const ids = b_.chunk_ids + chunk * b_.chunk_entries;
            const int64_t size = b_.chunk_counts[chunk];
            for (int64_t k = 0; k < size; ++k) {
                if (k + kAhead < size) {
                    __builtin_prefetch(b_.slots + (hash_key<kD>(keys + (k + kAhead) * kWords) & (table - 1)));
                }
                const int64_t at = find_slot<kD>(b_.slots, table, b_.keys, keys + k * kWords);
                if (b_.slots[at] < 0) {
                    std::memcpy(b_.keys + int64_t{count} * kWords, keys + k * kWords, kWords * sizeof(uint64_t));
                    b_.slots[at] = count++;
                }
                ids[k] = b_.slots[at];
            }
        }
        return count;
    }

    void rename_chunk(int64_t chunk, int64_t count) {
        const int32_t* const ids = b_.chunk_ids + chunk * b_.chunk_entries;
        const int64_t begin = chunk * kChunkPoints, end = std::min(p_.num_points, begin + kChunkPoints);
        for (int64_t e = begin * kCorners; e < end * kCorners; ++e) {
            const int32_t local = p_.vertices[e];
            p_.vertices[e] = local < 0 ? static_cast<int32_t>(count) : ids[local];
        }
    }

    // The entries of each vertex, ascending by point. Each thread looks at all entries and takes those of its vertices.
    void link_entries() {
        const int64_t entries = p_.num_points * kCorners, count = p_.num_vertices;
        const int64_t share = ceil_div(std::max<int64_t>(count, 1), threads_);
        std::fill_n(p_.starts, count + 1, 0);
        parallel_for(threads_, threads_, [&](int64_t t) {
            const uint32_t first = static_cast<uint32_t>(t * share);
            const uint32_t mine = static_cast<uint32_t>(std::max<int64_t>(0, std::min(share, count - t * share)));
            if (mine == 0) return;
            int32_t* const sizes = p_.starts + 1 + first;
            for (int64_t e = 0; e < entries; ++e) {
                const uint32_t v = static_cast<uint32_t>(p_.vertices[e]) - first;
                if (v < mine) ++sizes[v];
            }
        });
        // starts[v + 1] becomes where vertex v begins; filling it moves that to where it ends.
        int32_t total = 0;
        for (int64_t v = 1; v <= count; ++v) {
            const int32_t size = p_.starts[v];
            p_.starts[v] = total;
            total += size;
        }
        parallel_for(threads_, threads_, [&](int64_t t) {
            const uint32_t first = static_cast<uint32_t>(t * share);
            const uint32_t mine = static_cast<uint32_t>(std::max<int64_t>(0, std::min(share, count - t * share)));
            if (mine == 0) return;
            if (p_.single) {
                fill_entries<float>(first, mine);
            } else {
                fill_entries<double>(first, mine);
            }
        });
    }

    template <class T>
    void fill_entries(uint32_t first, uint32_t mine) {
        int32_t* const next = p_.starts + 1 + first;
        const T* const weights = static_cast<const T*>(p_.weights);
        T* const entry_weights = static_cast<T*>(p_.entry_weights);
        for (int64_t i = 0, e = 0; i < p_.num_points; ++i) {
            for (int64_t r = 0; r < kCorners; ++r, ++e) {
                const uint32_t v = static_cast<uint32_t>(p_.vertices[e]) - first;
                if (v >= mine) continue;
                const int32_t at = next[v]++;
                p_.points[at] = static_cast<int32_t>(i);
                entry_weights[at] = weights[e];
            }
        }
    }

    void link_neighbours() {
        const int64_t count = p_.num_vertices, table = *b_.table;
        for_each_block(kCorners * count * 2, 1 << 16, threads_, [&](int64_t begin, int64_t end) {
            std::fill(p_.neighbours + begin, p_.neighbours + end, static_cast<int32_t>(count));
        });
        for_each_block(count, 4096, threads_, [&](int64_t begin, int64_t end) {
            for (int axis = 0; axis <= kD; ++axis) {
                int32_t* const pairs = p_.neighbours + axis * count * 2;
                uint64_t step[kWords] = {};
                next_along<kD>(step, axis);
                for (int64_t v = begin; v < end; ++v) {
                    uint64_t key[kWords];
                    for (int w = 0; w < kWords; ++w) key[w] = b_.keys[v * kWords + w] + step[w];
                    const int32_t other = b_.slots[find_slot<kD>(b_.slots, table, b_.keys, key)];
                    if (other < 0) continue;
                    pairs[2 * v] = other;                                     // forward,
                    pairs[2 * int64_t{other} + 1] = static_cast<int32_t>(v);  // and backward: nobody else writes it
                }
            }
        });
    }

    static constexpr int64_t kAhead = 8;  // keys between a prefetch and its use

    const LatticeProblem& p_;
    LatticeBuffers b_;
    int threads_;
    double lengths_[kD];
};

}  // namespace
}  // namespace OVS_ISA
}  // namespace ovs
