"""Inputs of the `merge_windows` tests, and a second witness: interpolation matrices and padded adds in NumPy."""

import numpy as np
import torch

# Float32 against float64, as a share of the largest magnitude. Worst seen: 1.6e-7, on CPU (v2) and emulated.
SINGLE = 1e-6
# The same for the gradient, which adds up to some thousand pixels per patch. Worst seen: 3.1e-7.
SINGLE_GRADIENT = 3e-6
# Like both, in float64. Worst seen: 1.2e-15, of a gradient 4e-15.
DOUBLE = 1e-13


def interpolation_matrix(n_in, n_out):
    """[n_out, n_in]: half-pixel centres, clamped at both ends."""
    matrix = np.zeros((n_out, n_in))
    for o in range(n_out):
        source = max((o + 0.5) * n_in / n_out - 0.5, 0.0)
        low = min(int(np.floor(source)), n_in - 1)
        matrix[o, low] += 1.0 - (source - low)
        matrix[o, min(low + 1, n_in - 1)] += source - low
    return matrix


def stretched(window, rows, columns):
    """[C, h, w] -> [C, rows, columns]."""
    vertical = interpolation_matrix(window.shape[1], rows)
    horizontal = interpolation_matrix(window.shape[2], columns)
    return np.einsum("yi,cij,xj->cyx", vertical, window, horizontal)


def padded_adds(setups, boxes, size):
    """What the published code does, in float64: every window padded to the frame and added, divided by the count.

    setups: list of [K, C, h, w]; boxes: list of [K, 4]. Returns [C, H, W].
    """
    height, width = size
    result = 0.0
    for scores, table in zip(setups, boxes, strict=True):
        total, count = 0.0, 0.0
        for window, (y0, x0, y1, x1) in zip(np.asarray(scores, np.float64), np.asarray(table).tolist(), strict=True):
            frame = ((y0, height - y1), (x0, width - x1))
            total = total + np.pad(stretched(window, y1 - y0, x1 - x0), ((0, 0), *frame))
            count = count + np.pad(np.ones((y1 - y0, x1 - x0)), frame)
        result = result + total / count
    return result / len(setups)


def grid_boxes(size, window, stride):
    """Windows row by row, the last ones shifted back: a loop that stops at the border."""
    axes = []
    for extent, length, step in zip(size, window, stride, strict=True):
        starts = [0]
        while starts[-1] + length < extent:
            starts.append(min(starts[-1] + step, extent - length))
        axes.append([(start, min(start + length, extent)) for start in starts])
    return torch.tensor([(y0, x0, y1, x1) for y0, y1 in axes[0] for x0, x1 in axes[1]])


def random_boxes(size, count, seed):
    """Boxes of any size and place in any order; the last one is the whole image, so that nothing is left out."""
    generator = np.random.default_rng(seed)
    boxes = []
    for _ in range(count - 1):
        y0, x0 = generator.integers(0, size[0]), generator.integers(0, size[1])
        y1, x1 = generator.integers(y0 + 1, size[0] + 1), generator.integers(x0 + 1, size[1] + 1)
        boxes.append((y0, x0, y1, x1))
    return torch.tensor([*boxes, (0, 0, *size)])


def scores_for(boxes, num_classes, grid, seed=1):
    """[K, C, h, w] with an outlier."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn((len(boxes), num_classes, *grid), generator=generator)
    scores[len(boxes) // 2, num_classes // 2, grid[0] // 2, grid[1] // 2] = 30.0
    return scores


def cases():
    """name -> (set-ups, boxes, size)."""
    found = {}

    def add(name, size, *setups):
        found[name] = ([scores for scores, _ in setups], [table for _, table in setups], size)

    def grid(size, window, stride, num_classes, patches, seed=1):
        table = grid_boxes(size, window, stride)
        return scores_for(table, num_classes, patches, seed), table

    add("one pixel", (1, 1), grid((1, 1), (1, 1), (1, 1), 2, (1, 1)))
    add("one pixel of many patches", (1, 1), grid((1, 1), (1, 1), (1, 1), 2, (5, 4)))
    add("one patch per window", (9, 11), grid((9, 11), (4, 5), (2, 3), 3, (1, 1)))
    add("one row", (1, 130), grid((1, 130), (1, 40), (1, 17), 4, (1, 3)))
    add("one column", (70, 1), grid((70, 1), (20, 1), (9, 1), 2, (4, 1)))
    add("single window", (37, 53), grid((37, 53), (37, 53), (1, 1), 5, (6, 7)))
    add("image smaller than the window", (12, 17), grid((12, 17), (16, 24), (8, 8), 3, (2, 3)))
    add("more patches than pixels", (6, 9), grid((6, 9), (5, 7), (1, 2), 2, (13, 17)))
    add("as many patches as pixels", (14, 66), grid((14, 66), (8, 10), (4, 5), 2, (8, 10)))
    add("half overlap", (32, 64), grid((32, 64), (16, 16), (8, 8), 5, (2, 2)))
    add("shifted last windows", (45, 71), grid((45, 71), (16, 16), (8, 8), 7, (4, 4)))
    add("no overlap", (24, 72), grid((24, 72), (8, 8), (8, 8), 2, (3, 2)))
    add("no overlap but the last", (25, 77), grid((25, 77), (8, 8), (8, 8), 2, (3, 2)))
    add("odd everything", (43, 151), grid((43, 151), (19, 29), (7, 13), 3, (5, 3)))
    add("wide", (17, 300), grid((17, 300), (12, 100), (5, 60), 9, (3, 8)))
    add("tall", (131, 20), grid((131, 20), (30, 15), (11, 7), 6, (4, 3)))
    for width in (63, 64, 65, 127, 128, 129):
        add(f"width {width}", (10, width), grid((10, width), (6, 32), (4, 16), 2, (2, 4)))
    for seed in range(4):
        size = (29 + seed, 67 + 31 * seed)
        table = random_boxes(size, 6 + 5 * seed, seed)
        add(f"any boxes {seed}", size, (scores_for(table, 3, (4, 5), seed), table))
    table = torch.tensor([[0, 0, 10, 10], [10, 0, 30, 10], [0, 10, 30, 90], [5, 80, 9, 90], [5, 80, 9, 90]])
    add("tiles of different sizes", (30, 90), (scores_for(table, 3, (3, 3)), table))
    table = torch.tensor([[0, 150, 8, 160], [0, 0, 8, 10], [0, 5, 8, 155]])
    add("one band with a gap between two boxes", (8, 160), (scores_for(table, 2, (2, 2)), table))
    small, large = grid((40, 90), (16, 16), (8, 8), 4, (2, 2)), grid((40, 90), (32, 32), (16, 16), 4, (3, 5), 2)
    add("two set-ups", (40, 90), small, large)
    table = random_boxes((40, 90), 9, 7)
    add("three set-ups", (40, 90), small, (scores_for(table, 4, (6, 2)), table), large)
    return found


CASES = cases()


def ensemble_arguments(setups, boxes, size):
    """What `merge_windows` is called with: no lists where there is one set-up."""
    return (setups[0], boxes[0], size) if len(setups) == 1 else (setups, boxes, size)
