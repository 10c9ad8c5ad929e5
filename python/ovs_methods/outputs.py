"""What a run leaves behind for one photo: label image, overlay panel and JSON, all or none."""

import contextlib
import dataclasses
import hashlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import __version__, viz
from .files import write_together
from .panels import Column, comparison

if TYPE_CHECKING:
    from PIL.Image import Image


class Stopwatch:
    """Milliseconds spent in named stages, in order of first use."""

    def __init__(self):
        self.milliseconds: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Adds the time of the block to `stage`."""
        start = time.perf_counter()
        yield
        spent = 1000 * (time.perf_counter() - start)
        self.milliseconds[stage] = self.milliseconds.get(stage, 0.0) + spent

    def rounded(self) -> dict[str, float]:
        """The stages with one decimal."""
        return {stage: round(value, 1) for stage, value in self.milliseconds.items()}

    def __str__(self) -> str:
        return " | ".join(f"{stage} {value:.0f} ms" for stage, value in self.milliseconds.items())


@dataclasses.dataclass(frozen=True)
class OutputPaths:
    """Files of one photo.

    Attributes:
        labels: PNG whose pixel values are class ids.
        overlay: PNG to look at.
        summary: JSON; written last, so it exists only beside complete others.
        scores: refined scores, only of `ovs refine`.
        panel: PNG with the photo beside its labels, names written on them; None without --save-panels.
    """

    labels: Path
    overlay: Path
    summary: Path
    scores: Path | None = None
    panel: Path | None = None

    @classmethod
    def of(cls, out: Path, stem: str, scores: bool = False, panels: Path | None = None) -> "OutputPaths":
        """The files in folder `out` for a photo called `stem`, and its panel in folder `panels`."""
        refined = out / f"{stem}_refined.npy" if scores else None
        panel = panels / f"{stem}_panel.png" if panels is not None else None
        return cls(out / f"{stem}_labels.png", out / f"{stem}_overlay.png", out / f"{stem}.json", refined, panel)

    def all(self) -> list[Path]:
        """Every file, the summary last."""
        paths = (self.panel, self.scores, self.labels, self.overlay, self.summary)
        return [path for path in paths if path is not None]

    def complete_with(self, settings: dict[str, Any]) -> bool:
        """Whether all files are there and come from the same inputs and settings."""
        if not all(path.is_file() for path in self.all()):
            return False
        try:
            summary = json.loads(self.summary.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return isinstance(summary, dict) and summary.get("settings") == json.loads(json.dumps(settings))


def file_identity(path: Path) -> dict[str, Any]:
    """Name, size and time of change: enough to see that an input is still the same file."""
    status = path.stat()
    return {"name": path.name, "bytes": status.st_size, "changed_ns": status.st_mtime_ns}


def content_identity(path: Path) -> dict[str, Any]:
    """Name and content of a small file."""
    return {"name": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def write_outputs(
    paths: OutputPaths,
    photo: "Image",
    labels: np.ndarray,
    names: list[str],
    ids: list[int],
    *,
    summary: dict[str, Any],
    settings: dict[str, Any],
    clock: Stopwatch,
    scores: np.ndarray | None = None,
) -> list[tuple[str, float]]:
    """Writes the files of one photo, all or none.

    Args:
        paths: where to.
        photo: mode RGB.
        labels: [H, W] class indices.
        names: [G] of the classes.
        ids: [G] of the classes.
        summary: what else the JSON tells.
        settings: what a later run compares to see whether it would do the same again.
        clock: its stages go into the JSON.
        scores: [C, H, W], written if `paths.scores` is set.

    Returns:
        Name and share of each class.
    """
    counts = np.bincount(labels.ravel(), minlength=len(names))
    shares = (counts / labels.size).tolist()
    colors = viz.class_colors(names)
    with clock("draw"):
        label_image = viz.label_image(labels, ids, colors)
        picture = viz.panel(photo, labels, names, shares, colors)
    classes = [
        {
            "id": ids[i],
            "name": names[i],
            "color": list(colors[i]),
            "pixels": int(counts[i]),
            "share": round(shares[i], 6),
        }
        for i in range(len(names))
    ]
    document = {"ovs_kernels": __version__, **summary, "classes": classes}

    def write_summary(path: Path) -> None:
        document.update(timings_ms=clock.rounded(), settings=settings)
        path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    def timed(write: Any) -> Any:
        def run(path: Path) -> None:
            with clock("write"):
                write(path)

        return run

    outputs = {
        paths.labels: timed(lambda path: label_image.save(path, format="PNG")),
        paths.overlay: timed(lambda path: picture.save(path, format="PNG", compress_level=3)),
        paths.summary: write_summary,
    }
    if paths.scores is not None and scores is not None:

        def write_scores(path: Path) -> None:
            with open(path, "wb") as file:  # np.save would append .npy to the temporary name
                np.save(file, scores)

        outputs = {paths.scores: timed(write_scores), **outputs}
    if paths.panel is not None:
        with clock("draw"):
            drawn = comparison(
                photo, [Column(str(summary.get("method", "")), labels)], names, title=str(summary.get("image", ""))
            )
        outputs = {paths.panel: timed(lambda path: drawn.save(path, format="PNG", compress_level=3)), **outputs}
    write_together(outputs)
    return list(zip(names, shares, strict=True))
