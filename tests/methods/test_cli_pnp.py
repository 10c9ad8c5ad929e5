"""`ovs segment --method pnp-ovss` as users meet it: real photos, transformers' models made small, random weights."""

import json

import numpy as np
import pytest
import torch

pytest.importorskip("PIL")
pytest.importorskip("transformers")

from ovs_methods.backbones import load_matcher
from ovs_methods.cli import main
from ovs_methods.errors import UserError
from ovs_methods.methods import choose_pnp_preset, normalized_maps, postprocess
from ovs_methods.methods.pnp_ovss import best_of_words, make_prompts, saliency_maps
from ovs_methods.options import SegmentOptions
from ovs_methods.outputs import file_identity
from ovs_methods.pipeline import make_segmenter, segment
from PIL import Image

CLASSES = "cat, potted-plant; sp oon, wall"
HERE = ["--cross-layer", "1", "--cross-head", "2", "--size", "96", "--threads", "1"]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Here and in the processes that are started: the number of threads decides how sums are rounded."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def photos(tmp_path, chelsea, coffee):
    """A flat and a tall photo."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for source, box, name in ((chelsea, (60, 20, 240, 140), "flat"), (coffee, (200, 50, 290, 210), "tall")):
        with Image.open(source) as file:
            file.convert("RGB").crop(box).save(folder / f"{name}.png")
    return folder


def labels_in(path):
    with Image.open(path) as file:
        return np.asarray(file)


def by_hand(path, folder, variant, background, **changed):
    """Labels from the steps one by one."""
    matcher = load_matcher(str(folder))
    constants = choose_pnp_preset(variant, {"layer": 1, "head": 2, **changed})
    with Image.open(path) as file:
        photo = file.convert("RGB")
    prompts = make_prompts(matcher, ["cat", "pottedplant", "spoon", "wall"], constants)
    words = saliency_maps(matcher, matcher.pixels(photo, 96), prompts, constants)
    maps = torch.stack([words[0], torch.maximum(words[1], words[2]), words[3]])
    image = torch.from_numpy(np.array(photo)).permute(2, 0, 1)
    arguments = {"variant": variant, "threshold": constants.threshold, "blur": constants.blur}
    return postprocess(maps, image, background=background, crf=constants.crf, **arguments).numpy()


def test_a_folder_of_photos(ovs, tmp_path, photos, blip_folder):
    arguments = ["segment", "photos", "--classes", CLASSES, "--method", "pnp-ovss", "--model", blip_folder, *HERE]
    result = ovs(*arguments, "--background", "uncovered", "--out", "out")
    assert (result.returncode, result.stderr) == (0, "")
    assert "2 written, 0 done before, 0 failed" in result.stdout
    for name, shape in (("flat", (120, 180)), ("tall", (160, 90))):
        labels = labels_in(tmp_path / "out" / f"{name}_labels.png")
        assert labels.shape == shape
        assert np.array_equal(labels, by_hand(photos / f"{name}.png", blip_folder, "paper", True))
        assert len(np.unique(labels)) > 1
        summary = json.loads((tmp_path / "out" / f"{name}.json").read_text())
        assert list(summary["timings_ms"]) == ["read", "pnp-ovss", "blur + CRF", "draw", "write"]
        assert [entry["name"] for entry in summary["classes"]] == ["background", "cat", "potted-plant", "wall"]
        settings = summary["settings"]
        assert settings["classes"] == {"cat": ["cat"], "potted-plant": ["pottedplant", "spoon"], "wall": ["wall"]}
        assert (settings["pnp"]["layer"], settings["pnp"]["head"], settings["pnp"]["rounds"]) == (1, 2, 4)
        assert "model.safetensors" in [file["name"] for file in settings["pnp"]["files"]]


@pytest.fixture
def options(tmp_path, photos, blip_folder):
    def make(**changed):
        made = {"images": [str(photos)], "out": tmp_path / "out", "classes": CLASSES, "method": "pnp-ovss"}
        made |= {"backbone": str(blip_folder), "pnp": {"layer": 1, "head": 2}, "short_side": 96, "threads": 1}
        return SegmentOptions(**{**made, **changed})

    return make


def test_resumed_unless_a_constant_changes(options, photos):
    assert segment(options()).written == 2
    assert segment(options()).skipped == 2
    rounds = {"layer": 1, "head": 2, "rounds": 2}
    report = segment(options(pnp=rounds))
    assert (report.written, report.skipped) == (2, 0)
    (photos / "flat.png").write_bytes(b"no image")
    report = segment(options(pnp=rounds))
    assert (report.written, report.skipped, len(report.failed)) == (0, 1, 1)


def test_variant_tuned_constants_and_no_background(options, tmp_path, photos, blip_folder):
    tuned = tmp_path / "tuned.json"
    best = {"layer": 1, "head": 2, "threshold": 0.4, "blur": 0.03, "reward": 1}
    files = [file_identity(path) for path in sorted(blip_folder.iterdir())]
    tuned.write_text(json.dumps({"best": best, "settings": {"backbone": "elsewhere", "files": files}}))
    made = options(pnp={"crf_iterations": 2}, pnp_variant="code", tuned=str(tuned), images=[str(photos / "flat.png")])
    assert segment(made).written == 1
    expected = by_hand(photos / "flat.png", blip_folder, "code", False, threshold=0.4, blur=0.03, crf_iterations=2)
    assert np.array_equal(labels_in(tmp_path / "out" / "flat_labels.png"), expected)
    constants = options(tuned=str(tuned), pnp={"blur": 0.1}, recipe={"threshold": 0.2}).pnp_constants()
    assert (constants.layer, constants.head, constants.threshold, constants.blur) == (1, 2, 0.2, 0.1)
    with pytest.raises(UserError, match=r"--tuned: expected a report for .*, got .*, which is for elsewhere"):
        options(tuned=str(tuned), backbone=str(tmp_path)).pnp_constants()


def test_bridgetower_and_one_class_against_the_rest(tmp_path, photos, bridgetower_folder):
    made = SegmentOptions(
        images=[str(photos / "tall.png")],
        out=tmp_path / "out",
        classes="cat",
        background="uncovered",
        method="pnp-ovss",
        backbone=str(bridgetower_folder),
        pnp={"layer": 0, "head": 3, "crf_iterations": 0},
        short_side=64,
        threads=1,
    )
    segmenter = make_segmenter(made)
    assert segmenter.vocabulary.names == ["background", "cat"]
    seen, labels = segmenter.labels(photos / "tall.png", segmenter.clock)
    pixels = segmenter.matcher.pixels(seen.photo, 64)
    prompts = make_prompts(segmenter.matcher, ["cat"], segmenter.constants)
    maps = saliency_maps(segmenter.matcher, pixels, prompts, segmenter.constants)
    assert maps.max() > 0
    scores = normalized_maps(best_of_words(maps, [0]), (160, 90))
    assert np.array_equal(labels, (scores[1] > scores[0]).numpy().astype(np.int64))
    assert 0 < labels.mean() < 1


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--classes", "cat"], "--classes: expected at least two classes"),
        (["--classes", "cat, - "], "--classes: expected names with letters in them, got '-'"),
        (["--classes", "cat, background", "--background", "uncovered"], "--background: expected none where --classes"),
        (["--point", "cat:1,2"], "--point: expected another method than pnp-ovss with it, got --method pnp-ovss"),
        (["--features", "kk"], "--features: expected another method"),
        (["--windows", "224/112"], "--windows: expected another method"),
        (["--scale", "2"], "--scale: expected"),
        (["--size", "100"], "--size: expected a multiple of 16, the patches of"),
        (["--cross-layer", "3"], "--cross-layer: expected 0 to 2, which"),
        (["--cross-head", "-1"], "--cross-head: expected 0 to 3, which"),
        (["--drop", "2.5"], "--drop: expected a share from 0 to below 1, or a whole number of patches, got 2.5"),
        (["--threshold", "2"], "--threshold: expected a number from 0 to 1, got 2"),
        (["--blur", "nan"], "--blur: expected a share of the long side"),
        (["--tuned", "none.json"], "--tuned: expected a report of ovs tune-pnp, got no file at none.json"),
        (["--tuned", "{blip}/config.json"], "--tuned: expected a report of ovs tune-pnp, got"),
        (["--model", "nothing"], "--model: expected blip-itm-large-flickr"),
        (["--model", "{clip}"], "--model: expected a folder in the layout of transformers, got"),
        (["--weights", "{blip}/none"], "--weights: expected a folder in the layout of transformers, got nothing at"),
        (["--method", "naclip", "--rounds", "2"], "--rounds: expected --method pnp-ovss with it, got --method naclip"),
        (["--method", "naclip", "--cross-head", "2"], "--cross-head: expected --method pnp-ovss with it"),
        (["--method", "naclip", "--background", "uncovered"], "--background: expected --method pnp-ovss with it"),
        (["--method", "lposs+", "--threshold", "0.2"], "--threshold: expected --method naclip, proxyclip"),
    ],
)
def test_bad_input_is_one_line(capsys, tmp_path, photos, blip_folder, clip_folder, arguments, text):
    given = [each.format(blip=blip_folder, clip=clip_folder) for each in arguments]
    usual = ["--classes", CLASSES, "--method", "pnp-ovss", "--model", str(blip_folder), *HERE]
    if given[0] == "--method":  # the options of another method are looked at before its models
        usual = ["--classes", CLASSES]
    assert main(["segment", str(photos), *usual, *given, "--out", str(tmp_path / "out")]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert f"ovs segment: error: {text}" in lines[0]
    assert not (tmp_path / "out").exists()


def test_weights_that_are_not_whole_or_nowhere(capsys, tmp_path, photos, blip_folder):
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in blip_folder.iterdir():
        (broken / file.name).write_bytes(file.read_bytes()[: 4000 if file.suffix == ".safetensors" else None])
    usual = ["segment", str(photos), "--classes", CLASSES, "--method", "pnp-ovss", *HERE]
    assert main([*usual, "--model", str(broken), "--out", str(tmp_path / "out")]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith(f"ovs segment: error: --model: expected a checkpoint of {broken}, got {broken} ('")
    assert main([*usual, "--model", "blip-itm-large-coco", "--out", str(tmp_path / "out")]) == 2  # no network in tests
    lines = capsys.readouterr().err.strip().splitlines()
    assert "Salesforce/blip-itm-large-coco: expected its weights in the download cache or from the network" in lines[-1]
    assert not (tmp_path / "out").exists()


def test_evaluated_as_the_other_methods_are(tmp_path, photos, blip_folder):
    """Two photos with masks: intersections over unions of the labels that the steps one by one give."""
    (tmp_path / "masks").mkdir()
    (tmp_path / "classes.txt").write_text("cat\npotted-plant; sp oon\nwall\n")
    met, either = np.zeros(3), np.zeros(3)
    for name, shape in (("flat", (120, 180)), ("tall", (160, 90))):
        mask = np.add.outer(np.arange(shape[0]) // 40, np.arange(shape[1]) // 50).astype(np.uint8) % 3
        mask[:7] = 255
        Image.fromarray(mask).save(tmp_path / "masks" / f"{name}.png")
        labels = by_hand(photos / f"{name}.png", blip_folder, "paper", False)
        for k in range(3):
            met[k] += ((labels == k) & (mask == k)).sum()
            either[k] += (((labels == k) | (mask == k)) & (mask != 255)).sum()
    where = ["--dataset", str(tmp_path), "--kind", "folder", "--images", "photos", "--out", str(tmp_path / "out")]
    assert main(["evaluate", *where, "--method", "pnp-ovss", "--backbone", str(blip_folder), *HERE, "--quiet"]) == 0
    (found,) = json.loads((tmp_path / "out" / "results.json").read_text())["methods"]
    assert [entry["iou"] for entry in found["classes"]] == [
        round(100 * a / b, 4) for a, b in zip(met, either, strict=True)
    ]
    assert met.sum() > 0
