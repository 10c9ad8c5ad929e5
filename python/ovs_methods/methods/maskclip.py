"""MaskCLIP: every patch's probabilities of the names, enlarged and averaged over the windows."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ovs_kernels import merge_windows

from ..vocabulary import Vocabulary
from ..windows import View
from .coarse import best_of_groups, patch_scores


def maskclip(views: Sequence[View], vocabulary: Vocabulary, image: Tensor, scale: float = 100.0) -> Tensor:
    """Probabilities of the classes; the softmax is over all names and at the patches, before they are enlarged.

    Args:
        views: of one photo; each is averaged over its windows, then all of them are.
        vocabulary: G classes with P embeddings in all.
        image: [3, H, W], only its size counts.
        scale: of the cosines before the softmax.

    Returns:
        [G, H, W] float32: per class its most likely name.
    """
    scores = [torch.softmax(scale * patch_scores(view, vocabulary), -1) for view in views]
    planes = [part.permute(0, 3, 1, 2).contiguous() for part in scores]
    return best_of_groups(merge_windows(planes, [view.boxes for view in views], tuple(image.shape[1:])), vocabulary)
