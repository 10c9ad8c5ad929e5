"""The asserts themselves, and the picture generator."""

import math

import numpy as np
import pytest
import torch

from ovs_kernels.testing import assert_close_rel, assert_labels_agree, synthetic_scene


def test_close_rel_returns_the_worst_share():
    expected = torch.tensor([1.0, -10.0, 0.0])
    actual = torch.tensor([1.0, -10.0, 0.5])
    assert assert_close_rel(actual, expected, 0.05) == pytest.approx(0.05)
    assert assert_close_rel(expected, expected, 0.0) == 0.0
    assert assert_close_rel(torch.empty(0, 3), torch.empty(0, 3), 0.0) == 0.0
    assert assert_close_rel(torch.zeros(3), torch.zeros(3), 0.0) == 0.0


def test_close_rel_fails_just_beyond():
    expected, actual = torch.tensor([1.0, -10.0, 0.0]), torch.tensor([1.0, -10.0, 0.5])
    with pytest.raises(AssertionError, match=r"0.5 is 0.05 of the largest magnitude 10, allowed 0.049; at \(2,\)"):
        assert_close_rel(actual, expected, 0.049)
    with pytest.raises(AssertionError, match=r"^here: largest difference"):
        assert_close_rel(actual, expected, 0.0, message="here")


def test_close_rel_sees_any_difference_from_zeros():
    with pytest.raises(AssertionError, match="is inf of the largest magnitude 0"):
        assert_close_rel(torch.tensor([0.0, 1e-30]), torch.zeros(2), 0.5)


@pytest.mark.parametrize(
    ("actual", "expected"),
    [
        ([1.0, math.nan], [1.0, 2.0]),
        ([1.0, 2.0], [1.0, math.nan]),
        ([1.0, math.inf], [1.0, 2.0]),
        ([1.0, -math.inf], [1.0, math.inf]),
        ([1.0, math.inf], [1.0, math.nan]),
        ([1.0, 1e30], [1.0, math.inf]),
    ],
)
def test_close_rel_wants_nan_and_inf_at_the_same_places(actual, expected):
    with pytest.raises(AssertionError, match=r"at \(1,\): expected"):
        assert_close_rel(torch.tensor(actual), torch.tensor(expected), 1e9)


def test_close_rel_accepts_matching_nan_and_inf():
    values = torch.tensor([1.0, math.nan, math.inf, -math.inf])
    assert assert_close_rel(values, values, 0.0) == 0.0
    assert assert_close_rel(values[1:], values[1:], 0.0) == 0.0
    shifted = values.clone()
    shifted[0] += 0.25
    assert assert_close_rel(shifted, values, 0.25) == 0.25


def test_close_rel_compares_shapes_first():
    with pytest.raises(AssertionError, match=r"shape: expected \[2, 1\], got \[2\]"):
        assert_close_rel(torch.ones(2), torch.ones(2, 1), 1.0)


def test_close_rel_takes_numpy_and_mixed_dtypes():
    assert assert_close_rel(np.ones(3, np.float32), torch.ones(3, dtype=torch.float64), 0.0) == 0.0
    assert assert_close_rel(torch.ones(3, requires_grad=True), np.ones(3), 0.0) == 0.0


def test_labels_agree_counts():
    expected = torch.arange(100).reshape(10, 10)
    actual = expected.clone()
    actual[3, 4] += 1
    assert assert_labels_agree(actual, expected, 0.99) == pytest.approx(0.99)
    assert assert_labels_agree(expected, expected, 1.0) == 1.0
    message = r"1 of 100 labels differ: 99.0000% agree, .*first at \(3, 4\): expected 34, got 35"
    with pytest.raises(AssertionError, match=message):
        assert_labels_agree(actual, expected, 0.995)
    with pytest.raises(AssertionError, match=r"^photo: 1 of 100"):
        assert_labels_agree(actual, expected, 1.0, message="photo")


def test_labels_agree_across_integer_types():
    # 300 as uint8 would be 44: values are compared, not bits.
    assert assert_labels_agree(torch.tensor([3], dtype=torch.uint8), np.array([3], np.int32), 1.0) == 1.0
    with pytest.raises(AssertionError, match="1 of 1 labels differ"):
        assert_labels_agree(torch.tensor([44], dtype=torch.uint8), torch.tensor([300]), 1.0)


def test_labels_agree_refuses_shapes_and_floats():
    with pytest.raises(AssertionError, match=r"shape: expected \[3\], got \[2\]"):
        assert_labels_agree(torch.zeros(2, dtype=torch.int64), torch.zeros(3, dtype=torch.int64), 0.0)
    with pytest.raises(AssertionError, match=r"actual: expected integer labels, got torch.float32"):
        assert_labels_agree(torch.zeros(2), torch.zeros(2, dtype=torch.int64), 0.0)
    assert assert_labels_agree(torch.zeros(0, dtype=torch.uint8), torch.zeros(0, dtype=torch.uint8), 1.0) == 1.0


def test_scene_shapes_ranges_and_seed():
    image, scores, truth = synthetic_scene(60, 80, 7, 3)
    assert image.shape == (3, 60, 80)
    assert scores.shape == (7, 60, 80)
    assert truth.shape == (60, 80)
    assert image.dtype == scores.dtype == torch.float32
    assert truth.dtype == torch.int64
    assert 0 <= image.min() < image.max() <= 1
    assert set(truth.unique().tolist()) <= set(range(7))
    for again, first in zip(synthetic_scene(60, 80, 7, 3), (image, scores, truth), strict=True):
        assert torch.equal(again, first)
    assert not torch.equal(synthetic_scene(60, 80, 7, 4)[0], image)


def test_scene_has_the_statistics_it_promises():
    image, scores, truth = synthetic_scene(120, 160, 6, 5)
    # Scores: 0.18, 0.08 more for the true class, noise of standard deviation 0.03.
    is_true = torch.nn.functional.one_hot(truth, 6).permute(2, 0, 1).bool()
    assert scores[is_true].mean() == pytest.approx(0.26, abs=0.005)
    assert scores[~is_true].mean() == pytest.approx(0.18, abs=0.005)
    assert (scores - 0.18 - 0.08 * is_true).std() == pytest.approx(0.03, rel=0.05)
    # The true class leads nearly everywhere, and refinement has something left to do.
    assert 0.8 < (scores.argmax(0) == truth).float().mean() < 0.99
    # Inside a region neighbours differ by noise of 2 to 6 grey levels, times sqrt 2; median: 0.6745 sigma.
    step = (image[:, :, 1:] - image[:, :, :-1]).abs().median() * 255
    assert 0.6745 * 2**0.5 * 1.9 < step < 0.6745 * 2**0.5 * 6.1
    # Regions are larger than the noise: neighbours nearly always share a class.
    assert (truth[:, 1:] == truth[:, :-1]).float().mean() > 0.95


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (0, 4), (4, 0), (2, 2)])
def test_scene_of_any_size(shape):
    image, scores, truth = synthetic_scene(*shape, 1, 0)
    assert image.shape == (3, *shape)
    assert scores.shape == (1, *shape)
    assert truth.shape == shape
    assert image.isfinite().all()
    assert scores.isfinite().all()
