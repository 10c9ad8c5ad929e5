"""What `adaptive_conv` is measured against: neighbourhoods written out, taps one by one, batches of small products.

Each takes input [B, C, H + k1 - 1, W + k2 - 1] and filters [B, H, W, k1, k2] and returns [B, C, H, W]. The gradients
take the cotangent [B, C, H, W] and the other argument.
"""

import torch
from torch import Tensor
from torch.nn.functional import unfold


def written_out(input: Tensor, filters: Tensor) -> Tensor:
    """What FeatUp's author offers those who cannot compile its extension: `unfold`, then one contraction."""
    batch, height, width, rows, columns = filters.shape
    patches = unfold(input, (rows, columns)).view(batch, input.shape[1], rows * columns, height, width)
    return torch.einsum("bhwf,bcfhw->bchw", filters.reshape(batch, height, width, rows * columns), patches)


def taps(input: Tensor, filters: Tensor, band: int) -> Tensor:
    """One in-place fused multiply-add per tap over shifted views, in bands of rows that stay in the cache.

    The filters of a band are turned first, so that a tap is a plane.
    """
    batch, height, width, rows, columns = filters.shape
    out = input.new_empty(batch, input.shape[1], height, width)
    for y in range(0, height, band):
        count = min(band, height - y)
        planes = filters[:, y : y + count].permute(3, 4, 0, 1, 2).contiguous()[:, :, :, None]
        part = out[:, :, y : y + count]
        for i in range(rows):
            for j in range(columns):
                shifted = input[:, :, y + i : y + i + count, j : j + width]
                if i == j == 0:
                    torch.mul(shifted, planes[0, 0], out=part)
                else:
                    part.addcmul_(shifted, planes[i, j])
    return out


def taps_channels_last(input: Tensor, filters: Tensor, band: int) -> Tensor:
    """The same with the channels innermost: a tap is one number per pixel that all channels share."""
    batch, height, width, rows, columns = filters.shape
    pixels = input.permute(0, 2, 3, 1).contiguous()
    out = input.new_empty(batch, height, width, input.shape[1])
    for y in range(0, height, band):
        count = min(band, height - y)
        planes = filters[:, y : y + count].permute(3, 4, 0, 1, 2).contiguous()[..., None]
        part = out[:, y : y + count]
        for i in range(rows):
            for j in range(columns):
                shifted = pixels[:, y + i : y + i + count, j : j + width]
                if i == j == 0:
                    torch.mul(shifted, planes[0, 0], out=part)
                else:
                    part.addcmul_(shifted, planes[i, j])
    return out.permute(0, 3, 1, 2).contiguous()


def products(input: Tensor, filters: Tensor) -> Tensor:
    """One product [1, k1 k2] x [k1 k2, C] per pixel, channels innermost, the neighbourhoods of one row at a time."""
    batch, height, width, rows, columns = filters.shape
    channels = input.shape[1]
    pixels = input.permute(0, 2, 3, 1).contiguous()
    out = input.new_empty(batch, height, width, channels)
    for b in range(batch):
        for y in range(height):
            windows = pixels[b, y : y + rows].unfold(1, columns, 1).permute(1, 0, 3, 2)  # [W, k1, k2, C], a view
            weights = filters[b, y].reshape(width, 1, rows * columns)
            torch.bmm(weights, windows.reshape(width, rows * columns, channels), out=out[b, y].view(width, 1, channels))
    return out.permute(0, 3, 1, 2).contiguous()


def input_gradient_taps(v_out: Tensor, filters: Tensor) -> Tensor:
    """One in-place fused multiply-add per tap into shifted views, filters turned first."""
    batch, height, width, rows, columns = filters.shape
    v_input = v_out.new_zeros(batch, v_out.shape[1], height + rows - 1, width + columns - 1)
    planes = filters.permute(3, 4, 0, 1, 2).contiguous()[:, :, :, None]
    for i in range(rows):
        for j in range(columns):
            v_input[:, :, i : i + height, j : j + width].addcmul_(v_out, planes[i, j])
    return v_input


def filters_gradient_taps(v_out: Tensor, input: Tensor, band: int) -> Tensor:
    """One product and sum over channels per tap, in bands of rows; a plane per tap, turned back at the end."""
    batch, _, height, width = v_out.shape
    rows, columns = input.shape[2] - height + 1, input.shape[3] - width + 1
    v_filters = v_out.new_empty(batch, height, width, rows, columns)
    for y in range(0, height, band):
        count = min(band, height - y)
        part = v_out[:, :, y : y + count]
        planes = v_out.new_empty(rows, columns, batch, count, width)
        for i in range(rows):
            for j in range(columns):
                shifted = input[:, :, y + i : y + i + count, j : j + width]
                torch.sum(part * shifted, 1, out=planes[i, j])
        v_filters[:, y : y + count] = planes.permute(2, 3, 4, 0, 1)
    return v_filters


def filters_gradient_products(v_out: Tensor, input: Tensor) -> Tensor:
    """One product [1, C] x [C, k1 k2] per pixel, the neighbourhoods of one row at a time."""
    batch, channels, height, width = v_out.shape
    rows, columns = input.shape[2] - height + 1, input.shape[3] - width + 1
    v_filters = v_out.new_empty(batch, height, width, rows, columns)
    for b in range(batch):
        for y in range(height):
            windows = input[b, :, y : y + rows].unfold(2, columns, 1).permute(2, 0, 1, 3)  # [W, C, k1, k2], a view
            found = torch.bmm(
                v_out[b, :, y].t().reshape(width, 1, channels), windows.reshape(width, channels, rows * columns)
            )
            v_filters[b, y] = found.view(width, rows, columns)
    return v_filters
