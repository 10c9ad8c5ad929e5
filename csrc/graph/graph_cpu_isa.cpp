// knn_graph on a CPU, one stage; compiled once per instruction-set level.
//
// The products exist for blocks at and above the diagonal only. Rows are gathered from them in groups of kGroupRows, to
// the left of the diagonal by transposing, into a buffer that stays in L2; then `select` searches the row's cut
// (graph_select.h), and `count` and `emit` compare every number with the cuts of its row and of its column. Nothing is
// sorted or merged: the links of a row come out in the order of their columns.
#include <limits>
#include <type_traits>

#include "common/parallel.h"
#include "graph/graph_select.h"
#include "graph/graph_vector.h"

namespace ovs {
namespace OVS_ISA {
namespace {

template <class T>
class GraphBuilder {
public:
    GraphBuilder(const KnnGraphParams& p, void* workspace, std::size_t bytes, int threads)
        : p_(p), threads_(threads), workspace_(workspace, bytes), b_(p, threads, workspace_) {}

    void run() {
        switch (p_.stage) {
            case KnnGraphStage::kNormalize:
                return normalize();
            case KnnGraphStage::kSelect:
                return select();
            case KnnGraphStage::kCount:
                return count();
            case KnnGraphStage::kEmit:
                return emit();
            default:
                throw_invalid_argument("knn_graph: unknown stage");
        }
    }

private:
    using V = Vec<T, kLanes<T>>;
    using M = decltype(V{} > V{});
    using Rows = typename GraphBuffers<T>::Rows;

    // fn(rows, first row, number of rows) for all groups of [begin, end), handed out one at a time; fn belongs to one
    // thread, which has `rows` for itself.
    template <class MakeFn>
    void for_groups(int64_t begin, int64_t end, const MakeFn& make_fn) {
        int64_t next = begin;
        parallel_for(threads_, threads_, [&](int64_t worker) {
            const Rows rows = b_.rows_of(worker);
            auto fn = make_fn(rows);
            for (;;) {
                const int64_t first = __atomic_fetch_add(&next, kGroupRows, __ATOMIC_RELAXED);
                if (first >= end) return;
                fn(first, std::min<int64_t>(kGroupRows, end - first));
            }
        });
    }

    void normalize() {
        for (int64_t i = p_.num_nodes; i < b_.stride; ++i) {
            b_.thresholds[i] = kAboveAll;
            b_.last_ties[i] = T(-1);
        }
        const T* positions = static_cast<const T*>(p_.positions);
        for (int64_t i = 0; positions != nullptr && i < p_.num_nodes; ++i) {
            b_.y[i] = positions[2 * i];
            b_.x[i] = positions[2 * i + 1];
        }
        for_groups(0, p_.num_nodes, [this](const Rows&) {
            return [this](int64_t first, int64_t count) {
                for (int64_t i = first; i < first + count; ++i) normalize_row(i);
            };
        });
    }

    // The norm in double, of numbers scaled so that no square overflows or vanishes.
    void normalize_row(int64_t i) {
        constexpr int kWide = kVectorBytes / sizeof(double);
        using D = Vec<double, kWide>;
        typedef T Narrow __attribute__((vector_size(kWide * sizeof(T))));
        const int64_t size = p_.num_features;
        const T* in = static_cast<const T*>(p_.features) + i * size;
        T* out = static_cast<T*>(p_.unit_rows) + i * size;
        double scale = 1.0;
        if constexpr (std::is_same_v<T, double>) {
            double largest = 0.0;
            for (int64_t c = 0; c < size; ++c) largest = std::max(largest, __builtin_fabs(in[c]));
            if (largest > 0.0 && largest < HUGE_VAL)
                scale = __builtin_ldexp(1.0, std::clamp(-__builtin_ilogb(largest), -1000, 1000));
        }
        D sums = {};
        int64_t c = 0;
        for (; c + kWide <= size; c += kWide) {
            const D v = __builtin_convertvector(load<Narrow>(in + c), D) * scale;
            sums += v * v;
        }
        double sum = 0.0;
        for (int lane = 0; lane < kWide; ++lane) sum += sums[lane];
        for (; c < size; ++c) {
            const double v = static_cast<double>(in[c]) * scale;
            sum += v * v;
        }
        if (!(sum > 0.0 && sum < HUGE_VAL)) {  // NaN and Inf poison the sum
            for (c = 0; c < size; ++c) out[c] = T(0);
            return;
        }
        const double inverse = 1.0 / __builtin_sqrt(sum);
        for (c = 0; c < size; ++c) out[c] = static_cast<T>(static_cast<double>(in[c]) * scale * inverse);
    }

    const T* tile(int64_t row_block, int64_t column_block) const {
        const int64_t blocks = ceil_div(p_.num_nodes, kProductBlock);
        const int64_t number = p_.tile_numbers[row_block * blocks + column_block];
        return static_cast<const T*>(p_.products) + number * kProductBlock * kProductBlock;
    }

    // Rows first .. first + count of the products, their own columns and the padding -1.
    void gather(int64_t first, int64_t count, T* rows) const {
        const int64_t own = first / kProductBlock, local = first % kProductBlock, stride = b_.stride;
        for (int64_t block = 0; block * kProductBlock < p_.num_nodes; ++block) {
            const int64_t begin = block * kProductBlock, width = std::min<int64_t>(kProductBlock, p_.num_nodes - begin);
            if (block < own) {
                transpose(tile(block, own) + local, width, count, rows + begin, stride);
                continue;
            }
            const T* from = tile(own, block);
            for (int64_t r = 0; r < count; ++r) {
                std::memcpy(rows + r * stride + begin, from + (local + r) * kProductBlock, width * sizeof(T));
                if (block > own) continue;
                for (int64_t c = 0; c < local + r; ++c)
                    rows[r * stride + begin + c] = from[c * kProductBlock + local + r];
                rows[r * stride + first + r] = T(-1);
            }
        }
        for (int64_t r = 0; r < count; ++r) {
            std::fill(rows + r * stride + p_.num_nodes, rows + (r + 1) * stride, T(-1));
        }
    }

    // to[r, c] = from[c, r]
    static void transpose(const T* from, int64_t width, int64_t count, T* to, int64_t stride) {
        if (count == kGroupRows) {
            for (int64_t c = 0; c < width; ++c) {
                OVS_UNROLL
                for (int64_t r = 0; r < kGroupRows; ++r) to[r * stride + c] = from[c * kProductBlock + r];
            }
            return;
        }
        for (int64_t c = 0; c < width; ++c) {
            for (int64_t r = 0; r < count; ++r) to[r * stride + c] = from[c * kProductBlock + r];
        }
    }

    void select() {
        for_groups(p_.first_row, p_.last_row, [this](const Rows& rows) {
            return [this, rows, search = CutSearch<T>(b_.stride, rows.values, rows.columns)](int64_t first,
                                                                                             int64_t count) mutable {
                gather(first, count, rows.products);
                for (int64_t r = 0; r < count; ++r) {
                    const Cut<T> cut = search.run(rows.products + r * b_.stride, p_.num_others);
                    b_.thresholds[first + r] = cut.threshold;
                    b_.last_ties[first + r] = cut.last_tie;
                }
            };
        });
    }

    // Whether some row keeps a part of its ties.
    bool any_ties() const {
        T largest = T(-1);
        for (int64_t i = 0; i < p_.num_nodes; ++i) largest = std::max(largest, b_.last_ties[i]);
        return largest >= T(0);
    }

    // Whether a link can be so weak that it counts as zero: no link is below the lowest threshold, and no two positions
    // are further apart than the corners of the box around all.
    bool any_zeros() const {
        T lowest = T(1), top = HUGE_VAL, bottom = -HUGE_VAL, left = HUGE_VAL, right = -HUGE_VAL, poison = 0;
        for (int64_t i = 0; i < p_.num_nodes; ++i) lowest = std::min(lowest, b_.thresholds[i]);
        double weakest = std::pow(static_cast<double>(lowest), p_.gamma);
        if (p_.positions != nullptr) {
            for (int64_t i = 0; i < p_.num_nodes; ++i) {
                const T y = b_.y[i], x = b_.x[i];
                top = std::min(top, y), bottom = std::max(bottom, y);
                left = std::min(left, x), right = std::max(right, x);
                poison += y * T(0) + x * T(0);  // NaN from the first NaN or Inf on
            }
            const double height = static_cast<double>(bottom) - top, width = static_cast<double>(right) - left;
            weakest *= std::exp(-p_.sigma * std::sqrt(height * height + width * width)) + poison;
        }
        return !(weakest > 4.0 * kSmallestLink);
    }

    // fn(products, mutual, linked, column) for every vector of row i; masks of 0 and -1.
    template <bool kTies, class Fn>
    OVS_INLINE void for_links(int64_t i, const T* row, const Fn& fn) const {
        const T threshold = b_.thresholds[i], last_tie = b_.last_ties[i];
        V columns;
        for (int lane = 0; lane < kLanes<T>; ++lane) columns[lane] = static_cast<T>(lane);
        for (int64_t j = 0; j < b_.stride; j += kLanes<T>, columns += T(kLanes<T>)) {
            const V s = load<V>(row + j), thresholds = load<V>(b_.thresholds + j);
            M here = s > threshold, there = s > thresholds;
            if constexpr (kTies) {
                here |= (s == threshold) & (columns <= last_tie);
                there |= (s == thresholds) & (static_cast<T>(i) <= load<V>(b_.last_ties + j));
            }
            fn(s, here & there, here | there, j);
        }
    }

    template <class Fn>
    static void with_flag(bool flag, const Fn& fn) {
        flag ? fn(std::true_type{}) : fn(std::false_type{});
    }

    void count() {
        const bool zeros = any_zeros();
        with_flag(any_ties(), [&](auto ties) {
            for_groups(p_.first_row, p_.last_row, [this, zeros, ties](const Rows& rows) {
                return [this, zeros, ties, rows](int64_t first, int64_t count) {
                    gather(first, count, rows.products);
                    for (int64_t i = first; i < first + count; ++i) {
                        const T* row = rows.products + (i - first) * b_.stride;
                        int64_t links = 0;
                        if (zeros) {
                            links = write_row<decltype(ties)::value>(i, row, rows, true);
                        } else {
                            M sum = {};
                            for_links<decltype(ties)::value>(
                                i, row, [&](const V&, const M&, const M& linked, int64_t) { sum += linked; });
                            for (int lane = 0; lane < kLanes<T>; ++lane) links -= sum[lane];
                        }
                        p_.indptr[i + 1] = static_cast<int32_t>(links);
                    }
                };
            });
        });
    }

    void emit() {
        const bool zeros = any_zeros();
        with_flag(any_ties(), [&](auto ties) {
            for_groups(p_.first_row, p_.last_row, [this, zeros, ties](const Rows& rows) {
                return [this, zeros, ties, rows](int64_t first, int64_t count) {
                    gather(first, count, rows.products);
                    for (int64_t i = first; i < first + count; ++i) {
                        const T* row = rows.products + (i - first) * b_.stride;
                        const int64_t links = write_row<decltype(ties)::value>(i, row, rows, zeros);
                        const int64_t begin = p_.indptr[i];
                        std::memcpy(p_.indices + begin, rows.columns, links * sizeof(int32_t));
                        std::memcpy(static_cast<T*>(p_.weights) + begin, rows.values, links * sizeof(T));
                        static_cast<T*>(p_.degrees)[i] = sum_of(rows.values, links);
                    }
                };
            });
        });
    }

    // Row i's links into rows.columns and rows.values; returns their number.
    template <bool kTies>
    int64_t write_row(int64_t i, const T* row, const Rows& rows, bool zeros) const {
        int64_t count = 0;
        const M sign = M{} + std::numeric_limits<Key<T>>::min();
        for_links<kTies>(i, row, [&](const V& s, const M& mutual, const M& linked, int64_t j) {
            const V marked = (V)((M)s ^ (mutual & sign));  // a mutual link is marked by a negative product
            count += append(rows.values + count, rows.columns + count, marked, linked, static_cast<int32_t>(j));
        });
        for (int64_t e = count; e < round_up(count, kPadValues); ++e) {
            rows.values[e] = T(1);
            rows.columns[e] = 0;
        }
        with_power(p_.gamma, [&](auto power) {
            with_flag(p_.positions != nullptr, [&](auto spatial) {
                weigh<decltype(power)::value, decltype(spatial)::value>(i, rows, round_up(count, kPadValues));
            });
        });
        if (!zeros) return count;
        int64_t kept = 0;
        for (int64_t e = 0; e < count; ++e) {
            const T weight = rows.values[e];
            rows.values[kept] = weight;
            rows.columns[kept] = rows.columns[e];
            kept += weight > T(0);
        }
        return kept;
    }

    // Marked products -> weights. `count` is a multiple of kPadValues, so that every link goes through the same vector
    // code, and w_ij and w_ji are the same bits.
    template <int kPower, bool kSpatial>
    void weigh(int64_t i, const Rows& rows, int64_t count) const {
        const T minus_sigma = static_cast<T>(-p_.sigma), smallest = kSmallestLink;
        T* __restrict values = rows.values;
        T* __restrict factors = rows.factors;
        if constexpr (kSpatial) {  // the gathers by themselves, so that the compiler vectorises the rest
            const T *ys = b_.y, *xs = b_.x, y = ys[i], x = xs[i];
            const int32_t* __restrict columns = rows.columns;
            for (int64_t e = 0; e < count; ++e) {
                const T dy = ys[columns[e]] - y, dx = xs[columns[e]] - x;
                factors[e] = dy * dy + dx * dx;
            }
        }
        for (int64_t e = 0; e < count; ++e) {
            const T marked = values[e], magnitude = marked < T(0) ? -marked : marked;
            T weight = link_power<kPower>(magnitude < T(1) ? magnitude : T(1), static_cast<T>(p_.gamma));
            if constexpr (kSpatial) weight *= exp_nonpositive(minus_sigma * root(factors[e]));
            weight = weight >= smallest ? weight : T(0);  // false for NaN
            values[e] = marked < T(0) ? weight + weight : weight;
        }
    }

    template <int kPower>
    static OVS_INLINE T link_power(T s, T gamma) {
        if constexpr (kPower > 0) {
            return product_power<kPower>(s);
        } else {
            return unit_power(s, gamma);
        }
    }

    static OVS_INLINE T root(T x) {
        if constexpr (std::is_same_v<T, float>) {
            return __builtin_sqrtf(x);
        } else {
            return __builtin_sqrt(x);
        }
    }

    // In double, in an order that does not depend on the level.
    static T sum_of(const T* values, int64_t count) {
        constexpr int kSums = 8;
        double sums[kSums] = {};
        int64_t e = 0;
        for (; e + kSums <= count; e += kSums) {
            for (int lane = 0; lane < kSums; ++lane) sums[lane] += values[e + lane];
        }
        for (int lane = 0; e < count; ++e, ++lane) sums[lane] += values[e];
        return static_cast<T>(((sums[0] + sums[1]) + (sums[2] + sums[3])) +
                              ((sums[4] + sums[5]) + (sums[6] + sums[7])));
    }

    const KnnGraphParams& p_;
    int threads_;
    Workspace workspace_;
    GraphBuffers<T> b_;
};

}  // namespace

void knn_graph_stage(const KnnGraphParams& p, DType dtype, void* workspace, std::size_t bytes, int threads) {
    if (dtype == DType::kFloat64) {
        GraphBuilder<double>(p, workspace, bytes, threads).run();
    } else {
        GraphBuilder<float>(p, workspace, bytes, threads).run();
    }
}

}  // namespace OVS_ISA
}  // namespace ovs
