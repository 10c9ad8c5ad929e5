"""Operator `merge_windows` and its transpose `merge_windows_backward`: plan, CPU and CUDA bridges, fakes, gradients."""

import dataclasses
import functools
import itertools
import math
from types import ModuleType

import torch
from torch import Tensor

from .. import _native
from .._checks import (
    FLOATS,
    INTEGERS,
    dtype_text,
    expect_dtype,
    expect_integer,
    expect_rank,
    expect_shape,
    wrong_type,
    wrong_value,
)
from ..reference import windows as reference
from . import Gradient, register

NAME = "merge_windows"
BACKWARD = "merge_windows_backward"
# Largest extent of an image and largest number of patches of a window: the core's tables hold them in 32 bits.
MAX_EXTENT = 2**29 - 1


@dataclasses.dataclass(frozen=True)
class Plan:
    """Checked arguments of one call, forward or backward."""

    num_classes: int
    height: int
    width: int
    dtype: torch.dtype
    compute_dtype: torch.dtype
    grids: tuple[int, ...]  # K, h, w of every set-up
    boxes: tuple[int, ...] | None  # y0, x0, y1, x1 of every window; None where values cannot be read

    @property
    def merged_shape(self) -> tuple[int, int, int]:
        """Shape of the merged scores."""
        return self.num_classes, self.height, self.width

    @property
    def num_setups(self) -> int:
        """Number of set-ups."""
        return len(self.grids) // 3

    @property
    def scores_shapes(self) -> list[tuple[int, int, int, int]]:
        """[K, C, h, w] of every set-up."""
        counts, rows, columns = (self.grids[i::3] for i in range(3))
        return [(k, self.num_classes, h, w) for k, h, w in zip(counts, rows, columns, strict=True)]

    @property
    def num_scores(self) -> int:
        """Patch scores of all set-ups together."""
        return sum(math.prod(shape) for shape in self.scores_shapes)

    @property
    def empty(self) -> bool:
        """Whether there is nothing to compute."""
        return self.num_scores == 0 or self.height * self.width == 0


def _label(name: str, index: int, count: int) -> str:
    return name if count == 1 else f"{name}[{index}]"


def _check_scores(scores: list[Tensor]) -> tuple[int, ...]:
    """Every set-up [K, C, h, w] of the same C, dtype and device; returns K, h, w of each."""
    if not scores:
        wrong_value(NAME, "scores", "at least one set-up of windows", "none")
    grids = []
    for index, setup in enumerate(scores):
        name = _label("scores", index, len(scores))
        expect_dtype(NAME, name, setup, FLOATS)
        expect_rank(NAME, name, setup, "K, C, h, w")
        if setup.dtype != scores[0].dtype:
            wrong_type(NAME, name, f"{dtype_text(scores[0].dtype)} (that of scores[0])", dtype_text(setup.dtype))
        if setup.device != scores[0].device:
            wrong_value(NAME, name, f"device {scores[0].device} (that of scores[0])", setup.device)
        sizes = expect_shape(NAME, name, setup, "K, C, h, w", {"C": scores[0].shape[1]} if index else {}, "scores[0]")
        for letter, what in (("C", "class"), ("h", "row of patches"), ("w", "column of patches")):
            if sizes.get(letter, scores[0].shape[1]) == 0:
                wrong_value(NAME, name, f"at least one {what}", f"{letter}=0")
        if sizes["h"] * sizes["w"] > MAX_EXTENT:
            wrong_value(NAME, name, f"at most {MAX_EXTENT} patches in a window", sizes["h"] * sizes["w"])
        grids += [sizes["K"], sizes["h"], sizes["w"]]
    return tuple(grids)


def _check_tables(boxes: list[Tensor], grids: tuple[int, ...], device: torch.device) -> None:
    """One [K, 4] table of integers per set-up, on the host or beside the scores."""
    num_setups = len(grids) // 3
    if len(boxes) != num_setups:
        wrong_value(NAME, "boxes", f"one table per set-up of scores, {num_setups}", f"{len(boxes)}")
    for index, table in enumerate(boxes):
        name = _label("boxes", index, num_setups)
        expect_dtype(NAME, name, table, INTEGERS)
        expect_shape(NAME, name, table, "K, 4", {"K": grids[3 * index]}, _label("scores", index, num_setups))
        if table.device.type != "cpu" and table.device != device:
            wrong_value(NAME, name, f"device cpu or {device} (that of scores)", table.device)


def _check_size(size: list[int]) -> None:
    if len(size) != 2:
        wrong_value(NAME, "size", "two integers, height and width", f"{len(size)}")
    for extent in size:
        expect_integer(NAME, "size", extent, 0, MAX_EXTENT)


@functools.lru_cache(maxsize=256)
def _check_boxes(boxes: tuple[int, ...], counts: tuple[int, ...], height: int, width: int) -> None:
    """Every box inside the image and not empty, every pixel in a window of every set-up."""
    remaining = iter(zip(*[iter(boxes)] * 4, strict=True))
    for index, count in enumerate(counts):
        name = _label("boxes", index, len(counts))
        bands: dict[tuple[int, int], list[tuple[int, int]]] = {}
        for k, (y0, x0, y1, x1) in enumerate(itertools.islice(remaining, count)):
            if not (0 <= y0 < y1 <= height and 0 <= x0 < x1 <= width):
                expected = f"0 <= y0 < y1 <= H={height} and 0 <= x0 < x1 <= W={width}"
                wrong_value(NAME, name, expected, f"(y0, x0, y1, x1) = {(y0, x0, y1, x1)} for window {k}")
            bands.setdefault((y0, y1), []).append((x0, x1))
        uncovered = _first_uncovered(bands, height, width)
        if uncovered is not None:
            wrong_value(NAME, name, "every pixel in a window", f"none at (y, x) = {uncovered}")


def _first_uncovered(
    bands: dict[tuple[int, int], list[tuple[int, int]]], height: int, width: int
) -> tuple[int, int] | None:
    """The first pixel, in reading order, that no window covers; `bands`: column ranges by row range."""
    if width == 0:
        return None
    starts = sorted({0, *(y for rows in bands for y in rows)})
    for y in starts:
        if y >= height:
            break
        covered = 0
        for x0, x1 in sorted(columns for (y0, y1), ranges in bands.items() if y0 <= y < y1 for columns in ranges):
            if x0 > covered:
                break
            covered = max(covered, x1)
        if covered < width:
            return y, covered
    return None


def _plan(
    like: Tensor, merged_shape: tuple[int, int, int], grids: tuple[int, ...], boxes: list[Tensor], fake: bool
) -> Plan:
    """What the two operators share; `like` has the dtype and the device of the call."""
    _check_tables(boxes, grids, like.device)
    num_classes, height, width = merged_shape
    dtype = like.dtype
    values = None
    if not fake:
        values = tuple(itertools.chain.from_iterable(itertools.chain.from_iterable(t.tolist()) for t in boxes))
        _check_boxes(values, grids[::3], height, width)
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    return Plan(num_classes, height, width, dtype, compute, grids, values)


def plan(scores: list[Tensor], boxes: list[Tensor], size: list[int], fake: bool = False) -> Plan:
    """All checks of `merge_windows`; the arguments are those of the schema, `fake` leaves values unread."""
    grids = _check_scores(scores)
    _check_size(size)
    return _plan(scores[0], (scores[0].shape[1], size[0], size[1]), grids, boxes, fake)


def plan_backward(v_merged: Tensor, grids: list[int], boxes: list[Tensor], fake: bool = False) -> Plan:
    """All checks of `merge_windows_backward`."""
    expect_dtype(BACKWARD, "v_merged", v_merged, FLOATS)
    expect_rank(BACKWARD, "v_merged", v_merged, "C, H, W")
    if len(grids) % 3 or not grids or min(grids[1::3] + grids[2::3]) < 1 or min(grids) < 0:
        wrong_value(BACKWARD, "grids", "K >= 0, h >= 1, w >= 1 of every set-up", grids)
    return _plan(v_merged, tuple(v_merged.shape), tuple(grids), boxes, fake)


@functools.lru_cache(maxsize=64)
def _layout(
    native: ModuleType,
    boxes: tuple[int, ...],
    grids: tuple[int, ...],
    height: int,
    width: int,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """The core's tables for these boxes, on the host and on `device`.

    Kept, so that a CUDA call after the first one copies nothing from the host.
    """
    box_table, grid_table = (torch.tensor(values, dtype=torch.int64) for values in (boxes, grids))
    arguments = {
        "boxes": box_table.data_ptr(),
        "grids": grid_table.data_ptr(),
        "num_windows": len(boxes) // 4,
        "num_setups": len(grids) // 3,
        "height": height,
        "width": width,
        "dtype": _native.DTYPES[dtype],
    }
    num_bytes = native.merge_windows_layout_bytes(**arguments)
    layout = _native.allocate((num_bytes,), torch.uint8, torch.device("cpu"))
    native.merge_windows_layout(layout=layout.data_ptr(), layout_bytes=num_bytes, **arguments)
    return layout, layout.to(device)


def _run(p: Plan, operator: str, scores: Tensor, merged: Tensor, on_cuda: bool) -> None:
    """Calls the compiled module: scores -> merged, or for the transpose merged -> scores. Both are contiguous."""
    native = _native.cuda_module(operator) if on_cuda else _native.cpu_module()
    layout, device_layout = _layout(native, p.boxes, p.grids, p.height, p.width, p.compute_dtype, scores.device)
    common = {
        "scores": scores.data_ptr(),
        "merged": merged.data_ptr(),
        "layout": layout.data_ptr(),
        "device_layout": device_layout.data_ptr(),
        "num_classes": p.num_classes,
        "dtype": _native.DTYPES[p.compute_dtype],
    }
    _native.call(operator, scores.device, common, on_cuda)


def _merge(scores: list[Tensor], boxes: list[Tensor], size: list[int], on_cuda: bool) -> Tensor:
    p = plan(scores, boxes, size)
    if p.empty:
        return scores[0].new_zeros(p.merged_shape)
    scores = [setup.to(p.compute_dtype) for setup in scores]
    if _native.use_reference(on_cuda):
        return reference.merge_windows(scores, boxes, size).to(p.dtype)
    packed = scores[0].contiguous() if len(scores) == 1 else torch.cat([setup.reshape(-1) for setup in scores])
    merged = _native.allocate(p.merged_shape, p.compute_dtype, packed.device)
    _run(p, NAME, packed, merged, on_cuda)
    return merged.to(p.dtype)


def _merge_backward(v_merged: Tensor, grids: list[int], boxes: list[Tensor], on_cuda: bool) -> Tensor:
    p = plan_backward(v_merged, grids, boxes)
    if p.empty:
        return v_merged.new_zeros(p.num_scores)
    v_merged = v_merged.to(p.compute_dtype).contiguous()
    if _native.use_reference(on_cuda):
        return reference.merge_windows_backward(v_merged, grids, boxes).to(p.dtype)
    v_scores = _native.allocate((p.num_scores,), p.compute_dtype, v_merged.device)
    _run(p, BACKWARD, v_scores, v_merged, on_cuda)
    return v_scores.to(p.dtype)


def _fake(scores, boxes, size):
    p = plan(scores, boxes, size, fake=True)
    return scores[0].new_empty(p.merged_shape)


def _fake_backward(v_merged, grids, boxes):
    p = plan_backward(v_merged, grids, boxes, fake=True)
    return v_merged.new_empty(p.num_scores)


def _split(flat: Tensor, shapes: list[tuple[int, ...]]) -> list[Tensor]:
    """The set-ups of a flat tensor of scores."""
    parts = flat.split([math.prod(shape) for shape in shapes])
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


def _setup_context(ctx, inputs, output) -> None:
    scores, boxes, _size = inputs
    ctx.save_for_backward(*boxes)
    ctx.shapes = [tuple(setup.shape) for setup in scores]


def _backward(ctx, v_merged):
    boxes = list(ctx.saved_tensors)
    grids = [extent for k, _, h, w in ctx.shapes for extent in (k, h, w)]
    v_scores = torch.ops.ovs_kernels.merge_windows_backward(v_merged, grids, boxes)
    return _split(v_scores, ctx.shapes), [None] * len(boxes), None


def _setup_backward_context(ctx, inputs, output) -> None:
    v_merged, grids, boxes = inputs
    ctx.save_for_backward(*boxes)
    ctx.grids = grids
    ctx.merged_shape = tuple(v_merged.shape)


def _backward_backward(ctx, v_v_scores):
    # Both operators are linear, and each is the other's transpose.
    boxes, grids = list(ctx.saved_tensors), ctx.grids
    num_classes, *size = ctx.merged_shape
    shapes = [(grids[i], num_classes, grids[i + 1], grids[i + 2]) for i in range(0, len(grids), 3)]
    v_v_merged = torch.ops.ovs_kernels.merge_windows(_split(v_v_scores, shapes), boxes, size)
    return v_v_merged, None, [None] * len(boxes)


def _sample_inputs(device: str) -> tuple[list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(6)
    scores = [torch.rand(shape, generator=generator).to(device) for shape in ((4, 3, 2, 3), (1, 3, 4, 5))]
    corners = torch.tensor([[0, 0, 5, 6], [0, 3, 5, 9], [2, 0, 7, 6], [2, 3, 7, 9]])
    return scores, [corners, torch.tensor([[0, 0, 7, 9]], dtype=torch.int32)]


def _samples(device: str) -> list[tuple]:
    scores, boxes = _sample_inputs(device)
    return [
        (scores[:1], boxes[:1], [7, 9]),
        (scores, boxes, [7, 9]),
        ([setup.clone().requires_grad_() for setup in scores], boxes, [7, 9]),
        ([scores[0].double()], boxes[:1], [7, 9]),
    ]


def _backward_samples(device: str) -> list[tuple]:
    _, boxes = _sample_inputs(device)
    v_merged = torch.rand(3, 7, 9, generator=torch.Generator().manual_seed(7)).to(device)
    return [
        (v_merged, [4, 2, 3], boxes[:1]),
        (v_merged.clone().requires_grad_(), [4, 2, 3, 1, 4, 5], boxes),
    ]


register(
    "merge_windows(Tensor[] scores, Tensor[] boxes, int[] size) -> Tensor",
    cpu=functools.partial(_merge, on_cuda=False),
    cuda=functools.partial(_merge, on_cuda=True),
    fake=_fake,
    gradient=Gradient(_setup_context, _backward),
    samples=_samples,
)
register(
    "merge_windows_backward(Tensor v_merged, int[] grids, Tensor[] boxes) -> Tensor",
    cpu=functools.partial(_merge_backward, on_cuda=False),
    cuda=functools.partial(_merge_backward, on_cuda=True),
    fake=_fake_backward,
    gradient=Gradient(_setup_backward_context, _backward_backward),
    samples=_backward_samples,
    public=False,
)
