"""The patch scores, refined along the edges of the photo: LPOSS+'s pixel stage on any backbone."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ovs_kernels import lp_pixels

from ..errors import operators_judge
from ..vocabulary import Vocabulary
from ..windows import View
from .coarse import embedding_scores


def pixels(views: Sequence[View], vocabulary: Vocabulary, image: Tensor, **propagation: Any) -> Tensor:
    """Class scores that follow the photo's edges.

    Every embedding is propagated as a class of its own; the best one of each class is taken afterwards, as
    LPOSS does with the names of its background. The scores are raw cosines: propagation is linear, a
    softmax before it would make the result depend on a temperature.

    Args:
        views: of one photo.
        vocabulary: G classes with P embeddings in all.
        image: [3, H, W] in [0, 1], the photo at the working resolution.
        **propagation: window, tau, alpha, mode, ... of `ovs_kernels.lp_pixels`.

    Returns:
        [G, H, W] float32.
    """
    scores = embedding_scores(views, vocabulary, tuple(image.shape[1:]))
    return lp_pixels(scores, image, groups=vocabulary.groups, **propagation)


def check_propagation(arguments: dict[str, Any]) -> None:
    """Lets the operator itself judge its arguments, before anything is read.

    Raises:
        UserError: with the operator's text.
    """
    with operators_judge():
        lp_pixels(torch.zeros(1, 1, 1), torch.zeros(3, 1, 1), **arguments)
