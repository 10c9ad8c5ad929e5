"""Self-attention of a backbone: features and attention come from one forward pass."""

from typing import TYPE_CHECKING

from torch import Tensor

from ..backbones import AttentiveBackbone
from ..images import to_tensor
from .core import Attention, AttentionSource

if TYPE_CHECKING:
    from PIL.Image import Image


class BackboneAttention(AttentionSource):
    """A block's self-attention, averaged over its heads, without class token and registers.

    Args:
        backbone: a ViT.
        layer: 0-based block; None is the last.

    Attributes:
        backbone: the model, which may carry the vocabulary as well; then call `with_features`.

    Raises:
        UserError: no such block.
    """

    def __init__(self, backbone: AttentiveBackbone, layer: int | None = None):
        self.backbone = backbone
        self.name = backbone.name
        self.identity = {**backbone.identity, "attention_layer": backbone.prepare_attention(layer)}

    def with_features(self, photo: "Image", size: tuple[int, int]) -> tuple[Tensor, Attention]:
        """Features as `Backbone.whole` gives them, [h, w, D], and the attention over the same patches."""
        image = to_tensor(photo, self.backbone.input_size(*size))[None]
        features, attention = self.backbone.dense_with_attention(image)
        return features[0], Attention(attention[0], tuple(features.shape[1:3]))

    def __call__(self, photo: "Image", size: tuple[int, int]) -> Attention:
        """As `AttentionSource.__call__`."""
        return self.with_features(photo, size)[1]
