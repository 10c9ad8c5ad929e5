"""A run of `ovs tune-pnp` on disk: the maps of each photo, and the rewards so far."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .errors import UserError
from .files import DAMAGED_NPZ, write_together

_PATIENCE = 5.0  # seconds between two writes within one evaluation
Setting = tuple[int, int, float, float]  # layer, head, threshold, blur


class TuneState:
    """Rewards of the photos, by setting; complete on disk, but for the last seconds.

    Args:
        path: the file.
        settings: of the run.

    Attributes:
        rewards: for each setting those of the first photos, all of them where it is complete.
        failed: file name and reason of each photo that could not be used.
    """

    def __init__(self, path: Path, settings: dict[str, Any]):
        self.path, self.settings = path, settings
        self.rewards: dict[Setting, list[int]] = {}
        self.failed: dict[str, str] = {}
        self._written = time.monotonic()

    def write(self, now: bool = True) -> None:
        """Puts the state on disk; without `now` only if the last time is some seconds ago."""
        if not now and time.monotonic() - self._written < _PATIENCE:
            return
        rewards = [[list(setting), values] for setting, values in self.rewards.items()]
        document = {"settings": self.settings, "failed": self.failed, "rewards": rewards}
        text = json.dumps(document, ensure_ascii=False) + "\n"
        write_together({self.path: lambda path: path.write_text(text, encoding="utf-8")})
        self._written = time.monotonic()

    @classmethod
    def read(cls, path: Path, settings: dict[str, Any]) -> "TuneState":
        """The state of an interrupted run, or an empty one if there is none.

        Raises:
            UserError: it is damaged, or of other settings.
        """
        state, advice = cls(path, settings), "--overwrite starts again"
        if not path.is_file():
            return state
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            before, state.failed = dict(document["settings"]), dict(document["failed"])
            for (layer, head, threshold, blur), values in document["rewards"]:
                state.rewards[int(layer), int(head), float(threshold), float(blur)] = [int(value) for value in values]
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            got = f"a damaged file ('{str(error)[:80]}')"
            raise UserError(path, "the state of an interrupted run", got, advice) from None
        check_same(before, settings, f"the interrupted run in {path}", advice)
        return state


def check_same(before: dict[str, Any], now: dict[str, Any], whose: str, advice: str) -> None:
    """Raises UserError, which names the first difference, if the settings of two runs differ."""
    for key in (*now, *(key for key in before if key not in now)):
        if before.get(key) != now.get(key):
            old, new = (json.dumps(settings.get(key), ensure_ascii=False)[:60] for settings in (before, now))
            raise UserError("--out", f"the {key.replace('_', ' ')} of {whose}: {old}", new, advice)


class MapStore:
    """The maps of photos in a folder, one file each: [layers, heads, K, P, P] float32.

    Args:
        folder: made when the first file is written.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def _file(self, key: str) -> Path:
        return self.folder / f"{key}.npy"

    def shape(self, key: str) -> tuple[int, ...] | None:
        """Shape of the maps of a photo; None if they are not there, or damaged."""
        try:
            return np.load(self._file(key), mmap_mode="r", allow_pickle=False).shape
        except DAMAGED_NPZ:
            return None

    def get(self, key: str, make: Callable[[], np.ndarray]) -> tuple[int, ...]:
        """Shape of the maps of a photo, made and stored if they are not there."""
        shape = self.shape(key)
        if shape is None:
            maps = make()

            def write(path: Path) -> None:
                with open(path, "wb") as file:
                    np.save(file, maps)

            write_together({self._file(key): write})
            shape = maps.shape
        return shape

    def load(self, key: str, layer: int, head: int) -> np.ndarray:
        """[K, P, P] of one layer and head."""
        return np.array(np.load(self._file(key), mmap_mode="r", allow_pickle=False)[layer, head])

    def remove(self) -> None:
        """Removes the files and, if nothing else is in it, the folder."""
        for path in self.folder.glob("*.npy"):
            path.unlink(missing_ok=True)
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()
