// template_entropy and fuse_experts on a CPU; compiled once per instruction-set level.
#include "templates/templates_entropy.h"
#include "templates/templates_fixed.h"
#include "templates/templates_fuse.h"

namespace ovs {
namespace OVS_ISA {
namespace {

template <class T>
void run_entropy(const TemplateEntropyParams& p, void* workspace, std::size_t bytes, int threads) {
    EntropyCounter<T> counter(p, workspace, bytes, threads);
    p.out_height > 0 ? counter.pixels() : counter.patches();
}

template <class T>
void run_fuse(const FuseExpertsParams& p, void* workspace, std::size_t bytes, int threads) {
    Fuser<T>(p, workspace, bytes, threads).run();
}

}  // namespace

void template_entropy_level(const TemplateEntropyParams& p, DType dtype, void* workspace, std::size_t bytes,
                            int threads) {
    dtype == DType::kFloat64 ? run_entropy<double>(p, workspace, bytes, threads)
                             : run_entropy<float>(p, workspace, bytes, threads);
}

void template_fixed_level(const TemplateFixedParams& p, DType, void* workspace, std::size_t bytes, int threads) {
    if constexpr (kHasIntegerProducts) {
        FixedCounter(p, workspace, bytes, threads).run();
    } else {
        std::fill_n(p.done, p.num_templates, uint8_t(0));
    }
}

void fuse_experts_level(const FuseExpertsParams& p, DType dtype, void* workspace, std::size_t bytes, int threads) {
    dtype == DType::kFloat64 ? run_fuse<double>(p, workspace, bytes, threads)
                             : run_fuse<float>(p, workspace, bytes, threads);
}

}  // namespace OVS_ISA
}  // namespace ovs
