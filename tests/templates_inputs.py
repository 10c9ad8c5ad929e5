"""Inputs of the FLOSS tests, and second witnesses in NumPy float64: loops over places, templates and experts."""

import numpy as np
import torch
from windows_inputs import interpolation_matrix

UNIT = 2.0**-32
# Float32 against float64. Cosines are divided by the temperature, so their rounding counts by its reciprocal.
PROBABILITY = 2e-4


def features_for(shape, seed=1, dim=12, noise=0.5):
    """Patch features [*shape, dim] with neighbours that are alike: smooth fields and some noise."""
    generator = np.random.default_rng(seed)
    height, width = shape[-2:]
    coarse = generator.standard_normal((*shape[:-2], 3, 3, dim))
    rows, columns = interpolation_matrix(3, height), interpolation_matrix(3, width)
    smooth = np.einsum("yi,...ijd,xj->...yxd", rows, coarse, columns)
    return torch.tensor(smooth + noise * generator.standard_normal(smooth.shape), dtype=torch.float32)


def texts_for(num_templates, num_classes, seed=2, dim=12, spread=0.4):
    """Embeddings [M, K, dim]: a direction per class, and a deviation per template."""
    generator = np.random.default_rng(seed)
    classes = generator.standard_normal((1, num_classes, dim))
    deviations = spread * generator.standard_normal((num_templates, num_classes, dim))
    return torch.tensor(classes + deviations, dtype=torch.float32)


def unit(rows):
    rows = np.asarray(rows, np.float64)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def softmax(logits):
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def entropy(probabilities):
    logarithms = np.log(np.where(probabilities > 0, probabilities, 1.0))
    return -(probabilities * logarithms).sum(-1)


def stretched(maps, rows, columns):
    """[h, w, K] -> [rows, columns, K]."""
    vertical = interpolation_matrix(maps.shape[0], rows)
    horizontal = interpolation_matrix(maps.shape[1], columns)
    return np.einsum("yi,ijk,xj->yxk", vertical, maps, horizontal)


def pixel_values(patches, boxes, size, out_size):
    """[n, h, w, K] -> [Ho, Wo, K]: every window added to the frame, divided by the counts, resized."""
    total, count = np.zeros((*size, patches.shape[-1])), np.zeros((*size, 1))
    for window, (y0, x0, y1, x1) in zip(patches, boxes, strict=True):
        total[y0:y1, x0:x1] += stretched(window, y1 - y0, x1 - x0)
        count[y0:y1, x0:x1] += 1
    return stretched(total / count, *out_size)


def places_of(
    features, texts, temperature, boxes=None, size=None, out_size=None, interpolate="probabilities", groups=None
):
    """For each template the probabilities [places, K], by NumPy."""
    found = []
    for embeddings in unit(texts):
        patches = unit(features) @ embeddings.T / temperature
        if interpolate == "probabilities":
            patches = softmax(patches)
        if size is not None:
            patches = pixel_values(patches, boxes or [(0, 0, *size)], size, out_size or size)
        if interpolate == "logits":
            patches = softmax(patches)
        if groups is not None:
            queries = [np.flatnonzero(np.asarray(groups) == k) for k in range(max(groups) + 1)]
            patches = np.stack([patches[..., of_class].max(-1) for of_class in queries], -1)
        found.append(patches.reshape(-1, patches.shape[-1]))
    return found


def tally(places, num_classes):
    """Counts, mean entropies and mean probabilities [M, K], place by place."""
    counts, entropies, highest = np.zeros((3, len(places), num_classes))
    for m, probabilities in enumerate(places):
        for row, value in zip(probabilities, entropy(probabilities), strict=True):
            label = int(row.argmax())
            counts[m, label] += 1
            entropies[m, label] += value
            highest[m, label] += row[label]
    used = np.maximum(counts, 1)
    return counts.astype(np.int64), entropies / used, highest / used


def touched(bad, size):
    """[hw, ww]: pixels with a bad patch [h, w] among the 2 x 2 they are interpolated from, weight 0 included."""
    lows = []
    for n_in, n_out in zip(bad.shape, size, strict=True):
        source = np.maximum((np.arange(n_out) + 0.5) * n_in / n_out - 0.5, 0.0)
        lows.append(np.minimum(source.astype(int), n_in - 1))
    highs = [np.minimum(low + 1, n_in - 1) for low, n_in in zip(lows, bad.shape, strict=True)]
    return np.any([bad[np.ix_(rows, columns)] for rows in (lows[0], highs[0]) for columns in (lows[1], highs[1])], 0)


def expert_maps(window, experts, size, temperature, assume_normalized=False):
    """[K + 1, hw, ww, K] of one window [h, w, d]."""
    rows = np.asarray(window, np.float64) if assume_normalized else unit(window)
    logits = np.einsum("ijd,ekd->eijk", rows, np.asarray(experts, np.float64)) / temperature
    return np.stack([stretched(patches, *size) for patches in softmax(logits)])


def fused(maps, strategy="highest"):
    """Probabilities [hw, ww, K] and experts [hw, ww] of one window, pixel by pixel."""
    num_classes = maps.shape[-1]
    result, winners = maps[num_classes].copy(), np.full(maps.shape[1:3], num_classes)
    for y, x in np.ndindex(*winners.shape):
        here = maps[:, y, x]
        votes = [e for e in range(num_classes) if int(here[e].argmax()) == e]
        if strategy == "average":
            result[y, x] = here[:num_classes].mean(0)
        elif strategy == "average_conflicting" and votes:
            result[y, x] = here[votes].mean(0)
        elif votes and (strategy == "highest" or (strategy == "default_on_conflict" and len(votes) == 1)):
            winners[y, x] = max(votes, key=lambda e, here=here: here[e, e])
            result[y, x] = here[winners[y, x]]
    return result, winners
