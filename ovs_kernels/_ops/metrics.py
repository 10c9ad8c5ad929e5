"""Operators `confusion_matrix` and `boundary_iou`: plans, CPU and CUDA bridges, fakes."""

import dataclasses
import functools
import math

import torch
from torch import Tensor

from .. import _native
from .._checks import (
    INTEGERS,
    dtype_text,
    expect_integer,
    expect_positive,
    expect_rank,
    expect_shape,
    same_device,
    wrong_type,
)
from ..reference import metrics as reference
from . import register

MATRIX = "confusion_matrix"
BOUNDARY = "boundary_iou"
LABELS = (*INTEGERS, torch.uint16, torch.uint32, torch.uint64, torch.bool)
# The core's LabelType, and types whose bits are read as another's.
LABEL_TYPES = {
    torch.uint8: 0,
    torch.int8: 1,
    torch.uint16: 2,
    torch.int16: 3,
    torch.uint32: 4,
    torch.int32: 5,
    torch.int64: 6,
}
SAME_BITS = {torch.bool: torch.uint8, torch.uint64: torch.int64}
# [C, C] counters take 8 GB then, which the caller would otherwise learn from the system.
MAX_MATRIX_CLASSES = 2**15
MAX_BOUNDARY_CLASSES = 2**24


@dataclasses.dataclass(frozen=True)
class Plan:
    """Checked arguments of one call."""

    batched: bool
    batch: int
    height: int
    width: int
    num_classes: int
    ignore_label: int | None
    reduce_zero_label: bool

    def images(self, labels: Tensor) -> Tensor:
        """[B, H, W]."""
        return labels if self.batched else labels[None]


def _plan(op, prediction, target, num_classes, most_classes, ignore_label, reduce_zero_label) -> Plan:
    for name, labels in (("prediction", prediction), ("target", target)):
        if labels.dtype not in LABELS:
            wrong_type(op, name, "integer labels (any integer dtype, or bool)", dtype_text(labels.dtype))
    pattern = expect_rank(op, "target", target, "H, W", "B, H, W")
    letters = ("B", "H", "W")[-target.dim() :]
    expect_shape(op, "prediction", prediction, pattern, dict(zip(letters, target.shape, strict=True)), "target")
    same_device(op, prediction=prediction, target=target)
    expect_integer(op, "num_classes", num_classes, 1, most_classes)
    batched = pattern == "B, H, W"
    batch, (height, width) = target.shape[0] if batched else 1, target.shape[-2:]
    return Plan(batched, batch, height, width, num_classes, ignore_label, reduce_zero_label)


def plan_matrix(prediction, target, num_classes, ignore_label, reduce_zero_label, others) -> Plan:
    """All checks of `confusion_matrix`; the arguments are those of the schema."""
    return _plan(MATRIX, prediction, target, num_classes, MAX_MATRIX_CLASSES, ignore_label, reduce_zero_label)


def plan_boundary(prediction, target, num_classes, ignore_label, reduce_zero_label, ratio) -> Plan:
    """All checks of `boundary_iou`."""
    expect_positive(BOUNDARY, "ratio", ratio)
    return _plan(BOUNDARY, prediction, target, num_classes, MAX_BOUNDARY_CLASSES, ignore_label, reduce_zero_label)


def boundary_distance(height: int, width: int, ratio: float) -> int:
    """max(1, ratio times the diagonal), rounded half to even, as published."""
    return max(1, round(min(ratio * math.sqrt(height**2 + width**2), 2.0**31)))


def _readable(labels: Tensor) -> Tensor:
    """As the kernels take it: rows without gaps, and no type that is another's bits."""
    same_bits = SAME_BITS.get(labels.dtype)
    if same_bits is not None:
        labels = labels.view(same_bits)
    return labels if labels.stride(-1) == 1 or labels.shape[-1] < 2 else labels.contiguous()


def _map_arguments(p: Plan, name: str, labels: Tensor) -> dict[str, int]:
    return {
        name: labels.data_ptr(),
        f"{name}_type": LABEL_TYPES[labels.dtype],
        f"{name}_image_stride": labels.stride(0) if p.batched else 0,
        f"{name}_row_stride": labels.stride(-2),
    }


def _count(p: Plan, op: str, shape, prediction: Tensor, target: Tensor, options: dict, on_cuda: bool) -> Tensor:
    """Runs a kernel on the two maps, with its own `options`."""
    prediction, target = _readable(prediction), _readable(target)
    counts = _native.allocate(shape, torch.int64, target.device)
    arguments = {
        **_map_arguments(p, "prediction", prediction),
        **_map_arguments(p, "target", target),
        "counts": counts.data_ptr(),
        "batch": p.batch,
        "height": p.height,
        "width": p.width,
        "num_classes": p.num_classes,
        "has_ignore_label": p.ignore_label is not None,
        "ignore_label": p.ignore_label or 0,
        "reduce_zero_label": p.reduce_zero_label,
        **options,
    }
    _native.call(op, target.device, arguments, on_cuda)
    return counts


def _matrix(prediction, target, num_classes, ignore_label, reduce_zero_label, others, on_cuda: bool) -> Tensor:
    p = plan_matrix(prediction, target, num_classes, ignore_label, reduce_zero_label, others)
    if not _native.use_reference(on_cuda):
        size = num_classes + 1 if others else num_classes
        return _count(p, MATRIX, (size, size), prediction, target, {"others": others}, on_cuda)
    return reference.confusion_matrix(
        p.images(prediction),
        p.images(target),
        num_classes,
        ignore_label=ignore_label,
        reduce_zero_label=reduce_zero_label,
        others=others,
    )


def _boundary(prediction, target, num_classes, ignore_label, reduce_zero_label, ratio, on_cuda: bool) -> Tensor:
    p = plan_boundary(prediction, target, num_classes, ignore_label, reduce_zero_label, ratio)
    distance = boundary_distance(p.height, p.width, ratio)
    if not _native.use_reference(on_cuda):
        return _count(p, BOUNDARY, (3, num_classes), prediction, target, {"distance": distance}, on_cuda)
    return reference.boundary_counts(
        p.images(prediction),
        p.images(target),
        num_classes,
        ignore_label=ignore_label,
        reduce_zero_label=reduce_zero_label,
        distance=distance,
    )


def _fake_matrix(prediction, target, num_classes, ignore_label, reduce_zero_label, others) -> Tensor:
    plan_matrix(prediction, target, num_classes, ignore_label, reduce_zero_label, others)
    size = num_classes + 1 if others else num_classes
    return target.new_empty((size, size), dtype=torch.int64)


def _fake_boundary(prediction, target, num_classes, ignore_label, reduce_zero_label, ratio) -> Tensor:
    plan_boundary(prediction, target, num_classes, ignore_label, reduce_zero_label, ratio)
    return target.new_empty((3, num_classes), dtype=torch.int64)


def _sample_labels(device: str) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(16)
    blocks = torch.randint(-1, 6, (2, 2, 5, 6), generator=generator)
    prediction, target = blocks.repeat_interleave(4, 2).repeat_interleave(3, 3)
    target[0, :3] = 255
    return prediction.to(device), target.to(device)


def _matrix_samples(device: str) -> list[tuple]:
    prediction, target = _sample_labels(device)
    return [
        (prediction, target, 5, 255, False, False),
        (prediction[0].to(torch.int32), target[0].to(torch.uint8), 5, 255, True, True),
        (prediction.transpose(1, 2).to(torch.int16), target.transpose(1, 2), 300, None, False, True),
        (prediction > 2, target > 2, 1, 1, False, False),
    ]


def _boundary_samples(device: str) -> list[tuple]:
    prediction, target = _sample_labels(device)
    return [
        (prediction, target, 5, 255, False, 0.1),
        (prediction[0].to(torch.int32), target[0].to(torch.uint8), 5, 255, True, 0.02),
        (prediction.transpose(1, 2).to(torch.int16), target.transpose(1, 2), 300, None, False, 0.02),
        (prediction > 2, target > 2, 1, 1, False, 0.5),
    ]


register(
    "confusion_matrix(Tensor prediction, Tensor target, int num_classes, int? ignore_label, bool reduce_zero_label, "
    "bool others) -> Tensor",
    cpu=functools.partial(_matrix, on_cuda=False),
    cuda=functools.partial(_matrix, on_cuda=True),
    fake=_fake_matrix,
    gradient=None,
    samples=_matrix_samples,
)
register(
    "boundary_iou(Tensor prediction, Tensor target, int num_classes, int? ignore_label, bool reduce_zero_label, "
    "float ratio) -> Tensor",
    cpu=functools.partial(_boundary, on_cuda=False),
    cuda=functools.partial(_boundary, on_cuda=True),
    fake=_fake_boundary,
    gradient=None,
    samples=_boundary_samples,
)
