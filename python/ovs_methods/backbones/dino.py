"""DINO and DINOv2 features: what a patch looks like, for the graph of LPOSS and as a guide of CLIP's patches."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import UserError
from .core import AttentiveBackbone, check_block, mean_attention, resized_positions, standardized
from .weights import fingerprint, import_models, load_weights, option_of

# The names under which the authors publish them.
ALIASES = {
    "dino_vits16": "vit_small_patch16_224.dino",
    "dino_vits8": "vit_small_patch8_224.dino",
    "dino_vitb16": "vit_base_patch16_224.dino",
    "dino_vitb8": "vit_base_patch8_224.dino",
    "dinov2_vits14": "vit_small_patch14_dinov2.lvd142m",
    "dinov2_vitb14": "vit_base_patch14_dinov2.lvd142m",
    "dinov2_vitl14": "vit_large_patch14_dinov2.lvd142m",
    "dinov2_vits14_reg": "vit_small_patch14_reg4_dinov2.lvd142m",
    "dinov2_vitb14_reg": "vit_base_patch14_reg4_dinov2.lvd142m",
    "dinov2_vitl14_reg": "vit_large_patch14_reg4_dinov2.lvd142m",
}


class DinoValues(AttentiveBackbone):
    """Values of the last block's attention, all heads side by side, of a ViT in timm.

    Attributes:
        features: which they are, "values".

    Args:
        model: key of ALIASES, or any ViT's name in timm.
        weights: a local checkpoint instead of the download: the authors' .pth, or timm's .safetensors.
        flag: the option that `weights` comes from, for error texts.

    Raises:
        MissingDependency: timm is not installed.
        UserError: no such model, not a ViT, or its weights cannot be had.
    """

    features = "values"

    def __init__(self, model: str = "dino_vitb16", weights: Path | None = None, flag: str = "--graph-weights"):
        timm = import_models("timm", "the DINO backbone")
        self.name, full = model, ALIASES.get(model, model)
        if not timm.is_model(full.split(".")[0]):
            known = ", ".join(ALIASES)
            raise UserError(option_of(flag), f"{known}, or a ViT of timm", f"'{model}'")
        overlay = {"file": str(weights)} if weights is not None else None

        def load() -> Any:
            return timm.create_model(full, pretrained=True, num_classes=0, pretrained_cfg_overlay=overlay)

        self._vit = load_weights(load, model, weights, flag, _source(timm, full))
        self._vit.eval().requires_grad_(False)
        plain = isinstance(self._vit, timm.models.VisionTransformer) and self._vit.pos_embed is not None
        if not plain or not hasattr(self._vit.blocks[-1].attn, "qkv"):
            raise UserError(option_of(flag), "a plain ViT with a table of positions", f"'{model}'")
        kept = fingerprint(weights) if weights else None
        self.identity = {"model": full, "weights": kept, "features": self.features}
        self.patch = self._vit.patch_embed.patch_size[0]
        self._attention_layer: int | None = None
        self._mean, self._std = (tuple(self._vit.pretrained_cfg[key]) for key in ("mean", "std"))

    def dense(self, images: Tensor) -> Tensor:
        """Features, [B, h, w, D]; see `Backbone.dense`."""
        return self._run(images, None)[0]

    def prepare_attention(self, layer: int | None = None) -> int:
        """As `AttentiveBackbone.prepare_attention`; the usual block is the last."""
        self._attention_layer = check_block(layer, len(self._vit.blocks))
        return self._attention_layer

    def dense_with_attention(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """As `AttentiveBackbone.dense_with_attention`."""
        return self._run(images, self._attention_layer)

    @torch.inference_mode()
    def _run(self, images: Tensor, attention_layer: int | None) -> tuple[Tensor, Tensor]:
        """Features [B, h, w, D], and the attention of a block, [B, N, N] (without one: an empty tensor)."""
        vit = self._vit
        tokens, prefix, (h, w) = self._embed(images)
        attention = tokens.new_empty(0)
        for number, block in enumerate(vit.blocks):
            if number == attention_layer:
                attention = self._attention(block, tokens, prefix)
            if number < len(vit.blocks) - 1:
                tokens = block(tokens)
        return self._last(tokens, prefix).reshape(len(tokens), h, w, -1), attention

    def _last(self, tokens: Tensor, prefix: int) -> Tensor:
        """Features of the patches, [B, N, D], from what goes into the last block, [B, prefix + N, D]."""
        last, dim = self._vit.blocks[-1], tokens.shape[-1]
        qkv = last.attn.qkv
        bias = qkv.bias[2 * dim :] if qkv.bias is not None else None
        return F.linear(last.norm1(tokens[:, prefix:]), qkv.weight[2 * dim :], bias)

    def _embed(self, images: Tensor) -> tuple[Tensor, int, tuple[int, int]]:
        """What goes into the first block, how many tokens come before the patches, and the grid of these."""
        vit = self._vit
        patches = vit.patch_embed.proj(standardized(images, self.patch, self._mean, self._std))
        batch, _, h, w = patches.shape
        tokens = vit.patch_embed.norm(patches.flatten(2).transpose(1, 2))
        extra = [part.expand(batch, -1, -1) for part in (vit.cls_token, vit.reg_token) if part is not None]
        prefix = sum(part.shape[1] for part in extra)
        table, stored = vit.pos_embed[0], tuple(vit.patch_embed.grid_size)
        placed = len(table) - stored[0] * stored[1]  # tokens besides the patches that have a position
        positions = resized_positions(table, placed, (h, w), stored)
        tokens = torch.cat([*extra, tokens], 1)
        # Without a position: all of the extra tokens, or the registers, which come after the class token.
        unplaced = positions.new_zeros(prefix - placed, positions.shape[1])
        tokens = tokens + torch.cat([positions[:placed], unplaced, positions[placed:]])
        return vit.norm_pre(tokens), prefix, (h, w)

    @staticmethod
    def _attention(block: Any, tokens: Tensor, prefix: int) -> Tensor:
        """Self-attention of a block, [B, N, N]."""
        attn = block.attn
        batch, count, _ = tokens.shape
        qkv = attn.qkv(block.norm1(tokens)).reshape(batch, count, 3, attn.num_heads, -1).permute(2, 0, 3, 1, 4)
        queries, keys = attn.q_norm(qkv[0]), attn.k_norm(qkv[1])
        return mean_attention(queries, keys, prefix)


class DinoTokens(DinoValues):
    """What leaves the network: the output tokens of the last block after the final norm; arguments as `DinoValues`."""

    features = "tokens"

    def _last(self, tokens: Tensor, prefix: int) -> Tensor:
        return self._vit.norm(self._vit.blocks[-1](tokens))[:, prefix:]


def _source(timm: Any, model: str) -> str:
    """Where a person finds the weights."""
    config = timm.get_pretrained_cfg(model)
    if config is None:
        return f"the weights of {model}"
    if config.url:
        return config.url
    return f"https://huggingface.co/{config.hf_hub_id}/resolve/main/model.safetensors"
