"""What `attention_mean` is measured against: all heads at once as published, head by head, and rows in the cache.

Each takes the queries and keys of some blocks, lists of [heads, N, d], and the number of tokens to drop at the front,
and returns [M, M]. Blocks weigh the same.
"""

import torch
from torch import Tensor

# Rows that `head_by_head_in_rows` takes at a time: the best of 64, 128, 256, 512 and 1,024 at N=4,096 and two threads.
CHUNK_ROWS = 512


def published(queries: list[Tensor], keys: list[Tensor], dropped: int) -> Tensor:
    """As M2N2's hook does: the probabilities of all heads of a block, kept, and then their mean."""
    total = 0.0
    for q, k in zip(queries, keys, strict=True):
        probabilities = torch.softmax(q @ k.transpose(1, 2) * q.shape[2] ** -0.5, dim=-1)
        total = total + probabilities.mean(0) / len(queries)
    total = total[dropped:, dropped:]
    return total / total.sum(1, keepdim=True)


def _head_weights(queries: list[Tensor]) -> list[tuple[int, int, float]]:
    """(block, head, weight) of every head."""
    return [(b, h, 1 / len(q) / len(queries)) for b, q in enumerate(queries) for h in range(len(q))]


def head_by_head(queries: list[Tensor], keys: list[Tensor], dropped: int) -> Tensor:
    """One map at a time, in buffers that are used again, added to the mean in place."""
    tokens = keys[0].shape[1]
    scores = queries[0].new_empty(tokens - dropped, tokens)
    mean = torch.zeros_like(scores)
    for b, h, weight in _head_weights(queries):
        q, k = queries[b][h, dropped:], keys[b][h]
        torch.mm(q * k.shape[1] ** -0.5, k.t(), out=scores)
        mean.add_(torch.softmax(scores, dim=1, out=scores), alpha=weight)
    return _renormalised(mean, dropped)


def head_by_head_in_rows(queries: list[Tensor], keys: list[Tensor], dropped: int) -> Tensor:
    """The same for some rows at a time, so that scores and mean stay in the cache."""
    tokens = keys[0].shape[1]
    mean = queries[0].new_empty(tokens - dropped, tokens - dropped)
    buffer = queries[0].new_empty(CHUNK_ROWS, tokens)
    total = queries[0].new_empty(CHUNK_ROWS, tokens) if dropped else None
    scaled = [q * q.shape[2] ** -0.5 for q in queries]
    for first in range(0, len(mean), CHUNK_ROWS):
        rows = mean[first : first + CHUNK_ROWS]
        scores = buffer[: len(rows)]
        sums = rows if total is None else total[: len(rows)]
        for number, (b, h, weight) in enumerate(_head_weights(queries)):
            torch.mm(scaled[b][h, dropped + first : dropped + first + len(rows)], keys[b][h].t(), out=scores)
            torch.softmax(scores, dim=1, out=scores)
            if number == 0:
                torch.mul(scores, weight, out=sums)
            else:
                sums.add_(scores, alpha=weight)
        if total is not None:
            kept = sums[:, dropped:]
            torch.div(kept, kept.sum(1, keepdim=True), out=rows)
    return mean


def blocks_in_rows(queries: list[Tensor], keys: list[Tensor], dropped: int) -> Tensor:
    """All heads of a block as one batched product, for 64 rows at a time."""
    count, tokens = 64, keys[0].shape[1]
    mean = queries[0].new_empty(tokens - dropped, tokens)
    for first in range(0, len(mean), count):
        rows = mean[first : first + count].zero_()
        for q, k in zip(queries, keys, strict=True):
            part = q[:, dropped + first : dropped + first + len(rows)] * q.shape[2] ** -0.5
            scores = torch.bmm(part, k.transpose(1, 2))
            torch.softmax(scores, dim=2, out=scores)
            rows.add_(scores.sum(0), alpha=1 / len(q) / len(queries))
    return _renormalised(mean, dropped)


def _renormalised(mean: Tensor, dropped: int) -> Tensor:
    if not dropped:
        return mean
    kept = mean[:, dropped:]
    return kept / kept.sum(1, keepdim=True)
