"""The definition of `knn_graph` against numbers worked out by hand and against loops in NumPy."""

import math

import numpy as np
import pytest
import torch
from graph_inputs import clustered, dense_oracle, lattice, places

from ovs_kernels.reference import graph as reference

# (1, 0), (3/5, 4/5), (0, 1), (-1, 0): cosines ab 0.6, bc 0.8, ac 0, cd 0, bd -0.6, ad -1.
FEATURES = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)


def test_by_hand():
    # One neighbour each: a -> b, b -> c, c -> b, and d -> c with cosine 0, which is no link.
    expected = torch.zeros(4, 4, dtype=torch.float64)
    expected[0, 1] = expected[1, 0] = 0.6
    expected[1, 2] = expected[2, 1] = 1.6
    result = reference.dense_graph(FEATURES, 2, None, 1.0, 0.0)
    torch.testing.assert_close(result, expected, rtol=1e-15, atol=0)
    cubed = reference.dense_graph(FEATURES, 2, None, 3.0, 0.0)
    assert cubed[0, 1].item() == pytest.approx(0.216, rel=1e-14)
    assert cubed[1, 2].item() == pytest.approx(1.024, rel=1e-14)


def test_positions_by_hand():
    positions = torch.tensor([[0.0, 0.0], [3.0, 4.0], [3.0, 16.0], [0.0, 0.0]], dtype=torch.float64)
    result = reference.dense_graph(FEATURES, 2, positions, 1.0, 0.1)
    assert result[0, 1].item() == pytest.approx(0.6 * math.exp(-0.5), rel=1e-14)  # 5 pixels apart
    assert result[1, 2].item() == pytest.approx(1.6 * math.exp(-1.2), rel=1e-14)  # 12 pixels


def test_compressed_rows():
    indptr, indices, weights, degrees = reference.knn_graph(FEATURES, 2, None, 1.0, 0.0)
    assert indptr.dtype == indices.dtype == torch.int32
    assert indptr.tolist() == [0, 1, 3, 4, 4]
    assert indices.tolist() == [1, 0, 2, 1]
    assert weights.tolist() == pytest.approx([0.6, 0.6, 1.6, 1.6])
    assert degrees.tolist() == pytest.approx([0.6, 2.2, 1.6, 0.0])


@pytest.mark.parametrize(("num_nodes", "k"), [(1, 1), (2, 2), (7, 3), (30, 8), (30, 29), (30, 30), (30, 99)])
@pytest.mark.parametrize("gamma", [1.0, 3.0, 2.5])
def test_against_loops(num_nodes, k, gamma):
    features, positions = clustered(num_nodes, 6, dtype=torch.float64), places(num_nodes).double()
    for where in (None, positions):
        result = reference.dense_graph(features, k, where, gamma, 0.01)
        np.testing.assert_allclose(result.numpy(), dense_oracle(features, k, where, gamma), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("k", [2, 5, 17])
def test_ties_go_to_the_lower_column(k):
    features = lattice(60).double()
    expected = dense_oracle(features, k, gamma=1.0)
    np.testing.assert_array_equal(reference.dense_graph(features, k, None, 1.0, 0.0).numpy(), expected)


def test_a_node_is_its_own_first_neighbour():
    # All equal: with k = 3 each node takes itself and the two lowest others.
    chosen = reference.nearest(torch.ones(5, 5), 3)
    expected = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 0, 0], [1, 1, 0, 1, 0], [1, 1, 0, 0, 1]])
    assert torch.equal(chosen, expected.bool())


@pytest.mark.parametrize("scale", [1e-300, 1e-160, 1.0, 1e160, 1e300])
def test_norm_neither_overflows_nor_vanishes(scale):
    unit = reference.unit_rows(torch.tensor([[3.0, 4.0]], dtype=torch.float64) * scale)
    torch.testing.assert_close(unit, torch.tensor([[0.6, 0.8]], dtype=torch.float64), rtol=1e-14, atol=0)


def test_rows_without_a_norm():
    features = torch.tensor([[0.0, 0.0], [math.nan, 1.0], [math.inf, 1.0], [-math.inf, math.nan]])
    assert torch.equal(reference.unit_rows(features), torch.zeros(4, 2))
    assert reference.unit_rows(torch.zeros(3, 0)).shape == (3, 0)
    assert reference.unit_rows(torch.zeros(0, 4)).shape == (0, 4)


def test_weight_that_vanishes_is_zero():
    positions = torch.tensor([[0.0, 0.0], [0.0, 80.0], [0.0, 175.0]], dtype=torch.float64)
    features = torch.ones(3, 2, dtype=torch.float64)
    result = reference.dense_graph(features, 3, positions, 1.0, 1.0)
    assert result[0, 1].item() == pytest.approx(2 * math.exp(-80), rel=1e-12)
    assert result[1, 2].item() == 0.0  # e^-95
    assert result[0, 2].item() == 0.0
