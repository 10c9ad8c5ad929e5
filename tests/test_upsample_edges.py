"""`joint_bilateral_upsample`: NaN and Inf in maps and guide, colours and sigmas of any size, ties, nothing to do."""

import math

import numpy as np
import pytest
import torch
from upsample_inputs import SINGLE, inputs, shares, upsampled, weights_of

from ovs_kernels import joint_bilateral_upsample
from ovs_kernels.testing import assert_close_rel

NAN, INF = math.nan, math.inf


def windows_that_hold(low_size, size, node, radius=2):
    """[H, W] bool: whether a node is in the window of a pixel."""
    flat = weights_of(np.zeros((3, *size)), low_size, radius=radius)
    return torch.from_numpy(np.isfinite(flat[:, :, node[0], node[1]]))


# Maps -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(30, 41), (6, 7), (12, 14), (48, 56)])
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_bad_value_reaches_the_pixels_of_its_windows(device, to_device, bad, size):
    maps, guide = inputs(8, (6, 7), size)
    clean = joint_bilateral_upsample(to_device(maps), to_device(guide)).cpu()
    maps[6, 2, 5] = bad
    up = joint_bilateral_upsample(to_device(maps), to_device(guide)).cpu()
    touched = torch.zeros(8, *size, dtype=torch.bool)
    touched[6] = windows_that_hold((6, 7), size, (2, 5))
    assert 0 < touched.sum() < size[0] * size[1]
    assert torch.equal(up[~touched], clean[~touched])
    assert torch.equal(up[touched], torch.full_like(up[touched], bad)) or (
        math.isnan(bad) and up[touched].isnan().all()
    )


def test_opposite_infinities_are_nan(device, to_device):
    maps = torch.zeros(1, 2, 2)
    maps[0, 0, 0], maps[0, 1, 1] = INF, -INF
    up = joint_bilateral_upsample(to_device(maps), to_device(torch.rand(3, 9, 10)), radius=1)
    assert up.isnan().all()


def test_infinity_beyond_an_edge_is_infinity(device, to_device):
    # The weight across the edge is exp(-15,000): zero in any dtype, and 0 * Inf must not become NaN.
    guide = torch.zeros(3, 8, 16)
    guide[:, :, 8:] = 1.0
    maps = torch.ones(2, 2, 4)
    maps[1, :, 3] = -INF
    for dtype in (torch.float32, torch.float64):
        up = joint_bilateral_upsample(to_device(maps.to(dtype)), to_device(guide), sigma_range=0.01, radius=1).cpu()
        assert (up[1, :, 8:] == -INF).all()
        assert_close_rel(up[1, :, :8], torch.ones(8, 8), 1e-6)
        assert_close_rel(up[0], torch.ones(8, 16), 1e-6)


def test_rejected_class_never_wins(device, to_device):
    maps, guide = inputs(9, (4, 5), (21, 26))
    maps[:, 0] -= 50.0
    expected = joint_bilateral_upsample(to_device(maps[1:]), to_device(guide), labels=True).cpu()
    maps[0] = -INF
    labels = joint_bilateral_upsample(to_device(maps), to_device(guide), labels=True).cpu()
    assert torch.equal(labels, expected + 1)
    up = joint_bilateral_upsample(to_device(maps), to_device(guide)).cpu()
    assert (up[0] == -INF).all()
    assert up[1:].isfinite().all()


def test_nan_class_never_wins(device, to_device):
    maps, guide = inputs(5, (4, 5), (21, 26))
    expected = joint_bilateral_upsample(to_device(maps[:4]), to_device(guide), labels=True).cpu()
    maps[4] = NAN
    assert torch.equal(joint_bilateral_upsample(to_device(maps), to_device(guide), labels=True).cpu(), expected)


@pytest.mark.parametrize("bad", [NAN, -INF])
def test_nothing_but_rejected_classes_is_label_0(device, to_device, bad):
    maps = to_device(torch.full((7, 3, 4), bad))
    assert (joint_bilateral_upsample(maps, to_device(torch.rand(3, 13, 14)), labels=True) == 0).all()


def test_ties_go_to_the_smallest_index(device, to_device):
    maps, guide = inputs(1, (4, 5), (23, 26))
    maps = maps.expand(10, 4, 5).clone()
    maps[0] -= 1.0
    assert (joint_bilateral_upsample(to_device(maps), to_device(guide), labels=True) == 1).all()


# nan_policy="omit" ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(20, 27), (5, 6), (10, 12)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_omitted_taps_share_their_weight(device, to_device, size, dtype):
    maps, guide = inputs(8, (5, 6), size)
    holes = torch.rand(maps.shape) < 0.5
    holes[3] = False
    maps[holes] = NAN
    maps[7] = NAN
    exponents = weights_of(guide.numpy(), (5, 6))
    expected = np.full((8, *size), np.nan)
    for c in range(7):
        present = np.where(holes[c], -np.inf, exponents)
        with np.errstate(invalid="ignore"):
            weights = shares(present)
        expected[c] = np.einsum("yxij,ij->yx", weights, np.nan_to_num(maps[c].double().numpy()))
    up = joint_bilateral_upsample(to_device(maps.to(dtype)), to_device(guide), nan_policy="omit")
    assert np.isnan(expected[7]).all()
    assert_close_rel(up, expected, SINGLE)
    labels = joint_bilateral_upsample(to_device(maps.to(dtype)), to_device(guide), nan_policy="omit", labels=True)
    assert (labels.cpu().numpy() == np.nan_to_num(expected, nan=-np.inf).argmax(0)).mean() > 0.998


def test_what_is_left_does_not_underflow(device, to_device):
    # All nodes of the pixel's own colour are missing; the others are exp(-150) away.
    guide = torch.zeros(3, 4, 16)
    guide[:, :, 8:] = 1.0
    maps = torch.full((1, 1, 4), NAN)
    maps[0, 0, 2] = 5.0
    up = joint_bilateral_upsample(to_device(maps), to_device(guide), sigma_range=0.05, nan_policy="omit")
    assert_close_rel(up, torch.full((1, 4, 16), 5.0), 1e-6)


def test_omit_without_a_nan_changes_nothing(device, to_device):
    maps, guide = (to_device(part) for part in inputs(7, (5, 6), (22, 31)))
    assert_close_rel(
        joint_bilateral_upsample(maps, guide, nan_policy="omit"), joint_bilateral_upsample(maps, guide), 1e-6
    )


def test_infinities_are_not_omitted(device, to_device):
    maps, guide = inputs(2, (4, 5), (17, 23))
    maps[1, 1, 1], maps[1, 1, 2], maps[1, 3, 4] = NAN, -INF, -INF
    up = joint_bilateral_upsample(to_device(maps), to_device(guide), radius=1, nan_policy="omit").cpu()
    touched = windows_that_hold((4, 5), (17, 23), (1, 2), 1) | windows_that_hold((4, 5), (17, 23), (3, 4), 1)
    assert (up[1][touched] == -INF).all()
    assert up[1][~touched].isfinite().all()
    assert up[0].isfinite().all()


# Guide ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_colour_that_is_none(device, to_device, bad):
    maps, guide = inputs(3, (4, 5), (20, 25))  # cells of 5 x 5 pixels
    guide[1, 7, 12] = bad  # the pixel under node (1, 2)
    guide[2, 15, 21] = bad  # under no node
    guide[:, 2, 2] = bad  # under node (0, 0)
    expected = upsampled(maps, guide.numpy())
    assert np.isfinite(expected).all()
    assert_close_rel(joint_bilateral_upsample(to_device(maps), to_device(guide)), expected, SINGLE)
    spatial = upsampled(maps, np.zeros((3, 20, 25)))
    for y, x in ((7, 12), (15, 21), (2, 2)):
        np.testing.assert_allclose(expected[:, y, x], spatial[:, y, x], rtol=1e-12)


def test_guide_without_any_colour(device, to_device):
    maps = torch.randn(4, 3, 5)
    up = joint_bilateral_upsample(to_device(maps), to_device(torch.full((3, 14, 33), NAN)))
    assert_close_rel(up, upsampled(maps, np.zeros((3, 14, 33))), SINGLE)


def test_one_colour_far_from_all(device, to_device):
    # The exponent of every tap is -37,500, and what counts is how they differ.
    maps = torch.randn(2, 4, 4)
    guide = torch.zeros(3, 16, 16)
    guide[:, 6, 5] = 5.0
    up = joint_bilateral_upsample(to_device(maps), to_device(guide), sigma_range=0.031622776601683794).cpu()
    plain = upsampled(maps, np.zeros((3, 16, 16)))
    np.testing.assert_allclose(up[:, 6, 5], plain[:, 6, 5], atol=5e-3)  # float32 keeps 0.004 of such an exponent
    double = joint_bilateral_upsample(to_device(maps.double()), to_device(guide.double()), sigma_range=0.0316).cpu()
    np.testing.assert_allclose(double[:, 6, 5], plain[:, 6, 5], rtol=1e-9)


@pytest.mark.parametrize("sigma", [1e-300, 1e-20, 1e-3])
def test_tiny_sigmas_take_the_nearest(device, to_device, sigma):
    # Constant guide: only distance counts, and 3 x 5 pixels to a node have none half-way between two nodes.
    maps = torch.randn(2, 4, 4)
    up = joint_bilateral_upsample(to_device(maps), to_device(torch.zeros(3, 12, 20)), sigma_spatial=sigma)
    assert_close_rel(up, maps.repeat_interleave(3, 1).repeat_interleave(5, 2), 1e-6)
    # Every node of its own colour, sigma_range tiny: the same.
    guide = (torch.arange(16.0) / 16).reshape(1, 4, 4).repeat_interleave(3, 1).repeat_interleave(5, 2).expand(3, 12, 20)
    up = joint_bilateral_upsample(to_device(maps), to_device(guide), sigma_range=sigma)
    assert_close_rel(up, maps.repeat_interleave(3, 1).repeat_interleave(5, 2), 1e-6)


@pytest.mark.parametrize("sigma", [1e20, 1e300])
def test_huge_sigmas_average(device, to_device, sigma):
    maps = torch.randn(2, 3, 4)
    up = joint_bilateral_upsample(
        to_device(maps), to_device(torch.rand(3, 10, 11)), sigma_spatial=sigma, sigma_range=sigma, radius=4
    )
    assert_close_rel(up, maps.mean((1, 2), keepdim=True).expand(2, 10, 11), 1e-6)


# Nothing ----------------------------------------------------------------------------------------------------


def test_no_class_and_no_image(device, to_device):
    up = joint_bilateral_upsample(to_device(torch.zeros(0, 2, 3)), to_device(torch.zeros(3, 4, 9)))
    assert up.shape == (0, 4, 9)
    maps, guides = to_device(torch.zeros(0, 5, 2, 3)), to_device(torch.zeros(0, 3, 4, 9))
    assert joint_bilateral_upsample(maps, guides).shape == (0, 5, 4, 9)
    labels = joint_bilateral_upsample(maps, guides, labels=True)
    assert labels.shape == (0, 4, 9)
    assert labels.dtype == torch.uint8
    leaf = maps.clone().requires_grad_()
    joint_bilateral_upsample(leaf, guides).sum().backward()
    assert leaf.grad.shape == leaf.shape
