"""`ovs_kernels.merge_windows` and `window_boxes`: every backend against numbers by hand and a NumPy oracle."""

import pytest
import torch
from torch.nn.functional import interpolate
from windows_inputs import CASES, DOUBLE, SINGLE, ensemble_arguments, grid_boxes, padded_adds, scores_for

from ovs_kernels import merge_windows, window_boxes
from ovs_kernels.testing import assert_close_rel


def merged_on(to_device, name, dtype=torch.float32):
    setups, boxes, size = CASES[name]
    return merge_windows(*ensemble_arguments([to_device(scores.to(dtype)) for scores in setups], boxes, size))


# Worked out by hand -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_two_windows_by_hand(device, to_device, dtype):
    # test_reference_windows.py derives these numbers; all of them are exact in every dtype.
    scores = torch.tensor([[[[0.0, 4.0]]], [[[8.0, 8.0]]]], dtype=dtype)
    merged = merge_windows(to_device(scores), [[0, 0, 1, 4], [0, 2, 1, 6]], (1, 6))
    assert merged.dtype == dtype
    assert merged.tolist() == [[[0.0, 1.0, 5.5, 6.0, 8.0, 8.0]]]


def test_corners_by_hand(device, to_device):
    # Four one-patch windows with a common middle: 1, 2, 4, 8 alone at the corners, all four in the middle.
    scores = torch.tensor([1.0, 2.0, 4.0, 8.0]).reshape(4, 1, 1, 1)
    boxes = torch.tensor([[0, 0, 2, 2], [0, 1, 2, 3], [1, 0, 3, 2], [1, 1, 3, 3]])
    merged = merge_windows(to_device(scores), boxes, (3, 3))
    assert merged[0].tolist() == [[1.0, 1.5, 2.0], [2.5, 3.75, 5.0], [4.0, 6.0, 8.0]]


def test_set_ups_weigh_the_same_by_hand(device, to_device):
    setups = [torch.full((3, 1, 1, 1), 3.0), torch.full((1, 1, 2, 2), 9.0)]
    merged = merge_windows([to_device(scores) for scores in setups], [[[0, 0, 2, 2]] * 3, [[0, 0, 2, 2]]], (2, 2))
    assert merged.tolist() == [[[6.0, 6.0], [6.0, 6.0]]]


# Against padded adds ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_matches_padded_adds(device, to_device, name, dtype):
    merged = merged_on(to_device, name, dtype)
    assert merged.dtype == dtype
    assert merged.is_contiguous()
    assert_close_rel(merged, padded_adds(*CASES[name]), SINGLE if dtype == torch.float32 else DOUBLE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_instruction_set(isa, dtype):
    for name, case in CASES.items():
        merged = merged_on(lambda tensor: tensor, name, dtype)
        tolerance = SINGLE if dtype == torch.float32 else DOUBLE
        assert_close_rel(merged, padded_adds(*case), tolerance, message=f"{isa}: {name}")


@pytest.mark.parametrize(("height", "width"), [(1, 1), (5, 70), (33, 17), (64, 128)])
@pytest.mark.parametrize("grid", [(1, 1), (2, 3), (7, 7), (40, 50)])
def test_single_window_is_plain_interpolation(device, to_device, height, width, grid):
    scores = scores_for([0], 3, grid)
    expected = interpolate(scores.double(), size=(height, width), mode="bilinear", align_corners=False)[0]
    merged = merge_windows(to_device(scores), [[0, 0, height, width]], (height, width))
    assert_close_rel(merged, expected, SINGLE)


@pytest.mark.parametrize("num_classes", [1, 2, 3, 4, 5, 8, 9, 31])
def test_every_number_of_classes(device, to_device, num_classes):
    boxes = grid_boxes((21, 70), (8, 16), (5, 9))
    scores = scores_for(boxes, num_classes, (2, 3))
    merged = merge_windows(to_device(scores), boxes, (21, 70))
    assert_close_rel(merged, padded_adds([scores], [boxes], (21, 70)), SINGLE)


def test_windows_of_the_paper(device, to_device):
    # 224/112 windows of 14 x 14 patches over a 448 x 597 image; two classes are enough.
    if device == "emulated":
        pytest.skip("too large for the emulator")
    boxes = window_boxes((448, 597), 224, 112)
    assert len(boxes) == 15
    scores = scores_for(boxes, 2, (14, 14))
    merged = merge_windows(to_device(scores), boxes, (448, 597))
    assert_close_rel(merged, padded_adds([scores], [boxes], (448, 597)), SINGLE)


def test_ensemble_of_the_paper(device, to_device):
    if device == "emulated":
        pytest.skip("too large for the emulator")
    size = (448, 597)
    boxes = [window_boxes(size, 224, 112), window_boxes(size, 448, 224)]
    setups = [scores_for(boxes[0], 2, (14, 14)), scores_for(boxes[1], 2, (28, 28), 2)]
    merged = merge_windows([to_device(scores) for scores in setups], boxes, size)
    assert_close_rel(merged, padded_adds(setups, boxes, size), SINGLE)
    alone = [merge_windows(to_device(scores), table, size) for scores, table in zip(setups, boxes, strict=True)]
    assert_close_rel(merged, (alone[0] + alone[1]).cpu() / 2, SINGLE)


def test_list_of_one_set_up(device, to_device):
    setups, boxes, size = CASES["odd everything"]
    scores = to_device(setups[0])
    assert torch.equal(merge_windows([scores], boxes, size), merge_windows(scores, boxes[0], size))
    assert torch.equal(merge_windows((scores,), (boxes[0],), size), merge_windows(scores, boxes[0], size))


# Invariants -------------------------------------------------------------------------------------------------


def test_constants_are_kept(device, to_device):
    for name, (setups, boxes, size) in CASES.items():
        constant = [to_device(torch.full_like(scores, 2.5)) for scores in setups]
        merged = merge_windows(*ensemble_arguments(constant, boxes, size))
        assert_close_rel(merged, torch.full(merged.shape, 2.5), SINGLE, message=name)


def test_order_of_classes_is_kept(device, to_device):
    setups, boxes, size = CASES["any boxes 2"]
    pair = torch.cat((setups[0][:, :1], setups[0][:, :1] + torch.rand(len(boxes[0]), 1, 4, 5) + 1e-3), 1)
    merged = merge_windows(to_device(pair), boxes[0], size)
    assert (merged[1] > merged[0]).all()


def test_order_of_windows_does_not_matter(device, to_device):
    setups, boxes, size = CASES["any boxes 3"]
    order = torch.randperm(len(boxes[0]))
    shuffled = merge_windows(to_device(setups[0][order]), boxes[0][order], size)
    assert_close_rel(shuffled, merge_windows(to_device(setups[0]), boxes[0], size), SINGLE)


# Boxes ------------------------------------------------------------------------------------------------------


def test_window_boxes_by_hand():
    # 597 columns of 224/112: four steps leave 597 - 4 * 112 < 224, so the fifth window ends at the border.
    boxes = window_boxes((448, 597), 224, 112)
    assert boxes.dtype == torch.int64
    assert boxes[:, 1].unique().tolist() == [0, 112, 224, 336, 373]
    assert boxes[:, 0].unique().tolist() == [0, 112, 224]
    assert boxes[5].tolist() == [112, 0, 336, 224]  # row by row
    assert window_boxes((100, 90), 128, 64).tolist() == [[0, 0, 100, 90]]
    assert window_boxes((5, 9), (3, 4), (2, 4)).tolist() == [
        [0, 0, 3, 4],
        [0, 4, 3, 8],
        [0, 5, 3, 9],
        [2, 0, 5, 4],
        [2, 4, 5, 8],
        [2, 5, 5, 9],
    ]


@pytest.mark.parametrize("size", [(1, 1), (16, 16), (17, 31), (45, 33)])
@pytest.mark.parametrize(
    ("window", "stride"), [((16, 16), (8, 8)), ((7, 5), (7, 2)), ((1, 1), (1, 1)), ((9, 30), (4, 30))]
)
def test_window_boxes_match_a_loop(size, window, stride):
    assert window_boxes(size, window, stride).tolist() == grid_boxes(size, window, stride).tolist()
