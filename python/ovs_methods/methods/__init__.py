"""Methods: what was seen of a photo and a vocabulary become scores, at the working resolution or per patch."""

from .coarse import coarse, embedding_scores
from .dslo import (
    DSLO_PRESETS,
    NMS_MODES,
    DsloPreset,
    choose_dslo_preset,
    dslo,
    dslo_mv,
    dslo_op,
    upsample_argmax,
)
from .lposs import PRESETS, Preset, choose_preset, lposs, lposs_plus, propagate_scores
from .pixels import check_propagation, pixels

METHODS = {
    "coarse": coarse,
    "pixels": pixels,
    "lposs": lposs,
    "lposs+": lposs_plus,
    "dslo-op": dslo_op,
    "dslo-mv": dslo_mv,
}
ATTENTION_METHODS = ("dslo-op", "dslo-mv")  # those that need an attention, and end in `upsample_argmax`

__all__ = [
    "ATTENTION_METHODS",
    "DSLO_PRESETS",
    "METHODS",
    "NMS_MODES",
    "PRESETS",
    "DsloPreset",
    "Preset",
    "check_propagation",
    "choose_dslo_preset",
    "choose_preset",
    "coarse",
    "dslo",
    "dslo_mv",
    "dslo_op",
    "embedding_scores",
    "lposs",
    "lposs_plus",
    "pixels",
    "propagate_scores",
    "upsample_argmax",
]
