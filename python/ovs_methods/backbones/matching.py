"""Models that say whether a text matches an image, and whose text tokens attend to the image's patches.

`ImageTextMatcher` is all that PnP-OVSS needs of such a model. `HookedMatcher` is how a torch model whose
cross-attentions have modules for queries, keys, values and output becomes one.
"""

import abc
import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import UserError, require
from .core import CLIP_MEAN, CLIP_STD

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A text with the places of the words in it that name classes.

    Attributes:
        text: as a person reads it.
        ids: [T] int64, its tokens as the model takes them, special ones included.
        words: [K] indices of the tokens of each word, at least one each.
    """

    text: str
    ids: Tensor
    words: list[list[int]]


@dataclasses.dataclass(frozen=True)
class CrossAttention:
    """What the tokens of a text see of an image in one layer, and how the match depends on it.

    The attention probabilities are softmax(queries keys^T); the match depends on them through the heads' contexts,
    probabilities times values, so its gradient with respect to the probabilities is gradients values^T.

    Attributes:
        queries: [H, T, d] float, scaled.
        keys: [H, M + N, d], M tokens that are no patches before the N patches of the image, row by row.
        values: [H, M + N, d'].
        gradients: [H, T, d'], of the match with respect to the heads' contexts.
    """

    queries: Tensor
    keys: Tensor
    values: Tensor
    gradients: Tensor


class ImageTextMatcher(abc.ABC):
    """What a vision-language model has to offer for PnP-OVSS.

    A class of your own needs the attributes and the four methods, and nothing else of this package; see
    docs/pnp_ovss.md for one written out.

    Attributes:
        name: of the model, for texts.
        identity: everything that decides its numbers, as JSON can hold it; stored with results.
        patch: side of a patch in pixels.
        prefix: image tokens before the patches (1 for a class token).
        layers: number of layers in which text attends to the image, the first of which is 0.
        heads: of each of them.
        published: layer and head that PnP-OVSS was published with, from 0; None where it was not.
    """

    name: str
    identity: dict[str, object]
    patch: int
    prefix: int = 1
    layers: int
    heads: int
    published: tuple[int, int] | None = None

    @abc.abstractmethod
    def pixels(self, photo: "Image", side: int) -> Tensor:
        """A photo as the model takes it, resized to a square; 0 is the mean colour of the normalisation.

        Args:
            photo: mode RGB.
            side: in pixels, a multiple of `patch`.

        Returns:
            [1, 3, side, side] float32.
        """

    @abc.abstractmethod
    def tokenize(self, beginning: str, words: Sequence[str]) -> Prompt:
        """The prompt `beginning` and the words, a space between each.

        Args:
            beginning: of the prompt.
            words: that name classes, without spaces.

        Returns:
            The prompt with the tokens of each word.

        Raises:
            UserError: the model takes fewer tokens.
        """

    @abc.abstractmethod
    def encode_image(self, pixels: Tensor) -> Any:
        """What of the image does not depend on the text, for `attention`; any type.

        Args:
            pixels: [1, 3, S, S], as `pixels` makes them, with whole patches set to 0 perhaps.
        """

    @abc.abstractmethod
    def attention(self, image: Any, prompt: Prompt, layers: Sequence[int]) -> list[CrossAttention]:
        """The cross-attentions of some layers when the model judges the match of an image and a prompt.

        Args:
            image: what `encode_image` returned.
            prompt: what `tokenize` returned.
            layers: from 0 to `layers` - 1, ascending.

        Returns:
            One per layer, detached; the match is the logit, before any softmax, and larger for what matches better.
        """


def single_word(name: str) -> str:
    """A class name as one word: `potted-plant` and `potted plant` are `pottedplant`.

    Raises:
        UserError: nothing is left.
    """
    word = re.sub(r"[\s\-\u2010-\u2015_]+", "", name)
    if not word:
        raise UserError("--classes", "names with letters in them", f"'{name}'")
    return word


@dataclasses.dataclass(frozen=True)
class CrossModules:
    """The modules of one layer's cross-attention.

    Attributes:
        query: its output is [1, T, H * d], not scaled.
        key: its output is [1, M + N, H * d].
        value: its output is [1, M + N, H * d'].
        output: its first input is the contexts of the heads side by side, [1, T, H * d'].
    """

    query: nn.Module
    key: nn.Module
    value: nn.Module
    output: nn.Module


class HookedMatcher(ImageTextMatcher):
    """A torch model, read by hooks on the modules of its cross-attentions.

    Nothing but the output of the query, key and value modules and the input of the output module is touched, so it does
    not matter how the model computes its attention. The gradient goes back from the match to the context of the lowest
    layer that is wanted, and no further: below it nothing requires a gradient, and neither do weights or the image.
    The hooks are on the model while it runs, so one thread at a time may use it.
    """

    _mean, _std = CLIP_MEAN, CLIP_STD

    @abc.abstractmethod
    def _cross(self, layer: int) -> CrossModules:
        """The modules of a layer."""

    @abc.abstractmethod
    def _match(self, image: Any, ids: Tensor) -> Tensor:
        """The logit of the match of an image and tokens [1, T], a scalar."""

    @property
    @abc.abstractmethod
    def _device(self) -> torch.device:
        """Where the model is."""

    def pixels(self, photo: "Image", side: int) -> Tensor:
        """As `ImageTextMatcher.pixels`: bicubic, to [0, 1], minus the mean, by the standard deviation."""
        pil = require("PIL.Image", "resizing images")
        if photo.size != (side, side):
            photo = photo.resize((side, side), pil.Resampling.BICUBIC)
        values = torch.from_numpy(np.array(photo)).permute(2, 0, 1)[None].to(self._device).float() / 255
        mean, std = (values.new_tensor(numbers).view(1, 3, 1, 1) for numbers in (self._mean, self._std))
        return (values - mean) / std

    def attention(self, image: Any, prompt: Prompt, layers: Sequence[int]) -> list[CrossAttention]:
        """As `ImageTextMatcher.attention`."""
        seen: dict[tuple[int, str], Tensor] = {}
        handles = []
        for layer in layers:
            modules = self._cross(layer)
            for part in ("query", "key", "value"):
                handles.append(getattr(modules, part).register_forward_hook(_keep(seen, (layer, part))))
            leaf = layer == layers[0]
            handles.append(modules.output.register_forward_pre_hook(_cut(seen, (layer, "context"), leaf)))
        try:
            with torch.inference_mode(False), torch.enable_grad():
                match = self._match(image, prompt.ids[None].to(self._device))
                contexts = [seen[layer, "context"] for layer in layers]
                gradients = torch.autograd.grad(match, contexts)
        finally:
            for handle in handles:
                handle.remove()
        return [self._split(seen, layer, gradient) for layer, gradient in zip(layers, gradients, strict=True)]

    def _split(self, seen: dict[tuple[int, str], Tensor], layer: int, gradient: Tensor) -> CrossAttention:
        tensors = [seen[layer, part] for part in ("query", "key", "value")]
        parts = [x.detach()[0].unflatten(-1, (self.heads, -1)).transpose(0, 1) for x in (*tensors, gradient)]
        queries, keys, values, gradients = parts
        return CrossAttention(queries * queries.shape[-1] ** -0.5, keys, values, gradients)


def _keep(seen: dict[tuple[int, str], Tensor], place: tuple[int, str]) -> Callable[..., None]:
    """A forward hook that keeps a module's output."""

    def hook(_: Any, __: Any, output: Tensor) -> None:
        seen[place] = output

    return hook


def _cut(seen: dict[tuple[int, str], Tensor], place: tuple[int, str], leaf: bool) -> Callable[..., Any]:
    """A forward pre-hook that keeps a module's input; as a leaf, it is where the gradient ends."""

    def hook(_: Any, inputs: tuple[Any, ...]) -> Any:
        seen[place] = inputs[0].detach().requires_grad_() if leaf else inputs[0]
        return (seen[place], *inputs[1:])

    return hook


def word_tokens(
    tokenizer: Any, beginning: str, words: Sequence[str], most: int, name: str
) -> tuple[str, Tensor, list[list[int]]]:
    """A prompt through a fast tokenizer of transformers.

    Args:
        tokenizer: with offsets.
        beginning: of the prompt.
        words: that follow it.
        most: tokens that the model takes.
        name: of the model, for the error text.

    Returns:
        The text, its tokens [T], and for each word the indices of the tokens that hold a letter of it.

    Raises:
        UserError: too many tokens, or a word that has none.
    """
    text, ends = beginning, []
    for word in words:
        text = f"{text} {word}" if text else word
        ends.append((len(text) - len(word), len(text)))
    made = tokenizer(text, return_offsets_mapping=True, truncation=False, verbose=False)
    ids, offsets = made["input_ids"], made["offset_mapping"]
    if len(ids) > most:
        got = f"{len(ids)} tokens of {len(words)} names"
        advice = "--words-per-prompt N asks for N names at a time, which gives other maps than one prompt does"
        raise UserError("--classes", f"a prompt of at most {most} tokens, which {name} takes", got, advice)
    places: list[list[int]] = [[] for _ in words]
    word = 0
    for index, (start, end) in enumerate(offsets):
        while word < len(ends) and ends[word][1] <= start:
            word += 1
        if word < len(ends) and start < end and end > ends[word][0]:
            places[word].append(index)
    for name, tokens in zip(words, places, strict=True):
        if not tokens:
            raise UserError("--classes", "names that the tokenizer of the model can read", f"'{name}'")
    return text, torch.tensor(ids), places
