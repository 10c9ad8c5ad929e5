"""Operator `lp_pixels`: plan, CPU and CUDA bridges, fake, gradient."""

import dataclasses
import functools
import math

import torch
from torch import Tensor

from .. import _native
from .._checks import (
    FLOATS,
    expect_between,
    expect_choice,
    expect_dtype,
    expect_integer,
    expect_not_negative,
    expect_positive,
    expect_rank,
    expect_shape,
    not_served,
    same_device,
    wrong_value,
)
from ..reference import pixels as reference
from . import Gradient, register

NAME = "lp_pixels"
MAX_WINDOW = 31
MAX_GROUPS = 65536
OFFICIAL_STEPS = 10
# Classes solved together: vectors of 8 (the core's kClassGranule) up to its kMaxClassChunk; on a CPU a full plane of 16
# and a half one, more at a time is slower.
CLASS_GRANULE = 8
MAX_CHUNK = {"cpu": 24, "cuda": 32}
# Without a memory_limit, fewer classes are solved at a time rather than taking more scratch memory than this.
SOFT_MEMORY_LIMIT = 1280 * 2**20


@dataclasses.dataclass(frozen=True)
class Plan:
    """Checked arguments of one call."""

    batched: bool
    batch: int
    num_classes: int
    num_groups: int
    height: int
    width: int
    num_features: int
    dtype: torch.dtype  # of the result, unless labels
    compute_dtype: torch.dtype
    label_dtype: torch.dtype | None
    max_iter: int
    empty: bool

    def result_shape(self) -> tuple[int, ...]:
        """Shape of the scores or labels, with the batch axis only if the caller gave one."""
        channels = () if self.label_dtype is not None else (self.num_groups,)
        return ((self.batch,) if self.batched else ()) + channels + (self.height, self.width)

    def info_shape(self, info: bool) -> tuple[int, ...]:
        """Shape of iterations and residuals."""
        if not info:
            return (0,)
        return (self.batch, self.num_classes) if self.batched else (self.num_classes,)


def _check_parameters(window, tau, alpha, mode, max_iter, tol, memory_limit) -> None:
    expect_integer(NAME, "window", window, 1, MAX_WINDOW, odd=True)
    expect_positive(NAME, "tau", tau)
    expect_between(NAME, "alpha", alpha, 0, 1)
    expect_choice(NAME, "mode", mode, tuple(_native.SOLVE_MODES))
    if max_iter is not None:
        expect_integer(NAME, "max_iter", max_iter, 1, 2**31 - 1)
    if mode == "exact":
        expect_between(NAME, "tol", tol, 0, 1)
    else:
        expect_not_negative(NAME, "tol", tol)
    if memory_limit is not None:
        expect_integer(NAME, "memory_limit", memory_limit, 1)


def _count_groups(groups: list[int] | None, num_classes: int) -> int:
    if groups is None:
        return num_classes
    if len(groups) != num_classes:
        wrong_value(NAME, "groups", f"one integer per class, C={num_classes} (that of scores)", f"{len(groups)}")
    for group in groups:
        if not 0 <= group < MAX_GROUPS:
            wrong_value(NAME, "groups", f"integers in [0, {MAX_GROUPS - 1}]", group)
    return max(groups, default=-1) + 1


def plan(scores, image, window, tau, alpha, mode, max_iter, tol, color, labels, groups, info, memory_limit) -> Plan:
    """All checks of `lp_pixels`; the arguments are those of the schema."""
    dtype = expect_dtype(NAME, "scores", scores, FLOATS)
    batched = expect_rank(NAME, "scores", scores, "C, H, W", "B, C, H, W") == "B, C, H, W"
    expect_choice(NAME, "color", color, ("lab", None))
    expect_dtype(NAME, "image", image, (*FLOATS, torch.uint8) if color == "lab" else FLOATS)
    batch = scores.shape[0] if batched else 1
    num_classes, height, width = scores.shape[-3:]
    known = {"B": batch, "H": height, "W": width} if batched else {"H": height, "W": width}
    pattern = ("B, " if batched else "") + ("3" if color == "lab" else "F") + ", H, W"
    expect_shape(NAME, "image", image, pattern, known, "scores")
    same_device(NAME, scores=scores, image=image)
    num_features = image.shape[-3]
    if num_features == 0:
        wrong_value(NAME, "image", "at least one feature channel", "0")
    _check_parameters(window, tau, alpha, mode, max_iter, tol, memory_limit)
    num_groups = _count_groups(groups, num_classes)
    empty = 0 in (batch, height, width, num_classes)
    if labels and num_classes == 0 and batch * height * width > 0:
        wrong_value(NAME, "scores", "at least one class for labels=True", "C=0")
    if max_iter is None:
        max_iter = OFFICIAL_STEPS if mode == "official" else 2**31 - 1
    label_dtype = (torch.uint8 if num_groups <= 255 else torch.int32) if labels else None
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    return Plan(
        batched,
        batch,
        num_classes,
        num_groups,
        height,
        width,
        num_features,
        dtype,
        compute,
        label_dtype,
        max_iter,
        empty,
    )


def _inputs(p: Plan, scores: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
    """Contiguous [B, C, H, W] and [B, F, H, W] in the dtype of the computation."""
    if not p.batched:
        scores, image = scores[None], image[None]
    scores = scores.to(p.compute_dtype)
    guide = image.to(p.compute_dtype) / 255 if image.dtype == torch.uint8 else image.to(p.compute_dtype)
    return scores.contiguous(), guide.contiguous()


def _outputs(p: Plan, device: torch.device, info: bool) -> tuple[Tensor, Tensor, Tensor]:
    shape, dtype = p.result_shape(), p.label_dtype or p.compute_dtype
    return (
        _native.allocate(shape, dtype, device),
        torch.empty(p.info_shape(info), dtype=torch.int32, device=device),
        torch.empty(p.info_shape(info), dtype=torch.float64, device=device),
    )


def _reference(p: Plan, scores, image, window, tau, alpha, mode, tol, color, labels, groups, info):
    y, guide = _inputs(p, scores, image)
    result, iterations, residuals = reference.lp_pixels(
        y,
        guide,
        window=window,
        tau=tau,
        alpha=alpha,
        mode=mode,
        max_iter=min(p.max_iter, reference.MAX_EXACT_STEPS),
        tol=tol,
        lab=color == "lab",
        groups=None if groups is None else torch.tensor(groups, dtype=torch.int64),
        num_groups=p.num_groups,
        labels=labels,
    )
    shape = p.info_shape(info)
    result = result.reshape(p.result_shape())
    if not info:
        return result if labels else result.to(p.dtype), iterations.new_empty(0), residuals.new_empty(0)
    return result if labels else result.to(p.dtype), iterations.reshape(shape), residuals.reshape(shape)


def chunk_sizes(num_classes: int, largest: int) -> list[int]:
    """Class chunks to try, largest first: balanced, so that with `largest` 32 40 classes are 24 + 16 and not 32 + 8."""
    sizes = []
    for chunks in range(math.ceil(num_classes / largest), math.ceil(num_classes / CLASS_GRANULE) + 1):
        size = math.ceil(math.ceil(num_classes / chunks) / CLASS_GRANULE) * CLASS_GRANULE
        if size not in sizes:
            sizes.append(size)
    return sizes


def _choose_chunk(num_classes: int, largest: int, bytes_of, memory_limit: int | None) -> tuple[int, int]:
    """Largest class chunk whose workspace fits, and its bytes."""
    limit = SOFT_MEMORY_LIMIT if memory_limit is None else memory_limit
    for chunk in chunk_sizes(num_classes, largest):
        num_bytes = bytes_of(chunk)
        if num_bytes <= limit:
            return chunk, num_bytes
    if memory_limit is not None:
        wrong_value(NAME, "memory_limit", f"at least {num_bytes} bytes for this size", memory_limit)
    return chunk, num_bytes


@functools.lru_cache(maxsize=64)
def _groups_on(device: torch.device, groups: tuple[int, ...]) -> Tensor:
    # Kept, so that a call under CUDA-graph capture after a warm-up call copies nothing from the host.
    return torch.tensor(groups, dtype=torch.int32, device=device)


def _arguments(
    p: Plan, y, guide, result, iterations, residuals, window, tau, alpha, mode, tol, color, groups, info
) -> dict:
    """Keyword arguments that the CPU and the CUDA function share; all tensors must outlive the call."""
    labels = p.label_dtype is not None
    return {
        "scores": y.data_ptr(),
        "guide": guide.data_ptr(),
        "groups": 0 if groups is None else groups.data_ptr(),
        "out": 0 if labels else result.data_ptr(),
        "labels": result.data_ptr() if labels else 0,
        "iterations": iterations.data_ptr() if info else 0,
        "residuals": residuals.data_ptr() if info else 0,
        "batch": p.batch,
        "num_classes": p.num_classes,
        "num_groups": p.num_groups,
        "height": p.height,
        "width": p.width,
        "num_features": p.num_features,
        "label_bytes": 4 if p.label_dtype == torch.int32 else 1,
        "window": window,
        "tau": tau,
        "alpha": alpha,
        "tol": tol,
        "max_iter": p.max_iter,
        "lab": color == "lab",
        "mode": _native.SOLVE_MODES[mode],
    }


def _cpu(scores, image, window, tau, alpha, mode, max_iter, tol, color, labels, groups, info, memory_limit):
    p = plan(scores, image, window, tau, alpha, mode, max_iter, tol, color, labels, groups, info, memory_limit)
    native = _native.cpu_module()
    if p.empty:
        return _outputs_of_nothing(p, scores.device, info)
    if native is None:
        return _reference(p, scores, image, window, tau, alpha, mode, tol, color, labels, groups, info)
    y, guide = _inputs(p, scores, image)
    result, iterations, residuals = _outputs(p, scores.device, info)
    group_ids = None if groups is None else torch.tensor(groups, dtype=torch.int32)
    common = _arguments(
        p, y, guide, result, iterations, residuals, window, tau, alpha, mode, tol, color, group_ids, info
    )
    common["dtype"] = _native.DTYPES[p.compute_dtype]
    chunk, num_bytes = _choose_chunk(
        p.num_classes,
        MAX_CHUNK["cpu"],
        lambda size: native.lp_pixels_cpu_workspace_bytes(class_chunk=size, **common),
        memory_limit,
    )
    workspace = _native.allocate((num_bytes,), torch.uint8, scores.device)
    native.lp_pixels_cpu(
        class_chunk=chunk,
        workspace=workspace.data_ptr(),
        workspace_bytes=num_bytes,
        num_threads=torch.get_num_threads(),
        isa=_native.ISA_NUMBERS[_native.isa()],
        **common,
    )
    return result if labels else result.to(p.dtype), iterations, residuals


def _cuda(scores, image, window, tau, alpha, mode, max_iter, tol, color, labels, groups, info, memory_limit):
    p = plan(scores, image, window, tau, alpha, mode, max_iter, tol, color, labels, groups, info, memory_limit)
    if p.empty:
        return _outputs_of_nothing(p, scores.device, info)
    if _native.use_reference(True, p.compute_dtype):
        return _reference(p, scores, image, window, tau, alpha, mode, tol, color, labels, groups, info)
    native = _native.cuda_module(NAME)
    y, guide = _inputs(p, scores, image)
    result, iterations, residuals = _outputs(p, scores.device, info)
    group_ids = None if groups is None else _groups_on(scores.device, tuple(groups))
    common = _arguments(
        p, y, guide, result, iterations, residuals, window, tau, alpha, mode, tol, color, group_ids, info
    )
    chunk, num_bytes = _choose_chunk(
        p.num_classes,
        MAX_CHUNK["cuda"],
        lambda size: native.lp_pixels_cuda_workspace_bytes(class_chunk=size, **common),
        memory_limit,
    )
    workspace = _native.allocate((num_bytes,), torch.uint8, scores.device)
    native.lp_pixels_cuda(
        class_chunk=chunk,
        workspace=workspace.data_ptr(),
        workspace_bytes=num_bytes,
        device=scores.device.index or 0,
        stream=_native.current_stream(scores.device),
        **common,
    )
    return result if labels else result.to(p.dtype), iterations, residuals


def _outputs_of_nothing(p: Plan, device: torch.device, info: bool) -> tuple[Tensor, Tensor, Tensor]:
    result, iterations, residuals = _outputs(p, device, info)
    return result if p.label_dtype is not None else result.to(p.dtype), iterations.zero_(), residuals.zero_()


def _fake(scores, image, window, tau, alpha, mode, max_iter, tol, color, labels, groups, info, memory_limit):
    p = plan(scores, image, window, tau, alpha, mode, max_iter, tol, color, labels, groups, info, memory_limit)
    shape = p.info_shape(info)
    return (
        scores.new_empty(p.result_shape(), dtype=p.label_dtype or p.dtype),
        scores.new_empty(shape, dtype=torch.int32),
        scores.new_empty(shape, dtype=torch.float64),
    )


def _setup_context(ctx, inputs, output) -> None:
    ctx.save_for_backward(inputs[1])
    ctx.arguments = inputs[2:]


def _backward(ctx, v_result, v_iterations, v_residuals):
    window, tau, alpha, mode, max_iter, tol, color, _labels, groups, _info, memory_limit = ctx.arguments
    if mode != "exact":
        not_served(
            NAME,
            "mode",
            f"the gradient of {mode!r}, whose result is not linear in the scores,",
            'use mode="exact" for training',
        )
    if groups is not None:
        not_served(NAME, "groups", "the gradient through the maximum of a group", "call ovs_kernels.lp_pixels instead")
    # The solution operator is self-adjoint: the gradient of the scores is another solve.
    v_scores, _, _ = torch.ops.ovs_kernels.lp_pixels(
        v_result, ctx.saved_tensors[0], window, tau, alpha, mode, max_iter, tol, color, False, None, False, memory_limit
    )
    return v_scores, *(None,) * 12


def _samples(device: str) -> list[tuple]:
    generator = torch.Generator().manual_seed(5)
    scores = torch.rand(3, 9, 11, generator=generator).to(device)
    image = torch.rand(3, 9, 11, generator=generator).to(device)
    pair = torch.stack((scores, scores.flip(0)))
    features = torch.rand(2, 2, 9, 11, generator=generator).to(device)
    return [
        (scores, image, 5, 0.05, 0.95, "official", None, 1e-6, "lab", False, None, True, None),
        (scores, image, 5, 0.05, 0.95, "official", 3, 1e-6, "lab", True, [1, 0, 1], False, None),
        (pair, features, 3, 0.2, 0.9, "exact", None, 1e-5, None, False, [1, 0, 1], False, None),
        (pair.clone().requires_grad_(), features, 3, 0.2, 0.9, "exact", None, 1e-6, None, False, None, False, None),
    ]


register(
    "lp_pixels(Tensor scores, Tensor image, int window, float tau, float alpha, str mode, int? max_iter, float tol, "
    "str? color, bool labels, int[]? groups, bool info, int? memory_limit) -> (Tensor, Tensor, Tensor)",
    cpu=_cpu,
    cuda=_cuda,
    fake=_fake,
    gradient=Gradient(_setup_context, _backward),
    samples=_samples,
)
