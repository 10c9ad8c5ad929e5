"""Definition of `affinity_pool`: patches averaged over those that resemble them, in plain PyTorch.

Written to be read beside the equations, not to be fast: the whole matrix of affinities. Any float dtype, any device;
run it in float64 to get the numbers that the kernels are held to.
"""

import torch
from torch import Tensor

# Norm below which a guide row is divided by this instead: zeros stay zeros.
SMALLEST_NORM = 1e-12
# Added to the sum of the affinities, as published.
EPSILON = 1e-6


def affinity_pool(
    features: Tensor,
    guide: Tensor,
    *,
    form: str = "clip_dinoiser",
    threshold: float = 0.2,
    beta: float = 1.2,
    gamma: float = 3.0,
    assume_normalized: bool = False,
) -> Tensor:
    """Averages features over the patches whose guide features resemble.

    ::

        a_ij = <g_i, g_j>                                                        g: guide rows of unit length

        clip_dinoiser:  w_ij = a_ij where a_ij >= threshold, else 0
                        out_i = sum_j w_ij f_j / (sum_j w_ij + 1e-6)
        proxyclip:      s_ij = gamma (a_ij - beta mean(a)),  kept where s_ij >= 0 or i = j
                        w_ij = exp(s_ij) / sum over the kept j' of exp(s_ij'), 0 where not kept
                        out_i = sum_j w_ij f_j

    The mean is that of one window's N x N matrix. Only patches with a weight other than zero take part in a sum, so a
    NaN or Inf in a feature row goes no further than that.

    Args:
        features: [N, D] or [n, N, D] float, n windows that are pooled each by itself.
        guide: [N, G] or [n, N, G].
        form: "clip_dinoiser" or "proxyclip".
        threshold: of the affinities, for "clip_dinoiser".
        beta: factor of the mean, for "proxyclip".
        gamma: factor of the scores, for "proxyclip".
        assume_normalized: use the guide rows as they are.

    Returns:
        Like `features`.
    """
    if features.dim() == 3:
        windows = [
            affinity_pool(
                one,
                rows,
                form=form,
                threshold=threshold,
                beta=beta,
                gamma=gamma,
                assume_normalized=assume_normalized,
            )
            for one, rows in zip(features, guide, strict=True)
        ]
        return torch.stack(windows) if windows else features.new_empty(features.shape)
    if not assume_normalized:
        guide = guide / torch.linalg.vector_norm(guide, dim=1, keepdim=True).clamp(min=SMALLEST_NORM)
    affinity = guide @ guide.t()
    if form == "clip_dinoiser":
        weights = affinity.masked_fill(affinity < threshold, 0.0)
        weights = weights / (weights.sum(1, keepdim=True) + EPSILON)
    else:
        scores = gamma * (affinity - beta * affinity.mean())
        diagonal = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
        weights = torch.softmax(scores.masked_fill((scores < 0) & ~diagonal, -torch.inf), dim=1)
    return _weighted_sums(weights, features)


def _weighted_sums(weights: Tensor, features: Tensor) -> Tensor:
    """The product over the weights other than zero: 0 * NaN is left out."""
    usable = features.isfinite().all(1)
    sums = weights @ features.masked_fill(~usable[:, None], 0.0)
    for j in (~usable).nonzero().flatten().tolist():
        rows = weights[:, j] != 0
        sums[rows] += weights[rows, j, None] * features[j]
    return sums
