"""Text: a class is what its names say, to a CLIP model."""

import contextlib
import hashlib
import json
import logging
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..backbones import TextBackbone
from ..backbones.weights import cache_folder, import_models
from ..errors import UserError
from .core import ClassExamples

_log = logging.getLogger("ovs_methods")
_FORMAT = 1  # of the cached files

# Words for "none of the others": what else is in the photos of PASCAL VOC and of COCO-Object (SCLIP, LPOSS).
_BOTH = (
    *("sky", "wall", "tree", "wood", "grass", "road", "sea", "river", "mountain", "sands", "desk", "bed"),
    *("building", "cloud", "floor", "hill", "rail"),
)
_VOC_ONLY = ("lamp", "door", "window", "wardrobe", "ceiling", "shelf", "curtain", "stair", "fence")
BACKGROUNDS = {"none": (), "plain": ("background",), "voc": (*_BOTH, *_VOC_ONLY), "coco": _BOTH}


def parse_classes(text: str, background: str = "none") -> dict[str, list[str]]:
    """Reads `cat, sofa; couch, wall`: classes between commas, other names of the same class behind ; or |.

    Args:
        text: what the user wrote; a class is called by its first name.
        background: key of BACKGROUNDS, or words between commas: names of a first class "background". A word
            that is also a name in `text` is left out: it would tie with that class everywhere and win.

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
    if len(classes) < 2:
        raise UserError(
            "--classes", "at least two classes to tell apart", f"only '{next(iter(classes))}'", "add --background voc"
        )
    return classes


def text_examples(clip: TextBackbone, classes: dict[str, list[str]], cache: Path | None = None) -> list[ClassExamples]:
    """Embeddings of the classes' names; those that are not on disk yet are computed and stored.

    A name is the mean of its embeddings in the 80 ImageNet templates of open_clip, of length 1.

    Args:
        clip: the model.
        classes: names of each class.
        cache: folder of the stored embeddings; None is the user's cache folder.

    Returns:
        One entry per class, one embedding per name.
    """
    templates = import_models("open_clip", "text prompts").OPENAI_IMAGENET_TEMPLATES
    folder = cache or cache_folder() / "text"
    return [
        ClassExamples(label, torch.stack([_embedding(clip, name, templates, folder) for name in names]))
        for label, names in classes.items()
    ]


def _embedding(clip: TextBackbone, name: str, templates: tuple[Callable[[str], str], ...], folder: Path) -> Tensor:
    """The unit embedding of one name, [D]."""
    prompts = [template(name) for template in templates]
    key = json.dumps([_FORMAT, clip.text_identity, prompts], sort_keys=True)
    path = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npy"
    with contextlib.suppress(OSError, ValueError, EOFError):
        stored = np.load(path, allow_pickle=False)
        if stored.dtype == np.float32 and stored.ndim == 1 and abs(float(np.linalg.norm(stored)) - 1) < 1e-3:
            return torch.from_numpy(stored)
    embedding = F.normalize(clip.encode_text(prompts).mean(0), dim=0)
    _store(path, embedding.numpy())
    return embedding


def _store(path: Path, array: np.ndarray) -> None:
    """Writes a file of the cache completely or not at all; a cache that cannot be written is no error."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            np.save(file, array)
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        _log.info("the text cache %s cannot be written (%s)", path.parent, error.strerror)
