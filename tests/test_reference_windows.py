"""`ovs_kernels.reference.windows`, the definition: against numbers worked out by hand and a NumPy oracle."""

import numpy as np
import pytest
import torch
from windows_inputs import CASES, DOUBLE, interpolation_matrix, padded_adds

from ovs_kernels.reference import windows as reference
from ovs_kernels.testing import assert_close_rel


def test_interpolation_matrix_by_hand():
    # Two patches over four pixels: sources -0.25 -> 0, 0.25, 0.75, 1.25 (its upper neighbour is itself).
    expected = [[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]]
    np.testing.assert_allclose(interpolation_matrix(2, 4), expected, atol=1e-15)
    # Four patches over two pixels: sources 0.5 and 2.5, plain sub-sampling.
    np.testing.assert_allclose(interpolation_matrix(4, 2), [[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]], atol=1e-15)
    assert (interpolation_matrix(7, 19).sum(1).round(12) == 1).all()


def test_two_windows_by_hand():
    # Columns 0 and 1: window 0 alone; 2 and 3: both; 4 and 5: window 1 alone.
    scores = torch.tensor([[[[0.0, 4.0]]], [[[8.0, 8.0]]]], dtype=torch.float64)
    boxes = torch.tensor([[0, 0, 1, 4], [0, 2, 1, 6]])
    merged = reference.merge_windows([scores], [boxes], (1, 6))
    assert merged.tolist() == [[[0.0, 1.0, (3.0 + 8.0) / 2, (4.0 + 8.0) / 2, 8.0, 8.0]]]


def test_set_ups_weigh_the_same_by_hand():
    # Three windows say 3 and one window of another set-up says 9: the mean of the two set-ups is 6.
    boxes = [torch.tensor([[0, 0, 2, 2]] * 3), torch.tensor([[0, 0, 2, 2]])]
    scores = [torch.full((3, 1, 1, 1), 3.0), torch.full((1, 1, 2, 2), 9.0)]
    assert (reference.merge_windows(scores, boxes, (2, 2)) == 6.0).all()


@pytest.mark.parametrize("name", CASES)
def test_matches_interpolation_matrices(name):
    setups, boxes, size = CASES[name]
    merged = reference.merge_windows([scores.double() for scores in setups], boxes, size)
    assert merged.dtype == torch.float64
    assert_close_rel(merged, padded_adds(setups, boxes, size), DOUBLE)


@pytest.mark.parametrize(
    "name", ["one patch per window", "more patches than pixels", "odd everything", "three set-ups"]
)
def test_backward_is_the_transpose(name):
    setups, boxes, size = CASES[name]
    v_merged = torch.randn(setups[0].shape[1], *size, dtype=torch.float64)
    grids = [extent for scores in setups for extent in (len(scores), *scores.shape[2:])]
    v_scores = reference.merge_windows_backward(v_merged, grids, boxes)
    packed = np.concatenate([scores.double().numpy().ravel() for scores in setups])
    left = (padded_adds(setups, boxes, size) * v_merged.numpy()).sum()
    assert left == pytest.approx(packed @ v_scores.numpy(), rel=1e-11)
    # One entry by itself: the column of the matrix that belongs to it.
    k, c, i, j = (extent // 2 for extent in setups[0].shape)
    unit = [np.zeros(scores.shape) for scores in setups]
    unit[0][k, c, i, j] = 1.0
    column = padded_adds(unit, boxes, size)
    expected = (column * v_merged.numpy()).sum()
    got = v_scores[: setups[0].numel()].reshape(setups[0].shape)[k, c, i, j].item()
    assert got == pytest.approx(expected, rel=1e-11, abs=1e-12)
