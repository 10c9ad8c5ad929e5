"""The definition itself: numbers worked out by hand, NumPy's logarithms, the certificate of optimality, faults."""

import math

import numpy as np
import pytest
import torch
import transport_inputs as inputs
from transport_inputs import DOUBLE

from ovs_kernels.reference import transport as reference
from ovs_kernels.testing import assert_close_rel

OPTIONS = {"epsilon": 0.1, "max_iter": 50, "tol": 1e-6, "exact_iters": False, "domain": "auto", "normalize": False}


def solve(cost, a, b=None, **options):
    wide = None if b is None else b.double()
    return reference.sinkhorn(cost.double(), a.double(), wide, **OPTIONS | options)


def test_one_iteration_by_hand():
    # K = [[1, 1/2], [1/4, 1]]; K 1 = (3/2, 5/4), mu = (1/2, 2/5); K^T mu = (3/5, 13/20), nu = (5/6, 10/13).
    cost = -torch.tensor([[1.0, 0.5], [0.25, 1.0]], dtype=torch.float64).log()
    a = torch.tensor([[0.75, 0.5]], dtype=torch.float64)
    b = torch.tensor([0.5, 0.5], dtype=torch.float64)
    a /= 1.25
    for domain in ("plain", "log"):
        f, g, errors, status = solve(cost, a, b, epsilon=1.0, max_iter=1, domain=domain)
        torch.testing.assert_close(f.exp() * 1.25, torch.tensor([[0.5, 0.4]], dtype=torch.float64))
        torch.testing.assert_close(g.exp() / 1.25, torch.tensor([[5 / 6, 10 / 13]], dtype=torch.float64))
        # mu (K nu) = (0.5 (5/6 + 5/13), 0.4 (5/24 + 10/13)) against (3/4, 1/2), all over 5/4
        rows = np.array([0.5 * (5 / 6 + 5 / 13), 0.4 * (5 / 24 + 10 / 13)]) / 1
        assert errors.item() == pytest.approx(np.abs(rows - [0.6, 0.4]).sum(), rel=1e-12)
        assert status.tolist() == [1, 0, int(domain == "log")]


@pytest.mark.parametrize("domain", ["plain", "log"])
@pytest.mark.parametrize("iterations", [1, 2, 7, 30])
def test_iterations_are_those_of_numpy(domain, iterations):
    cost, a, b = inputs.costs(13, 9), inputs.distributions(3, 13).double(), inputs.distributions(3, 9, 5)
    expected, errors = inputs.plans(cost, a, b, iterations=iterations)
    f, g, measured, status = solve(cost, a, b, max_iter=iterations, exact_iters=True, domain=domain, normalize=True)
    assert_close_rel(inputs.plan_of(cost, f, g), expected, DOUBLE)
    np.testing.assert_allclose(measured.numpy(), errors[:, -1], atol=1e-14)
    assert status.tolist() == [iterations, 0, int(domain == "log")]


@pytest.mark.parametrize("domain", ["plain", "log"])
@pytest.mark.parametrize("tol", [1e-2, 1e-5, 1e-9])
def test_stops_one_iteration_after_the_error_is_met(domain, tol):
    cost, a = inputs.costs(20, 25), inputs.distributions(4, 20)
    _, errors = inputs.plans(cost, a, iterations=60)
    met = int((errors.max(0) <= tol).argmax())  # index of the iteration
    _, _, measured, status = solve(cost, a, tol=tol, max_iter=100, domain=domain)
    assert status[0] == met + 2
    np.testing.assert_allclose(measured.numpy(), errors[:, met + 1], rtol=1e-5, atol=1e-13)


def test_readouts_are_sums_of_the_plan():
    cost, a = inputs.costs(11, 8), inputs.distributions(3, 11).double()
    expected, _ = inputs.plans(cost, a)
    for readout in reference.READOUTS:
        options = OPTIONS | {"exact_iters": True}
        result = reference.transport_map(cost.double(), a, None, readout=readout, **options)[0]
        assert_close_rel(result, inputs.read(cost, expected, readout), DOUBLE)


def test_domain_is_chosen_by_the_spread_of_the_costs():
    cost = torch.tensor([[1000.0, 1006.0]])
    assert not reference.uses_log_domain(cost, 0.1, "auto")
    assert reference.uses_log_domain(cost, 0.0999, "auto")
    assert reference.uses_log_domain(cost, 10.0, "log")
    assert not reference.uses_log_domain(cost, 1e-9, "plain")
    assert not reference.uses_log_domain(torch.empty(0, 4), 1e-9, "auto")


def test_guards_are_counted():
    # K is zero in float32 but for the diagonal; the first row is zero as a whole.
    cost = torch.tensor([[200.0, 200.0], [200.0, 0.0]])
    options = OPTIONS | {"domain": "plain", "epsilon": 1.0, "max_iter": 1}
    f, g, _, status = reference.sinkhorn(cost, torch.tensor([[0.5, 0.5]]), None, **options)
    assert status.tolist() == [1, 2, 0]  # K nu in row 0, K^T mu in column 0
    assert f.isfinite().all()
    assert g.isfinite().all()


def test_faults():
    cost, a, b = inputs.costs(5, 4), inputs.distributions(3, 5), inputs.distributions(3, 4)
    assert reference.cost_fault(cost) is None
    for bad in (-1.0, math.nan, math.inf):
        spoiled = cost.clone()
        spoiled[3, 2] = bad
        assert reference.cost_fault(spoiled) == (3, 2)
        spoiled = a.clone()
        spoiled[2, 4] = bad
        assert reference.marginal_fault(spoiled, b, True, 4) == ("a", 2, 4)
        spoiled = b.clone()
        spoiled[1, 3] = bad
        assert reference.marginal_fault(a, spoiled, True, 4) == ("b", 1, 3)
        assert reference.marginal_fault(a, spoiled[1], True, 4) == ("b", 0, 3)
    scaled = a.clone()
    scaled[1] *= 1.001
    assert reference.marginal_fault(a, b, False, 4) is None
    assert reference.marginal_fault(scaled, b, False, 4) == ("mass", 1, 0)
    assert reference.marginal_fault(scaled, None, False, 4) == ("mass", 1, 0)
    assert reference.marginal_fault(scaled, b, True, 4) is None
    empty = b.clone()
    empty[2] = 0.0
    assert reference.marginal_fault(a, empty, True, 4) == ("mass", 2, 0)
    gone = a.clone()
    gone[2] = 0.0
    assert reference.marginal_fault(gone, empty, False, 4) is None
    assert reference.marginal_fault(a, None, True, 0) == ("mass", 0, 0)
