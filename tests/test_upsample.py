"""`ovs_kernels.joint_bilateral_upsample`: every backend against numbers by hand and a loop over pixels and nodes."""

import functools
import math

import numpy as np
import pytest
import torch
from upsample_inputs import CASES, DOUBLE, SINGLE, case, inputs, upsampled

from ovs_kernels import joint_bilateral_upsample
from ovs_kernels.testing import assert_close_rel, assert_labels_agree


@functools.cache
def expected_of(name, kind="float"):
    maps, guide, window = case(name, kind=kind)
    return upsampled(maps, guide.numpy(), **window)


def upsample_on(to_device, name, dtype=torch.float32, kind="float", **options):
    maps, guide, window = case(name, dtype, kind)
    return joint_bilateral_upsample(to_device(maps), to_device(guide), **window, **options)


# Worked out by hand -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_two_nodes_by_hand(device, to_device, dtype):
    # test_reference_upsample.py derives these numbers.
    maps = torch.tensor([[[1.0, 0.0]]], dtype=dtype)
    guide = torch.tensor([[[0, 51]]], dtype=torch.uint8).expand(3, 1, 2)
    other = math.exp(-1 / 2 - 0.12 / 0.02)
    up = joint_bilateral_upsample(to_device(maps), to_device(guide))
    assert up.dtype == dtype
    np.testing.assert_allclose(up.cpu().flatten(), [1 / (1 + other), other / (1 + other)], rtol=1e-5)


def test_one_node_is_everywhere(device, to_device):
    maps = torch.tensor([3.25, -1.5]).reshape(2, 1, 1)
    up = joint_bilateral_upsample(to_device(maps), to_device(torch.rand(3, 7, 33)))
    assert_close_rel(up, maps.expand(2, 7, 33), 1e-6)


def test_radius_0_takes_the_node_below(device, to_device):
    # 3 x 4 nodes over 7 x 9 pixels: node (2 y + 1) * 3 // 14, (2 x + 1) * 4 // 18.
    maps = torch.arange(12.0).reshape(1, 3, 4)
    up = joint_bilateral_upsample(to_device(maps), to_device(torch.rand(3, 7, 9)), radius=0)
    rows, columns = [0, 0, 1, 1, 1, 2, 2], [0, 0, 1, 1, 2, 2, 2, 3, 3]
    assert_close_rel(up[0], maps[0][rows][:, columns], 1e-6)


def test_edge_is_not_crossed(device, to_device):
    # Black and white at sigma_range=0.1: a weight across the edge is exp(-150).
    guide = torch.zeros(3, 24, 32)
    guide[:, :, 13:] = 1.0
    maps = torch.zeros(2, 6, 8)
    maps[1] = 1.0
    maps[:, :, 3:] = maps[:, :, 3:].flip(0)  # nodes over columns 2, 6, 10 | 14, ...
    up = joint_bilateral_upsample(to_device(maps), to_device(guide)).cpu()
    side = (torch.arange(32) >= 13).float().expand(24, 32)
    assert_close_rel(up, torch.stack((side, 1 - side)), 1e-6)
    labels = joint_bilateral_upsample(to_device(maps), to_device(guide), labels=True).cpu()
    assert torch.equal(labels, 1 - side.to(torch.uint8))


# Against the loop -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_matches_a_loop(device, to_device, name, dtype):
    up = upsample_on(to_device, name, dtype)
    assert up.dtype == dtype
    assert up.is_contiguous()
    assert_close_rel(up, expected_of(name), SINGLE if dtype == torch.float32 else DOUBLE)


@pytest.mark.parametrize("name", CASES)
def test_bytes_match_a_loop(device, to_device, name):
    assert_close_rel(upsample_on(to_device, name, kind="uint8"), expected_of(name, "uint8"), SINGLE)
    assert_close_rel(upsample_on(to_device, name, torch.float64, "uint8"), expected_of(name, "uint8"), DOUBLE)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_labels_are_the_argmax(device, to_device, name, dtype):
    labels = upsample_on(to_device, name, dtype, labels=True)
    assert labels.dtype == torch.uint8
    assert labels.is_contiguous()
    assert_labels_agree(labels, expected_of(name).argmax(0), 0.999 if dtype == torch.float32 else 1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_instruction_set(isa, dtype):
    for name in CASES:
        up = upsample_on(lambda tensor: tensor, name, dtype)
        assert_close_rel(up, expected_of(name), SINGLE if dtype == torch.float32 else DOUBLE, message=f"{isa}: {name}")
        labels = upsample_on(lambda tensor: tensor, name, dtype, labels=True)
        assert_labels_agree(labels, expected_of(name).argmax(0), 0.999, message=f"{isa}: {name}")


@pytest.mark.parametrize("num_classes", [1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 31, 33, 65])
def test_every_number_of_classes(device, to_device, num_classes):
    maps, guide = inputs(num_classes, (3, 4), (17, 25))
    expected = upsampled(maps, guide.numpy())
    assert_close_rel(joint_bilateral_upsample(to_device(maps), to_device(guide)), expected, SINGLE)
    labels = joint_bilateral_upsample(to_device(maps), to_device(guide), labels=True)
    assert_labels_agree(labels, expected.argmax(0), 0.995)


@pytest.mark.parametrize("width", [1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 63, 65, 130])
def test_every_width(device, to_device, width):
    maps, guide = inputs(4, (2, min(width, 6)), (5, width))
    assert_close_rel(
        joint_bilateral_upsample(to_device(maps), to_device(guide)), upsampled(maps, guide.numpy()), SINGLE
    )


def test_more_than_255_classes(device, to_device):
    maps, guide = inputs(300, (2, 2), (4, 5))
    maps[299] += 100.0
    labels = joint_bilateral_upsample(to_device(maps), to_device(guide), labels=True)
    assert labels.dtype == torch.int32
    assert (labels == 299).all()


def test_batches(device, to_device):
    pairs = [inputs(5, (4, 5), (21, 34), seed) for seed in (1, 2, 3)]
    maps, guides = (to_device(torch.stack(parts)) for parts in zip(*pairs, strict=True))
    both, labels = (joint_bilateral_upsample(maps, guides, labels=wanted) for wanted in (False, True))
    for index, (one, guide) in enumerate(pairs):
        assert_close_rel(both[index], upsampled(one, guide.numpy()), SINGLE)
        alone = joint_bilateral_upsample(to_device(one), to_device(guide))
        assert torch.equal(both[index], alone)
        assert torch.equal(labels[index], joint_bilateral_upsample(to_device(one), to_device(guide), labels=True))


# Invariants -------------------------------------------------------------------------------------------------


def test_constants_are_kept(device, to_device):
    for name in CASES:
        maps, guide, window = case(name)
        up = joint_bilateral_upsample(to_device(torch.full_like(maps, 2.5)), to_device(guide), **window)
        assert_close_rel(up, torch.full(up.shape, 2.5), 1e-6, message=name)


def test_permuted_classes_permute_labels(device, to_device):
    maps, guide = inputs(11, (5, 6), (31, 44))
    order = torch.randperm(11)
    labels = joint_bilateral_upsample(to_device(maps), to_device(guide), labels=True).cpu().long()
    permuted = joint_bilateral_upsample(to_device(maps[order]), to_device(guide), labels=True).cpu().long()
    assert len(labels.unique()) > 3
    assert torch.equal(order[permuted], labels)


def test_labels_are_the_argmax_of_the_maps_bit_for_bit(device, to_device):
    for name in ("factor 8", "factor 5.86 and 6.7", "21 classes", "filter"):
        up = upsample_on(to_device, name)
        labels = upsample_on(to_device, name, labels=True)
        assert torch.equal(labels.long(), up.argmax(0)), name


def test_constant_guide_is_a_gaussian(device, to_device):
    maps = torch.randn(3, 6, 7)
    up = joint_bilateral_upsample(to_device(maps), to_device(torch.full((3, 20, 31), 0.3)), radius=3, sigma_spatial=1.3)
    plain = upsampled(maps, np.zeros((3, 20, 31)), radius=3, sigma_spatial=1.3, sigma_range=1.0)
    assert_close_rel(up, plain, SINGLE)


def test_scale_of_the_guide(device, to_device):
    maps, guide = inputs(3, (5, 6), (20, 30))
    up = joint_bilateral_upsample(to_device(maps), to_device(guide))
    scaled = joint_bilateral_upsample(to_device(maps), to_device(1000 * guide + 50), sigma_range=100.0)
    assert_close_rel(scaled, up, 1e-3)  # the guide's own rounding, times 1,000
