// doubly_stochastic_cuda and markov_velocity_cuda against what the equations say, in one program for compute-sanitizer
// and for the emulator's sanitizers.
//
//   markov_cases [--small]     --small: only the cases that are quick under ThreadSanitizer
//
// One line per case, `ok` or `FAILED`; exit status 1 when one failed. What is expected is worked out here in float64:
// the matrix rewritten by its column and row sums, and every step of the chain with that matrix. All buffers have
// exactly the sizes that were asked for.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "cases.h"
#include "markov/markov.h"

namespace markov_cases {
namespace {

using namespace cases;
using ovs::ChainStage;
using ovs::DType;
using ovs::MarkovParams;
using ovs::MarkovRule;
using ovs::ScalingParams;
using ovs::StateScale;
using Matrix = std::vector<double>;  // [N, N]

constexpr double kTolerance = 5e-6;      // of T, relative to its largest entry
constexpr double kTimeTolerance = 5e-3;  // of times, in steps
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Case {
    std::string name;
    int64_t nodes = 37, num_classes = 5;
    DType dtype = DType::kFloat32;
    int n_iter = 15;
    double threshold = 0.3;
    int max_steps = 20, batch = 16;  // steps per call
    MarkovRule rule = MarkovRule::kFirstPassage;
    StateScale scale = StateScale::kMax;
    bool interpolate = true, info = true, own_stream = true, twice = false, quick = false;
    std::function<void(std::vector<float>&)> change_matrix, change_starts;
};

// The matrix as its dtype holds it, both as bytes for the device and as numbers.
struct Inputs {
    std::vector<float> plain;
    std::vector<uint16_t> half;
    std::vector<float> starts;  // [C, N]
};

Inputs make_inputs(const Case& c) {
    Random uniform;
    Inputs in;
    const int64_t n = c.nodes;
    for (int64_t i = 0; i < n; ++i) {
        std::vector<double> row;
        double sum = 0.0;
        for (int64_t j = 0; j < n; ++j) {
            row.push_back(std::exp(-0.3 * static_cast<double>(std::llabs(i - j)) + uniform()));
            sum += row.back();
        }
        for (const double value : row) in.plain.push_back(static_cast<float>(value / sum));
    }
    if (c.change_matrix) c.change_matrix(in.plain);
    for (float& value : in.plain) {
        uint16_t bits = 0;
        if (c.dtype == DType::kFloat16) {
            const __half half = __float2half(value);
            std::memcpy(&bits, &half, sizeof(bits));
            value = __half2float(half);
        } else if (c.dtype == DType::kBFloat16) {
            const __nv_bfloat16 half = __float2bfloat16(value);
            std::memcpy(&bits, &half, sizeof(bits));
            value = __bfloat162float(half);
        }
        in.half.push_back(bits);
    }
    in.starts.resize(c.num_classes * n, 0.0f);
    for (int64_t k = 0; k < c.num_classes; ++k) {
        for (int64_t s = 0; s < 1 + n / 8; ++s)
            in.starts[k * n + uniform.between(0, n)] = static_cast<float>(uniform());
        in.starts[k * n + k % n] = 1.0f;
    }
    if (c.change_starts) c.change_starts(in.starts);
    return in;
}

// What the equations say

Matrix rewritten(const Case& c, const Inputs& in) {
    const int64_t n = c.nodes;
    Matrix t(in.plain.begin(), in.plain.end());
    const auto divide = [&](int64_t line_step, int64_t step) {
        for (int64_t line = 0; line < n; ++line) {
            double sum = 0.0;
            for (int64_t k = 0; k < n; ++k) sum += t[line * line_step + k * step];
            for (int64_t k = 0; k < n && sum > 0.0; ++k) t[line * line_step + k * step] /= sum;
        }
    };
    for (int iteration = 0; iteration < c.n_iter; ++iteration) {
        divide(1, n);
        divide(n, 1);
    }
    return t;
}

bool column_is_empty(const Inputs& in, int64_t n, int64_t j) {
    for (int64_t i = 0; i < n; ++i) {
        if (in.plain[i * n + j] > 0.0f) return false;
    }
    return true;
}

std::vector<double> scaled(const Case& c, const std::vector<double>& state) {
    double factor = c.scale == StateScale::kN ? static_cast<double>(c.nodes) : 1.0;
    if (c.scale == StateScale::kMax) {
        const double largest = *std::max_element(state.begin(), state.end());
        factor = largest > 0.0 ? 1.0 / largest : 0.0;
    }
    std::vector<double> g;
    for (const double value : state) g.push_back(value * factor);
    return g;
}

struct Times {
    std::vector<double> times;
    int64_t unreached = 0;
};

// Every step up to the cap, each place by itself.
Times expected_times(const Case& c, const Matrix& t, const std::vector<double>& start) {
    const int64_t n = c.nodes;
    std::vector<std::vector<double>> states = {scaled(c, start)};
    std::vector<double> state = start;
    for (int step = 0; step < c.max_steps; ++step) {
        std::vector<double> next(n, 0.0);
        for (int64_t i = 0; i < n; ++i) {
            for (int64_t j = 0; j < n; ++j) next[j] += state[i] * t[i * n + j];
        }
        state = next;
        states.push_back(scaled(c, state));
    }
    Times found;
    for (int64_t j = 0; j < n; ++j) {
        double time = -1.0;
        bool moving = false;
        if (c.rule == MarkovRule::kFirstPassage && states[0][j] > c.threshold) time = 0.0;
        if (c.rule == MarkovRule::kSettling) time = 1.0;
        for (int step = 1; step <= c.max_steps; ++step) {
            const double now = states[step][j], change = now - states[step - 1][j];
            if (c.rule == MarkovRule::kSettling) {
                moving = std::fabs(change) > c.threshold;
                if (moving) time = step + 1.0;
            } else if (time < 0.0 && c.rule == MarkovRule::kDeltaLiteral && std::fabs(change) <= c.threshold) {
                time = step;
            } else if (time < 0.0 && c.rule == MarkovRule::kFirstPassage && now > c.threshold) {
                const double slope = step == 1 && c.scale == StateScale::kMax ? 1.0 - c.threshold : change;
                time = c.interpolate ? step - (now - c.threshold) / (slope + 1e-6) : step;
            }
        }
        found.unreached += time < 0.0 || moving ? 1 : 0;
        found.times.push_back(time < 0.0 ? c.max_steps : time);
    }
    return found;
}

// The GPU

struct Result {
    std::vector<float> r, c, velocity, times;
    std::vector<double> column_error;
    std::vector<int32_t> steps;
    std::vector<int64_t> unreached;
};

void run_chain(const Case& c, MarkovParams& p, int dirty_workspace, cudaStream_t stream) {
    DeviceArray<int32_t> running(1);
    p.running = running.data();
    const std::size_t bytes = ovs::markov_velocity_cuda_workspace_bytes(p, c.dtype);
    DeviceArray<unsigned char> workspace(bytes);
    if (dirty_workspace >= 0) workspace.fill_bytes(dirty_workspace);
    OVS_CUDA(cudaDeviceSynchronize());
    const auto call = [&](ChainStage stage) {
        p.stage = stage;
        ovs::markov_velocity_cuda(p, c.dtype, workspace.data(), bytes, 0, stream);
    };
    call(ChainStage::kStart);
    for (p.first_step = 1; p.first_step <= c.max_steps; p.first_step = p.last_step + 1) {
        p.last_step = std::min(p.first_step + c.batch - 1, c.max_steps);
        call(ChainStage::kSteps);
    }
    call(ChainStage::kReport);
    OVS_CUDA(cudaStreamSynchronize(stream));
}

// `dirty_workspace`: the byte to fill it with; -1: as cudaMalloc gave it, so that initcheck sees what is read
// unwritten.
Result run_cuda(const Case& c, const Inputs& in, int dirty_workspace = -1) {
    const DeviceArray<float> plain(in.plain), starts(in.starts);
    const DeviceArray<uint16_t> half(in.half);
    DeviceArray<float> r(c.nodes), columns(c.nodes), velocity(in.starts.size());
    DeviceArray<float> times(c.info ? in.starts.size() : 0);
    DeviceArray<double> error(c.info ? 1 : 0);
    DeviceArray<int32_t> steps(c.info ? c.num_classes : 0);
    DeviceArray<int64_t> unreached(c.info ? c.num_classes : 0);
    for (DeviceArray<float>* array : {&r, &columns, &velocity, &times}) array->fill_bytes(kUntouched);
    error.fill_bytes(kUntouched);
    steps.fill_bytes(kUntouched);
    unreached.fill_bytes(kUntouched);
    const Stream stream(c.own_stream);

    ScalingParams scaling;
    scaling.attention = c.dtype == DType::kFloat32 ? static_cast<const void*>(plain.data()) : half.data();
    scaling.r = r.data();
    scaling.c = columns.data();
    scaling.column_error = c.info ? error.data() : nullptr;
    scaling.num_nodes = c.nodes;
    scaling.n_iter = c.n_iter;
    const std::size_t bytes = ovs::doubly_stochastic_cuda_workspace_bytes(scaling, c.dtype);
    DeviceArray<unsigned char> workspace(bytes);
    if (dirty_workspace >= 0) workspace.fill_bytes(dirty_workspace);
    OVS_CUDA(cudaDeviceSynchronize());
    ovs::doubly_stochastic_cuda(scaling, c.dtype, workspace.data(), bytes, 0, stream.get());

    MarkovParams p;
    p.attention = scaling.attention;
    p.r = r.data();
    p.c = columns.data();
    p.distributions = starts.data();
    p.velocity = velocity.data();
    p.times = c.info ? times.data() : nullptr;
    p.steps = c.info ? steps.data() : nullptr;
    p.unreached = c.info ? unreached.data() : nullptr;
    p.num_nodes = c.nodes;
    p.num_classes = c.num_classes;
    p.threshold = c.threshold;
    p.max_steps = c.max_steps;
    p.rule = c.rule;
    p.scale = c.scale;
    p.interpolate = c.interpolate;
    run_chain(c, p, dirty_workspace, stream.get());
    return {r.to_host(),     columns.to_host(), velocity.to_host(), times.to_host(),
            error.to_host(), steps.to_host(),   unreached.to_host()};
}

// Comparisons

double check_scaling(const Case& c, const Inputs& in, const Matrix& t, const Result& got) {
    const int64_t n = c.nodes;
    double largest = 1e-300, difference = 0.0, column_error = 0.0;
    for (int64_t j = 0; j < n; ++j) {
        double sum = 0.0;
        for (int64_t i = 0; i < n; ++i) {
            const double entry = static_cast<double>(got.r[i]) * static_cast<double>(in.plain[i * n + j]) *
                                 static_cast<double>(got.c[j]);
            require(std::isfinite(entry), "r or c is not finite");
            largest = std::max(largest, t[i * n + j]);
            difference = std::max(difference, std::fabs(entry - t[i * n + j]));
            sum += t[i * n + j];
        }
        if (column_is_empty(in, n, j)) {
            require(c.n_iter == 0 || got.c[j] == 0.0f, "the factor of an empty column is not 0");
            if (c.n_iter > 0) continue;
        }
        column_error = std::max(column_error, std::fabs(sum - 1.0));
    }
    require(difference <= kTolerance * largest, "T is off by " + text(difference / largest));
    if (c.info) {
        require(std::fabs(got.column_error[0] - column_error) <= kTolerance * (1.0 + column_error),
                "expected the column error " + text(column_error) + ", got " + text(got.column_error[0]));
    }
    return difference / largest;
}

void check_all(const Case& c, const Result& got, int64_t k, float velocity, float time) {
    const auto same = [](float a, float b) { return a == b || (std::isnan(a) && std::isnan(b)); };
    const std::string where = "class " + std::to_string(k) + ": ";
    for (int64_t j = 0; j < c.nodes; ++j) {
        require(same(got.velocity[k * c.nodes + j], velocity), where + "expected the velocity " + text(velocity));
        require(!c.info || same(got.times[k * c.nodes + j], time), where + "expected the time " + text(time));
    }
    if (!c.info) return;
    require(got.steps[k] == 0 && got.unreached[k] == c.nodes, where + "expected no steps and no place reached");
}

double check_class(const Case& c, const Inputs& in, const Matrix& t, const Result& got, int64_t k) {
    const int64_t n = c.nodes;
    const std::vector<double> start(in.starts.begin() + k * n, in.starts.begin() + (k + 1) * n);
    for (const double value : start) {
        if (value >= 0.0 && std::isfinite(value)) continue;
        check_all(c, got, k, kNaN, kNaN);
        return 0.0;
    }
    if (*std::max_element(start.begin(), start.end()) == 0.0) {
        check_all(c, got, k, -kInfinity, kInfinity);
        return 0.0;
    }
    const std::string where = "class " + std::to_string(k) + ", place ";
    const Times want = expected_times(c, t, start);
    double worst = 0.0;
    for (int64_t j = 0; j < n; ++j) {
        const double expected = c.rule == MarkovRule::kSettling ? want.times[j] : 1.0 / std::max(want.times[j], 1e-3);
        const double velocity = static_cast<double>(got.velocity[k * n + j]);
        // An error of the time in its own units, whatever it is turned into.
        const double error = c.rule == MarkovRule::kSettling ? std::fabs(velocity - expected)
                                                             : std::fabs(1.0 / velocity - 1.0 / expected);
        require(error <= kTimeTolerance,
                where + std::to_string(j) + ": expected the velocity " + text(expected) + ", got " + text(velocity));
        worst = std::max(worst, error);
        if (!c.info) continue;
        const double time = static_cast<double>(got.times[k * n + j]);
        require(std::fabs(time - want.times[j]) <= kTimeTolerance,
                where + std::to_string(j) + ": expected the time " + text(want.times[j]) + ", got " + text(time));
    }
    if (c.info) {
        require(got.unreached[k] == want.unreached, "class " + std::to_string(k) + ": expected " +
                                                        std::to_string(want.unreached) + " places not reached, got " +
                                                        std::to_string(got.unreached[k]));
        require(got.steps[k] >= 0 && got.steps[k] <= c.max_steps, "steps beyond the cap");
    }
    return worst;
}

std::string check(const Case& c) {
    const Inputs in = make_inputs(c);
    const Matrix t = rewritten(c, in);
    const Result got = run_cuda(c, in);
    const double difference = check_scaling(c, in, t, got);
    double worst = 0.0;
    for (int64_t k = 0; k < c.num_classes; ++k) worst = std::max(worst, check_class(c, in, t, got, k));
    if (c.twice) {
        const Result again = run_cuda(c, in, 0);
        require(same_bits(again.r, got.r) && same_bits(again.c, got.c) && same_bits(again.velocity, got.velocity) &&
                    same_bits(again.times, got.times) && again.steps == got.steps && again.unreached == got.unreached &&
                    again.column_error == got.column_error,
                "a second run, over other bytes in the workspace, has other bits");
    }
    return "T is off by " + text(difference) + ", times by " + text(worst);
}

// A bad entry of the matrix makes everything NaN.
std::string check_bad(const Case& c) {
    const Inputs in = make_inputs(c);
    const Result got = run_cuda(c, in);
    for (const std::vector<float>* values : {&got.r, &got.c, &got.velocity, &got.times}) {
        for (const float value : *values) require(std::isnan(value), "expected NaN everywhere, got " + text(value));
    }
    require(std::isnan(got.column_error[0]), "expected the column error NaN");
    return "all NaN";
}

// Sizes that would lead out of the buffers are refused, and a zero extent touches nothing.
std::string check_limits() {
    const DeviceArray<float> matrix(std::vector<float>(9, 1.0f)), starts(std::vector<float>(6, 1.0f));
    DeviceArray<float> out(6), vector(3);
    DeviceArray<int32_t> running(1);
    out.fill_bytes(kUntouched);
    vector.fill_bytes(kUntouched);
    ScalingParams scaling;
    scaling.attention = matrix.data();
    scaling.r = scaling.c = vector.data();
    scaling.num_nodes = 3;
    MarkovParams p;
    p.attention = matrix.data();
    p.r = p.c = vector.data();
    p.distributions = starts.data();
    p.velocity = out.data();
    p.num_nodes = 3;
    p.num_classes = 2;
    p.running = running.data();
    const std::size_t scaling_bytes = ovs::doubly_stochastic_cuda_workspace_bytes(scaling, DType::kFloat32);
    const std::size_t bytes = ovs::markov_velocity_cuda_workspace_bytes(p, DType::kFloat32);
    const DeviceArray<unsigned char> workspace(std::max(bytes, scaling_bytes));
    const auto scale = [&](auto change, std::size_t size, DType dtype = DType::kFloat32) {
        ScalingParams q = scaling;
        change(q);
        return
            [&workspace, q, size, dtype] { ovs::doubly_stochastic_cuda(q, dtype, workspace.data(), size, 0, nullptr); };
    };
    const auto run = [&](auto change, std::size_t size, DType dtype = DType::kFloat32) {
        MarkovParams q = p;
        change(q);
        return
            [&workspace, q, size, dtype] { ovs::markov_velocity_cuda(q, dtype, workspace.data(), size, 0, nullptr); };
    };
    const auto as_it_is = [](auto&) {};
    expect_refusal("a workspace that is too small", scale(as_it_is, scaling_bytes - 1));
    expect_refusal("float64", scale(as_it_is, scaling_bytes, DType::kFloat64));
    expect_refusal("a negative size", scale([](auto& q) { q.num_nodes = -1; }, scaling_bytes));
    expect_refusal("2^31 nodes", scale([](auto& q) { q.num_nodes = int64_t{1} << 31; }, scaling_bytes));
    expect_refusal("negative iterations", scale([](auto& q) { q.n_iter = -1; }, scaling_bytes));
    expect_refusal("a workspace that is too small", run(as_it_is, bytes - 1));
    expect_refusal("a negative size", run([](auto& q) { q.num_classes = -1; }, bytes));
    expect_refusal("2^31 nodes", run([](auto& q) { q.num_nodes = int64_t{1} << 31; }, bytes));
    expect_refusal("65,536 classes", run([](auto& q) { q.num_classes = 65536; }, bytes));
    expect_refusal("no step", run([](auto& q) { q.max_steps = 0; }, bytes));
    expect_refusal("nowhere to count", run([](auto& q) { q.running = nullptr; }, bytes));
    expect_refusal("float64", run(
                                  [](auto& q) {
                                      q.stage = ChainStage::kSteps;
                                      q.last_step = 1;
                                  },
                                  bytes, DType::kFloat64));
    scale([](auto& q) { q.num_nodes = 0; }, 0)();
    run([](auto& q) { q.num_nodes = 0; }, 0)();
    run([](auto& q) { q.num_classes = 0; }, 0)();
    expect_untouched(out);
    expect_untouched(vector);
    return "refusals";
}

// The cases

using Cases = List<Case>;

void size(Case& c, int64_t nodes, int64_t classes) {
    c.nodes = nodes;
    c.num_classes = classes;
}

// Tiles of 128 columns, depths of 16 rows, batches of 8 rows, warps of 8 classes, slices of 32.
void add_sizes(Cases& cases) {
    cases.add("usual", [](Case& c) { c.twice = c.quick = true, c.max_steps = 6; });
    for (const int64_t nodes : {1, 2, 7, 8, 9, 16, 33, 128, 129}) {
        cases.add("nodes: " + std::to_string(nodes), [=](Case& c) { size(c, nodes, 2), c.max_steps = 12; });
    }
    cases.add("300 nodes", [](Case& c) { size(c, 300, 3), c.max_steps = 5, c.twice = true; });
    cases.add("2200 nodes: more rows than groups have warps", [](Case& c) {
        size(c, 2200, 1);
        c.max_steps = 1, c.n_iter = 1;
    });
    for (const int64_t classes : {1, 7, 8, 9, 31, 32, 34, 71}) {
        cases.add("classes: " + std::to_string(classes), [=](Case& c) { size(c, 25, classes); });
    }
    cases.add("classes: 33", [](Case& c) { size(c, 19, 33), c.max_steps = 4, c.quick = true; });
}

void add_scalings(Cases& cases) {
    cases.add("no iterations", [](Case& c) { c.n_iter = 0, c.quick = true, c.max_steps = 3; });
    cases.add("one iteration", [](Case& c) { c.n_iter = 1; });
    cases.add("60 iterations", [](Case& c) { c.n_iter = 60; });
    cases.add("float16", [](Case& c) { c.dtype = DType::kFloat16, c.quick = true, c.max_steps = 4; });
    cases.add("float16, 130 nodes", [](Case& c) { c.dtype = DType::kFloat16, size(c, 130, 9); });
    cases.add("bfloat16", [](Case& c) { c.dtype = DType::kBFloat16, size(c, 45, 9); });
    const auto lose = [](std::vector<float>& a) {  // N = 37
        for (int i = 0; i < 37; ++i) a[5 * 37 + i] = a[36 * 37 + i] = a[i * 37 + 9] = a[i * 37] = 0.0f;
    };
    for (const auto rule : {MarkovRule::kFirstPassage, MarkovRule::kDeltaLiteral, MarkovRule::kSettling}) {
        cases.add("empty rows and columns, rule " + std::to_string(static_cast<int>(rule)),
                  [=](Case& c) { c.change_matrix = lose, c.rule = rule; });
    }
    cases.add("empty matrix", [](Case& c) {
        c.change_matrix = [](std::vector<float>& a) { std::fill(a.begin(), a.end(), 0.0f); };
        c.max_steps = 3, c.quick = true;
    });
    cases.add("rows that do not sum to one", [](Case& c) {
        c.change_matrix = [](std::vector<float>& a) {
            for (std::size_t i = 0; i < a.size(); ++i) a[i] *= 1.0f + static_cast<float>(i / 37);
        };
    });
}

void add_rules(Cases& cases) {
    for (const auto rule : {MarkovRule::kFirstPassage, MarkovRule::kDeltaLiteral, MarkovRule::kSettling}) {
        for (const auto scale : {StateScale::kMax, StateScale::kNone, StateScale::kN}) {
            const std::string name =
                "rule " + std::to_string(static_cast<int>(rule)) + ", scale " + std::to_string(static_cast<int>(scale));
            cases.add(name, [=](Case& c) {
                c.rule = rule, c.scale = scale;
                c.threshold = scale == StateScale::kMax ? 0.1 : scale == StateScale::kN ? 0.7 : 0.02;
                c.quick = scale == StateScale::kMax && rule != MarkovRule::kFirstPassage;
                if (c.quick) c.max_steps = 5;
            });
        }
    }
    cases.add("no interpolation", [](Case& c) { c.interpolate = false; });
    cases.add("threshold 0.9", [](Case& c) { c.threshold = 0.9, c.max_steps = 60; });
    cases.add("threshold 0.01", [](Case& c) { c.threshold = 0.01; });
    cases.add("1 step", [](Case& c) { c.max_steps = 1, c.own_stream = false; });
    cases.add("single steps", [](Case& c) { c.batch = 1; });
    cases.add("80 steps, most without a class", [](Case& c) { c.max_steps = 80, c.nodes = 20; });
    cases.add("no report", [](Case& c) { c.info = false; });
    cases.add("no report, settling", [](Case& c) { c.info = false, c.rule = MarkovRule::kSettling; });
}

void add_starts(Cases& cases) {
    const auto spoil = [](std::vector<float>& f) {  // N = 37
        f[1 * 37 + 36] = kNaN;
        std::fill(f.begin() + 2 * 37, f.begin() + 3 * 37, 0.0f);
        f[3 * 37] = -1e-3f;
        f[4 * 37 + 7] = kInfinity;
    };
    cases.add("NaN, negative, infinite and empty class", [=](Case& c) { c.change_starts = spoil, c.quick = true; });
    cases.add("the same, settling", [=](Case& c) { c.change_starts = spoil, c.rule = MarkovRule::kSettling; });
    cases.add("no class with mass",
              [](Case& c) { c.change_starts = [](std::vector<float>& f) { std::fill(f.begin(), f.end(), 0.0f); }; });
    cases.add("large and small masses", [](Case& c) {
        c.change_starts = [](std::vector<float>& f) {
            for (int j = 0; j < 37; ++j) {
                f[j] *= 1e30f;
                f[37 + j] *= 1e-30f;
            }
        };
    });
}

}  // namespace

void run_all(Runner& run) {
    Cases list;
    add_sizes(list);
    add_scalings(list);
    add_rules(list);
    add_starts(list);
    list.run(run, check);
    Case bad;
    for (const float value : {kNaN, kInfinity, -1.0f}) {
        bad.change_matrix = [value](std::vector<float>& a) { a[36 * 37 + 35] = value; };
        run("attention with " + text(static_cast<double>(value)), value < 0.0f, [&bad] { return check_bad(bad); });
    }
    bad.change_matrix = [](std::vector<float>& a) { std::fill(a.begin(), a.end(), 1e37f); };
    run("attention whose sums overflow", false, [&bad] { return check_bad(bad); });
    run("limits", true, check_limits);
}

}  // namespace markov_cases

int main(int argc, char** argv) { return cases::run_program("markov_cases", argc, argv, markov_cases::run_all); }
