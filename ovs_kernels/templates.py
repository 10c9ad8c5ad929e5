"""FLOSS: which prompt templates are experts for a class, and the fusion of the experts."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from . import _ops  # noqa: F401  (registers torch.ops.ovs_kernels)
from ._arrays import accepts_arrays, integer_table
from ._checks import expect_choice, expect_rank, kind_text, shape_text, wrong_value
from .windows import _two_integers

# The sums of a TemplateScores, in their order, and whether large is good in the rankings made of them.
SUMS = ("entropy", "probability", "softmax_power", "taylor_power", "divergence")
METRICS = {"entropy": False, "probability": True, "mano": True}
FRACTION_BITS = 32
MANO_ORDER, MANO_THRESHOLD = 4, 5.0
DICT_VERSION = 1


@dataclasses.dataclass(frozen=True)
class TemplateScores:
    """Counts and sums by template and predicted class, of any number of images.

    The sums are integers in units of 2^-32, kept in two parts, and the counts are integers: `a + b` is exact, so the
    images may be split over processes and machines in any way and added in any order, and the bits are the same. The
    room is that of 2^63 nats and 2^63 places.

    Attributes:
        counts: [M, K] int64: places (pixels or patches) that template m calls class k.
        whole: [S, M, K] int64 and
        fraction: [S, M, K] int64 in [0, 2^32): the sums are whole + fraction / 2^32, in the order of `SUMS`; S is 2, or
            5 with MaNo.
        total: places that were looked at, those without usable features included.
    """

    counts: Any
    whole: Any
    fraction: Any
    total: int

    def __post_init__(self):
        if self.whole.shape != self.fraction.shape or self.whole.shape[1:] != self.counts.shape:
            shapes = ", ".join(shape_text(part.shape) for part in (self.counts, self.whole, self.fraction))
            wrong_value("TemplateScores", "counts", "[M, K], and [S, M, K] for whole and fraction", shapes)

    def __add__(self, other: "TemplateScores") -> "TemplateScores":
        if not isinstance(other, TemplateScores):
            return NotImplemented
        if self.whole.shape != other.whole.shape:
            expected = f"{shape_text(self.whole.shape)} sums by template and class"
            wrong_value("TemplateScores", "+", expected, shape_text(other.whole.shape))
        fraction = self.fraction + other.fraction
        whole = self.whole + other.whole + (fraction >> FRACTION_BITS)
        return TemplateScores(
            self.counts + other.counts, whole, fraction & (2**FRACTION_BITS - 1), self.total + other.total
        )

    def sum_of(self, name: str) -> Any:
        """One of the sums as [M, K] float64 (rounded; the exact one is in `whole` and `fraction`)."""
        names = SUMS[: self.whole.shape[0]]
        expect_choice("TemplateScores", "name", name, names)
        index = names.index(name)
        return _float64(self.whole[index]) + _float64(self.fraction[index]) / 2**FRACTION_BITS

    @property
    def mean_entropy(self) -> Any:
        """[M, K] float64: what FLOSS ranks by, low is good; 0 where a template predicts a class nowhere."""
        return self._mean("entropy")

    @property
    def mean_probability(self) -> Any:
        """[M, K] float64: mean probability of the predicted class, high is good; 0 without a prediction."""
        return self._mean("probability")

    @property
    def percentage(self) -> Any:
        """[M, K] float64: share of all places that a template calls this class, in percent."""
        return 100.0 * _float64(self.counts) / max(self.total, 1)

    @property
    def mano(self) -> Any:
        """[M, K] float64: MaNo over the places a template calls this class, high is good; 0 without a prediction.

        ::

            (1/(n K) sum over n places and K classes of s^4)^(1/4)

        with s the softmax where the mean divergence - 1/(n K) sum ln softmax is above 5, else (1 + q + q^2/2)
        normalised (the softrun of MaNo, arXiv 2405.18979).
        """
        if self.whole.shape[0] < len(SUMS):
            wrong_value("TemplateScores", "mano", "scores made with mano=True", "scores without its sums")
        taylor = _float64(self._mean("divergence") <= MANO_THRESHOLD)
        power = taylor * self._mean("taylor_power") + (1.0 - taylor) * self._mean("softmax_power")
        return (power / self.counts.shape[1]) ** (1.0 / MANO_ORDER)

    def _mean(self, name: str) -> Any:
        return self.sum_of(name) / _float64(self.counts.clip(min=1))

    def ranking(self, metric: str = "entropy") -> list[list[int]]:
        """For each class the templates that predict it at all, best first (equals in the order of their numbers)."""
        high_is_good = METRICS[expect_choice("TemplateScores", "metric", metric, METRICS)]
        values = {"entropy": lambda: self.mean_entropy, "probability": lambda: self.mean_probability}
        columns = values.get(metric, lambda: self.mano)().tolist()
        counts = self.counts.tolist()
        ranked = []
        for k in range(self.counts.shape[1]):
            used = [m for m in range(len(counts)) if counts[m][k] > 0]
            ranked.append(sorted(used, key=lambda m: -columns[m][k] if high_is_good else columns[m][k]))
        return ranked

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and lists, for JSON; the sums are exact integers in units of 2^-32."""
        whole, fraction = self.whole.tolist(), self.fraction.tolist()
        sums = {
            name: [
                [(high << FRACTION_BITS) + low for high, low in zip(*rows, strict=True)]
                for rows in zip(whole[index], fraction[index], strict=True)
            ]
            for index, name in enumerate(SUMS[: len(whole)])
        }
        return {"version": DICT_VERSION, "total": int(self.total), "counts": self.counts.tolist(), "sums_2e-32": sums}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TemplateScores":
        """The inverse of `to_dict`; the arrays are torch tensors on the CPU.

        Raises:
            ValueError: a dictionary that `to_dict` has not made.
        """
        keys = {"version", "total", "counts", "sums_2e-32"}
        if not isinstance(values, Mapping) or set(values) != keys or values["version"] != DICT_VERSION:
            got = sorted(values) if isinstance(values, Mapping) else kind_text(values)
            wrong_value("TemplateScores", "values", f"the keys {sorted(keys)} of version {DICT_VERSION}", got)
        sums = values["sums_2e-32"]
        if list(sums) not in (list(SUMS[:2]), list(SUMS)):
            wrong_value("TemplateScores", "values", f"the sums {list(SUMS[:2])} or {list(SUMS)}", list(sums))
        shape = (len(sums), len(values["counts"]), len(values["counts"][0]) if values["counts"] else 0)
        flat = [number for table in sums.values() for row in table for number in row]
        counts = torch.tensor(values["counts"], dtype=torch.int64).reshape(shape[1:])
        if len(flat) != shape[0] * shape[1] * shape[2]:
            wrong_value("TemplateScores", "values", f"{shape_text(shape)} sums", f"{len(flat)} numbers")
        whole = torch.tensor([number >> FRACTION_BITS for number in flat], dtype=torch.int64).reshape(shape)
        fraction = torch.tensor([number & (2**FRACTION_BITS - 1) for number in flat], dtype=torch.int64)
        return cls(counts, whole, fraction.reshape(shape), int(values["total"]))


def _float64(array: Any) -> Any:
    return array.double() if isinstance(array, Tensor) else array.astype("float64")


@accepts_arrays("features", "text_embeddings")
def template_entropy(
    features: Tensor,
    text_embeddings: Tensor,
    *,
    temperature: float = 0.01,
    assume_normalized: bool = False,
    mode: str = "patch",
    boxes: Tensor | Sequence | None = None,
    size: tuple[int, int] | None = None,
    out_size: tuple[int, int] | None = None,
    mano: bool = False,
    interpolate: str = "probabilities",
    groups: Tensor | Sequence | None = None,
) -> TemplateScores:
    """What FLOSS ranks prompt templates by: the entropy of each template's predictions, by predicted class.

    Template m classifies every place x (a patch, or a pixel) with its own K embeddings::

        p_m(x, .) = softmax_j cos(f_x, e_mj) / temperature       k = argmax_j p_m(x, j), lowest index of equals
        H[m, k]   = mean over the places that m calls k of - sum_j p_m(x, j) ln p_m(x, j)

    and the templates with the lowest H[., k] are the experts for class k. In mode "patch" the places are the patches.
    In mode "pixel_exact" they are the pixels of the original image, as in the released code: the probabilities of the
    patches are upsampled to their window, averaged over the windows that overlap, and resized to the original
    size, before argmax and entropy. Averages of neighbours have a higher entropy, so the two modes rank alike, not
    equally; "patch" takes a fraction of the time. Neither makes a [P, M, K] or [M, K, H, W] array.

    NACLIP's released code interpolates the cosines instead and takes the softmax of the pixels
    (`interpolate="logits"`), and lets several query words stand for one class (`groups`): the probability of a class is
    the largest among its queries, in p_m(x, .) above, so that the probabilities of the K classes need not sum to one.

    The results of several images are added: `template_entropy(a, ...) + template_entropy(b, ...)`, exactly.

    Args:
        features: [P, d] float patch features; in mode "pixel_exact" [n, h, w, d], one patch grid per window.
        text_embeddings: [M, K, d] float: template m with class k; with `groups` [M, Q, d], with query q.
        temperature: divides the cosines.
        assume_normalized: features and embeddings have unit length already; they are normalised here otherwise.
        mode: "patch" or "pixel_exact".
        boxes: [n, 4] integers (y0, x0, y1, x1), half-open: where the windows lie in the working image ("pixel_exact").
            They form a grid: every range of rows with every range of columns, as `window_boxes` makes them, in any
            order, and cover every pixel. None for one window that is the whole image. Read on the host.
        size: height H and width W of the working image, in which the boxes are ("pixel_exact").
        out_size: height and width of the original image; None is `size`.
        mano: also collect what `TemplateScores.mano` needs (mode "patch" only, without `groups`).
        interpolate: what is interpolated between patches in mode "pixel_exact": "probabilities" (MaskCLIP,
            CLIP-DINOiser) or "logits" (NACLIP).
        groups: [Q] integers, the class of each query: each of 0 to K - 1 at least once. None where each query is a
            class. Read on the host.

    Returns:
        A `TemplateScores`; its arrays are of the caller's kind and on the device of `features`.

    Raises:
        TypeError: wrong kind or dtype of an argument.
        ValueError: wrong shape, range or device of an argument, boxes that are no grid or leave a pixel out, or more
            than 2^26 places (2^22 with `mano`).

    Devices/dtypes: CPU and CUDA; float32, float16 and bfloat16 (computed in float32), float64 (on CUDA by the
        reference). The entropy of a place is rounded to a multiple of 2^-32. Patches on a CPU with AVX-512 are
        multiplied as 16-bit integers where cosines are then off by at most d 2^-23; see docs/templates.md.
    Differentiable: no.
    Deterministic: yes. What is added up are integers, so neither the number of threads nor the order matters; the
        entropies themselves come from a matrix product and from the processor's instruction set, so another machine
        may differ in the last digits of a place.
    Non-finite: a patch whose features are zero, NaN or Inf has no probabilities. It is not counted, and in
        "pixel_exact" neither are the pixels that are interpolated from it; `total` counts them. An embedding that
        is zero, NaN or Inf (with `assume_normalized` NaN only) leaves all places of its template uncounted.
    Memory: the logits of some templates, 4 MiB (on CUDA 256 MiB) or those of one; in "pixel_exact" on CPU besides 64
        bytes per class and row of patches for each thread. Products of integers take 2 bytes P d, and 2 bytes K d for
        each thread, instead.
    Reference: FLOSS (arXiv 2504.10487), section on class-experts, and its released code, whose 1e-10 inside of the
        logarithm is left out. See `ovs_kernels.reference.templates`.

    Example:
        >>> import torch, ovs_kernels
        >>> features = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> sharp, vague = torch.eye(2), torch.tensor([[1.0, 0.9], [0.9, 1.0]])
        >>> scores = ovs_kernels.template_entropy(features, torch.stack((vague, sharp)))
        >>> scores.counts.tolist(), scores.ranking()
        ([[1, 1], [1, 1]], [[1, 0], [1, 0]])
        >>> (scores + scores).total
        4
    """
    table = None if boxes is None else integer_table("template_entropy", "boxes", boxes)
    sizes = [None if value is None else _pair("template_entropy", "size", value) for value in (size, out_size)]
    classes = None if groups is None else _class_numbers(groups)
    counts, sums = torch.ops.ovs_kernels.template_entropy(
        features, text_embeddings, temperature, assume_normalized, mode, table, *sizes, mano, interpolate, classes
    )
    mask = 2**FRACTION_BITS - 1
    total = features.shape[0] if mode == "patch" else (sizes[1] or sizes[0])[0] * (sizes[1] or sizes[0])[1]
    return TemplateScores(counts, sums >> FRACTION_BITS, sums & mask, total)


@accepts_arrays("features", "experts")
def fuse_experts(
    features: Tensor,
    experts: Tensor,
    size: tuple[int, int],
    *,
    boxes: Tensor | Sequence | None = None,
    strategy: str = "highest",
    temperature: float = 0.01,
    assume_normalized: bool = False,
    labels: bool = False,
    return_winners: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """The fusion of FLOSS: each pixel gets the probabilities of the expert that speaks for it.

    Expert e classifies a window with the embeddings of class e's best templates, and votes where it finds its own
    class::

        q_e(p, .) = softmax_j <f_p, E_ej> / temperature     Q_e = bilinear upsampling of q_e from the patches
        A(x)      = { e : argmax_j Q_e(x, j) = e }          lowest index of equals

    The result at pixel x is the whole vector Q_e(x, .) of the e in A(x) with the highest Q_e(x, e), or that of the
    default Q_K where nobody votes. [K + 1, K, H, W] is never made: which experts vote is decided for the cell between
    four patches, where probabilities are convex combinations of those of its corners, and per pixel only for the few
    that the corners leave open; the answer is that of the definition.

    Args:
        features: [n, h, w, d] float, the patch grid of each window.
        experts: [K + 1, K, d] float: expert e's embedding of class j, the last one being the default. Used as they
            are: FLOSS averages unit embeddings and does not normalise the mean for MaskCLIP and CLIP-DINOiser.
        size: height and width of a window in pixels; with `boxes` height H and width W of the image.
        boxes: [n, 4] integers (y0, x0, y1, x1), half-open: merge the windows, each upsampled to its box, and return
            their average over the image, without the results of the single windows. Every pixel needs a window. Read
            on the host.
        strategy: "highest" as above; the others are those of the paper's ablation: "default_on_conflict" (the
            default where two or more vote), "average_conflicting" (the mean of those that vote) and "average" (the
            mean of all K experts).
        temperature: divides the products.
        assume_normalized: the features have unit length already; they are normalised here otherwise.
        labels: return the most likely class of each pixel; never writes K x H x W. Not with `boxes`.
        return_winners: also return which expert each pixel's probabilities are from, K being the default. Not with
            `boxes`, nor with a strategy that averages.

    Returns:
        [n, K, hw, ww] probabilities in the dtype of `features`; with `boxes` [K, H, W]; with `labels` [n, hw, ww],
        uint8 for at most 255 classes, else int32. With `return_winners` a tuple of that and [n, hw, ww] int32.

    Raises:
        TypeError: wrong kind or dtype of an argument.
        ValueError: wrong shape, range or device of an argument, a box that is empty or not inside the image, or a
            pixel that no window covers.

    Devices/dtypes: CPU and CUDA; float32, float16 and bfloat16 (computed in float32), float64 (on CUDA by the
        reference).
    Differentiable: no.
    Deterministic: yes, on CPU for any number of threads as far as torch's matrix product is.
    Non-finite: a patch whose features are zero, NaN or Inf has uniform probabilities in every expert, and a pixel
        with such a patch among the 2 x 2 it is interpolated from takes the default.
    Memory: the probabilities of one window at its patches, 4 h w K (K + 1) bytes, besides the result: 92 MB for
        28 x 28 patches and 171 classes.
    Reference: FLOSS (arXiv 2504.10487), fusion of class-experts per window as in the released code, before the windows
        are averaged. See `ovs_kernels.reference.templates`.

    Example:
        >>> import torch, ovs_kernels
        >>> features = torch.tensor([[[[1.0, 0.0], [0.0, 1.0]]]])              # one window of two patches
        >>> experts = torch.eye(2).repeat(3, 1, 1)                            # both experts and the default agree
        >>> ovs_kernels.fuse_experts(features, experts, (1, 4), labels=True).tolist()
        [[[0, 0, 1, 1]]]
    """
    table = None if boxes is None else integer_table("fuse_experts", "boxes", boxes)
    result, winners = torch.ops.ovs_kernels.fuse_experts(
        features,
        experts,
        _pair("fuse_experts", "size", size),
        table,
        strategy,
        temperature,
        assume_normalized,
        labels,
        return_winners,
    )
    return (result, winners) if return_winners else result


def _class_numbers(groups: object) -> list[int]:
    """The numbers of a one-dimensional table of integers."""
    if isinstance(groups, (list, tuple)):
        return integer_table("template_entropy", "groups", [groups])[0].tolist()
    table = integer_table("template_entropy", "groups", groups)
    expect_rank("template_entropy", "groups", table, "Q")
    return table.tolist()


def _pair(op: str, name: str, value: object) -> list[int]:
    return list(_two_integers(op, name, value, 1))
