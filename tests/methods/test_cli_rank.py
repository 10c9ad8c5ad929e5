"""`ovs rank-templates`: real photos, a small CLIP with random weights, the published metric written out in full."""

import errno
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

pytest.importorskip("PIL")

from ovs_methods.backbones import load_backbone
from ovs_methods.cli import build_parser
from ovs_methods.cli import rank as rank_command
from ovs_methods.errors import UserError
from ovs_methods.images import read_photo, to_tensor, working_size
from ovs_methods.rank import RankOptions, is_transient, merge_rankings, partial_path, rank_templates
from ovs_methods.rankings import load_ranking
from ovs_methods.windows import look
from PIL import Image

PROMPTS = ["a photo of a {}.", "a bad photo of the {}.", "{} in a video game.", "the origami {}.", "art of the {}."]
DAMAGED = "expected an image file (JPEG, PNG, ...), got something else or a damaged file"
CLASSES = "cat, sofa; couch, wall"


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Some runs are in this process; the others start with one thread of their own."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, cache):
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))


@pytest.fixture
def photos(tmp_path, chelsea, coffee, quokka):
    """Seven crops of three photos, all of different sizes."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(7):
        with Image.open((chelsea, coffee, quokka.path)[index % 3]) as photo:
            left, top = 31 * index, 17 * index
            crop = photo.convert("RGB").crop((left, top, left + 90 + 7 * index, top + 80 + 5 * index))
        crop.save(folder / f"{index}.png")
    return folder


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(PROMPTS) + "\n")
    return path


@pytest.fixture
def options(photos, prompts, clip_folder, tmp_path):
    """Makes the options of a run in this process."""

    def make(**changed) -> RankOptions:
        made = {"images": [str(photos)], "out": tmp_path / "whole.json", "classes": CLASSES}
        made |= {"backbone": f"local-dir:{clip_folder}", "templates": prompts, "short_side": 96, "windows": "64/32"}
        return RankOptions(**{**made, "threads": 1, **changed})

    return make


@pytest.fixture
def words(photos, prompts, clip_folder):
    """The same as arguments of the command."""
    arguments = ["photos", "--classes", CLASSES, "--model", f"local-dir:{clip_folder}", "--templates", prompts]
    return ["rank-templates", *arguments, "--size", 96, "--windows", "64/32", "--threads", 1]


def published(path, clip, names, groups, short, setup, order):
    """FLOSS's released step for one photo, in float64: counts [M, G], sums of entropies [M, G], and the pixels."""
    photo = read_photo(path)
    height, width = size = working_size(photo.height, photo.width, short)
    view = look(photo, to_tensor(photo, size), clip, None, setup)
    features = view.features.double()
    counts, sums = np.zeros((len(PROMPTS), max(groups) + 1)), np.zeros((len(PROMPTS), max(groups) + 1))
    for m, prompt in enumerate(PROMPTS):
        texts = clip.encode_text([prompt.format(name) for name in names]).double()
        cosines = features @ (texts / texts.norm(dim=-1, keepdim=True)).T
        grids = torch.softmax(100 * cosines, -1) if order == "probabilities" else cosines
        total, hits = torch.zeros(len(names), height, width).double(), torch.zeros(height, width).double()
        for grid, (y0, x0, y1, x1) in zip(grids, view.boxes.tolist(), strict=True):
            pixels = F.interpolate(grid.permute(2, 0, 1)[None], (y1 - y0, x1 - x0), mode="bilinear")[0]
            total[:, y0:y1, x0:x1] += pixels
            hits[y0:y1, x0:x1] += 1
        merged = F.interpolate((total / hits)[None], (photo.height, photo.width), mode="bilinear")[0]
        if order == "logits":
            merged = torch.softmax(100 * merged, 0)
        owner = torch.tensor(groups)
        merged = torch.stack([merged[owner == g].amax(0) for g in range(max(groups) + 1)])
        entropy, labels = -(merged * torch.log(merged + 1e-10)).sum(0), merged.argmax(0)
        for g in range(max(groups) + 1):
            counts[m, g] += int((labels == g).sum())
            sums[m, g] += float(entropy[labels == g].sum())
    return counts, sums, photo.height * photo.width


@pytest.mark.parametrize("base", ["maskclip", "naclip", "clip-dinoiser", "proxyclip"])
@pytest.mark.parametrize(("text", "groups"), [("cat, sofa, wall", [0, 1, 2]), (CLASSES, [0, 1, 1, 2])])
def test_the_numbers_are_those_of_the_published_step(options, photos, clip_folder, dino_weights, base, text, groups):
    guide = {"guide": "vit_tiny_patch16_224", "guide_weights": str(dino_weights)}
    guide = guide if base in ("clip-dinoiser", "proxyclip") else {}
    report = rank_templates(options(base=base, classes=text, limit=2, **guide))
    clip = load_backbone(f"local-dir:{clip_folder}", features=base, **guide)
    order = "logits" if base in ("naclip", "proxyclip") else "probabilities"
    names = [name.strip() for name in text.replace(";", ",").split(",")]
    parts = [published(photos / f"{i}.png", clip, names, groups, 96, (64, 32), order) for i in range(2)]
    counts, sums, total = (sum(part[index] for part in parts) for index in range(3))
    ranking = report.ranking
    ranking.check(clip.identity, base, PROMPTS, ["cat", "wall"])
    assert (ranking.images, ranking.scores.total, ranking.failed) == (2, total, [])
    # A pixel where two classes are equal to seven digits may fall to either.
    assert np.abs(ranking.scores.counts.numpy() - counts).max() <= 1e-3 * total
    for k, entries in enumerate(ranking.entries.values()):
        assert {entry.template for entry in entries} == set(np.flatnonzero(counts[:, k]))
        means = sums[:, k] / np.maximum(counts[:, k], 1)
        assert [entry.entropy for entry in entries] == pytest.approx([means[e.template] for e in entries], rel=5e-3)
        shares = 100 * counts[:, k] / total
        assert [entry.percentage for entry in entries] == pytest.approx([shares[e.template] for e in entries], abs=0.1)
        assert sorted(entry.entropy for entry in entries) == [entry.entropy for entry in entries]


def test_a_ranking_that_is_there_is_kept(tmp_path, options, monkeypatch):
    monkeypatch.chdir(tmp_path)
    same = {"images": ["photos/2.png"], "out": Path("experts.json")}
    report = rank_templates(options(**same, dataset="one photo"))
    assert (report.complete, report.ranking.images, report.ranking.dataset) == (False, 1, "one photo")
    made = (tmp_path / "experts.json").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["experts.json", "photos", "prompts.txt"]
    again = rank_templates(options(**same, dataset="one photo"))
    assert (again.complete, again.ranking.entries) == (True, report.ranking.entries)
    wanted = "--out: expected a new file, or a ranking whose dataset is others, got experts.json with one photo; --ov"
    with pytest.raises(UserError, match=wanted):
        rank_templates(options(**same, dataset="others"))
    with pytest.raises(UserError, match=r"experts\.json, a ranking of 1 other images"):
        rank_templates(options(**{**same, "images": ["photos/3.png"]}, dataset="one photo"))
    assert (tmp_path / "experts.json").read_bytes() == made


def reader_of(pipe, process):
    """Our end of a named pipe that the process has begun to read; it then waits for us."""
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        try:
            return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            if error.errno != errno.ENXIO:  # nobody reads it yet
                raise
            time.sleep(0.01)
    raise AssertionError(f"the pipe was not read: {process.communicate(timeout=10)}")


@pytest.mark.usefixtures("_interruptible")
def test_killed_and_interrupted_runs_go_on_and_end_in_the_same_bytes(ovs, environment, tmp_path, words, options):
    (tmp_path / "photos" / "3.png").write_bytes(b"no image")  # reported, skipped and counted in the middle
    whole = rank_templates(options()).ranking
    cold = {"XDG_CACHE_HOME": str(tmp_path / "cold")}  # the first run encodes the text, the others find it
    out, state = tmp_path / "experts.json", tmp_path / "experts.json.partial"
    words = [words[0], *(f"photos/{i}.png" for i in range(7)), *words[2:], "--out", "experts.json"]
    command = [sys.executable, "-m", "ovs_methods", *map(str, words)]
    for stop, photo in ((signal.SIGKILL, 1), (signal.SIGINT, 4)):
        path = tmp_path / "photos" / f"{photo}.png"
        path.rename(tmp_path / "kept.png")
        os.mkfifo(path)
        process = subprocess.Popen(
            command,
            cwd=tmp_path,
            env={**environment, **cold},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        end = reader_of(path, process)
        process.send_signal(stop)
        shown, errors = process.communicate(timeout=100)
        os.close(end)
        (tmp_path / "kept.png").replace(path)
        assert (process.returncode, out.exists(), state.exists()) == (-9 if stop == 9 else 130, False, True), errors
        with np.load(state) as stored:
            assert len(stored["marks"]) == photo
    assert "experts.json.partial has what was done; the same command goes on from there\n" in errors
    assert "1 images were done before, 6 are left" in shown
    result = ovs(*words, **cold)
    assert result.returncode == 1
    assert "4 images were done before, 3 are left" in result.stdout
    assert "6 images, 1 could not be used" in result.stdout
    assert out.read_bytes() == options().out.read_bytes()  # relative paths in one folder, absolute ones in another
    assert whole.failed[0][:2] == ("3.png", DAMAGED)
    assert not state.exists()
    assert not [path for path in tmp_path.iterdir() if path.name.endswith("ovs-tmp")]


def stop_after(count):
    """A watcher that interrupts a run when so many images are done."""
    done = []

    def watch(image, event, detail):
        if event in ("scored", "failed"):
            done.append(image)
            if len(done) == count:
                raise KeyboardInterrupt

    return watch


def test_an_interruption_after_any_photo_changes_nothing(options, photos, tmp_path):
    (photos / "4.png").write_bytes(b"no image")
    rank_templates(options(mode="patch"))
    for count in (1, 4, 5, 7):
        out = tmp_path / f"{count}.json"
        with pytest.raises(KeyboardInterrupt):
            rank_templates(options(mode="patch", out=out), stop_after(count))
        assert rank_templates(options(mode="patch", out=out)).resumed == count
        assert out.read_bytes() == options().out.read_bytes()


def test_a_photo_that_was_repaired_is_looked_at_again(options, photos, tmp_path):
    rank_templates(options(mode="patch", out=tmp_path / "good.json"))
    good = {i: (photos / f"{i}.png").read_bytes() for i in (1, 5)}
    for i in good:
        (photos / f"{i}.png").write_bytes(b"no image")
    with pytest.raises(KeyboardInterrupt):
        rank_templates(options(mode="patch"), stop_after(4))
    (photos / "1.png").write_bytes(good[1])
    report = rank_templates(options(mode="patch"))
    assert (report.resumed, report.ranking.images, [image for image, *_ in report.ranking.failed]) == (3, 6, ["5.png"])
    assert rank_templates(options(mode="patch")).complete
    os.utime(photos / "5.png")
    assert rank_templates(options(mode="patch")).complete  # touched, but still the same
    (photos / "5.png").write_bytes(good[5])
    with pytest.raises(KeyboardInterrupt):
        rank_templates(options(mode="patch"), stop_after(1))
    report = rank_templates(options(mode="patch"))
    assert (report.complete, report.resumed, report.ranking.images) == (False, 7, 7)
    assert options().out.read_bytes() == (tmp_path / "good.json").read_bytes()
    assert rank_templates(options(mode="patch")).complete


def test_a_failure_of_the_machine_ends_the_run_and_is_not_kept(options, photos, tmp_path):
    rank_templates(options(mode="patch", out=tmp_path / "good.json"))
    (photos / "4.png").rename(tmp_path / "kept.png")
    (photos / "4.png").symlink_to("/proc/self/mem")  # a file whose first byte cannot be read: EIO
    with pytest.raises(OSError, match="Input/output"):
        (photos / "4.png").read_bytes()
    wanted = r"4\.png: Input/output error; .*whole\.json\.partial has what was done, and without --overwrite"
    for _ in range(2):
        with pytest.raises(UserError, match=wanted) as caught:
            rank_templates(options(mode="patch"))
        assert "\n" not in str(caught.value)
    assert not options().out.exists()
    (photos / "4.png").unlink()
    (tmp_path / "kept.png").rename(photos / "4.png")
    assert rank_templates(options(mode="patch")).resumed == 4
    assert options().out.read_bytes() == (tmp_path / "good.json").read_bytes()


def test_which_failures_are_those_of_the_machine(tmp_path):
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    verdicts = {
        False: (lambda: read_photo(tmp_path / "cut.png"), lambda: read_photo(tmp_path), lambda: tmp_path.read_bytes()),
        True: (lambda: torch.empty(2**50), lambda: bytes(2**60), lambda: read_photo("/proc/self/mem")),
    }
    for verdict, failures in verdicts.items():
        for fails in failures:
            with pytest.raises((UserError, RuntimeError, MemoryError, OSError)) as caught:
                fails()
            assert is_transient(caught.value) is verdict


def test_an_interrupted_overwrite_goes_on_without_it(options, words, photos, tmp_path, monkeypatch, capsys):
    rank_templates(options(mode="patch", out=tmp_path / "good.json"))
    rank_templates(options(mode="patch", classes="cat, wall"))
    with pytest.raises(KeyboardInterrupt):
        rank_templates(options(mode="patch", classes="dog, wall", overwrite=True), stop_after(2))

    def at_once(image, event, detail):
        if event == "encode":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rank_templates(options(mode="patch", overwrite=True), at_once)
    assert list(load_ranking(options().out).entries) == ["cat", "wall"]  # until the new one is complete
    report = rank_templates(options(mode="patch"))
    assert (report.resumed, report.complete) == (0, False)
    assert options().out.read_bytes() == (tmp_path / "good.json").read_bytes()

    class Stopped(rank_command._RankProgress):
        def __call__(self, image, event, detail):
            super().__call__(image, event, detail)
            if self._done == 3:
                raise KeyboardInterrupt

    monkeypatch.setattr(rank_command, "_RankProgress", Stopped)
    words = [str(photos) if word == "photos" else str(word) for word in words]
    words += ["--mode", "patch", "--overwrite", "--out", str(options().out)]
    with pytest.raises(KeyboardInterrupt):
        rank_command.run(build_parser().parse_args(words))
    wanted = "whole.json.partial has what was done; the same command without --overwrite goes on from there\n"
    assert capsys.readouterr().err.endswith(wanted)
    assert rank_templates(options(mode="patch")).resumed == 3
    assert options().out.read_bytes() == (tmp_path / "good.json").read_bytes()


def test_the_layer_of_the_embedded_guide(words, photos, clip_folder, onnx_model, tmp_path):
    words = [*words, "--base", "clip-dinoiser", "--guide", "dinov2-small", "--mode", "patch", "--limit", 1, "-q"]
    words = [str(photos) if word == "photos" else str(word) for word in words]
    out = tmp_path / "experts.json"
    assert rank_command.run(build_parser().parse_args([*words, "--layer", "11", "--out", str(out)])) == 0
    assert build_parser().parse_args([*words, "--out", str(out)]).layer == RankOptions([], out, "").layer == 9
    guide = {"features": "clip-dinoiser", "guide": "dinov2-small"}
    usual, same = (load_backbone(f"local-dir:{clip_folder}", **guide, layer=layer).identity for layer in (9, 11))
    load_ranking(out).check(same, "clip-dinoiser", PROMPTS, ["cat"])
    with pytest.raises(UserError, match="model's guide"):
        load_ranking(out).check(usual, "clip-dinoiser", PROMPTS, ["cat"])


@pytest.mark.parametrize("mode", ["pixel_exact", "patch"])
@pytest.mark.parametrize("metric", ["entropy", "probability", "mano"])
def test_shards_are_the_whole_in_any_order(options, photos, tmp_path, mode, metric):
    (photos / "5.png").write_bytes(b"no image")
    if metric == "mano" and mode != "patch":
        with pytest.raises(UserError, match="--metric: expected --mode patch"):
            rank_templates(options(mode=mode, metric=metric))
        return
    text = CLASSES if metric != "mano" else "cat, sofa, wall"
    same = {"mode": mode, "metric": metric, "classes": text}
    rank_templates(options(**same))
    files = [tmp_path / f"shard{i}.json" for i in (1, 2, 3)]
    for i in (3, 1, 2):
        rank_templates(options(**same, shard=(i, 3), out=files[i - 1]))
    for number, order in enumerate(((2, 0, 1), (0, 1, 2), (1, 2, 0))):
        merged = tmp_path / f"merged{number}.json"
        merge_rankings([files[i] for i in order], merged)
        assert merged.read_bytes() == (tmp_path / "whole.json").read_bytes()
    with pytest.raises(UserError, match="rankings without a common image"):
        merge_rankings([files[0], files[1], files[0]], tmp_path / "twice.json")
    assert not (tmp_path / "twice.json").exists()


def test_merging_on_the_command_line(options, ovs, photos, tmp_path):
    (photos / "5.png").write_bytes(b"no image")
    for i in (1, 2):
        rank_templates(options(mode="patch", shard=(i, 2), out=tmp_path / f"{i}.json"))
    rank_templates(options(mode="patch"))
    result = ovs("rank-templates", "--merge", "2.json", "1.json", "--out", "merged.json")
    assert (result.returncode, result.stderr) == (1, "")
    assert "wrote merged.json: 6 images, 1 could not be used, 5 templates, 3 classes" in result.stdout
    assert (tmp_path / "merged.json").read_bytes() == (tmp_path / "whole.json").read_bytes()
    with pytest.raises(UserError, match="--overwrite replaces it"):
        merge_rankings([tmp_path / "1.json", tmp_path / "2.json"], tmp_path / "merged.json")
    with pytest.raises(UserError, match="--out: expected a file that is no input"):
        merge_rankings([tmp_path / "1.json", tmp_path / "2.json"], tmp_path / "1.json", overwrite=True)
    with pytest.raises(UserError, match="at least two rankings, got 1"):
        merge_rankings([tmp_path / "1.json"], tmp_path / "new.json")


def test_what_has_changed_since_the_interruption_is_noticed(options, photos, prompts, clip_folder, tmp_path):
    make = {"mode": "patch"}
    with pytest.raises(KeyboardInterrupt):
        rank_templates(options(**make), stop_after(3))
    state = partial_path(options().out)
    kept = state.read_bytes()
    changes = [
        ({"classes": "cat, sofa, wall"}, "words of class 'sofa'"),
        ({"classes": "cat, dog"}, "the classes of the interrupted run"),
        ({"mode": "pixel_exact"}, "the mode of the interrupted run"),
        ({"short_side": 80}, "the short side of the interrupted run"),
        ({"threads": 2}, "the threads of the interrupted run"),
        ({"limit": 2}, "2, of which it has done 3"),
        ({"shard": (2, 2)}, "1.png: expected the images of the interrupted run"),
    ]
    prompts.write_text("\n".join(PROMPTS[:4]))
    with pytest.raises(UserError, match="the number of templates of the interrupted run"):
        rank_templates(options(**make))
    prompts.write_text("\n".join(PROMPTS))
    for changed, part in changes:
        with pytest.raises(UserError, match="--overwrite starts again") as caught:
            rank_templates(options(**{**make, **changed}))
        assert part in str(caught.value)
    checkpoint = clip_folder / "open_clip_pytorch_model.bin"
    other = tmp_path / "other"
    other.mkdir()
    weights = torch.load(checkpoint)
    torch.save({name: value + 0.01 for name, value in weights.items()}, other / checkpoint.name)
    (other / "open_clip_config.json").write_bytes((clip_folder / "open_clip_config.json").read_bytes())
    with pytest.raises(UserError, match="model's"):
        rank_templates(options(**make, backbone=f"local-dir:{other}"))
    assert state.read_bytes() == kept

    os.utime(photos / "1.png")  # touched, but the same
    Image.new("RGB", (90, 80), "red").save(photos / "2.png")
    with pytest.raises(UserError, match=r"2\.png: expected the images of the interrupted run.* one that has changed"):
        rank_templates(options(**make))
    assert rank_templates(options(**make, overwrite=True)).resumed == 0
    assert not state.exists()


def test_a_damaged_state_is_one_line(options):
    with pytest.raises(KeyboardInterrupt):
        rank_templates(options(mode="patch"), stop_after(2))
    state = partial_path(options().out)
    state.write_bytes(state.read_bytes()[:-200])
    with pytest.raises(UserError, match="expected the state of an interrupted run, got a damaged file"):
        rank_templates(options(mode="patch"))


def test_new_images_behind_those_that_are_done_belong_to_the_run(options, photos, tmp_path):
    moved = tmp_path / "6.png"
    (photos / "6.png").rename(moved)
    with pytest.raises(KeyboardInterrupt):
        rank_templates(options(mode="patch"), stop_after(6))
    moved.rename(photos / "6.png")
    report = rank_templates(options(mode="patch"))
    assert (report.resumed, report.ranking.images) == (6, 7)
    rank_templates(options(mode="patch", out=tmp_path / "at_once.json"))
    assert (tmp_path / "at_once.json").read_bytes() == options().out.read_bytes()


def test_bad_input_is_one_line_and_writes_nothing(options, photos, tmp_path, clip_folder):
    (tmp_path / "plain.txt").write_text("a photo of a {}.\na photo\n")
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "other.png").write_text("no image either")
    (tmp_path / "a.json.partial").write_text("a photo, says its user")
    plain, pair = tmp_path / "plain.txt", [str(tmp_path / "text.png"), str(tmp_path / "other.png")]
    cases = [
        ({"images": []}, "IMAGES: expected at least one image"),
        ({"images": [str(tmp_path / "empty")]}, "expected a folder with images"),
        ({"images": [str(tmp_path / "none.png")]}, "nothing at this path"),
        ({"images": [str(tmp_path / "text.png")]}, "text.png: expected an image file"),
        ({"images": pair}, f"one that can be used, got 2 that cannot, of which the first is {pair[0]}: {DAMAGED}"),
        ({"classes": "cat"}, "at least two classes"),
        ({"classes": "cat, cat"}, "every name once"),
        ({"templates": tmp_path / "plain.txt"}, "one {} in the place of the name"),
        ({"backbone": "dinov2-small"}, "--model: expected a CLIP, which reads text"),
        ({"windows": "ensemble"}, "--windows: expected one size of windows"),
        ({"shard": (8, 8)}, "8/8, which has no image"),
        ({"metric": "mano", "mode": "patch"}, "one name per class with mano"),
        ({"guide": "dino_vitb8"}, "--guide: expected --base clip-dinoiser or proxyclip with it, got --base maskclip"),
        ({"projection": "none.pt", "base": "clip-dinoiser"}, "--projection"),
        ({"out": tmp_path / "empty"}, "--out: expected a file, got the folder"),
        ({"out": photos / "0.png"}, "which is an input itself"),
        ({"out": plain, "base": "proxyclip", "guide_weights": str(plain)}, "which is an input itself"),
        ({"out": plain, "base": "clip-dinoiser", "projection": str(plain)}, "which is an input itself"),
        (
            {"out": tmp_path / "a.json", "images": [str(tmp_path / "a.json.partial")]},
            "whose state would replace",
        ),
        ({"out": plain / "a.json"}, "--out: expected a folder"),
    ]
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    for changed, part in cases:
        with pytest.raises(UserError) as caught:
            rank_templates(options(**{"mode": "patch", **changed}))
        assert part in str(caught.value)
        assert "\n" not in str(caught.value)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == {
        path: stamp for path, stamp in before.items() if path.is_file()
    }


def test_the_same_image_counts_once(options, photos, tmp_path):
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / "0.png").write_bytes((photos / "0.png").read_bytes())
    report = rank_templates(options(mode="patch", images=[str(photos), str(tmp_path / "again")]))
    assert report.ranking.images == 7
    assert [image for image, *_ in report.ranking.failed] == ["0.png"]
    assert "same name and content" in report.ranking.failed[0][1]


def test_the_command_line_says_what_is_missing(ovs, words, tmp_path):
    for arguments, part in (
        (["rank-templates", "photos", "--out", "a.json"], "--classes: expected names between commas"),
        ([*words, "--shard", "3/2", "--out", "a.json"], "expected I/N with I from 1 to N, got '3/2'"),
        (
            [*words, "--merge", "a.json", "b.json", "--out", "c.json"],
            "also IMAGE, --classes, --model, --windows, --size, ",
        ),
        (["rank-templates", "--merge", "a.json", "--limit", "3", "--out", "c.json"], "got also --limit\n"),
        (["rank-templates", "--merge", "a.json", "b.json", "--out", "c.json"], "--merge: expected a ranking"),
    ):
        result = ovs(*arguments)
        assert (result.returncode, result.stdout) == (2, "")
        assert len(result.stderr.splitlines()) == 1
        assert result.stderr.startswith("ovs rank-templates: error: ")
        assert part in result.stderr
    usage = ovs("rank-templates", "--help")
    assert (usage.returncode, usage.stderr) == (0, "")
    assert "ovs rank-templates photos/ --classes" in usage.stdout


def test_text_that_takes_long_is_announced_once(monkeypatch, capsys):
    monkeypatch.setattr(rank_command, "_PATIENCE", -1.0)
    for quiet in (False, True):
        progress = rank_command._RankProgress(quiet)
        progress(Path("a.json"), "plan", (2, 5))
        for ready in range(4):
            progress(Path("a.json"), "encode", (ready, 3, 80))
        shown = capsys.readouterr()
        assert shown.err == ""
        wanted = [
            "5 images were done before, 2 are left",
            "encoding 3 names in 80 templates, 0:00 left; kept for later runs",
        ]
        assert shown.out.splitlines() == ([] if quiet else wanted)


def test_a_terminal_gets_a_bar_and_a_summary(environment, tmp_path, words):
    pytest.importorskip("rich")
    main, side = pty.openpty()
    command = [sys.executable, "-m", "ovs_methods", *map(str, words), "--mode", "patch", "--out", "experts.json"]
    environment |= {"TERM": "xterm", "COLUMNS": "120"}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=side, text=True)
    os.close(side)
    shown = b""
    try:
        while chunk := os.read(main, 4096):
            shown += chunk
    except OSError:  # how Linux says that the other side has closed
        pass
    finally:
        os.close(main)
    out = process.communicate(timeout=100)[0]
    assert process.returncode == 0
    for part in (b"encoding text", b"4/4", b"ranking"):
        assert part in shown
    assert b"7/7" in shown
    assert b"images/s" in shown
    assert "wrote experts.json: 7 images, 5 templates, 3 classes\n" in out
    assert "[1/7]" not in out
    ranking = load_ranking(tmp_path / "experts.json")
    assert list(ranking.entries) == ["cat", "sofa", "wall"]
    for name, entries in ranking.entries.items():
        assert f"\n{name}: " in out
        for rank, entry in enumerate(entries[:4], 1):
            assert f"\n  {rank}  entropy {entry.entropy:.4f}  {PROMPTS[entry.template]}" in out
