"""FeatUp's upsamplers as published, neighbourhoods written out by `unfold`: what `compat.featup` has to compute."""

import torch
from torch import nn
from torch.nn import functional


def adaptive_conv(padded, filters):
    """padded [B, C, H + k - 1, W + k - 1], filters [B, H, W, k, k] -> [B, C, H, W]."""
    batch, height, width, side, _ = filters.shape
    channels = padded.shape[1]
    patches = functional.unfold(padded, side).reshape(batch, channels, side * side, height, width)
    return torch.einsum("bhwt,bcthw->bchw", filters.reshape(batch, height, width, side * side), patches)


def reflected(x, radius):
    return functional.pad(x, (radius, radius, radius, radius), mode="reflect")


class LearnedRange(nn.Module):
    """One step."""

    def __init__(self, guidance_dim, key_dim, radius):
        super().__init__()
        self.radius, self.side = radius, 2 * radius + 1
        taps = self.side**2
        self.range_temp = nn.Parameter(torch.tensor(0.0))
        self.range_proj = nn.Sequential(
            nn.Conv2d(guidance_dim, key_dim, 1), nn.GELU(), nn.Dropout2d(0.1), nn.Conv2d(key_dim, key_dim, 1)
        )
        self.fixup_proj = nn.Sequential(
            nn.Conv2d(guidance_dim + taps, taps, 1), nn.GELU(), nn.Dropout2d(0.1), nn.Conv2d(taps, taps, 1)
        )
        self.sigma_spatial = nn.Parameter(torch.tensor(1.0))

    def forward(self, source, guidance):
        batch, _, height, width = guidance.shape
        keys = self.range_proj(guidance)
        near = functional.unfold(reflected(keys, self.radius), self.side)
        near = near.reshape(batch, keys.shape[1], self.side**2, height, width)
        temperature = self.range_temp.exp().clamp(1e-4, 1e4)
        kernel = torch.softmax(temperature * torch.einsum("bcthw,bchw->bthw", near, keys), dim=1)
        # Published: float32, whatever the dtype of the module.
        steps = torch.linspace(-1, 1, self.side, dtype=self.sigma_spatial.dtype)
        ys, xs = torch.meshgrid(steps, steps, indexing="ij")
        kernel = kernel * torch.exp(-(ys**2 + xs**2) / (2 * self.sigma_spatial**2)).reshape(1, -1, 1, 1)
        kernel = kernel / kernel.sum(dim=1, keepdim=True).clamp(1e-7)
        kernel = kernel + 0.1 * self.fixup_proj(torch.cat([kernel, guidance], dim=1))
        filters = kernel.permute(0, 2, 3, 1).reshape(batch, height, width, self.side, self.side)
        large = functional.interpolate(source, (height, width), mode="bicubic", align_corners=False)
        return adaptive_conv(reflected(large, self.radius), filters)


class Stack(nn.Module):
    """Four steps of radius 3, or the same step of radius 5 four times."""

    def __init__(self, channels, shared=False):
        super().__init__()
        if shared:
            self.up = LearnedRange(3, 32, 5)
        else:
            self.up1, self.up2, self.up3, self.up4 = (LearnedRange(3, 32, 3) for _ in range(4))
        self.fixup_proj = nn.Sequential(nn.Dropout2d(0.2), nn.Conv2d(channels, channels, 1))
        self.shared = shared

    def forward(self, source, guidance):
        for step in [self.up] * 4 if self.shared else [self.up1, self.up2, self.up3, self.up4]:
            size = (2 * source.shape[2], 2 * source.shape[3])
            source = step(source, functional.adaptive_avg_pool2d(guidance, size))
        return source + 0.1 * self.fixup_proj(source)
