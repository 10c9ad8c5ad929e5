"""A CLIP model of open_clip: its text tower, and its image tower up to the last block."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import UserError
from .core import CLIP_MEAN, CLIP_STD, TextBackbone, resized_positions, standardized
from .weights import fingerprint, import_models, load_weights, option_of

DEFAULT_MODEL = "ViT-B-16:laion2b_s34b_b88k"


def split_name(text: str) -> tuple[str, str | None]:
    """`ViT-B-16:openai` is a model and a tag; `hf-hub:...` and `local-dir:...` are names as a whole."""
    if text.startswith(("hf-hub:", "local-dir:")) or ":" not in text:
        return text, None
    model, tag = text.split(":", 1)
    return model, tag


class ClipBackbone(TextBackbone):
    """What all forms of dense features of an open_clip ViT share; a form says what becomes of the last block.

    A model that was trained with QuickGELU gets it, also where the weights are a local file: NAME:TAG with a tag of
    open_clip says so, and so does the mean and the standard deviation of its images.

    Args:
        model: `NAME:TAG` as `open_clip.list_pretrained()` lists them, or `hf-hub:ORG/REPO` or
            `local-dir:FOLDER` (weights beside an `open_clip_config.json`).
        weights: a local checkpoint instead of the download.
        flag: the option that `weights` comes from, for error texts.

    Raises:
        MissingDependency: open_clip_torch is not installed.
        UserError: no such model, not a ViT, or its weights cannot be had.
    """

    def __init__(self, model: str = DEFAULT_MODEL, weights: Path | None = None, flag: str = "--weights"):
        open_clip = import_models("open_clip", "the CLIP backbone")
        self.name, tag = split_name(model)
        builtin = ":" not in self.name
        if builtin:
            _check_name(open_clip, self.name, tag, weights, flag)
        known = (open_clip.get_pretrained_cfg(self.name, tag) if builtin and tag else None) or {}
        arguments: dict[str, Any] = {"load_weights": weights is None, "require_pretrained": weights is None}
        if builtin:
            arguments = {"pretrained": str(weights) if weights else tag}
        quick = bool(known.get("quick_gelu"))

        def load() -> Any:
            made = open_clip.create_model(self.name, force_quick_gelu=quick, **arguments)
            if weights is not None and not builtin:
                open_clip.load_checkpoint(made, str(weights))
            return made, open_clip.get_tokenizer(self.name)

        source = _source(open_clip, self.name, tag)
        self._clip, self._tokenizer = load_weights(load, model, weights, flag, source)
        self._clip.eval().requires_grad_(False)
        self._visual = self._clip.visual
        if not _is_plain_vit(self._visual):
            wanted = "a ViT of open_clip's own (with a class token and no pooling head)"
            raise UserError(option_of(flag), wanted, f"'{model}'")
        local = weights or _local_weights(self.name)
        self.text_identity = {"model": self.name, "weights": fingerprint(local) if local else tag}
        if quick:
            self.text_identity["quick_gelu"] = True
        self.patch = self._clip_patch = self._visual.conv1.kernel_size[0]
        config = {**getattr(self._visual, "preprocess_cfg", {}), **known}
        self._mean, self._std = tuple(config.get("mean", CLIP_MEAN)), tuple(config.get("std", CLIP_STD))

    @torch.inference_mode()
    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        """As `TextBackbone.encode_text`."""
        return F.normalize(self._clip.encode_text(self._tokenizer(list(prompts))), dim=-1)

    @property
    def side(self) -> int:
        """Side in pixels of the square images that the model was made for."""
        return self._visual.grid_size[0] * self._clip_patch

    def normalized(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] of [0, 1] as the image tower takes them."""
        mean, std = (images.new_tensor(values).view(1, 3, 1, 1) for values in (self._mean, self._std))
        return (images - mean) / std

    @torch.inference_mode()
    def encode_images(self, images: Tensor) -> Tensor:
        """Embeddings of whole images, [B, D] float32, of length 1.

        Args:
            images: [B, 3, side, side], as `normalized` makes them.
        """
        return F.normalize(self._clip.encode_image(images), dim=-1)

    @property
    def width(self) -> int:
        """Length of a token inside the image tower."""
        return self._visual.class_embedding.shape[-1]

    @property
    def _blocks(self) -> Any:
        return self._visual.transformer.resblocks

    def _embed(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """What goes into the first block, [B, 1 + N, width] with the class token first, and the grid of the patches."""
        visual = self._visual
        patches = visual.conv1(standardized(images, self._clip_patch, self._mean, self._std))
        grid = tuple(patches.shape[2:])
        positions = resized_positions(visual.positional_embedding, 1, grid, tuple(visual.grid_size))
        first = visual.class_embedding.expand(len(patches), 1, -1)
        return visual.ln_pre(torch.cat([first, patches.flatten(2).transpose(1, 2)], 1) + positions), grid

    def _through(self, block: Any, tokens: Tensor) -> Tensor:
        """What comes out of a block; older versions of open_clip want the tokens before the batch."""
        if getattr(self._visual.transformer, "batch_first", False):
            return block(tokens)
        return block(tokens.transpose(0, 1)).transpose(0, 1)

    def _before_last(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """What goes into the last block, as `_embed` has it."""
        tokens, grid = self._embed(images)
        for block in self._blocks[:-1]:
            tokens = self._through(block, tokens)
        return tokens, grid

    def _to_text_space(self, tokens: Tensor) -> Tensor:
        """What leaves the last block, [..., width], in the space that text shares, [..., D]."""
        return self._visual.ln_post(tokens) @ self._visual.proj


def projected(block: Any, tokens: Tensor, parts: str) -> list[Tensor]:
    """Queries, keys, values (those of `parts`, such as "qk") of a block, [B, heads, T, d] each.

    Args:
        block: of open_clip.
        tokens: [B, T, D], what goes into it.
        parts: letters of q, k, v.
    """
    heads = block.attn.num_heads
    made = [projected_flat(block, tokens, part) for part in parts]
    return [part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in made]


def projected_flat(block: Any, tokens: Tensor, part: str) -> Tensor:
    """Queries, keys or values of a block with the heads side by side, [B, T, D]; arguments as of `projected`."""
    dim = tokens.shape[-1]
    row = slice(dim * "qkv".index(part), dim * ("qkv".index(part) + 1))
    return F.linear(block.ln_1(tokens), block.attn.in_proj_weight[row], block.attn.in_proj_bias[row])


def value_block(block: Any, tokens: Tensor) -> Tensor:
    """A block with every token attending to itself, [B, T, D]: both residuals and the MLP stay."""
    tokens = tokens + block.ls_1(block.attn.out_proj(projected_flat(block, tokens, "v")))
    return tokens + block.ls_2(block.mlp(block.ln_2(tokens)))


def attended(block: Any, tokens: Tensor) -> Tensor:
    """The first half of a block as CLIP runs it, [B, T, D]: attention and its residual, before `ln_2`."""
    mixed = F.scaled_dot_product_attention(*projected(block, tokens, "qkv"))
    return tokens + block.ls_1(block.attn.out_proj(mixed.transpose(1, 2).flatten(2)))


def _is_plain_vit(visual: Any) -> bool:
    blocks = getattr(getattr(visual, "transformer", None), "resblocks", None)
    return (
        blocks is not None
        and hasattr(blocks[-1], "mlp")
        and getattr(blocks[-1].attn, "in_proj_weight", None) is not None
        and getattr(visual, "attn_pool", None) is None
        and getattr(visual, "class_embedding", None) is not None
        and getattr(visual, "proj", None) is not None
    )


def _check_name(open_clip: Any, name: str, tag: str | None, weights: Path | None, flag: str) -> None:
    """Raises UserError for a name that open_clip does not have, or that is none of its ViTs."""
    option = option_of(flag)
    if name not in open_clip.list_models():
        raise UserError(option, "a model of open_clip.list_models()", f"'{name}'")
    if not isinstance(open_clip.get_model_config(name)["vision_cfg"].get("layers"), int):
        raise UserError(option, "a ViT of open_clip's own, such as ViT-B-16", f"'{name}'")
    tags = open_clip.list_pretrained_tags_by_model(name)
    if weights is None and tag not in tags:
        listed = ", ".join(tags) or f"(none: use {flag})"
        raise UserError(option, f"{name}:TAG with a tag of {listed}", f"'{tag}'" if tag else "none")


def _source(open_clip: Any, model: str, tag: str | None) -> str:
    """Where a person finds the weights."""
    if model.startswith("hf-hub:"):
        return f"https://huggingface.co/{model[7:]}/resolve/main/open_clip_model.safetensors"
    config = open_clip.get_pretrained_cfg(model, tag) if tag else {}
    hub = config.get("hf_hub", "")
    if hub:
        repository, _, file = hub.rpartition("/")
        return f"https://huggingface.co/{repository}/resolve/main/{file or 'open_clip_model.safetensors'}"
    return config.get("url") or f"the weights of {model}"


def _local_weights(model: str) -> Path | None:
    """The file that open_clip takes from the folder of a `local-dir:` model."""
    if not model.startswith("local-dir:"):
        return None
    names = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin", "model.safetensors", "pytorch_model.bin")
    folder = Path(model.removeprefix("local-dir:"))
    return next((folder / name for name in names if (folder / name).is_file()), None)
