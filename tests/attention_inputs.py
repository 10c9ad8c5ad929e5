"""Inputs of the `attention_mean` tests, and a second witness: one row of one head at a time, in NumPy float64."""

import functools

import numpy as np
import torch

# Float32 against float64, as a share of the largest entry; logits of at most some 20.
SINGLE = 1e-5
DOUBLE = 1e-13


def by_hand(queries, keys, weights=None, scale=None, keep=None):
    """The averaged map, row by row.

    queries, keys: lists of [H, N, d]. Returns [Nq, Nk], or [M, M] of the kept tokens.
    """
    weights = np.ones(len(queries)) if weights is None else np.asarray(weights, np.float64)
    rows, columns = queries[0].shape[1], keys[0].shape[1]
    mean = np.zeros((rows, columns))
    for q, k, weight in zip(queries, keys, weights / weights.sum(), strict=True):
        if weight == 0:
            continue
        q, k = np.asarray(q.double()), np.asarray(k.double())
        factor = 1 / np.sqrt(q.shape[2]) if scale is None else scale
        for h in range(len(q)):
            for i in range(rows):
                logits = factor * (k[h] * q[h, i]).sum(1)
                exponentials = np.exp(logits - logits.max())
                mean[i] += weight / len(q) * exponentials / exponentials.sum()
    if keep is not None:
        mean = np.array([[mean[i, j] for j in keep] for i in keep])
    return mean / mean.sum(1, keepdims=True)


def block(heads, tokens, d, seed, spread=1.0):
    """[heads, tokens, d] normal numbers times `spread`."""
    generator = torch.Generator().manual_seed(seed)
    return spread * torch.randn(heads, tokens, d, generator=generator)


def pair(heads, num_queries, num_keys, d, seed=1, spread=1.0):
    """Queries and keys of one block."""
    return block(heads, num_queries, d, 2 * seed, spread), block(heads, num_keys, d, 2 * seed + 1, spread)


def cases():
    """name -> (queries, keys, keyword arguments)."""
    found = {}

    def add(name, *pairs, **arguments):
        found[name] = ([q for q, _ in pairs], [k for _, k in pairs], arguments)

    add("one token", pair(1, 1, 1, 1))
    add("one feature", pair(2, 5, 7, 1))
    add("one key", pair(3, 9, 1, 4))
    add("one query", pair(3, 1, 50, 4))
    add("more queries than keys", pair(2, 70, 11, 5))
    add("more keys than queries", pair(2, 11, 131, 5))
    add("odd everything", pair(3, 37, 53, 13))
    add("many features", pair(1, 19, 23, 200, spread=0.5))
    add("small logits", pair(2, 33, 33, 8, spread=1e-3))
    add("sharp", pair(2, 33, 45, 16, spread=4.0))
    # Sizes around the tiles: 8, 16 and 32 queries, 6 and 12 keys, and what is left of them.
    for tokens in (5, 6, 7, 11, 12, 13, 15, 16, 17, 31, 32, 33, 63, 64, 65, 96, 97, 127, 129):
        add(f"{tokens} tokens", pair(2, tokens, tokens, 6, seed=tokens))
    add("two blocks", pair(2, 40, 40, 8), pair(3, 40, 40, 5, seed=2))
    add("weights", pair(2, 29, 40, 8), pair(3, 29, 40, 5, seed=2), weights=[0.3, 0.7])
    add("weights of any sum", pair(2, 29, 40, 8), pair(1, 29, 40, 5, seed=2), weights=[2.0, 6.0])
    add("a block of weight 0", pair(2, 29, 29, 8), pair(1, 29, 29, 5, seed=2), weights=[0.0, 1.0])
    add("three blocks", *(pair(heads, 21, 34, 4 + heads, seed=heads) for heads in (1, 4, 2)), weights=[1, 2, 3])
    add("scale", pair(2, 17, 18, 5), pair(2, 17, 18, 9, seed=2), scale=0.25)
    add("first token dropped", pair(3, 50, 50, 8), keep=list(range(1, 50)))
    add("five tokens dropped", pair(2, 42, 42, 8), pair(3, 42, 42, 5, seed=2), keep=list(range(5, 42)))
    add("tokens kept in another order", pair(2, 33, 33, 6), keep=[30, 2, 3, 17, 0, 9])
    add("one token kept", pair(2, 33, 33, 6), keep=[7])
    return found


CASES = cases()


@functools.cache
def expected(name):
    """The oracle's matrix for a case."""
    queries, keys, arguments = CASES[name]
    return by_hand(queries, keys, **arguments)


def call_arguments(queries, keys, arguments):
    """What `attention_mean` is called with: no lists where there is one block."""
    if len(queries) == 1:
        queries, keys = queries[0], keys[0]
    return queries, keys, arguments
