"""Inputs of the `joint_bilateral_upsample` tests, and a second witness: a loop over pixels and nodes in NumPy.

The witness places pixels with exact fractions and rounds them by the words of the documentation.
"""

import math
from fractions import Fraction

import numpy as np
import torch

from ovs_kernels.testing import synthetic_scene

HALF = Fraction(1, 2)

# Float32 against float64, as a share of the largest magnitude.
SINGLE = 2e-5
# The same for the gradient, which adds up to some thousand pixels per node.
SINGLE_GRADIENT = 2e-5
# Like both, in float64.
DOUBLE = 1e-12


def nearest(position):
    """The nearest integer, halves rounded up."""
    return math.floor(position + HALF)


def places(num_nodes, num_pixels):
    """p_low of every pixel, and the pixel under every node, along one axis."""
    low = [(y + HALF) * num_nodes / num_pixels - HALF for y in range(num_pixels)]
    centre = [nearest((q + HALF) * num_pixels / num_nodes - HALF) for q in range(num_nodes)]
    return low, [min(max(y, 0), num_pixels - 1) for y in centre]


def weights_of(guide, low_size, sigma_spatial=1.0, sigma_range=0.1, radius=2):
    """Exponents of all pairs, [H, W, h, w] float64: -inf where a node is outside of the window or has no say.

    guide: [3, H, W], uint8 or float.
    """
    colours = np.asarray(guide, np.float64) / (255 if np.asarray(guide).dtype == np.uint8 else 1)
    _, height, width = colours.shape
    (rows, row_centres), (columns, column_centres) = places(low_size[0], height), places(low_size[1], width)
    exponents = np.full((height, width, *low_size), -np.inf)
    spatial = np.full((height, width, *low_size), -np.inf)
    for y in range(height):
        for x in range(width):
            near = [
                (qy, qx)
                for qy in range(nearest(rows[y]) - radius, nearest(rows[y]) + radius + 1)
                for qx in range(nearest(columns[x]) - radius, nearest(columns[x]) + radius + 1)
                if 0 <= qy < low_size[0] and 0 <= qx < low_size[1]
            ]
            for qy, qx in near:
                squared = float((rows[y] - qy) ** 2 + (columns[x] - qx) ** 2)
                spatial[y, x, qy, qx] = -squared / (2 * sigma_spatial**2)
                with np.errstate(over="ignore", invalid="ignore"):
                    difference = colours[:, y, x] - colours[:, row_centres[qy], column_centres[qx]]
                    exponent = spatial[y, x, qy, qx] - (difference**2).sum() / (2 * sigma_range**2)
                if np.isfinite(exponent):
                    exponents[y, x, qy, qx] = exponent
            if not np.isfinite(exponents[y, x]).any():
                exponents[y, x] = spatial[y, x]
    return exponents


def shares(exponents):
    """exp of the exponents [H, W, h, w], divided by the sum of a pixel."""
    with np.errstate(invalid="ignore"):
        weights = np.exp(exponents - exponents.max((2, 3), keepdims=True))
        return weights / weights.sum((2, 3), keepdims=True)


def upsampled(maps, guide, **window):
    """[C, h, w], finite, and [3, H, W] -> [C, H, W] float64."""
    weights = shares(weights_of(guide, maps.shape[-2:], **window))
    return np.einsum("yxij,cij->cyx", weights, np.asarray(maps, np.float64))


def gradient(v_up, guide, low_size, **window):
    """[C, H, W] -> [C, h, w] float64."""
    return np.einsum("yxij,cyx->cij", shares(weights_of(guide, low_size, **window)), np.asarray(v_up, np.float64))


def inputs(num_classes, low_size, size, seed=1, kind="float"):
    """Maps [C, h, w] with an outlier, and a guide [3, H, W] with edges, noise and one pixel of a colour of its own."""
    generator = torch.Generator().manual_seed(seed)
    guide, _, _ = synthetic_scene(*size, 1, seed)
    guide[:, size[0] // 2, size[1] // 3] = torch.tensor([1.0, 0.0, 1.0])
    maps = torch.randn(num_classes, *low_size, generator=generator)
    maps[num_classes // 2, low_size[0] // 2, low_size[1] // 2] = 20.0
    return maps, (255 * guide).round().to(torch.uint8) if kind == "uint8" else guide


# name -> (classes, (h, w), (H, W), window)
CASES = {
    "one node, one pixel": (1, (1, 1), (1, 1), {}),
    "one node": (2, (1, 1), (5, 7), {}),
    "one row": (3, (1, 4), (1, 30), {"radius": 1}),
    "one column": (2, (5, 1), (33, 1), {}),
    "filter": (3, (9, 13), (9, 13), {"radius": 3}),
    "filter, radius 0": (2, (4, 5), (4, 5), {"radius": 0}),
    "factor 2": (6, (7, 9), (14, 18), {}),
    "factor 3": (7, (5, 6), (15, 18), {}),
    "factor 4": (5, (6, 5), (24, 20), {"radius": 3, "sigma_spatial": 1.5}),
    "factor 8": (9, (4, 5), (32, 40), {"radius": 3}),
    "factor 14": (3, (3, 3), (42, 42), {}),
    "factor 16": (2, (2, 3), (32, 48), {"radius": 1}),
    "factor 40 and 70": (2, (2, 1), (80, 70), {}),
    "factor 1.4 and 2.6": (4, (10, 7), (14, 18), {}),
    "factor 5.86 and 6.7": (3, (7, 6), (41, 40), {}),
    "factor 9.5 and 1": (3, (4, 11), (38, 11), {}),
    "one more pixel than nodes": (2, (8, 9), (9, 10), {}),
    "window larger than the grid": (3, (3, 4), (20, 17), {"radius": 15, "sigma_spatial": 5.0}),
    "radius 5": (2, (12, 11), (24, 33), {"radius": 5, "sigma_spatial": 2.0}),
    "radius 0": (4, (3, 4), (17, 22), {"radius": 0}),
    "narrow range": (3, (5, 5), (20, 20), {"sigma_range": 0.02}),
    "wide range": (3, (5, 5), (20, 20), {"sigma_range": 100.0}),
    "narrow in space": (3, (5, 5), (20, 20), {"sigma_spatial": 0.1}),
    "21 classes": (21, (4, 4), (18, 35), {}),
    "32 classes": (32, (3, 3), (9, 20), {"radius": 1}),
}


def case(name, dtype=torch.float32, kind="float"):
    """(maps, guide, window) of a case."""
    num_classes, low_size, size, window = CASES[name]
    maps, guide = inputs(num_classes, low_size, size, kind=kind)
    return maps.to(dtype), guide, window
