"""`lp_graph` on the patch graphs of LPOSS, and `lp_patches`, which makes the graph, too."""

import functools
import importlib.util
import warnings

import bench_graph
import peers_graph
import peers_propagate as peers
import torch
from harness import OURS, PUBLISHED, PYTORCH, REFERENCE, Case, Implementation, Inputs, Tolerance, Work
from torch import Tensor

import ovs_kernels
from ovs_kernels.reference import graph as graph_reference
from ovs_kernels.reference import propagate as reference

ALPHA, TOL, OFFICIAL_STEPS = 0.95, 1e-6, 10
# (height, width, patch, k, classes, mode, from features): N = 2,940 and 16,464 nodes
FULL = [
    (448, 597, 16, 400, 21, "official", False),
    (448, 597, 16, 400, 171, "official", False),
    (448, 597, 16, 400, 21, "exact", False),
    (448, 597, 16, 400, 171, "exact", False),
    (448, 896, 8, 800, 21, "official", False),
    (448, 597, 16, 400, 21, "official", True),
    (448, 597, 16, 400, 171, "official", True),
    (448, 896, 8, 800, 21, "official", True),
]
QUICK = [(224, 336, 16, 100, 5, "official", False), (224, 336, 16, 100, 5, "official", True)]

# Float32 against the float64 definition: 1e-6 in official mode; in exact mode rounding leaves 5e-6 of the residual.
# Links that rounding decides (see bench_graph) add what they add to the graph.
TOLERANCES = {"official": Tolerance(labels=0.999, error=1e-5), "exact": Tolerance(labels=0.999, error=1e-4)}
FROM_FEATURES = Tolerance(labels=0.999, error=1e-4)

# A dense matrix that takes more than this is left out.
MEMORY_LIMIT = 1.5e9
# Published: seconds per link, class and step of a SciPy solve on two cores of an AVX-512 server CPU; more than this in
# all is left out.
PUBLISHED_SECONDS, TIME_LIMIT = 4e-10 * 2, 60.0
EXACT_CG_STEPS = 22


def patch_scores(positions: Tensor, num_classes: int) -> Tensor:
    """Scores in the range of cosine similarities: seeded blobs over the image. [N, C] float32."""
    generator = torch.Generator().manual_seed(2)
    sites = torch.rand(4 * num_classes, 2, generator=generator) * positions.amax(0)
    near = torch.cdist(positions, sites).argmin(1) % num_classes
    scores = 0.2 + 0.03 * torch.randn(len(positions), num_classes, generator=generator)
    scores[torch.arange(len(positions)), near] += 0.05
    return scores


def make_inputs(height, width, patch, k, num_classes, from_features, device) -> Inputs:
    """Features, positions and scores; or the graph of the features in their place."""
    inputs = bench_graph.make_inputs(height, width, patch, device)
    scores = patch_scores(inputs["positions"].cpu(), num_classes).to(device)
    if from_features:
        return inputs | {"scores": scores}
    graph = _graph(inputs, k)
    return {
        "scores": scores,
        "indptr": graph.indptr,
        "indices": graph.indices,
        "weights": graph.weights,
        "degrees": graph.degrees,
    }


def _graph(inputs: Inputs, k: int) -> ovs_kernels.Graph:
    options = {"gamma": bench_graph.GAMMA, "sigma": bench_graph.SIGMA}
    return ovs_kernels.knn_graph(inputs["features"], k, positions=inputs["positions"], **options)


def _matrix(inputs: Inputs) -> Tensor:
    graph = ovs_kernels.Graph(*(inputs[name] for name in ("indptr", "indices", "weights", "degrees")))
    return graph.to_sparse_csr(normalized=False)


def wide_graph(inputs: Inputs, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The float64 graph, some rows of similarities at a time: indptr, indices, weights."""
    unit, positions = graph_reference.unit_rows(inputs["features"].double()), inputs["positions"].double()
    num_nodes = len(unit)
    blocks = []
    for first in range(0, num_nodes, 1024):
        similarity = unit[first : first + 1024] @ unit.T
        own = torch.arange(first, first + len(similarity), device=unit.device)
        similarity[own - first, own] = torch.inf  # a node is its own nearest
        values, columns = similarity.topk(k, dim=1)
        values, columns = values[:, 1:], columns[:, 1:]
        weights = values.clamp_(0, 1) ** bench_graph.GAMMA
        weights *= torch.exp(-bench_graph.SIGMA * (positions[columns] - positions[own, None]).norm(dim=-1))
        blocks.append((own[:, None].expand_as(columns).flatten(), columns.flatten(), weights.flatten()))
    rows, columns, weights = (torch.cat(parts) for parts in zip(*blocks, strict=True))
    pairs = torch.stack((torch.cat((rows, columns)), torch.cat((columns, rows))))
    matrix = torch.sparse_coo_tensor(
        pairs, torch.cat((weights, weights)), (num_nodes,) * 2, check_invariants=False
    ).coalesce()
    counts = torch.bincount(matrix.indices()[0], minlength=num_nodes)
    return torch.nn.functional.pad(counts.cumsum(0), (1, 0)), matrix.indices()[1], matrix.values()


def definition(mode: str, k: int, inputs: Inputs) -> Tensor:
    """[C, N] float64 scores, by the references."""
    if "features" in inputs:
        graph = wide_graph(inputs, k)
    else:
        graph = inputs["indptr"], inputs["indices"], inputs["weights"].double()
    settings = {"alpha": ALPHA, "mode": mode, "max_iter": None, "tol": TOL}
    return reference.lp_graph(*graph, None, inputs["scores"].double(), **settings)[0].T


def count_work(num_nodes: int, k: int, num_classes: int, mode: str, from_features: bool) -> Work:
    """Flops and bytes that the case needs; links as if two thirds of the neighbours were mutual."""
    links = num_nodes * (k - 1) * 4 / 3
    steps = OFFICIAL_STEPS if mode == "official" else EXACT_CG_STEPS
    numbers = num_nodes * num_classes
    flops = steps * (2 * links * num_classes + 10 * numbers)
    num_bytes = steps * (8 * links + 40 * numbers)
    how = f"{steps} steps, in each 2 flops per link and class, the links (8 bytes) read once and 10 arrays of N x C"
    if from_features:
        d = bench_graph.FEATURES
        flops += num_nodes**2 * d
        num_bytes += 4 * num_nodes * d + 16 * links
        how += "; half of the products of the features, the links written and read"
    return Work(flops, num_bytes, 0, how)


def _solvers(num_nodes: int, mode: str) -> list[tuple[str, object, str | None]]:
    too_large = f"would need {8 * num_nodes**2 / 1e9:.0f} GB" if 8 * num_nodes**2 > MEMORY_LIMIT else None
    made = [("PyTorch sparse CSR", peers.sparse_csr, None), ("PyTorch dense", peers.dense, too_large)]
    return [*made, ("PyTorch Cholesky", peers.cholesky, too_large)] if mode == "exact" else made


def _without_published(links: float, num_classes: int, mode: str, device: torch.device) -> str | None:
    try:
        peers.array_modules(device.type == "cuda")
    except ImportError as error:
        return f"{error.name} is not installed"
    seconds = links * num_classes * PUBLISHED_SECONDS * (OFFICIAL_STEPS if mode == "official" else EXACT_CG_STEPS)
    return f"would take about {seconds:.0f} s" if seconds > TIME_LIMIT and device.type == "cpu" else None


def graph_implementations(num_nodes, k, num_classes, mode, device) -> list[Implementation]:
    """For W and scores."""
    options = peers.Options(ALPHA, OFFICIAL_STEPS if mode == "official" else None, TOL)
    same = {"alpha": ALPHA, "mode": mode, "tol": TOL}

    def ours(inputs: Inputs) -> Tensor:
        graph = ovs_kernels.Graph(*(inputs[name] for name in ("indptr", "indices", "weights", "degrees")))
        return ovs_kernels.lp_graph(graph, inputs["scores"], **same).T

    def checked(inputs: Inputs) -> Tensor:
        return ovs_kernels.lp_graph(_matrix(inputs), inputs["scores"], **same).T

    def plain(inputs: Inputs) -> Tensor:
        arrays = inputs["indptr"], inputs["indices"], inputs["weights"], inputs["degrees"]
        return reference.lp_graph(*arrays, inputs["scores"], max_iter=None, **same)[0].T

    def peer(solve):
        return lambda inputs: solve(_matrix(inputs), inputs["degrees"], inputs["scores"], options).T

    library = "SciPy" if device.type == "cpu" else "CuPy"
    without = _without_published(4 / 3 * num_nodes * k, num_classes, mode, device)
    return [
        Implementation("ovs_kernels", OURS, ours),
        Implementation("ovs_kernels, foreign CSR with check", OURS, checked),
        *(Implementation(name, PYTORCH, peer(solve), reason) for name, solve, reason in _solvers(num_nodes, mode)),
        Implementation(f"published ({library})", PUBLISHED, peer(peers.published), without),
        Implementation("reference, float32", REFERENCE, plain),
    ]


def patch_implementations(num_nodes, k, num_classes, mode, device) -> list[Implementation]:
    """For features and scores: every way to make the graph with the solver that fits it."""
    solve = peers.Options(ALPHA, OFFICIAL_STEPS if mode == "official" else None, TOL)
    build = peers_graph.Options(k, bench_graph.GAMMA, bench_graph.SIGMA)

    def ours(inputs: Inputs) -> Tensor:
        options = {"k": k, "gamma": build.gamma, "sigma": build.sigma, "alpha": ALPHA, "mode": mode, "tol": TOL}
        return ovs_kernels.lp_patches(inputs["scores"], inputs["features"], inputs["positions"], **options).T

    def peer(make, solver, **extra):
        def run(inputs: Inputs) -> Tensor:
            matrix, degrees = make(inputs["features"], inputs["positions"], build, **extra)
            return solver(matrix, degrees, inputs["scores"], solve).T

        return run

    dense_to_csr = functools.partial(_dense_then_csr, peers_graph.dense)
    too_large = f"would need {12 * num_nodes**2 / 1e9:.0f} GB" if 12 * num_nodes**2 > 3 * MEMORY_LIMIT else None
    no_faiss = None if importlib.util.find_spec("faiss") else "faiss is not installed"
    chunk = {"chunk": peers_graph.CHUNK}
    made = [
        Implementation("ovs_kernels", OURS, ours),
        Implementation("PyTorch dense", PYTORCH, peer(peers_graph.dense, peers.dense, **chunk), too_large),
        Implementation("PyTorch dense, then CSR", PYTORCH, peer(dense_to_csr, peers.sparse_csr, **chunk), too_large),
        Implementation("PyTorch sparse", PYTORCH, peer(peers_graph.sparse, peers.sparse_csr, **chunk)),
    ]
    if device.type == "cpu":
        without = no_faiss or _without_published(4 / 3 * num_nodes * k, num_classes, mode, device)
        made.append(
            Implementation(
                "published (faiss-cpu, SciPy)", PUBLISHED, peer(peers_graph.published, peers.published), without
            )
        )
    return made


def _dense_then_csr(make, features: Tensor, positions: Tensor, options, **extra) -> tuple[Tensor, Tensor]:
    matrix, degrees = make(features, positions, options, **extra)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        sparse = matrix.to_sparse_csr()
    indices = sparse.crow_indices().int(), sparse.col_indices().int()
    return torch.sparse_csr_tensor(*indices, sparse.values(), size=matrix.shape, check_invariants=False), degrees


def cases(which: str, device: torch.device) -> list[Case]:
    """The cases of a run.

    Args:
        which: "quick" or "full".
        device: where the inputs lie.
    """
    made = []
    for height, width, patch, k, num_classes, mode, from_features in QUICK if which == "quick" else FULL:
        num_nodes = len(bench_graph.patch_centres(height, width, patch))
        implementations = patch_implementations if from_features else graph_implementations
        made.append(
            Case(
                name=f"{'lp_patches' if from_features else 'lp_graph'} N={num_nodes} k={k} C={num_classes} {mode}",
                sizes={"N": num_nodes, "k": k, "C": num_classes},
                options={"alpha": ALPHA, "mode": mode, "tol": TOL},
                source="seeded clusters of features over the patches of all windows; scores: seeded blobs",
                inputs=functools.partial(make_inputs, height, width, patch, k, num_classes, from_features, device),
                expected=functools.partial(definition, mode, k),
                implementations=implementations(num_nodes, k, num_classes, mode, device),
                tolerance=FROM_FEATURES if from_features else TOLERANCES[mode],
                work=count_work(num_nodes, k, num_classes, mode, from_features),
            )
        )
    return made
