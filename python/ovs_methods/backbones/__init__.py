"""Backbones: an image becomes dense features."""

from pathlib import Path

from ..errors import UserError
from .blip import BlipMatcher
from .bridgetower import BridgeTowerMatcher
from .clip import DEFAULT_MODEL, ClipBackbone
from .clip_dinoiser import ClipDinoiser, read_projection
from .core import AttentiveBackbone, Backbone, TextBackbone
from .dino import ALIASES, DinoTokens, DinoValues
from .dinov2 import DEFAULT_LAYER, DinoV2
from .maskclip import FORMS, MaskClip
from .matching import HookedMatcher, ImageTextMatcher
from .pretrained import local_folder, model_files, model_type
from .proxyclip import ProxyClip

EMBEDDED = DinoV2.name
FEATURES = (*FORMS, "clip-dinoiser", "proxyclip")  # how CLIP's patches become features
GUIDES = {"clip-dinoiser": "dino_vitb16", "proxyclip": "dino_vitb8"}  # the usual guide of those that need one
_OPENAI = "ViT-B-16:openai"
_MODELS = {"naclip": _OPENAI, "proxyclip": _OPENAI}  # the CLIP that a form was published with

# Models that match images and text: short names, and the class for each architecture of transformers.
MATCHER = "blip-itm-large-flickr"
_HUB = {
    **{name: f"Salesforce/{name}" for name in (MATCHER, "blip-itm-large-coco", "blip-itm-base-flickr")},
    "blip-itm-base-coco": "Salesforce/blip-itm-base-coco",
    "bridgetower-base": "BridgeTower/bridgetower-base-itm-mlm",
    "bridgetower-large": "BridgeTower/bridgetower-large-itm-mlm",
}
_ARCHITECTURES = {"blip": BlipMatcher, "bridgetower": BridgeTowerMatcher}


def load_matcher(name: str = MATCHER, weights: str | None = None, flag: str = "--weights") -> ImageTextMatcher:
    """The model that matches images and text which a user names.

    Args:
        name: `blip-itm-large-flickr`, `blip-itm-large-coco`, the same with `base`, `bridgetower-base`,
            `bridgetower-large`, ORG/REPO of the hub, or a folder in the layout of transformers.
        weights: such a folder instead of the download.
        flag: the option that `weights` comes from.

    Returns:
        The model.

    Raises:
        UserError: no such model, or its weights cannot be had.
        MissingDependency: transformers is not installed.
    """
    place, folder = _HUB.get(name, name), Path(weights) if weights is not None else None
    if "/" not in place and not Path(place).exists() and folder is None:
        raise UserError("--model", f"{', '.join(_HUB)}, ORG/REPO, or a folder", f"'{name}'")
    kind = model_type(place, folder, flag)
    if kind not in _ARCHITECTURES:
        got = f"{folder or name}, a model of the type '{kind}'"
        raise UserError("--model" if folder is None else flag, f"a {' or '.join(_ARCHITECTURES)}", got)
    return _ARCHITECTURES[kind](place, folder, flag)


def matcher_files(name: str, weights: str | None = None) -> list[Path]:
    """The local files that decide what a model that `load_matcher` loads does; none for a download."""
    folder = local_folder(_HUB.get(name, name), Path(weights) if weights is not None else None)
    return model_files(folder) if folder is not None and folder.is_dir() else []


def load_backbone(
    name: str,
    weights: str | None = None,
    *,
    features: str | None = None,
    guide: str | None = None,
    guide_weights: str | None = None,
    projection: str | None = None,
    layer: int = DEFAULT_LAYER,
    threads: int | None = None,
    flag: str = "--weights",
) -> Backbone:
    """The backbone that a user names.

    Args:
        name: `dinov2-small` (embedded, ONNX), a ViT of DINO or timm, or a CLIP model of open_clip
            (`NAME:TAG`, `hf-hub:...`, `local-dir:...`).
        weights: a local file instead of the download.
        features: for CLIP, how its patches become features, one of FEATURES; None is `maskclip`.
        guide: for `clip-dinoiser` and `proxyclip`, the model that says which patches look alike: the embedded one or a
            ViT of DINO or timm; None is that of GUIDES.
        guide_weights: a local file of the guide.
        projection: for `clip-dinoiser`, its published checkpoint, which replaces the guide.
        layer: of the embedded model.
        threads: of the embedded model.
        flag: the option that `weights` comes from.

    Returns:
        The backbone: a `TextBackbone` for CLIP; an `AttentiveBackbone` but for the features that need a guide.

    Raises:
        UserError: no such model, its weights cannot be had, or the arguments do not fit together.
        MissingDependency: a package is not installed.
    """
    check_features(name, features, guide, guide_weights, projection)
    if name == EMBEDDED:
        return DinoV2(layer, model=weights, threads=threads)
    file = Path(weights) if weights is not None else None
    if not is_clip(name):
        return DinoValues(name, file, flag)
    if features is None or features in FORMS:
        return MaskClip(name, file, flag, features or FORMS[0])
    if projection is not None:
        return ClipDinoiser(name, projection=read_projection(Path(projection)), weights=file, flag=flag)
    model = _load_guide(guide or GUIDES[features], guide_weights, features, layer, threads)
    form = ClipDinoiser if features == "clip-dinoiser" else ProxyClip
    return form(name, model, weights=file, flag=flag)


def check_features(
    name: str, features: str | None, guide: str | None, guide_weights: str | None, projection: str | None
) -> None:
    """Judges what `load_backbone` is asked for without loading anything; arguments as there.

    Raises:
        UserError: the arguments do not fit together, or the projection is not there or none.
    """
    given = {"--features": features, "--guide": guide, "--guide-weights": guide_weights, "--projection": projection}
    if not is_clip(name):
        for option, value in given.items():
            if value is not None:
                raise UserError(option, "a CLIP backbone, whose patches it is about", f"'{name}'")
        return
    if features is not None and features not in FEATURES:
        raise UserError("--features", f"{', '.join(FEATURES[:-1])} or {FEATURES[-1]}", f"'{features}'")
    got = f"--features {features or FEATURES[0]}"
    if projection is not None and features != "clip-dinoiser":
        raise UserError("--projection", "--features clip-dinoiser with it", got)
    for option in ("--guide", "--guide-weights"):
        if given[option] is not None and features not in GUIDES:
            raise UserError(option, f"--features {' or '.join(GUIDES)} with it", got)
        if given[option] is not None and projection is not None:
            raise UserError("--projection", f"no {option} with it, whose place it takes", f"'{given[option]}'")
    if guide is not None and is_clip(guide):
        raise UserError("--guide", f"{EMBEDDED}, {', '.join(ALIASES)}, or a ViT of timm", f"'{guide}'")
    if projection is not None:
        read_projection(Path(projection))


def default_model(features: str | None = None) -> str:
    """The CLIP for text that a user leaves open: the one that the features were published with."""
    return _MODELS.get(features or FEATURES[0], DEFAULT_MODEL)


def is_clip(name: str) -> bool:
    """Whether `load_backbone` takes a name for a CLIP of open_clip."""
    return name != EMBEDDED and name not in ALIASES and "_patch" not in name  # as all ViTs of timm, none of open_clip


def _load_guide(name: str, weights: str | None, features: str, layer: int, threads: int | None) -> Backbone:
    """The second model of a form: ProxyCLIP was published with the output tokens, CLIP-DINOiser with the values."""
    if name == EMBEDDED:
        return DinoV2(layer, model=weights, threads=threads)
    dino = DinoTokens if features == "proxyclip" else DinoValues
    return dino(name, Path(weights) if weights is not None else None, "--guide-weights")


__all__ = [
    "DEFAULT_MODEL",
    "EMBEDDED",
    "FEATURES",
    "GUIDES",
    "MATCHER",
    "AttentiveBackbone",
    "Backbone",
    "BlipMatcher",
    "BridgeTowerMatcher",
    "ClipBackbone",
    "ClipDinoiser",
    "DinoTokens",
    "DinoV2",
    "DinoValues",
    "HookedMatcher",
    "ImageTextMatcher",
    "MaskClip",
    "ProxyClip",
    "TextBackbone",
    "check_features",
    "default_model",
    "is_clip",
    "load_backbone",
    "load_matcher",
    "matcher_files",
    "read_projection",
]
