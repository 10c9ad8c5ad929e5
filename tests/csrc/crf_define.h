// The definition of the crf family for crf_cases.cpp, in float64: the lattice as loops over a map from vertices to rows
// of values, the exact Gaussian over all pairs of pixels, mean field.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "cases.h"
#include "crf/crf.h"

namespace crf_cases {

using ovs::Normalization;
using Numbers = std::vector<double>;
using Key = std::vector<int>;

inline std::size_t at(int64_t index) { return static_cast<std::size_t>(index); }

// The definition

// The vertices around a point with their weights, in the order of the remainders; none for a point that has no place.
inline std::vector<std::pair<Key, double>> simplex_of(const Numbers& features) {
    const int d = static_cast<int>(features.size());
    Numbers e(at(d + 1), 0.0);
    for (int k = 0; k < d; ++k) {
        const double length = features[at(k)] * std::sqrt(2.0 / 3.0) * (d + 1) / std::sqrt((k + 1.0) * (k + 2.0));
        for (int i = 0; i <= k; ++i) e[at(i)] += length;
        e[at(k + 1)] -= (k + 1) * length;
    }
    for (double& x : e) {
        x = std::nearbyint(x * 1048576.0) / 1048576.0;
        if (!(std::fabs(x) <= 32767.0 - 3.0 * (d + 1))) return {};
    }
    Numbers nearest(e.size());
    int excess = 0;
    for (std::size_t i = 0; i < e.size(); ++i) {
        nearest[i] = std::nearbyint(e[i] / (d + 1)) * (d + 1);
        excess += static_cast<int>(nearest[i]) / (d + 1);
    }
    const auto by_residual = [&] {
        std::vector<std::size_t> order(e.size());
        for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
        std::stable_sort(order.begin(), order.end(),
                         [&](std::size_t a, std::size_t b) { return e[a] - nearest[a] > e[b] - nearest[b]; });
        return order;
    };
    std::vector<std::size_t> order = by_residual();
    for (int k = 0; k < std::abs(excess); ++k) {
        if (excess > 0) {
            nearest[order[at(d - k)]] -= d + 1;
        } else {
            nearest[order[at(k)]] += d + 1;
        }
    }
    order = by_residual();
    std::vector<std::pair<Key, double>> found;
    for (int r = 0; r <= d; ++r) {
        Key key;
        for (const double x : nearest) key.push_back(static_cast<int>(x) + r);
        for (int k = d + 1 - r; k <= d; ++k) key[order[at(k)]] -= d + 1;
        const auto residual = [&](int rank) { return e[order[at(rank)]] - nearest[order[at(rank)]]; };
        const double share = r == 0 ? d + 1 - (residual(0) - residual(d)) : residual(d - r) - residual(d + 1 - r);
        found.emplace_back(key, share / (d + 1));
    }
    return found;
}

// rows: [N][D] features, values: [N][C].
inline std::vector<Numbers> lattice_filter(const std::vector<Numbers>& features, const std::vector<Numbers>& values,
                                           bool reverse) {
    const std::size_t columns = values[0].size();
    const int d = static_cast<int>(features[0].size());
    std::map<Key, Numbers> rows;
    for (std::size_t i = 0; i < values.size(); ++i) {
        for (const auto& [key, weight] : simplex_of(features[i])) {
            Numbers& row = rows.try_emplace(key, Numbers(columns, 0.0)).first->second;
            for (std::size_t c = 0; c < columns; ++c) row[c] += weight * values[i][c];
        }
    }
    for (int step = 0; step <= d; ++step) {
        const int axis = reverse ? d - step : step;
        std::map<Key, Numbers> blurred = rows;
        for (auto& [key, row] : blurred) {
            for (const int sign : {1, -1}) {
                Key other = key;
                for (int& x : other) x -= sign;
                other[at(axis)] += sign * (d + 1);
                const auto near = rows.find(other);
                if (near == rows.end()) continue;
                for (std::size_t c = 0; c < columns; ++c) row[c] += 0.5 * near->second[c];
            }
        }
        rows = blurred;
    }
    std::vector<Numbers> result(values.size(), Numbers(columns, 0.0));
    for (std::size_t i = 0; i < values.size(); ++i) {
        for (const auto& [key, weight] : simplex_of(features[i])) {
            for (std::size_t c = 0; c < columns; ++c) result[i][c] += weight * rows[key][c] / (1.0 + std::pow(0.5, d));
        }
    }
    return result;
}

// One term of a case: features, or the exact Gaussian; a compatibility of 0, 1 or 2 axes.
struct Term {
    bool exact = false;
    double sx = 0.0, sy = 0.0;
    bool positions = false;  // two features in front: x / sx, y / sy
    int planes = 0;          // further features
    int rank = 0;
    int num_features() const { return (positions ? 2 : 0) + planes; }
};

struct Case {
    std::string name;
    int64_t classes = 3, height = 6, width = 7, iterations = 2;
    std::vector<Term> terms;
    Normalization normalization = Normalization::kSymmetric;
    bool energies = false, labels = false, transpose = false, spare = false;
    int label_bytes = 1;
    double spread = 3.0;  // of the planes
    int64_t lost = -1;    // a point with a NaN
    bool quick = false;
    int64_t points() const { return height * width; }
};

struct Inputs {
    Numbers scores;               // [C][N]
    std::vector<Numbers> planes;  // of each term [F][N]
    std::vector<Numbers> tables;  // of each term: 1, C or C * C factors, as the kernels take them
};

inline Inputs make_inputs(const Case& c) {
    cases::Random random(11);
    Inputs in;
    for (int64_t k = 0; k < c.classes * c.points(); ++k) {
        in.scores.push_back(static_cast<float>(c.energies ? 8.0 * random() - 4.0 : random()));
    }
    for (const Term& t : c.terms) {
        Numbers planes(at(t.planes * c.points()));
        for (double& x : planes) x = c.spread * random();
        if (c.lost >= 0 && t.planes > 0) planes[at(c.lost)] = std::nan("");
        in.planes.push_back(planes);
        Numbers table(at(t.rank == 0 ? 1 : t.rank == 1 ? c.classes : c.classes * c.classes));
        for (double& x : table) x = static_cast<float>(2.0 * random());
        for (int64_t a = 0; t.rank == 2 && a < c.classes; ++a) {
            for (int64_t b = 0; b < a; ++b) table[at(a * c.classes + b)] = table[at(b * c.classes + a)];
        }
        in.tables.push_back(table);
    }
    return in;
}

inline std::vector<Numbers> features_of(const Case& c, const Term& t, const Numbers& planes) {
    std::vector<Numbers> rows(at(c.points()));
    for (int64_t i = 0; i < c.points(); ++i) {
        if (t.positions) {
            rows[at(i)] = {static_cast<double>(i % c.width) / t.sx, static_cast<double>(i / c.width) / t.sy};
        }
        for (int f = 0; f < t.planes; ++f) rows[at(i)].push_back(planes[at(f * c.points() + i)]);
    }
    return rows;
}

inline std::vector<Numbers> exact_filter(const Case& c, const Term& t, const std::vector<Numbers>& values) {
    std::vector<Numbers> result(values.size(), Numbers(values[0].size(), 0.0));
    for (int64_t i = 0; i < c.points(); ++i) {
        for (int64_t j = 0; j < c.points(); ++j) {
            const double dx = std::fabs(static_cast<double>(i % c.width - j % c.width));
            const double dy = std::fabs(static_cast<double>(i / c.width - j / c.width));
            if (dx > std::ceil(5.0 * t.sx) || dy > std::ceil(5.0 * t.sy)) continue;
            const double weight = std::exp(-0.5 * (dx * dx / t.sx / t.sx + dy * dy / t.sy / t.sy));
            for (std::size_t k = 0; k < values[0].size(); ++k) result[at(i)][k] += weight * values[at(j)][k];
        }
    }
    return result;
}

// The filter of a term between the factors of the normalisation.
inline std::vector<Numbers> normalized_filter(const Case& c, const Term& t, const Numbers& planes,
                                              std::vector<Numbers> values, bool transpose) {
    const std::vector<Numbers> features = t.exact ? std::vector<Numbers>() : features_of(c, t, planes);
    const auto filter = [&](const std::vector<Numbers>& x, bool reverse) {
        return t.exact ? exact_filter(c, t, x) : lattice_filter(features, x, reverse);
    };
    const std::vector<Numbers> ones = filter(std::vector<Numbers>(values.size(), Numbers(1, 1.0)), false);
    double before = c.normalization == Normalization::kSymmetric ? 0.5
                    : c.normalization == Normalization::kBefore  ? 1.0
                                                                 : 0.0;
    double after = c.normalization == Normalization::kSymmetric ? 0.5
                   : c.normalization == Normalization::kAfter   ? 1.0
                                                                : 0.0;
    if (transpose) std::swap(before, after);
    const auto scale = [&](std::vector<Numbers>& rows, double power) {
        for (std::size_t i = 0; i < rows.size(); ++i) {
            for (double& x : rows[i]) x *= std::pow(ones[i][0] + 1e-20, -power);
        }
    };
    scale(values, before);
    std::vector<Numbers> result = filter(values, transpose);
    scale(result, after);
    return result;
}

inline void softmax(std::vector<Numbers>& rows) {
    for (Numbers& row : rows) {
        const double top = *std::max_element(row.begin(), row.end());
        double sum = 0.0;
        for (double& x : row) sum += x = std::exp(x - top);
        for (double& x : row) x /= sum;
    }
}

// [N][C]
inline std::vector<Numbers> mean_field(const Case& c, const Inputs& in) {
    std::vector<Numbers> logits(at(c.points()), Numbers(at(c.classes)));
    for (int64_t i = 0; i < c.points(); ++i) {
        for (int64_t k = 0; k < c.classes; ++k) {
            const double score = in.scores[at(k * c.points() + i)];
            logits[at(i)][at(k)] = c.energies ? -score : std::log(std::min(std::max(score, 1e-5), 1.0));
        }
    }
    std::vector<Numbers> q = logits;
    softmax(q);
    for (int64_t step = 0; step < c.iterations; ++step) {
        std::vector<Numbers> total = logits;
        for (std::size_t m = 0; m < c.terms.size(); ++m) {
            const std::vector<Numbers> message = normalized_filter(c, c.terms[m], in.planes[m], q, false);
            const Numbers& table = in.tables[m];
            for (std::size_t i = 0; i < total.size(); ++i) {
                for (std::size_t a = 0; a < at(c.classes); ++a) {
                    if (c.terms[m].rank == 0) total[i][a] += table[0] * message[i][a];
                    if (c.terms[m].rank == 1) total[i][a] += table[a] * message[i][a];
                    for (std::size_t b = 0; c.terms[m].rank == 2 && b < at(c.classes); ++b) {
                        total[i][a] += table[a * at(c.classes) + b] * message[i][b];
                    }
                }
            }
        }
        softmax(total);
        q = total;
    }
    return q;
}

}  // namespace crf_cases
