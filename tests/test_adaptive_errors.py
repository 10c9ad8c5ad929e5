"""What `adaptive_conv` says about bad input: one line, what was expected, what came."""

import re

import numpy as np
import pytest
import torch

from ovs_kernels import adaptive_conv


def ones(*shape, dtype=torch.float32):
    return torch.ones(shape, dtype=dtype)


# A good call: B=2, C=3, H=4, W=5, k1=k2=3.
INPUT, FILTERS = ones(2, 3, 6, 7), ones(2, 4, 5, 3, 3)

# (what to change in a good call, exception, the message after "adaptive_conv: ")
CASES = {
    "input of rank 3": (
        {"input": ones(3, 6, 7)},
        ValueError,
        "input: expected [B, C, H + k1 - 1, W + k2 - 1], got [3, 6, 7]",
    ),
    "filters of rank 4": (
        {"filters": ones(2, 4, 5, 9)},
        ValueError,
        "filters: expected [B, H, W, k1, k2], got [2, 4, 5, 9]",
    ),
    "unpadded input": (
        {"input": ones(2, 3, 4, 5)},
        ValueError,
        "input: expected [B, C, H + k1 - 1, W + k2 - 1] = [2, 3, 6, 7] with H=4, W=5, k1=3, k2=3 (those of filters), "
        "got [2, 3, 4, 5]",
    ),
    "a row too many": (
        {"input": ones(2, 3, 7, 7)},
        ValueError,
        "input: expected [B, C, H + k1 - 1, W + k2 - 1] = [2, 3, 6, 7] with H=4, W=5, k1=3, k2=3 (those of filters), "
        "got [2, 3, 7, 7]",
    ),
    "a column too few": (
        {"input": ones(2, 3, 6, 6)},
        ValueError,
        "input: expected [B, C, H + k1 - 1, W + k2 - 1] = [2, 3, 6, 7] with H=4, W=5, k1=3, k2=3 (those of filters), "
        "got [2, 3, 6, 6]",
    ),
    "another batch": (
        {"filters": ones(1, 4, 5, 3, 3)},
        ValueError,
        "filters: expected [B, H, W, k1, k2] with B=2 (those of input), got [1, 4, 5, 3, 3]",
    ),
    "no row of taps": (
        {"filters": ones(2, 4, 5, 0, 3)},
        ValueError,
        "filters: expected at least one tap, k1 >= 1 and k2 >= 1, got k1=0, k2=3",
    ),
    "no column of taps": (
        {"filters": ones(2, 4, 5, 3, 0)},
        ValueError,
        "filters: expected at least one tap, k1 >= 1 and k2 >= 1, got k1=3, k2=0",
    ),
    "integers": (
        {"input": ones(2, 3, 6, 7, dtype=torch.int64)},
        TypeError,
        "input: expected float32 or float64 or float16 or bfloat16, got int64",
    ),
    "integer filters": (
        {"filters": ones(2, 4, 5, 3, 3, dtype=torch.uint8)},
        TypeError,
        "filters: expected float32 or float64 or float16 or bfloat16, got uint8",
    ),
    "two dtypes": (
        {"filters": FILTERS.half()},
        TypeError,
        "filters: expected float32 (that of input), got float16",
    ),
    "two devices": (
        {"filters": FILTERS.to("meta")},
        ValueError,
        "filters: expected device cpu (that of input), got meta",
    ),
    "None": (
        {"filters": None},
        TypeError,
        "filters: expected a torch tensor, a numpy array or a CUDA array with __dlpack__, got None",
    ),
    "two kinds": (
        {"filters": np.ones((2, 4, 5, 3, 3), np.float32)},
        TypeError,
        "filters: expected torch.Tensor (the kind of input), got numpy.ndarray",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_message(name):
    change, kind, message = CASES[name]
    with pytest.raises(kind, match="^" + re.escape(f"adaptive_conv: {message}") + "$"):
        adaptive_conv(**{"input": INPUT, "filters": FILTERS, **change})


def test_the_good_call_is_good():
    assert adaptive_conv(INPUT, FILTERS).shape == (2, 3, 4, 5)


@pytest.mark.parametrize("name", ["unpadded input", "another batch", "two dtypes"])
def test_the_operator_checks_too(name):
    change, kind, message = CASES[name]
    arguments = {"input": INPUT, "filters": FILTERS, **change}
    with pytest.raises(kind, match=re.escape(f"adaptive_conv: {message}")):
        torch.ops.ovs_kernels.adaptive_conv(arguments["input"], arguments["filters"])


# The private operators ---------------------------------------------------------------------------------------

BACKWARD = {
    "filters of another height": (
        "adaptive_conv_input_backward",
        (ones(2, 3, 4, 5), ones(2, 3, 5, 3, 3)),
        "filters: expected [B, H, W, k1, k2] with B=2, H=4, W=5 (those of v_out), got [2, 3, 5, 3, 3]",
    ),
    "cotangent of rank 3": (
        "adaptive_conv_input_backward",
        (ones(3, 4, 5), FILTERS),
        "v_out: expected [B, C, H, W], got [3, 4, 5]",
    ),
    "no tap": (
        "adaptive_conv_input_backward",
        (ones(2, 3, 4, 5), ones(2, 4, 5, 3, 0)),
        "filters: expected at least one tap, k1 >= 1 and k2 >= 1, got k1=3, k2=0",
    ),
    "input of other channels": (
        "adaptive_conv_filters_backward",
        (ones(2, 3, 4, 5), ones(2, 4, 6, 7)),
        "input: expected [B, C, H + k1 - 1, W + k2 - 1] with B=2, C=3 (those of v_out), got [2, 4, 6, 7]",
    ),
    "input smaller than the result": (
        "adaptive_conv_filters_backward",
        (ones(2, 3, 4, 5), ones(2, 3, 6, 4)),
        "input: expected at least [4, 5] pixels (those of v_out), got [6, 4]",
    ),
}


@pytest.mark.parametrize("name", BACKWARD)
def test_message_of_a_gradient(name):
    operator, arguments, message = BACKWARD[name]
    with pytest.raises(ValueError, match="^" + re.escape(f"{operator}: {message}")):
        getattr(torch.ops.ovs_kernels, operator)(*arguments)
