"""`joint_bilateral_upsample`: memory layouts, dtypes, kinds of arrays, threads; and where no bit may change."""

import math

import numpy as np
import pytest
import torch
from upsample_inputs import case, inputs, upsampled

from ovs_kernels import joint_bilateral_upsample
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
    maps, guide = inputs(5, (4, 5), (21, 34), kind=kind)
    expected = joint_bilateral_upsample(to_device(maps), to_device(guide))
    for name, view in layouts(maps).items():
        result = joint_bilateral_upsample(to_device(view), to_device(guide))
        assert torch.equal(result, expected), name
        assert result.is_contiguous(), name
    for name, view in layouts(guide).items():
        assert torch.equal(joint_bilateral_upsample(to_device(maps), to_device(view)), expected), name


def test_expanded(device, to_device):
    maps, guide = inputs(1, (4, 5), (21, 34))
    expected = joint_bilateral_upsample(to_device(maps.repeat(3, 1, 1)), to_device(guide))
    assert torch.equal(joint_bilateral_upsample(to_device(maps).expand(3, 4, 5), to_device(guide)), expected)
    grey = to_device(guide[:1]).expand(3, 21, 34)
    assert torch.equal(
        joint_bilateral_upsample(to_device(maps), grey),
        joint_bilateral_upsample(to_device(maps), to_device(guide[:1].repeat(3, 1, 1))),
    )


def test_inputs_are_not_written(device, to_device):
    tensors = [to_device(part) for part in inputs(5, (4, 5), (21, 34))]
    copies = [tensor.clone() for tensor in tensors]
    for options in ({}, {"labels": True}, {"nan_policy": "omit"}):
        joint_bilateral_upsample(*tensors, **options)
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(tensors, copies, strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_once(device, to_device, dtype):
    maps, guide = inputs(5, (4, 5), (21, 34))
    half = to_device(maps.to(dtype))
    result = joint_bilateral_upsample(half, to_device(guide))
    assert result.dtype == dtype
    single = joint_bilateral_upsample(half.float(), to_device(guide))
    assert torch.equal(result, single.to(dtype))
    labels = joint_bilateral_upsample(half, to_device(guide), labels=True)
    assert torch.equal(labels, joint_bilateral_upsample(half.float(), to_device(guide), labels=True))
    half_guide = to_device(guide.to(dtype))
    assert torch.equal(joint_bilateral_upsample(half, half_guide), joint_bilateral_upsample(half, half_guide.float()))


def test_dtype_of_the_guide_is_free(device, to_device):
    maps, guide = inputs(3, (4, 5), (16, 20))
    expected = upsampled(maps, guide.numpy())
    for one in (guide, guide.double()):
        assert_close_rel(joint_bilateral_upsample(to_device(maps), to_device(one)), expected, 2e-5)
        assert_close_rel(joint_bilateral_upsample(to_device(maps.double()), to_device(one)), expected, 1e-12)


def test_numpy():
    maps, guide = inputs(5, (4, 5), (21, 34))
    expected = joint_bilateral_upsample(maps, guide).numpy()
    result = joint_bilateral_upsample(maps.numpy(), guide.numpy(), radius=np.int64(2), sigma_range=np.float32(0.1))
    assert isinstance(result, np.ndarray)
    np.testing.assert_allclose(result, expected, rtol=1e-5)  # float32(0.1) is not 0.1
    flipped = maps.flip(0, 2).contiguous().numpy()[::-1, :, ::-1]
    assert flipped.strides[0] < 0
    np.testing.assert_array_equal(joint_bilateral_upsample(flipped, guide.numpy()), expected)
    labels = joint_bilateral_upsample(maps.numpy(), guide.numpy(), labels=True)
    assert labels.dtype == np.uint8


def test_every_kind_of_array_gives_the_same(xp):
    there, back = xp
    maps, guide = inputs(5, (4, 5), (21, 34))
    result = joint_bilateral_upsample(there(maps), there(guide))
    assert type(result) is type(there(maps))
    assert_close_rel(back(result), joint_bilateral_upsample(maps, guide), 1e-5)


def test_same_bits_for_any_number_of_threads(isa, num_threads):
    maps, guide = inputs(13, (9, 11), (70, 61))
    maps[4, 2, 3], maps[6, 5, 5], maps[12] = math.nan, math.inf, -math.inf
    for options in ({}, {"labels": True}, {"nan_policy": "omit"}):
        results = []
        for threads in (1, 2, 3, 7):
            num_threads(threads)
            results.append(joint_bilateral_upsample(maps, guide, **options))
        for other in results[1:]:
            assert torch.equal(results[0].nan_to_num(nan=-7.0), other.nan_to_num(nan=-7.0))


def test_same_bits_in_every_run(device, to_device):
    maps, guide, window = case("factor 5.86 and 6.7")
    first = joint_bilateral_upsample(to_device(maps), to_device(guide), **window)
    assert torch.equal(joint_bilateral_upsample(to_device(maps), to_device(guide), **window), first)


def test_without_compiled_code(monkeypatch):
    maps, guide = inputs(5, (4, 5), (21, 34), kind="uint8")
    expected = upsampled(maps, guide.numpy())
    monkeypatch.setenv("OVS_KERNELS_REFERENCE", "1")
    assert_close_rel(joint_bilateral_upsample(maps, guide), expected, 2e-5)
    labels = joint_bilateral_upsample(maps, guide, labels=True)
    assert labels.dtype == torch.uint8
    assert (labels.numpy() == expected.argmax(0)).mean() > 0.998


def test_large_result_has_the_same_bits(isa):
    # From 2^24 numbers on, whole cache lines are written past the caches; halves of the classes stay below.
    maps, guide = inputs(66, (64, 64), (512, 512))
    up = joint_bilateral_upsample(maps, guide)
    assert up.numel() > 2**24
    assert torch.equal(up[:33], joint_bilateral_upsample(maps[:33], guide))
    assert torch.equal(up[33:], joint_bilateral_upsample(maps[33:], guide))
