"""What `merge_windows` is measured against: as published, with in-place adds, and as two products of matrices.

Each takes scores [K, C, h, w], boxes [K, 4] and the size of the image, and returns [C, H, W]; or for the gradient the
cotangent [C, H, W] and the patch grid, and returns [K, C, h, w].
"""

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

Size = tuple[int, int]


def published(scores: Tensor, boxes: Tensor, size: Size) -> Tensor:
    """As released with LPOSS and mmsegmentation: each window upsampled, padded to the whole frame, and added."""
    merged = scores.new_zeros(1, scores.shape[1], *size)
    count = scores.new_zeros(1, 1, *size)
    for window, (y0, x0, y1, x1) in zip(scores, boxes.tolist(), strict=True):
        upsampled = interpolate(window[None], size=(y1 - y0, x1 - x0), mode="bilinear", align_corners=False)
        merged += pad(upsampled, (x0, size[1] - x1, y0, size[0] - y1))
        count[:, :, y0:y1, x0:x1] += 1
    return (merged / count)[0]


def _counts(boxes: Tensor, like: Tensor, size: Size) -> Tensor:
    count = like.new_zeros(size)
    for y0, x0, y1, x1 in boxes.tolist():
        count[y0:y1, x0:x1] += 1
    return count


def in_place(scores: Tensor, boxes: Tensor, size: Size) -> Tensor:
    """Each window upsampled and added to its part of the frame; one division in place."""
    merged = scores.new_zeros(scores.shape[1], *size)
    for window, (y0, x0, y1, x1) in zip(scores, boxes.tolist(), strict=True):
        upsampled = interpolate(window[None], size=(y1 - y0, x1 - x0), mode="bilinear", align_corners=False)
        merged[:, y0:y1, x0:x1] += upsampled[0]
    return merged.div_(_counts(boxes, scores, size))


def _axis_matrix(ranges: list[tuple[int, int]], patches: int, extent: int, like: Tensor) -> Tensor:
    """[extent, windows * patches]: weights of the patches of all windows along one axis, divided by the counts."""
    matrix = like.new_zeros(extent, len(ranges) * patches)
    unit = torch.eye(patches, dtype=like.dtype, device=like.device)[None]
    for number, (begin, end) in enumerate(ranges):
        ramp = interpolate(unit, size=end - begin, mode="linear", align_corners=False)[0]
        matrix[begin:end, number * patches : (number + 1) * patches] = ramp.t()
    return matrix.div_(matrix.sum(1, keepdim=True))


def two_products(scores: Tensor, boxes: Tensor, size: Size) -> Tensor:
    """Windows on a regular grid only: the interpolation and the average along each axis as one dense matrix."""
    num_classes, h, w = scores.shape[1:]
    table = boxes.tolist()
    rows, columns = sorted({(y0, y1) for y0, _, y1, _ in table}), sorted({(x0, x1) for _, x0, _, x1 in table})
    vertical = _axis_matrix(rows, h, size[0], scores)
    horizontal = _axis_matrix(columns, w, size[1], scores)
    grid = scores.reshape(len(rows), len(columns), num_classes, h, w).permute(2, 0, 3, 1, 4)
    stretched = grid.reshape(num_classes, len(rows) * h, len(columns) * w) @ horizontal.t()
    return vertical @ stretched


def gradient_by_windows(v_merged: Tensor, boxes: Tensor, grid: Size) -> Tensor:
    """What autograd runs backwards through in-place adds: one upsampling transposed per window."""
    num_classes, *size = v_merged.shape
    share = v_merged / _counts(boxes, v_merged, tuple(size))
    found = []
    for y0, x0, y1, x1 in boxes.tolist():
        part = share[None, :, y0:y1, x0:x1].contiguous()
        shapes = [y1 - y0, x1 - x0], [1, num_classes, *grid]
        found.append(torch.ops.aten.upsample_bilinear2d_backward(part, *shapes, False))
    return torch.cat(found)
