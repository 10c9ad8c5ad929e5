"""Photos without labels to a ranking of prompt templates: FLOSS's first step, in this process, resumable."""

import contextlib
import dataclasses
import hashlib
import io
import json
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ovs_kernels import TemplateScores, template_entropy

from . import __version__
from .backbones import GUIDES, Backbone, check_features, is_clip, load_backbone
from .backbones.dinov2 import available_cpus
from .backbones.weights import fingerprint
from .errors import UserError
from .files import check_out_folder, list_images, write_together
from .images import read_photo, to_tensor, working_size
from .methods.recipes import FUSION_SCALE, RECIPES
from .outputs import Stopwatch
from .pipeline import IMAGE_ERRORS
from .rankings import FORMAT_VERSION, Ranking, difference, load_ranking, portable, save_ranking
from .vocabulary import parse_classes
from .vocabulary.templates import load_templates, template_embeddings
from .windows import look, parse_windows

MODES = ("pixel_exact", "patch")
_MARK = 16  # bytes of what an image is known by in the state of a run
_UNREAD = bytes(_MARK)


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
            options.backbone, options.weights, threads=options.threads, **options.clip()
        )
        self._embeddings: Tensor | None = None
        owners = [index for index, words in enumerate(classes.values()) for _ in words]
        self._groups = owners if len(owners) > len(classes) else None

    def settings(self) -> dict[str, Any]:
        """All that decides the numbers but the images, as JSON holds it."""
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


def image_key(path: Path) -> bytes:
    """What an image is known by in a ranking: its file name and its content."""
    return hashlib.sha256(f"{path.name}:{fingerprint(path)}".encode()).digest()[:_MARK]


def _mark(path: Path) -> bytes:
    """What tells quickly that a file is still the same; zeros where there is none."""
    try:
        status = path.stat()
    except OSError:
        return _UNREAD
    text = f"{path.name}:{status.st_size}:{status.st_mtime_ns}"
    return hashlib.sha256(text.encode()).digest()[:_MARK]


class State:
    """A run so far: it is on disk after every image, complete, so that nothing but the image at hand is ever lost.

    Images are done in their order, so those that are done are the first ones of the list. What is written per image is
    the sums, and 32 bytes for each image that is done.

    Args:
        path: the file.
        settings: of the run.

    Attributes:
        marks: of each image that is done.
        keys: of each image that is done; zeros where it could not be used.
        failed: pairs of file name and reason.
        scores: the sums; None before the first image.
    """

    def __init__(self, path: Path, settings: dict[str, Any]):
        self.path, self.settings = path, settings
        self.marks: list[bytes] = []
        self.keys: list[bytes] = []
        self.failed: list[tuple[str, str]] = []
        self.scores: TemplateScores | None = None
        self._seen: set[bytes] = set()

    def add(self, path: Path, key: bytes, scores: TemplateScores) -> None:
        """Counts an image, and writes the state."""
        self.scores = scores if self.scores is None else self.scores + scores
        self._seen.add(key)
        self._note(path, key)

    def add_failed(self, path: Path, reason: str) -> None:
        """Notes an image that cannot be used, and writes the state."""
        self.failed.append((path.name, reason))
        self._note(path, _UNREAD)

    def knows(self, key: bytes) -> bool:
        """Whether an image of that name and content has been counted."""
        return key in self._seen

    def used(self) -> list[str]:
        """Fingerprints of the images that could be used."""
        return [key.hex() for key in self.keys if key != _UNREAD]

    def ranking(self) -> Ranking:
        """What the images so far amount to."""
        return Ranking.of_scores(self.scores, self.settings, failed=self.failed, keys=self.used())

    def _note(self, path: Path, key: bytes) -> None:
        self.marks.append(_mark(path))
        self.keys.append(key)
        arrays = {"marks": _table(self.marks), "keys": _table(self.keys)}
        texts = {"settings": self.settings, "failed": self.failed}
        arrays |= {name: np.frombuffer(json.dumps(text).encode(), np.uint8) for name, text in texts.items()}
        if self.scores is not None:
            for name in ("counts", "whole", "fraction"):
                arrays[name] = getattr(self.scores, name).numpy()
            arrays["total"] = np.array(self.scores.total)
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        write_together({self.path: lambda temporary: temporary.write_bytes(buffer.getbuffer())})

    @classmethod
    def read(cls, path: Path, settings: dict[str, Any]) -> "State | None":
        """The state of an interrupted run; None if there is none.

        Raises:
            UserError: it is damaged, or of other settings.
        """
        if not path.is_file():
            return None
        state, advice = cls(path, settings), "--overwrite starts again"
        try:
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
            texts = [json.loads(arrays[name].tobytes()) for name in ("settings", "failed")]
            state.failed = [(image, reason) for image, reason in texts[1]]
            for name in ("marks", "keys"):
                setattr(state, name, [row.tobytes() for row in arrays[name].reshape(-1, _MARK)])
            state._seen = {key for key in state.keys if key != _UNREAD}
            if "counts" in arrays:
                parts = [torch.from_numpy(arrays[name]) for name in ("counts", "whole", "fraction")]
                state.scores = TemplateScores(*parts, int(arrays["total"]))
        except (OSError, ValueError, TypeError, AttributeError, EOFError, KeyError, zipfile.BadZipFile) as error:
            got = f"a damaged file ('{str(error)[:80]}')"
            raise UserError(path, "the state of an interrupted run", got, advice) from None
        different = difference(texts[0], settings)
        if different:
            what, before, now = different
            raise UserError("--out", f"the {what} of the interrupted run in {path}: {before}", now, advice)
        return state

    def check(self, images: Sequence[Path]) -> None:
        """Makes sure that the images that are done are the first of the list, and unchanged.

        Raises:
            UserError: they are not.
        """
        wanted, advice = f"the images of the interrupted run in {self.path}", "--overwrite starts again"
        if len(images) < len(self.marks):
            got = f"{len(images)}, of which it has done {len(self.marks)}"
            raise UserError("IMAGES", wanted, got, advice)
        for path, mark, key in zip(images, self.marks, self.keys, strict=False):
            if mark != _mark(path) and (key == _UNREAD or not path.is_file() or key != image_key(path)):
                raise UserError(path, wanted, "another one, or one that has changed", advice)


def _table(rows: list[bytes]) -> np.ndarray:
    return np.frombuffer(b"".join(rows), np.uint8).reshape(len(rows), _MARK)


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
    inputs = [*images, *(Path(file) for file in (options.templates, options.weights) if file is not None)]
    if options.out.resolve() in {path.resolve() for path in inputs}:
        raise UserError("--out", "a file that is no input", f"{options.out}, which is an input itself")
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


def _check_guide(options: RankOptions) -> None:
    given = {"--guide": options.guide, "--guide-weights": options.guide_weights, "--projection": options.projection}
    for flag, value in given.items():
        if value is not None and RECIPES[options.base].features not in GUIDES:
            raise UserError(flag, f"--base {' or '.join(GUIDES)} with it", f"--base {options.base}")
    check_features(options.backbone, **options.clip())


def partial_path(out: Path) -> Path:
    """Where the state of a run is kept."""
    return out.with_name(f"{out.name}.partial")


def _completed(options: RankOptions, settings: dict[str, Any], images: Sequence[Path]) -> Ranking:
    """The ranking that is there already.

    Raises:
        UserError: it is not what this run would make.
    """
    advice = "--overwrite replaces it"
    try:
        ranking = load_ranking(options.out, "--out")
    except UserError as error:
        raise UserError("--out", "a new file, or the ranking of this run", f"{options.out} ({error})", advice) from None
    different = difference(ranking.settings, settings)
    if different:
        what, before, now = different
        wanted = f"a new file, or a ranking whose {what} is {now}"
        raise UserError("--out", wanted, f"{options.out} with {before}", advice)
    keys = set()
    for path in images:
        with contextlib.suppress(OSError):
            keys.add(image_key(path).hex())
    if not keys.issuperset(ranking.keys) or len(images) != ranking.images + len(ranking.failed):
        got = f"{options.out}, a ranking of {ranking.images} other images"
        raise UserError("--out", "a new file, or the ranking of these images", got, advice)
    return ranking


def rank_templates(options: RankOptions, watch: Watcher | None = None) -> RankReport:
    """Ranks prompt templates by what they say about images without labels.

    After each image the state of the run is on disk; the same call goes on where an interrupted one stopped, and its
    result is the same, byte for byte.

    Args:
        options: what to do.
        watch: called as (image, event, detail): once "plan" (here image is the ranking's file) with the numbers of
            images to do and done before; "encode" with the numbers of words that are ready, of all of them, and of
            templates; "scored" with a stopwatch and the seconds, "failed" with the text.

    Returns:
        The ranking, which is in the file `options.out`.

    Raises:
        UserError: something cannot be used, or none of the images; no ranking was written.
        MissingDependency: a package or the weights are not installed.
        OSError: the state or the ranking could not be written.
    """
    watch, options = watch or (lambda *_: None), options.resolved()
    images, classes, templates = plan(options)
    scorer = Scorer(options, classes, templates)
    settings, path = scorer.settings(), partial_path(options.out)
    state = None if options.overwrite else State.read(path, settings)
    if state is None and options.out.exists() and not options.overwrite:
        ranking = _completed(options, settings, images)
        watch(options.out, "plan", (0, len(images)))
        return RankReport(ranking, len(images), complete=True)
    state = state or State(path, settings)
    state.check(images)
    done = len(state.marks)
    watch(options.out, "plan", (len(images) - done, done))
    if done < len(images):
        scorer.encode(lambda ready, words: watch(options.out, "encode", (ready, words, len(templates))))
    for image in images[done:]:
        _score(scorer, state, image, watch)
    if state.scores is None:
        path.unlink(missing_ok=True)
        if len(images) == 1:
            raise UserError.saying(state.failed[0][1])
        raise UserError("IMAGES", "at least one that can be read", f"{len(images)} that cannot")
    ranking = state.ranking()
    save_ranking(options.out, ranking)
    path.unlink(missing_ok=True)
    return RankReport(ranking, done)


def _score(scorer: Scorer, state: State, image: Path, watch: Watcher) -> None:
    """One image more in the state, or one failure more."""
    clock, start = Stopwatch(), time.perf_counter()
    try:
        key = image_key(image)
        if state.knows(key):
            raise UserError(image, "an image that has not been counted", "one of the same name and content as before")
        scores = scorer(image, clock)
    except (*IMAGE_ERRORS, OSError) as error:
        text = str(error) if isinstance(error, UserError) else f"{image}: {str(error) or type(error).__name__}"
        reason = str(UserError.saying(text))
        state.add_failed(image, reason)
        watch(image, "failed", reason)
    else:
        state.add(image, key, scores)
        watch(image, "scored", (clock, time.perf_counter() - start))


def merge_rankings(files: Sequence[Path], out: Path, overwrite: bool = False) -> Ranking:
    """Adds rankings of different images up; exact, so the order does not matter and shards make the whole.

    Args:
        files: at least two rankings of `rank_templates`.
        out: the file to write.
        overwrite: whether it may be there.

    Returns:
        The ranking that was written.

    Raises:
        UserError: a file is damaged, two do not fit together, or `out` exists.
    """
    if len(files) < 2:
        raise UserError("--merge", "at least two rankings", len(files))
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
