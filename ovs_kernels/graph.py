"""Graphs of feature vectors."""

import dataclasses
import warnings

import torch
from torch import Tensor

from . import _ops  # noqa: F401  (registers torch.ops.ovs_kernels)
from ._arrays import accepts_arrays


@dataclasses.dataclass(frozen=True)
class Graph:
    """A symmetric, weighted graph in compressed rows, without self loops.

    The fields are arrays of the kind and on the device that the features had; `tensors` gives torch tensors.

    Attributes:
        indptr: [N + 1] int32, row i of the graph is [indptr[i], indptr[i + 1]) of the arrays below.
        indices: [nnz] int32, columns, ascending within a row.
        weights: [nnz] float32 or float64, all above zero: W itself, not normalised.
        degrees: [N] like `weights`, row sums of W; zero for an isolated node.
    """

    indptr: Tensor
    indices: Tensor
    weights: Tensor
    degrees: Tensor

    @property
    def num_nodes(self) -> int:
        """N."""
        return self.degrees.shape[0]

    @property
    def nnz(self) -> int:
        """Stored links; each pair of linked nodes counts twice."""
        return self.indices.shape[0]

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """`indptr`, `indices`, `weights` and `degrees` as torch tensors, sharing memory."""
        fields = (self.indptr, self.indices, self.weights, self.degrees)
        return tuple(field if isinstance(field, Tensor) else torch.as_tensor(field) for field in fields)

    def to(self, device: torch.device | str) -> "Graph":
        """The same graph on another device, of torch tensors."""
        return Graph(*(field.to(device) for field in self.tensors()))

    def to_sparse_csr(self, normalized: bool = True) -> Tensor:
        """The graph as a torch matrix.

        Args:
            normalized: D^-1/2 W D^-1/2, where D holds the degrees (1 for an isolated node), rather than W.

        Returns:
            [N, N] torch.sparse_csr with int32 indices. W shares the memory of the graph.
        """
        indptr, indices, values, degrees = self.tensors()
        if normalized:
            scale = torch.where(degrees > 0, degrees, 1.0).rsqrt()
            rows = torch.repeat_interleave(scale, indptr.diff(), output_size=self.nnz)
            values = values * (rows * scale[indices])  # in this order, the result is symmetric bit for bit
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sparse", category=UserWarning)  # "is in beta state"
            return torch.sparse_csr_tensor(
                indptr, indices, values, (self.num_nodes, self.num_nodes), check_invariants=False
            )


@accepts_arrays("features", "positions")
def knn_graph(
    features: Tensor,
    k: int,
    *,
    positions: Tensor | None = None,
    gamma: float = 3.0,
    sigma: float = 0.01,
    memory_limit: int | None = None,
) -> Graph:
    """Links every feature vector to its nearest by cosine: the patch graph of LPOSS.

    With u_i the rows of `features` divided by their norms and N(i) the k nodes of the largest s_ij, i itself included::

        s_ij = <u_i, u_j>
        S_ij = max(s_ij, 0)^gamma exp(-sigma |p_i - p_j|)      if j in N(i), else 0
        W    = S + S^T,  W_ii = 0

    so two nodes that chose each other are linked twice as strongly. The result is exact, not approximate.

    Args:
        features: [N, d] float; normalised here, so any scale.
        k: neighbours of a node, itself included: k - 1 others. All N where k is larger.
        positions: [N, 2] float or integer, (y, x) of each node in pixels; None leaves out the factor of the distance.
        gamma: exponent of the similarity, above zero.
        sigma: decay of a link with distance, per pixel, zero or above.
        memory_limit: bytes of scratch memory at most. Without it 2.5 GiB: products of N x N / 2 pairs are kept if they
            fit, otherwise they are computed anew for each of three passes, up to six times the arithmetic, for the same
            graph bit for bit.

    Returns:
        A `Graph` of W. Its weights are float64 for float64 features, else float32.

    Raises:
        TypeError: wrong kind or dtype of an argument.
        ValueError: wrong shape, range or device of an argument, a `memory_limit` that is too small, or 2^31 and more
            links.
        RuntimeError: CUDA tensors, and a build without CUDA or for other cards.

    Devices/dtypes: CPU and CUDA; float32, float16 and bfloat16 (computed in float32); float64 (on CUDA by the
        reference). The products are torch's: on CUDA they are TF32 if torch was told to use it, which moves
        similarities by about 1e-3.
    Differentiable: no.
    Deterministic: yes, on CPU for any number of threads, as far as torch.mm is. W is symmetric bit for bit. Of equal
        similarities at the k-th place, the lower index is the neighbour.
    Non-finite: a row of features that is zero or holds a NaN or Inf has no neighbours and is nobody's; so is, but for its
        place among the k, a node whose position does. A weight S_ij below 1.2e-38 is zero and not stored.
    Memory: on CPU 2 N^2 bytes and on CUDA 4 N^2, or one block of rows (256 N and 1024 N numbers) under a `memory_limit`;
        N d numbers for the unit rows; 8 bytes per link for the result, of which there are between N (k - 1) and twice
        that. On CUDA the host waits once, for the number of links.
    Reference: LPOSS (label propagation over patches). See `ovs_kernels.reference.graph`.

    Example:
        >>> import torch, ovs_kernels
        >>> features = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, 3.0]])   # two pairs
        >>> graph = ovs_kernels.knn_graph(features, 2)
        >>> graph.indices.tolist(), graph.weights.tolist()
        ([1, 0, 3, 2], [2.0, 2.0, 2.0, 2.0])
    """
    return Graph(*torch.ops.ovs_kernels.knn_graph(features, k, positions, gamma, sigma, memory_limit))
