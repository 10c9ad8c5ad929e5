"""mIoU and Boundary IoU against loops over classes, as the published codes have them."""

import json
import math

import numpy as np
import pytest
from ovs_methods.errors import UserError
from ovs_methods.metrics import SegmentationMetrics

ndimage = pytest.importorskip("scipy.ndimage")

NAMES = ("wall", "cat", "cup", "sofa")


def blobs(seed: int, size: tuple[int, int], values: list[int]) -> np.ndarray:
    """Labels in patches, as those of photos are."""
    rng = np.random.default_rng(seed)
    small = rng.choice(values, (size[0] // 6 + 1, size[1] // 6 + 1))
    made = np.kron(small, np.ones((6, 6), int))[: size[0], : size[1]]
    noise = rng.random(size) < 0.02
    return np.where(noise, rng.choice(values, size), made).astype(np.uint8)


def images(values: list[int], others: list[int]) -> list[tuple[np.ndarray, np.ndarray]]:
    sizes = [(40, 61), (33, 48), (20, 90)]
    return [(blobs(seed, size, values), blobs(seed + 10, size, values + others)) for seed, size in enumerate(sizes)]


def mmseg_sums(pairs, count):
    """Histograms per class over the pixels that count, summed over the images before anything is divided."""
    inter, predicted, wanted = np.zeros((3, count))
    for prediction, target in pairs:
        prediction, target = prediction[target != 255], target[target != 255]
        for index in range(count):
            inter[index] += ((prediction == index) & (target == index)).sum()
            predicted[index] += (prediction == index).sum()
            wanted[index] += (target == index).sum()
    return inter, predicted, wanted


def boundary_sums(pairs, count):
    """Boundary pixels by d erosions of each class's mask, whose outside counts as outside of the class."""
    inter, union = np.zeros((2, count))
    for prediction, target in pairs:
        d = max(1, round(0.02 * math.sqrt(target.shape[0] ** 2 + target.shape[1] ** 2)))
        prediction = np.where(target == 255, 255, prediction)
        for index in range(count):
            edges = []
            for labels in (prediction, target):
                mask = labels == index
                eroded = ndimage.binary_erosion(mask, np.ones((3, 3)), iterations=d, border_value=0)
                edges.append(mask & ~eroded)
            inter[index] += (edges[0] & edges[1]).sum()
            union[index] += (edges[0] | edges[1]).sum()
    return inter, union


def filled(pairs, **changed) -> SegmentationMetrics:
    metrics = SegmentationMetrics(NAMES, **changed)
    for prediction, target in pairs:
        metrics.add(prediction, target)
    return metrics


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("others", [[255], [255, 4]], ids=["ignored", "labels outside"])
def test_as_mmsegmentation(others):
    pairs = [(np.where(p == 2, 4, p).astype(np.uint8), t) for p, t in images([0, 1, 2], others)]  # nothing is called 2
    scores = filled(pairs).scores()
    inter, predicted, wanted = mmseg_sums(pairs, 4)
    iou = 100 * inter / (predicted + wanted - inter)
    np.testing.assert_allclose(scores.iou, iou, rtol=1e-12)
    assert math.isnan(scores.iou[3])  # no sofa anywhere: it does not count
    assert scores.miou == pytest.approx(np.nanmean(iou), rel=1e-12)
    assert scores.accuracy == pytest.approx(100 * inter.sum() / wanted.sum(), rel=1e-12)
    assert scores.mean_accuracy == pytest.approx(np.nanmean(100 * inter / wanted), rel=1e-12)
    assert scores.pixels == wanted.tolist()
    inter, union = boundary_sums(pairs, 4)
    np.testing.assert_allclose(scores.boundary, 100 * inter / union, rtol=1e-12)
    assert scores.biou == pytest.approx(np.nanmean(100 * inter / union), rel=1e-12)


def test_as_the_code_of_pnp_ovss():
    pairs = images([0, 1, 2], [255])
    scores = filled(pairs, style="pnp", metrics=("miou",)).scores()
    assert scores.names == ("background", *NAMES)
    iou = []
    for index in range(5):  # 0 is the background and all that does not count; class k of the list is k + 1
        both = either = wanted = 0
        for prediction, target in pairs:
            truth, guess = (np.where(part == 255, 0, part.astype(int) + 1) for part in (target, prediction))
            both += ((truth == index) & (guess == index)).sum()
            either += ((truth == index) | (guess == index)).sum()
            wanted += (truth == index).sum()
        iou.append(100 * both / either if wanted else math.nan)
    np.testing.assert_allclose(scores.iou, iou, rtol=1e-12)
    assert scores.miou == pytest.approx(np.nanmean(iou), rel=1e-12)
    own = SegmentationMetrics(("background", "cat"), style="pnp", metrics=("miou",))
    own.add(np.array([[0, 1, 1, 7]]), np.array([[0, 1, 255, 255]]))
    assert own.names == ("background", "cat")
    assert own.confusion.tolist() == [[2, 1, 0], [0, 1, 0], [0, 0, 0]]


@pytest.mark.parametrize("style", ["mmseg", "pnp"])
@pytest.mark.parametrize("names", [NAMES, ("background", *NAMES[:3])], ids=["no background", "background"])
def test_shards_add_up_and_survive_json(style, names):
    pairs = images([0, 1, 2, 3], [255])
    whole, parts = SegmentationMetrics(names, style=style), []
    for prediction, target in pairs:
        part = SegmentationMetrics(names, style=style)
        for metrics in (whole, part):
            metrics.add(prediction, target)
        parts.append(SegmentationMetrics.from_json(json.loads(json.dumps(part.to_json()))))
    total = parts[2] + parts[0] + parts[1]
    assert total.to_json() == whole.to_json()
    assert (total.images, parts[0].images) == (3, 1)
    total.add(*pairs[0])  # what was read goes on counting as before
    whole.add(*pairs[0])
    assert total.to_json() == whole.to_json()


def test_counts_are_exact_beyond_what_float32_holds():
    metrics = SegmentationMetrics(("a", "b"), metrics=("miou",))
    metrics.confusion[0, 0] = 2**40
    metrics.add(np.array([[0, 1]]), np.array([[0, 0]]))
    assert metrics.confusion[:2, :2].tolist() == [[2**40 + 1, 1], [0, 0]]
    assert metrics.scores().biou is None


def test_perfect_predictions_and_empty_counts():
    _, target = images([0, 1, 2], [255])[0]
    scores = filled([(target, target)]).scores()
    assert (scores.miou, scores.biou, scores.accuracy) == (100, 100, 100)
    empty = SegmentationMetrics(NAMES).scores()
    assert math.isnan(empty.miou)
    assert math.isnan(empty.accuracy)


def test_other_documents_and_other_metrics_are_refused():
    with pytest.raises(UserError, match="--metrics: expected miou or biou or both between commas, got 'iou'"):
        SegmentationMetrics(NAMES, metrics=("iou",))
    with pytest.raises(UserError, match="--style: expected mmseg or pnp, got 'coco'"):
        SegmentationMetrics(NAMES, style="coco")
    with pytest.raises(UserError, match=r"the same ratio in both, got 0.02 and 0.05"):
        SegmentationMetrics(NAMES) + SegmentationMetrics(NAMES, ratio=0.05)
    good = SegmentationMetrics(NAMES).to_json()
    for changed in (
        {"confusion": [[1]]},
        {"confusion": [[-1] * 5] * 5},
        {"boundary": None},
        {"images": "many"},
        {"names": ["a"]},
    ):
        with pytest.raises(ValueError, match=r"expected counts|invalid literal"):
            SegmentationMetrics.from_json({**good, **changed})
    with pytest.raises(ValueError, match="expected counts of SegmentationMetrics"):
        SegmentationMetrics.from_json({key: value for key, value in good.items() if key != "style"})
