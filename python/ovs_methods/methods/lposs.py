"""LPOSS and LPOSS+: label propagation over all patches of all windows, then over pixels."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ovs_kernels import lp_patches, lp_pixels, merge_windows

from ..backbones import EMBEDDED
from ..errors import UserError, operators_judge
from ..vocabulary import Vocabulary
from ..windows import View
from .coarse import best_of_groups, patch_scores
from .presets import named_preset


@dataclasses.dataclass(frozen=True)
class Preset:
    """Constants of the patch stage.

    Attributes:
        windows: as `parse_windows` reads it.
        k: neighbours of a patch, itself included; below 1 a share of all patches.
        gamma: power of the similarities.
        sigma: decay of a link per pixel of distance.
        alpha: weight of the neighbours.
        center: how much of the mean feature is taken off before the patches are compared, 0 to 1.
    """

    windows: str = "224/112"
    k: float = 400
    gamma: float = 3.0
    sigma: float = 0.01
    alpha: float = 0.95
    center: float = 0.0


PRESETS = {"paper": Preset(), "harmless": Preset(windows="none", k=0.1, gamma=20.0, alpha=0.7)}


def neighbours(k: float, nodes: int) -> int:
    """How many neighbours `Preset.k` means in a graph of so many nodes."""
    return max(1, round(k * nodes)) if k < 1 else int(k)


def propagate_view(scores: Tensor, view: View, constants: Preset, **solver: Any) -> Tensor:
    """Propagates scores over the patches of all windows of one set-up.

    Args:
        scores: [K, h, w, C].
        view: the windows; a patch is linked to its nearest in all of them.
        constants: of the graph.
        **solver: mode, max_iter, tol of `ovs_kernels.lp_patches`.

    Returns:
        [K, C, h, w].
    """
    windows, h, w, classes = scores.shape
    features = view.appearance.flatten(0, 2)
    if constants.center:
        features = F.normalize(features - constants.center * features.mean(0), dim=1)
    k = neighbours(constants.k, len(features))
    graph = {"gamma": constants.gamma, "sigma": constants.sigma, "alpha": constants.alpha}
    out = lp_patches(scores.reshape(-1, classes), features, view.positions, k=k, **graph, **solver)
    return out.reshape(windows, h, w, classes).permute(0, 3, 1, 2).contiguous()


def patch_stage(
    views: Sequence[View], scores: Sequence[Tensor], size: tuple[int, int], constants: Preset, **solver: Any
) -> Tensor:
    """Propagated patch scores at the working resolution, [C, H, W]: the set-ups count equally.

    Args:
        views: of one photo, one per set-up.
        scores: [K, h, w, C] of each.
        size: (H, W).
        constants: of the graph.
        **solver: mode, max_iter, tol of `ovs_kernels.lp_patches`.

    Returns:
        [C, H, W] float32.
    """
    done = [propagate_view(part, view, constants, **solver) for part, view in zip(scores, views, strict=True)]
    return merge_windows(done, [view.boxes for view in views], size)


def lposs(
    views: Sequence[View], vocabulary: Vocabulary, image: Tensor, constants: Preset = PRESETS["paper"], **solver: Any
) -> Tensor:
    """LPOSS: every embedding's cosines, propagated over patches.

    Args:
        views: of one photo.
        vocabulary: G classes with P embeddings in all.
        image: [3, H, W] in [0, 1], the photo at the working resolution.
        constants: of the graph.
        **solver: mode, max_iter, tol of `ovs_kernels.lp_patches`.

    Returns:
        [G, H, W] float32.
    """
    scores = [patch_scores(view, vocabulary) for view in views]
    return best_of_groups(patch_stage(views, scores, tuple(image.shape[1:]), constants, **solver), vocabulary)


def lposs_plus(
    views: Sequence[View],
    vocabulary: Vocabulary,
    image: Tensor,
    constants: Preset = PRESETS["paper"],
    propagation: dict[str, Any] | None = None,
    **solver: Any,
) -> Tensor:
    """LPOSS+: LPOSS, whose map is propagated over pixels before the classes' best embeddings are taken.

    Args:
        views: of one photo.
        vocabulary: G classes with P embeddings in all.
        image: [3, H, W] in [0, 1], the photo at the working resolution.
        constants: of the graph.
        propagation: window, tau, alpha, mode, ... of `ovs_kernels.lp_pixels`.
        **solver: mode, max_iter, tol of `ovs_kernels.lp_patches`.

    Returns:
        [G, H, W] float32.
    """
    scores = [patch_scores(view, vocabulary) for view in views]
    merged = patch_stage(views, scores, tuple(image.shape[1:]), constants, **solver)
    return lp_pixels(merged, image, groups=vocabulary.groups, **propagation or {})


def scores_of_windows(scores: Tensor, view: View, size: tuple[int, int]) -> Tensor:
    """Anybody's score map, cut into windows and averaged over their patches.

    Args:
        scores: [C, h, w], of any size.
        view: the windows.
        size: (H, W), the working resolution that the windows' boxes are in.

    Returns:
        [K, h, w, C] float32.
    """
    if scores.shape[1:] != size:
        scores = F.interpolate(scores[None].float(), size, mode="bilinear", align_corners=False)[0]
    grid = view.appearance.shape[1:3]
    crops = [scores[:, y0:y1, x0:x1].float() for y0, x0, y1, x1 in view.boxes.tolist()]
    parts = [F.interpolate(crop[None], grid, mode="area")[0] for crop in crops]
    return torch.stack(parts).permute(0, 2, 3, 1).contiguous()


def propagate_scores(
    scores: Tensor, views: Sequence[View], size: tuple[int, int], constants: Preset = PRESETS["paper"], **solver: Any
) -> Tensor:
    """LPOSS on top of any other method: its score map, propagated over patches.

    Args:
        scores: [C, h, w], of any size and scale.
        views: of the photo.
        size: (H, W), the working resolution.
        constants: of the graph.
        **solver: mode, max_iter, tol of `ovs_kernels.lp_patches`.

    Returns:
        [C, H, W] float32; `ovs_kernels.lp_pixels` on it is LPOSS+.
    """
    return patch_stage(views, [scores_of_windows(scores, view, size) for view in views], size, constants, **solver)


def choose_preset(name: str, backbone: str, changed: dict[str, Any]) -> Preset:
    """The constants that a user means.

    Args:
        name: paper, harmless, or auto: harmless for the embedded backbone, paper for all others.
        backbone: name of the backbone whose features the graph compares.
        changed: fields of `Preset` that the user gave by themselves; None where not.

    Returns:
        The constants.

    Raises:
        UserError: one of them is out of range.
    """
    automatic = "harmless" if backbone == EMBEDDED else "paper"
    preset = named_preset(PRESETS, name, automatic, changed, "but for DSLO")
    if not (preset.k > 0 and (preset.k < 1 or preset.k == int(preset.k))):
        raise UserError("--neighbours", "a whole number, or a share of all patches below 1", preset.k)
    with operators_judge():  # the rest
        nodes = torch.eye(2)
        graph = {"k": neighbours(preset.k, 2), "gamma": preset.gamma, "sigma": preset.sigma, "alpha": preset.alpha}
        lp_patches(nodes, nodes, nodes, **graph)
    return preset
