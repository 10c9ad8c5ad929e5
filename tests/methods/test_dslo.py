"""DSLO against a second transcription of its equations, `dslo_literal`, in numpy and float64."""

import dataclasses

import numpy as np
import pytest
import torch

pytest.importorskip("PIL")

import dslo_literal as literal
from ovs_methods.attention import Attention
from ovs_methods.errors import UserError
from ovs_methods.methods import DSLO_PRESETS, DsloPreset, choose_dslo_preset, dslo, dslo_op, upsample_argmax
from ovs_methods.methods.dslo import class_maps, seeds
from ovs_methods.vocabulary import Vocabulary
from ovs_methods.windows import View, patch_centres
from PIL import Image

SIDE = 24
PAPER = DSLO_PRESETS["paper"]


@pytest.fixture(scope="module")
def scene():
    """Truth [N], attention and logits [4, 24, 24] of a scene of four regions, float32."""
    truth, attention, logits = literal.blocks(SIDE)
    matrix = torch.from_numpy(attention).float()
    return truth, Attention(matrix, (SIDE, SIDE)), torch.from_numpy(logits).float().reshape(4, SIDE, SIDE)


def expected_maps(kind, scene, **constants):
    """By `dslo_literal`, from the same float32 inputs."""
    _, attention, logits = scene
    matrix, flat = attention.matrix.double().numpy(), logits.flatten(1).double().numpy()
    run = {"dslo-op": literal.transported, "dslo-mv": literal.velocity}[kind]
    return {index: run(matrix, start, **constants) for index, start in literal.seeds(flat).items()}


@pytest.mark.parametrize(("kind", "bar"), [("dslo-op", 0.98), ("dslo-mv", 0.95)])
def test_attention_repairs_noisy_logits(scene, kind, bar):
    """The raw argmax is right for 0.554 of the patches, the transcribed DSLO-OP for 0.998, DSLO-MV for 0.988."""
    truth, attention, logits = scene
    assert 0.5 < (logits.flatten(1).argmax(0).numpy() == truth).mean() < 0.6
    found = dslo(kind, logits, attention)
    assert (found.flatten(1).argmax(0).numpy() == truth).mean() > bar


@pytest.mark.parametrize("kind", ["dslo-op", "dslo-mv"])
def test_maps_are_those_of_the_equations(scene, kind):
    found = dslo(kind, scene[2], scene[1])
    assert found.shape == (4, SIDE, SIDE)
    assert found.dtype == torch.float32
    expected = expected_maps(kind, scene)
    assert sorted(expected) == [0, 1, 2, 3]
    for index, values in expected.items():
        assert np.allclose(found[index].flatten().numpy(), values, rtol=2e-3, atol=1e-6 * values.max())
    labels = np.stack(list(expected.values())).argmax(0)
    assert (found.flatten(1).argmax(0).numpy() == labels).mean() > 0.998


def test_constants_reach_the_equations(scene):
    transported = dslo("dslo-op", scene[2], scene[1], DsloPreset(epsilon=0.02))
    for index, values in expected_maps("dslo-op", scene, epsilon=0.02).items():
        assert np.allclose(transported[index].flatten().numpy(), values, rtol=2e-3)
    arrived = dslo("dslo-mv", scene[2], scene[1], DsloPreset(threshold=0.5))
    for index, values in expected_maps("dslo-mv", scene, threshold=0.5).items():
        assert np.allclose(arrived[index].flatten().numpy(), values, rtol=2e-3)


def test_class_weight_and_log_velocity_change_the_maps_as_they_say(scene):
    _, attention, logits = scene
    flat = logits.flatten(1).double().numpy()
    powers = np.exp(100 * (flat - flat.max(0)))
    confidence = powers / powers.sum(0)
    total = np.where(confidence >= 0.5, confidence, 0).sum(1)
    plain, weighted = (dslo("dslo-op", logits, attention, DsloPreset(class_weight=w)) for w in (0.0, 0.5))
    assert np.allclose(weighted.numpy(), plain.numpy() * np.sqrt(total)[:, None, None], rtol=1e-4)
    velocity, logarithm = (dslo("dslo-mv", logits, attention, DsloPreset(log_velocity=on)) for on in (False, True))
    assert np.allclose(logarithm.numpy(), np.log(velocity.numpy()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("nms", "theta", "scale"), [("class_softmax", 0.5, 100.0), ("minmax", 0.7, 20.0)])
def test_seeds_are_those_of_the_equations(scene, nms, theta, scale):
    flat = scene[2].flatten(1)
    start = seeds(flat, DsloPreset(nms=nms, theta=theta, scale=scale))
    expected = literal.seeds(flat.double().numpy(), theta, scale, nms)
    assert start.classes.tolist() == sorted(expected)
    for row, index in zip(start.distributions.numpy(), start.classes.tolist(), strict=True):
        assert np.allclose(row, expected[index], rtol=1e-5, atol=1e-9)
        assert np.array_equal(row > 0, expected[index] > 0)
    assert start.distributions.dtype == torch.float32
    assert torch.allclose(start.distributions.sum(1), torch.ones(len(start.classes)))


def test_large_scales_do_not_overflow():
    start = seeds(torch.tensor([[1.0, 0.5, -1.0], [-1.0, -0.5, 1.0]]), DsloPreset(scale=1e6))
    assert start.distributions.tolist() == [[1, 0, 0], [0, 0, 1]]


def test_a_class_without_a_patch_is_rejected_and_never_wins(scene):
    _, attention, logits = scene
    absent = torch.full((1, SIDE, SIDE), -1.0)
    more = torch.cat([logits[:2], absent, logits[2:]])
    assert seeds(more.flatten(1), PAPER).classes.tolist() == [0, 1, 3, 4]
    for kind in ("dslo-op", "dslo-mv"):
        found = dslo(kind, more, attention)
        assert torch.isinf(found[2]).all()
        assert (found[2] < 0).all()
        assert torch.allclose(found[[0, 1, 3, 4]], dslo(kind, logits, attention), rtol=1e-4)
        labels = upsample_argmax(found, Image.new("RGB", (30, 30)))
        assert set(labels.unique().tolist()) == {0, 1, 3, 4}


def test_if_all_classes_are_rejected_the_best_of_each_patch_counts():
    """Three classes at 0.34, 0.33, 0.33 of each patch: none reaches one half."""
    logits = torch.tensor([[0.0002, 0.0, 0.0], [0.0, 0.0002, 0.0], [0.0, 0.0, 0.0002]])
    start = seeds(logits, PAPER)
    assert start.classes.tolist() == [0, 1, 2]
    assert start.distributions.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    found = dslo("dslo-op", logits[:, None], Attention(torch.eye(3) * 0.9 + 0.1 / 3, (1, 3)))
    assert found.argmax(0).tolist() == [[0, 1, 2]]


@pytest.mark.parametrize("kind", ["dslo-op", "dslo-mv"])
def test_a_single_active_class_takes_the_whole_photo(kind):
    logits = torch.tensor([[[0.1, 0.1]], [[0.9, 0.9]], [[0.2, 0.2]]])
    found = dslo(kind, logits, Attention(torch.full((2, 2), 0.5), (1, 2)))
    assert upsample_argmax(found, Image.new("RGB", (7, 5))).unique().tolist() == [1]


def test_top_k_keeps_the_most_confident_classes(scene):
    flat = scene[2].flatten(1)
    every = seeds(flat, PAPER)
    wanted = sorted(np.argsort(-every.confidence.numpy(), kind="stable")[:2].tolist())
    start = seeds(flat, DsloPreset(top_k=2))
    assert start.classes.tolist() == wanted
    assert torch.equal(start.distributions, every.distributions[wanted])
    assert torch.equal(seeds(flat, DsloPreset(top_k=9)).classes, every.classes)


def test_a_class_that_is_the_same_everywhere_stands_out_nowhere():
    logits = torch.tensor([[0.5, 0.5, 0.5], [0.1, 0.2, 0.3]])
    assert seeds(logits, DsloPreset(nms="minmax")).classes.tolist() == [1]


def test_patches_that_nobody_reaches_take_their_largest_logit():
    """Two blocks that do not attend to each other; no class starts in the second."""
    matrix = torch.zeros(6, 6)
    matrix[:3, :3] = matrix[3:, 3:] = 1 / 3
    logits = torch.tensor(
        [
            [0.9, 0.1, 0.1, 0.20, 0.21, 0.20],
            [0.1, 0.9, 0.1, 0.21, 0.20, 0.20],
            [0.0, 0.0, 0.0, 0.20, 0.20, 0.21],
        ]
    )
    constants = DsloPreset(scale=5.0)  # 0.21 against 0.20 is no confidence
    assert seeds(logits, constants).classes.tolist() == [0, 1]
    found = dslo("dslo-mv", logits[:, None], Attention(matrix, (1, 6)), constants)
    assert found[:, 0, 3:].argmax(0).tolist() == [1, 0, 2]
    assert torch.isfinite(found[2, 0]).all()  # rejected, but one patch votes for it
    assert found[:, 0, :2].argmax(0).tolist() == [0, 1]


def test_where_no_patch_is_reached_all_take_their_largest_logit():
    logits = torch.tensor([[0.1, 0.4], [0.3, 0.2]])
    found = class_maps(torch.full((2, 2), 0.25), torch.tensor([0, 1]), logits)
    assert found.argmax(0).tolist() == [1, 0]


@pytest.mark.parametrize("kind", ["dslo-op", "dslo-mv"])
def test_classes_in_another_order_give_the_same_labels_in_that_order(scene, kind):
    _, attention, logits = scene
    order = torch.tensor([2, 0, 3, 1])
    guide = Image.fromarray(np.random.default_rng(1).integers(0, 255, (40, 50, 3), np.uint8))
    labels = upsample_argmax(dslo(kind, logits, attention), guide)
    permuted = upsample_argmax(dslo(kind, logits[order], attention), guide)
    assert (order[permuted] == labels).float().mean() > 0.999


def test_logits_of_another_grid_are_resized(scene):
    _, attention, logits = scene
    small = torch.nn.functional.avg_pool2d(logits, (2, 3))
    wide = torch.from_numpy(literal.resized(small.double().numpy(), (SIDE, SIDE))).float()
    for kind in ("dslo-op", "dslo-mv"):
        found, expected = dslo(kind, small, attention), dslo(kind, wide, attention)
        assert found.shape[1:] == (SIDE, SIDE)
        assert torch.allclose(found, expected, rtol=1e-3, atol=1e-7)


def test_a_grid_that_the_attention_has_not_is_an_error():
    with pytest.raises(ValueError, match=r"Attention: grid: expected \(h, w\) with h \* w = 4, the side of the matrix"):
        Attention(torch.full((4, 4), 0.25), (2, 3))


@pytest.mark.parametrize("size", [(30, 41), (24, 24), (9, 60), (5, 7)])
def test_labels_are_those_of_the_equations_at_any_size(scene, size):
    """Also with fewer pixels than patches: then the photo is enlarged first."""
    generator = np.random.default_rng(size[0])
    pixels = generator.integers(0, 255, (*size, 3), np.uint8)
    pixels[:, size[1] // 2 :] //= 4
    photo = Image.fromarray(pixels)
    maps = dslo("dslo-op", scene[2], scene[1])
    labels = upsample_argmax(maps, photo)
    assert labels.dtype == torch.int64
    assert labels.shape == size
    wide = tuple(max(side, SIDE) for side in size)
    guide = photo if wide == size else photo.resize(wide[::-1], Image.Resampling.BILINEAR)
    expected = literal.upsampled(maps.double().numpy() / float(maps.max()), np.asarray(guide) / 255)
    rows, columns = (((np.arange(n) + 0.5) * m / n).astype(int) for n, m in zip(size, wide, strict=True))
    assert (expected[:, rows][:, :, columns].argmax(0) == labels.numpy()).mean() > 0.995


def whole(features, boxes=((0, 0, 4, 8),)):
    boxes = torch.tensor(boxes)
    return View(features, features, boxes, patch_centres(boxes, tuple(features.shape[1:3]), 4))


def test_the_best_embedding_of_a_class_counts():
    features = torch.eye(4).reshape(1, 1, 4, 4)
    vocabulary = Vocabulary(["a", "b"], [0, 1], torch.eye(4)[[0, 3, 1]], [0, 0, 1])
    found = dslo_op([whole(features)], vocabulary, torch.zeros(3, 4, 8), Attention(torch.eye(4), (1, 4)))
    assert found[:, 0, [0, 1, 3]].argmax(0).tolist() == [0, 1, 0]


def test_windows_are_an_error():
    features = torch.eye(4).reshape(2, 1, 2, 4)
    view = whole(features, ((0, 0, 4, 8), (0, 4, 4, 12)))
    vocabulary = Vocabulary(["a", "b"], [0, 1], torch.eye(4)[:2], [0, 1])
    with pytest.raises(ValueError, match="dslo: views: expected the whole photo in one window, got 2 windows"):
        dslo_op([view], vocabulary, torch.zeros(3, 4, 12), Attention(torch.eye(4), (1, 4)))


@pytest.mark.parametrize(
    ("logits", "text"),
    [
        (torch.full((2, 1, 4), torch.nan), "dslo: logits: expected finite numbers, got NaN or infinity"),
        (torch.zeros(2, 4), r"dslo: logits: expected \[C, h, w\] that is not empty, got \[2, 4\]"),
        (torch.zeros(0, 1, 4), r"dslo: logits: expected \[C, h, w\] that is not empty, got \[0, 1, 4\]"),
    ],
)
def test_logits_that_cannot_be_used_are_errors(logits, text):
    with pytest.raises(ValueError, match=text):
        dslo("dslo-op", logits, Attention(torch.eye(4), (1, 4)))


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"nms": "maximum"}, "--nms: expected class_softmax or minmax, got maximum"),
        ({"theta": 1.5}, "--theta: expected a number from 0 to 1, got 1.5"),
        ({"theta": float("nan")}, "--theta: expected a number from 0 to 1, got nan"),
        ({"scale": 0.0}, "--scale: expected a positive number, got 0.0"),
        ({"top_k": 0}, "top_k: expected None, or 1 or more classes, got 0"),
        ({"readout": "plan_cost"}, "readout: expected receiver or source, got plan_cost"),
        ({"class_weight": -1.0}, "class_weight: expected 0 or more, got -1.0"),
        ({"epsilon": 0.0}, "transport_map: epsilon: "),
        ({"threshold": -1.0}, "markov_velocity: threshold: "),
        ({"temperature": 0.0}, "markov_velocity: temperature: "),
        ({"radius": -1}, "joint_bilateral_upsample: radius: "),
    ],
)
def test_constants_out_of_range_are_one_line(changed, text):
    with pytest.raises(UserError) as caught:
        choose_dslo_preset("auto", "dinov2-small", changed)
    assert str(caught.value).startswith(text)
    assert "\n" not in str(caught.value)


def test_auto_is_the_paper_but_for_the_embedded_backbone():
    assert choose_dslo_preset("auto", "ViT-B-16:openai", {}) == DsloPreset() == DSLO_PRESETS["paper"]
    assert choose_dslo_preset("auto", "dinov2-small", {"theta": None}) == DSLO_PRESETS["embedded"]
    changed = choose_dslo_preset("paper", "dinov2-small", {"epsilon": 0.2, "theta": None})
    assert changed == dataclasses.replace(DSLO_PRESETS["paper"], epsilon=0.2)
