"""`merge_windows`: the sliding windows of LPOSS, seeded scores, the class counts of VOC, Context and COCO-Stuff."""

import functools

import peers_windows as peers
import torch
from harness import OURS, PUBLISHED, PYTORCH, REFERENCE, Case, Implementation, Inputs, Tolerance, Work
from torch import Tensor

import ovs_kernels
from ovs_kernels.reference import windows as reference

# (height, width, classes, [(window, stride, patches along a side)], gradient)
W224, W448 = (224, 112, 14), (448, 224, 28)
FULL = [
    (448, 597, 21, [W224], False),
    (448, 597, 59, [W224], False),
    (448, 597, 171, [W224], False),
    (448, 597, 21, [W224, W448], False),
    (448, 597, 171, [W224, W448], False),
    (448, 896, 19, [W224], False),
    (448, 597, 21, [W224], True),
    (448, 597, 171, [W224], True),
]
QUICK = [(64, 85, 5, [(32, 16, 4)], False), (64, 85, 5, [(32, 16, 4)], True)]

# Float32 against float64; labels differ where two classes are within rounding of each other.
TOLERANCE = Tolerance(labels=0.9999, error=1e-6)


def make_inputs(height: int, width: int, num_classes: int, setups, gradient: bool, device: torch.device) -> Inputs:
    """`scores0`, `boxes0` and so on for every set-up; `v_merged` for a gradient."""
    generator = torch.Generator().manual_seed(1)
    inputs = {}
    if gradient:
        inputs["v_merged"] = torch.randn(num_classes, height, width, generator=generator).to(device)
    for index, (window, stride, patches) in enumerate(setups):
        boxes = ovs_kernels.window_boxes((height, width), window, stride)
        scores = 0.2 + 0.05 * torch.randn(len(boxes), num_classes, patches, patches, generator=generator)
        inputs |= {f"scores{index}": scores.to(device), f"boxes{index}": boxes}
    return inputs


def _setups(inputs: Inputs) -> tuple[list[Tensor], list[Tensor]]:
    count = sum(name.startswith("boxes") for name in inputs)
    return [inputs[f"scores{i}"] for i in range(count)], [inputs[f"boxes{i}"] for i in range(count)]


def _by_class(v_scores: Tensor, scores: Tensor) -> Tensor:
    """[K, C, h, w] cotangents as the harness compares them, classes first."""
    return v_scores.reshape(scores.shape).transpose(0, 1)


def forward_implementations(size: tuple[int, int], num_setups: int) -> list[Implementation]:
    """Ours and everybody else."""

    def ours(inputs: Inputs) -> Tensor:
        scores, boxes = _setups(inputs)
        return ovs_kernels.merge_windows(scores, boxes, size)

    def peer(function):
        def run(inputs: Inputs) -> Tensor:
            pairs = list(zip(*_setups(inputs), strict=True))
            result = function(*pairs[0], size)
            for scores, boxes in pairs[1:]:
                result += function(scores, boxes, size)
            return result if len(pairs) == 1 else result.div_(len(pairs))

        return run

    def plain(inputs: Inputs) -> Tensor:
        return reference.merge_windows(*_setups(inputs), size)

    return [
        Implementation("ovs_kernels", OURS, ours),
        Implementation("PyTorch in-place adds", PYTORCH, peer(peers.in_place)),
        Implementation("PyTorch two matrix products", PYTORCH, peer(peers.two_products)),
        Implementation("published (padded adds)", PUBLISHED, peer(peers.published)),
        Implementation("reference, float32", REFERENCE, plain),
    ]


def gradient_implementations(grids: list[int]) -> list[Implementation]:
    """The same for the gradient of one set-up."""

    def ours(inputs: Inputs) -> Tensor:
        scores, boxes = _setups(inputs)
        found = torch.ops.ovs_kernels.merge_windows_backward(inputs["v_merged"], grids, boxes)
        return _by_class(found, scores[0])

    def windows(inputs: Inputs) -> Tensor:
        scores, boxes = _setups(inputs)
        found = peers.gradient_by_windows(inputs["v_merged"], boxes[0], tuple(scores[0].shape[2:]))
        return _by_class(found, scores[0])

    return [
        Implementation("ovs_kernels", OURS, ours),
        Implementation("PyTorch window by window", PYTORCH, windows),
    ]


def expected(inputs: Inputs, size: tuple[int, int], grids: list[int]) -> Tensor:
    """The float64 definition, a few classes at a time."""
    scores, boxes = _setups(inputs)
    if "v_merged" in inputs:
        # The plain peer in float64: inference mode has no autograd for the definition.
        found = peers.gradient_by_windows(inputs["v_merged"].double(), boxes[0], tuple(scores[0].shape[2:]))
        return _by_class(found, scores[0])
    result = scores[0].new_empty((scores[0].shape[1], *size), dtype=torch.float64)
    for first in range(0, len(result), 16):
        part = slice(first, first + 16)
        result[part] = reference.merge_windows([one[:, part].double() for one in scores], boxes, size)
    return result


def count_work(height: int, width: int, num_classes: int, inputs: Inputs) -> Work:
    """Flops and bytes that the case needs."""
    pixels, flops, num_bytes = height * width, 0, 4 * height * width * num_classes
    for scores, boxes in zip(*_setups(inputs), strict=True):
        table = boxes.tolist()
        bands = {(y0, y1) for y0, _, y1, _ in table}
        stretched = sum(x1 - x0 for _, x0, _, x1 in table) * scores.shape[2]
        covered = sum(y1 - y0 for y0, y1 in bands) * width
        flops += num_classes * (4 * stretched + 4 * covered + pixels)
        num_bytes += 4 * scores.numel()
    how = "4 flops per stretched number and per blended one, 1 per pixel; patch scores and the full-size array once"
    return Work(flops, num_bytes, 0, how)


def cases(which: str, device: torch.device) -> list[Case]:
    """The cases of a run.

    Args:
        which: "quick" (small cases with every peer) or "full".
        device: where the inputs lie.
    """
    made = []
    for height, width, num_classes, setups, gradient in QUICK if which == "quick" else FULL:
        arguments = (height, width, num_classes, setups, gradient, device)
        grids = []
        for window, stride, patches in setups:
            grids += [len(ovs_kernels.window_boxes((height, width), window, stride)), patches, patches]
        text = "+".join(f"{window}/{stride}" for window, stride, _ in setups)
        made.append(
            Case(
                name=f"{height}x{width} C={num_classes} windows {text}" + (" gradient" if gradient else ""),
                sizes={"H": height, "W": width, "C": num_classes, "K": sum(grids[::3])},
                options={"windows": text, "gradient": gradient},
                source="seeded normal scores",
                inputs=functools.partial(make_inputs, *arguments),
                expected=functools.partial(expected, size=(height, width), grids=grids),
                implementations=gradient_implementations(grids)
                if gradient
                else forward_implementations((height, width), len(setups)),
                tolerance=TOLERANCE,
                work=count_work(height, width, num_classes, make_inputs(*arguments[:-1], torch.device("cpu"))),
            )
        )
    return made
