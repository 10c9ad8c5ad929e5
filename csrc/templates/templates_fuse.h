// fuse_experts on a CPU; included once per instruction-set level.
//
// 1 softmax    rows of K products in place, with each expert's own probability and most likely class
// 2 cells      which experts vote everywhere in a cell (accepted), nowhere, or must be asked per pixel (open)
// 3 votes      strips of up to 16 pixels of a cell: the responsible experts, as a list of parts: an expert's K-vectors
//              left and right of the strip (blended along y) and the share that each pixel takes of it
// 4 write      class by class over whole rows, or to the running best for labels
#pragma once
#include <cstring>

#include "common/parallel.h"
#include "templates/templates_cpu.h"
#include "templates/templates_pack.h"

namespace ovs {
namespace OVS_ISA {
namespace {

template <class T>
class Fuser {
public:
    Fuser(const FuseExpertsParams& p, void* workspace, std::size_t bytes, int threads)
        : p_(p),
          threads_(threads),
          num_classes_(p.num_classes),
          workspace_(workspace, bytes),
          scratch_(p, threads, workspace_) {}

    void run() {
        parallel_for(p_.grid_height * p_.grid_width, threads_, [&](int64_t patch) { softmax_patch(patch); });
        for (int64_t y = 0; y < p_.height; ++y) scratch_.rows[y] = tap_of<T>(y, p_.grid_height, p_.height);
        for (int64_t x = 0; x < round_up(p_.width, kStrip) + kStrip; ++x) {
            const Tap<T> tap = tap_of<T>(std::min(x, p_.width - 1), p_.grid_width, p_.width);
            if (x < p_.width) scratch_.columns[x] = tap;
            scratch_.right[x] = tap.weight;
        }
        int64_t next = 0;  // image row that the next worker begins with
        parallel_for(threads_, threads_, [&](int64_t worker) {
            for (;;) {
                const int64_t a = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED);
                if (a >= p_.grid_height) return;
                cell_row(static_cast<int>(worker), a);
            }
        });
    }

private:
    using P = Pack<T>;
    using M = Marks<T>;
    using I = typename M::I;

    struct Corner {
        const T* shares;  // [K + 1, K]
        const T* own;     // [K]
        const int16_t* best;
    };
    struct Cell {
        Corner at[4];  // top left, top right, bottom left, bottom right
        int64_t x0, x1;
        int32_t* experts;  // accepted, then open
        int32_t accepted, open;
        bool unknown;
    };
    // Pixels of one cell and row, and what they are made of.
    struct Strip {
        int64_t x;
        int lanes;
        int64_t first_part;
        int32_t parts;
    };
    struct Worker {
        T* ends;
        T* share;
        int32_t* beaters;
        T* label_best;
        int32_t* label;
        int64_t used = 0;  // parts
        Strip strips[kMostParts];
        int64_t num_strips = 0;
    };

    // 1

    void softmax_patch(int64_t patch) const {
        T* const shares = static_cast<T*>(p_.products) + patch * (num_classes_ + 1) * num_classes_;
        const bool unknown = p_.unknown != nullptr && p_.unknown[patch] != 0;
        for (int64_t e = 0; e <= num_classes_; ++e) {
            T* const row = shares + e * num_classes_;
            const int64_t best = unknown ? uniform(row) : softmax(row);
            if (e == num_classes_) break;
            scratch_.own[patch * num_classes_ + e] = row[e];
            scratch_.best[patch * num_classes_ + e] = static_cast<int16_t>(best);
        }
        if (p_.strategy != FuseStrategy::kAverage) return;
        T* const mean = scratch_.mean + patch * num_classes_;
        std::fill_n(mean, num_classes_, T(0));
        for (int64_t e = 0; e < num_classes_; ++e) {
            const T* const row = shares + e * num_classes_;
            for (int64_t j = 0; j < num_classes_; ++j) mean[j] += row[j];
        }
        for (int64_t j = 0; j < num_classes_; ++j) mean[j] /= static_cast<T>(num_classes_);
    }

    int64_t uniform(T* row) const {
        std::fill_n(row, num_classes_, T(1) / static_cast<T>(num_classes_));
        return 0;
    }

    P load_part(const T* row, int64_t j, T rest) const {
        if (j + kStrip <= num_classes_) return load_pack(row + j);
        T values[kStrip];
        for (int l = 0; l < kStrip; ++l) values[l] = j + l < num_classes_ ? row[j + l] : rest;
        return load_pack(values);
    }
    void store_part(T* row, int64_t j, const P& values) const {
        if (j + kStrip <= num_classes_) return store_pack(row + j, values);
        T buffer[kStrip];
        store_pack(buffer, values);
        std::memcpy(row + j, buffer, static_cast<std::size_t>(num_classes_ - j) * sizeof(T));
    }

    // In place; returns the most likely class, the lowest of equals.
    int64_t softmax(T* row) const {
        const P scale = broadcast(static_cast<T>(p_.scale));
        P most = load_part(row, 0, row[0]);
        for (int64_t j = kStrip; j < num_classes_; j += kStrip) {
            const P x = load_part(row, j, row[0]);
            most = select(above(x, most), x, most);
        }
        const T top = largest(most);
        int64_t best = 0;
        while (best + 1 < num_classes_ && !(row[best] == top)) ++best;  // ends where there is a NaN, too
        const P top_pack = broadcast(top);
        P sum = broadcast(T(0));
        for (int64_t j = 0; j < num_classes_; j += kStrip) {
            P e = exp_of_negative((load_part(row, j, top) - top_pack) * scale);
            if (j + kStrip > num_classes_) {
                const M inside = lane_numbers<T>() < broadcast_mark<T>(num_classes_ - j);
                e = select(inside, e, broadcast(T(0)));
            }
            store_part(row, j, e);
            sum = sum + e;
        }
        const T inverse = T(1) / sum_of(sum);
        for (int64_t j = 0; j < num_classes_; ++j) row[j] *= inverse;
        return best;
    }

    // 2

    Corner corner(int64_t row, int64_t column) const {
        const int64_t patch = row * p_.grid_width + column;
        return {static_cast<const T*>(p_.products) + patch * (num_classes_ + 1) * num_classes_,
                scratch_.own + patch * num_classes_, scratch_.best + patch * num_classes_};
    }
    bool unknown(int64_t row, int64_t column) const {
        return p_.unknown != nullptr && p_.unknown[row * p_.grid_width + column] != 0;
    }

    // Whether class j is at least as likely as e at every corner, so that e cannot win a pixel.
    static bool dominates(const Cell& cell, int64_t row, int64_t j, int64_t e) {
        for (const Corner& c : cell.at) {
            if (!beats(c.shares[row + j], j, c.own[e], e)) return false;
        }
        return true;
    }

    Cell make_cell(int64_t a, int64_t b, int64_t x0, int64_t x1, int32_t* experts) const {
        const int64_t low = std::min(a + 1, p_.grid_height - 1), right = std::min(b + 1, p_.grid_width - 1);
        Cell cell = {{corner(a, b), corner(a, right), corner(low, b), corner(low, right)},        x0, x1, experts, 0, 0,
                     unknown(a, b) || unknown(a, right) || unknown(low, b) || unknown(low, right)};
        if (cell.unknown || p_.strategy == FuseStrategy::kAverage) return cell;
        for (int64_t e = 0; e < num_classes_; ++e) {
            bool all = true;
            for (const Corner& c : cell.at) all = all && c.best[e] == e;
            if (all) experts[cell.accepted++] = static_cast<int32_t>(e);
        }
        for (int64_t e = 0; e < num_classes_; ++e) {
            bool all = true, rejected = false;
            for (const Corner& c : cell.at) {
                const int64_t j = c.best[e];
                all = all && j == e;
                rejected = rejected || (j != e && dominates(cell, e * num_classes_, j, e));
            }
            if (!all && !rejected) experts[cell.accepted + cell.open++] = static_cast<int32_t>(e);
        }
        return cell;
    }

    // The classes that beat the open expert e at a corner; -1 if one of them does at all corners.
    int32_t find_beaters(const Cell& cell, int64_t e, int32_t* beaters) const {
        int32_t count = 0;
        for (int64_t j = 0; j < num_classes_; j += kStrip) {
            M some = broadcast_mark<T>(0), all = broadcast_mark<T>(-1);
            for (const Corner& c : cell.at) {
                const P other = load_part(c.shares + e * num_classes_, j, T(-1)), own = broadcast(c.own[e]);
                const M lower = (lane_numbers<T>() < broadcast_mark<T>(e - j)) & equal(other, own);
                const M wins = above(other, own) | lower;
                some = some | wins;
                all = all & wins;
            }
            if (any(all)) return -1;
            if (!any(some)) continue;
            I marks[kStrip];
            store_marks(marks, some);
            for (int l = 0; l < kStrip; ++l) {
                if (marks[l] != 0) beaters[count++] = static_cast<int32_t>(j + l);
            }
        }
        return count;
    }

    // 3

    static T blend(T top, T bottom, T weight) { return top + weight * (bottom - top); }

    // A number of an expert's vectors at the pixels of a strip, from its four corners.
    static P across(const T (&corners)[4], T down, const P& right) {
        const T left = blend(corners[0], corners[2], down);
        return broadcast(left) + right * broadcast(blend(corners[1], corners[3], down) - left);
    }
    static P own_share(const Cell& cell, int64_t e, T down, const P& right) {
        return across({cell.at[0].own[e], cell.at[1].own[e], cell.at[2].own[e], cell.at[3].own[e]}, down, right);
    }
    static P other_share(const Cell& cell, int64_t at, T down, const P& right) {
        return across({cell.at[0].shares[at], cell.at[1].shares[at], cell.at[2].shares[at], cell.at[3].shares[at]},
                      down, right);
    }

    // Which of the pixels in `asked` the open expert e wins.
    M wins(const Cell& cell, int64_t e, const int32_t* beaters, int32_t count, const P& own, M asked, T down,
           const P& right) const {
        for (int32_t i = 0; i < count && any(asked); ++i) {
            const int64_t j = beaters[i];
            const P other = other_share(cell, e * num_classes_ + j, down, right);
            M beaten = above(other, own);
            if (j < e) beaten = beaten | equal(other, own);
            asked = asked & ~beaten;
        }
        return asked;
    }

    // An expert's vectors (corners at `at`, or of the mean) and the pixels that take a share of it.
    void add_part(Worker& w, Strip& strip, const T* const (&corners)[4], T down, const P& share) const {
        T* const left = w.ends + w.used * 2 * round_up(num_classes_, kLineNumbers);
        T* const slope = left + round_up(num_classes_, kLineNumbers);
        for (int64_t j = 0; j < num_classes_; ++j) {
            const T begin = blend(corners[0][j], corners[2][j], down);
            left[j] = begin;
            slope[j] = blend(corners[1][j], corners[3][j], down) - begin;
        }
        store_pack(w.share + w.used * kStrip, share);
        ++w.used;
        ++strip.parts;
    }
    void add_expert(Worker& w, Strip& strip, const Cell& cell, int64_t e, T down, const P& share) const {
        const int64_t at = e * num_classes_;
        add_part(w, strip,
                 {cell.at[0].shares + at, cell.at[1].shares + at, cell.at[2].shares + at, cell.at[3].shares + at}, down,
                 share);
    }
    void add_mean(Worker& w, Strip& strip, const Cell& cell, T down) const {
        const T* corners[4];
        for (int i = 0; i < 4; ++i) {
            const int64_t patch = (cell.at[i].own - scratch_.own) / num_classes_;
            corners[i] = scratch_.mean + patch * num_classes_;
        }
        add_part(w, strip, corners, down, broadcast(T(1)));
    }

    // Votes of a strip: the winner by "highest" and the number of votes of each pixel; for the strategies that count
    // votes every expert is asked everywhere, and `vote(e, marks)` hears of each.
    template <class Vote>
    void ask(Worker& w, const Cell& cell, T down, const P& right, bool everywhere, P& best, M& winner, M& votes,
             const Vote& vote) const {
        for (int32_t i = 0; i < cell.accepted + cell.open; ++i) {
            const int64_t e = cell.experts[i];
            const P own = own_share(cell, e, down, right);
            const M mark = broadcast_mark<T>(e);
            const M better = above(own, best) | (equal(own, best) & (mark < winner));
            M votes_here = everywhere ? broadcast_mark<T>(-1) : better;
            if (i >= cell.accepted && any(votes_here)) {
                const int32_t count = find_beaters(cell, e, w.beaters);
                votes_here =
                    count < 0 ? broadcast_mark<T>(0) : wins(cell, e, w.beaters, count, own, votes_here, down, right);
            }
            if (everywhere && any(votes_here)) vote(e, votes_here);
            votes = votes - votes_here;  // a mark is -1
            best = select(better & votes_here, own, best);
            winner = select(better & votes_here, mark, winner);
        }
    }

    // Adds the strip's parts; returns the responsible experts.
    M resolve(Worker& w, Strip& strip, const Cell& cell, T down, const P& right) const {
        const M nobody = broadcast_mark<T>(num_classes_), zero = broadcast_mark<T>(0);
        P best = broadcast(T(-1));
        M winner = nobody, votes = zero;
        const P one = broadcast(T(1)), none = broadcast(T(0));
        if (p_.strategy == FuseStrategy::kAverage && !cell.unknown) {
            add_mean(w, strip, cell, down);
            return winner;
        }
        if (p_.strategy == FuseStrategy::kAverageConflicting) {
            ask(w, cell, down, right, true, best, winner, votes, [](int64_t, const M&) {});
            I counts[kStrip];
            T reciprocal[kStrip];
            store_marks(counts, votes);
            for (int l = 0; l < kStrip; ++l) reciprocal[l] = counts[l] > 0 ? T(1) / static_cast<T>(counts[l]) : T(0);
            const P share = load_pack(reciprocal);
            P again_best = broadcast(T(-1));
            M again_winner = nobody, again_votes = zero;
            ask(w, cell, down, right, true, again_best, again_winner, again_votes,
                [&](int64_t e, const M& marks) { add_expert(w, strip, cell, e, down, select(marks, share, none)); });
            const M left_out = votes == zero;
            if (any(left_out & valid(strip))) {
                add_expert(w, strip, cell, num_classes_, down, select(left_out, one, none));
            }
            return winner;
        }
        const bool counted = p_.strategy == FuseStrategy::kDefaultOnConflict;
        ask(w, cell, down, right, counted, best, winner, votes, [](int64_t, const M&) {});
        if (counted) winner = select(votes == broadcast_mark<T>(1), winner, nobody);
        I numbers[kStrip];
        store_marks(numbers, winner);
        for (int l = 0; l < strip.lanes; ++l) {
            bool seen = false;
            for (int other = 0; other < l; ++other) seen = seen || numbers[other] == numbers[l];
            if (seen) continue;
            add_expert(w, strip, cell, numbers[l], down, select(winner == broadcast_mark<T>(numbers[l]), one, none));
        }
        return winner;
    }
    static M valid(const Strip& strip) { return lane_numbers<T>() < broadcast_mark<T>(strip.lanes); }

    void write_winners(const Strip& strip, int64_t y, const M& winner) const {
        I numbers[kStrip];
        store_marks(numbers, winner);
        int32_t* const to = p_.winners + y * p_.width + strip.x;
        for (int l = 0; l < strip.lanes; ++l) to[l] = static_cast<int32_t>(numbers[l]);
    }

    void cell_row(int index, int64_t a) const {
        int64_t y0 = 0;
        while (y0 < p_.height && scratch_.rows[y0].low < a) ++y0;
        if (y0 == p_.height || scratch_.rows[y0].low != a) return;
        Worker w;
        w.ends = scratch_.ends + index * scratch_.ends_stride;
        w.share = scratch_.share + index * scratch_.share_stride;
        w.beaters = scratch_.beaters + index * scratch_.beaters_stride;
        w.label_best = scratch_.label_best + index * scratch_.label_stride;
        w.label = scratch_.label + index * scratch_.label_stride;
        // All rows of a cell before the next cell would write scattered pieces; all cells of a row need their lists.
        int32_t* const lists = scratch_.cells + index * scratch_.cells_stride;
        for (int64_t y = y0; y < p_.height && scratch_.rows[y].low == a; ++y) {
            image_row(w, a, y, y == y0, lists);
        }
    }

    // The lists of a row of cells: for cell b at lists + b * (K + 2) the counts of accepted and open, then the experts.
    void image_row(Worker& w, int64_t a, int64_t y, bool first, int32_t* lists) const {
        const T down = scratch_.rows[y].weight;
        w.used = w.num_strips = 0;
        for (int64_t x0 = 0, x1; x0 < p_.width; x0 = x1) {
            const int64_t b = scratch_.columns[x0].low;
            for (x1 = x0; x1 < p_.width && scratch_.columns[x1].low == b;) ++x1;
            int32_t* const list = lists + b * (num_classes_ + 2);
            const Cell cell = first ? make_cell(a, b, x0, x1, list + 2) : read_cell(a, b, x0, x1, list);
            list[0] = cell.accepted;
            list[1] = cell.open;
            for (int64_t x = x0; x < x1; x += kStrip) {
                if (w.used + num_classes_ + 1 > scratch_.parts && most_parts() + w.used > scratch_.parts) flush(w, y);
                if (w.num_strips == kMostParts) flush(w, y);
                Strip strip = {x, static_cast<int>(std::min<int64_t>(kStrip, x1 - x)), w.used, 0};
                const M winner = resolve(w, strip, cell, down, load_pack(scratch_.right + x));
                if (p_.winners != nullptr) write_winners(strip, y, winner);
                w.strips[w.num_strips++] = strip;
            }
        }
        flush(w, y);
    }

    // Parts of a strip at most.
    int64_t most_parts() const {
        return p_.strategy == FuseStrategy::kAverageConflicting ? num_classes_ + 1
                                                                : std::min<int64_t>(kStrip, num_classes_ + 1);
    }

    Cell read_cell(int64_t a, int64_t b, int64_t x0, int64_t x1, int32_t* list) const {
        const int64_t low = std::min(a + 1, p_.grid_height - 1), right = std::min(b + 1, p_.grid_width - 1);
        return {{corner(a, b), corner(a, right), corner(low, b), corner(low, right)},
                x0,
                x1,
                list + 2,
                list[0],
                list[1],
                unknown(a, b) || unknown(a, right) || unknown(low, b) || unknown(low, right)};
    }

    // 4

    P value_of(const Worker& w, const Strip& strip, const P& right, int64_t j) const {
        const int64_t padded = round_up(num_classes_, kLineNumbers);
        const T* const ends = w.ends + strip.first_part * 2 * padded + j;
        P value = broadcast(ends[0]) + right * broadcast(ends[padded]);
        if (strip.parts == 1) return value;
        value = value * load_pack(w.share + strip.first_part * kStrip);
        for (int32_t i = 1; i < strip.parts; ++i) {
            const T* const more = ends + i * 2 * padded;
            value = value + load_pack(w.share + (strip.first_part + i) * kStrip) *
                                (broadcast(more[0]) + right * broadcast(more[padded]));
        }
        return value;
    }

    void flush(Worker& w, int64_t y) const {
        if (p_.labels != nullptr) {
            write_labels(w, y);
        } else if (p_.out != nullptr) {
            // Some classes at a time, so that the ends of all strips are read by whole cache lines.
            for (int64_t j0 = 0; j0 < num_classes_; j0 += kLineNumbers) {
                for (int64_t j = j0; j < std::min(j0 + kLineNumbers, num_classes_); ++j) write_class(w, y, j);
            }
        }
        w.used = w.num_strips = 0;
    }

    void write_class(const Worker& w, int64_t y, int64_t j) const {
        T* const row = static_cast<T*>(p_.out) + j * p_.class_stride + y * p_.row_stride;
        const T* const weights = static_cast<const T*>(p_.weights) + (p_.weights != nullptr ? y * p_.row_stride : 0);
        for (int64_t i = 0; i < w.num_strips; ++i) {
            const Strip& strip = w.strips[i];
            const P value = value_of(w, strip, load_pack(scratch_.right + strip.x), j);
            T* const to = row + strip.x;
            if (p_.weights == nullptr && strip.lanes == kStrip) {
                store_pack(to, value);
                continue;
            }
            T buffer[kStrip];
            store_pack(buffer, value);
            if (p_.weights == nullptr) {
                std::memcpy(to, buffer, static_cast<std::size_t>(strip.lanes) * sizeof(T));
                continue;
            }
            for (int l = 0; l < strip.lanes; ++l) to[l] += buffer[l] * weights[strip.x + l];
        }
    }

    void write_labels(const Worker& w, int64_t y) const {
        for (int64_t i = 0; i < w.num_strips; ++i) {
            const Strip& strip = w.strips[i];
            const P right = load_pack(scratch_.right + strip.x);
            P top = broadcast(T(-1));
            M best = broadcast_mark<T>(0);
            for (int64_t j = 0; j < num_classes_; ++j) {
                const P value = value_of(w, strip, right, j);
                const M better = above(value, top);
                top = select(better, value, top);
                best = select(better, broadcast_mark<T>(j), best);
            }
            I numbers[kStrip];
            store_marks(numbers, best);
            for (int l = 0; l < strip.lanes; ++l) {
                const int64_t at = y * p_.width + strip.x + l;
                if (num_classes_ <= 255) {
                    static_cast<uint8_t*>(p_.labels)[at] = static_cast<uint8_t>(numbers[l]);
                } else {
                    static_cast<int32_t*>(p_.labels)[at] = static_cast<int32_t>(numbers[l]);
                }
            }
        }
    }

    const FuseExpertsParams& p_;
    int threads_;
    int64_t num_classes_;
    Workspace workspace_;
    FuseScratch<T> scratch_;
};

}  // namespace
}  // namespace OVS_ISA
}  // namespace ovs
