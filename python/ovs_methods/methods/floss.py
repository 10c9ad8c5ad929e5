"""FLOSS: the templates that a class is an expert with, and the fusion of the experts' opinions.

The classes' rankings come from `ovs rank-templates`; features and head are those of one of RECIPES.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ovs_kernels import fuse_experts

from ..windows import View

FUSIONS = ("highest", "default_on_conflict", "average_conflicting", "average")


def expert_embeddings(
    embeddings: Tensor, experts: Sequence[Sequence[int] | None], groups: Sequence[int], renormalize: bool = False
) -> Tensor:
    """The classifiers that are fused: one per name, made of its class's templates, and the default of all templates.

    Args:
        embeddings: [M, P, D], of length 1: template m with name j.
        experts: for each of the G classes its templates, numbers below M; None is all of them.
        groups: [P] the class that each name belongs to.
        renormalize: the means get length 1 again, as NACLIP's do.

    Returns:
        [P + 1, P, D]: expert e's embedding of name j is the mean over the templates of e's class; the last expert is
        the default.

    Raises:
        ValueError: a template that there is not, or a class without any.
    """
    templates, names, _ = embeddings.shape
    if len(groups) != names or not all(0 <= group < len(experts) for group in groups):
        raise ValueError(
            f"expert_embeddings: groups: expected {names} classes below {len(experts)}, got {list(groups)}"
        )
    owners = torch.tensor(groups)
    made = embeddings.new_empty(names + 1, names, embeddings.shape[-1])
    made[-1] = embeddings.mean(0)
    for index, chosen in enumerate(experts):
        if chosen is not None and not (chosen and all(0 <= m < templates for m in chosen)):
            wanted = f"at least one template below {templates}, or None"
            raise ValueError(f"expert_embeddings: experts[{index}]: expected {wanted}, got {list(chosen)}")
        made[:-1][owners == index] = made[-1] if chosen is None else embeddings[list(chosen)].mean(0)
    return made.div_(made.norm(dim=-1, keepdim=True).clamp_min_(1e-12)) if renormalize else made


def floss(
    views: Sequence[View], experts: Tensor, image: Tensor, scale: float = 100.0, fusion: str = "highest"
) -> Tensor:
    """Probabilities of the names by the experts that speak for each pixel, averaged over the windows.

    The experts are fused window by window, before the average, as in the released code.

    Args:
        views: of one photo; each is averaged over its windows, then all of them are.
        experts: [P + 1, P, D] of `expert_embeddings`.
        image: [3, H, W], only its size counts.
        scale: of the products before the softmax.
        fusion: strategy of `ovs_kernels.fuse_experts`, one of FUSIONS.

    Returns:
        [P, H, W] float32.
    """
    size = tuple(image.shape[1:])
    rule = {"strategy": fusion, "temperature": 1 / scale, "assume_normalized": True}
    total = None
    for view in views:
        fused = fuse_experts(view.features, experts, size, boxes=view.boxes, **rule)
        total = fused if total is None else total.add_(fused)
    return total.div_(len(views))
