"""`knn_graph` at its borders: no nodes, equal nodes, bad nodes, vanishing links, extreme scales, every tie."""

import math

import numpy as np
import pytest
import torch
from graph_inputs import assert_is_graph_of, clustered, dense, dense_oracle, lattice, link_strengths, places

from ovs_kernels import knn_graph


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize(("num_nodes", "num_features", "k"), [(0, 5, 3), (1, 5, 3), (4, 0, 3), (4, 5, 1), (0, 0, 1)])
@pytest.mark.parametrize("spatial", [False, True])
def test_no_links(device, to_device, dtype, num_nodes, num_features, k, spatial):
    positions = to_device(torch.zeros(num_nodes, 2)) if spatial else None
    graph = knn_graph(to_device(torch.ones(num_nodes, num_features, dtype=dtype)), k, positions=positions)
    assert graph.indptr.tolist() == [0] * (num_nodes + 1)
    assert graph.degrees.tolist() == [0.0] * num_nodes
    assert (graph.num_nodes, graph.nnz) == (num_nodes, 0)
    assert graph.weights.dtype == graph.degrees.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert graph.indptr.dtype == graph.indices.dtype == torch.int32
    assert graph.to_sparse_csr().to_dense().count_nonzero() == 0


def test_no_nodes_of_numpy():
    graph = knn_graph(np.zeros((0, 3), np.float32), 4)
    assert isinstance(graph.weights, np.ndarray)
    assert graph.indptr.tolist() == [0]


def test_two_nodes(device, to_device):
    # Cosine 3/5: both choose each other.
    graph = knn_graph(to_device(torch.tensor([[1.0, 0.0], [3.0, 4.0]])), 2, gamma=1.0)
    assert graph.indptr.tolist() == [0, 1, 2]
    assert graph.indices.tolist() == [1, 0]
    assert graph.weights.tolist() == pytest.approx([1.2, 1.2], rel=1e-6)
    apart = knn_graph(to_device(torch.tensor([[1.0, 0.0], [-3.0, 4.0]])), 2)
    assert apart.nnz == 0


@pytest.mark.parametrize("k", [30, 31, 1000, 2**40])
def test_more_neighbours_than_nodes(device, to_device, k):
    features = clustered(30, 5)
    graph = knn_graph(to_device(features), k)
    assert_is_graph_of(graph, features, 30)
    assert graph.nnz == (link_strengths(features, None, 3.0, 0.0)[~np.eye(30, dtype=bool)] > 0).sum()


@pytest.mark.parametrize(("num_nodes", "k"), [(9, 3), (100, 7), (100, 70), (300, 100)])
def test_identical_features(device, to_device, num_nodes, k):
    # All similarities are 1: each node chooses the k - 1 lowest others.
    features = torch.tensor([0.0, 3.0, 0.0]).expand(num_nodes, 3)
    matrix = dense(knn_graph(to_device(features), k))
    chosen = np.zeros((num_nodes, num_nodes))
    for i in range(num_nodes):
        chosen[i, [j for j in range(num_nodes) if j != i][: k - 1]] = 1
    np.testing.assert_array_equal(matrix, chosen + chosen.T)


@pytest.mark.parametrize(("num_nodes", "k"), [(40, 2), (40, 17), (130, 33), (300, 90)])
@pytest.mark.parametrize("gamma", [1.0, 3.0])
def test_ties(device, to_device, num_nodes, k, gamma):
    features = lattice(num_nodes)
    matrix = dense(knn_graph(to_device(features), k, gamma=gamma))
    np.testing.assert_array_equal(matrix, dense_oracle(features, k, gamma=gamma))


def test_ties_with_positions(device, to_device):
    # Positions weaken links and do not choose them.
    features, positions = lattice(130), places(130)
    matrix = dense(knn_graph(to_device(features), 20, positions=to_device(positions)))
    expected = dense_oracle(features, 20, positions)
    np.testing.assert_allclose(matrix, expected, rtol=1e-6)
    np.testing.assert_array_equal(matrix > 0, expected > 0)


def test_duplicated_points(device, to_device):
    features = lattice(60, num_features=64)  # two of them are hardly equal by chance
    features[40:] = features[:20]
    matrix = dense(knn_graph(to_device(features), 2, gamma=1.0))
    for i in range(20):
        assert matrix[i, i + 40] == 2.0  # cosine 1, both ways
    np.testing.assert_array_equal(matrix, dense_oracle(features, 2, gamma=1.0))


@pytest.mark.parametrize("bad", [0.0, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bad_features_isolate_their_node(device, to_device, bad, dtype):
    features, positions = clustered(70, 6, dtype=dtype), places(70)
    rows = [0, 13, 69]
    if bad == 0.0:
        features[rows] = 0.0
    else:
        features[rows, [0, 3, 5]] = bad
    graph = knn_graph(to_device(features), 12, positions=to_device(positions))
    matrix = dense(graph)
    assert (matrix[rows] == 0).all()
    assert np.isfinite(matrix).all()
    assert (graph.degrees.cpu()[rows] == 0).all()
    good = [i for i in range(70) if i not in rows]
    without = dense(knn_graph(to_device(features[good]), 12, positions=to_device(positions[good])))
    # The same links; a product of other sizes may be rounded otherwise.
    np.testing.assert_array_equal(matrix[np.ix_(good, good)] > 0, without > 0)
    np.testing.assert_allclose(matrix[np.ix_(good, good)], without, rtol=1e-5 if dtype == torch.float32 else 1e-13)


def test_only_bad_nodes(device, to_device):
    for value in (0.0, math.nan):
        assert knn_graph(to_device(torch.full((5, 3), value)), 3).nnz == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("sigma", [0.0, 0.01])
def test_bad_positions_isolate_their_node(device, to_device, bad, sigma):
    features, positions = clustered(50, 6), places(50).float()
    positions[3, 0] = positions[17, 1] = bad
    graph = knn_graph(to_device(features), 9, positions=to_device(positions), sigma=sigma)
    matrix = dense(graph)
    assert (matrix[[3, 17]] == 0).all()
    # They keep their places among the neighbours of others.
    expected = dense(knn_graph(to_device(features), 9, positions=to_device(places(50)), sigma=sigma))
    expected[[3, 17]] = expected[:, [3, 17]] = 0.0
    np.testing.assert_array_equal(matrix, expected)


@pytest.mark.parametrize("scale", [1e-40, 1e-30, 1e30, 3e38])
def test_scale_of_features_does_not_matter(device, to_device, scale):
    features = clustered(40, 6)
    features /= features.abs().max()
    if scale == 1e-40:
        features = (features * 2**10).round() / 2**10  # what a denormal number can hold
    expected = dense(knn_graph(to_device(features), 9))
    scaled = (features.double() * scale).float()
    matrix = dense(knn_graph(to_device(scaled), 9))
    tolerance = 1e-2 if scale == 1e-40 else 1e-5
    assert_is_graph_of(knn_graph(to_device(scaled), 9), scaled, 9)
    np.testing.assert_allclose(matrix.sum(), expected.sum(), rtol=tolerance)


@pytest.mark.parametrize("exponent", [-1060, -600, 600, 1020])
def test_scale_of_double_features_does_not_matter(exponent):
    features = (clustered(40, 6, dtype=torch.float64).sign() * torch.arange(1.0, 7.0)).double()
    expected = knn_graph(features, 9)
    scaled = knn_graph(torch.ldexp(features, torch.tensor(exponent)), 9)
    assert torch.equal(scaled.indices, expected.indices)
    assert torch.equal(scaled.weights, expected.weights)


def test_negative_similarities_are_no_links(device, to_device):
    features = torch.cat((clustered(20, 6), -clustered(20, 6)))
    graph = knn_graph(to_device(features), 30)  # more than there are on a node's own side
    matrix = dense(graph)
    assert_is_graph_of(graph, features, 30)
    assert (matrix[:20, 20:][link_strengths(features, None, 3.0, 0.0)[:20, 20:] == 0] == 0).all()
    lonely = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    assert knn_graph(to_device(lonely), 4).nnz == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_that_vanish_are_not_stored(device, to_device, dtype):
    # e^-sigma d leaves the normal range of float32 at 87.3 pixels; some are beyond, none is within 0.1 of it.
    features = clustered(60, 6, dtype=dtype)
    positions = torch.arange(60.0, dtype=dtype)[:, None] * torch.tensor([0.0, 3.5], dtype=dtype)
    graph = knn_graph(to_device(features), 40, positions=to_device(positions), gamma=1.0, sigma=1.0)
    matrix = dense(graph)
    expected = dense_oracle(features, 40, positions, 1.0, 1.0)
    distance = np.abs(positions[:, 1].numpy()[:, None] - positions[:, 1].numpy())
    chosen = dense_oracle(features, 40, None, 1.0, 0.0) > 0
    clear = (expected > 1e-36) | (distance > 88.0)
    np.testing.assert_array_equal((matrix > 0)[clear], (expected > 0)[clear])
    assert ((matrix == 0) & chosen).sum() > 100
    assert graph.nnz == (matrix > 0).sum()
    large = expected > 1e-30
    np.testing.assert_allclose(matrix[large], expected[large], rtol=1e-5 if dtype == torch.float32 else 1e-12)


def test_high_power_leaves_the_strongest(device, to_device):
    features = clustered(60, 6)
    matrix = dense(knn_graph(to_device(features), 40, gamma=300.0))
    expected = dense_oracle(features, 40, gamma=300.0)
    clear = (expected == 0) | (expected > 1e-34)
    np.testing.assert_array_equal((matrix > 0)[clear], (expected > 0)[clear])
    assert 0 < (matrix > 0).sum() < (dense_oracle(features, 40) > 0).sum()


def test_one_hub(device, to_device):
    # All lean towards node 5 and away from each other: a row of N - 1 links among rows of few.
    num_nodes = 70
    features = torch.eye(num_nodes) + 0.0
    features[:, 5] = 1.0
    features[5] = 0.0
    features[5, 5] = 1.0
    graph = knn_graph(to_device(features), 2, gamma=1.0)
    lengths = graph.indptr.cpu().diff()
    assert lengths[5] == num_nodes - 1
    assert_is_graph_of(graph, features, 2, gamma=1.0, near=1e-6)
    assert (lengths[torch.arange(num_nodes) != 5] == 1).all()


@pytest.mark.parametrize("count", [1, 63, 64, 65, 66, 200])
def test_few_and_many_candidates_for_the_last_place(device, to_device, count):
    # `count` similarities within 1e-5 of each other around the last place, and others far above and below.
    num_nodes = 300
    generator = torch.Generator().manual_seed(3)
    cosine = torch.cat((torch.linspace(0.9, 0.8, 30), 0.5 + 1e-5 * torch.rand(count, generator=generator)))
    cosine = torch.cat((cosine, torch.linspace(0.2, 0.1, num_nodes - 1 - len(cosine)))).double()
    features = torch.zeros(num_nodes, num_nodes, dtype=torch.float64)
    features[0, 0] = 1.0
    features[1:, 0] = cosine
    features[torch.arange(1, num_nodes), torch.arange(1, num_nodes)] = (1 - cosine**2).sqrt()
    for k in (31 + count // 2, 31, 32 + count)[: 1 if device == "emulated" else 3]:
        assert_is_graph_of(knn_graph(to_device(features.float()), k), features.float(), k)
        if device == "cpu":
            assert_is_graph_of(knn_graph(features, k), features, k, near=1e-13)


def test_similarities_that_all_but_vanish(device, to_device):
    # Cosines down to the smallest normal float32 and below, where they count as zero.
    cosine = torch.tensor([1e-10, 1e-20, 1e-30, 1e-37, 1e-39, 1e-44])
    features = torch.zeros(7, 7)
    features[0, 0] = 1.0
    features[1:, 0] = cosine
    features[torch.arange(1, 7), torch.arange(1, 7)] = 1.0
    graph = knn_graph(to_device(features), 7, gamma=1.0)
    matrix = dense(graph)
    np.testing.assert_allclose(matrix[0, 1:5], 2 * cosine[:4].numpy(), rtol=1e-5)
    assert (matrix[0, 5:] == 0).all()
    rooted = dense(knn_graph(to_device(features), 7, gamma=0.25))
    np.testing.assert_allclose(rooted[0, 1:5], 2 * cosine[:4].numpy().astype(np.float64) ** 0.25, rtol=1e-5)
    assert (rooted[0, 5:] == 0).all()
