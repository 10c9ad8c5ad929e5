"""Sliding windows: where they lie, and the average of what a model says in each of them."""

import numbers
from collections.abc import Sequence

import torch
from torch import Tensor

from . import _ops  # noqa: F401  (registers torch.ops.ovs_kernels)
from ._arrays import accepts_arrays, integer_table
from ._checks import expect_integer, kind_text, wrong_type, wrong_value


@accepts_arrays("scores", sequences=("scores",))
def merge_windows(
    scores: Tensor | Sequence[Tensor],
    boxes: Tensor | Sequence,
    size: tuple[int, int],
) -> Tensor:
    """Averages overlapping sliding windows: patch scores of each window in, one score map of the image out.

    Every window is upsampled to its own size, windows that overlap are averaged::

        U_k     = bilinear upsampling of scores[k] from (h, w) to the size of boxes[k]    (align_corners=False)
        Y(c, p) = mean over the windows k that cover pixel p of  U_k(c, p - corner of k)

    which is what `F.interpolate`, padded adds and a division by a count map give, up to rounding. No window is
    upsampled by itself: rows of patches are stretched and added up along x, rows of pixels are blended from them.

    Several set-ups of windows (an ensemble, say 224/112 and 448/224) are averaged with equal weights, each being
    averaged over its own windows first. The published methods do not say how they combine set-ups; this is our choice.

    Args:
        scores: [K, C, h, w] float, patch scores of K windows; or a list of such, one per set-up, with the same C and
            dtype.
        boxes: [K, 4] integers (y0, x0, y1, x1), half-open, in pixels: where each window lies in the image. A tensor,
            array or nested list; with a list of scores a list of these. Windows may have any sizes and positions, but
            each pixel needs one in each set-up. Boxes are read on the host: a CUDA tensor here waits for the device.
        size: height H and width W of the image.

    Returns:
        [C, H, W] in the dtype of `scores`.

    Raises:
        TypeError: wrong kind or dtype of an argument.
        ValueError: wrong shape or device of an argument, a box that is empty or not inside the image, or a pixel
            that no window covers.

    Devices/dtypes: CPU and CUDA; float32, float64, float16 and bfloat16 (computed in float32).
    Differentiable: by `scores`, any number of times (the function is linear).
    Deterministic: yes, forward and backward, on CPU for any number of threads.
    Non-finite: a NaN or Inf reaches every pixel that has its patch among the 2 x 2 it is interpolated from, with
        weight 0 too, as in PyTorch; the other pixels are not touched.
    Memory: on CPU two rows of pixels per row of windows and thread; on CUDA at most 64 MiB, or one class of stretched
        rows if that is more. float16 and bfloat16 are merged in float32 first.
    Reference: the sliding-window inference of LPOSS and of mmsegmentation. Those upsample in the dtype of the scores
        and add in float32; the result here is rounded from one sum. See `ovs_kernels.reference.windows`.

    Example:
        >>> import torch, ovs_kernels
        >>> boxes = ovs_kernels.window_boxes((2, 6), window=(2, 4), stride=(1, 2))
        >>> boxes.tolist()
        [[0, 0, 2, 4], [0, 2, 2, 6]]
        >>> scores = torch.tensor([1.0, 3.0]).reshape(2, 1, 1, 1)      # one patch per window
        >>> ovs_kernels.merge_windows(scores, boxes, (2, 6))[0, 0].tolist()
        [1.0, 1.0, 2.0, 2.0, 3.0, 3.0]
    """
    height, width = _two_integers("merge_windows", "size", size, 0)
    if isinstance(scores, Tensor):
        tables = [integer_table("merge_windows", "boxes", boxes)]
        return torch.ops.ovs_kernels.merge_windows([scores], tables, [height, width])
    if not isinstance(boxes, (list, tuple)):
        wrong_type("merge_windows", "boxes", "a list, as scores is one", kind_text(boxes))
    names = [f"boxes[{index}]" for index in range(len(boxes))] if len(scores) > 1 else ["boxes"] * len(boxes)
    tables = [integer_table("merge_windows", name, table) for name, table in zip(names, boxes, strict=True)]
    return torch.ops.ovs_kernels.merge_windows(list(scores), tables, [height, width])


def window_boxes(size: tuple[int, int], window: int | tuple[int, int], stride: int | tuple[int, int]) -> Tensor:
    """Boxes of the sliding windows over an image, as mmsegmentation and LPOSS lay them.

    Windows start at multiples of the stride; the last ones of a row and of a column are shifted back to end at the
    border, so all have the same size. A window that is larger than the image is cut to it::

        rows    = max(H - h + stride - 1, 0) // stride + 1             likewise columns
        y1 = min(i * stride + h, H),  y0 = max(y1 - h, 0)              for i in 0 .. rows - 1

    Args:
        size: height H and width W of the image, at least 1.
        window: height h and width w of a window, or one number for both.
        stride: step from window to window down and across, or one number for both; at most the window, or pixels
            would be left out.

    Returns:
        [K, 4] int64 on the CPU: y0, x0, y1, x1 of each window, half-open, row by row.

    Raises:
        TypeError: an argument that is not one or two integers.
        ValueError: a number below 1, or a stride larger than the window.

    Example:
        >>> import ovs_kernels
        >>> len(ovs_kernels.window_boxes((448, 597), 224, 112))
        15
    """
    extents = _two_integers("window_boxes", "size", size, 1)
    lengths = _two_integers("window_boxes", "window", window, 1)
    steps = _two_integers("window_boxes", "stride", stride, 1)
    for length, step in zip(lengths, steps, strict=True):
        if step > length:
            wrong_value("window_boxes", "stride", f"at most the window, {length}", step)
    rows, columns = (_intervals(*axis) for axis in zip(extents, lengths, steps, strict=True))
    boxes = [(y0, x0, y1, x1) for y0, y1 in rows for x0, x1 in columns]
    return torch.tensor(boxes, dtype=torch.int64)


def _intervals(extent: int, length: int, step: int) -> list[tuple[int, int]]:
    """Begin and end of the windows along one axis."""
    count = max(extent - length + step - 1, 0) // step + 1
    ends = [min(i * step + length, extent) for i in range(count)]
    return [(max(end - length, 0), end) for end in ends]


def _two_integers(op: str, name: str, value: object, low: int) -> tuple[int, int]:
    """(a, b), or a number for both where the caller allows that."""
    if isinstance(value, numbers.Integral) and name != "size":
        value = (value, value)
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        expected = "two integers (height, width)" if name == "size" else "an integer or two"
        wrong_type(op, name, expected, kind_text(value) if not isinstance(value, (tuple, list)) else f"{value!r}")
    return expect_integer(op, name, value[0], low), expect_integer(op, name, value[1], low)
