"""NACLIP's head, softmax at the pixels of the photo, against `clip_literal`."""

import clip_literal as literal
import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("PIL")

from ovs_methods import images
from ovs_methods.backbones import MaskClip
from ovs_methods.images import read_photo, to_tensor, working_size
from ovs_methods.methods import naclip, pamr_scores, softmax_argmax
from ovs_methods.vocabulary import Vocabulary, build_vocabulary, load_templates, template_embeddings, text_examples
from ovs_methods.windows import look

CLASSES = {"background": ["sky", "wall", "stone"], "cat": ["cat"], "sofa": ["sofa", "couch"], "grass": ["green grass"]}
GROUPS = [0, 0, 0, 1, 2, 2, 3]


@pytest.fixture(scope="module")
def clip(clip_folder):
    """With the features of MaskCLIP: without a residual, random weights make patches that are all alike."""
    return MaskClip(f"local-dir:{clip_folder}")


@pytest.mark.parametrize(
    ("setup", "scale", "threshold", "refined"),
    [((64, 32), 40, 0.1, False), ((64, 32), 40, 0.6, False), (None, 100, 0, False), ((64, 32), 40, 0.1, True)],
)
def test_naclip_becomes_probabilities_at_the_pixels_of_the_photo(
    clip, chelsea, tmp_path, monkeypatch, setup, scale, threshold, refined
):
    photo = read_photo(chelsea).resize((105, 70))
    size = working_size(photo.height, photo.width, 80)
    image = to_tensor(photo, size)
    vocabulary = build_vocabulary(text_examples(clip, CLASSES, tmp_path))
    scores = naclip([look(photo, image, clip, None, setup)], vocabulary, image)
    assert scores.shape == (7, *size)
    boxes = literal.windows(*size, *(setup or (max(size), max(size))))
    if setup is None:
        features = clip.dense(to_tensor(photo, clip.input_size(*size))[None])
    else:
        features = torch.cat([clip.dense(image[None, :, y0:y1, x0:x1]) for y0, x0, y1, x1 in boxes])
    names = [name for words in CLASSES.values() for name in words]
    texts = literal.unit(template_embeddings(clip, names, load_templates(), tmp_path).double().numpy().mean(0))
    picture = image.double().numpy() if refined else None
    expected = literal.naclip(features.double().numpy(), boxes, texts, GROUPS, size, (70, 105), scale, picture)
    if refined:
        coarse = softmax_argmax(scores, vocabulary, (70, 105), scale, threshold).numpy()
        scores = pamr_scores(scores, image, (70, 105))
        assert scores.shape == (7, 70, 105)
        assert (coarse != literal.labels(expected, threshold)).mean() > 0.005  # PAMR does something
    best = np.sort(expected, 0)
    sure = (best[-1] - best[-2] > 1e-4) & (np.abs(best[-1] - threshold) > 1e-4)
    assert sure.mean() > 0.98
    found = softmax_argmax(scores, vocabulary, (70, 105), scale, threshold).numpy()
    assert np.array_equal(found[sure], literal.labels(expected, threshold)[sure])
    assert len(np.unique(found)) > 1
    if threshold == 0.6:
        assert (found != literal.labels(expected)).mean() > 0.05  # the threshold does something
    monkeypatch.setattr(images, "_BAND_BYTES", 16384)
    assert np.array_equal(softmax_argmax(scores, vocabulary, (70, 105), scale, threshold).numpy(), found)


@pytest.mark.parametrize("settings", [{}, {"num_iter": 3, "dilations": (1, 2, 5)}])
def test_pamr_sees_the_normalised_image_at_the_size_of_the_photo(settings):
    generator = torch.Generator().manual_seed(3)
    image, scores = torch.rand(3, 31, 40, generator=generator), torch.randn(5, 9, 12, generator=generator)
    mean, std = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
    picture = (image.double().numpy() - mean[:, None, None]) / std[:, None, None]
    picture, wide = literal.resized(picture, (50, 63)), literal.resized(scores.double().numpy(), (50, 63))
    found = pamr_scores(scores, image, (50, 63), **settings).numpy()
    assert np.abs(found - literal.pamr(picture, wide, **settings)).max() < 1e-4
    assert np.abs(found - wide).max() > 0.1


def test_the_softmax_is_taken_after_the_resize():
    """Two patches that are sure of different names: between them nobody is, which a softmax before would hide."""
    scores = torch.tensor([[[1.0, -1.0]], [[0.0, 0.0]], [[-1.0, 1.0]]])
    vocabulary = Vocabulary(["a", "b", "c"], [0, 1, 2], torch.eye(3), [0, 1, 2])
    found = softmax_argmax(scores, vocabulary, (1, 4), scale=100, threshold=0.4)
    assert found.tolist() == [[0, 0, 2, 2]]
    shifted = torch.tensor([[[1.0, -1.0]], [[0.6, 0.6]], [[-1.0, 1.0]]])  # at a quarter of the way 0.5, 0.6, -0.5
    assert softmax_argmax(shifted, vocabulary, (1, 4), scale=100).tolist() == [[0, 1, 1, 2]]
    unsure = softmax_argmax(shifted / 1000, vocabulary, (1, 4), scale=100, threshold=0.35)
    assert unsure.tolist() == [[0, 0, 0, 2]]


def test_names_compete_and_classes_take_their_best():
    """b's two names share what a third of the probability is; the class with the likeliest name wins, not their sum."""
    scores = torch.tensor([0.50, 0.49, 0.49])[:, None, None]
    vocabulary = Vocabulary(["a", "b"], [0, 1], torch.eye(3), [0, 1, 1])
    assert softmax_argmax(scores, vocabulary, (2, 2), scale=1).eq(0).all()
    assert softmax_argmax(scores.flip(0), vocabulary, (2, 2), scale=1).eq(1).all()
    same = softmax_argmax(torch.zeros(3, 1, 1), vocabulary, (2, 2), scale=1)
    assert same.eq(0).all()
    one = Vocabulary(["a"], [0], torch.eye(1), [0])
    assert softmax_argmax(torch.zeros(1, 2, 2), one, (3, 5), threshold=0.99).eq(0).all()


def test_classes_may_come_in_any_order():
    scores = torch.tensor([0.3, 0.5, 0.5, 0.1])[:, None, None]
    vocabulary = Vocabulary(["a", "b"], [0, 1], torch.eye(4), [1, 1, 0, 0])
    assert softmax_argmax(scores, vocabulary, (2, 2)).eq(0).all()
    assert softmax_argmax(scores * torch.tensor([1, 1, 0.99, 1])[:, None, None], vocabulary, (2, 2)).eq(1).all()


def test_extreme_scores_give_labels():
    scores = torch.tensor([[[torch.nan, -torch.inf, 1e30]], [[0.0, 0.0, 0.0]]])
    vocabulary = Vocabulary(["a", "b"], [0, 1], torch.eye(2), [0, 1])
    assert softmax_argmax(scores, vocabulary, (1, 3), scale=100).tolist() == [[1, 1, 0]]
    assert softmax_argmax(scores, vocabulary, (1, 3), scale=100, threshold=0.5).tolist() == [[1, 1, 0]]


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that anything returns."""

    elements = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **keywords or {})
        for made in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(made, torch.Tensor):
                self.elements = max(self.elements, made.numel())
        return result


def test_no_array_of_all_names_at_all_pixels_is_made(monkeypatch):
    vocabulary = Vocabulary(["a", "b"], [0, 1], torch.eye(60), [0] * 30 + [1] * 30)
    scores = torch.randn(60, 20, 30, generator=torch.Generator().manual_seed(0))
    with Largest() as whole:
        expected = softmax_argmax(scores, vocabulary, (200, 300), threshold=0.1)
    assert whole.elements == 60 * 200 * 300  # what it measures is what it says
    monkeypatch.setattr(images, "_BAND_BYTES", 2**20)
    with Largest() as bands:
        found = softmax_argmax(scores, vocabulary, (200, 300), threshold=0.1)
    assert bands.elements <= 2**20 // 4
    assert torch.equal(found, expected)
