// pamr on a GPU: everything on the caller's stream, nothing comes back to the host.
//
//   weights_kernel    a thread per pixel: two passes over its neighbours per channel, exponents kept in the array of
//                     weights, then normalised
//   iterate_kernel    a thread per pixel and kClasses classes, whose sums stay in registers: a weight and an address
//                     serve all of them. Lanes are neighbours along x, so that each tap reads whole lines; shifted rows
//                     come from the caches
//   labels_kernel     the last iteration for labels: a thread has a pixel and takes its classes kClasses at a time; the
//                     results are never written
//   transpose_kernel  the same, collecting from the pixels that have this one as a neighbour; those on the border are
//                     the neighbour of many
//
// Images follow each other. Iterations take turns between `out` and one array of scratch memory, and end in `out`, or
// for labels between two arrays of scratch memory. Each thread writes elements that no other thread writes.
#include <algorithm>
#include <cmath>

#include "common/device.cuh"
#include "common/launch.cuh"
#include "common/workspace.h"
#include "pamr/pamr.h"
#include "pamr/pamr_math.h"

namespace ovs {
namespace {

constexpr int kClasses = 8;              // of a thread
constexpr int kThreads = 128;            // of a block in every kernel
constexpr int64_t kMaxBlocks = 1 << 20;  // along x; further pixels are taken in a loop

struct Neighbourhood {
    int64_t num_dilations, height, width;
    int32_t reach_y[kMaxPamrDilations], reach_x[kMaxPamrDilations];  // dilations, as far as they matter

    explicit Neighbourhood(const PamrParams& p)
        : num_dilations(p.num_dilations), height(p.height), width(p.width), reach_y{}, reach_x{} {
        for (int64_t i = 0; i < p.num_dilations; ++i) {
            reach_y[i] = static_cast<int32_t>(pamr_reach(p.dilations[i], p.height));
            reach_x[i] = static_cast<int32_t>(pamr_reach(p.dilations[i], p.width));
        }
    }
};

template <class T>
struct PamrDeviceBuffers {
    T* weights;  // [taps, H, W] of one image
    T* scratch;  // [C, H, W] of one image
    T* second;   // labels: another one

    PamrDeviceBuffers(const PamrParams& p, Workspace& ws) {
        const int64_t pixels = p.height * p.width;
        weights = ws.take<T>("weights", kPamrTaps * p.num_dilations * pixels);
        scratch = ws.take<T>("scratch", p.num_iter > 1 ? p.num_classes * pixels : 0);
        second = ws.take<T>("second", p.label_bytes != 0 && p.num_iter > 2 ? p.num_classes * pixels : 0);
    }
};

__device__ __forceinline__ float exp2_of(float x) { return exp2f(x); }
__device__ __forceinline__ double exp2_of(double x) { return exp2(x); }
__device__ __forceinline__ float root_of(float x) { return sqrtf(x); }
__device__ __forceinline__ double root_of(double x) { return sqrt(x); }

__device__ __forceinline__ int64_t first_pixel() { return blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x; }
__device__ __forceinline__ int64_t pixel_stride() { return gridDim.x * static_cast<int64_t>(kThreads); }

// fn(number of the tap, pixel of the neighbour) for all neighbours of (y, x).
template <class Fn>
__device__ __forceinline__ void for_each_neighbour(const Neighbourhood& n, int64_t y, int64_t x, const Fn& fn) {
    for (int64_t i = 0; i < n.num_dilations; ++i) {
        const int64_t dy = n.reach_y[i], dx = n.reach_x[i];
#pragma unroll
        for (int64_t tap = 0; tap < kPamrTaps; ++tap) {
            const int64_t row = pamr_clamp(y + pamr_row_step(tap) * dy, n.height);
            const int64_t column = pamr_clamp(x + pamr_column_step(tap) * dx, n.width);
            fn(i * kPamrTaps + tap, row * n.width + column);
        }
    }
}

// image: [F, H, W]; weights: [taps, H, W].
template <class T>
__global__ void weights_kernel(const Neighbourhood n, const T* image, int64_t num_features, T* weights) {
    const int64_t pixels = n.height * n.width;
    const PamrCounts counts = pamr_counts(n.num_dilations);
    const T inverse_count = static_cast<T>(counts.inverse_count);
    const T inverse_freedom = static_cast<T>(counts.inverse_freedom);
    const T factor = static_cast<T>(kPamrLog2E / static_cast<double>(num_features));
    for (int64_t pixel = first_pixel(); pixel < pixels; pixel += pixel_stride()) {
        const int64_t y = pixel / n.width, x = pixel % n.width;
        for (int64_t k = 0; k < num_features; ++k) {
            const T* const plane = image + k * pixels;
            const T here = plane[pixel];
            T sum = 0, squares = 0;
            for_each_neighbour(n, y, x, [&](int64_t, int64_t there) {
                const T difference = plane[there] - here;
                sum += difference;
                squares += difference * difference;
            });
            T variance = (squares - sum * sum * inverse_count) * inverse_freedom;
            variance = variance < T(0) ? T(0) : variance;  // a NaN stays
            const T scale =
                static_cast<T>(kPamrSmallestScale) + static_cast<T>(kPamrScaleOfDeviation) * root_of(variance);
            const T inverse = factor / scale;
            for_each_neighbour(n, y, x, [&](int64_t tap, int64_t there) {
                const T difference = plane[there] - here;
                const T magnitude = difference < T(0) ? -difference : difference;
                T* const exponent = weights + tap * pixels + pixel;
                *exponent = (k == 0 ? T(0) : *exponent) - magnitude * inverse;
            });
        }
        // The largest exponent is above -48 (pamr_rows.h), so none has to be subtracted.
        T sum = 0;
        for (int64_t tap = 0; tap < kPamrTaps * n.num_dilations; ++tap) {
            const T weight = exp2_of(weights[tap * pixels + pixel]);
            weights[tap * pixels + pixel] = weight;
            sum += weight;
        }
        const T inverse = T(1) / sum;
        for (int64_t tap = 0; tap < kPamrTaps * n.num_dilations; ++tap) weights[tap * pixels + pixel] *= inverse;
    }
}

// Adds weight times the values of kClasses classes at a pixel.
template <class T>
__device__ __forceinline__ void add_classes(T weight, const T* from, int64_t pixels, int64_t count,
                                            T (&sums)[kClasses]) {
#pragma unroll
    for (int k = 0; k < kClasses; ++k) {
        if (k < count) sums[k] += weight * from[k * pixels];
    }
}

template <class T>
__device__ __forceinline__ void store_classes(const T (&sums)[kClasses], int64_t pixels, int64_t count, T* to) {
#pragma unroll
    for (int k = 0; k < kClasses; ++k) {
        if (k < count) to[k * pixels] = sums[k];
    }
}

// from, to: [C, H, W]. blockIdx: x pixels, y groups of classes.
template <class T>
__global__ void iterate_kernel(const Neighbourhood n, const T* weights, const T* from, T* to, int64_t num_classes) {
    const int64_t pixels = n.height * n.width;
    for (int64_t first = blockIdx.y * static_cast<int64_t>(kClasses); first < num_classes;
         first += gridDim.y * static_cast<int64_t>(kClasses)) {
        const int64_t count = num_classes - first;
        for (int64_t pixel = first_pixel(); pixel < pixels; pixel += pixel_stride()) {
            T sums[kClasses] = {};
            for_each_neighbour(n, pixel / n.width, pixel % n.width, [&](int64_t tap, int64_t there) {
                add_classes(weights[tap * pixels + pixel], from + first * pixels + there, pixels, count, sums);
            });
            store_classes(sums, pixels, count, to + first * pixels + pixel);
        }
    }
}

// labels: [H, W] of label_bytes each.
template <class T>
__global__ void labels_kernel(const Neighbourhood n, const T* weights, const T* from, void* labels, int64_t label_bytes,
                              int64_t num_classes) {
    const int64_t pixels = n.height * n.width;
    for (int64_t pixel = first_pixel(); pixel < pixels; pixel += pixel_stride()) {
        T best = -HUGE_VAL;
        int32_t found = 0;
        for (int64_t first = 0; first < num_classes; first += kClasses) {
            const int64_t count = num_classes - first;
            T sums[kClasses] = {};
            for_each_neighbour(n, pixel / n.width, pixel % n.width, [&](int64_t tap, int64_t there) {
                add_classes(weights[tap * pixels + pixel], from + first * pixels + there, pixels, count, sums);
            });
#pragma unroll
            for (int k = 0; k < kClasses; ++k) {
                if (k < count && sums[k] > best) {  // NaN is not
                    best = sums[k];
                    found = static_cast<int32_t>(first) + k;
                }
            }
        }
        if (label_bytes == 1) {
            static_cast<uint8_t*>(labels)[pixel] = static_cast<uint8_t>(found);
        } else {
            static_cast<int32_t*>(labels)[pixel] = found;
        }
    }
}

// The places along an axis that a step of `reach` (times -1, 0 or 1) leads to `at`; none where end <= begin.
struct Origins {
    int64_t begin, end;
};
__device__ __forceinline__ Origins origins_of(int64_t at, int64_t step, int64_t reach, int64_t extent) {
    if (step == 0) return {at, at + 1};
    const bool up = step > 0;
    if (at == (up ? extent - 1 : 0)) return up ? Origins{extent - 1 - reach, extent} : Origins{0, reach + 1};
    const int64_t from = up ? at - reach : at + reach;
    return 0 <= from && from < extent ? Origins{from, from + 1} : Origins{0, 0};
}

template <class T>
__global__ void transpose_kernel(const Neighbourhood n, const T* weights, const T* from, T* to, int64_t num_classes) {
    const int64_t pixels = n.height * n.width;
    for (int64_t first = blockIdx.y * static_cast<int64_t>(kClasses); first < num_classes;
         first += gridDim.y * static_cast<int64_t>(kClasses)) {
        const int64_t count = num_classes - first;
        for (int64_t pixel = first_pixel(); pixel < pixels; pixel += pixel_stride()) {
            T sums[kClasses] = {};
            for (int64_t tap = 0; tap < kPamrTaps * n.num_dilations; ++tap) {
                const int64_t i = tap / kPamrTaps, number = tap % kPamrTaps;
                const Origins rows = origins_of(pixel / n.width, pamr_row_step(number), n.reach_y[i], n.height);
                const Origins columns = origins_of(pixel % n.width, pamr_column_step(number), n.reach_x[i], n.width);
                for (int64_t y = rows.begin; y < rows.end; ++y) {
                    for (int64_t x = columns.begin; x < columns.end; ++x) {
                        const int64_t there = y * n.width + x;
                        add_classes(weights[tap * pixels + there], from + first * pixels + there, pixels, count, sums);
                    }
                }
            }
            store_classes(sums, pixels, count, to + first * pixels + pixel);
        }
    }
}

template <class T>
void run_image(const PamrParams& p, const Neighbourhood& n, const PamrDeviceBuffers<T>& buffers, int64_t index,
               cudaStream_t stream) {
    const int64_t pixels = p.height * p.width;
    const T* const image = static_cast<const T*>(p.image) + index * p.num_features * pixels;
    const T* from = static_cast<const T*>(p.scores) + index * p.num_classes * pixels;
    const bool labels = p.label_bytes != 0;
    T* const out = labels ? buffers.second : static_cast<T*>(p.out) + index * p.num_classes * pixels;
    const dim3 block(kThreads);
    const auto across = static_cast<unsigned>(std::min(ceil_div(pixels, kThreads), kMaxBlocks));
    launch(weights_kernel<T>, dim3(across), block, 0, stream, n, image, p.num_features, buffers.weights);
    OVS_CHECK_LAUNCH("pamr: weights");
    const auto groups = static_cast<unsigned>(std::min<int64_t>(ceil_div(p.num_classes, kClasses), kMaxGridYZ));
    for (int64_t iteration = 0; iteration < p.num_iter - (labels ? 1 : 0); ++iteration) {
        T* const to = (p.num_iter - 1 - iteration) % 2 == 0 ? out : buffers.scratch;
        launch(p.backward ? transpose_kernel<T> : iterate_kernel<T>, dim3(across, groups), block, 0, stream, n,
               static_cast<const T*>(buffers.weights), from, to, p.num_classes);
        OVS_CHECK_LAUNCH("pamr: iteration");
        from = to;
    }
    if (!labels) return;
    launch(labels_kernel<T>, dim3(across), block, 0, stream, n, static_cast<const T*>(buffers.weights), from,
           static_cast<void*>(static_cast<char*>(p.labels) + index * pixels * p.label_bytes), p.label_bytes,
           p.num_classes);
    OVS_CHECK_LAUNCH("pamr: labels");
}

template <class T>
void run(const PamrParams& p, void* workspace, std::size_t bytes, cudaStream_t stream) {
    Workspace pieces(workspace, bytes);
    const PamrDeviceBuffers<T> buffers(p, pieces);
    const Neighbourhood n(p);
    for (int64_t index = 0; index < p.batch; ++index) run_image<T>(p, n, buffers, index, stream);
}

template <class T>
std::size_t workspace_bytes(const PamrParams& p) {
    Workspace counter(nullptr, 0);
    PamrDeviceBuffers<T>(p, counter);
    return counter.used();
}

}  // namespace

std::size_t pamr_cuda_workspace_bytes(const PamrParams& p, DType dtype) {
    check_params(p);
    if (is_empty(p)) return 0;
    return dtype == DType::kFloat64 ? workspace_bytes<double>(p) : workspace_bytes<float>(p);
}

void pamr_cuda(const PamrParams& p, DType dtype, void* workspace, std::size_t bytes, int device, void* stream) {
    check_params(p);
    if (is_empty(p)) return;
    const DeviceGuard guard(device);
    if (dtype == DType::kFloat64) {
        run<double>(p, workspace, bytes, as_stream(stream));
    } else {
        run<float>(p, workspace, bytes, as_stream(stream));
    }
}

}  // namespace ovs
