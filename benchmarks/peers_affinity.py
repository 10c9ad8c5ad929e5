"""What `affinity_pool` is measured against: the matrix as published, in place, and in rows that stay in the cache.

Each takes features [N, D] and a guide [N, G] and returns [N, D].
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize, threshold_

THRESHOLD, BETA, GAMMA, EPSILON = 0.2, 1.2, 3.0, 1e-6
EXCLUDED = -1e30  # finite: a softmax over it is as fast as over other numbers
# Rows that the last peers of each form take at a time.
CHUNKS = (256, 512)


def published_clip_dinoiser(features: Tensor, guide: Tensor) -> Tensor:
    """The whole matrix, entries below the threshold set to zero through a mask."""
    unit = normalize(guide, dim=1)
    affinity = unit @ unit.t()
    affinity[affinity < THRESHOLD] = 0.0
    return affinity @ features / (affinity.sum(1, keepdim=True) + EPSILON)


def in_place_clip_dinoiser(features: Tensor, guide: Tensor) -> Tensor:
    """The whole matrix in one buffer, and as few passes over it as there are operators for."""
    unit = normalize(guide, dim=1)
    affinity = threshold_(unit @ unit.t(), THRESHOLD, 0.0)
    return torch.mm(affinity, features).div_(affinity.sum(1, keepdim=True).add_(EPSILON))


def rows_clip_dinoiser(features: Tensor, guide: Tensor, chunk: int) -> Tensor:
    """Some rows of the matrix at a time, in a buffer that is used again."""
    unit = normalize(guide, dim=1)
    out = torch.empty_like(features)
    buffer = features.new_empty(min(chunk, len(features)), len(features))
    for rows, part in zip(unit.split(chunk), out.split(chunk), strict=True):
        affinity = torch.mm(rows, unit.t(), out=buffer[: len(rows)])
        threshold_(affinity, THRESHOLD, 0.0)
        torch.mm(affinity, features, out=part)
        part.div_(affinity.sum(1, keepdim=True).add_(EPSILON))
    return out


def published_proxyclip(features: Tensor, guide: Tensor) -> Tensor:
    """The whole matrix, its mean, a mask of -Inf, and softmax."""
    unit = normalize(guide, dim=1)
    scores = unit @ unit.t()
    scores = (scores - BETA * scores.mean()) * GAMMA
    scores[scores < 0.0] = -torch.inf
    return torch.softmax(scores, dim=1) @ features


def _border(unit: Tensor) -> float:
    """BETA times the mean of the matrix, without the matrix."""
    return float(BETA * unit.double().sum(0).square().sum() / len(unit) ** 2)


def in_place_proxyclip(features: Tensor, guide: Tensor) -> Tensor:
    """The whole matrix in one buffer; softmax does not see a shift of all scores."""
    unit = normalize(guide, dim=1)
    scores = threshold_(unit @ unit.t(), _border(unit), EXCLUDED).mul_(GAMMA)
    return torch.mm(torch.softmax(scores, dim=1, out=scores), features)


def rows_proxyclip(features: Tensor, guide: Tensor, chunk: int) -> Tensor:
    """Some rows of the matrix at a time, in a buffer that is used again."""
    unit = normalize(guide, dim=1)
    border = _border(unit)
    scaled = unit * GAMMA
    out = torch.empty_like(features)
    buffer = features.new_empty(min(chunk, len(features)), len(features))
    for rows, part in zip(scaled.split(chunk), out.split(chunk), strict=True):
        scores = torch.mm(rows, unit.t(), out=buffer[: len(rows)])
        threshold_(scores, GAMMA * border, EXCLUDED)
        torch.mm(torch.softmax(scores, dim=1, out=scores), features, out=part)
    return out
