"""Points and masks become embeddings."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

pytest.importorskip("PIL")

from ovs_methods.errors import UserError
from ovs_methods.vocabulary import (
    ClassExamples,
    Exemplar,
    Point,
    build_vocabulary,
    exemplar_examples,
    parse_exemplar,
    parse_point,
    point_examples,
    prototypes,
)
from ovs_methods.vocabulary.exemplar import parse_class_name, read_mask
from ovs_methods.vocabulary.points import check_inside
from PIL import Image

VOC_PALETTE = [0, 0, 0, 128, 0, 0, 0, 128, 0] + [100] * 759


def one_hot_grid(rows):
    """[h, w, 8] features: the unit vectors that the numbers name."""
    return F.one_hot(torch.tensor(rows), 8).float()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cat:1,2", Point("cat", 1, 2)),
        (" a cat : 10.5,0 ", Point("a cat", 10.5, 0)),
        ("c:at:3,4", Point("c:at", 3, 4)),
    ],
)
def test_point_syntax(text, expected):
    assert parse_point(text) == expected


@pytest.mark.parametrize("text", ["", "cat", "cat:", "cat:1", "cat:1,2,3", ":1,2", "cat:x,y", "cat:nan,1", "1,2"])
def test_point_syntax_errors_show_what_came(text):
    with pytest.raises(UserError, match="NAME:X,Y") as caught:
        parse_point(text)
    assert f"'{text}'" in str(caught.value)


@pytest.mark.parametrize("place", [(-1, 0), (0, -1), (5, 0), (0, 4), (4.5, 4)])
def test_points_outside_are_refused(place):
    check_inside([Point("a", 4, 3), Point("b", 4.9, 3.9)], height=4, width=5, image="p.png")
    with pytest.raises(UserError, match="X from 0 to 4 and Y from 0 to 3"):
        check_inside([Point("a", *place)], height=4, width=5, image="p.png")


def test_points_take_the_feature_under_them():
    features = one_hot_grid([[0, 1, 2], [3, 4, 5]])
    points = [Point("a", 5, 5), Point("b", 25, 15), Point("a", 15, 5)]
    examples = point_examples(features, points, height=20, width=30, mean=False)
    assert [example.name for example in examples] == ["a", "b"]
    # Pixel 5 of a ten-pixel patch has its centre half a pixel right of the patch's.
    assert examples[0].embeddings.argmax(1).tolist() == [0, 1]
    assert examples[1].embeddings.argmax(1).tolist() == [5]
    assert torch.allclose(examples[0].embeddings.norm(dim=1), torch.ones(2))
    averaged = point_examples(features, points, height=20, width=30, mean=True)[0].embeddings
    assert averaged.shape == (1, 8)
    assert torch.allclose(averaged, F.normalize(examples[0].embeddings.sum(0, keepdim=True), dim=1), atol=1e-6)


def test_a_point_between_two_patches_takes_both():
    features = one_hot_grid([[0, 1]])
    (example,) = point_examples(features, [Point("a", 9.5, 5)], height=10, width=20, mean=False)
    assert torch.allclose(example.embeddings[0, :2], torch.full((2,), 0.5**0.5), atol=1e-6)


def test_one_prototype_is_the_weighted_mean():
    features, weights = torch.eye(3), torch.tensor([1.0, 2.0, 2.0])
    assert torch.allclose(prototypes(features, weights, 1), torch.tensor([[1.0, 2.0, 2.0]]) / 3)


def test_prototypes_find_the_clusters():
    generator = torch.Generator().manual_seed(3)
    centres = torch.eye(16)[:4]
    features = F.normalize(centres.repeat_interleave(20, 0) + 0.05 * torch.randn(80, 16, generator=generator), dim=1)
    found = prototypes(features, torch.ones(80), 4)
    assert sorted((found @ centres.T).argmax(1).tolist()) == [0, 1, 2, 3]
    assert (found @ centres.T).amax(1).min() > 0.99
    assert torch.equal(found, prototypes(features, torch.ones(80), 4))
    assert torch.equal(prototypes(features[:3], torch.ones(3), 5), features[:3])


@pytest.mark.parametrize("kind", ["voc palette", "gray", "binary"])
def test_masks_of_every_kind(tmp_path, kind):
    ids = np.array([[0, 1, 1], [0, 1, 255]], np.uint8)
    picture = Image.fromarray(ids if kind != "binary" else np.where(ids == 1, np.uint8(255), np.uint8(0)))
    if kind == "voc palette":
        picture.putpalette(VOC_PALETTE)
    if kind == "binary":
        picture, ids = picture.convert("1"), np.where(ids == 1, 1, 0)
    picture.save(tmp_path / "mask.png")
    with Image.open(tmp_path / "mask.png") as file:
        assert file.mode == {"voc palette": "P", "gray": "L", "binary": "1"}[kind]
    assert np.array_equal(read_mask(tmp_path / "mask.png", 2, 3, "photo"), ids)


def test_masks_that_cannot_be_used(tmp_path):
    path = tmp_path / "mask.png"
    Image.new("RGB", (3, 2)).save(path)
    with pytest.raises(UserError, match=r"class ids .*got a colour image \(RGB\)"):
        read_mask(path, 2, 3, "photo")
    Image.new("L", (2, 3)).save(path)
    with pytest.raises(UserError, match=r"3 x 2 pixels, the size of photo, got 2 x 3"):
        read_mask(path, 2, 3, "photo")
    Image.fromarray(np.full((2, 3), 300, np.uint16)).save(path)
    with pytest.raises(UserError, match="values up to 300"):
        read_mask(path, 2, 3, "photo")


def test_masks_name_their_classes():
    features = one_hot_grid([[0, 0], [1, 2]])
    ids = np.array([[0, 0, 0, 0], [0, 0, 0, 0], [7, 7, 255, 255], [7, 7, 255, 255]])
    exemplar = Exemplar("photo.jpg", "mask.png")
    found = exemplar_examples(features, ids, exemplar, {}, 1)
    assert [(example.name, example.id) for example in found] == [("background", 0), ("class 7", 7)]
    assert torch.equal(found[0].embeddings, torch.eye(8)[[0]])
    assert torch.equal(found[1].embeddings, torch.eye(8)[[1]])  # the ignored patch counts nowhere
    named = exemplar_examples(features, ids, exemplar, {7: "quokka"}, 1)
    assert [example.name for example in named] == ["background", "quokka"]
    with pytest.raises(UserError, match=r"named by --class-name \(3=cat\).*got id 7 in 4 pixels; add --class-name 7="):
        exemplar_examples(features, ids, exemplar, {3: "cat"}, 1)
    with pytest.raises(UserError, match="at least one class, got only 255"):
        exemplar_examples(features, np.full((4, 4), 255), exemplar, {}, 1)


def test_a_class_smaller_than_a_patch_still_counts():
    ids = np.zeros((40, 40), np.int64)
    ids[35, 35] = 1
    found = exemplar_examples(one_hot_grid([[0, 1], [2, 3]]), ids, Exemplar("a", "b"), {}, 1)
    assert found[1].embeddings.argmax().item() == 3


def test_vocabularies_merge_by_name_and_number_the_classes():
    a, b, c = torch.eye(3)
    vocabulary = build_vocabulary(
        [
            ClassExamples("sky", a[None], 1),
            ClassExamples("cat", torch.stack([b, c])),
            ClassExamples("sky", c[None]),
            ClassExamples("dog", a[None]),
        ]
    )
    assert vocabulary.names == ["cat", "sky", "dog"]
    assert vocabulary.ids == [0, 1, 2]
    assert vocabulary.groups == [0, 0, 1, 1, 2]
    assert torch.equal(vocabulary.embeddings, torch.stack([b, c, a, c, a]))
    with pytest.raises(UserError, match="at least two classes to tell apart, got only 'cat'"):
        build_vocabulary([ClassExamples("cat", a[None])])
    with pytest.raises(UserError, match="at most 255 classes, got 300"):
        build_vocabulary([ClassExamples(str(i), a[None]) for i in range(300)])


def test_exemplar_paths_may_hold_colons(tmp_path):
    image, mask = tmp_path / "a:b.jpg", tmp_path / "m.png"
    image.write_bytes(b"")
    mask.write_bytes(b"")
    assert parse_exemplar(f"{image}:{mask}") == Exemplar(image, mask)
    with pytest.raises(UserError, match="nothing at"):
        parse_exemplar(f"{mask}:{tmp_path / 'none.png'}")
    with pytest.raises(UserError, match="IMAGE:MASK"):
        parse_exemplar(str(mask))


def test_class_names():
    assert parse_class_name("15=potted plant") == (15, "potted plant")
    for text in ("15", "=a", "x=a", "255=a", "-1=a", "3="):
        with pytest.raises(UserError, match="ID=NAME"):
            parse_class_name(text)
