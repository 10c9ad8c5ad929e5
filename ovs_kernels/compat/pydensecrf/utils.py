"""`pydensecrf.utils`: unaries from labels and probabilities, features for `addPairwiseEnergy`."""

import logging
from collections.abc import Sequence
from numbers import Number

import numpy as np

__all__ = [
    "compute_unary",
    "create_pairwise_bilateral",
    "create_pairwise_gaussian",
    "softmax_to_unary",
    "unary_from_labels",
    "unary_from_softmax",
]


def unary_from_labels(labels: np.ndarray, n_labels: int, gt_prob: float, zero_unsure: bool = True) -> np.ndarray:
    """Energies that give the label of each pixel the probability `gt_prob` and share the rest.

    Args:
        labels: integers of any shape.
        n_labels: how many labels there are, the unsure one not counted.
        gt_prob: between 0 and 1.
        zero_unsure: label 0 means "could be any", label k the row k - 1. Otherwise label k is the row k.

    Returns:
        [n_labels, N] float32.

    Raises:
        AssertionError: `gt_prob` out of range.
        IndexError: a label without a row.
    """
    assert 0 < gt_prob < 1, f"unary_from_labels: gt_prob: expected a number in (0, 1), got {gt_prob}"
    labels = np.asarray(labels).ravel()
    unsure = labels == 0 if zero_unsure else np.zeros(labels.shape, bool)
    rows = labels.astype(np.int64) - (1 if zero_unsure else 0)
    wrong = ~unsure & ((rows < 0) | (rows >= n_labels))
    if wrong.any():
        most = n_labels if zero_unsure else n_labels - 1
        raise IndexError(f"unary_from_labels: labels: expected labels in [0, {most}], got {labels[wrong][0]}")
    other = -np.log((1.0 - gt_prob) / (n_labels - 1)) if n_labels > 1 else np.inf
    energies = np.full((n_labels, labels.size), other, dtype=np.float32)
    sure = np.flatnonzero(~unsure)
    energies[rows[sure], sure] = -np.log(gt_prob)
    energies[:, unsure] = -np.log(1.0 / n_labels)
    return energies


def compute_unary(labels: np.ndarray, M: int, GT_PROB: float = 0.5) -> np.ndarray:
    """The former name of `unary_from_labels`."""
    logging.warning("pydensecrf.compute_unary is deprecated, use unary_from_labels instead.")
    return unary_from_labels(labels, M, GT_PROB)


def unary_from_softmax(sm: np.ndarray, scale: float | None = None, clip: float | None = 1e-5) -> np.ndarray:
    """Negative logarithms of probabilities.

    Args:
        sm: [C, ...] probabilities.
        scale: in (0, 1]: probabilities are mixed with uniform ones, scale sm + (1 - scale) / C.
        clip: lower limit of the probabilities; None for none.

    Returns:
        [C, N] float32.

    Raises:
        AssertionError: `scale` out of range.
    """
    num_classes = sm.shape[0]
    if scale is not None:
        assert 0 < scale <= 1, f"unary_from_softmax: scale: expected a number in (0, 1], got {scale}"
        sm = scale * sm + (1 - scale) * (np.ones(sm.shape) / num_classes)
    if clip is not None:
        sm = np.clip(sm, clip, 1.0)
    return -np.log(sm).reshape(num_classes, -1).astype(np.float32)


def softmax_to_unary(sm: np.ndarray, GT_PROB: float = 1) -> np.ndarray:
    """The former name of `unary_from_softmax`; it does not clip."""
    logging.warning("pydensecrf.softmax_to_unary is deprecated, use unary_from_softmax instead.")
    return unary_from_softmax(sm, None if GT_PROB == 1 else GT_PROB, clip=None)


def _positions(sdims: Sequence[float], shape: Sequence[int]) -> np.ndarray:
    """[len(shape), *shape] float32: the index along each axis, divided by its standard deviation."""
    grid = np.indices(tuple(shape)).astype(np.float32)
    for axis, scale in enumerate(sdims):
        grid[axis] /= scale
    return grid


def create_pairwise_gaussian(sdims: Sequence[float], shape: Sequence[int]) -> np.ndarray:
    """Positions as features for `addPairwiseEnergy`, for any number of axes.

    Args:
        sdims: standard deviation along each axis of `shape`: rows first, where `sxy` has columns first.
        shape: of the image or volume.

    Returns:
        [len(shape), N] float32.
    """
    return _positions(sdims, shape).reshape(len(sdims), -1)


def create_pairwise_bilateral(
    sdims: Sequence[float], schan: float | Sequence[float], img: np.ndarray, chdim: int = -1
) -> np.ndarray:
    """Positions and values of an image as features for `addPairwiseEnergy`, for any number of axes and channels.

    Args:
        sdims: standard deviation along each axis of the image.
        schan: one for all channels, or one for each.
        img: the image.
        chdim: which axis of `img` is that of the channels; -1 if it has none.

    Returns:
        [len(sdims) + channels, N] float32.
    """
    channels = (img[np.newaxis] if chdim == -1 else np.moveaxis(img, chdim, 0)).astype(np.float32)
    if isinstance(schan, Number):
        channels /= schan
    else:
        for channel, scale in enumerate(schan):
            channels[channel] /= scale
    features = np.concatenate([_positions(sdims, channels.shape[1:]), channels])
    return features.reshape(features.shape[0], -1)
