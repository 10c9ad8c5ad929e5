"""NACLIP: cosines, averaged over the windows and enlarged to the photo, where they become probabilities."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ovs_kernels import pamr

from ..backbones.core import CLIP_MEAN, CLIP_STD
from ..images import resized_bands
from ..vocabulary import Vocabulary
from ..windows import View
from .coarse import embedding_scores


def naclip(views: Sequence[View], vocabulary: Vocabulary, image: Tensor) -> Tensor:
    """Cosines of the names, averaged over the windows; `softmax_argmax` makes labels of them.

    Args:
        views: of one photo; each is averaged over its windows, then all of them are.
        vocabulary: P embeddings.
        image: [3, H, W], only its size counts.

    Returns:
        [P, H, W] float32.
    """
    return embedding_scores(views, vocabulary, tuple(image.shape[1:]))


def pamr_scores(
    scores: Tensor,
    image: Tensor,
    size: tuple[int, int],
    *,
    num_iter: int = 10,
    dilations: Sequence[int] = (8, 16),
) -> Tensor:
    """NACLIP's last step, which it leaves to the user: the scores, enlarged to the photo and refined by PAMR there.

    Args:
        scores: [P, h, w] float.
        image: [3, H', W'] in [0, 1], the photo at the working resolution; normalised as CLIP's input and enlarged
            bilinearly to the photo, it says where the edges are.
        size: (H, W) of the photo.
        num_iter: iterations of `ovs_kernels.pamr`.
        dilations: its distances.

    Returns:
        [P, H, W] in the dtype of the scores.
    """
    mean, std = (image.new_tensor(values)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
    picture, scores = (
        F.interpolate(tensor[None], size, mode="bilinear", align_corners=False)[0]
        for tensor in ((image - mean) / std, scores)
    )
    return pamr(picture, scores, num_iter=num_iter, dilations=dilations)


def softmax_argmax(
    scores: Tensor, vocabulary: Vocabulary, size: tuple[int, int], scale: float = 40.0, threshold: float = 0.0
) -> Tensor:
    """Label of every pixel of the photo: the class of the most likely name, of all names' resized scores.

    ::

        p(x, .) = softmax over the names of scale * resized scores      q(x, g) = max of p(x, j) over the names of g
        label   = argmax_g q(x, g), and 0 where q(x, label) < threshold

    The best name is taken of the scores, which order the names as their probabilities do. Works in bands of rows: no
    array of all names at all pixels of the photo is made.

    Args:
        scores: [P, h, w] float, of any size.
        vocabulary: which class the P names belong to.
        size: (H, W) of the photo.
        scale: of the scores before the softmax.
        threshold: probability below which a pixel is of class 0.

    Returns:
        [H, W] int64, the smallest index where classes tie.
    """
    groups = torch.tensor(vocabulary.groups)
    order = groups.argsort(stable=True)  # where names tie, the first one is then of the first class
    scores, groups = scores[order], groups[order]
    labels = torch.empty(size, dtype=torch.int64)
    for top, bottom, band in resized_bands(scores, size):
        best, index = band.max(0)
        found = groups[index]
        if threshold > 0:
            share = band.sub_(best).mul_(scale).exp_().sum(0).reciprocal_()
            found = torch.where(share < threshold, 0, found)
        labels[top:bottom] = found
    return labels
