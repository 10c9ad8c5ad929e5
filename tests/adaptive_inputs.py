"""Inputs of the `adaptive_conv` tests, and a second witness: NumPy, pixel by pixel, in float64."""

import functools

import numpy as np
import torch

# Float32 against float64, as a share of the largest magnitude.
SINGLE = 1e-6
# The same in float64.
DOUBLE = 1e-14

# name -> (B, C, H, W, k1, k2)
CASES = {
    "one number": (1, 1, 1, 1, 1, 1),
    "one pixel": (1, 3, 1, 1, 7, 7),
    "one tap": (2, 3, 5, 9, 1, 1),
    "one row of pixels": (1, 5, 1, 37, 3, 3),
    "one column of pixels": (1, 4, 23, 1, 5, 5),
    "one row of taps": (1, 5, 9, 21, 1, 7),
    "one column of taps": (1, 6, 9, 21, 7, 1),
    "two rows of taps": (1, 7, 9, 21, 2, 3),
    "even": (2, 5, 11, 19, 4, 4),
    "even and wide": (1, 3, 8, 33, 2, 6),
    "FeatUp": (1, 21, 12, 40, 7, 7),
    "FeatUp, a batch": (3, 9, 7, 23, 7, 7),
    "tall": (1, 2, 70, 18, 5, 3),
    "large filters": (1, 3, 6, 20, 13, 17),
    "filters larger than the result": (2, 2, 3, 4, 9, 8),
    "many channels": (1, 70, 5, 17, 3, 3),
}
for _width in (7, 8, 9, 15, 16, 17, 31, 32, 33, 64, 65):
    CASES[f"width {_width}"] = (1, 4, 6, _width, 3, 3)
for _height in (2, 3, 4, 5, 7, 8, 9):
    CASES[f"height {_height}"] = (1, 3, _height, 20, 5, 5)
for _channels in (2, 3, 5, 6, 7, 8, 11, 13):
    CASES[f"{_channels} channels"] = (1, _channels, 5, 18, 5, 4)


@functools.cache
def tensors(name):
    """input, filters, v_out of a case: float64 numbers that float32 holds exactly, with an outlier in each."""
    batch, channels, height, width, rows, columns = CASES[name]
    generator = torch.Generator().manual_seed(sum(CASES[name]))
    shapes = (
        (batch, channels, height + rows - 1, width + columns - 1),
        (batch, height, width, rows, columns),
        (batch, channels, height, width),
    )
    made = [torch.randn(shape, generator=generator).double() for shape in shapes]
    for tensor in made:
        tensor.view(-1)[tensor.numel() // 2] = 20.0
    return tuple(made)


def conv(input, filters):
    """The filter of every pixel times its neighbourhood."""
    input, filters = np.asarray(input, np.float64), np.asarray(filters, np.float64)
    batch, height, width, rows, columns = filters.shape
    out = np.zeros((batch, input.shape[1], height, width))
    for b, y, x in np.ndindex(batch, height, width):
        out[b, :, y, x] = np.einsum("ij,cij->c", filters[b, y, x], input[b, :, y : y + rows, x : x + columns])
    return out


def gradients(input, filters, v_out):
    """Cotangents of input and filters."""
    input, filters, v_out = (np.asarray(tensor, np.float64) for tensor in (input, filters, v_out))
    batch, height, width, rows, columns = filters.shape
    v_input, v_filters = np.zeros(input.shape), np.zeros(filters.shape)
    for b, y, x in np.ndindex(batch, height, width):
        window = (b, slice(None), slice(y, y + rows), slice(x, x + columns))
        v_input[window] += v_out[b, :, y, x, None, None] * filters[b, y, x]
        v_filters[b, y, x] = np.einsum("c,cij->ij", v_out[b, :, y, x], input[window])
    return v_input, v_filters


@functools.cache
def expected(name):
    """The result of a case."""
    return conv(*tensors(name)[:2])


@functools.cache
def expected_gradients(name):
    """Cotangents of input and filters of a case."""
    return gradients(*tensors(name))
