"""Packages and weights of other people: imported or loaded, or one line that says what to do."""

import contextlib
import hashlib
import importlib
import importlib.util
import logging
import os
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TypeVar

import torch

from ..errors import UserError, require

Model = TypeVar("Model")
_PATIENCE = 8.0  # seconds after which a user is told what takes so long
_NEED_TORCHVISION = ("open_clip", "timm")
_CHATTY = (None, "timm", "huggingface_hub", "open_clip", "diffusers", "transformers")  # loggers
_log = logging.getLogger("ovs_methods")


def import_models(name: str, purpose: str) -> ModuleType:
    """Imports a package of models; they import torchvision, whose CUDA build fails beside torch for CPU.

    open_clip and timm need torchvision; diffusers and transformers do without, if it is not installed.

    Args:
        name: open_clip, timm, diffusers, transformers or huggingface_hub.
        purpose: what needs it, for the error text.

    Returns:
        The module.

    Raises:
        MissingDependency: it is not installed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if name in _NEED_TORCHVISION or importlib.util.find_spec("torchvision") is not None:
            _import_torchvision(purpose)
        return require(name, purpose, extra="methods")


def _import_torchvision(purpose: str) -> None:
    try:
        require("torchvision", purpose, extra="methods")
    except RuntimeError as error:  # its compiled half does not load: "operator torchvision::nms does not exist"
        if "torchvision::" not in str(error):
            raise
        _declare_torchvision_operators()
        importlib.import_module("torchvision")


_declared: list[torch.library.Library] = []  # the declarations live as long as these objects


def _declare_torchvision_operators() -> None:
    """Declares the compiled operators that torchvision's Python half describes; nothing here calls them."""
    spec = importlib.util.find_spec("torchvision")
    folder = Path(next(iter(spec.submodule_search_locations)))
    described = re.findall(r'register_fake\("torchvision::(\w+)"\)', (folder / "_meta_registrations.py").read_text())
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in described:
        library.define(f"{operator}(Tensor boxes, Tensor scores, float threshold) -> Tensor")
    _declared.append(library)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings and log lines of other packages; what matters is in the exception."""
    loggers = [logging.getLogger(name) for name in _CHATTY]
    before = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(logging.CRITICAL)
            yield
        finally:
            for logger, level in zip(loggers, before, strict=True):
                logger.setLevel(level)


def load_weights(load: Callable[[], Model], model: str, file: Path | None, flag: str, source: str) -> Model:
    """Runs somebody's loader and turns whatever it fails with into one line.

    Args:
        load: makes the model.
        model: its name.
        file: local checkpoint (a folder, where the loader takes one), or None for a download.
        flag: option that names a local checkpoint.
        source: where the weights can be fetched, as a person would do it.

    Returns:
        What `load` returns.

    Raises:
        UserError: the file is damaged or of another model, or the download failed.
    """
    if file is not None and not file.exists():
        raise UserError(flag, f"a checkpoint of {model}", f"no file at {file}")
    note = f"fetching the weights of {model} ({flag} FILE takes a local copy)"
    patience = threading.Timer(_PATIENCE, _log.warning, [note])
    if file is None:
        patience.start()
    try:
        with _quiet():
            return load()
    except MemoryError:
        raise
    except Exception as error:  # loaders fail with anything: pickle, zip, safetensors, key, size and network errors
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        if file is not None:
            raise UserError(flag, f"a checkpoint of {model}", f"{file} ('{reason}')") from error
        place = cache_folder() / "weights"
        raise UserError(
            model,
            "its weights in the download cache or from the network",
            f"neither ('{reason[:80]}')",
            f"fetch {source}, put it into {place} and name it: {flag} {place}/{source.rsplit('/', 1)[-1]}",
        ) from error
    finally:
        patience.cancel()


def option_of(flag: str) -> str:
    """The option that names the model whose weights `flag` names: --weights has --backbone, --guide-weights --guide."""
    return {"--weights": "--backbone", "--graph-weights": "--graph-backbone"}.get(flag, flag.removesuffix("-weights"))


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/ovs_kernels, or ~/.cache/ovs_kernels."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path("~/.cache").expanduser()) / "ovs_kernels"


def fingerprint(path: Path) -> str:
    """Names the content of a large file by its size, its first and its last megabyte."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        digest = hashlib.sha256(f"{size}:".encode())
        digest.update(file.read(2**20))
        file.seek(max(0, size - 2**20))
        digest.update(file.read())
    return digest.hexdigest()[:16]
