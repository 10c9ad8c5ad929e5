"""What every backbone is: a batch of images in, one feature vector per patch out."""

import abc
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from ovs_kernels import attention_mean

from ..errors import UserError
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


class TextBackbone(Backbone):
    """A backbone whose features share their space with text.

    Attributes:
        text_identity: everything that decides the embeddings of text, as JSON can hold it. It does not depend on what
            becomes of the patches, so all forms of one model share them.
    """

    text_identity: dict[str, object]

    @abc.abstractmethod
    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        """Embeddings of prompts, [len(prompts), D] float32, of length 1."""


class AttentiveBackbone(Backbone):
    """A backbone whose self-attention can be read."""

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """The nearest size whose sides are multiples of the patch: the patches cover the whole photo and no rim."""
        return nearest_size(height, width, self.patch)

    @abc.abstractmethod
    def prepare_attention(self, layer: int | None = None) -> int:
        """Makes ready for `dense_with_attention`.

        Args:
            layer: 0-based block whose self-attention is wanted; None is the model's usual one.

        Returns:
            The block.

        Raises:
            UserError: no such block.
        """

    @abc.abstractmethod
    def dense_with_attention(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """`dense`, and what the patches attend to in the same forward pass.

        Args:
            images: as of `dense`.

        Returns:
            The features, and [B, N, N] float32 with N = h * w: the block's softmax maps averaged over its heads,
            without the tokens that are no patches, rows sum to 1 again.
        """


def nearest_size(height: int, width: int, patch: int) -> tuple[int, int]:
    """The nearest size whose sides are multiples of the patch, at least one."""
    return max(1, round(height / patch)) * patch, max(1, round(width / patch)) * patch


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


def mean_attention(queries: Tensor, keys: Tensor, prefix: int) -> Tensor:
    """A block's self-attention among patches, averaged over its heads.

    Args:
        queries: [B, heads, prefix + N, d].
        keys: as the queries.
        prefix: tokens before the patches: class token and registers. They take part in the softmax.

    Returns:
        [B, N, N], rows sum to 1.
    """
    maps = [attention_mean(q, k, drop_first=prefix) for q, k in zip(queries, keys, strict=True)]
    return maps[0][None] if len(maps) == 1 else torch.stack(maps)


def check_block(layer: int | None, blocks: int) -> int:
    """The block that `--attention-layer` means; None is the last."""
    if layer is None:
        return blocks - 1
    if not 0 <= layer < blocks:
        raise UserError("--attention-layer", f"0 to {blocks - 1}", layer)
    return layer


def of_patches(attention: Tensor, prefix: int) -> Tensor:
    """Attention among patches: the other tokens' rows and columns dropped, rows that sum to 1 again.

    Args:
        attention: [..., prefix + N, prefix + N], rows sum to 1.
        prefix: tokens before the patches: class token and registers.

    Returns:
        [..., N, N]; a patch that attends to no patch at all attends to itself.
    """
    kept = attention[..., prefix:, prefix:]
    total = kept.sum(-1, keepdim=True)
    none = total == 0
    if none.any():
        eye = torch.eye(kept.shape[-1], dtype=kept.dtype)
        kept, total = torch.where(none, eye, kept), torch.where(none, torch.ones_like(total), total)
    return kept / total
