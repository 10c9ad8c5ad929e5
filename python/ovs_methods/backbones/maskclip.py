"""The patches of a CLIP image tower, in the space that its text tower shares.

CLIP's own last block mixes the patches for the sake of the class token; these replacements need nothing but CLIP:

* `maskclip`, as in LPOSS: the block keeps its residuals and its MLP and loses its attention. Every patch
  attends to itself, so only the value projection is computed.
* `kk`: keys attend to keys, per head softmax(k k^T / sqrt(d)) v, the class token among them; the output projection
  follows, without residuals and without MLP.
* `naclip`, as in NACLIP ("reduced"): as `kk`, and every patch adds a Gaussian of the distance in patches to its
  logits, exp(-|p_i - p_j|^2 / (2 sigma^2)) with sigma 5; nothing is added where a key is the class token.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import UserError
from .clip import DEFAULT_MODEL, ClipBackbone, projected, value_block
from .core import AttentiveBackbone, check_block, mean_attention

FORMS = ("maskclip", "kk", "naclip")
SIGMA = 5.0  # of NACLIP's Gaussian, in patches
_TILE = 2**20  # entries of its table at once: 4 MiB


class MaskClip(ClipBackbone, AttentiveBackbone):
    """Dense features of an open_clip ViT without a second model.

    Args:
        model: as of `ClipBackbone`.
        weights: as of `ClipBackbone`.
        flag: as of `ClipBackbone`.
        features: what becomes of the last block, one of FORMS.

    Raises:
        MissingDependency: open_clip_torch is not installed.
        UserError: no such form or model, not a ViT, or its weights cannot be had.
    """

    def __init__(
        self,
        model: str = DEFAULT_MODEL,
        weights: Path | None = None,
        flag: str = "--weights",
        features: str = FORMS[0],
    ):
        if features not in FORMS:
            raise UserError("--features", f"{', '.join(FORMS[:-1])} or {FORMS[-1]}", f"'{features}'")
        super().__init__(model, weights, flag)
        self.features = features
        self.identity = {**self.text_identity, "features": features}
        self._attention_layer: int | None = None

    def dense(self, images: Tensor) -> Tensor:
        """Features in the space that text shares, [B, h, w, D]; see `Backbone.dense`."""
        return self._run(images, None)[0]

    def prepare_attention(self, layer: int | None = None) -> int:
        """As `AttentiveBackbone.prepare_attention`; the usual block is the last, which CLIP itself runs."""
        self._attention_layer = check_block(layer, len(self._blocks))
        return self._attention_layer

    def dense_with_attention(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """As `AttentiveBackbone.dense_with_attention`; the attention is CLIP's own, whatever `features` is."""
        return self._run(images, self._attention_layer)

    @torch.inference_mode()
    def _run(self, images: Tensor, attention_layer: int | None) -> tuple[Tensor, Tensor]:
        """Features [B, h, w, D], and the attention of a block, [B, N, N] (without one: an empty tensor)."""
        tokens, grid = self._embed(images)
        attention, last = tokens.new_empty(0), self._blocks[-1]
        for number, block in enumerate(self._blocks):
            if number == attention_layer:
                attention = mean_attention(*projected(block, tokens, "qk"), prefix=1)
            if block is not last:
                tokens = self._through(block, tokens)
        if self.features == "maskclip":
            patches = value_block(last, tokens[:, 1:])
        else:
            patches = _key_key_block(last, tokens, grid if self.features == "naclip" else None)
        return self._to_text_space(patches).unflatten(1, grid), attention


def _key_key_block(block: Any, tokens: Tensor, grid: tuple[int, int] | None) -> Tensor:
    """A block with keys attending to keys, [B, N, D] without the class token: no residuals, no MLP.

    Args:
        block: of open_clip.
        tokens: [B, 1 + N, D], what goes into it.
        grid: (h, w) of the patches, with NACLIP's Gaussian; None without.
    """
    keys, values = projected(block, tokens, "kv")
    if grid is None:
        mixed = F.scaled_dot_product_attention(keys[:, :, 1:], keys, values)
    else:
        mixed = _neighbour_aware(keys, values, grid)
    return block.ls_1(block.attn.out_proj(mixed.transpose(1, 2).flatten(2)))


def _neighbour_aware(keys: Tensor, values: Tensor, grid: tuple[int, int]) -> Tensor:
    """softmax(k_i k_j / sqrt(d) + omega_ij) v for the patches i, [B, heads, N, d].

    omega is the product of a table of rows and one of columns. The attention of torch takes it as a bias, which is
    made for so many rows of patches at once that it keeps below 4 MiB, once for all images and heads: one piece up to
    some 1000 patches, as every window has, and never N x N numbers for a large photo.

    Args:
        keys: [B, heads, 1 + N, d], the class token first.
        values: as the keys.
        grid: (h, w) of the patches.
    """
    h, w = grid
    rows, columns = (_gaussian(side, keys) for side in grid)
    step = max(1, _TILE // (w * (1 + h * w)))
    parts = []
    for top in range(0, h, step):
        part = rows[top : top + step, None, :, None] * columns[None, :, None, :]  # [step, w, h, w]
        bias = F.pad(part.reshape(-1, h * w), (1, 0))  # the class token is nobody's neighbour
        queries = keys[:, :, 1 + top * w : 1 + top * w + len(bias)]
        parts.append(F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias))
    return parts[0] if len(parts) == 1 else torch.cat(parts, 2)


def _gaussian(side: int, like: Tensor) -> Tensor:
    """exp(-(i - j)^2 / (2 SIGMA^2)) of a line of patches, [side, side]."""
    places = torch.arange(side, dtype=like.dtype)
    return torch.exp(-((places[:, None] - places) ** 2) / (2 * SIGMA**2))
