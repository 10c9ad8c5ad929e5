// affinity_pool_cuda against the definition, in one program for compute-sanitizer and for the emulator's sanitizers.
//
//   affinity_cases [--small]      --small: only the cases that are quick under ThreadSanitizer
//
// One line per case, `ok` or `FAILED`; exit status 1 when one failed. What is expected is worked out here, patch by
// patch in float64. The workspace has exactly the size that was asked for, and every output is filled with NaN before.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "affinity/affinity.h"
#include "cases.h"

namespace affinity_cases {
namespace {

using namespace cases;
using ovs::AffinityForm;
using ovs::AffinityParams;
using ovs::DType;

struct Case {
    std::string name;
    int64_t windows, patches, features, guide;
    double near;  // threshold, or beta times the mean affinity: moved into a gap between the affinities
    bool quick;

    int64_t rows() const { return windows * patches; }
};

template <class T>
struct Inputs {
    std::vector<T> features, guide;

    explicit Inputs(const Case& c)
        : features(static_cast<std::size_t>(c.rows() * c.features)),
          guide(static_cast<std::size_t>(c.rows() * c.guide)) {
        Random random(7);
        std::vector<double> centres(static_cast<std::size_t>(3 * c.guide));
        for (double& value : centres) value = 2.0 * random() - 0.6;
        for (int64_t i = 0; i < c.rows(); ++i) {
            const int64_t centre = random.between(0, 3);
            const double length = 0.3 + 3.0 * random();
            for (int64_t k = 0; k < c.guide; ++k) {
                const double value = centres[static_cast<std::size_t>(centre * c.guide + k)] + 1.4 * random() - 0.7;
                guide[static_cast<std::size_t>(i * c.guide + k)] = static_cast<T>(length * value);
            }
        }
        for (T& value : features) value = static_cast<T>(4.0 * random() - 1.5);
    }
};

// One window in float64.
struct Window {
    int64_t n;
    std::vector<double> affinities;
    double mean = 0.0;

    template <class T>
    Window(const T* guide, int64_t patches, int64_t features, bool normalize)
        : n(patches), affinities(static_cast<std::size_t>(patches * patches)) {
        std::vector<double> norms(static_cast<std::size_t>(n), 1.0);
        const auto product = [&](int64_t i, int64_t j) {
            double sum = 0.0;
            for (int64_t k = 0; k < features; ++k) {
                sum += static_cast<double>(guide[i * features + k]) * static_cast<double>(guide[j * features + k]);
            }
            return sum;
        };
        for (int64_t i = 0; normalize && i < n; ++i) {
            norms[static_cast<std::size_t>(i)] = std::max(std::sqrt(product(i, i)), 1e-12);
        }
        for (int64_t i = 0; i < n; ++i) {
            for (int64_t j = 0; j < n; ++j) {
                const double a =
                    product(i, j) / norms[static_cast<std::size_t>(i)] / norms[static_cast<std::size_t>(j)];
                affinities[static_cast<std::size_t>(i * n + j)] = a;
                mean += a / static_cast<double>(n * n);
            }
        }
    }
    double at(int64_t i, int64_t j) const { return affinities[static_cast<std::size_t>(i * n + j)]; }

    // The middle of the widest gap between affinities about `near`.
    double gap(double near) const {
        std::vector<double> around = {near - 0.1, near + 0.1};
        for (const double a : affinities) {
            if (std::fabs(a - near) < 0.1) around.push_back(a);
        }
        std::sort(around.begin(), around.end());
        std::size_t widest = 1;
        for (std::size_t i = 1; i < around.size(); ++i) {
            if (around[i] - around[i - 1] > around[widest] - around[widest - 1]) widest = i;
        }
        return 0.5 * (around[widest] + around[widest - 1]);
    }

    template <class T>
    void pool(const AffinityParams& p, const T* features, double* out) const {
        const bool proxy = p.form == AffinityForm::kProxyClip;
        const double border = proxy ? p.beta * mean : p.threshold;
        for (int64_t i = 0; i < n; ++i) {
            double largest = -HUGE_VAL, total = proxy ? 0.0 : 1e-6;
            for (int64_t j = 0; j < n; ++j) {
                if (at(i, j) >= border || i == j) largest = std::max(largest, at(i, j));
            }
            for (int64_t j = 0; j < n; ++j) {
                if (at(i, j) < border && !(proxy && i == j)) continue;
                const double weight = proxy ? std::exp(p.gamma * (at(i, j) - largest)) : at(i, j);
                total += weight;
                for (int64_t d = 0; d < p.num_features && weight != 0.0; ++d) {
                    out[i * p.num_features + d] += weight * static_cast<double>(features[j * p.num_features + d]);
                }
            }
            for (int64_t d = 0; d < p.num_features; ++d) out[i * p.num_features + d] /= total;
        }
    }
};

template <class T>
constexpr DType kDType = sizeof(T) == 8 ? DType::kFloat64 : DType::kFloat32;

AffinityParams params_of(const Case& c, AffinityForm form) {
    AffinityParams p;
    p.num_windows = c.windows;
    p.num_patches = c.patches;
    p.num_features = c.features;
    p.num_guide = c.guide;
    p.form = form;
    return p;
}

// `p` without pointers.
template <class T>
std::vector<T> run_cuda(AffinityParams p, const Inputs<T>& in) {
    const DeviceArray<T> features(in.features), guide(in.guide);
    DeviceArray<T> pooled(in.features.size());
    pooled.fill_bytes(kUntouched);
    p.features = features.data();
    p.guide = guide.data();
    p.pooled = pooled.data();
    const std::size_t bytes = ovs::affinity_pool_cuda_workspace_bytes(p, kDType<T>);
    const DeviceArray<unsigned char> workspace(bytes);
    OVS_CUDA(cudaDeviceSynchronize());
    const Stream stream;
    ovs::affinity_pool_cuda(p, kDType<T>, workspace.data(), bytes, 0, stream.get());
    OVS_CUDA(cudaStreamSynchronize(stream.get()));
    return pooled.to_host();
}

template <class T>
std::vector<double> expected(const AffinityParams& p, const Inputs<T>& in) {
    std::vector<double> out(in.features.size(), 0.0);
    for (int64_t w = 0; w < p.num_windows; ++w) {
        const Window window(in.guide.data() + w * p.num_patches * p.num_guide, p.num_patches, p.num_guide, p.normalize);
        const int64_t offset = w * p.num_patches * p.num_features;
        window.pool(p, in.features.data() + offset, out.data() + offset);
    }
    return out;
}

template <class T>
double largest_error(const std::vector<T>& got, const std::vector<double>& want, double tolerance) {
    double error = 0.0, scale = 1e-300;
    for (std::size_t i = 0; i < want.size(); ++i) {
        scale = std::max(scale, std::fabs(want[i]));
        const double difference = std::fabs(static_cast<double>(got[i]) - want[i]);
        error = std::isfinite(difference) ? std::max(error, difference) : HUGE_VAL;
    }
    require(error <= tolerance * scale, "relative error " + text(error / scale));
    return error / scale;
}

template <class T>
double check_dtype(const Case& c, AffinityForm form, double tolerance) {
    const Inputs<T> in(c);
    AffinityParams p = params_of(c, form);
    if (c.rows() > 0) {
        const Window window(in.guide.data(), c.patches, c.guide, true);
        if (form == AffinityForm::kProxyClip) {
            p.beta = window.gap(c.near * 4.0 * window.mean) / window.mean;
        } else {
            p.threshold = window.gap(c.near);
        }
    }
    return largest_error(run_cuda(p, in), expected(p, in), tolerance);
}

std::string check(const Case& c) {
    double single = 0.0, twice = 0.0;
    for (const AffinityForm form : {AffinityForm::kClipDinoiser, AffinityForm::kProxyClip}) {
        // Further windows have no gap of their own, and float64 has room between any two affinities.
        if (c.windows <= 1) single = std::max(single, check_dtype<float>(c, form, 1e-5));
        twice = std::max(twice, check_dtype<double>(c, form, 1e-12));
    }
    return "relative error " + text(single) + "; float64 " + text(twice);
}

std::vector<Case> all_cases() {
    std::vector<Case> list;
    const auto add = [&](const char* name, int64_t windows, int64_t patches, int64_t features, int64_t guide,
                         double near = 0.25, bool quick = false) {
        list.push_back({name, windows, patches, features, guide, near, quick});
    };
    add("one patch", 1, 1, 3, 4, 0.25, true);
    add("two patches", 1, 2, 1, 1, 0.25, true);
    add("one guide feature", 1, 20, 5, 1, 0.25, true);
    add("one guide feature more than a chunk", 1, 20, 5, 17, 0.25, true);
    add("a tile of rows", 1, 32, 8, 16);
    add("one row more", 1, 33, 8, 16, 0.25, true);
    add("one row less", 1, 31, 8, 16);
    add("a tile of columns", 1, 64, 8, 16);
    add("one column more", 1, 65, 8, 9, 0.25, true);
    add("one column less", 1, 63, 8, 9);
    add("several tiles", 1, 150, 20, 12);
    add("features of a thread", 1, 40, 64, 8);
    add("a range of features", 1, 40, 256, 8);
    add("one feature more than a range", 1, 34, 257, 8);
    add("several ranges", 1, 33, 600, 5);
    add("many guide features", 1, 40, 9, 200);
    add("few survivors", 1, 100, 10, 30, 0.85, true);
    add("everything survives", 1, 100, 10, 30, -1.5);
    add("windows", 3, 40, 10, 8, 0.25, true);
    add("windows of one patch", 5, 1, 4, 3);
    add("no window", 0, 40, 10, 8, 0.25, true);
    add("no patch", 2, 0, 10, 8);
    add("no feature", 2, 10, 0, 8);
    return list;
}

// Rows as they are, of lengths from a tenth to ten: some vanish beside the longest.
std::string check_any_length() {
    const Case c = {"", 1, 70, 9, 12, 0.25, false};
    Inputs<double> in(c);
    Random random(3);
    for (int64_t i = 0; i < c.patches; ++i) {
        const double length = std::pow(10.0, 2.0 * random() - 1.0);
        for (int64_t k = 0; k < c.guide; ++k) in.guide[static_cast<std::size_t>(i * c.guide + k)] *= length;
    }
    double error = 0.0;
    for (const AffinityForm form : {AffinityForm::kClipDinoiser, AffinityForm::kProxyClip}) {
        AffinityParams p = params_of(c, form);
        p.normalize = false;
        error = std::max(error, largest_error(run_cuda(p, in), expected(p, in), 1e-9));
    }
    return "relative error " + text(error);
}

// Guide rows of zeros; with a large gamma their exponentials vanish beside those of the other rows.
std::string check_zero_rows() {
    const Case c = {"", 1, 45, 6, 10, 0.25, false};
    Inputs<float> in(c);
    for (const int64_t i : {int64_t{0}, int64_t{33}, int64_t{44}}) {
        std::fill_n(in.guide.begin() + i * c.guide, c.guide, 0.0f);
    }
    AffinityParams p = params_of(c, AffinityForm::kClipDinoiser);
    const std::vector<float> nothing = run_cuda(p, in);
    p.form = AffinityForm::kProxyClip;
    for (const double gamma : {3.0, 1000.0}) {
        p.gamma = gamma;
        const std::vector<float> itself = run_cuda(p, in);
        for (int64_t d = 0; d < c.features; ++d) {
            const auto at = static_cast<std::size_t>(33 * c.features + d);
            require(nothing[at] == 0.0f, "a row of zeros pools something");
            require(std::fabs(itself[at] - in.features[at]) < 1e-5f, "a row of zeros does not keep its features");
        }
    }
    return "0, and the patch itself";
}

std::string check_not_finite() {
    const Case c = {"", 2, 40, 6, 10, 0.25, false};
    for (const AffinityForm form : {AffinityForm::kClipDinoiser, AffinityForm::kProxyClip}) {
        Inputs<float> in(c);
        const std::vector<float> clean = run_cuda(params_of(c, form), in);
        in.guide[static_cast<std::size_t>(39 * c.guide + 1)] = std::numeric_limits<float>::infinity();
        const std::vector<float> poisoned = run_cuda(params_of(c, form), in);
        for (std::size_t i = 0; i < poisoned.size(); ++i) {
            const bool first = i < poisoned.size() / 2;
            require(first ? std::isnan(poisoned[i]) : poisoned[i] == clean[i], "a guide row of Inf");
        }
        Inputs<float> other(c);
        other.features[static_cast<std::size_t>(17 * c.features + 2)] = std::numeric_limits<float>::quiet_NaN();
        const std::vector<float> got = run_cuda(params_of(c, form), other);
        const std::vector<double> want = expected(params_of(c, form), other);
        int64_t reached = 0;
        for (std::size_t i = 0; i < got.size(); ++i) {
            require(std::isnan(got[i]) == std::isnan(want[i]), "a feature that is NaN");
            reached += std::isnan(got[i]);
        }
        require(reached > 1 && reached < c.patches, "the NaN reaches some patches and not all");
    }
    return "NaN and Inf";
}

// Sizes that would lead out of the buffers are refused.
std::string check_limits() {
    const Case c = {"", 2, 9, 5, 4, 0.25, false};
    const AffinityParams good = params_of(c, AffinityForm::kProxyClip);
    const auto refuse = [&](const std::string& name, const std::function<void(AffinityParams&)>& change) {
        AffinityParams p = good;
        change(p);
        expect_refusal(name, [&] { (void)ovs::affinity_pool_cuda_workspace_bytes(p, DType::kFloat32); });
    };
    refuse("a negative number of windows", [](AffinityParams& p) { p.num_windows = -1; });
    refuse("a negative number of patches", [](AffinityParams& p) { p.num_patches = -1; });
    refuse("a negative number of features", [](AffinityParams& p) { p.num_features = -1; });
    refuse("no guide feature", [](AffinityParams& p) { p.num_guide = 0; });
    refuse("more windows than a grid has", [](AffinityParams& p) { p.num_windows = int64_t{1} << 31; });
    refuse("more patches than a grid has", [](AffinityParams& p) { p.num_windows = p.num_patches = int64_t{1} << 20; });
    refuse("an unknown form", [](AffinityParams& p) { p.form = static_cast<AffinityForm>(2); });
    expect_refusal("a computation in float16",
                   [&] { (void)ovs::affinity_pool_cuda_workspace_bytes(good, DType::kFloat16); });
    const std::size_t bytes = ovs::affinity_pool_cuda_workspace_bytes(good, DType::kFloat32);
    const DeviceArray<unsigned char> workspace(bytes);
    const Inputs<float> in(c);
    AffinityParams p = good;
    p.features = in.features.data();
    p.guide = in.guide.data();
    expect_refusal("a workspace that is too small",
                   [&] { ovs::affinity_pool_cuda(p, DType::kFloat32, workspace.data(), bytes - 1, 0, nullptr); });
    return "refusals";
}

}  // namespace

void run_all(Runner& run) {
    for (const Case& c : all_cases()) run(c.name, c.quick, [&c] { return check(c); });
    run("rows of any length", false, check_any_length);
    run("rows of zeros", true, check_zero_rows);
    run("numbers that are not finite", true, check_not_finite);
    run("limits", true, check_limits);
}

}  // namespace affinity_cases

int main(int argc, char** argv) { return cases::run_program("affinity_cases", argc, argv, affinity_cases::run_all); }
