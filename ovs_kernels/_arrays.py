"""numpy, cupy and other CUDA arrays in, the same kind out.

Public functions are written for torch tensors; `accepts_arrays` lets them take the caller's kind. Torch
tensors pass untouched, and only they carry gradients.
"""

import dataclasses
import functools
import inspect
import numbers
import sys
import types
import typing
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ._checks import INTEGERS, expect_dtype, expect_rank, kind_text, wrong_type, wrong_value

# DLPack's codes of the memory that torch calls "cuda": kDLCUDA and kDLCUDAManaged.
CUDA_DLPACK_DEVICES = (2, 13)

# Annotation of an argument -> (what is accepted for it, what to call that).
SCALARS = {
    int: (numbers.Integral, "an integer"),
    float: (numbers.Real, "a number"),
    bool: ((bool, np.bool_), "True or False"),
    str: (str, "a string"),
}

ARRAY_KINDS = "a torch tensor, a numpy array or a CUDA array with __dlpack__"


def accepts_arrays(*arrays: str, indices: tuple[str, ...] = (), sequences: tuple[str, ...] = ()) -> Callable:
    """Decorator: the named arguments may be torch tensors, numpy arrays or CUDA arrays like cupy's.

    All of them are of one kind, and so are the arrays in the result, which may be one array, a tuple, a list
    or a dataclass. Memory is shared in both directions where torch can read it: a numpy array that is
    read-only, misaligned or has a negative stride is copied.

    Arguments annotated `int`, `float`, `bool` or `str` (or None) are converted to just that, so that numpy's
    scalars are as good as Python's, and a wrong type is reported here, in one line.

    Args:
        arrays: names of the array arguments; None is accepted where it is the default.
        indices: names of arguments that hold a few integers: None, a list or tuple, or an array of any kind,
            with one axis. The function gets a tensor.
        sequences: those of `arrays` that may also be a list or tuple of arrays. The function gets a list.
    """

    def decorate(function: Callable) -> Callable:
        signature = inspect.signature(function)
        scalars = _scalar_arguments(function)
        optional = {name for name in arrays if signature.parameters[name].default is None}
        op = function.__name__

        @functools.wraps(function)
        def wrapper(*args, **kwargs):
            try:
                bound = signature.bind(*args, **kwargs)
            except TypeError:
                return function(*args, **kwargs)  # Python's own message names the function
            given = bound.arguments
            for name, kind in scalars.items():
                if name in given:
                    given[name] = _scalar(op, name, given[name], *kind)
            for name in indices:
                if given.get(name) is not None:
                    given[name] = _index_tensor(op, name, given[name])
            present = {name: given[name] for name in arrays if name not in optional or given.get(name) is not None}
            present = _spread(op, present, sequences)
            kind = _common_kind(op, present)
            if kind is Tensor:
                return function(*bound.args, **bound.kwargs)
            tensors = {name: _to_torch(op, name, array) for name, array in present.items()}
            for name in arrays:
                if name in sequences and isinstance(given.get(name), (list, tuple)):
                    given[name] = [tensors[f"{name}[{index}]"] for index in range(len(given[name]))]
                elif name in tensors:
                    given[name] = tensors[name]
            with torch.no_grad():
                result = function(*bound.args, **bound.kwargs)
            return _convert_result(result, _way_back(kind, next(iter(present.values()))))

        return wrapper

    return decorate


def _spread(op: str, values: dict[str, Any], sequences: tuple[str, ...]) -> dict[str, Any]:
    """Lists and tuples among `sequences` as one entry per array, named `name[index]`."""
    spread = {}
    for name, value in values.items():
        if name not in sequences or not isinstance(value, (list, tuple)):
            spread[name] = value
            continue
        if not value:
            wrong_value(op, name, "at least one array", f"an empty {kind_text(value)}")
        spread.update({f"{name}[{index}]": item for index, item in enumerate(value)})
    return spread


def _way_back(kind: type, array: Any) -> Callable:
    """The function that makes an array of the caller's kind from a tensor."""
    return torch.Tensor.numpy if kind is np.ndarray else _namespace(array).from_dlpack


def _kind(op: str, name: str, value: object) -> type:
    """Tensor, numpy.ndarray or the class of a CUDA array; TypeError for anything else."""
    if isinstance(value, Tensor):
        return Tensor
    if isinstance(value, np.ma.MaskedArray):
        wrong_type(op, name, ARRAY_KINDS + " (its mask would be ignored)", kind_text(value))
    if isinstance(value, np.ndarray):
        return np.ndarray
    if hasattr(value, "__dlpack__") and hasattr(value, "__dlpack_device__"):
        device_type = int(value.__dlpack_device__()[0])
        if device_type not in CUDA_DLPACK_DEVICES:
            wrong_type(op, name, ARRAY_KINDS, f"{kind_text(value)} on DLPack device type {device_type}")
        if _namespace(value) is None:
            wrong_type(op, name, ARRAY_KINDS, f"{kind_text(value)}, whose package has no from_dlpack")
        return type(value)
    wrong_type(op, name, ARRAY_KINDS, kind_text(value))


def _common_kind(op: str, values: dict[str, Any]) -> type:
    """The one kind of all values; TypeError naming both arguments when they differ."""
    kinds = {name: _kind(op, name, value) for name, value in values.items()}
    first_name, first = next(iter(kinds.items()), ("", Tensor))
    for name, kind in kinds.items():
        if kind is not first:
            expected = f"{kind_text(values[first_name])} (the kind of {first_name})"
            wrong_type(op, name, expected, kind_text(values[name]))
    return first


def _namespace(array: object) -> Any:
    """The module with the `from_dlpack` that makes arrays of this kind, or None."""
    if hasattr(array, "__array_namespace__"):
        namespace = array.__array_namespace__()
    else:
        namespace = sys.modules.get(type(array).__module__.partition(".")[0])
    return namespace if hasattr(namespace, "from_dlpack") else None


def _to_torch(op: str, name: str, array: Any) -> Tensor:
    if isinstance(array, np.ndarray):
        return _numpy_to_torch(op, name, array)
    interface = getattr(array, "__cuda_array_interface__", {})
    if any(stride < 0 for stride in interface.get("strides") or ()):
        array = _namespace(array).ascontiguousarray(array)
    return torch.from_dlpack(array)


def as_tensor(op: str, name: str, array: Any) -> Tensor:
    """An array of any kind that `accepts_arrays` takes, as a tensor that shares its memory where it can."""
    return array if _kind(op, name, array) is Tensor else _to_torch(op, name, array)


def _numpy_to_torch(op: str, name: str, array: np.ndarray) -> Tensor:
    # Not torch.from_dlpack: it aborts the process on a negative stride and takes read-only memory in silence.
    if array.dtype.kind not in "biufc":
        wrong_type(op, name, "a dtype that torch has", f"dtype {array.dtype}")
    if not array.dtype.isnative:
        wrong_type(op, name, "native byte order", f"dtype {array.dtype.str}")
    readable = array.flags.writeable and array.flags.aligned
    if not readable or any(stride < 0 or stride % array.itemsize for stride in array.strides):
        array = array.copy()
    try:
        return torch.from_numpy(array)
    except TypeError:  # numpy has it and torch has not, for instance longdouble
        wrong_type(op, name, "a dtype that torch has", f"dtype {array.dtype}")


def _scalar_arguments(function: Callable) -> dict[str, tuple[type, bool]]:
    """The arguments annotated as one plain scalar: name -> (its type, whether None is allowed)."""
    found = {}
    for name, hint in typing.get_type_hints(function).items():
        union = typing.get_origin(hint) in (typing.Union, types.UnionType)
        choices = set(typing.get_args(hint)) if union else {hint}
        plain = choices - {type(None)}
        if len(plain) == 1 and plain <= SCALARS.keys() and name != "return":
            found[name] = (plain.pop(), type(None) in choices)
    return found


def _scalar(op: str, name: str, value: object, kind: type, none_allowed: bool) -> object:
    if value is None and none_allowed:
        return None
    accepted, text = SCALARS[kind]
    if not isinstance(value, accepted) or (kind is not bool and isinstance(value, bool)):
        wrong_type(op, name, text + (" or None" if none_allowed else ""), kind_text(value))
    result = kind(value)
    if kind is int and not -(2**63) <= result < 2**63:  # the schemas of operators have no room for more
        wrong_value(op, name, f"an integer in [{-(2**63)}, {2**63 - 1}]", result)
    return result


def _index_tensor(op: str, name: str, value: object) -> Tensor:
    """A few integers of any kind as a tensor; the caller checks their number and range."""
    if isinstance(value, (list, tuple)):
        integers = all(isinstance(item, (int, np.integer)) and not isinstance(item, bool) for item in value)
        if not integers:
            wrong_type(op, name, "integers", f"{kind_text(value)} {value!r}")
        return torch.tensor([int(item) for item in value], dtype=torch.int64)
    tensor = as_tensor(op, name, value)
    expect_dtype(op, name, tensor, INTEGERS)
    expect_rank(op, name, tensor, "C")
    return tensor


def integer_table(op: str, name: str, value: object) -> Tensor:
    """Rows of integers of any kind, nested lists too, as a tensor on the host; the caller checks its shape."""
    if isinstance(value, (list, tuple)):
        rows = [row.tolist() if isinstance(row, (np.ndarray, Tensor)) else row for row in value]
        regular = all(isinstance(row, (list, tuple)) and len(row) == len(rows[0]) for row in rows)
        if not regular:
            wrong_type(op, name, "rows of integers, all of one length", f"{kind_text(value)} {_shortened(value)}")
        for row in rows:
            if not all(isinstance(item, (int, np.integer)) and not isinstance(item, bool) for item in row):
                wrong_type(op, name, "integers", f"a row {_shortened(row)}")
        width = len(rows[0]) if rows else 0
        return torch.tensor([[int(item) for item in row] for row in rows], dtype=torch.int64).reshape(len(rows), width)
    tensor = value if _kind(op, name, value) is Tensor else _to_torch(op, name, value)
    expect_dtype(op, name, tensor, INTEGERS)
    return tensor.cpu()


def _shortened(value: object) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else text[:57] + "..."


def _convert_result(result: Any, back: Callable) -> Any:
    """Tensors inside `result` through `back`; tuples, lists and dataclasses keep their type."""
    if isinstance(result, Tensor):
        return back(result)
    if isinstance(result, tuple) and hasattr(result, "_fields"):
        return type(result)(*(_convert_result(item, back) for item in result))
    if isinstance(result, (tuple, list)):
        return type(result)(_convert_result(item, back) for item in result)
    if dataclasses.is_dataclass(result) and not isinstance(result, type):
        names = [field.name for field in dataclasses.fields(result) if field.init]
        return dataclasses.replace(result, **{name: _convert_result(getattr(result, name), back) for name in names})
    return result
