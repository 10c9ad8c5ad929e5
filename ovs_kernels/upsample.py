"""Upsampling of patch-level maps along the edges of an image."""

import torch
from torch import Tensor

from . import _ops  # noqa: F401  (registers torch.ops.ovs_kernels)
from ._arrays import accepts_arrays


@accepts_arrays("maps", "guide")
def joint_bilateral_upsample(
    maps: Tensor,
    guide: Tensor,
    *,
    sigma_spatial: float = 1.0,
    sigma_range: float = 0.1,
    radius: int = 2,
    labels: bool = False,
    nan_policy: str = "propagate",
) -> Tensor:
    """Upsamples class maps to the size of an image, along its edges: joint bilateral upsampling (JBU).

    A pixel p of the guide lies between the nodes q of the maps. It takes the average of those around it, weighted by
    how near they are and how close the guide's colour at the node is to its own::

        p_low   = (p + 1/2) * (h, w) / (H, W) - 1/2               the pixel in the grid of nodes
        wgt_pq  = exp(-|p_low - q|^2 / (2 sigma_spatial^2) - |I_p - I_centre(q)|^2 / (2 sigma_range^2))
        U_c(p)  = sum_q wgt_pq D_c(q) / sum_q wgt_pq              over the nodes with |q - round(p_low)| <= radius

    round(p_low) and centre(q), the pixel under node q, are the nearest ones, halves rounded up, worked out in
    integers: `round(p_low) = ((2 p + 1) h) // (2 H)` and `centre(q) = ((2 q + 1) H) // (2 h)` along each axis. Nodes
    outside of the grid are skipped. The largest exponent of a pixel is subtracted from all, so the sum of its weights
    is at least 1, however far its colour is from all others.

    Args:
        maps: [C, h, w] or [B, C, h, w] float, any scale: class maps on a grid of patches.
        guide: [3, H, W] or [B, 3, H, W], like `maps`: the image, float in [0, 1] or uint8, with H >= h and W >= w. Any
            ratio, H/h and W/w may differ and need not be whole; with H = h, W = w this is a joint bilateral filter.
        sigma_spatial: standard deviation of the distance, in nodes.
        sigma_range: standard deviation of the colour distance, for colours in [0, 1].
        radius: of the window in nodes, 0 to 15: (2 radius + 1)^2 nodes per pixel.
        labels: return the index of the best class instead of maps; never writes C x H x W.
        nan_policy: "propagate": a NaN in a map reaches all pixels that have it in their window. "omit": it counts as
            missing for its class, and the other nodes share its weight; NaN only where none is left.

    Returns:
        [C, H, W] in the dtype of `maps`; or with `labels` [H, W], uint8 for at most 255 classes, else int32. With a
        batch axis if the maps have one.

    Raises:
        TypeError: wrong kind or dtype of an argument.
        ValueError: wrong shape, range or device of an argument; a guide smaller than the maps.
        RuntimeError: CUDA tensors, and a build without CUDA or for other cards.

    Devices/dtypes: CPU and CUDA; float32, float64, float16 and bfloat16 (computed in float32).
    Differentiable: by `maps`, any number of times (the function is linear). Not by `guide`, not with `labels`.
    Deterministic: yes, forward and backward, on CPU for any number of threads. Ties between labels go to the smallest
        index.
    Non-finite: weights are positive in exact arithmetic, so an Inf in a map reaches all pixels that have it in their
        window, with its sign, and meets an opposite one as NaN. In labels a class that is NaN or -inf never wins; where
        all are, the label is 0. A node or pixel with a NaN or Inf in the guide has no colour: such a node has no
        weight, such a pixel (and one whose nodes are all such) goes by distance alone.
    Memory: beyond the result, two copies of the maps and, per thread on a CPU, the weights of a tile of pixels.
    Reference: joint bilateral upsampling (Kopf et al. 2007) as DSLO uses it. See `ovs_kernels.reference.upsample`.

    Example:
        >>> import torch, ovs_kernels
        >>> guide = torch.zeros(3, 2, 6)
        >>> guide[:, :, 2:] = 1.0                                    # an edge between columns 1 and 2
        >>> maps = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])        # two nodes of 3 x 2 pixels
        >>> ovs_kernels.joint_bilateral_upsample(maps, guide, labels=True).tolist()
        [[0, 0, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1]]
    """
    return torch.ops.ovs_kernels.joint_bilateral_upsample(
        maps, guide, sigma_spatial, sigma_range, radius, labels, nan_policy
    )
