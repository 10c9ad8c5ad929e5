"""`ovs_kernels.adaptive_conv`: every backend against numbers by hand and a NumPy oracle."""

import math

import pytest
import torch
from adaptive_inputs import CASES, DOUBLE, SINGLE, conv, expected, tensors

from ovs_kernels import adaptive_conv
from ovs_kernels.testing import assert_close_rel

DTYPES = [torch.float32, torch.float64]
TOLERANCE = {torch.float32: SINGLE, torch.float64: DOUBLE}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_two_pixels_by_hand(device, to_device, dtype):
    # test_reference_adaptive.py derives these numbers; all of them are exact in every dtype.
    image = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], dtype=dtype).reshape(1, 1, 2, 3)
    filters = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 0.0], [0.0, 10.0]]], dtype=dtype)
    result = adaptive_conv(to_device(image), to_device(filters.reshape(1, 1, 2, 2, 2)))
    assert result.dtype == dtype
    assert result.tolist() == [[[[6.0, 60.0]]]]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_matches_numpy(device, to_device, name, dtype):
    image, filters, _ = (to_device(tensor.to(dtype)) for tensor in tensors(name))
    result = adaptive_conv(image, filters)
    assert result.dtype == dtype
    assert result.is_contiguous()
    assert_close_rel(result, expected(name), TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_instruction_set(isa, dtype):
    for name in CASES:
        image, filters, _ = (tensor.to(dtype) for tensor in tensors(name))
        assert_close_rel(adaptive_conv(image, filters), expected(name), TOLERANCE[dtype], message=f"{isa}: {name}")


@pytest.mark.parametrize("name", ["one pixel", "FeatUp, a batch", "large filters", "height 5"])
def test_without_compiled_code(monkeypatch, name):
    monkeypatch.setenv("OVS_KERNELS_REFERENCE", "1")
    image, filters, _ = (tensor.float() for tensor in tensors(name))
    assert_close_rel(adaptive_conv(image, filters), expected(name), SINGLE)


@pytest.mark.parametrize("size", [(3, 28, 28), (21, 64, 64), (150, 40, 33)])
def test_sizes_of_featup(device, to_device, size):
    if device == "emulated":
        pytest.skip("too large for the emulator")
    channels, height, width = size
    image = torch.randn(1, channels, height + 6, width + 6)
    filters = torch.rand(1, height, width, 49).softmax(-1).reshape(1, height, width, 7, 7)
    result = adaptive_conv(to_device(image), to_device(filters))
    assert_close_rel(result, conv(image, filters), SINGLE)


def test_many_items(device, to_device):
    # More tiles than CUDA blocks: each block makes several.
    image, filters = torch.randn(17000, 1, 2, 2), torch.randn(17000, 1, 1, 2, 2)
    result = adaptive_conv(to_device(image), to_device(filters))
    assert_close_rel(result[:, 0, 0, 0], (image[:, 0] * filters[:, 0, 0]).double().sum((1, 2)), SINGLE)


# Invariants -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["FeatUp", "even", "large filters"])
def test_weights_that_add_up_to_one_keep_constants(device, to_device, name):
    image, filters, _ = tensors(name)
    weights = filters.float().flatten(3).softmax(-1).reshape(filters.shape)
    result = adaptive_conv(to_device(torch.full(image.shape, 2.5)), to_device(weights))
    assert_close_rel(result, torch.full(result.shape, 2.5), SINGLE)


@pytest.mark.parametrize("name", ["FeatUp", "even", "one column of taps"])
def test_single_taps_are_shifts(device, to_device, name):
    image, filters, _ = tensors(name)
    height, width, rows, columns = filters.shape[1:]
    for i, j in ((0, 0), (rows - 1, columns - 1), (rows // 2, columns - 1)):
        unit = torch.zeros(filters.shape)
        unit[..., i, j] = 1.0
        result = adaptive_conv(to_device(image.float()), to_device(unit))
        assert torch.equal(result.cpu(), image[:, :, i : i + height, j : j + width].float())


def test_channels_do_not_know_of_each_other(device, to_device):
    image, filters, _ = (to_device(tensor.float()) for tensor in tensors("13 channels"))
    together = adaptive_conv(image, filters)
    for c in (0, 4, 12):
        assert torch.equal(adaptive_conv(image[:, c : c + 1], filters), together[:, c : c + 1])


def test_items_of_a_batch_do_not_know_of_each_other(device, to_device):
    image, filters, _ = (to_device(tensor.float()) for tensor in tensors("FeatUp, a batch"))
    together = adaptive_conv(image, filters)
    for b in range(3):
        assert torch.equal(adaptive_conv(image[b : b + 1], filters[b : b + 1]), together[b : b + 1])


# NaN, Inf, nothing ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_bad_input_reaches_the_filters_that_cover_it(device, to_device, bad, weight):
    name, (c, y, x) = "FeatUp", (3, 9, 25)
    image, filters, _ = (tensor.float() for tensor in tensors(name))
    filters = filters * weight
    clean = adaptive_conv(to_device(image), to_device(filters)).cpu()
    image[0, c, y, x] = bad
    result = adaptive_conv(to_device(image), to_device(filters)).cpu()
    touched = torch.zeros(result.shape, dtype=torch.bool)
    touched[0, c, y - 6 : y + 1, x - 6 : x + 1] = True
    assert touched.sum() == 49
    assert torch.equal(result.isfinite(), ~touched)
    assert torch.equal(result[~touched], clean[~touched])


def test_bad_filter_spoils_its_pixel_only(device, to_device):
    image, filters, _ = (tensor.float() for tensor in tensors("FeatUp"))
    clean = adaptive_conv(to_device(image), to_device(filters)).cpu()
    filters[0, 5, 17, 6, 6] = math.nan
    result = adaptive_conv(to_device(image), to_device(filters)).cpu()
    assert result[0, :, 5, 17].isnan().all()
    result[0, :, 5, 17] = clean[0, :, 5, 17]
    assert torch.equal(result, clean)


@pytest.mark.parametrize("sizes", [(0, 3, 4, 5), (2, 0, 4, 5), (2, 3, 0, 5), (2, 3, 4, 0), (0, 0, 0, 0)])
def test_nothing(device, to_device, sizes):
    batch, channels, height, width = sizes
    image = to_device(torch.ones(batch, channels, height + 2, width + 3)).requires_grad_()
    filters = to_device(torch.ones(batch, height, width, 3, 4)).requires_grad_()
    result = adaptive_conv(image, filters)
    assert result.shape == sizes
    result.sum().backward()
    for leaf in (image, filters):
        assert leaf.grad.shape == leaf.shape
        assert (leaf.grad == 0).all()


# The same bits ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["FeatUp", "FeatUp, a batch", "many channels", "tall"])
def test_same_bits_for_any_number_of_threads(isa, num_threads, name):
    image, filters, _ = (tensor.float() for tensor in tensors(name))
    results = []
    for threads in (1, 2, 3, 7):
        num_threads(threads)
        results.append(adaptive_conv(image, filters))
    for other in results[1:]:
        assert torch.equal(results[0], other)


def test_same_bits_again(device, to_device):
    image, filters, _ = (to_device(tensor.float()) for tensor in tensors("FeatUp"))
    assert torch.equal(adaptive_conv(image, filters), adaptive_conv(image, filters))
