"""Definition of `dense_crf` and `permutohedral_filter`: mean field in a fully connected CRF, in plain PyTorch.

Written to be read beside the equations, not to be fast. Values in any float dtype on any device; positions in the
lattice are always worked out in float64, so that every dtype, device and kernel sees the same lattice.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# Positions are rounded to multiples of this, in units of the lattice. Everything after is exact, so which simplex
# holds a point, and which vertices exist, does not hang on the last bits of a division.
QUANTUM = 2.0**-20
# Coordinates of vertices are kept in 16 bits; a point needs room for its simplex and its neighbours around it.
KEY_RANGE = 32767
# Added to the response to ones before it divides.
NORM_EPSILON = 1e-20
# The exact Gaussian is cut at this many standard deviations; the mass outside is 6e-7.
EXACT_REACH = 5
# Energies beyond this (Inf too) count as this, NaN as plus this: finite, and far beyond what messages can outweigh.
LARGEST_ENERGY = 1e30


def largest_position(num_features: int) -> float:
    """Largest magnitude of a coordinate in the lattice, for D features."""
    return float(KEY_RANGE - 3 * (num_features + 1))


def _lengths(num_features: int) -> list[float]:
    """scale_k of `lattice_positions`."""
    factor = math.sqrt(2.0 / 3.0) * (num_features + 1)
    return [factor / math.sqrt((k + 1) * (k + 2)) for k in range(num_features)]


def lattice_reach(spans: Sequence[float]) -> float:
    """Largest magnitude of a coordinate in the lattice, of features between 0 and `spans`."""
    steps = [span * length for span, length in zip(spans, _lengths(len(spans)), strict=True)]
    return max(sum(steps), *((k + 1) * step for k, step in enumerate(steps)))


def lattice_positions(features: Tensor) -> Tensor:
    """Features on the hyperplane of D + 1 coordinates that sum to zero, where the lattice is regular.

    ::

        scale_k = sqrt(2/3) (D + 1) / sqrt((k + 1) (k + 2)),   c_k = scale_k f_k,   k = 0 .. D-1
        e_0     = sum_k c_k
        e_i     = sum_{k >= i} c_k - i c_{i-1},                i = 1 .. D

    so that a step of 1 in any direction of feature space is one of the same length, and a filter with the weights
    1/2, 1, 1/2 along D + 1 axes is close to exp(-|f|^2 / 2).

    Args:
        features: [N, D] float64.

    Returns:
        [N, D + 1] float64, multiples of QUANTUM.
    """
    num_features = features.shape[1]
    lengths = _lengths(num_features)
    position = features.new_empty(features.shape[0], num_features + 1)
    total = features.new_zeros(features.shape[0])
    for i in range(num_features, 0, -1):
        c = features[:, i - 1] * lengths[i - 1]
        position[:, i] = total - i * c
        total = total + c
    position[:, 0] = total
    return torch.round(position / QUANTUM) * QUANTUM


def _enclosing_simplex(position: Tensor) -> tuple[Tensor, Tensor]:
    """The D + 1 vertices of the simplex around each point, and the point's barycentric coordinates in it.

    The vertex of remainder 0 is the point rounded to multiples of D + 1; ranking the residuals (largest first, of equal
    ones the one that comes first) tells the simplex, and where the rounded coordinates do not sum to zero the
    ranks tell which to move.

    Args:
        position: [M, D + 1] float64.

    Returns:
        Keys [M, D + 1, D] int64 (a vertex is its first D coordinates, the last one follows) and weights
        [M, D + 1] float64.
    """
    count = position.shape[1]
    rounded = torch.round(position / count)
    residual = position - rounded * count
    order = torch.arange(count, device=position.device)
    mine, other = residual[:, :, None], residual[:, None, :]
    before = (other > mine) | ((other == mine) & (order[None, :] < order[:, None]))
    rank = before.sum(2) + rounded.sum(1, keepdim=True).long()
    wrap = torch.where(rank >= count, 1, torch.where(rank < 0, -1, 0))
    rank = rank - wrap * count
    base = (rounded.long() - wrap) * count
    sorted_residual = residual.new_empty(residual.shape).scatter_(1, rank, position - base)  # by rank
    steps = (sorted_residual[:, :-1] - sorted_residual[:, 1:]) / count  # rank k minus rank k + 1
    first = 1 - (sorted_residual[:, :1] - sorted_residual[:, -1:]) / count
    weights = torch.cat((first, steps.flip(1)), 1)
    remainder = order[None, :, None]  # vertex r is r away in all coordinates, the last r in rank one turn back
    keys = base[:, None, :] + remainder - torch.where(rank[:, None, :] > count - 1 - remainder, count, 0)
    return keys[:, :, :-1], weights


def _codes(keys: Tensor) -> Tensor:
    """A number for every row of keys, equal for equal rows: [M, D] -> [M]."""
    codes = keys.new_zeros(keys.shape[0])
    for column in keys.unbind(1):
        codes = torch.unique(codes * 2**17 + column + 2**16, return_inverse=True)[1]
    return codes


class PermutohedralLattice:
    """The vertices around a set of points, and the Gaussian filter exp(-|f_i - f_j|^2 / 2) through them.

    ::

        splat   a_v  = sum_i b_iv x_i                         b: barycentric coordinates
        blur    a_v <- a_v + (a_{v+n} + a_{v-n}) / 2          along each of the D + 1 axes n in turn;
                                                              vertices that no point touches count as zero
        slice   y_i  = sum_v b_iv a_v / (1 + 2^-D)

    A point whose features are not finite, or lie beyond `largest_position`, touches no vertex: its y is zero.

    Args:
        features: [N, D] float, D >= 1.
    """

    def __init__(self, features: Tensor):
        num_features = features.shape[1]
        position = lattice_positions(features.double())
        inside = (position.abs() <= largest_position(num_features)).all(1)
        keys, weights = _enclosing_simplex(position[inside])
        codes = _codes(keys.reshape(-1, num_features))
        self.num_vertices = int(codes.max()) + 1 if codes.numel() > 0 else 0
        self.vertices = codes.reshape(-1, num_features + 1)  # [M, D + 1], M points inside
        self.weights = weights
        self.inside = inside
        self.alpha = 1.0 / (1.0 + 2.0**-num_features)
        vertex_keys = keys.new_zeros(self.num_vertices, num_features)
        vertex_keys[codes] = keys.reshape(-1, num_features)
        self.neighbours = [
            (self._find(vertex_keys, axis, 1), self._find(vertex_keys, axis, -1)) for axis in range(num_features + 1)
        ]

    def _find(self, vertex_keys: Tensor, axis: int, sign: int) -> Tensor:
        """Number of the neighbour along an axis of every vertex, `num_vertices` where there is none."""
        step = torch.full_like(vertex_keys[:1], -1)
        if axis < step.shape[1]:
            step[0, axis] = step.shape[1]
        codes = _codes(torch.cat((vertex_keys, vertex_keys + sign * step)))
        number = codes.new_full((int(codes.max()) + 1 if codes.numel() > 0 else 0,), self.num_vertices)
        number[codes[: self.num_vertices]] = torch.arange(self.num_vertices, device=codes.device)
        return number[codes[self.num_vertices :]]

    def filter(self, values: Tensor, transpose: bool = False) -> Tensor:
        """[N, C] -> [N, C]; the transposed filter takes the axes of the blur in the opposite order."""
        weights = self.weights.to(values.dtype)
        at = values.new_zeros(self.num_vertices + 1, values.shape[1])  # the last one: no vertex, zero
        inside = values[self.inside]
        for r in range(weights.shape[1]):
            at.index_add_(0, self.vertices[:, r], weights[:, r, None] * inside)
        for one, two in reversed(self.neighbours) if transpose else self.neighbours:
            at[:-1] = at[:-1] + 0.5 * (at[one] + at[two])
        result = torch.zeros_like(values, memory_format=torch.contiguous_format)
        sliced = inside.new_zeros(inside.shape)
        for r in range(weights.shape[1]):
            sliced += weights[:, r, None] * at[self.vertices[:, r]]
        result[self.inside] = self.alpha * sliced
        return result


class ExactGaussian:
    """The filter exp(-dx^2 / (2 sx^2) - dy^2 / (2 sy^2)) over the pixels of an image, nothing outside of it.

    Cut at ceil(EXACT_REACH s) pixels along each axis.

    Args:
        size: H, W.
        sxy: (sx, sy).
        device: of the values.
    """

    def __init__(self, size: tuple[int, int], sxy: tuple[float, float], device: torch.device):
        self.size = size
        self.kernels = []
        for extent, sigma in ((size[0], sxy[1]), (size[1], sxy[0])):
            at = torch.arange(extent, dtype=torch.float64, device=device)
            distance = (at[:, None] - at[None, :]).abs()
            kernel = torch.exp(-0.5 * (distance / sigma) ** 2)
            self.kernels.append(torch.where(distance <= math.ceil(EXACT_REACH * sigma), kernel, 0.0))

    def filter(self, values: Tensor, transpose: bool = False) -> Tensor:
        """[N, C] -> [N, C]; it is its own transpose."""
        down, across = (kernel.to(values.dtype) for kernel in self.kernels)
        grid = values.reshape(*self.size, -1)
        return torch.einsum("yv,xu,vuc->yxc", down, across, grid).reshape(values.shape)


class NormalizedFilter:
    """A filter K between the factors of a normalisation, n = K 1 + NORM_EPSILON.

    ::

        "none"         K x
        "symmetric"    n^-1/2 K n^-1/2 x
        "before"       K n^-1 x
        "after"        n^-1 K x

    Args:
        kernel: with a method `filter(values, transpose)`.
        num_points: N.
        normalization: one of the four.
        like: a tensor of the dtype and device of the values.
    """

    def __init__(self, kernel, num_points: int, normalization: str, like: Tensor):
        self.kernel = kernel
        norm = kernel.filter(like.new_ones((num_points, 1), dtype=torch.float64)) + NORM_EPSILON
        power = {"none": (0.0, 0.0), "symmetric": (-0.5, -0.5), "before": (-1.0, 0.0), "after": (0.0, -1.0)}
        self.before, self.after = ((norm**p).to(like.dtype) for p in power[normalization])

    def filter(self, values: Tensor, transpose: bool = False) -> Tensor:
        """[N, C] -> [N, C]."""
        before, after = (self.after, self.before) if transpose else (self.before, self.after)
        return after * self.kernel.filter(before * values, transpose)


def permutohedral_filter(
    features: Tensor, values: Tensor, *, normalization: str = "none", transpose: bool = False
) -> Tensor:
    """Gaussian filter in feature space. features [N, D], values [N, C] -> [N, C] in the dtype of the values."""
    kernel = PermutohedralLattice(features)
    return NormalizedFilter(kernel, values.shape[0], normalization, values).filter(values, transpose)


def crf_features(size: tuple[int, int], scales: Sequence[float], planes: Tensor | None) -> Tensor:
    """(x / sx, y / sy, planes / their scales) of every pixel: float64 [N, 2 + F], N = H W row by row.

    Args:
        size: H, W.
        scales: 2 + F numbers.
        planes: [F, H, W], or None for F = 0.
    """
    device = None if planes is None else planes.device
    y, x = torch.meshgrid(*(torch.arange(extent, dtype=torch.float64, device=device) for extent in size), indexing="ij")
    stack = torch.stack((x, y)) if planes is None else torch.cat((torch.stack((x, y)), planes.double()))
    return stack.flatten(1).t() / torch.tensor(list(scales), dtype=torch.float64, device=device)


def log_unary(scores: Tensor, energies: bool, clip: float) -> Tensor:
    """Minus the unary energies: -E, or the logarithm of the probabilities cut to [clip, 1].

    A probability that is NaN counts as `clip`, an energy that is NaN as LARGEST_ENERGY.
    """
    if energies:
        return -scores.nan_to_num(LARGEST_ENERGY, LARGEST_ENERGY, -LARGEST_ENERGY).clamp(
            -LARGEST_ENERGY, LARGEST_ENERGY
        )
    return scores.nan_to_num(0.0).clamp(clip, 1.0).log()


def compatible(message: Tensor, compat: Tensor) -> Tensor:
    """What a filtered distribution adds to -E: [N, C] and a compatibility [], [C] or [C, C] -> [N, C].

    A number w is Potts's model with a penalty -w for equal labels: w message. A vector v has a penalty for each class,
    and a matrix m for each pair: -v message, -(m + m^T) / 2 message.
    """
    compat = compat.to(message)
    if compat.dim() == 0:
        return compat * message
    if compat.dim() == 1:
        return -compat * message
    return -message @ ((compat + compat.t()) / 2)


def dense_crf(
    image: Tensor,
    scores: Tensor,
    *,
    iterations: int,
    gaussian_sxy: Sequence[float] | None,
    bilateral_scales: Sequence[float] | None,
    exact: bool,
    features: Sequence[Tensor],
    compat: Sequence[Tensor],
    normalization: str,
    energies: bool,
    clip: float,
) -> Tensor:
    """Mean field.

    ::

        Q^0     = softmax_c(-E)
        Q^(t+1) = softmax_c(-E + sum_m compatible(K_m Q^t, compat_m))

    Args:
        image: [3, H, W] float, colours from 0 to 255.
        scores: [C, H, W] float: probabilities, or E with `energies`.
        iterations: steps, 0 or more.
        gaussian_sxy: (sx, sy) of the term over positions, or None for no such term.
        bilateral_scales: (sx, sy, sr, sg, sb) of the term over positions and colours, or None.
        exact: the first term by `ExactGaussian` instead of the lattice.
        features: [F, H, W] each, of further terms.
        compat: [], [C] or [C, C] of the terms in that order.
        normalization: see `NormalizedFilter`.
        energies: what `scores` are.
        clip: lowest probability.

    Returns:
        Q [C, H, W].
    """
    num_classes, *size = scores.shape
    kernels = []
    if gaussian_sxy is not None and exact:
        kernels.append(ExactGaussian(size, gaussian_sxy, scores.device))
    elif gaussian_sxy is not None:
        kernels.append(PermutohedralLattice(crf_features(size, gaussian_sxy, image[:0])))
    if bilateral_scales is not None:
        kernels.append(PermutohedralLattice(crf_features(size, bilateral_scales, image)))
    kernels += [PermutohedralLattice(planes.flatten(1).t()) for planes in features]
    logits = log_unary(scores, energies, clip).reshape(num_classes, -1).t()  # [N, C]
    filters = [NormalizedFilter(kernel, logits.shape[0], normalization, logits) for kernel in kernels]
    q = logits.softmax(1)
    for _ in range(iterations):
        total = logits
        for kernel, weight in zip(filters, compat, strict=True):
            total = total + compatible(kernel.filter(q), weight)
        q = total.softmax(1)
    return q.t().reshape(num_classes, *size).contiguous()
