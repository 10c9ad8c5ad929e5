"""Definition of `merge_windows`: the average of overlapping windows, each upsampled by itself, in plain PyTorch.

Written to be read beside the equations, not to be fast. Any float dtype, any device; run it in float64 to get
the numbers that the kernels are held to.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate


def merge_windows(scores: Sequence[Tensor], boxes: Sequence[Tensor], size: Sequence[int]) -> Tensor:
    """Averages the windows of every set-up, then the set-ups.

    ::

        U_k(c)    = bilinear upsampling of S_k(c) from (h, w) to the size of its box
        Y_s(c, p) = 1 / n_s(p) * sum over the windows k of set-up s that cover p of  U_k(c, p - corner of k)
        Y(c, p)   = mean over s of Y_s(c, p)

    Args:
        scores: set-ups of windows, each [K, C, h, w] float; K, h and w may differ between them.
        boxes: of each set-up [K, 4] integers (y0, x0, y1, x1), half-open, inside the image.
        size: height H and width W of the image.

    Returns:
        [C, H, W] in the dtype of `scores`. A pixel that no window of a set-up covers is NaN.
    """
    height, width = size
    num_classes = scores[0].shape[1]
    result = scores[0].new_zeros((num_classes, height, width))
    for setup, table in zip(scores, boxes, strict=True):
        total = torch.zeros_like(result, memory_format=torch.contiguous_format)
        count = result.new_zeros((height, width))
        for window, (y0, x0, y1, x1) in zip(setup, table.tolist(), strict=True):
            upsampled = interpolate(window[None], size=(y1 - y0, x1 - x0), mode="bilinear", align_corners=False)[0]
            total[:, y0:y1, x0:x1] += upsampled
            count[y0:y1, x0:x1] += 1
        result = result + total / count / len(scores)
    return result


def merge_windows_backward(v_merged: Tensor, grids: Sequence[int], boxes: Sequence[Tensor]) -> Tensor:
    """The transpose of `merge_windows`, which is linear in the scores.

    Args:
        v_merged: [C, H, W] cotangent of the result.
        grids: K, h, w of every set-up, one after another.
        boxes: of each set-up [K, 4], see `merge_windows`.

    Returns:
        [sum of K * C * h * w] cotangents of the scores, the set-ups one after another.
    """
    num_classes, *size = v_merged.shape
    with torch.enable_grad():
        scores = [
            v_merged.new_zeros((grids[i], num_classes, grids[i + 1], grids[i + 2]), requires_grad=True)
            for i in range(0, len(grids), 3)
        ]
        v_scores = torch.autograd.grad(merge_windows(scores, boxes, size), scores, v_merged)
    return torch.cat([v.reshape(-1) for v in v_scores])
