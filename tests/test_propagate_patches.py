"""`ovs_kernels.lp_patches`, and `lp_graph` on graphs of `knn_graph`: against links made by loops, and SciPy."""

import graph_inputs
import numpy as np
import propagate_inputs as inputs
import pytest
import scipy.sparse
import torch

from ovs_kernels import knn_graph, lp_graph, lp_patches
from ovs_kernels.testing import assert_close_rel

# A similarity in float32 is off by 1e-7, and gamma and the solve magnify that. Seen: 3e-6.
SINGLE = 2e-5
# (N, d, C, k)
SIZES = [(1, 3, 1, 4), (2, 5, 2, 2), (30, 8, 3, 5), (75, 20, 9, 20), (90, 16, 21, 400)]


def case(num_nodes, num_features, num_classes):
    features = graph_inputs.clustered(num_nodes, num_features)
    return inputs.scores(num_nodes, num_classes), features, graph_inputs.places(num_nodes)


def weights(features, k, positions=None, **options):
    """W as a scipy matrix, by loops in float64."""
    return scipy.sparse.csr_array(graph_inputs.dense_oracle(features, k, positions, **options))


def test_features_to_scores(device, to_device):
    for num_nodes, num_features, num_classes, k in SIZES:
        scores, features, positions = case(num_nodes, num_features, num_classes)
        given = [to_device(part) for part in (scores, features, positions)]
        matrix = weights(features, k, positions)
        message = f"N={num_nodes}, d={num_features}, C={num_classes}, k={k}"
        assert_close_rel(lp_patches(*given, k=k), inputs.official(matrix, scores)[0], SINGLE, message=message)
        x, info = lp_patches(*given, k=k, mode="exact", return_info=True)
        assert_close_rel(x, inputs.exact(matrix, scores), SINGLE, message=message)
        assert (info.residuals < inputs.SINGLE_RESIDUAL).all()


def test_options_reach_both_stages(device, to_device):
    scores, features, positions = case(40, 8, 3)
    matrix = weights(features, 7, positions, gamma=5.0, sigma=0.03)
    options = {"k": 7, "gamma": 5.0, "sigma": 0.03, "alpha": 0.7, "max_iter": 4, "tol": 1e-3}
    expected, steps = inputs.official(matrix, scores, alpha=0.7, max_iter=4, tol=1e-3)
    x, info = lp_patches(*(to_device(part) for part in (scores, features, positions)), **options, return_info=True)
    assert_close_rel(x, expected, SINGLE)
    assert info.iterations.tolist() == steps.tolist()


def test_same_bits_as_the_two_stages(device, to_device):
    scores, features, positions = (to_device(part) for part in case(60, 8, 3))
    for places in (None, positions):
        graph = knn_graph(features, 9, positions=places)
        for mode in ("official", "exact"):
            one = lp_patches(scores, features, places, k=9, mode=mode)
            assert torch.equal(one, lp_graph(graph, scores, mode=mode))


def test_graph_is_like_its_matrix(device, to_device):
    scores, features, _ = (to_device(part) for part in case(60, 8, 3))
    graph = knn_graph(features, 9)
    assert_close_rel(lp_graph(graph, scores), lp_graph(graph.to_sparse_csr(normalized=False), scores), 3e-6)


def test_unusable_features_isolate_a_patch(device, to_device):
    scores, features, _ = case(40, 8, 3)
    features[3], features[17, 2] = 0.0, torch.nan
    x = lp_patches(to_device(scores), to_device(features), k=6, mode="exact").cpu()
    assert torch.equal(x[[3, 17]], scores[[3, 17]])
    assert_close_rel(x, inputs.exact(weights(features, 6), scores), SINGLE)


def test_nothing(device, to_device):
    assert lp_patches(to_device(torch.empty(0, 3)), to_device(torch.empty(0, 8))).shape == (0, 3)
    assert lp_patches(to_device(torch.empty(5, 0)), to_device(torch.rand(5, 8)), k=3).shape == (5, 0)


def test_double_precision():
    scores, features, positions = (part.double() for part in case(50, 8, 3))
    x = lp_patches(scores, features, positions, k=9, mode="exact", tol=1e-13)
    assert x.dtype == torch.float64
    assert_close_rel(x, inputs.exact(weights(features, 9, positions), scores), 1e-10)


def test_dtypes_of_scores_and_features_may_differ():
    scores, features, positions = case(50, 8, 3)
    expected = lp_patches(scores, features, positions, k=9)
    assert_close_rel(lp_patches(scores, features.double(), positions, k=9), expected, SINGLE)
    x = lp_patches(scores.double(), features, positions, k=9)
    assert x.dtype == torch.float64
    assert_close_rel(x, expected, SINGLE)


@pytest.mark.parametrize("threads", [1, 2])
def test_kinds_and_threads(num_threads, xp, threads):
    to_kind, back = xp
    scores, features, positions = case(70, 8, 3)
    expected = lp_patches(scores, features, positions, k=9)
    num_threads(threads)
    x = lp_patches(to_kind(scores), to_kind(features), to_kind(positions), k=9)
    assert type(x) is type(to_kind(scores))
    assert_close_rel(back(x), expected, 0.0 if type(x) in (np.ndarray, torch.Tensor) else SINGLE)


def test_gradient():
    scores, features, positions = case(40, 8, 3)
    cotangent, leaf = torch.randn(40, 3), scores.requires_grad_()
    features.requires_grad_()
    lp_patches(leaf, features, positions, k=9, mode="exact").backward(cotangent)
    assert_close_rel(leaf.grad, inputs.exact(weights(features.detach(), 9, positions), cotangent), SINGLE)
    assert features.grad is None


@pytest.mark.parametrize(
    ("scores", "features", "positions", "message"),
    [
        ((5, 2), (4, 3), None, "lp_patches: features: expected [N, d] with N=5 (those of scores), got [4, 3]"),
        ((5,), (5, 3), None, "lp_patches: scores: expected [N, C], got [5]"),
        ((5, 2), (5,), None, "lp_patches: features: expected [N, d] with N=5 (those of scores), got [5]"),
        ((5, 2), (5, 3), (4, 2), "knn_graph: positions: expected [N, 2] with N=5 (those of features), got [4, 2]"),
    ],
)
def test_shapes(scores, features, positions, message):
    arrays = [None if shape is None else torch.ones(shape) for shape in (scores, features, positions)]
    with pytest.raises(ValueError) as caught:
        lp_patches(*arrays)
    assert str(caught.value) == message
