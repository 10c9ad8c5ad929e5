"""Attention sources: which patches of a photo attend to which, from models or files."""

from pathlib import Path

from ..backbones import EMBEDDED, AttentiveBackbone, DinoV2, load_backbone
from ..backbones.dinov2 import DEFAULT_LAYER
from ..errors import UserError
from .backbone import BackboneAttention
from .core import Attention, AttentionSource
from .matrix import SUFFIXES, MatrixAttention, read_matrix

DEFAULT_ATTENTION = EMBEDDED
FILE = "file"


def load_attention(
    name: str,
    weights: str | None = None,
    *,
    layer: str | int | None = None,
    grid: tuple[int, int] | None = None,
    backbone: AttentiveBackbone | None = None,
    threads: int | None = None,
    flag: str = "--attention-weights",
) -> AttentionSource:
    """The attention source that a user names.

    Args:
        name: any name of a backbone that `load_backbone` takes, or `file` with a matrix in `weights`; the path of
            a matrix (.npy, .npz, .pt) also does.
        weights: a local file instead of the download.
        layer: 0-based block of a ViT; None is its usual one.
        grid: (h, w) of a matrix, if it is neither square nor in the file.
        backbone: the model called `name`, if it is loaded already: features and attention can then come from one
            forward pass (`BackboneAttention.with_features`).
        threads: of the embedded model.
        flag: the option that `weights` comes from.

    Returns:
        The source.

    Raises:
        UserError: no such model or file, or it cannot be used.
        MissingDependency: a package is not installed.
    """
    if name == FILE or name.lower().endswith(SUFFIXES):
        if name == FILE and weights is None:
            raise UserError(f"--attention {FILE}", f"{flag} with a matrix ({' '.join(SUFFIXES)})", "none")
        return read_matrix(Path(weights if weights is not None else name), grid, flag)
    block = _block(layer)
    if backbone is None and name == EMBEDDED:
        block = DEFAULT_LAYER if block is None else block
        backbone = DinoV2(block, model=weights, attention_layer=block, threads=threads)
    elif backbone is None:
        backbone = load_backbone(name, weights, threads=threads, flag=flag)
    return BackboneAttention(backbone, block)


def _block(layer: str | int | None) -> int | None:
    """The number of a ViT's block, as a user writes it."""
    if layer is None or isinstance(layer, int):
        return layer
    if not layer.isdecimal():
        raise UserError("--attention-layer", "the number of a block, from 0", f"'{layer}'")
    return int(layer)


__all__ = [
    "DEFAULT_ATTENTION",
    "Attention",
    "AttentionSource",
    "BackboneAttention",
    "MatrixAttention",
    "load_attention",
    "read_matrix",
]
