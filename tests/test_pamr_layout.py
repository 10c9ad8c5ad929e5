"""`pamr`: memory layouts, dtypes, kinds of arrays, threads; and where no bit may change."""

import math

import numpy as np
import pytest
import torch
from pamr_inputs import inputs, refined, single

from ovs_kernels import pamr
from ovs_kernels.testing import assert_close_rel


def layouts(tensor):
    """The same numbers behind other strides."""
    filling = 0 if tensor.dtype == torch.uint8 else math.nan
    larger = torch.full([extent + 3 for extent in tensor.shape], filling, dtype=tensor.dtype)
    larger[1:-2, 2:-1, 1:-2] = tensor
    stepped = torch.full([2 * extent for extent in tensor.shape], filling, dtype=tensor.dtype)
    stepped[::2, 1::2, ::2] = tensor
    return {
        "channels last": tensor.permute(1, 2, 0).contiguous().permute(2, 0, 1),
        "columns first": tensor.transpose(1, 2).contiguous().transpose(1, 2),
        "sliced": larger[1:-2, 2:-1, 1:-2],
        "stepped": stepped[::2, 1::2, ::2],
    }


@pytest.mark.parametrize("kind", ["float", "uint8"])
def test_layouts(device, to_device, kind):
    image, scores = inputs(5, 3, (17, 22), kind=kind)
    expected = pamr(to_device(image), to_device(scores), num_iter=2)
    for name, view in layouts(scores).items():
        result = pamr(to_device(image), to_device(view), num_iter=2)
        assert torch.equal(result, expected), name
        assert result.is_contiguous(), name
        assert pamr(to_device(image), to_device(view), num_iter=0).is_contiguous(), name
    for name, view in layouts(image).items():
        assert torch.equal(pamr(to_device(view), to_device(scores), num_iter=2), expected), name


def test_inputs_are_not_written(device, to_device):
    tensors = [to_device(part) for part in inputs(5, 3, (17, 22))]
    copies = [tensor.clone() for tensor in tensors]
    for num_iter in (0, 1, 2, 7):
        pamr(*tensors, num_iter=num_iter)
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(tensors, copies, strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_once(device, to_device, dtype):
    image, scores = inputs(5, 3, (17, 22))
    half = to_device(scores.to(dtype))
    result = pamr(to_device(image), half, num_iter=3)
    assert result.dtype == dtype
    assert torch.equal(result, pamr(to_device(image), half.float(), num_iter=3).to(dtype))
    half_image = to_device(image.to(dtype))
    assert torch.equal(pamr(half_image, half, num_iter=3), pamr(half_image.float(), half, num_iter=3))
    small = half[:, ::2, ::3]
    resized = pamr(to_device(image), small, num_iter=3)
    assert resized.dtype == dtype
    assert torch.equal(resized, pamr(to_device(image), small.float(), num_iter=3).to(dtype))


def test_dtype_of_the_image_is_free(device, to_device):
    image, scores = inputs(3, 3, (16, 20))
    expected = refined(image, scores, 3)
    for one in (image, image.double()):
        assert_close_rel(pamr(to_device(one), to_device(scores), num_iter=3), expected, single(3))
        assert_close_rel(pamr(to_device(one), to_device(scores.double()), num_iter=3), expected, 1e-12)


def test_numpy():
    image, scores = inputs(5, 3, (17, 22))
    expected = pamr(image, scores).numpy()
    for dilations in ((8, 16), [8, 16], np.array([8, 16]), [np.int32(8), np.int64(16)]):
        result = pamr(image.numpy(), scores.numpy(), num_iter=np.int64(10), dilations=dilations)
        assert isinstance(result, np.ndarray)
        np.testing.assert_array_equal(result, expected)
    flipped = scores.flip(0, 2).contiguous().numpy()[::-1, :, ::-1]
    assert flipped.strides[0] < 0
    np.testing.assert_array_equal(pamr(image.numpy(), flipped), expected)


def test_every_kind_of_array_gives_the_same(xp):
    there, back = xp
    image, scores = inputs(5, 3, (17, 22))
    result = pamr(there(image), there(scores))
    assert type(result) is type(there(scores))
    assert_close_rel(back(result), pamr(image, scores), single())


def test_same_bits_for_any_number_of_threads(isa, num_threads):
    image, scores = inputs(13, 3, (50, 61))
    scores[4, 22, 13], scores[6, 5, 5], scores[12] = math.nan, math.inf, -math.inf
    results = []
    for threads in (1, 2, 3, 7):
        num_threads(threads)
        results.append(pamr(image, scores, num_iter=7))
    for other in results[1:]:
        assert torch.equal(results[0].nan_to_num(nan=-7.0), other.nan_to_num(nan=-7.0))


def test_same_bits_for_any_grouping_of_classes(isa):
    image, scores = inputs(31, 3, (40, 70))
    together = pamr(image, scores, num_iter=7)
    for first, last in ((0, 1), (1, 3), (3, 8), (8, 14), (14, 31)):
        assert torch.equal(pamr(image, scores[first:last].contiguous(), num_iter=7), together[first:last])


def test_chunks_of_classes():
    # Rings of wide rows: less than the 40 classes go together.
    image, scores = inputs(1, 3, (70, 900))
    many = scores.expand(40, 70, 900) * torch.arange(1, 41)[:, None, None]
    result = pamr(image, many, num_iter=6)
    expected = refined(image, scores, 6)
    for k in (0, 13, 39):
        assert_close_rel(result[k], (k + 1) * expected[0], single(6))


def test_same_bits_in_every_run(device, to_device):
    image, scores = (to_device(part) for part in inputs(9, 3, (30, 41)))
    assert torch.equal(pamr(image, scores, num_iter=3), pamr(image, scores, num_iter=3))


def test_without_compiled_code(monkeypatch):
    image, scores = inputs(5, 3, (17, 22), kind="uint8")
    monkeypatch.setenv("OVS_KERNELS_REFERENCE", "1")
    assert_close_rel(pamr(image, scores, num_iter=3), refined(image, scores, 3), single(3))
