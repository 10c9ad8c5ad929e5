"""BLIP's image-text matching model, as transformers has it."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError
from .matching import Prompt, word_tokens
from .pretrained import PretrainedMatcher

ENCODE = 30523  # the token [ENC], with which BLIP's text begins when it looks at an image


class BlipMatcher(PretrainedMatcher):
    """`BlipForImageTextRetrieval`: a ViT, BERT with cross-attention, a head of two logits.

    The photo is resized to a square (bicubic), the position embedding of the ViT is interpolated to its grid. The first
    token of the text is [ENC], as the original BLIP has it and transformers does not.

    Arguments and errors are those of `PretrainedMatcher`.
    """

    _kind = "BlipForImageTextRetrieval"
    published = (7, 9)

    def __init__(self, place: str, weights: Path | None = None, flag: str = "--weights"):
        super().__init__(place, weights, flag)
        config = self._model.config
        if config.text_config.vocab_size <= ENCODE:
            got = f"{place}, with {config.text_config.vocab_size}"
            raise UserError(flag, f"a BLIP with more than {ENCODE} tokens, of which [ENC] is one", got)
        self.layers, self.heads = config.text_config.num_hidden_layers, config.text_config.num_attention_heads
        self._most = config.text_config.max_position_embeddings

    def tokenize(self, beginning: str, words: list[str]) -> Prompt:
        """As `ImageTextMatcher.tokenize`."""
        text, ids, places = word_tokens(self._tokenizer, beginning, words, self._most, self.name)
        ids[0] = ENCODE
        return Prompt(text, ids, places)

    def encode_image(self, pixels: Tensor) -> Tensor:
        """The tokens that leave the ViT, [1, 1 + N, D]."""
        with torch.inference_mode(False), torch.no_grad():
            return self._model.vision_model(pixel_values=pixels, interpolate_pos_encoding=True)[0]

    def _cross_attention(self, layer: int) -> Any:
        return self._model.text_encoder.encoder.layer[layer].crossattention

    def _match(self, image: Tensor, ids: Tensor) -> Tensor:
        text = self._model.text_encoder(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            encoder_hidden_states=image,
            encoder_attention_mask=ids.new_ones(image.shape[:2]),
        )
        return self._model.itm_head(text[0][:, 0])[:, 1].sum()
