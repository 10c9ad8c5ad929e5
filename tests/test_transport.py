"""`sinkhorn` and `transport_map`: every backend against numbers worked out by hand, and NumPy."""

import math

import numpy as np
import pytest
import torch
import transport_inputs as inputs
from transport_inputs import DOUBLE, POTENTIAL, SINGLE

from ovs_kernels import sinkhorn, transport_map
from ovs_kernels.testing import assert_close_rel

# (N, M, C): around tiles of 4 to 16 rows and columns, panels and slabs of 128, groups of classes.
SIZES = [
    (1, 1, 1),
    (1, 7, 2),
    (7, 1, 2),
    (5, 3, 3),
    (15, 17, 4),
    (16, 16, 5),
    (33, 31, 9),
    (127, 130, 21),
    (129, 257, 13),
    (300, 140, 12),
    (64, 500, 29),
    (530, 40, 33),
]
SMALL = [(1, 1, 1), (1, 5, 2), (6, 1, 2), (5, 3, 3), (17, 33, 9), (70, 35, 3), (40, 66, 17)]


def sizes_of(device):
    return SMALL if device == "emulated" else SIZES


def text(size):
    return "N={}, M={}, C={}".format(*size)


# Worked out by hand


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_two_by_two_by_hand(device, to_device, dtype):
    # Symmetric: plan = 1/2 [[s, 1 - s], [1 - s, s]] with s = 1 / (1 + exp(-1/epsilon)), after one iteration.
    cost = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=dtype)
    a = torch.tensor([[0.5, 0.5]], dtype=dtype)
    s = 1 / (1 + math.exp(-2.0))
    expected = torch.tensor([[[s, 1 - s], [1 - s, s]]], dtype=torch.float64) / 2
    f, g, info = sinkhorn(to_device(cost), to_device(a), epsilon=0.5, return_info=True)
    assert f.dtype == g.dtype == dtype
    assert_close_rel(inputs.plan_of(cost, f, g, 0.5), expected, 1e-6)
    assert int(info.iterations) == 2  # the second one finds that the first was enough
    assert info.domain == "plain"
    assert int(info.guards) == 0
    assert info.marginal_errors.dtype == torch.float64
    assert float(info.marginal_errors) < 1e-6
    paid = transport_map(to_device(cost), to_device(a), epsilon=0.5, readout="plan_cost")
    torch.testing.assert_close(paid.cpu(), torch.tensor([1 - s], dtype=dtype), rtol=2e-6, atol=0)


@pytest.mark.parametrize("domain", ["plain", "log"])
def test_one_iteration_by_hand(device, to_device, domain):
    # K = [[1, 1/2], [1/4, 1]]; K 1 = (3/2, 5/4), mu = (2/5, 8/25); K^T mu = (12/25, 13/25), nu = (25/24, 25/26).
    cost = -torch.tensor([[1.0, 0.5], [0.25, 1.0]]).log()
    a = torch.tensor([[0.6, 0.4]])
    f, g = sinkhorn(to_device(cost), to_device(a), epsilon=1.0, max_iter=1, exact_iters=True, domain=domain)
    torch.testing.assert_close(f.cpu().exp(), torch.tensor([[0.4, 0.32]]), rtol=1e-6, atol=0)
    torch.testing.assert_close(g.cpu().exp(), torch.tensor([[25 / 24, 25 / 26]]), rtol=1e-6, atol=0)


def test_constant_cost_by_hand(device, to_device):
    # Nothing to choose: plan = a b^T.
    cost, a = torch.full((5, 4), 3.0), inputs.distributions(2, 5)
    b = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.7, 0.3, 0.0, 0.0]])
    f, g = sinkhorn(to_device(cost), to_device(a), to_device(b))
    assert_close_rel(inputs.plan_of(cost, f, g), a.double()[:, :, None] * b.double()[:, None], SINGLE)
    assert_close_rel(transport_map(to_device(cost), to_device(a), b=to_device(b)), 3 * b, SINGLE)
    assert_close_rel(transport_map(to_device(cost), to_device(a), b=to_device(b), readout="source"), 3 * a, SINGLE)
    assert_close_rel(transport_map(to_device(cost), to_device(a), b=to_device(b), readout="plan_cost"), [3, 3], SINGLE)


# Against NumPy


@pytest.mark.parametrize("domain", ["plain", "log"])
def test_plans_are_those_of_numpy(device, to_device, domain):
    for size in sizes_of(device):
        cost, a = inputs.costs(*size[:2]), inputs.distributions(size[2], size[0])
        expected, errors = inputs.plans(cost, a, iterations=6)
        options = {"max_iter": 6, "exact_iters": True, "domain": domain}
        f, g, info = sinkhorn(to_device(cost), to_device(a), return_info=True, **options)
        assert f.shape == a.shape
        assert g.shape == (size[2], size[1])
        assert f.is_contiguous()
        assert g.is_contiguous()
        assert_close_rel(inputs.plan_of(cost, f, g), expected, POTENTIAL, message=text(size))
        assert int(info.iterations) == 6
        assert info.domain == domain
        np.testing.assert_allclose(info.marginal_errors.cpu().numpy(), errors[:, -1], rtol=1e-3, atol=3e-6)


@pytest.mark.parametrize("readout", ["receiver", "source", "plan_cost"])
@pytest.mark.parametrize("domain", ["plain", "log"])
def test_maps_are_those_of_numpy(device, to_device, domain, readout):
    for size in sizes_of(device):
        cost, a = inputs.costs(*size[:2]), inputs.distributions(size[2], size[0])
        expected = inputs.read(cost, inputs.plans(cost, a, iterations=5)[0], readout)
        options = {"max_iter": 5, "exact_iters": True, "domain": domain, "readout": readout}
        result = transport_map(to_device(cost), to_device(a), **options)
        assert result.shape == expected.shape
        assert result.is_contiguous()
        assert_close_rel(result, expected, SINGLE, message=text(size))


@pytest.mark.parametrize("iterations", [1, 2, 3, 4, 5, 9, 50])
def test_number_of_iterations(device, to_device, iterations):
    # Around the iteration from which on K is kept.
    cost, a = inputs.costs(40, 37), inputs.distributions(3, 40)
    expected, _ = inputs.plans(cost, a, iterations=iterations)
    for exact, tol in ((True, 1e-6), (False, 0.0)):
        options = {"max_iter": iterations, "exact_iters": exact, "tol": tol}
        f, g, info = sinkhorn(to_device(cost), to_device(a), return_info=True, **options)
        assert int(info.iterations) <= iterations
        assert not exact or int(info.iterations) == iterations
        assert_close_rel(inputs.plan_of(cost, f, g), expected, POTENTIAL)


@pytest.mark.parametrize("domain", ["plain", "log"])
@pytest.mark.parametrize("tol", [1e-2, 1e-4])
def test_stops_one_iteration_after_the_error_is_met(device, to_device, domain, tol):
    cost, a = inputs.costs(50, 45), inputs.distributions(4, 50)
    _, errors = inputs.plans(cost, a, iterations=60)
    met = int((errors.max(0) <= tol).argmax())
    _, _, info = sinkhorn(to_device(cost), to_device(a), tol=tol, domain=domain, return_info=True)
    assert int(info.iterations) == met + 2
    np.testing.assert_allclose(info.marginal_errors.cpu().numpy(), errors[:, met + 1], rtol=1e-2, atol=3e-6)


def test_default_stop_gives_the_maps_of_fifty_iterations(device, to_device):
    side = 6 if device == "emulated" else 16
    cost, a = inputs.attention(side), inputs.distributions(5, side**2)
    expected = inputs.read(cost, inputs.plans(cost, a)[0], "receiver")
    result, info = transport_map(to_device(cost), to_device(a), return_info=True)
    assert int(info.iterations) < 10
    assert float(info.marginal_errors.max()) < 2e-6
    assert_close_rel(result, expected, SINGLE)
    forced, info = transport_map(to_device(cost), to_device(a), exact_iters=True, return_info=True)
    assert int(info.iterations) == 50
    assert_close_rel(forced, expected, SINGLE)


@pytest.mark.parametrize("domain", ["plain", "log"])
def test_double_precision(domain):
    for size in SIZES if domain == "plain" else SMALL:  # exponentials one by one
        cost, a = inputs.costs(*size[:2]).double(), inputs.distributions(size[2], size[0]).double()
        expected, _ = inputs.plans(cost, a, iterations=5)
        options = {"max_iter": 5, "exact_iters": True, "domain": domain}
        f, g = sinkhorn(cost, a, **options)
        assert_close_rel(inputs.plan_of(cost, f, g), expected, DOUBLE, message=text(size))
        for readout in ("receiver", "source", "plan_cost"):
            result = transport_map(cost, a, readout=readout, **options)
            assert result.dtype == torch.float64
            assert_close_rel(result, inputs.read(cost, expected, readout), DOUBLE, message=text(size))


@pytest.mark.parametrize("domain", ["plain", "log"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_instruction_set(isa, dtype, domain):
    for size in SIZES if domain == "plain" else SMALL:
        cost, a = inputs.costs(*size[:2]), inputs.distributions(size[2], size[0])
        expected, _ = inputs.plans(cost, a, iterations=5)
        options = {"max_iter": 5, "exact_iters": True, "domain": domain}
        for readout in ("receiver", "source", "plan_cost"):
            result = transport_map(cost.to(dtype), a.to(dtype), readout=readout, **options)
            want = inputs.read(cost, expected, readout)
            assert_close_rel(result, want, SINGLE, message=f"{isa}: {text(size)}: {readout}")


@pytest.mark.parametrize("num_classes", [*range(1, 34), 49, 56, 57, 64, 100, 171])
def test_every_number_of_classes(device, to_device, num_classes):
    cost, a = inputs.costs(37, 35), inputs.distributions(num_classes, 37)
    expected, _ = inputs.plans(cost, a, iterations=5)
    options = {"max_iter": 5, "exact_iters": True}
    f, g = sinkhorn(to_device(cost), to_device(a), **options)
    assert_close_rel(inputs.plan_of(cost, f, g), expected, POTENTIAL)
    result = transport_map(to_device(cost), to_device(a), **options)
    assert_close_rel(result, inputs.read(cost, expected, "receiver"), SINGLE)


@pytest.mark.parametrize("shared", [True, False])
def test_general_marginals(device, to_device, shared):
    cost, a, b = inputs.costs(30, 41), inputs.distributions(4, 30), inputs.distributions(4, 41, seed=7)
    b = b[0] if shared else b
    expected, _ = inputs.plans(cost, a, b)
    for domain in ("plain", "log"):
        f, g = sinkhorn(to_device(cost), to_device(a), to_device(b), exact_iters=True, domain=domain)
        assert_close_rel(inputs.plan_of(cost, f, g), expected, POTENTIAL)
        result = transport_map(to_device(cost), to_device(a), b=to_device(b), exact_iters=True, domain=domain)
        assert_close_rel(result, inputs.read(cost, expected, "receiver"), SINGLE)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("domain", ["plain", "log"])
def test_cost_of_another_dtype(device, to_device, dtype, domain):
    # What is stored counts, digit by digit: the numbers are those of the widened cost.
    for size in sizes_of(device):
        cost, a = inputs.costs(*size[:2]).to(dtype), inputs.distributions(size[2], size[0])
        cost[0, 0] = 2.0**-20  # subnormal in float16
        expected, _ = inputs.plans(cost, a, iterations=5)
        options = {"max_iter": 5, "exact_iters": True, "domain": domain}
        f, g = sinkhorn(to_device(cost), to_device(a), **options)
        assert f.dtype == g.dtype == torch.float32
        assert_close_rel(inputs.plan_of(cost, f, g), expected, POTENTIAL, message=text(size))
        for readout in ("receiver", "source"):
            result = transport_map(to_device(cost), to_device(a), readout=readout, **options)
            assert_close_rel(result, inputs.read(cost, expected, readout), SINGLE, message=text(size))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_marginals(device, to_device, dtype):
    cost, a = inputs.costs(20, 30).to(dtype), inputs.distributions(3, 20).to(dtype)
    f, g = sinkhorn(to_device(cost), to_device(a))
    assert f.dtype == g.dtype == dtype
    result = transport_map(to_device(cost), to_device(a))
    assert result.dtype == dtype
    expected = inputs.read(cost, inputs.plans(cost, a.float())[0], "receiver")
    assert_close_rel(result, expected, 2 * torch.finfo(dtype).eps)


# Layouts, kinds, threads


def test_strides_do_not_matter(device, to_device):
    cost, a, b = inputs.costs(33, 21), inputs.distributions(5, 33), inputs.distributions(5, 21, seed=7)
    expected = sinkhorn(to_device(cost), to_device(a), to_device(b))
    wide = torch.zeros(66, 63)
    wide[::2, ::3] = cost
    other = [wide[::2, ::3], a.T.contiguous().T, b.flip(0).flip(0).T.contiguous().T]
    for one, two in zip(sinkhorn(*map(to_device, other)), expected, strict=True):
        assert torch.equal(one, two)
    odd = torch.zeros(33 * 21 + 1)[1:].view(33, 21)  # not aligned to a vector
    odd.copy_(cost)
    for one, two in zip(sinkhorn(to_device(odd), to_device(a), to_device(b)), expected, strict=True):
        assert torch.equal(one, two)


def test_array_kinds(xp):
    make, back = xp
    cost, a = inputs.costs(12, 15), inputs.distributions(2, 12)
    f, g, info = sinkhorn(make(cost), make(a), return_info=True)
    result, other = transport_map(make(cost), make(a), b=make(torch.full((15,), 1 / 15)), return_info=True)
    assert type(f) is type(g) is type(result) is type(info.iterations) is type(make(a))
    assert info.domain == other.domain == "plain"
    want_f, want_g = sinkhorn(cost, a)
    torch.testing.assert_close(back(f), want_f)
    torch.testing.assert_close(back(g), want_g)
    torch.testing.assert_close(back(result), transport_map(cost, a))


@pytest.mark.parametrize("options", [{}, {"domain": "log"}, {"exact_iters": True, "max_iter": 8}])
def test_threads_do_not_change_a_bit(num_threads, options):
    cost, a = inputs.costs(517, 333), inputs.distributions(30, 517)
    results = []
    for threads in (1, 2, 3):
        num_threads(threads)
        results.append((*sinkhorn(cost, a, **options), transport_map(cost, a, readout="plan_cost", **options)))
    for other in results[1:]:
        assert all(torch.equal(one, two) for one, two in zip(results[0], other, strict=True))


def test_info_does_not_change_the_result(device, to_device):
    cost, a = to_device(inputs.costs(25, 30)), to_device(inputs.distributions(3, 25))
    assert torch.equal(transport_map(cost, a), transport_map(cost, a, return_info=True)[0])
    f, g, info = sinkhorn(cost, a, return_info=True)
    assert all(torch.equal(one, two) for one, two in zip(sinkhorn(cost, a), (f, g), strict=True))
    assert info.iterations.shape == info.guards.shape == ()
    assert info.marginal_errors.shape == (3,)


def test_inputs_are_not_written(device, to_device):
    cost, a, b = inputs.costs(12, 15), inputs.distributions(2, 12), inputs.distributions(2, 15)
    given = [to_device(part.clone()) for part in (cost, a, b)]
    sinkhorn(*given)
    transport_map(given[0], given[1], b=given[2], normalize=True)
    assert all(torch.equal(one.cpu(), two) for one, two in zip(given, (cost, a, b), strict=True))
