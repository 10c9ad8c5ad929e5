"""What the options of PnP-OVSS want of each other; nothing is loaded here."""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .backbones import matcher_files
from .backbones.matching import ImageTextMatcher, single_word
from .errors import UserError
from .outputs import file_identity
from .vocabulary import parse_classes

if TYPE_CHECKING:
    from .options import SegmentOptions

UNCOVERED = "uncovered"  # --background: the class of the pixels that no class's map covers
BACKGROUND = "background"


def is_uncovered(background: str) -> bool:
    """Whether --background asks for the class of the pixels that no class's map covers."""
    return background.strip().lower() == UNCOVERED


def pnp_classes(classes: str, background: str) -> dict[str, list[str]]:
    """The names of each class that go into the prompt, as words.

    Args:
        classes: as `parse_classes` reads it.
        background: UNCOVERED, for which one class is enough, or as `parse_classes` reads it.

    Returns:
        The words of each class.

    Raises:
        UserError: as `parse_classes`, or a name without a letter.
    """
    uncovered = is_uncovered(background)
    names = parse_classes(classes, "none" if uncovered else background, least=1 if uncovered else 2)
    if uncovered and BACKGROUND in (name.lower() for several in names.values() for name in several):
        raise UserError("--background", "none where --classes has a 'background' of its own", f"'{background}'")
    return {label: [single_word(name) for name in several] for label, several in names.items()}


def check_pnp(options: "SegmentOptions") -> None:
    """Judges what PnP-OVSS is asked for without loading anything.

    Raises:
        UserError: an option is missing, out of range, or of another method.
    """
    wanted = "another method than pnp-ovss with it"
    others = {
        "--point": options.points,
        "--exemplar": options.exemplars,
        "--templates": options.templates,
        "--windows": options.constants.get("windows"),
        "--features": options.features,
        "--guide": options.guide,
        "--guide-weights": options.guide_weights,
        "--projection": options.projection,
        "--scale": options.recipe.get("scale"),
    }
    for option, value in others.items():
        if value:
            raise UserError(option, wanted, "--method pnp-ovss")
    if options.classes is None:
        raise UserError("--method pnp-ovss", "--classes with it, whose names the prompt consists of", "none")
    pnp_classes(options.classes, options.background)
    options.pnp_constants()


def pnp_settings(options: "SegmentOptions") -> dict[str, Any]:
    """What decides a result of PnP-OVSS beside the classes, as JSON holds it."""
    files = matcher_files(options.backbone, options.weights)
    return {
        **dataclasses.asdict(options.pnp_constants()),
        "background": options.background.strip().lower(),
        "files": [file_identity(file) for file in files],
    }


def check_side(side: int, matcher: ImageTextMatcher) -> int:
    """Raises UserError for a side that is not a whole number of patches; returns it."""
    if side % matcher.patch:
        raise UserError("--size", f"a multiple of {matcher.patch}, the patches of {matcher.name}", side)
    return side


def read_tuned(path: Path, model: str, weights: str | None = None) -> dict[str, Any]:
    """The best setting in a report of `ovs tune-pnp`: layer and head from 0, threshold and blur.

    Args:
        path: of the report.
        model: that the setting is for, as `load_matcher` takes it.
        weights: its folder.

    Raises:
        UserError: it is none, or one for another model.
    """
    wanted = "a report of ovs tune-pnp"
    if not path.is_file():
        raise UserError("--tuned", wanted, f"no file at {path}")
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        best, tuned, known = report["best"], report["settings"]["backbone"], report["settings"]["files"]
        setting = {name: int(best[name]) for name in ("layer", "head")}
        setting |= {name: float(best[name]) for name in ("threshold", "blur")}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError("--tuned", wanted, f"{path} ('{str(error)[:80]}')") from None

    files = [file_identity(file) for file in matcher_files(model, weights)]
    if known != files if known or files else tuned != model:
        raise UserError("--tuned", f"a report for {model}", f"{path}, which is for {tuned}")
    return setting
