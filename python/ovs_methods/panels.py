"""Panels: a photo, its ground truth and what methods made of it, with an error map below each and a legend."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import viz
from .errors import require
from .files import write_together

if TYPE_CHECKING:
    from PIL.Image import Image

_GAP, _MARGIN = 10, 14
_WIDTH = 2000  # of a panel, about
_SIDES = (220, 620)  # least and largest width of a picture
_TALL = 1200  # largest height of one
_INK, _FAINT, _PAPER = (25, 25, 25), (110, 110, 110), (255, 255, 255)
# Kinds of errors: dark, light and between, so that they stay apart with any colour blindness.
_MISSED, _INVENTED, _CONFUSED = (62, 12, 110), (255, 200, 20), (219, 58, 30)
_NONE = (40, 40, 40)  # a prediction that is no class
_NAMED = 0.012  # share of the picture from which a region has its name written on it
_LISTED = 24  # classes in a legend at most


@dataclasses.dataclass(frozen=True)
class Column:
    """What one method made of the photo.

    Attributes:
        title: of the method.
        labels: [H, W] class indices; others are no class.
        note: a line below the title, such as the method's score on this photo.
    """

    title: str
    labels: np.ndarray
    note: str = ""


def _fonts(size: int) -> tuple[Any, Any]:
    fonts = require("PIL.ImageFont", "drawing")
    return fonts.load_default(size=size), fonts.load_default(size=round(size * 0.82))


def _panel_colors(names: Sequence[str], present: Sequence[int]) -> dict[int, tuple[int, int, int]]:
    """A colour for each class that is present: the palette's own order where it is long enough, else by importance.

    Colours of a data set with few classes are those of every panel; of one with hundreds of classes only the few that
    a photo has get colours that the eye keeps apart.
    """
    if len(names) <= 16:
        return dict(enumerate(viz.class_colors(list(names))))
    chosen = list(present)
    return dict(zip(chosen, viz.class_colors([names[index] for index in chosen]), strict=True))


def _tint(photo: np.ndarray, labels: np.ndarray, colors: dict[int, tuple[int, int, int]]) -> np.ndarray:
    """The photo in gray under the colours of the classes; dark where there is no class, a white line between two."""
    table = np.full((int(labels.max(initial=0)) + 1, 3), _NONE, np.float32)
    for index, color in colors.items():
        if index < len(table):
            table[index] = color
    gray = photo.mean(-1, keepdims=True)
    shade = 0.7 + 0.3 * gray / 255  # keeps what is in the photo visible without changing the hue
    made = table[labels] * shade
    edge = np.zeros(labels.shape, bool)
    edge[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    edge[1:] |= labels[1:] != labels[:-1]
    made[edge] = 255
    return made.clip(0, 255).astype(np.uint8)


def _hatched(image: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Diagonal lines of light gray where pixels do not count."""
    rows, columns = np.indices(where.shape)
    line = (rows + columns) % 8 < 2
    made = image.copy()
    made[where] = 235
    made[where & line] = 170
    return made


def error_map(photo: np.ndarray, labels: np.ndarray, target: np.ndarray, ignore: int, background: int | None) -> Any:
    """The photo in pale gray where a method is right, coloured by the kind of error where it is wrong.

    Args:
        photo: [H, W, 3] uint8.
        labels: [H, W] of the method.
        target: [H, W] of the ground truth.
        ignore: value of the pixels of `target` that do not count; they are hatched.
        background: index of the background, None without one.

    Returns:
        [H, W, 3] uint8: dark where an object was missed, yellow where one was invented, vermilion where a class was
        taken for another; without a background all errors are of the last kind.
    """
    gray = np.repeat(photo.mean(-1, keepdims=True), 3, -1)
    made = 255 - (255 - gray) * 0.45
    wrong = (labels != target) & (target != ignore)
    kinds = [(wrong, _CONFUSED)]
    if background is not None:
        kinds += [(wrong & (labels == background), _MISSED), (wrong & (target == background), _INVENTED)]
    shade = 0.75 + 0.25 * gray / 255
    for where, color in kinds:
        made[where] = (np.array(color, np.float32) * shade)[where]
    return _hatched(made.clip(0, 255).astype(np.uint8), target == ignore)


def _regions(labels: np.ndarray, present: Sequence[int], least: float) -> list[tuple[int, int, int]]:
    """Where a class's name goes: (class, x, y) in the thickest part of its largest region, for those large enough."""
    made = []
    for index in present:
        mask = labels == index
        if mask.mean() < least:
            continue
        depth = _depth(mask)
        y, x = np.unravel_index(int(depth.argmax()), depth.shape)
        made.append((index, int(x), int(y)))
    return made


def _depth(mask: np.ndarray) -> np.ndarray:
    """Steps (along rows and columns) to the nearest pixel outside of the mask or of the picture."""
    depth = np.where(mask, np.inf, 0.0)
    depth[[0, -1], :] = np.minimum(depth[[0, -1], :], 1)
    depth[:, [0, -1]] = np.minimum(depth[:, [0, -1]], 1)
    for _ in range(2):  # forwards and backwards along both axes; exact for the city-block distance
        for axis in (0, 1):
            places = np.arange(depth.shape[axis], dtype=np.float64)
            places = places[:, None] if axis == 0 else places[None]
            for _ in range(2):
                depth = np.minimum.accumulate(depth - places, axis) + places
                depth = np.flip(depth, axis)
    return depth


def _shrunk(photo: "Image", maps: Sequence[np.ndarray], width: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """Photo and labels at the width that pictures of the panel have."""
    pil = require("PIL.Image", "drawing")
    height = max(1, round(photo.height * width / photo.width))
    rows = ((np.arange(height) + 0.5) * photo.height / height).astype(np.int64)
    columns = ((np.arange(width) + 0.5) * photo.width / width).astype(np.int64)
    small = np.asarray(photo.resize((width, height), pil.Resampling.LANCZOS))
    return small, [part[rows[:, None], columns] for part in maps]


class _Sheet:
    """A white sheet with pictures in a grid of equal cells, titles above, and lines of text below.

    Args:
        size: (height, width) of a picture.
        columns: pictures in a row.
        rows: of pictures.
        legend: height below them.
    """

    def __init__(self, size: tuple[int, int], columns: int, rows: int, legend: int):
        pil, draw = require("PIL.Image", "drawing"), require("PIL.ImageDraw", "drawing")
        self.size, self.text = size, int(np.clip(size[1] / 23, 13, 20))
        self.font, self.small = _fonts(self.text)
        self.head = round(self.text * 2.9)
        width = 2 * _MARGIN + columns * size[1] + (columns - 1) * _GAP
        self.top = _MARGIN + rows * (size[0] + self.head)
        self.image = pil.new("RGB", (width, self.top + legend), _PAPER)
        self.pen = draw.Draw(self.image)

    def put(self, row: int, column: int, picture: np.ndarray, title: str, note: str = "") -> tuple[int, int]:
        """A picture with its title and a fainter line below that; returns where it begins."""
        pil = require("PIL.Image", "drawing")
        x = _MARGIN + column * (self.size[1] + _GAP)
        y = _MARGIN + row * (self.size[0] + self.head)
        self.pen.text((x, y), self._fitting(title, self.font), fill=_INK, font=self.font)
        self.pen.text((x, y + self.text * 1.3), self._fitting(note, self.small), fill=_FAINT, font=self.small)
        y += self.head - round(self.text * 0.3)
        self.image.paste(pil.fromarray(picture), (x, y))
        return x, y

    def _fitting(self, text: str, font: Any) -> str:
        while text and font.getlength(text) > self.size[1]:
            text = text[:-2] + "…"
        return text

    def names(self, corner: tuple[int, int], regions: Sequence[tuple[int, int, int]], names: Sequence[str]) -> None:
        """Writes classes' names on their regions, black with a white rim, inside of the picture.

        The larger class first; a name that would cover another is left to the legend.
        """
        taken: list[tuple[float, float, float]] = []
        for index, x, y in regions:
            text = names[index]
            half = self.small.getlength(text) / 2 + 3
            if 2 * half > self.size[1]:
                continue
            x = min(max(x, half), self.size[1] - half)
            y = min(max(y, self.text * 0.7), self.size[0] - self.text * 0.7)
            if any(abs(y - other) < 1.1 * self.text and abs(x - middle) < half + wide for middle, other, wide in taken):
                continue
            taken.append((x, y, half))
            place = (corner[0] + x, corner[1] + y)
            rim = {"stroke_width": 3, "stroke_fill": "white"}
            self.pen.text(place, text, fill=_INK, font=self.small, anchor="mm", **rim)

    def swatches(self, y: int, title: str, entries: Sequence[tuple[str, Any]]) -> int:
        """A line (or several) of coloured squares and what they mean; returns where the next one begins."""
        x, side, step = _MARGIN, self.text, round(self.text * 1.75)
        left = _MARGIN + round(self.font.getlength(title)) + self.text if title else _MARGIN
        self.pen.text((x, y), title, fill=_INK, font=self.font)
        x = left
        for text, color in entries:
            width = side + self.text // 2 + round(self.small.getlength(text)) + round(self.text * 1.2)
            if x > left and x + width > self.image.width - _MARGIN:
                x, y = left, y + step
            if color is not None:
                box = (x, y + 2, x + side, y + 2 + side)
                if color == "hatched":
                    self.pen.rectangle(box, fill=(235, 235, 235), outline=_FAINT)
                    for start in range(0, side, 5):
                        self.pen.line((x, y + 2 + start, x + start, y + 2), fill=_FAINT)
                        self.pen.line((x + start, y + 2 + side, x + side, y + 2 + start), fill=_FAINT)
                else:
                    self.pen.rectangle(box, fill=color, outline=(60, 60, 60))
                x += side + self.text // 2
            self.pen.text((x, y + self.text * 0.12), text, fill=_INK, font=self.small)
            x += width - side - self.text // 2 if color is not None else width
        return y + step


def _classes_of(labels: np.ndarray, count: int, ignore: int | None) -> dict[int, float]:
    """Share of the pixels that count of each class that occurs."""
    counts = np.bincount(labels[labels != ignore].ravel() if ignore is not None else labels.ravel(), minlength=count)
    return {index: counts[index] / max(1, counts.sum()) for index in np.flatnonzero(counts[:count]).tolist()}


def comparison(
    photo: "Image",
    columns: Sequence[Column],
    names: Sequence[str],
    *,
    target: np.ndarray | None = None,
    ignore: int = 255,
    title: str = "",
) -> "Image":
    """Photo, ground truth and methods beside each other, the error map of each method below it, and a legend.

    Args:
        photo: mode RGB.
        columns: one per method.
        names: [C] of the classes.
        target: [H, W] indices of classes; None without ground truth, then there are no error maps.
        ignore: value of the pixels of `target` that do not count.
        title: of the photo.

    Returns:
        Mode RGB, about 2000 pixels wide.
    """
    found = _classes_of(target, len(names), ignore) if target is not None else {}
    guessed: dict[int, float] = {}
    for column in columns:
        for index, share in _classes_of(column.labels, len(names), None).items():
            guessed[index] = max(guessed.get(index, 0.0), share)
    order = sorted(found, key=found.get, reverse=True)
    extra = sorted((index for index in guessed if index not in found), key=guessed.get, reverse=True)
    colors = _panel_colors(names, [*order, *extra])
    background = next((index for index, name in enumerate(names) if name.lower() == "background"), None)
    across = min(len(columns), 4) + (1 if target is not None or len(columns) < 2 else 0)
    across = max(2, across)
    width = int(np.clip((_WIDTH - 2 * _MARGIN) // across - _GAP, *_SIDES))
    narrow = min(width, max(1, round(_TALL * photo.width / photo.height)))
    picture, small = _shrunk(photo, [c.labels for c in columns] + ([target] if target is not None else []), narrow)
    truth = small.pop() if target is not None else None
    per_row = across - 1
    bands = -(-len(columns) // per_row)
    high = 2 if target is not None else 1
    lines = 4 + (len(order) + len(extra)) * 9 // max(1, across * 3)
    sheet = _Sheet((len(picture), width), across, bands * high, _MARGIN + lines * 36)
    sheet.put(0, 0, picture, "photo", title)
    if truth is not None:
        tinted = _hatched(_tint(picture, np.where(truth == ignore, 0, truth), colors), truth == ignore)
        corner = sheet.put(1, 0, tinted, "ground truth", f"{len(order)} classes")
        sheet.names(corner, _regions(truth, order, _NAMED), names)
    for number, (column, labels) in enumerate(zip(columns, small, strict=True)):
        row, place = number // per_row * high, 1 + number % per_row
        corner = sheet.put(row, place, _tint(picture, labels, colors), column.title, column.note)
        sheet.names(corner, _regions(labels, [*order, *extra], _NAMED), names)
        if truth is not None:
            wrong = ((labels != truth) & (truth != ignore)).sum() / max(1, (truth != ignore).sum())
            note = f"{100 * wrong:.1f} % of the pixels are wrong"
            sheet.put(row + 1, place, error_map(picture, labels, truth, ignore, background), "errors", note)
    outside = any(bool((part >= len(names)).any()) for part in small)
    bottom = _legend(sheet, names, colors, found, order, extra, guessed, background, target is not None, outside)
    return sheet.image.crop((0, 0, sheet.image.width, bottom + _MARGIN))


def _legend(
    sheet: _Sheet,
    names: Sequence[str],
    colors: dict[int, tuple[int, int, int]],
    found: dict[int, float],
    order: list[int],
    extra: list[int],
    guessed: dict[int, float],
    background: int | None,
    truth: bool,
    outside: bool,
) -> int:
    """The classes by their share, those that only a method sees, and the kinds of errors; returns where it ends."""

    def listed(indices: list[int], shares: dict[int, float]) -> list[tuple[str, Any]]:
        entries = [(f"{names[i]}  {100 * shares[i]:.1f} %", colors[i]) for i in indices[:_LISTED]]
        return entries + ([(f"and {len(indices) - _LISTED} more", None)] if len(indices) > _LISTED else [])

    y = sheet.top + _MARGIN // 2
    if order:
        y = sheet.swatches(y, "in the ground truth", listed(order, found))
    if extra or outside:
        entries = [*listed(extra, guessed), *([("no class", _NONE)] if outside else [])]
        y = sheet.swatches(y, "only predicted" if truth else "classes", entries)
    if truth:
        kinds: list[tuple[str, Any]] = [("right", (190, 190, 190)), ("one class for another", _CONFUSED)]
        if background is not None:
            kinds += [("object missed", _MISSED), ("object where there is none", _INVENTED)]
        y = sheet.swatches(y, "errors", [*kinds, ("does not count", "hatched")])
    return y


def save_panel(path: Path, panel: "Image") -> None:
    """Writes a panel as PNG, completely or not at all."""
    write_together({path: lambda temporary: panel.save(temporary, format="PNG", compress_level=3)})
