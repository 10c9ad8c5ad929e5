"""The definition, `ovs_kernels.reference.pamr`: against numbers by hand and the published module's steps."""

import math

import pytest
import torch
from pamr_inputs import CASES, DOUBLE, case, expected_of, gradient, inputs, published, published_weights, refined

from ovs_kernels.reference import pamr, pamr_backward, pamr_weights
from ovs_kernels.testing import assert_close_rel


def test_two_pixels_by_hand():
    # Pixels 0 and 1 side by side, dilation 1. Left pixel: of the nine samples (three equal rows) six are 0 and three
    # are 1: variance (6 * (1/3)^2 + 3 * (2/3)^2) / 8 = 1/4. Its neighbours: three to the right at distance 1, whose
    # exponents are -1 / (1e-8 + 0.1 * 0.5), about -20, and five at 0.
    image = torch.tensor([[[[0.0, 1.0]]]], dtype=torch.float64)
    far = math.exp(-1 / (1e-8 + 0.05))
    low, high = far / (5 + 3 * far), 1 / (5 + 3 * far)
    weights = pamr_weights(image, [1])
    right = [2, 4, 7]  # of the eight
    expected = torch.tensor([low if tap in right else high for tap in range(8)], dtype=torch.float64)
    torch.testing.assert_close(weights[0, :, 0, 0], expected, rtol=1e-12, atol=0)
    scores = torch.tensor([[[[10.0, 20.0]]]], dtype=torch.float64)
    left = 10.0 + 10.0 * 3 * low
    found = pamr(image, scores, num_iter=1, dilations=[1])
    torch.testing.assert_close(found[0, 0, 0, 0].item(), left, rtol=1e-12, atol=0)
    torch.testing.assert_close(found[0, 0, 0, 1].item(), 30.0 - left, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", CASES)
def test_matches_the_published_steps(name):
    image, scores, options = case(name, torch.float64)
    assert_close_rel(pamr(image[None], scores[None], **options)[0], expected_of(name), DOUBLE)


@pytest.mark.parametrize("name", CASES)
def test_weights_are_the_published_ones_and_sum_to_1(name):
    image, _, options = case(name, torch.float64)
    weights = pamr_weights(image[None], options["dilations"])
    assert_close_rel(weights, published_weights(image[None], options["dilations"])[:, 0], DOUBLE)
    assert_close_rel(weights.sum(1), torch.ones(1, *image.shape[1:]), DOUBLE)


@pytest.mark.parametrize("name", CASES)
def test_backward_is_the_gradient_of_the_published_steps(name):
    image, scores, options = case(name, torch.float64)
    found = pamr_backward(scores[None], image[None], **options)[0]
    assert_close_rel(found, gradient(image, scores, **options), DOUBLE)


@pytest.mark.parametrize("low", [(7, 9), (1, 1), (40, 3), (60, 80)])
def test_scores_are_resized_as_published(low):
    image, _ = inputs(1, 3, (24, 31))
    scores = torch.randn(4, *low)
    found = pamr(image.double()[None], scores.double()[None], num_iter=2, dilations=(2, 4))
    assert_close_rel(found[0], refined(image, scores, 2, (2, 4)), DOUBLE)


def test_batches_are_images_one_by_one():
    pairs = [inputs(3, 3, (13, 17), seed) for seed in (1, 2)]
    images, scores = (torch.stack(parts).double() for parts in zip(*pairs, strict=True))
    both = pamr(images, scores, num_iter=3, dilations=(1, 5))
    assert_close_rel(both, published(images, scores, 3, (1, 5)), DOUBLE)


def test_no_iteration_is_a_copy():
    image, scores = inputs(3, 3, (5, 6))
    result = pamr(image[None], scores[None], num_iter=0, dilations=(8,))
    assert torch.equal(result[0], scores)
    assert result.data_ptr() != scores.data_ptr()
