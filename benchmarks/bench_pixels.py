"""`lp_pixels`: a real photo at the sizes of LPOSS+ (VOC, ADE20K, Cityscapes), scores of smooth seeded blobs."""

import functools
import importlib.util
import math
from pathlib import Path

import peers_pixels as peers
import torch
from harness import OURS, PUBLISHED, PYTORCH, REFERENCE, Case, Implementation, Inputs, Tolerance, Work
from torch import Tensor

import ovs_kernels
from ovs_kernels.reference import pixels as reference

WINDOW, TAU, ALPHA, TOL = 13, 0.01, 0.95, 1e-6
OFFICIAL_STEPS = 10
# (height, width, classes, mode, labels)
FULL = [
    (448, 597, 21, "official", False),
    (448, 597, 21, "official", True),
    (448, 597, 150, "official", False),
    (448, 597, 150, "official", True),
    (448, 448, 21, "official", False),
    (1024, 2048, 19, "official", False),
    (448, 597, 21, "exact", False),
]
QUICK = [(64, 85, 5, "official", False)]

# Float32 against the float64 definition. Official: float32 CG is off by 1e-6 to 1e-5, most of it from Lab values in
# float32 that are divided by tau. Exact: rounding leaves 5e-6 of the residual, and X is 20 times as large as Y.
TOLERANCES = {"official": Tolerance(labels=0.9999, error=5e-5), "exact": Tolerance(labels=0.9999, error=2e-4)}

# A peer that would need more than this on a CPU is left out; of a GPU's memory, half.
MEMORY_LIMIT, TIME_LIMIT = 6e9, 60.0
# Measured at 448x597 on two cores of an AVX-512 server CPU. Bytes per link: temporaries of the graph.
PUBLISHED_BYTES, CSR_BYTES = 70, 38
# Seconds per link to build the graph, and per link, class and step to solve.
PUBLISHED_BUILD_SECONDS, PUBLISHED_SOLVE_SECONDS = 3e-7, 1.8e-9
EXACT_CG_STEPS = 43

# float32 numbers that one operation of the banded stencil touches: 3 MB, the caches of two cores.
CPU_BAND, CUDA_BAND = 800_000, 6_000_000


@functools.cache
def photo(height: int, width: int) -> tuple[Tensor, str]:
    """A real photo at the size asked for, and where it is from.

    scikit-image's coffee (CC0), found without importing the package; a synthetic scene where it or Pillow is missing.
    """
    spec = importlib.util.find_spec("skimage")
    folders = (spec.submodule_search_locations or ()) if spec else ()
    path = next((path for folder in folders if (path := Path(folder, "data", "coffee.png")).is_file()), None)
    if path is not None and importlib.util.find_spec("PIL"):
        import numpy as np
        from PIL import Image

        with Image.open(path) as picture:
            pixels = np.array(picture.convert("RGB").resize((width, height), Image.Resampling.BICUBIC))
        return torch.from_numpy(pixels).permute(2, 0, 1).float().div(255), "photo: coffee.png of scikit-image, resized"
    from ovs_kernels.testing import synthetic_scene

    image = synthetic_scene(height, width, 4, 1)[0].float()
    return image.contiguous(), "synthetic scene (no scikit-image or no Pillow)"


def blob_scores(num_classes: int, height: int, width: int) -> Tensor:
    """Scores in the range of cosine similarities: blobs of two sizes, seeded. [C, H, W] float32."""
    generator = torch.Generator().manual_seed(1)
    scores = torch.full((num_classes, height, width), 0.2)
    for cell, scale in ((64, 0.05), (14, 0.02)):
        size = (math.ceil(height / cell) + 1, math.ceil(width / cell) + 1)
        noise = torch.randn(1, num_classes, *size, generator=generator)
        scores += scale * torch.nn.functional.interpolate(noise, (height, width), mode="bilinear")[0]
    return scores


def make_inputs(height: int, width: int, num_classes: int, device: torch.device) -> Inputs:
    """Inputs of a case, on the device."""
    scores = blob_scores(num_classes, height, width).to(device)
    return {"scores": scores, "image": photo(height, width)[0].contiguous().to(device)}


class Definition:
    """The float64 reference; remembers the last one, for the case with labels of the same problem."""

    _key, _value = None, None

    def __init__(self, mode: str):
        self._mode = mode

    def __call__(self, inputs: Inputs) -> Tensor:
        """[C, H, W] float64 scores."""
        scores, image = inputs["scores"], inputs["image"]
        key = (self._mode, scores.device, tuple(scores.shape))
        if Definition._key != key:
            Definition._key, Definition._value = None, None
            Definition._value = self._compute(scores, image)
            Definition._key = key
        return Definition._value

    def _compute(self, scores: Tensor, image: Tensor) -> Tensor:
        graph = reference.PixelGraph(reference.pixel_features(image[None].double(), "lab"), WINDOW, TAU)
        settings = {"alpha": ALPHA, "mode": self._mode, "max_iter": None, "tol": TOL}
        result = torch.empty_like(scores, dtype=torch.float64)
        # Classes do not touch each other: a few at a time stay in the cache.
        chunk = max(1, 2**20 // scores[0].numel()) if scores.device.type == "cpu" else 32
        for first in range(0, len(scores), chunk):
            part = slice(first, first + chunk)
            result[part] = reference.propagate(scores[None, part].double(), graph, **settings)[0][0]
        return result


def count_links(height: int, width: int) -> int:
    """Directed links of the graph."""

    def pairs(size: int) -> int:
        return sum(max(size - abs(d), 0) for d in range(-(WINDOW // 2), WINDOW // 2 + 1))

    return pairs(height) * pairs(width) - height * width


def count_work(height: int, width: int, num_classes: int, mode: str, device: torch.device) -> Work:
    """Flops, bytes and exponentials that the case needs."""
    numbers, links = height * width * num_classes, count_links(height, width)
    if mode == "official":
        steps, arrays, dots = OFFICIAL_STEPS, 10, 2
        how = "10 arrays of C x H x W (r, p -> p, q; x, r, p, q -> x, r)"
    else:
        # |Y - L X| <= tol |Y| by Chebyshev: 1 / T_m(1 / alpha) <= tol.
        steps, arrays, dots = math.ceil(math.acosh(1 / TOL) / math.acosh(1 / ALPHA)), 5, 0
        how = "5 arrays of C x H x W (x, d, y -> x, d)"
    flops = steps * (2 * links * num_classes + (6 + 2 * dots) * numbers)
    num_bytes = steps * arrays * 4 * numbers
    how = f"{steps} steps, in each 2 flops per directed link and class and {how}"
    if device.type == "cpu":  # links are kept; on CUDA they are computed again in each step
        num_bytes += (steps + 1) * 4 * (links // 2)
        how += " and the links, each pair stored once; one exponential per pair"
    else:
        flops += steps * 10 * (links // 2)
        how += "; per step and pair of pixels 10 flops and one exponential for the link"
    exps = (links // 2) * (1 if device.type == "cpu" else steps)
    return Work(flops, num_bytes, exps, how)


def _too_much(needed_bytes: float, seconds: float, device: torch.device) -> str | None:
    if device.type == "cuda":
        limit = torch.cuda.get_device_properties(device).total_memory / 2
        return f"would need about {needed_bytes / 1e9:.0f} GB" if needed_bytes > limit else None
    if needed_bytes > MEMORY_LIMIT:
        return f"would need about {needed_bytes / 1e9:.0f} GB"
    return f"would take about {seconds:.0f} s" if seconds > TIME_LIMIT else None


def _without_published(height: int, width: int, num_classes: int, mode: str, device: torch.device) -> str | None:
    """Why the published procedure is left out of a case, if it is."""
    try:
        peers.array_modules(device.type == "cuda")
    except ImportError as error:
        return f"{error.name} is not installed"
    links = count_links(height, width)
    steps = OFFICIAL_STEPS if mode == "official" else EXACT_CG_STEPS
    seconds = links * (PUBLISHED_BUILD_SECONDS + PUBLISHED_SOLVE_SECONDS * num_classes * steps)
    return _too_much(PUBLISHED_BYTES * links, seconds, device)


def implementations(height, width, num_classes, mode, labels, device) -> list[Implementation]:
    """Ours and everybody else for one case."""
    options = peers.Options(WINDOW, TAU, ALPHA, OFFICIAL_STEPS if mode == "official" else None, TOL)
    same = {"window": WINDOW, "tau": TAU, "alpha": ALPHA, "mode": mode, "tol": TOL}

    def ours(inputs: Inputs) -> Tensor:
        return ovs_kernels.lp_pixels(inputs["scores"], inputs["image"], labels=labels, **same)

    def plain(inputs: Inputs) -> Tensor:
        rest = {"max_iter": None, "lab": True, "groups": None, "num_groups": num_classes, "labels": labels}
        return reference.lp_pixels(inputs["scores"][None], inputs["image"][None], **same, **rest)[0][0]

    def peer(function, **extra):
        def run(inputs: Inputs) -> Tensor:
            result = function(inputs["scores"], inputs["image"], options, **extra)
            return result.argmax(0) if labels else result

        return run

    band = CPU_BAND if device.type == "cpu" else CUDA_BAND
    csr = _too_much(CSR_BYTES * count_links(height, width), 0, device)
    library = "SciPy" if device.type == "cpu" else "CuPy"
    without = _without_published(height, width, num_classes, mode, device)
    return [
        Implementation("ovs_kernels", OURS, ours),
        Implementation("PyTorch stencil", PYTORCH, peer(peers.stencil)),
        Implementation("PyTorch stencil in bands of rows", PYTORCH, peer(peers.stencil, band=band)),
        Implementation("PyTorch block bands, bmm", PYTORCH, peer(peers.block_bands)),
        Implementation("PyTorch sparse CSR", PYTORCH, peer(peers.sparse_csr), csr),
        Implementation(f"published ({library})", PUBLISHED, peer(peers.published), without),
        Implementation("reference, float32", REFERENCE, plain),
    ]


def cases(which: str, device: torch.device) -> list[Case]:
    """The cases of a run.

    Args:
        which: "quick" (one small case with every peer) or "full".
        device: where the inputs lie.
    """
    made = []
    for height, width, num_classes, mode, labels in QUICK if which == "quick" else FULL:
        made.append(
            Case(
                name=f"{height}x{width} C={num_classes} {mode}" + (" labels" if labels else ""),
                sizes={"H": height, "W": width, "C": num_classes},
                options={"window": WINDOW, "tau": TAU, "alpha": ALPHA, "mode": mode, "labels": labels},
                source=f"{photo(height, width)[1]}; scores: seeded blobs",
                inputs=functools.partial(make_inputs, height, width, num_classes, device),
                expected=Definition(mode),
                implementations=implementations(height, width, num_classes, mode, labels, device),
                tolerance=TOLERANCES[mode],
                work=count_work(height, width, num_classes, mode, device),
            )
        )
    return made
