"""Pixel-adaptive mask refinement."""

from collections.abc import Sequence

import torch
from torch import Tensor

from . import _ops  # noqa: F401  (registers torch.ops.ovs_kernels)
from ._arrays import accepts_arrays
from ._checks import FLOATS, expect_dtype, expect_rank, shape_text, wrong_value


@accepts_arrays("image", "scores", indices=("dilations",))
def pamr(
    image: Tensor,
    scores: Tensor,
    *,
    num_iter: int = 10,
    dilations: Tensor | Sequence[int] = (8, 16),
    labels: bool = False,
) -> Tensor:
    """Refines class scores along the edges of an image: pixel-adaptive mask refinement (PAMR).

    Each iteration replaces the scores of a pixel by an average over its eight neighbours at every dilation, weighted by
    how close their colours are to its own, measured in standard deviations of the colours around it::

        s_k(p) = standard deviation of x_k over p and its neighbours (9 samples per dilation, divided by n - 1)
        a_o(p) = softmax over o of  mean over channels k of  -|x_k(p) - x_k(p + o)| / (1e-8 + 0.1 s_k(p))
        m(p)  <- sum over o of  a_o(p) m(p + o)                                            `num_iter` times

    Beyond the border stands the nearest pixel of the image. The pixel itself has no part in its average. Weights are
    worked out on the way, in rows that stay in the cache: neither they nor shifted copies are ever written out.

    Args:
        image: [F, H, W] or [B, F, H, W] with F >= 1 channels, uint8 or float: RGB or anything else. Its scale per
            channel does not matter, but for that 1e-8, which counts where the image is flat, and as long as squares of
            differences are finite; [0, 1] or a normalised image is meant (bytes are divided by 255).
        scores: [C, h, w] or [B, C, h, w] float, like `image`: class scores. Where h x w is not H x W they are first
            resized to it, bilinear with `align_corners=True`, as the published module does.
        num_iter: iterations; 0 returns the (resized) scores.
        dilations: distances of the neighbours in pixels, 1 to 64 integers >= 1, in any order, also beyond the image.
        labels: return the index of the best class instead of scores; never writes C x H x W on a CPU.

    Returns:
        [C, H, W] in the dtype of `scores`, within their smallest and largest values up to rounding; or with `labels`
        [H, W], uint8 for at most 255 classes, else int32. With a batch axis if the scores have one.

    Raises:
        TypeError: wrong kind or dtype of an argument.
        ValueError: wrong shape, range or device of an argument.
        RuntimeError: CUDA tensors, and a build without CUDA or for other cards.

    Devices/dtypes: CPU and CUDA; float32, float64, float16 and bfloat16 (computed in float32).
    Differentiable: by `scores`, any number of times (the function is linear in them). Not by `image`. Labels are not.
    Deterministic: yes, forward and backward, on CPU for any number of threads. Ties between labels go to the smallest
        index.
    Non-finite: a NaN or Inf in the scores reaches all pixels that have it among their neighbours, in its class only. A
        NaN or Inf in the image makes NaN of all scores of that pixel and of those that have it among their neighbours.
        Both travel on with every iteration. In labels NaN never wins; where all is NaN or -Inf it is class 0.
    Memory: beyond the result, on a CPU each thread has rings of rows of some classes (eight, or more that fit into the
        second-level cache; 45 rows for dilations 8 and 16, five times the largest dilation and more where the
        dilations have no common divisor), up to 2.5 MB of weights or those of the rows on the way, and 20 rows of up to
        32 classes; for labels also those classes once, of the rows that are taken together, and 8 bytes per pixel.
        On CUDA 8 numbers per pixel and dilation, and one copy of the scores of an image, for labels two.
    Reference: PAMR (Araslanov and Roth 2020), the module that TCL, NACLIP and others share. See
        `ovs_kernels.reference.pamr`.

    Example:
        >>> import torch, ovs_kernels
        >>> image = torch.zeros(3, 4, 6)
        >>> image[:, :, 3:] = 1.0                       # black left, white right
        >>> scores = torch.zeros(1, 4, 6)
        >>> scores[0, :, 2:] = 1.0                      # spills over the edge by a column
        >>> ovs_kernels.pamr(image, scores, num_iter=2, dilations=[1])[0, 1].gt(0.5).int().tolist()
        [0, 0, 0, 1, 1, 1]
    """
    listed = [int(dilation) for dilation in (dilations.tolist() if isinstance(dilations, Tensor) else dilations)]
    dtype = scores.dtype
    scores = _resized(scores, image)
    if labels:
        return torch.ops.ovs_kernels.pamr_labels(image, scores, num_iter, listed)
    return torch.ops.ovs_kernels.pamr(image, scores, num_iter, listed).to(dtype)


def _resized(scores: Tensor, image: Tensor) -> Tensor:
    """The scores at the size of the image; untouched if they have it, or if the operator's checks are to refuse."""
    if scores.dim() not in (3, 4) or scores.dim() != image.dim() or scores.shape[-2:] == image.shape[-2:]:
        return scores
    dtype = expect_dtype("pamr", "scores", scores, FLOATS)
    if 0 in scores.shape[-2:] or 0 in image.shape[-2:]:
        name, shape = ("scores", scores.shape) if 0 in scores.shape[-2:] else ("image", image.shape)
        wrong_value("pamr", name, "at least one row and column, to resize the scores", shape_text(shape))
    batched = expect_rank("pamr", "scores", scores, "C, h, w", "B, C, h, w") == "B, C, h, w"
    wide = scores if dtype == torch.float64 else scores.float()
    if 0 in scores.shape:
        return wide.new_empty((*scores.shape[:-2], *image.shape[-2:]))
    resized = torch.nn.functional.interpolate(
        wide if batched else wide[None], size=image.shape[-2:], mode="bilinear", align_corners=True
    )
    return resized if batched else resized[0]
