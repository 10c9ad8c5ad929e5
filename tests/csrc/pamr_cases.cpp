// pamr_cuda against the definition, in one program for compute-sanitizer and for the emulator's sanitizers.
//
//   pamr_cases [--small]     --small: only the cases that are quick under ThreadSanitizer
//
// One line per case, `ok` or `FAILED`; exit status 1 when one failed. What is expected is worked out here, pixel by
// pixel in float64; the transpose gives what the other direction takes. Workspaces have exactly the sizes that were
// asked for.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "cases.h"
#include "pamr/pamr.h"

namespace pamr_cases {
namespace {

using namespace cases;
using ovs::DType;
using ovs::PamrParams;

struct Case {
    std::string name;
    int64_t batch, classes, channels, height, width, num_iter;
    std::vector<int64_t> dilations;
    bool quick;

    int64_t pixels() const { return height * width; }
    std::size_t num_scores() const { return static_cast<std::size_t>(batch * classes * pixels()); }
    std::size_t num_colours() const { return static_cast<std::size_t>(batch * channels * pixels()); }
};

std::size_t at(int64_t index) { return static_cast<std::size_t>(index); }

// The definition

int64_t inside(int64_t at, int64_t extent) { return std::min(std::max<int64_t>(at, 0), extent - 1); }

// The neighbours of a pixel, 8 for each dilation.
std::vector<int64_t> neighbours(const Case& c, int64_t pixel) {
    std::vector<int64_t> found;
    const int64_t y = pixel / c.width, x = pixel % c.width;
    for (const int64_t d : c.dilations) {
        for (int64_t sy = -1; sy <= 1; ++sy) {
            for (int64_t sx = -1; sx <= 1; ++sx) {
                if (sy == 0 && sx == 0) continue;
                found.push_back(inside(y + sy * d, c.height) * c.width + inside(x + sx * d, c.width));
            }
        }
    }
    return found;
}

// Deviation of a channel over the neighbours and, once per dilation, the pixel itself.
double deviation(const Case& c, const double* plane, int64_t pixel, const std::vector<int64_t>& near) {
    std::vector<double> samples(c.dilations.size(), plane[pixel]);
    for (const int64_t q : near) samples.push_back(plane[q]);
    double mean = 0.0, sum = 0.0;
    for (const double x : samples) mean += x / static_cast<double>(samples.size());
    for (const double x : samples) sum += (x - mean) * (x - mean);
    return std::sqrt(sum / static_cast<double>(samples.size() - 1));
}

// [pixels, neighbours] for one image.
std::vector<std::vector<double>> weights_of(const Case& c, const double* image) {
    std::vector<std::vector<double>> weights(at(c.pixels()));
    for (int64_t pixel = 0; pixel < c.pixels(); ++pixel) {
        const std::vector<int64_t> near = neighbours(c, pixel);
        std::vector<double> exponent(near.size(), 0.0);
        for (int64_t k = 0; k < c.channels; ++k) {
            const double* const plane = image + k * c.pixels();
            const double scale = 1e-8 + 0.1 * deviation(c, plane, pixel, near);
            for (std::size_t i = 0; i < near.size(); ++i) {
                exponent[i] -= std::fabs(plane[pixel] - plane[near[i]]) / scale / static_cast<double>(c.channels);
            }
        }
        double sum = 0.0, best = -HUGE_VAL;
        for (const double e : exponent) best = std::fmax(best, e);
        for (double& e : exponent) sum += e = std::exp(e - best);
        for (double& e : exponent) e /= sum;
        weights[at(pixel)] = exponent;
    }
    return weights;
}

std::vector<double> define(const Case& c, const std::vector<double>& image, std::vector<double> scores, bool backward) {
    for (int64_t b = 0; b < c.batch; ++b) {
        const auto weights = weights_of(c, image.data() + b * c.channels * c.pixels());
        for (int64_t plane = b * c.classes; plane < (b + 1) * c.classes; ++plane) {
            double* const values = scores.data() + plane * c.pixels();
            for (int64_t iteration = 0; iteration < c.num_iter; ++iteration) {
                std::vector<double> next(at(c.pixels()), 0.0);
                for (int64_t pixel = 0; pixel < c.pixels(); ++pixel) {
                    const std::vector<int64_t> near = neighbours(c, pixel);
                    for (std::size_t i = 0; i < near.size(); ++i) {
                        const double weight = weights[at(pixel)][i];
                        if (backward) {
                            next[at(near[i])] += weight * values[pixel];
                        } else {
                            next[at(pixel)] += weight * values[near[i]];
                        }
                    }
                }
                std::copy(next.begin(), next.end(), values);
            }
        }
    }
    return scores;
}

// The GPU

PamrParams params_of(const Case& c, bool backward) {
    PamrParams p;
    p.dilations = c.dilations.data();
    p.batch = c.batch;
    p.num_features = c.channels;
    p.num_classes = c.classes;
    p.height = c.height;
    p.width = c.width;
    p.num_dilations = static_cast<int64_t>(c.dilations.size());
    p.num_iter = c.num_iter;
    p.backward = backward;
    return p;
}

template <class T>
double check_direction(const Case& c, bool backward, double tolerance) {
    Random random(7);
    const auto numbers = [&](std::size_t count, double low) {
        std::vector<double> values(count);
        for (double& value : values) value = static_cast<float>(low + (1.0 - low) * random());
        return values;
    };
    const std::vector<double> image = numbers(c.num_colours(), 0.0), scores = numbers(c.num_scores(), -1.0);
    const std::vector<double> want = define(c, image, scores, backward);
    constexpr DType kDType = sizeof(T) == 8 ? DType::kFloat64 : DType::kFloat32;
    const DeviceArray<T> device_image(std::vector<T>(image.begin(), image.end()));
    const DeviceArray<T> device_scores(std::vector<T>(scores.begin(), scores.end()));
    DeviceArray<T> out(c.num_scores());
    out.fill_bytes(kUntouched);
    PamrParams p = params_of(c, backward);
    p.image = device_image.data();
    p.scores = device_scores.data();
    p.out = out.data();
    const std::size_t bytes = ovs::pamr_cuda_workspace_bytes(p, kDType);
    const DeviceArray<unsigned char> workspace(bytes);
    OVS_CUDA(cudaDeviceSynchronize());
    const Stream stream;
    ovs::pamr_cuda(p, kDType, workspace.data(), bytes, 0, stream.get());
    OVS_CUDA(cudaStreamSynchronize(stream.get()));
    const std::vector<T> got = out.to_host();
    double error = 0.0, scale = 1e-300;
    for (std::size_t i = 0; i < want.size(); ++i) {
        scale = std::fmax(scale, std::fabs(want[i]));
        const double difference = std::fabs(static_cast<double>(got[i]) - want[i]);
        error = std::isfinite(difference) ? std::fmax(error, difference) : HUGE_VAL;
    }
    require(error <= tolerance * scale, std::string(backward ? "gradient" : "result") + ": " + text(error / scale));
    return error / scale;
}

// Labels of bytes or of four; pixels whose best two classes nearly tie are not asked.
template <class Label>
double check_labels(const Case& c) {
    Random random(9);
    const auto numbers = [&](std::size_t count) {
        std::vector<double> values(count);
        for (double& value : values) value = static_cast<float>(random());
        return values;
    };
    const std::vector<double> image = numbers(c.num_colours()), scores = numbers(c.num_scores());
    const std::vector<double> want = define(c, image, scores, false);
    const DeviceArray<float> device_image(std::vector<float>(image.begin(), image.end()));
    const DeviceArray<float> device_scores(std::vector<float>(scores.begin(), scores.end()));
    DeviceArray<Label> labels(at(c.batch * c.pixels()));
    labels.fill_bytes(kUntouched);
    PamrParams p = params_of(c, false);
    p.image = device_image.data();
    p.scores = device_scores.data();
    p.labels = labels.data();
    p.label_bytes = sizeof(Label);
    const std::size_t bytes = ovs::pamr_cuda_workspace_bytes(p, DType::kFloat32);
    const DeviceArray<unsigned char> workspace(bytes);
    OVS_CUDA(cudaDeviceSynchronize());
    ovs::pamr_cuda(p, DType::kFloat32, workspace.data(), bytes, 0, nullptr);
    OVS_CUDA(cudaDeviceSynchronize());
    const std::vector<Label> got = labels.to_host();
    int64_t asked = 0;
    for (int64_t pixel = 0; pixel < c.batch * c.pixels(); ++pixel) {
        const double* const values = want.data() + pixel / c.pixels() * c.classes * c.pixels() + pixel % c.pixels();
        int64_t best = 0;
        double second = -HUGE_VAL;
        for (int64_t k = 1; k < c.classes; ++k) {
            const double value = values[k * c.pixels()];
            if (value > values[best * c.pixels()]) {
                second = values[best * c.pixels()];
                best = k;
            } else {
                second = std::fmax(second, value);
            }
        }
        if (values[best * c.pixels()] - second < 1e-4) continue;
        ++asked;
        require(static_cast<int64_t>(got[at(pixel)]) == best, "label of pixel " + text(static_cast<double>(pixel)));
    }
    require(2 * asked > c.batch * c.pixels(), "most pixels tie");
    return static_cast<double>(asked);
}

std::string check(const Case& c) {
    const double single = 2e-6 * static_cast<double>(c.num_iter + 4);
    std::string line = "relative error " + text(check_direction<float>(c, false, single));
    line += ", gradient " + text(check_direction<float>(c, true, single));
    line += ", labels " + text(check_labels<uint8_t>(c) + check_labels<int32_t>(c));
    line += "; float64 " + text(check_direction<double>(c, false, 1e-12));
    return line + ", gradient " + text(check_direction<double>(c, true, 1e-12));
}

// The cases

std::vector<Case> all_cases() {
    // name, batch, classes, channels, height, width, iterations, dilations, quick
    return {
        {"one pixel", 1, 1, 3, 1, 1, 3, {8, 16}, true},
        {"two pixels", 1, 2, 3, 1, 2, 1, {1}, true},
        {"one row", 1, 3, 3, 1, 37, 4, {1, 4}, true},
        {"one column", 1, 3, 3, 29, 1, 4, {1, 4}, true},
        {"defaults", 1, 5, 3, 24, 29, 3, {8, 16}, false},
        {"one iteration", 1, 4, 3, 11, 14, 1, {2}, true},
        {"two iterations", 1, 4, 3, 11, 14, 2, {2}, false},
        {"ten iterations", 1, 2, 3, 9, 12, 10, {1, 2}, false},
        {"one channel", 1, 3, 1, 10, 13, 2, {1, 3}, false},
        {"seven channels", 1, 3, 7, 10, 13, 2, {1, 3}, false},
        {"one dilation twice", 1, 3, 3, 10, 13, 2, {3, 3}, false},
        {"unsorted dilations", 1, 3, 3, 14, 15, 2, {5, 1, 3}, false},
        {"six dilations", 1, 2, 3, 12, 19, 2, {1, 2, 4, 8, 12, 24}, false},
        {"dilation of the image less one", 1, 2, 3, 9, 7, 2, {6}, false},
        {"dilation of the image", 1, 2, 3, 7, 9, 2, {7}, false},
        {"dilation beyond the image", 1, 3, 3, 6, 7, 3, {2, 1000}, true},
        {"largest dilation", 1, 2, 3, 5, 4, 2, {(int64_t{1} << 29) - 1}, false},
        {"7 classes", 1, 7, 3, 8, 9, 2, {2}, false},
        {"8 classes", 1, 8, 3, 8, 9, 2, {2}, false},
        {"9 classes: a full group and a rest", 1, 9, 3, 8, 9, 2, {2}, true},
        {"40 classes", 1, 40, 3, 7, 6, 2, {1, 2}, false},
        {"a block of pixels", 1, 2, 3, 8, 16, 2, {3}, false},
        {"a block and one", 1, 2, 3, 3, 43, 2, {3}, false},
        {"batch", 3, 3, 3, 9, 10, 3, {1, 4}, true},
        {"64 dilations", 1, 2, 3, 5, 6, 2, std::vector<int64_t>(64, 2), false},
    };
}

// Sizes that would lead out of the buffers are refused, and nothing to do touches nothing.
std::string check_limits() {
    const Case c = {"", 1, 3, 3, 8, 9, 2, {1, 2}, false};
    const auto refuse = [&](const std::string& name, const std::function<void(PamrParams&)>& change) {
        PamrParams p = params_of(c, false);
        change(p);
        expect_refusal(name, [&] { (void)ovs::pamr_cuda_workspace_bytes(p, DType::kFloat32); });
        expect_refusal(name, [&] { ovs::pamr_cuda(p, DType::kFloat32, nullptr, 1 << 20, 0, nullptr); });
    };
    const int64_t zero = 0, huge = int64_t{1} << 29;
    refuse("a negative height", [](PamrParams& p) { p.height = -1; });
    refuse("a negative batch", [](PamrParams& p) { p.batch = -1; });
    refuse("too many columns", [](PamrParams& p) { p.width = int64_t{1} << 29; });
    refuse("no channel", [](PamrParams& p) { p.num_features = 0; });
    refuse("no iteration", [](PamrParams& p) { p.num_iter = 0; });
    refuse("no dilation", [](PamrParams& p) { p.num_dilations = 0; });
    refuse("too many dilations", [](PamrParams& p) { p.num_dilations = 65; });
    refuse("no array of dilations", [](PamrParams& p) { p.dilations = nullptr; });
    refuse("a dilation of zero", [&](PamrParams& p) { p.dilations = &zero, p.num_dilations = 1; });
    refuse("a dilation too large", [&](PamrParams& p) { p.dilations = &huge, p.num_dilations = 1; });
    PamrParams p = params_of(c, false);
    const std::size_t bytes = ovs::pamr_cuda_workspace_bytes(p, DType::kFloat32);
    const DeviceArray<unsigned char> workspace(bytes);
    expect_refusal("a workspace that is too small",
                   [&] { ovs::pamr_cuda(p, DType::kFloat32, workspace.data(), bytes - 1, 0, nullptr); });
    p.num_classes = 0;
    require(ovs::pamr_cuda_workspace_bytes(p, DType::kFloat32) == 0, "no class needs a workspace");
    ovs::pamr_cuda(p, DType::kFloat32, nullptr, 0, 0, nullptr);
    return "refusals";
}

}  // namespace

void run_all(Runner& run) {
    for (const Case& c : all_cases()) run(c.name, c.quick, [&c] { return check(c); });
    run("limits", true, check_limits);
}

}  // namespace pamr_cases

int main(int argc, char** argv) { return cases::run_program("pamr_cases", argc, argv, pamr_cases::run_all); }
