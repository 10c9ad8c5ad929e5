"""Attention of a model's heads as one matrix."""

import dataclasses
import numbers
from collections.abc import Sequence

import torch
from torch import Tensor

from . import _ops  # noqa: F401  (registers torch.ops.ovs_kernels)
from ._arrays import accepts_arrays
from ._checks import kind_text, wrong_type


@dataclasses.dataclass(frozen=True)
class AttentionInfo:
    """Sums over the matrix that are made on the way, before it is rounded to a half type.

    Attributes:
        column_sums: [M] float32 or float64, the sum of each column: what iterative proportional fitting divides by
            first, and where an empty column shows. NaN if a row is NaN.
        maximum: float32 or float64 without axes, the largest entry; NaN if a row is NaN. As a share of Sinkhorn's
            epsilon it says whether exp(-A / epsilon) underflows.
    """

    column_sums: Tensor
    maximum: Tensor


@accepts_arrays("queries", "keys", sequences=("queries", "keys"), indices=("keep",))
def attention_mean(
    queries: Tensor | Sequence[Tensor],
    keys: Tensor | Sequence[Tensor],
    *,
    weights: Sequence[float] | None = None,
    scale: float | None = None,
    keep: Tensor | Sequence[int] | None = None,
    drop_first: int = 0,
    dtype: torch.dtype | None = None,
    return_info: bool = False,
) -> Tensor | tuple[Tensor, AttentionInfo]:
    """Averages the attention maps of all heads of some blocks, from their queries and keys.

    The softmax map of each head is made, weighted and forgotten; only their mean is ever written::

        P_bh = softmax over j of  scale * <q_bhi, k_bhj>                                  over all tokens
        Abar = sum_b w_b / H_b  sum_h P_bh                                                w: weights / their sum
        A_ij = Abar_ij / sum_j' Abar_ij'                                                  i, j, j' among the kept tokens

    Without dropped tokens the last line only removes rounding: rows add up to 1. With them it shares out what a patch
    gives to the other patches, the heads averaged first: a head that looks at the dropped tokens counts less. Calling
    this with queries and keys of the kept tokens alone is something else: each head is then normalised by itself.

    Args:
        queries: [heads, Nq, d] float; or a list of such, one per block: heads and d may differ between blocks.
        keys: [heads, Nk, d], in the same number and dtype, with heads and d of the queries.
        weights: one number >= 0 per block, divided by their sum; None weighs all blocks the same. A block of weight 0
            is not read.
        scale: factor of the products, above zero; None is 1 / sqrt(d) in each block.
        keep: integers, the tokens whose rows and columns are kept, in the order of the result; None keeps all. Needs
            Nq = Nk. Read on the host: a CUDA tensor here waits for the device.
        drop_first: leave out this many tokens at the front (class and register tokens of a ViT); instead of `keep`.
        dtype: torch.float32, float64, float16 or bfloat16, of the matrix; None is float32, or float64 for float64
            queries.
        return_info: also return an `AttentionInfo`, in the dtype of the computation.

    Returns:
        The matrix [Nq, Nk], or [M, M] of the M kept tokens. With `return_info` a tuple of that and the info.

    Raises:
        TypeError: wrong kind or dtype of an argument.
        ValueError: wrong shape, range or device of an argument.
        RuntimeError: CUDA tensors, and a build without CUDA or for other cards.

    Devices/dtypes: CPU and CUDA; float32, float16 and bfloat16 (computed in float32); float64 queries, or
        dtype=torch.float64, are computed in float64.
    Differentiable: no.
    Deterministic: yes, on CPU for any number of threads.
    Non-finite: a NaN or an infinite number in a query makes its row NaN; one in a key makes every row NaN whose product
        with it is NaN or +Inf, as softmax does, and then all column sums and the maximum are NaN. Large finite logits
        are safe. A row that gives less than about 1e-38 to the kept tokens is NaN.
    Memory: beyond the result, on CPU two tiles of 32 queries by Nk in the dtype of the computation per thread, and with
        `return_info` 1/32 of the matrix; on CUDA three numbers per head and query, and with `return_info` 1/64 of the
        matrix. Keys are copied on CPU unless they are contiguous, queries and keys by `keep` unless it is a tail.
    Reference: DSLO, equation of the averaged self-attention; the hook of M2N2, which keeps the maps of all heads. See
        `ovs_kernels.reference.attention`. docs/attention.md shows how to get queries and keys out of models.

    Example:
        >>> import torch, ovs_kernels
        >>> queries = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])             # one head, two tokens
        >>> attention = ovs_kernels.attention_mean(queries, queries, scale=1.0)
        >>> [[round(entry, 3) for entry in row] for row in attention.tolist()]
        [[0.731, 0.269], [0.269, 0.731]]
    """
    blocks = [list(given) if isinstance(given, (list, tuple)) else [given] for given in (queries, keys)]
    tokens = None if keep is None else keep.tolist()
    if dtype is not None and not isinstance(dtype, torch.dtype):
        wrong_type("attention_mean", "dtype", "a torch dtype or None", kind_text(dtype))
    matrix, column_sums, maximum = torch.ops.ovs_kernels.attention_mean(
        *blocks, _numbers(weights), scale, tokens, drop_first, dtype, return_info
    )
    return (matrix, AttentionInfo(column_sums, maximum)) if return_info else matrix


def _numbers(weights: object) -> list[float] | None:
    """A few real numbers of any kind."""
    if weights is None:
        return None
    values = weights.tolist() if hasattr(weights, "tolist") else weights
    if not isinstance(values, (list, tuple)):
        wrong_type("attention_mean", "weights", "a list of numbers or None", kind_text(weights))
    for value in values:
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            wrong_type("attention_mean", "weights", "numbers", kind_text(value))
    return [float(value) for value in values]
