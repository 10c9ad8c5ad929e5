"""Operator `knn_graph`: plan, CPU and CUDA bridges, fake.

Both bridges run the stages of csrc/graph/graph.h. The products of unit rows, nearly all of the arithmetic, are torch's:
blocks of rows times blocks of columns, at and above the diagonal only. They are kept when they fit into the memory
limit; otherwise those of some rows at a time are made, for each stage again. A tile is the product of the
same operands either way, and has the same bits.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .. import _native
from .._checks import (
    FLOATS,
    INTEGERS,
    expect_dtype,
    expect_integer,
    expect_not_negative,
    expect_positive,
    expect_rank,
    expect_shape,
    same_device,
    wrong_value,
)
from ..reference import graph as reference
from . import register

NAME = "knn_graph"
MAX_NODES = 2**24  # the core's kMaxNodes
MAX_LINKS = 2**31 - 1  # indices into a row are int32
STAGES = {"normalize": 0, "select": 1, "count": 2, "offsets": 3, "emit": 4}  # the core's KnnGraphStage
# Rows and columns of a block at most. On a CPU: 256 KB of products, and little is computed twice around the diagonal.
CPU_BLOCK, CUDA_BLOCK = 256, 1024
GROUP_ROWS = 16  # the core's kGroupRows
# Without a memory_limit, the products are made in pieces rather than taking more scratch memory than this.
SOFT_MEMORY_LIMIT = 2560 * 2**20


@dataclasses.dataclass(frozen=True)
class Plan:
    """Checked arguments of one call."""

    num_nodes: int
    num_features: int
    num_others: int  # neighbours of a node besides itself
    compute_dtype: torch.dtype
    empty: bool  # no link is possible


def plan(features, k, positions, gamma, sigma, memory_limit) -> Plan:
    """All checks of `knn_graph`; the arguments are those of the schema."""
    dtype = expect_dtype(NAME, "features", features, FLOATS)
    expect_rank(NAME, "features", features, "N, d")
    num_nodes, num_features = features.shape
    if num_nodes > MAX_NODES:
        wrong_value(NAME, "features", f"at most {MAX_NODES} rows", num_nodes)
    if positions is not None:
        expect_dtype(NAME, "positions", positions, (*FLOATS, *INTEGERS))
        expect_shape(NAME, "positions", positions, "N, 2", {"N": num_nodes}, "features")
        same_device(NAME, features=features, positions=positions)
    expect_integer(NAME, "k", k, 1)
    expect_positive(NAME, "gamma", gamma)
    expect_not_negative(NAME, "sigma", sigma)
    if memory_limit is not None:
        expect_integer(NAME, "memory_limit", memory_limit, 1)
    others = min(k, num_nodes) - 1
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    return Plan(num_nodes, num_features, max(others, 0), compute, others < 1 or num_features == 0)


def _inputs(p: Plan, features: Tensor, positions: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Contiguous, in the dtype of the computation."""
    if positions is not None:
        positions = positions.to(p.compute_dtype).contiguous()
    return features.to(p.compute_dtype).contiguous(), positions


@dataclasses.dataclass(frozen=True)
class Panel:
    """Products of the rows [first, last) with all columns, as the kernels of one device take them."""

    first: int
    last: int
    products: Tensor
    tile_numbers: Tensor | None


class TileProducts:
    """Products for the CPU kernels: square tiles at and above the diagonal, one after another.

    A row's products left of the diagonal are a column of the tiles above it, so each tile serves two blocks of rows,
    and half of the arithmetic and of the memory is enough. The tiles of a block of rows are one batched product: each
    thread makes whole tiles, and the threads wait for each other once.
    """

    def __init__(self, num_nodes: int, dtype: torch.dtype, device: torch.device):
        self.num_nodes, self.dtype, self.device = num_nodes, dtype, device
        self.blocks = math.ceil(num_nodes / CPU_BLOCK)
        self.block = math.ceil(num_nodes / self.blocks / GROUP_ROWS) * GROUP_ROWS  # all alike, little is left over
        self.num_rows = self.blocks * self.block  # of the unit rows; those past N are zero

    def num_bytes(self, whole: bool) -> int:
        """Bytes of the tiles, all of them or those of one block of rows."""
        return self._num_tiles(whole) * self.block**2 * self.dtype.itemsize

    def _num_tiles(self, whole: bool) -> int:
        return self.blocks * (self.blocks + 1) // 2 if whole else self.blocks

    def panels(self, unit: Tensor, whole: bool) -> Iterator[Panel]:
        """All rows at once, or a block of rows at a time."""
        rows = unit.view(self.blocks, self.block, unit.shape[1])
        columns = rows.transpose(1, 2)
        numbers = torch.zeros(self.blocks, self.blocks, dtype=torch.int32)
        tiles = _native.allocate((self._num_tiles(whole), self.block, self.block), self.dtype, self.device)

        def multiply_right(own: int, begin: int) -> None:
            count = self.blocks - own
            torch.bmm(rows[own].expand(count, -1, -1), columns[own:], out=tiles[begin : begin + count])
            numbers[own, own:] = torch.arange(begin, begin + count, dtype=torch.int32)

        if whole:
            begin = 0
            for own in range(self.blocks):
                multiply_right(own, begin)
                begin += self.blocks - own
            yield Panel(0, self.num_nodes, tiles, numbers)
            return
        for own in range(self.blocks):
            if own > 0:  # the tiles above the diagonal, of which this block of rows reads the columns
                torch.bmm(rows[:own], columns[own].expand(own, -1, -1), out=tiles[:own])
                numbers[:own, own] = torch.arange(own, dtype=torch.int32)
            multiply_right(own, own)
            first = own * self.block
            yield Panel(first, min(first + self.block, self.num_nodes), tiles, numbers)


class RowProducts:
    """Products for the CUDA kernels: whole rows, of which the part left of the diagonal is copied from above it."""

    def __init__(self, num_nodes: int, dtype: torch.dtype, device: torch.device):
        self.num_nodes, self.dtype, self.device = num_nodes, dtype, device
        self.block = min(CUDA_BLOCK, num_nodes)
        self.starts = range(0, num_nodes, self.block)
        self.num_rows = num_nodes  # of the unit rows

    def num_bytes(self, whole: bool) -> int:
        """Bytes of the rows, all of them or those of one block, and of one product to be transposed."""
        rows = self.num_nodes if whole else self.block
        return (rows * self.num_nodes + self.block**2) * self.dtype.itemsize

    def panels(self, unit: Tensor, whole: bool) -> Iterator[Panel]:
        """All rows at once, or a block of rows at a time."""
        blocks = [slice(start, min(start + self.block, self.num_nodes)) for start in self.starts]
        height = self.num_nodes if whole else self.block
        products = _native.allocate((height, self.num_nodes), self.dtype, self.device)
        scratch = torch.empty(self.block**2, dtype=self.dtype, device=self.device)

        def multiply(one: slice, two: slice) -> Tensor:
            shape = (one.stop - one.start, two.stop - two.start)
            return torch.mm(unit[one], unit[two].T, out=scratch[: shape[0] * shape[1]].view(shape))

        for own, here in enumerate(blocks):
            top = 0 if whole else here.start  # the first row in `products`
            mine = slice(here.start - top, here.stop - top)
            for other, there in enumerate(blocks):
                if other < own and not whole:
                    products[mine, there] = multiply(there, here).T
                elif other == own:
                    product = multiply(here, here)
                    products[mine, there] = product.triu() + product.triu(1).T
                elif other > own:
                    product = multiply(here, there)
                    products[mine, there] = product
                    if whole:
                        products[there, here] = product.T
            if not whole:
                yield Panel(here.start, here.stop, products[: here.stop - here.start], None)
        if whole:
            yield Panel(0, self.num_nodes, products, None)


def _choose_whole(kind, fixed_bytes: int, memory_limit: int | None) -> bool:
    """Whether all products are kept at once."""
    limit = SOFT_MEMORY_LIMIT if memory_limit is None else memory_limit
    if fixed_bytes + kind.num_bytes(True) <= limit:
        return True
    needed = fixed_bytes + kind.num_bytes(False)
    if memory_limit is not None and needed > memory_limit:
        wrong_value(NAME, "memory_limit", f"at least {needed} bytes for this size", memory_limit)
    return False


def _build(p: Plan, features: Tensor, positions: Tensor | None, gamma, sigma, memory_limit, kind, make_stage):
    """The stages in order; `make_stage` knows the device. Returns the four results."""
    device = features.device
    products = kind(p.num_nodes, p.compute_dtype, device)
    unit = _native.allocate((products.num_rows, p.num_features), p.compute_dtype, device)
    unit[p.num_nodes :] = 0
    indptr = torch.empty(p.num_nodes + 1, dtype=torch.int32, device=device)
    total = torch.empty(1, dtype=torch.int64, device=device)
    degrees = torch.empty(p.num_nodes, dtype=p.compute_dtype, device=device)
    fields = {
        "features": features.data_ptr(),
        "positions": 0 if positions is None else positions.data_ptr(),
        "unit_rows": unit.data_ptr(),
        "indptr": indptr.data_ptr(),
        "total": total.data_ptr(),
        "degrees": degrees.data_ptr(),
        "num_nodes": p.num_nodes,
        "num_features": p.num_features,
        "num_others": p.num_others,
        "block": products.block,
        "gamma": gamma,
        "sigma": sigma,
    }
    none = {"products": 0, "tile_numbers": 0, "indices": 0, "weights": 0, "first_row": 0, "last_row": 0}
    stage, workspace_bytes = make_stage(fields | none)
    whole = _choose_whole(products, workspace_bytes + unit.nbytes, memory_limit)
    stage("normalize")
    kept = list(products.panels(unit, True)) if whole else None

    def over_rows(name: str, **outputs) -> None:
        for panel in kept or products.panels(unit, False):
            numbers = 0 if panel.tile_numbers is None else panel.tile_numbers.data_ptr()
            stage(
                name,
                products=panel.products.data_ptr(),
                tile_numbers=numbers,
                first_row=panel.first,
                last_row=panel.last,
                **outputs,
            )

    over_rows("select")
    over_rows("count")
    stage("offsets")
    links = int(total)  # on CUDA the one number that the host waits for
    if links > MAX_LINKS:
        wrong_value(NAME, "k", f"at most {MAX_LINKS} links in the graph", f"{links} with k={p.num_others + 1}")
    indices = _native.allocate((links,), torch.int32, device)
    weights = _native.allocate((links,), p.compute_dtype, device)
    over_rows("emit", indices=indices.data_ptr(), weights=weights.data_ptr())
    return indptr, indices, weights, degrees


def _no_links(p: Plan, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        torch.zeros(p.num_nodes + 1, dtype=torch.int32, device=device),
        torch.empty(0, dtype=torch.int32, device=device),
        torch.empty(0, dtype=p.compute_dtype, device=device),
        torch.zeros(p.num_nodes, dtype=p.compute_dtype, device=device),
    )


def _reference(p: Plan, features, positions, gamma, sigma):
    features, positions = _inputs(p, features, positions)
    return reference.knn_graph(features, p.num_others + 1, positions, gamma, sigma)


def _cpu(features, k, positions, gamma, sigma, memory_limit):
    p = plan(features, k, positions, gamma, sigma, memory_limit)
    native = _native.cpu_module()
    if p.empty:
        return _no_links(p, features.device)
    if native is None:
        return _reference(p, features, positions, gamma, sigma)
    rows, places = _inputs(p, features, positions)
    num_threads = torch.get_num_threads()

    def make_stage(fields: dict) -> tuple[Callable, int]:
        common = fields | {"dtype": _native.DTYPES[p.compute_dtype], "num_threads": num_threads}
        num_bytes = native.knn_graph_cpu_workspace_bytes(stage=0, **common)
        workspace = _native.allocate((num_bytes,), torch.uint8, rows.device)
        isa = _native.ISA_NUMBERS[_native.isa()]

        def stage(name: str, **changes) -> None:
            native.knn_graph_cpu(
                **common | changes,
                stage=STAGES[name],
                workspace=workspace.data_ptr(),
                workspace_bytes=num_bytes,
                isa=isa,
            )

        return stage, num_bytes

    return _build(p, rows, places, gamma, sigma, memory_limit, TileProducts, make_stage)


def _cuda(features, k, positions, gamma, sigma, memory_limit):
    p = plan(features, k, positions, gamma, sigma, memory_limit)
    if p.empty:
        return _no_links(p, features.device)
    if _native.use_reference(True, p.compute_dtype):
        return _reference(p, features, positions, gamma, sigma)
    native = _native.cuda_module(NAME)
    rows, places = _inputs(p, features, positions)

    def make_stage(fields: dict) -> tuple[Callable, int]:
        num_bytes = native.knn_graph_cuda_workspace_bytes(stage=0, **fields)
        workspace = _native.allocate((num_bytes,), torch.uint8, rows.device)
        run = functools.partial(
            native.knn_graph_cuda,
            workspace_bytes=num_bytes,
            device=rows.device.index or 0,
            stream=_native.current_stream(rows.device),
        )

        def stage(name: str, **changes) -> None:
            run(**fields | changes, stage=STAGES[name], workspace=workspace.data_ptr())

        return stage, num_bytes

    return _build(p, rows, places, gamma, sigma, memory_limit, RowProducts, make_stage)


def _fake(features, k, positions, gamma, sigma, memory_limit):
    p = plan(features, k, positions, gamma, sigma, memory_limit)
    links = torch.library.get_ctx().new_dynamic_size()
    return (
        features.new_empty(p.num_nodes + 1, dtype=torch.int32),
        features.new_empty(links, dtype=torch.int32),
        features.new_empty(links, dtype=p.compute_dtype),
        features.new_empty(p.num_nodes, dtype=p.compute_dtype),
    )


def _samples(device: str) -> list[tuple]:
    generator = torch.Generator().manual_seed(5)
    features = torch.randn(23, 6, generator=generator).to(device)
    positions = torch.randint(0, 100, (23, 2), generator=generator).to(device)
    return [
        (features, 7, None, 3.0, 0.01, None),
        (features.double(), 7, positions, 2.5, 0.01, None),
        (features.clone().requires_grad_(), 40, positions.float(), 7.0, 0.0, None),
    ]


register(
    "knn_graph(Tensor features, int k, Tensor? positions, float gamma, float sigma, int? memory_limit) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    cpu=_cpu,
    cuda=_cuda,
    fake=_fake,
    gradient=None,
    samples=_samples,
)
