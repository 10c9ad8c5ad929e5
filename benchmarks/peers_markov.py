"""What `doubly_stochastic` and `markov_velocity` are measured against: the same with PyTorch's own operations.

Matrices are [N, N], vectors [N], states [C, N]; all float32.
"""

import dataclasses

import torch
from torch import Tensor

SPLITS = 8  # of the inner axis of a product; 2 to 128 were tried at N = 4096, C = 21


@dataclasses.dataclass(frozen=True)
class Options:
    """Arguments of `markov_velocity` that the peers know."""

    n_ipf: int
    threshold: float
    max_steps: int


def rewrite(attention: Tensor, n_iter: int) -> Tensor:
    """T by dividing the matrix, as the published code does."""
    for _ in range(n_iter):
        attention = attention / attention.sum(0)
        attention = attention / attention.sum(1, keepdim=True)
    return attention


def rewrite_in_place(attention: Tensor, n_iter: int) -> Tensor:
    """The same on one copy."""
    matrix = attention.clone()
    for _ in range(n_iter):
        matrix.div_(matrix.sum(0))
        matrix.div_(matrix.sum(1, keepdim=True))
    return matrix


def two_vectors(attention: Tensor, n_iter: int) -> tuple[Tensor, Tensor]:
    """Both factors by two products with a vector per iteration."""
    r = c = attention.new_ones(len(attention))
    for _ in range(n_iter):
        c = 1 / (r @ attention)
        r = 1 / (attention @ c)
    return r, c


def _passage(step: int, now: Tensor, before: Tensor, times: Tensor, threshold: float) -> Tensor:
    slope = 1 - threshold if step == 1 else now - before
    crossed = (times < 0) & (now > threshold)
    return torch.where(crossed, step - (now - threshold) / (slope + 1e-6), times)


def _velocity(take_step, distributions: Tensor, options: Options) -> Tensor:
    """First passage with interpolation, all classes until the last one is finished."""
    before = distributions / distributions.amax(1, keepdim=True)
    times = torch.where(before > options.threshold, 0.0, -1.0)
    for step in range(1, options.max_steps + 1):
        now = take_step(before)
        now /= now.amax(1, keepdim=True)
        times = _passage(step, now, before, times, options.threshold)
        before = now
        if bool(times.amin() >= 0):
            break
    times = torch.where(times < 0, float(options.max_steps), times)
    return 1 / times.clamp(min=1e-3)


def scaled_products(attention: Tensor, distributions: Tensor, options: Options) -> Tensor:
    """The matrix as it is; the vectors before and after each product."""
    r, c = two_vectors(attention, options.n_ipf)
    return _velocity(lambda state: ((state * r) @ attention).mul_(c), distributions, options)


def batched_products(attention: Tensor, distributions: Tensor, options: Options) -> Tensor:
    """Like the first, the product cut into SPLITS along its inner axis: the library is faster at that shape."""
    r, c = two_vectors(attention, options.n_ipf)
    num_classes, num_nodes = distributions.shape
    inner = num_nodes // SPLITS
    blocks = attention[: SPLITS * inner].view(SPLITS, inner, num_nodes)

    def take_step(state: Tensor) -> Tensor:
        scaled = state * r
        parts = scaled[:, : SPLITS * inner].reshape(num_classes, SPLITS, inner).transpose(0, 1)
        product = torch.bmm(parts, blocks).sum(0)
        return product.addmm_(scaled[:, SPLITS * inner :], attention[SPLITS * inner :]).mul_(c)

    return _velocity(take_step, distributions, options)


def formed_matrix(attention: Tensor, distributions: Tensor, options: Options) -> Tensor:
    """T formed once."""
    r, c = two_vectors(attention, options.n_ipf)
    matrix = (attention * r[:, None]).mul_(c)
    return _velocity(lambda state: state @ matrix, distributions, options)


def transposed_products(attention: Tensor, distributions: Tensor, options: Options) -> Tensor:
    """T^T formed once, the matrix on the left: another shape for the library's product."""
    r, c = two_vectors(attention, options.n_ipf)
    matrix = (attention.T * r).mul_(c[:, None]).contiguous()
    return _velocity(lambda state: (matrix @ state.T).T.contiguous(), distributions, options)
