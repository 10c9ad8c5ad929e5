"""What `knn_graph` says about bad input: one line, operator and argument, what was expected, what came."""

import math

import numpy as np
import pytest
import torch

from ovs_kernels import knn_graph

FLOATS = "float32 or float64 or float16 or bfloat16"
POSITIONS = "positions: expected [N, 2] with N=6 (those of features), got"

# (what to change in a good call, exception, the message after "knn_graph: ")
CASES = {
    "features rank 1": ({"features": (6,)}, ValueError, "features: expected [N, d], got [6]"),
    "features rank 3": ({"features": (1, 6, 4)}, ValueError, "features: expected [N, d], got [1, 6, 4]"),
    "integer features": (
        {"features": torch.zeros(6, 4, dtype=torch.int64)},
        TypeError,
        f"features: expected {FLOATS}, got int64",
    ),
    "complex features": (
        {"features": torch.zeros(6, 4, dtype=torch.complex64)},
        TypeError,
        f"features: expected {FLOATS}, got complex64",
    ),
    "too few positions": ({"positions": (5, 2)}, ValueError, f"{POSITIONS} [5, 2]"),
    "too many positions": ({"positions": (7, 2)}, ValueError, f"{POSITIONS} [7, 2]"),
    "positions in space": ({"positions": (6, 3)}, ValueError, f"{POSITIONS} [6, 3]"),
    "positions of a line": ({"positions": (6,)}, ValueError, f"{POSITIONS} [6]"),
    "transposed positions": ({"positions": (2, 6)}, ValueError, f"{POSITIONS} [2, 6]"),
    "true or false positions": (
        {"positions": torch.zeros(6, 2, dtype=torch.bool)},
        TypeError,
        f"positions: expected {FLOATS} or uint8 or int8 or int16 or int32 or int64, got bool",
    ),
    "devices": (
        {"positions": torch.zeros(6, 2, device="meta")},
        ValueError,
        "positions: expected device cpu (that of features), got meta",
    ),
    "list of features": (
        {"features": [[1.0]]},
        TypeError,
        "features: expected a torch tensor, a numpy array or a CUDA array with __dlpack__, got list",
    ),
    "mixed kinds": (
        {"positions": np.zeros((6, 2))},
        TypeError,
        "positions: expected torch.Tensor (the kind of features), got numpy.ndarray",
    ),
    "no neighbour": ({"k": 0}, ValueError, "k: expected an integer >= 1, got 0"),
    "negative k": ({"k": -3}, ValueError, "k: expected an integer >= 1, got -3"),
    "half a neighbour": ({"k": 2.5}, TypeError, "k: expected an integer, got float"),
    "k in words": ({"k": "all"}, TypeError, "k: expected an integer, got str"),
    "gamma of 0": ({"gamma": 0.0}, ValueError, "gamma: expected a finite number > 0, got 0.0"),
    "negative gamma": ({"gamma": -1.0}, ValueError, "gamma: expected a finite number > 0, got -1.0"),
    "gamma not a number": ({"gamma": math.nan}, ValueError, "gamma: expected a finite number > 0, got nan"),
    "infinite gamma": ({"gamma": math.inf}, ValueError, "gamma: expected a finite number > 0, got inf"),
    "negative sigma": ({"sigma": -0.1}, ValueError, "sigma: expected a finite number >= 0, got -0.1"),
    "sigma not a number": ({"sigma": math.nan}, ValueError, "sigma: expected a finite number >= 0, got nan"),
    "infinite sigma": ({"sigma": math.inf}, ValueError, "sigma: expected a finite number >= 0, got inf"),
    "memory limit of 0": ({"memory_limit": 0}, ValueError, "memory_limit: expected an integer >= 1, got 0"),
}


@pytest.mark.parametrize("name", CASES)
def test_one_line_that_names_the_argument(device, to_device, name):
    changes, exception, message = CASES[name]
    arguments = {"features": torch.rand(6, 4), "k": 3}
    for key, value in changes.items():
        arguments[key] = torch.rand(value) if isinstance(value, tuple) else value
    for key in ("features", "positions"):
        if isinstance(arguments.get(key), torch.Tensor) and arguments[key].device.type == "cpu":
            arguments[key] = to_device(arguments[key])
    if device == "cuda" and name == "devices":
        message = "positions: expected device cuda:0 (that of features), got meta"
    with pytest.raises(exception) as raised:
        knn_graph(**arguments)
    assert str(raised.value) == f"knn_graph: {message}"


@pytest.mark.parametrize(
    "changes",
    [
        {"features": torch.zeros(6, 4, dtype=torch.int64)},
        {"features": torch.rand(6)},
        {"positions": torch.rand(5, 2)},
        {"k": 0},
        {"gamma": 0.0},
        {"sigma": -1.0},
        {"memory_limit": 0},
    ],
)
def test_same_message_past_the_public_function(changes):
    settings = {"k": 3, "positions": None, "gamma": 3.0, "sigma": 0.01, "memory_limit": None}
    arguments = {"features": torch.rand(6, 4)} | settings | changes
    with pytest.raises((TypeError, ValueError), match=r"^knn_graph: ") as raised:
        torch.ops.ovs_kernels.knn_graph(**arguments)
    on_meta = {key: value.to("meta") if isinstance(value, torch.Tensor) else value for key, value in arguments.items()}
    with pytest.raises(type(raised.value)) as raised_on_meta:
        torch.ops.ovs_kernels.knn_graph(**on_meta)
    assert str(raised_on_meta.value) == str(raised.value)


@pytest.mark.parametrize("changes", [{"k": 0}, {"gamma": 0.0}, {"positions": torch.zeros(1, 2)}])
def test_empty_arrays_are_checked_as_well(changes):
    with pytest.raises(ValueError, match=f"^knn_graph: {next(iter(changes))}: "):
        knn_graph(torch.zeros(0, 4), **{"k": 3} | changes)


def test_memory_limit_too_small_states_the_minimum(device, to_device):
    features = to_device(torch.rand(40, 4))
    with pytest.raises(ValueError, match=r"^knn_graph: memory_limit: expected at least \d+ bytes") as raised:
        knn_graph(features, 5, memory_limit=1000)
    assert str(raised.value).endswith("got 1000")
    minimum = int(str(raised.value).split("at least ")[1].split(" ")[0])
    knn_graph(features, 5, memory_limit=minimum)  # what the message states is enough
    with pytest.raises(ValueError, match="memory_limit"):
        knn_graph(features, 5, memory_limit=minimum - 1)


def test_too_many_nodes_and_links(monkeypatch):
    from ovs_kernels._ops import graph as operator

    with pytest.raises(ValueError, match=r"^knn_graph: features: expected at most 16777216 rows, got 16777217$"):
        knn_graph(torch.zeros(1, 1).expand(2**24 + 1, 1), 3)
    monkeypatch.setattr(operator, "MAX_LINKS", 20)
    with pytest.raises(ValueError, match=r"^knn_graph: k: expected at most 20 links in the graph, got 30 with k=6$"):
        knn_graph(torch.ones(6, 4), 6)


def test_missing_argument():
    with pytest.raises(TypeError, match=r"knn_graph\(\) missing 1 required positional argument: 'k'"):
        knn_graph(torch.rand(2, 4))
    with pytest.raises(TypeError, match=r"takes 2 positional arguments but 3 were given"):
        knn_graph(torch.rand(2, 4), 3, torch.rand(2, 2))
