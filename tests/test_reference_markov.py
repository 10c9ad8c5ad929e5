"""The definitions themselves: numbers worked out by hand, the matrix rewritten, every step of the chain taken."""

import math

import markov_inputs as inputs
import numpy as np
import pytest
import torch

from ovs_kernels.reference import markov as reference
from ovs_kernels.testing import assert_close_rel

DOUBLE = 1e-12
USUAL = {
    "threshold": 0.3,
    "max_steps": 60,
    "rule": "first_passage",
    "interpolate": True,
    "state_scale": "max",
    "min_time": 1e-3,
}


def run(matrix, starts, n_ipf=15, **options):
    matrix = matrix.double()
    r, c, _ = reference.doubly_stochastic(matrix, n_iter=n_ipf)
    return reference.markov_velocity(matrix, r, c, starts.double(), **USUAL | options)


def test_scaling_by_hand():
    # Column sums (6/5, 4/5): c = (5/6, 5/4). A c = (2/3 + 1/4, 1/3 + 3/4) = (11/12, 13/12).
    matrix = torch.tensor([[0.8, 0.2], [0.4, 0.6]], dtype=torch.float64)
    r, c, sums = reference.doubly_stochastic(matrix, n_iter=1)
    torch.testing.assert_close(c, torch.tensor([5 / 6, 5 / 4], dtype=torch.float64))
    torch.testing.assert_close(r, torch.tensor([12 / 11, 12 / 13], dtype=torch.float64))
    # T = [[8/11, 3/11], [4/13, 9/13]]
    torch.testing.assert_close(sums, torch.tensor([8 / 11 + 4 / 13, 3 / 11 + 9 / 13], dtype=torch.float64))
    assert reference.column_error(c, sums).item() == pytest.approx(abs(8 / 11 + 4 / 13 - 1))


@pytest.mark.parametrize("num_nodes", [1, 2, 7, 40])
@pytest.mark.parametrize("n_iter", [0, 1, 2, 15])
def test_scaling_is_the_rewritten_matrix(num_nodes, n_iter):
    matrix = inputs.attention(num_nodes).double()
    r, c, sums = reference.doubly_stochastic(matrix, n_iter=n_iter)
    expected = inputs.rewritten(matrix, n_iter)
    assert_close_rel(r[:, None] * matrix * c, expected, DOUBLE)
    assert_close_rel(sums, expected.sum(0), DOUBLE)


def test_scaling_with_empty_rows_and_columns():
    matrix = inputs.attention(12).double()
    matrix[3] = matrix[:, 5] = matrix[:, 6] = 0.0
    r, c, sums = reference.doubly_stochastic(matrix, n_iter=15)
    assert_close_rel(r[:, None] * matrix * c, inputs.rewritten(matrix, 15), DOUBLE)
    assert (r == 0).nonzero().flatten().tolist() == [3]
    assert (c == 0).nonzero().flatten().tolist() == [5, 6]
    error = np.abs(inputs.rewritten(matrix, 15).sum(0) - 1)
    assert reference.column_error(c, sums).item() == pytest.approx(np.delete(error, [5, 6]).max())


def test_scalings_of_a_scaled_matrix_converge_to_the_same():
    generator = torch.Generator().manual_seed(3)
    left, right = torch.rand(2, 20, generator=generator, dtype=torch.float64) + 0.1
    matrix = inputs.attention(20, sharpness=2.0).double()
    for other in (left[:, None] * matrix, matrix * right, left[:, None] * matrix * right):
        r, c, _ = reference.doubly_stochastic(other, n_iter=300)
        assert_close_rel(r[:, None] * other * c, inputs.rewritten(matrix, 300), 1e-9)


def test_sharpening():
    logits = torch.randn(6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for temperature in (0.65, 1.0, 3.0):
        sharp = reference.sharpen(torch.softmax(logits, 1), temperature)
        torch.testing.assert_close(sharp, torch.softmax(logits / temperature, 1))
    matrix = torch.tensor([[0.0, 0.0], [1e-30, 3e-30]])
    torch.testing.assert_close(reference.sharpen(matrix, 0.5), torch.tensor([[0.0, 0.0], [0.1, 0.9]]))


def test_first_passage_by_hand():
    # T moves everything one place on, around a circle of four; g is 1 at one place and 0 elsewhere.
    matrix = torch.roll(torch.eye(4), 1, 1)
    start = torch.tensor([[0.0, 2.0, 0.0, 0.0]])
    velocity, times, steps, missed = run(matrix, start, interpolate=False)
    assert times.tolist() == [[3.0, 0.0, 1.0, 2.0]]
    torch.testing.assert_close(velocity, torch.tensor([[1 / 3, 1000.0, 1.0, 0.5]], dtype=torch.float64))
    assert (steps.tolist(), missed.tolist()) == ([3], [0])
    # With interpolation l = 1 has D = 0.7, later steps D = 1: 1 - 0.7 / 0.700001, l - 0.7 / 1.000001.
    _, times, _, _ = run(matrix, start)
    first, later = 1 - 0.7 / 0.700001, 0.7 / 1.000001
    expected = torch.tensor([[3 - later, 0.0, first, 2 - later]], dtype=torch.float64)
    torch.testing.assert_close(times, expected)


def test_other_rules_by_hand():
    matrix = torch.roll(torch.eye(4), 1, 1)
    start = torch.tensor([[0.0, 2.0, 0.0, 0.0]])
    velocity, times, steps, missed = run(matrix, start, rule="delta_literal")
    assert times.tolist() == [[1.0, 2.0, 3.0, 1.0]]
    assert (steps.tolist(), missed.tolist()) == ([3], [0])
    torch.testing.assert_close(velocity, 1 / times)
    # Every place changes twice in each round of four steps; it changed last at steps 8, 9, 9 and 7.
    velocity, times, steps, missed = run(matrix, start, rule="settling", max_steps=9)
    assert times.tolist() == [[9.0, 10.0, 10.0, 8.0]]
    assert torch.equal(velocity, times)
    assert (steps.tolist(), missed.tolist()) == ([9], [2])


RULES = ["first_passage", "delta_literal", "settling"]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("kind", "threshold"), [("max", 0.3), ("max", 0.05), ("N", 0.8), ("none", 0.01)])
@pytest.mark.parametrize("interpolate", [True, False])
def test_times_by_every_step(rule, kind, threshold, interpolate):
    matrix, starts = inputs.attention(30, sharpness=20.0), inputs.distributions(5, 30)
    options = {"threshold": threshold, "rule": rule, "interpolate": interpolate}
    _, times, _, missed = run(matrix, starts, state_scale=kind, **options)
    expected, missed_expected = inputs.times_of(matrix, starts, max_steps=60, kind=kind, **options)
    assert_close_rel(times, expected, 1e-9)
    assert missed.tolist() == missed_expected.tolist()


def test_cap():
    matrix, starts = inputs.attention(30, sharpness=20.0), inputs.distributions(5, 30)
    _, times, steps, missed = run(matrix, starts, max_steps=3)
    expected, missed_expected = inputs.times_of(matrix, starts, max_steps=3)
    assert_close_rel(times, expected, 1e-9)
    assert missed.tolist() == missed_expected.tolist()
    assert missed.sum() > 0
    assert (steps[missed > 0] == 3).all()


def test_state_of_an_irreducible_chain_becomes_uniform():
    _, times, steps, missed = run(inputs.attention(30), inputs.distributions(3, 30), n_ipf=200, max_steps=1000)
    assert (missed == 0).all()
    assert (steps < 1000).all()
    assert (times < 1000).all()


def test_classes_without_mass_and_bad_classes():
    matrix, starts = inputs.attention(9), inputs.distributions(5, 9)
    good = run(matrix, starts[:1])
    starts[1], starts[2, 4], starts[3, 0], starts[4, 8] = 0.0, math.nan, -1e-3, math.inf
    velocity, times, steps, missed = run(matrix, starts)
    assert torch.equal(velocity[0], good[0][0])
    assert (velocity[1] == -math.inf).all()
    assert (times[1] == math.inf).all()
    assert velocity[2:].isnan().all()
    assert times[2:].isnan().all()
    assert steps[1:].tolist() == [0] * 4
    assert missed[1:].tolist() == [9] * 4


def test_empty_columns_keep_no_class_from_finishing():
    matrix, starts = inputs.attention(20), inputs.distributions(2, 20)
    matrix[:, 7] = 0.0
    starts[0, 7] = 1.0  # on the empty column itself
    for rule in ("first_passage", "settling"):
        _, times, steps, missed = run(matrix, starts, rule=rule, max_steps=200)
        expected, _ = inputs.times_of(matrix, starts, rule=rule, max_steps=200)
        assert_close_rel(times, expected, 1e-9)
        if rule == "first_passage":
            assert (steps < 200).all()
            assert missed.tolist() == [0, 1]


def test_mass_that_is_lost():
    # Everything goes to place 1, whose row is empty: after two steps nothing is left.
    matrix = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    starts = torch.tensor([[1.0, 0.0, 0.0]])
    _, times, _, missed = run(matrix, starts, interpolate=False, max_steps=10)
    assert times.tolist() == [[0.0, 1.0, 10.0]]
    assert missed.tolist() == [1]
