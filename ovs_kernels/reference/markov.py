"""Definition of `doubly_stochastic` and `markov_velocity`, in plain PyTorch.

Written to be read beside the equations, not to be fast. Any float dtype, any device; run it in float64 to get
the numbers that the kernels are held to.
"""

import math
from typing import Any

import torch
from torch import Tensor

# A sum or a maximum below the smallest normal float32 counts as zero: its inverse would not exist in float32.
SMALLEST_SUM = 1.1754943508222875e-38

# Keeps the interpolation of a crossing finite where the state hardly moves.
SMALLEST_STEP = 1e-6


def inverse(sums: Tensor) -> Tensor:
    """1 / sums, 0 where there is nothing to divide by."""
    usable = sums >= SMALLEST_SUM
    return torch.where(usable, 1 / torch.where(usable, sums, 1), 0)


def doubly_stochastic(attention: Tensor, *, n_iter: int) -> tuple[Tensor, Tensor, Tensor]:
    """Iterative proportional fitting as two vectors.

    ::

        r = 1;  t = A^T r
        repeat n_iter times:   c = 1 / t;   r = 1 / (A c);   t = A^T r
        T = diag(r) A diag(c)

    which is dividing the matrix by its column sums, then by its row sums, n_iter times.

    Args:
        attention: [N, N] float, A >= 0.
        n_iter: iterations; with 0, r = c = 1.

    Returns:
        r [N], c [N], and the column sums of T [N]. A row or column whose sum is below SMALLEST_SUM has the factor 0.
    """
    r, c = attention.new_ones(attention.shape[0]), attention.new_ones(attention.shape[0])
    t = attention.sum(0)
    for _ in range(n_iter):
        c = inverse(t)
        r = inverse(attention @ c)
        t = r @ attention
    return r, c, c * t


def column_error(c: Tensor, column_sums: Tensor) -> Tensor:
    """Largest |column sum of T - 1| over the columns that are not empty, a float64 scalar; 0 where there is none."""
    error = torch.where(c > 0, (column_sums - 1).abs(), 0).double()
    return error.max() if error.numel() else error.sum()


def sharpen(attention: Tensor, temperature: float) -> Tensor:
    """softmax_j(log A_ij / temperature) for every row: A^(1 / temperature), rows summing to 1. An empty row stays."""
    if attention.numel() == 0:
        return attention.clone()
    largest = attention.amax(1, keepdim=True)
    powers = (attention * inverse(largest)).pow_(1 / temperature)
    return powers.mul_(inverse(powers.sum(1, keepdim=True)))


def scaled(state: Tensor, state_scale: str) -> Tensor:
    """What the rules look at: the state [C, N] divided by its maximum per class, times N, or as it is."""
    if state_scale == "max" and state.numel():
        return state * inverse(state.amax(1, keepdim=True))
    return state * state.shape[1] if state_scale == "N" else state


def markov_times(
    attention: Tensor,
    r: Tensor,
    c: Tensor,
    distributions: Tensor,
    *,
    threshold: float,
    max_steps: int,
    rule: str,
    interpolate: bool,
    state_scale: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Runs a Markov chain from every distribution and notes when it reaches each place.

    ::

        F_0 = f;   F_l = ((F_{l-1} * r) A) * c;   g_l = F_l scaled (to maximum 1, times N, or not at all)

        first_passage   the smallest l >= 0 with g_l > threshold, and with `interpolate`, where l >= 1,
                        l - (g_l - threshold) / (D + 1e-6),  D = g_l - g_{l-1}; for l = 1 and "max" 1 - threshold
        delta_literal   the smallest l >= 1 with |g_l - g_{l-1}| <= threshold
        settling        1 + the largest l >= 1 with |g_l - g_{l-1}| > threshold, 1 where there is none

    A class stops when its times can change no more: when all is reached (first_passage, delta_literal; a column
    with c = 0 is empty and never reached), or its mass is lost (first_passage), or when g spans no more than the
    threshold over the columns that are not empty (settling: with column sums of 1, averaging cannot widen that).

    Args:
        attention: [N, N] float, A.
        r: [N] row factors.
        c: [N] column factors.
        distributions: [C, N] float, f, not negative, with some mass in every class.
        threshold: above 0.
        max_steps: steps at most.
        rule: "first_passage", "delta_literal" or "settling".
        interpolate: of first_passage.
        state_scale: "max", "none" or "N".

    Returns:
        times [C, N], max_steps where a place was not reached; steps that each class took [C] int32; how many places
        of each class were not reached (settling: still changing at step max_steps) [C] int64.
    """
    state = scaled(distributions, "max") if state_scale == "max" else distributions
    last = scaled(state, state_scale)
    times = torch.full_like(last, float(max_steps))
    done = last.new_zeros(last.shape, dtype=torch.bool)
    live = c > 0
    if rule == "first_passage":
        done = last > threshold
        times = torch.where(done, 0, times)
        open_class = (~done & live).any(1)
    elif rule == "settling":
        times = torch.ones_like(last)
        open_class = _span(last) > threshold
    else:
        open_class = torch.ones(len(last), dtype=torch.bool, device=last.device) & (last.shape[1] > 0)
    steps = torch.zeros(len(last), dtype=torch.int32, device=last.device)
    unsettled = done.new_zeros(done.shape)
    for step in range(1, max_steps + 1):
        rows = open_class.nonzero()[:, 0]
        if len(rows) == 0:
            break
        moved = ((state[rows] * r) @ attention) * c
        before, now = last[rows], scaled(moved, state_scale)
        state[rows] = now if state_scale == "max" else moved  # divided in each step, so that nothing underflows
        last[rows] = now
        steps[rows] = step
        change = now - before
        if rule == "settling":
            unsettled[rows] = change.abs() > threshold
            times[rows] = torch.where(unsettled[rows], step + 1.0, times[rows])
            open_class[rows] = _span(now[:, live]) > threshold
            continue
        met = (now > threshold if rule == "first_passage" else change.abs() <= threshold) & ~done[rows]
        reached = torch.full_like(now, float(step))
        if rule == "first_passage" and interpolate:
            slope = 1 - threshold if step == 1 and state_scale == "max" else change
            reached = step - (now - threshold) / (slope + SMALLEST_STEP)
        times[rows] = torch.where(met, reached, times[rows])
        done[rows] |= met
        open_class[rows] = (~done[rows]).any(1)
        if rule == "first_passage":
            open_class[rows] = (~done[rows] & live).any(1) & (moved > 0).any(1)
    missed = (unsettled & open_class[:, None] if rule == "settling" else ~done).sum(1)
    return times, steps, missed


def _span(values: Tensor) -> Tensor:
    """Largest minus smallest of each row [C, N] -> [C]; 0 for empty rows."""
    return values.amax(1) - values.amin(1) if values.shape[1] else values.new_zeros(len(values))


def markov_velocity(
    attention: Tensor,
    r: Tensor,
    c: Tensor,
    distributions: Tensor,
    *,
    rule: str,
    min_time: float,
    **chain: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """How fast the chain of `markov_times`, started at each distribution, comes to each place.

    ::

        velocity = 1 / max(time, min_time)        settling: the time itself, so that the slowest class is the largest

    Args:
        attention: [N, N] float, A.
        r: [N] row factors, of `doubly_stochastic`.
        c: [N] column factors.
        distributions: [C, N] float, f.
        rule: see `markov_times`.
        min_time: the time of a place that counts as reached at once.
        **chain: threshold, max_steps, interpolate and state_scale of `markov_times`.

    Returns:
        velocity [C, N], times [C, N], steps [C] int32, places not reached [C] int64. A class without mass: -Inf, Inf,
        0, N. One with a negative, NaN or infinite entry: NaN, NaN, 0, N; and so every class where r or c holds a NaN.
    """
    num_classes, num_nodes = distributions.shape
    valid = ((distributions >= 0) & (distributions < math.inf)).all(1) & ~(r.isnan() | c.isnan()).any()
    mass = (valid[:, None] & (distributions >= SMALLEST_SUM)).any(1)
    rows = mass.nonzero()[:, 0]
    found = markov_times(attention, r, c, distributions[rows], rule=rule, **chain)
    times = torch.where(valid[:, None], math.inf, math.nan).to(distributions.dtype).repeat(1, num_nodes)
    times[rows] = found[0]
    steps = torch.zeros(num_classes, dtype=torch.int32, device=distributions.device)
    steps[rows] = found[1]
    missed = torch.full((num_classes,), num_nodes, dtype=torch.int64, device=distributions.device)
    missed[rows] = found[2]
    velocity = times if rule == "settling" else 1 / times.clamp(min=min_time)
    return torch.where((valid & ~mass)[:, None], -math.inf, velocity), times, steps, missed
