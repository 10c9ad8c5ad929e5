"""`DenseCRF` and `DenseCRF2D` on `ovs_kernels.dense_crf`, and the constants, under pydensecrf's names.

`inference` is one call of `dense_crf`. `stepInference` and `klDivergence` filter by one lattice per term, built when it
is first needed and kept. Computed on the CPU, with `torch.get_num_threads()` threads.

What differs from pydensecrf: wrong sizes, standard deviations of zero, labels and compatibilities that do not fit raise
ValueError where it crashes or reads memory that is not its own; so do features beyond the lattice's 16-bit coordinates,
more than 16 features, and NaN in features. An energy that is NaN or infinite counts as 1e30 with its sign, where NaN
would spread over the image. Where the number of variables is no multiple of 4, pydensecrf's lattices also have the
vertices at the origin of the features, which ours have only if a variable lies there. Classes can be derived from.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor

from ..._checks import kind_text, shape_text, wrong_type, wrong_value
from ..._ops.crf import MAX_FEATURES, needed_scale
from ..._ops.crf_filter import LatticeFilter
from ...crf import dense_crf
from ...reference.crf import LARGEST_ENERGY, largest_position, lattice_positions
from . import eigen
from ._arguments import array, choice, compatibility, extent, integer, scales
from ._fork import one_thread_after_fork
from .eigen import MatrixXf


class NormalizationType(IntEnum):
    """What the responses of a kernel are divided by."""

    NO_NORMALIZATION = 0
    NORMALIZE_BEFORE = 1
    NORMALIZE_AFTER = 2
    NORMALIZE_SYMMETRIC = 3


class KernelType(IntEnum):
    """Which parameters of a kernel could be learnt; inference is the same for all of them."""

    CONST_KERNEL = 0
    DIAG_KERNEL = 1
    FULL_KERNEL = 2


NO_NORMALIZATION, NORMALIZE_BEFORE, NORMALIZE_AFTER, NORMALIZE_SYMMETRIC = NormalizationType
CONST_KERNEL, DIAG_KERNEL, FULL_KERNEL = KernelType
# Variables at a time where arrays of all of them would leave the cache.
CHUNK = 16384
OUR_NAMES = dict(zip(NormalizationType, ("none", "before", "after", "symmetric"), strict=True))

__all__ = [
    "CONST_KERNEL",
    "DIAG_KERNEL",
    "FULL_KERNEL",
    "NORMALIZE_AFTER",
    "NORMALIZE_BEFORE",
    "NORMALIZE_SYMMETRIC",
    "NO_NORMALIZATION",
    "ConstUnary",
    "DenseCRF",
    "DenseCRF2D",
    "KernelType",
    "LogisticUnary",
    "NormalizationType",
    "Unary",
    "eigen",
]


class Unary:
    """Energies of labels; this one has none, which counts as zero."""

    energies: np.ndarray | None = None


class ConstUnary(Unary):
    """Energies [C, N], float32 and C-contiguous; a copy is kept."""

    def __init__(self, u: np.ndarray):
        self.energies = array("ConstUnary", "u", u, "float32", "C, N").copy()


class LogisticUnary(Unary):
    """Energies L f, of L [C, F] and f [F, N], float32 and C-contiguous."""

    def __init__(self, L: np.ndarray, f: np.ndarray):
        self.energies = _product("LogisticUnary", "L", L, f)


def _product(op: str, name: str, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    left = array(op, name, left, "float32", "C, F")
    right = array(op, "f", right, "float32", "F, N")
    if right.shape[0] != left.shape[1]:
        wrong_value(op, "f", f"[F, N] with F={left.shape[1]} (that of {name})", shape_text(right.shape))
    return left @ right


@dataclass(frozen=True, eq=False)
class _Term:
    """One pairwise term: `kind` "gaussian" or "bilateral" with standard deviations, or "features"."""

    kind: str
    scales: list[float]
    compat: float | np.ndarray
    normalization: str
    image: Tensor | None = None  # [3, H, W] uint8
    given: Tensor | None = None  # [F, N] float32

    def features(self, height: int, width: int) -> Tensor:
        """[D, N] float32, divided by their standard deviations."""
        if self.given is not None:
            return self.given
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        planes = torch.stack((columns, rows)).float()
        if self.image is not None:
            planes = torch.cat((planes, self.image.float()))
        return (planes / torch.tensor(self.scales)[:, None, None]).flatten(1)


class DenseCRF:
    """A fully connected CRF over `nvar` variables with `nlabels` labels each."""

    def __init__(self, nvar: int, nlabels: int, *_: object, **__: object):
        self._set_up(1, extent("DenseCRF", "nvar", nvar), extent("DenseCRF", "nlabels", nlabels))

    def _set_up(self, height: int, width: int, num_labels: int) -> None:
        self._height, self._width, self._num_labels = height, width, num_labels
        self._energies: Tensor | None = None  # [C, N] float32
        self._terms: list[_Term] = []
        # What was needed outside of `inference` and is kept: lattices, and -E as rows.
        self._filters: dict[_Term, LatticeFilter] = {}
        self._negative_rows: Tensor | None = None  # [N, C] float32, finite

    @property
    def _num_points(self) -> int:
        return self._height * self._width

    # Energies

    def setUnary(self, u: Unary) -> None:
        """Sets the energies of a `ConstUnary` or `LogisticUnary`."""
        _expect_kind("setUnary", "u", u, Unary, "pydensecrf.densecrf.Unary")
        self._set_energies("setUnary", u.energies)

    def setUnaryEnergy(self, u: np.ndarray, f: np.ndarray | None = None) -> None:
        """Sets the energies u [nlabels, nvar], or u f; float32 and C-contiguous. They are copied."""
        checked = array("setUnaryEnergy", "u", u, "float32", "C, N")
        self._check_energies("setUnaryEnergy", checked)
        self._set_energies("setUnaryEnergy", checked if f is None else _product("setUnaryEnergy", "u", u, f))

    def _check_energies(self, op: str, energies: np.ndarray) -> None:
        needed = (self._num_labels, self._num_points)
        if energies.shape != needed:
            words = f"Bad shape for unary energy (Need {needed}, got {energies.shape})"
            expected = f"[C, N] with C={needed[0]} labels, N={needed[1]} variables"
            wrong_value(op, "u", expected, f"{shape_text(energies.shape)} ({words})")

    def _set_energies(self, op: str, energies: np.ndarray | None) -> None:
        self._negative_rows = None
        if energies is None:
            self._energies = None
            return
        self._check_energies(op, energies)
        self._energies = torch.from_numpy(energies.copy())

    # Pairwise terms

    @one_thread_after_fork
    def addPairwiseEnergy(
        self,
        features: np.ndarray,
        compat: float | np.ndarray,
        kernel: int = DIAG_KERNEL,
        normalization: int = NORMALIZE_SYMMETRIC,
    ) -> None:
        """Adds a Gaussian kernel over features [F, nvar], float32, divided by their standard deviations."""
        op = "addPairwiseEnergy"
        found = array(op, "features", features, "float32", "F, N")
        if found.shape[1] != self._num_points:
            words = f"Bad shape for pairwise energy (Need (?, {self._num_points}), got {found.shape})"
            wrong_value(op, "features", f"[F, N] with N={self._num_points}", f"{shape_text(found.shape)} ({words})")
        if not 1 <= found.shape[0] <= MAX_FEATURES:
            wrong_value(op, "features", f"[F, N] with 1 <= F <= {MAX_FEATURES}", shape_text(found.shape))
        self._add(op, _Term("features", [], compat, normalization, given=torch.from_numpy(found.copy())), kernel)

    def _add(self, op: str, term: _Term, kernel: int) -> None:
        """Checks what all terms have."""
        choice(op, "kernel", kernel, KernelType)
        name = OUR_NAMES[choice(op, "normalization", term.normalization, NormalizationType)]
        compat = compatibility(op, term.compat, self._num_labels)
        if term.kind == "features":
            self._check_reach(op, term.given)
        self._terms.append(_Term(term.kind, term.scales, compat, name, term.image, term.given))

    def _check_reach(self, op: str, features: Tensor) -> None:
        """The lattice would lose points, silently, beyond its coordinates."""
        for chunk in features.split(1 << 16, dim=1):
            position = lattice_positions(chunk.t().double()).abs()
            if not (position <= largest_position(len(features))).all():  # NaN either
                worst = chunk.abs().amax(1).argmax().item()
                expected = "finite numbers within the 16-bit coordinates of the lattice"
                wrong_value(op, "features", expected, f"{chunk[worst].abs().max().item():.3g} in features[{worst}]")

    # Inference

    @one_thread_after_fork
    def inference(self, niter: int) -> MatrixXf:
        """Marginals after `niter` steps of mean field, [nlabels, nvar]."""
        return _matrix(self._inference(max(integer("inference", "niter", niter), 0)))

    @one_thread_after_fork
    def startInference(self) -> tuple[MatrixXf, MatrixXf, MatrixXf]:
        """Q for `stepInference`, the softmax of minus the energies (zeros without energies), and two empty matrices."""
        start = torch.zeros(self._num_labels, self._num_points) if self._energies is None else self._inference(0)
        return _matrix(start), MatrixXf(), MatrixXf()

    @one_thread_after_fork
    def stepInference(self, Q: MatrixXf, tmp1: MatrixXf, tmp2: MatrixXf) -> None:
        """One step of mean field, in the memory of Q; the others are left alone."""
        for name, value in (("Q", Q), ("tmp1", tmp1), ("tmp2", tmp2)):
            _expect_matrix("stepInference", name, value)
        for q, exponents in self._chunks(self._rows("stepInference", Q)):
            q.copy_(exponents.softmax(1))

    @one_thread_after_fork
    def klDivergence(self, Q: MatrixXf) -> float:
        """The sum of Q (log(max(Q, 1e-20)) + E - what the terms add to the exponents), over labels and variables.

        Each pair counts twice, a pixel is a neighbour of itself, and the logarithm of the partition function is left
        out, all as in pydensecrf. Sums are taken in float64.
        """
        _expect_matrix("klDivergence", "Q", Q)
        total = 0.0
        for q, exponents in self._chunks(self._rows("klDivergence", Q)):
            total += (q * (q.clamp(min=1e-20).log() - exponents)).sum(dtype=torch.float64).item()
        return total

    def _inference(self, iterations: int) -> Tensor:
        """[C, N]."""
        size = (self._num_labels, self._height, self._width)
        energies = torch.zeros(size) if self._energies is None else self._energies.reshape(size)
        terms = self._terms if iterations > 0 and energies.numel() > 0 else []
        if len({term.normalization for term in terms}) > 1:
            return self._inference_by_steps(energies, iterations)
        chosen = {kind: _first_of(terms, kind) for kind in ("gaussian", "bilateral")}
        others = [term for term in terms if term not in chosen.values()]
        gaussian, bilateral = chosen["gaussian"], chosen["bilateral"]
        options = {}
        if bilateral is not None:
            options |= {"bilateral_sxy": bilateral.scales[:2], "bilateral_srgb": bilateral.scales[2:]}
        if gaussian is not None:
            options |= {"gaussian_sxy": gaussian.scales}
        return dense_crf(
            torch.zeros(3, *size[1:], dtype=torch.uint8) if bilateral is None else bilateral.image,
            energies,
            iterations=iterations,
            gaussian_compat=None if gaussian is None else gaussian.compat,
            bilateral_compat=None if bilateral is None else bilateral.compat,
            features=[term.features(*size[1:]).reshape(-1, *size[1:]) for term in others] or None,
            features_compat=[term.compat for term in others],
            normalization=terms[0].normalization if terms else "symmetric",
            energies=True,
            **options,
        ).flatten(1)

    def _inference_by_steps(self, energies: Tensor, iterations: int) -> Tensor:
        """For terms that are normalised in different ways."""
        start = dense_crf(
            torch.zeros(3, *energies.shape[1:], dtype=torch.uint8),
            energies,
            iterations=0,
            gaussian_compat=None,
            bilateral_compat=None,
            energies=True,
        )
        rows = start.flatten(1).t().contiguous()
        for _ in range(iterations):
            for q, exponents in self._chunks(rows):
                q.copy_(exponents.softmax(1))
        return rows.t()

    def _chunks(self, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Parts of the marginals [N, C], which may be written to, and of -E + what the terms make of all of them."""
        filtered = [self._filter(term)(rows) for term in self._terms] if rows.numel() > 0 else []
        if self._negative_rows is None and self._energies is not None:
            finite = self._energies.nan_to_num(LARGEST_ENERGY, LARGEST_ENERGY, -LARGEST_ENERGY)
            self._negative_rows = -finite.clamp_(-LARGEST_ENERGY, LARGEST_ENERGY).t().contiguous()
        for begin in range(0, len(rows), CHUNK):
            part = slice(begin, begin + CHUNK)
            exponents = torch.zeros(()) if self._negative_rows is None else self._negative_rows[part]
            for term, values in zip(self._terms, filtered, strict=False):
                exponents = _plus_message(exponents, term.compat, values[part])
            yield rows[part], exponents.expand_as(rows[part])

    def _filter(self, term: _Term) -> LatticeFilter:
        """Made once; pydensecrf does that when a term is added."""
        if term not in self._filters:
            rows = term.features(self._height, self._width).t()
            self._filters[term] = LatticeFilter(rows, term.normalization)
        return self._filters[term]

    def _rows(self, op: str, matrix: MatrixXf) -> Tensor:
        """[N, C], sharing the memory."""
        if matrix.shape != (self._num_labels, self._num_points):
            expected = f"[C, N] with C={self._num_labels} labels, N={self._num_points} variables"
            wrong_value(op, "Q", expected, shape_text(matrix.shape))
        # pydensecrf's have no methods that could make others.
        if matrix.dtype != np.float32:
            wrong_value(op, "Q", "float32", matrix.dtype)
        if not matrix.flags.writeable:
            wrong_value(op, "Q", "a matrix that can be written", "a read-only one")
        if matrix.size > 0 and min(matrix.strides) < 0:
            wrong_value(op, "Q", "a matrix without negative strides", f"strides {matrix.strides}")
        return torch.from_numpy(matrix.view(np.ndarray).T)


class DenseCRF2D(DenseCRF):
    """A fully connected CRF over the pixels of an image of width w and height h."""

    def __init__(self, w: int, h: int, nlabels: int, *_: object, **__: object):
        width, height = extent("DenseCRF2D", "w", w), extent("DenseCRF2D", "h", h)
        self._set_up(height, width, extent("DenseCRF2D", "nlabels", nlabels))

    @one_thread_after_fork
    def addPairwiseGaussian(
        self,
        sxy: float | tuple[float, float],
        compat: float | np.ndarray,
        kernel: int = DIAG_KERNEL,
        normalization: int = NORMALIZE_SYMMETRIC,
    ) -> None:
        """Adds a Gaussian kernel over positions, `sxy` one standard deviation in pixels or (sx, sy)."""
        op = "addPairwiseGaussian"
        self._add_grid(op, _Term("gaussian", scales(op, "sxy", sxy, 2), compat, normalization), kernel)

    @one_thread_after_fork
    def addPairwiseBilateral(
        self,
        sxy: float | tuple[float, float],
        srgb: float | tuple[float, float, float],
        rgbim: np.ndarray,
        compat: float | np.ndarray,
        kernel: int = DIAG_KERNEL,
        normalization: int = NORMALIZE_SYMMETRIC,
    ) -> None:
        """Adds a Gaussian kernel over positions and colours; rgbim [h, w, 3] uint8, C-contiguous."""
        op = "addPairwiseBilateral"
        deviations = scales(op, "sxy", sxy, 2) + scales(op, "srgb", srgb, 3)
        image = array(op, "rgbim", rgbim, "uint8", "H, W, 3")
        if image.shape[:2] != (self._height, self._width):
            needed = (self._height, self._width, 3)
            words = f"Bad shape for pairwise bilateral (Need {needed}, got {image.shape})"
            wrong_value(op, "rgbim", shape_text(needed), f"{shape_text(image.shape)} ({words})")
        if image.shape[2] != 3:
            words = "addPairwiseBilateral only works for RGB images"
            advice = "other channels: utils.create_pairwise_bilateral and addPairwiseEnergy"
            wrong_value(op, "rgbim", "[H, W, 3]", f"{shape_text(image.shape)}; {advice} ({words})")
        planes = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        self._add_grid(op, _Term("bilateral", deviations, compat, normalization, image=planes), kernel)

    def _add_grid(self, op: str, term: _Term, kernel: int) -> None:
        """Adds a term over positions, if the image stays within the lattice."""
        largest = [max(self._width - 1, 0), max(self._height - 1, 0), 255, 255, 255][: len(term.scales)]
        found = needed_scale(["sxy", "sxy", "srgb", "srgb", "srgb"][: len(term.scales)], term.scales, largest)
        if found is not None:
            worst, needed = found
            expected = f"a standard deviation of at least {needed:.3g} for this image and a lattice of 16 bits"
            wrong_value(op, "sxy" if worst < 2 else "srgb", expected, term.scales[worst])
        if min(term.scales) < 0 or max(term.scales) == np.inf:  # dense_crf has no such terms: as features
            given = term.features(self._height, self._width)
            term = _Term("features", [], term.compat, term.normalization, given=given)
        self._add(op, term, kernel)


def _first_of(terms: list[_Term], kind: str) -> _Term | None:
    return next((term for term in terms if term.kind == kind), None)


def _plus_message(exponents: Tensor, compat: float | np.ndarray, rows: Tensor) -> Tensor:
    """Exponents plus what a compatibility makes of filtered marginals [N, C]: numbers attract, tables are penalties."""
    if isinstance(compat, float):
        return torch.add(exponents, rows, alpha=compat)
    table = torch.from_numpy(compat)
    if table.dim() == 1:
        return exponents - rows * table
    return exponents - rows @ ((table + table.t()) / 2)


def _matrix(q: Tensor) -> MatrixXf:
    """[C, N] as pydensecrf returns it: the labels of a pixel next to each other."""
    return q.t().contiguous().numpy().T.view(MatrixXf)


def _expect_kind(op: str, name: str, value: object, kind: type, theirs: str) -> None:
    if not isinstance(value, kind):
        words = f"Argument '{name}' has incorrect type (expected {theirs}, got {kind_text(value)})"
        wrong_type(op, name, f"a {kind.__name__}", f"{kind_text(value)} ({words})")


def _expect_matrix(op: str, name: str, value: object) -> None:
    _expect_kind(op, name, value, MatrixXf, "pydensecrf.eigen.MatrixXf")
