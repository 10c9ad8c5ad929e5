"""Self-attention of Stable Diffusion's UNet: which places of a photo belong to one thing.

The photo becomes a latent (the mode of the VAE's posterior, no noise), the UNet sees it once at timestep 0 with the
empty prompt, and is stopped when the queries and keys of the wanted blocks are known. The model's own attention
runs untouched; the maps are computed again from these queries and keys, averaged over heads and blocks.
"""

import contextlib
import dataclasses
import math
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ovs_kernels import attention_mean

from ..backbones.pretrained import complete_model, without_bars
from ..backbones.weights import fingerprint, import_models, load_weights
from ..errors import UserError
from ..images import to_tensor
from .core import Attention, AttentionSource

if TYPE_CHECKING:
    from PIL.Image import Image

DIFFUSION = "sd2"
REPOSITORY = "stabilityai/stable-diffusion-2-base"
DEFAULT_BLOCKS = "up_blocks.3.attentions.0,up_blocks.3.attentions.1"
# Short names of the blocks at the full resolution of the latent.
ALIASES = {
    "up_0": "up_blocks.3.attentions.0",
    "up_1": "up_blocks.3.attentions.1",
    "up_2": "up_blocks.3.attentions.2",
    "down_0": "down_blocks.0.attentions.0",
    "down_1": "down_blocks.0.attentions.1",
}
_CONFIG = ("unet", "config.json")
_PARTS = ("unet", "vae", "text_encoder")


def is_diffusion(name: str) -> bool:
    """Whether a name is meant for diffusers: `sd2`, `ORG/REPO` of the hub, or a folder."""
    if name == DIFFUSION or name.startswith(("hf-hub:", "local-dir:")):  # the others are CLIPs
        return name == DIFFUSION
    return "/" in name or os.sep in name or Path(name, *_CONFIG).is_file()


def parse_blocks(text: str) -> dict[str, float]:
    """Reads `NAME[:WEIGHT],...`: modules of the UNet and their shares.

    Args:
        text: `up_blocks.3.attentions.0:0.7,up_blocks.3.attentions.1:0.3`, or short names as in ALIASES. Without
            weights all count equally; with weights, all need one.

    Returns:
        Share of each block; they sum to 1.

    Raises:
        UserError: it is written otherwise.
    """
    wanted = "blocks as NAME[:WEIGHT],... with positive weights for all or none, such as up_0:0.5,up_1:0.5"
    shares: dict[str, float] = {}
    parts = [part.strip() for part in text.split(",")]
    for part in parts:
        match = re.fullmatch(r"([A-Za-z_][\w.]*)(?::([0-9.eE+-]+))?", part)
        try:
            weight = float(match[2]) if match and match[2] else 1.0
        except ValueError:
            match = None
        if not match or not 0 < weight < math.inf or bool(match[2]) != (":" in parts[0]):
            raise UserError("--attention-layer", wanted, f"'{text}'")
        name = ALIASES.get(match[1], match[1])
        if name in shares:
            raise UserError("--attention-layer", "different blocks", f"{match[1]} twice")
        shares[name] = weight
    total = math.fsum(shares.values())
    return {name: weight / total for name, weight in shares.items()}


class _Stop(Exception):
    """Ends the UNet's forward pass: everything wanted is known."""


@dataclasses.dataclass
class _Models:
    unet: Any
    vae: Any
    prompt: Tensor


class DiffusionAttention(AttentionSource):
    """Self-attention of the UNet of Stable Diffusion 1 or 2, or of any with the same blocks.

    Args:
        model: `sd2` (stabilityai/stable-diffusion-2-base), `ORG/REPO` of the hub, or a folder in the layout of
            diffusers (unet, vae, text_encoder, tokenizer).
        weights: such a folder instead of the download.
        blocks: as `parse_blocks` reads it. A name leads to a transformer, whose first self-attention is meant, or to an
            attention itself. Blocks of lower resolution are enlarged bilinearly to the highest, queries and keys.
        image_size: side of the square that a photo is resized to; the attention has (image_size / 8)^2 patches.
        timestep: that the UNet is told.
        flag: the option that `weights` comes from, for error texts.

    Raises:
        MissingDependency: diffusers or transformers is not installed.
        UserError: no such model or block, not a Stable Diffusion 1 or 2, or its weights cannot be had.
    """

    def __init__(
        self,
        model: str = DIFFUSION,
        weights: Path | None = None,
        *,
        blocks: str | None = None,
        image_size: int = 512,
        timestep: int = 0,
        flag: str = "--attention-weights",
    ):
        self._shares = parse_blocks(blocks or DEFAULT_BLOCKS)
        repository = REPOSITORY if model == DIFFUSION else model
        folder = weights
        if folder is None and model != DIFFUSION and Path(model).exists():
            folder = Path(model)
        if folder is None and model.startswith((".", "/", "~")):
            raise UserError("--attention", "a folder in the layout of diffusers", f"nothing at {model}")
        if folder is not None and folder.exists() and not folder.joinpath(*_CONFIG).is_file():
            flag = flag if weights is not None else "--attention"
            wanted = f"a folder in the layout of diffusers ({', '.join(_PARTS)}, tokenizer)"
            raise UserError(flag, wanted, f"{folder}, which has no unet/config.json")
        self.name = model
        loaded = _load(repository, folder, flag)
        self._unet, self._vae, self._prompt = loaded.unet, loaded.vae, loaded.prompt
        self._modules = {name: self_attention(self._unet, name, model) for name in self._shares}
        step = 2 ** (len(self._vae.config.block_out_channels) - 1)
        multiple = step * 2 ** (len(self._unet.config.down_block_types) - 1)
        if image_size < multiple or image_size % multiple:
            raise UserError("image_size", f"a multiple of {multiple}", image_size)
        self._size, self._timestep = image_size, timestep
        self.identity = {
            "model": model,
            "weights": _identity(repository, folder),
            "blocks": self._shares,
            "image_size": image_size,
            "timestep": timestep,
        }

    @torch.no_grad()
    def __call__(self, photo: "Image", size: tuple[int, int]) -> Attention:
        """As `AttentionSource.__call__`; the photo is looked at as a square, so the grid is one."""
        image = to_tensor(photo, (self._size, self._size))[None] * 2 - 1
        latent = self._vae.encode(image).latent_dist.mode() * self._vae.config.scaling_factor
        found = self._queries_and_keys(latent)
        finest = math.isqrt(max(queries.shape[1] for queries, _ in found.values()))
        sides = {name: math.isqrt(queries.shape[1]) for name, (queries, _) in found.items()}
        matrix: Tensor | None = None
        for side in sorted(set(sides.values()), reverse=True):
            names = [name for name in found if sides[name] == side]
            shares = [self._shares[name] for name in names]
            queries, keys = zip(*(found[name] for name in names), strict=True)
            part = attention_mean(queries, keys, weights=shares, scale=1.0)
            if len(names) < len(found):
                part = enlarged(part, (finest, finest)).mul_(sum(shares))
            matrix = part if matrix is None else matrix.add_(part)
        return Attention(matrix, (finest, finest))

    def _queries_and_keys(self, latent: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Runs the UNet as far as needed: scaled queries and keys of each block, [heads, N, d]."""
        seen: dict[tuple[str, str], Tensor] = {}
        with contextlib.ExitStack() as hooks:
            for name, module in self._modules.items():
                for part in ("to_q", "to_k"):

                    def keep(_: Any, __: Any, output: Tensor, place: tuple[str, str] = (name, part)) -> None:
                        seen[place] = output[0]
                        if len(seen) == 2 * len(self._modules):
                            raise _Stop

                    hooks.callback(getattr(module, part).register_forward_hook(keep).remove)
            with contextlib.suppress(_Stop):
                self._unet(latent, self._timestep, encoder_hidden_states=self._prompt)
        split = {place: rows.unflatten(-1, (self._modules[place[0]].heads, -1)) for place, rows in seen.items()}
        heads = {place: rows.transpose(0, 1).contiguous() for place, rows in split.items()}
        return {
            name: (heads[name, "to_q"] * module.scale, heads[name, "to_k"]) for name, module in self._modules.items()
        }


def enlarged(matrix: Tensor, grid: tuple[int, int]) -> Tensor:
    """Attention of a square of patches on a finer grid: bilinear along keys and queries, rows sum to 1 again.

    Args:
        matrix: [n * n, n * n].
        grid: (h, w) wanted.

    Returns:
        [h * w, h * w].
    """
    side = math.isqrt(len(matrix))
    if (side, side) == grid:
        return matrix
    for _ in range(2):  # the keys, then the queries
        planes = matrix.reshape(1, -1, side, side)
        matrix = F.interpolate(planes, grid, mode="bilinear", align_corners=False)[0].flatten(1).T.contiguous()
    return matrix / matrix.sum(1, keepdim=True)


def _load(repository: str, folder: Path | None, flag: str) -> _Models:
    """The models in float32, and the embedding of the empty prompt."""
    diffusers = import_models("diffusers", "attention of Stable Diffusion")
    transformers = import_models("transformers", "attention of Stable Diffusion")
    place = str(folder) if folder is not None else repository

    def part(kind: Any, name: str, **arguments: Any) -> Any:
        return complete_model(kind, place, name, subfolder=name, **arguments)

    def load() -> _Models:
        with without_bars(transformers):
            unet = part(diffusers.UNet2DConditionModel, "unet", low_cpu_mem_usage=False)
            vae = part(diffusers.AutoencoderKL, "vae", low_cpu_mem_usage=False)
            vae.decoder = None
            text = part(transformers.CLIPTextModel, "text_encoder")
            tokenizer = transformers.CLIPTokenizer.from_pretrained(place, subfolder="tokenizer")
        return _Models(unet, vae, _empty_prompt(text, tokenizer))

    loaded = load_weights(load, repository, folder, flag, f"https://huggingface.co/{repository}")
    config, width = loaded.unet.config, loaded.prompt.shape[-1]
    conditions = [config.get(key) for key in ("addition_embed_type", "class_embed_type", "encoder_hid_dim_type")]
    fits = config.in_channels == loaded.vae.config.latent_channels and config.cross_attention_dim == width
    if any(conditions) or not fits:
        got = f"{place}, whose UNet takes other inputs than a latent and a prompt of this text encoder"
        raise UserError(flag if folder is not None else "--attention", "a Stable Diffusion 1 or 2", got)
    return loaded


@torch.no_grad()
def _empty_prompt(text: Any, tokenizer: Any) -> Tensor:
    """[1, T, D], as the pipeline of diffusers embeds it."""
    arguments = {"padding": "max_length", "max_length": tokenizer.model_max_length, "return_tensors": "pt"}
    tokens = tokenizer("", truncation=True, **arguments)
    masked = getattr(text.config, "use_attention_mask", False)
    return text(tokens.input_ids, attention_mask=tokens.attention_mask if masked else None)[0]


def self_attention(unet: Any, name: str, model: str) -> Any:
    """The attention that a block's name means."""
    found = [path for path, module in unet.named_modules() if path.endswith("attn1") and hasattr(module, "to_q")]
    path = name if name in found else f"{name}.transformer_blocks.0.attn1"
    if path not in found or unet.get_submodule(path).is_cross_attention:
        known = sorted({path.split(".transformer_blocks")[0] for path in found})
        raise UserError("--attention-layer", f"blocks of {model}: {', '.join(known)}", f"'{name}'")
    return unet.get_submodule(path)


def weight_files(folder: Path) -> list[Path]:
    """The files that decide what a model in the layout of diffusers does."""
    found = [path for part in _PARTS for path in (folder / part).glob("*") if path.is_file()]
    return sorted([*found, *(path for path in (folder / "tokenizer").glob("*") if path.is_file())])


def _identity(repository: str, folder: Path | None) -> object:
    """Content of a local model; revision of a downloaded one."""
    if folder is not None:
        return {path.relative_to(folder).as_posix(): fingerprint(path) for path in weight_files(folder)}
    hub = import_models("huggingface_hub", "attention of Stable Diffusion")
    path = hub.try_to_load_from_cache(repository, "unet/config.json")
    return Path(path).parents[1].name if isinstance(path, str) else None
