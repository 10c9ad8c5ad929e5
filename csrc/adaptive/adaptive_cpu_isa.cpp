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
        pixels_ = {static_cast<T*>(transposed_ ? p.out : p.input), transposed_ ? p.height : in_height_,
                   transposed_ ? p.width : in_width_, transposed_ ? p.filter_height - 1 : 0,
                   transposed_ ? p.filter_width - 1 : 0};
    }

    void run() {
        const int64_t strips = ceil_div(width_, kStripColumns);
        const int64_t wanted = ceil_div(kItemsPerWorker * threads_, strips * p_.batch);
        const int64_t block_rows = round_up(ceil_div(height_, wanted), kTileRows);
        const int64_t blocks = ceil_div(height_, block_rows);
        int64_t next = 0;
        const int64_t items = p_.batch * strips * blocks;
        parallel_for(std::min<int64_t>(threads_, items), threads_, [&](int64_t worker) {
            for (;;) {
                const int64_t item = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED);
                if (item >= items) return;
                const int64_t y0 = item % blocks * block_rows;
                const int64_t strip = item / blocks % strips, b = item / blocks / strips;
                make_block(worker, b, strip * kStripColumns, y0, std::min(y0 + block_rows, height_));
            }
        });
    }

private:
    static constexpr int kLanes = kVectorBytes / sizeof(T);
    using V = Vec<T, kLanes>;
    static_assert(kStripColumns % kLanes == 0, "a tile has whole vectors");

    // What windows are cut from: planes of height x width; the window of the tile at (y, x) begins at (y - up, x -
    // left).
    struct Pixels {
        T* data;
        int64_t height, width, up, left;
    };

    // A tile while it is being made.
    struct Tile {
        int64_t b, y, x, columns;  // columns of it inside the array
        T* taps;
        T* window;
        T* centre;
    };

    void make_block(int64_t worker, int64_t b, int64_t x, int64_t y0, int64_t y1) const {
        Tile tile = {b,
                     y0,
                     x,
                     std::min(kStripColumns, width_ - x),
                     scratch_.taps + worker * scratch_.taps_stride,
                     scratch_.window + worker * scratch_.window_stride,
                     scratch_.centre + worker * scratch_.centre_stride};
        const int64_t most = std::min(y1 - y0, p_.filter_height);
        if (most >= kTileRows) {
            make_tiles<kTileRows>(tile, y0, y1);
        } else if (most >= kTileRows / 2) {
            make_tiles<kTileRows / 2>(tile, y0, y1);
        } else {
            make_tiles<1>(tile, y0, y1);
        }
    }

    // The last tile overlaps the one before it where the rows do not divide: what it makes again has the same bits.
    template <int kRows>
    void make_tiles(Tile& tile, int64_t y0, int64_t y1) const {
        const TapOrder order = {kRows, p_.filter_height, p_.filter_width};
        for (int64_t y = y0; y < y1; y += kRows) {
            tile.y = std::min(y, y1 - kRows);
            if (p_.pass == AdaptivePass::kFiltersBackward) {
                make_filters<kRows>(tile, order);
            } else {
                pack_filters(tile, order);
                make_channels<kRows>(tile);
            }
        }
    }

    T* filters(int64_t b, int64_t y, int64_t x, int64_t i) const {
        const int64_t pixel = (b * p_.height + y) * p_.width + x;
        return static_cast<T*>(p_.filters) + (pixel * p_.filter_height + i) * p_.filter_width;
    }

    // The filters that meet the tile's rows, as rows of columns; zero where there is no pixel.
    void pack_filters(const Tile& tile, const TapOrder& order) const {
        const int64_t taps = p_.filter_width, pitch = sizes_.taps_pitch, stride = p_.filter_height * taps;
        const int64_t x0 = tile.x - pixels_.left;
        const int64_t begin = std::max<int64_t>(x0, 0), end = std::min(x0 + pitch, p_.width);
        for (int64_t y = 0; y < order.rows; ++y) {
            for (int64_t i = 0; i < p_.filter_height; ++i) {
                const int64_t step = order.num_rows(y + i) * pitch;
                T* const first = tile.taps + order.index(y, i) * pitch;
                const int64_t row = transposed_ ? tile.y + y + i - pixels_.up : tile.y + y;
                if (row < 0 || row >= p_.height || begin > x0 || end < x0 + pitch) {
                    for (int64_t j = 0; j < taps; ++j) std::fill_n(first + j * step, pitch, T(0));
                }
                if (row < 0 || row >= p_.height || begin >= end) continue;
                const T* const from = filters(tile.b, row, begin, transposed_ ? p_.filter_height - 1 - i : i);
                T* const to = first + (begin - x0);
                transposed_ ? turn(from, stride, to + (taps - 1) * step, -step, end - begin, taps)
                            : turn(from, stride, to, step, end - begin, taps);
            }
        }
    }

    void copy_windows(const Tile& tile, int64_t c, int64_t channels, int64_t rows) const {
        const int64_t columns = kStripColumns + p_.filter_width - 1;
        for (int64_t k = 0; k < channels; ++k) {
            const int64_t plane = (tile.b * p_.num_channels + c + k) * pixels_.height * pixels_.width;
            copy_window(pixels_.data + plane, pixels_.height, pixels_.width, tile.y - pixels_.up, tile.x - pixels_.left,
                        tile.window + k * sizes_.window_plane, rows + p_.filter_height - 1, round_up(columns, kQuad),
                        sizes_.window_pitch);
        }
    }

    template <int kRows>
    void make_channels(const Tile& tile) const {
        for (int64_t c = 0; c < p_.num_channels;) {
            const int64_t left = p_.num_channels - c;
            if (left >= kChannels) {
                make_group<kRows, kChannels>(tile, c);
                c += kChannels;
            } else {
                make_group<kRows, 1>(tile, c);
                c += 1;
            }
        }
    }

    template <int kRows, int kGroup>
    void make_group(const Tile& tile, int64_t c) const {
        copy_windows(tile, c, kGroup, kRows);
        T* const out = static_cast<T*>(transposed_ ? p_.input : p_.out);
        const int64_t plane = height_ * width_;
        T* const corner = out + (tile.b * p_.num_channels + c) * plane + tile.y * width_ + tile.x;
        for (int64_t x = 0; x < tile.columns; x += kLanes) {
            TapSums<T, kRows, kGroup> s;
            s.add(tile.window + x, sizes_.window_plane, sizes_.window_pitch, tile.taps + x, sizes_.taps_pitch,
                  transposed_ ? 1 : 0, p_.filter_height, p_.filter_width);
            const int64_t count = std::min<int64_t>(kLanes, tile.columns - x);
            OVS_UNROLL
            for (int k = 0; k < kGroup; ++k) {
                OVS_UNROLL
                for (int y = 0; y < kRows; ++y) {
                    T* const to = corner + k * plane + y * width_ + x;
                    if (count == kLanes) {
                        store(to, s.sums[k][y]);
                    } else {
                        std::memcpy(to, &s.sums[k][y], static_cast<std::size_t>(count) * sizeof(T));
                    }
                }
            }
        }
    }

    template <int kRows>
    void make_filters(const Tile& tile, const TapOrder& order) const {
        const T* const v_out = static_cast<const T*>(p_.out);
        for (int64_t c = 0; c < p_.num_channels; c += kChannelChunk) {
            const int64_t channels = std::min(kChannelChunk, p_.num_channels - c);
            copy_windows(tile, c, channels, kRows);
            for (int64_t k = 0; k < channels; ++k) {
                const int64_t plane = (tile.b * p_.num_channels + c + k) * p_.height * p_.width;
                copy_window(v_out + plane, p_.height, p_.width, tile.y, tile.x,
                            tile.centre + k * kTileRows * kStripColumns, kRows, kStripColumns, kStripColumns);
            }
            for (int64_t x = 0; x < tile.columns; x += kLanes) {
                T* taps = tile.taps + x;
                for (int64_t r = 0; r < kRows + p_.filter_height - 1; ++r) {
                    taps = add_tap_row(tile, order, r, x, channels, taps, c == 0);
                }
            }
        }
        const int64_t pitch = sizes_.taps_pitch, stride = p_.filter_height * p_.filter_width;
        for (int64_t y = 0; y < kRows; ++y) {
            for (int64_t i = 0; i < p_.filter_height; ++i) {
                turn(tile.taps + order.index(y, i) * pitch, order.num_rows(y + i) * pitch,
                     filters(tile.b, tile.y + y, tile.x, i), stride, p_.filter_width, tile.columns);
            }
        }
    }

    // All taps that meet row r of the windows. Returns where the next row's sums begin.
    T* add_tap_row(const Tile& tile, const TapOrder& order, int64_t r, int64_t x, int64_t channels, T* taps,
                   bool first) const {
        const int64_t y0 = order.first_row(r), rows = order.num_rows(r), pitch = sizes_.taps_pitch;
        for (int64_t j = 0; j < p_.filter_width; j += kTapGroup) {
            const int64_t group = std::min<int64_t>(kTapGroup, p_.filter_width - j);
            for (int64_t y = 0; y < rows; y += kRowGroup) {
                const T* const row = tile.window + r * sizes_.window_pitch + x + j;
                const T* const centre = tile.centre + (y0 + y) * kStripColumns + x;
                T* const sums = taps + (j * rows + y) * pitch;
                add_group<kRowGroup>(std::min<int64_t>(kRowGroup, rows - y), group, row, centre, channels, sums,
                                     rows * pitch, first);
            }
        }
        return taps + p_.filter_width * rows * pitch;
    }

    // Turns the numbers of rows and taps into compile-time ones.
    template <int kRows>
    void add_group(int64_t rows, int64_t taps, const T* row, const T* centre, int64_t channels, T* sums,
                   int64_t tap_pitch, bool first) const {
        if constexpr (kRows > 1) {
            if (rows < kRows) return add_group<kRows - 1>(rows, taps, row, centre, channels, sums, tap_pitch, first);
        }
        add_taps<kRows, kTapGroup>(taps, row, centre, channels, sums, tap_pitch, first);
    }
    template <int kRows, int kTaps>
    void add_taps(int64_t taps, const T* row, const T* centre, int64_t channels, T* sums, int64_t tap_pitch,
                  bool first) const {
        if constexpr (kTaps > 1) {
            if (taps < kTaps) return add_taps<kRows, kTaps - 1>(taps, row, centre, channels, sums, tap_pitch, first);
        }
        add_channels<T, kRows, kTaps>(row, sizes_.window_plane, centre, kTileRows * kStripColumns, kStripColumns,
                                      channels, sums, sizes_.taps_pitch, tap_pitch, first);
    }

    const AdaptiveParams& p_;
    AdaptiveTileSizes sizes_;
    int threads_;
    Workspace workspace_;
    AdaptiveScratch<T> scratch_;
    int64_t in_height_, in_width_;
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
