// dense_crf, permutohedral_filter and their lattice on a CPU: checks, sizes of the workspaces, and the choice of the
// instruction-set level.
#include "crf/crf_cpu.h"

#include <cstdint>

#include "common/error.h"
#include "crf/crf_problem.h"

namespace ovs {
namespace {

struct IsaFunctions {
    int64_t (*number)(const LatticeProblem&, void*, std::size_t, int);
    void (*link)(const LatticeProblem&, void*, std::size_t, int);
    void (*mean_field)(const CrfProblem&, DType, void*, std::size_t, int);
    void (*filter)(const CrfProblem&, DType, void*, std::size_t, int);
};

#define OVS_CRF_FUNCTIONS(isa) \
    IsaFunctions { isa::number_vertices, isa::link_vertices, isa::mean_field, isa::lattice_filter }

IsaFunctions functions_of(CpuIsa isa) {
#if defined(OVS_X86_LEVELS)
    switch (isa) {
        case CpuIsa::kV4:
            return OVS_CRF_FUNCTIONS(v4);
        case CpuIsa::kV3:
            return OVS_CRF_FUNCTIONS(v3);
        case CpuIsa::kV2:
            return OVS_CRF_FUNCTIONS(v2);
        default:
            throw InvalidArgument("crf: this build has the levels v2, v3 and v4");
    }
#else
    OVS_REQUIRE(isa == CpuIsa::kBaseline, "crf: this build has the baseline level only");
    return OVS_CRF_FUNCTIONS(baseline);
#endif
}

template <class T>
std::size_t field_bytes(const CrfProblem& p, bool filter, int threads) {
    Workspace counter(nullptr, 0);
    CrfBuffers<T>(p, filter, threads, counter);
    return counter.used();
}

}  // namespace

std::size_t permutohedral_lattice_cpu_workspace_bytes(const LatticeParams& params, DType dtype, int num_threads) {
    Workspace counter(nullptr, 0);
    LatticeBuffers(problem_of(params, dtype), num_threads, counter);
    return counter.used();
}

std::size_t dense_crf_cpu_workspace_bytes(const CrfParams& params, DType dtype, int num_threads) {
    const CrfProblem p = problem_of(params);
    return dtype == DType::kFloat64 ? field_bytes<double>(p, false, num_threads)
                                    : field_bytes<float>(p, false, num_threads);
}

std::size_t permutohedral_filter_cpu_workspace_bytes(const FilterParams& params, DType dtype, int num_threads) {
    const CrfProblem p = problem_of(params);
    return dtype == DType::kFloat64 ? field_bytes<double>(p, true, num_threads)
                                    : field_bytes<float>(p, true, num_threads);
}

int64_t permutohedral_lattice_cpu(const LatticeParams& params, DType dtype, void* workspace,
                                  std::size_t workspace_bytes, int num_threads, CpuIsa isa) {
    const LatticeProblem p = problem_of(params, dtype);
    if (p.num_points == 0) return 0;
    OVS_REQUIRE(p.width == 0 || p.num_points % p.width == 0, "permutohedral_lattice: rows of the image's width");
    const IsaFunctions run = functions_of(isa);
    if (params.stage == LatticeStage::kNumber) return run.number(p, workspace, workspace_bytes, num_threads);
    run.link(p, workspace, workspace_bytes, num_threads);
    return p.num_vertices;
}

void dense_crf_cpu(const CrfParams& params, DType dtype, void* workspace, std::size_t workspace_bytes, int num_threads,
                   CpuIsa isa) {
    const CrfProblem p = problem_of(params);
    if (p.num_points == 0 || p.num_classes == 0) return;
    for (const CrfTerm& t : params.terms) {
        OVS_REQUIRE(t.exact || LatticeView(t).width == p.width, "dense_crf: a lattice built with another width");
    }
    functions_of(isa).mean_field(p, dtype, workspace, workspace_bytes, num_threads);
}

void permutohedral_filter_cpu(const FilterParams& params, DType dtype, void* workspace, std::size_t workspace_bytes,
                              int num_threads, CpuIsa isa) {
    const CrfProblem p = problem_of(params);
    if (p.num_points == 0 || p.num_classes == 0) return;
    functions_of(isa).filter(p, dtype, workspace, workspace_bytes, num_threads);
}

}  // namespace ovs
