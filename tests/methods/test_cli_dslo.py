"""`ovs segment --method dslo-op|dslo-mv` as users meet it: in a process of its own, on real photos."""

import json

import numpy as np
import pytest

pytest.importorskip("PIL")
pytest.importorskip("onnxruntime")

from PIL import Image

CAT = ["--point", "cat:250,60", "--point", "cat:100,150", "--point", "background:10,60", "--point", "background:420,80"]
SMALL = ["--size", "224"]


def labels_in(path):
    with Image.open(path) as file:
        return np.asarray(file)


def one_error(result, *parts):
    assert result.returncode == 2, result.stderr
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("ovs segment: error: ")
    for part in parts:
        assert part in lines[0]


@pytest.mark.parametrize("method", ["dslo-op", "dslo-mv"])
def test_points_to_labels_at_the_photos_size(ovs, tmp_path, onnx_model, chelsea, method):
    arguments = ["segment", chelsea, *CAT, "--method", method, "--out", "out"]
    result = ovs(*arguments)
    assert (result.returncode, result.stderr) == (0, "")
    labels = labels_in(tmp_path / "out" / "chelsea_labels.png")
    assert labels.shape == (300, 451)
    for x, y, value in ((250, 60, 0), (100, 150, 0), (200, 150, 0), (10, 60, 1), (420, 80, 1)):
        assert labels[y, x] == value
    summary = json.loads((tmp_path / "out" / "chelsea.json").read_text())
    stages = [
        "read",
        "backbone",
        method,
        "upsample + argmax",
        "draw",
        "write",
    ]
    assert list(summary["timings_ms"]) == stages
    assert summary["method"] == method
    settings = summary["settings"]["dslo"]
    assert (settings["source"], settings["scale"], settings["epsilon"]) == ("dinov2-small", 7.0, 0.1)
    assert summary["settings"]["windows"] == "none"

    assert "done before" in ovs(*arguments).stdout
    again = ovs(*arguments, "--theta", "0.6")
    assert again.returncode == 0
    assert "done before" not in again.stdout


def test_an_exemplar_finds_the_quokka(ovs, tmp_path, onnx_model, quokka):
    """The mirrored photo by the mask of the photo."""
    with Image.open(quokka.path) as file:
        photo = file.convert("RGB")
    Image.fromarray(np.where(quokka.mask, np.uint8(15), np.uint8(0))).save(tmp_path / "mask.png")
    photos = tmp_path / "photos"
    photos.mkdir()
    for name, size in (("a.png", (480, 321)), ("b.png", (640, 429))):
        photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT).resize(size).save(photos / name)
    mirrored = Image.fromarray(quokka.mask[:, ::-1].astype(np.uint8) * 255)
    for method in ("dslo-op", "dslo-mv"):
        exemplar = ["--exemplar", f"{quokka.path}:mask.png", "--class-name", "15=quokka"]
        result = ovs("segment", "photos", *exemplar, "--method", method, "--out", method)
        assert (result.returncode, result.stderr) == (0, "")
        assert "2 written, 0 done before, 0 failed" in result.stdout
        for name, size in (("a", (480, 321)), ("b", (640, 429))):
            found = labels_in(tmp_path / method / f"{name}_labels.png") == 15
            truth = np.asarray(mirrored.resize(size)) > 127
            assert (found & truth).sum() / (found | truth).sum() > 0.93


def test_a_matrix_of_the_caller(ovs, tmp_path, onnx_model, chelsea):
    """Every patch attends to its own half of the photo: the labels are halves, whatever the photo shows."""
    side = np.arange(12 * 18) % 18 < 9
    same = side[:, None] == side
    np.savez(tmp_path / "halves.npz", attention=same / same.sum(1, keepdims=True), grid=[12, 18])
    points = ["--point", "left:60,150", "--point", "right:400,60"]
    arguments = ["segment", chelsea, *points, *SMALL, "--method", "dslo-mv", "--attention", "halves.npz"]
    result = ovs(*arguments, "--sigma-range", "100", "--out", "out")
    assert result.returncode == 2  # no such option: the rest is for the Python API
    result = ovs(*arguments, "--out", "out")
    assert (result.returncode, result.stderr) == (0, "")
    labels = labels_in(tmp_path / "out" / "chelsea_labels.png")
    assert (labels[:, :200] == 0).mean() > 0.95
    assert (labels[:, 250:] == 1).mean() > 0.95
    summary = json.loads((tmp_path / "out" / "chelsea.json").read_text())
    assert "attention" in summary["timings_ms"]
    assert summary["settings"]["dslo"]["files"][0]["name"] == "halves.npz"


def test_words_with_the_attention_of_clip_itself(ovs, tmp_path, chelsea, clip_folder):
    """CLIP with random weights: keys attend to keys for the cosines, and its own attention carries them."""
    words = ["--classes", "cat, sofa; couch", "--backbone", f"local-dir:{clip_folder}", *SMALL]
    attention = ["--attention", f"local-dir:{clip_folder}"]
    for method in ("dslo-op", "dslo-mv"):
        result = ovs("segment", chelsea, *words, *attention, "--method", method, "--out", method)
        assert (result.returncode, result.stderr) == (0, "")
        summary = json.loads((tmp_path / method / "chelsea.json").read_text())
        assert summary["settings"]["features"] == "kk"
        assert (summary["settings"]["dslo"]["scale"], summary["settings"]["dslo"]["class_weight"]) == (100.0, 0.0)
        assert "attention" not in summary["timings_ms"]
        assert labels_in(tmp_path / method / "chelsea_labels.png").shape == (300, 451)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--preset", "harmless"], ["--preset: expected auto, paper or embedded for DSLO, got harmless"]),
        (["--theta", "2"], ["--theta: expected a number from 0 to 1, got 2"]),
        (["--nms", "none"], ["--nms", "none"]),
        (["--scale", "0"], ["--scale: expected a positive number"]),
        (["--epsilon", "0"], ["transport_map: epsilon"]),
        (["--threshold", "-1"], ["markov_velocity: threshold"]),
        (["--temperature", "0"], ["markov_velocity: temperature"]),
        (["--windows", "224/112"], ["--windows: expected none with --method dslo-mv", "'224/112'"]),
        (["--attention", "none.npy"], ["none.npy"]),
        (["--attention", "bad.npy"], ["bad.npy", "row 1 of zeros"]),
        (["--attention", "grid.npy"], ["grid.npy", "15 patches are no square"]),
        (["--attention-layer", "12"], ["--attention-layer: expected"]),
        (["--attention", "nobody/nothing", "--attention-weights", "folder"], ["--attention-weights"]),
    ],
)
def test_bad_input_is_one_line(ovs, tmp_path, onnx_model, chelsea, arguments, parts):
    (tmp_path / "folder").mkdir()
    np.save(tmp_path / "bad.npy", np.array([[0.5, 0.5, 0, 0], [0] * 4, [1, 0, 0, 0], [1, 0, 0, 0]]))
    np.save(tmp_path / "grid.npy", np.full((15, 15), 1 / 15))
    one_error(ovs("segment", chelsea, *CAT, *SMALL, "--method", "dslo-mv", *arguments, "--out", "out"), *parts)
    assert not (tmp_path / "out").exists()


def test_one_matrix_serves_one_photo(ovs, tmp_path, onnx_model, chelsea, coffee):
    np.save(tmp_path / "m.npy", np.full((4, 4), 0.25))
    images = [chelsea, coffee, *CAT, "--points-on", chelsea]
    result = ovs("segment", *images, "--method", "dslo-op", "--attention", "m.npy", "--out", "out")
    one_error(result, "--attention: expected one IMAGE", "got 2 images")
