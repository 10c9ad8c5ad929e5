"""`dense_crf` and `permutohedral_filter`: every backend against a lattice of loops, all pairs and pydensecrf."""

import numpy as np
import pytest
import torch
from crf_inputs import (
    DOUBLE,
    SINGLE,
    Lattice,
    as_maps,
    bilateral_features,
    energies_of,
    gaussian_matrix,
    mean_field,
    normalized,
    position_features,
    potts,
    scene,
)

from ovs_kernels import dense_crf, permutohedral_filter
from ovs_kernels.testing import assert_close_rel, assert_labels_agree

TOLERANCE = {torch.float32: SINGLE, torch.float64: DOUBLE, torch.float16: 1e-3, torch.bfloat16: 8e-3}


# Worked out by hand -----------------------------------------------------------------------------------------


# With one feature the lattice is a line with a vertex at each multiple of sqrt(3) / 2, and both axes run along it.
# Points at 0 and sqrt(3) / 2 lie on vertices 0 and 1, the only ones there are: each blur is I + S / 2 with the swap S,
# both are (1 + 1/4) I + S, and the slice divides by 1 + 1/2.


def test_filter_of_one_point_by_hand(device, to_device):
    result = permutohedral_filter(to_device(torch.zeros(1, 1)), to_device(torch.tensor([[6.0, -12.0]])))
    assert_close_rel(result, torch.tensor([[5.0, -10.0]]), SINGLE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_filter_of_two_points_by_hand(device, to_device, dtype):
    features = torch.tensor([[0.0], [3.0**0.5 / 2]], dtype=dtype)
    result = permutohedral_filter(to_device(features), to_device(torch.eye(2, dtype=dtype)))
    assert_close_rel(result, torch.tensor([[5.0, 4.0], [4.0, 5.0]]) / 6, SINGLE)


def test_labels_of_noise_by_hand(device, to_device):
    image = torch.zeros(3, 4, 6)
    image[:, :, 3:] = 1.0
    foreground = 0.1 + 0.8 * image[0]
    foreground[1, 4] = 0.3
    probabilities = torch.stack((1 - foreground, foreground))
    labels = dense_crf(to_device(image), to_device(probabilities), labels=True)
    assert labels.tolist() == 4 * [[0, 0, 0, 1, 1, 1]]
    assert labels.dtype == torch.uint8


# Against loops ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_features", [1, 2, 3, 5, 8, 11])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_filter_matches_loops(device, to_device, num_features, dtype):
    generator = torch.Generator().manual_seed(num_features)
    features = 3 * torch.randn(37, num_features, generator=generator)
    values = torch.randn(37, 5, generator=generator, dtype=dtype)
    lattice = Lattice(features.double().tolist())
    for normalization in ("none", "symmetric", "before", "after"):
        expected = torch.from_numpy(normalized(lattice.matrix(), normalization) @ values.double().numpy())
        result = permutohedral_filter(to_device(features), to_device(values), normalization=normalization)
        assert result.dtype == dtype
        assert_close_rel(result, expected, TOLERANCE[dtype], message=normalization)


@pytest.mark.parametrize("num_classes", [1, 2, 7, 8, 9, 31, 32, 33, 70])
def test_filter_of_every_number_of_classes(device, to_device, num_classes):
    generator = torch.Generator().manual_seed(num_classes)
    features = 2 * torch.randn(29, 3, generator=generator)
    values = torch.randn(29, num_classes, generator=generator)
    expected = torch.from_numpy(Lattice(features.double().tolist()).matrix() @ values.double().numpy())
    assert_close_rel(permutohedral_filter(to_device(features), to_device(values)), expected, SINGLE)


def oracle(image, probabilities, iterations, normalization="symmetric", kernel=lambda f: Lattice(f).matrix()):
    """Q with the settings of `settings` below."""
    num_classes, height, width = probabilities.shape
    kernels = [
        normalized(kernel(position_features(height, width, 3.0)), normalization),
        normalized(kernel(bilateral_features(image, 20.0, 5.0)), normalization),
    ]
    weight = 0.02 if normalization == "none" else 1.0
    tables = [potts(3.0 * weight, num_classes), potts(4.0 * weight, num_classes)]
    return as_maps(mean_field(energies_of(probabilities), kernels, tables, iterations), height, width)


def settings(normalization="symmetric"):
    weight = 0.02 if normalization == "none" else 1.0
    return {
        "gaussian_compat": 3.0 * weight,
        "bilateral_compat": 4.0 * weight,
        "bilateral_sxy": 20.0,
        "normalization": normalization,
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("height", "width", "num_classes"), [(9, 14, 3), (13, 7, 9), (1, 17, 2)])
def test_mean_field_matches_loops(device, to_device, dtype, height, width, num_classes):
    image, probabilities = scene(height, width, num_classes, 2)
    probabilities = probabilities.to(dtype)
    for iterations in (0, 1, 4):
        expected = oracle(image, probabilities.double(), iterations)
        result = dense_crf(to_device(image), to_device(probabilities), iterations=iterations, **settings())
        assert result.dtype == dtype
        assert_close_rel(result, expected, TOLERANCE[dtype])


@pytest.mark.parametrize("normalization", ["none", "symmetric", "before", "after"])
def test_every_normalization_matches_loops(device, to_device, normalization):
    image, probabilities = scene(9, 14, 4, 3)
    expected = oracle(image, probabilities, 3, normalization)
    result = dense_crf(to_device(image), to_device(probabilities), iterations=3, **settings(normalization))
    assert_close_rel(result, expected, SINGLE)


def test_every_instruction_set(isa):
    image, probabilities = scene(12, 17, 21, 4)
    for dtype in (torch.float32, torch.float64):
        result = dense_crf(image, probabilities.to(dtype), iterations=3, **settings())
        assert_close_rel(result, oracle(image, probabilities.to(dtype), 3), TOLERANCE[dtype], message=isa)


def test_tables_of_penalties(device, to_device):
    image, probabilities = scene(8, 11, 4, 5)
    generator = np.random.default_rng(1)
    vector, matrix = generator.normal(size=4), generator.normal(size=(4, 4))
    kernels = [
        normalized(Lattice(position_features(8, 11, 3.0)).matrix()),
        normalized(Lattice(bilateral_features(image, 20.0, 5.0)).matrix()),
    ]
    tables = [np.diag(vector), (matrix + matrix.T) / 2]
    expected = as_maps(mean_field(energies_of(probabilities), kernels, tables, 3), 8, 11)
    for kind in (torch.from_numpy, np.ndarray.tolist):
        result = dense_crf(
            to_device(image),
            to_device(probabilities),
            iterations=3,
            gaussian_compat=kind(vector),
            bilateral_compat=kind(matrix),
            bilateral_sxy=20.0,
        )
        assert_close_rel(result, expected, SINGLE)


@pytest.mark.parametrize("compat", [4.0, [-1.0, -2.0, -3.0]])
def test_exact_gaussian_matches_sums_over_all_pairs(device, to_device, compat):
    image, probabilities = scene(19, 23, 3, 6)
    matrix = gaussian_matrix(position_features(19, 23, 1.5, 3.0))
    grid = np.array([(x, y) for y in range(19) for x in range(23)])
    far = np.abs(grid[:, None] - grid[None])
    matrix[(far[..., 0] > 8) | (far[..., 1] > 15)] = 0.0  # ceil(5 * 1.5) and ceil(5 * 3)
    table = potts(compat, 3) if isinstance(compat, float) else np.diag(compat)
    expected = as_maps(mean_field(energies_of(probabilities), [normalized(matrix)], [table], 3), 19, 23)
    result = dense_crf(
        to_device(image),
        to_device(probabilities),
        iterations=3,
        gaussian_filter="exact",
        gaussian_sxy=(1.5, 3.0),
        gaussian_compat=compat,
        bilateral_compat=None,
    )
    assert_close_rel(result, expected, SINGLE)


def test_own_features(device, to_device):
    image, probabilities = scene(7, 10, 3, 7)
    depth = torch.rand(1, 7, 10) * 4
    texture = torch.rand(6, 7, 10)
    features = [planes.double().flatten(1).t().tolist() for planes in (depth, texture)]
    kernels = [normalized(Lattice(rows).matrix()) for rows in features]
    expected = as_maps(mean_field(energies_of(probabilities), kernels, [potts(2.0, 3), potts(5.0, 3)], 4), 7, 10)
    result = dense_crf(
        to_device(image),
        to_device(probabilities),
        iterations=4,
        gaussian_compat=None,
        bilateral_compat=None,
        features=[to_device(depth), to_device(texture)],
        features_compat=[2.0, 5.0],
    )
    assert_close_rel(result, expected, SINGLE)


# Against all pairs and against pydensecrf ---------------------------------------------------------------------


def test_lattice_is_close_to_all_pairs():
    # The lattice is an approximation: after normalisation labels of a noisy scene agree but for borders.
    image, probabilities = scene(24, 32, 4, 8)
    exact = oracle(image, probabilities, 5, kernel=gaussian_matrix)
    result = dense_crf(image, probabilities, iterations=5, **settings())
    assert_labels_agree(result.argmax(0), exact.argmax(0), 0.98)
    assert float((result - exact).abs().mean()) < 0.05


@pytest.mark.parametrize(("height", "width"), [(48, 60), (37, 53)])
def test_matches_pydensecrf(device, to_device, height, width):
    dcrf = pytest.importorskip("pydensecrf.densecrf", reason="pydensecrf is not installed")
    utils = pytest.importorskip("pydensecrf.utils", reason="pydensecrf is not installed")
    num_classes = 6
    image, probabilities = scene(height, width, num_classes, 9)
    pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
    peer = dcrf.DenseCRF2D(width, height, num_classes)
    peer.setUnaryEnergy(utils.unary_from_softmax(probabilities.numpy(), clip=1e-5))
    peer.addPairwiseGaussian(sxy=3, compat=7)
    peer.addPairwiseBilateral(sxy=50, srgb=5, rgbim=pixels, compat=10)
    expected = torch.from_numpy(np.array(peer.inference(10))).reshape(num_classes, height, width)
    result = dense_crf(to_device(image), to_device(probabilities))
    assert_labels_agree(result.argmax(0), expected.argmax(0), 0.995)
    assert float((result.cpu() - expected).abs().mean()) < 2e-3


# Invariants -------------------------------------------------------------------------------------------------


def test_uniform_stays_uniform_on_a_constant_image(device, to_device):
    image, probabilities = torch.full((3, 12, 15), 0.4), torch.full((5, 12, 15), 0.2)
    result = dense_crf(to_device(image), to_device(probabilities))
    assert_close_rel(result, probabilities, SINGLE)


def test_order_of_classes_does_not_matter(device, to_device):
    image, probabilities = scene(11, 13, 5, 10)
    order = torch.tensor([3, 0, 4, 1, 2])
    result = dense_crf(to_device(image), to_device(probabilities), iterations=4)
    permuted = dense_crf(to_device(image), to_device(probabilities[order]), iterations=4)
    assert_close_rel(permuted, result[order], SINGLE)


def test_sum_over_classes_is_one(device, to_device):
    image, probabilities = scene(17, 12, 11, 11)
    result = dense_crf(to_device(image), to_device(probabilities), iterations=2)
    assert_close_rel(result.sum(0), torch.ones(17, 12), SINGLE)


def test_energies_and_probabilities_agree(device, to_device):
    image, probabilities = scene(9, 8, 3, 12)
    by_energies = dense_crf(to_device(image), to_device(-probabilities.clamp(1e-5, 1).log() + 7.0), energies=True)
    assert_close_rel(by_energies, dense_crf(to_device(image), to_device(probabilities)), 1e-4)


def test_transpose_is_the_transpose(device, to_device):
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(40, 4, generator=generator)
    eye = torch.eye(40, dtype=torch.float64)
    for normalization in ("none", "before", "symmetric"):
        forward = permutohedral_filter(to_device(features), to_device(eye), normalization=normalization)
        backward = permutohedral_filter(
            to_device(features), to_device(eye), normalization=normalization, transpose=True
        )
        assert_close_rel(backward, forward.t(), DOUBLE)
        assert not torch.allclose(forward, forward.t())


def test_gradient_of_the_filter(device, to_device):
    features = to_device(torch.randn(12, 2))
    values = to_device(torch.randn(12, 2, dtype=torch.float64)).requires_grad_()
    for normalization in ("none", "before"):
        assert torch.autograd.gradcheck(
            lambda v, n=normalization: permutohedral_filter(features, v, normalization=n), values, fast_mode=True
        )
