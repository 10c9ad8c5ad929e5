"""PnP-OVSS's steps from saliency maps to labels, with VOC's 20 classes and background and COCO-Stuff's 171."""

import functools

import bench_crf
import peers_pnp as peers
import torch
from harness import OURS, PUBLISHED, PYTORCH, Case, Implementation, Inputs, Tolerance, Work
from ovs_methods.methods.pnp_maps import postprocess
from torch import Tensor

from ovs_kernels.testing import synthetic_scene

# (height, width), classes, whether there is a background, patches along an axis
FULL = [((375, 500), 20, True, 21), ((375, 500), 171, False, 21)]
QUICK = [((48, 61), 5, True, 9), ((40, 33), 4, False, 6)]
MOST_CLASSES = 100  # that the blur by convolutions is timed with
# pydensecrf works out positions in float32, so a few pixels name other vertices there.
TOLERANCE = Tolerance(labels=0.995, error=0.0)


def make_inputs(size: tuple[int, int], num_classes: int, patches: int, device: torch.device) -> Inputs:
    """`maps` [K, P, P]: a spot per class, away from the borders, over noise, and `image` [3, H, W] uint8."""
    generator = torch.Generator().manual_seed(13)
    image, _, _ = synthetic_scene(*size, 1, 1)
    centres = patches * (0.25 + 0.5 * torch.rand(num_classes, 2, 1, 1, generator=generator))
    widths = patches * (0.02 + 0.08 * torch.rand(num_classes, 1, 1, generator=generator))
    grid = torch.stack(torch.meshgrid(torch.arange(patches), torch.arange(patches), indexing="ij"))
    spots = torch.exp(-0.5 * (grid - centres).square().sum(1) / widths.square())
    maps = spots + 0.1 * torch.rand(num_classes, patches, patches, generator=generator)
    return {"maps": maps.to(device), "image": (255 * image).round().to(torch.uint8).to(device)}


def implementations(num_classes: int, background: bool, device: torch.device) -> list[Implementation]:
    """Ours and everybody else."""
    slow = "behind the dense products, and takes too long for so many classes" if num_classes > MOST_CLASSES else None

    def ours(inputs: Inputs) -> Tensor:
        return postprocess(inputs["maps"], inputs["image"], background=background)

    def peer(function):
        return lambda inputs: function(inputs["maps"], inputs["image"], background)

    left_out = peers.published_missing() if device.type == "cpu" else "it has no GPU version"
    return [
        Implementation("ovs_kernels", OURS, ours),
        Implementation("SciPy blur, pydensecrf", PUBLISHED, peer(peers.published), left_out),
        Implementation("PyTorch convolutions, sparse products", PYTORCH, peer(peers.pytorch_convolutions), slow),
        Implementation("PyTorch dense and sparse products", PYTORCH, peer(peers.pytorch_products)),
    ]


def definition(inputs: Inputs, background: bool) -> Tensor:
    """Every step at the size of the photo, in float64, and the CRF's definition."""
    maps, image = inputs["maps"].double(), inputs["image"]
    height, width = image.shape[1:]
    sigma = peers.BLUR * max(height, width)
    rows, columns = (peers.blur_rows(torch.eye(n).to(maps), sigma) for n in (height, width))
    channels = rows.t() @ peers.enlarged(maps, (height, width), background) @ columns
    return bench_crf.definition({"image": image, "probabilities": peers.stretched(channels).softmax(0)}, peers.CRF)


def count_work(size: tuple[int, int], channels: int, patches: int) -> Work:
    """Flops and bytes that the case needs, but for the lattice's blur, whose size depends on the image."""
    numbers, corners, iterations = size[0] * size[1] * channels, 3 + 6, peers.CRF.iterations
    flops = 2 * patches * numbers + iterations * numbers * (2 * 2 * corners + 4)
    how = "2 flops per number and patch of an axis; for each iteration of the CRF 2 flops per class, pixel and vertex"
    return Work(flops, 4 * numbers * (2 + 3 * iterations), 0, how)


def cases(which: str, device: torch.device) -> list[Case]:
    """The cases of a run.

    Args:
        which: "quick" (small cases with every peer) or "full".
        device: where the inputs lie.
    """
    made = []
    for size, num_classes, background, patches in QUICK if which == "quick" else FULL:
        channels = num_classes + background
        made.append(
            Case(
                name=f"maps to labels, {size[0]}x{size[1]}, {channels} classes",
                sizes={"H": size[0], "W": size[1], "C": channels, "P": patches},
                options={"background": background},
                source="spots over noise, synthetic scene",
                inputs=functools.partial(make_inputs, size, num_classes, patches, device),
                expected=functools.partial(definition, background=background),
                implementations=implementations(num_classes, background, device),
                tolerance=TOLERANCE,
                work=count_work(size, channels, patches),
            )
        )
    return made
