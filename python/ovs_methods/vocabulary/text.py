"""Text: a class is what its names say, to a CLIP model."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn import functional as F

from ..errors import UserError
from .core import ClassExamples
from .templates import load_templates, template_embeddings

if TYPE_CHECKING:
    from ..backbones import TextBackbone

# Words for "none of the others": what else is in the photos of PASCAL VOC and of COCO-Object (SCLIP, LPOSS).
_BOTH = (
    *("sky", "wall", "tree", "wood", "grass", "road", "sea", "river", "mountain", "sands", "desk", "bed"),
    *("building", "cloud", "floor", "hill", "rail"),
)
_VOC_ONLY = ("lamp", "door", "window", "wardrobe", "ceiling", "shelf", "curtain", "stair", "fence")
BACKGROUNDS = {"none": (), "plain": ("background",), "voc": (*_BOTH, *_VOC_ONLY), "coco": _BOTH}


def parse_classes(text: str, background: str = "none", least: int = 2) -> dict[str, list[str]]:
    """Reads `cat, sofa; couch, wall`: classes between commas, other names of the same class behind ; or |.

    Args:
        text: what the user wrote; a class is called by its first name.
        background: key of BACKGROUNDS, or words between commas: names of a first class "background". A word
            that is also a name in `text` is left out: it would tie with that class everywhere and win.
        least: classes that there have to be.

    Returns:
        The names of each class.

    Raises:
        UserError: no class, an empty name, or a name given twice.
    """
    classes: dict[str, list[str]] = {}
    owner: dict[str, str] = {}
    for part in text.split(",") if text.strip() else []:
        names = [" ".join(name.split()) for name in re.split(r"[;|]", part)]
        if not all(names):
            raise UserError(
                "--classes", "names between commas, e.g. 'cat, sofa; couch, wall'", f"an empty name in '{text}'"
            )
        for name in names:
            if name.lower() in owner:
                raise UserError("--classes", "every name once", f"'{name}' twice")
            owner[name.lower()] = names[0]
        classes[names[0]] = names
    if not classes:
        raise UserError("--classes", "at least one name, e.g. 'cat, sofa, wall'", f"'{text}'")
    words = BACKGROUNDS.get(background.strip().lower())
    if words is None:
        words = tuple(word for word in (" ".join(word.split()) for word in background.split(",")) if word)
    words = [word for word in words if word.lower() not in owner]
    if words and "background" in owner:
        raise UserError("--background", "none where --classes has a 'background' of its own", f"'{background}'")
    if words:
        classes = {"background": words, **classes}
    if len(classes) < least:
        raise UserError(
            "--classes", "at least two classes to tell apart", f"only '{next(iter(classes))}'", "add --background voc"
        )
    return classes


def text_examples(
    text: "TextBackbone",
    classes: dict[str, list[str]],
    cache: Path | None = None,
    templates: Sequence[str] | None = None,
) -> list[ClassExamples]:
    """Embeddings of the classes' names; those that are not on disk yet are computed and stored.

    Args:
        text: the model.
        classes: names of each class.
        cache: folder of the stored embeddings; None is the user's cache folder.
        templates: that the names are put into; None is the 80 ImageNet templates of open_clip.

    Returns:
        One entry per class, one embedding per name: the mean of its embeddings in the templates, of length 1.
    """
    templates = load_templates() if templates is None else templates
    return mean_examples(classes, template_embeddings(text, all_names(classes), templates, cache))


def all_names(classes: dict[str, list[str]]) -> list[str]:
    """The names of all classes, class by class."""
    return [name for names in classes.values() for name in names]


def mean_examples(classes: dict[str, list[str]], embeddings: Tensor) -> list[ClassExamples]:
    """The classes by the means of their names over all templates.

    Args:
        classes: names of each class, P in all.
        embeddings: [M, P, D], of length 1, as `template_embeddings` makes them of `all_names`.

    Returns:
        One entry per class, one embedding of length 1 per name.
    """
    means = F.normalize(embeddings.mean(0), dim=-1).split([len(names) for names in classes.values()])
    return [ClassExamples(label, part) for label, part in zip(classes, means, strict=True)]
