"""Definition of `knn_graph`: the symmetric k-nearest-neighbour graph of feature vectors, in plain PyTorch.

Written to be read beside the equations: dense N x N matrices. Any float dtype, any device; run it in float64 to get the
numbers that the kernels are held to.
"""

import torch
from torch import Tensor

# Smallest normal float32. A similarity or a directed weight below it counts as zero, in every dtype: the graph must
# not depend on whether the processor flushes denormal numbers.
SMALLEST_LINK = 1.1754943508222875e-38


def unit_rows(features: Tensor) -> Tensor:
    """Rows divided by their Euclidean norm; zero for a row that is zero or holds a NaN or an Inf.

    Args:
        features: [N, d] float.

    Returns:
        [N, d] in the dtype of `features`.
    """
    if features.numel() == 0:
        return features.clone()
    largest = features.abs().amax(1, keepdim=True)
    usable = (largest > 0) & torch.isfinite(largest)
    scaled = features / torch.where(usable, largest, 1.0)  # no square overflows or vanishes
    return torch.where(usable, scaled / scaled.square().sum(1, keepdim=True).sqrt(), 0.0)


def nearest(similarity: Tensor, k: int) -> Tensor:
    """Which nodes are the k nearest of each: itself, then those of the largest similarity, lower columns first.

    Args:
        similarity: [N, N].
        k: neighbours of a node, itself included; N where it is larger.

    Returns:
        [N, N] bool, m_ij = node j is among the k nearest of node i.
    """
    ranked = similarity.clone()
    ranked.fill_diagonal_(torch.inf)
    order = ranked.sort(dim=1, descending=True, stable=True).indices
    chosen = torch.zeros(similarity.shape, dtype=torch.bool, device=similarity.device)
    return chosen.scatter(1, order[:, :k], True)


def dense_graph(features: Tensor, k: int, positions: Tensor | None, gamma: float, sigma: float) -> Tensor:
    """The weights of the graph as a matrix.

    ::

        u_i  = f_i / |f_i|                                    0 for a row without a usable norm
        s_ij = <u_i, u_j>
        m_ij = 1 if j is among the k nearest of i, i itself included, else 0
        S_ij = m_ij min(max(s_ij, 0), 1)^gamma exp(-sigma |p_i - p_j|)
        W    = S + S^T,  W_ii = 0

    Args:
        features: [N, d] float.
        k: neighbours of a node, itself included.
        positions: [N, 2] or None, which makes the last factor 1.
        gamma: exponent of the similarity.
        sigma: decay per unit of distance.

    Returns:
        [N, N] symmetric, zero diagonal; S_ij below SMALLEST_LINK, or not a number, counts as zero.
    """
    unit = unit_rows(features)
    similarity = unit @ unit.T
    similarity = similarity.triu() + similarity.triu(1).T
    power = torch.where(similarity >= SMALLEST_LINK, similarity.clamp(max=1.0), 0.0) ** gamma
    if positions is not None:
        distance = (positions[:, None] - positions[None]).square().sum(-1).sqrt()
        power = power * torch.exp(-sigma * distance)
    directed = torch.where(nearest(similarity, k) & (power >= SMALLEST_LINK), power, 0.0)
    return (directed + directed.T).fill_diagonal_(0.0)


def knn_graph(
    features: Tensor, k: int, positions: Tensor | None, gamma: float, sigma: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`dense_graph` in compressed rows.

    Args:
        features: [N, d] float.
        k: neighbours of a node, itself included.
        positions: [N, 2] or None.
        gamma: exponent of the similarity.
        sigma: decay per unit of distance.

    Returns:
        indptr [N + 1] int32, indices [nnz] int32 ascending in each row, weights [nnz], degrees [N] (row sums).
    """
    weights = dense_graph(features, k, positions, gamma, sigma)
    linked = weights > 0
    indptr = torch.nn.functional.pad(linked.sum(1).cumsum(0), (1, 0)).to(torch.int32)
    return indptr, linked.nonzero()[:, 1].to(torch.int32), weights[linked], weights.sum(1)
