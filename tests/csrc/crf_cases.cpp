// permutohedral_lattice_cuda, permutohedral_filter_cuda and dense_crf_cuda against the definition, and the CPU kernels
// of filter and mean field too, in one program for compute-sanitizer and for the emulator's sanitizers.
//
//   crf_cases [--small]     --small: only the cases that are quick under ThreadSanitizer
//
// One line per case, `ok` or `FAILED`; exit status 1 when one failed. What is expected is worked out here in float64:
// the lattice as loops over a map from vertices to values. Workspaces have exactly the sizes that were asked for.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "cases.h"
#include "crf/crf.h"
#include "crf_define.h"

namespace crf_cases {
namespace {

using namespace cases;
using ovs::CrfParams;
using ovs::CrfTerm;
using ovs::DType;
using ovs::FilterParams;
using ovs::LatticeParams;
using ovs::LatticeStage;
// The kernels: on the GPU, or on the CPU over the same arrays in host memory

template <class T>
constexpr DType kDType = sizeof(T) == 8 ? DType::kFloat64 : DType::kFloat32;

#ifdef OVS_X86_LEVELS
constexpr ovs::CpuIsa kIsa = ovs::CpuIsa::kV2;
#else
constexpr ovs::CpuIsa kIsa = ovs::CpuIsa::kBaseline;
#endif
constexpr int kCpuThreads = 2;

// Memory of the device or of the host.
template <class T>
class Array {
public:
    Array(bool on_cuda, std::size_t count) : device_(on_cuda ? count : 0), host_(on_cuda ? 0 : count), cuda_(on_cuda) {
        device_.fill_bytes(kUntouched);
        if (!host_.empty()) std::memset(host_.data(), kUntouched, host_.size() * sizeof(T));
    }
    Array(bool on_cuda, const Numbers& values)
        : device_(on_cuda ? std::vector<T>(values.begin(), values.end()) : std::vector<T>()),
          host_(on_cuda ? std::vector<T>() : std::vector<T>(values.begin(), values.end())),
          cuda_(on_cuda) {}
    T* data() { return cuda_ ? device_.data() : host_.data(); }
    std::vector<T> to_host() const { return cuda_ ? device_.to_host() : host_; }

private:
    DeviceArray<T> device_;
    std::vector<T> host_;
    bool cuda_;
};

// Scratch memory of the CPU kernels.
class AlignedMemory {
public:
    explicit AlignedMemory(std::size_t bytes) : memory_(bytes + kAlignment), begin_(memory_.data()) {
        std::size_t space = memory_.size();
        std::align(kAlignment, bytes, begin_, space);
    }
    void* data() const { return begin_; }

private:
    static constexpr std::size_t kAlignment = 256;
    std::vector<unsigned char> memory_;
    void* begin_;
};

// Runs a kernel in a workspace of the size that it asks for, and waits for it.
template <class T, class Params, class Size, class Kernel, class CpuSize, class CpuKernel>
void call(bool on_cuda, const Params& p, Size size, Kernel kernel, CpuSize cpu_size, CpuKernel cpu_kernel) {
    if (!on_cuda) {
        const std::size_t bytes = cpu_size(p, kDType<T>, kCpuThreads);
        AlignedMemory workspace(bytes);
        (void)cpu_kernel(p, kDType<T>, workspace.data(), bytes, kCpuThreads, kIsa);
        return;
    }
    const std::size_t bytes = size(p, kDType<T>);
    const DeviceArray<unsigned char> workspace(bytes);
    OVS_CUDA(cudaDeviceSynchronize());
    const Stream stream;
    kernel(p, kDType<T>, workspace.data(), bytes, 0, stream.get());
    OVS_CUDA(cudaStreamSynchronize(stream.get()));
}

// A built lattice and the arrays that it lives in.
template <class T>
struct Built {
    Array<double> planes;
    Array<int32_t> vertices, count, starts, points, neighbours;
    Array<T> weights, entry_weights;
    int64_t room = 0, num_vertices = 0;
    CrfTerm term;

    // `image`: the points are known to be those of an image. `spare`: room for the most vertices, as where the host
    // does not know their number.
    Built(bool on_cuda, const Case& c, const Term& t, const Numbers& values, bool image, bool spare)
        : Built(on_cuda, c, t, values, image, spare, c.points() * (t.num_features() + 1)) {}

private:
    Built(bool on_cuda, const Case& c, const Term& t, const Numbers& values, bool image, bool spare, int64_t entries)
        : planes(on_cuda, values),
          vertices(on_cuda, at(entries)),
          count(on_cuda, 1),
          starts(on_cuda, at(entries + 1)),
          points(on_cuda, at(entries)),
          neighbours(on_cuda, at(2 * entries * (t.num_features() + 1))),
          weights(on_cuda, at(entries)),
          entry_weights(on_cuda, at(entries)) {
        LatticeParams p;
        p.planes = planes.data();
        if (t.positions) p.scales = {t.sx, t.sy};
        p.scales.resize(at(t.num_features()), 1.0);
        p.num_points = c.points();
        p.width = image ? c.width : 0;
        p.positions = t.positions;
        p.vertices = vertices.data();
        p.weights = weights.data();
        p.count = count.data();
        build(on_cuda, p, spare, entries);
        term.num_features = t.num_features();
        term.num_vertices = room;
        term.count = count.data();
        term.vertices = vertices.data();
        term.weights = weights.data();
        term.starts = starts.data();
        term.points = points.data();
        term.entry_weights = entry_weights.data();
        term.neighbours = neighbours.data();
    }

    void build(bool on_cuda, LatticeParams& p, bool spare, int64_t entries) {
        const std::size_t bytes = on_cuda ? ovs::permutohedral_lattice_cuda_workspace_bytes(p, kDType<T>)
                                          : ovs::permutohedral_lattice_cpu_workspace_bytes(p, kDType<T>, kCpuThreads);
        const Stream stream;
        const AlignedMemory memory(on_cuda ? 0 : bytes);
        const DeviceArray<unsigned char> device_memory(on_cuda ? bytes : 0);
        void* const workspace = on_cuda ? device_memory.data() : memory.data();
        OVS_CUDA(cudaDeviceSynchronize());
        const auto stage = [&](LatticeStage which) {
            p.stage = which;
            if (!on_cuda) {
                return ovs::permutohedral_lattice_cpu(p, kDType<T>, workspace, bytes, kCpuThreads, kIsa);
            }
            ovs::permutohedral_lattice_cuda(p, kDType<T>, workspace, bytes, 0, stream.get());
            OVS_CUDA(cudaStreamSynchronize(stream.get()));
            return static_cast<int64_t>(count.to_host()[0]);
        };
        num_vertices = stage(LatticeStage::kNumber);
        room = spare ? entries : num_vertices;
        p.num_vertices = room;
        p.starts = starts.data();
        p.points = points.data();
        p.entry_weights = entry_weights.data();
        p.neighbours = neighbours.data();
        (void)stage(LatticeStage::kLink);
    }
};

double compare(const std::string& name, const Numbers& want, const Numbers& got, double tolerance) {
    double error = 0.0, scale = 1e-300;
    for (std::size_t i = 0; i < want.size(); ++i) {
        scale = std::fmax(scale, std::fabs(want[i]));
        const double difference = std::fabs(got[i] - want[i]);
        error = std::isfinite(difference) ? std::fmax(error, difference) : HUGE_VAL;
    }
    require(error <= tolerance * scale, name + ": " + text(error / scale));
    return error / scale;
}

// A lattice as the definition has it: vertices numbered in the order in which the points name them.
struct Defined {
    std::vector<int32_t> vertices, starts, points, neighbours;
    Numbers weights, entry_weights;
    std::vector<Key> keys;

    Defined(const std::vector<Numbers>& features, int d) {
        std::map<Key, int32_t> numbers;
        std::vector<std::vector<std::pair<int32_t, double>>> entries;
        for (std::size_t i = 0; i < features.size(); ++i) {
            const std::vector<std::pair<Key, double>> simplex = simplex_of(features[i]);
            for (const auto& [key, weight] : simplex) {
                const int32_t number = numbers.try_emplace(key, static_cast<int32_t>(keys.size())).first->second;
                if (at(number) == keys.size()) {
                    keys.push_back(key);
                    entries.emplace_back();
                }
                vertices.push_back(number);
                weights.push_back(weight);
                entries[at(number)].emplace_back(static_cast<int32_t>(i), weight);
            }
            if (simplex.empty()) vertices.resize(vertices.size() + at(d + 1), -1);
            weights.resize(vertices.size(), 0.0);
        }
        starts.push_back(0);
        for (const auto& of_vertex : entries) {
            for (const auto& [point, weight] : of_vertex) {
                points.push_back(point);
                entry_weights.push_back(weight);
            }
            starts.push_back(static_cast<int32_t>(points.size()));
        }
        const auto count = static_cast<int32_t>(keys.size());
        std::replace(vertices.begin(), vertices.end(), -1, count);
        for (int axis = 0; axis <= d; ++axis) {
            for (const Key& key : keys) {
                for (const int sign : {1, -1}) {
                    Key other = key;
                    for (int& x : other) x -= sign;
                    other[at(axis)] += sign * (d + 1);
                    const auto found = numbers.find(other);
                    neighbours.push_back(found == numbers.end() ? count : found->second);
                }
            }
        }
    }
};

template <class T, class U>
void expect_same(const std::string& name, const std::vector<T>& want, const std::vector<U>& got) {
    require(want.size() <= got.size() && std::equal(want.begin(), want.end(), got.begin()), name + " differ");
}

// The numbers of the lattice, the same in each run, and its weights.
std::string check_lattice(const Case& c) {
    const Inputs in = make_inputs(c);
    const Term& t = c.terms[0];
    const Defined want(features_of(c, t, in.planes[0]), t.num_features());
    const Built<double> got(true, c, t, in.planes[0], true, false);
    require(got.num_vertices == static_cast<int64_t>(want.keys.size()), std::to_string(got.num_vertices) + " vertices");
    expect_same("vertices", want.vertices, got.vertices.to_host());
    expect_same("starts", want.starts, got.starts.to_host());
    expect_same("points", want.points, got.points.to_host());
    expect_same("neighbours", want.neighbours, got.neighbours.to_host());
    // Everything after the rounding of positions is exact, but for the division of a weight.
    compare("weights", want.weights, got.weights.to_host(), 1e-14);
    compare("weights of entries", want.entry_weights, got.entry_weights.to_host(), 1e-14);
    return std::to_string(want.keys.size()) + " vertices";
}

template <class T>
double run_filter(const Case& c, bool on_cuda, double tolerance) {
    const Inputs in = make_inputs(c);
    std::vector<Numbers> values(at(c.points()), Numbers(at(c.classes)));
    Numbers flat, want;
    for (int64_t i = 0; i < c.points(); ++i) {
        for (int64_t k = 0; k < c.classes; ++k) {
            flat.push_back(values[at(i)][at(k)] = in.scores[at(k * c.points() + i)]);
        }
    }
    for (const Numbers& row : normalized_filter(c, c.terms[0], in.planes[0], values, c.transpose)) {
        want.insert(want.end(), row.begin(), row.end());
    }
    const Built<T> lattice(on_cuda, c, c.terms[0], in.planes[0], false, on_cuda && c.spare);
    Array<T> device_values(on_cuda, flat), out(on_cuda, flat.size());
    FilterParams p;
    p.values = device_values.data();
    p.out = out.data();
    p.terms = {lattice.term};
    p.num_points = c.points();
    p.num_classes = c.classes;
    p.transpose = c.transpose;
    p.normalization = c.normalization;
    call<T>(on_cuda, p, ovs::permutohedral_filter_cuda_workspace_bytes, ovs::permutohedral_filter_cuda,
            ovs::permutohedral_filter_cpu_workspace_bytes, ovs::permutohedral_filter_cpu);
    const std::vector<T> got = out.to_host();
    return compare(on_cuda ? "filter" : "filter on the CPU", want, Numbers(got.begin(), got.end()), tolerance);
}

std::string check_filter(const Case& c) {
    return "relative error " + text(run_filter<float>(c, true, 1e-5)) + ", float64 " +
           text(run_filter<double>(c, true, 1e-12)) + ", CPU " + text(run_filter<float>(c, false, 1e-5));
}

template <class T>
double run_mean_field(const Case& c, bool on_cuda, double tolerance) {
    const Inputs in = make_inputs(c);
    const std::vector<Numbers> want = mean_field(c, in);
    std::deque<Built<T>> lattices;
    std::deque<Array<T>> tables;
    CrfParams p;
    for (std::size_t m = 0; m < c.terms.size(); ++m) {
        const Term& t = c.terms[m];
        CrfTerm term;
        if (t.exact) {
            term.exact = true;
            term.sx = t.sx;
            term.sy = t.sy;
        } else {
            lattices.emplace_back(on_cuda, c, t, in.planes[m], true, on_cuda && c.spare);
            term = lattices.back().term;
        }
        tables.emplace_back(on_cuda, in.tables[m]);
        term.compat_rank = t.rank;
        term.compat = in.tables[m][0];
        term.table = tables.back().data();
        p.terms.push_back(term);
    }
    Array<T> scores(on_cuda, in.scores), out(on_cuda, c.labels ? 0 : in.scores.size());
    Array<unsigned char> labels(on_cuda, c.labels ? at(c.points() * c.label_bytes) : 0);
    p.scores = scores.data();
    p.out = c.labels ? nullptr : out.data();
    p.labels = c.labels ? labels.data() : nullptr;
    p.num_classes = c.classes;
    p.height = c.height;
    p.width = c.width;
    p.iterations = c.iterations;
    p.label_bytes = c.label_bytes;
    p.energies = c.energies;
    p.normalization = c.normalization;
    call<T>(on_cuda, p, ovs::dense_crf_cuda_workspace_bytes, ovs::dense_crf_cuda, ovs::dense_crf_cpu_workspace_bytes,
            ovs::dense_crf_cpu);
    const std::string name = on_cuda ? "mean field" : "mean field on the CPU";
    if (c.labels) {
        const std::vector<unsigned char> bytes = labels.to_host();
        for (std::size_t i = 0; i < want.size(); ++i) {
            int32_t label = 0;
            std::memcpy(&label, bytes.data() + i * at(c.label_bytes), at(c.label_bytes));
            const double best = *std::max_element(want[i].begin(), want[i].end());
            require(label >= 0 && label < c.classes && want[i][at(label)] >= best - tolerance, name + ": a label");
        }
        return 0.0;
    }
    Numbers flat;
    for (int64_t k = 0; k < c.classes; ++k) {
        for (int64_t i = 0; i < c.points(); ++i) flat.push_back(want[at(i)][at(k)]);
    }
    const std::vector<T> got = out.to_host();
    return compare(name, flat, Numbers(got.begin(), got.end()), tolerance);
}

std::string check_mean_field(const Case& c) {
    return (c.labels ? "labels " : "relative error ") + text(run_mean_field<float>(c, true, 1e-5)) + ", float64 " +
           text(run_mean_field<double>(c, true, 1e-11)) + ", CPU " + text(run_mean_field<float>(c, false, 1e-5));
}

// The cases

constexpr Term kGaussian = {false, 3.0, 3.0, true, 0, 0};
constexpr Term kBilateral = {false, 20.0, 15.0, true, 3, 0};
constexpr Term kExact = {true, 1.5, 2.0, false, 0, 0};
Term own(int planes, int rank = 0) { return {false, 0.0, 0.0, false, planes, rank}; }
Term with_table(Term t, int rank) {
    t.rank = rank;
    return t;
}

void lattice_cases(Runner& run) {
    List<Case> list;
    const auto add = [&](const std::string& name, bool quick, const std::function<void(Case&)>& change) {
        Case& c = list.add(name, change);
        c.quick = quick;
    };
    add("lattice of one point", true, [](Case& c) { c.terms = {own(2)}, c.height = c.width = 1; });
    add("lattice of positions", true, [](Case& c) { c.terms = {kGaussian}; });
    add("lattice of positions, three sorts", false,
        [](Case& c) { c.terms = {kGaussian}, c.height = 150, c.width = 160; });
    add("lattice of positions and colours", true, [](Case& c) { c.terms = {kBilateral}; });
    for (const int d : {1, 2, 3, 4, 7, 8, 11, 12, 16}) {  // the ends of one, two, .. five words
        add("lattice of " + std::to_string(d) + " features", d == 4,
            [d](Case& c) { c.terms = {own(d)}, c.height = 9, c.width = 11; });
    }
    add("lattice of one place", true, [](Case& c) { c.terms = {own(2)}, c.spread = 0.0, c.height = 20, c.width = 30; });
    add("lattice without a point", true, [](Case& c) { c.terms = {own(2)}, c.lost = 5; });
    add("lattice that no point is in", false, [](Case& c) { c.terms = {own(1)}, c.lost = 0, c.height = c.width = 1; });
    list.run(run, check_lattice);
}

void filter_cases(Runner& run) {
    List<Case> list;
    for (const int64_t classes : {1, 4, 5, 37}) {
        list.add("filter of " + std::to_string(classes) + " columns", [&](Case& c) {
            c.terms = {own(3)}, c.classes = classes, c.normalization = Normalization::kNone, c.quick = classes == 5;
        });
    }
    const Normalization kinds[] = {Normalization::kNone, Normalization::kSymmetric, Normalization::kBefore,
                                   Normalization::kAfter};
    for (const Normalization kind : kinds) {
        list.add("transpose, normalization " + std::to_string(static_cast<int>(kind)), [&](Case& c) {
            c.terms = {own(2)}, c.normalization = kind, c.transpose = true;
            c.quick = kind == Normalization::kBefore;
        });
    }
    list.add("filter of one place: segments of a vertex",
             [](Case& c) { c.terms = {own(2)}, c.spread = 0.0, c.height = 20, c.width = 30, c.quick = true; });
    list.add("filter of few places",
             [](Case& c) { c.terms = {own(2)}, c.spread = 0.6, c.height = 20, c.width = 40, c.classes = 9; });
    list.add("filter with a lost point", [](Case& c) { c.terms = {own(2)}, c.lost = 3; });
    list.add("filter with room to spare", [](Case& c) { c.terms = {own(4)}, c.lost = 3, c.spare = true; });
    list.run(run, check_filter);
}

void mean_field_cases(Runner& run) {
    List<Case> list;
    const auto add = [&](const std::string& name, bool quick, const std::function<void(Case&)>& change) {
        Case& c = list.add(name, change);
        c.quick = quick;
    };
    add("no iteration", true, [](Case& c) { c.iterations = 0; });
    add("no term", false, [](Case& c) { c.iterations = 1; });
    add("both terms", true, [](Case& c) { c.terms = {kGaussian, kBilateral}; });
    add("ten iterations", false, [](Case& c) { c.terms = {kGaussian, kBilateral}, c.iterations = 10; });
    add("room to spare", false, [](Case& c) { c.terms = {kBilateral, kGaussian}, c.spare = true; });
    add("energies", false, [](Case& c) { c.terms = {kBilateral}, c.energies = true; });
    add("labels of a byte", true, [](Case& c) { c.terms = {kGaussian}, c.labels = true; });
    add("labels of four bytes", false, [](Case& c) { c.terms = {kGaussian}, c.labels = true, c.label_bytes = 4; });
    add("one class", false, [](Case& c) { c.terms = {kGaussian}, c.classes = 1; });
    for (const int64_t classes : {4, 33, 128, 129, 256, 257}) {  // 1, 2 packs of a lane, and rows in memory
        add(std::to_string(classes) + " classes", false,
            [=](Case& c) { c.terms = {kGaussian}, c.classes = classes, c.height = 3, c.width = 5; });
    }
    add("labels of 300 classes", false, [](Case& c) {
        c.terms = {kGaussian}, c.classes = 300, c.height = 3, c.width = 5, c.labels = true, c.label_bytes = 4;
    });
    add("one row", false, [](Case& c) { c.terms = {kGaussian, kBilateral}, c.height = 1, c.width = 37; });
    add("one column", false, [](Case& c) { c.terms = {kExact, kBilateral}, c.height = 29, c.width = 1; });
    add("exact", true, [](Case& c) { c.terms = {kExact}, c.height = 11, c.width = 19; });
    add("exact, wide", false,
        [](Case& c) { c.terms = {{true, 1e-3, 300.0, false, 0, 0}}, c.height = 21, c.width = 18, c.classes = 6; });
    add("exact with a vector", false, [](Case& c) { c.terms = {with_table(kExact, 1), kGaussian}; });
    add("exact with a matrix", true, [](Case& c) { c.terms = {with_table(kExact, 2)}, c.classes = 6; });
    add("lattices with tables", true,
        [](Case& c) { c.terms = {with_table(kGaussian, 1), with_table(kBilateral, 2)}, c.classes = 5; });
    add("normalization none", false,
        [](Case& c) { c.terms = {kGaussian, kExact}, c.normalization = Normalization::kNone; });
    add("normalization before", false,
        [](Case& c) { c.terms = {kBilateral, kExact}, c.normalization = Normalization::kBefore; });
    add("normalization after", false,
        [](Case& c) { c.terms = {kBilateral, kExact}, c.normalization = Normalization::kAfter; });
    add("nine terms", false, [](Case& c) {
        for (int d = 1; d <= 9; ++d) c.terms.push_back(own(d));
    });
    list.run(run, check_mean_field);
}

// Sizes that would lead out of the buffers are refused, and nothing to do touches nothing.
std::string check_limits() {
    LatticeParams lattice;
    lattice.scales = {1.0, 1.0};
    lattice.num_points = 8;
    const auto refuse = [&](const std::string& name, const std::function<void(LatticeParams&)>& change) {
        LatticeParams p = lattice;
        change(p);
        expect_refusal(name,
                       [&] { ovs::permutohedral_lattice_cuda(p, DType::kFloat32, nullptr, 1 << 20, 0, nullptr); });
    };
    refuse("no feature", [](LatticeParams& p) { p.scales.clear(); });
    refuse("17 features", [](LatticeParams& p) { p.scales.resize(17, 1.0); });
    refuse("a position of one feature", [](LatticeParams& p) { p.scales.resize(1), p.width = 2; });
    refuse("too many points", [](LatticeParams& p) { p.num_points = int64_t{1} << 30; });
    refuse("fewer than no points", [](LatticeParams& p) { p.num_points = -1; });
    refuse("more vertices than entries", [](LatticeParams& p) { p.num_vertices = 25; });
    refuse("no count", [](LatticeParams&) {});
    CrfParams crf;
    crf.num_classes = 3;
    crf.height = crf.width = 4;
    const std::size_t bytes = ovs::dense_crf_cuda_workspace_bytes(crf, DType::kFloat32);
    const DeviceArray<unsigned char> workspace(bytes);
    expect_refusal("a workspace that is too small",
                   [&] { ovs::dense_crf_cuda(crf, DType::kFloat32, workspace.data(), bytes - 1, 0, nullptr); });
    expect_refusal("a negative height", [&] {
        (void)ovs::dense_crf_cuda_workspace_bytes(changed(crf, &CrfParams::height, -1), DType::kFloat32);
    });
    CrfParams uncounted = crf;
    uncounted.terms.resize(1);
    uncounted.terms[0].num_features = 2;
    expect_refusal("a lattice without its count",
                   [&] { ovs::dense_crf_cuda(uncounted, DType::kFloat32, workspace.data(), bytes, 0, nullptr); });
    crf.num_classes = 0;
    require(ovs::dense_crf_cuda_workspace_bytes(crf, DType::kFloat32) == 0, "no class needs a workspace");
    ovs::dense_crf_cuda(crf, DType::kFloat32, nullptr, 0, 0, nullptr);
    FilterParams filter;
    filter.terms.resize(1);
    ovs::permutohedral_filter_cuda(filter, DType::kFloat32, nullptr, 0, 0, nullptr);
    filter.terms[0].exact = true;
    expect_refusal("a filter that is no lattice",
                   [&] { ovs::permutohedral_filter_cuda(filter, DType::kFloat32, nullptr, 0, 0, nullptr); });
    return "refusals";
}

}  // namespace

void run_all(Runner& run) {
    lattice_cases(run);
    filter_cases(run);
    mean_field_cases(run);
    run("limits", true, check_limits);
}

}  // namespace crf_cases

int main(int argc, char** argv) { return cases::run_program("crf_cases", argc, argv, crf_cases::run_all); }
