"""`confusion_matrix` and `boundary_iou`: every backend against numbers by hand, loops and erosions class by class."""

import importlib.util

import numpy as np
import pytest
import torch
from metrics_inputs import (
    DTYPES,
    as_tensors,
    assert_counts,
    counted_one_by_one,
    eroded_class_by_class,
    label_maps,
    strewn,
)
from ovs_methods.backbones.weights import import_models

from ovs_kernels import _native, boundary_iou, confusion_matrix
from ovs_kernels._ops.metrics import boundary_distance

# name -> (shape, low, high, cell, noise, classes): around words of 8 keys, rows of different kinds, many and few runs
MAPS = {
    "one pixel": ((1, 1), 0, 2, 1, 0.0, 2),
    "one row": ((1, 77), 0, 4, 5, 0.1, 4),
    "one column": ((53, 1), 0, 4, 5, 0.1, 4),
    "7 wide": ((9, 7), 0, 3, 3, 0.1, 3),
    "8 wide": ((9, 8), 0, 3, 3, 0.0, 3),
    "9 wide": ((9, 9), 0, 3, 3, 0.1, 3),
    "constant": ((33, 70), 1, 2, 4, 0.0, 3),
    "regions": ((61, 87), 0, 19, 11, 0.003, 19),
    "noise": ((40, 65), -2, 23, 1, 1.0, 19),
    "batch": ((3, 30, 41), 0, 9, 7, 0.02, 8),
    "one class": ((40, 43), -1, 2, 9, 0.01, 1),
    "254 classes": ((40, 43), -2, 258, 6, 0.05, 254),
    "255 classes": ((40, 43), -2, 258, 6, 0.05, 255),
    "300 classes": ((40, 43), -2, 310, 6, 0.05, 300),
}
SETTINGS = [(255, False), (255, True), (None, False), (3, True), (0, False)]


def case(name):
    shape, low, high, cell, noise, num_classes = MAPS[name]
    prediction, target = label_maps(*shape, low=low, high=high, cell=cell, noise=noise)
    return prediction, strewn(target, 255, 0.02), num_classes


# Worked out by hand -------------------------------------------------------------------------------------------------


def test_confusion_matrix_by_hand(device, to_device):
    target = torch.tensor([[0, 0, 1], [255, 7, 1]])
    prediction = torch.tensor([[0, 1, 1], [0, 1, -4]])
    maps = to_device(prediction), to_device(target)
    assert_counts(confusion_matrix(*maps, 2), [[1, 1], [0, 1]])
    assert_counts(confusion_matrix(*maps, 2, others=True), [[1, 1, 0], [0, 1, 1], [0, 1, 0]])
    # 0 is nothing, 1 is class 0, 7 is class 6, 255 stays ignored
    assert_counts(confusion_matrix(*maps, 2, others=True, reduce_zero_label=True), [[0, 1, 1], [0, 0, 0], [0, 1, 0]])
    assert_counts(confusion_matrix(*maps, 2, others=True, ignore_label=None), [[1, 1, 0], [0, 1, 1], [1, 1, 0]])


def test_boundary_iou_by_hand(device, to_device):
    # d = 1. The target is class 1 in the middle three columns; the prediction leaves out the last of them.
    target = torch.tensor([[0, 1, 1, 1, 0]]).repeat(5, 1)
    prediction = torch.tensor([[0, 1, 1, 0, 0]]).repeat(5, 1)
    counts = boundary_iou(to_device(prediction), to_device(target), 2)
    # Class 0: all of its pixels are boundary. Class 1 of the target: 15 but for the three in the middle.
    assert_counts(counts, [[10, 5 + 2], [15, 10], [10, 12]])


def test_boundary_iou_beside_ignored_pixels_by_hand(device, to_device):
    target = torch.zeros(7, 7, dtype=torch.uint8)
    target[3, 3] = 255
    prediction = torch.zeros(7, 7, dtype=torch.uint8)
    counts = boundary_iou(to_device(prediction), to_device(target), 1)
    # A frame of 24 pixels and the 8 around the ignored one, in both maps; 5 x 5 - 9 are inside.
    assert_counts(counts, [[32], [32], [32]])


@pytest.mark.parametrize(
    ("height", "width", "ratio", "distance"),
    [
        (375, 500, 0.02, 12),  # 12.5, half to even
        (1024, 2048, 0.02, 46),
        (480, 640, 0.02, 16),
        (3, 4, 0.5, 2),  # 2.5
        (3, 4, 0.7, 4),  # 3.5
        (5, 5, 0.02, 1),
        (3, 4, 1e300, 2**31),
    ],
)
def test_boundary_distance(height, width, ratio, distance):
    assert boundary_distance(height, width, ratio) == distance


# Against the witnesses ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MAPS)
def test_confusion_matrix_counts_each_pixel(device, to_device, name):
    prediction, target, num_classes = case(name)
    maps = [to_device(tensor) for tensor in as_tensors(prediction, target)]
    for ignore_label, reduce_zero_label in SETTINGS:
        options = {"ignore_label": ignore_label, "reduce_zero_label": reduce_zero_label}
        expected = counted_one_by_one(prediction, target, num_classes, **options)
        assert_counts(confusion_matrix(*maps, num_classes, others=True, **options), expected)
        assert_counts(confusion_matrix(*maps, num_classes, **options), expected[:-1, :-1])


@pytest.mark.parametrize("name", MAPS)
def test_boundary_iou_is_that_of_erosions(device, to_device, name):
    prediction, target, num_classes = case(name)
    maps = [to_device(tensor) for tensor in as_tensors(prediction, target)]
    ratios = (0.02, 0.09, 0.3, 1.0)
    for index, (ignore_label, reduce_zero_label) in enumerate(SETTINGS):
        for ratio in ratios if index == 0 else ratios[index - 1 : index]:
            options = {"ignore_label": ignore_label, "reduce_zero_label": reduce_zero_label, "ratio": ratio}
            expected = eroded_class_by_class(prediction, target, num_classes, **options)
            assert_counts(boundary_iou(*maps, num_classes, **options), expected)


def test_every_instruction_set(isa):
    for name in MAPS:
        prediction, target, num_classes = case(name)
        expected = counted_one_by_one(prediction, target, num_classes, reduce_zero_label=True)
        eroded = eroded_class_by_class(prediction, target, num_classes, reduce_zero_label=True, ratio=0.05)
        for dtype in ("int16", "int32", "int64"):
            maps = as_tensors(prediction, target, dtype=dtype)
            assert_counts(confusion_matrix(*maps, num_classes, reduce_zero_label=True, others=True), expected)
            assert_counts(boundary_iou(*maps, num_classes, reduce_zero_label=True, ratio=0.05), eroded)


def test_baseline(emulated_module, monkeypatch):
    # The level of other processors than x86-64, which finds changes in words of 64 bits. The emulated module has it.
    if emulated_module.build_info()["isa_levels"] != "baseline":
        pytest.skip("the emulated module has the levels of x86-64")
    monkeypatch.setattr(_native, "_load", lambda: (emulated_module, None))
    monkeypatch.setattr(_native, "isa_levels", lambda: ["baseline"])
    for name in MAPS:
        prediction, target, num_classes = case(name)
        maps = as_tensors(prediction, target)
        expected = counted_one_by_one(prediction, target, num_classes)
        assert_counts(confusion_matrix(*maps, num_classes, others=True), expected)
        expected = eroded_class_by_class(prediction, target, num_classes, ratio=0.05)
        assert_counts(boundary_iou(*maps, num_classes, ratio=0.05), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(device, to_device, dtype):
    # Every value of the small types, and the ends of the others.
    limits = (0, 1) if dtype == "bool" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    rng = np.random.default_rng(3)
    values = np.array([0, 1, 2, 126, 127, 128, 129, 199, 200, 254, 255, 256, 257, 65535, 69999, 70000, *limits], object)
    values = np.array([v for v in values if limits[0] <= v <= limits[1]], dtype)
    if dtype in ("uint8", "int8"):
        values = np.arange(256, dtype=np.uint8).view(dtype)
    prediction, target = rng.choice(values, (2, 24, 31)).repeat(2, 1)
    maps = [to_device(torch.from_numpy(labels)) for labels in (prediction, target)]
    other = to_device(torch.from_numpy(np.minimum(prediction, 100).astype("uint8")))
    # The witness computes in int64; what is above is no class.
    signed = [np.where(labels > 2**62, -5, labels.astype("int64")) for labels in (prediction, target)]
    settings = [(255, False), (255, True), (int(limits[0]), True), (-1, False)]
    for index, num_classes in enumerate((2, 127, 128, 200, 256, 70000)):
        for ignore_label, reduce_zero_label in settings if device == "cpu" else settings[index % 4 : index % 4 + 1]:
            ignore_label = 255 if dtype == "uint64" else ignore_label
            options = {"ignore_label": ignore_label, "reduce_zero_label": reduce_zero_label}
            expected = eroded_class_by_class(*signed, num_classes, **options)
            assert_counts(boundary_iou(*maps, num_classes, **options), expected)
            if num_classes == 70000:
                continue  # more than a matrix has
            expected = counted_one_by_one(prediction, target, num_classes, **options)
            assert_counts(confusion_matrix(*maps, num_classes, others=True, **options), expected)
            expected = counted_one_by_one(other.cpu().numpy(), target, num_classes, **options)
            assert_counts(confusion_matrix(other, maps[1], num_classes, others=True, **options), expected)


def test_boundaries_wider_than_a_byte(device, to_device):
    # 2 d + 1 = 281 rows and columns.
    prediction, target = np.zeros((2, 300, 290), np.uint8)
    target[280:, 289:] = 1
    prediction[299, :140] = 1
    expected = eroded_class_by_class(prediction, target, 2, ratio=140 / np.hypot(300, 290))
    assert 0 < expected[2, 0] < (target == 0).sum()
    maps = [to_device(tensor) for tensor in as_tensors(prediction, target)]
    assert_counts(boundary_iou(*maps, 2, ratio=140 / np.hypot(300, 290)), expected)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_any_number_of_threads(num_threads, threads):
    num_threads(threads)
    prediction, target = label_maps(2, 150, 333, high=21, cell=40, noise=0.001)
    target = strewn(target, 255, 0.001)
    maps = as_tensors(prediction, target, dtype="uint8")
    assert_counts(confusion_matrix(*maps, 21, others=True), counted_one_by_one(prediction, target, 21))
    assert_counts(boundary_iou(*maps, 21), eroded_class_by_class(prediction, target, 21))


def test_agrees_with_torchmetrics():
    if importlib.util.find_spec("torchmetrics") is None:
        pytest.skip("torchmetrics is not installed")
    # It imports torchvision where it finds it, whose compiled half may be for another torch.
    functional = import_models("torchmetrics", "this test").functional.classification
    prediction, target = label_maps(60, 81, high=19, cell=9)
    target = strewn(target, 255, 0.01)
    maps = as_tensors(prediction, target)
    expected = functional.multiclass_confusion_matrix(*maps, num_classes=19, ignore_index=255)
    assert torch.equal(confusion_matrix(*maps, 19), expected)


# Layouts, kinds of arrays, edges ------------------------------------------------------------------------------------


def layouts(labels):
    """The same map in other memory."""
    doubled = labels.repeat_interleave(2, -1)
    wide = torch.cat((labels, labels.flip(-1)), -1)
    yield "transposed", labels.transpose(-1, -2).contiguous().transpose(-1, -2)
    yield "every other column", doubled[..., ::2]
    yield "columns of a wider map", wide[..., : labels.shape[-1]]
    yield "channels last", torch.stack((labels, labels + 1, labels), -1)[..., 0]


@pytest.mark.parametrize("dtype", ["uint8", "int64"])
def test_strides(device, to_device, dtype):
    prediction, target = label_maps(2, 20, 37, high=6)
    target = strewn(target, 255, 0.02)
    expected = counted_one_by_one(prediction, target, 6)
    eroded = eroded_class_by_class(prediction, target, 6, ratio=0.05)
    plain = as_tensors(prediction, target, dtype=dtype)
    for one, two in zip(layouts(plain[0]), layouts(plain[1]), strict=True):
        for maps in ((one[1], two[1]), (one[1], plain[1]), (plain[0], two[1])):
            maps = [to_device(labels) for labels in maps]
            assert_counts(confusion_matrix(*maps, 6, others=True), expected)
            assert_counts(boundary_iou(*maps, 6, ratio=0.05), eroded)


def test_expanded_prediction(device, to_device):
    prediction, target = label_maps(3, 20, 37, high=6)
    one = to_device(torch.from_numpy(prediction[0])).expand(3, 20, 37)
    row = to_device(torch.from_numpy(prediction[0, :1])).expand(3, 20, 37)
    of_target = to_device(torch.from_numpy(target))
    for labels in (one, row):
        plain = labels.cpu().numpy().copy()
        assert_counts(confusion_matrix(labels, of_target, 6, others=True), counted_one_by_one(plain, target, 6))
        assert_counts(boundary_iou(labels, of_target, 6), eroded_class_by_class(plain, target, 6))


def test_array_kinds(xp):
    to_kind, back = xp
    prediction, target = as_tensors(*label_maps(20, 37, high=6), dtype="uint8")
    expected = counted_one_by_one(prediction.numpy(), target.numpy(), 6)
    matrix = confusion_matrix(to_kind(prediction), to_kind(target), 6, others=True)
    assert type(matrix) is type(to_kind(target))
    assert_counts(back(matrix), expected)
    counts = boundary_iou(to_kind(prediction), to_kind(target), 6)
    assert_counts(back(counts), eroded_class_by_class(prediction.numpy(), target.numpy(), 6))


def test_numpy_of_any_layout():
    prediction, target = label_maps(20, 37, high=6)
    turned, read_only = prediction[::-1, ::-1], target[::-1, ::-1].copy()
    read_only.flags.writeable = False
    expected = counted_one_by_one(turned, read_only, 6)
    np.testing.assert_array_equal(confusion_matrix(turned, read_only, 6, others=True), expected)
    np.testing.assert_array_equal(boundary_iou(turned, read_only, 6), eroded_class_by_class(turned, read_only, 6))


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0), (0, 4, 5), (2, 0, 5), (2, 4, 0)])
def test_no_pixels(device, to_device, shape):
    nothing = to_device(torch.zeros(shape, dtype=torch.uint8))
    assert_counts(confusion_matrix(nothing, nothing, 3), np.zeros((3, 3)))
    assert_counts(confusion_matrix(nothing, nothing, 3, others=True), np.zeros((4, 4)))
    assert_counts(boundary_iou(nothing, nothing, 3), np.zeros((3, 3)))


def test_everything_ignored(device, to_device):
    target = to_device(torch.full((30, 40), 255, dtype=torch.uint8))
    prediction = to_device(torch.zeros(30, 40, dtype=torch.int64))
    assert_counts(confusion_matrix(prediction, target, 3, others=True), np.zeros((4, 4)))
    assert_counts(boundary_iou(prediction, target, 3), np.zeros((3, 3)))


def test_batches_are_sums(device, to_device):
    prediction, target = (to_device(labels) for labels in as_tensors(*label_maps(3, 25, 31, high=7)))
    matrix = sum(confusion_matrix(p, t, 7, others=True) for p, t in zip(prediction, target, strict=True))
    counts = sum(boundary_iou(p, t, 7) for p, t in zip(prediction, target, strict=True))
    assert torch.equal(confusion_matrix(prediction, target, 7, others=True), matrix)
    assert torch.equal(boundary_iou(prediction, target, 7), counts)
    assert int(matrix.sum()) == prediction.numel()


def test_many_classes(device, to_device):
    prediction, target = label_maps(20, 37, high=32768, cell=2)
    maps = [to_device(labels) for labels in as_tensors(prediction, target)]
    matrix = confusion_matrix(*maps, 3000)
    classes = (target < 3000) & (prediction < 3000)
    pairs, counts = np.unique(np.stack((target[classes], prediction[classes])), axis=1, return_counts=True)
    assert int(matrix.sum()) == counts.sum()
    assert matrix[pairs[0], pairs[1]].tolist() == counts.tolist()
    expected = eroded_class_by_class(prediction, target, 2**20)
    assert_counts(boundary_iou(*maps, 2**20), expected)
