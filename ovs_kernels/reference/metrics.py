"""Definition of `confusion_matrix` and `boundary_counts`: exact counts over pairs of label maps, in plain PyTorch."""

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d


def ignored_pixels(target: Tensor, ignore_label: int | None, reduce_zero_label: bool) -> Tensor:
    """Where the target says nothing: it is `ignore_label`, or 0 with `reduce_zero_label`.

    Args:
        target: [B, H, W] int64, as stored.
        ignore_label: judged before `reduce_zero_label` moves the labels; None for no such label.
        reduce_zero_label: whether 0 is no class.

    Returns:
        [B, H, W] bool.
    """
    ignored = target == ignore_label if ignore_label is not None else target != target
    return ignored | (target == 0) if reduce_zero_label else ignored


def confusion_matrix(
    prediction: Tensor,
    target: Tensor,
    num_classes: int,
    *,
    ignore_label: int | None = 255,
    reduce_zero_label: bool = False,
    others: bool = False,
) -> Tensor:
    """Pixels by label in the target and label in the prediction.

    ::

        t = target, or target - 1 with reduce_zero_label
        M[i, j] = #{pixels that are not ignored: t = i, prediction = j}      labels outside [0, C) count as C

    Args:
        prediction: [B, H, W] integers.
        target: [B, H, W] integers.
        num_classes: C.
        ignore_label: see `ignored_pixels`.
        reduce_zero_label: see `ignored_pixels`.
        others: keep row and column C.

    Returns:
        [C, C] int64, or [C + 1, C + 1] with `others`.
    """
    prediction, target = prediction.long(), target.long()
    counted = ~ignored_pixels(target, ignore_label, reduce_zero_label)
    if reduce_zero_label:
        target = target - 1

    def index(labels: Tensor) -> Tensor:
        return torch.where((labels >= 0) & (labels < num_classes), labels, num_classes)[counted]

    size = num_classes + 1
    matrix = torch.bincount(index(target) * size + index(prediction), minlength=size * size).reshape(size, size)
    kept = size if others else num_classes
    return matrix[:kept, :kept].clone(memory_format=torch.contiguous_format)


def boundary(labels: Tensor, distance: int) -> Tensor:
    """The pixels of a label map that lie within `distance` of another label or of the outside of the image.

    A pixel is one of them if the square of 2 `distance` + 1 pixels around it contains another label or leaves the
    image: just those that `distance` erosions of its own label's mask with a 3 x 3 square take away, where outside of
    the image there is no mask.

    Args:
        labels: [B, H, W] integers of a magnitude below 2^53.
        distance: d >= 1.

    Returns:
        [B, H, W] bool.
    """
    height, width = labels.shape[-2:]
    distance = min(distance, max(height, width))

    def largest(values: Tensor) -> Tensor:
        # Along one axis after the other; beyond the image there is nothing.
        columns = max_pool2d(values, (2 * distance + 1, 1), 1, (distance, 0))
        return max_pool2d(columns, (1, 2 * distance + 1), 1, (0, distance))

    values = labels.double()
    other = (largest(values) != values) | (-largest(-values) != values)
    rows, columns = torch.arange(height, device=labels.device), torch.arange(width, device=labels.device)
    near_row = (rows < distance) | (rows >= height - distance)
    near_column = (columns < distance) | (columns >= width - distance)
    return other | near_row[:, None] | near_column


def boundary_counts(
    prediction: Tensor,
    target: Tensor,
    num_classes: int,
    *,
    ignore_label: int | None = 255,
    reduce_zero_label: bool = False,
    distance: int,
) -> Tensor:
    """Boundary pixels of each class: in both maps, in the prediction, in the target.

    ::

        t = target, or target - 1 with reduce_zero_label
        t = p = C            where the target is ignored; so are labels outside of [0, C)
        counts[0, c] = #{pixels in boundary(p) and in boundary(t): p = t = c}
        counts[1, c] = #{pixels in boundary(p): p = c}
        counts[2, c] = #{pixels in boundary(t): t = c}

    Whether a pixel of a class is boundary depends on which pixels are of its class, so what is no class may be one
    label.

    Args:
        prediction: [B, H, W] integers.
        target: [B, H, W] integers.
        num_classes: C.
        ignore_label: see `ignored_pixels`.
        reduce_zero_label: see `ignored_pixels`.
        distance: see `boundary`.

    Returns:
        [3, C] int64.
    """
    prediction, target = prediction.long(), target.long()
    if target.numel() == 0:
        return target.new_zeros((3, num_classes))
    ignored = ignored_pixels(target, ignore_label, reduce_zero_label)
    if reduce_zero_label:
        target = target - 1
    target, prediction = (
        torch.where((labels >= 0) & (labels < num_classes) & ~ignored, labels, num_classes)
        for labels in (target, prediction)
    )
    near_target, near_prediction = boundary(target, distance), boundary(prediction, distance)

    def count(where: Tensor, classes: Tensor) -> Tensor:
        return torch.bincount(classes[where], minlength=num_classes + 1)[:num_classes]

    both = near_prediction & near_target & (prediction == target)
    return torch.stack((count(both, target), count(near_prediction, prediction), count(near_target, target)))
