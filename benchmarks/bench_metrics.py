"""`confusion_matrix` and `boundary_iou`: maps of Cityscapes', VOC's and COCO-Stuff's sizes, bytes and 64-bit labels."""

import functools
from collections.abc import Callable

import peers_metrics as peers
import torch
from harness import OURS, PUBLISHED, PYTORCH, REFERENCE, Case, Implementation, Inputs, Tolerance, Work
from torch import Tensor

import ovs_kernels
from ovs_kernels.reference import metrics as reference
from ovs_kernels.testing import synthetic_scene

# (operator, (H, W), classes, dtype, share of pixels with a random label)
FULL = [
    ("confusion_matrix", (1024, 2048), 19, torch.uint8, 0.0),
    ("confusion_matrix", (1024, 2048), 19, torch.int64, 0.0),
    ("confusion_matrix", (1024, 2048), 19, torch.uint8, 1.0),
    ("confusion_matrix", (375, 500), 21, torch.uint8, 0.0),
    ("confusion_matrix", (480, 640), 171, torch.int64, 0.0),
    ("boundary_iou", (1024, 2048), 19, torch.uint8, 0.0),
    ("boundary_iou", (1024, 2048), 19, torch.int64, 0.0),
    ("boundary_iou", (1024, 2048), 19, torch.uint8, 1.0),
    ("boundary_iou", (375, 500), 21, torch.uint8, 0.0),
    ("boundary_iou", (480, 640), 171, torch.uint8, 0.0),
]
QUICK = [
    ("confusion_matrix", (60, 77), 19, torch.int64, 0.02),
    ("boundary_iou", (60, 77), 19, torch.uint8, 0.02),
]
TOLERANCE = Tolerance(labels=1.0, error=0.0)  # counts are equal or wrong


def make_inputs(
    size: tuple[int, int], num_classes: int, dtype: torch.dtype, noise: float, device: torch.device
) -> Inputs:
    """`prediction` and `target` [H, W]: regions, some of them wrong, borders moved by some pixels, 5 % ignored."""
    generator = torch.Generator().manual_seed(3)
    height, width = size

    def enlarged(labels: Tensor, factor: int) -> Tensor:
        return labels.repeat_interleave(factor, 0).repeat_interleave(factor, 1)[:height, :width]

    def blocks(factor: int, share: float) -> Tensor:
        small = torch.rand(-(-height // factor), -(-width // factor), generator=generator) < share
        return enlarged(small, factor)

    target = enlarged(synthetic_scene(-(-height // 4), -(-width // 4), num_classes, 5)[2], 4).contiguous()
    prediction = target.roll((3, 5), (0, 1))
    for wrong in (blocks(8, 0.1), torch.rand(height, width, generator=generator) < noise):
        prediction[wrong] = torch.randint(num_classes, (int(wrong.sum()),), generator=generator)
    target[blocks(16, 0.05)] = peers.IGNORED
    return {"prediction": prediction.to(dtype).to(device), "target": target.to(dtype).to(device)}


def _runner(function: Callable, num_classes: int, *more) -> Callable[[Inputs], Tensor]:
    # Counts as float64, so that all of them are compared and not the largest of each column.
    return lambda inputs: function(inputs["prediction"], inputs["target"], num_classes, *more).double()


def matrix_implementations(num_classes: int, device: torch.device) -> list[Implementation]:
    """Ours and everybody else."""

    def plain(prediction: Tensor, target: Tensor, classes: int) -> Tensor:
        return reference.confusion_matrix(prediction[None], target[None], classes)

    without = peers.missing("torchmetrics.functional.classification")
    on_host = "NumPy has no CUDA arrays" if device.type == "cuda" else None
    return [
        Implementation("ovs_kernels", OURS, _runner(ovs_kernels.confusion_matrix, num_classes)),
        Implementation("torchmetrics", PUBLISHED, _runner(peers.torchmetrics_matrix, num_classes, True), without),
        Implementation(
            "torchmetrics without checks", PYTORCH, _runner(peers.torchmetrics_matrix, num_classes, False), without
        ),
        Implementation("numpy.bincount", PYTORCH, _runner(peers.numpy_bincount, num_classes), on_host),
        Implementation("torch.bincount of valid pixels", PYTORCH, _runner(peers.bincount_of_valid, num_classes)),
        Implementation("torch.bincount of all pixels", PYTORCH, _runner(peers.bincount_of_all, num_classes)),
        Implementation("reference", REFERENCE, _runner(plain, num_classes)),
    ]


def boundary_implementations(num_classes: int, device: torch.device) -> list[Implementation]:
    """Ours and everybody else."""
    without = "OpenCV has no CUDA arrays" if device.type == "cuda" else peers.missing("cv2")
    return [
        Implementation("ovs_kernels", OURS, _runner(ovs_kernels.boundary_iou, num_classes)),
        Implementation("published (OpenCV, erosions)", PUBLISHED, _runner(peers.eroded_masks, num_classes), without),
        Implementation("OpenCV on labels", PYTORCH, _runner(peers.smallest_and_largest, num_classes), without),
        Implementation("PyTorch pooling", PYTORCH, _runner(peers.pooled, num_classes)),
        Implementation("PyTorch sums of changes", PYTORCH, _runner(peers.summed, num_classes)),
    ]


def expected(inputs: Inputs, op: str, num_classes: int) -> Tensor:
    """The definition's counts."""
    prediction, target = inputs["prediction"][None], inputs["target"][None]
    if op == "confusion_matrix":
        return reference.confusion_matrix(prediction, target, num_classes).double()
    distance = peers.distance_of(*target.shape[-2:])
    return reference.boundary_counts(prediction, target, num_classes, distance=distance).double()


def cases(which: str, device: torch.device) -> list[Case]:
    """The cases of a run.

    Args:
        which: "quick" (small cases with every peer) or "full".
        device: where the inputs lie.
    """
    made = []
    for op, size, num_classes, dtype, noise in QUICK if which == "quick" else FULL:
        kind = str(dtype).removeprefix("torch.")
        name = f"{op}, {size[0]} x {size[1]}, {num_classes} classes, {kind}" + (", noise" if noise == 1.0 else "")
        make = matrix_implementations if op == "confusion_matrix" else boundary_implementations
        num_bytes = 2 * size[0] * size[1] * dtype.itemsize
        made.append(
            Case(
                name=name,
                sizes={"H": size[0], "W": size[1], "C": num_classes},
                options={"operator": op, "dtype": kind, "noise": noise},
                source="seeded regions",
                inputs=functools.partial(make_inputs, size, num_classes, dtype, noise, device),
                expected=functools.partial(expected, op=op, num_classes=num_classes),
                implementations=make(num_classes, device),
                tolerance=TOLERANCE,
                work=Work(0, num_bytes, 0, "both maps read once"),
            )
        )
    return made
