"""`lp_pixels` at its borders: empty arrays, NaN and Inf, vanishing links, extreme scales, early stops."""

import math

import numpy as np
import oracles
import pytest
import torch
from pixels_inputs import SINGLE, SINGLE_RESIDUAL, case, definition

from ovs_kernels import lp_pixels
from ovs_kernels.testing import assert_close_rel


@pytest.mark.parametrize(
    "shape", [(0, 2, 3, 4), (1, 0, 3, 4), (1, 2, 0, 4), (1, 2, 3, 0), (0, 3, 4), (2, 0, 4), (2, 3, 0)]
)
@pytest.mark.parametrize("mode", ["official", "exact"])
def test_zero_extents(device, to_device, shape, mode):
    scores = to_device(torch.empty(shape))
    image = to_device(torch.empty((*shape[:-3], 3, *shape[-2:])))
    x, info = lp_pixels(scores, image, mode=mode, return_info=True)
    assert x.shape == shape
    assert x.dtype == torch.float32
    assert info.iterations.shape == info.residuals.shape == shape[:-2]
    if shape[-3] > 0:
        labels = lp_pixels(scores, image, mode=mode, labels=True)
        assert labels.shape == (*shape[:-3], *shape[-2:])
    merged = lp_pixels(scores, image, mode=mode, groups=[0] * shape[-3])
    assert merged.shape == (*shape[:-3], min(1, shape[-3]), *shape[-2:])


def test_zero_extents_of_numpy():
    assert lp_pixels(np.zeros((2, 0, 4), np.float32), np.zeros((3, 0, 4), np.float32)).shape == (2, 0, 4)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("mode", ["official", "exact"])
def test_bad_pixel_is_isolated(device, to_device, bad, mode):
    scores, image = case(12, 13, 4)
    image[1, 5, 6] = bad
    x = lp_pixels(to_device(scores), to_device(image), window=5, mode=mode).cpu()
    # X = Y there; ten steps of conjugate gradients only come near it, as they do everywhere.
    close = 1e-5 if mode == "exact" else 0.05
    assert_close_rel(x[:, 5, 6], scores[:, 5, 6], close)
    assert x.isfinite().all()
    expected, _, _ = definition(scores, image, window=5, mode=mode, tol=1e-6 if mode == "official" else 1e-9)
    assert_close_rel(x, expected, SINGLE)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("mode", ["official", "exact"])
def test_bad_score_spoils_its_class_only(device, to_device, bad, mode):
    scores, image = case(10, 11, 5)
    scores, image = to_device(scores), to_device(image)
    clean = lp_pixels(scores, image, mode=mode)
    clean_labels = lp_pixels(scores[[0, 1, 3, 4]], image, mode=mode, labels=True)
    spoiled = scores.clone()
    spoiled[2, 3, 4] = bad
    x, info = lp_pixels(spoiled, image, mode=mode, return_info=True)
    assert x[2].isnan().all()
    assert info.residuals[2].isnan()
    assert info.iterations[2] == 0
    others = torch.tensor([0, 1, 3, 4], device=x.device)
    assert torch.equal(x[others], clean[others])
    labels = lp_pixels(spoiled, image, mode=mode, labels=True)
    assert torch.equal(labels, torch.tensor([0, 1, 3, 4], dtype=torch.uint8, device=x.device)[clean_labels.long()])
    # In a group the class counts as NaN for scores and as absent for labels.
    merged = lp_pixels(spoiled, image, mode=mode, groups=[0, 1, 1, 2, 2])
    assert merged[1].isnan().all()
    assert merged[[0, 2]].isfinite().all()
    grouped = lp_pixels(spoiled, image, mode=mode, groups=[0, 1, 1, 2, 2], labels=True)
    without = lp_pixels(scores[others], image, mode=mode, groups=[0, 1, 2, 2], labels=True)
    assert torch.equal(grouped, without)


def test_all_classes_bad_is_label_zero(device, to_device):
    scores, image = case(4, 5, 3)
    scores[:, 1, 1] = math.nan
    assert lp_pixels(to_device(scores), to_device(image), labels=True).unique().tolist() == [0]
    assert lp_pixels(to_device(scores), to_device(image), labels=True, groups=[3, 2, 3]).unique().tolist() == [0]


@pytest.mark.parametrize("mode", ["official", "exact"])
def test_class_of_zeros(device, to_device, mode):
    scores, image = case(9, 10, 3)
    scores[1] = 0.0
    x, info = lp_pixels(to_device(scores), to_device(image), mode=mode, return_info=True)
    assert (x[1] == 0).all()
    assert info.iterations[1] == 0
    assert info.residuals[1] == 0
    assert (info.iterations[[0, 2]] > 0).all()


def test_constant_image(device, to_device):
    scores, _ = case(15, 16, 3)
    image = torch.full((3, 15, 16), 0.4)
    for mode in ("official", "exact"):
        expected, _, _ = definition(scores, image, mode=mode, tol=1e-6 if mode == "official" else 1e-9)
        assert_close_rel(lp_pixels(to_device(scores), to_device(image), mode=mode), expected, 1e-4)


def test_weak_links_count_fully_until_they_underflow(device, to_device):
    # e^-80 normalises to a full link, e^-90 is zero by definition: (3, 0) -> (4, 2) or stays.
    scores = torch.tensor([[[3.0, 0.0]]])
    for distance, expected in ((0.80, [4.0, 2.0]), (0.90, [3.0, 0.0])):
        features = torch.tensor([[[0.0, distance]]])
        x = lp_pixels(to_device(scores), to_device(features), color=None, alpha=0.5)
        assert x.flatten().tolist() == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_root_of_degree_stops_after_one_step(device, to_device):
    # On a constant image: y = sqrt(deg) is an eigenvector, solved exactly by y / (1 - alpha).
    height, width, reach = 11, 12, 2
    rows = torch.tensor([min(i, reach) + min(height - 1 - i, reach) + 1 for i in range(height)])
    columns = torch.tensor([min(i, reach) + min(width - 1 - i, reach) + 1 for i in range(width)])
    scores = (rows[:, None] * columns - 1.0).sqrt()[None]
    image = torch.full((3, height, width), 0.6)
    x, info = lp_pixels(to_device(scores), to_device(image), window=5, tol=1e-4, return_info=True)
    assert_close_rel(x, 20 * scores, 1e-5)
    assert info.iterations.tolist() == [1]
    assert info.residuals.item() < 1e-5


def test_classes_freeze_one_by_one(device, to_device):
    scores, image = case(10, 12, 12)
    expected, steps, residuals = definition(scores, image, window=5, alpha=0.8, tol=1e-3, max_iter=50)
    x, info = lp_pixels(
        to_device(scores), to_device(image), window=5, alpha=0.8, tol=1e-3, max_iter=50, return_info=True
    )
    # A residual that lands within rounding of tol may stop a step apart; these do not.
    assert info.iterations.tolist() == steps.tolist()
    assert len(set(steps.tolist())) > 1
    assert_close_rel(x, expected, SINGLE)
    assert_close_rel(info.residuals, residuals, 1e-2)


@pytest.mark.parametrize("exponent", [60, 110, -60, -110])
@pytest.mark.parametrize("mode", ["official", "exact"])
def test_scale_of_scores_does_not_matter(device, to_device, exponent, mode):
    scores, image = (to_device(part) for part in case(12, 70, 3))
    scale = 2.0**exponent
    x, info = lp_pixels(scores, image, mode=mode, return_info=True)
    scaled, scaled_info = lp_pixels(scale * scores, image, mode=mode, return_info=True)
    assert torch.equal(scaled, scale * x)
    assert torch.equal(scaled_info.iterations, info.iterations)
    assert torch.equal(scaled_info.residuals, info.residuals)


def test_exact_mode_is_linear(device, to_device):
    scores, image = case(10, 11, 3)
    scores[2] = scores[0] - 2.5 * scores[1]
    x = lp_pixels(to_device(scores), to_device(image), mode="exact").cpu()
    assert_close_rel(x[2], x[0] - 2.5 * x[1], 2e-5)


def test_exact_mode_keeps_the_order_of_classes(device, to_device):
    scores, image = case(10, 11, 2)
    scores[1] = scores[0] + torch.rand(10, 11)
    x = lp_pixels(to_device(scores), to_device(image), mode="exact").cpu()
    assert (x[1] > x[0]).all()
    positive = lp_pixels(to_device(scores.abs()), to_device(image), mode="exact")
    assert (positive > 0).all()


def test_exact_mode_stops_at_max_iter(device, to_device):
    scores, image = (to_device(part) for part in case(10, 11, 3))
    _, rough = lp_pixels(scores, image, mode="exact", max_iter=5, return_info=True)
    assert rough.iterations.tolist() == [5, 5, 5]
    _, good = lp_pixels(scores, image, mode="exact", return_info=True)
    assert (good.residuals < rough.residuals / 100).all()
    # Chebyshev's promise for five steps.
    assert (rough.residuals <= 1 / math.cosh(5 * math.acosh(1 / 0.95))).all()


@pytest.mark.parametrize("tol", [1e-1, 1e-3, 1e-4])
def test_exact_mode_reaches_tol(device, to_device, tol):
    # Features, not colours: a Lab value in float32 is off by 2e-7, its links at tau = 0.01 by 2e-5.
    scores, _ = case(14, 15, 3)
    features = 0.02 * torch.randn(2, 14, 15)
    x, info = lp_pixels(to_device(scores), to_device(features), color=None, mode="exact", tol=tol, return_info=True)
    assert (info.residuals <= tol + SINGLE_RESIDUAL).all()
    matrix = oracles.system_matrix(oracles.dense_weights(features.numpy(), 13, 0.01), 0.95)
    y, solution = scores.double().flatten(1).numpy(), x.cpu().double().flatten(1).numpy()
    residuals = np.linalg.norm(y - solution @ matrix, axis=1) / np.linalg.norm(y, axis=1)
    np.testing.assert_allclose(info.residuals.cpu().numpy(), residuals, rtol=0.02, atol=SINGLE_RESIDUAL)
