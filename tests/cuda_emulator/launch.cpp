// From a launch to its blocks, and the queue that asynchronous work waits in.
#include <algorithm>
#include <cstdio>
#include <deque>
#include <memory>
#include <mutex>
#include <numeric>

#include "block.h"
#include "runtime.h"

namespace cuda_emulator {
namespace {

struct Work {
    cudaStream_t stream;
    std::function<void()> run;
};

std::mutex work_mutex;  // held while work runs
std::deque<Work>& queue() {
    static std::deque<Work> works;
    return works;
}

// Runs the queued works before `end` that `wanted` picks, and removes them.
template <class Predicate>
void run_queued(std::size_t end, Predicate wanted) {
    std::deque<Work> kept, picked;
    for (std::size_t i = 0; i < queue().size(); ++i) {
        (i < end && wanted(i) ? picked : kept).push_back(std::move(queue()[i]));
    }
    queue() = std::move(kept);
    for (const Work& work : picked) work.run();
}

std::size_t end_of_stream(cudaStream_t stream, std::size_t end) {
    while (end > 0 && queue()[end - 1].stream != stream) --end;
    return end;
}

void run_grid(const Launch& launch) {
    static Block* const block = new Block;  // its threads' stacks are kept for the next launch
    active_block = block;
    block->begin_launch(launch);
    const dim3 grid = launch.grid;
    const std::size_t num_blocks = std::size_t{grid.x} * grid.y * grid.z;
    std::vector<std::size_t> order(launch.settings.order == Order::kRandom ? num_blocks : 0);
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::shuffle(order.begin(), order.end(), std::mt19937(launch.settings.seed));
    for (std::size_t i = 0; i < num_blocks; ++i) {
        std::size_t index = i;
        if (launch.settings.order == Order::kReverse) index = num_blocks - 1 - i;
        if (launch.settings.order == Order::kRandom) index = order[i];
        const uint3 block_idx =
            make_uint3(static_cast<unsigned>(index % grid.x), static_cast<unsigned>(index / grid.x % grid.y),
                       static_cast<unsigned>(index / (std::size_t{grid.x} * grid.y)));
        if (!block->run(block_idx)) {
            set_error(cudaErrorLaunchFailure, block->error());
            break;
        }
    }
}

std::string to_text(dim3 shape) {
    return "(" + std::to_string(shape.x) + "," + std::to_string(shape.y) + "," + std::to_string(shape.z) + ")";
}

bool configuration_is_valid(dim3 grid, dim3 block, std::size_t smem_bytes) {
    const std::size_t threads = std::size_t{block.x} * block.y * block.z;
    const bool block_ok = threads > 0 && threads <= kMaxThreads && block.z <= 64;
    const bool grid_ok =
        grid.x > 0 && grid.y > 0 && grid.z > 0 && grid.x <= 2147483647u && grid.y <= 65535 && grid.z <= 65535;
    if (!block_ok || !grid_ok) {
        set_error(cudaErrorInvalidConfiguration,
                  "launch: invalid configuration: grid " + to_text(grid) + ", block " + to_text(block));
    } else if (smem_bytes > kMaxSharedBytes) {
        set_error(cudaErrorInvalidValue, "launch: at most " + std::to_string(kMaxSharedBytes) +
                                             " bytes of shared memory per block, got " + std::to_string(smem_bytes));
    } else {
        return true;
    }
    return false;
}

}  // namespace

void launch_grid(dim3 grid, dim3 block, std::size_t smem_bytes, cudaStream_t stream, const void* const* pointers,
                 int num_pointers, std::function<void()> thread) {
    Settings settings;
    const std::string problem = read_settings(&settings);
    if (!problem.empty()) {
        set_error(cudaErrorInvalidValue, problem);
        return;
    }
    if (!configuration_is_valid(grid, block, smem_bytes)) return;
    for (int i = 0; i < num_pointers && !settings.host_pointers; ++i) {
        if (pointers[i] == nullptr || is_device_memory(pointers[i], 0)) continue;
        set_error(cudaErrorIllegalAddress,
                  "launch: argument " + std::to_string(i) + " of the kernel is not a device pointer");
        return;
    }
    auto launch = std::make_shared<const Launch>(Launch{grid, block, smem_bytes, std::move(thread), settings});
    submit(stream, settings.async, [launch] { run_grid(*launch); });
}

void submit(cudaStream_t stream, bool async, std::function<void()> work) {
    const std::lock_guard<std::mutex> lock(work_mutex);
    queue().push_back({stream, std::move(work)});
    if (!async) run_queued(queue().size(), [](std::size_t) { return true; });
}

void finish_stream(cudaStream_t stream) {
    const std::lock_guard<std::mutex> lock(work_mutex);
    const std::size_t end = end_of_stream(stream, queue().size());
    const std::size_t everything_before = end_of_stream(nullptr, end);  // the default stream waits for all others
    std::vector<bool> wanted(end);
    for (std::size_t i = 0; i < end; ++i) wanted[i] = i < everything_before || queue()[i].stream == stream;
    run_queued(end, [&](std::size_t i) { return static_cast<bool>(wanted[i]); });
}

void finish_all() {
    const std::lock_guard<std::mutex> lock(work_mutex);
    run_queued(queue().size(), [](std::size_t) { return true; });
}

}  // namespace cuda_emulator
