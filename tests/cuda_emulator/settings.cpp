#include "settings.h"

#include <cstdlib>
#include <cstring>

namespace cuda_emulator {
namespace {

std::string read_flag(const char* name, bool* flag) {
    const char* const value = std::getenv(name);
    if (value == nullptr || std::strcmp(value, "") == 0 || std::strcmp(value, "0") == 0) {
        *flag = false;
    } else if (std::strcmp(value, "1") == 0) {
        *flag = true;
    } else {
        return std::string(name) + ": expected 0 or 1, got " + value;
    }
    return "";
}

std::string read_order(Settings* settings) {
    const char* const value = std::getenv("CUDAEMU_ORDER");
    const std::string order = value == nullptr || *value == '\0' ? "forward" : value;
    const std::string random = "random:";
    if (order == "forward") {
        settings->order = Order::kForward;
    } else if (order == "reverse") {
        settings->order = Order::kReverse;
    } else if (order.compare(0, random.size(), random) == 0 && order.size() > random.size() &&
               order.find_first_not_of("0123456789", random.size()) == std::string::npos) {
        settings->order = Order::kRandom;
        settings->seed = static_cast<unsigned>(std::strtoul(order.c_str() + random.size(), nullptr, 10));
    } else {
        return "CUDAEMU_ORDER: expected forward, reverse or random:SEED, got " + order;
    }
    return "";
}

}  // namespace

std::string read_settings(Settings* settings) {
    std::string problem = read_order(settings);
    if (problem.empty()) problem = read_flag("CUDAEMU_ASYNC", &settings->async);
    if (problem.empty()) problem = read_flag("CUDAEMU_HOST_POINTERS", &settings->host_pointers);
    return problem;
}

}  // namespace cuda_emulator
