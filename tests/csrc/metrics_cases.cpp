// confusion_matrix_cuda and boundary_iou_cuda against their definitions, in one program for compute-sanitizer and for
// the emulator's sanitizers.
//
//   metrics_cases [--small]      --small: only the cases that are quick under ThreadSanitizer
//
// One line per case, `ok` or `FAILED`; exit status 1 when one failed. What is expected is counted here, pixel by pixel,
// with a search of the whole square around each. The workspace has exactly the size that was asked for, and the counts
// are filled with -1 before.
#include <cstdint>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "cases.h"
#include "metrics/metrics.h"

namespace metrics_cases {
namespace {

using namespace cases;
using ovs::BoundaryParams;
using ovs::ConfusionParams;
using ovs::LabelMap;
using ovs::LabelType;
using ovs::MetricsParams;

struct Case {
    std::string name;
    int64_t batch = 1, height = 24, width = 45, classes = 5;
    int64_t low = 0, high = 5;  // of the labels
    int64_t cell = 6;           // pixels along a region
    double noise = 0.03;
    int64_t distance = 2;
    bool has_ignore = true, reduce = false, others = true;
    int64_t ignore = 255;
    int64_t gap = 0;  // labels between two rows
    bool quick = false;

    int64_t row_stride() const { return width + gap; }
    int64_t image_stride() const { return height * row_stride() + 3 * gap; }
};

// Labels of both maps with room between the rows.
struct Inputs {
    std::vector<int64_t> prediction, target;

    explicit Inputs(const Case& c)
        : prediction(static_cast<std::size_t>(c.batch * c.image_stride()), 4), target(prediction) {
        Random random(11);
        const int64_t across = c.width / c.cell + 1, down = c.height / c.cell + 1;
        for (int64_t b = 0; b < c.batch; ++b) {
            std::vector<int64_t> cells(static_cast<std::size_t>(across * down));
            for (int64_t& label : cells) label = random.between(c.low, c.high);
            for (int64_t y = 0; y < c.height; ++y) {
                for (int64_t x = 0; x < c.width; ++x) {
                    const auto at = static_cast<std::size_t>(b * c.image_stride() + y * c.row_stride() + x);
                    const int64_t cell = y / c.cell * across + x / c.cell,
                                  moved = y / c.cell * across + (x + 1) / c.cell;
                    target[at] =
                        random() < c.noise ? random.between(c.low, c.high) : cells[static_cast<std::size_t>(cell)];
                    prediction[at] =
                        random() < c.noise ? random.between(c.low, c.high) : cells[static_cast<std::size_t>(moved)];
                    if (c.has_ignore && random() < 0.01) target[at] = c.ignore;
                }
            }
        }
    }
};

constexpr int64_t kIgnored = -1;

// The class of a label of the target, C for none, kIgnored.
int64_t class_of_target(const Case& c, int64_t label) {
    if ((c.has_ignore && label == c.ignore) || (c.reduce && label == 0)) return kIgnored;
    const int64_t moved = c.reduce ? label - 1 : label;
    return moved >= 0 && moved < c.classes ? moved : c.classes;
}

int64_t class_of_prediction(const Case& c, int64_t label) {
    return label >= 0 && label < c.classes ? label : c.classes;
}

template <class Visit>
void for_each_pixel(const Case& c, const Visit& visit) {
    for (int64_t b = 0; b < c.batch; ++b) {
        for (int64_t y = 0; y < c.height; ++y) {
            for (int64_t x = 0; x < c.width; ++x) visit(b, y, x);
        }
    }
}

std::vector<int64_t> expected_matrix(const Case& c, const Inputs& in) {
    const int64_t side = c.classes + (c.others ? 1 : 0);
    std::vector<int64_t> matrix(static_cast<std::size_t>(side * side), 0);
    for_each_pixel(c, [&](int64_t b, int64_t y, int64_t x) {
        const auto at = static_cast<std::size_t>(b * c.image_stride() + y * c.row_stride() + x);
        const int64_t row = class_of_target(c, in.target[at]), column = class_of_prediction(c, in.prediction[at]);
        if (row != kIgnored && row < side && column < side) ++matrix[static_cast<std::size_t>(row * side + column)];
    });
    return matrix;
}

// Classes of both maps, without room between the rows: C for none and for ignored pixels.
struct Classes {
    std::vector<int64_t> prediction, target;

    Classes(const Case& c, const Inputs& in) {
        for_each_pixel(c, [&](int64_t b, int64_t y, int64_t x) {
            const auto at = static_cast<std::size_t>(b * c.image_stride() + y * c.row_stride() + x);
            const int64_t of_target = class_of_target(c, in.target[at]);
            target.push_back(of_target == kIgnored ? c.classes : of_target);
            prediction.push_back(of_target == kIgnored ? c.classes : class_of_prediction(c, in.prediction[at]));
        });
    }
};

bool is_boundary(const Case& c, const std::vector<int64_t>& map, int64_t b, int64_t y, int64_t x) {
    const auto at = [&](int64_t row, int64_t column) {
        return map[static_cast<std::size_t>((b * c.height + row) * c.width + column)];
    };
    for (int64_t row = y - c.distance; row <= y + c.distance; ++row) {
        for (int64_t column = x - c.distance; column <= x + c.distance; ++column) {
            const bool outside = row < 0 || row >= c.height || column < 0 || column >= c.width;
            if (outside || at(row, column) != at(y, x)) return true;
        }
    }
    return false;
}

std::vector<int64_t> expected_counts(const Case& c, const Inputs& in) {
    const Classes classes(c, in);
    std::vector<int64_t> counts(static_cast<std::size_t>(3 * c.classes), 0);
    for_each_pixel(c, [&](int64_t b, int64_t y, int64_t x) {
        const auto at = static_cast<std::size_t>((b * c.height + y) * c.width + x);
        const int64_t i = classes.target[at], j = classes.prediction[at];
        const bool of_target = i < c.classes && is_boundary(c, classes.target, b, y, x);
        const bool of_prediction = j < c.classes && is_boundary(c, classes.prediction, b, y, x);
        if (of_target && of_prediction && i == j) ++counts[static_cast<std::size_t>(i)];
        if (of_prediction) ++counts[static_cast<std::size_t>(c.classes + j)];
        if (of_target) ++counts[static_cast<std::size_t>(2 * c.classes + i)];
    });
    return counts;
}

MetricsParams params_of(const Case& c, LabelType type) {
    MetricsParams p;
    p.prediction.type = p.target.type = type;
    p.prediction.image_stride = p.target.image_stride = c.image_stride();
    p.prediction.row_stride = p.target.row_stride = c.row_stride();
    p.batch = c.batch;
    p.height = c.height;
    p.width = c.width;
    p.num_classes = c.classes;
    p.has_ignore_label = c.has_ignore;
    p.ignore_label = c.ignore;
    p.reduce_zero_label = c.reduce;
    return p;
}

// Runs both kernels with the labels in type T and compares.
template <class T>
void check_type(const Case& c, LabelType type, const Inputs& in) {
    const std::vector<T> host_prediction(in.prediction.begin(), in.prediction.end());
    const std::vector<T> host_target(in.target.begin(), in.target.end());
    const DeviceArray<T> prediction(host_prediction), target(host_target);
    ConfusionParams confusion;
    confusion.maps = params_of(c, type);
    confusion.maps.prediction.labels = prediction.data();
    confusion.maps.target.labels = target.data();
    confusion.others = c.others;
    BoundaryParams boundary;
    boundary.maps = confusion.maps;
    boundary.distance = c.distance;
    const std::vector<int64_t> matrix = expected_matrix(c, in), counts = expected_counts(c, in);
    DeviceArray<int64_t> got_matrix(matrix.size()), got_counts(counts.size());
    got_matrix.fill_bytes(kUntouched);
    got_counts.fill_bytes(kUntouched);
    confusion.maps.counts = got_matrix.data();
    boundary.maps.counts = got_counts.data();
    const std::size_t matrix_bytes = ovs::confusion_matrix_cuda_workspace_bytes(confusion);
    const std::size_t boundary_bytes = ovs::boundary_iou_cuda_workspace_bytes(boundary);
    const DeviceArray<unsigned char> one(matrix_bytes), two(boundary_bytes);
    OVS_CUDA(cudaDeviceSynchronize());
    const Stream stream;
    ovs::confusion_matrix_cuda(confusion, one.data(), matrix_bytes, 0, stream.get());
    ovs::boundary_iou_cuda(boundary, two.data(), boundary_bytes, 0, stream.get());
    OVS_CUDA(cudaStreamSynchronize(stream.get()));
    require(got_matrix.to_host() == matrix, "another matrix, labels of type " + std::to_string(static_cast<int>(type)));
    require(got_counts.to_host() == counts, "other counts, labels of type " + std::to_string(static_cast<int>(type)));
}

std::string check(const Case& c) {
    const Inputs in(c);
    check_type<int64_t>(c, LabelType::kInt64, in);
    if (c.low >= 0 && c.high <= 256) check_type<uint8_t>(c, LabelType::kUInt8, in);
    return "equal";
}

// Each type of labels, negative ones where it has them, the ignored label beyond some types.
std::string check_types() {
    Case c;
    c.low = -2;
    c.high = 7;
    c.has_ignore = false;
    const Inputs with_negative(c);
    check_type<int8_t>(c, LabelType::kInt8, with_negative);
    check_type<int16_t>(c, LabelType::kInt16, with_negative);
    check_type<int32_t>(c, LabelType::kInt32, with_negative);
    c.has_ignore = true;  // in no label of int8
    c.ignore = 3 + 256;
    const Inputs no_label(c);
    check_type<int16_t>(c, LabelType::kInt16, no_label);
    c.low = 0;
    c.ignore = 255;
    c.reduce = true;
    const Inputs plain(c);
    check_type<uint16_t>(c, LabelType::kUInt16, plain);
    check_type<uint32_t>(c, LabelType::kUInt32, plain);
    check_type<int32_t>(c, LabelType::kInt32, plain);
    return "equal";
}

// What the smallest and largest labels of a type become when one is subtracted.
std::string check_ends_of_types() {
    Case c;
    c.height = 1;
    c.width = 4;
    c.classes = 300;
    c.has_ignore = false;
    c.reduce = true;
    Inputs in(c);
    in.target = {-128, 127, 0, 1};
    in.prediction = {127, -128, 0, 126};
    check_type<int8_t>(c, LabelType::kInt8, in);
    in.target = in.prediction = {255, 0, 1, 254};
    check_type<uint8_t>(c, LabelType::kUInt8, in);
    in.target = {std::numeric_limits<int64_t>::min(), std::numeric_limits<int64_t>::max(), -1, 300};
    in.prediction = {0, 299, std::numeric_limits<int64_t>::min(), 300};
    check_type<int64_t>(c, LabelType::kInt64, in);
    return "equal";
}

void add_cases(List<Case>& list) {
    list.add("regions", [](Case& c) { c.quick = true; });
    list.add("one pixel", [](Case& c) { c.height = c.width = 1, c.quick = true; });
    list.add("one row", [](Case& c) { c.height = 1, c.width = 70; });
    list.add("one column", [](Case& c) { c.width = 1, c.height = 70; });
    list.add("a warp wide", [](Case& c) { c.width = 32; });
    list.add("a pixel more than a warp", [](Case& c) { c.width = 33, c.quick = true; });
    list.add("a block wide", [](Case& c) { c.width = 256, c.height = 9; });
    list.add("a pixel more than a block", [](Case& c) { c.width = 257, c.height = 9; });
    list.add("a band of rows", [](Case& c) { c.height = 32; });
    list.add("a row more than a band", [](Case& c) { c.height = 33, c.width = 20, c.quick = true; });
    list.add("several bands", [](Case& c) { c.height = 100, c.cell = 17, c.noise = 0.001; });
    list.add("a batch", [](Case& c) { c.batch = 3, c.height = 15, c.width = 20, c.quick = true; });
    list.add("a batch with room between rows", [](Case& c) { c.batch = 2, c.gap = 5; });
    list.add("noise", [](Case& c) { c.noise = 1.0; });
    list.add("one label", [](Case& c) { c.high = 1, c.noise = 0.0; });
    list.add("one class", [](Case& c) { c.classes = 1; });
    list.add("labels outside", [](Case& c) { c.low = -3, c.high = 9, c.quick = true; });
    list.add("without others", [](Case& c) { c.low = -3, c.high = 9, c.others = false; });
    list.add("no class 0", [](Case& c) { c.reduce = true, c.quick = true; });
    list.add("nothing ignored", [](Case& c) { c.has_ignore = false; });
    list.add("a class ignored", [](Case& c) { c.ignore = 2; });
    list.add("a class ignored, no class 0", [](Case& c) { c.ignore = 2, c.reduce = true; });
    list.add("as many classes as fit", [](Case& c) { c.classes = 109, c.high = 115, c.cell = 3; });
    list.add("more classes than fit", [](Case& c) { c.classes = 110, c.high = 115, c.cell = 3; });
    list.add("300 classes", [](Case& c) { c.classes = 300, c.high = 310, c.cell = 3; });
    list.add("more classes than counters",
             [](Case& c) { c.classes = 4097, c.high = 4100, c.cell = 4, c.others = false; });
    list.add("a distance of 1", [](Case& c) { c.distance = 1, c.quick = true; });
    list.add("a distance across warps",
             [](Case& c) { c.distance = 33, c.height = 90, c.width = 120, c.cell = 80, c.noise = 0.0001; });
    list.add("as far as pixels are inside", [](Case& c) { c.distance = 11, c.cell = 23, c.noise = 0.0; });
    list.add("one further", [](Case& c) { c.distance = 12, c.cell = 23, c.noise = 0.0; });
    list.add("far beyond the image", [](Case& c) { c.distance = int64_t{1} << 31, c.height = 5, c.width = 6; });
    list.add("no image", [](Case& c) { c.batch = 0, c.quick = true; });
    list.add("no row", [](Case& c) { c.height = 0; });
    list.add("no column", [](Case& c) { c.width = 0; });
}

// Sizes that would lead out of the buffers are refused.
std::string check_limits() {
    const Case c;
    ConfusionParams good;
    good.maps = params_of(c, LabelType::kUInt8);
    BoundaryParams boundary;
    boundary.maps = good.maps;
    const auto refuse = [&](const std::string& name, const std::function<void(MetricsParams&)>& change) {
        ConfusionParams one = good;
        BoundaryParams two = boundary;
        change(one.maps);
        change(two.maps);
        expect_refusal(name, [&] { (void)ovs::confusion_matrix_cuda_workspace_bytes(one); });
        expect_refusal(name, [&] { (void)ovs::boundary_iou_cuda_workspace_bytes(two); });
    };
    refuse("a negative number of images", [](MetricsParams& p) { p.batch = -1; });
    refuse("a negative height", [](MetricsParams& p) { p.height = -1; });
    refuse("a negative width", [](MetricsParams& p) { p.width = -1; });
    refuse("no class", [](MetricsParams& p) { p.num_classes = 0; });
    refuse("too many classes", [](MetricsParams& p) { p.num_classes = ovs::kMaxClasses + 1; });
    refuse("an unknown type", [](MetricsParams& p) { p.target.type = static_cast<LabelType>(7); });
    refuse("a negative type", [](MetricsParams& p) { p.prediction.type = static_cast<LabelType>(-1); });
    boundary.distance = 0;
    expect_refusal("a distance of 0", [&] { (void)ovs::boundary_iou_cuda_workspace_bytes(boundary); });
    boundary.distance = 2;
    const std::size_t bytes = ovs::boundary_iou_cuda_workspace_bytes(boundary);
    const DeviceArray<unsigned char> workspace(bytes);
    const DeviceArray<int64_t> counts(static_cast<std::size_t>(3 * c.classes));
    boundary.maps.counts = counts.data();
    expect_refusal("a workspace that is too small",
                   [&] { ovs::boundary_iou_cuda(boundary, workspace.data(), bytes - 1, 0, nullptr); });
    return "refusals";
}

}  // namespace

void run_all(Runner& run) {
    List<Case> list;
    add_cases(list);
    list.run(run, check);
    run("types of labels", true, check_types);
    run("ends of types", true, check_ends_of_types);
    run("limits", true, check_limits);
}

}  // namespace metrics_cases

int main(int argc, char** argv) { return cases::run_program("metrics_cases", argc, argv, metrics_cases::run_all); }
