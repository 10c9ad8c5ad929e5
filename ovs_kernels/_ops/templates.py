"""Operators `template_entropy` and `fuse_experts`: plans, bridges, fakes."""

import dataclasses
import functools
import math

import torch
from torch import Tensor

from .. import _native
from .._checks import (
    FLOATS,
    INTEGERS,
    dtype_text,
    expect_choice,
    expect_dtype,
    expect_integer,
    expect_positive,
    expect_rank,
    expect_shape,
    same_device,
    shape_text,
    wrong_type,
    wrong_value,
)
from ..reference import templates as reference
from . import register
from .templates_tables import STRIP, Tables, group_tables, tables
from .windows import MAX_EXTENT, _first_uncovered

ENTROPY = "template_entropy"
FUSE = "fuse_experts"
MODES = ("patch", "pixel_exact")
INTERPOLATE = ("probabilities", "logits")
STRATEGIES = {"highest": 0, "default_on_conflict": 1, "average_conflicting": 2, "average": 3}  # the core's FuseStrategy
# Most places of a call: their sums, in units of 2^-32, stay below 2^63.
MAX_PLACES, MAX_MANO_PLACES = 2**26, 2**22
MAX_CLASSES = 2**15 - 1  # the core keeps classes in 16 bits
# Bytes of a tile of logits: some templates, as many as stay in a cache between the product and what follows.
CPU_TILE, CUDA_TILE = 4 * 2**20, 256 * 2**20
MAX_GRID = 65535  # templates of a launch: an extent of CUDA's grids
# Products of integers: shorter vectors hardly ever meet the bound, and few patches are not worth the packing.
FLOAT32_EPSILON = 2.0**-23
LEAST_INTEGER_FEATURES, LEAST_INTEGER_PATCHES = 128, 64
PRODUCT_COLUMNS = 1024


@dataclasses.dataclass(frozen=True)
class EntropyPlan:
    """Checked arguments of one call of `template_entropy`."""

    num_templates: int
    num_classes: int
    num_queries: int
    num_features: int
    num_sums: int
    num_patches: int
    compute_dtype: torch.dtype
    boxes: tuple[tuple[int, ...], ...] | None  # in mode "pixel_exact", where values can be read
    size: tuple[int, int] | None
    out_size: tuple[int, int] | None

    @property
    def num_places(self) -> int:
        """Patches or pixels that are counted."""
        return self.num_patches if self.out_size is None else math.prod(self.out_size)

    @property
    def empty(self) -> bool:
        """Whether there is nothing to count."""
        return self.num_patches == 0 or self.num_places == 0 or self.num_templates == 0


@dataclasses.dataclass(frozen=True)
class FusePlan:
    """Checked arguments of one call of `fuse_experts`."""

    num_windows: int
    grid: tuple[int, int]
    num_classes: int
    num_features: int
    size: tuple[int, int]
    boxes: tuple[tuple[int, ...], ...] | None
    merged: bool
    dtype: torch.dtype  # of the probabilities
    compute_dtype: torch.dtype
    label_dtype: torch.dtype | None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the result."""
        if self.merged:
            return self.num_classes, *self.size
        return (self.num_windows, *self.size) if self.label_dtype else (self.num_windows, self.num_classes, *self.size)


def _compute_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _check_pair(op: str, features: Tensor, name: str, texts: Tensor) -> None:
    """Dtypes and devices of the features and of the embeddings they are multiplied with."""
    expect_dtype(op, "features", features, FLOATS)
    expect_dtype(op, name, texts, FLOATS)
    if (features.dtype == torch.float64) != (texts.dtype == torch.float64):
        wrong_type(op, name, f"{dtype_text(features.dtype)} (that of features)", dtype_text(texts.dtype))
    same_device(op, features=features, **{name: texts})


def _check_counts(op: str, name: str, num_features: int, num_classes: int) -> None:
    if num_features < 1:
        wrong_value(op, "features", "at least one feature", f"d={num_features}")
    if num_classes < 1 or num_classes > MAX_CLASSES:
        wrong_value(op, name, f"1 to {MAX_CLASSES} classes", f"K={num_classes}")


def _check_size(op: str, name: str, size: list[int]) -> tuple[int, int]:
    if len(size) != 2:
        wrong_value(op, name, "two integers, height and width", f"{len(size)}")
    return tuple(expect_integer(op, name, extent, 1, MAX_EXTENT) for extent in size)


def _check_grid(op: str, features: Tensor) -> None:
    for axis, what in ((1, "row of patches"), (2, "column of patches")):
        if features.shape[axis] == 0:
            wrong_value(op, "features", f"at least one {what}", shape_text(features.shape))


def _check_boxes(op: str, boxes: Tensor, num_windows: int, size: tuple[int, int], fake: bool):
    """The boxes as numbers: inside the image, none empty, every pixel in one of them."""
    expect_dtype(op, "boxes", boxes, INTEGERS)
    expect_shape(op, "boxes", boxes, "n, 4", {"n": num_windows}, "features")
    if fake:
        return None
    height, width = size
    table = tuple(map(tuple, boxes.tolist()))
    bands: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for index, (y0, x0, y1, x1) in enumerate(table):
        if not (0 <= y0 < y1 <= height and 0 <= x0 < x1 <= width):
            expected = f"0 <= y0 < y1 <= H={height} and 0 <= x0 < x1 <= W={width}"
            wrong_value(op, "boxes", expected, f"(y0, x0, y1, x1) = {(y0, x0, y1, x1)} for window {index}")
        bands.setdefault((y0, y1), []).append((x0, x1))
    uncovered = _first_uncovered(bands, height, width)
    if uncovered is not None:
        wrong_value(op, "boxes", "every pixel in a window", f"none at (y, x) = {uncovered}")
    return table


def _check_regular(op: str, table: tuple[tuple[int, ...], ...]) -> None:
    """Windows that are all pairs of some row ranges and some column ranges, each once."""
    rows, columns = {(y0, y1) for y0, _, y1, _ in table}, {(x0, x1) for _, x0, _, x1 in table}
    if len(rows) * len(columns) != len(table) or len(set(table)) != len(table):
        expected = "a grid of windows, every range of rows with every range of columns, once"
        got = f"{len(table)} windows of {len(rows)} ranges of rows and {len(columns)} of columns"
        wrong_value(op, "boxes", expected, got)


def _check_groups(groups: list[int], num_queries: int, mano: bool) -> int:
    """The number of classes that the queries are of."""
    if mano:
        wrong_value(ENTROPY, "mano", "False with groups (its softmax is over the classes)", mano)
    if len(groups) != num_queries:
        expected = f"[Q] with Q={num_queries} (that of text_embeddings)"
        wrong_value(ENTROPY, "groups", expected, shape_text((len(groups),)))
    present = set(groups)
    if min(present) < 0 or max(present) + 1 != len(present):
        missing = min(present) if min(present) < 0 else next(k for k in range(max(present)) if k not in present)
        got = f"class {missing}" if missing < 0 else f"no query of class {missing}"
        wrong_value(ENTROPY, "groups", "classes 0 to K - 1, each at least once", got)
    return len(present)


def plan_entropy(
    features,
    text_embeddings,
    temperature,
    assume_normalized,
    mode,
    boxes,
    size,
    out_size,
    mano,
    interpolate,
    groups,
    fake=False,
) -> EntropyPlan:
    """All checks of `template_entropy`; the arguments are those of the schema, `fake` leaves values unread."""
    expect_choice(ENTROPY, "mode", mode, MODES)
    expect_choice(ENTROPY, "interpolate", interpolate, INTERPOLATE)
    _check_pair(ENTROPY, features, "text_embeddings", text_embeddings)
    expect_rank(ENTROPY, "features", features, "P, d" if mode == "patch" else "n, h, w, d")
    num_features = features.shape[-1]
    sizes = expect_shape(ENTROPY, "text_embeddings", text_embeddings, "M, K, d", {"d": num_features}, "features")
    _check_counts(ENTROPY, "text_embeddings", num_features, sizes["K"])
    expect_positive(ENTROPY, "temperature", temperature)
    num_classes = sizes["K"] if groups is None else _check_groups(groups, sizes["K"], mano)
    table = None
    if mode == "patch":
        for name, value in (("boxes", boxes), ("size", size), ("out_size", out_size)):
            if value is not None:
                wrong_value(ENTROPY, name, "None in mode 'patch'", "a value")
        if interpolate != INTERPOLATE[0]:
            wrong_value(ENTROPY, "interpolate", f"{INTERPOLATE[0]!r} in mode 'patch'", repr(interpolate))
    else:
        if mano:
            wrong_value(ENTROPY, "mano", "False in mode 'pixel_exact' (its softrun needs logits)", mano)
        if size is None:
            wrong_value(ENTROPY, "size", "height and width of the working image in mode 'pixel_exact'", "None")
        _check_grid(ENTROPY, features)
        size = _check_size(ENTROPY, "size", size)
        out_size = size if out_size is None else _check_size(ENTROPY, "out_size", out_size)
        if boxes is None:
            if features.shape[0] != 1:
                wrong_value(ENTROPY, "boxes", "one per window", f"None with {features.shape[0]} windows")
            table = ((0, 0, *size),)
        else:
            table = _check_boxes(ENTROPY, boxes, features.shape[0], size, fake)
            if table is not None:
                _check_regular(ENTROPY, table)
    p = EntropyPlan(
        sizes["M"],
        num_classes,
        sizes["K"],
        num_features,
        5 if mano else 2,
        math.prod(features.shape[:-1]),
        _compute_dtype(features.dtype),
        table,
        size,
        out_size,
    )
    most = MAX_MANO_PLACES if mano else MAX_PLACES
    if p.num_places > most:
        wrong_value(ENTROPY, "features" if mode == "patch" else "out_size", f"at most {most} places", p.num_places)
    return p


def plan_fuse(
    features, experts, size, boxes, strategy, temperature, assume_normalized, labels, winners, fake=False
) -> FusePlan:
    """All checks of `fuse_experts`."""
    expect_choice(FUSE, "strategy", strategy, STRATEGIES)
    _check_pair(FUSE, features, "experts", experts)
    expect_rank(FUSE, "features", features, "n, h, w, d")
    expect_rank(FUSE, "experts", experts, "K + 1, K, d")
    num_windows, height, width, num_features = features.shape
    num_classes = experts.shape[1]
    _check_counts(FUSE, "experts", num_features, num_classes)
    if experts.shape[0] != num_classes + 1 or experts.shape[2] != num_features:
        expected = f"[K + 1, K, d] with the default as the last of K + 1, d={num_features} (that of features)"
        wrong_value(FUSE, "experts", expected, shape_text(experts.shape))
    _check_grid(FUSE, features)
    expect_positive(FUSE, "temperature", temperature)
    size = _check_size(FUSE, "size", size)
    table = None
    if boxes is not None:
        for name, value in (("labels", labels), ("return_winners", winners)):
            if value:
                wrong_value(FUSE, name, "False with boxes (windows are averaged)", value)
        table = _check_boxes(FUSE, boxes, num_windows, size, fake)
    if winners and strategy.startswith("average"):
        wrong_value(FUSE, "return_winners", f"False with strategy {strategy!r}", winners)
    label_dtype = (torch.uint8 if num_classes <= 255 else torch.int32) if labels else None
    return FusePlan(
        num_windows,
        (height, width),
        num_classes,
        num_features,
        size,
        table,
        boxes is not None,
        features.dtype,
        _compute_dtype(features.dtype),
        label_dtype,
    )


def _runner(operator: str, on_cuda: bool, device: torch.device, dtype: torch.dtype):
    """A function that calls the compiled module with these fields, and keeps its scratch memory between calls."""
    native = _native.cuda_module(operator) if on_cuda else _native.cpu_module()
    sizing, where = {}, {"device": device.index or 0, "stream": _native.current_stream(device)}
    if not on_cuda:
        threads = {"num_threads": torch.get_num_threads()}
        sizing = {"dtype": _native.DTYPES[dtype], **threads}
        where = {**sizing, "isa": _native.ISA_NUMBERS[_native.isa()]}
    suffix = "cuda" if on_cuda else "cpu"
    call = getattr(native, f"{operator}_{suffix}")
    count_bytes = getattr(native, f"{operator}_{suffix}_workspace_bytes")
    kept: list[Tensor] = []

    def run(**fields) -> None:
        num_bytes = count_bytes(**fields, **sizing)
        if not kept or kept[0].nbytes < num_bytes:
            kept[:] = [_native.allocate((num_bytes,), torch.uint8, device)]
        call(workspace=kept[0].data_ptr(), workspace_bytes=kept[0].nbytes, **where, **fields)

    return run


def _unit_rows(rows: Tensor, assume_normalized: bool) -> tuple[Tensor, Tensor]:
    """Rows of unit length, zeros where one is zero or not finite, and where that is so (uint8)."""
    norms = _norms(rows)[..., None]
    unknown = ~((norms > 0) & (norms < torch.inf))
    unit = rows if assume_normalized else (rows / norms).to(rows.dtype)
    return unit.masked_fill(unknown, 0.0).contiguous(), unknown.squeeze(-1).to(torch.uint8)


def _norms(rows: Tensor) -> Tensor:
    """Lengths of the rows; in float64 where squares may leave the range of float32."""
    norms = torch.linalg.vector_norm(rows, dim=-1)
    if rows.dtype == torch.float64 or (rows.device.type == "cpu" and bool(((norms > 1e-12) & (norms < 1e15)).all())):
        return norms
    return torch.linalg.vector_norm(rows, dim=-1, dtype=torch.float64)


def _mask_pointer(unknown: Tensor, on_cuda: bool) -> int:
    """The mask for the core; none where nothing is marked, as far as that is known without waiting for a device."""
    return unknown.data_ptr() if on_cuda or bool(unknown.any()) else 0


def _pixel_fields(p: EntropyPlan, t: Tables, grid: tuple[int, int]) -> dict[str, int]:
    names = ("window_order", "row_first", "row_source", "row_weight", "strip_first", "strip_source", "strip_weight")
    return {name: getattr(t, name).data_ptr() for name in names} | {
        "out_height": p.out_size[0],
        "out_width": p.out_size[1],
        "grid_height": grid[0],
        "grid_width": grid[1],
        "window_rows": t.window_rows,
        "window_columns": t.window_columns,
    }


def _unknown_pixels(p: EntropyPlan, t: Tables, grid: tuple[int, int], unknown: Tensor) -> Tensor:
    """[Ho, Wo] uint8: pixels that are made from a patch without features, weight 0 included."""
    windows = unknown.float().reshape(-1, *grid)[t.window_order.long()]  # [rows, columns, h, w] of windows
    sources = windows.transpose(1, 2).reshape(t.window_rows * grid[0], t.window_columns * grid[1])
    return (t.uses_row @ sources @ t.uses_column.t() > 0).to(torch.uint8)


NO_PIXELS = dict.fromkeys(
    (
        *("out_height", "out_width", "grid_height", "grid_width", "window_rows", "window_columns", "window_order"),
        *("row_first", "row_source", "row_weight", "strip_first", "strip_source", "strip_weight"),
    ),
    0,
)


def _suits_integers(p: EntropyPlan, mano: bool, on_cuda: bool) -> bool:
    """Whether products of integers are worth trying; MaNo is not a function of differences of logits."""
    suits = p.num_features >= LEAST_INTEGER_FEATURES and p.num_patches >= LEAST_INTEGER_PATCHES
    return suits and p.out_size is None and p.compute_dtype == torch.float32 and not mano and not on_cuda


def _count_fixed(p: EntropyPlan, unit, unknown, texts, options, counts, sums) -> list[int]:
    """Patches by products of integers, where those are exact enough; returns the templates that are left."""
    temperature, assume_normalized, *_, groups = options
    classes = group_tables(groups, unit.device)
    done = torch.zeros(p.num_templates, dtype=torch.uint8)
    arguments = {
        "features": unit.data_ptr(),
        "texts": texts.data_ptr(),
        "query_order": 0 if classes.order is None else classes.order.data_ptr(),
        "unknown": _mask_pointer(unknown, False),
        "counts": counts.data_ptr(),
        "sums": sums.data_ptr(),
        "sum_stride": p.num_templates * p.num_classes,
        "done": done.data_ptr(),
        "num_templates": p.num_templates,
        "num_classes": p.num_classes,
        "num_queries": p.num_queries,
        "num_patches": p.num_patches,
        "num_features": p.num_features,
        "normalize": not assume_normalized,
        "scale": 1.0 / temperature,
        "largest_error": p.num_features * FLOAT32_EPSILON,
        "dtype": _native.DTYPES[torch.float32],
        **classes.fields(),
    }
    _native.call_cpu("template_fixed", unit.device, arguments)
    return (done == 0).nonzero()[:, 0].tolist()


def _count_templates(p: EntropyPlan, unit, unknown, grid, texts, options, counts, sums, on_cuda):
    """Products of some templates at a time, each handed to the core while it is in the cache."""
    temperature, assume_normalized, *_, mano, interpolate, groups = options
    device = unit.device
    classes = group_tables(groups, device)
    fields = classes.fields() | NO_PIXELS
    if p.out_size is not None:
        t = tables(p.boxes, grid, p.size, p.out_size, p.compute_dtype, device)
        fields |= _pixel_fields(p, t, grid)
        if on_cuda or bool(unknown.any()):
            unknown = _unknown_pixels(p, t, grid, unknown)
    pitch = math.ceil(p.num_patches / STRIP) * STRIP
    columns = torch.zeros(p.num_features, pitch, dtype=p.compute_dtype, device=device)
    columns[:, : p.num_patches] = unit.t()
    tile, most = (CUDA_TILE, MAX_GRID) if on_cuda else (CPU_TILE, p.num_templates)
    per_tile = max(1, min(p.num_templates, most, tile // (p.num_queries * pitch * p.compute_dtype.itemsize)))
    logits = _native.allocate((per_tile * p.num_queries, pitch), p.compute_dtype, device)
    run = _runner(ENTROPY, on_cuda, device, p.compute_dtype)
    for first in range(0, p.num_templates, per_tile):
        part = texts[first : first + per_tile]
        part = part if classes.order is None else part[:, classes.order]
        rows = part.reshape(-1, p.num_features)
        if assume_normalized:  # a NaN is seen in the logits; to look for it here would cost as much as what follows
            scale = torch.full((len(rows),), 1.0 / temperature, dtype=p.compute_dtype, device=device)
        else:
            norms = _norms(rows)
            scale = torch.where((norms > 0) & (norms < torch.inf), 1.0 / (norms * temperature), torch.nan)
            scale = scale.to(p.compute_dtype)
        torch.mm(rows, columns, out=logits[: len(rows)])
        run(
            logits=logits.data_ptr(),
            row_scale=scale.data_ptr(),
            unknown=_mask_pointer(unknown, on_cuda),
            counts=counts[first:].data_ptr(),
            sums=sums[0, first:].data_ptr(),
            sum_stride=p.num_templates * p.num_classes,
            num_templates=len(part),
            num_classes=p.num_classes,
            num_queries=p.num_queries,
            num_patches=p.num_patches,
            pitch=pitch,
            mano=mano,
            interpolate_logits=interpolate == "logits",
            **fields,
        )


def _entropy(
    features,
    text_embeddings,
    temperature,
    assume_normalized,
    mode,
    boxes,
    size,
    out_size,
    mano,
    interpolate,
    groups,
    on_cuda: bool,
):
    groups = None if groups is None else tuple(groups)
    options = (temperature, assume_normalized, mode, boxes, size, out_size, mano, interpolate, groups)
    p = plan_entropy(features, text_embeddings, *options)
    features, texts = features.to(p.compute_dtype), text_embeddings.to(p.compute_dtype)
    counts = torch.zeros(p.num_templates, p.num_classes, dtype=torch.int64, device=features.device)
    sums = counts.new_zeros(p.num_sums, *counts.shape)
    if p.empty:
        return counts, sums
    if _native.use_reference(on_cuda, p.compute_dtype):
        boxes = None if p.boxes is None else torch.tensor(p.boxes)
        arguments = (temperature, assume_normalized, mode, boxes, p.size, p.out_size, mano, interpolate, groups)
        return reference.template_entropy(features, texts, *arguments)
    grid, texts = features.shape[1:3], texts.contiguous()
    unit, unknown = _unit_rows(features.reshape(-1, p.num_features), assume_normalized)
    left = list(range(p.num_templates))
    if _suits_integers(p, mano, on_cuda):
        left = _count_fixed(p, unit, unknown, texts, options, counts, sums)
    if len(left) == p.num_templates:
        _count_templates(p, unit, unknown, grid, texts, options, counts, sums, on_cuda)
    elif left:
        part, some = dataclasses.replace(p, num_templates=len(left)), (counts[left], sums[:, left])
        _count_templates(part, unit, unknown, grid, texts[left], options, *some, on_cuda)
        counts[left], sums[:, left] = some
    return counts, sums


@functools.lru_cache(maxsize=16)
def _inverse_counts(
    boxes: tuple[tuple[int, ...], ...], size: tuple[int, int], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """[H, W]: 1 / the number of windows that cover a pixel; kept, so that a second CUDA call copies nothing."""
    counts = torch.zeros(size, dtype=dtype)
    for y0, x0, y1, x1 in boxes:
        counts[y0:y1, x0:x1] += 1
    return (1.0 / counts).to(device)


def _fuse_windows(p: FusePlan, features, experts, strategy, temperature, assume_normalized, result, found, on_cuda):
    """One window at a time: its products from torch, the rest from the core."""
    device = features.device
    unit, unknown = _unit_rows(features.reshape(p.num_windows, -1, p.num_features), assume_normalized)
    rows = experts.reshape(-1, p.num_features).t()
    products = _native.allocate((unit.shape[1], rows.shape[1]), p.compute_dtype, device)
    step = rows.shape[1] if on_cuda else PRODUCT_COLUMNS
    run = _runner(FUSE, on_cuda, device, p.compute_dtype)
    height, width = p.size
    fields = {"labels": 0, "out": 0, "weights": 0, "class_stride": height * width, "row_stride": width}
    shares = _inverse_counts(p.boxes, p.size, p.compute_dtype, device) if p.merged else None
    for index in range(p.num_windows):
        for first in range(0, rows.shape[1], step):
            torch.mm(unit[index], rows[:, first : first + step], out=products[:, first : first + step])
        window_size = p.size
        if p.merged:
            y0, x0, y1, x1 = p.boxes[index]
            window_size = (y1 - y0, x1 - x0)
            fields |= {"out": result[0, y0:, x0:].data_ptr(), "weights": shares[y0:, x0:].data_ptr()}
        else:
            fields["labels" if p.label_dtype else "out"] = result[index].data_ptr()
        run(
            products=products.data_ptr(),
            unknown=_mask_pointer(unknown[index], on_cuda),
            winners=found[index].data_ptr() if found.numel() else 0,
            grid_height=p.grid[0],
            grid_width=p.grid[1],
            height=window_size[0],
            width=window_size[1],
            num_classes=p.num_classes,
            scale=1.0 / temperature,
            strategy=STRATEGIES[strategy],
            **fields,
        )


def _fuse(features, experts, size, boxes, strategy, temperature, assume_normalized, labels, winners, on_cuda: bool):
    p = plan_fuse(features, experts, size, boxes, strategy, temperature, assume_normalized, labels, winners)
    device, dtype = features.device, p.label_dtype or p.dtype
    found = torch.empty((p.num_windows, *p.size) if winners else (0,), dtype=torch.int32, device=device)
    if p.num_windows == 0:
        return torch.empty(p.shape, dtype=dtype, device=device), found
    features, experts = features.to(p.compute_dtype), experts.to(p.compute_dtype)
    if _native.use_reference(on_cuda, p.compute_dtype):
        arguments = (p.size, boxes, strategy, temperature, assume_normalized, labels)
        result, everyone = reference.fuse_experts(features, experts, *arguments)
        return result.to(dtype), everyone if winners else found
    result = _native.allocate(p.shape, p.label_dtype or p.compute_dtype, device)
    if p.merged:
        result.zero_()
    _fuse_windows(p, features, experts, strategy, temperature, assume_normalized, result, found, on_cuda)
    return result.to(dtype), found


def _entropy_fake(features, text_embeddings, *options):
    p = plan_entropy(features, text_embeddings, *options, fake=True)
    counts = features.new_empty((p.num_templates, p.num_classes), dtype=torch.int64)
    return counts, features.new_empty((p.num_sums, *counts.shape), dtype=torch.int64)


def _fuse_fake(features, experts, size, boxes, strategy, temperature, assume_normalized, labels, winners):
    p = plan_fuse(features, experts, size, boxes, strategy, temperature, assume_normalized, labels, winners, True)
    result = features.new_empty(p.shape, dtype=p.label_dtype or p.dtype)
    return result, features.new_empty((p.num_windows, *p.size) if winners else (0,), dtype=torch.int32)


def _entropy_samples(device: str) -> list[tuple]:
    generator = torch.Generator().manual_seed(8)
    features = torch.randn(2, 3, 4, 6, generator=generator).to(device)
    texts = torch.randn(3, 5, 6, generator=generator).to(device)
    boxes = torch.tensor([[0, 0, 9, 8], [0, 3, 9, 11]])
    straight = ("probabilities", None)
    return [
        (features.view(-1, 6), texts, 0.1, False, "patch", None, None, None, True, *straight),
        (features, texts, 0.1, False, "pixel_exact", boxes, [9, 11], [13, 10], False, *straight),
        (features[:1].clone().requires_grad_(), texts, 0.1, False, "pixel_exact", None, [7, 9], None, False, *straight),
        (features.view(-1, 6).double(), texts.double(), 0.1, True, "patch", None, None, None, False, *straight),
        (features, texts, 0.1, False, "pixel_exact", boxes, [9, 11], None, False, "logits", [2, 0, 1, 0, 2]),
    ]


def _fuse_samples(device: str) -> list[tuple]:
    generator = torch.Generator().manual_seed(9)
    features = torch.randn(2, 3, 4, 6, generator=generator).to(device)
    experts = torch.randn(6, 5, 6, generator=generator).to(device)
    boxes = torch.tensor([[0, 0, 9, 8], [0, 3, 9, 11]])
    return [
        (features, experts, [7, 9], None, "highest", 0.1, False, False, True),
        (features, experts, [9, 11], boxes, "average_conflicting", 0.1, False, False, False),
        (features.clone().requires_grad_(), experts, [7, 9], None, "average", 0.1, False, False, False),
        (features.double(), experts.double(), [7, 9], None, "default_on_conflict", 0.1, False, True, True),
    ]


register(
    "template_entropy(Tensor features, Tensor text_embeddings, float temperature, bool assume_normalized, str mode, "
    "Tensor? boxes, int[]? size, int[]? out_size, bool mano, str interpolate, int[]? groups) -> (Tensor, Tensor)",
    cpu=functools.partial(_entropy, on_cuda=False),
    cuda=functools.partial(_entropy, on_cuda=True),
    fake=_entropy_fake,
    gradient=None,
    samples=_entropy_samples,
)
register(
    "fuse_experts(Tensor features, Tensor experts, int[] size, Tensor? boxes, str strategy, float temperature, "
    "bool assume_normalized, bool labels, bool winners) -> (Tensor, Tensor)",
    cpu=functools.partial(_fuse, on_cuda=False),
    cuda=functools.partial(_fuse, on_cuda=True),
    fake=_fuse_fake,
    gradient=None,
    samples=_fuse_samples,
)
