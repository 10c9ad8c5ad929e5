"""`python -m ovs_kernels.compat [--only NAMES] script.py [ARGS...]`: runs somebody's script with the drop-ins."""

import argparse
import importlib.machinery
import importlib.util
import io
import logging
import os
import runpy
import sys
from collections.abc import Callable
from types import ModuleType, TracebackType

from ._patch import LOGGER, patch
from ._registry import DROP_INS

PROGRAM = "python -m ovs_kernels.compat"


def _options(arguments: list[str]) -> argparse.Namespace:
    """Our options, up to the script; what follows it is the script's, dashes and all."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        usage=f"{PROGRAM} [-h] [--only NAMES] (-m MODULE | SCRIPT) [ARGS...]",
        description="Runs a script or module with the drop-ins under the names of the modules that they stand for, and "
        "prints to stderr what it replaced.",
        allow_abbrev=False,
    )
    known = ", ".join(sorted(DROP_INS))
    parser.add_argument("--only", metavar="NAMES", help=f"drop-ins, separated by commas; all without this: {known}")
    parser.add_argument("-m", dest="is_module", action="store_true", help="what follows is a module, as in python -m")
    parser.add_argument("target", metavar="SCRIPT", help="a file, a folder or archive with __main__.py, or a module")
    end = 0
    while end < len(arguments) and arguments[end].startswith("-") and arguments[end] != "--":
        end += 2 if arguments[end] == "--only" else 1
    options = parser.parse_args(arguments[: end + 1])
    options.arguments = arguments[end + 1 :]
    return options


def _stop(code: int, text: str) -> None:
    print(text, file=sys.stderr)
    raise SystemExit(code)


def _runner(target: str, is_module: bool) -> Callable[[], object]:
    """Runs the target as `python` would; what it cannot find is reported before anything is replaced."""
    if is_module:
        try:
            found = importlib.util.find_spec(target) is not None
        except (ImportError, ValueError):
            found = False
        if not found:
            _stop(1, f"compat: -m: expected a module that can be imported, got {target}")
        return lambda: runpy.run_module(target, run_name="__main__", alter_sys=True)
    if os.path.isdir(target):
        return lambda: runpy.run_path(target, run_name="__main__")
    try:
        with io.open_code(os.path.abspath(target)) as file:
            source = file.read()
    except OSError as error:
        _stop(2, f"compat: script: expected a file that can be read, got {target} ({error.strerror})")
    if source.startswith(b"PK\x03\x04"):
        return lambda: runpy.run_path(target, run_name="__main__")
    return lambda: _run_source(source, target)


def _run_source(source: bytes, script: str) -> None:
    """As the module __main__, which stays after the end for threads and exit handlers."""
    path = os.path.abspath(script)
    main = ModuleType("__main__")
    main.__file__, main.__builtins__ = path, __builtins__
    main.__loader__ = importlib.machinery.SourceFileLoader("__main__", path)
    if not getattr(sys.flags, "safe_path", False):
        sys.path[0] = os.path.dirname(os.path.realpath(path))
    sys.modules["__main__"] = main
    exec(compile(source, path, "exec", dont_inherit=True), vars(main))


def _own_frames_removed(traceback: TracebackType | None) -> TracebackType | None:
    """What is left when this file and runpy are taken from the top."""
    own = {__file__, runpy.__file__, "<frozen runpy>"}
    while traceback is not None and traceback.tb_frame.f_code.co_filename in own:
        traceback = traceback.tb_next
    return traceback


def main() -> None:
    """Replaces, and runs."""
    options = _options(sys.argv[1:])
    names = [name.strip() for name in options.only.split(",")] if options.only is not None else []
    run = _runner(options.target, options.is_module)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("ovs_kernels.compat: %(message)s"))
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.INFO)
    LOGGER.propagate = False
    try:
        patch(*names)
    except ValueError as error:
        _stop(2, f"compat: --only: {str(error).removeprefix('patch: names: ')}")
    sys.argv = [options.target, *options.arguments]
    hook = sys.excepthook

    def without_own_frames(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        traceback = _own_frames_removed(traceback)
        hook(kind, error.with_traceback(traceback), traceback)

    sys.excepthook = without_own_frames
    run()


if __name__ == "__main__":
    main()
