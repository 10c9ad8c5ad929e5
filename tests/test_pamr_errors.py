"""What `pamr` says about bad input: one line, what was expected, what came."""

import pytest
import torch

from ovs_kernels import pamr


def zeros(*shape, dtype=torch.float32):
    return torch.zeros(shape, dtype=dtype)


# (what to change in a good call, exception, the message after "pamr: ")
CASES = {
    # shapes
    "scores rank 2": ({"scores": zeros(4, 5)}, ValueError, "scores: expected [C, H, W] or [B, C, H, W], got [4, 5]"),
    "scores rank 5": (
        {"scores": zeros(1, 1, 2, 4, 5)},
        ValueError,
        "scores: expected [C, H, W] or [B, C, H, W], got [1, 1, 2, 4, 5]",
    ),
    "image rank 2": (
        {"image": zeros(4, 5)},
        ValueError,
        "image: expected [F, H, W] with H=4, W=5 (those of scores), got [4, 5]",
    ),
    "image with a batch axis": (
        {"image": zeros(1, 3, 4, 5)},
        ValueError,
        "image: expected [F, H, W] with H=4, W=5 (those of scores), got [1, 3, 4, 5]",
    ),
    "scores with a batch axis": (
        {"scores": zeros(1, 2, 4, 5)},
        ValueError,
        "image: expected [B, F, H, W] with B=1, H=4, W=5 (those of scores), got [3, 4, 5]",
    ),
    "batch sizes": (
        {"scores": zeros(2, 2, 4, 5), "image": zeros(3, 3, 4, 5)},
        ValueError,
        "image: expected [B, F, H, W] with B=2, H=4, W=5 (those of scores), got [3, 3, 4, 5]",
    ),
    "no channel": ({"image": zeros(0, 4, 5)}, ValueError, "image: expected at least one channel, got F=0"),
    "scores without pixels": (
        {"scores": zeros(2, 0, 5)},
        ValueError,
        "scores: expected at least one row and column, to resize the scores, got [2, 0, 5]",
    ),
    "image without pixels": (
        {"image": zeros(3, 4, 0)},
        ValueError,
        "image: expected at least one row and column, to resize the scores, got [3, 4, 0]",
    ),
    # kinds and dtypes
    "scores list": (
        {"scores": [[[1.0]]]},
        TypeError,
        "scores: expected a torch tensor, a numpy array or a CUDA array with __dlpack__, got list",
    ),
    "integer scores": (
        {"scores": zeros(2, 4, 5, dtype=torch.int64)},
        TypeError,
        "scores: expected float32 or float64 or float16 or bfloat16, got int64",
    ),
    "integer scores of another size": (
        {"scores": zeros(2, 3, 5, dtype=torch.int64)},
        TypeError,
        "scores: expected float32 or float64 or float16 or bfloat16, got int64",
    ),
    "integer image": (
        {"image": zeros(3, 4, 5, dtype=torch.int32)},
        TypeError,
        "image: expected float32 or float64 or float16 or bfloat16 or uint8, got int32",
    ),
    "devices": ({"image": torch.empty(3, 4, 5, device="meta")}, ValueError, None),
    # parameters
    "negative iterations": ({"num_iter": -1}, ValueError, "num_iter: expected an integer in [0, 2147483647], got -1"),
    "half an iteration": ({"num_iter": 0.5}, TypeError, "num_iter: expected an integer, got float"),
    "iterations bool": ({"num_iter": True}, TypeError, "num_iter: expected an integer, got bool"),
    "no dilations": ({"dilations": []}, ValueError, "dilations: expected 1 to 64 integers, got 0"),
    "too many dilations": ({"dilations": [1] * 65}, ValueError, "dilations: expected 1 to 64 integers, got 65"),
    "dilation 0": ({"dilations": (8, 0)}, ValueError, "dilations: expected an integer in [1, 536870911], got 0"),
    "negative dilation": ({"dilations": (-8,)}, ValueError, "dilations: expected an integer in [1, 536870911], got -8"),
    "dilation too large": (
        {"dilations": (2**29,)},
        ValueError,
        "dilations: expected an integer in [1, 536870911], got 536870912",
    ),
    "half a dilation": ({"dilations": (1.5,)}, TypeError, "dilations: expected integers, got tuple (1.5,)"),
    "dilations bool": ({"dilations": [True]}, TypeError, "dilations: expected integers, got list [True]"),
    "a bad dilation where there is nothing to do": (
        {"dilations": (0,), "num_iter": 0},
        ValueError,
        "dilations: expected an integer in [1, 536870911], got 0",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_message(device, to_device, name):
    change, kind, message = CASES[name]
    arguments = {"image": zeros(3, 4, 5), "scores": zeros(2, 4, 5), **change}
    for key in ("image", "scores"):
        if isinstance(arguments[key], torch.Tensor) and arguments[key].device.type == "cpu":
            arguments[key] = to_device(arguments[key])
    if message is None:
        place = arguments["scores"].device if device != "cuda" else "cuda:0"
        message = f"scores: expected device meta (that of image), got {place}"
    with pytest.raises(kind) as error:
        pamr(**arguments)
    assert str(error.value) == f"pamr: {message}"


def test_one_integer_is_no_list():
    with pytest.raises(TypeError, match=r"^pamr: dilations: expected .*, got int$"):
        pamr(zeros(3, 4, 5), zeros(2, 4, 5), dilations=8)


def test_the_good_call_is_good(device, to_device):
    assert pamr(to_device(zeros(3, 4, 5)), to_device(zeros(2, 4, 5))).shape == (2, 4, 5)


def test_the_operators_check_without_the_function():
    with pytest.raises(ValueError, match=r"^pamr: image: expected \[F, H, W\] with H=4, W=5"):
        torch.ops.ovs_kernels.pamr(zeros(3, 4, 6), zeros(2, 4, 5), 1, [1])
    with pytest.raises(ValueError, match=r"^pamr_backward: dilations: expected 1 to 64 integers"):
        torch.ops.ovs_kernels.pamr_backward(zeros(2, 4, 5), zeros(3, 4, 5), 1, [])
    with pytest.raises(ValueError, match=r"^pamr_backward: image: expected \[F, H, W\] with H=4, W=5 .*v_scores"):
        torch.ops.ovs_kernels.pamr_backward(zeros(2, 4, 5), zeros(3, 4, 6), 1, [1])
