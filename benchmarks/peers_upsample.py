"""What `joint_bilateral_upsample` is measured against: taps, unfold and bmm, and OpenCV's bilateral filter.

Each takes maps [C, h, w], a guide [3, H, W] float in [0, 1], sigma_spatial, sigma_range and a radius, and returns
[C, H, W]; `labels=True` asks for the index of the best class instead, [H, W].
"""

import torch
from torch import Tensor
from torch.nn.functional import pad, unfold


def _places(num_nodes: int, num_pixels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Cell of every pixel, its offset from that node in nodes, and the pixel under every node."""
    pixel, node = torch.arange(num_pixels), torch.arange(num_nodes)
    cell = ((2 * pixel + 1) * num_nodes) // (2 * num_pixels)
    offset = ((2 * pixel + 1) * num_nodes - (2 * cell + 1) * num_pixels).float() / (2 * num_pixels)
    return cell, offset, ((2 * node + 1) * num_pixels) // (2 * num_nodes)


def taps(maps: Tensor, guide: Tensor, sigma_spatial: float, sigma_range: float, radius: int, *, labels=False) -> Tensor:
    """One pass over the full-size arrays per tap, as one writes it first; two, as the largest exponent comes first."""
    (rows, y, row_centre), (columns, x, column_centre) = (
        _places(n, total) for n, total in zip(maps.shape[1:], guide.shape[1:], strict=True)
    )
    nodes = guide[:, row_centre][:, :, column_centre]
    exponents, sources = [], []
    for dy in range(-radius, radius + 1):
        for dx in range(-radius, radius + 1):
            row, column = rows + dy, columns + dx
            outside = ((row < 0) | (row >= maps.shape[1]))[:, None] | ((column < 0) | (column >= maps.shape[2]))
            row, column = row.clamp(0, maps.shape[1] - 1), column.clamp(0, maps.shape[2] - 1)
            spatial = ((y - dy) ** 2)[:, None] + (x - dx) ** 2
            colour = (guide - nodes[:, row][:, :, column]).square_().sum(0)
            exponent = spatial.mul_(-0.5 / sigma_spatial**2).sub_(colour, alpha=0.5 / sigma_range**2)
            exponents.append(exponent.masked_fill_(outside, -torch.inf))
            sources.append((row, column))
    weights = torch.stack(exponents)
    weights = weights.sub_(weights.amax(0)).exp_()
    weights /= weights.sum(0)
    result = maps.new_zeros(len(maps), *guide.shape[1:])
    for weight, (row, column) in zip(weights, sources, strict=True):
        result.addcmul_(maps[:, row][:, :, column], weight)
    return result.argmax(0) if labels else result


def cells(
    maps: Tensor,
    guide: Tensor,
    sigma_spatial: float,
    sigma_range: float,
    radius: int,
    *,
    rows_at_a_time: int,
    labels=False,
) -> Tensor:
    """Whole factors only: pixels grouped by cell, weights [cells, pixels, taps] times unfolded maps, as one bmm.

    `rows_at_a_time` rows of cells are worked on together, so that the intermediate arrays stay in the cache.
    """
    num_classes, h, w = maps.shape
    fy, fx = guide.shape[1] // h, guide.shape[2] // w
    side = 2 * radius + 1
    (_, y, row_centre), (_, x, column_centre) = _places(h, h * fy), _places(w, w * fx)
    steps = torch.arange(-radius, radius + 1)
    spatial = (y[:fy, None] - steps).square_()[:, None, :, None] + (x[:fx, None] - steps).square_()[None, :, None, :]
    spatial = spatial.mul_(-0.5 / sigma_spatial**2).reshape(1, fy * fx, side * side)
    nodes = guide[:, row_centre][:, :, column_centre]
    padded_nodes = pad(nodes, (radius,) * 4, value=1e4)  # a colour that far off leaves no weight
    padded_maps = pad(maps, (radius,) * 4)
    pixels = guide.reshape(3, h, fy, w, fx)
    if labels:
        result = torch.empty(h, fy, w, fx, dtype=torch.int64)
    else:
        result = maps.new_empty(num_classes, h, fy, w, fx)
    for first in range(0, h, rows_at_a_time):
        count = min(rows_at_a_time, h - first)
        window = slice(first, first + count + 2 * radius)
        near = unfold(padded_nodes[None, :, window], side).reshape(3, side * side, count * w)
        here = pixels[:, first : first + count].permute(0, 1, 3, 2, 4).reshape(3, count * w, fy * fx)
        weights = spatial.repeat(count * w, 1, 1)  # [cells, pixels, taps]
        for colour, node in zip(here, near, strict=True):
            difference = colour[:, :, None] - node.t()[:, None]
            weights.addcmul_(difference, difference, value=-0.5 / sigma_range**2)
        weights = torch.softmax(weights, -1)
        values = unfold(padded_maps[None, :, window], side).reshape(num_classes, side * side, count * w)
        up = torch.bmm(weights, values.permute(2, 1, 0))  # [cells, pixels, classes]
        up = up.reshape(count, w, fy, fx, -1)
        if labels:
            result[first : first + count] = up.argmax(-1).permute(0, 2, 1, 3)
        else:
            result[:, first : first + count] = up.permute(4, 0, 2, 1, 3)
    return result.reshape(*(() if labels else (num_classes,)), h * fy, w * fx)


def cells_classes_first(
    maps: Tensor,
    guide: Tensor,
    sigma_spatial: float,
    sigma_range: float,
    radius: int,
    *,
    rows_at_a_time: int,
    labels=False,
) -> Tensor:
    """The same with classes as the rows of the products, so that rows of pixels are copied out in one piece."""
    num_classes, h, w = maps.shape
    fy, fx = guide.shape[1] // h, guide.shape[2] // w
    side = 2 * radius + 1
    (_, y, row_centre), (_, x, column_centre) = _places(h, h * fy), _places(w, w * fx)
    steps = torch.arange(-radius, radius + 1)
    spatial = (y[:fy] - steps[:, None]).square_()[:, None, :, None] + (x[:fx] - steps[:, None]).square_()[None, :, None]
    spatial = spatial.mul_(-0.5 / sigma_spatial**2).reshape(1, side * side, fy * fx)
    nodes = guide[:, row_centre][:, :, column_centre]
    padded_nodes = pad(nodes, (radius,) * 4, value=1e4)
    padded_maps = pad(maps, (radius,) * 4)
    pixels = guide.reshape(3, h, fy, w, fx)
    if labels:
        result = torch.empty(h, fy, w, fx, dtype=torch.int64)
    else:
        result = maps.new_empty(num_classes, h, fy, w, fx)
    for first in range(0, h, rows_at_a_time):
        count = min(rows_at_a_time, h - first)
        window = slice(first, first + count + 2 * radius)
        near = unfold(padded_nodes[None, :, window], side).reshape(3, side * side, count * w)
        here = pixels[:, first : first + count].permute(0, 1, 3, 2, 4).reshape(3, count * w, fy * fx)
        weights = spatial.repeat(count * w, 1, 1)  # [cells, taps, pixels]
        for colour, node in zip(here, near, strict=True):
            difference = colour[:, None] - node.t()[:, :, None]
            weights.addcmul_(difference, difference, value=-0.5 / sigma_range**2)
        weights = weights.sub_(weights.amax(1, keepdim=True)).exp_()
        weights /= weights.sum(1, keepdim=True)
        values = unfold(padded_maps[None, :, window], side).reshape(num_classes, side * side, count * w)
        up = torch.bmm(values.permute(2, 0, 1), weights)  # [cells, classes, pixels]
        up = up.reshape(count, w, num_classes, fy, fx)
        if labels:
            result[first : first + count] = up.argmax(2).permute(0, 2, 1, 3)
        else:
            result[:, first : first + count] = up.permute(2, 0, 3, 1, 4)
    return result.reshape(*(() if labels else (num_classes,)), h * fy, w * fx)
