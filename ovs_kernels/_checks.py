"""Words for the checks of a plan. Each raises one line: `operator: argument: expected ..., got ...`.

TypeError for a wrong kind or dtype, ValueError for shape, range and device mix, NotImplementedError for a
legal request that nothing serves.
"""

import math
import numbers
from collections.abc import Collection, Mapping
from typing import NoReturn

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def wrong_type(op: str, name: str, expected: str, got: str) -> NoReturn:
    """Raises TypeError: the argument is of the wrong kind or dtype."""
    raise TypeError(f"{op}: {name}: expected {expected}, got {got}")


def wrong_value(op: str, name: str, expected: str, got: object) -> NoReturn:
    """Raises ValueError: shape, range or device of the argument is wrong."""
    raise ValueError(f"{op}: {name}: expected {expected}, got {got}")


def not_served(op: str, name: str, got: str, instead: str) -> NoReturn:
    """Raises NotImplementedError: a legal request that no kernel serves; `instead` names what does."""
    raise NotImplementedError(f"{op}: {name}: {got} is not implemented; {instead}")


def shape_text(shape: Collection) -> str:
    """(3, 4, 5) as the docstrings write it: [3, 4, 5]."""
    return "[" + ", ".join(str(size) for size in shape) + "]"


def dtype_text(dtype: torch.dtype) -> str:
    """torch.float32 as the docstrings write it: float32."""
    return str(dtype).removeprefix("torch.")


def kind_text(value: object) -> str:
    """What a value is, for the end of a message: `numpy.ndarray`, `list`, `None`."""
    if value is None:
        return "None"
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def expect_tensor(op: str, name: str, value: object) -> Tensor:
    """`value` is a torch tensor."""
    if not isinstance(value, Tensor):
        wrong_type(op, name, "a tensor", kind_text(value))
    return value


def expect_dtype(op: str, name: str, tensor: Tensor, allowed: Collection[torch.dtype]) -> torch.dtype:
    """The dtype of `tensor` is one of `allowed`."""
    if tensor.dtype not in allowed:
        wrong_type(op, name, " or ".join(dtype_text(dtype) for dtype in allowed), dtype_text(tensor.dtype))
    return tensor.dtype


def expect_rank(op: str, name: str, tensor: Tensor, *patterns: str) -> str:
    """The rank of `tensor` is that of one of `patterns` ("C, H, W"); returns that pattern."""
    for pattern in patterns:
        if tensor.dim() == len(pattern.split(",")):
            return pattern
    wrong_value(op, name, " or ".join(f"[{pattern}]" for pattern in patterns), shape_text(tensor.shape))


def expect_shape(
    op: str, name: str, tensor: Tensor, pattern: str, known: Mapping[str, int] | None = None, source: str = ""
) -> dict[str, int]:
    """The shape of `tensor` matches `pattern`, a list of letters and numbers.

    Args:
        op: operator, for the message.
        name: argument, for the message.
        tensor: the argument.
        pattern: e.g. "3, H, W": a number must be met, a letter in `known` too, any other letter is free.
        known: sizes already fixed by other arguments.
        source: whose sizes `known` holds, for the message.

    Returns:
        The size of every letter of the pattern.

    Raises:
        ValueError: `lp_pixels: image: expected [3, H, W] with H=4, W=5 (those of scores), got [3, 4, 6]`.
    """
    known = known or {}
    letters = [letter.strip() for letter in pattern.split(",")]
    wanted = [int(letter) if letter.isdigit() else known.get(letter) for letter in letters]
    if tensor.dim() == len(letters) and all(
        want is None or size == want for size, want in zip(tensor.shape, wanted, strict=True)
    ):
        return {letter: tensor.shape[axis] for axis, letter in enumerate(letters) if not letter.isdigit()}
    expected = f"[{pattern}]"
    fixed = ", ".join(f"{letter}={known[letter]}" for letter in letters if letter in known)
    if fixed:
        expected += f" with {fixed}" + (f" (those of {source})" if source else "")
    wrong_value(op, name, expected, shape_text(tensor.shape))


def same_device(op: str, **tensors: Tensor | None) -> torch.device:
    """All tensors (None is skipped) are on the device of the first; returns it."""
    present = [(name, tensor) for name, tensor in tensors.items() if tensor is not None]
    first_name, first = present[0]
    for name, tensor in present[1:]:
        if tensor.device != first.device:
            wrong_value(op, name, f"device {first.device} (that of {first_name})", tensor.device)
    return first.device


def _real(op: str, name: str, value: object, expected: str) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        wrong_type(op, name, expected, kind_text(value))
    return float(value)


def expect_between(op: str, name: str, value: object, low: float, high: float) -> float:
    """A real number in the open interval (low, high)."""
    expected = f"a number in ({low:g}, {high:g})"
    number = _real(op, name, value, expected)
    if not low < number < high:
        wrong_value(op, name, expected, value)
    return number


def expect_positive(op: str, name: str, value: object) -> float:
    """A finite real number above zero."""
    expected = "a finite number > 0"
    number = _real(op, name, value, expected)
    if not 0 < number < math.inf:
        wrong_value(op, name, expected, value)
    return number


def expect_not_negative(op: str, name: str, value: object) -> float:
    """A finite real number, zero or above."""
    expected = "a finite number >= 0"
    number = _real(op, name, value, expected)
    if not 0 <= number < math.inf:
        wrong_value(op, name, expected, value)
    return number


def expect_integer(op: str, name: str, value: object, low: int, high: int | None = None, *, odd: bool = False) -> int:
    """An integer in [low, high] (no upper end with None), odd on request."""
    expected = "an odd integer" if odd else "an integer"
    expected += f" >= {low}" if high is None else f" in [{low}, {high}]"
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        wrong_type(op, name, expected, kind_text(value))
    if value < low or (high is not None and value > high) or (odd and value % 2 == 0):
        wrong_value(op, name, expected, value)
    return int(value)


def expect_choice(op: str, name: str, value: object, choices: Collection) -> object:
    """One of `choices`."""
    if not any(value is choice or (isinstance(value, str) and value == choice) for choice in choices):
        wrong_value(op, name, " or ".join(repr(choice) for choice in choices), repr(value))
    return value
