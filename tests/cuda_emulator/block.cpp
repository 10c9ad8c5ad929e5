#include "block.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>

#include "sanitizers.h"

namespace cuda_emulator {

ThreadContext* current = nullptr;
Block* active_block = nullptr;

namespace {

bool same_site(Site a, Site b) { return a.line == b.line && std::strcmp(a.file, b.file) == 0; }

std::string to_text(Site site) { return std::string(site.file) + ":" + std::to_string(site.line); }

std::string to_text(uint3 index) {
    return "(" + std::to_string(index.x) + "," + std::to_string(index.y) + "," + std::to_string(index.z) + ")";
}

const char* name_of(WarpOp op) {
    switch (op) {
        case WarpOp::kSync:
            return "__syncwarp";
        case WarpOp::kShuffle:
            return "__shfl_sync";
        case WarpOp::kBallot:
            return "__ballot_sync";
        case WarpOp::kMatch:
            return "__match_any_sync";
        default:
            return "__reduce_sync";
    }
}

}  // namespace

void Block::begin_launch(const Launch& launch) {
    launch_ = &launch;
    random_.seed(launch.settings.seed);
    error_.clear();
    reserve_shared();
}

bool Block::run(uint3 block_idx) {
    const dim3 shape = launch_->block;
    block_idx_ = block_idx;
    count_ = alive_ = shape.x * shape.y * shape.z;
    waiting_ = 0;
    predicates_ = 0;
    turn_ = count_ - 1;
    order_.resize(count_);
    for (unsigned i = 0; i < count_; ++i) {
        order_[i] = launch_->settings.order == Order::kReverse ? count_ - 1 - i : i;
        Thread& thread = threads_[i];
        const uint3 index = make_uint3(i % shape.x, i / shape.x % shape.y, i / (shape.x * shape.y));
        thread.context = {index, block_idx, shape, launch_->grid, i};
        thread.state = ThreadState::kReady;
        thread.fiber.prepare(&Block::enter_thread);
    }
    shuffle_order();

    os_thread_.adopt_os_thread();
    tsan_release(start_tag_);
    resume(next_ready());

    if (error_.empty() && alive_ > 0) error_ = describe_deadlock();
    if (!error_.empty()) {
        for (unsigned i = 0; i < count_; ++i) threads_[i].fiber.abandon(os_thread_, end_tag_);
    }
    tsan_acquire(end_tag_);
    release_shared();
    return error_.empty();
}

void Block::enter_thread() {
    Block& block = *active_block;
    Thread& self = *block.running_;
    self.fiber.entered();
    block.run_thread(self);
    block.resume(block.next_ready(), true);
    std::abort();  // nobody resumes a thread that has exited
}

void Block::run_thread(Thread& self) {
    tsan_acquire(start_tag_);
    launch_->thread();
    tsan_release(end_tag_);
    exit_thread(self);
}

void Block::exit_thread(Thread& self) {
    if (waiting_ > 0) {
        set_error("thread " + std::to_string(self.context.index) + " exited while thread " +
                  std::to_string(first_waiting_) + " waits: " + where(threads_[first_waiting_]));
        stop();
    }
    self.state = ThreadState::kExited;
    --alive_;
    an_exited_thread_ = self.context.index;
    resolve_for_exit(self);
}

int Block::barrier(int predicate, Site site) {
    Thread& self = *running_;
    if (alive_ < count_) {
        set_error("thread " + std::to_string(an_exited_thread_) + " exited before the __syncthreads at " +
                  to_text(site));
        stop();
    }
    if (waiting_ == 0) {
        first_waiting_ = self.context.index;
    } else if (!same_site(site, threads_[first_waiting_].site)) {
        set_error("divergent __syncthreads: thread " + std::to_string(first_waiting_) + " is at " +
                  to_text(threads_[first_waiting_].site) + ", thread " + std::to_string(self.context.index) + " at " +
                  to_text(site));
        stop();
    }
    char& tag = barrier_tags_[barrier_generation_ % 2];
    tsan_release(tag);
    self.state = ThreadState::kAtBarrier;
    self.site = site;
    predicates_ += predicate != 0;
    if (++waiting_ == count_) {
        release_barrier();
        give_way();
    } else {
        wait();
    }
    tsan_acquire(tag);
    return predicates_of_last_;
}

void Block::release_barrier() {
    for (unsigned i = 0; i < count_; ++i) threads_[i].state = ThreadState::kReady;
    predicates_of_last_ = predicates_;
    predicates_ = 0;
    waiting_ = 0;
    ++barrier_generation_;
    shuffle_order();
}

void Block::shuffle_order() {
    if (launch_->settings.order == Order::kRandom) std::shuffle(order_.begin(), order_.end(), random_);
}

Thread* Block::next_ready() {
    for (unsigned i = 0; i < count_; ++i) {
        if (++turn_ >= count_) turn_ = 0;
        Thread& thread = threads_[order_[turn_]];
        if (thread.state == ThreadState::kReady) return &thread;
    }
    return nullptr;
}

void Block::resume(Thread* next, bool for_good) {
    Fiber& from = running_ == nullptr ? os_thread_ : running_->fiber;
    Fiber& to = next == nullptr ? os_thread_ : next->fiber;
    running_ = next;
    current = next == nullptr ? nullptr : &next->context;
    Fiber::change(from, to, for_good);
}

// The running thread cannot go on. When nobody can, run() gets the turn and reports it.
void Block::wait() { resume(next_ready()); }

// The running thread has let others go on. Forward it keeps its turn, which saves a switch; the other orders
// exist to find mistakes, and let another thread overtake it.
void Block::give_way() {
    if (launch_->settings.order == Order::kForward) return;
    Thread* const next = next_ready();
    if (next != running_) resume(next);
}

void Block::stop() {
    resume(nullptr, true);
    std::abort();  // nobody resumes a thread that has failed
}

std::string Block::position_suffix(const Thread* thread) const {
    std::string suffix = " [block " + to_text(block_idx_);
    if (thread != nullptr) suffix += " thread " + to_text(thread->context.thread_idx);
    return suffix + "]";
}

std::string Block::where(const Thread& thread) const {
    switch (thread.state) {
        case ThreadState::kAtBarrier:
            return "__syncthreads at " + to_text(thread.site);
        case ThreadState::kAtWarpOp: {
            char mask[16];
            std::snprintf(mask, sizeof(mask), "0x%08x", thread.request.mask);
            return std::string(name_of(thread.request.op)) + " with mask " + mask + " at " + to_text(thread.site);
        }
        case ThreadState::kExited:
            return "exited";
        default:
            return "running";
    }
}

std::string Block::describe_deadlock() const {
    std::map<std::string, std::vector<unsigned>> groups;
    for (unsigned i = 0; i < count_; ++i) groups[where(threads_[i])].push_back(i);
    std::string text =
        "deadlock: " + std::to_string(alive_) + " of " + std::to_string(count_) + " threads wait for ever:";
    for (const auto& [place, members] : groups) {
        text += " {" + place + ": " + std::to_string(members.size()) + " threads, the first is " +
                std::to_string(members.front()) + "}";
    }
    return text + position_suffix(nullptr);
}

void fail(const char* format, ...) {
    char message[512];
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(message, sizeof(message), format, arguments);
    va_end(arguments);
    active_block->set_error(message);
    active_block->stop();
}

int block_barrier(int predicate, Site site) { return active_block->barrier(predicate, site); }

}  // namespace cuda_emulator
