"""`affinity_pool`: windows of CLIP features under guides of DINO's size, both forms, 784 and 4,096 patches."""

import functools

import peers_affinity as peers
import torch
from harness import OURS, PUBLISHED, PYTORCH, REFERENCE, Case, Implementation, Inputs, Tolerance, Work
from torch import Tensor

import ovs_kernels
from ovs_kernels.reference import affinity as reference

# (name, form, patches, features, guide features, what the guide's codes have in common, share that survives)
FULL = [
    ("clip_dinoiser, 784 patches, guide of 768", "clip_dinoiser", 784, 512, 768, 1.5, 0.52),
    ("clip_dinoiser, 784 patches, guide of 256", "clip_dinoiser", 784, 512, 256, 1.5, 0.51),
    ("clip_dinoiser, 784 patches, fewer survivors", "clip_dinoiser", 784, 512, 768, 0.0, 0.25),
    ("clip_dinoiser, 784 patches, all survive", "clip_dinoiser", 784, 512, 768, 20.0, 1.0),
    ("clip_dinoiser, 4,096 patches, guide of 768", "clip_dinoiser", 4096, 512, 768, 1.5, 0.52),
    ("proxyclip, 784 patches, guide of 768", "proxyclip", 784, 512, 768, 1.5, 0.42),
    ("proxyclip, 4,096 patches, guide of 768", "proxyclip", 4096, 512, 768, 1.5, 0.42),
]
QUICK = [
    ("small, clip_dinoiser", "clip_dinoiser", 144, 33, 40, 1.0, 0.37),
    ("small, proxyclip", "proxyclip", 144, 33, 40, 1.0, 0.43),
]

# Affinities within rounding of the border are on either side of it, and one of some hundred that are summed counts.
# Labels are the largest feature of a patch.
TOLERANCE = Tolerance(labels=0.98, error=1e-3)


def make_inputs(patches: int, num_features: int, num_guide: int, common: float, device: torch.device) -> Inputs:
    """`features` and `guide` of a scene of 14 regions.

    Patches of a region have a code of 8 numbers in common, all patches one of them. With `common` = 1.5 the affinities
    are distributed like those of DINOv2-small's last values on photos: half of them above 0.2, 43 % above 1.2 times
    their mean.
    """
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    side = int(patches**0.5)
    centres = torch.rand(14, 2, generator=generator) * side
    rows, columns = torch.meshgrid(torch.arange(side) + 0.5, torch.arange(side) + 0.5, indexing="ij")
    places = torch.stack((rows, columns), dim=-1).reshape(-1, 2)
    region = (places[:, None] - centres).norm(dim=-1).argmin(1)
    codes = normal(14, 8)[region] + 0.3 * normal(patches, 8)
    codes[:, 0] += common
    guide = codes @ normal(8, num_guide) / 8**0.5 + 0.6 * normal(patches, num_guide)
    features = normal(14, num_features)[region] + 0.5 * normal(patches, num_features)
    return {"features": features.to(device), "guide": guide.to(device)}


def implementations(form: str) -> list[Implementation]:
    """Ours and everybody else."""

    def run(function, *more):
        return lambda inputs: function(inputs["features"], inputs["guide"], *more)

    def ours(features: Tensor, guide: Tensor) -> Tensor:
        return ovs_kernels.affinity_pool(features, guide, form=form)

    def plain(features: Tensor, guide: Tensor) -> Tensor:
        return reference.affinity_pool(features, guide, form=form)

    made = [
        Implementation("ovs_kernels", OURS, run(ours)),
        Implementation("PyTorch in place", PYTORCH, run(getattr(peers, f"in_place_{form}"))),
        Implementation("published (the matrix, masked)", PUBLISHED, run(getattr(peers, f"published_{form}"))),
        Implementation("reference, float32", REFERENCE, run(plain)),
    ]
    rows = getattr(peers, f"rows_{form}")
    made += [Implementation(f"PyTorch in {chunk} rows", PYTORCH, run(rows, chunk)) for chunk in peers.CHUNKS]
    return made


def expected(inputs: Inputs, form: str) -> Tensor:
    """The float64 definition."""
    return reference.affinity_pool(inputs["features"].double(), inputs["guide"].double(), form=form)


def count_work(form: str, patches: int, num_features: int, num_guide: int, share: float) -> Work:
    """Flops, bytes and exponentials that the case needs; `share` of the affinities survive."""
    kept = share * patches**2
    flops = patches * (patches + 1) * num_guide + 2 * kept * num_features
    num_bytes = 4 * patches * (num_guide + 2 * num_features)
    how = f"2 G flops per pair of patches, 2 D per affinity that survives ({share:.0%}); everything once"
    return Work(flops, num_bytes, 0 if form == "clip_dinoiser" else kept / 2, how)


def cases(which: str, device: torch.device) -> list[Case]:
    """The cases of a run.

    Args:
        which: "quick" (small cases with every peer) or "full".
        device: where the inputs lie.
    """
    made = []
    for name, form, patches, num_features, num_guide, common, share in QUICK if which == "quick" else FULL:
        inputs = functools.partial(make_inputs, patches, num_features, num_guide, common, device)
        made.append(
            Case(
                name=name,
                sizes={"N": patches, "D": num_features, "G": num_guide},
                options={"form": form, "common": common},
                source="seeded regions, affinities like those of DINOv2-small",
                inputs=inputs,
                expected=functools.partial(expected, form=form),
                implementations=implementations(form),
                tolerance=TOLERANCE,
                work=count_work(form, patches, num_features, num_guide, share),
            )
        )
    return made
