"""A matrix that somebody computed elsewhere: an array, or a file."""

import math
import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..backbones.weights import fingerprint
from ..errors import UserError
from ..files import DAMAGED_NPZ
from .core import Attention, AttentionSource

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".npy", ".npz", ".pt", ".pth")
_MATRIX, _GRID = ("attention", "matrix"), "grid"
_READ_ERRORS = (*DAMAGED_NPZ, pickle.UnpicklingError)


def is_matrix(name: str) -> bool:
    """Whether a name is the path of a matrix; it belongs to one photo."""
    return name.lower().endswith(SUFFIXES)


class MatrixAttention(AttentionSource):
    """The same attention for every call: it belongs to one photo.

    Args:
        attention: of that photo.
        name: for texts.
        identity: where it comes from; None for an array of the caller.
    """

    def __init__(self, attention: Attention, name: str = "matrix", identity: dict[str, object] | None = None):
        self.attention, self.name = attention, name
        self.identity = identity if identity is not None else {"model": name, "grid": list(attention.grid)}

    def __call__(self, photo: "Image", size: tuple[int, int]) -> Attention:
        """As `AttentionSource.__call__`; photo and size do not matter."""
        return self.attention


def read_matrix(path: Path, grid: tuple[int, int] | None = None, flag: str = "--attention-weights") -> MatrixAttention:
    """Attention from a file; nothing in it is executed.

    Args:
        path: .npy ([N, N]); .npz or .pt with the only array, or with `attention` or `matrix`, and maybe `grid`.
        grid: (h, w) of the patches; None takes that of the file, or a square.
        flag: the option that `path` comes from, for error texts.

    Returns:
        The source.

    Raises:
        UserError: unreadable, or its content is no attention.
    """
    try:
        matrix, stored = _read(path)
    except _READ_ERRORS as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else " ".join(str(error).split())[:160]
        expected = f"a matrix in a file ({' '.join(SUFFIXES)})"
        raise UserError(flag, expected, f"{path} ({reason or type(error).__name__})") from None
    try:
        attention = Attention(matrix, grid or stored or _square(matrix))
    except (TypeError, ValueError) as error:
        raise UserError.saying(f"{path}: {error}") from None
    return MatrixAttention(attention, path.name, {"model": fingerprint(path), "grid": list(attention.grid)})


def _read(path: Path) -> tuple[Tensor, tuple[int, int] | None]:
    """The matrix of a file, and its grid if that is in it."""
    if path.suffix.lower() in (".pt", ".pth"):
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    else:
        content = np.load(path, allow_pickle=False)
        if isinstance(content, np.lib.npyio.NpzFile):
            with content as file:
                content = {name: file[name] for name in file.files}
    grid = None
    if isinstance(content, dict):
        names = [name for name in _MATRIX if name in content] or [name for name in content if name != _GRID]
        if len(names) != 1:
            raise ValueError(f"expected one array called attention or matrix, got {', '.join(map(str, content))}")
        if _GRID in content:
            grid = tuple(int(side) for side in torch.as_tensor(content[_GRID]).flatten())
        content = content[names[0]]
    if isinstance(content, np.ndarray):
        if content.dtype.kind not in "fiu":
            raise ValueError(f"expected an array of real numbers, got {content.dtype}")
        content = torch.from_numpy(np.ascontiguousarray(content, dtype=np.float32))
    if not isinstance(content, Tensor):
        raise ValueError(f"expected a tensor, got {type(content).__name__}")
    return content, grid


def _square(matrix: Tensor) -> tuple[int, int]:
    """The grid of a square matrix whose patches are a square; otherwise the error names the way out."""
    count = len(matrix) if matrix.ndim else 0
    side = math.isqrt(count)
    if side * side != count and matrix.shape == (count, count):
        raise ValueError(f"grid: expected (h, w) given or stored beside the matrix, as {count} patches are no square")
    return side, side
