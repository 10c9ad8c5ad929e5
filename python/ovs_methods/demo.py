"""A real photo, several classes, five methods side by side, and what the kernels are worth."""

import dataclasses
import importlib.util
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from torch import Tensor

from ovs_kernels import lp_pixels, merge_windows, reference

from . import viz
from .errors import MissingDependency
from .files import check_out_folder, write_together
from .images import open_image, resize_argmax
from .methods import ATTENTION_METHODS
from .methods.coarse import patch_scores
from .methods.lposs import patch_stage, propagate_view
from .options import SegmentOptions, run_settings
from .outputs import OutputPaths, Stopwatch, file_identity
from .pipeline import Segmenter
from .vocabulary import Point

METHODS_SHOWN = ("coarse", "lposs", "lposs+", "dslo-op", "dslo-mv")

# Pixels of the photos that scikit-image ships (coffee and chelsea are CC0, astronaut is NASA's).
PHOTOS: dict[str, dict[str, list[tuple[int, int]]]] = {
    "coffee": {
        "cup": [(290, 215), (215, 275), (290, 30), (215, 90), (380, 100)],
        "coffee": [(285, 150)],
        "spoon": [(365, 285), (412, 85), (380, 305)],
        "saucer": [(120, 200), (430, 270), (250, 350), (300, 305), (85, 215), (200, 370), (195, 310)],
        "table": [(540, 120), (60, 300), (470, 330), (400, 388), (130, 385), (295, 396)],
        "background": [(40, 30)],
    },
    "chelsea": {
        "eyes": [(170, 115), (318, 135)],
        "nose": [(265, 243)],
        "fur": [(250, 60), (100, 150), (230, 190), (60, 260), (20, 200)],
        "ears": [(60, 8), (370, 20)],
        "background": [(10, 60), (420, 80), (420, 250)],
    },
    "astronaut": {
        "face": [(222, 120)],
        "hair": [(230, 70), (170, 90)],
        "suit": [(80, 330), (300, 300)],
        "helmet": [(390, 430)],
        "flag": [(50, 60), (60, 170)],
        "shuttle": [(395, 150), (415, 50)],
        "wall": [(330, 100), (120, 60)],
        "table": [(405, 310)],
    },
}


def photo_path(name: str) -> Path:
    """Where scikit-image keeps one of PHOTOS, found without importing it; these files need no download.

    Raises:
        MissingDependency: scikit-image is not installed.
    """
    spec = importlib.util.find_spec("skimage")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder, "data", f"{name}.png")
        if path.is_file():
            return path
    raise MissingDependency(f"the photo {name} comes with scikit-image, which is not installed")


def demo_points(name: str) -> list[Point]:
    """The points of one of PHOTOS."""
    return [Point(label, x, y) for label, places in PHOTOS[name].items() for x, y in places]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """`lp_pixels` against the plain-PyTorch reference: same scores, same image, float32, same threads.

    Attributes:
        ours_ms: median of several runs after one to warm up.
        reference_ms: one run.
        agreement: share of pixels with the same label.
    """

    ours_ms: float
    reference_ms: float
    agreement: float


def _timed(run: Callable[[], Tensor]) -> tuple[Tensor, float]:
    start = time.perf_counter()
    result = run()
    return result, 1000 * (time.perf_counter() - start)


def compare(scores: Tensor, image: Tensor, repeats: int = 5) -> Comparison:
    """Times `lp_pixels` and the reference on one input.

    Args:
        scores: [C, H, W] float32.
        image: [3, H, W] float32 in [0, 1].
        repeats: runs of ours.

    Returns:
        The times and how many labels agree.
    """
    same = {"window": 13, "tau": 0.01, "alpha": 0.95, "mode": "official", "max_iter": 10, "tol": 1e-6}

    def ours() -> Tensor:
        return lp_pixels(scores, image, **same)

    def plain() -> Tensor:
        rest = {"lab": True, "groups": None, "num_groups": len(scores), "labels": False}
        return reference.lp_pixels(scores[None], image[None], **same, **rest)[0][0]

    labels = ours().argmax(0)
    ours_ms = statistics.median(_timed(ours)[1] for _ in range(repeats))
    expected, reference_ms = _timed(plain)
    return Comparison(ours_ms, reference_ms, (labels == expected.argmax(0)).float().mean().item())


class Demo:
    """One of PHOTOS, ready to be segmented.

    Args:
        out: folder of the results.
        name: key of PHOTOS.
        threads: None for all CPUs.

    Attributes:
        photo: its path.
        image: [3, H, W], the photo at the working resolution.
    """

    def __init__(self, out: Path, name: str = "coffee", threads: int | None = None):
        check_out_folder(out)
        self.photo = photo_path(name)
        self._name, self._out = name, out
        options = SegmentOptions([str(self.photo)], out, demo_points(name), method="lposs+", threads=threads)
        self.segmenter = Segmenter(options, self.photo)
        self._options = self.segmenter.options
        # Its backbone has another output, the attention, and takes longer.
        self._attending = Segmenter(dataclasses.replace(options, method="dslo-mv"), self.photo)
        self._seen = self.segmenter.read(self.photo, Stopwatch())
        self.image = self._seen.image

    def _paths(self, method: str) -> OutputPaths:
        return OutputPaths.of(self._out, f"{self._name}_{method.replace('+', '_plus')}")

    def segment(self, method: str) -> tuple[OutputPaths, list[tuple[str, float]], Stopwatch]:
        """Segments the photo and writes the files.

        Args:
            method: key of METHODS.

        Returns:
            The files, the shares of the classes and the time of each stage.
        """
        segmenter = self._attending if method in ATTENTION_METHODS else self.segmenter
        segmenter.options = options = dataclasses.replace(segmenter.options, method=method)
        settings = {"input": file_identity(self.photo), **run_settings(options, self.photo)}
        return (self._paths(method), *segmenter.run(self.photo, self._paths(method), settings))

    def side_by_side(self) -> Path:
        """Draws the results of METHODS_SHOWN, which must have been segmented, into one picture; its path."""
        vocabulary, path = self.segmenter.vocabulary, self._out / f"{self._name}_side_by_side.png"
        index = {value: place for place, value in enumerate(vocabulary.ids)}
        labels = {}
        for method in METHODS_SHOWN:
            values = np.asarray(open_image(self._paths(method).labels))
            labels[method] = np.vectorize(index.__getitem__, otypes=[np.int64])(values)
        colors = viz.class_colors(vocabulary.names)
        picture = viz.side_by_side(self._seen.photo, labels, vocabulary.names, colors)
        write_together({path: lambda file: picture.save(file, format="PNG", compress_level=3)})
        return path

    def summary(self) -> str:
        """The sizes of the problem, in words."""
        patches = sum(len(view.positions) for view in self._seen.views)
        return f"{patches} patches, {len(self.segmenter.vocabulary.groups)} embeddings"

    def map_scores(self) -> Tensor:
        """What `lp_pixels` is given for this photo: [P, H, W] scores after the patch stage."""
        scores = [patch_scores(view, self.segmenter.vocabulary) for view in self._seen.views]
        return patch_stage(self._seen.views, scores, tuple(self.image.shape[1:]), self._options.patch_constants())

    def stages(self, repeats: int = 3) -> dict[str, float]:
        """Milliseconds of each stage of LPOSS+, medians of several runs after one to warm up."""
        vocabulary, constants = self.segmenter.vocabulary, self._options.patch_constants()
        size, photo = tuple(self.image.shape[1:]), (self._seen.photo.height, self._seen.photo.width)
        clocks = []
        for _ in range(repeats + 1):
            clock = Stopwatch()
            clocks.append(clock.milliseconds)
            with clock("backbone"):
                views = self.segmenter.views(self._seen.photo, self.image)
            with clock("patch scores"):
                scores = [patch_scores(view, vocabulary) for view in views]
            with clock("lp_patches"):
                done = [propagate_view(part, view, constants) for part, view in zip(scores, views, strict=True)]
            with clock("merge_windows"):
                merged = merge_windows(done, [view.boxes for view in views], size)
            with clock("lp_pixels"):
                refined = lp_pixels(merged, self.image, groups=vocabulary.groups)
            with clock("resize + argmax"):
                resize_argmax(refined, photo)
        return {stage: statistics.median(clock[stage] for clock in clocks[1:]) for stage in clocks[0]}
