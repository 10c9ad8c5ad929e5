"""Inputs of the tests of `dense_crf` and `permutohedral_filter`, and oracles that share no code with the package.

`Lattice` is the permutohedral lattice as loops and a dictionary; `mean_field` takes any kernel matrices, those
of the lattice (its response to unit vectors) or the true Gaussians of `gaussian_matrix`.
"""

import math

import numpy as np
import torch

from ovs_kernels.testing import synthetic_scene

SINGLE, DOUBLE = 2e-5, 1e-9

PNP = {"gaussian_sxy": 3.0, "bilateral_sxy": 50.0, "bilateral_srgb": 5.0}


def scene(height, width, num_classes, seed, sharpness=30.0):
    """image [3, H, W] uint8 and probabilities [C, H, W] float32."""
    image, scores, _ = synthetic_scene(height, width, num_classes, seed)
    return (image * 255).round().to(torch.uint8), (sharpness * scores).softmax(0)


class Lattice:
    """exp(-|f_i - f_j|^2 / 2) through a permutohedral lattice, one point and one vertex after the other."""

    def __init__(self, features):
        self.d = len(features[0])
        self.points = [self._simplex(point) for point in features]
        self.keys = sorted({key for point in self.points for key in point})

    def _simplex(self, point):
        """{vertex: weight}. Vertices are d + 1 integers with one remainder modulo d + 1 and the sum 0."""
        d = self.d
        e = np.zeros(d + 1)
        for k in range(d):
            # Feature k moves the first k + 1 coordinates up and coordinate k + 1 down by as much together.
            length = point[k] * (math.sqrt(2 / 3) * (d + 1)) / math.sqrt((k + 1) * (k + 2))
            e[: k + 1] += length
            e[k + 1] -= (k + 1) * length
        e = np.round(e * 2**20) / 2**20
        nearest = np.round(e / (d + 1)) * (d + 1)
        order = sorted(range(d + 1), key=lambda i: (-(e - nearest)[i], i))
        excess = round(nearest.sum() / (d + 1))
        for i in order[len(order) - excess :] if excess > 0 else order[:-excess]:
            nearest[i] -= math.copysign(d + 1, excess)
        residual = e - nearest
        order = sorted(range(d + 1), key=lambda i: (-residual[i], i))
        ranked = residual[order]
        weights = {}
        for r in range(d + 1):
            # Vertex r: r more in all coordinates, and the r with the smallest residuals a full turn back.
            vertex = nearest + r
            vertex[order[d + 1 - r :]] -= d + 1
            share = ranked[d - r] - ranked[d + 1 - r] if r else d + 1 - (ranked[0] - ranked[d])
            weights[tuple(int(v) for v in vertex)] = share / (d + 1)
        return weights

    def filter(self, values):
        """[N, C] float64 -> [N, C]."""
        d = self.d
        at = {key: np.zeros(values.shape[1]) for key in self.keys}
        for weights, value in zip(self.points, values, strict=True):
            for key, weight in weights.items():
                at[key] += weight * value
        zero = np.zeros(values.shape[1])
        for axis in range(d + 1):
            step = np.full(d + 1, -1)
            step[axis] = d
            at = {
                key: old + 0.5 * (at.get(tuple(np.add(key, step)), zero) + at.get(tuple(np.subtract(key, step)), zero))
                for key, old in at.items()
            }
        return np.array([sum(w * at[key] for key, w in weights.items()) for weights in self.points]) / (1 + 2.0**-d)

    def matrix(self):
        """[N, N]."""
        return self.filter(np.eye(len(self.points)))


def gaussian_matrix(features):
    """exp(-|f_i - f_j|^2 / 2), [N, N]."""
    features = np.asarray(features, dtype=np.float64)
    return np.exp(-0.5 * ((features[:, None] - features[None]) ** 2).sum(-1))


def position_features(height, width, *sxy):
    sx, sy = sxy if len(sxy) == 2 else sxy * 2
    return [[x / sx, y / sy] for y in range(height) for x in range(width)]


def bilateral_features(image, sxy, srgb):
    """image [3, H, W] of 0 to 255."""
    image = np.asarray(image, dtype=np.float64)
    _, height, width = image.shape
    return [[x / sxy, y / sxy, *(image[:, y, x] / srgb)] for y in range(height) for x in range(width)]


def normalized(matrix, normalization="symmetric"):
    n = matrix.sum(1) + 1e-20
    before, after = {"none": (0, 0), "symmetric": (0.5, 0.5), "before": (1, 0), "after": (0, 1)}[normalization]
    return n[:, None] ** -after * matrix * n[None, :] ** -before


def softmax(rows):
    weights = np.exp(rows - rows.max(1, keepdims=True))
    return weights / weights.sum(1, keepdims=True)


def mean_field(energies, kernels, compat, iterations):
    """energies [N, C], normalised kernels [N, N], tables of penalties [C, C] (Potts of weight w: -w I)."""
    q = softmax(-energies)
    for _ in range(iterations):
        q = softmax(-energies - sum(kernel @ q @ table for kernel, table in zip(kernels, compat, strict=True)))
    return q


def potts(weight, num_classes):
    return -weight * np.eye(num_classes)


def energies_of(probabilities, clip=1e-5):
    """[C, H, W] -> [N, C] float64."""
    clipped = np.clip(np.nan_to_num(np.asarray(probabilities, dtype=np.float64), nan=0.0), clip, 1.0)
    return -np.log(clipped).reshape(len(probabilities), -1).T


def as_maps(rows, height, width):
    """[N, C] -> [C, H, W] tensor."""
    return torch.from_numpy(np.ascontiguousarray(rows.T)).reshape(-1, height, width)
