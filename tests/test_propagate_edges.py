"""`lp_graph` at its borders: nothing at all, isolated nodes, components, NaN and Inf, extreme scales, early stops."""

import math

import numpy as np
import propagate_inputs as inputs
import pytest
import scipy.sparse
import torch
from propagate_inputs import SINGLE, SINGLE_RESIDUAL

from ovs_kernels import lp_graph
from ovs_kernels.testing import assert_close_rel

pytestmark = pytest.mark.filterwarnings("ignore:Sparse")  # what torch says about its own CSR tensors


@pytest.mark.parametrize("shape", [(0, 3), (4, 0), (0, 0)])
@pytest.mark.parametrize("mode", ["official", "exact"])
def test_zero_extents(device, to_device, shape, mode):
    matrix = inputs.weights(*((4, 3) if shape[0] else (0, 0)), isolated=False)
    x, info = lp_graph(to_device(inputs.to_torch(matrix)), to_device(torch.empty(shape)), mode=mode, return_info=True)
    assert x.shape == shape
    assert info.iterations.tolist() == [0] * shape[1]
    assert info.residuals.tolist() == [0.0] * shape[1]


@pytest.mark.parametrize("num_nodes", [1, 5, 70])
def test_no_links_at_all(device, to_device, num_nodes):
    empty = scipy.sparse.csr_array((num_nodes, num_nodes), dtype=np.float32)
    scores = to_device(inputs.scores(num_nodes, 4))
    for mode in ("official", "exact"):
        # L is the identity: one step along r = y ends at x = y.
        x, info = lp_graph(empty, scores, mode=mode, return_info=True)
        assert_close_rel(x, scores.cpu(), 1e-6)
        assert info.iterations.tolist() == [1] * 4
    assert torch.equal(x, scores)


def test_isolated_nodes_keep_their_scores(device, to_device):
    matrix, scores = inputs.weights(60, 8), inputs.scores(60, 5)
    x = lp_graph(to_device(inputs.to_torch(matrix)), to_device(scores), mode="exact").cpu()
    lonely = [0, 30, 59]
    assert (np.diff(matrix.indptr)[lonely] == 0).all()
    assert torch.equal(x[lonely], scores[lonely])
    assert_close_rel(x, inputs.exact(matrix, scores), SINGLE)


def test_stored_zeros_are_no_links(device, to_device):
    # Node 2 has stored entries, all of them zero.
    graph = torch.sparse_csr_tensor([0, 2, 4, 6], [1, 2, 0, 2, 0, 1], [1.0, 0.0, 1.0, 0.0, 0.0, 0.0], size=(3, 3))
    scores = torch.tensor([[3.0], [0.0], [7.0]])
    x = lp_graph(to_device(graph), to_device(scores), alpha=0.5, mode="exact").cpu()
    torch.testing.assert_close(x, torch.tensor([[4.0], [2.0], [7.0]]), rtol=1e-6, atol=0)


@pytest.mark.parametrize("mode", ["official", "exact"])
def test_components_do_not_mix(device, to_device, mode):
    first, second = inputs.weights(31, 6, 1), inputs.weights(23, 4, 2)
    both = scipy.sparse.block_diag((first, second), format="csr").astype(np.float32)
    scores = inputs.scores(54, 3)
    scores[31:] = 0.0
    x = lp_graph(both, to_device(scores), mode=mode).cpu()
    assert (x[31:] == 0).all()
    alone = lp_graph(first, to_device(scores[:31]), mode=mode)
    assert_close_rel(x[:31], alone.cpu(), SINGLE)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("mode", ["official", "exact"])
def test_bad_score_spoils_its_class_only(device, to_device, bad, mode):
    graph, scores = to_device(inputs.to_torch(inputs.weights(70, 6))), inputs.scores(70, 40)
    clean = lp_graph(graph, to_device(scores), mode=mode)
    for node in (0, 5, 69):  # an isolated node, too
        spoiled = scores.clone()
        spoiled[node, [2, 35]] = bad
        x, info = lp_graph(graph, to_device(spoiled), mode=mode, return_info=True)
        assert x[:, [2, 35]].isnan().all()
        assert info.residuals[[2, 35]].isnan().all()
        assert info.iterations[[2, 35]].tolist() == [0, 0]
        others = [c for c in range(40) if c not in (2, 35)]
        assert torch.equal(x[:, others], clean[:, others])
        assert info.residuals[others].isfinite().all()


@pytest.mark.parametrize("mode", ["official", "exact"])
def test_class_of_zeros(device, to_device, mode):
    graph, scores = to_device(inputs.to_torch(inputs.weights(40, 6))), inputs.scores(40, 3)
    scores[:, 1] = 0.0
    x, info = lp_graph(graph, to_device(scores), mode=mode, return_info=True)
    assert (x[:, 1] == 0).all()
    assert info.iterations[1] == 0
    assert info.residuals[1] == 0
    assert (info.iterations[[0, 2]] > 0).all()
    nothing = lp_graph(graph, to_device(torch.zeros(40, 2)), mode=mode)
    assert (nothing == 0).all()


def test_root_of_degree_stops_after_one_step(device, to_device):
    # sqrt(deg) is an eigenvector of S with eigenvalue 1: y is solved by y / (1 - alpha).
    matrix = inputs.weights(40, 12, isolated=False)
    scores = torch.from_numpy(np.sqrt(np.asarray(matrix.sum(1)))).reshape(-1, 1)
    x, info = lp_graph(to_device(inputs.to_torch(matrix)), to_device(scores), tol=1e-4, return_info=True)
    assert_close_rel(x, 20 * scores, 1e-5)
    assert info.iterations.tolist() == [1]
    assert info.residuals.item() < 1e-5


def test_classes_freeze_one_by_one(device, to_device):
    matrix, scores = inputs.weights(80, 10, isolated=False), inputs.scores(80, 40)
    # Close to an eigenvector, at different distances.
    root = torch.from_numpy(np.sqrt(np.asarray(matrix.sum(1)))).reshape(-1, 1)
    scores = root + scores * torch.logspace(-4, 0, 40)
    options = {"alpha": 0.8, "tol": 1e-3, "max_iter": 50}
    expected, steps = inputs.official(matrix, scores, **options)
    x, info = lp_graph(to_device(inputs.to_torch(matrix)), to_device(scores), **options, return_info=True)
    # A residual that lands within rounding of tol may stop a step apart; these do not.
    assert info.iterations.tolist() == steps.tolist()
    assert len(set(steps.tolist())) > 3
    assert_close_rel(x, expected, SINGLE)


@pytest.mark.parametrize("exponent", [60, 110, -60, -110])
@pytest.mark.parametrize("mode", ["official", "exact"])
def test_scale_of_scores_does_not_matter(device, to_device, exponent, mode):
    graph, scores = to_device(inputs.to_torch(inputs.weights(70, 6))), to_device(inputs.scores(70, 9))
    scale = 2.0**exponent
    x, info = lp_graph(graph, scores, mode=mode, return_info=True)
    scaled, scaled_info = lp_graph(graph, scale * scores, mode=mode, return_info=True)
    assert torch.equal(scaled, scale * x)
    assert torch.equal(scaled_info.iterations, info.iterations)
    assert torch.equal(scaled_info.residuals, info.residuals)


@pytest.mark.parametrize("scale", [1e-30, 1e-10, 1e10, 1e30])
@pytest.mark.parametrize("mode", ["official", "exact"])
def test_scale_of_weights_does_not_matter(device, to_device, scale, mode):
    matrix, scores = inputs.weights(50, 6), inputs.scores(50, 3)
    x = lp_graph((matrix * np.float32(scale)).astype(np.float32), to_device(scores), mode=mode)
    expected = inputs.exact(matrix, scores) if mode == "exact" else inputs.official(matrix, scores)[0]
    assert_close_rel(x, expected, SINGLE)


def test_vanishing_degree_is_no_degree(device, to_device):
    # 1e-39 is below the smallest normal float32: node 2 counts as isolated.
    weak = np.array([[0, 1, 0], [1, 0, 1e-39], [0, 1e-39, 0]], np.float32)
    scores = torch.tensor([[3.0], [0.0], [7.0]])
    x = lp_graph(scipy.sparse.csr_array(weak), to_device(scores), alpha=0.5, mode="exact").cpu()
    torch.testing.assert_close(x, torch.tensor([[4.0], [2.0], [7.0]]), rtol=1e-6, atol=0)


def test_exact_mode_is_linear(device, to_device):
    scores = inputs.scores(60, 3)
    scores[:, 2] = scores[:, 0] - 2.5 * scores[:, 1]
    x = lp_graph(inputs.weights(60, 8), to_device(scores), mode="exact").cpu()
    assert_close_rel(x[:, 2], x[:, 0] - 2.5 * x[:, 1], 2 * SINGLE)


def measured_residuals(matrix, scores, x, alpha=0.95):
    y = scores.double().numpy()
    return np.linalg.norm(y - inputs.system(matrix, alpha) @ x.cpu().double().numpy(), axis=0) / np.linalg.norm(
        y, axis=0
    )


def test_exact_mode_stops_at_max_iter(device, to_device):
    matrix, scores = inputs.weights(60, 8), inputs.scores(60, 3)
    x, rough = lp_graph(matrix, to_device(scores), mode="exact", max_iter=5, return_info=True)
    assert rough.iterations.tolist() == [5, 5, 5]
    # Of the result, in which isolated nodes have no residual.
    np.testing.assert_allclose(rough.residuals.cpu().numpy(), measured_residuals(matrix, scores, x), rtol=1e-3)
    _, good = lp_graph(matrix, to_device(scores), mode="exact", return_info=True)
    assert (good.residuals < rough.residuals / 10).all()


@pytest.mark.parametrize("tol", [1e-1, 1e-3, 1e-4])
def test_exact_mode_reaches_tol(device, to_device, tol):
    matrix, scores = inputs.weights(60, 8), inputs.scores(60, 3)
    x, info = lp_graph(matrix, to_device(scores), mode="exact", tol=tol, return_info=True)
    residuals = measured_residuals(matrix, scores, x)
    assert (residuals <= 1.05 * tol + SINGLE_RESIDUAL).all()
    np.testing.assert_allclose(info.residuals.cpu().numpy(), residuals, rtol=0.05, atol=SINGLE_RESIDUAL)
    assert (info.iterations.cpu().numpy() < 30).all()


@pytest.mark.parametrize("alpha", [0.5, 0.95, 0.999])
def test_exact_mode_ends_where_rounding_keeps_it_from_tol(device, to_device, alpha):
    x, info = lp_graph(
        inputs.weights(40, 6), to_device(inputs.scores(40, 2)), alpha=alpha, mode="exact", tol=1e-30, return_info=True
    )
    assert x.isfinite().all()
    assert (info.residuals < 1e-3).all()


def test_negative_weights_without_check(device, to_device):
    # S = [[0, -1], [-1, 0]] with degrees given by the diagonal's share: still symmetric and solvable.
    signed = np.array([[2.0, -0.5], [-0.5, 2.0]], np.float32)
    scores = torch.tensor([[1.0], [0.0]])
    x = lp_graph(scipy.sparse.csr_array(signed), to_device(scores), alpha=0.5, mode="exact", check=False)
    dense = np.eye(2) - 0.5 * signed / 1.5
    assert_close_rel(x, np.linalg.solve(dense, [[1.0], [0.0]]), SINGLE)
