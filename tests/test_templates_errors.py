"""What `template_entropy` and `fuse_experts` say about bad input: one line, what was expected, what came."""

import numpy as np
import pytest
import torch

from ovs_kernels import fuse_experts, template_entropy


def ones(*shape, dtype=torch.float32):
    return torch.ones(shape, dtype=dtype)


BOXES = [[0, 0, 8, 8], [0, 4, 8, 12]]
PIXELS = {"features": ones(2, 2, 3, 4), "mode": "pixel_exact", "boxes": BOXES, "size": (8, 12)}
FLOATS = "float32 or float64 or float16 or bfloat16"

# (what to change in a good call, exception, the message after "template_entropy: ")
ENTROPY_CASES = {
    "rank of patches": ({"features": ones(2, 3, 4)}, ValueError, "features: expected [P, d], got [2, 3, 4]"),
    "rank of windows": (
        {**PIXELS, "features": ones(6, 4)},
        ValueError,
        "features: expected [n, h, w, d], got [6, 4]",
    ),
    "no features": (
        {"features": ones(5, 0), "text_embeddings": ones(2, 3, 0)},
        ValueError,
        "features: expected at least one feature, got d=0",
    ),
    "features of another length": (
        {"text_embeddings": ones(2, 3, 5)},
        ValueError,
        "text_embeddings: expected [M, K, d] with d=4 (those of features), got [2, 3, 5]",
    ),
    "no class": (
        {"text_embeddings": ones(2, 0, 4)},
        ValueError,
        "text_embeddings: expected 1 to 32767 classes, got K=0",
    ),
    "integers": ({"features": ones(5, 4).long()}, TypeError, f"features: expected {FLOATS}, got int64"),
    "integer embeddings": (
        {"text_embeddings": ones(2, 3, 4).long()},
        TypeError,
        f"text_embeddings: expected {FLOATS}, got int64",
    ),
    "embeddings in another precision": (
        {"text_embeddings": ones(2, 3, 4).double()},
        TypeError,
        "text_embeddings: expected float32 (that of features), got float64",
    ),
    "two kinds of arrays": (
        {"text_embeddings": np.ones((2, 3, 4), np.float32)},
        TypeError,
        "text_embeddings: expected torch.Tensor (the kind of features), got numpy.ndarray",
    ),
    "two devices": (
        {"text_embeddings": torch.ones(2, 3, 4, device="meta")},
        ValueError,
        "text_embeddings: expected device cpu (that of features), got meta",
    ),
    "zero temperature": ({"temperature": 0.0}, ValueError, "temperature: expected a finite number > 0, got 0.0"),
    "temperature of text": ({"temperature": "low"}, TypeError, "temperature: expected a number, got str"),
    "mode": ({"mode": "pixel"}, ValueError, "mode: expected 'patch' or 'pixel_exact', got 'pixel'"),
    "size of patches": ({"size": (8, 12)}, ValueError, "size: expected None in mode 'patch', got a value"),
    "boxes of patches": ({"boxes": BOXES}, ValueError, "boxes: expected None in mode 'patch', got a value"),
    "no size": (
        {**PIXELS, "size": None},
        ValueError,
        "size: expected height and width of the working image in mode 'pixel_exact', got None",
    ),
    "size of one": ({**PIXELS, "size": (8,)}, TypeError, "size: expected two integers (height, width), got (8,)"),
    "empty size": ({**PIXELS, "size": (8, 0)}, ValueError, "size: expected an integer >= 1, got 0"),
    "MaNo of pixels": (
        {**PIXELS, "mano": True},
        ValueError,
        "mano: expected False in mode 'pixel_exact' (its softrun needs logits), got True",
    ),
    "interpolate": (
        {**PIXELS, "interpolate": "cosines"},
        ValueError,
        "interpolate: expected 'probabilities' or 'logits', got 'cosines'",
    ),
    "interpolated patches": (
        {"interpolate": "logits"},
        ValueError,
        "interpolate: expected 'probabilities' in mode 'patch', got 'logits'",
    ),
    "a group too few": (
        {"groups": [0, 1]},
        ValueError,
        "groups: expected [Q] with Q=3 (that of text_embeddings), got [2]",
    ),
    "a class without a query": (
        {"groups": [0, 2, 2]},
        ValueError,
        "groups: expected classes 0 to K - 1, each at least once, got no query of class 1",
    ),
    "a negative class": (
        {"groups": [0, -1, 1]},
        ValueError,
        "groups: expected classes 0 to K - 1, each at least once, got class -1",
    ),
    "fractions of classes": ({"groups": [0, 0.5, 1]}, TypeError, "groups: expected integers, got a row [0, 0.5, 1]"),
    "a table of groups": ({"groups": torch.zeros(3, 1).long()}, ValueError, "groups: expected [Q], got [3, 1]"),
    "float groups": (
        {"groups": torch.zeros(3)},
        TypeError,
        "groups: expected uint8 or int8 or int16 or int32 or int64, got float32",
    ),
    "MaNo of groups": (
        {"groups": [0, 0, 1], "mano": True},
        ValueError,
        "mano: expected False with groups (its softmax is over the classes), got True",
    ),
    "no boxes for two windows": (
        {**PIXELS, "boxes": None},
        ValueError,
        "boxes: expected one per window, got None with 2 windows",
    ),
    "a box too few": (
        {**PIXELS, "boxes": BOXES[:1]},
        ValueError,
        "boxes: expected [n, 4] with n=2 (those of features), got [1, 4]",
    ),
    "a box outside": (
        {**PIXELS, "boxes": [[0, 0, 8, 8], [0, 4, 8, 13]]},
        ValueError,
        "boxes: expected 0 <= y0 < y1 <= H=8 and 0 <= x0 < x1 <= W=12, "
        "got (y0, x0, y1, x1) = (0, 4, 8, 13) for window 1",
    ),
    "a gap": (
        {**PIXELS, "boxes": [[0, 0, 8, 5], [0, 6, 8, 12]]},
        ValueError,
        "boxes: expected every pixel in a window, got none at (y, x) = (0, 5)",
    ),
    "no grid": (
        {**PIXELS, "boxes": [[0, 0, 8, 12], [2, 0, 6, 4]]},
        ValueError,
        "boxes: expected a grid of windows, every range of rows with every range of columns, once, "
        "got 2 windows of 2 ranges of rows and 2 of columns",
    ),
    "a window twice": (
        {**PIXELS, "boxes": [[0, 0, 8, 12]] * 2},
        ValueError,
        "boxes: expected a grid of windows, every range of rows with every range of columns, once, "
        "got 2 windows of 1 ranges of rows and 1 of columns",
    ),
    "no patches": (
        {**PIXELS, "features": ones(2, 0, 3, 4)},
        ValueError,
        "features: expected at least one row of patches, got [2, 0, 3, 4]",
    ),
    "too many pixels": (
        {**PIXELS, "out_size": (2**14, 2**13)},
        ValueError,
        "out_size: expected at most 67108864 places, got 134217728",
    ),
}

WINDOWS = {"features": ones(2, 2, 3, 4), "experts": ones(4, 3, 4), "size": (8, 12)}
EXPERTS = "experts: expected [K + 1, K, d] with the default as the last of K + 1, d=4 (that of features), got "
FUSE_CASES = {
    "rank": ({"features": ones(2, 3, 4)}, ValueError, "features: expected [n, h, w, d], got [2, 3, 4]"),
    "no default": ({"experts": ones(3, 3, 4)}, ValueError, EXPERTS + "[3, 3, 4]"),
    "experts of another length": ({"experts": ones(4, 3, 5)}, ValueError, EXPERTS + "[4, 3, 5]"),
    "rank of experts": ({"experts": ones(4, 4)}, ValueError, "experts: expected [K + 1, K, d], got [4, 4]"),
    "no class": ({"experts": ones(1, 0, 4)}, ValueError, "experts: expected 1 to 32767 classes, got K=0"),
    "no patches": (
        {"features": ones(2, 2, 0, 4)},
        ValueError,
        "features: expected at least one column of patches, got [2, 2, 0, 4]",
    ),
    "integers": ({"experts": ones(4, 3, 4).long()}, TypeError, f"experts: expected {FLOATS}, got int64"),
    "strategy": (
        {"strategy": "lowest"},
        ValueError,
        "strategy: expected 'highest' or 'default_on_conflict' or 'average_conflicting' or 'average', got 'lowest'",
    ),
    "negative temperature": ({"temperature": -1}, ValueError, "temperature: expected a finite number > 0, got -1.0"),
    "size": ({"size": 8.5}, TypeError, "size: expected two integers (height, width), got float"),
    "labels of merged windows": (
        {"boxes": BOXES, "labels": True},
        ValueError,
        "labels: expected False with boxes (windows are averaged), got True",
    ),
    "winners of merged windows": (
        {"boxes": BOXES, "return_winners": True},
        ValueError,
        "return_winners: expected False with boxes (windows are averaged), got True",
    ),
    "winners of an average": (
        {"strategy": "average", "return_winners": True},
        ValueError,
        "return_winners: expected False with strategy 'average', got True",
    ),
    "a gap": (
        {"boxes": [[0, 0, 8, 8], [0, 0, 8, 4]]},
        ValueError,
        "boxes: expected every pixel in a window, got none at (y, x) = (0, 8)",
    ),
    "float boxes": (
        {"boxes": torch.tensor(BOXES).float()},
        TypeError,
        "boxes: expected uint8 or int8 or int16 or int32 or int64, got float32",
    ),
}


def check(function, arguments, exception, message):
    with pytest.raises(exception) as error:
        function(**arguments)
    assert str(error.value) == f"{function.__name__}: {message}"


@pytest.mark.parametrize("name", ENTROPY_CASES)
def test_template_entropy(name):
    change, exception, message = ENTROPY_CASES[name]
    check(template_entropy, {"features": ones(5, 4), "text_embeddings": ones(2, 3, 4), **change}, exception, message)


@pytest.mark.parametrize("name", FUSE_CASES)
def test_fuse_experts(name):
    change, exception, message = FUSE_CASES[name]
    check(fuse_experts, {**WINDOWS, **change}, exception, message)


def test_the_good_calls_are_good():
    assert template_entropy(ones(5, 4), ones(2, 3, 4)).total == 5
    assert template_entropy(text_embeddings=ones(2, 3, 4), **PIXELS).total == 96
    assert fuse_experts(**WINDOWS).shape == (2, 3, 8, 12)
    assert fuse_experts(**WINDOWS, boxes=BOXES).shape == (3, 8, 12)


def test_mano_is_limited():
    few = template_entropy(ones(2, 4), ones(1, 2, 4), mano=True)
    assert few.mano.shape == (1, 2)
    with pytest.raises(ValueError, match=r"^template_entropy: features: expected at most 4194304 places, got 4194305$"):
        template_entropy(torch.ones(2**22 + 1, 1), torch.ones(1, 1, 1), mano=True)


def test_gradients_are_refused():
    features = ones(2, 2, 3, 4).requires_grad_()
    assert not fuse_experts(features, ones(4, 3, 4), (8, 12)).requires_grad
