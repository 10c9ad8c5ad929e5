"""Fully connected CRFs: mean field, and the Gaussian filter in feature space that it is made of."""

import numbers
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from . import _ops  # noqa: F401  (registers torch.ops.ovs_kernels)
from ._arrays import accepts_arrays, as_tensor
from ._checks import kind_text, shape_text, wrong_type, wrong_value

Compatibility = float | Tensor | Sequence
LARGEST_COMPAT = torch.finfo(torch.float32).max


@accepts_arrays("image", "probabilities", "features", sequences=("features",))
def dense_crf(
    image: Tensor,
    probabilities: Tensor,
    *,
    iterations: int = 10,
    gaussian_sxy: float | Sequence[float] = 3.0,
    gaussian_compat: Compatibility | None = 7.0,
    gaussian_filter: str = "lattice",
    bilateral_sxy: float | Sequence[float] = 50.0,
    bilateral_srgb: float | Sequence[float] = 5.0,
    bilateral_compat: Compatibility | None = 10.0,
    features: list[Tensor] | None = None,
    features_compat: Sequence[Compatibility] = (),
    normalization: str = "symmetric",
    energies: bool = False,
    clip: float = 1e-5,
    labels: bool = False,
) -> Tensor:
    """Refines class probabilities by mean field in a fully connected CRF, with the numbers of pydensecrf.

    Every pixel talks to every other one through Gaussian kernels over features f: positions, positions and colours,
    and whatever else the caller gives::

        k_m(i, j) = exp(-|f_i - f_j|^2 / 2),   n_i = sum_j k_m(i, j),   K_m = k_m / sqrt(n_i n_j)
        Q^0       = softmax_c(-E)
        Q^(t+1)   = softmax_c(-E + sum_m w_m K_m Q^t)

    The sum has j = i in it. The kernels are those of the permutohedral lattice (Adams et al. 2010), as in pydensecrf:
    splat, blur along the axes in turn, slice.

    Args:
        image: [3, H, W] or [B, 3, H, W] RGB, float in [0, 1] or uint8; colours count from 0 to 255.
        probabilities: [C, H, W] or [B, C, H, W] float, like `image`; with `energies` E itself, any scale.
        iterations: steps of mean field; 0 returns the softmax of -E.
        gaussian_sxy: standard deviation in pixels of the kernel over positions, one number or (sx, sy).
        gaussian_compat: its compatibility; None leaves the term out. A number w is Potts's model as above; [C]
            penalties per class, or a [C, C] table of penalties, are used as -v_c and -(m + m^T) / 2 in the place of w
            (pydensecrf's signs: what attracts is negative there). A CUDA tensor here is read back to the host.
        gaussian_filter: "lattice", or "exact": a separable sum over all pixels within 5 standard deviations.
        bilateral_sxy: standard deviation in pixels of the kernel over positions and colours, one number or (sx, sy).
        bilateral_srgb: its standard deviation in colours of 0 to 255, one number or (sr, sg, sb).
        bilateral_compat: its compatibility, or None, like `gaussian_compat`.
        features: further kernels: list of [F, H, W] (or [B, F, H, W]) float, 1 <= F <= 16, divided by their standard
            deviations.
        features_compat: one compatibility for each of `features`.
        normalization: "symmetric" as above; "before" k / n_j, "after" k / n_i, "none" k.
        energies: `probabilities` are energies; otherwise E = -log(probabilities cut to [clip, 1]).
        clip: lowest probability, at most 1 and not below the smallest normal number of float32.
        labels: return the index of the best class instead of probabilities.

    Returns:
        Q [C, H, W] in the dtype of `probabilities`; or with `labels` [H, W], uint8 for at most 255 classes, else
        int32. With a batch axis if the probabilities have one.

    Raises:
        TypeError: wrong kind or dtype of an argument.
        ValueError: wrong shape, range or device of an argument; standard deviations so small that the image would leave
            the lattice, whose vertices have 16-bit coordinates.

    Devices/dtypes: CPU and CUDA; float32, float16 and bfloat16 (computed in float32), float64 (in float64 on both).
        On CUDA the host waits once per image, for the sizes of the lattices. Under graph capture it does not: there is
        room for the most vertices then (see Memory); tables of penalties cannot be captured.
    Differentiable: no; the result does not require grad.
    Deterministic: yes; on CPU for any number of threads, on CUDA in every run. Ties between labels go to the smallest
        index.
    Non-finite: a probability that is NaN counts as `clip`; an energy that is NaN or beyond 1e30 counts as 1e30, with
        its sign. A pixel with a NaN or Inf colour (or one that leaves the lattice) sends and receives nothing in the
        terms that look at colours.
    Memory: on CPU, for each pixel and class 4 bytes (in float32), for each vertex and class 4 (for positions alone 8)
        and 4 more for each tile of up to 3072 pixels that names the vertex, and while a lattice is
        built up to 70 bytes for each pixel and vertex of its simplex (3 for positions, 6 with colours), and 8 (D + 1)
        bytes for each vertex, D being 2 or 5. On CUDA 8 bytes for each pixel and class, 4 for each class and vertex of
        all lattices and 4 more for those of the largest, and up to 75 for each pixel and vertex of its simplex while
        the lattices are built, 16 after. Vertices are at most 3 or 6 for each pixel, in photos far fewer; under graph
        capture memory is taken for the most. There is no `memory_limit`: the softmax needs all classes of a pixel in
        each iteration, so two of these arrays hold all classes in any case.
    Reference: Krahenbuhl and Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials",
        2011. See `ovs_kernels.reference.crf`.

    Example:
        >>> import torch, ovs_kernels
        >>> image = torch.zeros(3, 4, 6)
        >>> image[:, :, 3:] = 1.0                       # black left, white right
        >>> foreground = 0.1 + 0.8 * image[0]
        >>> foreground[1, 4] = 0.3                      # one pixel that got it wrong
        >>> probabilities = torch.stack((1 - foreground, foreground))
        >>> ovs_kernels.dense_crf(image, probabilities, labels=True)[1].tolist()
        [0, 0, 0, 1, 1, 1]
    """
    if features is not None and not isinstance(features, (list, tuple)):
        wrong_type("dense_crf", "features", "a list of [F, H, W] arrays", kind_text(features))
    features = list(features or [])
    try:
        num_compat = len(features_compat)
    except TypeError:
        wrong_type("dense_crf", "features_compat", "a list, one for each of features", kind_text(features_compat))
    if num_compat != len(features):
        wrong_value("dense_crf", "features_compat", f"one for each of features, {len(features)}", num_compat)
    named = [("gaussian_compat", gaussian_compat), ("bilateral_compat", bilateral_compat)]
    terms = [(name, value) for name, value in named if value is not None]
    terms += [(f"features_compat[{index}]", value) for index, value in enumerate(features_compat)]
    compat, ranks = _flat_compat(terms, probabilities)
    if gaussian_filter not in ("lattice", "exact"):
        wrong_value("dense_crf", "gaussian_filter", "'lattice' or 'exact'", repr(gaussian_filter))
    gaussian, bilateral = [], []
    if gaussian_compat is not None:
        gaussian = _scales("gaussian_sxy", gaussian_sxy, 2)
    if bilateral_compat is not None:
        bilateral = _scales("bilateral_sxy", bilateral_sxy, 2) + _scales("bilateral_srgb", bilateral_srgb, 3)
    return torch.ops.ovs_kernels.dense_crf(
        image,
        probabilities,
        iterations,
        gaussian,
        gaussian_filter == "exact",
        bilateral,
        features,
        compat,
        ranks,
        normalization,
        energies,
        clip,
        labels,
    )


@accepts_arrays("features", "values")
def permutohedral_filter(
    features: Tensor,
    values: Tensor,
    *,
    normalization: str = "none",
    transpose: bool = False,
    memory_limit: int | None = None,
) -> Tensor:
    """Gaussian filter in a feature space of any dimension, through the permutohedral lattice.

    ::

        y_i = sum_j exp(-|f_i - f_j|^2 / 2) x_j       approximately: splat, blur along D + 1 axes, slice

    The weights are those of pydensecrf's filter, blur order and all, so they are symmetric only approximately.

    Args:
        features: [N, D] float, 1 <= D <= 16, divided by their standard deviations.
        values: [N, C] float, any scale.
        normalization: with n = the filter of ones: "none"; "symmetric" n^-1/2 on both sides, "before" n^-1 on the
            values, "after" n^-1 on the result (a weighted mean).
        transpose: the transpose of the filter.
        memory_limit: bytes of scratch memory at most, the lattice with it; columns of values are then filtered fewer at
            a time, with the same result. Not used by the definition.

    Returns:
        [N, C] in the dtype of `values`.

    Raises:
        TypeError: wrong kind or dtype of an argument.
        ValueError: wrong shape, range or device of an argument, or a `memory_limit` that is too small.

    Devices/dtypes: CPU and CUDA; float32, float16 and bfloat16 (computed in float32), float64 (in float64 on both).
        Positions in the lattice are worked out in float64 always. On CUDA the host waits once, for the number of
        vertices; under graph capture it does not, and memory is taken for the most.
    Differentiable: by `values`, any number of times (the function is linear). Not by `features`.
    Deterministic: yes; on CPU for any number of threads, on CUDA in every run.
    Non-finite: a point whose features are NaN or Inf, or beyond the lattice's 16-bit coordinates, is alone: its result
        is 0 and its value reaches nobody. A NaN or Inf in a value reaches all points nearby, in its column.
    Memory: on CPU C values per vertex, of which there are at most (D + 1) N, twice for even D, and C values per vertex
        and tile of up to 3072 points that names it; while the lattice is built up to 70 (D + 1) bytes per point for
        D <= 7, and 8 (D + 1) per vertex. On CUDA two arrays of C values per vertex, one per point, and up to 75 (D + 1)
        bytes per point for the lattice. `memory_limit` makes the arrays of C values smaller, not the lattice.
    Reference: Adams, Baek and Davis, "Fast High-Dimensional Filtering Using the Permutohedral Lattice" (2010). See
        `ovs_kernels.reference.crf`.

    Example:
        >>> import torch, ovs_kernels
        >>> features = torch.tensor([[0.0, 0.0], [0.0, 0.0], [9.0, 9.0]])      # two together, one far away
        >>> values = torch.tensor([[1.0], [3.0], [5.0]])
        >>> ovs_kernels.permutohedral_filter(features, values, normalization="after").round(decimals=4).tolist()
        [[2.0], [2.0], [5.0]]
    """
    return torch.ops.ovs_kernels.permutohedral_filter(features, values, normalization, transpose, memory_limit)


def _scales(name: str, value: object, count: int) -> list[float]:
    """One number for all, or one for each."""
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        return [float(value)] * count
    items = value.tolist() if isinstance(value, (np.ndarray, Tensor)) else value
    if not isinstance(items, (list, tuple)) or not all(
        isinstance(item, numbers.Real) and not isinstance(item, bool) for item in items
    ):
        wrong_type("dense_crf", name, f"a number or {count} numbers", kind_text(value))
    if len(items) != count:
        wrong_value("dense_crf", name, f"a number or {count} numbers", len(items))
    return [float(item) for item in items]


def _flat_compat(terms: list[tuple[str, object]], probabilities: Tensor) -> tuple[list[float], list[int]]:
    """The numbers of all compatibilities one after the other, and how many axes each has."""
    num_classes = probabilities.shape[-3] if probabilities.dim() >= 3 else 0
    flat, ranks = [], []
    for name, value in terms:
        table = _compat_table(name, value)
        if table.shape not in ((), (num_classes,), (num_classes, num_classes)):
            expected = f"a number, [C] or [C, C] with C={num_classes} (that of probabilities)"
            wrong_value("dense_crf", name, expected, shape_text(table.shape))
        if not table.isfinite().all():
            wrong_value("dense_crf", name, "finite numbers", table[~table.isfinite()].flatten()[0].item())
        if (table.abs() > LARGEST_COMPAT).any():
            largest = table.flatten()[table.abs().argmax()].item()
            wrong_value("dense_crf", name, "numbers within the range of float32", largest)
        flat += table.reshape(-1).tolist()
        ranks.append(table.dim())
    return flat, ranks


def _compat_table(name: str, value: object) -> Tensor:
    if isinstance(value, (list, tuple)):
        try:
            value = np.asarray(value, dtype=np.float64)
        except (TypeError, ValueError):
            wrong_type("dense_crf", name, "numbers, or rows of them of one length", kind_text(value))
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        return torch.tensor(float(value), dtype=torch.float64)
    if not isinstance(value, (np.ndarray, Tensor)) and not hasattr(value, "__dlpack__"):
        wrong_type("dense_crf", name, "a number, or a list or an array of them", kind_text(value))
    tensor = as_tensor("dense_crf", name, value)
    if tensor.is_complex() or tensor.dtype == torch.bool:
        wrong_type("dense_crf", name, "real numbers", str(tensor.dtype).removeprefix("torch."))
    return tensor.detach().cpu().double()
