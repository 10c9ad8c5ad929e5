"""Inputs of the `knn_graph` tests, and their oracle: loops in NumPy float64, sharing nothing with the package."""

import math

import numpy as np
import torch

SMALLEST = float(np.finfo(np.float32).tiny)
# Similarities in float32 against float64: this near the k-th place, rounding may decide either way. Seen: 3e-7.
NEAR = 2e-6
# Power and exponential in float32, as a share of a weight.
SINGLE = 5e-6
DOUBLE = 1e-12


def clustered(num_nodes, num_features, seed=1, dtype=torch.float32):
    """Features like those of patches: clusters and a common part, so that most similarities are positive."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(5, num_features, generator=generator, dtype=torch.float64)
    labels = torch.randint(5, (num_nodes,), generator=generator)
    noise = torch.randn(num_nodes, num_features, generator=generator, dtype=torch.float64)
    common = torch.randn(num_features, generator=generator, dtype=torch.float64)
    scale = 0.1 + 10 * torch.rand(num_nodes, 1, generator=generator, dtype=torch.float64)
    return (scale * (centres[labels] + 0.8 * noise + 0.7 * common)).to(dtype)


def lattice(num_nodes, seed=1, num_features=16):
    """Vectors of +1 and -1: similarities are multiples of 1/8, exact in every dtype, with ties everywhere."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2, (num_nodes, num_features), generator=generator).float() * 2 - 1


def places(num_nodes, seed=1, extent=448):
    """Patch centres (y, x): integers, some of them shared."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, extent // 8, (num_nodes, 2), generator=generator) * 8 + 4


def similarities(features):
    """[N, d] -> [N, N] cosines, zero for a row that is zero or not finite."""
    rows = np.asarray(features, np.float64)
    unit = np.zeros_like(rows)
    for i, row in enumerate(rows):
        if np.isfinite(row).all() and (row != 0).any():
            scaled = row / np.abs(row).max()
            unit[i] = scaled / math.sqrt((scaled**2).sum())
    return unit @ unit.T


def link_strengths(features, positions, gamma, sigma, shift=0.0):
    """[N, N] max(s + shift, 0)^gamma exp(-sigma distance), whoever is a neighbour; zero where it is not a number."""
    with np.errstate(invalid="ignore", under="ignore", over="ignore"):
        strength = np.clip(similarities(features) + shift, 0, 1) ** gamma
        if positions is not None:
            points = np.asarray(positions, np.float64)
            strength *= np.exp(-sigma * np.hypot(*(points[:, None] - points).transpose(2, 0, 1)))
    return np.where(strength >= SMALLEST, strength, 0.0)


def neighbours(similarity, k):
    """Node -> set of its k - 1 nearest others, lower numbers first among equals."""
    nodes = range(len(similarity))
    ranked = [sorted(nodes, key=lambda j, i=i: (j != i, -similarity[i, j], j)) for i in nodes]
    return [set(order[1:k]) for order in ranked]


def dense_oracle(features, k, positions=None, gamma=3.0, sigma=0.01):
    """W, link by link."""
    strength = link_strengths(features, positions, gamma, sigma)
    weights = np.zeros_like(strength)
    for i, others in enumerate(neighbours(similarities(features), k)):
        for j in others:
            weights[i, j] += strength[i, j]
            weights[j, i] += strength[i, j]
    return weights


def dense(graph):
    """W of a Graph as a NumPy matrix, after checking that its rows are in order and its arrays belong together."""
    indptr, indices, weights, degrees = (part.cpu().numpy() for part in graph.tensors())
    num_nodes = len(degrees)
    assert indptr.dtype == indices.dtype == np.int32
    assert weights.dtype == degrees.dtype
    assert indptr.shape == (num_nodes + 1,)
    assert indptr[0] == 0
    assert indptr[-1] == len(indices) == len(weights) == graph.nnz
    matrix = np.zeros((num_nodes, num_nodes), weights.dtype)
    for i in range(num_nodes):
        columns = indices[indptr[i] : indptr[i + 1]]
        assert (np.diff(columns) > 0).all()
        assert ((columns >= 0) & (columns < num_nodes)).all()
        matrix[i, columns] = weights[indptr[i] : indptr[i + 1]]
    assert (weights > 0).all()
    assert (matrix == matrix.T).all()
    assert (matrix.diagonal() == 0).all()
    np.testing.assert_allclose(degrees, matrix.sum(1, dtype=np.float64), rtol=1e-6 if weights.itemsize == 4 else 1e-14)
    return matrix


def assert_is_graph_of(graph, features, k, positions=None, gamma=3.0, sigma=0.01, near=NEAR, tol=SINGLE):
    """The graph has every link that it must have and no other, and `2 v` where both nodes chose each other.

    Similarities may be off by `near`, and the rest of a weight by the share `tol`. Where a similarity is within `near`
    of the k-th place, either choice is right; but every node has chosen k - 1 others.
    """
    matrix = dense(graph)
    similarity = similarities(features)
    num_nodes = len(matrix)
    others = ~np.eye(num_nodes, dtype=bool)
    wanted = min(k, num_nodes) - 1
    ranked = np.sort(np.where(others, similarity, -np.inf), axis=1)[:, ::-1]
    last = ranked[:, wanted - 1 : wanted] if wanted > 0 else np.full((num_nodes, 1), np.inf)
    surely = (similarity > last + near) & others
    maybe = (similarity >= last - near) & others & (wanted > 0)
    least, most = surely.astype(int) + surely.T, maybe.astype(int) + maybe.T
    weakest = (1 - tol) * link_strengths(features, positions, gamma, sigma, -near)
    strongest = (1 + tol) * link_strengths(features, positions, gamma, sigma, near)
    right = np.zeros_like(others)
    for times in (0, 1, 2):
        fits = (times * weakest <= matrix) & (matrix <= times * strongest)
        right |= fits & (least <= times) & (times <= most)
    assert right.all(), f"{(~right).sum()} of {right.size} weights are wrong, the first at {np.argwhere(~right)[0]}"
    if (similarity[others] > 1e-3).all() and weakest[others].min(initial=1.0) > 0:
        times = np.rint(matrix / np.where(others, link_strengths(features, positions, gamma, sigma), 1.0))
        assert times.sum() == 2 * num_nodes * wanted
