"""What `lp_pixels` says about bad input: one line, operator and argument, what was expected, what came."""

import math

import numpy as np
import pytest
import torch

from ovs_kernels import lp_pixels

# (what to change in a good call, exception, the message after "lp_pixels: ")
CASES = {
    # shapes
    "scores rank 2": (
        {"scores": (4, 5)},
        ValueError,
        "scores: expected [C, H, W] or [B, C, H, W], got [4, 5]",
    ),
    "scores rank 5": (
        {"scores": (1, 1, 2, 4, 5)},
        ValueError,
        "scores: expected [C, H, W] or [B, C, H, W], got [1, 1, 2, 4, 5]",
    ),
    "scores rank 0": ({"scores": ()}, ValueError, "scores: expected [C, H, W] or [B, C, H, W], got []"),
    "image rank 2": (
        {"image": (4, 5)},
        ValueError,
        "image: expected [3, H, W] with H=4, W=5 (those of scores), got [4, 5]",
    ),
    "image with a batch axis": (
        {"image": (1, 3, 4, 5)},
        ValueError,
        "image: expected [3, H, W] with H=4, W=5 (those of scores), got [1, 3, 4, 5]",
    ),
    "scores with a batch axis": (
        {"scores": (2, 2, 4, 5)},
        ValueError,
        "image: expected [B, 3, H, W] with B=2, H=4, W=5 (those of scores), got [3, 4, 5]",
    ),
    "batch sizes": (
        {"scores": (2, 2, 4, 5), "image": (3, 3, 4, 5)},
        ValueError,
        "image: expected [B, 3, H, W] with B=2, H=4, W=5 (those of scores), got [3, 3, 4, 5]",
    ),
    "widths": (
        {"image": (3, 4, 6)},
        ValueError,
        "image: expected [3, H, W] with H=4, W=5 (those of scores), got [3, 4, 6]",
    ),
    "heights": (
        {"image": (3, 5, 5)},
        ValueError,
        "image: expected [3, H, W] with H=4, W=5 (those of scores), got [3, 5, 5]",
    ),
    "grey image": (
        {"image": (1, 4, 5)},
        ValueError,
        "image: expected [3, H, W] with H=4, W=5 (those of scores), got [1, 4, 5]",
    ),
    "image with channels last": (
        {"image": (4, 5, 3)},
        ValueError,
        "image: expected [3, H, W] with H=4, W=5 (those of scores), got [4, 5, 3]",
    ),
    "features of another size": (
        {"image": (2, 4, 6), "color": None},
        ValueError,
        "image: expected [F, H, W] with H=4, W=5 (those of scores), got [2, 4, 6]",
    ),
    "no features": (
        {"image": (0, 4, 5), "color": None},
        ValueError,
        "image: expected at least one feature channel, got 0",
    ),
    "labels of no class": (
        {"scores": (0, 4, 5), "labels": True},
        ValueError,
        "scores: expected at least one class for labels=True, got C=0",
    ),
    # dtypes and devices
    "integer scores": (
        {"scores": torch.zeros(2, 4, 5, dtype=torch.int64)},
        TypeError,
        "scores: expected float32 or float64 or float16 or bfloat16, got int64",
    ),
    "byte scores": (
        {"scores": torch.zeros(2, 4, 5, dtype=torch.uint8)},
        TypeError,
        "scores: expected float32 or float64 or float16 or bfloat16, got uint8",
    ),
    "complex scores": (
        {"scores": torch.zeros(2, 4, 5, dtype=torch.complex64)},
        TypeError,
        "scores: expected float32 or float64 or float16 or bfloat16, got complex64",
    ),
    "integer image": (
        {"image": torch.zeros(3, 4, 5, dtype=torch.int32)},
        TypeError,
        "image: expected float32 or float64 or float16 or bfloat16 or uint8, got int32",
    ),
    "byte features": (
        {"image": torch.zeros(3, 4, 5, dtype=torch.uint8), "color": None},
        TypeError,
        "image: expected float32 or float64 or float16 or bfloat16, got uint8",
    ),
    "devices": (
        {"image": torch.zeros(3, 4, 5, device="meta")},
        ValueError,
        "image: expected device cpu (that of scores), got meta",
    ),
    # kinds
    "list of scores": (
        {"scores": [[[1.0]]]},
        TypeError,
        "scores: expected a torch tensor, a numpy array or a CUDA array with __dlpack__, got list",
    ),
    "no image": (
        {"image": None},
        TypeError,
        "image: expected a torch tensor, a numpy array or a CUDA array with __dlpack__, got None",
    ),
    "path of an image": (
        {"image": "photo.jpg"},
        TypeError,
        "image: expected a torch tensor, a numpy array or a CUDA array with __dlpack__, got str",
    ),
    "mixed kinds": (
        {"image": np.zeros((3, 4, 5), np.float32)},
        TypeError,
        "image: expected torch.Tensor (the kind of scores), got numpy.ndarray",
    ),
    # parameters
    "even window": ({"window": 4}, ValueError, "window: expected an odd integer in [1, 31], got 4"),
    "window of 0": ({"window": 0}, ValueError, "window: expected an odd integer in [1, 31], got 0"),
    "negative window": ({"window": -3}, ValueError, "window: expected an odd integer in [1, 31], got -3"),
    "wide window": ({"window": 33}, ValueError, "window: expected an odd integer in [1, 31], got 33"),
    "alpha of 0": ({"alpha": 0.0}, ValueError, "alpha: expected a number in (0, 1), got 0.0"),
    "alpha of 1": ({"alpha": 1.0}, ValueError, "alpha: expected a number in (0, 1), got 1.0"),
    "alpha above 1": ({"alpha": 1.5}, ValueError, "alpha: expected a number in (0, 1), got 1.5"),
    "negative alpha": ({"alpha": -0.5}, ValueError, "alpha: expected a number in (0, 1), got -0.5"),
    "alpha not a number": ({"alpha": math.nan}, ValueError, "alpha: expected a number in (0, 1), got nan"),
    "negative tau": ({"tau": -0.01}, ValueError, "tau: expected a finite number > 0, got -0.01"),
    "tau of 0": ({"tau": 0.0}, ValueError, "tau: expected a finite number > 0, got 0.0"),
    "tau not a number": ({"tau": math.nan}, ValueError, "tau: expected a finite number > 0, got nan"),
    "infinite tau": ({"tau": math.inf}, ValueError, "tau: expected a finite number > 0, got inf"),
    "unknown mode": ({"mode": "fast"}, ValueError, "mode: expected 'official' or 'exact', got 'fast'"),
    "unknown color": ({"color": "rgb"}, ValueError, "color: expected 'lab' or None, got 'rgb'"),
    "no step": ({"max_iter": 0}, ValueError, "max_iter: expected an integer in [1, 2147483647], got 0"),
    "negative tol": ({"tol": -1e-6}, ValueError, "tol: expected a finite number >= 0, got -1e-06"),
    "tol not a number": ({"tol": math.nan}, ValueError, "tol: expected a finite number >= 0, got nan"),
    "exact to 0": ({"mode": "exact", "tol": 0.0}, ValueError, "tol: expected a number in (0, 1), got 0.0"),
    "memory limit of 0": ({"memory_limit": 0}, ValueError, "memory_limit: expected an integer >= 1, got 0"),
    # groups
    "groups too short": (
        {"groups": [0]},
        ValueError,
        "groups: expected one integer per class, C=2 (that of scores), got 1",
    ),
    "groups too long": (
        {"groups": torch.tensor([0, 1, 2])},
        ValueError,
        "groups: expected one integer per class, C=2 (that of scores), got 3",
    ),
    "negative group": ({"groups": [0, -1]}, ValueError, "groups: expected integers in [0, 65535], got -1"),
    "absurd group": ({"groups": [0, 10**12]}, ValueError, "groups: expected integers in [0, 65535], got 1000000000000"),
    "group of a half": ({"groups": [0.5, 1.0]}, TypeError, "groups: expected integers, got list [0.5, 1.0]"),
}


def good_call():
    return {"scores": torch.rand(2, 4, 5), "image": torch.rand(3, 4, 5)}


@pytest.mark.parametrize("name", CASES)
def test_one_line_that_names_the_argument(device, to_device, name):
    changes, exception, message = CASES[name]
    arguments = good_call()
    for key, value in changes.items():
        arguments[key] = torch.rand(value) if isinstance(value, tuple) else value
    for key in ("scores", "image"):
        if isinstance(arguments[key], torch.Tensor) and arguments[key].device.type == "cpu":
            arguments[key] = to_device(arguments[key])
    if device == "cuda" and name == "devices":
        message = "image: expected device cuda:0 (that of scores), got meta"
    with pytest.raises(exception) as raised:
        lp_pixels(**arguments)
    assert str(raised.value) == f"lp_pixels: {message}"


@pytest.mark.parametrize("swap", [False, True])
def test_numpy_and_torch_do_not_mix(swap):
    arguments = good_call()
    first, second = ("image", "scores") if swap else ("scores", "image")
    arguments[second] = arguments[second].numpy()
    with pytest.raises(TypeError, match=r"^lp_pixels: image: expected .* \(the kind of scores\), got "):
        lp_pixels(**arguments)
    arguments[first] = arguments[first].numpy()
    assert lp_pixels(**arguments).shape == (2, 4, 5)


@pytest.mark.parametrize(
    "changes",
    [
        {"scores": torch.zeros(2, 4, 5, dtype=torch.int64)},
        {"image": torch.rand(3, 4, 6)},
        {"window": 4},
        {"window": 33},
        {"groups": [0]},
        {"alpha": 1.0},
        {"tau": -1.0},
        {"mode": "fast"},
    ],
)
def test_same_message_past_the_public_function(changes):
    # torch.ops.ovs_kernels.lp_pixels is as strict, on real and on meta tensors.
    settings = {
        "window": 13,
        "tau": 0.01,
        "alpha": 0.95,
        "mode": "official",
        "max_iter": None,
        "tol": 1e-6,
        "color": "lab",
        "labels": False,
        "groups": None,
        "info": False,
        "memory_limit": None,
    }
    arguments = good_call() | settings | changes
    with pytest.raises((TypeError, ValueError), match=r"^lp_pixels: ") as raised:
        torch.ops.ovs_kernels.lp_pixels(**arguments)
    on_meta = {key: value.to("meta") if isinstance(value, torch.Tensor) else value for key, value in arguments.items()}
    with pytest.raises(type(raised.value)) as raised_on_meta:
        torch.ops.ovs_kernels.lp_pixels(**on_meta)
    assert str(raised_on_meta.value) == str(raised.value)


@pytest.mark.parametrize("shape", [(2, 0, 5), (2, 4, 0), (0, 4, 5)])
@pytest.mark.parametrize("changes", [{"window": 4}, {"alpha": 2.0}, {"groups": [0, 1, 2]}])
def test_empty_arrays_are_checked_as_well(shape, changes):
    with pytest.raises(ValueError, match=f"^lp_pixels: {next(iter(changes))}: "):
        lp_pixels(torch.rand(shape), torch.rand(3, *shape[1:]), **changes)


@pytest.mark.parametrize("options", [{}, {"mode": "exact"}, {"labels": True}])
def test_memory_limit_too_small_states_the_minimum(device, to_device, options):
    scores, image = to_device(torch.rand(2, 14, 15)), to_device(torch.rand(3, 14, 15))
    with pytest.raises(ValueError, match=r"^lp_pixels: memory_limit: expected at least \d+ bytes") as raised:
        lp_pixels(scores, image, memory_limit=1000, **options)
    assert str(raised.value).endswith("got 1000")
    minimum = int(str(raised.value).split("at least ")[1].split(" ")[0])
    lp_pixels(scores, image, memory_limit=minimum, **options)  # what the message states is enough
    with pytest.raises(ValueError, match="memory_limit"):
        lp_pixels(scores, image, memory_limit=minimum - 1, **options)


def test_official_mode_refuses_a_gradient(device, to_device):
    arguments = good_call()
    leaf = to_device(arguments["scores"]).requires_grad_()
    result = lp_pixels(leaf, to_device(arguments["image"]))
    with pytest.raises(NotImplementedError, match=r'^lp_pixels: mode: .*mode="exact"'):
        result.sum().backward()
    assert leaf.grad is None


def test_missing_argument():
    with pytest.raises(TypeError, match=r"lp_pixels\(\) missing 1 required positional argument: 'image'"):
        lp_pixels(torch.rand(2, 4, 5))
    with pytest.raises(TypeError, match=r"lp_pixels\(\) got an unexpected keyword argument 'sigma'"):
        lp_pixels(torch.rand(2, 4, 5), torch.rand(3, 4, 5), sigma=1.0)


def test_groups_of_another_rank():
    with pytest.raises(ValueError, match=r"^lp_pixels: groups: "):
        lp_pixels(torch.rand(2, 4, 5), torch.rand(3, 4, 5), groups=torch.tensor([[0, 1]]))


@pytest.mark.parametrize("groups", [torch.tensor([0.0, 1.0]), np.array([0.5, 1.5]), "01", 3])
def test_groups_of_a_wrong_kind(groups):
    with pytest.raises(TypeError, match=r"^lp_pixels: groups: "):
        lp_pixels(torch.rand(2, 4, 5), torch.rand(3, 4, 5), groups=groups)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("window", 3.0),
        ("window", "13"),
        ("alpha", "0.9"),
        ("tau", None),
        ("max_iter", 2.5),
        ("memory_limit", 1e9),
    ],
)
def test_parameters_of_a_wrong_type(name, value):
    with pytest.raises(TypeError, match=f"^lp_pixels: {name}: expected "):
        lp_pixels(torch.rand(2, 4, 5), torch.rand(3, 4, 5), **{name: value})
