// attention_mean_cpu, attention_mean_cuda and the sizes of their workspaces.
#include <cstring>

#include "attention/attention.h"
#include "bindings/bind.h"

namespace ovs::bindings {
namespace {

// `blocks` is a table of AttentionBlock as bytes, made in ovs_kernels/_ops/attention.py.
AttentionParams read_params(Fields& f) {
    AttentionParams p;
    const void* const blocks = f.pointer<const void>("blocks");
    p.num_blocks = f.value<int64_t>("num_blocks");
    p.num_queries = f.value<int64_t>("num_queries");
    p.num_keys = f.value<int64_t>("num_keys");
    p.first_key = f.value<int64_t>("first_key");
    p.mean = f.pointer<void>("mean");
    p.mean_dtype = f.enumeration<DType>("mean_dtype");
    p.column_sums = f.pointer<void>("column_sums");
    p.maximum = f.pointer<void>("maximum");
    if (p.num_blocks < 0 || p.num_blocks > kMaxAttentionBlocks)
        throw py::value_error("attention_mean: number of blocks");
    std::memcpy(static_cast<void*>(p.blocks), blocks, static_cast<std::size_t>(p.num_blocks) * sizeof(AttentionBlock));
    return p;
}

}  // namespace

void bind_attention(py::module_& m) {
    bind(m, "attention_mean_cpu", &read_params, &attention_mean_cpu);
    bind(m, "attention_mean_cpu_workspace_bytes", &read_params, &attention_mean_cpu_workspace_bytes);
#ifdef OVS_WITH_CUDA
    bind(m, "attention_mean_cuda", &read_params, &attention_mean_cuda);
    bind(m, "attention_mean_cuda_workspace_bytes", &read_params, &attention_mean_cuda_workspace_bytes);
#endif
}

}  // namespace ovs::bindings
