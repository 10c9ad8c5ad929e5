"""`template_entropy` and `fuse_experts`: FLOSS at the class counts of Cityscapes, Context, ADE20K and COCO-Stuff."""

import functools

import peers_templates as peers
import torch
from harness import OURS, PUBLISHED, PYTORCH, Case, Implementation, Inputs, Tolerance, Work
from torch import Tensor

import ovs_kernels
from ovs_kernels.reference import templates as reference

FEATURES = 512
WINDOW, GRID = (448, 448), 28
# (kind, patches along a side or all, templates, classes, size of the window)
FULL = [
    ("patch", 1000, 80, 19, None),
    ("patch", 1000, 80, 150, None),
    ("patch", 1000, 80, 171, None),
    ("pixel", GRID, 80, 19, WINDOW),
    ("pixel", GRID, 80, 150, WINDOW),
    ("pixel", GRID, 80, 171, WINDOW),
    ("logits", GRID, 80, 19, WINDOW),
    ("logits", GRID, 80, 171, WINDOW),
    ("fuse", GRID, None, 19, WINDOW),
    ("fuse", GRID, None, 59, WINDOW),
    ("fuse", GRID, None, 150, WINDOW),
    ("fuse", GRID, None, 171, WINDOW),
]
QUICK = [
    ("patch", 60, 4, 7, None),
    ("pixel", 6, 3, 5, (48, 64)),
    ("logits", 6, 3, 5, (48, 64)),
    ("fuse", 6, None, 6, (48, 64)),
]

# A place changes sides where two classes are within rounding of each other, or a pixel where two experts are. The
# labels that the harness compares mean nothing for sums.
ENTROPY_TOLERANCE = Tolerance(labels=0.0, error=1e-4)
FUSE_TOLERANCE = Tolerance(labels=0.999, error=1e-2)
PUBLISHED_BYTES = 6e9  # of [templates, K, H, W] maps at once
LARGEST_PUBLISHED_FUSION = 8e9  # bytes of [K + 1, K, H, W] beyond which it is left out


def make_inputs(kind: str, patches: int, num_templates: int | None, num_classes: int, device: torch.device) -> Inputs:
    """Unit `features` and `texts` with the spread of cosines that CLIP has: a few classes share the probability."""
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    classes = normal(num_classes, FEATURES)
    rows = num_classes + 1 if kind == "fuse" else num_templates
    texts = classes + 2.5 * normal(FEATURES) + 0.5 * normal(rows, 1, FEATURES)
    texts = texts + 0.4 * normal(rows, num_classes, FEATURES)
    side = patches if kind != "patch" else int(patches**0.5) + 1
    regions = torch.nn.functional.interpolate(normal(1, num_classes, 5, 5), size=(side, side), mode="bilinear")
    labels = regions[0].argmax(0)
    features = classes[labels] + 2.5 * normal(FEATURES) + 1.6 * normal(side, side, FEATURES)
    features, texts = (one / one.norm(dim=-1, keepdim=True) for one in (features, texts))
    if kind == "patch":
        features = features.flatten(0, 1)[:patches].contiguous()
    return {"features": features.to(device), "texts": texts.to(device)}


def _sums(scores: ovs_kernels.TemplateScores) -> Tensor:
    return torch.stack((scores.sum_of("entropy"), scores.counts.double()))


def entropy_implementations(kind: str, num_classes: int, size) -> list[Implementation]:
    """Ours and everybody else; results [2, M, K]."""

    def ours(inputs: Inputs) -> Tensor:
        features, arguments = inputs["features"], {}
        if kind != "patch":
            order = "logits" if kind == "logits" else "probabilities"
            features, arguments = features[None], {"mode": "pixel_exact", "size": size, "interpolate": order}
        scores = ovs_kernels.template_entropy(features, inputs["texts"], assume_normalized=True, **arguments)
        return _sums(scores)

    def peer(function, *arguments):
        return lambda inputs: function(inputs["features"], inputs["texts"], *arguments)

    if kind == "patch":
        return [
            Implementation("ovs_kernels", OURS, ours),
            Implementation("PyTorch at once", PYTORCH, peer(peers.patches_at_once)),
            Implementation("PyTorch template by template", PYTORCH, peer(peers.patches_by_template)),
            Implementation("PyTorch in tiles", PYTORCH, peer(peers.patches_in_tiles)),
        ]
    at_once = max(1, int(PUBLISHED_BYTES / 2 / (4 * num_classes * size[0] * size[1])))
    if kind == "logits":
        return [
            Implementation("ovs_kernels", OURS, ours),
            Implementation("PyTorch in bands of rows", PYTORCH, peer(peers.logits_by_rows, size)),
            Implementation("published", PUBLISHED, peer(peers.logits_published, size, min(at_once, 8))),
        ]
    return [
        Implementation("ovs_kernels", OURS, ours),
        Implementation("PyTorch template by template", PYTORCH, peer(peers.pixels_by_template, size)),
        Implementation("PyTorch in bands of rows", PYTORCH, peer(peers.pixels_by_rows, size)),
        Implementation("published", PUBLISHED, peer(peers.pixels_published, size, min(at_once, 8))),
    ]


def fuse_implementations(num_classes: int, size) -> list[Implementation]:
    """Ours and everybody else; results [K, H, W]."""

    def ours(inputs: Inputs) -> Tensor:
        return ovs_kernels.fuse_experts(inputs["features"][None], inputs["texts"], size, assume_normalized=True)[0]

    def peer(function):
        return lambda inputs: function(inputs["features"], inputs["texts"], size)

    needed = 4 * (num_classes + 1) * num_classes * size[0] * size[1]
    too_large = f"would need about {2 * needed / 1e9:.0f} GB" if needed > LARGEST_PUBLISHED_FUSION else None
    return [
        Implementation("ovs_kernels", OURS, ours),
        Implementation("PyTorch streamed", PYTORCH, peer(peers.fuse_streamed)),
        Implementation("PyTorch streamed, pruned", PYTORCH, peer(peers.fuse_pruned)),
        Implementation("published", PUBLISHED, peer(peers.fuse_published), too_large),
    ]


def expected_entropy(inputs: Inputs, kind: str, size) -> Tensor:
    """The float64 definition: sums in nats, and counts."""
    features, texts = inputs["features"].double(), inputs["texts"].double()
    arguments = ()
    if kind != "patch":
        order = "logits" if kind == "logits" else "probabilities"
        features, arguments = features[None], ("pixel_exact", torch.tensor([[0, 0, *size]]), size, size, False, order)
    counts, sums = reference.template_entropy(features, texts, 0.01, True, *arguments)
    return torch.stack((sums[0].double() * 2.0**-32, counts.double()))


def expected_fusion(inputs: Inputs, size) -> Tensor:
    """The float64 definition."""
    features, experts = inputs["features"].double()[None], inputs["texts"].double()
    return reference.fuse_experts(features, experts, size, assume_normalized=True)[0][0]


def count_work(kind: str, patches: int, num_templates: int | None, num_classes: int, size) -> Work:
    """Flops, bytes and exponentials that the case needs."""
    rows = num_classes * (num_classes + 1 if kind == "fuse" else num_templates)
    places = patches if kind == "patch" else patches * patches
    flops = 2 * places * FEATURES * rows
    num_bytes = 4 * FEATURES * (rows + places)
    exps = places * rows
    how = "the products; features and embeddings once; an exponential per product"
    if kind == "logits":
        pixels = size[0] * size[1]
        flops, exps = flops + 4 * pixels * rows, pixels * rows
        how = "the products; features and embeddings once; an exponential and 4 flops per pixel, template and class"
    if kind == "pixel":
        pixels = size[0] * size[1]
        flops += 20 * pixels * rows
        how += "; a logarithm (16 flops) and 4 flops per pixel, template and class"
    if kind == "fuse":
        num_bytes += 4 * num_classes * size[0] * size[1]
        how += "; the result once"
    return Work(flops, num_bytes, exps, how)


def cases(which: str, device: torch.device) -> list[Case]:
    """The cases of a run.

    Args:
        which: "quick" (small cases with every peer) or "full".
        device: where the inputs lie.
    """
    made = []
    for kind, patches, num_templates, num_classes, size in QUICK if which == "quick" else FULL:
        fuses = kind == "fuse"
        names = {
            "patch": "entropy of patches",
            "pixel": "entropy of pixels",
            "logits": "entropy of pixels' logits",
            "fuse": "fusion",
        }
        extent = f"P={patches}" if kind == "patch" else f"{size[0]}x{size[1]}"
        sizes = {"P": patches if kind == "patch" else patches**2, "K": num_classes, "d": FEATURES}
        sizes |= {} if fuses else {"M": num_templates}
        made.append(
            Case(
                name=f"{names[kind]} {extent} K={num_classes}",
                sizes=sizes | ({} if size is None else {"H": size[0], "W": size[1]}),
                options={"temperature": 0.01, "assume_normalized": True},
                source="seeded normal features in regions of classes",
                inputs=functools.partial(make_inputs, kind, patches, num_templates, num_classes, device),
                expected=functools.partial(expected_fusion, size=size)
                if fuses
                else functools.partial(expected_entropy, kind=kind, size=size),
                implementations=fuse_implementations(num_classes, size)
                if fuses
                else entropy_implementations(kind, num_classes, size),
                tolerance=FUSE_TOLERANCE if fuses else ENTROPY_TOLERANCE,
                work=count_work(kind, patches, num_templates, num_classes, size),
            )
        )
    return made
