"""`pamr`: NACLIP's settings at VOC's and ADE's class counts, five iterations, and the many dilations of pictures."""

import functools

import peers_pamr as peers
import torch
from harness import OURS, PUBLISHED, PYTORCH, REFERENCE, Case, Implementation, Inputs, Tolerance, Work
from torch import Tensor

import ovs_kernels
from ovs_kernels.reference import pamr as reference_pamr
from ovs_kernels.testing import synthetic_scene

# (H, W), classes, iterations, dilations
FULL = [
    ((448, 597), 21, 10, (8, 16)),
    ((448, 597), 150, 10, (8, 16)),
    ((448, 597), 21, 5, (8, 16)),
    ((448, 597), 21, 10, (1, 2, 4, 8, 12, 24)),
    ((1024, 2048), 19, 10, (8, 16)),
]
QUICK = [((30, 41), 5, 3, (8, 16)), ((33, 29), 3, 2, (1, 2, 4))]
# Exponents reach -58 and every iteration uses the rounded weights; labels differ where two classes nearly tie.
TOLERANCE = Tolerance(labels=0.9995, error=1e-5)
# The published module writes classes * taps * H * W numbers several times over: above this many bytes of them it is
# left out.
MOST_BYTES = 16e9
# The definition and the gathered rows, which are far behind, are left out where they would take half a minute a call.
MOST_PRODUCTS = 3e9


def make_inputs(size: tuple[int, int], num_classes: int, device: torch.device) -> Inputs:
    """`image` [3, H, W] and `scores` [C, H, W], float32."""
    generator = torch.Generator().manual_seed(1)
    image, _, _ = synthetic_scene(*size, 1, 1)
    scores = torch.randn(num_classes, *size, generator=generator)
    return {"image": image.to(device), "scores": scores.to(device)}


def implementations(
    size: tuple[int, int], num_classes: int, num_iter: int, dilations: tuple[int, ...]
) -> list[Implementation]:
    """Ours and everybody else."""
    settings = (num_iter, dilations)
    written = 4 * num_classes * 8 * len(dilations) * size[0] * size[1]
    left_out = f"writes {written / 1e9:.0f} GB of neighbours" if written > MOST_BYTES else None
    slow = "would take half a minute a call" if written / 4 * num_iter > MOST_PRODUCTS else None

    def ours(inputs: Inputs) -> Tensor:
        return ovs_kernels.pamr(inputs["image"], inputs["scores"], num_iter=num_iter, dilations=dilations)

    def peer(function, **options):
        def run(inputs: Inputs) -> Tensor:
            return function(inputs["image"], inputs["scores"], *settings, **options)

        return run

    return [
        Implementation("ovs_kernels", OURS, ours),
        Implementation("PAMR module (NACLIP)", PUBLISHED, peer(peers.module), left_out),
        Implementation("PyTorch shifts", PYTORCH, peer(peers.shifts)),
        Implementation("PyTorch shifts, in bands", PYTORCH, peer(peers.shifts, band=16, group=8)),
        Implementation("PyTorch rows, gather and bmm", PYTORCH, peer(peers.gathered_rows), slow),
        Implementation("reference, float32", REFERENCE, lambda inputs: defined(inputs, num_iter, dilations), slow),
    ]


def defined(inputs: Inputs, num_iter: int, dilations: tuple[int, ...]) -> Tensor:
    """The definition in the dtype of the inputs."""
    image, scores = inputs["image"][None], inputs["scores"][None]
    return reference_pamr(image, scores, num_iter=num_iter, dilations=dilations)[0]


def expected(inputs: Inputs, num_iter: int, dilations: tuple[int, ...]) -> Tensor:
    """The float64 definition, a few classes at a time."""
    image, scores = inputs["image"].double(), inputs["scores"]
    result = scores.new_empty(scores.shape, dtype=torch.float64)
    for first in range(0, len(scores), 30):
        part = {"image": image, "scores": scores[first : first + 30].double()}
        result[first : first + 30] = defined(part, num_iter, dilations)
    return result


def count_work(size: tuple[int, int], num_classes: int, num_iter: int, dilations: tuple[int, ...]) -> Work:
    """Flops, bytes and exponentials that the case needs."""
    pixels, taps = size[0] * size[1], 8 * len(dilations)
    flops = pixels * taps * (2 * num_classes * num_iter + 3 * 5)
    how = "2 flops per tap, class and iteration, 5 per tap and channel; image, scores and result once; exp per tap"
    return Work(flops, 4 * pixels * (3 + 2 * num_classes), pixels * taps, how)


def cases(which: str, device: torch.device) -> list[Case]:
    """The cases of a run.

    Args:
        which: "quick" (small cases with every peer) or "full".
        device: where the inputs lie.
    """
    made = []
    for size, num_classes, num_iter, dilations in QUICK if which == "quick" else FULL:
        near = ",".join(map(str, dilations))
        made.append(
            Case(
                name=f"{size[0]}x{size[1]} C={num_classes} dilations {near}, {num_iter} iterations",
                sizes={"H": size[0], "W": size[1], "C": num_classes},
                options={"num_iter": num_iter, "dilations": list(dilations)},
                source="seeded normal scores, synthetic picture",
                inputs=functools.partial(make_inputs, size, num_classes, device),
                expected=functools.partial(expected, num_iter=num_iter, dilations=dilations),
                implementations=implementations(size, num_classes, num_iter, dilations),
                tolerance=TOLERANCE,
                work=count_work(size, num_classes, num_iter, dilations),
            )
        )
    return made
