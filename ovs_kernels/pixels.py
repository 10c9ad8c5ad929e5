"""Label propagation over pixel affinities."""

import dataclasses

import torch
from torch import Tensor

from . import _ops  # noqa: F401  (registers torch.ops.ovs_kernels)
from ._arrays import accepts_arrays


@dataclasses.dataclass(frozen=True)
class PropagationInfo:
    """How a propagation went, per class.

    Attributes:
        iterations: [C] or [B, C] int32, steps taken.
        residuals: [C] or [B, C] float64, |Y - L X| / |Y|; NaN for a class that was not finite.
    """

    iterations: Tensor
    residuals: Tensor


@accepts_arrays("scores", "image", indices=("groups",))
def lp_pixels(
    scores: Tensor,
    image: Tensor,
    *,
    window: int = 13,
    tau: float = 0.01,
    alpha: float = 0.95,
    mode: str = "official",
    max_iter: int | None = None,
    tol: float = 1e-6,
    color: str | None = "lab",
    labels: bool = False,
    groups: Tensor | list[int] | None = None,
    return_info: bool = False,
    memory_limit: int | None = None,
) -> Tensor | tuple[Tensor, PropagationInfo]:
    """Refines class scores along the edges of an image: the pixel stage of LPOSS+.

    Every pixel is linked to the pixels of the window around it, the more the closer their colours are, and scores flow
    along the links::

        w_pq = exp(-|z_p - z_q| / tau)                     z: CIELAB colour (L/100, a/128, b/128), or given features
        (I - alpha D^-1/2 W D^-1/2) X = Y                  Y: scores, D: row sums of W, X: result

    No matrix is built. All classes are advanced together.

    Args:
        scores: [C, H, W] or [B, C, H, W] float, any scale: class scores at the resolution of the image.
        image: [3, H, W] or [B, 3, H, W], like `scores`: sRGB, float in [0, 1] or uint8. With `color=None` float
            features of any number of channels F, used as they are (depth, or Lab and depth together).
        window: odd side of the neighbourhood in pixels, 1 to 31.
        tau: feature distance at which a link has weakened to 1/e. In Lab, 0.01 is one unit of L*.
        alpha: share of a pixel's result that comes from its neighbours, in (0, 1).
        mode: "official" takes `max_iter` steps of conjugate gradients per class, as the published code does (which is
            not converged); "exact" takes as many steps of the Chebyshev semi-iteration as bring |Y - L X| below
            tol |Y| in exact arithmetic. In float32 rounding keeps the true residual at about 5e-6 |Y|.
        max_iter: steps at most; None is 10 in "official" and as many as `tol` needs in "exact" (45 with the defaults).
        tol: relative residual; in "official" a class that reaches it stops early.
        color: "lab" converts `image` from sRGB, None takes it as features.
        labels: return the index of the best class (or group) instead of scores; never writes C x H x W.
        groups: [C] integers, the output channel of each class: several names of one class, the largest score counts.
            A CUDA tensor here is read back to the host.
        return_info: also return a `PropagationInfo`. In "exact" it costs one more step, to measure the residual.
        memory_limit: bytes of scratch memory at most; the classes are then solved in smaller chunks, with the same
            result.

    Returns:
        The scores [C, H, W] (G = max(groups) + 1 channels with `groups`) in the dtype of `scores`, up to
        1 / (1 - alpha) times larger than they came; or with `labels` [H, W], uint8 for at most 255 channels, else
        int32. With a batch axis if the scores have one. With `return_info` a tuple of that and the info.

    Raises:
        TypeError: wrong kind or dtype of an argument.
        ValueError: wrong shape, range or device of an argument, or a `memory_limit` that is too small.
        RuntimeError: CUDA tensors, and a build without CUDA or for other cards.

    Devices/dtypes: CPU and CUDA; float32, float16 and bfloat16 (computed in float32); float64 (on CUDA by the
        reference).
    Differentiable: by `scores`, in mode="exact" (one more solve); mode="official" refuses in backward. Not by
        `image`.
    Deterministic: yes, on CPU for any number of threads. Ties between labels go to the smallest index.
    Non-finite: a pixel whose colour is NaN or Inf is isolated: X = Y there in "exact"; in "official" the ten global
        steps leave it about one per cent away. A class with a NaN or Inf score comes back as NaN everywhere and never
        wins a label; the other classes are not touched.
    Memory: on CPU about 440 bytes per pixel for the links (window=13) and 16 bytes per pixel and class for at most 24
        classes at a time; on CUDA 20 bytes per pixel and class for at most 32.
    Reference: LPOSS+ (label propagation at the pixel level), equation of the propagation with S = D^-1/2 W D^-1/2; the
        norm is the plain one of the published code. See `ovs_kernels.reference.pixels`.

    Example:
        >>> import torch, ovs_kernels
        >>> image = torch.zeros(3, 4, 6)
        >>> image[:, :, 3:] = 1.0                       # black left, white right
        >>> scores = torch.zeros(2, 4, 6)
        >>> scores[0, 1, 1] = scores[1, 2, 4] = 1.0     # one seed per side
        >>> ovs_kernels.lp_pixels(scores, image, labels=True)[0].tolist()
        [0, 0, 0, 1, 1, 1]
    """
    group_list = None if groups is None else [int(group) for group in groups.tolist()]
    wants_gradient = torch.is_grad_enabled() and scores.requires_grad and not labels
    merge_later = group_list is not None and wants_gradient
    result, iterations, residuals = torch.ops.ovs_kernels.lp_pixels(
        scores,
        image,
        window,
        tau,
        alpha,
        mode,
        max_iter,
        tol,
        color,
        labels,
        None if merge_later else group_list,
        return_info,
        memory_limit,
    )
    if merge_later:
        result = _merge_groups(result, group_list)
    return (result, PropagationInfo(iterations, residuals)) if return_info else result


def _merge_groups(scores: Tensor, groups: list[int]) -> Tensor:
    """Largest score of each group, with a gradient: [..., C, H, W] -> [..., G, H, W]."""
    index = torch.tensor(groups, device=scores.device).reshape(-1, 1, 1).expand(scores.shape)
    shape = (*scores.shape[:-3], max(groups, default=-1) + 1, *scores.shape[-2:])
    lowest = scores.new_full(shape, -torch.inf)
    return lowest.scatter_reduce(-3, index, scores, "amax")
