"""`transport_map` on self-attention of 64 x 64 patches (DSLO's optimal path), stopped early and at 50 iterations."""

import functools
import importlib.util

import peers_transport as peers
import torch
from harness import OURS, PUBLISHED, PYTORCH, REFERENCE, Case, Implementation, Inputs, Tolerance, Work
from torch import Tensor

import ovs_kernels
from ovs_kernels.reference import transport as reference

EPSILON, ITERATIONS, TOL = 0.1, 50, 1e-6
# (side of the grid, classes, all 50 iterations)
FULL = [(64, 21, False), (64, 21, True), (64, 5, False), (64, 5, True), (64, 171, False), (64, 171, True)]
QUICK = [(16, 5, False), (16, 5, True)]

# Maps in float32 against float64. An argmax between classes that are equally near is decided by rounding.
TOLERANCE = Tolerance(labels=0.999, error=1e-5)

# POT at 64 x 64 patches and 171 classes takes minutes.
POT_CLASSES = 21


def attention(side: int) -> Tensor:
    """Self-attention of a picture, [N, N] float32 with rows of sum 1: diffuse, in blocks of regions, with near patches.

    Voronoi regions of a grid of side x side patches; logits of a patch for another: 2 in the same region, up to 4 for
    neighbours, and unit noise. Largest entries are near 0.4 and 1 / N is typical, as for the mean over the heads of a
    diffusion model's self-attention.
    """
    generator = torch.Generator().manual_seed(1)
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    places = torch.stack((rows, columns), -1).reshape(-1, 2).float()
    region = torch.cdist(places, torch.rand(12, 2, generator=generator) * side).argmin(1)
    logits = torch.randn(side**2, side**2, generator=generator)
    logits += 2.0 * (region[:, None] == region[None])
    logits += 4.0 * torch.exp(-(torch.cdist(places, places) ** 2) / 4.0)
    return logits.softmax(1)


def evidence(side: int, num_classes: int) -> Tensor:
    """Distributions over patches, [C, N] float32: a softmax over the patches that a class keeps, 0 elsewhere."""
    generator = torch.Generator().manual_seed(2)
    logits = 2.0 * torch.randn(num_classes, side**2, generator=generator)
    kept = torch.rand(num_classes, side**2, generator=generator) < 0.2
    return logits.masked_fill(~kept, -torch.inf).softmax(1)


def make_inputs(side: int, num_classes: int, device: torch.device) -> Inputs:
    """Cost and distributions."""
    return {"cost": attention(side).to(device), "distributions": evidence(side, num_classes).to(device)}


def definition(inputs: Inputs) -> Tensor:
    """[C, N] float64: 50 iterations of the reference, and the read-out as one more product."""
    cost, distributions = inputs["cost"].double(), inputs["distributions"].double()
    options = {"epsilon": EPSILON, "max_iter": ITERATIONS, "tol": TOL, "exact_iters": True}
    f, g, _, _ = reference.sinkhorn(cost, distributions, None, domain="plain", normalize=True, **options)
    paid = cost * torch.exp(-cost / EPSILON)
    return torch.exp(g / EPSILON) * (torch.exp(f / EPSILON) @ paid)


def count_work(num_patches: int, num_classes: int, forced: bool) -> Work:
    """What the iterations need: two products and one reading of K each, an exponential per entry, the read-out."""
    iterations = ITERATIONS if forced else 2
    entries = num_patches**2
    return Work(
        flops=(4 * iterations + 2) * entries * num_classes,
        bytes=4 * entries * (iterations + 1),
        exps=entries,
        how=f"{iterations} iterations of 4 flops per entry and class, 2 for the read-out; the matrix read once each",
    )


def implementations(num_classes: int, forced: bool, device: torch.device) -> list[Implementation]:
    """Ours first. The peers take 50 iterations, but for the one that stops early."""

    def ours(inputs: Inputs) -> Tensor:
        options = {"epsilon": EPSILON, "tol": TOL, "exact_iters": forced}
        return ovs_kernels.transport_map(inputs["cost"], inputs["distributions"], **options)

    def plain(inputs: Inputs) -> Tensor:
        options = {"epsilon": EPSILON, "max_iter": ITERATIONS, "tol": TOL, "exact_iters": forced}
        options |= {"domain": "auto", "normalize": False, "readout": "receiver"}
        return reference.transport_map(inputs["cost"], inputs["distributions"], None, **options)[0]

    def peer(solve, **extra):
        return lambda inputs: solve(inputs["cost"], inputs["distributions"], EPSILON, ITERATIONS, **extra)

    without = None if importlib.util.find_spec("ot") else "POT is not installed"
    if device.type != "cpu":
        without = "runs on a CPU"
    elif num_classes > POT_CLASSES:
        without = "would take minutes"
    made = [
        Implementation("ovs_kernels", OURS, ours),
        Implementation("PyTorch, state [C, N]", PYTORCH, peer(peers.class_rows)),
        Implementation("PyTorch, state [C, N], K^T stored", PYTORCH, peer(peers.class_rows_stored)),
        Implementation("PyTorch, state [N, C], K^T stored", PYTORCH, peer(peers.class_columns_stored)),
    ]
    if not forced:
        early = peer(peers.class_rows_stored, tol=TOL)
        made.append(Implementation("PyTorch, state [C, N], K^T stored, stopping early", PYTORCH, early))
    return [
        *made,
        Implementation("POT, float64", PUBLISHED, peer(peers.pot), without),
        Implementation("reference, float32", REFERENCE, plain),
    ]


def cases(which: str, device: torch.device) -> list[Case]:
    """The cases of a run.

    Args:
        which: "quick" or "full".
        device: where the inputs lie.
    """
    made = []
    for side, num_classes, forced in QUICK if which == "quick" else FULL:
        made.append(
            Case(
                name=f"transport_map N={side**2} C={num_classes} {'50 iterations' if forced else 'default stop'}",
                sizes={"N": side**2, "C": num_classes},
                options={"epsilon": EPSILON, "tol": TOL, "exact_iters": forced},
                source="seeded self-attention in blocks of regions; evidence: a softmax over a fifth of the patches",
                inputs=functools.partial(make_inputs, side, num_classes, device),
                expected=definition,
                implementations=implementations(num_classes, forced, device),
                tolerance=TOLERANCE,
                work=count_work(side**2, num_classes, forced),
            )
        )
    return made
