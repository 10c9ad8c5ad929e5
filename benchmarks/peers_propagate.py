"""What `lp_graph` is measured against: the same solve with PyTorch's own operations, and as published.

Each takes W as torch.sparse_csr with int32 indices and scores [N, C] float32, and returns scores [N, C]. All are
float32 but the published procedure, which solves in float64.
"""

import dataclasses
import inspect
import warnings

import torch
from peers_pixels import array_modules, conjugate_gradients
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Options:
    """Arguments of `lp_graph` that the peers know; max_iter None is "as many as tol needs"."""

    alpha: float
    max_iter: int | None
    tol: float


def inverse_roots(degrees: Tensor) -> Tensor:
    """D^-1/2, [N]."""
    return torch.where(degrees > 0, degrees, 1).rsqrt_()


def row_sums(matrix: Tensor) -> Tensor:
    """Degrees, [N]."""
    counts = matrix.crow_indices().diff()
    rows = torch.repeat_interleave(counts, output_size=matrix.values().shape[0])
    return matrix.values().new_zeros(len(counts)).index_add_(0, rows, matrix.values())


def sparse_csr(matrix: Tensor, degrees: Tensor | None, scores: Tensor, options: Options) -> Tensor:
    """torch.sparse_csr (MKL on a CPU, cuSPARSE on CUDA) times all classes at once."""
    root = inverse_roots(row_sums(matrix) if degrees is None else degrees)
    counts, columns = matrix.crow_indices().diff(), matrix.col_indices()
    values = matrix.values() * torch.repeat_interleave(options.alpha * root, counts, output_size=len(columns))
    values *= root[columns]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        operator = torch.sparse_csr_tensor(
            matrix.crow_indices(), columns, values, size=matrix.shape, check_invariants=False
        )
    return conjugate_gradients(
        lambda p, out: torch.sub(p, operator @ p, out=out), scores.clone(), 1, options.max_iter, options.tol
    )


def _dense_system(matrix: Tensor, degrees: Tensor | None, options: Options) -> Tensor:
    """L as a dense matrix."""
    system = matrix.to_dense() if matrix.layout is torch.sparse_csr else matrix.clone()
    root = inverse_roots(system.sum(1) if degrees is None else degrees)
    system.mul_(root).mul_(-options.alpha * root[:, None])
    system.diagonal().add_(1)
    return system


def dense(matrix: Tensor, degrees: Tensor | None, scores: Tensor, options: Options) -> Tensor:
    """A dense N x N product in each step."""
    system = _dense_system(matrix, degrees, options)
    return conjugate_gradients(
        lambda p, out: torch.mm(system, p, out=out), scores.clone(), 1, options.max_iter, options.tol
    )


def cholesky(matrix: Tensor, degrees: Tensor | None, scores: Tensor, options: Options) -> Tensor:
    """A dense factorisation: no steps, exact mode only."""
    return torch.cholesky_solve(scores, torch.linalg.cholesky(_dense_system(matrix, degrees, options)))


def published(matrix: Tensor, degrees: Tensor | None, scores: Tensor, options: Options) -> Tensor:
    """The published procedure: two sparse products to normalise, a float64 identity, one solve per class."""
    xp, sparse, linalg = array_modules(scores.is_cuda)
    parts = (matrix.values(), matrix.col_indices(), matrix.crow_indices())
    graph = sparse.csr_matrix(tuple(xp.asarray(part) for part in parts), shape=matrix.shape)
    degree = xp.asarray(graph.sum(1)).ravel()
    degree[degree == 0] = 1
    root = sparse.diags(1 / xp.sqrt(degree))
    system = (sparse.eye(len(degree), dtype=xp.float64) - options.alpha * (root @ graph @ root)).tocsr()
    tolerance = "rtol" if "rtol" in inspect.signature(linalg.cg).parameters else "tol"
    settings = {tolerance: options.tol, "atol": 0.0, "maxiter": options.max_iter}
    x = [linalg.cg(system, xp.asarray(column).astype(xp.float64), **settings)[0] for column in scores.T]
    return torch.as_tensor(xp.stack(x, axis=1), device=scores.device).float()
