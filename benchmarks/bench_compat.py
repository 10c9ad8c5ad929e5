"""The drop-ins against the code that they stand for: LPOSS's pixel step, and FeatUp's learned upsampler."""

import functools

import bench_pixels as pixels
import peers_adaptive as adaptive
import peers_compat as peers
import torch
from harness import OURS, PUBLISHED, PYTORCH, Case, Implementation, Inputs, Tolerance, Work
from torch import Tensor

from ovs_kernels.compat import featup, lposs
from ovs_kernels.reference import adaptive as reference

# (H, W), classes
FULL_PIXELS = [((448, 448), 21)]
QUICK_PIXELS = [((40, 56), 5)]
# Channels, (h, w) of the features, which are enlarged 16 times: a ViT-S on a photo of 224 pixels; VOC's classes.
FULL_FEATURES = [(21, (32, 32)), (384, (14, 14))]
QUICK_FEATURES = [(5, (3, 4))]

FEATURES_TOLERANCE = Tolerance(labels=0.999, error=1e-5)
KEYS, TAPS = 32, 49
# The published form writes all neighbourhoods out; above this many bytes of them it is left out.
MOST_WRITTEN_OUT = 3 * 2**30


def make_pixels(size: tuple[int, int], num_classes: int, device: torch.device) -> Inputs:
    """`scores` and `image` as of `lp_pixels`, and as LPOSS has them: `preds` [H W, C] and `img` [1, 3, H, W]."""
    inputs = pixels.make_inputs(*size, num_classes, device)
    preds = inputs["scores"].flatten(1).t().contiguous()
    return inputs | {"preds": preds, "img": inputs["image"][None]}


def pixel_implementations(device: torch.device) -> list[Implementation]:
    """Ours and the published functions."""
    options = {"tau": pixels.TAU, "neigh": pixels.WINDOW // 2, "alpha": pixels.ALPHA}

    def shaped(inputs: Inputs, result: Tensor) -> Tensor:
        return result.t().reshape(inputs["scores"].shape)

    def ours(inputs: Inputs) -> Tensor:
        laplacian = lposs.get_lposs_plus_laplacian(inputs["img"], inputs["preds"], **options)
        return shaped(inputs, lposs.perform_lp(laplacian, inputs["preds"]))

    def published(inputs: Inputs) -> Tensor:
        return shaped(inputs, peers.pixel_step(inputs["img"], inputs["preds"], **options))

    left_out = None if device.type == "cpu" else "SciPy has no GPU; family pixels runs the CuPy form"
    return [
        Implementation("ovs_kernels", OURS, ours),
        Implementation("published functions (SciPy)", PUBLISHED, published, left_out),
    ]


def make_features(channels: int, size: tuple[int, int], device: torch.device) -> Inputs:
    """`source` [1, C, h, w], smooth `guidance` [1, 3, 16 h, 16 w], and the state of the module."""
    generator = torch.Generator().manual_seed(1)
    guidance = torch.rand(1, 3, 4 * size[0], 4 * size[1], generator=generator)
    guidance = torch.nn.functional.interpolate(guidance, scale_factor=4, mode="bilinear").contiguous()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        state = featup.JBUStack(channels).state_dict()
    inputs = {"source": torch.randn(1, channels, *size, generator=generator), "guidance": guidance, **state}
    return {name: tensor.to(device) for name, tensor in inputs.items()}


def _state(inputs: Inputs) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in inputs.items() if name not in ("source", "guidance")}


def features_implementations(channels: int, size: tuple[int, int]) -> list[Implementation]:
    """Ours and everybody else."""

    @functools.cache
    def module(device: torch.device) -> featup.JBUStack:
        return featup.JBUStack(channels).eval().to(device)

    def ours(inputs: Inputs) -> Tensor:
        made = module(inputs["source"].device)
        if made.up1.range_temp.data_ptr() != inputs["up1.range_temp"].data_ptr():
            made.load_state_dict(_state(inputs), assign=True)
        return made(inputs["source"], inputs["guidance"])[0]

    def peer(conv, products):
        def run(inputs: Inputs) -> Tensor:
            made = peers.learned_upsampling(_state(inputs), inputs["source"], inputs["guidance"], conv, products)
            return made[0]

        return run

    taps = functools.partial(adaptive.taps, band=16), functools.partial(adaptive.filters_gradient_taps, band=16)
    written_out = 4 * max(channels, KEYS) * TAPS * 256 * size[0] * size[1]
    too_large = f"{written_out / 2**30:.1f} GB of neighbourhoods" if written_out > MOST_WRITTEN_OUT else None
    return [
        Implementation("ovs_kernels", OURS, ours),
        Implementation("PyTorch tap by tap, bands of 16", PYTORCH, peer(*taps)),
        Implementation(
            "FeatUp with unfold", PUBLISHED, peer(adaptive.written_out, peers.products_written_out), too_large
        ),
    ]


def features_expected(inputs: Inputs) -> Tensor:
    """In float64, with the definitions of `adaptive_conv` and its gradient."""
    double = {name: tensor.double() for name, tensor in inputs.items()}
    conv, products = reference.adaptive_conv, reference.adaptive_conv_filters_backward
    return peers.learned_upsampling(_state(double), double["source"], double["guidance"], conv, products)[0]


def features_work(channels: int, size: tuple[int, int]) -> Work:
    """Flops, bytes and exponentials of the four steps."""
    pixels = sum(4**step for step in (1, 2, 3, 4)) * size[0] * size[1]
    per_pixel = 3 * KEYS + KEYS**2 + KEYS * TAPS + (TAPS + 3) * TAPS + TAPS**2 + channels * TAPS
    large = 256 * size[0] * size[1]
    num_bytes = 4 * (channels * (large + size[0] * size[1]) + 3 * large)
    how = "2 flops per product of the four steps and the correction; features, guidance and result once"
    return Work(2 * (pixels * per_pixel + channels**2 * large), num_bytes, pixels * TAPS, how)


def cases(which: str, device: torch.device) -> list[Case]:
    """The cases of a run.

    Args:
        which: "quick" (small cases with every peer) or "full".
        device: where the inputs lie.
    """
    made = []
    for size, num_classes in QUICK_PIXELS if which == "quick" else FULL_PIXELS:
        made.append(
            Case(
                name=f"lposs pixel step {size[0]}x{size[1]} C={num_classes}",
                sizes={"H": size[0], "W": size[1], "C": num_classes},
                options={"tau": pixels.TAU, "neigh": pixels.WINDOW // 2, "alpha": pixels.ALPHA},
                source=f"{pixels.photo(*size)[1]}; scores: seeded blobs",
                inputs=functools.partial(make_pixels, size, num_classes, device),
                expected=pixels.Definition("official"),
                implementations=pixel_implementations(device),
                tolerance=pixels.TOLERANCES["official"],
                work=pixels.count_work(*size, num_classes, "official", device),
            )
        )
    for channels, size in QUICK_FEATURES if which == "quick" else FULL_FEATURES:
        made.append(
            Case(
                name=f"featup JBUStack C={channels} {size[0]}x{size[1]} to {16 * size[0]}x{16 * size[1]}",
                sizes={"C": channels, "h": size[0], "w": size[1]},
                options={"radius": 3, "steps": 4},
                source="seeded normal features, smooth guidance, weights as initialised",
                inputs=functools.partial(make_features, channels, size, device),
                expected=features_expected,
                implementations=features_implementations(channels, size),
                tolerance=FEATURES_TOLERANCE,
                work=features_work(channels, size),
            )
        )
    return made
