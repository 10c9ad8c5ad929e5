"""Models and tokenizers of transformers, from the hub or a folder."""

import abc
import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ..errors import UserError
from .matching import CrossModules, HookedMatcher
from .weights import fingerprint, import_models, load_weights

_PURPOSE = "a model that matches images and text"
_WEIGHTS = (".bin", ".json", ".model", ".safetensors", ".txt")


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """What `load_pretrained` found.

    Attributes:
        model: float32, for inference, no parameter of which requires a gradient.
        tokenizer: one with offsets.
        identity: everything that decides the numbers, as JSON can hold it.
    """

    model: Any
    tokenizer: Any
    identity: dict[str, object]


def local_folder(place: str, weights: Path | None) -> Path | None:
    """The folder that a model is in; None if it is on the hub."""
    if weights is not None:
        return weights
    return Path(place) if Path(place).is_dir() else None


def model_files(folder: Path) -> list[Path]:
    """The files of a folder that decide what its model does."""
    return sorted(path for path in folder.iterdir() if path.suffix in _WEIGHTS and path.is_file())


def model_type(place: str, weights: Path | None, flag: str) -> str:
    """Which architecture a folder or a repository of the hub holds, as its config.json says.

    Raises:
        MissingDependency: transformers is not installed.
        UserError: there is none.
    """
    folder = local_folder(place, weights)
    if folder is None:
        if place.startswith((".", "/", "~")):
            raise UserError("--model", "a folder in the layout of transformers", f"nothing at {place}")
        transformers = import_models("transformers", _PURPOSE)
        source = f"https://huggingface.co/{place}"
        return load_weights(
            lambda: transformers.AutoConfig.from_pretrained(place), place, None, flag, source
        ).model_type
    flag = flag if weights is not None else "--model"
    if not folder.is_dir():
        raise UserError(flag, "a folder in the layout of transformers", f"nothing at {folder}")
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
    except FileNotFoundError:
        raise UserError(flag, "a folder in the layout of transformers", f"{folder} without config.json") from None
    except (OSError, ValueError, LookupError, TypeError) as error:
        got = f"{folder / 'config.json'} ('{str(error)[:80]}')"
        raise UserError(flag, "a config.json that says its model_type", got) from None
    return str(found)


def load_pretrained(kind: str, place: str, weights: Path | None, flag: str) -> Pretrained:
    """A model and its tokenizer.

    Args:
        kind: name of a class of transformers.
        place: name on the hub, or folder.
        weights: a folder instead of the download.
        flag: the option that names such a folder.

    Returns:
        The model, made for inference.

    Raises:
        MissingDependency: transformers is not installed.
        UserError: no such model, its weights cannot be had or are not complete, or its tokenizer has no offsets.
    """
    transformers = import_models("transformers", _PURPOSE)
    folder = local_folder(place, weights)
    source = str(folder) if folder is not None else place

    def load() -> tuple[Any, Any]:
        with without_bars(transformers):
            model = complete_model(getattr(transformers, kind), source)
            return model, transformers.AutoTokenizer.from_pretrained(source)

    flag = flag if weights is not None or folder is None else "--model"
    model, tokenizer = load_weights(load, place, folder, flag, f"https://huggingface.co/{place}")
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(flag, "a tokenizer that knows where its tokens begin (tokenizer.json)", source)
    return Pretrained(model, tokenizer, {"model": place, "weights": _identity(transformers, place, folder)})


class PretrainedMatcher(HookedMatcher):
    """A model of transformers that matches images and text.

    Args:
        place: name on the hub, or folder.
        weights: a folder instead of the download.
        flag: the option that a folder comes from, for error texts.

    Raises:
        MissingDependency: transformers is not installed.
        UserError: no such model, or its weights cannot be had.
    """

    _kind: str  # its class in transformers

    def __init__(self, place: str, weights: Path | None = None, flag: str = "--weights"):
        loaded = load_pretrained(self._kind, place, weights, flag)
        self.name, self._model, self._tokenizer = place, loaded.model, loaded.tokenizer
        self.identity = loaded.identity
        self.patch = self._model.config.vision_config.patch_size

    @property
    def _device(self) -> torch.device:
        return next(self._model.parameters()).device

    @abc.abstractmethod
    def _cross_attention(self, layer: int) -> Any:
        """A layer's cross-attention, built as BERT's."""

    def _cross(self, layer: int) -> CrossModules:
        attention = self._cross_attention(layer)
        return CrossModules(attention.self.query, attention.self.key, attention.self.value, attention.output.dense)


def complete_model(kind: Any, place: str, name: str = "it", **arguments: Any) -> Any:
    """A model of transformers or diffusers in float32, for inference.

    Args:
        kind: its class.
        place: name on the hub, or folder.
        name: what the error text calls it.
        arguments: further ones of `from_pretrained`.

    Raises:
        ValueError: some of its weights are not there, and the packages would go on with random numbers.
    """
    model, report = kind.from_pretrained(place, output_loading_info=True, **arguments)
    if report["missing_keys"]:
        raise ValueError(f"{name} lacks {', '.join(sorted(report['missing_keys'])[:2])}")
    return model.float().eval().requires_grad_(False)


@contextlib.contextmanager
def without_bars(transformers: Any) -> Iterator[None]:
    """Without the progress bars of reading files, which come even for what is already here."""
    logging = transformers.utils.logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _identity(transformers: Any, place: str, folder: Path | None) -> object:
    """Content of a local model; revision of a downloaded one."""
    if folder is not None:
        return {path.name: fingerprint(path) for path in model_files(folder)}
    hub = import_models("huggingface_hub", _PURPOSE)
    path = hub.try_to_load_from_cache(place, "config.json")
    return Path(path).parent.name if isinstance(path, str) else None
