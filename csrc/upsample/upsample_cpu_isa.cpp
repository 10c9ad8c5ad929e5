// joint_bilateral_upsample on a CPU; compiled once per instruction-set level.
//
// A tile of pixels (upsample_cpu.h) has few taps and many classes. Its weights are computed once, in vectors of pixels,
// and stay in the first-level cache; then kBlockClasses classes at a time are multiplied with them in registers. What
// comes out is written as maps or compared for labels at once, so memory sees maps, guide and result.
#include "upsample/upsample_backward.h"
#include "upsample/upsample_forward.h"

namespace ovs {
namespace OVS_ISA {
namespace {

template <class T>
void run(const UpsampleParams& p, void* workspace, std::size_t bytes, int threads) {
    const UpsampleGrid grid(p, sizeof(T));
    Workspace pieces(workspace, bytes);
    UpsampleBuffers<T> buffers(p, grid, threads, pieces);
    const double factor = exponent_factor(p.sigma_spatial);
    buffers.rows.fill(grid.rows, grid.row_cut, factor);
    buffers.columns.fill(grid.columns, grid.column_cut, factor);
    const T* const guide = static_cast<const T*>(p.guide);
    for (int channel = 0; channel < 3; ++channel) {
        for (int64_t y = 0; y < p.low_height; ++y) {
            const T* const row = guide + (channel * p.height + buffers.rows.centre[y]) * p.width;
            T* const colours = buffers.node_colours + channel * buffers.nodes + y * p.low_width;
            for (int64_t x = 0; x < p.low_width; ++x) colours[x] = row[buffers.columns.centre[x]];
        }
    }
    if (p.backward) {
        Transposed<T>(p, grid, buffers).run(threads);
    } else {
        Upsampler<T>(p, grid, buffers).run(threads);
    }
}

}  // namespace

void joint_bilateral_upsample_image(const UpsampleParams& p, DType dtype, void* workspace, std::size_t bytes,
                                    int threads) {
    if (dtype == DType::kFloat64) {
        run<double>(p, workspace, bytes, threads);
    } else {
        run<float>(p, workspace, bytes, threads);
    }
}

}  // namespace OVS_ISA
}  // namespace ovs
