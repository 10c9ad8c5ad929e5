"""What `ovs evaluate` compares: each method with its options, its words, and the numbers that its paper states."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .data import WORDS, Dataset, Published, published_numbers, published_rules, query_words, read_class_list
from .errors import UserError
from .images import open_image
from .methods import FUSIONS, METHODS, PNP, RECIPES
from .options import TOP, SegmentOptions, check_method, check_vocabulary
from .options_pnp import UNCOVERED, pnp_classes
from .vocabulary import Exemplar, parse_classes
from .windows import ENSEMBLE

ORACLE = "oracle"
STUDY = ("none", "448/224", "224/112", "ensemble")  # LPOSS's study of windows
_NACLIP_WORDS = ("naclip", "proxyclip", "dslo-op", "dslo-mv")


@dataclasses.dataclass(frozen=True)
class Run:
    """One column of the results.

    Attributes:
        label: what it is called; unique.
        method: of it, or ORACLE.
        options: resolved; None of the oracle.
        words: whose words the classes have, one of WORDS or a file; None where there are none.
        patch: side of the oracle's patches.
    """

    label: str
    method: str
    options: SegmentOptions | None = None
    words: str | None = None
    patch: int | None = None

    @property
    def windows(self) -> str | None:
        """Its windows, None of the oracle."""
        if self.options is None:
            return None
        found = self.options.windows()
        return ENSEMBLE if found == "ensemble" else found


def words_of(method: str, base: str | None, words: str) -> str:
    """Whose words a method's paper takes, where the user leaves it open."""
    if words != "auto":
        return words
    return "naclip" if (base if method == "floss" else method) in _NACLIP_WORDS else "lposs"


def class_text(dataset: Dataset, words: str) -> tuple[str, str]:
    """The classes of a data set as --classes and --background take them.

    Args:
        dataset: whose classes they are.
        words: one of WORDS, for a published data set; or the file of a class list with as many classes.

    Returns:
        Names between commas, and the words of the background.

    Raises:
        UserError: the file has another number of classes.
    """
    if words in WORDS and dataset.kind != "folder":
        return query_words(dataset.kind, words)
    if words in WORDS:
        lists = dataset.words or tuple((name,) for name in dataset.classes)
    else:
        path = Path(words)
        lists = read_class_list(path).words
        if len(lists) != len(dataset.classes):
            wanted = f"{len(dataset.classes)} classes as the data set has"
            raise UserError("--words", wanted, f"{len(lists)} in {path}")
    background = "none"
    if dataset.background == 0 and [word.lower() for word in lists[0]] != ["background"]:
        background, lists = ", ".join(lists[0]), lists[1:]
    return ", ".join("; ".join(names) for names in lists), background


def _exemplar_names(dataset: Dataset, exemplars: Sequence[Exemplar], given: dict[int, str]) -> dict[int, str]:
    """Names of the values in exemplars' masks: those of the data set, unless the user names them."""
    if given or not exemplars:
        return given
    names = {}
    for exemplar in exemplars:
        image = open_image(exemplar.mask)
        for value in np.unique(np.asarray(image)).tolist() if image.mode in ("P", "L", "1") else []:
            meaning = dataset.rule.values.get(value, -1)
            if meaning >= 0:
                names[value] = dataset.classes[meaning]
    return names


def _without_unused(options: SegmentOptions, method: str, methods: Sequence[str]) -> SegmentOptions:
    """Of several methods, one does not have to use what another one does."""
    if len(methods) < 2:
        return options
    changed: dict[str, Any] = {}
    if "floss" in methods and method != "floss":
        changed |= dict.fromkeys(("experts", "base", "top", "fusion"))
    if PNP in methods and method != PNP:
        changed |= {"pnp": {}, "pnp_variant": None, "tuned": None}
    if method == PNP:
        for name in ("backbone", "weights"):
            if getattr(options, name) is not None:
                raise UserError(f"--{name}", f"{PNP} in a run of its own with it", f"{len(methods)} methods")
        changed |= dict.fromkeys(("templates", "features", "guide", "guide_weights", "projection"))
        changed["constants"] = {**options.constants, "windows": None}
    uses_scale = method in RECIPES or method == "floss" or method.startswith("dslo")
    uses_threshold = (method in RECIPES and RECIPES[method].head == "naclip") or method in ("dslo-mv", PNP)
    uses_pamr = method in RECIPES and RECIPES[method].head == "naclip"
    known = {"scale": uses_scale, "threshold": uses_threshold, "pamr": uses_pamr}
    unused = [name for name, used in known.items() if not used]
    for field in ("recipe", "dslo"):
        changed[field] = {name: None if name in unused else value for name, value in getattr(options, field).items()}
    return dataclasses.replace(options, **changed)


def plan_runs(
    template: SegmentOptions,
    methods: Sequence[str],
    dataset: Dataset,
    images: Sequence[Path],
    words: str = "auto",
    study: Sequence[str] = (),
    patch: int | None = None,
    style: str = "mmseg",
) -> list[Run]:
    """The runs that are asked for, checked as far as that needs no model.

    Args:
        template: what all methods have in common.
        methods: of METHODS, and floss.
        dataset: on which.
        images: that will be evaluated.
        words: auto, one of WORDS, or a file.
        study: windows with each of which every method runs.
        patch: side of the patches of the oracle, None for no oracle.
        style: of the metrics; with "pnp" the background is a class, which PnP-OVSS then looks for.

    Returns:
        One run for each method and windows, the oracle last.

    Raises:
        UserError: something cannot be used.
    """
    for method in methods:
        if methods.count(method) > 1:
            raise UserError("--method", "every method once", f"{method} twice")
    names = _exemplar_names(dataset, template.exemplars, template.class_names)
    template = dataclasses.replace(template, class_names=names)
    runs = []
    for method in methods:
        options = _without_unused(dataclasses.replace(template, method=method), method, methods)
        for windows in study or (None,):
            run = _run_of(options, method, dataset, words, windows, style)
            if study and (run.options.uses_attention() or method == PNP):
                raise UserError("--window-study", "a method that has windows", f"--method {method}")
            check_vocabulary(run.options)
            check_method(run.options, list(images))
            runs.append(run)
    if patch is not None:
        runs.append(Run(ORACLE, ORACLE, patch=patch))
    if not runs:
        raise UserError("--method", f"one of {', '.join((*METHODS, 'floss', PNP))}, or --oracle patch", "none")
    return runs


def _uncovered(dataset: Dataset, classes: str, style: str) -> dict[str, str]:
    """PnP-OVSS has no words for a background: it is what no class's map covers."""
    if dataset.background == 0:
        names = list(parse_classes(classes, least=1).items())
        names = names[1:] if names[0][0].lower() == "background" else names
        return {"classes": ", ".join("; ".join(words) for _, words in names), "background": UNCOVERED}
    if style == "pnp" and dataset.background is not None:
        wanted = f"the background as the first class, for {PNP}"
        raise UserError("--style pnp", wanted, f"'{dataset.classes[dataset.background]}' as class {dataset.background}")
    return {"background": UNCOVERED if style == "pnp" else "none"}


def _run_of(options: SegmentOptions, method: str, dataset: Dataset, words: str, windows: str | None, style: str) -> Run:
    """One method with one set of windows; what the user leaves open is the paper's for this data set."""
    base = options.base or (options.ranking().base if method == "floss" and options.experts else None)
    rules = published_rules(base or "" if method == "floss" else method, dataset.kind)
    constants = dict(options.constants)
    constants["windows"] = windows or constants.get("windows") or rules.get("windows")
    changed: dict[str, Any] = {"constants": constants, "short_side": options.short_side or rules.get("short_side")}
    used = None
    if not options.exemplars:
        used = words_of(method, base, words)
        changed["classes"], changed["background"] = class_text(dataset, used)
        if method == PNP:
            changed |= _uncovered(dataset, changed["classes"], style)
    made = dataclasses.replace(options, **changed).resolved()
    return Run(method if windows is None else f"{method} {windows}", method, made, used)


def class_index(dataset: Dataset, run: Run, names: Sequence[str]) -> np.ndarray:
    """For each class of a method's vocabulary its index in the data set; one past the last class for none of them.

    Args:
        dataset: of the run.
        run: whose vocabulary it is.
        names: of the vocabulary.

    Returns:
        [G] of the targets' dtype.

    Raises:
        UserError: an exemplar's class is none of the data set.
    """
    count = len(dataset.classes)
    dtype = np.uint8 if count < 255 else np.int32
    if run.options.classes is not None:  # in the data set's order, perhaps with a background that it does not have
        first = len(names) - count
        return np.array([count] * first + list(range(count)), dtype)
    index = {name.lower(): position for position, name in enumerate(dataset.classes)}
    for name in names:
        if name.lower() not in index and name.lower() != "background":
            raise UserError("--exemplar", f"classes of the data set, such as {dataset.classes[0]}", f"'{name}'")
    return np.array([index.get(name.lower(), count) for name in names], dtype)


def setting_of(run: Run, dataset: Dataset, style: str, ratio: float) -> dict[str, Any] | None:
    """What decides whether a run is one that a paper reports; None if something was changed that no paper has."""
    options = run.options
    if ratio != 0.02:
        return None
    if options is None:
        return {"patch": run.patch, "style": style}
    changed = [value for name, value in options.constants.items() if name != "windows" and value is not None]
    given = [item for values in (options.dslo, options.recipe) for item in values.items()]
    changed += [value for name, value in given if name != "pamr" and value is not None]
    usual = {"window": 13, "tau": 0.01, "alpha": 0.95, "mode": "official", "max_iter": None}
    changed += [1 for name, value in usual.items() if options.propagation.get(name, value) != value]
    recipe = RECIPES.get(options.base if run.method == "floss" else run.method)
    features = recipe.features if recipe is not None else "kk" if options.uses_attention() else "maskclip"
    changed += [1] if run.method != PNP and options.features != features else []
    changed += [1] if options.uses_attention() and options.attention_layer is not None else []
    if run.method == "floss":
        ranking = options.ranking()
        used = (options.top, options.fusion, ranking.metric, ranking.mode)
        changed += [1] if used != (TOP, FUSIONS[0], "entropy", "pixel_exact") else []
    if changed or options.exemplars or options.templates or options.preset not in ("auto", "paper"):
        return None
    changed = [value for value in (*options.pnp.values(), options.tuned) if value is not None]
    if changed or options.pnp_variant not in (None, "paper"):
        return None
    return {
        "backbone": options.backbone,
        "model": options.backbone.partition(":")[0],
        "graph_backbone": options.graph_backbone if options.uses_graph() else None,
        "guide": options.guide,
        "projection": options.projection is not None,
        "attention": options.attention if options.uses_attention() else None,
        "base": options.base,
        "windows": run.windows,
        "short_side": options.short_side,
        "resize": options.resize,
        "words": run.words,
        "pamr": bool(options.recipe.get("pamr")),
        "style": style,
    }


def published_of(run: Run, dataset: Dataset, style: str, ratio: float) -> dict[str, Published]:
    """By metric, what papers report for a run; nothing where its setting is no published one."""
    setting = setting_of(run, dataset, style, ratio)
    if setting is None or dataset.kind == "folder" or not dataset.split.startswith("val"):
        return {}
    return published_numbers(run.method, dataset.kind, setting)


def query_of(run: Run) -> dict[str, list[str]] | None:
    """What each class of a run is called to the text encoder; None without text."""
    options = run.options
    if options is None or options.classes is None:
        return None
    if run.method == PNP:
        return pnp_classes(options.classes, options.background)
    return parse_classes(options.classes, options.background)
