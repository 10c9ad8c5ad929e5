"""Inputs of the tests of `confusion_matrix` and `boundary_iou`, and two witnesses: loops, and erosions per class."""

import math

import numpy as np
import torch
from scipy import ndimage

# What torch and NumPy have in common.
DTYPES = ("bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64")


def label_maps(*shape, low=0, high=5, cell=6, noise=0.02, seed=1):
    """Two maps of regions that mostly agree, with single pixels strewn in; int64 [.., H, W] twice."""
    rng = np.random.default_rng(seed)
    height, width = shape[-2:]
    cells = (*shape[:-2], -(-height // cell), -(-width // cell))

    def regions(labels):
        return labels.repeat(cell, -2).repeat(cell, -1)[..., :height, :width].copy()

    first = rng.integers(low, high, cells)
    second = np.where(rng.random(cells) < 0.3, rng.integers(low, high, cells), first)
    maps = regions(first), np.roll(regions(second), (1, 2), (-2, -1))
    for labels in maps:
        strewn = rng.random(labels.shape) < noise
        labels[strewn] = rng.integers(low, high, int(strewn.sum()))
    return maps


def strewn(target, label, share, seed=2):
    """`target` with `label` at some pixels and in one corner."""
    target = target.copy()
    target[np.random.default_rng(seed).random(target.shape) < share] = label
    target[..., : target.shape[-2] // 3, : target.shape[-1] // 4] = label
    return target


def counted_one_by_one(prediction, target, num_classes, ignore_label=255, reduce_zero_label=False):
    """The matrix with its row and column of others, pixel by pixel in Python's integers."""
    matrix = [[0] * (num_classes + 1) for _ in range(num_classes + 1)]
    for p, t in zip(np.asarray(prediction).ravel().tolist(), np.asarray(target).ravel().tolist(), strict=True):
        p, t = int(p), int(t)
        if t == ignore_label or (reduce_zero_label and t == 0):
            continue
        if reduce_zero_label:
            t -= 1
        row = t if 0 <= t < num_classes else num_classes
        column = p if 0 <= p < num_classes else num_classes
        matrix[row][column] += 1
    return np.array(matrix, np.int64)


def published_distance(height, width, ratio):
    return max(1, round(ratio * math.sqrt(height**2 + width**2)))


def published_boundary(mask, distance):
    """The pixels of a mask [H, W] that erosions with a 3 x 3 square take, a frame of zeros around it."""
    framed = np.pad(mask, 1)
    square = np.ones((3, 3), bool)
    return mask & ~ndimage.binary_erosion(framed, square, iterations=distance)[1:-1, 1:-1]


def eroded_class_by_class(prediction, target, num_classes, ignore_label=255, reduce_zero_label=False, ratio=0.02):
    """Boundary pixels [3, C] of both, of the prediction, of the target, as published: a mask per class, eroded.

    Labels [H, W] or [B, H, W], signed integers of any size.
    """
    counts = np.zeros((3, num_classes), np.int64)
    prediction, target = (np.asarray(labels).astype(np.int64) for labels in (prediction, target))
    nothing = -(10**6)  # in no test a label
    ignored = target == ignore_label
    if reduce_zero_label:
        ignored |= target == 0
        target = target - 1
    target[ignored] = nothing
    prediction[ignored] = nothing
    shape = (-1, *target.shape[-2:])
    for p, t in zip(prediction.reshape(shape), target.reshape(shape), strict=True):
        distance = published_distance(*t.shape, ratio)
        for label in np.union1d(p, t):
            if not 0 <= label < num_classes:
                continue
            of_p, of_t = published_boundary(p == label, distance), published_boundary(t == label, distance)
            counts[:, label] += (of_p & of_t).sum(), of_p.sum(), of_t.sum()
    return counts


def as_tensors(*maps, dtype=None):
    """NumPy maps as tensors, in another NumPy dtype on request."""
    return tuple(torch.from_numpy(np.ascontiguousarray(m if dtype is None else m.astype(dtype))) for m in maps)


def assert_counts(actual, expected):
    """Equal integers, and a contiguous int64 tensor."""
    assert actual.dtype == torch.int64
    assert actual.is_contiguous()
    np.testing.assert_array_equal(actual.cpu().numpy(), expected)
