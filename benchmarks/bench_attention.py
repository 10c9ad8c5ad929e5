"""`attention_mean`: the self-attention of Stable Diffusion's blocks and of ViTs, from seeded queries and keys."""

import functools

import peers_attention as peers
import torch
from harness import OURS, PUBLISHED, PYTORCH, REFERENCE, Case, Implementation, Inputs, Tolerance, Work
from torch import Tensor

import ovs_kernels
from ovs_kernels.reference import attention as reference

# (name, heads of each block, tokens, dropped tokens, features of a head, spread of the logits, dtype of the matrix)
FULL = [
    ("Stable Diffusion 2, two blocks", (5, 5), 4096, 0, 64, 2.0, torch.float32),
    ("Stable Diffusion 2, two blocks to float16", (5, 5), 4096, 0, 64, 2.0, torch.float16),
    ("Stable Diffusion 2, two blocks, large logits", (5, 5), 4096, 0, 64, 25.0, torch.float32),
    ("Stable Diffusion 1.5, two blocks", (8, 8), 4096, 0, 40, 2.0, torch.float32),
    ("DINOv2 ViT-S/14 with registers, 518 px", (6,), 1374, 5, 64, 2.0, torch.float32),
    ("DINO ViT-B/8, 448 px", (12,), 3137, 1, 64, 2.0, torch.float32),
]
QUICK = [
    ("small, two blocks", (2, 3), 150, 0, 8, 2.0, torch.float32),
    ("small, dropped", (2,), 135, 5, 8, 2.0, torch.float32),
]

# Float32 against float64, in the Euclidean norm; labels are the largest entry of each column. Logits of some 100 lose
# digits in everybody's float32, and a matrix in float16 has 11 bits.
SINGLE, LARGE, HALF = Tolerance(0.999, 1e-5), Tolerance(0.99, 1e-4), Tolerance(0.9, 1e-3)


def make_inputs(blocks: tuple[int, ...], tokens: int, features: int, spread: float, device: torch.device) -> Inputs:
    """`queries0`, `keys0` and so on, views of [N, heads * d] as a model's projections write them."""
    generator = torch.Generator().manual_seed(1)
    inputs = {}
    for index, heads in enumerate(blocks):
        for name in ("queries", "keys"):
            projected = spread**0.5 * torch.randn(tokens, heads * features, generator=generator)
            inputs[f"{name}{index}"] = projected.to(device).view(tokens, heads, features).transpose(0, 1)
    return inputs


def _blocks(inputs: Inputs) -> tuple[list[Tensor], list[Tensor]]:
    count = len(inputs) // 2
    return [inputs[f"queries{i}"] for i in range(count)], [inputs[f"keys{i}"] for i in range(count)]


def implementations(dropped: int, dtype: torch.dtype) -> list[Implementation]:
    """Ours and everybody else."""

    def ours(inputs: Inputs) -> Tensor:
        return ovs_kernels.attention_mean(*_blocks(inputs), drop_first=dropped, dtype=dtype)

    def peer(function):
        return lambda inputs: function(*_blocks(inputs), dropped).to(dtype)

    def plain(inputs: Inputs) -> Tensor:
        queries, keys = _blocks(inputs)
        return reference.attention_mean(queries, keys, keep=range(dropped, queries[0].shape[1])).to(dtype)

    return [
        Implementation("ovs_kernels", OURS, ours),
        Implementation("PyTorch head by head, rows in the cache", PYTORCH, peer(peers.head_by_head_in_rows)),
        Implementation("PyTorch block by block, rows in the cache", PYTORCH, peer(peers.blocks_in_rows)),
        Implementation("PyTorch head by head", PYTORCH, peer(peers.head_by_head)),
        Implementation("published (all heads at once)", PUBLISHED, peer(peers.published)),
        Implementation("reference, float32", REFERENCE, plain),
    ]


def expected(inputs: Inputs, dropped: int) -> Tensor:
    """The float64 definition."""
    queries, keys = ([block.double() for block in blocks] for blocks in _blocks(inputs))
    return reference.attention_mean(queries, keys, keep=range(dropped, queries[0].shape[1]))


def count_work(blocks: tuple[int, ...], tokens: int, dropped: int, features: int, dtype: torch.dtype) -> Work:
    """Flops, bytes and exponentials that the case needs."""
    entries = sum(blocks) * (tokens - dropped) * tokens
    num_bytes = 4 * 2 * sum(blocks) * tokens * features + dtype.itemsize * (tokens - dropped) ** 2
    how = "2 d flops and 2 more per entry of each head's map, one exp; queries, keys and the matrix once"
    return Work(entries * (2 * features + 2), num_bytes, entries, how)


def cases(which: str, device: torch.device) -> list[Case]:
    """The cases of a run.

    Args:
        which: "quick" (small cases with every peer) or "full".
        device: where the inputs lie.
    """
    made = []
    for name, blocks, tokens, dropped, features, spread, dtype in QUICK if which == "quick" else FULL:
        made.append(
            Case(
                name=name,
                sizes={"blocks": len(blocks), "heads": sum(blocks), "N": tokens, "d": features},
                options={"drop_first": dropped, "dtype": str(dtype).removeprefix("torch."), "spread": spread},
                source="seeded normal queries and keys",
                inputs=functools.partial(make_inputs, blocks, tokens, features, spread, device),
                expected=functools.partial(expected, dropped=dropped),
                implementations=implementations(dropped, dtype),
                tolerance=HALF if dtype == torch.float16 else LARGE if spread > 10 else SINGLE,
                work=count_work(blocks, tokens, dropped, features, dtype),
            )
        )
    return made
