"""Inputs of the `lp_graph` tests, and second witnesses for it: SciPy's conjugate gradients and dense solves."""

import numpy as np
import scipy.sparse
import scipy.sparse.linalg
import torch

# Float32 against float64, as a share of the largest magnitude. Seen: 2.6e-6.
SINGLE = 1e-5
# |Y - L X| / |Y| that float32 leaves however small tol is: X is 20 times as large as Y. Seen: 5.0e-6.
SINGLE_RESIDUAL = 1e-5
# Like SINGLE, in float64. Seen: 2e-14.
DOUBLE = 1e-12


def weights(num_nodes, links_per_node, seed=1, *, isolated=True, diagonal=False):
    """A symmetric scipy CSR matrix, float32: strong and weak links, hubs, and with `isolated` some empty rows."""
    if num_nodes == 0:
        return scipy.sparse.csr_array((0, 0), dtype=np.float32)
    generator = np.random.default_rng(seed)
    count = num_nodes * links_per_node // 2
    popularity = generator.random(num_nodes) ** 2 + 0.05
    ends = generator.choice(num_nodes, (2, count), p=popularity / popularity.sum())
    values = generator.random(count).astype(np.float32) ** 3 + np.float32(1e-4)
    half = scipy.sparse.coo_array((values, ends), (num_nodes, num_nodes)).tocsr()
    matrix = (half + half.T).tolil()
    if not diagonal:
        matrix.setdiag(0)
    if isolated and num_nodes > 6:
        for node in (0, num_nodes // 2, num_nodes - 1):
            matrix[node] = 0
            matrix[:, [node]] = 0
    matrix = scipy.sparse.csr_array(matrix).astype(np.float32)
    matrix.eliminate_zeros()
    matrix.sort_indices()
    return matrix


def scores(num_nodes, num_classes, seed=2):
    """[N, C] of about 0.2 with noise and outliers, float32."""
    generator = torch.Generator().manual_seed(seed)
    y = 0.2 + 0.1 * torch.randn(num_nodes, num_classes, generator=generator)
    y[:: max(1, num_nodes // 3)] *= 5.0
    return y


def system(matrix, alpha):
    """I - alpha D^-1/2 W D^-1/2, float64 CSR."""
    wide = scipy.sparse.csr_array(matrix).astype(np.float64)
    sums = np.asarray(wide.sum(1)).ravel()
    scale = scipy.sparse.diags_array(1.0 / np.sqrt(np.where(sums > 0, sums, 1.0)))
    return (scipy.sparse.eye_array(wide.shape[0]) - alpha * (scale @ wide @ scale)).tocsr()


def official(matrix, y, *, alpha=0.95, max_iter=10, tol=1e-6):
    """SciPy's conjugate gradients, class by class: X [N, C], steps [C]."""
    operator, columns, steps = system(matrix, alpha), [], []
    for column in y.double().numpy().T:
        taken = []
        x, _ = scipy.sparse.linalg.cg(operator, column, rtol=tol, atol=0.0, maxiter=max_iter, callback=taken.append)
        columns.append(x)
        steps.append(len(taken))
    return np.stack(columns, 1), np.array(steps)


def exact(matrix, y, *, alpha=0.95):
    """Dense direct solve: X [N, C]."""
    return np.linalg.solve(system(matrix, alpha).toarray(), y.double().numpy())


def parts(matrix, dtype=torch.float32):
    """indptr, indices and weights as tensors."""
    indptr, indices = (torch.from_numpy(part.astype(np.int32)) for part in (matrix.indptr, matrix.indices))
    return indptr, indices, torch.from_numpy(matrix.data).to(dtype)


def to_torch(matrix, dtype=torch.float32):
    """torch.sparse_csr."""
    return torch.sparse_csr_tensor(*parts(matrix, dtype), size=matrix.shape)
