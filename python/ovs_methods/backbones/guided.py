"""CLIP's patches, pooled over the patches that look alike to a second model, the guide."""

import abc
import math
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from ..images import to_tensor
from .clip import ClipBackbone
from .core import Backbone, nearest_size

if TYPE_CHECKING:
    from PIL.Image import Image


class GuidedClip(ClipBackbone):
    """An open_clip ViT whose patches are pooled as its guide says; the features are on the guide's grid.

    Both models see the same pixels, each standardised as it was trained. Where the sides of a window are no multiples
    of both patches, it is padded with black at the bottom and the right until they are, so that both grids cover
    the same area; patches of the guide that lie in the padding alone take no part.

    Args:
        model: as of `ClipBackbone`.
        weights: as of `ClipBackbone`.
        flag: as of `ClipBackbone`.
        guide: the second model; None where CLIP guides itself.

    Raises:
        MissingDependency: open_clip_torch is not installed.
        UserError: no such model, not a ViT, or its weights cannot be had.
    """

    def __init__(self, model: str, weights: Path | None, flag: str, guide: Backbone | None):
        super().__init__(model, weights, flag)
        self.guide = guide
        self.patch = self._clip_patch if guide is None else guide.patch

    @torch.inference_mode()
    def dense(self, images: Tensor) -> Tensor:
        """Features in the space that text shares, [B, h, w, D] on the guide's grid; see `Backbone.dense`."""
        if self.guide is None:
            return self._pooled(images, None, _grid(images, self.patch))
        step = math.lcm(self._clip_patch, self.patch)
        height, width = images.shape[2:]
        padded = F.pad(images, (0, -width % step, 0, -height % step))
        return self._pooled(padded, self.guide.dense(padded), _grid(images, self.patch))

    @torch.inference_mode()
    def whole(self, photo: "Image", size: tuple[int, int]) -> Tensor:
        """As `Backbone.whole`; each model looks at the photo in the nearest size that its patches cover exactly."""
        image = to_tensor(photo, nearest_size(*size, self._clip_patch))[None]
        if self.guide is None:
            return self._pooled(image, None, _grid(image, self.patch))[0]
        seen = self.guide.dense(to_tensor(photo, nearest_size(*size, self.patch))[None])
        return self._pooled(image, seen, tuple(seen.shape[1:3]))[0]

    @abc.abstractmethod
    def _pooled(self, images: Tensor, guide: Tensor | None, grid: tuple[int, int]) -> Tensor:
        """The features.

        Args:
            images: [B, 3, H, W] in [0, 1], what CLIP sees.
            guide: [B, h', w', G], what the guide says about the same area; None without a guide.
            grid: (h, w) of the features: the first rows and columns of the guide's.

        Returns:
            [B, h, w, D].
        """


def on_grid(tokens: Tensor, own: tuple[int, int], guide: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """CLIP's patches and the guide's on one grid: CLIP's are resized bilinearly (half-pixel centres) to the guide's.

    Args:
        tokens: [B, N, D] of CLIP.
        own: (h, w) of CLIP's grid, N = h * w.
        guide: [B, h', w', G].
        grid: (h, w) that is kept, from the first row and column.

    Returns:
        [B, h * w, D] and [B, h * w, G].
    """
    wanted = tuple(guide.shape[1:3])
    if own != wanted:
        planes = tokens.transpose(1, 2).unflatten(2, own)
        planes = F.interpolate(planes, wanted, mode="bilinear", align_corners=False)
        tokens = planes.flatten(2).transpose(1, 2)
    if grid != wanted:
        tokens = tokens.unflatten(1, wanted)[:, : grid[0], : grid[1]].flatten(1, 2)
        guide = guide[:, : grid[0], : grid[1]]
    return tokens.contiguous(), guide.flatten(1, 2).contiguous()


def _grid(images: Tensor, patch: int) -> tuple[int, int]:
    """(h, w) patches that cover images [B, 3, H, W]."""
    return -(-images.shape[2] // patch), -(-images.shape[3] // patch)
