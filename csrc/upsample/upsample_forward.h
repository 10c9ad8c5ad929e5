// Per level: maps packed for the products, and one tile after another upsampled or labelled.
#pragma once
#include <type_traits>

#include "common/parallel.h"
#include "upsample/upsample_tile.h"

namespace ovs {
namespace OVS_ISA {
namespace {

enum ClassFlag : uint8_t { kHasInfinity = 1, kHasNan = 2 };

template <class T>
OVS_INLINE bool is_finite(T x) {
    return x - x == T(0);
}

template <class T>
class Upsampler {
public:
    Upsampler(const UpsampleParams& p, const UpsampleGrid& g, const UpsampleBuffers<T>& b)
        : p_(p), g_(g), b_(b), tile_weights_(p, g, b), maps_(static_cast<const T*>(p.maps)) {}

    void run(int threads) const {
        const int64_t blocks = ceil_div(p_.num_classes, kBlockClasses);
        parallel_for(blocks, threads, [&](int64_t block) { pack(block); });
        parallel_for(p_.num_classes, threads, [&](int64_t c) { sum_special(c); });
        bool special = false;
        for (int64_t c = 0; c < p_.num_classes; ++c) special |= b_.class_flags[c] != 0;
        // Rows of tiles, in parts where there are few: workers take them as they come.
        const int64_t parts = std::clamp<int64_t>(ceil_div(kItemsPerWorker * threads, g_.row_cut.count), 1,
                                                  ceil_div(g_.column_cut.count, 4));
        const int64_t columns = ceil_div(g_.column_cut.count, parts), items = g_.row_cut.count * parts;
        int64_t next = 0;
        parallel_for(std::min<int64_t>(threads, items), threads, [&](int64_t worker) {
            UpsampleScratch<T> scratch[kMostNeighbours];
            for (int64_t j = 0; j < b_.neighbours; ++j) scratch[j] = b_.of_worker(worker, j);
            for (;;) {
                const int64_t item = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED);
                if (item >= items) {
                    finish_stream();
                    return;
                }
                const int64_t row = item / parts, first = item % parts * columns;
                const int64_t end = std::min(first + columns, g_.column_cut.count);
                for (int64_t column = first; column < end; column += b_.neighbours) {
                    upsample(row, column, std::min(column + b_.neighbours, end), scratch, special);
                }
            }
        });
    }

private:
    static constexpr int64_t kStreamedNumbers = int64_t{16} << 20;  // does not fit into a cache anyway
    static constexpr int64_t kItemsPerWorker = 8;                   // enough for an even load
    using V = Vec<T, kLanes<T>>;

    // kBlockClasses classes side by side at each node, zero where a value is not finite.
    void pack(int64_t block) const {
        const int64_t first = block * kBlockClasses, classes = std::min<int64_t>(kBlockClasses, p_.num_classes - first);
        T* const packed = b_.packed + block * b_.nodes * kBlockClasses;
        for (int64_t g = 0; g < kBlockClasses; ++g) {
            if (g >= classes) {
                for (int64_t i = 0; i < b_.nodes; ++i) packed[i * kBlockClasses + g] = T(0);
                continue;
            }
            const T* const map = maps_ + (first + g) * b_.nodes;
            bool finite = true, nan = false;
            for (int64_t i = 0; i < b_.nodes; ++i) {
                const bool good = is_finite(map[i]);
                finite &= good;
                nan |= map[i] != map[i];
                packed[i * kBlockClasses + g] = good ? map[i] : T(0);
            }
            // A NaN that is not to be left out is like an infinity.
            const bool infinite = !finite && (!p_.omit || has_infinity(map));
            b_.class_flags[first + g] =
                static_cast<uint8_t>((infinite ? kHasInfinity : 0) | (p_.omit && nan ? kHasNan : 0));
        }
    }

    bool has_infinity(const T* map) const {
        for (int64_t i = 0; i < b_.nodes; ++i) {
            if (!is_finite(map[i]) && map[i] == map[i]) return true;
        }
        return false;
    }

    // The sum of what is not finite in the window of each node, row sums first.
    void sum_special(int64_t c) const {
        if ((b_.class_flags[c] & kHasInfinity) == 0) return;
        const int64_t h = p_.low_height, w = p_.low_width, r = p_.radius;
        const T* const map = maps_ + c * b_.nodes;
        T* const special = b_.special + c * b_.nodes;
        const auto value = [&](T x) { return is_finite(x) || (p_.omit && x != x) ? T(0) : x; };
        for (int64_t x = 0; x < w; ++x) {
            for (int64_t y = 0; y < h; ++y) {
                T sum = 0;
                for (int64_t i = std::max<int64_t>(0, x - r); i < std::min(w, x + r + 1); ++i) {
                    sum += value(map[y * w + i]);
                }
                special[y * w + x] = sum;
            }
            // The column is complete: sums along it, in place. What a sum leaves behind is not needed any more once
            // `r` rows lie between, so the last r + 1 row sums are kept aside.
            T kept[kMaxUpsampleRadius + 1];
            for (int64_t y = 0; y < h; ++y) {
                T sum = 0;
                for (int64_t i = std::max<int64_t>(0, y - r); i < y; ++i) sum += kept[i % (r + 1)];
                for (int64_t i = y; i < std::min(h, y + r + 1); ++i) sum += special[i * w + x];
                kept[y % (r + 1)] = special[y * w + x];
                special[y * w + x] = sum;
            }
        }
    }

    // The tiles [begin, end) of a row. Neighbours are written together, so that whole cache lines go to memory.
    void upsample(int64_t row, int64_t begin, int64_t end, UpsampleScratch<T>* scratch, bool special) const {
        Tile tiles[kMostNeighbours];
        const int64_t count = end - begin;
        for (int64_t j = 0; j < count; ++j) {
            tiles[j] = Tile(b_.rows.segments[row], b_.columns.segments[begin + j], g_.lanes_per_vector);
            prepare(tiles[j], scratch[j], special);
        }
        for (int64_t first = 0; first < p_.num_classes; first += kBlockClasses) {
            const int classes = static_cast<int>(std::min<int64_t>(kBlockClasses, p_.num_classes - first));
            for (int64_t j = 0; j < count; ++j) multiply_tile(tiles[j], scratch[j], first, classes, special);
            if (p_.labels == nullptr) write_maps(tiles, count, scratch, first, classes);
        }
        if (p_.labels == nullptr) return;
        for (int64_t j = 0; j < count; ++j) write_labels(tiles[j], scratch[j]);
    }

    void prepare(const Tile& t, UpsampleScratch<T>& s, bool special) const {
        tile_weights_.build(t, s);
        if (special) {
            for (int64_t i = 0; i < t.pixels; ++i) {
                s.cell[i] = static_cast<int32_t>(b_.rows.cell[t.rows.begin + i / t.width] * p_.low_width +
                                                 b_.columns.cell[t.columns.begin + i % t.width]);
            }
        }
        if (p_.labels != nullptr) {
            fill_run(-std::numeric_limits<T>::infinity(), s.best, t.lanes);
            fill_run(T(0), s.label, t.lanes);
        }
    }

    void multiply_tile(const Tile& t, UpsampleScratch<T>& s, int64_t first, int classes, bool special) const {
        const int64_t corner = t.rows.node_begin * p_.low_width + t.columns.node_begin;
        const Block<T> block = {b_.packed + first * b_.nodes + corner * kBlockClasses, p_.low_width * kBlockClasses,
                                t.node_rows, t.node_columns};
        multiply(classes, block, s.weights, t.lanes, t.lanes, s.stage, t.lanes);
        if (special) {
            for (int g = 0; g < classes; ++g) add_special(t, s, first + g, s.stage + g * t.lanes);
        }
        if (p_.labels != nullptr) update_labels(t, s, first, classes);
    }

    // What a product cannot know: taps that a class lacks, and values that are not finite.
    void add_special(const Tile& t, UpsampleScratch<T>& s, int64_t c, T* lanes) const {
        const uint8_t flags = b_.class_flags[c];
        if ((flags & kHasNan) != 0) leave_out(t, s, c, lanes);
        if ((flags & kHasInfinity) != 0) {
            const T* const special = b_.special + c * b_.nodes;
            for (int64_t i = 0; i < t.pixels; ++i) lanes[i] += special[s.cell[i]];
        }
    }

    void leave_out(const Tile& t, const UpsampleScratch<T>& s, int64_t c, T* lanes) const {
        const T* const map = maps_ + c * b_.nodes + t.rows.node_begin * p_.low_width + t.columns.node_begin;
        const auto value = [&](int64_t k) { return map[k / t.node_columns * p_.low_width + k % t.node_columns]; };
        bool any = false;
        for (int64_t k = 0; k < t.taps; ++k) any |= value(k) != value(k);
        if (!any) return;
        fill_run(T(0), lanes, t.lanes);
        tile_weights_.without(
            t, s, [&](int64_t k) { return value(k) != value(k); },
            [&](int64_t k, int64_t lane, const V& weight) {
                const T x = value(k);
                store(lanes + lane, load<V>(lanes + lane) + weight * (is_finite(x) ? x : T(0)));
            },
            [&](int64_t lane, const V& sum) { store(lanes + lane, load<V>(lanes + lane) / sum); });
    }

    void write_maps(const Tile* tiles, int64_t count, const UpsampleScratch<T>* scratch, int64_t first,
                    int classes) const {
        bool alike = true;
        for (int64_t j = 1; j < count; ++j) alike &= tiles[j].width == tiles[0].width;
        const auto write = alike && tiles[0].width == 16  ? &Upsampler::write_rows<16>
                           : alike && tiles[0].width == 8 ? &Upsampler::write_rows<8>
                           : alike && tiles[0].width == 4 ? &Upsampler::write_rows<4>
                                                          : &Upsampler::write_rows<0>;
        (this->*write)(tiles, count, scratch, first, classes);
    }

    // kWidth: of every tile, or 0.
    template <int kWidth>
    void write_rows(const Tile* tiles, int64_t count, const UpsampleScratch<T>* scratch, int64_t first,
                    int classes) const {
        constexpr int kStep = kWidth == 0 ? 1 : std::min(kWidth, kLanes<T>);
        using Run = Vec<T, kStep>;
        // A large result, and rows of the tiles that are whole cache lines.
        const int64_t line = 64 / static_cast<int64_t>(sizeof(T));
        const bool streamed = kWidth != 0 && p_.num_classes * p_.height * p_.width >= kStreamedNumbers &&
                              count * kWidth % line == 0 && tiles[0].columns.begin % line == 0 &&
                              p_.width % line == 0 && reinterpret_cast<std::uintptr_t>(p_.up) % 64 == 0;
        for (int g = 0; g < classes; ++g) {
            T* row = static_cast<T*>(p_.up) + ((first + g) * p_.height + tiles[0].rows.begin) * p_.width;
            const T* from[kMostNeighbours];
            for (int64_t j = 0; j < count; ++j) from[j] = scratch[j].stage + g * tiles[j].lanes;
            for (int64_t y = 0; y < tiles[0].height; ++y, row += p_.width) {
                for (int64_t j = 0; j < count; ++j) {
                    T* const to = row + tiles[j].columns.begin;
                    if constexpr (kWidth == 0) {
                        copy_run(from[j], to, tiles[j].width);
                        from[j] += tiles[j].width;
                    } else {
                        OVS_UNROLL
                        for (int i = 0; i < kWidth; i += kStep) {
                            if (streamed) {
                                stream(to + i, load<Run>(from[j] + i));
                            } else {
                                store(to + i, load<Run>(from[j] + i));
                            }
                        }
                        from[j] += kWidth;
                    }
                }
            }
        }
    }

    void update_labels(const Tile& t, UpsampleScratch<T>& s, int64_t first, int classes) const {
        for (int64_t lane = 0; lane < t.lanes; lane += kLanes<T>) {
            V best = load<V>(s.best + lane), label = load<V>(s.label + lane);
            for (int g = 0; g < classes; ++g) {
                const V value = load<V>(s.stage + g * t.lanes + lane), index = static_cast<T>(first + g) - V{};
                label = value > best ? index : label;  // not for NaN, nor for a tie with a smaller index
                best = value > best ? value : best;
            }
            store(s.best + lane, best);
            store(s.label + lane, label);
        }
    }

    void write_labels(const Tile& t, const UpsampleScratch<T>& s) const {
        for (int64_t y = 0; y < t.height; ++y) {
            const int64_t at = (t.rows.begin + y) * p_.width + t.columns.begin;
            const T* const label = s.label + y * t.width;
            const auto write = [&](auto* out) {
                for (int64_t x = 0; x < t.width; ++x)
                    out[x] = static_cast<std::remove_reference_t<decltype(*out)>>(label[x]);
            };
            if (p_.label_bytes == 4) {
                write(static_cast<int32_t*>(p_.labels) + at);
            } else {
                write(static_cast<uint8_t*>(p_.labels) + at);
            }
        }
    }

    const UpsampleParams& p_;
    const UpsampleGrid& g_;
    const UpsampleBuffers<T>& b_;
    TileWeights<T> tile_weights_;
    const T* maps_;
};

}  // namespace
}  // namespace OVS_ISA
}  // namespace ovs
