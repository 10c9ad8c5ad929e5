"""The plain method: cosine of every patch with every class, enlarged and averaged over the windows."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ovs_kernels import merge_windows

from ..vocabulary import Vocabulary
from ..windows import View


def patch_scores(view: View, vocabulary: Vocabulary) -> Tensor:
    """Cosine of every patch with every embedding, [K, h, w, P] float32 in [-1, 1]; no temperature, no softmax."""
    return view.features @ vocabulary.embeddings.T


def embedding_scores(views: Sequence[View], vocabulary: Vocabulary, size: tuple[int, int]) -> Tensor:
    """Cosine of every pixel with every embedding.

    Args:
        views: of one photo; each is averaged over its windows, then all of them are.
        vocabulary: P embeddings.
        size: (H, W), the working resolution.

    Returns:
        [P, H, W] float32 in [-1, 1].
    """
    scores = [patch_scores(view, vocabulary).permute(0, 3, 1, 2).contiguous() for view in views]
    return merge_windows(scores, [view.boxes for view in views], size)


def best_of_groups(scores: Tensor, vocabulary: Vocabulary) -> Tensor:
    """Scores of the classes, [G, H, W], from those of the embeddings, [P, H, W]: each class's largest."""
    if vocabulary.groups == list(range(len(vocabulary))):  # one embedding each
        return scores
    index = torch.tensor(vocabulary.groups)[:, None, None].expand_as(scores)
    merged = scores.new_full((len(vocabulary), *scores.shape[1:]), -torch.inf)
    return merged.scatter_reduce_(0, index, scores, "amax")


def coarse(views: Sequence[View], vocabulary: Vocabulary, image: Tensor) -> Tensor:
    """Class scores straight from the patches; edges are as coarse as these.

    Args:
        views: of one photo.
        vocabulary: G classes with P embeddings in all.
        image: [3, H, W], only its size counts.

    Returns:
        [G, H, W] float32: per class its most similar embedding.
    """
    return best_of_groups(embedding_scores(views, vocabulary, tuple(image.shape[1:])), vocabulary)
