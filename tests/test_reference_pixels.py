"""The definition itself: numbers worked out by hand, dense matrices, invariants of the operator."""

import math

import numpy as np
import oracles
import pytest
import torch

from ovs_kernels.reference import pixels as reference
from ovs_kernels.testing import assert_close_rel

SQRT2 = math.sqrt(2)


def propagate(scores, guide, *, lab=False, **options):
    """One picture, no batch axis: scores [C, H, W], guide [F, H, W] -> result without the batch axis."""
    settings = {"window": 3, "tau": 0.01, "alpha": 0.5, "mode": "exact", "max_iter": None, "tol": 1e-13}
    settings |= {"groups": None, "num_groups": len(scores), "labels": False} | options
    result = reference.lp_pixels(scores.double()[None], guide.double()[None], lab=lab, **settings)
    return tuple(part[0] for part in result)


def tensor(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def random_case(height, width, num_classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(num_classes, height, width, generator=generator, dtype=torch.float64)
    # Colours close enough for links of very different strength, from nearly 1 to nearly 0.
    image = 0.5 + 0.06 * torch.randn(3, height, width, generator=generator, dtype=torch.float64)
    return scores, image.clamp(0, 1)


# Worked out by hand -----------------------------------------------------------------------------------------


def test_two_pixels():
    # W = [[0, w], [w, 0]] normalises to [[0, 1], [1, 0]] for every w, so with alpha = 1/2
    # L = [[1, -1/2], [-1/2, 1]], inverse 4/3 [[1, 1/2], [1/2, 1]]: (3, 0) -> (4, 2).
    scores = tensor([[3.0, 0.0]])
    for distance in (0.0, 0.01, 0.5):
        x, _, _ = propagate(scores, tensor([[0.0, distance]]))
        torch.testing.assert_close(x, tensor([[4.0, 2.0]]), rtol=1e-12, atol=1e-12)


def test_two_pixels_step_by_step():
    # r = p = (3, 0), rho = 9, q = L p = (3, -3/2), <p, q> = 9, a = 1: x = (3, 0), r = (0, 3/2), |r| = |y|/2.
    # b = (9/4)/9 = 1/4, p = (3/4, 3/2), q = (0, 9/8), a = (9/4)/(27/16) = 4/3: x = (4, 2), r = 0.
    scores, guide = tensor([[3.0, 0.0]]), tensor([[0.0, 0.0]])
    first = propagate(scores, guide, mode="official", max_iter=1)
    torch.testing.assert_close(first[0], tensor([[3.0, 0.0]]))
    assert first[1].tolist() == [1]
    assert first[2].tolist() == [0.5]
    second = propagate(scores, guide, mode="official", max_iter=10)
    torch.testing.assert_close(second[0], tensor([[4.0, 2.0]]))
    assert second[1].tolist() == [2]
    assert second[2].item() < 1e-15


def test_path_of_three_pixels():
    # A constant 1x3 image with window 3 is the path p0 - p1 - p2, deg = (1, 2, 1). With u = D^-1/2 x it is
    # (D - W/2) u = D^1/2 y; y = (1, 0, 0) gives u1 = 1/3, u0 = 7/6, u2 = 1/6: x = (7/6, sqrt(2)/3, 1/6).
    x, _, _ = propagate(tensor([[1.0, 0.0, 0.0]]), tensor([[0.3, 0.3, 0.3]]))
    torch.testing.assert_close(x, tensor([[7 / 6, SQRT2 / 3, 1 / 6]]), rtol=1e-12, atol=1e-12)


def test_triangle_with_unequal_weights():
    # z = tau (0, ln 2, 0): w01 = w12 = 1/2, w02 = 1, deg = (3/2, 1, 3/2). y = (0, 1, 0): by symmetry
    # u0 = u2 = u1/4 and u1 - u0/2 = 1, so u = (2/7, 8/7, 2/7), x = (sqrt(3/2) 2/7, 8/7, sqrt(3/2) 2/7).
    guide = 0.01 * math.log(2) * tensor([[0.0, 1.0, 0.0]])
    x, _, _ = propagate(tensor([[0.0, 1.0, 0.0]]), guide, window=5)
    side = math.sqrt(1.5) * 2 / 7
    torch.testing.assert_close(x, tensor([[side, 8 / 7, side]]), rtol=1e-12, atol=1e-12)


def test_four_equal_pixels():
    # Complete graph: Shat = (11^T - I)/3. alpha = 3/4: L = 5/4 I - 1/4 11^T, inverse 4/5 (I + 11^T):
    # y = (1, 2, 3, 4) -> 4/5 (y + 10). Two eigenvalues, so conjugate gradients are done after two steps.
    scores = tensor([[1.0, 2.0], [3.0, 4.0]])
    guide = torch.full((3, 2, 2), 0.7)
    for mode in ("official", "exact"):
        x, steps, _ = propagate(scores, guide, alpha=0.75, mode=mode, lab=True, tol=1e-10)
        torch.testing.assert_close(x, tensor([[8.8, 9.6], [10.4, 11.2]]), rtol=1e-12, atol=1e-12)
        assert steps.tolist() == [2]


def test_black_and_white_halves_decouple():
    # Lab distance 1 at tau = 0.01 is e^-100 = 4e-44, below the smallest normal float32: no link, two pairs.
    image = torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(3, 1, 4)
    x, _, _ = propagate(tensor([[3.0, 0.0, 0.0, 3.0]]), image, lab=True)
    torch.testing.assert_close(x, tensor([[4.0, 2.0, 2.0, 4.0]]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("outlier", [1.0, math.nan, math.inf, -math.inf])
def test_isolated_pixel_keeps_its_score(outlier):
    # The middle pixel has no link; the outer two are a pair: (3, 0) -> (4, 2).
    x, _, _ = propagate(tensor([[3.0, 5.0, 0.0]]), tensor([[0.0, outlier, 0.0]]), window=5)
    torch.testing.assert_close(x, tensor([[4.0, 5.0, 2.0]]), rtol=1e-12, atol=1e-12)
    # With window 3 nobody has a link.
    x, _, _ = propagate(tensor([[3.0, 5.0, 0.0]]), tensor([[0.0, outlier, 0.0]]), window=3)
    torch.testing.assert_close(x, tensor([[3.0, 5.0, 0.0]]), rtol=1e-12, atol=1e-12)


def test_weak_links_count_fully_until_they_underflow():
    # e^-80 is tiny and normal: degree normalisation makes it a full link. e^-90 is zero by definition.
    scores = tensor([[3.0, 0.0]])
    linked, _, _ = propagate(scores, tensor([[0.0, 0.80]]))
    torch.testing.assert_close(linked, tensor([[4.0, 2.0]]), rtol=1e-12, atol=1e-12)
    cut, _, _ = propagate(scores, tensor([[0.0, 0.90]]))
    torch.testing.assert_close(cut, scores)


def test_single_pixel_and_window_of_one():
    scores, image = random_case(4, 5)
    x, steps, residuals = propagate(scores, image, window=1, lab=True)
    torch.testing.assert_close(x, scores, rtol=1e-14, atol=0)
    assert steps.tolist() == [1, 1, 1]
    assert residuals.tolist() == [0, 0, 0]
    x, _, _ = propagate(scores[:, :1, :1], image[:, :1, :1], window=13, lab=True)
    torch.testing.assert_close(x, scores[:, :1, :1], rtol=1e-14, atol=0)


def test_groups_and_labels_by_hand():
    # window = 1: X = Y, so groups and labels can be read off the scores.
    nan, inf = math.nan, math.inf
    scores = tensor([[1.0, 5.0, 2.0]], [[4.0, 5.0, 1.0]], [[nan, 0.0, 0.0]], [[4.0, 0.0, -3.0]])
    guide = torch.zeros(1, 1, 3)
    # Class 2 holds a NaN, so it is NaN everywhere; group 1 has no class; ties go to the smaller index.
    groups = torch.tensor([0, 2, 2, 3])
    merged, steps, residuals = propagate(scores, guide, window=1, groups=groups, num_groups=4)
    expected = tensor([[1.0, 5.0, 2.0]], [[-inf] * 3], [[nan] * 3], [[4.0, 0.0, -3.0]])
    torch.testing.assert_close(merged, expected, equal_nan=True)
    assert steps.tolist() == [1, 1, 0, 1]
    assert residuals[2].isnan()
    labels, _, _ = propagate(scores, guide, window=1, groups=groups, num_groups=4, labels=True)
    assert labels.dtype == torch.uint8
    assert labels.tolist() == [[2, 0, 0]]
    plain, _, _ = propagate(scores, guide, window=1, labels=True)
    assert plain.tolist() == [[1, 0, 0]]
    hopeless, _, _ = propagate(scores[[2, 2]], guide, window=1, labels=True)
    assert hopeless.tolist() == [[0, 0, 0]]


@pytest.mark.parametrize(("num_classes", "dtype"), [(255, torch.uint8), (256, torch.int32)])
def test_label_dtype(num_classes, dtype):
    scores = torch.zeros(num_classes, 1, 2)
    scores[-1] = 1.0
    labels, _, _ = propagate(scores, torch.zeros(1, 1, 2), labels=True)
    assert labels.dtype == dtype
    assert labels.tolist() == [[num_classes - 1] * 2]


# Colour -----------------------------------------------------------------------------------------------------


def test_lab_of_known_colours():
    # Published CIELAB values (D65) of sRGB primaries, white, black and mid grey.
    colours = tensor([1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1], [0, 0, 0], [0.5, 0.5, 0.5])
    lab = tensor(
        [53.24, 80.09, 67.20],
        [87.73, -86.18, 83.18],
        [32.30, 79.19, -107.86],
        [100, 0, 0],
        [0, 0, 0],
        [53.39, 0, 0],
    )
    features = reference.pixel_features(colours.T[None, :, :, None], "lab")[0, :, :, 0].T
    assert (features * torch.tensor([100, 128, 128]) - lab).abs().max() < 0.02


def test_lab_agrees_with_scikit_image():
    _, image = random_case(9, 11)
    image[:, 0] = torch.linspace(0, 1, 11)  # greys: both branches of both curves
    image[:, 1] = torch.linspace(0, 0.05, 11)
    image[0, 2:5] = torch.rand(3, 11)
    expected = oracles.lab_features(image)
    np.testing.assert_allclose(reference.pixel_features(image[None], "lab")[0], expected, atol=1e-12)
    single = reference.pixel_features(image[None].float(), "lab")
    assert single.dtype == torch.float32
    np.testing.assert_allclose(single[0], expected, atol=2e-6)


def test_features_pass_unchanged_without_color():
    features = torch.randn(2, 5, 3, 4)
    assert torch.equal(reference.pixel_features(features, None), features)


# Dense oracles ----------------------------------------------------------------------------------------------

SHAPES = [(1, 1), (1, 9), (8, 1), (4, 4), (7, 13), (16, 15)]


@pytest.mark.parametrize("window", [1, 3, 5, 13, 31])
@pytest.mark.parametrize(("height", "width"), SHAPES)
@pytest.mark.parametrize("mode", ["official", "exact"])
def test_matches_dense_matrices(height, width, window, mode):
    scores, image = random_case(height, width)
    expected, steps = oracles.propagate(
        scores, oracles.lab_features(image), window=window, tau=0.01, alpha=0.95, mode=mode
    )
    tol = 1e-6 if mode == "official" else 1e-12
    x, iterations, _ = propagate(scores, image, window=window, alpha=0.95, mode=mode, tol=tol, lab=True)
    # float64 twice, in a different order of summation: far below 1e-10 is what was seen.
    assert_close_rel(x, expected, 1e-9)
    if steps is not None:
        assert iterations.tolist() == steps.tolist()


@pytest.mark.parametrize("num_features", [1, 2, 4])
def test_matches_dense_matrices_with_features(num_features):
    scores, _ = random_case(9, 10)
    features = 0.1 * torch.randn(num_features, 9, 10, dtype=torch.float64)
    for mode in ("official", "exact"):
        expected, _ = oracles.propagate(scores, features.numpy(), window=7, tau=0.05, alpha=0.8, mode=mode)
        tol = 1e-6 if mode == "official" else 1e-12
        x, _, _ = propagate(scores, features, window=7, tau=0.05, alpha=0.8, mode=mode, tol=tol)
        assert_close_rel(x, expected, 1e-9)


@pytest.mark.parametrize(("mode", "max_iter"), [("official", 6), ("exact", 6), ("exact", None)])
def test_residuals_are_those_of_the_dense_matrix(mode, max_iter):
    scores, image = random_case(9, 10)
    x, _, residuals = propagate(scores, image, window=5, alpha=0.9, mode=mode, max_iter=max_iter, tol=1e-4, lab=True)
    matrix = oracles.system_matrix(oracles.dense_weights(oracles.lab_features(image), 5, 0.01), 0.9)
    y = scores.flatten(1).numpy()
    expected = np.linalg.norm(y - x.flatten(1).numpy() @ matrix, axis=1) / np.linalg.norm(y, axis=1)
    np.testing.assert_allclose(residuals, expected, rtol=1e-6)
    assert (residuals > 1e-4).all() == (max_iter is not None)


def test_classes_freeze_one_by_one():
    scores, image = random_case(8, 9, num_classes=4)
    weights = oracles.dense_weights(oracles.lab_features(image), 5, 0.01)
    scores[1] = torch.from_numpy(np.sqrt(oracles.degrees(weights))).reshape(8, 9)  # an eigenvector: one step
    scores[2] = 0.0  # never starts
    settings = {"window": 5, "tau": 0.01, "alpha": 0.9, "mode": "official", "max_iter": 40, "tol": 1e-3}
    expected, steps = oracles.propagate(scores, oracles.lab_features(image), **settings)
    x, iterations, residuals = propagate(scores, image, lab=True, **settings)
    assert_close_rel(x, expected, 1e-9)
    assert iterations.tolist() == steps.tolist()
    assert iterations[1] == 1
    assert iterations[2] == 0
    assert residuals[2] == 0
    assert 1 < iterations[0] < 40
    assert (residuals <= 1e-3).all()


def test_max_iter_none():
    scores, image = random_case(20, 20)
    _, steps, _ = propagate(scores, image, alpha=0.95, mode="official", tol=1e-6, lab=True, window=13)
    assert steps.tolist() == [10, 10, 10]
    _, steps, residuals = propagate(scores, image, alpha=0.95, tol=1e-6, lab=True, window=13)
    assert (residuals <= 1.01e-6).all()
    # 05.6: 45 Chebyshev steps reach 1e-6 at alpha = 0.95. Conjugate gradients are as good in the energy norm,
    # and may need a few more in the norm of the residual.
    assert ((steps > 10) & (steps < 60)).all()


# Invariants (spec 6.7 and 17.2) -----------------------------------------------------------------------------


@pytest.fixture
def graph():
    _, image = random_case(11, 14, seed=3)
    return reference.PixelGraph(reference.pixel_features(image[None], "lab"), 7, 0.02)


def test_weights_are_symmetric_without_diagonal(graph):
    u, v = torch.randn(2, 1, 1, 11, 14, dtype=torch.float64)
    left, right = (u * graph.multiply(v)).sum(), (v * graph.multiply(u)).sum()
    torch.testing.assert_close(left, right, rtol=1e-12, atol=0)
    one_pixel = torch.zeros(1, 1, 11, 14, dtype=torch.float64)
    one_pixel[0, 0, 5, 6] = 1.0
    spread = graph.multiply(one_pixel)
    assert spread[0, 0, 5, 6] == 0
    assert torch.count_nonzero(spread) == 7 * 7 - 1


def test_degree_is_row_sum_and_eigenvector(graph):
    ones = torch.ones(1, 1, 11, 14, dtype=torch.float64)
    torch.testing.assert_close(graph.multiply(ones), graph.degree, rtol=1e-14, atol=0)
    root = graph.degree.sqrt()
    torch.testing.assert_close(graph.multiply(ones) / root, root, rtol=1e-13, atol=0)  # D^-1/2 W D^-1/2 root


def test_root_of_degree_is_solved_in_one_step(graph):
    y = 3.0 * graph.degree.sqrt()
    x, steps, _ = reference.propagate(y, graph, alpha=0.95, mode="official", max_iter=10, tol=1e-6)
    assert_close_rel(x, y / (1 - 0.95), 1e-12)
    assert steps.tolist() == [[1]]


@pytest.mark.parametrize(("height", "width", "window"), [(1, 1, 13), (4, 3, 13), (20, 30, 13), (14, 9, 5), (6, 50, 31)])
def test_number_of_links(height, width, window):
    # 01.5: nnz = s(H) s(W) - H W with s(n) = sum over |d| <= R of max(n - |d|, 0). On a constant image w = 1.
    graph = reference.PixelGraph(torch.zeros(1, 1, height, width), window, 0.01)
    reach = window // 2

    def steps(n):
        return sum(max(n - abs(d), 0) for d in range(-reach, reach + 1))

    links = sum(int(torch.count_nonzero(weight)) for weight, _, _ in graph.links)
    assert 2 * links == steps(height) * steps(width) - height * width
    if height > 2 * reach and width > 2 * reach:
        assert graph.degree[0, 0, height // 2, width // 2] == window**2 - 1
        assert graph.degree[0, 0, 0, 0] == (reach + 1) ** 2 - 1


def test_number_of_links_of_a_working_size_image():
    # 01.5's table says 44,363,802 for 448 x 597 and window 13; the offsets' areas add up to it.
    height, width, reach = 448, 597, 6
    area = sum(
        (height - abs(dy)) * (width - abs(dx)) for dy in range(-reach, reach + 1) for dx in range(-reach, reach + 1)
    )
    assert area - height * width == 44_363_802


def test_solution_is_linear_monotone_and_positive():
    scores, image = random_case(9, 8, num_classes=4)
    scores[1] = scores[0] + torch.rand(9, 8, dtype=torch.float64)  # above class 0 everywhere
    scores[2] = scores[0] - 2.5 * scores[1]
    scores[3] = torch.rand(9, 8, dtype=torch.float64)
    x, _, _ = propagate(scores, image, alpha=0.95, window=5, lab=True)
    assert_close_rel(x[2], x[0] - 2.5 * x[1], 1e-10)
    assert (x[1] >= x[0]).all()
    assert (x[3] > 0).all()


def test_certificate_bounds_the_error():
    # 05.7: |x*_i - x_i| <= sqrt(deg_i) max_j(|r_j| / sqrt(deg_j)) / (1 - alpha).
    scores, image = random_case(10, 10, num_classes=2)
    weights = oracles.dense_weights(oracles.lab_features(image), 5, 0.01)
    matrix = oracles.system_matrix(weights, 0.95)
    root = np.sqrt(oracles.degrees(weights))
    rough, _, _ = propagate(scores, image, alpha=0.95, window=5, lab=True, mode="official", max_iter=4, tol=0.0)
    for x, y in zip(rough.reshape(2, -1).numpy(), scores.reshape(2, -1).numpy(), strict=True):
        error = np.abs(np.linalg.solve(matrix, y) - x)
        bound = root * np.max(np.abs(y - matrix @ x) / root) / 0.05
        assert (error <= bound).all()
        assert error.max() > 1e-6  # four steps are rough: the bound had something to bound


def test_class_order_and_batch_do_not_matter():
    scores, image = random_case(7, 9, num_classes=5)
    x, steps, _ = propagate(scores, image, alpha=0.95, mode="official", tol=1e-6, lab=True)
    order = torch.tensor([3, 0, 4, 1, 2])
    permuted, permuted_steps, _ = propagate(scores[order], image, alpha=0.95, mode="official", tol=1e-6, lab=True)
    assert torch.equal(permuted, x[order])
    assert torch.equal(permuted_steps, steps[order])


def test_mirror_image():
    scores, image = random_case(7, 9)
    x, _, _ = propagate(scores, image, alpha=0.95, window=5, lab=True)
    for axes in ((1,), (2,), (1, 2)):
        mirrored, _, _ = propagate(scores.flip(axes), image.flip(axes), alpha=0.95, window=5, lab=True)
        assert_close_rel(mirrored.flip(axes), x, 1e-11)
    turned, _, _ = propagate(scores.transpose(1, 2), image.transpose(1, 2), alpha=0.95, window=5, lab=True)
    assert_close_rel(turned.transpose(1, 2), x, 1e-11)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_float_dtype(dtype):
    scores, image = random_case(6, 7)
    result, _, residuals = reference.lp_pixels(
        scores[None].to(dtype),
        image[None].to(dtype),
        window=5,
        tau=0.1,
        alpha=0.8,
        mode="official",
        max_iter=None,
        tol=1e-6,
        lab=True,
        groups=None,
        num_groups=3,
        labels=False,
    )
    assert result.dtype == dtype
    assert residuals.dtype == torch.float64
    expected, _, _ = propagate(
        scores.to(dtype), image.to(dtype), tau=0.1, alpha=0.8, window=5, mode="official", lab=True, tol=1e-6
    )
    # Half precision all the way, Lab included: a few units in the last place, times the condition number 9.
    tolerance = {torch.float16: 0.03, torch.bfloat16: 0.3, torch.float32: 1e-5, torch.float64: 1e-12}[dtype]
    assert_close_rel(result[0], expected, tolerance)


ZERO_EXTENTS = [(0, 2, 3, 4), (1, 2, 0, 4), (1, 2, 3, 0)]


@pytest.mark.parametrize(
    ("shape", "labels"),
    [((1, 0, 3, 4), False), *((shape, labels) for shape in ZERO_EXTENTS for labels in (False, True))],
)
def test_zero_extents(shape, labels):
    batch, num_classes, height, width = shape
    guide = torch.rand(batch, 3, height, width)
    result, steps, residuals = reference.lp_pixels(
        torch.rand(shape),
        guide,
        window=13,
        tau=0.01,
        alpha=0.95,
        mode="official",
        max_iter=None,
        tol=1e-6,
        lab=True,
        groups=None,
        num_groups=num_classes,
        labels=labels,
    )
    assert result.shape == ((batch, height, width) if labels else shape)
    assert steps.shape == residuals.shape == (batch, num_classes)
