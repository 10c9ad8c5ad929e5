// What the programs of this folder share: arrays on the device, random numbers, a line per case, the command line.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <exception>
#include <functional>
#include <string>
#include <vector>

#include "common/device.cuh"
#include "common/error.h"

namespace cases {

struct Failure {
    std::string what;
};

inline void require(bool condition, const std::string& what) {
    if (!condition) throw Failure{what};
}

inline std::string text(double value) {
    char buffer[32];
    std::snprintf(buffer, sizeof(buffer), "%.6g", value);
    return buffer;
}

// Uniform in [0, 1): the same numbers with every standard library. A class of its own also because the emulator's
// engine has a std::mt19937: in a ThreadSanitizer build the linker would give it this file's instrumented copy.
class Random {
public:
    explicit Random(uint64_t seed = 20240901) : state_(seed) {}
    double operator()() {
        state_ = state_ * 6364136223846793005u + 1442695040888963407u;  // Knuth's MMIX
        return static_cast<double>(state_ >> 32) / 4294967296.0;
    }
    // low, low + 1, .. high - 1
    int64_t between(int64_t low, int64_t high) {
        return low + static_cast<int64_t>((*this)() * static_cast<double>(high - low));
    }

private:
    uint64_t state_;
};

// The GPU

constexpr int kUntouched = 0xff;  // bytes of an output before the call: NaN, -1

template <class T>
class DeviceArray {
public:
    explicit DeviceArray(std::size_t count) : count_(count) {
        void* memory = nullptr;
        OVS_CUDA(cudaMalloc(&memory, count * sizeof(T)));
        data_ = static_cast<T*>(memory);
    }
    explicit DeviceArray(const std::vector<T>& values) : DeviceArray(values.size()) {
        if (count_ > 0) OVS_CUDA(cudaMemcpy(data_, values.data(), count_ * sizeof(T), cudaMemcpyHostToDevice));
    }
    ~DeviceArray() { (void)cudaFree(data_); }
    DeviceArray(const DeviceArray&) = delete;
    DeviceArray& operator=(const DeviceArray&) = delete;

    T* data() const { return data_; }
    void fill_bytes(int value) {
        if (count_ > 0) OVS_CUDA(cudaMemset(data_, value, count_ * sizeof(T)));
    }
    std::vector<T> to_host() const {
        std::vector<T> values(count_);
        if (count_ > 0) OVS_CUDA(cudaMemcpy(values.data(), data_, count_ * sizeof(T), cudaMemcpyDeviceToHost));
        return values;
    }

private:
    T* data_ = nullptr;
    std::size_t count_;
};

class Stream {
public:
    explicit Stream(bool own = true) {
        if (own) OVS_CUDA(cudaStreamCreate(&stream_));
    }
    ~Stream() {
        if (stream_ != nullptr) (void)cudaStreamDestroy(stream_);
    }
    Stream(const Stream&) = delete;
    Stream& operator=(const Stream&) = delete;
    cudaStream_t get() const { return stream_; }

private:
    cudaStream_t stream_ = nullptr;
};

// The cases

inline bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
    return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

inline void expect_refusal(const std::string& name, const std::function<void()>& call) {
    try {
        call();
    } catch (const ovs::InvalidArgument&) {
        return;
    }
    throw Failure{name + " was accepted"};
}

// Parameters with another value of one member.
template <class Params, class Member, class Value>
Params changed(Params params, Member Params::* member, Value value) {
    params.*member = value;
    return params;
}

// Waits for the device; `output` must still have the bytes of fill_bytes(kUntouched).
template <class T>
void expect_untouched(const DeviceArray<T>& output) {
    OVS_CUDA(cudaDeviceSynchronize());
    const std::vector<T> values = output.to_host();
    std::vector<T> untouched(values.size());
    if (untouched.empty()) return;
    std::memset(untouched.data(), kUntouched, untouched.size() * sizeof(T));
    require(std::memcmp(values.data(), untouched.data(), values.size() * sizeof(T)) == 0, "an output was written");
}

// Runs the cases of a program, each with a line of its own.
class Runner {
public:
    explicit Runner(bool small) : small_(small) {}

    // `run` returns a remark for the line. `quick`: also with --small.
    void operator()(const std::string& name, bool quick, const std::function<std::string()>& run) {
        if (small_ && !quick) return;
        std::string problem;
        try {
            std::printf("ok      %s: %s\n", name.c_str(), run().c_str());
            return;
        } catch (const Failure& failure) {
            problem = failure.what;
        } catch (const std::exception& error) {
            problem = error.what();
        }
        failed_ = true;
        std::printf("FAILED  %s: %s\n", name.c_str(), problem.c_str());
    }
    int status() const { return failed_ ? 1 : 0; }

private:
    bool small_, failed_ = false;
};

// The cases of a program in their order; `Case` has a name, and `quick` for Runner.
template <class Case>
class List {
public:
    // The case as it is by default but for what `change` does to it.
    template <class Change>
    Case& add(const std::string& name, const Change& change) {
        cases_.emplace_back();
        cases_.back().name = name;
        change(cases_.back());
        return cases_.back();
    }
    // `check` returns a case's remark.
    void run(Runner& runner, std::string (*check)(const Case&)) const {
        for (const Case& c : cases_) runner(c.name, c.quick, [&c, check] { return check(c); });
    }

private:
    std::vector<Case> cases_;
};

// `program [--small]`; returns the exit status.
inline int run_program(const char* program, int argc, char** argv, void (*run_all)(Runner&)) {
    const bool small = argc == 2 && std::strcmp(argv[1], "--small") == 0;
    if (argc > 1 && !small) {
        std::fprintf(stderr, "usage: %s [--small]\n", program);
        return 2;
    }
    std::setvbuf(stdout, nullptr, _IOLBF, BUFSIZ);  // what came before a sanitizer's abort is not lost
    Runner runner(small);
    run_all(runner);
    return runner.status();
}

}  // namespace cases
