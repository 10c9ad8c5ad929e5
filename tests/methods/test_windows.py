"""Windows, and LPOSS over them, against numpy in float64."""

import dataclasses

import numpy as np
import pytest
import torch
from torch.nn import functional as F

pytest.importorskip("PIL")

from ovs_methods.backbones import Backbone
from ovs_methods.backbones.core import standardized
from ovs_methods.errors import UserError
from ovs_methods.images import to_tensor
from ovs_methods.methods import PRESETS, Preset, choose_preset, coarse, lposs, lposs_plus, propagate_scores
from ovs_methods.methods.lposs import scores_of_windows
from ovs_methods.vocabulary import Vocabulary
from ovs_methods.windows import View, look, parse_windows, patch_centres
from PIL import Image

from ovs_kernels import lp_pixels


class Projection(Backbone):
    """The smallest backbone there is: each patch times a fixed matrix, as the first layer of a ViT."""

    def __init__(self, patch, dim):
        self.name, self.identity, self.patch = "projection", {}, patch
        self._kernel = torch.randn(dim, 3, patch, patch, generator=torch.Generator().manual_seed(dim))

    def dense(self, images):
        black = standardized(images, self.patch, (0, 0, 0), (1, 1, 1))
        return F.conv2d(black, self._kernel, stride=self.patch).permute(0, 2, 3, 1)


def photo_of(height, width, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels), to_tensor(Image.fromarray(pixels), (height, width))


VOCABULARY = Vocabulary(
    ["a", "b"], [0, 1], F.normalize(torch.randn(3, 8, generator=torch.Generator().manual_seed(5))), [0, 1, 1]
)


def test_windows_are_written_as_size_and_stride():
    assert parse_windows("none") == [None]
    assert parse_windows("224/112") == [(224, 112)]
    assert parse_windows("ensemble") == parse_windows("224/112 + 448/224") == [(224, 112), (448, 224)]
    for text in ("", "224", "224/0", "224/225", "8/4", "224/112+", "a/b", "-224/112"):
        with pytest.raises(UserError, match="--windows: expected none, ensemble, or SIZE/STRIDE"):
            parse_windows(text)


def test_each_window_is_seen_by_itself_where_it_is():
    photo, image = photo_of(70, 100)
    backbone = Projection(8, 8)
    view = look(photo, image, backbone, None, (32, 16))
    boxes = {(y, x, y + 32, x + 32) for y in (0, 16, 32, 38) for x in (0, 16, 32, 48, 64, 68)}
    assert {tuple(box) for box in view.boxes.tolist()} == boxes
    assert view.features.shape == (24, 4, 4, 8)
    positions = view.positions.reshape(24, 4, 4, 2)
    for index in (0, 7, 23):
        y0, x0, y1, x1 = view.boxes[index].tolist()
        alone = F.normalize(backbone.dense(image[None, :, y0:y1, x0:x1]), dim=-1)[0]
        assert torch.allclose(view.features[index], alone, atol=1e-6)
        assert positions[index, 2, 1].tolist() == [y0 + 4 + 16, x0 + 4 + 8]


@pytest.mark.parametrize("size", [(20, 90), (20, 30), (1, 1), (31, 32)])
def test_a_photo_smaller_than_a_window_works(size):
    photo, image = photo_of(*size)
    view = look(photo, image, Projection(8, 8), None, (32, 16))
    assert view.boxes[0].tolist() == [0, 0, min(size[0], 32), min(size[1], 32)]
    for method in (coarse, lposs, lposs_plus):
        scores = method([view], VOCABULARY, image)
        assert scores.shape == (2, *size)
        assert scores.isfinite().all()


def test_features_are_resampled_to_the_graph_s_grid_before_they_are_normalized():
    photo, image = photo_of(48, 64)
    wide, fine = Projection(16, 8), Projection(8, 12)
    view = look(photo, image, wide, fine, (32, 16))
    assert view.appearance.shape == (6, 4, 4, 12)
    crop = image[None, :, :32, :32]
    raw = wide.dense(crop)[0].double().numpy()  # 2 x 2 to 4 x 4: taps (1, 0), (.75, .25), (.25, .75), (0, 1)
    taps = np.array([[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]])
    grown = np.einsum("ij,kl,jld->ikd", taps, taps, raw)
    grown /= np.linalg.norm(grown, axis=-1, keepdims=True)
    assert np.abs(view.features[0].numpy() - grown).max() < 1e-5
    assert view.positions[:4].tolist() == [[4, 4], [4, 12], [4, 20], [4, 28]]
    assert torch.allclose(view.appearance[0], F.normalize(fine.dense(crop)[0], dim=-1), atol=1e-6)


def propagated(scores, features, positions, constants, steps=None):
    """Definition of LPOSS's patch stage in float64: loops for the graph, a direct solve (or CG steps)."""
    count = len(features)
    similarity = features @ features.T
    directed = np.zeros((count, count))
    for i in range(count):
        nearest = sorted(range(count), key=lambda j: (-similarity[i, j], j))[: int(constants.k)]
        for j in nearest:
            distance = np.hypot(*(positions[i] - positions[j]))
            directed[i, j] = max(similarity[i, j], 0) ** constants.gamma * np.exp(-constants.sigma * distance)
    weights = directed + directed.T
    np.fill_diagonal(weights, 0)
    scale = 1 / np.sqrt(np.where(weights.sum(1) > 0, weights.sum(1), 1))
    system = np.eye(count) - constants.alpha * scale[:, None] * weights * scale
    return np.linalg.solve(system, scores)


def numbers(view):
    return view.appearance.double().numpy().reshape(-1, view.appearance.shape[-1]), view.positions.double().numpy()


def test_lposs_propagates_over_all_windows_together_then_averages_them():
    photo, image = photo_of(45, 51)  # no two windows share a patch, which would tie as a neighbour
    view = look(photo, image, Projection(8, 8), Projection(8, 12), (32, 13))
    constants = Preset(k=9, gamma=3.0, sigma=0.02, alpha=0.9)
    features, positions = numbers(view)
    start = view.features.double().numpy().reshape(-1, 8) @ VOCABULARY.embeddings.double().numpy().T
    done = propagated(start, features, positions, constants).reshape(*view.features.shape[:3], 3)
    total, count = np.zeros((3, 45, 51)), np.zeros((45, 51))
    for part, (y0, x0, y1, x1) in zip(done, view.boxes.tolist(), strict=True):
        planes = torch.from_numpy(part).permute(2, 0, 1)[None]
        grown = F.interpolate(planes, (y1 - y0, x1 - x0), mode="bilinear", align_corners=False)[0].numpy()
        total[:, y0:y1, x0:x1] += grown
        count[y0:y1, x0:x1] += 1
    merged = total / count
    expected = np.stack([merged[0], np.maximum(merged[1], merged[2])])
    found = lposs([view], VOCABULARY, image, constants, mode="exact", tol=1e-7)
    assert np.abs(found.numpy() - expected).max() < 2e-4 * np.abs(expected).max()

    plus = lposs_plus([view], VOCABULARY, image, constants, {"window": 5}, mode="exact", tol=1e-7)
    refined = lp_pixels(torch.from_numpy(merged).float(), image, window=5)
    assert torch.allclose(plus, torch.stack([refined[0], refined[1:].amax(0)]), rtol=1e-3, atol=1e-3)
    assert not torch.allclose(plus, found, atol=0.1)  # it does something


def test_an_ensemble_counts_its_set_ups_equally():
    photo, image = photo_of(40, 48)
    views = [look(photo, image, Projection(8, 8), None, setup) for setup in ((32, 16), (24, 8), None)]
    one = Vocabulary(["a"], [0], torch.eye(8)[:1], [0])
    together = lposs(views, one, image, Preset(k=9))
    alone = [lposs([view], one, image, Preset(k=9)) for view in views]
    assert torch.allclose(together, sum(alone) / 3, rtol=1e-5, atol=1e-5)


def test_any_score_map_can_be_propagated():
    photo, image = photo_of(32, 48)
    view = look(photo, image, Projection(8, 8), None, (32, 16))
    scores = torch.rand(2, 32, 48, generator=torch.Generator().manual_seed(3))
    patches = scores_of_windows(scores, view, (32, 48))
    assert patches.shape == (2, 4, 4, 2)
    assert patches[1, 2, 3, 0].item() == pytest.approx(scores[0, 16:24, 40:48].mean().item(), abs=1e-6)
    constants = Preset(k=7, alpha=0.8)
    flat = patches.double().numpy().reshape(-1, 2)
    expected = propagated(flat, *numbers(view), constants).reshape(2, 4, 4, 2)
    found = propagate_scores(scores, [view], (32, 48), constants, mode="exact", tol=1e-7)
    corner = found[:, 0, 0].numpy()  # outside of the first patch's centre: the patch itself
    assert np.abs(corner - expected[0, 0, 0]).max() < 1e-3
    coarse_map = torch.rand(2, 4, 6, generator=torch.Generator().manual_seed(4))
    assert propagate_scores(coarse_map, [view], (32, 48), constants).shape == (2, 32, 48)


def test_presets_and_what_the_user_changes():
    assert PRESETS["paper"] == Preset("224/112", 400, 3.0, 0.01, 0.95, 0.0)
    assert choose_preset("auto", "dino_vitb16", {}) == PRESETS["paper"]
    assert choose_preset("auto", "dinov2-small", {}) == PRESETS["harmless"]
    changed = choose_preset("paper", "dino_vitb16", {"k": 800, "windows": None, "gamma": 7.0})
    assert changed == dataclasses.replace(PRESETS["paper"], k=800, gamma=7.0)
    for field, value in [("k", 0), ("k", 1.5), ("k", float("nan")), ("gamma", -1.0), ("alpha", 1.0), ("sigma", -1.0)]:
        with pytest.raises(UserError) as caught:
            choose_preset("paper", "dino_vitb16", {field: value})
        assert ("--neighbours" if field == "k" else field) in str(caught.value)


def test_features_can_be_centred_before_they_are_compared():
    generator = torch.Generator().manual_seed(6)
    features = F.normalize(torch.randn(1, 3, 4, 8, generator=generator) + 2, dim=-1)
    boxes = torch.tensor([[0, 0, 24, 32]])
    view = View(features, features, boxes, patch_centres(boxes, (3, 4), 8))
    flat, positions = numbers(view)
    moved = flat - 0.5 * flat.mean(0)
    moved /= np.linalg.norm(moved, axis=1, keepdims=True)
    scores = torch.rand(1, 24, 32, generator=generator)
    constants = Preset(k=5, center=0.5)
    start = scores_of_windows(scores, view, (24, 32)).double().numpy().reshape(-1, 1)
    expected = propagated(start, moved, positions, constants)
    found = propagate_scores(scores, [view], (24, 32), constants, mode="exact", tol=1e-7)
    assert abs(found[0, 0, 0].item() - expected[0, 0]) < 1e-4 * abs(expected[0, 0]) + 1e-4
