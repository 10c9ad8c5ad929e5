"""PnP-OVSS's layer, head, threshold and blur from photos whose classes are known, but not where: no masks."""

import collections
import dataclasses
import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import __version__
from .backbones import MATCHER, ClipBackbone, ImageTextMatcher, is_clip, load_backbone, load_matcher, matcher_files
from .backbones.dinov2 import available_cpus
from .backbones.matching import Prompt, single_word
from .errors import UserError, require
from .files import check_out_folder, list_images, output_stems, write_together
from .images import read_photo, to_tensor
from .methods.pnp_ovss import PnpPreset, all_maps, best_of_words, make_prompts
from .options_pnp import check_side
from .outputs import Stopwatch, content_identity, file_identity
from .pipeline import IMAGE_ERRORS
from .rank import is_transient
from .reward import ClipReward, candidate_masks
from .tune_state import MapStore, Setting, TuneState, check_same
from .vocabulary import parse_classes
from .vocabulary.templates import load_templates, template_embeddings

CLIP = "ViT-L-14-336:openai"
TEMPLATE = "a photo of a {}."
THRESHOLDS = (0.05, 0.15, 0.25, 0.35, 0.45)
BLURS = (0.01, 0.03, 0.05, 0.07, 0.09, 0.11)
OPTIMIZERS = {"random": "RandomSearchOptimizer", "annealing": "RandomAnnealingOptimizer"}
_KEPT_PHOTOS = 64
_SHOWN = 10


@dataclasses.dataclass(frozen=True)
class TuneOptions:
    """What `ovs tune-pnp` was asked for.

    Attributes:
        images: files and folders.
        labels: JSON file with the classes of each photo, by file name.
        out: the report.
        classes: all names of the prompt, as `parse_classes` reads it; None is each photo's own.
        backbone: as `load_matcher` takes it.
        weights: its folder.
        side: of the square that a photo becomes.
        clip: a CLIP of open_clip, which judges.
        clip_weights: its local file.
        templates: file of the prompts for CLIP; None is TEMPLATE.
        thresholds: to choose from.
        blurs: to choose from.
        search_blur: blur while layer, head and threshold are searched.
        groups: of the search, each with a seed of its own.
        evaluations: of a group.
        optimizer: key of OPTIMIZERS.
        seed: of the first group.
        limit: use the first so many photos only.
        threads: of the models, None for all CPUs.
        overwrite: start again.
    """

    images: list[str]
    labels: Path
    out: Path
    classes: str | None = None
    backbone: str = MATCHER
    weights: str | None = None
    side: int = 336
    clip: str = CLIP
    clip_weights: str | None = None
    templates: str | None = None
    thresholds: tuple[float, ...] = THRESHOLDS
    blurs: tuple[float, ...] = BLURS
    search_blur: float = 0.04
    groups: int = 3
    evaluations: int = 34
    optimizer: str = "random"
    seed: int = 0
    limit: int | None = None
    threads: int | None = None
    overwrite: bool = False


@dataclasses.dataclass(frozen=True)
class Case:
    """A photo that counts.

    Attributes:
        path: of the photo.
        names: of the classes in it, at least two.
        key: what its maps are stored under.
    """

    path: Path
    names: list[str]
    key: str


Watcher = Callable[[Path, str, Any], None]


def read_labels(path: Path) -> dict[str, list[str]]:
    """Classes of photos: a JSON object of file names and lists of class names.

    Raises:
        UserError: it is none.
    """
    wanted = 'JSON such as {"photo.jpg": ["cat", "sofa"]}'
    if not path.is_file():
        raise UserError("--labels", wanted, f"no file at {path}")
    try:
        document = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise UserError("--labels", wanted, f"{path} ('{str(error)[:80]}')") from None
    if not isinstance(document, dict):
        raise UserError("--labels", wanted, f"{path}, which holds a {type(document).__name__}")
    for name, classes in document.items():
        if not isinstance(classes, list) or not all(isinstance(each, str) and each.strip() for each in classes):
            raise UserError(
                "--labels", "a list of class names for each photo", f"{json.dumps(classes)[:60]} for {name}"
            )
    return {name: list(dict.fromkeys(" ".join(each.split()) for each in classes)) for name, classes in document.items()}


class Tuner:
    """Photos, their classes and two models: settings in, rewards out.

    Args:
        options: what to do.
    """

    def __init__(self, options: TuneOptions):
        self.options = options
        torch.set_num_threads(options.threads or available_cpus())
        self.cases, self.single, self.classes = plan(options)
        self.store = MapStore(maps_folder(options.out))
        self.state = TuneState(partial_path(options.out), self.settings())
        self.shape: tuple[int, ...] = ()
        self._photos: collections.OrderedDict[Path, Tensor] = collections.OrderedDict()
        self._judge: ClipReward | None = None

    def settings(self) -> dict[str, Any]:
        """All that decides the numbers, as JSON holds it."""
        options = self.options
        files = [file_identity(file) for file in matcher_files(options.backbone, options.weights)]
        same = ("backbone", "side", "clip", "search_blur", "groups", "evaluations", "optimizer", "seed")
        settings = {
            "version": __version__,
            **{name: getattr(options, name) for name in same},
            "files": files,
            "clip_weights": _identity(options.clip_weights),
            "thresholds": list(options.thresholds),
            "blurs": list(options.blurs),
            "templates": content_identity(Path(options.templates)) if options.templates else [TEMPLATE],
            "classes": self.classes,
            "photos": [[case.path.name, case.names, case.key] for case in self.cases],
        }
        return json.loads(json.dumps(settings))

    def words_of(self, name: str) -> list[str]:
        """The words of a class in the prompt."""
        return [single_word(each) for each in (self.classes or {}).get(name, [name])]

    def prompt(self, matcher: ImageTextMatcher, case: Case) -> Prompt:
        """The prompt of a photo."""
        names = list(self.classes) if self.classes else case.names
        return make_prompts(matcher, [word for name in names for word in self.words_of(name)], PnpPreset())[0]

    def make_maps(self, watch: Watcher) -> None:
        """The maps of every photo, in the store; those that cannot be used are noted."""
        todo = [case for case in self.cases if case.path.name not in self.state.failed]
        missing = [case for case in todo if self.store.shape(case.key) is None]
        watch(self.options.out, "plan maps", (len(missing), len(todo) - len(missing)))
        if missing:
            matcher = load_matcher(self.options.backbone, self.options.weights)
            check_side(self.options.side, matcher)
            if self.classes:  # one prompt for all photos: what is wrong with it is wrong with none of them
                self.prompt(matcher, missing[0])
        for case in missing:
            clock = Stopwatch()
            try:
                with clock("maps"):
                    self.store.get(case.key, lambda case=case: self._maps(matcher, case).numpy())
            except IMAGE_ERRORS as error:
                if is_transient(error):
                    raise UserError.saying(f"{case.path}: {error or 'not enough memory'}") from error
                self.state.failed[case.path.name] = " ".join(str(error).split()) or type(error).__name__
                self.state.write()
                watch(case.path, "failed", self.state.failed[case.path.name])
            else:
                watch(case.path, "mapped", clock)
        self.cases = [case for case in self.cases if case.path.name not in self.state.failed]
        if not self.cases:
            first = next(iter(self.state.failed.items()))
            raise UserError(
                "IMAGES", "at least one that can be used", f"none, of which the first is {first[0]}: {first[1]}"
            )
        self.shape = self.store.shape(self.cases[0].key)

    def _maps(self, matcher: ImageTextMatcher, case: Case) -> Tensor:
        """[layers, heads, K, P, P] of the classes in a photo."""
        prompt = self.prompt(matcher, case)
        maps = all_maps(matcher, matcher.pixels(read_photo(case.path), self.options.side), prompt).cpu()
        names = list(self.classes) if self.classes else case.names
        groups = [index for index, name in enumerate(names) for _ in self.words_of(name)]
        of_classes = torch.stack([best_of_words(each, groups) for each in maps.flatten(0, 1)])
        kept = [names.index(name) for name in case.names]
        return of_classes[:, kept].unflatten(0, maps.shape[:2]).float()

    def _ready(self) -> ClipReward:
        if self._judge is None:
            clip = load_backbone(self.options.clip, self.options.clip_weights, flag="--clip-weights")
            if not isinstance(clip, ClipBackbone):
                raise UserError("--clip", "a CLIP of open_clip", f"'{self.options.clip}'")
            names = list(dict.fromkeys(name for case in self.cases for name in case.names))
            templates = load_templates(self.options.templates) if self.options.templates else [TEMPLATE]
            means = template_embeddings(clip, names, templates).mean(0)
            means = torch.nn.functional.normalize(means, dim=-1)
            self._judge = ClipReward(clip, dict(zip(names, means, strict=True)))
        return self._judge

    def _photo(self, path: Path, side: int) -> Tensor:
        """A photo as a square of [0, 1]; the last ones are kept."""
        if path not in self._photos:
            self._photos[path] = to_tensor(read_photo(path), (side, side))
            if len(self._photos) > _KEPT_PHOTOS:
                self._photos.popitem(last=False)
        return self._photos[path]

    def reward(self, setting: Setting, watch: Watcher) -> int:
        """The reward of a setting over all photos; what is known of it already is not made again."""
        known = self.state.rewards.setdefault(setting, [])
        layer, head, threshold, blur = setting
        for case in self.cases[len(known) :]:
            judge = self._ready()
            maps = torch.from_numpy(self.store.load(case.key, layer, head))
            masks = candidate_masks(maps, judge.side, threshold, blur)
            known.append(judge(self._photo(case.path, judge.side), case.names, masks))
            self.state.write(now=len(known) == len(self.cases))
            watch(case.path, "judged", None)
        return sum(known)


def _identity(file: str | None) -> Any:
    return file_identity(Path(file)) if file and Path(file).is_file() else file


def partial_path(out: Path) -> Path:
    """Where the state of a run is kept."""
    return out.with_name(f"{out.name}.partial")


def maps_folder(out: Path) -> Path:
    """Where the maps of a run are kept."""
    return out.with_name(f"{out.name}.maps")


def table_path(out: Path) -> Path:
    """Where the report is put for people."""
    return out.with_suffix(".txt")


def plan(options: TuneOptions) -> tuple[list[Case], list[str], dict[str, list[str]] | None]:
    """Checks what can be checked without a model.

    Returns:
        The photos that count, the file names of those with fewer than two classes, and the names of each class of
        the prompt.

    Raises:
        UserError: something cannot be used.
    """
    images = list_images(options.images)[: options.limit]
    output_stems(images)  # photos are known by their file names
    labels = read_labels(options.labels)
    classes = parse_classes(options.classes) if options.classes is not None else None
    _check_numbers(options)
    if options.out.is_dir() or options.out.suffix != ".json":
        raise UserError("--out", "a file FILE.json", options.out)
    check_out_folder(options.out.parent)
    inputs = {path.resolve() for path in (*images, options.labels)}
    for path in (options.out, partial_path(options.out), table_path(options.out)):
        if path.resolve() in inputs:
            raise UserError("--out", "a file that is no input", f"{path}, which is one")
    if not is_clip(options.clip):
        raise UserError("--clip", "a CLIP, which reads text", f"'{options.clip}'")
    missing = [path.name for path in images if path.name not in labels]
    if missing:
        got = f"none for {len(missing)} of {len(images)}, of which the first is {missing[0]}"
        raise UserError("--labels", "the classes of every photo", got)
    cases, single = [], []
    for path in images:
        names = _known(labels[path.name], classes, path.name)
        if len(names) < 2:
            single.append(path.name)
            continue
        identity = [file_identity(path), names, classes, options.backbone, options.weights, options.side]
        key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:24]
        cases.append(Case(path, names, key))
    if not cases:
        raise UserError("--labels", "a photo with two classes or more, as one class is always sure", "none")
    return cases, single, classes


def _known(names: list[str], classes: dict[str, list[str]] | None, photo: str) -> list[str]:
    """The classes of a photo as --classes calls them."""
    for name in names:
        single_word(name)
    if classes is None:
        return names
    owner = {each.lower(): name for name, several in classes.items() for each in several}
    for name in names:
        if name.lower() not in owner:
            raise UserError("--labels", "names that --classes has", f"'{name}' for {photo}")
    return list(dict.fromkeys(owner[name.lower()] for name in names))


def _check_numbers(options: TuneOptions) -> None:
    for option, values in (("--thresholds", options.thresholds), ("--blurs", options.blurs)):
        if not values or not all(0 <= value <= 1 for value in values):
            raise UserError(option, "numbers from 0 to 1 between commas", ", ".join(map(str, values)) or "none")
    if not 0 <= options.search_blur <= 1:
        raise UserError("--search-blur", "a number from 0 to 1", options.search_blur)
    if options.optimizer not in OPTIMIZERS:
        raise UserError("--optimizer", " or ".join(OPTIMIZERS), options.optimizer)
    for option in ("groups", "evaluations"):
        if getattr(options, option) < 1:
            raise UserError(f"--{option}", "1 or more", getattr(options, option))


def _search(tuner: Tuner, watch: Watcher) -> list[dict[str, Any]]:
    """Layer, head and threshold by Gradient-Free-Optimizers: what was tried, in order."""
    package = require("gradient_free_optimizers", "the search", extra="methods")
    options, history = tuner.options, []
    layers, heads = tuner.shape[:2]
    space = {"layer": list(range(layers)), "head": list(range(heads)), "threshold": list(options.thresholds)}
    for group in range(options.groups):

        def evaluate(values: dict[str, Any], group: int = group) -> float:
            layer, head = int(values["layer"]), int(values["head"])
            setting = (layer, head, float(values["threshold"]), float(options.search_blur))
            value = tuner.reward(setting, watch)
            history.append(entry(f"search {group + 1}", setting, value))
            watch(options.out, "evaluated", history[-1])
            return float(value)

        optimizer = getattr(package, OPTIMIZERS[options.optimizer])(
            space, initialize={"random": 1}, random_state=options.seed + group
        )
        optimizer.search(evaluate, n_iter=options.evaluations, verbosity=False, memory=False)
    return history


def entry(stage: str, setting: Setting, reward: int) -> dict[str, Any]:
    """A line of the history."""
    names = ("layer", "head", "threshold", "blur")
    return {"stage": stage, **dict(zip(names, setting, strict=True)), "reward": reward}


def tune(options: TuneOptions, watch: Watcher | None = None) -> dict[str, Any]:
    """Searches layer, head and threshold, then the blur, by how many classes CLIP recognises better behind its mask.

    Every evaluation is on disk, and so are the maps, all layers and heads of a photo from one pass back through the
    model: the same call goes on where an interrupted one stopped, and ends in the same report.

    Args:
        options: what to do.
        watch: called as (path, event, detail): "plan maps" with the numbers of photos to do and done before; "mapped"
            with a stopwatch, "failed" with the text; "plan search" with the evaluations to come; "judged" per photo
            and evaluation; "evaluated" with the line of the history.

    Returns:
        The report, which is in the file `options.out`; its key "done_before" is not.

    Raises:
        UserError: something cannot be used, or no photo can.
        MissingDependency: a package or the weights are not installed.
        OSError: something could not be written.
    """
    watch = watch or (lambda *_: None)
    tuner = Tuner(options)
    partial = tuner.state.path
    if options.out.exists() and not (options.overwrite or partial.exists()):
        return {**_done(tuner), "done_before": True}
    require("gradient_free_optimizers", "the search", extra="methods")
    if options.overwrite:  # from here on the same run without it goes on with this state
        tuner.state.write()
    else:
        tuner.state = TuneState.read(partial, tuner.state.settings)
    try:
        tuner.make_maps(watch)
        searches = options.groups * options.evaluations
        watch(options.out, "plan search", (searches + len(options.blurs), len(tuner.cases)))
        history = _search(tuner, watch)
        best = max(history, key=lambda line: line["reward"])  # the first of those that tie
        for blur in options.blurs:
            setting = (best["layer"], best["head"], best["threshold"], float(blur))
            history.append(entry("blur", setting, tuner.reward(setting, watch)))
            watch(options.out, "evaluated", history[-1])
    finally:
        if tuner.state.rewards:
            tuner.state.write()
    best = max((line for line in history if line["stage"] == "blur"), key=lambda line: line["reward"])
    report = {
        "best": {name: best[name] for name in ("layer", "head", "threshold", "blur", "reward")},
        "classes": sum(len(case.names) for case in tuner.cases),
        "photos": len(tuner.cases),
        "single_class": tuner.single,
        "failed": tuner.state.failed,
        "layers": tuner.shape[0],
        "heads": tuner.shape[1],
        "history": history,
        "settings": tuner.state.settings,
    }
    _write(options.out, report)
    tuner.state.path.unlink(missing_ok=True)
    tuner.store.remove()
    return report


def _write(out: Path, report: dict[str, Any]) -> None:
    text = json.dumps(report, indent=2, ensure_ascii=False) + "\n"
    table = "\n".join(table_of(report, shown=math.inf)) + "\n"
    write_together(
        {
            table_path(out): lambda path: path.write_text(table, encoding="utf-8"),
            out: lambda path: path.write_text(text, encoding="utf-8"),
        }
    )


def _done(tuner: Tuner) -> dict[str, Any]:
    """The report that is there already.

    Raises:
        UserError: it is of another run, or none.
    """
    out, advice = tuner.options.out, "--overwrite replaces it"
    try:
        report = json.loads(out.read_text(encoding="utf-8"))
        settings, _ = report["settings"], report["best"]["layer"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        got = f"{out} ('{str(error)[:60]}')"
        raise UserError("--out", "a new file, or the report of this run", got, advice) from None
    check_same(settings, tuner.state.settings, f"the report {out}", advice)
    return report


def table_of(report: dict[str, Any], shown: float = _SHOWN) -> list[str]:
    """The report for people: the best setting, the best ones of the search, all blurs."""
    best, total = report["best"], report["classes"]
    lines = [
        f"best: layer {best['layer']}, head {best['head']} (from 0), threshold {best['threshold']:g}, "
        f"blur {best['blur']:g}",
        f"reward: {best['reward']} of {total} classes in {report['photos']} photos",
        "",
        "layer  head  threshold   blur  reward",
    ]
    lines += [_line(line, total) for line in _ranked(report["history"], "search")[: int(min(shown, 10**6))]]
    lines += ["", "then the blur:"]
    lines += [_line(line, total) for line in report["history"] if line["stage"] == "blur"]
    return lines


def _ranked(history: list[dict[str, Any]], stage: str) -> list[dict[str, Any]]:
    """The different settings of a stage, the best first."""
    seen = {}
    for line in history:
        if line["stage"].startswith(stage):
            seen.setdefault(tuple(line[name] for name in ("layer", "head", "threshold", "blur")), line)
    return sorted(seen.values(), key=lambda line: -line["reward"])


def _line(line: dict[str, Any], total: int) -> str:
    share = 100 * line["reward"] / total
    return (
        f"{line['layer']:5d} {line['head']:5d} {line['threshold']:10.3g} {line['blur']:6.3g}"
        f"  {line['reward']:6d}  {share:5.1f} %"
    )
