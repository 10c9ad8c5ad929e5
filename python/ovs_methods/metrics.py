"""mIoU, accuracy and Boundary IoU from exact counts that add up over images, runs and machines."""

import copy
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

import ovs_kernels

from .errors import UserError

METRICS = ("miou", "biou")
STYLES = ("mmseg", "pnp")
BACKGROUND = "background"


@dataclasses.dataclass(frozen=True)
class Scores:
    """What counts amount to, in percent; NaN where there is nothing to divide by.

    Attributes:
        names: [C] of the classes.
        pixels: [C] pixels of each class in the targets.
        iou: [C] intersection over union.
        accuracies: [C] share of a class's pixels that were found.
        boundary: [C] Boundary IoU; None where it was not counted.
        miou: mean of `iou` over the classes that count.
        accuracy: share of all pixels that were found (aAcc).
        mean_accuracy: mean of `accuracies` over the classes that count (mAcc).
        biou: mean of `boundary` over the classes that count; None where it was not counted.
    """

    names: tuple[str, ...]
    pixels: list[int]
    iou: list[float]
    accuracies: list[float]
    boundary: list[float] | None
    miou: float
    accuracy: float
    mean_accuracy: float
    biou: float | None


def _percent(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(whole > 0, 100 * part / np.maximum(whole, 1), np.nan)


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan


class SegmentationMetrics:
    """Counts of a method on a data set.

    ::

        M[i, j] = pixels of class i that the method calls j        (i, j up to C: the last is everything else)
        IoU_c   = M[c, c] / (sum of row c + sum of column c - M[c, c])

    Style "mmseg" is mmsegmentation's: pixels that do not count are left out, and the means are over the classes that
    occur in the targets or in the predictions. Style "pnp" is that of PnP-OVSS's code: the background is a class (the
    first one, where the data set has none), pixels that do not count and predictions outside the list are background,
    and the means are over the classes that occur in the targets.

    Args:
        names: [C] of the classes.
        metrics: which of METRICS are counted; the counts of miou also give the accuracies and are always there.
        style: one of STYLES.
        ignore_label: value of a target's pixels that do not count.
        ratio: width of a boundary, as a share of the image's diagonal.

    Attributes:
        names: of the classes that are counted, with the background that "pnp" adds.
        images: number of images.
        confusion: [C + 1, C + 1] int64.
        boundary: [3, C] int64: boundary pixels of intersection, prediction and target; None without biou.
    """

    def __init__(
        self,
        names: Sequence[str],
        *,
        metrics: Sequence[str] = METRICS,
        style: str = "mmseg",
        ignore_label: int = 255,
        ratio: float = 0.02,
    ):
        unknown = [metric for metric in metrics if metric not in METRICS]
        if unknown or not metrics:
            raise UserError("--metrics", " or ".join((*METRICS, "both between commas")), f"'{','.join(metrics)}'")
        if style not in STYLES:
            raise UserError("--style", " or ".join(STYLES), f"'{style}'")
        if not 0 < ratio < math.inf:
            raise UserError("--boundary-ratio", "a positive number", ratio)
        self.style, self.ratio, self.ignore_label = style, ratio, ignore_label
        lower = [name.lower() for name in names]
        self._shift = int(style == "pnp" and BACKGROUND not in lower)  # whether the background is ours
        self.names = (BACKGROUND, *names) if self._shift else tuple(names)
        self._background = 0 if self._shift or BACKGROUND not in lower else lower.index(BACKGROUND)
        count = len(self.names)
        self.images = 0
        self.confusion = torch.zeros(count + 1, count + 1, dtype=torch.int64)
        self.boundary = torch.zeros(3, count, dtype=torch.int64) if "biou" in metrics else None

    @property
    def metrics(self) -> tuple[str, ...]:
        """Those of METRICS that are counted."""
        return METRICS if self.boundary is not None else METRICS[:1]

    def add(self, prediction: Tensor | np.ndarray, target: Tensor | np.ndarray) -> None:
        """Counts an image.

        Args:
            prediction: [H, W] labels, any integer dtype; labels outside [0, C) are no class.
            target: [H, W] labels, as `data.read_target` makes them.
        """
        prediction, target = torch.as_tensor(prediction), torch.as_tensor(target)
        count, ignore = len(self.names), self.ignore_label
        if self.style == "pnp":
            prediction, target, ignore = self._with_background(prediction), self._with_background(target, ignore), None
        rule = {"ignore_label": ignore}
        self.confusion += ovs_kernels.confusion_matrix(prediction, target, count, others=True, **rule).cpu()
        if self.boundary is not None:
            self.boundary += ovs_kernels.boundary_iou(prediction, target, count, ratio=self.ratio, **rule).cpu()
        self.images += 1

    def _with_background(self, labels: Tensor, ignore: int | None = None) -> Tensor:
        """Labels in which all that is no class is background."""
        labels = labels.long()
        outside = (labels < 0) | (labels >= len(self.names) - self._shift)
        if ignore is not None:
            outside |= labels == ignore
        return torch.where(outside, self._background, labels + self._shift)

    def scores(self) -> Scores:
        """What the counts amount to."""
        counts = self.confusion.numpy()
        hit, target, found = counts.diagonal()[:-1], counts.sum(1)[:-1], counts.sum(0)[:-1]
        absent = (target == 0) if self.style == "pnp" else np.zeros(len(hit), bool)
        iou, accuracies = _percent(hit, target + found - hit), _percent(hit, target)
        iou[absent] = np.nan
        boundary = None
        if self.boundary is not None:
            both, predicted, wanted = self.boundary.numpy()
            boundary = _percent(both, predicted + wanted - both)
            boundary[absent] = np.nan
        return Scores(
            names=self.names,
            pixels=target.tolist(),
            iou=iou.tolist(),
            accuracies=accuracies.tolist(),
            boundary=None if boundary is None else boundary.tolist(),
            miou=_mean(iou),
            accuracy=float(_percent(hit.sum(keepdims=True), target.sum(keepdims=True))[0]),
            mean_accuracy=_mean(accuracies),
            biou=None if boundary is None else _mean(boundary),
        )

    def settings(self) -> dict[str, Any]:
        """What decides the counts besides the images."""
        return {
            "names": list(self.names[self._shift :]),
            "metrics": list(self.metrics),
            "style": self.style,
            "ignore_label": self.ignore_label,
            "ratio": self.ratio,
        }

    def __add__(self, other: "SegmentationMetrics") -> "SegmentationMetrics":
        """The counts of both, which are of different images."""
        mine, theirs = self.settings(), other.settings()
        for name, value in mine.items():
            if value != theirs[name]:
                raise UserError("metrics", f"the same {name} in both", f"{value} and {theirs[name]}")
        made = copy.copy(self)
        made.images = self.images + other.images
        made.confusion = self.confusion + other.confusion
        made.boundary = None if self.boundary is None else self.boundary + other.boundary
        return made

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON can hold it."""
        boundary = self.boundary.tolist() if self.boundary is not None else None
        counts = {"images": self.images, "confusion": self.confusion.tolist(), "boundary": boundary}
        return {**self.settings(), **counts}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "SegmentationMetrics":
        """Of what `to_json` returns.

        Raises:
            ValueError: it is something else.
        """
        try:
            rule = {name: document[name] for name in ("metrics", "style", "ignore_label", "ratio")}
            made = cls(document["names"], **rule)
            made.images = int(document["images"])
            confusion = torch.tensor(document["confusion"], dtype=torch.int64)
            boundary = document["boundary"]
            boundary = torch.tensor(boundary, dtype=torch.int64) if boundary is not None else None
        except (KeyError, TypeError, IndexError, RuntimeError, UserError) as error:
            raise ValueError(f"expected counts of SegmentationMetrics, got '{error}'") from None
        expected = [(made.confusion, confusion), (made.boundary, boundary)]
        for own, given in expected:
            if (own is None) != (given is None) or (own is not None and own.shape != given.shape):
                raise ValueError("expected counts of as many classes as there are names")
        if confusion.min() < 0 or (boundary is not None and boundary.min() < 0) or made.images < 0:
            raise ValueError("expected counts that are not negative")
        made.confusion, made.boundary = confusion, boundary
        return made
