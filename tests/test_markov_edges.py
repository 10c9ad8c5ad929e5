"""`doubly_stochastic` and `markov_velocity` where something is empty, lost or extreme."""

import markov_inputs as inputs
import numpy as np
import pytest
import torch

from ovs_kernels import doubly_stochastic, markov_velocity
from ovs_kernels.testing import assert_close_rel

SINGLE, SINGLE_TIME = 2e-6, 5e-3
RULES = ["first_passage", "delta_literal", "settling"]


def times(matrix, starts, **options):
    return markov_velocity(matrix, starts, return_info=True, **options)[1]


@pytest.mark.parametrize("rule", RULES)
def test_no_nodes_and_no_classes(device, to_device, rule):
    r, c, info = doubly_stochastic(to_device(torch.zeros(0, 0)), return_info=True)
    assert (r.shape, c.shape, info.column_error.item()) == ((0,), (0,), 0.0)
    velocity, info = markov_velocity(
        to_device(torch.zeros(0, 0)), to_device(torch.zeros(3, 0)), rule=rule, return_info=True
    )
    assert (velocity.shape, info.steps.tolist(), info.unreached.tolist()) == ((3, 0), [0] * 3, [0] * 3)
    matrix = to_device(inputs.attention(8))
    velocity, info = markov_velocity(matrix, to_device(torch.zeros(0, 8)), rule=rule, return_info=True)
    assert (velocity.shape, info.times.shape, info.steps.shape) == ((0, 8), (0, 8), (0,))
    assert torch.equal(info.row_scale, doubly_stochastic(matrix)[0])


def test_all_classes_without_mass(device, to_device):
    velocity = markov_velocity(to_device(inputs.attention(8)), to_device(torch.zeros(3, 8)))
    assert (velocity == -torch.inf).all()


def test_empty_rows_and_columns(device, to_device):
    matrix = inputs.attention(70)
    matrix[[0, 31, 69]] = 0.0
    matrix[:, [5, 32, 69]] = 0.0
    r, c, info = doubly_stochastic(to_device(matrix), return_info=True)
    expected = inputs.rewritten(matrix, 15)
    assert_close_rel(r.double().cpu()[:, None] * matrix.double() * c.double().cpu(), expected, SINGLE)
    assert (r == 0).nonzero().flatten().tolist() == [0, 31, 69]
    assert (c == 0).nonzero().flatten().tolist() == [5, 32, 69]
    assert (info.empty_rows.item(), info.empty_columns.item()) == (3, 3)
    error = np.delete(np.abs(expected.sum(0) - 1), [5, 32, 69]).max()
    assert info.column_error.item() == pytest.approx(error, abs=SINGLE)


@pytest.mark.parametrize("value", [0.0, 1e-44])
def test_empty_matrix(device, to_device, value):
    # Sums below the smallest normal number count as none.
    r, c, info = doubly_stochastic(to_device(torch.full((20, 20), value)), return_info=True)
    assert (r == 0).all()
    assert (c == 0).all()
    assert (info.column_error.item(), info.empty_rows.item(), info.empty_columns.item()) == (0.0, 20, 20)
    info = times(to_device(torch.full((20, 20), value)), to_device(torch.eye(20)[:2]), max_steps=5)
    assert info.unreached.tolist() == [19, 19]
    assert (info.times[0].tolist(), info.times[1, 1].item()) == ([0.0] + [5.0] * 19, 0.0)


@pytest.mark.parametrize("rule", RULES)
def test_chains_with_empty_rows_and_columns(device, to_device, rule):
    matrix, starts = inputs.attention(40), inputs.distributions(3, 40)
    matrix[7] = matrix[:, 5] = matrix[:, 33] = 0.0
    starts[0, 5] = starts[1, 7] = 1.0
    info = times(to_device(matrix), to_device(starts), rule=rule, max_steps=50)
    expected, missed = inputs.times_of(matrix, starts, rule=rule, max_steps=50)
    np.testing.assert_allclose(info.times.cpu(), expected, atol=SINGLE_TIME)
    assert info.unreached.tolist() == missed.tolist()
    if rule == "first_passage":
        assert (info.steps < 50).all()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", ["max", "none"])
def test_mass_that_is_lost(device, to_device, rule, kind):
    # Everything goes to place 1, whose row is empty: after two steps nothing is left.
    matrix = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    starts = torch.tensor([[1.0, 0.0, 0.0]])
    options = {"rule": rule, "max_steps": 10}
    info = times(to_device(matrix), to_device(starts), state_scale=kind, **options)
    expected, missed = inputs.times_of(matrix, starts, kind=kind, **options)
    np.testing.assert_allclose(info.times.cpu(), expected, atol=1e-5)
    assert info.unreached.tolist() == missed.tolist()


def test_parts_that_do_not_touch(device, to_device):
    # Two rooms without a door: the second is never reached, and the cap ends the chain.
    matrix = torch.zeros(30, 30)
    matrix[:14, :14], matrix[14:, 14:] = inputs.attention(14), inputs.attention(16, 3)
    starts = torch.zeros(2, 30)
    starts[0, 3] = starts[1, 20] = starts[1, 4] = 1.0
    info = times(to_device(matrix), to_device(starts), max_steps=70)
    assert info.unreached.tolist() == [16, 0]
    assert info.steps[0] == 70
    assert (info.times[0, 14:] == 70.0).all()
    assert info.steps[1] < 70


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1e30])
def test_scale_of_a_distribution_does_not_matter(device, to_device, scale):
    matrix, starts = to_device(inputs.attention(40)), inputs.distributions(3, 40)
    first, second = (times(matrix, to_device(start)).times for start in (starts, starts * scale))
    torch.testing.assert_close(first, second, atol=1e-4, rtol=0)


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1e30])
def test_scale_of_the_attention_does_not_matter(device, to_device, scale):
    matrix, starts = inputs.attention(40), to_device(inputs.distributions(3, 40))
    first, second = (times(to_device(a), starts).times for a in (matrix, matrix * scale))
    torch.testing.assert_close(first, second, atol=1e-3, rtol=0)


def test_classes_do_not_touch_each_other(device, to_device):
    matrix, starts = inputs.attention(60, sharpness=25.0), inputs.distributions(25, 60)
    together = markov_velocity(to_device(matrix), to_device(starts))
    for first in (0, 7, 24):
        alone = markov_velocity(to_device(matrix), to_device(starts[first : first + 1]))
        torch.testing.assert_close(alone[0], together[first], rtol=1e-4, atol=0)


def test_order_of_places_does_not_matter(device, to_device):
    matrix, starts = inputs.attention(60), inputs.distributions(4, 60)
    order = torch.randperm(60)
    straight = times(to_device(matrix), to_device(starts)).times
    shuffled = times(to_device(matrix[order][:, order]), to_device(starts[:, order])).times
    torch.testing.assert_close(shuffled, straight[:, order], atol=SINGLE_TIME, rtol=0)


def test_min_time(device, to_device):
    matrix, starts = to_device(inputs.attention(20)), to_device(torch.eye(20)[:2])
    assert markov_velocity(matrix, starts)[0, 0].item() == pytest.approx(1000.0)
    assert markov_velocity(matrix, starts, min_time=0.5)[0, 0].item() == 2.0


def test_negative_zero_is_zero(device, to_device):
    matrix = inputs.attention(20)
    matrix[3, 4] = -0.0
    starts = torch.eye(20)[:2].clone()
    starts[0, 9] = -0.0
    assert not markov_velocity(to_device(matrix), to_device(starts)).isnan().any()


def test_identity_as_attention(device, to_device):
    # Nothing moves: only the seeds are reached.
    info = times(to_device(torch.eye(25)), to_device(torch.eye(25)[:3]), max_steps=9)
    assert info.unreached.tolist() == [24] * 3
    assert info.steps.tolist() == [9] * 3
    assert info.column_error == 0
