"""Operator `attention_mean`: plan, CPU and CUDA bridges, fake."""

import dataclasses
import math
import struct

import torch
from torch import Tensor

from .. import _native
from .._checks import (
    FLOATS,
    dtype_text,
    expect_dtype,
    expect_integer,
    expect_not_negative,
    expect_positive,
    expect_rank,
    expect_shape,
    wrong_type,
    wrong_value,
)
from ..reference import attention as reference
from . import register

NAME = "attention_mean"
MAX_BLOCKS = 40  # the core's kMaxAttentionBlocks
MAX_KEYS = 2**27  # the core's limit, so that no sum overflows


@dataclasses.dataclass(frozen=True)
class Plan:
    """Checked arguments of one call."""

    num_queries: int
    num_keys: int
    weights: tuple[float, ...]  # of the blocks, adding up to 1
    scales: tuple[float, ...]
    keep: tuple[int, ...] | None  # tokens of the rows and columns of the result, None for all
    dtype: torch.dtype  # of the matrix
    compute_dtype: torch.dtype

    @property
    def shape(self) -> tuple[int, int]:
        """Of the matrix."""
        return (self.num_queries, self.num_keys) if self.keep is None else (len(self.keep),) * 2

    def info_shapes(self, info: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shapes of the column sums and of the maximum."""
        return ((self.shape[1],), ()) if info else ((0,), (0,))


def _label(name: str, index: int, count: int) -> str:
    return name if count == 1 else f"{name}[{index}]"


def _check_blocks(queries: list[Tensor], keys: list[Tensor]) -> tuple[int, int]:
    """Numbers of queries and keys, once all blocks have the same."""
    count = len(queries)
    if len(keys) != count:
        wrong_value(NAME, "keys", f"one block per block of queries, {count}", len(keys))
    first = queries[0]
    expect_dtype(NAME, _label("queries", 0, count), first, FLOATS)
    expect_rank(NAME, _label("queries", 0, count), first, "heads, N, d")
    expect_rank(NAME, _label("keys", 0, count), keys[0], "heads, N, d")
    num_queries, num_keys = first.shape[1], keys[0].shape[1]
    for index, (q, k) in enumerate(zip(queries, keys, strict=True)):
        names = _label("queries", index, count), _label("keys", index, count)
        for name, tensor in zip(names, (q, k), strict=True):
            if tensor.dtype != first.dtype:
                first_name = _label("queries", 0, count)
                wrong_type(NAME, name, f"{dtype_text(first.dtype)} (that of {first_name})", dtype_text(tensor.dtype))
            if tensor.device != first.device:
                wrong_value(NAME, name, f"device {first.device} (that of {_label('queries', 0, count)})", tensor.device)
        sizes = expect_shape(NAME, names[0], q, "heads, N, d", {"N": num_queries}, "queries[0]")
        for extent, what in (("heads", "head"), ("d", "feature")):
            if sizes[extent] == 0:
                wrong_value(NAME, names[0], f"at least one {what}", f"{extent}=0")
        known = {"heads": sizes["heads"], "N": num_keys, "d": sizes["d"]}
        if index == 0:
            del known["N"]
        source = names[0] if index == 0 else f"{names[0]} and keys[0]"
        expect_shape(NAME, names[1], k, "heads, N, d", known, source)
    if num_keys == 0:
        wrong_value(NAME, _label("keys", 0, count), "at least one key", "N=0")
    if num_keys > MAX_KEYS:
        wrong_value(NAME, _label("keys", 0, count), f"at most {MAX_KEYS} keys", f"N={num_keys}")
    return num_queries, num_keys


def _check_weights(weights: list[float] | None, count: int) -> tuple[float, ...]:
    if weights is None:
        weights = [1.0] * count
    if len(weights) != count:
        wrong_value(NAME, "weights", f"one number per block, {count}", len(weights))
    numbers = [expect_not_negative(NAME, "weights", weight) for weight in weights]
    total = math.fsum(numbers)
    if not 0 < total < math.inf:
        wrong_value(NAME, "weights", "numbers >= 0 with a finite sum above zero", f"the sum {total:g}")
    shares = tuple(number / total for number in numbers)
    used = sum(share > 0 for share in shares)
    if used > MAX_BLOCKS:
        wrong_value(NAME, "queries", f"at most {MAX_BLOCKS} blocks of weight above zero", used)
    return shares


def _kept_tokens(keep: list[int] | None, drop_first: int, num_queries: int, num_keys: int) -> tuple[int, ...] | None:
    expect_integer(NAME, "drop_first", drop_first, 0)
    if keep is None and drop_first == 0:
        return None
    if num_queries != num_keys:
        expected = f"as many queries as keys where tokens are dropped, Nk={num_keys}"
        wrong_value(NAME, "queries", expected, f"Nq={num_queries}")
    if keep is None:
        if drop_first >= num_keys:
            wrong_value(NAME, "drop_first", f"less than the number of tokens, {num_keys}", drop_first)
        return tuple(range(drop_first, num_keys))
    if drop_first > 0:
        wrong_value(NAME, "drop_first", "0 where keep is given", drop_first)
    if not keep:
        wrong_value(NAME, "keep", "at least one token", "none")
    for token in keep:
        expect_integer(NAME, "keep", token, 0, num_keys - 1)
    if len(set(keep)) != len(keep):
        repeated = next(token for index, token in enumerate(keep) if token in keep[:index])
        wrong_value(NAME, "keep", "each token once", f"{repeated} twice")
    return tuple(keep)


def plan(queries, keys, weights, scale, keep, drop_first, dtype, info) -> Plan:
    """All checks of `attention_mean`; the arguments are those of the schema."""
    num_queries, num_keys = _check_blocks(queries, keys)
    shares = _check_weights(weights, len(queries))
    if scale is not None:
        expect_positive(NAME, "scale", scale)
    scales = tuple(q.shape[2] ** -0.5 if scale is None else scale for q in queries)
    if dtype is not None and dtype not in FLOATS:
        wrong_type(NAME, "dtype", " or ".join(dtype_text(one) for one in FLOATS), dtype_text(dtype))
    double = torch.float64 in (queries[0].dtype, dtype)
    compute = torch.float64 if double else torch.float32
    tokens = _kept_tokens(keep, drop_first, num_queries, num_keys)
    return Plan(num_queries, num_keys, shares, scales, tokens, dtype or compute, compute)


@dataclasses.dataclass(frozen=True)
class Arrays:
    """What a kernel reads and writes, in the dtype of the computation; features of a token lie side by side."""

    queries: list[Tensor]
    keys: list[Tensor]
    table: Tensor  # of the blocks, as the core's AttentionBlock
    first_key: int
    mean: Tensor
    column_sums: Tensor
    maximum: Tensor


def _rows(block: Tensor, p: Plan) -> Tensor:
    block = block.to(p.compute_dtype)
    return block if block.stride(2) == 1 else block.contiguous()


def _kept_first(p: Plan, queries: list[Tensor], keys: list[Tensor]) -> tuple[list[Tensor], list[Tensor], int]:
    """Queries of the kept tokens, keys with the dropped ones first, and how many these are."""
    if p.keep is None:
        return queries, keys, 0
    dropped = p.num_keys - len(p.keep)
    if p.keep == tuple(range(dropped, p.num_keys)):
        return [block[:, dropped:] for block in queries], keys, dropped
    kept = set(p.keep)
    others = [token for token in range(p.num_keys) if token not in kept]
    order = torch.tensor([*others, *p.keep], dtype=torch.int64).to(keys[0].device)
    queries = [block.index_select(1, order[dropped:]) for block in queries]
    return queries, [block.index_select(1, order) for block in keys], dropped


def _arrays(p: Plan, queries: list[Tensor], keys: list[Tensor], info: bool, packed_keys: bool) -> Arrays:
    """`packed_keys`: the tokens of a head follow each other without gaps."""
    blocks = [(q, k, w, s) for q, k, w, s in zip(queries, keys, p.weights, p.scales, strict=True) if w > 0]
    queries, keys, first_key = _kept_first(p, [block[0] for block in blocks], [block[1] for block in blocks])
    queries, keys = ([_rows(block, p) for block in several] for several in (queries, keys))
    if packed_keys:
        keys = [block.contiguous() for block in keys]
    table = bytearray()
    for q, k, (_, _, weight, scale) in zip(queries, keys, blocks, strict=True):
        heads, _, features = q.shape
        strides = (*q.stride()[:2], *k.stride()[:2])
        table += struct.pack("=8q2d", q.data_ptr(), k.data_ptr(), *strides, heads, features, scale, weight / heads)
    sums_shape, maximum_shape = p.info_shapes(info)
    device = queries[0].device
    # The kernels write half types from float32 only.
    mean_dtype = torch.float64 if p.compute_dtype == torch.float64 else p.dtype
    return Arrays(
        queries,
        keys,
        torch.frombuffer(table, dtype=torch.uint8),
        first_key,
        _native.allocate(p.shape, mean_dtype, device),
        torch.empty(sums_shape, dtype=p.compute_dtype, device=device),
        torch.empty(maximum_shape, dtype=p.compute_dtype, device=device),
    )


def _arguments(p: Plan, a: Arrays, info: bool) -> dict:
    """Keyword arguments that the CPU and the CUDA function share; `a` must outlive the call."""
    return {
        "blocks": a.table.data_ptr(),
        "num_blocks": len(a.queries),
        "num_queries": p.shape[0],
        "num_keys": p.num_keys,
        "first_key": a.first_key,
        "mean": a.mean.data_ptr(),
        "mean_dtype": _native.DTYPES[a.mean.dtype],
        "column_sums": a.column_sums.data_ptr() if info else 0,
        "maximum": a.maximum.data_ptr() if info else 0,
        "dtype": _native.DTYPES[p.compute_dtype],
    }


def _by_reference(p: Plan, queries, keys, scale, info) -> tuple[Tensor, Tensor, Tensor]:
    queries, keys = ([block.to(p.compute_dtype) for block in blocks] for blocks in (queries, keys))
    mean = reference.attention_mean(queries, keys, weights=p.weights, scale=scale, keep=p.keep)
    sums_shape, maximum_shape = p.info_shapes(info)
    if not info:
        return mean.to(p.dtype), mean.new_empty(sums_shape), mean.new_empty(maximum_shape)
    maximum = mean.amax() if mean.numel() else mean.new_zeros(())
    return mean.to(p.dtype), mean.sum(0), maximum


def _cpu(queries, keys, weights, scale, keep, drop_first, dtype, info):
    p = plan(queries, keys, weights, scale, keep, drop_first, dtype, info)
    if _native.use_reference(on_cuda=False):
        return _by_reference(p, queries, keys, scale, info)
    # Every tile of queries reads all keys of a head: with other heads in between each token is on another page.
    a = _arrays(p, queries, keys, info, packed_keys=True)
    _native.call_cpu(NAME, a.mean.device, _arguments(p, a, info))
    return a.mean.to(p.dtype), a.column_sums, a.maximum


def _cuda(queries, keys, weights, scale, keep, drop_first, dtype, info):
    p = plan(queries, keys, weights, scale, keep, drop_first, dtype, info)
    if _native.use_reference(on_cuda=True):
        return _by_reference(p, queries, keys, scale, info)
    a = _arrays(p, queries, keys, info, packed_keys=False)
    _native.call_cuda(NAME, a.mean.device, _arguments(p, a, info))
    return a.mean.to(p.dtype), a.column_sums, a.maximum


def _fake(queries, keys, weights, scale, keep, drop_first, dtype, info):
    p = plan(queries, keys, weights, scale, keep, drop_first, dtype, info)
    sums_shape, maximum_shape = p.info_shapes(info)
    like = queries[0]
    return (
        like.new_empty(p.shape, dtype=p.dtype),
        like.new_empty(sums_shape, dtype=p.compute_dtype),
        like.new_empty(maximum_shape, dtype=p.compute_dtype),
    )


def _samples(device: str) -> list[tuple]:
    generator = torch.Generator().manual_seed(6)

    def block(heads: int, tokens: int, d: int) -> Tensor:
        return torch.randn(heads, tokens, d, generator=generator).to(device)

    queries, keys = [block(2, 13, 4), block(3, 13, 6)], [block(2, 13, 4), block(3, 13, 6)]
    leaves = [one.clone().requires_grad_() for one in queries]
    return [
        (queries[:1], keys[:1], None, None, None, 0, None, False),
        (queries, keys, [0.25, 0.75], None, [1, 2, 5, 4], 0, torch.float16, True),
        ([block(1, 3, 5).double()], [block(1, 7, 5).double()], None, 0.3, None, 0, None, True),
        (leaves, keys, None, None, None, 2, torch.bfloat16, False),
    ]


register(
    "attention_mean(Tensor[] queries, Tensor[] keys, float[]? weights, float? scale, int[]? keep, int drop_first, "
    "ScalarType? dtype, bool info) -> (Tensor, Tensor, Tensor)",
    cpu=_cpu,
    cuda=_cuda,
    fake=_fake,
    gradient=None,
    samples=_samples,
)
