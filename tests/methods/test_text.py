"""Classes by text."""

import numpy as np
import pytest
import torch

pytest.importorskip("PIL")

from ovs_methods.backbones import MaskClip
from ovs_methods.errors import UserError
from ovs_methods.vocabulary import BACKGROUNDS, build_vocabulary, parse_classes, text_examples


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
    (path,) = tmp_path.iterdir()
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
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_a_cache_that_cannot_be_written_does_not_matter(clip, tmp_path):
    (tmp_path / "file").write_text("")
    (example,) = text_examples(clip, {"cat": ["cat"]}, tmp_path / "file")
    assert example.embeddings.norm().item() == pytest.approx(1, abs=1e-5)
