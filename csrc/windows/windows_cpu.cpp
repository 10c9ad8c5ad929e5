// merge_windows on a CPU: the layout, the workspace, and the choice of the instruction-set level.
#include "windows/windows_cpu.h"

#include "common/error.h"
#include "common/pages.h"
#include "windows/windows_layout.h"

namespace ovs {
namespace {

// Numbers of the image-sized array per thread at least: waking a thread costs as much as some ten thousand of them.
constexpr int64_t kNumbersPerThread = 1 << 15;

template <class T>
std::size_t workspace_bytes(const WindowsHeader& header, int num_threads, bool backward) {
    Workspace counter(nullptr, 0);
    WindowsScratch<T>(header, num_threads, backward, counter);
    return counter.used();
}

using MergeFunction = void (*)(const WindowsParams&, DType, void*, std::size_t, int);

MergeFunction merge_function(CpuIsa isa) {
#if defined(OVS_X86_LEVELS)
    switch (isa) {
        case CpuIsa::kV4:
            return v4::merge_windows_level;
        case CpuIsa::kV3:
            return v3::merge_windows_level;
        case CpuIsa::kV2:
            return v2::merge_windows_level;
        default:
            throw InvalidArgument("merge_windows: this build has the levels v2, v3 and v4");
    }
#else
    OVS_REQUIRE(isa == CpuIsa::kBaseline, "merge_windows: this build has the baseline level only");
    return baseline::merge_windows_level;
#endif
}

const WindowsHeader& checked_header(const WindowsParams& p, DType dtype, int num_threads) {
    OVS_REQUIRE(p.layout != nullptr, "merge_windows: no layout");
    OVS_REQUIRE(p.num_classes >= 0 && num_threads >= 1, "merge_windows: negative size");
    const WindowsHeader& header = *static_cast<const WindowsHeader*>(p.layout);
    OVS_REQUIRE(header.real_bytes == static_cast<int32_t>(dtype_bytes(dtype)),
                "merge_windows: a layout for another dtype");
    return header;
}

}  // namespace

std::size_t merge_windows_layout_bytes(const WindowsGeometry& g, DType dtype) {
    check_geometry(g);
    const int64_t num = g.num_windows, runs = std::min(2 * num + 1, g.height);
    int64_t taps = 0, firsts = 0, listed = 0, k = 0;
    for (int64_t s = 0; s < g.num_setups; ++s) {
        const int64_t* grid = g.grids + 3 * s;
        for (int64_t i = 0; i < grid[0]; ++i, ++k) {
            const Box b = box_of(g, k);
            taps += b.y1 - b.y0 + b.x1 - b.x0;
            firsts += grid[1] + grid[2] + 2;
            listed += std::min(runs, b.y1 - b.y0);
        }
    }
    const int64_t real = static_cast<int64_t>(dtype_bytes(dtype));
    Workspace counter(nullptr, 0);
    counter.take<WindowsHeader>("header", 1);
    counter.take<int32_t>("order", num);
    counter.take<int32_t>("setup", num);
    counter.take<WindowsWindow>("windows", num);
    counter.take<int64_t>("patches", num);
    counter.take<WindowsBand>("bands", num);
    counter.take<WindowsRamp>("ramps", 2 * num);
    counter.take<int32_t>("ramp_index", taps);
    counter.take<char>("ramp_weight", taps * real);
    counter.take<int32_t>("ramp_first", firsts);
    counter.take<int32_t>("cuts", 2 * num + 2);
    counter.take<WindowsRun>("runs", runs);
    counter.take<int32_t>("band_lists", listed);
    counter.take<int32_t>("run_of_row", g.height);
    counter.take<char>("inverse_count", runs * g.num_setups * round_up(g.width, kWindowTile) * real);
    return counter.used();
}

void merge_windows_layout(const WindowsGeometry& g, DType dtype, void* layout, std::size_t layout_bytes) {
    check_geometry(g);
    OVS_REQUIRE(layout != nullptr, "merge_windows: no layout buffer");
    if (dtype == DType::kFloat64) {
        LayoutBuilder<double>(g, layout, layout_bytes).build();
    } else {
        LayoutBuilder<float>(g, layout, layout_bytes).build();
    }
}

std::size_t merge_windows_cpu_workspace_bytes(const WindowsParams& p, DType dtype, int num_threads) {
    const WindowsHeader& header = checked_header(p, dtype, num_threads);
    return dtype == DType::kFloat64 ? workspace_bytes<double>(header, num_threads, p.backward)
                                    : workspace_bytes<float>(header, num_threads, p.backward);
}

void merge_windows_cpu(const WindowsParams& p, DType dtype, void* workspace, std::size_t workspace_bytes,
                       int num_threads, CpuIsa isa) {
    const WindowsHeader& header = checked_header(p, dtype, num_threads);
    if (p.num_classes == 0 || header.num_windows == 0) return;
    const MergeFunction run = merge_function(isa);
    const int64_t numbers = p.num_classes * header.height * header.width;
    if (!p.backward) prefer_large_pages(p.merged, numbers * header.real_bytes);
    const int64_t threads = std::min<int64_t>(num_threads, ceil_div(numbers, kNumbersPerThread));
    run(p, dtype, workspace, workspace_bytes, static_cast<int>(threads));
}

}  // namespace ovs
