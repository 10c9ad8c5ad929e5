// knn_graph_cuda against the definition, in one program for compute-sanitizer and for the emulator's sanitizers.
//
//   graph_cases [--small]     --small: only the cases that are quick under ThreadSanitizer
//
// One line per case, `ok` or `FAILED`; exit status 1 when one failed. The products that torch makes in the package are
// made here, by a loop over the unit rows that the device returned. What is expected follows from these products in
// float64: every row sorted, S, and S + S^T. All buffers have exactly the sizes that were asked for.
#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "cases.h"
#include "graph/graph.h"

namespace graph_cases {
namespace {

using namespace cases;
using ovs::KnnGraphParams;
using ovs::KnnGraphStage;

constexpr double kUnitTolerance = 1e-7;    // one rounding to float32
constexpr double kWeightTolerance = 3e-6;  // a power and an exponential in float32
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Inputs {
    std::vector<float> features;   // [N, d]
    std::vector<float> positions;  // [N, 2] or empty
};

using Products = std::vector<float>;  // [N, N]

struct Case {
    std::string name;
    int64_t nodes = 70, num_features = 5, k = 9;
    int64_t panel = 0;  // rows of a block of products; 0: all
    double gamma = 3.0, sigma = 0.01;
    bool positions = true, own_stream = true, twice = false, quick = false;
    std::function<void(Inputs&)> change;             // puts ties, NaN and the like into the inputs
    std::function<void(Products&)> change_products;  // upper triangle only
};

Inputs make_inputs(const Case& c) {
    Random uniform;
    Inputs in;
    // With a common part, so that similarities of either sign occur.
    for (int64_t i = 0; i < c.nodes * c.num_features; ++i) in.features.push_back(static_cast<float>(uniform() - 0.3));
    for (int64_t i = 0; c.positions && i < 2 * c.nodes; ++i) in.positions.push_back(static_cast<float>(uniform() * 99));
    if (c.change) c.change(in);
    return in;
}

// The definition

void check_unit_rows(const Case& c, const Inputs& in, const std::vector<float>& unit) {
    for (int64_t i = 0; i < c.nodes; ++i) {
        double square = 0.0;
        for (int64_t f = 0; f < c.num_features; ++f) {
            square += std::pow(static_cast<double>(in.features[i * c.num_features + f]), 2);
        }
        const bool usable = square > 0.0 && std::isfinite(square);
        for (int64_t at = i * c.num_features; at < (i + 1) * c.num_features; ++at) {
            const double want = usable ? static_cast<double>(in.features[at]) / std::sqrt(square) : 0.0;
            require(std::fabs(static_cast<double>(unit[at]) - want) <= kUnitTolerance * std::fabs(want) + 1e-45,
                    "unit row " + std::to_string(i) + ": expected " + text(want) + ", got " + text(unit[at]));
        }
    }
}

// Rounded to float32 once, and symmetric. Equal rows have equal products.
Products multiply(const Case& c, const std::vector<float>& unit) {
    const int64_t n = c.nodes, d = c.num_features;
    Products products(n * n);
    for (int64_t i = 0; i < n; ++i) {
        for (int64_t j = i; j < n; ++j) {
            double sum = 0.0;
            for (int64_t f = 0; f < d; ++f) sum += static_cast<double>(unit[i * d + f]) * unit[j * d + f];
            products[i * n + j] = static_cast<float>(sum);
        }
    }
    if (c.change_products) c.change_products(products);
    for (int64_t i = 0; i < n; ++i) {
        for (int64_t j = 0; j < i; ++j) products[i * n + j] = products[j * n + i];
    }
    return products;
}

// S + S^T without its diagonal, [N, N].
std::vector<double> dense_graph(const Case& c, const Inputs& in, const Products& products) {
    const int64_t n = c.nodes, others = std::min(c.k, n) - 1;
    std::vector<double> directed(n * n, 0.0), graph(n * n, 0.0);
    std::vector<int64_t> order(n);
    for (int64_t i = 0; i < n; ++i) {
        const float* row = products.data() + i * n;
        std::iota(order.begin(), order.end(), 0);
        order.erase(order.begin() + i);
        std::stable_sort(order.begin(), order.end(), [row](int64_t a, int64_t b) { return row[a] > row[b]; });
        for (int64_t place = 0; place < others; ++place) {
            const int64_t j = order[place];
            const double s = row[j];
            if (s < static_cast<double>(FLT_MIN)) break;
            double v = std::pow(std::min(s, 1.0), c.gamma);
            if (c.positions) {
                const double dy = static_cast<double>(in.positions[2 * i]) - in.positions[2 * j];
                const double dx = static_cast<double>(in.positions[2 * i + 1]) - in.positions[2 * j + 1];
                v *= std::exp(-c.sigma * std::sqrt(dy * dy + dx * dx));
            }
            if (v >= static_cast<double>(FLT_MIN)) directed[i * n + j] = v;  // a NaN is not
        }
        order.resize(n);
    }
    for (int64_t i = 0; i < n; ++i) {
        for (int64_t j = 0; j < n; ++j) graph[i * n + j] = directed[i * n + j] + directed[j * n + i];
    }
    return graph;
}

// The GPU

struct Graph {
    std::vector<int32_t> indptr, indices;
    std::vector<float> weights, degrees;

    bool operator==(const Graph& other) const {
        return indptr == other.indptr && indices == other.indices && same_bits(weights, other.weights) &&
               same_bits(degrees, other.degrees);
    }
};

// The buffers that outlive a stage, and the stages.
class Builder {
public:
    Builder(const Case& c, const Inputs& in)
        : c_(c),
          stream_(c.own_stream),
          features_(in.features),
          positions_(in.positions),
          unit_rows_(in.features.size()),
          indptr_(c.nodes + 1),
          total_(1),
          degrees_(c.nodes),
          p_(params()),
          bytes_(ovs::knn_graph_cuda_workspace_bytes(p_)),
          workspace_(bytes_) {
        unit_rows_.fill_bytes(kUntouched);
        indptr_.fill_bytes(kUntouched);
        degrees_.fill_bytes(kUntouched);
    }

    std::vector<float> normalize() {
        run(p_, KnnGraphStage::kNormalize);
        wait();
        return unit_rows_.to_host();
    }
    Graph build(const Products& products) {
        run_panels(p_, KnnGraphStage::kSelect, products);
        run_panels(p_, KnnGraphStage::kCount, products);
        run(p_, KnnGraphStage::kOffsets);
        wait();
        const int64_t total = total_.to_host()[0];
        require(total >= 0 && total <= c_.nodes * c_.nodes, "number of links " + std::to_string(total));
        DeviceArray<int32_t> indices(total);
        DeviceArray<float> weights(total);
        indices.fill_bytes(kUntouched);
        weights.fill_bytes(kUntouched);
        KnnGraphParams p = p_;
        p.indices = indices.data();
        p.weights = weights.data();
        run_panels(p, KnnGraphStage::kEmit, products);
        return {indptr_.to_host(), indices.to_host(), weights.to_host(), degrees_.to_host()};
    }
    // Dirty memory: what a stage leaves out, the next one would find in it.
    void fill_workspace(int value) { workspace_.fill_bytes(value); }

private:
    KnnGraphParams params() {
        KnnGraphParams p;
        p.features = features_.data();
        p.positions = c_.positions ? positions_.data() : nullptr;
        p.unit_rows = unit_rows_.data();
        p.indptr = indptr_.data();
        p.total = total_.data();
        p.degrees = degrees_.data();
        p.num_nodes = c_.nodes;
        p.num_features = c_.num_features;
        p.num_others = std::min(c_.k, c_.nodes) - 1;
        p.gamma = c_.gamma;
        p.sigma = c_.sigma;
        return p;
    }
    void run(KnnGraphParams p, KnnGraphStage stage) {
        OVS_CUDA(cudaDeviceSynchronize());
        p.stage = stage;
        ovs::knn_graph_cuda(p, workspace_.data(), bytes_, 0, stream_.get());
    }
    void run_panels(KnnGraphParams p, KnnGraphStage stage, const Products& products) {
        const int64_t rows = c_.panel > 0 ? c_.panel : c_.nodes;
        for (p.first_row = 0; p.first_row < c_.nodes; p.first_row = p.last_row) {
            p.last_row = std::min(p.first_row + rows, c_.nodes);
            const DeviceArray<float> panel(Products(products.begin() + p.first_row * c_.nodes,  //
                                                    products.begin() + p.last_row * c_.nodes));
            p.products = panel.data();
            run(p, stage);
            wait();
        }
    }
    void wait() { OVS_CUDA(cudaStreamSynchronize(stream_.get())); }

    const Case& c_;
    Stream stream_;
    DeviceArray<float> features_, positions_, unit_rows_;
    DeviceArray<int32_t> indptr_;
    DeviceArray<int64_t> total_;
    DeviceArray<float> degrees_;
    KnnGraphParams p_;
    std::size_t bytes_;
    DeviceArray<unsigned char> workspace_;
};

// The same links, in order, with these weights; the sums of the rows.
double compare(const Case& c, const Graph& got, const std::vector<double>& want) {
    const int64_t n = c.nodes;
    std::vector<float> dense(n * n, 0.0f);
    double worst = 0.0;
    const auto close = [&](double g, double w, const std::string& where) {
        const double error = g == w ? 0.0 : std::fabs(g - w) / std::fabs(w);
        require(error <= kWeightTolerance, where + ": expected " + text(w) + ", got " + text(g));
        worst = std::max(worst, error);
    };
    int64_t at = 0;
    require(got.indptr[0] == 0, "the first row starts at " + std::to_string(got.indptr[0]));
    for (int64_t i = 0; i < n; ++i) {
        const std::string row = "row " + std::to_string(i);
        double degree = 0.0;
        for (int64_t j = 0; j < n; ++j) {
            if (want[i * n + j] == 0.0) continue;
            const std::string where = row + ", column " + std::to_string(j);
            require(at < static_cast<int64_t>(got.indices.size()) && got.indices[at] == j, where + ": no link");
            close(static_cast<double>(got.weights[at]), want[i * n + j], where);
            dense[i * n + j] = got.weights[at];
            degree += want[i * n + j];
            ++at;
        }
        require(got.indptr[i + 1] == at,
                row + ": ends at " + std::to_string(got.indptr[i + 1]) + ", expected " + std::to_string(at));
        close(static_cast<double>(got.degrees[i]), degree, row + ": degree");
    }
    require(at == static_cast<int64_t>(got.indices.size()), "more links than expected");
    for (int64_t i = 0; i < n; ++i) {
        for (int64_t j = 0; j < i; ++j) {
            require(dense[i * n + j] == dense[j * n + i], "row " + std::to_string(i) + ": not symmetric to the bit");
        }
    }
    return worst;
}

std::string check(const Case& c) {
    const Inputs in = make_inputs(c);
    Builder builder(c, in);
    const std::vector<float> unit = builder.normalize();
    check_unit_rows(c, in, unit);
    const Products products = multiply(c, unit);
    const Graph got = builder.build(products);
    const double worst = compare(c, got, dense_graph(c, in, products));
    if (c.twice) {
        Builder again(c, in);
        again.fill_workspace(0);
        require(same_bits(again.normalize(), unit) && again.build(products) == got, "a second run has other bits");
    }
    return std::to_string(got.indices.size()) + " links, relative error " + text(worst);
}

// The cases

// Sizes that would lead out of the buffers are refused, and nothing to do touches nothing.
std::string check_limits() {
    const Case c;
    const DeviceArray<float> products(c.nodes * c.nodes);
    DeviceArray<int32_t> indptr(c.nodes + 1);
    indptr.fill_bytes(kUntouched);
    KnnGraphParams p;
    p.products = products.data();
    p.indptr = indptr.data();
    p.num_nodes = p.last_row = c.nodes;
    p.num_features = c.num_features;
    p.num_others = c.k - 1;
    p.stage = KnnGraphStage::kCount;
    const std::size_t bytes = ovs::knn_graph_cuda_workspace_bytes(p);
    const DeviceArray<unsigned char> workspace(bytes);
    const auto run = [&](const KnnGraphParams& params, std::size_t size) {
        return [&workspace, params, size] { ovs::knn_graph_cuda(params, workspace.data(), size, 0, nullptr); };
    };
    expect_refusal("a workspace that is too small", run(p, bytes - 1));
    expect_refusal("a negative number of nodes", run(changed(p, &KnnGraphParams::num_nodes, -1), bytes));
    expect_refusal("a negative number of features", run(changed(p, &KnnGraphParams::num_features, -1), bytes));
    expect_refusal("2^24 + 1 nodes", run(changed(p, &KnnGraphParams::num_nodes, ovs::kMaxNodes + 1), bytes));
    expect_refusal("a negative number of neighbours", run(changed(p, &KnnGraphParams::num_others, -1), bytes));
    expect_refusal("more neighbours than nodes", run(changed(p, &KnnGraphParams::num_others, c.nodes + 1), bytes));
    expect_refusal("a negative row", run(changed(p, &KnnGraphParams::first_row, -1), bytes));
    expect_refusal("a row past the end", run(changed(p, &KnnGraphParams::last_row, c.nodes + 1), bytes));
    expect_refusal("rows in reverse", run(changed(p, &KnnGraphParams::last_row, -1), bytes));
    expect_refusal("stage 5", run(changed(p, &KnnGraphParams::stage, static_cast<KnnGraphStage>(5)), bytes));
    run(changed(p, &KnnGraphParams::first_row, c.nodes), bytes)();
    KnnGraphParams none;
    for (const KnnGraphStage stage : {KnnGraphStage::kNormalize, KnnGraphStage::kSelect, KnnGraphStage::kCount,
                                      KnnGraphStage::kOffsets, KnnGraphStage::kEmit}) {
        none.stage = stage;
        run(none, 0)();
    }
    expect_untouched(indptr);
    return "refusals";
}

using Cases = List<Case>;

void size(Case& c, int64_t nodes, int64_t num_features, int64_t k) {
    c.nodes = nodes;
    c.num_features = num_features;
    c.k = k;
}

// Node i has the features of node i % period.
std::function<void(Inputs&)> repeat_rows(int64_t num_features, int64_t period) {
    return [=](Inputs& in) {
        for (std::size_t i = period * num_features; i < in.features.size(); ++i) {
            in.features[i] = in.features[i - period * num_features];
        }
    };
}

void add_sizes(Cases& cases) {
    cases.add("70 nodes", [](Case& c) { c.twice = c.quick = true; });
    cases.add("1 node", [](Case& c) { size(c, 1, 3, 4), c.quick = true; });
    cases.add("2 nodes", [](Case& c) { size(c, 2, 5, 4), c.quick = true; });
    cases.add("2 nodes, k 1", [](Case& c) { size(c, 2, 3, 1); });
    cases.add("3 nodes, one row at a time", [](Case& c) { size(c, 3, 4, 2), c.panel = 1, c.quick = true; });
    cases.add("k 1", [](Case& c) { c.k = 1; });
    cases.add("k 2", [](Case& c) { c.k = 2, c.own_stream = false; });
    cases.add("k of all nodes", [](Case& c) { c.k = c.nodes; });
    cases.add("k above all nodes", [](Case& c) { c.k = c.nodes + 3; });
    cases.add("blocks of 32 rows", [](Case& c) { c.panel = 32, c.twice = true; });
    cases.add("blocks of 7 rows", [](Case& c) { size(c, 45, 5, 6), c.panel = 7, c.quick = true; });
    cases.add("no features", [](Case& c) { size(c, 9, 0, 4); });
    cases.add("1 feature", [](Case& c) { size(c, 90, 1, 20); });
    cases.add("256 nodes and features", [](Case& c) { size(c, 256, 256, 33); });
    cases.add("257 nodes, 261 features", [](Case& c) { size(c, 257, 261, 130), c.panel = 100; });
    cases.add("520 nodes", [](Case& c) { size(c, 520, 12, 60), c.twice = true; });
}

void add_parameters(Cases& cases) {
    cases.add("no positions", [](Case& c) { c.positions = false; });
    for (const double gamma : {1.0, 2.0, 7.0, 2.5, 0.5}) {
        cases.add("gamma " + text(gamma), [=](Case& c) { c.gamma = gamma; });
    }
    cases.add("gamma 2.5, no positions", [](Case& c) { c.gamma = 2.5, c.positions = false; });
    cases.add("sigma 0", [](Case& c) { c.sigma = 0.0; });
    cases.add("weights that vanish with distance", [](Case& c) {
        c.change = [](Inputs& in) {
            for (std::size_t i = 0; i < in.positions.size(); i += 6) in.positions[i] += 1e5f;
        };
    });
}

void add_ties(Cases& cases) {
    cases.add("all rows alike", [](Case& c) { c.change = repeat_rows(5, 1), c.quick = true; });
    // Nodes past 256 are a second turn of every loop over columns.
    cases.add("261 rows alike", [](Case& c) { size(c, 261, 1, 259), c.change = repeat_rows(1, 1), c.quick = true; });
    cases.add("600 rows alike, in blocks",
              [](Case& c) { size(c, 600, 1, 400), c.change = repeat_rows(1, 1), c.panel = 350; });
    cases.add("4 kinds of rows", [](Case& c) { c.change = repeat_rows(5, 4); });
    cases.add("11 kinds of rows, k 20", [](Case& c) { size(c, 120, 5, 20), c.change = repeat_rows(5, 11); });
    const auto grid = [](Inputs& in) {
        for (float& f : in.features) f = f > 0.2f ? 1.0f : f > -0.1f ? 0.0f : -1.0f;
    };
    cases.add("features -1, 0 and 1", [=](Case& c) { size(c, 110, 3, 25), c.change = grid; });
    // All magnitudes: what has equal upper bits is told apart by the lower ones.
    const auto spread = [](Products& products) {
        Random uniform;
        for (float& s : products) {
            const double exponent = std::floor(uniform() * 12.0) * -12.0, fraction = std::floor(uniform() * 40.0);
            s = static_cast<float>(std::exp2(exponent) * (1.0 + fraction * 0x1p-23));
            if (uniform() < 0.1) s = -s;
            if (uniform() < 0.1) s = 0.0f;
        }
    };
    cases.add("products of all magnitudes, ties", [=](Case& c) {
        size(c, 150, 1, 70);
        c.gamma = 1.0, c.positions = false, c.change_products = spread;
    });
    cases.add("products around the smallest normal number", [](Case& c) {
        size(c, 40, 1, 17);
        c.gamma = 1.0, c.positions = false, c.change_products = [](Products& products) {
            Random uniform;
            for (float& s : products) s = static_cast<float>(std::floor(uniform() * 5.0) - 2.0) * 1e-44f + FLT_MIN;
        };
    });
    cases.add("products above 1", [](Case& c) {
        c.change_products = [](Products& products) {
            Random uniform;
            for (float& s : products) s = static_cast<float>(1.0 + std::floor(uniform() * 4.0) * 0x1p-23);
        };
    });
}

void add_values(Cases& cases) {
    cases.add("isolated nodes", [](Case& c) {
        c.quick = true;
        c.change = [](Inputs& in) {
            std::fill_n(in.features.begin() + 3 * 5, 5, 0.0f);
            in.features[17 * 5 + 2] = kNaN;
            in.features[69 * 5] = -kInfinity;
            in.positions[2 * 40] = kNaN;
            in.positions[2 * 41 + 1] = kInfinity;
        };
    });
    cases.add("infinite position, sigma 0",
              [](Case& c) { c.sigma = 0.0, c.change = [](Inputs& in) { in.positions[2 * 41 + 1] = kInfinity; }; });
    cases.add("zero features",
              [](Case& c) { c.change = [](Inputs& in) { std::fill(in.features.begin(), in.features.end(), 0.0f); }; });
    cases.add("large and small rows", [](Case& c) {
        c.change = [](Inputs& in) {
            for (std::size_t i = 0; i < in.features.size(); ++i) in.features[i] *= i / 5 % 2 == 0 ? 1e30f : 1e-30f;
        };
    });
    cases.add("two rows that point apart", [](Case& c) {
        size(c, 2, 3, 2), c.change = [](Inputs& in) {
            for (int f = 0; f < 3; ++f) in.features[3 + f] = -in.features[f];
        };
    });
}

}  // namespace

void run_all(Runner& run) {
    Cases list;
    add_sizes(list);
    add_parameters(list);
    add_ties(list);
    add_values(list);
    list.run(run, check);
    run("limits", true, check_limits);
}

}  // namespace graph_cases

int main(int argc, char** argv) { return cases::run_program("graph_cases", argc, argv, graph_cases::run_all); }
