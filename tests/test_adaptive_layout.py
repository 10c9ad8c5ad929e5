"""`adaptive_conv`: memory layouts, dtypes, kinds of arrays."""

import math

import numpy as np
import pytest
import torch
from adaptive_inputs import tensors

from ovs_kernels import adaptive_conv


def layouts(tensor):
    """The same numbers behind other strides."""
    larger = torch.full([extent + 3 for extent in tensor.shape], math.nan)
    inner = tuple(slice(1, 1 + extent) for extent in tensor.shape)
    larger[inner] = tensor
    stepped = torch.full([2 * extent for extent in tensor.shape], math.nan)
    steps = tuple(slice(axis % 2, None, 2) for axis in range(tensor.dim()))
    stepped[steps] = tensor
    last = tuple(range(tensor.dim()))
    turned = (0, *last[2:], 1)
    back = (0, tensor.dim() - 1, *last[1:-1])
    return {
        "second axis last": tensor.permute(turned).contiguous().permute(back),
        "reversed": tensor.permute(last[::-1]).contiguous().permute(last[::-1]),
        "sliced": larger[inner],
        "stepped": stepped[steps],
    }


def test_layouts(device, to_device):
    image, filters, _ = (tensor.float() for tensor in tensors("FeatUp, a batch"))
    expected = adaptive_conv(to_device(image), to_device(filters))
    for name, view in layouts(image).items():
        assert torch.equal(view, image)
        result = adaptive_conv(to_device(view), to_device(filters))
        assert torch.equal(result, expected), name
        assert result.is_contiguous(), name
    for name, view in layouts(filters).items():
        assert torch.equal(view, filters)
        assert torch.equal(adaptive_conv(to_device(image), to_device(view)), expected), name


def test_planes_of_taps_as_featup_makes_them(device, to_device):
    # Its kernel is [B, k * k, H, W], permuted and reshaped to the filters.
    image, filters, _ = (tensor.float() for tensor in tensors("FeatUp, a batch"))
    planes = to_device(filters.flatten(3).permute(0, 3, 1, 2).contiguous())
    permuted = planes.permute(0, 2, 3, 1).reshape(filters.shape)
    assert torch.equal(adaptive_conv(to_device(image), permuted), adaptive_conv(to_device(image), to_device(filters)))


def test_one_set_of_filters_for_a_batch(device, to_device):
    image, filters, _ = (to_device(tensor.float()) for tensor in tensors("FeatUp, a batch"))
    shared = filters[:1].expand(3, -1, -1, -1, -1)
    assert torch.equal(adaptive_conv(image, shared), adaptive_conv(image, shared.clone()))
    leaf = filters[:1].clone().requires_grad_()
    adaptive_conv(image, leaf.expand(3, -1, -1, -1, -1)).sum().backward()
    assert leaf.grad.shape == leaf.shape


def test_inputs_are_not_written(device, to_device):
    pair = [to_device(tensor.float()).requires_grad_() for tensor in tensors("FeatUp")[:2]]
    copies = [tensor.detach().clone() for tensor in pair]
    adaptive_conv(*pair).sum().backward()
    for tensor, copy in zip(pair, copies, strict=True):
        assert torch.equal(tensor, copy)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["FeatUp", "large filters"])
def test_half_precision_is_rounded_once(device, to_device, dtype, name):
    image, filters, _ = (to_device(tensor.to(dtype)) for tensor in tensors(name))
    result = adaptive_conv(image, filters)
    assert result.dtype == dtype
    assert torch.equal(result, adaptive_conv(image.float(), filters.float()).to(dtype))


def test_numpy():
    image, filters, _ = (tensor.float() for tensor in tensors("even"))
    expected = adaptive_conv(image, filters).numpy()
    result = adaptive_conv(image.numpy(), filters.numpy())
    assert isinstance(result, np.ndarray)
    np.testing.assert_array_equal(result, expected)
    flipped = image.flip(0, 3).contiguous().numpy()[::-1, :, :, ::-1]
    assert flipped.strides[0] < 0
    np.testing.assert_array_equal(adaptive_conv(flipped, filters.numpy()), expected)
    assert adaptive_conv(image.double().numpy(), filters.double().numpy()).dtype == np.float64


def test_every_kind_of_array_gives_the_same(xp):
    there, back = xp
    image, filters, _ = (tensor.float() for tensor in tensors("even"))
    result = adaptive_conv(there(image), there(filters))
    assert type(result) is type(there(image))
    np.testing.assert_allclose(back(result), adaptive_conv(image, filters), rtol=1e-5, atol=1e-5)


def test_large_result_is_written_to_the_last_byte(device, to_device):
    # 24 MB: beyond the size from which large pages are asked for. Every channel is compared with the first.
    if device == "emulated":
        pytest.skip("too large for the emulator")
    image = torch.randn(1, 1, 302, 403).expand(-1, 50, -1, -1)
    filters = torch.randn(1, 300, 401, 3, 3)
    result = adaptive_conv(to_device(image), to_device(filters)).cpu()
    alone = adaptive_conv(to_device(image[:, :1]), to_device(filters)).cpu()
    assert torch.equal(result, alone.expand(-1, 50, -1, -1))
