"""Exact counts for mIoU and Boundary IoU."""

import torch
from torch import Tensor

from . import _ops  # noqa: F401  (registers torch.ops.ovs_kernels)
from ._arrays import accepts_arrays


@accepts_arrays("prediction", "target")
def confusion_matrix(
    prediction: Tensor,
    target: Tensor,
    num_classes: int,
    *,
    ignore_label: int | None = 255,
    reduce_zero_label: bool = False,
    others: bool = False,
) -> Tensor:
    """Counts pixels by their label in the target (rows) and in the prediction (columns).

    ::

        t = target, or target - 1 with reduce_zero_label
        M[i, j] = #{pixels that are not ignored: t = i, prediction = j}

    Matrices of images add up. mIoU as in mmsegmentation needs the row and the column of `others`: a prediction that is
    no class still belongs to its target's pixels, and a target that is no class to its prediction's::

        inter = M.diagonal()[:C];  union = M.sum(1)[:C] + M.sum(0)[:C] - inter;  IoU = inter / union

    Args:
        prediction: [H, W] or [B, H, W] labels, any integer dtype or bool, any strides.
        target: same shape, any integer dtype or bool (not necessarily that of `prediction`).
        num_classes: C, 1 to 32768. Labels are classes in [0, C).
        ignore_label: label of `target` whose pixels are not counted, as it is stored, that is before
            `reduce_zero_label`; None if there is none. A prediction may be this label as any other.
        reduce_zero_label: 0 of `target` is not counted, and all its other labels are one less.
        others: add a row and a column, the last, for labels outside of [0, C). Without it their pixels are not counted.

    Returns:
        [C, C] int64, or [C + 1, C + 1] with `others`; of a batch the sum. Without pixels all zero.

    Raises:
        TypeError: wrong kind or dtype of an argument, for instance float labels.
        ValueError: sizes that differ (both are named), a wrong range or device of an argument.
        RuntimeError: CUDA tensors, and a build without CUDA or for other cards.

    Devices/dtypes: CPU and CUDA; bool, int8 to int64, uint8 to uint64, read as they are. uint64 above 2^63 - 1 counts
        as negative, as it does in torch.
    Differentiable: no.
    Deterministic: yes, and exact.
    Memory: beyond the result, on a CPU counters of 8 (C + 2)^2 bytes per thread up to 254 classes. Labels whose last
        axis has another stride than 1 are copied.
    Reference: `ovs_kernels.reference.confusion_matrix`; mmsegmentation's IoUMetric.

    Example:
        >>> import torch, ovs_kernels
        >>> target = torch.tensor([[0, 0, 1, 255]])
        >>> prediction = torch.tensor([[0, 1, 1, 0]])
        >>> ovs_kernels.confusion_matrix(prediction, target, 2).tolist()
        [[1, 1], [0, 1]]
    """
    return torch.ops.ovs_kernels.confusion_matrix(
        prediction, target, num_classes, ignore_label, reduce_zero_label, others
    )


@accepts_arrays("prediction", "target")
def boundary_iou(
    prediction: Tensor,
    target: Tensor,
    num_classes: int,
    *,
    ignore_label: int | None = 255,
    reduce_zero_label: bool = False,
    ratio: float = 0.02,
) -> Tensor:
    """Counts the boundary pixels of every class: of prediction and target together, and of each.

    A pixel is a boundary pixel of its class if one of another label, or the outside of the image, is within d pixels
    along both axes. These are the pixels that d erosions with a 3 x 3 square take from the mask of the class, so the
    counts are those of the published metric (a pass over both maps instead of erosions of each class's mask)::

        d = max(1, round(ratio * sqrt(H^2 + W^2)))        rounded half to even
        counts = (|B_c(prediction) and B_c(target)|, |B_c(prediction)|, |B_c(target)|)   B_c: boundary pixels of class c

    Counts of images add up; IoU_c = counts[0] / (counts[1] + counts[2] - counts[0]). Where the target is ignored, the
    prediction is, too: in both maps such pixels are of no class, so their neighbours are boundary, and they are not
    counted. So are labels outside of [0, C).

    Args:
        prediction: [H, W] or [B, H, W] labels, any integer dtype or bool, any strides.
        target: same shape, any integer dtype or bool (not necessarily that of `prediction`).
        num_classes: C, 1 to 16777216. Labels are classes in [0, C).
        ignore_label: label of `target` that is ignored, as it is stored, that is before `reduce_zero_label`; None if
            there is none. A prediction may be this label as any other.
        reduce_zero_label: 0 of `target` is ignored, and all its other labels are one less.
        ratio: d as a share of the image's diagonal, above 0.

    Returns:
        [3, C] int64; of a batch the sum. Without pixels all zero.

    Raises:
        TypeError: wrong kind or dtype of an argument, for instance float labels.
        ValueError: sizes that differ (both are named), a wrong range or device of an argument.
        RuntimeError: CUDA tensors, and a build without CUDA or for other cards.

    Devices/dtypes: CPU and CUDA; bool, int8 to int64, uint8 to uint64, read as they are. uint64 above 2^63 - 1 counts
        as negative, as it does in torch.
    Differentiable: no.
    Deterministic: yes, and exact.
    Memory: beyond the result, on a CPU some rows and 24 C bytes per thread (up to 65534 classes); on CUDA two bits per
        pixel. Labels whose last axis has another stride than 1 are copied.
    Reference: Boundary IoU (Cheng et al. 2021) as LPOSS evaluates it. See `ovs_kernels.reference.boundary_counts`.

    Example:
        >>> import torch, ovs_kernels
        >>> target = torch.zeros(5, 5, dtype=torch.uint8)
        >>> ovs_kernels.boundary_iou(target, target, 1).tolist()      # d = 1: a ring of 16 pixels
        [[16], [16], [16]]
    """
    return torch.ops.ovs_kernels.boundary_iou(prediction, target, num_classes, ignore_label, reduce_zero_label, ratio)
