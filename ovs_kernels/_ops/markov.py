"""Operators `doubly_stochastic` and `markov_velocity`: plans, CPU and CUDA bridges, fakes."""

import dataclasses
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
    expect_positive,
    expect_rank,
    expect_shape,
    same_device,
    shape_text,
    wrong_value,
)
from ..reference import markov as reference
from . import register

# The numbers of csrc/markov/markov.h; tests/test_markov.py compares them.
RULES = {"first_passage": 0, "delta_literal": 1, "settling": 2}
STATE_SCALES = {"max": 0, "none": 1, "N": 2}
STAGES = {"start": 0, "steps": 1, "report": 2}
# Steps that are queued on a device before it is asked whether any class still runs. Most chains need some tens.
STEPS_PER_BATCH = 16
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
    expect_choice(name, "rule", o.rule, tuple(RULES))
    expect_choice(name, "state_scale", o.state_scale, tuple(STATE_SCALES))
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


def _call_cpu(op: str, common: dict, device: torch.device) -> object:
    return _native.call_cpu(op, device, common, sized_by_threads=False)


def _scale_cuda(op: str, common: dict, device: torch.device) -> None:
    _native.call_cuda(op, device, common)


def _run_chain_cuda(op: str, common: dict, device: torch.device) -> None:
    """Start, steps in batches until no class runs, report. After each batch the number of running classes is read."""
    running = torch.zeros(1, dtype=torch.int32, device=device)
    call = _native.prepare_cuda(op, device, common)
    stage = {"first_step": 0, "last_step": 0, "running": running.data_ptr()}
    call(**stage | {"stage": STAGES["start"]})
    recording = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
    batch = common["max_steps"] if recording else STEPS_PER_BATCH
    for first in range(1, common["max_steps"] + 1, batch):
        if not recording and int(running) == 0:
            break
        last = min(first + batch - 1, common["max_steps"])
        call(**stage | {"stage": STAGES["steps"], "first_step": first, "last_step": last})
    call(**stage | {"stage": STAGES["report"]})


def _scale(p: Plan, matrix: Tensor, n_iter: int, check: bool, info: bool, call) -> tuple[Tensor, Tensor, Tensor]:
    """r, c and the column error by a kernel; `matrix` is contiguous. On CUDA `check` waits for the device."""
    r = torch.empty(p.num_nodes, dtype=p.compute_dtype, device=matrix.device)
    c = r.new_empty(r.shape)
    error = torch.zeros(int(info), dtype=torch.float64, device=matrix.device)
    if p.num_nodes == 0:
        return r, c, error
    common = {
        "attention": matrix.data_ptr(),
        "r": r.data_ptr(),
        "c": c.data_ptr(),
        "column_error": error.data_ptr() if info else 0,
        "num_nodes": p.num_nodes,
        "n_iter": n_iter,
        "dtype": _native.DTYPES[matrix.dtype],
    }
    valid = call("doubly_stochastic", common, matrix.device)
    if check and not (bool(valid) if call is _call_cpu else not bool(r[0].isnan())):
        _refuse_entry(p.name, "attention", matrix)
    return r, c, error


def _scaling_cpu(attention, n_iter, check, info):
    p = plan_scaling("doubly_stochastic", attention, n_iter)
    if _native.use_reference(on_cuda=False):
        return _scale_by_reference(p, attention, n_iter, check, info)
    return _scale(p, attention.contiguous(), n_iter, check, info, _call_cpu)


def _scaling_cuda(attention, n_iter, check, info):
    p = plan_scaling("doubly_stochastic", attention, n_iter)
    if _native.use_reference(True, p.compute_dtype):
        return _scale_by_reference(p, attention, n_iter, check, info)
    return _scale(p, attention.contiguous(), n_iter, check, info, _scale_cuda)


def _scaling_fake(attention, n_iter, check, info):
    p = plan_scaling("doubly_stochastic", attention, n_iter)
    vector = attention.new_empty(p.num_nodes, dtype=p.compute_dtype)
    return vector, vector.new_empty(vector.shape), attention.new_empty(int(info), dtype=torch.float64)


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


def _velocity(p: Plan, attention: Tensor, distributions: Tensor, o: Options, scale, run):
    """The results of the schema by kernels: `scale` calls that of the scaling, `run` that of the chain."""
    device, shape = attention.device, (p.num_classes, p.num_nodes)
    if o.check:
        _check_entries(p.name, "distributions", distributions)
    matrix = _matrix(p, attention, o).contiguous()
    r, c, error = _scale(p, matrix, o.n_ipf, o.check, o.info, scale)
    starts = distributions.to(p.compute_dtype).contiguous()
    velocity = _native.allocate(shape, p.compute_dtype, device)
    times = _native.allocate(shape if o.info else (0, 0), p.compute_dtype, device)
    counts = p.num_classes if o.info else 0
    steps = torch.zeros(counts, dtype=torch.int32, device=device)
    unreached = torch.zeros(counts, dtype=torch.int64, device=device)
    if velocity.numel():
        common = {
            "attention": matrix.data_ptr(),
            "r": r.data_ptr(),
            "c": c.data_ptr(),
            "distributions": starts.data_ptr(),
            "velocity": velocity.data_ptr(),
            "times": times.data_ptr() if o.info else 0,
            "steps": steps.data_ptr() if o.info else 0,
            "unreached": unreached.data_ptr() if o.info else 0,
            "num_nodes": p.num_nodes,
            "num_classes": p.num_classes,
            "threshold": o.threshold,
            "min_time": o.min_time,
            "max_steps": o.max_steps,
            "rule": RULES[o.rule],
            "state_scale": STATE_SCALES[o.state_scale],
            "interpolate": o.interpolate,
            "dtype": _native.DTYPES[matrix.dtype],
        }
        run("markov_velocity", common, device)
    return velocity.to(distributions.dtype), times, steps, unreached, r, c, error


def _velocity_cpu(attention, distributions, *options):
    o = Options(*options)
    p = plan_velocity(attention, distributions, o)
    if _native.use_reference(on_cuda=False):
        return _velocity_by_reference(p, attention, distributions, o)
    return _velocity(p, attention, distributions, o, _call_cpu, _call_cpu)


def _velocity_cuda(attention, distributions, *options):
    o = Options(*options)
    p = plan_velocity(attention, distributions, o)
    if _native.use_reference(True, p.compute_dtype):
        return _velocity_by_reference(p, attention, distributions, o)
    return _velocity(p, attention, distributions, o, _scale_cuda, _run_chain_cuda)


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
    return distributions.new_empty(shape), *_no_info(found, o.info), vector, vector.new_empty(vector.shape), error


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
