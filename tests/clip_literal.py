"""MaskCLIP, NACLIP and FLOSS's fusion as published, in numpy and float64, with every tensor they speak of in full.

Nothing of ours is imported. Features come in as [n, h, w, d], one grid per window, boxes as (y0, x0, y1, x1).
"""

import numpy as np


def windows(height, width, size, stride):
    """Boxes of the sliding windows, as mmsegmentation lays them."""
    rows = max(height - size + stride - 1, 0) // stride + 1
    columns = max(width - size + stride - 1, 0) // stride + 1
    boxes = []
    for i in range(rows):
        for j in range(columns):
            bottom, right = min(i * stride + size, height), min(j * stride + size, width)
            boxes.append((max(bottom - size, 0), max(right - size, 0), bottom, right))
    return boxes


def resized(maps, size):
    """[..., h, w] -> [..., *size], bilinear with half-pixel centres, one pixel at a time along each axis."""
    for axis, side in ((-2, size[0]), (-1, size[1])):
        old = maps.shape[axis]
        parts = []
        for pixel in range(side):
            place = max((pixel + 0.5) * old / side - 0.5, 0.0)
            low = int(np.floor(place))
            share = place - low
            high = min(low + 1, old - 1)
            parts.append((1 - share) * np.take(maps, low, axis) + share * np.take(maps, high, axis))
        maps = np.stack(parts, axis)
    return maps


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def softmax(logits, axis):
    powers = np.exp(logits - logits.max(axis, keepdims=True))
    return powers / powers.sum(axis, keepdims=True)


def averaged(maps, boxes, size):
    """Maps [C, y1 - y0, x1 - x0] of windows, added to a frame and divided by the count."""
    total, count = np.zeros((len(maps[0]), *size)), np.zeros(size)
    for one, (y0, x0, y1, x1) in zip(maps, boxes, strict=True):
        total[:, y0:y1, x0:x1] += one
        count[y0:y1, x0:x1] += 1
    return total / count


def best_names(maps, groups):
    """[P, H, W] -> [G, H, W]: each class's largest."""
    groups = np.array(groups)
    return np.stack([maps[groups == group].max(0) for group in range(groups.max() + 1)])


def maskclip(features, boxes, texts, groups, size, scale=100.0):
    """[G, H, W] probabilities at the working resolution."""
    maps = []
    for window, (y0, x0, y1, x1) in zip(features, boxes, strict=True):
        shares = softmax(scale * unit(window) @ texts.T, -1)
        maps.append(resized(shares.transpose(2, 0, 1), (y1 - y0, x1 - x0)))
    return best_names(averaged(maps, boxes, size), groups)


def naclip(features, boxes, texts, groups, size, original, scale=40.0, picture=None):
    """[G, *original] probabilities at the pixels of the photo; with a picture [3, *size] after PAMR."""
    maps = []
    for window, (y0, x0, y1, x1) in zip(features, boxes, strict=True):
        maps.append(resized((unit(window) @ texts.T).transpose(2, 0, 1), (y1 - y0, x1 - x0)))
    cosines = resized(averaged(maps, boxes, size), original)
    if picture is not None:
        mean, std = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
        cosines = pamr(resized((picture - mean[:, None, None]) / std[:, None, None], original), cosines)
    return best_names(softmax(scale * cosines, 0), groups)


def pamr(image, scores, num_iter=10, dilations=(8, 16)):
    """image [3, H, W], scores [P, H, W]: every neighbour by its clamped row and column."""
    rows, columns = np.indices(image.shape[1:])
    steps = [(dy, dx) for d in dilations for dy in (-d, 0, d) for dx in (-d, 0, d)]

    def neighbour(maps, dy, dx):
        y, x = np.clip(rows + dy, 0, len(rows) - 1), np.clip(columns + dx, 0, rows.shape[1] - 1)
        return maps[:, y, x]

    samples = np.stack([neighbour(image, *step) for step in steps])
    steps = [step for step in steps if step != (0, 0)]
    distances = np.stack([np.abs(image - neighbour(image, *step)) for step in steps])
    weights = softmax(-(distances / (1e-8 + 0.1 * samples.std(0, ddof=1))).mean(1), 0)
    for _ in range(num_iter):
        scores = sum(weight * neighbour(scores, *step) for weight, step in zip(weights, steps, strict=True))
    return scores


def labels(scores, threshold=0.0):
    found = scores.argmax(0)
    found[scores.max(0) < threshold] = 0
    return found


def classifiers(embeddings, experts, groups, renormalize):
    """[P + 1, P, D] from [M, P, D]: for each name the classifier of its class's templates, and the default."""
    made = []
    for group in groups:
        chosen = range(len(embeddings)) if experts[group] is None else experts[group]
        made.append(sum(embeddings[m] for m in chosen) / len(chosen))
    made.append(sum(embeddings) / len(embeddings))
    return np.stack([unit(one) if renormalize else one for one in made])


def fused(shares, size, strategy):
    """One window: [P + 1, P, h, w] probabilities -> all of [P + 1, P, *size], then pixel by pixel [P, *size]."""
    everything = resized(shares, size)
    names = everything.shape[1]
    out = np.zeros((names, *size))
    for y in range(size[0]):
        for x in range(size[1]):
            pixel = everything[:, :, y, x]
            voters = [e for e in range(names) if pixel[e].argmax() == e]
            if strategy == "average":
                out[:, y, x] = pixel[:names].mean(0)
            elif not voters or (strategy == "default_on_conflict" and len(voters) > 1):
                out[:, y, x] = pixel[names]
            elif strategy == "average_conflicting":
                out[:, y, x] = pixel[voters].mean(0)
            else:
                winner = max(voters, key=lambda e: (pixel[e, e], -e))
                out[:, y, x] = pixel[winner]
    return out


def floss(features, boxes, experts, size, strategy="highest", scale=100.0):
    """[P, *size]: fusion window by window, then the average."""
    maps = []
    for window, (y0, x0, y1, x1) in zip(features, boxes, strict=True):
        shares = softmax(scale * np.einsum("hwd,ejd->ejhw", unit(window), experts), 1)
        maps.append(fused(shares, (y1 - y0, x1 - x0), strategy))
    return averaged(maps, boxes, size)
