"""`ovs_kernels.compat.lposs` against the published procedure, transcribed with NumPy and SciPy in float64."""

import numpy as np
import oracles
import pytest
import scipy.sparse
import scipy.spatial.distance
import torch
from scipy.sparse.linalg import cg

from ovs_kernels.compat.lposs import dfs_search, get_lposs_laplacian, get_lposs_plus_laplacian, perform_lp
from ovs_kernels.testing import assert_close_rel, synthetic_scene

# Ten float32 steps against float64 ones, as a share of the largest score. Seen: 8e-6.
SINGLE = 3e-5
DOUBLE = 1e-12  # seen: 2e-14


# The published procedure


def normalized(weights):
    """D^-1/2 (W - diag W) D^-1/2, where a degree of zero counts as one."""
    weights = scipy.sparse.csr_matrix(weights)
    weights = weights - scipy.sparse.diags(weights.diagonal())
    degrees = np.asarray(weights.sum(axis=1)).ravel()
    degrees[degrees == 0] = 1
    scale = scipy.sparse.diags(1 / np.sqrt(degrees))
    return scale @ weights @ scale


def published_patches(feats, locations, sizes, sigma, power, k, gamma, alpha, patch_size):
    """L of the patches of all windows, as a SciPy matrix."""
    feats, locations = feats.double().numpy(), np.asarray(locations)
    centres = [
        (
            locations[window][0] + patch_size // 2 + y * patch_size,
            locations[window][2] + patch_size // 2 + x * patch_size,
        )
        for window, (height, width) in enumerate(sizes)
        for y in range(height)
        for x in range(width)
    ]
    distance = scipy.spatial.distance.cdist(centres, centres)
    nodes = len(feats)
    k = min(k, nodes)
    similarity = feats @ feats.T
    chosen = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    kept = np.maximum(np.take_along_axis(similarity, chosen, 1), 0) ** gamma
    kept *= np.exp(-sigma * np.take_along_axis(distance, chosen, 1) ** power)
    kept[kept < oracles.SMALLEST_NORMAL_FLOAT32] = 0  # the published arrays are float32
    rows = np.repeat(np.arange(nodes), k)
    directed = scipy.sparse.csr_matrix((kept.ravel(), (rows, chosen.ravel())), shape=(nodes, nodes))
    return scipy.sparse.eye(nodes) - alpha * normalized(directed + directed.T)


def published_pixels(image, tau, neigh, alpha):
    """L of the pixels of [3, H, W], as a SciPy matrix: one pair of index arrays per offset."""
    _, height, width = image.shape
    lab = oracles.lab_features(image.double().numpy()).reshape(3, -1).T
    ys, xs = np.divmod(np.arange(height * width), width)
    rows, columns = [], []
    for dy in range(-neigh, neigh + 1):
        for dx in range(-neigh, neigh + 1):
            y, x = ys + dy, xs + dx
            inside = (y >= 0) & (y < height) & (x >= 0) & (x < width) & ((dy, dx) != (0, 0))
            rows.append(np.flatnonzero(inside))
            columns.append((y * width + x)[inside])
    rows, columns = np.concatenate(rows), np.concatenate(columns)
    weights = np.exp(-np.sqrt(((lab[rows] - lab[columns]) ** 2).sum(1)) / tau)
    graph = scipy.sparse.csr_matrix((weights, (rows, columns)), shape=(height * width,) * 2)
    return scipy.sparse.eye(height * width) - alpha * normalized(graph)


def solved(matrix, scores, tol=1e-6, maxiter=10):
    """One search per class, [N, C]."""
    columns = scores.double().numpy().T
    return torch.from_numpy(np.stack([cg(matrix, y, rtol=tol, atol=0, maxiter=maxiter)[0] for y in columns], 1))


# Inputs

SIZES = [(4, 5), (4, 5), (3, 6)]
LOCATIONS = [[0, 64, 0, 80], [0, 64, 48, 128], [37, 85, 21, 117]]
DEFAULTS = {"sigma": 0.0, "pix_dist_pow": 2, "k": 100, "gamma": 1.0, "alpha": 0.95, "patch_size": 16}


def patches(num_classes=3, dtype=torch.float32):
    """Unit features in clusters, scores that follow them, and where the windows lie."""
    generator = torch.Generator().manual_seed(5)
    nodes = sum(height * width for height, width in SIZES)
    cluster = torch.randint(0, 4, (nodes,), generator=generator)
    feats = torch.randn(4, 12, generator=generator)[cluster] + 0.6 * torch.randn(nodes, 12, generator=generator)
    scores = 0.2 + 0.05 * torch.randn(nodes, num_classes, generator=generator) + 0.1 * (cluster[:, None] % 3 == 1)
    return torch.nn.functional.normalize(feats.to(dtype), dim=1), torch.tensor(LOCATIONS, dtype=dtype), scores.to(dtype)


def pixels(height, width, num_classes, dtype=torch.float32):
    """[1, 3, H, W] and [H W, C]."""
    generator = torch.Generator().manual_seed(height)
    image, scores, _ = synthetic_scene(height, width, num_classes, 2)
    scores = scores + 0.05 * torch.randn(scores.shape, generator=generator)
    image = (image + 0.02 * torch.randn(image.shape, generator=generator)).clamp(0, 1)
    return image[None].to(dtype), scores.flatten(1).t().contiguous().to(dtype)


def literal(feats, locations, options):
    settings = {**DEFAULTS, **options}
    power = settings.pop("pix_dist_pow")
    return published_patches(feats, locations, SIZES, power=power, **settings)


# Patches


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"k": 7, "gamma": 3.0, "sigma": 0.01, "pix_dist_pow": 1.0},
        {"k": 9, "gamma": 2.5, "sigma": 0.0007, "pix_dist_pow": 2, "alpha": 0.8, "patch_size": 14},
        {"k": 20, "sigma": 0.02, "pix_dist_pow": 0.5, "patch_size": 7},
        {"k": 6, "sigma": 1.0, "pix_dist_pow": 2},  # nearly every link fades to nothing
    ],
)
def test_patches(device, to_device, options):
    feats, locations, scores = patches()
    laplacian = get_lposs_laplacian(to_device(feats), to_device(locations), SIZES, **options)
    assert laplacian.shape == (58, 58)
    result = perform_lp(laplacian, to_device(scores))
    assert result.dtype == torch.float32
    assert result.device.type == ("cuda" if device == "cuda" else "cpu")
    assert_close_rel(result, solved(literal(feats, locations, options), scores), SINGLE)


def test_patches_in_double_precision():
    feats, locations, scores = patches(dtype=torch.float64)
    for options in ({"k": 7, "sigma": 0.01, "pix_dist_pow": 1}, {"k": 7, "sigma": 0.0007}):
        result = perform_lp(get_lposs_laplacian(feats, locations, SIZES, **options), scores)
        assert result.dtype == torch.float64
        assert_close_rel(result, solved(literal(feats, locations, options), scores), DOUBLE)


def test_integer_locations_and_one_large_window():
    feats, locations, scores = patches()
    options = {"k": 7, "sigma": 0.01, "pix_dist_pow": 1.0}
    given = get_lposs_laplacian(feats, locations.long(), SIZES, **options)
    assert torch.equal(
        perform_lp(given, scores), perform_lp(get_lposs_laplacian(feats, locations, SIZES, **options), scores)
    )
    whole = get_lposs_laplacian(feats, torch.zeros(1, 4), [(29, 2)], **options)
    expected = published_patches(feats, [[0, 0, 0, 0]], [(29, 2)], 0.01, 1.0, 7, 1.0, 0.95, 16)
    assert_close_rel(perform_lp(whole, scores), solved(expected, scores), SINGLE)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_features_in_half_precision(dtype):
    feats, locations, scores = patches()
    half = torch.nn.functional.normalize(feats.to(dtype), dim=1)
    unit = torch.nn.functional.normalize(half.double(), dim=1)  # what is left of the length is rounding
    result = perform_lp(get_lposs_laplacian(half, locations.to(dtype), SIZES, k=9), scores)
    assert_close_rel(result, solved(literal(unit, locations, {"k": 9}), scores), SINGLE)
    if dtype == torch.float16:
        assert torch.equal(perform_lp(get_lposs_laplacian(half.float(), locations, SIZES, k=9), scores), result)


def test_a_zero_feature_isolates_a_patch():
    feats, locations, scores = patches()
    feats[11] = 0.0  # what normalize makes of a zero vector
    options = {"k": 7, "gamma": 3.0}
    result = perform_lp(get_lposs_laplacian(feats, locations, SIZES, **options), scores)
    assert_close_rel(result, solved(literal(feats, locations, options), scores), SINGLE)


def test_nothing():
    empty = get_lposs_laplacian(torch.zeros(0, 4), torch.zeros(0, 4), [])
    assert perform_lp(empty, torch.zeros(0, 3)).shape == (0, 3)
    feats, locations, _ = patches()
    assert perform_lp(get_lposs_laplacian(feats, locations, SIZES), torch.zeros(58, 0)).shape == (58, 0)


# Pixels


@pytest.mark.parametrize(
    ("size", "options"),
    [
        ((17, 22), {"tau": 0.01}),
        ((17, 22), {}),
        ((9, 31), {"tau": 0.05, "neigh": 3, "alpha": 0.7}),
        ((3, 5), {"tau": 0.01}),  # smaller than the window
        ((1, 1), {}),
    ],
)
def test_pixels(device, to_device, size, options):
    image, scores = pixels(*size, 4)
    laplacian = get_lposs_plus_laplacian(to_device(image), to_device(scores), **options)
    result = perform_lp(laplacian, to_device(scores))
    assert result.shape == scores.shape
    assert result.dtype == torch.float32
    settings = {"tau": 0.1, "neigh": 6, "alpha": 0.95} | options
    assert_close_rel(result, solved(published_pixels(image[0], **settings), scores), SINGLE)


def test_pixels_in_double_precision():
    image, scores = pixels(12, 15, 3, torch.float64)
    result = perform_lp(get_lposs_plus_laplacian(image, scores, tau=0.01), scores)
    assert result.dtype == torch.float64
    assert_close_rel(result, solved(published_pixels(image[0], 0.01, 6, 0.95), scores), DOUBLE)


def test_no_neighbours_no_change():
    image, scores = pixels(6, 7, 3)
    assert torch.equal(perform_lp(get_lposs_plus_laplacian(image, scores, neigh=0), scores), scores)


def test_the_operator_of_an_image_costs_nothing():
    """Twenty thousand pixels square: any array of that size would be 400 MB, any matrix 67 GB."""
    image = torch.zeros(1, 3, 1, 1).expand(1, 3, 20000, 20000)
    laplacian = get_lposs_plus_laplacian(image, torch.zeros(1, 1).expand(20000**2, 1))
    assert laplacian.shape == (20000**2, 20000**2)


def test_layouts():
    image, scores = pixels(10, 13, 3)
    expected = perform_lp(get_lposs_plus_laplacian(image, scores), scores)
    channels_last = image.to(memory_format=torch.channels_last)
    wide = torch.stack((scores, scores), 2)[..., 1]
    classes_first = scores.t().contiguous().t()
    for given_image, given in ((channels_last, wide), (image[:, [2, 1, 0]].flip(1), classes_first)):
        assert torch.equal(perform_lp(get_lposs_plus_laplacian(given_image, given), given), expected)
    assert torch.equal(perform_lp(get_lposs_plus_laplacian(torch.cat((image, 1 - image)), scores), scores), expected)


def test_what_the_published_caller_does_with_the_result():
    """Windows are picked by index and made images; images of pixels are resized and added to float32 ones."""
    feats, locations, scores = patches()
    result = perform_lp(get_lposs_laplacian(feats, locations, SIZES), scores)
    windows = torch.cat([torch.full((height * width,), index) for index, (height, width) in enumerate(SIZES)])
    last = torch.reshape(result[torch.where(windows == 2)[0], :], (*SIZES[2], 3))
    assert torch.equal(last[2, 4], result[40 + 2 * 6 + 4])
    image, preds = pixels(6, 7, 3)
    result = perform_lp(get_lposs_plus_laplacian(image, preds), preds)
    maps = result.reshape((6, 7, 3)).permute((2, 0, 1)).unsqueeze(0)
    assert torch.equal(maps[0, :, 4, 5], result[4 * 7 + 5])
    total = torch.zeros(1, 3, 12, 14)
    total += torch.nn.functional.interpolate(maps, size=(12, 14), mode="bilinear", align_corners=False)
    assert total.isfinite().all()


# Scores


def test_the_search_takes_what_it_is_given(xp):
    there, back = xp
    image, scores = pixels(9, 11, 1)
    laplacian = get_lposs_plus_laplacian(there(image), there(scores), tau=0.02)
    matrix = published_pixels(image[0], 0.02, 6, 0.95)
    for tol, maxiter in ((1e-6, 10), (1e-6, 50), (1e-2, 10), (0.0, 3)):
        expected = solved(matrix, scores, tol, maxiter)[:, 0]
        found = dfs_search(laplacian, there(scores[:, 0]), tol=tol, maxiter=maxiter)
        assert type(found) is type(there(scores))
        assert_close_rel(back(found), expected, SINGLE)
    assert_close_rel(back(dfs_search(laplacian, there(scores))), solved(matrix, scores)[:, 0], SINGLE)
    assert isinstance(perform_lp(laplacian, there(scores)), torch.Tensor)


def test_a_search_without_a_limit_reaches_its_tolerance():
    image, scores = pixels(9, 11, 1, torch.float64)
    found = dfs_search(get_lposs_plus_laplacian(image, scores, tau=0.02), scores[:, 0], tol=1e-10, maxiter=None)
    expected = scipy.sparse.linalg.spsolve(published_pixels(image[0], 0.02, 6, 0.95).tocsc(), scores[:, 0].numpy())
    assert_close_rel(found, torch.from_numpy(expected), 1e-8)
    assert dfs_search(get_lposs_plus_laplacian(image, scores), scores[:, 0], maxiter=0).abs().sum() == 0


@pytest.mark.parametrize(
    ("dtype", "computed", "tolerance"),
    [
        (torch.float16, torch.float32, SINGLE),
        (torch.bfloat16, torch.float32, SINGLE),
        (torch.int64, torch.float64, SINGLE),
        (torch.bool, torch.float64, SINGLE),
    ],
)
def test_other_dtypes(dtype, computed, tolerance):
    image, scores = pixels(9, 11, 2)
    feats, locations, _ = patches()
    laplacian = get_lposs_laplacian(feats, locations, SIZES, k=9)
    votes = (torch.randn(58, 3) * 2).to(dtype)
    result = perform_lp(laplacian, votes)
    assert result.dtype == computed
    assert_close_rel(result, solved(literal(feats, locations, {"k": 9}), votes), tolerance)
    given = (scores * 4).to(dtype)
    result = perform_lp(get_lposs_plus_laplacian(image, given, tau=0.02), given)
    assert_close_rel(result, solved(published_pixels(image[0], 0.02, 6, 0.95), given), tolerance)


def test_bad_scores_stay_in_their_class():
    image, scores = pixels(9, 11, 4)
    laplacian = get_lposs_plus_laplacian(image, scores, tau=0.02)
    expected = perform_lp(laplacian, scores)
    scores[7, 1], scores[:, 2] = torch.nan, 0.0
    result = perform_lp(laplacian, scores)
    assert result[:, 1].isnan().all()
    assert (result[:, 2] == 0).all()
    assert torch.equal(result[:, [0, 3]], expected[:, [0, 3]])


def test_backward_refuses():
    feats, locations, scores = patches()
    result = perform_lp(get_lposs_laplacian(feats, locations, SIZES), scores.requires_grad_())
    with pytest.raises(NotImplementedError, match="official"):
        result.sum().backward()


# The operator as a matrix


@pytest.fixture(params=["patches", "pixels"])
def operator(request):
    """An operator of ours and the published matrix."""
    if request.param == "pixels":
        image, scores = pixels(8, 11, 2, torch.float64)
        laplacian = get_lposs_plus_laplacian(image, scores, tau=0.03, neigh=4)
        return laplacian, published_pixels(image[0], 0.03, 4, 0.95)
    feats, locations, _ = patches(dtype=torch.float64)
    options = {"k": 9, "sigma": 0.01, "pix_dist_pow": 1}
    return get_lposs_laplacian(feats, locations, SIZES, **options), literal(feats, locations, options)


def test_conversions(operator):
    laplacian, matrix = operator
    dense = matrix.toarray()
    assert laplacian.ndim == 2
    assert laplacian.dtype == np.float64
    assert laplacian.T is laplacian
    for converted in (laplacian.tocsr(), laplacian.get()):
        assert scipy.sparse.issparse(converted)
        assert converted.format == "csr"
        assert converted.has_canonical_format
        np.testing.assert_allclose(converted.toarray(), dense, rtol=0, atol=1e-13)
        assert converted.nnz == matrix.tocsr().nnz
    np.testing.assert_allclose(laplacian.toarray(), dense, rtol=0, atol=1e-13)
    tensor = laplacian.to_sparse_csr()
    assert tensor.layout is torch.sparse_csr
    np.testing.assert_allclose(tensor.to_dense().numpy(), dense, rtol=0, atol=1e-13)


def test_products(operator):
    laplacian, matrix = operator
    x = np.random.default_rng(3).normal(size=(laplacian.shape[0], 3))
    np.testing.assert_allclose(laplacian @ x, matrix @ x, rtol=0, atol=1e-12)
    np.testing.assert_allclose(laplacian.dot(x[:, 0]), matrix @ x[:, 0], rtol=0, atol=1e-12)
    np.testing.assert_allclose(x.T @ laplacian, x.T @ matrix, rtol=0, atol=1e-12)
    product = laplacian @ torch.from_numpy(x).float()
    assert product.dtype == torch.float64
    np.testing.assert_allclose(product.numpy(), matrix @ x.astype(np.float32), rtol=0, atol=1e-12)


def test_scipy_solves_with_it(operator):
    laplacian, matrix = operator
    y = np.random.default_rng(3).normal(size=laplacian.shape[0])
    found = cg(laplacian, y, rtol=1e-6, atol=0, maxiter=10)[0]
    np.testing.assert_allclose(found, cg(matrix, y, rtol=1e-6, atol=0, maxiter=10)[0], rtol=0, atol=1e-10)
    np.testing.assert_allclose(dfs_search(laplacian, y), found, rtol=0, atol=1e-10)


# Errors


def expect_one_line(cases):
    """Each call raises the error, whose one line starts with the message."""
    for call, error, message in cases:
        with pytest.raises(error) as caught:
            call()
        assert str(caught.value).startswith(message), caught.value
        assert "\n" not in str(caught.value)


def test_errors_of_patches():
    feats, locations, _ = patches()
    patch = "get_lposs_laplacian: "

    def graph(*replaced, **options):
        return get_lposs_laplacian(*(replaced + (feats, locations, SIZES)[len(replaced) :]), **options)

    expect_one_line(
        [
            (lambda: graph(feats[0]), ValueError, patch + "feats: expected [N, d], got [12]"),
            (
                lambda: graph(feats.int()),
                TypeError,
                patch + "feats: expected float32 or float64 or float16 or bfloat16, got int32",
            ),
            (lambda: graph([1.0]), TypeError, patch + "feats: expected a torch tensor, a numpy array or a CUDA array"),
            (
                lambda: graph(3 * feats),
                ValueError,
                patch + "feats: expected rows of length 1 (torch.nn.functional.normalize), got length 3",
            ),
            (lambda: graph(feats, locations[:, :2]), ValueError, patch + "locations: expected [K, 4], got [3, 2]"),
            (
                lambda: graph(feats, locations[:2]),
                ValueError,
                patch + "locations: expected one row per window, 3 (those of height_width), got 2",
            ),
            (
                lambda: graph(feats, locations, [(4, 5)]),
                ValueError,
                patch + "height_width: expected patches that add up to N=58 (that of feats), got 20",
            ),
            (
                lambda: graph(feats, locations, 7),
                TypeError,
                patch + "height_width: expected a list of pairs (h, w), got int",
            ),
            (
                lambda: graph(feats, locations, [(4,)]),
                TypeError,
                patch + "height_width: expected a list of pairs (h, w), got list",
            ),
            (
                lambda: graph(feats, locations, [(4, 0)]),
                ValueError,
                patch + "height_width[0]: expected an integer >= 1, got 0",
            ),
            (lambda: graph(k=0), ValueError, patch + "k: expected an integer >= 1, got 0"),
            (lambda: graph(k=2.5), TypeError, patch + "k: expected an integer >= 1, got float"),
            (lambda: graph(gamma=0), ValueError, patch + "gamma: expected a finite number > 0, got 0"),
            (lambda: graph(sigma=-1), ValueError, patch + "sigma: expected a finite number >= 0, got -1"),
            (lambda: graph(pix_dist_pow=-1), ValueError, patch + "pix_dist_pow: expected a finite number >= 0, got -1"),
            (lambda: graph(alpha=1), ValueError, patch + "alpha: expected a number in (0, 1), got 1"),
            (lambda: graph(patch_size=0), ValueError, patch + "patch_size: expected an integer >= 1, got 0"),
        ]
    )


def test_errors_of_pixels_and_solves():
    feats, locations, scores = patches()
    image, preds = pixels(4, 5, 2)
    laplacian = get_lposs_laplacian(feats, locations, SIZES, k=5)
    pixel = "get_lposs_plus_laplacian: "
    expect_one_line(
        [
            (
                lambda: get_lposs_plus_laplacian(image[0], preds),
                ValueError,
                pixel + "img: expected [B, 3, H, W], got [3, 4, 5]",
            ),
            (
                lambda: get_lposs_plus_laplacian(image[:0], preds),
                ValueError,
                pixel + "img: expected at least one image, got none",
            ),
            (
                lambda: get_lposs_plus_laplacian(image.byte(), preds),
                TypeError,
                pixel + "img: expected float32 or float64 or float16 or bfloat16, got uint8",
            ),
            (
                lambda: get_lposs_plus_laplacian(image, preds[1:]),
                ValueError,
                pixel + "preds: expected [H W, C] with H=4, W=5 (those of img), got [19, 2]",
            ),
            (
                lambda: get_lposs_plus_laplacian(image, preds.numpy()),
                TypeError,
                pixel + "preds: expected torch.Tensor (the kind of img), got numpy.ndarray",
            ),
            (
                lambda: get_lposs_plus_laplacian(image, preds, tau=0),
                ValueError,
                pixel + "tau: expected a finite number > 0, got 0",
            ),
            (
                lambda: get_lposs_plus_laplacian(image, preds, neigh=16),
                ValueError,
                pixel + "neigh: expected an integer in [0, 15], got 16",
            ),
            (
                lambda: get_lposs_plus_laplacian(image, preds, alpha=0),
                ValueError,
                pixel + "alpha: expected a number in (0, 1), got 0",
            ),
            (
                lambda: perform_lp(np.eye(58), scores),
                TypeError,
                "perform_lp: L: expected what get_lposs_laplacian or get_lposs_plus_laplacian of ovs_kernels",
            ),
            (
                lambda: perform_lp(laplacian, scores[1:]),
                ValueError,
                "perform_lp: preds: expected [N, C] with N=58 (those of L), got [57, 3]",
            ),
            (
                lambda: perform_lp(laplacian, scores[:, 0]),
                ValueError,
                "perform_lp: preds: expected [N, C] with N=58 (those of L), got [58]",
            ),
            (lambda: perform_lp(laplacian, scores.cfloat()), TypeError, "perform_lp: preds: expected float32"),
            (
                lambda: perform_lp(laplacian, scores.to("meta")),
                ValueError,
                "perform_lp: preds: expected device cpu (that of L), got meta",
            ),
            (lambda: dfs_search(laplacian, scores), ValueError, "dfs_search: Y: expected [N] or [N, 1], got [58, 3]"),
            (
                lambda: dfs_search(laplacian, scores[:, 0], tol=-1.0),
                ValueError,
                "dfs_search: tol: expected a finite number >= 0, got -1.0",
            ),
            (
                lambda: dfs_search(laplacian, scores[:, 0], maxiter=-1),
                ValueError,
                "dfs_search: maxiter: expected an integer in [0, 2147483647], got -1",
            ),
            (
                lambda: laplacian @ scores[1:],
                ValueError,
                "Laplacian: x: expected [N, C] with N=58 (those of L), got [57, 3]",
            ),
        ]
    )
