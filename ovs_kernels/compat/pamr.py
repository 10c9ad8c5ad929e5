"""`PAMR`, the module of 1-stage-wseg that TCL, NACLIP, CLIP-DINOiser and others carry: same constructor and forward."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..pamr import pamr


def _one_hot_kernels(centre: float, neighbour: float) -> Tensor:
    """[8, 1, 3, 3]: `neighbour` at one of the eight places each, `centre` in the middle."""
    kernels = torch.zeros(8, 1, 3, 3)
    places = [(y, x) for y in range(3) for x in range(3) if (y, x) != (1, 1)]
    for index, (y, x) in enumerate(places):
        kernels[index, 0, y, x] = neighbour
    kernels[:, 0, 1, 1] = centre
    return kernels


class _Shifts(nn.Module):
    """Where the published module keeps its convolution kernels, so that its state dicts load and ours look the same."""

    def __init__(self, dilations: Sequence[int], kernel: Tensor):
        super().__init__()
        self.dilations = dilations
        self.register_buffer("kernel", kernel)


class PAMR(nn.Module):
    """Pixel-adaptive mask refinement with the published module's arguments; see `ovs_kernels.pamr`.

    Args:
        num_iter: iterations.
        dilations: distances of the neighbours.

    Shapes:
        x [B, K, H, W] and mask [B, C, h, w], resized to H x W first -> [B, C, H, W] in the dtype of the mask.

    What differs: the result stays in the dtype of the mask where torch would promote; a NaN in the mask does not reach
    the pixel itself in the first iteration, which the published one-hot convolutions multiply by 0; and no memory is
    needed for neighbours. The gradient reaches the mask, not x.
    """

    def __init__(self, num_iter: int = 1, dilations: Sequence[int] = (1,)):
        super().__init__()
        self.num_iter = num_iter
        self.aff_x = _Shifts(dilations, _one_hot_kernels(1.0, -1.0))
        self.aff_m = _Shifts(dilations, _one_hot_kernels(0.0, 1.0))
        self.aff_std = _Shifts(dilations, torch.eye(9).reshape(9, 1, 3, 3))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Refines `mask` along the edges of `x`."""
        return pamr(x, mask, num_iter=self.num_iter, dilations=list(self.aff_m.dilations))
