// transport_cuda against what the equations say, in one program for compute-sanitizer and for the emulator's
// sanitizers.
//
//   transport_cases [--small]     --small: only the cases that are quick under ThreadSanitizer
//
// One line per case, `ok` or `FAILED`; exit status 1 when one failed. What is expected is worked out here in float64,
// one class at a time, with logarithms whatever the domain. All buffers have exactly the sizes that were asked for.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "cases.h"
#include "transport/transport.h"

namespace transport_cases {
namespace {

using namespace cases;
using ovs::Domain;
using ovs::DType;
using ovs::Readout;
using ovs::TransportParams;

constexpr double kTolerance = 3e-5;       // float32 kernels: of a plan, relative to its largest entry; of a read-out
constexpr double kErrorTolerance = 5e-6;  // of marginal errors, which are shares of the mass
constexpr double kSpreadOfPlain = 60.0;

struct Inputs {
    std::vector<float> cost;  // [N, M] as the kernel reads it
    std::vector<float> a, b;  // [C, N]; [C, M], [M] or empty
};

struct Case {
    std::string name;
    int64_t rows = 37, columns = 29, classes = 5;
    double epsilon = 0.1, tol = 1e-6, scale = 1.0;
    int max_iter = 4;
    int marginals = 0;  // b: 0 none, 1 shared, 2 per class
    bool exact_iters = true, normalize = false, report = true, own_stream = true, twice = false, quick = false;
    DType cost_type = DType::kFloat32;
    Domain domain = Domain::kAuto;
    std::function<void(Inputs&)> change;
};

// The nearest number of 16 bits, by truncation; the case's costs are multiples of it.
uint16_t to_bfloat(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof(bits));
    return static_cast<uint16_t>(bits >> 16);
}
float from_bfloat(uint16_t x) {
    const uint32_t bits = static_cast<uint32_t>(x) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
}
// For values in [0, 2): a subnormal number or one with ten bits after the point.
uint16_t to_half(float x) {
    if (x < std::ldexp(1.0f, -14)) return static_cast<uint16_t>(std::ldexp(x, 24));
    const int exponent = std::ilogb(x);
    return static_cast<uint16_t>((exponent + 15) * 1024 + static_cast<int>(std::ldexp(x, 10 - exponent)) - 1024);
}
float from_half(uint16_t x) {
    const int exponent = x / 1024, digits = x % 1024;
    return exponent == 0 ? std::ldexp(static_cast<float>(digits), -24)
                         : std::ldexp(static_cast<float>(1024 + digits), exponent - 25);
}

Inputs make_inputs(const Case& c) {
    Random uniform;
    Inputs in;
    for (int64_t i = 0; i < c.rows * c.columns; ++i) {
        float value = static_cast<float>(c.scale * uniform());
        if (i == 1) value = 3e-6f;  // subnormal in float16
        if (c.cost_type == DType::kFloat16) value = from_half(to_half(value));
        if (c.cost_type == DType::kBFloat16) value = from_bfloat(to_bfloat(value));
        in.cost.push_back(value);
    }
    const auto fill = [&](std::vector<float>& marginals, int64_t count, int64_t length) {
        for (int64_t c0 = 0; c0 < count; ++c0) {
            std::vector<double> row;
            double sum = 0.0;
            for (int64_t i = 0; i < length; ++i) {
                row.push_back(i % 3 == 1 && length > 3 ? 0.0 : std::pow(uniform(), 3.0) + 1e-3);
                sum += row.back();
            }
            for (const double value : row) marginals.push_back(static_cast<float>(value / sum));
        }
    };
    fill(in.a, c.classes, c.rows);
    if (c.marginals > 0) fill(in.b, c.marginals == 1 ? 1 : c.classes, c.columns);
    if (c.change) c.change(in);
    return in;
}

// What is expected

struct Solution {
    bool empty = false;
    double mass = 1.0;
    std::vector<double> plan;    // [N, M]
    std::vector<double> errors;  // after each iteration
};

double log_sum(const std::vector<double>& exponents) {
    const double top = *std::max_element(exponents.begin(), exponents.end());
    double sum = 0.0;
    for (const double e : exponents) sum += std::exp(e - top);
    return top + std::log(sum);
}

class Oracle {
public:
    Oracle(const Case& c, const Inputs& in) : c_(c), in_(in) {
        const auto ends = std::minmax_element(in.cost.begin(), in.cost.end());
        const double spread = static_cast<double>(*ends.second) - static_cast<double>(*ends.first);
        in_log_ = c.domain == Domain::kLog || (c.domain == Domain::kAuto && spread / c.epsilon > kSpreadOfPlain);
        for (int64_t k = 0; k < c.classes; ++k) classes_.push_back(solve(k));
        iterations_ = 0;
        if (std::all_of(classes_.begin(), classes_.end(), [](const Solution& s) { return s.empty; })) return;
        for (iterations_ = 1; iterations_ < c.max_iter; ++iterations_) {
            if (iterations_ > 1 && !c.exact_iters && worst(iterations_ - 2) <= c.tol) break;
        }
        for (int64_t k = 0; k < c.classes; ++k) classes_[k] = solve(k, iterations_);
    }
    int iterations() const { return iterations_; }
    bool in_log() const { return in_log_; }
    const Solution& of(int64_t k) const { return classes_[k]; }

private:
    double worst(int iteration) const {
        double largest = 0.0;
        for (const Solution& s : classes_) {
            if (!s.empty) largest = std::max(largest, s.errors[iteration]);
        }
        return largest;
    }

    std::vector<double> marginal(const std::vector<float>& all, int64_t row, int64_t length, double& mass) const {
        std::vector<double> values;
        if (all.empty()) {
            mass = 1.0;
            return std::vector<double>(length, 1.0 / static_cast<double>(length));
        }
        mass = 0.0;
        for (int64_t i = 0; i < length; ++i) {
            values.push_back(static_cast<double>(all[row * length + i]));
            mass += values.back();
        }
        for (double& value : values) value /= mass;
        return values;
    }

    Solution solve(int64_t k, int iterations = -1) const {
        Solution s;
        double mass_a = 0.0;
        const std::vector<double> a = marginal(in_.a, k, c_.rows, mass_a);
        const std::vector<double> b = marginal(in_.b, c_.marginals == 2 ? k : 0, c_.columns, s.mass);
        if (c_.normalize) s.mass = 1.0;
        s.empty = mass_a == 0.0;
        if (s.empty) return s;
        const auto x = [&](int64_t i, int64_t j) {
            return -static_cast<double>(in_.cost[i * c_.columns + j]) / c_.epsilon;
        };
        std::vector<double> f(c_.rows), g(c_.columns, 0.0), row(c_.columns), column(c_.rows);
        for (int iteration = 0; iteration < (iterations < 0 ? c_.max_iter : iterations); ++iteration) {
            for (int64_t i = 0; i < c_.rows; ++i) {
                for (int64_t j = 0; j < c_.columns; ++j) row[j] = x(i, j) + g[j];
                f[i] = std::log(a[i]) - log_sum(row);
            }
            for (int64_t j = 0; j < c_.columns; ++j) {
                for (int64_t i = 0; i < c_.rows; ++i) column[i] = x(i, j) + f[i];
                g[j] = std::log(b[j]) - log_sum(column);
            }
            s.plan.assign(c_.rows * c_.columns, 0.0);
            double error = 0.0;
            for (int64_t i = 0; i < c_.rows; ++i) {
                double sum = 0.0;
                for (int64_t j = 0; j < c_.columns; ++j) {
                    sum += s.plan[i * c_.columns + j] = std::exp(x(i, j) + f[i] + g[j]);
                }
                error += std::fabs(sum - a[i]);
            }
            s.errors.push_back(error);
        }
        return s;
    }

    const Case& c_;
    const Inputs& in_;
    bool in_log_ = false;
    int iterations_ = 0;
    std::vector<Solution> classes_;
};

// The GPU

struct Result {
    std::vector<float> first, second;  // f and g, or the map
    std::vector<double> errors;
    std::vector<int64_t> status;
};

std::vector<unsigned char> stored_costs(const Case& c, const Inputs& in) {
    std::vector<unsigned char> bytes;
    const auto add = [&](const auto& value) {
        const auto* from = reinterpret_cast<const unsigned char*>(&value);
        bytes.insert(bytes.end(), from, from + sizeof(value));
    };
    for (const float value : in.cost) {
        switch (c.cost_type) {
            case DType::kFloat32:
                add(value);
                break;
            case DType::kFloat64:
                add(static_cast<double>(value));
                break;
            case DType::kFloat16:
                add(to_half(value));
                break;
            case DType::kBFloat16:
                add(to_bfloat(value));
                break;
        }
    }
    return bytes;
}

// `dirty_workspace`: the byte to fill it with; -1: as cudaMalloc gave it, so that initcheck sees what is read
// unwritten.
Result run_cuda(const Case& c, const Inputs& in, Readout readout, int dirty_workspace = -1) {
    const int64_t of_rows = c.classes * c.rows, of_columns = c.classes * c.columns;
    const int64_t lengths[] = {of_rows, of_columns, of_rows, c.classes};
    const DeviceArray<unsigned char> cost(stored_costs(c, in));
    const DeviceArray<float> a(in.a), b(in.b);
    DeviceArray<float> first(lengths[static_cast<int>(readout)]), second(readout == Readout::kNone ? of_columns : 0);
    DeviceArray<double> errors(c.report ? c.classes : 0);
    DeviceArray<int64_t> status(c.report ? 3 : 0);
    first.fill_bytes(kUntouched);
    second.fill_bytes(kUntouched);
    errors.fill_bytes(kUntouched);
    status.fill_bytes(kUntouched);

    TransportParams p;
    p.cost = cost.data();
    p.a = a.data();
    p.b = c.marginals > 0 ? b.data() : nullptr;
    p.f = readout == Readout::kNone ? first.data() : nullptr;
    p.g = readout == Readout::kNone ? second.data() : nullptr;
    p.map = readout == Readout::kNone ? nullptr : first.data();
    p.errors = c.report ? errors.data() : nullptr;
    p.status = c.report ? status.data() : nullptr;
    p.num_rows = c.rows;
    p.num_columns = c.columns;
    p.num_classes = c.classes;
    p.epsilon = c.epsilon;
    p.tol = c.tol;
    p.max_iter = c.max_iter;
    p.b_per_class = c.marginals == 2;
    p.exact_iters = c.exact_iters;
    p.normalize = c.normalize;
    p.cost_type = c.cost_type;
    p.domain = c.domain;
    p.readout = readout;
    const std::size_t bytes = ovs::transport_cuda_workspace_bytes(p);
    DeviceArray<unsigned char> workspace(bytes);
    if (dirty_workspace >= 0) workspace.fill_bytes(dirty_workspace);

    OVS_CUDA(cudaDeviceSynchronize());
    const Stream stream(c.own_stream);
    ovs::transport_cuda(p, workspace.data(), bytes, 0, stream.get());
    OVS_CUDA(cudaStreamSynchronize(stream.get()));
    return {first.to_host(), second.to_host(), errors.to_host(), status.to_host()};
}

// Comparisons

void check_report(const Case& c, const Oracle& want, const Result& got) {
    if (!c.report) return;
    require(got.status[0] == want.iterations(),
            "expected " + std::to_string(want.iterations()) + " iterations, got " + std::to_string(got.status[0]));
    require(got.status[1] == 0, "expected no guards, got " + std::to_string(got.status[1]));
    require(got.status[2] == (want.in_log() ? 1 : 0), "the other domain was used");
    for (int64_t k = 0; k < c.classes; ++k) {
        const double error = want.of(k).empty ? 0.0 : want.of(k).errors.back();
        require(std::fabs(got.errors[k] - error) <= 1e-3 * error + kErrorTolerance,
                "expected the error " + text(error) + ", got " + text(got.errors[k]));
    }
}

bool is_minus_infinity(float x) { return std::isinf(x) && x < 0.0f; }

// Largest error of the plans that f and g stand for, as a share of the largest entry of its class.
double check_potentials(const Case& c, const Inputs& in, const Oracle& want, const Result& got) {
    double worst = 0.0;
    for (int64_t k = 0; k < c.classes; ++k) {
        const Solution& s = want.of(k);
        const float *f = got.first.data() + k * c.rows, *g = got.second.data() + k * c.columns;
        if (s.empty) {
            require(std::all_of(f, f + c.rows, is_minus_infinity), "expected -inf in f of an empty class");
            require(std::all_of(g, g + c.columns, is_minus_infinity), "expected -inf in g of an empty class");
            continue;
        }
        const double largest = *std::max_element(s.plan.begin(), s.plan.end());
        for (int64_t i = 0; i < c.rows; ++i) {
            for (int64_t j = 0; j < c.columns; ++j) {
                const double cost = static_cast<double>(in.cost[i * c.columns + j]);
                const double plan =
                    std::exp((static_cast<double>(f[i]) + static_cast<double>(g[j]) - cost) / c.epsilon) / s.mass;
                const double error = std::fabs(plan - s.plan[i * c.columns + j]) / largest;
                require(error <= kTolerance, "plan of class " + std::to_string(k) + ": error " + text(error));
                worst = std::max(worst, error);
            }
        }
    }
    return worst;
}

double check_map(const Case& c, const Inputs& in, const Oracle& want, const Result& got, Readout readout) {
    double worst = 0.0;
    const int64_t length = readout == Readout::kReceiver ? c.columns : readout == Readout::kSource ? c.rows : 1;
    for (int64_t k = 0; k < c.classes; ++k) {
        const Solution& s = want.of(k);
        std::vector<double> paid(length, 0.0);
        for (int64_t at = 0; at < c.rows * c.columns && !s.empty; ++at) {
            const int64_t to = readout == Readout::kReceiver ? at % c.columns
                               : readout == Readout::kSource ? at / c.columns
                                                             : 0;
            paid[to] += s.mass * static_cast<double>(in.cost[at]) * s.plan[at];
        }
        const double largest = *std::max_element(paid.begin(), paid.end());
        for (int64_t i = 0; i < length; ++i) {
            const float value = got.first[k * length + i];
            if (s.empty) {
                require(is_minus_infinity(value), "expected -inf in the map of an empty class");
                continue;
            }
            const double error = std::fabs(static_cast<double>(value) - paid[i]) / largest;
            require(error <= kTolerance, "read-out " + std::to_string(static_cast<int>(readout)) + " of class " +
                                             std::to_string(k) + ": error " + text(error));
            worst = std::max(worst, error);
        }
    }
    return worst;
}

std::string check(const Case& c) {
    const Inputs in = make_inputs(c);
    const Oracle want(c, in);
    double worst = 0.0;
    for (const Readout readout : {Readout::kNone, Readout::kReceiver, Readout::kSource, Readout::kPlanCost}) {
        const Result got = run_cuda(c, in, readout);
        check_report(c, want, got);
        worst = std::max(worst, readout == Readout::kNone ? check_potentials(c, in, want, got)
                                                          : check_map(c, in, want, got, readout));
        if (!c.twice) continue;
        const Result again = run_cuda(c, in, readout, 0x7f);
        require(same_bits(got.first, again.first) && same_bits(got.second, again.second), "other bits the second time");
    }
    return "error " + text(worst) + ", " + std::to_string(want.iterations()) + " iterations";
}

// Refusals, and extents of zero

std::string check_limits() {
    DeviceArray<float> out(64);
    out.fill_bytes(kUntouched);
    DeviceArray<unsigned char> workspace(std::size_t{1} << 16);
    TransportParams p;
    p.cost = p.a = out.data();
    p.f = p.g = out.data();
    p.num_rows = p.num_columns = 2;
    p.num_classes = 1;
    const auto run = [&](const std::function<void(TransportParams&)>& change, std::size_t bytes) {
        TransportParams changed = p;
        change(changed);
        return [=, &workspace] { ovs::transport_cuda(changed, workspace.data(), bytes, 0, nullptr); };
    };
    const std::size_t bytes = ovs::transport_cuda_workspace_bytes(p);
    expect_refusal("a small workspace", run([](TransportParams&) {}, bytes - 1));
    expect_refusal("a negative size", run([](TransportParams& q) { q.num_rows = -1; }, bytes));
    expect_refusal("too many columns", run([](TransportParams& q) { q.num_columns = int64_t{1} << 31; }, bytes));
    expect_refusal("no iteration", run([](TransportParams& q) { q.max_iter = 0; }, bytes));
    expect_refusal("epsilon zero", run([](TransportParams& q) { q.epsilon = 0.0; }, bytes));
    run([](TransportParams& q) { q.num_classes = 0; }, 0)();
    expect_untouched(out);
    run([](TransportParams& q) { q.num_rows = 0, q.num_columns = 3, q.num_classes = 2; }, 0)();
    OVS_CUDA(cudaDeviceSynchronize());
    const std::vector<float> written = out.to_host();
    for (int64_t i = 0; i < 64; ++i) {
        require(i < 6 ? is_minus_infinity(written[i]) : std::isnan(written[i]), "expected -inf in g only");
    }
    return "refusals";
}

using Cases = List<Case>;

void size(Case& c, int64_t rows, int64_t columns, int64_t classes) {
    c.rows = rows;
    c.columns = columns;
    c.classes = classes;
}

void in_log(Case& c) { c.domain = Domain::kLog; }

// Tiles of 64 rows or columns, chunks of 32, slices of 32 classes, splits of 64 and more, blocks of 256.
void add_sizes(Cases& cases) {
    cases.add("plain", [](Case& c) { c.twice = c.quick = true; });
    cases.add("log", [](Case& c) { in_log(c), c.twice = c.quick = true; });
    cases.add("1 x 1", [](Case& c) { size(c, 1, 1, 1), c.quick = true; });
    cases.add("1 x 70", [](Case& c) { size(c, 1, 70, 2); });
    cases.add("70 x 1", [](Case& c) { size(c, 70, 1, 2); });
    cases.add("64 x 32", [](Case& c) { size(c, 64, 32, 3); });
    cases.add("65 x 129: several tiles and splits", [](Case& c) { size(c, 65, 129, 3), c.quick = true; });
    cases.add("130 x 67, log", [](Case& c) { size(c, 130, 67, 3), in_log(c); });
    cases.add("300 x 20: several row blocks", [](Case& c) { size(c, 300, 20, 3), c.max_iter = 3; });
    cases.add("20 x 300, log", [](Case& c) { size(c, 20, 300, 2), in_log(c), c.max_iter = 3; });
    for (const int64_t classes : {1, 8, 9, 31, 32, 33, 70}) {
        cases.add("classes: " + std::to_string(classes), [=](Case& c) { size(c, 19, 23, classes), c.max_iter = 3; });
    }
    cases.add("classes: 35, log", [](Case& c) { size(c, 19, 23, 35), in_log(c), c.max_iter = 3; });
}

void add_options(Cases& cases) {
    cases.add("1 iteration", [](Case& c) { c.max_iter = 1, c.own_stream = false; });
    cases.add("20 iterations", [](Case& c) { c.max_iter = 20; });
    cases.add("early stop", [](Case& c) { c.exact_iters = false, c.max_iter = 30, c.tol = 1e-4, c.quick = true; });
    cases.add("early stop, log", [](Case& c) { in_log(c), c.exact_iters = false, c.max_iter = 30, c.tol = 1e-4; });
    cases.add("a stop that never comes", [](Case& c) { c.exact_iters = false, c.tol = 0.0; });
    cases.add("no report", [](Case& c) { c.report = false; });
    cases.add("shared column marginals", [](Case& c) { c.marginals = 1, c.quick = true; });
    cases.add("column marginals per class", [](Case& c) { c.marginals = 2; });
    cases.add("column marginals per class, log", [](Case& c) { in_log(c), c.marginals = 2, c.quick = true; });
    for (const DType type : {DType::kFloat64, DType::kFloat16, DType::kBFloat16}) {
        const std::string name = "cost type " + std::to_string(static_cast<int>(type));
        cases.add(name, [=](Case& c) { c.cost_type = type; });
        cases.add(name + ", log", [=](Case& c) { in_log(c), c.cost_type = type; });
    }
    const auto scaled = [](Inputs& in) {
        for (float& value : in.a) value *= 40.0f;
        for (float& value : in.b) value *= 0.25f;
    };
    cases.add("masses that differ, normalised",
              [=](Case& c) { c.marginals = 2, c.normalize = true, c.change = scaled; });
    const auto heavier = [](Inputs& in) {
        for (float& value : in.a) value *= 3.0f;
        for (float& value : in.b) value *= 3.0f;
    };
    cases.add("mass 3", [=](Case& c) { c.marginals = 1, c.change = heavier; });
}

void add_values(Cases& cases) {
    cases.add("epsilon 1/60: the widest plain domain", [](Case& c) { c.epsilon = 1.0 / 60.0; });
    cases.add("epsilon 0.01: the log domain by itself", [](Case& c) { c.epsilon = 0.01; });
    cases.add("epsilon 1000", [](Case& c) { c.epsilon = 1000.0; });
    cases.add("large costs", [](Case& c) { c.scale = 1e4, c.epsilon = 1e3; });
    const auto without = [](Inputs& in) {
        std::fill(in.a.begin() + 37, in.a.begin() + 2 * 37, 0.0f);
        std::fill(in.a.begin() + 4 * 37, in.a.end(), 0.0f);
    };
    cases.add("empty classes", [=](Case& c) { c.change = without, c.quick = true; });
    cases.add("empty classes, log", [=](Case& c) { in_log(c), c.change = without; });
    const auto nothing = [](Inputs& in) { std::fill(in.a.begin(), in.a.end(), 0.0f); };
    cases.add("empty classes only", [=](Case& c) { c.change = nothing, c.quick = true; });
    cases.add("empty classes only, log", [=](Case& c) { in_log(c), c.change = nothing; });
    const auto single = [](Inputs& in) {
        std::fill(in.a.begin(), in.a.end(), 0.0f);
        for (int64_t k = 0; k < 5; ++k) in.a[k * 37 + 7 * k] = 1.0f;
    };
    cases.add("one source per class", [=](Case& c) { c.change = single; });
    cases.add("one source per class, log", [=](Case& c) { in_log(c), c.change = single; });
    const auto equal = [](Inputs& in) { std::fill(in.cost.begin(), in.cost.end(), 0.5f); };
    cases.add("equal costs", [=](Case& c) { c.change = equal; });
    const auto shifted = [](Inputs& in) {
        for (float& value : in.cost) value += 8.0f;
    };
    cases.add("costs far from zero", [=](Case& c) { c.change = shifted; });
}

}  // namespace

void run_all(Runner& run) {
    Cases list;
    add_sizes(list);
    add_options(list);
    add_values(list);
    list.run(run, check);
    run("limits", true, check_limits);
}

}  // namespace transport_cases

int main(int argc, char** argv) { return cases::run_program("transport_cases", argc, argv, transport_cases::run_all); }
