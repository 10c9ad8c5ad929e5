"""Entropic optimal transport of many marginals with one cost matrix, and the maps read from its plans."""

import dataclasses

import torch
from torch import Tensor

from . import _ops  # noqa: F401  (registers torch.ops.ovs_kernels)
from ._arrays import accepts_arrays


@dataclasses.dataclass(frozen=True)
class SinkhornInfo:
    """How a Sinkhorn solve went. The tensors stay on the device: asking for `domain` waits for it.

    Attributes:
        iterations: [] int64, updates of both scaling vectors.
        marginal_errors: [C] float64, sum of |row sums of the plan - a| as a share of the mass, of the result; 0 for an
            empty class. The column sums are exact but for rounding.
        guards: [] int64, denominators that had to be raised to the smallest normal float32: 0 unless domain="plain"
            was asked for where it does not fit.
        log_domain: [] int64, 1 in the log domain.
    """

    iterations: Tensor
    marginal_errors: Tensor
    guards: Tensor
    log_domain: Tensor

    @property
    def domain(self) -> str:
        """The domain in words: "plain" or "log"."""
        return "log" if int(self.log_domain) else "plain"


def _info(errors: Tensor, status: Tensor) -> SinkhornInfo:
    return SinkhornInfo(status[0], errors, status[1], status[2])


@accepts_arrays("cost", "a", "b")
def sinkhorn(
    cost: Tensor,
    a: Tensor,
    b: Tensor | None = None,
    *,
    epsilon: float = 0.1,
    max_iter: int = 50,
    tol: float = 1e-6,
    exact_iters: bool = False,
    domain: str = "auto",
    normalize: bool = False,
    check: bool = True,
    return_info: bool = False,
) -> tuple[Tensor, Tensor] | tuple[Tensor, Tensor, SinkhornInfo]:
    """Solves C entropic optimal transport problems that share one cost matrix; returns their dual potentials.

    ::

        plan_c = argmin <cost, pi> + epsilon sum pi (ln pi - 1)       over pi >= 0 with row sums a_c, column sums b_c
               = exp((f_ci + g_cj - cost_ij) / epsilon)
        nu = 1;   repeat  mu = a / (K nu),  nu = b / (K^T mu)         K = exp(-cost / epsilon)

    All classes go through the matrix together, and both products of an iteration need one pass over it.

    Args:
        cost: [N, M] float, finite, >= 0. float16 and bfloat16 are read as they are stored, without a float32 copy.
        a: [C, N] float, >= 0: mass at the sources. A row of zeros is an empty class.
        b: [M] or [C, M] float, >= 0: mass at the receivers; None is 1 / M everywhere. Its sum is that of `a` in every
            row within 1e-4 (float16: 2e-3, bfloat16: 2e-2); rows of `a` are scaled to meet it exactly.
        epsilon: strength of the entropy, in the unit of `cost`, above zero.
        max_iter: iterations at most, each an update of mu and of nu.
        tol: stop when the row sums of all plans are within this of `a` (sum of absolute differences, as a share of the
            mass). The update that notices it is kept, so the result is one iteration better than that.
        exact_iters: take all `max_iter` iterations, as published.
        domain: "plain" keeps mu and nu, "log" their logarithms; "auto" takes "log" where (max(cost) - min(cost)) /
            epsilon is above 60, so that nothing underflows. "log" takes many times as long.
        normalize: scale every row of `a` and `b` to mass 1 instead of refusing masses that differ.
        check: refuse bad numbers. The CPU does so in any case; on CUDA it waits for the device, and without it nothing
            is verified there.
        return_info: also return a `SinkhornInfo`. It costs half an iteration more, to measure the error of the result.

    Returns:
        f [C, N] and g [C, M] in the dtype and kind of `a`; -inf where the mass is zero, and in all of an empty class.
        With `return_info` a tuple of both and the info.

    Raises:
        TypeError: wrong kind or dtype of an argument.
        ValueError: wrong shape, range or device of an argument; a cost or mass that is negative or not finite; masses
            that differ.
        RuntimeError: CUDA tensors, and a build without CUDA or for other cards.

    Devices/dtypes: CPU and CUDA; float32, float16 and bfloat16 (computed in float32); float64 (on CUDA by the
        reference). The dtype of `a` decides; `cost` may have another one.
    Differentiable: no; the results do not require grad.
    Deterministic: yes, on CPU for any number of threads.
    Memory: K, N M numbers of the computation's dtype, is only touched where more than a few iterations are taken; 16
        vectors of column sums per class.
    Reference: Cuturi, "Sinkhorn distances" (2013); DSLO, section on the optimal path. See
        `ovs_kernels.reference.transport`.

    Example:
        >>> import torch, ovs_kernels
        >>> cost = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
        >>> f, g = ovs_kernels.sinkhorn(cost, torch.tensor([[0.5, 0.5]]), epsilon=0.5)
        >>> plan = torch.exp((f[0, :, None] + g[0] - cost) / 0.5)
        >>> plan.sum(0).tolist()
        [0.5, 0.5]
    """
    f, g, errors, status = torch.ops.ovs_kernels.sinkhorn(
        cost, a, b, epsilon, max_iter, tol, exact_iters, domain, normalize, check, return_info
    )
    return (f, g, _info(errors, status)) if return_info else (f, g)


@accepts_arrays("cost", "distributions", "b")
def transport_map(
    cost: Tensor,
    distributions: Tensor,
    *,
    b: Tensor | None = None,
    epsilon: float = 0.1,
    max_iter: int = 50,
    tol: float = 1e-6,
    exact_iters: bool = False,
    readout: str = "receiver",
    domain: str = "auto",
    normalize: bool = False,
    check: bool = True,
    return_info: bool = False,
) -> Tensor | tuple[Tensor, SinkhornInfo]:
    """What class evidence pays on its way to the uniform distribution: the optimal path of DSLO.

    `sinkhorn`, then one more pass over the cost::

        receiver:   D_cj = sum_i cost_ij plan_c_ij            what arrives at patch j, weighted by the cost
        source:     D_ci = sum_j cost_ij plan_c_ij
        plan_cost:  D_c  = sum_ij cost_ij plan_c_ij

    With self-attention as the cost, the receivers' map spreads the evidence of reliable patches over the regions that
    attend to them; larger is more of the class.

    Args:
        cost: [N, M] float, finite, >= 0: source i, receiver j. float16 and bfloat16 are read as they are stored.
        distributions: [C, N] float, >= 0, each row of mass 1 (that of `b`): where the evidence for a class is. A row of
            zeros is a class without evidence.
        b: [M] or [C, M] float, >= 0; None is 1 / M everywhere.
        epsilon: strength of the entropy, in the unit of `cost`, above zero; published: 0.1 for attention.
        max_iter: iterations at most; published: 50.
        tol: marginal error at which to stop, see `sinkhorn`.
        exact_iters: take all `max_iter` iterations, as published.
        readout: "receiver" (ours; it is the one that works), "source" or "plan_cost".
        domain: "auto", "plain" or "log", see `sinkhorn`.
        normalize: scale every row of `distributions` and `b` to mass 1.
        check: refuse bad numbers, see `sinkhorn`.
        return_info: also return a `SinkhornInfo`.

    Returns:
        [C, M], [C, N] or [C] by the read-out, in the dtype and kind of `distributions`; -inf for a class without
        evidence. With `return_info` a tuple of that and the info.

    Raises:
        TypeError: wrong kind or dtype of an argument.
        ValueError: wrong shape, range or device of an argument; a cost or mass that is negative or not finite; masses
            that differ.
        RuntimeError: CUDA tensors, and a build without CUDA or for other cards.

    Devices/dtypes: those of `sinkhorn`.
    Differentiable: no; the result does not require grad.
    Deterministic: yes, on CPU for any number of threads.
    Memory: that of `sinkhorn`, f and g.
    Reference: DSLO (optimal path), equations 3 to 8. See `ovs_kernels.reference.transport`.

    Example:
        >>> import torch, ovs_kernels
        >>> attention = torch.tensor([[0.5, 0.5, 0.0], [0.5, 0.5, 0.0], [0.0, 0.0, 1.0]])     # patches 0 and 1 agree
        >>> evidence = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
        >>> ovs_kernels.transport_map(attention, evidence).argmax(0).tolist()
        [0, 0, 1]
    """
    result, errors, status = torch.ops.ovs_kernels.transport_map(
        cost, distributions, b, epsilon, max_iter, tol, exact_iters, readout, domain, normalize, check, return_info
    )
    return (result, _info(errors, status)) if return_info else result
