"""What a data set is, once its files have been found."""

import dataclasses
from pathlib import Path

from .masks import MaskRule

KINDS = (
    *("voc20", "voc21", "context59", "context60", "coco-object", "coco-stuff", "ade20k", "cityscapes"),
    "folder",
)


@dataclasses.dataclass(frozen=True)
class Item:
    """A photo and its mask.

    Attributes:
        name: what it is called in the data set; unique.
        image: path of the photo.
        mask: path of the mask.
    """

    name: str
    image: Path
    mask: Path


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Photos with masks, and what the masks mean.

    Attributes:
        kind: one of KINDS.
        root: folder that the user named.
        split: part of the data set, such as val; of a folder its folder of images.
        classes: [C] names; a label of a target is an index in it.
        items: photos that have a mask, in order of their names (of the split's list where there is one).
        rule: how a mask file becomes a target.
        words: [C] other names of each class, itself included, where the class list of a folder has them.
        missing: files that a photo or a mask has no partner in, or that the split's list names and that are not there.
    """

    kind: str
    root: Path
    split: str
    classes: tuple[str, ...]
    items: tuple[Item, ...]
    rule: MaskRule
    words: tuple[tuple[str, ...], ...] = ()
    missing: tuple[str, ...] = ()

    @property
    def background(self) -> int | None:
        """Index of the class called background, None without one."""
        return next((index for index, name in enumerate(self.classes) if name.lower() == "background"), None)
