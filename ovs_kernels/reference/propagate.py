"""Definition of `lp_graph`: label propagation over a given sparse graph, in plain PyTorch.

Written to be read beside the equations, not to be fast. Any float dtype, any device; run it in float64 to get
the numbers that the kernels are held to.
"""

import math

import torch
from torch import Tensor

# A degree below the smallest normal float32 counts as none: its inverse would not exist in float32.
SMALLEST_DEGREE = 1.1754943508222875e-38

# Two weights w_ij and w_ji count as equal when they differ by at most this share of the larger one: products of
# features taken in different orders differ in their last digits, and a power makes that more.
SYMMETRY_TOLERANCE = 1e-4

OFFICIAL_STEPS = 10


def graph_fault(indptr: Tensor, indices: Tensor, weights: Tensor) -> tuple[str, int] | None:
    """What is wrong with a graph, if anything: the kind and the first row that has it.

    Args:
        indptr: [N + 1] integers.
        indices: [L] integers.
        weights: [L] float.

    Returns:
        None, or ("row starts", "columns", "weights" or "asymmetric", row).
    """
    num_nodes, num_links = indptr.shape[0] - 1, indices.shape[0]
    indptr, indices = indptr.long(), indices.long()
    bad_start = (indptr[1:] < indptr[:-1]) | (indptr[1:] > num_links)
    if int(indptr[0]) != 0 or bad_start.any():
        return "row starts", 0 if int(indptr[0]) != 0 else int(bad_start.nonzero()[0])
    if int(indptr[-1]) != num_links:
        return "row starts", num_nodes - 1
    rows = torch.repeat_interleave(torch.arange(num_nodes, device=indptr.device), indptr.diff(), output_size=num_links)
    bad = (indices < 0) | (indices >= num_nodes)
    bad[1:] |= (indices[1:] <= indices[:-1]) & (rows[1:] == rows[:-1])
    if bad.any():
        return "columns", int(rows[bad.nonzero()[0]])
    bad = ~((weights >= 0) & (weights < math.inf))
    if bad.any():
        return "weights", int(rows[bad.nonzero()[0]])
    transposed = (indices * num_nodes + rows).argsort()
    twin = weights[transposed]
    bad = (indices != rows[transposed]) | (rows != indices[transposed])
    bad |= ~((weights - twin).abs() <= SYMMETRY_TOLERANCE * torch.maximum(weights, twin))
    return ("asymmetric", int(rows[bad.nonzero()[0]])) if bad.any() else None


def step_limit(alpha: float, tol: float) -> int:
    """Steps after which conjugate gradients have reached |r| <= tol |y| whatever the graph, and half as many again.

    The bound is |r_m| / |y| <= 2 sqrt(k) ((sqrt(k) - 1) / (sqrt(k) + 1))^m with k = (1 + alpha) / (1 - alpha).
    """
    root_k = math.sqrt((1 + alpha) / (1 - alpha))
    steps = math.log(2 * root_k / tol) / math.log((root_k + 1) / (root_k - 1))
    return int(1.5 * min(steps, 1e8)) + 2


def conjugate_gradients(apply, y: Tensor, max_iter: int, tol: float) -> tuple[Tensor, Tensor, Tensor]:
    """Solves L x = y for every column by itself, starting at zero.

    ::

        r = y;  p = r;  rho = <r, r>
        repeat up to max_iter times:
            q = L p;  a = rho / <p, q>;  x += a p;  r -= a q
            stop this column if |r| <= tol |y|
            rho' = <r, r>;  p = r + (rho' / rho) p;  rho = rho'

    A column that has stopped is left alone. One with y = 0 never starts; one whose <p, q> is not above 0 stops
    where it is.

    Args:
        apply: function [N, C] -> [N, C], symmetric and positive definite.
        y: [N, C] right-hand sides, finite.
        max_iter: steps per column at most.
        tol: relative residual at which a column stops.

    Returns:
        x [N, C], steps taken [C] int32, recursive residual |r| / |y| [C] float64.
    """

    def dot(u: Tensor, v: Tensor) -> Tensor:  # in float64: float32 overflows
        return (u.double() * v.double()).sum(0)

    x = torch.zeros_like(y, memory_format=torch.contiguous_format)
    r = y.clone()
    p = r.clone()
    rho = dot(r, r)
    norm_y = rho.sqrt()
    norm_r = norm_y
    iterations = torch.zeros(y.shape[1], dtype=torch.int32, device=y.device)
    active = rho > 0
    for _ in range(max_iter):
        if not active.any():
            break
        q = apply(p)
        curvature = dot(p, q)
        active = active & (curvature > 0)
        step = torch.where(active, rho / curvature, 0.0).to(y.dtype)
        x += step * p
        r -= step * q
        iterations += active
        rho_next = dot(r, r)
        norm_r = torch.where(active, rho_next.sqrt(), norm_r)
        active = active & (norm_r > tol * norm_y)
        beta = torch.where(active, rho_next / rho, 0.0).to(y.dtype)
        p = r + beta * p
        rho = torch.where(active, rho_next, rho)
    return x, iterations, torch.where(norm_y > 0, norm_r / norm_y, 0.0)


def lp_graph(
    indptr: Tensor,
    indices: Tensor,
    weights: Tensor,
    degrees: Tensor | None,
    scores: Tensor,
    *,
    alpha: float,
    mode: str,
    max_iter: int | None,
    tol: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Label propagation over a graph (the patch stage of LPOSS).

    ::

        deg_i = sum_j w_ij                                1 where that is below SMALLEST_DEGREE (isolated node)
        (I - alpha D^-1/2 W D^-1/2) X = Y                 for every class; X = Y at isolated nodes in "exact"

    Args:
        indptr: [N + 1] integers, where the rows of W begin.
        indices: [L] integers, columns.
        weights: [L] float, entries of the symmetric W >= 0.
        degrees: [N] float, or None for the row sums.
        scores: [N, C] float, Y.
        alpha: in (0, 1).
        mode: "official": `max_iter` steps of conjugate gradients, the published procedure, which stops before
            convergence. "exact": steps until |r| <= tol |y|.
        max_iter: steps at most; None is OFFICIAL_STEPS in "official" and `step_limit` in "exact".
        tol: relative residual at which a class stops.

    Returns:
        X [N, C], steps [C] int32, residuals [C] float64: the recursive one in "official", |Y - L X| / |Y|
        recomputed in "exact". A class whose scores hold a NaN or an Inf: NaN, 0 and NaN.
    """
    num_nodes, num_links = scores.shape[0], indices.shape[0]
    counts = indptr.long().diff()
    rows = torch.repeat_interleave(torch.arange(num_nodes, device=scores.device), counts, output_size=num_links)
    matrix = torch.sparse_coo_tensor(torch.stack((rows, indices.long())), weights, (num_nodes, num_nodes)).coalesce()
    if degrees is None:
        degrees = torch.zeros(num_nodes, dtype=torch.float64, device=scores.device).index_add(0, rows, weights.double())
        degrees = degrees.to(weights.dtype)
    isolated = ~(degrees >= SMALLEST_DEGREE)
    root = torch.where(isolated, 1.0, degrees).rsqrt()[:, None]

    def apply(v: Tensor) -> Tensor:
        return v - alpha * (root * torch.sparse.mm(matrix, root * v))

    finite = torch.isfinite(scores).all(0)
    y = torch.where(finite, scores, 0.0)
    limit = OFFICIAL_STEPS if mode == "official" and max_iter is None else max_iter
    if mode == "exact":
        limit = step_limit(alpha, tol) if limit is None else min(limit, step_limit(alpha, tol))
    x, iterations, residuals = conjugate_gradients(apply, y, limit, tol)
    if mode == "exact":
        x = torch.where(isolated[:, None], y, x)
        error, scale = (y - apply(x)).double().square().sum(0), y.double().square().sum(0)
        residuals = torch.where(scale > 0, (error / scale).sqrt(), 0.0)
    return torch.where(finite, x, math.nan), iterations, torch.where(finite, residuals, math.nan)
