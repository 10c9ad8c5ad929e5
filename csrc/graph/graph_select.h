// Per level: the k-th largest of a row of similarities, by counting.
//
// A pass that counts how many of N numbers are at least a pivot costs N / 16 vector steps with data in L1, some tenth
// of what a histogram costs. So the threshold is searched between two bounds, with pivots from the threshold of the row
// before (rows of neighbouring patches look alike), then by interpolation, until few numbers are left between the
// bounds. As integers, positive floats are ordered like the floats, and halving that interval ends the search whatever
// the numbers are. Which pivots were tried does not change the result.
#pragma once
#include "graph/graph_cpu.h"
#include "graph/graph_vector.h"

namespace ovs {
namespace OVS_ISA {
namespace {

constexpr int64_t kFew = 64;  // so many numbers are ranked by comparing each with all

template <class T>
struct KeyType {
    using type = int32_t;
};
template <>
struct KeyType<double> {
    using type = int64_t;
};

// A positive float as an integer of the same order, and back.
template <class T>
using Key = typename KeyType<T>::type;
template <class T>
OVS_INLINE Key<T> key_of(T value) {
    Key<T> key;
    __builtin_memcpy(&key, &value, sizeof key);
    return key;
}
template <class T>
OVS_INLINE T value_of(Key<T> key) {
    T value;
    __builtin_memcpy(&value, &key, sizeof value);
    return value;
}

// How many of the numbers are at least `pivot`; `padded` is a multiple of kRowMultiple.
template <class T>
OVS_INLINE int64_t count_at_least(const T* row, int64_t padded, T pivot) {
    using V = Vec<T, kLanes<T>>;
    decltype(V{} >= pivot) counts[4] = {};
    for (int64_t j = 0; j < padded; j += 4 * kLanes<T>) {
        OVS_UNROLL
        for (int part = 0; part < 4; ++part) counts[part] += load<V>(row + j + part * kLanes<T>) >= pivot;
    }
    counts[0] += counts[1] + (counts[2] + counts[3]);
    int64_t sum = 0;
    for (int lane = 0; lane < kLanes<T>; ++lane) sum -= counts[0][lane];
    return sum;
}

// The search for one row after another; remembers what helps the next one.
template <class T>
class CutSearch {
public:
    // `values` and `columns`: room for what lies between the bounds at the end, a row at most.
    CutSearch(int64_t padded, T* values, int32_t* columns) : padded_(padded), values_(values), columns_(columns) {}

    // `row`: [padded], its own column and the padding are negative. `wanted`: number of neighbours.
    Cut<T> run(const T* row, int64_t wanted) {
        if (wanted == 0) return {T(kAboveAll), T(-1)};
        const T smallest = kSmallestLink;
        const int64_t positive = count_at_least(row, padded_, smallest);
        if (positive == 0) return {T(kAboveAll), T(-1)};
        if (positive <= wanted) return before(key_of(smallest));
        low_ = key_of(smallest), high_ = key_of(T(kAboveAll));  // count(>= low) > wanted > count(>= high)
        at_low_ = positive, at_high_ = 0;
        for (int step = 0; at_low_ - at_high_ > kFew; ++step) {
            if (high_ - low_ == 1) return ties(row, value_of<T>(low_), wanted - at_high_, at_low_ - at_high_);
            const Key<T> pivot = std::clamp<Key<T>>(next_pivot(step, wanted), low_ + 1, high_ - 1);
            const int64_t count = count_at_least(row, padded_, value_of<T>(pivot));
            if (count == wanted) return remember(before(pivot));
            if (count > wanted) {
                low_ = pivot, at_low_ = count;
            } else {
                high_ = pivot, at_high_ = count;
            }
        }
        return remember(rank_few(row, wanted - at_high_));
    }

private:
    static Cut<T> before(Key<T> key) { return {value_of<T>(key - 1), T(-1)}; }

    Cut<T> remember(const Cut<T>& cut) {
        guess_ = cut.threshold;
        gap_ = (value_of<T>(high_) - value_of<T>(low_)) / static_cast<T>(at_low_ - at_high_);
        return cut;
    }

    Key<T> next_pivot(int step, int64_t wanted) const {
        const T low = value_of<T>(low_), high = value_of<T>(high_);
        if (step == 0 && guess_ > T(0)) return key_of(guess_);
        if (step == 1 && gap_ > T(0)) {  // a bit past the place, so that the bounds lie on both sides of it
            const bool above = key_of(guess_) == low_;
            const int64_t off = above ? at_low_ - wanted : wanted - at_high_;
            const T reach = gap_ * static_cast<T>(off + off / 4 + kFew / 4);
            const T pivot = above ? guess_ + reach : guess_ - reach;
            if (pivot > low && pivot < high) return key_of(pivot);
        }
        if (step >= kHalvingFrom) return low_ + (high_ - low_) / 2;
        if (step % 4 == 3) return key_of((low + high) / 2);
        const T share = static_cast<T>(wanted - at_high_) / static_cast<T>(at_low_ - at_high_);
        return key_of(high - (high - low) * share);
    }

    // The cut at the value `threshold`, of whose `equal` appearances the first `kept` are neighbours.
    Cut<T> ties(const T* row, T threshold, int64_t kept, int64_t equal) const {
        if (kept == equal) return before(key_of(threshold));
        int64_t column = -1;
        for (int64_t seen = 0; seen < kept; seen += row[column] == threshold) ++column;
        return {threshold, static_cast<T>(column)};
    }

    // The `wanted`-th largest of the numbers in [low, high).
    Cut<T> rank_few(const T* row, int64_t wanted) const {
        using V = Vec<T, kLanes<T>>;
        const T low = value_of<T>(low_), high = value_of<T>(high_);
        int64_t count = 0;
        for (int64_t j = 0; j < padded_; j += kLanes<T>) {
            const V v = load<V>(row + j);
            count += append(values_ + count, columns_ + count, v, (v >= low) & (v < high), static_cast<int32_t>(j));
        }
        for (int64_t i = count; i < kFew; ++i) values_[i] = T(-1);
        for (int64_t i = 0;; ++i) {
            int64_t larger = 0, equal = 0;
            for (int64_t j = 0; j < kFew; ++j) {
                larger += values_[j] > values_[i];
                equal += values_[j] == values_[i];
            }
            if (larger < wanted && wanted <= larger + equal) return ties(row, values_[i], wanted - larger, equal);
        }
    }

    static constexpr int kHalvingFrom = 16;  // steps after which interpolation has failed

    int64_t padded_;
    T* values_;
    int32_t* columns_;
    T guess_ = 0, gap_ = 0;  // the row before: its threshold, and the step from one number to the next around it
    Key<T> low_ = 0, high_ = 0;
    int64_t at_low_ = 0, at_high_ = 0;
};

}  // namespace
}  // namespace OVS_ISA
}  // namespace ovs
