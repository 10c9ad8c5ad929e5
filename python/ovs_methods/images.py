"""Photos in, scores at a photo's size out: reading, resizing, and the last argmax."""

import struct
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .errors import UserError, require

if TYPE_CHECKING:
    from PIL.Image import Image

# What Pillow's decoders raise on damaged files, apart from its own bomb check.
_DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, IndexError, MemoryError)
_BAND_BYTES = 64 * 2**20


def open_image(path: Path | str) -> "Image":
    """Decodes an image file completely, turned upright as its EXIF tag says.

    Args:
        path: the file.

    Returns:
        The image, in the file's own mode.

    Raises:
        UserError: no such file, or not an image, or damaged.
    """
    pil = require("PIL.Image", "reading images")
    ops = require("PIL.ImageOps", "reading images")
    if not Path(path).is_file():
        raise UserError(path, "an image file", "a folder" if Path(path).is_dir() else "nothing at this path")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's remarks on odd files that it reads all the same
            with pil.open(path) as file:
                file.load()
                return ops.exif_transpose(file)
    except pil.UnidentifiedImageError:
        raise UserError(path, "an image file (JPEG, PNG, ...)", "something else or a damaged file") from None
    except (*_DECODE_ERRORS, pil.DecompressionBombError) as error:
        raise UserError(path, "a readable image file", f"'{error}'") from None


def read_photo(path: Path | str) -> "Image":
    """An image file as 8-bit RGB.

    Args:
        path: the file; gray, palette, 16-bit gray and transparent images are converted (transparent over
            white).

    Returns:
        The photo, mode RGB.

    Raises:
        UserError: as `open_image`.
    """
    pil = require("PIL.Image", "reading images")
    image = open_image(path)
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image).astype(np.float64)
        top = 65535.0 if values.max(initial=0) > 255 else 255.0
        image = pil.fromarray((values.clip(0, top) * (255.0 / top)).astype(np.uint8))
    if "A" in image.mode or "transparency" in image.info:
        image = image.convert("RGBA")
        image = pil.alpha_composite(pil.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def working_size(height: int, width: int, short: int = 448, long: int = 2048) -> tuple[int, int]:
    """Size of the same aspect ratio whose short side is `short`, if its long side does not pass `long`.

    Args:
        height: of the photo.
        width: of the photo.
        short: wanted short side.
        long: bound of the long side.

    Returns:
        (height, width), at least 1 each.
    """
    scale = min(long / max(height, width), short / min(height, width))
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def to_bytes(photo: "Image", size: tuple[int, int]) -> Tensor:
    """The photo at another size, bilinear.

    Enlarging is the usual half-pixel rule. Reducing averages over the covered pixels, so that a
    24-megapixel photo does not turn into a subsample of itself.

    Args:
        photo: mode RGB.
        size: (H, W).

    Returns:
        [3, H, W] uint8.
    """
    pil = require("PIL.Image", "resizing images")
    if size != (photo.height, photo.width):
        photo = photo.resize((size[1], size[0]), pil.Resampling.BILINEAR)
    return torch.from_numpy(np.array(photo)).permute(2, 0, 1).contiguous()


def sampled(photo: "Image", size: tuple[int, int]) -> "Image":
    """The photo at another size as OpenCV and mmcv resize: bilinear between four pixels, also where it is reduced.

    Fine detail turns into noise where it is reduced by much, but the published numbers are made so. Within one gray
    level of `cv2.resize` with INTER_LINEAR.

    Args:
        photo: mode RGB.
        size: (H, W).

    Returns:
        Mode RGB.
    """
    if size == (photo.height, photo.width):
        return photo
    pil = require("PIL.Image", "resizing images")
    planes = torch.from_numpy(np.array(photo)).permute(2, 0, 1)[None].float()
    made = F.interpolate(planes, size, mode="bilinear", align_corners=False)[0].round_().byte()
    return pil.fromarray(made.permute(1, 2, 0).contiguous().numpy())


def to_tensor(photo: "Image", size: tuple[int, int]) -> Tensor:
    """As `to_bytes`, [3, H, W] float32 in [0, 1]."""
    return to_bytes(photo, size).float().div_(255)


def resized_bands(scores: Tensor, size: tuple[int, int]) -> Iterator[tuple[int, int, Tensor]]:
    """Scores resized bilinearly to the size of a photo, some rows of it at a time.

    Args:
        scores: [C, h, w] float; NaN becomes the least number.
        size: (H, W) of the photo.

    Yields:
        The first row, the one after the last, and their scores [C, rows, W], at most 64 MiB with what it takes to
        make them (or one row).
    """
    if scores.dtype not in (torch.float32, torch.float64):
        scores = scores.float()
    limit = torch.finfo(scores.dtype).max / 4  # infinities would turn into NaN between two pixels
    scores = scores.nan_to_num(nan=-limit, posinf=limit, neginf=-limit)
    channels, h, _ = scores.shape
    height, width = size
    rows = max(1, _BAND_BYTES // (2 * scores.element_size() * channels * width))
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        source = ((torch.arange(top, bottom, dtype=torch.float64) + 0.5) * (h / height) - 0.5).clamp_(min=0)
        first = source.floor().long()
        second = (first + 1).clamp_(max=h - 1)
        band = torch.lerp(scores[:, first], scores[:, second], (source - first).to(scores.dtype)[:, None])
        yield top, bottom, F.interpolate(band[None], (bottom - top, width), mode="bilinear", align_corners=False)[0]


def resize_argmax(scores: Tensor, size: tuple[int, int]) -> Tensor:
    """Label of every pixel of the photo: argmax of the bilinearly resized scores.

    Works in bands of rows, so a large photo costs no [C, H, W] array.

    Args:
        scores: [C, h, w] float; NaN never wins.
        size: (H, W) of the photo.

    Returns:
        [H, W] int64, the smallest index where classes tie.
    """
    labels = torch.empty(size, dtype=torch.int64)
    for top, bottom, band in resized_bands(scores, size):
        labels[top:bottom] = band.argmax(0)
    return labels
