"""Methods: what was seen of a photo and a vocabulary become scores at the working resolution."""

from .coarse import coarse, embedding_scores
from .lposs import PRESETS, Preset, choose_preset, lposs, lposs_plus, propagate_scores
from .pixels import check_propagation, pixels

METHODS = {"coarse": coarse, "pixels": pixels, "lposs": lposs, "lposs+": lposs_plus}

__all__ = [
    "METHODS",
    "PRESETS",
    "Preset",
    "check_propagation",
    "choose_preset",
    "coarse",
    "embedding_scores",
    "lposs",
    "lposs_plus",
    "pixels",
    "propagate_scores",
]
