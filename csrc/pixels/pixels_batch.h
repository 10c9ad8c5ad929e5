// What the CPU and the CUDA half of lp_pixels share on the host: checks that protect memory, and one image of a batch.
#pragma once
#include <climits>
#include <cstdint>

#include "common/error.h"
#include "pixels/pixels.h"

namespace ovs {
namespace {

inline void check_params(const PixelsParams& p) {
    OVS_REQUIRE(p.batch >= 0 && p.num_classes >= 0 && p.height >= 0 && p.width >= 0, "lp_pixels: negative size");
    OVS_REQUIRE(p.height <= INT_MAX / 64 && p.width <= INT_MAX / 64, "lp_pixels: image too large");
    OVS_REQUIRE(p.num_features >= 1 && (!p.lab || p.num_features == 3), "lp_pixels: unsupported number of features");
    OVS_REQUIRE(p.window >= 1 && p.window <= kMaxWindow && p.window % 2 == 1, "lp_pixels: unsupported window");
    OVS_REQUIRE(p.class_chunk >= kClassGranule && p.class_chunk <= kMaxClassChunk && p.class_chunk % kClassGranule == 0,
                "lp_pixels: unsupported class_chunk");
    OVS_REQUIRE(p.max_iter >= 1, "lp_pixels: max_iter below 1");
    OVS_REQUIRE(p.label_bytes == 1 || p.label_bytes == 4, "lp_pixels: unsupported label_bytes");
}

// The part of the batch that belongs to image `index`.
inline PixelsParams image_of(const PixelsParams& batch, int64_t index, std::size_t item) {
    PixelsParams p = batch;
    const int64_t pixels = p.height * p.width;
    const auto at = [&](auto* base, int64_t bytes) {
        using Pointer = decltype(base);
        return base == nullptr ? base : (Pointer)((const char*)base + index * bytes);
    };
    p.scores = at(p.scores, p.num_classes * pixels * item);
    p.guide = at(p.guide, p.num_features * pixels * item);
    p.out = at(p.out, p.num_groups * pixels * item);
    p.labels = at(p.labels, pixels * p.label_bytes);
    p.iterations = at(p.iterations, p.num_classes * sizeof(int32_t));
    p.residuals = at(p.residuals, p.num_classes * sizeof(double));
    return p;
}

}  // namespace
}  // namespace ovs
