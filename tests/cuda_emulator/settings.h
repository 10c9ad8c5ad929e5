// The environment variables, read anew at each launch so that a test can change them between two.
#pragma once
#include <string>

namespace cuda_emulator {

enum class Order { kForward, kReverse, kRandom };

struct Settings {
    Order order = Order::kForward;  // CUDAEMU_ORDER=forward|reverse|random:SEED, of threads and of blocks
    unsigned seed = 0;
    bool async = false;          // CUDAEMU_ASYNC=1: work waits until somebody synchronises with its stream
    bool host_pointers = false;  // CUDAEMU_HOST_POINTERS=1: memory that cudaMalloc did not give is device memory, too
};

// Returns an empty string, or what is wrong with a variable.
std::string read_settings(Settings* settings);

}  // namespace cuda_emulator
