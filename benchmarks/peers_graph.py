"""What `knn_graph` is measured against: the same graph with PyTorch's own operations, and as published.

Each takes features [N, d] float32 and positions [N, 2] float32 and returns W, dense or sparse, with its row sums. All
are float32. Features are normalised inside, as in `knn_graph`.
"""

import dataclasses
import warnings

import torch
from torch import Tensor

# Rows of the product that are made and searched at once.
CHUNK = 1024


@dataclasses.dataclass(frozen=True)
class Options:
    """Arguments of `knn_graph` that the peers know."""

    k: int
    gamma: float
    sigma: float


def nearest(features: Tensor, k: int, chunk: int | None) -> tuple[Tensor, Tensor]:
    """The k largest cosines of each row and their columns, [N, k] twice."""
    unit = torch.nn.functional.normalize(features, dim=1)
    if chunk is None:
        return (unit @ unit.T).topk(k, dim=1)
    values = unit.new_empty(len(unit), k)
    columns = torch.empty(len(unit), k, dtype=torch.int64, device=unit.device)
    for first in range(0, len(unit), chunk):
        part = slice(first, first + chunk)
        values[part], columns[part] = (unit[part] @ unit.T).topk(k, dim=1)
    return values, columns


def directed_weights(values: Tensor, columns: Tensor, positions: Tensor, options: Options) -> Tensor:
    """S_ij of the neighbours, [N, k]."""
    offsets = positions[columns] - positions[:, None]
    distance = offsets.square().sum(-1).sqrt_()
    return values.clamp_(min=0).pow_(options.gamma) * distance.mul_(-options.sigma).exp_()


def dense(features: Tensor, positions: Tensor, options: Options, chunk: int | None = None) -> tuple[Tensor, Tensor]:
    """Product, top-k, and a dense N x N matrix that the weights are scattered into."""
    values, columns = nearest(features, options.k, chunk)
    weights = directed_weights(values, columns, positions, options)
    matrix = features.new_zeros(len(features), len(features)).scatter_(1, columns, weights)
    matrix = matrix + matrix.T
    matrix.fill_diagonal_(0)
    return matrix, matrix.sum(1)


def sparse(features: Tensor, positions: Tensor, options: Options, chunk: int | None = None) -> tuple[Tensor, Tensor]:
    """Product, top-k, and a coordinate list of both directions that is coalesced into CSR with int32 indices."""
    values, columns = nearest(features, options.k, chunk)
    weights = directed_weights(values, columns, positions, options).flatten()
    num_nodes = len(features)
    rows = torch.arange(num_nodes, device=features.device).repeat_interleave(options.k)
    columns = columns.flatten()
    real = (rows != columns) & (weights > 0)
    rows, columns, weights = rows[real], columns[real], weights[real]
    pairs = torch.stack((torch.cat((rows, columns)), torch.cat((columns, rows))))
    shape = (num_nodes, num_nodes)
    both = torch.sparse_coo_tensor(pairs, torch.cat((weights, weights)), shape, check_invariants=False).coalesce()
    indices = both.indices()
    counts = torch.bincount(indices[0], minlength=num_nodes)
    indptr = torch.nn.functional.pad(counts.cumsum(0), (1, 0)).int()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        matrix = torch.sparse_csr_tensor(
            indptr, indices[1].int(), both.values(), (num_nodes, num_nodes), check_invariants=False
        )
    degrees = features.new_zeros(num_nodes).index_add_(0, indices[0], both.values())
    return matrix, degrees


def published(features: Tensor, positions: Tensor, options: Options, search: str = "faiss") -> tuple[Tensor, Tensor]:
    """The published procedure on a CPU: matrix of distances, exact search, SciPy's sparse algebra.

    Args:
        features: [N, d].
        positions: [N, 2].
        options: of the graph.
        search: "faiss" as published (there on a GPU), or "torch" for torch.topk in its place.
    """
    import numpy as np
    import scipy.sparse

    geometry = torch.exp(-options.sigma * torch.cdist(positions, positions) ** 1.0)
    unit = torch.nn.functional.normalize(features, dim=1)
    if search == "faiss":
        import faiss

        faiss.omp_set_num_threads(torch.get_num_threads())
        index = faiss.IndexFlatIP(unit.shape[1])
        index.add(unit.numpy())
        values, columns = (torch.from_numpy(part) for part in index.search(unit.numpy(), options.k))
    else:
        values, columns = (unit @ unit.T).topk(options.k, dim=1)
    num_nodes = len(features)
    rows = torch.arange(num_nodes).repeat(options.k, 1).T
    weights = torch.where(values > 0, values, 0.0) ** options.gamma * geometry[rows, columns]
    shape = (num_nodes, num_nodes)
    graph = scipy.sparse.csr_matrix(
        (weights.flatten().numpy(), (rows.flatten().numpy(), columns.flatten().numpy())), shape
    )
    graph = graph + graph.T
    graph = graph - scipy.sparse.diags(graph.diagonal())
    degrees = torch.from_numpy(np.asarray(graph.sum(1)).ravel())
    graph = graph.tocsr()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        indptr, indices, data = (torch.from_numpy(part) for part in (graph.indptr, graph.indices, graph.data))
        return torch.sparse_csr_tensor(indptr, indices, data, shape, check_invariants=False), degrees
