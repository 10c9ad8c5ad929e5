"""Segmentation quality of coarse, pixels, LPOSS, LPOSS+ and DSLO with the embedded backbone, on photos with masks.

    apt-get download labelme-examples && dpkg-deb -x labelme-examples_*.deb labelme      # nothing is downloaded here
    python benchmarks/quality.py --data labelme

Photos: imgaug's quokka, if it is installed, and what is found below --data: folders with JPEGImages and
SegmentationClassPNG, and the labelme tutorial's photo. Of several frames of one film the first is taken.

Vocabularies: `points` are three pixels per class drawn from the photo's own mask, `exemplar` is the mask of another
photo of the same folder that shares classes. Numbers are percent, the mean over a photo's classes, then over its
draws, then over photos. Half of the photos chose the presets "harmless" (`--half choose --sweep first`,
then `more`) and "embedded" (`--half choose --sweep dslo`); the other half is what is reported.
"""

import argparse
import dataclasses
import importlib.util
import itertools
import json
import statistics
from pathlib import Path

import numpy as np
import torch
from ovs_methods.attention import Attention, BackboneAttention
from ovs_methods.backbones import DinoV2
from ovs_methods.images import read_photo, resize_argmax, to_tensor, working_size
from ovs_methods.methods import (
    ATTENTION_METHODS,
    DSLO_PRESETS,
    METHODS,
    PRESETS,
    DsloPreset,
    Preset,
    propagate_scores,
    upsample_argmax,
)
from ovs_methods.vocabulary import Exemplar, Point, Vocabulary, build_vocabulary, exemplar_examples, point_examples
from ovs_methods.windows import look, parse_windows
from PIL import Image, ImageDraw
from scipy import ndimage
from torch.nn import functional as F

from ovs_kernels import lp_pixels

IGNORE = 255
CHOOSE = ("2011_000003", "quokka", "00000100")  # the photos that chose the constants; the others report
SWEEP = {
    "windows": ("none",),
    "k": (0.05, 0.1, 0.2, 0.5),
    "gamma": (3.0, 7.0, 15.0, 20.0, 30.0),
    "alpha": (0.5, 0.7, 0.8, 0.95),
    "center": (0.0,),
}
SWEEP_MORE = {  # what SWEEP leaves out, around what it found best
    "windows": ("none", "224/112"),
    "k": (0.1,),
    "gamma": (3.0, 7.0, 15.0, 20.0),
    "alpha": (0.5, 0.7, 0.95),
    "center": (0.0, 0.5, 1.0),
}
SWEEP_DSLO = {
    "dslo-op": {"scale": (7.0, 20.0, 100.0), "class_weight": (0.0, 0.65, 1.0)},
    "dslo-mv": {"scale": (7.0, 20.0, 100.0), "log_velocity": (False, True)},
}


@dataclasses.dataclass(frozen=True)
class Scene:
    """A photo and its truth.

    Attributes:
        name: of the file.
        group: photos of one group may serve each other as exemplars.
        photo: mode RGB.
        truth: [H, W] class ids, 255 is ignored.
    """

    name: str
    group: str
    photo: Image.Image
    truth: np.ndarray


def quokka() -> list[Scene]:
    """Imgaug's quokka and its outline of 39 points, in percent accuracy of a hand with a mouse."""
    spec = importlib.util.find_spec("imgaug")
    if spec is None:
        return []
    folder = Path(next(iter(spec.submodule_search_locations)))
    outline = json.loads((folder / "quokka_annotations.json").read_text())["polygons"][0]["keypoints"]
    photo = read_photo(folder / "quokka.jpg")
    mask = Image.new("L", photo.size)
    ImageDraw.Draw(mask).polygon([(point["x"], point["y"]) for point in outline], fill=1)
    return [Scene("quokka", "quokka", photo, np.asarray(mask))]


def scenes(data: Path | None) -> list[Scene]:
    """All photos with masks that are there."""
    found = quokka()
    for masks in sorted(data.rglob("semantic_segmentation/data_dataset_voc/SegmentationClassPNG")) if data else []:
        for mask in sorted(masks.glob("*.png")):
            photo = read_photo(masks.parent / "JPEGImages" / f"{mask.stem}.jpg")
            found.append(Scene(mask.stem, "voc", photo, np.asarray(Image.open(mask))))
    for mask in sorted(data.rglob("video_annotation/data_dataset_voc/SegmentationClassPNG/*00.png")) if data else []:
        photo = read_photo(mask.parents[1] / "JPEGImages" / f"{mask.stem}.jpg")
        found.append(Scene(mask.stem, "video", photo, np.asarray(Image.open(mask))))
    for mask in sorted(data.rglob("apc2016_obj3_json/label.png")) if data else []:
        photo = read_photo(mask.with_name("img.png"))
        found.append(Scene("apc2016_obj3", "apc", photo, np.asarray(Image.open(mask))))
    return found


def boundary(labels: np.ndarray, width: int) -> np.ndarray:
    """Pixels nearer than `width` to another label or to the edge of the photo (in the chessboard metric)."""
    size, labels = 2 * width + 1, labels.astype(np.uint8)
    differs = ndimage.minimum_filter(labels, size) != labels
    differs |= ndimage.maximum_filter(labels, size) != labels
    inside = np.zeros_like(differs)
    inside[width:-width, width:-width] = True
    return differs | ~inside


def quality(found: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """Mean IoU and mean Boundary IoU over the classes that occur (spec: pixels of 255 count nowhere)."""
    found = np.where(truth == IGNORE, IGNORE, found)
    width = max(1, round(0.02 * float(np.hypot(*truth.shape))))
    near_found, near_truth = boundary(found, width), boundary(truth, width)
    areas, rims = [], []
    for value in np.unique(truth[truth != IGNORE]):
        a, b = found == value, truth == value
        areas.append((a & b).sum() / (a | b).sum())
        a, b = a & near_found, b & near_truth
        rims.append((a & b).sum() / (a | b).sum())
    return 100 * float(np.mean(areas)), 100 * float(np.mean(rims))


def point_vocabularies(scene: Scene, features: torch.Tensor, draws: int) -> list[tuple[Vocabulary, np.ndarray]]:
    """Three pixels of each class, at random but not on its rim, `draws` times; and the truth."""
    height, width = scene.truth.shape
    result = []
    for seed in range(draws):
        generator, points = np.random.default_rng(seed), []
        for value in np.unique(scene.truth[scene.truth != IGNORE]).tolist():
            distance = ndimage.distance_transform_cdt(np.pad(scene.truth == value, 1))[1:-1, 1:-1]
            places = np.argwhere(distance >= min(8, distance.max()))
            for y, x in places[generator.choice(len(places), 3)]:
                points.append(Point(f"{value:03d}", float(x), float(y)))
        examples = point_examples(features, points, height, width, mean=False)
        ided = [dataclasses.replace(example, id=int(example.name)) for example in examples]
        result.append((build_vocabulary(ided), scene.truth))
    return result


def exemplar_vocabularies(
    scene: Scene, others: list[Scene], features: dict[str, torch.Tensor]
) -> list[tuple[Vocabulary, np.ndarray]]:
    """Masks of the other photos that share two classes or more; truth without the classes they lack."""
    result = []
    for other in others:
        shared = np.intersect1d(np.unique(scene.truth), np.unique(other.truth))
        if other is scene or other.group != scene.group or len(shared[shared != IGNORE]) < 2:
            continue
        ids = np.where(np.isin(other.truth, shared), other.truth, IGNORE)
        examples = exemplar_examples(features[other.name], ids, Exemplar(Path(other.name), Path("mask")), {}, 5)
        truth = np.where(np.isin(scene.truth, shared), scene.truth, IGNORE)
        result.append((build_vocabulary(examples), truth))
    return result


class Bench:
    """Photos, what the backbone sees of them, and their vocabularies, ready to be scored with any constants."""

    def __init__(self, every: list[Scene], half: str, draws: int):
        self.backbone = DinoV2()
        self.features = {scene.name: self.backbone(scene.photo, self.size(scene)) for scene in every}
        chosen = [s for s in every if half == "all" or (s.name in CHOOSE) == (half == "choose")]
        self.tasks = []
        for scene in chosen:
            self.tasks.append((scene, "points", point_vocabularies(scene, self.features[scene.name], draws)))
            masks = exemplar_vocabularies(scene, every, self.features)
            self.tasks += [(scene, "exemplar", masks)] if masks else []
        self._views = {}
        self._attention = {}

    @staticmethod
    def size(scene: Scene) -> tuple[int, int]:
        """Working size of a photo."""
        return working_size(scene.photo.height, scene.photo.width)

    def views(self, scene: Scene, windows: str) -> tuple[list, torch.Tensor]:
        """Views and working image of a photo, computed once."""
        if (scene.name, windows) not in self._views:
            image = to_tensor(scene.photo, self.size(scene))
            views = [look(scene.photo, image, self.backbone, None, setup) for setup in parse_windows(windows)]
            self._views[scene.name, windows] = views, image
        return self._views[scene.name, windows]

    def attention(self, scene: Scene) -> Attention:
        """The backbone's own attention over a photo, computed once."""
        if scene.name not in self._attention:
            self._attention[scene.name] = BackboneAttention(self.backbone)(scene.photo, self.size(scene))
        return self._attention[scene.name]

    def labels(self, scene: Scene, vocabulary: Vocabulary, method: str, constants: Preset | DsloPreset) -> np.ndarray:
        """Class indices of a photo's pixels."""
        if method in ATTENTION_METHODS:
            views, image = self.views(scene, "none")
            scores = METHODS[method](views, vocabulary, image, self.attention(scene), constants)
            return upsample_argmax(scores, scene.photo, constants).numpy()
        views, image = self.views(scene, constants.windows)
        arguments = {"constants": constants} if method in ("lposs", "lposs+") else {}
        return resize_argmax(METHODS[method](views, vocabulary, image, **arguments), scene.truth.shape).numpy()

    def task(
        self, scene: Scene, vocabularies: list, method: str, constants: Preset | DsloPreset
    ) -> tuple[float, float]:
        """Mean quality over the vocabularies of one photo."""
        found = []
        for vocabulary, truth in vocabularies:
            labels = self.labels(scene, vocabulary, method, constants)
            found.append(quality(np.array(vocabulary.ids)[labels], truth))
        return tuple(statistics.fmean(column) for column in zip(*found, strict=True))

    def table(self, method: str, constants: Preset | DsloPreset) -> dict[str, tuple[float, float]]:
        """Quality per task, and the means of the two kinds of vocabulary."""
        rows = {f"{s.name} {kind}": self.task(s, v, method, constants) for s, kind, v in self.tasks}
        for kind in ("points", "exemplar"):
            values = [value for key, value in rows.items() if key.endswith(kind)]
            if values:
                rows[f"mean {kind}"] = tuple(statistics.fmean(column) for column in zip(*values, strict=True))
        return rows

    def oracle(self, constants: Preset, patch: int = 16) -> dict[str, tuple[float, float]]:
        """The truth reduced to patches, then refined: what each stage could give with a perfect backbone."""
        found: dict[str, list[tuple[float, float]]] = {}
        for scene in {scene.name: scene for scene, _, _ in self.tasks}.values():
            views, image = self.views(scene, constants.windows)
            size = tuple(image.shape[1:])
            values = np.unique(scene.truth[scene.truth != IGNORE])
            grid = tuple(-(-side // patch) for side in size)
            cells = zip(grid, scene.truth.shape, strict=True)
            rows, columns = (((np.arange(n) + 0.5) * side / n).astype(int) for n, side in cells)
            reduced = torch.from_numpy(scene.truth[rows[:, None], columns].astype(np.int64))
            patches = torch.stack([(reduced == int(value)).float() for value in values])
            pixels = F.interpolate(patches[None], size, mode="bilinear", align_corners=False)[0]
            lposs = propagate_scores(patches, views, size, constants)
            maps = {
                "nearest": F.interpolate(patches[None], size, mode="nearest")[0],
                "bilinear": pixels,
                "pixels": lp_pixels(pixels, image),
                "lposs": lposs,
                "lposs+": lp_pixels(lposs, image),
            }
            for name, scores in maps.items():
                labels = values[resize_argmax(scores, scene.truth.shape).numpy()]
                found.setdefault(name, []).append(quality(labels, scene.truth))
        return {name: tuple(statistics.fmean(c) for c in zip(*rows, strict=True)) for name, rows in found.items()}


def sweep(bench: Bench, method: str, kind: type, values: dict[str, tuple]) -> None:
    """Prints for every combination how many points a method gains over coarse (whole photo), at worst and on average.

    The gains counted are those of mIoU and of Boundary IoU, in every task.
    """
    base = bench.table("coarse", Preset(windows="none"))
    for combination in itertools.product(*values.values()):
        changed = dict(zip(values, combination, strict=True))
        table = bench.table(method, kind(**changed))
        gains = [np.subtract(value, base[key]) for key, value in table.items() if not key.startswith("mean")]
        row = {**changed, "worst": float(np.min(gains)), "mean": float(np.mean(gains))}
        words = (f"{key} {round(value, 2) if isinstance(value, float) else value}" for key, value in row.items())
        print(f"{method}  " + "  ".join(words), flush=True)


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with the unpacked labelme-examples")
    parser.add_argument("--half", choices=("choose", "report", "all"), default="report", help="which photos (report)")
    parser.add_argument("--draws", type=int, default=5, help="draws of points per photo (5)")
    parser.add_argument("--sweep", choices=("first", "more", "dslo"), help="try all combinations of constants instead")
    arguments = parser.parse_args()
    if arguments.data is not None and not arguments.data.is_dir():
        parser.error(f"--data: expected a folder, got {arguments.data}")
    bench = Bench(scenes(arguments.data), arguments.half, arguments.draws)
    if arguments.sweep == "dslo":
        for method, values in SWEEP_DSLO.items():
            sweep(bench, method, DsloPreset, values)
        return
    if arguments.sweep:
        sweep(bench, "lposs", Preset, SWEEP if arguments.sweep == "first" else SWEEP_MORE)
        return
    runs = [("coarse", "harmless"), ("pixels", "harmless"), ("lposs", "harmless"), ("lposs+", "harmless")]
    runs += [("coarse", "paper"), ("lposs", "paper"), ("lposs+", "paper")]
    runs += [(method, preset) for preset in ("embedded", "paper") for method in ATTENTION_METHODS]
    for method, preset in runs:
        print(f"{method}, preset {preset}")
        presets = DSLO_PRESETS if method in ATTENTION_METHODS else PRESETS
        for name, (area, rim) in bench.table(method, presets[preset]).items():
            print(f"  {name:28} mIoU {area:6.2f}   Boundary IoU {rim:6.2f}")
    for preset in ("harmless", "paper"):
        print(f"oracle: the truth on a grid of 16 x 16 pixels, then refined, preset {preset}")
        for name, (area, rim) in bench.oracle(PRESETS[preset]).items():
            print(f"  {name:28} mIoU {area:6.2f}   Boundary IoU {rim:6.2f}")


if __name__ == "__main__":
    main()
