"""`ovs tune-pnp`: real photos, small models with random weights, the reward written out in full."""

import json
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.nn import functional as F

pytest.importorskip("PIL")
pytest.importorskip("transformers")
pytest.importorskip("gradient_free_optimizers")

from ovs_methods.backbones import load_backbone, load_matcher
from ovs_methods.cli import main
from ovs_methods.errors import UserError
from ovs_methods.images import read_photo, to_tensor
from ovs_methods.methods.pnp_ovss import all_maps
from ovs_methods.reward import ClipReward, candidate_masks
from ovs_methods.tune import TuneOptions, maps_folder, partial_path, read_labels, table_path, tune
from PIL import Image

LABELS = {"a.png": ["cat", "wall"], "b.png": ["cat", "sofa", "wall"], "c.png": ["cup"], "d.png": ["cup", "spoon"]}
SMALL = {"side": 64, "groups": 2, "evaluations": 4, "blurs": (0.03, 0.09), "threads": 1, "seed": 3}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The number of threads decides how sums are rounded."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, cache):
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))


@pytest.fixture
def photos(tmp_path, chelsea, coffee):
    folder = tmp_path / "photos"
    folder.mkdir()
    for index, name in enumerate(LABELS):
        with Image.open(chelsea if index < 2 else coffee) as file:
            left, top = 41 * index + 20, 23 * index + 10
            file.convert("RGB").crop((left, top, left + 150, top + 110 + 9 * index)).save(folder / name)
    (tmp_path / "labels.json").write_text(json.dumps(LABELS))
    return folder


@pytest.fixture
def options(tmp_path, photos, blip_folder, clip_folder):
    def make(**changed):
        made = {"images": [str(photos)], "labels": tmp_path / "labels.json", "out": tmp_path / "tuned.json"}
        made |= {"backbone": str(blip_folder), "clip": f"local-dir:{clip_folder}", **SMALL}
        return TuneOptions(**{**made, **changed})

    return make


def published_mask(gradcam, side, threshold, blur):
    """SciPy's blur of torch's bicubic enlargement, in float64."""
    filters = pytest.importorskip("scipy.ndimage")
    unit = (gradcam - gradcam.min()) / (gradcam.max() - gradcam.min())
    unit = np.where(unit >= threshold, unit, 0)
    large = F.interpolate(torch.from_numpy(unit)[None, None], (side, side), mode="bicubic")[0, 0].numpy()
    large = filters.gaussian_filter(large, blur * side)
    return (large - large.min()) / (large.max() - large.min()) >= threshold


@pytest.mark.parametrize("words", [None, ["spoon", "sofa", "couch", "wall", "cup", "cat"]])
def test_rewards_are_those_of_the_published_rule(options, photos, blip_folder, clip_folder, words):
    """The prompt of each photo holds its own classes, or all of them, of which one has two names."""
    report = tune(options(classes=None if words is None else "spoon, sofa; couch, wall, cup, cat"))
    assert (report["photos"], report["classes"], report["single_class"]) == (3, 7, ["c.png"])
    matcher, clip = load_matcher(str(blip_folder)), load_backbone(f"local-dir:{clip_folder}")._clip
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    tokenize = load_backbone(f"local-dir:{clip_folder}")._tokenizer
    seen = {}
    for line in report["history"]:
        total, close = 0, 0
        for name, classes in LABELS.items():
            if len(classes) < 2:
                continue
            photo = read_photo(photos / name)
            if name not in seen:
                prompt = matcher.tokenize("A picture of", words or classes)
                maps = all_maps(matcher, matcher.pixels(photo, 64), prompt).unbind(2)
                maps = dict(zip(words or classes, maps, strict=True))
                if words:
                    maps["sofa"] = torch.maximum(maps["sofa"], maps["couch"])
                seen[name] = torch.stack([maps[each] for each in classes], 2).double().numpy()
            image = (to_tensor(photo, (64, 64)) - mean) / std
            with torch.no_grad():
                texts = F.normalize(clip.encode_text(tokenize([f"a photo of a {word}." for word in classes])), dim=-1)
                for index, gradcam in enumerate(seen[name][line["layer"], line["head"]]):
                    if gradcam.max() == gradcam.min():  # nothing to see: no reward
                        continue
                    mask = torch.from_numpy(published_mask(gradcam, 64, line["threshold"], line["blur"])).float()
                    both = F.normalize(clip.encode_image(torch.stack([image * mask, image * 0])), dim=-1)
                    after, before = torch.softmax(both @ texts.T / 0.01, 1)[:, index].tolist()
                    total += after > before
                    close += abs(after - before) < 1e-4
        assert abs(line["reward"] - total) <= close
    rewards = [line["reward"] for line in report["history"]]
    assert len(set(rewards)) > 1
    stages = [line["stage"] for line in report["history"]]
    assert stages == ["search 1"] * 4 + ["search 2"] * 4 + ["blur"] * 2


def test_the_best_setting_is_the_first_best(options):
    report = tune(options())
    search, blurs = report["history"][:8], report["history"][8:]
    assert all(line["blur"] == 0.04 and line["threshold"] in (0.05, 0.15, 0.25, 0.35, 0.45) for line in search)
    assert all(0 <= line["layer"] < 3 and 0 <= line["head"] < 4 for line in search)
    highest = max(line["reward"] for line in search)
    best = next(line for line in search if line["reward"] == highest)
    place = [best[name] for name in ("layer", "head", "threshold")]
    assert [[line[name] for name in ("layer", "head", "threshold")] for line in blurs] == [place] * 2
    assert [line["blur"] for line in blurs] == [0.03, 0.09]
    winner = blurs[0] if blurs[0]["reward"] >= blurs[1]["reward"] else blurs[1]
    assert report["best"] == {name: value for name, value in winner.items() if name != "stage"}
    assert len({tuple(line.values())[1:4] for line in search}) > 4  # the two searches are not the same


def test_a_mask_is_what_a_map_covers():
    maps = torch.zeros(3, 4, 4)
    maps[0, 1, 2], maps[0, 3, 0] = 2.0, 0.2
    maps[2] = 1.0
    masks = candidate_masks(maps, 32, 0.15, 0.05)
    assert torch.equal(masks[1:], torch.zeros(2, 32, 32))  # no saliency, or the same everywhere
    assert set(masks[0].unique().tolist()) == {0.0, 1.0}
    assert masks[0, 12, 20] == 1  # the middle of patch (1, 2)
    assert masks[0, 28, 4] == 0  # patch (3, 0) is below the threshold
    expected = published_mask(maps[0].double().numpy(), 32, 0.15, 0.05)
    assert np.array_equal(masks[0].numpy() > 0, expected)


def test_an_empty_mask_has_no_reward(clip_folder, photos):
    clip = load_backbone(f"local-dir:{clip_folder}")
    names = ["cat", "wall", "cup"]
    judge = ClipReward(clip, dict(zip(names, clip.encode_text(names), strict=True)))
    image = to_tensor(read_photo(photos / "a.png"), (64, 64))
    assert judge(image, names, torch.zeros(3, 64, 64)) == 0
    every = [judge(image, names, torch.eye(3)[k][:, None, None].expand(3, 64, 64)) for k in range(3)]
    assert judge(image, names, torch.ones(3, 64, 64)) == sum(every)
    assert 0 < sum(every) < 3  # probabilities: they cannot all be larger
    assert judge(image, ["cat"], torch.ones(1, 64, 64)) == 0


@pytest.mark.parametrize("when", [1, 3, 9])
def test_an_interrupted_run_ends_in_the_same_report(options, tmp_path, when):
    whole = tune(options(out=tmp_path / "whole.json"))
    left, seen = [when], []

    def interrupt(path, event, detail):
        seen.append(event)
        if event in ("mapped", "judged"):
            left[0] -= 1
            if not left[0]:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(options(), interrupt)
    assert not (tmp_path / "tuned.json").exists()
    assert maps_folder(tmp_path / "tuned.json").is_dir()
    seen.clear()
    assert tune(options(), lambda path, event, detail: seen.append(event)) == whole
    assert seen.count("mapped") == max(0, 3 - when)
    settings = {tuple(line.values())[1:5] for line in whole["history"]}
    assert seen.count("judged") == 3 * len(settings) - max(0, when - 3)
    assert (tmp_path / "tuned.json").read_bytes() == (tmp_path / "whole.json").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "labels.json",
        "photos",
        "tuned.json",
        "tuned.txt",
        "whole.json",
        "whole.txt",
    ]


def test_done_before_overwrite_and_other_settings(options, tmp_path):
    first = tune(options())
    again = tune(options())
    assert again.pop("done_before")
    assert again == first
    with pytest.raises(UserError, match=r"--out: expected the evaluations of the report .*: 4, got 5; --overwrite"):
        tune(options(evaluations=5))
    with pytest.raises(KeyboardInterrupt):
        tune(options(overwrite=True, seed=4), _stop_at("evaluated"))
    with pytest.raises(UserError, match=r"--out: expected the seed of the interrupted run in .*: 4, got 3"):
        tune(options())
    other = tune(options(seed=4))  # goes on with what --overwrite has begun
    assert (other["settings"]["seed"], other.get("done_before")) == (4, None)
    partial = partial_path(tmp_path / "tuned.json")
    partial.write_text('{"settings": {}, "rewards": 3}')
    with pytest.raises(UserError, match=r"expected the state of an interrupted run, got a damaged file .*--overwrite"):
        tune(options())
    (tmp_path / "tuned.json").write_text("[]")
    partial.unlink()
    with pytest.raises(UserError, match=r"--out: expected a new file, or the report of this run"):
        tune(options())
    assert tune(options(overwrite=True)) == first


def _stop_at(wanted):
    def watch(path, event, detail):
        if event == wanted:
            raise KeyboardInterrupt

    return watch


def test_a_photo_that_cannot_be_used_and_one_prompt_for_all(options, photos):
    (photos / "b.png").write_bytes(b"no image")
    said = []
    names = "cat, sofa; couch, wall, cup, spoon"
    report = tune(options(classes=names, limit=2), lambda path, event, detail: said.append((event, detail)))
    assert list(report["failed"]) == ["b.png"]
    assert "expected an image file" in report["failed"]["b.png"]
    assert [event for event, _ in said].count("failed") == 1
    assert (report["photos"], report["classes"]) == (1, 2)
    assert report["settings"]["classes"]["sofa"] == ["sofa", "couch"]
    (photos / "a.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"IMAGES: expected at least one that can be used, got none, .* a.png: "):
        tune(options(limit=2, overwrite=True))


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("[]", "which holds a list"),
        ("{", "labels.json"),
        ('{"a.png": "cat"}', "expected a list of class names for each photo"),
        ('{"a.png": ["cat", " "]}', "expected a list of class names for each photo"),
    ],
)
def test_labels_that_are_none(tmp_path, text, part):
    (tmp_path / "labels.json").write_text(text)
    with pytest.raises(UserError, match=part):
        read_labels(tmp_path / "labels.json")


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"classes": "cat, sofa"}, "--labels: expected names that --classes has, got 'wall' for a.png"),
        ({"thresholds": ()}, "--thresholds: expected numbers from 0 to 1 between commas, got none"),
        ({"blurs": (0.1, 2.0)}, "--blurs: expected numbers from 0 to 1"),
        ({"search_blur": -1}, "--search-blur: expected"),
        ({"optimizer": "best"}, "--optimizer: expected random or annealing, got best"),
        ({"clip": "dino_vitb16"}, "--clip: expected a CLIP, which reads text"),
        ({"side": 60}, "--size: expected a multiple of 16"),
        ({"out": "photos"}, "--out: expected a file FILE.json"),
        ({"out": "labels.json"}, "--out: expected a file that is no input"),
        ({"limit": 1, "labels": "one.json"}, "--labels: expected a photo with two classes or more"),
        ({"labels": "one.json"}, "--labels: expected the classes of every photo, got none for 3 of 4, .* b.png"),
    ],
)
def test_bad_input(options, tmp_path, changed, text):
    (tmp_path / "one.json").write_text('{"a.png": ["cat"]}')
    changed = {key: tmp_path / value if key in ("out", "labels") else value for key, value in changed.items()}
    with pytest.raises(UserError, match=text):
        tune(options(**changed))
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.usefixtures("_interruptible")
def test_the_command_is_interrupted_and_goes_on(
    tmp_path, photos, blip_folder, clip_folder, environment, capsys, monkeypatch
):
    words = ["tune-pnp", "photos", "--labels", "labels.json", "--model", str(blip_folder), "--size", "64"]
    words += ["--clip", f"local-dir:{clip_folder}", "--out", "tuned.json", "--threads", "1", "--groups", "1"]
    words += ["--evaluations", "100", "--blurs", "0.03,0.05"]
    command = [sys.executable, "-m", "ovs_methods", *words]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=tmp_path, env={**environment, "PYTHONUNBUFFERED": "1"}, **streams) as running:
        for line in running.stdout:
            if line.startswith("[2/102]"):  # an evaluation, not a photo
                running.send_signal(signal.SIGINT)
                break
        out, errors = running.communicate(timeout=120)
    assert running.returncode == 130, errors
    assert "tuned.json.partial has what was done; the same command goes on from there" in errors
    assert len(out.splitlines()) < 100
    state = json.loads((tmp_path / "tuned.json.partial").read_text())
    before = {tuple(setting): values for setting, values in state["rewards"]}
    monkeypatch.chdir(tmp_path)
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "wrote tuned.json, tuned.txt" in said
    report = json.loads((tmp_path / "tuned.json").read_text())
    for line in report["history"]:
        setting = tuple(line[name] for name in ("layer", "head", "threshold", "blur"))
        assert len(before.get(setting, ())) < 3 or sum(before[setting]) == line["reward"]
    best = report["best"]
    first = f"best: layer {best['layer']}, head {best['head']} (from 0), threshold {best['threshold']:g}"
    assert first in said
    assert table_path(tmp_path / "tuned.json").read_text().startswith(first)
    assert main(words) == 0
    assert "tuned.json: done before" in capsys.readouterr().out
