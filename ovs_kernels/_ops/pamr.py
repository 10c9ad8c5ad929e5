"""Operator `pamr`, its labels and its transpose: plans, CPU and CUDA bridges, fakes, gradients."""

import dataclasses
import functools

import torch
from torch import Tensor

from .. import _native
from .._checks import (
    FLOATS,
    expect_dtype,
    expect_integer,
    expect_rank,
    expect_shape,
    same_device,
    wrong_value,
)
from ..reference.pamr import pamr as reference_pamr
from ..reference.pamr import pamr_backward as reference_backward
from ..reference.pamr import pamr_labels as reference_labels
from . import Gradient, register

NAME = "pamr"
BACKWARD = "pamr_backward"
LABELS = "pamr_labels"
# The kernels' tables hold offsets in 32 bits.
MAX_EXTENT = 2**29 - 1
MAX_DILATIONS = 64
MAX_ITERATIONS = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class Plan:
    """Checked arguments of one call, forward or backward."""

    batched: bool
    batch: int
    num_features: int
    num_classes: int
    height: int
    width: int
    dtype: torch.dtype  # of the result
    compute_dtype: torch.dtype
    num_iter: int
    dilations: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of scores and result, with the batch axis only if the caller gave one."""
        return (*((self.batch,) if self.batched else ()), self.num_classes, self.height, self.width)

    @property
    def label_shape(self) -> tuple[int, ...]:
        """Shape of the labels."""
        return (*((self.batch,) if self.batched else ()), self.height, self.width)

    @property
    def label_dtype(self) -> torch.dtype:
        """Of the labels."""
        return torch.uint8 if self.num_classes <= 255 else torch.int32

    @property
    def trivial(self) -> bool:
        """Whether the result is a copy of the scores."""
        return 0 in self.shape or self.num_iter == 0


def check_dilations(op: str, dilations) -> tuple[int, ...]:
    """1 to MAX_DILATIONS positive integers."""
    if not 1 <= len(dilations) <= MAX_DILATIONS:
        wrong_value(op, "dilations", f"1 to {MAX_DILATIONS} integers", f"{len(dilations)}")
    return tuple(expect_integer(op, "dilations", dilation, 1, MAX_EXTENT) for dilation in dilations)


def _plan(op: str, name: str, image, scores, num_iter, dilations) -> Plan:
    """All checks of either operator; `name` is that of the [C, H, W] argument."""
    dtype = expect_dtype(op, name, scores, FLOATS)
    batched = expect_rank(op, name, scores, "C, H, W", "B, C, H, W") == "B, C, H, W"
    expect_dtype(op, "image", image, (*FLOATS, torch.uint8))
    batch = scores.shape[0] if batched else 1
    num_classes, height, width = scores.shape[-3:]
    known = {"B": batch, "H": height, "W": width} if batched else {"H": height, "W": width}
    num_features = expect_shape(op, "image", image, "B, F, H, W" if batched else "F, H, W", known, name)["F"]
    same_device(op, **{"image": image, name: scores})
    if num_features == 0:
        wrong_value(op, "image", "at least one channel", "F=0")
    if max(height, width) > MAX_EXTENT:
        wrong_value(op, "image", f"at most {MAX_EXTENT} pixels along each axis", f"[{height}, {width}]")
    num_iter = expect_integer(op, "num_iter", num_iter, 0, MAX_ITERATIONS)
    dilations = check_dilations(op, dilations)
    compute_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    return Plan(batched, batch, num_features, num_classes, height, width, dtype, compute_dtype, num_iter, dilations)


def plan(image, scores, num_iter, dilations) -> Plan:
    """All checks of `pamr`; the arguments are those of the schema."""
    return _plan(NAME, "scores", image, scores, num_iter, dilations)


def plan_labels(image, scores, num_iter, dilations) -> Plan:
    """All checks of `pamr_labels`."""
    p = _plan(NAME, "scores", image, scores, num_iter, dilations)
    if p.num_classes == 0 and 0 not in (p.batch, p.height, p.width):
        wrong_value(NAME, "scores", "at least one class for labels=True", "C=0")
    return p


def plan_backward(v_scores, image, num_iter, dilations) -> Plan:
    """All checks of `pamr_backward`."""
    return _plan(BACKWARD, "v_scores", image, v_scores, num_iter, dilations)


def _four_axes(p: Plan, tensor: Tensor) -> Tensor:
    return tensor if p.batched else tensor[None]


def _unit_image(p: Plan, image: Tensor) -> Tensor:
    """[B, F, H, W] in the dtype of the computation, bytes brought to [0, 1]."""
    image = _four_axes(p, image)
    return image.to(p.compute_dtype) / 255 if image.dtype == torch.uint8 else image.to(p.compute_dtype)


def _run(p: Plan, operator: str, definition, image: Tensor, scores: Tensor, on_cuda: bool) -> Tensor:
    """Either operator: the compiled kernel, or its definition where there is none."""
    if p.trivial:
        return scores.clone(memory_format=torch.contiguous_format)
    scores = scores.to(p.compute_dtype)
    if _native.use_reference(on_cuda):
        result = definition(_four_axes(p, scores), _unit_image(p, image), p.num_iter, p.dilations)
        return result.reshape(p.shape).to(p.dtype)
    result = _native.allocate(p.shape, p.compute_dtype, scores.device)
    _call(p, operator, image, scores, on_cuda, out=result.data_ptr())
    return result.to(p.dtype)


def _call(p: Plan, operator: str, image: Tensor, scores: Tensor, on_cuda: bool, **outputs: int) -> None:
    image, scores = _unit_image(p, image).contiguous(), scores.contiguous()
    dilations = torch.tensor(p.dilations, dtype=torch.int64)  # read on the host, before the call returns
    arguments = {
        "image": image.data_ptr(),
        "scores": scores.data_ptr(),
        **outputs,
        "dilations": dilations.data_ptr(),
        "batch": p.batch,
        "num_features": p.num_features,
        "num_classes": p.num_classes,
        "height": p.height,
        "width": p.width,
        "num_dilations": len(p.dilations),
        "num_iter": p.num_iter,
        "dtype": _native.DTYPES[p.compute_dtype],
    }
    _native.call(operator, scores.device, arguments, on_cuda)


def _defined(scores: Tensor, image: Tensor, num_iter: int, dilations: tuple[int, ...]) -> Tensor:
    return reference_pamr(image, scores, num_iter=num_iter, dilations=dilations)


def _defined_backward(v_scores: Tensor, image: Tensor, num_iter: int, dilations: tuple[int, ...]) -> Tensor:
    return reference_backward(v_scores, image, num_iter=num_iter, dilations=dilations)


def _pamr(image, scores, num_iter, dilations, on_cuda: bool) -> Tensor:
    return _run(plan(image, scores, num_iter, dilations), NAME, _defined, image, scores, on_cuda)


def _pamr_backward(v_scores, image, num_iter, dilations, on_cuda: bool) -> Tensor:
    p = plan_backward(v_scores, image, num_iter, dilations)
    return _run(p, BACKWARD, _defined_backward, image, v_scores, on_cuda)


def _pamr_labels(image, scores, num_iter, dilations, on_cuda: bool) -> Tensor:
    p = plan_labels(image, scores, num_iter, dilations)
    if 0 in p.label_shape:
        return torch.empty(p.label_shape, dtype=p.label_dtype, device=scores.device)
    scores = scores.to(p.compute_dtype)
    if p.num_iter == 0 or _native.use_reference(on_cuda):
        steps = {"num_iter": p.num_iter, "dilations": p.dilations}
        return reference_labels(_unit_image(p, image), _four_axes(p, scores), **steps).reshape(p.label_shape)
    result = _native.allocate(p.label_shape, p.label_dtype, scores.device)
    _call(p, LABELS, image, scores, on_cuda, labels=result.data_ptr(), label_bytes=result.element_size())
    return result


def _fake_labels(image, scores, num_iter, dilations):
    p = plan_labels(image, scores, num_iter, dilations)
    return scores.new_empty(p.label_shape, dtype=p.label_dtype)


def _fake(image, scores, num_iter, dilations):
    return scores.new_empty(plan(image, scores, num_iter, dilations).shape)


def _fake_backward(v_scores, image, num_iter, dilations):
    return v_scores.new_empty(plan_backward(v_scores, image, num_iter, dilations).shape)


def _setup_context(ctx, inputs, output) -> None:
    image, _scores, ctx.num_iter, ctx.dilations = inputs
    ctx.save_for_backward(image)


def _backward(ctx, v_result):
    v_scores = torch.ops.ovs_kernels.pamr_backward(v_result, *ctx.saved_tensors, ctx.num_iter, ctx.dilations)
    return None, v_scores, None, None


def _setup_backward_context(ctx, inputs, output) -> None:
    _v_scores, image, ctx.num_iter, ctx.dilations = inputs
    ctx.save_for_backward(image)


def _backward_backward(ctx, v_v_scores):
    # Both operators are linear, and each is the other's transpose.
    return torch.ops.ovs_kernels.pamr(*ctx.saved_tensors, v_v_scores, ctx.num_iter, ctx.dilations), None, None, None


def _sample_inputs(device: str) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(15)
    image = torch.rand(3, 9, 13, generator=generator)
    return image.to(device), torch.rand(4, 9, 13, generator=generator).to(device)


def _samples(device: str) -> list[tuple]:
    image, scores = _sample_inputs(device)
    images, pair = torch.stack((image, image.flip(1))), torch.stack((scores, scores.flip(0)))
    return [
        (image, scores, 3, [2]),
        ((255 * images).to(torch.uint8), pair, 2, [1, 4]),
        (images[:, :1], pair.clone().requires_grad_(), 2, [1, 16]),
        (image.double(), scores.double(), 1, [1, 2, 3]),
        (image, scores, 0, [8, 16]),
    ]


def _backward_samples(device: str) -> list[tuple]:
    image, scores = _sample_inputs(device)
    return [(scores, image, 2, [2]), (scores.clone().requires_grad_(), image, 1, [1, 16])]


register(
    "pamr(Tensor image, Tensor scores, int num_iter, int[] dilations) -> Tensor",
    cpu=functools.partial(_pamr, on_cuda=False),
    cuda=functools.partial(_pamr, on_cuda=True),
    fake=_fake,
    gradient=Gradient(_setup_context, _backward),
    samples=_samples,
)
register(
    "pamr_labels(Tensor image, Tensor scores, int num_iter, int[] dilations) -> Tensor",
    cpu=functools.partial(_pamr_labels, on_cuda=False),
    cuda=functools.partial(_pamr_labels, on_cuda=True),
    fake=_fake_labels,
    gradient=None,
    samples=_samples,
    public=False,
)
register(
    "pamr_backward(Tensor v_scores, Tensor image, int num_iter, int[] dilations) -> Tensor",
    cpu=functools.partial(_pamr_backward, on_cuda=False),
    cuda=functools.partial(_pamr_backward, on_cuda=True),
    fake=_fake_backward,
    gradient=Gradient(_setup_backward_context, _backward_backward),
    samples=_backward_samples,
    public=False,
)
