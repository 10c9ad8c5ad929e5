// Inside the CPU half of the crf family: the maps of the workspaces, and what each instruction-set level exports.
#pragma once
#include <algorithm>
#include <cstdint>

#include "common/workspace.h"
#include "crf/crf_math.h"
#include "crf/crf_problem.h"
#include "crf/crf_tiles.h"

namespace ovs {

namespace {  // internal linkage: each instruction-set level keeps its own copy

constexpr int kClassGranule = 8;       // rows of classes are padded to a multiple of it
constexpr int64_t kLeastSlots = 1024;  // of a tile's table, which grows

inline int64_t power_of_two_from(int64_t least) {
    int64_t size = 1;
    while (size < least) size *= 2;
    return size;
}

struct LatticeBuffers {
    uint64_t* tile_keys;    // [N (D + 1), words] the vertices of each tile, in the order found
    int32_t* ids;           // [N (D + 1)] their numbers in the whole
    int64_t* offsets;       // [tiles] where those of a tile begin
    int64_t* counts;        // [tiles] how many they are
    int64_t* used;          // [1] how many all are
    uint64_t* local_keys;   // [threads, tile_entries, words]
    uint16_t* local_slots;  // [threads, tile_table]
    uint64_t* keys;         // [N (D + 1), words] of all vertices
    int32_t* slots;         // [table] number of a vertex, or -1
    int64_t* table;         // [1] size in use, a power of two
    int64_t tile_entries, tile_table;

    LatticeBuffers(const LatticeProblem& p, int threads, Workspace& ws) {
        const int64_t corners = p.num_features + 1, words = key_words(p.num_features);
        const Tiles tiles(p.num_points, p.width);
        tile_entries = tiles.tile_width * tiles.tile_height * corners;
        tile_table = std::max(kLeastSlots, power_of_two_from(2 * tile_entries));
        tile_keys = ws.take<uint64_t>("tile_keys", p.num_points * corners * words);
        ids = ws.take<int32_t>("ids", p.num_points * corners);
        offsets = ws.take<int64_t>("offsets", tiles.count);
        counts = ws.take<int64_t>("counts", tiles.count);
        used = ws.take<int64_t>("used", 1);
        local_keys = ws.take<uint64_t>("local_keys", threads * tile_entries * words);
        local_slots = ws.take<uint16_t>("local_slots", threads * tile_table);
        keys = ws.take<uint64_t>("keys", p.num_points * corners * words);
        slots = ws.take<int32_t>("slots", power_of_two_from(2 * p.num_points * corners));
        table = ws.take<int64_t>("table", 1);
    }
};

// What is kept of a term.
template <class T>
struct CrfState {
    T* parts;                     // [rows, pitch] a lattice: what the tiles send; without a vertex or not
    T* at;                        // [V + 1, pitch] its vertices
    T* next;                      // the same after a blur
    const T* rows;                // what the pixels read: `at`, `next`, or `down`
    int32_t* vertex_of;           // [rows] V: none
    int64_t num_rows, most_rows;  // of all tiles, of a tile
    T *before, *after;            // [N] the factors of the normalisation; a lattice: in the order of the tiles
    T* down;                      // [N, pitch] exact Gaussian: the sums along columns
    T* kernel[2];                 // [longest] exact Gaussian: weights by distance, along x and along y
    int64_t reach[2];             // the largest distance
};

// What a tile needs of a lattice.
template <class T>
struct TileTerm {
    const uint16_t* local;  // [points of the tile, corners]
    const T* weights;       // the same
    const T *before, *after;
    T* in;     // [rows of the tile, pitch] the vertices
    T* parts;  // [rows of the tile, pitch]
    int64_t num_rows;
    int corners;
};

template <class T>
struct CrfBuffers {
    int64_t pitch;             // classes of a row, padded
    int64_t longest;           // side of the image
    bool exact;                // there is an exact Gaussian
    T* logits;                 // [N, pitch] -E in the order of the tiles; the filter does without
    T* q;                      // [N, pitch] row by row, for an exact Gaussian
    T* sums;                   // [most rows] response to ones
    T* ones[2];                // [most vertices + 1]
    T* pixels;                 // [threads, kTilePoints, pitch]
    T* vertices;               // [threads, rows_of_tile, pitch]
    CrfState<T>* states;       // [terms]
    TileTerm<T>* tile_terms;   // [threads, terms]
    int64_t rows_of_tile = 0;  // for all terms

    CrfBuffers(const CrfProblem& p, bool filter, int threads, Workspace& ws) {
        pitch = round_up(p.num_classes, kClassGranule);
        longest = std::max(p.height, p.width);
        exact = false;
        int64_t most_vertices = 0, most_rows = 0;
        states = ws.take<CrfState<T>>("states", p.num_terms);
        for (int m = 0; m < p.num_terms && p.num_points > 0; ++m) {
            const CrfTerm& t = p.terms[m];
            CrfState<T> s = {};
            exact = exact || t.exact;
            s.before = ws.take<T>("before", p.num_points);
            s.after = ws.take<T>("after", p.num_points);
            if (t.exact) {
                s.down = ws.take<T>("down", p.num_points * pitch);
                for (T*& kernel : s.kernel) kernel = ws.take<T>("kernel", longest);
            } else {
                take_lattice(p, t, s, ws);
                rows_of_tile += s.most_rows;
                most_vertices = std::max(most_vertices, t.num_vertices + 1);
                most_rows = std::max(most_rows, s.num_rows);
            }
            if (states != nullptr) states[m] = s;
        }
        const int64_t tile = kTilePoints;
        logits = ws.take<T>("logits", filter ? 0 : p.num_points * pitch);
        q = ws.take<T>("q", exact ? p.num_points * pitch : 0);
        sums = ws.take<T>("sums", most_rows);
        for (T*& one : ones) one = ws.take<T>("ones", most_vertices);
        pixels = ws.take<T>("pixels", threads * tile * pitch);
        vertices = ws.take<T>("vertices", threads * rows_of_tile * pitch);
        tile_terms = ws.take<TileTerm<T>>("tile_terms", int64_t{threads} * p.num_terms);
    }

private:
    // An even number of blurs ends where it began, and what the tiles sent is used up before the first: so its memory
    // can hold every second blur.
    void take_lattice(const CrfProblem& p, const CrfTerm& t, CrfState<T>& s, Workspace& ws) const {
        const LatticeView lattice(t);
        const int64_t tiles = Tiles(p.num_points, lattice.width).count;
        s.num_rows = lattice.first_row(tiles);
        s.most_rows = lattice.most_rows(tiles);
        s.vertex_of = ws.take<int32_t>("vertex_of", s.num_rows);
        s.at = ws.take<T>("at", (t.num_vertices + 1) * pitch);
        s.parts = ws.take<T>("parts", std::max(s.num_rows, t.num_vertices + 1) * pitch);
        s.next = lattice.corners % 2 == 0 ? s.parts : ws.take<T>("next", (t.num_vertices + 1) * pitch);
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
