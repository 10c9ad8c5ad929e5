"""`ovs refine`: sharpen the class scores of any other model."""

import argparse
from pathlib import Path
from typing import Any

from .common import (
    OK,
    RAW,
    add_common,
    add_patch_stage,
    add_propagation,
    constants,
    paths_of,
    print_shares,
    propagation,
)

_DESCRIPTION = """\
Sharpens class scores along the edges of the photo (--method pixels, label propagation over pixel affinities),
spreads them over patches that look alike (lposs), or both (lposs+).

The scores may come from any model: logits, cosines or probabilities, [C, H, W] in a .npy file.
"""

_EXAMPLES = """\
examples:
  ovs refine photo.jpg --scores logits.npy --out refined
  ovs refine photo.jpg --scores logits_32x43.npy --resize scores --names cat,sofa,wall --out refined

written to --out for photo.jpg:
  photo_refined.npy   refined scores, [C, H, W] at the size they were refined at, the dtype of the input
  photo_labels.png, photo_overlay.png, photo.json
"""


def add(commands: Any) -> None:
    """Adds `ovs refine` to the parser."""
    refine = commands.add_parser(
        "refine",
        help="sharpen anybody's scores",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=RAW,
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
    add_patch_stage(refine)
    add_propagation(refine)
    add_common(refine)


def run(arguments: argparse.Namespace) -> int:
    """Runs `ovs refine`; returns the exit status."""
    from ..refine import RefineOptions, refine

    names = [name.strip() for name in arguments.names.split(",")] if arguments.names else []
    paths, shares, clock = refine(
        RefineOptions(
            image=arguments.image,
            scores=arguments.scores,
            out=arguments.out,
            resize=arguments.resize,
            names=names,
            method=arguments.method,
            propagation=propagation(arguments),
            preset=arguments.preset,
            constants=constants(arguments),
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
    print(f"wrote {paths_of(paths)}")
    print_shares(shares if len(shares) <= 30 else sorted(shares, key=lambda pair: -pair[1])[:30])
    print(f"  {clock}")
    return OK
