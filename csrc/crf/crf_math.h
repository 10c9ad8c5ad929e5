// The permutohedral lattice's geometry, once for both backends: position, simplex, keys, hash; and the factors of a
// normalisation.
#pragma once
#include <cmath>
#include <cstdint>

#include "common/index.h"

namespace ovs {
namespace {  // internal linkage: each instruction-set level keeps its own copy

// Four coordinates of 16 bits to a word, each biased by 2^15 so that it is never negative. Points keep away from the
// ends, so that keys of vertices and of their neighbours are added and subtracted as whole words.
constexpr int kKeyFields = 4;
constexpr double kKeyRange = 32767.0;
constexpr uint64_t kKeyOnes = 0x0001000100010001u;
constexpr double kLatticeQuantum = 1.0 / 1048576.0;  // 2^-20

OVS_HOST_DEVICE constexpr int key_words(int num_features) { return num_features / kKeyFields + 1; }  // of D + 1 fields
OVS_HOST_DEVICE double largest_position(int num_features) { return kKeyRange - 3.0 * (num_features + 1); }

// Length in the lattice of a step of 1 along feature k.
OVS_HOST_DEVICE double lattice_length(int num_features, int k) {
    return sqrt(2.0 / 3.0) * (num_features + 1) / sqrt((k + 1.0) * (k + 2.0));
}

// Where a point lies: the key of its vertex 0, the coordinates by rank (largest residual first), and its weights.
template <int kD>
struct Simplex {
    uint64_t base[key_words(kD)];
    uint8_t order[kD + 1];
    double weights[kD + 1];
};

// Adds `amount` (less than 2^16, negative as two's complement) to coordinate k of a key.
OVS_HOST_DEVICE void add_to_key(uint64_t* key, int k, uint64_t amount) {
    key[k / kKeyFields] += amount << (16 * (k % kKeyFields));
}

// Adds 1 to every coordinate, or takes it away.
template <int kD>
OVS_HOST_DEVICE void add_ones(uint64_t* key, bool minus) {
    for (int w = 0; w < key_words(kD); ++w) {
        const int fields = kD + 1 - w * kKeyFields;
        const uint64_t ones = fields >= kKeyFields ? kKeyOnes : kKeyOnes & ((uint64_t{1} << (16 * fields)) - 1);
        key[w] += minus ? ~ones + 1 : ones;
    }
}

// The key of vertex r from that of vertex r - 1: one more everywhere, and a full turn back for one coordinate.
template <int kD>
OVS_HOST_DEVICE void next_vertex(uint64_t* key, const uint8_t* order, int r) {
    add_ones<kD>(key, false);
    add_to_key(key, order[kD + 1 - r], ~uint64_t{kD} /* -(kD + 1) */);
}

// The key of the neighbour forward along an axis: one less everywhere, but kD more along the axis.
template <int kD>
OVS_HOST_DEVICE void next_along(uint64_t* key, int axis) {
    add_ones<kD>(key, true);
    add_to_key(key, axis, kD + 1);
}

template <int kD>
OVS_HOST_DEVICE bool same_key(const uint64_t* a, const uint64_t* b) {
    bool same = true;
    for (int w = 0; w < key_words(kD); ++w) same = same && a[w] == b[w];
    return same;
}

template <int kD>
OVS_HOST_DEVICE uint32_t hash_key(const uint64_t* key) {
    uint64_t h = key[0] * 0x9e3779b97f4a7c15u;
    for (int w = 1; w < key_words(kD); ++w) h = (h ^ (h >> 32) ^ key[w]) * 0xc2b2ae3d27d4eb4fu;
    h ^= h >> 29;
    h *= 0x94d049bb133111ebu;
    return static_cast<uint32_t>(h >> 32);
}

// features: already divided by their scales. Returns false, and leaves the rest alone, for a point without a place.
template <int kD>
OVS_HOST_DEVICE bool find_simplex(const double* features, const double* lengths, Simplex<kD>& s) {
    double e[kD + 1], total = 0.0;
    for (int i = kD; i > 0; --i) {
        const double c = features[i - 1] * lengths[i - 1];
        e[i] = total - i * c;
        total += c;
    }
    e[0] = total;
    bool inside = true;
    for (int i = 0; i <= kD; ++i) {
        e[i] = rint(e[i] * (1.0 / kLatticeQuantum)) * kLatticeQuantum;
        inside = inside && fabs(e[i]) <= largest_position(kD);
    }
    if (!inside) return false;

    // Everything is exact from here: multiples of the quantum.
    double rounded[kD + 1], residual[kD + 1];
    int rank[kD + 1], excess = 0;
    for (int i = 0; i <= kD; ++i) {
        rounded[i] = rint(e[i] / (kD + 1));
        residual[i] = e[i] - rounded[i] * (kD + 1);
        excess += static_cast<int>(rounded[i]);
        rank[i] = 0;
    }
    for (int i = 0; i < kD; ++i) {
        for (int j = i + 1; j <= kD; ++j) {
            const int second = residual[i] < residual[j] ? 1 : 0;
            rank[i] += second;
            rank[j] += 1 - second;
        }
    }
    double sorted[kD + 1];
    for (int w = 0; w < key_words(kD); ++w) s.base[w] = 0;
    for (int i = 0; i <= kD; ++i) {
        const int shifted = rank[i] + excess;
        const int wrap = shifted > kD ? 1 : shifted < 0 ? -1 : 0;
        const int place = shifted - wrap * (kD + 1);
        const double base = (rounded[i] - wrap) * (kD + 1);
        s.order[place] = static_cast<uint8_t>(i);
        sorted[place] = e[i] - base;
        add_to_key(s.base, i, static_cast<uint64_t>(static_cast<int>(base) + 32768));
    }
    s.weights[0] = 1.0 - (sorted[0] - sorted[kD]) / (kD + 1);
    for (int r = 1; r <= kD; ++r) s.weights[r] = (sorted[kD - r] - sorted[kD + 1 - r]) / (kD + 1);
    return true;
}

// The factor of a slice, which makes the filter of a constant about that constant.
OVS_HOST_DEVICE double lattice_alpha(int num_features) {
    return 1.0 / (1.0 + 1.0 / static_cast<double>(1 << num_features));
}

// Powers of 1 / n on both sides of a filter, in halves.
struct NormPowers {
    int before, after;
};
OVS_HOST_DEVICE NormPowers norm_powers(int normalization, bool transpose) {
    const NormPowers p = {normalization == 1   ? 1
                          : normalization == 2 ? 2
                                               : 0,
                          normalization == 1   ? 1
                          : normalization == 3 ? 2
                                               : 0};
    return transpose ? NormPowers{p.after, p.before} : p;
}
OVS_HOST_DEVICE double norm_factor(double n, int halves) {
    return halves == 0 ? 1.0 : halves == 1 ? 1.0 / sqrt(n + 1e-20) : 1.0 / (n + 1e-20);
}

}  // namespace
}  // namespace ovs

// One case per number of features: a kernel is compiled for each.
#define OVS_LATTICE_CASE(D, CALL) \
    case D: {                     \
        constexpr int kD = D;     \
        CALL;                     \
        break;                    \
    }
#define OVS_LATTICE_SWITCH(num_features, CALL) \
    switch (num_features) {                    \
        OVS_LATTICE_CASE(1, CALL)              \
        OVS_LATTICE_CASE(2, CALL)              \
        OVS_LATTICE_CASE(3, CALL)              \
        OVS_LATTICE_CASE(4, CALL)              \
        OVS_LATTICE_CASE(5, CALL)              \
        OVS_LATTICE_CASE(6, CALL)              \
        OVS_LATTICE_CASE(7, CALL)              \
        OVS_LATTICE_CASE(8, CALL)              \
        OVS_LATTICE_CASE(9, CALL)              \
        OVS_LATTICE_CASE(10, CALL)             \
        OVS_LATTICE_CASE(11, CALL)             \
        OVS_LATTICE_CASE(12, CALL)             \
        OVS_LATTICE_CASE(13, CALL)             \
        OVS_LATTICE_CASE(14, CALL)             \
        OVS_LATTICE_CASE(15, CALL)             \
        OVS_LATTICE_CASE(16, CALL)             \
        default:                               \
            break;                             \
    }
