"""Operators `sinkhorn` and `transport_map`: plan, CPU and CUDA bridges, fakes."""

import dataclasses

import torch
from torch import Tensor

from .. import _native
from .._checks import (
    FLOATS,
    expect_choice,
    expect_dtype,
    expect_integer,
    expect_not_negative,
    expect_positive,
    expect_rank,
    expect_shape,
    same_device,
    wrong_value,
)
from ..reference import transport as reference
from . import register

SINKHORN, TRANSPORT_MAP = "sinkhorn", "transport_map"
# The numbers of csrc/transport/transport.h.
DOMAINS = {"auto": 0, "plain": 1, "log": 2}
READOUTS = {None: 0, "receiver": 1, "source": 2, "plan_cost": 3}
COST_FAULT, MARGINAL_FAULTS = 1, {2: "a", 3: "b", 4: "mass"}
COSTS = "finite numbers >= 0"


@dataclasses.dataclass(frozen=True)
class Plan:
    """Checked arguments of one call; `op` is "sinkhorn" or "transport_map"."""

    op: str
    num_classes: int
    num_rows: int
    num_columns: int
    dtype: torch.dtype  # of the results
    compute_dtype: torch.dtype
    readout: str | None

    @property
    def marginal(self) -> str:
        """The name of the marginals a."""
        return "a" if self.op == SINKHORN else "distributions"

    @property
    def result_shapes(self) -> list[tuple[int, ...]]:
        """Shapes of f and g, or of the map."""
        of_rows, of_columns = (self.num_classes, self.num_rows), (self.num_classes, self.num_columns)
        if self.readout is None:
            return [of_rows, of_columns]
        return [{"receiver": of_columns, "source": of_rows, "plan_cost": (self.num_classes,)}[self.readout]]

    def info_shapes(self, info: bool) -> tuple[tuple[int], tuple[int]]:
        """Shapes of errors and status."""
        return ((self.num_classes,), (3,)) if info else ((0,), (0,))


def plan(cost, a, b, epsilon, max_iter, tol, domain, readout) -> Plan:
    """All checks but those of the numbers inside the tensors; `readout` None is `sinkhorn`."""
    op, name = (SINKHORN, "a") if readout is None else (TRANSPORT_MAP, "distributions")
    expect_dtype(op, "cost", cost, FLOATS)
    sizes = expect_shape(op, "cost", cost, "N, M")
    dtype = expect_dtype(op, name, a, FLOATS)
    num_classes = expect_shape(op, name, a, "C, N", {"N": sizes["N"]}, "cost")["C"]
    if b is not None:
        expect_dtype(op, "b", b, FLOATS)
        pattern = expect_rank(op, "b", b, "M", "C, M")
        expect_shape(op, "b", b, pattern, {"M": sizes["M"], "C": num_classes}, f"cost and {name}")
    same_device(op, **{"cost": cost, name: a, "b": b})
    expect_positive(op, "epsilon", epsilon)
    expect_integer(op, "max_iter", max_iter, 1, 2**31 - 1)
    expect_not_negative(op, "tol", tol)
    expect_choice(op, "domain", domain, tuple(DOMAINS))
    if readout is not None:
        expect_choice(op, "readout", readout, reference.READOUTS)
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    return Plan(op, num_classes, sizes["N"], sizes["M"], dtype, compute, readout)


def _refuse_cost(p: Plan, cost: Tensor, row: int, column: int) -> None:
    wrong_value(p.op, "cost", COSTS, f"{cost[row, column].item():g} at [{row}, {column}]")


def _refuse_marginal(p: Plan, kind: str, a: Tensor, b: Tensor | None, row: int, column: int) -> None:
    if kind == "mass":
        mass_a, mass_b = reference.masses(a[row : row + 1], b if b is None or b.dim() == 1 else b[row : row + 1], 1)
        want = f"{mass_b.item():g}" if p.num_columns > 0 else "0"
        wrong_value(
            p.op,
            p.marginal,
            f"the mass of b in every row ({want} in row {row}; normalize=True scales both to 1)",
            f"{mass_a.item():g}",
        )
    if kind == "a":
        wrong_value(p.op, p.marginal, COSTS, f"{a[row, column].item():g} at [{row}, {column}]")
    place = f"[{column}]" if b.dim() == 1 else f"[{row}, {column}]"
    wrong_value(p.op, "b", COSTS, f"{(b if b.dim() == 1 else b[row])[column].item():g} at {place}")


def _check_values(p: Plan, cost: Tensor, a: Tensor, b: Tensor | None, normalize: bool) -> None:
    fault = reference.marginal_fault(a, b, normalize, p.num_columns)
    if fault is not None:
        _refuse_marginal(p, fault[0], a, b, *fault[1:])
    place = reference.cost_fault(cost.to(p.compute_dtype))  # a float64 may be infinite there
    if place is not None:
        _refuse_cost(p, cost, *place)


def _reference(p: Plan, cost, a, b, info: bool, **options) -> tuple[Tensor, ...]:
    wide = None if b is None else b.to(p.compute_dtype)
    if p.readout is None:
        *results, errors, status = reference.sinkhorn(cost, a.to(p.compute_dtype), wide, **options)
    else:
        options["readout"] = p.readout
        *results, errors, status = reference.transport_map(cost, a.to(p.compute_dtype), wide, **options)
    if not info:
        errors, status = errors.new_empty(0), status.new_empty(0)
    return *(result.to(p.dtype) for result in results), errors, status


def _arguments(p: Plan, tensors: dict[str, Tensor | None], **options) -> dict:
    """Keyword arguments that the CPU and the CUDA function share; the tensors must outlive the call."""
    pointers = {
        name: 0 if tensor is None or tensor.numel() == 0 else tensor.data_ptr() for name, tensor in tensors.items()
    }
    b = tensors["b"]
    return pointers | {
        "num_rows": p.num_rows,
        "num_columns": p.num_columns,
        "num_classes": p.num_classes,
        "b_per_class": b is not None and b.dim() == 2,
        "cost_type": _native.DTYPES[tensors["cost"].dtype],
        "domain": DOMAINS[options.pop("domain")],
        "readout": READOUTS[p.readout],
        **options,
    }


def _tensors(p: Plan, cost: Tensor, a: Tensor, b: Tensor | None, info: bool) -> dict[str, Tensor | None]:
    """What a kernel reads and writes, contiguous, marginals and results in the dtype of the computation."""
    results = [_native.allocate(shape, p.compute_dtype, a.device) for shape in p.result_shapes]
    f, g, made = (*results, None) if p.readout is None else (None, None, *results)
    errors, status = p.info_shapes(info)
    return {
        "cost": cost.contiguous(),
        "a": a.to(p.compute_dtype).contiguous(),
        "b": None if b is None else b.to(p.compute_dtype).contiguous(),
        "f": f,
        "g": g,
        "map": made,
        "errors": torch.empty(errors, dtype=torch.float64, device=a.device),
        "status": torch.empty(status, dtype=torch.int64, device=a.device),
    }


def _results(p: Plan, tensors: dict[str, Tensor | None]) -> tuple[Tensor, ...]:
    results = [tensors[name] for name in ("f", "g", "map") if tensors[name] is not None]
    return *(result.to(p.dtype) for result in results), tensors["errors"], tensors["status"]


def _tolerance(a: Tensor, b: Tensor | None) -> float:
    return max(reference.mass_tolerance(marginal.dtype) for marginal in (a, b) if marginal is not None)


def _cpu(p: Plan, cost, a, b, normalize, check, info, **options):
    if _native.use_reference(on_cuda=False):
        if check:
            _check_values(p, cost, a, b, normalize)
        return _reference(p, cost, a, b, info, normalize=normalize, **options)
    tensors = _tensors(p, cost, a, b, info)
    common = _arguments(p, tensors, normalize=normalize, mass_tolerance=_tolerance(a, b), **options)
    common["dtype"] = _native.DTYPES[p.compute_dtype]
    fault, row, column = _native.call_cpu(p.op, a.device, common, sized_by_threads=False)
    if fault == COST_FAULT:
        _refuse_cost(p, cost, row, column)
    if fault:
        _refuse_marginal(p, MARGINAL_FAULTS[fault], a, b, row, column)
    return _results(p, tensors)


def _cuda(p: Plan, cost, a, b, normalize, check, info, **options):
    if check:
        _check_values(p, cost, a, b, normalize)
    if _native.use_reference(True, p.compute_dtype):
        return _reference(p, cost, a, b, info, normalize=normalize, **options)
    tensors = _tensors(p, cost, a, b, info)
    common = _arguments(p, tensors, normalize=normalize, mass_tolerance=_tolerance(a, b), **options)
    if p.num_classes == 0:
        tensors["status"].zero_()
        return _results(p, tensors)
    _native.call_cuda(p.op, a.device, common)
    return _results(p, tensors)


def _fake_results(p: Plan, a: Tensor, info: bool) -> tuple[Tensor, ...]:
    errors, status = p.info_shapes(info)
    results = (a.new_empty(shape) for shape in p.result_shapes)
    return *results, a.new_empty(errors, dtype=torch.float64), a.new_empty(status, dtype=torch.int64)


def _sinkhorn(run):
    """The implementation of `sinkhorn` by `run`, which is `_cpu` or `_cuda`."""

    def implementation(cost, a, b, epsilon, max_iter, tol, exact_iters, domain, normalize, check, info):
        p = plan(cost, a, b, epsilon, max_iter, tol, domain, None)
        options = {"epsilon": epsilon, "max_iter": max_iter, "tol": tol, "exact_iters": exact_iters, "domain": domain}
        return run(p, cost, a, b, normalize, check, info, **options)

    return implementation


def _transport_map(run):
    """The implementation of `transport_map` by `run`."""

    def implementation(cost, a, b, epsilon, max_iter, tol, exact_iters, readout, domain, normalize, check, info):
        p = plan(cost, a, b, epsilon, max_iter, tol, domain, readout)
        options = {"epsilon": epsilon, "max_iter": max_iter, "tol": tol, "exact_iters": exact_iters, "domain": domain}
        return run(p, cost, a, b, normalize, check, info, **options)

    return implementation


def _fake_sinkhorn(cost, a, b, epsilon, max_iter, tol, exact_iters, domain, normalize, check, info):
    return _fake_results(plan(cost, a, b, epsilon, max_iter, tol, domain, None), a, info)


def _fake_transport_map(cost, a, b, epsilon, max_iter, tol, exact_iters, readout, domain, normalize, check, info):
    return _fake_results(plan(cost, a, b, epsilon, max_iter, tol, domain, readout), a, info)


def _problems(device: str) -> list[tuple]:
    """cost, a, b of some sizes and dtypes."""
    generator = torch.Generator().manual_seed(8)
    cost = torch.rand(7, 9, generator=generator)
    a = torch.rand(3, 7, generator=generator)
    a[1, 2:4] = 0.0
    a /= a.sum(1, keepdim=True)
    b = torch.rand(3, 9, generator=generator)
    b /= b.sum(1, keepdim=True)
    problems = [
        (cost, a, None),
        (cost.half(), a, b[0]),
        (cost.double(), a.double(), b.double()),
        (cost.clone().requires_grad_(), a, None),
    ]
    return [
        tuple(item if item is None else item.detach().to(device).requires_grad_(item.requires_grad) for item in problem)
        for problem in problems
    ]


def _sinkhorn_samples(device: str) -> list[tuple]:
    options = [
        (0.1, 50, 1e-6, False, "auto", False, True, True),
        (0.2, 3, 1e-6, True, "plain", True, True, False),
        (0.01, 5, 1e-9, False, "auto", False, True, True),
        (0.1, 50, 1e-6, False, "auto", False, False, False),
    ]
    return [(*problem, *more) for problem, more in zip(_problems(device), options, strict=True)]


def _transport_map_samples(device: str) -> list[tuple]:
    options = [
        (0.1, 50, 1e-6, False, "receiver", "auto", False, True, True),
        (0.2, 3, 1e-6, True, "source", "plain", True, True, False),
        (0.01, 5, 1e-9, False, "plan_cost", "auto", False, True, True),
        (0.1, 50, 1e-6, False, "receiver", "auto", False, False, False),
    ]
    return [(*problem, *more) for problem, more in zip(_problems(device), options, strict=True)]


register(
    "sinkhorn(Tensor cost, Tensor a, Tensor? b, float epsilon, int max_iter, float tol, bool exact_iters, str domain, "
    "bool normalize, bool check, bool info) -> (Tensor, Tensor, Tensor, Tensor)",
    cpu=_sinkhorn(_cpu),
    cuda=_sinkhorn(_cuda),
    fake=_fake_sinkhorn,
    gradient=None,
    samples=_sinkhorn_samples,
)
register(
    "transport_map(Tensor cost, Tensor distributions, Tensor? b, float epsilon, int max_iter, float tol, "
    "bool exact_iters, str readout, str domain, bool normalize, bool check, bool info) -> (Tensor, Tensor, Tensor)",
    cpu=_transport_map(_cpu),
    cuda=_transport_map(_cuda),
    fake=_fake_transport_map,
    gradient=None,
    samples=_transport_map_samples,
)
