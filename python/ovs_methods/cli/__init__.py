"""The command `ovs`: one module per subcommand, each with `add` for its parser and `run` for its work."""

import argparse
import contextlib
import logging
import os
import signal
import sys
from typing import Any, NoReturn

from .. import __version__
from ..errors import MissingDependency, UserError
from . import demo, evaluate, rank, refine, segment, tune
from .common import BAD_INPUT, INTERRUPTED, OK, RAW, SOME_FAILED, Parser

__all__ = ["BAD_INPUT", "INTERRUPTED", "OK", "SOME_FAILED", "build_parser", "main"]

_DESCRIPTION = """\
Open-vocabulary segmentation on an ordinary CPU.

  ovs demo                         see it work on a photo that is already here
  ovs segment PHOTO --point ...    name a few pixels, get every pixel labelled
  ovs refine PHOTO --scores F.npy  sharpen the class scores of any other model
  ovs rank-templates PHOTOS ...    find each class's best prompts, for --method floss
  ovs tune-pnp PHOTOS --labels ... find a model's best layer and head, for --method pnp-ovss
  ovs evaluate --dataset DIR ...   mIoU and Boundary IoU of methods on a data set
"""

_COMMANDS = {
    "segment": segment,
    "refine": refine,
    "rank-templates": rank,
    "tune-pnp": tune,
    "evaluate": evaluate,
    "demo": demo,
}


def build_parser() -> argparse.ArgumentParser:
    """The parser of `ovs` and its subcommands."""
    parser = Parser(prog="ovs", description=_DESCRIPTION, formatter_class=RAW)
    parser.add_argument("--version", action="version", version=f"ovs {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    for command in _COMMANDS.values():
        command.add(commands)
    return parser


class _OneLine(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return f"ovs: note: {record.getMessage()}"


def _interrupt(*_: Any) -> NoReturn:
    raise KeyboardInterrupt


def main(argv: list[str] | None = None) -> int:
    """Runs `ovs`.

    Args:
        argv: arguments without the program's name; None takes those of the process.

    Returns:
        The exit status: 0 done, 1 some images failed, 2 bad input, 130 interrupted.
    """
    argv = sys.argv[1:] if argv is None else argv
    command = f"ovs {argv[0]}" if argv and argv[0] in _COMMANDS else "ovs"
    logger, notes = logging.getLogger("ovs_methods"), logging.StreamHandler()
    notes.setFormatter(_OneLine())
    logger.addHandler(notes)
    propagate, logger.propagate = logger.propagate, False
    with contextlib.suppress(ValueError):  # not the main thread: then signals are somebody else's business
        signal.signal(signal.SIGTERM, _interrupt)
    try:
        parser = build_parser()
        arguments = parser.parse_args(argv)
        if arguments.command is None:
            parser.print_help()
            return BAD_INPUT
        logger.setLevel(logging.ERROR if arguments.quiet else logging.WARNING)
        return _COMMANDS[arguments.command].run(arguments)
    except (UserError, MissingDependency) as error:
        print(f"{command}: error: {error}", file=sys.stderr)
        return BAD_INPUT
    except ModuleNotFoundError as error:
        missing = MissingDependency(f"the package {error.name} is not installed")
        print(f"{command}: error: {missing}", file=sys.stderr)
        return BAD_INPUT
    except BrokenPipeError:  # the reader of our output has gone, e.g. `ovs ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return SOME_FAILED
    except OSError as error:
        where = error.filename or "file system"
        print(f"{command}: error: {where}: {error.strerror or error}", file=sys.stderr)
        return BAD_INPUT
    except MemoryError:
        print(f"{command}: error: not enough memory; try a smaller --size or fewer classes", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print(f"{command}: interrupted; complete results are kept, nothing is half-written", file=sys.stderr)
        return INTERRUPTED
    finally:
        logger.removeHandler(notes)
        logger.propagate = propagate
