"""Doubly stochastic scaling of an attention matrix, and the velocity of Markov chains on it."""

import dataclasses

import torch
from torch import Tensor

from . import _ops  # noqa: F401  (registers torch.ops.ovs_kernels)
from ._arrays import accepts_arrays


@dataclasses.dataclass(frozen=True)
class ScalingInfo:
    """How a scaling went.

    Attributes:
        column_error: scalar float64, the largest |column sum of T - 1| over the columns that are not empty.
        empty_rows: scalar int64, rows without mass: their factor is 0.
        empty_columns: scalar int64, likewise.
    """

    column_error: Tensor
    empty_rows: Tensor
    empty_columns: Tensor


@dataclasses.dataclass(frozen=True)
class MarkovInfo:
    """How the chains went.

    Attributes:
        times: [C, N] float, what the rule measured, in steps; `max_steps` where a place was not reached. Inf for a
            class without mass.
        steps: [C] int32, steps that each class took; `max_steps` where the cap ended it.
        unreached: [C] int64, places that were not reached ("settling": that still changed when the cap came).
        column_error: scalar float64, how far T is from doubly stochastic: see `ScalingInfo`.
        row_scale: [N], r of `doubly_stochastic`.
        column_scale: [N], c.
    """

    times: Tensor
    steps: Tensor
    unreached: Tensor
    column_error: Tensor
    row_scale: Tensor
    column_scale: Tensor


@accepts_arrays("attention")
def doubly_stochastic(
    attention: Tensor, *, n_iter: int = 15, check: bool = True, return_info: bool = False
) -> tuple[Tensor, Tensor] | tuple[Tensor, Tensor, ScalingInfo]:
    """Scales a matrix towards rows and columns that sum to one: iterative proportional fitting (Sinkhorn-Knopp).

    ::

        r = 1;  t = A^T r
        repeat n_iter times:   c = 1 / t;   r = 1 / (A c);   t = A^T r
        T = diag(r) A diag(c)

    That is dividing A by its column sums, then by its row sums, `n_iter` times, but the matrix is only read, once per
    iteration. The rows of T sum to 1; how far its columns are from that, `return_info` tells. It can be far where the
    attention is sharp: 15 iterations do not converge there.

    Args:
        attention: [N, N] float, not negative: attention A, row i the query, usually with rows that sum to 1.
        n_iter: iterations; 0 leaves the matrix as it is (r = c = 1).
        check: raise for an entry that is negative, NaN or infinite. On CUDA that waits for the device. Without it such
            an entry makes all of r and c NaN.
        return_info: also return a `ScalingInfo`.

    Returns:
        r [N] and c [N], float64 for a float64 matrix, else float32. With `return_info` a tuple of r, c and the info.

    Raises:
        TypeError: wrong kind or dtype of an argument.
        ValueError: wrong shape or range of an argument, or an entry that `check` refuses.
        RuntimeError: CUDA tensors, and a build without CUDA or for other cards.

    Devices/dtypes: CPU and CUDA; float32; float16 and bfloat16 (computed in float32, never copied); float64 (on CUDA by
        the reference).
    Differentiable: no.
    Deterministic: yes, on CPU for any number of threads.
    Empty rows and columns: one whose (scaled) sum is below 1.2e-38, the smallest normal float32, gets the factor 0, so
        its sum in T is 0.
    Memory: 32 vectors of N, on CUDA 264; a copy of a matrix that is not contiguous.
    Reference: DSLO, the doubly stochastic matrix by iterative proportional fitting. See
        `ovs_kernels.reference.markov`.

    Example:
        >>> import torch, ovs_kernels
        >>> attention = torch.tensor([[0.8, 0.2], [0.4, 0.6]])
        >>> r, c = ovs_kernels.doubly_stochastic(attention, n_iter=100)
        >>> (r[:, None] * attention * c).sum(0)
        tensor([1., 1.])
    """
    r, c, error = torch.ops.ovs_kernels.doubly_stochastic(attention, n_iter, check, return_info)
    if not return_info:
        return r, c
    return r, c, ScalingInfo(error.reshape(()), (r == 0).sum(), (c == 0).sum())


@accepts_arrays("attention", "distributions")
def markov_velocity(
    attention: Tensor,
    distributions: Tensor,
    *,
    n_ipf: int = 15,
    temperature: float = 1.0,
    threshold: float = 0.3,
    max_steps: int = 1000,
    rule: str = "first_passage",
    interpolate: bool = True,
    state_scale: str = "max",
    min_time: float = 1e-3,
    check: bool = True,
    return_info: bool = False,
) -> Tensor | tuple[Tensor, MarkovInfo]:
    """How fast each class spreads over the patches of an image along its attention: DSLO's maximum velocity.

    A Markov chain starts at each class's distribution and moves mass from queries to the keys they attend to, with the
    doubly stochastic T of `doubly_stochastic`, which is never formed::

        F_0 = f;   F_l = F_{l-1} T = ((F_{l-1} * r) A) * c;   g_l = F_l / max F_l

    Where g exceeds the threshold early, the class is near. All classes take a step together, and one that is finished
    is dropped.

    Args:
        attention: [N, N] float, not negative: attention A, row i the query, usually with rows that sum to 1.
        distributions: [C, N] float, not negative, any scale: where the chain of each class starts.
        n_ipf: iterations of `doubly_stochastic`; 0 runs the chain on A itself.
        temperature: sharpens (below 1) or flattens A first: softmax over each row of log A / temperature. Other values
            than 1 take a copy of the matrix.
        threshold: what the rule compares with; in (0, 1) with state_scale="max", else above 0.
        max_steps: steps at most, 1 to 2^24.
        rule: "first_passage": time is the first step l >= 0 with g > threshold. "delta_literal": the first l >= 1 at
            which g changes by at most the threshold, as the paper prints it. "settling": one more than the last step at
            which g changes by more than the threshold; the result is then the time itself, as the slowest class wins.
        interpolate: "first_passage" between two steps: l - (g_l - threshold) / (g_l - g_{l-1} + 1e-6); for l = 1 and
            state_scale="max" with 1 - threshold in the place of the difference.
        state_scale: what g is: "max", the state divided by its maximum; "none", the state; "N", the state times N.
        min_time: shortest time that counts, so that a patch reached at once has velocity 1 / min_time.
        check: raise for an entry that is negative, NaN or infinite. On CUDA that waits for the device. Without it such
            an entry of a distribution makes its class NaN, and one of the attention makes everything NaN.
        return_info: also return a `MarkovInfo`: times, steps, places that the cap left unreached, and the scaling.

    Returns:
        Velocity [C, N] in the dtype of `distributions`, 1 / max(time, min_time), where never reached 1 / max_steps;
        with "settling" the time. The largest class of a patch wins in every case. A class without mass is -Inf
        everywhere. With `return_info` a tuple of that and the info.

    Raises:
        TypeError: wrong kind or dtype of an argument.
        ValueError: wrong shape, range or device of an argument, or an entry that `check` refuses.
        RuntimeError: CUDA tensors, and a build without CUDA or for other cards.

    Devices/dtypes: CPU and CUDA; the attention decides: float32; float16 and bfloat16 (computed in float32, never
        copied); float64 (on CUDA by the reference).
    Differentiable: no.
    Deterministic: yes, on CPU for any number of threads.
    Empty rows and columns: as in `doubly_stochastic`: mass on an empty row is lost, an empty column is reached by no
        chain (its time is max_steps, or 0 where the chain starts on it) and keeps no class from finishing.
    Ties: where a state comes to the threshold slowly, rounding moves the time: see docs/markov.md.
    On CUDA: 16 steps are queued at a time, and after each batch it waits to learn whether any class still runs. While a
        graph is captured it queues all `max_steps` instead: give few, and check=False.
    Memory: three arrays of C x N, on CUDA ten at most, and what `doubly_stochastic` needs; a copy of the matrix where
        the temperature is not 1.
    Reference: DSLO, maximum velocity, with the first-passage rule of M2N2. See `ovs_kernels.reference.markov`.

    Example:
        >>> import torch, ovs_kernels
        >>> places = torch.arange(6.0)[:, None]
        >>> attention = torch.softmax(-torch.cdist(places, places), 1)         # patches in a row
        >>> seeds = torch.eye(6)[[0, 5]]                                       # a class at each end
        >>> ovs_kernels.markov_velocity(attention, seeds).argmax(0).tolist()
        [0, 0, 0, 1, 1, 1]
    """
    velocity, times, steps, unreached, r, c, error = torch.ops.ovs_kernels.markov_velocity(
        attention,
        distributions,
        n_ipf,
        temperature,
        threshold,
        max_steps,
        rule,
        interpolate,
        state_scale,
        min_time,
        check,
        return_info,
    )
    if not return_info:
        return velocity
    return velocity, MarkovInfo(times, steps, unreached, error.reshape(()), r, c)
