// lp_pixels on a CPU, one image; compiled once per instruction-set level.
//
// 1. affinity   features, weights of half of the neighbours, degrees (pixels_affinity.h)
// 2. per chunk of classes:
//    pack       scores -> planes of state D^-1/2 Y, classes innermost, each class scaled by a power of two to near 1
//    solve      official or exact, all classes of the chunk advanced together (pixels_stencil.h)
//    unpack     D^1/2 state -> out, or its maximum into the labels
//
// Inner products: float sums over at most 128 pixels, then double partials per (strip, row), added in that order
// whatever the number of threads.
#include <limits>
#include <numeric>
#include <type_traits>

#include "pixels/pixels_affinity.h"
#include "pixels/pixels_stencil.h"

namespace ovs {
namespace OVS_ISA {
namespace {

template <class T>
class ImageSolver {
public:
    ImageSolver(const PixelsParams& p, void* workspace, std::size_t bytes, int threads)
        : p_(p), g_(p), threads_(threads), workspace_(workspace, bytes), b_(p, g_, workspace_) {}

    void run() {
        build_affinity(p_, g_, b_, threads_);
        start_output();
        // One plane at a time, but a last half plane goes with the full one before it: alone it would wait for the
        // weights to come from memory. Two full planes at once are slower than one after the other.
        const int largest = g_.chunk, usual = std::min(largest, kPlaneClasses);
        for (first_class_ = 0; first_class_ < p_.num_classes; first_class_ += classes_) {
            const int64_t left = p_.num_classes - first_class_;
            const bool last = left <= std::min(largest, usual + kClassGranule);
            classes_ = static_cast<int>(last ? left : usual);
            g_.chunk = static_cast<int>(round_up(classes_, kClassGranule));
            scan_classes();
            pack();
            if (p_.mode == SolveMode::kOfficial) {
                solve_official();
            } else {
                solve_exact();
            }
        }
    }

private:
    static constexpr int kWide = kVectorBytes / sizeof(T);
    static constexpr int kLanes = kWide > kClassGranule ? kClassGranule : kWide;  // for the memory-bound sweeps
    using V = Vec<T, kLanes>;
    // Pixels that a sweep takes at a time: all their classes stay in L1; sums over them are T, then go on in double.
    static constexpr int64_t kRun = 64;

    const T* scores(int c) const {
        return static_cast<const T*>(p_.scores) + (first_class_ + c) * g_.height * g_.width;
    }
    // Of a pixel; times the classes of a plane an index into its state, of `front` and `back` the latter.
    int64_t pixel_index(int64_t y, int64_t x) const { return y * g_.pitch + g_.radius + x; }
    int64_t halo_index(int64_t y, int64_t x) const { return pixel_index(y + g_.radius, x); }

    template <class Fn>
    void for_each_plane(const Fn& fn) const {
        for (int index = 0; index < g_.num_planes(); ++index) fn(b_.plane(g_, index));
    }

    // Of each class: whether all scores are finite, the power of two that brings the largest near 1, and |y|^2.
    void scan_classes() {
        const int64_t pixels = g_.height * g_.width;
        parallel_for(g_.chunk, threads_, [&](int64_t c) {
            b_.finite[c] = 1;
            b_.scale[c] = T(1);
            b_.classes[c] = start_class(0.0);
            if (c >= classes_) return;
            const T* y = scores(static_cast<int>(c));
            const T largest = largest_magnitude(y, pixels);
            b_.finite[c] = largest <= std::numeric_limits<T>::max();
            if (b_.finite[c] == 0 || largest == T(0)) return;
            b_.scale[c] = std::ldexp(T(1), std::clamp(-std::ilogb(largest), -120, 120));
            b_.classes[c] = start_class(sum_of_squares(y, pixels, b_.scale[c]));
        });
    }

    // Compared as integers: magnitudes order the same way, NaN and Inf above all, and the loop is vectorised.
    static T largest_magnitude(const T* y, int64_t count) {
        using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
        Bits top = 0;
        for (int64_t i = 0; i < count; ++i) {
            Bits bits;
            std::memcpy(&bits, y + i, sizeof bits);
            top = std::max(top, bits & (~Bits(0) >> 1));
        }
        T largest;
        std::memcpy(&largest, &top, sizeof largest);
        return largest;
    }

    static double sum_of_squares(const T* y, int64_t count, T scale) {
        constexpr int kSums = 16;  // independent ones, so that additions do not wait for each other
        double sums[kSums] = {};
        int64_t i = 0;
        for (; i + kSums <= count; i += kSums) {
            for (int k = 0; k < kSums; ++k) {
                const double value = static_cast<double>(y[i + k] * scale);
                sums[k] += value * value;
            }
        }
        for (; i < count; ++i) sums[0] += static_cast<double>(y[i] * scale) * static_cast<double>(y[i] * scale);
        return std::accumulate(sums, sums + kSums, 0.0);
    }

    // state = D^-1/2 (scale Y), zero outside the image.
    void pack() {
        const bool official = p_.mode == SolveMode::kOfficial;
        for_each_plane([&](const PixelsPlane<T>& plane) {
            const int64_t row = g_.pitch * plane.classes, halo = g_.radius * row, below = halo + g_.height * row;
            std::fill_n(plane.front, halo, T(0));
            std::fill_n(plane.front + below, halo, T(0));
            if (official) return;
            std::fill_n(plane.back, halo, T(0));
            std::fill_n(plane.back + below, halo, T(0));
        });
        parallel_for(g_.height, threads_, [&](int64_t y) {
            for_each_plane([&](const PixelsPlane<T>& plane) {
                const int64_t row = g_.pitch * plane.classes;
                T* out = plane.front + (y + g_.radius) * row;
                pack_row(plane, y, out);
                if (official) return;
                std::memcpy(plane.first + y * row, out, row * sizeof(T));
                std::fill_n(plane.back + (y + g_.radius) * row, row, T(0));
            });
        });
    }

    void pack_row(const PixelsPlane<T>& plane, int64_t y, T* out) const {
        std::fill_n(out, g_.pitch * plane.classes, T(0));
        for (int64_t x0 = 0; x0 < g_.width; x0 += kRun) {
            const int64_t count = std::min(kRun, g_.width - x0);
            T factor[kRun];
            for (int64_t i = 0; i < count; ++i) factor[i] = root(b_.inverse_degree[pixel_index(y, x0 + i)]);
            for (int c = plane.begin; c < std::min(plane.begin + plane.classes, classes_); ++c) {
                if (b_.finite[c] == 0) continue;
                const T* in = scores(c) + y * g_.width + x0;
                T* to = out + (g_.radius + x0) * plane.classes + (c - plane.begin);
                for (int64_t i = 0; i < count; ++i) to[i * plane.classes] = in[i] * b_.scale[c] * factor[i];
            }
        }
    }

    // Adds the partial inner products of `rows` rows into row 0, in order.
    void add_dots(int64_t rows) {
        for (int64_t i = 1; i < rows; ++i) {
            for (int c = 0; c < 2 * g_.chunk; ++c) b_.dot_rows[c] += b_.dot_rows[i * 2 * g_.chunk + c];
        }
    }
    double dot(int which, int c) const { return b_.dot_rows[which * g_.chunk + c]; }

    bool all_frozen() const {
        for (int c = 0; c < classes_; ++c) {
            if (b_.classes[c].frozen == 0) return false;
        }
        return true;
    }

    void solve_official() {
        const double tol = p_.tol;
        bool moved = false;
        for (int step = 0; step < p_.max_iter && !all_frozen(); ++step) {
            apply_operator();
            add_dots(g_.num_strips * g_.height);
            for (int c = 0; c < g_.chunk; ++c) step_class(b_.classes[c], dot(0, c), dot(1, c));
            if (moved) {
                update<false>();
            } else {
                update<true>();
            }
            moved = true;
            add_dots(g_.height);
            for (int c = 0; c < g_.chunk; ++c) finish_step(b_.classes[c], dot(0, c), tol);
        }
        for (int c = 0; c < classes_; ++c) {
            const ClassState& s = b_.classes[c];
            report(c, s.iterations, s.rho_start > 0 ? std::sqrt(s.rho / s.rho_start) : 0.0);
        }
        unpack(moved ? &PixelsPlane<T>::solution : nullptr, 0);
    }

    // q = p - alpha D^-1 W p, with <p, q> and |q|^2 of every strip row. p is `front`, q is `first`.
    void apply_operator() {
        const T alpha = static_cast<T>(p_.alpha);
        with_variant(g_, [&](auto radius, auto stride) {
            for_each_strip_row(g_, threads_, [&](int64_t strip, int64_t y) {
                double* sums = b_.dot_rows + g_.strip_row(strip, y) * 2 * g_.chunk;
                T pq[kMaxClassChunk] = {}, qq[kMaxClassChunk] = {};
                for_each_plane_tile<decltype(radius)::value, decltype(stride)::value>(
                    g_, b_, strip, y, [&](const PixelsPlane<T>& plane, const auto& acc, int64_t x, int c) {
                        using A = std::decay_t<decltype(acc[0])>;
                        const T* p = plane.front + halo_index(y, x) * plane.classes + c;
                        T* q = plane.first + pixel_index(y, x) * plane.classes + c;
                        const T* degree = b_.degree + pixel_index(y, x);
                        const T* inverse = b_.inverse_degree + pixel_index(y, x);
                        T *to_pq = pq + plane.begin + c, *to_qq = qq + plane.begin + c;
                        A sum_pq = load<A>(to_pq), sum_qq = load<A>(to_qq);
                        OVS_UNROLL
                        for (int i = 0; i < kTilePixels; ++i) {
                            const A v = load<A>(p + i * plane.classes), u = v - (alpha * inverse[i]) * acc[i];
                            store(q + i * plane.classes, u);
                            const A weighted = degree[i] * u;
                            sum_pq += weighted * v;
                            sum_qq += weighted * u;
                        }
                        store(to_pq, sum_pq);
                        store(to_qq, sum_qq);
                    });
                for (int c = 0; c < g_.chunk; ++c) {
                    sums[c] = pq[c];
                    sums[g_.chunk + c] = qq[c];
                }
            });
        });
    }

    // x += a p; r -= a q; p = r + b p, and |r|^2 of every row. In the first step x = 0 and r = p.
    template <bool kFirst>
    void update() {
        T a[kMaxClassChunk], b[kMaxClassChunk];
        for (int c = 0; c < g_.chunk; ++c) {
            a[c] = static_cast<T>(b_.classes[c].a);
            b[c] = static_cast<T>(b_.classes[c].b);
        }
        parallel_for(g_.height, threads_, [&](int64_t y) {
            double* sums = b_.dot_rows + y * 2 * g_.chunk;
            std::fill_n(sums, g_.chunk, 0.0);
            for_each_plane([&](const PixelsPlane<T>& plane) {
                for (int64_t x0 = 0; x0 < g_.width; x0 += kRun) {
                    for (int c = 0; c < plane.classes; c += kLanes) {
                        const int k = plane.begin + c;
                        const V sum = update_run<kFirst>(plane, y, x0, c, load<V>(a + k), load<V>(b + k));
                        for (int lane = 0; lane < kLanes; ++lane) sums[k + lane] += sum[lane];
                    }
                }
            });
        });
    }

    template <bool kFirst>
    V update_run(const PixelsPlane<T>& plane, int64_t y, int64_t x0, int c, V a, V b) {
        T* p = plane.front + halo_index(y, x0) * plane.classes + c;
        const int64_t first = pixel_index(y, x0) * plane.classes + c, count = std::min(kRun, g_.width - x0);
        T *x = plane.solution + first, *r = plane.residual + first;
        const T *q = plane.first + first, *degree = b_.degree + pixel_index(y, x0);
        V sum = {};
        for (int64_t i = 0; i < count; ++i) {
            const int64_t at = i * plane.classes;
            const V vp = load<V>(p + at);
            const V vr = (kFirst ? vp : load<V>(r + at)) - a * load<V>(q + at);
            if (kFirst) {
                store<V>(x + at, a * vp);
            } else {
                store<V>(x + at, load<V>(x + at) + a * vp);
            }
            store<V>(r + at, vr);
            store<V>(p + at, vr + b * vp);
            sum += (degree[i] * vr) * vr;
        }
        return sum;
    }

    void solve_exact() {
        const int needed = chebyshev_steps(p_.alpha, p_.tol), steps = std::min(needed, p_.max_iter);
        ChebyshevFactors factors(p_.alpha);
        for (int step = 1; step < steps; ++step) {
            factors.next();
            chebyshev_step(static_cast<T>(factors.momentum), static_cast<T>(factors.step));
            std::swap(b_.front, b_.back);
        }
        if (p_.residuals != nullptr) measure_residual();
        for (int c = 0; c < classes_; ++c) {
            const ClassState& s = b_.classes[c];
            const bool idle = s.frozen != 0;
            const double residual = p_.residuals != nullptr && !idle ? std::sqrt(dot(0, c) / s.rho_start) : 0.0;
            report(c, idle ? 0 : steps, residual);
        }
        unpack(&PixelsPlane<T>::front, g_.radius);
    }

    // back = front + momentum (front - back) + step (y - L front); L v = v - alpha D^-1 W v.
    void chebyshev_step(T momentum, T step) {
        const T alpha = static_cast<T>(p_.alpha);
        with_variant(g_, [&](auto radius, auto stride) {
            for_each_strip_row(g_, threads_, [&](int64_t strip, int64_t y) {
                for_each_plane_tile<decltype(radius)::value, decltype(stride)::value>(
                    g_, b_, strip, y, [&](const PixelsPlane<T>& plane, const auto& acc, int64_t x, int c) {
                        using A = std::decay_t<decltype(acc[0])>;
                        const T* now = plane.front + halo_index(y, x) * plane.classes + c;
                        T* before = plane.back + halo_index(y, x) * plane.classes + c;
                        const T* rhs = plane.first + pixel_index(y, x) * plane.classes + c;
                        const T* inverse = b_.inverse_degree + pixel_index(y, x);
                        OVS_UNROLL
                        for (int i = 0; i < kTilePixels; ++i) {
                            const int64_t at = i * plane.classes;
                            const A v = load<A>(now + at), y_i = load<A>(rhs + at);
                            const A gap = (y_i - v) + (alpha * inverse[i]) * acc[i];
                            store(before + at, v + momentum * (v - load<A>(before + at)) + step * gap);
                        }
                    });
            });
        });
    }

    // |y - L x|^2 of every class, x in `front`.
    void measure_residual() {
        const T alpha = static_cast<T>(p_.alpha);
        with_variant(g_, [&](auto radius, auto stride) {
            for_each_strip_row(g_, threads_, [&](int64_t strip, int64_t y) {
                double* sums = b_.dot_rows + g_.strip_row(strip, y) * 2 * g_.chunk;
                T total[kMaxClassChunk] = {};
                for_each_plane_tile<decltype(radius)::value, decltype(stride)::value>(
                    g_, b_, strip, y, [&](const PixelsPlane<T>& plane, const auto& acc, int64_t x, int c) {
                        using A = std::decay_t<decltype(acc[0])>;
                        const T* now = plane.front + halo_index(y, x) * plane.classes + c;
                        const T* rhs = plane.first + pixel_index(y, x) * plane.classes + c;
                        const T* inverse = b_.inverse_degree + pixel_index(y, x);
                        const T* degree = b_.degree + pixel_index(y, x);
                        A sum = load<A>(total + plane.begin + c);
                        OVS_UNROLL
                        for (int i = 0; i < kTilePixels; ++i) {
                            const int64_t at = i * plane.classes;
                            const A gap = (load<A>(rhs + at) - load<A>(now + at)) + (alpha * inverse[i]) * acc[i];
                            sum += (degree[i] * gap) * gap;
                        }
                        store(total + plane.begin + c, sum);
                    });
                for (int c = 0; c < g_.chunk; ++c) sums[c] = total[c];
            });
        });
        add_dots(g_.num_strips * g_.height);
    }

    void report(int c, int iterations, double residual) {
        const bool finite = b_.finite[c] != 0;
        if (p_.iterations != nullptr) p_.iterations[first_class_ + c] = finite ? iterations : 0;
        if (p_.residuals != nullptr) {
            p_.residuals[first_class_ + c] = finite ? residual : std::numeric_limits<double>::quiet_NaN();
        }
    }

    void start_output() {
        const T lowest = -std::numeric_limits<T>::infinity();
        const int64_t pixels = g_.height * g_.width;
        parallel_for(g_.height, threads_, [&](int64_t y) {
            const int64_t begin = y * g_.width;
            if (p_.labels != nullptr) {
                std::fill_n(b_.best + begin, g_.width, lowest);
                std::memset(static_cast<char*>(p_.labels) + begin * p_.label_bytes, 0, g_.width * p_.label_bytes);
            } else if (p_.groups != nullptr) {
                for (int64_t group = 0; group < p_.num_groups; ++group) {
                    std::fill_n(static_cast<T*>(p_.out) + group * pixels + begin, g_.width, lowest);
                }
            }
        });
    }

    // state: the member of every plane that holds the solution, with `halo` rows above; null for a solution of zeros.
    void unpack(T* PixelsPlane<T>::* state, int halo) {
        const T nan = std::numeric_limits<T>::quiet_NaN();
        parallel_for(g_.height, threads_, [&](int64_t y) {
            for (int64_t x0 = 0; x0 < g_.width; x0 += kRun) {
                const int64_t count = std::min(kRun, g_.width - x0);
                T factor[kRun], values[kRun];
                for (int64_t i = 0; i < count; ++i) factor[i] = root(b_.degree[pixel_index(y, x0 + i)]);
                for (int c = 0; c < classes_; ++c) {
                    if (b_.finite[c] == 0 || state == nullptr) {
                        std::fill_n(values, count, b_.finite[c] == 0 ? nan : T(0));
                    } else {
                        const PixelsPlane<T> plane = b_.plane(g_, c / kPlaneClasses);
                        const T undo = T(1) / b_.scale[c];
                        const T* in = plane.*state + pixel_index(y + halo, x0) * plane.classes + (c - plane.begin);
                        for (int64_t i = 0; i < count; ++i) values[i] = in[i * plane.classes] * factor[i] * undo;
                    }
                    write_run(y * g_.width + x0, c, values, count);
                }
            }
        });
    }

    // Writes scores of one class at `count` pixels from `begin` on, or compares them with the best so far.
    void write_run(int64_t begin, int c, const T* values, int64_t count) {
        const int64_t cls = first_class_ + c, pixels = g_.height * g_.width;
        const int32_t group = p_.groups != nullptr ? p_.groups[cls] : static_cast<int32_t>(cls);
        if (p_.labels != nullptr) {
            T* best = b_.best + begin;
            for (int64_t i = 0; i < count; ++i) {
                // NaN never wins: both comparisons are false. Of equal scores the smallest group wins.
                if (values[i] > best[i] || (values[i] == best[i] && group < label(begin + i))) {
                    best[i] = values[i];
                    set_label(begin + i, group);
                }
            }
            return;
        }
        T* out = static_cast<T*>(p_.out) + group * pixels + begin;
        if (p_.groups == nullptr) {
            std::copy_n(values, count, out);
        } else {
            for (int64_t i = 0; i < count; ++i) {
                if (values[i] > out[i] || values[i] != values[i]) out[i] = values[i];
            }
        }
    }

    int32_t label(int64_t i) const {
        return p_.label_bytes == 1 ? static_cast<const uint8_t*>(p_.labels)[i] : static_cast<int32_t*>(p_.labels)[i];
    }
    void set_label(int64_t i, int32_t value) {
        if (p_.label_bytes == 1) {
            static_cast<uint8_t*>(p_.labels)[i] = static_cast<uint8_t>(value);
        } else {
            static_cast<int32_t*>(p_.labels)[i] = value;
        }
    }

    const PixelsParams& p_;
    PixelsGrid g_;
    int threads_;
    Workspace workspace_;
    PixelsBuffers<T> b_;
    int64_t first_class_ = 0;
    int classes_ = 0;
};

}  // namespace

void lp_pixels_image(const PixelsParams& p, DType dtype, void* workspace, std::size_t bytes, int threads) {
    if (dtype == DType::kFloat64) {
        ImageSolver<double>(p, workspace, bytes, threads).run();
    } else {
        ImageSolver<float>(p, workspace, bytes, threads).run();
    }
}

}  // namespace OVS_ISA
}  // namespace ovs
