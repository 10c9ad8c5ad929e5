// knn_graph on a CPU: workspace, prefix sum, and the choice of the instruction-set level.
#include "graph/graph_cpu.h"

#include "common/error.h"

namespace ovs {
namespace {

template <class T>
std::size_t workspace_bytes_of(const KnnGraphParams& p, int threads) {
    Workspace counter(nullptr, 0);
    GraphBuffers<T>(p, threads, counter);
    return counter.used();
}

using StageFunction = void (*)(const KnnGraphParams&, DType, void*, std::size_t, int);

StageFunction stage_function(CpuIsa isa) {
#if defined(OVS_X86_LEVELS)
    switch (isa) {
        case CpuIsa::kV4:
            return v4::knn_graph_stage;
        case CpuIsa::kV3:
            return v3::knn_graph_stage;
        case CpuIsa::kV2:
            return v2::knn_graph_stage;
        default:
            throw InvalidArgument("knn_graph: this build has the levels v2, v3 and v4");
    }
#else
    OVS_REQUIRE(isa == CpuIsa::kBaseline, "knn_graph: this build has the baseline level only");
    return baseline::knn_graph_stage;
#endif
}

// A total of 2^31 and more does not fit into indptr: the caller refuses it.
void add_up_counts(const KnnGraphParams& p) {
    int64_t total = 0;
    p.indptr[0] = 0;
    for (int64_t i = 1; i <= p.num_nodes; ++i) {
        total += p.indptr[i];
        p.indptr[i] = static_cast<int32_t>(total);
    }
    *p.total = total;
}

}  // namespace

std::size_t knn_graph_cpu_workspace_bytes(const KnnGraphParams& p, DType dtype, int num_threads) {
    check_params(p);
    return dtype == DType::kFloat64 ? workspace_bytes_of<double>(p, num_threads)
                                    : workspace_bytes_of<float>(p, num_threads);
}

void knn_graph_cpu(const KnnGraphParams& p, DType dtype, void* workspace, std::size_t workspace_bytes, int num_threads,
                   CpuIsa isa) {
    check_params(p);
    OVS_REQUIRE(p.first_row % kProductBlock == 0, "knn_graph: first_row is not that of a block");
    if (p.num_nodes == 0) return;
    if (p.stage == KnnGraphStage::kOffsets) return add_up_counts(p);
    stage_function(isa)(p, dtype, workspace, workspace_bytes, num_threads);
}

}  // namespace ovs
