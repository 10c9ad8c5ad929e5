"""`doubly_stochastic` and `markov_velocity` against the matrix rewritten and every step of the chain taken."""

import math
import re
from pathlib import Path

import markov_inputs as inputs
import numpy as np
import pytest
import torch

import ovs_kernels
from ovs_kernels import doubly_stochastic, markov_velocity
from ovs_kernels._ops.markov import RULES, STAGES, STATE_SCALES
from ovs_kernels.testing import assert_close_rel

# Float32 against float64, as a share of the largest entry of T.
SINGLE = 2e-6
DOUBLE = 1e-12
# Times in steps, float32 against float64 (specified: 1e-2, except at ties). Where a place nears the threshold slowly,
# the rounding of its state counts for more; worst seen: 1.2e-3.
SINGLE_TIME = 5e-3
DOUBLE_TIME = 1e-9

SIZES = [1, 2, 3, 17, 64, 129, 300]


def assert_times(actual, expected, tol):
    """Within `tol` steps."""
    assert np.abs(actual.double().cpu().numpy() - expected).max(initial=0.0) <= tol


def scaled(matrix, r, c):
    return r.double().cpu()[:, None] * matrix.double().cpu() * c.double().cpu()


@pytest.mark.parametrize("num_nodes", SIZES)
@pytest.mark.parametrize("n_iter", [0, 1, 15])
def test_scaling(device, to_device, num_nodes, n_iter):
    matrix = inputs.attention(num_nodes)
    r, c, info = doubly_stochastic(to_device(matrix), n_iter=n_iter, return_info=True)
    expected = inputs.rewritten(matrix, n_iter)
    assert (r.dtype, r.shape, c.dtype, c.shape) == (torch.float32, (num_nodes,), torch.float32, (num_nodes,))
    assert_close_rel(scaled(matrix, r, c), expected, SINGLE)
    assert info.column_error.item() == pytest.approx(np.abs(expected.sum(0) - 1).max(), abs=SINGLE)
    if n_iter:
        assert_close_rel(scaled(matrix, r, c).sum(1), np.ones(num_nodes), 1e-6)


@pytest.mark.parametrize("num_nodes", [*SIZES, 641])  # the last one is large enough for three threads
def test_scaling_levels(isa, num_threads, num_nodes):
    matrix = inputs.attention(num_nodes)
    results = []
    for threads in (1, 2, 3):
        num_threads(threads)
        results.append(doubly_stochastic(matrix, return_info=True))
    r, c, info = results[0]
    assert_close_rel(scaled(matrix, r, c), inputs.rewritten(matrix, 15), SINGLE)
    for other in results[1:]:
        assert torch.equal(other[0], r)
        assert torch.equal(other[1], c)
        assert torch.equal(other[2].column_error, info.column_error)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_scaling_dtypes(device, to_device, dtype):
    matrix = inputs.attention(150).to(dtype)
    r, c = doubly_stochastic(to_device(matrix))
    wide = dtype == torch.float64
    assert r.dtype == c.dtype == (torch.float64 if wide else torch.float32)
    assert_close_rel(scaled(matrix, r, c), inputs.rewritten(matrix.double(), 15), DOUBLE if wide else SINGLE)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_scaling_dtypes_levels(isa, dtype):
    matrix = inputs.attention(150, sharpness=30.0).to(dtype)  # float16: subnormal numbers and zeros, too
    r, c = doubly_stochastic(matrix)
    tol = DOUBLE if dtype == torch.float64 else SINGLE
    assert_close_rel(scaled(matrix, r, c), inputs.rewritten(matrix.double(), 15), tol)


@pytest.mark.parametrize("num_nodes", SIZES)
@pytest.mark.parametrize("num_classes", [1, 5, 21])
def test_first_passage(device, to_device, num_nodes, num_classes):
    matrix, starts = inputs.attention(num_nodes, sharpness=20.0), inputs.distributions(num_classes, num_nodes)
    velocity, info = markov_velocity(to_device(matrix), to_device(starts), max_steps=40, return_info=True)
    expected, missed = inputs.times_of(matrix, starts)
    assert (velocity.shape, velocity.dtype) == ((num_classes, num_nodes), torch.float32)
    assert_times(info.times, expected, SINGLE_TIME)
    assert info.unreached.tolist() == missed.tolist()
    assert_close_rel(velocity, 1 / np.maximum(info.times.cpu().numpy(), 1e-3), 1e-6)


@pytest.mark.parametrize("num_classes", [*range(1, 34), 47, 64, 100, 171])
def test_numbers_of_classes(isa, num_classes):
    matrix, starts = inputs.attention(70, sharpness=20.0), inputs.distributions(num_classes, 70)
    _, info = markov_velocity(matrix, starts, max_steps=40, return_info=True)
    expected, missed = inputs.times_of(matrix, starts)
    assert_times(info.times, expected, SINGLE_TIME)
    assert info.unreached.tolist() == missed.tolist()


@pytest.mark.parametrize("num_classes", [2, 33, 71])
def test_numbers_of_classes_on_devices(device, to_device, num_classes):
    matrix, starts = inputs.attention(70, sharpness=20.0), inputs.distributions(num_classes, 70)
    _, info = markov_velocity(to_device(matrix), to_device(starts), max_steps=40, return_info=True)
    expected, missed = inputs.times_of(matrix, starts)
    assert_times(info.times, expected, SINGLE_TIME)
    assert info.unreached.tolist() == missed.tolist()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("kind", "threshold"), [("max", 0.3), ("max", 0.05), ("N", 0.8), ("none", 0.01)])
@pytest.mark.parametrize("interpolate", [True, False])
def test_rules(device, to_device, rule, kind, threshold, interpolate):
    matrix, starts = inputs.attention(90, sharpness=20.0), inputs.distributions(6, 90)
    options = {"threshold": threshold, "rule": rule, "interpolate": interpolate, "max_steps": 30}
    arguments = to_device(matrix), to_device(starts)
    velocity, info = markov_velocity(*arguments, state_scale=kind, return_info=True, **options)
    expected, missed = inputs.times_of(matrix, starts, kind=kind, **options)
    assert_times(info.times, expected, SINGLE_TIME)
    assert info.unreached.tolist() == missed.tolist()
    wanted = info.times if rule == "settling" else 1 / info.times.clamp(min=1e-3)
    assert_close_rel(velocity, wanted, 1e-6)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_velocity_dtypes(device, to_device, rule, dtype):
    matrix, starts = inputs.attention(90, sharpness=20.0).to(dtype), inputs.distributions(4, 90)
    options = {"rule": rule, "max_steps": 30}
    velocity, info = markov_velocity(to_device(matrix), to_device(starts), return_info=True, **options)
    expected, _ = inputs.times_of(matrix.double(), starts, **options)
    assert velocity.dtype == torch.float32
    wide = dtype == torch.float64
    assert info.times.dtype == info.row_scale.dtype == (torch.float64 if wide else torch.float32)
    assert_times(info.times, expected, DOUBLE_TIME if wide else SINGLE_TIME)
    half = markov_velocity(to_device(matrix), to_device(starts.to(dtype)), **options)
    assert half.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_velocity_levels_and_threads(isa, num_threads, dtype):
    # Large enough for three threads; three panels of columns, the last one with a part of a tile.
    matrix, starts = inputs.attention(641, sharpness=25.0).to(dtype), inputs.distributions(23, 641)
    results = []
    for threads in (1, 2, 3):
        num_threads(threads)
        results.append(markov_velocity(matrix, starts, max_steps=40, return_info=True))
    expected, missed = inputs.times_of(matrix.double(), starts)
    assert_times(results[0][1].times, expected, DOUBLE_TIME if dtype == torch.float64 else SINGLE_TIME)
    assert results[0][1].unreached.tolist() == missed.tolist()
    for velocity, info in results[1:]:
        assert torch.equal(velocity, results[0][0])
        assert torch.equal(info.times, results[0][1].times)
        assert torch.equal(info.steps, results[0][1].steps)


@pytest.mark.parametrize("temperature", [0.65, 2.0])
def test_temperature(device, to_device, temperature):
    matrix, starts = inputs.attention(80), inputs.distributions(4, 80)
    arguments = to_device(matrix), to_device(starts)
    _, info = markov_velocity(*arguments, temperature=temperature, max_steps=40, return_info=True)
    powers = matrix.double() ** (1 / temperature)
    expected, _ = inputs.times_of(powers / powers.sum(1, keepdim=True), starts)
    assert_times(info.times, expected, SINGLE_TIME)


def test_info(device, to_device):
    matrix, starts = inputs.attention(60, sharpness=25.0), inputs.distributions(5, 60)
    starts[3] = 0.0
    arguments = to_device(matrix), to_device(starts)
    velocity, info = markov_velocity(*arguments, max_steps=6, return_info=True)
    expected, missed = inputs.times_of(matrix, starts, max_steps=6)
    usual = [0, 1, 2, 4]
    assert_times(info.times[usual], expected[usual], SINGLE_TIME)
    assert info.unreached.tolist() == [*missed[:3], 60, missed[4]]
    assert missed[usual].sum() > 0
    assert all(info.steps[index] == 6 for index in usual if missed[index])
    assert info.steps[3] == 0
    assert (info.times[3] == math.inf).all()
    assert (velocity[3] == -math.inf).all()
    r, c, scaling = doubly_stochastic(to_device(matrix), return_info=True)
    assert torch.equal(info.row_scale, r)
    assert torch.equal(info.column_scale, c)
    assert info.column_error == scaling.column_error
    assert torch.equal(markov_velocity(*arguments, max_steps=6), velocity)


def test_steps_are_those_of_the_slowest_place(device, to_device):
    matrix, starts = inputs.attention(60, sharpness=25.0), inputs.distributions(5, 60)
    _, info = markov_velocity(to_device(matrix), to_device(starts), interpolate=False, return_info=True)
    assert (info.unreached == 0).all()
    assert info.steps.tolist() == info.times.amax(1).int().tolist()
    _, info = markov_velocity(to_device(matrix), to_device(starts), rule="delta_literal", return_info=True)
    assert info.steps.tolist() == info.times.amax(1).int().tolist()


def test_array_kinds(xp):
    wrap, unwrap = xp
    matrix, starts = inputs.attention(40), inputs.distributions(3, 40)
    r, c = doubly_stochastic(wrap(matrix))
    velocity, info = markov_velocity(wrap(matrix), wrap(starts), return_info=True)
    assert type(r) is type(velocity) is type(info.times) is type(wrap(starts))
    assert_close_rel(scaled(matrix, unwrap(r), unwrap(c)), inputs.rewritten(matrix, 15), SINGLE)
    assert_close_rel(unwrap(velocity), markov_velocity(matrix, starts), 1e-4)


def test_strides(device, to_device):
    matrix, starts = inputs.attention(50), inputs.distributions(4, 50)
    wide, tall = to_device(matrix.T.contiguous()).T, to_device(starts.T.contiguous()).T
    assert torch.equal(doubly_stochastic(wide)[0], doubly_stochastic(to_device(matrix))[0])
    assert torch.equal(markov_velocity(wide, tall), markov_velocity(to_device(matrix), to_device(starts)))


def test_inputs_are_not_written(device, to_device):
    matrix, starts = to_device(inputs.attention(50)), to_device(inputs.distributions(4, 50))
    copies = matrix.clone(), starts.clone()
    markov_velocity(matrix, starts)
    markov_velocity(matrix, starts, temperature=0.5, rule="settling", max_steps=20)
    assert torch.equal(matrix, copies[0])
    assert torch.equal(starts, copies[1])


def test_the_definition_can_be_forced(monkeypatch):
    matrix, starts = inputs.attention(50), inputs.distributions(4, 50)
    compiled = markov_velocity(matrix, starts)
    monkeypatch.setenv("OVS_KERNELS_REFERENCE", "1")
    assert_close_rel(markov_velocity(matrix, starts), compiled, 1e-4)
    r, c = doubly_stochastic(matrix)
    assert_close_rel(scaled(matrix, r, c), inputs.rewritten(matrix, 15), SINGLE)


def test_numbers_of_the_enums_are_those_of_the_core():
    text = (Path(__file__).parents[1] / "csrc/markov/markov.h").read_text()
    for kind, numbers in (("MarkovRule", RULES), ("StateScale", STATE_SCALES), ("ChainStage", STAGES)):
        body = re.search(rf"enum class {kind} : int {{(.*?)}}", text)[1]
        found = {name.lower(): int(number) for name, number in re.findall(r"k(\w+) = (\d+)", body)}
        assert found == {name.replace("_", "").lower(): number for name, number in numbers.items()}


def test_exported():
    assert {"doubly_stochastic", "markov_velocity", "MarkovInfo", "ScalingInfo"} <= set(ovs_kernels.__all__)
