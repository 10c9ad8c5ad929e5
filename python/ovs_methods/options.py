"""What `ovs segment` was asked for, what of it can be checked beforehand, and what decides a result."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import __version__
from .attention import DIFFUSION, SHORT_NAMES, attention_files, is_matrix
from .backbones import EMBEDDED, GUIDES, MATCHER, check_features, default_model, is_clip
from .backbones.dinov2 import DEFAULT_LAYER
from .errors import UserError
from .files import check_out_folder, list_images, output_stems
from .methods import (
    ATTENTION_METHODS,
    FUSIONS,
    PNP,
    RECIPES,
    DsloPreset,
    PnpPreset,
    Preset,
    Recipe,
    check_propagation,
    choose_dslo_preset,
    choose_pnp_preset,
    choose_preset,
    choose_recipe,
)
from .options_pnp import check_pnp, is_uncovered, pnp_classes, pnp_settings, read_tuned
from .outputs import OutputPaths, content_identity, file_identity
from .vocabulary import MAX_ID, Exemplar, Point, check_distinct, load_templates, parse_classes
from .windows import parse_windows

if TYPE_CHECKING:
    from .rankings import Ranking

SHORT_SIDE, PNP_SIDE = 448, 336
TOP = 4  # experts of a class


@dataclasses.dataclass(frozen=True)
class SegmentOptions:
    """What `ovs segment` was asked for.

    Attributes:
        images: files and folders.
        out: folder of the results.
        points: classes by points.
        points_on: the photo the points are in; None is the only image.
        exemplars: classes by masks.
        class_names: names of the ids in the masks.
        prototypes: embeddings of a class in a mask at most; 1 also averages the points of a class.
        classes: classes by text, as `parse_classes` reads it.
        background: words of an additional class, for `classes`; for pnp-ovss also "uncovered".
        templates: file of the prompts that the names in `classes` are put into; None is open_clip's 80.
        method: key of METHODS, floss or pnp-ovss; None is lposs+ for text and pixels for the rest.
        propagation: of `ovs_kernels.lp_pixels`, for the methods pixels and lposs+.
        preset: of the patch stage and of DSLO, see `choose_preset` and `choose_dslo_preset`.
        constants: fields of `Preset` given one by one.
        dslo: fields of `DsloPreset` given one by one.
        pnp: fields of `PnpPreset` given one by one, and `crf_iterations`.
        pnp_variant: key of PNP_PRESETS.
        tuned: report of `ovs tune-pnp`, whose best setting replaces what `pnp` and `recipe` leave open.
        recipe: scale, threshold and pamr of floss and the methods in RECIPES, where the user gave them.
        base: key of RECIPES that floss builds on; None is the one that the ranking was made with.
        experts: file of the ranking, for floss.
        top: templates that are experts for a class, at most; None is 4, for floss.
        fusion: one of FUSIONS; None is the first, for floss.
        short_side: of the working resolution; None is that of the ranking or the recipe, 448 without one. For pnp-ovss
            the side of the square that a photo becomes; None is 336.
        resize: "smooth" averages over the pixels that a reduced photo loses, "sampled" does not, as published code.
        backbone: name of the backbone; None is the CLIP that the features were published with, for text and the
            methods in RECIPES, BLIP for pnp-ovss, and the embedded one for the rest.
        weights: its local file.
        features: how CLIP's patches become features, one of FEATURES; None is that of the recipe, else `kk` for DSLO
            and `maskclip` for the rest.
        guide: the model that `clip-dinoiser` and `proxyclip` ask which patches look alike; None is that of GUIDES.
        guide_weights: its local file.
        projection: the checkpoint of CLIP-DINOiser, instead of a guide.
        graph_backbone: whose features LPOSS's graph compares; None is DINO for CLIP and the backbone itself
            for the rest.
        graph_weights: its local file.
        attention: whose self-attention DSLO uses, or the file of a matrix; None is Stable Diffusion 2 for text and
            the backbone itself for the rest.
        attention_weights: its local file or folder.
        attention_layer: the blocks whose self-attention it is, as `load_attention` reads them; None is its usual one.
        layer: of the embedded backbone.
        threads: of the backbone and the kernels, None for all CPUs.
        panels: folder of panels, None for none.
        overwrite: redo what is there already.
        loaded_ranking: what is in `experts`; set by `resolved`.
    """

    images: list[str]
    out: Path
    points: list[Point] = dataclasses.field(default_factory=list)
    points_on: str | None = None
    exemplars: list[Exemplar] = dataclasses.field(default_factory=list)
    class_names: dict[int, str] = dataclasses.field(default_factory=dict)
    prototypes: int = 5
    classes: str | None = None
    background: str = "none"
    templates: str | None = None
    method: str | None = None
    propagation: dict[str, Any] = dataclasses.field(default_factory=dict)
    preset: str = "auto"
    constants: dict[str, Any] = dataclasses.field(default_factory=dict)
    dslo: dict[str, Any] = dataclasses.field(default_factory=dict)
    pnp: dict[str, Any] = dataclasses.field(default_factory=dict)
    pnp_variant: str | None = None
    tuned: str | None = None
    recipe: dict[str, Any] = dataclasses.field(default_factory=dict)
    base: str | None = None
    experts: str | None = None
    top: int | None = None
    fusion: str | None = None
    short_side: int | None = None
    resize: str = "smooth"
    backbone: str | None = None
    weights: str | None = None
    features: str | None = None
    guide: str | None = None
    guide_weights: str | None = None
    projection: str | None = None
    graph_backbone: str | None = None
    graph_weights: str | None = None
    attention: str | None = None
    attention_weights: str | None = None
    attention_layer: str | None = None
    layer: int = DEFAULT_LAYER
    threads: int | None = None
    panels: Path | None = None
    overwrite: bool = False
    loaded_ranking: "Ranking | None" = None

    def resolved(self) -> "SegmentOptions":
        """With everything that None leaves open.

        Raises:
            UserError: floss without a ranking that says what it was made with.
        """
        text = self.classes is not None
        method = self.method or ("lposs+" if text else "pixels")
        if method == PNP:
            side = PNP_SIDE if self.short_side is None else self.short_side
            return dataclasses.replace(self, short_side=side, backbone=self.backbone or MATCHER)
        base, floss, short_side = self.base, {}, self.short_side
        ranking = self.ranking() if method == "floss" else None
        if ranking is not None:
            base = base or ranking.base
            floss = {"top": TOP if self.top is None else self.top, "fusion": self.fusion or FUSIONS[0]}
            short_side = short_side or ranking.short_side
        recipe = RECIPES.get(base if method == "floss" else method)
        features, guide = self.features, self.guide
        if features is None and recipe is not None:
            features = recipe.features
        backbone = self.backbone
        if backbone is None:
            backbone = default_model(features) if text or recipe is not None else EMBEDDED
        graph = self.graph_backbone
        if graph is None:
            graph = "dino_vitb16" if text else backbone
        attention = self.attention or (DIFFUSION if text else backbone)
        if features is None and is_clip(backbone):
            features = "kk" if method in ATTENTION_METHODS else "maskclip"
        if guide is None and self.projection is None and is_clip(backbone):
            guide = GUIDES.get(features)
        return dataclasses.replace(
            self,
            method=method,
            base=base,
            loaded_ranking=ranking,
            short_side=short_side or (recipe.short_side if recipe else SHORT_SIDE),
            backbone=backbone,
            features=features,
            guide=guide,
            graph_backbone=graph,
            attention=SHORT_NAMES.get(attention, attention),
            **floss,
        )

    def clip(self) -> dict[str, str | None]:
        """Arguments of `load_backbone` that say how CLIP's patches become features."""
        names = ("features", "guide", "guide_weights", "projection")
        return {name: getattr(self, name) for name in names}

    def ranking(self) -> "Ranking":
        """The ranking that floss takes its experts from; read once, as its notes are said once."""
        from .rankings import load_ranking

        if self.experts is None:
            raise UserError("--method floss", "--experts FILE, a ranking by ovs rank-templates", "none")
        loaded = self.loaded_ranking
        if loaded is not None and loaded.source == str(Path(self.experts)):
            return loaded
        return load_ranking(Path(self.experts))

    def uses_graph(self) -> bool:
        """Whether the method has a patch stage."""
        return self.method in ("lposs", "lposs+")

    def uses_attention(self) -> bool:
        """Whether the method is one of DSLO's."""
        return self.method in ATTENTION_METHODS

    def patch_constants(self) -> Preset:
        """Constants of the patch stage, and the windows of every method but DSLO."""
        return choose_preset(self.preset, self.graph_backbone, self.constants)

    def dslo_constants(self) -> DsloPreset:
        """Constants of DSLO."""
        return choose_dslo_preset(self.preset, self.backbone, self.dslo)

    def pnp_constants(self) -> PnpPreset:
        """Constants of PnP-OVSS."""
        changed = {**self.pnp, "threshold": self.recipe.get("threshold")}
        model = self.backbone or MATCHER
        tuned = read_tuned(Path(self.tuned), model, self.weights) if self.tuned is not None else {}
        changed = tuned | {name: value for name, value in changed.items() if value is not None}
        return choose_pnp_preset(self.pnp_variant or "paper", changed)

    def clip_recipe(self) -> Recipe | None:
        """Constants of the CLIP family, None for other methods."""
        floss = self.method == "floss"
        name = self.base if floss else self.method
        if name not in RECIPES:
            return None
        classes = parse_classes(self.classes, self.background) if self.classes is not None else ()
        return choose_recipe(name, self.recipe, list(classes), fusion=floss)

    def windows(self) -> str:
        """The windows as `parse_windows` reads them: those of the ranking or the recipe unless given; DSLO has none."""
        recipe = self.clip_recipe()
        if recipe is not None:
            ranked = self.loaded_ranking.windows if self.loaded_ranking is not None else None
            return self.constants.get("windows") or ranked or recipe.windows
        return "none" if self.uses_attention() or self.method == PNP else self.patch_constants().windows


_PNP_OPTIONS = {"layer": "cross-layer", "head": "cross-head"}


def _check_inputs_survive(outputs: list[OutputPaths], inputs: list[Path]) -> None:
    """No output may replace a file the user gave."""
    given = {path.resolve() for path in inputs}
    for paths in outputs:
        for path in paths.all():
            if path.resolve() in given:
                raise UserError("--out", "a folder where no input is replaced", f"{path}, which is an input itself")


def check_vocabulary(options: SegmentOptions) -> None:
    """Raises UserError for classes that do not fit together, or with the backbone and the method."""
    if options.method == PNP:
        check_pnp(options)
        return
    if is_uncovered(options.background):
        raise UserError("--background", "--method pnp-ovss with it", f"'{options.background}'")
    if options.classes is not None:
        if options.points or options.exemplars:
            raise UserError("--classes", "no --point and no --exemplar with it", "both")
        if options.backbone == EMBEDDED:
            raise UserError("--classes", "a CLIP backbone, which reads text", f"--backbone {EMBEDDED}")
        count = len(parse_classes(options.classes, options.background))
        if count > MAX_ID + 1:
            raise UserError("--classes", f"at most {MAX_ID + 1} classes, the background included", count)
    elif options.background != "none":
        raise UserError("--background", "--classes with it", "none")
    elif not options.points and not options.exemplars:
        raise UserError(
            "--point or --exemplar or --classes",
            "at least two classes",
            "none",
            "e.g. --point cat:120,80 --point wall:10,10",
        )
    if options.class_names and not options.exemplars:
        raise UserError("--class-name", "an --exemplar whose ids it names", "none")


def _check_used(options: SegmentOptions) -> None:
    """Raises UserError for an option that the method does not use."""
    method = options.method
    for name in ("experts", "base", "top", "fusion"):
        if getattr(options, name) is not None and method != "floss":
            raise UserError(f"--{name}", "--method floss with it", f"--method {method}")
    for name, value in {"variant": options.pnp_variant, "tuned": options.tuned, **options.pnp}.items():
        if value is not None and method != PNP:
            option = _PNP_OPTIONS.get(name, name.replace("_", "-"))
            raise UserError(f"--{option}", "--method pnp-ovss with it", f"--method {method}")
    heads = [name for name, recipe in RECIPES.items() if recipe.head == "naclip"]
    users = {"scale": [*RECIPES, "floss", *ATTENTION_METHODS], "threshold": [*heads, "dslo-mv", PNP], "pamr": heads}
    for name, methods in users.items():
        given = [values.get(name) for values in (options.recipe, options.dslo)]
        if any(value is not None for value in given) and method not in methods:
            wanted = f"--method {', '.join(methods[:-1])} or {methods[-1]} with it"
            raise UserError(f"--{name}", wanted, f"--method {method}")


def _check_recipe(options: SegmentOptions) -> None:
    """What the CLIP family and its options want of each other."""
    _check_used(options)
    if options.templates is not None:
        if options.classes is None:
            raise UserError("--templates", "--classes with it", "none")
        load_templates(options.templates)
    recipe = options.clip_recipe()
    if recipe is None:
        return
    if not is_clip(options.backbone):
        raise UserError("--backbone", f"a CLIP with --method {options.method}", f"'{options.backbone}'")
    if options.method == "floss":
        if options.classes is None:
            raise UserError("--method floss", "--classes with it, which it has templates for", "none")
        if options.top < 1:
            raise UserError("--top", "1 or more templates", options.top)
        if options.fusion not in FUSIONS:
            raise UserError("--fusion", " or ".join(FUSIONS), options.fusion)
        ranking = options.ranking()
        if ranking.base != options.base:
            raise UserError("--base", f"{ranking.base}, which {options.experts} is made for", options.base)
        for name in parse_classes(options.classes, options.background):
            ranking.class_of(name)


def _check_dslo(options: SegmentOptions, images: list[Path]) -> None:
    options.dslo_constants()
    windows = options.constants.get("windows")
    if windows not in (None, "none"):
        raise UserError("--windows", f"none with --method {options.method}, which sees whole photos", f"'{windows}'")
    if is_matrix(options.attention) and len(images) > 1:
        wanted = f"one IMAGE, whose matrix {options.attention} is"
        raise UserError("--attention", wanted, f"{len(images)} images", "a matrix belongs to one photo")


def check_method(options: SegmentOptions, images: list[Path]) -> None:
    """Checks the method and its options, as far as that needs no model.

    Args:
        options: resolved.
        images: that it is for; of most methods their number does not matter.

    Raises:
        UserError: something cannot be used.
    """
    _check_recipe(options)
    if options.method != PNP:
        check_features(options.backbone, **options.clip())
    parse_windows(options.windows())
    if options.uses_attention():
        _check_dslo(options, images)
    if options.method in ("pixels", "lposs+"):
        check_propagation(options.propagation)


def plan(options: SegmentOptions) -> tuple[list[Path], Path | None, dict[Path, OutputPaths]]:
    """Checks what can be checked without reading images.

    Returns:
        The images, the photo the points are in, and each image's outputs.

    Raises:
        UserError: something cannot be used.
    """
    images = list_images(options.images)
    check_vocabulary(options)
    reference = None
    if options.points:
        if options.points_on is not None:
            reference = Path(options.points_on)
        elif len(images) == 1:
            reference = images[0]
        else:
            raise UserError(
                "--point",
                "--points-on IMAGE with more than one image",
                f"{len(images)} images",
                "name the photo whose pixels the points are",
            )
        if not options.exemplars:
            check_distinct([point.name for point in options.points])
    elif options.points_on is not None:
        raise UserError("--points-on", "at least one --point with it", "none")
    check_method(options, images)
    check_out_folder(options.out)
    if options.panels is not None:
        check_out_folder(options.panels, "--save-panels")
    for argument in options.images:
        for option, folder in {"--out": options.out, "--save-panels": options.panels}.items():
            if folder is not None and Path(argument).is_dir() and Path(argument).resolve() == folder.resolve():
                raise UserError(option, "another folder than that of the images", folder)
    stems = output_stems(images)
    outputs = {path: OutputPaths.of(options.out, stem, panels=options.panels) for path, stem in stems.items()}
    inputs = images + [path for exemplar in options.exemplars for path in (exemplar.image, exemplar.mask)]
    _check_inputs_survive(list(outputs.values()), [*inputs, *([reference] if reference else [])])
    return images, reference, outputs


def run_settings(options: SegmentOptions, reference: Path | None) -> dict[str, Any]:
    """Everything but the image that decides the result; stored in the JSON, compared on resuming."""
    if options.method == PNP:
        text = pnp_classes(options.classes, options.background)
    else:
        text = parse_classes(options.classes, options.background) if options.classes is not None else None
    graph, attends = options.uses_graph(), options.uses_attention()
    weights = [options.weights, options.graph_weights if graph else None, options.guide_weights, options.projection]
    attention = {}
    if attends:
        files = attention_files(options.attention, options.attention_weights)
        attention = {"source": options.attention, "files": [file_identity(file) for file in files]}
        attention |= {"layer": options.attention_layer, **dataclasses.asdict(options.dslo_constants())}
    floss = {}
    if options.method == "floss":
        ranking = content_identity(Path(options.experts))
        floss = {"base": options.base, "experts": ranking, "top": options.top, "fusion": options.fusion}
    recipe = options.clip_recipe()
    return {
        "version": __version__,
        "method": options.method,
        "recipe": dataclasses.asdict(recipe) if recipe else {},
        "floss": floss,
        "templates": content_identity(Path(options.templates)) if options.templates is not None else None,
        "propagation": options.propagation if options.method in ("pixels", "lposs+") else {},
        "windows": options.windows(),
        "graph": dataclasses.asdict(options.patch_constants()) if graph else {},
        "dslo": attention,
        "pnp": pnp_settings(options) if options.method == PNP else {},
        "points": [str(point) for point in options.points],
        "points_on": file_identity(reference) if reference is not None and reference.is_file() else None,
        "exemplars": [[file_identity(e.image), file_identity(e.mask)] for e in options.exemplars],
        "class_names": {str(key): name for key, name in sorted(options.class_names.items())},
        "prototypes": options.prototypes,
        "classes": text,
        "short_side": options.short_side,
        "resize": options.resize,
        "backbones": [options.backbone, options.graph_backbone if graph else None],
        "features": options.features,
        "guide": options.guide,
        "weights": [file_identity(Path(file)) if file and Path(file).is_file() else file for file in weights],
        "layer": options.layer,
    }
