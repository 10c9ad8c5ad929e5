// confusion_matrix and boundary_iou on a CPU; compiled once per instruction-set level.
//
// Labels become keys of the smallest type that holds the classes, a piece of a row at a time, and what follows works on
// keys in the first-level cache, run by run: a map of regions has some ten runs per row.
//
// Boundary. A pixel is inside its class if 2 d + 1 pixels along its row are of its class, in each of 2 d + 1 rows.
// Along a row that is read from the runs; down the columns each has a counter of the rows since the last one that was
// not. Both are a few instructions per pixel whatever d is, and no mask of a class is ever made.
#include "common/parallel.h"
#include "metrics/metrics_cpu.h"
#include "metrics/metrics_runs.h"

namespace ovs {
namespace OVS_ISA {
namespace {

// Adds to a counter that other threads may add to.
OVS_INLINE void add_shared(int64_t* counter, int64_t count) { __atomic_fetch_add(counter, count, __ATOMIC_RELAXED); }

template <class K>
class Confusion {
public:
    Confusion(const ConfusionParams& p, void* workspace, std::size_t bytes, int workers)
        : p_(p),
          maps_(p.maps),
          pieces_(p.maps),
          workers_(workers),
          workspace_(workspace, bytes),
          s_(p.maps, workers, workspace_),
          prediction_(p.maps, false),
          target_(p.maps, true) {}

    void run() {
        int64_t next = 0;
        const int64_t pieces = pieces_.count();
        parallel_for(workers_, workers_, [&](int64_t worker) {
            if (sizeof(K) == 1) clear(worker);
            for (;;) {
                const int64_t first = __atomic_fetch_add(&next, kPiecesAtOnce, __ATOMIC_RELAXED);
                if (first >= pieces) return;
                const int64_t end = first + kPiecesAtOnce < pieces ? first + kPiecesAtOnce : pieces;
                for (int64_t piece = first; piece < end; ++piece) count_piece(worker, piece);
            }
        });
        if (sizeof(K) == 1) add_matrices();
    }

private:
    int64_t classes() const { return maps_.num_classes; }
    int64_t* matrix(int64_t worker) const { return s_.matrices + worker * ConfusionScratch::matrix_size(maps_); }
    void clear(int64_t worker) const {
        int64_t* const counts = matrix(worker);
        for (int64_t i = 0; i < ConfusionScratch::matrix_size(maps_); ++i) counts[i] = 0;
    }

    void count_piece(int64_t worker, int64_t piece) const {
        K* const target = reinterpret_cast<K*>(s_.keys) + worker * 2 * (kPiece + kPadding);
        K* const prediction = target + kPiece + kPadding;
        const int64_t line = piece / pieces_.pieces_per_row, x = piece % pieces_.pieces_per_row * kPiece;
        const int64_t image = line / pieces_.rows, row = line % pieces_.rows;
        const int64_t count = pieces_.width - x < kPiece ? pieces_.width - x : kPiece;
        target_.read(image, row, x, count, target);
        prediction_.read(image, row, x, count, prediction);
        if (sizeof(K) == 1) {
            int64_t* const counts = matrix(worker);
            const int64_t side = classes() + 1;
            runs_of(target, prediction, count, [=](int64_t begin, int64_t end) {
                counts[target[begin] * side + prediction[begin]] += end - begin;
            });
            return;
        }
        const int64_t side = matrix_side(p_);
        runs_of(target, prediction, count, [&](int64_t begin, int64_t end) {
            const int64_t i = target[begin], j = prediction[begin];
            if (i < side && j < side) add_shared(maps_.counts + i * side + j, end - begin);
        });
    }

    void add_matrices() const {
        const int64_t side = matrix_side(p_);
        for (int64_t worker = 0; worker < workers_; ++worker) {
            const int64_t* const counts = matrix(worker);
            for (int64_t i = 0; i < side; ++i) {
                for (int64_t j = 0; j < side; ++j) maps_.counts[i * side + j] += counts[i * (classes() + 1) + j];
            }
        }
    }

    const ConfusionParams& p_;
    const MetricsParams& maps_;
    const Pieces pieces_;
    const int workers_;
    Workspace workspace_;
    const ConfusionScratch s_;
    const KeyReader prediction_, target_;
};

// Rows that the pixels of a row have been inside along their rows, one key after the other down the column; up to
// `full`. `before`: the keys of the row above.
template <class K, class Counter>
void count_rows(const K* keys, const K* before, const uint8_t* inside, int64_t width, Counter full, Counter* counters) {
    const Counter most = static_cast<Counter>(full - 1);
    OVS_INDEPENDENT
    for (int64_t x = 0; x < width; ++x) {
        const Counter above = keys[x] == before[x] ? counters[x] : Counter(0);
        const Counter next = static_cast<Counter>((above < most ? above : most) + 1);
        counters[x] = inside[x] != 0 ? next : Counter(0);
    }
}

// `other` where `replace`, else `key`. As a select the compiler makes a jump and a store of it, and no vectors.
template <class K>
OVS_INLINE K either(bool replace, K other, K key) {
    const K mask = static_cast<K>(-static_cast<K>(replace));
    return static_cast<K>((other & mask) | (key & ~mask));
}

template <class K, class Counter>
void drop_inside(const Counter* counters, Counter full, int64_t width, K no_class, K* keys) {
    OVS_INDEPENDENT
    for (int64_t x = 0; x < width; ++x) keys[x] = either(counters[x] == full, no_class, keys[x]);
}

// Ignored pixels are of no class, in both maps.
template <class K>
void drop_ignored(int64_t width, K no_class, K* target, K* prediction) {
    OVS_INDEPENDENT
    for (int64_t x = 0; x < width; ++x) {
        const bool ignored = target[x] > no_class;
        prediction[x] = either(ignored, no_class, prediction[x]);
        target[x] = either(ignored, no_class, target[x]);
    }
}

template <class K, class Counter>
class Boundary {
public:
    Boundary(const BoundaryParams& p, void* workspace, std::size_t bytes, int workers)
        : p_(p),
          maps_(p.maps),
          bands_(p, workers),
          workers_(workers),
          workspace_(workspace, bytes),
          s_(p, workers, workspace_),
          prediction_(p.maps, false),
          target_(p.maps, true) {}

    void run() {
        int64_t next = 0;
        const int64_t bands = bands_.count(p_);
        parallel_for(workers_, workers_, [&](int64_t worker) {
            if (has_own_counts(maps_)) {
                for (int64_t i = 0; i < BoundaryScratch::counts_size(p_); ++i) counts(worker)[i] = 0;
            }
            for (;;) {
                const int64_t band = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED);
                if (band >= bands) return;
                const int64_t first = band % bands_.per_image * bands_.rows;
                const int64_t end = first + bands_.rows < maps_.height ? first + bands_.rows : maps_.height;
                count_band(worker, band / bands_.per_image, first, end);
            }
        });
        if (has_own_counts(maps_)) add_counts();
    }

private:
    int64_t* counts(int64_t worker) const { return s_.counts + worker * BoundaryScratch::counts_size(p_); }
    K* keys(int64_t worker, int row) const {
        const int64_t index = worker * BoundaryScratch::kKeyRows + row;
        return reinterpret_cast<K*>(s_.keys) + index * BoundaryScratch::row_size(p_);
    }
    K no_class() const { return static_cast<K>(maps_.num_classes); }

    void read(int64_t image, int64_t row, K* target, K* prediction) const {
        target_.read(image, row, 0, maps_.width, target);
        prediction_.read(image, row, 0, maps_.width, prediction);
        drop_ignored(maps_.width, no_class(), target, prediction);
    }

    // 1 where the `distance` pixels on either side are of the same key.
    void find_inside(const K* row, uint8_t* inside) const {
        const int64_t distance = p_.distance;
        __builtin_memset(inside, 0, static_cast<std::size_t>(maps_.width));
        runs_of(row, maps_.width, [=](int64_t begin, int64_t end) {
            const int64_t count = end - begin - 2 * distance;
            if (count > 0) __builtin_memset(inside + begin + distance, 1, static_cast<std::size_t>(count));
        });
    }

    // Rows [first, end) of an image.
    void count_band(int64_t worker, int64_t image, int64_t first, int64_t end) const {
        K *target = keys(worker, 0), *prediction = keys(worker, 1);
        K *target_before = keys(worker, 2), *prediction_before = keys(worker, 3);
        if (!has_inside(p_)) {
            for (int64_t row = first; row < end; ++row) {
                read(image, row, target, prediction);
                count_row(worker, target, prediction);
            }
            return;
        }
        const int64_t width = maps_.width, size = BoundaryScratch::row_size(p_), distance = p_.distance;
        const Counter full = static_cast<Counter>(2 * distance + 1);
        uint8_t* const inside = s_.inside + worker * size;
        Counter* const of_target = reinterpret_cast<Counter*>(s_.counters) + worker * 2 * size;
        Counter* const of_prediction = of_target + size;
        for (int64_t x = 0; x < 2 * size; ++x) of_target[x] = 0;
        const int64_t begin = first > distance ? first - distance : 0;
        for (int64_t row = begin; row < end + distance; ++row) {
            if (row < maps_.height) {
                read(image, row, target, prediction);
                find_inside(target, inside);
                count_rows(target, row > begin ? target_before : target, inside, width, full, of_target);
                find_inside(prediction, inside);
                count_rows(prediction, row > begin ? prediction_before : prediction, inside, width, full,
                           of_prediction);
                swap(target, target_before);
                swap(prediction, prediction_before);
            }
            if (row - distance < first) continue;
            read(image, row - distance, target, prediction);
            if (row < maps_.height) {
                drop_inside(of_target, full, width, no_class(), target);
                drop_inside(of_prediction, full, width, no_class(), prediction);
            }
            count_row(worker, target, prediction);
        }
    }

    static void swap(K*& a, K*& b) {
        K* const before = a;
        a = b;
        b = before;
    }

    // The keys of a row, those inside dropped.
    void count_row(int64_t worker, const K* target, const K* prediction) const {
        const int64_t classes = maps_.num_classes;
        if (has_own_counts(maps_)) {
            int64_t* const both = counts(worker);
            int64_t* const of_prediction = both + classes + 2;
            int64_t* const of_target = of_prediction + classes + 2;
            runs_of(target, prediction, maps_.width, [=](int64_t begin, int64_t end) {
                const int64_t i = target[begin], j = prediction[begin];
                of_target[i] += end - begin;
                of_prediction[j] += end - begin;
                both[i] += i == j ? end - begin : 0;
            });
            return;
        }
        runs_of(target, prediction, maps_.width, [&](int64_t begin, int64_t end) {
            const int64_t i = target[begin], j = prediction[begin];
            if (i < classes) add_shared(maps_.counts + 2 * classes + i, end - begin);
            if (j < classes) add_shared(maps_.counts + classes + j, end - begin);
            if (i < classes && i == j) add_shared(maps_.counts + i, end - begin);
        });
    }

    void add_counts() const {
        const int64_t classes = maps_.num_classes;
        for (int64_t worker = 0; worker < workers_; ++worker) {
            for (int64_t kind = 0; kind < 3; ++kind) {
                const int64_t* const from = counts(worker) + kind * (classes + 2);
                for (int64_t c = 0; c < classes; ++c) maps_.counts[kind * classes + c] += from[c];
            }
        }
    }

    const BoundaryParams& p_;
    const MetricsParams& maps_;
    const Bands bands_;
    const int workers_;
    Workspace workspace_;
    const BoundaryScratch s_;
    const KeyReader prediction_, target_;
};

template <class K>
void run_boundary(const BoundaryParams& p, void* workspace, std::size_t bytes, int workers) {
    switch (counter_bytes(p)) {
        case 1:
            return Boundary<K, uint8_t>(p, workspace, bytes, workers).run();
        case 2:
            return Boundary<K, uint16_t>(p, workspace, bytes, workers).run();
        default:
            return Boundary<K, uint32_t>(p, workspace, bytes, workers).run();
    }
}

}  // namespace

void confusion_matrix_level(const ConfusionParams& p, void* workspace, std::size_t bytes, int workers) {
    switch (key_bytes(p.maps)) {
        case 1:
            return Confusion<uint8_t>(p, workspace, bytes, workers).run();
        case 2:
            return Confusion<uint16_t>(p, workspace, bytes, workers).run();
        default:
            return Confusion<uint32_t>(p, workspace, bytes, workers).run();
    }
}

void boundary_iou_level(const BoundaryParams& p, void* workspace, std::size_t bytes, int workers) {
    switch (key_bytes(p.maps)) {
        case 1:
            return run_boundary<uint8_t>(p, workspace, bytes, workers);
        case 2:
            return run_boundary<uint16_t>(p, workspace, bytes, workers);
        default:
            return run_boundary<uint32_t>(p, workspace, bytes, workers);
    }
}

}  // namespace OVS_ISA
}  // namespace ovs
