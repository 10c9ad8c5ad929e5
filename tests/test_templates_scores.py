"""`TemplateScores`: exact merging, means, rankings, dictionaries."""

import json
from fractions import Fraction

import pytest
import torch
from templates_inputs import features_for, texts_for

from ovs_kernels import TemplateScores, template_entropy

LARGEST = 2**32 - 1


def random_scores(seed, sums=2, shape=(3, 4)):
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(0, 100, shape, generator=generator)
    whole = torch.randint(0, 2**40, (sums, *shape), generator=generator)
    fraction = torch.randint(0, 2**32, (sums, *shape), generator=generator)
    return TemplateScores(counts, whole, fraction, int(counts.sum()))


def exact(scores):
    """The sums as fractions, by Python."""
    rows = zip(scores.whole.flatten().tolist(), scores.fraction.flatten().tolist(), strict=True)
    return [Fraction(high) + Fraction(low, 2**32) for high, low in rows]


def same(a, b):
    parts = [(a.counts, b.counts), (a.whole, b.whole), (a.fraction, b.fraction)]
    return a.total == b.total and all(torch.equal(one, two) for one, two in parts)


def test_sums_are_exact_and_carry():
    parts = [random_scores(seed) for seed in range(5)]
    parts.append(TemplateScores(torch.ones(3, 4).long(), torch.ones(2, 3, 4).long(), torch.full((2, 3, 4), LARGEST), 7))
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    assert exact(total) == [sum(column) for column in zip(*map(exact, parts), strict=True)]
    assert int(total.fraction.min()) >= 0
    assert int(total.fraction.max()) <= LARGEST
    assert total.total == sum(part.total for part in parts)


def test_any_grouping_and_order_gives_the_same_bits():
    a, b, c, d = (random_scores(seed, sums=5) for seed in range(4))
    expected = ((a + b) + c) + d
    assert same((a + b) + (c + d), expected)
    assert same(a + (b + (c + d)), expected)
    assert same((d + b) + (c + a), expected)


def test_images_in_any_split():
    texts = texts_for(2, 4)
    images = [features_for((1, 12 + i), seed=i).reshape(12 + i, -1) for i in range(5)]
    single = [template_entropy(image, texts, temperature=0.1) for image in images]
    expected = single[0] + single[1] + single[2] + single[3] + single[4]
    assert same((single[4] + single[2]) + (single[0] + (single[1] + single[3])), expected)
    restored = TemplateScores.from_dict(json.loads(json.dumps((single[0] + single[1]).to_dict())))
    assert same(restored + single[2] + single[3] + single[4], expected)  # interrupted and resumed


def test_dictionary_round_trip():
    for sums in (2, 5):
        scores = random_scores(3, sums)
        text = json.dumps(scores.to_dict())
        assert same(TemplateScores.from_dict(json.loads(text)), scores)
    assert scores.to_dict()["sums_2e-32"]["entropy"][1][2] == exact(scores)[6] * 2**32


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": 2}, "values: expected the keys"),
        ({"more": 1}, "values: expected the keys"),
        ({"sums_2e-32": {"entropy": [[1]]}}, "values: expected the sums"),
        ({"counts": [[1, 2]]}, "values: expected [2, 1, 2] sums, got 24 numbers"),
    ],
)
def test_other_dictionaries_are_refused(change, words):
    with pytest.raises(ValueError, match=r"^TemplateScores: ") as error:
        TemplateScores.from_dict({**random_scores(1).to_dict(), **change})
    assert words in str(error.value)


def test_means_by_hand():
    counts = torch.tensor([[2, 0], [4, 1]])
    whole = torch.tensor([[[1, 0], [6, 0]], [[1, 0], [2, 0]]])
    fraction = torch.tensor([[[2**31, 0], [0, 2**30]], [[0, 0], [2**31, 2**31]]])
    scores = TemplateScores(counts, whole, fraction, 10)
    assert scores.mean_entropy.tolist() == [[0.75, 0.0], [1.5, 0.25]]
    assert scores.mean_probability.tolist() == [[0.5, 0.0], [0.625, 0.5]]
    assert scores.percentage.tolist() == [[20.0, 0.0], [40.0, 10.0]]
    assert scores.sum_of("entropy").tolist() == [[1.5, 0.0], [6.0, 0.25]]
    assert scores.ranking() == [[0, 1], [1]]  # the template that never predicts class 1 has no rank there
    assert scores.ranking("probability") == [[1, 0], [1]]


def test_equal_entropies_are_ranked_by_number():
    ones = torch.ones(1, 3, 1).long()
    scores = TemplateScores(ones[0], torch.cat((ones, ones)), torch.zeros(2, 3, 1).long(), 3)
    assert scores.ranking() == scores.ranking("probability") == [[0, 1, 2]]


def test_refusals():
    a = random_scores(1)
    with pytest.raises(ValueError, match=r"^TemplateScores: \+: expected \[2, 3, 4\] sums .*, got \[5, 3, 4\]$"):
        a + random_scores(1, sums=5)
    with pytest.raises(TypeError):
        a + 1
    with pytest.raises(ValueError, match=r"^TemplateScores: mano: expected scores made with mano=True"):
        _ = a.mano
    with pytest.raises(ValueError, match=r"^TemplateScores: metric: expected 'entropy' or "):
        a.ranking("accuracy")
    with pytest.raises(ValueError, match=r"^TemplateScores: counts: expected"):
        TemplateScores(a.counts, a.whole[:, :2], a.fraction, 1)
