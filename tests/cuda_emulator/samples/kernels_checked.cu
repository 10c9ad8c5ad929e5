// Correct kernels that use what the emulator provides; what they compute is known by other means.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <sstream>

#include "common/launch.cuh"
#include "common/reduce.cuh"
#include "samples.h"

namespace samples {
namespace {

constexpr int kWarp = ovs::kWarpSize;

template <class T>
std::string compare(const std::string& what, const std::vector<T>& got, const std::vector<T>& expected) {
    for (std::size_t i = 0; i < expected.size(); ++i) {
        if (got[i] == expected[i]) continue;
        std::ostringstream text;
        text << what << "[" << i << "]: expected " << expected[i] << ", got " << got[i];
        return text.str();
    }
    return "";
}

enum WarpCase {
    kBroadcast,
    kSegmentBroadcast,
    kUp,
    kSegmentUp,
    kDown,
    kSegmentDown,
    kXor,
    kSegmentXor,
    kBallot,
    kAny,
    kAll,
    kMatch,
    kAdd,
    kMinSigned,
    kMaxUnsigned,
    kAnd,
    kOr,
    kBitXor,
    kHalves,
    kDoubles,
    kNumWarpCases
};

__global__ void warp_kernel(int* out) {
    const int lane = threadIdx.x;
    const unsigned all = ovs::kFullMask;
    const int value = 100 + lane * lane;
    int* const mine = out + lane * kNumWarpCases;
    mine[kBroadcast] = __shfl_sync(all, value, 7);
    mine[kSegmentBroadcast] = __shfl_sync(all, value, 3, 8);
    mine[kUp] = __shfl_up_sync(all, value, 5);
    mine[kSegmentUp] = __shfl_up_sync(all, value, 3, 16);
    mine[kDown] = __shfl_down_sync(all, value, 5);
    mine[kSegmentDown] = __shfl_down_sync(all, value, 3, 16);
    mine[kXor] = __shfl_xor_sync(all, value, 21);
    mine[kSegmentXor] = __shfl_xor_sync(all, value, 9, 8);
    mine[kBallot] = static_cast<int>(__ballot_sync(all, lane % 3 == 0));
    mine[kAny] = __any_sync(all, lane == 31);
    mine[kAll] = __all_sync(all, lane < 31);
    mine[kMatch] = static_cast<int>(__match_any_sync(all, lane / 5));
    mine[kAdd] = __reduce_add_sync(all, -lane);
    mine[kMinSigned] = __reduce_min_sync(all, lane - 16);
    mine[kMaxUnsigned] = static_cast<int>(__reduce_max_sync(all, static_cast<unsigned>(lane) * 3u));
    mine[kAnd] = static_cast<int>(__reduce_and_sync(all, 0xf0u | static_cast<unsigned>(lane)));
    mine[kOr] = static_cast<int>(__reduce_or_sync(all, 1u << lane));
    mine[kBitXor] = static_cast<int>(__reduce_xor_sync(all, static_cast<unsigned>(lane) * 7u));
    // Two groups of a warp that know nothing of each other
    const unsigned group = lane < 16 ? 0x0000ffffu : 0xffff0000u;
    mine[kHalves] = lane < 16 ? __shfl_sync(group, value, 15) : __shfl_sync(group, -value, 16);
    mine[kDoubles] = __shfl_xor_sync(all, lane + 0.5, 1) == (lane ^ 1) + 0.5;
}

int expected_warp_case(int lane, int which) {
    const auto value = [](int l) { return 100 + l * l; };
    switch (which) {
        case kBroadcast:
            return value(7);
        case kSegmentBroadcast:
            return value(lane / 8 * 8 + 3);
        case kUp:
            return value(lane >= 5 ? lane - 5 : lane);
        case kSegmentUp:
            return value(lane % 16 >= 3 ? lane - 3 : lane);
        case kDown:
            return value(lane + 5 < 32 ? lane + 5 : lane);
        case kSegmentDown:
            return value(lane % 16 + 3 < 16 ? lane + 3 : lane);
        case kXor:
            return value(lane ^ 21);
        case kSegmentXor:
            return value((lane ^ 9) < lane / 8 * 8 + 8 ? lane ^ 9 : lane);
        case kBallot:
            return static_cast<int>(0x49249249u);
        case kAny:
            return 1;
        case kAll:
            return 0;
        case kMatch:
            return static_cast<int>(lane >= 30 ? 0xc0000000u : 31u << (lane / 5 * 5));
        case kAdd:
            return -496;
        case kMinSigned:
            return -16;
        case kMaxUnsigned:
            return 93;
        case kAnd:
            return 0xf0;
        case kOr:
            return -1;
        case kBitXor: {
            int bits = 0;
            for (int l = 0; l < 32; ++l) bits ^= l * 7;
            return bits;
        }
        case kHalves:
            return lane < 16 ? value(15) : -value(16);
        default:
            return 1;
    }
}

__global__ void vote_kernel(int* out) {
    const int t = threadIdx.x;
    int* const mine = out + 5 * t;
    mine[0] = __syncthreads_count(t % 3 == 0);
    mine[1] = __syncthreads_and(t >= 0);
    mine[2] = __syncthreads_and(t != 40);
    mine[3] = __syncthreads_or(t == 40);
    mine[4] = __syncthreads_or(t < 0);
}

__global__ void atomics_kernel(int* integers, unsigned* wrapped, float* single_sum, double* double_sum) {
    const int t = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
    atomicAdd(&integers[0], t);
    atomicSub(&integers[1], 1);
    atomicMin(&integers[2], -t);
    atomicMax(&integers[3], t);
    atomicOr(&integers[4], 1 << (t % 31));
    atomicAnd(&integers[5], ~(1 << (t % 4)));
    atomicXor(&integers[6], t);
    if (t == 17) atomicExch(&integers[7], 1234);
    atomicCAS(&integers[8], 0, 99);
    atomicInc(wrapped, 9u);
    atomicAdd(single_sum, 0.5f);
    atomicAdd(double_sum, 0.25);
}

__global__ void math_kernel(const float4* vectors, double* out) {
    out[0] = rsqrtf(4.0f);
    out[1] = rsqrt(16.0);
    out[2] = __fsqrt_rn(9.0f);
    out[3] = __expf(1.0f);
    out[4] = exp2f(5.0f);
    out[5] = fmaf(2.0f, 3.0f, 4.0f);
    out[6] = __fdividef(1.0f, 8.0f);
    out[7] = __saturatef(1.5f);
    out[8] = __float_as_int(1.0f);
    out[9] = __popc(0xf0f0u) + 100 * __clz(1) + 10000 * __ffs(8);
    out[10] = __brev(1u);
    out[11] = min(3, 2) + 10 * max(3u, 4u) + 100.0f * min(2.0f, nanf(""));
    out[12] = __half2float(__float2half(0.333f));
    out[13] = __bfloat162float(__float2bfloat16(0.333f));
    const float4 loaded = __ldg(&vectors[1]);
    out[14] = loaded.x + 10.0f * loaded.y + 100.0f * loaded.z + 1000.0f * loaded.w;
    out[15] = __float2int_rn(2.5f) + 10 * __float2int_rd(-1.5f) + 100 * __float2int_ru(1.5f);
    out[16] = __umulhi(0x80000000u, 6u);
    out[17] = __powf(2.0f, 10.0f) + __logf(1.0f) + __cosf(0.0f);
}

// Sums of n values, each thread adding every kThreads-th; every thread writes the four results it got.
template <int kThreads, class T>
__global__ void __launch_bounds__(kThreads) sums_kernel(const T* x, int n, T* out) {
    const int t = ovs::thread_in_block();
    T values[3] = {T(0), T(0), T(0)};
    for (int i = t; i < n; i += kThreads) {
        values[0] += x[i];
        values[1] += x[i] * x[i];
        values[2] += T(1);
    }
    T single = values[0];
    ovs::block_sum<kThreads>(values);
    for (int i = 0; i < 3; ++i) out[4 * t + i] = values[i];
    // Three sums without a barrier in between, each of other values than the one before
    T sum_of_sums = T(0);
    for (int round = 0; round < 3; ++round) {
        sum_of_sums += ovs::block_sum<kThreads>(single);
        single += single;
    }
    out[4 * t + 3] = sum_of_sums;
}

template <int kThreads, class T>
std::string check_sums(int n, dim3 block, bool integers) {
    std::vector<T> values(n);
    double sum = 0.0, squares = 0.0, magnitude = 0.0;
    for (int i = 0; i < n; ++i) {
        values[i] = integers ? T(i % 19 - 5) : static_cast<T>(std::sin(1.0 + 37.0 * i));
        sum += values[i];
        squares += static_cast<double>(values[i]) * values[i];
        magnitude += std::abs(values[i]);
    }
    const DeviceArray<T> x(values), out(std::vector<T>(4 * kThreads, T(-1)));
    ovs::launch(sums_kernel<kThreads, T>, 1, block, 0, nullptr, x.data(), n, out.data());
    OVS_CHECK_LAUNCH("block_sum");
    const std::vector<T> got = out.to_host();
    // Each addition rounds by half a unit in the last place; a value takes part in at most 40 of them.
    const double rounding = 40.0 * std::numeric_limits<T>::epsilon() * 7.0 * magnitude;
    const double tolerance = integers ? 0.0 : rounding;
    const double expected[4] = {sum, squares, static_cast<double>(n), 7.0 * sum};
    for (int i = 0; i < 4 * kThreads; ++i) {
        const bool right = std::abs(got[i] - expected[i % 4]) <= tolerance;
        if (right && got[i] == got[i % 4]) continue;  // the same bits in every thread
        std::ostringstream text;
        text << "block_sum<" << kThreads << "> of " << n << " values of " << sizeof(T) << " bytes, thread " << i / 4
             << ", quantity " << i % 4 << ": expected " << expected[i % 4] << ", got " << got[i];
        return text.str();
    }
    return "";
}

template <int kThreads, class T>
std::string check_sums_of_all_sizes(dim3 block) {
    for (const int n : {1, 31, 32, 33, 256, 1000}) {
        for (const bool integers : {true, false}) {
            const std::string problem = check_sums<kThreads, T>(n, block, integers);
            if (!problem.empty()) return problem;
        }
    }
    return "";
}

// A 5 x 5 stencil: weights in constant memory, 2-D blocks, borders, a halo in dynamic shared memory.
constexpr int kRadius = 2, kTileW = 16, kTileH = 4;
__constant__ float box_weights[(2 * kRadius + 1) * (2 * kRadius + 1)];

__global__ void __launch_bounds__(kTileW* kTileH)
    stencil_kernel(const float2* __restrict__ in, float2* __restrict__ out, int width, int height) {
    GPU_DYN_SHARED(float2, tile);
    constexpr int kHaloW = kTileW + 2 * kRadius, kHaloH = kTileH + 2 * kRadius;
    const int left = static_cast<int>(blockIdx.x) * kTileW - kRadius;
    const int top = static_cast<int>(blockIdx.y) * kTileH - kRadius;
    for (int i = ovs::thread_in_block(); i < kHaloW * kHaloH; i += kTileW * kTileH) {
        const int x = left + i % kHaloW, y = top + i / kHaloW;
        const bool inside = x >= 0 && x < width && y >= 0 && y < height;
        tile[i] = inside ? __ldg(&in[y * width + x]) : make_float2(0.0f, 0.0f);
    }
    __syncthreads();
    const int x = left + kRadius + static_cast<int>(threadIdx.x), y = top + kRadius + static_cast<int>(threadIdx.y);
    if (x >= width || y >= height) return;
    float2 sum = make_float2(0.0f, 0.0f);
    for (int dy = 0; dy <= 2 * kRadius; ++dy) {
        for (int dx = 0; dx <= 2 * kRadius; ++dx) {
            const float weight = box_weights[dy * (2 * kRadius + 1) + dx];
            const float2 value = tile[(threadIdx.y + dy) * kHaloW + threadIdx.x + dx];
            sum.x = fmaf(weight, value.x, sum.x);
            sum.y = fmaf(weight, value.y, sum.y);
        }
    }
    out[y * width + x] = sum;
}

__global__ void turns_kernel(int* counter, int* turns) {
    turns[atomicAdd(counter, 1)] = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
}

}  // namespace

std::string check_warp_operations() {
    const DeviceArray<int> out(std::vector<int>(kWarp * kNumWarpCases, -12345));
    ovs::launch(warp_kernel, 1, kWarp, 0, nullptr, out.data());
    OVS_CHECK_LAUNCH("warp");
    std::vector<int> expected;
    for (int lane = 0; lane < kWarp; ++lane) {
        for (int which = 0; which < kNumWarpCases; ++which) expected.push_back(expected_warp_case(lane, which));
    }
    return compare("warp operations", out.to_host(), expected);
}

std::string check_block_votes() {
    constexpr int kThreads = 50;  // not a multiple of a warp
    const DeviceArray<int> out(std::vector<int>(5 * kThreads, -1));
    ovs::launch(vote_kernel, 1, kThreads, 0, nullptr, out.data());
    OVS_CHECK_LAUNCH("vote");
    std::vector<int> expected;
    for (int t = 0; t < kThreads; ++t) expected.insert(expected.end(), {17, 1, 0, 1, 0});
    return compare("votes", out.to_host(), expected);
}

std::string check_atomics() {
    const DeviceArray<int> integers({0, 0, 0, 0, 0, 0xff, 0, 0, 0});
    const DeviceArray<unsigned> wrapped({0u});
    const DeviceArray<float> single_sum({0.0f});
    const DeviceArray<double> double_sum({0.0});
    ovs::launch(atomics_kernel, 2, 64, 0, nullptr, integers.data(), wrapped.data(), single_sum.data(),
                double_sum.data());
    OVS_CHECK_LAUNCH("atomics");
    std::string problem =
        compare("atomics", integers.to_host(), {128 * 127 / 2, -128, -127, 127, 0x7fffffff, 0xf0, 0, 1234, 99});
    if (problem.empty()) problem = compare("atomicInc", wrapped.to_host(), {128u % 10u});
    if (problem.empty()) problem = compare("atomicAdd of float", single_sum.to_host(), {64.0f});
    if (problem.empty()) problem = compare("atomicAdd of double", double_sum.to_host(), {32.0});
    return problem;
}

std::string check_math() {
    const DeviceArray<double> out(std::vector<double>(18, -1.0));
    const DeviceArray<float4> vectors({make_float4(0.0f, 0.0f, 0.0f, 0.0f), make_float4(1.0f, 2.0f, 3.0f, 4.0f)});
    ovs::launch(math_kernel, 1, 1, 0, nullptr, vectors.data(), out.data());
    OVS_CHECK_LAUNCH("math");
    const std::vector<double> got = out.to_host();
    const std::vector<double> expected = {
        0.5,          0.25,       3.0,        2.718281828,      32.0,         10.0,
        0.125,        1.0,        0x3f800000, 8 + 3100 + 40000, 2147483648.0, 242.0,
        0.3330078125, 0.33203125, 4321.0,     2 - 20 + 200,     3.0,          1025.0,
    };
    for (std::size_t i = 0; i < expected.size(); ++i) {
        if (!(std::abs(got[i] - expected[i]) <= 1e-6 * std::abs(expected[i]))) {
            return "math[" + std::to_string(i) + "]: expected " + std::to_string(expected[i]) + ", got " +
                   std::to_string(got[i]);
        }
    }
    return "";
}

std::string check_block_sums() {
    std::string problem = check_sums_of_all_sizes<32, float>(32);
    if (problem.empty()) problem = check_sums_of_all_sizes<96, float>(96);
    if (problem.empty()) problem = check_sums_of_all_sizes<256, float>(dim3(32, 8));
    if (problem.empty()) problem = check_sums_of_all_sizes<1024, float>(dim3(16, 16, 4));
    if (problem.empty()) problem = check_sums_of_all_sizes<32, double>(32);
    if (problem.empty()) problem = check_sums_of_all_sizes<256, double>(256);
    if (problem.empty()) problem = check_sums_of_all_sizes<1024, double>(1024);
    return problem;
}

std::string check_stencil() {
    const int width = 37, height = 11, side = 2 * kRadius + 1;
    std::vector<float2> values(width * height);
    for (int i = 0; i < width * height; ++i) {
        values[i] = make_float2(static_cast<float>(i % 7), static_cast<float>(i % 5));
    }
    std::vector<float> weights(side * side), expected(2 * values.size()), got;
    for (int i = 0; i < side * side; ++i) weights[i] = static_cast<float>(i % 3);
    for (int i = 0; i < width * height * side * side; ++i) {
        const int x = i / (side * side) % width, y = i / (side * side * width);
        const int u = x + i % side - kRadius, v = y + i / side % side - kRadius;
        if (u < 0 || u >= width || v < 0 || v >= height) continue;
        expected[2 * (y * width + x)] += weights[i % (side * side)] * values[v * width + u].x;
        expected[2 * (y * width + x) + 1] += weights[i % (side * side)] * values[v * width + u].y;
    }
    const DeviceArray<float2> in(values), out(std::vector<float2>(values.size(), make_float2(-1.0f, -1.0f)));
    OVS_CUDA(cudaMemcpyToSymbolAsync(box_weights, weights.data(), weights.size() * sizeof(float), 0,
                                     cudaMemcpyHostToDevice, nullptr));
    const dim3 grid((width + kTileW - 1) / kTileW, (height + kTileH - 1) / kTileH);
    const std::size_t bytes = sizeof(float2) * (kTileW + 2 * kRadius) * (kTileH + 2 * kRadius);
    ovs::launch(stencil_kernel, grid, dim3(kTileW, kTileH), bytes, nullptr, in.data(), out.data(), width, height);
    OVS_CHECK_LAUNCH("stencil");
    for (const float2& value : out.to_host()) got.insert(got.end(), {value.x, value.y});
    return compare("stencil", got, expected);
}

std::vector<int> turn_order() {
    const DeviceArray<int> counter({0}), turns(std::vector<int>(16, -1));
    ovs::launch(turns_kernel, 2, 8, 0, nullptr, counter.data(), turns.data());
    OVS_CHECK_LAUNCH("turns");
    return turns.to_host();
}

}  // namespace samples
