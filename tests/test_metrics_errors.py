"""What `confusion_matrix` and `boundary_iou` refuse, and how they say it."""

import re

import numpy as np
import pytest
import torch

from ovs_kernels import boundary_iou, confusion_matrix

BOTH = [confusion_matrix, boundary_iou]
both = pytest.mark.parametrize("function", BOTH, ids=lambda function: function.__name__)


def labels(*shape, dtype=torch.uint8):
    return torch.zeros(shape, dtype=dtype)


def refused(error, message, function, *args, **kwargs):
    with pytest.raises(error, match=f"^{re.escape(f'{function.__name__}: {message}')}$"):
        function(*args, **kwargs)


@both
def test_sizes_that_differ_are_both_named(function):
    text = "prediction: expected [H, W] with H=4, W=5 (those of target), got [4, 6]"
    refused(ValueError, text, function, labels(4, 6), labels(4, 5), 3)
    text = "prediction: expected [B, H, W] with B=2, H=4, W=5 (those of target), got [4, 5]"
    refused(ValueError, text, function, labels(4, 5), labels(2, 4, 5), 3)
    text = "prediction: expected [B, H, W] with B=2, H=4, W=5 (those of target), got [1, 4, 5]"
    refused(ValueError, text, function, labels(1, 4, 5), labels(2, 4, 5), 3)
    refused(ValueError, "target: expected [H, W] or [B, H, W], got [4]", function, labels(4), labels(4), 3)


@both
def test_labels_that_are_no_integers(function):
    expected = "expected integer labels (any integer dtype, or bool), got float32"
    refused(TypeError, f"prediction: {expected}", function, torch.zeros(4, 5), labels(4, 5), 3)
    refused(TypeError, f"target: {expected}", function, labels(4, 5), torch.zeros(4, 5), 3)
    array = np.zeros((4, 5), np.uint8)
    refused(TypeError, f"target: {expected}", function, array, np.zeros((4, 5), np.float32), 3)
    text = "target: expected a dtype that torch has, got dtype object"
    refused(TypeError, text, function, array, np.zeros((4, 5), object), 3)


@both
def test_kinds_of_arrays_that_differ(function):
    text = "target: expected torch.Tensor (the kind of prediction), got numpy.ndarray"
    refused(TypeError, text, function, labels(4, 5), np.zeros((4, 5), np.uint8), 3)
    text = "prediction: expected a torch tensor, a numpy array or a CUDA array with __dlpack__, got list"
    refused(TypeError, text, function, [[0, 1]], labels(1, 2), 3)


@both
def test_devices_that_differ(function):
    text = "target: expected device cpu (that of prediction), got meta"
    refused(ValueError, text, function, labels(4, 5), labels(4, 5).to("meta"), 3)


@both
@pytest.mark.parametrize("number", [0, -1, 2**40])
def test_number_of_classes(function, number):
    most = 2**15 if function is confusion_matrix else 2**24
    text = f"num_classes: expected an integer in [1, {most}], got {number}"
    refused(ValueError, text, function, labels(4, 5), labels(4, 5), number)


@both
def test_number_of_classes_that_is_no_integer(function):
    refused(TypeError, "num_classes: expected an integer, got float", function, labels(4, 5), labels(4, 5), 3.0)
    refused(TypeError, "num_classes: expected an integer, got bool", function, labels(4, 5), labels(4, 5), True)


@both
def test_ignore_label(function):
    maps = labels(4, 5), labels(4, 5)
    refused(TypeError, "ignore_label: expected an integer or None, got float", function, *maps, 3, ignore_label=2.0)
    text = "ignore_label: expected an integer in [-9223372036854775808, 9223372036854775807], got 9223372036854775808"
    refused(ValueError, text, function, *maps, 3, ignore_label=2**63)
    text = f"num_classes: expected an integer in [{-(2**63)}, {2**63 - 1}], got {2**70}"
    refused(ValueError, text, function, *maps, 2**70)


@pytest.mark.parametrize("ratio", [0.0, -0.02, float("nan"), float("inf")])
def test_ratio(ratio):
    text = f"ratio: expected a finite number > 0, got {ratio}"
    refused(ValueError, text, boundary_iou, labels(4, 5), labels(4, 5), 3, ratio=ratio)
