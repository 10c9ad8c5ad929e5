// sinkhorn and transport_map on a CPU; compiled once per instruction-set level.
//
// 1. prepare    verify the numbers, masses of the classes, spread of the costs (transport_problem.h)
// 2. solve      with scaling vectors (transport_plain.h, transport_tiles.h) or their logarithms (transport_log.h)
#include "transport/transport_log.h"
#include "transport/transport_plain.h"

namespace ovs {
namespace OVS_ISA {
namespace {

template <class T>
TransportReport solve(const TransportParams& p, void* workspace, std::size_t bytes, int threads) {
    Workspace ws(workspace, bytes);
    const TransportGrid grid(p);
    const TransportBuffers<T> buffers(grid, ws);
    Problem<T> problem(p, grid, buffers, threads);
    const TransportReport report = problem.prepare();
    if (report.fault != TransportFault::kNone) return report;
    if (p.status != nullptr) {
        p.status[0] = p.status[1] = 0;
        p.status[2] = problem.in_log ? 1 : 0;
    }
    problem.write_empty();
    if (problem.active == 0) return report;
    if (problem.in_log) {
        LogSolver<T>(problem).run();
    } else {
        PlainSolver<T>(problem).run();
    }
    return report;
}

}  // namespace

TransportReport transport_solve(const TransportParams& p, DType dtype, void* workspace, std::size_t bytes,
                                int threads) {
    if (dtype == DType::kFloat64) return solve<double>(p, workspace, bytes, threads);
    return solve<float>(p, workspace, bytes, threads);
}

}  // namespace OVS_ISA
}  // namespace ovs
