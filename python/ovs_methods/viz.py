"""Pictures: the palette, the overlay, and photo, overlay and legend on one panel."""

import colorsys
from typing import TYPE_CHECKING

import numpy as np

from .errors import require

if TYPE_CHECKING:
    from PIL.Image import Image

# Okabe and Ito's colours for colour-blind readers, then Paul Tol's muted ones.
_BASE = (
    *("0072B2", "E69F00", "009E73", "CC79A7", "F0E442", "D55E00", "56B4E9"),
    *("332288", "882255", "44AA99", "999933", "AA4499", "DDCC77", "117733", "CC6677"),
)
_NEUTRAL = (150, 150, 150)
_PANEL_SIDE = 1280  # longest side of each of the two pictures on a panel
_GAP = 8


def color(index: int) -> tuple[int, int, int]:
    """The colour of the index-th class.

    Args:
        index: 0 or more. The first 7 can be told apart with any common colour blindness; from 15 on hues
            are spread by the golden ratio.

    Returns:
        (r, g, b), 0 to 255.
    """
    if index < len(_BASE):
        return tuple(bytes.fromhex(_BASE[index]))
    hue = (index * 0.6180339887498949) % 1
    rgb = colorsys.hsv_to_rgb(hue, 0.55 + 0.15 * (index % 3), 0.95 - 0.2 * (index % 4) / 3)
    return tuple(round(255 * channel) for channel in rgb)


def class_colors(names: list[str]) -> list[tuple[int, int, int]]:
    """A colour per class, in order; a class called background is gray."""
    rest = iter(range(len(names)))
    return [_NEUTRAL if name.lower() == "background" else color(next(rest)) for name in names]


def label_image(labels: np.ndarray, ids: list[int], colors: list[tuple[int, int, int]]) -> "Image":
    """Labels as an image whose pixel values are class ids.

    Args:
        labels: [H, W] class indices.
        ids: [G] value of each class.
        colors: [G] colour of each class.

    Returns:
        Palette image; with an id above 255 (thousands of classes) 16-bit gray, which has no palette.
    """
    pil = require("PIL.Image", "writing images")
    if max(ids) > 255:
        return pil.fromarray(np.array(ids, np.uint16)[labels])
    image = pil.fromarray(np.array(ids, np.uint8)[labels])
    palette = [channel for index in range(256) for channel in color(index)]
    for value, rgb in zip(ids, colors, strict=True):
        palette[3 * value : 3 * value + 3] = rgb
    image.putpalette(palette)
    return image


def overlay(photo: "Image", labels: np.ndarray, colors: list[tuple[int, int, int]], opacity: float = 0.55) -> "Image":
    """The photo tinted with the classes' colours, a light line where two classes meet.

    Args:
        photo: mode RGB.
        labels: [H, W] class indices, the size of the photo.
        colors: [G] colour of each class.
        opacity: of the tint.

    Returns:
        Mode RGB, the size of the photo.
    """
    pil = require("PIL.Image", "drawing")
    tint = np.array(colors, np.float32)[labels]
    mixed = np.asarray(photo, np.float32) * (1 - opacity) + tint * opacity
    border = np.zeros(labels.shape, bool)
    border[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    border[1:] |= labels[1:] != labels[:-1]
    mixed[border] = mixed[border] * 0.3 + 255 * 0.7
    return pil.fromarray(mixed.astype(np.uint8))


def _legend(names: list[str], shares: list[float] | None, colors: list[tuple[int, int, int]], width: int) -> "Image":
    """Swatch, name and share (if given) of each class, in as many rows as they need."""
    pil, draw, fonts = (require(f"PIL.{part}", "drawing") for part in ("Image", "ImageDraw", "ImageFont"))
    size = int(np.clip(width / 55, 13, 28))
    font = fonts.load_default(size=size)
    line, swatch = round(size * 1.7), size
    places, x, y = [], _GAP, _GAP
    for index, name in enumerate(names):
        text = name if len(name) <= 40 else name[:39] + "…"
        text += f"  {100 * shares[index]:.1f} %" if shares is not None else ""
        step = swatch + size // 2 + round(font.getlength(text)) + round(size * 1.5)
        if x > _GAP and x + step > width:
            x, y = _GAP, y + line
        places.append((x, y, text))
        x += step
    image = pil.new("RGB", (width, y + line + _GAP // 2), "white")
    pen = draw.Draw(image)
    for (x, y, text), rgb in zip(places, colors, strict=True):
        pen.rectangle((x, y + size // 4, x + swatch, y + size // 4 + swatch), fill=rgb, outline=(60, 60, 60))
        pen.text((x + swatch + size // 2, y), text, fill=(20, 20, 20), font=font)
    return image


def _reduced(photo: "Image", labels: list[np.ndarray], side: int) -> tuple["Image", list[np.ndarray]]:
    """Photo and label maps, made smaller if the photo has more than `side` pixels a side."""
    pil = require("PIL.Image", "drawing")
    scale = min(1.0, side / max(photo.size))
    width, height = max(1, round(photo.width * scale)), max(1, round(photo.height * scale))
    if (width, height) == photo.size:
        return photo, labels
    rows = ((np.arange(height) + 0.5) * (photo.height / height)).astype(np.int64)
    columns = ((np.arange(width) + 0.5) * (photo.width / width)).astype(np.int64)
    small = [part[rows[:, None], columns] for part in labels]
    return photo.resize((width, height), pil.Resampling.LANCZOS), small


def side_by_side(
    photo: "Image", labels: dict[str, np.ndarray], names: list[str], colors: list[tuple[int, int, int]]
) -> "Image":
    """The photo and the overlays of several methods in two columns, a title over each, a legend below.

    Args:
        photo: mode RGB.
        labels: [H, W] class indices of each method, the size of the photo.
        names: [G] of the classes.
        colors: [G] of the classes.

    Returns:
        Mode RGB; each picture has at most 960 pixels a side.
    """
    pil, draw, fonts = (require(f"PIL.{part}", "drawing") for part in ("Image", "ImageDraw", "ImageFont"))
    photo, small = _reduced(photo, list(labels.values()), 960)
    pictures = [("photo", photo)]
    pictures += [(title, overlay(photo, part, colors)) for title, part in zip(labels, small, strict=True)]
    width, height = max(2 * photo.width + _GAP, 320), photo.height
    size = int(np.clip(width / 55, 13, 28))
    step = height + 2 * size
    legend = _legend(names, None, colors, width)
    image = pil.new("RGB", (width, (len(pictures) + 1) // 2 * step + legend.height), "white")
    pen, font = draw.Draw(image), fonts.load_default(size=size)
    for index, (title, picture) in enumerate(pictures):
        x, y = index % 2 * (photo.width + _GAP), index // 2 * step
        pen.text((x + _GAP, y + size // 3), title, fill=(20, 20, 20), font=font)
        image.paste(picture, (x, y + 2 * size))
    image.paste(legend, (0, image.height - legend.height))
    return image


def panel(
    photo: "Image",
    labels: np.ndarray,
    names: list[str],
    shares: list[float],
    colors: list[tuple[int, int, int]],
) -> "Image":
    """Photo and overlay side by side, with a legend below.

    Args:
        photo: mode RGB.
        labels: [H, W] class indices, the size of the photo.
        names: [G] of the classes.
        shares: [G] of the photo's pixels; classes with none are left out of the legend if there are more
            than 20.
        colors: [G] of the classes.

    Returns:
        Mode RGB; each of the two pictures has at most 1280 pixels a side.
    """
    pil = require("PIL.Image", "drawing")
    photo, (labels,) = _reduced(photo, [labels], _PANEL_SIDE)
    size = photo.size
    shown = [i for i in range(len(names)) if len(names) <= 20 or shares[i] > 0]
    width = max(2 * size[0] + _GAP, 320)
    legend = _legend([names[i] for i in shown], [shares[i] for i in shown], [colors[i] for i in shown], width)
    image = pil.new("RGB", (width, size[1] + legend.height), "white")
    image.paste(photo, (0, 0))
    image.paste(overlay(photo, labels, colors), (size[0] + _GAP, 0))
    image.paste(legend, (0, size[1]))
    return image
