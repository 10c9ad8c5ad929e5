// doubly_stochastic and markov_velocity, on a CPU and on a device, and the sizes of their workspaces.
#include "bindings/bind.h"
#include "markov/markov.h"

namespace ovs::bindings {
namespace {

ScalingParams read_scaling(Fields& f) {
    ScalingParams p;
    p.attention = f.pointer<const void>("attention");
    p.r = f.pointer<void>("r");
    p.c = f.pointer<void>("c");
    p.column_error = f.pointer<double>("column_error");
    p.num_nodes = f.value<int64_t>("num_nodes");
    p.n_iter = f.value<int>("n_iter");
    return p;
}

MarkovParams read_chain(Fields& f) {
    MarkovParams p;
    p.attention = f.pointer<const void>("attention");
    p.r = f.pointer<const void>("r");
    p.c = f.pointer<const void>("c");
    p.distributions = f.pointer<const void>("distributions");
    p.velocity = f.pointer<void>("velocity");
    p.times = f.pointer<void>("times");
    p.steps = f.pointer<int32_t>("steps");
    p.unreached = f.pointer<int64_t>("unreached");
    p.num_nodes = f.value<int64_t>("num_nodes");
    p.num_classes = f.value<int64_t>("num_classes");
    p.threshold = f.value<double>("threshold");
    p.min_time = f.value<double>("min_time");
    p.max_steps = f.value<int>("max_steps");
    p.rule = f.enumeration<MarkovRule>("rule");
    p.scale = f.enumeration<StateScale>("state_scale");
    p.interpolate = f.value<bool>("interpolate");
    return p;
}

#ifdef OVS_WITH_CUDA
// The CUDA half runs in stages.
MarkovParams read_stage(Fields& f) {
    MarkovParams p = read_chain(f);
    p.stage = f.enumeration<ChainStage>("stage");
    p.first_step = f.value<int>("first_step");
    p.last_step = f.value<int>("last_step");
    p.running = f.pointer<int32_t>("running");
    return p;
}
#endif

}  // namespace

void bind_markov(py::module_& m) {
    bind(m, "doubly_stochastic_cpu", &read_scaling, &doubly_stochastic_cpu);
    bind(m, "doubly_stochastic_cpu_workspace_bytes", &read_scaling, &doubly_stochastic_cpu_workspace_bytes);
    bind(m, "markov_velocity_cpu", &read_chain, &markov_velocity_cpu);
    bind(m, "markov_velocity_cpu_workspace_bytes", &read_chain, &markov_velocity_cpu_workspace_bytes);
#ifdef OVS_WITH_CUDA
    bind(m, "doubly_stochastic_cuda", &read_scaling, &doubly_stochastic_cuda);
    bind(m, "doubly_stochastic_cuda_workspace_bytes", &read_scaling, &doubly_stochastic_cuda_workspace_bytes);
    bind(m, "markov_velocity_cuda", &read_stage, &markov_velocity_cuda);
    bind(m, "markov_velocity_cuda_workspace_bytes", &read_chain, &markov_velocity_cuda_workspace_bytes);
#endif
}

}  // namespace ovs::bindings
