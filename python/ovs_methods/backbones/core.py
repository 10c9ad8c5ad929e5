"""What every backbone is: a batch of images in, one feature vector per patch out."""

import abc
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from ..images import to_tensor

if TYPE_CHECKING:
    from PIL.Image import Image

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Backbone(abc.ABC):
    """Dense features of images.

    Attributes:
        name: of the model, for texts.
        identity: everything that decides the features, as JSON can hold it; stored with results.
        patch: side of a patch in pixels.
    """

    name: str
    identity: dict[str, object]
    patch: int

    @abc.abstractmethod
    def dense(self, images: Tensor) -> Tensor:
        """Features of images that are not resized, only padded to whole patches.

        Args:
            images: [B, 3, H, W] float32 RGB in [0, 1].

        Returns:
            [B, ceil(H / patch), ceil(W / patch), D] float32, of any length.
        """

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """The size at which a whole photo is looked at, when (height, width) is the working size."""
        return height, width

    def whole(self, photo: "Image", size: tuple[int, int]) -> Tensor:
        """Features of a photo in one piece, [h, w, D], of any length; `size` is the working size (H, W)."""
        return self.dense(to_tensor(photo, self.input_size(*size))[None])[0]

    def __call__(self, photo: "Image", size: tuple[int, int]) -> Tensor:
        """As `whole`, of length 1 along the last axis."""
        return F.normalize(self.whole(photo, size), dim=-1)


def standardized(images: Tensor, patch: int, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Pads with black at the bottom and the right to whole patches, then subtracts mean and divides by std."""
    height, width = images.shape[2:]
    padded = F.pad(images, (0, -width % patch, 0, -height % patch))
    shape = (1, 3, 1, 1)
    return (padded - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)


def resized_positions(table: Tensor, prefix: int, grid: tuple[int, int], stored: tuple[int, int]) -> Tensor:
    """A ViT's positional embedding for another grid of patches: bicubic, half-pixel centres.

    The table itself is left alone, so one model can serve windows of several sizes, also at once.

    Args:
        table: [prefix + stored[0] * stored[1], D].
        prefix: rows of the table that belong to no patch.
        grid: (h, w) wanted.
        stored: (h, w) of the table.

    Returns:
        [prefix + h * w, D].
    """
    if grid == stored:
        return table
    square = table[prefix:].reshape(1, *stored, -1).permute(0, 3, 1, 2)
    patches = F.interpolate(square, grid, mode="bicubic", align_corners=False)[0].flatten(1).T
    return torch.cat([table[:prefix], patches])
