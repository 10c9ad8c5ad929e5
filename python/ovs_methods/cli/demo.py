"""`ovs demo`: a real photo, the methods side by side."""

import argparse
from pathlib import Path
from typing import Any

from .common import OK, add_common, paths_of, print_shares


def add(commands: Any) -> None:
    """Adds `ovs demo` to the parser."""
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
    add_common(demo)


def run(arguments: argparse.Namespace) -> int:
    """Runs `ovs demo`; returns the exit status."""
    from ..demo import METHODS_SHOWN, Demo, compare

    say = (lambda *_: None) if arguments.quiet else (lambda text: print(text, flush=True))
    demo = Demo(arguments.out, arguments.photo, arguments.threads)
    say(f"photo: {demo.photo}\n  load model {demo.segmenter.clock.milliseconds['load model']:.0f} ms")
    for method in METHODS_SHOWN:
        paths, shares, clock = demo.segment(method)
        say(f"\n{method}: wrote {paths_of(paths)}")
        if not arguments.quiet:
            print_shares(shares)
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
