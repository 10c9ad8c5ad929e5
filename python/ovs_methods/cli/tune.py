"""`ovs tune-pnp`: PnP-OVSS's layer, head, threshold and blur, from photos whose classes are known."""

import argparse
import sys
from pathlib import Path
from typing import Any

from .common import OK, RAW, SOME_FAILED, Progress, add_common, integer, number

_DESCRIPTION = """\
Chooses the layer, the head, the threshold and the blur of PnP-OVSS for a model, without masks: only the classes that
are in each photo have to be known. A setting is good if CLIP is surer of a class when it sees no more of the photo than
the class's map covers. Layer, head and threshold are found by random search, then all blurs are tried.
"""

_EXAMPLES = """\
examples:
  ovs tune-pnp photos/ --labels labels.json --model blip-itm-large-coco --out tuned.json
      labels.json holds {"a.jpg": ["cat", "sofa"], "b.jpg": ["dog", "wall", "bed"]}; photos with one class do not count.
      Run it again after an interruption and it goes on: what was done is in tuned.json.partial and tuned.json.maps

  ovs segment photo.jpg --classes "cat, sofa" --method pnp-ovss --model blip-itm-large-coco --tuned tuned.json --out out
      with the setting that was found

written to --out tuned.json: the best setting, all that was tried, what it was tried on; tuned.txt has it as a table.

exit status: 0 all done, 1 some photos could not be used, 2 something given cannot be used, 130 interrupted
"""


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(number(part) for part in text.split(",") if part.strip())


def add(commands: Any) -> None:
    """Adds `ovs tune-pnp` to the parser."""
    parser = commands.add_parser(
        "tune-pnp",
        help="choose PnP-OVSS's layer, head, threshold and blur without masks",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=RAW,
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image file, or a folder of them")
    parser.add_argument("--labels", type=Path, required=True, metavar="FILE", help="JSON: the classes of each photo")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json", help="the report")
    parser.add_argument("--overwrite", action="store_true", help="start again, and replace a report that is there")
    parser.add_argument(
        "--classes",
        metavar="TEXT",
        help="all names of the prompt, between commas, other names of a class behind ; (those of each photo)",
    )
    parser.add_argument("--limit", type=integer(1, 10**9), metavar="N", help="use the first N photos only")
    model = parser.add_argument_group("models")
    model.add_argument(
        "--model",
        "--backbone",
        default="blip-itm-large-flickr",
        metavar="NAME",
        help="as --model of ovs segment --method pnp-ovss (blip-itm-large-flickr)",
    )
    model.add_argument("--weights", metavar="FOLDER", help="local copy of --model")
    model.add_argument("--size", type=integer(14, 4096), default=336, help="side of the square a photo becomes (336)")
    model.add_argument(
        "--clip", default="ViT-L-14-336:openai", metavar="NAME", help="the judge, a CLIP (ViT-L-14-336:openai)"
    )
    model.add_argument("--clip-weights", metavar="FILE", help="local checkpoint of --clip")
    model.add_argument("--templates", metavar="FILE", help="prompts for the judge, one per line (a photo of a {}.)")
    search = parser.add_argument_group("search")
    search.add_argument(
        "--thresholds",
        type=_numbers,
        default=(0.05, 0.15, 0.25, 0.35, 0.45),
        metavar="T,...",
        help="to choose from (0.05,0.15,0.25,0.35,0.45)",
    )
    search.add_argument(
        "--blurs",
        type=_numbers,
        default=(0.01, 0.03, 0.05, 0.07, 0.09, 0.11),
        metavar="S,...",
        help="to choose from, shares of the long side (0.01,0.03,...,0.11)",
    )
    search.add_argument("--search-blur", type=number, default=0.04, metavar="S", help="while the rest is found (0.04)")
    search.add_argument("--groups", type=integer(1, 1000), default=3, metavar="N", help="independent searches (3)")
    search.add_argument("--evaluations", type=integer(1, 10**6), default=34, metavar="N", help="of each of them (34)")
    search.add_argument(
        "--optimizer",
        choices=("random", "annealing"),
        default="random",
        help="of Gradient-Free-Optimizers: random search, or random annealing, which the published code runs (random)",
    )
    search.add_argument("--seed", type=integer(0, 2**31), default=0, help="of the first search (0)")
    add_common(parser)


class _TuneProgress(Progress):
    """A bar for the maps and one for the search; lines elsewhere than on a terminal."""

    def __init__(self, quiet: bool):
        super().__init__(quiet, "tune-pnp", "maps")
        self.under_way = False

    def __call__(self, image: Path, event: str, detail: Any) -> None:
        """Shows one event, see `ovs_methods.tune.tune`."""
        if event == "plan maps":
            todo, before = detail
            if before and todo and not self._quiet:
                print(f"maps of {before} photos were done before, {todo} are left", flush=True)
            self._start(todo)
        elif event == "plan search":
            self.stop()
            evaluations, photos = detail
            self._bar, self._doing, self._done = None, "searching", 0
            self._photos = photos
            self._start(evaluations)
        elif event == "judged":
            self.under_way = True
        else:
            self._step(image, event, detail)

    def _step(self, image: Path, event: str, detail: Any) -> None:
        self._done += 1
        self.under_way = True
        if self._bar is not None:
            self._bar.advance(self._task)
        if event == "failed":
            self._say(f"ovs tune-pnp: error: {image}: {detail}", sys.stderr)
        elif self._bar is None and not self._quiet:
            if event == "mapped":
                self._say(f"[{self._done}/{self._total}] {image} ({detail})")
            else:
                setting = ", ".join(f"{name} {detail[name]:g}" for name in ("layer", "head", "threshold", "blur"))
                self._say(f"[{self._done}/{self._total}] {setting}: {detail['reward']}")


def run(arguments: argparse.Namespace) -> int:
    """Runs `ovs tune-pnp`; returns the exit status."""
    from ..tune import TuneOptions, partial_path, table_of, table_path, tune

    same = ("images", "labels", "out", "classes", "weights", "clip", "clip_weights", "templates", "thresholds", "blurs")
    same += ("search_blur", "groups", "evaluations", "optimizer", "seed", "limit", "threads", "overwrite")
    given = {name: getattr(arguments, name) for name in same}
    options = TuneOptions(backbone=arguments.model, side=arguments.size, **given)
    progress = _TuneProgress(arguments.quiet)
    try:
        report = tune(options, progress)
    except KeyboardInterrupt:
        progress.stop()
        if progress.under_way:
            command = "the same command without --overwrite" if options.overwrite else "the same command"
            print(f"{partial_path(options.out)} has what was done; {command} goes on from there", file=sys.stderr)
        raise
    finally:
        progress.stop()
    if not arguments.quiet:
        if report.get("done_before"):
            print(f"{options.out}: done before (--overwrite does it again)")
        else:
            print(f"wrote {options.out}, {table_path(options.out)}")
        if report["single_class"]:
            print(f"photos with fewer than two classes, which do not count: {len(report['single_class'])}")
        print("\n".join(table_of(report)))
    return SOME_FAILED if report["failed"] else OK
