"""`ovs evaluate`: methods on a data set with labels."""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from ..errors import UserError
from .common import OK, RAW, SOME_FAILED, Progress, class_name, exemplar, integer, minutes, number, shard
from .segment import METHODS, add_method_options, method_options

_DESCRIPTION = """\
Runs methods over a data set with labels and prints mIoU and Boundary IoU per class, beside the paper's number where
the setting is a published one. All methods see each image once; what they have in common is computed once.
"""

_EXAMPLES = """\
examples:
  ovs evaluate --dataset VOCdevkit/VOC2012 --kind voc21 --method lposs --method lposs+ --metrics miou,biou --out voc
      run it again after an interruption and it goes on where it stopped

  ovs evaluate --dataset ade --kind ade20k --method naclip --limit 100 --save-panels 10 --out ade100
      the first 100 images, and pictures of the first 10 in ade100/panels

  ovs evaluate --dataset mine --kind folder --method lposs+ --out mine_lposs
      mine/images, mine/masks and mine/classes.txt, a class per line in order of the labels

  ovs evaluate --dataset VOCdevkit/VOC2012 --kind voc21 --oracle patch --metrics miou,biou --out oracle
      what labels of whole patches could reach at best; needs no model

  ovs evaluate ... --shard 1/4 --out part1      (and 2/4, 3/4, 4/4 elsewhere)
  ovs evaluate --merge part1 part2 part3 part4 --out whole
      the same counts as those of one run

written to --out:
  results.json    metrics, exact counts, settings; what --merge reads
  results.csv     a line per class
  panels/         with --save-panels

exit status: 0 all done, 1 some images could not be used, 2 something given cannot be used, 130 interrupted
"""

_OF_MERGE = ("help", "merge", "out", "overwrite", "quiet")
_KINDS = ("voc20", "voc21", "context59", "context60", "coco-object", "coco-stuff", "ade20k", "cityscapes", "folder")


def _patch(text: str) -> int:
    name, _, side = text.partition(":")
    if name != "patch" or not (side or "16").isdecimal() or not 1 <= int(side or 16) <= 1024:
        raise argparse.ArgumentTypeError(f"expected patch or patch:SIDE with a side from 1 to 1024, got '{text}'")
    return int(side or 16)


def _panels(text: str) -> int | Path:
    return int(text) if text.isdecimal() else Path(text)


def _add_dataset(parser: Any) -> None:
    group = parser.add_argument_group("data set")
    group.add_argument("--dataset", type=Path, metavar="ROOT", help="folder of the data set")
    group.add_argument("--kind", choices=_KINDS, help="whose layout, classes and labels it has")
    group.add_argument("--split", metavar="NAME", help="part of it (val, val2017 or validation)")
    group.add_argument("--limit", type=integer(1, 10**9), metavar="N", help="use the first N images only")
    group.add_argument("--shard", type=shard, default=(1, 1), metavar="I/N", help="use every N-th image from the I-th")
    group.add_argument(
        "--strict", action="store_true", help="stop at the first image that cannot be used, or if a file has no partner"
    )
    folder = parser.add_argument_group("data set of --kind folder")
    folder.add_argument("--images", metavar="DIR", help="folder of the photos below ROOT (images)")
    folder.add_argument("--masks", metavar="DIR", help="folder of the masks (masks)")
    folder.add_argument("--mask-suffix", default="", metavar="TEXT", help="end of the masks' names, such as _mask.png")
    folder.add_argument(
        "--class-list",
        metavar="FILE",
        help="a class per line, in order of the labels: other names behind ; and for masks coded by colours #rrggbb "
        "before it; or JSON (classes.txt, classes.json)",
    )
    folder.add_argument("--reduce-zero-label", action="store_true", help="label 0 does not count, class 1 is the first")
    folder.add_argument(
        "--ignore-label",
        type=integer(0, 65535),
        action="append",
        metavar="V",
        help="a label that does not count, of any kind of data set (255; repeatable)",
    )


def _add_evaluation(parser: Any) -> None:
    group = parser.add_argument_group("evaluation")
    group.add_argument(
        "--metrics", default="miou", metavar="LIST", help="miou, biou (Boundary IoU), or both: miou,biou (miou)"
    )
    group.add_argument(
        "--style",
        choices=("mmseg", "pnp"),
        default="mmseg",
        help="what counts: as in mmsegmentation, or as in PnP-OVSS's code, where all that is no class is background",
    )
    group.add_argument(
        "--boundary-ratio", type=number, default=0.02, metavar="R", help="width of a boundary by the diagonal (0.02)"
    )
    group.add_argument(
        "--oracle", type=_patch, metavar="patch[:SIDE]", help="add what labels of whole patches could reach (16)"
    )
    group.add_argument(
        "--window-study",
        nargs="*",
        metavar="WINDOWS",
        help="run every method with each of these windows (none 448/224 224/112 ensemble)",
    )
    group.add_argument(
        "--save-panels", type=_panels, metavar="N|DIR", help="pictures of the first N images, or of all images into DIR"
    )


def _add_words(parser: Any) -> None:
    group = parser.add_argument_group("what the classes are called")
    group.add_argument(
        "--words",
        default="auto",
        metavar="WHOSE",
        help="the words that LPOSS's code asks with (lposs), or NACLIP's (naclip), or a FILE with a class per line; "
        "auto is that of the method's paper (auto)",
    )
    group.add_argument(
        "--templates", metavar="FILE", help="prompts that the names are put into: one per line, with one {}"
    )
    group.add_argument(
        "--exemplar",
        action="append",
        default=[],
        type=exemplar,
        metavar="IMAGE:MASK",
        help="classes by a photo and its mask with the data set's labels, instead of by words (repeatable)",
    )
    group.add_argument(
        "--class-name", action="append", default=[], type=class_name, metavar="ID=NAME", help="of an id in such masks"
    )
    group.add_argument(
        "--prototypes", type=integer(1, 64), default=5, metavar="N", help="embeddings of a class in a mask (5)"
    )


def add(commands: Any) -> None:
    """Adds `ovs evaluate` to the parser."""
    parser = commands.add_parser(
        "evaluate",
        help="methods on a data set with labels: mIoU, Boundary IoU, pictures",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=RAW,
    )
    parser.add_argument("--method", action="append", default=[], choices=METHODS, help="repeatable")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the results")
    parser.add_argument("--overwrite", action="store_true", help="start again, and replace results that are there")
    parser.add_argument("--merge", nargs="+", type=Path, metavar="DIR", help="add the results of shards up instead")
    _add_dataset(parser)
    _add_evaluation(parser)
    _add_words(parser)
    add_method_options(parser)
    others = [action for action in parser._actions if action.dest not in _OF_MERGE]
    parser.set_defaults(others={action.option_strings[0]: action for action in others})


class _EvaluateProgress(Progress):
    """Images per second and the time that is left: in a bar on a terminal, in lines elsewhere."""

    def __init__(self, quiet: bool):
        super().__init__(quiet, "evaluate", "evaluating")
        self._began = self._said = time.perf_counter()
        self.before, self.failed = 0, 0

    def __call__(self, item: Any, event: str, detail: Any) -> None:
        """Shows one event: `plan`, `loaded`, `counted` or `failed`."""
        if event == "plan":
            self._plan(*detail)
            return
        if event == "loaded":
            self._began = self._said = time.perf_counter()
            self._start(self._total)
            return
        self._done += 1
        now = time.perf_counter()
        rate = self._done / max(now - self._began, 1e-9)
        if self._bar is not None:
            self._bar.update(self._task, advance=1, rate=f"{rate:.2f} images/s")
        if event == "failed":
            self.failed += 1
            self._say(f"ovs evaluate: error: {detail}", sys.stderr)
        elif self._bar is None and not self._quiet and (now - self._said > 10 or self._done == self._total):
            self._said = now
            left = (self._total - self._done) / rate
            self._say(f"[{self._done}/{self._total}] {rate:.2f} images/s, {minutes(left)} left")

    def _plan(self, todo: int, before: int, missing: tuple[str, ...]) -> None:
        self._total, self.before = todo, before
        for path in missing[:5] if not self._quiet else ():
            print(f"ovs evaluate: note: no partner: {path}", file=sys.stderr)
        if len(missing) > 5 and not self._quiet:
            print(f"ovs evaluate: note: and {len(missing) - 5} other files without a partner", file=sys.stderr)
        if before and todo and not self._quiet:
            print(f"{before} images were done before, {todo} are left", flush=True)

    @property
    def under_way(self) -> bool:
        """Whether there is something to go on with."""
        return self._done - self.failed + self.before > 0


def run(arguments: argparse.Namespace) -> int:
    """Runs `ovs evaluate`; returns the exit status."""
    if arguments.merge is not None:
        return _merge(arguments)
    for name in ("dataset", "kind"):
        if getattr(arguments, name) is None:
            raise UserError(f"--{name}", "the folder of a data set" if name == "dataset" else ", ".join(_KINDS), "none")
    progress = _EvaluateProgress(arguments.quiet)
    try:
        outcome = _evaluate(arguments, progress)
    except KeyboardInterrupt:
        progress.stop()
        if progress.under_way:
            print(f"{arguments.out} has what was done; the same command goes on from there", file=sys.stderr)
        raise
    finally:
        progress.stop()
    if not arguments.quiet and outcome.complete:
        pictures = ", with pictures" if arguments.save_panels else ""
        print(f"{arguments.out}: done before (--overwrite does it again{pictures})")
    return _report(arguments, outcome.document)


def _evaluate(arguments: argparse.Namespace, progress: _EvaluateProgress) -> Any:
    from ..data.layouts import Choices
    from ..evaluate import EvaluateOptions, evaluate
    from ..evaluation_runs import STUDY
    from ..options import SegmentOptions

    study = arguments.window_study
    ignored = tuple(arguments.ignore_label) if arguments.ignore_label else (255,)
    choices = Choices(
        split=arguments.split,
        images=arguments.images,
        masks=arguments.masks,
        mask_suffix=arguments.mask_suffix,
        class_list=arguments.class_list,
        reduce_zero=arguments.reduce_zero_label,
        ignored=ignored,
    )
    template = SegmentOptions(
        images=[],
        out=arguments.out,
        exemplars=arguments.exemplar,
        class_names=dict(arguments.class_name),
        prototypes=arguments.prototypes,
        templates=arguments.templates,
        **{**method_options(arguments), "resize": arguments.resize or "sampled"},
    )
    options = EvaluateOptions(
        dataset=arguments.dataset,
        kind=arguments.kind,
        out=arguments.out,
        methods=tuple(arguments.method),
        template=template,
        choices=choices,
        metrics=tuple(part.strip() for part in arguments.metrics.split(",")),
        style=arguments.style,
        ratio=arguments.boundary_ratio,
        words=arguments.words,
        study=() if study is None else tuple(study) or STUDY,
        patch=arguments.oracle,
        limit=arguments.limit,
        shard=arguments.shard,
        strict=arguments.strict,
        panels=arguments.save_panels,
        overwrite=arguments.overwrite,
    )
    return evaluate(options, progress)


def _merge(arguments: argparse.Namespace) -> int:
    given = [
        name for name, action in arguments.others.items() if getattr(arguments, action.dest) not in (action.default, [])
    ]
    if given:
        raise UserError("--merge", "only --out, --overwrite and --quiet with it", f"also {', '.join(given)}")
    from ..evaluation_report import merge_results

    return _report(arguments, merge_results(arguments.merge, arguments.out, arguments.overwrite))


def _report(arguments: argparse.Namespace, document: dict[str, Any]) -> int:
    """Prints the results; returns the exit status."""
    from .tables import print_table

    if not arguments.quiet:
        from ..evaluation_report import OVERHEAD, READING, class_table, partial_reason, sources, summary_table

        print_table(class_table(document))
        print()
        print_table(summary_table(document))
        part, papers = partial_reason(document), sources(document)
        if papers:
            note = f", whole split; this is {part}" if part else ""
            print(f"paper: {'; '.join(papers)}{note}")
        spent, failed = document["ms_per_image"], len(document["failed"])
        print(f"{document['images']} images, {failed} could not be used, {len(document['missing'])} without a partner")
        print(f"per image: {spent[OVERHEAD]:.1f} ms {OVERHEAD}, {spent[READING]:.1f} ms {READING}")
        print(f"wrote {arguments.out / 'results.json'}, {arguments.out / 'results.csv'}")
    if document["failed"] and not arguments.quiet and arguments.merge is None:
        print("the same command tries the images again that could not be used")
    return SOME_FAILED if document["failed"] else OK
