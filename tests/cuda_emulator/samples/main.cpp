// Runs the sample kernels under the emulator; tests/test_emulator.py calls it and reads what it prints. The
// exit status is 1 when a result is wrong, and the sanitizer's when that reports something. Commands:
//
//   check NAME               a correct kernel: "ok", or what was wrong
//   delete NAME NUMBER       a kernel without one of its barriers (-1: with all): "right" or "wrong"
//   list                     the kernels for `delete`, with their numbers of barriers
//   bug NAME                 a mistake ("none": none): the runtime's error, and "right", "wrong" or "nan"
//   turns [ORDER...]         the order of the threads, with CUDAEMU_ORDER set to each argument in turn
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <map>
#include <thread>

#include "samples.h"

namespace samples {
namespace {

constexpr int kN = 64;

std::vector<float> count_up(int n) {
    std::vector<float> values(n);
    for (int i = 0; i < n; ++i) values[i] = static_cast<float>(i);
    return values;
}

const char* judge(const std::vector<float>& values) {
    for (const float value : values) {
        if (std::isnan(value)) return "nan";
    }
    return values == count_up(static_cast<int>(values.size())) ? "right" : "wrong";
}

void print_status(cudaError_t status) { std::printf("%s: %s\n", cudaGetErrorName(status), cudaGetErrorString(status)); }

// Mistakes of the host side. Each leaves its error, or its values in `out`.
cudaError_t run_host_bug(const std::string& name, std::vector<float>* out) {
    const DeviceArray<float> g(std::vector<float>(kN, -1.0f));
    cudaStream_t stream = nullptr, other = nullptr;
    OVS_CUDA(cudaStreamCreate(&stream));
    OVS_CUDA(cudaStreamCreate(&other));
    out->assign(kN, -1.0f);
    const std::size_t bytes = kN * sizeof(float);
    if (name == "host_pointer") {
        launch_count_up(out->data(), kN, stream);
    } else if (name == "freed_pointer") {
        float* freed = nullptr;
        {
            const DeviceArray<float> gone(std::vector<float>(kN, 0.0f));
            freed = gone.data();
        }
        launch_count_up(freed, kN, stream);
    } else if (name == "copy_past_the_end") {
        out->resize(kN + 1);
        (void)cudaMemcpy(out->data(), g.data(), bytes + sizeof(float), cudaMemcpyDeviceToHost);
    } else if (name == "wrong_copy_kind") {
        (void)cudaMemcpy(out->data(), g.data(), bytes, cudaMemcpyHostToDevice);
    } else if (name == "missing_synchronisation" || name == "wrong_stream" || name == "synchronised") {
        launch_count_up(g.data(), kN, stream);
        OVS_CUDA(cudaMemcpyAsync(out->data(), g.data(), bytes, cudaMemcpyDeviceToHost, stream));
        if (name == "wrong_stream") OVS_CUDA(cudaStreamSynchronize(other));
        if (name == "synchronised") OVS_CUDA(cudaStreamSynchronize(stream));
    } else {
        std::fprintf(stderr, "unknown bug %s\n", name.c_str());
        std::exit(2);
    }
    const cudaError_t status = cudaGetLastError();
    const std::vector<float> seen = *out;  // now, before the rest of the work is made to finish
    OVS_CUDA(cudaStreamDestroy(stream));
    OVS_CUDA(cudaStreamDestroy(other));
    *out = seen;
    return status;
}

int run_bug(const std::string& name) {
    std::vector<float> values;
    cudaError_t status = cudaSuccess;
    const DeviceArray<float> g(std::vector<float>(kN, -1.0f));
    if (launch_buggy(name, g.data(), kN, nullptr)) {
        status = cudaGetLastError();
        values = g.to_host();
    } else {
        status = run_host_bug(name, &values);
    }
    print_status(status);
    std::printf("%s\n", judge(values));
    return 0;
}

int run_delete(const std::string& name, int number) {
    for (const DeletableSample& sample : deletable_samples()) {
        if (name != sample.name) continue;
        const bool right = sample.run(number);
        std::printf("%s\n", right ? "right" : "wrong");
        return right ? 0 : 1;
    }
    return 2;
}

int run_turns(int num_orders, char** orders) {
    for (int i = 0; i < num_orders; ++i) {
        setenv("CUDAEMU_ORDER", orders[i], 1);
        for (const int turn : turn_order()) std::printf("%d ", turn);
        std::printf("\n");
    }
    return 0;
}

// A failed launch must not spoil the next one, and its message must reach OVS_CHECK_LAUNCH.
std::string check_errors() {
    const DeviceArray<float> g(std::vector<float>(kN, -1.0f));
    for (int round = 0; round < 2; ++round) {
        launch_buggy("divergent_barrier", g.data(), kN, nullptr);
        std::string message;
        try {
            OVS_CHECK_LAUNCH("some_operator");
        } catch (const ovs::CudaError& error) {
            message = error.what();
        }
        if (message.find("some_operator: cudaErrorLaunchFailure: divergent __syncthreads") != 0) {
            return "OVS_CHECK_LAUNCH: got the message '" + message + "'";
        }
        if (cudaPeekAtLastError() != cudaSuccess) return "OVS_CHECK_LAUNCH: the error is still pending";
        launch_count_up(g.data(), kN, nullptr);
        OVS_CHECK_LAUNCH("count_up");
        if (std::strcmp(judge(g.to_host()), "right") != 0) return "the launch after a failed one gave a wrong result";
    }
    try {
        OVS_CUDA(cudaMemset(nullptr, 0, 4));
        return "OVS_CUDA: a failing call did not throw";
    } catch (const ovs::CudaError& error) {
        if (std::string(error.what()).find("cudaMemset(nullptr, 0, 4): cudaErrorInvalidValue") != 0)
            return error.what();
    }
    return "";
}

std::string check_device() {
    const ovs::DeviceGuard guard(0);
    try {
        const ovs::DeviceGuard wrong(1);
        return "DeviceGuard(1) did not throw, there is one device";
    } catch (const ovs::CudaError&) {
    }
    int count = 0, threads = 0, shared = 0, multiprocessors = 0, runtime = 0;
    OVS_CUDA(cudaGetDeviceCount(&count));
    OVS_CUDA(cudaDeviceGetAttribute(&threads, cudaDevAttrMaxThreadsPerBlock, 0));
    OVS_CUDA(cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0));
    OVS_CUDA(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, 0));
    OVS_CUDA(cudaRuntimeGetVersion(&runtime));
    cudaDeviceProp properties;
    OVS_CUDA(cudaGetDeviceProperties(&properties, 0));
    const bool right = count == 1 && threads == 1024 && shared == 227 * 1024 && multiprocessors > 0 &&
                       runtime == CUDART_VERSION && properties.multiProcessorCount == multiprocessors;
    return right ? "" : "a property of the device is not what the emulator documents";
}

// Several OS threads launch at the same time; the emulator takes them one after the other.
std::string check_os_threads() {
    constexpr int kCallers = 4;
    std::vector<std::string> problems(kCallers);
    std::vector<std::thread> callers;
    for (int caller = 0; caller < kCallers; ++caller) {
        callers.emplace_back([caller, &problems] {
            for (int round = 0; round < 5; ++round) {
                const DeviceArray<float> values(std::vector<float>(200, -1.0f));
                launch_count_up(values.data(), 200, nullptr);
                if (std::strcmp(judge(values.to_host()), "right") != 0) problems[caller] = "a wrong result";
                if (!deletable_samples()[0].run(-1)) problems[caller] = "a wrong result with barriers";
            }
        });
    }
    for (std::thread& caller : callers) caller.join();
    for (const std::string& problem : problems) {
        if (!problem.empty()) return problem;
    }
    return "";
}

int run_check(const std::string& name) {
    const std::map<std::string, std::function<std::string()>> checks = {
        {"warp_operations", check_warp_operations},
        {"block_votes", check_block_votes},
        {"atomics", check_atomics},
        {"math", check_math},
        {"block_sums", check_block_sums},
        {"stencil", check_stencil},
        {"errors", check_errors},
        {"device", check_device},
        {"os_threads", check_os_threads},
    };
    const auto found = checks.find(name);
    if (found == checks.end()) return 2;
    const std::string problem = found->second();
    std::printf("%s\n", problem.empty() ? "ok" : problem.c_str());
    return problem.empty() ? 0 : 1;
}

int run(int argc, char** argv) {
    const std::string command = argc > 1 ? argv[1] : "";
    if (command == "check" && argc == 3) return run_check(argv[2]);
    if (command == "delete" && argc == 4) return run_delete(argv[2], std::atoi(argv[3]));
    if (command == "bug" && argc == 3) return run_bug(argv[2]);
    if (command == "turns") return run_turns(argc - 2, argv + 2);
    if (command == "list") {
        for (const DeletableSample& sample : deletable_samples()) {
            std::printf("%s %d\n", sample.name, sample.num_barriers);
        }
        return 0;
    }
    return 2;
}

}  // namespace
}  // namespace samples

int main(int argc, char** argv) {
    try {
        return samples::run(argc, argv);
    } catch (const std::exception& error) {
        std::printf("exception: %s\n", error.what());
        return 3;
    }
}
