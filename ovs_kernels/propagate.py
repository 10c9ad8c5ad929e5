"""Label propagation over a sparse graph."""

from typing import Any

import torch
from torch import Tensor

from . import _ops  # noqa: F401  (registers torch.ops.ovs_kernels)
from ._arrays import accepts_arrays, as_tensor
from ._checks import kind_text, shape_text, wrong_type, wrong_value
from .pixels import PropagationInfo

GRAPH_KINDS = "an ovs_kernels.Graph, a torch.sparse_csr tensor, or a scipy or cupyx sparse matrix"


@accepts_arrays("scores")
def lp_graph(
    graph: Any,
    scores: Tensor,
    *,
    alpha: float = 0.95,
    mode: str = "official",
    max_iter: int | None = None,
    tol: float = 1e-6,
    check: bool = True,
    return_info: bool = False,
) -> Tensor | tuple[Tensor, PropagationInfo]:
    """Spreads class scores over the nodes of a graph: the patch stage of LPOSS.

    ::

        (I - alpha D^-1/2 W D^-1/2) X = Y                  Y: scores, D: row sums of W, X: result

    All classes are advanced together.

    Args:
        graph: the symmetric weights W >= 0 of N nodes, not normalised: an `ovs_kernels.Graph`, a `torch.sparse_csr`
            tensor [N, N], or a scipy or cupyx sparse matrix [N, N] (one that is not CSR is converted). A diagonal
            entry links a node with itself.
        scores: [N, C] float, any scale: class scores per node.
        alpha: share of a node's result that comes from its neighbours, in (0, 1).
        mode: "official" takes `max_iter` steps of conjugate gradients per class, as the published code does (which is
            not converged); "exact" takes as many as bring |Y - L X| below tol |Y|. In float32 rounding keeps the true
            residual at about 5e-6 |Y|.
        max_iter: steps at most; None is 10 in "official" and as many as `tol` needs in "exact" (about 25 with the
            defaults).
        tol: relative residual at which a class stops, in both modes.
        check: verify that the weights are finite, not negative and symmetric; an `ovs_kernels.Graph` is trusted. Row
            starts and columns are verified on the CPU in any case. On CUDA the check waits for the device, and without
            it nothing is verified there.
        return_info: also return a `PropagationInfo`. In "exact" it costs one more step, to measure the residual.

    Returns:
        The scores [N, C] in the dtype and kind of `scores`, up to 1 / (1 - alpha) times larger than they came. With
        `return_info` a tuple of that and the info.

    Raises:
        TypeError: wrong kind or dtype of an argument.
        ValueError: wrong shape, range or device of an argument, or a graph that `check` refuses.
        RuntimeError: CUDA tensors, and a build without CUDA or for other cards.

    Devices/dtypes: CPU and CUDA; float32, float16 and bfloat16 (computed in float32); float64 (on CUDA by the
        reference). The dtype of `scores` decides; weights of another one are converted.
    Differentiable: by `scores`, in mode="exact" (one more solve); mode="official" refuses in backward. Not by the
        weights.
    Deterministic: yes, on CPU for any number of threads.
    Non-finite: a class with a NaN or Inf score comes back as NaN everywhere; the other classes are not touched. A node
        without links keeps its scores: X = Y there in "exact"; in "official" the step lengths, which all nodes share,
        leave it near them.
    Memory: on CPU 6 bytes per link (8 above 65,536 nodes), and 16 bytes per node and class for at most 32 classes at a
        time; on CUDA 4 bytes per link, and 16 bytes per node and class for at most 256 classes at a time. Twice that in
        float64.
    Reference: LPOSS (label propagation at the patch level), equation of the propagation with S = D^-1/2 W D^-1/2. See
        `ovs_kernels.reference.propagate`.

    Example:
        >>> import torch, ovs_kernels
        >>> chain = torch.diag(torch.ones(4), 1) + torch.diag(torch.ones(4), -1)     # 5 nodes in a row
        >>> scores = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 1.0]])
        >>> result = ovs_kernels.lp_graph(chain.to_sparse_csr(), scores, mode="exact")
        >>> (result[:, 0] > result[:, 1]).tolist()
        [True, True, False, False, False]
    """
    indptr, indices, weights, degrees, trusted = _read_graph(graph, scores.device)
    result, iterations, residuals = torch.ops.ovs_kernels.lp_graph(
        indptr, indices, weights, degrees, scores, alpha, mode, max_iter, tol, check and not trusted, return_info
    )
    return (result, PropagationInfo(iterations, residuals)) if return_info else result


def _read_graph(graph: Any, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor | None, bool]:
    """indptr, indices, weights, degrees or None, and whether the graph is one of ours."""
    if all(hasattr(graph, name) for name in ("indptr", "indices", "weights", "degrees")):
        parts = (graph.indptr, graph.indices, graph.weights, graph.degrees)
        return *(as_tensor("lp_graph", "graph", part) for part in parts), True
    if isinstance(graph, Tensor):
        if graph.layout is not torch.sparse_csr:
            wrong_type(
                "lp_graph", "graph", GRAPH_KINDS, f"a tensor of layout {str(graph.layout).removeprefix('torch.')}"
            )
        _expect_square(graph.shape)
        return graph.crow_indices(), graph.col_indices(), graph.values().detach(), None, False
    if hasattr(graph, "tocsr"):  # scipy and cupyx
        _expect_square(graph.shape)
        matrix = graph.tocsr()
        parts = (matrix.indptr, matrix.indices, matrix.data)
        # A scipy matrix has no device of its own and follows the scores.
        tensors = [as_tensor("lp_graph", "graph", part) for part in parts]
        return *(part.to(device) if part.device.type == "cpu" else part for part in tensors), None, False
    wrong_type("lp_graph", "graph", GRAPH_KINDS, kind_text(graph))


def _expect_square(shape: tuple[int, ...]) -> None:
    if len(shape) != 2 or shape[0] != shape[1]:
        wrong_value("lp_graph", "graph", "a square matrix [N, N]", shape_text(shape))
