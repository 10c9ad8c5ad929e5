"""A convolution with its own filter at every pixel: the operator of FeatUp's learned upsampler."""

import torch
from torch import Tensor

from . import _ops  # noqa: F401  (registers torch.ops.ovs_kernels)
from ._arrays import accepts_arrays


@accepts_arrays("input", "filters")
def adaptive_conv(input: Tensor, filters: Tensor) -> Tensor:
    """Correlates every channel of an image with filters that differ from pixel to pixel and are shared by the channels.

    ::

        out(b, c, y, x) = sum over i < k1, j < k2 of  filters(b, y, x, i, j) * input(b, c, y + i, x + j)

    Nothing is padded: the input is larger than the result by the filter less one, as FeatUp's `AdaptiveConv.apply`
    takes it (there k1 = k2). Neighbourhoods are never written out, and the filters are read once.

    Args:
        input: [B, C, H + k1 - 1, W + k2 - 1] float, any strides.
        filters: [B, H, W, k1, k2], same dtype and device; k1 and k2 may differ and may be even. One set of filters
            for a whole batch: `filters.expand(B, -1, -1, -1, -1)`.

    Returns:
        [B, C, H, W] in the dtype of `input`.

    Raises:
        TypeError: wrong kind or dtype of an argument, or two dtypes.
        ValueError: wrong shape or device of an argument, or filters without a tap.

    Devices/dtypes: CPU and CUDA; float32, float64, float16 and bfloat16 (computed in float32).
    Differentiable: by `input` and by `filters`, any number of times (the function is linear in each).
    Deterministic: yes, forward and both gradients, on CPU for any number of threads.
    Non-finite: a NaN or Inf reaches the pixels whose filter covers it, a tap of weight 0 included.
    Memory: on CPU about 3.3 kB per tap and thread; on CUDA nothing. float16 and bfloat16 arguments are copied to
        float32 first.
    Reference: `AdaptiveConv` of FeatUp (Fu et al., ICLR 2024). See `ovs_kernels.reference.adaptive`.

    Example:
        >>> import torch, ovs_kernels
        >>> image = torch.tensor([1.0, 2.0, 3.0, 4.0]).reshape(1, 1, 1, 4)
        >>> left, both = [1.0, 0.0], [0.5, 0.5]
        >>> filters = torch.tensor([left, both, both]).reshape(1, 1, 3, 1, 2)   # one filter of 1 x 2 per pixel
        >>> ovs_kernels.adaptive_conv(image, filters).flatten().tolist()
        [1.0, 2.5, 3.5]
    """
    return torch.ops.ovs_kernels.adaptive_conv(input, filters)
