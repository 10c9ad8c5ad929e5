"""The filter of `permutohedral_filter` for many calls with the same features: the lattice is built once."""

import torch
from torch import Tensor

from .. import _native
from ..reference import crf as reference
from .crf import FILTER, NORMALIZATIONS
from .crf_lattice import Lattice, link_all


class LatticeFilter:
    """Filters values by the lattice of some points, on the CPU in float32.

    Args:
        features: [N, D] float32.
        normalization: as of `permutohedral_filter`.
    """

    def __init__(self, features: Tensor, normalization: str):
        self.features, self.normalization = features, normalization
        self.lattice, self.result = None, None
        if features.shape[0] > 0 and not _native.use_reference(False):
            num_points, num_features = features.shape
            planes = features.double().t()
            self.lattice = Lattice(planes, [1.0] * num_features, 0, num_points, torch.float32, on_cuda=False)
            link_all([self.lattice])
            # A call uses the weights up.
            self.kept = self.lattice.weights.clone(), self.lattice.entry_weights.clone()

    def __call__(self, values: Tensor) -> Tensor:
        """[N, C] float32 -> [N, C], in memory that the next call uses again."""
        if values.numel() == 0:
            return values.clone()
        if self.lattice is None:
            return reference.permutohedral_filter(self.features, values, normalization=self.normalization)
        self.lattice.weights.copy_(self.kept[0])
        self.lattice.entry_weights.copy_(self.kept[1])
        values = values.contiguous()
        if self.result is None or self.result.shape != values.shape:
            self.result = _native.allocate(tuple(values.shape), values.dtype, values.device)
        arguments = {
            "values": values.data_ptr(),
            "out": self.result.data_ptr(),
            "terms": [self.lattice.term()],
            "num_points": values.shape[0],
            "num_classes": values.shape[1],
            "transpose": False,
            "normalization": NORMALIZATIONS.index(self.normalization),
            "dtype": _native.DTYPES[values.dtype],
        }
        _native.call(FILTER, values.device, arguments, False)
        return self.result
