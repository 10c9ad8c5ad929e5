"""What `template_entropy` and `fuse_experts` are measured against: as published, and the best that PyTorch does.

Entropies: features [P, d] or one window [h, w, d], texts [M, K, d], all of unit length -> [2, M, K]: the sum of the
entropies in nats and the count, by template and predicted class. Fusion: one window [h, w, d], experts [K + 1, K, d]
-> [K, H, W].
"""

import torch
from torch import Tensor
from torch.nn.functional import interpolate

SCALE = 100.0  # 1 / temperature
Size = tuple[int, int]


def _upsample(maps: Tensor, size: Size) -> Tensor:
    return interpolate(maps, size=size, mode="bilinear", align_corners=False)


def _tally(entropy: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """[2, K] from one template's entropies and labels."""
    sums = torch.bincount(labels, weights=entropy, minlength=num_classes)
    return torch.stack((sums.double(), torch.bincount(labels, minlength=num_classes).double()))


# Patches ----------------------------------------------------------------------------------------------------


def patches_at_once(features: Tensor, texts: Tensor) -> Tensor:
    """Everything in one go: [P, M, K] logits."""
    num_templates, num_classes, _ = texts.shape
    logits = (features @ texts.flatten(0, 1).t()).mul_(SCALE).view(len(features), num_templates, num_classes)
    labels = logits.argmax(-1)
    logs = torch.log_softmax(logits, -1)
    entropy = -(logs.exp() * logs).sum(-1)
    found = [_tally(entropy[:, m], labels[:, m], num_classes) for m in range(num_templates)]
    return torch.stack(found, 1)


def patches_by_template(features: Tensor, texts: Tensor) -> Tensor:
    """A template at a time, in place: what stays in a cache."""
    found = []
    for embeddings in texts:
        logits = (features @ embeddings.t()).mul_(SCALE)
        top, labels = logits.max(-1, keepdim=True)
        logits -= top
        exponentials = logits.exp()
        total = exponentials.sum(-1)
        entropy = total.log() - (exponentials.mul_(logits)).sum(-1).div_(total)
        found.append(_tally(entropy, labels[:, 0], len(embeddings)))
    return torch.stack(found, 1)


def patches_in_tiles(features: Tensor, texts: Tensor) -> Tensor:
    """Some templates at a time, classes across the rows: a larger product and reductions over the outer axis."""
    num_templates, num_classes, _ = texts.shape
    columns = features.t().contiguous()
    found = []
    for first in range(0, num_templates, 6):
        part = texts[first : first + 6]
        logits = torch.mm(part.flatten(0, 1), columns).mul_(SCALE).view(len(part), num_classes, -1)
        top, labels = logits.max(1, keepdim=True)
        logits -= top
        exponentials = logits.exp()
        total = exponentials.sum(1)
        entropy = total.log() - exponentials.mul_(logits).sum(1).div_(total)
        found += [_tally(entropy[m], labels[m, 0], num_classes) for m in range(len(part))]
    return torch.stack(found, 1)


# Pixels -----------------------------------------------------------------------------------------------------


def pixels_published(window: Tensor, texts: Tensor, size: Size, templates_at_once: int) -> Tensor:
    """As released: softmax per patch, every template's map upsampled, class by class the mean entropy of its pixels.

    Templates are taken some at a time, since all of them do not fit.
    """
    num_templates, num_classes, _ = texts.shape
    found = torch.zeros(2, num_templates, num_classes, dtype=torch.float64)
    for first in range(0, num_templates, templates_at_once):
        part = texts[first : first + templates_at_once]
        logits = torch.einsum("hwd,mkd->mkhw", window, part) * SCALE
        maps = _upsample(torch.softmax(logits, 1), size)
        for m, probabilities in enumerate(maps, first):
            probabilities = _upsample(probabilities[None], size)[0]
            labels = probabilities.argmax(0)
            for k in range(num_classes):
                mask = labels == k
                if not mask.any():
                    continue
                mine = probabilities[:, mask].float()
                entropy = -(mine * torch.log(mine + 1e-10)).sum(0)
                count = mask.sum().item()
                found[0, m, k] += entropy.mean().item() * count
                found[1, m, k] += count
    return found


def logits_published(window: Tensor, texts: Tensor, size: Size, templates_at_once: int) -> Tensor:
    """NACLIP's order as released: cosines upsampled and resized, softmax at the pixels, class by class the mean."""
    num_templates, num_classes, _ = texts.shape
    found = torch.zeros(2, num_templates, num_classes, dtype=torch.float64)
    for first in range(0, num_templates, templates_at_once):
        part = texts[first : first + templates_at_once]
        maps = _upsample(torch.einsum("hwd,mkd->mkhw", window, part), size)
        for m, cosines in enumerate(maps, first):
            probabilities = torch.softmax(_upsample(cosines[None], size)[0] * SCALE, 0)
            labels = probabilities.argmax(0)
            for k in range(num_classes):
                mask = labels == k
                if not mask.any():
                    continue
                mine = probabilities[:, mask]
                count = mask.sum().item()
                found[0, m, k] += -(mine * torch.log(mine + 1e-10)).sum(0).mean().item() * count
                found[1, m, k] += count
    return found


def logits_by_rows(window: Tensor, texts: Tensor, size: Size, band: int = 16) -> Tensor:
    """NACLIP's order, a template and some rows at a time: interpolation as two products, exponentials in place."""
    num_classes = texts.shape[1]
    vertical, horizontal = (_axis(n_in, n_out, window) for n_in, n_out in zip(window.shape[:2], size, strict=True))
    rows = window.flatten(0, 1)
    found = []
    for embeddings in texts:
        stretched = (embeddings @ rows.t()).mul_(SCALE).view(num_classes, *window.shape[:2]) @ horizontal.t()
        total = torch.zeros(2, num_classes, dtype=torch.float64)
        for y in range(0, size[0], band):
            logits = (vertical[y : y + band] @ stretched).flatten(1)
            top, labels = logits.max(0, keepdim=True)
            logits -= top
            exponentials = logits.exp()
            mass = exponentials.sum(0)
            total += _tally(mass.log() - exponentials.mul_(logits).sum(0).div_(mass), labels[0], num_classes)
        found.append(total)
    return torch.stack(found, 1)


def pixels_by_template(window: Tensor, texts: Tensor, size: Size) -> Tensor:
    """A template at a time, in place."""
    rows = window.flatten(0, 1)
    found = []
    for embeddings in texts:
        shares = torch.softmax(embeddings @ rows.t() * SCALE, 0).view(1, len(embeddings), *window.shape[:2])
        maps = _upsample(shares, size)[0].flatten(1)
        labels = maps.argmax(0)
        entropy = torch.special.entr(maps).sum(0)
        found.append(_tally(entropy, labels, len(embeddings)))
    return torch.stack(found, 1)


def pixels_by_rows(window: Tensor, texts: Tensor, size: Size, band: int = 16) -> Tensor:
    """A template and some rows at a time, so that the maps stay in a cache; interpolation as two products."""
    num_classes = texts.shape[1]
    vertical, horizontal = (_axis(n_in, n_out, window) for n_in, n_out in zip(window.shape[:2], size, strict=True))
    rows = window.flatten(0, 1)
    found = []
    for embeddings in texts:
        shares = torch.softmax(embeddings @ rows.t() * SCALE, 0).view(num_classes, *window.shape[:2])
        stretched = shares @ horizontal.t()  # [K, h, W]
        total = torch.zeros(2, num_classes, dtype=torch.float64)
        for y in range(0, size[0], band):
            maps = (vertical[y : y + band] @ stretched).flatten(1)
            labels = maps.argmax(0)
            logs = maps.clamp(min=1e-30).log_()
            total += _tally(logs.mul_(maps).sum(0).neg_(), labels, num_classes)
        found.append(total)
    return torch.stack(found, 1)


def _axis(n_in: int, n_out: int, like: Tensor) -> Tensor:
    """[n_out, n_in] interpolation weights."""
    unit = torch.eye(n_in, dtype=like.dtype)[None]
    return interpolate(unit, size=n_out, mode="linear", align_corners=False)[0].t().contiguous()


# Fusion -----------------------------------------------------------------------------------------------------


def fuse_published(window: Tensor, experts: Tensor, size: Size) -> Tensor:
    """As released: all K + 1 maps upsampled, then the winner by gathers."""
    num_classes = experts.shape[1]
    logits = torch.einsum("hwd,ekd->ekhw", window, experts) * SCALE
    maps = _upsample(torch.softmax(logits, 1), size)
    labels = maps.argmax(1)
    own = torch.arange(num_classes)[:, None, None]
    votes = labels[:num_classes] == own
    confidence = maps[:num_classes].diagonal(dim1=0, dim2=1).permute(2, 0, 1)
    confidence = torch.where(votes, confidence, -1.0)
    winners = torch.where(votes.any(0), confidence.argmax(0), num_classes)
    index = winners[None, None].expand(1, num_classes, *size)
    return maps.gather(0, index)[0]


def fuse_streamed(window: Tensor, experts: Tensor, size: Size) -> Tensor:
    """One expert's map at a time, keeping the best so far."""
    num_classes = experts.shape[1]
    rows = window.flatten(0, 1)

    def expert_map(e: int) -> Tensor:
        shares = torch.softmax(experts[e] @ rows.t() * SCALE, 0).view(1, num_classes, *window.shape[:2])
        return _upsample(shares, size)[0]

    result = expert_map(num_classes)
    best = result.new_full(size, -1.0)
    for e in range(num_classes):
        found = expert_map(e)
        better = (found.argmax(0) == e) & (found[e] > best)
        best = torch.where(better, found[e], best)
        result = torch.where(better, found, result)
    return result


def fuse_pruned(window: Tensor, experts: Tensor, size: Size) -> Tensor:
    """The same, upsampling an expert only over the box of the cells where no class beats it at all four corners."""
    num_classes = experts.shape[1]
    height, width = window.shape[:2]
    vertical, horizontal = (_axis(n_in, n_out, window) for n_in, n_out in zip((height, width), size, strict=True))
    lows = [_low(n_in, n_out) for n_in, n_out in zip((height, width), size, strict=True)]
    rows = window.flatten(0, 1)

    def shares_of(e: int) -> Tensor:
        return torch.softmax(experts[e] @ rows.t() * SCALE, 0).view(num_classes, height, width)

    result = (vertical @ shares_of(num_classes)) @ horizontal.t()
    best = result.new_full(size, -1.0)
    for e in range(num_classes):
        shares = shares_of(e)
        ahead = (shares > shares[e]).float()[None]
        corners = torch.nn.functional.pad(ahead, (0, 1, 0, 1), mode="replicate")
        beaten = (-torch.nn.functional.max_pool2d(-corners, 2, 1))[0].amax(0) > 0  # [h, w] cells
        if beaten.all():
            continue
        ys, xs = (~beaten).any(1).nonzero()[:, 0], (~beaten).any(0).nonzero()[:, 0]
        y0, y1 = (int(torch.searchsorted(lows[0], edge)) for edge in (ys[0], ys[-1] + 1))
        x0, x1 = (int(torch.searchsorted(lows[1], edge)) for edge in (xs[0], xs[-1] + 1))
        found = (vertical[y0:y1] @ shares) @ horizontal[x0:x1].t()
        better = (found.argmax(0) == e) & (found[e] > best[y0:y1, x0:x1])
        if not better.any():
            continue
        best[y0:y1, x0:x1] = torch.where(better, found[e], best[y0:y1, x0:x1])
        result[:, y0:y1, x0:x1] = torch.where(better, found, result[:, y0:y1, x0:x1])
    return result


def _low(n_in: int, n_out: int) -> Tensor:
    """[n_out] the lower neighbour of every output."""
    return (((torch.arange(n_out) + 0.5) * (n_in / n_out) - 0.5).clamp(min=0)).long().clamp(max=n_in - 1)
