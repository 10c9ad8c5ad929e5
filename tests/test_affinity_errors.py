"""What `affinity_pool` says about bad input: one line, what was expected, what came."""

import numpy as np
import pytest
import torch

from ovs_kernels import affinity_pool

FLOATS = "float32 or float64 or float16 or bfloat16"
KINDS = "a torch tensor, a numpy array or a CUDA array with __dlpack__"


def ones(*shape, dtype=torch.float32):
    return torch.ones(shape, dtype=dtype)


# (what to change in a good call, exception, the message after "affinity_pool: ")
CASES = {
    "rank 1": ({"features": ones(6)}, ValueError, "features: expected [N, D] or [n, N, D], got [6]"),
    "rank 4": ({"features": ones(1, 1, 6, 4)}, ValueError, "features: expected [N, D] or [n, N, D], got [1, 1, 6, 4]"),
    "integers": ({"features": ones(6, 4, dtype=torch.int32)}, TypeError, f"features: expected {FLOATS}, got int32"),
    "integer guide": ({"guide": ones(6, 3, dtype=torch.uint8)}, TypeError, f"guide: expected {FLOATS}, got uint8"),
    "float64 features": (
        {"features": ones(6, 4, dtype=torch.float64)},
        TypeError,
        "guide: expected float64 (that of features), got float32",
    ),
    "float64 guide": (
        {"guide": ones(6, 3, dtype=torch.float64)},
        TypeError,
        "guide: expected float32 (that of features), got float64",
    ),
    "patches": ({"guide": ones(5, 3)}, ValueError, "guide: expected [N, G] with N=6 (those of features), got [5, 3]"),
    "windows of the features only": (
        {"features": ones(2, 6, 4)},
        ValueError,
        "guide: expected [n, N, G] with n=2, N=6 (those of features), got [6, 3]",
    ),
    "windows of the guide only": (
        {"guide": ones(2, 6, 3)},
        ValueError,
        "guide: expected [N, G] with N=6 (those of features), got [2, 6, 3]",
    ),
    "numbers of windows": (
        {"features": ones(2, 6, 4), "guide": ones(3, 6, 3)},
        ValueError,
        "guide: expected [n, N, G] with n=2, N=6 (those of features), got [3, 6, 3]",
    ),
    "no guide feature": ({"guide": ones(6, 0)}, ValueError, "guide: expected at least one guide feature, got G=0"),
    "devices": (
        {"guide": torch.ones(6, 3, device="meta")},
        ValueError,
        "guide: expected device cpu (that of features), got meta",
    ),
    "kinds": (
        {"guide": np.ones((6, 3), np.float32)},
        TypeError,
        "guide: expected torch.Tensor (the kind of features), got numpy.ndarray",
    ),
    "None": ({"features": None}, TypeError, f"features: expected {KINDS}, got None"),
    "a list": ({"guide": [[1.0]]}, TypeError, f"guide: expected {KINDS}, got list"),
    "unknown form": (
        {"form": "softmax"},
        ValueError,
        "form: expected 'clip_dinoiser' or 'proxyclip', got 'softmax'",
    ),
    "form that is a number": ({"form": 1}, TypeError, "form: expected a string, got int"),
    "threshold NaN": ({"threshold": np.nan}, ValueError, "threshold: expected a number in (-inf, inf), got nan"),
    "threshold infinite": ({"threshold": np.inf}, ValueError, "threshold: expected a number in (-inf, inf), got inf"),
    "threshold None": ({"threshold": None}, TypeError, "threshold: expected a number, got None"),
    "beta infinite": ({"beta": -np.inf}, ValueError, "beta: expected a number in (-inf, inf), got -inf"),
    "gamma zero": ({"gamma": 0.0}, ValueError, "gamma: expected a finite number > 0, got 0.0"),
    "gamma negative": ({"gamma": -3}, ValueError, "gamma: expected a finite number > 0, got -3.0"),
    "gamma a string": ({"gamma": "3"}, TypeError, "gamma: expected a number, got str"),
    "assume_normalized": ({"assume_normalized": 1}, TypeError, "assume_normalized: expected True or False, got int"),
}


@pytest.mark.parametrize("name", CASES)
def test_message(name):
    changed, exception, message = CASES[name]
    arguments = {"features": ones(6, 4), "guide": ones(6, 3), **changed}
    with pytest.raises(exception) as caught:
        affinity_pool(**arguments)
    assert str(caught.value) == f"affinity_pool: {message}"


def test_options_are_keywords():
    with pytest.raises(TypeError, match="positional"):
        affinity_pool(ones(6, 4), ones(6, 3), "proxyclip")


def test_checks_come_before_empty_results():
    with pytest.raises(ValueError, match="gamma: expected a finite number > 0"):
        affinity_pool(ones(0, 4), ones(0, 3), gamma=0.0)
