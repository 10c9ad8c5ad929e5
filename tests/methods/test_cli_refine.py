"""`ovs refine`: anybody's scores, in a process of its own."""

import json

import numpy as np
import pytest
import torch

pytest.importorskip("PIL")

from PIL import Image

from ovs_kernels import reference

SIZE = (40, 60)


@pytest.fixture
def photo(tmp_path, chelsea):
    """The cat's eye, 60 x 40, as photo.png in the working folder."""
    with Image.open(chelsea) as file:
        picture = file.convert("RGB").crop((130, 90, 190, 130))
    picture.save(tmp_path / "photo.png")
    return np.asarray(picture)


def scores(channels=3, size=SIZE, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).normal(size=(channels, *size)).astype(dtype)


def expected(values, photo, **changed):
    """The definition, in float64."""
    options = {
        "window": 13,
        "tau": 0.01,
        "alpha": 0.95,
        "mode": "official",
        "max_iter": 10,
        "tol": 1e-6,
        **changed,
    }
    image = torch.tensor(photo).permute(2, 0, 1).double() / 255
    return reference.lp_pixels(
        torch.tensor(values).double()[None],
        image[None],
        lab=True,
        groups=None,
        num_groups=len(values),
        labels=False,
        **options,
    )[0][0].numpy()


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_refined_scores_are_those_of_the_definition(ovs, tmp_path, photo, dtype):
    given = scores(dtype=dtype)
    np.save(tmp_path / "scores.npy", given)
    result = ovs("refine", "photo.png", "--scores", "scores.npy", "--names", "a,b,c", "--out", "out")
    assert (result.returncode, result.stderr) == (0, "")
    out = tmp_path / "out"
    assert sorted(p.name for p in out.iterdir()) == [
        *("photo.json", "photo_labels.png", "photo_overlay.png", "photo_refined.npy")
    ]
    refined, truth = np.load(out / "photo_refined.npy"), expected(given, photo)
    assert refined.dtype == dtype
    assert np.abs(refined - truth).max() / np.abs(truth).max() < (2e-3 if dtype == np.float16 else 1e-4)
    with Image.open(out / "photo_labels.png") as file:
        labels = np.asarray(file)
    assert np.mean(labels == truth.argmax(0)) > (0.99 if dtype == np.float16 else 0.999)
    summary = json.loads((out / "photo.json").read_text())
    assert [entry["name"] for entry in summary["classes"]] == ["a", "b", "c"]
    assert summary["non_finite_classes"] == []
    assert "lp_pixels" in summary["timings_ms"]
    assert (
        "done before" in ovs("refine", "photo.png", "--scores", "scores.npy", "--names", "a,b,c", "--out", "out").stdout
    )


def test_options_reach_the_operator(ovs, tmp_path, photo):
    given = scores()
    np.save(tmp_path / "scores.npy", given)
    options = ["--window", "5", "--tau", "0.05", "--alpha", "0.8", "--mode", "exact", "--tol", "1e-5"]
    assert ovs("refine", "photo.png", "--scores", "scores.npy", *options, "--out", "out").returncode == 0
    truth = expected(given, photo, window=5, tau=0.05, alpha=0.8, mode="exact", max_iter=None, tol=1e-9)
    refined = np.load(tmp_path / "out" / "photo_refined.npy")
    assert np.abs(refined - truth).max() / np.abs(truth).max() < 1e-4


@pytest.mark.parametrize(("resize", "size"), [("scores", SIZE), ("image", (10, 15))])
def test_sizes_that_differ_can_be_matched(ovs, tmp_path, photo, resize, size):
    np.save(tmp_path / "scores.npy", scores(size=(10, 15)))
    result = ovs("refine", "photo.png", "--scores", "scores.npy", "--resize", resize, "--out", "out")
    assert (result.returncode, result.stderr) == (0, "")
    assert np.load(tmp_path / "out" / "photo_refined.npy").shape == (3, *size)
    with Image.open(tmp_path / "out" / "photo_labels.png") as file:
        assert file.size == (60, 40)


def test_a_class_that_is_not_finite_never_wins_and_is_named(ovs, tmp_path, photo):
    given = scores()
    given[1, 3, 3] = np.nan
    np.save(tmp_path / "scores.npy", given)
    assert ovs("refine", "photo.png", "--scores", "scores.npy", "--out", "out").returncode == 0
    summary = json.loads((tmp_path / "out" / "photo.json").read_text())
    assert summary["non_finite_classes"] == ["class 1"]
    assert summary["classes"][1]["pixels"] == 0
    assert np.isnan(np.load(tmp_path / "out" / "photo_refined.npy")[1]).all()


def test_hundreds_of_classes_are_written_as_16_bit(ovs, tmp_path, photo):
    np.save(tmp_path / "scores.npy", scores(channels=300))
    assert ovs("refine", "photo.png", "--scores", "scores.npy", "--quiet", "--out", "out").returncode == 0
    with Image.open(tmp_path / "out" / "photo_labels.png") as file:
        labels = np.asarray(file)
    assert np.array_equal(labels, np.load(tmp_path / "out" / "photo_refined.npy").argmax(0))
    assert labels.max() > 255


@pytest.mark.parametrize(
    ("array", "arguments", "parts"),
    [
        (
            scores(size=(40, 61)),
            [],
            ["--scores: expected [C, 40, 60], the size of photo.png", "got [3, 40, 61]", "--resize"],
        ),
        (np.moveaxis(scores(), 0, -1), [], ["got [40, 60, 3]", "moveaxis"]),
        (scores()[0], [], ["[C, H, W]", "got shape [40, 60]"]),
        (np.zeros((0, 40, 60), np.float32), [], ["not empty", "got shape [0, 40, 60]"]),
        (np.zeros((3, 40, 60), np.int64), [], ["float16, float32 or float64", "got int64", "astype"]),
        (np.array([{}], object), [], ["--scores: expected a .npy file"]),
        (None, [], ["--scores", "no file at scores.npy"]),
        ("text", [], ["--scores: expected a .npy file"]),
        (scores(), ["--names", "a,b"], ["--names: expected 3 names", "got 2"]),
        (scores(), ["--window", "2"], ["window", "odd", "got 2"]),
        (scores(), ["--alpha", "0"], ["alpha", "got 0"]),
        (scores(), ["--mode", "rough"], ["--mode", "rough"]),
    ],
)
def test_bad_input_is_one_line(ovs, tmp_path, photo, array, arguments, parts):
    if isinstance(array, np.ndarray):
        np.save(tmp_path / "scores.npy", array, allow_pickle=True)
    elif array is not None:
        (tmp_path / "scores.npy").write_text(array)
    before = sorted(path.name for path in tmp_path.iterdir())
    result = ovs("refine", "photo.png", "--scores", "scores.npy", *arguments, "--out", "out")
    assert result.returncode == 2, result.stderr
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("ovs refine: error: ")
    for part in parts:
        assert part in line
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_the_image_is_checked_too(ovs, tmp_path):
    np.save(tmp_path / "scores.npy", scores())
    result = ovs("refine", "none.png", "--scores", "scores.npy", "--out", "out")
    assert result.returncode == 2
    assert result.stderr == "ovs refine: error: none.png: expected an image file, got nothing at this path\n"


@pytest.mark.parametrize("method", ["lposs", "lposs+"])
def test_scores_of_any_model_can_be_spread_over_patches(ovs, tmp_path, onnx_model, chelsea, method):
    """Noise on the truth of a cat: patches that look alike agree again."""
    with Image.open(chelsea) as file:
        height, width = file.height, file.width
    y, x = np.mgrid[:30, :45]
    truth = (y > 4) & (x < 38)
    given = np.random.default_rng(1).normal(np.stack([truth, ~truth]), 0.7).astype(np.float16)
    np.save(tmp_path / "scores.npy", given)
    result = ovs("refine", chelsea, "--scores", "scores.npy", "--resize", "scores", "--method", method, "--out", "out")
    assert (result.returncode, result.stderr) == (0, "")
    refined = np.load(tmp_path / "out" / "chelsea_refined.npy")
    assert (refined.dtype, refined.shape) == (np.float16, (2, height, width))
    summary = json.loads((tmp_path / "out" / "chelsea.json").read_text())
    assert summary["method"] == method
    stages = ["lp_patches"] + ["lp_pixels"] * (method == "lposs+")
    assert [stage for stage in summary["timings_ms"] if stage.startswith("lp_")] == stages
    labels = refined.argmax(0)[5:-5:10, 5:-5:10]
    noisy = given.astype(np.float32).argmax(0)
    expected = ~truth[: labels.shape[0], : labels.shape[1]]
    assert np.mean(labels == expected) > np.mean(noisy == ~truth) + 0.05


def test_refine_over_patches_checks_its_options(ovs, tmp_path, photo):
    np.save(tmp_path / "scores.npy", scores())
    base = ["refine", "photo.png", "--scores", "scores.npy", "--method", "lposs", "--out", "out"]
    for options, part in [
        (["--windows", "9"], "--windows: expected none"),
        (["--neighbours", "1.5"], "--neighbours: expected a whole number"),
        (["--graph-backbone", "nonsense_patch16"], "--graph-backbone: expected"),
    ]:
        result = ovs(*base, *options)
        assert (result.returncode, result.stdout) == (2, "")
        assert result.stderr.startswith("ovs refine: error: ")
        assert len(result.stderr.strip().splitlines()) == 1
        assert part in result.stderr
    assert not (tmp_path / "out").exists()
