"""Gradients of `joint_bilateral_upsample` with respect to the maps: the transpose, of every backend."""

import functools
import math

import numpy as np
import pytest
import torch
from upsample_inputs import CASES, DOUBLE, SINGLE_GRADIENT, case, gradient, inputs, shares, weights_of

from ovs_kernels import joint_bilateral_upsample
from ovs_kernels.testing import assert_close_rel


def cotangent(maps, guide, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*maps.shape[:-2], *guide.shape[-2:], generator=generator)


@functools.cache
def expected_of(name):
    maps, guide, window = case(name)
    return gradient(cotangent(maps, guide), guide.numpy(), maps.shape[1:], **window)


def gradient_on(to_device, maps, guide, v_up, **options):
    leaf = to_device(maps.clone()).requires_grad_()
    joint_bilateral_upsample(leaf, to_device(guide), **options).backward(to_device(v_up))
    return leaf.grad


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradient_is_the_transpose(device, to_device, name, dtype):
    maps, guide, window = case(name, dtype)
    found = gradient_on(to_device, maps, guide, cotangent(maps, guide).to(dtype), **window)
    assert found.dtype == dtype
    assert_close_rel(found, expected_of(name), SINGLE_GRADIENT if dtype == torch.float32 else DOUBLE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_instruction_set(isa, dtype):
    for name in CASES:
        maps, guide, window = case(name, dtype)
        found = gradient_on(lambda x: x, maps, guide, cotangent(maps, guide).to(dtype), **window)
        tolerance = SINGLE_GRADIENT if dtype == torch.float32 else DOUBLE
        assert_close_rel(found, expected_of(name), tolerance, message=f"{isa}: {name}")


def test_bytes(device, to_device):
    maps, guide = inputs(5, (4, 5), (21, 26), kind="uint8")
    v_up = cotangent(maps, guide)
    expected = gradient(v_up, guide.numpy(), (4, 5))
    assert_close_rel(gradient_on(to_device, maps, guide, v_up), expected, SINGLE_GRADIENT)


def test_batches(device, to_device):
    pairs = [inputs(3, (4, 5), (13, 22), seed) for seed in (1, 2)]
    maps, guides = (torch.stack(parts) for parts in zip(*pairs, strict=True))
    v_up = cotangent(maps, guides)
    found = gradient_on(to_device, maps, guides, v_up)
    for index, (one, guide) in enumerate(pairs):
        assert_close_rel(found[index], gradient(v_up[index], guide.numpy(), one.shape[1:]), SINGLE_GRADIENT)


@pytest.mark.parametrize("size", [(20, 27), (5, 6)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_missing_values(device, to_device, size, dtype):
    maps, guide = inputs(6, (5, 6), size)
    holes = torch.rand(maps.shape) < 0.4
    holes[2] = False
    holes[5] = True
    maps[holes] = math.nan
    v_up = cotangent(maps, guide)
    exponents = weights_of(guide.numpy(), (5, 6))
    expected = np.zeros(maps.shape)
    for c in range(5):
        weights = np.nan_to_num(shares(np.where(holes[c], -np.inf, exponents)))
        expected[c] = np.einsum("yxij,yx->ij", weights, v_up[c].double().numpy())
    found = gradient_on(to_device, maps.to(dtype), guide, v_up.to(dtype), nan_policy="omit")
    assert (found[holes] == 0).all()
    assert_close_rel(found, expected, SINGLE_GRADIENT)


@pytest.mark.parametrize("policy", ["propagate", "omit"])
def test_every_entry_by_finite_differences(policy):
    maps, guide = inputs(2, (3, 4), (7, 9))
    leaf = maps.double()
    if policy == "omit":
        leaf[1, 1, 1:3] = math.nan
    present = ~leaf.isnan()

    def upsample(values):
        return joint_bilateral_upsample(
            torch.where(present, values, math.nan), guide, sigma_range=0.5, nan_policy=policy
        )

    values = torch.where(present, leaf, 0.0).requires_grad_()
    # A linear function: a large step loses nothing and drowns no digits.
    assert torch.autograd.gradcheck(upsample, (values,), eps=1e-2)
    assert torch.autograd.gradgradcheck(upsample, (values,), eps=1e-2)


def test_ones_come_back_as_pixels(device, to_device):
    # The weights of a pixel add up to 1, so the gradients of a class add up to the number of pixels.
    for name in CASES:
        maps, guide, window = case(name)
        ones = torch.ones(maps.shape[0], *guide.shape[1:])
        total = gradient_on(to_device, maps, guide, ones, **window).double().sum((1, 2)).cpu()
        assert_close_rel(total, torch.full(total.shape, float(ones[0].numel())), 1e-5, message=name)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(device, to_device, dtype):
    maps, guide = inputs(4, (4, 5), (18, 23))
    v_up = cotangent(maps, guide).to(dtype)
    found = gradient_on(to_device, maps.to(dtype), guide, v_up)
    single = gradient_on(to_device, maps.to(dtype).float(), guide, v_up.float())
    assert found.dtype == dtype
    assert torch.equal(found, single.to(dtype))


def test_cotangent_of_any_layout(device, to_device):
    maps, guide = inputs(5, (4, 5), (18, 23))
    v_up = torch.randn(23, 18, 5)
    expected = gradient_on(to_device, maps, guide, v_up.permute(2, 1, 0).contiguous())
    assert torch.equal(gradient_on(to_device, maps, guide, v_up.permute(2, 1, 0)), expected)


def test_same_bits_for_any_number_of_threads(isa, num_threads):
    maps, guide = inputs(7, (19, 11), (76, 50))
    results = []
    for threads in (1, 2, 3, 7):
        num_threads(threads)
        results.append(gradient_on(lambda x: x, maps, guide, cotangent(maps, guide)))
    for other in results[1:]:
        assert torch.equal(results[0], other)


def test_chunks_of_classes():
    # 13 bands of 38 rows of 40 nodes: 64 MiB hold the sums of 848 classes.
    maps, guide = inputs(3, (99, 40), (99, 40))
    many = maps[:1].expand(900, 99, 40)
    v_up = cotangent(maps[:1], guide).expand(900, 99, 40).contiguous()
    found = gradient_on(lambda x: x, many, guide, v_up, radius=15)
    one = gradient_on(lambda x: x, maps[:1], guide, v_up[:1], radius=15)
    assert_close_rel(found, one.expand(900, 99, 40), SINGLE_GRADIENT)


def test_labels_have_no_gradient():
    maps, guide = inputs(3, (3, 4), (8, 9))
    assert not joint_bilateral_upsample(maps.requires_grad_(), guide, labels=True).requires_grad


def test_without_compiled_code(monkeypatch):
    monkeypatch.setenv("OVS_KERNELS_REFERENCE", "1")
    for name in ("factor 3", "factor 5.86 and 6.7", "filter"):
        maps, guide, window = case(name)
        found = gradient_on(lambda x: x, maps, guide, cotangent(maps, guide), **window)
        assert_close_rel(found, expected_of(name), SINGLE_GRADIENT, message=name)
