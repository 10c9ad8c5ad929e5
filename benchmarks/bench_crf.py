"""`dense_crf`: the settings of PnP-OVSS and of pydensecrf's example, on a photo and on synthetic scenes."""

import functools

import bench_pixels as pixels
import peers_crf as peers
import torch
from harness import OURS, PUBLISHED, PYTORCH, REFERENCE, Case, Implementation, Inputs, Tolerance, Work
from torch import Tensor

import ovs_kernels
from ovs_kernels.reference import crf as reference
from ovs_kernels.testing import synthetic_scene

PNP = (3.0, 7.0, 50.0, 5.0, 10.0)
EXAMPLE = (3.0, 3.0, 80.0, 13.0, 10.0)
# (height, width, classes, iterations, settings, picture); a photo's texture makes a larger lattice
FULL = [
    (448, 597, 21, 10, "PnP", "photo"),
    (448, 597, 21, 10, "PnP", "scene"),
    (448, 597, 21, 5, "PnP", "scene"),
    (448, 597, 21, 5, "example", "scene"),
    (448, 597, 59, 10, "PnP", "scene"),
    (448, 597, 2, 10, "PnP", "scene"),
    (336, 448, 21, 10, "PnP", "scene"),
]
QUICK = [(48, 61, 5, 4, "PnP", "scene"), (33, 40, 3, 2, "example", "photo")]

# pydensecrf works out positions in float32, so a few pixels name other vertices there.
TOLERANCE = Tolerance(labels=0.995, error=2e-2)
# Probabilities as sharp as those of a model: softmax of 30 times the scene's scores.
SHARPNESS = 30.0


def settings(iterations: int, name: str) -> peers.Settings:
    """The named settings."""
    return peers.Settings(iterations, *(PNP if name == "PnP" else EXAMPLE))


def make_inputs(height: int, width: int, num_classes: int, picture: str, device: torch.device) -> Inputs:
    """`image` [3, H, W] uint8 and `probabilities` [C, H, W]."""
    if picture == "photo":
        image, scores = pixels.photo(height, width)[0], pixels.blob_scores(num_classes, height, width)
    else:
        image, scores, _ = synthetic_scene(height, width, num_classes, 1)
    return {
        "image": (255 * image).round().to(torch.uint8).to(device),
        "probabilities": (SHARPNESS * scores).softmax(0).to(device),
    }


def implementations(s: peers.Settings, device: torch.device) -> list[Implementation]:
    """Ours and everybody else."""
    options = {
        "iterations": s.iterations,
        "gaussian_sxy": s.gaussian_sxy,
        "gaussian_compat": s.gaussian_compat,
        "bilateral_sxy": s.bilateral_sxy,
        "bilateral_srgb": s.bilateral_srgb,
        "bilateral_compat": s.bilateral_compat,
    }

    def ours(inputs: Inputs) -> Tensor:
        return ovs_kernels.dense_crf(inputs["image"], inputs["probabilities"], **options)

    def peer(function):
        return lambda inputs: function(inputs["image"], inputs["probabilities"], s)

    left_out = peers.pydensecrf_missing() if device.type == "cpu" else "it has no GPU version"
    return [
        Implementation("ovs_kernels", OURS, ours),
        Implementation("pydensecrf", PUBLISHED, peer(peers.pydensecrf), left_out),
        Implementation("PyTorch sparse products", PYTORCH, peer(peers.pytorch)),
        Implementation("reference, float32", REFERENCE, lambda inputs: definition(inputs, s, torch.float32)),
    ]


def definition(inputs: Inputs, s: peers.Settings, dtype: torch.dtype = torch.float64) -> Tensor:
    """By the reference."""
    return reference.dense_crf(
        inputs["image"].double(),
        inputs["probabilities"].to(dtype),
        iterations=s.iterations,
        gaussian_sxy=[s.gaussian_sxy] * 2,
        bilateral_scales=[s.bilateral_sxy] * 2 + [s.bilateral_srgb] * 3,
        exact=False,
        features=[],
        compat=[torch.tensor(s.gaussian_compat), torch.tensor(s.bilateral_compat)],
        normalization="symmetric",
        energies=False,
        clip=1e-5,
    )


def count_work(height: int, width: int, num_classes: int, iterations: int) -> Work:
    """Flops and bytes that the case needs, but for the blur, whose size depends on the image."""
    numbers = height * width * num_classes
    corners = 3 + 6
    flops = iterations * numbers * (2 * 2 * corners + 4)
    how = "2 flops per class, pixel and vertex for splat and slice, 4 for a softmax; scores and Q once per iteration"
    return Work(flops, 4 * numbers * (2 + 3 * iterations), 0, how)


def cases(which: str, device: torch.device) -> list[Case]:
    """The cases of a run.

    Args:
        which: "quick" (small cases with every peer) or "full".
        device: where the inputs lie.
    """
    made = []
    for height, width, num_classes, iterations, name, picture in QUICK if which == "quick" else FULL:
        s, source = settings(iterations, name), "synthetic scene"
        if picture == "photo":
            source = f"{pixels.photo(height, width)[1]}; scores: seeded blobs"
        made.append(
            Case(
                name=f"{height}x{width} C={num_classes} {iterations} iterations {name}, {picture}",
                sizes={"H": height, "W": width, "C": num_classes},
                options={"iterations": iterations, "settings": name},
                source=source,
                inputs=functools.partial(make_inputs, height, width, num_classes, picture, device),
                expected=functools.partial(definition, s=s),
                implementations=implementations(s, device),
                tolerance=TOLERANCE,
                work=count_work(height, width, num_classes, iterations),
            )
        )
    return made
