// merge_windows_cuda against the definition, in one program for compute-sanitizer and for the emulator's sanitizers.
//
//   windows_cases [--small]     --small: only the cases that are quick under ThreadSanitizer
//
// One line per case, `ok` or `FAILED`; exit status 1 when one failed. What is expected is worked out here, pixel by
// pixel and window by window in float64. Layout and workspace have exactly the sizes that were asked for.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "cases.h"
#include "windows/windows.h"

namespace windows_cases {
namespace {

using namespace cases;
using ovs::DType;
using ovs::WindowsGeometry;
using ovs::WindowsParams;

struct Box {
    int64_t y0, x0, y1, x1;
};

struct Setup {
    int64_t rows, columns;  // patches of a window
    std::vector<Box> boxes;
};

struct Case {
    std::string name;
    int64_t height = 0, width = 0, num_classes = 0;
    std::vector<Setup> setups;
    bool quick = false;

    int64_t num_scores() const {
        int64_t sum = 0;
        for (const Setup& s : setups) sum += static_cast<int64_t>(s.boxes.size()) * num_classes * s.rows * s.columns;
        return sum;
    }
    int64_t num_merged() const { return num_classes * height * width; }
};

// Windows at multiples of the stride, the last ones shifted back.
std::vector<Box> grid(int64_t height, int64_t width, int64_t window_y, int64_t window_x, int64_t step_y,
                      int64_t step_x) {
    std::vector<Box> boxes;
    for (int64_t y = 0;; y += step_y) {
        const int64_t y1 = std::min(y + window_y, height), y0 = std::max<int64_t>(y1 - window_y, 0);
        for (int64_t x = 0;; x += step_x) {
            const int64_t x1 = std::min(x + window_x, width), x0 = std::max<int64_t>(x1 - window_x, 0);
            boxes.push_back({y0, x0, y1, x1});
            if (x1 == width) break;
        }
        if (y1 == height) return boxes;
    }
}

// Boxes of any size and place, and the whole image.
std::vector<Box> scatter(int64_t height, int64_t width, int count, uint64_t seed) {
    Random random(seed);
    std::vector<Box> boxes = {{0, 0, height, width}};
    while (static_cast<int>(boxes.size()) < count) {
        const int64_t y0 = random.between(0, height), x0 = random.between(0, width);
        boxes.push_back({y0, x0, random.between(y0 + 1, height + 1), random.between(x0 + 1, width + 1)});
    }
    return boxes;
}

// The definition

struct Taps {
    int64_t low, high;
    double weight;
};

Taps taps(int64_t o, int64_t n_in, int64_t n_out) {
    const double source =
        std::max((static_cast<double>(o) + 0.5) * static_cast<double>(n_in) / static_cast<double>(n_out) - 0.5, 0.0);
    const int64_t low = std::min(static_cast<int64_t>(source), n_in - 1);
    return {low, std::min(low + 1, n_in - 1), source - static_cast<double>(low)};
}

// Calls use(score, result, weight) for every patch score that has a share in a number of the result.
void for_each_share(const Case& c, const std::function<void(int64_t, int64_t, double)>& use) {
    int64_t base = 0;
    for (const Setup& s : c.setups) {
        std::vector<int> count(static_cast<std::size_t>(c.height * c.width), 0);
        for (const Box& b : s.boxes) {
            for (int64_t y = b.y0; y < b.y1; ++y) {
                for (int64_t x = b.x0; x < b.x1; ++x) count[static_cast<std::size_t>(y * c.width + x)] += 1;
            }
        }
        for (const Box& b : s.boxes) {
            for (int64_t k = 0; k < c.num_classes; ++k, base += s.rows * s.columns) {
                for (int64_t y = b.y0; y < b.y1; ++y) {
                    const Taps v = taps(y - b.y0, s.rows, b.y1 - b.y0);
                    for (int64_t x = b.x0; x < b.x1; ++x) {
                        const Taps h = taps(x - b.x0, s.columns, b.x1 - b.x0);
                        const double share = 1.0 / (count[static_cast<std::size_t>(y * c.width + x)] *
                                                    static_cast<double>(c.setups.size()));
                        const int64_t pixel = (k * c.height + y) * c.width + x;
                        use(base + v.low * s.columns + h.low, pixel, (1 - v.weight) * (1 - h.weight) * share);
                        use(base + v.low * s.columns + h.high, pixel, (1 - v.weight) * h.weight * share);
                        use(base + v.high * s.columns + h.low, pixel, v.weight * (1 - h.weight) * share);
                        use(base + v.high * s.columns + h.high, pixel, v.weight * h.weight * share);
                    }
                }
            }
        }
    }
}

// The GPU

// The boxes of a case as the core takes them, and the layout made of them.
class Layout {
public:
    Layout(const Case& c, DType dtype) {
        for (const Setup& s : c.setups) {
            for (const int64_t extent : {static_cast<int64_t>(s.boxes.size()), s.rows, s.columns}) {
                grids_.push_back(extent);
            }
            for (const Box& b : s.boxes) {
                for (const int64_t edge : {b.y0, b.x0, b.y1, b.x1}) boxes_.push_back(edge);
            }
        }
        geometry_.boxes = boxes_.data();
        geometry_.grids = grids_.data();
        geometry_.num_windows = static_cast<int64_t>(boxes_.size() / 4);
        geometry_.num_setups = static_cast<int64_t>(c.setups.size());
        geometry_.height = c.height;
        geometry_.width = c.width;
        bytes_.resize(ovs::merge_windows_layout_bytes(geometry_, dtype));
        ovs::merge_windows_layout(geometry_, dtype, bytes_.data(), bytes_.size());
    }
    const WindowsGeometry& geometry() const { return geometry_; }
    const std::vector<unsigned char>& bytes() const { return bytes_; }

private:
    std::vector<int64_t> boxes_, grids_;
    WindowsGeometry geometry_;
    std::vector<unsigned char> bytes_;
};

template <class T>
std::vector<T> run_cuda(const Case& c, const Layout& layout, bool backward, const std::vector<T>& input) {
    constexpr DType kDType = sizeof(T) == 8 ? DType::kFloat64 : DType::kFloat32;
    const DeviceArray<T> in(input);
    DeviceArray<T> out(static_cast<std::size_t>(backward ? c.num_scores() : c.num_merged()));
    const DeviceArray<unsigned char> device_layout(layout.bytes());
    WindowsParams p;
    p.scores = backward ? out.data() : in.data();
    p.merged = backward ? in.data() : out.data();
    p.layout = layout.bytes().data();
    p.device_layout = device_layout.data();
    p.num_classes = c.num_classes;
    p.backward = backward;
    const std::size_t bytes = ovs::merge_windows_cuda_workspace_bytes(p, kDType);
    const DeviceArray<unsigned char> workspace(bytes);
    OVS_CUDA(cudaDeviceSynchronize());
    const Stream stream;
    ovs::merge_windows_cuda(p, kDType, workspace.data(), bytes, 0, stream.get());
    OVS_CUDA(cudaStreamSynchronize(stream.get()));
    return out.to_host();
}

template <class T>
double largest_error(const std::vector<T>& got, const std::vector<double>& want, double tolerance, const char* what) {
    double error = 0.0, scale = 1e-300;
    for (std::size_t i = 0; i < want.size(); ++i) {
        scale = std::max(scale, std::fabs(want[i]));
        const double difference = std::fabs(static_cast<double>(got[i]) - want[i]);
        error = std::isfinite(difference) ? std::max(error, difference) : HUGE_VAL;
    }
    require(error <= tolerance * scale, std::string(what) + ": relative error " + text(error / scale));
    return error / scale;
}

template <class T>
std::string check_dtype(const Case& c, double tolerance) {
    Random random(5);
    const auto numbers = [&](int64_t count) {
        std::vector<T> values(static_cast<std::size_t>(count));
        for (T& value : values) value = static_cast<T>(2.0 * random() - 1.0);
        return values;
    };
    const std::vector<T> scores = numbers(c.num_scores()), v_merged = numbers(c.num_merged());
    std::vector<double> merged(v_merged.size(), 0.0), v_scores(scores.size(), 0.0);
    for_each_share(c, [&](int64_t score, int64_t pixel, double weight) {
        const auto s = static_cast<std::size_t>(score), i = static_cast<std::size_t>(pixel);
        merged[i] += weight * static_cast<double>(scores[s]);
        v_scores[s] += weight * static_cast<double>(v_merged[i]);
    });
    const Layout layout(c, sizeof(T) == 8 ? DType::kFloat64 : DType::kFloat32);
    const double forward = largest_error(run_cuda(c, layout, false, scores), merged, tolerance, "merged");
    const double backward = largest_error(run_cuda(c, layout, true, v_merged), v_scores, tolerance, "gradient");
    return text(forward) + ", gradient " + text(backward);
}

std::string check(const Case& c) {
    return "relative error " + check_dtype<float>(c, 3e-6) + "; float64 " + check_dtype<double>(c, 1e-13);
}

// The cases

std::vector<Case> all_cases() {
    std::vector<Case> list;
    const auto add = [&](const char* name, int64_t height, int64_t width, int64_t classes, std::vector<Setup> setups,
                         bool quick = false) {
        list.push_back({name, height, width, classes, std::move(setups), quick});
    };
    add("one pixel", 1, 1, 1, {{1, 1, {{0, 0, 1, 1}}}}, true);
    add("one pixel of many patches", 1, 1, 3, {{5, 4, {{0, 0, 1, 1}}}}, true);
    add("one patch per window", 9, 11, 3, {{1, 1, grid(9, 11, 4, 5, 2, 3)}}, true);
    add("single window", 19, 37, 5, {{4, 5, {{0, 0, 19, 37}}}});
    add("one row", 1, 150, 2, {{1, 3, grid(1, 150, 1, 40, 1, 17)}});
    add("one column", 90, 1, 2, {{4, 1, grid(90, 1, 20, 1, 9, 1)}});
    add("half overlap", 32, 64, 4, {{2, 2, grid(32, 64, 16, 16, 8, 8)}});
    add("shifted last windows", 29, 71, 7, {{3, 4, grid(29, 71, 16, 16, 8, 8)}}, true);
    add("no overlap", 24, 72, 2, {{3, 2, grid(24, 72, 8, 8, 8, 8)}});
    add("more patches than pixels", 6, 9, 2, {{13, 17, grid(6, 9, 5, 7, 1, 2)}});
    add("as many patches as pixels", 8, 66, 1, {{8, 10, grid(8, 66, 8, 10, 8, 5)}});
    add("width 63", 6, 63, 2, {{2, 4, grid(6, 63, 6, 32, 6, 16)}});
    add("width 64", 6, 64, 2, {{2, 4, grid(6, 64, 6, 32, 6, 16)}});
    add("width 65", 6, 65, 2, {{2, 4, grid(6, 65, 6, 32, 6, 16)}});
    add("width 300", 10, 300, 9, {{3, 8, grid(10, 300, 6, 100, 4, 60)}});
    add("5 classes: a full group and a rest", 12, 20, 5, {{3, 3, grid(12, 20, 8, 8, 4, 4)}}, true);
    add("boxes with a gap in their band", 8, 200, 2, {{2, 2, {{0, 180, 8, 200}, {0, 0, 8, 10}, {0, 5, 8, 190}}}});
    add("boxes of any size", 33, 140, 3, {{4, 5, scatter(33, 140, 12, 1)}});
    add("boxes of any size, again", 50, 61, 2, {{3, 2, scatter(50, 61, 17, 2)}});
    add("many windows", 16, 60, 1, {{1, 2, grid(16, 60, 3, 4, 2, 2)}});
    add("two set-ups", 20, 70, 3, {{2, 2, grid(20, 70, 8, 16, 4, 8)}, {3, 5, grid(20, 70, 16, 32, 8, 16)}}, true);
    add("three set-ups", 21, 45, 2,
        {{2, 3, grid(21, 45, 9, 9, 5, 5)}, {6, 2, scatter(21, 45, 7, 3)}, {1, 1, {{0, 0, 21, 45}}}});
    return list;
}

// Sizes that would lead out of the buffers are refused, and nothing to do touches nothing.
std::string check_limits() {
    const Case c = {"", 8, 12, 2, {{2, 3, {{0, 0, 8, 8}, {0, 4, 8, 12}}}}, false};
    const Layout layout(c, DType::kFloat32);
    const auto refuse_geometry = [&](const std::string& name, const std::function<void(WindowsGeometry&)>& change) {
        WindowsGeometry g = layout.geometry();
        change(g);
        expect_refusal(name, [&] { (void)ovs::merge_windows_layout_bytes(g, DType::kFloat32); });
    };
    const std::vector<int64_t> outside = {0, 0, 8, 8, 0, 4, 8, 13}, inverted = {0, 0, 8, 8, 8, 4, 0, 12},
                               empty = {0, 0, 8, 8, 0, 4, 8, 4}, negative = {-1, 0, 8, 8, 0, 4, 8, 12},
                               no_patches = {2, 0, 3}, other_count = {3, 2, 3};
    refuse_geometry("a box outside of the image", [&](WindowsGeometry& g) { g.boxes = outside.data(); });
    refuse_geometry("an inverted box", [&](WindowsGeometry& g) { g.boxes = inverted.data(); });
    refuse_geometry("an empty box", [&](WindowsGeometry& g) { g.boxes = empty.data(); });
    refuse_geometry("a negative edge", [&](WindowsGeometry& g) { g.boxes = negative.data(); });
    refuse_geometry("a grid without patches", [&](WindowsGeometry& g) { g.grids = no_patches.data(); });
    refuse_geometry("grids of more windows", [&](WindowsGeometry& g) { g.grids = other_count.data(); });
    refuse_geometry("a negative height", [&](WindowsGeometry& g) { g.height = -1; });
    std::vector<unsigned char> small(layout.bytes().size() / 2);
    expect_refusal("a layout buffer that is too small",
                   [&] { ovs::merge_windows_layout(layout.geometry(), DType::kFloat32, small.data(), 256); });
    WindowsParams p;
    p.layout = layout.bytes().data();
    p.num_classes = 2;
    expect_refusal("no layout on the device",
                   [&] { ovs::merge_windows_cuda(p, DType::kFloat32, nullptr, 1 << 20, 0, nullptr); });
    expect_refusal("a layout for another dtype",
                   [&] { (void)ovs::merge_windows_cuda_workspace_bytes(p, DType::kFloat64); });
    const DeviceArray<unsigned char> device_layout(layout.bytes());
    p.device_layout = device_layout.data();
    const std::size_t bytes = ovs::merge_windows_cuda_workspace_bytes(p, DType::kFloat32);
    const DeviceArray<unsigned char> workspace(bytes);
    expect_refusal("a workspace that is too small",
                   [&] { ovs::merge_windows_cuda(p, DType::kFloat32, workspace.data(), bytes - 1, 0, nullptr); });
    p.num_classes = 0;
    ovs::merge_windows_cuda(p, DType::kFloat32, nullptr, 0, 0, nullptr);
    return "refusals";
}

}  // namespace

void run_all(Runner& run) {
    for (const Case& c : all_cases()) run(c.name, c.quick, [&c] { return check(c); });
    run("limits", true, check_limits);
}

}  // namespace windows_cases

int main(int argc, char** argv) { return cases::run_program("windows_cases", argc, argv, windows_cases::run_all); }
