// graph: the symmetric k-nearest-neighbour graph of unit feature vectors (LPOSS), from blocks of their dot products.
//
// The graph. u_i is row i of the features divided by its norm, s_ij = <u_i, u_j>. Node i is its own first neighbour;
// the other k - 1 are the nodes with the largest s_ij. With m_ij = 1 for those and 0 for all others,
//   v_ij = min(s_ij, 1)^gamma exp(-sigma |p_i - p_j|)      for s_ij > 0; p: positions, without them the factor is 1
//   w_ij = (m_ij + m_ji) v_ij      for i != j              w_ii = 0
// is S + S^T without its diagonal, S_ij = m_ij v_ij being the directed graph.
//
// The stages, all writing through KnnGraphParams, in this order:
//   normalize   features -> unit_rows
//   select      products of some rows -> what separates each row's neighbours from the rest (kept in the workspace)
//   count       products of some rows -> their numbers of links; after `select` has seen all rows
//   offsets     numbers of links -> indptr and their total, which the caller needs to allocate indices and weights
//   emit        products of some rows -> indices, weights, degrees
// The caller makes the products between `normalize` and `select`, all at once or, where they would not fit into memory,
// some rows at a time and again for each stage. The workspace must be the same buffer in all stages.
//
// Contract.
//   symmetry       w_ij and w_ji are the same bits: both come from the product above the diagonal.
//   ties           of equal s_ij at the k-th place, the lower column is the neighbour.
//   isolated       a row of features that is zero or holds a NaN or Inf, or whose position does, has no links. A
//   position
//                  matters only to the weight: such a node still takes its place among the k.
//   zeros          a v_ij below the smallest normal float32 counts as zero, and zeros are not stored.
//   determinism    same bits for the same products, on CPU for any number of threads.
//   zero extents   nothing is written, nothing is launched.
#pragma once
#include <cstddef>
#include <cstdint>

#include "common/dtype.h"

namespace ovs {

// CPU: products come as square blocks of this many rows, and `first_row` is a multiple of it.
constexpr int kProductBlock = 256;
// Columns are compared as float32 numbers, which are exact up to here.
constexpr int64_t kMaxNodes = int64_t{1} << 24;

enum class KnnGraphStage : int { kNormalize = 0, kSelect = 1, kCount = 2, kOffsets = 3, kEmit = 4 };

struct KnnGraphParams {
    // inputs
    const void* features = nullptr;   // [N, d] dtype
    const void* positions = nullptr;  // [N, 2] dtype (y, x), or null
    // between the stages
    void* unit_rows = nullptr;  // [N, d] dtype
    // CPU:  [tiles, kProductBlock, kProductBlock] dtype: products of a block of rows and one of columns, at or above
    // the
    //       diagonal; only what lies inside of N x N is read
    // CUDA: [last_row - first_row, N] float32, with the diagonal block symmetric
    const void* products = nullptr;
    const int32_t* tile_numbers =
        nullptr;  // CPU: [blocks, blocks] tile of (row block, column block), for row <= column
    // outputs
    int32_t* indptr = nullptr;   // [N + 1]; between `count` and `offsets`, indptr[i + 1] is row i's number of links
    int64_t* total = nullptr;    // [1] number of links
    int32_t* indices = nullptr;  // [total] columns of each row, ascending
    void* weights = nullptr;     // [total] dtype
    void* degrees = nullptr;     // [N] dtype: row sums
    // sizes
    int64_t num_nodes = 0, num_features = 0;
    int64_t first_row = 0, last_row = 0;  // the rows that the products belong to
    int64_t num_others = 0;               // min(k, N) - 1
    // parameters
    double gamma = 3.0;   // > 0
    double sigma = 0.01;  // >= 0, per unit of the positions
    KnnGraphStage stage = KnnGraphStage::kNormalize;
};

std::size_t knn_graph_cpu_workspace_bytes(const KnnGraphParams&, DType, int num_threads);
void knn_graph_cpu(const KnnGraphParams&, DType, void* workspace, std::size_t workspace_bytes, int num_threads, CpuIsa);

// float32 only. Everything is queued on `stream`.
std::size_t knn_graph_cuda_workspace_bytes(const KnnGraphParams&);
void knn_graph_cuda(const KnnGraphParams&, void* workspace, std::size_t workspace_bytes, int device, void* stream);

}  // namespace ovs
