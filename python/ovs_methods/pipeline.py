"""Photos to label maps: one, or a folder of them, in this process."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from . import __version__
from .attention import (
    DIFFUSION,
    SHORT_NAMES,
    Attention,
    AttentionSource,
    BackboneAttention,
    attention_files,
    is_matrix,
    load_attention,
)
from .backbones import DEFAULT_MODEL, EMBEDDED, LOGITS, MaskClip, is_clip, load_backbone
from .backbones.dinov2 import DEFAULT_LAYER, available_cpus
from .errors import UserError
from .files import check_out_folder, list_images, output_stems
from .images import read_photo, resize_argmax, to_tensor, working_size
from .methods import (
    ATTENTION_METHODS,
    METHODS,
    DsloPreset,
    Preset,
    check_propagation,
    choose_dslo_preset,
    choose_preset,
    upsample_argmax,
)
from .outputs import OutputPaths, Stopwatch, file_identity, write_outputs
from .vocabulary import (
    ClassExamples,
    Exemplar,
    Point,
    Vocabulary,
    build_vocabulary,
    check_distinct,
    exemplar_examples,
    parse_classes,
    point_examples,
    text_examples,
)
from .vocabulary.exemplar import read_mask
from .vocabulary.points import check_inside
from .windows import View, look, parse_windows, whole_view

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
        classes: classes by text, as `parse_classes` reads it.
        background: words of an additional class, for `classes`.
        method: key of METHODS; None is lposs+ for text and pixels for the rest.
        propagation: of `ovs_kernels.lp_pixels`, for the methods pixels and lposs+.
        preset: of the patch stage and of DSLO, see `choose_preset` and `choose_dslo_preset`.
        constants: fields of `Preset` given one by one.
        dslo: fields of `DsloPreset` given one by one.
        short_side: of the working resolution.
        backbone: name of the backbone; None is CLIP for text and the embedded one for the rest.
        weights: its local file.
        logits: what becomes of CLIP's last block, `maskclip` or `kk`; None is `kk` for DSLO, else `maskclip`.
        graph_backbone: whose features LPOSS's graph compares; None is DINO for CLIP and the backbone itself
            for the rest.
        graph_weights: its local file.
        attention: whose self-attention DSLO uses, or the file of a matrix; None is Stable Diffusion 2 for text and
            the backbone itself for the rest.
        attention_weights: its local file or folder.
        attention_layer: the blocks whose self-attention it is, as `load_attention` reads them; None is its usual one.
        layer: of the embedded backbone.
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
    classes: str | None = None
    background: str = "none"
    method: str | None = None
    propagation: dict[str, Any] = dataclasses.field(default_factory=dict)
    preset: str = "auto"
    constants: dict[str, Any] = dataclasses.field(default_factory=dict)
    dslo: dict[str, Any] = dataclasses.field(default_factory=dict)
    short_side: int = 448
    backbone: str | None = None
    weights: str | None = None
    logits: str | None = None
    graph_backbone: str | None = None
    graph_weights: str | None = None
    attention: str | None = None
    attention_weights: str | None = None
    attention_layer: str | None = None
    layer: int = DEFAULT_LAYER
    threads: int | None = None
    overwrite: bool = False

    def resolved(self) -> "SegmentOptions":
        """With everything that None leaves open."""
        text = self.classes is not None
        backbone = self.backbone or (DEFAULT_MODEL if text else EMBEDDED)
        graph = self.graph_backbone
        if graph is None:
            graph = "dino_vitb16" if text else backbone
        method = self.method or ("lposs+" if text else "pixels")
        attention = self.attention or (DIFFUSION if text else backbone)
        logits = self.logits
        if logits is None and is_clip(backbone):
            logits = LOGITS[1] if method in ATTENTION_METHODS else LOGITS[0]
        return dataclasses.replace(
            self,
            method=method,
            backbone=backbone,
            logits=logits,
            graph_backbone=graph,
            attention=SHORT_NAMES.get(attention, attention),
        )

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

    def windows(self) -> str:
        """The windows as `parse_windows` reads them; DSLO has none."""
        return "none" if self.uses_attention() else self.patch_constants().windows


@dataclasses.dataclass(frozen=True)
class Seen:
    """A photo and what the models see of it.

    Attributes:
        photo: mode RGB.
        image: [3, H, W] in [0, 1], the photo at the working size.
        views: one per set-up of windows.
        attention: of the photo, for methods that use it.
    """

    photo: "Image"
    image: Tensor
    views: list[View]
    attention: Attention | None


class Segmenter:
    """A backbone, a vocabulary and a method: photos in, labels out.

    Args:
        options: what was asked for.
        reference: the photo that the points are in.
    """

    def __init__(self, options: SegmentOptions, reference: Path | None):
        torch.set_num_threads(options.threads or available_cpus())
        self.options = options = options.resolved()
        self.clock = Stopwatch()
        self._seen: tuple[Path, Seen, Stopwatch] | None = None
        self._setups = parse_windows(options.windows())
        classes = parse_classes(options.classes, options.background) if options.classes is not None else {}
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
            self._load_models()
        with self.clock("examples"):
            examples = self._exemplar_examples(photos, masks)
            if classes:
                if not isinstance(self.backbone, MaskClip):
                    raise UserError("--classes", "a CLIP backbone, which reads text", f"'{options.backbone}'")
                examples += text_examples(self.backbone, classes)
        if reference is not None:
            photo = photos[reference]
            seen = self._look(photo, first)
            # Whole photos are seen once: the view of the only window holds what the points are in.
            whole = self._setups == [None] and self.graph_backbone is None
            with first("backbone"):
                features = seen.views[0].features[0] if whole else self.backbone(photo, self.size(photo))
            self._seen = reference, seen, first
            examples += point_examples(features, options.points, photo.height, photo.width, options.prototypes == 1)
        self.vocabulary: Vocabulary = build_vocabulary(examples)

    def _load_models(self) -> None:
        options = self.options
        shared = {"layer": options.layer, "threads": options.threads}
        self.backbone = load_backbone(options.backbone, options.weights, logits=options.logits, **shared)
        self.graph_backbone = None
        if options.uses_graph() and options.graph_backbone != options.backbone:
            flag = "--graph-weights"
            self.graph_backbone = load_backbone(options.graph_backbone, options.graph_weights, flag=flag, **shared)
        self.attention: AttentionSource | None = None
        if options.uses_attention():
            same = options.attention == options.backbone and options.attention_weights in (None, options.weights)
            self.attention = load_attention(
                options.attention,
                options.attention_weights,
                layer=options.attention_layer,
                backbone=self.backbone if same else None,
                threads=options.threads,
            )

    def _exemplar_examples(self, photos: dict[Path, "Image"], masks: list[np.ndarray]) -> list[ClassExamples]:
        options, examples = self.options, []
        for exemplar, ids in zip(options.exemplars, masks, strict=True):
            photo = photos[exemplar.image]
            features = self.backbone(photo, self.size(photo))
            examples += exemplar_examples(features, ids, exemplar, options.class_names, options.prototypes)
        unused = sorted(set(options.class_names) - {example.id for example in examples})
        if unused:
            raise UserError(
                f"--class-name {unused[0]}={options.class_names[unused[0]]}",
                "an id that occurs in a mask of --exemplar",
                "one that does not",
            )
        return examples

    def size(self, photo: "Image") -> tuple[int, int]:
        """(H, W) at which a photo is worked on."""
        return working_size(photo.height, photo.width, self.options.short_side)

    def views(self, photo: "Image", image: Tensor) -> list[View]:
        """What the backbones see of a photo, one view per set-up of windows."""
        return [look(photo, image, self.backbone, self.graph_backbone, setup) for setup in self._setups]

    def _look(self, photo: "Image", clock: Stopwatch) -> Seen:
        """Shows a photo to the models; one pass gives features and attention if one model has both."""
        size, attention = self.size(photo), None
        with clock("read"):
            image = to_tensor(photo, size)
        if isinstance(self.attention, BackboneAttention) and self.attention.backbone is self.backbone:
            with clock("backbone"):
                features, attention = self.attention.with_features(photo, size)
                return Seen(photo, image, [whole_view(features, size, self.backbone.patch)], attention)
        with clock("backbone"):
            views = self.views(photo, image)
        if self.attention is not None:
            with clock("attention"):
                attention = self.attention(photo, size)
        return Seen(photo, image, views, attention)

    def read(self, path: Path, clock: Stopwatch) -> Seen:
        """A photo and what the models see of it; once for the photo that the points are in."""
        if self._seen is None or self._seen[0] != path:
            with clock("read"):
                photo = read_photo(path)
            return self._look(photo, clock)
        _, seen, spent = self._seen
        for stage, milliseconds in spent.milliseconds.items():
            clock.milliseconds[stage] = clock.milliseconds.get(stage, 0.0) + milliseconds
        return seen

    def scores(self, seen: Seen) -> Tensor:
        """[G, h, w] class scores: at the working resolution, of DSLO on the grid of the attention."""
        options, arguments = self.options, {}
        if options.method == "pixels":
            arguments = options.propagation
        elif options.uses_graph():
            arguments = {"constants": options.patch_constants()}
            if options.method == "lposs+":
                arguments["propagation"] = options.propagation
        elif options.uses_attention():
            arguments = {"attention": seen.attention, "constants": options.dslo_constants()}
        return METHODS[options.method](seen.views, self.vocabulary, seen.image, **arguments)

    def labels(self, path: Path, clock: Stopwatch) -> tuple[Seen, np.ndarray]:
        """The photo, and the class index of each of its pixels, [H, W]; the time of each stage goes to `clock`."""
        seen, options = self.read(path, clock), self.options
        with clock(options.method):
            scores = self.scores(seen)
        if options.uses_attention():
            with clock("upsample + argmax"):
                return seen, upsample_argmax(scores, seen.photo, options.dslo_constants()).numpy()
        with clock("resize + argmax"):
            return seen, resize_argmax(scores, (seen.photo.height, seen.photo.width)).numpy()

    def run(
        self, path: Path, paths: OutputPaths, settings: dict[str, Any]
    ) -> tuple[list[tuple[str, float]], Stopwatch]:
        """Segments one photo and writes its files; shares of the classes and the time of each stage."""
        clock = Stopwatch()
        seen, labels = self.labels(path, clock)
        photo = seen.photo
        summary = {
            "image": path.name,
            "size": [photo.height, photo.width],
            "working_size": list(seen.image.shape[1:]),
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


def _check_vocabulary(options: SegmentOptions) -> None:
    if options.classes is not None:
        if options.points or options.exemplars:
            raise UserError("--classes", "no --point and no --exemplar with it", "both")
        if options.backbone == EMBEDDED:
            raise UserError("--classes", "a CLIP backbone, which reads text", f"--backbone {EMBEDDED}")
        parse_classes(options.classes, options.background)
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


def _check_dslo(options: SegmentOptions, images: list[Path]) -> None:
    options.dslo_constants()
    windows = options.constants.get("windows")
    if windows not in (None, "none"):
        raise UserError("--windows", f"none with --method {options.method}, which sees whole photos", f"'{windows}'")
    if is_matrix(options.attention) and len(images) > 1:
        wanted = f"one IMAGE, whose matrix {options.attention} is"
        raise UserError("--attention", wanted, f"{len(images)} images", "a matrix belongs to one photo")


def plan(options: SegmentOptions) -> tuple[list[Path], Path | None, dict[Path, OutputPaths]]:
    """Checks what can be checked without reading images.

    Returns:
        The images, the photo the points are in, and each image's outputs.

    Raises:
        UserError: something cannot be used.
    """
    images = list_images(options.images)
    _check_vocabulary(options)
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
    parse_windows(options.windows())
    if options.uses_attention():
        _check_dslo(options, images)
    if options.method in ("pixels", "lposs+"):
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
    text = parse_classes(options.classes, options.background) if options.classes is not None else None
    graph, attends = options.uses_graph(), options.uses_attention()
    weights = [options.weights, options.graph_weights if graph else None]
    attention = {}
    if attends:
        files = attention_files(options.attention, options.attention_weights)
        attention = {"source": options.attention, "files": [file_identity(file) for file in files]}
        attention |= {"layer": options.attention_layer, **dataclasses.asdict(options.dslo_constants())}
    return {
        "version": __version__,
        "method": options.method,
        "propagation": options.propagation if options.method in ("pixels", "lposs+") else {},
        "windows": options.windows(),
        "graph": dataclasses.asdict(options.patch_constants()) if graph else {},
        "dslo": attention,
        "points": [str(point) for point in options.points],
        "points_on": file_identity(reference) if reference is not None and reference.is_file() else None,
        "exemplars": [[file_identity(e.image), file_identity(e.mask)] for e in options.exemplars],
        "class_names": {str(key): name for key, name in sorted(options.class_names.items())},
        "prototypes": options.prototypes,
        "classes": text,
        "short_side": options.short_side,
        "backbones": [options.backbone, options.graph_backbone if graph else None],
        "logits": options.logits,
        "weights": [file_identity(Path(file)) if file and Path(file).is_file() else file for file in weights],
        "layer": options.layer,
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
    options = options.resolved()
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
