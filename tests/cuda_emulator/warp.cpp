// Warp operations: the lanes of a mask meet, and the last one to arrive computes everybody's result.
#include <algorithm>
#include <cstdio>
#include <cstring>

#include "block.h"
#include "sanitizers.h"

namespace cuda_emulator {
namespace {

bool has_lane(unsigned mask, int lane) { return (mask >> lane & 1u) != 0; }

std::uint64_t combine(WarpOp op, std::uint64_t a, std::uint64_t b) {
    const auto signed_a = static_cast<std::int64_t>(a), signed_b = static_cast<std::int64_t>(b);
    switch (op) {
        case WarpOp::kAdd:
            return a + b;
        case WarpOp::kMin:
            return std::min(a, b);
        case WarpOp::kMax:
            return std::max(a, b);
        case WarpOp::kSignedMin:
            return static_cast<std::uint64_t>(std::min(signed_a, signed_b));
        case WarpOp::kSignedMax:
            return static_cast<std::uint64_t>(std::max(signed_a, signed_b));
        case WarpOp::kAnd:
            return a & b;
        case WarpOp::kOr:
            return a | b;
        default:
            return a ^ b;
    }
}

// `lanes` are the threads of the warp, `present` those that take part.
std::uint64_t result_for(int lane, const Thread* lanes, unsigned present) {
    const WarpRequest& own = lanes[lane].request;
    if (own.op == WarpOp::kSync) return 0;
    if (own.op == WarpOp::kShuffle) {
        const bool known = own.source >= 0 && own.source < kLanes && has_lane(present, own.source);
        return known ? lanes[own.source].request.value : ~std::uint64_t{0};
    }
    std::uint64_t result = 0;
    bool first = true;
    for (int other = 0; other < kLanes; ++other) {
        if (!has_lane(present, other)) continue;
        const std::uint64_t value = lanes[other].request.value;
        if (own.op == WarpOp::kBallot) {
            result |= value != 0 ? std::uint64_t{1} << other : 0;
        } else if (own.op == WarpOp::kMatch) {
            result |= value == own.value ? std::uint64_t{1} << other : 0;
        } else {
            result = first ? value : combine(own.op, result, value);
        }
        first = false;
    }
    return result;
}

bool waits_for(const Thread& thread, const WarpRequest& request, Site site) {
    return thread.state == ThreadState::kAtWarpOp && thread.request.op == request.op &&
           thread.request.mask == request.mask && thread.site.line == site.line &&
           std::strcmp(thread.site.file, site.file) == 0;
}

}  // namespace

int Block::warp_size(unsigned warp) const {
    return static_cast<int>(std::min<unsigned>(kLanes, count_ - warp * kLanes));
}

std::uint64_t Block::warp_op(const WarpRequest& request, Site site) {
    Thread& self = *running_;
    const unsigned warp = self.context.index / kLanes;
    const auto self_lane = static_cast<int>(self.context.index % kLanes);
    if (!has_lane(request.mask, self_lane)) {
        cuda_emulator::fail("%s:%d: lane %d is not in its own mask 0x%08x", site.file, site.line, self_lane,
                            request.mask);
    }
    char* sync_tag = nullptr;
    if (request.op == WarpOp::kSync) {
        sync_tag = join_sync(warp, request.mask);
        tsan_release(*sync_tag);
    }
    self.state = ThreadState::kAtWarpOp;
    self.request = request;
    self.site = site;
    self.sync_tag = sync_tag;
    resolve_warp_op(warp, request, site);
    if (self.state == ThreadState::kAtWarpOp) {
        wait();
    } else {
        give_way();
    }
    if (sync_tag != nullptr) tsan_acquire(*sync_tag);
    return self.result;
}

// Lets the lanes go on if all of them that have not exited are there.
void Block::resolve_warp_op(unsigned warp, const WarpRequest& request, Site site) {
    Thread* const lanes = warp_begin(warp);
    const int size = warp_size(warp);
    unsigned present = 0;
    for (int i = 0; i < size; ++i) {
        if (!has_lane(request.mask, i) || lanes[i].state == ThreadState::kExited) continue;
        if (!waits_for(lanes[i], request, site)) return;
        present |= 1u << i;
    }
    for (int i = 0; i < size; ++i) {
        if (has_lane(present, i)) lanes[i].result = result_for(i, lanes, present);
    }
    for (int i = 0; i < size; ++i) {
        if (has_lane(present, i)) lanes[i].state = ThreadState::kReady;
    }
}

// An operation may have been waiting for a thread that exits instead.
void Block::resolve_for_exit(const Thread& exited) {
    const unsigned warp = exited.context.index / kLanes;
    const auto exited_lane = static_cast<int>(exited.context.index % kLanes);
    Thread* const lanes = warp_begin(warp);
    for (int i = 0; i < warp_size(warp); ++i) {
        if (lanes[i].state == ThreadState::kAtWarpOp && has_lane(lanes[i].request.mask, exited_lane)) {
            resolve_warp_op(warp, lanes[i].request, lanes[i].site);
        }
    }
}

// The tag of the __syncwarp with this mask that lanes are waiting at, or a new one. Two alternate per first
// lane, as at the barriers.
char* Block::join_sync(unsigned warp, unsigned mask) {
    const Thread* const lanes = warp_begin(warp);
    for (int i = 0; i < warp_size(warp); ++i) {
        const bool waits = lanes[i].state == ThreadState::kAtWarpOp && lanes[i].request.op == WarpOp::kSync;
        if (waits && lanes[i].request.mask == mask) return lanes[i].sync_tag;
    }
    const int first_lane = __builtin_ctz(mask);
    const unsigned generation = sync_generation_[warp][first_lane]++;
    return &sync_tags_[warp][first_lane][generation % 2];
}

std::uint64_t warp_op(WarpOp op, unsigned mask, std::uint64_t value, int source, Site site) {
    return active_block->warp_op({op, mask, value, source}, site);
}

}  // namespace cuda_emulator
