// Inside the CPU half of the crf family: the maps of the workspaces, and what each instruction-set level exports.
#pragma once
#include <algorithm>
#include <cstdint>

#include "common/workspace.h"
#include "crf/crf_math.h"
#include "crf/crf_problem.h"

namespace ovs {

namespace {  // internal linkage: each instruction-set level keeps its own copy

// Points are numbered in chunks, each by itself, and the chunks put together one after the other: the size of a chunk
// is fixed, so the result does not depend on the threads. A chunk's table of slots stays in the second-level cache.
constexpr int64_t kChunkPoints = 4096;
constexpr int kClassGranule = 8;   // rows of classes are padded to a multiple of it
constexpr int64_t kOutBlock = 64;  // pixels that are turned between planes and rows together

inline int64_t power_of_two_from(int64_t least) {
    int64_t size = 1;
    while (size < least) size *= 2;
    return size;
}

struct LatticeBuffers {
    uint64_t* chunk_keys;   // [chunks, kChunkPoints (D + 1), words] the vertices of each chunk, in the order found
    int32_t* chunk_ids;     // [chunks, kChunkPoints (D + 1)] their numbers in the whole
    int64_t* chunk_counts;  // [chunks]
    int32_t* chunk_slots;   // [threads, chunk_table]
    uint64_t* keys;         // [N (D + 1), words] of all vertices
    int32_t* slots;         // [table] number of a vertex, or -1
    int64_t* table;         // [1] size in use, a power of two
    int64_t num_chunks, chunk_entries, chunk_table, words;

    LatticeBuffers(const LatticeProblem& p, int threads, Workspace& ws) {
        const int64_t corners = p.num_features + 1;
        num_chunks = ceil_div(p.num_points, kChunkPoints);
        chunk_entries = std::min(p.num_points, kChunkPoints) * corners;
        chunk_table = power_of_two_from(2 * chunk_entries);
        words = key_words(p.num_features);
        chunk_keys = ws.take<uint64_t>("chunk_keys", num_chunks * chunk_entries * words);
        chunk_ids = ws.take<int32_t>("chunk_ids", num_chunks * chunk_entries);
        chunk_counts = ws.take<int64_t>("chunk_counts", num_chunks);
        chunk_slots = ws.take<int32_t>("chunk_slots", threads * chunk_table);
        keys = ws.take<uint64_t>("keys", p.num_points * corners * words);
        slots = ws.take<int32_t>("slots", power_of_two_from(2 * p.num_points * corners));
        table = ws.take<int64_t>("table", 1);
    }
};

// What the mean field keeps of a term.
template <class T>
struct CrfState {
    T *at, *next;       // [V + 1, pitch] a lattice's vertices, before and after a blur
    const T* rows;      // what the pixels read: the one or the other, or `down`
    T* down;            // [N, pitch] exact Gaussian: the sums along columns
    T *before, *after;  // [N] exact Gaussian: the factors of the normalisation
    T* kernel[2];       // [longest] exact Gaussian: weights by distance, along x and along y
    int64_t reach[2];   // the largest distance
};

template <class T>
struct CrfBuffers {
    int64_t pitch;        // classes of a row, padded
    int64_t longest;      // side of the image
    T* logits;            // [N, pitch] -E; the filter does without
    T* q;                 // [N, pitch]
    T* norm;              // [N] response to ones
    T* ones[2];           // [most vertices + 1]
    T* scratch;           // [threads, kOutBlock, pitch]
    CrfState<T>* states;  // [terms]

    CrfBuffers(const CrfProblem& p, bool filter, int threads, Workspace& ws) {
        pitch = round_up(p.num_classes, kClassGranule);
        longest = std::max(p.height, p.width);
        int64_t most = 0;
        for (int m = 0; m < p.num_terms; ++m) most = std::max(most, p.terms[m].num_vertices + 1);
        logits = ws.take<T>("logits", filter ? 0 : p.num_points * pitch);
        q = ws.take<T>("q", p.num_points * pitch);
        norm = ws.take<T>("norm", p.num_points);
        for (T*& one : ones) one = ws.take<T>("ones", most);
        scratch = ws.take<T>("scratch", threads * kOutBlock * pitch);
        states = ws.take<CrfState<T>>("states", p.num_terms);
        for (int m = 0; m < p.num_terms; ++m) {
            const CrfTerm& t = p.terms[m];
            CrfState<T> s = {};
            if (t.exact) {
                s.down = ws.take<T>("down", p.num_points * pitch);
                s.before = ws.take<T>("before", p.num_points);
                s.after = ws.take<T>("after", p.num_points);
                for (T*& kernel : s.kernel) kernel = ws.take<T>("kernel", longest);
            } else {
                s.at = ws.take<T>("at", (t.num_vertices + 1) * pitch);
                s.next = ws.take<T>("next", (t.num_vertices + 1) * pitch);
            }
            if (states != nullptr) states[m] = s;
        }
    }
};

}  // namespace

#define OVS_DECLARE_CRF_ISA(isa)                                                                            \
    namespace isa {                                                                                         \
    int64_t number_vertices(const LatticeProblem& p, void* workspace, std::size_t bytes, int threads);      \
    void link_vertices(const LatticeProblem& p, void* workspace, std::size_t bytes, int threads);           \
    void mean_field(const CrfProblem& p, DType dtype, void* workspace, std::size_t bytes, int threads);     \
    void lattice_filter(const CrfProblem& p, DType dtype, void* workspace, std::size_t bytes, int threads); \
    }
#if defined(OVS_X86_LEVELS)
OVS_DECLARE_CRF_ISA(v2)
OVS_DECLARE_CRF_ISA(v3)
OVS_DECLARE_CRF_ISA(v4)
#else
OVS_DECLARE_CRF_ISA(baseline)
#endif
#undef OVS_DECLARE_CRF_ISA

}  // namespace ovs
