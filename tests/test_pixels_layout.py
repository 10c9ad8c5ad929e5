"""`lp_pixels`: memory layouts, dtypes and kinds of arrays; and where no bit of the result may change."""

import math

import numpy as np
import pytest
import torch
from pixels_inputs import SINGLE, case, definition

from ovs_kernels import lp_pixels
from ovs_kernels.testing import assert_close_rel

# Layouts, dtypes, kinds -------------------------------------------------------------------------------------


def layouts(tensor):
    """The same numbers behind other strides."""
    channels, height, width = tensor.shape
    larger = torch.full((channels + 2, height + 3, width + 5), math.nan)
    larger[1:-1, 2:-1, 3:-2] = tensor
    stepped = torch.full((channels, 2 * height, 3 * width), math.nan)
    stepped[:, ::2, ::3] = tensor
    return {
        "transposed": tensor.transpose(1, 2).contiguous().transpose(1, 2),
        "channels last": tensor.permute(1, 2, 0).contiguous().permute(2, 0, 1),
        "sliced": larger[1:-1, 2:-1, 3:-2],
        "stepped": stepped[:, ::2, ::3],
    }


def test_layouts(device, to_device):
    scores, image = case(9, 10, 4)
    expected = lp_pixels(to_device(scores), to_device(image))
    for name, view in layouts(scores).items():
        assert torch.equal(view, scores)
        result = lp_pixels(to_device(view), to_device(image))
        assert torch.equal(result, expected), name
        assert result.is_contiguous(), name
    for name, view in layouts(image).items():
        assert torch.equal(lp_pixels(to_device(scores), to_device(view)), expected), name


def test_expanded(device, to_device):
    scores, image = case(7, 8, 3)
    grey = image[:1]
    expected = lp_pixels(to_device(scores), to_device(grey.repeat(3, 1, 1)))
    assert torch.equal(lp_pixels(to_device(scores), to_device(grey).expand(3, 7, 8)), expected)
    pair = lp_pixels(to_device(scores).expand(2, 3, 7, 8), to_device(grey).expand(2, 3, 7, 8))
    assert torch.equal(pair, expected.expand(2, 3, 7, 8))


def test_inputs_are_not_written(device, to_device):
    scores, image = (to_device(part) for part in case(9, 10, 4))
    copies = scores.clone(), image.clone()
    for options in ({}, {"labels": True}, {"mode": "exact"}, {"groups": [0, 1, 1, 0]}):
        lp_pixels(scores, image, **options)
    assert torch.equal(scores, copies[0])
    assert torch.equal(image, copies[1])


def test_numpy():
    scores, image = case(9, 10, 4)
    expected, expected_info = lp_pixels(scores, image, return_info=True)
    result, info = lp_pixels(scores.numpy(), image.numpy(), return_info=True)
    assert isinstance(result, np.ndarray)
    np.testing.assert_array_equal(result, expected.numpy())
    np.testing.assert_array_equal(info.iterations, expected_info.iterations.numpy())
    np.testing.assert_array_equal(info.residuals, expected_info.residuals.numpy())
    flipped = scores.flip(0, 2).contiguous().numpy()[::-1, :, ::-1]
    assert flipped.strides[0] < 0
    frozen = image.numpy().copy()
    frozen.flags.writeable = False
    np.testing.assert_array_equal(lp_pixels(flipped, frozen), expected.numpy())
    labels = lp_pixels(scores.numpy(), image.numpy(), labels=True, groups=np.array([2, 1, 0, 1]))
    assert isinstance(labels, np.ndarray)
    assert labels.dtype == np.uint8


def test_every_kind_of_array_gives_the_same(xp):
    there, back = xp
    scores, image = case(9, 10, 4)
    result = lp_pixels(there(scores), there(image))
    assert type(result) is type(there(scores))
    assert_close_rel(back(result), lp_pixels(scores, image), 1e-5)


def test_bytes_are_255ths(device, to_device):
    scores, _ = case(12, 13, 3)
    image = torch.randint(0, 256, (3, 12, 13), dtype=torch.uint8)
    expected = lp_pixels(to_device(scores), to_device(image.float() / 255), tau=0.2)
    assert torch.equal(lp_pixels(to_device(scores), to_device(image), tau=0.2), expected)
    reference_result, _, _ = definition(scores, image, tau=0.2)
    assert_close_rel(expected, reference_result, SINGLE)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("mode", ["official", "exact"])
def test_half_precision_is_rounded_once(device, to_device, dtype, mode):
    scores, image = case(10, 11, 3)
    scores, image = scores.to(dtype), image.to(dtype)
    result = lp_pixels(to_device(scores), to_device(image), mode=mode)
    assert result.dtype == dtype
    single = lp_pixels(to_device(scores.float()), to_device(image.float()), mode=mode)
    assert torch.equal(result, single.to(dtype))
    labels = lp_pixels(to_device(scores), to_device(image), mode=mode, labels=True)
    assert torch.equal(labels.long(), single.argmax(0))


def test_dtypes_of_scores_and_image_may_differ(device, to_device):
    scores, image = case(8, 9, 3)
    expected = lp_pixels(to_device(scores), to_device(image))
    mixed = lp_pixels(to_device(scores), to_device(image.double()))
    assert mixed.dtype == torch.float32
    assert torch.equal(mixed, expected)


# The same bits ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["official", "exact"])
def test_same_bits_for_any_number_of_threads(isa, num_threads, mode):
    scores, image = case(37, 150, 11)
    results = []
    for threads in (1, 2, 3, 7):
        num_threads(threads)
        result, info = lp_pixels(scores, image, mode=mode, return_info=True)
        results.append((result, info.residuals, lp_pixels(scores, image, mode=mode, labels=True)))
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            assert torch.equal(one, two)


@pytest.mark.parametrize("mode", ["official", "exact"])
def test_same_bits_again(device, to_device, mode):
    scores, image = (to_device(part) for part in case(11, 23, 5))
    assert torch.equal(lp_pixels(scores, image, mode=mode), lp_pixels(scores, image, mode=mode))


def smallest_limit(scores, image, **options):
    """The minimum that the error message states."""
    with pytest.raises(ValueError, match="memory_limit: expected at least") as refused:
        lp_pixels(scores, image, memory_limit=1, **options)
    return int(str(refused.value).split("at least ")[1].split(" ")[0])


@pytest.mark.parametrize("options", [{}, {"mode": "exact"}, {"labels": True}, {"groups": [0, 1, 2, 1] * 10}])
def test_memory_limit_does_not_change_a_bit(device, to_device, options):
    scores, image = (to_device(part) for part in case(9, 14, 40))
    minimum = smallest_limit(scores, image, **options)
    free = lp_pixels(scores, image, **options)
    for limit in (minimum, minimum + minimum // 4, 2 * minimum, 10 * minimum):
        assert torch.equal(lp_pixels(scores, image, memory_limit=limit, **options), free)
    with pytest.raises(ValueError, match=f"at least {minimum} bytes"):
        lp_pixels(scores, image, memory_limit=minimum - 1, **options)


def test_info_does_not_change_a_bit(device, to_device):
    scores, image = (to_device(part) for part in case(9, 14, 5))
    for mode in ("official", "exact"):
        with_info, _ = lp_pixels(scores, image, mode=mode, return_info=True)
        assert torch.equal(lp_pixels(scores, image, mode=mode), with_info)
