"""What `confusion_matrix` and `boundary_iou` are measured against: bincount, torchmetrics, erosions, pooling.

Labels are [H, W], 255 is ignored. Each matrix is [C, C] int64, each result for boundaries [3, C] int64.
"""

import importlib
import math

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

IGNORED = 255


def missing(*modules: str) -> str | None:
    """Why a peer cannot run here, or None."""
    for module in modules:
        try:
            importlib.import_module(module)
        except (ImportError, RuntimeError) as error:  # the second by a torchvision for another torch
            return f"{module} cannot be imported ({error})"
    return None


# The matrix


def torchmetrics_matrix(prediction: Tensor, target: Tensor, num_classes: int, validate: bool) -> Tensor:
    """Torchmetrics as its users call it, or without its checks of the values."""
    functional = importlib.import_module("torchmetrics.functional.classification")
    return functional.multiclass_confusion_matrix(
        prediction, target, num_classes=num_classes, ignore_index=IGNORED, validate_args=validate
    )


def numpy_bincount(prediction: Tensor, target: Tensor, num_classes: int) -> Tensor:
    """The line that segmentation code has copied since FCN: one number per pair of labels, counted."""
    p, t = prediction.numpy(), target.numpy()
    valid = (t >= 0) & (t < num_classes)
    pairs = num_classes * t[valid].astype(int) + p[valid]
    return torch.from_numpy(np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes))


def bincount_of_valid(prediction: Tensor, target: Tensor, num_classes: int) -> Tensor:
    """The same in PyTorch, pairs in 32 bits."""
    valid = target != IGNORED
    pairs = target[valid].int() * num_classes + prediction[valid]
    return torch.bincount(pairs, minlength=num_classes**2).view(num_classes, num_classes)


def bincount_of_all(prediction: Tensor, target: Tensor, num_classes: int) -> Tensor:
    """All pairs of bytes counted, ignored ones too: nothing is selected, and the matrix is cut out at the end."""
    pairs = (target.int() << 8).add_(prediction)
    return torch.bincount(pairs.view(-1), minlength=2**16).view(256, 256)[:num_classes, :num_classes]


# Boundaries


def distance_of(height: int, width: int) -> int:
    """Of a ratio of 0.02."""
    return max(1, round(0.02 * math.sqrt(height**2 + width**2)))


def eroded_masks(prediction: Tensor, target: Tensor, num_classes: int) -> Tensor:
    """The published metric: each class's masks eroded with a 3 x 3 square, as often as the distance says."""
    cv2 = importlib.import_module("cv2")
    cv2.setNumThreads(torch.get_num_threads())
    t = target.numpy().astype(np.uint8)
    p = np.where(t == IGNORED, IGNORED, prediction.numpy()).astype(np.uint8)
    square, distance = np.ones((3, 3), np.uint8), distance_of(*t.shape)

    def boundary(mask):
        framed = cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
        return mask - cv2.erode(framed, square, iterations=distance)[1:-1, 1:-1]

    counts = np.zeros((3, num_classes), np.int64)
    for label in np.union1d(np.unique(t), np.unique(p)):
        if label == IGNORED:
            continue
        of_p, of_t = (boundary((labels == label).astype(np.uint8)) for labels in (p, t))
        counts[:, label] = (of_p & of_t).sum(), of_p.sum(), of_t.sum()
    return torch.from_numpy(counts)


def _counts(p: Tensor, t: Tensor, near_p: Tensor, near_t: Tensor, num_classes: int) -> Tensor:
    """Counts from both maps and their boundary pixels."""
    both = near_p & near_t & (p == t)
    rows = [(both, t), (near_p, p), (near_t, t)]
    return torch.stack([torch.bincount(labels[where], minlength=256)[:num_classes] for where, labels in rows])


def _with_ignored(prediction: Tensor, target: Tensor) -> Tensor:
    return torch.where(target == IGNORED, IGNORED, prediction).to(torch.uint8)


def smallest_and_largest(prediction: Tensor, target: Tensor, num_classes: int) -> Tensor:
    """OpenCV on the labels themselves: both maps eroded and dilated once by the whole square."""
    cv2 = importlib.import_module("cv2")
    cv2.setNumThreads(torch.get_num_threads())
    distance = distance_of(*target.shape)
    square = np.ones((2 * distance + 1, 2 * distance + 1), np.uint8)

    def near(labels: Tensor) -> Tensor:
        array = labels.numpy()
        smallest, largest = cv2.erode(array, square), cv2.dilate(array, square)
        return torch.from_numpy(_framed(smallest != largest, distance))

    t = target.to(torch.uint8)
    p = _with_ignored(prediction, target)
    return _counts(p, t, near(p), near(t), num_classes)


def _framed(near: np.ndarray, distance: int) -> np.ndarray:
    near[:distance] = near[-distance:] = True
    near[:, :distance] = near[:, -distance:] = True
    return near


def pooled(prediction: Tensor, target: Tensor, num_classes: int) -> Tensor:
    """Largest and smallest label of the square by pooling, one axis after the other."""
    distance = distance_of(*target.shape)

    def largest(values: Tensor) -> Tensor:
        columns = max_pool2d(values, (2 * distance + 1, 1), 1, (distance, 0))
        return max_pool2d(columns, (1, 2 * distance + 1), 1, (0, distance))

    def near(labels: Tensor) -> Tensor:
        values = labels.float()[None]
        found = (largest(values) != -largest(-values))[0]
        return _frame(found, distance)

    t = target.to(torch.uint8)
    p = _with_ignored(prediction, target)
    return _counts(p, t, near(p), near(t), num_classes)


def _frame(near: Tensor, distance: int) -> Tensor:
    near[:distance] = near[-distance:] = True
    near[:, :distance] = near[:, -distance:] = True
    return near


def summed(prediction: Tensor, target: Tensor, num_classes: int) -> Tensor:
    """Sums of changes along the rows, then down the columns: a few passes whatever the distance is."""
    height, width = target.shape
    distance = distance_of(height, width)
    if 2 * distance >= min(height, width):
        raise ValueError("no pixel is inside")

    def near(labels: Tensor) -> Tensor:
        changes = torch.zeros((height, width), dtype=torch.int32)
        changes[:, 1:] = labels[:, 1:] != labels[:, :-1]
        sums = changes.cumsum_(1)
        broken = torch.ones((height, width), dtype=torch.int32)
        inside = slice(distance, width - distance)
        broken[:, inside] = sums[:, 2 * distance :] != sums[:, : width - 2 * distance]
        down = torch.zeros((height, width), dtype=torch.int32)
        down[1:] = labels[1:] != labels[:-1]
        rows = broken.cumsum_(0)
        columns = down.cumsum_(0)
        found = torch.ones((height, width), dtype=torch.bool)
        upper, lower = slice(0, height - 2 * distance), slice(2 * distance, height)
        above = torch.cat((rows.new_zeros(1, width), rows[: height - 2 * distance - 1]))
        found[distance : height - distance] = (rows[lower] != above) | (columns[lower] != columns[upper])
        return found

    t = target.to(torch.uint8)
    p = _with_ignored(prediction, target)
    return _counts(p, t, near(p), near(t), num_classes)
