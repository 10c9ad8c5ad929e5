"""What every vocabulary ends in: named classes with one or more unit embeddings each."""

import dataclasses

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import UserError

MAX_ID = 254  # 255 means "ignore" in a mask
_KMEANS_STEPS = 20


@dataclasses.dataclass(frozen=True)
class ClassExamples:
    """Embeddings of one class from one source.

    Attributes:
        name: of the class.
        embeddings: [P, D], of length 1.
        id: the value the class has in a mask, or None where it has none.
    """

    name: str
    embeddings: Tensor
    id: int | None = None


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """The classes to choose from, in order of their ids.

    Attributes:
        names: [G] of the classes.
        ids: [G] their values in a label image.
        embeddings: [P, D] of all classes, of length 1.
        groups: [P] index of the class each embedding belongs to.
    """

    names: list[str]
    ids: list[int]
    embeddings: Tensor
    groups: list[int]

    def __len__(self) -> int:
        return len(self.names)


def prototypes(features: Tensor, weights: Tensor, count: int) -> Tensor:
    """The weighted mean of unit features, or the means of `count` clusters of them (spherical k-means).

    A class is rarely one blob: a person is a face, hair and a jacket, whose mean is none of them.
    Deterministic: starts at the feature nearest to the mean and adds the one farthest from those already
    chosen.

    Args:
        features: [M, D], of length 1.
        weights: [M], not negative, with a positive sum.
        count: embeddings at most.

    Returns:
        [P, D], of length 1; P = min(count, M).
    """
    mean = F.normalize((features * weights[:, None]).sum(0, keepdim=True), dim=-1)
    if count == 1:
        return mean
    if len(features) <= count:
        return features
    centres = features[(features @ mean[0]).argmax()][None]
    while len(centres) < count:
        farthest = (features @ centres.T).amax(1).argmin()
        centres = torch.cat([centres, features[farthest][None]])
    for _ in range(_KMEANS_STEPS):
        nearest = (features @ centres.T).argmax(1)
        sums = torch.zeros_like(centres).index_add_(0, nearest, features * weights[:, None])
        moved = torch.where(sums.norm(dim=1, keepdim=True) > 0, F.normalize(sums, dim=-1), centres)
        if torch.equal(moved, centres):
            break
        centres = moved
    return centres


def check_distinct(names: list[str]) -> None:
    """Raises UserError for fewer than two different class names."""
    if len(set(names)) < 2:
        raise UserError(
            "--point and --exemplar",
            "at least two classes to tell apart",
            f"only '{names[0]}'" if names else "none",
            "add one for everything else, e.g. --point background:X,Y",
        )


def build_vocabulary(examples: list[ClassExamples]) -> Vocabulary:
    """Merges examples of the same name and gives every class an id.

    Args:
        examples: from points and masks.

    Returns:
        The vocabulary; a class from a mask keeps its value there, the others get the smallest free ids in
        order.

    Raises:
        UserError: fewer than two classes, or more than there are ids.
    """
    by_name: dict[str, list[ClassExamples]] = {}
    for example in examples:
        by_name.setdefault(example.name, []).append(example)
    check_distinct(list(by_name))
    ids = {}
    for name, group in by_name.items():
        ids[name] = next((example.id for example in group if example.id is not None), None)
    free = iter(sorted(set(range(MAX_ID + 1)) - set(ids.values())))
    for name, value in ids.items():
        if value is None:
            ids[name] = next(free, None)
            if ids[name] is None:
                raise UserError("--point, --exemplar and --classes", f"at most {MAX_ID + 1} classes", len(by_name))
    names = sorted(by_name, key=ids.__getitem__)
    embeddings, groups = [], []
    for index, name in enumerate(names):
        for example in by_name[name]:
            embeddings.append(example.embeddings)
            groups += [index] * len(example.embeddings)
    return Vocabulary(names, [ids[name] for name in names], torch.cat(embeddings), groups)
