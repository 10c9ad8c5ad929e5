"""Inputs of the `markov` tests, and second witnesses in NumPy float64: the matrix rewritten, T formed, plain loops."""

import numpy as np
import torch


def attention(num_nodes, seed=1, *, sharpness=8.0):
    """[N, N] float32, rows that sum to 1: softmax of distances between random places, and some noise."""
    generator = torch.Generator().manual_seed(seed)
    places = torch.rand(num_nodes, 2, generator=generator)
    logits = -sharpness * torch.cdist(places, places) + 0.5 * torch.randn(num_nodes, num_nodes, generator=generator)
    return torch.softmax(logits, 1)


def distributions(num_classes, num_nodes, seed=2, *, share=0.1):
    """[C, N] float32, mostly zero: what is left of the scores of a class after its weak patches were dropped."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(num_classes, num_nodes, generator=generator) ** 2
    values *= torch.rand(num_classes, num_nodes, generator=generator) < share
    if num_nodes:
        values[torch.arange(num_classes), torch.arange(num_classes) % num_nodes] = 1.0
        values /= values.sum(1, keepdim=True)
    return values


def rewritten(matrix, n_iter):
    """T [N, N]: columns, then rows divided by their sums, again and again. Empty ones stay."""
    t = np.asarray(matrix, np.float64)
    for _ in range(n_iter):
        for axis in (0, 1):
            sums = t.sum(axis, keepdims=True)
            t = t / np.where(sums > 0, sums, 1.0)
    return t


def scale(state, kind):
    if kind == "max":
        return state / state.max() if state.max() > 0 else state * 0.0
    return state * (len(state) if kind == "N" else 1.0)


def chain(t, start, steps, kind="max"):
    """[steps + 1, N]: the scaled states."""
    states, state = [scale(start, kind)], np.asarray(start, np.float64)
    for _ in range(steps):
        state = state @ t
        if kind == "max" and state.max() > 0:
            state = state / state.max()
        states.append(scale(state, kind))
    return np.stack(states)


def first_passage(states, threshold, interpolate, kind="max"):
    """[N] times of one class, the last step where it was never reached; and how many places were not."""
    steps, times, missed = len(states) - 1, [], 0
    for series in states.T:
        above = np.flatnonzero(series > threshold)
        if len(above) == 0:
            times.append(float(steps))
            missed += 1
            continue
        step = int(above[0])
        time = float(step)
        if step > 0 and interpolate:
            first = step == 1 and kind == "max"
            slope = 1 - threshold if first else series[step] - series[step - 1]
            time -= (series[step] - threshold) / (slope + 1e-6)
        times.append(time)
    return np.array(times), missed


def delta_literal(states, threshold):
    """[N] first steps with a change of at most the threshold; how many places had none."""
    still = np.abs(np.diff(states, axis=0)) <= threshold
    times = np.where(still.any(0), still.argmax(0) + 1.0, len(states) - 1.0)
    return times, int((~still.any(0)).sum())


def settling(states, threshold):
    """[N] one more than the last step with a change above the threshold; how many places change at the end."""
    moving = np.abs(np.diff(states, axis=0)) > threshold
    last = len(moving) - moving[::-1].argmax(0)
    return np.where(moving.any(0), last + 1.0, 1.0), int(moving[-1].sum())


def times_of(
    matrix, starts, *, n_ipf=15, threshold=0.3, max_steps=40, rule="first_passage", interpolate=True, kind="max"
):
    """[C, N] times and [C] places not reached, by forming T and taking every step."""
    t = rewritten(matrix, n_ipf)
    found = []
    for start in np.asarray(starts, np.float64):
        states = chain(t, start, max_steps, kind)
        if rule == "first_passage":
            found.append(first_passage(states, threshold, interpolate, kind))
        else:
            found.append((delta_literal if rule == "delta_literal" else settling)(states, threshold))
    return np.stack([times for times, _ in found]), np.array([missed for _, missed in found])
