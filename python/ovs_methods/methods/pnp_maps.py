"""PnP-OVSS after the saliency maps: threshold, blur, background channel, DenseCRF.

A saliency map has one number per patch. Enlarging it bilinearly and blurring it with a Gaussian are linear and work
along each axis by itself, so both together are two small products with matrices that depend on the sizes only:
B_y [H, h], G [h, w], B_x^T [w, W]. The background channel marks pixels, but which pixels those are depends on the patch
lines they lie between, so it is the same kind of product with one column per line and one per gap between two lines.
"""

import dataclasses
import functools
import math

import numpy as np
import torch
from torch import Tensor

from ovs_kernels import dense_crf

from ..errors import UserError, operators_judge

VARIANTS = ("paper", "code")
TRUNCATE = 4.0  # standard deviations at which scipy.ndimage.gaussian_filter ends
_NOISE = 64.0  # units of rounding within which a blurred channel is constant
_CHANNELS_AT_ONCE = 8  # of the products: their result stays in the cache for what is done to it


@dataclasses.dataclass(frozen=True)
class CrfSettings:
    """Arguments of `ovs_kernels.dense_crf`; the values are those of PnP-OVSS.

    Attributes:
        iterations: of mean field.
        gaussian_sxy: standard deviation in pixels of the term that looks at positions.
        gaussian_compat: its weight.
        bilateral_sxy: standard deviation in pixels of the term that looks at positions and colours.
        bilateral_srgb: its standard deviation in colours, 0 to 255.
        bilateral_compat: its weight.
        clip: lowest probability.
    """

    iterations: int = 10
    gaussian_sxy: float = 3.0
    gaussian_compat: float = 7.0
    bilateral_sxy: float = 50.0
    bilateral_srgb: float = 5.0
    bilateral_compat: float = 10.0
    clip: float = 1e-5


PNP_CRF = CrfSettings()


def patch_positions(length: int, patches: int) -> tuple[np.ndarray, np.ndarray]:
    """Where the pixels of an axis lie between its patches when the corners are aligned.

    Pixel y lies at y (patches - 1) / (length - 1), worked out in integers: a pixel that is on a patch is exactly there.

    Args:
        length: pixels.
        patches: of the same axis.

    Returns:
        int64 [length], the patch at or before each pixel; float64 [length], how far it is from there to the next, from
        0 to below 1.
    """
    steps = np.arange(length, dtype=np.int64) * (patches - 1)
    span = max(length - 1, 1)
    return steps // span, steps % span / span


def upsample_matrix(length: int, patches: int) -> np.ndarray:
    """Bilinear enlargement of an axis with aligned corners, float64 [length, patches]; each row sums to 1."""
    first, share = patch_positions(length, patches)
    matrix = np.zeros((length, patches))
    rows = np.arange(length)
    matrix[rows, first] = 1 - share
    matrix[rows, np.minimum(first + 1, patches - 1)] += share
    return matrix


def blur_matrix(length: int, sigma: float) -> np.ndarray:
    """The Gaussian filter of `scipy.ndimage.gaussian_filter` along an axis, float64 [length, length].

    Args:
        length: pixels.
        sigma: standard deviation in pixels; the filter ends at int(4 sigma + 0.5) and beyond the border the image is
            repeated backwards ("d c b a | a b c d | d c b a"), as often as it takes.

    Returns:
        Each row sums to 1.
    """
    if sigma <= 1e-15:
        return np.eye(length)
    radius = int(TRUNCATE * sigma + 0.5)
    offsets = np.arange(-radius, radius + 1)
    taps = np.exp(-0.5 * (offsets / sigma) ** 2)
    taps /= taps.sum()
    matrix = np.empty((length, length))
    for pixel in range(length):
        source = (pixel + offsets) % (2 * length)
        matrix[pixel] = np.bincount(np.minimum(source, 2 * length - 1 - source), taps, length)
    return matrix


@functools.lru_cache(maxsize=32)
def _class_matrix(length: int, patches: int, sigma: float, dtype: torch.dtype) -> Tensor:
    """Blur after enlargement, [length, patches]."""
    return torch.from_numpy(blur_matrix(length, sigma) @ upsample_matrix(length, patches)).to(dtype)


@functools.lru_cache(maxsize=32)
def _cell_matrix(length: int, patches: int, sigma: float, dtype: torch.dtype) -> Tensor:
    """Blur of what is constant on each patch line (column 2 i) and between two of them (2 i + 1)."""
    first, share = patch_positions(length, patches)
    cells = np.zeros((length, 2 * patches - 1))
    cells[np.arange(length), 2 * first + (share > 0)] = 1
    return torch.from_numpy(blur_matrix(length, sigma) @ cells).to(dtype)


def seed_maps(maps: Tensor, *, variant: str = "paper", threshold: float = 0.15) -> Tensor:
    """What is left of the saliency maps after the threshold, per patch.

    ::

        n    = (M - min M) / (max M - min M)          each class by itself, over the patches
        seed = 1[n >= threshold]                      "paper"
        seed = M 1[n >= threshold]                    "code"

    Args:
        maps: [K, h, w] float, not negative.
        variant: paper or code.
        threshold: from 0 to 1.

    Returns:
        [K, h, w] in float32, or float64 for such maps; a class whose map is constant gets zeros.

    Raises:
        UserError: one of the arguments cannot be used.
    """
    if variant not in VARIANTS:
        raise UserError("variant", " or ".join(VARIANTS), variant)
    if not 0 <= threshold <= 1:
        raise UserError("threshold", "a number from 0 to 1", threshold)
    maps = _checked(maps)
    low, high = maps.flatten(1).aminmax(dim=1)
    low, span = low[:, None, None], (high - low)[:, None, None]
    keep = ((maps - low) / span >= threshold) & (span > 0)
    return torch.where(keep, maps if variant == "code" else torch.ones_like(maps), 0)


def normalized_maps(
    maps: Tensor,
    size: tuple[int, int],
    *,
    variant: str = "paper",
    threshold: float = 0.15,
    blur: float = 0.05,
    background: bool = True,
) -> Tensor:
    """Threshold, bilinear enlargement with aligned corners, background channel, blur, and each channel to [0, 1].

    Args:
        maps: [K, h, w] float saliency of K >= 1 classes, not negative.
        size: (H, W) of the result.
        variant: "paper" (what passes the threshold counts 1) or "code" (it keeps its saliency).
        threshold: of the maps brought to [0, 1].
        blur: standard deviation of the Gaussian as a share of max(H, W); 0 for none.
        background: add a channel, before all others, for the pixels where every class's enlarged map is exactly 0.

    Returns:
        [K, H, W], or [K + 1, H, W] with the background first; float32, or float64 for such maps. A channel that is
        constant is 0.

    Raises:
        UserError: one of the arguments cannot be used.
    """
    height, width = size
    if height < 1 or width < 1:
        raise UserError("size", "at least one row and column", f"{height} x {width}")
    return _blurred(seed_maps(maps, variant=variant, threshold=threshold), size, blur, background)


def postprocess(
    maps: Tensor,
    image: Tensor,
    *,
    variant: str = "paper",
    threshold: float = 0.15,
    blur: float = 0.05,
    background: bool = True,
    crf: CrfSettings | None = PNP_CRF,
) -> Tensor:
    """Labels from saliency maps: `normalized_maps`, a softmax over the channels, DenseCRF.

    Args:
        maps: [K, h, w] float saliency of K >= 1 classes, not negative.
        image: [3, H, W] uint8, the photo.
        variant: see `normalized_maps`.
        threshold: see `normalized_maps`.
        blur: see `normalized_maps`.
        background: see `normalized_maps`.
        crf: constants of the CRF; None takes the largest of the normalised maps instead.

    Returns:
        [H, W] int64: 0 is the background and k + 1 class k, or k class k without a background; the smallest label where
        channels tie, so 0 everywhere if no class has any saliency.

    Raises:
        UserError: one of the arguments cannot be used.
    """
    if not isinstance(image, Tensor) or image.dtype != torch.uint8 or image.dim() != 3 or image.shape[0] != 3:
        raise UserError("image", "a uint8 tensor [3, H, W]", _kind(image))
    if 0 in image.shape:
        raise UserError("image", "at least one row and column", _kind(image))
    seeds, size = seed_maps(maps, variant=variant, threshold=threshold), tuple(image.shape[1:])
    _check_blur(blur)
    if not seeds.any():
        return torch.zeros(size, dtype=torch.int64, device=seeds.device)
    if crf is None:
        return _blurred(seeds, size, blur, background).argmax(0)
    # The softmax of numbers from 0 to 1 over C channels is at least 1 / (1 + (C - 1) e). Where the clip is below that,
    # -log(softmax(n)) is -n and one number per pixel, which the CRF's own softmax takes out again.
    energies = 0 < crf.clip <= 1 / (1 + (len(seeds) + background - 1) * math.e)
    unary = _blurred(seeds, size, blur, background, sign=-1 if energies else 1)
    if not energies:
        unary = unary.softmax(0)
    with operators_judge():
        return dense_crf(image, unary, energies=energies, labels=True, **dataclasses.asdict(crf)).long()


def _blurred(seeds: Tensor, size: tuple[int, int], blur: float, background: bool, sign: int = 1) -> Tensor:
    """[K or K + 1, H, W]: enlarged, blurred, and brought to [0, 1], or [-1, 0] with the other `sign`."""
    _check_blur(blur)
    height, width = size
    (count, h, w), dtype, sigma = seeds.shape, seeds.dtype, blur * max(size)
    result = seeds.new_empty(count + background, height, width)
    if background:
        rows, columns = (_cell_matrix(*axis, sigma, dtype).to(seeds.device) for axis in ((height, h), (width, w)))
        torch.mm(rows @ _background_cells(seeds), columns.t(), out=result[0])
        _stretch(result[:1], 1.0, sign)
    rows, columns = (_class_matrix(*axis, sigma, dtype).to(seeds.device) for axis in ((height, h), (width, w)))
    wide = rows @ seeds
    for first in range(0, count, _CHANNELS_AT_ONCE):
        part = slice(first, first + _CHANNELS_AT_ONCE)
        channels = result[background:][part]
        torch.matmul(wide[part], columns.t(), out=channels)
        _stretch(channels, seeds[part].flatten(1).amax(1), sign)
    return result


def _stretch(channels: Tensor, largest: Tensor | float, sign: int) -> None:
    """Brings each channel to [0, 1] or [-1, 0] in place; what only rounding keeps from being constant becomes 0."""
    low, high = channels.flatten(1).aminmax(dim=1)
    span = high - low
    varies = span > _NOISE * torch.finfo(channels.dtype).eps * largest
    factor = torch.where(varies, sign / span, 0)
    channels.sub_(low[:, None, None]).mul_(factor[:, None, None])


def _background_cells(seeds: Tensor) -> Tensor:
    """1 where the bilinear enlargement of every class is 0: on the patch lines and between them, [2 h - 1, 2 w - 1]."""
    taken = (seeds != 0).any(0)
    for axis in (0, 1):
        length = taken.shape[axis]
        between = taken.narrow(axis, 0, length - 1) | taken.narrow(axis, 1, length - 1)
        cells = taken.new_empty([2 * n - 1 if k == axis else n for k, n in enumerate(taken.shape)])
        cells.movedim(axis, 0)[::2] = taken.movedim(axis, 0)
        cells.movedim(axis, 0)[1::2] = between.movedim(axis, 0)
        taken = cells
    return (~taken).to(seeds.dtype)


def _checked(maps: Tensor) -> Tensor:
    """The maps in the dtype that they are computed in."""
    if not isinstance(maps, Tensor) or not maps.is_floating_point() or maps.dim() != 3 or 0 in maps.shape:
        raise UserError("maps", "a float tensor [K, h, w], not empty", _kind(maps))
    if not ((maps >= 0) & (maps < math.inf)).all():
        raise UserError("maps", "finite numbers, not negative", maps[~((maps >= 0) & (maps < math.inf))][0].item())
    return maps if maps.dtype == torch.float64 else maps.float()


def _check_blur(blur: float) -> None:
    if not 0 <= blur <= 1:
        raise UserError("blur", "a share of the longer side, from 0 to 1", blur)


def _kind(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    return type(value).__name__
