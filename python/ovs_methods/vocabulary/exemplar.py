"""Exemplar masks: a class is what somebody painted in another photo."""

import dataclasses
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import UserError
from ..images import open_image
from .core import MAX_ID, ClassExamples, prototypes

IGNORE = 255


@dataclasses.dataclass(frozen=True)
class Exemplar:
    """A photo and its mask.

    Attributes:
        image: path of the photo.
        mask: path of the mask: palette or gray PNG whose values are class ids, 255 for "ignore".
    """

    image: Path
    mask: Path

    def __str__(self) -> str:
        return f"{self.image}:{self.mask}"


def parse_exemplar(text: str) -> Exemplar:
    """Reads `IMAGE:MASK`; either path may itself hold a colon.

    Args:
        text: what the user wrote.

    Returns:
        The two paths.

    Raises:
        UserError: it is written otherwise, or a file is missing.
    """
    cuts = [i for i, char in enumerate(text) if char == ":" and 0 < i < len(text) - 1]
    if not cuts:
        raise UserError("--exemplar", "IMAGE:MASK, e.g. cat.jpg:cat_mask.png", f"'{text}'")
    for cut in cuts:
        image, mask = Path(text[:cut]), Path(text[cut + 1 :])
        if image.is_file() and mask.is_file():
            return Exemplar(image, mask)
    image, mask = text[: cuts[0]], text[cuts[0] + 1 :]
    missing = mask if Path(image).is_file() else image
    raise UserError(f"--exemplar {text}", "two existing files", f"nothing at {missing}")


def parse_class_name(text: str) -> tuple[int, str]:
    """Reads `ID=NAME`.

    Args:
        text: what the user wrote.

    Returns:
        The id and the name.

    Raises:
        UserError: it is written otherwise.
    """
    value, _, name = text.partition("=")
    if not (value.strip().isdecimal() and int(value) <= MAX_ID and name.strip()):
        raise UserError("--class-name", f"ID=NAME with an ID from 0 to {MAX_ID}, e.g. 15=person", f"'{text}'")
    return int(value), name.strip()


def read_mask(path: Path, height: int, width: int, image: object) -> np.ndarray:
    """Class ids of a mask file.

    Args:
        path: PNG with a palette (as labelme and PASCAL VOC write it) or gray.
        height: of the photo it belongs to.
        width: of the photo it belongs to.
        image: that photo's name, for the error text.

    Returns:
        [height, width] integers; 255 is "ignore".

    Raises:
        UserError: unreadable, of another size, in colour, or with values above 255.
    """
    mask = open_image(path)
    if mask.mode not in ("P", "L", "1") and not mask.mode.startswith("I"):
        raise UserError(
            path, "a mask whose pixels are class ids (palette or gray PNG)", f"a colour image ({mask.mode})"
        )
    if (mask.height, mask.width) != (height, width):
        raise UserError(
            path, f"a mask of {width} x {height} pixels, the size of {image}", f"{mask.width} x {mask.height}"
        )
    ids = np.asarray(mask).astype(np.int64)
    if ids.min() < 0 or ids.max() > IGNORE:
        raise UserError(path, f"class ids from 0 to {MAX_ID}, and 255 for 'ignore'", f"values up to {ids.max()}")
    return ids


def exemplar_examples(
    features: Tensor, ids: np.ndarray, exemplar: Exemplar, names: dict[int, str], count: int
) -> list[ClassExamples]:
    """Embeddings of the classes of one mask.

    A patch counts for a class by the share of it that the class covers.

    Args:
        features: [h, w, D] unit features of the photo.
        ids: [H, W] class ids, 255 for "ignore".
        exemplar: the files, for error texts.
        names: name of each id; empty: id 0 is called background, 7 is called class 7.
        count: embeddings per class at most.

    Returns:
        One entry per class, in order of the ids.

    Raises:
        UserError: names are given, and the mask has an id without one.
    """
    h, w, dim = features.shape
    examples = []
    for value in np.unique(ids[ids != IGNORE]).tolist():
        if names and value not in names and value != 0:
            known = ", ".join(f"{key}={name}" for key, name in sorted(names.items()))
            raise UserError(
                f"--exemplar {exemplar}",
                f"class ids named by --class-name ({known}), or 255 for 'ignore'",
                f"id {value} in {np.count_nonzero(ids == value)} pixels",
                f"add --class-name {value}=NAME",
            )
        painted = torch.from_numpy((ids == value).astype(np.float32))[None, None]
        share = F.interpolate(painted, (h, w), mode="area").flatten()
        # Patches on the rim show both sides of it; they count only for a class that has no others.
        chosen = share > 0.5 if bool((share > 0.5).any()) else share > 0
        embeddings = prototypes(features.reshape(-1, dim)[chosen], share[chosen], count)
        examples.append(ClassExamples(names.get(value, _default_name(value)), embeddings, value))
    if not examples:
        raise UserError(f"--exemplar {exemplar}", "a mask with at least one class", "only 255, which means 'ignore'")
    return examples


def _default_name(value: int) -> str:
    return "background" if value == 0 else f"class {value}"
