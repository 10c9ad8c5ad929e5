// Per level: F = (X A) * c for the classes that still run, the kernel in which nearly all time is spent.
//
// X holds the classes of a node side by side. A tile is two vectors of columns of A by kBlockRows rows; for each row a
// number of every class is broadcast and multiplied with both vectors, into sums that stay in registers. So a line of A
// is read from memory once per step whatever the number of classes, and what a tile lacks in one direction of
// memory the fetching of the next one hides. A work item is a panel of columns, all rows: nothing is shared.
#pragma once
#include <utility>

#include "common/parallel.h"
#include "markov/markov_cpu.h"
#include "markov/markov_storage.h"

namespace ovs {
namespace OVS_ISA {
namespace {

constexpr int kVectors = 2;          // of columns in a tile
constexpr int64_t kBlockRows = 128;  // rows that a tile adds up before its sums go to memory
// Classes in registers at a time: 2 x 12 sums and the rest of 32 registers, 2 x 6 and the rest of 16.
constexpr int kMaxTogether = OVS_ISA_LEVEL == 4 ? 12 : 6;

// What a tile reads and where its sums go.
template <class S>
struct TileTask {
    const typename S::Raw* a;
    int64_t a_stride;
    const typename S::Raw* ahead;  // the next tile, with a stride of its own
    int64_t ahead_stride;
    const typename S::T* x;  // first row, first class
    int64_t x_stride, rows;
    typename S::T* state;    // first column
    const int32_t* classes;  // rows of the state
    int64_t state_stride;
    bool first;  // nothing is in the state yet
};

// The sums of kCount classes. kFetch: asks for the next tile on the way.
template <class S, int kCount, bool kFetch>
void multiply_tile(const TileTask<S>& t) {
    using T = typename S::T;
    using V = typename S::V;
    constexpr int64_t kTileBytes = kVectors * S::kLanes * static_cast<int64_t>(sizeof(typename S::Raw));
    V sums[kCount][kVectors];
    OVS_UNROLL
    for (int k = 0; k < kCount; ++k) {
        OVS_UNROLL
        for (int v = 0; v < kVectors; ++v) sums[k][v] = V{};
    }
    const typename S::Raw *a = t.a, *ahead = t.ahead;
    const T* x = t.x;
    for (int64_t i = 0; i < t.rows; ++i, a += t.a_stride, x += t.x_stride) {
        if constexpr (kFetch) {
            __builtin_prefetch(ahead, 0, 2);
            if constexpr (kTileBytes > 64) __builtin_prefetch(reinterpret_cast<const char*>(ahead) + 64, 0, 2);
            ahead += t.ahead_stride;
        }
        V columns[kVectors];
        OVS_UNROLL
        for (int v = 0; v < kVectors; ++v) columns[v] = S::many(a + v * S::kLanes);
        OVS_UNROLL
        for (int k = 0; k < kCount; ++k) {
            OVS_UNROLL
            for (int v = 0; v < kVectors; ++v) sums[k][v] += x[k] * columns[v];
        }
    }
    OVS_UNROLL
    for (int k = 0; k < kCount; ++k) {
        T* state = t.state + t.classes[k] * t.state_stride;
        OVS_UNROLL
        for (int v = 0; v < kVectors; ++v) {
            T* to = state + v * S::kLanes;
            store<V>(to, t.first ? sums[k][v] : load<V>(to) + sums[k][v]);
        }
    }
}

template <class S>
using TileFunction = void (*)(const TileTask<S>&);

// The function for 1 to kMaxTogether classes.
template <class S, bool kFetch, std::size_t... kCounts>
TileFunction<S> tile_function(int count, std::index_sequence<kCounts...>) {
    static constexpr TileFunction<S> table[] = {multiply_tile<S, static_cast<int>(kCounts) + 1, kFetch>...};
    return table[count - 1];
}

template <class S>
class Product {
    using T = typename S::T;
    using Raw = typename S::Raw;
    static constexpr int64_t kTile = kVectors * S::kLanes;
    static_assert(kPanelColumns % kTile == 0 && kStatePadding % kTile == 0, "panels and states hold whole tiles");

public:
    Product(const MarkovParams& p, const ChainBuffers<T>& b) : p_(p), b_(b), n_(p.num_nodes) {}

    // b.now = (b.x A) * c over the columns of a panel, and the largest number of each class.
    void panel(int64_t index, int num_active, bool backwards) const {
        const int64_t begin = index * kPanelColumns, end = std::min(n_, begin + kPanelColumns);
        const int64_t blocks = ceil_div(n_, kBlockRows);
        for (int64_t k = 0; k < blocks; ++k) {
            const int64_t row = (backwards ? blocks - 1 - k : k) * kBlockRows;
            const int64_t next = k + 1 == blocks ? row : row + (backwards ? -kBlockRows : kBlockRows);
            const int64_t rows = std::min(kBlockRows, n_ - row);
            for (int64_t column = begin; column < end; column += kTile) {
                const bool same = column + kTile < end;
                tile(row, rows, column, same ? row : next, same ? column + kTile : begin, num_active, k == 0);
            }
        }
        const T* c = static_cast<const T*>(p_.c);
        for (int a = 0; a < num_active; ++a) {
            T* state = b_.now + b_.active[a] * b_.stride;
            T largest = 0;
            for (int64_t j = begin; j < end; ++j) {
                state[j] *= c[j];
                largest = state[j] > largest ? state[j] : largest;
            }
            b_.notes[index * p_.num_classes + b_.active[a]].largest = largest;
        }
    }

private:
    const Raw* at(int64_t row, int64_t column) const {
        return static_cast<const Raw*>(p_.attention) + row * n_ + column;
    }

    void tile(int64_t row, int64_t rows, int64_t column, int64_t next_row, int64_t next_column, int num_active,
              bool first) const {
        TileTask<S> t;
        Raw edge[kBlockRows * kTile];  // the last columns, filled up with zeros
        t.a = at(row, column);
        t.a_stride = n_;
        if (column + kTile > n_) {
            const int64_t width = n_ - column;
            std::fill_n(edge, rows * kTile, Raw(0));
            for (int64_t i = 0; i < rows; ++i) std::copy_n(at(row + i, column), width, edge + i * kTile);
            t.a = edge;
            t.a_stride = kTile;
        }
        const bool whole = next_row + rows <= n_ && next_column + kTile <= n_;
        t.ahead = whole ? at(next_row, next_column) : at(row, column);
        t.ahead_stride = n_;
        t.x_stride = num_active;
        t.rows = rows;
        t.state = b_.now + column;
        t.state_stride = b_.stride;
        t.first = first;
        const int chunks = (num_active + kMaxTogether - 1) / kMaxTogether;
        for (int chunk = 0, done = 0; chunk < chunks; ++chunk) {
            const int count = (num_active - done + chunks - chunk - 1) / (chunks - chunk);
            t.x = b_.x + row * num_active + done;
            t.classes = b_.active + done;
            using Counts = std::make_index_sequence<kMaxTogether>;
            const bool fetch = chunk == 0;
            (fetch ? tile_function<S, true>(count, Counts{}) : tile_function<S, false>(count, Counts{}))(t);
            done += count;
        }
    }

    const MarkovParams& p_;
    const ChainBuffers<T>& b_;
    int64_t n_;
};

}  // namespace
}  // namespace OVS_ISA
}  // namespace ovs
