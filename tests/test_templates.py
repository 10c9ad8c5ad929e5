"""`template_entropy`: values by hand and by loops in NumPy, edge cases, invariants."""

import math

import numpy as np
import pytest
import torch
from templates_inputs import UNIT, features_for, places_of, tally, texts_for, touched

import ovs_kernels
from ovs_kernels import template_entropy
from ovs_kernels.reference import templates as reference
from ovs_kernels.testing import assert_close_rel

# Mean entropies and probabilities in float32 against float64, absolute; worst seen on any device: see the docs page.
MEAN = 2e-5


def compare(scores, places, num_classes):
    """Counts are equal but for places within rounding of a tie, which the inputs have not got; means agree."""
    counts, entropies, probabilities = tally(places, num_classes)
    assert scores.counts.tolist() == counts.tolist()
    assert np.abs(scores.mean_entropy.cpu().numpy() - entropies).max() < MEAN
    assert np.abs(scores.mean_probability.cpu().numpy() - probabilities).max() < MEAN
    assert scores.total == len(places[0])


def test_by_hand(device, to_device):
    # Cosines 1 and 0 at temperature 1: p = (e, 1) / (e + 1) for both patches, one of each class.
    features = to_device(torch.tensor([[3.0, 0.0], [0.0, 0.5]]))
    scores = template_entropy(features, to_device(torch.eye(2)[None]), temperature=1.0)
    p = math.e / (math.e + 1)
    expected = -p * math.log(p) - (1 - p) * math.log(1 - p)
    assert scores.counts.tolist() == [[1, 1]]
    assert scores.mean_entropy.tolist()[0] == pytest.approx([expected] * 2, abs=1e-6)
    assert scores.mean_probability.tolist()[0] == pytest.approx([p] * 2, abs=1e-6)
    assert scores.percentage.tolist() == [[50.0, 50.0]]


@pytest.mark.parametrize("num_classes", [1, 2, 7, 16, 19, 33])
@pytest.mark.parametrize("num_patches", [1, 15, 16, 37, 70])
def test_patches_match_loops(device, to_device, num_patches, num_classes):
    features = features_for((1, num_patches)).reshape(num_patches, -1)
    texts = texts_for(3, num_classes)
    scores = template_entropy(to_device(features), to_device(texts), temperature=0.1)
    compare(scores, places_of(features, texts, 0.1), num_classes)


def window_grid(size, window, stride):
    return ovs_kernels.window_boxes(size, window, stride)


# name -> (size, out_size, window, stride, patches (h, w), classes)
PIXEL_CASES = {
    "one window": ((16, 24), None, (16, 24), (16, 24), (4, 6), 5),
    "one window, resized": ((16, 24), (23, 31), (16, 24), (16, 24), (4, 6), 5),
    "one window, reduced": ((33, 40), (9, 7), (33, 40), (33, 40), (4, 5), 3),
    "overlap": ((20, 32), None, (12, 16), (4, 8), (3, 4), 6),
    "shifted last windows, resized": ((21, 37), (30, 19), (12, 16), (6, 8), (3, 4), 7),
    "more patches than pixels": ((5, 6), (9, 11), (5, 6), (5, 6), (7, 9), 4),
    "one pixel": ((1, 1), None, (1, 1), (1, 1), (2, 3), 3),
    "one patch": ((7, 18), None, (7, 18), (7, 18), (1, 1), 3),
    "one row": ((1, 70), None, (1, 30), (1, 20), (1, 4), 19),
    "one column": ((50, 1), (61, 1), (20, 1), (10, 1), (4, 1), 17),
    "one class": ((9, 9), None, (9, 9), (9, 9), (2, 2), 1),
}


def pixel_case(name):
    size, out_size, window, stride, grid, num_classes = PIXEL_CASES[name]
    boxes = window_grid(size, window, stride)
    return features_for((len(boxes), *grid)), texts_for(2, num_classes), boxes, size, out_size


@pytest.mark.parametrize("name", PIXEL_CASES)
def test_pixels_match_loops(device, to_device, name):
    features, texts, boxes, size, out_size = pixel_case(name)
    scores = template_entropy(
        to_device(features),
        to_device(texts),
        temperature=0.1,
        mode="pixel_exact",
        boxes=boxes,
        size=size,
        out_size=out_size,
    )
    places = places_of(features, texts, 0.1, boxes.tolist(), size, out_size)
    compare(scores, places, texts.shape[1])


def test_boxes_in_any_order(device, to_device):
    features, texts, boxes, size, out_size = pixel_case("shifted last windows, resized")
    order = torch.randperm(len(boxes))
    arguments = {"temperature": 0.1, "mode": "pixel_exact", "size": size, "out_size": out_size}
    shuffled = template_entropy(to_device(features[order]), to_device(texts), boxes=boxes[order], **arguments)
    compare(shuffled, places_of(features, texts, 0.1, boxes.tolist(), size, out_size), texts.shape[1])


def test_one_window_needs_no_boxes(device, to_device):
    features, texts, boxes, size, out_size = pixel_case("one window, resized")
    arguments = {"temperature": 0.1, "mode": "pixel_exact", "size": size, "out_size": out_size}
    with_boxes = template_entropy(to_device(features), to_device(texts), boxes=boxes, **arguments)
    without = template_entropy(to_device(features), to_device(texts), **arguments)
    assert torch.equal(with_boxes.counts, without.counts)
    assert torch.equal(with_boxes.fraction, without.fraction)


@pytest.mark.parametrize("mode", ["patch", "pixel_exact"])
def test_temperature_of_the_paper(device, to_device, mode):
    # At 0.01 most probabilities are far below 1e-10 and the entropies small.
    features, texts, boxes, size, out_size = pixel_case("overlap")
    arguments = {"boxes": boxes, "size": size, "out_size": out_size} if mode == "pixel_exact" else {}
    rows = features if mode == "pixel_exact" else features.flatten(0, 2)
    scores = template_entropy(to_device(rows), to_device(texts), mode=mode, **arguments)
    places = places_of(rows, texts, 0.01, *((boxes.tolist(), size, out_size) if arguments else ()))
    counts, entropies, _ = tally(places, texts.shape[1])
    assert scores.counts.tolist() == counts.tolist()
    assert np.abs(scores.mean_entropy.cpu().numpy() - entropies).max() < 2e-4


def test_mano(device, to_device):
    features, texts = features_for((1, 40)).reshape(40, -1), texts_for(4, 9)
    for temperature in (1.0, 0.01):  # the Taylor polynomial, the softmax
        scores = template_entropy(to_device(features), to_device(texts), temperature=temperature, mano=True)
        got = scores.mano.cpu().numpy()
        unit_texts = texts.double().numpy() / np.linalg.norm(texts.double().numpy(), axis=-1, keepdims=True)
        unit_features = features.double().numpy() / np.linalg.norm(features.double().numpy(), axis=-1, keepdims=True)
        for m in range(4):
            q = unit_features @ unit_texts[m].T / temperature
            p = np.exp(q - q.max(1, keepdims=True))
            p /= p.sum(1, keepdims=True)
            labels = q.argmax(1)
            for k in range(9):
                mine = labels == k
                if not mine.any():
                    assert got[m, k] == 0
                    continue
                divergence = -np.log(p[mine]).mean()
                v = 1 + q[mine] + q[mine] ** 2 / 2 if divergence <= 5 else np.exp(q[mine])
                s = v / v.sum(1, keepdims=True)
                assert got[m, k] == pytest.approx((s**4).mean() ** 0.25, rel=1e-3)


# Edges ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [0.0, math.nan, math.inf])
@pytest.mark.parametrize("mode", ["patch", "pixel_exact"])
@pytest.mark.parametrize("assume", [False, True])
def test_a_patch_without_features_is_left_out(device, to_device, bad, mode, assume):
    features, texts = features_for((1, 4, 5)), texts_for(2, 3)
    if assume:
        features, texts = (rows / rows.norm(dim=-1, keepdim=True) for rows in (features, texts))
    features[0, 1, 2] = bad
    rows = features if mode == "pixel_exact" else features.flatten(0, 2)
    arguments = {"size": (16, 20)} if mode == "pixel_exact" else {}
    scores = template_entropy(
        to_device(rows), to_device(texts), temperature=0.1, mode=mode, assume_normalized=assume, **arguments
    )
    bad_patches = np.zeros((4, 5), bool)
    bad_patches[1, 2] = True
    left_out = (touched(bad_patches, (16, 20)) if arguments else bad_patches).ravel()
    features[0, 1, 2] = 1.0
    places = places_of(rows, texts, 0.1, *((None, (16, 20)) if arguments else ()))
    known = [probabilities[~left_out] for probabilities in places]
    assert 0 < len(known[0]) < len(places[0])
    counts, entropies, _ = tally(known, 3)
    assert scores.counts.tolist() == counts.tolist()
    assert np.abs(scores.mean_entropy.cpu().numpy() - entropies).max() < MEAN
    assert scores.total == len(places[0])


@pytest.mark.parametrize("bad", [0.0, math.nan])
def test_a_template_without_an_embedding_counts_nothing(device, to_device, bad):
    features, texts = features_for((1, 20)).reshape(20, -1), texts_for(3, 4)
    texts[1, 2] = bad
    counts = template_entropy(to_device(features), to_device(texts), temperature=0.1).counts
    assert counts.sum(1).tolist() == [20, 0, 20]


def test_equal_classes_go_to_the_lowest(device, to_device):
    # Small integers, so that a matrix product cannot round equal columns differently.
    features, texts = ((2 * rows).round() for rows in (features_for((1, 5, 6)), texts_for(2, 4)))
    features[features.abs().sum(-1) == 0] = 1.0
    texts[:, 3] = texts[:, 1]
    arguments = {"temperature": 16.0, "assume_normalized": True}
    patches = template_entropy(to_device(features.flatten(0, 2)), to_device(texts), **arguments)
    pixels = template_entropy(to_device(features), to_device(texts), mode="pixel_exact", size=(20, 24), **arguments)
    for scores in (patches, pixels):
        assert scores.counts[:, 3].tolist() == [0, 0]
        assert (scores.counts[:, 1] > 0).all()


def test_one_class_is_certain(device, to_device):
    scores = template_entropy(to_device(features_for((1, 9)).reshape(9, -1)), to_device(texts_for(2, 1)))
    assert scores.counts.tolist() == [[9], [9]]
    assert scores.mean_entropy.abs().max() < 1e-6
    assert scores.mean_probability.cpu().numpy() == pytest.approx(1.0, abs=1e-6)


def test_nothing_to_count(device, to_device):
    scores = template_entropy(to_device(torch.zeros(0, 12)), to_device(texts_for(2, 3)))
    assert scores.counts.tolist() == [[0, 0, 0]] * 2
    assert scores.total == 0
    assert scores.mean_entropy.tolist() == scores.percentage.tolist() == [[0.0] * 3] * 2
    assert template_entropy(to_device(torch.ones(4, 12)), to_device(torch.ones(0, 3, 12))).counts.shape == (0, 3)


def test_scale_does_not_matter_unless_assumed(device, to_device):
    features, texts = features_for((1, 20)).reshape(20, -1), texts_for(2, 5)
    scaled = template_entropy(to_device(features * 7), to_device(texts / 3), temperature=0.1)
    compare(scaled, places_of(features, texts, 0.1), 5)
    unit_length = [rows / rows.norm(dim=-1, keepdim=True) for rows in (features, texts)]
    assumed = template_entropy(*map(to_device, unit_length), temperature=0.1, assume_normalized=True)
    compare(assumed, places_of(features, texts, 0.1), 5)
    doubled = template_entropy(*(to_device(2 * rows) for rows in unit_length), temperature=0.4, assume_normalized=True)
    compare(doubled, places_of(features, texts, 0.1), 5)


def test_order_of_classes_permutes_the_result(device, to_device):
    features, texts = features_for((1, 25)).reshape(25, -1), texts_for(2, 6)
    order = torch.randperm(6)
    straight = template_entropy(to_device(features), to_device(texts), temperature=0.1)
    permuted = template_entropy(to_device(features), to_device(texts[:, order]), temperature=0.1)
    assert torch.equal(permuted.counts.cpu(), straight.counts.cpu()[:, order])


@pytest.mark.parametrize("mode", ["patch", "pixel_exact"])
def test_numbers_of_threads_and_repeats_give_the_same_bits(num_threads, mode):
    features, texts, boxes, size, out_size = pixel_case("shifted last windows, resized")
    arguments = {"boxes": boxes, "size": size, "out_size": out_size} if mode == "pixel_exact" else {}
    rows = features if mode == "pixel_exact" else features.flatten(0, 2)
    found = []
    for threads in (1, 2, 3, 2):
        num_threads(threads)
        found.append(template_entropy(rows, texts, mode=mode, **arguments))
    for other in found[1:]:
        assert torch.equal(other.counts, found[0].counts)
        assert torch.equal(other.whole, found[0].whole)
        assert torch.equal(other.fraction, found[0].fraction)


@pytest.mark.parametrize("mode", ["patch", "pixel_exact"])
def test_every_instruction_set_level(isa, mode):
    features, texts, boxes, size, out_size = pixel_case("overlap")
    arguments = {"boxes": boxes, "size": size, "out_size": out_size} if mode == "pixel_exact" else {}
    rows = features if mode == "pixel_exact" else features.flatten(0, 2)
    scores = template_entropy(rows, texts, temperature=0.1, mode=mode, **arguments)
    compare(scores, places_of(rows, texts, 0.1, *((boxes.tolist(), size, out_size) if arguments else ())), 6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_dtypes(device, to_device, dtype):
    features, texts = features_for((1, 30)).reshape(30, -1).to(dtype), texts_for(2, 5).to(dtype)
    scores = template_entropy(to_device(features), to_device(texts), temperature=0.1)
    places = places_of(features.double(), texts.double(), 0.1)
    compare(scores, places, 5)
    if dtype == torch.float64:
        _, entropies, _ = tally(places, 5)
        assert np.abs(scores.mean_entropy.cpu().numpy() - entropies).max() < 2 * UNIT


def test_any_strides(device, to_device):
    features, texts = features_for((1, 30)).reshape(30, -1), texts_for(2, 5)
    strided = to_device(torch.stack((features, features), -1))[..., 0]
    turned = to_device(texts.permute(2, 1, 0).contiguous()).permute(2, 1, 0)
    compare(template_entropy(strided, turned, temperature=0.1), places_of(features, texts, 0.1), 5)


def test_array_kinds(xp):
    to_kind, from_kind = xp
    features, texts = features_for((1, 20)).reshape(20, -1), texts_for(2, 5)
    scores = template_entropy(to_kind(features), to_kind(texts), temperature=0.1)
    counts, entropies, _ = tally(places_of(features, texts, 0.1), 5)
    assert from_kind(scores.counts).tolist() == counts.tolist()
    assert np.abs(from_kind(scores.mean_entropy).numpy() - entropies).max() < MEAN
    assert (scores + scores).total == 40


def test_reference_matches_loops():
    features, texts, boxes, size, out_size = pixel_case("shifted last windows, resized")
    counts, sums = reference.template_entropy(
        features.double(), texts.double(), 0.1, False, "pixel_exact", boxes, size, out_size
    )
    places = places_of(features, texts, 0.1, boxes.tolist(), size, out_size)
    expected, entropies, _ = tally(places, 7)
    assert counts.tolist() == expected.tolist()
    assert_close_rel(sums[0].double() * UNIT, entropies * expected, 1e-9)
