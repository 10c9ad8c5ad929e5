"""Operators `dense_crf` and `permutohedral_filter`: plans, CPU and CUDA bridges, fakes, gradient of the filter."""

import dataclasses
import math

import torch
from torch import Tensor

from .. import _native
from .._checks import (
    FLOATS,
    expect_choice,
    expect_dtype,
    expect_integer,
    expect_positive,
    expect_rank,
    expect_shape,
    same_device,
    shape_text,
    wrong_value,
)
from ..reference import crf as reference
from . import Gradient, register
from .crf_lattice import NO_TERM, Lattice, link_all, scratch_bytes

NAME = "dense_crf"
FILTER = "permutohedral_filter"
SMALLEST_CLIP = torch.finfo(torch.float32).tiny  # its logarithm is taken in float32
# Keys of vertices are four words of 64 bits at most.
MAX_FEATURES = 16
# Points times the vertices of a simplex are counted in 32 bits.
MAX_ENTRIES = 2**31 - 1
# Columns of values are filtered in multiples of this where a memory_limit asks for fewer at a time.
COLUMN_GRANULE = 8
# In the order of the core's enum.
NORMALIZATIONS = ("none", "symmetric", "before", "after")


@dataclasses.dataclass(frozen=True)
class Plan:
    """Checked arguments of one call of `dense_crf`."""

    batched: bool
    batch: int
    num_classes: int
    size: tuple[int, int]  # H, W
    dtype: torch.dtype  # of the result, unless labels
    compute_dtype: torch.dtype
    label_dtype: torch.dtype | None
    gaussian_sxy: list[float] | None
    bilateral_scales: list[float] | None
    compat: list[Tensor]  # float64 on the host: [], [C] or [C, C] per term

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the result, with the batch axis only if the caller gave one."""
        channels = () if self.label_dtype is not None else (self.num_classes,)
        return (*((self.batch,) if self.batched else ()), *channels, *self.size)

    @property
    def empty(self) -> bool:
        """Whether there is nothing to compute."""
        return 0 in (self.batch, self.num_classes, *self.size)


@dataclasses.dataclass(frozen=True)
class FilterPlan:
    """Checked arguments of one call of `permutohedral_filter`."""

    num_points: int
    num_features: int
    num_classes: int
    dtype: torch.dtype
    compute_dtype: torch.dtype

    @property
    def empty(self) -> bool:
        """Whether there is nothing to compute."""
        return self.num_points == 0 or self.num_classes == 0


def _compute_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _check_points(op: str, name: str, num_points: int, num_features: int, shape) -> None:
    if num_points * (num_features + 1) > MAX_ENTRIES:
        most = MAX_ENTRIES // (num_features + 1)
        wrong_value(op, name, f"at most {most} points of {num_features} features", shape_text(shape))


def needed_scale(names: list[str], scales: list[float], largest: list[float]) -> tuple[int, float] | None:
    """Whether the keys of vertices suffice for features from 0 to `largest`, divided by `scales`.

    Returns:
        None if they do, else the place of the scale that is to blame, and the least number, rounded up to three
        digits, for all of that name. Where other names alone are too much it is the least without them.
    """

    def outside(least: float, name: str, alone: bool) -> bool:
        spans = [
            top / (max(abs(scale), least) if other == name else math.inf if alone else abs(scale))
            for top, scale, other in zip(largest, scales, names, strict=True)
        ]
        return reference.lattice_reach(spans) > reference.largest_position(len(spans))

    if not outside(0.0, "", False):
        return None
    spans = [top / abs(scale) for top, scale in zip(largest, scales, strict=True)]
    worst = spans.index(max(spans))
    alone = outside(math.inf, names[worst], False)
    low, high = abs(scales[worst]), abs(scales[worst])
    while outside(high, names[worst], alone):
        high *= 2
    while high - low > 1e-6 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if outside(middle, names[worst], alone) else (low, middle)
    unit = 10.0 ** (math.floor(math.log10(high)) - 2)
    return worst, math.ceil(high / unit) * unit


def _check_scales(names: list[str], scales: list[float], largest: list[float]) -> list[float] | None:
    """Positive standard deviations of the features 0 .. `largest`, for which the keys of vertices suffice."""
    if not scales:
        return None
    if len(scales) != len(names):
        wrong_value(NAME, names[0], f"{len(names)} standard deviations", len(scales))
    for name, scale in zip(names, scales, strict=True):
        expect_positive(NAME, name, scale)
    found = needed_scale(names, scales, largest)
    if found is not None:
        worst, needed = found
        expected = f"a standard deviation of at least {needed:.3g} for this image and 16-bit lattice"
        wrong_value(NAME, names[worst], expected, scales[worst])
    return list(scales)


def _check_compat(values: list[float], ranks: list[int], num_terms: int, num_classes: int) -> list[Tensor]:
    if len(ranks) != num_terms:
        wrong_value(NAME, "compat_rank", f"one for each of {num_terms} terms", len(ranks))
    compat, begin = [], 0
    for rank in ranks:
        expect_integer(NAME, "compat", rank, 0, 2)
        end = begin + num_classes**rank
        compat.append(torch.tensor(values[begin:end], dtype=torch.float64))
        begin = end
    if begin != len(values):
        wrong_value(NAME, "compat", f"{begin} numbers for C={num_classes} (that of probabilities)", len(values))
    for value in values:
        if abs(value) > torch.finfo(torch.float32).max:
            wrong_value(NAME, "compat", "numbers within the range of float32", value)
    shapes = [(num_classes,) * rank for rank in ranks]
    return [item.reshape(shape) for item, shape in zip(compat, shapes, strict=True)]


def _check_features(features: list[Tensor], probabilities: Tensor, batched: bool, known: dict[str, int]) -> None:
    for index, planes in enumerate(features):
        name = f"features[{index}]"
        expect_dtype(NAME, name, planes, FLOATS)
        pattern = "B, F, H, W" if batched else "F, H, W"
        count = expect_shape(NAME, name, planes, pattern, known, "probabilities")["F"]
        if not 1 <= count <= MAX_FEATURES:
            wrong_value(NAME, name, f"[{pattern}] with 1 <= F <= {MAX_FEATURES}", shape_text(planes.shape))
        same_device(NAME, probabilities=probabilities, **{name: planes})
        _check_points(NAME, name, known["H"] * known["W"], count, planes.shape)


def plan(
    image,
    probabilities,
    iterations,
    gaussian_sxy,
    exact,
    bilateral_scales,
    features,
    compat,
    compat_rank,
    normalization,
    energies,
    clip,
    labels,
) -> Plan:
    """All checks of `dense_crf`; the arguments are those of the schema."""
    dtype = expect_dtype(NAME, "probabilities", probabilities, FLOATS)
    batched = expect_rank(NAME, "probabilities", probabilities, "C, H, W", "B, C, H, W") == "B, C, H, W"
    expect_dtype(NAME, "image", image, (*FLOATS, torch.uint8))
    num_classes, height, width = probabilities.shape[-3:]
    known = {"H": height, "W": width}
    if batched:
        known["B"] = probabilities.shape[0]
    expect_shape(NAME, "image", image, "B, 3, H, W" if batched else "3, H, W", known, "probabilities")
    same_device(NAME, probabilities=probabilities, image=image)
    expect_integer(NAME, "iterations", iterations, 0, 2**31 - 1)
    ends = [max(width - 1, 0), max(height - 1, 0)]
    gaussian = _check_scales(2 * ["gaussian_sxy"], gaussian_sxy, [0, 0] if exact else ends)
    names = 2 * ["bilateral_sxy"] + 3 * ["bilateral_srgb"]
    bilateral = _check_scales(names, bilateral_scales, ends + 3 * [255])
    _check_features(features, probabilities, batched, known)
    _check_points(NAME, "image", height * width, 5, image.shape)
    num_terms = (gaussian is not None) + (bilateral is not None) + len(features)
    weights = _check_compat(compat, compat_rank, num_terms, num_classes)
    expect_choice(NAME, "normalization", normalization, NORMALIZATIONS)
    if not SMALLEST_CLIP <= clip <= 1:  # not NaN either
        wrong_value(NAME, "clip", f"a number in [{SMALLEST_CLIP:.3g}, 1]", clip)
    batch = probabilities.shape[0] if batched else 1
    if labels and num_classes == 0 and batch * height * width > 0:
        wrong_value(NAME, "probabilities", "at least one class for labels=True", "C=0")
    return Plan(
        batched,
        batch,
        num_classes,
        (height, width),
        dtype,
        _compute_dtype(dtype),
        (torch.uint8 if num_classes <= 255 else torch.int32) if labels else None,
        gaussian,
        bilateral,
        weights,
    )


def plan_filter(features, values, normalization, transpose, memory_limit) -> FilterPlan:
    """All checks of `permutohedral_filter`; the arguments are those of the schema."""
    dtype = expect_dtype(FILTER, "values", values, FLOATS)
    expect_rank(FILTER, "values", values, "N, C")
    expect_dtype(FILTER, "features", features, FLOATS)
    num_points, num_classes = values.shape
    num_features = expect_shape(FILTER, "features", features, "N, D", {"N": num_points}, "values")["D"]
    if not 1 <= num_features <= MAX_FEATURES:
        wrong_value(FILTER, "features", f"[N, D] with 1 <= D <= {MAX_FEATURES}", shape_text(features.shape))
    same_device(FILTER, values=values, features=features)
    _check_points(FILTER, "features", num_points, num_features, features.shape)
    expect_choice(FILTER, "normalization", normalization, NORMALIZATIONS)
    if memory_limit is not None:
        expect_integer(FILTER, "memory_limit", memory_limit, 1)
    return FilterPlan(num_points, num_features, num_classes, dtype, _compute_dtype(dtype))


def _colours(image: Tensor) -> Tensor:
    """[3, H, W] float64 from 0 to 255."""
    return image.double() if image.dtype == torch.uint8 else image.double() * 255


def _factors(compat: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """What a table of penalties multiplies rows of classes by."""
    table = -compat if compat.dim() == 1 else -(compat + compat.t()) / 2
    return table.to(dtype).to(device).contiguous()


def _terms(p: Plan, image: Tensor, exact: bool, features: list[Tensor], on_cuda: bool) -> tuple[list[dict], list]:
    """The terms of one image for the compiled module, and what must outlive the call."""
    terms, points = [], []
    if p.gaussian_sxy is not None and exact:
        terms.append({**NO_TERM, "exact": True, "sx": p.gaussian_sxy[0], "sy": p.gaussian_sxy[1]})
    elif p.gaussian_sxy is not None:
        points.append((image.new_empty(0, dtype=torch.float64), p.gaussian_sxy, p.size[1]))
    if p.bilateral_scales is not None:
        points.append((_colours(image), p.bilateral_scales, p.size[1]))
    points += [(planes.double(), [1.0] * planes.shape[0], p.size[1]) for planes in features]
    kept = []
    for planes, scales, width in points:
        kept.append(Lattice(planes, scales, width, p.size[0] * p.size[1], p.compute_dtype, on_cuda))
        if not on_cuda:
            link_all(kept[-1:])
    if on_cuda:
        link_all(kept)
    terms += [lattice.term() for lattice in kept]
    for term, compat in zip(terms, p.compat, strict=True):
        term["compat_rank"] = compat.dim()
        if compat.dim() == 0:
            term["compat"] = compat.item()
        else:
            kept.append(_factors(compat, p.compute_dtype, image.device))
            term["table"] = kept[-1].data_ptr()
    return terms, kept


def _by_kernel(
    p: Plan, on_cuda: bool, image, scores, result, iterations, exact, features, normalization, energies, clip
) -> None:
    """One image into `result`, contiguous [C, H, W] in the dtype of the computation, or labels [H, W]."""
    scores = scores.to(p.compute_dtype).contiguous()
    terms, kept = _terms(p, image, exact, features, on_cuda) if iterations > 0 else ([], [])
    arguments = {
        "scores": scores.data_ptr(),
        "out": result.data_ptr() if p.label_dtype is None else 0,
        "labels": result.data_ptr() if p.label_dtype is not None else 0,
        "terms": terms,
        "num_classes": p.num_classes,
        "height": p.size[0],
        "width": p.size[1],
        "iterations": iterations,
        "label_bytes": 4 if p.label_dtype == torch.int32 else 1,
        "energies": energies,
        "clip": clip,
        "normalization": NORMALIZATIONS.index(normalization),
        "dtype": _native.DTYPES[p.compute_dtype],
    }
    _native.call(NAME, scores.device, arguments, on_cuda)
    del kept


def _by_reference(p: Plan, image, scores, result, iterations, exact, features, normalization, energies, clip) -> None:
    """The same by the definition."""
    q = reference.dense_crf(
        _colours(image),
        scores.to(p.compute_dtype),
        iterations=iterations,
        gaussian_sxy=p.gaussian_sxy,
        bilateral_scales=p.bilateral_scales,
        exact=exact,
        features=features,
        compat=p.compat,
        normalization=normalization,
        energies=energies,
        clip=clip,
    )
    result.copy_(q if p.label_dtype is None else q.argmax(0))


def _run(on_cuda: bool, *arguments) -> Tensor:
    p = plan(*arguments)
    image, scores, iterations, _, exact, _, features, _, _, normalization, energies, clip, _ = arguments
    result = _native.allocate(p.shape, p.label_dtype or p.compute_dtype, scores.device)
    options = (normalization, energies, clip)
    for index in range(0 if p.empty else p.batch):
        one = (lambda tensor, index=index: tensor[index]) if p.batched else (lambda tensor: tensor)
        inputs = (one(image), one(scores), one(result), iterations, exact, [one(planes) for planes in features])
        if _native.use_reference(on_cuda):
            _by_reference(p, *inputs, *options)
        else:
            _by_kernel(p, on_cuda, *inputs, *options)
    return result if p.label_dtype is not None else result.to(p.dtype)


def _cpu(*arguments) -> Tensor:
    return _run(False, *arguments)


def _cuda(*arguments) -> Tensor:
    return _run(True, *arguments)


def _fake(*arguments) -> Tensor:
    p = plan(*arguments)
    return arguments[1].new_empty(p.shape, dtype=p.label_dtype or p.dtype)


def _filter_columns(p: FilterPlan, lattice: Lattice, bytes_of, memory_limit: int | None) -> int:
    """Columns at a time: all, or the most of which the scratch memory fits; then rounded up to whole granules."""
    columns, fixed = p.num_classes, lattice.num_bytes
    if memory_limit is None:
        return columns
    needed = max(fixed + bytes_of(columns), fixed + lattice.build_bytes)
    while needed > memory_limit and columns > COLUMN_GRANULE:
        columns = math.ceil(math.ceil(columns / 2) / COLUMN_GRANULE) * COLUMN_GRANULE
        # Beside the scratch memory: the weights as they were, the columns and their result.
        copies = lattice.weights.nbytes + lattice.entry_weights.nbytes
        copies += 2 * p.num_points * columns * p.compute_dtype.itemsize
        needed = fixed + max(copies + bytes_of(columns), lattice.build_bytes)
    if needed > memory_limit:
        wrong_value(FILTER, "memory_limit", f"at least {needed} bytes for these features", memory_limit)
    return columns


def _filter_by_kernel(p: FilterPlan, on_cuda: bool, features, values, normalization, transpose, memory_limit) -> Tensor:
    lattice = Lattice(features.double().t(), [1.0] * p.num_features, 0, p.num_points, p.compute_dtype, on_cuda=on_cuda)
    link_all([lattice])
    common = {
        "terms": [lattice.term()],
        "num_points": p.num_points,
        "transpose": transpose,
        "normalization": NORMALIZATIONS.index(normalization),
        "dtype": _native.DTYPES[p.compute_dtype],
    }

    def filtered(columns: Tensor) -> Tensor:
        columns = columns.contiguous()
        result = _native.allocate(tuple(columns.shape), columns.dtype, columns.device)
        pointers = {"values": columns.data_ptr(), "out": result.data_ptr(), "num_classes": columns.shape[1]}
        _native.call(FILTER, columns.device, common | pointers, on_cuda)
        return result

    def bytes_of(count: int) -> int:
        return scratch_bytes(FILTER, common | {"values": 0, "out": 0, "num_classes": count}, on_cuda)

    size = _filter_columns(p, lattice, bytes_of, memory_limit)
    if size == p.num_classes:
        return filtered(values)
    kept = [lattice.weights.clone(), lattice.entry_weights.clone()]  # a call uses them up
    result = _native.allocate((p.num_points, p.num_classes), p.compute_dtype, values.device)
    for begin in range(0, p.num_classes, size):
        lattice.weights.copy_(kept[0])
        lattice.entry_weights.copy_(kept[1])
        result[:, begin : begin + size] = filtered(values[:, begin : begin + size])
    return result


def _run_filter(on_cuda: bool, features, values, normalization, transpose, memory_limit) -> Tensor:
    p = plan_filter(features, values, normalization, transpose, memory_limit)
    values = values.to(p.compute_dtype)
    if p.empty:
        return _native.allocate((p.num_points, p.num_classes), p.dtype, values.device)
    if _native.use_reference(on_cuda):
        result = reference.permutohedral_filter(features, values, normalization=normalization, transpose=transpose)
    else:
        result = _filter_by_kernel(p, on_cuda, features, values, normalization, transpose, memory_limit)
    return result.to(p.dtype)


def _filter_cpu(*arguments) -> Tensor:
    return _run_filter(False, *arguments)


def _filter_cuda(*arguments) -> Tensor:
    return _run_filter(True, *arguments)


def _filter_fake(features, values, normalization, transpose, memory_limit) -> Tensor:
    plan_filter(features, values, normalization, transpose, memory_limit)
    return values.new_empty(values.shape)


def _filter_context(ctx, inputs, output) -> None:
    ctx.save_for_backward(inputs[0])
    ctx.normalization, ctx.transpose, ctx.memory_limit = inputs[2:]


def _filter_backward(ctx, v_result):
    # Linear in the values: the gradient is the transposed filter.
    v_values = torch.ops.ovs_kernels.permutohedral_filter(
        ctx.saved_tensors[0], v_result, ctx.normalization, not ctx.transpose, ctx.memory_limit
    )
    return None, v_values, None, None, None


def _samples(device: str) -> list[tuple]:
    generator = torch.Generator().manual_seed(11)
    scores = torch.rand(3, 7, 9, generator=generator).softmax(0).to(device)
    image = torch.rand(3, 7, 9, generator=generator).to(device)
    depth = torch.rand(1, 7, 9, generator=generator).to(device)
    pair, images = torch.stack((scores, scores.flip(0))), torch.stack((image, image.flip(2)))
    sxy, scales = [3.0, 3.0], [20.0, 20.0, 5.0, 5.0, 5.0]
    matrix = [0.0, 1.0, 2.0, 1.0, 0.0, 1.0, 2.0, 1.0, 0.0]
    return [
        (image, scores, 2, sxy, False, scales, [], [3.0, 10.0], [0, 0], "symmetric", False, 1e-5, False),
        (images, pair, 1, sxy, True, [], [], [3.0], [0], "none", True, 1e-5, True),
        (image, scores, 1, [], False, scales, [depth], [-1.0, -2.0, -3.0, *matrix], [1, 2], "after", False, 0.1, False),
        (image, scores.clone().requires_grad_(), 0, [], False, [], [], [], [], "before", True, 1e-5, False),
    ]


def _filter_samples(device: str) -> list[tuple]:
    generator = torch.Generator().manual_seed(12)
    features = (3 * torch.rand(20, 3, generator=generator)).to(device)
    values = torch.rand(20, 2, generator=generator).to(device)
    return [
        (features, values, "none", False, None),
        (features, values.clone().requires_grad_(), "before", True, None),
        (features[:, :1], values.double().requires_grad_(), "symmetric", False, 2**30),
    ]


register(
    "dense_crf(Tensor image, Tensor probabilities, int iterations, float[] gaussian_sxy, bool exact, "
    "float[] bilateral_scales, Tensor[] features, float[] compat, int[] compat_rank, str normalization, "
    "bool energies, float clip, bool labels) -> Tensor",
    cpu=_cpu,
    cuda=_cuda,
    fake=_fake,
    gradient=None,
    samples=_samples,
)
register(
    "permutohedral_filter(Tensor features, Tensor values, str normalization, bool transpose, int? memory_limit) -> "
    "Tensor",
    cpu=_filter_cpu,
    cuda=_filter_cuda,
    fake=_filter_fake,
    gradient=Gradient(_filter_context, _filter_backward),
    samples=_filter_samples,
)
