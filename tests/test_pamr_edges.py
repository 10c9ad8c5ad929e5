"""`pamr` at its edges: nothing to do, values that are not finite, extreme images."""

import math

import pytest
import torch
from pamr_inputs import gathered, inputs, refined, single

from ovs_kernels import pamr
from ovs_kernels.testing import assert_close_rel


def test_no_iteration_is_a_copy(device, to_device):
    image, scores = inputs(3, 3, (9, 11))
    scores[1, 2, 3] = math.nan
    given = to_device(scores)
    result = pamr(to_device(image), given, num_iter=0)
    assert torch.equal(result.nan_to_num(nan=-7.0), given.nan_to_num(nan=-7.0))
    assert result.data_ptr() != given.data_ptr()


@pytest.mark.parametrize("shape", [(0, 5, 6), (3, 0, 6), (3, 5, 0), (2, 0, 5, 6), (0, 3, 5, 6), (2, 3, 0, 0)])
@pytest.mark.parametrize("num_iter", [0, 2])
def test_nothing_to_do(device, to_device, shape, num_iter):
    image = torch.rand(*shape[:-3], 3, *shape[-2:])
    result = pamr(to_device(image), to_device(torch.rand(shape)), num_iter=num_iter)
    assert tuple(result.shape) == shape


def test_no_class_of_another_size(device, to_device):
    result = pamr(to_device(torch.rand(3, 5, 6)), to_device(torch.rand(0, 2, 3)))
    assert tuple(result.shape) == (0, 5, 6)


def test_one_pixel_keeps_its_scores(device, to_device):
    scores = torch.tensor([3.25, -1.5]).reshape(2, 1, 1)
    assert_close_rel(pamr(to_device(torch.rand(3, 1, 1)), to_device(scores), num_iter=7), scores, 1e-6)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("num_iter", [1, 3])
def test_what_is_not_finite_in_the_scores(device, to_device, value, num_iter):
    image, scores = inputs(5, 3, (26, 29))
    scores[3, 11, 14] = value
    expected = refined(image, scores, num_iter, (2, 5), gathered)
    result = pamr(to_device(image), to_device(scores), num_iter=num_iter, dilations=(2, 5))
    assert 16 <= (~expected[3].isfinite()).sum() < 26 * 29
    assert_close_rel(result, expected, single(num_iter))
    assert result[:3].isfinite().all()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("num_iter", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_not_finite_in_the_image(device, to_device, value, num_iter, dtype):
    image, scores = inputs(5, 3, (40, 43))
    image[1, 21, 14] = value
    expected = refined(image, scores, num_iter, (2, 5))
    result = pamr(to_device(image.to(dtype)), to_device(scores.to(dtype)), num_iter=num_iter, dilations=(2, 5))
    assert 16 <= expected[0].isnan().sum() < 40 * 43
    assert_close_rel(result, expected, single(num_iter))


def test_hidden_class_stays_hidden(device, to_device):
    # A class rejected with -inf everywhere: every weight is above zero.
    image, scores = inputs(3, 3, (20, 33))
    scores[1] = -math.inf
    result = pamr(to_device(image), to_device(scores), num_iter=3)
    assert (result[1] == -math.inf).all()
    assert result[[0, 2]].isfinite().all()


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e-7, 1.0, 1e15])
def test_scale_of_the_image(device, to_device, scale):
    # Far below 1e-8 an image counts as flat; squares of 1e-30 underflow in float32, and nothing may come of it.
    image, scores = inputs(3, 3, (21, 24))
    image = image * scale
    result = pamr(to_device(image), to_device(scores), num_iter=2, dilations=(2, 4))
    assert_close_rel(result, refined(image, scores, 2, (2, 4)), 2e-5)


def test_flat_with_one_grey_level_of_difference(device, to_device):
    # A single odd pixel sets the deviation of all around it: sums of squares must not cancel.
    image = torch.full((3, 20, 24), 200, dtype=torch.uint8)
    image[:, 9, 11] = 201
    _, scores = inputs(3, 3, (20, 24))
    result = pamr(to_device(image), to_device(scores), num_iter=3, dilations=(1, 3))
    assert_close_rel(result, refined(image, scores, 3, (1, 3)), 2e-4)  # 200/255 and 201/255, rounded, differ by 1e-5


def test_many_dilations(device, to_device):
    image, scores = inputs(2, 3, (12, 20))
    dilations = tuple(range(1, 41))
    result = pamr(to_device(image), to_device(scores), num_iter=2, dilations=dilations)
    assert_close_rel(result, refined(image, scores, 2, dilations), 4 * single(2))  # exponents reach -270


def test_huge_dilation_and_many_iterations(device, to_device):
    # Every neighbour is a corner or border pixel.
    image, scores = inputs(2, 3, (6, 7))
    result = pamr(to_device(image), to_device(scores), num_iter=60, dilations=(2**29 - 1,))
    assert_close_rel(result, refined(image, scores, 60, (9,)), single(60))
