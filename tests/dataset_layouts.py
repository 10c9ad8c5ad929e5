"""Small data sets in the published directory layouts, of real photos and masks made from their brightness."""

import dataclasses
from pathlib import Path

import numpy as np
from PIL import Image

# The first colours of PASCAL VOC's palette, as its development kit lists them, and that of its border.
VOC_PALETTE = [
    *((0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128), (128, 0, 128), (0, 128, 128), (128, 128, 128)),
    *((64, 0, 0), (192, 0, 0), (64, 128, 0), (192, 128, 0), (64, 0, 128), (192, 0, 128), (64, 128, 128)),
    *((192, 128, 128), (0, 64, 0), (128, 64, 0), (0, 192, 0), (128, 192, 0), (0, 64, 128)),
]
VOC_BORDER = (224, 224, 192)


@dataclasses.dataclass(frozen=True)
class Made:
    """A data set on disk.

    Attributes:
        root: its folder.
        masks: the values in each mask, by the image's name.
    """

    root: Path
    masks: dict[str, np.ndarray]


def crop(photo: Path, box: tuple[int, int, int, int]) -> Image.Image:
    """A piece of a photo, mode RGB."""
    with Image.open(photo) as image:
        return image.convert("RGB").crop(box)


def levels(image: Image.Image, values: list[int]) -> np.ndarray:
    """[H, W] one of `values` by the brightness of a pixel, uint8."""
    gray = np.asarray(image).mean(-1)
    return np.array(values, np.uint8)[(gray / 256 * len(values)).astype(int)]


def palette_png(values: np.ndarray, path: Path) -> None:
    """A mask as VOC's: a palette PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values)
    colors = VOC_PALETTE + [(0, 0, 0)] * (255 - len(VOC_PALETTE)) + [VOC_BORDER]
    image.putpalette([channel for color in colors for channel in color])
    image.save(path)


def gray_png(values: np.ndarray, path: Path) -> None:
    """A mask as a gray PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def photos(*paths: Path) -> dict[str, Image.Image]:
    """Five pieces of photos, none of the size of another."""
    made = {}
    for index in range(5):
        left, top = 40 + 25 * index, 20 + 12 * index
        made[f"2007_{index:06d}"] = crop(paths[index % len(paths)], (left, top, left + 96 + 9 * index, top + 80))
    return made


def voc(root: Path, *paths: Path) -> Made:
    """PASCAL VOC 2012: background, cat, bottle and border pixels; the last image is not in the list."""
    masks = {}
    for name, image in photos(*paths).items():
        (root / "JPEGImages").mkdir(parents=True, exist_ok=True)
        image.save(root / "JPEGImages" / f"{name}.jpg", quality=95)
        masks[name] = levels(image, [0, 8, 5])
        masks[name][:5] = 255
        palette_png(masks[name], root / "SegmentationClass" / f"{name}.png")
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "val.txt").write_text("".join(f"{name}\n" for name in reversed(list(masks)[:4])))
    return Made(root, masks)


def pairs(root: Path, images: str, masks: str, values: list[int], *paths: Path) -> Made:
    """A data set of photos and gray masks; `images` and `masks` are their paths with {} in place of the name."""
    made = {}
    for name, image in photos(*paths).items():
        path = root / images.format(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
        made[name] = levels(image, values)
        gray_png(made[name], root / masks.format(name))
    return Made(root, made)


def folder(root: Path, *paths: Path, names: str = "background\ncat\ncup; mug\n") -> Made:
    """images, masks and classes.txt: labels 0 to 2."""
    made = pairs(root, "images/{}.jpg", "masks/{}.png", [0, 1, 2], *paths)
    (root / "classes.txt").write_text(names)
    return made
