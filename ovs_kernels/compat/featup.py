"""FeatUp's operator and its learned upsampler under their published names, without an extension to compile.

`AdaptiveConv` stands in `featup/adaptive_conv_cuda/adaptive_conv.py`, the modules in `featup/upsamplers.py`;
`JBUOne` is the variant of SegEarth-OV (`simfeatup_dev/upsamplers.py`). State dicts of the published modules load.
"""

import abc

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .._checks import (
    FLOATS,
    expect_choice,
    expect_dtype,
    expect_integer,
    expect_shape,
    expect_tensor,
    same_device,
    wrong_value,
)
from ..adaptive import adaptive_conv

__all__ = ["AdaptiveConv", "Bilinear", "JBULearnedRange", "JBUOne", "JBUStack", "adaptive_conv", "get_upsampler"]

# The published bounds of the temperature and of the sum that kernels are divided by.
TEMPERATURES = (1e-4, 1e4)
SMALLEST_SUM = 1e-7


class AdaptiveConv:
    """`AdaptiveConv.apply(input, filters)`, see `ovs_kernels.adaptive_conv`; gradients of any order."""

    @staticmethod
    def apply(input: Tensor, filters: Tensor) -> Tensor:
        """[B, C, H + k - 1, W + k - 1] and [B, H, W, k, k] -> [B, C, H, W]."""
        return adaptive_conv(input, filters)


class JBULearnedRange(nn.Module):
    """One step of FeatUp's joint bilateral upsampler, whose range kernel is learned.

    ::

        z      = range_proj(guidance)
        range  = softmax over the taps o of exp(range_temp) <z(p + o), z(p)>
        kernel = range * exp(-|o / radius|^2 / (2 sigma_spatial^2)),   divided by its sum
        kernel = kernel + 0.1 fixup_proj(kernel, guidance)
        out(p) = sum over o of kernel(p, o) source(p + o)              source: enlarged to the guidance, bicubic

    Neighbourhoods are never written out, neither those of the source nor those of z.

    Args:
        guidance_dim: channels of the guidance.
        feat_dim: channels of the source; only remembered.
        key_dim: channels of z.
        scale: only remembered, as published: the size of the guidance decides.
        radius: of the window, (2 radius + 1)^2 taps.

    Shapes:
        source [B, C, h, w] and guidance [B, guidance_dim, H, W], H and W above `radius` -> [B, C, H, W] in the dtype of
        the source.

    Dtypes: float32, float64; half precision with or without `torch.autocast`, the kernels in float32.
    Differentiable: by all parameters, by source and by guidance.
    Deterministic: as `adaptive_conv` and torch's convolutions; dropout in training draws what the published module
        draws.
    """

    def __init__(self, guidance_dim: int, feat_dim: int, key_dim: int, scale: int = 2, radius: int = 3):
        super().__init__()
        op = type(self).__name__
        self.scale = scale
        self.radius = expect_integer(op, "radius", radius, 0)
        self.diameter = 2 * self.radius + 1
        self.guidance_dim = expect_integer(op, "guidance_dim", guidance_dim, 1)
        self.key_dim = expect_integer(op, "key_dim", key_dim, 1)
        self.feat_dim = feat_dim
        taps = self.diameter**2
        self.range_temp = nn.Parameter(torch.tensor(0.0))
        self.range_proj = _perceptron(self.guidance_dim, self.key_dim)
        self.fixup_proj = _perceptron(self.guidance_dim + taps, taps)
        self.sigma_spatial = nn.Parameter(torch.tensor(1.0))

    def get_range_kernel(self, x: Tensor) -> Tensor:
        """[B, guidance_dim, H, W] -> [B, taps, H, W], the taps in rows."""
        # 1 x 1 convolutions are fastest with the channels innermost, the products with them outermost.
        keys = _at_least_single(self.range_proj(x.contiguous(memory_format=torch.channels_last))).contiguous()
        temperature = self.range_temp.exp().clamp(*TEMPERATURES)
        # <z(p + o), z(p)> for every tap is what adaptive_conv's gradient by its filters computes.
        products = torch.ops.ovs_kernels.adaptive_conv_filters_backward(
            temperature * keys, _surrounded(keys, self.radius)
        )
        return products.flatten(3).softmax(-1).permute(0, 3, 1, 2)

    def get_spatial_kernel(self, device: torch.device | None = None) -> Tensor:
        """[1, taps, 1, 1]."""
        sigma = _at_least_single(self.sigma_spatial)
        places = torch.linspace(-1, 1, self.diameter, dtype=sigma.dtype, device=device or sigma.device)
        squares = places.square()[:, None] + places.square()
        return torch.exp(-squares / (2 * sigma**2)).reshape(1, -1, 1, 1)

    def forward(self, source: Tensor, guidance: Tensor) -> Tensor:
        """Upsamples `source` along the edges of `guidance`."""
        self._check(source, guidance)
        height, width = guidance.shape[2:]
        kernel = self.get_range_kernel(guidance) * self.get_spatial_kernel(guidance.device)
        kernel = kernel / kernel.sum(1, keepdim=True).clamp(SMALLEST_SUM)
        around = guidance.contiguous(memory_format=torch.channels_last)  # as the kernel, taps innermost
        both = torch.cat((kernel, around), 1).to(next(self.fixup_proj.parameters()).dtype)
        kernel = kernel + 0.1 * self.fixup_proj(both)
        filters = kernel.permute(0, 2, 3, 1).unflatten(3, (self.diameter, self.diameter))
        large = F.interpolate(source, (height, width), mode="bicubic", align_corners=False)
        padded = _surrounded(large, self.radius)  # float32 under torch.autocast
        return adaptive_conv(padded, filters.to(padded.dtype)).to(source.dtype)

    def _check(self, source: Tensor, guidance: Tensor) -> None:
        op = type(self).__name__
        expect_dtype(op, "source", expect_tensor(op, "source", source), FLOATS)
        sizes = expect_shape(op, "source", source, "B, C, h, w")
        expect_dtype(op, "guidance", expect_tensor(op, "guidance", guidance), FLOATS)
        pattern = f"B, {self.guidance_dim}, H, W"
        sizes |= expect_shape(op, "guidance", guidance, pattern, {"B": sizes["B"]}, "source")
        same_device(op, source=source, guidance=guidance)
        if min(guidance.shape[2:]) <= self.radius:
            got = f"{guidance.shape[2]} x {guidance.shape[3]}"
            wrong_value(op, "guidance", f"more than radius={self.radius} pixels in height and width", got)


class _Stack(nn.Module, abc.ABC):
    """Four steps, each doubling the size, and a residual correction."""

    fixup_proj: nn.Module

    @abc.abstractmethod
    def steps(self) -> list[JBULearnedRange]:
        """From coarse to fine."""

    def upsample(self, source: Tensor, guidance: Tensor, up: JBULearnedRange) -> Tensor:
        """One step to twice the size of `source`."""
        height, width = source.shape[2:]
        return up(source, F.adaptive_avg_pool2d(guidance, (2 * height, 2 * width)))

    def forward(self, source: Tensor, guidance: Tensor) -> Tensor:
        """[B, feat_dim, h, w] and [B, 3, H, W] of any size -> [B, feat_dim, 16 h, 16 w]."""
        expect_shape(type(self).__name__, "source", source, "B, C, h, w")
        expect_shape(type(self).__name__, "guidance", guidance, "B, 3, H, W", {"B": source.shape[0]}, "source")
        for up in self.steps():
            source = self.upsample(source, guidance, up)
        return self.fixup_proj(source) * 0.1 + source


class JBUStack(_Stack):
    """FeatUp's upsampler: four steps with a kernel each, to 16 times the size.

    Args:
        feat_dim: channels of the features.
        args: ignored, as `kwargs`.

    Shapes:
        source [B, feat_dim, h, w], guidance [B, 3, H, W] -> [B, feat_dim, 16 h, 16 w].
    """

    def __init__(self, feat_dim: int, *args: object, **kwargs: object):
        super().__init__()
        self.up1, self.up2, self.up3, self.up4 = (JBULearnedRange(3, feat_dim, 32, radius=3) for _ in range(4))
        self.fixup_proj = _correction(feat_dim)

    def steps(self) -> list[JBULearnedRange]:
        """From coarse to fine."""
        return [self.up1, self.up2, self.up3, self.up4]


class JBUOne(_Stack):
    """SegEarth-OV's upsampler: four steps with the same kernel of radius 5. Arguments and shapes as `JBUStack`."""

    def __init__(self, feat_dim: int, *args: object, **kwargs: object):
        super().__init__()
        self.up = JBULearnedRange(3, feat_dim, 32, radius=5)
        self.fixup_proj = _correction(feat_dim)

    def steps(self) -> list[JBULearnedRange]:
        """Four times the same."""
        return [self.up] * 4


class Bilinear(nn.Module):
    """FeatUp's baseline: bilinear to the size of the image; ignores all arguments of its constructor."""

    def __init__(self, *args: object, **kwargs: object):
        super().__init__()

    def forward(self, feats: Tensor, img: Tensor) -> Tensor:
        """[B, C, h, w] and [B, F, H, W] -> [B, C, H, W]."""
        return F.interpolate(feats, img.shape[2:], mode="bilinear")


def get_upsampler(upsampler: str, dim: int) -> nn.Module:
    """The module of a published name: "jbu_stack", "jbu_one" or "bilinear"."""
    known = {"jbu_stack": JBUStack, "jbu_one": JBUOne, "bilinear": Bilinear}
    return known[expect_choice("get_upsampler", "upsampler", upsampler, tuple(known))](dim)


def _perceptron(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1), nn.GELU(), nn.Dropout2d(0.1), nn.Conv2d(outputs, outputs, 1))


def _correction(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Dropout2d(0.2), nn.Conv2d(channels, channels, 1))


def _at_least_single(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _surrounded(x: Tensor, radius: int) -> Tensor:
    return F.pad(x, [radius] * 4, mode="reflect")
