"""`joint_bilateral_upsample`: 64 x 64 maps to 512 x 512 and other factors, VOC's and ADE's class counts, labels."""

import functools

import peers_upsample as peers
import torch
from harness import OURS, PYTORCH, REFERENCE, Case, Implementation, Inputs, Tolerance, Work
from torch import Tensor

import ovs_kernels
from ovs_kernels.reference import upsample as reference
from ovs_kernels.testing import synthetic_scene

# (h, w), (H, W), classes, radius, labels
FULL = [
    ((64, 64), (512, 512), 21, 3, False),
    ((64, 64), (512, 512), 21, 3, True),
    ((64, 64), (512, 512), 150, 3, False),
    ((64, 64), (512, 512), 150, 3, True),
    ((64, 64), (512, 512), 21, 5, False),
    ((37, 37), (518, 518), 21, 3, False),
    ((64, 64), (375, 500), 21, 3, False),
    ((128, 128), (512, 512), 21, 3, False),
]
QUICK = [((8, 10), (64, 80), 5, 2, False), ((8, 10), (64, 80), 5, 2, True), ((9, 8), (50, 59), 3, 2, False)]
SIGMAS = {"sigma_spatial": 1.0, "sigma_range": 0.1}
# An exponent is a difference of float32 numbers of up to some hundred; labels differ where two classes nearly tie.
TOLERANCE = Tolerance(labels=0.9995, error=1e-5)


def make_inputs(low: tuple[int, int], size: tuple[int, int], num_classes: int, device: torch.device) -> Inputs:
    """`maps` [C, h, w] and `guide` [3, H, W], float32."""
    generator = torch.Generator().manual_seed(1)
    guide, _, _ = synthetic_scene(*size, 1, 1)
    return {"maps": torch.randn(num_classes, *low, generator=generator).to(device), "guide": guide.to(device)}


def implementations(low: tuple[int, int], size: tuple[int, int], radius: int, labels: bool) -> list[Implementation]:
    """Ours and everybody else."""
    whole = size[0] % low[0] == 0 and size[1] % low[1] == 0
    left_out = None if whole else "whole factors only"

    def ours(inputs: Inputs) -> Tensor:
        return ovs_kernels.joint_bilateral_upsample(
            inputs["maps"], inputs["guide"], radius=radius, labels=labels, **SIGMAS
        )

    def peer(function, **options):
        def run(inputs: Inputs) -> Tensor:
            return function(inputs["maps"], inputs["guide"], *SIGMAS.values(), radius, labels=labels, **options)

        return run

    def plain(inputs: Inputs) -> Tensor:
        return defined(inputs["maps"], inputs["guide"], radius, labels)

    return [
        Implementation("ovs_kernels", OURS, ours),
        Implementation("PyTorch taps", PYTORCH, peer(peers.taps)),
        Implementation("PyTorch unfold, bmm", PYTORCH, peer(peers.cells, rows_at_a_time=low[0]), left_out),
        Implementation(
            "PyTorch unfold, bmm, a row of cells at a time", PYTORCH, peer(peers.cells, rows_at_a_time=1), left_out
        ),
        Implementation(
            "PyTorch unfold, bmm, classes first, two rows of cells",
            PYTORCH,
            peer(peers.cells_classes_first, rows_at_a_time=2),
            left_out,
        ),
        Implementation("reference, float32", REFERENCE, plain),
    ]


def defined(maps: Tensor, guide: Tensor, radius: int, labels: bool) -> Tensor:
    """The definition in the dtype of the inputs."""
    up = reference.joint_bilateral_upsample(maps[None], guide[None], radius=radius, omit=False, **SIGMAS)
    return reference.best_class(up)[0] if labels else up[0]


def expected(inputs: Inputs, radius: int) -> Tensor:
    """The float64 definition, a few classes at a time."""
    maps, guide = inputs["maps"].double(), inputs["guide"].double()
    result = maps.new_empty((len(maps), *guide.shape[1:]))
    for first in range(0, len(maps), 30):
        result[first : first + 30] = defined(maps[first : first + 30], guide, radius, False)
    return result


def count_work(low: tuple[int, int], size: tuple[int, int], num_classes: int, radius: int, labels: bool) -> Work:
    """Flops, bytes and exponentials that the case needs; taps outside of the grid are not counted."""
    taps = 1
    for nodes, pixels in zip(low, size, strict=True):
        cells = ((2 * torch.arange(pixels) + 1) * nodes) // (2 * pixels)
        taps *= int(((cells + radius).clamp(max=nodes - 1) - (cells - radius).clamp(min=0) + 1).sum())
    pixels = size[0] * size[1]
    result = pixels if labels else 4 * pixels * num_classes
    num_bytes = 4 * (num_classes * low[0] * low[1] + 3 * pixels) + result
    how = "2 flops per tap and class, 10 per tap; maps, guide and result once; an exponential per tap"
    return Work(taps * (2 * num_classes + 10), num_bytes, taps, how)


def cases(which: str, device: torch.device) -> list[Case]:
    """The cases of a run.

    Args:
        which: "quick" (small cases with every peer) or "full".
        device: where the inputs lie.
    """
    made = []
    for low, size, num_classes, radius, labels in QUICK if which == "quick" else FULL:
        name = f"{low[0]}x{low[1]} to {size[0]}x{size[1]} C={num_classes} r={radius}"
        made.append(
            Case(
                name=name + (" labels" if labels else ""),
                sizes={"h": low[0], "w": low[1], "H": size[0], "W": size[1], "C": num_classes},
                options={"radius": radius, "labels": labels, **SIGMAS},
                source="seeded normal maps, synthetic picture",
                inputs=functools.partial(make_inputs, low, size, num_classes, device),
                expected=functools.partial(expected, radius=radius),
                implementations=implementations(low, size, radius, labels),
                tolerance=TOLERANCE,
                work=count_work(low, size, num_classes, radius, labels),
            )
        )
    return made
