"""Prompt templates, and the embeddings of class names in each of them; kept on disk, so that text is encoded once."""

import contextlib
import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..backbones.weights import cache_folder, import_models
from ..errors import UserError
from ..files import DAMAGED_NPZ, write_together

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

if TYPE_CHECKING:
    from ..backbones import TextBackbone

PLACE = "{}"  # of the name in a template
_FORMAT = 3  # of the cached files
_BATCH = 8  # prompts that go through the text tower together
_noted: set[Path] = set()  # folders that cannot be written
_log = logging.getLogger("ovs_methods")


def load_templates(file: Path | str | None = None) -> list[str]:
    """The prompts that a class name is put into.

    Args:
        file: text with one template per line and one `{}` in each, where the name goes; empty lines do not count.
            None: the 80 ImageNet templates of open_clip, in their order, which FLOSS's numbers refer to.

    Returns:
        The templates, each with `{}` in the place of the name.

    Raises:
        UserError: the file cannot be read, a line has no placeholder or several, or there is no template.
        MissingDependency: open_clip_torch is not installed, and `file` is None.
    """
    if file is None:
        return [template(PLACE) for template in import_models("open_clip", "text prompts").OPENAI_IMAGENET_TEMPLATES]
    path = Path(file)
    if not path.is_file():
        raise UserError("--templates", "a text file with one template per line", f"no file at {path}")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError("--templates", "a text file in UTF-8", f"{path} ('{error}')") from None
    templates = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            check_template(line.strip(), f"line {number} of {path}")
            templates.append(line.strip())
    if not templates:
        raise UserError("--templates", "at least one template, e.g. 'a photo of a {}.'", f"none in {path}")
    return templates


def check_template(template: str, where: str) -> None:
    """Raises UserError for a template that does not have one `{}`; `where` says which it is."""
    count = template.count(PLACE)
    if count != 1:
        got = f"'{template}', which has {count or 'none'}"
        raise UserError(f"--templates: {where}", "one {} in the place of the name", got)


def template_embeddings(
    text: "TextBackbone", names: Sequence[str], templates: Sequence[str], cache: Path | None = None
) -> Tensor:
    """Embeddings of every name in every template; those that are not on disk yet are computed and stored.

    Each pair is encoded once, also if a name or a template is given twice, or later with other templates: a file holds
    what is known of one name with one text tower, however that model's patches become features.

    Args:
        text: the model; what counts of it is its `text_identity`.
        names: of classes.
        templates: with one `{}` each.
        cache: folder of the stored embeddings; None is the user's cache folder.

    Returns:
        [len(templates), len(names), D] float32, of length 1 along the last axis.

    Raises:
        UserError: a template without one placeholder.
        ValueError: no name or no template.
    """
    if not names or not templates:
        empty = "templates" if names else "names"
        raise ValueError(f"template_embeddings: {empty}: expected at least one, got none")
    for number, template in enumerate(templates):
        check_template(template, f"template {number}")
    folder = cache or cache_folder() / "text"
    columns = {name: _of_name(text, name, templates, folder) for name in dict.fromkeys(names)}
    return torch.stack([columns[name] for name in names], 1)


def _of_name(text: "TextBackbone", name: str, templates: Sequence[str], folder: Path) -> Tensor:
    """The unit embeddings of one name, [M, D]."""
    prompts = [template.replace(PLACE, name) for template in templates]
    key = json.dumps([_FORMAT, text.text_identity, name], sort_keys=True)
    path = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npz"
    known = _read(path)
    missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in known]
    if missing:
        known = _merged(path, known, dict(zip(missing, _encoded(text, missing), strict=True)))
    return torch.from_numpy(np.stack([known[prompt] for prompt in prompts]))


def _encoded(text: "TextBackbone", prompts: list[str]) -> np.ndarray:
    """Unit embeddings [P, D], in batches of one size: a matrix product of another number of rows may round otherwise.

    So the embedding of a prompt does not depend on those that are encoded with it, on one machine with one number of
    threads.
    """
    parts = []
    for start in range(0, len(prompts), _BATCH):
        batch = prompts[start : start + _BATCH]
        full = batch + batch[-1:] * (_BATCH - len(batch))
        parts.append(text.encode_text(full)[: len(batch)].float().cpu().numpy())
    return np.concatenate(parts)


def _read(path: Path) -> dict[str, np.ndarray]:
    """What a file of the cache holds, by prompt; nothing if it is not there or damaged."""
    with contextlib.suppress(*DAMAGED_NPZ), open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
        prompts, rows = stored["prompts"], stored["embeddings"]
        fits = prompts.dtype.kind == "U" and rows.dtype == np.float32 and rows.ndim == 2 and len(rows) == len(prompts)
        if fits and bool((abs(np.linalg.norm(rows, axis=1) - 1) < 1e-3).all()):
            return dict(zip(prompts.tolist(), rows, strict=True))
    return {}


def _merged(path: Path, known: dict[str, np.ndarray], made: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What is known with what was made, and stored; what another process has stored meanwhile stays, and counts.

    A cache that cannot be written is no error.
    """

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            np.savez(file, prompts=np.array(list(together)), embeddings=np.stack(list(together.values())))

    together = known | made
    try:
        with _locked(path.parent):
            together = known | made | _read(path)
            write_together({path: write})
    except OSError as error:
        if path.parent not in _noted:
            _noted.add(path.parent)
            _log.warning("the text cache %s cannot be written (%s)", path.parent, error.strerror or error)
    return together


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process or thread at a time, where the system and the file system have locks."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "ab") as file:  # closing it, or the end of the process, frees it
        if fcntl is not None:
            with contextlib.suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
        yield
