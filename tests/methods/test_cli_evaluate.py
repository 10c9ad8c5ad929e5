"""`ovs evaluate`: real photos in published layouts, small models with random weights, the counts recomputed."""

import csv
import dataclasses
import json
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("PIL")

import dataset_layouts as layouts
from ovs_methods.cli import main
from ovs_methods.data import CLASSES, load_dataset
from ovs_methods.errors import UserError
from ovs_methods.evaluate import EvaluateOptions, Evaluation, patch_oracle, read_ahead
from ovs_methods.evaluation_runs import plan_runs, published_of
from ovs_methods.options import SegmentOptions
from PIL import Image


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, cache):
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def models(clip_folder, dino_weights):
    """Options that name the two small models."""
    graph = ["--graph-backbone", "vit_tiny_patch16_224", "--graph-weights", dino_weights]
    return ["--backbone", f"local-dir:{clip_folder}", *graph, "--size", "96", "--threads", "1"]


@pytest.fixture
def voc(tmp_path, chelsea, coffee):
    return layouts.voc(tmp_path / "voc", chelsea, coffee)


@pytest.fixture
def mine(tmp_path, chelsea, coffee):
    return layouts.folder(tmp_path / "mine", chelsea, coffee)


@pytest.fixture
def evaluate(capsys):
    """Runs `ovs evaluate` in this process."""

    def run(*arguments) -> tuple[int, str, str]:
        code = main(["evaluate", *map(str, arguments)])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def results(folder) -> dict:
    return json.loads((folder / "results.json").read_text())


def counts(folder) -> dict[str, dict]:
    return {method["label"]: method["counts"] for method in results(folder)["methods"]}


def iou_of(pairs, classes) -> list[float]:
    """By class, of label maps and masks whose 255 does not count; the sums are over all images."""
    made = []
    for index in classes:
        both = sum(((a == index) & (b == index)).sum() for a, b in pairs)
        either = sum((((a == index) | (b == index)) & (b != 255)).sum() for a, b in pairs)
        made.append(100 * both / either if either else np.nan)
    return made


def test_counts_are_those_of_what_segment_writes(ovs, evaluate, tmp_path, voc, models):
    (tmp_path / "prompt.txt").write_text("a photo of a {}.\n")
    chosen = ["--windows", "64/32", "--templates", tmp_path / "prompt.txt", *models]
    out = tmp_path / "out"
    methods = ["--method", "lposs+", "--method", "maskclip"]
    made = ovs("evaluate", "--dataset", voc.root, "--kind", "voc21", *methods, *chosen, "--out", out)
    errors = [line for line in made.stderr.splitlines() if not line.startswith("ovs: note: class names")]  # if slow
    assert (made.returncode, errors) == (0, [])
    document = results(out)
    assert (document["images"], document["failed"], document["missing"]) == (4, {}, [])
    names = [name for name in document["settings"]["dataset"]["classes"] if name != "background"]
    spaced = {"diningtable": "dining table", "pottedplant": "potted plant"}
    words = ["--classes", ", ".join(spaced.get(name, name) for name in names), "--background", "voc"]
    listed = [voc.root / "JPEGImages" / f"{name}.jpg" for name in list(voc.masks)[:4]]
    for method in document["methods"]:
        labels = tmp_path / method["label"]
        options = [*words, "--method", method["method"], *chosen, "--resize", "sampled", "--out", labels]
        assert main(["segment", *map(str, [*listed, *options])]) == 0
        pairs = []
        for path in listed:
            with Image.open(labels / f"{path.stem}_labels.png") as file:
                pairs.append((np.asarray(file), voc.masks[path.stem]))
        expected = iou_of(pairs, range(21))
        found = [np.nan if entry["iou"] is None else entry["iou"] for entry in method["classes"]]
        np.testing.assert_allclose(found, expected, atol=1e-4)
        assert method["miou"] == pytest.approx(np.nanmean(expected), abs=1e-4)
    with open(out / "results.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["class", "pixels", *(f"{m} {n}" for m in ("lposs+", "maskclip") for n in ("iou", "accuracy"))]
    assert [row[0] for row in rows[1:]] == ["background", *names, "mean"]
    assert "lposs+" in made.stdout
    assert f"{document['methods'][0]['miou']:.2f}" in made.stdout
    code, said, _ = evaluate("--dataset", voc.root, "--kind", "voc21", *methods, *chosen, "--out", out)
    assert (code, "done before" in said) == (0, True)


def test_methods_share_what_the_encoder_sees(mine, clip_folder, dino_weights):
    dataset = load_dataset("folder", mine.root)
    template = SegmentOptions(
        images=[],
        out=mine.root,
        backbone=f"local-dir:{clip_folder}",
        graph_backbone="vit_tiny_patch16_224",
        graph_weights=str(dino_weights),
        short_side=96,
        constants={"windows": "64/32"},
        threads=1,
    )
    methods = ("lposs", "lposs+", "maskclip", "coarse")
    runs = plan_runs(template, methods, dataset, [])
    evaluation = Evaluation(EvaluateOptions(mine.root, "folder", mine.root), dataset, runs)
    models = {id(m): m for s in evaluation._segmenters for m in (s.backbone, s.graph_backbone) if m is not None}
    assert len(models) == 2  # one CLIP, one DINO
    seen = []
    for model in models.values():
        model.dense = lambda images, dense=model.dense: seen.append(len(images)) or dense(images)
    reads = list(read_ahead(range(2), dataset.items, dataset))
    together = [evaluation.predict(read, {}) for read in reads]
    assert len(seen) == 4  # two models, two photos; four methods
    for read, predictions in zip(reads, together, strict=True):
        for run, labels in zip(runs, predictions, strict=True):
            alone = Evaluation(EvaluateOptions(mine.root, "folder", mine.root), dataset, [run])
            np.testing.assert_array_equal(alone.predict(read, {})[0], labels)


@pytest.mark.usefixtures("_interruptible")
def test_an_interrupted_run_goes_on(environment, tmp_path, evaluate, mine, models):
    kind = ["--dataset", mine.root, "--kind", "folder", "--metrics", "miou,biou"]
    (tmp_path / "prompt.txt").write_text("a photo of a {}.\n")
    options = [*kind, "--method", "lposs+", "--windows", "64/32", *models, "--oracle", "patch:4"]
    options += ["--templates", tmp_path / "prompt.txt"]
    panels = tmp_path / "panels"
    command = [
        sys.executable,
        "-m",
        "ovs_methods",
        "evaluate",
        *options,
        "--out",
        tmp_path / "a",
        "--save-panels",
        panels,
    ]
    with subprocess.Popen(list(map(str, command)), env=environment, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        while not (panels.is_dir() and len(list(panels.glob("*.png"))) >= 2) and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=120)[1]
    assert process.returncode == 130, said
    assert "the same command goes on from there" in said
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["results.partial"]
    code, said, _ = evaluate(*options, "--out", tmp_path / "a")
    assert (code, "images were done before" in said) == (0, True)
    assert evaluate(*options, "--out", tmp_path / "b", "--quiet") == (0, "", "")
    assert counts(tmp_path / "a") == counts(tmp_path / "b")
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["results.csv", "results.json"]


def test_shards_add_up(evaluate, tmp_path, mine):
    options = ["--dataset", mine.root, "--kind", "folder", "--oracle", "patch:8", "--metrics", "miou,biou", "--quiet"]
    for index in (1, 2, 3):
        code, _, said = evaluate(*options, "--shard", f"{index}/3", "--out", tmp_path / str(index))
        assert (code, said) == (0, "")
    parts = [tmp_path / name for name in ("2", "1")]
    code, said, _ = evaluate("--merge", *parts, "--out", tmp_path / "two")
    assert (code, results(tmp_path / "two")["images"]) == (0, 4)
    code, _, said = evaluate("--merge", *parts, tmp_path / "3" / "results.json", "--out", tmp_path / "sum", "--quiet")
    assert (code, said) == (0, "")
    assert evaluate(*options, "--out", tmp_path / "whole")[0] == 0
    assert counts(tmp_path / "sum") == counts(tmp_path / "whole")
    document = results(tmp_path / "1")
    (tmp_path / "1" / "results.json").write_text(json.dumps({**document, "failed": {"z": "z.jpg: damaged"}}))
    code, said, _ = evaluate("--merge", *parts, "--out", tmp_path / "less")
    assert (code, "1 could not be used" in said, "the same command" in said) == (1, True, False)
    expected = []
    for values in mine.masks.values():  # the oracle, pixel by pixel
        height, width = values.shape
        made = np.empty_like(values)
        for y in range(height):
            for x in range(width):
                row = int((y + 0.5) * -(-height // 8) / height)
                column = int((x + 0.5) * -(-width // 8) / width)
                made[y, x] = values[
                    int((row + 0.5) * height / -(-height // 8)), int((column + 0.5) * width / -(-width // 8))
                ]
        np.testing.assert_array_equal(patch_oracle(values, 8), made)
        expected.append((made, values))
    found = [entry["iou"] for entry in results(tmp_path / "sum")["methods"][0]["classes"]]
    np.testing.assert_allclose(found, iou_of(expected, range(3)), atol=1e-4)
    cases = [
        (["--merge", parts[0], parts[0]], "different shards of one run"),
        (["--merge", parts[0]], "at least two results"),
        (["--merge", parts[0], tmp_path / "whole"], "different shards of one run"),
        (["--merge", parts[0], mine.root / "classes.txt"], "which is damaged or something else"),
        (["--merge", *parts, "--oracle", "patch"], "only --out, --overwrite and --quiet with it, got also --oracle"),
    ]
    for arguments, text in cases:
        code, _, said = evaluate(*arguments, "--out", tmp_path / "none")
        assert (code, said.count("\n")) == (2, 1)
        assert text in said
    assert evaluate(*options[:-1], "--oracle", "patch:4", "--shard", "3/3", "--out", tmp_path / "other")[0] == 0
    assert "the runs.patch of" in evaluate("--merge", parts[0], tmp_path / "other", "--out", tmp_path / "none")[2]
    assert not (tmp_path / "none").exists()


def test_images_that_cannot_be_used_are_named_and_tried_again(evaluate, tmp_path, mine):
    options = ["--dataset", mine.root, "--kind", "folder", "--oracle", "patch", "--out", tmp_path / "out"]
    names = list(mine.masks)
    good = {name: (mine.root / "masks" / f"{name}.png").read_bytes() for name in names}
    layouts.gray_png(mine.masks[names[0]][:-1], mine.root / "masks" / f"{names[0]}.png")
    layouts.gray_png(mine.masks[names[1]] + 5, mine.root / "masks" / f"{names[1]}.png")
    (mine.root / "masks" / f"{names[2]}.png").write_bytes(good[names[2]][:60])
    (mine.root / "images" / f"{names[3]}.jpg").unlink()
    code, said, errors = evaluate(*options)
    assert code == 1
    for part in (f"{names[0]}.png: expected a mask of 80 x 96", f"{names[1]}.png: expected labels of the class list"):
        assert part in errors
    assert f"no partner: {mine.root}/masks/{names[3]}.png (no image)" in errors
    assert "1 images, 3 could not be used, 1 without a partner" in said
    assert "the same command tries the images again" in said
    assert "no partner" not in evaluate(*options, "--quiet")[2]
    document = results(tmp_path / "out")
    assert (document["images"], sorted(document["failed"])) == (1, names[:3])
    code, _, errors = evaluate(*options, "--strict", "--overwrite")
    assert (code, "--strict: expected an image for every mask" in errors) == (2, True)
    for name in names[:3]:
        (mine.root / "masks" / f"{name}.png").write_bytes(good[name])
    code, said, _ = evaluate(*options)
    assert (code, "1 images were done before, 3 are left" in said) == (0, True)
    assert evaluate(*options[:-1], tmp_path / "fresh", "--quiet")[0] == 0
    assert counts(tmp_path / "out") == counts(tmp_path / "fresh")
    (mine.root / "masks" / f"{names[3]}.png").unlink()
    layouts.gray_png(mine.masks[names[0]][:-1], mine.root / "masks" / f"{names[0]}.png")
    code, said, errors = evaluate(*options[:-1], tmp_path / "strict", "--strict")
    assert (code, "ovs evaluate: error: --strict: " in errors) == (2, True)
    assert not (tmp_path / "strict").exists()


def test_a_full_disk_is_said_and_leaves_nothing_half_written(environment, tmp_path, mine):
    command = [sys.executable, "-m", "ovs_methods", "evaluate", "--dataset", mine.root, "--kind", "folder"]
    command += ["--oracle", "patch", "--out", tmp_path / "out"]

    def full_soon() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))

    for more, place in ([], "results.partial"), (["--save-panels", "1"], "panels"):
        made = subprocess.run(
            list(map(str, [*command, *more])),
            cwd=tmp_path,
            env={**environment, "PYTHONDONTWRITEBYTECODE": "1"},
            preexec_fn=full_soon,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert made.returncode == 2, made.stderr
        assert made.stderr.count("\n") == 1
        assert "expected room for" in made.stderr
        assert place in made.stderr
        assert "File too large" in made.stderr
        assert [path.name for path in (tmp_path / "out").rglob("*") if path.is_file()] == []


def test_changed_settings_do_not_go_on_unseen(evaluate, tmp_path, mine):
    options = ["--dataset", mine.root, "--kind", "folder", "--out", tmp_path / "out"]
    assert evaluate(*options, "--oracle", "patch", "--quiet") == (0, "", "")
    code, said, _ = evaluate(*options, "--oracle", "patch")
    assert (code, "done before" in said) == (0, True)
    for changed, name in [
        (["--oracle", "patch:4"], "runs.patch 16"),
        (["--oracle", "patch", "--metrics", "biou"], "metrics.metrics"),
        (["--oracle", "patch", "--limit", "2"], "limit"),
        (["--oracle", "patch", "--ignore-label", "2"], "dataset.labels"),
    ]:
        code, _, said = evaluate(*options, *changed)
        assert (code, name in said, "--overwrite replaces them" in said) == (2, True, True), said
    assert evaluate(*options, "--oracle", "patch:4", "--overwrite", "--quiet") == (0, "", "")
    assert results(tmp_path / "out")["settings"]["runs"][0]["patch"] == 4


def test_numbers_of_the_paper_stand_beside_ours(evaluate, tmp_path, voc):
    options = ["--dataset", voc.root, "--kind", "voc21", "--oracle", "patch", "--metrics", "miou,biou"]
    code, said, _ = evaluate(*options, "--out", tmp_path / "out")
    assert code == 0
    summary = said[said.index("method") :].splitlines()
    assert summary[0].split() == ["method", "mIoU", "paper", "BIoU", "paper", "aAcc", "mAcc", "ms/image"]
    assert (summary[2].split()[2], summary[2].split()[4]) == ("91.5", "80.1")
    assert "paper: LPOSS, CVPR 2025" in said
    _, said, _ = evaluate(*options, "--limit", "2", "--out", tmp_path / "two")
    assert "paper: LPOSS, CVPR 2025, whole split; this is 2 of 4 images" in said
    _, said, _ = evaluate(*options[:-2], "--oracle", "patch:8", "--out", tmp_path / "eight")
    assert "\npaper: " not in said


def test_window_study_and_exemplars(evaluate, tmp_path, mine, clip_folder, chelsea):
    name = next(iter(mine.masks))
    example = f"{mine.root}/images/{name}.jpg:{mine.root}/masks/{name}.png"
    chosen = ["--backbone", f"local-dir:{clip_folder}", "--size", "64", "--threads", "1", "--quiet"]
    options = ["--dataset", mine.root, "--kind", "folder", "--method", "coarse", *chosen]
    study = ["--window-study", "none", "64/32", "ensemble", "--limit", "2"]
    assert evaluate(*options, *study, "--exemplar", example, "--out", tmp_path / "a") == (0, "", "")
    made = results(tmp_path / "a")["methods"]
    assert [m["label"] for m in made] == ["coarse none", "coarse 64/32", "coarse ensemble"]
    assert made[0]["counts"] != made[1]["counts"]
    assert made[0]["words"] is None
    for windows, method in zip(("none", "64/32", "ensemble"), made, strict=True):
        out = tmp_path / windows.replace("/", "_")
        alone = [*options, "--windows", windows, "--limit", "2", "--exemplar", example, "--out", out]
        assert evaluate(*alone) == (0, "", "")
        assert counts(out)["coarse"] == method["counts"]


def test_the_command_offers_what_there_is():
    from ovs_methods import data, methods
    from ovs_methods.cli import evaluate as command
    from ovs_methods.cli import segment

    assert command._KINDS == data.KINDS
    assert set(segment.METHODS) == {*methods.METHODS, "floss", methods.PNP}


def test_what_cannot_be_used_is_one_line(evaluate, tmp_path, mine):
    kind = ["--dataset", mine.root, "--kind", "folder"]
    oracle = [*kind, "--oracle", "patch"]
    (mine.root / "twice.txt").write_text("a\nb\na\n")
    (mine.root / "one.txt").write_text("a\nb\n")
    (tmp_path / "file").write_text("")
    cases = [
        (["--kind", "folder"], "--dataset: expected the folder of a data set, got none"),
        (["--dataset", mine.root], "--kind: expected voc20, "),
        ([*kind[:1], tmp_path / "no", *kind[2:]], "--dataset: expected a folder, got nothing at"),
        (["--dataset", mine.root, "--kind", "voc21"], "--dataset: expected a folder with the layout of voc21"),
        (kind, "--method: expected one of coarse, "),
        ([*kind, "--method", "lposs", "--method", "lposs"], "--method: expected every method once, got lposs twice"),
        ([*oracle, "--metrics", "dice"], "--metrics: expected miou or biou"),
        ([*oracle, "--shard", "9/9"], "--shard: expected at most 5 shards of 5 images, got 9/9"),
        ([*oracle, "--shard", "3/2"], "argument --shard: expected I/N"),
        ([*oracle, "--oracle", "pixel"], "argument --oracle: expected patch or patch:SIDE"),
        (
            [*oracle, "--class-list", "twice.txt"],
            f"{mine.root}/twice.txt: expected every class once, got 'a' as class 0",
        ),
        ([*kind, "--method", "lposs", "--words", mine.root / "one.txt"], "--words: expected 3 classes as the data set"),
        ([*kind, "--method", "dslo-op", "--window-study"], "--window-study: expected a method that has windows"),
        (
            [*kind, "--method", "lposs", "--method", "pnp-ovss", "--backbone", "x:y"],
            "--backbone: expected pnp-ovss in a",
        ),
        ([*kind, "--method", "coarse", "--top", "3"], "--top: expected --method floss with it"),
        (["--dataset", mine.root, "--kind", "voc20", "--images", "x"], "--images: expected --kind folder with it"),
        ([*oracle, "--save-panels", mine.root / "masks"], "--save-panels: expected another folder than those of the"),
        ([*oracle, "--save-panels", mine.root / "images" / "new"], "--save-panels: expected another folder than those"),
        ([*oracle, "--save-panels", tmp_path / "file"], "--save-panels: expected a folder, got the file"),
        ([*oracle, "--boundary-ratio", "0"], "--boundary-ratio: expected a positive number, got 0.0"),
        ([*oracle, "--boundary-ratio", "nan"], "--boundary-ratio: expected a positive number, got nan"),
        ([*oracle, "--reduce-zero-label", "--kind", "voc20"], "--reduce-zero-label: expected --kind folder with it"),
        ([*oracle, "--ignore-label", "70000"], "argument --ignore-label: expected an integer from 0 to 65535"),
    ]
    for arguments, text in cases:
        code, said, errors = evaluate(*arguments, "--out", tmp_path / "out")
        assert (code, said, errors.count("\n")) == (2, "", 1), errors
        assert errors.startswith(f"ovs evaluate: error: {text}"), errors
        assert not (tmp_path / "out").exists()
    assert evaluate(*oracle, "--out", tmp_path / "file")[2].startswith("ovs evaluate: error: --out: expected a folder")


@pytest.mark.parametrize(("kind", "style"), [("voc21", "mmseg"), ("voc20", "pnp"), ("voc20", "mmseg")])
def test_pnp_ovss_has_the_background_that_no_map_covers(evaluate, tmp_path, voc, blip_folder, kind, style):
    pytest.importorskip("transformers")
    here = ["--cross-layer", "1", "--cross-head", "2", "--size", "64", "--threads", "1", "--crf-iterations", "0"]
    options = ["--backbone", blip_folder, *here, "--words-per-prompt", "5", "--quiet"]
    names = CLASSES["voc20"]
    said = evaluate(
        *["--dataset", voc.root, "--kind", kind, "--method", "pnp-ovss", "--style", style, "--limit", "2"],
        *[*options, "--out", tmp_path / "out"],
    )
    assert said == (0, "", "")
    words = [{"diningtable": "dining table", "pottedplant": "potted plant"}.get(name, name) for name in names]
    background = ["--background", "uncovered"] if kind == "voc21" or style == "pnp" else []
    listed = [voc.root / "JPEGImages" / f"{name}.jpg" for name in list(voc.masks)[3:1:-1]]
    command = [*listed, "--classes", ", ".join(words), *background, "--method", "pnp-ovss", *options]
    assert main(["segment", *map(str, command), "--out", str(tmp_path / "labels")]) == 0
    pairs = []
    for path in listed:
        with Image.open(tmp_path / "labels" / f"{path.stem}_labels.png") as file:
            found, values = np.asarray(file), voc.masks[path.stem]
        if not background:
            found, values = found + 1, np.where(values == 0, 255, values)  # ids 0 to 19 are VOC's 1 to 20
        elif style == "pnp":
            values = np.where(values == 255, 0, values)
        pairs.append((found, values))
    first = 0 if background else 1
    expected = iou_of(pairs, range(first, 21))
    made = results(tmp_path / "out")["methods"][0]
    if style == "pnp":  # only classes that are in the ground truth
        expected = [
            value if any((b == index).any() for _, b in pairs) else np.nan for index, value in enumerate(expected)
        ]
    assert [entry["name"] for entry in made["classes"]] == [*(["background"] if background else []), *names]
    found = [np.nan if entry["iou"] is None else entry["iou"] for entry in made["classes"]]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert made["miou"] == pytest.approx(np.nanmean(expected), abs=1e-4)


def test_what_one_of_several_methods_does_not_use_is_left_out(mine, clip_folder):
    dataset = load_dataset("folder", mine.root)
    template = SegmentOptions(
        images=[], out=mine.root, backbone=f"local-dir:{clip_folder}", recipe={"scale": 50.0, "threshold": 0.2}
    )
    runs = plan_runs(template, ("naclip", "maskclip", "lposs"), dataset, [])
    assert [run.options.recipe for run in runs] == [
        {"scale": 50.0, "threshold": 0.2},
        {"scale": 50.0, "threshold": None},
        {"scale": None, "threshold": None},
    ]
    assert [run.words for run in runs] == ["naclip", "lposs", "lposs"]
    assert [(run.windows, run.options.short_side) for run in runs] == [
        ("224/112", 336),
        ("448/224", 448),
        ("224/112", 448),
    ]


def test_naclip_sees_voc_and_cityscapes_as_published(voc, clip_folder, tmp_path, chelsea):
    template = SegmentOptions(images=[], out=tmp_path, backbone="ViT-B-16:openai", resize="sampled")
    (run,) = plan_runs(template, ("naclip",), load_dataset("voc21", voc.root), [])
    assert (run.windows, run.options.short_side, run.options.clip_recipe().threshold) == ("none", 336, 0.1)
    images = "leftImg8bit/val/lindau/lindau_{}_leftImg8bit.png"
    city = layouts.pairs(tmp_path, images, "gtFine/val/lindau/lindau_{}_gtFine_labelTrainIds.png", [0, 18], chelsea)
    dataset = load_dataset("cityscapes", city.root)
    (run,) = plan_runs(template, ("naclip",), dataset, [])
    assert (run.windows, run.options.short_side) == ("224/112", 560)
    assert published_of(run, dataset, "mmseg", 0.02)["miou"].value == 35.5
    for changed in ({"short_side": 336}, {"recipe": {"scale": 50.0}}, {"features": "kk"}, {"resize": "smooth"}):
        (other,) = plan_runs(dataclasses.replace(template, **changed), ("naclip",), dataset, [])
        assert published_of(other, dataset, "mmseg", 0.02) == {}
    assert published_of(run, dataset, "pnp", 0.02) == published_of(run, dataset, "mmseg", 0.05) == {}


def test_papers_do_not_speak_for_other_settings(voc, tmp_path):
    dataset = load_dataset("voc20", voc.root)
    rows = [{"template_id": index, "entropy": 0.1 * index, "pixel_percentage": 1.0} for index in range(8)]
    ranked = {name: {"entropy_ranking": rows} for name in dataset.classes}
    (tmp_path / "ranking.json").write_text(json.dumps({"model": "maskclip", "dataset": "voc20", "classes": ranked}))
    template = SegmentOptions(images=[], out=tmp_path, resize="sampled", experts=str(tmp_path / "ranking.json"))

    def number(method, **changed):
        plain = template if method == "floss" else dataclasses.replace(template, experts=None)
        (run,) = plan_runs(dataclasses.replace(plain, **changed), (method,), dataset, [])
        found = published_of(run, dataset, "mmseg", 0.02).get("miou")
        return found and found.value

    assert number("floss") == number("floss", top=4, fusion="highest") == 61.8
    others = [{"top": 1}, {"fusion": "average"}, {"short_side": 336}, {"constants": {"windows": "none"}}]
    assert [number("floss", **changed) for changed in others] == [None] * 4
    assert (number("lposs", features="maskclip"), number("lposs", features="kk")) == (78.8, None)
    assert (number("dslo-mv", features="kk"), number("dslo-mv", features="maskclip")) == (89.0, None)
    others = [{"attention_layer": "up_0:1"}, {"short_side": 336}, {"dslo": {"scale": 40.0}}]
    assert [number("dslo-mv", **changed) for changed in others] == [None] * 3
    assert (number("naclip"), number("naclip", recipe={"pamr": True})) == (79.7, 83.03)
    assert number("proxyclip", recipe={"pamr": True}) is None


def test_floss_is_what_segment_writes(evaluate, tmp_path, mine, clip_folder):
    """A ranking of the class names: the labels are in the data set's order, whatever the ranking's is."""
    rows = {"cup": (3, 9), "background": (5, 2), "cat": (70, 11)}
    ranked = {
        name: {
            "entropy_ranking": [
                {"template_id": template, "entropy": 0.1 * (rank + 1), "pixel_percentage": 5.0}
                for rank, template in enumerate(templates)
            ]
        }
        for name, templates in rows.items()
    }
    (tmp_path / "ranking.json").write_text(json.dumps({"model": "maskclip", "dataset": "mine", "classes": ranked}))
    (mine.root / "classes.txt").write_text("background\ncat\ncup\n")
    chosen = ["--method", "floss", "--experts", tmp_path / "ranking.json", "--backbone", f"local-dir:{clip_folder}"]
    chosen += ["--size", "64", "--windows", "none", "--threads", "1", "--quiet"]
    where = ["--dataset", mine.root, "--kind", "folder", "--limit", "3"]
    assert evaluate(*where, *chosen, "--out", tmp_path / "out")[:2] == (0, "")
    names = list(mine.masks)[:3]
    photos = [mine.root / "images" / f"{name}.jpg" for name in names]
    command = [*photos, "--classes", "background, cat, cup", *chosen, "--resize", "sampled", "--out", tmp_path / "made"]
    assert main(["segment", *map(str, command)]) == 0
    pairs = []
    for name in names:
        with Image.open(tmp_path / "made" / f"{name}_labels.png") as file:
            pairs.append((np.asarray(file), mine.masks[name]))
    assert len({value for labels, _ in pairs for value in np.unique(labels).tolist()}) > 1
    found = [entry["iou"] for entry in results(tmp_path / "out")["methods"][0]["classes"]]
    np.testing.assert_allclose(found, iou_of(pairs, range(3)), atol=1e-4)


def test_pnp_ovss_on_one_class_and_a_background_with_other_names(mine):
    template = SegmentOptions(images=[], out=mine.root)
    (mine.root / "classes.txt").write_text("background; wall\ncat\n")
    (run,) = plan_runs(template, ("pnp-ovss",), load_dataset("folder", mine.root), [])
    assert (run.options.classes, run.options.background) == ("cat", "uncovered")
    (mine.root / "classes.txt").write_text("cat\nbackground\n")
    with pytest.raises(UserError, match=r"--style pnp: expected the background as the first class, .* as class 1"):
        plan_runs(template, ("pnp-ovss",), load_dataset("folder", mine.root), [], style="pnp")


def test_a_state_of_other_images_or_a_damaged_one_is_not_gone_on_with(evaluate, tmp_path, mine):
    options = ["--dataset", mine.root, "--kind", "folder", "--oracle", "patch", "--out", tmp_path / "out"]
    first, second, *_ = mine.masks
    layouts.gray_png(mine.masks[second] + 9, mine.root / "masks" / f"{second}.png")
    assert evaluate(*options, "--quiet")[0] == 1  # the state stays: one image is left to try again
    state = tmp_path / "out" / "results.partial"
    whole = state.read_bytes()
    for damaged in (whole[:100], whole[: len(whole) // 2], b""):
        state.write_bytes(damaged)
        code, _, said = evaluate(*options)
        assert (code, "the state of an interrupted run in" in said, "--overwrite starts" in said) == (2, True, True), (
            said
        )
    state.write_bytes(whole)
    code, _, said = evaluate(*options, "--style", "pnp")
    assert (code, "the metrics.style of the interrupted run" in said) == (2, True)
    layouts.gray_png(1 - mine.masks[first].clip(0, 1), mine.root / "masks" / f"{first}.png")
    code, _, said = evaluate(*options)
    assert code == 2
    assert f"{first}.jpg: expected the image of the interrupted run" in said
    assert said.count("\n") == 1
    assert state.read_bytes() == whole
    assert evaluate(*options, "--overwrite", "--quiet")[0] == 1
    assert results(tmp_path / "out")["images"] == 4


def test_defaults_are_the_published_settings(voc, tmp_path):
    template = SegmentOptions(images=[], out=tmp_path, resize="sampled")
    methods = ("maskclip", "naclip", "proxyclip", "lposs", "lposs+", "dslo-op", "dslo-mv")
    for kind, wanted in {
        "voc21": (32.9, 58.9, 59.1, 61.1, 62.4, 66.9, 67.8),
        "voc20": (61.8, 79.7, 78.2, 78.8, 79.3, 88.6, 89.0),
    }.items():
        dataset = load_dataset(kind, voc.root)
        runs = plan_runs(template, methods, dataset, [], patch=16)
        found = [published_of(run, dataset, "mmseg", 0.02)["miou"].value for run in runs]
        assert found == [*wanted, {"voc21": 91.5, "voc20": 92.8}[kind]]
    runs = plan_runs(template, ("lposs",), dataset, [], study=("none", "448/224", "224/112", "ensemble"))
    found = [published_of(run, dataset, "mmseg", 0.02).get("miou") for run in runs]
    assert [number and number.value for number in found] == [None, 82.8, 78.8, 82.1]
    (run,) = plan_runs(template, ("pnp-ovss",), dataset, [], style="pnp")
    assert published_of(run, dataset, "pnp", 0.02)["miou"].value == 52.5
    assert published_of(run, dataset, "mmseg", 0.02) == {}


def test_the_benchmark_of_the_loop_runs(environment):
    program = Path(__file__).resolve().parents[2] / "benchmarks" / "evaluation.py"
    command = [sys.executable, str(program), "--images", "3", "--size", "40x50", "--classes", "4"]
    made = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert (made.returncode, made.stderr) == (0, "")
    assert made.stdout.startswith("3 images of 40x50, 4 classes, miou,biou\nper image ")
    for step in ("photo", "mask", "metrics", "count", "write the state"):
        assert re.search(rf"{step} \d+\.\d\d ms", made.stdout)
