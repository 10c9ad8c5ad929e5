// What the kernels of the crf family see of LatticeParams, CrfParams and FilterParams: plain structs, checked.
#pragma once
#include <cstdint>

#include "common/error.h"
#include "crf/crf.h"

namespace ovs {

struct LatticeProblem {
    const double* planes;  // [F, N]
    double scales[kMaxLatticeFeatures];
    int num_features, num_axes;  // D, and how many of them are positions
    int64_t num_points, width, num_vertices;
    int32_t* vertices;
    void* weights;
    int32_t* count;
    int32_t *starts, *points;
    void* entry_weights;
    int32_t* neighbours;
    bool single;  // weights are float32
};

struct CrfProblem {
    const void* scores;  // mean field [C, N], filter: values [N, C]
    void *out, *labels;
    const CrfTerm* terms;
    int num_terms;
    int64_t num_classes, num_points, height, width, iterations;
    int label_bytes;
    bool energies, transpose;
    double clip;
    Normalization normalization;
};

namespace {  // internal linkage: each instruction-set level keeps its own copy

[[maybe_unused]] LatticeProblem problem_of(const LatticeParams& params, DType dtype) {
    const int64_t features = static_cast<int64_t>(params.scales.size());
    OVS_REQUIRE(features >= 1 && features <= kMaxLatticeFeatures, "permutohedral_lattice: 1 to 16 features");
    OVS_REQUIRE(params.width == 0 || !params.positions || features >= 2,
                "permutohedral_lattice: a position has two features");
    OVS_REQUIRE(params.num_points >= 0 && params.num_points * (features + 1) <= INT32_MAX,
                "permutohedral_lattice: too many points");
    OVS_REQUIRE(params.num_vertices >= 0 && params.num_vertices <= params.num_points * (features + 1),
                "permutohedral_lattice: more vertices than entries");
    LatticeProblem p = {};
    p.planes = params.planes;
    for (int64_t k = 0; k < features; ++k) p.scales[k] = params.scales[static_cast<std::size_t>(k)];
    p.num_features = static_cast<int>(features);
    p.num_axes = params.width > 0 && params.positions ? 2 : 0;
    p.num_points = params.num_points;
    p.width = params.width;
    p.num_vertices = params.num_vertices;
    p.vertices = params.vertices;
    p.weights = params.weights;
    p.count = params.count;
    p.starts = params.starts;
    p.points = params.points;
    p.entry_weights = params.entry_weights;
    p.neighbours = params.neighbours;
    p.single = dtype != DType::kFloat64;
    return p;
}

[[maybe_unused]] CrfProblem problem_of(const CrfParams& params) {
    OVS_REQUIRE(params.num_classes >= 0 && params.height >= 0 && params.width >= 0 && params.iterations >= 0,
                "dense_crf: negative size");
    CrfProblem p = {};
    p.scores = params.scores;
    p.out = params.out;
    p.labels = params.labels;
    p.terms = params.terms.data();
    p.num_terms = static_cast<int>(params.terms.size());
    p.num_classes = params.num_classes;
    p.num_points = params.height * params.width;
    p.height = params.height;
    p.width = params.width;
    p.iterations = params.iterations;
    p.label_bytes = params.label_bytes;
    p.energies = params.energies;
    p.clip = params.clip;
    p.normalization = params.normalization;
    return p;
}

[[maybe_unused]] CrfProblem problem_of(const FilterParams& params) {
    OVS_REQUIRE(params.num_points >= 0 && params.num_classes >= 0, "permutohedral_filter: negative size");
    OVS_REQUIRE(params.terms.size() == 1 && !params.terms[0].exact, "permutohedral_filter: one lattice");
    CrfProblem p = {};
    p.scores = params.values;
    p.out = params.out;
    p.terms = params.terms.data();
    p.num_terms = 1;
    p.num_classes = params.num_classes;
    p.num_points = params.num_points;
    p.transpose = params.transpose;
    p.normalization = params.normalization;
    return p;
}

}  // namespace
}  // namespace ovs
