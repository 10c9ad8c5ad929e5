"""`ovs_kernels.compat.pydensecrf` against recorded answers of pydensecrf2 1.1, the package itself where it is
installed, and a literal transcription of the mathematics."""

import copy
import inspect
import pickle
from pathlib import Path

import compat_crf_cases as cases
import numpy as np
import pytest
import torch
from crf_inputs import Lattice, bilateral_features, mean_field, normalized, position_features, potts, softmax
from crf_inputs import scene as make_scene

from ovs_kernels.compat.pydensecrf import densecrf, eigen, utils

with np.load(Path(__file__).parent / "data" / "pydensecrf2.npz") as _file:
    RECORDED = dict(_file)
H, W, C, N = cases.H, cases.W, cases.C, cases.N

# pydensecrf's words that end a message of ours, or do not make sense for it.
OTHER_WORDS = {
    "unary float16",
    "unary big-endian",
    "picture 4 channels",
    "picture other size",
    "picture channels first",
    "sxy short",
    "sxy None",
    "srgb short",
    "labels missing",
    "iterations missing",
    "softmax scale",
    "labels certainty",
    "labels too large",
}


def same_answers(found, expected):
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    assert found.flags.f_contiguous == expected.flags.f_contiguous
    # "none": responses of thousands in an exponent, in float32
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-4)


# The same questions


@pytest.mark.parametrize("case", cases.CASES)
def test_recorded(case):
    assert str(RECORDED["checksum"]) == cases.checksum(), "numpy's random numbers have changed: record again"
    for index, found in enumerate(cases.results(case, densecrf, utils)):
        same_answers(found, RECORDED[f"{case}/{index}"])
    assert f"{case}/{index + 1}" not in RECORDED


@pytest.mark.parametrize("case", cases.ERRORS)
def test_recorded_errors(case):
    kind, words = RECORDED[f"error/{case}"]
    found_kind, found = cases.error(case, densecrf, utils)
    assert found_kind == kind
    assert (str(words) in found) == (case not in OTHER_WORDS)


@pytest.fixture(scope="module")
def real():
    found = pytest.importorskip("pydensecrf.densecrf", reason="needs pydensecrf2, which does not build with Cython 3")
    return found, pytest.importorskip("pydensecrf.utils")


def test_the_record_is_that_of_the_installed_package(real):
    for case in cases.CASES:
        for index, found in enumerate(cases.results(case, *real)):
            np.testing.assert_array_equal(found, RECORDED[f"{case}/{index}"])
    for case in cases.ERRORS:
        assert cases.error(case, *real) == tuple(map(str, RECORDED[f"error/{case}"]))


def test_a_picture_against_the_installed_package(real):
    """Many steps with the settings of PnP-OVSS; the labels are what is used."""
    image, probabilities = make_scene(90, 120, 21, 3)
    rgb = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
    results = []
    for dcrf, tools in (real, (densecrf, utils)):
        made = dcrf.DenseCRF2D(120, 90, 21)
        made.setUnaryEnergy(tools.unary_from_softmax(probabilities.numpy()))
        made.addPairwiseGaussian(sxy=3, compat=7)
        made.addPairwiseBilateral(sxy=50, srgb=5, rgbim=rgb, compat=10)
        results.append(np.array(made.inference(10)))
    assert (results[0].argmax(0) == results[1].argmax(0)).mean() > 0.999
    np.testing.assert_allclose(results[0], results[1], atol=1e-3)


def test_what_fills_the_last_group_of_four_of_the_installed_package(real):
    """It takes points four at a time; what fills the last group lies at the origin, and has vertices."""
    count = 41
    given = 0.6 * cases.features(5, count) - np.float32(0.3)
    unary = cases.energies(C, count)
    results = []
    for dcrf in (real[0], densecrf):
        made = dcrf.DenseCRF(count, C)
        made.setUnaryEnergy(unary)
        made.addPairwiseEnergy(given, 3)
        results.append(np.array(made.inference(3)).T)
    points = given.T.astype(np.float64)
    for filled, found in zip((np.concatenate((points, np.zeros((3, 5)))), points), results, strict=True):
        kernel = normalized(Lattice(filled).matrix()[:count, :count])
        expected = mean_field(unary.T.astype(np.float64), [kernel], [potts(3.0, C)], 3)
        np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(results[0] - results[1]).max() > 1e-3


def test_names_and_defaults_of_the_installed_package(real):
    for theirs, ours in zip(real, (densecrf, utils), strict=True):
        names = [name for name in vars(theirs) if not name.startswith("_") and name not in ("Number", "np", "warning")]
        assert set(names) - set(vars(ours)) == set()
    for name in utils.__all__:
        theirs, ours = (inspect.signature(getattr(module, name)).parameters.values() for module in (real[1], utils))
        assert [(p.name, p.default) for p in theirs] == [(p.name, p.default) for p in ours]
    for kind in ("DenseCRF", "DenseCRF2D"):
        methods = {name for name in dir(getattr(real[0], kind)) if not name.startswith("_")}
        assert methods == {name for name in dir(getattr(densecrf, kind)) if not name.startswith("_")}


# The mathematics, as loops and matrices


def literal_terms():
    """(normalised kernel [N, N], penalties [C, C]) of `literal_crf`."""
    image = cases.picture().transpose(2, 0, 1)
    kernels = (Lattice(position_features(H, W, 3, 2)), Lattice(bilateral_features(image, 20.0, 13.0)))
    table = (cases.TABLE.astype(float) + cases.TABLE.T) / 2
    return [(normalized(kernels[0].matrix()), potts(3.0, C)), (normalized(kernels[1].matrix()), table)]


def literal_crf():
    made = cases.crf(densecrf)
    made.addPairwiseGaussian((3, 2), 3)
    made.addPairwiseBilateral(20, 13, cases.picture(), cases.TABLE)
    return made


def literal_divergence(q, energies, terms):
    """q, energies [N, C]: every pair twice, no partition function."""
    entropy = sum(value * np.log(max(value, 1e-20)) for value in q.ravel())
    return entropy + (q * energies).sum() + sum((q * (kernel @ q @ table)).sum() for kernel, table in terms)


def test_against_the_mathematics():
    terms, made = literal_terms(), literal_crf()
    unary = cases.energies().T.astype(np.float64)
    q, one, two = made.startInference()
    for step in range(4):
        expected = mean_field(unary, [kernel for kernel, _ in terms], [table for _, table in terms], step)
        np.testing.assert_allclose(np.array(q).T, expected, atol=1e-5)
        np.testing.assert_allclose(np.array(made.inference(step)).T, expected, atol=1e-5)
        assert made.klDivergence(q) == pytest.approx(literal_divergence(expected, unary, terms), rel=1e-5, abs=1e-3)
        made.stepInference(q, one, two)


def test_lattices_are_built_once(monkeypatch):
    built = []
    kind = densecrf.LatticeFilter
    monkeypatch.setattr(densecrf, "LatticeFilter", lambda *args: built.append(args) or kind(*args))
    made = literal_crf()
    q, one, two = made.startInference()
    for _ in range(3):
        made.stepInference(q, one, two)
        made.klDivergence(q)
    assert len(built) == 2
    made.addPairwiseGaussian(4, 1)  # another one
    made.stepInference(q, one, two)
    assert len(built) == 3


def test_divergence_of_any_marginals():
    terms, made = literal_terms(), literal_crf()
    q = softmax(np.random.default_rng(0).normal(size=(N, C)) * 20)  # some are far below 1e-20
    q[0] = [1, 0, 0, 0]
    expected = literal_divergence(q, cases.energies().T.astype(np.float64), terms)
    found = made.klDivergence(eigen.matrixXf(np.ascontiguousarray(q.T.astype(np.float32))))
    assert isinstance(found, float)
    assert found == pytest.approx(expected, rel=1e-5)


def test_inference_is_one_call(monkeypatch):
    calls = []
    monkeypatch.setattr(densecrf, "dense_crf", lambda *args, **kwargs: calls.append(1) or torch.zeros(C, H, W))
    monkeypatch.setattr(densecrf, "LatticeFilter", None)
    for case in ("symmetric", "many terms", "without grid"):
        if case != "without grid":
            cases.results(case, densecrf, utils)
    assert len(calls) == 2


# What is returned


def test_matrices_offer_their_memory():
    q = cases.both(densecrf)
    assert type(q) is eigen.MatrixXf
    view = memoryview(q)
    assert (view.format, view.shape, view.strides, view.readonly) == ("f", (C, N), (4, 4 * C), False)
    assert np.asarray(q).base is not None
    np.asarray(q)[0, 0] = 9
    assert np.array(q)[0, 0] == 9
    assert not np.shares_memory(np.array(q), q)
    maps = np.array(q).reshape((C, H, W))
    assert (maps[:, 1, 2] == np.asarray(q)[:, W + 2]).all()


def test_results_of_matrices_are_plain():
    q = cases.both(densecrf)
    for found in (np.argmax(q, axis=0), np.array(q), np.asarray(q), q + 1, np.stack([q, q]), 1 - q, np.exp(q)):
        assert type(found) is np.ndarray
    assert torch.from_numpy(np.array(q)).shape == (C, N)
    out = np.empty((C, N), np.float32)
    assert np.add(q, 1, out=out) is out
    q += 1
    assert type(q) is np.ndarray or isinstance(q, eigen.MatrixXf)
    again = pickle.loads(pickle.dumps(cases.both(densecrf)))
    np.testing.assert_array_equal(again, cases.both(densecrf))


def test_empty_matrices():
    assert np.array(eigen.MatrixXf()).shape == (0, 0)
    assert np.array(eigen.VectorXf()).shape == (0,)
    assert np.array(eigen.vectorXf(np.ones(3, np.float32))).tolist() == [1, 1, 1]


def test_steps_write_into_q():
    made = literal_crf()
    q, one, two = made.startInference()
    shared, before = np.asarray(q), np.array(q)
    assert made.stepInference(q, one, two) is None
    assert np.shares_memory(shared, q)
    assert not np.allclose(before, shared)
    assert (one.shape, two.shape) == ((0, 0), (0, 0))


def test_inputs_are_copied():
    unary, image, table = cases.energies(), cases.picture(), cases.TABLE.copy()
    given = cases.features(2)
    made = densecrf.DenseCRF2D(W, H, C)
    made.setUnaryEnergy(unary)
    made.addPairwiseBilateral(20, 13, image, table)
    made.addPairwiseEnergy(given, 3)
    before = np.array(made.inference(2))
    for found in (unary, image, table, given):
        found[:] = 0
    np.testing.assert_array_equal(before, made.inference(2))


def test_constants():
    assert [int(kind) for kind in densecrf.NormalizationType] == [0, 1, 2, 3]
    assert [int(kind) for kind in densecrf.KernelType] == [0, 1, 2]
    assert densecrf.NORMALIZE_SYMMETRIC is densecrf.NormalizationType.NORMALIZE_SYMMETRIC
    assert (densecrf.CONST_KERNEL, densecrf.DIAG_KERNEL, densecrf.FULL_KERNEL) == (0, 1, 2)


# What pydensecrf accepts too


def test_other_ways_to_give_arguments():
    made = densecrf.DenseCRF2D(np.int64(W), float(H), C, "ignored", nothing=3)
    made.setUnaryEnergy(u=memoryview(cases.energies()))
    made.addPairwiseGaussian(compat=np.float32(3), sxy=(3, 2, "not read"), kernel=1.0, normalization=np.int8(3))
    made.addPairwiseBilateral(
        compat=True, rgbim=cases.picture() > 100, srgb=np.array([0.5, 1, 2]), sxy=[20, np.float32(30)]
    )
    expected = cases.crf(densecrf)
    expected.addPairwiseGaussian((3, 2), 3)
    expected.addPairwiseBilateral((20, 30), (0.5, 1, 2), (cases.picture() > 100).astype(np.uint8), 1)
    np.testing.assert_array_equal(made.inference(2), expected.inference(2))


def test_one_column_in_either_order():
    made = densecrf.DenseCRF(1, 3)
    made.setUnaryEnergy(np.asfortranarray(np.array([[0], [1], [2]], np.float32)))
    np.testing.assert_allclose(np.array(made.inference(0)).T, softmax(np.array([[0.0, -1, -2]])), atol=1e-6)


@pytest.mark.parametrize(("w", "h", "labels"), [(0, 4, 2), (3, 2, 0), (0, 0, 0)])
def test_nothing_to_do(w, h, labels):
    made = densecrf.DenseCRF2D(w, h, labels)
    made.addPairwiseGaussian(3, 3)
    assert np.array(made.inference(2)).shape == (labels, w * h)
    q, one, two = made.startInference()
    made.stepInference(q, one, two)
    assert made.klDivergence(q) == 0


# What pydensecrf crashes on, or gets wrong


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda d: d.addPairwiseGaussian(0, 3), "addPairwiseGaussian: sxy: expected standard deviations other than 0"),
        (lambda d: d.addPairwiseGaussian((3, float("nan")), 3), "other than 0, got nan"),
        (lambda d: d.addPairwiseBilateral(0, 5, cases.picture(), 3), "addPairwiseBilateral: sxy: expected standard"),
        (lambda d: d.addPairwiseBilateral(3, (1, 0, 1), cases.picture(), 3), "addPairwiseBilateral: srgb: expected"),
        (lambda d: d.addPairwiseGaussian(1e-4, 3), "sxy: expected a standard deviation of at least 0.0"),
        (lambda d: d.addPairwiseBilateral(9, 1e-3, cases.picture(), 3), "srgb: expected a standard deviation of at l"),
        (lambda d: d.addPairwiseEnergy(1e6 * cases.features(2), 3), "features: expected finite numbers within the 16"),
        (lambda d: d.addPairwiseEnergy(np.nan * cases.features(2), 3), "features: expected finite numbers within the"),
        (lambda d: d.addPairwiseEnergy(cases.features(0), 3), "1 <= F <= 16, got [0, 126]"),
        (lambda d: d.addPairwiseEnergy(cases.features(17), 3), "1 <= F <= 16, got [17, 126]"),
        (lambda d: d.addPairwiseGaussian(3, np.ones(3, np.float32)), "[C, C] with C=4 labels, got [3]"),
        (lambda d: d.addPairwiseGaussian(3, np.ones((5, 5), np.float32)), "[C, C] with C=4 labels, got [5, 5]"),
        (lambda d: d.addPairwiseGaussian(3, float("inf")), "compat: expected finite numbers, got inf"),
        (lambda d: d.addPairwiseGaussian(3, np.full(4, np.nan, np.float32)), "compat: expected finite numbers, got na"),
        (lambda d: d.addPairwiseGaussian(3, 3, kernel=7), "kernel: expected CONST_KERNEL (0) or DIAG_KERNEL (1) or"),
        (lambda d: d.addPairwiseGaussian(3, 3, normalization=-1), "normalization: expected NO_NORMALIZATION (0) or"),
        (lambda d: densecrf.DenseCRF2D(-1, 3, 2), "DenseCRF2D: w: expected an integer >= 0, got -1"),
        (lambda d: densecrf.DenseCRF(3, -2), "DenseCRF: nlabels: expected an integer >= 0, got -2"),
        (lambda d: d.setUnary(densecrf.ConstUnary(cases.energies(3))), "setUnary: u: expected [C, N] with C=4 labels"),
        (lambda d: d.setUnaryEnergy(cases.energies(), cases.features(3)), "f: expected [F, N] with F=126 (that of u)"),
        (lambda d: d.klDivergence(eigen.MatrixXf()), "klDivergence: Q: expected [C, N] with C=4 labels, N=126"),
        (
            lambda d: d.stepInference(eigen.matrixXf(cases.energies(3)), eigen.MatrixXf(), eigen.MatrixXf()),
            "stepInference: Q: expected [C, N] with C=4 labels, N=126 variables, got [3, 126]",
        ),
    ],
)
def test_values_that_are_refused(call, expected):
    made = cases.crf(densecrf)
    made.addPairwiseGaussian(3, 3)
    before = np.array(made.inference(2))
    with pytest.raises(ValueError) as raised:
        call(made)
    assert expected in str(raised.value)
    assert "\n" not in str(raised.value)
    np.testing.assert_array_equal(before, made.inference(2))


def test_matrices_that_numpy_has_changed():
    """Methods of arrays make matrices that pydensecrf's cannot be."""
    made = literal_crf()
    q, one, two = made.startInference()
    locked = q.copy()
    locked.flags.writeable = False
    for wrong, words in (
        (q.astype(np.float64), "expected float32, got float64"),
        (locked, "expected a matrix that can be written, got a read-only one"),
        (q[:, ::-1], "expected a matrix without negative strides, got strides"),
    ):
        for op, call in (
            ("klDivergence", lambda wrong=wrong: made.klDivergence(wrong)),
            ("stepInference", lambda wrong=wrong: made.stepInference(wrong, one, two)),
        ):
            with pytest.raises(ValueError, match=f"^{op}: Q: {words}"):
                call()


def test_kinds_that_are_refused():
    made = cases.crf(densecrf)
    with pytest.raises(ValueError, match=r"^inference: niter: expected an integer, got nan \(cannot convert float NaN"):
        made.inference(float("nan"))
    with pytest.raises(OverflowError, match=r"^inference: niter: expected an integer, got inf"):
        made.inference(float("inf"))
    with pytest.raises(ValueError, match=r"got float64; u.astype\('float32'\) has it \(Buffer dtype mismatch, exp"):
        made.setUnaryEnergy(cases.energies().astype(float))
    with pytest.raises(
        ValueError, match=r"got object; .* \(Buffer dtype mismatch, expected 'float' but got 'object'\)$"
    ):
        made.setUnaryEnergy(cases.energies().astype(object))
    with pytest.raises(TypeError, match="setUnary: u: expected a Unary, got None"):
        made.setUnary(None)
    with pytest.raises(TypeError, match="klDivergence: Q: expected a MatrixXf, got None"):
        made.klDivergence(None)


def test_a_unary_can_be_used_twice():
    unary, results = densecrf.ConstUnary(cases.energies()), []
    for _ in range(2):
        made = densecrf.DenseCRF2D(W, H, C)
        made.setUnary(unary)
        results.append(np.array(made.inference(0)))
    np.testing.assert_array_equal(results[0], results[1])


def test_classes_can_be_derived():
    class Mine(densecrf.DenseCRF2D):
        def labels(self, niter):
            return np.argmax(self.inference(niter), axis=0)

    made = Mine(W, H, C)
    made.setUnaryEnergy(cases.energies())
    assert (made.labels(0) == cases.energies().argmin(0)).all()


def test_copies_go_on_where_the_original_is():
    made = literal_crf()
    q, one, two = made.startInference()
    made.stepInference(q, one, two)
    for other in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        again = copy.deepcopy(q)
        other.stepInference(again, one, two)
        np.testing.assert_allclose(again, made.inference(2), atol=1e-6)
        other.addPairwiseGaussian(2, 1)
        assert not np.array_equal(made.inference(2), other.inference(2))
    made.stepInference(q, one, two)
    np.testing.assert_array_equal(again, q)


def test_energies_that_are_not_finite_stay_where_they_are():
    unary = cases.energies()
    unary[0, 0], unary[1, 1], unary[2, 2] = np.nan, np.inf, -np.inf
    made = densecrf.DenseCRF2D(W, H, C)
    made.setUnaryEnergy(unary)
    made.addPairwiseGaussian(3, 3)
    made.addPairwiseGaussian(2, 1, normalization=densecrf.NORMALIZE_AFTER)  # by steps, and below at once
    q, one, two = made.startInference()
    for found in (np.array(q), np.array(made.inference(2)), np.array(made.inference(0))):
        assert np.isfinite(found).all()
        assert (found[0, 0], found[1, 1], found[2, 2]) == (0, 0, 1)
    made.stepInference(q, one, two)
    assert (np.array(q)[[0, 1, 2], [0, 1, 2]] == [0, 0, 1]).all()


def test_labels_without_sign_and_labels_without_row():
    found = utils.unary_from_labels(np.array([[0, 1], [2, 3]], np.uint8), 3, 0.7)
    np.testing.assert_allclose(np.exp(-found.astype(np.float64)).sum(0), 1, atol=1e-6)
    assert found[:, 1:].argmin(0).tolist() == [0, 1, 2]
    for wrong, zero_unsure in ((4, True), (-1, True), (3, False), (-1, False), (255, True)):
        with pytest.raises(IndexError, match=f"unary_from_labels: labels: expected labels in .*, got {wrong}"):
            utils.unary_from_labels(np.array([1, wrong]), 3, 0.7, zero_unsure)
    assert utils.unary_from_labels(np.array([0, 1]), 1, 0.7).shape == (1, 2)
