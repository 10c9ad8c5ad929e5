// templates: FLOSS. Entropies of the predictions of prompt templates, and the fusion of expert classifiers.
//
// The products of features and embeddings are torch's; both operators begin where those end and take them tile by tile.
//
// template_entropy. A template's logits become probabilities by softmax; every place (a patch, or a pixel of the
// original image) is predicted as its most likely class k, lowest index of equals, and adds to (template, k) a count
// and the fixed-point numbers round(2^32 x) of its entropy, of its highest probability and, for MaNo, of three more.
// A pixel's probabilities are a fixed combination of those of patches, and the combination is separable: bilinear to
// the window, average over the windows of a grid, bilinear to the original size are one sparse matrix per axis. Source
// rows are stretched along x for a strip of 16 pixels of all classes, once; an image row blends two of them, or more
// where windows overlap; the numbers never leave the cache. The other order (interpolate_logits) stretches and blends
// logits and takes the softmax of the pixels. Several queries may belong to one class (group_first): its probability is
// the largest of theirs.
//
// fuse_experts. Between four neighbouring patches (a cell) probabilities are convex combinations of the corners'. So an
// expert that finds its own class at all corners votes everywhere in the cell, and one that finds another class j more
// likely than its own at all corners votes nowhere in it. The rest is tested per pixel, against the classes that beat
// it at a corner, and only where its own probability is above that of a vote already found.
//
// Contract.
//   ties          lowest index, of classes and of experts.
//   unknown       marks places without probabilities: they count nowhere. In fuse_experts a patch without features has
//                 products of zero, so uniform probabilities, and the pixels made from it take the default.
//   non-finite    a template with a NaN among its scales counts nowhere.
//   determinism   same bits for the same products, on CPU for any number of threads. Sums are of integers.
//   zero extents  nothing is written, nothing is launched.
#pragma once
#include <cstddef>
#include <cstdint>

#include "common/dtype.h"

namespace ovs {

constexpr int kStrip = 16;  // pixels of a row that are worked on together; part of the layout of `strip_weight`

struct TemplateEntropyParams {
    // Products <e, f> of some templates, [templates, queries, pitch] dtype. Overwritten.
    void* logits = nullptr;
    const void* row_scale = nullptr;   // [templates, queries] dtype: what products are multiplied by to be logits
    const uint8_t* unknown = nullptr;  // [places]: 1 where a place has no probabilities; null where all have
    int64_t* counts = nullptr;         // [templates, K], added to
    int64_t* sums = nullptr;           // [2 or 5, ..] [templates, K] at distance sum_stride, added to
    int64_t sum_stride = 0;
    int64_t num_templates = 0, num_classes = 0;
    int64_t num_queries = 0;               // num_classes without groups
    const int32_t* group_first = nullptr;  // [K + 1]: queries group_first[k] to group_first[k + 1] - 1 are of class k
    const int32_t* group_of = nullptr;     // [queries]: their classes; null, both, where every query is a class
    int64_t num_patches = 0, pitch = 0;    // pitch: patches in whole strips
    bool mano = false;
    bool interpolate_logits = false;  // of pixels: logits are interpolated, not probabilities

    // Pixels of the original image; out_height = 0 counts patches.
    int64_t out_height = 0, out_width = 0;
    int64_t grid_height = 0, grid_width = 0;      // patches of a window
    int64_t window_rows = 0, window_columns = 0;  // of the grid of windows
    const int32_t* window_order = nullptr;        // [window_rows, window_columns]: which window of `logits` it is
    const int32_t* row_first = nullptr;           // [out_height + 1] into the two below
    const int32_t* row_source = nullptr;          // source rows: row of windows * grid_height + patch row
    const void* row_weight = nullptr;             // dtype
    const int32_t* strip_first = nullptr;         // [strips + 1] into the two below
    const int32_t* strip_source = nullptr;        // source columns: column of windows * grid_width + patch column
    const void* strip_weight = nullptr;           // [.., kStrip] dtype
};

std::size_t template_entropy_cpu_workspace_bytes(const TemplateEntropyParams&, DType, int num_threads);
void template_entropy_cpu(const TemplateEntropyParams&, DType, void* workspace, std::size_t workspace_bytes,
                          int num_threads, CpuIsa);
std::size_t template_entropy_cuda_workspace_bytes(const TemplateEntropyParams&);
void template_entropy_cuda(const TemplateEntropyParams&, void* workspace, std::size_t workspace_bytes, int device,
                           void* stream);

// Patches again, on a CPU in float32: the products too, of 16-bit integers, where their error has a small enough bound.
struct TemplateFixedParams {
    const float* features = nullptr;       // [patches, features] of unit length; not read where unknown
    const float* texts = nullptr;          // [templates, queries, features]
    const int32_t* query_order = nullptr;  // [queries]: which of `texts` a query is; null where they are in order
    const uint8_t* unknown = nullptr;      // [patches]; null where all have features
    int64_t* counts = nullptr;             // as above
    int64_t* sums = nullptr;
    int64_t sum_stride = 0;
    // [templates]: 1 where it was counted; 0, and nothing counted, where the products of a template could be off by
    // more than `largest_error`, or are not finite.
    uint8_t* done = nullptr;
    int64_t num_templates = 0, num_classes = 0, num_queries = 0, num_patches = 0, num_features = 0;
    const int32_t* group_first = nullptr;
    const int32_t* group_of = nullptr;
    bool normalize = false;  // texts have any length
    double scale = 1.0;      // products * scale are logits
    double largest_error = 0.0;
};

std::size_t template_fixed_cpu_workspace_bytes(const TemplateFixedParams&, DType, int num_threads);
void template_fixed_cpu(const TemplateFixedParams&, DType, void* workspace, std::size_t workspace_bytes,
                        int num_threads, CpuIsa);

// The values are part of the interface: `ovs_kernels/_ops/templates.py` holds the same table.
enum class FuseStrategy : int { kHighest = 0, kDefaultOnConflict = 1, kAverageConflicting = 2, kAverage = 3 };

// One window.
struct FuseExpertsParams {
    // Products <f, E>, [grid_height * grid_width, K + 1, K] dtype; overwritten by the probabilities.
    void* products = nullptr;
    const uint8_t* unknown = nullptr;  // [grid_height * grid_width]: 1 where a patch has no features; null for none
    void* out = nullptr;               // [K, ..] dtype: probabilities at the window's pixels; null if not wanted
    const void* weights = nullptr;     // null, or the share of this window in a pixel: out += share * probability
    void* labels = nullptr;            // [height, width] uint8, or int32 from 256 classes on; null if not wanted
    int32_t* winners = nullptr;        // [height, width]: the responsible expert, K for the default; null if not wanted
    int64_t class_stride = 0, row_stride = 0;  // of `out`, in elements; `weights` has the same row_stride
    int64_t grid_height = 0, grid_width = 0;
    int64_t height = 0, width = 0;
    int64_t num_classes = 0;
    double scale = 1.0;  // products * scale are logits
    FuseStrategy strategy = FuseStrategy::kHighest;
};

std::size_t fuse_experts_cpu_workspace_bytes(const FuseExpertsParams&, DType, int num_threads);
void fuse_experts_cpu(const FuseExpertsParams&, DType, void* workspace, std::size_t workspace_bytes, int num_threads,
                      CpuIsa);
std::size_t fuse_experts_cuda_workspace_bytes(const FuseExpertsParams&);
void fuse_experts_cuda(const FuseExpertsParams&, void* workspace, std::size_t workspace_bytes, int device,
                       void* stream);

}  // namespace ovs
