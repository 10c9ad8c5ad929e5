"""A data set and methods become metrics: one pass over the images, resumable, in shards that add up exactly."""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from . import __version__
from .backbones.dinov2 import available_cpus
from .data import Dataset, Item, load_dataset, read_target
from .data.layouts import Choices
from .errors import UserError
from .evaluation_report import OVERHEAD, READING, RESULT, Outcome, load_result, result_document, write_result
from .evaluation_runs import ORACLE, Run, class_index, plan_runs, query_of
from .evaluation_state import State, differing, mark_of, shown
from .files import check_out_folder
from .images import read_photo
from .metrics import METRICS, SegmentationMetrics
from .options import SegmentOptions, run_settings
from .outputs import Stopwatch, file_identity
from .pipeline import IMAGE_ERRORS, Segmenter, make_segmenter
from .shared import Shared

if TYPE_CHECKING:
    from PIL.Image import Image

_PATIENCE = 20.0  # seconds after which a user is told what takes so long
_log = logging.getLogger("ovs_methods")
_AHEAD = 2  # images that are read while the methods are busy
STATE = "results.partial"


@dataclasses.dataclass(frozen=True)
class EvaluateOptions:
    """What `ovs evaluate` was asked for.

    Attributes:
        dataset: root folder of the data set.
        kind: one of `data.KINDS`.
        out: folder of the results.
        methods: of METHODS, and floss.
        template: what the methods have in common.
        choices: where the parts of the data set are.
        metrics: of METRICS.
        style: of `SegmentationMetrics`.
        ratio: width of a boundary as a share of the diagonal.
        words: auto, lposs, naclip, or a file: what the classes are called to the text encoder.
        study: windows with each of which every method runs.
        patch: side of the patches of the oracle, None for no oracle.
        limit: use the first so many images only.
        shard: (I, N): use every N-th image, from the I-th on.
        strict: an image that cannot be used, or a missing file, ends the run.
        panels: pictures for the first so many images, or the folder for those of all images; None makes none.
        overwrite: start again, and replace results that are there.
    """

    dataset: Path
    kind: str
    out: Path
    methods: tuple[str, ...] = ()
    template: SegmentOptions | None = None
    choices: Choices = dataclasses.field(default_factory=Choices)
    metrics: tuple[str, ...] = METRICS[:1]
    style: str = "mmseg"
    ratio: float = 0.02
    words: str = "auto"
    study: tuple[str, ...] = ()
    patch: int | None = None
    limit: int | None = None
    shard: tuple[int, int] = (1, 1)
    strict: bool = False
    panels: int | Path | None = None
    overwrite: bool = False


Watcher = Callable[[Item | None, str, Any], None]


@dataclasses.dataclass
class Read:
    """An image as the background thread has read it.

    Attributes:
        index: number of the item.
        item: that was read.
        photo: mode RGB, None where that failed.
        target: [H, W] of `read_target`.
        mark: of the files.
        error: what went wrong.
        milliseconds: that it took.
    """

    index: int
    item: Item
    photo: "Image | None" = None
    target: np.ndarray | None = None
    mark: bytes = b""
    error: Exception | None = None
    milliseconds: float = 0.0


def _read(index: int, item: Item, dataset: Dataset) -> Read:
    start, made = time.perf_counter(), Read(index, item)
    try:
        made.mark = mark_of(item)
        made.photo = read_photo(item.image)
        made.target = read_target(item.mask, dataset.rule, (made.photo.height, made.photo.width))
    except (*IMAGE_ERRORS, OSError) as error:
        made.error = error
    made.milliseconds = 1000 * (time.perf_counter() - start)
    return made


def read_ahead(todo: Sequence[int], items: Sequence[Item], dataset: Dataset) -> Iterator[Read]:
    """The images in order, each read in a background thread while those before it are used."""
    executor = concurrent.futures.ThreadPoolExecutor(1, "ovs-read")
    waiting: deque[concurrent.futures.Future[Read]] = deque()
    try:
        for index in todo:
            waiting.append(executor.submit(_read, index, items[index], dataset))
            if len(waiting) > _AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        executor.shutdown(wait=False, cancel_futures=True)


def patch_oracle(target: np.ndarray, patch: int) -> np.ndarray:
    """The best that labels of whole patches can do: the target at ceil(H / patch) x ceil(W / patch), and back.

    Both ways the nearest pixel, at half-pixel centres; the paper does not say which.
    """
    height, width = target.shape

    def there_and_back(size: int) -> np.ndarray:
        small = -(-size // patch)
        down = ((np.arange(small) + 0.5) * size / small).astype(np.int64)
        return down[((np.arange(size) + 0.5) * small / size).astype(np.int64)]

    return target[there_and_back(height)[:, None], there_and_back(width)]


class Evaluation:
    """The methods, ready for images.

    Args:
        options: of the run.
        dataset: whose classes they find.
        runs: of `plan_runs`.
    """

    def __init__(self, options: EvaluateOptions, dataset: Dataset, runs: Sequence[Run]):
        self.options, self.dataset, self.runs = options, dataset, runs
        self._shared = Shared()
        self.clock = Stopwatch()
        patience = threading.Timer(_PATIENCE, _log.warning, ["class names are encoded; they are kept for later runs"])
        if any(run.words is not None for run in runs):
            patience.start()
        try:
            with self.clock("load models"):
                self._segmenters = [self._segmenter(run) for run in runs]
        finally:
            patience.cancel()
        self._index = [
            class_index(dataset, run, made.vocabulary.names) if made is not None else None
            for run, made in zip(runs, self._segmenters, strict=True)
        ]

    def _segmenter(self, run: Run) -> Segmenter | None:
        return make_segmenter(run.options, None, self._shared) if run.options is not None else None

    def predict(self, read: Read, spent: dict[str, float]) -> list[np.ndarray]:
        """[H, W] labels of the data set by each method; their time goes to `spent`."""
        made = []
        self._shared.next_photo()
        for run, segmenter, index in zip(self.runs, self._segmenters, self._index, strict=True):
            start = time.perf_counter()
            if segmenter is None:
                labels = patch_oracle(read.target, run.patch)
            else:
                _, found = segmenter.labels(read.item.image, Stopwatch(), read.photo)
                labels = index[found]
            made.append(labels)
            spent[run.label] = 1000 * (time.perf_counter() - start)
        return made


def new_metrics(options: EvaluateOptions, dataset: Dataset) -> SegmentationMetrics:
    """Metrics without counts, as every method of a run has them."""
    return SegmentationMetrics(
        dataset.classes,
        metrics=options.metrics,
        style=options.style,
        ignore_label=dataset.rule.ignore,
        ratio=options.ratio,
    )


def settings_of(options: EvaluateOptions, dataset: Dataset, runs: Sequence[Run]) -> dict[str, Any]:
    """All that decides the counts but the shard, as JSON holds it; compared before a run goes on, and on merging."""
    names = "\n".join(item.name for item in dataset.items)
    meaning = sorted(dataset.rule.values.items()), sorted((dataset.rule.colors or {}).items())
    document = {
        "version": __version__,
        "dataset": {
            "kind": dataset.kind,
            "split": dataset.split,
            "classes": list(dataset.classes),
            "images": len(dataset.items),
            "names": hashlib.sha256(names.encode()).hexdigest(),
            "labels": hashlib.sha256(json.dumps(meaning).encode()).hexdigest(),
        },
        "limit": options.limit,
        "metrics": new_metrics(options, dataset).settings(),
        "runs": [
            {"label": run.label, "patch": run.patch, "classes": query_of(run)}
            | (run_settings(run.options, None) if run.options is not None else {})
            for run in runs
        ],
    }
    for run, made in zip(runs, document["runs"], strict=True):
        if run.options is not None:
            made["exemplars"] = [[file_identity(e.image), file_identity(e.mask)] for e in run.options.exemplars]
            made["threads"] = run.options.threads or available_cpus()
    return json.loads(json.dumps(document))


def _pick(options: EvaluateOptions, dataset: Dataset) -> list[Item]:
    index, shards = options.shard
    items = list(dataset.items)[: options.limit]
    picked = items[index - 1 :: shards]
    if not picked:
        raise UserError("--shard", f"at most {len(items)} shards of {len(items)} images", f"{index}/{shards}")
    return picked


def _panel_path(options: EvaluateOptions, name: str) -> Path:
    """Where the picture of an image goes; images in subfolders of the data set have theirs in subfolders."""
    folder = options.out / "panels" if isinstance(options.panels, int) else options.panels
    return folder / f"{name}.png"


def _check_panels(options: EvaluateOptions, dataset: Dataset, items: Sequence[Item]) -> None:
    """No picture may replace a photo or a mask, or become one of the next run."""
    if options.panels is None:
        return
    option = "--out" if isinstance(options.panels, int) else "--save-panels"
    check_out_folder(_panel_path(options, "any").parent, option)
    inputs = {path.parent.resolve() for item in dataset.items for path in (item.image, item.mask)}
    for folder in dict.fromkeys(_panel_path(options, item.name).parent for item in items):
        place = folder.resolve()
        if not inputs.isdisjoint((place, *place.parents)):
            raise UserError(option, "another folder than those of the photos and masks", folder)


def _check_strict(options: EvaluateOptions, dataset: Dataset) -> None:
    if options.strict and dataset.missing:
        more = f" and {len(dataset.missing) - 1} others" if len(dataset.missing) > 1 else ""
        raise UserError("--strict", "an image for every mask and a mask for every image", f"{dataset.missing[0]}{more}")


def _state_of(options: EvaluateOptions, settings: dict[str, Any], empty: Sequence[SegmentationMetrics]) -> State:
    """The state to go on from: that of an interrupted run, or a new one.

    Raises:
        UserError: there are results, or a state, of another run.
    """
    path = options.out / STATE
    if options.overwrite:
        return State(path, settings, empty)
    return State.read(path, settings, empty) or State(path, settings, empty)


def _complete(options: EvaluateOptions, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The results that are there, if they are those of this run and nothing is left to do; None if there are none.

    Raises:
        UserError: they are of another run.
    """
    path = options.out / RESULT
    if options.overwrite or not path.exists() or (options.out / STATE).exists():
        return None
    advice = "--overwrite replaces them"
    document = load_result(path, "--out")
    different = differing(document["settings"], settings)
    if different:
        name, before, now = different
        raise UserError("--out", f"{name} {shown(before)}, as the results in {path}", shown(now), advice)
    return document


def _reason(error: Exception, item: Item) -> str:
    text = "not enough memory" if isinstance(error, MemoryError) else str(error) or type(error).__name__
    if isinstance(error, UserError):
        return " ".join(text.split())
    if isinstance(error, OSError):
        return f"{error.filename or item.image}: {error.strerror or error}"
    return " ".join(f"{item.image}: {text}".split())


def evaluate(options: EvaluateOptions, watch: Watcher | None = None) -> Outcome:
    """Counts what methods get right on a data set.

    An image counts for all methods or for none. The counts are on disk while the run goes on; the same call goes on
    where an interrupted one stopped, tries images again that could not be used, and gives the same counts.

    Args:
        options: what to do.
        watch: called as (item, event, detail): once "plan" (no item) with (images to do, images done before,
            files without a partner); "loaded" with a stopwatch; "counted" with the milliseconds of the image;
            "failed" with the text.

    Returns:
        The results, which are in the folder `options.out`.

    Raises:
        UserError: something cannot be used, or none of the images; with `strict` also the first that cannot.
        MissingDependency: a package or the weights are not installed.
        OSError: the results could not be written.
    """
    watch = watch or (lambda *_: None)
    dataset = load_dataset(options.kind, options.dataset, options.choices)
    _check_strict(options, dataset)
    items = _pick(options, dataset)
    template = options.template or SegmentOptions(images=[], out=options.out)
    runs = plan_runs(
        template,
        options.methods,
        dataset,
        [item.image for item in items],
        words=options.words,
        study=options.study,
        patch=options.patch,
        style=options.style,
    )
    empty = [new_metrics(options, dataset) for _ in runs]
    check_out_folder(options.out)
    _check_panels(options, dataset, items)
    settings = {**settings_of(options, dataset, runs), "shard": list(options.shard)}
    document = _complete(options, settings)
    if document is not None:
        return Outcome(document, complete=True)
    state = _state_of(options, settings, empty)
    done = state.check(items)
    todo = [index for index in range(len(items)) if index not in done]
    watch(None, "plan", (len(todo), len(done), dataset.missing))
    failed: dict[str, str] = {}
    if todo:
        failed = _run(options, dataset, runs, items, todo, state, watch)
    if not state.counted:
        first = next(iter(failed.values()))
        raise UserError("--dataset", "at least one image that can be evaluated", f"{len(failed)} that cannot; {first}")
    made = result_document(dataset, runs, state, settings, failed, options)
    write_result(options.out, made)
    if not failed:
        state.path.unlink(missing_ok=True)
    return Outcome(made, resumed=len(done))


def _run(
    options: EvaluateOptions,
    dataset: Dataset,
    runs: Sequence[Run],
    items: Sequence[Item],
    todo: Sequence[int],
    state: State,
    watch: Watcher,
) -> dict[str, str]:
    """Evaluates the images that are to do; returns those that could not be, and why."""
    torch.set_num_threads((options.template.threads if options.template else None) or available_cpus())
    evaluation = Evaluation(options, dataset, runs)
    watch(None, "loaded", evaluation.clock)
    failed: dict[str, str] = {}
    try:
        start = time.perf_counter()
        for read in read_ahead(todo, items, dataset):
            spent: dict[str, float] = {READING: read.milliseconds}
            try:
                if read.error is not None:
                    raise read.error
                labels = evaluation.predict(read, spent)
                counts = [_counted(options, dataset, part, read.target) for part in labels]
            except (*IMAGE_ERRORS, OSError) as error:
                failed[read.item.name] = reason = _reason(error, read.item)
                watch(read.item, "failed", reason)
                if options.strict:
                    raise UserError.saying(f"--strict: {reason}") from error
            else:
                drawn = time.perf_counter()
                _save_panel(options, dataset, runs, read, labels, counts)
                start += time.perf_counter() - drawn
                models = sum(spent.get(run.label, 0.0) for run in runs if run.method != ORACLE)
                spent[OVERHEAD] = 1000 * (time.perf_counter() - start) - models
                state.add(read.index, read.mark, counts, spent)
                watch(read.item, "counted", spent)
            start = time.perf_counter()
    except BaseException:
        with contextlib.suppress(UserError):  # if the disk is full, the error at hand says so
            state.write()
        raise
    state.write()
    return failed


def _counted(options: EvaluateOptions, dataset: Dataset, labels: np.ndarray, target: np.ndarray) -> SegmentationMetrics:
    made = new_metrics(options, dataset)
    made.add(labels, target)
    return made


def _save_panel(
    options: EvaluateOptions,
    dataset: Dataset,
    runs: Sequence[Run],
    read: Read,
    labels: Sequence[np.ndarray],
    counts: Sequence[SegmentationMetrics],
) -> None:
    """The picture of an image, if it is one of those that get one."""
    if options.panels is None or (isinstance(options.panels, int) and read.index >= options.panels):
        return
    from .panels import Column, comparison, save_panel

    columns = [
        Column(run.label, part, f"mIoU {count.scores().miou:.1f} on this photo")
        for run, part, count in zip(runs, labels, counts, strict=True)
    ]
    picture = comparison(
        read.photo, columns, dataset.classes, target=read.target, ignore=dataset.rule.ignore, title=read.item.name
    )
    path = _panel_path(options, read.item.name)
    try:
        save_panel(path, picture)
    except OSError as error:
        raise UserError(path, "room for a picture", error.strerror or error, "nothing is half-written") from error
