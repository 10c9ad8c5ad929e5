"""Definition of `lp_pixels`: label propagation over the pixel-affinity graph of an image, in plain PyTorch.

Written to be read beside the equations, not to be fast. Any float dtype, any device; run it in float64 to get
the numbers that the kernels are held to.
"""

import math

import torch
from torch import Tensor

# Smallest normal float32. A weight below it counts as zero, in every dtype: the graph must not depend on
# whether the processor flushes denormal numbers.
SMALLEST_WEIGHT = 1.1754943508222875e-38

# Cap on the steps of mode="exact" when the caller sets none. The condition number is at most
# (1 + alpha) / (1 - alpha), so alpha = 0.95 needs about 45 steps for tol = 1e-6; only alpha very close to 1
# comes near the cap.
MAX_EXACT_STEPS = 1000

RGB_TO_XYZ = (
    (0.412453, 0.357580, 0.180423),
    (0.212671, 0.715160, 0.072169),
    (0.019334, 0.119193, 0.950227),
)
WHITE_XYZ = (0.95047, 1.0, 1.08883)


def pixel_features(image: Tensor, color: str | None) -> Tensor:
    """Per-pixel feature vectors whose Euclidean distance decides the affinity of two pixels.

    With `color="lab"`, sRGB becomes CIELAB (D65), scaled to about unit range::

        linear(u) = u / 12.92                    if u <= 0.04045,    ((u + 0.055) / 1.055)^2.4  otherwise
        f(t)      = t^(1/3)                      if t > 0.008856,    7.787 t + 4/29             otherwise
        (X, Y, Z) = RGB_TO_XYZ linear(r, g, b) / WHITE_XYZ
        L = 116 f(Y) - 16,   a = 500 (f(X) - f(Y)),   b = 200 (f(Y) - f(Z))
        z = (L / 100, a / 128, b / 128)

    Args:
        image: [B, F, H, W] float; with "lab", F = 3 and sRGB in [0, 1].
        color: "lab", or None to take the channels as they are.

    Returns:
        [B, F, H, W] features in the dtype of `image`.
    """
    if color is None:
        return image
    linear = torch.where(image <= 0.04045, image / 12.92, ((image + 0.055) / 1.055) ** 2.4)
    red, green, blue = linear.unbind(1)
    f_xyz = []
    for (from_red, from_green, from_blue), white in zip(RGB_TO_XYZ, WHITE_XYZ, strict=True):
        t = (from_red * red + from_green * green + from_blue * blue) / white
        f_xyz.append(torch.where(t > 0.008856, t ** (1.0 / 3.0), 7.787 * t + 4.0 / 29.0))
    f_x, f_y, f_z = f_xyz
    lightness = 116.0 * f_y - 16.0
    a = 500.0 * (f_x - f_y)
    b = 200.0 * (f_y - f_z)
    return torch.stack((lightness / 100.0, a / 128.0, b / 128.0), dim=1)


class PixelGraph:
    """The symmetric r x r affinity graph, one plane of weights per pair of opposite offsets.

    ::

        w_pq = exp(-|z_p - z_q|_2 / tau)     q = p + (dy, dx) != p inside the image, |dy|, |dx| <= window // 2
        w_pq = 0                             where that is NaN or below SMALLEST_WEIGHT
        deg_p = sum_q w_pq                   1 where that sum is 0 (isolated pixel; its row stays zero)

    Args:
        features: [B, F, H, W] float.
        window: odd side of the neighbourhood.
        tau: feature distance at which a weight has fallen to 1/e.
    """

    def __init__(self, features: Tensor, window: int, tau: float):
        batch, _, height, width = features.shape
        radius = window // 2
        # (weights [B, 1, h, w], where p lies, where q = p + offset lies), one per forward offset
        self.links = []
        for dy in range(min(radius, height - 1) + 1):
            for dx in range(-min(radius, width - 1), min(radius, width - 1) + 1):
                if dy == 0 and dx <= 0:
                    continue
                p = (..., slice(0, height - dy), slice(max(0, -dx), width - max(0, dx)))
                q = (..., slice(dy, height), slice(max(0, dx), width - max(0, -dx)))
                distance = (features[p] - features[q]).square().sum(1, keepdim=True).sqrt()
                weight = torch.exp(-distance / tau)
                self.links.append((torch.where(weight >= SMALLEST_WEIGHT, weight, 0.0), p, q))
        degree = self.multiply(features.new_ones((batch, 1, height, width)))
        self.degree = torch.where(degree > 0, degree, 1.0)  # [B, 1, H, W]

    def multiply(self, u: Tensor) -> Tensor:
        """W u.

        Args:
            u: [B, C, H, W].

        Returns:
            [B, C, H, W].
        """
        out = torch.zeros_like(u, memory_format=torch.contiguous_format)
        for weight, p, q in self.links:
            out[p] += weight * u[q]
            out[q] += weight * u[p]
        return out


def _dot(u: Tensor, v: Tensor) -> Tensor:
    """<u, v> per class, [B, C, H, W] twice -> [B, C, 1, 1]. In float64: float32 overflows."""
    return (u.double() * v.double()).sum((-2, -1), keepdim=True)


def conjugate_gradients(apply, y: Tensor, max_iter: int, tol: float) -> tuple[Tensor, Tensor, Tensor]:
    """Solves L x = y for every class by itself, starting at zero.

    ::

        r = y;  p = r;  rho = <r, r>
        repeat up to max_iter times:
            q = L p;  a = rho / <p, q>;  x += a p;  r -= a q
            stop this class if |r| <= tol |y|
            rho' = <r, r>;  p = r + (rho' / rho) p;  rho = rho'

    A class that has stopped is left alone. One with y = 0 never starts; one whose <p, q> is not above 0
    stops where it is.

    Args:
        apply: function [B, C, H, W] -> [B, C, H, W], symmetric and positive definite.
        y: [B, C, H, W] right-hand sides, finite.
        max_iter: steps per class at most.
        tol: relative residual at which a class stops.

    Returns:
        x [B, C, H, W], steps taken [B, C] int32, recursive residual |r| / |y| [B, C] float64.
    """
    x = torch.zeros_like(y, memory_format=torch.contiguous_format)
    r = y.clone(memory_format=torch.contiguous_format)
    p = r.clone()
    norm_y = _dot(y, y).sqrt()
    norm_r = norm_y
    rho = _dot(r, r)
    iterations = torch.zeros(rho.shape, dtype=torch.int32, device=rho.device)
    active = rho > 0
    for _ in range(max_iter):
        if not active.any():
            break
        q = apply(p)
        curvature = _dot(p, q)
        active = active & (curvature > 0)
        step = torch.where(active, rho / curvature, 0.0).to(y.dtype)
        x += step * p
        r -= step * q
        iterations += active
        rho_next = _dot(r, r)
        norm_r = torch.where(active, rho_next.sqrt(), norm_r)
        active = active & (norm_r > tol * norm_y)
        beta = torch.where(active, rho_next / rho, 0.0).to(y.dtype)
        p = r + beta * p
        rho = torch.where(active, rho_next, rho)
    residual = torch.where(norm_y > 0, norm_r / norm_y, 0.0)
    return x, iterations.flatten(-3), residual.flatten(-3)


def propagate(
    y: Tensor, graph: PixelGraph, *, alpha: float, mode: str, max_iter: int | None, tol: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Solves (I - alpha D^-1/2 W D^-1/2) X = Y for every class.

    Args:
        y: [B, C, H, W] scores.
        graph: the weights W and degrees D.
        alpha: in (0, 1).
        mode: "official": `max_iter` steps of conjugate gradients, the published procedure, which stops before
            convergence. "exact": steps until |r| <= tol |y|.
        max_iter: steps at most; None is 10 in "official" and MAX_EXACT_STEPS in "exact".
        tol: relative residual at which a class stops.

    Returns:
        X [B, C, H, W], steps [B, C] int32, residuals [B, C] float64: the recursive one in "official",
        |Y - L X| / |Y| recomputed in "exact". A class whose scores hold a NaN or an Inf: NaN, 0 and NaN.
    """
    root = graph.degree.rsqrt()

    def apply(v: Tensor) -> Tensor:
        return v - alpha * (root * graph.multiply(root * v))

    finite = torch.isfinite(y).all(-1, keepdim=True).all(-2, keepdim=True)
    y = torch.where(finite, y, 0.0)
    if max_iter is None:
        max_iter = 10 if mode == "official" else MAX_EXACT_STEPS
    x, iterations, residuals = conjugate_gradients(apply, y, max_iter, tol)
    if mode == "exact":
        error, scale = y - apply(x), _dot(y, y)
        residuals = torch.where(scale > 0, (_dot(error, error) / scale).sqrt(), 0.0).flatten(-3)
    return torch.where(finite, x, math.nan), iterations, torch.where(finite.flatten(-3), residuals, math.nan)


def merge_groups(x: Tensor, groups: Tensor | None, num_groups: int) -> Tensor:
    """Largest score of each group of classes.

    Args:
        x: [B, C, H, W].
        groups: [C] integers in [0, num_groups), or None when every class is its own group.
        num_groups: G.

    Returns:
        [B, G, H, W]; a NaN makes its group NaN at that pixel, a group without classes is -inf.
    """
    if groups is None:
        return x
    merged = x.new_full((x.shape[0], num_groups, *x.shape[2:]), -math.inf)
    for channel, group in enumerate(groups.tolist()):
        merged[:, group] = torch.maximum(merged[:, group], x[:, channel])
    return merged


def lp_pixels(
    scores: Tensor,
    guide: Tensor,
    *,
    window: int,
    tau: float,
    alpha: float,
    mode: str,
    max_iter: int | None,
    tol: float,
    lab: bool,
    groups: Tensor | None,
    num_groups: int,
    labels: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Label propagation over the window x window pixel affinities of an image (LPOSS+).

    Args:
        scores: [B, C, H, W] float class scores.
        guide: [B, F, H, W] float: an sRGB image in [0, 1] with `lab`, features otherwise.
        window: odd side of the neighbourhood of a pixel; 1 leaves every pixel alone.
        tau: feature distance at which a weight has fallen to 1/e.
        alpha: share of a pixel's answer that comes from its neighbours, in (0, 1).
        mode: "official" or "exact", see `propagate`.
        max_iter: cap on the steps, or None.
        tol: relative residual |Y - L X| / |Y| at which a class stops.
        lab: whether the guide is converted to CIELAB.
        groups: [C] output channel of every class, or None.
        num_groups: G; C when `groups` is None.
        labels: return the index of the largest group score instead of the scores.

    Returns:
        result: [B, G, H, W] in the dtype of `scores`, the largest score of each group; or with `labels`
            [B, H, W], uint8 for at most 255 groups and int32 above. Labels ignore classes that are NaN; the
            smallest index wins a tie.
        iterations: [B, C] int32, see `propagate`.
        residuals: [B, C] float64, see `propagate`.
    """
    graph = PixelGraph(pixel_features(guide, "lab" if lab else None), window, tau)
    x, iterations, residuals = propagate(scores, graph, alpha=alpha, mode=mode, max_iter=max_iter, tol=tol)
    if not labels:
        return merge_groups(x, groups, num_groups), iterations, residuals
    merged = merge_groups(torch.where(torch.isnan(x), -math.inf, x), groups, num_groups)
    return merged.argmax(1).to(torch.uint8 if num_groups <= 255 else torch.int32), iterations, residuals
