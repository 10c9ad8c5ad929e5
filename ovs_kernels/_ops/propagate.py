"""Operator `lp_graph`: plan, CPU and CUDA bridges, fake, gradient."""

import dataclasses

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
    expect_rank,
    expect_shape,
    not_served,
    same_device,
    wrong_value,
)
from ..reference import propagate as reference
from . import Gradient, register

NAME = "lp_graph"
INDEX_DTYPES = (torch.int32, torch.int64)
# The kinds of fault that the core reports by number, csrc/propagate/propagate.h.
FAULTS = {1: "row starts", 2: "columns", 3: "weights", 4: "asymmetric"}
EXPECTED = {
    "row starts": "row starts that rise from 0 to the number of links",
    "columns": "columns in [0, N - 1] that ascend within a row, without repetition",
    "weights": "finite weights >= 0, with finite row sums",
    "asymmetric": "a symmetric matrix (w_ij = w_ji within 1e-4 of the larger; check=False skips this)",
}


@dataclasses.dataclass(frozen=True)
class Plan:
    """Checked arguments of one call."""

    num_nodes: int
    num_links: int
    num_classes: int
    dtype: torch.dtype  # of the result
    compute_dtype: torch.dtype
    max_iter: int

    def info_shape(self, info: bool) -> tuple[int, ...]:
        """Shape of iterations and residuals."""
        return (self.num_classes,) if info else (0,)


def plan(indptr, indices, weights, degrees, scores, alpha, mode, max_iter, tol, check, info) -> Plan:
    """All checks of `lp_graph` but those of the numbers inside the graph; the arguments are those of the schema."""
    for name, index in (("indptr", indptr), ("indices", indices)):
        expect_dtype(NAME, f"graph: {name}", index, INDEX_DTYPES)
        expect_rank(NAME, f"graph: {name}", index, "N + 1" if name == "indptr" else "L")
    if indptr.shape[0] == 0:
        wrong_value(NAME, "graph: indptr", "at least one entry", "none")
    num_nodes, num_links = indptr.shape[0] - 1, indices.shape[0]
    if num_nodes >= 2**31:
        wrong_value(NAME, "graph", "fewer than 2^31 nodes", num_nodes)
    expect_dtype(NAME, "graph: weights", weights, FLOATS)
    expect_shape(NAME, "graph: weights", weights, "L", {"L": num_links}, "indices")
    if degrees is not None:
        expect_dtype(NAME, "graph: degrees", degrees, FLOATS)
        expect_shape(NAME, "graph: degrees", degrees, "N", {"N": num_nodes}, "indptr")
    dtype = expect_dtype(NAME, "scores", scores, FLOATS)
    num_classes = expect_shape(NAME, "scores", scores, "N, C", {"N": num_nodes}, "graph")["C"]
    same_device(NAME, scores=scores, graph=weights)
    same_device(NAME, graph=weights, indptr=indptr, indices=indices, degrees=degrees)
    expect_between(NAME, "alpha", alpha, 0, 1)
    expect_choice(NAME, "mode", mode, tuple(_native.SOLVE_MODES))
    if max_iter is not None:
        expect_integer(NAME, "max_iter", max_iter, 1, 2**31 - 1)
    if mode == "exact":
        expect_between(NAME, "tol", tol, 0, 1)
    else:
        expect_not_negative(NAME, "tol", tol)
    if max_iter is None:
        max_iter = reference.OFFICIAL_STEPS if mode == "official" else 2**31 - 1
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    return Plan(num_nodes, num_links, num_classes, dtype, compute, max_iter)


@dataclasses.dataclass(frozen=True)
class Arrays:
    """What a kernel reads and writes, contiguous, in the dtypes of the computation."""

    indptr: Tensor
    indices: Tensor
    weights: Tensor
    degrees: Tensor | None
    scores: Tensor
    result: Tensor
    iterations: Tensor
    residuals: Tensor


def _refuse(fault: str, row: int) -> None:
    wrong_value(NAME, "graph", EXPECTED[fault], f"otherwise in row {row}")


def _arrays(p: Plan, indptr, indices, weights, degrees, scores, info: bool) -> Arrays:
    device, shape = scores.device, p.info_shape(info)
    if indices.dtype == torch.int64 and indices.device.type == "cpu" and p.num_links > 0:
        low, high = indices.aminmax()  # before they lose their upper half
        if low < 0 or high >= p.num_nodes:
            row = int(torch.searchsorted(indptr, ((indices < 0) | (indices >= p.num_nodes)).nonzero()[0], right=True))
            _refuse("columns", max(0, min(row, p.num_nodes) - 1))
    return Arrays(
        indptr.to(torch.int64).contiguous(),
        indices.to(torch.int32).contiguous(),
        weights.to(p.compute_dtype).contiguous(),
        None if degrees is None else degrees.to(p.compute_dtype).contiguous(),
        scores.to(p.compute_dtype).contiguous(),
        torch.empty((p.num_nodes, p.num_classes), dtype=p.compute_dtype, device=device),
        torch.empty(shape, dtype=torch.int32, device=device),
        torch.empty(shape, dtype=torch.float64, device=device),
    )


def _arguments(p: Plan, a: Arrays, alpha, mode, tol, check, info) -> dict:
    """Keyword arguments that the CPU and the CUDA function share; `a` must outlive the call."""
    return {
        "indptr": a.indptr.data_ptr(),
        "indices": a.indices.data_ptr(),
        "weights": a.weights.data_ptr(),
        "degrees": 0 if a.degrees is None else a.degrees.data_ptr(),
        "scores": a.scores.data_ptr(),
        "out": a.result.data_ptr(),
        "iterations": a.iterations.data_ptr() if info else 0,
        "residuals": a.residuals.data_ptr() if info else 0,
        "num_nodes": p.num_nodes,
        "num_links": p.num_links,
        "num_classes": p.num_classes,
        "alpha": alpha,
        "tol": tol,
        "max_iter": p.max_iter,
        "check": check,
        "mode": _native.SOLVE_MODES[mode],
    }


def _check_graph(indptr, indices, weights) -> None:
    fault = reference.graph_fault(indptr, indices, weights)
    if fault is not None:
        _refuse(*fault)


def _reference(p: Plan, indptr, indices, weights, degrees, scores, alpha, mode, tol, info):
    result, iterations, residuals = reference.lp_graph(
        indptr,
        indices,
        weights.to(p.compute_dtype),
        None if degrees is None else degrees.to(p.compute_dtype),
        scores.to(p.compute_dtype),
        alpha=alpha,
        mode=mode,
        max_iter=p.max_iter,
        tol=tol,
    )
    if not info:
        iterations, residuals = iterations.new_empty(0), residuals.new_empty(0)
    return result.to(p.dtype), iterations, residuals


def _cpu(indptr, indices, weights, degrees, scores, alpha, mode, max_iter, tol, check, info):
    p = plan(indptr, indices, weights, degrees, scores, alpha, mode, max_iter, tol, check, info)
    if _native.use_reference(on_cuda=False):
        if check:
            _check_graph(indptr, indices, weights)
        return _reference(p, indptr, indices, weights, degrees, scores, alpha, mode, tol, info)
    a = _arrays(p, indptr, indices, weights, degrees, scores, info)
    common = _arguments(p, a, alpha, mode, tol, check, info)
    common["dtype"] = _native.DTYPES[p.compute_dtype]
    fault, row = _native.call_cpu(NAME, scores.device, common, sized_by_threads=False)
    if fault:
        _refuse(FAULTS[fault], row)
    return a.result.to(p.dtype), a.iterations, a.residuals


def _cuda(indptr, indices, weights, degrees, scores, alpha, mode, max_iter, tol, check, info):
    p = plan(indptr, indices, weights, degrees, scores, alpha, mode, max_iter, tol, check, info)
    if check:
        _check_graph(indptr, indices, weights)
    if _native.use_reference(True, p.compute_dtype):
        return _reference(p, indptr, indices, weights, degrees, scores, alpha, mode, tol, info)
    a = _arrays(p, indptr, indices, weights, degrees, scores, info)
    if p.num_nodes == 0 or p.num_classes == 0:
        return a.result.to(p.dtype), a.iterations.zero_(), a.residuals.zero_()
    _native.call_cuda(NAME, scores.device, _arguments(p, a, alpha, mode, tol, check, info))
    return a.result.to(p.dtype), a.iterations, a.residuals


def _fake(indptr, indices, weights, degrees, scores, alpha, mode, max_iter, tol, check, info):
    p = plan(indptr, indices, weights, degrees, scores, alpha, mode, max_iter, tol, check, info)
    shape = p.info_shape(info)
    return (
        scores.new_empty((p.num_nodes, p.num_classes)),
        scores.new_empty(shape, dtype=torch.int32),
        scores.new_empty(shape, dtype=torch.float64),
    )


def _setup_context(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.arguments = inputs[5:9]
    ctx.mark_non_differentiable(*output[1:])


def _backward(ctx, v_result, v_iterations, v_residuals):
    alpha, mode, max_iter, tol = ctx.arguments
    if mode != "exact":
        not_served(
            NAME,
            "mode",
            f"the gradient of {mode!r}, whose result is not linear in the scores,",
            'use mode="exact" for training',
        )
    # The solution operator is self-adjoint: the gradient of the scores is another solve.
    v_scores, _, _ = torch.ops.ovs_kernels.lp_graph(
        *ctx.saved_tensors, v_result, alpha, mode, max_iter, tol, False, False
    )
    return (None,) * 4 + (v_scores,) + (None,) * 6


def _samples(device: str) -> list[tuple]:
    generator = torch.Generator().manual_seed(6)
    dense = torch.rand(11, 11, generator=generator) * (torch.rand(11, 11, generator=generator) < 0.4)
    dense = dense + dense.T
    dense[4] = dense[:, 4] = 0.0
    rows, columns = dense.nonzero(as_tuple=True)
    counts = torch.bincount(rows, minlength=11)
    indptr = torch.cat((counts.new_zeros(1), counts.cumsum(0))).to(torch.int32)
    graph = tuple(part.to(device) for part in (indptr, columns.to(torch.int32), dense[rows, columns]))
    long = (graph[0].long(), graph[1].long(), graph[2].double())
    scores = torch.rand(11, 3, generator=generator).to(device)
    degrees = dense.sum(1).to(device)
    return [
        (*graph, None, scores, 0.95, "official", None, 1e-6, True, True),
        (*graph, degrees, scores, 0.9, "official", 3, 1e-6, False, False),
        (*long, None, scores.double(), 0.9, "exact", None, 1e-9, True, True),
        (*graph, degrees, scores.clone().requires_grad_(), 0.9, "exact", None, 1e-6, False, False),
    ]


register(
    "lp_graph(Tensor indptr, Tensor indices, Tensor weights, Tensor? degrees, Tensor scores, float alpha, str mode, "
    "int? max_iter, float tol, bool check, bool info) -> (Tensor, Tensor, Tensor)",
    cpu=_cpu,
    cuda=_cuda,
    fake=_fake,
    gradient=Gradient(_setup_context, _backward),
    samples=_samples,
)
