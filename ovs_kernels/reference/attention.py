"""Definition of `attention_mean`: softmax maps of attention heads, averaged, in plain PyTorch.

Written to be read beside the equations, not to be fast: one head at a time, the whole map of each. Any float dtype, any
device; run it in float64 to get the numbers that the kernels are held to.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def attention_mean(
    queries: Sequence[Tensor],
    keys: Sequence[Tensor],
    *,
    weights: Sequence[float] | None = None,
    scale: float | None = None,
    keep: Sequence[int] | None = None,
) -> Tensor:
    """Averages the attention of all heads of some blocks over the heads, the blocks weighted.

    ::

        P_bh = softmax over j of  scale * <q_bhi, k_bhj>                                  over all tokens
        Abar = sum_b w_b / H_b  sum_h P_bh                                                w: weights / their sum
        A_ij = Abar_ij / sum_j' Abar_ij'                                                  i, j, j' among the kept tokens

    Args:
        queries: of each block [H_b, Nq, d_b] float.
        keys: of each block [H_b, Nk, d_b] float.
        weights: one number >= 0 per block; None weighs all the same. A block of weight 0 is not looked at.
        scale: of the products; None is 1 / sqrt(d_b) in each block.
        keep: tokens whose rows and columns are kept, in the order of the result; None keeps all. Nq = Nk then.

    Returns:
        [Nq, Nk], or one row and column per kept token, in the dtype of the first block's queries.
    """
    weights = [1.0] * len(queries) if weights is None else list(weights)
    mean = queries[0].new_zeros((queries[0].shape[1], keys[0].shape[1]))
    for q, k, weight in zip(queries, keys, weights, strict=True):
        if weight == 0:
            continue
        factor = q.shape[2] ** -0.5 if scale is None else scale
        for head_queries, head_keys in zip(q, k, strict=True):
            probabilities = torch.softmax((head_queries @ head_keys.t()) * factor, dim=1)
            mean = mean + (weight / sum(weights) / len(q)) * probabilities
    if keep is not None:
        index = torch.tensor(list(keep), dtype=torch.int64, device=mean.device)
        mean = mean[index][:, index]
    return mean / mean.sum(1, keepdim=True)
