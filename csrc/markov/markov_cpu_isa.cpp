// doubly_stochastic and markov_velocity on a CPU; compiled once per instruction-set level.
//
// The scaling is markov_scale.h. A step of the chains:
//   pack      x = g * r of the classes that still run, class-innermost (where g is the scaled state, or the state)
//   product   F = (x A) * c and its largest number per class (markov_product.h)
//   finish    g = F scaled, the rule's test against the step before, times
// and after it the classes that are finished are dropped.
#include <limits>
#include <type_traits>

#include "markov/markov_product.h"
#include "markov/markov_scale.h"

namespace ovs {
namespace OVS_ISA {
namespace {

template <class S>
class Chain {
    using T = typename S::T;
    static constexpr T kNotYet = T(-1);  // a time that is not known yet

public:
    Chain(const MarkovParams& p, void* workspace, std::size_t bytes, int threads)
        : p_(p),
          n_(p.num_nodes),
          threads_(useful_threads(p.num_nodes, threads)),
          workspace_(workspace, bytes),
          b_(p, workspace_),
          threshold_(static_cast<T>(p.threshold)) {}

    void run() {
        start();
        const Product<S> product(p_, b_);
        for (step_ = 1; num_active_ > 0 && step_ <= p_.max_steps; ++step_) {
            const bool backwards = step_ % 2 == 0;  // begins with what the level-3 cache still holds
            for_each_panel([&](int64_t, int64_t begin, int64_t end) { pack(begin, end); });
            std::swap(b_.now, b_.before);
            parallel_for(b_.panels, threads_, [&](int64_t item) {
                product.panel(backwards ? b_.panels - 1 - item : item, num_active_, backwards);
            });
            choose_factors();
            for_each_panel([&](int64_t panel, int64_t begin, int64_t end) { finish(panel, begin, end); });
            drop_finished();
        }
        parallel_for(p_.num_classes, threads_, [&](int64_t k) { report(static_cast<int32_t>(k)); });
    }

private:
    int32_t num_classes() const { return static_cast<int32_t>(p_.num_classes); }
    T* times(int32_t k) const { return static_cast<T*>(p_.velocity) + k * n_; }  // the result holds them until the end
    const T* r() const { return static_cast<const T*>(p_.r); }
    const T* c() const { return static_cast<const T*>(p_.c); }
    bool relative() const { return p_.scale == StateScale::kMax; }
    PanelNotes<T>& note(int64_t panel, int32_t k) const { return b_.notes[panel * p_.num_classes + k]; }

    template <class Fn>
    void for_each_panel(const Fn& fn) {
        parallel_for(b_.panels, threads_, [&](int64_t panel) {
            fn(panel, panel * kPanelColumns, std::min(n_, (panel + 1) * kPanelColumns));
        });
    }

    // g_0, the times that are known before the first step, and the classes that run.
    void start() {
        const bool scaled = n_ > 0 && r()[0] == r()[0] && c()[0] == c()[0];
        parallel_for(p_.num_classes, threads_, [&](int64_t item) { start_class(static_cast<int32_t>(item), scaled); });
        for (int32_t k = 0; k < num_classes(); ++k) {
            if (b_.classes[k].open) b_.active[num_active_++] = k;
        }
    }

    void start_class(int32_t k, bool scaled) {
        const T* f = static_cast<const T*>(p_.distributions) + k * n_;
        ChainClass& s = b_.classes[k];
        T largest = 0;
        bool bad = false;
        for (int64_t j = 0; j < n_; ++j) {
            bad = bad || !(f[j] >= T(0) && f[j] <= std::numeric_limits<T>::max());
            largest = f[j] > largest ? f[j] : largest;
        }
        s = {0, 0, scaled && !bad, largest >= T(kSmallestSum), false};
        if (!s.valid || !s.has_mass) return;
        T* g = b_.now + k * b_.stride;
        T* time = times(k);
        b_.factors[k] = factor(largest);
        T low = std::numeric_limits<T>::max(), high = 0;
        bool open = false;
        for (int64_t j = 0; j < n_; ++j) {
            g[j] = f[j] * b_.factors[k];
            low = g[j] < low ? g[j] : low;
            high = g[j] > high ? g[j] : high;
            time[j] = p_.rule == MarkovRule::kSettling ? T(1) : kNotYet;
            if (p_.rule == MarkovRule::kFirstPassage && g[j] > threshold_) time[j] = T(0);
            open = open || (time[j] < T(0) && (p_.rule == MarkovRule::kDeltaLiteral || c()[j] > T(0)));
        }
        s.open = p_.rule == MarkovRule::kSettling ? high - low > threshold_ : open;
    }

    // What makes g of F.
    T factor(T largest) const {
        if (relative()) return inverse_sum(largest);
        return p_.scale == StateScale::kN ? static_cast<T>(n_) : T(1);
    }

    // The chain goes on from the state divided by its maximum, so that nothing underflows, or from the state itself.
    void pack(int64_t begin, int64_t end) {
        const T undo = p_.scale == StateScale::kN ? T(1) / static_cast<T>(n_) : T(1);
        for (int a = 0; a < num_active_; ++a) {
            const T* g = b_.now + b_.active[a] * b_.stride;
            T* x = b_.x + a;
            for (int64_t j = begin; j < end; ++j) x[j * num_active_] = g[j] * undo * r()[j];
        }
    }

    void choose_factors() {
        for (int a = 0; a < num_active_; ++a) {
            const int32_t k = b_.active[a];
            T largest = 0;
            for (int64_t panel = 0; panel < b_.panels; ++panel) largest = std::max(largest, note(panel, k).largest);
            b_.factors[k] = factor(largest);
        }
    }

    void finish(int64_t panel, int64_t begin, int64_t end) {
        for (int a = 0; a < num_active_; ++a) {
            const int32_t k = b_.active[a];
            T* now = b_.now + k * b_.stride + begin;
            const T* before = b_.before + k * b_.stride + begin;
            T* time = times(k) + begin;
            const int64_t count = end - begin;
            for (int64_t j = 0; j < count; ++j) now[j] *= b_.factors[k];
            PanelNotes<T>& note = this->note(panel, k);
            switch (p_.rule) {
                case MarkovRule::kFirstPassage:
                    pass_threshold(now, before, c() + begin, time, count, note);
                    break;
                case MarkovRule::kDeltaLiteral:
                    find_small_changes(now, before, time, count, note);
                    break;
                case MarkovRule::kSettling:
                    find_large_changes(now, before, c() + begin, time, count, note);
                    break;
            }
        }
    }

    void pass_threshold(const T* now, const T* before, const T* c, T* time, int64_t count, PanelNotes<T>& note) const {
        const T step = static_cast<T>(step_), threshold = threshold_, first_slope = T(1) - threshold;
        const bool interpolate = p_.interpolate, first = step_ == 1 && relative();
        int32_t open = 0;
        OVS_INDEPENDENT
        for (int64_t j = 0; j < count; ++j) {
            const T slope = first ? first_slope : now[j] - before[j];
            const T exact = interpolate ? passage_time(step, now[j], slope, threshold) : step;
            const bool met = (time[j] < T(0)) & (now[j] > threshold);
            time[j] = met ? exact : time[j];
            open += (time[j] < T(0)) & (c[j] > T(0)) ? 1 : 0;
        }
        note.open = open;
    }

    void find_small_changes(const T* now, const T* before, T* time, int64_t count, PanelNotes<T>& note) const {
        const T step = static_cast<T>(step_), threshold = threshold_;
        int32_t open = 0;
        OVS_INDEPENDENT
        for (int64_t j = 0; j < count; ++j) {
            const T change = now[j] - before[j], size = change < T(0) ? -change : change;
            time[j] = (time[j] < T(0)) & (size <= threshold) ? step : time[j];
            open += time[j] < T(0) ? 1 : 0;
        }
        note.open = open;
    }

    void find_large_changes(const T* now, const T* before, const T* c, T* time, int64_t count,
                            PanelNotes<T>& note) const {
        const T next = static_cast<T>(step_) + T(1), threshold = threshold_;
        int32_t moving = 0;
        T low = std::numeric_limits<T>::max(), high = 0;
        OVS_INDEPENDENT
        for (int64_t j = 0; j < count; ++j) {
            const T change = now[j] - before[j], size = change < T(0) ? -change : change;
            const bool large = size > threshold;
            time[j] = large ? next : time[j];
            moving += large ? 1 : 0;
            const T value = c[j] > T(0) ? now[j] : low;
            low = value < low ? value : low;
            high = now[j] > high ? now[j] : high;
        }
        note.moving = moving;
        note.low = low;
        note.high = high;
    }

    void drop_finished() {
        int kept = 0;
        for (int a = 0; a < num_active_; ++a) {
            const int32_t k = b_.active[a];
            ChainClass& s = b_.classes[k];
            s.steps = step_;
            s.moving = 0;
            int64_t open = 0;
            T low = std::numeric_limits<T>::max(), high = 0, largest = 0;
            for (int64_t panel = 0; panel < b_.panels; ++panel) {
                const PanelNotes<T>& n = note(panel, k);
                largest = std::max(largest, n.largest);
                if (p_.rule == MarkovRule::kSettling) {
                    s.moving += n.moving;
                    low = std::min(low, n.low);
                    high = std::max(high, n.high);
                } else {
                    open += n.open;
                }
            }
            s.open = p_.rule == MarkovRule::kSettling ? high - low > threshold_ : open > 0;
            if (p_.rule == MarkovRule::kFirstPassage && largest == T(0)) s.open = false;  // its mass is lost
            if (s.open) b_.active[kept++] = k;
        }
        num_active_ = kept;
    }

    // The times of a class become what was asked for.
    void report(int32_t k) {
        const ChainClass& s = b_.classes[k];
        T* velocity = times(k);
        T* out = p_.times == nullptr ? nullptr : static_cast<T*>(p_.times) + k * n_;
        int64_t unreached = 0;
        if (!s.valid || !s.has_mass) {
            const T infinity = std::numeric_limits<T>::infinity(), nan = std::numeric_limits<T>::quiet_NaN();
            std::fill_n(velocity, n_, s.valid ? -infinity : nan);
            if (out != nullptr) std::fill_n(out, n_, s.valid ? infinity : nan);
            unreached = n_;
        } else {
            for (int64_t j = 0; j < n_; ++j) {
                unreached += velocity[j] < T(0) ? 1 : 0;
                const T time = velocity[j] < T(0) ? static_cast<T>(p_.max_steps) : velocity[j];
                if (out != nullptr) out[j] = time;
                velocity[j] = velocity_of(time, static_cast<T>(p_.min_time), p_.rule);
            }
        }
        if (p_.steps != nullptr) p_.steps[k] = s.steps;
        if (p_.unreached == nullptr) return;
        const bool settling = p_.rule == MarkovRule::kSettling && s.valid && s.has_mass;
        p_.unreached[k] = !settling ? unreached : s.open ? s.moving : 0;
    }

    const MarkovParams& p_;
    int64_t n_;
    int threads_;
    Workspace workspace_;
    ChainBuffers<T> b_;
    T threshold_;
    int num_active_ = 0;
    int step_ = 0;
};

}  // namespace

bool doubly_stochastic_run(const ScalingParams& p, DType dtype, void* workspace, std::size_t bytes, int threads) {
    return with_storage(dtype,
                        [&](auto storage) { return Scaler<decltype(storage)>(p, workspace, bytes, threads).run(); });
}

void markov_velocity_run(const MarkovParams& p, DType dtype, void* workspace, std::size_t bytes, int threads) {
    with_storage(dtype, [&](auto storage) { Chain<decltype(storage)>(p, workspace, bytes, threads).run(); });
}

}  // namespace OVS_ISA
}  // namespace ovs
