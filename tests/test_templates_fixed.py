"""`template_entropy` of patches on a CPU: products of integers where they are exact enough, of torch where not."""

import math

import numpy as np
import pytest
import torch
from templates_inputs import places_of, tally

from ovs_kernels import _native, template_entropy
from ovs_kernels._ops import templates as operators

MEAN = {0.1: 2e-5, 0.01: 2e-4}  # absolute, of mean entropies and probabilities; as for products in float32
pytestmark = pytest.mark.skipif(
    _native.cpu_module() is None or _native.isa() != "v4", reason="products of integers are for level v4"
)


def like_clip(num_patches, num_templates, num_classes, dim=512, seed=1):
    """Patches and embeddings of any length that all point roughly the same way, as CLIP's do."""
    generator = np.random.default_rng(seed)
    classes = generator.standard_normal((num_classes, dim))
    texts = 2.5 * generator.standard_normal(dim) + classes
    texts = texts + 0.5 * generator.standard_normal((num_templates, 1, dim))
    texts = texts + 0.4 * generator.standard_normal((num_templates, num_classes, dim))
    features = 2.5 * generator.standard_normal(dim) + classes[generator.integers(0, num_classes, num_patches)]
    features = features + 1.6 * generator.standard_normal((num_patches, dim))
    lengths = generator.uniform(0.5, 4.0, (num_patches, 1))
    return torch.tensor(lengths * features, dtype=torch.float32), torch.tensor(texts, dtype=torch.float32)


@pytest.fixture
def left(monkeypatch):
    """What each call left to torch's product: a list of lists of templates."""
    calls, count = [], operators._count_fixed

    def spy(*arguments):
        calls.append(count(*arguments))
        return calls[-1]

    monkeypatch.setattr(operators, "_count_fixed", spy)
    return calls


def compare(scores, features, texts, temperature, groups=None):
    places = places_of(features, texts, temperature, groups=groups)
    counts, entropies, probabilities = tally(places, places[0].shape[1])
    assert scores.counts.tolist() == counts.tolist()
    assert np.abs(scores.mean_entropy.numpy() - entropies).max() < MEAN[temperature]
    assert np.abs(scores.mean_probability.numpy() - probabilities).max() < MEAN[temperature]
    assert scores.total == len(places[0])


@pytest.mark.parametrize("temperature", [0.1, 0.01])
@pytest.mark.parametrize("num_classes", [1, 2, 11, 12, 13, 27])
@pytest.mark.parametrize("num_patches", [64, 100, 161])
def test_matches_loops(left, num_patches, num_classes, temperature):
    features, texts = like_clip(num_patches, 3, num_classes)
    compare(template_entropy(features, texts, temperature=temperature), features, texts, temperature)
    assert left == [[]]


@pytest.mark.parametrize("dim", [256, 300, 511, 768])
def test_any_number_of_features(left, dim):
    features, texts = like_clip(70, 2, 7, dim)
    compare(template_entropy(features, texts, temperature=0.01), features, texts, 0.01)
    assert left == [[]]


def test_unit_vectors_are_taken_as_they_are(left):
    features, texts = like_clip(97, 3, 14)
    features, texts = (rows / rows.norm(dim=-1, keepdim=True) for rows in (features, texts))
    compare(template_entropy(features, texts, assume_normalized=True), features, texts, 0.01)
    doubled = template_entropy(features, 2 * texts, temperature=0.2, assume_normalized=True)
    compare(doubled, features, texts, 0.1)
    assert left == [[]] * 2


@pytest.mark.parametrize("groups", [[0, 0, 1, 2, 2, 2, 3], [1, 0, 1, 0, 2, 0, 1], [0] * 7])
def test_groups(left, groups):
    features, texts = like_clip(80, 3, 7)
    compare(template_entropy(features, texts, temperature=0.1, groups=groups), features, texts, 0.1, groups)
    assert left == [[]]


def test_sums_that_fill_32_bits(left):
    # Equal components, so that a chunk's integers are as long as they may be, and products of opposite vectors.
    signs = torch.ones(512)
    signs[1::3] = -1
    features = torch.stack([signs, -signs] * 40) / math.sqrt(512)
    texts = torch.stack((signs, -signs)).expand(2, -1, -1) / math.sqrt(512)
    scores = template_entropy(features, texts, temperature=1.0, assume_normalized=True)
    p = 1 / (1 + math.exp(-2.0))
    assert scores.counts.tolist() == [[40, 40]] * 2
    expected = -p * math.log(p) - (1 - p) * math.log(1 - p)
    assert scores.mean_entropy.flatten().tolist() == pytest.approx([expected] * 4, abs=1e-5)
    assert left == [[]]


def test_one_large_feature(left):
    # As in CLIP: a component of half the length that all vectors share, and one that varies most of all.
    features, texts = like_clip(90, 2, 9)
    features, texts = (rows / rows.norm(dim=-1, keepdim=True) for rows in (features, texts))
    features[:, 133] += 0.8
    texts[..., 133] += 0.6
    features[:, 7] *= 3
    compare(template_entropy(features, texts, temperature=0.01), features, texts, 0.01)
    assert left == [[]]


def test_equal_embeddings_are_equal_and_the_lowest_wins(left):
    features, texts = like_clip(130, 3, 13)
    texts[:, 9] = texts[:, 2]
    texts[:, 12] = texts[:, 2]
    counts = template_entropy(features, texts).counts
    assert counts[:, 9].tolist() == counts[:, 12].tolist() == [0] * 3
    assert (counts[:, 2] > 0).all()
    assert left == [[]]


def test_what_is_not_exact_enough_is_left_to_float32(left):
    # Directions that have nothing in common: templates 1 and 3 by their embeddings, then all by their features.
    features, texts = like_clip(75, 4, 8, 256)
    generator = torch.Generator().manual_seed(3)
    for m in (1, 3):
        texts[m] = torch.randn(8, 256, generator=generator)
    compare(template_entropy(features, texts, temperature=0.1), features, texts, 0.1)
    scattered = torch.randn(75, 256, generator=generator)
    compare(template_entropy(scattered, texts, temperature=0.1), scattered, texts, 0.1)
    assert left == [[1, 3], [0, 1, 2, 3]]


def test_what_is_left_takes_part_in_groups(left):
    features, texts = like_clip(75, 3, 6, 256)
    texts[2] = torch.randn(6, 256, generator=torch.Generator().manual_seed(3))
    groups = [1, 0, 2, 1, 0, 0]
    compare(template_entropy(features, texts, temperature=0.1, groups=groups), features, texts, 0.1, groups)
    assert left == [[2]]


@pytest.mark.parametrize("bad", [0.0, math.nan, math.inf])
def test_patches_without_features_are_left_out(left, bad):
    features, texts = like_clip(96, 2, 5)
    known = torch.ones(96, dtype=torch.bool)
    known[[0, 40, 95]] = False
    features[~known] = bad
    scores = template_entropy(features, texts, temperature=0.1)
    counts, entropies, _ = tally(places_of(features[known], texts, 0.1), 5)
    assert scores.counts.tolist() == counts.tolist()
    assert np.abs(scores.mean_entropy.numpy() - entropies).max() < MEAN[0.1]
    assert scores.total == 96
    assert left == [[]]


def test_no_patch_with_features():
    _, texts = like_clip(64, 2, 5)
    scores = template_entropy(torch.zeros(64, 512), texts)
    assert scores.counts.tolist() == [[0] * 5] * 2
    assert scores.total == 64


@pytest.mark.parametrize("bad", [0.0, math.nan, math.inf])
def test_a_template_without_an_embedding_counts_nothing(left, bad):
    features, texts = like_clip(64, 3, 5)
    texts[1, 2] = bad
    assert template_entropy(features, texts).counts.sum(1).tolist() == [64, 0, 64]
    assert left == [[1]]


@pytest.mark.parametrize("num_templates", [1, 3, 8])
def test_numbers_of_threads_and_repeats_give_the_same_bits(num_threads, num_templates, left):
    features, texts = like_clip(200, num_templates, 9)
    found = []
    for threads in (1, 2, 3, 5, 2):
        num_threads(threads)
        found.append(template_entropy(features, texts))
    for other in found[1:]:
        assert torch.equal(other.counts, found[0].counts)
        assert torch.equal(other.whole, found[0].whole)
        assert torch.equal(other.fraction, found[0].fraction)
    assert left == [[]] * 5


@pytest.mark.parametrize("level", ["v2", "v3"])
def test_other_levels_use_float32(left, level):
    features, texts = like_clip(70, 3, 7)
    with _native.use_isa(level):
        compare(template_entropy(features, texts, temperature=0.1), features, texts, 0.1)
    assert left == [[0, 1, 2]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types(left, dtype):
    features, texts = (rows.to(dtype) for rows in like_clip(66, 2, 6))
    compare(template_entropy(features, texts, temperature=0.1), features.double(), texts.double(), 0.1)
    assert left == [[]]


@pytest.mark.parametrize("change", ["few patches", "few features", "float64", "MaNo", "pixels"])
def test_what_is_not_tried(left, change):
    features, texts = like_clip(
        *((63, 2, 4) if change == "few patches" else (64, 2, 4)), dim=127 if change == "few features" else 128
    )
    if change == "float64":
        features, texts = features.double(), texts.double()
    arguments = {"mano": True} if change == "MaNo" else {}
    if change == "pixels":
        features, arguments = features.view(1, 8, 8, 128), {"mode": "pixel_exact", "size": (9, 9)}
    template_entropy(features, texts, **arguments)
    assert left == []


@pytest.mark.parametrize("factor", [1e20, 1e-20], ids=str)
@pytest.mark.parametrize("level", ["v2", "v3", "v4"])
def test_lengths_whose_squares_leave_the_range_of_float32(level, factor):
    if level not in _native.isa_levels():
        pytest.skip(f"level {level} is not compiled in, or this processor cannot run it")
    features, texts = like_clip(100, 3, 5)
    with _native.use_isa(level):
        expected = template_entropy(features, texts, temperature=0.1)
        features[7] *= factor
        texts[0, 0] *= factor
        made = template_entropy(features, texts, temperature=0.1)
    compare(expected, features, texts, 0.1)  # the definition in float64 has the range
    assert torch.equal(made.counts, expected.counts)
    assert (made.mean_entropy - expected.mean_entropy).abs().max() < 2e-5
