"""Points: a class is what lies under the pixels the user clicked."""

import dataclasses
import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import UserError
from .core import ClassExamples, prototypes


@dataclasses.dataclass(frozen=True)
class Point:
    """A pixel of a class.

    Attributes:
        name: of the class.
        x: column in the original photo, the leftmost is 0.
        y: row in the original photo, the topmost is 0.
    """

    name: str
    x: float
    y: float

    def __str__(self) -> str:
        return f"{self.name}:{self.x:g},{self.y:g}"


def parse_point(text: str) -> Point:
    """Reads `NAME:X,Y`.

    Args:
        text: what the user wrote.

    Returns:
        The point.

    Raises:
        UserError: it is written otherwise.
    """
    name, _, place = text.rpartition(":")
    parts = place.split(",")
    try:
        x, y = (float(part) for part in parts)
        well_formed = bool(name.strip()) and math.isfinite(x) and math.isfinite(y)
    except ValueError:
        well_formed = False
    if not well_formed:
        raise UserError("--point", "NAME:X,Y in pixels of the photo, e.g. cat:120,80", f"'{text}'")
    return Point(name.strip(), x, y)


def check_inside(points: list[Point], height: int, width: int, image: object) -> None:
    """Raises UserError for the first point that is not a pixel of a photo of this size."""
    for point in points:
        if not (0 <= point.x < width and 0 <= point.y < height):
            raise UserError(
                f"--point {point}",
                f"a pixel of {image}, X from 0 to {width - 1} and Y from 0 to {height - 1}",
                f"X={point.x:g}, Y={point.y:g}",
            )


def point_examples(features: Tensor, points: list[Point], height: int, width: int, mean: bool) -> list[ClassExamples]:
    """Embeddings of the classes that points name.

    Args:
        features: [h, w, D] unit features of the photo.
        points: inside the photo.
        height: of the photo.
        width: of the photo.
        mean: one embedding per class, the mean of its points, instead of one per point.

    Returns:
        One entry per class, in order of first mention.
    """
    by_name: dict[str, list[Point]] = {}
    for point in points:
        by_name.setdefault(point.name, []).append(point)
    grid = features.permute(2, 0, 1)[None]
    examples = []
    for name, group in by_name.items():
        place = torch.tensor([[2 * (p.x + 0.5) / width - 1, 2 * (p.y + 0.5) / height - 1] for p in group])
        sampled = F.grid_sample(grid, place[None, None], mode="bilinear", padding_mode="border", align_corners=False)
        unit = F.normalize(sampled[0, :, 0].T, dim=-1)
        count = 1 if mean else len(unit)
        examples.append(ClassExamples(name, prototypes(unit, torch.ones(len(unit)), count)))
    return examples
