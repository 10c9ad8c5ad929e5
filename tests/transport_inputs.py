"""Inputs of the `sinkhorn` and `transport_map` tests, and a second witness for both: NumPy, one class at a time."""

import numpy as np
import torch

# Float32 against float64, as a share of the largest magnitude: maps, and the mass of plans. Seen: 2e-6.
SINGLE = 1e-5
# Like SINGLE for potentials, in units of epsilon (a relative error of the plan).
POTENTIAL = 2e-5
# Like SINGLE, in float64. Seen: 1e-13.
DOUBLE = 1e-11


def costs(num_rows, num_columns, seed=1, scale=1.0):
    """[N, M] float32 in [0, scale), nothing special about them."""
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.rand(num_rows, num_columns, generator=generator)


def attention(side, seed=1, regions=4):
    """Self-attention of a picture of side x side patches: blocks of regions, near patches, noise; rows sum to 1."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    places = torch.stack((rows, columns), -1).reshape(-1, 2).float()
    centres = torch.rand(regions, 2, generator=generator) * side
    region = torch.cdist(places, centres).argmin(1)
    logits = 2.0 * (region[:, None] == region[None]).float() + torch.randn(side**2, side**2, generator=generator)
    logits += 4.0 * torch.exp(-(torch.cdist(places, places) ** 2) / 4.0)
    return logits.softmax(1)


def distributions(num_classes, num_rows, seed=2, zeros=True):
    """[C, N] float32, rows of mass 1: a few large entries, many small ones, with `zeros` a third exactly zero."""
    generator = torch.Generator().manual_seed(seed)
    a = torch.rand(num_classes, num_rows, generator=generator) ** 4 + 1e-4
    if zeros and num_rows > 3:
        a[:, 1::3] = 0.0
    return a / a.sum(1, keepdim=True)


def unit(marginal):
    """Float64 with mass 1."""
    wide = np.asarray(marginal, dtype=np.float64)
    return wide / wide.sum()


def column_marginals(b, num_classes, num_columns):
    """[C, M] float64 of mass 1."""
    if b is None:
        return np.full((num_classes, num_columns), 1.0 / num_columns)
    return np.stack([unit(row) for row in np.broadcast_to(b.numpy(), (num_classes, num_columns))])


def logsumexp(x, axis):
    """The logarithm of sums of exponentials, relative to the largest."""
    top = x.max(axis, keepdims=True)
    return np.squeeze(np.log(np.exp(x - top).sum(axis, keepdims=True)) + top, axis)


def plans(cost, a, b=None, *, epsilon=0.1, iterations=50):
    """Plans [C, N, M] of mass 1 in float64 and row errors [C, iterations], in logarithms."""
    wide, made, errors = cost.double().numpy(), [], []
    for one, two in zip(a.numpy(), column_marginals(b, *a.shape[:1], cost.shape[1]), strict=True):
        one = unit(one)
        g = np.zeros(cost.shape[1])
        history = []
        with np.errstate(divide="ignore"):
            for _ in range(iterations):
                f = epsilon * (np.log(one) - logsumexp((g - wide) / epsilon, axis=1))
                g = epsilon * (np.log(two) - logsumexp((f[:, None] - wide) / epsilon, axis=0))
                history.append(np.abs(np.exp((f[:, None] + g - wide) / epsilon).sum(1) - one).sum())
        made.append(np.exp((f[:, None] + g - wide) / epsilon))
        errors.append(history)
    return np.stack(made), np.array(errors)


def read(cost, plan, readout):
    """The read-outs of plans [C, N, M]."""
    paid = cost.double().numpy() * plan
    return {"receiver": paid.sum(1), "source": paid.sum(2), "plan_cost": paid.sum((1, 2))}[readout]


def plan_of(cost, f, g, epsilon=0.1):
    """Plans [C, N, M] of potentials, in float64."""
    f, g = f.cpu().double(), g.cpu().double()
    return torch.exp((f[:, :, None] + g[:, None] - cost.double()) / epsilon)
