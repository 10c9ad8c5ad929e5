// doubly_stochastic and markov_velocity on a CPU: workspaces, and the choice of the instruction-set level.
#include "markov/markov_cpu.h"

#include "common/error.h"

namespace ovs {
namespace {

template <class Buffers, class P>
std::size_t bytes_needed(const P& p) {
    Workspace counter(nullptr, 0);
    Buffers(p, counter);
    return counter.used();
}

struct Level {
    bool (*scale)(const ScalingParams&, DType, void*, std::size_t, int);
    void (*run)(const MarkovParams&, DType, void*, std::size_t, int);
};

Level level_of(CpuIsa isa) {
#if defined(OVS_X86_LEVELS)
    switch (isa) {
        case CpuIsa::kV4:
            return {v4::doubly_stochastic_run, v4::markov_velocity_run};
        case CpuIsa::kV3:
            return {v3::doubly_stochastic_run, v3::markov_velocity_run};
        case CpuIsa::kV2:
            return {v2::doubly_stochastic_run, v2::markov_velocity_run};
        default:
            throw InvalidArgument("markov: this build has the levels v2, v3 and v4");
    }
#else
    OVS_REQUIRE(isa == CpuIsa::kBaseline, "markov: this build has the baseline level only");
    return {baseline::doubly_stochastic_run, baseline::markov_velocity_run};
#endif
}

}  // namespace

std::size_t doubly_stochastic_cpu_workspace_bytes(const ScalingParams& p, DType dtype) {
    check_params(p);
    return dtype == DType::kFloat64 ? bytes_needed<ScalingBuffers<double>>(p) : bytes_needed<ScalingBuffers<float>>(p);
}

bool doubly_stochastic_cpu(const ScalingParams& p, DType dtype, void* workspace, std::size_t workspace_bytes,
                           int num_threads, CpuIsa isa) {
    check_params(p);
    return level_of(isa).scale(p, dtype, workspace, workspace_bytes, num_threads);
}

std::size_t markov_velocity_cpu_workspace_bytes(const MarkovParams& p, DType dtype) {
    check_params(p);
    return dtype == DType::kFloat64 ? bytes_needed<ChainBuffers<double>>(p) : bytes_needed<ChainBuffers<float>>(p);
}

void markov_velocity_cpu(const MarkovParams& p, DType dtype, void* workspace, std::size_t workspace_bytes,
                         int num_threads, CpuIsa isa) {
    check_params(p);
    level_of(isa).run(p, dtype, workspace, workspace_bytes, num_threads);
}

}  // namespace ovs
