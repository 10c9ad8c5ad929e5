"""PnP-OVSS from maps to labels: against SciPy's filter of the enlarged maps, and the published steps one by one."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from ovs_methods.errors import UserError
from ovs_methods.methods import CrfSettings, normalized_maps, postprocess
from ovs_methods.methods.pnp_maps import blur_matrix, seed_maps, upsample_matrix
from torch.nn import functional as F

from ovs_kernels.reference import crf as reference
from ovs_kernels.testing import synthetic_scene


def saliency(classes, patches, seed=1):
    """Mostly small, as GradCAM's maps are: [K, P, P] float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(classes, patches, patches, dtype=torch.float64, generator=generator) ** 6


def taps(pixel, length, patches):
    """(patch, weight) of a pixel with aligned corners, in exact numbers."""
    place = Fraction(pixel * (patches - 1), max(length - 1, 1))
    low = int(place)
    return [(low, 1 - place + low)] + ([(low + 1, place - low)] if place > low else [])


def literal_maps(maps, size, variant, threshold, blur, background):
    """The steps at the size of the photo, class after class and pixel after pixel."""
    gaussian_filter = pytest.importorskip("scipy.ndimage").gaussian_filter
    kept = []
    for one in maps.double().numpy():
        span = one.max() - one.min()
        passed = (one - one.min()) / span >= threshold if span > 0 else np.zeros(one.shape, bool)
        kept.append(np.where(passed, one if variant == "code" else 1.0, 0.0))
    patches, wide = maps.shape[-1], np.zeros((len(kept), *size))
    for y in range(size[0]):
        for x in range(size[1]):
            for i, down in taps(y, size[0], patches):
                for j, across in taps(x, size[1], patches):
                    wide[:, y, x] += [float(down * across) * one[i, j] for one in kept]
    if background:
        wide = np.concatenate(((wide.max(0, keepdims=True) == 0).astype(float), wide))
    done = []
    for channel in wide:
        blurred = gaussian_filter(channel, sigma=blur * max(size))
        span = blurred.max() - blurred.min()
        done.append((blurred - blurred.min()) / span if channel.max() > channel.min() else np.zeros(size))
    return np.stack(done)


@pytest.mark.parametrize(("length", "sigma"), [(40, 2.5), (7, 3.0), (7, 25.0), (2, 1.0), (1, 4.0), (9, 0.2), (9, 0.0)])
def test_blur_is_that_of_scipy(length, sigma):
    filters = pytest.importorskip("scipy.ndimage")
    signals = np.random.default_rng(0).random((3, length))
    expected = np.stack(
        [filters.gaussian_filter(signal, sigma) for signal in signals]
    )  # reflect, 4 sigma: its defaults
    assert np.abs(signals @ blur_matrix(length, sigma).T - expected).max() < 1e-14


@pytest.mark.parametrize(("length", "patches"), [(40, 5), (31, 7), (5, 9), (1, 4), (6, 1), (8, 8)])
def test_enlargement_is_that_of_torch(length, patches):
    signal = torch.rand(1, 1, patches, 1, dtype=torch.float64)
    expected = F.interpolate(signal, (length, 1), mode="bilinear", align_corners=True)[0, 0].numpy()
    assert np.abs(upsample_matrix(length, patches) @ signal[0, 0].numpy() - expected).max() < 1e-14


@pytest.mark.parametrize(
    ("size", "patches", "options"),
    [
        ((33, 41), 9, {}),  # every fourth row and every fifth column lies on a patch
        ((33, 41), 9, {"variant": "code", "threshold": 0.4}),
        ((30, 18), 7, {"background": False, "blur": 0.11}),
        ((5, 7), 14, {"blur": 0.3}),  # fewer pixels than patches
        ((1, 19), 5, {"threshold": 0.3}),
        ((12, 10), 6, {"blur": 0.0}),
        ((20, 20), 3, {"blur": 0.6, "variant": "code"}),  # the filter is longer than the photo
    ],
)
def test_maps_are_those_of_the_steps_at_the_size_of_the_photo(size, patches, options):
    settings = {"variant": "paper", "threshold": 0.15, "blur": 0.05, "background": True, **options}
    maps = saliency(4, patches)
    maps[2] = 0
    expected = literal_maps(maps, size, **settings)
    assert expected.max() == 1 or size == (1, 1)
    found = normalized_maps(maps, size, **settings)
    assert found.dtype == torch.float64
    assert found.shape == expected.shape
    assert np.abs(found.numpy() - expected).max() < 1e-11
    single = normalized_maps(maps.float(), size, **settings)
    assert single.dtype == torch.float32
    assert np.abs(single.numpy() - literal_maps(maps.float(), size, **settings)).max() < 1e-4
    assert torch.equal(
        normalized_maps(maps.half(), size, **settings), normalized_maps(maps.half().float(), size, **settings)
    )


@pytest.mark.parametrize("variant", ["paper", "code"])
def test_threshold_keeps_what_reaches_it(variant):
    maps = torch.tensor([[[2.0, 3.0], [4.0, 6.0]], [[5.0, 5.0], [5.0, 5.0]]])
    kept = maps[0] if variant == "code" else torch.ones(2, 2)
    for threshold, passes in ((0.0, [1, 1, 1, 1]), (0.25, [0, 1, 1, 1]), (0.5, [0, 0, 1, 1]), (1.0, [0, 0, 0, 1])):
        seeds = seed_maps(maps, variant=variant, threshold=threshold)
        assert torch.equal(seeds[0], kept * torch.tensor(passes).reshape(2, 2))
        assert seeds[1].eq(0).all()  # constant: nobody is looked at


def literal_labels(maps, image, crf):
    """Softmax, clip, and the CRF's definition in float64."""
    shares = torch.from_numpy(maps).softmax(0).clamp(crf.clip, 1)
    q = reference.dense_crf(
        image.double(),
        shares,
        iterations=crf.iterations,
        gaussian_sxy=[crf.gaussian_sxy] * 2,
        bilateral_scales=[crf.bilateral_sxy] * 2 + [crf.bilateral_srgb] * 3,
        exact=False,
        features=[],
        compat=[torch.tensor(crf.gaussian_compat), torch.tensor(crf.bilateral_compat)],
        normalization="symmetric",
        energies=False,
        clip=1e-30,
    )
    best = q.topk(2, 0).values
    return q.argmax(0), best[0] - best[1] > 1e-4


@pytest.mark.parametrize(
    ("background", "crf"),
    [
        (True, CrfSettings()),
        (False, CrfSettings(3, 2.0, 3.0, 20.0, 13.0, 4.0)),
        (True, CrfSettings(iterations=2, clip=0.25)),  # above the least probability of five channels
        (True, CrfSettings(iterations=0)),
    ],
)
def test_labels_are_those_of_the_crf_after_the_steps(background, crf):
    size = (36, 49)
    image = (255 * synthetic_scene(*size, 1, 1)[0]).round().to(torch.uint8)
    maps = saliency(4, 6)
    steps = literal_maps(maps, size, "paper", 0.15, 0.05, background)
    expected, sure = literal_labels(steps, image, crf)
    found = postprocess(maps.float(), image, background=background, crf=crf)
    assert (found.dtype, found.shape) == (torch.int64, size)
    assert sure.float().mean() > 0.9
    assert torch.equal(found[sure], expected[sure])
    assert len(found.unique()) > 1
    if crf == CrfSettings():
        assert (found != postprocess(maps.float(), image, crf=None)).float().mean() > 0.02


def test_labels_are_those_of_pydensecrf():
    densecrf = pytest.importorskip("pydensecrf.densecrf")
    utils = pytest.importorskip("pydensecrf.utils")
    size = (48, 64)
    image = (255 * synthetic_scene(*size, 1, 2)[0]).round().to(torch.uint8)
    maps = saliency(5, 8, seed=3)
    shares = torch.from_numpy(literal_maps(maps, size, "code", 0.15, 0.05, True)).float().softmax(0).numpy()
    field = densecrf.DenseCRF2D(size[1], size[0], 6)
    field.setUnaryEnergy(utils.unary_from_softmax(shares, clip=1e-5))
    field.addPairwiseGaussian(sxy=3, compat=7)
    field.addPairwiseBilateral(sxy=50, srgb=5, rgbim=np.ascontiguousarray(image.permute(1, 2, 0).numpy()), compat=10)
    expected = np.array(field.inference(10)).reshape(6, *size).argmax(0)
    assert (postprocess(maps, image, variant="code").numpy() == expected).mean() >= 0.995


@pytest.mark.parametrize("crf", [CrfSettings(), None])
def test_without_saliency_everything_is_background(crf):
    image = torch.randint(0, 255, (3, 20, 30), dtype=torch.uint8)
    for maps in (torch.zeros(3, 5, 5), torch.full((3, 5, 5), 0.7), torch.rand(3, 1, 1)):
        for background in (True, False):
            assert postprocess(maps, image, background=background, crf=crf).eq(0).all()
    assert normalized_maps(torch.zeros(2, 5, 5), (6, 7)).eq(0).all()


def test_one_class_covers_what_it_saw():
    """Left half seen, right half not: with and without the CRF, on a photo whose edge is there."""
    maps = torch.zeros(1, 4, 4)
    maps[0, :, :2] = 1.0
    image = torch.zeros(3, 24, 32, dtype=torch.uint8)
    image[:, :, 16:] = 255
    expected = torch.zeros(24, 32, dtype=torch.int64)
    expected[:, :16] = 1
    assert torch.equal(postprocess(maps, image), expected)
    assert (postprocess(maps, image, crf=None) != expected).float().mean() < 0.2
    assert postprocess(maps, image, background=False).eq(0).all()
    one = torch.zeros(3, 1, 1, dtype=torch.uint8)
    assert postprocess(maps, one).eq(0).all()  # one pixel: every channel is constant


def test_a_wide_blur_is_not_made_of_rounding():
    maps = saliency(3, 5)
    expected = literal_maps(maps, (16, 16), "paper", 0.15, 1.0, True)
    assert np.abs(normalized_maps(maps, (16, 16), blur=1.0).numpy() - expected).max() < 1e-9
    assert np.abs(normalized_maps(maps.float(), (16, 16), blur=1.0).numpy() - expected).max() < 1e-3
    upper = torch.zeros(1, 4, 4)
    upper[:, :2] = 1.0
    flat = normalized_maps(upper, (2, 64), blur=1.0)  # 64 pixels of blur over two rows: what is left is rounding
    assert flat.eq(0).all()


GOOD = {"maps": torch.rand(2, 4, 4), "image": torch.zeros(3, 8, 9, dtype=torch.uint8)}


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"maps": torch.rand(4, 4)}, "maps: expected a float tensor [K, h, w], not empty, got float32 [4, 4]"),
        ({"maps": torch.rand(0, 4, 4)}, "maps: expected a float tensor [K, h, w], not empty, got float32 [0, 4, 4]"),
        ({"maps": torch.ones(2, 4, 4, dtype=torch.int64)}, "maps: expected a float tensor [K, h, w], not empty, got"),
        ({"maps": None}, "maps: expected a float tensor [K, h, w], not empty, got NoneType"),
        ({"maps": torch.full((1, 2, 2), -1.0)}, "maps: expected finite numbers, not negative, got -1.0"),
        ({"maps": torch.full((1, 2, 2), torch.nan)}, "maps: expected finite numbers, not negative, got nan"),
        ({"maps": torch.full((1, 2, 2), torch.inf)}, "maps: expected finite numbers, not negative, got inf"),
        ({"image": torch.zeros(3, 8, 9)}, "image: expected a uint8 tensor [3, H, W], got float32 [3, 8, 9]"),
        ({"image": torch.zeros(8, 9, 3, dtype=torch.uint8)}, "image: expected a uint8 tensor [3, H, W], got uint8"),
        ({"image": torch.zeros(3, 0, 9, dtype=torch.uint8)}, "image: expected at least one row and column, got uint8"),
        ({"variant": "papers"}, "variant: expected paper or code, got papers"),
        ({"threshold": 1.5}, "threshold: expected a number from 0 to 1, got 1.5"),
        ({"threshold": float("nan")}, "threshold: expected a number from 0 to 1, got nan"),
        ({"blur": -0.1}, "blur: expected a share of the longer side, from 0 to 1, got -0.1"),
        ({"crf": CrfSettings(iterations=-1)}, "dense_crf: iterations: expected"),
        ({"crf": CrfSettings(bilateral_srgb=0.0)}, "dense_crf: bilateral_srgb: expected"),
        ({"crf": CrfSettings(clip=0.0)}, "dense_crf: clip: expected"),
    ],
)
def test_what_cannot_be_used_is_one_line(changed, text):
    with pytest.raises(UserError) as caught:
        postprocess(**{**GOOD, **changed})
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_size_of_the_maps():
    with pytest.raises(UserError, match="size: expected at least one row and column, got 0 x 4"):
        normalized_maps(GOOD["maps"], (0, 4))
