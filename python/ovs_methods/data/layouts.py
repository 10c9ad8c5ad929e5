"""The published directory layouts: where a data set's photos and masks are, and how its masks are to be read."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from ..errors import UserError
from .classes import CLASSES
from .core import KINDS, Dataset, Item
from .folder import (
    CLASS_LISTS,
    IMAGE_FOLDERS,
    MASK_FOLDERS,
    files_below,
    find_below,
    folder_rule,
    read_class_list,
)
from .masks import MaskRule, voc_colors

# Cityscapes' ids of the classes that are evaluated, in order of their train ids; all others do not count.
_CITY_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
# COCO's ids (from 0) that no object has: COCO-Stuff's train ids are the others, counted through.
_STUFF_GAPS = (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)


@dataclasses.dataclass(frozen=True)
class Choices:
    """What a user may say about where things are.

    Attributes:
        split: part of the data set; None is its validation set.
        images: folder of the photos, relative to the root; of the kind `folder` only, as the following but `ignored`.
        masks: folder of the masks.
        mask_suffix: end of the masks' file names, as _mask.png.
        class_list: file of the classes.
        reduce_zero: label 0 does not count and the first class has label 1.
        ignored: labels that do not count.
    """

    split: str | None = None
    images: str | None = None
    masks: str | None = None
    mask_suffix: str = ""
    class_list: str | None = None
    reduce_zero: bool = False
    ignored: tuple[int, ...] = (255,)


def _root_of(root: Path, inside: tuple[str, ...], has: str, kind: str) -> Path:
    """The folder that has `has` in it: the user's, or one of those that archives unpack to."""
    for part in ("", *inside):
        if (root / part / has).is_dir():
            return root / part
    looked = " or ".join(str(root / part / has) for part in ("", *inside[:1]))
    raise UserError("--dataset", f"a folder with the layout of {kind}", f"{root}, without {looked}")


def _listed(path: Path, kind: str) -> list[str]:
    if not path.is_file():
        raise UserError("--split", f"a list of the images of {kind}", f"nothing at {path}")
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(path, "a list of names, one a line", f"'{error}'") from None
    return list(dict.fromkeys(line.split()[0] for line in lines if line.strip()))


def _from_list(names: list[str], image: Callable[[str], Path], mask: Callable[[str], Path]) -> tuple:
    """Items and missing files of a split whose list names its images."""
    items, missing = [], []
    for name in names:
        item = Item(name, image(name), mask(name))
        absent = [f"{path} (listed, not there)" for path in (item.image, item.mask) if not path.is_file()]
        missing += absent
        if not absent:
            items.append(item)
    return items, missing


def _from_folders(images: dict[str, Path], masks: dict[str, Path]) -> tuple:
    """Items, and the files that have no partner, of a split that is whatever lies in two folders."""
    items = [Item(name, path, masks[name]) for name, path in images.items() if name in masks]
    alone = [f"{path} (no mask)" for name, path in images.items() if name not in masks]
    return items, alone + [f"{path} (no image)" for name, path in masks.items() if name not in images]


def _pascal(kind: str, root: Path, choices: Choices) -> tuple:
    voc = kind in ("voc20", "voc21")
    year, folder, lists = (
        ("VOC2012", "SegmentationClass", "Segmentation")
        if voc
        else ("VOC2010", "SegmentationClassContext", "SegmentationContext")
    )
    root = _root_of(root, (f"VOCdevkit/{year}", year), folder, kind)
    split = choices.split or "val"
    names = _listed(root / "ImageSets" / lists / f"{split}.txt", kind)
    photos, masks = root / "JPEGImages", root / folder
    items, missing = _from_list(names, lambda name: photos / f"{name}.jpg", lambda name: masks / f"{name}.png")
    first = kind in ("voc20", "context59")
    rule = MaskRule.plain(len(CLASSES[kind]), first=int(first), ignored=choices.ignored)
    return split, items, missing, dataclasses.replace(rule, colors=voc_colors(rule), indexed=True) if voc else rule


def _coco(kind: str, root: Path, choices: Choices) -> tuple:
    root = _root_of(root, ("coco_stuff164k", "coco_object", "coco"), "annotations", kind)
    split = choices.split or "val2017"
    for folder in ("images", "annotations"):
        if not (root / folder / split).is_dir():
            raise UserError("--dataset", f"a folder with the layout of {kind}", f"{root}, without {folder}/{split}")
    suffix = "_instanceTrainIds.png" if kind == "coco-object" else "_labelTrainIds.png"
    rule = MaskRule.plain(len(CLASSES[kind]), ignored=choices.ignored)
    masks = files_below(root / "annotations" / split, suffix)
    if not masks and kind == "coco-stuff":  # the original pixel maps
        masks = {
            name: path
            for name, path in files_below(root / "annotations" / split, ".png").items()
            if not name.endswith("TrainIds")
        }
        ids = [value for value in range(len(CLASSES[kind]) + len(_STUFF_GAPS)) if value not in _STUFF_GAPS]
        values = {**dict.fromkeys(choices.ignored, -1), **{value: index for index, value in enumerate(ids)}}
        rule = MaskRule(len(CLASSES[kind]), values)
    items, missing = _from_folders(files_below(root / "images" / split), masks)
    return split, items, missing, rule


def _ade(kind: str, root: Path, choices: Choices) -> tuple:
    root = _root_of(root, ("ADEChallengeData2016", "ade/ADEChallengeData2016"), "annotations", kind)
    split = choices.split or "validation"
    for folder in ("images", "annotations"):
        if not (root / folder / split).is_dir():
            raise UserError("--dataset", f"a folder with the layout of {kind}", f"{root}, without {folder}/{split}")
    items, missing = _from_folders(
        files_below(root / "images" / split), files_below(root / "annotations" / split, ".png")
    )
    return split, items, missing, MaskRule.plain(len(CLASSES[kind]), first=1, ignored=choices.ignored)


def _cityscapes(kind: str, root: Path, choices: Choices) -> tuple:
    root = _root_of(root, ("cityscapes",), "leftImg8bit", kind)
    split = choices.split or "val"
    for folder in ("leftImg8bit", "gtFine"):
        if not (root / folder / split).is_dir():
            raise UserError("--dataset", f"a folder with the layout of {kind}", f"{root}, without {folder}/{split}")
    rule = MaskRule.plain(len(CLASSES[kind]), ignored=choices.ignored)
    masks = files_below(root / "gtFine" / split, "_gtFine_labelTrainIds.png")
    if not masks:  # as the archive comes, before cityscapesscripts has made train ids of it
        masks = files_below(root / "gtFine" / split, "_gtFine_labelIds.png")
        values = {value: _CITY_IDS.index(value) if value in _CITY_IDS else -1 for value in (*range(34), 255)}
        rule = MaskRule(len(CLASSES[kind]), {**values, **dict.fromkeys(choices.ignored, -1)})
    items, missing = _from_folders(files_below(root / "leftImg8bit" / split, "_leftImg8bit.png"), masks)
    return split, items, missing, rule


_LAYOUTS = {
    **dict.fromkeys(("voc20", "voc21", "context59", "context60"), _pascal),
    **dict.fromkeys(("coco-object", "coco-stuff"), _coco),
    "ade20k": _ade,
    "cityscapes": _cityscapes,
}


def _folder(root: Path, choices: Choices) -> Dataset:
    if choices.images and choices.split:
        raise UserError("--split", "no --images with it, which names the folder too", f"'{choices.split}'")
    images = find_below(root, choices.images or choices.split, IMAGE_FOLDERS, "--images", "a folder of images")
    masks = find_below(root, choices.masks, MASK_FOLDERS, "--masks", "a folder of masks")
    listed = find_below(root, choices.class_list, CLASS_LISTS, "--class-list", "a file with a class per line")
    classes = read_class_list(listed, choices.reduce_zero, choices.ignored)
    items, missing = _from_folders(files_below(images), files_below(masks, choices.mask_suffix))
    words = classes.words if any(len(words) > 1 for words in classes.words) else ()
    split = images.relative_to(root).as_posix() if images.is_relative_to(root) else str(images)
    rule = folder_rule(classes)
    return Dataset("folder", root, split, classes.names, tuple(items), rule, words, tuple(missing))


def load_dataset(kind: str, root: Path | str, choices: Choices | None = None) -> Dataset:
    """Finds the photos and masks of a data set. Reads no image.

    Args:
        kind: one of KINDS.
        root: its folder, or one that holds the folder that its archives unpack to.
        choices: what the user says about where things are.

    Returns:
        The data set.

    Raises:
        UserError: the layout is another one, or there is not one photo with a mask.
    """
    root, choices = Path(root), choices or Choices()
    if kind not in KINDS:
        raise UserError("--kind", ", ".join(KINDS), f"'{kind}'")
    if not root.is_dir():
        raise UserError("--dataset", "a folder", f"{'the file' if root.exists() else 'nothing at'} {root}")
    if kind == "folder":
        made = _folder(root, choices)
    else:
        given = {"--images": choices.images, "--masks": choices.masks, "--mask-suffix": choices.mask_suffix}
        given |= {"--class-list": choices.class_list, "--reduce-zero-label": choices.reduce_zero}
        for option, value in given.items():
            if value:
                raise UserError(option, "--kind folder with it", f"--kind {kind}")
        split, items, missing, rule = _LAYOUTS[kind](kind, root, choices)
        made = Dataset(kind, root, split, CLASSES[kind], tuple(items), rule, missing=tuple(missing))
    if not made.items:
        problem = f"none; the first of {len(made.missing)} alone: {made.missing[0]}" if made.missing else "none"
        raise UserError("--dataset", f"at least one image with a mask in {root}", problem)
    return made
