"""Gradients of `adaptive_conv` by input and by filters, of every backend; and gradients of the gradients."""

import math

import pytest
import torch
from adaptive_inputs import CASES, DOUBLE, SINGLE, expected_gradients, gradients, tensors

from ovs_kernels import adaptive_conv
from ovs_kernels.testing import assert_close_rel

DTYPES = [torch.float32, torch.float64]
TOLERANCE = {torch.float32: SINGLE, torch.float64: DOUBLE}


def found_gradients(image, filters, v_out):
    leaves = [tensor.detach().requires_grad_() for tensor in (image, filters)]
    adaptive_conv(*leaves).backward(v_out)
    return [leaf.grad for leaf in leaves]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_matches_numpy(device, to_device, name, dtype):
    found = found_gradients(*(to_device(tensor.to(dtype)) for tensor in tensors(name)))
    for what, got, want in zip(("input", "filters"), found, expected_gradients(name), strict=True):
        assert got.dtype == dtype
        assert got.is_contiguous()
        assert_close_rel(got, want, TOLERANCE[dtype], message=what)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_instruction_set(isa, dtype):
    for name in CASES:
        found = found_gradients(*(tensor.to(dtype) for tensor in tensors(name)))
        for what, got, want in zip(("input", "filters"), found, expected_gradients(name), strict=True):
            assert_close_rel(got, want, TOLERANCE[dtype], message=f"{isa}: {name}: {what}")


@pytest.mark.parametrize("name", ["one pixel", "FeatUp, a batch", "large filters", "height 5"])
def test_without_compiled_code(monkeypatch, name):
    monkeypatch.setenv("OVS_KERNELS_REFERENCE", "1")
    found = found_gradients(*(tensor.float() for tensor in tensors(name)))
    for got, want in zip(found, expected_gradients(name), strict=True):
        assert_close_rel(got, want, SINGLE)


@pytest.mark.parametrize("sizes", [(2, 3, 5, 6, 3, 3), (1, 2, 4, 17, 2, 5), (1, 5, 6, 3, 4, 1)])
def test_every_entry_by_finite_differences(sizes):
    batch, channels, height, width, rows, columns = sizes
    image = torch.randn(batch, channels, height + rows - 1, width + columns - 1, dtype=torch.float64)
    filters = torch.randn(batch, height, width, rows, columns, dtype=torch.float64)
    leaves = image.requires_grad_(), filters.requires_grad_()
    # Linear in each argument: a large step loses nothing and drowns no digits.
    assert torch.autograd.gradcheck(adaptive_conv, leaves, eps=1e-2)
    assert torch.autograd.gradgradcheck(adaptive_conv, leaves, eps=1e-2, fast_mode=True)


@pytest.mark.parametrize("name", ["FeatUp", "even and wide"])
def test_finite_differences_of_larger_ones(name):
    image, filters, _ = tensors(name)
    leaves = image.clone().requires_grad_(), filters.clone().requires_grad_()
    assert torch.autograd.gradcheck(adaptive_conv, leaves, eps=1e-2, fast_mode=True)
    assert torch.autograd.gradgradcheck(adaptive_conv, leaves, eps=1e-2, fast_mode=True)


def test_second_derivative_by_hand():
    # L = (f . x)^2 / 2 of one pixel and two taps: d2L / df0 dx1 = f1 x0, and d2L / df0 dx0 = 2 f0 x0 + f1 x1.
    image = torch.tensor([2.0, 3.0]).reshape(1, 1, 1, 2).requires_grad_()
    filters = torch.tensor([5.0, 7.0]).reshape(1, 1, 1, 1, 2).requires_grad_()
    loss = 0.5 * adaptive_conv(image, filters).square().sum()
    (v_filters,) = torch.autograd.grad(loss, filters, create_graph=True)
    (mixed,) = torch.autograd.grad(v_filters.flatten()[0], image)
    assert mixed.flatten().tolist() == [2 * 5.0 * 2.0 + 7.0 * 3.0, 7.0 * 2.0]


@pytest.mark.parametrize("wanted", ["input", "filters"])
def test_only_one_gradient(device, to_device, wanted):
    image, filters, v_out = (to_device(tensor.float()) for tensor in tensors("even"))
    leaf = (image if wanted == "input" else filters).clone().requires_grad_()
    pair = (leaf, filters) if wanted == "input" else (image, leaf)
    adaptive_conv(*pair).backward(v_out)
    assert_close_rel(leaf.grad, expected_gradients("even")[wanted == "filters"], SINGLE)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(device, to_device, dtype):
    half = [to_device(tensor.to(dtype)) for tensor in tensors("FeatUp, a batch")]
    single = found_gradients(*(tensor.float() for tensor in half))
    for got, want in zip(found_gradients(*half), single, strict=True):
        assert got.dtype == dtype
        assert torch.equal(got, want.to(dtype))


def test_same_bits_for_any_number_of_threads(isa, num_threads):
    for name in ("FeatUp", "many channels", "tall"):
        results = []
        for threads in (1, 2, 3, 7):
            num_threads(threads)
            results.append(found_gradients(*(tensor.float() for tensor in tensors(name))))
        for other in results[1:]:
            for one, two in zip(results[0], other, strict=True):
                assert torch.equal(one, two)


def test_cotangent_of_any_layout(device, to_device):
    image, filters, v_out = (tensor.float() for tensor in tensors("even"))
    there = to_device(image), to_device(filters)
    expected = found_gradients(*there, to_device(v_out))
    turned = to_device(v_out.permute(3, 1, 2, 0).contiguous()).permute(3, 1, 2, 0)
    for one, two in zip(found_gradients(*there, turned), expected, strict=True):
        assert torch.equal(one, two)
    constant = found_gradients(*there, to_device(torch.ones(1)).expand(v_out.shape))
    for one, two in zip(constant, found_gradients(*there, to_device(torch.ones(v_out.shape))), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_bad_cotangent_stays_in_its_window(device, to_device, bad):
    image, filters, v_out = (tensor.float() for tensor in tensors("FeatUp"))
    for c, y, x in ((2, 0, 0), (5, 11, 39), (20, 6, 16)):
        clean = found_gradients(to_device(image), to_device(filters), to_device(v_out))
        spoilt = v_out.clone()
        spoilt[0, c, y, x] = bad
        v_input, v_filters = found_gradients(to_device(image), to_device(filters), to_device(spoilt))
        touched = torch.zeros(image.shape, dtype=torch.bool)
        touched[0, c, y : y + 7, x : x + 7] = True
        assert torch.equal(v_input.cpu().isfinite(), ~touched)
        assert torch.equal(v_input.cpu()[~touched], clean[0].cpu()[~touched])
        touched = torch.zeros(filters.shape, dtype=torch.bool)
        touched[0, y, x] = True
        assert torch.equal(v_filters.cpu().isfinite(), ~touched)
        assert torch.equal(v_filters.cpu()[~touched], clean[1].cpu()[~touched])


def test_gradients_of_a_small_training_step(device, to_device):
    # Filters from a softmax, as FeatUp's module makes them; the chain rule around the operator is torch's.
    image, _, v_out = tensors("FeatUp, a batch")
    logits = torch.randn(3, 7, 23, 49)
    leaf = to_device(logits.clone()).requires_grad_()
    result = adaptive_conv(to_device(image.float()), leaf.softmax(-1).reshape(3, 7, 23, 7, 7))
    result.backward(to_device(v_out.float()))
    weights = logits.double().softmax(-1)
    _, v_weights = gradients(image, weights.reshape(3, 7, 23, 7, 7), v_out)
    v_weights = torch.from_numpy(v_weights).flatten(3)
    assert_close_rel(leaf.grad, weights * (v_weights - (weights * v_weights).sum(-1, keepdim=True)), 3e-6)
