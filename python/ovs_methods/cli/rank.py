"""`ovs rank-templates`: which prompt templates are experts for which class, from photos without labels."""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from ..errors import UserError
from .common import OK, RAW, SOME_FAILED, Progress, add_common, integer, minutes, shard

_PATIENCE = 3.0  # seconds of encoding text after which a user is told

_OF_MERGE = ("help", "merge", "out", "overwrite", "quiet")

_DESCRIPTION = """\
Ranks prompt templates for each class by how sure they are of it (FLOSS): the mean entropy of the pixels that a
template gives to the class, low is good. The photos need no labels; one is enough, more are better.
"""

_EXAMPLES = """\
examples:
  ovs rank-templates photos/ --classes "cat, sofa; couch, wall" --model ViT-B-16:laion2b_s34b_b88k --out experts.json
      after each photo the state is in experts.json.partial; run it again after an interruption and it goes on

  ovs segment photo.jpg --classes "cat, sofa; couch, wall" --method floss --experts experts.json --out results
      with the same classes and model

  ovs rank-templates photos/ --classes "cat, wall" --base naclip --out a.json --shard 1/2
  ovs rank-templates photos/ --classes "cat, wall" --base naclip --out b.json --shard 2/2
  ovs rank-templates --merge a.json b.json --out experts.json
      on two machines; the same file as that of one run over all photos

exit status: 0 all done, 1 some images of several failed, 2 something given cannot be used, 130 interrupted
"""


def _add_model(parser: Any) -> None:
    model = parser.add_argument_group("model")
    model.add_argument(
        "--model",
        "--backbone",
        metavar="NAME",
        help="a CLIP model of open_clip as NAME:TAG, hf-hub:ORG/REPO or local-dir:FOLDER (that of the base)",
    )
    model.add_argument("--weights", metavar="FILE", help="local checkpoint of --model")
    model.add_argument(
        "--base",
        choices=("maskclip", "naclip", "clip-dinoiser", "proxyclip"),
        default="maskclip",
        help="method whose features, windows and size are used (maskclip)",
    )
    model.add_argument("--guide", metavar="NAME", help="second model of clip-dinoiser and proxyclip (that of the base)")
    model.add_argument("--guide-weights", metavar="FILE", help="local checkpoint of --guide")
    model.add_argument("--projection", metavar="FILE", help="learned checkpoint of clip-dinoiser, instead of a guide")
    model.add_argument("--layer", type=integer(0, 11), default=9, help="block whose features the guide gives (9)")
    model.add_argument(
        "--windows", metavar="SIZE/STRIDE", help="sliding windows: none, 224/112, ... (that of the base)"
    )
    model.add_argument("--size", type=integer(14, 4096), help="short side at which photos are looked at (of the base)")


def add(commands: Any) -> None:
    """Adds `ovs rank-templates` to the parser."""
    parser = commands.add_parser(
        "rank-templates",
        help="find each class's best prompts",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=RAW,
    )
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="image file, or a folder of them")
    parser.add_argument(
        "--classes", metavar="TEXT", help="names between commas; other names of a class behind ; or |, as in segment"
    )
    parser.add_argument(
        "--background", default="none", metavar="WORDS", help="a class of everything else, as in segment (none)"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json", help="the ranking")
    parser.add_argument("--overwrite", action="store_true", help="start again, and replace a ranking that is there")
    _add_model(parser)
    ranking = parser.add_argument_group("ranking (ovs_kernels.template_entropy)")
    ranking.add_argument(
        "--mode",
        choices=("pixel_exact", "patch"),
        default="pixel_exact",
        help="what counts: the photo's pixels, as published, or patches, much faster (pixel_exact)",
    )
    ranking.add_argument(
        "--metric",
        choices=("entropy", "probability", "mano"),
        default="entropy",
        help="what the templates are sorted by; mano with --mode patch (entropy)",
    )
    ranking.add_argument(
        "--templates", type=Path, metavar="FILE", help="prompts, one per line, {} for the name (the 80 of open_clip)"
    )
    ranking.add_argument("--limit", type=integer(1, 10**9), metavar="N", help="use the first N images only")
    ranking.add_argument("--dataset", metavar="NAME", help="name of the data set, kept in the file")
    ranking.add_argument(
        "--shard", type=shard, default=(1, 1), metavar="I/N", help="use every N-th image from the I-th"
    )
    ranking.add_argument("--merge", nargs="+", type=Path, metavar="FILE.json", help="add rankings up instead")
    add_common(parser)
    others = [action for action in parser._actions if action.dest not in _OF_MERGE]
    parser.set_defaults(others={(action.option_strings or ["IMAGE"])[0]: action for action in others})


class _RankProgress(Progress):
    """Images per second and the time that is left: in a bar on a terminal, in lines elsewhere."""

    def __init__(self, quiet: bool):
        super().__init__(quiet, "rank-templates", "ranking")
        self._began = time.perf_counter()
        self._todo = self.before = 0
        self._said = False

    def __call__(self, image: Path, event: str, detail: Any) -> None:
        """Shows one event: `plan` (images to do, done before), `encode`, `scored` or `failed`."""
        if event == "plan":
            self._todo, self.before = detail
            if self.before and self._todo and not self._quiet:
                print(f"{self.before} images were done before, {self._todo} are left", flush=True)
            return
        if event == "encode":
            self._encode(*detail)
            return
        self._done += 1
        rate = self._done / max(time.perf_counter() - self._began, 1e-9)
        if self._bar is not None:
            self._bar.update(self._task, advance=1, rate=f"{rate:.2f} images/s")
        if event == "failed":
            if self._total + self.before > 1:  # a single image is the error of the whole run
                self._say(f"ovs rank-templates: error: {detail}", sys.stderr)
        elif self._bar is None and not self._quiet:
            clock, _ = detail
            speed = f"{rate:.2f} images/s, {minutes((self._total - self._done) / rate)} left"
            self._say(f"[{self._done}/{self._total}] {image} ({clock}; {speed})")

    def _encode(self, ready: int, words: int, templates: int) -> None:
        """Words through the text tower: a bar of their own; elsewhere a line, if it takes some time."""
        now = time.perf_counter()
        if ready == 0:
            self._began, self._doing = now, "encoding text"
            self._start(words)
        elif self._bar is not None:
            self._bar.update(self._task, completed=ready)
        elif not (self._said or self._quiet) and now - self._began > _PATIENCE:
            left = minutes((words - ready) * (now - self._began) / ready)
            print(f"encoding {words} names in {templates} templates, {left} left; kept for later runs", flush=True)
            self._said = True
        if ready == words:
            self.stop()
            self._bar, self._began, self._doing = None, now, "ranking"
            self._start(self._todo)

    @property
    def under_way(self) -> bool:
        """Whether there is something to go on with."""
        return self._done + self.before > 0


def run(arguments: argparse.Namespace) -> int:
    """Runs `ovs rank-templates`; returns the exit status."""
    if arguments.merge is not None:
        return _merge(arguments)
    if arguments.classes is None:
        raise UserError("--classes", "names between commas, e.g. 'cat, sofa, wall'", "none")
    from ..rank import summary

    report = _rank(arguments)
    ranking = report.ranking
    if not arguments.quiet:
        if report.complete:
            print(f"{arguments.out}: done before (--overwrite does it again)")
        else:
            print(f"wrote {arguments.out}: {_counted(ranking)}")
        print("\n".join(summary(ranking)))
    return SOME_FAILED if ranking.failed else OK


def _counted(ranking: Any) -> str:
    failed = f", {len(ranking.failed)} could not be used" if ranking.failed else ""
    images = f"{ranking.images} image{'s' if ranking.images > 1 else ''}{failed}"
    return f"{images}, {len(ranking.templates)} templates, {len(ranking.names)} classes"


def _rank(arguments: argparse.Namespace) -> Any:
    from ..rank import RankOptions, partial_path, rank_templates

    same = (
        "images",
        "out",
        "classes",
        "background",
        "weights",
        "base",
        "guide",
        "guide_weights",
        "projection",
        "layer",
    )
    same += ("templates", "mode", "metric", "limit", "shard", "dataset", "windows", "threads", "overwrite")
    given = {name: getattr(arguments, name) for name in same}
    options = RankOptions(backbone=arguments.model, short_side=arguments.size, **given)
    progress = _RankProgress(arguments.quiet)
    try:
        return rank_templates(options, progress)
    except KeyboardInterrupt:
        progress.stop()
        partial = partial_path(options.out)
        if progress.under_way and partial.exists():
            command = "the same command without --overwrite" if options.overwrite else "the same command"
            print(f"{partial} has what was done; {command} goes on from there", file=sys.stderr)
        raise
    finally:
        progress.stop()


def _merge(arguments: argparse.Namespace) -> int:
    given = [
        name
        for name, action in arguments.others.items()
        if getattr(arguments, action.dest) not in (action.default, [])  # [] is what no IMAGE is
    ]
    if given:
        raise UserError("--merge", "only --out, --overwrite and --quiet with it", f"also {', '.join(given)}")
    from ..rank import merge_rankings, summary

    ranking = merge_rankings(arguments.merge, arguments.out, arguments.overwrite)
    if not arguments.quiet:
        print(f"wrote {arguments.out}: {_counted(ranking)}")
        print("\n".join(summary(ranking)))
    return SOME_FAILED if ranking.failed else OK
