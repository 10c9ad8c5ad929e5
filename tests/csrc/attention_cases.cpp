// attention_mean_cuda against the definition, in one program for compute-sanitizer and for the emulator's sanitizers.
//
//   attention_cases [--small]     --small: only the cases that are quick under ThreadSanitizer
//
// One line per case, `ok` or `FAILED`; exit status 1 when one failed. What is expected is worked out here, entry by
// entry in float64. The workspace has exactly the size that was asked for, and every output is filled with NaN before.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "attention/attention.h"
#include "cases.h"

namespace attention_cases {
namespace {

using namespace cases;
using ovs::AttentionBlock;
using ovs::AttentionParams;
using ovs::DType;

struct Heads {
    int64_t heads, features;
    double weight;  // of the block
    double spread;  // of queries and keys
};

struct Case {
    std::string name;
    int64_t num_queries, num_keys, first_key;
    std::vector<Heads> blocks;
    bool heads_inside;  // [tokens][heads][features] in memory, as a projection writes it
    bool quick;

    int64_t columns() const { return num_keys - first_key; }
};

template <class T>
struct Inputs {
    std::vector<std::vector<T>> queries, keys;

    explicit Inputs(const Case& c) {
        Random random(7);
        for (const Heads& b : c.blocks) {
            const auto numbers = [&](int64_t tokens) {
                std::vector<T> values(static_cast<std::size_t>(b.heads * tokens * b.features));
                for (T& value : values) value = static_cast<T>(b.spread * (4.0 * random() - 2.0));
                return values;
            };
            queries.push_back(numbers(c.num_queries));
            keys.push_back(numbers(c.num_keys));
        }
    }
};

int64_t head_stride(const Case& c, const Heads& b, int64_t tokens) {
    return c.heads_inside ? b.features : tokens * b.features;
}
int64_t token_stride(const Case& c, const Heads& b) { return c.heads_inside ? b.heads * b.features : b.features; }
double scale_of(const Heads& b) { return 1.0 / std::sqrt(static_cast<double>(b.features)); }

// The definition: [queries, columns]
template <class T>
std::vector<double> expected_mean(const Case& c, const Inputs<T>& in) {
    std::vector<double> mean(static_cast<std::size_t>(c.num_queries * c.columns()), 0.0);
    std::vector<double> logits(static_cast<std::size_t>(c.num_keys));
    for (int64_t i = 0; i < c.num_queries; ++i) {
        double* const row = mean.data() + i * c.columns();
        for (std::size_t b = 0; b < c.blocks.size(); ++b) {
            const Heads& block = c.blocks[b];
            for (int64_t h = 0; h < block.heads; ++h) {
                const T* q =
                    in.queries[b].data() + h * head_stride(c, block, c.num_queries) + i * token_stride(c, block);
                double largest = -HUGE_VAL, sum = 0.0;
                for (int64_t j = 0; j < c.num_keys; ++j) {
                    const T* k = in.keys[b].data() + h * head_stride(c, block, c.num_keys) + j * token_stride(c, block);
                    double product = 0.0;
                    for (int64_t f = 0; f < block.features; ++f) {
                        product += static_cast<double>(q[f]) * static_cast<double>(k[f]);
                    }
                    logits[static_cast<std::size_t>(j)] = product * scale_of(block);
                    largest = std::max(largest, logits[static_cast<std::size_t>(j)]);
                }
                for (const double logit : logits) sum += std::exp(logit - largest);
                for (int64_t j = c.first_key; j < c.num_keys; ++j) {
                    const double share = std::exp(logits[static_cast<std::size_t>(j)] - largest) / sum;
                    row[j - c.first_key] += block.weight / static_cast<double>(block.heads) * share;
                }
            }
        }
        double sum = 0.0;
        for (int64_t j = 0; j < c.columns(); ++j) sum += row[j];
        for (int64_t j = 0; j < c.columns(); ++j) row[j] /= sum;
    }
    return mean;
}

// The GPU

template <class T>
constexpr DType kDType = sizeof(T) == 8 ? DType::kFloat64 : DType::kFloat32;

template <class T>
struct Results {
    std::vector<unsigned char> mean;
    std::vector<T> column_sums, maximum;
};

template <class T>
Results<T> run_cuda(const Case& c, const Inputs<T>& in, DType mean_dtype, bool info) {
    std::vector<DeviceArray<T>*> kept;
    AttentionParams p;
    for (std::size_t b = 0; b < c.blocks.size(); ++b) {
        const Heads& block = c.blocks[b];
        kept.push_back(new DeviceArray<T>(in.queries[b]));
        const T* const queries = kept.back()->data();
        kept.push_back(new DeviceArray<T>(in.keys[b]));
        p.blocks[b] = {queries,
                       kept.back()->data(),
                       head_stride(c, block, c.num_queries),
                       token_stride(c, block),
                       head_stride(c, block, c.num_keys),
                       token_stride(c, block),
                       block.heads,
                       block.features,
                       scale_of(block),
                       block.weight / static_cast<double>(block.heads)};
    }
    const auto count = static_cast<std::size_t>(c.num_queries * c.columns());
    DeviceArray<unsigned char> mean(count * ovs::dtype_bytes(mean_dtype));
    DeviceArray<T> column_sums(static_cast<std::size_t>(c.columns())), maximum(1);
    mean.fill_bytes(kUntouched);
    column_sums.fill_bytes(kUntouched);
    maximum.fill_bytes(kUntouched);
    p.num_blocks = static_cast<int64_t>(c.blocks.size());
    p.num_queries = c.num_queries;
    p.num_keys = c.num_keys;
    p.first_key = c.first_key;
    p.mean = mean.data();
    p.mean_dtype = mean_dtype;
    p.column_sums = info ? column_sums.data() : nullptr;
    p.maximum = info ? maximum.data() : nullptr;
    const std::size_t bytes = ovs::attention_mean_cuda_workspace_bytes(p, kDType<T>);
    const DeviceArray<unsigned char> workspace(bytes);
    OVS_CUDA(cudaDeviceSynchronize());
    const Stream stream;
    ovs::attention_mean_cuda(p, kDType<T>, workspace.data(), bytes, 0, stream.get());
    OVS_CUDA(cudaStreamSynchronize(stream.get()));
    Results<T> results = {mean.to_host(), column_sums.to_host(), maximum.to_host()};
    for (DeviceArray<T>* array : kept) delete array;
    return results;
}

template <class T>
std::vector<T> as_numbers(const std::vector<unsigned char>& bytes) {
    std::vector<T> numbers(bytes.size() / sizeof(T));
    if (!bytes.empty()) std::memcpy(numbers.data(), bytes.data(), bytes.size());
    return numbers;
}

template <class T>
double largest_error(const std::vector<T>& got, const std::vector<double>& want, double tolerance, const char* what) {
    require(got.size() == want.size(), std::string(what) + ": size");
    double error = 0.0, scale = 1e-300;
    for (std::size_t i = 0; i < want.size(); ++i) {
        scale = std::max(scale, std::fabs(want[i]));
        const double difference = std::fabs(static_cast<double>(got[i]) - want[i]);
        error = std::isfinite(difference) ? std::max(error, difference) : HUGE_VAL;
    }
    require(error <= tolerance * scale, std::string(what) + ": relative error " + text(error / scale));
    return error / scale;
}

template <class T>
double check_dtype(const Case& c, double tolerance) {
    const Inputs<T> in(c);
    const std::vector<double> mean = expected_mean(c, in);
    std::vector<double> sums(static_cast<std::size_t>(c.columns()), 0.0);
    for (std::size_t i = 0; i < mean.size(); ++i) sums[i % sums.size()] += mean[i];
    const double most = mean.empty() ? 0.0 : *std::max_element(mean.begin(), mean.end());
    const Results<T> got = run_cuda(c, in, kDType<T>, true);
    const double error = largest_error(as_numbers<T>(got.mean), mean, tolerance, "mean");
    largest_error(got.column_sums, sums, tolerance, "column sums");
    largest_error(got.maximum, {most}, tolerance, "maximum");
    require(run_cuda(c, in, kDType<T>, false).mean == got.mean, "the info changes the matrix");
    return error;
}

// Half types against the matrix in float32, number by number.
double value_of_half(uint16_t bits) {
    const int exponent = bits >> 10, mantissa = bits & 1023;
    if (exponent == 31) return std::numeric_limits<double>::quiet_NaN();
    return exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
}
double value_of_bfloat(uint16_t bits) {
    const uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float value;
    std::memcpy(&value, &wide, sizeof(value));
    return value;
}

void check_half(const Case& c, DType dtype, double (*value_of)(uint16_t), double unit, double smallest) {
    const Inputs<float> in(c);
    const std::vector<float> single = as_numbers<float>(run_cuda(c, in, DType::kFloat32, false).mean);
    const std::vector<uint16_t> half = as_numbers<uint16_t>(run_cuda(c, in, dtype, false).mean);
    for (std::size_t i = 0; i < single.size(); ++i) {
        const double value = single[i], difference = std::fabs(value_of(half[i]) - value);
        require(difference <= 0.5 * std::max(unit * value, smallest), "entry " + std::to_string(i) + " of a half type");
    }
}

std::string check(const Case& c) {
    const double single = check_dtype<float>(c, 1e-5);
    const double twice = check_dtype<double>(c, 1e-13);
    check_half(c, DType::kFloat16, value_of_half, 0x1p-10, 0x1p-24);
    check_half(c, DType::kBFloat16, value_of_bfloat, 0x1p-7, 0.0);
    return "relative error " + text(single) + "; float64 " + text(twice);
}

// The cases

std::vector<Case> all_cases() {
    std::vector<Case> list;
    const auto add = [&](const char* name, int64_t queries, int64_t keys, int64_t first_key, std::vector<Heads> blocks,
                         bool quick = false, bool heads_inside = false) {
        list.push_back({name, queries, keys, first_key, std::move(blocks), heads_inside, quick});
    };
    add("one token", 1, 1, 0, {{1, 1, 1.0, 1.0}}, true);
    add("one key", 5, 1, 0, {{2, 3, 1.0, 1.0}}, true);
    add("one feature", 7, 9, 0, {{2, 1, 1.0, 1.0}}, true);
    add("one feature more than a chunk", 9, 11, 0, {{2, 17, 1.0, 1.0}}, true);
    add("a tile", 64, 128, 0, {{2, 16, 1.0, 1.0}});
    add("one more than a tile", 65, 129, 0, {{1, 5, 1.0, 1.0}}, true);
    add("one less than a tile", 63, 127, 0, {{3, 5, 1.0, 1.0}});
    add("rows of tiles", 150, 260, 0, {{2, 6, 1.0, 1.0}});
    add("two blocks", 70, 70, 0, {{2, 8, 0.25, 1.0}, {3, 5, 0.75, 1.0}}, true);
    add("five blocks", 20, 33, 0, {{1, 1, 0.2, 1}, {2, 2, 0.2, 1}, {1, 3, 0.2, 1}, {1, 4, 0.2, 1}, {1, 40, 0.2, 1}});
    add("a token dropped", 40, 41, 1, {{2, 6, 1.0, 1.0}}, true);
    add("half of the tokens dropped", 70, 260, 130, {{2, 6, 1.0, 1.0}});
    add("all but one dropped", 9, 131, 130, {{2, 6, 1.0, 1.0}});
    add("heads inside", 50, 60, 3, {{3, 8, 0.5, 1.0}, {2, 5, 0.5, 1.0}}, true, true);
    add("small logits", 33, 47, 0, {{2, 8, 1.0, 1e-3}});
    add("sharp", 40, 140, 0, {{2, 8, 1.0, 2.5}}, true);
    add("the size of a Stable Diffusion head", 70, 70, 0, {{5, 64, 0.5, 1.0}, {5, 64, 0.5, 1.0}});
    add("more queries than keys", 130, 9, 2, {{2, 6, 1.0, 1.0}}, true);
    add("no query", 0, 20, 3, {{2, 4, 1.0, 1.0}}, true);
    return list;
}

// Logits that no exponential holds, and numbers that are not finite. One feature: logit = query * key.
std::string check_extremes() {
    constexpr double kInf = HUGE_VAL;
    const double nan = std::numeric_limits<double>::quiet_NaN();
    const Case c = {"", 9, 4, 0, {{1, 1, 1.0, 1.0}}, false, false};
    Inputs<float> in(c);
    const std::vector<double> queries = {1e30, -1e30, 1e4, -1e4, 300.0, 0.0, nan, kInf, -kInf};
    const std::vector<double> keys = {0.5, 1.0, 0.0, -1.0};
    std::copy(queries.begin(), queries.end(), in.queries[0].begin());
    std::copy(keys.begin(), keys.end(), in.keys[0].begin());
    const Results<float> got = run_cuda(c, in, DType::kFloat32, true);
    const std::vector<float> mean = as_numbers<float>(got.mean);
    const std::vector<std::vector<double>> want = {{0, 1, 0, 0}, {0, 0, 0, 1}, {0, 1, 0, 0},
                                                   {0, 0, 0, 1}, {0, 1, 0, 0}, {0.25, 0.25, 0.25, 0.25}};
    for (std::size_t i = 0; i < queries.size(); ++i) {
        for (std::size_t j = 0; j < keys.size(); ++j) {
            const double entry = mean[i * keys.size() + j];
            const bool right = i < want.size() ? std::fabs(entry - want[i][j]) < 1e-6 : std::isnan(entry);
            require(right, "row " + std::to_string(i) + ", column " + std::to_string(j) + ": " + text(entry));
        }
    }
    require(std::isnan(got.maximum[0]), "the maximum beside a NaN");
    for (const float sum : got.column_sums) require(std::isnan(sum), "a column sum over a NaN");

    // An infinite key: +Inf is NaN, -Inf gives nothing; the tokens before first_key may take all.
    const Case dropped = {"", 3, 3, 1, {{1, 1, 1.0, 1.0}}, false, false};
    Inputs<float> infinite(dropped);
    infinite.queries[0] = {1.0f, -1.0f, 0.5f};
    infinite.keys[0] = {0.0f, static_cast<float>(kInf), 0.0f};
    const std::vector<float> rows = as_numbers<float>(run_cuda(dropped, infinite, DType::kFloat32, true).mean);
    require(std::isnan(rows[0]) && std::isnan(rows[5]), "a logit of +Inf");
    require(rows[2] == 0.0f && rows[3] == 1.0f, "a logit of -Inf");
    infinite.keys[0] = {500.0f, 0.0f, 0.0f};
    const std::vector<float> nothing = as_numbers<float>(run_cuda(dropped, infinite, DType::kFloat32, true).mean);
    require(std::isnan(nothing[0]) && std::isnan(nothing[1]), "nothing is left for the columns");
    require(nothing[2] == 0.5f && nothing[3] == 0.5f, "a row that has something left");
    return "NaN and Inf";
}

// Sizes that would lead out of the buffers are refused.
std::string check_limits() {
    std::vector<float> numbers(64, 1.0f);
    AttentionParams good;
    good.blocks[0] = {numbers.data(), numbers.data(), 16, 4, 16, 4, 2, 4, 0.5, 0.5};
    good.num_blocks = 1;
    good.num_queries = good.num_keys = 4;
    const auto refuse = [&](const std::string& name, const std::function<void(AttentionParams&)>& change) {
        AttentionParams p = good;
        change(p);
        expect_refusal(name, [&] { (void)ovs::attention_mean_cuda_workspace_bytes(p, DType::kFloat32); });
    };
    refuse("no block", [](AttentionParams& p) { p.num_blocks = 0; });
    refuse("too many blocks", [](AttentionParams& p) { p.num_blocks = ovs::kMaxAttentionBlocks + 1; });
    refuse("no key", [](AttentionParams& p) { p.num_keys = 0; });
    refuse("a negative number of queries", [](AttentionParams& p) { p.num_queries = -1; });
    refuse("a first column beyond the keys", [](AttentionParams& p) { p.first_key = 4; });
    refuse("a negative first column", [](AttentionParams& p) { p.first_key = -1; });
    refuse("a block without heads", [](AttentionParams& p) { p.blocks[0].heads = 0; });
    refuse("a block without features", [](AttentionParams& p) { p.blocks[0].features = 0; });
    refuse("more heads than a grid has", [](AttentionParams& p) { p.blocks[0].heads = 70000; });
    refuse("float64 from float32", [](AttentionParams& p) { p.mean_dtype = DType::kFloat64; });
    refuse("column sums without maximum", [&](AttentionParams& p) { p.column_sums = numbers.data(); });
    expect_refusal("a computation in float16",
                   [&] { (void)ovs::attention_mean_cuda_workspace_bytes(good, DType::kFloat16); });
    const std::size_t bytes = ovs::attention_mean_cuda_workspace_bytes(good, DType::kFloat32);
    const DeviceArray<unsigned char> workspace(bytes);
    expect_refusal("a workspace that is too small",
                   [&] { ovs::attention_mean_cuda(good, DType::kFloat32, workspace.data(), bytes - 1, 0, nullptr); });
    return "refusals";
}

}  // namespace

void run_all(Runner& run) {
    for (const Case& c : all_cases()) run(c.name, c.quick, [&c] { return check(c); });
    run("extremes", true, check_extremes);
    run("limits", true, check_limits);
}

}  // namespace attention_cases

int main(int argc, char** argv) { return cases::run_program("attention_cases", argc, argv, attention_cases::run_all); }
