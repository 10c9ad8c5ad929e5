"""`merge_windows`: memory layouts, dtypes, kinds of arrays, NaN, empty arrays; and where no bit may change."""

import math

import numpy as np
import pytest
import torch
from windows_inputs import CASES, SINGLE, ensemble_arguments, grid_boxes, padded_adds, scores_for

from ovs_kernels import merge_windows, window_boxes
from ovs_kernels.testing import assert_close_rel

# Layouts, dtypes, kinds -------------------------------------------------------------------------------------


def layouts(tensor):
    """The same numbers behind other strides."""
    larger = torch.full([extent + 3 for extent in tensor.shape], math.nan)
    larger[1:-2, 2:-1, 1:-2, 2:-1] = tensor
    stepped = torch.full([2 * extent for extent in tensor.shape], math.nan)
    stepped[::2, 1::2, ::2, 1::2] = tensor
    return {
        "channels last": tensor.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2),
        "classes first": tensor.transpose(0, 1).contiguous().transpose(0, 1),
        "sliced": larger[1:-2, 2:-1, 1:-2, 2:-1],
        "stepped": stepped[::2, 1::2, ::2, 1::2],
    }


def test_layouts(device, to_device):
    setups, boxes, size = CASES["odd everything"]
    expected = merge_windows(to_device(setups[0]), boxes[0], size)
    for name, view in layouts(setups[0]).items():
        assert torch.equal(view, setups[0])
        result = merge_windows(to_device(view), boxes[0], size)
        assert torch.equal(result, expected), name
        assert result.is_contiguous(), name
        pair = merge_windows([to_device(view), to_device(setups[0])], boxes * 2, size)
        assert_close_rel(pair, expected, SINGLE, message=name)


def test_expanded(device, to_device):
    boxes = grid_boxes((21, 40), (8, 16), (5, 9))
    one = scores_for(boxes, 1, (2, 3))[:1]
    expected = merge_windows(to_device(one.repeat(len(boxes), 4, 1, 1)), boxes, (21, 40))
    assert torch.equal(merge_windows(to_device(one).expand(len(boxes), 4, 2, 3), boxes, (21, 40)), expected)


def test_inputs_are_not_written(device, to_device):
    setups, boxes, size = CASES["two set-ups"]
    setups = [to_device(scores) for scores in setups]
    copies = [scores.clone() for scores in (*setups, *boxes)]
    merge_windows(setups, boxes, size)
    merge_windows(setups[0], boxes[0], size)
    for tensor, copy in zip((*setups, *boxes), copies, strict=True):
        assert torch.equal(tensor, copy)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["shifted last windows", "two set-ups"])
def test_half_precision_is_rounded_once(device, to_device, dtype, name):
    setups, boxes, size = CASES[name]
    half = [to_device(scores.to(dtype)) for scores in setups]
    result = merge_windows(*ensemble_arguments(half, boxes, size))
    assert result.dtype == dtype
    single = merge_windows(*ensemble_arguments([scores.float() for scores in half], boxes, size))
    assert torch.equal(result, single.to(dtype))


def test_numpy():
    setups, boxes, size = CASES["odd everything"]
    expected = merge_windows(setups[0], boxes[0], size).numpy()
    result = merge_windows(setups[0].numpy(), boxes[0].numpy(), size)
    assert isinstance(result, np.ndarray)
    np.testing.assert_array_equal(result, expected)
    flipped = setups[0].flip(0, 3).contiguous().numpy()[::-1, :, :, ::-1]
    assert flipped.strides[0] < 0
    np.testing.assert_array_equal(merge_windows(flipped, boxes[0].tolist(), size), expected)
    assert merge_windows(setups[0].double().numpy(), boxes[0], size).dtype == np.float64


def test_numpy_ensemble():
    setups, boxes, size = CASES["two set-ups"]
    expected = merge_windows(setups, boxes, size).numpy()
    result = merge_windows([scores.numpy() for scores in setups], [table.numpy() for table in boxes], size)
    assert isinstance(result, np.ndarray)
    np.testing.assert_array_equal(result, expected)


def test_every_kind_of_array_gives_the_same(xp):
    there, back = xp
    setups, boxes, size = CASES["two set-ups"]
    result = merge_windows([there(scores) for scores in setups], [there(table) for table in boxes], size)
    assert type(result) is type(there(setups[0]))
    assert_close_rel(back(result), merge_windows(setups, boxes, size), 1e-6)


@pytest.mark.parametrize("kind", ["list", "tuple", "int32", "uint8", "numpy", "rows of numpy", "numpy integers"])
def test_boxes_of_any_kind(kind):
    setups, boxes, size = CASES["shifted last windows"]
    table = boxes[0]
    given = {
        "list": table.tolist(),
        "tuple": tuple(tuple(row) for row in table.tolist()),
        "int32": table.int(),
        "uint8": table.to(torch.uint8),
        "numpy": table.numpy().astype(np.int16),
        "rows of numpy": list(table.numpy()),
        "numpy integers": [[np.int64(value) for value in row] for row in table.tolist()],
    }[kind]
    assert torch.equal(merge_windows(setups[0], given, size), merge_windows(setups[0], table, size))


def test_size_of_any_kind():
    setups, boxes, size = CASES["odd everything"]
    expected = merge_windows(setups[0], boxes[0], size)
    for given in (list(size), torch.Size(size), tuple(np.int64(extent) for extent in size)):
        assert torch.equal(merge_windows(setups[0], boxes[0], given), expected)


# NaN, Inf, nothing ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_bad_patch_spoils_its_pixels_only(device, to_device, bad):
    boxes, size = grid_boxes((20, 90), (12, 40), (8, 30)), (20, 90)
    scores = scores_for(boxes, 3, (3, 5))
    clean = merge_windows(to_device(scores), boxes, size).cpu()
    scores[1, 1, 1, 2] = bad
    merged = merge_windows(to_device(scores), boxes, size).cpu()
    # Pixels with the patch among their two neighbours along both axes, a neighbour of weight 0 included.
    y0, x0, y1, x1 = boxes[1].tolist()
    touched = torch.zeros(3, *size, dtype=torch.bool)
    touched[1, y0:y1, x0:x1] = torch.from_numpy(np.outer(takes_part(1, 3, y1 - y0), takes_part(2, 5, x1 - x0)))
    assert 0 < touched.sum() < 12 * 40
    assert torch.equal(merged.isfinite(), ~touched)
    assert torch.equal(merged[~touched], clean[~touched])


def takes_part(patch, n_in, n_out):
    """For each of n_out pixels, whether `patch` is one of the two neighbours."""
    low = np.floor(np.maximum((np.arange(n_out) + 0.5) * n_in / n_out - 0.5, 0))
    return (low == patch) | (np.minimum(low + 1, n_in - 1) == patch)


@pytest.mark.parametrize("size", [(0, 0), (0, 5), (5, 0)])
def test_no_pixels(device, to_device, size):
    result = merge_windows(to_device(torch.empty(0, 3, 2, 2)), torch.empty(0, 4, dtype=torch.int64), size)
    assert result.shape == (3, *size)
    leaf = to_device(torch.empty(0, 3, 2, 2)).requires_grad_()
    merged = merge_windows(leaf, torch.empty(0, 4, dtype=torch.int64), size)
    merged.sum().backward()
    assert leaf.grad.shape == leaf.shape


# The same bits ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["one pixel", "tall", "three set-ups", "any boxes 3"])
def test_same_bits_for_any_number_of_threads(isa, num_threads, name):
    setups, boxes, size = CASES[name]
    results = []
    for threads in (1, 2, 3, 7):
        num_threads(threads)
        results.append(merge_windows(*ensemble_arguments(setups, boxes, size)))
    for other in results[1:]:
        assert torch.equal(results[0], other)


def test_same_bits_again(device, to_device):
    setups, boxes, size = CASES["any boxes 1"]
    scores = to_device(setups[0])
    assert torch.equal(merge_windows(scores, boxes[0], size), merge_windows(scores, boxes[0], size))


def test_classes_do_not_know_of_each_other(device, to_device):
    setups, boxes, size = CASES["wide"]
    scores = to_device(setups[0])
    together = merge_windows(scores, boxes[0], size)
    for c in (0, 4, 8):
        assert torch.equal(merge_windows(scores[:, c : c + 1], boxes[0], size)[0], together[c])


# Sizes ------------------------------------------------------------------------------------------------------


def test_large_result_is_written_to_the_last_byte(device, to_device):
    # 24 MB: beyond the size from which large pages are asked for. Every class is compared with the first.
    if device == "emulated":
        pytest.skip("too large for the emulator")
    boxes = window_boxes((300, 401), 200, 130)
    scores = scores_for(boxes, 1, (6, 7)).expand(-1, 50, -1, -1)
    merged = merge_windows(to_device(scores), boxes, (300, 401)).cpu()
    assert_close_rel(merged[0], padded_adds([scores[:, :1]], [boxes], (300, 401))[0], SINGLE)
    assert torch.equal(merged, merged[:1].expand(50, -1, -1))


def test_many_small_windows(device, to_device):
    size = (24, 150)
    boxes = window_boxes(size, (4, 6), (2, 2))
    assert len(boxes) > 700
    scores = scores_for(boxes, 2, (1, 2))
    assert_close_rel(merge_windows(to_device(scores), boxes, size), padded_adds([scores], [boxes], size), SINGLE)


@pytest.mark.slow
@pytest.mark.cuda
def test_offsets_beyond_32_bits():
    if not torch.cuda.is_available() or torch.cuda.get_device_properties(0).total_memory < 24 * 2**30:
        pytest.skip("needs a GPU with 24 GB")
    boxes = [[0, 0, 1024, 1024]]
    scores = torch.randn(1, 5, 16, 16, device="cuda")
    expected = merge_windows(scores, boxes, (1024, 1024))
    merged = merge_windows(scores.repeat(1, 422, 1, 1), boxes, (1024, 1024))
    assert merged.numel() > 2**31
    assert torch.equal(merged[:5], expected)
    assert torch.equal(merged[-5:], expected)
