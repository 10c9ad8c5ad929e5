"""A real photo, several classes, both methods, and what the kernel is worth against plain PyTorch."""

import dataclasses
import importlib.util
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from ovs_kernels import lp_pixels, reference

from .errors import MissingDependency
from .files import check_out_folder
from .methods.coarse import embedding_scores
from .outputs import OutputPaths, Stopwatch, file_identity
from .pipeline import Segmenter, SegmentOptions, run_settings
from .vocabulary import Point

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
    """

    def __init__(self, out: Path, name: str = "coffee", threads: int | None = None):
        check_out_folder(out)
        self.photo = photo_path(name)
        self._name, self._out = name, out
        self._options = SegmentOptions([str(self.photo)], out, demo_points(name), threads=threads)
        self.segmenter = Segmenter(self._options, self.photo)

    def segment(self, method: str) -> tuple[OutputPaths, list[tuple[str, float]], Stopwatch]:
        """Segments the photo and writes the files.

        Args:
            method: coarse or pixels.

        Returns:
            The files, the shares of the classes and the time of each stage.
        """
        options = dataclasses.replace(self._options, method=method)
        self.segmenter.options = options
        paths = OutputPaths.of(self._out, f"{self._name}_{method}")
        settings = {"input": file_identity(self.photo), **run_settings(options, self.photo)}
        return (paths, *self.segmenter.run(self.photo, paths, settings))

    def propagation_input(self) -> tuple[Tensor, Tensor]:
        """What `lp_pixels` is given for this photo: scores [C, H, W] and image [3, H, W]."""
        _, features, image = self.segmenter.read(self.photo, Stopwatch())
        return embedding_scores(features, self.segmenter.vocabulary, image.shape[1:]), image
