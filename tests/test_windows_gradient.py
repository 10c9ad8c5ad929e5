"""Gradients of `merge_windows`: the transpose, of every backend."""

import numpy as np
import pytest
import torch
from windows_inputs import CASES, DOUBLE, SINGLE_GRADIENT, ensemble_arguments, interpolation_matrix, scores_for

from ovs_kernels import merge_windows, window_boxes
from ovs_kernels.testing import assert_close_rel


def transposed(setups, boxes, v_merged):
    """Cotangents of the scores, window by window, by transposed interpolation matrices in float64."""
    height, width = v_merged.shape[1:]
    found = []
    for scores, table in zip(setups, boxes, strict=True):
        count = np.zeros((height, width))
        for y0, x0, y1, x1 in table.tolist():
            count[y0:y1, x0:x1] += 1
        share = v_merged.double().numpy() / count / len(setups)
        rows, columns = scores.shape[2:]
        windows = [
            np.einsum(
                "yi,cyx,xj->cij",
                interpolation_matrix(rows, y1 - y0),
                share[:, y0:y1, x0:x1],
                interpolation_matrix(columns, x1 - x0),
            )
            for y0, x0, y1, x1 in table.tolist()
        ]
        found.append(np.stack(windows))
    return found


def gradients(to_device, setups, boxes, size, v_merged):
    leaves = [to_device(scores.clone()).requires_grad_() for scores in setups]
    merge_windows(*ensemble_arguments(leaves, boxes, size)).backward(to_device(v_merged))
    return [leaf.grad for leaf in leaves]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradient_is_the_transpose(device, to_device, name, dtype):
    setups, boxes, size = CASES[name]
    v_merged = torch.randn(setups[0].shape[1], *size)
    expected = transposed(setups, boxes, v_merged)
    found = gradients(to_device, [scores.to(dtype) for scores in setups], boxes, size, v_merged.to(dtype))
    tolerance = SINGLE_GRADIENT if dtype == torch.float32 else DOUBLE
    for got, want in zip(found, expected, strict=True):
        assert got.dtype == dtype
        assert_close_rel(got, want, tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_instruction_set(isa, dtype):
    for name, (setups, boxes, size) in CASES.items():
        v_merged = torch.randn(setups[0].shape[1], *size)
        expected = transposed(setups, boxes, v_merged)
        found = gradients(lambda x: x, [scores.to(dtype) for scores in setups], boxes, size, v_merged.to(dtype))
        for got, want in zip(found, expected, strict=True):
            assert_close_rel(got, want, SINGLE_GRADIENT if dtype == torch.float32 else DOUBLE, message=f"{isa}: {name}")


@pytest.mark.parametrize("name", ["more patches than pixels", "one patch per window", "two set-ups"])
def test_gradient_by_finite_differences(name):
    setups, boxes, size = CASES[name]
    leaves = tuple(scores[:, :1].double().requires_grad_() for scores in setups)

    def merge(*scores):
        return merge_windows(list(scores), boxes, size)

    # A linear function: a large step loses nothing and drowns no digits.
    assert torch.autograd.gradcheck(merge, leaves, eps=1e-2, fast_mode=True)
    assert torch.autograd.gradgradcheck(merge, leaves, eps=1e-2, fast_mode=True)


def test_every_entry_by_finite_differences():
    boxes = window_boxes((5, 7), (3, 4), (2, 3))
    leaf = scores_for(boxes, 2, (2, 3)).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda scores: merge_windows(scores, boxes, (5, 7)), (leaf,), eps=1e-2)


def test_ones_come_back_as_covered_pixels(device, to_device):
    # The sum of all gradients of a class is the number of pixels: the weights of a pixel add up to 1.
    for name, (setups, boxes, size) in CASES.items():
        ones = torch.ones(setups[0].shape[1], *size)
        found = gradients(to_device, setups, boxes, size, ones)
        total = sum(v.double().sum((0, 2, 3)) for v in found).cpu()
        assert_close_rel(total, torch.full(total.shape, float(size[0] * size[1])), SINGLE_GRADIENT, message=name)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(device, to_device, dtype):
    setups, boxes, size = CASES["shifted last windows"]
    v_merged = torch.randn(setups[0].shape[1], *size).to(dtype)
    (found,) = gradients(to_device, [setups[0].to(dtype)], boxes, size, v_merged)
    (single,) = gradients(to_device, [setups[0].to(dtype).float()], boxes, size, v_merged.float())
    assert found.dtype == dtype
    assert torch.equal(found, single.to(dtype))


def test_same_bits_for_any_number_of_threads(isa, num_threads):
    setups, boxes, size = CASES["three set-ups"]
    v_merged = torch.randn(setups[0].shape[1], *size)
    results = []
    for threads in (1, 2, 3, 7):
        num_threads(threads)
        results.append(gradients(lambda x: x, setups, boxes, size, v_merged))
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            assert torch.equal(one, two)


def test_cotangent_of_any_layout(device, to_device):
    setups, boxes, size = CASES["odd everything"]
    v_merged = torch.randn(size[1], size[0], setups[0].shape[1])
    (expected,) = gradients(to_device, setups, boxes, size, v_merged.permute(2, 1, 0).contiguous())
    (found,) = gradients(to_device, setups, boxes, size, v_merged.permute(2, 1, 0))
    assert torch.equal(found, expected)
    (constant,) = gradients(to_device, setups, boxes, size, torch.ones(1).expand(setups[0].shape[1], *size))
    (ones,) = gradients(to_device, setups, boxes, size, torch.ones(setups[0].shape[1], *size))
    assert torch.equal(constant, ones)
