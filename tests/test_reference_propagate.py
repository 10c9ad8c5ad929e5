"""The definition itself: numbers worked out by hand, SciPy's conjugate gradients, dense solves, faults of a graph."""

import numpy as np
import propagate_inputs as inputs
import pytest
import scipy.sparse
import torch

from ovs_kernels.reference import propagate as reference
from ovs_kernels.testing import assert_close_rel


def propagate(matrix, scores, **options):
    settings = {"alpha": 0.95, "mode": "exact", "max_iter": None, "tol": 1e-13} | options
    return reference.lp_graph(*inputs.parts(matrix, torch.float64), None, scores.double(), **settings)


def test_two_nodes_step_by_step():
    # r = p = (3, 0), rho = 9, q = L p = (3, -3/2), <p, q> = 9, a = 1: x = (3, 0), r = (0, 3/2), |r| = |y|/2.
    # b = (9/4)/9 = 1/4, p = (3/4, 3/2), q = (0, 9/8), a = (9/4)/(27/16) = 4/3: x = (4, 2), r = 0.
    pair = torch.tensor([[0.0, 5.0], [5.0, 0.0]], dtype=torch.float64).to_sparse_coo().coalesce()
    arrays = torch.tensor([0, 1, 2]), pair.indices()[1], pair.values()
    scores = torch.tensor([[3.0], [0.0]], dtype=torch.float64)
    options = {"alpha": 0.5, "mode": "official", "tol": 1e-13}
    x, steps, residuals = reference.lp_graph(*arrays, None, scores, max_iter=1, **options)
    assert (x.flatten().tolist(), steps.tolist(), residuals.tolist()) == ([3.0, 0.0], [1], [0.5])
    x, steps, residuals = reference.lp_graph(*arrays, None, scores, max_iter=10, **options)
    torch.testing.assert_close(x.flatten(), torch.tensor([4.0, 2.0], dtype=torch.float64))
    assert steps.tolist() == [2]
    assert residuals.item() < 1e-15


@pytest.mark.parametrize("size", [(1, 0), (2, 2), (9, 3), (80, 10)])
def test_official_is_ten_steps_of_scipy(size):
    matrix, scores = inputs.weights(*size), inputs.scores(size[0], 5)
    expected, steps = inputs.official(matrix, scores)
    x, taken, _ = propagate(matrix, scores, mode="official", tol=1e-6)
    assert_close_rel(x, expected, 1e-9)
    if size[0] > 9:
        assert taken.tolist() == steps.tolist()


@pytest.mark.parametrize("size", [(1, 0), (2, 2), (9, 3), (80, 10)])
def test_exact_is_the_dense_solve(size):
    matrix, scores = inputs.weights(*size), inputs.scores(size[0], 5)
    x, _, residuals = propagate(matrix, scores)
    assert_close_rel(x, inputs.exact(matrix, scores), 1e-11)
    assert (residuals < 1e-12).all()


@pytest.mark.parametrize("alpha", [0.5, 0.95, 0.999])
@pytest.mark.parametrize("tol", [1e-2, 1e-6, 1e-10])
def test_step_limit_suffices(alpha, tol):
    # A path graph has eigenvalues all over [-1, 1]: slow for conjugate gradients.
    chain = scipy.sparse.diags_array([np.ones(399), np.ones(399)], offsets=[-1, 1]).tocsr()
    _, steps, residuals = propagate(chain, inputs.scores(400, 2), alpha=alpha, tol=tol)
    assert (residuals <= 1.01 * tol).all()
    assert (steps < reference.step_limit(alpha, tol)).all()


def test_isolated_nodes_and_bad_classes():
    matrix, scores = inputs.weights(20, 4), inputs.scores(20, 3)
    scores[3, 1] = torch.inf
    x, steps, residuals = propagate(matrix, scores)
    assert torch.equal(x[[0, 10, 19]][:, [0, 2]], scores.double()[[0, 10, 19]][:, [0, 2]])
    assert x[:, 1].isnan().all()
    assert steps[1] == 0
    assert residuals.isnan().tolist() == [False, True, False]


def test_faults():
    good = inputs.parts(inputs.weights(20, 4))
    assert reference.graph_fault(*good) is None
    for index, fault in enumerate(("row starts", "columns", "weights")):
        bad = [part.clone() for part in good]
        bad[index][-1] = -5
        assert reference.graph_fault(*bad)[0] == fault
    bad = good[2].clone()
    bad[0] *= 2
    assert reference.graph_fault(good[0], good[1], bad)[0] == "asymmetric"
