"""CLIP-DINOiser: a patch of MaskCLIP is the mean of those that look like it.

With unit descriptors g of a window's patches, `a_ij = <g_i, g_j>`, 0 where that is below 0.2, and MaskCLIP's features f
in the space of text, not of length 1: `f'_i = sum_j a_ij f_j / (sum_j a_ij + 1e-6)`. Training-free, g comes from a
second model; the published model has learned to read it from CLIP itself, by a 3 x 3 convolution over the output
of `ln_2` of CLIP's third block from the end.
"""

import dataclasses
import functools
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from ovs_kernels import affinity_pool

from ..errors import UserError
from .clip import attended, value_block
from .core import Backbone
from .guided import GuidedClip, on_grid
from .weights import fingerprint, load_weights

THRESHOLD = 0.2
_BLOCK = -3  # whose ln_2 the projection reads


@dataclasses.dataclass(frozen=True)
class Projection:
    """The learned convolution.

    Attributes:
        weight: [E, width, 3, 3] float32.
        bias: [E] float32.
        path: of its file, for error texts.
        identity: names its content.
    """

    weight: Tensor
    bias: Tensor
    path: Path
    identity: str

    def __call__(self, patches: Tensor) -> Tensor:
        """Descriptors [B, E, h, w] of patches [B, width, h, w]; the rim is continued by its own patches."""
        return F.conv2d(F.pad(patches, (1, 1, 1, 1), mode="replicate"), self.weight, self.bias)


def read_projection(path: Path, flag: str = "--projection") -> Projection:
    """Reads CLIP-DINOiser's checkpoint; nothing in it is executed.

    Args:
        path: a file of torch.save, with `obj_proj.weight` and `obj_proj.bias`, by themselves or in `model_state_dict`;
            other keys do not matter.
        flag: the option that it comes from, for error texts.

    Returns:
        The convolution.

    Raises:
        UserError: no such file, not a checkpoint, or without those keys or with other shapes.
    """
    status = path.stat() if path.is_file() else None
    return _read(path, flag, None if status is None else (status.st_size, status.st_mtime_ns, status.st_ino))


@functools.lru_cache(maxsize=1)  # it is judged before it is used, and a run reads it once
def _read(path: Path, flag: str, version: tuple[int, ...] | None) -> Projection:
    model = "CLIP-DINOiser (obj_proj.weight [E, width, 3, 3] and obj_proj.bias [E])"
    load = functools.partial(torch.load, path, map_location="cpu", weights_only=True)
    content, wanted = load_weights(load, model, path, flag, ""), f"a checkpoint of {model}"
    state = content.get("model_state_dict", content) if isinstance(content, dict) else content
    if not isinstance(state, dict):
        raise UserError(flag, wanted, f"{path} with a {type(state).__name__}")
    weight, bias = state.get("obj_proj.weight"), state.get("obj_proj.bias")
    if not (isinstance(weight, Tensor) and isinstance(bias, Tensor)):
        keys = ", ".join(map(str, list(state)[:3])) or "nothing"
        raise UserError(flag, wanted, f"{path} with {keys}{', ...' if len(state) > 3 else ''}")
    if weight.ndim != 4 or weight.shape[2:] != (3, 3) or bias.shape != weight.shape[:1] or 0 in weight.shape:
        raise UserError(flag, wanted, f"{path} with {list(weight.shape)} and {list(bias.shape)}")
    return Projection(weight.float(), bias.float(), path, fingerprint(path))


class ClipDinoiser(GuidedClip):
    """Dense features of an open_clip ViT, as in CLIP-DINOiser.

    Args:
        model: as of `ClipBackbone`; published with `ViT-B-16:laion2b_s34b_b88k`.
        guide: which patches look alike, training-free: published with the values of DINO ViT-B/16. Or
        projection: the learned convolution instead of a guide.
        weights: as of `ClipBackbone`.
        flag: as of `ClipBackbone`.

    Raises:
        MissingDependency: open_clip_torch is not installed.
        UserError: no such model, not a ViT, its weights cannot be had, or it is not the one that the projection reads.
        ValueError: neither guide nor projection, or both.
    """

    def __init__(
        self,
        model: str,
        guide: Backbone | None = None,
        projection: Projection | None = None,
        weights: Path | None = None,
        flag: str = "--weights",
    ):
        if (guide is None) == (projection is None):
            raise ValueError("ClipDinoiser: guide, projection: expected one of the two")
        super().__init__(model, weights, flag, guide)
        self.features = "clip-dinoiser"
        self.identity = {**self.text_identity, "features": self.features}
        if guide is not None:
            self.identity["guide"] = guide.identity
        self._projection = projection
        if projection is None:
            return
        self.identity["projection"] = projection.identity
        if projection.weight.shape[1] != self.width or len(self._blocks) < -_BLOCK:
            wanted = f"one for {self.name}, obj_proj.weight [E, {self.width}, 3, 3]"
            if len(self._blocks) < -_BLOCK:
                wanted = f"a CLIP with {-_BLOCK} blocks or more ({self.name} has {len(self._blocks)})"
            raise UserError("--projection", wanted, f"{projection.path} with {list(projection.weight.shape)}")

    def _pooled(self, images: Tensor, guide: Tensor | None, grid: tuple[int, int]) -> Tensor:
        if self._projection is None:
            tokens, own = self._before_last(images)
        else:
            tokens, own, guide = self._before_last_with_descriptors(images)
        features = self._to_text_space(value_block(self._blocks[-1], tokens[:, 1:]))
        features, seen = on_grid(features, own, guide, grid)
        pooled = affinity_pool(features, seen, form="clip_dinoiser", threshold=THRESHOLD)
        return pooled.unflatten(1, grid)

    def _before_last_with_descriptors(self, images: Tensor) -> tuple[Tensor, tuple[int, int], Tensor]:
        """What `_before_last` gives, and the learned descriptors [B, h, w, E]."""
        tokens, grid = self._embed(images)
        tapped, descriptors = len(self._blocks) + _BLOCK, tokens
        for number, block in enumerate(self._blocks[:-1]):
            if number != tapped:
                tokens = self._through(block, tokens)
                continue
            tokens = attended(block, tokens)
            inner = block.ln_2(tokens)
            planes = inner[:, 1:].transpose(1, 2).unflatten(2, grid)
            descriptors = self._projection(planes).permute(0, 2, 3, 1)
            tokens = tokens + block.ls_2(block.mlp(inner))
        return tokens, grid, descriptors
