// joint_bilateral_upsample_cuda against the definition, in one program for compute-sanitizer and for the emulator's
// sanitizers.
//
//   upsample_cases [--small]     --small: only the cases that are quick under ThreadSanitizer
//
// One line per case, `ok` or `FAILED`; exit status 1 when one failed. What is expected is worked out here, pixel by
// pixel and node by node in float64. Workspaces have exactly the sizes that were asked for.
#include <cmath>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "cases.h"
#include "upsample/upsample.h"

namespace upsample_cases {
namespace {

using namespace cases;
using ovs::DType;
using ovs::UpsampleParams;

struct Case {
    std::string name;
    int64_t batch, classes, low_height, low_width, height, width;
    int radius;
    bool holes;  // NaN in maps and guide, with `omit`
    bool quick;

    std::size_t num_low() const { return static_cast<std::size_t>(batch * classes * low_height * low_width); }
    std::size_t num_up() const { return static_cast<std::size_t>(batch * classes * height * width); }
    std::size_t num_pixels() const { return static_cast<std::size_t>(batch * height * width); }
};

constexpr double kSigmaSpatial = 1.1, kSigmaRange = 0.25;

// The definition

std::size_t at(int64_t index) { return static_cast<std::size_t>(index); }

double position(int64_t y, int64_t nodes, int64_t pixels) {
    return (static_cast<double>(y) + 0.5) * static_cast<double>(nodes) / static_cast<double>(pixels) - 0.5;
}
// Sizes of the cases are small enough for a double to hold every half exactly up to this.
int64_t nearest(double x) { return static_cast<int64_t>(std::floor(x + 0.5 + 1e-9)); }

// Logarithms of the weights of one pixel over all nodes, -Inf for those without.
std::vector<double> exponents(const Case& c, const std::vector<double>& guide, int64_t image, int64_t y, int64_t x) {
    std::vector<double> found(at(c.low_height * c.low_width), -HUGE_VAL), spatial = found;
    const double row = position(y, c.low_height, c.height), column = position(x, c.low_width, c.width);
    const int64_t pixels = c.height * c.width;
    bool any = false;
    for (int64_t qy = 0; qy < c.low_height; ++qy) {
        for (int64_t qx = 0; qx < c.low_width; ++qx) {
            if (std::llabs(qy - nearest(row)) > c.radius || std::llabs(qx - nearest(column)) > c.radius) continue;
            const int64_t there =
                nearest(position(qy, c.height, c.low_height)) * c.width + nearest(position(qx, c.width, c.low_width));
            double squared = 0.0;
            for (int64_t channel = 0; channel < 3; ++channel) {
                const double* plane = guide.data() + (image * 3 + channel) * pixels;
                squared += (plane[y * c.width + x] - plane[there]) * (plane[y * c.width + x] - plane[there]);
            }
            const double dy = row - static_cast<double>(qy), dx = column - static_cast<double>(qx);
            const std::size_t q = at(qy * c.low_width + qx);
            spatial[q] = -(dy * dy + dx * dx) / (2 * kSigmaSpatial * kSigmaSpatial);
            if (!std::isfinite(squared)) continue;
            found[q] = spatial[q] - squared / (2 * kSigmaRange * kSigmaRange);
            any = true;
        }
    }
    return any ? found : spatial;
}

// Shares of all nodes for one class, which lacks those whose value is NaN. All zero where none is left.
std::vector<double> shares(std::vector<double> exponent, const double* values) {
    double best = -HUGE_VAL, sum = 0.0;
    for (std::size_t q = 0; q < exponent.size(); ++q) {
        if (std::isnan(values[q])) exponent[q] = -HUGE_VAL;
        best = std::fmax(best, exponent[q]);
    }
    for (double& e : exponent) {
        e = e == -HUGE_VAL ? 0.0 : std::exp(e - best);
        sum += e;
    }
    for (double& e : exponent) e = sum > 0 ? e / sum : 0.0;
    return exponent;
}

struct Expected {
    std::vector<double> up, v_maps;
    std::vector<int> labels, clear;  // clear: the best class leads by far
};

Expected define(const Case& c, const std::vector<double>& maps, const std::vector<double>& guide,
                const std::vector<double>& v_up) {
    Expected e = {std::vector<double>(c.num_up()), std::vector<double>(c.num_low(), 0.0),
                  std::vector<int>(c.num_pixels()), std::vector<int>(c.num_pixels())};
    const int64_t nodes = c.low_height * c.low_width, pixels = c.height * c.width;
    for (int64_t image = 0; image < c.batch; ++image) {
        for (int64_t pixel = 0; pixel < pixels; ++pixel) {
            const std::vector<double> exponent = exponents(c, guide, image, pixel / c.width, pixel % c.width);
            double best = -HUGE_VAL, second = -HUGE_VAL;
            for (int64_t k = 0; k < c.classes; ++k) {
                const int64_t plane = image * c.classes + k;
                const double* values = maps.data() + plane * nodes;
                const std::vector<double> share = shares(exponent, values);
                double sum = 0.0, total = 0.0;
                for (std::size_t q = 0; q < share.size(); ++q) {
                    if (share[q] > 0) sum += share[q] * values[q];
                    total += share[q];
                    e.v_maps[at(plane * nodes) + q] += share[q] * v_up[at(plane * pixels + pixel)];
                }
                if (total == 0.0) sum = std::nan("");
                e.up[at(plane * pixels + pixel)] = sum;
                if (sum > best) {
                    second = best;
                    best = sum;
                    e.labels[at(image * pixels + pixel)] = static_cast<int>(k);
                } else if (sum > second) {
                    second = sum;
                }
            }
            e.clear[at(image * pixels + pixel)] = best - second > 1e-3 || best == -HUGE_VAL;
        }
    }
    return e;
}

// The GPU

UpsampleParams params_of(const Case& c) {
    UpsampleParams p;
    p.batch = c.batch;
    p.num_classes = c.classes;
    p.low_height = c.low_height;
    p.low_width = c.low_width;
    p.height = c.height;
    p.width = c.width;
    p.sigma_spatial = kSigmaSpatial;
    p.sigma_range = kSigmaRange;
    p.radius = c.radius;
    p.omit = c.holes;
    return p;
}

template <class T>
constexpr DType kDType = sizeof(T) == 8 ? DType::kFloat64 : DType::kFloat32;

template <class T>
void run_cuda(const UpsampleParams& p) {
    const std::size_t bytes = ovs::joint_bilateral_upsample_cuda_workspace_bytes(p, kDType<T>);
    const DeviceArray<unsigned char> workspace(bytes);
    OVS_CUDA(cudaDeviceSynchronize());
    const Stream stream;
    ovs::joint_bilateral_upsample_cuda(p, kDType<T>, workspace.data(), bytes, 0, stream.get());
    OVS_CUDA(cudaStreamSynchronize(stream.get()));
}

template <class T>
double largest_error(const std::vector<T>& got, const std::vector<double>& want, double tolerance, const char* what) {
    double error = 0.0, scale = 1e-300;
    for (std::size_t i = 0; i < want.size(); ++i) {
        if (std::isnan(want[i])) {
            require(std::isnan(got[i]), std::string(what) + ": expected NaN");
            continue;
        }
        scale = std::fmax(scale, std::fabs(want[i]));
        const double difference = std::fabs(static_cast<double>(got[i]) - want[i]);
        error = std::isfinite(difference) ? std::fmax(error, difference) : HUGE_VAL;
    }
    require(error <= tolerance * scale, std::string(what) + ": relative error " + text(error / scale));
    return error / scale;
}

template <class T, class L>
void check_labels(const Case& c, UpsampleParams p, const Expected& want) {
    DeviceArray<L> labels(c.num_pixels());
    labels.fill_bytes(kUntouched);
    p.up = nullptr;
    p.labels = labels.data();
    p.label_bytes = sizeof(L);
    run_cuda<T>(p);
    const std::vector<L> got = labels.to_host();
    for (std::size_t i = 0; i < got.size(); ++i) {
        require(want.clear[i] == 0 || static_cast<int>(got[i]) == want.labels[i],
                "label of pixel " + std::to_string(i) + ": expected " + std::to_string(want.labels[i]) + ", got " +
                    std::to_string(static_cast<int>(got[i])));
    }
}

template <class T>
std::string check_dtype(const Case& c, double tolerance) {
    Random random(7);
    const auto numbers = [&](std::size_t count, double low, double high) {
        std::vector<double> values(count);
        for (double& value : values) value = static_cast<float>(low + (high - low) * random());
        return values;
    };
    std::vector<double> maps = numbers(c.num_low(), -1.0, 1.0), v_up = numbers(c.num_up(), -1.0, 1.0);
    std::vector<double> guide = numbers(3 * c.num_pixels(), 0.0, 1.0);
    if (c.holes) {
        for (double& value : maps) {
            if (random() < 0.3) value = std::nan("");
        }
        for (double& value : guide) {
            if (random() < 0.05) value = std::nan("");
        }
    }
    const Expected want = define(c, maps, guide, v_up);
    const auto on_device = [](const std::vector<double>& values) {
        return std::vector<T>(values.begin(), values.end());
    };
    const DeviceArray<T> device_maps(on_device(maps)), device_guide(on_device(guide)), device_v(on_device(v_up));
    std::vector<unsigned char> missing(maps.size());
    for (std::size_t i = 0; i < maps.size(); ++i) missing[i] = std::isnan(maps[i]);
    const DeviceArray<unsigned char> device_missing(missing);
    DeviceArray<T> up(c.num_up()), v_maps(c.num_low());
    up.fill_bytes(kUntouched);
    v_maps.fill_bytes(kUntouched);
    UpsampleParams p = params_of(c);
    p.guide = device_guide.data();
    p.maps = device_maps.data();
    p.up = up.data();
    run_cuda<T>(p);
    const double forward = largest_error(up.to_host(), want.up, tolerance, "maps");
    check_labels<T, uint8_t>(c, p, want);
    check_labels<T, int32_t>(c, p, want);
    p.backward = true;
    p.maps = v_maps.data();
    p.up = device_v.data();
    p.missing = c.holes ? device_missing.data() : nullptr;
    run_cuda<T>(p);
    const double backward = largest_error(v_maps.to_host(), want.v_maps, tolerance, "gradient");
    return text(forward) + ", gradient " + text(backward);
}

std::string check(const Case& c) {
    return "relative error " + check_dtype<float>(c, 2e-5) + "; float64 " + check_dtype<double>(c, 1e-12);
}

// The cases

std::vector<Case> all_cases() {
    return {
        {"one node, one pixel", 1, 1, 1, 1, 1, 1, 2, false, true},
        {"one node", 1, 2, 1, 1, 5, 7, 2, false, true},
        {"a filter", 1, 3, 6, 7, 6, 7, 2, false, true},
        {"factor 2", 1, 5, 5, 6, 10, 12, 2, false, false},
        {"factor 8", 1, 17, 3, 4, 24, 32, 3, false, false},
        {"factors 5.86 and 6.7", 1, 3, 7, 6, 41, 40, 2, false, false},
        {"factors 9.5 and 1", 2, 3, 4, 11, 38, 11, 1, false, false},
        {"radius 0", 1, 4, 3, 4, 17, 22, 0, false, true},
        {"window larger than the grid", 1, 2, 3, 4, 20, 17, 15, false, false},
        {"16 classes, a full pass", 1, 16, 3, 3, 9, 10, 1, false, true},
        {"33 classes, two passes and a rest", 1, 33, 2, 3, 8, 9, 1, false, true},
        {"three images", 3, 2, 3, 3, 10, 11, 2, false, true},
        {"one row", 1, 3, 1, 4, 1, 30, 1, false, true},
        {"one column", 1, 2, 5, 1, 33, 1, 2, false, true},
        {"holes", 1, 4, 5, 6, 21, 19, 2, true, true},
        {"holes, radius 0", 2, 3, 4, 5, 12, 16, 0, true, true},
        {"17 classes, a pass and one", 1, 17, 3, 3, 9, 10, 1, false, true},
        {"wider than a block", 1, 2, 2, 9, 7, 300, 2, false, false},
        {"a window of 11 nodes", 1, 3, 12, 13, 24, 26, 5, false, false},
        {"holes, 20 classes", 1, 20, 4, 4, 11, 13, 1, true, false},
    };
}

// Sizes that would lead out of the buffers are refused, and nothing to do touches nothing.
std::string check_limits() {
    const Case c = {"", 1, 2, 3, 4, 6, 8, 2, false, true};
    const auto refuse = [&](const std::string& name, const std::function<void(UpsampleParams&)>& change) {
        UpsampleParams p = params_of(c);
        change(p);
        expect_refusal(name, [&] { (void)ovs::joint_bilateral_upsample_cuda_workspace_bytes(p, DType::kFloat32); });
    };
    refuse("a negative batch", [](UpsampleParams& p) { p.batch = -1; });
    refuse("a negative number of classes", [](UpsampleParams& p) { p.num_classes = -1; });
    refuse("no row of nodes", [](UpsampleParams& p) { p.low_height = 0; });
    refuse("no column of nodes", [](UpsampleParams& p) { p.low_width = 0; });
    refuse("fewer rows than nodes", [](UpsampleParams& p) { p.height = 2; });
    refuse("fewer columns than nodes", [](UpsampleParams& p) { p.width = 3; });
    refuse("a width beyond the tables", [](UpsampleParams& p) { p.width = int64_t{1} << 29; });
    refuse("a negative radius", [](UpsampleParams& p) { p.radius = -1; });
    refuse("a radius of 16", [](UpsampleParams& p) { p.radius = 16; });
    refuse("sigma_spatial 0", [](UpsampleParams& p) { p.sigma_spatial = 0.0; });
    refuse("sigma_range NaN", [](UpsampleParams& p) { p.sigma_range = std::nan(""); });
    refuse("labels of two bytes", [](UpsampleParams& p) { p.label_bytes = 2; });
    refuse("257 classes in a byte", [](UpsampleParams& p) {
        p.labels = &p;
        p.num_classes = 257;
    });
    UpsampleParams p = params_of(c);
    const std::size_t bytes = ovs::joint_bilateral_upsample_cuda_workspace_bytes(p, DType::kFloat32);
    const DeviceArray<unsigned char> workspace(bytes);
    expect_refusal("a workspace that is too small", [&] {
        ovs::joint_bilateral_upsample_cuda(p, DType::kFloat32, workspace.data(), bytes - 1, 0, nullptr);
    });
    p.num_classes = 0;
    ovs::joint_bilateral_upsample_cuda(p, DType::kFloat32, nullptr, 0, 0, nullptr);
    p.num_classes = 2;
    p.batch = 0;
    ovs::joint_bilateral_upsample_cuda(p, DType::kFloat32, nullptr, 0, 0, nullptr);
    return "refusals";
}

}  // namespace

void run_all(Runner& run) {
    const std::vector<Case> cases = all_cases();
    for (const Case& c : cases) run(c.name, c.quick, [&c] { return check(c); });
    run("limits", true, check_limits);
}

}  // namespace upsample_cases

int main(int argc, char** argv) { return cases::run_program("upsample_cases", argc, argv, upsample_cases::run_all); }
