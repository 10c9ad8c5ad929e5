// dense_crf and permutohedral_filter on a GPU: everything on the caller's stream, nothing comes back to the host.
//
//   logits_kernel      planes of probabilities or energies to rows of logits, tiles turned in shared memory
//   update_kernel      per pixel: logits + the slices of all terms, softmax, Q or the label. Up to 32 lanes for
//                      each pixel; up to 256 classes stay in registers
//   down_, across_     the exact Gaussian along an axis: a thread sums kStrip outputs and reads each input once
//   multiply_kernel    a compatibility of one or two axes, on rows of vertices (or of pixels, for the exact Gaussian)
//   planes_kernel      rows of Q to planes
//
// and those of crf_cuda_rows.cuh. An iteration is 1 launch, D + 3 for each term that is a lattice and 2 for an exact
// Gaussian, and one for each compatibility that is a table.
#include <algorithm>
#include <cstdint>
#include <vector>

#include "common/device.cuh"
#include "common/launch.cuh"
#include "common/workspace.h"
#include "crf/crf.h"
#include "crf/crf_cuda_gaussian.cuh"
#include "crf/crf_cuda_rows.cuh"
#include "crf/crf_cuda_update.cuh"
#include "crf/crf_math.h"
#include "crf/crf_problem.h"

namespace ovs {
namespace {

// rows <- rows times a table [C] or [C, C]. `count`: of the rows, on the device, or null for `most`.
template <class T>
__global__ void multiply_kernel(const RowShape shape, const T* from, T* to, const int32_t* count, int64_t most,
                                int64_t pitch, const T* table, int rank, int64_t num_classes) {
    for_each_pack(shape, count == nullptr ? most : *count, [&](int64_t row, int64_t pack) {
        const int64_t column = pack * kPack;
        const T* const in = from + row * pitch;
        Pack<T, kPack> sum = zero_pack<T, kPack>();
        if (rank == 1) {
#pragma unroll
            for (int k = 0; k < kPack; ++k) {
                if (column + k < num_classes) sum.v[k] = table[column + k] * in[column + k];
            }
        } else {
            for (int64_t c = 0; c < num_classes; ++c) {  // symmetric: its row c is its column c
                const T value = in[c];
#pragma unroll
                for (int k = 0; k < kPack; ++k) {
                    if (column + k < num_classes) sum.v[k] += value * table[c * num_classes + column + k];
                }
            }
        }
        pack_at<T, kPack>(to + row * pitch + column) = sum;
    });
}

// What a call keeps of a term.
template <class T>
struct TermState {
    uint8_t* whole;  // [segments] of a lattice
    T* rows;         // [V + 1, pitch], or [N, pitch] of the exact Gaussian
    ExactView<T> exact;
};

template <class T>
struct CrfDeviceBuffers {
    int64_t pitch;       // classes of a row, padded
    T* logits;           // [N, pitch]; the filter does without
    T* q;                // [N, pitch]
    T* norm;             // [N] response to ones
    T* ones[2];          // [most vertices + 1]
    T* next;             // [most vertices + 1, pitch] the other rows of a blur; the exact Gaussian's columns
    T* partial;          // [most segments, pitch]
    TermView<T>* terms;  // [terms]
    std::vector<TermState<T>> states;

    CrfDeviceBuffers(const CrfProblem& p, bool filter, Workspace& ws) {
        pitch = round_up(p.num_classes, kPack);
        int64_t vertices = 0, rows = 0, segments = 0;
        for (int m = 0; m < p.num_terms; ++m) {
            const CrfTerm& t = p.terms[m];
            rows = std::max(rows, t.exact ? p.num_points : t.num_vertices + 1);
            if (t.exact) continue;
            vertices = std::max(vertices, t.num_vertices + 1);
            segments = std::max(segments, LatticeView<T>(t, p.num_points).num_segments());
        }
        logits = ws.take<T>("logits", filter ? 0 : p.num_points * pitch);
        q = ws.take<T>("q", p.num_points * pitch);
        norm = ws.take<T>("norm", p.num_points);
        for (T*& one : ones) one = ws.take<T>("ones", vertices);
        next = ws.take<T>("next", rows * pitch);
        partial = ws.take<T>("partial", segments * pitch);
        terms = ws.take<TermView<T>>("terms", p.num_terms);
        for (int m = 0; m < p.num_terms; ++m) states.push_back(take_state(p, p.terms[m], ws));
    }

private:
    TermState<T> take_state(const CrfProblem& p, const CrfTerm& t, Workspace& ws) const {
        TermState<T> s = {};
        if (!t.exact) {
            s.whole = ws.take<uint8_t>("whole", LatticeView<T>(t, p.num_points).num_segments());
            s.rows = ws.take<T>("rows", (t.num_vertices + 1) * pitch);
            return s;
        }
        ExactView<T>& g = s.exact;
        const int64_t extents[2] = {p.width, p.height};
        const double sigmas[2] = {t.sx, t.sy};
        g.height = p.height;
        g.width = p.width;
        for (int axis = 0; axis < 2; ++axis) {
            g.reach[axis] = reach_of(sigmas[axis], extents[axis]);
            g.kernel[axis] = ws.take<T>("kernel", g.reach[axis] + kStrip);
            g.response[axis] = ws.take<T>("response", extents[axis]);
        }
        g.before = ws.take<T>("before", p.num_points);
        g.after = ws.take<T>("after", p.num_points);
        g.down = next;
        g.rows = s.rows = ws.take<T>("rows", p.num_points * pitch);
        return s;
    }
};

template <class T>
class MeanField {
public:
    MeanField(const CrfProblem& p, const CrfDeviceBuffers<T>& b, cudaStream_t stream) : p_(p), b_(b), stream_(stream) {}

    void run() {
        const dim3 tiles = tiles_of(b_.pitch);
        launch(logits_kernel<T>, tiles, dim3(kTile, kTileRows), 0, stream_, static_cast<const T*>(p_.scores),
               p_.num_classes, p_.num_points, p_.energies, static_cast<T>(p_.clip), b_.logits, b_.pitch);
        OVS_CHECK_LAUNCH("dense_crf: logits");
        if (p_.iterations > 0) {
            for (int m = 0; m < p_.num_terms; ++m) start(m);
        }
        update(0, p_.iterations == 0);
        for (int64_t step = 1; step <= p_.iterations; ++step) {
            for (int m = 0; m < p_.num_terms; ++m) send(m);
            update(p_.num_terms, step == p_.iterations);
        }
        if (p_.labels != nullptr) return;
        launch(planes_kernel<T>, tiles, dim3(kTile, kTileRows), 0, stream_, static_cast<const T*>(b_.q), b_.pitch,
               p_.num_classes, p_.num_points, static_cast<T*>(p_.out));
        OVS_CHECK_LAUNCH("dense_crf: planes");
    }

private:
    dim3 tiles_of(int64_t classes) const {
        return dim3(static_cast<unsigned>(ceil_div(p_.num_points, kTile)),
                    static_cast<unsigned>(std::min<int64_t>(ceil_div(classes, kTile), kMaxGridYZ)));
    }
    LatticeRows<T> lattice(int m) const {
        return LatticeRows<T>(LatticeView<T>(p_.terms[m], p_.num_points), b_.states[at(m)].whole, b_.partial, stream_);
    }
    static std::size_t at(int m) { return static_cast<std::size_t>(m); }

    void start(int m) const {
        const CrfTerm& t = p_.terms[m];
        const TermState<T>& s = b_.states[at(m)];
        const double factor = t.compat_rank == 0 ? t.compat : 1.0;
        TermView<T> view = {nullptr, nullptr, s.rows, 0};
        if (t.exact) {
            start_exact(t, s.exact, factor);
        } else {
            lattice(m).find_segments(s.whole);
            lattice(m).normalize(p_.normalization, false, factor, b_.norm, b_.ones);
            view = {t.vertices, static_cast<const T*>(t.weights), s.rows, t.num_features + 1};
        }
        launch(store_term_kernel<T>, dim3(1), dim3(1), 0, stream_, view, b_.terms + m);
        OVS_CHECK_LAUNCH("dense_crf: term");
    }

    void start_exact(const CrfTerm& t, const ExactView<T>& g, double factor) const {
        launch(exact_kernel<T>, dim3(1), dim3(kRowThreads), 0, stream_, g, t.sx, t.sy);
        OVS_CHECK_LAUNCH("dense_crf: exact Gaussian");
        const NormPowers powers = norm_powers(static_cast<int>(p_.normalization), false);
        launch(exact_factors_kernel<T>, grid_for(p_.num_points), dim3(kRowThreads), 0, stream_, g, powers.before,
               powers.after, factor);
        OVS_CHECK_LAUNCH("dense_crf: factors");
    }

    // What the pixels of a term will read, into its rows.
    void send(int m) const {
        const CrfTerm& t = p_.terms[m];
        T* const rows = b_.states[at(m)].rows;
        const bool table = t.compat_rank > 0;
        if (t.exact) {
            send_exact(b_.states[at(m)].exact);
        } else {
            lattice(m).template spread<kPack>(b_.q, b_.pitch, false, table ? b_.next : rows, table ? rows : b_.next);
        }
        if (!table) return;
        // The exact Gaussian's sums are multiplied on their way back from the rows that it no longer needs.
        if (t.exact) {
            OVS_CUDA(cudaMemcpyAsync(b_.next, rows, static_cast<std::size_t>(p_.num_points * b_.pitch) * sizeof(T),
                                     cudaMemcpyDeviceToDevice, stream_));
        }
        const RowShape shape(b_.pitch / kPack);
        const int64_t most = t.exact ? p_.num_points : t.num_vertices;
        launch(multiply_kernel<T>, shape.grid(most), dim3(kRowThreads), 0, stream_, shape,
               static_cast<const T*>(b_.next), rows, t.exact ? nullptr : t.count, most, b_.pitch,
               static_cast<const T*>(t.table), t.compat_rank, p_.num_classes);
        OVS_CHECK_LAUNCH("dense_crf: compatibility");
    }

    void send_exact(const ExactView<T>& g) const {
        const RowShape shape(b_.pitch / kPack);
        launch(down_kernel<T>, shape.grid(ceil_div(g.height, kStrip) * g.width), dim3(kRowThreads), 0, stream_, shape,
               g, static_cast<const T*>(b_.q), b_.pitch);
        OVS_CHECK_LAUNCH("dense_crf: sums along columns");
        launch(across_kernel<T>, shape.grid(ceil_div(g.width, kStrip) * g.height), dim3(kRowThreads), 0, stream_, shape,
               g, b_.pitch);
        OVS_CHECK_LAUNCH("dense_crf: sums along rows");
    }

    // Q = softmax(logits + the messages of the first `num_terms` terms); the last time labels if they are asked for.
    void update(int num_terms, bool last) const {
        Update<T> u = {};
        u.logits = b_.logits;
        u.terms = b_.terms;
        u.num_terms = num_terms;
        u.num_points = p_.num_points;
        u.pitch = b_.pitch;
        u.labels = last ? p_.labels : nullptr;
        u.label_bytes = p_.label_bytes;
        const int64_t packs = b_.pitch / kPack;
        u.group = 1;
        while (u.group < kWarpSize && u.group < packs) u.group *= 2;
        const int64_t held = ceil_div(packs, u.group);
        u.q = u.labels != nullptr && held <= kMostHeld ? nullptr : b_.q;
        const dim3 grid(
            static_cast<unsigned>(std::min(ceil_div(p_.num_points, int64_t{kRowThreads / u.group}), kMaxRowBlocks)));
        launch(held == 1   ? update_kernel<T, 1>
               : held == 2 ? update_kernel<T, 2>
                           : update_kernel<T, 0>,
               grid, dim3(kRowThreads), 0, stream_, u);
        OVS_CHECK_LAUNCH("dense_crf: update");
    }

    const CrfProblem& p_;
    const CrfDeviceBuffers<T>& b_;
    cudaStream_t stream_;
};

// values [N, C] to rows [N, pitch].
template <class T>
__global__ void pad_kernel(const RowShape shape, const T* values, int64_t num_points, int64_t num_classes, T* rows,
                           int64_t pitch) {
    for_each_pack(shape, num_points, [&](int64_t i, int64_t pack) {
        Pack<T, kPack> p = zero_pack<T, kPack>();
#pragma unroll
        for (int k = 0; k < kPack; ++k) {
            const int64_t c = pack * kPack + k;
            if (c < num_classes) p.v[k] = values[i * num_classes + c];
        }
        pack_at<T, kPack>(rows + i * pitch + pack * kPack) = p;
    });
}

template <class T>
void run_filter(const CrfProblem& p, const CrfDeviceBuffers<T>& b, cudaStream_t stream) {
    const RowShape shape(b.pitch / kPack);
    launch(pad_kernel<T>, shape.grid(p.num_points), dim3(kRowThreads), 0, stream, shape,
           static_cast<const T*>(p.scores), p.num_points, p.num_classes, b.q, b.pitch);
    OVS_CHECK_LAUNCH("permutohedral_filter: pad");
    const TermState<T>& s = b.states[0];
    const LatticeRows<T> lattice(LatticeView<T>(p.terms[0], p.num_points), s.whole, b.partial, stream);
    lattice.find_segments(s.whole);
    lattice.normalize(p.normalization, p.transpose, 1.0, b.norm, b.ones);
    lattice.template spread<kPack>(b.q, b.pitch, p.transpose, s.rows, b.next);
    lattice.template slice<kPack>(s.rows, b.pitch, 1.0, static_cast<T*>(p.out), p.num_classes);
}

template <class T>
void run(const CrfProblem& p, bool filter, void* workspace, std::size_t bytes, cudaStream_t stream) {
    Workspace ws(workspace, bytes);
    const CrfDeviceBuffers<T> b(p, filter, ws);
    if (filter) {
        run_filter<T>(p, b, stream);
    } else {
        MeanField<T>(p, b, stream).run();
    }
}

bool is_empty(const CrfProblem& p) { return p.num_points == 0 || p.num_classes == 0; }

std::size_t workspace_bytes(const CrfProblem& p, bool filter, DType dtype) {
    if (is_empty(p)) return 0;
    Workspace counter(nullptr, 0);
    if (dtype == DType::kFloat64) {
        (void)CrfDeviceBuffers<double>(p, filter, counter);
    } else {
        (void)CrfDeviceBuffers<float>(p, filter, counter);
    }
    return counter.used();
}

void dispatch(const CrfProblem& p, bool filter, DType dtype, void* workspace, std::size_t bytes, int device,
              void* stream) {
    if (is_empty(p)) return;
    for (int m = 0; m < p.num_terms; ++m) {
        OVS_REQUIRE(p.terms[m].exact || p.terms[m].count != nullptr, "dense_crf: a lattice without its count");
    }
    const DeviceGuard guard(device);
    if (dtype == DType::kFloat64) {
        run<double>(p, filter, workspace, bytes, as_stream(stream));
    } else {
        run<float>(p, filter, workspace, bytes, as_stream(stream));
    }
}

}  // namespace

std::size_t dense_crf_cuda_workspace_bytes(const CrfParams& params, DType dtype) {
    return workspace_bytes(problem_of(params), false, dtype);
}

std::size_t permutohedral_filter_cuda_workspace_bytes(const FilterParams& params, DType dtype) {
    return workspace_bytes(problem_of(params), true, dtype);
}

void dense_crf_cuda(const CrfParams& params, DType dtype, void* workspace, std::size_t bytes, int device,
                    void* stream) {
    dispatch(problem_of(params), false, dtype, workspace, bytes, device, stream);
}

void permutohedral_filter_cuda(const FilterParams& params, DType dtype, void* workspace, std::size_t bytes, int device,
                               void* stream) {
    dispatch(problem_of(params), true, dtype, workspace, bytes, device, stream);
}

}  // namespace ovs
