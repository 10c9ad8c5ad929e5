"""What `joint_bilateral_upsample` says about bad input: one line, what was expected, what came."""

import math

import pytest
import torch

from ovs_kernels import joint_bilateral_upsample


def zeros(*shape, dtype=torch.float32):
    return torch.zeros(shape, dtype=dtype)


# (what to change in a good call, exception, the message after "joint_bilateral_upsample: ")
CASES = {
    # shapes
    "maps rank 2": ({"maps": zeros(4, 5)}, ValueError, "maps: expected [C, h, w] or [B, C, h, w], got [4, 5]"),
    "maps rank 5": (
        {"maps": zeros(1, 1, 2, 4, 5)},
        ValueError,
        "maps: expected [C, h, w] or [B, C, h, w], got [1, 1, 2, 4, 5]",
    ),
    "no row": ({"maps": zeros(2, 0, 5)}, ValueError, "maps: expected at least one row, got h=0"),
    "no column": ({"maps": zeros(2, 4, 0)}, ValueError, "maps: expected at least one column, got w=0"),
    "guide rank 2": ({"guide": zeros(8, 10)}, ValueError, "guide: expected [3, H, W], got [8, 10]"),
    "grey guide": ({"guide": zeros(1, 8, 10)}, ValueError, "guide: expected [3, H, W], got [1, 8, 10]"),
    "guide with channels last": ({"guide": zeros(8, 10, 3)}, ValueError, "guide: expected [3, H, W], got [8, 10, 3]"),
    "guide with a batch axis": (
        {"guide": zeros(1, 3, 8, 10)},
        ValueError,
        "guide: expected [3, H, W], got [1, 3, 8, 10]",
    ),
    "maps with a batch axis": (
        {"maps": zeros(2, 2, 4, 5)},
        ValueError,
        "guide: expected [B, 3, H, W] with B=2 (those of maps), got [3, 8, 10]",
    ),
    "batch sizes": (
        {"maps": zeros(2, 2, 4, 5), "guide": zeros(3, 3, 8, 10)},
        ValueError,
        "guide: expected [B, 3, H, W] with B=2 (those of maps), got [3, 3, 8, 10]",
    ),
    "guide lower than the maps": (
        {"guide": zeros(3, 3, 10)},
        ValueError,
        "guide: expected [3, H, W] with H >= 4, W >= 5 (those of maps), got [3, 3, 10]",
    ),
    "guide narrower than the maps": (
        {"guide": zeros(3, 8, 4)},
        ValueError,
        "guide: expected [3, H, W] with H >= 4, W >= 5 (those of maps), got [3, 8, 4]",
    ),
    "guides without pixels": (
        {"maps": zeros(2, 2, 4, 5), "guide": zeros(2, 3, 0, 0)},
        ValueError,
        "guide: expected [B, 3, H, W] with H >= 4, W >= 5 (those of maps), got [2, 3, 0, 0]",
    ),
    "labels of no class": (
        {"maps": zeros(0, 4, 5), "labels": True},
        ValueError,
        "maps: expected at least one class for labels=True, got C=0",
    ),
    # dtypes, devices, kinds
    "integer maps": (
        {"maps": zeros(2, 4, 5, dtype=torch.int64)},
        TypeError,
        "maps: expected float32 or float64 or float16 or bfloat16, got int64",
    ),
    "integer guide": (
        {"guide": zeros(3, 8, 10, dtype=torch.int32)},
        TypeError,
        "guide: expected float32 or float64 or float16 or bfloat16 or uint8, got int32",
    ),
    "devices": (
        {"guide": torch.zeros(3, 8, 10, device="meta")},
        ValueError,
        "guide: expected device cpu (that of maps), got meta",
    ),
    "list of maps": (
        {"maps": [[[1.0]]]},
        TypeError,
        "maps: expected a torch tensor, a numpy array or a CUDA array with __dlpack__, got list",
    ),
    "no guide": (
        {"guide": None},
        TypeError,
        "guide: expected a torch tensor, a numpy array or a CUDA array with __dlpack__, got None",
    ),
    "a guide of another kind": (
        {"guide": zeros(3, 8, 10).numpy()},
        TypeError,
        "guide: expected torch.Tensor (the kind of maps), got numpy.ndarray",
    ),
    # parameters
    "sigma_spatial 0": ({"sigma_spatial": 0.0}, ValueError, "sigma_spatial: expected a finite number > 0, got 0.0"),
    "sigma_range 0": ({"sigma_range": 0}, ValueError, "sigma_range: expected a finite number > 0, got 0.0"),
    "sigma_range negative": ({"sigma_range": -0.1}, ValueError, "sigma_range: expected a finite number > 0, got -0.1"),
    "sigma_range inf": ({"sigma_range": math.inf}, ValueError, "sigma_range: expected a finite number > 0, got inf"),
    "sigma_spatial nan": (
        {"sigma_spatial": math.nan},
        ValueError,
        "sigma_spatial: expected a finite number > 0, got nan",
    ),
    "sigma_range text": ({"sigma_range": "0.1"}, TypeError, "sigma_range: expected a number, got str"),
    "sigma_spatial None": ({"sigma_spatial": None}, TypeError, "sigma_spatial: expected a number, got None"),
    "radius negative": ({"radius": -1}, ValueError, "radius: expected an integer in [0, 15], got -1"),
    "radius 16": ({"radius": 16}, ValueError, "radius: expected an integer in [0, 15], got 16"),
    "radius 1.5": ({"radius": 1.5}, TypeError, "radius: expected an integer, got float"),
    "radius bool": ({"radius": True}, TypeError, "radius: expected an integer, got bool"),
    "labels text": ({"labels": "yes"}, TypeError, "labels: expected True or False, got str"),
    "nan_policy": (
        {"nan_policy": "raise"},
        ValueError,
        "nan_policy: expected 'propagate' or 'omit', got 'raise'",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_message(device, to_device, name):
    change, kind, message = CASES[name]
    arguments = {"maps": zeros(2, 4, 5), "guide": zeros(3, 8, 10), **change}
    for key in ("maps", "guide"):
        if isinstance(arguments[key], torch.Tensor) and arguments[key].device.type == "cpu":
            arguments[key] = to_device(arguments[key])
    if device == "cuda" and name == "devices":
        message = message.replace("device cpu", "device cuda:0")
    with pytest.raises(kind) as error:
        joint_bilateral_upsample(**arguments)
    assert str(error.value) == f"joint_bilateral_upsample: {message}"


def test_the_good_call_is_good(device, to_device):
    assert joint_bilateral_upsample(to_device(zeros(2, 4, 5)), to_device(zeros(3, 8, 10))).shape == (2, 8, 10)


def test_the_operators_check_without_the_function():
    upsample = torch.ops.ovs_kernels.joint_bilateral_upsample
    with pytest.raises(ValueError, match=r"^joint_bilateral_upsample: guide: expected \[3, H, W\] with H >= 4"):
        upsample(zeros(2, 4, 5), zeros(3, 3, 3), 1.0, 0.1, 2, False, "omit")
    with pytest.raises(ValueError, match=r"^joint_bilateral_upsample: radius: "):
        upsample(zeros(2, 4, 5), zeros(3, 8, 10), 1.0, 0.1, 99, False, "omit")


BACKWARD = {
    "v_up rank 2": ({"v_up": zeros(8, 10)}, ValueError, "v_up: expected [C, H, W] or [B, C, H, W], got [8, 10]"),
    "integer v_up": (
        {"v_up": zeros(2, 8, 10, dtype=torch.int32)},
        TypeError,
        "v_up: expected float32 or float64 or float16 or bfloat16, got int32",
    ),
    "one size": ({"size": [4]}, ValueError, "size: expected two integers, height and width, got 1"),
    "no row": ({"size": [0, 5]}, ValueError, "size: expected an integer in [1, 536870911], got 0"),
    "maps larger than v_up": (
        {"size": [9, 5]},
        ValueError,
        "guide: expected [3, H, W] with H >= 9, W >= 5 (those of v_up), got [3, 8, 10]",
    ),
    "guide of another size": (
        {"guide": zeros(3, 8, 11)},
        ValueError,
        "guide: expected the size of v_up, [8, 10], got [8, 11]",
    ),
    "float missing": ({"missing": zeros(2, 4, 5)}, TypeError, "missing: expected bool, got float32"),
    "missing of another size": (
        {"missing": zeros(2, 4, 6, dtype=torch.bool)},
        ValueError,
        "missing: expected [C, h, w] with C=2, h=4, w=5 (those of v_up and size), got [2, 4, 6]",
    ),
    "sigma_range": ({"sigma_range": 0.0}, ValueError, "sigma_range: expected a finite number > 0, got 0.0"),
}


@pytest.mark.parametrize("name", BACKWARD)
def test_message_of_the_backward_operator(name):
    change, kind, message = BACKWARD[name]
    arguments = {
        "v_up": zeros(2, 8, 10),
        "guide": zeros(3, 8, 10),
        "missing": None,
        "size": [4, 5],
        "sigma_spatial": 1.0,
        "sigma_range": 0.1,
        "radius": 2,
        **change,
    }
    with pytest.raises(kind) as error:
        torch.ops.ovs_kernels.joint_bilateral_upsample_backward(*arguments.values())
    assert str(error.value) == f"joint_bilateral_upsample_backward: {message}"
