"""`adaptive_conv`: the sizes of FeatUp's four-stage upsampler, filters of 7 x 7, forward and both gradients."""

import functools

import peers_adaptive as peers
import torch
from harness import OURS, PUBLISHED, PYTORCH, REFERENCE, Case, Implementation, Inputs, Tolerance, Work
from torch import Tensor

import ovs_kernels
from ovs_kernels.reference import adaptive as reference

FORWARD, BY_INPUT, BY_FILTERS = "forward", "gradient by input", "gradient by filters"
# (channels, height, width, side of the filters, what is computed). A ViT-S has 384 channels; its 14 x 14 patches of a
# photo of 224 pixels are doubled four times. 21 are the classes of VOC, on a photo of 512 pixels.
FULL = [
    (21, 64, 64, 7, FORWARD),
    (21, 128, 128, 7, FORWARD),
    (21, 256, 256, 7, FORWARD),
    (21, 512, 512, 7, FORWARD),
    (384, 28, 28, 7, FORWARD),
    (384, 56, 56, 7, FORWARD),
    (384, 112, 112, 7, FORWARD),
    (384, 224, 224, 7, FORWARD),
    (21, 256, 256, 7, BY_INPUT),
    (384, 56, 56, 7, BY_INPUT),
    (21, 256, 256, 7, BY_FILTERS),
    (384, 56, 56, 7, BY_FILTERS),
]
QUICK = [
    (5, 24, 37, 7, FORWARD),
    (5, 24, 37, 7, BY_INPUT),
    (5, 24, 37, 7, BY_FILTERS),
]

# Float32 against float64; labels differ where two channels are within rounding of each other.
TOLERANCE = Tolerance(labels=0.9999, error=1e-6)
# Written out, 384 channels of 224 x 224 pixels would be 3.8 GB, and its contraction keeps another copy.
MOST_WRITTEN_OUT = 2**31  # bytes


def make_inputs(channels: int, height: int, width: int, side: int, what: str, device: torch.device) -> Inputs:
    """`input` and `filters`, for a gradient `v_out` instead of the one that is asked for."""
    generator = torch.Generator().manual_seed(1)
    shape = (1, channels, height + side - 1, width + side - 1)
    inputs = {
        "input": torch.randn(shape, generator=generator),
        "filters": torch.randn(1, height, width, side * side, generator=generator).softmax(-1),
        "v_out": torch.randn(1, channels, height, width, generator=generator),
    }
    inputs["filters"] = inputs["filters"].reshape(1, height, width, side, side)
    del inputs[{FORWARD: "v_out", BY_INPUT: "input", BY_FILTERS: "filters"}[what]]
    return {name: tensor.to(device) for name, tensor in inputs.items()}


def _comparable(result: Tensor, what: str) -> Tensor:
    """Channels (of filters: taps) first, for the harness."""
    return result[0].flatten(2).permute(2, 0, 1) if what == BY_FILTERS else result[0]


def _pair(inputs: Inputs, what: str) -> tuple[Tensor, Tensor]:
    first, second = {
        FORWARD: ("input", "filters"),
        BY_INPUT: ("v_out", "filters"),
        BY_FILTERS: ("v_out", "input"),
    }[what]
    return inputs[first], inputs[second]


def implementations(channels: int, height: int, width: int, side: int, what: str) -> list[Implementation]:
    """Ours and everybody else."""

    def run(function, **options):
        return lambda inputs: _comparable(function(*_pair(inputs, what), **options), what)

    def banded(function):
        name = "PyTorch tap by tap, bands of {}"
        return [Implementation(name.format(band), PYTORCH, run(function, band=band)) for band in (16, 32)]

    if what == BY_INPUT:
        return [
            Implementation("ovs_kernels", OURS, run(torch.ops.ovs_kernels.adaptive_conv_input_backward)),
            Implementation("PyTorch tap by tap", PYTORCH, run(peers.input_gradient_taps)),
        ]
    if what == BY_FILTERS:
        return [
            Implementation("ovs_kernels", OURS, run(torch.ops.ovs_kernels.adaptive_conv_filters_backward)),
            *banded(peers.filters_gradient_taps),
            Implementation("PyTorch product per pixel", PYTORCH, run(peers.filters_gradient_products)),
        ]
    written_out_bytes = 4 * channels * height * width * side * side
    too_large = (
        f"{written_out_bytes / 2**30:.1f} GB of neighbourhoods" if written_out_bytes > MOST_WRITTEN_OUT else None
    )
    return [
        Implementation("ovs_kernels", OURS, run(ovs_kernels.adaptive_conv)),
        *banded(peers.taps),
        Implementation("PyTorch tap by tap", PYTORCH, run(peers.taps, band=height)),
        Implementation("PyTorch tap by tap, channels last", PYTORCH, run(peers.taps_channels_last, band=height)),
        Implementation(
            "PyTorch tap by tap, channels last, bands of 16", PYTORCH, run(peers.taps_channels_last, band=16)
        ),
        Implementation("PyTorch product per pixel", PYTORCH, run(peers.products)),
        Implementation("unfold fallback of FeatUp", PUBLISHED, run(peers.written_out), left_out=too_large),
        Implementation("reference, float32", REFERENCE, run(reference.adaptive_conv)),
    ]


def expected(inputs: Inputs, what: str) -> Tensor:
    """The float64 definition."""
    definition = {
        FORWARD: reference.adaptive_conv,
        BY_INPUT: reference.adaptive_conv_input_backward,
        BY_FILTERS: reference.adaptive_conv_filters_backward,
    }[what]
    return _comparable(definition(*(tensor.double() for tensor in _pair(inputs, what))), what)


def count_work(channels: int, height: int, width: int, side: int) -> Work:
    """Flops and bytes that the case needs."""
    pixels = height * width
    numbers = channels * (height + side - 1) * (width + side - 1) + side * side * pixels + channels * pixels
    how = "2 flops per channel, pixel and tap; input, filters and result once"
    return Work(2 * channels * pixels * side * side, 4 * numbers, 0, how)


def cases(which: str, device: torch.device) -> list[Case]:
    """The cases of a run.

    Args:
        which: "quick" (small cases with every peer) or "full".
        device: where the inputs lie.
    """
    return [
        Case(
            name=f"C={channels} {height}x{width} filters {side}x{side}" + ("" if what == FORWARD else f" {what}"),
            sizes={"C": channels, "H": height, "W": width, "k": side},
            options={"what": what},
            source="seeded normal numbers, filters a softmax of such",
            inputs=functools.partial(make_inputs, channels, height, width, side, what, device),
            expected=functools.partial(expected, what=what),
            implementations=implementations(channels, height, width, side, what),
            tolerance=TOLERANCE,
            work=count_work(channels, height, width, side),
        )
        for channels, height, width, side, what in (QUICK if which == "quick" else FULL)
    ]
