"""Operator `adaptive_conv` and its two gradients: plans, CPU and CUDA bridges, fakes, gradients.

The operator is linear in each of its arguments, so the three operators are closed under differentiation: with
`A(input, filters)`, its transposes `V(v_out, filters)` (cotangent of the input) and `U(v_out, input)` (of the filters),
every gradient of one of them is a call of the other two.
"""

import dataclasses
import functools

import torch
from torch import Tensor

from .. import _native
from .._checks import FLOATS, dtype_text, expect_dtype, expect_rank, expect_shape, same_device, wrong_type, wrong_value
from ..reference import adaptive as reference
from . import Gradient, register

NAME = "adaptive_conv"
INPUT_BACKWARD = "adaptive_conv_input_backward"
FILTERS_BACKWARD = "adaptive_conv_filters_backward"
INPUT = "B, C, H + k1 - 1, W + k2 - 1"
OUT = "B, C, H, W"
FILTERS = "B, H, W, k1, k2"


@dataclasses.dataclass(frozen=True)
class Plan:
    """Checked arguments of one call, forward or backward."""

    batch: int
    num_channels: int
    height: int  # of the result
    width: int
    filter_height: int
    filter_width: int
    dtype: torch.dtype
    compute_dtype: torch.dtype

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        """Shape of the input."""
        rows, columns = self.height + self.filter_height - 1, self.width + self.filter_width - 1
        return self.batch, self.num_channels, rows, columns

    @property
    def out_shape(self) -> tuple[int, int, int, int]:
        """Shape of the result."""
        return self.batch, self.num_channels, self.height, self.width

    @property
    def filters_shape(self) -> tuple[int, int, int, int, int]:
        """Shape of the filters."""
        return self.batch, self.height, self.width, self.filter_height, self.filter_width

    @property
    def empty(self) -> bool:
        """Whether every sum is an empty one."""
        return self.batch * self.num_channels * self.height * self.width == 0


def _check_pair(op: str, names: tuple[str, str], tensors: tuple[Tensor, Tensor], patterns: tuple[str, str]) -> None:
    """Dtypes, ranks and device of the two arguments of an operator."""
    for name, tensor, pattern in zip(names, tensors, patterns, strict=True):
        expect_dtype(op, name, tensor, FLOATS)
        expect_rank(op, name, tensor, pattern)
    first, second = tensors
    if second.dtype != first.dtype:
        wrong_type(op, names[1], f"{dtype_text(first.dtype)} (that of {names[0]})", dtype_text(second.dtype))
    same_device(op, **dict(zip(names, tensors, strict=True)))


def _plan(op: str, dtype: torch.dtype, batch: int, num_channels: int, sizes: tuple[int, int, int, int]) -> Plan:
    if min(sizes[2:]) < 1:
        wrong_value(op, "filters", "at least one tap, k1 >= 1 and k2 >= 1", f"k1={sizes[2]}, k2={sizes[3]}")
    return Plan(batch, num_channels, *sizes, dtype, torch.float64 if dtype == torch.float64 else torch.float32)


def plan(input: Tensor, filters: Tensor) -> Plan:
    """All checks of `adaptive_conv`."""
    _check_pair(NAME, ("input", "filters"), (input, filters), (INPUT, FILTERS))
    batch, num_channels, rows, columns = input.shape
    _, height, width, filter_height, filter_width = filters.shape
    made = _plan(NAME, input.dtype, batch, num_channels, (height, width, filter_height, filter_width))
    expect_shape(NAME, "filters", filters, FILTERS, {"B": batch}, "input")
    if (rows, columns) != made.input_shape[2:]:
        expected = f"[{INPUT}] = {list(made.input_shape)} with H={height}, W={width}, k1={filter_height}, "
        wrong_value(NAME, "input", expected + f"k2={filter_width} (those of filters)", list(input.shape))
    return made


def plan_input_backward(v_out: Tensor, filters: Tensor) -> Plan:
    """All checks of `adaptive_conv_input_backward`."""
    op = INPUT_BACKWARD
    _check_pair(op, ("v_out", "filters"), (v_out, filters), (OUT, FILTERS))
    batch, num_channels, height, width = v_out.shape
    expect_shape(op, "filters", filters, FILTERS, {"B": batch, "H": height, "W": width}, "v_out")
    return _plan(op, v_out.dtype, batch, num_channels, (height, width, *filters.shape[3:]))


def plan_filters_backward(v_out: Tensor, input: Tensor) -> Plan:
    """All checks of `adaptive_conv_filters_backward`."""
    op = FILTERS_BACKWARD
    _check_pair(op, ("v_out", "input"), (v_out, input), (OUT, INPUT))
    batch, num_channels, height, width = v_out.shape
    expect_shape(op, "input", input, INPUT, {"B": batch, "C": num_channels}, "v_out")
    taps = (input.shape[2] - height + 1, input.shape[3] - width + 1)
    if min(taps) < 1:
        wrong_value(op, "input", f"at least [{height}, {width}] pixels (those of v_out)", list(input.shape[2:]))
    return _plan(op, v_out.dtype, batch, num_channels, (height, width, *taps))


def _run(p: Plan, operator: str, arrays: dict[str, Tensor], on_cuda: bool) -> None:
    """Calls the compiled module on `input`, `filters` and `out`, all contiguous; one of them is written."""
    common = {
        **{name: array.data_ptr() for name, array in arrays.items()},
        "batch": p.batch,
        "num_channels": p.num_channels,
        "height": p.height,
        "width": p.width,
        "filter_height": p.filter_height,
        "filter_width": p.filter_width,
        "dtype": _native.DTYPES[p.compute_dtype],
    }
    _native.call(operator, arrays["out"].device, common, on_cuda)


def _call(p: Plan, operator: str, given: dict[str, Tensor], made: str, shape: tuple[int, ...], on_cuda: bool) -> Tensor:
    """The array `made` from the two that are `given`, in the order of the operator's arguments."""
    first = next(iter(given.values()))
    if p.empty:
        return first.new_zeros(shape)
    if _native.use_reference(on_cuda):
        return getattr(reference, operator)(*(array.to(p.compute_dtype) for array in given.values())).to(p.dtype)
    arrays = {name: array.to(p.compute_dtype).contiguous() for name, array in given.items()}
    arrays[made] = _native.allocate(shape, p.compute_dtype, first.device)
    _run(p, operator, arrays, on_cuda)
    return arrays[made].to(p.dtype)


def _conv(input: Tensor, filters: Tensor, on_cuda: bool) -> Tensor:
    p = plan(input, filters)
    return _call(p, NAME, {"input": input, "filters": filters}, "out", p.out_shape, on_cuda)


def _conv_input_backward(v_out: Tensor, filters: Tensor, on_cuda: bool) -> Tensor:
    p = plan_input_backward(v_out, filters)
    return _call(p, INPUT_BACKWARD, {"out": v_out, "filters": filters}, "input", p.input_shape, on_cuda)


def _conv_filters_backward(v_out: Tensor, input: Tensor, on_cuda: bool) -> Tensor:
    p = plan_filters_backward(v_out, input)
    return _call(p, FILTERS_BACKWARD, {"out": v_out, "input": input}, "filters", p.filters_shape, on_cuda)


def _fake(input, filters):
    return input.new_empty(plan(input, filters).out_shape)


def _fake_input_backward(v_out, filters):
    return v_out.new_empty(plan_input_backward(v_out, filters).input_shape)


def _fake_filters_backward(v_out, input):
    return v_out.new_empty(plan_filters_backward(v_out, input).filters_shape)


def _setup_context(ctx, inputs, output) -> None:
    # An argument is needed for the gradient of the other one.
    first, second = inputs
    ctx.save_for_backward(*(one if ctx.needs_input_grad[1 - i] else None for i, one in enumerate((first, second))))


def _backward(ctx, v_out):
    input, filters = ctx.saved_tensors
    ops, wanted = torch.ops.ovs_kernels, ctx.needs_input_grad
    v_input = ops.adaptive_conv_input_backward(v_out, filters) if wanted[0] else None
    v_filters = ops.adaptive_conv_filters_backward(v_out, input) if wanted[1] else None
    return v_input, v_filters


def _input_backward_backward(ctx, v_v_input):
    v_out, filters = ctx.saved_tensors
    ops, wanted = torch.ops.ovs_kernels, ctx.needs_input_grad
    v_v_out = ops.adaptive_conv(v_v_input, filters) if wanted[0] else None
    v_filters = ops.adaptive_conv_filters_backward(v_out, v_v_input) if wanted[1] else None
    return v_v_out, v_filters


def _filters_backward_backward(ctx, v_v_filters):
    v_out, input = ctx.saved_tensors
    ops, wanted = torch.ops.ovs_kernels, ctx.needs_input_grad
    v_v_out = ops.adaptive_conv(input, v_v_filters) if wanted[0] else None
    v_input = ops.adaptive_conv_input_backward(v_out, v_v_filters) if wanted[1] else None
    return v_v_out, v_input


# (B, C, H, W, k1, k2) of the samples
SAMPLE_SIZES = ((2, 3, 5, 6, 3, 3), (1, 5, 4, 19, 2, 5))


def _sample_tensors(device: str, sizes: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """input, filters and v_out."""
    batch, num_channels, height, width, rows, columns = sizes
    generator = torch.Generator().manual_seed(8)
    shapes = (
        (batch, num_channels, height + rows - 1, width + columns - 1),
        (batch, height, width, rows, columns),
        (batch, num_channels, height, width),
    )
    return tuple(torch.rand(shape, generator=generator).to(device) for shape in shapes)


def _sample_pairs(device: str, first: int, second: int) -> list[tuple]:
    """Pairs of the tensors of each size; of the first size also with gradients, and in float64."""
    samples = []
    for sizes in SAMPLE_SIZES:
        tensors = _sample_tensors(device, sizes)
        samples.append((tensors[first], tensors[second]))
    one, two = samples[0]
    samples.append((one.clone().requires_grad_(), two.clone().requires_grad_()))
    samples.append((one.double(), two.double()))
    return samples


def _register(schema: str, run, fake, backward, pair: tuple[int, int], public: bool) -> None:
    register(
        schema,
        cpu=functools.partial(run, on_cuda=False),
        cuda=functools.partial(run, on_cuda=True),
        fake=fake,
        gradient=Gradient(_setup_context, backward),
        samples=lambda device: _sample_pairs(device, *pair),
        public=public,
    )


_register("adaptive_conv(Tensor input, Tensor filters) -> Tensor", _conv, _fake, _backward, (0, 1), True)
_register(
    "adaptive_conv_input_backward(Tensor v_out, Tensor filters) -> Tensor",
    _conv_input_backward,
    _fake_input_backward,
    _input_backward_backward,
    (2, 1),
    False,
)
_register(
    "adaptive_conv_filters_backward(Tensor v_out, Tensor input) -> Tensor",
    _conv_filters_backward,
    _fake_filters_backward,
    _filters_backward_backward,
    (2, 0),
    False,
)
