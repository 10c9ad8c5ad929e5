"""PnP-OVSS: where the words of one prompt look in an image, weighted by what that does for the match; salience dropout.

A vision-language model judges how well an image matches "A picture of" and all class names. The saliency of a class is
the cross-attention of its tokens times the positive part of the gradient of the match (GradCAM). The patches that
stand out most are blanked and the rest is looked at again, a few times; the maps are added up.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from ..backbones.matching import CrossAttention, ImageTextMatcher, Prompt
from ..errors import UserError
from .pnp_maps import PNP_CRF, CrfSettings

PNP = "pnp-ovss"  # the method's name
SALIENCY = ("classes", "tokens")


@dataclasses.dataclass(frozen=True)
class PnpPreset:
    """Constants of PnP-OVSS; docs/pnp_ovss.md says which are the paper's and which are ours.

    Attributes:
        variant: "paper" or "code", for `postprocess`: whether what passes the threshold counts 1 or keeps its saliency.
        layer: of the cross-attention, from 0; None is the one published for the model.
        head: of that layer, from 0; None is the one published for the model.
        rounds: times that the image is looked at.
        drop: of the patches that are left, the share that a round blanks; from 1 on, their number.
        saliency: what a patch is judged by when patches are dropped: the sum of the "classes" or of their "tokens".
        reselect: a round may choose patches that are gone already, as the released code may.
        first_weight: how often the first round counts.
        threshold: of the maps brought to [0, 1].
        blur: standard deviation of the Gaussian as a share of the photo's long side.
        beginning: of the prompt.
        words_per_prompt: names in a prompt at most; None is all of them in one.
        crf: of the CRF; None for none.
    """

    variant: str = "paper"
    layer: int | None = None
    head: int | None = None
    rounds: int = 4
    drop: float = 0.5
    saliency: str = "classes"
    reselect: bool = False
    first_weight: float = 1.0
    threshold: float = 0.15
    blur: float = 0.05
    beginning: str = "A picture of"
    words_per_prompt: int | None = None
    crf: CrfSettings | None = PNP_CRF


PNP_PRESETS = {
    "paper": PnpPreset(),
    "code": PnpPreset(variant="code", drop=10, saliency="tokens", reselect=True, first_weight=2.0),
}


def choose_pnp_preset(name: str = "paper", changed: Mapping[str, Any] | None = None) -> PnpPreset:
    """The constants that a user means.

    Args:
        name: key of PNP_PRESETS.
        changed: fields that the user gave by themselves; None where not. `crf_iterations` is one of them: 0 is no CRF.

    Returns:
        The constants.

    Raises:
        UserError: there is no such preset, or a constant is out of range.
    """
    if name not in PNP_PRESETS:
        raise UserError("--variant", " or ".join(PNP_PRESETS), f"'{name}'")
    given = {key: value for key, value in (changed or {}).items() if value is not None}
    iterations = given.pop("crf_iterations", None)
    constants = dataclasses.replace(PNP_PRESETS[name], **given)
    if iterations is not None:
        crf = dataclasses.replace(constants.crf or PNP_CRF, iterations=iterations) if iterations else None
        constants = dataclasses.replace(constants, crf=crf)
    drop = constants.drop
    if not (0 <= drop < 1 or (1 <= drop < math.inf and drop == int(drop))):
        raise UserError("--drop", "a share from 0 to below 1, or a whole number of patches", drop)
    if not 0 <= constants.threshold <= 1:
        raise UserError("--threshold", "a number from 0 to 1", constants.threshold)
    if not 0 <= constants.blur <= 1:
        raise UserError("--blur", "a share of the long side, from 0 to 1", constants.blur)
    if constants.saliency not in SALIENCY:
        raise UserError("saliency", " or ".join(SALIENCY), constants.saliency)
    for option in ("rounds", "words_per_prompt"):
        value = getattr(constants, option)
        if value is not None and value < 1:
            raise UserError(f"--{option.replace('_', '-')}", "1 or more", value)
    return constants


def layer_and_head(matcher: ImageTextMatcher, constants: PnpPreset) -> tuple[int, int]:
    """The layer and the head whose attention is read, from 0.

    Raises:
        UserError: the model has no such one, or none was published for it and none is given.
    """
    found = []
    places = (("layer", constants.layer, matcher.layers), ("head", constants.head, matcher.heads))
    for index, (what, given, count) in enumerate(places):
        value = matcher.published[index] if given is None and matcher.published is not None else given
        if value is None or not 0 <= value < count:
            got = "none" if value is None else f"{value}{'' if given is not None else ', the published one'}"
            raise UserError(f"--cross-{what}", f"0 to {count - 1}, which {matcher.name} has", got)
        found.append(value)
    return found[0], found[1]


def gradcam(seen: CrossAttention, groups: Sequence[Sequence[int]], prefix: int, head: int | None = None) -> Tensor:
    """Attention times the positive part of the match's gradient, averaged over the tokens of each group.

    ::

        A = softmax(Q K^T)      G = C V^T      M[k, j] = mean_{t in group k} A[t, prefix + j] max(G[t, prefix + j], 0)

    with C the gradient of the match with respect to the context of the head, which is A V.

    Args:
        seen: of one layer.
        groups: tokens of each of K groups.
        prefix: image tokens before the patches.
        head: the only one wanted; None is all.

    Returns:
        [K, N] of that head, or [H, K, N].
    """
    part = slice(None) if head is None else slice(head, head + 1)
    attention = torch.softmax(seen.queries[part] @ seen.keys[part].mT, -1)[..., prefix:]
    gradient = seen.gradients[part] @ seen.values[part, prefix:].mT
    tokens = attention * gradient.clamp_(min=0)
    maps = torch.stack([tokens[:, list(group)].mean(1) for group in groups], 1)
    return maps if head is None else maps[0]


def drop_patches(saliency: Tensor, kept: Tensor, constants: PnpPreset) -> Tensor:
    """The patches that are left after a round.

    Of a share, exactly ceil(share * n) of the n patches that are left go, those with the most saliency; where they tie,
    the first ones. The published rule is to drop what is not below the median, which would be everything where more
    than half of the saliencies are 0.

    Args:
        saliency: [N] float, not negative.
        kept: [N] bool, the patches that were left.
        constants: drop and reselect count.

    Returns:
        [N] bool.
    """
    left = kept.clone()
    if constants.reselect:  # as an ascending sort, whose end is taken: the patches that are gone count 0
        count = _count(constants.drop, len(saliency))
        order = torch.where(kept, saliency, 0).argsort(stable=True)
        left[order[len(order) - count :]] = False
        return left
    places = kept.nonzero()[:, 0]
    order = saliency[places].argsort(descending=True, stable=True)
    left[places[order[: _count(constants.drop, len(places))]]] = False
    return left


def _count(drop: float, patches: int) -> int:
    return min(patches, int(drop) if drop >= 1 else math.ceil(Fraction(str(drop)) * patches))  # 0.07 of 100 is 7


def make_prompts(matcher: ImageTextMatcher, words: Sequence[str], constants: PnpPreset) -> list[Prompt]:
    """The prompts that hold the words, in order.

    Raises:
        UserError: the words of a prompt are more than the model takes.
    """
    step = constants.words_per_prompt or len(words)
    parts = [words[first : first + step] for first in range(0, len(words), step)]
    return [matcher.tokenize(constants.beginning, part) for part in parts]


def _rounds(
    matcher: ImageTextMatcher, pixels: Tensor, prompts: Sequence[Prompt], constants: PnpPreset
) -> Iterator[tuple[Tensor, Tensor]]:
    """The maps [K, N] of each round, 0 where patches are gone, and which patches were there, [N] bool."""
    layer, head = layer_and_head(matcher, constants)
    rows, columns = (length // matcher.patch for length in pixels.shape[2:])
    kept = torch.ones(rows * columns, dtype=torch.bool, device=pixels.device)
    for number in range(constants.rounds):
        if number:
            mask = kept.view(rows, columns)
            for axis in (0, 1):
                mask = mask.repeat_interleave(matcher.patch, axis)
            pixels = pixels * mask
        image = matcher.encode_image(pixels)
        maps, saliency = [], torch.zeros(rows * columns, device=pixels.device)
        for prompt in prompts:
            (seen,) = matcher.attention(image, prompt, [layer])
            maps.append(gradcam(seen, prompt.words, matcher.prefix, head))
            if constants.saliency == "tokens":
                every = [[token] for word in prompt.words for token in word]
                saliency = saliency + gradcam(seen, every, matcher.prefix, head).sum(0)
        found = torch.cat(maps) * kept
        yield found, kept
        if constants.saliency == "classes":
            saliency = found.sum(0)
        kept = drop_patches(saliency, kept, constants)


def saliency_maps(matcher: ImageTextMatcher, pixels: Tensor, prompts: Sequence[Prompt], constants: PnpPreset) -> Tensor:
    """GradCAM with salience dropout: the sum of the rounds' maps.

    Args:
        matcher: the model.
        pixels: [1, 3, S, S], as `matcher.pixels` makes them.
        prompts: as `make_prompts` makes them, of K words in all.
        constants: layer, head, rounds, drop, saliency, reselect and first_weight count.

    Returns:
        [K, S / patch, S / patch] float, not negative.

    Raises:
        UserError: the model has no such layer or head.
    """
    total: Tensor | None = None
    for found, _ in _rounds(matcher, pixels, prompts, constants):
        total = found * constants.first_weight if total is None else total + found
    rows, columns = (length // matcher.patch for length in pixels.shape[2:])
    return total.view(-1, rows, columns)


def all_maps(matcher: ImageTextMatcher, pixels: Tensor, prompt: Prompt) -> Tensor:
    """The GradCAM maps of every layer and head from one pass forward and one back, without dropout.

    Args:
        matcher: the model.
        pixels: [1, 3, S, S].
        prompt: of K words.

    Returns:
        [layers, heads, K, S / patch, S / patch] float.
    """
    seen = matcher.attention(matcher.encode_image(pixels), prompt, range(matcher.layers))
    maps = torch.stack([gradcam(layer, prompt.words, matcher.prefix) for layer in seen])
    rows, columns = (length // matcher.patch for length in pixels.shape[2:])
    return maps.unflatten(-1, (rows, columns))


def best_of_words(maps: Tensor, groups: Sequence[int]) -> Tensor:
    """[K, h, w] maps of words to those of classes: the largest of each class's words.

    Args:
        maps: of words.
        groups: [K] class of each word, ascending from 0.
    """
    if len(set(groups)) == len(groups):
        return maps
    owner = torch.tensor(groups, device=maps.device)
    return torch.stack([maps[owner == group].amax(0) for group in range(groups[-1] + 1)])
