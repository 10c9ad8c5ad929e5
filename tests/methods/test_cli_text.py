"""`ovs segment --classes`: CLIP for the words, DINO for the graph, both with random weights."""

import json

import numpy as np
import pytest

pytest.importorskip("PIL")

from PIL import Image


@pytest.fixture
def models(clip_folder, dino_weights):
    """Options that name the two small models."""
    graph = ["--graph-backbone", "vit_tiny_patch16_224", "--graph-weights", dino_weights]
    return ["--backbone", f"local-dir:{clip_folder}", *graph]


def test_words_to_labels(ovs, tmp_path, chelsea, models, cache):
    words = ["--classes", "cat, sofa; couch", "--background", "sky, wall", "--size", "224"]
    result = ovs("segment", chelsea, *words, *models, "--out", "out")
    assert (result.returncode, result.stderr) == (0, "")
    summary = json.loads((tmp_path / "out" / "chelsea.json").read_text())
    assert [(entry["id"], entry["name"]) for entry in summary["classes"]] == [
        (0, "background"),
        (1, "cat"),
        (2, "sofa"),
    ]
    assert (summary["method"], summary["embeddings"]) == ("lposs+", 5)
    settings = summary["settings"]
    assert settings["windows"] == "224/112"
    assert (settings["graph"]["k"], settings["graph"]["gamma"], settings["graph"]["alpha"]) == (400, 3.0, 0.95)
    with Image.open(tmp_path / "out" / "chelsea_labels.png") as file:
        labels = np.asarray(file)
    assert labels.shape == (300, 451)
    assert [int((labels == value).sum()) for value in range(3)] == [entry["pixels"] for entry in summary["classes"]]
    assert len(list((cache / "ovs_kernels" / "text").iterdir())) >= 5
    assert "done before" in ovs("segment", chelsea, *words, *models, "--out", "out").stdout
    words[1] = "cat, sofa"
    assert "done before" not in ovs("segment", chelsea, *words, *models, "--out", "out").stdout


@pytest.mark.parametrize("method", ["coarse", "pixels", "lposs"])
@pytest.mark.parametrize("windows", ["none", "64/32+96/48"])
def test_every_method_takes_text_and_windows(ovs, tmp_path, chelsea, models, method, windows):
    with Image.open(chelsea) as photo:
        photo.convert("RGB").resize((90, 60)).save(tmp_path / "small.png")
    options = ["--classes", "cat, dog", "--size", "100", "--method", method, "--windows", windows]
    result = ovs("segment", "small.png", *options, *models, "--out", "out", "--quiet")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    with Image.open(tmp_path / "out" / "small_labels.png") as file:
        assert file.size == (90, 60)


def test_points_work_with_a_clip_backbone_too(ovs, tmp_path, chelsea, models):
    points = ["--point", "cat:250,60", "--point", "background:10,60"]
    result = ovs("segment", chelsea, *points, *models, "--method", "lposs", "--size", "128", "--out", "out")
    assert (result.returncode, result.stderr) == (0, "")
    assert json.loads((tmp_path / "out" / "chelsea.json").read_text())["settings"]["windows"] == "224/112"


def test_weights_that_are_not_there_are_one_line(ovs, tmp_path, chelsea, models, clip_folder):
    words = ["--classes", "cat, dog", "--out", "out"]
    cases = [
        ([], ["ViT-B-16", "huggingface.co/laion/CLIP-ViT-B-16-laion2B-s34B-b88K", "put it into", "--weights "]),
        (models[:2], ["dino_vitb16", "dino_vitbase16_pretrain.pth", "put it into", "--graph-weights "]),
        ([*models, "--graph-weights", "none.pth"], ["--graph-weights: expected a checkpoint", "no file at none.pth"]),
        ([*models, "--graph-weights", "bad.pth"], ["--graph-weights: expected a checkpoint", "bad.pth"]),
        ([*models, "--weights", "bad.pth"], ["--weights: expected a checkpoint", "bad.pth"]),
    ]
    (tmp_path / "bad.pth").write_bytes((clip_folder / "open_clip_pytorch_model.bin").read_bytes()[:10000])
    for options, parts in cases:
        result = ovs("segment", chelsea, *words, *options)
        assert (result.returncode, result.stdout) == (2, "")
        # A slow machine is told after some seconds what it is waiting for.
        lines = [line for line in result.stderr.splitlines() if not line.startswith("ovs: note: fetching the weights")]
        assert len(lines) == 1, result.stderr
        assert lines[0].startswith("ovs segment: error: ")
        for part in parts:
            assert part in lines[0]
    assert not (tmp_path / "out").exists()
