"""What the methods of the CLIP family take unless the user says otherwise; docs/methods.md says whose each value is."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..backbones import default_model
from ..errors import UserError


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How patches of CLIP become labels.

    Attributes:
        features: what becomes of CLIP's last block, as `load_backbone` takes it.
        head: "maskclip", probabilities of the patches are averaged over windows, or "naclip", cosines are, and become
            probabilities at the pixels of the photo.
        windows: as `parse_windows` reads it.
        short_side: of the working resolution.
        scale: of the cosines before the softmax.
        threshold: probability below which a pixel is background.
        renormalize: the means of embeddings that are FLOSS's experts get length 1 again.
        pamr: whether PAMR refines the cosines at the pixels of the photo; of the head "naclip".
    """

    features: str
    head: str
    windows: str
    short_side: int
    scale: float
    threshold: float = 0.0
    renormalize: bool = False
    pamr: bool = False

    @property
    def backbone(self) -> str:
        """The CLIP that the features were published with."""
        return default_model(self.features)


_MASKCLIP = Recipe("maskclip", "maskclip", "448/224", 448, 100.0)
_NACLIP = Recipe("naclip", "naclip", "224/112", 336, 40.0, threshold=0.1, renormalize=True)
RECIPES = {
    "maskclip": _MASKCLIP,
    "naclip": _NACLIP,
    "clip-dinoiser": dataclasses.replace(_MASKCLIP, features="clip-dinoiser"),
    "proxyclip": dataclasses.replace(_NACLIP, features="proxyclip", windows="336/112"),  # the threshold: our choice
}
FUSION_SCALE = 100.0


def choose_recipe(name: str, changed: Mapping[str, Any], classes: Sequence[str] = (), fusion: bool = False) -> Recipe:
    """The recipe that a user means.

    Args:
        name: key of RECIPES.
        changed: scale, threshold and pamr that the user gave; None where not.
        classes: names of the classes; the recipe's own threshold counts if the first is called "background".
        fusion: FLOSS on top of it, whose scale is 100 and whose threshold is none.

    Returns:
        The recipe.

    Raises:
        UserError: a scale or a threshold out of range, or a threshold or PAMR where there is none.
    """
    recipe, scale, threshold = RECIPES[name], changed.get("scale"), changed.get("threshold")
    if threshold is not None and (fusion or recipe.head != "naclip"):
        method = "floss" if fusion else name
        raise UserError("--threshold", "--method naclip, proxyclip or dslo-mv with it", f"--method {method}")
    pamr = bool(changed.get("pamr"))
    if pamr and (fusion or recipe.head != "naclip"):
        raise UserError("--pamr", "--method naclip or proxyclip with it", f"--method {'floss' if fusion else name}")
    if scale is None:
        scale = FUSION_SCALE if fusion else recipe.scale
    if threshold is None:
        background = bool(classes) and classes[0].lower() == "background"
        threshold = recipe.threshold if background and not fusion else 0.0
    if not 0 < scale < math.inf:
        raise UserError("--scale", "a positive number", scale)
    if not 0 <= threshold < 1:
        raise UserError("--threshold", "a probability from 0 to below 1", threshold)
    return dataclasses.replace(recipe, scale=scale, threshold=threshold, pamr=pamr)
