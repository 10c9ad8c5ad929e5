"""Backbones: an image becomes dense features."""

from pathlib import Path

from ..errors import UserError
from .core import AttentiveBackbone, Backbone
from .dino import ALIASES, DinoValues
from .dinov2 import DEFAULT_LAYER, DinoV2
from .maskclip import DEFAULT_MODEL, LOGITS, MaskClip

EMBEDDED = DinoV2.name


def load_backbone(
    name: str,
    weights: str | None = None,
    *,
    layer: int = DEFAULT_LAYER,
    threads: int | None = None,
    flag: str = "--weights",
    logits: str | None = None,
) -> AttentiveBackbone:
    """The backbone that a user names.

    Args:
        name: `dinov2-small` (embedded, ONNX), a ViT of DINO or timm, or a CLIP model of open_clip
            (`NAME:TAG`, `hf-hub:...`, `local-dir:...`).
        weights: a local file instead of the download.
        layer: of the embedded model.
        threads: of the embedded model.
        flag: the option that `weights` comes from.
        logits: for CLIP, what becomes of its last block: `maskclip` (also None) or `kk`.

    Returns:
        The backbone.

    Raises:
        UserError: no such model, or its weights cannot be had.
        MissingDependency: a package is not installed.
    """
    if logits is not None and not is_clip(name):
        raise UserError("--logits", "a CLIP backbone, whose last block it is about", f"'{name}'")
    if name == EMBEDDED:
        return DinoV2(layer, model=weights, threads=threads)
    file = Path(weights) if weights is not None else None
    if not is_clip(name):
        return DinoValues(name, file, flag)
    return MaskClip(name, file, flag, logits or LOGITS[0])


def is_clip(name: str) -> bool:
    """Whether `load_backbone` takes a name for a CLIP of open_clip."""
    return name != EMBEDDED and name not in ALIASES and "_patch" not in name  # as all ViTs of timm, none of open_clip


__all__ = [
    "DEFAULT_MODEL",
    "EMBEDDED",
    "LOGITS",
    "AttentiveBackbone",
    "Backbone",
    "DinoV2",
    "DinoValues",
    "MaskClip",
    "is_clip",
    "load_backbone",
]
