// The CPU side of metrics: how work is divided, what the scratch memory holds, and the levels.
#pragma once
#include <cstddef>
#include <cstdint>

#include "common/index.h"
#include "common/workspace.h"
#include "metrics/metrics.h"

namespace ovs {

namespace {  // internal linkage: each instruction-set level keeps its own copy

constexpr int64_t kPadding = 80;  // keys that may be read behind the end of a row: 64 and the next

// The smallest type of keys that holds C + 1, in bytes.
inline int64_t key_bytes(const MetricsParams& p) { return p.num_classes <= 254 ? 1 : p.num_classes <= 65534 ? 2 : 4; }

// confusion_matrix. Pixels are counted in pieces of rows. Where rows follow each other in memory they are one row.
constexpr int64_t kPiece = 4096;
constexpr int64_t kPiecesAtOnce = 8;  // what a thread takes at a time

struct Pieces {
    int64_t images, rows, width, pieces_per_row;

    explicit Pieces(const MetricsParams& p) : images(p.batch), rows(p.height), width(p.width) {
        const auto follow = [&](int64_t (*stride)(const LabelMap&), int64_t size) {
            return stride(p.prediction) == size && stride(p.target) == size;
        };
        if (rows == 1 || follow([](const LabelMap& map) { return map.row_stride; }, width)) {
            width *= rows;
            rows = 1;
            if (images == 1 || follow([](const LabelMap& map) { return map.image_stride; }, width)) {
                width *= images;
                images = 1;
            }
        }
        pieces_per_row = ceil_div(width, kPiece);
    }
    int64_t count() const { return images * rows * pieces_per_row; }
};

// Threads that have a matrix of their own; with many classes they all count into the result.
inline bool has_own_matrix(const MetricsParams& p) { return key_bytes(p) == 1; }

struct ConfusionScratch {
    unsigned char* keys;  // [workers, 2, kPiece + kPadding]  of target and prediction
    int64_t* matrices;    // [workers, C + 2, C + 1]          the last row: ignored pixels

    ConfusionScratch(const MetricsParams& p, int workers, Workspace& ws) {
        keys = ws.take<unsigned char>("keys", workers * 2 * (kPiece + kPadding) * key_bytes(p));
        matrices = ws.take<int64_t>("matrices", has_own_matrix(p) ? workers * matrix_size(p) : 0);
    }
    static int64_t matrix_size(const MetricsParams& p) {
        return round_up((p.num_classes + 2) * (p.num_classes + 1), 8);  // no cache line of two workers
    }
};

// boundary_iou. Each image in bands of rows; a band looks `distance` rows beyond its ends.
struct Bands {
    int64_t per_image, rows;

    Bands(const BoundaryParams& p, int num_threads) {
        const int64_t wanted = ceil_div(num_threads, p.maps.batch);
        const int64_t least = p.distance < p.maps.height / 2 ? 2 * p.distance : p.maps.height;
        const int64_t most = p.maps.height / (least > 16 ? least : 16);
        per_image = wanted < most ? wanted : most > 1 ? most : 1;
        rows = ceil_div(p.maps.height, per_image);
        per_image = ceil_div(p.maps.height, rows);
    }
    int64_t count(const BoundaryParams& p) const { return p.maps.batch * per_image; }
};

// Bytes of a counter that goes up to 2 distance + 1.
inline int64_t counter_bytes(const BoundaryParams& p) { return p.distance <= 127 ? 1 : p.distance <= 32767 ? 2 : 4; }

// Threads that have counts of their own.
inline bool has_own_counts(const MetricsParams& p) { return key_bytes(p) <= 2; }

struct BoundaryScratch {
    static constexpr int kKeyRows = 4;  // of each map this row and the one before

    unsigned char* keys;      // [workers, kKeyRows, W + kPadding]
    unsigned char* counters;  // [workers, 2, W]         rows that a pixel's columns have been inside
    unsigned char* inside;    // [workers, W]            1 where 2 distance + 1 pixels of the row are of one key
    int64_t* counts;          // [workers, 3, C + 2]

    BoundaryScratch(const BoundaryParams& p, int workers, Workspace& ws) {
        const int64_t width = row_size(p);
        keys = ws.take<unsigned char>("keys", workers * kKeyRows * width * key_bytes(p.maps));
        counters = ws.take<unsigned char>("counters", workers * 2 * width * counter_bytes(p));
        inside = ws.take<unsigned char>("inside", workers * width);
        counts = ws.take<int64_t>("counts", has_own_counts(p.maps) ? workers * counts_size(p) : 0);
    }
    static int64_t row_size(const BoundaryParams& p) { return round_up(p.maps.width + kPadding, 64); }
    static int64_t counts_size(const BoundaryParams& p) { return round_up(3 * (p.maps.num_classes + 2), 8); }
};

}  // namespace

#define OVS_DECLARE_METRICS_ISA(isa)                                                                        \
    namespace isa {                                                                                         \
    void confusion_matrix_level(const ConfusionParams& p, void* workspace, std::size_t bytes, int workers); \
    void boundary_iou_level(const BoundaryParams& p, void* workspace, std::size_t bytes, int workers);      \
    }
#if defined(OVS_X86_LEVELS)
OVS_DECLARE_METRICS_ISA(v2)
OVS_DECLARE_METRICS_ISA(v3)
OVS_DECLARE_METRICS_ISA(v4)
#else
OVS_DECLARE_METRICS_ISA(baseline)
#endif
#undef OVS_DECLARE_METRICS_ISA

}  // namespace ovs
