"""Definition of `adaptive_conv`, a convolution with its own filter at every pixel, and its gradients, in plain PyTorch.

Written to be read beside the equations, not to be fast. Any float dtype, any device; run it in float64 to get
the numbers that the kernels are held to.
"""

import torch
from torch import Tensor


def adaptive_conv(input: Tensor, filters: Tensor) -> Tensor:
    """A correlation of every channel with the filters of the pixels.

    ::

        out(b, c, y, x) = sum over i < k1, j < k2 of  filters(b, y, x, i, j) * input(b, c, y + i, x + j)

    Args:
        input: [B, C, H + k1 - 1, W + k2 - 1] float.
        filters: [B, H, W, k1, k2], same dtype.

    Returns:
        [B, C, H, W] in the dtype of `input`.
    """
    batch, height, width, rows, columns = filters.shape
    out = input.new_zeros((batch, input.shape[1], height, width))
    for i in range(rows):
        for j in range(columns):
            out += filters[:, None, :, :, i, j] * input[:, :, i : i + height, j : j + width]
    return out


def adaptive_conv_input_backward(v_out: Tensor, filters: Tensor) -> Tensor:
    """The transpose of `adaptive_conv` as a function of `input`.

    ::

        v_input(b, c, y, x) = sum over i, j of  filters(b, y - i, x - j, i, j) * v_out(b, c, y - i, x - j)

    over the i and j for which (y - i, x - j) is a pixel of the result.

    Args:
        v_out: [B, C, H, W] cotangent of the result.
        filters: [B, H, W, k1, k2], same dtype.

    Returns:
        [B, C, H + k1 - 1, W + k2 - 1] cotangent of `input`.
    """
    batch, height, width, rows, columns = filters.shape
    v_input = v_out.new_zeros((batch, v_out.shape[1], height + rows - 1, width + columns - 1))
    for i in range(rows):
        for j in range(columns):
            v_input[:, :, i : i + height, j : j + width] += filters[:, None, :, :, i, j] * v_out
    return v_input


def adaptive_conv_filters_backward(v_out: Tensor, input: Tensor) -> Tensor:
    """The transpose of `adaptive_conv` as a function of `filters`.

    ::

        v_filters(b, y, x, i, j) = sum over c of  v_out(b, c, y, x) * input(b, c, y + i, x + j)

    Args:
        v_out: [B, C, H, W] cotangent of the result.
        input: [B, C, H + k1 - 1, W + k2 - 1], same dtype.

    Returns:
        [B, H, W, k1, k2] cotangent of `filters`; k1 and k2 follow from the shapes.
    """
    batch, _, height, width = v_out.shape
    rows, columns = input.shape[2] - height + 1, input.shape[3] - width + 1
    v_filters = v_out.new_zeros((batch, height, width, rows, columns))
    for i in range(rows):
        for j in range(columns):
            v_filters[..., i, j] = torch.sum(v_out * input[:, :, i : i + height, j : j + width], 1)
    return v_filters
