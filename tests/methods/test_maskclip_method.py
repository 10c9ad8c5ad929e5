"""MaskCLIP's head on open_clip's architecture, against `clip_literal`; and templates, with what is kept of them."""

import clip_literal as literal
import numpy as np
import pytest
import torch

pytest.importorskip("PIL")

from ovs_methods.backbones import MaskClip
from ovs_methods.errors import UserError
from ovs_methods.images import read_photo, resize_argmax, to_tensor, working_size
from ovs_methods.methods import METHODS, RECIPES, choose_recipe, maskclip
from ovs_methods.vocabulary import (
    ClassExamples,
    Vocabulary,
    build_vocabulary,
    load_templates,
    mean_examples,
    template_embeddings,
    text_examples,
)
from ovs_methods.windows import look

CLASSES = {"cat": ["cat"], "sofa": ["sofa", "couch"], "grass": ["green grass"], "wall": ["wall", "sky", "stone"]}
GROUPS = [0, 1, 1, 2, 3, 3, 3]


@pytest.fixture(scope="module")
def clip(clip_folder):
    return MaskClip(f"local-dir:{clip_folder}")


def names_of(classes):
    return [name for names in classes.values() for name in names]


@pytest.mark.parametrize(("short", "setup"), [(96, (64, 32)), (80, None), (48, (64, 32))])
def test_maskclip_is_the_average_of_patches_probabilities(clip, chelsea, tmp_path, short, setup):
    photo = read_photo(chelsea).resize((150, 100))
    size = working_size(photo.height, photo.width, short)
    image = to_tensor(photo, size)
    vocabulary = build_vocabulary(text_examples(clip, CLASSES, tmp_path))
    found = maskclip([look(photo, image, clip, None, setup)], vocabulary, image)
    boxes = literal.windows(*size, *(setup or (max(size), max(size))))
    if setup is None:
        features = clip.dense(to_tensor(photo, clip.input_size(*size))[None])
    else:
        features = torch.cat([clip.dense(image[None, :, y0:y1, x0:x1]) for y0, x0, y1, x1 in boxes])
    texts = literal.unit(
        template_embeddings(clip, names_of(CLASSES), load_templates(), tmp_path).double().numpy().mean(0)
    )
    expected = literal.maskclip(features.double().numpy(), boxes, texts, GROUPS, size)
    assert found.shape == (4, *size)
    assert np.abs(found.numpy() - expected).max() < 2e-5
    enlarged = literal.resized(expected, (100, 150))
    best = np.sort(enlarged, 0)
    sure = best[-1] - best[-2] > 1e-4
    labels = resize_argmax(found, (100, 150)).numpy()
    assert sure.mean() > 0.99
    assert np.array_equal(labels[sure], literal.labels(enlarged)[sure])
    assert len(np.unique(labels)) > 1


def test_several_setups_of_windows_count_equally(clip, chelsea, tmp_path):
    photo = read_photo(chelsea).resize((90, 60))
    image = to_tensor(photo, (96, 144))
    views = [look(photo, image, clip, None, setup) for setup in ((64, 32), (96, 48))]
    single = build_vocabulary(text_examples(clip, {name: [name] for name in ("cat", "wall")}, tmp_path))
    both = maskclip(views, single, image, scale=3)
    one, other = (maskclip([view], single, image, scale=3) for view in views)
    assert torch.allclose(both, (one + other) / 2, atol=1e-6)
    assert not torch.allclose(one, other, atol=1e-4)


def test_a_single_name_is_certain(clip, chelsea, tmp_path):
    photo = read_photo(chelsea).resize((90, 60))
    image = to_tensor(photo, (64, 96))
    (example,) = text_examples(clip, {"cat": ["cat"]}, tmp_path)
    vocabulary = Vocabulary(["cat"], [0], example.embeddings, [0])
    found = maskclip([look(photo, image, clip, None, (64, 32))], vocabulary, image)
    assert torch.allclose(found, torch.ones(1, 64, 96))


def test_recipes_are_those_of_the_published_methods():
    shown = {
        name: (recipe.features, METHODS[name].__name__, recipe.windows, recipe.short_side, recipe.scale)
        for name, recipe in RECIPES.items()
    }
    assert shown == {
        "maskclip": ("maskclip", "maskclip", "448/224", 448, 100),
        "naclip": ("naclip", "naclip", "224/112", 336, 40),
        "clip-dinoiser": ("clip-dinoiser", "maskclip", "448/224", 448, 100),
        "proxyclip": ("proxyclip", "naclip", "336/112", 336, 40),
    }


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("naclip", {}, ["background", "cat"]), (40, 0.1)),
        (("naclip", {}, ["cat", "dog"]), (40, 0)),
        (("naclip", {"scale": 7, "threshold": 0.3}, ["cat", "dog"]), (7, 0.3)),
        (("naclip", {"scale": None, "threshold": 0}, ["Background", "dog"]), (40, 0)),
        (("naclip", {}, ["background", "cat"], True), (100, 0)),
        (("maskclip", {"scale": 50}, ["background", "cat"]), (50, 0)),
        (("clip-dinoiser", {}, ["cat", "dog"], True), (100, 0)),
    ],
)
def test_scale_and_threshold(arguments, expected):
    recipe = choose_recipe(*arguments)
    assert (recipe.scale, recipe.threshold) == expected


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("maskclip", {"threshold": 0.2}), "--threshold: expected --method naclip, .*got --method maskclip"),
        (("naclip", {"threshold": 0.2}, ["a"], True), "--threshold: expected .*got --method floss"),
        (("naclip", {"threshold": 1}), "--threshold: expected a probability from 0 to below 1, got 1"),
        (("proxyclip", {"threshold": float("nan")}), "--threshold: expected a probability"),
        (("maskclip", {"scale": 0}), "--scale: expected a positive number, got 0"),
        (("maskclip", {"scale": float("inf")}), "--scale: expected a positive number"),
    ],
)
def test_scales_and_thresholds_that_cannot_be_used(arguments, error):
    with pytest.raises(UserError, match=error):
        choose_recipe(*arguments)


def test_templates_come_from_open_clip_or_from_a_file(clip, tmp_path):
    from ovs_methods.backbones.weights import import_models

    templates = load_templates()
    theirs = import_models("open_clip", "this test").OPENAI_IMAGENET_TEMPLATES
    assert [template.replace("{}", "tree frog") for template in templates] == [make("tree frog") for make in theirs]
    assert len(templates) == 80
    file = tmp_path / "mine.txt"
    file.write_bytes("\ufeffa photo of a {}.\r\n\n  {} in the fog  \n".encode())
    assert load_templates(file) == ["a photo of a {}.", "{} in the fog"]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (
            b"a photo of a {}.\n\na photo.\n",
            "--templates: line 3 of .*: expected one {} .*got 'a photo.', which has none",
        ),
        (b"a {} and a {}\n", "--templates: line 1 of .*: expected one {} .*which has 2"),
        (b"\n \n", "--templates: expected at least one template.*got none in"),
        (b"a photo of \xff\xfe {}", "--templates: expected a text file in UTF-8"),
        (None, "--templates: expected a text file.*got no file at"),
    ],
)
def test_templates_that_cannot_be_used(tmp_path, text, error):
    file = tmp_path / "mine.txt"
    if text is not None:
        file.write_bytes(text)
    with pytest.raises(UserError, match=error) as caught:
        load_templates(file)
    assert "mine.txt" in str(caught.value)


class Counting:
    """A model that counts what its text tower is asked."""

    def __init__(self, model):
        self.model, self.text_identity, self.prompts = model, model.text_identity, []

    def encode_text(self, prompts):
        self.prompts += dict.fromkeys(prompts)  # the last batch is filled up with its last prompt
        return self.model.encode_text(prompts)


def test_every_pair_is_encoded_once(clip, clip_folder, tmp_path):
    counting = Counting(clip)
    templates = ["a photo of a {}.", "{} in the fog", "a photo of a {}."]
    found = template_embeddings(counting, ["cat", "dog", "cat"], templates, tmp_path)
    assert found.shape == (3, 3, 48)
    assert found.dtype == torch.float32
    assert torch.equal(found[:, 0], found[:, 2])
    assert torch.equal(found[0], found[2])
    pairs = ["a photo of a cat.", "cat in the fog", "a photo of a dog.", "dog in the fog"]
    assert sorted(counting.prompts) == sorted(pairs)
    direct = clip.encode_text(pairs).reshape(2, 2, 48).transpose(0, 1)
    assert torch.allclose(found[:2, :2], direct, atol=1e-6)
    assert torch.allclose(found.norm(dim=-1), torch.ones(3, 3), atol=1e-5)
    again = template_embeddings(counting, ["dog", "cat"], templates[:2], tmp_path)
    assert torch.equal(again, found[:2, [1, 0]])
    assert len(counting.prompts) == 4
    more = template_embeddings(counting, ["cat", "fox"], ["a {}", templates[1]], tmp_path)
    assert counting.prompts[4:] == ["a cat", "a fox", "fox in the fog"]
    assert torch.equal(more[1, 0], found[1, 0])
    other = Counting(MaskClip(f"local-dir:{clip_folder}", features="kk"))  # the same text tower
    assert torch.equal(template_embeddings(other, ["cat", "dog", "cat"], templates, tmp_path), found)
    assert other.prompts == []


def test_names_are_put_in_as_they_are(clip, tmp_path):
    counting = Counting(clip)
    template_embeddings(counting, ["{0} {cat} %s \\1"], ["a photo of a {}."], tmp_path)
    assert counting.prompts == ["a photo of a {0} {cat} %s \\1."]


def test_a_cache_that_cannot_be_written_costs_time_only(clip, tmp_path):
    (tmp_path / "file").write_text("")
    counting = Counting(clip)
    found = template_embeddings(counting, ["cat"], ["a {}"], tmp_path / "file")
    assert torch.equal(template_embeddings(counting, ["cat"], ["a {}"], tmp_path / "file"), found)
    assert counting.prompts == ["a cat"] * 2


@pytest.mark.parametrize(
    ("names", "templates", "error"),
    [
        ([], ["a {}"], "template_embeddings: names: expected at least one"),
        (["cat"], [], "template_embeddings: templates: expected at least one"),
        (["cat"], ["a {}", "a cat"], "template 1: expected one {}.*got 'a cat'"),
    ],
)
def test_nothing_to_embed(clip, tmp_path, names, templates, error):
    with pytest.raises((ValueError, UserError), match=error):
        template_embeddings(clip, names, templates, tmp_path)


def test_means_of_names_have_length_one(clip):
    embeddings = torch.nn.functional.normalize(torch.randn(5, 3, 8, generator=torch.Generator().manual_seed(3)), dim=-1)
    examples = mean_examples({"a": ["x"], "b": ["y", "z"]}, embeddings)
    assert [(example.name, len(example.embeddings)) for example in examples] == [("a", 1), ("b", 2)]
    expected = literal.unit(embeddings.double().numpy().mean(0))
    assert np.allclose(torch.cat([example.embeddings for example in examples]).numpy(), expected, atol=1e-6)
    assert isinstance(examples[0], ClassExamples)
