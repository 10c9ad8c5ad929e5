"""Asserts and inputs for tests of segmentation kernels, ours and those of the people who use them."""

import math

import numpy as np
import torch
from torch import Tensor

Array = Tensor | np.ndarray


def _as_tensor(array: Array) -> Tensor:
    return array.detach().cpu() if isinstance(array, Tensor) else torch.as_tensor(array)


def _same_shape(actual: Tensor, expected: Tensor) -> None:
    if actual.shape != expected.shape:
        raise AssertionError(f"shape: expected {list(expected.shape)}, got {list(actual.shape)}")


def _first(mask: Tensor) -> tuple[int, ...]:
    return tuple(mask.nonzero()[0].tolist())


def assert_close_rel(actual: Array, expected: Array, tol: float, *, message: str = "") -> float:
    """Asserts max |actual - expected| <= tol * max |expected|, over the finite entries of `expected`.

    One scale for the whole array: what a solver promises, where a tolerance per entry asks for exact zeros.
    NaN and Inf must stand at the same places.

    Args:
        actual: any shape, compared in float64.
        expected: same shape.
        tol: share of the largest expected magnitude.
        message: what is compared, for the error.

    Returns:
        The largest difference as a share of the largest expected magnitude.
    """
    got, want = _as_tensor(actual).double(), _as_tensor(expected).double()
    _same_shape(got, want)
    prefix = f"{message}: " if message else ""
    finite = torch.isfinite(want)
    differs = torch.where(finite, ~torch.isfinite(got), ~((got == want) | (got.isnan() & want.isnan())))
    if differs.any():
        at = _first(differs)
        raise AssertionError(f"{prefix}at {at}: expected {want[at].item():g}, got {got[at].item():g}")
    if not finite.any():
        return 0.0
    difference = torch.where(finite, got - want, 0.0).abs()
    scale = want[finite].abs().max().item()
    worst = difference.max().item()
    if worst > tol * scale:
        at = _first(difference == worst)
        raise AssertionError(
            f"{prefix}largest difference {worst:.3g} is {worst / scale if scale else math.inf:.3g} of the "
            f"largest magnitude {scale:.3g}, allowed {tol:g}; "
            f"at {at}: expected {want[at].item():.9g}, got {got[at].item():.9g}"
        )
    return worst / scale if scale else 0.0


def assert_labels_agree(actual: Array, expected: Array, min_share: float, *, message: str = "") -> float:
    """Asserts that at least `min_share` of the labels are equal.

    For results of an argmax, where rounding may decide a near tie either way.

    Args:
        actual: integer labels of any shape.
        expected: same shape.
        min_share: in [0, 1]; 1 asks for equality.
        message: what is compared, for the error.

    Returns:
        The share of equal labels (1 for empty arrays).
    """
    got, want = _as_tensor(actual), _as_tensor(expected)
    _same_shape(got, want)
    for name, labels in (("actual", got), ("expected", want)):
        if labels.is_floating_point():
            raise AssertionError(f"{name}: expected integer labels, got {labels.dtype}")
    if want.numel() == 0:
        return 1.0
    differs = got.long() != want.long()
    wrong = int(differs.sum())
    share = 1.0 - wrong / want.numel()
    if share < min_share:
        at = _first(differs)
        prefix = f"{message}: " if message else ""
        raise AssertionError(
            f"{prefix}{wrong} of {want.numel()} labels differ: {share:.4%} agree, at least {min_share:.4%} "
            f"must; first at {at}: expected {want[at].item()}, got {got[at].item()}"
        )
    return share


def synthetic_scene(height: int, width: int, num_classes: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """A picture of coloured regions and class scores for it, with statistics close to those of a photo.

    Voronoi regions, 10 to 40 of them, each of one class; a smooth colour per region; borders blended over one
    pixel; Gaussian noise of 2 to 6 grey levels. Scores: 0.18, + 0.08 for the true class, + 0.03 times smooth
    noise, about what cosine similarities of image patches and text look like.

    Args:
        height: H.
        width: W.
        num_classes: C, at least 1.
        seed: same seed, same picture.

    Returns:
        image [3, H, W] float32 in [0, 1], scores [C, H, W] float32, truth [H, W] int64.
    """
    generator = torch.Generator().manual_seed(seed)
    num_cells = int(torch.randint(10, 41, (), generator=generator))
    size = torch.tensor([height, width], dtype=torch.float32)
    centres = torch.rand(num_cells, 2, generator=generator) * size
    cell_class = torch.randint(num_classes, (num_cells,), generator=generator)
    colours = 0.1 + 0.8 * torch.rand(num_cells, 3, generator=generator)
    slopes = 0.15 * (torch.rand(num_cells, 3, 2, generator=generator) - 0.5) / size.clamp(min=1)

    rows, columns = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    pixels = torch.stack((rows, columns), dim=-1)  # [H, W, 2]
    exact = "donot_use_mm_for_euclid_dist"  # a matrix product would lose the digits that borders need
    distances = torch.cdist(pixels.reshape(-1, 2), centres, compute_mode=exact).reshape(height, width, num_cells)
    two, cells = distances.topk(2, dim=-1, largest=False)
    # Signed distance to the border between the two nearest cells, 0.5 px and more inside: no blending.
    gap = (centres[cells[..., 0]] - centres[cells[..., 1]]).norm(dim=-1).clamp(min=1e-3)
    inside = (two[..., 1] ** 2 - two[..., 0] ** 2) / (2 * gap)
    share = (0.5 + inside).clamp(max=1.0)[..., None]

    def colour_of(cell: Tensor) -> Tensor:
        return colours[cell] + (slopes[cell] * (pixels - centres[cell])[..., None, :]).sum(-1)

    image = share * colour_of(cells[..., 0]) + (1 - share) * colour_of(cells[..., 1])
    sigma = (2 + 4 * float(torch.rand((), generator=generator))) / 255
    image = image + sigma * torch.randn(height, width, 3, generator=generator)
    truth = cell_class[cells[..., 0]]

    noise = torch.randn(num_classes, height, width, generator=generator)
    scores = 0.18 + 0.03 * _smooth(noise)
    scores += 0.08 * torch.nn.functional.one_hot(truth, num_classes).permute(2, 0, 1)
    return image.permute(2, 0, 1).clamp(0, 1).contiguous(), scores, truth


def _smooth(noise: Tensor, radius: int = 4) -> Tensor:
    """Noise [C, H, W] averaged over boxes twice, then brought back to unit variance per class."""
    if noise.numel() == 0:
        return noise
    for _ in range(2):
        noise = torch.nn.functional.avg_pool2d(noise, 2 * radius + 1, 1, radius, count_include_pad=False)
    return noise / noise.std((1, 2), correction=0, keepdim=True).clamp(min=1e-6)
