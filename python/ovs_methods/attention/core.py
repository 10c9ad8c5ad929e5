"""What an attention source is: a photo in, one row-stochastic matrix over its patches out."""

import abc
import dataclasses
import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image

_UNIT = 1e-6  # rows this close to 1 are left as they are


@dataclasses.dataclass(frozen=True)
class Attention:
    """Which patches of a photo attend to which; everything that would make it wrong is an error here.

    Attributes:
        matrix: [N, N] float32 on the CPU, rows are queries and sum to 1. Given in any floating or integer type; rows
            that do not sum to 1 are divided by their sums.
        grid: (h, w) with h * w = N: the patches in reading order cover the whole photo.

    Raises:
        TypeError: `matrix` is not a tensor of numbers.
        ValueError: not square, not finite, negative entries, a row of zeros, or another number of patches
            than the grid has.
    """

    matrix: Tensor
    grid: tuple[int, int]

    def __post_init__(self):
        matrix = self.matrix
        if not isinstance(matrix, Tensor) or matrix.is_complex() or matrix.dtype == torch.bool:
            got = matrix.dtype if isinstance(matrix, Tensor) else type(matrix).__name__
            raise TypeError(f"Attention: matrix: expected a tensor of real numbers, got {got}")
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not len(matrix):
            raise ValueError(f"Attention: matrix: expected [N, N] with N >= 1, got {list(matrix.shape)}")
        grid = tuple(self.grid)
        whole = len(grid) == 2 and all(isinstance(side, int) and side >= 1 for side in grid)
        if not whole or math.prod(grid) != len(matrix):
            wanted = f"(h, w) with h * w = {len(matrix)}, the side of the matrix"
            raise ValueError(f"Attention: grid: expected {wanted}, got {grid}")
        matrix = matrix.detach().to("cpu", torch.float32)
        least, most = (bound.item() for bound in matrix.aminmax())
        if not (least >= 0 and most < math.inf):  # false for NaN as well
            got = "NaN" if math.isnan(least) else f"{least if least < 0 else most:g}"
            raise ValueError(f"Attention: matrix: expected finite numbers that are not negative, got {got}")
        sums = matrix.sum(1)
        if sums.isinf().any():
            sums = matrix.sum(1, dtype=torch.float64)
        if (sums == 0).any():
            row = (sums == 0).nonzero()[0].item()
            raise ValueError(f"Attention: matrix: expected rows that attend to something, got row {row} of zeros")
        if (sums - 1).abs().max() > _UNIT:
            matrix = (matrix / sums[:, None]).float()  # float64 only where the sums need it
        object.__setattr__(self, "matrix", matrix)
        object.__setattr__(self, "grid", grid)


class AttentionSource(abc.ABC):
    """Self-attention of photos.

    Attributes:
        name: of the model, for texts.
        identity: everything that decides the attention, as JSON can hold it; stored with results.
    """

    name: str
    identity: dict[str, object]

    @abc.abstractmethod
    def __call__(self, photo: "Image", size: tuple[int, int]) -> Attention:
        """Attention of a photo.

        Args:
            photo: mode RGB, any size.
            size: (H, W), the working size; a source may look at another one.

        Returns:
            The attention; its grid covers the whole photo.
        """
