"""What `attention_mean` says about bad input: one line, what was expected, what came."""

import numpy as np
import pytest
import torch

from ovs_kernels import attention_mean

FLOATS = "float32 or float64 or float16 or bfloat16"


def ones(*shape, dtype=torch.float32):
    return torch.ones(shape, dtype=dtype)


TWO = {"queries": [ones(2, 6, 4), ones(3, 6, 5)], "keys": [ones(2, 6, 4), ones(3, 6, 5)]}

# (what to change in a good call, exception, the message after "attention_mean: ")
CASES = {
    # queries and keys
    "rank 2": ({"queries": ones(6, 4)}, ValueError, "queries: expected [heads, N, d], got [6, 4]"),
    "rank 4": ({"keys": ones(1, 2, 6, 4)}, ValueError, "keys: expected [heads, N, d], got [1, 2, 6, 4]"),
    "integers": (
        {"queries": ones(2, 6, 4, dtype=torch.int32)},
        TypeError,
        f"queries: expected {FLOATS}, got int32",
    ),
    "dtypes": (
        {"keys": ones(2, 6, 4, dtype=torch.float16)},
        TypeError,
        "keys: expected float32 (that of queries), got float16",
    ),
    "devices": (
        {"keys": torch.ones(2, 6, 4, device="meta")},
        ValueError,
        "keys: expected device cpu (that of queries), got meta",
    ),
    "kinds": (
        {"keys": np.ones((2, 6, 4), np.float32)},
        TypeError,
        "keys: expected torch.Tensor (the kind of queries), got numpy.ndarray",
    ),
    "None": (
        {"queries": None},
        TypeError,
        "queries: expected a torch tensor, a numpy array or a CUDA array with __dlpack__, got None",
    ),
    "heads": (
        {"keys": ones(3, 6, 4)},
        ValueError,
        "keys: expected [heads, N, d] with heads=2, d=4 (those of queries), got [3, 6, 4]",
    ),
    "features": (
        {"keys": ones(2, 6, 5)},
        ValueError,
        "keys: expected [heads, N, d] with heads=2, d=4 (those of queries), got [2, 6, 5]",
    ),
    "no head": (
        {"queries": ones(0, 6, 4), "keys": ones(0, 6, 4)},
        ValueError,
        "queries: expected at least one head, got heads=0",
    ),
    "no feature": (
        {"queries": ones(2, 6, 0), "keys": ones(2, 6, 0)},
        ValueError,
        "queries: expected at least one feature, got d=0",
    ),
    "no key": ({"keys": ones(2, 0, 4)}, ValueError, "keys: expected at least one key, got N=0"),
    # blocks
    "no block": ({"queries": []}, ValueError, "queries: expected at least one array, got an empty list"),
    "fewer blocks of keys": (
        {**TWO, "keys": TWO["keys"][:1]},
        ValueError,
        "keys: expected one block per block of queries, 2, got 1",
    ),
    "queries of the second block": (
        {**TWO, "queries": [ones(2, 6, 4), ones(3, 7, 5)]},
        ValueError,
        "queries[1]: expected [heads, N, d] with N=6 (those of queries[0]), got [3, 7, 5]",
    ),
    "keys of the second block": (
        {**TWO, "keys": [ones(2, 6, 4), ones(3, 7, 5)]},
        ValueError,
        "keys[1]: expected [heads, N, d] with heads=3, N=6, d=5 (those of queries[1] and keys[0]), got [3, 7, 5]",
    ),
    "dtype of the second block": (
        {**TWO, "queries": [ones(2, 6, 4), ones(3, 6, 5).double()]},
        TypeError,
        "queries[1]: expected float32 (that of queries[0]), got float64",
    ),
    # weights
    "too few weights": ({**TWO, "weights": [1.0]}, ValueError, "weights: expected one number per block, 2, got 1"),
    "a negative weight": ({"weights": [-1.0]}, ValueError, "weights: expected a finite number >= 0, got -1.0"),
    "a weight that is NaN": ({"weights": [np.nan]}, ValueError, "weights: expected a finite number >= 0, got nan"),
    "weights of zero": (
        {**TWO, "weights": [0, 0]},
        ValueError,
        "weights: expected numbers >= 0 with a finite sum above zero, got the sum 0",
    ),
    "a number as weights": ({"weights": 1.0}, TypeError, "weights: expected a list of numbers or None, got float"),
    "words as weights": ({"weights": ["a"]}, TypeError, "weights: expected numbers, got str"),
    # scale
    "a scale of zero": ({"scale": 0.0}, ValueError, "scale: expected a finite number > 0, got 0.0"),
    "an infinite scale": ({"scale": np.inf}, ValueError, "scale: expected a finite number > 0, got inf"),
    "a word as scale": ({"scale": "a"}, TypeError, "scale: expected a number or None, got str"),
    # kept tokens
    "no token": ({"keep": []}, ValueError, "keep: expected at least one token, got none"),
    "a token beyond the end": ({"keep": [0, 6]}, ValueError, "keep: expected an integer in [0, 5], got 6"),
    "a negative token": ({"keep": [-1]}, ValueError, "keep: expected an integer in [0, 5], got -1"),
    "a token twice": ({"keep": [3, 1, 3]}, ValueError, "keep: expected each token once, got 3 twice"),
    "half a token": ({"keep": [0.5]}, TypeError, "keep: expected integers, got list [0.5]"),
    "a mask": (
        {"keep": torch.ones(6, dtype=torch.bool)},
        TypeError,
        "keep: expected uint8 or int8 or int16 or int32 or int64, got bool",
    ),
    "all dropped": (
        {"drop_first": 6},
        ValueError,
        "drop_first: expected less than the number of tokens, 6, got 6",
    ),
    "fewer than none dropped": ({"drop_first": -1}, ValueError, "drop_first: expected an integer >= 0, got -1"),
    "half a token dropped": ({"drop_first": 0.5}, TypeError, "drop_first: expected an integer, got float"),
    "both": ({"keep": [1], "drop_first": 1}, ValueError, "drop_first: expected 0 where keep is given, got 1"),
    "dropped from a rectangle": (
        {"queries": ones(2, 5, 4), "drop_first": 1},
        ValueError,
        "queries: expected as many queries as keys where tokens are dropped, Nk=6, got Nq=5",
    ),
    # dtype
    "an integer dtype": ({"dtype": torch.int8}, TypeError, f"dtype: expected {FLOATS}, got int8"),
    "a word as dtype": ({"dtype": "float16"}, TypeError, "dtype: expected a torch dtype or None, got str"),
}


@pytest.mark.parametrize("name", CASES)
def test_message(name):
    change, exception, message = CASES[name]
    arguments = {"queries": ones(2, 6, 4), "keys": ones(2, 6, 4), **change}
    with pytest.raises(exception) as error:
        attention_mean(**arguments)
    assert str(error.value) == f"attention_mean: {message}"


def test_operator_checks_too():
    # Whoever calls the operator itself meets the same plan, on meta tensors as well.
    for device in ("cpu", "meta"):
        blocks = [torch.ones(2, 6, 4, device=device)], [torch.ones(2, 6, 5, device=device)]
        with pytest.raises(ValueError, match="attention_mean: keys: expected"):
            torch.ops.ovs_kernels.attention_mean(*blocks, None, None, None, 0, None, False)


def test_gradient_is_refused_in_words():
    queries = torch.randn(2, 6, 4, requires_grad=True)
    assert not attention_mean(queries, queries).requires_grad
