"""`ovs_kernels.lp_pixels`: every backend against numbers worked out by hand and the float64 definition."""

import math

import numpy as np
import oracles
import pytest
import torch
from pixels_inputs import DOUBLE, SINGLE, SINGLE_RESIDUAL, case, definition, photo, photo_scores

from ovs_kernels import lp_pixels
from ovs_kernels.testing import assert_close_rel, assert_labels_agree, synthetic_scene

# (H, W, C, window): around the kernels' tiles of 8 pixels, vectors of 8 to 32 classes, strips of 128 columns.
SIZES = [
    (1, 1, 1, 13),
    (1, 7, 2, 13),
    (7, 1, 3, 5),
    (5, 5, 7, 13),
    (8, 8, 8, 3),
    (13, 17, 9, 7),
    (16, 20, 2, 1),
    (20, 24, 3, 31),
    (31, 33, 21, 13),
    (40, 29, 33, 13),
    (5, 127, 4, 5),
    (6, 128, 17, 13),
    (4, 129, 65, 3),
    (37, 150, 5, 13),
    (9, 270, 2, 15),
    (3, 300, 24, 13),
]
SMALL = [size for size in SIZES if size[0] * size[1] <= 400] + [(33, 18, 9, 13), (3, 131, 2, 5)]


# Worked out by hand -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_by_hand(device, to_device, dtype):
    # test_reference_pixels.py derives these numbers. Black and white pairs, alpha = 1/2: (3, 0) -> (4, 2).
    image = torch.tensor([0.0, 0.0, 1.0, 1.0], dtype=dtype).expand(3, 1, 4)
    scores = torch.tensor([[[3.0, 0.0, 0.0, 3.0]], [[0.0, 3.0, 0.0, 0.0]]], dtype=dtype)
    expected = torch.tensor([[[4.0, 2.0, 2.0, 4.0]], [[2.0, 4.0, 0.0, 0.0]]], dtype=dtype)
    for mode in ("official", "exact"):
        x, info = lp_pixels(to_device(scores), to_device(image), alpha=0.5, mode=mode, return_info=True)
        assert x.dtype == dtype
        torch.testing.assert_close(x.cpu(), expected, rtol=3e-6, atol=3e-6)
        assert info.iterations.dtype == torch.int32
        assert info.residuals.dtype == torch.float64
        assert info.iterations.shape == info.residuals.shape == (2,)
        if mode == "official":
            assert info.iterations.tolist() == [2, 2]
    # Class 1 wins at the second pixel only; (2, 2) and (4, 0) go to the smaller index.
    labels = lp_pixels(to_device(scores), to_device(image), alpha=0.5, labels=True)
    assert labels.dtype == torch.uint8
    assert labels.tolist() == [[0, 1, 0, 0]]


def test_one_step_by_hand(device, to_device):
    # One step from zero along r = y: a = <y, y> / <y, L y> = 9 / 9, x = y, |r| / |y| = 1/2.
    scores, image = torch.tensor([[[3.0, 0.0]]]), torch.full((3, 1, 2), 0.25)
    x, info = lp_pixels(to_device(scores), to_device(image), alpha=0.5, max_iter=1, return_info=True)
    torch.testing.assert_close(x.cpu(), scores, rtol=1e-6, atol=1e-6)
    assert info.iterations.tolist() == [1]
    assert info.residuals.tolist() == pytest.approx([0.5], rel=1e-6)


def test_complete_graph_by_hand(device, to_device):
    # Four equal pixels, alpha = 3/4: L^-1 = 4/5 (I + 11^T), so y = (1, 2, 3, 4) -> 4/5 (y + 10).
    scores, image = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]), torch.full((3, 2, 2), 0.7)
    expected = torch.tensor([[[8.8, 9.6], [10.4, 11.2]]])
    for mode in ("official", "exact"):
        x = lp_pixels(to_device(scores), to_device(image), alpha=0.75, mode=mode)
        torch.testing.assert_close(x.cpu(), expected, rtol=3e-6, atol=0)


# Against the definition -------------------------------------------------------------------------------------


def sizes_of(device):
    return SMALL if device == "emulated" else SIZES


@pytest.mark.parametrize("mode", ["official", "exact"])
def test_single_precision(device, to_device, mode):
    for height, width, num_classes, window in sizes_of(device):
        scores, image = case(height, width, num_classes)
        message = f"{height}x{width}, C={num_classes}, window={window}"
        options = {"window": window, "mode": mode}
        expected, _, _ = definition(scores, image, **options, tol=1e-6 if mode == "official" else 1e-9)
        x, info = lp_pixels(to_device(scores), to_device(image), **options, return_info=True)
        assert x.shape == scores.shape
        assert x.is_contiguous()
        if mode == "official":
            assert_close_rel(x, expected, SINGLE, message=message)
        else:
            assert_close_rel(x, expected, SINGLE, message=message)
            assert (info.residuals <= SINGLE_RESIDUAL).all(), message
            assert (info.iterations <= 45).all(), message  # 05.6


@pytest.mark.parametrize("mode", ["official", "exact"])
def test_double_precision(mode):
    for height, width, num_classes, window in SIZES:
        scores, image = (part.double() for part in case(height, width, num_classes))
        message = f"{height}x{width}, C={num_classes}, window={window}"
        if mode == "official":
            expected, steps, _ = definition(scores, image, window=window)
            x, info = lp_pixels(scores, image, window=window, return_info=True)
            assert_close_rel(x, expected, DOUBLE, message=message)
            assert info.iterations.tolist() == steps.tolist(), message
        else:
            expected, _, _ = definition(scores, image, window=window, mode=mode, tol=1e-14)
            x, info = lp_pixels(scores, image, window=window, mode=mode, tol=1e-12, return_info=True)
            assert_close_rel(x, expected, 1e-9, message=message)
            assert (info.residuals <= 1.01e-12).all(), message
        assert x.dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_instruction_set(isa, dtype):
    for height, width, num_classes, window in SIZES:
        scores, image = (part.to(dtype) for part in case(height, width, num_classes))
        expected, _, _ = definition(scores, image, window=window)
        tolerance = SINGLE if dtype == torch.float32 else DOUBLE
        message = f"{isa}: {height}x{width}, C={num_classes}, window={window}"
        assert_close_rel(lp_pixels(scores, image, window=window), expected, tolerance, message=message)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_double_precision_matches_dense_matrix(dtype):
    scores, image = (part.to(dtype) for part in case(14, 17, 4))
    features = oracles.lab_features(image)
    for mode in ("official", "exact"):
        expected, _ = oracles.propagate(scores, features, window=7, tau=0.02, alpha=0.9, mode=mode)
        x = lp_pixels(scores, image, window=7, tau=0.02, alpha=0.9, mode=mode, tol=1e-6 if mode == "official" else 1e-7)
        assert_close_rel(x, expected, 2e-5 if dtype == torch.float32 else 1e-6)


@pytest.mark.parametrize("window", [1, 3, 5, 7, 9, 11, 13, 15, 17, 21, 25, 31])
def test_every_window(device, to_device, window):
    height, width = (12, 15) if device == "emulated" else (36, 41)
    scores, image = case(height, width, 6)
    expected, _, _ = definition(scores, image, window=window)
    assert_close_rel(lp_pixels(to_device(scores), to_device(image), window=window), expected, SINGLE)


@pytest.mark.parametrize("num_classes", [1, 2, 3, 7, 8, 9, 15, 16, 17, 21, 24, 25, 31, 32, 33, 40, 41, 64, 70])
def test_every_number_of_classes(device, to_device, num_classes):
    scores, image = case(9, 11, num_classes)
    expected, _, _ = definition(scores, image, window=5)
    assert_close_rel(lp_pixels(to_device(scores), to_device(image), window=5), expected, SINGLE)


@pytest.mark.parametrize("num_features", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("mode", ["official", "exact"])
def test_features_instead_of_colour(device, to_device, num_features, mode):
    scores, _ = case(15, 19, 3)
    features = 0.05 * torch.randn(num_features, 15, 19)
    expected, _, _ = definition(scores, features, color=None, window=7, mode=mode, tau=0.03)
    x = lp_pixels(to_device(scores), to_device(features), color=None, window=7, mode=mode, tau=0.03)
    assert_close_rel(x, expected, SINGLE if mode == "official" else 1e-4)


def test_lab_features_given_by_hand_are_the_same_as_lab_inside():
    scores, image = (part.double() for part in case(15, 19, 3))
    inside = lp_pixels(scores, image)
    features = torch.from_numpy(oracles.lab_features(image))
    assert_close_rel(lp_pixels(scores, features, color=None), inside, 1e-9)


@pytest.mark.parametrize("parameters", [(0.001, 0.5), (0.1, 0.99), (10.0, 0.1), (0.01, 0.999)])
@pytest.mark.parametrize("max_iter", [1, 3, 25])
def test_parameters(device, to_device, parameters, max_iter):
    tau, alpha = parameters
    scores, image = case(12, 14, 4)
    options = {"tau": tau, "alpha": alpha, "max_iter": max_iter, "tol": 1e-5}
    expected, _, _ = definition(scores, image, **options)
    x, info = lp_pixels(to_device(scores), to_device(image), **options, return_info=True)
    # A class may stop a step earlier or later than in float64; that is worth tol times the condition number.
    assert_close_rel(x, expected, max(SINGLE, 1e-5 / (1 - alpha)))
    assert (info.iterations <= max_iter).all()


def test_batch(device, to_device):
    pictures = [case(10, 13, 5, seed) for seed in (1, 2, 3)]
    scores = torch.stack([scores for scores, _ in pictures])
    image = torch.stack([image for _, image in pictures])
    for mode in ("official", "exact"):
        x, info = lp_pixels(to_device(scores), to_device(image), window=5, mode=mode, return_info=True)
        labels = lp_pixels(to_device(scores), to_device(image), window=5, mode=mode, labels=True)
        assert info.iterations.shape == info.residuals.shape == (3, 5)
        assert labels.shape == (3, 10, 13)
        for index, (one_scores, one_image) in enumerate(pictures):
            alone, alone_info = lp_pixels(
                to_device(one_scores), to_device(one_image), window=5, mode=mode, return_info=True
            )
            assert torch.equal(x[index], alone)
            assert torch.equal(info.iterations[index], alone_info.iterations)
            assert torch.equal(info.residuals[index], alone_info.residuals)
            assert torch.equal(labels[index].long(), alone.argmax(0))
    expected, _, _ = definition(scores, image, window=5, mode="official")
    assert_close_rel(lp_pixels(to_device(scores), to_device(image), window=5), expected, SINGLE)


# Labels and groups ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["official", "exact"])
@pytest.mark.parametrize("groups", [None, [0, 0, 1, 2, 2, 2, 3, 1, 0], [4, 4, 4, 1, 1, 1, 6, 6, 0], [0] * 9])
def test_labels_are_the_best_scores(device, to_device, groups, mode):
    scores, image = case(17, 21, 9)
    options = {"window": 7, "mode": mode, "groups": groups}
    merged = lp_pixels(to_device(scores), to_device(image), **options)
    labels = lp_pixels(to_device(scores), to_device(image), labels=True, **options)
    assert labels.dtype == torch.uint8
    assert torch.equal(labels.long(), merged.argmax(0))
    expected, _, _ = definition(scores, image, **options)
    assert merged.shape == expected.shape
    assert_close_rel(merged, expected, SINGLE if mode == "official" else 1e-4)
    expected_labels, _, _ = definition(scores, image, labels=True, **options)
    assert_labels_agree(labels, expected_labels, 0.99)


def test_empty_group_is_minus_infinity(device, to_device):
    scores, image = case(6, 7, 3)
    merged = lp_pixels(to_device(scores), to_device(image), groups=[0, 3, 3]).cpu()
    assert merged.shape == (4, 6, 7)
    assert (merged[1:3] == -math.inf).all()
    assert merged[[0, 3]].isfinite().all()


def test_ties_go_to_the_smallest_index(device, to_device):
    scores, image = case(8, 9, 1)
    same = to_device(scores.expand(20, 8, 9).contiguous())
    assert lp_pixels(same, to_device(image), labels=True).unique().tolist() == [0]
    descending = [19 - index for index in range(20)]
    assert lp_pixels(same, to_device(image), labels=True, groups=descending).unique().tolist() == [0]
    assert lp_pixels(same, to_device(image), labels=True, groups=[5] * 10 + [2] * 10).unique().tolist() == [2]
    below_zero = -1.0 - same.abs()
    assert lp_pixels(below_zero, to_device(image), labels=True, groups=[7] * 20).unique().tolist() == [7]


@pytest.mark.parametrize(("num_groups", "dtype"), [(255, torch.uint8), (256, torch.int32), (300, torch.int32)])
def test_label_dtype(device, to_device, num_groups, dtype):
    scores, image = case(3, 4, 3)
    labels = lp_pixels(to_device(scores), to_device(image), labels=True, groups=[0, 1, num_groups - 1])
    assert labels.dtype == dtype
    expected, _, _ = definition(scores, image, labels=True, groups=[0, 1, num_groups - 1])
    assert torch.equal(labels.cpu().long(), expected.long())


def test_many_classes_without_groups(device, to_device):
    scores, image = case(3, 4, 300)
    labels = lp_pixels(to_device(scores), to_device(image), window=3, labels=True)
    assert labels.dtype == torch.int32
    assert torch.equal(labels.long(), lp_pixels(to_device(scores), to_device(image), window=3).argmax(0))


@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor])
def test_groups_of_any_kind(kind):
    scores, image = case(6, 7, 3)
    expected = lp_pixels(scores, image, groups=[1, 0, 1])
    assert torch.equal(lp_pixels(scores, image, groups=kind([1, 0, 1])), expected)


# Real photos ------------------------------------------------------------------------------------------------


def agreement_on_photo(to_device, height, width, num_classes):
    """Share of pixels whose label equals that of ten float64 steps."""
    image = photo(height, width)
    scores = photo_scores(image, num_classes)
    expected, _, _ = definition(scores, image, labels=True)
    assert len(expected.unique()) > 2  # a picture with something to tell apart
    labels = lp_pixels(to_device(scores), to_device(image), labels=True)
    return assert_labels_agree(labels, expected, 0.9999)


def test_labels_of_a_photo(device, to_device):
    height, width = (36, 40) if device == "emulated" else (120, 160)
    agreement_on_photo(to_device, height, width, 8)


@pytest.mark.slow
def test_labels_of_a_photo_in_full_size(device, to_device):
    if device == "emulated":
        pytest.skip("too large for the emulator")
    agreement_on_photo(to_device, 300, 451, 21)


@pytest.mark.slow
def test_working_size_in_every_instruction_set(isa):
    image, scores, _ = synthetic_scene(448, 597, 5, 2)
    expected, _, _ = definition(scores, image)
    assert_close_rel(lp_pixels(scores, image), expected, SINGLE)
