"""BridgeTower's image-text matching model, as transformers has it."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .matching import Prompt, word_tokens
from .pretrained import PretrainedMatcher


class BridgeTowerMatcher(PretrainedMatcher):
    """`BridgeTowerForImageAndTextRetrieval`: CLIP's ViT and RoBERTa, bridged to a cross-modal encoder.

    Its layers are those of the cross-modal text encoder. Each of them sees another state of the image, which has seen
    the text, so the gradient also takes the way through the cross-modal image layers, and no part of the image can be
    encoded beforehand.

    Arguments and errors are those of `PretrainedMatcher`.
    """

    _kind = "BridgeTowerForImageAndTextRetrieval"
    published = (1, 7)

    def __init__(self, place: str, weights: Path | None = None, flag: str = "--weights"):
        super().__init__(place, weights, flag)
        config = self._model.config
        self.layers, self.heads = config.num_hidden_layers, config.text_config.num_attention_heads
        # RoBERTa counts positions from the one after that of padding
        self._most = config.text_config.max_position_embeddings - config.text_config.pad_token_id - 1

    def tokenize(self, beginning: str, words: list[str]) -> Prompt:
        """As `ImageTextMatcher.tokenize`."""
        return Prompt(*word_tokens(self._tokenizer, beginning, words, self._most, self.name))

    def encode_image(self, pixels: Tensor) -> Tensor:
        """The pixels themselves: all else depends on the text."""
        return pixels

    def _cross_attention(self, layer: int) -> Any:
        return self._model.bridgetower.cross_modal_text_layers[layer].crossattention

    def _match(self, image: Tensor, ids: Tensor) -> Tensor:
        features = self._model.bridgetower(
            input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=image, interpolate_pos_encoding=True
        )
        return self._model.itm_score(features.pooler_output)[:, 1].sum()
