"""What `merge_windows` and `window_boxes` say about bad input: one line, what was expected, what came."""

import numpy as np
import pytest
import torch

from ovs_kernels import merge_windows, window_boxes

BOXES = [[0, 0, 4, 4], [0, 2, 4, 6]]


def zeros(*shape, dtype=torch.float32):
    return torch.zeros(shape, dtype=dtype)


# (what to change in a good call, exception, the message after "merge_windows: ")
CASES = {
    # scores
    "rank 3": ({"scores": zeros(2, 3, 2)}, ValueError, "scores: expected [K, C, h, w], got [2, 3, 2]"),
    "rank 5": ({"scores": zeros(1, 2, 3, 2, 2)}, ValueError, "scores: expected [K, C, h, w], got [1, 2, 3, 2, 2]"),
    "no class": ({"scores": zeros(2, 0, 2, 2)}, ValueError, "scores: expected at least one class, got C=0"),
    "no row": ({"scores": zeros(2, 3, 0, 2)}, ValueError, "scores: expected at least one row of patches, got h=0"),
    "no column": (
        {"scores": zeros(2, 3, 2, 0)},
        ValueError,
        "scores: expected at least one column of patches, got w=0",
    ),
    "integers": (
        {"scores": zeros(2, 3, 2, 2, dtype=torch.int64)},
        TypeError,
        "scores: expected float32 or float64 or float16 or bfloat16, got int64",
    ),
    "None": (
        {"scores": None},
        TypeError,
        "scores: expected a torch tensor, a numpy array or a CUDA array with __dlpack__, got None",
    ),
    "nested lists": (
        {"scores": [[[[1.0]]]]},
        TypeError,
        "scores[0]: expected a torch tensor, a numpy array or a CUDA array with __dlpack__, got list",
    ),
    "no set-up": ({"scores": []}, ValueError, "scores: expected at least one array, got an empty list"),
    # set-ups
    "classes of set-ups": (
        {"scores": [zeros(2, 3, 2, 2), zeros(2, 4, 2, 2)], "boxes": [BOXES, BOXES]},
        ValueError,
        "scores[1]: expected [K, C, h, w] with C=3 (those of scores[0]), got [2, 4, 2, 2]",
    ),
    "dtypes of set-ups": (
        {"scores": [zeros(2, 3, 2, 2), zeros(2, 3, 2, 2).double()], "boxes": [BOXES, BOXES]},
        TypeError,
        "scores[1]: expected float32 (that of scores[0]), got float64",
    ),
    "kinds of set-ups": (
        {"scores": [zeros(2, 3, 2, 2), np.zeros((2, 3, 2, 2), np.float32)], "boxes": [BOXES, BOXES]},
        TypeError,
        "scores[1]: expected torch.Tensor (the kind of scores[0]), got numpy.ndarray",
    ),
    "devices of set-ups": (
        {"scores": [zeros(2, 3, 2, 2), torch.zeros(2, 3, 2, 2, device="meta")], "boxes": [BOXES, BOXES]},
        ValueError,
        "scores[1]: expected device cpu (that of scores[0]), got meta",
    ),
    "one table for two set-ups": (
        {"scores": [zeros(2, 3, 2, 2)] * 2, "boxes": [BOXES]},
        ValueError,
        "boxes: expected one table per set-up of scores, 2, got 1",
    ),
    "a tensor of boxes for two set-ups": (
        {"scores": [zeros(2, 3, 2, 2)] * 2, "boxes": torch.tensor([BOXES, BOXES])},
        TypeError,
        "boxes: expected a list, as scores is one, got torch.Tensor",
    ),
    "boxes of the second set-up": (
        {"scores": [zeros(2, 3, 2, 2)] * 2, "boxes": [BOXES, BOXES[:1]]},
        ValueError,
        "boxes[1]: expected [K, 4] with K=2 (those of scores[1]), got [1, 4]",
    ),
    "second set-up leaves a gap": (
        {"scores": [zeros(2, 3, 2, 2)] * 2, "boxes": [BOXES, [[0, 0, 4, 4]] * 2]},
        ValueError,
        "boxes[1]: expected every pixel in a window, got none at (y, x) = (0, 4)",
    ),
    # boxes
    "too few boxes": (
        {"boxes": BOXES[:1]},
        ValueError,
        "boxes: expected [K, 4] with K=2 (those of scores), got [1, 4]",
    ),
    "too many boxes": (
        {"boxes": torch.tensor([*BOXES, BOXES[0]])},
        ValueError,
        "boxes: expected [K, 4] with K=2 (those of scores), got [3, 4]",
    ),
    "no boxes": ({"boxes": []}, ValueError, "boxes: expected [K, 4] with K=2 (those of scores), got [0, 0]"),
    "boxes of three": (
        {"boxes": [[0, 0, 4], [0, 2, 4]]},
        ValueError,
        "boxes: expected [K, 4] with K=2 (those of scores), got [2, 3]",
    ),
    "one flat box": (
        {"boxes": [0, 0, 4, 6]},
        TypeError,
        "boxes: expected rows of integers, all of one length, got list [0, 0, 4, 6]",
    ),
    "ragged boxes": (
        {"boxes": [[0, 0, 4, 4], [0, 2, 4]]},
        TypeError,
        "boxes: expected rows of integers, all of one length, got list [[0, 0, 4, 4], [0, 2, 4]]",
    ),
    "fractional boxes": (
        {"boxes": [[0, 0, 4, 4], [0, 2.5, 4, 6]]},
        TypeError,
        "boxes: expected integers, got a row [0, 2.5, 4, 6]",
    ),
    "float boxes": (
        {"boxes": torch.tensor(BOXES).float()},
        TypeError,
        "boxes: expected uint8 or int8 or int16 or int32 or int64, got float32",
    ),
    "text": (
        {"boxes": "boxes"},
        TypeError,
        "boxes: expected a torch tensor, a numpy array or a CUDA array with __dlpack__, got str",
    ),
    "outside to the right": (
        {"boxes": [BOXES[0], [0, 2, 4, 7]]},
        ValueError,
        "boxes: expected 0 <= y0 < y1 <= H=4 and 0 <= x0 < x1 <= W=6, got (y0, x0, y1, x1) = (0, 2, 4, 7) for window 1",
    ),
    "outside at the bottom": (
        {"boxes": [[0, 0, 5, 4], BOXES[1]]},
        ValueError,
        "boxes: expected 0 <= y0 < y1 <= H=4 and 0 <= x0 < x1 <= W=6, got (y0, x0, y1, x1) = (0, 0, 5, 4) for window 0",
    ),
    "negative": (
        {"boxes": [[-1, 0, 4, 4], BOXES[1]]},
        ValueError,
        "boxes: expected 0 <= y0 < y1 <= H=4 and 0 <= x0 < x1 <= W=6, "
        "got (y0, x0, y1, x1) = (-1, 0, 4, 4) for window 0",
    ),
    "empty": (
        {"boxes": [BOXES[0], [0, 2, 0, 6]]},
        ValueError,
        "boxes: expected 0 <= y0 < y1 <= H=4 and 0 <= x0 < x1 <= W=6, got (y0, x0, y1, x1) = (0, 2, 0, 6) for window 1",
    ),
    "inverted": (
        {"boxes": [BOXES[0], [0, 6, 4, 2]]},
        ValueError,
        "boxes: expected 0 <= y0 < y1 <= H=4 and 0 <= x0 < x1 <= W=6, got (y0, x0, y1, x1) = (0, 6, 4, 2) for window 1",
    ),
    # uncovered pixels: the first in reading order
    "last column missing": (
        {"size": (4, 7)},
        ValueError,
        "boxes: expected every pixel in a window, got none at (y, x) = (0, 6)",
    ),
    "last row missing": (
        {"size": (5, 6)},
        ValueError,
        "boxes: expected every pixel in a window, got none at (y, x) = (4, 0)",
    ),
    "first row missing": (
        {"boxes": [[1, 0, 4, 4], [1, 2, 4, 6]]},
        ValueError,
        "boxes: expected every pixel in a window, got none at (y, x) = (0, 0)",
    ),
    "gap in the middle": (
        {"boxes": [[0, 0, 4, 3], [0, 4, 4, 6]]},
        ValueError,
        "boxes: expected every pixel in a window, got none at (y, x) = (0, 3)",
    ),
    "one corner missing": (
        {"boxes": [[0, 0, 4, 4], [0, 4, 3, 6]]},
        ValueError,
        "boxes: expected every pixel in a window, got none at (y, x) = (3, 4)",
    ),
    "no window": (
        {"scores": zeros(0, 3, 2, 2), "boxes": torch.zeros(0, 4, dtype=torch.int64)},
        ValueError,
        "boxes: expected every pixel in a window, got none at (y, x) = (0, 0)",
    ),
    # size
    "a number": ({"size": 4}, TypeError, "size: expected two integers (height, width), got int"),
    "three numbers": ({"size": (3, 4, 6)}, TypeError, "size: expected two integers (height, width), got (3, 4, 6)"),
    "a fraction": ({"size": (4.0, 6)}, TypeError, "size: expected an integer >= 0, got float"),
    "a negative height": ({"size": (-4, 6)}, ValueError, "size: expected an integer >= 0, got -4"),
    "a huge width": ({"size": (4, 2**40)}, ValueError, f"size: expected an integer in [0, 536870911], got {2**40}"),
}


@pytest.mark.parametrize("name", CASES)
def test_message(device, name):
    change, kind, message = CASES[name]
    arguments = {"scores": zeros(2, 3, 2, 2), "boxes": BOXES, "size": (4, 6), **change}
    if device == "cuda" and isinstance(arguments["scores"], torch.Tensor):
        arguments["scores"] = arguments["scores"].cuda()
    with pytest.raises(kind) as error:
        merge_windows(**arguments)
    assert str(error.value) == f"merge_windows: {message}"


def test_the_good_call_is_good():
    assert merge_windows(zeros(2, 3, 2, 2), BOXES, (4, 6)).shape == (3, 4, 6)


def test_the_operator_checks_without_the_function():
    merge = torch.ops.ovs_kernels.merge_windows
    boxes = torch.tensor(BOXES)
    with pytest.raises(ValueError, match=r"^merge_windows: boxes: expected \[K, 4\]"):
        merge([zeros(2, 3, 2, 2)], [boxes[:1]], [4, 6])
    with pytest.raises(ValueError, match=r"^merge_windows: size: expected two integers"):
        merge([zeros(2, 3, 2, 2)], [boxes], [4])
    with pytest.raises(ValueError, match=r"^merge_windows: boxes: expected every pixel"):
        merge([zeros(2, 3, 2, 2)], [boxes], [4, 7])
    backward = torch.ops.ovs_kernels.merge_windows_backward
    with pytest.raises(ValueError, match=r"^merge_windows_backward: v_merged: expected \[C, H, W\]"):
        backward(zeros(4, 6), [2, 2, 2], [boxes])
    with pytest.raises(ValueError, match=r"^merge_windows_backward: grids: expected K >= 0"):
        backward(zeros(3, 4, 6), [2, 0, 2], [boxes])
    with pytest.raises(ValueError, match=r"^merge_windows: boxes: expected \[K, 4\]"):
        backward(zeros(3, 4, 6), [3, 2, 2], [boxes])


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ((5, 2, 1), TypeError, "size: expected two integers (height, width), got int"),
        (((4, 0), 2, 1), ValueError, "size: expected an integer >= 1, got 0"),
        (((4, 6), 0, 1), ValueError, "window: expected an integer >= 1, got 0"),
        (((4, 6), (2, 2, 2), 1), TypeError, "window: expected an integer or two, got (2, 2, 2)"),
        (((4, 6), 2.0, 1), TypeError, "window: expected an integer or two, got float"),
        (((4, 6), 2, (1, 0)), ValueError, "stride: expected an integer >= 1, got 0"),
        (((4, 6), (2, 4), 3), ValueError, "stride: expected at most the window, 2, got 3"),
        (((4, 6), 2, True), TypeError, "stride: expected an integer >= 1, got bool"),
    ],
)
def test_window_boxes_message(arguments, kind, message):
    with pytest.raises(kind) as error:
        window_boxes(*arguments)
    assert str(error.value) == f"window_boxes: {message}"
