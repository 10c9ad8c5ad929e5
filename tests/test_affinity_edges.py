"""`affinity_pool`: zeros, NaN, layouts, dtypes, kinds of arrays, empty arrays; and where no bit may change."""

import math

import numpy as np
import pytest
import torch
from affinity_inputs import FORMS, SINGLE, by_hand, settings, window

from ovs_kernels import affinity_pool
from ovs_kernels.testing import assert_close_rel

both_forms = pytest.mark.parametrize("form", FORMS)


# Zeros and thresholds -----------------------------------------------------------------------------------------------


def test_guide_row_of_zeros_pools_nothing_in_clip_dinoiser(device, to_device):
    features, guide = window(60, 7, 13)
    guide[[0, 31, 59]] = 0.0
    arguments = settings(guide, "clip_dinoiser")
    pooled = affinity_pool(to_device(features), to_device(guide), **arguments)
    assert (pooled[[0, 31, 59]] == 0).all()
    assert_close_rel(pooled, by_hand(features, guide, **arguments), SINGLE)


@pytest.mark.parametrize("gamma", [3.0, 80.0, 1000.0])
def test_guide_row_of_zeros_keeps_its_features_in_proxyclip(device, to_device, gamma):
    features, guide = window(60, 7, 13)
    guide = guide + 0.5  # the mean affinity is above zero
    guide[[0, 31, 59]] = 0.0
    arguments = settings(guide, "proxyclip", gamma=gamma)
    pooled = affinity_pool(to_device(features), to_device(guide), **arguments)
    assert_close_rel(pooled[[0, 31, 59]], features[[0, 31, 59]], SINGLE)
    assert_close_rel(pooled, by_hand(features, guide, **arguments), SINGLE * max(1.0, gamma / 10))


@pytest.mark.parametrize("gamma", [3.0, 1000.0])
def test_guide_row_of_zeros_beside_a_mean_of_zero(device, to_device, gamma):
    # Opposite patches: the mean is 0, all scores of the row of zeros are 0, and its weights are equal.
    features, guide = torch.randn(3, 4), torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]])
    pooled = affinity_pool(to_device(features), to_device(guide), form="proxyclip", gamma=gamma)
    assert_close_rel(pooled[2], features.mean(0), SINGLE)
    assert_close_rel(pooled, by_hand(features, guide, "proxyclip", gamma=gamma), SINGLE)


@both_forms
def test_all_guide_rows_zero(device, to_device, form):
    features = torch.randn(50, 6)
    pooled = affinity_pool(to_device(features), to_device(torch.zeros(50, 9)), form=form)
    expected = torch.zeros(50, 6) if form == "clip_dinoiser" else features.mean(0).expand(50, 6)
    assert_close_rel(pooled, expected, SINGLE)


@both_forms
def test_tiny_guide_rows(device, to_device, form):
    # A norm of 1e-13 counts as 1e-12: affinities of a hundredth and of a tenth.
    features = torch.tensor([[1.0], [5.0]])
    guide = torch.tensor([[1e-13, 0.0], [1.0, 0.0]])
    arguments = {"threshold": 0.05} if form == "clip_dinoiser" else {"beta": 0.1}
    pooled = affinity_pool(to_device(features), to_device(guide), form=form, **arguments)
    assert_close_rel(pooled, by_hand(features, guide, form, **arguments), SINGLE)


def test_nothing_survives_a_threshold_above_one(device, to_device):
    features, guide = window(60, 7, 13)
    assert (affinity_pool(to_device(features), to_device(guide), threshold=1.001) == 0).all()


@pytest.mark.parametrize("beta", [30.0, 1e6])
def test_diagonal_stays_where_nothing_else_does(device, to_device, beta):
    features, guide = window(60, 7, 13)
    pooled = affinity_pool(to_device(features), to_device(guide + 0.5), form="proxyclip", beta=beta)
    assert_close_rel(pooled, features, SINGLE)


def test_one_patch(device, to_device):
    features, guide = torch.tensor([[2.0, -3.0]]), torch.tensor([[0.1, 0.2, 0.3]])
    assert_close_rel(affinity_pool(to_device(features), to_device(guide)), features, SINGLE)
    assert_close_rel(affinity_pool(to_device(features), to_device(guide), form="proxyclip"), features, SINGLE)


# Numbers that are not finite ----------------------------------------------------------------------------------------


@both_forms
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_guide_that_is_not_finite_poisons_its_window(device, to_device, form, poison):
    features, guide = (torch.stack(parts) for parts in zip(*(window(60, 7, 13, seed=s) for s in (1, 2)), strict=True))
    wanted = affinity_pool(to_device(features), to_device(guide), form=form).cpu()
    guide[1, 37, 5] = poison
    pooled = affinity_pool(to_device(features), to_device(guide), form=form).cpu()
    assert pooled[1].isnan().all()
    assert torch.equal(pooled[0], wanted[0])


@both_forms
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_feature_that_is_not_finite_reaches_its_neighbours_only(device, to_device, form, poison):
    features, guide = window(110, 30, 13)
    arguments = settings(guide, form)
    unit = torch.nn.functional.normalize(guide.double(), dim=1)
    affinity = unit @ unit.t()
    border = arguments["threshold"] if form == "clip_dinoiser" else arguments["beta"] * affinity.mean()
    near = affinity[57] >= border
    assert 5 < near.sum() < 105
    clean = by_hand(features, guide, **arguments)
    features[57, 11] = poison
    pooled = affinity_pool(to_device(features), to_device(guide), **arguments).cpu()
    expected = torch.from_numpy(clean)
    expected[near, 11] = poison
    assert_close_rel(pooled, expected, SINGLE)


# Layouts, dtypes, kinds ---------------------------------------------------------------------------------------------


def layouts(tensor):
    """The same numbers behind other strides."""
    larger = torch.full([extent + 3 for extent in tensor.shape], math.nan)
    larger[1:-2, 2:-1, 1:-2] = tensor
    stepped = torch.full([2 * extent for extent in tensor.shape], math.nan)
    stepped[::2, 1::2, ::2] = tensor
    return {
        "patches outside": tensor.transpose(0, 1).contiguous().transpose(0, 1),
        "features first": tensor.transpose(1, 2).contiguous().transpose(1, 2),
        "sliced": larger[1:-2, 2:-1, 1:-2],
        "stepped": stepped[::2, 1::2, ::2],
    }


@both_forms
def test_layouts(device, to_device, form):
    features, guide = (torch.stack(parts) for parts in zip(*(window(50, 11, 17, seed=s) for s in (1, 2)), strict=True))
    expected = affinity_pool(to_device(features), to_device(guide), form=form)
    others = layouts(guide)
    for name, view in layouts(features).items():
        assert torch.equal(view, features)
        pooled = affinity_pool(to_device(view), to_device(others[name]), form=form)
        assert torch.equal(pooled, expected), name
        assert pooled.is_contiguous(), name


def test_expanded_guide(device, to_device):
    features, guide = torch.randn(3, 50, 11), window(50, 1, 17)[1]
    expected = affinity_pool(to_device(features), to_device(guide.repeat(3, 1, 1)))
    assert torch.equal(affinity_pool(to_device(features), to_device(guide).expand(3, 50, 17)), expected)


@both_forms
def test_inputs_are_not_written(device, to_device, form):
    features, guide = (to_device(tensor) for tensor in window(50, 11, 17))
    copies = features.clone(), guide.clone()
    affinity_pool(features, guide, form=form)
    assert torch.equal(features, copies[0])
    assert torch.equal(guide, copies[1])


@both_forms
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(device, to_device, form, dtype):
    # Computed in float32, rounded once.
    features, guide = (tensor.to(dtype) for tensor in window(50, 11, 17))
    pooled = affinity_pool(to_device(features), to_device(guide), form=form)
    assert pooled.dtype == dtype
    single = affinity_pool(to_device(features.float()), to_device(guide.float()), form=form)
    assert torch.equal(pooled, single.to(dtype))


@both_forms
def test_dtypes_may_differ(device, to_device, form):
    features, guide = window(50, 11, 17)
    pooled = affinity_pool(to_device(features.half()), to_device(guide), form=form)
    single = affinity_pool(to_device(features.half().float()), to_device(guide), form=form)
    assert pooled.dtype == torch.float16
    assert torch.equal(pooled, single.half())


def test_numpy():
    features, guide = window(50, 11, 17)
    expected = affinity_pool(features, guide)
    pooled = affinity_pool(features.numpy(), guide.numpy())
    assert isinstance(pooled, np.ndarray)
    np.testing.assert_array_equal(pooled, expected.numpy())
    flipped = features.flip(1).contiguous().numpy()[:, ::-1]
    np.testing.assert_array_equal(affinity_pool(flipped, guide.numpy(), threshold=np.float64(0.2)), expected.numpy())


def test_every_kind_of_array_gives_the_same(xp):
    to_array, to_tensor = xp
    features, guide = window(50, 11, 17)
    arguments = settings(guide, "proxyclip")
    pooled = to_tensor(affinity_pool(to_array(features), to_array(guide), **arguments))
    assert_close_rel(pooled, by_hand(features, guide, **arguments), SINGLE)


def test_no_gradient():
    features, guide = (tensor.requires_grad_() for tensor in window(20, 3, 5))
    assert not affinity_pool(features, guide).requires_grad


# Empty, threads -----------------------------------------------------------------------------------------------------


@both_forms
@pytest.mark.parametrize("shape", [(0, 5), (2, 0, 5), (0, 7, 5), (7, 0), (2, 7, 0)])
def test_empty(device, to_device, form, shape):
    features, guide = torch.zeros(shape), torch.ones(*shape[:-1], 3)
    assert affinity_pool(to_device(features), to_device(guide), form=form).shape == shape


@both_forms
@pytest.mark.parametrize("patches", [301, 336])
def test_same_bits_for_any_number_of_threads(num_threads, form, patches):
    # Odd and even numbers of panels of 48.
    features, guide = (
        torch.stack(parts) for parts in zip(*(window(patches, 70, 33, seed=s) for s in (1, 2)), strict=True)
    )
    num_threads(1)
    expected = affinity_pool(features, guide, form=form)
    for threads in (2, 3, 7):
        num_threads(threads)
        for _ in range(3):
            assert torch.equal(affinity_pool(features, guide, form=form), expected)


@pytest.mark.slow
@pytest.mark.cuda
def test_offsets_beyond_32_bits():
    if not torch.cuda.is_available() or torch.cuda.get_device_properties(0).total_memory < 48 * 2**30:
        pytest.skip("needs a GPU with 48 GB")
    features, guide = window(64, 600, 6)
    many = features.cuda().expand(60000, 64, 600)
    pooled = affinity_pool(many, guide.cuda().expand(60000, 64, 6))
    assert pooled.numel() > 2**31
    assert_close_rel(pooled[-1].cpu(), by_hand(features, guide, "clip_dinoiser"), SINGLE)


def test_weights_too_small_for_float32_carry_no_nan(device, to_device):
    guide = torch.tensor([[10.0, 0.0], [1.0, 0.0], [0.5, 0.0]])  # weights of e^-200 and less beside the longest row
    features = torch.tensor([[1.0], [math.nan], [3.0]])
    options = {"form": "proxyclip", "beta": 0.0, "gamma": 20.0, "assume_normalized": True}
    pooled = affinity_pool(to_device(features), to_device(guide), **options).cpu()
    assert pooled[:2].flatten().tolist() == [1.0, 1.0]
