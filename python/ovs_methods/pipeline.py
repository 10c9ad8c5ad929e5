"""Photos to label maps: one, or a folder of them, in this process."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .attention import Attention, AttentionSource, BackboneAttention, load_attention
from .backbones import AttentiveBackbone, TextBackbone, load_backbone
from .backbones.dinov2 import available_cpus
from .errors import UserError
from .images import read_photo, resize_argmax, sampled, to_tensor, working_size
from .methods import (
    METHODS,
    PNP,
    best_of_groups,
    expert_embeddings,
    floss,
    pamr_scores,
    softmax_argmax,
    upsample_argmax,
)
from .options import SegmentOptions, plan, run_settings
from .outputs import OutputPaths, Stopwatch, file_identity, write_outputs
from .shared import Shared
from .vocabulary import (
    ClassExamples,
    Vocabulary,
    all_names,
    build_vocabulary,
    exemplar_examples,
    load_templates,
    mean_examples,
    parse_classes,
    point_examples,
    template_embeddings,
)
from .vocabulary.exemplar import read_mask
from .vocabulary.points import check_inside
from .windows import View, look, parse_windows, whole_view

if TYPE_CHECKING:
    from PIL.Image import Image

# What one image can fail with without saying anything about the next.
IMAGE_ERRORS = (UserError, ValueError, RuntimeError, MemoryError)


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
        shared: models, and what they see of a photo, in common with other methods; None shares nothing.
    """

    def __init__(self, options: SegmentOptions, reference: Path | None, shared: Shared | None = None):
        torch.set_num_threads(options.threads or available_cpus())
        self.options = options = options.resolved()
        self.clock, self._shared = Stopwatch(), shared
        self._seen: tuple[Path, Seen, Stopwatch] | None = None
        self._setups = parse_windows(options.windows())
        self._recipe = options.clip_recipe()
        self.experts: Tensor | None = None  # of floss
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
                examples += self._text_examples(classes)
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
        options, load = self.options, (self._shared or Shared()).model
        both = {"layer": options.layer, "threads": options.threads}
        self.backbone = load(load_backbone, options.backbone, options.weights, **options.clip(), **both)
        self.graph_backbone = None
        if options.uses_graph() and options.graph_backbone != options.backbone:
            flag = "--graph-weights"
            self.graph_backbone = load(load_backbone, options.graph_backbone, options.graph_weights, flag=flag, **both)
        self.attention: AttentionSource | None = None
        if options.uses_attention():
            same = options.attention == options.backbone and options.attention_weights in (None, options.weights)
            self.attention = load(
                load_attention,
                options.attention,
                options.weights if same else options.attention_weights,
                layer=options.attention_layer,
                backbone=self.backbone if same and isinstance(self.backbone, AttentiveBackbone) else None,
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

    def _text_examples(self, classes: dict[str, list[str]]) -> list[ClassExamples]:
        """The classes by text; for floss also the experts, `self.experts`."""
        options = self.options
        if not isinstance(self.backbone, TextBackbone):
            raise UserError("--classes", "a CLIP backbone, which reads text", f"'{options.backbone}'")
        templates = load_templates(options.templates)
        embeddings = template_embeddings(self.backbone, all_names(classes), templates)
        if options.method == "floss":
            ranking = options.ranking()
            ranking.check(self.backbone.identity, options.base, templates, classes)
            experts = ranking.experts(list(classes), options.top)
            unused = [name for name, chosen in zip(classes, experts, strict=True) if chosen is None]
            if unused and self._recipe.renormalize:
                raise UserError(
                    "--experts",
                    f"a template that predicts each class, for {options.base}",
                    f"none that predicts {', '.join(unused)} in {options.experts}",
                    "rank the templates on more images",
                )
            groups = [index for index, names in enumerate(classes.values()) for _ in names]
            self.experts = expert_embeddings(embeddings, experts, groups, self._recipe.renormalize)
        return mean_examples(classes, embeddings)

    def size(self, photo: "Image") -> tuple[int, int]:
        """(H, W) at which a photo is worked on."""
        return working_size(photo.height, photo.width, self.options.short_side)

    def views(self, photo: "Image", image: Tensor) -> list[View]:
        """What the backbones see of a photo, one view per set-up of windows."""
        models = self.backbone, self.graph_backbone
        return [look(photo, image, *models, setup, self._shared) for setup in self._setups]

    def _look(self, photo: "Image", clock: Stopwatch) -> Seen:
        """Shows a photo to the models; one pass gives features and attention if one model has both."""
        size, attention, original = self.size(photo), None, photo
        with clock("read"):
            if self.options.resize == "sampled":
                photo = (
                    sampled(photo, size)
                    if self._shared is None
                    else self._shared.seen(("sampled", size), lambda: sampled(original, size))
                )
            image = to_tensor(photo, size)
        if isinstance(self.attention, BackboneAttention) and self.attention.backbone is self.backbone:
            with clock("backbone"):
                features, attention = self._once("features", photo, size, self.attention.with_features)
                return Seen(original, image, [whole_view(features, size, self.backbone.patch)], attention)
        with clock("backbone"):
            views = self.views(photo, image)
        if self.attention is not None:
            with clock("attention"):
                attention = self._once("attention", original, size, self.attention)
        return Seen(original, image, views, attention)

    def _once(self, what: str, photo: "Image", size: tuple[int, int], make: Callable[..., Any]) -> Any:
        """What `make` makes of a photo and a size; once for all methods that share it."""
        if self._shared is None:
            return make(photo, size)
        return self._shared.seen((id(self.attention), what, photo.size, size), lambda: make(photo, size))

    def read(self, path: Path, clock: Stopwatch, photo: "Image | None" = None) -> Seen:
        """A photo, read already or not, and what the models see of it; once for the photo that the points are in."""
        if self._seen is None or self._seen[0] != path:
            if photo is None:
                with clock("read"):
                    photo = read_photo(path)
            return self._look(photo, clock)
        _, seen, spent = self._seen
        for stage, milliseconds in spent.milliseconds.items():
            clock.milliseconds[stage] = clock.milliseconds.get(stage, 0.0) + milliseconds
        return seen

    def scores(self, seen: Seen) -> Tensor:
        """[G, h, w] class scores: at the working resolution, of DSLO on the grid of the attention.

        Of floss, naclip and proxyclip [P, h, w], those of the names.
        """
        options, recipe, arguments = self.options, self._recipe, {}
        if options.method == "floss":
            return floss(seen.views, self.experts, seen.image, recipe.scale, options.fusion)
        if options.method == "pixels":
            arguments = options.propagation
        elif options.uses_graph():
            arguments = {"constants": options.patch_constants()}
            if options.method == "lposs+":
                arguments["propagation"] = options.propagation
        elif options.uses_attention():
            arguments = {"attention": seen.attention, "constants": options.dslo_constants()}
        elif recipe is not None and recipe.head == "maskclip":
            arguments = {"scale": recipe.scale}
        return METHODS[options.method](seen.views, self.vocabulary, seen.image, **arguments)

    def labels(self, path: Path, clock: Stopwatch, photo: "Image | None" = None) -> tuple[Seen, np.ndarray]:
        """The photo, and the class index of each of its pixels, [H, W]; the time of each stage goes to `clock`."""
        seen, options = self.read(path, clock, photo), self.options
        with clock(options.method):
            scores = self.scores(seen)
        if options.uses_attention():
            with clock("upsample + argmax"):
                return seen, upsample_argmax(scores, seen.photo, options.dslo_constants()).numpy()
        size = seen.photo.height, seen.photo.width
        if self._recipe is not None and self._recipe.pamr:
            with clock("pamr"):
                scores = pamr_scores(scores, seen.image, size)
        with clock("resize + argmax"):
            if self._recipe is not None and self._recipe.head == "naclip":
                rule = {"scale": self._recipe.scale, "threshold": self._recipe.threshold}
                return seen, softmax_argmax(scores, self.vocabulary, size, **rule).numpy()
            if options.method == "floss":
                scores = best_of_groups(scores, self.vocabulary)
            return seen, resize_argmax(scores, size).numpy()

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


def make_segmenter(options: SegmentOptions, reference: Path | None = None, shared: Shared | None = None) -> Segmenter:
    """The segmenter of the method that the options name; arguments as of `Segmenter`."""
    if options.resolved().method == PNP:
        from .pnp import PnpSegmenter

        return PnpSegmenter(options)
    return Segmenter(options, reference, shared)


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
    segmenter = make_segmenter(options, reference)
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
