"""What `doubly_stochastic` and `markov_velocity` say about bad input: one line, what was expected, what came."""

import math

import markov_inputs as inputs
import numpy as np
import pytest
import torch

from ovs_kernels import doubly_stochastic, markov_velocity

FLOATS = "float32 or float64 or float16 or bfloat16"
ARRAYS = "a torch tensor, a numpy array or a CUDA array with __dlpack__"


def zeros(*shape, dtype=torch.float32):
    return torch.zeros(shape, dtype=dtype)


# (what to change in a good call, exception, the message after the operator's name)
BOTH = {
    "vector": ({"attention": zeros(4)}, ValueError, "attention: expected [N, N], got [4]"),
    "batch": ({"attention": zeros(1, 4, 4)}, ValueError, "attention: expected [N, N], got [1, 4, 4]"),
    "not square": (
        {"attention": zeros(4, 5)},
        ValueError,
        "attention: expected a square matrix [N, N], got [4, 5]",
    ),
    "integers": ({"attention": zeros(4, 4, dtype=torch.int32)}, TypeError, f"attention: expected {FLOATS}, got int32"),
    "None": ({"attention": None}, TypeError, f"attention: expected {ARRAYS}, got None"),
    "list": ({"attention": [[1.0]]}, TypeError, f"attention: expected {ARRAYS}, got list"),
}
SCALING = {
    "n_iter": ({"n_iter": -1}, ValueError, "n_iter: expected an integer in [0, 2147483647], got -1"),
    "n_iter of another kind": ({"n_iter": 1.5}, TypeError, "n_iter: expected an integer, got float"),
}
VELOCITY = {
    "other places": (
        {"distributions": zeros(3, 5)},
        ValueError,
        "distributions: expected [C, N] with N=4 (those of attention), got [3, 5]",
    ),
    "one distribution": (
        {"distributions": zeros(4)},
        ValueError,
        "distributions: expected [C, N] with N=4 (those of attention), got [4]",
    ),
    "booleans": (
        {"distributions": zeros(3, 4, dtype=torch.bool)},
        TypeError,
        f"distributions: expected {FLOATS}, got bool",
    ),
    "kinds": (
        {"distributions": np.zeros((3, 4), np.float32)},
        TypeError,
        "distributions: expected torch.Tensor (the kind of attention), got numpy.ndarray",
    ),
    "devices": (
        {"distributions": torch.zeros(3, 4, device="meta")},
        ValueError,
        "distributions: expected device cpu (that of attention), got meta",
    ),
    "n_ipf": ({"n_ipf": -1}, ValueError, "n_ipf: expected an integer in [0, 2147483647], got -1"),
    "temperature": ({"temperature": 0.0}, ValueError, "temperature: expected a finite number > 0, got 0.0"),
    "threshold": ({"threshold": 1.0}, ValueError, "threshold: expected a number in (0, 1), got 1.0"),
    "threshold NaN": ({"threshold": math.nan}, ValueError, "threshold: expected a number in (0, 1), got nan"),
    "threshold of counts": (
        {"threshold": 0.0, "state_scale": "N"},
        ValueError,
        "threshold: expected a finite number > 0, got 0.0",
    ),
    "max_steps": ({"max_steps": 0}, ValueError, "max_steps: expected an integer in [1, 16777216], got 0"),
    "rule": (
        {"rule": "first"},
        ValueError,
        "rule: expected 'first_passage' or 'delta_literal' or 'settling', got 'first'",
    ),
    "state_scale": ({"state_scale": "sum"}, ValueError, "state_scale: expected 'max' or 'none' or 'N', got 'sum'"),
    "min_time": ({"min_time": 0}, ValueError, "min_time: expected a finite number > 0, got 0.0"),
    "interpolate": ({"interpolate": 1}, TypeError, "interpolate: expected True or False, got int"),
}


def refused(error, message, function, **arguments):
    good = {"attention": torch.full((4, 4), 0.25)}
    if function is markov_velocity:
        good["distributions"] = torch.eye(4)[:3]
    with pytest.raises(error) as caught:
        function(**good | arguments)
    assert str(caught.value) == f"{function.__name__}: {message}"


@pytest.mark.parametrize("name", BOTH | SCALING)
def test_scaling(name):
    changes, error, message = (BOTH | SCALING)[name]
    refused(error, message, doubly_stochastic, **changes)


@pytest.mark.parametrize("name", BOTH | VELOCITY)
def test_velocity(name):
    changes, error, message = (BOTH | VELOCITY)[name]
    refused(error, message, markov_velocity, **changes)


BAD = [math.nan, math.inf, -math.inf, -1e-3]


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("place", [(0, 0), (17, 3), (299, 299)])
def test_entries_of_the_attention(device, to_device, value, dtype, place):
    matrix = torch.full((300, 300), 1 / 256, dtype=dtype)
    matrix[place] = value
    got = f"{torch.tensor(value, dtype=dtype).item():g} at [{place[0]}, {place[1]}]"
    arguments = {"attention": to_device(matrix), "distributions": to_device(torch.eye(300)[:2])}
    for function in (doubly_stochastic, markov_velocity):
        given = arguments if function is markov_velocity else {"attention": arguments["attention"]}
        refused(ValueError, f"attention: expected finite entries >= 0, got {got}", function, **given)


@pytest.mark.parametrize("value", BAD)
def test_entries_without_check(device, to_device, value):
    matrix = inputs.attention(150)
    matrix[149, 148] = value
    r, c = doubly_stochastic(to_device(matrix), check=False)
    assert r.isnan().all()
    assert c.isnan().all()
    starts = to_device(inputs.distributions(3, 150))
    for options in ({}, {"rule": "settling"}, {"temperature": 0.5}):
        assert markov_velocity(to_device(matrix), starts, check=False, **options).isnan().all()


def test_sums_that_overflow(device, to_device):
    matrix = to_device(torch.full((40, 40), 1e37))
    message = "attention: expected entries whose sums are finite, got a sum that is not"
    refused(ValueError, message, doubly_stochastic, attention=matrix)
    assert doubly_stochastic(matrix, check=False)[0].isnan().all()


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_entries_of_a_distribution(device, to_device, value, dtype):
    starts = torch.eye(5, dtype=dtype)[:3]
    starts[1, 4] = value
    got = f"{starts[1, 4].item():g} at [1, 4]"
    matrix, starts = to_device(inputs.attention(5)), to_device(starts)
    arguments = {"attention": matrix, "distributions": starts}
    refused(ValueError, f"distributions: expected finite entries >= 0, got {got}", markov_velocity, **arguments)
    velocity = markov_velocity(**arguments, check=False)
    assert velocity[1].isnan().all()
    assert torch.equal(velocity[[0, 2]], markov_velocity(matrix, starts[[0, 2]]))
