"""`template_entropy` in NACLIP's order: interpolated logits, and queries that stand for classes."""

import numpy as np
import pytest
import torch
from templates_inputs import features_for, places_of, tally, texts_for, touched
from torch.nn.functional import interpolate

import ovs_kernels
from ovs_kernels import template_entropy
from ovs_kernels.reference import templates as reference

MEAN = 2e-5  # mean entropies and probabilities in float32 against float64, absolute, at temperature 0.1


def released(features, texts, temperature, boxes, size, out_size, groups):
    """The released procedure with its full tensors, in float64: sums of entropies, and counts, by template and class.

    features [n, h, w, d] and texts [M, Q, d] of unit length.
    """
    cosines = torch.einsum("nhwd,mqd->nmqhw", features, texts)
    total, count = torch.zeros(*texts.shape[:2], *size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)
    for window, (y0, x0, y1, x1) in zip(cosines, boxes, strict=True):
        total[:, :, y0:y1, x0:x1] += interpolate(window, size=(y1 - y0, x1 - x0), mode="bilinear")
        count[y0:y1, x0:x1] += 1
    maps = interpolate(total / count, size=out_size, mode="bilinear")
    probabilities = torch.softmax(maps / temperature, 1)
    num_classes = max(groups) + 1
    by_class = torch.zeros(len(texts), num_classes, *out_size, dtype=torch.float64)
    for query, k in enumerate(groups):
        by_class[:, k] = torch.maximum(by_class[:, k], probabilities[:, query])
    labels = by_class.argmax(1)
    entropies = -(by_class * torch.log(by_class + 1e-10)).sum(1)
    counts, sums = torch.zeros(2, len(texts), num_classes, dtype=torch.float64)
    for m in range(len(texts)):
        for k in range(num_classes):
            mine = entropies[m][labels[m] == k]
            counts[m, k] = mine.numel()
            sums[m, k] = mine.sum()
    return sums.numpy(), counts.long().numpy()


def compare(scores, places):
    """Counts are equal, as the inputs have no near ties; means agree."""
    num_classes = places[0].shape[-1]
    counts, entropies, probabilities = tally(places, num_classes)
    assert scores.counts.shape == (len(places), num_classes)
    assert scores.counts.tolist() == counts.tolist()
    assert np.abs(scores.mean_entropy.cpu().numpy() - entropies).max() < MEAN
    assert np.abs(scores.mean_probability.cpu().numpy() - probabilities).max() < MEAN
    assert scores.total == len(places[0])


# name -> (size, out_size, window, stride, patches (h, w), class of each query)
CASES = {
    "one window": ((16, 24), None, (16, 24), (16, 24), (4, 6), None),
    "one window, resized": ((16, 24), (23, 31), (16, 24), (16, 24), (4, 6), [0, 0, 1, 2, 2, 2]),
    "one window, reduced": ((33, 40), (9, 7), (33, 40), (33, 40), (4, 5), [0, 1, 1]),
    "overlap": ((20, 32), None, (12, 16), (4, 8), (3, 4), [0, 1, 1, 1, 2, 3]),
    "shifted last windows, resized": ((21, 37), (30, 19), (12, 16), (6, 8), (3, 4), [3, 0, 1, 0, 2, 3, 3]),
    "queries in any order": ((13, 18), (14, 21), (13, 18), (13, 18), (3, 4), [2, 1, 0, 2, 1, 0, 0, 3]),
    "more patches than pixels": ((5, 6), (9, 11), (5, 6), (5, 6), (7, 9), [0, 1, 0, 1]),
    "one pixel": ((1, 1), None, (1, 1), (1, 1), (2, 3), [1, 0, 1]),
    "one patch": ((7, 18), None, (7, 18), (7, 18), (1, 1), None),
    "one row": ((1, 70), None, (1, 30), (1, 20), (1, 4), [k // 3 for k in range(19)]),
    "one column": ((50, 1), (61, 1), (20, 1), (10, 1), (4, 1), [k % 5 for k in range(17)]),
    "one class": ((9, 9), None, (9, 9), (9, 9), (2, 2), [0, 0, 0]),
    "one query": ((9, 9), (10, 8), (9, 9), (9, 9), (2, 2), [0]),
}


def case(name):
    size, out_size, window, stride, grid, groups = CASES[name]
    boxes = ovs_kernels.window_boxes(size, window, stride)
    features = features_for((len(boxes), *grid))
    return features, texts_for(2, 5 if groups is None else len(groups)), boxes, size, out_size, groups


@pytest.mark.parametrize("order", ["logits", "probabilities"])
@pytest.mark.parametrize("name", CASES)
def test_pixels_match_loops(device, to_device, name, order):
    features, texts, boxes, size, out_size, groups = case(name)
    scores = template_entropy(
        to_device(features),
        to_device(texts),
        temperature=0.1,
        mode="pixel_exact",
        boxes=boxes,
        size=size,
        out_size=out_size,
        interpolate=order,
        groups=groups,
    )
    compare(scores, places_of(features, texts, 0.1, boxes.tolist(), size, out_size, order, groups))


@pytest.mark.parametrize("temperature", [0.1, 0.01])
def test_the_released_procedure(device, to_device, temperature):
    size, out_size, groups = (21, 37), (30, 19), [0, 1, 1, 2, 3, 3, 3, 4]
    boxes = ovs_kernels.window_boxes(size, (12, 16), (6, 8))
    features, texts = features_for((len(boxes), 3, 4)), texts_for(3, len(groups))
    scores = template_entropy(
        to_device(features),
        to_device(texts),
        temperature=temperature,
        mode="pixel_exact",
        boxes=boxes,
        size=size,
        out_size=out_size,
        interpolate="logits",
        groups=torch.tensor(groups),
    )
    unit = [rows.double() / rows.double().norm(dim=-1, keepdim=True) for rows in (features, texts)]
    sums, counts = released(*unit, temperature, boxes.tolist(), size, out_size, groups)
    assert scores.counts.tolist() == counts.tolist()
    used = np.maximum(counts, 1)
    assert np.abs(scores.mean_entropy.cpu().numpy() - sums / used).max() < (MEAN if temperature == 0.1 else 2e-4)


@pytest.mark.parametrize("groups", [[0, 0, 1, 2, 2, 2, 3], [1, 0, 1, 0, 2, 0, 1], [0] * 7])
@pytest.mark.parametrize("num_patches", [1, 16, 37])
def test_groups_of_patches(device, to_device, num_patches, groups):
    features, texts = features_for((1, num_patches)).reshape(num_patches, -1), texts_for(3, 7)
    scores = template_entropy(to_device(features), to_device(texts), temperature=0.1, groups=groups)
    compare(scores, places_of(features, texts, 0.1, groups=groups))


def test_by_hand(device, to_device):
    # One patch, queries of logits 2, 1, 0 for classes 1, 0, 1: the classes' probabilities are 1 / s and e^2 / s.
    features, texts = torch.eye(3)[:1], torch.tensor([[[2.0, 0, 0], [1.0, 0, 0], [0.0, 1, 0]]])
    arguments = {"temperature": 1.0, "assume_normalized": True, "groups": [1, 0, 1]}
    scores = template_entropy(to_device(features), to_device(texts), **arguments)
    s = np.exp(2) + np.exp(1) + 1
    shares = np.array([np.exp(1), np.exp(2)]) / s
    assert scores.counts.tolist() == [[0, 1]]
    assert scores.mean_entropy.tolist()[0] == pytest.approx([0, -(shares * np.log(shares)).sum()], abs=1e-6)
    assert scores.mean_probability.tolist()[0] == pytest.approx([0, shares[1]], abs=1e-6)


def test_the_two_orders_differ(device, to_device):
    # Halfway between logits (8, 0) and (0, 8) mean probabilities and the softmax of mean logits are both even, but a
    # quarter of the way they are not the same.
    features = to_device(torch.eye(2)[None, None])
    texts = to_device(8 * torch.eye(2)[None])
    arguments = {"temperature": 1.0, "assume_normalized": True, "mode": "pixel_exact", "size": (1, 4)}
    by_logits = template_entropy(features, texts, interpolate="logits", **arguments)
    by_shares = template_entropy(features, texts, **arguments)

    def entropy(p):
        return -p * np.log(p) - (1 - p) * np.log1p(-p)

    sure = 1 / (1 + np.exp(-8.0))
    inner_logits, inner_shares = 1 / (1 + np.exp(-4.0)), 0.75 * sure + 0.25 * (1 - sure)
    assert by_logits.counts.tolist() == by_shares.counts.tolist() == [[2, 2]]
    assert by_logits.mean_entropy[0, 0].item() == pytest.approx((entropy(sure) + entropy(inner_logits)) / 2, abs=1e-5)
    assert by_shares.mean_entropy[0, 0].item() == pytest.approx((entropy(sure) + entropy(inner_shares)) / 2, abs=1e-5)


def test_single_queries_are_classes(device, to_device):
    features, texts, boxes, size, out_size, _ = case("shifted last windows, resized")
    arguments = {"temperature": 0.1, "mode": "pixel_exact", "boxes": boxes, "size": size, "out_size": out_size}
    for order in ("logits", "probabilities"):
        plain = template_entropy(to_device(features), to_device(texts), interpolate=order, **arguments)
        grouped = template_entropy(
            to_device(features), to_device(texts), interpolate=order, groups=range_of(7), **arguments
        )
        assert torch.equal(plain.counts, grouped.counts)
        assert (plain.mean_entropy - grouped.mean_entropy).abs().max() < MEAN


def range_of(count):
    return tuple(range(count))


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf])
@pytest.mark.parametrize("order", ["logits", "probabilities"])
def test_a_patch_without_features_is_left_out(device, to_device, bad, order):
    features, texts, groups = features_for((1, 4, 5)), texts_for(2, 4), [0, 1, 1, 2]
    features[0, 1, 2] = bad
    arguments = {"temperature": 0.1, "mode": "pixel_exact", "size": (16, 20), "groups": groups, "interpolate": order}
    scores = template_entropy(to_device(features), to_device(texts), **arguments)
    bad_patches = np.zeros((4, 5), bool)
    bad_patches[1, 2] = True
    known = ~touched(bad_patches, (16, 20)).ravel()
    features[0, 1, 2] = 1.0
    places = places_of(features, texts, 0.1, None, (16, 20), None, order, groups)
    counts, entropies, _ = tally([probabilities[known] for probabilities in places], 3)
    assert 0 < known.sum() < len(known)
    assert scores.counts.tolist() == counts.tolist()
    assert np.abs(scores.mean_entropy.cpu().numpy() - entropies).max() < MEAN
    assert scores.total == len(known)


@pytest.mark.parametrize("bad", [0.0, np.nan])
def test_a_template_without_an_embedding_counts_nothing(device, to_device, bad):
    features, texts = features_for((1, 4, 5)), texts_for(3, 4)
    texts[1, 2] = bad
    arguments = {"temperature": 0.1, "mode": "pixel_exact", "size": (8, 10), "interpolate": "logits"}
    counts = template_entropy(to_device(features), to_device(texts), **arguments).counts
    assert counts.sum(1).tolist() == [80, 0, 80]
    grouped = template_entropy(to_device(features), to_device(texts), groups=[0, 0, 1, 1], **arguments).counts
    assert grouped.sum(1).tolist() == [80, 0, 80]


def test_equal_queries_go_to_the_lowest_class(device, to_device):
    # Small integers, so that a matrix product cannot round equal columns differently. The first query's class is 2, so
    # that the lowest class of equals is not the class of the lowest query.
    features, texts = ((2 * rows).round() for rows in (features_for((1, 5, 6)), texts_for(2, 4)))
    features[features.abs().sum(-1) == 0] = 1.0
    texts[:, 3] = texts[:, 0]
    arguments = {"temperature": 16.0, "assume_normalized": True, "groups": [2, 1, 1, 0]}
    patches = template_entropy(to_device(features.flatten(0, 2)), to_device(texts), **arguments)
    pixels = [
        template_entropy(
            to_device(features), to_device(texts), mode="pixel_exact", size=(20, 24), interpolate=order, **arguments
        )
        for order in ("logits", "probabilities")
    ]
    for scores in (patches, *pixels):
        assert scores.counts[:, 2].tolist() == [0, 0]
        assert (scores.counts[:, 0] > 0).all()


def test_large_logits_stay_finite(device, to_device):
    # Logits of +-800 and pixels between patches of opposite classes: no probability may overflow or vanish.
    features = to_device(torch.eye(2)[None, None])
    texts = to_device(800 * torch.tensor([[[1.0, -1.0], [-1.0, 1.0], [0.0, 0.0]]]))
    scores = template_entropy(
        features, texts, temperature=1.0, assume_normalized=True, mode="pixel_exact", size=(1, 5), interpolate="logits"
    )
    # Weights 0, 0.1, 1/2, 0.9 and 1 of the right patch: (800, -800, 0), (640, -640, 0), all equal, and mirrored.
    assert scores.counts.tolist() == [[3, 2, 0]]
    assert scores.mean_entropy.tolist()[0] == pytest.approx([np.log(3) / 3, 0.0, 0.0], abs=1e-6)


def test_numbers_of_threads_and_repeats_give_the_same_bits(num_threads):
    features, texts, boxes, size, out_size, groups = case("shifted last windows, resized")
    found = []
    for threads in (1, 2, 3, 2):
        num_threads(threads)
        arguments = {"mode": "pixel_exact", "boxes": boxes, "size": size, "out_size": out_size}
        found.append(template_entropy(features, texts, interpolate="logits", groups=groups, **arguments))
    for other in found[1:]:
        assert torch.equal(other.counts, found[0].counts)
        assert torch.equal(other.whole, found[0].whole)
        assert torch.equal(other.fraction, found[0].fraction)


def test_parts_add_up_to_the_same_bits():
    texts, groups = texts_for(2, 6), [0, 0, 1, 2, 2, 3]
    arguments = {"mode": "pixel_exact", "size": (12, 14), "interpolate": "logits", "groups": groups}
    a, b, c = (template_entropy(features_for((1, 3, 4), seed=seed), texts, **arguments) for seed in range(3))
    one, two = (a + b) + c, c + (b + a)
    assert torch.equal(one.whole, two.whole)
    assert torch.equal(one.fraction, two.fraction)
    assert one.total == 3 * 12 * 14


@pytest.mark.parametrize("order", ["logits", "probabilities"])
def test_every_instruction_set_level(isa, order):
    features, texts, boxes, size, out_size, groups = case("queries in any order")
    arguments = {"mode": "pixel_exact", "boxes": boxes, "size": size, "out_size": out_size}
    scores = template_entropy(features, texts, temperature=0.1, interpolate=order, groups=groups, **arguments)
    compare(scores, places_of(features, texts, 0.1, boxes.tolist(), size, out_size, order, groups))
    patches = template_entropy(features.flatten(0, 2), texts, temperature=0.1, groups=groups)
    compare(patches, places_of(features.flatten(0, 2), texts, 0.1, groups=groups))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_dtypes(device, to_device, dtype):
    features, texts, boxes, size, _, groups = case("overlap")
    features, texts = features.to(dtype), texts.to(dtype)
    arguments = {"mode": "pixel_exact", "boxes": boxes, "size": size, "interpolate": "logits", "groups": groups}
    scores = template_entropy(to_device(features), to_device(texts), temperature=0.1, **arguments)
    compare(scores, places_of(features.double(), texts.double(), 0.1, boxes.tolist(), size, None, "logits", groups))


def test_reference_matches_the_released_procedure():
    size, out_size, groups = (21, 37), (30, 19), [0, 1, 1, 2, 3, 3, 3, 4]
    boxes = ovs_kernels.window_boxes(size, (12, 16), (6, 8))
    features, texts = features_for((len(boxes), 3, 4)).double(), texts_for(3, len(groups)).double()
    features, texts = (rows / rows.norm(dim=-1, keepdim=True) for rows in (features, texts))
    counts, sums = reference.template_entropy(
        features, texts, 0.01, True, "pixel_exact", boxes, size, out_size, False, "logits", groups
    )
    expected, expected_counts = released(features, texts, 0.01, boxes.tolist(), size, out_size, groups)
    assert counts.tolist() == expected_counts.tolist()
    assert np.abs(sums[0].double().numpy() * 2.0**-32 - expected).max() < 1e-6
