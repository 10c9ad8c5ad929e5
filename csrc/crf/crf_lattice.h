// Building a permutohedral lattice on a CPU; included per instruction-set level.
//
// Numbering: each tile finds its vertices in a small table of its own, all tiles side by side; then the vertices of the
// tiles, far fewer than the entries, go one after the other into the table of the whole. So vertices are numbered in
// the order in which the tiles name them, neighbours in the image are neighbours in memory, and threads only decide who
// works on which tile.
#pragma once
#include <cstring>

#include "common/parallel.h"
#include "crf/crf_cpu.h"
#include "crf/crf_simplex.h"

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
    for_each_item(ceil_div(size, block), threads,
                  [&](int, int64_t b) { fn(b * block, std::min(size, (b + 1) * block)); });
}

// The place of `key` in a table of numbers of keys: where it is, or the free slot where it belongs.
template <int kD, class Slot>
OVS_INLINE int64_t find_slot(const Slot* slots, int64_t table, const uint64_t* keys, const uint64_t* key) {
    constexpr Slot kFree = static_cast<Slot>(-1);
    int64_t at = hash_key<kD>(key) & (table - 1);
    while (slots[at] != kFree && !same_key<kD>(keys + int64_t{slots[at]} * key_words(kD), key)) {
        at = (at + 1) & (table - 1);
    }
    return at;
}

// The vertices of a tile, in the order found.
template <int kD>
class TileTable {
public:
    static constexpr int kWords = key_words(kD);

    TileTable(uint64_t* keys, uint16_t* slots) : keys_(keys), slots_(slots) { clear(); }

    OVS_INLINE uint16_t number_of(const uint64_t* key) {
        const int64_t at = find_slot<kD>(slots_, size_, keys_, key);
        if (slots_[at] != kFree) return slots_[at];
        std::memcpy(keys_ + count_ * kWords, key, kWords * sizeof(uint64_t));
        slots_[at] = static_cast<uint16_t>(count_++);
        if (2 * count_ > size_) grow();
        return static_cast<uint16_t>(count_ - 1);
    }

    int64_t count() const { return count_; }

private:
    static constexpr uint16_t kFree = static_cast<uint16_t>(-1);

    void clear() { std::memset(slots_, 0xff, static_cast<std::size_t>(size_) * sizeof(uint16_t)); }

    __attribute__((noinline)) void grow() {
        size_ *= 2;
        clear();
        for (int64_t k = 0; k < count_; ++k) {
            slots_[find_slot<kD>(slots_, size_, keys_, keys_ + k * kWords)] = static_cast<uint16_t>(k);
        }
    }

    uint64_t* keys_;
    uint16_t* slots_;
    int64_t size_ = kLeastSlots, count_ = 0;
};

template <int kD>
class LatticeBuilder {
public:
    LatticeBuilder(const LatticeProblem& p, LatticeBuffers b, int threads)
        : p_(p), b_(b), tiles_(p.num_points, p.width), threads_(threads) {
        for (int k = 0; k < kD; ++k) lengths_[k] = lattice_length(kD, k);
    }

    int64_t number() {
        *b_.used = 0;
        for_each_item(tiles_.count, threads_, [&](int worker, int64_t tile) {
            if (p_.single) {
                number_tile<float>(worker, tile);
            } else {
                number_tile<double>(worker, tile);
            }
        });
        return merge_tiles();
    }

    void link() {
        constexpr int64_t kBlock = 2048;
        const int64_t count = p_.num_vertices;
        for_each_block(kCorners * count * 2, 1 << 16, threads_, [&](int64_t begin, int64_t end) {
            std::fill(p_.neighbours + begin, p_.neighbours + end, static_cast<int32_t>(count));
        });
        for_each_item(1 + ceil_div(count, kBlock), threads_, [&](int, int64_t item) {
            if (item == 0) return link_rows();
            link_neighbours((item - 1) * kBlock, std::min(count, item * kBlock));
        });
    }

private:
    static constexpr int64_t kCorners = kD + 1;
    static constexpr int kWords = key_words(kD);
    using Block = SimplexBlock<kD>;

    template <class T>
    void number_tile(int worker, int64_t number) {
        const Tile tile = tiles_[number];
        uint64_t* const keys = b_.local_keys + worker * b_.tile_entries * kWords;
        TileTable<kD> table(keys, b_.local_slots + worker * b_.tile_table);
        uint16_t* local = reinterpret_cast<uint16_t*>(p_.vertices) + tile.first * kCorners;
        T* weights = static_cast<T*>(p_.weights) + tile.first * kCorners;
        bool complete = true;
        Block block;
        tile.for_each_run([&](int64_t first, int64_t y, int64_t length) {
            for (int64_t x = first; x < first + length; x += Block::kLanes) {
                const int64_t lanes = std::min<int64_t>(Block::kLanes, first + length - x);
                typename Block::V features[kD];
                read_features(x, y, lanes, features);
                block.find(features, lengths_);
                for (int64_t k = 0; k < lanes; ++k, local += kCorners, weights += kCorners) {
                    if (block.inside[k] != 0) {
                        take(block, k, table, local, weights);
                    } else {
                        std::fill_n(local, kCorners, kNowhere);
                        std::fill_n(weights, kCorners, T(0));
                        complete = false;
                    }
                }
            }
        });
        if (!complete) {  // to the row after those of the vertices
            uint16_t* const begin = local - tile.size() * kCorners;
            std::replace(begin, local, kNowhere, static_cast<uint16_t>(table.count()));
        }
        const int64_t at = __atomic_fetch_add(b_.used, table.count(), __ATOMIC_RELAXED);
        std::memcpy(b_.tile_keys + at * kWords, keys,
                    static_cast<std::size_t>(table.count() * kWords) * sizeof(uint64_t));
        b_.offsets[number] = at;
        b_.counts[number] = table.count();
    }

    template <class T>
    OVS_INLINE static void take(const Block& block, int64_t k, TileTable<kD>& table, uint16_t* local, T* weights) {
        for_each_coordinate<kD + 1>([&](int r) OVS_INLINE_LAMBDA {
            uint64_t key[kWords];
            for (int w = 0; w < kWords; ++w) key[w] = block.keys[r][w][k];
            local[r] = table.number_of(key);
            weights[r] = static_cast<T>(block.weights[r][k]);
        });
    }

    OVS_INLINE void read_features(int64_t x, int64_t y, int64_t lanes, typename Block::V (&features)[kD]) const {
        using V = typename Block::V;
        const int axes = p_.num_axes;
        if (axes > 0) {
            V columns = {};
            for (int k = 0; k < Block::kLanes; ++k) columns[k] = static_cast<double>(x + k);
            features[0] = columns / p_.scales[0];
            features[kD > 1 ? 1 : 0] = V{} + static_cast<double>(y) / p_.scales[1];
        }
        for (int k = axes; k < kD; ++k) {
            const double* const from = p_.planes + (k - axes) * p_.num_points + y * tiles_.width + x;
            V values = {};
            if (lanes == Block::kLanes) {
                values = load<V>(from);
            } else {
                for (int64_t lane = 0; lane < lanes; ++lane) values[lane] = from[lane];
            }
            features[k] = values / p_.scales[k];
        }
    }

    // The vertices of all tiles into one table; returns how many there are.
    int64_t merge_tiles() {
        const int64_t found = *b_.used;
        const int64_t table = power_of_two_from(2 * std::max<int64_t>(found, 1));
        *b_.table = table;
        std::memset(b_.slots, 0xff, static_cast<std::size_t>(table) * sizeof(int32_t));
        int32_t count = 0;
        for (int64_t tile = 0; tile < tiles_.count; ++tile) {
            const uint64_t* const keys = b_.tile_keys + b_.offsets[tile] * kWords;
            int32_t* const ids = b_.ids + b_.offsets[tile];
            const int64_t size = b_.counts[tile];
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

    // The rows of each vertex.
    void link_rows() {
        const int64_t count = p_.num_vertices;
        int32_t* const layout = static_cast<int32_t*>(p_.entry_weights);
        uint32_t* const rows = reinterpret_cast<uint32_t*>(p_.points);
        layout[0] = static_cast<int32_t>(p_.width);
        std::fill_n(p_.starts, count + 1, 0);
        int64_t total = 0;
        for (int64_t tile = 0; tile < tiles_.count; ++tile) {
            const int32_t* const ids = b_.ids + b_.offsets[tile];
            for (int64_t k = 0; k < b_.counts[tile]; ++k) ++p_.starts[ids[k] + 1];
            layout[tile + 1] = static_cast<int32_t>(total += b_.counts[tile]);
        }
        // starts[v + 1] becomes where vertex v begins; filling it moves that to where it ends.
        int32_t sum = 0;
        for (int64_t v = 1; v <= count; ++v) {
            const int32_t size = p_.starts[v];
            p_.starts[v] = sum;
            sum += size;
        }
        uint32_t row = 0;
        for (int64_t tile = 0; tile < tiles_.count; ++tile, ++row) {
            const int32_t* const ids = b_.ids + b_.offsets[tile];
            for (int64_t k = 0; k < b_.counts[tile]; ++k) rows[p_.starts[ids[k] + 1]++] = row++;
        }
    }

    void link_neighbours(int64_t begin, int64_t end) {
        const int64_t count = p_.num_vertices, table = *b_.table;
        for (int axis = 0; axis <= kD; ++axis) {
            int32_t* const pairs = p_.neighbours + axis * count * 2;
            uint64_t step[kWords] = {};
            next_along<kD>(step, axis);
            for (int64_t v = begin; v < end; ++v) {
                uint64_t key[kWords], soon[kWords];
                for (int w = 0; w < kWords; ++w) {
                    key[w] = b_.keys[v * kWords + w] + step[w];
                    soon[w] = b_.keys[std::min(v + kAhead, end - 1) * kWords + w] + step[w];
                }
                __builtin_prefetch(b_.slots + (hash_key<kD>(soon) & (table - 1)));
                const int32_t other = b_.slots[find_slot<kD>(b_.slots, table, b_.keys, key)];
                if (other < 0) continue;
                pairs[2 * v] = other;                                     // forward,
                pairs[2 * int64_t{other} + 1] = static_cast<int32_t>(v);  // and backward: nobody else writes it
            }
        }
    }

    static constexpr uint16_t kNowhere = static_cast<uint16_t>(-1);
    static constexpr int64_t kAhead = 8;  // keys between a prefetch and its use

    const LatticeProblem& p_;
    LatticeBuffers b_;
    Tiles tiles_;
    int threads_;
    double lengths_[kD];
};

}  // namespace
}  // namespace OVS_ISA
}  // namespace ovs
