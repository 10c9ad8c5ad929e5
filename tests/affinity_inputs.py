"""Inputs of the `affinity_pool` tests, and a second witness: one patch at a time, in NumPy float64."""

import functools

import numpy as np
import torch

FORMS = ("clip_dinoiser", "proxyclip")

# Float32 against float64, as a share of the largest entry.
SINGLE = 2e-5
DOUBLE = 1e-12


def unit_rows(guide):
    guide = np.asarray(guide, np.float64)
    return np.array([row / max(np.sqrt((row * row).sum()), 1e-12) for row in guide])


def by_hand(features, guide, form, threshold=0.2, beta=1.2, gamma=3.0, assume_normalized=False):
    """The pooled features of one window, patch by patch. [N, D], [N, G] -> [N, D] float64."""
    features, guide = np.asarray(features, np.float64), np.asarray(guide, np.float64)
    rows = guide if assume_normalized else unit_rows(guide)
    affinities = [[float((a * b).sum()) for b in rows] for a in rows]
    mean = sum(map(sum, affinities)) / len(rows) ** 2 if len(rows) else 0.0
    out = np.zeros(features.shape)
    for i, row in enumerate(affinities):
        weights = {}
        for j, a in enumerate(row):
            if form == "clip_dinoiser" and a >= threshold:
                weights[j] = a
            if form == "proxyclip" and (gamma * (a - beta * mean) >= 0 or i == j):
                weights[j] = gamma * (a - beta * mean)
        if form == "proxyclip":
            largest = max(weights.values())
            weights = {j: np.exp(score - largest) for j, score in weights.items()}
            total = sum(weights.values())
        else:
            total = sum(weights.values()) + 1e-6
        for j, weight in weights.items():
            out[i] += weight / total * features[j]
    return out


def in_a_gap(values, near):
    """A number about `near` that no value is close to: rounding then decides nothing."""
    around = np.sort(np.concatenate(([near - 0.1], values[np.abs(values - near) < 0.1], [near + 0.1])))
    widest = int(np.argmax(np.diff(around)))
    assert around[widest + 1] - around[widest] > 4e-6
    return float(around[widest] + around[widest + 1]) / 2


def settings(guide, form, threshold=0.2, beta=1.2, gamma=3.0, assume_normalized=False):
    """Arguments of the form, its threshold moved into a gap between the affinities."""
    rows = np.asarray(guide, np.float64) if assume_normalized else unit_rows(guide)
    affinities = (rows @ rows.T).ravel()
    arguments = {"form": form}
    if form == "clip_dinoiser":
        arguments["threshold"] = in_a_gap(affinities, threshold)
    else:
        mean = float(affinities.mean())
        arguments |= {"beta": in_a_gap(affinities, beta * mean) / mean, "gamma": gamma}
    return arguments | ({"assume_normalized": True} if assume_normalized else {})


def window(num_patches, num_features, num_guide, seed=1, clusters=4, noise=0.7):
    """Features and guide of patches in clusters, the guide's affinities spread over about -0.3 .. 1.

    Returns ([N, D], [N, G]) float32.
    """
    generator = torch.Generator().manual_seed(seed)
    members = torch.randint(clusters, (num_patches,), generator=generator).sort().values
    centres = torch.randn(clusters, num_guide, generator=generator) + 0.4
    guide = centres[members] + noise * torch.randn(num_patches, num_guide, generator=generator)
    guide = guide * (0.5 + 2 * torch.rand(num_patches, 1, generator=generator))
    features = torch.randn(num_patches, num_features, generator=generator)
    return features + members[:, None], guide


def cases():
    """name -> (features, guide) of one window."""
    found = {
        "two patches": window(2, 3, 4),
        "one feature": window(37, 1, 9),
        "one guide feature": window(21, 5, 1),
        "odd everything": window(53, 13, 29),
        "many clusters": window(90, 20, 40, clusters=30, noise=0.3),
        "one cluster": window(61, 17, 24, clusters=1),
        "no clusters": window(70, 24, 12, clusters=70),
        "many features": window(50, 210, 33),
        "many guide features": window(50, 9, 300),
    }
    # Sizes around the tiles and vectors of every level: panels of 48 patches, rows and columns of registers.
    for n in (3, 4, 5, 7, 8, 15, 16, 17, 47, 48, 49, 95, 96, 97, 145):
        found[f"{n} patches"] = window(n, 16, 19, seed=n)
    for d in (4, 11, 12, 16, 24, 31, 32, 48, 95, 96, 97, 192):
        found[f"{d} wide"] = window(51, d, 8, seed=d)
    return found


CASES = cases()


@functools.cache
def case(name, form):
    """(features, guide, arguments, the oracle's result)."""
    features, guide = CASES[name]
    arguments = settings(guide, form)
    return features, guide, arguments, by_hand(features, guide, **arguments)
