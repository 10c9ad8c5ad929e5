"""`reference.affinity.affinity_pool` against numbers worked out by hand and a NumPy oracle."""

import math

import pytest
import torch
from affinity_inputs import CASES, DOUBLE, FORMS, case

from ovs_kernels.reference.affinity import affinity_pool
from ovs_kernels.testing import assert_close_rel

FEATURES = torch.tensor([[1.0, 10.0], [3.0, 20.0], [8.0, 60.0]], dtype=torch.float64)
# Affinities: 0.6 between the first two, 0.8 between the last two, 0 between the first and the last.
GUIDE = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]], dtype=torch.float64)


def test_clip_dinoiser_by_hand():
    # Rows of weights at 0.2: (1, 0.6, 0), (0.6, 1, 0.8), (0, 0.8, 1).
    pooled = affinity_pool(FEATURES, GUIDE, form="clip_dinoiser")
    expected = torch.tensor(
        [
            [(1.0 + 0.6 * 3.0) / 1.600001, (10.0 + 0.6 * 20.0) / 1.600001],
            [(0.6 + 3.0 + 0.8 * 8.0) / 2.400001, (6.0 + 20.0 + 48.0) / 2.400001],
            [(2.4 + 8.0) / 1.800001, (16.0 + 60.0) / 1.800001],
        ]
    )
    assert_close_rel(pooled, expected, 1e-6)


def test_the_threshold_is_strict():
    # 0.8 itself survives, 0.6 does not.
    guide = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]], dtype=torch.float64)
    pooled = affinity_pool(FEATURES, guide, threshold=0.8, assume_normalized=True)
    expected = torch.tensor([[1.0], [(3 + 6.4) / 1.8], [(2.4 + 8.0) / 1.8]])
    assert_close_rel(pooled[:, :1], expected, 2e-6)


def test_proxyclip_by_hand():
    # mean = (3 + 2 * 1.4) / 9 = 5.8 / 9. With beta = 0.9, 0.58 is the border: 0.6 and 0.8 stay, 0 goes.
    pooled = affinity_pool(FEATURES, GUIDE, form="proxyclip", beta=0.9, gamma=2.0)
    e6, e8 = math.exp(2.0 * (0.6 - 1.0)), math.exp(2.0 * (0.8 - 1.0))
    expected = torch.tensor(
        [(1 + 3 * e6) / (1 + e6), (e6 + 3 + 8 * e8) / (e6 + 1 + e8), (3 * e8 + 8) / (e8 + 1)], dtype=torch.float64
    )
    assert_close_rel(pooled[:, 0], expected, DOUBLE)


def test_proxyclip_keeps_the_diagonal():
    # beta * mean is above 1: no entry is as large, and each patch stays what it was.
    assert_close_rel(affinity_pool(FEATURES, GUIDE, form="proxyclip", beta=1.6), FEATURES, DOUBLE)


@pytest.mark.parametrize("form", FORMS)
def test_windows_are_pooled_by_themselves(form):
    other = FEATURES.flip(0) + 1, torch.tensor([[1.0, 0.0], [1.0, 0.1], [-1.0, 0.0]], dtype=torch.float64)
    both = affinity_pool(torch.stack((FEATURES, other[0])), torch.stack((GUIDE, other[1])), form=form)
    assert torch.equal(both[0], affinity_pool(FEATURES, GUIDE, form=form))
    assert torch.equal(both[1], affinity_pool(*other, form=form))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", CASES)
def test_matches_the_oracle(form, name):
    features, guide, arguments, expected = case(name, form)
    assert_close_rel(affinity_pool(features.double(), guide.double(), **arguments), expected, DOUBLE)
