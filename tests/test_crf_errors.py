"""`dense_crf` and `permutohedral_filter`: bad input, text by text, and what is odd but legal."""

import re

import numpy as np
import pytest
import torch
from crf_inputs import (
    DOUBLE,
    SINGLE,
    Lattice,
    as_maps,
    energies_of,
    mean_field,
    normalized,
    position_features,
    potts,
    scene,
    softmax,
)

from ovs_kernels import dense_crf, permutohedral_filter
from ovs_kernels.testing import assert_close_rel

IMAGE, PROBABILITIES = torch.rand(3, 4, 5), torch.full((2, 4, 5), 0.5)

VALUE_ERRORS = [
    ({"image": torch.rand(3, 4, 6)}, "image: expected [3, H, W] with H=4, W=5 (those of probabilities), got [3, 4, 6]"),
    ({"image": torch.rand(4, 5, 3)}, "image: expected [3, H, W] with H=4, W=5 (those of probabilities), got [4, 5, 3]"),
    ({"probabilities": torch.rand(4, 5)}, "probabilities: expected [C, H, W] or [B, C, H, W], got [4, 5]"),
    ({"iterations": -1}, "iterations: expected an integer in [0, 2147483647], got -1"),
    ({"gaussian_sxy": 0.0}, "gaussian_sxy: expected a finite number > 0, got 0.0"),
    ({"gaussian_sxy": (3.0, -1.0)}, "gaussian_sxy: expected a finite number > 0, got -1.0"),
    ({"gaussian_sxy": (3.0, 1.0, 2.0)}, "gaussian_sxy: expected a number or 2 numbers, got 3"),
    ({"bilateral_sxy": float("nan")}, "bilateral_sxy: expected a finite number > 0, got nan"),
    ({"bilateral_srgb": 0.0}, "bilateral_srgb: expected a finite number > 0, got 0.0"),
    ({"bilateral_srgb": (5.0, -5.0, 5.0)}, "bilateral_srgb: expected a finite number > 0, got -5.0"),
    ({"bilateral_srgb": (5.0, 5.0)}, "bilateral_srgb: expected a number or 3 numbers, got 2"),
    ({"gaussian_filter": "fir"}, "gaussian_filter: expected 'lattice' or 'exact', got 'fir'"),
    (
        {"gaussian_compat": [1.0, 2.0, 3.0]},
        "gaussian_compat: expected a number, [C] or [C, C] with C=2 (that of probabilities), got [3]",
    ),
    ({"bilateral_compat": float("inf")}, "bilateral_compat: expected finite numbers, got inf"),
    ({"normalization": "both"}, "normalization: expected 'none' or 'symmetric' or 'before' or 'after', got 'both'"),
    ({"clip": 0.0}, "clip: expected a number in [1.18e-38, 1], got 0.0"),
    ({"clip": 1.5}, "clip: expected a number in [1.18e-38, 1], got 1.5"),
    ({"clip": 1e-45}, "clip: expected a number in [1.18e-38, 1], got 1e-45"),
    ({"gaussian_compat": 1e39}, "gaussian_compat: expected numbers within the range of float32, got 1e+39"),
    ({"features": [torch.rand(1, 4, 5)]}, "features_compat: expected one for each of features, 1, got 0"),
    (
        {"features": [torch.rand(1, 5, 5)], "features_compat": [1.0]},
        "features[0]: expected [F, H, W] with H=4, W=5 (those of probabilities), got [1, 5, 5]",
    ),
    (
        {"features": [torch.rand(17, 4, 5)], "features_compat": [1.0]},
        "features[0]: expected [F, H, W] with 1 <= F <= 16, got [17, 4, 5]",
    ),
    (
        {"gaussian_sxy": 1e-4},
        "gaussian_sxy: expected a standard deviation of at least 0.000304 for this image and 16-bit lattice, got "
        "0.0001",
    ),
    (
        {"bilateral_srgb": 0.01},
        "bilateral_srgb: expected a standard deviation of at least 0.0349 for this image and 16-bit lattice, got 0.01",
    ),
    (  # 39,999 steps of sqrt(3), and 32,758 places for them
        {"image": torch.rand(3, 1, 40000), "probabilities": torch.rand(2, 1, 40000), "gaussian_sxy": 1.0},
        "gaussian_sxy: expected a standard deviation of at least 2.12 for this image and 16-bit lattice, got 1.0",
    ),
    (
        {"probabilities": torch.rand(0, 4, 5), "labels": True},
        "probabilities: expected at least one class for labels=True, got C=0",
    ),
]

TYPE_ERRORS = [
    ({"image": IMAGE.int()}, "image: expected float32 or float64 or float16 or bfloat16 or uint8, got int32"),
    (
        {"probabilities": PROBABILITIES.long()},
        "probabilities: expected float32 or float64 or float16 or bfloat16, got int64",
    ),
    ({"iterations": 2.0}, "iterations: expected an integer, got float"),
    ({"gaussian_sxy": "wide"}, "gaussian_sxy: expected a number or 2 numbers, got str"),
    ({"bilateral_srgb": None}, "bilateral_srgb: expected a number or 3 numbers, got None"),
    (
        {"gaussian_compat": [[1.0], [2.0, 3.0]]},
        "gaussian_compat: expected numbers, or rows of them of one length, got list",
    ),
    (
        {"bilateral_compat": True},
        "bilateral_compat: expected a number, or a list or an array of them, got bool",
    ),
    ({"labels": 1}, "labels: expected True or False, got int"),
    ({"features": IMAGE, "features_compat": [1.0]}, "features: expected a list of [F, H, W] arrays, got torch.Tensor"),
    (
        {"features": [IMAGE], "features_compat": 1.0},
        "features_compat: expected a list, one for each of features, got float",
    ),
]


@pytest.mark.parametrize(("change", "message"), VALUE_ERRORS)
def test_values_of_dense_crf(change, message):
    arguments = {"image": IMAGE, "probabilities": PROBABILITIES, **change}
    with pytest.raises(ValueError) as error:
        dense_crf(**arguments)
    assert str(error.value) == f"dense_crf: {message}"


@pytest.mark.parametrize(("change", "message"), TYPE_ERRORS)
def test_types_of_dense_crf(change, message):
    arguments = {"image": IMAGE, "probabilities": PROBABILITIES, **change}
    with pytest.raises(TypeError) as error:
        dense_crf(**arguments)
    assert str(error.value) == f"dense_crf: {message}"


@pytest.mark.parametrize(
    ("features", "values", "message"),
    [
        (torch.rand(4, 2), torch.rand(5, 2), "features: expected [N, D] with N=5 (those of values), got [4, 2]"),
        (torch.rand(4, 2), torch.rand(4), "values: expected [N, C], got [4]"),
        (torch.rand(4, 0), torch.rand(4, 1), "features: expected [N, D] with 1 <= D <= 16, got [4, 0]"),
        (torch.rand(4, 17), torch.rand(4, 1), "features: expected [N, D] with 1 <= D <= 16, got [4, 17]"),
    ],
)
def test_values_of_permutohedral_filter(features, values, message):
    with pytest.raises(ValueError) as error:
        permutohedral_filter(features, values)
    assert str(error.value) == f"permutohedral_filter: {message}"


@pytest.mark.parametrize(
    ("limit", "error", "message"),
    [
        (0, ValueError, "expected an integer >= 1, got 0"),
        (-5, ValueError, "expected an integer >= 1, got -5"),
        (1.5e9, TypeError, "expected an integer or None, got float"),
    ],
)
def test_memory_limit_of_permutohedral_filter(limit, error, message):
    with pytest.raises(error) as raised:
        permutohedral_filter(torch.rand(4, 2), torch.rand(4, 2), memory_limit=limit)
    assert str(raised.value) == f"permutohedral_filter: memory_limit: {message}"


# Bad input is noticed before a kernel runs, wherever the tensors are.
@pytest.mark.parametrize(
    ("change", "argument"),
    [
        ({"probabilities": torch.full((2, 5, 4), 0.5)}, "image"),
        ({"iterations": -1}, "iterations"),
        ({"gaussian_sxy": 0.0}, "gaussian_sxy"),
        ({"bilateral_srgb": 0.0}, "bilateral_srgb"),
        ({"gaussian_sxy": 1e-4}, "gaussian_sxy"),
        ({"bilateral_sxy": 1e-4}, "bilateral_sxy"),
        ({"gaussian_compat": [1.0, 2.0, 3.0]}, "gaussian_compat"),
    ],
)
def test_errors_on_every_device(device, to_device, change, argument):
    arguments = {"image": IMAGE, "probabilities": PROBABILITIES, **change}
    for name in ("image", "probabilities"):
        arguments[name] = to_device(arguments[name])
    with pytest.raises(ValueError) as error:
        dense_crf(**arguments)
    assert str(error.value).startswith(f"dense_crf: {argument}: expected ")
    assert "\n" not in str(error.value)


# Odd but legal ----------------------------------------------------------------------------------------------


def test_no_iterations_is_the_softmax(device, to_device):
    image, probabilities = scene(5, 7, 4, 1)
    probabilities = 0.5 * probabilities  # need not sum to one
    expected = as_maps(softmax(-energies_of(probabilities)), 5, 7)
    assert_close_rel(dense_crf(to_device(image), to_device(probabilities), iterations=0), expected, SINGLE)


def test_no_terms_is_the_softmax(device, to_device):
    image, probabilities = scene(5, 7, 4, 1)
    expected = as_maps(softmax(-energies_of(probabilities)), 5, 7)
    result = dense_crf(to_device(image), to_device(probabilities), gaussian_compat=None, bilateral_compat=None)
    assert_close_rel(result, expected, SINGLE)


def test_one_class_is_certain(device, to_device):
    result = dense_crf(to_device(IMAGE), to_device(torch.rand(1, 4, 5)))
    assert torch.equal(result.cpu(), torch.ones(1, 4, 5))
    assert dense_crf(to_device(IMAGE), to_device(torch.rand(1, 4, 5)), labels=True).sum() == 0


@pytest.mark.parametrize("shape", [(0, 4, 5), (2, 0, 5), (2, 4, 0), (0, 0, 0)])
def test_nothing_to_do(device, to_device, shape):
    result = dense_crf(to_device(torch.rand(3, *shape[1:])), to_device(torch.rand(shape)))
    assert result.shape == shape


def test_empty_batch(device, to_device):
    result = dense_crf(to_device(torch.rand(0, 3, 4, 5)), to_device(torch.rand(0, 2, 4, 5)), labels=True)
    assert result.shape == (0, 4, 5)
    assert result.dtype == torch.uint8


@pytest.mark.parametrize("shape", [(0, 3), (4, 0)])
def test_filter_of_nothing(device, to_device, shape):
    assert permutohedral_filter(to_device(torch.rand(shape[0], 2)), to_device(torch.rand(shape))).shape == shape


def test_ties_go_to_the_smallest_index(device, to_device):
    labels = dense_crf(to_device(torch.full((3, 4, 5), 0.3)), to_device(torch.full((6, 4, 5), 0.1)), labels=True)
    assert labels.sum() == 0


def test_more_than_255_classes(device, to_device):
    probabilities = torch.full((300, 2, 3), 1e-3)
    probabilities[290] = 0.9
    labels = dense_crf(to_device(torch.zeros(3, 2, 3)), to_device(probabilities), iterations=1, labels=True)
    assert labels.dtype == torch.int32
    assert (labels == 290).all()


def test_nan_probabilities_count_as_clip(device, to_device):
    image, probabilities = scene(6, 9, 3, 2)
    probabilities[1, 2, 3] = float("nan")
    probabilities[:, 4, 5] = float("nan")
    replaced = probabilities.nan_to_num(0.0)
    result = dense_crf(to_device(image), to_device(probabilities), iterations=2)
    assert torch.equal(result, dense_crf(to_device(image), to_device(replaced), iterations=2))
    start = dense_crf(to_device(image), to_device(probabilities), iterations=0)
    assert_close_rel(start[:, 4, 5], torch.full((3,), 1 / 3), SINGLE)


def test_energies_that_are_not_finite(device, to_device):
    energies = torch.zeros(3, 2, 2)
    energies[0, 0, 0] = float("nan")
    energies[1, 0, 1] = float("inf")
    energies[2, 1, 0] = -float("inf")
    energies[:, 1, 1] = float("nan")
    result = dense_crf(to_device(torch.zeros(3, 2, 2)), to_device(energies), energies=True, iterations=0)
    expected = [[[0.0, 0.5], [0.0, 1 / 3]], [[0.5, 0.0], [0.0, 1 / 3]], [[0.5, 0.5], [1.0, 1 / 3]]]
    assert_close_rel(result, torch.tensor(expected), SINGLE)


def test_pixel_without_a_colour_is_alone(device, to_device):
    image, probabilities = scene(6, 8, 3, 3)
    image = image.double() / 255
    image[1, 2, 5] = float("nan")
    image[0, 3, 1] = float("inf")
    options = {"iterations": 3, "gaussian_compat": None}
    result = dense_crf(to_device(image), to_device(probabilities.double()), **options)
    start = dense_crf(to_device(image), to_device(probabilities.double()), iterations=0)
    for y, x in ((2, 5), (3, 1)):
        assert_close_rel(result[:, y, x], start[:, y, x], DOUBLE)
    # Nor does it reach anybody: another distribution there changes nothing elsewhere.
    probabilities[:, 2, 5] = torch.tensor([0.0, 0.0, 1.0])
    other = dense_crf(to_device(image), to_device(probabilities.double()), **options)
    differs = (other != result).any(0)
    assert differs[2, 5]
    assert differs.sum() == 1


def test_image_up_to_the_end_of_the_keys(device, to_device):
    # The smallest standard deviation that is not refused: corners lie at the last coordinates that there are.
    image, probabilities = scene(4, 5, 3, 2)
    smallest = (4 * 3**0.5 + 3) / 32758  # coordinate 0 of the last pixel: 4 steps of sqrt(3) and 3 of 1
    options = {"bilateral_compat": None, "iterations": 2, "gaussian_compat": 2.0}
    with pytest.raises(ValueError, match=r"gaussian_sxy: expected a standard deviation of at least"):
        dense_crf(to_device(image), to_device(probabilities), gaussian_sxy=0.999 * smallest, **options)
    result = dense_crf(to_device(image), to_device(probabilities), gaussian_sxy=1.001 * smallest, **options)
    lattice = Lattice(position_features(4, 5, 1.001 * smallest))
    rows = mean_field(energies_of(probabilities), [normalized(lattice.matrix())], [potts(2.0, 3)], 2)
    assert_close_rel(result, as_maps(rows, 4, 5), SINGLE)


@pytest.mark.parametrize(
    ("small", "refusals"),
    [
        ({"gaussian_sxy": 1e-4}, 1),
        ({"gaussian_sxy": (1.0, 1e-5)}, 1),
        ({"bilateral_sxy": 1e-3, "bilateral_srgb": 1.0}, 1),  # the colours take their share
        ({"bilateral_sxy": 50.0, "bilateral_srgb": 0.01}, 1),
        ({"bilateral_sxy": 1e-9, "bilateral_srgb": 1e-9}, 2),
    ],
)
def test_the_standard_deviation_that_is_asked_for_is_taken(small, refusals):
    image, probabilities, options = torch.rand(3, 30, 41), torch.full((2, 30, 41), 0.5), dict(small)
    for _ in range(refusals):
        with pytest.raises(ValueError, match="expected a standard deviation of at least") as error:
            dense_crf(image, probabilities, iterations=0, **options)
        name, least = re.search(r"^dense_crf: (\w+): .* at least (\S+) for", str(error.value)).groups()
        given = options[name] if isinstance(options[name], tuple) else (options[name],)
        options[name] = tuple(max(value, float(least)) for value in given) if len(given) > 1 else float(least)
    dense_crf(image, probabilities, iterations=0, **options)


def test_point_beyond_the_lattice_is_alone(device, to_device):
    features = torch.tensor([[0.0, 0.0], [1e9, 0.0], [float("nan"), 0.0], [0.0, 0.0]])
    values = torch.tensor([[1.0], [100.0], [float("nan")], [2.0]])
    result = permutohedral_filter(to_device(features), to_device(values), normalization="after")
    assert_close_rel(result, torch.tensor([[1.5], [0.0], [0.0], [1.5]]), SINGLE)


# Layout -----------------------------------------------------------------------------------------------------


def test_layouts(device, to_device):
    image, probabilities = scene(8, 10, 3, 4)
    expected = dense_crf(to_device(image), to_device(probabilities), iterations=2)
    wide = torch.zeros(3, 8, 20)
    wide[:, :, ::2] = probabilities
    class_last = probabilities.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    hwc = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    for pixels, scores in ((image, wide[:, :, ::2]), (hwc, class_last)):
        result = dense_crf(to_device(pixels), to_device(scores), iterations=2)
        assert torch.equal(result, expected)
        assert result.is_contiguous()


def test_bytes_and_floats_agree(device, to_device):
    image, probabilities = scene(8, 10, 3, 4)
    expected = dense_crf(to_device(image), to_device(probabilities), iterations=2)
    floats = dense_crf(to_device(image.double() / 255), to_device(probabilities), iterations=2)
    assert_close_rel(floats, expected, 1e-3)


def test_batch_is_image_by_image(device, to_device):
    scenes = [scene(7, 9, 3, seed) for seed in (5, 6)]
    images, maps = torch.stack([s[0] for s in scenes]), torch.stack([s[1] for s in scenes])
    depth = torch.rand(2, 1, 7, 9)
    options = {"iterations": 2, "features_compat": [3.0]}
    for labels in (False, True):
        together = dense_crf(to_device(images), to_device(maps), features=[to_device(depth)], labels=labels, **options)
        for index in range(2):
            alone = dense_crf(
                to_device(images[index]),
                to_device(maps[index]),
                features=[to_device(depth[index])],
                labels=labels,
                **options,
            )
            assert torch.equal(together[index], alone)


def test_labels_are_the_argmax(device, to_device):
    image, probabilities = scene(12, 13, 7, 7)
    q = dense_crf(to_device(image), to_device(probabilities), iterations=2)
    labels = dense_crf(to_device(image), to_device(probabilities), iterations=2, labels=True)
    assert torch.equal(labels.long(), q.argmax(0))


def test_array_kinds(xp):
    there, back = xp
    image, probabilities = scene(6, 7, 3, 8)
    depth = torch.rand(2, 6, 7)
    expected = dense_crf(image, probabilities, iterations=1, features=[depth], features_compat=[1.0])
    result = dense_crf(
        there(image),
        there(probabilities),
        iterations=1,
        gaussian_compat=np.float32(7.0),
        features=[there(depth)],
        features_compat=[np.float64(1.0)],
    )
    assert_close_rel(back(result), expected, SINGLE)


def test_any_number_of_threads(num_threads):
    image, probabilities = scene(40, 50, 9, 9)
    results = []
    for count in (1, 2, 5):
        num_threads(count)
        results.append(dense_crf(image, probabilities, iterations=3))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
