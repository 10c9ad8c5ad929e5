// A square of numbers turned in registers. Included per instruction-set level.
#pragma once
#include <cstdint>
#include <type_traits>

#include "common/simd.h"

namespace ovs {
namespace OVS_ISA {
namespace {

// rows[r][k] becomes rows[k][r], in log2(lanes) rounds of exchanges between pairs of vectors.
template <class T, class V, int kLanes>
OVS_INLINE void transpose_square(V (&rows)[kLanes]) {
    static_assert(sizeof(V) == kLanes * sizeof(T), "as many rows as lanes");
    using Mask = Vec<std::conditional_t<sizeof(T) == 8, int64_t, int32_t>, kLanes>;
    OVS_UNROLL
    for (int step = 1; step < kLanes; step *= 2) {
        Mask low = {}, high = {};
        OVS_UNROLL
        for (int k = 0; k < kLanes; ++k) {
            low[k] = (k & step) == 0 ? k : kLanes + k - step;
            high[k] = (k & step) == 0 ? k + step : kLanes + k;
        }
        OVS_UNROLL
        for (int r = 0; r < kLanes; ++r) {
            if ((r & step) != 0) continue;
            const V a = rows[r], b = rows[r + step];
            rows[r] = shuffle(a, b, low);
            rows[r + step] = shuffle(a, b, high);
        }
    }
}

}  // namespace
}  // namespace OVS_ISA
}  // namespace ovs
