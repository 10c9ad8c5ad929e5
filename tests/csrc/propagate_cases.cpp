// lp_graph_cuda against what the equations say, in one program for compute-sanitizer and for the emulator's sanitizers.
//
//   propagate_cases [--small]     --small: only the cases that are quick under ThreadSanitizer
//
// One line per case, `ok` or `FAILED`; exit status 1 when one failed. What is expected is worked out here in float64:
// conjugate gradients literally over the list of links (official, and exact when the steps run out), otherwise Gaussian
// elimination of the dense matrix. All buffers have exactly the sizes that were asked for.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "cases.h"
#include "dense.h"
#include "propagate/propagate.h"

namespace propagate_cases {
namespace {

using namespace cases;
using ovs::PropagateParams;
using ovs::SolveMode;

constexpr double kTolerance = 5e-5;      // float32 kernels; relative to the largest value of a class
constexpr double kResidualFloor = 5e-6;  // |x| / |y| is up to 20 here, and x is rounded to float32
constexpr int kExtraSteps = 2;           // exact: what rounding may cost or save
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Link {
    int64_t row, column;
    float weight;
};

struct Inputs {
    std::vector<Link> links;     // by rows, columns ascending
    std::vector<float> degrees;  // [N] or empty
    std::vector<float> scores;   // [N, C]
};

struct Case {
    std::string name;
    int64_t nodes = 37, num_classes = 5;
    double density = 0.3;  // share of the pairs of nodes with a link
    bool ring = false;     // links i -- i + 1 and i -- i + 7 instead
    int degrees = 0;       // 1: the row sums, 2: larger ones
    SolveMode mode = SolveMode::kOfficial;
    double alpha = 0.95, tol = 1e-6;
    int max_iter = 4;
    bool iterations = true, residuals = true, own_stream = true, twice = false, quick = false;
    std::function<bool(int64_t, int64_t)> allows;  // which pairs i < j may be linked; empty: all
    bool self_links = false, equal_weights = false;
    std::function<void(std::vector<float>&)> change;  // puts NaN and the like into the scores
};

float score(const Case& c, const Inputs& in, int64_t i, int64_t k) { return in.scores[i * c.num_classes + k]; }

Inputs make_inputs(const Case& c) {
    Random uniform;
    Inputs in;
    const auto add_pair = [&](int64_t i, int64_t j) {
        if (c.allows && !c.allows(i, j)) return;
        const float weight = c.equal_weights ? 1.0f : static_cast<float>(std::pow(uniform(), 3.0) + 1e-3);
        in.links.push_back({i, j, weight});
        if (i != j) in.links.push_back({j, i, weight});
    };
    for (int64_t i = 0; i < c.nodes; ++i) {
        if (c.self_links && i % 3 == 0) add_pair(i, i);
        if (c.ring) {
            for (const int64_t step : {1, 7}) {
                if (i + step < c.nodes) add_pair(i, i + step);
            }
            continue;
        }
        for (int64_t j = i + 1; j < c.nodes; ++j) {
            if (uniform() < c.density) add_pair(i, j);
        }
    }
    std::sort(in.links.begin(), in.links.end(),
              [](const Link& a, const Link& b) { return a.row != b.row ? a.row < b.row : a.column < b.column; });
    if (c.degrees > 0) {
        std::vector<double> sums(c.nodes, 0.0);
        for (const Link& link : in.links) sums[link.row] += static_cast<double>(link.weight);
        for (const double sum : sums) in.degrees.push_back(static_cast<float>(c.degrees * sum));
    }
    for (int64_t i = 0; i < c.nodes * c.num_classes; ++i) in.scores.push_back(static_cast<float>(uniform() - 0.2));
    if (c.change) c.change(in.scores);
    return in;
}

// I - alpha D^-1/2 W D^-1/2

class System {
public:
    System(const Case& c, const Inputs& in) : c_(c), in_(in), degree_(in.degrees.begin(), in.degrees.end()) {
        if (degree_.empty()) {
            degree_.resize(c.nodes, 0.0);
            for (const Link& link : in.links) degree_[link.row] += static_cast<double>(link.weight);
        }
        for (double& d : degree_) {
            isolated_.push_back(d == 0.0);
            if (d == 0.0) d = 1.0;
        }
    }
    std::vector<double> apply(const std::vector<double>& v) const {
        std::vector<double> result = v;
        for (const Link& link : in_.links) result[link.row] -= entry(link) * v[link.column];
        return result;
    }
    Matrix dense() const {
        const int64_t n = c_.nodes;
        Matrix a(n * n, 0.0);
        for (int64_t i = 0; i < n; ++i) a[i * n + i] = 1.0;
        for (const Link& link : in_.links) a[link.row * n + link.column] -= entry(link);
        return a;
    }
    bool isolated(int64_t i) const { return isolated_[i]; }

private:
    double entry(const Link& link) const {
        return c_.alpha * static_cast<double>(link.weight) / std::sqrt(degree_[link.row] * degree_[link.column]);
    }

    const Case& c_;
    const Inputs& in_;
    std::vector<double> degree_;
    std::vector<bool> isolated_;
};

// The GPU

struct Result {
    std::vector<float> scores;        // [N, C]
    std::vector<int32_t> iterations;  // [C] or empty
    std::vector<double> residuals;    // [C] or empty
};

// `dirty_workspace`: the byte to fill it with; -1: as cudaMalloc gave it, so that initcheck sees what is read
// unwritten.
Result run_cuda(const Case& c, const Inputs& in, int dirty_workspace = -1) {
    std::vector<int64_t> starts(c.nodes + 1, 0);
    std::vector<int32_t> columns;
    std::vector<float> values;
    for (const Link& link : in.links) {
        ++starts[link.row + 1];
        columns.push_back(static_cast<int32_t>(link.column));
        values.push_back(link.weight);
    }
    for (int64_t i = 0; i < c.nodes; ++i) starts[i + 1] += starts[i];
    const DeviceArray<int64_t> indptr(starts);
    const DeviceArray<int32_t> indices(columns);
    const DeviceArray<float> weights(values), degrees(in.degrees), scores(in.scores);
    DeviceArray<float> out(in.scores.size());
    DeviceArray<int32_t> iterations(c.iterations ? c.num_classes : 0);
    DeviceArray<double> residuals(c.residuals ? c.num_classes : 0);
    out.fill_bytes(kUntouched);
    iterations.fill_bytes(kUntouched);
    residuals.fill_bytes(kUntouched);

    PropagateParams p;
    p.indptr = indptr.data();
    p.indices = indices.data();
    p.weights = weights.data();
    p.degrees = c.degrees > 0 ? degrees.data() : nullptr;
    p.scores = scores.data();
    p.out = out.data();
    p.iterations = c.iterations ? iterations.data() : nullptr;
    p.residuals = c.residuals ? residuals.data() : nullptr;
    p.num_nodes = c.nodes;
    p.num_links = static_cast<int64_t>(in.links.size());
    p.num_classes = c.num_classes;
    p.alpha = c.alpha;
    p.tol = c.tol;
    p.max_iter = c.max_iter;
    p.mode = c.mode;
    const std::size_t bytes = ovs::lp_graph_cuda_workspace_bytes(p);
    DeviceArray<unsigned char> workspace(bytes);
    if (dirty_workspace >= 0) workspace.fill_bytes(dirty_workspace);

    OVS_CUDA(cudaDeviceSynchronize());
    const Stream stream(c.own_stream);
    ovs::lp_graph_cuda(p, workspace.data(), bytes, 0, stream.get());
    OVS_CUDA(cudaStreamSynchronize(stream.get()));
    return {out.to_host(), iterations.to_host(), residuals.to_host()};
}

// Comparisons

double norm(const std::vector<double>& v) { return std::sqrt(dot(v, v)); }

void check_not_finite(const Case& c, const Result& got, int64_t k, const std::string& where) {
    for (int64_t i = 0; i < c.nodes; ++i) {
        require(std::isnan(got.scores[i * c.num_classes + k]), where + "expected NaN in node " + std::to_string(i));
    }
    if (c.iterations) require(got.iterations[k] == 0, where + "expected no iterations");
    if (c.residuals) require(std::isnan(got.residuals[k]), where + "expected a NaN for the residual");
}

void check_report(const Case& c, const Result& got, int64_t k, const Iterate& last, double residual,
                  const std::string& where) {
    const bool exact = c.mode == SolveMode::kExact;
    if (c.iterations) {
        const int margin = exact && last.iterations < c.max_iter ? kExtraSteps : 0;
        require(std::abs(got.iterations[k] - last.iterations) <= margin,
                where + "expected " + std::to_string(last.iterations) + " iterations, got " +
                    std::to_string(got.iterations[k]));
    }
    if (c.residuals) {
        const double want = exact ? residual : last.residual;
        require(std::fabs(got.residuals[k] - want) <= 1e-3 * want + kResidualFloor,
                where + "expected the residual " + text(want) + ", got " + text(got.residuals[k]));
    }
}

// One class; returns its error.
double check_class(const Case& c, const Inputs& in, const System& system, const Matrix& lu, const Result& got,
                   int64_t k) {
    const std::string where = "class " + std::to_string(k) + ": ";
    std::vector<double> y(c.nodes), x(c.nodes);
    for (int64_t i = 0; i < c.nodes; ++i) {
        y[i] = static_cast<double>(score(c, in, i, k));
        x[i] = static_cast<double>(got.scores[i * c.num_classes + k]);
    }
    if (!std::isfinite(dot(y, y))) {
        check_not_finite(c, got, k, where);
        return 0.0;
    }
    const bool exact = c.mode == SolveMode::kExact;
    const Iterate last =
        conjugate_gradients([&](const std::vector<double>& v) { return system.apply(v); }, y, c.max_iter, c.tol);
    std::vector<double> want = exact && last.iterations < c.max_iter ? solve(lu, y) : last.x;
    for (int64_t i = 0; i < c.nodes; ++i) {
        if (!exact || !system.isolated(i)) continue;
        require(x[i] == y[i], where + "isolated node " + std::to_string(i) + " was changed");
        want[i] = y[i];
    }
    double largest = 0.0, error = 0.0;
    for (int64_t i = 0; i < c.nodes; ++i) {
        require(std::isfinite(x[i]), where + "node " + std::to_string(i) + " is not finite");
        largest = std::max(largest, std::fabs(want[i]));
        error = std::max(error, std::fabs(x[i] - want[i]));
    }
    if (error > 0.0) error /= std::max(largest, 1e-300);
    require(error <= kTolerance, where + "relative error " + text(error));
    std::vector<double> gap = system.apply(x);
    for (int64_t i = 0; i < c.nodes; ++i) gap[i] -= y[i];
    check_report(c, got, k, last, norm(y) > 0.0 ? norm(gap) / norm(y) : 0.0, where);
    return error;
}

std::string check(const Case& c) {
    const Inputs in = make_inputs(c);
    const System system(c, in);
    const Matrix lu = c.mode == SolveMode::kExact ? factorise(system.dense(), c.nodes) : Matrix();
    const Result got = run_cuda(c, in);
    double worst = 0.0;
    for (int64_t k = 0; k < c.num_classes; ++k) worst = std::max(worst, check_class(c, in, system, lu, got, k));
    if (c.twice) {
        const Result again = run_cuda(c, in, 0);
        require(same_bits(again.scores, got.scores) && again.iterations == got.iterations &&
                    again.residuals == got.residuals,
                "a second run, over other bytes in the workspace, has other bits");
    }
    return "relative error " + text(worst);
}

// The cases

// Sizes that would lead out of the buffers are refused, and a zero extent touches nothing.
std::string check_limits() {
    const DeviceArray<int64_t> indptr(std::vector<int64_t>{0, 0, 0, 0});
    const DeviceArray<float> scores(std::vector<float>{1, 2, 3, 4, 5, 6});
    DeviceArray<float> out(6);
    out.fill_bytes(kUntouched);
    PropagateParams p;
    p.indptr = indptr.data();
    p.scores = scores.data();
    p.out = out.data();
    p.num_nodes = 3;
    p.num_classes = 2;
    const std::size_t bytes = ovs::lp_graph_cuda_workspace_bytes(p);
    const DeviceArray<unsigned char> workspace(bytes);
    const auto run = [&](const PropagateParams& params, std::size_t size) {
        return [&workspace, params, size] { ovs::lp_graph_cuda(params, workspace.data(), size, 0, nullptr); };
    };
    expect_refusal("a workspace that is too small", run(p, bytes - 1));
    expect_refusal("no workspace", run(p, 0));
    expect_refusal("no row starts", run(changed(p, &PropagateParams::indptr, nullptr), bytes));
    expect_refusal("2^31 nodes", run(changed(p, &PropagateParams::num_nodes, int64_t{1} << 31), bytes));
    expect_refusal("a negative number of links", run(changed(p, &PropagateParams::num_links, -1), bytes));
    for (const auto extent : {&PropagateParams::num_nodes, &PropagateParams::num_classes}) {
        run(changed(p, extent, 0), 0)();
        expect_refusal("a negative size", run(changed(p, extent, -1), bytes));
    }
    expect_untouched(out);
    return "refusals";
}

using Cases = List<Case>;

void size(Case& c, int64_t nodes, int64_t classes) {
    c.nodes = nodes;
    c.num_classes = classes;
}

void exact(Case& c) {
    c.mode = SolveMode::kExact;
    c.max_iter = 1000;
    c.alpha = 0.5;  // fewer steps to queue
}

void add_sizes(Cases& cases) {
    cases.add("official", [](Case& c) { c.max_iter = 10, c.twice = c.quick = true; });
    cases.add("exact", [](Case& c) { exact(c), c.alpha = 0.95; });
    cases.add("exact, quick", [](Case& c) { exact(c), size(c, 21, 3), c.tol = 1e-5, c.twice = c.quick = true; });
    cases.add("1 node", [](Case& c) { size(c, 1, 3), c.quick = true; });
    cases.add("1 node, exact", [](Case& c) { size(c, 1, 3), exact(c); });
    cases.add("1 node, linked to itself", [](Case& c) { size(c, 1, 2), c.self_links = true, c.tol = 1e-5; });
    cases.add("2 nodes", [](Case& c) { size(c, 2, 2), c.density = 1.0, c.tol = 1e-5, c.quick = true; });
    cases.add("2 nodes, exact", [](Case& c) { size(c, 2, 2), c.density = 1.0, exact(c); });
    cases.add("2 nodes, no link", [](Case& c) { size(c, 2, 2), c.density = 0.0; });
    cases.add("all pairs linked, exact", [](Case& c) { size(c, 67, 4), c.density = 1.0, exact(c); });
    cases.add("300 nodes", [](Case& c) { size(c, 300, 7), c.density = 0.05, c.max_iter = 10; });
    cases.add("8213 nodes: more rows than blocks have warps", [](Case& c) {
        size(c, 8213, 1);
        c.ring = true, c.max_iter = 2;
    });
}

// Threads share a link by 2, 4 or 8; slices of 32 classes, waves of 256.
void add_classes(Cases& cases) {
    for (const int64_t classes : {1, 8, 11, 20, 32, 61}) {
        cases.add("classes: " + std::to_string(classes), [=](Case& c) { size(c, 25, classes); });
    }
    cases.add("classes: 33", [](Case& c) { size(c, 19, 33), c.quick = true; });
    cases.add("classes: 45, exact", [](Case& c) { size(c, 19, 45), exact(c); });
    cases.add("classes: 259", [](Case& c) { size(c, 13, 259), c.max_iter = 2; });
    cases.add("classes: 259, exact", [](Case& c) { size(c, 9, 259), exact(c), c.max_iter = 3; });
    cases.add("classes: 521, one step", [](Case& c) { size(c, 5, 521), c.max_iter = 1; });
}

void add_graphs(Cases& cases) {
    cases.add("links of nodes with themselves", [](Case& c) { c.self_links = true; });
    cases.add("links of nodes with themselves, exact", [](Case& c) { exact(c), c.self_links = true; });
    cases.add("no links", [](Case& c) { c.density = 0.0, c.quick = true; });
    cases.add("no links, exact", [](Case& c) { exact(c), c.density = 0.0; });
    const auto some = [](int64_t i, int64_t j) { return i > 2 && j != 20 && i != 20 && j < 35; };
    cases.add("isolated nodes", [=](Case& c) { c.allows = some, c.max_iter = 10, c.quick = true; });
    cases.add("isolated nodes, exact", [=](Case& c) { exact(c), c.allows = some; });
    cases.add("isolated nodes, exact, 4 steps at most", [=](Case& c) { exact(c), c.allows = some, c.max_iter = 4; });
    const auto star = [](int64_t i, int64_t) { return i == 0; };
    cases.add("a star", [=](Case& c) { c.density = 1.0, c.allows = star, c.max_iter = 3; });
    cases.add("a star, exact", [=](Case& c) { c.density = 1.0, c.allows = star, exact(c); });
    const auto parts = [](int64_t i, int64_t j) { return i / 13 == j / 13; };
    cases.add("three parts", [=](Case& c) { c.allows = parts; });
    cases.add("equal weights", [](Case& c) { c.equal_weights = true; });
    cases.add("equal weights and degrees: a circle", [](Case& c) {
        c.ring = c.equal_weights = true;
        c.allows = [](int64_t i, int64_t j) { return j == i + 1; };
    });
    cases.add("given degrees", [=](Case& c) { c.degrees = 1, c.allows = some; });
    cases.add("given degrees, exact", [=](Case& c) { c.degrees = 1, c.allows = some, exact(c); });
    cases.add("larger degrees", [](Case& c) { c.degrees = 2, c.tol = 1e-9; });
    cases.add("larger degrees, exact", [](Case& c) { c.degrees = 2, exact(c); });
}

void add_solves(Cases& cases) {
    cases.add("1 step", [](Case& c) { c.max_iter = 1, c.own_stream = false; });
    cases.add("25 steps", [](Case& c) { c.max_iter = 25, c.tol = 1e-9, c.alpha = 0.99, c.ring = true; });
    cases.add("early stop", [](Case& c) { c.tol = 0.01, c.num_classes = 40, c.max_iter = 10; });
    cases.add("exact, 5 steps at most", [](Case& c) { exact(c), c.max_iter = 5; });
    cases.add("exact, 1 step at most", [](Case& c) { exact(c), c.max_iter = 1; });
    cases.add("exact, alpha 0.9", [](Case& c) { exact(c), c.alpha = 0.9, c.ring = true; });
    cases.add("exact, tol 0.01", [](Case& c) { exact(c), c.tol = 0.01, c.max_iter = 4; });
    cases.add("no report", [](Case& c) { c.iterations = c.residuals = false; });
    cases.add("no report, exact", [](Case& c) { exact(c), c.iterations = c.residuals = false; });
    cases.add("iterations only, exact", [](Case& c) { exact(c), c.residuals = false; });
    cases.add("residuals only, exact", [](Case& c) { exact(c), c.iterations = false; });
}

void add_values(Cases& cases) {
    const auto spoil = [](std::vector<float>& scores) {
        scores[5 * 7 + 1] = kNaN;
        scores[36 * 5 + 3] = -kInfinity;
        for (std::size_t i = 4; i < scores.size(); i += 5) scores[i] = 0.0f;
    };
    cases.add("NaN, infinite and zero class", [=](Case& c) { c.change = spoil, c.quick = true; });
    cases.add("NaN, infinite and zero class, exact", [=](Case& c) { exact(c), c.change = spoil; });
    cases.add("NaN classes only", [](Case& c) {
        size(c, 11, 3), c.change = [](std::vector<float>& scores) { std::fill(scores.begin(), scores.end(), kNaN); };
    });
    const auto scale = [](std::vector<float>& scores) {
        for (std::size_t i = 0; i < scores.size(); i += 5) {
            scores[i] *= 1e30f;
            scores[i + 1] *= 1e-30f;
            scores[i + 2] *= -1.0f;
        }
    };
    cases.add("large and small scores", [=](Case& c) { c.change = scale; });
    cases.add("large and small scores, exact", [=](Case& c) { exact(c), c.change = scale; });
    cases.add("one score that is not zero", [](Case& c) {
        c.num_classes = 1, c.change = [](std::vector<float>& scores) {
            std::fill(scores.begin(), scores.end(), 0.0f);
            scores[20] = 1.0f;
        };
    });
}

}  // namespace

void run_all(Runner& run) {
    Cases list;
    add_sizes(list);
    add_classes(list);
    add_graphs(list);
    add_solves(list);
    add_values(list);
    list.run(run, check);
    run("limits", true, check_limits);
}

}  // namespace propagate_cases

int main(int argc, char** argv) { return cases::run_program("propagate_cases", argc, argv, propagate_cases::run_all); }
