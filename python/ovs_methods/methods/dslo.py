"""DSLO: a class is where its confident patches send their mass through the self-attention of a model.

DSLO-OP transports it along an entropic optimal path, DSLO-MV lets a Markov chain carry it and asks how fast it
arrives. Neither has windows; both end in joint bilateral upsampling along the edges of the photo.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ovs_kernels import joint_bilateral_upsample, markov_velocity, transport_map

from ..attention import Attention
from ..backbones import EMBEDDED
from ..errors import UserError, operators_judge
from ..images import to_bytes
from ..vocabulary import Vocabulary
from ..windows import View
from .coarse import best_of_groups, patch_scores
from .presets import named_preset

if TYPE_CHECKING:
    from PIL.Image import Image

NMS_MODES = ("class_softmax", "minmax")


@dataclasses.dataclass(frozen=True)
class DsloPreset:
    """Constants of DSLO; docs/methods.md says which are the paper's and which are ours.

    Attributes:
        nms: what the confidence of a patch in a class is: "class_softmax", the class's share of the patch, or
            "minmax", where its cosine lies between the class's least and largest of the photo.
        theta: patches of less confidence are suppressed, per class.
        scale: of the cosines, before either softmax.
        top_k: classes at most, those with the most confidence in kept patches; None is all that keep a patch.
        epsilon: entropic regularisation of DSLO-OP.
        max_iter: Sinkhorn iterations at most.
        tol: marginal error at which they stop.
        exact_iters: take all of `max_iter`.
        readout: side of the plan that becomes the map: "receiver" or "source".
        class_weight: DSLO-OP's maps are multiplied by the total confidence of the class's kept patches to this power.
        n_ipf: iterations that make the attention doubly stochastic, for DSLO-MV.
        temperature: of the attention, below 1 sharper.
        threshold: share of the largest state at which mass has arrived.
        max_steps: of the Markov chain at most.
        rule: what arrival is, see `ovs_kernels.markov_velocity`.
        interpolate: between two steps.
        state_scale: what the states are divided by for rule "delta_literal".
        min_time: of arrival, so that velocities stay finite.
        log_velocity: upsample the logarithm of the velocity.
        sigma_spatial: of the upsampling, in patches.
        sigma_range: of the upsampling, in colours of [0, 1].
        radius: of the upsampling, in patches.
    """

    nms: str = "class_softmax"
    theta: float = 0.5
    scale: float = 100.0
    top_k: int | None = None
    epsilon: float = 0.1
    max_iter: int = 50
    tol: float = 1e-6
    exact_iters: bool = False
    readout: str = "receiver"
    class_weight: float = 0.0
    n_ipf: int = 15
    temperature: float = 1.0
    threshold: float = 0.3
    max_steps: int = 1000
    rule: str = "first_passage"
    interpolate: bool = True
    state_scale: str = "max"
    min_time: float = 1e-3
    log_velocity: bool = False
    sigma_spatial: float = 1.0
    sigma_range: float = 0.1
    radius: int = 2

    def transport(self) -> dict[str, Any]:
        """Arguments of `ovs_kernels.transport_map`."""
        return {name: getattr(self, name) for name in ("epsilon", "max_iter", "tol", "exact_iters", "readout")}

    def markov(self) -> dict[str, Any]:
        """Arguments of `ovs_kernels.markov_velocity`."""
        names = ("n_ipf", "temperature", "threshold", "max_steps", "rule", "interpolate", "state_scale", "min_time")
        return {name: getattr(self, name) for name in names}

    def upsampling(self) -> dict[str, Any]:
        """Arguments of `ovs_kernels.joint_bilateral_upsample`."""
        return {name: getattr(self, name) for name in ("sigma_spatial", "sigma_range", "radius")}


@dataclasses.dataclass(frozen=True)
class Seeds:
    """Where the classes start: the outcome of suppression, early rejection and normalisation.

    Attributes:
        distributions: [A, N] float32, each row sums to 1 over the patches; suppressed patches are 0.
        classes: [A] int64, which of the C classes a row is, ascending; the others were rejected.
        confidence: [A] float32, total confidence of the kept patches.
    """

    distributions: Tensor
    classes: Tensor
    confidence: Tensor


def seeds(logits: Tensor, constants: DsloPreset) -> Seeds:
    """Suppresses the patches that are not confident, drops the classes that keep none, normalises over patches.

    Args:
        logits: [C, N] float, cosines of the classes and the patches.
        constants: nms, theta, scale and top_k count.

    Returns:
        The start of every class that survives. If none does, every patch is kept by its most confident class.

    Raises:
        ValueError: logits are not [C, N] or not finite.
    """
    if logits.ndim != 2 or 0 in logits.shape:
        raise ValueError(f"dslo: logits: expected [C, N] that is not empty, got {list(logits.shape)}")
    if not bool(logits.isfinite().all()):
        raise ValueError("dslo: logits: expected finite numbers, got NaN or infinity")
    scaled = logits.double() * constants.scale
    if constants.nms == "class_softmax":
        confidence = scaled.softmax(0)
    else:
        least, most = scaled.amin(1, keepdim=True), scaled.amax(1, keepdim=True)
        # A class that is the same everywhere stands out nowhere.
        confidence = torch.where(most > least, (scaled - least) / (most - least), 0.0)
    keep = confidence >= constants.theta
    if not keep.any():
        keep = torch.arange(len(logits))[:, None] == confidence.argmax(0)
    total = torch.where(keep, confidence, 0.0).sum(1)
    classes = keep.any(1).nonzero()[:, 0]
    if constants.top_k is not None and len(classes) > constants.top_k:
        order = total[classes].sort(descending=True, stable=True).indices[: constants.top_k]
        classes = classes[order].sort().values
    chosen = scaled[classes].masked_fill(~keep[classes], -torch.inf)  # softmax subtracts each row's maximum
    return Seeds(chosen.softmax(1).float(), classes, total[classes].float())


def optimal_path(start: Seeds, attention: Attention, constants: DsloPreset) -> Tensor:
    """DSLO-OP's maps, [A, N]: what the patches receive of each class, by `ovs_kernels.transport_map`."""
    maps = transport_map(attention.matrix, start.distributions, **constants.transport())
    return maps * (start.confidence**constants.class_weight)[:, None]


def maximum_velocity(start: Seeds, attention: Attention, constants: DsloPreset) -> Tensor:
    """DSLO-MV's maps, [A, N]: how fast each class reaches the patches, by `ovs_kernels.markov_velocity`."""
    maps = markov_velocity(attention.matrix, start.distributions, **constants.markov())
    return maps.clamp_min(torch.finfo(maps.dtype).tiny).log() if constants.log_velocity else maps


DSLO_PRESETS = {"paper": DsloPreset(), "embedded": DsloPreset(scale=7.0, class_weight=0.65, log_velocity=True)}

_MAPS = {"dslo-op": optimal_path, "dslo-mv": maximum_velocity}


def class_maps(maps: Tensor, classes: Tensor, logits: Tensor) -> Tensor:
    """The maps of the active classes as scores of all of them.

    Where several classes are active and all of their maps are equal, no class arrives: such a patch votes for the
    class of its largest logit, as strongly as the other patches do in the median.

    Args:
        maps: [A, N] of the active classes.
        classes: [A] which they are.
        logits: [C, N] of all classes.

    Returns:
        [C, N]; a class that was rejected, and for which no patch votes, is -inf everywhere.
    """
    scores = maps.new_full(logits.shape, -torch.inf)
    scores[classes] = maps
    equal = (maps == maps[0]).all(0)
    if len(maps) == 1 or not equal.any():
        return scores
    floor, winner = maps.min(), logits[:, equal].argmax(0)
    vote = floor + 1 if equal.all() else maps[:, ~equal].amax(0).median()
    scores[winner.unique()] = scores[winner.unique()].clamp_min(floor)  # a rejected class that gets a vote
    scores[:, equal] = scores[:, equal].clamp_max(floor)
    scores[winner, equal.nonzero()[:, 0]] = vote
    return scores


def dslo(method: str, logits: Tensor, attention: Attention, constants: DsloPreset = DsloPreset()) -> Tensor:
    """Class maps on the attention's grid from anybody's logits.

    Args:
        method: "dslo-op" or "dslo-mv".
        logits: [C, h, w] cosines, on any grid of the whole photo; resized bilinearly to that of the attention.
        attention: of the photo.
        constants: of the method.

    Returns:
        [C, h', w'] float32 on the attention's grid, -inf for classes that were rejected; `upsample_argmax` makes
        labels of it.

    Raises:
        ValueError: logits are not [C, h, w] or not finite.
    """
    if logits.ndim != 3 or 0 in logits.shape:
        raise ValueError(f"dslo: logits: expected [C, h, w] that is not empty, got {list(logits.shape)}")
    if tuple(logits.shape[1:]) != attention.grid:
        logits = F.interpolate(logits[None].float(), attention.grid, mode="bilinear", align_corners=False)[0]
    flat = logits.flatten(1).float()
    start = seeds(flat, constants)
    maps = _MAPS[method](start, attention, constants)
    return class_maps(maps, start.classes, flat).reshape(-1, *attention.grid)


def upsample_argmax(scores: Tensor, photo: "Image", constants: DsloPreset = DsloPreset()) -> Tensor:
    """Label of every pixel of the photo: argmax of the scores, upsampled along its edges.

    Args:
        scores: [C, h, w] float32; classes that are -inf everywhere never win.
        photo: mode RGB; its size is that of the labels.
        constants: of the upsampling.

    Returns:
        [H, W] int64, the smallest index where classes tie.
    """
    active = (scores > -torch.inf).flatten(1).any(1).nonzero()[:, 0]
    size = photo.height, photo.width
    # A photo with fewer pixels than patches is enlarged to as many, and their labels are thinned out again.
    wide = tuple(max(pair) for pair in zip(size, scores.shape[1:], strict=True))
    guide = to_bytes(photo, wide)
    labels = joint_bilateral_upsample(scores[active].contiguous(), guide, labels=True, **constants.upsampling())
    if wide != size:
        rows, columns = (((2 * torch.arange(n) + 1) * m) // (2 * n) for n, m in zip(size, wide, strict=True))
        labels = labels[rows[:, None], columns]
    return active[labels.long()]


def view_logits(views: Sequence[View], vocabulary: Vocabulary) -> Tensor:
    """[G, h, w] cosines of the classes, each its best embedding, on the patches of the whole photo.

    Raises:
        ValueError: there is more than the one window of a whole photo.
    """
    if len(views) != 1 or len(views[0].features) != 1:
        windows = sum(len(view.features) for view in views)
        raise ValueError(f"dslo: views: expected the whole photo in one window, got {windows} windows")
    return best_of_groups(patch_scores(views[0], vocabulary)[0].permute(2, 0, 1), vocabulary)


def dslo_op(
    views: Sequence[View],
    vocabulary: Vocabulary,
    image: Tensor,
    attention: Attention,
    constants: DsloPreset = DsloPreset(),
) -> Tensor:
    """DSLO-OP: class scores on the attention's grid; `upsample_argmax` makes labels of them.

    Args:
        views: the view of the whole photo.
        vocabulary: G classes with P embeddings in all.
        image: as every method takes it; only the photo itself counts, later, in `upsample_argmax`.
        attention: of the photo.
        constants: of the method.

    Returns:
        [G, h, w] float32, -inf for classes that were rejected.
    """
    return dslo("dslo-op", view_logits(views, vocabulary), attention, constants)


def dslo_mv(
    views: Sequence[View],
    vocabulary: Vocabulary,
    image: Tensor,
    attention: Attention,
    constants: DsloPreset = DsloPreset(),
) -> Tensor:
    """DSLO-MV: class scores on the attention's grid; arguments and result as those of `dslo_op`."""
    return dslo("dslo-mv", view_logits(views, vocabulary), attention, constants)


def choose_dslo_preset(name: str, backbone: str, changed: dict[str, Any]) -> DsloPreset:
    """The constants that a user means.

    Args:
        name: paper, embedded, or auto: embedded for the embedded backbone, paper for all others.
        backbone: name of the backbone whose cosines the classes start from.
        changed: fields of `DsloPreset` that the user gave by themselves; None where not.

    Returns:
        The constants.

    Raises:
        UserError: one of them is out of range.
    """
    automatic = "embedded" if backbone == EMBEDDED else "paper"
    preset = named_preset(DSLO_PRESETS, name, automatic, changed, "for DSLO")
    checks = [
        ("--nms", " or ".join(NMS_MODES), preset.nms, preset.nms in NMS_MODES),
        ("--theta", "a number from 0 to 1", preset.theta, 0 <= preset.theta <= 1),
        ("--scale", "a positive number", preset.scale, 0 < preset.scale < math.inf),
        ("top_k", "None, or 1 or more classes", preset.top_k, preset.top_k is None or preset.top_k >= 1),
        ("readout", "receiver or source", preset.readout, preset.readout in ("receiver", "source")),
        ("class_weight", "0 or more", preset.class_weight, 0 <= preset.class_weight < math.inf),
    ]
    for argument, expected, got, fine in checks:
        if not fine:
            raise UserError(argument, expected, got)
    with operators_judge():  # the rest
        one = torch.ones(1, 1)
        transport_map(one, one, **preset.transport())
        markov_velocity(one, one, **preset.markov())
        joint_bilateral_upsample(one[None], torch.zeros(3, 1, 1), labels=True, **preset.upsampling())
    return preset
