"""The label propagation of LPOSS and LPOSS+ under the names of its published code, without cupy, faiss and kornia.

Published, these functions stand in `segmentation/evaluation/lposs_eval.py` and make cupyx sparse matrices on a GPU.
Here they run on the CPU or on CUDA, and what stands for a matrix is a `PatchLaplacian` or a `PixelLaplacian`.
"""

import abc
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import _ops  # noqa: F401  (registers torch.ops.ovs_kernels)
from .._arrays import accepts_arrays, as_tensor
from .._checks import (
    FLOATS,
    INTEGERS,
    expect_between,
    expect_dtype,
    expect_integer,
    expect_not_negative,
    expect_positive,
    expect_rank,
    expect_shape,
    kind_text,
    same_device,
    wrong_type,
    wrong_value,
)
from ..graph import Graph, knn_graph
from ..reference.pixels import PixelGraph, pixel_features

OFFICIAL_STEPS = 10
MAX_NEIGH = 15
MAX_STEPS = 2**31 - 1
# Weights below the smallest normal float32 are zero, as everywhere in this package.
SMALLEST_WEIGHT = torch.finfo(torch.float32).tiny
# How far the length of a row of features may be from 1: rows that were normalised in float16 and then cast are off by
# up to 5e-4, in bfloat16 by ten times that.
UNIT_ROWS = {torch.float32: 2e-3, torch.float64: 2e-3, torch.float16: 2e-3, torch.bfloat16: 1e-2}


class Laplacian(abc.ABC):
    """L = I - alpha D^-1/2 W D^-1/2, an operator [N, N]: symmetric, positive definite, float64.

    `perform_lp` and `dfs_search` solve with it in native code. Everything else is for code that looks into the
    published matrix: products (`L @ x`, `L.dot(x)`, SciPy's solvers take it as it is) and conversions.

    Attributes:
        shape: (N, N).
        alpha: share of a node's result that comes from its neighbours.
        device: where it lies, and where what it is multiplied with has to lie.
    """

    ndim = 2
    dtype = np.dtype(np.float64)
    __array_ufunc__ = None  # numpy leaves `x @ L` to us
    __array_priority__ = 1000

    def __init__(self, num_nodes: int, alpha: float, device: torch.device):
        self.shape = (num_nodes, num_nodes)
        self.alpha = alpha
        self.device = device

    @property
    def T(self) -> "Laplacian":
        """L itself: it is symmetric."""
        return self

    def __matmul__(self, x: Any) -> Any:
        """L x in float64, for x [N] or [N, C] of any kind of array."""
        tensor = self._operand(x)
        product = self._multiply((tensor if tensor.dim() == 2 else tensor[:, None]).double())
        return _like(x, product if tensor.dim() == 2 else product[:, 0])

    def __rmatmul__(self, x: Any) -> Any:
        """The product x L = (L x^T)^T, for x [N] or [C, N]."""
        return (self @ x.T).T if len(x.shape) == 2 else self @ x

    def dot(self, x: Any) -> Any:
        """L x, see `@`."""
        return self @ x

    matvec = rmatvec = dot

    def _operand(self, x: Any) -> Tensor:
        tensor = as_tensor("Laplacian", "x", x)
        expect_dtype("Laplacian", "x", tensor, (*FLOATS, *INTEGERS, torch.bool))
        pattern = expect_rank("Laplacian", "x", tensor, "N", "N, C")
        expect_shape("Laplacian", "x", tensor, pattern, {"N": self.shape[0]}, "L")
        if tensor.device != self.device:
            wrong_value("Laplacian", "x", f"device {self.device} (that of L)", tensor.device)
        return tensor

    @abc.abstractmethod
    def _multiply(self, x: Tensor) -> Tensor:
        """L x, [N, C] float64 -> [N, C]."""

    @abc.abstractmethod
    def _links(self) -> tuple[Tensor, Tensor, Tensor]:
        """D^-1/2 W D^-1/2 in compressed rows: indptr [N + 1] int64, indices [nnz] int64, values [nnz] float64."""

    @abc.abstractmethod
    def _propagate(self, preds: Tensor, max_iter: int, tol: float) -> Tensor:
        """X of L X = preds by conjugate gradients, [N, C] float -> [N, C]."""

    def _compressed_rows(self) -> tuple[Tensor, Tensor, Tensor]:
        """L in compressed rows, columns ascending: the links times -alpha, and the diagonal where it belongs."""
        indptr, indices, values = self._links()
        nodes = torch.arange(self.shape[0], device=self.device)
        rows = torch.repeat_interleave(nodes, indptr.diff(), output_size=len(indices))
        below = indices < rows
        counts = torch.zeros(len(indices) + 1, dtype=torch.int64, device=self.device)
        torch.cumsum(below, 0, out=counts[1:])
        # Every row before an entry has a diagonal, and so has its own where the entry lies to the right of it.
        places = torch.arange(len(indices), device=self.device).add_(rows).add_(~below)
        diagonal = indptr[:-1] + nodes + counts[indptr[1:]] - counts[indptr[:-1]]
        columns = indices.new_empty(len(indices) + self.shape[0])
        columns[places], columns[diagonal] = indices, nodes
        entries = values.new_ones(len(columns))
        entries[places] = values * -self.alpha
        return indptr + torch.arange(self.shape[0] + 1, device=self.device), columns, entries

    def to_sparse_csr(self) -> Tensor:
        """[N, N] torch.sparse_csr float64 on the device of L. At 448 x 448 pixels of LPOSS+ these are 540 MB."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sparse", category=UserWarning)  # "is in beta state"
            return torch.sparse_csr_tensor(*self._compressed_rows(), self.shape, check_invariants=False)

    def tocsr(self) -> Any:
        """[N, N] scipy.sparse.csr_matrix float64, in the memory of the host. At 448 x 448 pixels these are 400 MB."""
        import scipy.sparse

        indptr, columns, entries = (part.cpu() for part in self._compressed_rows())
        if len(columns) <= torch.iinfo(torch.int32).max:
            indptr, columns = indptr.int(), columns.int()
        return scipy.sparse.csr_matrix((entries.numpy(), columns.numpy(), indptr.numpy()), shape=self.shape)

    get = tocsr  # a cupyx matrix goes to the host under this name

    def toarray(self) -> np.ndarray:
        """[N, N] numpy float64: 8 N^2 bytes."""
        return self.tocsr().toarray()


class PatchLaplacian(Laplacian):
    """The operator of LPOSS, over a graph of patches.

    Attributes:
        graph: the weights W and degrees D, an `ovs_kernels.Graph`.
    """

    def __init__(self, graph: Graph, alpha: float):
        super().__init__(graph.num_nodes, alpha, graph.weights.device)
        self.graph = graph
        self._normalized = None

    def _matrix(self) -> Tensor:
        if self._normalized is None:
            graph = self.graph
            double = Graph(graph.indptr, graph.indices, graph.weights.double(), graph.degrees.double())
            self._normalized = double.to_sparse_csr()
        return self._normalized

    def _multiply(self, x: Tensor) -> Tensor:
        return x - self.alpha * (self._matrix() @ x)

    def _links(self) -> tuple[Tensor, Tensor, Tensor]:
        matrix = self._matrix()
        return matrix.crow_indices().long(), matrix.col_indices().long(), matrix.values()

    def _propagate(self, preds: Tensor, max_iter: int, tol: float) -> Tensor:
        graph = self.graph
        return torch.ops.ovs_kernels.lp_graph(
            graph.indptr,
            graph.indices,
            graph.weights,
            graph.degrees,
            preds,
            self.alpha,
            "official",
            max_iter,
            tol,
            False,
            False,
        )[0]


class PixelLaplacian(Laplacian):
    """The operator of LPOSS+, over the pixels of an image in rows. No matrix is made unless a conversion asks for one.

    Products keep one plane of weights per pair of opposite offsets: 4 bytes per pixel and pair, 84 pairs with neigh=6.

    Attributes:
        image: [3, H, W] sRGB in [0, 1].
        neigh: reach of the window.
        tau: distance of colours at which a link has weakened to 1/e.
    """

    def __init__(self, image: Tensor, neigh: int, tau: float, alpha: float):
        super().__init__(image.shape[1] * image.shape[2], alpha, image.device)
        self.image = image
        self.neigh = neigh
        self.tau = tau
        self._planes = None

    def _plane_graph(self) -> PixelGraph:
        if self._planes is None:
            image = self.image if self.image.dtype == torch.float64 else self.image.float()
            self._planes = PixelGraph(pixel_features(image[None], "lab"), 2 * self.neigh + 1, self.tau)
        return self._planes

    def _multiply(self, x: Tensor) -> Tensor:
        graph = self._plane_graph()
        root = graph.degree.double().rsqrt()
        planes = x.t().reshape(1, x.shape[1], *self.image.shape[1:])
        product = planes - self.alpha * (root * graph.multiply(root * planes))
        return product[0].flatten(1).t()

    def _links(self) -> tuple[Tensor, Tensor, Tensor]:
        graph = self._plane_graph()
        root = graph.degree.double().rsqrt()
        height, width = self.image.shape[1:]
        side = 2 * self.neigh + 1
        # [H, W, side * side]: offsets in the order of the columns.
        values = root.new_zeros((height, width, side * side))
        for weight, p, q in graph.links:
            dy = q[1].start - p[1].start
            dx = q[2].start - p[2].start
            place = (dy + self.neigh) * side + dx + self.neigh
            link = (root[p] * weight * root[q])[0, 0]
            values[p[1], p[2], place] = link
            values[q[1], q[2], side * side - 1 - place] = link
        reach = torch.arange(-self.neigh, self.neigh + 1, device=self.device)
        shifts = (reach[:, None] * width + reach).flatten()
        linked = (values > 0).flatten(0, 1)
        columns = (torch.arange(height * width, device=self.device)[:, None] + shifts)[linked]
        indptr = torch.zeros(height * width + 1, dtype=torch.int64, device=self.device)
        torch.cumsum(linked.sum(1), 0, out=indptr[1:])
        return indptr, columns, values.flatten(0, 1)[linked]

    def _propagate(self, preds: Tensor, max_iter: int, tol: float) -> Tensor:
        scores = preds.t().reshape(preds.shape[1], *self.image.shape[1:])
        settings = (2 * self.neigh + 1, self.tau, self.alpha, "official", max_iter, tol, "lab")
        result = torch.ops.ovs_kernels.lp_pixels(scores, self.image, *settings, False, None, False, None)[0]
        return result.flatten(1).t()


def get_lposs_laplacian(
    feats: Tensor,
    locations: Tensor,
    height_width: Sequence[tuple[int, int]],
    sigma: float = 0.0,
    pix_dist_pow: float = 2,
    k: int = 100,
    gamma: float = 1.0,
    alpha: float = 0.95,
    patch_size: int = 16,
) -> PatchLaplacian:
    """The operator of LPOSS over the patches of all windows of an image; see `ovs_kernels.knn_graph`.

    ::

        S_ij = max(<f_i, f_j>, 0)^gamma exp(-sigma |p_i - p_j|^pix_dist_pow)     for j among the k nearest of i
        W = S + S^T,  W_ii = 0,      L = I - alpha D^-1/2 W D^-1/2                D: row sums of W

    Args:
        feats: [N, d] float, rows of length 1: the patches of one window after the other, each in rows.
        locations: [K, 4] float or integer: y1, y2, x1, x2 of each window in pixels. Only y1 and x1 are read.
        height_width: (h, w), patches of each window. The sum of h w is N.
        sigma: decay of a link with distance, zero or above.
        pix_dist_pow: exponent of the distance, zero or above.
        k: neighbours of a patch, itself included; all where k is larger.
        gamma: exponent of the similarity, above zero.
        alpha: share of a patch's result that comes from its neighbours, in (0, 1).
        patch_size: side of a patch in pixels.

    Returns:
        What `perform_lp` and `dfs_search` take for L.

    Raises:
        TypeError: wrong kind or dtype of an argument.
        ValueError: wrong shape, range or device of an argument, or features that are not unit rows.

    Devices/dtypes: CPU and CUDA; float32, float64, float16, bfloat16.
    Differentiable: no.
    Deterministic: as `knn_graph`. Of equal similarities at the k-th place the lower index is the neighbour, where the
        published search leaves it open.
    Memory: that of `knn_graph`.
    Reference: LPOSS, `get_lposs_laplacian`.

    Example:
        >>> import torch
        >>> from ovs_kernels.compat.lposs import get_lposs_laplacian, perform_lp
        >>> feats = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])     # one window of 2 x 2 patches
        >>> L = get_lposs_laplacian(feats, torch.zeros(1, 4), [(2, 2)], k=2)
        >>> perform_lp(L, torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 1.0]])).argmax(1).tolist()
        [0, 0, 1, 1]
    """
    op = "get_lposs_laplacian"
    feats, locations = as_tensor(op, "feats", feats).detach(), as_tensor(op, "locations", locations)
    expect_dtype(op, "feats", feats, FLOATS)
    expect_rank(op, "feats", feats, "N, d")
    expect_dtype(op, "locations", locations, (*FLOATS, *INTEGERS))
    expect_shape(op, "locations", locations, "K, 4")
    same_device(op, feats=feats, locations=locations)
    sigma = expect_not_negative(op, "sigma", sigma)
    power = expect_not_negative(op, "pix_dist_pow", pix_dist_pow)
    k = expect_integer(op, "k", k, 1)
    gamma = expect_positive(op, "gamma", gamma)
    alpha = expect_between(op, "alpha", alpha, 0, 1)
    patch_size = expect_integer(op, "patch_size", patch_size, 1)
    positions = _patch_centres(op, locations, _sizes(op, height_width, feats, locations), patch_size)
    _expect_unit_rows(op, feats)
    if sigma == 0:
        return PatchLaplacian(knn_graph(feats, k, gamma=gamma), alpha)
    if power == 1:
        return PatchLaplacian(knn_graph(feats, k, positions=positions, gamma=gamma, sigma=sigma), alpha)
    return PatchLaplacian(_fade(knn_graph(feats, k, gamma=gamma), positions, sigma, power), alpha)


@accepts_arrays("img", "preds")
def get_lposs_plus_laplacian(
    img: Tensor, preds: Tensor, tau: float = 0.1, neigh: int = 6, alpha: float = 0.95
) -> PixelLaplacian:
    """The operator of LPOSS+ over the pixels of an image; see `ovs_kernels.lp_pixels`.

    Nothing is computed here: `perform_lp` makes the links as it needs them.

    Args:
        img: [B, 3, H, W] float, sRGB in [0, 1]. The first image is used, as published.
        preds: [H W, C]; only its number of rows is read.
        tau: distance of colours at which a link has weakened to 1/e. Both published configurations pass 0.01.
        neigh: reach of the window, 0 to 15: (2 neigh + 1)^2 - 1 neighbours.
        alpha: share of a pixel's result that comes from its neighbours, in (0, 1).

    Returns:
        What `perform_lp` and `dfs_search` take for L.

    Raises:
        TypeError: wrong kind or dtype of an argument.
        ValueError: wrong shape, range or device of an argument.

    Devices/dtypes: CPU and CUDA; float32, float64, float16, bfloat16.
    Differentiable: no.
    Deterministic: yes.
    Memory: none; `img` is kept, not copied.
    Reference: LPOSS+, `get_lposs_plus_laplacian`.

    Example:
        >>> import torch
        >>> from ovs_kernels.compat.lposs import get_lposs_plus_laplacian, perform_lp
        >>> image = torch.zeros(1, 3, 4, 6)
        >>> image[..., 3:] = 1.0                          # black left, white right
        >>> preds = torch.zeros(24, 2)
        >>> preds[7, 0] = preds[16, 1] = 1.0              # one seed per side
        >>> L = get_lposs_plus_laplacian(image, preds, tau=0.01)
        >>> perform_lp(L, preds).argmax(1).reshape(4, 6)[0].tolist()
        [0, 0, 0, 1, 1, 1]
    """
    op = "get_lposs_plus_laplacian"
    expect_dtype(op, "img", img, FLOATS)
    sizes = expect_shape(op, "img", img, "B, 3, H, W")
    if sizes["B"] == 0:
        wrong_value(op, "img", "at least one image", "none")
    if preds.dim() == 0 or preds.shape[0] != sizes["H"] * sizes["W"]:
        expected = f"[H W, C] with H={sizes['H']}, W={sizes['W']} (those of img)"
        wrong_value(op, "preds", expected, list(preds.shape))
    same_device(op, img=img, preds=preds)
    tau = expect_positive(op, "tau", tau)
    neigh = expect_integer(op, "neigh", neigh, 0, MAX_NEIGH)
    alpha = expect_between(op, "alpha", alpha, 0, 1)
    return PixelLaplacian(img[0].detach(), neigh, tau, alpha)


@accepts_arrays("Y")
def dfs_search(L: Laplacian, Y: Tensor, tol: float = 1e-6, maxiter: int | None = 10) -> Tensor:
    """Solves L x = Y for one right-hand side by conjugate gradients.

    Args:
        L: of `get_lposs_laplacian` or `get_lposs_plus_laplacian`.
        Y: [N] or [N, 1].
        tol: relative residual at which the search stops, zero or above.
        maxiter: steps at most; None is as many as `tol` needs.

    Returns:
        x [N], of the kind of `Y`, in float64 for float64 and integers, else in float32.

    Raises:
        TypeError: wrong kind or dtype of an argument.
        ValueError: wrong shape, range or device of an argument.

    Devices/dtypes: those of L; float32, float16 and bfloat16 are computed in float32 and float64 in float64 (on CUDA
        by the reference).
    Differentiable: no; backward refuses.
    Deterministic: yes.
    Non-finite: a NaN or Inf in `Y` makes all of x NaN.
    Memory: that of `lp_graph` or `lp_pixels` with one class.
    Reference: LPOSS, `dfs_search`.

    Example:
        >>> import torch
        >>> from ovs_kernels.compat.lposs import dfs_search, get_lposs_laplacian
        >>> L = get_lposs_laplacian(torch.ones(2, 1), torch.zeros(1, 4), [(1, 2)], k=2)
        >>> dfs_search(L, torch.tensor([1.0, 1.0])).round(decimals=3).tolist()     # 1 / (1 - alpha)
        [20.0, 20.0]
    """
    op = "dfs_search"
    column = Y[:, None] if Y.dim() == 1 else Y
    if column.dim() != 2 or column.shape[1] != 1:
        wrong_value(op, "Y", "[N] or [N, 1]", list(Y.shape))
    return _solve(op, L, "Y", column, tol, maxiter)[:, 0]


def perform_lp(L: Laplacian, preds: Tensor) -> Tensor:
    """Spreads class scores over a graph: ten steps of conjugate gradients for every class, all classes together.

    Args:
        L: of `get_lposs_laplacian` or `get_lposs_plus_laplacian`.
        preds: [N, C], class scores per patch or pixel.

    Returns:
        [N, C] torch tensor on the device of `preds`, up to 1 / (1 - alpha) times larger than they came; float64 for
        float64 and integers, else float32, where the published function returns float64. Of pixels it is a view with
        the pixels innermost.

    Raises:
        TypeError: wrong kind or dtype of an argument.
        ValueError: wrong shape, range or device of an argument.

    Devices/dtypes: as `dfs_search`.
    Differentiable: no; backward refuses.
    Deterministic: yes, on CPU for any number of threads.
    Non-finite: a class with a NaN or Inf score comes back as NaN everywhere; the other classes are not touched.
    Memory: that of `lp_graph` or `lp_pixels`.
    Reference: LPOSS, `perform_lp`.

    Example:
        >>> import torch
        >>> from ovs_kernels.compat.lposs import get_lposs_laplacian, perform_lp
        >>> L = get_lposs_laplacian(torch.ones(2, 1), torch.zeros(1, 4), [(1, 2)], k=2)
        >>> perform_lp(L, torch.tensor([[1.0, 0.0], [1.0, 0.0]])).round(decimals=3).tolist()
        [[20.0, 0.0], [20.0, 0.0]]
    """
    return propagate_all(L, preds, 1e-6, OFFICIAL_STEPS)


def propagate_all(L: Laplacian, preds: Any, tol: float, maxiter: int | None) -> Tensor:
    """`perform_lp` where `dfs_search` has other defaults, as an earlier version of the published code has."""
    return _solve("perform_lp", L, "preds", as_tensor("perform_lp", "preds", preds), tol, maxiter)


def _solve(op: str, laplacian: Any, name: str, scores: Tensor, tol: float, maxiter: int | None) -> Tensor:
    """The checks and the solve that `dfs_search` and `perform_lp` share. scores [N, C] -> [N, C]."""
    if not isinstance(laplacian, Laplacian):
        made = "what get_lposs_laplacian or get_lposs_plus_laplacian of ovs_kernels.compat.lposs returns"
        wrong_type(op, "L", made, kind_text(laplacian))
    expect_dtype(op, name, scores, (*FLOATS, *INTEGERS, torch.bool))
    expect_shape(op, name, scores, "N, C", {"N": laplacian.shape[0]}, "L")
    if scores.device != laplacian.device:
        wrong_value(op, name, f"device {laplacian.device} (that of L)", scores.device)
    tol = expect_not_negative(op, "tol", tol)
    steps = MAX_STEPS if maxiter is None else expect_integer(op, "maxiter", maxiter, 0, MAX_STEPS)
    if scores.dtype not in (torch.float32, torch.float64):
        scores = scores.float() if scores.is_floating_point() else scores.double()
    if steps == 0:
        return torch.zeros(scores.shape, dtype=scores.dtype, device=scores.device)
    # Ten times the number of unknowns is where the published solver gives up.
    return laplacian._propagate(scores, min(steps, max(10 * len(scores), 1)) if maxiter is None else steps, tol)


def _sizes(op: str, height_width: Any, feats: Tensor, locations: Tensor) -> list[tuple[int, int]]:
    """The windows' (h, w), checked against the features and the locations."""
    sizes = []
    try:
        for index, (height, width) in enumerate(height_width):
            name = f"height_width[{index}]"
            sizes.append((expect_integer(op, name, height, 1), expect_integer(op, name, width, 1)))
    except (TypeError, ValueError) as error:
        if str(error).startswith(op):
            raise
        wrong_type(op, "height_width", "a list of pairs (h, w)", kind_text(height_width))
    if len(sizes) > locations.shape[0]:
        wrong_value(op, "locations", f"one row per window, {len(sizes)} (those of height_width)", locations.shape[0])
    total = sum(height * width for height, width in sizes)
    if total != feats.shape[0]:
        wrong_value(op, "height_width", f"patches that add up to N={feats.shape[0]} (that of feats)", total)
    return sizes


def _patch_centres(op: str, locations: Tensor, sizes: list[tuple[int, int]], patch_size: int) -> Tensor:
    """[N, 2] float64: y and x of every patch's centre as published, the corner plus half a patch rounded down."""
    corners = locations.double()
    centres = [corners.new_zeros(0, 2)]
    for corner, (height, width) in zip(corners, sizes, strict=False):
        y = corner[0] + patch_size // 2 + patch_size * torch.arange(height, device=corners.device)
        x = corner[2] + patch_size // 2 + patch_size * torch.arange(width, device=corners.device)
        centres.append(torch.stack((y.repeat_interleave(width), x.repeat(height)), 1))
    return torch.cat(centres)


def _expect_unit_rows(op: str, feats: Tensor) -> None:
    """Rows are normalised by `knn_graph`: with rows of other lengths the published numbers would be different ones."""
    lengths = feats.to(torch.float64 if feats.dtype == torch.float64 else torch.float32).norm(dim=1)
    wrong = (lengths - 1).abs() > UNIT_ROWS[feats.dtype]
    wrong &= (lengths != 0) & lengths.isfinite()
    if wrong.any():
        row = int(wrong.nonzero()[0])
        got = f"length {lengths[row].item():.6g} in row {row}"
        wrong_value(op, "feats", "rows of length 1 (torch.nn.functional.normalize)", got)


def _fade(graph: Graph, positions: Tensor, sigma: float, power: float) -> Graph:
    """The graph with every weight times exp(-sigma |p_i - p_j|^power), which is symmetric, so W may come before it."""
    indptr, indices, weights = graph.indptr.long(), graph.indices.long(), graph.weights
    nodes = torch.arange(graph.num_nodes, device=weights.device)
    rows = torch.repeat_interleave(nodes, indptr.diff(), output_size=graph.nnz)
    distance = (positions[rows] - positions[indices]).norm(dim=1)
    weights = (weights.double() * torch.exp(-sigma * distance**power)).to(weights.dtype)
    kept = weights >= SMALLEST_WEIGHT  # not where the distance is NaN
    counts = torch.zeros(graph.num_nodes + 1, dtype=torch.int64, device=weights.device)
    counts[1:] = torch.segment_reduce(kept.double(), "sum", offsets=indptr)
    starts, weights = counts.cumsum(0), weights[kept]
    degrees = torch.segment_reduce(weights, "sum", offsets=starts)
    return Graph(starts.int(), graph.indices[kept], weights, degrees)


def _like(x: Any, result: Tensor) -> Any:
    """`result` as an array of the kind of `x`."""

    @accepts_arrays("x")
    def same_kind(x):
        return result

    return same_kind(x)
