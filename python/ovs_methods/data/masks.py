"""Mask files: gray, palette, RGB-coded or 16-bit images become targets, whose values are indices of classes."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..images import open_image

_OUTSIDE = -2  # of the tables: a value that means nothing
_IGNORED = -1
_SHOWN = 5  # values that an error names at most


@dataclasses.dataclass(frozen=True)
class MaskRule:
    """What the values in a mask mean.

    Attributes:
        classes: C, the number of classes.
        values: class of each value in a mask; -1 where its pixels do not count. Other values are errors.
        colors: the same for the colours (r, g, b) of a mask that is coded by colours; None if it is not.
        indexed: in a palette mask the indices count, whatever `colors` says.
    """

    classes: int
    values: Mapping[int, int]
    colors: Mapping[tuple[int, int, int], int] | None = None
    indexed: bool = False

    @property
    def ignore(self) -> int:
        """The value of a target whose pixels do not count."""
        return 255 if self.classes <= 255 else 65535

    @classmethod
    def plain(cls, classes: int, *, first: int = 0, ignored: tuple[int, ...] = (255,), colors=None) -> "MaskRule":
        """The classes are the values from `first` on; those in `ignored` and those before `first` do not count.

        `first` = 1 is what mmsegmentation calls reduce_zero_label.
        """
        values = {first + index: index for index in range(classes)}
        return cls(classes, {**values, **dict.fromkeys((*range(first), *ignored), _IGNORED)}, colors)


def voc_colors(rule: MaskRule) -> dict[tuple[int, int, int], int]:
    """PASCAL VOC's colours of the values that a rule knows: their bits are dealt out to red, green and blue in turn."""
    colors = {}
    for value, meaning in rule.values.items():
        rgb = [0, 0, 0]
        for bit in range(8):
            rgb[bit % 3] |= (value >> bit & 1) << (7 - bit // 3)
        colors[tuple(rgb)] = meaning
    return colors


def read_target(path: Path, rule: MaskRule, size: tuple[int, int] | None = None) -> np.ndarray:
    """A mask file as indices of classes.

    Args:
        path: gray, palette or RGB-coded image of 1, 8, 16 or 32 bits.
        rule: what its values or colours mean.
        size: (H, W) that it must have; None takes any.

    Returns:
        [H, W] uint8 (uint16 with more than 255 classes): indices of classes, `rule.ignore` where a pixel does not
        count.

    Raises:
        UserError: the file is damaged or no mask, of another size, or has values or colours outside the class list.
    """
    image = open_image(path)
    if size is not None and (image.height, image.width) != size:
        wanted = f"a mask of {size[0]} x {size[1]} pixels as the image"
        raise UserError(path, wanted, f"{image.height} x {image.width}")
    if image.mode == "F":
        raise UserError(path, "a mask of integers", "one of floating-point numbers")
    dtype = np.uint8 if rule.classes <= 255 else np.uint16
    if image.mode == "P":
        return _of_palette(path, np.asarray(image), image.getpalette() or [], rule).astype(dtype, copy=False)
    if image.mode in ("1", "L", "LA", "La", "I") or image.mode.startswith("I;16"):
        values = np.asarray(image.getchannel(0) if image.mode in ("LA", "La") else image)
        return _of_values(path, values.astype(np.uint8) if values.dtype == bool else values, rule).astype(dtype)
    return _of_colors(path, np.asarray(image.convert("RGB")), rule).astype(dtype)


def _table(found: np.ndarray, meaning: Mapping[int, int], path: Path, rule: MaskRule, what: str) -> np.ndarray:
    """Targets of the values that were found; complains about those that mean nothing."""
    made = np.array([meaning.get(int(value), _OUTSIDE) for value in found], np.int32)
    unknown = found[made == _OUTSIDE]
    if len(unknown):
        shown = ", ".join(str(value) for value in unknown[:_SHOWN]) + (", ..." if len(unknown) > _SHOWN else "")
        known = [value for value, index in rule.values.items() if index >= 0]
        wanted = f"labels of the class list ({min(known)} to {max(known)})"
        raise UserError(path, wanted, f"{what} {shown}", "--ignore-label VALUE leaves such pixels out")
    made[made == _IGNORED] = rule.ignore
    return made


def _of_values(path: Path, values: np.ndarray, rule: MaskRule) -> np.ndarray:
    if values.dtype == np.uint8:
        found = np.flatnonzero(np.bincount(values.ravel(), minlength=256))
        table = np.zeros(256, np.uint16)
    elif values.min(initial=0) >= 0 and values.max(initial=0) < 65536:
        found = np.flatnonzero(np.bincount(values.ravel().astype(np.int64), minlength=65536))
        table = np.zeros(65536, np.uint16)
    else:
        raise UserError(path, "labels from 0 to 65535", f"{values.min()} to {values.max()}")
    table[found] = _table(found, rule.values, path, rule, "also")
    return table[values]


def _of_palette(path: Path, values: np.ndarray, palette: list[int], rule: MaskRule) -> np.ndarray:
    """Indices of the palette are labels, but where the user's class list has colours, which then say what is meant."""
    if rule.colors is None or rule.indexed:
        return _of_values(path, values, rule)
    found = np.flatnonzero(np.bincount(values.ravel(), minlength=256))
    if found.max(initial=0) * 3 + 3 > len(palette):
        raise UserError(path, "a colour for every value", f"a palette of {len(palette) // 3}")
    named = np.array([tuple(palette[3 * value : 3 * value + 3]) for value in found])
    table = np.zeros(256, np.uint16)
    table[found] = _colors(path, named, rule.colors, rule)
    return table[values]


def _colors(path: Path, named: np.ndarray, colors: Mapping[tuple[int, int, int], int], rule: MaskRule) -> np.ndarray:
    made = np.array([colors.get(tuple(int(part) for part in color), _OUTSIDE) for color in named], np.int32)
    unknown = named[made == _OUTSIDE]
    if len(unknown):
        shown = ", ".join(f"#{bytes(color.tolist()).hex()}" for color in unknown[:_SHOWN])
        more = ", ..." if len(unknown) > _SHOWN else ""
        raise UserError(path, "colours of the class list", f"also {shown}{more}", "a line '#rrggbb -' ignores a colour")
    made[made == _IGNORED] = rule.ignore
    return made


def _of_colors(path: Path, image: np.ndarray, rule: MaskRule) -> np.ndarray:
    colors = rule.colors
    if colors is None:
        red = image[..., 0]
        if (red == image[..., 1]).all() and (red == image[..., 2]).all():  # gray, saved as RGB
            return _of_values(path, np.ascontiguousarray(red), rule)
        advice = "give the classes' colours in the class list, a line '#rrggbb name' each"
        raise UserError(path, "a mask of labels", "an RGB image with colours", advice)
    packed = image[..., 0].astype(np.int32) << 16 | image[..., 1].astype(np.int32) << 8 | image[..., 2]
    found, inverse = np.unique(packed, return_inverse=True)
    named = np.stack([found >> 16, found >> 8 & 255, found & 255], -1)
    return _colors(path, named, colors, rule)[inverse].reshape(packed.shape)
