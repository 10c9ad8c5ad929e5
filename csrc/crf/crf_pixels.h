// Rows of classes of pixels on a CPU: from and to planes, and the softmax of logarithms to base 2; included per
// instruction-set level.
#pragma once
#include "common/exp2.h"
#include "common/transpose.h"
#include "crf/crf_rows.h"

namespace ovs {
namespace OVS_ISA {
namespace {

constexpr double kPadLogit = -3e38;  // of the classes that pad a row: below every clamped energy, so Q is 0 there
constexpr double kLargestEnergy = 1e30;
constexpr double kLog2E = 1.44269504088896340736;  // logits and messages are logarithms to base 2

// log(x) for normal positive x as straight-line code: x = m 2^n with m near 1, and the series of atanh((m - 1) / (m +
// 1)), worst absolute error 2e-7 max(1, |log x|).
template <class V>
OVS_INLINE V log_positive(const V& x) {
    constexpr int kLanes = sizeof(V) / sizeof(x[0]);
    if constexpr (sizeof(x[0]) == 8) {
        V out = {};
        for (int k = 0; k < kLanes; ++k) out[k] = __builtin_log(x[k]);
        return out;
    } else {
        using Bits = Vec<uint32_t, kLanes>;
        using Ints = Vec<int32_t, kLanes>;
        const Bits shifted = (Bits)x - 0x3f3504f3u;  // of sqrt(1/2): m is in [sqrt(1/2), sqrt(2))
        const Ints n = (Ints)shifted >> 23;
        const V m = (V)((shifted & 0x007fffffu) + 0x3f3504f3u);
        const V f = (m - 1.0f) / (m + 1.0f), g = f * f;
        const V series = 2.0f * f * (1.0f + g * (0.333333333f + g * (0.2f + g * (0.142857143f + g * 0.111111111f))));
        return __builtin_convertvector(n, V) * 0.693147181f + series;
    }
}

template <class T>
struct Pixels {
    using R = Rows<T>;
    using V = typename R::V;
    using Ints = Vec<std::conditional_t<sizeof(T) == 8, int64_t, int32_t>, R::kLanes>;
    static constexpr int kLanes = R::kLanes;

    // Rows of 2^(row - its largest), from `from` to `to`, which may be the same, and 1 / the sum of each to `inverse`.
    static void softmax(const T* from, T* to, int64_t count, int64_t pitch, T* inverse) {
        switch (pitch / kLanes) {
            case 1:
                return softmax<1>(from, to, count, pitch, inverse);
            case 2:
                return softmax<2>(from, to, count, pitch, inverse);
            case 3:
                return softmax<3>(from, to, count, pitch, inverse);
            case 4:
                return softmax<4>(from, to, count, pitch, inverse);
            case 6:
                return softmax<6>(from, to, count, pitch, inverse);
            default:
                return softmax<0>(from, to, count, pitch, inverse);
        }
    }

    static void scale(T* rows, int64_t count, int64_t pitch, const T* factors) {
        for (int64_t k = 0; k < count; ++k, rows += pitch) {
            for (int64_t c = 0; c < pitch; c += kLanes) store(rows + c, factors[k] * load<V>(rows + c));
        }
    }

    // Planes of probabilities or energies to the rows of logits of a tile.
    static void read_logits(const CrfProblem& p, const Tile& tile, int64_t pitch, T* rows) {
        const T* const scores = static_cast<const T*>(p.scores);
        for_each_group(p, tile, [&](int64_t pixel, int64_t lanes) {
            for (int64_t c = 0; c < pitch; c += kLanes) {
                V block[kLanes];
                OVS_UNROLL
                for (int k = 0; k < kLanes; ++k) {
                    block[k] = V{} + static_cast<T>(kPadLogit);
                    if (c + k < p.num_classes) {
                        block[k] = logits(p, load_some(scores + (c + k) * p.num_points + pixel, lanes));
                    }
                }
                transpose_square<T>(block);
                OVS_UNROLL
                for (int k = 0; k < kLanes; ++k) {
                    if (k < lanes) store(rows + k * pitch + c, block[k]);
                }
            }
            rows += lanes * pitch;
        });
    }

    // The rows of a tile's Q to the caller: planes, or labels.
    static void write(const CrfProblem& p, const Tile& tile, int64_t pitch, const T* rows) {
        T* const out = static_cast<T*>(p.out);
        for_each_group(p, tile, [&](int64_t pixel, int64_t lanes) {
            V best = V{} - T(1);
            Ints label = {};
            for (int64_t c = 0; c < p.num_classes; c += kLanes) {
                V block[kLanes];
                OVS_UNROLL
                for (int k = 0; k < kLanes; ++k) block[k] = load<V>(rows + (k < lanes ? k : 0) * pitch + c);
                transpose_square<T>(block);
                OVS_UNROLL
                for (int k = 0; k < kLanes; ++k) {
                    if (c + k >= p.num_classes) continue;
                    if (p.labels == nullptr) {
                        store_some(out + (c + k) * p.num_points + pixel, block[k], lanes);
                    } else {
                        const Ints better = block[k] > best;
                        best = better ? block[k] : best;
                        label = better ? Ints{} + static_cast<int32_t>(c + k) : label;
                    }
                }
            }
            if (p.labels != nullptr) write_labels(p, pixel, lanes, label);
            rows += lanes * pitch;
        });
    }

private:
    OVS_INLINE static V larger(const V& a, const V& b) { return b > a ? b : a; }

    // As many pixels as lanes at a time, so that no sum goes across lanes. kVectors: of a row, 0 if known at run time
    // only.
    template <int kVectors>
    static void softmax(const T* from, T* to, int64_t count, int64_t pitch, T* inverse) {
        const int64_t width = kVectors > 0 ? kVectors * kLanes : pitch;
        for (int64_t row = 0; row < count; row += kLanes) {
            const int64_t lanes = std::min<int64_t>(kLanes, count - row);
            const T* const in = from + row * width;
            V tops[kLanes], sums[kLanes];
            OVS_UNROLL
            for (int k = 0; k < kLanes; ++k) tops[k] = top_of<kVectors>(in + (k < lanes ? k : 0) * width, width);
            transpose_square<T>(tops);
            OVS_UNROLL
            for (int k = 1; k < kLanes; ++k) tops[0] = larger(tops[0], tops[k]);
            T top[kLanes];
            store(top, tops[0]);
            for (int k = 0; k < kLanes; ++k) {
                sums[k] = V{} + T(1);
                if (k >= lanes) continue;
                sums[k] = exponentials<kVectors>(in + k * width, to + (row + k) * width, width, top[k]);
            }
            transpose_square<T>(sums);
            OVS_UNROLL
            for (int k = 1; k < kLanes; ++k) sums[0] += sums[k];
            store_some(inverse + row, T(1) / sums[0], lanes);
        }
    }

    template <int kVectors>
    OVS_INLINE static V top_of(const T* row, int64_t width) {
        V top = load<V>(row);
        if constexpr (kVectors > 0) {
            OVS_UNROLL
            for (int k = 1; k < kVectors; ++k) top = larger(top, load<V>(row + k * kLanes));
        } else {
            for (int64_t c = kLanes; c < width; c += kLanes) top = larger(top, load<V>(row + c));
        }
        return top;
    }

    // Returns the sum of all vectors.
    template <int kVectors>
    OVS_INLINE static V exponentials(const T* from, T* to, int64_t width, T top) {
        V sum = {};
        const auto step = [&](int64_t c) OVS_INLINE_LAMBDA {
            const V e = exp2_nonpositive<V>(load<V>(from + c) - top);
            sum += e;
            store(to + c, e);
        };
        if constexpr (kVectors > 0) {
            OVS_UNROLL
            for (int k = 0; k < kVectors; ++k) step(k * kLanes);
        } else {
            for (int64_t c = 0; c < width; c += kLanes) step(c);
        }
        return sum;
    }

    // Calls fn(pixel, how many) for the pixels of a tile, in its order.
    template <class Fn>
    OVS_INLINE static void for_each_group(const CrfProblem& p, const Tile& tile, const Fn& fn) {
        tile.for_each_run([&](int64_t x, int64_t y, int64_t length) {
            for (int64_t k = 0; k < length; k += kLanes) {
                fn(y * p.width + x + k, std::min<int64_t>(kLanes, length - k));
            }
        });
    }

    OVS_INLINE static V load_some(const T* from, int64_t lanes) {
        if (lanes == kLanes) return load<V>(from);
        V v = {};
        for (int64_t k = 0; k < lanes; ++k) v[k] = from[k];
        return v;
    }
    OVS_INLINE static void store_some(T* to, const V& v, int64_t lanes) {
        if (lanes == kLanes) return store(to, v);
        for (int64_t k = 0; k < lanes; ++k) to[k] = v[k];
    }

    OVS_INLINE static V logits(const CrfProblem& p, const V& score) {
        if (p.energies) {
            const V most = V{} + static_cast<T>(kLargestEnergy);
            const V energy = score < most ? score : most;  // NaN too
            return static_cast<T>(-kLog2E) * (energy > -most ? energy : -most);
        }
        const V least = V{} + static_cast<T>(p.clip), one = V{} + T(1);
        const V clipped = score > least ? score : least;  // NaN too
        return static_cast<T>(kLog2E) * log_positive<V>(clipped < one ? clipped : one);
    }

    OVS_INLINE static void write_labels(const CrfProblem& p, int64_t pixel, int64_t lanes, const Ints& label) {
        for (int64_t k = 0; k < lanes; ++k) {
            if (p.label_bytes == 1) {
                static_cast<uint8_t*>(p.labels)[pixel + k] = static_cast<uint8_t>(label[k]);
            } else {
                static_cast<int32_t*>(p.labels)[pixel + k] = static_cast<int32_t>(label[k]);
            }
        }
    }
};

}  // namespace
}  // namespace OVS_ISA
}  // namespace ovs
