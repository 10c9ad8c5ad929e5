// confusion_matrix and boundary_iou on a CPU: the workspaces, and the choice of the instruction-set level.
#include "metrics/metrics_cpu.h"

#include <algorithm>
#include <cstring>

namespace ovs {
namespace {

// Workers, each with scratch memory of its own.
int useful_threads(const ConfusionParams& p, int num_threads) {
    OVS_REQUIRE(num_threads >= 1, "confusion_matrix: no thread");
    return static_cast<int>(std::clamp<int64_t>(Pieces(p.maps).count() / kPiecesAtOnce, 1, num_threads));
}

int useful_threads(const BoundaryParams& p, int num_threads) {
    OVS_REQUIRE(num_threads >= 1, "boundary_iou: no thread");
    return static_cast<int>(std::min<int64_t>(Bands(p, num_threads).count(p), num_threads));
}

template <class P>
using Level = void (*)(const P&, void*, std::size_t, int);

template <class P>
Level<P> choose(CpuIsa isa, Level<P> best, Level<P> middle, Level<P> least) {
    switch (isa) {
        case CpuIsa::kV4:
            return best;
        case CpuIsa::kV3:
            return middle;
        case CpuIsa::kV2:
            return least;
        default:
            throw InvalidArgument("metrics: this build has the levels v2, v3 and v4");
    }
}

template <class P>
void clear(const P& p, int64_t* counts) {
    std::memset(counts, 0, static_cast<std::size_t>(num_counts(p)) * sizeof(int64_t));
}

}  // namespace

std::size_t confusion_matrix_cpu_workspace_bytes(const ConfusionParams& p, int num_threads) {
    check_params(p);
    if (is_empty(p.maps)) return 0;
    Workspace counter(nullptr, 0);
    ConfusionScratch(p.maps, useful_threads(p, num_threads), counter);
    return counter.used();
}

void confusion_matrix_cpu(const ConfusionParams& p, void* workspace, std::size_t workspace_bytes, int num_threads,
                          CpuIsa isa) {
    check_params(p);
    clear(p, p.maps.counts);
    if (is_empty(p.maps)) return;
#if defined(OVS_X86_LEVELS)
    const auto level = choose<ConfusionParams>(isa, v4::confusion_matrix_level, v3::confusion_matrix_level,
                                               v2::confusion_matrix_level);
#else
    OVS_REQUIRE(isa == CpuIsa::kBaseline, "confusion_matrix: this build has the baseline level only");
    const auto level = baseline::confusion_matrix_level;
#endif
    level(p, workspace, workspace_bytes, useful_threads(p, num_threads));
}

std::size_t boundary_iou_cpu_workspace_bytes(const BoundaryParams& p, int num_threads) {
    check_params(p);
    if (is_empty(p.maps)) return 0;
    Workspace counter(nullptr, 0);
    BoundaryScratch(p, useful_threads(p, num_threads), counter);
    return counter.used();
}

void boundary_iou_cpu(const BoundaryParams& p, void* workspace, std::size_t workspace_bytes, int num_threads,
                      CpuIsa isa) {
    check_params(p);
    clear(p, p.maps.counts);
    if (is_empty(p.maps)) return;
#if defined(OVS_X86_LEVELS)
    const auto level =
        choose<BoundaryParams>(isa, v4::boundary_iou_level, v3::boundary_iou_level, v2::boundary_iou_level);
#else
    OVS_REQUIRE(isa == CpuIsa::kBaseline, "boundary_iou: this build has the baseline level only");
    const auto level = baseline::boundary_iou_level;
#endif
    level(p, workspace, workspace_bytes, useful_threads(p, num_threads));
}

}  // namespace ovs
