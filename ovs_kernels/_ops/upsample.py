"""Operator `joint_bilateral_upsample` and its transpose: plans, CPU and CUDA bridges, fakes, gradients."""

import dataclasses
import functools

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
from ..reference import upsample as reference
from . import Gradient, register

NAME = "joint_bilateral_upsample"
BACKWARD = "joint_bilateral_upsample_backward"
# The largest window of the kernels, 31 x 31 nodes; their tables hold extents in 32 bits.
MAX_RADIUS = 15
MAX_EXTENT = 2**29 - 1
NAN_POLICIES = ("propagate", "omit")


@dataclasses.dataclass(frozen=True)
class Plan:
    """Checked arguments of one call, forward or backward."""

    batched: bool
    batch: int
    num_classes: int
    low: tuple[int, int]  # h, w
    size: tuple[int, int]  # H, W
    dtype: torch.dtype  # of the result, unless labels
    compute_dtype: torch.dtype
    label_dtype: torch.dtype | None
    sigma_spatial: float
    sigma_range: float
    radius: int
    omit: bool

    @property
    def result_shape(self) -> tuple[int, ...]:
        """Shape of the upsampled maps or of the labels, with the batch axis only if the caller gave one."""
        channels = () if self.label_dtype is not None else (self.num_classes,)
        return (*((self.batch,) if self.batched else ()), *channels, *self.size)

    @property
    def maps_shape(self) -> tuple[int, ...]:
        """Shape of the maps, likewise."""
        return (*((self.batch,) if self.batched else ()), self.num_classes, *self.low)

    @property
    def empty(self) -> bool:
        """Whether there is nothing to compute."""
        return self.batch == 0 or self.num_classes == 0

    @property
    def window(self) -> dict[str, float]:
        """What the definition wants to know of the window, for a guide between 0 and 1."""
        return {"sigma_spatial": self.sigma_spatial, "sigma_range": self.sigma_range, "radius": self.radius}


def _check_guide(op: str, name: str, like: Tensor, guide: Tensor, low: tuple[int, int]) -> tuple[int, int]:
    """The guide beside `like`, [C, ., .] or [B, C, ., .], for maps of the size `low`; returns H, W."""
    expect_dtype(op, "guide", guide, (*FLOATS, torch.uint8))
    batched = like.dim() == 4
    pattern = "B, 3, H, W" if batched else "3, H, W"
    sizes = expect_shape(op, "guide", guide, pattern, {"B": like.shape[0]} if batched else {}, name)
    same_device(op, **{name: like, "guide": guide})
    height, width = sizes["H"], sizes["W"]
    if height < low[0] or width < low[1]:
        expected = f"[{pattern}] with H >= {low[0]}, W >= {low[1]} (those of {name})"
        wrong_value(op, "guide", expected, shape_text(guide.shape))
    if max(height, width) > MAX_EXTENT:
        wrong_value(op, "guide", f"at most {MAX_EXTENT} pixels along each axis", shape_text(guide.shape))
    return height, width


def _check_window(op: str, sigma_spatial: float, sigma_range: float, radius: int) -> None:
    expect_positive(op, "sigma_spatial", sigma_spatial)
    expect_positive(op, "sigma_range", sigma_range)
    expect_integer(op, "radius", radius, 0, MAX_RADIUS)


def _compute_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def plan(maps, guide, sigma_spatial, sigma_range, radius, labels, nan_policy) -> Plan:
    """All checks of `joint_bilateral_upsample`; the arguments are those of the schema."""
    dtype = expect_dtype(NAME, "maps", maps, FLOATS)
    batched = expect_rank(NAME, "maps", maps, "C, h, w", "B, C, h, w") == "B, C, h, w"
    num_classes, *low = maps.shape[-3:]
    for extent, letter, what in ((low[0], "h", "row"), (low[1], "w", "column")):
        if extent == 0:
            wrong_value(NAME, "maps", f"at least one {what}", f"{letter}=0")
    size = _check_guide(NAME, "maps", maps, guide, (low[0], low[1]))
    _check_window(NAME, sigma_spatial, sigma_range, radius)
    expect_choice(NAME, "nan_policy", nan_policy, NAN_POLICIES)
    batch = maps.shape[0] if batched else 1
    if labels and num_classes == 0 and batch > 0:
        wrong_value(NAME, "maps", "at least one class for labels=True", "C=0")
    label_dtype = (torch.uint8 if num_classes <= 255 else torch.int32) if labels else None
    return Plan(
        batched,
        batch,
        num_classes,
        (low[0], low[1]),
        size,
        dtype,
        _compute_dtype(dtype),
        label_dtype,
        sigma_spatial,
        sigma_range,
        radius,
        nan_policy == "omit",
    )


def plan_backward(v_up, guide, missing, size, sigma_spatial, sigma_range, radius) -> Plan:
    """All checks of `joint_bilateral_upsample_backward`."""
    dtype = expect_dtype(BACKWARD, "v_up", v_up, FLOATS)
    batched = expect_rank(BACKWARD, "v_up", v_up, "C, H, W", "B, C, H, W") == "B, C, H, W"
    if len(size) != 2:
        wrong_value(BACKWARD, "size", "two integers, height and width", f"{len(size)}")
    for extent in size:
        expect_integer(BACKWARD, "size", extent, 1, MAX_EXTENT)
    full = _check_guide(BACKWARD, "v_up", v_up, guide, (size[0], size[1]))
    if full != tuple(v_up.shape[-2:]):
        wrong_value(BACKWARD, "guide", f"the size of v_up, {shape_text(v_up.shape[-2:])}", shape_text(guide.shape[-2:]))
    _check_window(BACKWARD, sigma_spatial, sigma_range, radius)
    batch, num_classes = v_up.shape[0] if batched else 1, v_up.shape[-3]
    if missing is not None:
        expect_dtype(BACKWARD, "missing", missing, (torch.bool,))
        known = {"B": batch, "C": num_classes, "h": size[0], "w": size[1]}
        expect_shape(BACKWARD, "missing", missing, "B, C, h, w" if batched else "C, h, w", known, "v_up and size")
        same_device(BACKWARD, v_up=v_up, missing=missing)
    return Plan(
        batched,
        batch,
        num_classes,
        (size[0], size[1]),
        full,
        dtype,
        _compute_dtype(dtype),
        None,
        sigma_spatial,
        sigma_range,
        radius,
        missing is not None,
    )


def _four_axes(p: Plan, tensor: Tensor | None) -> Tensor | None:
    return tensor if tensor is None or p.batched else tensor[None]


def _unit_guide(p: Plan, guide: Tensor) -> Tensor:
    """[B, 3, H, W] in the dtype of the computation, bytes brought to [0, 1]."""
    guide = _four_axes(p, guide)
    return guide.to(p.compute_dtype) / 255 if guide.dtype == torch.uint8 else guide.to(p.compute_dtype)


def _run(p: Plan, operator: str, guide: Tensor, on_cuda: bool, **tensors: Tensor | None) -> None:
    """Calls the compiled module. `tensors`: maps, up, labels and missing, as far as there are, all contiguous."""
    # Bytes stay numbers up to 255, whose differences are exact; the kernel knows their scale by sigma_range.
    scale = 255.0 if guide.dtype == torch.uint8 else 1.0
    guide = guide.to(p.compute_dtype).contiguous()
    pointers = {
        name: 0 if tensors.get(name) is None else tensors[name].data_ptr()
        for name in ("maps", "up", "labels", "missing")
    }
    common = {
        **pointers,
        "guide": guide.data_ptr(),
        "batch": p.batch,
        "num_classes": p.num_classes,
        "low_height": p.low[0],
        "low_width": p.low[1],
        "height": p.size[0],
        "width": p.size[1],
        "label_bytes": 4 if p.label_dtype == torch.int32 else 1,
        "sigma_spatial": p.sigma_spatial,
        "sigma_range": p.sigma_range * scale,
        "radius": p.radius,
        "omit": p.omit,
        "dtype": _native.DTYPES[p.compute_dtype],
    }
    _native.call(operator, guide.device, common, on_cuda)


def _upsample(maps, guide, sigma_spatial, sigma_range, radius, labels, nan_policy, on_cuda: bool) -> Tensor:
    p = plan(maps, guide, sigma_spatial, sigma_range, radius, labels, nan_policy)
    if p.empty:
        return maps.new_empty(p.result_shape, dtype=p.label_dtype or p.dtype)
    maps = maps.to(p.compute_dtype)
    if _native.use_reference(on_cuda):
        up = reference.joint_bilateral_upsample(_four_axes(p, maps), _unit_guide(p, guide), omit=p.omit, **p.window)
        return reference.best_class(up).reshape(p.result_shape) if labels else up.reshape(p.result_shape).to(p.dtype)
    maps = maps.contiguous()
    result = _native.allocate(p.result_shape, p.label_dtype or p.compute_dtype, maps.device)
    _run(p, NAME, guide, on_cuda, maps=maps, **{"labels" if labels else "up": result})
    return result if labels else result.to(p.dtype)


def _upsample_backward(v_up, guide, missing, size, sigma_spatial, sigma_range, radius, on_cuda: bool) -> Tensor:
    p = plan_backward(v_up, guide, missing, size, sigma_spatial, sigma_range, radius)
    if p.empty:
        return v_up.new_zeros(p.maps_shape)
    v_up = v_up.to(p.compute_dtype)
    if _native.use_reference(on_cuda):
        v_maps = reference.joint_bilateral_upsample_backward(
            _four_axes(p, v_up), _unit_guide(p, guide), _four_axes(p, missing), p.low, **p.window
        )
        return v_maps.reshape(p.maps_shape).to(p.dtype)
    v_up = v_up.contiguous()
    missing = None if missing is None else missing.contiguous()
    v_maps = _native.allocate(p.maps_shape, p.compute_dtype, v_up.device)
    _run(p, BACKWARD, guide, on_cuda, maps=v_maps, up=v_up, missing=missing)
    return v_maps.to(p.dtype)


def _fake(maps, guide, sigma_spatial, sigma_range, radius, labels, nan_policy):
    p = plan(maps, guide, sigma_spatial, sigma_range, radius, labels, nan_policy)
    return maps.new_empty(p.result_shape, dtype=p.label_dtype or p.dtype)


def _fake_backward(v_up, guide, missing, size, sigma_spatial, sigma_range, radius):
    p = plan_backward(v_up, guide, missing, size, sigma_spatial, sigma_range, radius)
    return v_up.new_empty(p.maps_shape)


def _setup_context(ctx, inputs, output) -> None:
    maps, guide, *window, _labels, nan_policy = inputs
    ctx.save_for_backward(guide, torch.isnan(maps) if nan_policy == "omit" else None)
    ctx.size = list(maps.shape[-2:])
    ctx.window = window


def _backward(ctx, v_up):
    guide, missing = ctx.saved_tensors
    v_maps = torch.ops.ovs_kernels.joint_bilateral_upsample_backward(v_up, guide, missing, ctx.size, *ctx.window)
    return v_maps, *(None,) * 6


def _setup_backward_context(ctx, inputs, output) -> None:
    _v_up, guide, missing, _size, *window = inputs
    ctx.save_for_backward(guide, missing)
    ctx.window = window


def _backward_backward(ctx, v_v_maps):
    # Both operators are linear, and each is the other's transpose.
    guide, missing = ctx.saved_tensors
    if missing is not None:
        v_v_maps = torch.where(missing, torch.nan, v_v_maps)
    policy = "propagate" if missing is None else "omit"
    v_v_up = torch.ops.ovs_kernels.joint_bilateral_upsample(v_v_maps, guide, *ctx.window, False, policy)
    if missing is not None:
        v_v_up = torch.where(torch.isnan(v_v_up), 0.0, v_v_up)  # pixels without a tap have no share in anything
    return v_v_up, *(None,) * 6


def _sample_inputs(device: str) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(8)
    maps = torch.rand(3, 4, 5, generator=generator)
    holed = maps.clone()
    holed[1, 2, 3] = torch.nan
    guide = torch.rand(3, 11, 17, generator=generator)
    return maps.to(device), holed.to(device), guide.to(device)


def _samples(device: str) -> list[tuple]:
    maps, holed, guide = _sample_inputs(device)
    pair, guides = torch.stack((maps, maps.flip(0))), torch.stack((guide, guide.flip(1)))
    return [
        (maps, guide, 1.0, 0.1, 2, False, "propagate"),
        (pair, (255 * guides).to(torch.uint8), 0.7, 0.2, 1, True, "propagate"),
        (pair.clone().requires_grad_(), guides, 1.5, 0.3, 3, False, "propagate"),
        (holed.clone().requires_grad_(), guide, 1.0, 0.1, 1, False, "omit"),
        (maps.double(), guide.double(), 1.0, 0.1, 2, False, "omit"),
    ]


def _backward_samples(device: str) -> list[tuple]:
    _maps, holed, guide = _sample_inputs(device)
    v_up = torch.rand(3, 11, 17, generator=torch.Generator().manual_seed(9)).to(device)
    return [
        (v_up, guide, None, [4, 5], 1.0, 0.1, 2),
        (v_up.clone().requires_grad_(), guide, torch.isnan(holed), [4, 5], 1.0, 0.3, 2),
    ]


register(
    "joint_bilateral_upsample(Tensor maps, Tensor guide, float sigma_spatial, float sigma_range, int radius, "
    "bool labels, str nan_policy) -> Tensor",
    cpu=functools.partial(_upsample, on_cuda=False),
    cuda=functools.partial(_upsample, on_cuda=True),
    fake=_fake,
    gradient=Gradient(_setup_context, _backward),
    samples=_samples,
)
register(
    "joint_bilateral_upsample_backward(Tensor v_up, Tensor guide, Tensor? missing, int[] size, float sigma_spatial, "
    "float sigma_range, int radius) -> Tensor",
    cpu=functools.partial(_upsample_backward, on_cuda=False),
    cuda=functools.partial(_upsample_backward, on_cuda=True),
    fake=_fake_backward,
    gradient=Gradient(_setup_backward_context, _backward_backward),
    samples=_backward_samples,
    public=False,
)
