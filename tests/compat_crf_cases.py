"""What is asked of pydensecrf and of `ovs_kernels.compat.pydensecrf`: functions of the modules `densecrf` and `utils`.

Run as a script where pydensecrf2 1.1 is installed (it needs Cython < 3 to build), it records the answers:

    pip install "cython<3" && pip install --no-build-isolation pydensecrf2==1.1
    python tests/compat_crf_cases.py tests/data/pydensecrf2.npz
"""

import hashlib
import sys

import numpy as np

H, W, C = 9, 14, 4
N = H * W


def picture(height=H, width=W, seed=0):
    """[H, W, 3] uint8: an edge with noise."""
    rng = np.random.default_rng(seed)
    base = np.where(np.arange(width)[None, :, None] + np.arange(height)[:, None, None] // 2 < width // 2, 60, 190)
    return np.clip(base + rng.integers(-25, 26, (height, width, 3)), 0, 255).astype(np.uint8)


def energies(num_labels=C, num_points=N, seed=1):
    """[C, N] float32."""
    return (3 * np.random.default_rng(seed).random((num_labels, num_points))).astype(np.float32)


def features(count, num_points=N, seed=2):
    """[F, N] float32."""
    return (4 * np.random.default_rng(seed).random((count, num_points))).astype(np.float32)


TABLE = np.array([[0, 3, 1, 2], [1, 0, 2, 2], [4, 1, 0, 1], [2, 2, 1, -1]], np.float32)  # not symmetric


def crf(dcrf, unary=True):
    made = dcrf.DenseCRF2D(W, H, C)
    if unary:
        made.setUnaryEnergy(energies())
    return made


def both(dcrf, niter=5, **normalization):
    made = crf(dcrf)
    made.addPairwiseGaussian(sxy=(3, 2), compat=3, **normalization)
    made.addPairwiseBilateral(sxy=(20, 30), srgb=(13, 11, 17), rgbim=picture(), compat=5, **normalization)
    return made.inference(niter)


def mixed_normalizations(dcrf, _):
    made = crf(dcrf)
    made.addPairwiseGaussian(3, 3, normalization=dcrf.NORMALIZE_AFTER)
    made.addPairwiseBilateral(20, 13, picture(), 4, normalization=dcrf.NORMALIZE_SYMMETRIC)
    made.addPairwiseEnergy(features(3), 2, normalization=dcrf.NORMALIZE_BEFORE)
    return made.inference(4)


def many_terms(dcrf, _):
    made = crf(dcrf)
    for sxy, compat in ((2, 3), (5, TABLE), (-4, 2), (float("inf"), 1)):
        made.addPairwiseGaussian(sxy, compat)
    for seed, compat in ((0, np.array([-1, -2, -3, -4], np.float32)), (5, 6)):
        made.addPairwiseBilateral(25, 20, picture(seed=seed), compat)
    made.addPairwiseEnergy(features(2), 1.5)
    return made.inference(3)


def compatibility(compat):
    def run(dcrf, _):
        made = crf(dcrf)
        made.addPairwiseBilateral(20, 13, picture(), compat)
        return made.inference(4)

    return run


def without_grid(dcrf, _):
    made = dcrf.DenseCRF(100, 3)
    made.setUnaryEnergy(energies(3, 100))
    made.addPairwiseEnergy(features(4, 100), 4)
    return made.inference(5)


def one_label(dcrf, _):
    made = dcrf.DenseCRF2D(W, H, 1)
    made.setUnaryEnergy(energies(1))
    made.addPairwiseGaussian(3, 3)
    return made.inference(3)


def before_the_unary(dcrf, _):
    made = crf(dcrf, unary=False)
    start = made.startInference()[0]
    zeros = np.array(start)
    kl = [made.klDivergence(start)]
    made.addPairwiseGaussian(3, np.array([-1, -2, -3, -4], np.float32))
    kl.append(made.klDivergence(start))
    steps = [zeros, *_steps(made, start, 2)]
    return np.stack([*steps, np.array(made.inference(0)), np.array(made.inference(3))]), np.array(kl)


def _steps(made, start, count):
    _, one, two = made.startInference()
    results = []
    for _ in range(count):
        made.stepInference(start, one, two)
        results.append(np.array(start))
    return results


def by_steps(dcrf, _):
    """Q and klDivergence after 0 .. 4 steps, then `inference(4)` of the same object, twice."""
    made = crf(dcrf)
    made.addPairwiseGaussian(3, 3)
    made.addPairwiseBilateral(20, 13, picture(), TABLE, normalization=dcrf.NORMALIZE_AFTER)
    start, one, two = made.startInference()
    states, kl = [np.array(start)], [made.klDivergence(start)]
    for _ in range(4):
        made.stepInference(start, one, two)
        states.append(np.array(start))
        kl.append(made.klDivergence(start))
    return np.stack([*states, np.array(made.inference(4)), np.array(made.inference(4))]), np.array(kl)


def changed_in_between(dcrf, _):
    made = crf(dcrf)
    results = [np.array(made.inference(2))]
    made.addPairwiseGaussian(3, 3)
    results.append(np.array(made.inference(2)))
    made.setUnaryEnergy(energies(seed=7))
    results.append(np.array(made.inference(2)))
    return np.stack(results)


def other_unaries(dcrf, _):
    results = []
    left, right = features(5, C, 3).T.copy(), features(5)
    for unary in (dcrf.ConstUnary(energies()), dcrf.LogisticUnary(left, right), dcrf.Unary()):
        made = crf(dcrf)
        made.setUnary(unary)
        made.addPairwiseGaussian(2, 2)
        results.append(np.array(made.inference(2)))
    return np.stack(results)


def kernel_types(dcrf, _):
    return np.stack([np.array(both(dcrf, kernel=kernel)) for kernel in (0, dcrf.DIAG_KERNEL, dcrf.FULL_KERNEL)])


def softmaxes(_, utils):
    p = np.exp(-energies().reshape(C, H, W))
    p = p / p.sum(0)
    p[0, 0, 0] = 0.0
    return (
        utils.unary_from_softmax(p),
        utils.unary_from_softmax(p.astype(np.float64), scale=0.7, clip=1e-3),
        utils.softmax_to_unary(np.maximum(p, 0.1), 0.8),
        utils.unary_from_softmax(p.reshape(C, -1).T.copy().T),
    )


def labels(_, utils):
    found = np.random.default_rng(4).integers(0, C + 1, (H, W))
    return (
        utils.unary_from_labels(found, C, 0.7),
        utils.unary_from_labels(np.maximum(found, 1) - 1, C, gt_prob=0.9, zero_unsure=False),
        utils.compute_unary(found.astype(np.int16), C),
    )


def pairwise_features(dcrf, utils):
    depth = picture()[:, :, 0].astype(np.float32)
    volume = np.random.default_rng(6).random((3, 4, 5, 2)).astype(np.float32)
    found = (
        utils.create_pairwise_gaussian((3, 5), (H, W)),
        utils.create_pairwise_gaussian(sdims=(1, 2, 3), shape=(3, 4, 5)),
        utils.create_pairwise_bilateral((3, 5), 10, depth),
        utils.create_pairwise_bilateral(sdims=(3, 5), schan=(13, 12, 11), img=picture(), chdim=2),
        utils.create_pairwise_bilateral((1, 2, 3), (0.1, 0.2), volume, chdim=3),
    )
    made = crf(dcrf)
    made.addPairwiseEnergy(found[3], 5)
    return (*found, np.array(made.inference(3)))


CASES = {
    "symmetric": lambda dcrf, _: both(dcrf),
    "none": lambda dcrf, _: both(dcrf, normalization=dcrf.NO_NORMALIZATION),
    "before": lambda dcrf, _: both(dcrf, normalization=dcrf.NORMALIZE_BEFORE),
    "after": lambda dcrf, _: both(dcrf, normalization=2),
    "no iterations": lambda dcrf, _: both(dcrf, 0),
    "negative iterations": lambda dcrf, _: both(dcrf, -3),
    "fractional iterations": lambda dcrf, _: both(dcrf, 2.7),
    "mixed normalizations": mixed_normalizations,
    "many terms": many_terms,
    "vector": compatibility(np.array([-5, -1, 2, -3], np.float32)),
    "matrix": compatibility(TABLE),
    "numpy scalar": compatibility(np.float64(3.3)),
    "without grid": without_grid,
    "one label": one_label,
    "before the unary": before_the_unary,
    "by steps": by_steps,
    "changed in between": changed_in_between,
    "other unaries": other_unaries,
    "kernel types": kernel_types,
    "softmaxes": softmaxes,
    "labels": labels,
    "pairwise features": pairwise_features,
}


def _bad_unary(change):
    return lambda dcrf, _: crf(dcrf).setUnaryEnergy(change(energies()))


def _bad_picture(change):
    return lambda dcrf, _: crf(dcrf).addPairwiseBilateral(20, 13, change(picture()), 10)


def _bad_compat(compat):
    return lambda dcrf, _: crf(dcrf).addPairwiseGaussian(3, compat)


def _read_only(found):
    return np.frombuffer(found.tobytes(), found.dtype).reshape(found.shape)


def _wrong_matrix(dcrf, _):
    made = crf(dcrf)
    start, one, two = made.startInference()
    made.stepInference(np.array(start), one, two)


ERRORS = {
    "unary None": _bad_unary(lambda u: None),
    "unary float64": _bad_unary(lambda u: u.astype(np.float64)),
    "unary float16": _bad_unary(lambda u: u.astype(np.float16)),
    "unary int32": _bad_unary(lambda u: u.astype(np.int32)),
    "unary big-endian": _bad_unary(lambda u: u.astype(">f4")),
    "unary 3 axes": _bad_unary(lambda u: u.reshape(C, H, W)),
    "unary 1 axis": _bad_unary(lambda u: u.ravel()),
    "unary Fortran": _bad_unary(np.asfortranarray),
    "unary strided": _bad_unary(lambda u: np.repeat(u, 2, 1)[:, ::2]),
    "unary reversed": _bad_unary(lambda u: u[:, ::-1]),
    "unary read-only": _bad_unary(_read_only),
    "unary too short": _bad_unary(lambda u: u[:, :-1].copy()),
    "unary other labels": _bad_unary(lambda u: u[:-1].copy()),
    "unary list": _bad_unary(lambda u: u.tolist()),
    "picture None": _bad_picture(lambda im: None),
    "picture float32": _bad_picture(lambda im: im.astype(np.float32)),
    "picture int8": _bad_picture(lambda im: im.astype(np.int8)),
    "picture int32": _bad_picture(lambda im: im.astype(np.int32)),
    "picture transposed": _bad_picture(lambda im: im.transpose(1, 0, 2)),
    "picture Fortran": _bad_picture(np.asfortranarray),
    "picture grey": _bad_picture(lambda im: im[..., 0].copy()),
    "picture 4 channels": _bad_picture(lambda im: np.concatenate((im, im[..., :1]), 2)),
    "picture other size": _bad_picture(lambda im: im[:, :-1].copy()),
    "picture channels first": _bad_picture(lambda im: im.transpose(2, 0, 1).copy()),
    "picture read-only": _bad_picture(_read_only),
    "compat None": _bad_compat(None),
    "compat list": _bad_compat([1.0, 2.0, 3.0, 4.0]),
    "compat str": _bad_compat("3"),
    "compat complex": _bad_compat(3j),
    "compat 0 axes": _bad_compat(np.array(3.0)),
    "compat 3 axes": _bad_compat(np.ones((1, 1, 1), np.float32)),
    "compat float64": _bad_compat(np.ones(C)),
    "compat matrix float64": _bad_compat(np.eye(C)),
    "compat matrix Fortran": _bad_compat(np.asfortranarray(TABLE)),
    "compat strided": _bad_compat(np.ones(2 * C, np.float32)[::2]),
    "features None": lambda dcrf, _: crf(dcrf).addPairwiseEnergy(None, 3),
    "features float64": lambda dcrf, _: crf(dcrf).addPairwiseEnergy(features(2).astype(np.float64), 3),
    "features too short": lambda dcrf, _: crf(dcrf).addPairwiseEnergy(features(2, N - 1), 3),
    "sxy short": lambda dcrf, _: crf(dcrf).addPairwiseGaussian((3,), 3),
    "sxy str": lambda dcrf, _: crf(dcrf).addPairwiseGaussian("ab", 3),
    "sxy None": lambda dcrf, _: crf(dcrf).addPairwiseGaussian(None, 3),
    "srgb short": lambda dcrf, _: crf(dcrf).addPairwiseBilateral(3, (3, 3), picture(), 3),
    "kernel str": lambda dcrf, _: crf(dcrf).addPairwiseGaussian(3, 3, "DIAG_KERNEL"),
    "normalization None": lambda dcrf, _: crf(dcrf).addPairwiseGaussian(3, 3, normalization=None),
    "width str": lambda dcrf, _: dcrf.DenseCRF2D("14", H, C),
    "width too large": lambda dcrf, _: dcrf.DenseCRF2D(2**40, H, C),
    "labels missing": lambda dcrf, _: dcrf.DenseCRF2D(W, H),
    "iterations None": lambda dcrf, _: crf(dcrf).inference(None),
    "iterations str": lambda dcrf, _: crf(dcrf).inference("5"),
    "iterations missing": lambda dcrf, _: crf(dcrf).inference(),
    "iterations too many": lambda dcrf, _: crf(dcrf).inference(2**40),
    "step with an array": _wrong_matrix,
    "divergence of an array": lambda dcrf, _: crf(dcrf).klDivergence(np.zeros((C, N), np.float32)),
    "unary object array": lambda dcrf, _: crf(dcrf).setUnary(energies()),
    "ConstUnary float64": lambda dcrf, _: dcrf.ConstUnary(energies().astype(np.float64)),
    "softmax scale": lambda _, utils: utils.unary_from_softmax(np.ones((2, 3)), scale=1.5),
    "labels certainty": lambda _, utils: utils.unary_from_labels(np.ones((2, 3), int), 3, 1.0),
    "labels too large": lambda _, utils: utils.unary_from_labels(np.full((2, 3), 4), 3, 0.5),
}


def results(case, dcrf, utils):
    """The answers of a case as a list of arrays."""
    found = CASES[case](dcrf, utils)
    return list(map(np.asarray, found)) if isinstance(found, tuple) else [np.asarray(found)]


def error(case, dcrf, utils):
    """Class and text of the error."""
    try:
        ERRORS[case](dcrf, utils)
    except Exception as found:
        return type(found).__name__, str(found)
    return "none", ""


def checksum():
    """Of the inputs, whose random numbers could change with numpy."""
    inputs = (picture(), picture(seed=5), energies(), energies(1), energies(3, 100), energies(seed=7), features(3))
    return hashlib.sha256(b"".join(found.tobytes() for found in inputs)).hexdigest()


def main(path):
    from pydensecrf import densecrf, utils

    recorded = {"checksum": np.array(checksum())}
    for case in CASES:
        for index, found in enumerate(results(case, densecrf, utils)):
            recorded[f"{case}/{index}"] = found
    for case in ERRORS:
        recorded[f"error/{case}"] = np.array(error(case, densecrf, utils))
    np.savez_compressed(path, **recorded)


if __name__ == "__main__":
    main(sys.argv[1])
