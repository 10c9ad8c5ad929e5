"""The patches of a CLIP image tower, in the space that its text tower shares.

CLIP's own last block mixes the patches for the sake of the class token; two replacements keep them apart:

* `maskclip`, as in LPOSS: the block keeps its residuals and its MLP and loses its attention. Every patch
  attends to itself, so only the value projection is computed.
* `kk`, as in NACLIP but without its Gaussian: keys attend to keys, per head softmax(k k^T / sqrt(d)) v, the class
  token among them; the output projection follows, without residuals and without MLP.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import UserError
from .core import (
    CLIP_MEAN,
    CLIP_STD,
    AttentiveBackbone,
    check_block,
    mean_attention,
    resized_positions,
    standardized,
)
from .weights import fingerprint, import_models, load_weights

DEFAULT_MODEL = "ViT-B-16:laion2b_s34b_b88k"
LOGITS = ("maskclip", "kk")


def split_name(text: str) -> tuple[str, str | None]:
    """`ViT-B-16:openai` is a model and a tag; `hf-hub:...` and `local-dir:...` are names as a whole."""
    if text.startswith(("hf-hub:", "local-dir:")) or ":" not in text:
        return text, None
    model, tag = text.split(":", 1)
    return model, tag


class MaskClip(AttentiveBackbone):
    """Dense features of an open_clip ViT, and its text tower.

    Args:
        model: `NAME:TAG` as `open_clip.list_pretrained()` lists them, or `hf-hub:ORG/REPO` or
            `local-dir:FOLDER` (weights beside an `open_clip_config.json`).
        weights: a local checkpoint instead of the download.
        flag: the option that `weights` comes from, for error texts.
        logits: what becomes of the last block, one of LOGITS.

    Raises:
        MissingDependency: open_clip_torch is not installed.
        UserError: no such model, not a ViT, or its weights cannot be had.
    """

    def __init__(
        self,
        model: str = DEFAULT_MODEL,
        weights: Path | None = None,
        flag: str = "--weights",
        logits: str = LOGITS[0],
    ):
        if logits not in LOGITS:
            raise UserError("--logits", " or ".join(LOGITS), f"'{logits}'")
        open_clip = import_models("open_clip", "the CLIP backbone")
        self.name, tag = split_name(model)
        builtin = ":" not in self.name
        if builtin and self.name not in open_clip.list_models():
            raise UserError("--backbone", "a model of open_clip.list_models()", f"'{self.name}'")
        if builtin and not isinstance(open_clip.get_model_config(self.name)["vision_cfg"].get("layers"), int):
            raise UserError("--backbone", "a ViT of open_clip's own, such as ViT-B-16", f"'{self.name}'")
        if builtin and weights is None and tag not in open_clip.list_pretrained_tags_by_model(self.name):
            tags = ", ".join(open_clip.list_pretrained_tags_by_model(self.name))
            got = f"'{tag}'" if tag else "none"
            raise UserError("--backbone", f"{self.name}:TAG with a tag of {tags or '(none: use ' + flag + ')'}", got)
        source = _source(open_clip, self.name, tag)
        arguments = {"load_weights": weights is None, "require_pretrained": weights is None}
        if builtin:
            arguments = {"pretrained": str(weights) if weights else tag}

        def load() -> Any:
            made = open_clip.create_model(self.name, **arguments)
            if weights is not None and not builtin:
                open_clip.load_checkpoint(made, str(weights))
            return made, open_clip.get_tokenizer(self.name)

        self._clip, self._tokenizer = load_weights(load, model, weights, flag, source)
        self._clip.eval().requires_grad_(False)
        visual = self._clip.visual
        if not _is_plain_vit(visual):
            raise UserError("--backbone", "a ViT of open_clip's own (with a class token and no pooling head)", model)
        local = weights or _local_weights(self.name)
        self.identity = {"model": self.name, "weights": fingerprint(local) if local else tag}
        self.text_identity = dict(self.identity)
        if logits != LOGITS[0]:
            self.identity["logits"] = logits
        self.logits = logits
        self._attention_layer: int | None = None
        self.patch = visual.conv1.kernel_size[0]
        config = getattr(visual, "preprocess_cfg", {})
        self._mean, self._std = tuple(config.get("mean", CLIP_MEAN)), tuple(config.get("std", CLIP_STD))

    def dense(self, images: Tensor) -> Tensor:
        """Features in the space that text shares, [B, h, w, D]; see `Backbone.dense`."""
        return self._run(images, None)[0]

    def prepare_attention(self, layer: int | None = None) -> int:
        """As `AttentiveBackbone.prepare_attention`; the usual block is the last, which CLIP itself runs."""
        self._attention_layer = check_block(layer, len(self._clip.visual.transformer.resblocks))
        return self._attention_layer

    def dense_with_attention(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """As `AttentiveBackbone.dense_with_attention`; the attention is CLIP's own, whatever `logits` is."""
        return self._run(images, self._attention_layer)

    @torch.inference_mode()
    def _run(self, images: Tensor, attention_layer: int | None) -> tuple[Tensor, Tensor]:
        """Features [B, h, w, D], and the attention of a block, [B, N, N] (without one: an empty tensor)."""
        visual = self._clip.visual
        patches = visual.conv1(standardized(images, self.patch, self._mean, self._std))
        batch, _, h, w = patches.shape
        tokens = patches.flatten(2).transpose(1, 2)
        first = visual.class_embedding.expand(batch, 1, -1)
        positions = resized_positions(visual.positional_embedding, 1, (h, w), tuple(visual.grid_size))
        tokens = visual.ln_pre(torch.cat([first, tokens], 1) + positions)
        batch_first = getattr(visual.transformer, "batch_first", False)
        blocks, attention = visual.transformer.resblocks, tokens.new_empty(0)
        for number, block in enumerate(blocks):
            if number == attention_layer:
                attention = mean_attention(*_projected(block, tokens, "qk"), prefix=1)
            if number < len(blocks) - 1:
                tokens = block(tokens) if batch_first else block(tokens.transpose(0, 1)).transpose(0, 1)
        last_block = _key_key_block if self.logits == "kk" else _value_block
        features = visual.ln_post(last_block(blocks[-1], tokens)) @ visual.proj
        return features.reshape(batch, h, w, -1), attention

    @torch.inference_mode()
    def encode_text(self, prompts: list[str]) -> Tensor:
        """Embeddings of prompts, [len(prompts), D], of length 1."""
        return F.normalize(self._clip.encode_text(self._tokenizer(prompts)), dim=-1)


def _projected(block: Any, tokens: Tensor, parts: str) -> list[Tensor]:
    """Queries, keys, values (those of `parts`, such as "qk") of a block, [B, heads, T, d] each.

    Args:
        block: of open_clip.
        tokens: [B, T, D], what goes into it.
        parts: letters of q, k, v.
    """
    attention, dim = block.attn, tokens.shape[-1]
    normed, heads = block.ln_1(tokens), attention.num_heads
    rows = [slice(dim * "qkv".index(part), dim * ("qkv".index(part) + 1)) for part in parts]
    made = [F.linear(normed, attention.in_proj_weight[row], attention.in_proj_bias[row]) for row in rows]
    return [part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in made]


def _value_block(block: Any, tokens: Tensor) -> Tensor:
    """The last block with every patch attending to itself, [B, N, D]: both residuals and the MLP stay."""
    x = tokens[:, 1:]
    (values,) = _projected(block, x, "v")
    x = x + block.ls_1(block.attn.out_proj(values.transpose(1, 2).flatten(2)))
    return x + block.ls_2(block.mlp(block.ln_2(x)))


def _key_key_block(block: Any, tokens: Tensor) -> Tensor:
    """The last block with keys attending to keys, [B, N, D]: no residuals, no MLP."""
    keys, values = _projected(block, tokens, "kv")
    mixed = F.scaled_dot_product_attention(keys, keys, values)
    return block.ls_1(block.attn.out_proj(mixed.transpose(1, 2).flatten(2)))[:, 1:]


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
