"""FLOSS's experts and their fusion on open_clip's architecture, against `clip_literal` with all of [K + 1, K, H, W]."""

import dataclasses

import clip_literal as literal
import numpy as np
import pytest
import torch

pytest.importorskip("PIL")

from ovs_methods.backbones import MaskClip
from ovs_methods.images import read_photo, to_tensor
from ovs_methods.methods import FUSIONS, expert_embeddings, floss
from ovs_methods.vocabulary import load_templates, template_embeddings
from ovs_methods.windows import look

NAMES = ["cat", "sofa", "couch", "green grass", "wall"]
GROUPS = [0, 1, 1, 2, 3]
EXPERTS = [[57, 3], [12, 44, 70, 9], None, [5]]


@pytest.fixture(scope="module")
def clip(clip_folder):
    return MaskClip(f"local-dir:{clip_folder}")


@pytest.fixture(scope="module")
def embeddings(clip, tmp_path_factory):
    return template_embeddings(clip, NAMES, load_templates(), tmp_path_factory.mktemp("text"))


@pytest.mark.parametrize("renormalize", [False, True])
def test_experts_are_means_of_their_classs_templates(embeddings, renormalize):
    found = expert_embeddings(embeddings, EXPERTS, GROUPS, renormalize)
    assert found.shape == (6, 5, 48)
    expected = literal.classifiers(embeddings.double().numpy(), EXPERTS, GROUPS, renormalize)
    assert np.abs(found.numpy() - expected).max() < 1e-6
    assert torch.equal(found[1], found[2])  # two names of one class
    assert torch.equal(found[3], found[5])  # a class without experts is the default
    lengths = found.norm(dim=-1)
    assert torch.allclose(lengths, torch.ones(6, 5), atol=1e-5) if renormalize else bool((lengths < 0.9999).any())


@pytest.mark.parametrize(
    ("experts", "groups", "error"),
    [
        ([[0], [80]], [0, 1, 1, 1, 1], r"experts\[1\]: expected at least one template below 80, or None, got \[80\]"),
        ([[0], []], [0, 1, 1, 1, 1], r"experts\[1\]: .*got \[\]"),
        ([[0], [-1]], [0, 1, 1, 1, 1], r"experts\[1\]: .*got \[-1\]"),
        ([[0]], [0, 0, 0, 0], "groups: expected 5 classes below 1"),
        ([[0]], [0, 0, 0, 0, 1], "groups: expected 5 classes below 1"),
    ],
)
def test_experts_that_cannot_be_made(embeddings, experts, groups, error):
    with pytest.raises(ValueError, match="expert_embeddings: " + error):
        expert_embeddings(embeddings, experts, groups)


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("setup", [(64, 32), None])
def test_floss_is_the_published_fusion(clip, embeddings, chelsea, fusion, setup):
    photo = read_photo(chelsea).resize((150, 100))
    image, size = to_tensor(photo, (80, 112)), (80, 112)
    experts = expert_embeddings(embeddings, EXPERTS, GROUPS)
    found = floss([look(photo, image, clip, None, setup)], experts, image, fusion=fusion)
    boxes = literal.windows(*size, *(setup or (112, 112)))
    crops = (
        [to_tensor(photo, size)[None]] if setup is None else [image[None, :, y0:y1, x0:x1] for y0, x0, y1, x1 in boxes]
    )
    features = torch.cat([clip.dense(crop) for crop in crops]).double().numpy()
    made = literal.classifiers(embeddings.double().numpy(), EXPERTS, GROUPS, False)
    expected = literal.floss(features, boxes, made, size, fusion)
    # Where two experts are equally sure, or two names equally likely, rounding may decide for another one.
    agree = np.abs(found.numpy() - expected).max(0) < 5e-4
    assert agree.mean() > 0.998
    default = literal.floss(features, boxes, np.stack([made[-1]] * len(made)), size, fusion)
    assert np.abs(expected - default).max() > 0.05  # the experts are not the default


def test_windows_are_fused_before_they_are_averaged(clip, embeddings, chelsea):
    """With one window only, the result is the window's own; overlaps are the mean of the windows' results."""
    photo = read_photo(chelsea).resize((96, 64))
    image = to_tensor(photo, (64, 96))
    experts = expert_embeddings(embeddings, EXPERTS, GROUPS)
    view = look(photo, image, clip, None, (64, 32))
    found = floss([view], experts, image)
    parts = []
    for index in range(2):
        one = dataclasses.replace(view, features=view.features[index : index + 1], boxes=torch.tensor([[0, 0, 64, 64]]))
        parts.append(floss([one], experts, image[:, :, :64]))
    assert view.boxes.tolist() == [[0, 0, 64, 64], [0, 32, 64, 96]]
    assert torch.allclose(found[:, :, :32], parts[0][:, :, :32], atol=1e-6)
    assert torch.allclose(found[:, :, 32:64], (parts[0][:, :, 32:] + parts[1][:, :, :32]) / 2, atol=1e-6)
    assert torch.allclose(found[:, :, 64:], parts[1][:, :, 32:], atol=1e-6)
    both = floss([view, view], experts, image)
    assert torch.allclose(both, found, atol=1e-6)


def test_one_class_is_certain(clip, embeddings, chelsea):
    photo = read_photo(chelsea).resize((96, 64))
    image = to_tensor(photo, (64, 96))
    experts = expert_embeddings(embeddings[:, :1], [[7, 3]], [0])
    assert experts.shape == (2, 1, 48)
    found = floss([look(photo, image, clip, None, (64, 32))], experts, image)
    assert torch.allclose(found, torch.ones(1, 64, 96))


def test_equal_names_tie_and_the_first_wins(clip, embeddings, chelsea):
    photo = read_photo(chelsea).resize((96, 64))
    image = to_tensor(photo, (64, 96))
    twice = expert_embeddings(embeddings[:, [0, 0, 4]], [[1, 2], [1, 2], [3]], [0, 1, 2])
    found = floss([look(photo, image, clip, None, (64, 32))], twice, image)
    assert torch.allclose(found[0], found[1], atol=1e-6)
    assert not found.argmax(0).eq(1).any()
