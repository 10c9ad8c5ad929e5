"""`MatrixXf` and `VectorXf`: what pydensecrf's functions return and take, float32 with columns next to each other."""

import numpy as np

from ._arguments import array

__all__ = ["MatrixXf", "VectorXf", "matrixXf", "vectorXf"]


def _plain(value: object) -> object:
    """The same with plain arrays in the place of ours."""
    if isinstance(value, (MatrixXf, VectorXf)):
        return value.view(np.ndarray)
    if isinstance(value, (tuple, list)):
        return type(value)(map(_plain, value))
    return value


class _Eigen(np.ndarray):
    """An array whose results are plain arrays: `numpy.argmax(Q, axis=0)`, `Q + 1`."""

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: object, **kwargs: object) -> object:
        if "out" in kwargs:
            kwargs["out"] = _plain(kwargs["out"])
        return getattr(ufunc, method)(*map(_plain, inputs), **kwargs)

    def __array_function__(self, function: object, types: object, args: tuple, kwargs: dict) -> object:
        return function(*_plain(args), **{name: _plain(value) for name, value in kwargs.items()})


class MatrixXf(_Eigen):
    """A float32 matrix in Fortran order. The constructor makes one of 0 x 0.

    `numpy.array(Q)` is a copy, `numpy.asarray(Q)` shares its memory, as with pydensecrf's, which offers nothing but
    the buffer; this one is an array besides.
    """

    def __new__(cls) -> "MatrixXf":  # noqa: D102
        return np.ndarray.__new__(cls, (0, 0), np.float32, order="F")


class VectorXf(_Eigen):
    """A float32 vector. The constructor makes an empty one."""

    def __new__(cls) -> "VectorXf":  # noqa: D102
        return np.ndarray.__new__(cls, (0,), np.float32)


def matrixXf(arr: np.ndarray) -> MatrixXf:
    """A copy of a C-contiguous float32 matrix."""
    return array("matrixXf", "arr", arr, "float32", "R, C").copy(order="F").view(MatrixXf)


def vectorXf(arr: np.ndarray) -> VectorXf:
    """A copy of a contiguous float32 vector."""
    return array("vectorXf", "arr", arr, "float32", "N").copy().view(VectorXf)
