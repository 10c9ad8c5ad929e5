"""Photos without labels to a ranking of prompt templates: FLOSS's first step, in this process, resumable."""

import dataclasses
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ovs_kernels import TemplateScores, template_entropy

from . import __version__
from .backbones import GUIDES, Backbone, check_features, is_clip, load_backbone
from .backbones.dinov2 import DEFAULT_LAYER, available_cpus
from .errors import UserError
from .files import check_out_folder, list_images
from .images import read_photo, to_tensor, working_size
from .methods.recipes import FUSION_SCALE, RECIPES
from .outputs import Stopwatch
from .pipeline import IMAGE_ERRORS
from .rank_state import OF_THE_FILE, UNREAD, State, key_of, mark_of, without_machine
from .rankings import FORMAT_VERSION, Ranking, difference, load_ranking, portable, save_ranking
from .vocabulary import parse_classes
from .vocabulary.templates import load_templates, template_embeddings
from .windows import look, parse_windows

MODES = ("pixel_exact", "patch")


@dataclasses.dataclass(frozen=True)
class RankOptions:
    """What `ovs rank-templates` was asked for.

    Attributes:
        images: files and folders.
        out: the ranking.
        classes: as `parse_classes` reads it.
        background: words of an additional class.
        backbone: a CLIP, as `load_backbone` takes it; None is that of the base.
        weights: its local file.
        base: key of RECIPES: whose features, windows and head are used.
        guide: the second model of a base that needs one; None is its usual one.
        guide_weights: a local file of the guide.
        projection: the learned checkpoint of CLIP-DINOiser.
        layer: of the embedded guide.
        templates: file of prompts; None is the 80 of open_clip.
        mode: one of MODES: what counts are pixels of the photo, as published, or patches, which is much faster.
        metric: what the templates are sorted by, one of METRICS.
        limit: use the first so many images only.
        shard: (I, N): use every N-th image, from the I-th on.
        dataset: its name, for people.
        windows: as `parse_windows` reads it, one set-up; None is that of the base.
        short_side: of the working resolution; None is that of the base.
        threads: of the backbone and the kernels, None for all CPUs.
        overwrite: replace what is there already.
    """

    images: list[str]
    out: Path
    classes: str
    background: str = "none"
    backbone: str | None = None
    weights: str | None = None
    base: str = "maskclip"
    guide: str | None = None
    guide_weights: str | None = None
    projection: str | None = None
    layer: int = DEFAULT_LAYER
    templates: Path | None = None
    mode: str = "pixel_exact"
    metric: str = "entropy"
    limit: int | None = None
    shard: tuple[int, int] = (1, 1)
    dataset: str | None = None
    windows: str | None = None
    short_side: int | None = None
    threads: int | None = None
    overwrite: bool = False

    def resolved(self) -> "RankOptions":
        """With everything that None leaves open to the base."""
        recipe = RECIPES[self.base]
        windows = recipe.windows if self.windows is None else self.windows
        short_side = recipe.short_side if self.short_side is None else self.short_side
        backbone = self.backbone or recipe.backbone
        return dataclasses.replace(self, backbone=backbone, windows=windows, short_side=short_side)

    def clip(self) -> dict[str, Any]:
        """How CLIP's patches become features, as `load_backbone` takes it."""
        guide = {"guide": self.guide, "guide_weights": self.guide_weights, "projection": self.projection}
        return {"features": RECIPES[self.base].features, **guide}


@dataclasses.dataclass
class RankReport:
    """How a run went.

    Attributes:
        ranking: what is in the file.
        resumed: images that an earlier, interrupted run had done.
        complete: whether there was nothing to do.
    """

    ranking: Ranking
    resumed: int = 0
    complete: bool = False


Watcher = Callable[[Path, str, Any], None]


class Scorer:
    """A backbone, the classes and the templates: photos in, sums out.

    Args:
        options: resolved.
        classes: the words of each.
        templates: the prompts.
    """

    def __init__(self, options: RankOptions, classes: dict[str, list[str]], templates: list[str]):
        torch.set_num_threads(options.threads or available_cpus())
        self.options, self.recipe = options, RECIPES[options.base]
        self.classes, self.templates = classes, templates
        (self._setup,) = parse_windows(options.windows)
        self.backbone: Backbone = load_backbone(
            options.backbone, options.weights, layer=options.layer, threads=options.threads, **options.clip()
        )
        self._embeddings: Tensor | None = None
        owners = [index for index, words in enumerate(classes.values()) for _ in words]
        self._groups = owners if len(owners) > len(classes) else None

    def settings(self) -> dict[str, Any]:
        """All that decides the numbers but the images, as JSON holds it; what MACHINE names is for the state only."""
        options = self.options
        settings = {
            "format_version": FORMAT_VERSION,
            "version": __version__,
            "base": options.base,
            "identity": portable(self.backbone.identity),
            "dataset": options.dataset,
            "mode": options.mode,
            "metric": options.metric,
            "windows": options.windows,
            "short_side": options.short_side,
            "names": self.classes,
            "templates": self.templates,
            "threads": options.threads or available_cpus(),
            "torch": torch.__version__,
        }
        return json.loads(json.dumps(settings))

    def encode(self, watch: Callable[[int, int], None]) -> None:
        """Makes ready for photos: each word in each template, from the cache or through the text tower.

        Args:
            watch: called with the numbers of words that are ready and of all, from none to all.
        """
        words = [word for words in self.classes.values() for word in words]
        columns = []
        for number, word in enumerate(words):
            watch(number, len(words))
            columns.append(template_embeddings(self.backbone, [word], self.templates))
        watch(len(words), len(words))
        self._embeddings = torch.cat(columns, 1)

    def __call__(self, path: Path, clock: Stopwatch) -> TemplateScores:
        """The sums of one photo; the time of each stage goes to `clock`."""
        with clock("read"):
            photo = read_photo(path)
            size = working_size(photo.height, photo.width, self.options.short_side)
            image = to_tensor(photo, size)
        with clock("backbone"):
            view = look(photo, image, self.backbone, None, self._setup)
        arguments: dict[str, Any] = {"temperature": 1 / FUSION_SCALE, "assume_normalized": True}
        arguments |= {"groups": self._groups, "mode": self.options.mode, "mano": self.options.metric == "mano"}
        features = view.features
        if self.options.mode == "patch":
            features = features.reshape(-1, features.shape[-1])
        else:
            across = "logits" if self.recipe.head == "naclip" else "probabilities"
            sizes = {"size": size, "out_size": (photo.height, photo.width)}
            arguments |= {"boxes": view.boxes, "interpolate": across, **sizes}
        with clock("template_entropy"):
            return template_entropy(features, self._embeddings, **arguments)


def plan(options: RankOptions) -> tuple[list[Path], dict[str, list[str]], list[str]]:
    """Checks what can be checked without a model.

    Args:
        options: resolved.

    Returns:
        The images, the words of each class, and the templates.

    Raises:
        UserError: something cannot be used.
        MissingDependency: open_clip_torch is not installed.
    """
    if not options.images:
        raise UserError("IMAGES", "at least one image or folder of images", "none")
    images = list_images(options.images)[: options.limit]
    index, shards = options.shard
    found, images = len(images), images[index - 1 :: shards]
    if not images:
        raise UserError("--shard", f"at most {found} shards of {found} images", f"{index}/{shards}, which has no image")
    if options.out.is_dir():
        raise UserError("--out", "a file", f"the folder {options.out}")
    check_out_folder(options.out.parent)
    files = (options.templates, options.weights, options.guide_weights, options.projection)
    _check_no_input(options.out, [*images, *(Path(file) for file in files if file is not None)])
    if not is_clip(options.backbone):
        raise UserError("--model", "a CLIP, which reads text", f"'{options.backbone}'")
    _check_guide(options)
    classes = parse_classes(options.classes, options.background)
    if len(parse_windows(options.windows)) != 1:
        raise UserError("--windows", "one size of windows, or none", f"'{options.windows}'")
    if options.metric == "mano":
        if options.mode != "patch":
            raise UserError("--metric", "--mode patch with mano", f"--mode {options.mode}")
        if any(len(words) > 1 for words in classes.values()):
            raise UserError("--metric", "one name per class with mano", "several")
    return images, classes, load_templates(options.templates)


def _check_no_input(out: Path, inputs: Sequence[Path]) -> None:
    """Raises UserError if the ranking or the state of its run would take the place of an input."""
    inputs = {path.resolve() for path in inputs}
    for path in (out, partial_path(out)):
        if path.resolve() in inputs:
            what = "which is" if path == out else f"whose state would replace {path},"
            raise UserError("--out", "a file that is no input", f"{out}, {what} an input itself")


def _check_guide(options: RankOptions) -> None:
    given = {"--guide": options.guide, "--guide-weights": options.guide_weights, "--projection": options.projection}
    for flag, value in given.items():
        if value is not None and RECIPES[options.base].features not in GUIDES:
            raise UserError(flag, f"--base {' or '.join(GUIDES)} with it", f"--base {options.base}")
    check_features(options.backbone, **options.clip())


def partial_path(out: Path) -> Path:
    """Where the state of a run is kept."""
    return out.with_name(f"{out.name}.partial")


def _completed(path: Path, settings: dict[str, Any], options: RankOptions, images: Sequence[Path]) -> State:
    """The state at the end of the run that made the ranking that is there already.

    Raises:
        UserError: it is not what this run would make.
    """
    advice = "--overwrite replaces it"
    try:
        ranking = load_ranking(options.out, "--out")
    except UserError as error:
        raise UserError("--out", "a new file, or the ranking of this run", f"{options.out} ({error})", advice) from None
    different = difference(ranking.settings, without_machine(settings))
    if different:
        what, before, now = different
        wanted = f"a new file, or a ranking whose {what} is {now}"
        raise UserError("--out", wanted, f"{options.out} with {before}", advice)
    state = State.again(path, settings, ranking, images)
    if state is None:
        got = f"{options.out}, a ranking of {ranking.images} other images"
        raise UserError("--out", "a new file, or the ranking of these images", got, advice)
    return state


def rank_templates(options: RankOptions, watch: Watcher | None = None) -> RankReport:
    """Ranks prompt templates by what they say about images without labels.

    After each image the state of the run is on disk; the same call goes on where an interrupted one stopped, and its
    result is the same, byte for byte. So does a call after `overwrite` without it. Images that could not be used are
    looked at again if they have changed, also those of a complete run.

    Args:
        options: what to do.
        watch: called as (image, event, detail): once "plan" (here image is the ranking's file) with the numbers of
            images to do and done before; "encode" with the numbers of words that are ready, of all of them, and of
            templates; "scored" with a stopwatch and the seconds, "failed" with the text.

    Returns:
        The ranking, which is in the file `options.out`.

    Raises:
        UserError: something cannot be used, or none of the images, or the machine failed (memory, a disk) and not the
            image; no ranking was written.
        MissingDependency: a package or the weights are not installed.
        OSError: the state or the ranking could not be written.
    """
    watch, options = watch or (lambda *_: None), options.resolved()
    images, classes, templates = plan(options)
    scorer = Scorer(options, classes, templates)
    settings, path = scorer.settings(), partial_path(options.out)
    state = None if options.overwrite else State.read(path, settings)
    if state is None and options.out.exists() and not options.overwrite:
        state = _completed(path, settings, options, images)
    state = state or State(path, settings)
    done = len(state.marks)
    todo = [*state.check(images), *range(done, len(images))]
    watch(options.out, "plan", (len(todo), len(images) - len(todo)))
    if not todo and not path.exists():
        return RankReport(state.ranking(), len(images), complete=True)
    if options.overwrite:  # from here on the same run without it goes on with this state
        state.write()
    if todo:
        scorer.encode(lambda ready, words: watch(options.out, "encode", (ready, words, len(templates))))
    for index in todo:
        _score(scorer, state, index, images[index], watch)
    if state.scores is None:
        path.unlink(missing_ok=True)
        reason = state.failed[0][1]
        if len(images) == 1:
            raise UserError.saying(f"{images[0]}: {reason}")
        got = f"{len(images)} that cannot, of which the first is {images[0]}: {reason}"
        raise UserError("IMAGES", "at least one that can be used", got)
    ranking = state.ranking()
    save_ranking(options.out, ranking)
    path.unlink(missing_ok=True)
    return RankReport(ranking, len(images) - len(todo))


def _score(scorer: Scorer, state: State, index: int, image: Path, watch: Watcher) -> None:
    """One image more in the state, or one failure more."""
    clock, start, mark, key = Stopwatch(), time.perf_counter(), mark_of(image), UNREAD
    try:
        key = key_of(image)
        if state.knows(key):
            raise UserError(image, "an image that has not been counted", "one of the same name and content as before")
        scores = scorer(image, clock)
    except (*IMAGE_ERRORS, OSError) as error:
        reason = _reason(image, error)
        if is_transient(error):
            advice = f"{state.path} has what was done, and without --overwrite the same run goes on from there"
            raise UserError.saying(f"{image}: {reason}; {advice if state.marks else 'no photo was done'}") from error
        state.add_failed(index, mark, key, (image.name, reason))
        watch(image, "failed", f"{image}: {reason}")
    else:
        state.add(index, mark, key, scores)
        watch(image, "scored", (clock, time.perf_counter() - start))


def is_transient(error: Exception) -> bool:
    """Whether a failure is one of the machine at that moment, such as want of memory, and none of the photo."""
    cause = error.__context__ if isinstance(error, UserError) else error
    if isinstance(cause, OSError):
        return cause.errno is not None and cause.errno not in OF_THE_FILE
    return isinstance(cause, MemoryError) or "can't allocate memory" in str(cause)


def _reason(image: Path, error: Exception) -> str:
    """What is wrong, without the path: it is the same from any folder and on any machine."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror
    elif isinstance(error, MemoryError):
        text = "not enough memory"
    path, text = " ".join(str(image).split()), " ".join(text.split()) or type(error).__name__
    return text.removeprefix(f"{path}: ").replace(path, image.name)


def merge_rankings(files: Sequence[Path], out: Path, overwrite: bool = False) -> Ranking:
    """Adds rankings of different images up; exact, so the order does not matter and shards make the whole.

    Args:
        files: at least two rankings of `rank_templates`.
        out: the file to write.
        overwrite: whether it may be there.

    Returns:
        The ranking that was written.

    Raises:
        UserError: a file is damaged, two do not fit together, or `out` exists, or is one of them.
    """
    if len(files) < 2:
        raise UserError("--merge", "at least two rankings", len(files))
    _check_no_input(out, files)
    if out.is_dir() or (out.exists() and not overwrite):
        raise UserError(
            "--out", "a new file", f"{out}, which exists", "" if out.is_dir() else "--overwrite replaces it"
        )
    check_out_folder(out.parent)
    merged, *others = (load_ranking(file, "--merge") for file in files)
    for other in others:
        merged = merged + other
    save_ranking(out, merged)
    return merged


def summary(ranking: Ranking, top: int = 4) -> list[str]:
    """The best templates of each class, for people: one line per class, then one per template."""
    lines = []
    share = Counter()
    if ranking.scores is not None:
        totals = ranking.scores.percentage.double().mean(0).tolist()
        share.update(dict(zip(ranking.names, totals, strict=True)))
    what = "pixels" if ranking.mode == "pixel_exact" else "patches"
    for name, entries in ranking.entries.items():
        lines.append(f"{name}: {share[name]:.1f} % of the {what}, {len(entries)} templates predict it")
        for rank, entry in enumerate(entries[:top], 1):
            value = "" if ranking.metric == "entropy" else f"  {ranking.metric} {getattr(entry, ranking.metric):.4f}"
            lines.append(f"  {rank}  entropy {entry.entropy:.4f}{value}  {ranking.templates[entry.template]}")
    return lines
