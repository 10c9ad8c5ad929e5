"""`knn_graph`: the patch graphs of LPOSS, overlapping windows over VOC and Cityscapes images, clustered features."""

import functools
import importlib.util

import peers_graph as peers
import torch
from harness import OURS, PUBLISHED, PYTORCH, REFERENCE, Case, Implementation, Inputs, Tolerance, Work
from torch import Tensor

import ovs_kernels
from ovs_kernels.reference import graph as reference

GAMMA, SIGMA, FEATURES = 3.0, 0.01, 768
WINDOW, STRIDE = 224, 112
CLUSTERS = 20
# (height, width, patch, k): N = 2,940, 4,116 and 16,464 nodes
FULL = [(448, 597, 16, 400), (448, 896, 16, 400), (448, 896, 8, 800)]
QUICK = [(224, 336, 16, 100)]
# Where two cosines around the k-th place are nearer than float32 can tell, a link may be another one: seen 6e-6.
TOLERANCE = Tolerance(labels=0.999, error=1e-4)
# A dense matrix and its temporaries, more than this, are left out; and the published procedure's.
MEMORY_LIMIT = 6e9


def window_starts(size: int) -> list[int]:
    """First pixels of the windows along one axis; the last one is moved back into the image."""
    starts = list(range(0, max(size - WINDOW, 0) + 1, STRIDE))
    return starts if starts[-1] + WINDOW >= size else [*starts, size - WINDOW]


def patch_centres(height: int, width: int, patch: int) -> Tensor:
    """(y, x) of every patch of every window, [N, 2] float32."""
    inside = torch.arange(WINDOW // patch) * patch + patch / 2
    grid = torch.cartesian_prod(inside, inside)
    corners = torch.cartesian_prod(torch.tensor(window_starts(height)), torch.tensor(window_starts(width)))
    return (corners[:, None] + grid).reshape(-1, 2).float().contiguous()


def clustered_features(positions: Tensor) -> Tensor:
    """Features that depend on the place: a centre per Voronoi cell, a part common to all, and noise. [N, d]."""
    generator = torch.Generator().manual_seed(1)
    sites = torch.rand(CLUSTERS, 2, generator=generator) * positions.amax(0)
    cell = torch.cdist(positions, sites).argmin(1)
    centres = torch.randn(CLUSTERS, FEATURES, generator=generator) + torch.randn(1, FEATURES, generator=generator)
    return centres[cell] + 0.7 * torch.randn(len(positions), FEATURES, generator=generator)


def make_inputs(height: int, width: int, patch: int, device: torch.device) -> Inputs:
    """Inputs of a case, on the device."""
    positions = patch_centres(height, width, patch)
    return {"features": clustered_features(positions).to(device), "positions": positions.to(device)}


class Votes:
    """A graph as the harness compares it: for each of 8 classes, the summed weight of each node's links to it.

    Computed when it is looked at, so that it is not part of what is timed.
    """

    classes = 8

    def __init__(self, matrix: Tensor, degrees: Tensor):
        self._matrix, self._degrees = matrix, degrees

    @functools.cached_property
    def votes(self) -> Tensor:
        """[8, N], the last row replaced by the degrees."""
        member = torch.arange(len(self._degrees), device=self._degrees.device) * self.classes // len(self._degrees)
        one_hot = torch.nn.functional.one_hot(member, self.classes).to(self._degrees.dtype)
        votes = (self._matrix @ one_hot).T.contiguous()
        votes[-1] = self._degrees - votes[:-1].sum(0)
        return votes

    @property
    def shape(self) -> torch.Size:
        """Of the votes."""
        return self.votes.shape

    def is_floating_point(self) -> bool:
        """Votes are."""
        return True

    def argmax(self, axis: int) -> Tensor:
        """Class with the most votes."""
        return self.votes.argmax(axis)

    def __iter__(self):
        return iter(self.votes)


def definition(k: int, inputs: Inputs) -> Tensor:
    """Votes of the float64 graph: the reference's equations, some rows at a time."""
    unit = reference.unit_rows(inputs["features"].double())
    positions = inputs["positions"].double()
    num_nodes = len(unit)
    member = torch.arange(num_nodes, device=unit.device) * Votes.classes // num_nodes
    one_hot = torch.nn.functional.one_hot(member, Votes.classes).double()
    votes = torch.zeros(num_nodes, Votes.classes, dtype=torch.float64, device=unit.device)
    for first in range(0, num_nodes, 1024):
        similarity = unit[first : first + 1024] @ unit.T
        own = torch.arange(first, first + len(similarity), device=unit.device)
        ranked = similarity.clone()
        ranked[own - first, own] = torch.inf
        columns = ranked.topk(k, dim=1).indices
        weights = similarity.gather(1, columns).clamp(min=0) ** GAMMA
        weights *= torch.exp(-SIGMA * (positions[columns] - positions[own, None]).norm(dim=-1))
        weights[columns == own[:, None]] = 0
        votes[own] += (weights[..., None] * one_hot[columns]).sum(1)
        votes.index_add_(0, columns.flatten(), (weights[..., None] * one_hot[own, None]).flatten(0, 1))
    return votes.T.contiguous()


def count_work(num_nodes: int, k: int) -> Work:
    """Half of the products, the features once, and the graph once, at least N (k - 1) links."""
    links = num_nodes * (k - 1)
    how = "2 d flops per pair of nodes, 10 per link; features read, 8 bytes per link written; one exponential per link"
    return Work(num_nodes**2 * FEATURES + 10 * links, 4 * num_nodes * FEATURES + 8 * links, links, how)


def _too_much(num_bytes: float, device: torch.device) -> str | None:
    limit = MEMORY_LIMIT if device.type == "cpu" else torch.cuda.get_device_properties(device).total_memory / 2
    return f"would need about {num_bytes / 1e9:.0f} GB" if num_bytes > limit else None


def _without_published(num_nodes: int, k: int, device: torch.device, *modules: str) -> str | None:
    if device.type == "cuda":
        return "on a CPU only"
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    return f"{missing[0]} is not installed" if missing else _too_much(12 * num_nodes**2 + 100 * num_nodes * k, device)


def implementations(num_nodes: int, k: int, device: torch.device) -> list[Implementation]:
    """Ours and everybody else for one case."""
    options = peers.Options(k, GAMMA, SIGMA)

    def ours(inputs: Inputs) -> Votes:
        graph = ovs_kernels.knn_graph(inputs["features"], k, positions=inputs["positions"], gamma=GAMMA, sigma=SIGMA)
        return Votes(graph.to_sparse_csr(normalized=False), graph.degrees)

    def plain(inputs: Inputs) -> Votes:
        matrix = reference.dense_graph(inputs["features"], k, inputs["positions"], GAMMA, SIGMA)
        return Votes(matrix, matrix.sum(1))

    def peer(function, **extra):
        return lambda inputs: Votes(*function(inputs["features"], inputs["positions"], options, **extra))

    squares = 4 * num_nodes**2
    published = functools.partial(_without_published, num_nodes, k, device)
    return [
        Implementation("ovs_kernels", OURS, ours),
        Implementation("PyTorch mm, topk, dense", PYTORCH, peer(peers.dense), _too_much(4 * squares, device)),
        Implementation("PyTorch mm, topk, coalesce", PYTORCH, peer(peers.sparse), _too_much(2 * squares, device)),
        Implementation("PyTorch mm, topk in chunks, dense", PYTORCH, peer(peers.dense, chunk=peers.CHUNK)),
        Implementation("PyTorch mm, topk in chunks, coalesce", PYTORCH, peer(peers.sparse, chunk=peers.CHUNK)),
        Implementation("published (faiss, SciPy)", PUBLISHED, peer(peers.published), published("faiss", "scipy")),
        Implementation("published (topk, SciPy)", PUBLISHED, peer(peers.published, search="torch"), published("scipy")),
        Implementation("reference, float32", REFERENCE, plain, _too_much(14 * squares, device)),
    ]


def cases(which: str, device: torch.device) -> list[Case]:
    """The cases of a run.

    Args:
        which: "quick" (one small case with every peer) or "full".
        device: where the inputs lie.
    """
    made = []
    for height, width, patch, k in QUICK if which == "quick" else FULL:
        num_nodes = len(window_starts(height)) * len(window_starts(width)) * (WINDOW // patch) ** 2
        made.append(
            Case(
                name=f"N={num_nodes} k={k}",
                sizes={"N": num_nodes, "d": FEATURES, "k": k},
                options={"gamma": GAMMA, "sigma": SIGMA},
                source=f"patches of {patch} in windows of {WINDOW} over {height}x{width}; features: seeded clusters",
                inputs=functools.partial(make_inputs, height, width, patch, device),
                expected=functools.partial(definition, k),
                implementations=implementations(num_nodes, k, device),
                tolerance=TOLERANCE,
                work=count_work(num_nodes, k),
            )
        )
    return made
