"""Operators `doubly_stochastic` and `markov_velocity`: plans, CPU and CUDA bridges, fakes."""

import dataclasses
import math

import torch
from torch import Tensor

from .._checks import (
    FLOATS,
    expect_between,
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
from ..reference import markov as reference
from . import register

RULES = ("first_passage", "delta_literal", "settling")
STATE_SCALES = ("max", "none", "N")
ENTRIES = "finite entries >= 0"


@dataclasses.dataclass(frozen=True)
class Plan:
    """Checked arguments of one call; num_classes is 0 for `doubly_stochastic`."""

    name: str
    num_nodes: int
    num_classes: int
    compute_dtype: torch.dtype


def plan_scaling(name, attention, n_iter, argument="n_iter") -> Plan:
    """All checks of `doubly_stochastic` but those of the entries."""
    dtype = expect_dtype(name, "attention", attention, FLOATS)
    expect_rank(name, "attention", attention, "N, N")
    num_nodes = attention.shape[0]
    if attention.shape[1] != num_nodes:
        wrong_value(name, "attention", "a square matrix [N, N]", shape_text(attention.shape))
    if num_nodes >= 2**31:
        wrong_value(name, "attention", "fewer than 2^31 nodes", num_nodes)
    expect_integer(name, argument, n_iter, 0, 2**31 - 1)
    return Plan(name, num_nodes, 0, torch.float64 if dtype == torch.float64 else torch.float32)


@dataclasses.dataclass(frozen=True)
class Options:
    """Arguments of `markov_velocity` that are not tensors, as the schema has them."""

    n_ipf: int
    temperature: float
    threshold: float
    max_steps: int
    rule: str
    interpolate: bool
    state_scale: str
    min_time: float
    check: bool
    info: bool

    def chain(self) -> dict[str, object]:
        """Those of the chain itself."""
        names = ("threshold", "max_steps", "rule", "interpolate", "state_scale", "min_time")
        return {name: getattr(self, name) for name in names}


def plan_velocity(attention, distributions, o: Options) -> Plan:
    """All checks of `markov_velocity` but those of the entries."""
    name = "markov_velocity"
    p = plan_scaling(name, attention, o.n_ipf, "n_ipf")
    expect_dtype(name, "distributions", distributions, FLOATS)
    num_classes = expect_shape(name, "distributions", distributions, "C, N", {"N": p.num_nodes}, "attention")["C"]
    same_device(name, attention=attention, distributions=distributions)
    expect_positive(name, "temperature", o.temperature)
    expect_choice(name, "rule", o.rule, RULES)
    expect_choice(name, "state_scale", o.state_scale, STATE_SCALES)
    if o.state_scale == "max":
        expect_between(name, "threshold", o.threshold, 0, 1)
    else:
        expect_positive(name, "threshold", o.threshold)
    expect_integer(name, "max_steps", o.max_steps, 1, 2**24)  # times are whole numbers in float32
    expect_positive(name, "min_time", o.min_time)
    return dataclasses.replace(p, num_classes=num_classes)


def _entries_are_valid(values: Tensor) -> bool:
    """Whether all are finite and >= 0; waits for the device."""
    if values.numel() == 0:
        return True
    low, high = values.detach().aminmax()  # NaN where there is one
    return bool((low >= 0) & (high < math.inf))


def _refuse_entry(op: str, argument: str, values: Tensor) -> None:
    """Raises ValueError for the first bad entry."""
    for row in range(values.shape[0]):
        bad = ~((values[row] >= 0) & (values[row] < math.inf))
        if bad.any():
            column = int(bad.nonzero()[0])
            wrong_value(op, argument, ENTRIES, f"{values[row, column].item():g} at [{row}, {column}]")
    wrong_value(op, argument, "entries whose sums are finite", "a sum that is not")


def _check_entries(op: str, argument: str, values: Tensor) -> None:
    if not _entries_are_valid(values):
        _refuse_entry(op, argument, values)


def _scale_by_reference(p: Plan, attention: Tensor, n_iter: int, check: bool, info: bool):
    """r, c and the column error of the definition; NaN where the entries are bad and nobody checks."""
    matrix = attention.to(p.compute_dtype)
    r, c, sums = reference.doubly_stochastic(matrix, n_iter=n_iter)
    if matrix.numel():
        usable = (matrix.amin() >= 0) & (matrix.sum(0).amax() < math.inf)
        if check and not usable:
            _refuse_entry(p.name, "attention", attention)
        spoilt = torch.where(usable, 0.0, math.nan).to(p.compute_dtype)
        r, c, sums = r + spoilt, c + spoilt, sums + spoilt
    return r, c, reference.column_error(c, sums).reshape(1) if info else attention.new_empty(0, dtype=torch.float64)


def _scaling_cpu(attention, n_iter, check, info):
    p = plan_scaling("doubly_stochastic", attention, n_iter)
    return _scale_by_reference(p, attention, n_iter, check, info)


def _scaling_cuda(attention, n_iter, check, info):
    p = plan_scaling("doubly_stochastic", attention, n_iter)
    return _scale_by_reference(p, attention, n_iter, check, info)


def _scaling_fake(attention, n_iter, check, info):
    p = plan_scaling("doubly_stochastic", attention, n_iter)
    vector = attention.new_empty(p.num_nodes, dtype=p.compute_dtype)
    return vector, torch.empty_like(vector), attention.new_empty(int(info), dtype=torch.float64)


def _matrix(p: Plan, attention: Tensor, o: Options) -> Tensor:
    """The attention at its temperature: the caller's, or a copy with other numbers."""
    if o.temperature == 1:
        return attention
    if o.check:
        _check_entries(p.name, "attention", attention)
    matrix = attention.to(p.compute_dtype)
    return reference.sharpen(torch.where(matrix >= 0, matrix, math.nan), o.temperature)


def _no_info(found: tuple[Tensor, ...], info: bool) -> tuple[Tensor, ...]:
    """Times, steps and places not reached; empty without `info`."""
    return found if info else tuple(part.new_empty((0,) * part.dim()) for part in found)


def _velocity_by_reference(p: Plan, attention: Tensor, distributions: Tensor, o: Options):
    if o.check:
        _check_entries(p.name, "distributions", distributions)
    matrix = _matrix(p, attention, o)
    r, c, error = _scale_by_reference(p, matrix, o.n_ipf, o.check, o.info)
    values = distributions.to(p.compute_dtype)
    velocity, *found = reference.markov_velocity(matrix.to(p.compute_dtype), r, c, values, **o.chain())
    return velocity.to(distributions.dtype), *_no_info(tuple(found), o.info), r, c, error


def _velocity_cpu(attention, distributions, *options):
    o = Options(*options)
    p = plan_velocity(attention, distributions, o)
    return _velocity_by_reference(p, attention, distributions, o)


def _velocity_cuda(attention, distributions, *options):
    o = Options(*options)
    p = plan_velocity(attention, distributions, o)
    return _velocity_by_reference(p, attention, distributions, o)


def _velocity_fake(attention, distributions, *options):
    o = Options(*options)
    p = plan_velocity(attention, distributions, o)
    shape = (p.num_classes, p.num_nodes)
    found = (
        attention.new_empty(shape, dtype=p.compute_dtype),
        attention.new_empty(p.num_classes, dtype=torch.int32),
        attention.new_empty(p.num_classes, dtype=torch.int64),
    )
    vector = attention.new_empty(p.num_nodes, dtype=p.compute_dtype)
    error = attention.new_empty(int(o.info), dtype=torch.float64)
    return distributions.new_empty(shape), *_no_info(found, o.info), vector, torch.empty_like(vector), error


def _sample_attention(num_nodes: int) -> Tensor:
    generator = torch.Generator().manual_seed(9)
    places = torch.rand(num_nodes, 2, generator=generator)
    return torch.softmax(-8 * torch.cdist(places, places), 1)


def _scaling_samples(device: str) -> list[tuple]:
    matrix = _sample_attention(13).to(device)
    return [
        (matrix, 15, True, True),
        (matrix.half(), 3, True, False),
        (matrix.double(), 0, False, True),
        (matrix.clone().requires_grad_(), 2, True, False),
    ]


def _velocity_samples(device: str) -> list[tuple]:
    matrix, start = _sample_attention(13).to(device), torch.eye(13)[:3].to(device)
    usual = (0.3, 1000, "first_passage", True, "max", 1e-3)
    return [
        (matrix, start, 15, 1.0, *usual, True, True),
        (matrix.bfloat16(), start, 15, 0.65, *usual, True, False),
        (matrix.double(), start.double(), 3, 1.0, 0.3, 50, "settling", False, "N", 1e-3, True, True),
        (matrix, start.half(), 3, 1.0, 0.1, 50, "delta_literal", False, "none", 1e-3, False, True),
        (matrix.clone().requires_grad_(), start.clone().requires_grad_(), 15, 1.0, *usual, True, False),
    ]


register(
    "doubly_stochastic(Tensor attention, int n_iter, bool check, bool info) -> (Tensor, Tensor, Tensor)",
    cpu=_scaling_cpu,
    cuda=_scaling_cuda,
    fake=_scaling_fake,
    gradient=None,
    samples=_scaling_samples,
)
register(
    "markov_velocity(Tensor attention, Tensor distributions, int n_ipf, float temperature, float threshold, "
    "int max_steps, str rule, bool interpolate, str state_scale, float min_time, bool check, bool info) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    cpu=_velocity_cpu,
    cuda=_velocity_cuda,
    fake=_velocity_fake,
    gradient=None,
    samples=_velocity_samples,
)
