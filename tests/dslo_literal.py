"""DSLO written down once more, in numpy and float64, step by step from the equations; nothing of ours is imported."""

import numpy as np


def resized(logits, grid):
    """[C, h, w] on another grid, bilinear with half-pixel centres, one axis after the other."""
    for axis, side in ((1, grid[0]), (2, grid[1])):
        old = logits.shape[axis]
        place = np.clip((np.arange(side) + 0.5) * old / side - 0.5, 0, None)
        low = np.floor(place).astype(int)
        high = np.minimum(low + 1, old - 1)
        share = np.moveaxis((place - low)[:, None, None], 0, axis)
        logits = np.take(logits, low, axis) * (1 - share) + np.take(logits, high, axis) * share
    return logits


def seeds(logits, theta=0.5, scale=100.0, mode="class_softmax"):
    """[C, N] logits -> {class: [N] distribution}, classes that keep no patch are not in it."""
    if mode == "class_softmax":
        powers = np.exp(scale * (logits - logits.max(0)))
        confidence = powers / powers.sum(0)
    else:
        low, high = logits.min(1, keepdims=True), logits.max(1, keepdims=True)
        confidence = (logits - low) / (high - low)
    keep = confidence >= theta
    if not keep.any():
        keep = np.zeros(logits.shape, bool)
        for patch in range(logits.shape[1]):
            keep[confidence[:, patch].argmax(), patch] = True
    found = {}
    for index in range(len(logits)):
        if keep[index].any():
            powers = np.where(keep[index], np.exp(scale * (logits[index] - logits[index].max())), 0)
            found[index] = powers / powers.sum()
    return found


def transported(attention, start, epsilon=0.1, iterations=50):
    """The receivers' map of one class, [N]."""
    kernel = np.exp(-attention / epsilon)
    nu = np.ones(len(attention))
    for _ in range(iterations):
        mu = start / (kernel @ nu)
        nu = 1 / len(attention) / (kernel.T @ mu)
    plan = mu[:, None] * kernel * nu
    return (attention * plan).sum(0)


def doubly_stochastic(attention, iterations=15):
    """The matrix, rewritten again and again."""
    for _ in range(iterations):
        attention = attention / attention.sum(0)
        attention = attention / attention.sum(1, keepdims=True)
    return attention


def velocity(attention, start, threshold=0.3, max_steps=1000):
    """First passage of one class, [N]."""
    chain = doubly_stochastic(attention)
    state, before = start / start.max(), None
    times = [0.0 if value > threshold else None for value in state]
    for step in range(1, max_steps + 1):
        state, before = state @ chain, state
        state = state / state.max()
        for patch, value in enumerate(state):
            if times[patch] is None and value > threshold:
                rise = value - before[patch] if step >= 2 else 1 - threshold
                times[patch] = step - (value - threshold) / (rise + 1e-6)
        if None not in times:
            break
    return np.array([1 / max(max_steps if time is None else time, 1e-3) for time in times])


def upsampled(maps, guide, sigma_spatial=1.0, sigma_range=0.1, radius=2):
    """[C, h, w] maps and [H, W, 3] guide in [0, 1] -> [C, H, W], one pixel at a time."""
    (_, h, w), (height, width) = maps.shape, guide.shape[:2]
    out = np.zeros((len(maps), height, width))
    for y in range(height):
        for x in range(width):
            low_y, low_x = (y + 0.5) * h / height - 0.5, (x + 0.5) * w / width - 0.5
            near_y, near_x = int(np.floor(low_y + 0.5)), int(np.floor(low_x + 0.5))
            nodes, exponents = [], []
            for qy in range(max(0, near_y - radius), min(h, near_y + radius + 1)):
                for qx in range(max(0, near_x - radius), min(w, near_x + radius + 1)):
                    colour = guide[int((qy + 0.5) * height / h), int((qx + 0.5) * width / w)]
                    distance = (low_y - qy) ** 2 + (low_x - qx) ** 2
                    contrast = ((guide[y, x] - colour) ** 2).sum()
                    exponents.append(-distance / (2 * sigma_spatial**2) - contrast / (2 * sigma_range**2))
                    nodes.append(maps[:, qy, qx])
            weights = np.exp(np.array(exponents) - max(exponents))
            out[:, y, x] = (weights[:, None] * np.array(nodes)).sum(0) / weights.sum()
    return out


def blocks(side=24, seed=0):
    """A scene of 4 regions on a square grid: truth [N], attention [N, N] that knows the regions, noisy logits [4, N].

    The raw argmax of the logits is right for about 55 % of the patches.
    """
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side]
    truth = np.where(y < side // 2, np.where(x < side // 3, 0, 1), np.where(x < 2 * side // 3, 2, 3)).ravel()
    same = truth[:, None] == truth
    attention = np.where(same, 1.0, 0.05) * generator.gamma(1.0, 1.0, same.shape) ** 2
    attention /= attention.sum(1, keepdims=True)
    logits = 0.2 + 0.012 * (truth == np.arange(4)[:, None]) + generator.normal(0, 0.012, (4, side * side))
    return truth, attention, logits
