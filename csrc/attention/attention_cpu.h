// Inside the CPU half of the attention family: the workers' scratch, and what each instruction-set level exports.
#pragma once
#include <algorithm>
#include <cstdint>

#include "attention/attention.h"
#include "attention/attention_math.h"
#include "common/workspace.h"

namespace ovs {

namespace {  // internal linkage: each instruction-set level keeps its own copy

// Queries that a worker takes at a time. A tile is [keys][kTileQueries]: neighbouring queries are the lanes of vectors.
// With 4,096 keys a tile takes 512 KB in float32, and there are two.
constexpr int64_t kTileQueries = 32;

template <class T>
struct AttentionScratch {
    T* key_norms;     // [heads] largest norm of a key
    T* queries;       // [workers, queries_stride]   a tile's queries of one head, [features][kTileQueries]
    T* exponentials;  // [workers, tile_stride]      of a head, not normalised
    T* mean;          // [workers, tile_stride]
    T* column_sums;   // [tiles, columns]            where they are asked for
    T* maxima;        // [tiles]
    int64_t tiles, queries_stride, tile_stride, columns;

    AttentionScratch(const AttentionParams& p, int workers, Workspace& ws) {
        int64_t features = 0;
        for (int64_t b = 0; b < p.num_blocks; ++b) features = std::max(features, p.blocks[b].features);
        tiles = ceil_div(p.num_queries, kTileQueries);
        columns = p.num_keys - p.first_key;
        queries_stride = round_up(features * kTileQueries, 64);
        tile_stride = round_up(p.num_keys * kTileQueries, 64);
        const bool info = p.column_sums != nullptr;
        key_norms = ws.take<T>("key_norms", num_heads(p));
        queries = ws.take<T>("queries", workers * queries_stride);
        exponentials = ws.take<T>("exponentials", workers * tile_stride);
        mean = ws.take<T>("mean", workers * tile_stride);
        column_sums = ws.take<T>("column_sums", info ? tiles * columns : 0);
        maxima = ws.take<T>("maxima", info ? tiles : 0);
    }
};

}  // namespace

#define OVS_DECLARE_ATTENTION_ISA(isa)                                                                                 \
    namespace isa {                                                                                                    \
    void attention_mean_level(const AttentionParams& p, DType dtype, void* workspace, std::size_t bytes, int threads); \
    }
#if defined(OVS_X86_LEVELS)
OVS_DECLARE_ATTENTION_ISA(v2)
OVS_DECLARE_ATTENTION_ISA(v3)
OVS_DECLARE_ATTENTION_ISA(v4)
#else
OVS_DECLARE_ATTENTION_ISA(baseline)
#endif
#undef OVS_DECLARE_ATTENTION_ISA

}  // namespace ovs
