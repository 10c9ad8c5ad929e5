// permutohedral_lattice_*, dense_crf_*, permutohedral_filter_* and the sizes of their workspaces.
#include <pybind11/stl.h>

#include <algorithm>

#include "bindings/bind.h"
#include "crf/crf.h"

namespace ovs::bindings {
namespace {

LatticeParams read_lattice(Fields& f) {
    LatticeParams p;
    p.planes = f.pointer<const double>("planes");
    p.scales = f.value<std::vector<double>>("scales");
    p.num_points = f.value<int64_t>("num_points");
    p.width = f.value<int64_t>("width");
    p.positions = f.value<bool>("positions");
    p.stage = f.enumeration<LatticeStage>("stage");
    p.num_vertices = f.value<int64_t>("num_vertices");
    p.vertices = f.pointer<int32_t>("vertices");
    p.weights = f.pointer<void>("weights");
    p.count = f.pointer<int32_t>("count");
    p.starts = f.pointer<int32_t>("starts");
    p.points = f.pointer<int32_t>("points");
    p.entry_weights = f.pointer<void>("entry_weights");
    p.neighbours = f.pointer<int32_t>("neighbours");
    return p;
}

// A term is a dict of its own: the fields of CrfTerm.
CrfTerm read_term(const py::dict& values) {
    Fields f{py::kwargs(values)};
    CrfTerm t;
    t.exact = f.value<bool>("exact");
    t.num_features = f.value<int>("num_features");
    t.num_vertices = f.value<int64_t>("num_vertices");
    t.count = f.pointer<const int32_t>("count");
    t.vertices = f.pointer<const int32_t>("vertices");
    t.weights = f.pointer<void>("weights");
    t.starts = f.pointer<const int32_t>("starts");
    t.points = f.pointer<const int32_t>("points");
    t.entry_weights = f.pointer<void>("entry_weights");
    t.neighbours = f.pointer<const int32_t>("neighbours");
    t.sx = f.value<double>("sx");
    t.sy = f.value<double>("sy");
    t.compat_rank = f.value<int>("compat_rank");
    t.compat = f.value<double>("compat");
    t.table = f.pointer<const void>("table");
    f.done();
    return t;
}

std::vector<CrfTerm> read_terms(Fields& f) {
    const auto given = f.value<std::vector<py::dict>>("terms");
    std::vector<CrfTerm> terms(given.size());
    std::transform(given.begin(), given.end(), terms.begin(), read_term);
    return terms;
}

CrfParams read_crf(Fields& f) {
    CrfParams p;
    p.scores = f.pointer<const void>("scores");
    p.out = f.pointer<void>("out");
    p.labels = f.pointer<void>("labels");
    p.terms = read_terms(f);
    p.num_classes = f.value<int64_t>("num_classes");
    p.height = f.value<int64_t>("height");
    p.width = f.value<int64_t>("width");
    p.iterations = f.value<int64_t>("iterations");
    p.label_bytes = f.value<int>("label_bytes");
    p.energies = f.value<bool>("energies");
    p.clip = f.value<double>("clip");
    p.normalization = f.enumeration<Normalization>("normalization");
    return p;
}

FilterParams read_filter(Fields& f) {
    FilterParams p;
    p.values = f.pointer<const void>("values");
    p.out = f.pointer<void>("out");
    p.terms = read_terms(f);
    p.num_points = f.value<int64_t>("num_points");
    p.num_classes = f.value<int64_t>("num_classes");
    p.transpose = f.value<bool>("transpose");
    p.normalization = f.enumeration<Normalization>("normalization");
    return p;
}

}  // namespace

void bind_crf(py::module_& m) {
    bind(m, "permutohedral_lattice_cpu", &read_lattice, &permutohedral_lattice_cpu);
    bind(m, "permutohedral_lattice_cpu_workspace_bytes", &read_lattice, &permutohedral_lattice_cpu_workspace_bytes);
    bind(m, "dense_crf_cpu", &read_crf, &dense_crf_cpu);
    bind(m, "dense_crf_cpu_workspace_bytes", &read_crf, &dense_crf_cpu_workspace_bytes);
    bind(m, "permutohedral_filter_cpu", &read_filter, &permutohedral_filter_cpu);
    bind(m, "permutohedral_filter_cpu_workspace_bytes", &read_filter, &permutohedral_filter_cpu_workspace_bytes);
#ifdef OVS_WITH_CUDA
    bind(m, "permutohedral_lattice_cuda", &read_lattice, &permutohedral_lattice_cuda);
    bind(m, "permutohedral_lattice_cuda_workspace_bytes", &read_lattice, &permutohedral_lattice_cuda_workspace_bytes);
    bind(m, "dense_crf_cuda", &read_crf, &dense_crf_cuda);
    bind(m, "dense_crf_cuda_workspace_bytes", &read_crf, &dense_crf_cuda_workspace_bytes);
    bind(m, "permutohedral_filter_cuda", &read_filter, &permutohedral_filter_cuda);
    bind(m, "permutohedral_filter_cuda_workspace_bytes", &read_filter, &permutohedral_filter_cuda_workspace_bytes);
#endif
}

}  // namespace ovs::bindings
