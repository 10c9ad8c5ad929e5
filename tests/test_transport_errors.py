"""What `sinkhorn` and `transport_map` say about bad input: one line, operator and argument, expected, got."""

import math

import numpy as np
import pytest
import torch
import transport_inputs as inputs

from ovs_kernels import sinkhorn, transport_map

FLOATS = "float32 or float64 or float16 or bfloat16"
NUMBERS = "expected finite numbers >= 0, got "


def refused(error, message, function, *args, **options):
    with pytest.raises(error) as caught:
        function(*args, **options)
    assert str(caught.value) == message


def both(error, message, device_of, cost, a, b=None, **options):
    """The message of both operators: OP is the operator, A its name of the marginals."""
    for op, name in ((sinkhorn, "a"), (transport_map, "distributions")):
        text = message.replace("OP", op.__name__).replace("A_", name)
        given = {"b": None if b is None else device_of(b)}
        refused(error, text, op, device_of(cost), device_of(a), **given, **options)


@pytest.fixture
def problem():
    return inputs.costs(5, 4), inputs.distributions(3, 5), inputs.distributions(3, 4, seed=7)


def test_shapes(problem, device, to_device):
    cost, a, b = problem
    both(ValueError, "OP: cost: expected [N, M], got [20]", to_device, cost.flatten(), a)
    both(ValueError, "OP: A_: expected [C, N] with N=5 (those of cost), got [3, 4]", to_device, cost, b)
    both(ValueError, "OP: A_: expected [C, N] with N=5 (those of cost), got [5]", to_device, cost, a[0])
    both(ValueError, "OP: b: expected [M] or [C, M], got [1, 3, 4]", to_device, cost, a, b[None])
    text = "OP: b: expected [C, M] with C=3, M=4 (those of cost and A_), got [2, 4]"
    both(ValueError, text, to_device, cost, a, b[:2])
    both(ValueError, "OP: b: expected [M] with M=4 (those of cost and A_), got [5]", to_device, cost, a, a[0])


def test_dtypes_and_kinds(problem):
    cost, a, _ = problem
    both(TypeError, f"OP: cost: expected {FLOATS}, got int64", lambda t: t, cost.long(), a)
    both(TypeError, f"OP: A_: expected {FLOATS}, got bool", lambda t: t, cost, a > 0)
    both(TypeError, f"OP: b: expected {FLOATS}, got int32", lambda t: t, cost, a, torch.ones(4, dtype=torch.int32))
    text = "OP: A_: expected torch.Tensor (the kind of cost), got numpy.ndarray"
    for op, name in ((sinkhorn, "a"), (transport_map, "distributions")):
        refused(TypeError, text.replace("OP", op.__name__).replace("A_", name), op, cost, a.numpy())
        with pytest.raises(TypeError, match=f"^{op.__name__}: cost: expected a torch tensor, a numpy array"):
            op(None, a)


@pytest.mark.parametrize("epsilon", [0.0, -1.0, math.inf, math.nan])
def test_epsilon(problem, epsilon):
    both(
        ValueError,
        f"OP: epsilon: expected a finite number > 0, got {epsilon}",
        lambda t: t,
        *problem[:2],
        epsilon=epsilon,
    )


def test_options(problem):
    cost, a, _ = problem
    same = lambda tensor: tensor  # noqa: E731
    both(ValueError, "OP: max_iter: expected an integer in [1, 2147483647], got 0", same, cost, a, max_iter=0)
    both(TypeError, "OP: max_iter: expected an integer, got float", same, cost, a, max_iter=1.5)
    both(ValueError, "OP: tol: expected a finite number >= 0, got -1.0", same, cost, a, tol=-1.0)
    both(ValueError, "OP: tol: expected a finite number >= 0, got nan", same, cost, a, tol=math.nan)
    both(ValueError, "OP: domain: expected 'auto' or 'plain' or 'log', got 'linear'", same, cost, a, domain="linear")
    text = "transport_map: readout: expected 'receiver' or 'source' or 'plan_cost', got 'rows'"
    refused(ValueError, text, transport_map, cost, a, readout="rows")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("place", [(0, 0), (3, 2), (4, 3)])
@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("domain", ["auto", "plain", "log"])
def test_bad_costs(problem, device, to_device, dtype, place, bad, domain):
    cost, a, _ = problem
    cost = cost.to(dtype)
    cost[place] = bad
    message = f"OP: cost: {NUMBERS}{bad:g} at [{place[0]}, {place[1]}]"
    both(ValueError, message, to_device, cost, a, domain=domain)


def test_bad_cost_of_a_large_matrix(num_threads):
    # The first in the order of rows, whatever the number of threads; beyond all whole tiles.
    cost, a = inputs.costs(333, 277), inputs.distributions(2, 333)
    for place in ((332, 276), (140, 276), (140, 5)):
        cost[place] = math.nan
        for threads in (1, 3):
            num_threads(threads)
            both(ValueError, f"OP: cost: {NUMBERS}nan at [{place[0]}, {place[1]}]", lambda t: t, cost, a)


def test_cost_beyond_float32(problem, device, to_device):
    cost, a, _ = problem
    cost = cost.double()
    cost[2, 1] = 1e39  # finite, and infinite in the computation
    both(ValueError, f"OP: cost: {NUMBERS}1e+39 at [2, 1]", to_device, cost, a)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bad", [-0.5, math.nan, math.inf])
def test_bad_marginals(problem, device, to_device, dtype, bad):
    cost, a, b = problem
    for normalize in (False, True):
        spoiled = a.to(dtype, copy=True)
        spoiled[1, 4] = bad
        both(ValueError, f"OP: A_: {NUMBERS}{bad:g} at [1, 4]", to_device, cost, spoiled, b, normalize=normalize)
        spoiled = b.to(dtype, copy=True)
        spoiled[2, 3] = bad
        both(ValueError, f"OP: b: {NUMBERS}{bad:g} at [2, 3]", to_device, cost, a, spoiled, normalize=normalize)
        message = f"OP: b: {NUMBERS}{bad:g} at [3]"
        both(ValueError, message, to_device, cost, a, spoiled[2].contiguous(), normalize=normalize)


def mass_text(want, row, got):
    return (
        f"OP: A_: expected the mass of b in every row ({want} in row {row}; normalize=True scales both to 1), got {got}"
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_masses_that_differ(problem, device, to_device, dtype):
    cost, a, b = problem[0], problem[1].to(dtype), problem[2].to(dtype)
    a[1] *= 1.5
    both(ValueError, mass_text("1", 1, "1.5"), to_device, cost, a)
    both(ValueError, mass_text("1", 1, "1.5"), to_device, cost, a, b)
    both(ValueError, mass_text("1", 1, "1.5"), to_device, cost, a, b[0])
    b[1] *= 1.5
    assert sinkhorn(to_device(cost), to_device(a), to_device(b))[0].shape == (3, 5)
    b[2] = 0.0
    both(ValueError, mass_text("0", 2, "1"), to_device, cost, a, b)
    both(ValueError, mass_text("0", 2, "1"), to_device, cost, a, b, normalize=True)


def test_tolerance_of_the_masses(problem, device, to_device):
    cost, a, _ = problem
    for factor, fits in ((1 + 9e-5, True), (1 - 9e-5, True), (1 + 1.2e-4, False), (1 - 1.2e-4, False)):
        if fits:
            assert sinkhorn(to_device(cost), to_device(factor * a))[0].isfinite().any()
        else:
            both(ValueError, mass_text("1", 0, f"{factor:g}"), to_device, cost, factor * a)
    coarse = (1.01 * a).bfloat16()  # bfloat16 has two to three digits
    assert sinkhorn(to_device(cost), to_device(coarse))[0].isfinite().any()


def test_mass_without_receivers(device, to_device):
    both(ValueError, mass_text("0", 0, "1"), to_device, torch.empty(4, 0), torch.full((1, 4), 0.25))


def test_one_bad_thing_at_a_time_is_named_in_order(problem):
    # Marginals come before costs: they are read first.
    cost, a, _ = problem
    cost[0, 0], a[0, 0] = -1.0, math.nan
    both(ValueError, f"OP: A_: {NUMBERS}nan at [0, 0]", lambda t: t, cost, a)


def test_nothing_is_returned_in_silence_on_numpy(problem):
    cost, a, _ = problem
    cost[1, 1] = -3.0
    refused(ValueError, f"sinkhorn: cost: {NUMBERS}-3 at [1, 1]", sinkhorn, cost.numpy(), np.asarray(a))
