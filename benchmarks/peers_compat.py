"""What the drop-ins are measured against: the code that they stand for, on a CPU.

LPOSS runs its published functions with SciPy in cupy's place and kornia's formula for CIELAB; FeatUp's upsampler with
`unfold` in place of its extension, as its author advises those who cannot compile it.
"""

import inspect

import numpy as np
import scipy.sparse
import scipy.sparse.linalg
import torch
from torch import Tensor

from ovs_kernels.reference import pixel_features


def pixel_step(img: Tensor, preds: Tensor, tau: float, neigh: int, alpha: float) -> Tensor:
    """`get_lposs_plus_laplacian` and `perform_lp` as published: img [1, 3, H, W], preds [H W, C] -> [H W, C] float64."""
    matrix = _pixel_laplacian(img, tau, neigh, alpha)
    result = np.zeros(tuple(preds.shape))
    for index, column in enumerate(preds.numpy().T):
        result[:, index] = _search(matrix, column, 1e-6, 10)
    return torch.from_numpy(result)


def _pixel_laplacian(img: Tensor, tau: float, neigh: int, alpha: float) -> scipy.sparse.csr_matrix:
    height, width = img.shape[2:]
    colours = pixel_features(img, "lab")[0].flatten(1).t().contiguous()
    pixels = torch.arange(height * width)
    places = torch.stack((pixels // width, pixels % width), 1)
    rows, columns = [], []
    for dy in range(-neigh, neigh + 1):
        for dx in range(-neigh, neigh + 1):
            if (dy, dx) == (0, 0):
                continue
            moved = places + torch.tensor((dy, dx))
            inside = (moved[:, 0] >= 0) & (moved[:, 1] >= 0) & (moved[:, 0] < height) & (moved[:, 1] < width)
            rows.append(torch.where(inside)[0])
            moved = moved[inside]
            columns.append(moved[:, 0] * width + moved[:, 1])
    rows, columns = torch.cat(rows), torch.cat(columns)
    squares = ((colours[rows] - colours[columns]) ** 2).sum(1)
    weights = torch.exp(-torch.sqrt(squares) / tau)
    del squares
    graph = scipy.sparse.csr_matrix(
        (weights.numpy(), (rows.numpy(), columns.numpy())), shape=(height * width, height * width)
    )
    del rows, columns, weights
    graph = graph - scipy.sparse.diags(graph.diagonal())
    degrees = np.asarray(graph.sum(axis=1)).ravel()
    degrees[degrees == 0] = 1
    root = scipy.sparse.diags(1 / np.sqrt(degrees))
    return (scipy.sparse.eye(height * width) - alpha * (root @ graph @ root)).tocsr()


def _search(matrix, column: np.ndarray, tol: float, max_iter: int) -> np.ndarray:
    name = "rtol" if "rtol" in inspect.signature(scipy.sparse.linalg.cg).parameters else "tol"
    return scipy.sparse.linalg.cg(matrix, column, **{name: tol, "atol": 0.0, "maxiter": max_iter})[0]
