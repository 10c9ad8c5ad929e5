// permutohedral_lattice on a GPU: everything on the caller's stream, nothing comes back to the host.
//
// kNumber: points to keys of vertices and weights; a hash table of entries, in which each slot ends with the first
// entry of its key (atomics on integers: which slot a key gets depends on the run, what is in it does not); a prefix
// sum over the entries that are the first of their key numbers the vertices in the order in which they are named.
// kLink: entries sorted by vertex, stably, so that those of a vertex are its points in ascending order; neighbours
// looked up in the table.
#include <algorithm>
#include <cstdint>

#include "common/device.cuh"
#include "common/launch.cuh"
#include "common/workspace.h"
#include "crf/crf.h"
#include "crf/crf_cuda_sort.cuh"
#include "crf/crf_math.h"
#include "crf/crf_problem.h"

namespace ovs {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = 1 << 20;          // further items are taken in a loop
constexpr int64_t kMaxSlots = int64_t{1} << 31;  // they are numbered in 32 bits

struct LatticeDeviceBuffers {
    uint64_t* keys;     // [N (D + 1), words] of all entries
    int32_t* slots;     // [num_slots] the first entry of a key, or -1
    int32_t* first;     // [N (D + 1)] 1 for the first entry of its key, then their prefix sums: its vertex
    int32_t* sums;      // of the prefix sum
    int32_t* named_by;  // [N (D + 1)] the first entry of a vertex
    int64_t num_entries, num_slots;

    LatticeDeviceBuffers(const LatticeProblem& p, Workspace& ws) {
        num_entries = p.num_points * (p.num_features + 1);
        num_slots = 1;
        while (num_slots < 2 * num_entries && num_slots < kMaxSlots) num_slots *= 2;
        keys = ws.take<uint64_t>("keys", num_entries * key_words(p.num_features));
        slots = ws.take<int32_t>("slots", num_slots);
        first = ws.take<int32_t>("first", num_entries);
        sums = ws.take<int32_t>("sums", scan_tiles(num_entries));
        named_by = ws.take<int32_t>("named_by", num_entries);
    }
};

struct Lengths {
    double of[kMaxLatticeFeatures];
};

__device__ __forceinline__ int64_t first_item() { return blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x; }
__device__ __forceinline__ int64_t item_stride() { return gridDim.x * static_cast<int64_t>(kThreads); }

dim3 blocks_for(int64_t items) {
    return dim3(static_cast<unsigned>(std::min(ceil_div(std::max<int64_t>(items, 1), kThreads), kMaxBlocks)));
}

// A thread per point: keys and weights of its entries; vertices: -1 for a point without a place, else 0.
template <int kD>
__global__ void place_kernel(const LatticeProblem p, const Lengths lengths, uint64_t* keys) {
    constexpr int64_t kCorners = kD + 1;
    constexpr int kWords = key_words(kD);
    for (int64_t i = first_item(); i < p.num_points; i += item_stride()) {
        double features[kD];
#pragma unroll
        for (int k = 0; k < kD; ++k) {
            const double value = k >= p.num_axes ? p.planes[(k - p.num_axes) * p.num_points + i]
                                                 : static_cast<double>(k == 0 ? i % p.width : i / p.width);
            features[k] = value / p.scales[k];
        }
        Simplex<kD> s;
        const bool inside = find_simplex<kD>(features, lengths.of, s);
        for (int r = 0; r <= kD; ++r) {
            const int64_t e = i * kCorners + r;
            p.vertices[e] = inside ? 0 : -1;
            if (inside && r > 0) next_vertex<kD>(s.base, s.order, r);
            for (int w = 0; w < kWords; ++w) keys[e * kWords + w] = inside ? s.base[w] : 0;
            const double weight = inside ? s.weights[r] : 0.0;
            if (p.single) {
                static_cast<float*>(p.weights)[e] = static_cast<float>(weight);
            } else {
                static_cast<double*>(p.weights)[e] = weight;
            }
        }
    }
}

template <int kWords>
__device__ __forceinline__ bool equal_keys(const uint64_t* a, const uint64_t* b) {
    bool same = true;
    for (int w = 0; w < kWords; ++w) same = same && a[w] == b[w];
    return same;
}

// A thread per entry: vertices becomes the slot of its key.
template <int kD>
__global__ void insert_kernel(const uint64_t* keys, int64_t num_entries, int32_t* slots, int64_t num_slots,
                              int32_t* vertices) {
    constexpr int kWords = key_words(kD);
    for (int64_t e = first_item(); e < num_entries; e += item_stride()) {
        if (vertices[e] < 0) continue;
        uint64_t key[kWords];
        for (int w = 0; w < kWords; ++w) key[w] = keys[e * kWords + w];
        const int32_t mine = static_cast<int32_t>(e);
        int64_t at = hash_key<kD>(key) & (num_slots - 1);
        for (;;) {
            const int32_t found = atomicCAS(&slots[at], -1, mine);
            if (found < 0) break;
            if (equal_keys<kWords>(keys + int64_t{found} * kWords, key)) {
                if (found > mine) atomicMin(&slots[at], mine);
                break;
            }
            at = (at + 1) & (num_slots - 1);
        }
        vertices[e] = static_cast<int32_t>(at);
    }
}

__global__ void mark_kernel(const int32_t* slots, const int32_t* vertices, int64_t num_entries, int32_t* first) {
    for (int64_t e = first_item(); e < num_entries; e += item_stride()) {
        const int32_t at = vertices[e];
        first[e] = at >= 0 && slots[at] == e ? 1 : 0;
    }
}

// vertices: slots to numbers.
__global__ void name_kernel(const int32_t* slots, const int32_t* first, int64_t num_entries, int32_t* vertices,
                            int32_t* named_by) {
    for (int64_t e = first_item(); e < num_entries; e += item_stride()) {
        if (vertices[e] < 0) continue;
        const int32_t entry = slots[vertices[e]], number = first[entry];
        vertices[e] = number;
        if (entry == e) named_by[number] = static_cast<int32_t>(e);
    }
}

// keys, places: sorted entries. `places` become points; each vertex learns where its entries begin.
__global__ void entries_kernel(const LatticeProblem p, const uint32_t* keys, int64_t num_entries) {
    const int32_t corners = p.num_features + 1, none = static_cast<int32_t>(p.num_vertices);
    for (int64_t k = first_item(); k < num_entries; k += item_stride()) {
        const int32_t e = p.points[k];
        const int32_t vertex = static_cast<int32_t>(keys[k]);
        const bool begins = k == 0 || keys[k - 1] != keys[k];
        p.points[k] = e / corners;
        if (p.single) {
            static_cast<float*>(p.entry_weights)[k] = static_cast<const float*>(p.weights)[e];
        } else {
            static_cast<double*>(p.entry_weights)[k] = static_cast<const double*>(p.weights)[e];
        }
        if (vertex < 0) p.vertices[e] = none;
        if (begins) p.starts[vertex < 0 ? *p.count : vertex] = static_cast<int32_t>(k);
        if (k == num_entries - 1 && vertex >= 0) p.starts[*p.count] = static_cast<int32_t>(num_entries);
    }
}

// The number of the vertex with this key, or `none`.
template <int kD>
__device__ __forceinline__ int32_t find_vertex(const LatticeDeviceBuffers& b, const uint64_t* key, int32_t none) {
    constexpr int kWords = key_words(kD);
    for (int64_t at = hash_key<kD>(key) & (b.num_slots - 1);; at = (at + 1) & (b.num_slots - 1)) {
        const int32_t entry = b.slots[at];
        if (entry < 0) return none;
        if (equal_keys<kWords>(b.keys + int64_t{entry} * kWords, key)) return b.first[entry];
    }
}

// A thread per vertex; blockIdx.y: the axis.
template <int kD>
__global__ void neighbours_kernel(const LatticeProblem p, const LatticeDeviceBuffers b) {
    constexpr int kWords = key_words(kD);
    const int axis = static_cast<int>(blockIdx.y);
    const int64_t count = *p.count;
    uint64_t step[kWords] = {};
    next_along<kD>(step, axis);
    int32_t* const pairs = p.neighbours + axis * p.num_vertices * 2;
    const int32_t none = static_cast<int32_t>(p.num_vertices);
    for (int64_t v = first_item(); v < count; v += item_stride()) {
        const uint64_t* const key = b.keys + int64_t{b.named_by[v]} * kWords;
        uint64_t forward[kWords], backward[kWords];
        for (int w = 0; w < kWords; ++w) {
            forward[w] = key[w] + step[w];
            backward[w] = key[w] - step[w];
        }
        pairs[2 * v] = find_vertex<kD>(b, forward, none);
        pairs[2 * v + 1] = find_vertex<kD>(b, backward, none);
    }
}

template <int kD>
void number_vertices(const LatticeProblem& p, const LatticeDeviceBuffers& b, cudaStream_t stream) {
    const dim3 block(kThreads), entries = blocks_for(b.num_entries);
    Lengths lengths = {};
    for (int k = 0; k < kD; ++k) lengths.of[k] = lattice_length(kD, k);
    OVS_CUDA(cudaMemsetAsync(b.slots, 0xff, static_cast<std::size_t>(b.num_slots) * sizeof(int32_t), stream));
    launch(place_kernel<kD>, blocks_for(p.num_points), block, 0, stream, p, lengths, b.keys);
    OVS_CHECK_LAUNCH("permutohedral_lattice: place");
    const uint64_t* const keys = b.keys;
    const int32_t* const slots = b.slots;
    launch(insert_kernel<kD>, entries, block, 0, stream, keys, b.num_entries, b.slots, b.num_slots, p.vertices);
    OVS_CHECK_LAUNCH("permutohedral_lattice: insert");
    launch(mark_kernel, entries, block, 0, stream, slots, static_cast<const int32_t*>(p.vertices), b.num_entries,
           b.first);
    OVS_CHECK_LAUNCH("permutohedral_lattice: mark");
    exclusive_scan(b.first, b.num_entries, b.sums, p.count, stream);
    launch(name_kernel, entries, block, 0, stream, slots, static_cast<const int32_t*>(b.first), b.num_entries,
           p.vertices, b.named_by);
    OVS_CHECK_LAUNCH("permutohedral_lattice: name");
}

template <int kD>
void link_vertices(const LatticeProblem& p, const LatticeDeviceBuffers& b, const SortBuffers& sort,
                   cudaStream_t stream) {
    int bits = 1;  // of numbers up to that of the entries, and of -1 behind them
    while ((int64_t{1} << bits) <= b.num_entries) ++bits;
    const uint32_t* const keys =
        stable_sort(reinterpret_cast<const uint32_t*>(p.vertices), b.num_entries, bits, sort, p.points, stream);
    launch(entries_kernel, blocks_for(b.num_entries), dim3(kThreads), 0, stream, p, keys, b.num_entries);
    OVS_CHECK_LAUNCH("permutohedral_lattice: entries");
    if (p.num_vertices == 0) return;
    const dim3 vertices(blocks_for(p.num_vertices).x, kD + 1);
    launch(neighbours_kernel<kD>, vertices, dim3(kThreads), 0, stream, p, b);
    OVS_CHECK_LAUNCH("permutohedral_lattice: neighbours");
}

}  // namespace

std::size_t permutohedral_lattice_cuda_workspace_bytes(const LatticeParams& params, DType dtype) {
    const LatticeProblem p = problem_of(params, dtype);
    if (p.num_points == 0) return 0;
    Workspace counter(nullptr, 0);
    const LatticeDeviceBuffers b(p, counter);
    (void)SortBuffers(b.num_entries, counter);
    return counter.used();
}

void permutohedral_lattice_cuda(const LatticeParams& params, DType dtype, void* workspace, std::size_t bytes,
                                int device, void* stream) {
    const LatticeProblem p = problem_of(params, dtype);
    if (p.num_points == 0) return;
    OVS_REQUIRE(p.count != nullptr, "permutohedral_lattice: no place for the number of vertices");
    const DeviceGuard guard(device);
    Workspace ws(workspace, bytes);
    const LatticeDeviceBuffers b(p, ws);
    const SortBuffers sort(b.num_entries, ws);
    if (params.stage == LatticeStage::kNumber) {
        OVS_LATTICE_SWITCH(p.num_features, number_vertices<kD>(p, b, as_stream(stream)))
    } else {
        OVS_LATTICE_SWITCH(p.num_features, link_vertices<kD>(p, b, sort, as_stream(stream)))
    }
}

}  // namespace ovs
