// template_entropy_cuda and fuse_experts_cuda against the definitions, in one program for compute-sanitizer and for the
// emulator's sanitizers.
//
//   templates_cases [--small]     --small: only the cases that are quick under ThreadSanitizer
//
// One line per case, `ok` or `FAILED`; exit status 1 when one failed. What is expected is worked out here in float64,
// place by place, from the products that both are given. Workspaces have exactly the sizes that were asked for.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "cases.h"
#include "templates/templates.h"

namespace templates_cases {
namespace {

using namespace cases;
using ovs::DType;
using ovs::FuseExpertsParams;
using ovs::FuseStrategy;
using ovs::kStrip;
using ovs::TemplateEntropyParams;

using Numbers = std::vector<double>;

std::size_t index(int64_t i) { return static_cast<std::size_t>(i); }

std::vector<float> random_numbers(int64_t count, double low, double high, uint64_t seed) {
    Random random(seed);
    std::vector<float> values(index(count));
    for (float& value : values) value = static_cast<float>(low + (high - low) * random());
    return values;
}

Numbers softmax(const Numbers& logits) {
    const double top = *std::max_element(logits.begin(), logits.end());
    Numbers shares(logits.size());
    double sum = 0.0;
    for (std::size_t j = 0; j < logits.size(); ++j) sum += shares[j] = std::exp(logits[j] - top);
    for (double& share : shares) share /= sum;
    return shares;
}

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

// template_entropy

struct Axis {
    int64_t windows, patches, out;
    std::vector<std::vector<std::pair<int64_t, double>>> sources;  // of every output
};

// Windows side by side along one axis without overlap, or one above the other on the same pixels.
Axis make_axis(int64_t windows, int64_t patches, int64_t out, bool overlapping) {
    Axis axis = {windows, patches, out, {}};
    for (int64_t o = 0; o < out; ++o) {
        std::vector<std::pair<int64_t, double>> list;
        for (int64_t w = 0; w < windows; ++w) {
            const int64_t begin = overlapping ? 0 : w * out / windows,
                          end = overlapping ? out : (w + 1) * out / windows;
            if (o < begin || o >= end) continue;
            const Taps t = taps(o - begin, patches, end - begin);
            const double share = overlapping ? 1.0 / static_cast<double>(windows) : 1.0;
            list.emplace_back(w * patches + t.low, share * (1.0 - t.weight));
            list.emplace_back(w * patches + t.high, share * t.weight);
        }
        axis.sources.push_back(list);
    }
    return axis;
}

struct EntropyCase {
    std::string name;
    int64_t templates, classes, patches;
    Axis rows, columns;  // no outputs: patches are counted
    bool mano = false, quick = false;
    int64_t marked = -1;     // a place without probabilities
    bool by_logits = false;  // pixels from interpolated logits
    int64_t group_size = 1;  // queries of each class but the first, which has one

    int64_t queries() const { return 1 + (classes - 1) * group_size; }
    int64_t class_of(int64_t query) const { return (query + group_size - 1) / group_size; }
    bool pixels() const { return rows.out > 0; }
    int64_t places() const { return pixels() ? rows.out * columns.out : patches; }
    int64_t kinds() const { return mano ? 5 : 2; }
};

struct Tally {
    std::vector<int64_t> counts;
    Numbers sums;
};

// The probabilities of a place, and its logits where it is a patch.
Tally expected_tally(const EntropyCase& c, const std::vector<float>& products, const std::vector<float>& scale,
                     int64_t pitch) {
    const int64_t cells = c.templates * c.classes;
    Tally tally = {std::vector<int64_t>(index(cells), 0), Numbers(index(cells * c.kinds()), 0.0)};
    for (int64_t m = 0; m < c.templates; ++m) {
        const auto logits_of = [&](int64_t patch) {
            Numbers logits(index(c.queries()));
            for (int64_t k = 0; k < c.queries(); ++k) {
                const int64_t row = m * c.queries() + k;
                logits[index(k)] =
                    static_cast<double>(products[index(row * pitch + patch)]) * static_cast<double>(scale[index(row)]);
            }
            return logits;
        };
        for (int64_t place = 0; place < c.places(); ++place) {
            if (place == c.marked) continue;
            Numbers shares(index(c.queries()), 0.0), logits;
            if (!c.pixels()) {
                logits = logits_of(place);
                shares = softmax(logits);
            } else {
                for (const auto& [r, down] : c.rows.sources[index(place / c.columns.out)]) {
                    for (const auto& [s, across] : c.columns.sources[index(place % c.columns.out)]) {
                        const int64_t window = r / c.rows.patches * c.columns.windows + s / c.columns.patches;
                        const int64_t patch =
                            (window * c.rows.patches + r % c.rows.patches) * c.columns.patches + s % c.columns.patches;
                        const Numbers more = c.by_logits ? logits_of(patch) : softmax(logits_of(patch));
                        for (std::size_t k = 0; k < shares.size(); ++k) shares[k] += down * across * more[k];
                    }
                }
                if (c.by_logits) shares = softmax(shares);
            }
            if (c.group_size > 1) {
                Numbers of_classes(index(c.classes), 0.0);
                for (int64_t q = 0; q < c.queries(); ++q) {
                    of_classes[index(c.class_of(q))] = std::max(of_classes[index(c.class_of(q))], shares[index(q)]);
                }
                shares = of_classes;
            }
            const auto best = std::max_element(shares.begin(), shares.end());
            const int64_t at = m * c.classes + (best - shares.begin());
            Numbers terms = {0.0, *best};
            for (const double share : shares) terms[0] -= share > 0.0 ? share * std::log(share) : 0.0;
            if (c.mano) {
                double power = 0.0, taylor = 0.0, taylor_power = 0.0, divergence = 0.0;
                for (std::size_t k = 0; k < shares.size(); ++k) {
                    const double v = 1.0 + logits[k] + 0.5 * logits[k] * logits[k];
                    power += std::pow(shares[k], 4);
                    taylor += v;
                    taylor_power += std::pow(v, 4);
                    divergence -= std::log(shares[k]) / static_cast<double>(c.classes);
                }
                for (const double term : {power, taylor_power / std::pow(taylor, 4), divergence}) terms.push_back(term);
            }
            tally.counts[index(at)] += 1;
            for (std::size_t kind = 0; kind < terms.size(); ++kind) {
                tally.sums[kind * index(cells) + index(at)] += terms[kind];
            }
        }
    }
    return tally;
}

std::string check_entropy(const EntropyCase& c) {
    const int64_t pitch = (c.patches + kStrip - 1) / kStrip * kStrip, cells = c.templates * c.classes;
    const std::vector<float> products = random_numbers(c.templates * c.queries() * pitch, -1.0, 1.0, 3);
    const std::vector<float> scale = random_numbers(c.templates * c.queries(), 4.0, 6.0, 4);
    std::vector<int32_t> group_first(index(c.classes + 1)), group_of(index(c.queries()));
    for (int64_t k = 0; k <= c.classes; ++k) {
        group_first[index(k)] = static_cast<int32_t>(k == 0 ? 0 : 1 + (k - 1) * c.group_size);
    }
    for (int64_t q = 0; q < c.queries(); ++q) group_of[index(q)] = static_cast<int32_t>(c.class_of(q));
    std::vector<uint8_t> unknown(index(c.places()), 0);
    if (c.marked >= 0) unknown[index(c.marked)] = 1;
    std::vector<int32_t> order, row_first = {0}, row_source, strip_first = {0}, strip_source;
    std::vector<float> row_weight, strip_weight;
    for (int64_t w = 0; w < c.rows.windows * c.columns.windows; ++w) order.push_back(static_cast<int32_t>(w));
    for (const auto& list : c.rows.sources) {
        for (const auto& [source, weight] : list) {
            row_source.push_back(static_cast<int32_t>(source));
            row_weight.push_back(static_cast<float>(weight));
        }
        row_first.push_back(static_cast<int32_t>(row_source.size()));
    }
    for (int64_t x0 = 0; x0 < c.columns.out; x0 += kStrip) {
        for (int64_t source = 0; source < c.columns.windows * c.columns.patches; ++source) {
            std::vector<float> weights(kStrip, 0.0f);
            bool used = false;
            for (int64_t x = x0; x < std::min<int64_t>(x0 + kStrip, c.columns.out); ++x) {
                for (const auto& [other, weight] : c.columns.sources[index(x)]) {
                    used = used || other == source;
                    if (other == source) weights[index(x - x0)] += static_cast<float>(weight);
                }
            }
            if (!used) continue;
            strip_source.push_back(static_cast<int32_t>(source));
            strip_weight.insert(strip_weight.end(), weights.begin(), weights.end());
        }
        strip_first.push_back(static_cast<int32_t>(strip_source.size()));
    }
    const DeviceArray<float> d_products(products), d_scale(scale), d_row_weight(row_weight),
        d_strip_weight(strip_weight);
    const DeviceArray<uint8_t> d_unknown(unknown);
    const DeviceArray<int32_t> d_order(order), d_row_first(row_first), d_row_source(row_source),
        d_strip_first(strip_first), d_strip_source(strip_source), d_group_first(group_first), d_group_of(group_of);
    const DeviceArray<int64_t> counts(std::vector<int64_t>(index(cells), 5));  // added to
    const DeviceArray<int64_t> sums(std::vector<int64_t>(index(cells * c.kinds()), 7));
    TemplateEntropyParams p;
    p.logits = d_products.data();
    p.row_scale = d_scale.data();
    p.unknown = d_unknown.data();
    p.counts = counts.data();
    p.sums = sums.data();
    p.sum_stride = cells;
    p.num_templates = c.templates;
    p.num_classes = c.classes;
    p.num_queries = c.queries();
    if (c.group_size > 1) {
        p.group_first = d_group_first.data();
        p.group_of = d_group_of.data();
    }
    p.num_patches = c.patches;
    p.pitch = pitch;
    p.mano = c.mano;
    p.interpolate_logits = c.by_logits;
    p.out_height = c.rows.out;
    p.out_width = c.columns.out;
    p.grid_height = c.rows.patches;
    p.grid_width = c.columns.patches;
    p.window_rows = c.rows.windows;
    p.window_columns = c.columns.windows;
    p.window_order = d_order.data();
    p.row_first = d_row_first.data();
    p.row_source = d_row_source.data();
    p.row_weight = d_row_weight.data();
    p.strip_first = d_strip_first.data();
    p.strip_source = d_strip_source.data();
    p.strip_weight = d_strip_weight.data();
    const std::size_t bytes = ovs::template_entropy_cuda_workspace_bytes(p);
    const DeviceArray<unsigned char> workspace(bytes);
    OVS_CUDA(cudaDeviceSynchronize());
    const Stream stream;
    ovs::template_entropy_cuda(p, workspace.data(), bytes, 0, stream.get());
    OVS_CUDA(cudaStreamSynchronize(stream.get()));
    const Tally want = expected_tally(c, products, scale, pitch);
    const std::vector<int64_t> got_counts = counts.to_host(), got_sums = sums.to_host();
    for (std::size_t i = 0; i < want.counts.size(); ++i) require(got_counts[i] == want.counts[i] + 5, "counts differ");
    double worst = 0.0;
    for (std::size_t i = 0; i < want.sums.size(); ++i) {
        const double places = static_cast<double>(std::max<int64_t>(want.counts[i % want.counts.size()], 1));
        const double difference = static_cast<double>(got_sums[i] - 7) / 4294967296.0 - want.sums[i];
        worst = std::max(worst, std::fabs(difference) / places);
    }
    require(worst <= 1e-5, "a mean is off by " + text(worst));
    return "means within " + text(worst);
}

std::vector<EntropyCase> entropy_cases() {
    const Axis none = {0, 0, 0, {}};
    std::vector<EntropyCase> list = {
        {"patches: one", 1, 1, 1, none, none, false, true},
        {"patches: 7 classes", 2, 7, 37, none, none, false, true},
        {"patches: more than a block", 2, 5, 300, none, none},
        {"patches: 19 classes, one marked", 3, 19, 70, none, none, false, false, 12},
        {"patches: MaNo", 2, 6, 45, none, none, true, true},
        {"patches: a tally in global memory", 1, 2100, 9, none, none},
        {"patches: MaNo, a tally in global memory", 1, 1100, 5, none, none, true},
    };
    const auto add = [&](const char* name, int64_t templates, int64_t classes, const Axis& rows, const Axis& columns,
                         bool quick = false, int64_t marked = -1, bool by_logits = false, int64_t group_size = 1) {
        const int64_t patches = rows.windows * rows.patches * columns.windows * columns.patches;
        list.push_back({name, templates, classes, patches, rows, columns, false, quick, marked, by_logits, group_size});
    };
    add("pixels: one", 1, 3, make_axis(1, 2, 1, true), make_axis(1, 3, 1, true), true);
    add("pixels: one window", 2, 9, make_axis(1, 3, 17, true), make_axis(1, 4, 21, true), true);
    add("pixels: one marked", 1, 4, make_axis(1, 3, 9, true), make_axis(1, 2, 18, true), false, 40);
    add("pixels: windows side by side", 1, 5, make_axis(2, 2, 18, false), make_axis(3, 2, 33, false));
    add("pixels: windows on each other", 2, 8, make_axis(2, 3, 19, true), make_axis(2, 2, 40, true));
    add("pixels: a tally in global memory", 1, 2100, make_axis(1, 1, 2, true), make_axis(1, 2, 5, true));
    add("pixels: groups", 2, 5, make_axis(1, 3, 17, true), make_axis(2, 2, 21, false), true, -1, false, 3);
    add("pixels of logits: one", 1, 3, make_axis(1, 2, 1, true), make_axis(1, 3, 1, true), false, -1, true);
    add("pixels of logits: windows on each other", 2, 9, make_axis(2, 3, 19, true), make_axis(2, 2, 40, true), true, 7,
        true);
    add("pixels of logits: groups", 2, 7, make_axis(1, 3, 17, true), make_axis(1, 4, 35, true), true, -1, true, 2);
    add("pixels of logits: one class of one query, one of nine", 1, 2, make_axis(1, 2, 9, true),
        make_axis(1, 3, 18, true), false, -1, true, 9);
    list.push_back({"patches: groups", 2, 6, 45, none, none, false, true, 3, false, 4});
    return list;
}

// fuse_experts

struct FuseCase {
    std::string name;
    int64_t grid_height, grid_width, height, width, classes;
    FuseStrategy strategy;
    bool quick = false;
    int64_t marked = -1;  // a patch without features
};

struct Fused {
    Numbers shares;  // [K, height, width]
    std::vector<int32_t> winners;
};

Fused expected_fusion(const FuseCase& c, const std::vector<float>& products, double scale) {
    const int64_t K = c.classes, patches = c.grid_height * c.grid_width;
    std::vector<Numbers> shares(index(patches * (K + 1)));
    for (int64_t row = 0; row < patches * (K + 1); ++row) {
        Numbers logits(index(K), 0.0);
        for (int64_t j = 0; j < K && row / (K + 1) != c.marked; ++j) {
            logits[index(j)] = scale * static_cast<double>(products[index(row * K + j)]);
        }
        shares[index(row)] = softmax(logits);
    }
    Fused fused = {Numbers(index(K * c.height * c.width)), std::vector<int32_t>(index(c.height * c.width))};
    for (int64_t y = 0; y < c.height; ++y) {
        for (int64_t x = 0; x < c.width; ++x) {
            const Taps down = taps(y, c.grid_height, c.height), across = taps(x, c.grid_width, c.width);
            const int64_t at[4] = {down.low * c.grid_width + across.low, down.low * c.grid_width + across.high,
                                   down.high * c.grid_width + across.low, down.high * c.grid_width + across.high};
            const double weight[4] = {(1 - down.weight) * (1 - across.weight), (1 - down.weight) * across.weight,
                                      down.weight * (1 - across.weight), down.weight * across.weight};
            bool unknown = false;
            std::vector<Numbers> here(index(K + 1), Numbers(index(K), 0.0));
            for (int i = 0; i < 4; ++i) {
                unknown = unknown || at[i] == c.marked;
                for (int64_t e = 0; e <= K; ++e) {
                    for (int64_t j = 0; j < K; ++j) {
                        here[index(e)][index(j)] += weight[i] * shares[index(at[i] * (K + 1) + e)][index(j)];
                    }
                }
            }
            std::vector<int64_t> voters;
            int64_t winner = K;
            for (int64_t e = 0; e < K && !unknown; ++e) {
                const Numbers& mine = here[index(e)];
                const bool votes = std::max_element(mine.begin(), mine.end()) - mine.begin() == e;
                if (votes) voters.push_back(e);
                if (votes && (winner == K || mine[index(e)] > here[index(winner)][index(winner)])) winner = e;
            }
            if (c.strategy == FuseStrategy::kDefaultOnConflict && voters.size() != 1) winner = K;
            std::vector<int64_t> members = {winner};
            if (c.strategy == FuseStrategy::kAverageConflicting && !voters.empty()) members = voters;
            if (c.strategy == FuseStrategy::kAverage && !unknown) {
                members.clear();
                for (int64_t e = 0; e < K; ++e) members.push_back(e);
            }
            fused.winners[index(y * c.width + x)] = static_cast<int32_t>(winner);
            for (int64_t j = 0; j < K; ++j) {
                double sum = 0.0;
                for (const int64_t e : members) sum += here[index(e)][index(j)];
                fused.shares[index((j * c.height + y) * c.width + x)] = sum / static_cast<double>(members.size());
            }
        }
    }
    return fused;
}

std::string check_fusion(const FuseCase& c) {
    const int64_t patches = c.grid_height * c.grid_width, pixels = c.height * c.width;
    const std::vector<float> products = random_numbers(patches * (c.classes + 1) * c.classes, -1.0, 1.0, 11);
    const double scale = 3.0;
    std::vector<uint8_t> unknown(index(patches), 0);
    if (c.marked >= 0) unknown[index(c.marked)] = 1;
    const Fused want = expected_fusion(c, products, scale);
    const bool has_winner = c.strategy == FuseStrategy::kHighest || c.strategy == FuseStrategy::kDefaultOnConflict;

    const DeviceArray<uint8_t> d_unknown(unknown);
    const std::vector<float> shares = random_numbers(pixels, 0.25, 1.0, 12);
    const DeviceArray<float> d_shares(shares), sum(std::vector<float>(index(c.classes * pixels), 2.0f));
    DeviceArray<float> out(index(c.classes * pixels));
    DeviceArray<int32_t> winners(index(pixels)), wide_labels(index(pixels));
    out.fill_bytes(kUntouched);
    winners.fill_bytes(kUntouched);
    FuseExpertsParams p;
    p.unknown = d_unknown.data();
    p.class_stride = pixels;
    p.row_stride = c.width;
    p.grid_height = c.grid_height;
    p.grid_width = c.grid_width;
    p.height = c.height;
    p.width = c.width;
    p.num_classes = c.classes;
    p.scale = scale;
    p.strategy = c.strategy;
    const Stream stream;
    const auto run = [&] {
        const DeviceArray<float> d_products(products);
        p.products = d_products.data();
        const std::size_t bytes = ovs::fuse_experts_cuda_workspace_bytes(p);
        const DeviceArray<unsigned char> workspace(bytes);
        OVS_CUDA(cudaDeviceSynchronize());
        ovs::fuse_experts_cuda(p, workspace.data(), bytes, 0, stream.get());
        OVS_CUDA(cudaStreamSynchronize(stream.get()));
    };
    p.out = out.data();
    p.winners = has_winner ? winners.data() : nullptr;
    run();
    p.winners = nullptr;
    p.out = sum.data();
    p.weights = d_shares.data();
    run();
    p.out = nullptr;
    p.weights = nullptr;
    p.labels = wide_labels.data();  // bytes, unless there are more than 255 classes
    run();

    const std::vector<float> got = out.to_host(), added = sum.to_host();
    const std::vector<int32_t> got_winners = winners.to_host(), words = wide_labels.to_host();
    double worst = 0.0;
    for (int64_t i = 0; i < pixels; ++i) {
        if (has_winner) require(got_winners[index(i)] == want.winners[index(i)], "winners differ");
        int64_t best = 0;
        for (int64_t j = 0; j < c.classes; ++j) {
            const std::size_t at = index(j * pixels + i);
            const double twice = 2.0 + want.shares[at] * static_cast<double>(shares[index(i)]);
            worst = std::max({worst, std::fabs(static_cast<double>(got[at]) - want.shares[at]),
                              std::fabs(static_cast<double>(added[at]) - twice)});
            if (want.shares[at] > want.shares[index(best * pixels + i)]) best = j;
        }
        const int64_t label = c.classes > 255 ? words[index(i)] : reinterpret_cast<const uint8_t*>(words.data())[i];
        require(label == best, "labels differ");
    }
    require(worst <= 1e-5, "a probability is off by " + text(worst));
    return "probabilities within " + text(worst);
}

std::vector<FuseCase> fuse_cases() {
    return {
        {"fusion: one class", 2, 2, 5, 7, 1, FuseStrategy::kHighest, true},
        {"fusion: two classes", 3, 3, 12, 12, 2, FuseStrategy::kHighest, true},
        {"fusion: highest", 4, 5, 19, 33, 7, FuseStrategy::kHighest},
        {"fusion: default on conflict", 4, 5, 19, 33, 6, FuseStrategy::kDefaultOnConflict},
        {"fusion: average of those in conflict", 4, 5, 19, 33, 6, FuseStrategy::kAverageConflicting},
        {"fusion: average", 4, 5, 19, 33, 5, FuseStrategy::kAverage},
        {"fusion: more than 32 classes", 2, 3, 9, 35, 34, FuseStrategy::kAverageConflicting},
        {"fusion: a patch without features", 3, 4, 13, 18, 5, FuseStrategy::kHighest, true, 5},
        {"fusion: average, a patch without features", 3, 4, 13, 18, 4, FuseStrategy::kAverage, false, 5},
        {"fusion: conflicts, a patch without features", 3, 4, 13, 18, 4, FuseStrategy::kAverageConflicting, false, 0},
        {"fusion: one patch", 1, 1, 4, 34, 4, FuseStrategy::kHighest},
        {"fusion: one row of patches", 1, 6, 1, 50, 5, FuseStrategy::kHighest},
        {"fusion: more patches than pixels", 7, 9, 5, 6, 4, FuseStrategy::kHighest},
        {"fusion: 257 classes", 1, 2, 2, 6, 257, FuseStrategy::kHighest},
    };
}

// Sizes that would lead out of the buffers are refused, and nothing to do touches nothing.
std::string check_limits() {
    TemplateEntropyParams e;
    e.num_templates = 1;
    e.num_classes = e.num_queries = 2;
    e.num_patches = 3;
    e.pitch = kStrip;
    const auto refuse_entropy = [&](const char* name, auto change) {
        TemplateEntropyParams p = e;
        change(p);
        expect_refusal(name, [&] { (void)ovs::template_entropy_cuda_workspace_bytes(p); });
    };
    refuse_entropy("a negative size", [](auto& p) { p.num_patches = -1; });
    refuse_entropy("a broken strip", [](auto& p) { p.pitch = kStrip + 1; });
    refuse_entropy("a pitch below the patches", [](auto& p) { p.pitch = 0; });
    refuse_entropy("too many classes", [](auto& p) { p.num_classes = p.num_queries = 32768; });
    const int32_t groups[] = {0, 0, 1};
    refuse_entropy("queries without groups", [](auto& p) { p.num_queries = 3; });
    refuse_entropy("fewer queries than classes",
                   [&](auto& p) { p.group_first = p.group_of = groups, p.num_queries = 1; });
    refuse_entropy("MaNo of groups", [&](auto& p) { p.group_first = p.group_of = groups, p.mano = true; });
    refuse_entropy("interpolated patches", [](auto& p) { p.interpolate_logits = true; });
    refuse_entropy("MaNo of pixels", [](auto& p) { p.mano = true, p.out_height = 4; });
    refuse_entropy("windows of other patches", [](auto& p) { p.out_height = 4, p.grid_height = 2; });
    expect_refusal("no mask", [&] { ovs::template_entropy_cuda(e, nullptr, 0, 0, nullptr); });
    e.num_templates = 0;
    ovs::template_entropy_cuda(e, nullptr, 0, 0, nullptr);

    FuseExpertsParams f;
    f.grid_height = f.grid_width = 2;
    f.height = f.width = 4;
    f.num_classes = 3;
    const auto refuse_fusion = [&](const char* name, auto change) {
        FuseExpertsParams p = f;
        change(p);
        expect_refusal(name, [&] { (void)ovs::fuse_experts_cuda_workspace_bytes(p); });
    };
    refuse_fusion("no patches", [](auto& p) { p.grid_width = 0; });
    refuse_fusion("a negative height", [](auto& p) { p.height = -1; });
    refuse_fusion("no classes", [](auto& p) { p.num_classes = 0; });
    refuse_fusion("more classes than 16 bits", [](auto& p) { p.num_classes = 32768; });
    refuse_fusion("a strategy of another number", [](auto& p) { p.strategy = static_cast<FuseStrategy>(4); });
    expect_refusal("no mask", [&] { ovs::fuse_experts_cuda(f, nullptr, 1 << 20, 0, nullptr); });
    const DeviceArray<uint8_t> unknown(std::vector<uint8_t>(4, 0));
    f.unknown = unknown.data();
    const std::size_t bytes = ovs::fuse_experts_cuda_workspace_bytes(f);
    const DeviceArray<unsigned char> workspace(bytes);
    expect_refusal("a workspace that is too small",
                   [&] { ovs::fuse_experts_cuda(f, workspace.data(), bytes - 1, 0, nullptr); });
    f.width = 0;
    ovs::fuse_experts_cuda(f, nullptr, 0, 0, nullptr);
    return "refusals";
}

}  // namespace

void run_all(Runner& run) {
    for (const EntropyCase& c : entropy_cases()) run(c.name, c.quick, [&c] { return check_entropy(c); });
    for (const FuseCase& c : fuse_cases()) run(c.name, c.quick, [&c] { return check_fusion(c); });
    run("limits", true, check_limits);
}

}  // namespace templates_cases

int main(int argc, char** argv) { return cases::run_program("templates_cases", argc, argv, templates_cases::run_all); }
