"""Backbones: an image becomes dense features."""

from pathlib import Path

from .core import Backbone
from .dino import ALIASES, DinoValues
from .dinov2 import DEFAULT_LAYER, DinoV2
from .maskclip import DEFAULT_MODEL, MaskClip

EMBEDDED = DinoV2.name


def load_backbone(
    name: str,
    weights: str | None = None,
    *,
    layer: int = DEFAULT_LAYER,
    threads: int | None = None,
    flag: str = "--weights",
) -> Backbone:
    """The backbone that a user names.

    Args:
        name: `dinov2-small` (embedded, ONNX), a ViT of DINO or timm, or a CLIP model of open_clip
            (`NAME:TAG`, `hf-hub:...`, `local-dir:...`).
        weights: a local file instead of the download.
        layer: of the embedded model.
        threads: of the embedded model.
        flag: the option that `weights` comes from.

    Returns:
        The backbone.

    Raises:
        UserError: no such model, or its weights cannot be had.
        MissingDependency: a package is not installed.
    """
    if name == EMBEDDED:
        return DinoV2(layer, model=weights, threads=threads)
    file = Path(weights) if weights is not None else None
    if name in ALIASES or "_patch" in name:  # as all ViTs of timm, and none of open_clip
        return DinoValues(name, file, flag)
    return MaskClip(name, file, flag)


__all__ = ["DEFAULT_MODEL", "EMBEDDED", "Backbone", "DinoV2", "DinoValues", "MaskClip", "load_backbone"]
