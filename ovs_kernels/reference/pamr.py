"""Definition of `pamr` in plain PyTorch: pixel-adaptive mask refinement.

Written to be read beside the equations, not to be fast: it keeps all weights and moves whole arrays. Any float dtype,
any device; run it in float64 to get the numbers that the kernels are held to.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

# Added to the scale of a channel, so that a flat neighbourhood has equal weights instead of 0 / 0.
SMALLEST_SCALE = 1e-8
SCALE_OF_DEVIATION = 0.1


def offsets(dilations: Sequence[int], centre: bool = False) -> Iterator[tuple[int, int]]:
    """(dy, dx) of the eight neighbours at each dilation, row by row; with `centre` the pixel itself among them."""
    for dilation in dilations:
        for dy in (-dilation, 0, dilation):
            for dx in (-dilation, 0, dilation):
                if centre or (dy, dx) != (0, 0):
                    yield dy, dx


def shifted(x: Tensor, dy: int, dx: int) -> Tensor:
    """x(p + (dy, dx)) at every pixel p of [..., H, W]; outside of the image the nearest pixel of it."""
    height, width = x.shape[-2:]
    rows = (torch.arange(height, device=x.device) + dy).clamp(0, height - 1)
    columns = (torch.arange(width, device=x.device) + dx).clamp(0, width - 1)
    return x[..., rows, :][..., columns]


def pamr_weights(image: Tensor, dilations: Sequence[int]) -> Tensor:
    """How much each neighbour of a pixel says.

    ::

        s_k(p)   = standard deviation (divided by n - 1) of x_k over the 9 samples of each dilation, p itself included
        e_o(p)   = mean over channels k of  -|x_k(p) - x_k(p + o)| / (1e-8 + 0.1 s_k(p))
        a_o(p)   = exp(e_o(p)) / sum over all o of exp(e_o(p))

    Args:
        image: [B, F, H, W] x, F channels of any scale.
        dilations: distances of the neighbours, at least one.

    Returns:
        [B, 8 * len(dilations), H, W], in the order of `offsets`.
    """
    samples = torch.stack([shifted(image, dy, dx) for dy, dx in offsets(dilations, centre=True)])
    scale = SMALLEST_SCALE + SCALE_OF_DEVIATION * samples.std(0, unbiased=True)
    exponents = [-((image - shifted(image, dy, dx)).abs() / scale).mean(1) for dy, dx in offsets(dilations)]
    return torch.softmax(torch.stack(exponents, 1), 1)


def pamr_step(weights: Tensor, scores: Tensor, dilations: Sequence[int]) -> Tensor:
    """One iteration, sum over o of a_o(p) m(p + o). weights [B, 8D, H, W], scores [B, C, H, W]."""
    result = scores.new_zeros(scores.shape)
    for index, (dy, dx) in enumerate(offsets(dilations)):
        result = result + weights[:, index, None] * shifted(scores, dy, dx)
    return result


def resize_scores(scores: Tensor, size: tuple[int, int]) -> Tensor:
    """[B, C, h, w] -> [B, C, H, W], bilinear with the corners aligned, as the published module does first of all."""
    if tuple(scores.shape[-2:]) == tuple(size):
        return scores
    return torch.nn.functional.interpolate(scores, size=tuple(size), mode="bilinear", align_corners=True)


def pamr(image: Tensor, scores: Tensor, *, num_iter: int, dilations: Sequence[int]) -> Tensor:
    """Pixel-adaptive mask refinement: `num_iter` times `pamr_step` with the weights of the image.

    Args:
        image: [B, F, H, W].
        scores: [B, C, h, w], resized to [B, C, H, W] where that is another size.
        num_iter: iterations, 0 or more.
        dilations: see `pamr_weights`.

    Returns:
        [B, C, H, W].
    """
    scores = resize_scores(scores, image.shape[-2:])
    if num_iter == 0:
        return scores.clone()
    weights = pamr_weights(image, dilations)
    for _ in range(num_iter):
        scores = pamr_step(weights, scores, dilations)
    return scores


def pamr_labels(image: Tensor, scores: Tensor, *, num_iter: int, dilations: Sequence[int]) -> Tensor:
    """The class of the largest of what `pamr` makes, the smallest class where they tie; NaN is never the largest.

    Args:
        image: [B, F, H, W].
        scores: [B, C, h, w], C >= 1.
        num_iter: iterations, 0 or more.
        dilations: see `pamr_weights`.

    Returns:
        [B, H, W] uint8 for at most 255 classes, else int32.
    """
    refined = pamr(image, scores, num_iter=num_iter, dilations=dilations)
    labels = torch.where(refined.isnan(), -math.inf, refined).argmax(1)
    return labels.to(torch.uint8 if scores.shape[1] <= 255 else torch.int32)


def pamr_backward(v_scores: Tensor, image: Tensor, *, num_iter: int, dilations: Sequence[int]) -> Tensor:
    """The transpose of `pamr` without its resize: the cotangent of the scores from that of the result.

    Args:
        v_scores: [B, C, H, W] cotangent of the result.
        image: [B, F, H, W].
        num_iter: iterations, 0 or more.
        dilations: see `pamr_weights`.

    Returns:
        [B, C, H, W].
    """
    if num_iter == 0:
        return v_scores.clone()
    weights = pamr_weights(image, dilations)
    height, width = image.shape[-2:]
    rows, columns = torch.arange(height, device=image.device), torch.arange(width, device=image.device)
    for _ in range(num_iter):
        result = v_scores.new_zeros(v_scores.shape)
        for index, (dy, dx) in enumerate(offsets(dilations)):
            across = v_scores.new_zeros(v_scores.shape)
            across.index_add_(-1, (columns + dx).clamp(0, width - 1), weights[:, index, None] * v_scores)
            result.index_add_(-2, (rows + dy).clamp(0, height - 1), across)
        v_scores = result
    return v_scores
