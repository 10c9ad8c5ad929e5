"""`ovs_kernels.lp_graph`: every backend against numbers worked out by hand, SciPy, and dense solves."""

import types

import numpy as np
import propagate_inputs as inputs
import pytest
import scipy.sparse
import torch
from propagate_inputs import DOUBLE, SINGLE, SINGLE_RESIDUAL

from ovs_kernels import lp_graph
from ovs_kernels.testing import assert_close_rel

pytestmark = pytest.mark.filterwarnings("ignore:Sparse")  # what torch says about its own CSR tensors

# (N, links per node, C): around the vectors of 8 to 32 classes, blocks of 64 rows, and panels of columns.
SIZES = [
    (1, 0, 1),
    (2, 2, 2),
    (7, 3, 3),
    (40, 5, 7),
    (63, 60, 8),
    (65, 10, 9),
    (64, 6, 17),
    (130, 40, 21),
    (200, 8, 33),
    (700, 60, 24),  # two panels in float32, more in float64
    (520, 80, 32),
    (90, 9, 70),
]
SMALL = [(1, 0, 1), (2, 2, 2), (7, 3, 3), (40, 5, 9), (33, 30, 17), (20, 4, 33), (70, 8, 24)]


def sizes_of(device):
    return SMALL if device == "emulated" else SIZES


def text(size):
    return "N={}, links={}, C={}".format(*size)


# Worked out by hand -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("weight", [1.0, 0.01, 300.0])
def test_two_nodes_by_hand(device, to_device, dtype, weight):
    # S = [[0, 1], [1, 0]] for every weight; with alpha = 1/2 the inverse of L is 4/3 [[1, 1/2], [1/2, 1]].
    graph = torch.tensor([[0.0, weight], [weight, 0.0]], dtype=dtype).to_sparse_csr()
    scores = torch.tensor([[3.0, 0.0], [0.0, 0.0]], dtype=dtype)
    expected = torch.tensor([[4.0, 0.0], [2.0, 0.0]], dtype=dtype)
    for mode in ("official", "exact"):
        x, info = lp_graph(to_device(graph), to_device(scores), alpha=0.5, mode=mode, return_info=True)
        assert x.dtype == dtype
        torch.testing.assert_close(x.cpu(), expected, rtol=3e-6, atol=3e-6)
        assert info.iterations.dtype == torch.int32
        assert info.residuals.dtype == torch.float64
        assert info.iterations.tolist() == [2, 0]
        assert info.residuals[1] == 0


def test_one_step_by_hand(device, to_device):
    # One step from zero along r = y: a = <y, y> / <y, L y> = 9 / 9, x = y, |r| / |y| = 1/2.
    graph, scores = torch.tensor([[0.0, 2.0], [2.0, 0.0]]).to_sparse_csr(), torch.tensor([[3.0], [0.0]])
    x, info = lp_graph(to_device(graph), to_device(scores), alpha=0.5, max_iter=1, return_info=True)
    torch.testing.assert_close(x.cpu(), scores, rtol=1e-6, atol=1e-6)
    assert info.iterations.tolist() == [1]
    assert info.residuals.tolist() == pytest.approx([0.5], rel=1e-6)


def test_diagonal_by_hand(device, to_device):
    # A node linked only to itself: S = 1, X = Y / (1 - alpha). Its neighbour in the array has no links: X = Y.
    graph, scores = torch.tensor([[0.3, 0.0], [0.0, 0.0]]).to_sparse_csr(), torch.tensor([[1.0], [2.0]])
    x = lp_graph(to_device(graph), to_device(scores), alpha=0.75, mode="exact")
    torch.testing.assert_close(x.cpu(), torch.tensor([[4.0], [2.0]]), rtol=1e-6, atol=0)


def test_complete_graph_by_hand(device, to_device):
    # Four equal nodes, alpha = 3/4: L^-1 = 4/5 (I + 11^T), so y = (1, 2, 3, 4) -> 4/5 (y + 10).
    graph, scores = (torch.ones(4, 4) - torch.eye(4)).to_sparse_csr(), torch.tensor([[1.0], [2.0], [3.0], [4.0]])
    expected = torch.tensor([[8.8], [9.6], [10.4], [11.2]])
    for mode in ("official", "exact"):
        x = lp_graph(to_device(graph), to_device(scores), alpha=0.75, mode=mode)
        torch.testing.assert_close(x.cpu(), expected, rtol=3e-6, atol=0)


# Against SciPy and dense solves -----------------------------------------------------------------------------


def test_official_is_ten_steps_of_scipy(device, to_device):
    for size in sizes_of(device):
        matrix, scores = inputs.weights(*size[:2]), inputs.scores(size[0], size[2])
        expected, steps = inputs.official(matrix, scores)
        x, info = lp_graph(to_device(inputs.to_torch(matrix)), to_device(scores), return_info=True)
        assert x.shape == scores.shape
        assert x.is_contiguous()
        assert_close_rel(x, expected, SINGLE, message=text(size))
        # Tiny graphs are solved before ten steps; then rounding decides whether one step more is needed.
        assert np.abs(info.iterations.cpu().numpy() - steps).max(initial=0) <= (0 if steps.min() == 10 else 2), text(
            size
        )


def test_exact_is_the_dense_solve(device, to_device):
    for size in sizes_of(device):
        matrix, scores = inputs.weights(*size[:2]), inputs.scores(size[0], size[2])
        x, info = lp_graph(to_device(inputs.to_torch(matrix)), to_device(scores), mode="exact", return_info=True)
        assert_close_rel(x, inputs.exact(matrix, scores), 2 * SINGLE, message=text(size))
        assert (info.residuals <= SINGLE_RESIDUAL).all(), text(size)
        assert (info.iterations <= 60).all(), text(size)


@pytest.mark.parametrize("mode", ["official", "exact"])
def test_double_precision(mode):
    for size in SIZES:
        matrix, scores = inputs.weights(*size[:2]), inputs.scores(size[0], size[2]).double()
        graph = inputs.to_torch(matrix, torch.float64)
        if mode == "official":
            expected, _ = inputs.official(matrix, scores)
            x = lp_graph(graph, scores)
            assert_close_rel(x, expected, DOUBLE if size[0] > 7 else 1e-6, message=text(size))
        else:
            x, info = lp_graph(graph, scores, mode=mode, tol=1e-12, return_info=True)
            assert_close_rel(x, inputs.exact(matrix, scores), 1e-10, message=text(size))
            assert (info.residuals <= 2e-12).all(), text(size)
        assert x.dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_instruction_set(isa, dtype):
    for size in SIZES:
        matrix, scores = inputs.weights(*size[:2]), inputs.scores(size[0], size[2]).to(dtype)
        graph = inputs.to_torch(matrix, dtype)
        expected, _ = inputs.official(matrix, scores)
        assert_close_rel(lp_graph(graph, scores), expected, SINGLE, message=f"{isa}: {text(size)}")
        solved = lp_graph(graph, scores, mode="exact", tol=1e-7)
        assert_close_rel(solved, inputs.exact(matrix, scores), 2 * SINGLE, message=f"{isa}: {text(size)}")


@pytest.mark.parametrize(
    "num_classes", [1, 2, 7, 8, 9, 15, 16, 17, 24, 25, 31, 32, 33, 40, 64, 65, 100, 171, 256, 257, 290]
)
def test_every_number_of_classes(device, to_device, num_classes):
    matrix, scores = inputs.weights(30, 6), inputs.scores(30, num_classes)
    expected, _ = inputs.official(matrix, scores)
    assert_close_rel(lp_graph(to_device(inputs.to_torch(matrix)), to_device(scores)), expected, SINGLE)


@pytest.mark.parametrize("alpha", [0.01, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("max_iter", [1, 3, 25])
def test_parameters(device, to_device, alpha, max_iter):
    matrix, scores = inputs.weights(50, 6), inputs.scores(50, 4)
    options = {"alpha": alpha, "max_iter": max_iter, "tol": 1e-5}
    expected, _ = inputs.official(matrix, scores, **options)
    x, info = lp_graph(to_device(inputs.to_torch(matrix)), to_device(scores), **options, return_info=True)
    # A class may stop a step earlier or later than in float64; that is worth tol times the condition number.
    assert_close_rel(x, expected, max(SINGLE, 2e-5 / (1 - alpha)))
    assert (info.iterations <= max_iter).all()


def test_diagonal_counts_as_a_link(device, to_device):
    matrix, scores = inputs.weights(45, 8, diagonal=True), inputs.scores(45, 3)
    assert matrix.diagonal().any()
    graph = to_device(inputs.to_torch(matrix))
    assert_close_rel(lp_graph(graph, to_device(scores)), inputs.official(matrix, scores)[0], SINGLE)
    assert_close_rel(lp_graph(graph, to_device(scores), mode="exact"), inputs.exact(matrix, scores), SINGLE)


def test_more_nodes_than_16_bits_can_number(device, to_device):
    if device == "emulated":
        pytest.skip("too large for the emulator")
    # A ring of 70,000 nodes: its columns need 32 bits, and its blocks hold more rows than a sum in float32 may.
    count = 70_000
    ring = scipy.sparse.diags_array([np.ones(count - 1), np.ones(count - 1)], offsets=[-1, 1]).tolil()
    ring[0, count - 1] = ring[count - 1, 0] = 1.0
    scores = inputs.scores(count, 2)
    expected, steps = inputs.official(ring, scores)
    x, info = lp_graph(to_device(inputs.to_torch(ring.tocsr().astype(np.float32))), to_device(scores), return_info=True)
    assert_close_rel(x, expected, SINGLE)
    assert info.iterations.tolist() == steps.tolist()


# Kinds of graphs --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["csr_array", "csr_matrix", "coo_array", "csc_array", "lil_array", "bsr_array"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scipy_graphs(device, to_device, kind, dtype):
    matrix, scores = inputs.weights(40, 6), to_device(inputs.scores(40, 3))
    expected = lp_graph(to_device(inputs.to_torch(matrix)), scores)
    assert torch.equal(lp_graph(getattr(scipy.sparse, kind)(matrix.astype(dtype)), scores), expected)


@pytest.mark.parametrize("index", [torch.int32, torch.int64])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_torch_graphs(device, to_device, index, dtype):
    matrix, scores = inputs.weights(40, 6), to_device(inputs.scores(40, 3))
    indptr, indices, values = inputs.parts(matrix)
    values = values.half()
    expected = lp_graph(to_device(torch.sparse_csr_tensor(indptr, indices, values.float(), size=matrix.shape)), scores)
    given = torch.sparse_csr_tensor(indptr.to(index), indices.to(index), values.to(dtype), size=matrix.shape)
    assert torch.equal(lp_graph(to_device(given), scores), expected)


def own_graph(matrix, move, degrees=None, dtype=torch.float32):
    """What `ovs_kernels.Graph` offers, as far as `lp_graph` looks at it."""
    indptr, indices, values = inputs.parts(matrix, dtype)
    if degrees is None:
        degrees = torch.from_numpy(np.asarray(matrix.astype(np.float64).sum(1)).ravel()).to(dtype)
    return types.SimpleNamespace(
        indptr=move(indptr), indices=move(indices), weights=move(values), degrees=move(degrees)
    )


def test_own_graphs(device, to_device):
    for size in SMALL:
        matrix, scores = inputs.weights(*size[:2]), to_device(inputs.scores(size[0], size[2]))
        for mode in ("official", "exact"):
            expected = lp_graph(to_device(inputs.to_torch(matrix)), scores, mode=mode)
            assert_close_rel(lp_graph(own_graph(matrix, to_device), scores, mode=mode), expected, SINGLE)


def test_given_degrees_are_used(device, to_device):
    # With degrees twice the row sums, S is half as large: alpha counts half.
    matrix, scores = inputs.weights(40, 6), inputs.scores(40, 3)
    doubled = torch.from_numpy(2 * np.asarray(matrix.sum(1)).ravel())
    x = lp_graph(own_graph(matrix, to_device, doubled), to_device(scores), mode="exact", alpha=0.9)
    assert_close_rel(x, inputs.exact(matrix, scores, alpha=0.45), SINGLE)


def test_own_graphs_of_numpy():
    matrix, scores = inputs.weights(40, 6), inputs.scores(40, 3)
    graph = own_graph(matrix, lambda tensor: tensor.numpy())
    x = lp_graph(graph, scores.numpy())
    assert isinstance(x, np.ndarray)
    assert np.array_equal(x, lp_graph(own_graph(matrix, lambda tensor: tensor), scores).numpy())


def test_kind_and_dtype_of_the_scores_come_back(xp):
    to_kind, back = xp
    matrix, scores = inputs.weights(40, 6), inputs.scores(40, 3)
    expected = lp_graph(inputs.to_torch(matrix), scores)
    x, info = lp_graph(matrix, to_kind(scores), return_info=True)
    assert type(x) is type(to_kind(scores))
    assert type(info.residuals) is type(x)
    assert_close_rel(back(x), expected, SINGLE)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single(device, to_device, dtype):
    matrix, scores = inputs.weights(40, 6), inputs.scores(40, 3).to(dtype)
    x = lp_graph(to_device(inputs.to_torch(matrix)), to_device(scores))
    assert x.dtype == dtype
    assert torch.equal(x, lp_graph(to_device(inputs.to_torch(matrix)), to_device(scores.float())).to(dtype))


# Where no bit may change ------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["official", "exact"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_threads_do_not_change_a_bit(num_threads, mode, dtype):
    matrix, scores = inputs.weights(700, 60), inputs.scores(700, 40).to(dtype)
    graph, results = inputs.to_torch(matrix, dtype), []
    for count in (1, 2, 3, 8):
        num_threads(count)
        x, info = lp_graph(graph, scores, mode=mode, return_info=True)
        results.append((x, info.iterations, info.residuals))
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            assert torch.equal(one, two)


@pytest.mark.parametrize("mode", ["official", "exact"])
def test_info_and_check_do_not_change_a_bit(device, to_device, mode):
    graph, scores = to_device(inputs.to_torch(inputs.weights(70, 9))), to_device(inputs.scores(70, 5))
    plain = lp_graph(graph, scores, mode=mode)
    assert torch.equal(lp_graph(graph, scores, mode=mode), plain)
    assert torch.equal(lp_graph(graph, scores, mode=mode, check=False), plain)
    assert torch.equal(lp_graph(graph, scores, mode=mode, return_info=True)[0], plain)


def test_layouts(device, to_device):
    graph, scores = to_device(inputs.to_torch(inputs.weights(40, 6))), inputs.scores(40, 3)
    expected = lp_graph(graph, to_device(scores))
    wide = torch.full((42, 8), float("nan"))
    wide[1:-1, 2:5] = scores
    for view in (scores.T.contiguous().T, wide[1:-1, 2:5], scores.repeat_interleave(2, 0)[::2]):
        assert torch.equal(view, scores)
        assert torch.equal(lp_graph(graph, to_device(view)), expected)
    assert torch.equal(lp_graph(graph, to_device(scores[:, :1]).expand(40, 3)), expected[:, :1].expand(40, 3))


def test_inputs_are_not_written(device, to_device):
    graph, scores = to_device(inputs.to_torch(inputs.weights(40, 6))), to_device(inputs.scores(40, 3))
    copies = [part.clone() for part in (graph.crow_indices(), graph.col_indices(), graph.values(), scores)]
    for mode in ("official", "exact"):
        lp_graph(graph, scores, mode=mode)
    for part, copy in zip((graph.crow_indices(), graph.col_indices(), graph.values(), scores), copies, strict=True):
        assert torch.equal(part, copy)
