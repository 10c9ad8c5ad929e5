"""`fuse_experts`: values by hand and by loops in NumPy, edge cases, invariants."""

import math

import numpy as np
import pytest
import torch
from templates_inputs import PROBABILITY, expert_maps, features_for, fused, stretched, texts_for, touched

import ovs_kernels
from ovs_kernels import fuse_experts
from ovs_kernels.testing import assert_close_rel, assert_labels_agree

STRATEGIES = ("highest", "default_on_conflict", "average_conflicting", "average")

# name -> (windows, patches (h, w), size of a window, classes)
CASES = {
    "one class": (1, (2, 3), (8, 12), 1),
    "two classes": (1, (3, 3), (12, 12), 2),
    "several windows": (3, (3, 4), (18, 24), 5),
    "odd sizes": (1, (4, 5), (19, 33), 7),
    "one patch": (2, (1, 1), (5, 18), 4),
    "one row": (1, (1, 6), (1, 50), 6),
    "one column": (1, (6, 1), (50, 1), 6),
    "one pixel": (1, (3, 3), (1, 1), 3),
    "as many patches as pixels": (1, (6, 20), (6, 20), 5),
    "more patches than pixels": (1, (9, 11), (5, 7), 4),
    "16 classes": (1, (3, 4), (20, 28), 16),
    "33 classes": (1, (3, 3), (13, 21), 33),
}


def experts_for(num_classes, seed=4, spread=0.8):
    """[K + 1, K, d]: experts that disagree with each other."""
    return texts_for(num_classes + 1, num_classes, seed, spread=spread)


def inputs_of(name):
    windows, grid, size, num_classes = CASES[name]
    return features_for((windows, *grid)), experts_for(num_classes), size


def expected_of(features, experts, size, strategy="highest", temperature=0.1):
    """[n, K, hw, ww] and [n, hw, ww]."""
    pairs = [fused(expert_maps(window, experts, size, temperature), strategy) for window in features.double().numpy()]
    return np.stack([p.transpose(2, 0, 1) for p, _ in pairs]), np.stack([w for _, w in pairs])


def test_by_hand(device, to_device):
    # One patch, two classes; logits (2, 1) from expert 0, (0, 3) from expert 1, (1, 0) from the default.
    features = to_device(torch.eye(3)[:1].reshape(1, 1, 1, 3))
    products = torch.tensor([[2.0, 1.0], [0.0, 3.0], [1.0, 0.0]])
    experts = to_device(torch.nn.functional.pad(products[..., None], (0, 2)))
    result, winners = fuse_experts(features, experts, (1, 2), temperature=1.0, return_winners=True)
    p = 1 / (1 + math.exp(-3))  # both vote, and expert 1 is surer than expert 0 with 1 / (1 + 1 / e)
    assert winners.tolist() == [[[1, 1]]]
    assert result[0, :, 0, 0].tolist() == pytest.approx([1 - p, p], abs=1e-6)
    by_default = fuse_experts(features, experts, (1, 2), temperature=1.0, strategy="default_on_conflict")
    q = 1 / (1 + math.exp(-1))
    assert by_default[0, :, 0, 1].tolist() == pytest.approx([q, 1 - q], abs=1e-6)
    mean = fuse_experts(features, experts, (1, 2), temperature=1.0, strategy="average_conflicting")
    assert mean[0, :, 0, 0].tolist() == pytest.approx([(q + 1 - p) / 2, (1 - q + p) / 2], abs=1e-6)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", CASES)
def test_matches_loops(device, to_device, name, strategy):
    features, experts, size = inputs_of(name)
    expected, winners = expected_of(features, experts, size, strategy)
    result = fuse_experts(to_device(features), to_device(experts), size, strategy=strategy, temperature=0.1)
    assert_close_rel(result, expected, PROBABILITY)
    if not strategy.startswith("average"):
        again, found = fuse_experts(
            to_device(features), to_device(experts), size, strategy=strategy, temperature=0.1, return_winners=True
        )
        assert torch.equal(again, result)
        assert found.dtype == torch.int32
        assert_labels_agree(found, winners, 1.0)


@pytest.mark.parametrize("seed", range(6))
def test_conflicts_of_every_kind(device, to_device, seed):
    # Rough features and few classes: cells whose corners disagree, experts that win inside of a cell only.
    features = features_for((1, 5, 6), seed=seed, noise=1.5)
    experts = experts_for(4, seed=seed, spread=1.5)
    for temperature in (1.0, 0.3):
        expected, winners = expected_of(features, experts, (23, 31), "highest", temperature)
        result, found = fuse_experts(
            to_device(features), to_device(experts), (23, 31), temperature=temperature, return_winners=True
        )
        # Where two experts are within rounding of each other, either answer is right.
        assert_labels_agree(found, winners, 0.998)
        same = torch.from_numpy(found.cpu().numpy() == winners)[:, None].expand(expected.shape)
        assert_close_rel(result.cpu()[same], expected[same.numpy()], 10 * PROBABILITY)
    assert len(np.unique(winners)) > 2


def test_every_strategy_is_exercised():
    # The inputs above have pixels without a vote, with one and with several.
    features, experts, size = inputs_of("odd sizes")
    maps = expert_maps(features[0].double().numpy(), experts, size, 0.1)
    votes = sum((maps[e].argmax(-1) == e).astype(int) for e in range(7))
    assert {0, 1, 2} <= set(votes.ravel().tolist())


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_labels(device, to_device, strategy):
    for name in ("several windows", "33 classes", "one class"):
        features, experts, size = inputs_of(name)
        expected, _ = expected_of(features, experts, size, strategy)
        labels = fuse_experts(
            to_device(features), to_device(experts), size, strategy=strategy, temperature=0.1, labels=True
        )
        assert labels.dtype == torch.uint8
        assert_labels_agree(labels, expected.argmax(1), 1.0)


def test_labels_of_many_classes(device, to_device):
    features, experts = features_for((1, 2, 2)), experts_for(257)
    labels, winners = fuse_experts(
        to_device(features), to_device(experts), (4, 6), temperature=0.1, labels=True, return_winners=True
    )
    expected, expected_winners = expected_of(features, experts, (4, 6))
    assert labels.dtype == torch.int32
    assert_labels_agree(labels, expected.argmax(1), 1.0)
    assert_labels_agree(winners, expected_winners, 1.0)


MERGES = {
    "regular": ((20, 37), ovs_kernels.window_boxes((20, 37), (12, 16), (8, 8))),
    "any boxes": ((21, 40), torch.tensor([[0, 0, 21, 40], [3, 5, 10, 33], [10, 0, 21, 9], [0, 39, 1, 40]])),
    "one window": ((13, 18), torch.tensor([[0, 0, 13, 18]])),
}


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", MERGES)
def test_merged(device, to_device, name, strategy):
    size, boxes = MERGES[name]
    features, experts = features_for((len(boxes), 3, 4)), experts_for(5)
    total, count = np.zeros((5, *size)), np.zeros(size)
    for window, (y0, x0, y1, x1) in zip(features, boxes.tolist(), strict=True):
        total[:, y0:y1, x0:x1] += expected_of(window[None], experts, (y1 - y0, x1 - x0), strategy)[0][0]
        count[y0:y1, x0:x1] += 1
    merged = fuse_experts(
        to_device(features), to_device(experts), size, boxes=boxes, strategy=strategy, temperature=0.1
    )
    assert_close_rel(merged, total / count, PROBABILITY)


# Edges ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [0.0, math.nan, math.inf])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_patch_without_features_takes_the_default(device, to_device, bad, strategy):
    features, experts, size = inputs_of("odd sizes")
    bad_patches = np.zeros((4, 5), bool)
    bad_patches[1, 3] = True
    features[0, bad_patches] = bad
    clean = features.clone()
    clean[0, bad_patches] = 1.0
    maps = expert_maps(clean[0].double().numpy(), experts, size, 0.1)
    expected, winners = fused(maps, strategy)
    # The default with uniform probabilities at the bad patch, by linearity.
    weight = expert_maps_weight(bad_patches, size)
    at_bad = expert_maps(clean[0, 1:2, 3:4].double().numpy(), experts, (1, 1), 0.1)[7, 0, 0]
    default = maps[7] + weight[..., None] * (1 / 7 - at_bad)
    left_out = touched(bad_patches, size)
    expected[left_out], winners[left_out] = default[left_out], 7
    result = fuse_experts(to_device(features), to_device(experts), size, strategy=strategy, temperature=0.1)
    assert_close_rel(result[0], expected.transpose(2, 0, 1), PROBABILITY)
    if strategy == "highest":
        _, found = fuse_experts(to_device(features), to_device(experts), size, temperature=0.1, return_winners=True)
        assert_labels_agree(found[0], winners, 1.0)


def expert_maps_weight(marked, size):
    """[hw, ww]: the share of the marked patches in each pixel."""
    return stretched(marked[..., None].astype(float), *size)[..., 0]


def test_equal_experts_give_the_default(device, to_device):
    features, texts = features_for((1, 4, 5)), texts_for(1, 6)
    experts = texts.expand(7, -1, -1)
    result = fuse_experts(to_device(features), to_device(experts), (20, 25), temperature=0.1)
    expected = expert_maps(features[0].double().numpy(), experts, (20, 25), 0.1)[6].transpose(2, 0, 1)
    assert_close_rel(result[0], expected, PROBABILITY)


def test_equal_classes_go_to_the_lowest(device, to_device):
    # Small integers, so that a matrix product cannot round equal columns differently.
    features, experts, size = inputs_of("odd sizes")
    features, experts = (2 * features).round(), (2 * experts).round()
    features[features.abs().sum(-1) == 0] = 1.0
    experts[:, 4] = experts[:, 1]
    maps = expert_maps(features[0].numpy(), experts, size, 16.0, assume_normalized=True)
    _, expected = fused(maps)
    _, winners = fuse_experts(
        to_device(features), to_device(experts), size, temperature=16.0, assume_normalized=True, return_winners=True
    )
    assert_labels_agree(winners[0], expected, 0.99)
    assert not (winners == 4).any()
    assert (winners == 1).any()


def test_order_of_classes_permutes_the_result(device, to_device):
    features, experts, size = inputs_of("odd sizes")
    order = torch.randperm(7)
    permuted = experts[torch.cat((order, torch.tensor([7])))][:, order]
    straight = fuse_experts(to_device(features), to_device(experts), size, temperature=0.1)
    assert_close_rel(
        fuse_experts(to_device(features), to_device(permuted), size, temperature=0.1),
        straight.cpu()[:, order],
        PROBABILITY,
    )


def test_probabilities_sum_to_one(device, to_device):
    for name in CASES:
        features, experts, size = inputs_of(name)
        for strategy in STRATEGIES:
            result = fuse_experts(to_device(features), to_device(experts), size, strategy=strategy)
            assert (result.sum(1) - 1).abs().max() < 1e-5


def test_experts_are_used_as_they_are(device, to_device):
    features, experts, size = inputs_of("several windows")
    halved = fuse_experts(to_device(features * 5), to_device(experts / 2), size, temperature=0.05)
    assert_close_rel(halved, expected_of(features, experts, size)[0], PROBABILITY)
    unit = features / features.norm(dim=-1, keepdim=True)
    assumed = fuse_experts(to_device(2 * unit), to_device(experts), size, temperature=0.2, assume_normalized=True)
    assert_close_rel(assumed, expected_of(features, experts, size)[0], PROBABILITY)


def test_no_windows(device, to_device):
    features = to_device(torch.zeros(0, 2, 3, 12))
    assert fuse_experts(features, to_device(experts_for(4)), (5, 6)).shape == (0, 4, 5, 6)
    labels, winners = fuse_experts(features, to_device(experts_for(4)), (5, 6), labels=True, return_winners=True)
    assert labels.shape == winners.shape == (0, 5, 6)


def test_numbers_of_threads_and_repeats_give_the_same_bits(num_threads):
    features, experts, size = inputs_of("odd sizes")
    found = []
    for threads in (1, 2, 3, 2):
        num_threads(threads)
        found.append(fuse_experts(features, experts, size))
    assert all(torch.equal(other, found[0]) for other in found[1:])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_instruction_set_level(isa, strategy):
    features, experts, size = inputs_of("33 classes")
    expected, _ = expected_of(features, experts, size, strategy)
    assert_close_rel(fuse_experts(features, experts, size, strategy=strategy, temperature=0.1), expected, PROBABILITY)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float16, 2e-3), (torch.bfloat16, 1e-2)]
)
def test_dtypes(device, to_device, dtype, tolerance):
    features, experts, size = inputs_of("several windows")
    features, experts = features.to(dtype), experts.to(dtype)
    result = fuse_experts(to_device(features), to_device(experts), size, temperature=0.1)
    assert result.dtype == dtype
    assert_close_rel(result, expected_of(features.double(), experts.double(), size)[0], tolerance)


def test_any_strides(device, to_device):
    features, experts, size = inputs_of("several windows")
    strided = to_device(torch.stack((features, features), -1))[..., 0]
    turned = to_device(experts.permute(2, 1, 0).contiguous()).permute(2, 1, 0)
    assert_close_rel(
        fuse_experts(strided, turned, size, temperature=0.1), expected_of(features, experts, size)[0], PROBABILITY
    )


def test_array_kinds(xp):
    to_kind, from_kind = xp
    features, experts, size = inputs_of("several windows")
    result, winners = fuse_experts(to_kind(features), to_kind(experts), size, temperature=0.1, return_winners=True)
    expected, expected_winners = expected_of(features, experts, size)
    assert_close_rel(from_kind(result), expected, PROBABILITY)
    assert_labels_agree(from_kind(winners), expected_winners, 1.0)
