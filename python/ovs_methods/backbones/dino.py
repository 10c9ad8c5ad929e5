"""DINO and DINOv2 value features: what a patch looks like, for the graph of LPOSS."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import UserError
from .core import Backbone, resized_positions, standardized
from .weights import fingerprint, import_models, load_weights

# The names under which the authors publish them.
ALIASES = {
    "dino_vits16": "vit_small_patch16_224.dino",
    "dino_vits8": "vit_small_patch8_224.dino",
    "dino_vitb16": "vit_base_patch16_224.dino",
    "dino_vitb8": "vit_base_patch8_224.dino",
    "dinov2_vits14": "vit_small_patch14_dinov2.lvd142m",
    "dinov2_vitb14": "vit_base_patch14_dinov2.lvd142m",
    "dinov2_vitl14": "vit_large_patch14_dinov2.lvd142m",
}


class DinoValues(Backbone):
    """Values of the last block's attention, all heads side by side, of a ViT in timm.

    Args:
        model: key of ALIASES, or any ViT's name in timm.
        weights: a local checkpoint instead of the download: the authors' .pth, or timm's .safetensors.
        flag: the option that `weights` comes from, for error texts.

    Raises:
        MissingDependency: timm is not installed.
        UserError: no such model, not a ViT, or its weights cannot be had.
    """

    def __init__(self, model: str = "dino_vitb16", weights: Path | None = None, flag: str = "--graph-weights"):
        timm = import_models("timm", "the DINO backbone")
        self.name, full = model, ALIASES.get(model, model)
        if not timm.is_model(full.split(".")[0]):
            known = ", ".join(ALIASES)
            raise UserError(flag.replace("weights", "backbone"), f"{known}, or a ViT of timm", f"'{model}'")
        overlay = {"file": str(weights)} if weights is not None else None

        def load() -> Any:
            return timm.create_model(full, pretrained=True, num_classes=0, pretrained_cfg_overlay=overlay)

        self._vit = load_weights(load, model, weights, flag, _source(timm, full))
        self._vit.eval().requires_grad_(False)
        plain = isinstance(self._vit, timm.models.VisionTransformer) and self._vit.pos_embed is not None
        if not plain or not hasattr(self._vit.blocks[-1].attn, "qkv"):
            raise UserError(flag.replace("weights", "backbone"), "a plain ViT with a table of positions", f"'{model}'")
        self.identity = {"model": full, "weights": fingerprint(weights) if weights else None}
        self.patch = self._vit.patch_embed.patch_size[0]
        self._mean, self._std = (tuple(self._vit.pretrained_cfg[key]) for key in ("mean", "std"))

    @torch.inference_mode()
    def dense(self, images: Tensor) -> Tensor:
        """Value features, [B, h, w, D]; see `Backbone.dense`."""
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
        tokens = vit.norm_pre(tokens)
        *blocks, last = vit.blocks
        for block in blocks:
            tokens = block(tokens)
        qkv, dim = last.attn.qkv, tokens.shape[-1]
        bias = qkv.bias[2 * dim :] if qkv.bias is not None else None
        values = F.linear(last.norm1(tokens[:, prefix:]), qkv.weight[2 * dim :], bias)
        return values.reshape(batch, h, w, -1)


def _source(timm: Any, model: str) -> str:
    """Where a person finds the weights."""
    config = timm.get_pretrained_cfg(model)
    if config is None:
        return f"the weights of {model}"
    if config.url:
        return config.url
    return f"https://huggingface.co/{config.hf_hub_id}/resolve/main/model.safetensors"
