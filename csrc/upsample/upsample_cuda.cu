// joint_bilateral_upsample on a GPU: everything on the caller's stream, nothing comes back to the host.
//
//   prepare      node colours; the maps with the classes of a node side by side, zero where not finite; what is not
//                finite, summed over the window of each node
//   upsample     a thread per pixel. First its largest exponent and the sum of its weights; then kClasses classes at a
//                time, whose sums stay in registers while the weights are worked out again, one exponential for
//                kClasses products. A warp is a patch of 8 x 4 pixels: it mostly lies in one cell, so that its lanes
//                read the same nodes at the same time.
//   backward     statistics of each pixel, then a block per node and kClasses classes, which walks over the pixels that
//                have the node in their window and adds up in a fixed order
//
// Each thread writes elements that no other thread writes.
#include <algorithm>

#include "common/device.cuh"
#include "common/launch.cuh"
#include "common/workspace.h"
#include "upsample/upsample.h"
#include "upsample/upsample_math.h"

namespace ovs {
namespace {

constexpr int kClasses = 16;    // of a pass over the window: 16 sums in registers
constexpr int kPatchWidth = 8;  // pixels of a warp
constexpr int kPatchHeight = 4;
constexpr int kPatches = 4;              // warps of a block, one above the other
constexpr int kThreads = 128;            // of a block in every kernel
constexpr int64_t kMaxBlocks = 1 << 20;  // along x; further items are taken in a loop

template <class T>
struct DeviceParams {
    UpsampleParams p;
    T* packed;              // [B, h, w, padded]  forward: the maps, zero where not finite (omit: a NaN stays)
    T* special;             // [B, h, w, padded]  forward: sum over the window of what is not finite
    T* node_colours;        // [B, h, w, 3]
    T* largest;             // [B, H, W] backward: largest exponent of a pixel
    T* inverse;             // [B, H, W] backward: 1 / sum of its weights
    T spatial, range;       // factors of the exponents, to the base 2
    int64_t padded;         // classes of a node, a multiple of kClasses
    int64_t nodes, pixels;  // of an image
};

__device__ __forceinline__ float exp2_of(float x) { return exp2f(x); }
__device__ __forceinline__ double exp2_of(double x) { return exp2(x); }

template <class T>
__device__ __forceinline__ bool is_finite(T x) {
    return x - x == T(0);
}
template <class T>
__device__ __forceinline__ bool is_nan(T x) {
    return x != x;
}
template <class T>
__device__ __forceinline__ T lowest() {
    return -static_cast<T>(INFINITY);
}

// What a value leaves for the sum of values that are not finite.
template <class T>
__device__ __forceinline__ T special_part(const DeviceParams<T>& d, T x) {
    return is_finite(x) || (d.p.omit && is_nan(x)) ? T(0) : x;
}

template <class T>
__device__ __forceinline__ T map_value(const DeviceParams<T>& d, int64_t image, int64_t c, int64_t node) {
    return static_cast<const T*>(d.p.maps)[(image * d.p.num_classes + c) * d.nodes + node];
}

// An item per node of the batch and class.
template <class T>
__global__ void pack_kernel(const DeviceParams<T> d, int64_t items) {
    const int64_t h = d.p.low_height, w = d.p.low_width, r = d.p.radius;
    for (int64_t i = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x; i < items;
         i += gridDim.x * static_cast<int64_t>(kThreads)) {
        const int64_t node = i % d.nodes, c = i / d.nodes % d.padded, image = i / d.nodes / d.padded;
        const int64_t at = (image * d.nodes + node) * d.padded + c;
        if (c >= d.p.num_classes) {
            d.packed[at] = T(0);
            d.special[at] = T(0);
            continue;
        }
        const T x = map_value(d, image, c, node);
        d.packed[at] = is_finite(x) || (d.p.omit && is_nan(x)) ? x : T(0);
        const int64_t qy = node / w, qx = node % w;
        T sum = 0;
        for (int64_t y = qy < r ? 0 : qy - r; y <= qy + r && y < h; ++y) {
            for (int64_t v = qx < r ? 0 : qx - r; v <= qx + r && v < w; ++v) {
                sum += special_part(d, map_value(d, image, c, y * w + v));
            }
        }
        d.special[at] = sum;
    }
}

// An item per node of the batch.
template <class T>
__global__ void colour_kernel(const DeviceParams<T> d, int64_t items) {
    const UpsampleParams& p = d.p;
    for (int64_t i = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x; i < items;
         i += gridDim.x * static_cast<int64_t>(kThreads)) {
        const int64_t image = i / d.nodes, node = i % d.nodes;
        const int64_t y = pixel_of_node(node / p.low_width, p.low_height, p.height);
        const int64_t x = pixel_of_node(node % p.low_width, p.low_width, p.width);
        const T* guide = static_cast<const T*>(p.guide) + image * 3 * d.pixels + y * p.width + x;
        for (int channel = 0; channel < 3; ++channel) d.node_colours[3 * i + channel] = guide[channel * d.pixels];
    }
}

// A pixel, its window, and the exponents of its taps.
template <class T>
class PixelWindow {
public:
    __device__ PixelWindow(const DeviceParams<T>& d, int64_t image, int64_t y, int64_t x) : d_(d) {
        const UpsampleParams& p = d.p;
        cell_y = cell_of_pixel(y, p.low_height, p.height);
        cell_x = cell_of_pixel(x, p.low_width, p.width);
        top = static_cast<int>(cell_y < p.radius ? cell_y : p.radius);
        left = static_cast<int>(cell_x < p.radius ? cell_x : p.radius);
        bottom = static_cast<int>(p.low_height - 1 - cell_y < p.radius ? p.low_height - 1 - cell_y : p.radius);
        right = static_cast<int>(p.low_width - 1 - cell_x < p.radius ? p.low_width - 1 - cell_x : p.radius);
        from_y_ = static_cast<T>(distance_to_node(y, cell_y, p.low_height, p.height));
        from_x_ = static_cast<T>(distance_to_node(x, cell_x, p.low_width, p.width));
        const T* guide = static_cast<const T*>(p.guide) + image * 3 * d.pixels + y * p.width + x;
        for (int channel = 0; channel < 3; ++channel) colour_[channel] = guide[channel * d.pixels];
        first_node = image * d.nodes;
    }

    __device__ int64_t node(int dy, int dx) const { return (cell_y + dy) * d_.p.low_width + cell_x + dx; }

    // Less that of the cell's own node: (a - s)^2 - a^2 = s (s - 2 a).
    __device__ T spatial(int dy, int dx) const {
        const T y = static_cast<T>(dy), x = static_cast<T>(dx);
        return -d_.spatial * (y * (y - 2 * from_y_) + x * (x - 2 * from_x_));
    }

    // -Inf where the colour distance is not finite; the spatial part alone for a pixel that is `lost`.
    __device__ T exponent(int dy, int dx) const {
        const T space = spatial(dy, dx);
        if (lost) return space;
        const T* there = d_.node_colours + 3 * (first_node + node(dy, dx));
        const T d0 = colour_[0] - there[0], d1 = colour_[1] - there[1], d2 = colour_[2] - there[2];
        const T exponent = space - d_.range * (d0 * d0 + d1 * d1 + d2 * d2);
        return exponent > lowest<T>() ? exponent : lowest<T>();
    }

    template <class Fn>
    __device__ void for_each_tap(const Fn& fn) const {
        for (int dy = -top; dy <= bottom; ++dy) {
            for (int dx = -left; dx <= right; ++dx) fn(dy, dx);
        }
    }

    // The largest exponent, and whether the guide leaves the pixel any tap.
    __device__ T find_largest() {
        T largest = lowest<T>();
        for_each_tap([&](int dy, int dx) {
            const T e = exponent(dy, dx);
            largest = e > largest ? e : largest;
        });
        lost = largest == lowest<T>();
        return lost ? T(0) : largest;
    }

    int64_t cell_y, cell_x, first_node;
    int top, left, bottom, right;
    bool lost = false;

private:
    const DeviceParams<T>& d_;
    T from_y_, from_x_;
    T colour_[3];
};

template <class T>
__device__ __forceinline__ T sum_of_weights(const PixelWindow<T>& window, T largest) {
    T sum = 0;
    window.for_each_tap([&](int dy, int dx) { sum += exp2_of(window.exponent(dy, dx) - largest); });
    return sum;
}

// Sums of kClasses classes over the window, divided by those of the weights.
template <class T>
__device__ void sum_classes(const DeviceParams<T>& d, const PixelWindow<T>& window, T largest, T inverse, int64_t first,
                            T (&sum)[kClasses]) {
#pragma unroll
    for (int g = 0; g < kClasses; ++g) sum[g] = T(0);
    window.for_each_tap([&](int dy, int dx) {
        const T weight = exp2_of(window.exponent(dy, dx) - largest) * inverse;
        const T* values = d.packed + (window.first_node + window.node(dy, dx)) * d.padded + first;
#pragma unroll
        for (int g = 0; g < kClasses; ++g) sum[g] += weight * values[g];
    });
}

// The same where a NaN is missing: each class has a largest exponent and a sum of weights of its own.
template <class T>
__device__ void sum_classes_without(const DeviceParams<T>& d, const PixelWindow<T>& window, T largest, int64_t first,
                                    T (&sum)[kClasses]) {
    T best[kClasses], total[kClasses];
#pragma unroll
    for (int g = 0; g < kClasses; ++g) {
        best[g] = lowest<T>();
        sum[g] = total[g] = T(0);
    }
    window.for_each_tap([&](int dy, int dx) {
        const T e = window.exponent(dy, dx);
        const T* values = d.packed + (window.first_node + window.node(dy, dx)) * d.padded + first;
#pragma unroll
        for (int g = 0; g < kClasses; ++g) best[g] = !is_nan(values[g]) && e > best[g] ? e : best[g];
    });
    window.for_each_tap([&](int dy, int dx) {
        const T e = window.exponent(dy, dx), common = exp2_of(e - largest);
        const T* values = d.packed + (window.first_node + window.node(dy, dx)) * d.padded + first;
#pragma unroll
        for (int g = 0; g < kClasses; ++g) {
            if (is_nan(values[g]) || e == lowest<T>()) continue;
            const T weight = best[g] == largest ? common : exp2_of(e - best[g]);
            sum[g] += weight * values[g];
            total[g] += weight;
        }
    });
#pragma unroll
    for (int g = 0; g < kClasses; ++g) sum[g] /= total[g];
}

// blockIdx: x patches of an image, y images. A warp per patch.
template <class T>
__global__ void upsample_kernel(const DeviceParams<T> d, int64_t patches_across, int64_t blocks_down) {
    const UpsampleParams& p = d.p;
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
    for (int64_t block = blockIdx.x; block < patches_across * blocks_down; block += gridDim.x) {
        const int64_t y = (block / patches_across * kPatches + warp) * kPatchHeight + lane / kPatchWidth;
        const int64_t x = block % patches_across * kPatchWidth + lane % kPatchWidth;
        if (y >= p.height || x >= p.width) continue;
        for (int64_t image = blockIdx.y; image < p.batch; image += gridDim.y) {
            PixelWindow<T> window(d, image, y, x);
            const T largest = window.find_largest();
            const T inverse = p.omit ? T(0) : T(1) / sum_of_weights(window, largest);
            const T* special = d.special + (window.first_node + window.node(0, 0)) * d.padded;
            T best = lowest<T>();
            int32_t label = 0;
            for (int64_t first = 0; first < p.num_classes; first += kClasses) {
                T sum[kClasses];
                if (p.omit) {
                    sum_classes_without(d, window, largest, first, sum);
                } else {
                    sum_classes(d, window, largest, inverse, first, sum);
                }
#pragma unroll
                for (int g = 0; g < kClasses; ++g) {
                    if (first + g >= p.num_classes) break;
                    const T value = sum[g] + special[first + g];
                    if (p.labels == nullptr) {
                        static_cast<T*>(p.up)[((image * p.num_classes + first + g) * p.height + y) * p.width + x] =
                            value;
                    } else if (value > best) {  // not for NaN, nor for a tie with a smaller index
                        best = value;
                        label = static_cast<int32_t>(first) + g;
                    }
                }
            }
            if (p.labels == nullptr) continue;
            const int64_t at = image * d.pixels + y * p.width + x;
            if (p.label_bytes == 4) {
                static_cast<int32_t*>(p.labels)[at] = label;
            } else {
                static_cast<uint8_t*>(p.labels)[at] = static_cast<uint8_t>(label);
            }
        }
    }
}

// Largest exponent and sum of weights, an item per pixel of the batch.
template <class T>
__global__ void statistics_kernel(const DeviceParams<T> d, int64_t items) {
    for (int64_t i = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x; i < items;
         i += gridDim.x * static_cast<int64_t>(kThreads)) {
        const int64_t image = i / d.pixels, pixel = i % d.pixels;
        PixelWindow<T> window(d, image, pixel / d.p.width, pixel % d.p.width);
        const T largest = window.find_largest();
        d.largest[i] = window.lost ? static_cast<T>(INFINITY) : largest;  // a mark: exponents are never above 0
        d.inverse[i] = T(1) / sum_of_weights(window, largest);
    }
}

// The share of a pixel's cotangent that a node gets, for one class with missing values.
template <class T>
__device__ T share_without(const PixelWindow<T>& window, const uint8_t* missing, T here) {
    T best = lowest<T>(), total = 0;
    window.for_each_tap([&](int dy, int dx) {
        const T e = window.exponent(dy, dx);
        if (missing[window.node(dy, dx)] == 0 && e > best) best = e;
    });
    if (best == lowest<T>()) return T(0);
    window.for_each_tap([&](int dy, int dx) {
        if (missing[window.node(dy, dx)] == 0) total += exp2_of(window.exponent(dy, dx) - best);
    });
    return exp2_of(here - best) / total;
}

// The pixels that have a node in their window, along one axis.
struct Reach {
    int64_t begin, end;
};
__device__ __forceinline__ Reach reach_of(int64_t q, int64_t radius, int64_t nodes, int64_t pixels) {
    const int64_t low = q < radius ? 0 : q - radius, high = q + radius + 1 < nodes ? q + radius + 1 : nodes;
    return {first_pixel_of_cell(low, nodes, pixels), first_pixel_of_cell(high, nodes, pixels)};
}

// A block per node and kClasses classes. blockIdx: x nodes, y groups of classes, z images.
template <class T>
__global__ void backward_kernel(const DeviceParams<T> d) {
    GPU_SHARED(T, partial, [kClasses][kThreads]);
    const UpsampleParams& p = d.p;
    const int thread = static_cast<int>(threadIdx.x);
    const int64_t groups = ceil_div(p.num_classes, kClasses);
    for (int64_t image = blockIdx.z; image < p.batch; image += gridDim.z) {
        for (int64_t group = blockIdx.y; group < groups; group += gridDim.y) {
            for (int64_t node = blockIdx.x; node < d.nodes; node += gridDim.x) {
                const int64_t first = group * kClasses, qy = node / p.low_width, qx = node % p.low_width;
                const Reach rows = reach_of(qy, p.radius, p.low_height, p.height);
                const Reach columns = reach_of(qx, p.radius, p.low_width, p.width);
                const int64_t across = columns.end - columns.begin, count = (rows.end - rows.begin) * across;
                T sum[kClasses] = {};
                for (int64_t i = thread; i < count; i += kThreads) {
                    const int64_t y = rows.begin + i / across, x = columns.begin + i % across;
                    const int64_t pixel = y * p.width + x;
                    PixelWindow<T> window(d, image, y, x);
                    const T largest = d.largest[image * d.pixels + pixel];
                    window.lost = largest > T(0);
                    const T e =
                        window.exponent(static_cast<int>(qy - window.cell_y), static_cast<int>(qx - window.cell_x));
                    const T weight = exp2_of(e - (window.lost ? T(0) : largest)) * d.inverse[image * d.pixels + pixel];
#pragma unroll
                    for (int g = 0; g < kClasses; ++g) {
                        if (first + g >= p.num_classes) break;
                        const int64_t c = image * p.num_classes + first + g;
                        T share = weight;
                        if (p.missing != nullptr) {
                            const uint8_t* missing = p.missing + c * d.nodes;
                            if (missing[node] != 0) continue;
                            share = share_without(window, missing, e);
                        }
                        sum[g] += share * static_cast<const T*>(p.up)[c * d.pixels + pixel];
                    }
                }
#pragma unroll
                for (int g = 0; g < kClasses; ++g) partial[g][thread] = sum[g];
                __syncthreads();
                for (int width = kThreads / 2; width > 0; width /= 2) {
                    if (thread < width) {
#pragma unroll
                        for (int g = 0; g < kClasses; ++g) partial[g][thread] += partial[g][thread + width];
                    }
                    __syncthreads();
                }
                if (thread < kClasses && first + thread < p.num_classes) {
                    static_cast<T*>(p.maps)[(image * p.num_classes + first + thread) * d.nodes + node] =
                        partial[thread][0];
                }
                __syncthreads();
            }
        }
    }
}

template <class T>
DeviceParams<T> device_params(const UpsampleParams& p, Workspace& ws) {
    DeviceParams<T> d;
    d.p = p;
    d.padded = round_up(p.num_classes, kClasses);
    d.nodes = p.low_height * p.low_width;
    d.pixels = p.height * p.width;
    d.spatial = static_cast<T>(exponent_factor(p.sigma_spatial));
    d.range = static_cast<T>(exponent_factor(p.sigma_range));
    d.node_colours = ws.take<T>("node_colours", 3 * p.batch * d.nodes);
    d.packed = ws.take<T>("packed", p.backward ? 0 : p.batch * d.nodes * d.padded);
    d.special = ws.take<T>("special", p.backward ? 0 : p.batch * d.nodes * d.padded);
    d.largest = ws.take<T>("largest", p.backward ? p.batch * d.pixels : 0);
    d.inverse = ws.take<T>("inverse", p.backward ? p.batch * d.pixels : 0);
    return d;
}

dim3 grid_for(int64_t blocks) { return dim3(static_cast<unsigned>(std::clamp<int64_t>(blocks, 1, kMaxBlocks))); }
unsigned grid_yz(int64_t items) { return static_cast<unsigned>(std::clamp<int64_t>(items, 1, kMaxGridYZ)); }

template <class T>
void run(const UpsampleParams& p, Workspace& workspace, cudaStream_t stream) {
    const DeviceParams<T> d = device_params<T>(p, workspace);
    const dim3 block(kThreads);
    const int64_t nodes = p.batch * d.nodes, pixels = p.batch * d.pixels;
    launch(colour_kernel<T>, grid_for(ceil_div(nodes, kThreads)), block, 0, stream, d, nodes);
    OVS_CHECK_LAUNCH("joint_bilateral_upsample: colours");
    if (p.backward) {
        launch(statistics_kernel<T>, grid_for(ceil_div(pixels, kThreads)), block, 0, stream, d, pixels);
        OVS_CHECK_LAUNCH("joint_bilateral_upsample: statistics");
        const dim3 grid(static_cast<unsigned>(std::min(d.nodes, kMaxBlocks)),
                        grid_yz(ceil_div(p.num_classes, kClasses)), grid_yz(p.batch));
        launch(backward_kernel<T>, grid, block, 0, stream, d);
        OVS_CHECK_LAUNCH("joint_bilateral_upsample: backward");
        return;
    }
    const int64_t packed = nodes * d.padded;
    launch(pack_kernel<T>, grid_for(ceil_div(packed, kThreads)), block, 0, stream, d, packed);
    OVS_CHECK_LAUNCH("joint_bilateral_upsample: pack");
    const int64_t across = ceil_div(p.width, kPatchWidth), down = ceil_div(p.height, kPatchHeight * kPatches);
    dim3 grid = grid_for(across * down);
    grid.y = grid_yz(p.batch);
    launch(upsample_kernel<T>, grid, block, 0, stream, d, across, down);
    OVS_CHECK_LAUNCH("joint_bilateral_upsample: upsample");
}

}  // namespace

std::size_t joint_bilateral_upsample_cuda_workspace_bytes(const UpsampleParams& p, DType dtype) {
    check_params(p);
    Workspace counter(nullptr, 0);
    if (dtype == DType::kFloat64) {
        device_params<double>(p, counter);
    } else {
        device_params<float>(p, counter);
    }
    return counter.used();
}

void joint_bilateral_upsample_cuda(const UpsampleParams& p, DType dtype, void* workspace, std::size_t workspace_bytes,
                                   int device, void* stream) {
    check_params(p);
    if (p.batch == 0 || p.num_classes == 0) return;
    const DeviceGuard guard(device);
    Workspace pieces(workspace, workspace_bytes);
    if (dtype == DType::kFloat64) {
        run<double>(p, pieces, as_stream(stream));
    } else {
        run<float>(p, pieces, as_stream(stream));
    }
}

}  // namespace ovs
