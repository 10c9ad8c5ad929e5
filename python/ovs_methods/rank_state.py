"""A run of `ovs rank-templates` so far, on disk after each photo: what is done, what failed, and the sums."""

import errno
import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ovs_kernels import TemplateScores

from .backbones.weights import fingerprint
from .errors import UserError
from .files import DAMAGED_NPZ, write_together
from .rankings import Ranking, difference

MACHINE = ("threads", "torch")  # settings that decide how a product of matrices is rounded, and nothing else
_MARK = 16  # bytes of what an image is known by in the state of a run
UNREAD, _CHANGED = bytes(_MARK), bytes([255] * _MARK)
# What the system says of a file that cannot be used, or a decoder of a damaged one; all else is the machine's.
OF_THE_FILE = ("ENOENT", "EACCES", "EPERM", "EISDIR", "ENOTDIR", "ELOOP", "ENAMETOOLONG", "EINVAL", "EOVERFLOW")
OF_THE_FILE = {getattr(errno, name) for name in OF_THE_FILE}


def without_machine(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that a ranking's file holds."""
    return {key: value for key, value in settings.items() if key not in MACHINE}


def image_key(path: Path) -> bytes:
    """What an image is known by in a ranking: its file name and its content."""
    return hashlib.sha256(f"{path.name}:{fingerprint(path)}".encode()).digest()[:_MARK]


def key_of(path: Path) -> bytes:
    """As `image_key`; zeros for a file that cannot be read."""
    try:
        return image_key(path)
    except OSError as error:
        if error.errno in OF_THE_FILE:
            return UNREAD
        raise


def _hex(key: bytes) -> str:
    return "" if key == UNREAD else key.hex()


def mark_of(path: Path) -> bytes:
    """What tells quickly that a file is still the same; zeros where there is none."""
    try:
        status = path.stat()
    except OSError:
        return UNREAD
    text = f"{path.name}:{status.st_size}:{status.st_mtime_ns}"
    return hashlib.sha256(text.encode()).digest()[:_MARK]


class State:
    """A run so far: it is on disk after every image, complete, so that nothing but the image at hand is ever lost.

    Images are done in their order, so those that are done are the first ones of the list. What is written per image is
    the sums, and 32 bytes for each image that is done.

    Args:
        path: the file.
        settings: of the run.

    Attributes:
        marks: of each image that is done.
        keys: of each image that is done; zeros where the file could not be read at all.
        failed: for the number of each image that could not be used its file name and the reason.
        scores: the sums; None before the first image.
    """

    def __init__(self, path: Path, settings: dict[str, Any]):
        self.path, self.settings = path, settings
        self.marks: list[bytes] = []
        self.keys: list[bytes] = []
        self.failed: dict[int, tuple[str, str]] = {}
        self.scores: TemplateScores | None = None
        self._counted: set[bytes] = set()

    def add(self, index: int, mark: bytes, key: bytes, scores: TemplateScores) -> None:
        """Counts an image: the next one, or one that could not be used before. Writes the state."""
        self.scores = scores if self.scores is None else self.scores + scores
        self.failed.pop(index, None)
        self._counted.add(key)
        self._put(index, mark, key)

    def add_failed(self, index: int, mark: bytes, key: bytes, failure: tuple[str, str]) -> None:
        """Notes an image that cannot be used, by its file name and the reason, and writes the state."""
        self.failed[index] = failure
        self._put(index, mark, key)

    def knows(self, key: bytes) -> bool:
        """Whether an image of that name and content has been counted."""
        return key in self._counted

    def ranking(self) -> Ranking:
        """What the images so far amount to."""
        failed = [(*failure, _hex(self.keys[index])) for index, failure in self.failed.items()]
        keys = [key.hex() for key in self._counted]
        return Ranking.of_scores(self.scores, without_machine(self.settings), failed=failed, keys=keys)

    def _put(self, index: int, mark: bytes, key: bytes) -> None:
        self.marks[index : index + 1] = [mark]
        self.keys[index : index + 1] = [key]
        self.write()

    def write(self) -> None:
        """Puts the state on disk."""
        arrays = {"marks": _table(self.marks), "keys": _table(self.keys)}
        failed = [[index, *failure] for index, failure in self.failed.items()]
        texts = {"settings": self.settings, "failed": failed}
        arrays |= {name: np.frombuffer(json.dumps(text).encode(), np.uint8) for name, text in texts.items()}
        if self.scores is not None:
            for name in ("counts", "whole", "fraction"):
                arrays[name] = getattr(self.scores, name).numpy()
            arrays["total"] = np.array(self.scores.total)
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        write_together({self.path: lambda temporary: temporary.write_bytes(buffer.getbuffer())})

    @classmethod
    def read(cls, path: Path, settings: dict[str, Any]) -> "State | None":
        """The state of an interrupted run; None if there is none.

        Raises:
            UserError: it is damaged, or of other settings.
        """
        if not path.is_file():
            return None
        state, advice = cls(path, settings), "--overwrite starts again"
        try:
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
            texts = [json.loads(arrays[name].tobytes()) for name in ("settings", "failed")]
            if not isinstance(texts[0], dict):
                raise ValueError("its settings are none")
            state.failed = {index: (image, reason) for index, image, reason in texts[1]}
            for name in ("marks", "keys"):
                setattr(state, name, [row.tobytes() for row in arrays[name].reshape(-1, _MARK)])
            state._counted = {key for index, key in enumerate(state.keys) if index not in state.failed}
            if "counts" in arrays:
                parts = [torch.from_numpy(arrays[name]) for name in ("counts", "whole", "fraction")]
                state.scores = TemplateScores(*parts, int(arrays["total"]))
        except DAMAGED_NPZ as error:
            got = f"a damaged file ('{str(error)[:80]}')"
            raise UserError(path, "the state of an interrupted run", got, advice) from None
        different = difference(texts[0], settings)
        if different:
            what, before, now = different
            advice = f"--threads {before} goes on, {advice}" if what == "threads" else advice
            raise UserError("--out", f"the {what} of the interrupted run in {path}: {before}", now, advice)
        return state

    @classmethod
    def again(cls, path: Path, settings: dict[str, Any], ranking: Ranking, images: Sequence[Path]) -> "State | None":
        """The state at the end of the run that made a ranking; None if that was of other images.

        An image that could not be used then and has changed since counts as one that has to be looked at again.
        """
        state, counted = cls(path, settings), set(ranking.keys)
        state.scores, state._counted = ranking.scores, {bytes.fromhex(key) for key in ranking.keys}
        failed, changed = list(ranking.failed), []
        for index, image in enumerate(images):
            key = key_of(image)
            state.keys.append(key)
            state.marks.append(mark_of(image))
            if key.hex() in counted:
                counted.remove(key.hex())
                continue
            known = next((failure for failure in failed if failure[0] == image.name and failure[2] == _hex(key)), None)
            if known is None:
                changed.append(index)
                continue
            failed.remove(known)
            state.failed[index] = known[:2]
        for index in changed:
            known = next((failure for failure in failed if failure[0] == images[index].name), None)
            if known is None:
                return None
            failed.remove(known)
            state.failed[index] = known[:2]
            state.keys[index], state.marks[index] = UNREAD, _CHANGED
        return None if counted or failed else state

    def check(self, images: Sequence[Path]) -> list[int]:
        """Makes sure that the images that are done are the first of the list, and that those counted are unchanged.

        Returns:
            The numbers of the images that could not be used and have changed since.

        Raises:
            UserError: they are not.
        """
        wanted, advice = f"the images of the interrupted run in {self.path}", "--overwrite starts again"
        if len(images) < len(self.marks):
            got = f"{len(images)}, of which it has done {len(self.marks)}"
            raise UserError("IMAGES", wanted, got, advice)
        changed = []
        for index, (path, mark, key) in enumerate(zip(images, self.marks, self.keys, strict=False)):
            name = self.failed.get(index, (path.name,))[0]
            if mark == mark_of(path) or (name == path.name and key == key_of(path) != UNREAD):
                continue
            if index not in self.failed or name != path.name:
                raise UserError(path, wanted, "another one, or one that has changed", advice)
            changed.append(index)
        return changed


def _table(rows: list[bytes]) -> np.ndarray:
    return np.frombuffer(b"".join(rows), np.uint8).reshape(len(rows), _MARK)
