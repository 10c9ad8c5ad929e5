"""Methods: what was seen of a photo and a vocabulary become scores, at the working resolution or per patch."""

from .coarse import best_of_groups, coarse, embedding_scores
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
from .floss import FUSIONS, expert_embeddings, floss
from .lposs import PRESETS, Preset, choose_preset, lposs, lposs_plus, propagate_scores
from .maskclip import maskclip
from .naclip import naclip, pamr_scores, softmax_argmax
from .pixels import check_propagation, pixels
from .pnp_maps import CrfSettings, normalized_maps, postprocess
from .pnp_ovss import PNP, PNP_PRESETS, PnpPreset, choose_pnp_preset, saliency_maps
from .recipes import RECIPES, Recipe, choose_recipe

METHODS = {
    "coarse": coarse,
    "pixels": pixels,
    "lposs": lposs,
    "lposs+": lposs_plus,
    "dslo-op": dslo_op,
    "dslo-mv": dslo_mv,
    "maskclip": maskclip,
    "clip-dinoiser": maskclip,
    "naclip": naclip,
    "proxyclip": naclip,
}
ATTENTION_METHODS = ("dslo-op", "dslo-mv")  # those that need an attention, and end in `upsample_argmax`

__all__ = [
    "ATTENTION_METHODS",
    "DSLO_PRESETS",
    "FUSIONS",
    "METHODS",
    "NMS_MODES",
    "PNP",
    "PNP_PRESETS",
    "PRESETS",
    "RECIPES",
    "CrfSettings",
    "DsloPreset",
    "PnpPreset",
    "Preset",
    "Recipe",
    "best_of_groups",
    "check_propagation",
    "choose_dslo_preset",
    "choose_pnp_preset",
    "choose_preset",
    "choose_recipe",
    "coarse",
    "dslo",
    "dslo_mv",
    "dslo_op",
    "embedding_scores",
    "expert_embeddings",
    "floss",
    "lposs",
    "lposs_plus",
    "maskclip",
    "naclip",
    "normalized_maps",
    "pamr_scores",
    "pixels",
    "postprocess",
    "propagate_scores",
    "saliency_maps",
    "softmax_argmax",
    "upsample_argmax",
]
