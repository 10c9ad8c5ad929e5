"""The plain method: cosine of every patch with every class, enlarged."""

import torch
from torch import Tensor
from torch.nn import functional as F

from ..vocabulary import Vocabulary


def embedding_scores(features: Tensor, vocabulary: Vocabulary, size: tuple[int, int]) -> Tensor:
    """Cosine of every pixel's patch feature with every embedding, bilinear between patches.

    Args:
        features: [h, w, D], of length 1.
        vocabulary: P embeddings.
        size: (H, W), the working resolution.

    Returns:
        [P, H, W] float32 in [-1, 1].
    """
    cosines = torch.einsum("hwd,pd->phw", features, vocabulary.embeddings)
    return F.interpolate(cosines[None], size, mode="bilinear", align_corners=False)[0]


def coarse(features: Tensor, vocabulary: Vocabulary, image: Tensor) -> Tensor:
    """Class scores straight from the patches; edges are as coarse as these.

    Args:
        features: [h, w, D], of length 1.
        vocabulary: G classes with P embeddings in all.
        image: [3, H, W], only its size counts.

    Returns:
        [G, H, W] float32: per class its most similar embedding.
    """
    scores = embedding_scores(features, vocabulary, image.shape[1:])
    index = torch.tensor(vocabulary.groups)[:, None, None].expand_as(scores)
    merged = scores.new_full((len(vocabulary), *scores.shape[1:]), -torch.inf)
    return merged.scatter_reduce_(0, index, scores, "amax")
