"""`ovs_kernels.knn_graph`: every backend against numbers worked out by hand and against loops in NumPy."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
import torch
from graph_inputs import DOUBLE, NEAR, assert_is_graph_of, clustered, dense, dense_oracle, lattice, places

import ovs_kernels
from ovs_kernels import Graph, _native, knn_graph
from ovs_kernels._ops import graph as operator

# (N, d, k): around the kernels' groups of 16 rows, vectors of 4 to 16 columns, padding to 64, blocks of 256.
SIZES = [
    (1, 3, 1),
    (1, 3, 4),
    (2, 3, 2),
    (3, 1, 2),
    (7, 5, 3),
    (15, 16, 15),
    (16, 17, 16),
    (17, 8, 40),
    (63, 31, 9),
    (64, 33, 20),
    (65, 64, 64),
    (130, 20, 13),
    (255, 12, 60),
    (256, 13, 30),
    (257, 40, 100),
    (300, 24, 299),
    (530, 48, 80),
]
SMALL = [size for size in SIZES if size[0] <= 130] + [(300, 24, 45)]


def sizes_of(device):
    return SMALL if device == "emulated" else SIZES


# Worked out by hand -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_by_hand(device, to_device, dtype):
    # test_reference_graph.py derives these numbers; the rows are scaled, which must not matter.
    features = torch.tensor([[2.0, 0.0], [0.3, 0.4], [0.0, 7.0], [-1.0, 0.0]], dtype=dtype)
    graph = knn_graph(to_device(features), 2, gamma=1.0)
    assert isinstance(graph, Graph)
    assert graph.num_nodes == 4
    assert graph.nnz == 4
    assert graph.indptr.tolist() == [0, 1, 3, 4, 4]
    assert graph.indices.tolist() == [1, 0, 2, 1]
    assert graph.weights.dtype == graph.degrees.dtype == dtype
    assert graph.weights.tolist() == pytest.approx([0.6, 0.6, 1.6, 1.6], rel=1e-6)
    assert graph.degrees.tolist() == pytest.approx([0.6, 2.2, 1.6, 0.0], rel=1e-6)
    positions = torch.tensor([[0, 0], [3, 4], [3, 16], [0, 0]])
    graph = knn_graph(to_device(features), 2, positions=to_device(positions), gamma=1.0, sigma=0.1)
    expected = [0.6 * math.exp(-0.5)] * 2 + [1.6 * math.exp(-1.2)] * 2
    assert graph.weights.tolist() == pytest.approx(expected, rel=1e-6)


# Against the oracle -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("spatial", [False, True])
def test_single_precision(device, to_device, spatial):
    for num_nodes, num_features, k in sizes_of(device):
        features = clustered(num_nodes, num_features)
        positions = places(num_nodes) if spatial else None
        graph = knn_graph(to_device(features), k, positions=None if positions is None else to_device(positions))
        assert graph.weights.dtype == torch.float32
        assert_is_graph_of(graph, features, k, positions)


@pytest.mark.parametrize("spatial", [False, True])
def test_double_precision(spatial):
    for num_nodes, num_features, k in SIZES:
        features = clustered(num_nodes, num_features, dtype=torch.float64)
        positions = places(num_nodes) if spatial else None
        graph = knn_graph(features, k, positions=positions)
        assert graph.weights.dtype == torch.float64
        expected = dense_oracle(features, k, positions)
        np.testing.assert_allclose(dense(graph), expected, rtol=DOUBLE, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_instruction_set(isa, dtype):
    for num_nodes, num_features, k in SIZES:
        features, positions = clustered(num_nodes, num_features, dtype=dtype), places(num_nodes)
        for gamma in (3.0, 2.5):
            graph = knn_graph(features, k, positions=positions, gamma=gamma)
            assert_is_graph_of(graph, features, k, positions, gamma)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_instruction_set_breaks_ties_alike(isa, dtype):
    for num_nodes, k in [(40, 5), (300, 37), (530, 200)]:
        features = lattice(num_nodes).to(dtype)
        np.testing.assert_array_equal(dense(knn_graph(features, k, gamma=2.0)), dense_oracle(features, k, gamma=2.0))


@pytest.mark.parametrize("k", [1, 2, 3, 8, 33, 64, 65, 90, 127, 128, 129, 130, 131, 1000])
def test_every_number_of_neighbours(device, to_device, k):
    features = clustered(130, 11)
    assert_is_graph_of(knn_graph(to_device(features), k), features, k)


@pytest.mark.parametrize("gamma", [0.25, 0.5, 1.0, 1.5, 2.0, 2.999, 3.0, 4.0, 7.0, 7.5, 20.0])
def test_gamma(device, to_device, gamma):
    features, positions = clustered(90, 8), places(90)
    for where in (None, positions):
        graph = knn_graph(
            to_device(features), 20, positions=None if where is None else to_device(where), gamma=gamma, sigma=0.02
        )
        assert_is_graph_of(graph, features, 20, where, gamma, 0.02)


@pytest.mark.parametrize("sigma", [0.0, 1e-4, 0.01, 0.1])
def test_sigma(device, to_device, sigma):
    features, positions = clustered(90, 8), places(90)
    graph = knn_graph(to_device(features), 20, positions=to_device(positions), sigma=sigma)
    assert_is_graph_of(graph, features, 20, positions, sigma=sigma)
    if sigma == 0.0:
        plain = knn_graph(to_device(features), 20)
        assert torch.equal(graph.weights, plain.weights)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.float16, torch.float64])
def test_dtypes_of_positions(device, to_device, dtype):
    features, positions = to_device(clustered(40, 8)), places(40, extent=240)
    expected = knn_graph(features, 9, positions=to_device(positions.float()))
    assert torch.equal(knn_graph(features, 9, positions=to_device(positions.to(dtype))).weights, expected.weights)


# Where no bit may change -------------------------------------------------------------------------------------


def assert_same(one, two):
    for first, second in zip(one.tensors(), two.tensors(), strict=True):
        assert torch.equal(first.cpu(), second.cpu())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("make", [clustered, lattice])
def test_number_of_threads_does_not_matter(num_threads, dtype, make):
    features = make(700, num_features=16).to(dtype)
    num_threads(1)
    expected = knn_graph(features, 90, positions=places(700))
    for count in (2, 3):
        num_threads(count)
        assert_same(knn_graph(features, 90, positions=places(700)), expected)


@pytest.mark.parametrize("make", [clustered, lattice])
def test_memory_limit_does_not_change_a_bit(device, to_device, make, monkeypatch):
    num_nodes = 150 if device == "emulated" else 700
    monkeypatch.setattr(operator, "CUDA_BLOCK", 64)
    features, positions = to_device(make(num_nodes, num_features=16)), to_device(places(num_nodes))
    expected = knn_graph(features, 40, positions=positions)
    with pytest.raises(ValueError, match="memory_limit") as raised:
        knn_graph(features, 40, positions=positions, memory_limit=1000)
    minimum = int(str(raised.value).split("at least ")[1].split(" ")[0])
    kind = operator.TileProducts if device == "cpu" else operator.RowProducts
    panels = []
    original = kind.panels

    def counted(self, unit, whole):
        for panel in original(self, unit, whole):
            panels.append((panel.first, panel.last))
            yield panel

    monkeypatch.setattr(kind, "panels", counted)
    assert_same(knn_graph(features, 40, positions=positions, memory_limit=minimum), expected)
    pieces = len(set(panels))  # it did work in pieces: 3 of 240 rows on the CPU, 3 of 64 emulated
    assert pieces == (3 if device != "cuda" else 11)
    assert panels == sorted(set(panels)) * 3
    panels.clear()
    assert_same(knn_graph(features, 40, positions=positions, memory_limit=2**31), expected)
    assert panels == [(0, num_nodes)]
    assert_is_graph_of(expected, features.cpu(), 40, positions.cpu(), near=1e-12 if make is lattice else NEAR)


def test_large_enough_for_several_blocks_under_the_emulator(emulated_module):
    features = clustered(1100, 6)
    with _native.use_emulator(emulated_module):
        graph = knn_graph(features, 30)
    assert_is_graph_of(graph, features, 30)


def test_layouts(device, to_device):
    features, positions = clustered(50, 9), places(50)
    expected = knn_graph(to_device(features), 11, positions=to_device(positions))
    wide = torch.full((100, 27), math.nan)
    wide[::2, 1::3] = features
    turned = positions.T.contiguous().T
    for view in (features.T.contiguous().T, wide[::2, 1::3]):
        assert torch.equal(view, features)
        assert_same(knn_graph(to_device(view), 11, positions=to_device(turned)), expected)


def test_inputs_are_not_written(device, to_device):
    features, positions = to_device(clustered(50, 9)), to_device(places(50).float())
    copies = features.clone(), positions.clone()
    knn_graph(features, 11, positions=positions)
    assert torch.equal(features, copies[0])
    assert torch.equal(positions, copies[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single(device, to_device, dtype):
    features = clustered(50, 9).to(dtype)
    graph = knn_graph(to_device(features), 11)
    assert graph.weights.dtype == torch.float32
    assert_same(graph, knn_graph(to_device(features.float()), 11))


def test_every_kind_of_array_gives_the_same(xp):
    there, back = xp
    features, positions = clustered(50, 9), places(50)
    graph = knn_graph(there(features), 11, positions=there(positions))
    for field in (graph.indptr, graph.indices, graph.weights, graph.degrees):
        assert type(field) is type(there(features))
    assert (graph.num_nodes, graph.nnz) == (50, len(graph.indices))
    assert all(isinstance(part, torch.Tensor) for part in graph.tensors())
    expected = knn_graph(features, 11, positions=positions)
    assert torch.equal(back(graph.indices), expected.indices)
    torch.testing.assert_close(back(graph.weights), expected.weights, rtol=1e-5, atol=0)


def test_not_differentiable(device, to_device):
    features = to_device(clustered(20, 5)).requires_grad_()
    graph = knn_graph(features, 4)
    assert not graph.weights.requires_grad
    assert not graph.degrees.requires_grad


# The Graph ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_to_sparse_csr(dtype):
    features = clustered(60, 7, dtype=dtype)
    features[7] = 0.0
    graph = knn_graph(features, 9)
    matrix = dense(graph).astype(np.float64)
    plain, normalized = graph.to_sparse_csr(normalized=False), graph.to_sparse_csr()
    for sparse in (plain, normalized):
        assert sparse.layout == torch.sparse_csr
        assert sparse.dtype == dtype
        assert sparse.shape == (60, 60)
        assert sparse.crow_indices().dtype == sparse.col_indices().dtype == torch.int32
    np.testing.assert_array_equal(plain.to_dense().numpy(), matrix)
    sums = matrix.sum(1)
    assert sums[7] == 0.0
    scale = 1.0 / np.sqrt(np.where(sums > 0, sums, 1.0))
    expected = scale[:, None] * matrix * scale
    np.testing.assert_allclose(normalized.to_dense().numpy(), expected, rtol=1e-6 if dtype == torch.float32 else 1e-14)
    assert torch.equal(normalized.to_dense(), normalized.to_dense().T)


def test_graph_of_numpy_arrays_serves_scipy_and_torch():
    features = clustered(60, 7)
    graph = knn_graph(features.numpy(), 9)
    matrix = scipy.sparse.csr_matrix((graph.weights, graph.indices, graph.indptr), (60, 60))
    assert matrix.has_sorted_indices
    expected = knn_graph(features, 9)
    np.testing.assert_array_equal(matrix.toarray(), dense(expected))
    assert torch.equal(graph.to_sparse_csr().values(), expected.to_sparse_csr().values())
    assert isinstance(graph.to("cpu").weights, torch.Tensor)


def test_graph_is_frozen():
    graph = knn_graph(clustered(5, 3), 2)
    with pytest.raises(AttributeError, match="cannot assign"):
        graph.weights = None


# The seams ----------------------------------------------------------------------------------------------------


def test_numbers_are_those_of_the_core():
    text = (Path(__file__).parents[1] / "csrc/graph/graph.h").read_text()
    numbers = {name.lower(): int(number) for name, number in re.findall(r"\bk(\w+) = (\d+)", text)}
    for name, number in operator.STAGES.items():
        assert numbers[name] == number
    assert numbers["grouprows"] == operator.GROUP_ROWS
    assert "int64_t{1} << 24" in text
    assert operator.MAX_NODES == 1 << 24


def test_reference_can_be_forced(monkeypatch):
    features = clustered(40, 6)
    expected = knn_graph(features, 9)
    monkeypatch.setenv("OVS_KERNELS_REFERENCE", "1")
    assert _native.cpu_module() is None
    graph = knn_graph(features, 9)
    assert torch.equal(graph.indices, expected.indices)
    torch.testing.assert_close(graph.weights, expected.weights, rtol=1e-5, atol=0)
    assert ovs_kernels.reference.graph.knn_graph(features, 9, None, 3.0, 0.01)[1].equal(graph.indices)
