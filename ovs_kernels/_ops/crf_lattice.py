"""Lattices for the kernels of `dense_crf` and `permutohedral_filter`, built in two stages."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .. import _native

LATTICE = "permutohedral_lattice"  # not an operator: a stage of both

# The fields of the compiled module's CrfTerm.
NO_TERM = {
    "exact": False,
    "num_features": 0,
    "num_vertices": 0,
    "count": 0,
    "vertices": 0,
    "weights": 0,
    "starts": 0,
    "points": 0,
    "entry_weights": 0,
    "neighbours": 0,
    "sx": 0.0,
    "sy": 0.0,
    "compat_rank": 0,
    "compat": 0.0,
    "table": 0,
}


def scratch_bytes(operator: str, arguments: Mapping[str, object], on_cuda: bool) -> int:
    """Size of the scratch memory that `operator` takes."""
    if on_cuda:
        return getattr(_native.cuda_module(operator), f"{operator}_cuda_workspace_bytes")(**arguments)
    threads = torch.get_num_threads()
    return getattr(_native.cpu_module(), f"{operator}_cpu_workspace_bytes")(**arguments, num_threads=threads)


class Lattice:
    """A lattice whose vertices are numbered; `link_all` completes it. Its weights are used up by one call.

    Args:
        planes: [F, N] float64.
        scales: [D], D = F, or F + 2 with the positions of an image in front.
        width: of the image whose pixels the points are, 0 for points of no image.
        num_points: N.
        dtype: of the weights.
        on_cuda: build it with the CUDA kernels.
    """

    def __init__(
        self, planes: Tensor, scales: list[float], width: int, num_points: int, dtype: torch.dtype, on_cuda: bool
    ):
        device, corners = planes.device, len(scales) + 1
        self.planes = planes.contiguous()
        self.scales, self.num_points, self.dtype, self.on_cuda = scales, num_points, dtype, on_cuda
        self.vertices = _native.allocate((num_points, corners), torch.int32, device)
        self.weights = _native.allocate((num_points, corners), dtype, device)
        self.count = _native.allocate((1,), torch.int32, device)
        arguments = {
            "planes": self.planes.data_ptr(),
            "scales": scales,
            "num_points": num_points,
            "width": width,
            "positions": len(scales) > len(planes),
            "vertices": self.vertices.data_ptr(),
            "weights": self.weights.data_ptr(),
            "count": self.count.data_ptr(),
            "dtype": _native.DTYPES[dtype],
        }
        first = {"stage": 0, "num_vertices": 0, "starts": 0, "points": 0, "entry_weights": 0, "neighbours": 0}
        self.build_bytes = scratch_bytes(LATTICE, arguments | first, on_cuda)
        prepare = _native.prepare_cuda if on_cuda else _native.prepare_cpu
        self._run = prepare(LATTICE, device, arguments, first)
        self.num_vertices = self._run(**first)  # None on CUDA: `count` has it

    def link(self, num_vertices: int) -> None:
        """The second stage, with room for so many vertices; frees what only building takes."""
        device, corners = self.vertices.device, len(self.scales) + 1
        self.num_vertices = num_vertices
        self.starts = _native.allocate((num_vertices + 1,), torch.int32, device)
        self.points = _native.allocate((self.num_points * corners,), torch.int32, device)
        self.entry_weights = _native.allocate((self.num_points * corners,), self.dtype, device)
        self.neighbours = _native.allocate((corners, num_vertices, 2), torch.int32, device)
        self._run(
            stage=1,
            num_vertices=num_vertices,
            starts=self.starts.data_ptr(),
            points=self.points.data_ptr(),
            entry_weights=self.entry_weights.data_ptr(),
            neighbours=self.neighbours.data_ptr(),
        )
        del self._run, self.planes

    @property
    def num_bytes(self) -> int:
        """Of the arrays of a complete lattice."""
        arrays = (self.vertices, self.weights, self.starts, self.points, self.entry_weights, self.neighbours)
        return sum(array.nbytes for array in arrays)

    def term(self) -> dict[str, object]:
        """The fields of the compiled module's CrfTerm."""
        pointers = ("count", "vertices", "weights", "starts", "points", "entry_weights", "neighbours")
        return {
            **NO_TERM,
            "num_features": len(self.scales),
            "num_vertices": self.num_vertices,
            **{name: getattr(self, name).data_ptr() for name in pointers},
        }


def link_all(lattices: Sequence[Lattice]) -> None:
    """Second stages. On CUDA the host waits once, for the numbers of vertices of all.

    A stream that is being captured into a graph cannot be waited for: there is room for the most vertices then, and
    the kernels take the number from the device.
    """
    if not lattices:
        return
    if not lattices[0].on_cuda:
        counts = [lattice.num_vertices for lattice in lattices]
    elif lattices[0].count.is_cuda and torch.cuda.is_current_stream_capturing():
        counts = [lattice.vertices.numel() for lattice in lattices]
    else:
        counts = torch.cat([lattice.count for lattice in lattices]).tolist()
    for lattice, count in zip(lattices, counts, strict=True):
        lattice.link(count)
