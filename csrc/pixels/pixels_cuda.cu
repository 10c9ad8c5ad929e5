// lp_pixels on a GPU: one sequence of launches on the caller's stream, nothing comes back to the host.
//
//   features, degrees                                   per image
//   scan, pack                                          per chunk of classes: class-innermost state D^-1/2 Y
//   official: (stencil, factors, update, norms) x steps  per-class scalars live in ClassState on the device
//   exact:    stencil x steps known from alpha and tol
//   unpack                                              D^1/2 state -> out, or its maximum into the labels
//
// Inner products: one double per block and class, added by one block per class in a fixed order.
#include <algorithm>
#include <climits>

#include "common/device.cuh"
#include "common/launch.cuh"
#include "common/solve.cuh"
#include "common/workspace.h"
#include "pixels/pixels_batch.h"
#include "pixels/pixels_cuda_stencil.cuh"
#include "pixels/pixels_math.h"

namespace ovs {
namespace {

constexpr int kThreads = 256;
constexpr int kRunPixels = 128;  // pixels per block of pack, update and unpack
constexpr int kUpdateRows = 8;   // pixels side by side in a block of update
constexpr float kLowest = -HUGE_VALF;

__global__ void pixel_features_kernel(const float* guide,  // [3, H, W] sRGB
                                      float* features,     // [3, H, W]
                                      int64_t pixels) {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= pixels) return;
    const Color<float> z = srgb_to_scaled_lab(guide[i], guide[i + pixels], guide[i + 2 * pixels]);
    features[i] = z.x;
    features[i + pixels] = z.y;
    features[i + 2 * pixels] = z.z;
}

__global__ void degree_kernel(const float* features,  // [F, H, W]
                              float* degree,          // [H, W]
                              float* inverse_degree,  // [H, W]
                              int height, int width, int num_features, int radius, float minus_inverse_tau) {
    const int64_t pixels = static_cast<int64_t>(height) * width;
    const int64_t here = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (here >= pixels) return;
    const int x = static_cast<int>(here % width), y = static_cast<int>(here / width);
    float sum = 0.0f;
    for (int dy = max(-radius, -y); dy <= min(radius, height - 1 - y); ++dy) {
        for (int dx = max(-radius, -x); dx <= min(radius, width - 1 - x); ++dx) {
            if (dx == 0 && dy == 0) continue;
            const int64_t there = here + static_cast<int64_t>(dy) * width + dx;
            sum += pixel_weight(features, here, there, pixels, num_features, minus_inverse_tau);
        }
    }
    const float d = sum > 0.0f ? sum : 1.0f;
    degree[here] = d;
    inverse_degree[here] = 1.0f / d;
}

// One block per class: the power of two that brings its largest score near 1, and whether all its scores are finite.
__global__ void scan_kernel(const float* scores,  // [classes, H, W]
                            float* scale,         // [chunk]
                            int* finite,          // [chunk]
                            int64_t pixels, int classes) {
    GPU_SHARED(int, s_largest, [1]);  // bits of a magnitude: as an integer they order like the float
    const int c = static_cast<int>(blockIdx.x);
    if (threadIdx.x == 0) s_largest[0] = 0;
    __syncthreads();
    int largest = 0;
    if (c < classes) {
        for (int64_t i = threadIdx.x; i < pixels; i += blockDim.x) {
            largest = max(largest, __float_as_int(scores[c * pixels + i]) & 0x7fffffff);
        }
    }
    atomicMax(&s_largest[0], largest);  // a maximum does not depend on the order
    __syncthreads();
    if (threadIdx.x == 0) {
        const int bits = s_largest[0];
        const bool is_finite = bits < 0x7f800000;  // Inf and NaN are the bit patterns from here on
        const int exponent = bits > 0 && is_finite ? ilogbf(__int_as_float(bits)) : 0;
        scale[c] = ldexpf(1.0f, min(max(-exponent, -120), 120));
        finite[c] = is_finite ? 1 : 0;
    }
}

// Scores -> state = D^-1/2 (scale Y), classes past the last and non-finite ones zero; |y|^2 of the block's pixels.
__global__ void pack_kernel(const float* scores,          // [classes, H, W]
                            const float* inverse_degree,  // [H, W]
                            const float* scale,           // [chunk]
                            const int* finite,            // [chunk]
                            float* state,                 // [H, W, chunk]
                            float* copy,                  // the same again, or null
                            float* zeroed,                // [H, W, chunk] set to zero, or null
                            double* partials,             // [blocks, 2, chunk]
                            int64_t pixels, int classes, int chunk) {
    GPU_SHARED(float, s_scores, [kRunPixels][kMaxClassChunk + 1]);
    const int64_t begin = static_cast<int64_t>(blockIdx.x) * kRunPixels;
    const int count = static_cast<int>(min(static_cast<long long>(kRunPixels), static_cast<long long>(pixels - begin)));
    for (int i = threadIdx.x; i < kRunPixels * chunk; i += blockDim.x) {
        const int c = i / kRunPixels, pixel = i % kRunPixels;
        float value = 0.0f;
        if (pixel < count && c < classes && finite[c] != 0) value = scores[c * pixels + begin + pixel] * scale[c];
        s_scores[pixel][c] = value;
    }
    __syncthreads();
    for (int i = threadIdx.x; i < count * chunk; i += blockDim.x) {
        const int pixel = i / chunk, c = i % chunk;
        const float value = s_scores[pixel][c] * sqrtf(inverse_degree[begin + pixel]);
        state[begin * chunk + i] = value;
        if (copy != nullptr) copy[begin * chunk + i] = value;
        if (zeroed != nullptr) zeroed[begin * chunk + i] = 0.0f;
    }
    for (int c = threadIdx.x; c < chunk; c += blockDim.x) {
        double sum = 0.0;
        for (int pixel = 0; pixel < count; ++pixel) {
            sum += static_cast<double>(s_scores[pixel][c]) * s_scores[pixel][c];
        }
        partials[static_cast<int64_t>(blockIdx.x) * 2 * chunk + c] = sum;
    }
}

// x += a p; r -= a q; p = r + b p, and |r|^2 of the block's pixels. In the first step x = 0 and r = p.
__global__ void update_kernel(float* p,                   // [H, W, chunk]
                              float* x,                   // [H, W, chunk]
                              float* r,                   // [H, W, chunk]
                              const float* q,             // [H, W, chunk]
                              const float* degree,        // [H, W]
                              const ClassState* classes,  // [chunk]
                              double* partials,           // [blocks, 2, chunk]
                              int64_t pixels, int chunk, bool first) {
    GPU_SHARED(double, s_sums, [kUpdateRows][kMaxClassChunk]);
    const int c = static_cast<int>(threadIdx.x);
    const float a = static_cast<float>(classes[c].a), b = static_cast<float>(classes[c].b);
    const int64_t begin = static_cast<int64_t>(blockIdx.x) * kRunPixels;
    double sum = 0.0;
    for (int i = static_cast<int>(threadIdx.y); i < kRunPixels && begin + i < pixels; i += kUpdateRows) {
        const int64_t at = (begin + i) * chunk + c;
        const float v = p[at], residual = (first ? v : r[at]) - a * q[at];
        x[at] = first ? a * v : x[at] + a * v;
        r[at] = residual;
        p[at] = residual + b * v;
        sum += static_cast<double>(degree[begin + i] * residual * residual);
    }
    s_sums[threadIdx.y][c] = sum;
    __syncthreads();
    if (threadIdx.y != 0) return;
    for (int row = 1; row < kUpdateRows; ++row) sum += s_sums[row][c];
    partials[static_cast<int64_t>(blockIdx.x) * 2 * chunk + c] = sum;
}

__global__ void fill_kernel(float* values, int64_t count, float value) {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < count) values[i] = value;
}

struct OutputParams {
    const float* state;     // [H, W, chunk], or null for zeros
    const float* degree;    // [H, W]
    const float* scale;     // [chunk]
    const int* finite;      // [chunk]
    const int32_t* groups;  // [classes] of this chunk, or null
    float* out;             // [G, H, W] or null
    void* labels;           // [H, W] or null
    float* best;            // [H, W] with labels
    int64_t pixels;
    int classes, chunk, first_class, label_bytes;
};

__device__ __forceinline__ int32_t read_label(const OutputParams& p, int64_t i) {
    return p.label_bytes == 1 ? static_cast<const uint8_t*>(p.labels)[i] : static_cast<const int32_t*>(p.labels)[i];
}

__device__ __forceinline__ void write_score(const OutputParams& p, int64_t pixel, int c, float value) {
    const int32_t group = p.groups != nullptr ? p.groups[c] : p.first_class + c;
    if (p.labels != nullptr) {
        // NaN never wins: both comparisons are false. Of equal scores the smallest group wins.
        if (value > p.best[pixel] || (value == p.best[pixel] && group < read_label(p, pixel))) {
            p.best[pixel] = value;
            if (p.label_bytes == 1) {
                static_cast<uint8_t*>(p.labels)[pixel] = static_cast<uint8_t>(group);
            } else {
                static_cast<int32_t*>(p.labels)[pixel] = group;
            }
        }
        return;
    }
    float* out = p.out + group * p.pixels + pixel;
    if (p.groups == nullptr || value > *out || value != value) *out = value;
}

// One thread per pixel writes; the state goes through shared memory so that both sides are read and written in order.
__global__ void unpack_kernel(const OutputParams p) {
    GPU_SHARED(float, s_state, [kRunPixels][kMaxClassChunk + 1]);
    const int64_t begin = static_cast<int64_t>(blockIdx.x) * kRunPixels;
    for (int i = threadIdx.x; i < kRunPixels * p.chunk; i += blockDim.x) {
        const int pixel = i / p.chunk, c = i % p.chunk;
        const bool present = p.state != nullptr && begin + pixel < p.pixels;
        s_state[pixel][c] = present ? p.state[begin * p.chunk + i] : 0.0f;
    }
    __syncthreads();
    const int64_t pixel = begin + threadIdx.x;
    if (pixel >= p.pixels) return;
    const float degree = sqrtf(p.degree[pixel]);
    for (int c = 0; c < p.classes; ++c) {
        const float undo = 1.0f / p.scale[c];
        const float value = s_state[threadIdx.x][c] * degree * undo;
        write_score(p, pixel, c, p.finite[c] != 0 ? value : __int_as_float(0x7fffffff));
    }
}

__global__ void report_kernel(const ClassState* classes, const int* finite, int32_t* iterations, double* residuals,
                              int count, int steps) {
    const int c = static_cast<int>(threadIdx.x);
    if (c >= count) return;
    const ClassState s = classes[c];
    const bool solved = !(s.rho_start > 0.0);  // a class of zeros
    const double residual = solved ? 0.0 : sqrt(s.rho / s.rho_start);
    if (iterations != nullptr) iterations[c] = finite[c] == 0 || solved ? 0 : (steps < 0 ? s.iterations : steps);
    if (residuals != nullptr)
        residuals[c] = finite[c] != 0 ? residual : static_cast<double>(__int_as_float(0x7fffffff));
}

struct Buffers {
    float *features, *degree, *inverse_degree;                 // [F, H, W], [H, W], [H, W]
    float *front, *back, *first, *solution, *residual, *best;  // [H, W, chunk], the roles of pixels_cpu.h; best [H, W]
    double* partials;                                          // [blocks, 2, chunk]
    float* scale;                                              // [chunk]
    int* finite;                                               // [chunk]
    ClassState* classes;                                       // [chunk]

    Buffers(const PixelsParams& p, int chunk, int64_t blocks, Workspace& ws) {
        const int64_t pixels = p.height * p.width, state = pixels * chunk;
        const bool official = p.mode == SolveMode::kOfficial;
        features = ws.take<float>("features", p.lab ? p.num_features * pixels : 0);
        degree = ws.take<float>("degree", pixels);
        inverse_degree = ws.take<float>("inverse_degree", pixels);
        front = ws.take<float>("front", state);
        back = ws.take<float>("back", official ? 0 : state);
        first = ws.take<float>("first", state);
        solution = ws.take<float>("solution", official ? state : 0);
        residual = ws.take<float>("residual", official ? state : 0);
        best = ws.take<float>("best", p.labels != nullptr ? pixels : 0);
        partials = ws.take<double>("partials", blocks * 2 * chunk);
        scale = ws.take<float>("scale", chunk);
        finite = ws.take<int>("finite", chunk);
        classes = ws.take<ClassState>("classes", chunk);
    }
};

// One image. Sizes are fixed, so all grids are; see the top of the file for the sequence.
class CudaSolver {
public:
    CudaSolver(const PixelsParams& p, Workspace& ws, int max_shared_bytes, cudaStream_t stream)
        : p_(p),
          pixels_(p.height * p.width),
          tiles_(ceil_div(p.height, kTileY) * ceil_div(p.width, kTileX)),
          runs_(ceil_div(pixels_, kRunPixels)),
          chunk_(static_cast<int>(std::min<int64_t>(p.class_chunk, round_up(p.num_classes, kClassGranule)))),
          max_shared_bytes_(max_shared_bytes),
          stream_(stream),
          b_(p, chunk_, std::max(tiles_, runs_), ws) {}

    void run() {
        build_affinity();
        start_output();
        for (int64_t c0 = 0; c0 < p_.num_classes; c0 += p_.class_chunk) {
            first_class_ = c0;
            classes_ = static_cast<int>(std::min<int64_t>(p_.class_chunk, p_.num_classes - c0));
            chunk_ = static_cast<int>(round_up(classes_, kClassGranule));
            pack();
            p_.mode == SolveMode::kOfficial ? solve_official() : solve_exact();
        }
    }

private:
    static dim3 grid_for(int64_t items, int per_block) {
        return dim3(static_cast<unsigned>(ceil_div(items, per_block)));
    }
    float minus_inverse_tau() const { return static_cast<float>(-1.0 / p_.tau); }
    const float* features() const { return p_.lab ? b_.features : static_cast<const float*>(p_.guide); }

    void build_affinity() {
        if (p_.lab) {
            launch(pixel_features_kernel, grid_for(pixels_, kThreads), dim3(kThreads), 0, stream_,
                   static_cast<const float*>(p_.guide), b_.features, pixels_);
            OVS_CHECK_LAUNCH("lp_pixels: pixel_features");
        }
        launch(degree_kernel, grid_for(pixels_, kThreads), dim3(kThreads), 0, stream_, features(), b_.degree,
               b_.inverse_degree, static_cast<int>(p_.height), static_cast<int>(p_.width),
               static_cast<int>(p_.num_features), p_.window / 2, minus_inverse_tau());
        OVS_CHECK_LAUNCH("lp_pixels: degree");
    }

    void fill(float* values, int64_t count, float value) {
        launch(fill_kernel, grid_for(count, kThreads), dim3(kThreads), 0, stream_, values, count, value);
        OVS_CHECK_LAUNCH("lp_pixels: fill");
    }

    void start_output() {
        if (p_.labels != nullptr) {
            OVS_CUDA(cudaMemsetAsync(p_.labels, 0, static_cast<std::size_t>(pixels_) * p_.label_bytes, stream_));
            fill(b_.best, pixels_, kLowest);
        } else if (p_.groups != nullptr) {
            fill(static_cast<float*>(p_.out), p_.num_groups * pixels_, kLowest);
        }
    }

    void scalars(int64_t blocks, Scalars what) {
        launch(scalars_kernel, dim3(static_cast<unsigned>(chunk_)), dim3(kScalarThreads), 0, stream_, b_.partials,
               b_.classes, blocks, chunk_, what, p_.tol);
        OVS_CHECK_LAUNCH("lp_pixels: scalars");
    }

    void pack() {
        const float* scores = static_cast<const float*>(p_.scores) + first_class_ * pixels_;
        const bool exact = p_.mode == SolveMode::kExact;
        launch(scan_kernel, dim3(static_cast<unsigned>(chunk_)), dim3(kThreads), 0, stream_, scores, b_.scale,
               b_.finite, pixels_, classes_);
        OVS_CHECK_LAUNCH("lp_pixels: scan");
        launch(pack_kernel, dim3(static_cast<unsigned>(runs_)), dim3(kThreads), 0, stream_, scores, b_.inverse_degree,
               b_.scale, b_.finite, b_.front, exact ? b_.first : nullptr, exact ? b_.back : nullptr, b_.partials,
               pixels_, classes_, chunk_);
        OVS_CHECK_LAUNCH("lp_pixels: pack");
        scalars(runs_, Scalars::kStart);
    }

    // Classes per stencil block: a divisor of the chunk, so that two blocks fit into a multiprocessor if they can.
    int stencil_classes() const {
        for (const std::size_t limit :
             {static_cast<std::size_t>(max_shared_bytes_ / 2), static_cast<std::size_t>(max_shared_bytes_)}) {
            for (int classes = chunk_; classes >= kLane; classes -= kLane) {
                if (chunk_ % classes == 0 && stencil_shared_bytes(p_.window / 2, classes) <= limit) return classes;
            }
        }
        throw InvalidArgument("lp_pixels: window: too large for this GPU's shared memory");
    }

    template <class Epilogue>
    void stencil(float* state, float* result, float momentum, float step) {
        StencilParams s = {};
        s.features = features();
        s.state = state;
        s.degree = b_.degree;
        s.inverse_degree = b_.inverse_degree;
        s.height = static_cast<int>(p_.height);
        s.width = static_cast<int>(p_.width);
        s.num_features = static_cast<int>(p_.num_features);
        s.radius = p_.window / 2;
        s.chunk = chunk_;
        s.classes = stencil_classes();
        s.minus_inverse_tau = minus_inverse_tau();
        s.alpha = static_cast<float>(p_.alpha);
        s.result = result;
        s.rhs = b_.first;
        s.partials = b_.partials;
        s.momentum = momentum;
        s.step = step;
        launch(stencil_kernel<Epilogue>, dim3(static_cast<unsigned>(tiles_), static_cast<unsigned>(chunk_ / s.classes)),
               dim3(static_cast<unsigned>(kPixelGroups * s.classes / kLane)), stencil_shared_bytes(s.radius, s.classes),
               stream_, s);
        OVS_CHECK_LAUNCH("lp_pixels: stencil");
    }

    void solve_official() {
        for (int step = 0; step < p_.max_iter; ++step) {
            stencil<ApplyEpilogue>(b_.front, b_.first, 0.0f, 0.0f);
            scalars(tiles_, Scalars::kStep);
            launch(update_kernel, dim3(static_cast<unsigned>(runs_)),
                   dim3(static_cast<unsigned>(chunk_), static_cast<unsigned>(kUpdateRows)), 0, stream_, b_.front,
                   b_.solution, b_.residual, b_.first, b_.degree, b_.classes, b_.partials, pixels_, chunk_, step == 0);
            OVS_CHECK_LAUNCH("lp_pixels: update");
            scalars(runs_, Scalars::kFinish);
        }
        unpack(b_.solution);
        report(-1);
    }

    void solve_exact() {
        const int steps = std::min(chebyshev_steps(p_.alpha, p_.tol), p_.max_iter);
        ChebyshevFactors factors(p_.alpha);
        float *now = b_.front, *before = b_.back;
        for (int step = 1; step < steps; ++step) {
            factors.next();
            stencil<ChebyshevEpilogue>(now, before, static_cast<float>(factors.momentum),
                                       static_cast<float>(factors.step));
            std::swap(now, before);
        }
        if (p_.residuals != nullptr) {
            stencil<ResidualEpilogue>(now, nullptr, 0.0f, 0.0f);
            scalars(tiles_, Scalars::kResidual);
        }
        unpack(now);
        report(steps);
    }

    void unpack(const float* state) {
        OutputParams o = {};
        o.state = state;
        o.degree = b_.degree;
        o.scale = b_.scale;
        o.finite = b_.finite;
        o.groups = p_.groups != nullptr ? p_.groups + first_class_ : nullptr;
        o.out = static_cast<float*>(p_.out);
        o.labels = p_.labels;
        o.best = b_.best;
        o.pixels = pixels_;
        o.classes = classes_;
        o.chunk = chunk_;
        o.first_class = static_cast<int>(first_class_);
        o.label_bytes = p_.label_bytes;
        launch(unpack_kernel, dim3(static_cast<unsigned>(runs_)), dim3(kRunPixels), 0, stream_, o);
        OVS_CHECK_LAUNCH("lp_pixels: unpack");
    }

    void report(int steps) {
        if (p_.iterations == nullptr && p_.residuals == nullptr) return;
        launch(report_kernel, dim3(1), dim3(kMaxClassChunk), 0, stream_, b_.classes, b_.finite,
               p_.iterations == nullptr ? nullptr : p_.iterations + first_class_,
               p_.residuals == nullptr ? nullptr : p_.residuals + first_class_, classes_, steps);
        OVS_CHECK_LAUNCH("lp_pixels: report");
    }

    const PixelsParams& p_;
    int64_t pixels_, tiles_, runs_;
    int chunk_, max_shared_bytes_;
    cudaStream_t stream_;
    Buffers b_;
    int64_t first_class_ = 0;
    int classes_ = 0;
};

}  // namespace

std::size_t lp_pixels_cuda_workspace_bytes(const PixelsParams& p) {
    check_params(p);
    Workspace counter(nullptr, 0);
    CudaSolver(p, counter, 0, nullptr);
    return counter.used();
}

void lp_pixels_cuda(const PixelsParams& p, void* workspace, std::size_t workspace_bytes, int device, void* stream) {
    check_params(p);
    if (p.batch == 0 || p.num_classes == 0 || p.height == 0 || p.width == 0) return;
    const DeviceGuard guard(device);
    int max_shared_bytes = 0;
    OVS_CUDA(cudaDeviceGetAttribute(&max_shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
    for (int64_t i = 0; i < p.batch; ++i) {
        Workspace ws(workspace, workspace_bytes);
        const PixelsParams image = image_of(p, i, sizeof(float));
        CudaSolver(image, ws, max_shared_bytes, as_stream(stream)).run();
    }
}

}  // namespace ovs
