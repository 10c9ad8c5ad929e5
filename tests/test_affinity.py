"""`ovs_kernels.affinity_pool`: every backend against numbers by hand and a NumPy oracle."""

import math

import pytest
import torch
from affinity_inputs import CASES, DOUBLE, FORMS, SINGLE, by_hand, case, settings, window

from ovs_kernels import affinity_pool
from ovs_kernels.testing import assert_close_rel

both_forms = pytest.mark.parametrize("form", FORMS)


# Worked out by hand -------------------------------------------------------------------------------------------------


def test_clip_dinoiser_by_hand(device, to_device):
    # Affinities 0.6, 0.8 and 0; see test_reference_affinity.py.
    features, guide = torch.tensor([[1.0], [3.0], [8.0]]), torch.tensor([[5.0, 0.0], [0.3, 0.4], [0.0, 0.1]])
    pooled = affinity_pool(to_device(features), to_device(guide))
    assert_close_rel(pooled, torch.tensor([[2.8 / 1.6], [10.0 / 2.4], [10.4 / 1.8]]), SINGLE)


def test_proxyclip_by_hand(device, to_device):
    features, guide = torch.tensor([[1.0], [3.0], [8.0]]), torch.tensor([[5.0, 0.0], [0.3, 0.4], [0.0, 0.1]])
    pooled = affinity_pool(to_device(features), to_device(guide), form="proxyclip", beta=0.9, gamma=2.0)
    e6, e8 = math.exp(-0.8), math.exp(-0.4)
    expected = [(1 + 3 * e6) / (1 + e6), (e6 + 3 + 8 * e8) / (e6 + 1 + e8), (3 * e8 + 8) / (e8 + 1)]
    assert_close_rel(pooled, torch.tensor(expected)[:, None], SINGLE)


@both_forms
def test_equal_patches_give_the_mean(device, to_device, form):
    features = torch.randn(60, 7)
    pooled = affinity_pool(to_device(features), to_device(torch.full((60, 5), 0.3)), form=form, beta=0.5)
    assert_close_rel(pooled, features.mean(0).expand(60, 7), SINGLE)


@both_forms
def test_orthogonal_patches_stay_what_they_are(device, to_device, form):
    features = torch.randn(60, 7)
    assert_close_rel(affinity_pool(to_device(features), to_device(3 * torch.eye(60)), form=form), features, SINGLE)


# Against the oracle -------------------------------------------------------------------------------------------------


@both_forms
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_matches_the_oracle(device, to_device, form, name, dtype):
    features, guide, arguments, expected = case(name, form)
    pooled = affinity_pool(to_device(features.to(dtype)), to_device(guide.to(dtype)), **arguments)
    assert pooled.dtype == dtype
    assert pooled.is_contiguous()
    assert_close_rel(pooled, expected, SINGLE if dtype == torch.float32 else DOUBLE)


@both_forms
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_instruction_set(isa, form, dtype):
    for name in CASES:
        features, guide, arguments, expected = case(name, form)
        pooled = affinity_pool(features.to(dtype), guide.to(dtype), **arguments)
        assert_close_rel(pooled, expected, SINGLE if dtype == torch.float32 else DOUBLE, message=f"{isa}: {name}")


@pytest.mark.parametrize("threshold", [-5.0, -1.0, -0.2, 0.0, 0.5, 0.9, 0.999])
def test_thresholds(device, to_device, threshold):
    # Affinities of both signs; those that sum up near zero would lose digits, and a shift keeps the sums away from it.
    features, guide = window(70, 9, 20, clusters=3)
    guide = guide + 0.7
    arguments = settings(guide, "clip_dinoiser", threshold) if -1 < threshold < 0.999 else {"threshold": threshold}
    pooled = affinity_pool(to_device(features), to_device(guide), **arguments)
    assert_close_rel(pooled, by_hand(features, guide, "clip_dinoiser", arguments["threshold"]), SINGLE)


@pytest.mark.parametrize(("beta", "gamma"), [(1.2, 0.1), (0.0, 3.0), (-1.0, 3.0), (1.0, 40.0), (1.2, 500.0)])
def test_betas_and_gammas(device, to_device, beta, gamma):
    features, guide = window(70, 9, 20, clusters=3)
    arguments = settings(guide, "proxyclip", beta=beta, gamma=gamma)
    pooled = affinity_pool(to_device(features), to_device(guide), **arguments)
    # Rounding of an affinity is multiplied by gamma.
    assert_close_rel(pooled, by_hand(features, guide, **arguments), SINGLE * max(1.0, gamma / 10))


@both_forms
def test_size_of_a_model(device, to_device, form):
    # A window of 448 pixels in patches of 16, CLIP's 512 features, DINO's 768.
    if device == "emulated":
        pytest.skip("too large for the emulator")
    features, guide = window(784, 512, 768, clusters=12, noise=1.0)
    arguments = settings(guide, form)
    unit = torch.nn.functional.normalize(guide.double(), dim=1)
    affinity = unit @ unit.t()
    if form == "clip_dinoiser":
        weights = affinity * (affinity >= arguments["threshold"])
    else:
        scores = 3.0 * (affinity - arguments["beta"] * affinity.mean())
        weights = torch.where(scores >= 0, scores.exp(), 0.0)
    expected = weights @ features.double() / weights.sum(1, keepdim=True)
    assert_close_rel(affinity_pool(to_device(features), to_device(guide), **arguments), expected, SINGLE)


@both_forms
def test_windows(device, to_device, form):
    one, two, three = (window(50, 11, 17, seed=seed) for seed in (1, 2, 3))
    arguments = settings(one[1], form)
    features, guide = (torch.stack(parts) for parts in zip(one, two, three, strict=True))
    pooled = affinity_pool(to_device(features), to_device(guide), **arguments)
    for index in range(3):
        alone = affinity_pool(to_device(features[index]), to_device(guide[index]), **arguments)
        assert torch.equal(pooled[index], alone)
    assert_close_rel(pooled[0], by_hand(*one, **arguments), SINGLE)


@both_forms
def test_normalized_guide(device, to_device, form):
    features, guide = window(50, 11, 17)
    arguments = settings(guide, form)
    unit = torch.nn.functional.normalize(guide, dim=1)
    pooled = affinity_pool(to_device(features), to_device(unit), assume_normalized=True, **arguments)
    assert_close_rel(pooled, by_hand(features, guide, **arguments), SINGLE)


@both_forms
def test_rows_of_any_length_that_are_assumed_normalized(device, to_device, form):
    # Used as they are: no longer cosines, and in "proxyclip" scores of any size.
    features, guide = window(50, 11, 17)
    guide = guide * torch.logspace(-2, 1, 50)[torch.randperm(50), None]
    arguments = settings(guide, form, assume_normalized=True)
    expected = by_hand(features, guide, **arguments)
    tolerance = SINGLE if form == "clip_dinoiser" else 1e-2  # scores up to 10,000, in float32
    assert_close_rel(affinity_pool(to_device(features), to_device(guide), **arguments), expected, tolerance)
    doubles = to_device(features.double()), to_device(guide.double())
    assert_close_rel(affinity_pool(*doubles, **arguments), expected, 1e-9)


# Invariants ---------------------------------------------------------------------------------------------------------


@both_forms
def test_length_of_the_guide_rows_does_not_matter(device, to_device, form):
    features, guide = window(50, 11, 17)
    arguments = settings(guide, form)
    pooled = affinity_pool(to_device(features), to_device(guide), **arguments)
    longer = guide * torch.logspace(-11, 15, 50)[:, None]
    assert_close_rel(affinity_pool(to_device(features), to_device(longer), **arguments), pooled.cpu(), SINGLE)


@both_forms
def test_order_of_patches_is_kept(device, to_device, form):
    features, guide = window(107, 11, 17)
    arguments = settings(guide, form)
    order = torch.randperm(107)
    pooled = affinity_pool(to_device(features), to_device(guide), **arguments)
    permuted = affinity_pool(to_device(features[order]), to_device(guide[order]), **arguments)
    assert_close_rel(permuted, pooled.cpu()[order], SINGLE)


@both_forms
def test_features_are_pooled_one_by_one(device, to_device, form):
    features, guide = window(107, 100, 17)
    arguments = settings(guide, form)
    pooled = affinity_pool(to_device(features), to_device(guide), **arguments)
    part = affinity_pool(to_device(features[:, 30:70].contiguous()), to_device(guide), **arguments)
    assert_close_rel(part, pooled.cpu()[:, 30:70], SINGLE)


@both_forms
def test_constant_features_stay(device, to_device, form):
    _, guide = window(107, 1, 17)
    pooled = affinity_pool(to_device(torch.full((107, 3), 2.5)), to_device(guide), form=form)
    assert_close_rel(pooled, torch.full((107, 3), 2.5), SINGLE)
