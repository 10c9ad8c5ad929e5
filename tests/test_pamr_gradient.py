"""Gradients of `pamr` with respect to the scores: the transpose, of every backend."""

import functools

import pytest
import torch
from pamr_inputs import CASES, DOUBLE, case, gradient, inputs, single

from ovs_kernels import pamr
from ovs_kernels.testing import assert_close_rel

# Those where autograd through the full tensors takes a moment at most.
NAMES = [name for name in CASES if name not in ("defaults", "visualisation", "five iterations", "many iterations")]


def cotangent(scores, seed=3):
    return torch.randn(scores.shape, generator=torch.Generator().manual_seed(seed))


@functools.cache
def expected_of(name):
    image, scores, options = case(name)
    return gradient(image, cotangent(scores), **options)


def gradient_on(to_device, image, scores, v_result, **options):
    leaf = to_device(scores.clone()).requires_grad_()
    pamr(to_device(image), leaf, **options).backward(to_device(v_result))
    return leaf.grad


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradient_is_the_transpose(device, to_device, name, dtype):
    image, scores, options = case(name, dtype)
    found = gradient_on(to_device, image, scores, cotangent(scores).to(dtype), **options)
    assert found.dtype == dtype
    assert_close_rel(found, expected_of(name), single(options["num_iter"]) if dtype == torch.float32 else DOUBLE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_instruction_set(isa, dtype):
    for name in NAMES:
        image, scores, options = case(name, dtype)
        found = gradient_on(lambda x: x, image, scores, cotangent(scores).to(dtype), **options)
        tolerance = single(options["num_iter"]) if dtype == torch.float32 else DOUBLE
        assert_close_rel(found, expected_of(name), tolerance, message=f"{isa}: {name}")


@pytest.mark.parametrize("width", [1, 2, 3, 5, 8, 15, 16, 17, 31, 32, 33, 65])
def test_every_width(device, to_device, width):
    image, scores = inputs(3, 3, (7, width))
    v_result = cotangent(scores)
    found = gradient_on(to_device, image, scores, v_result, num_iter=2, dilations=(2, 5))
    assert_close_rel(found, gradient(image, v_result, 2, (2, 5)), single(2))


def test_batches_and_bytes(device, to_device):
    pairs = [inputs(3, 3, (13, 22), seed, kind="uint8") for seed in (1, 2)]
    images, scores = (torch.stack(parts) for parts in zip(*pairs, strict=True))
    v_result = cotangent(scores)
    found = gradient_on(to_device, images, scores, v_result, num_iter=2)
    for index, (image, _) in enumerate(pairs):
        assert_close_rel(found[index], gradient(image, v_result[index], 2), single(2))


def test_through_the_resize(device, to_device):
    image, _ = inputs(1, 3, (15, 21))
    scores = torch.randn(2, 4, 5)
    v_result = torch.randn(2, 15, 21)
    found = gradient_on(to_device, image, scores, v_result, num_iter=2, dilations=(2,))
    leaf = scores.double()[None].requires_grad_()
    resized = torch.nn.functional.interpolate(leaf, size=(15, 21), mode="bilinear", align_corners=True)
    resized.backward(gradient(image, v_result, 2, (2,))[None])
    assert_close_rel(found, leaf.grad[0], 2e-5)


def test_every_entry_by_finite_differences():
    image, scores = inputs(2, 3, (5, 6))

    def refine(values):
        return pamr(image, values, num_iter=2, dilations=(1, 3))

    values = scores.double().requires_grad_()
    # A linear function: a large step loses nothing and drowns no digits.
    assert torch.autograd.gradcheck(refine, (values,), eps=1e-2)
    assert torch.autograd.gradgradcheck(refine, (values,), eps=1e-2)


def test_ones_come_back_as_pixels(device, to_device):
    # The weights of a pixel add up to 1, so the gradients of a class add up to the number of pixels.
    for name in NAMES:
        image, scores, options = case(name)
        total = gradient_on(to_device, image, scores, torch.ones_like(scores), **options).double().sum((1, 2)).cpu()
        assert_close_rel(total, torch.full(total.shape, float(scores[0].numel())), 1e-5, message=name)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(device, to_device, dtype):
    image, scores = inputs(4, 3, (18, 23))
    v_result = cotangent(scores).to(dtype)
    found = gradient_on(to_device, image, scores.to(dtype), v_result, num_iter=2)
    wide = gradient_on(to_device, image, scores.to(dtype).float(), v_result.float(), num_iter=2)
    assert found.dtype == dtype
    assert torch.equal(found, wide.to(dtype))


def test_cotangent_of_any_layout(device, to_device):
    image, scores = inputs(5, 3, (18, 23))
    v_result = torch.randn(23, 18, 5)
    expected = gradient_on(to_device, image, scores, v_result.permute(2, 1, 0).contiguous(), num_iter=2)
    assert torch.equal(gradient_on(to_device, image, scores, v_result.permute(2, 1, 0), num_iter=2), expected)


def test_no_iteration_passes_the_cotangent(device, to_device):
    image, scores = inputs(3, 3, (5, 6))
    v_result = cotangent(scores)
    assert torch.equal(gradient_on(to_device, image, scores, v_result, num_iter=0).cpu(), v_result)


def test_an_image_with_a_hole(device, to_device):
    # NaN where a pixel that sees the hole gives anything, and only there.
    image, scores = inputs(2, 3, (20, 37))
    image[1, 9, 34] = torch.nan
    v_result = cotangent(scores)
    found = gradient_on(to_device, image, scores, v_result, num_iter=1, dilations=(2, 3))
    assert_close_rel(found, gradient(image, v_result, 1, (2, 3)), single(1))


def test_same_bits_for_any_number_of_threads(isa, num_threads):
    image, scores = inputs(9, 3, (40, 70))
    results = []
    for threads in (1, 2, 3, 7):
        num_threads(threads)
        results.append(gradient_on(lambda x: x, image, scores, cotangent(scores), num_iter=3))
    for other in results[1:]:
        assert torch.equal(results[0], other)


def test_the_image_has_no_gradient():
    image, scores = inputs(2, 3, (6, 7))
    leaf = image.clone().requires_grad_()
    pamr(leaf, scores.requires_grad_(), num_iter=1).sum().backward()
    assert leaf.grad is None


def test_without_compiled_code(monkeypatch):
    monkeypatch.setenv("OVS_KERNELS_REFERENCE", "1")
    for name in ("one dilation", "three, unsorted, one twice", "one pixel"):
        image, scores, options = case(name)
        found = gradient_on(lambda x: x, image, scores, cotangent(scores), **options)
        assert_close_rel(found, expected_of(name), single(options["num_iter"]), message=name)
