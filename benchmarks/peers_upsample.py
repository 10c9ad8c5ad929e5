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


def _rows_of_cells(maps: Tensor, guide: Tensor, radius: int, rows_at_a_time: int):
    """Whole factors only: for `rows_at_a_time` rows of cells after another, so that what follows stays in the cache.

    Yields the rows (a slice), colours of the pixels [3, cells, pixels], and around each cell colours of the nodes
    [3, taps, cells] and the maps [C, taps, cells]. Taps outside of the maps have a colour that leaves no weight.
    """
    num_classes, h, w = maps.shape
    fy, fx = guide.shape[1] // h, guide.shape[2] // w
    side = 2 * radius + 1
    row_centre, column_centre = _places(h, h * fy)[2], _places(w, w * fx)[2]
    padded_nodes = pad(guide[:, row_centre][:, :, column_centre], (radius,) * 4, value=1e4)
    padded_maps = pad(maps, (radius,) * 4)
    pixels = guide.reshape(3, h, fy, w, fx)
    for first in range(0, h, rows_at_a_time):
        count = min(rows_at_a_time, h - first)
        window = slice(first, first + count + 2 * radius)
        here = pixels[:, first : first + count].permute(0, 1, 3, 2, 4).reshape(3, count * w, fy * fx)
        near = unfold(padded_nodes[None, :, window], side).reshape(3, side * side, count * w)
        values = unfold(padded_maps[None, :, window], side).reshape(num_classes, side * side, count * w)
        yield slice(first, first + count), here, near, values


def _spatial_exponents(maps: Tensor, guide: Tensor, radius: int, sigma: float) -> Tensor:
    """[pixels of a cell, taps], the same for every cell."""
    (h, w), (height, width) = maps.shape[1:], guide.shape[1:]
    y, x = _places(h, height)[1][: height // h], _places(w, width)[1][: width // w]
    steps = torch.arange(-radius, radius + 1)
    squares = (y[:, None] - steps).square_()[:, None, :, None] + (x[:, None] - steps).square_()[None, :, None, :]
    return squares.mul_(-0.5 / sigma**2).reshape(len(y) * len(x), len(steps) ** 2)


def _empty_cells(maps: Tensor, guide: Tensor, labels: bool) -> Tensor:
    """The result by cells: [h, fy, w, fx] labels, or [C, h, fy, w, fx]."""
    num_classes, h, w = maps.shape
    shape = (h, guide.shape[1] // h, w, guide.shape[2] // w)
    return torch.empty(shape, dtype=torch.int64) if labels else maps.new_empty(num_classes, *shape)


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
    """Pixels grouped by cell, weights [cells, pixels, taps] times unfolded maps, as one bmm."""
    spatial = _spatial_exponents(maps, guide, radius, sigma_spatial)
    result = _empty_cells(maps, guide, labels)
    fy, w, fx = result.shape[-3:]
    for rows, here, near, values in _rows_of_cells(maps, guide, radius, rows_at_a_time):
        weights = spatial.repeat(here.shape[1], 1, 1)  # [cells, pixels, taps]
        for colour, node in zip(here, near, strict=True):
            difference = colour[:, :, None] - node.t()[:, None]
            weights.addcmul_(difference, difference, value=-0.5 / sigma_range**2)
        weights = torch.softmax(weights, -1)
        up = torch.bmm(weights, values.permute(2, 1, 0))  # [cells, pixels, classes]
        up = up.reshape(-1, w, fy, fx, len(maps))
        if labels:
            result[rows] = up.argmax(-1).permute(0, 2, 1, 3)
        else:
            result[:, rows] = up.permute(4, 0, 2, 1, 3)
    return result.reshape(*result.shape[:-4], *guide.shape[1:])


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
    spatial = _spatial_exponents(maps, guide, radius, sigma_spatial).t()
    result = _empty_cells(maps, guide, labels)
    fy, w, fx = result.shape[-3:]
    for rows, here, near, values in _rows_of_cells(maps, guide, radius, rows_at_a_time):
        weights = spatial.repeat(here.shape[1], 1, 1)  # [cells, taps, pixels]
        for colour, node in zip(here, near, strict=True):
            difference = colour[:, None] - node.t()[:, :, None]
            weights.addcmul_(difference, difference, value=-0.5 / sigma_range**2)
        weights = weights.sub_(weights.amax(1, keepdim=True)).exp_()
        weights /= weights.sum(1, keepdim=True)
        up = torch.bmm(values.permute(2, 0, 1), weights)  # [cells, classes, pixels]
        up = up.reshape(-1, w, len(maps), fy, fx)
        if labels:
            result[rows] = up.argmax(2).permute(0, 2, 1, 3)
        else:
            result[:, rows] = up.permute(2, 0, 3, 1, 4)
    return result.reshape(*result.shape[:-4], *guide.shape[1:])
