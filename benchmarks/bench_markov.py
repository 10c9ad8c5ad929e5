"""`doubly_stochastic` and `markov_velocity` on attention of 64 x 64 patches: DSLO's maximum velocity."""

import functools

import peers_markov as peers
import torch
from harness import OURS, PUBLISHED, PYTORCH, REFERENCE, Case, Implementation, Inputs, Tolerance, Work
from torch import Tensor

import ovs_kernels
from ovs_kernels.reference import markov as reference

# (side of the grid, iterations, dtype of the matrix)
SCALINGS = [(64, 20, torch.float32), (64, 20, torch.float16)]
QUICK_SCALINGS = [(16, 20, torch.float32)]
# (side, classes, iterations of the scaling, threshold, most steps, steps that the classes take: in all, at most). A
# high threshold keeps every class running: 20 whole steps. The others are the whole of the read-out.
CHAINS = [
    (64, 5, 0, 0.99, 20, 100, 20),
    (64, 21, 0, 0.99, 20, 420, 20),
    (64, 171, 0, 0.99, 20, 3420, 20),
    (64, 5, 15, 0.3, 1000, 104, 27),
    (64, 21, 15, 0.3, 1000, 405, 35),
]
QUICK_CHAINS = [(16, 5, 15, 0.3, 1000, 277, 76)]

SAMPLE_ROWS = 64  # of T, that are compared
SCALING_TOLERANCE = Tolerance(labels=0.999, error=1e-5)
CHAIN_TOLERANCE = Tolerance(labels=0.999, error=1e-3)


def make_attention(side: int) -> Tensor:
    """[N, N] float32: softmax over distance and likeness of seeded features."""
    generator = torch.Generator().manual_seed(4)
    places = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij"), -1).reshape(-1, 2)
    features = torch.randn(side**2, 16, generator=generator)
    logits = -24 * torch.cdist(places / side, places / side) + (features @ features.T) / 8
    return torch.softmax(logits, 1)


def make_starts(side: int, num_classes: int) -> Tensor:
    """[C, N] float32: 20 seeded patches per class."""
    generator = torch.Generator().manual_seed(5)
    starts = torch.zeros(num_classes, side**2)
    patches = torch.randint(0, side**2, (num_classes, 20), generator=generator)
    return starts.scatter_(1, patches, torch.rand(num_classes, 20, generator=generator) + 0.1)


def scaling_inputs(side: int, dtype: torch.dtype, device: torch.device) -> Inputs:
    """The matrix."""
    return {"attention": make_attention(side).to(dtype).to(device)}


def chain_inputs(side: int, num_classes: int, device: torch.device) -> Inputs:
    """The matrix and the distributions."""
    return {"attention": make_attention(side).to(device), "distributions": make_starts(side, num_classes).to(device)}


def sample(attention: Tensor, r: Tensor, c: Tensor) -> Tensor:
    """Some rows of T, [SAMPLE_ROWS, N]."""
    step = max(1, len(attention) // SAMPLE_ROWS)
    return r[::step, None] * attention[::step] * c


def scaling_case(side: int, n_iter: int, dtype: torch.dtype, device: torch.device) -> Case:
    """T, of which every implementation returns some rows."""
    num_nodes = side**2

    def expected(inputs: Inputs) -> Tensor:
        matrix = inputs["attention"].double()
        r, c, _ = reference.doubly_stochastic(matrix, n_iter=n_iter)
        return sample(matrix, r, c)

    def ours(inputs: Inputs) -> Tensor:
        return sample(inputs["attention"], *ovs_kernels.doubly_stochastic(inputs["attention"], n_iter=n_iter))

    def vectors(inputs: Inputs) -> Tensor:
        matrix = inputs["attention"].float()
        return sample(matrix, *peers.two_vectors(matrix, n_iter))

    def rewritten(rewrite):
        ones = torch.ones(num_nodes, device=device)
        return lambda inputs: sample(rewrite(inputs["attention"].float(), n_iter), ones, ones)

    def plain(inputs: Inputs) -> Tensor:
        matrix = inputs["attention"].float()
        return sample(matrix, *reference.doubly_stochastic(matrix, n_iter=n_iter)[:2])

    size = 2 if dtype == torch.float16 else 4
    return Case(
        name=f"doubly_stochastic N={num_nodes} it={n_iter} {str(dtype).removeprefix('torch.')}",
        sizes={"N": num_nodes},
        options={"n_iter": n_iter, "dtype": str(dtype).removeprefix("torch.")},
        source="softmax of distances on a grid and likeness of seeded features",
        inputs=functools.partial(scaling_inputs, side, dtype, device),
        expected=expected,
        implementations=[
            Implementation("ovs_kernels", OURS, ours),
            Implementation("PyTorch, two vectors", PYTORCH, vectors),
            Implementation("PyTorch, matrix in place", PYTORCH, rewritten(peers.rewrite_in_place)),
            Implementation("published (matrix rewritten)", PUBLISHED, rewritten(peers.rewrite)),
            Implementation("reference, float32", REFERENCE, plain),
        ],
        tolerance=SCALING_TOLERANCE,
        work=Work(
            4 * n_iter * num_nodes**2,
            (n_iter + 1) * num_nodes**2 * size,
            0,
            f"{n_iter} iterations of 4 flops per entry; the matrix read once in each and once before",
        ),
    )


def chain_case(side, num_classes, n_ipf, threshold, max_steps, all_steps, most_steps, device) -> Case:
    """First passage."""
    num_nodes = side**2
    options = peers.Options(n_ipf, threshold, max_steps)
    named = {"n_ipf": n_ipf, "threshold": threshold, "max_steps": max_steps}

    def ours(inputs: Inputs) -> Tensor:
        return ovs_kernels.markov_velocity(inputs["attention"], inputs["distributions"], **named)

    def plain(dtype):
        return lambda inputs: definition(inputs, named, dtype)

    def peer(function):
        return lambda inputs: function(inputs["attention"], inputs["distributions"], options)

    return Case(
        name=f"markov_velocity N={num_nodes} C={num_classes} " + ("whole" if n_ipf else f"{max_steps} steps"),
        sizes={"N": num_nodes, "C": num_classes},
        options=named,
        source="softmax of distances on a grid and likeness of seeded features; 20 seeded patches per class",
        inputs=functools.partial(chain_inputs, side, num_classes, device),
        expected=plain(torch.float64),
        implementations=[
            Implementation("ovs_kernels", OURS, ours),
            Implementation("PyTorch, scaled products", PYTORCH, peer(peers.scaled_products)),
            Implementation("PyTorch, products in 8 parts", PYTORCH, peer(peers.batched_products)),
            Implementation("PyTorch, T formed", PYTORCH, peer(peers.formed_matrix)),
            Implementation("PyTorch, T^T formed", PYTORCH, peer(peers.transposed_products)),
            Implementation("reference, float32", REFERENCE, plain(torch.float32)),
        ],
        tolerance=CHAIN_TOLERANCE,
        work=Work(
            (2 * all_steps + 4 * n_ipf) * num_nodes**2,
            4 * (most_steps + n_ipf + 1) * num_nodes**2,
            0,
            f"{all_steps} steps of a class, 2 flops per entry each; the matrix read {most_steps} times in them, and "
            f"{n_ipf + 1} times with 4 flops per entry for the scaling",
        ),
    )


def definition(inputs: Inputs, named: dict, dtype: torch.dtype) -> Tensor:
    """Velocity by the definition, [C, N]."""
    matrix, starts = inputs["attention"].to(dtype), inputs["distributions"].to(dtype)
    r, c, _ = reference.doubly_stochastic(matrix, n_iter=named["n_ipf"])
    options = {"rule": "first_passage", "interpolate": True, "state_scale": "max", "min_time": 1e-3}
    chain = {"threshold": named["threshold"], "max_steps": named["max_steps"]}
    return reference.markov_velocity(matrix, r, c, starts, **options, **chain)[0]


def cases(which: str, device: torch.device) -> list[Case]:
    """The cases of a run.

    Args:
        which: "quick" or "full".
        device: where the inputs lie.
    """
    quick = which == "quick"
    made = [scaling_case(*size, device) for size in (QUICK_SCALINGS if quick else SCALINGS)]
    return made + [chain_case(*size, device) for size in (QUICK_CHAINS if quick else CHAINS)]
