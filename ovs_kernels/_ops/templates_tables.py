"""What template_entropy's pixels are made of: one sparse matrix per axis, from source patches to output pixels."""

import dataclasses
import functools

import torch
from torch import Tensor

STRIP = 16  # the core's kStrip


@dataclasses.dataclass(frozen=True)
class Tables:
    """The core's tables for one geometry.

    A source row is a row of windows and a patch row in it, a source column likewise.
    """

    window_rows: int
    window_columns: int
    window_order: Tensor  # [window_rows, window_columns] int32: which window it is
    row_first: Tensor  # [Ho + 1] int32 into the two below
    row_source: Tensor  # int32
    row_weight: Tensor
    strip_first: Tensor  # [strips + 1] int32 into the two below
    strip_source: Tensor  # int32
    strip_weight: Tensor  # [.., STRIP]
    uses_row: Tensor  # [Ho, source rows] float32: 1 where a row is made from a source row, weight 0 included
    uses_column: Tensor  # [Wo, source columns] float32

    def to(self, device: torch.device) -> "Tables":
        """The same with the arrays on another device."""
        moved = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return dataclasses.replace(self, **moved)


def _tap(o: int, n_in: int, n_out: int) -> tuple[tuple[int, float], ...]:
    """The neighbours of output `o`, and their weights."""
    source = max((o + 0.5) * (n_in / n_out) - 0.5, 0.0)
    low = min(int(source), n_in - 1)
    return (low, 1.0 - (source - low)), (min(low + 1, n_in - 1), source - low)


def _axis(intervals: list[tuple[int, int]], patches: int, extent: int, out: int) -> list[dict[int, float]]:
    """For every output the sources along one axis: upsample to a window, average the windows, resize."""
    merged: list[dict[int, float]] = []
    for y in range(extent):
        covering = [index for index, (begin, end) in enumerate(intervals) if begin <= y < end]
        sources: dict[int, float] = {}
        for index in covering:
            begin, end = intervals[index]
            for patch, weight in _tap(y - begin, patches, end - begin):
                key = index * patches + patch
                sources[key] = sources.get(key, 0.0) + weight / len(covering)
        merged.append(sources)
    if out == extent:
        return merged
    resized = []
    for o in range(out):
        sources = {}
        for y, share in _tap(o, extent, out):
            for key, weight in merged[y].items():
                sources[key] = sources.get(key, 0.0) + share * weight
        resized.append(sources)
    return resized


def _uses(axis: list[dict[int, float]], num_sources: int) -> Tensor:
    used = torch.zeros(len(axis), num_sources)
    for output, sources in enumerate(axis):
        used[output, list(sources)] = 1.0
    return used


@functools.lru_cache(maxsize=64)
def tables(
    boxes: tuple[tuple[int, ...], ...],
    grid: tuple[int, int],
    size: tuple[int, int],
    out_size: tuple[int, int],
    dtype: torch.dtype,
    device: torch.device,
) -> Tables:
    """The tables for windows on a grid; kept, so that a second image of the same sizes costs nothing."""
    rows, columns = sorted({(y0, y1) for y0, _, y1, _ in boxes}), sorted({(x0, x1) for _, x0, _, x1 in boxes})
    order = {box: index for index, box in enumerate(boxes)}
    down = _axis(rows, grid[0], size[0], out_size[0])
    across = _axis(columns, grid[1], size[1], out_size[1])
    strip_sources = [
        sorted({key for sources in across[x : x + STRIP] for key in sources}) for x in range(0, len(across), STRIP)
    ]
    weights = [
        [across[x + lane].get(key, 0.0) if x + lane < len(across) else 0.0 for lane in range(STRIP)]
        for x, keys in zip(range(0, len(across), STRIP), strip_sources, strict=True)
        for key in keys
    ]

    def starts(lists) -> Tensor:
        return torch.tensor([0, *(len(one) for one in lists)], dtype=torch.int32).cumsum(0, dtype=torch.int32)

    def numbers(lists) -> Tensor:
        return torch.tensor([number for one in lists for number in one], dtype=torch.int32)

    return Tables(
        len(rows),
        len(columns),
        torch.tensor([[order[y0, x0, y1, x1] for x0, x1 in columns] for y0, y1 in rows], dtype=torch.int32),
        starts(down),
        numbers(down),
        torch.tensor([weight for sources in down for weight in sources.values()], dtype=dtype),
        starts(strip_sources),
        numbers(strip_sources),
        torch.tensor(weights, dtype=dtype),
        _uses(down, len(rows) * grid[0]),
        _uses(across, len(columns) * grid[1]),
    ).to(device)


@dataclasses.dataclass(frozen=True)
class GroupTables:
    """The core's tables of queries in the order of their classes; all None where every query is a class."""

    order: Tensor | None  # [Q] int32: which query comes first, second, ...; None where they are in order
    first: Tensor | None  # [K + 1] int32: where each class begins
    of: Tensor | None  # [Q] int32: the class of each query, in their order

    def fields(self) -> dict[str, int]:
        """The core's fields."""
        tables = {"group_first": self.first, "group_of": self.of}
        return {name: 0 if table is None else table.data_ptr() for name, table in tables.items()}


@functools.lru_cache(maxsize=16)
def group_tables(groups: tuple[int, ...] | None, device: torch.device) -> GroupTables:
    """The tables of these groups; kept, so that a second CUDA call copies nothing."""
    if groups is None:
        return GroupTables(None, None, None)
    order = sorted(range(len(groups)), key=groups.__getitem__)
    of = torch.tensor([groups[query] for query in order], dtype=torch.int32)
    first = torch.cat((of.new_zeros(1), torch.bincount(of).cumsum(0))).to(torch.int32)
    moved = None if order == sorted(order) else torch.tensor(order, dtype=torch.int32).to(device)
    return GroupTables(moved, first.to(device), of.to(device))
