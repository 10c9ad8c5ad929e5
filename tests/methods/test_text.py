"""Classes by text."""

import subprocess
import sys
from typing import ClassVar

import numpy as np
import pytest
import torch

pytest.importorskip("PIL")

from ovs_methods.backbones import MaskClip
from ovs_methods.errors import UserError
from ovs_methods.vocabulary import BACKGROUNDS, build_vocabulary, parse_classes, template_embeddings, text_examples


def test_classes_and_their_other_names():
    assert parse_classes("cat, sofa;couch | settee,  potted   plant ") == {
        "cat": ["cat"],
        "sofa": ["sofa", "couch", "settee"],
        "potted plant": ["potted plant"],
    }


@pytest.mark.parametrize(
    ("text", "background", "error"),
    [
        ("", "none", "--classes: expected at least one name"),
        ("  ", "voc", "--classes: expected at least one name"),
        ("cat,,dog", "none", "an empty name"),
        ("cat, dog;", "none", "an empty name"),
        ("cat, dog, Cat", "none", "every name once, got 'Cat' twice"),
        ("cat; feline, dog; feline", "none", "every name once, got 'feline' twice"),
        ("cat", "none", "at least two classes.*only 'cat'.*--background voc"),
        ("cat, background", "voc", "--background: expected none"),
    ],
)
def test_classes_that_cannot_be_used(text, background, error):
    with pytest.raises(UserError, match=error):
        parse_classes(text, background)


def test_the_background_is_a_class_of_many_words():
    assert (len(set(BACKGROUNDS["voc"])), len(set(BACKGROUNDS["coco"]))) == (26, 17)
    assert set(BACKGROUNDS["coco"]) < set(BACKGROUNDS["voc"])
    classes = parse_classes("cat, bed; bunk", "coco")
    assert list(classes) == ["background", "cat", "bed"]
    assert "bed" not in classes["background"]  # it would tie with the class bed everywhere, and win
    assert len(classes["background"]) == 16
    assert parse_classes("cat", "plain") == {"background": ["background"], "cat": ["cat"]}
    assert parse_classes("cat", "sky,  sea ")["background"] == ["sky", "sea"]


@pytest.fixture
def clip(clip_folder):
    return MaskClip(f"local-dir:{clip_folder}")


def test_a_name_is_the_mean_of_80_prompts(clip, clip_folder, tmp_path):
    from ovs_methods.backbones.weights import import_models

    open_clip = import_models("open_clip", "this test")
    model = open_clip.create_model(f"local-dir:{clip_folder}").eval()
    assert len(open_clip.OPENAI_IMAGENET_TEMPLATES) == 80
    total = 0
    for template in open_clip.OPENAI_IMAGENET_TEMPLATES:
        with torch.no_grad():
            one = model.encode_text(open_clip.tokenize([template("couch")]))[0].double()
        total = total + one / one.norm()
    examples = text_examples(clip, {"cat": ["cat"], "sofa": ["sofa", "couch"]}, tmp_path)
    assert [(made.name, tuple(made.embeddings.shape)) for made in examples] == [
        ("cat", (1, 48)),
        ("sofa", (2, 48)),
    ]
    assert torch.allclose(examples[1].embeddings[1], (total / total.norm()).float(), atol=1e-5)
    vocabulary = build_vocabulary(examples)
    assert (vocabulary.names, vocabulary.ids, vocabulary.groups) == (["cat", "sofa"], [0, 1], [0, 1, 1])


def test_embeddings_are_kept_on_disk_and_damaged_ones_are_made_anew(clip, tmp_path):
    (first,) = text_examples(clip, {"cat": ["cat"]}, tmp_path)
    (path,) = tmp_path.glob("*.npz")
    with np.load(path) as stored:
        prompts = stored["prompts"]
    assert (len(prompts), prompts[0]) == (80, "a bad photo of a cat.")
    marked = np.zeros((80, 48), np.float32)
    marked[:, 7] = 1
    np.savez(path, prompts=prompts, embeddings=marked)
    (stored,) = text_examples(clip, {"cat": ["cat"]}, tmp_path)
    assert torch.equal(stored.embeddings[0], torch.from_numpy(marked[0]))
    other = tmp_path / "other"
    other.mkdir()
    np.save(other / "array.npy", marked)
    np.savez(other / "long.npz", prompts=prompts, embeddings=2 * marked)
    np.savez(other / "short.npz", prompts=prompts, embeddings=marked[:79])
    np.savez(other / "lacks.npz", prompts=prompts)
    damaged = [b"", b"\x93NUMPY", path.read_bytes()[:-5], path.read_bytes().replace(b"\x80\x3f", b"\x80\x3e")]
    for damage in (*damaged, *(file.read_bytes() for file in other.iterdir())):
        path.write_bytes(damage)
        (again,) = text_examples(clip, {"cat": ["cat"]}, tmp_path)
        assert torch.equal(again.embeddings, first.embeddings)
    text_examples(clip, {"cat": ["cat", "dog"]}, tmp_path)
    assert len(list(tmp_path.glob("*.npz"))) == 2


def test_other_weights_have_other_embeddings(clip, clip_folder, tmp_path):
    text_examples(clip, {"cat": ["cat"]}, tmp_path / "cache")
    weights = torch.load(clip_folder / "open_clip_pytorch_model.bin")
    weights["token_embedding.weight"] = weights["token_embedding.weight"].flip(0)
    torch.save(weights, tmp_path / "other.bin")
    other = MaskClip(f"local-dir:{clip_folder}", tmp_path / "other.bin")
    text_examples(other, {"cat": ["cat"]}, tmp_path / "cache")
    assert len(list((tmp_path / "cache").glob("*.npz"))) == 2


def test_a_cache_that_cannot_be_written_does_not_matter_and_is_said_once(clip, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    with caplog.at_level("INFO", "ovs_methods"):
        for name in ("cat", "dog"):
            (example,) = text_examples(clip, {name: [name]}, tmp_path / "file")
            assert example.embeddings.norm().item() == pytest.approx(1, abs=1e-5)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert f"the text cache {tmp_path / 'file'} cannot be written" in record.getMessage()


def test_an_embedding_does_not_depend_on_what_is_encoded_with_it(clip, tmp_path):
    """One prompt alone, all at once, or the rest after an interruption: the same bits."""
    templates = [f"photo {number} of a {{}}." for number in range(19)]
    at_once = template_embeddings(clip, ["cat"], templates, tmp_path / "at_once")
    for count in (1, 3, 8, 18):
        folder = tmp_path / str(count)
        first = template_embeddings(clip, ["cat"], templates[:count], folder)
        assert torch.equal(first, at_once[:count])
        assert torch.equal(template_embeddings(clip, ["cat"], templates, folder), at_once)
        assert torch.equal(template_embeddings(clip, ["cat"], templates[::-1], tmp_path / f"r{count}"), at_once.flip(0))


def test_an_interrupt_leaves_nothing_half_written(clip, tmp_path, monkeypatch):
    def interrupted(file, **arrays):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", interrupted)
    with pytest.raises(KeyboardInterrupt):
        template_embeddings(clip, ["cat"], ["a {}."], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


_PROCESS = """
import sys
import time
from pathlib import Path

import numpy as np
import torch
from ovs_methods.vocabulary import template_embeddings


class Tower:
    text_identity = {"model": "a tower of this test"}

    def encode_text(self, prompts):
        # Both processes have read the file, and are encoding, before either may store anything.
        Path(sys.argv[2]).touch()
        for _ in range(60000):
            if Path(sys.argv[3]).exists():
                break
            time.sleep(0.001)
        numbers = torch.tensor([[float(prompt.split()[0]), 1.0] for prompt in prompts])
        return numbers / numbers.norm(dim=1, keepdim=True)


start = int(sys.argv[4])
template_embeddings(Tower(), ["cat"], [f"{start + i} {{}}" for i in range(5)], Path(sys.argv[1]))
"""


def test_two_processes_keep_each_others_embeddings(environment, tmp_path):
    cache, ready = tmp_path / "cache", [tmp_path / "one", tmp_path / "other"]
    template_embeddings(_Numbers(), ["cat"], ["900 {}"], cache)
    running = []
    for start, (own, other) in ((100, ready), (200, ready[::-1])):
        command = [sys.executable, "-c", _PROCESS, *map(str, (cache, own, other, start))]
        running.append(subprocess.Popen(command, env=environment))
    assert [process.wait(timeout=120) for process in running] == [0, 0]
    (path,) = cache.glob("*.npz")
    with np.load(path) as stored:
        found = dict(zip(stored["prompts"].tolist(), stored["embeddings"], strict=True))
    wanted = [900, *range(100, 105), *range(200, 205)]
    assert set(found) == {f"{number} cat" for number in wanted}
    for number in wanted:
        row = np.array([number, 1.0]) / np.hypot(number, 1)
        assert np.abs(found[f"{number} cat"] - row).max() < 1e-6
    assert {path.name for path in cache.iterdir()} == {path.name, "lock"}


class _Numbers:
    text_identity: ClassVar = {"model": "a tower of this test"}

    def encode_text(self, prompts):
        numbers = torch.tensor([[float(prompt.split()[0]), 1.0] for prompt in prompts])
        return numbers / numbers.norm(dim=1, keepdim=True)
