// adaptive_conv_cuda against the definition, in one program for compute-sanitizer and for the emulator's sanitizers.
//
//   adaptive_cases [--small]     --small: only the cases that are quick under ThreadSanitizer
//
// One line per case, `ok` or `FAILED`; exit status 1 when one failed. What is expected is worked out here, product by
// product in float64. Every array has exactly the size that the contract names.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "adaptive/adaptive.h"
#include "cases.h"

namespace adaptive_cases {
namespace {

using namespace cases;
using ovs::AdaptiveParams;
using ovs::AdaptivePass;
using ovs::DType;

struct Case {
    std::string name;
    int64_t batch, channels, height, width, rows, columns;
    bool quick = false;

    int64_t in_height() const { return height + rows - 1; }
    int64_t in_width() const { return width + columns - 1; }
    std::size_t num_input() const { return static_cast<std::size_t>(batch * channels * in_height() * in_width()); }
    std::size_t num_filters() const { return static_cast<std::size_t>(batch * height * width * rows * columns); }
    std::size_t num_out() const { return static_cast<std::size_t>(batch * channels * height * width); }
};

// Calls use(input, filter, out) with the places of the three factors of every product.
template <class Use>
void for_each_product(const Case& s, const Use& use) {
    for (int64_t b = 0; b < s.batch; ++b) {
        for (int64_t y = 0; y < s.height; ++y) {
            for (int64_t x = 0; x < s.width; ++x) {
                for (int64_t i = 0; i < s.rows; ++i) {
                    for (int64_t j = 0; j < s.columns; ++j) {
                        const int64_t filter = (((b * s.height + y) * s.width + x) * s.rows + i) * s.columns + j;
                        for (int64_t c = b * s.channels; c < (b + 1) * s.channels; ++c) {
                            use(static_cast<std::size_t>((c * s.in_height() + y + i) * s.in_width() + x + j),
                                static_cast<std::size_t>(filter),
                                static_cast<std::size_t>((c * s.height + y) * s.width + x));
                        }
                    }
                }
            }
        }
    }
}

template <class T>
struct Arrays {
    std::vector<T> input, filters, out;
};

AdaptiveParams params_of(const Case& s, AdaptivePass pass) {
    AdaptiveParams p;
    p.pass = pass;
    p.batch = s.batch;
    p.num_channels = s.channels;
    p.height = s.height;
    p.width = s.width;
    p.filter_height = s.rows;
    p.filter_width = s.columns;
    return p;
}

// The array that the pass makes.
template <class T>
std::vector<T> run_cuda(const Case& s, AdaptivePass pass, const Arrays<T>& arrays) {
    constexpr DType kDType = sizeof(T) == 8 ? DType::kFloat64 : DType::kFloat32;
    DeviceArray<T> input(arrays.input), filters(arrays.filters), out(arrays.out);
    AdaptiveParams p = params_of(s, pass);
    p.input = input.data();
    p.filters = filters.data();
    p.out = out.data();
    DeviceArray<T>& made = pass == AdaptivePass::kForward         ? out
                           : pass == AdaptivePass::kInputBackward ? input
                                                                  : filters;
    made.fill_bytes(kUntouched);
    const std::size_t bytes = ovs::adaptive_conv_cuda_workspace_bytes(p, kDType);
    const DeviceArray<unsigned char> workspace(bytes);
    OVS_CUDA(cudaDeviceSynchronize());
    const Stream stream;
    ovs::adaptive_conv_cuda(p, kDType, workspace.data(), bytes, 0, stream.get());
    OVS_CUDA(cudaStreamSynchronize(stream.get()));
    return made.to_host();
}

template <class T>
std::string largest_error(const std::vector<T>& got, const std::vector<double>& want, double tolerance,
                          const char* what) {
    double error = 0.0, scale = 1e-300;
    for (std::size_t i = 0; i < want.size(); ++i) {
        scale = std::max(scale, std::fabs(want[i]));
        const double difference = std::fabs(static_cast<double>(got[i]) - want[i]);
        error = std::isfinite(difference) ? std::max(error, difference) : HUGE_VAL;
    }
    require(error <= tolerance * scale, std::string(what) + ": relative error " + text(error / scale));
    return text(error / scale);
}

template <class T>
std::string check_dtype(const Case& s, double tolerance) {
    Random random(7);
    const auto numbers = [&](std::size_t count) {
        std::vector<T> values(count);
        for (T& value : values) value = static_cast<T>(2.0 * random() - 1.0);
        return values;
    };
    Arrays<T> a;
    a.input = numbers(s.num_input());
    a.filters = numbers(s.num_filters());
    a.out = numbers(s.num_out());
    std::vector<double> out(a.out.size(), 0.0), v_input(a.input.size(), 0.0), v_filters(a.filters.size(), 0.0);
    for_each_product(s, [&](std::size_t input, std::size_t filter, std::size_t at) {
        const double pixel = a.input[input], weight = a.filters[filter], v_out = a.out[at];
        out[at] += weight * pixel;
        v_input[input] += weight * v_out;
        v_filters[filter] += v_out * pixel;
    });
    const std::string forward = largest_error(run_cuda(s, AdaptivePass::kForward, a), out, tolerance, "result");
    const std::string input =
        largest_error(run_cuda(s, AdaptivePass::kInputBackward, a), v_input, tolerance, "gradient by input");
    const std::string filters =
        largest_error(run_cuda(s, AdaptivePass::kFiltersBackward, a), v_filters, tolerance, "gradient by filters");
    return forward + ", gradients " + input + " and " + filters;
}

std::string check(const Case& s) {
    return "relative error " + check_dtype<float>(s, 1e-6) + "; float64 " + check_dtype<double>(s, 1e-14);
}

// batch, channels, height, width, rows and columns of taps
std::vector<Case> all_cases() {
    return {
        {"one number", 1, 1, 1, 1, 1, 1, true},
        {"one pixel", 1, 3, 1, 1, 7, 7, true},
        {"one tap", 2, 5, 5, 35, 1, 1, true},
        {"7 x 7, two tiles across and three down", 1, 9, 9, 37, 7, 7},
        {"a batch", 3, 2, 5, 18, 3, 3, true},
        {"even and not square", 2, 5, 6, 33, 2, 4, true},
        {"one row of taps", 1, 3, 5, 40, 1, 7},
        {"one column of taps", 1, 3, 9, 20, 7, 1},
        {"more channels than a block takes at a time", 1, 70, 3, 9, 3, 3, true},
        {"filters too large for shared memory", 1, 3, 5, 34, 13, 17},
        {"filters of float64 too large for shared memory", 1, 2, 4, 34, 9, 11},
        {"enough tiles for one block each", 1, 2, 130, 512, 2, 3},
        {"more tiles than blocks", 16500, 1, 1, 2, 1, 2},
        {"width 31", 1, 4, 4, 31, 3, 5},
        {"width 32", 1, 4, 4, 32, 3, 5},
        {"width 33", 1, 4, 4, 33, 3, 5},
        {"a row of tiles", 1, 1, 1, 100, 7, 7},
        {"higher than wide", 2, 6, 67, 5, 5, 3, true},
        {"a filter as large as the result", 1, 2, 6, 6, 6, 6, true},
        {"as many channels as a block takes at a time", 1, 64, 3, 9, 3, 3},
    };
}

// Sizes that would lead out of the arrays are refused, and nothing to do touches nothing.
std::string check_limits() {
    const Case s = {"", 1, 2, 3, 4, 2, 2};
    const auto refuse = [&](const std::string& name, int64_t AdaptiveParams::* size, int64_t value) {
        for (const AdaptivePass pass :
             {AdaptivePass::kForward, AdaptivePass::kInputBackward, AdaptivePass::kFiltersBackward}) {
            AdaptiveParams p = params_of(s, pass);
            p.*size = value;
            expect_refusal(name, [&] { (void)ovs::adaptive_conv_cuda_workspace_bytes(p, DType::kFloat32); });
            expect_refusal(name, [&] { ovs::adaptive_conv_cuda(p, DType::kFloat32, nullptr, 0, 0, nullptr); });
        }
    };
    refuse("a negative batch", &AdaptiveParams::batch, -1);
    refuse("a negative number of channels", &AdaptiveParams::num_channels, -1);
    refuse("a negative height", &AdaptiveParams::height, -1);
    refuse("a negative width", &AdaptiveParams::width, -1);
    refuse("filters without a row", &AdaptiveParams::filter_height, 0);
    refuse("filters without a column", &AdaptiveParams::filter_width, 0);
    for (int64_t AdaptiveParams::* size :
         {&AdaptiveParams::batch, &AdaptiveParams::num_channels, &AdaptiveParams::height, &AdaptiveParams::width}) {
        AdaptiveParams p = params_of(s, AdaptivePass::kForward);
        p.*size = 0;
        ovs::adaptive_conv_cuda(p, DType::kFloat32, nullptr, 0, 0, nullptr);
    }
    return "refusals";
}

}  // namespace

void run_all(Runner& run) {
    for (const Case& s : all_cases()) run(s.name, s.quick, [&s] { return check(s); });
    run("limits", true, check_limits);
}

}  // namespace adaptive_cases

int main(int argc, char** argv) { return cases::run_program("adaptive_cases", argc, argv, adaptive_cases::run_all); }
