"""What `pamr` is measured against: the published module's steps, and shifted views in PyTorch.

Each takes an image [F, H, W], scores [C, H, W] of the same size, the number of iterations and the dilations, and
returns [C, H, W].
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad, softmax

SMALLEST_SCALE, SCALE_OF_DEVIATION = 1e-8, 0.1


def _neighbours(x: Tensor, dilations: Sequence[int], kernels: Tensor) -> Tensor:
    """[B, K, H, W] -> [B, K, taps, H, W] by one-hot dilated convolutions, into one array, as NACLIP has it."""
    batch, channels, height, width = x.shape
    taps = len(kernels)
    planes = x.reshape(batch * channels, 1, height, width)
    found = x.new_empty(batch * channels, taps * len(dilations), height, width)
    for index, d in enumerate(dilations):
        padded = pad(planes, [d] * 4, mode="replicate")
        found[:, taps * index : taps * (index + 1)] = conv2d(padded, kernels, dilation=d)
    return found.view(batch, channels, -1, height, width)


def module(image: Tensor, scores: Tensor, num_iter: int, dilations: Sequence[int]) -> Tensor:
    """The published module (1-stage-wseg, TCL, NACLIP): all neighbours of all classes written out, then summed."""
    x, mask = image[None], scores[None]
    nine = torch.eye(9, dtype=x.dtype, device=x.device).reshape(9, 1, 3, 3)
    eight = nine[[0, 1, 2, 3, 5, 6, 7, 8]]
    differences = eight.neg()
    differences[:, :, 1, 1] = 1
    deviation = _neighbours(x, dilations, nine).std(2, keepdim=True)
    weights = -_neighbours(x, dilations, differences).abs() / (SMALLEST_SCALE + SCALE_OF_DEVIATION * deviation)
    weights = softmax(weights.mean(1, keepdim=True), 2)
    for _ in range(num_iter):
        mask = (_neighbours(mask, dilations, eight) * weights).sum(2)
    return mask[0]


def _offsets(dilations: Sequence[int]) -> list[tuple[int, int]]:
    return [(dy, dx) for d in dilations for dy in (-d, 0, d) for dx in (-d, 0, d) if (dy, dx) != (0, 0)]


def _weights(image: Tensor, dilations: Sequence[int]) -> Tensor:
    """[taps, H, W], from views of the padded image."""
    reach = max(dilations)
    height, width = image.shape[1:]
    padded = pad(image[None], [reach] * 4, mode="replicate")[0]
    views = [
        padded[:, reach + dy : reach + dy + height, reach + dx : reach + dx + width] for dy, dx in _offsets(dilations)
    ]
    differences = torch.stack(views).sub_(image)
    count = 9 * len(dilations)
    variance = differences.square().sum(0).addcmul_(*[differences.sum(0)] * 2, value=-1 / count).div_(count - 1)
    scale = variance.clamp_(min=0).sqrt_().mul_(SCALE_OF_DEVIATION).add_(SMALLEST_SCALE)
    return softmax(differences.abs_().div_(scale).mean(1).neg_(), 0)


def shifts(
    image: Tensor, scores: Tensor, num_iter: int, dilations: Sequence[int], *, band: int | None = None, group: int = 0
) -> Tensor:
    """One fused multiply-add per tap and iteration on views of a padded array; nothing is allocated on the way.

    Args:
        image: see the file.
        scores: see the file.
        num_iter: see the file.
        dilations: see the file.
        band: rows that are taken together, so that what 16 operations read and write stays in the cache; None for all.
        group: classes that are taken together, 0 for all.
    """
    num_classes, height, width = scores.shape
    reach, group, band = max(dilations), group or len(scores), band or height
    weights, offsets = _weights(image, dilations), _offsets(dilations)
    result = torch.empty_like(scores)
    padded = scores.new_empty(num_classes, height + 2 * reach, width + 2 * reach)
    rows, columns = slice(reach, reach + height), slice(reach, reach + width)
    padded[:, rows, columns] = scores
    for iteration in range(num_iter):
        if iteration > 0:
            padded[:, rows, columns] = result
        padded[:, :reach, columns] = padded[:, reach : reach + 1, columns]
        padded[:, reach + height :, columns] = padded[:, reach + height - 1 : reach + height, columns]
        padded[:, :, :reach] = padded[:, :, reach : reach + 1]
        padded[:, :, reach + width :] = padded[:, :, reach + width - 1 : reach + width]
        for first in range(0, num_classes, group):
            part, into = padded[first : first + group], result[first : first + group]
            for top in range(0, height, band):
                bottom = min(height, top + band)
                target = into[:, top:bottom]
                for tap, (dy, dx) in enumerate(offsets):
                    view = part[:, reach + dy + top : reach + dy + bottom, reach + dx : reach + dx + width]
                    if tap == 0:
                        torch.mul(view, weights[tap, top:bottom], out=target)
                    else:
                        target.addcmul_(view, weights[tap, top:bottom])
    return result


def gathered_rows(image: Tensor, scores: Tensor, num_iter: int, dilations: Sequence[int]) -> Tensor:
    """Classes innermost: a row of pixels at a time, neighbours [W, taps, C] gathered, then a batched product."""
    num_classes, height, width = scores.shape
    weights, offsets = _weights(image, dilations).permute(1, 2, 0).contiguous(), _offsets(dilations)
    rows = torch.stack([(torch.arange(height) + dy).clamp(0, height - 1) for dy, _ in offsets])  # [taps, H]
    columns = torch.stack([(torch.arange(width) + dx).clamp(0, width - 1) for _, dx in offsets])  # [taps, W]
    current = scores.permute(1, 2, 0).reshape(height * width, num_classes)
    for _ in range(num_iter):
        following = torch.empty_like(current)
        for y in range(height):
            index = (rows[:, y : y + 1] * width + columns).t().reshape(-1)  # [W * taps]
            near = current.index_select(0, index).view(width, len(offsets), num_classes)
            torch.bmm(weights[y, :, None], near, out=following[y * width : (y + 1) * width].unsqueeze(1))
        current = following
    return current.view(height, width, num_classes).permute(2, 0, 1).contiguous()
