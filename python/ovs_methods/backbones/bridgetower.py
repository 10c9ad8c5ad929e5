"""BridgeTower's image-text matching model, as transformers has it."""

from pathlib import Path

import torch
from torch import Tensor

from .matching import CrossModules, HookedMatcher, Prompt, word_tokens
from .pretrained import load_pretrained


class BridgeTowerMatcher(HookedMatcher):
    """`BridgeTowerForImageAndTextRetrieval`: CLIP's ViT and RoBERTa, bridged to a cross-modal encoder.

    Its layers are those of the cross-modal text encoder. Each of them sees another state of the image, which has seen
    the text, so the gradient also takes the way through the cross-modal image layers, and no part of the image can be
    encoded beforehand.

    Args:
        place: name on the hub, or folder.
        weights: a folder instead of the download.
        flag: the option that a folder comes from, for error texts.

    Raises:
        MissingDependency: transformers is not installed.
        UserError: no such model, or its weights cannot be had.
    """

    published = (1, 7)

    def __init__(self, place: str, weights: Path | None = None, flag: str = "--weights"):
        loaded = load_pretrained("BridgeTowerForImageAndTextRetrieval", place, weights, flag)
        self.name, self._model, self._tokenizer = place, loaded.model, loaded.tokenizer
        self.identity = loaded.identity
        config = self._model.config
        self.patch = config.vision_config.patch_size
        self.layers, self.heads = config.num_hidden_layers, config.text_config.num_attention_heads
        # RoBERTa counts positions from the one after that of padding
        self._most = config.text_config.max_position_embeddings - config.text_config.pad_token_id - 1

    def tokenize(self, beginning: str, words: list[str]) -> Prompt:
        """As `ImageTextMatcher.tokenize`."""
        return Prompt(*word_tokens(self._tokenizer, beginning, words, self._most, self.name))

    def encode_image(self, pixels: Tensor) -> Tensor:
        """The pixels themselves: all else depends on the text."""
        return pixels

    @property
    def _device(self) -> torch.device:
        return self._model.itm_score.fc.weight.device

    def _cross(self, layer: int) -> CrossModules:
        attention = self._model.bridgetower.cross_modal_text_layers[layer].crossattention
        inner = attention.self
        return CrossModules(inner.query, inner.key, inner.value, attention.output.dense)

    def _match(self, image: Tensor, ids: Tensor) -> Tensor:
        features = self._model.bridgetower(
            input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=image, interpolate_pos_encoding=True
        )
        return self._model.itm_score(features.pooler_output)[:, 1].sum()
