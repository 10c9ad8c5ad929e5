"""Propagation of anybody's scores: a photo and a .npy in, refined scores and labels out."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ovs_kernels import lp_pixels

from .backbones import EMBEDDED, load_backbone
from .backbones.dinov2 import available_cpus
from .errors import UserError, operators_judge
from .files import check_out_folder
from .images import read_photo, resize_argmax, to_bytes, to_tensor, working_size
from .methods import Preset, check_propagation, choose_preset, propagate_scores
from .outputs import OutputPaths, Stopwatch, file_identity, write_outputs
from .windows import look, parse_windows

if TYPE_CHECKING:
    from PIL.Image import Image

_MAX_CHANNELS = 65535


@dataclasses.dataclass(frozen=True)
class RefineOptions:
    """What `ovs refine` was asked for.

    Attributes:
        image: the photo.
        scores: .npy with [C, H, W].
        out: folder of the results.
        resize: "scores" enlarges them to the photo, "image" works at the size of the scores, None wants
            equal sizes.
        names: of the channels; empty: class 0, class 1, ...
        method: pixels, lposs (over patches) or lposs+ (over patches, then pixels).
        propagation: of `ovs_kernels.lp_pixels`.
        preset: of the patch stage, see `choose_preset`.
        constants: fields of `Preset` given one by one.
        graph_backbone: whose features the patch stage compares; None is the embedded one.
        graph_weights: its local file.
        threads: None for all CPUs.
        overwrite: redo what is there already.
    """

    image: Path
    scores: Path
    out: Path
    resize: str | None = None
    names: list[str] = dataclasses.field(default_factory=list)
    method: str = "pixels"
    propagation: dict[str, Any] = dataclasses.field(default_factory=dict)
    preset: str = "auto"
    constants: dict[str, Any] = dataclasses.field(default_factory=dict)
    graph_backbone: str | None = None
    graph_weights: str | None = None
    threads: int | None = None
    overwrite: bool = False


def read_scores(path: Path) -> np.ndarray:
    """A float array [C, H, W] from a .npy file.

    Args:
        path: the file; arrays with pickled objects are refused.

    Returns:
        The array, in memory, in native byte order.

    Raises:
        UserError: unreadable, or another kind of array.
    """
    if not path.is_file():
        raise UserError("--scores", "a .npy file with scores [C, H, W]", f"no file at {path}")
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError("--scores", "a .npy file with scores [C, H, W]", f"{path} ('{error}')") from None
    if not isinstance(array, np.ndarray):
        array.close()
        raise UserError("--scores", "a .npy file with one array", f"an archive of arrays ({path})")
    if array.dtype.kind != "f" or array.dtype.itemsize > 8:
        raise UserError("--scores", "float16, float32 or float64", array.dtype, "convert with scores.astype('float32')")
    if array.ndim != 3 or 0 in array.shape:
        raise UserError("--scores", "an array [C, H, W] that is not empty", f"shape {list(array.shape)}")
    if array.shape[0] > _MAX_CHANNELS:
        raise UserError("--scores", f"at most {_MAX_CHANNELS} classes", array.shape[0])
    return np.ascontiguousarray(array, array.dtype.newbyteorder("="))


def _match_sizes(options: RefineOptions, photo: "Image", scores: Tensor) -> tuple[Tensor, Tensor]:
    """Scores and image ([3, H, W] uint8, exact for every dtype of scores) at one size."""
    height, width = photo.height, photo.width
    size = tuple(scores.shape[1:])
    if size == (height, width) or options.resize == "image":
        return scores, to_bytes(photo, size)
    if options.resize == "scores":
        wide = scores.float() if scores.dtype == torch.float16 else scores
        wide = F.interpolate(wide[None], (height, width), mode="bilinear", align_corners=False)[0]
        return wide.to(scores.dtype), to_bytes(photo, (height, width))
    advice = "add --resize scores (enlarge the scores) or --resize image (work at their size)"
    if tuple(scores.shape[:2]) == (height, width):
        advice = "this looks like [H, W, C]; save numpy.moveaxis(scores, -1, 0)"
    raise UserError("--scores", f"[C, {height}, {width}], the size of {options.image}", f"{list(scores.shape)}", advice)


def _patch_stage(options: RefineOptions, constants: Preset, photo: "Image", scores: Tensor, clock: Stopwatch) -> Tensor:
    """The scores after LPOSS's patch stage, at their own size and in their own dtype."""
    with clock("load model"):
        name = options.graph_backbone or EMBEDDED
        backbone = load_backbone(name, options.graph_weights, threads=options.threads, flag="--graph-weights")
    size = working_size(photo.height, photo.width)
    with clock("backbone"):
        image = to_tensor(photo, size)
        views = [look(photo, image, backbone, None, setup) for setup in parse_windows(constants.windows)]
    with clock("lp_patches"):
        done = propagate_scores(scores, views, size, constants)
        if size != tuple(scores.shape[1:]):
            done = F.interpolate(done[None], scores.shape[1:], mode="bilinear", align_corners=False)[0]
    return done.to(scores.dtype)


def refine(options: RefineOptions) -> tuple[OutputPaths, list[tuple[str, float]] | None, Stopwatch]:
    """Refines the scores and writes them, the labels, the overlay and the JSON.

    Args:
        options: what to do.

    Returns:
        The files; the classes' shares of the photo, or None if a former run had done the same; the time of
        each stage.

    Raises:
        UserError: something cannot be used; nothing was written.
        MissingDependency: Pillow is not installed.
        OSError: an output could not be written.
    """
    check_propagation(options.propagation)
    constants = choose_preset(options.preset, options.graph_backbone or EMBEDDED, options.constants)
    parse_windows(constants.windows)
    check_out_folder(options.out)
    paths = OutputPaths.of(options.out, options.image.stem, scores=True)
    given = {options.image.resolve(), options.scores.resolve()}
    for path in paths.all():
        if path.resolve() in given:
            raise UserError("--out", "a folder where no input is replaced", f"{path}, which is an input itself")
    torch.set_num_threads(options.threads or available_cpus())
    clock = Stopwatch()
    with clock("read"):
        photo = read_photo(options.image)
        array = read_scores(options.scores)
    settings = {
        "input": file_identity(options.image),
        "scores": file_identity(options.scores),
        "resize": options.resize,
        "names": options.names,
        "method": options.method,
        "propagation": options.propagation if options.method != "lposs" else {},
    }
    if options.method != "pixels":
        settings["graph"] = {
            **dataclasses.asdict(constants),
            "backbone": options.graph_backbone or EMBEDDED,
            "weights": options.graph_weights,
        }
    names = options.names or [f"class {index}" for index in range(len(array))]
    if len(names) != len(array):
        raise UserError("--names", f"{len(array)} names, one per channel of the scores", len(names))
    if not options.overwrite and paths.complete_with(settings):
        return paths, None, clock
    with clock("read"):
        scores, image = _match_sizes(options, photo, torch.from_numpy(array))
    with operators_judge():
        refined = scores
        if options.method != "pixels":
            refined = _patch_stage(options, constants, photo, refined, clock)
        if options.method != "lposs":
            with clock("lp_pixels"):
                refined = lp_pixels(refined, image, **options.propagation)
    with clock("resize + argmax"):
        labels = resize_argmax(refined, (photo.height, photo.width)).numpy()
    summary = {
        "image": options.image.name,
        "size": [photo.height, photo.width],
        "working_size": list(image.shape[1:]),
        "method": options.method,
        "non_finite_classes": [names[i] for i in (~refined.isfinite().flatten(1).all(1)).nonzero().flatten().tolist()],
    }
    shares = write_outputs(
        paths,
        photo,
        labels,
        names,
        list(range(len(names))),
        summary=summary,
        settings=settings,
        clock=clock,
        scores=refined.numpy(),
    )
    return paths, shares, clock
