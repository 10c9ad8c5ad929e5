"""What `lp_graph` says about bad input: one line, operator and argument, what was expected, what came."""

import types

import numpy as np
import propagate_inputs as inputs
import pytest
import scipy.sparse
import torch

from ovs_kernels import lp_graph

pytestmark = pytest.mark.filterwarnings("ignore:Sparse")  # what torch says about its own CSR tensors

KINDS = "an ovs_kernels.Graph, a torch.sparse_csr tensor, or a scipy or cupyx sparse matrix"
FLOATS = "float32 or float64 or float16 or bfloat16"


def graph(**changes):
    """A chain of four nodes, as the four arrays of an `ovs_kernels.Graph`, without its trust."""
    arrays = {
        "indptr": torch.tensor([0, 1, 3, 5, 6]),
        "indices": torch.tensor([1, 0, 2, 1, 3, 2]),
        "weights": torch.tensor([1.0, 1.0, 2.0, 2.0, 3.0, 3.0]),
    } | changes
    return arrays["indptr"], arrays["indices"], arrays["weights"]


def call(arrays, check=True, scores=None, mode="official"):
    """The operator itself: `lp_graph` on torch tensors cannot get a broken CSR past torch's own checks."""
    scores = torch.ones(4, 2) if scores is None else scores
    return torch.ops.ovs_kernels.lp_graph(*arrays, None, scores, 0.95, mode, None, 1e-6, check, False)[0]


def refused(error, message, function, *args, **options):
    with pytest.raises(error) as caught:
        function(*args, **options)
    assert str(caught.value) == f"lp_graph: {message}"


ROW_STARTS = "graph: expected row starts that rise from 0 to the number of links, got otherwise in row "
COLUMNS = "graph: expected columns in [0, N - 1] that ascend within a row, without repetition, got otherwise in row "
WEIGHTS = "graph: expected finite weights >= 0, with finite row sums, got otherwise in row "
SYMMETRY = (
    "graph: expected a symmetric matrix (w_ij = w_ji within 1e-4 of the larger; check=False skips this), "
    "got otherwise in row "
)

# (what to change in the chain, the message)
STRUCTURE = {
    "first row start": ({"indptr": torch.tensor([1, 1, 3, 5, 6])}, ROW_STARTS + "0"),
    "falling row starts": ({"indptr": torch.tensor([0, 3, 1, 5, 6])}, ROW_STARTS + "1"),
    "row start beyond the links": ({"indptr": torch.tensor([0, 1, 9, 5, 6])}, ROW_STARTS + "1"),
    "too few rows for the links": ({"indptr": torch.tensor([0, 1, 3, 5, 5])}, ROW_STARTS + "3"),
    "negative column": ({"indices": torch.tensor([1, 0, 2, -1, 3, 2])}, COLUMNS + "2"),
    "column beyond the nodes": ({"indices": torch.tensor([1, 0, 2, 1, 4, 2])}, COLUMNS + "2"),
    "unsorted": ({"indices": torch.tensor([1, 2, 0, 1, 3, 2])}, COLUMNS + "1"),
    "repeated": ({"indices": torch.tensor([1, 0, 0, 1, 3, 2])}, COLUMNS + "1"),
    "column that wraps to a good one": ({"indices": torch.tensor([1, 0, 2, 1, 3 + 2**32, 2])}, COLUMNS + "2"),
}
VALUES = {
    "negative": ({"weights": torch.tensor([1.0, 1.0, -2.0, -2.0, 3.0, 3.0])}, WEIGHTS + "1"),
    "NaN": ({"weights": torch.tensor([1.0, 1.0, 2.0, 2.0, float("nan"), float("nan")])}, WEIGHTS + "2"),
    "Inf": ({"weights": torch.tensor([float("inf"), float("inf"), 2.0, 2.0, 3.0, 3.0])}, WEIGHTS + "0"),
    "other value": ({"weights": torch.tensor([1.0, 1.0, 2.0, 2.001, 3.0, 3.0])}, SYMMETRY + "1"),
    "other pattern": ({"indices": torch.tensor([1, 0, 3, 1, 3, 2])}, SYMMETRY + "1"),
    "twin missing above": (
        {
            "indptr": torch.tensor([0, 0, 2, 4, 5]),
            "indices": torch.tensor([0, 2, 1, 3, 2]),
            "weights": torch.tensor([1.0, 2.0, 2.0, 3.0, 3.0]),
        },
        SYMMETRY + "1",
    ),
    "twin missing below": (
        {
            "indptr": torch.tensor([0, 1, 3, 5, 5]),
            "indices": torch.tensor([1, 0, 2, 1, 3]),
            "weights": torch.tensor([1.0, 1.0, 2.0, 2.0, 3.0]),
        },
        SYMMETRY + "2",
    ),
}


@pytest.mark.parametrize("index", [torch.int32, torch.int64])
@pytest.mark.parametrize("name", STRUCTURE)
def test_structure(device, to_device, name, index):
    changes, message = STRUCTURE[name]
    arrays = graph(**changes)
    if index == torch.int32 and arrays[1].max() >= 2**31:
        pytest.skip("does not fit")
    arrays = [to_device(part) for part in (arrays[0].to(index), arrays[1].to(index), arrays[2])]
    refused(ValueError, message, call, arrays, scores=to_device(torch.ones(4, 2)))
    if device == "cpu":  # never skipped there: the kernel would read out of bounds
        refused(ValueError, message, call, arrays, check=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", VALUES)
def test_values(device, to_device, name, dtype):
    changes, message = VALUES[name]
    arrays, scores = [to_device(part) for part in graph(**changes)], to_device(torch.ones(4, 2, dtype=dtype))
    where = message.rpartition(" ")[0]  # an asymmetry shows in two rows; which one is told is not promised
    with pytest.raises(ValueError) as caught:
        call(arrays, scores=scores)
    assert str(caught.value).rpartition(" ")[0] == f"lp_graph: {where}"
    if "symmetric" not in message:
        assert str(caught.value) == f"lp_graph: {message}"
    assert call(arrays, check=False, scores=scores).shape == (4, 2)


def test_row_sum_beyond_float32():
    # Each weight is finite, the degree is not.
    values = np.float32(2e38) * np.ones((3, 3), np.float32)
    refused(ValueError, WEIGHTS + "0", lp_graph, scipy.sparse.csr_array(values), torch.ones(3, 1))


@pytest.mark.parametrize("place", [0, 1, 50, 99, 120, 149])
def test_one_asymmetric_link_among_many(num_threads, place):
    matrix = inputs.weights(150, 20, isolated=False)
    scores = torch.ones(150, 1)
    lp_graph(matrix, scores)
    link = matrix.indptr[place]
    for threads in (1, 2):
        num_threads(threads)
        for change in ("value", "column"):
            bad = matrix.copy()
            if change == "value":
                bad.data[link] *= np.float32(1.001)
            else:
                bad = bad.tolil()
                bad[place, matrix.indices[link]] = 0.0
                bad = scipy.sparse.csr_array(bad)
                bad.eliminate_zeros()
            with pytest.raises(ValueError, match="expected a symmetric matrix"):
                lp_graph(bad, scores)


def test_rounding_is_no_asymmetry(device, to_device):
    matrix = inputs.weights(60, 8)
    noise = 1 + 2e-5 * np.random.default_rng(3).standard_normal(matrix.nnz).clip(-2, 2)
    noisy = scipy.sparse.csr_array(
        (matrix.data * noise.astype(np.float32), matrix.indices, matrix.indptr), matrix.shape
    )
    assert lp_graph(noisy, to_device(inputs.scores(60, 2))).isfinite().all()


def test_own_graphs_are_trusted():
    indptr, indices, weights = graph(weights=torch.tensor([1.0, 1.0, 2.0, 2.5, 3.0, 3.0]))
    own = types.SimpleNamespace(indptr=indptr, indices=indices, weights=weights, degrees=torch.ones(4))
    assert lp_graph(own, torch.ones(4, 2)).isfinite().all()


SHAPES = {
    "row starts of rank 2": ({"indptr": torch.zeros(1, 5, dtype=torch.int32)}, "indptr: expected [N + 1], got [1, 5]"),
    "no row starts": ({"indptr": torch.zeros(0, dtype=torch.int32)}, "indptr: expected at least one entry, got none"),
    "columns of rank 2": ({"indices": torch.zeros(2, 3, dtype=torch.int32)}, "indices: expected [L], got [2, 3]"),
    "fewer weights": ({"weights": torch.ones(5)}, "weights: expected [L] with L=6 (those of indices), got [5]"),
}
DTYPES = {
    "float row starts": ({"indptr": torch.zeros(5)}, "indptr: expected int32 or int64, got float32"),
    "short columns": ({"indices": torch.zeros(6, dtype=torch.int16)}, "indices: expected int32 or int64, got int16"),
    "integer weights": ({"weights": torch.ones(6, dtype=torch.int64)}, f"weights: expected {FLOATS}, got int64"),
}


@pytest.mark.parametrize("name", [*SHAPES, *DTYPES])
def test_arrays_of_the_graph(name):
    changes, message = (SHAPES | DTYPES)[name]
    refused(ValueError if name in SHAPES else TypeError, f"graph: {message}", call, graph(**changes))


CHAIN = inputs.weights(4, 3, isolated=False)
# (graph, scores, options, exception, message)
CALLS = {
    "length of scores": (
        (CHAIN, torch.ones(5, 2), {}),
        ValueError,
        "scores: expected [N, C] with N=4 (those of graph), got [5, 2]",
    ),
    "rank of scores": (
        (CHAIN, torch.ones(4), {}),
        ValueError,
        "scores: expected [N, C] with N=4 (those of graph), got [4]",
    ),
    "integer scores": (
        (CHAIN, torch.ones(4, 2, dtype=torch.int32), {}),
        TypeError,
        f"scores: expected {FLOATS}, got int32",
    ),
    "list of scores": (
        (CHAIN, [[1.0]], {}),
        TypeError,
        "scores: expected a torch tensor, a numpy array or a CUDA array with __dlpack__, got list",
    ),
    "list as a graph": (([[0, 1], [1, 0]], torch.ones(2, 1), {}), TypeError, f"graph: expected {KINDS}, got list"),
    "no graph": ((None, torch.ones(2, 1), {}), TypeError, f"graph: expected {KINDS}, got None"),
    "dense tensor": (
        (torch.eye(4), torch.ones(4, 1), {}),
        TypeError,
        f"graph: expected {KINDS}, got a tensor of layout strided",
    ),
    "coordinates": (
        (torch.eye(4).to_sparse_coo(), torch.ones(4, 1), {}),
        TypeError,
        f"graph: expected {KINDS}, got a tensor of layout sparse_coo",
    ),
    "oblong tensor": (
        (torch.ones(3, 4).to_sparse(), torch.ones(4, 1), {"csr": True}),
        ValueError,
        "graph: expected a square matrix [N, N], got [3, 4]",
    ),
    "oblong matrix": (
        (scipy.sparse.csr_array((3, 4)), torch.ones(3, 1), {}),
        ValueError,
        "graph: expected a square matrix [N, N], got [3, 4]",
    ),
    "alpha of one": (
        (CHAIN, torch.ones(4, 1), {"alpha": 1.0}),
        ValueError,
        "alpha: expected a number in (0, 1), got 1.0",
    ),
    "unknown mode": (
        (CHAIN, torch.ones(4, 1), {"mode": "fast"}),
        ValueError,
        "mode: expected 'official' or 'exact', got 'fast'",
    ),
    "no steps": (
        (CHAIN, torch.ones(4, 1), {"max_iter": 0}),
        ValueError,
        "max_iter: expected an integer in [1, 2147483647], got 0",
    ),
    "exact without tol": (
        (CHAIN, torch.ones(4, 1), {"mode": "exact", "tol": 0.0}),
        ValueError,
        "tol: expected a number in (0, 1), got 0.0",
    ),
    "negative tol": (
        (CHAIN, torch.ones(4, 1), {"tol": -1.0}),
        ValueError,
        "tol: expected a finite number >= 0, got -1.0",
    ),
    "check as a string": (
        (CHAIN, torch.ones(4, 1), {"check": "no"}),
        TypeError,
        "check: expected True or False, got str",
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_calls(name):
    (matrix, scores, options), error, message = CALLS[name]
    if options.get("csr"):
        matrix, options = matrix.to_sparse_csr(), {}
    refused(error, message, lp_graph, matrix, scores, **options)


def test_devices():
    arrays = graph()
    scores = torch.ones(4, 2, device="meta")
    refused(ValueError, "graph: expected device meta (that of scores), got cpu", call, arrays, scores=scores)
    mixed = [arrays[0].to("meta"), *arrays[1:]]
    refused(ValueError, "indptr: expected device cpu (that of graph), got meta", call, mixed)
