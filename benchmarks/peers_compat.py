"""What the drop-ins are measured against: the code that they stand for, on a CPU.

LPOSS runs its published functions with SciPy in cupy's place and kornia's formula for CIELAB; FeatUp's upsampler with
`unfold` in place of its extension, as its author advises those who cannot compile it.
"""

import inspect
from collections.abc import Callable

import numpy as np
import scipy.sparse
import scipy.sparse.linalg
import torch
from torch import Tensor
from torch.nn import functional

from ovs_kernels.reference import pixel_features


def pixel_step(img: Tensor, preds: Tensor, tau: float, neigh: int, alpha: float) -> Tensor:
    """LPOSS+'s two published functions in turn: img [1, 3, H, W], preds [H W, C] -> [H W, C] float64."""
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


def learned_upsampling(
    state: dict[str, Tensor], source: Tensor, guidance: Tensor, conv: Callable, products: Callable
) -> Tensor:
    """`JBUStack` of FeatUp in evaluation, from its state dict.

    Args:
        state: of the module.
        source: [B, C, h, w].
        guidance: [B, 3, H, W].
        conv: (padded [B, C, H + k - 1, W + k - 1], filters [B, H, W, k, k]) -> [B, C, H, W].
        products: (keys [B, K, H, W], padded keys) -> [B, H, W, k, k], products of a pixel's keys with its neighbours'.

    Returns:
        [B, C, 16 h, 16 w].
    """
    for number in (1, 2, 3, 4):
        step = {name.removeprefix(f"up{number}."): value for name, value in state.items() if f"up{number}." in name}
        size = (2 * source.shape[2], 2 * source.shape[3])
        source = _learned_step(step, source, functional.adaptive_avg_pool2d(guidance, size), conv, products)
    return source + 0.1 * functional.conv2d(source, state["fixup_proj.1.weight"], state["fixup_proj.1.bias"])


def _learned_step(step: dict[str, Tensor], source: Tensor, guidance: Tensor, conv, products) -> Tensor:
    def perceptron(name: str, x: Tensor) -> Tensor:
        hidden = functional.gelu(functional.conv2d(x, step[f"{name}.0.weight"], step[f"{name}.0.bias"]))
        return functional.conv2d(hidden, step[f"{name}.3.weight"], step[f"{name}.3.bias"])

    taps = step["fixup_proj.3.weight"].shape[0]
    side = round(taps**0.5)
    border = [side // 2] * 4
    keys = perceptron("range_proj", guidance)
    likeness = products(keys, functional.pad(keys, border, mode="reflect")).flatten(3).permute(0, 3, 1, 2)
    kernel = (step["range_temp"].exp().clamp(1e-4, 1e4) * likeness).softmax(1)
    places = torch.linspace(-1, 1, side, dtype=keys.dtype, device=keys.device).square()
    kernel = kernel * torch.exp(-(places[:, None] + places) / (2 * step["sigma_spatial"] ** 2)).reshape(1, -1, 1, 1)
    kernel = kernel / kernel.sum(1, keepdim=True).clamp(1e-7)
    kernel = kernel + 0.1 * perceptron("fixup_proj", torch.cat((kernel, guidance), 1))
    filters = kernel.permute(0, 2, 3, 1).unflatten(3, (side, side))
    large = functional.interpolate(source, guidance.shape[2:], mode="bicubic", align_corners=False)
    return conv(functional.pad(large, border, mode="reflect"), filters)


def products_written_out(keys: Tensor, padded: Tensor) -> Tensor:
    """`products` of `learned_upsampling` as published."""
    batch, channels, height, width = keys.shape
    side = padded.shape[2] - height + 1
    near = functional.unfold(padded, side).reshape(batch, channels, side * side, height, width).permute(0, 1, 3, 4, 2)
    return torch.einsum("bchwp,bchw->bhwp", near, keys).unflatten(3, (side, side))
