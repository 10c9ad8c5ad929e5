"""`ovs_kernels.reference.upsample`, the definition: against numbers by hand and a loop over pixels and nodes."""

import math

import numpy as np
import pytest
import torch
from upsample_inputs import CASES, DOUBLE, case, gradient, inputs, places, upsampled

from ovs_kernels.reference import upsample as reference
from ovs_kernels.testing import assert_close_rel

PLAIN = {"sigma_spatial": 1.0, "sigma_range": 0.1, "radius": 2}


def defined(maps, guide, omit=False, **window):
    """The definition for one image, [C, h, w] and [3, H, W], in float64."""
    guide = guide.double() / 255 if guide.dtype == torch.uint8 else guide.double()
    return reference.joint_bilateral_upsample(maps.double()[None], guide[None], omit=omit, **PLAIN | window)[0]


def test_places_by_hand():
    # Two nodes over six pixels, 1/3 node a pixel: p_low is -1/3, 0, 1/3, 2/3, 1, 4/3; nodes are over pixels 1 and 4.
    axis = reference.Axis.of(2, 6, torch.device("cpu"))
    assert axis.cell.tolist() == [0, 0, 0, 1, 1, 1]
    assert axis.centre.tolist() == [1, 4]
    # Nodes between pixels: half-way is rounded up. p_low of pixel 1 is 0.25 + 0.5 - 0.5, of pixel 3 it is 1.25.
    axis = reference.Axis.of(2, 4, torch.device("cpu"))
    assert axis.cell.tolist() == [0, 0, 1, 1]
    assert axis.centre.tolist() == [1, 3]
    # Three nodes over four pixels: p_low = -1/8, 5/8, 11/8, 17/8; node 1 is over 1.5, rounded up.
    axis = reference.Axis.of(3, 4, torch.device("cpu"))
    assert axis.cell.tolist() == [0, 1, 1, 2]
    assert axis.centre.tolist() == [0, 2, 3]
    # Two nodes over three pixels: p_low of pixel 1 is exactly 1/2.
    axis = reference.Axis.of(2, 3, torch.device("cpu"))
    assert axis.cell.tolist() == [0, 1, 1]


@pytest.mark.parametrize("num_nodes", [1, 2, 3, 7, 10, 37])
def test_places_match_fractions(num_nodes):
    for num_pixels in range(num_nodes, 80):
        low, centre = places(num_nodes, num_pixels)
        axis = reference.Axis.of(num_nodes, num_pixels, torch.device("cpu"))
        assert axis.centre.tolist() == centre
        assert axis.cell.tolist() == [math.floor(position + 0.5) for position in low]
        for step in (-1, 0, 2):
            node, inside, distance = axis.tap(step)
            wanted = [cell + step for cell in axis.cell.tolist()]
            assert inside.tolist() == [0 <= q < num_nodes for q in wanted]
            assert node[inside].tolist() == [q for q in wanted if 0 <= q < num_nodes]
            np.testing.assert_allclose(distance, [float(p - q) for p, q in zip(low, wanted, strict=True)], atol=1e-15)


def test_two_nodes_by_hand():
    # Two nodes over two pixels side by side, distance 1; colours 0 and 0.1 in all channels, squared distance 0.03.
    maps = torch.tensor([[[1.0, 0.0]]])
    guide = torch.tensor([[[0.0, 0.1]]]).expand(3, 1, 2)
    other = math.exp(-1 / 2 - 0.03 / 0.02)
    expected = [1 / (1 + other), other / (1 + other)]
    np.testing.assert_allclose(defined(maps, guide.double()).flatten(), expected, rtol=1e-7)
    as_bytes = torch.tensor([[[0, 51]]], dtype=torch.uint8).expand(3, 1, 2)
    other = math.exp(-1 / 2 - 0.12 / 0.02)
    np.testing.assert_allclose(defined(maps, as_bytes).flatten(), [1 / (1 + other), other / (1 + other)], rtol=1e-12)


@pytest.mark.parametrize("kind", ["float", "uint8"])
@pytest.mark.parametrize("name", CASES)
def test_matches_a_loop(name, kind):
    maps, guide, window = case(name, torch.float64, kind)
    assert_close_rel(defined(maps, guide, **window), upsampled(maps, guide.numpy(), **window), DOUBLE)


@pytest.mark.parametrize("name", CASES)
def test_backward_matches_a_loop(name):
    maps, guide, window = case(name, torch.float64)
    v_up = torch.randn(maps.shape[0], *guide.shape[1:], dtype=torch.float64)
    found = reference.joint_bilateral_upsample_backward(
        v_up[None], guide.double()[None], None, maps.shape[1:], **PLAIN | window
    )[0]
    assert_close_rel(found, gradient(v_up, guide.numpy(), maps.shape[1:], **window), DOUBLE)


def test_batches_are_images_one_by_one():
    pairs = [inputs(3, (4, 5), (13, 17), seed) for seed in (1, 2)]
    maps, guides = (torch.stack(parts).double() for parts in zip(*pairs, strict=True))
    both = reference.joint_bilateral_upsample(maps, guides, omit=False, **PLAIN)
    for result, (one, guide) in zip(both, pairs, strict=True):
        assert_close_rel(result, upsampled(one, guide.numpy()), DOUBLE)


def test_best_class_by_hand():
    nan, inf = math.nan, math.inf
    up = torch.tensor([[1.0, nan, -inf, nan, 2.0], [1.0, 0.0, -inf, nan, inf], [0.0, 5.0, -inf, nan, 3.0]])
    labels = reference.best_class(up.reshape(1, 3, 1, 5))
    assert labels.dtype == torch.uint8
    assert labels.tolist() == [[[0, 2, 0, 0, 1]]]
    assert reference.best_class(torch.zeros(1, 256, 1, 1)).dtype == torch.int32
