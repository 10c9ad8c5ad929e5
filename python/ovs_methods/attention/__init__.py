"""Attention sources: which patches of a photo attend to which, from models or files."""

from pathlib import Path

from ..backbones import DEFAULT_MODEL, EMBEDDED, AttentiveBackbone, DinoV2, load_backbone
from ..backbones.dinov2 import NUM_LAYERS
from ..errors import UserError
from .backbone import BackboneAttention
from .core import Attention, AttentionSource
from .diffusion import DIFFUSION, DiffusionAttention, is_diffusion, weight_files
from .matrix import MatrixAttention, is_matrix, read_matrix

# Short names: the models of DSLO's comparison.
SHORT_NAMES = {"clip": DEFAULT_MODEL, "dino": "dino_vitb8", "dinov2": "dinov2_vitb14"}


def load_attention(
    name: str,
    weights: str | None = None,
    *,
    layer: str | int | None = None,
    grid: tuple[int, int] | None = None,
    image_size: int = 512,
    backbone: AttentiveBackbone | None = None,
    threads: int | None = None,
    flag: str = "--attention-weights",
) -> AttentionSource:
    """The attention source that a user names.

    Args:
        name: `sd2`, `ORG/REPO` of the hub or a folder (Stable Diffusion in diffusers); any backbone of
            `load_backbone`, or one of SHORT_NAMES; or a matrix in a file (.npy, .npz, .pt).
        weights: a local file or folder instead of the download.
        layer: 0-based block of a ViT, None is the last; for Stable Diffusion `NAME[:WEIGHT],...`.
        grid: (h, w) of a matrix, if it is neither square nor in the file.
        image_size: side of the square that Stable Diffusion sees.
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
    if is_matrix(name):
        return read_matrix(Path(name), grid, "--attention")
    if is_diffusion(name):
        folder, blocks = Path(weights) if weights is not None else None, None if layer is None else str(layer)
        return DiffusionAttention(name, folder, blocks=blocks, image_size=image_size, flag=flag)
    block, name = _block(layer), SHORT_NAMES.get(name, name)
    if backbone is None and name == EMBEDDED:
        block = NUM_LAYERS - 1 if block is None else block
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


def attention_files(name: str, weights: str | None = None) -> list[Path]:
    """The local files that decide the attention of a source; none where it is downloaded or embedded."""
    if weights is None and (name == DIFFUSION or not (is_matrix(name) or is_diffusion(name))):
        return []
    path = Path(weights if weights is not None else name)
    if path.is_dir():
        return weight_files(path)
    return [path] if path.is_file() else []


__all__ = [
    "DIFFUSION",
    "SHORT_NAMES",
    "Attention",
    "AttentionSource",
    "BackboneAttention",
    "DiffusionAttention",
    "MatrixAttention",
    "attention_files",
    "is_diffusion",
    "is_matrix",
    "load_attention",
    "read_matrix",
]
