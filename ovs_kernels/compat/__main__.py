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
from importlib.abc import Loader
from types import CodeType, ModuleType, TracebackType

from ._patch import LOGGER, patch
from ._registry import DROP_INS

PROGRAM = "python -m ovs_kernels.compat"
SAFE_PATH = getattr(sys.flags, "safe_path", False)  # of Python 3.11 and later


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


def _script_runner(script: str) -> Callable[[], object]:
    """Runs a file, a folder or an archive."""
    if os.path.isdir(script):
        return lambda: _run_folder(script)
    try:
        with io.open_code(os.path.abspath(script)) as file:
            source = file.read()
    except OSError as error:
        _stop(2, f"compat: script: expected a file that can be read, got {script} ({error.strerror})")
    if source.startswith(b"PK\x03\x04"):
        return lambda: _run_folder(script)
    return lambda: _run_source(source, script)


def _run_folder(folder: str) -> None:
    """Or an archive: its __main__.py, with itself on the path."""
    path = os.path.abspath(folder)
    spec = importlib.machinery.PathFinder.find_spec("__main__", [path])
    if spec is None:
        _stop(1, f"compat: script: expected a file, or a folder or archive with __main__.py, got {folder}")
    sys.path[: 0 if SAFE_PATH else 1] = [path]
    _run_main(spec.loader.get_code("__main__"), spec.origin, spec.loader, spec)


def _run_module(name: str) -> None:
    try:
        found = importlib.util.find_spec(name) is not None  # imports the packages above
    except ModuleNotFoundError as error:
        if not f"{name}.".startswith(f"{error.name}."):
            raise  # something that they need
        found = False
    if not found:
        _stop(1, f"compat: -m: expected a module that can be imported, got {name}")
    runpy.run_module(name, run_name="__main__", alter_sys=True)


def _run_source(source: bytes, script: str) -> None:
    path = os.path.abspath(script)
    if not SAFE_PATH:
        sys.path[0] = os.path.dirname(os.path.realpath(path))
    code = compile(source, path, "exec", dont_inherit=True)
    _run_main(code, path, importlib.machinery.SourceFileLoader("__main__", path), None)


def _run_main(code: CodeType, file: str, loader: Loader, spec: importlib.machinery.ModuleSpec | None) -> None:
    """As the module __main__, which stays after the end for threads and exit handlers."""
    main = ModuleType("__main__")
    main.__file__, main.__loader__, main.__spec__, main.__builtins__ = file, loader, spec, __builtins__
    sys.modules["__main__"] = main
    exec(code, vars(main))


def _own_frames_removed(traceback: TracebackType | None) -> TracebackType | None:
    """What is left when this file and runpy are taken from the top."""
    own = {function.__code__.co_filename for function in (main, runpy.run_module, importlib.util.find_spec)}
    while traceback is not None and traceback.tb_frame.f_code.co_filename in own:
        traceback = traceback.tb_next
    return traceback


def main() -> None:
    """Replaces, and runs."""
    options = _options(sys.argv[1:])
    names = [name.strip() for name in options.only.split(",")] if options.only is not None else []
    target = options.target
    run = (lambda: _run_module(target)) if options.is_module else _script_runner(target)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("ovs_kernels.compat: %(message)s"))
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.INFO)
    LOGGER.propagate = False
    try:
        patch(*names)
    except ValueError as error:
        _stop(2, f"compat: --only: {str(error).removeprefix('patch: names: ')}")
    sys.argv = [target, *options.arguments]
    hook = sys.excepthook

    def without_own_frames(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        traceback = _own_frames_removed(traceback)
        hook(kind, error.with_traceback(traceback), traceback)

    sys.excepthook = without_own_frames
    run()


if __name__ == "__main__":
    main()
