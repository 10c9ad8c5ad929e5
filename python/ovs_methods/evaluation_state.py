"""A run of `ovs evaluate` so far, on disk while it runs: which images are counted, and the counts."""

import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .data import Item
from .errors import UserError
from .files import DAMAGED_NPZ, write_together
from .metrics import SegmentationMetrics

_MARK = 16  # bytes of what the files of an image are known by
_EVERY = 1.0  # seconds between two writes; what is lost to a kill -9 or a power failure


def mark_of(item: Item) -> bytes:
    """What tells quickly that a photo and its mask are still the same."""
    parts = []
    for path in (item.image, item.mask):
        status = path.stat()
        parts.append(f"{path.name}:{status.st_size}:{status.st_mtime_ns}")
    return hashlib.sha256("/".join(parts).encode()).digest()[:_MARK]


def differing(before: Any, now: Any, name: str = "") -> tuple[str, Any, Any] | None:
    """The first setting that two documents do not have in common, by its name; None if they are equal."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in dict.fromkeys((*now, *before)):
            found = differing(before.get(key), now.get(key), f"{name}.{key}".strip("."))
            if found:
                return found
        return None
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for number, pair in enumerate(zip(before, now, strict=True)):
            found = differing(*pair, name if len(now) == 1 else f"{name}[{number}]")
            if found:
                return found
        return None
    return None if before == now else (name, before, now)


def shown(value: Any) -> str:
    """A setting in few words."""
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


class State:
    """What is counted so far. Images are counted one at a time, for all methods or for none.

    Args:
        path: the file that holds it.
        settings: of the run, as JSON holds them.
        empty: the metrics of each method, without counts.

    Attributes:
        done: number of each image that is counted, and its mark, in order of counting.
        milliseconds: spent by each method, and on everything else.
    """

    def __init__(self, path: Path, settings: dict[str, Any], empty: Sequence[SegmentationMetrics]):
        self.path, self.settings = path, settings
        self.done: list[tuple[int, bytes]] = []
        # How many of `done` are counted, the counts, the time: one object, so that an interrupt cannot part them.
        self._snapshot: tuple[int, tuple[SegmentationMetrics, ...], dict[str, float]] = (0, tuple(empty), {})
        self._written, self._clock = 0, time.monotonic()

    @property
    def counted(self) -> int:
        """Number of images that are counted."""
        return self._snapshot[0]

    @property
    def metrics(self) -> tuple[SegmentationMetrics, ...]:
        """The counts of each method."""
        return self._snapshot[1]

    @property
    def milliseconds(self) -> dict[str, float]:
        """Time spent on the images that are counted."""
        return self._snapshot[2]

    def add(self, index: int, mark: bytes, metrics: Sequence[SegmentationMetrics], spent: dict[str, float]) -> None:
        """Counts one image more, and writes the state unless that was done a moment ago."""
        count, before, times = self._snapshot
        del self.done[count:]  # an interrupt may have come right after the next line
        self.done.append((index, mark))
        totals = tuple(mine + more for mine, more in zip(before, metrics, strict=True))
        times = {name: times.get(name, 0.0) + spent.get(name, 0.0) for name in dict.fromkeys((*times, *spent))}
        self._snapshot = count + 1, totals, times
        if time.monotonic() - self._clock > _EVERY:
            self.write()

    def write(self) -> None:
        """Writes the state, unless the file has it.

        Raises:
            UserError: the disk is full, or the folder cannot be written; the last complete state is still there.
        """
        count, metrics, times = self._snapshot
        if not count or (count == self._written and self.path.exists()):
            return
        arrays = {
            "header": np.frombuffer(json.dumps({"settings": self.settings, "ms": times}).encode(), np.uint8),
            "images": np.array([index for index, _ in self.done[:count]], np.int64),
            "marks": np.frombuffer(b"".join(mark for _, mark in self.done[:count]), np.uint8).reshape(count, _MARK),
        }
        for number, part in enumerate(metrics):
            arrays[f"confusion{number}"] = part.confusion.numpy()
            if part.boundary is not None:
                arrays[f"boundary{number}"] = part.boundary.numpy()

        def save(path: Path) -> None:
            with open(path, "wb") as file:
                np.savez(file, **arrays)

        try:
            write_together({self.path: save})
        except OSError as error:
            kept = f"{self.path} has {self._written} images, and the same command goes on from there"
            advice = kept if self.path.exists() else "nothing is half-written"
            raise UserError(self.path, "room for the state of the run", error.strerror or error, advice) from error
        self._written, self._clock = count, time.monotonic()

    @classmethod
    def read(cls, path: Path, settings: dict[str, Any], empty: Sequence[SegmentationMetrics]) -> "State | None":
        """The state of an interrupted run; None if there is none.

        Raises:
            UserError: the file is damaged, or of a run with other settings.
        """
        if not path.exists():
            return None
        advice = "--overwrite starts again"
        try:
            state = cls._load(path, settings, empty)
        except DAMAGED_NPZ as error:
            raise UserError("--out", f"the state of an interrupted run in {path}", f"'{error}'", advice) from None
        different = differing(state.settings, settings)
        if different:
            name, before, now = different
            wanted = f"the {name} of the interrupted run in {path}: {shown(before)}"
            raise UserError("--out", wanted, shown(now), advice)
        return state

    @classmethod
    def _load(cls, path: Path, settings: dict[str, Any], empty: Sequence[SegmentationMetrics]) -> "State":
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
            header = json.loads(stored["header"].tobytes())
            state = cls(path, header["settings"], empty)
            if differing(header["settings"], settings):
                return state
            images, marks = stored["images"], stored["marks"]
            if marks.shape != (len(images), _MARK) or marks.dtype != np.uint8 or images.ndim != 1:
                raise ValueError("marks of another shape")
            metrics = []
            for number, part in enumerate(empty):
                made = type(part).from_json(part.to_json())
                pairs = {"confusion": made.confusion, "boundary": made.boundary}
                for name, own in pairs.items():
                    if own is not None:
                        found = torch.from_numpy(stored[f"{name}{number}"])
                        if found.shape != own.shape or found.dtype != own.dtype:
                            raise ValueError(f"{name} of another shape")
                        own.copy_(found)
                made.images = len(images)
                metrics.append(made)
        state.done = [(int(index), mark.tobytes()) for index, mark in zip(images, marks, strict=True)]
        state._snapshot = len(images), tuple(metrics), dict(header["ms"])
        state._written = len(images)
        return state

    def check(self, items: Sequence[Item]) -> set[int]:
        """Makes sure that the images that are counted have not changed.

        Returns:
            Their numbers.

        Raises:
            UserError: one has.
        """
        for index, mark in self.done:
            if not 0 <= index < len(items) or mark_of(items[index]) != mark:
                name = items[index].image if 0 <= index < len(items) else index
                wanted = f"the image of the interrupted run in {self.path}"
                raise UserError(name, wanted, "one that has changed", "--overwrite starts again")
        return {index for index, _ in self.done}
