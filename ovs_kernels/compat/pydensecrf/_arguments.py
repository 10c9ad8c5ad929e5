"""What pydensecrf's compiled functions accept, and the errors that they raise otherwise.

The classes of the errors are pydensecrf's; its own words end a message in brackets, for who searches for them.
"""

from typing import NoReturn

import numpy as np

from ..._checks import kind_text, shape_text, wrong_type, wrong_value

LARGEST_INT = 2**31 - 1
C_NAMES = {
    "float32": "float",
    "float64": "double",
    "int8": "signed char",
    "uint8": "unsigned char",
    "int32": "int",
    "int64": "long",
}


def integer(op: str, name: str, value: object) -> int:
    """A C int: whatever has an integral part, cut to it."""
    try:
        if isinstance(value, (str, bytes)):
            raise TypeError
        number = int(value)
    except TypeError:
        wrong_type(op, name, "an integer", f"{kind_text(value)} (an integer is required)")
    except (ValueError, OverflowError) as error:  # NaN, infinity
        raise type(error)(f"{op}: {name}: expected an integer, got {value} ({error})") from None
    if not -LARGEST_INT - 1 <= number <= LARGEST_INT:
        raise OverflowError(
            f"{op}: {name}: expected an int of 32 bits, got {number} (value too large to convert to int)"
        )
    return number


def extent(op: str, name: str, value: object) -> int:
    """A C int that is not negative; pydensecrf crashes on others."""
    number = integer(op, name, value)
    if number < 0:
        wrong_value(op, name, "an integer >= 0", number)
    return number


def choice(op: str, name: str, value: object, allowed: type) -> int:
    """One of the values of an IntEnum; pydensecrf takes any integer and computes something."""
    number = integer(op, name, value)
    if number not in list(allowed):
        wrong_value(op, name, " or ".join(f"{item.name} ({item.value})" for item in allowed), number)
    return allowed(number)


def array(op: str, name: str, value: object, dtype: str, pattern: str) -> np.ndarray:
    """A view of a C-contiguous, writable buffer of this dtype and as many axes as `pattern` ("C, N") has."""
    if value is None:
        wrong_type(op, name, f"a {dtype} array [{pattern}]", f"None (Argument '{name}' must not be None)")
    try:
        view = memoryview(value)
    except TypeError:
        kind = kind_text(value)
        found = f"{kind} (a bytes-like object is required, not '{type(value).__name__}')"
        wrong_type(op, name, f"a numpy array [{pattern}] of {dtype}", found)
    except (ValueError, BufferError) as error:
        wrong_value(op, name, f"a numpy array [{pattern}] of {dtype}", f"{kind_text(value)} ({error})")
    found = np.asarray(view)
    axes = pattern.count(",") + 1
    if not view.c_contiguous:
        advice = f"numpy.ascontiguousarray({name}) makes one"
        got = f"strides {view.strides} for shape {shape_text(view.shape)}; {advice} (ndarray is not C-contiguous)"
        wrong_value(op, name, "a C-contiguous array", got)
    if view.readonly:
        advice = f"{name}.copy() can be written"
        wrong_value(op, name, "a writable array", f"a read-only one; {advice} (buffer source array is read-only)")
    if view.ndim != axes:
        words = f"Buffer has wrong number of dimensions (expected {axes}, got {view.ndim})"
        wrong_value(op, name, f"[{pattern}]", f"{shape_text(view.shape)} ({words})")
    if found.dtype == np.bool_ and dtype == "uint8":
        found = found.view(np.uint8)
    if found.dtype != np.dtype(dtype):
        _dtype_mismatch(op, name, found.dtype, dtype)
    return found


def _dtype_mismatch(op: str, name: str, found: np.dtype, dtype: str) -> NoReturn:
    got = found.str if found.byteorder == ">" else str(found)
    words = f"Buffer dtype mismatch, expected '{C_NAMES[dtype]}' but got '{C_NAMES.get(got, got)}'"
    wrong_value(op, name, dtype, f"{got}; {name}.astype('{dtype}') has it ({words})")


def scales(op: str, name: str, value: object, count: int) -> list[float]:
    """`count` standard deviations from one number or a sequence, whose further items pydensecrf does not read."""
    from numbers import Number

    items = [value] * count if isinstance(value, Number) else value
    result = []
    for index in range(count):
        try:
            item = items[index]
        except IndexError:
            raise IndexError(f"{op}: {name}: expected a number or {count} numbers, got {value!r}") from None
        except (TypeError, KeyError):
            wrong_type(op, name, f"a number or {count} numbers", kind_text(value))
        result.append(_real(op, name, item))
    for scale in result:
        if scale == 0 or np.isnan(scale):  # pydensecrf crashes
            wrong_value(op, name, "standard deviations other than 0", scale)
    return result


def _real(op: str, name: str, value: object) -> float:
    """A C float."""
    try:
        if isinstance(value, (str, bytes)):
            raise TypeError
        return float(np.float32(float(value)))
    except TypeError:
        wrong_type(op, name, "a real number", f"{kind_text(value)} (must be real number, not {type(value).__name__})")


def compatibility(op: str, value: object, num_labels: int) -> float | np.ndarray:
    """A number, [C] or [C, C]; arrays as `array` takes them."""
    from numbers import Number

    expected = f"a number, or float32 [C] or [C, C] with C={num_labels} labels"
    if isinstance(value, Number):
        number = _real(op, "compat", value)
        if not np.isfinite(number):
            wrong_value(op, "compat", "finite numbers", number)
        return number
    try:
        axes = memoryview(value).ndim
    except TypeError:
        words = f"memoryview: a bytes-like object is required, not '{type(value).__name__}'"
        wrong_type(op, "compat", expected, f"{kind_text(value)} ({words})")
    if axes not in (1, 2):
        words = "LabelCompatibility of dimension >2 not meaningful."
        wrong_value(op, "compat", expected, f"{axes} axes ({words})")
    table = array(op, "compat", value, "float32", ", ".join("C" * axes))
    if table.shape != (num_labels,) * axes:  # pydensecrf reads beyond its end, or cuts
        wrong_value(op, "compat", expected, shape_text(table.shape))
    if not np.isfinite(table).all():
        wrong_value(op, "compat", "finite numbers", table[~np.isfinite(table)][0])
    return table.copy()
