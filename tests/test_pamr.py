"""`ovs_kernels.pamr`: every backend against numbers by hand and the published module's steps in float64."""

import math

import pytest
import torch
from pamr_inputs import CASES, DOUBLE, case, expected_of, inputs, refined, single
from torch.nn.functional import interpolate

from ovs_kernels import pamr
from ovs_kernels.testing import assert_close_rel


def tolerance(dtype, name="defaults"):
    return single(CASES[name][3]) if dtype == torch.float32 else DOUBLE


def refine(to_device, name, dtype=torch.float32, kind="float"):
    image, scores, options = case(name, dtype, kind)
    return pamr(to_device(image), to_device(scores), **options)


# Worked out by hand -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_two_pixels_by_hand(device, to_device, dtype):
    # test_reference_pamr.py derives these numbers.
    image = torch.tensor([[[0.0, 1.0]]], dtype=dtype)
    scores = torch.tensor([[[10.0, 20.0]]], dtype=dtype)
    far = math.exp(-1 / (1e-8 + 0.05))
    share = 3 * far / (5 + 3 * far)
    result = pamr(to_device(image), to_device(scores), num_iter=1, dilations=[1])
    assert result.dtype == dtype
    expected = torch.tensor([[[10 + 10 * share, 20 - 10 * share]]], dtype=torch.float64)
    assert_close_rel(result, expected, tolerance(dtype))


def test_flat_image_is_a_plain_average(device, to_device):
    # All weights are 1/8: one iteration at dilation 2 from a single 1 puts 1/8 on its eight neighbours.
    scores = torch.zeros(1, 9, 11)
    scores[0, 4, 5] = 1.0
    expected = torch.zeros(1, 9, 11)
    expected[0, 2:7:2, 3:8:2] = 0.125
    expected[0, 4, 5] = 0.0
    result = pamr(to_device(torch.full((3, 9, 11), 0.3)), to_device(scores), num_iter=1, dilations=[2])
    assert_close_rel(result, expected, 1e-6)


def test_border_is_the_nearest_pixel(device, to_device):
    # From the corner at dilation 3, the neighbours above and to the left fall back onto row and column 0.
    scores = torch.arange(30.0).reshape(1, 5, 6)
    result = pamr(to_device(torch.full((3, 5, 6), 0.3)), to_device(scores), num_iter=1, dilations=[3])
    neighbours = [0, 0, 3, 0, 3, 18, 18, 21]
    assert result[0, 0, 0].item() == pytest.approx(sum(neighbours) / 8, rel=1e-6)
    neighbours = [8, 11, 11, 26, 29, 26, 29, 29]
    assert result[0, 4, 5].item() == pytest.approx(sum(neighbours) / 8, rel=1e-6)


# Against the published steps --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_matches_the_published_steps(device, to_device, name, dtype):
    result = refine(to_device, name, dtype)
    assert result.dtype == dtype
    assert result.is_contiguous()
    assert_close_rel(result, expected_of(name), tolerance(dtype, name))


@pytest.mark.parametrize("name", ["defaults", "visualisation", "seven channels"])
def test_bytes(device, to_device, name):
    assert_close_rel(refine(to_device, name, kind="uint8"), expected_of(name, "uint8"), tolerance(torch.float32, name))
    assert_close_rel(refine(to_device, name, torch.float64, "uint8"), expected_of(name, "uint8"), DOUBLE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_instruction_set(isa, dtype):
    for name in CASES:
        result = refine(lambda tensor: tensor, name, dtype)
        assert_close_rel(result, expected_of(name), tolerance(dtype, name), message=f"{isa}: {name}")


@pytest.mark.parametrize("num_classes", [1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 15, 16, 17, 33, 65])
def test_every_number_of_classes(device, to_device, num_classes):
    image, scores = inputs(num_classes, 3, (11, 23))
    result = pamr(to_device(image), to_device(scores), num_iter=3, dilations=(1, 3))
    assert_close_rel(result, refined(image, scores, 3, (1, 3)), single(3))


@pytest.mark.parametrize("width", [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 47, 63, 65, 97, 130])
def test_every_width(device, to_device, width):
    image, scores = inputs(3, 3, (7, width))
    result = pamr(to_device(image), to_device(scores), num_iter=3, dilations=(2, 5))
    assert_close_rel(result, refined(image, scores, 3, (2, 5)), single(3))


@pytest.mark.parametrize("height", [1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 23, 24, 25, 40, 65])
def test_every_height(device, to_device, height):
    image, scores = inputs(3, 3, (height, 9))
    result = pamr(to_device(image), to_device(scores), num_iter=5, dilations=(2, 5))
    assert_close_rel(result, refined(image, scores, 5, (2, 5)), single(5))


@pytest.mark.parametrize("num_iter", [*range(1, 14), 29])
def test_every_number_of_iterations(device, to_device, num_iter):
    image, scores = inputs(3, 3, (19, 23))
    result = pamr(to_device(image), to_device(scores), num_iter=num_iter, dilations=(3,))
    assert_close_rel(result, refined(image, scores, num_iter, (3,)), single(num_iter))


def test_batches(device, to_device):
    pairs = [inputs(5, 3, (21, 34), seed) for seed in (1, 2, 3)]
    images, scores = (to_device(torch.stack(parts)) for parts in zip(*pairs, strict=True))
    both = pamr(images, scores, num_iter=4)
    for index, (image, one) in enumerate(pairs):
        assert_close_rel(both[index], refined(image, one, 4), single(4))
        assert torch.equal(both[index], pamr(to_device(image), to_device(one), num_iter=4))


@pytest.mark.parametrize("low", [(7, 9), (1, 1), (40, 3), (60, 80)])
@pytest.mark.parametrize("batched", [False, True])
def test_scores_of_another_size_are_resized(device, to_device, low, batched):
    image, _ = inputs(1, 3, (24, 31))
    scores = torch.randn(4, *low)
    expected = refined(image, scores, 2, (2, 4))
    if batched:
        image, scores, expected = image[None], scores[None], expected[None]
    result = pamr(to_device(image), to_device(scores), num_iter=2, dilations=(2, 4))
    assert_close_rel(result, expected, 4e-5)  # positions among 80 columns are rounded, too
    result = pamr(to_device(image), to_device(scores), num_iter=0)
    resized = interpolate(scores.double().reshape(1, 4, *low), (24, 31), mode="bilinear", align_corners=True)
    assert_close_rel(result, resized.reshape(expected.shape), 2e-5)


# Invariants -------------------------------------------------------------------------------------------------


def test_constants_are_kept(device, to_device):
    for name in CASES:
        image, scores, options = case(name)
        result = pamr(to_device(image), to_device(torch.full_like(scores, 2.5)), **options)
        assert_close_rel(result, torch.full(scores.shape, 2.5), tolerance(torch.float32, name), message=name)


def test_results_stay_within_the_scores(device, to_device):
    for name in CASES:
        image, scores, options = case(name)
        result = pamr(to_device(image), to_device(scores), **options).cpu()
        slack = tolerance(torch.float32, name) * scores.abs().max()
        assert (result.amax((1, 2)) <= scores.amax((1, 2)) + slack).all(), name
        assert (result.amin((1, 2)) >= scores.amin((1, 2)) - slack).all(), name


def test_classes_do_not_meet(device, to_device):
    image, scores = inputs(23, 3, (21, 34))
    order = torch.randperm(23)
    result = pamr(to_device(image), to_device(scores), num_iter=4).cpu()
    permuted = pamr(to_device(image), to_device(scores[order]), num_iter=4).cpu()
    assert torch.equal(permuted, result[order])


def test_scale_of_a_channel_does_not_matter(device, to_device):
    image, scores = inputs(3, 3, (21, 34))
    other = 40 * image - torch.tensor([3.0, 100.0, -7.0])[:, None, None]
    result = pamr(to_device(other), to_device(scores), num_iter=4)
    assert_close_rel(result, refined(image, scores, 4), 1e-4)  # the image's own rounding, times 100


def test_edge_is_not_crossed(device, to_device):
    # Black and white: a step across the edge weighs at most exp(-20) against the others.
    image = torch.zeros(3, 24, 32)
    image[:, :, 13:] = 1.0
    scores = image[:1] * 5.0
    result = pamr(to_device(image), to_device(scores), num_iter=5, dilations=(1, 2))
    assert_close_rel(result, scores, 1e-6)


# Rows in which no dilation leads from one rest to another are taken by themselves; those of the first and the last row
# of the image come first and are kept for all others.
@pytest.mark.parametrize(
    ("height", "width", "num_iter", "dilations"),
    [
        (33, 20, 6, (4, 8)),  # the first and the last row are in one set
        (34, 20, 6, (4, 8)),
        (32, 37, 45, (8, 16)),  # more passes than are made before the next set; the sum of 45 iterations
        (19, 20, 3, (6, 40)),  # the larger dilation reaches the borders only
        (11, 20, 12, (5, 10, 15)),  # sets of two or three rows
        (9, 20, 3, (8, 16)),  # each row a set, but the borders
        (24, 4800, 6, (4, 8)),  # the weights of the set of the borders are too many to keep
        (40, 4800, 6, (4, 8)),  # those of all sets
    ],
)
@pytest.mark.parametrize("threads", [1, 2])
def test_sets_of_rows(height, width, num_iter, dilations, threads):
    image, scores = inputs(17 if width < 100 else 2, 3, (height, width))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        result = pamr(image, scores, num_iter=num_iter, dilations=dilations)
        double = pamr(image.double(), scores.double(), num_iter=num_iter, dilations=dilations)
    finally:
        torch.set_num_threads(before)
    expected = refined(image, scores, num_iter, dilations)
    assert_close_rel(result, expected, single(num_iter))
    assert_close_rel(double, expected, DOUBLE)
