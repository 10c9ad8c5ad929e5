"""Definition of `joint_bilateral_upsample` in plain PyTorch.

Written to be read beside the equations, not to be fast. Any float dtype, any device; run it in float64 to get
the numbers that the kernels are held to.
"""

import dataclasses
import math
from collections.abc import Iterator

import torch
from torch import Tensor

# Smaller ones act like this one: their squares would leave float32.
SMALLEST_SIGMA = 2.0**-50


@dataclasses.dataclass(frozen=True)
class Axis:
    """Where pixels and nodes of one axis lie. All of it in integers, so that no rounding can differ.

    ::

        p_low(y)  = (y + 1/2) n / N - 1/2                      position of pixel y among n nodes, N pixels
        cell(y)   = floor(p_low + 1/2) = ((2 y + 1) n) // (2 N)         the nearest node, halves rounded up
        centre(q) = floor((q + 1/2) N / n) = ((2 q + 1) N) // (2 n)     the pixel under node q, halves rounded up

    Attributes:
        cell: [N] int64, in [0, n).
        centre: [n] int64, in [0, N).
    """

    num_nodes: int
    num_pixels: int
    cell: Tensor
    centre: Tensor

    @staticmethod
    def of(num_nodes: int, num_pixels: int, device: torch.device) -> "Axis":
        """The axis with n nodes and N pixels."""
        pixel = torch.arange(num_pixels, device=device)
        node = torch.arange(num_nodes, device=device)
        cell = ((2 * pixel + 1) * num_nodes) // (2 * num_pixels)
        centre = ((2 * node + 1) * num_pixels) // (2 * num_nodes)
        return Axis(num_nodes, num_pixels, cell, centre)

    def tap(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """The node `step` beside that of each pixel: index [N] (kept in the grid), in the grid? [N], distance [N]."""
        node = self.cell + step
        inside = (node >= 0) & (node < self.num_nodes)
        pixel = torch.arange(self.num_pixels, device=node.device)
        numerator = (2 * pixel + 1) * self.num_nodes - (2 * node + 1) * self.num_pixels
        return node.clamp(0, self.num_nodes - 1), inside, numerator.double() / (2 * self.num_pixels)


@dataclasses.dataclass(frozen=True)
class Tap:
    """One offset of the window, for all pixels.

    Attributes:
        rows: [H] node row of each pixel row.
        columns: [W] node column of each pixel column.
        inside: [H, W] whether that node exists.
        exponent: [B, 1, H, W] logarithm of the weight; -inf where the tap has no say.
    """

    rows: Tensor
    columns: Tensor
    inside: Tensor
    exponent: Tensor

    def values(self, maps: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, C, H, W]."""
        return maps[..., self.rows, :][..., self.columns]


def window_taps(
    guide: Tensor, size: tuple[int, int], *, sigma_spatial: float, sigma_range: float, radius: int
) -> list[Tap]:
    """All taps of the window with their exponents.

    ::

        e(p, q) = -|p_low - q|^2 / (2 sigma_spatial^2) - |I_p - I_centre(q)|^2 / (2 sigma_range^2)

    for the nodes q of the grid with |q - cell(p)| <= radius along both axes. A tap whose colour distance is not
    finite (a NaN or Inf in the guide) has no say; a pixel that no tap is left of goes by the spatial part alone.

    Args:
        guide: [B, 3, H, W] float.
        size: h, w.
        sigma_spatial: in nodes.
        sigma_range: in units of the guide.
        radius: of the window, in nodes.

    Returns:
        (2 radius + 1)^2 taps.
    """
    rows, columns = (Axis.of(n, total, guide.device) for n, total in zip(size, guide.shape[-2:], strict=True))
    spatial_factor, range_factor = (
        0.5 / max(sigma, SMALLEST_SIGMA) / max(sigma, SMALLEST_SIGMA) for sigma in (sigma_spatial, sigma_range)
    )
    node_colours = guide[..., rows.centre, :][..., columns.centre]
    taps, spatial_parts = [], []
    for dy in range(-radius, radius + 1):
        for dx in range(-radius, radius + 1):
            row, row_inside, row_distance = rows.tap(dy)
            column, column_inside, column_distance = columns.tap(dx)
            inside = row_inside[:, None] & column_inside
            squared = row_distance[:, None].square() + column_distance.square()
            spatial = torch.where(inside, (-spatial_factor * squared).to(guide.dtype), -math.inf)
            tap = Tap(row, column, inside, spatial)
            range_part = -range_factor * (guide - tap.values(node_colours)).square().sum(1, keepdim=True)
            exponent = torch.where(torch.isfinite(range_part), spatial + range_part, -math.inf)
            taps.append(dataclasses.replace(tap, exponent=exponent))
            spatial_parts.append(spatial)
    best = torch.stack([tap.exponent for tap in taps]).amax(0)
    return [
        dataclasses.replace(tap, exponent=torch.where(best == -math.inf, spatial, tap.exponent))
        for tap, spatial in zip(taps, spatial_parts, strict=True)
    ]


def _weights(taps: list[Tap], maps: Tensor | None) -> Iterator[tuple[Tap, Tensor]]:
    """Every tap with its weight, [B, 1, H, W], divided by the sum over the taps.

    With `maps` (nan_policy="omit") a tap whose value is NaN has weight zero for that class, and weights are
    [B, C, H, W]. Exponents are shifted by the largest one, which changes nothing and keeps the sum at 1 or above.
    A pixel without any tap left has NaN weights.
    """
    exponents = [
        tap.exponent if maps is None else torch.where(torch.isnan(tap.values(maps)), -math.inf, tap.exponent)
        for tap in taps
    ]
    best = exponents[0]
    for exponent in exponents[1:]:
        best = torch.maximum(best, exponent)
    weights = [torch.where(exponent == -math.inf, 0.0, torch.exp(exponent - best)) for exponent in exponents]
    total = sum(weights)
    for tap, weight in zip(taps, weights, strict=True):
        yield tap, weight / total


def joint_bilateral_upsample(
    maps: Tensor, guide: Tensor, *, sigma_spatial: float, sigma_range: float, radius: int, omit: bool
) -> Tensor:
    """Upsamples maps along the edges of a guide image.

    ::

        w(p, q) = exp(e(p, q))                                     e: see `window_taps`
        U_c(p)  = sum_q w(p, q) D_c(q) / sum_q w(p, q)

    In exact arithmetic all weights are positive, so an infinite D_c(q) makes U_c(p) infinite however small w(p, q)
    is, and a NaN makes it NaN: values that are not finite are added with weight 1. With `omit` a NaN is left out of
    both sums instead; U_c(p) is NaN where nothing else is left.

    Args:
        maps: [B, C, h, w] float.
        guide: [B, 3, H, W] in the dtype of `maps`.
        sigma_spatial: in nodes.
        sigma_range: in units of the guide.
        radius: of the window, in nodes.
        omit: whether a NaN counts as missing.

    Returns:
        [B, C, H, W] in the dtype of `maps`.
    """
    taps = window_taps(
        guide, tuple(maps.shape[-2:]), sigma_spatial=sigma_spatial, sigma_range=sigma_range, radius=radius
    )
    result = maps.new_zeros((*maps.shape[:2], *guide.shape[-2:]))
    for tap, weight in _weights(taps, maps if omit else None):
        value = tap.values(maps)
        infinite = ~torch.isfinite(value) & tap.inside
        if omit:
            infinite = infinite & ~torch.isnan(value)
        result += torch.where(torch.isfinite(value), weight * value, 0.0) + torch.where(infinite, value, 0.0)
        if omit:
            result = torch.where(torch.isnan(weight), math.nan, result)
    return result


def joint_bilateral_upsample_backward(
    v_up: Tensor,
    guide: Tensor,
    missing: Tensor | None,
    size: tuple[int, int],
    *,
    sigma_spatial: float,
    sigma_range: float,
    radius: int,
) -> Tensor:
    """The transpose of `joint_bilateral_upsample`, which is linear in the maps.

    Args:
        v_up: [B, C, H, W] cotangent of the result.
        guide: [B, 3, H, W] in the dtype of `v_up`.
        missing: [B, C, h, w] bool, where the maps were NaN under nan_policy="omit"; None for "propagate".
        size: h, w.
        sigma_spatial: in nodes.
        sigma_range: in units of the guide.
        radius: of the window, in nodes.

    Returns:
        [B, C, h, w] cotangent of the maps, zero where they are missing.
    """
    taps = window_taps(guide, size, sigma_spatial=sigma_spatial, sigma_range=sigma_range, radius=radius)
    maps = None if missing is None else torch.where(missing, math.nan, v_up.new_zeros(missing.shape))
    v_maps = v_up.new_zeros((*v_up.shape[:2], *size))
    for tap, weight in _weights(taps, maps):
        share = torch.where(tap.inside & ~torch.isnan(weight), weight * v_up, 0.0)
        if maps is not None:
            share = torch.where(torch.isnan(tap.values(maps)), 0.0, share)
        by_row = v_up.new_zeros((*v_up.shape[:2], size[0], v_up.shape[-1])).index_add_(2, tap.rows, share)
        v_maps.index_add_(3, tap.columns, by_row)
    return v_maps


def best_class(up: Tensor) -> Tensor:
    """Index of the largest value; a NaN never wins, the smallest index wins a tie.

    Args:
        up: [B, C, H, W].

    Returns:
        [B, H, W], uint8 for at most 255 classes and int32 above. 0 where every class is NaN or -inf.
    """
    best = torch.where(torch.isnan(up), -math.inf, up).argmax(1)
    return best.to(torch.uint8 if up.shape[1] <= 255 else torch.int32)
