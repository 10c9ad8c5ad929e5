"""Dense features averaged over the patches that resemble, without the matrix of affinities."""

import torch
from torch import Tensor

from . import _ops  # noqa: F401  (registers torch.ops.ovs_kernels)
from ._arrays import accepts_arrays


@accepts_arrays("features", "guide")
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
    """Averages features over the patches whose guide features resemble: the pooling of CLIP-DINOiser and ProxyCLIP.

    With a_ij = <g_i, g_j>, the cosine of two patches of a window in the features of another model (the guide)::

        clip_dinoiser:  w_ij = a_ij where a_ij >= threshold, else 0
                        out_i = sum_j w_ij f_j / (sum_j w_ij + 1e-6)
        proxyclip:      s_ij = gamma (a_ij - beta mean(a)),  kept where s_ij >= 0 or i = j
                        out_i = sum_j softmax_j(s_ij) f_j over the kept j

    The mean is over the N x N matrix of one window. The diagonal is always kept in "proxyclip": where nothing else is,
    a patch keeps its own features (as published, its row would be NaN). The matrix is never stored, and each entry is
    computed once for the two rows that it belongs to.

    Args:
        features: [N, D] float, or [n, N, D] for n windows that are pooled each by itself.
        guide: [N, G] or [n, N, G] float, the guide's features of the same patches. May differ in dtype from `features`
            unless one of them is float64.
        form: "clip_dinoiser" or "proxyclip".
        threshold: affinities below it (strictly) count nothing, for "clip_dinoiser". At -1 or below all take part,
            and the sum of the affinities may then vanish; above 1 none does, and the result is 0. At exactly 1 rounding
            decides.
        beta: factor of the mean affinity, for "proxyclip".
        gamma: factor of the scores, above zero, for "proxyclip".
        assume_normalized: the guide rows have unit length already; they are normalised here otherwise (norms below
            1e-12 count as 1e-12, so rows of zeros stay).

    Returns:
        Like `features`.

    Raises:
        TypeError: wrong kind or dtype of an argument.
        ValueError: wrong shape, range or device of an argument.
        RuntimeError: CUDA tensors, and a build without CUDA or for other cards.

    Devices/dtypes: CPU and CUDA; float32, float16 and bfloat16 (computed in float32), float64.
    Differentiable: no.
    Deterministic: yes, on CPU for any number of threads.
    Non-finite: a guide row with a NaN or Inf makes its whole window NaN, as the matrix does. A feature that is NaN or
        Inf reaches the patches that give its patch a weight other than zero, and no others. A guide row of zeros has
        the affinity 0 with all patches: in "clip_dinoiser" its result is 0, in "proxyclip" its own features as long as
        the mean affinity times beta is above zero.
    Memory: beyond the result one copy of the guide in the dtype of the computation; half types and arrays that are not
        contiguous are copied first. Nothing of size N x N.
    Reference: CLIP-DINOiser (arXiv 2312.12359), ProxyCLIP (arXiv 2408.04883). See `ovs_kernels.reference.affinity`.

    Example:
        >>> import torch, ovs_kernels
        >>> features = torch.tensor([[1.0], [3.0], [8.0]])
        >>> guide = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]])       # two patches alike, one by itself
        >>> [round(value, 3) for value in ovs_kernels.affinity_pool(features, guide).flatten().tolist()]
        [2.0, 2.0, 8.0]
    """
    return torch.ops.ovs_kernels.affinity_pool(features, guide, form, threshold, beta, gamma, assume_normalized)
