// lp_pixels_cuda against what the equations say, in one program for compute-sanitizer and for the emulator's
// sanitizers.
//
//   pixels_cases [--small]     --small: only the cases that are quick under ThreadSanitizer
//
// One line per case, `ok` or `FAILED`; exit status 1 when one failed. Tiny images are held to the dense float64 solve
// of pixels_dense.h, larger ones to lp_pixels_cpu in float64. The workspace has exactly the size that was asked for.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "cases.h"
#include "pixels/pixels.h"
#include "pixels_dense.h"

namespace pixels_cases {
namespace {

constexpr double kTolerance = 5e-5;      // float32 kernels; relative to the largest value of a plane
constexpr double kResidualFloor = 5e-6;  // |x| / |y| is up to 20 here, and x is rounded to float32
constexpr double kLabResidualFloor =
    2e-4;  // of the float64 graph: colours rounded to float32 change its weights by 1e-5

// For larger images: the CPU half of the core, in float64, class by class.
Expected expect_cpu(const Case& c, const Inputs& in) {
    const std::vector<double> scores(in.scores.begin(), in.scores.end()), guide(in.guide.begin(), in.guide.end());
    Expected e;
    e.scores.resize(scores.size());
    e.iterations.resize(c.batch * c.num_classes);
    e.residuals.resize(c.batch * c.num_classes);
    PixelsParams p = params_of(c);
    p.scores = scores.data();
    p.guide = guide.data();
    p.num_groups = c.num_classes;
    p.out = e.scores.data();
    p.iterations = e.iterations.data();
    p.residuals = e.residuals.data();
    std::vector<unsigned char> memory(ovs::lp_pixels_cpu_workspace_bytes(p, ovs::DType::kFloat64) + 256);
    void* workspace = memory.data();
    std::size_t bytes = memory.size();
    std::align(256, bytes - 256, workspace, bytes);
#ifdef OVS_X86_LEVELS
    const ovs::CpuIsa isa = ovs::CpuIsa::kV2;
#else
    const ovs::CpuIsa isa = ovs::CpuIsa::kBaseline;
#endif
    ovs::lp_pixels_cpu(p, ovs::DType::kFloat64, workspace, bytes, 1, isa);
    return e;
}

// The GPU

struct Result {
    std::vector<float> scores;          // [B, G, H, W] or empty
    std::vector<unsigned char> labels;  // [B, H, W] of label_bytes each, or empty
    std::vector<int32_t> iterations;    // [B, C] or empty
    std::vector<double> residuals;      // [B, C] or empty

    bool operator==(const Result& other) const {
        const auto same = [](const auto& a, const auto& b) {
            return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(a[0])) == 0);
        };
        return same(scores, other.scores) && same(labels, other.labels) && same(iterations, other.iterations) &&
               same(residuals, other.residuals);
    }
};

// `dirty_workspace`: the byte to fill it with; -1: as cudaMalloc gave it, so that initcheck sees what is read
// unwritten.
Result run_cuda(const Case& c, const Inputs& in, int dirty_workspace = -1) {
    const int64_t n = c.pixels();
    const DeviceArray<float> scores(in.scores), guide(in.guide);
    const DeviceArray<int32_t> groups(c.groups);
    DeviceArray<float> out(c.label_bytes == 0 ? c.batch * c.channels() * n : 0);
    DeviceArray<unsigned char> labels(c.batch * n * c.label_bytes);
    DeviceArray<int32_t> iterations(c.report ? c.batch * c.num_classes : 0);
    DeviceArray<double> residuals(c.report ? c.batch * c.num_classes : 0);
    out.fill_bytes(kUntouched);
    labels.fill_bytes(kUntouched);
    iterations.fill_bytes(kUntouched);
    residuals.fill_bytes(kUntouched);

    PixelsParams p = params_of(c);
    p.scores = scores.data();
    p.guide = guide.data();
    p.groups = c.groups.empty() ? nullptr : groups.data();
    p.out = out.data();
    p.labels = labels.data();
    p.iterations = iterations.data();
    p.residuals = residuals.data();
    const std::size_t bytes = ovs::lp_pixels_cuda_workspace_bytes(p);
    DeviceArray<unsigned char> workspace(bytes);
    if (dirty_workspace >= 0) workspace.fill_bytes(dirty_workspace);

    OVS_CUDA(cudaDeviceSynchronize());
    const Stream stream(c.own_stream);
    ovs::lp_pixels_cuda(p, workspace.data(), bytes, 0, stream.get());
    OVS_CUDA(cudaStreamSynchronize(stream.get()));
    return {out.to_host(), labels.to_host(), iterations.to_host(), residuals.to_host()};
}

// Comparisons

// One image's largest score of each group, [G, N]: NaN wins, an empty group has -inf.
std::vector<double> merge_groups(const Case& c, const double* scores, bool nan_wins) {
    const int64_t n = c.pixels();
    std::vector<double> merged(c.channels() * n, -kInfinity);
    for (int64_t i = 0; i < c.num_classes * n; ++i) {
        double& m = merged[c.group_of(i / n) * n + i % n];
        const double value = scores[i];
        if (std::isnan(value) ? nan_wins : value > m) m = value;  // nothing is larger than a NaN
    }
    return merged;
}

// The largest error of the planes [count, N], each relative to its largest value.
double compare_planes(const float* got, const std::vector<double>& want, int64_t n) {
    double worst = 0.0;
    for (std::size_t plane = 0; plane < want.size() / n; ++plane) {
        double largest = 0.0, error = 0.0;
        for (std::size_t i = plane * n; i < (plane + 1) * n; ++i) {
            const double g = static_cast<double>(got[i]), w = want[i];
            if (std::isfinite(w)) {
                largest = std::max(largest, std::fabs(w));
                error = std::max(error, std::isfinite(g) ? std::fabs(g - w) : kInfinity);
            } else if (std::isnan(w) ? !std::isnan(g) : g != w) {
                error = kInfinity;
            }
        }
        if (error > 0.0) worst = std::max(worst, error / std::max(largest, 1e-300));
        require(worst <= kTolerance, "channel " + std::to_string(plane) + ": relative error " + text(worst));
    }
    return worst;
}

int64_t label_at(const Case& c, const std::vector<unsigned char>& labels, int64_t i) {
    if (c.label_bytes == 1) return labels[i];
    int32_t label = 0;
    std::memcpy(&label, labels.data() + i * 4, 4);
    return label;
}

// A label's score is the best but for rounding, and of exactly equal scores the smallest group has won.
void check_labels(const Case& c, const std::vector<unsigned char>& labels, const Expected& e) {
    const int64_t n = c.pixels();
    for (int64_t b = 0; b < c.batch; ++b) {
        const std::vector<double> values = merge_groups(c, e.scores.data() + b * c.num_classes * n, false);
        for (int64_t i = 0; i < n; ++i) {
            const int64_t label = label_at(c, labels, b * n + i);
            const std::string where = "image " + std::to_string(b) + ", pixel " + std::to_string(i);
            require(label >= 0 && label < c.channels(), where + ": no label: " + std::to_string(label));
            double best = -kInfinity;
            for (int64_t g = 0; g < c.channels(); ++g) best = std::max(best, values[g * n + i]);
            const double value = values[label * n + i];
            require(value == best || best - value <= kTolerance * std::fabs(best), where + ": label " + text(label));
            for (int64_t g = 0; g < label; ++g) require(values[g * n + i] != value, where + ": a tie was lost");
        }
    }
}

void check_report(const Case& c, const Result& got, const Expected& e) {
    for (std::size_t k = 0; k < e.iterations.size(); ++k) {
        const std::string where = "class " + std::to_string(k) + ": ";
        require(got.iterations[k] == e.iterations[k], where + "expected " + std::to_string(e.iterations[k]) +
                                                          " iterations, got " + std::to_string(got.iterations[k]));
        const double g = got.residuals[k], w = e.residuals[k];
        const std::string expected = where + "expected the residual " + text(w) + ", got " + text(g);
        if (std::isnan(w) || e.iterations[k] == 0) {
            require(std::isnan(w) ? std::isnan(g) : g == w, expected);
        } else if (c.mode == SolveMode::kOfficial) {
            require(std::fabs(g - w) <= 1e-3 * w + kResidualFloor, expected);
        } else {
            const double bound = chebyshev_bound(c.alpha, e.iterations[k]);
            require(g <= bound * 1.001 + kResidualFloor, where + "residual " + text(g) + " above " + text(bound));
        }
    }
}

// Exact: the reported residual is that of the result, which is all there is to compare before it has converged.
void check_true_residuals(const Case& c, const Inputs& in, const Result& got, const std::vector<Matrix>& matrices) {
    const int64_t n = c.pixels();
    for (int64_t k = 0; k < c.batch * c.num_classes; ++k) {
        if (got.iterations[k] == 0) continue;
        const std::vector<double> x(got.scores.begin() + k * n, got.scores.begin() + (k + 1) * n);
        std::vector<double> gap = multiply(matrices[k / c.num_classes], x), y(n);
        for (int64_t i = 0; i < n; ++i) {
            y[i] = static_cast<double>(in.scores[k * n + i]);
            gap[i] -= y[i];
        }
        const double residual = std::sqrt(dot(gap, gap) / dot(y, y));
        const double floor = c.lab ? kLabResidualFloor : kResidualFloor;
        require(std::fabs(residual - got.residuals[k]) <= 1e-3 * residual + floor,
                "class " + std::to_string(k) + ": residual " + text(got.residuals[k]) + ", measured " + text(residual));
    }
}

// Runs a case; returns a remark for its line.
std::string check(const Case& c) {
    const int64_t n = c.pixels();
    const Inputs in = make_inputs(c);
    std::vector<Matrix> matrices;
    const Expected e = c.dense ? expect_dense(c, in, &matrices) : expect_cpu(c, in);
    const Result got = run_cuda(c, in);
    if (c.twice) require(got == run_cuda(c, in, 0), "a second run, over other bytes in the workspace, has other bits");
    if (c.report) check_report(c, got, e);
    if (c.label_bytes > 0) {
        check_labels(c, got.labels, e);
        return "labels";
    }
    const bool solved = c.mode == SolveMode::kOfficial || chebyshev_bound(c.alpha, exact_steps(c)) <= 1e-6;
    if (c.mode == SolveMode::kExact && c.report && c.dense && c.groups.empty()) {
        check_true_residuals(c, in, got, matrices);
    }
    if (!solved) return "residuals";
    double worst = 0.0;
    for (int64_t b = 0; b < c.batch; ++b) {
        const std::vector<double> want = merge_groups(c, e.scores.data() + b * c.num_classes * n, true);
        worst = std::max(worst, compare_planes(got.scores.data() + b * c.channels() * n, want, n));
    }
    return "relative error " + text(worst);
}

// The cases

// Sizes that would lead out of the buffers are refused, and a zero extent touches nothing.
std::string check_limits() {
    Case c;
    const Inputs in = make_inputs(c);
    const DeviceArray<float> scores(in.scores), guide(in.guide);
    DeviceArray<float> out(in.scores.size());
    out.fill_bytes(kUntouched);
    PixelsParams p = params_of(c);
    p.scores = scores.data();
    p.guide = guide.data();
    p.out = out.data();
    const std::size_t bytes = ovs::lp_pixels_cuda_workspace_bytes(p);
    const DeviceArray<unsigned char> workspace(bytes);
    const auto run = [&](const PixelsParams& params, std::size_t size) {
        return [&workspace, params, size] { ovs::lp_pixels_cuda(params, workspace.data(), size, 0, nullptr); };
    };
    expect_refusal("a workspace that is too small", run(p, bytes - 1));
    expect_refusal("window 33", run(changed(p, &PixelsParams::window, 33), bytes));
    expect_refusal("window 4", run(changed(p, &PixelsParams::window, 4), bytes));
    expect_refusal("class_chunk 12", run(changed(p, &PixelsParams::class_chunk, 12), bytes));
    expect_refusal("class_chunk 40", run(changed(p, &PixelsParams::class_chunk, 40), bytes));
    expect_refusal("label_bytes 2", run(changed(p, &PixelsParams::label_bytes, 2), bytes));
    expect_refusal("Lab of 4 channels", run(changed(p, &PixelsParams::num_features, 4), bytes));
    for (const auto extent :
         {&PixelsParams::batch, &PixelsParams::num_classes, &PixelsParams::height, &PixelsParams::width}) {
        run(changed(p, extent, 0), 0)();
        expect_refusal("a negative size", run(changed(p, extent, -1), bytes));
    }
    expect_untouched(out);
    return "refusals";
}

using Cases = List<Case>;

void size(Case& c, int64_t height, int64_t width, int64_t classes) {
    c.height = height;
    c.width = width;
    c.num_classes = classes;
}

void exact(Case& c) {
    c.mode = SolveMode::kExact;
    c.max_iter = 1000;
}

void add_sizes(Cases& cases) {
    cases.add("official", [](Case& c) { c.twice = c.quick = true; });
    cases.add("exact", [](Case& c) { exact(c), c.twice = true; });
    cases.add("exact, quick", [](Case& c) { exact(c), c.num_classes = 3, c.tol = 1e-2, c.quick = true; });
    cases.add("window 1", [](Case& c) { c.window = 1; });
    cases.add("window 3, whole tiles", [](Case& c) { size(c, 8, 64, 8), c.window = 3; });
    cases.add("window 13", [](Case& c) { size(c, 19, 21, 9), c.window = 13; });
    cases.add("window 31, blocks of 8 classes", [](Case& c) { size(c, 11, 33, 17), c.window = 31; });
    cases.add("window larger than the image", [](Case& c) { size(c, 4, 5, 3), c.window = 13, c.quick = true; });
    cases.add("window 31, image 6 x 9, exact", [](Case& c) { size(c, 6, 9, 4), c.window = 31, exact(c); });
    cases.add("1 x 1", [](Case& c) { size(c, 1, 1, 3), c.quick = true; });
    cases.add("1 x 1, exact", [](Case& c) { size(c, 1, 1, 3), exact(c); });
    cases.add("one row", [](Case& c) { size(c, 1, 150, 2), c.window = 7; });
    cases.add("one column, exact", [](Case& c) { size(c, 150, 1, 2), c.window = 7, exact(c); });
    cases.add("batch of 2", [](Case& c) { c.batch = 2, c.own_stream = false; });
    cases.add("batch of 2, exact", [](Case& c) { c.batch = 2, size(c, 9, 13, 3), exact(c); });
    cases.add("3 chunks of 8", [](Case& c) { size(c, 9, 20, 19), c.class_chunk = 8, c.quick = true; });
    cases.add("chunks of 16 and 8, exact", [](Case& c) { size(c, 9, 20, 19), c.class_chunk = 16, exact(c); });
    cases.add("chunk of 32", [](Case& c) { size(c, 9, 20, 30), c.class_chunk = 32; });
    cases.add("chunk of 32, window 31", [](Case& c) { size(c, 5, 8, 32), c.class_chunk = 32, c.window = 31; });
    cases.add("1 feature", [](Case& c) { c.lab = false, c.num_features = 1; });
    cases.add("5 features", [](Case& c) { c.lab = false, c.num_features = 5, c.tau = 0.03; });
    cases.add("5 features, exact", [](Case& c) { size(c, 7, 9, 2), c.lab = false, c.num_features = 5, exact(c); });
    cases.add("against the CPU", [](Case& c) { size(c, 37, 70, 17), c.window = 13, c.dense = false; });
    cases.add("against the CPU, exact", [](Case& c) { size(c, 37, 70, 4), c.window = 7, exact(c), c.dense = false; });
}

void add_outputs(Cases& cases) {
    cases.add("labels", [](Case& c) { c.label_bytes = 1, c.twice = true; });
    cases.add("labels, exact, int32, batch of 2", [](Case& c) {
        size(c, 9, 13, 6), exact(c);
        c.label_bytes = 4, c.batch = 2;
    });
    cases.add("labels of 300 groups", [](Case& c) {
        size(c, 3, 5, 260);
        c.window = 3, c.max_iter = 2, c.class_chunk = 32;
        for (int i = 0; i < 260; ++i) c.groups.push_back(299 - i);
        c.num_groups = 300, c.label_bytes = 4;
    });
    cases.add("labels, groups, chunks, ties", [](Case& c) {
        size(c, 9, 13, 12);
        c.class_chunk = 8, c.label_bytes = 1, c.groups = {5, 3, 1, 0, 2, 4, 4, 3, 2, 1, 0, 5}, c.num_groups = 6;
        c.change = [](Inputs& in) {
            for (int k = 1; k < 12; k += 2) in.copy_class(k - 1, k);
            in.copy_class(0, 9);  // groups 5 and 3 in the first chunk, group 1 in the second
        };
        c.quick = true;
    });
    cases.add("groups, one of them empty",
              [](Case& c) { c.batch = 2, c.groups = {3, 0, 1, 0, 3}, c.num_groups = 4, c.twice = true; });
    cases.add("groups, chunks, exact", [](Case& c) {
        size(c, 9, 13, 19), exact(c);
        for (int i = 0; i < 19; ++i) c.groups.push_back(i % 3);
        c.class_chunk = 8, c.num_groups = 3;
    });
    cases.add("no report", [](Case& c) { c.report = false; });
    cases.add("no report, exact", [](Case& c) { size(c, 9, 13, 3), exact(c), c.report = false; });
    cases.add("early stop", [](Case& c) { c.tol = 0.02; });
    cases.add("1 step", [](Case& c) { c.max_iter = 1; });
    cases.add("exact, 5 steps at most", [](Case& c) { exact(c), c.max_iter = 5; });
    cases.add("exact, 1 step at most", [](Case& c) { exact(c), c.max_iter = 1; });
}

void add_values(Cases& cases) {
    const auto nan = std::numeric_limits<float>::quiet_NaN(), infinity = std::numeric_limits<float>::infinity();
    cases.add("NaN pixel", [=](Case& c) { c.change = [=](Inputs& in) { in.guide[5 * 35 + 17] = nan; }; });
    cases.add("NaN pixel, exact", [=](Case& c) { exact(c), c.change = [=](Inputs& in) { in.guide[5 * 35] = nan; }; });
    cases.add("infinite feature, exact", [=](Case& c) {
        size(c, 7, 9, 2), exact(c);
        c.lab = false, c.change = [=](Inputs& in) { in.guide[70] = infinity; };
    });
    cases.add("all pixels isolated", [=](Case& c) {
        c.lab = false, c.change = [=](Inputs& in) { std::fill(in.guide.begin(), in.guide.end(), nan); };
    });
    const auto spoil = [=](Inputs& in) {
        in.scores[1 * in.pixels + 7] = nan;
        in.scores[4 * in.pixels - 1] = -infinity;
        in.fill_class(4, 0.0f);
    };
    cases.add("NaN, infinite and zero class", [=](Case& c) { c.change = spoil; });
    cases.add("NaN, infinite and zero class, exact", [=](Case& c) { exact(c), c.change = spoil; });
    cases.add("NaN class in a group", [=](Case& c) { c.groups = {0, 0, 1, 2, 2}, c.num_groups = 3, c.change = spoil; });
    cases.add("NaN class, labels", [=](Case& c) { c.label_bytes = 1, c.change = spoil; });
    cases.add("NaN classes only, labels", [=](Case& c) {
        size(c, 7, 9, 3);
        c.label_bytes = 4;
        c.change = [=](Inputs& in) {
            for (int k = 0; k < 3; ++k) in.fill_class(k, nan);
        };
    });
    cases.add("large and small scores", [](Case& c) {
        c.change = [](Inputs& in) { in.scale_class(0, 1e30f), in.scale_class(1, 1e-30f), in.scale_class(2, -1.0f); };
    });
    cases.add("large and small scores, exact", [](Case& c) {
        exact(c), c.change = [](Inputs& in) { in.scale_class(0, 1e30f), in.scale_class(1, 1e-30f); };
    });
}

}  // namespace

void run_all(Runner& run) {
    Cases list;
    add_sizes(list);
    add_outputs(list);
    add_values(list);
    list.run(run, check);
    run("limits", true, check_limits);
}

}  // namespace pixels_cases

int main(int argc, char** argv) { return cases::run_program("pixels_cases", argc, argv, pixels_cases::run_all); }
