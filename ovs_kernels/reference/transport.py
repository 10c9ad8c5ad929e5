"""Definition of `sinkhorn` and `transport_map`: entropic optimal transport of C marginals with one cost matrix.

Written to be read beside the equations, not to be fast. Any float dtype, any device; run it in float64 to get
the numbers that the kernels are held to.
"""

import math

import torch
from torch import Tensor

# A denominator is never taken below this, the smallest normal float32; how often that happened is reported.
SMALLEST_DENOMINATOR = 1.1754943508222875e-38

# exp(-cost / epsilon), its products with scaling vectors and the vectors themselves stay normal float32 numbers
# while (max(cost) - min(cost)) / epsilon is at most this; docs/transport.md has the bounds.
PLAIN_RANGE = 60.0

# The masses of a and b may differ by this share, and by twice the resolution of their dtype.
MASS_TOLERANCE = 1e-4

READOUTS = ("receiver", "source", "plan_cost")


def mass_tolerance(dtype: torch.dtype) -> float:
    """Largest share by which the mass of a marginal of this dtype may miss that of its partner."""
    return max(MASS_TOLERANCE, 2 * torch.finfo(dtype).eps)


def marginal_fault(a: Tensor, b: Tensor | None, normalize: bool, num_columns: int) -> tuple[str, int, int] | None:
    """What is wrong with the marginals, if anything.

    Args:
        a: [C, N].
        b: [M], [C, M] or None.
        normalize: whether masses may differ.
        num_columns: M.

    Returns:
        None, or ("a", row, column) or ("b", row, column) for an entry that is negative or not finite, or
        ("mass", row, 0).
    """
    for name, marginal in (("a", a), ("b", b)):
        if marginal is not None:
            bad = ~((marginal >= 0) & (marginal < math.inf))
            if bad.any():
                place = bad.nonzero()[0].tolist()
                return name, place[0] if len(place) == 2 else 0, place[-1]
    mass_a, mass_b = masses(a, b, num_columns)
    empty = mass_a == 0
    bad = ~empty & ~((mass_b > 0) & (mass_a < math.inf) & (mass_b < math.inf))
    if not normalize:
        tolerance = max(mass_tolerance(a.dtype), 0.0 if b is None else mass_tolerance(b.dtype))
        bad |= ~empty & ~((mass_a - mass_b).abs() <= tolerance * mass_b)
    return ("mass", int(bad.nonzero()[0]), 0) if bad.any() else None


def cost_fault(cost: Tensor) -> tuple[int, int] | None:
    """Row and column of the first cost that is negative or not finite, or None."""
    bad = ~((cost >= 0) & (cost < math.inf))
    return tuple(bad.nonzero()[0].tolist()) if bad.any() else None


def masses(a: Tensor, b: Tensor | None, num_columns: int) -> tuple[Tensor, Tensor]:
    """Sums of the rows of a and b, [C] float64 each; b None has mass 1, or 0 without columns."""
    mass_a = a.sum(1, dtype=torch.float64)
    if b is None:
        mass_b = torch.full_like(mass_a, 1.0 if num_columns > 0 else 0.0)
    else:
        mass_b = b.sum(-1, dtype=torch.float64).expand_as(mass_a)
    return mass_a, mass_b


def uses_log_domain(cost: Tensor, epsilon: float, domain: str) -> bool:
    """Whether the scaling vectors are kept as logarithms."""
    if domain != "auto":
        return domain == "log"
    if cost.numel() == 0:
        return False
    return (float(cost.max()) - float(cost.min())) / epsilon > PLAIN_RANGE


def _scalings(shifted: Tensor, a: Tensor, b: Tensor, epsilon: float, max_iter: int, tol: float) -> tuple:
    """Scalings mu and nu by products with exp(-cost / epsilon); what `sinkhorn` needs of them."""
    kernel = torch.exp(-shifted / epsilon)
    guards = torch.zeros((), dtype=torch.int64, device=a.device)

    def guarded(denominators: Tensor) -> Tensor:
        guards.add_((denominators < SMALLEST_DENOMINATOR).sum())
        return denominators.clamp(min=SMALLEST_DENOMINATOR)

    nu = torch.ones_like(b)
    mu = None
    for iteration in range(1, max_iter + 1):  # noqa: B007  (reported)
        row_sums = guarded(nu @ kernel.T)
        error = None if mu is None else (mu * row_sums - a).abs().sum(1, dtype=torch.float64)
        mu = a / row_sums
        column_sums = guarded(mu @ kernel)
        nu = b / column_sums
        if error is not None and bool((error <= tol).all()):
            break
    errors = (mu * (nu @ kernel.T) - a).abs().sum(1, dtype=torch.float64)
    return row_sums.log(), column_sums.log(), iteration, errors, int(guards)


def _log_scalings(shifted: Tensor, a: Tensor, b: Tensor, epsilon: float, max_iter: int, tol: float) -> tuple:
    """The same with logarithms of mu and nu, class by class."""
    scaled = -shifted / epsilon
    log_a, log_b = a.log(), b.log()
    log_nu = b.new_zeros(b.shape)

    def over_columns(logs: Tensor) -> Tensor:
        return torch.stack([torch.logsumexp(scaled + log, 1) for log in logs])

    def over_rows(logs: Tensor) -> Tensor:
        return torch.stack([torch.logsumexp(scaled + log[:, None], 0) for log in logs])

    log_mu = None
    for iteration in range(1, max_iter + 1):  # noqa: B007  (reported)
        log_rows = over_columns(log_nu)
        error = None if log_mu is None else ((log_mu + log_rows).exp() - a).abs().sum(1, dtype=torch.float64)
        log_mu = log_a - log_rows
        log_columns = over_rows(log_mu)
        log_nu = log_b - log_columns
        if error is not None and bool((error <= tol).all()):
            break
    errors = ((log_mu + over_columns(log_nu)).exp() - a).abs().sum(1, dtype=torch.float64)
    return log_rows, log_columns, iteration, errors, 0


def sinkhorn(
    cost: Tensor,
    a: Tensor,
    b: Tensor | None,
    *,
    epsilon: float,
    max_iter: int,
    tol: float,
    exact_iters: bool,
    domain: str,
    normalize: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Dual potentials of C entropic transport problems that share one cost matrix.

    ::

        plan_c = argmin <cost, pi> + epsilon sum pi (ln pi - 1)      over pi >= 0, pi 1 = a_c, pi^T 1 = b_c
               = diag(mu_c) K diag(nu_c),     K = exp(-cost / epsilon)
        nu = 1;    repeat  mu = a / (K nu),  nu = b / (K^T mu)       f = epsilon ln mu,  g = epsilon ln nu

    An iteration is one update of mu and one of nu. In iteration k + 1 the row sums K nu also tell the error of the
    scalings of iteration k, |mu (K nu) - a|_1 for marginals of mass 1; when it is at most `tol` in every class,
    iteration k + 1 is the last.

    Args:
        cost: [N, M] float, finite.
        a: [C, N] float, >= 0. A row of zeros is an empty class: its plan is zero.
        b: [M] or [C, M] float, >= 0; None is 1 / M everywhere.
        epsilon: above zero.
        max_iter: iterations at most, 1 or more.
        tol: marginal error at which to stop.
        exact_iters: take all `max_iter` iterations.
        domain: "plain" keeps mu and nu, "log" their logarithms, "auto" decides by `uses_log_domain`.
        normalize: scale every row of a and b to mass 1; otherwise a row of a is scaled to the mass of its b, from
            which it may differ by rounding.

    Returns:
        f [C, N] and g [C, M], with plan_c = exp((f_i + g_j - cost_ij) / epsilon), -inf where the mass is zero and in
        all of an empty class; marginal errors [C] float64 of the result, as a share of the mass, 0 for an empty class;
        [3] int64: iterations, denominators that were raised to SMALLEST_DENOMINATOR, 1 in the log domain.
    """
    num_columns = cost.shape[1]
    mass_a, mass_b = masses(a, b, num_columns)
    full = mass_a > 0
    in_log = uses_log_domain(cost, epsilon, domain)
    if b is None:
        b = torch.full((num_columns,), 1.0 / max(1, num_columns), dtype=a.dtype, device=a.device)
    b = b.expand(a.shape[0], num_columns)
    f = torch.full((a.shape[0], cost.shape[0]), -math.inf, dtype=a.dtype, device=a.device)
    g = torch.full((a.shape[0], num_columns), -math.inf, dtype=a.dtype, device=a.device)
    errors = torch.zeros(a.shape[0], dtype=torch.float64, device=a.device)
    iterations = guards = 0
    if bool(full.any()):
        unit_a = (a[full] / mass_a[full, None]).to(a.dtype)
        unit_b = (b[full] / mass_b[full, None]).to(a.dtype)
        wide = cost.to(a.dtype)
        least = wide.min()
        solve = _log_scalings if in_log else _scalings
        log_rows, log_columns, iterations, errors[full], guards = solve(
            wide - least, unit_a, unit_b, epsilon, max_iter, -1.0 if exact_iters else tol
        )
        log_mass = 0.0 if normalize else mass_b[full, None].log().to(a.dtype)
        f[full] = least + epsilon * (unit_a.log() + log_mass - log_rows)
        g[full] = epsilon * (unit_b.log() - log_columns)
    status = torch.tensor([iterations, guards, int(in_log)], dtype=torch.int64, device=a.device)
    return f, g, errors, status


def transport_map(
    cost: Tensor, distributions: Tensor, b: Tensor | None, *, epsilon: float, readout: str, **options
) -> tuple[Tensor, Tensor, Tensor]:
    """What each receiver, each source or each class as a whole pays under the plans of `sinkhorn`.

    ::

        receiver:   D_cj = sum_i cost_ij plan_cij
        source:     D_ci = sum_j cost_ij plan_cij
        plan_cost:  D_c = sum_ij cost_ij plan_cij

    As g was updated last, plan_cij = b_cj softmax_i((f_ci - cost_ij) / epsilon), which rounding cannot carry away.

    Args:
        cost: [N, M] float, finite.
        distributions: [C, N] float, >= 0, the marginals a.
        b: as in `sinkhorn`.
        epsilon: above zero.
        readout: one of READOUTS.
        **options: the others of `sinkhorn`.

    Returns:
        D [C, M], [C, N] or [C], -inf for an empty class; marginal errors and status as in `sinkhorn`.
    """
    f, _, errors, status = sinkhorn(cost, distributions, b, epsilon=epsilon, **options)
    shape = {"receiver": (cost.shape[1],), "source": (cost.shape[0],), "plan_cost": ()}[readout]
    axis = {"receiver": 0, "source": 1, "plan_cost": (0, 1)}[readout]
    result = torch.full((f.shape[0], *shape), -math.inf, dtype=f.dtype, device=f.device)
    wide = cost.to(f.dtype)
    mass_a, mass_b = masses(distributions, b, cost.shape[1])
    for c in (mass_a > 0).nonzero()[:, 0].tolist():
        to_column = 1.0 / cost.shape[1] if b is None else b if b.dim() == 1 else b[c]
        to_column = to_column / mass_b[c].to(f.dtype) if options["normalize"] else to_column
        plan = to_column * torch.softmax((f[c][:, None] - wide) / epsilon, 0)
        result[c] = (wide * plan).sum(axis)
    return result, errors, status
