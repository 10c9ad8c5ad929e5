"""`sinkhorn` and `transport_map` at their borders: nothing at all, empty classes, zeros, tiny epsilon, large costs."""

import math

import numpy as np
import pytest
import scipy.optimize
import torch
import transport_inputs as inputs
from transport_inputs import POTENTIAL, SINGLE

from ovs_kernels import sinkhorn, transport_map
from ovs_kernels.testing import assert_close_rel

READOUTS = ("receiver", "source", "plan_cost")
DOMAINS = ("plain", "log")


@pytest.mark.parametrize(("num_rows", "num_columns", "num_classes"), [(0, 4, 3), (4, 5, 0), (0, 0, 2), (0, 0, 0)])
def test_zero_extents(device, to_device, num_rows, num_columns, num_classes):
    cost = to_device(torch.empty(num_rows, num_columns).fill_(0.5))
    a = to_device(inputs.distributions(num_classes, num_rows) if num_rows else torch.empty(num_classes, 0))
    for domain in DOMAINS:
        f, g, info = sinkhorn(cost, a, domain=domain, return_info=True)
        assert f.shape == (num_classes, num_rows)
        assert g.shape == (num_classes, num_columns)
        assert (g == -math.inf).all()  # without rows there is no mass
        assert int(info.iterations) == 0
        assert info.marginal_errors.tolist() == [0.0] * num_classes
        shapes = {"receiver": g.shape, "source": f.shape, "plan_cost": (num_classes,)}
        for readout, shape in shapes.items():
            result = transport_map(cost, a, readout=readout, domain=domain)
            assert result.shape == shape
            assert (result == -math.inf).all()


def test_no_columns(device, to_device):
    cost, a = to_device(torch.empty(4, 0)), to_device(torch.zeros(2, 4))
    f, g = sinkhorn(cost, a)
    assert (f == -math.inf).all()
    assert g.shape == (2, 0)


@pytest.mark.parametrize("domain", DOMAINS)
def test_empty_classes(device, to_device, domain):
    cost, a = inputs.costs(20, 30), inputs.distributions(4, 20)
    full = sinkhorn(to_device(cost), to_device(a), domain=domain, exact_iters=True)
    maps = {r: transport_map(to_device(cost), to_device(a), domain=domain, readout=r).cpu() for r in READOUTS}
    a[[0, 2]] = 0.0
    f, g, info = sinkhorn(to_device(cost), to_device(a), domain=domain, exact_iters=True, return_info=True)
    for part, whole in zip((f, g), full, strict=True):
        assert (part[[0, 2]] == -math.inf).all()
        torch.testing.assert_close(part[[1, 3]], whole[[1, 3]])
    assert info.marginal_errors[[0, 2]].tolist() == [0.0, 0.0]
    assert int(info.guards) == 0
    for readout in READOUTS:
        result = transport_map(to_device(cost), to_device(a), domain=domain, readout=readout).cpu()
        assert (result[[0, 2]] == -math.inf).all()
        torch.testing.assert_close(result[[1, 3]], maps[readout][[1, 3]], rtol=1e-5, atol=0)


def test_all_classes_empty(device, to_device):
    cost, a = to_device(inputs.costs(6, 5)), to_device(torch.zeros(3, 6))
    f, g, info = sinkhorn(cost, a, return_info=True)
    assert (f == -math.inf).all()
    assert (g == -math.inf).all()
    assert int(info.iterations) == 0
    assert info.marginal_errors.tolist() == [0.0] * 3
    assert (transport_map(cost, a, normalize=True) == -math.inf).all()


def test_empty_class_may_have_an_empty_partner(device, to_device):
    cost, a, b = inputs.costs(6, 5), inputs.distributions(3, 6), inputs.distributions(3, 5, zeros=False)
    a[1] = b[1] = 0.0
    f, g = sinkhorn(to_device(cost), to_device(a), to_device(b))
    assert (f[1] == -math.inf).all()
    assert (g[1] == -math.inf).all()
    assert g[[0, 2]].isfinite().all()


@pytest.mark.parametrize("domain", DOMAINS)
def test_zeros_in_the_marginals(device, to_device, domain):
    cost, a, b = inputs.costs(20, 30), inputs.distributions(3, 20), inputs.distributions(3, 30, seed=7)
    a[2] = 0.0
    a[2, 5] = 1.0  # one source only
    b[0] = 0.0
    b[0, 17] = 1.0  # one receiver only
    expected, _ = inputs.plans(cost, a, b)
    f, g = sinkhorn(to_device(cost), to_device(a), to_device(b), domain=domain)
    assert torch.equal(f.cpu() == -math.inf, a == 0)
    assert torch.equal(g.cpu() == -math.inf, b == 0)
    assert_close_rel(inputs.plan_of(cost, f, g), expected, POTENTIAL)
    for readout in READOUTS:
        result = transport_map(to_device(cost), to_device(a), b=to_device(b), domain=domain, readout=readout)
        assert_close_rel(result, inputs.read(cost, expected, readout), SINGLE)


@pytest.mark.parametrize("exponent", [-30, -44])
def test_tiny_masses_keep_their_potentials(device, to_device, exponent):
    # Down to subnormal numbers, such as a softmax leaves.
    cost, a = inputs.costs(9, 8), inputs.distributions(2, 9, zeros=False)
    a[:, 4] = 0.0
    a /= a.sum(1, keepdim=True)
    a[:, 4] = 10.0**exponent
    tiny = a[:, 4].double()
    for domain in DOMAINS:
        f, g = sinkhorn(to_device(cost), to_device(a), domain=domain, exact_iters=True)
        rows = torch.logsumexp((f.cpu().double()[:, 4, None] + g.cpu().double() - cost[4].double()) / 0.1, 1)
        torch.testing.assert_close(rows, tiny.log(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("mass", [1e-3, 7.0, 1e6])
@pytest.mark.parametrize("domain", DOMAINS)
def test_masses_other_than_one(device, to_device, domain, mass):
    cost, a, b = inputs.costs(20, 30), inputs.distributions(3, 20), inputs.distributions(3, 30, seed=7)
    expected, _ = inputs.plans(cost, a, b)
    options = {"exact_iters": True, "domain": domain}
    f, g, info = sinkhorn(to_device(cost), to_device(mass * a), to_device(mass * b), return_info=True, **options)
    assert_close_rel(inputs.plan_of(cost, f, g), mass * expected, POTENTIAL)
    assert float(info.marginal_errors.max()) < 3e-6  # as a share of the mass
    result = transport_map(to_device(cost), to_device(mass * a), b=to_device(mass * b), **options)
    assert_close_rel(result, mass * inputs.read(cost, expected, "receiver"), SINGLE)


@pytest.mark.parametrize("domain", DOMAINS)
def test_normalize(device, to_device, domain):
    cost, a, b = inputs.costs(20, 30), inputs.distributions(3, 20), inputs.distributions(1, 30, seed=7)[0]
    expected, _ = inputs.plans(cost, a, b)
    scaled = a * torch.tensor([[1e-6], [3.0], [1e6]])
    options = {"exact_iters": True, "domain": domain, "normalize": True}
    f, g = sinkhorn(to_device(cost), to_device(scaled), to_device(40 * b), **options)
    assert_close_rel(inputs.plan_of(cost, f, g), expected, POTENTIAL)
    result = transport_map(to_device(cost), to_device(scaled), b=to_device(40 * b), **options)
    assert_close_rel(result, inputs.read(cost, expected, "receiver"), SINGLE)


def test_rounding_of_the_masses_is_taken_out(device, to_device):
    # A row that is 5e-5 too heavy is scaled; over 50 iterations the scalings would otherwise drift apart.
    cost, a = inputs.costs(20, 30), inputs.distributions(3, 20)
    expected, _ = inputs.plans(cost, a)
    f, g = sinkhorn(to_device(cost), to_device(a * (1 + 5e-5)), exact_iters=True)
    assert_close_rel(inputs.plan_of(cost, f, g), expected, POTENTIAL)


# Epsilon and the domain


@pytest.mark.parametrize("epsilon", [1e-8, 1e-4, 1e-3, 0.005, 0.0166, 0.0167, 0.1, 1.0, 1e3, 1e8])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_never_nan(device, to_device, epsilon, scale):
    cost, a = inputs.costs(18, 22, scale=scale), inputs.distributions(3, 18)
    cost[0, 0], cost[5, 5] = 0.0, scale
    f, g, info = sinkhorn(to_device(cost), to_device(a), epsilon=epsilon, return_info=True)
    assert not f.isnan().any()
    assert not g.isnan().any()
    assert torch.equal(f.cpu() == -math.inf, a == 0)
    assert int(info.guards) == 0
    assert info.domain == ("log" if scale / epsilon > 60 else "plain")
    if scale / epsilon < 1e6:  # potentials are float32: a relative error of a plan is that of f and g over epsilon
        columns = inputs.plan_of(cost, f, g, epsilon).sum(1)
        assert_close_rel(columns, torch.full_like(columns, 1 / 22), 1e-5 + 4e-7 * scale / epsilon)
    for readout in READOUTS:
        result = transport_map(to_device(cost), to_device(a), epsilon=epsilon, readout=readout)
        assert result.isfinite().all()
        assert (result >= 0).all()


@pytest.mark.parametrize("epsilon", [1e-3, 1e-5, 1e-7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_forced_plain_domain_guards_and_says_so(device, to_device, epsilon, dtype):
    cost, a = inputs.costs(18, 22).to(dtype), inputs.distributions(3, 18).to(dtype)
    cost[3] += 1.0  # row 3 is zero in K
    f, g, info = sinkhorn(to_device(cost), to_device(a), epsilon=epsilon, domain="plain", return_info=True)
    assert not f.isnan().any()
    assert not g.isnan().any()
    assert int(info.guards) > 0
    for readout in READOUTS:
        options = {"epsilon": epsilon, "domain": "plain", "readout": readout}
        assert not transport_map(to_device(cost), to_device(a), **options).isnan().any()


@pytest.mark.parametrize("epsilon", [0.02, 0.1, 1.0])
def test_domains_agree(device, to_device, epsilon):
    cost, a = inputs.costs(40, 30), inputs.distributions(3, 40)
    options = {"epsilon": epsilon, "exact_iters": True, "max_iter": 20}
    f, g = sinkhorn(to_device(cost), to_device(a), domain="plain", **options)
    log_f, log_g = sinkhorn(to_device(cost), to_device(a), domain="log", **options)
    plain, log = inputs.plan_of(cost, f, g, epsilon), inputs.plan_of(cost, log_f, log_g, epsilon)
    assert_close_rel(plain, log, 2 * POTENTIAL / min(1.0, 10 * epsilon))


@pytest.mark.parametrize("spread", [55.0, 60.0])
def test_widest_plain_domain(device, to_device, spread):
    # Rows and columns that are all but cut off: every product stays a normal number.
    cost, a = inputs.costs(24, 20, scale=1.0), inputs.distributions(3, 24)
    cost = 1000.0 + (cost > 0.5).float() * spread
    cost[3] = cost[:, 4] = 1000.0 + spread
    cost[0, 0] = 1000.0
    f, g, info = sinkhorn(to_device(cost), to_device(a), epsilon=1.0, exact_iters=True, return_info=True)
    assert info.domain == "plain"
    assert int(info.guards) == 0
    expected, _ = inputs.plans(cost, a, epsilon=1.0)
    assert_close_rel(inputs.plan_of(cost, f, g, 1.0), expected, 5e-4)  # f is near 1000 and has 6e-5 of resolution
    result = transport_map(to_device(cost), to_device(a), epsilon=1.0, exact_iters=True)
    assert_close_rel(result, inputs.read(cost, expected, "receiver"), 5e-4)


@pytest.mark.parametrize("domain", DOMAINS)
def test_shift_of_the_costs_moves_f_only(device, to_device, domain):
    cost = torch.round(inputs.costs(20, 30) * 4096) / 4096  # so that adding 8 is exact
    a = inputs.distributions(3, 20)
    f, g = sinkhorn(to_device(cost), to_device(a), domain=domain)
    shifted_f, shifted_g = sinkhorn(to_device(cost + 8), to_device(a), domain=domain)
    torch.testing.assert_close(shifted_f, f + 8, rtol=1e-6, atol=0)
    torch.testing.assert_close(shifted_g, g, rtol=0, atol=1e-6)


def test_small_epsilon_is_the_linear_program(device, to_device):
    # Exact transport by SciPy's simplex; the entropy costs at most epsilon ln(N M).
    cost, a = inputs.costs(6, 7), inputs.distributions(2, 6)
    options = {"epsilon": 2e-3, "max_iter": 4000, "tol": 1e-5}
    paid = transport_map(to_device(cost), to_device(a), readout="plan_cost", **options).cpu()
    rows, columns = np.kron(np.eye(6), np.ones(7)), np.kron(np.ones(6), np.eye(7))
    for c in range(2):
        marginals = np.concatenate((inputs.unit(a[c]), np.full(7, 1 / 7)))
        best = scipy.optimize.linprog(cost.double().numpy().ravel(), A_eq=np.vstack((rows, columns)), b_eq=marginals)
        assert best.fun - 1e-4 <= paid[c] <= best.fun + 2e-3 * math.log(42) + 1e-4


def test_large_epsilon_is_the_product_of_the_marginals(device, to_device):
    cost, a = inputs.costs(20, 30), inputs.distributions(3, 20)
    expected = a.double() @ cost.double() / 30  # attention-weighted voting
    assert_close_rel(transport_map(to_device(cost), to_device(a), epsilon=1e5), expected, 2e-5)


def test_regions_are_found(device, to_device):
    # Evidence in one corner of a region spreads over the region: the read-out on the side of the receivers.
    side = 8
    region = (torch.arange(side) >= side // 2).long()
    region = (2 * region[:, None] + region).flatten()
    attention = (3.0 * (region[:, None] == region[None])).softmax(1)
    a = torch.zeros(4, side**2)
    a[torch.arange(4), torch.tensor([0, side - 1, side * (side - 1), side**2 - 1])] = 1.0
    assert torch.equal(transport_map(to_device(attention), to_device(a)).argmax(0).cpu(), region)
