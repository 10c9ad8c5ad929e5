// attention: the softmax maps of many attention heads, averaged, without keeping a map.
//
//     P_bh = softmax over j of  scale_b <q_bhi, k_bhj>                              over all keys
//     Abar = sum_b weight_b sum_h P_bh
//     A_ij = Abar_ij / sum_j' Abar_ij'                                              j, j' >= first_key
//
// How. Work is cut into blocks of queries. Against one such block all heads are computed one after another, so that the
// block of the mean stays where it is, and each number of the result is written once.
//
// Contract.
//   large logits  safe: where they can reach the limits of an exponential, the row's largest is subtracted first.
//   non-finite    a row that has a logit NaN or +Inf in some head is NaN, as softmax has it; a logit -Inf gives 0.
//   first_key     keys before it take part in the softmax and get no column. A row that gives them everything (less
//                 than the smallest normal number is left) is NaN.
//   rows          add up to 1, up to the rounding of their entries.
//   column sums   of the matrix before it is rounded to a half type, as is the maximum; both NaN with a NaN row.
//   determinism   same bits for the same input, on CPU for any number of threads. No atomics on results.
//   zero extents  without queries the column sums and the maximum are 0, and nothing else is written.
#pragma once
#include <cstddef>
#include <cstdint>

#include "common/dtype.h"

namespace ovs {

// Heads that share their sizes. Strides count elements; the features of a token lie side by side.
struct AttentionBlock {
    const void* queries;  // [heads, Nq, features]
    const void* keys;     // [heads, Nk, features]
    int64_t query_head_stride, query_stride;
    int64_t key_head_stride, key_stride;
    int64_t heads, features;
    double scale;   // of the products
    double weight;  // of each head
};
static_assert(sizeof(AttentionBlock) == 80, "ovs_kernels/_ops/attention.py makes a table of these");

// Blocks of a call at most: their description is an argument of the CUDA kernels, which have 4 KB for that.
constexpr int64_t kMaxAttentionBlocks = 40;

struct AttentionParams {
    AttentionBlock blocks[kMaxAttentionBlocks];
    int64_t num_blocks = 0;
    int64_t num_queries = 0, num_keys = 0;  // Nq, Nk
    int64_t first_key = 0;                  // of the columns
    void* mean = nullptr;                   // [Nq, Nk - first_key] mean_dtype
    DType mean_dtype = DType::kFloat32;     // with a computation in float32 all but float64, else float64
    void* column_sums = nullptr;            // [Nk - first_key] dtype of the computation, or null
    void* maximum = nullptr;                // one number in that dtype, null where column_sums is
};

// The DType argument is that of the queries and keys and of the computation: float32 or float64.
std::size_t attention_mean_cpu_workspace_bytes(const AttentionParams&, DType, int num_threads);
void attention_mean_cpu(const AttentionParams&, DType, void* workspace, std::size_t workspace_bytes, int num_threads,
                        CpuIsa);

// Everything is queued on `stream`: no host round trip, safe under graph capture.
std::size_t attention_mean_cuda_workspace_bytes(const AttentionParams&, DType);
void attention_mean_cuda(const AttentionParams&, DType, void* workspace, std::size_t workspace_bytes, int device,
                         void* stream);

}  // namespace ovs
