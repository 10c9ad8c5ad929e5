// Per level: what both domains share: the checks, the scales of the classes, the spread of the costs.
#pragma once
#include <cmath>
#include <limits>

#include "common/parallel.h"
#include "common/simd.h"
#include "transport/transport_cpu.h"

namespace ovs {
namespace OVS_ISA {
namespace {

inline TransportReport first_fault(const TransportReport* reports, int64_t count, TransportFault fault) {
    for (int64_t i = 0; i < count; ++i) {
        if (reports[i].fault == fault) return reports[i];
    }
    return {};
}

// A number as an integer that has the same order, for numbers without a sign; negative for the others, but for -0.
inline int32_t ordered_bits(float x) {
    const float unsigned_zero = x + 0.0f;
    int32_t bits;
    std::memcpy(&bits, &unsigned_zero, sizeof bits);
    return bits;
}
inline int64_t ordered_bits(double x) {
    const double unsigned_zero = x + 0.0;
    int64_t bits;
    std::memcpy(&bits, &unsigned_zero, sizeof bits);
    return bits;
}
template <class T, class Bits>
T from_bits(Bits bits) {
    T value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

template <class T>
struct Problem {
    const TransportParams& p;
    const TransportGrid& g;
    const TransportBuffers<T>& b;
    int threads;
    int64_t active = 0;  // classes that are not empty
    T least = 0;         // smallest cost
    T inverse_epsilon = 0;
    bool in_log = false;

    Problem(const TransportParams& params, const TransportGrid& grid, const TransportBuffers<T>& buffers,
            int num_threads)
        : p(params), g(grid), b(buffers), threads(num_threads) {
        constexpr double kLargest = 1e37;  // so that it stays finite in float32
        inverse_epsilon = static_cast<T>(1.0 / p.epsilon < kLargest ? 1.0 / p.epsilon : kLargest);
    }

    // Mass of a and of b for class k of those in use.
    T unit_a(int64_t k, int64_t i) const {
        const ClassScale& scale = b.scales[k];
        return static_cast<T>(static_cast<const T*>(p.a)[scale.number * g.rows + i] * scale.a);
    }
    T unit_b(int64_t k, int64_t j) const {
        const ClassScale& scale = b.scales[k];
        if (p.b == nullptr) return static_cast<T>(scale.b);
        return static_cast<T>(static_cast<const T*>(p.b)[(p.b_per_class ? scale.number * g.columns : 0) + j] * scale.b);
    }

    // fn(index, first, last) for up to kMaxSlabs ranges of about equal length.
    template <class Fn>
    void for_each_range(int64_t count, const Fn& fn) const {
        const int64_t length = ceil_div(std::max<int64_t>(count, 1), kMaxSlabs), ranges = ceil_div(count, length);
        parallel_for(ranges, threads, [&](int64_t r) { fn(r, r * length, std::min(count, (r + 1) * length)); });
    }

    // fn(pointer to the first cost, typed as it is stored)
    template <class Fn>
    void with_cost(const Fn& fn) const {
        switch (p.cost_type) {
            case DType::kFloat32:
                return fn(static_cast<const float*>(p.cost));
            case DType::kFloat64:
                return fn(static_cast<const double*>(p.cost));
            case DType::kFloat16:
                return fn(static_cast<const Half*>(p.cost));
            case DType::kBFloat16:
                return fn(static_cast<const BFloat*>(p.cost));
        }
    }

    // Everything that has to be known before the first iteration.
    TransportReport prepare() {
        TransportReport report = scan_marginals();
        if (report.fault != TransportFault::kNone) return report;
        T largest = 0;
        report = scan_costs(largest);
        const double spread = static_cast<double>(largest) - static_cast<double>(least);
        in_log = p.domain == Domain::kLog || (p.domain == Domain::kAuto && spread / p.epsilon > kPlainRange);
        return report;
    }

    // -inf in the results of empty classes.
    void write_empty() const {
        constexpr T kEmpty = -std::numeric_limits<T>::infinity();
        for (int64_t c = 0, k = 0; c < g.classes; ++c) {
            if (k < active && b.scales[k].number == c) {
                ++k;
                continue;
            }
            if (p.errors != nullptr) p.errors[c] = 0.0;
            const auto clear = [&](void* array, int64_t length) {
                if (array != nullptr) std::fill_n(static_cast<T*>(array) + c * length, length, kEmpty);
            };
            clear(p.f, g.rows);
            clear(p.g, g.columns);
            const bool source = p.readout == Readout::kSource, receiver = p.readout == Readout::kReceiver;
            clear(p.map, source ? g.rows : receiver ? g.columns : 1);
        }
    }

private:
    struct Row {
        double sum;
        int64_t bad;  // first entry that is negative or not finite, or -1
    };

    static Row read_row(const T* row, int64_t length) {
        double sum = 0.0;
        bool good = true;
        for (int64_t i = 0; i < length; ++i) {
            sum += static_cast<double>(row[i]);
            good = good && row[i] >= T(0) && row[i] <= std::numeric_limits<T>::max();
        }
        for (int64_t i = 0; !good && i < length; ++i) {
            if (!(row[i] >= T(0) && row[i] <= std::numeric_limits<T>::max())) return {sum, i};
        }
        return {sum, -1};
    }

    TransportReport scan_marginals() {
        using Fault = TransportFault;
        const T *all_a = static_cast<const T*>(p.a), *all_b = static_cast<const T*>(p.b);
        const bool shared = p.b != nullptr && !p.b_per_class;
        const Row one = shared ? read_row(all_b, g.columns) : Row{g.columns > 0 ? 1.0 : 0.0, -1};
        parallel_for(g.classes, threads, [&](int64_t c) {
            const Row a = read_row(all_a + c * g.rows, g.rows);
            const Row other = p.b_per_class ? read_row(all_b + c * g.columns, g.columns) : one;
            const bool empty = a.sum == 0.0;
            const double gap = a.sum > other.sum ? a.sum - other.sum : other.sum - a.sum;
            const bool fits = other.sum > 0.0 && other.sum <= std::numeric_limits<double>::max() &&
                              a.sum <= std::numeric_limits<double>::max() &&
                              (p.normalize || gap <= p.mass_tolerance * other.sum);
            TransportReport& report = b.reports[c];
            report = {};
            if (a.bad >= 0) {
                report = {Fault::kA, c, a.bad};
            } else if (other.bad >= 0) {
                report = {Fault::kB, shared ? 0 : c, other.bad};
            } else if (!empty && !fits) {
                report = {Fault::kMass, c, 0};
            }
            const double each = p.b == nullptr ? 1.0 / static_cast<double>(g.columns) : 1.0 / other.sum;
            b.scales[c] = {empty ? 0.0 : 1.0 / a.sum, each, p.normalize ? 1.0 : other.sum, c};
        });
        for (const Fault fault : {Fault::kA, Fault::kB, Fault::kMass}) {
            const TransportReport report = first_fault(b.reports, g.classes, fault);
            if (report.fault != Fault::kNone) return report;
        }
        if (shared && one.bad >= 0) return {Fault::kB, 0, one.bad};
        for (int64_t c = 0; c < g.classes; ++c) {
            if (b.scales[c].a > 0.0) b.scales[active++] = b.scales[c];
        }
        return {};
    }

    // The first bad cost, or the smallest and the largest one.
    TransportReport scan_costs(T& largest) {
        using Bits = decltype(ordered_bits(T(0)));
        if (g.rows == 0 || g.columns == 0) return {};
        const Bits limit = ordered_bits(std::numeric_limits<T>::max());
        Bits lows[kMaxSlabs], highs[kMaxSlabs];
        std::fill_n(lows, kMaxSlabs, limit);
        std::fill_n(highs, kMaxSlabs, Bits(0));
        for (int64_t r = 0; r < kMaxSlabs; ++r) b.reports[r] = {};
        with_cost([&](const auto* cost) {
            for_each_range(g.rows, [&](int64_t r, int64_t first, int64_t last) {
                for (int64_t i = first; i < last; ++i) {
                    const auto* row = cost + i * g.columns;
                    Bits low = limit, high = 0;
                    for (int64_t j = 0; j < g.columns; ++j) {
                        const Bits bits = ordered_bits(static_cast<T>(widen(row[j])));
                        low = bits < low ? bits : low;
                        high = bits > high ? bits : high;
                    }
                    if (low < 0 || high > limit) {
                        int64_t j = 0;
                        for (; j < g.columns; ++j) {
                            const Bits bits = ordered_bits(static_cast<T>(widen(row[j])));
                            if (bits < 0 || bits > limit) break;
                        }
                        b.reports[r] = {TransportFault::kCost, i, j};
                        return;
                    }
                    lows[r] = low < lows[r] ? low : lows[r];
                    highs[r] = high > highs[r] ? high : highs[r];
                }
            });
        });
        least = from_bits<T>(*std::min_element(lows, lows + kMaxSlabs));
        largest = from_bits<T>(*std::max_element(highs, highs + kMaxSlabs));
        return first_fault(b.reports, kMaxSlabs, TransportFault::kCost);
    }
};

}  // namespace
}  // namespace OVS_ISA
}  // namespace ovs
