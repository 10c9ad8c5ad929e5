"""What PnP-OVSS's steps from maps to labels are measured against: the published ones, and PyTorch.

Each takes saliency maps [K, P, P], an image [3, H, W] uint8 and whether there is a background channel, and returns
labels [H, W].
"""

import importlib

import numpy as np
import peers_crf
import torch
from torch import Tensor
from torch.nn.functional import conv1d, interpolate

THRESHOLD, BLUR = 0.15, 0.05
CRF = peers_crf.Settings(10, 3.0, 7.0, 50.0, 5.0, 10.0)


def published_missing() -> str | None:
    """Why the published steps cannot run here, or None."""
    try:
        importlib.import_module("scipy.ndimage")
    except ImportError as error:
        return f"scipy cannot be imported ({error})"
    return peers_crf.pydensecrf_missing()


def seeds(maps: Tensor) -> Tensor:
    """1 where a class's map, brought to [0, 1], passes the threshold: [K, P, P] in the dtype of the maps."""
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return ((maps - low) / (high - low) >= THRESHOLD).to(maps.dtype)


def enlarged(maps: Tensor, size: tuple[int, int], background: bool) -> Tensor:
    """The thresholded maps at the size of the photo, the background first."""
    wide = interpolate(seeds(maps)[None], size, mode="bilinear", align_corners=True)[0]
    return torch.cat(((wide.amax(0, keepdim=True) == 0).to(wide.dtype), wide)) if background else wide


def stretched(channels: Tensor) -> Tensor:
    """Each channel to [0, 1]."""
    low, high = channels.amin((1, 2), keepdim=True), channels.amax((1, 2), keepdim=True)
    return (channels - low) / (high - low)


def published(maps: Tensor, image: Tensor, background: bool) -> Tensor:
    """SciPy's Gaussian filter, a channel after the other, and pydensecrf."""
    gaussian_filter = importlib.import_module("scipy.ndimage").gaussian_filter
    channels = enlarged(maps, tuple(image.shape[1:]), background).numpy()
    sigma = BLUR * max(image.shape[1:])
    blurred = torch.from_numpy(np.stack([gaussian_filter(channel, sigma) for channel in channels]))
    return peers_crf.pydensecrf(image, stretched(blurred).softmax(0), CRF).argmax(0)


def blur_rows(rows: Tensor, sigma: float) -> Tensor:
    """SciPy's filter along the last axis of [N, L]: beyond the borders the row is repeated backwards, once."""
    radius = int(4 * sigma + 0.5)
    steps = torch.arange(-radius, radius + 1, dtype=rows.dtype, device=rows.device)
    taps = torch.exp(-0.5 * (steps / sigma) ** 2)
    wide = torch.cat((rows[:, :radius].flip(1), rows, rows[:, -radius:].flip(1)), 1)
    return conv1d(wide[:, None], (taps / taps.sum())[None, None])[:, 0]


def pytorch_convolutions(maps: Tensor, image: Tensor, background: bool) -> Tensor:
    """Enlarged, blurred by convolutions along either axis, and the CRF as sparse products."""
    size = tuple(image.shape[1:])
    channels, sigma = enlarged(maps, size, background), BLUR * max(size)
    for _ in range(2):
        height, width = channels.shape[1:]
        channels = blur_rows(channels.reshape(-1, width), sigma).reshape(-1, height, width).transpose(1, 2)
    return peers_crf.pytorch(image, stretched(channels).softmax(0), CRF).argmax(0)


def pytorch_products(maps: Tensor, image: Tensor, background: bool) -> Tensor:
    """Enlarged, blurred by products with a dense matrix on either side, and the CRF as sparse products."""
    size = tuple(image.shape[1:])
    channels, sigma = enlarged(maps, size, background), BLUR * max(size)
    rows, columns = (blur_rows(torch.eye(n, device=maps.device), sigma) for n in size)
    return peers_crf.pytorch(image, stretched(rows.t() @ channels @ columns).softmax(0), CRF).argmax(0)
