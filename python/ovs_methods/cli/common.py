"""What the subcommands of `ovs` share: exit statuses, argument types, groups of options, the progress of a run."""

import argparse
import contextlib
import sys
from pathlib import Path
from typing import Any, NoReturn

from ..errors import UserError

OK, SOME_FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130

RAW = argparse.RawDescriptionHelpFormatter


class Parser(argparse.ArgumentParser):
    """Errors in one line, without the usage text above them."""

    def error(self, message: str) -> NoReturn:
        """Raises instead of leaving: `main` prints it."""
        raise UserError.saying(f"{message} (see {self.prog} --help)")


def integer(least: int | None = None, most: int | None = None) -> Any:
    """The type of an integer option within bounds."""

    def convert(text: str) -> int:
        with contextlib.suppress(ValueError):
            value = int(text)
            if (least is None or value >= least) and (most is None or value <= most):
                return value
        bounds = "" if least is None else f" from {least} to {most}"
        raise argparse.ArgumentTypeError(f"expected an integer{bounds}, got '{text}'")

    return convert


def number(text: str) -> float:
    """The type of a number option."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number, got '{text}'") from None


def shard(text: str) -> tuple[int, int]:
    """The type of an option I/N."""
    index, _, shards = text.partition("/")
    if not (index.isdecimal() and shards.isdecimal() and 1 <= int(index) <= int(shards)):
        raise argparse.ArgumentTypeError(f"expected I/N with I from 1 to N, got '{text}'")
    return int(index), int(shards)


def exemplar(text: str) -> Any:
    """The type of an option IMAGE:MASK."""
    from ..vocabulary.exemplar import parse_exemplar

    return parse_exemplar(text)


def class_name(text: str) -> Any:
    """The type of an option ID=NAME."""
    from ..vocabulary.exemplar import parse_class_name

    return parse_class_name(text)


def minutes(seconds: float) -> str:
    """A time for people, as 3:05."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def add_propagation(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the pixel stage."""
    group = parser.add_argument_group("propagation (ovs_kernels.lp_pixels)")
    group.add_argument("--window", type=integer(), default=13, help="odd side of the neighbourhood (13)")
    group.add_argument("--tau", type=number, default=0.01, help="colour distance at which a link fades to 1/e (0.01)")
    group.add_argument("--alpha", type=number, default=0.95, help="weight of the neighbours, between 0 and 1 (0.95)")
    group.add_argument(
        "--mode",
        choices=("official", "exact"),
        default="official",
        help="ten solver steps as the published code takes, or to --tol (official)",
    )
    group.add_argument("--max-iter", type=integer(), help="bound on the solver's steps")
    group.add_argument("--tol", type=number, default=1e-6, help="relative residual to stop at (1e-6)")


def add_patch_stage(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the patch stage."""
    group = parser.add_argument_group("patch stage of lposs and lposs+ (ovs_kernels.lp_patches)")
    group.add_argument(
        "--preset",
        choices=("auto", "paper", "harmless", "embedded"),
        default="auto",
        help="constants: the paper's, or for the embedded backbone harmless (of lposs; they harmed no photo) and "
        "embedded (of dslo); auto is those for the embedded backbone and paper for the others (auto)",
    )
    group.add_argument(
        "--windows",
        metavar="SIZE/STRIDE",
        help="sliding windows of every method: none, 224/112, 448/224, ensemble (preset; floss: as ranked)",
    )
    group.add_argument("--neighbours", type=number, metavar="K", help="of a patch; below 1 a share of all (preset)")
    group.add_argument("--gamma", type=number, help="power of the patches' similarities (preset)")
    group.add_argument("--sigma", type=number, help="decay of a link per pixel of distance (preset)")
    group.add_argument("--patch-alpha", type=number, metavar="ALPHA", help="weight of the neighbours (preset)")
    group.add_argument(
        "--graph-backbone",
        metavar="NAME",
        help="whose features are compared: dinov2-small, dino_vitb16, dino_vitb8, dinov2_vitb14, any ViT of timm "
        "(dino_vitb16 for text, otherwise the backbone itself)",
    )
    group.add_argument("--graph-weights", metavar="FILE", help="local checkpoint of --graph-backbone")


def add_features(group: Any) -> None:
    """Adds the options that say how CLIP's patches become features to a group of options."""
    group.add_argument(
        "--features",
        choices=("maskclip", "kk", "naclip", "clip-dinoiser", "proxyclip"),
        help="how CLIP's patches become features: each for itself; keys that attend to keys, or mostly to near ones; "
        "averaged over, or attending to, patches that look alike to a guide (kk for dslo, otherwise maskclip)",
    )
    group.add_argument(
        "--guide",
        metavar="NAME",
        help="of clip-dinoiser and proxyclip: dinov2-small, dino_vitb16, dinov2_vitb14_reg, any ViT of timm "
        "(dino_vitb16, dino_vitb8)",
    )
    group.add_argument("--guide-weights", metavar="FILE", help="local checkpoint of --guide")
    group.add_argument("--projection", metavar="FILE", help="checkpoint of CLIP-DINOiser, in place of a guide")


def add_common(parser: argparse.ArgumentParser) -> None:
    """Adds the options that every subcommand has."""
    parser.add_argument("--threads", type=integer(1, 1024), metavar="N", help="CPU threads (all)")
    parser.add_argument("-q", "--quiet", action="store_true", help="print errors only")


def propagation(arguments: argparse.Namespace) -> dict[str, Any]:
    """What `add_propagation` parsed, as keyword arguments of lp_pixels."""
    names = ("window", "tau", "alpha", "mode", "max_iter", "tol")
    return {name: getattr(arguments, name) for name in names}


def features(arguments: argparse.Namespace) -> dict[str, Any]:
    """What `add_features` parsed, as options of a run."""
    names = ("features", "guide", "guide_weights", "projection")
    return {name: getattr(arguments, name) for name in names}


def constants(arguments: argparse.Namespace) -> dict[str, Any]:
    """What `add_patch_stage` parsed, as constants that replace the preset's."""
    names = {"k": "neighbours", "gamma": "gamma", "sigma": "sigma", "alpha": "patch_alpha", "windows": "windows"}
    return {field: getattr(arguments, name) for field, name in names.items()}


def print_shares(shares: list[tuple[str, float]]) -> None:
    """Prints a class a line and its share of the pixels."""
    width = max(len(name) for name, _ in shares)
    for name, share in shares:
        print(f"  {name:<{width}} {100 * share:6.1f} %")


def paths_of(paths: Any) -> str:
    """The files that were written, between commas."""
    return ", ".join(str(path) for path in paths.all())


class Progress:
    """Shows a run over images: a bar on a terminal, lines elsewhere; the result of a single image in full.

    Args:
        quiet: show errors only.
        command: the subcommand, for errors.
        doing: what the bar says.
    """

    def __init__(self, quiet: bool, command: str = "segment", doing: str = "segmenting"):
        self._quiet, self._command, self._doing = quiet, command, doing
        self._total = self._done = 0
        self._bar: Any = None
        self._task: Any = None

    def __call__(self, image: Path, event: str, detail: Any) -> None:
        """Shows one event: `plan` (how many images), `written`, `skipped` or `failed`."""
        if event == "plan":
            self._start(detail)
            return
        if event == "failed":
            self._say(f"ovs {self._command}: error: {detail}", sys.stderr)
        if event in ("failed", "written"):
            self._done += 1
            if self._bar is not None:
                self._bar.advance(self._task)
        if self._quiet or event == "failed" or (self._bar is not None and event == "written"):
            return
        if event == "skipped":
            self._say(f"{image}: done before (--overwrite does it again)")
        elif self._total == 1:
            paths, shares, clock = detail
            print(f"wrote {paths_of(paths)}")
            print_shares(shares)
            print(f"  {clock}")
        else:
            paths, _, clock = detail
            spent = sum(clock.milliseconds.values())
            self._say(f"[{self._done}/{self._total}] {image} -> {paths.labels} ({spent:.0f} ms)")

    def _start(self, total: int) -> None:
        self._total = total
        if self._quiet or total < 2 or not sys.stderr.isatty():
            return
        with contextlib.suppress(ModuleNotFoundError):
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            rate = TextColumn("{task.fields[rate]}")
            columns = (TextColumn(self._doing), BarColumn(), MofNCompleteColumn(), rate, TimeRemainingColumn())
            self._bar = Bar(*columns, console=Console(stderr=True))
            self._task = self._bar.add_task("", total=total, rate="")
            self._bar.start()

    def _say(self, text: str, stream: Any = None) -> None:
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=stream or sys.stdout, flush=True)

    def stop(self) -> None:
        """Leaves the terminal as it was."""
        if self._bar is not None:
            self._bar.stop()
