// metrics: exact counts over two label maps, for mIoU and for Boundary IoU.
//
//     confusion_matrix   M[i, j] = #{pixels: target i, prediction j}
//     boundary_iou       counts[0, c] = #{boundary pixels of class c in both maps}, [1, c] in the prediction, [2, c] in
//                        the target. A pixel of class c is boundary if the square of 2 distance + 1 pixels around it
//                        holds a pixel that is not of class c, or leaves the image.
//
// Labels are integers of any type, and every value is allowed. The class of a label is the label itself; in the target,
// with reduce_zero_label, one less. Outside of [0, C) it is no class. Pixels whose target is ignore_label (as stored),
// or 0 with reduce_zero_label, are ignored: not counted; for boundary_iou they are of no class in both maps.
//
// The results are sums over the batch, in 64 bits, and the same in every run. Without pixels they are zero.
#pragma once
#include <cstddef>
#include <cstdint>

#include "common/dtype.h"
#include "common/error.h"

namespace ovs {

// uint64 is passed as int64: what is above its range is no class either way. bool is passed as uint8.
enum class LabelType : int { kUInt8 = 0, kInt8 = 1, kUInt16 = 2, kInt16 = 3, kUInt32 = 4, kInt32 = 5, kInt64 = 6 };

// [batch, height, width]. Strides in labels, any; that of the last axis is 1.
struct LabelMap {
    const void* labels = nullptr;
    LabelType type = LabelType::kUInt8;
    int64_t image_stride = 0;
    int64_t row_stride = 0;
};

struct MetricsParams {
    LabelMap prediction;
    LabelMap target;
    int64_t* counts = nullptr;  // [C, C], or [C + 1, C + 1] with others; boundary_iou: [3, C]. Need not be zero.
    int64_t batch = 0;
    int64_t height = 0;
    int64_t width = 0;
    int64_t num_classes = 0;  // C, 1 to kMaxClasses
    bool has_ignore_label = false;
    int64_t ignore_label = 0;
    bool reduce_zero_label = false;
};

struct ConfusionParams {
    MetricsParams maps;
    bool others = false;  // the last row and column hold what is no class
};

struct BoundaryParams {
    MetricsParams maps;
    int64_t distance = 1;  // in pixels, at least 1
};

constexpr int64_t kMaxClasses = int64_t(1) << 24;

std::size_t confusion_matrix_cpu_workspace_bytes(const ConfusionParams& p, int num_threads);
void confusion_matrix_cpu(const ConfusionParams& p, void* workspace, std::size_t workspace_bytes, int num_threads,
                          CpuIsa isa);
std::size_t boundary_iou_cpu_workspace_bytes(const BoundaryParams& p, int num_threads);
void boundary_iou_cpu(const BoundaryParams& p, void* workspace, std::size_t workspace_bytes, int num_threads,
                      CpuIsa isa);

#ifdef OVS_WITH_CUDA
// Nothing comes back to the host; no call waits for the device.
std::size_t confusion_matrix_cuda_workspace_bytes(const ConfusionParams& p);
void confusion_matrix_cuda(const ConfusionParams& p, void* workspace, std::size_t workspace_bytes, int device,
                           void* stream);
std::size_t boundary_iou_cuda_workspace_bytes(const BoundaryParams& p);
void boundary_iou_cuda(const BoundaryParams& p, void* workspace, std::size_t workspace_bytes, int device, void* stream);
#endif

namespace {  // internal linkage: each instruction-set level keeps its own copy

inline bool is_label_type(LabelType type) { return type >= LabelType::kUInt8 && type <= LabelType::kInt64; }

inline void check_params(const MetricsParams& p) {
    OVS_REQUIRE(p.batch >= 0 && p.height >= 0 && p.width >= 0, "metrics: a negative size");
    OVS_REQUIRE(p.num_classes >= 1 && p.num_classes <= kMaxClasses, "metrics: no class, or too many");
    OVS_REQUIRE(is_label_type(p.prediction.type) && is_label_type(p.target.type), "metrics: an unknown type of labels");
}

inline void check_params(const ConfusionParams& p) { check_params(p.maps); }

inline void check_params(const BoundaryParams& p) {
    check_params(p.maps);
    OVS_REQUIRE(p.distance >= 1, "boundary_iou: a distance below 1");
}

// Sizes of the results.
inline int64_t matrix_side(const ConfusionParams& p) { return p.maps.num_classes + (p.others ? 1 : 0); }
inline int64_t num_counts(const ConfusionParams& p) { return matrix_side(p) * matrix_side(p); }
inline int64_t num_counts(const BoundaryParams& p) { return 3 * p.maps.num_classes; }

inline bool is_empty(const MetricsParams& p) { return p.batch == 0 || p.height == 0 || p.width == 0; }

// Whether any pixel can be further than `distance` from the outside of the image.
inline bool has_inside(const BoundaryParams& p) {
    return p.distance <= (p.maps.height - 1) / 2 && p.distance <= (p.maps.width - 1) / 2;
}

}  // namespace
}  // namespace ovs
