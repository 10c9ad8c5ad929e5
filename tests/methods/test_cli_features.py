"""`ovs segment --features`: all forms of CLIP's patches, with random weights, and what the JSON says about them."""

import json

import pytest
import torch

pytest.importorskip("PIL")

from PIL import Image

TINY = "vit_tiny_patch16_224"


@pytest.fixture
def words(clip_folder, chelsea, tmp_path):
    """A small photo, two classes and a CLIP."""
    with Image.open(chelsea) as photo:
        photo.convert("RGB").resize((120, 80)).save(tmp_path / "small.png")
    classes = ["--classes", "cat, sofa", "--size", "80", "--windows", "64/32", "--method", "coarse"]
    return ["segment", "small.png", *classes, "--backbone", f"local-dir:{clip_folder}", "--out", "out"]


@pytest.mark.parametrize("features", ["naclip", "clip-dinoiser"])
def test_features_by_name(ovs, tmp_path, words, dino_weights, features):
    guide = ["--guide", TINY, "--guide-weights", dino_weights] if features != "naclip" else []
    result = ovs(*words, "--features", features, *guide, "--quiet")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    settings = json.loads((tmp_path / "out" / "small.json").read_text())["settings"]
    assert (settings["features"], settings["guide"]) == (features, TINY if guide else None)
    with Image.open(tmp_path / "out" / "small_labels.png") as file:
        assert file.size == (120, 80)


def test_a_projection_decides_the_result(ovs, tmp_path, words):
    state = {"obj_proj.weight": torch.randn(8, 64, 3, 3), "obj_proj.bias": torch.zeros(8)}
    torch.save({"model_state_dict": state}, tmp_path / "last.pt")
    words += ["--features", "clip-dinoiser", "--projection", "last.pt"]
    assert "wrote" in ovs(*words).stdout
    assert json.loads((tmp_path / "out" / "small.json").read_text())["settings"]["guide"] is None
    torch.save({"model_state_dict": {**state, "obj_proj.bias": torch.ones(8)}}, tmp_path / "last.pt")
    assert "wrote" in ovs(*words).stdout


def test_dslo_takes_any_features_and_loads_its_attention_by_itself(ovs, tmp_path, words, clip_folder, dino_weights):
    """Features on the guide's grid, attention on CLIP's."""
    guide = ["--guide", TINY, "--guide-weights", dino_weights]
    name = words[words.index("--backbone") + 1]
    at = words.index("--windows")
    words = [*words[:at], *words[at + 2 :], "--method", "dslo-op", "--attention", name]
    result = ovs(*words, "--features", "proxyclip", *guide, "--quiet")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert json.loads((tmp_path / "out" / "small.json").read_text())["settings"]["features"] == "proxyclip"


def test_naclip_ends_in_pamr_if_asked(ovs, tmp_path, words):
    words = [*words[: words.index("--method")], "--method", "naclip", *words[words.index("--backbone") :]]
    words += ["--classes", "cat, sofa, grass, sky, stone wall", "--features", "maskclip"]
    found = {}
    for options in ([], ["--pamr"]):
        result = ovs(*words, *options, "--quiet")
        assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
        document = json.loads((tmp_path / "out" / "small.json").read_text())
        assert document["settings"]["recipe"]["pamr"] == bool(options)
        assert ("pamr" in document["timings_ms"]) == bool(options)
        found[bool(options)] = (tmp_path / "out" / "small_labels.png").read_bytes()
    assert found[True] != found[False]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--pamr"], "--pamr: expected --method naclip or proxyclip with it, got --method coarse"),
        (["--features", "naclip", "--guide", TINY], "--guide: expected --features clip-dinoiser or proxyclip with it"),
        (
            ["--features", "clip-dinoiser", "--projection", "none.pt"],
            "--projection: expected a checkpoint of CLIP-",
        ),
    ],
)
def test_what_cannot_be_used_is_one_line_before_any_model(ovs, tmp_path, words, options, text):
    result = ovs(*words, *options)
    assert (result.returncode, result.stdout) == (2, "")
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("ovs segment: error: ")
    assert text in result.stderr
    assert not (tmp_path / "out").exists()
