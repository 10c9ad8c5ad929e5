"""Definitions of `template_entropy` and `fuse_experts` (FLOSS) in plain PyTorch.

Written to be read beside the equations, not to be fast. Any float dtype, any device; run them in float64 to get the
numbers that the kernels are held to.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate

# What is added up is rounded to whole multiples of 2^-32 first, so that sums are exact in any order.
FRACTION_BITS = 32
# MaNo's constants: the order of its norm, and the divergence from the uniform distribution up to which its softrun
# takes the Taylor polynomial instead of the exponential.
MANO_ORDER = 4
MANO_THRESHOLD = 5.0


def template_entropy(
    features: Tensor,
    text_embeddings: Tensor,
    temperature: float = 0.01,
    assume_normalized: bool = False,
    mode: str = "patch",
    boxes: Tensor | None = None,
    size: Sequence[int] | None = None,
    out_size: Sequence[int] | None = None,
    mano: bool = False,
    interpolate: str = "probabilities",
    groups: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor]:
    """Counts, and sums of what ranks a template, by template and predicted class.

    ::

        q_m(p, j) = <f_p, e_mj> / temperature                    p_m(p, .) = softmax_j q_m(p, .)
        k = argmax_j p_m(x, j) (lowest index of equals)          H_m(x) = - sum_j p_m(x, j) ln p_m(x, j)
        counts[m, k] += 1      sums[0, m, k] += H_m(x)           sums[1, m, k] += p_m(x, k)

    with x the patches in mode "patch" and the pixels of the original image in "pixel_exact": there p_m(x, .) is p_m of
    the patches, upsampled to each window, averaged over the windows, and resized; with `interpolate="logits"` that is
    done to q_m instead, and p_m(x, .) is the softmax of the result. With `groups` the embeddings are those of queries,
    and p_m(x, k) for a class k is the largest of the probabilities of its queries, so that p_m(x, .) need not sum to
    one. With `mano`, mode "patch" without groups only::

        sums[2] += sum_j p_m(x, j)^4     sums[3] += sum_j (v_j / sum_i v_i)^4, v = 1 + q + q^2 / 2
        sums[4] += - 1/K sum_j ln p_m(x, j)

    Every term is rounded to a multiple of 2^-32. A patch whose features are zero or not finite has no probabilities,
    and a place that is made from such a patch is left out.

    Args:
        features: [P, d], or [n, h, w, d] in mode "pixel_exact".
        text_embeddings: [M, K, d].
        temperature: divides the cosines.
        assume_normalized: features and embeddings have unit length.
        mode: "patch" or "pixel_exact".
        boxes: [n, 4] integers (y0, x0, y1, x1): where the windows lie in the working image.
        size: height and width of the working image.
        out_size: height and width of the original image.
        mano: also the three sums for MaNo.
        interpolate: what is interpolated between patches in mode "pixel_exact": "probabilities" or "logits".
        groups: the class of each query, 0 to K - 1.

    Returns:
        counts [M, K] int64, and sums [S, M, K] int64 in units of 2^-32, S = 5 with `mano`, else 2.
    """
    num_templates, num_queries, _ = text_embeddings.shape
    num_classes = num_queries if groups is None else max(groups) + 1
    features = unit_rows(features, assume_normalized)
    texts = text_embeddings if assume_normalized else unit_rows(text_embeddings, False)
    counts = torch.zeros(num_templates, num_classes, dtype=torch.int64, device=features.device)
    sums = torch.zeros(5 if mano else 2, num_templates, num_classes, dtype=torch.int64, device=features.device)
    for m in range(num_templates):
        logits = features.reshape(-1, features.shape[-1]) @ texts[m].t() / temperature
        places = logits if interpolate == "logits" else torch.softmax(logits, -1)
        if mode == "pixel_exact":
            grids = places.reshape(*features.shape[:3], num_queries).permute(0, 3, 1, 2).contiguous()
            places = _pixels(grids, boxes, size, out_size).flatten(1).t()
        if interpolate == "logits":
            places = torch.softmax(places, -1)
        if groups is not None:
            places = _best_of_groups(places, groups, num_classes)
        terms = [torch.special.entr(places).sum(-1), places.amax(-1)]
        if mano:
            taylor = 1 + logits + logits * logits / 2
            taylor = taylor / taylor.sum(-1, keepdim=True)
            divergence = torch.logsumexp(logits, -1) - logits.mean(-1)
            terms += [(places**MANO_ORDER).sum(-1), (taylor**MANO_ORDER).sum(-1), divergence]
        known = ~terms[0].isnan()
        labels = places.argmax(-1)[known]
        counts[m].index_add_(0, labels, torch.ones_like(labels))
        for total, term in zip(sums[:, m], terms, strict=True):
            total.index_add_(0, labels, (term[known].double() * 2.0**FRACTION_BITS).round().long())
    return counts, sums


def unit_rows(rows: Tensor, assume_normalized: bool) -> Tensor:
    """Rows [..., d] of unit length; NaN where one is zero or not finite."""
    norms = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    usable = (norms > 0) & (norms < torch.inf)
    return torch.where(usable, rows if assume_normalized else rows / norms, torch.nan)


def _best_of_groups(places: Tensor, groups: Sequence[int], num_classes: int) -> Tensor:
    """Probabilities [places, queries] -> [places, K], the largest of each class."""
    members = [[query for query, group in enumerate(groups) if group == k] for k in range(num_classes)]
    return torch.stack([places[:, queries].amax(-1) for queries in members], -1)


def _pixels(grids: Tensor, boxes: Tensor, size: Sequence[int], out_size: Sequence[int]) -> Tensor:
    """Probabilities, or logits, [n, K, h, w] of the patches -> [K, Ho, Wo] of the pixels."""
    total = grids.new_zeros(grids.shape[1], *size)
    count = grids.new_zeros(*size)
    for grid, (y0, x0, y1, x1) in zip(grids, boxes.tolist(), strict=True):
        total[:, y0:y1, x0:x1] += _upsampled(grid, (y1 - y0, x1 - x0))
        count[y0:y1, x0:x1] += 1
    return _upsampled(total / count, out_size)


def _upsampled(maps: Tensor, size: Sequence[int]) -> Tensor:
    return interpolate(maps[None], size=tuple(size), mode="bilinear", align_corners=False)[0]


def fuse_experts(
    features: Tensor,
    experts: Tensor,
    size: Sequence[int],
    boxes: Tensor | None = None,
    strategy: str = "highest",
    temperature: float = 0.01,
    assume_normalized: bool = False,
    labels: bool = False,
) -> tuple[Tensor, Tensor]:
    """The probabilities of the expert that is responsible for each pixel, window by window.

    ::

        q_e(p, .) = softmax_j <f_p, E_ej> / temperature          Q_e = bilinear upsampling of q_e to the window
        A(x) = { e < K : argmax_j Q_e(x, j) = e }                (lowest index of equals)

        "highest"              R(x, .) = Q_e(x, .) of the e in A(x) with the highest Q_e(x, e), the lowest of equals
        "default_on_conflict"  ... of the e in A(x) if it is the only one
        "average_conflicting"  the mean of Q_e(x, .) over the e in A(x)
        "average"              the mean of Q_e(x, .) over all e < K

    and the default Q_K(x, .) where the rule names nobody. A patch whose features are zero or not finite has uniform
    probabilities in every expert; a pixel with such a patch among the 2 x 2 it is interpolated from has an empty A(x).

    Args:
        features: [n, h, w, d], one patch grid per window.
        experts: [K + 1, K, d], the last one the default; used as they are, not normalised.
        size: height and width of a window; with `boxes` those of the image.
        boxes: [n, 4] integers (y0, x0, y1, x1): merge the windows, each upsampled to its box.
        strategy: see above.
        temperature: divides the products.
        assume_normalized: the features have unit length.
        labels: return the argmax of the probabilities instead.

    Returns:
        [n, K, hw, ww], with `boxes` [K, H, W], with `labels` [n, hw, ww]; and the responsible expert of each pixel
        [n, hw, ww] int32, K for the default, also where several were averaged.
    """
    num_classes = experts.shape[1]
    windows, winners = [], []
    for index, window in enumerate(unit_rows(features, assume_normalized)):
        y0, x0, y1, x1 = (0, 0, *size) if boxes is None else boxes[index].tolist()
        probabilities, winner = _fuse_window(window, experts, (y1 - y0, x1 - x0), strategy, temperature)
        windows.append(probabilities)
        winners.append(winner)
    if boxes is not None:
        total, count = features.new_zeros(num_classes, *size), features.new_zeros(*size)
        for window, (y0, x0, y1, x1) in zip(windows, boxes.tolist(), strict=True):
            total[:, y0:y1, x0:x1] += window
            count[y0:y1, x0:x1] += 1
        return total / count, torch.empty(0, dtype=torch.int32, device=features.device)
    result = torch.stack(windows)
    return (result.argmax(1) if labels else result), torch.stack(winners)


def _fuse_window(window: Tensor, experts: Tensor, size: Sequence[int], strategy: str, temperature: float):
    """R [K, hw, ww] and the responsible experts [hw, ww] of one window [h, w, d], unknown patches being NaN."""
    num_classes = experts.shape[1]
    unknown = window.isnan().any(-1)
    touched = _upsampled(torch.where(unknown, torch.nan, 0.0).to(window.dtype)[None], size)[0].isnan()

    def expert_map(e: int) -> Tensor:
        logits = torch.where(unknown[..., None], 0.0, window @ experts[e].t() / temperature)
        return _upsampled(torch.softmax(logits, -1).permute(2, 0, 1).contiguous(), size)

    default = expert_map(num_classes)
    winners = torch.full(touched.shape, num_classes, dtype=torch.int32, device=window.device)
    best = default.new_full(touched.shape, -1.0)
    chosen, total = (default.new_zeros(default.shape) for _ in range(2))
    votes = winners.new_zeros(winners.shape)
    for e in range(num_classes):
        found = expert_map(e)
        votes_here = (found.argmax(0) == e) & ~touched
        if strategy == "average":
            votes_here = ~touched
        votes += votes_here
        total += found * votes_here
        better = votes_here & (found[e] > best)
        best = torch.where(better, found[e], best)
        chosen = torch.where(better, found, chosen)
        winners[better] = e
    if strategy in ("average", "average_conflicting"):
        winners[votes != 1] = num_classes
        return torch.where(votes > 0, total / votes.clamp(min=1), default), winners
    if strategy == "default_on_conflict":
        winners[votes != 1] = num_classes
    return torch.where(winners < num_classes, chosen, default), winners
