"""Inputs of the `pamr` tests, and the witness: the published module's steps with full tensors, in float64.

Neighbours are made as the module makes them, by dilated convolutions with one-hot kernels over a replicated border, and
kept as [B, C, neighbours, H, W].
"""

import functools

import torch
from torch.nn.functional import conv2d, interpolate, pad, softmax

from ovs_kernels.testing import synthetic_scene

# Float64 against float64, as a share of the largest magnitude.
DOUBLE = 1e-12


def single(num_iter=10):
    """The same for float32. Exponents reach -58 with two dilations, and every iteration uses the rounded weights."""
    return 2e-6 * (num_iter + 4)


# name: classes, channels, size, iterations, dilations
CASES = {
    "defaults": (5, 3, (40, 53), 10, (8, 16)),
    "one dilation": (3, 3, (21, 34), 1, (1,)),
    "visualisation": (2, 3, (37, 61), 3, (1, 2, 4, 8, 12, 24)),
    "three, unsorted, one twice": (4, 3, (25, 19), 4, (5, 1, 5)),
    "five iterations": (21, 3, (33, 47), 5, (8, 16)),
    "wider than a tile": (3, 3, (19, 150), 3, (3, 7)),
    "dilation beyond the image": (3, 3, (9, 7), 3, (2, 50)),
    "one class": (1, 3, (30, 31), 6, (2, 4)),
    "one channel": (6, 1, (17, 40), 2, (1, 3)),
    "seven channels": (9, 7, (18, 33), 2, (2, 9)),
    "one row": (3, 3, (1, 37), 4, (1, 4)),
    "one column": (3, 3, (29, 1), 4, (1, 4)),
    "one pixel": (4, 3, (1, 1), 3, (8, 16)),
    "many iterations": (2, 3, (23, 26), 50, (1, 2)),
    "many classes": (70, 3, (14, 18), 2, (2, 3)),
}


def inputs(num_classes, num_channels, size, seed=1, kind="float"):
    """image [F, H, W] and scores [C, H, W], float32; kind "uint8" for a picture of bytes."""
    generator = torch.Generator().manual_seed(seed)
    scene, _, _ = synthetic_scene(*size, 1, seed)
    noise = torch.rand(num_channels, *size, generator=generator)
    image = (0.7 * scene[torch.arange(num_channels) % 3] + 0.3 * noise).clamp(0, 1)
    scores = torch.randn(num_classes, *size, generator=generator)
    return (255 * image).to(torch.uint8) if kind == "uint8" else image, scores


def case(name, dtype=torch.float32, kind="float"):
    """image, scores and the keyword arguments of a case."""
    num_classes, num_channels, size, num_iter, dilations = CASES[name]
    image, scores = inputs(num_classes, num_channels, size, kind=kind)
    image = image if kind == "uint8" else image.to(dtype)
    return image, scores.to(dtype), {"num_iter": num_iter, "dilations": dilations}


def neighbours(x, dilations, centre):
    """[B, K, H, W] -> [B, K, 8 or 9 per dilation, H, W]."""
    batch, channels, height, width = x.shape
    one_hot = torch.eye(9, dtype=x.dtype, device=x.device).reshape(9, 1, 3, 3)
    kernels = one_hot if centre else one_hot[[0, 1, 2, 3, 5, 6, 7, 8]]
    planes = x.reshape(batch * channels, 1, height, width)
    found = [conv2d(pad(planes, [d] * 4, mode="replicate"), kernels, dilation=d) for d in dilations]
    return torch.cat(found, 1).reshape(batch, channels, -1, height, width)


def gathered(x, dilations, centre):
    """The same by slices of the padded planes, where a one-hot convolution would make NaN of 0 times NaN."""
    height, width = x.shape[-2:]
    found = []
    for d in dilations:
        padded = pad(x, [d] * 4, mode="replicate")
        starts = [(y, x) for y in (0, d, 2 * d) for x in (0, d, 2 * d) if centre or (y, x) != (d, d)]
        found += [padded[..., y : y + height, x : x + width] for y, x in starts]
    return torch.stack(found, 2)


def published_weights(x, dilations):
    """[B, F, H, W] -> [B, 1, neighbours, H, W]."""
    deviation = neighbours(x, dilations, True).std(2, keepdim=True)
    difference = (x[:, :, None] - neighbours(x, dilations, False)).abs()
    return softmax((-difference / (1e-8 + 0.1 * deviation)).mean(1, keepdim=True), 2)


def published(x, mask, num_iter, dilations, neighbours=neighbours):
    """The module's forward: x [B, F, H, W], mask [B, C, h, w] -> [B, C, H, W], in their dtype."""
    if mask.shape[-2:] != x.shape[-2:]:  # else the identity, but for Inf, which it would multiply by 0
        mask = interpolate(mask, size=x.shape[-2:], mode="bilinear", align_corners=True)
    weights = published_weights(x, dilations)
    for _ in range(num_iter):
        mask = (neighbours(mask, dilations, False) * weights).sum(2)
    return mask


def refined(image, scores, num_iter=10, dilations=(8, 16), neighbours=neighbours):
    """What is expected of `pamr` for one image: [F, H, W] (bytes or float), [C, h, w] -> [C, H, W] float64."""
    x = image.double() / 255 if image.dtype == torch.uint8 else image.double()
    return published(x[None], scores.double()[None], num_iter, dilations, neighbours)[0]


@functools.cache
def expected_of(name, kind="float"):
    """`refined` of a case."""
    image, scores, options = case(name, kind=kind)
    return refined(image, scores, **options)


def gradient(image, v_result, num_iter=10, dilations=(8, 16)):
    """The gradient by the scores, by autograd through the published steps: [C, H, W] float64."""
    x = image.double() / 255 if image.dtype == torch.uint8 else image.double()
    leaf = torch.zeros(1, *v_result.shape, dtype=torch.float64, requires_grad=True)
    published(x[None], leaf, num_iter, dilations).backward(v_result.double()[None])
    return leaf.grad[0]
