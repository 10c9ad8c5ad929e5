"""PnP-OVSS's saliency maps: transformers' own models against full autograd and a transcription of the procedure.

The classes are the real ones, their widths tiny, their weights random.
"""

import contextlib
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

pytest.importorskip("PIL")
pytest.importorskip("transformers")

from ovs_methods.backbones import BlipMatcher, BridgeTowerMatcher, ImageTextMatcher, load_matcher
from ovs_methods.backbones.matching import CrossAttention, Prompt, single_word
from ovs_methods.errors import UserError
from ovs_methods.methods.pnp_ovss import (
    all_maps,
    best_of_words,
    choose_pnp_preset,
    drop_patches,
    gradcam,
    make_prompts,
    saliency_maps,
)
from PIL import Image

WORDS = ["cat", "pottedplant", "spoon", "wall"]
SIDE = 96  # 6 x 6 patches, where the models are made for 4 x 4


@pytest.fixture(scope="module")
def blip(blip_folder):
    matcher = load_matcher(str(blip_folder))
    matcher._model.double()
    return matcher


@pytest.fixture(scope="module")
def bridgetower(bridgetower_folder):
    matcher = load_matcher(str(bridgetower_folder))
    matcher._model.double()
    matcher._model.set_attn_implementation("eager")
    return matcher


@pytest.fixture(scope="module")
def pixels(chelsea, blip):
    with Image.open(chelsea) as file:
        return blip.pixels(file.convert("RGB"), SIDE).double()


@contextlib.contextmanager
def trained(model):
    """As a model in training has it: every weight wants a gradient."""
    model.requires_grad_(True)
    try:
        yield model
    finally:
        model.zero_grad(set_to_none=True)
        model.requires_grad_(False)


def blip_by_autograd(matcher, pixels, ids):
    """Probabilities and their gradients [layers, heads, T, 1 + N] through all of transformers' model, and the logit."""
    probabilities, handles = {}, []
    with trained(matcher._model) as model:
        for number, layer in enumerate(model.text_encoder.encoder.layer):

            def keep(_, __, output, number=number):
                output.retain_grad()
                probabilities[number] = output

            handles.append(layer.crossattention.self.dropout.register_forward_hook(keep))
        scores = model(input_ids=ids[None], pixel_values=pixels, interpolate_pos_encoding=True).itm_score
        scores[:, 1].sum().backward()
        assert model.vision_model.embeddings.class_embedding.grad is not None  # it went all the way
        for handle in handles:
            handle.remove()
    found = [probabilities[number] for number in range(matcher.layers)]
    return torch.cat(found).detach(), torch.cat([x.grad for x in found]), scores[0, 1].item()


def bridgetower_by_autograd(matcher, pixels, ids, monkeypatch):
    from transformers.models.bridgetower import modeling_bridgetower as module

    probabilities = {}
    layers = [layer.crossattention.self for layer in matcher._model.bridgetower.cross_modal_text_layers]

    def attend(asked, query, key, value, mask, scaling=None, **_):
        scores = query @ key.transpose(2, 3) * scaling
        weights = torch.softmax(scores if mask is None else scores + mask, -1)
        if asked in layers:
            weights.retain_grad()
            probabilities[layers.index(asked)] = weights
        return (weights @ value).transpose(1, 2).contiguous(), weights

    with monkeypatch.context() as patch, trained(matcher._model) as model:
        patch.setattr(module, "eager_attention_forward", attend)
        scores = model(input_ids=ids[None], pixel_values=pixels, interpolate_pos_encoding=True).logits
        scores[:, 1].sum().backward()
    found = [probabilities[number] for number in range(matcher.layers)]
    return torch.cat(found).detach(), torch.cat([x.grad for x in found]), scores[0, 1].item()


def token_maps(probabilities, gradients):
    """[layers, heads, T, N]."""
    return probabilities[..., 1:] * gradients[..., 1:].clamp(min=0)


@pytest.mark.parametrize("kind", ["blip", "bridgetower"])
def test_closed_form_is_the_gradient_through_the_whole_model(request, monkeypatch, pixels, kind):
    matcher = request.getfixturevalue(kind)
    prompt = matcher.tokenize("A picture of", WORDS)
    if kind == "blip":
        probabilities, gradients, _ = blip_by_autograd(matcher, pixels, prompt.ids)
    else:
        probabilities, gradients, _ = bridgetower_by_autograd(matcher, pixels, prompt.ids, monkeypatch)
    every = range(matcher.layers)
    seen = matcher.attention(matcher.encode_image(pixels), prompt, every)
    for layer in every:
        found = torch.softmax(seen[layer].queries @ seen[layer].keys.mT, -1)
        torch.testing.assert_close(found, probabilities[layer], rtol=1e-10, atol=1e-13)
        closed = seen[layer].gradients @ seen[layer].values.mT
        torch.testing.assert_close(closed, gradients[layer], rtol=1e-8, atol=1e-12)
        assert layer == matcher.layers - 1 or gradients[layer].abs().amin((0, 2)).max() > 0
    expected = torch.stack([token_maps(probabilities, gradients)[:, :, tokens].mean(2) for tokens in prompt.words], 2)
    assert (expected[0] > 0).float().mean() > 0.2
    torch.testing.assert_close(all_maps(matcher, pixels, prompt).flatten(3), expected, rtol=1e-8, atol=1e-14)
    (alone,) = matcher.attention(matcher.encode_image(pixels), prompt, [0])
    torch.testing.assert_close(gradcam(alone, prompt.words, 1, 2), expected[0, 2], rtol=1e-8, atol=1e-14)


def test_nothing_is_left_on_the_model(blip, pixels):
    prompt = blip.tokenize("A picture of", WORDS)
    blip.attention(blip.encode_image(pixels), prompt, [1])
    assert all(parameter.grad is None for parameter in blip._model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in blip._model.modules())
    with torch.inference_mode():  # a caller that computes without gradients gets the same
        (inside,) = blip.attention(blip.encode_image(pixels.clone()), prompt, [1])
    (outside,) = blip.attention(blip.encode_image(pixels), prompt, [1])
    assert torch.equal(inside.gradients, outside.gradients)


def published(matcher, pixels, variant, layer, head):
    """The procedure with lists and numpy, all of the model differentiated each time; [K, N]."""
    tokenizer, side, patch = matcher._tokenizer, pixels.shape[-1] // 16, 16
    ids = torch.tensor(tokenizer("A picture of " + " ".join(WORDS)).input_ids)
    ids[0] = 30523
    strings = tokenizer.convert_ids_to_tokens(ids.tolist())
    owner = [None] * len(strings)  # which class a token belongs to
    current = -1
    for index, string in enumerate(strings):
        if 3 < index < len(strings) - 1:  # [ENC] a picture of ... [SEP]: "a" is one token here
            current += not string.startswith("##")
            owner[index] = current
    assert current == len(WORDS) - 1
    image, gone, rounds = pixels.clone(), [], []
    for _ in range(4):
        for index in gone:
            top, left = index // side * patch, index % side * patch
            image[:, :, top : top + patch, left : left + patch] = 0
        probabilities, gradients, _ = blip_by_autograd(matcher, image, ids)
        tokens = token_maps(probabilities, gradients)[layer, head].numpy().copy()
        tokens[:, gone] = 0
        maps = np.stack([tokens[[i for i, k in enumerate(owner) if k == c]].mean(0) for c in range(len(WORDS))])
        rounds.append(maps)
        if variant == "code":
            total = tokens[4:-1].sum(0)
            gone.extend(np.argsort(total)[-10:].tolist())
        else:
            left = [index for index in range(side * side) if index not in gone]
            total = maps.sum(0)
            median = np.median(total[left])
            assert (total[left] >= median).sum() == math.ceil(len(left) / 2)  # no ties there: the rule is a half
            gone.extend(index for index in left if total[index] >= median)
    return sum(rounds) + (rounds[0] if variant == "code" else 0), gone


@pytest.mark.parametrize("variant", ["paper", "code"])
def test_rounds_are_those_of_the_published_procedure(blip, pixels, variant):
    constants = choose_pnp_preset(variant, {"layer": 0, "head": 1})
    found = saliency_maps(blip, pixels, make_prompts(blip, WORDS, constants), constants)
    expected, gone = published(blip, pixels, variant, 0, 1)
    assert len(gone) == (40 if variant == "code" else 18 + 9 + 5 + 2)
    assert found.shape == (4, 6, 6)
    torch.testing.assert_close(found.flatten(1), torch.from_numpy(expected), rtol=1e-7, atol=1e-13)
    once = choose_pnp_preset(changed={"rounds": 1, "layer": 0, "head": 1})
    once = saliency_maps(blip, pixels, make_prompts(blip, WORDS, once), once)
    assert (found - once).abs().max() > 1e-3 * once.max()


def test_what_a_round_drops():
    half = choose_pnp_preset()
    every = torch.ones(7, dtype=torch.bool)
    saliency = torch.tensor([0.0, 3.0, 0.0, 1.0, 3.0, 0.0, 0.0])
    assert drop_patches(saliency, every, half).tolist() == [False, False, True, False, False, True, True]
    left = torch.tensor([True, False, True, False, False, True, True])  # all zeros: the first half of them
    assert drop_patches(saliency, left, half).tolist() == [False, False, False, False, False, True, True]
    third = choose_pnp_preset(changed={"drop": 1 / 3})
    assert drop_patches(saliency, every, third).sum() == 7 - 3
    three = choose_pnp_preset(changed={"drop": 3})
    assert drop_patches(saliency, every, three).tolist() == [True, False, True, False, False, True, True]
    assert drop_patches(saliency, left, choose_pnp_preset(changed={"drop": 9})).sum() == 0
    assert drop_patches(saliency, left, choose_pnp_preset(changed={"drop": 0})).equal(left)
    decimal = choose_pnp_preset(changed={"drop": 0.07})  # of 100 patches 7, though 0.07 * 100 > 7 in floating point
    assert drop_patches(torch.arange(100.0), torch.ones(100, dtype=torch.bool), decimal).sum() == 93
    code = choose_pnp_preset("code", {"drop": 4})  # the last four of an ascending sort where what is gone counts 0
    assert drop_patches(saliency, left, code).tolist() == [True, False, True, False, False, False, False]


@pytest.mark.parametrize("kind", ["blip", "bridgetower"])
def test_a_word_has_its_own_tokens(request, kind):
    matcher = request.getfixturevalue(kind)
    prompt = matcher.tokenize("A picture of", ["cat", "Pottedplant", "wall", "t'ai", "cat"])
    pieces = matcher._tokenizer.convert_ids_to_tokens(prompt.ids.tolist())
    joined = ["".join(pieces[i].removeprefix("##").removeprefix("Ġ") for i in tokens) for tokens in prompt.words]
    assert [word.lower() for word in joined] == ["cat", "pottedplant", "wall", "t'ai", "cat"]
    assert len(prompt.words[1]) > 1
    every = [i for tokens in prompt.words for i in tokens]
    assert sorted(set(every)) == every
    assert prompt.text == "A picture of cat Pottedplant wall t'ai cat"
    if kind == "blip":
        assert prompt.ids[0] == 30523
        assert pieces[-1] == "[SEP]"
        assert [tokens[0] for tokens in prompt.words] == [4, 5, 8, 9, 13]


def test_names_become_single_words():
    assert [single_word(name) for name in ("potted plant", "t-shirt", " TV  set\u2013up_x ")] == [
        "pottedplant",
        "tshirt",
        "TVsetupx",
    ]
    with pytest.raises(UserError, match="--classes: expected names with letters in them, got ' - '"):
        single_word(" - ")


def test_too_long_a_prompt_is_refused_and_can_be_split(blip, pixels):
    words = [*WORDS, *(f"cat{letter}{letter}" for letter in "abcdefghijklmnopqrstuvwxyz")]
    constants = choose_pnp_preset(changed={"layer": 0, "head": 1, "rounds": 2})
    with pytest.raises(UserError, match=r"expected a prompt of at most 64 tokens.*--words-per-prompt"):
        make_prompts(blip, words, constants)
    constants = choose_pnp_preset(changed={"layer": 0, "head": 1, "rounds": 1, "words_per_prompt": 8})
    prompts = make_prompts(blip, words, constants)
    assert [len(prompt.words) for prompt in prompts] == [8, 8, 8, 6]
    found = saliency_maps(blip, pixels, prompts, constants)
    for number, prompt in enumerate(prompts):
        expected = all_maps(blip, pixels, prompt)[0, 1]
        torch.testing.assert_close(found[8 * number :][:8], expected, rtol=1e-12, atol=0)


def test_several_words_of_a_class():
    maps = torch.tensor([[[1.0, 5.0]], [[2.0, 0.0]], [[3.0, 1.0]], [[0.0, 4.0]]])
    assert best_of_words(maps, [0, 1, 1, 2]).tolist() == [[[1.0, 5.0]], [[3.0, 1.0]], [[0.0, 4.0]]]
    assert best_of_words(maps, [0, 1, 2, 3]) is maps


class TinyAlbef(ImageTextMatcher):
    """A model of one's own, without hooks and without transformers: two cross-attention blocks on patch colours."""

    name, patch, prefix, layers, heads = "tiny-albef", 16, 0, 2, 2

    def __init__(self):
        self.identity = {"model": "tiny-albef"}
        torch.manual_seed(3)
        self.words = nn.Embedding(64, 8)
        self.embed = nn.Conv2d(3, 8, 16, 16)
        self.blocks = [nn.MultiheadAttention(8, 2, batch_first=True) for _ in range(2)]
        self.mlps = [nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)) for _ in range(2)]
        self.head = nn.Linear(8, 2)
        for module in (self.words, self.embed, *self.blocks, *self.mlps, self.head):
            module.double().requires_grad_(False)

    def pixels(self, photo, side):
        values = torch.from_numpy(np.array(photo.resize((side, side)))).permute(2, 0, 1)[None]
        return values.double() / 127.5 - 1

    def tokenize(self, beginning, words):
        ids, places = [1], []
        for word in words:
            places.append([len(ids) + i for i in range(math.ceil(len(word) / 4))])
            ids += [sum(map(ord, word[i : i + 4])) % 64 for i in range(0, len(word), 4)]
        return Prompt(" ".join(words), torch.tensor(ids), places)

    def encode_image(self, pixels):
        return self.embed(pixels).flatten(2).mT

    def attention(self, image, prompt, layers, forced=None):
        """`forced`: probabilities per layer in place of the model's own."""
        text, seen, contexts = self.words(prompt.ids)[None], [], []
        with torch.enable_grad():
            for number, (block, mlp) in enumerate(zip(self.blocks, self.mlps, strict=True)):
                weights, biases = block.in_proj_weight.chunk(3), block.in_proj_bias.chunk(3)
                made = [F.linear(x, w, b) for x, w, b in zip((text, image, image), weights, biases, strict=True)]
                query, key, value = (x[0].unflatten(-1, (2, 4)).transpose(0, 1) for x in made)
                query = query / 2
                probabilities = torch.softmax(query @ key.mT, -1) if forced is None else forced[number]
                context = probabilities @ value
                if forced is None:
                    context = context.detach().requires_grad_() if number == layers[0] else context
                contexts.append(context)
                seen.append((query.detach(), key, value))
                text = text + block.out_proj(context.transpose(0, 1).flatten(1))[None]
                text = text + mlp(text.mean(1, keepdim=True) + text)
            match = self.head(text[:, 0])[0, 1]
        if forced is not None:
            return match
        gradients = torch.autograd.grad(match, [contexts[layer] for layer in layers])
        return [CrossAttention(*seen[layer], grad) for layer, grad in zip(layers, gradients, strict=True)]


def test_any_model_can_be_plugged_in(chelsea):
    matcher = TinyAlbef()
    with Image.open(chelsea) as file:
        pixels = matcher.pixels(file.convert("RGB"), 64)
    constants = choose_pnp_preset(changed={"layer": 1, "head": 0, "rounds": 1})
    (prompt,) = make_prompts(matcher, ["cat", "wallpaper"], constants)
    image = matcher.encode_image(pixels)
    own = [x.queries @ x.keys.mT for x in matcher.attention(image, prompt, [0, 1])]
    forced = [torch.softmax(scores, -1).requires_grad_() for scores in own]
    gradients = torch.autograd.grad(matcher.attention(image, prompt, [0, 1], forced), forced)
    tokens = forced[1][0].detach() * gradients[1][0].clamp(min=0)
    expected = torch.stack([tokens[places].mean(0) for places in ([1], [2, 3, 4])]).view(2, 4, 4)
    found = saliency_maps(matcher, pixels, [prompt], constants)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-15)
    assert expected.max() > 0
    with pytest.raises(UserError, match="--cross-layer: expected 0 to 1, which tiny-albef has, got none"):
        saliency_maps(matcher, pixels, [prompt], choose_pnp_preset())


def test_published_places_and_kinds(blip_folder, bridgetower_folder, tmp_path):
    assert (BlipMatcher.published, BridgeTowerMatcher.published) == ((7, 9), (1, 7))
    assert isinstance(load_matcher("blip-itm-large-coco", str(blip_folder)), BlipMatcher)
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    for name, text in (
        (str(tmp_path), "--model: expected a blip or bridgetower, got .* of the type 'clip'"),
        (str(tmp_path / "none/here"), "--model: expected a folder in the layout of transformers, got nothing"),
        ("blip", "--model: expected blip-itm-large-flickr, .* or a folder, got 'blip'"),
    ):
        with pytest.raises(UserError, match=text):
            load_matcher(name)
    with pytest.raises(UserError, match=r"--weights: expected a folder .*config.json"):
        load_matcher("blip-itm-large-coco", str(bridgetower_folder.parent))


@pytest.mark.parametrize(
    ("name", "changed", "text"),
    [
        ("both", {}, "--variant: expected paper or code, got 'both'"),
        ("paper", {"drop": 1.5}, "--drop: expected a share"),
        ("paper", {"drop": -0.1}, "--drop: expected a share"),
        ("paper", {"drop": math.nan}, "--drop: expected a share"),
        ("paper", {"threshold": 1.1}, "--threshold: expected a number from 0 to 1, got 1.1"),
        ("paper", {"blur": -1}, "--blur: expected"),
        ("paper", {"rounds": 0}, "--rounds: expected 1 or more, got 0"),
        ("paper", {"words_per_prompt": 0}, "--words-per-prompt: expected 1 or more"),
        ("paper", {"saliency": "pixels"}, "saliency: expected classes or tokens, got pixels"),
    ],
)
def test_constants_out_of_range(name, changed, text):
    with pytest.raises(UserError, match=text):
        choose_pnp_preset(name, changed)


def test_constants():
    code = choose_pnp_preset("code", {"crf_iterations": 3, "blur": None})
    assert (code.drop, code.first_weight, code.saliency, code.reselect, code.blur) == (10, 2.0, "tokens", True, 0.05)
    assert (code.crf.iterations, code.crf.bilateral_sxy) == (3, 50.0)
    assert choose_pnp_preset(changed={"crf_iterations": 0}).crf is None
    paper = choose_pnp_preset()
    assert (paper.drop, paper.rounds, paper.threshold, paper.blur, paper.first_weight) == (0.5, 4, 0.15, 0.05, 1.0)
