// adaptive_conv on a CPU; compiled once per instruction-set level.
//
// The array that a pass makes is cut into tiles of 32 columns and up to 6 rows. The filters of a tile are turned once,
// so that a tap is a row of columns, and serve all channels. Per group of channels the window of pixels under the tile
// is copied to where it is dense (planes of a power of two bytes would fight for the same lines of the cache) and where
// what lies outside of the image is zero. Then vectors of columns are multiplied and added in registers.
//
// The gradient by the input is the same with filters and taps turned round: the pixel (y, x) of the input gets from the
// pixels (y - i, x - j) of the result. The gradient by the filters adds up channels per tap and turns the sums back.
#include "adaptive/adaptive_cpu.h"
#include "adaptive/adaptive_pack.h"
#include "adaptive/adaptive_tile.h"
#include "common/index.h"
#include "common/parallel.h"
#include "common/simd.h"

namespace ovs {
namespace OVS_ISA {
namespace {

constexpr int64_t kItemsPerWorker = 8;  // enough for an even load

// Sums that fit into the registers: 16 of them at the levels v2 and v3, else 32.
constexpr bool kFewRegisters = OVS_ISA_LEVEL == 2 || OVS_ISA_LEVEL == 3;
constexpr int kChannels = kFewRegisters ? 2 : 4;  // of kTileRows rows
constexpr int kRowGroup = kFewRegisters ? 2 : 3;  // of kTapGroup taps
constexpr int kTapGroup = kFewRegisters ? 4 : 7;

template <class T>
class Conv {
public:
    Conv(const AdaptiveParams& p, void* workspace, std::size_t bytes, int threads)
        : p_(p), sizes_(p), threads_(threads), workspace_(workspace, bytes), scratch_(sizes_, threads, workspace_) {
        in_height_ = p.height + p.filter_height - 1;
        in_width_ = p.width + p.filter_width - 1;
        transposed_ = p.pass == AdaptivePass::kInputBackward;
        height_ = transposed_ ? in_height_ : p.height;
        width_ = transposed_ ? in_width_ : p.width;
        num_taps_ = p.filter_height * p.filter_width;
        pixels_ = {static_cast<const T*>(transposed_ ? p.out : p.input), transposed_ ? p.height : in_height_,
                   transposed_ ? p.width : in_width_, transposed_ ? p.filter_height - 1 : 0,
                   transposed_ ? p.filter_width - 1 : 0};
    }

    void run() {
        const int64_t strips = ceil_div(width_, sizes_.columns);
        const int64_t wanted = ceil_div(kItemsPerWorker * threads_, strips * p_.batch);
        const int64_t block_rows = round_up(ceil_div(height_, wanted), kTileRows);
        const int64_t blocks = std::max<int64_t>(1, height_ / block_rows);  // the last one takes the rest
        const int64_t items = p_.batch * strips * blocks;
        int64_t next = 0;
        parallel_for(std::min<int64_t>(threads_, items), threads_, [&](int64_t worker) {
            for (;;) {
                const int64_t item = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED);
                if (item >= items) return;
                const int64_t block = item % blocks, strip = item / blocks % strips, b = item / blocks / strips;
                const int64_t y0 = block * block_rows, y1 = block + 1 < blocks ? y0 + block_rows : height_;
                make_block(worker, b, strip * sizes_.columns, y0, y1);
            }
        });
    }

private:
    static constexpr int kLanes = kVectorBytes / sizeof(T);
    using V = Vec<T, kLanes>;
    static_assert(kColumns % kLanes == 0 && kWideColumns % kLanes == 0, "a tile has whole vectors");

    // What windows are cut from; the window of the tile at (y, x) begins at (y - up, x - left).
    struct Pixels {
        const T* data;
        int64_t height, width, up, left;
    };

    // A tile while it is being made.
    struct Tile {
        int64_t b, y, x, columns;  // columns of it inside the array
        T* taps;
        T* window;
        T* centre;
    };

    // A tile overlaps the one before it where the rows do not divide: what it makes again has the same bits.
    void make_block(int64_t worker, int64_t b, int64_t x, int64_t y0, int64_t y1) const {
        Tile tile = {b,
                     y0,
                     x,
                     std::min<int64_t>(sizes_.columns, width_ - x),
                     scratch_.taps + worker * scratch_.taps_stride,
                     scratch_.window + worker * scratch_.window_stride,
                     scratch_.centre + worker * scratch_.centre_stride};
        const int64_t most = std::min(y1 - y0, p_.filter_height);
        int64_t rows = kTileRows;
        for (int64_t y = y0; y < y1; y += rows) {
            rows = kTileRows;
            while (rows > most || rows / 2 >= y1 - y) rows /= 2;  // 6, 3, 1
            tile.y = std::min(y, y1 - rows);
            if (rows == kTileRows) {
                make_tile<kTileRows>(tile);
            } else if (rows > 1) {
                make_tile<kTileRows / 2>(tile);
            } else {
                make_tile<1>(tile);
            }
        }
    }

    template <int kRows>
    void make_tile(const Tile& tile) const {
        if (p_.pass == AdaptivePass::kFiltersBackward) return make_filters<kRows>(tile);
        transposed_ ? pack_window_filters(tile, kRows) : pack_filters(tile, kRows);
        make_channels<kRows>(tile);
    }

    T* filters(int64_t b, int64_t y, int64_t x) const {
        return static_cast<T*>(p_.filters) + ((b * p_.height + y) * p_.width + x) * num_taps_;
    }

    // The filters of the tile's pixels, as rows of columns.
    void pack_filters(const Tile& tile, int64_t rows) const {
        T* to = tile.taps;
        for (int64_t x = 0; x < tile.columns; x += kColumns) {
            for (int64_t y = 0; y < rows; ++y, to += num_taps_ * kColumns) {
                turn<kLanes>(filters(tile.b, tile.y + y, tile.x + x), num_taps_, to, kColumns,
                             std::min(kColumns, tile.columns - x), num_taps_);
            }
        }
    }

    // The filters of the window's pixels, those taps that lead from a row of the window to a row of the tile; zero
    // where there is no pixel.
    void pack_window_filters(const Tile& tile, int64_t rows) const {
        const int64_t pitch = sizes_.taps_pitch, x0 = tile.x - pixels_.left;
        const int64_t begin = std::max<int64_t>(x0, 0), end = std::min(x0 + pitch, p_.width);
        for (int64_t r = 0; r < rows + p_.filter_height - 1; ++r) {
            // Row y of the tile gets the row i = top + y of taps.
            const int64_t top = p_.filter_height - 1 - r;
            const int64_t first = std::max<int64_t>(0, top) * p_.filter_width;
            const int64_t last = std::min(p_.filter_height, top + rows) * p_.filter_width;
            const int64_t y = tile.y + r - pixels_.up;
            T* const to = tile.taps + ((r * rows - top) * p_.filter_width + first) * pitch;
            const bool inside = y >= 0 && y < p_.height && begin < end;
            if (!inside || end - begin < pitch) std::fill_n(to, (last - first) * pitch, T(0));
            if (!inside) continue;
            turn<kLanes>(filters(tile.b, y, begin) + first, num_taps_, to + (begin - x0), pitch, end - begin,
                         last - first);
        }
    }

    // Where the sums of a tile of `rows` rows find their filters.
    const T* tap_strides(const Tile& tile, int64_t rows, TapStrides& strides) const {
        const int64_t pitch = sizes_.taps_pitch, row = p_.filter_width * pitch;
        if (!transposed_) {
            strides = {row, num_taps_ * pitch - row, pitch};
            return tile.taps;
        }
        // Taps of a row from last to first, and with each the column of the window's pixel moves on.
        strides = {rows * row, row, 1 - pitch};
        return tile.taps + row - pitch;
    }

    // The pixels under a tile, of some channels: planes and rows of them.
    struct Window {
        const T* data;
        int64_t plane, pitch;
    };

    // Where they lie in the array, if every vector of them may be read there, else copied. Columns behind the end of a
    // row are other pixels then: they meet filters of columns that are not stored, or in the input's gradient none.
    Window window_of(const Tile& tile, int64_t c, int64_t channels, int64_t rows) const {
        const int64_t y = tile.y - pixels_.up, x = tile.x - pixels_.left, size = pixels_.height * pixels_.width;
        const int64_t below = y + rows + p_.filter_height - 1,
                      columns = round_up(tile.columns, kLanes) + p_.filter_width - 1;
        const int64_t first = (tile.b * p_.num_channels + c) * size + y * pixels_.width + x;
        const int64_t last = first + (channels - 1) * size + (below - 1 - y) * pixels_.width + columns;
        const bool inside = y >= 0 && x >= 0 && below <= pixels_.height && x + columns <= pixels_.width;
        if (transposed_ ? inside : last <= p_.batch * p_.num_channels * size) {
            return {pixels_.data + first, size, pixels_.width};
        }
        copy_windows(tile, c, channels, rows);
        return {tile.window, sizes_.window_plane, sizes_.window_pitch};
    }

    void copy_windows(const Tile& tile, int64_t c, int64_t channels, int64_t rows) const {
        const int64_t size = pixels_.height * pixels_.width, columns = sizes_.columns + p_.filter_width - 1;
        const int64_t first = tile.b * p_.num_channels + c;
        for (int64_t k = 0; k < channels; ++k) {
            const Plane<T> plane = {pixels_.data + (first + k) * size, pixels_.height, pixels_.width,
                                    (p_.batch * p_.num_channels - first - k) * size};
            T* const to = tile.window + k * sizes_.window_plane;
            const int64_t y = tile.y - pixels_.up, x = tile.x - pixels_.left;
            transposed_
                ? copy_window<true>(plane, y, x, rows + p_.filter_height - 1, columns, to, sizes_.window_pitch)
                : copy_window<false>(plane, y, x, rows + p_.filter_height - 1, columns, to, sizes_.window_pitch);
        }
    }

    template <int kRows>
    void make_channels(const Tile& tile) const {
        int64_t c = 0;
        for (; c + kChannels <= p_.num_channels; c += kChannels) make_group<kRows, kChannels>(tile, c);
        for (; c < p_.num_channels; ++c) make_group<kRows, 1>(tile, c);
    }

    template <int kRows, int kGroup>
    void make_group(const Tile& tile, int64_t c) const {
        const Window window = window_of(tile, c, kGroup, kRows);
        TapStrides strides;
        const T* const taps = tap_strides(tile, kRows, strides);
        T* const made = static_cast<T*>(transposed_ ? p_.input : p_.out);
        const int64_t plane = height_ * width_;
        T* const corner = made + (tile.b * p_.num_channels + c) * plane + tile.y * width_ + tile.x;
        for (int64_t x = 0; x < tile.columns; x += kLanes) {
            TapSums<T, kRows, kGroup> s;
            const int64_t at = transposed_ ? x : x / kColumns * kColumns * kRows * num_taps_ + x % kColumns;
            s.add(window.data + x, window.plane, window.pitch, taps + at, strides, p_.filter_height, p_.filter_width);
            for_constants<kGroup * kRows>(OVS_BODY(index) {
                constexpr int k = index / kRows, y = index % kRows;
                store_first(corner + k * plane + y * width_ + x, s.sums[k][y], tile.columns - x);
            });
        }
    }

    template <int kRows>
    void make_filters(const Tile& tile) const {
        const T* const v_out = static_cast<const T*>(p_.out);
        const int64_t size = p_.height * p_.width, first = tile.b * p_.num_channels;
        for (int64_t c = 0; c < p_.num_channels; c += kChannelChunk) {
            const int64_t channels = std::min(kChannelChunk, p_.num_channels - c);
            copy_windows(tile, c, channels, kRows);
            for (int64_t k = c; k < c + channels; ++k) {
                const Plane<T> plane = {v_out + (first + k) * size, p_.height, p_.width,
                                        (p_.batch * p_.num_channels - first - k) * size};
                copy_window<false>(plane, tile.y, tile.x, kRows, sizes_.columns,
                                   tile.centre + (k - c) * kTileRows * sizes_.columns, sizes_.columns);
            }
            for (int64_t x = 0; x < tile.columns; x += kLanes) {
                for (int64_t r = 0; r < kRows + p_.filter_height - 1; ++r) {
                    add_tap_row(tile, kRows, r, x, channels, c == 0);
                }
            }
        }
        for (int64_t y = 0; y < kRows; ++y) {
            turn<kLanes>(tile.taps + y * num_taps_ * sizes_.taps_pitch, sizes_.taps_pitch,
                         filters(tile.b, tile.y + y, tile.x), num_taps_, num_taps_, tile.columns);
        }
    }

    // All taps that lead from a row of the tile to row r of the window.
    void add_tap_row(const Tile& tile, int64_t rows, int64_t r, int64_t x, int64_t channels, bool first) const {
        const int64_t y0 = std::max<int64_t>(0, r - p_.filter_height + 1), y1 = std::min(rows, r + 1);
        TapStrides strides;
        tap_strides(tile, rows, strides);
        for (int64_t j = 0; j < p_.filter_width; j += kTapGroup) {
            const int64_t group = std::min<int64_t>(kTapGroup, p_.filter_width - j);
            for (int64_t y = y0; y < y1; y += kRowGroup) {
                const T* const row = tile.window + r * sizes_.window_pitch + x + j;
                const T* const centre = tile.centre + y * sizes_.columns + x;
                T* const sums = tile.taps + r * strides.per_window_row + y * strides.per_row + j * strides.per_tap + x;
                add_group<kRowGroup>(std::min<int64_t>(kRowGroup, y1 - y), group, row, centre, channels, sums, strides,
                                     first);
            }
        }
    }

    // Turns the numbers of rows and taps into compile-time ones.
    template <int kRows>
    void add_group(int64_t rows, int64_t taps, const T* row, const T* centre, int64_t channels, T* sums,
                   const TapStrides& strides, bool first) const {
        if constexpr (kRows > 1) {
            if (rows < kRows) return add_group<kRows - 1>(rows, taps, row, centre, channels, sums, strides, first);
        }
        add_taps<kRows, kTapGroup>(taps, row, centre, channels, sums, strides, first);
    }
    template <int kRows, int kTaps>
    void add_taps(int64_t taps, const T* row, const T* centre, int64_t channels, T* sums, const TapStrides& strides,
                  bool first) const {
        if constexpr (kTaps > 1) {
            if (taps < kTaps) return add_taps<kRows, kTaps - 1>(taps, row, centre, channels, sums, strides, first);
        }
        add_channels<T, kRows, kTaps>(row, sizes_.window_plane, centre, kTileRows * sizes_.columns, sizes_.columns,
                                      channels, sums, strides.per_row, strides.per_tap, first);
    }

    const AdaptiveParams& p_;
    AdaptiveTileSizes sizes_;
    int threads_;
    Workspace workspace_;
    AdaptiveScratch<T> scratch_;
    int64_t in_height_, in_width_, num_taps_;
    bool transposed_;
    int64_t height_, width_;  // of the array that is made, for the filters' gradient in pixels
    Pixels pixels_;
};

}  // namespace

void adaptive_conv_level(const AdaptiveParams& p, DType dtype, void* workspace, std::size_t bytes, int threads) {
    if (dtype == DType::kFloat64) {
        Conv<double>(p, workspace, bytes, threads).run();
    } else {
        Conv<float>(p, workspace, bytes, threads).run();
    }
}

}  // namespace OVS_ISA
}  // namespace ovs
