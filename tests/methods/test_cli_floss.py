"""`ovs segment` with the methods of the CLIP family, and FLOSS from photos without labels to labels."""

import json

import clip_literal as literal
import numpy as np
import pytest
import torch
import tower_literal as tower

pytest.importorskip("PIL")

from ovs_methods.backbones import ClipBackbone, MaskClip
from ovs_methods.cli import main
from ovs_methods.images import read_photo, to_tensor, working_size
from ovs_methods.options import SegmentOptions
from ovs_methods.outputs import Stopwatch
from ovs_methods.pipeline import Segmenter
from ovs_methods.vocabulary import load_templates, template_embeddings
from PIL import Image

PROMPTS = ["a photo of a {}.", "a bad photo of the {}.", "{} in a video game.", "the origami {}.", "art of the {}."]
WORDS = "cat, sofa; couch, green grass, wall"
NAMES, GROUPS = ["cat", "sofa", "couch", "green grass", "wall"], [0, 1, 1, 2, 3]
CLASSES = ["cat", "sofa", "green grass", "wall"]
MANY = ", ".join(f"thing {number}" for number in range(256))
SMALL = ["--size", "80", "--windows", "64/32", "--threads", "1"]


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, cache):
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))


@pytest.fixture(autouse=True)
def _own_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def photo(tmp_path, chelsea):
    with Image.open(chelsea) as file:
        file.convert("RGB").resize((105, 70)).save(tmp_path / "small.png")
    return tmp_path / "small.png"


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(PROMPTS) + "\n")
    return path


def run(*arguments):
    return main([str(argument) for argument in arguments])


def labels_of(path):
    with Image.open(path) as file:
        return np.asarray(file)


def check(found, scores):
    """Labels where the published procedure is not undecided to rounding."""
    best = np.sort(scores, 0)
    sure = best[-1] - best[-2] > 1e-3
    assert sure.mean() > 0.9
    # Between two experts that are equally sure rounding may decide: a handful of pixels at most.
    assert (found == scores.argmax(0))[sure].mean() > 0.998
    assert len(np.unique(found)) > 1


def fused(clip, photo, experts, templates, tmp_path, renormalize):
    """What the released code averages, [P, H, W] at the working resolution, and the size of the photo."""
    image = read_photo(photo)
    size = working_size(image.height, image.width, 80)
    tensor, boxes = to_tensor(image, size), literal.windows(*size, 64, 32)
    features = np.concatenate([clip.dense(tensor[None, :, y0:y1, x0:x1]).double().numpy() for y0, x0, y1, x1 in boxes])
    embeddings = template_embeddings(clip, NAMES, templates, tmp_path / "text").double().numpy()
    classifiers = literal.classifiers(embeddings, experts, GROUPS, renormalize)
    return literal.floss(features, boxes, classifiers, size), (image.height, image.width)


def test_photos_without_labels_to_labels(ovs, tmp_path, photo, coffee, prompts, clip_folder):
    with Image.open(coffee) as file:
        file.convert("RGB").resize((120, 80)).save(tmp_path / "other.png")
    model = ["--backbone", f"local-dir:{clip_folder}", "--templates", "prompts.txt", "--classes", WORDS]
    ranked = ovs("rank-templates", "small.png", "other.png", *model, *SMALL, "--out", "ranking.json", "--quiet")
    assert (ranked.returncode, ranked.stdout, ranked.stderr) == (0, "", "")
    floss = ["segment", "small.png", *model, *SMALL, "--method", "floss", "--experts", "ranking.json", "--out", "out"]
    result = ovs(*floss, "--top", "2")
    assert (result.returncode, result.stderr) == (0, "")

    document = json.loads((tmp_path / "ranking.json").read_text())
    experts = [[entry["template"] for entry in document["classes"][name]][:2] or None for name in CLASSES]
    assert sum(chosen is not None for chosen in experts) >= 2
    clip = MaskClip(f"local-dir:{clip_folder}")
    expected, size = fused(clip, photo, experts, PROMPTS, tmp_path, False)
    check(labels_of(tmp_path / "out" / "small_labels.png"), literal.resized(literal.best_names(expected, GROUPS), size))
    summary = json.loads((tmp_path / "out" / "small.json").read_text())
    assert [entry["name"] for entry in summary["classes"]] == CLASSES
    settings = summary["settings"]
    assert settings["floss"]["base"] == "maskclip"
    assert (settings["floss"]["top"], settings["floss"]["fusion"]) == (2, "highest")
    assert list(summary["timings_ms"]) == ["read", "backbone", "floss", "resize + argmax", "draw", "write"]


def test_a_change_of_what_decides_the_result_does_it_again(tmp_path, photo, prompts, clip_folder, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    encoded = []
    encode = ClipBackbone.encode_text

    def once(self, texts):
        encoded.extend(set(texts))  # the last batch is filled up with its last prompt
        return encode(self, texts)

    monkeypatch.setattr(ClipBackbone, "encode_text", once)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model = ["--backbone", f"local-dir:{clip_folder}", "--templates", prompts, "--classes", WORDS]
    assert run("rank-templates", photo, *model, *SMALL, "--out", "ranking.json") == 0
    assert len(encoded) == len(set(encoded)) == len(PROMPTS) * len(NAMES)
    floss = ["segment", photo, *model, *SMALL, "--method", "floss", "--experts", "ranking.json", "--out", "out"]

    def again(*changed):
        capsys.readouterr()
        assert run(*floss, *changed) == 0
        return "done before" not in capsys.readouterr().out

    assert [again(), again()] == [True, False]
    assert again("--top", "1")
    assert again("--fusion", "average")
    assert [again(), again()] == [True, False]
    (tmp_path / "copy.json").write_bytes((tmp_path / "ranking.json").read_bytes())
    (tmp_path / "copy.json").replace(tmp_path / "ranking.json")
    assert not again()  # another file of the same content
    document = json.loads((tmp_path / "ranking.json").read_text())
    for entries in document["classes"].values():
        entries.reverse()
    (tmp_path / "ranking.json").write_text(json.dumps(document))
    assert again()
    prompts.write_text("\n" + prompts.read_text())
    assert again()  # the templates' file has changed
    assert len(encoded) == len(PROMPTS) * len(NAMES)  # nothing was encoded twice


def tower_features(open_clip, timm, folder, dino_weights, form, crops):
    """Features of windows by the packages' own forward passes, [n, h, w, D]."""
    if form == "naclip":
        return tower.key_key(open_clip, folder, crops, tower.gaussian)
    output = "tokens" if form == "proxyclip" else "values"
    guide = tower.dino(timm, "vit_tiny_patch16_224", dino_weights, crops, output)
    assert not tower.undecided(guide, form).any()
    if form == "proxyclip":
        return tower.proxy(open_clip, folder, crops, guide)
    return tower.weighted_pool(tower.maskclip(open_clip, folder, crops), guide)


@pytest.mark.parametrize("base", ["naclip", "clip-dinoiser", "proxyclip"])
def test_every_base_is_ranked_and_fused(tmp_path, photo, prompts, clip_folder, open_clip, timm, dino_weights, base):
    """Probabilities and labels with the features of `tower_literal`; what `ovs segment` sees is what was ranked."""
    guide = [] if base == "naclip" else ["--guide", "vit_tiny_patch16_224", "--guide-weights", dino_weights]
    model = ["--backbone", f"local-dir:{clip_folder}", "--templates", prompts, "--classes", WORDS, *guide]
    ranking, out = tmp_path / "ranking.json", tmp_path / "out"
    assert run("rank-templates", photo, *model, *SMALL, "--base", base, "--out", ranking) == 0
    document = json.loads(ranking.read_text())
    for number, entries in enumerate(document["classes"].values()):  # random weights may call nothing a cat
        if not entries:
            entries.append({"rank": 1, "template": number, "entropy": 0.5, "percentage": 0.0})
    ranking.write_text(json.dumps(document))
    assert run("segment", photo, *model, "--threads", 1, "--method", "floss", "--experts", ranking, "--out", out) == 0
    settings = json.loads((out / "small.json").read_text())["settings"]
    assert (settings["floss"]["base"], settings["windows"], settings["short_side"]) == (base, "64/32", 80)

    experts = [[entry["template"] for entry in document["classes"][name]][:4] for name in CLASSES]
    image = read_photo(photo)
    size, original = working_size(image.height, image.width, 80), (image.height, image.width)
    tensor, boxes = to_tensor(image, size), literal.windows(*size, 64, 32)
    crops = torch.stack([tensor[:, y0:y1, x0:x1] for y0, x0, y1, x1 in boxes])
    features = tower_features(open_clip, timm, clip_folder, dino_weights, base, crops).double().numpy()
    embeddings = template_embeddings(MaskClip(f"local-dir:{clip_folder}"), NAMES, PROMPTS, tmp_path / "text")
    classifiers = literal.classifiers(embeddings.double().numpy(), experts, GROUPS, base != "clip-dinoiser")
    expected = literal.floss(features, boxes, classifiers, size)

    given = {"guide": guide[1], "guide_weights": str(guide[3])} if guide else {}
    given |= {"classes": WORDS, "templates": str(prompts), "method": "floss", "experts": str(ranking), "threads": 1}
    segmenter = Segmenter(SegmentOptions([str(photo)], out, backbone=f"local-dir:{clip_folder}", **given), None)
    found = segmenter.scores(segmenter.read(photo, Stopwatch())).numpy()
    near = np.abs(found - expected).max(0) < 2e-3
    assert near.mean() > 0.998  # between two experts that are equally sure rounding may decide
    other = tower.maskclip(open_clip, clip_folder, crops).double().numpy()
    assert np.abs(literal.floss(other, boxes, classifiers, size) - expected).max() > 0.02  # the features matter
    default = np.stack([classifiers[-1]] * len(classifiers))
    assert np.abs(literal.floss(features, boxes, default, size) - expected).max() > 0.02  # and so do the experts

    if base == "clip-dinoiser":
        scores = literal.resized(literal.best_names(expected, GROUPS), original)
    else:
        scores = literal.best_names(literal.softmax(100 * literal.resized(expected, original), 0), GROUPS)
    best = np.sort(scores, 0)
    sure = best[-1] - best[-2] > 1e-2
    assert sure.mean() > 0.8
    assert (labels_of(out / "small_labels.png") == scores.argmax(0))[sure].mean() > 0.998


def test_a_fusion_sees_what_its_ranking_saw_unless_the_user_says_otherwise(tmp_path, photo, prompts, clip_folder):
    model = ["--backbone", f"local-dir:{clip_folder}", "--templates", prompts, "--classes", "cat, wall"]
    ranking = tmp_path / "ranking.json"
    assert run("rank-templates", photo, *model, "--size", "80", "--windows", "48/32", "--out", ranking) == 0
    floss = ["segment", photo, *model, "--method", "floss", "--experts", ranking, "--out", tmp_path / "out"]

    def seen(*given):
        assert run(*floss, *given) == 0
        summary = json.loads((tmp_path / "out" / "small.json").read_text())
        return summary["settings"]["windows"], summary["settings"]["short_side"], summary["working_size"]

    assert seen() == ("48/32", 80, [80, 120])
    assert seen("--windows", "none") == ("none", 80, [80, 120])
    assert seen("--size", "64") == ("48/32", 64, [64, 96])


def test_the_checkpoint_of_clip_dinoiser_is_read_once(tmp_path, photo, clip_folder, monkeypatch):
    path, read = tmp_path / "last.pt", []
    torch.save({"obj_proj.weight": torch.ones(8, 64, 3, 3), "obj_proj.bias": torch.zeros(8)}, path)
    load = torch.load

    def counted(file, *arguments, **keywords):
        if str(file) == str(path):
            read.append(file)
        return load(file, *arguments, **keywords)

    monkeypatch.setattr(torch, "load", counted)
    words = ["--classes", "cat, wall", "--backbone", f"local-dir:{clip_folder}", "--projection", path, *SMALL]
    assert run("segment", photo, "--method", "clip-dinoiser", *words, "--out", tmp_path / "out") == 0
    assert len(read) == 1
    torch.save({"obj_proj.weight": -torch.ones(8, 64, 3, 3), "obj_proj.bias": torch.ones(8)}, path)
    assert run("segment", photo, "--method", "clip-dinoiser", *words, "--out", tmp_path / "out") == 0
    assert len(read) == 2  # another content


@pytest.fixture
def published(tmp_path):
    """A ranking in the form of those that FLOSS has published for NACLIP: no spaces, pairs without pixels first."""
    numbers = {"cat": [57, 77, 2, 5, 0], "sofa": [12, 44], "greengrass": [70], "wall": [3, 9, 61, 33]}

    def write(changed=None, model="naclip"):
        classes = {}
        for name, chosen in {**numbers, **(changed or {})}.items():
            rows = [{"template_id": 79, "entropy": 0.0, "pixel_percentage": 0.0, "rank": 1}]
            for index, m in enumerate(chosen):
                rows.append(
                    {"template_id": m, "entropy": 0.1 * (index + 1), "pixel_percentage": 1.5, "rank": index + 2}
                )
            classes[name] = {"entropy_ranking": rows}
        document = {"model": model, "dataset": "cityscapes", "split": "train", "classes": classes}
        path = tmp_path / "published.json"
        path.write_text(json.dumps(document))
        return path

    return write


def test_a_published_ranking_of_naclip(tmp_path, photo, clip_folder, published, capsys):
    """The features are MaskCLIP's: with random weights those of NACLIP are the same everywhere."""
    model = ["--backbone", f"local-dir:{clip_folder}", "--features", "maskclip", "--classes", WORDS]
    out = ["--method", "floss", "--experts", published(), "--out", tmp_path / "out"]
    assert run("segment", photo, *model, *SMALL, *out) == 0
    assert capsys.readouterr().err.count("does not name the weights") == 1
    experts = [[57, 77, 2, 5], [12, 44], [70], [3, 9, 61, 33]]
    clip = MaskClip(f"local-dir:{clip_folder}")
    probabilities, size = fused(clip, photo, experts, load_templates(), tmp_path, True)
    expected = literal.best_names(literal.softmax(100 * literal.resized(probabilities, size), 0), GROUPS)
    check(labels_of(tmp_path / "out" / "small_labels.png"), expected)
    settings = json.loads((tmp_path / "out" / "small.json").read_text())["settings"]
    assert settings["floss"]["base"] == "naclip"
    assert (settings["recipe"]["scale"], settings["recipe"]["threshold"]) == (100, 0)


def test_a_class_that_no_template_predicts(tmp_path, photo, clip_folder, published, capsys):
    options = ["--backbone", f"local-dir:{clip_folder}", "--features", "maskclip", "--classes", WORDS, *SMALL]
    floss = ["segment", photo, *options, "--method", "floss", "--out", tmp_path / "out", "--experts"]
    assert run(*floss, published({"sofa": [], "greengrass": []})) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "--experts: expected a template that predicts each class, for naclip" in error
    assert "sofa, green grass" in error
    assert run(*floss, published({"sofa": []}, "maskclip")) == 0  # the default speaks for it
    experts = [[57, 77, 2, 5], None, [70], [3, 9, 61, 33]]
    clip = MaskClip(f"local-dir:{clip_folder}")
    expected, size = fused(clip, photo, experts, load_templates(), tmp_path, False)
    check(labels_of(tmp_path / "out" / "small_labels.png"), literal.resized(literal.best_names(expected, GROUPS), size))


@pytest.mark.parametrize(
    ("method", "features", "head"),
    [
        ("maskclip", "maskclip", literal.maskclip),
        ("naclip", "naclip", literal.naclip),
        ("clip-dinoiser", "clip-dinoiser", literal.maskclip),
        ("proxyclip", "proxyclip", literal.naclip),
    ],
)
def test_methods_bring_their_features_and_heads(tmp_path, photo, clip_folder, dino_weights, method, features, head):
    from ovs_methods.backbones import load_backbone

    guide = {}
    if features in ("clip-dinoiser", "proxyclip"):
        guide = {"guide": "vit_tiny_patch16_224", "guide_weights": str(dino_weights)}
    options = [word for name, value in guide.items() for word in (f"--{name.replace('_', '-')}", value)]
    words = ["--classes", WORDS, "--background", "sky, stone", "--out", tmp_path / "out"]
    backbone = ["--backbone", f"local-dir:{clip_folder}"]
    assert run("segment", photo, "--method", method, *backbone, *options, *words, *SMALL) == 0
    settings = json.loads((tmp_path / "out" / "small.json").read_text())["settings"]
    threshold = 0.1 if head is literal.naclip else 0
    assert (settings["features"], settings["recipe"]["threshold"]) == (features, threshold)

    image = read_photo(photo)
    size, original = working_size(image.height, image.width, 80), (image.height, image.width)
    clip = load_backbone(f"local-dir:{clip_folder}", features=features, **guide)
    tensor, boxes = to_tensor(image, size), literal.windows(*size, 64, 32)
    dense = np.concatenate([clip.dense(tensor[None, :, y0:y1, x0:x1]).double().numpy() for y0, x0, y1, x1 in boxes])
    embeddings = template_embeddings(clip, ["sky", "stone", *NAMES], load_templates(), tmp_path / "text")
    texts, groups = literal.unit(embeddings.double().numpy().mean(0)), [0, 0, *(group + 1 for group in GROUPS)]
    if head is literal.naclip:
        expected = head(dense, boxes, texts, groups, size, original)
    else:
        expected = literal.resized(head(dense, boxes, texts, groups, size), original)
    best = np.sort(expected, 0)
    sure = (best[-1] - best[-2] > 1e-4) & (abs(best[-1] - threshold) > 1e-4)
    assert sure.mean() > 0.9
    found = labels_of(tmp_path / "out" / "small_labels.png")
    assert np.array_equal(found[sure], literal.labels(expected, threshold)[sure])


def test_recipes_count_unless_the_user_says_otherwise(tmp_path, published):
    def shown(**given):
        made = SegmentOptions(["a.png"], tmp_path, classes="background, cat", **given).resolved()
        recipe = made.clip_recipe()
        return made.backbone, made.features, made.windows(), made.short_side, recipe.scale, recipe.threshold

    laion, openai = "ViT-B-16:laion2b_s34b_b88k", "ViT-B-16:openai"
    assert shown(method="maskclip") == (laion, "maskclip", "448/224", 448, 100, 0)
    assert shown(method="clip-dinoiser") == (laion, "clip-dinoiser", "448/224", 448, 100, 0)
    assert shown(method="naclip") == (openai, "naclip", "224/112", 336, 40, 0.1)
    assert shown(method="proxyclip") == (openai, "proxyclip", "336/112", 336, 40, 0.1)
    experts = str(published())
    assert shown(method="floss", experts=experts) == (openai, "naclip", "224/112", 336, 100, 0)
    own = {"short_side": 560, "constants": {"windows": "none"}, "recipe": {"scale": 7.0, "threshold": 0.2}}
    chosen = shown(method="naclip", features="kk", backbone="ViT-B-32:openai", **own)
    assert chosen == ("ViT-B-32:openai", "kk", "none", 560, 7, 0.2)
    plain = SegmentOptions(["a.png"], tmp_path, classes="background, cat", method="lposs").resolved()
    assert (plain.short_side, plain.windows(), plain.clip_recipe()) == (448, "224/112", None)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--method", "floss"], ["--method floss: expected --experts FILE", "got none"]),
        (["--method", "floss", "--experts", "no.json"], ["--experts: expected a ranking", "no file at no.json"]),
        (["--method", "floss", "--experts", "RANKING", "--base", "maskclip"], ["--base: expected naclip", "maskclip"]),
        (["--method", "floss", "--experts", "RANKING", "--threshold", "0.2"], ["--threshold", "got --method floss"]),
        (["--method", "floss", "--experts", "RANKING", "--classes", "cat, dog"], ["--experts", "'dog'", "greengrass"]),
        (
            ["--method", "floss", "--experts", "RANKING", "--templates", "one.txt"],
            ["--experts", "a photo of a {}", "template 0"],
        ),
        (["--method", "maskclip", "--experts", "RANKING"], ["--experts: expected --method floss", "--method maskclip"]),
        (["--method", "naclip", "--base", "naclip"], ["--base: expected --method floss"]),
        (["--method", "naclip", "--top", "4"], ["--top: expected --method floss with it, got --method naclip"]),
        (["--method", "lposs", "--fusion", "highest"], ["--fusion: expected --method floss", "got --method lposs"]),
        (["--method", "lposs+", "--scale", "100"], ["--scale: expected --method maskclip", "got --method lposs+"]),
        (["--method", "coarse", "--threshold", "0.2"], ["--threshold: expected --method naclip, proxyclip, dslo-mv"]),
        (["--method", "dslo-op", "--threshold", "0.2"], ["--threshold: expected --method naclip", "--method dslo-op"]),
        (["--method", "maskclip", "--classes", MANY], ["--classes: expected at most 255 classes", "got 256"]),
        (["--method", "maskclip", "--threshold", "0.1"], ["--threshold: expected --method naclip"]),
        (["--method", "naclip", "--threshold", "1.5"], ["--threshold: expected a probability", "got 1.5"]),
        (["--method", "naclip", "--scale", "-1"], ["--scale: expected a positive number", "got -1"]),
        (["--method", "naclip", "--templates", "bad.txt"], ["line 2 of bad.txt", "got 'a photo', which has none"]),
        (["--method", "naclip", "--backbone", "dino_vitb16"], ["--backbone: expected a CLIP", "got 'dino_vitb16'"]),
        (["--method", "naclip", "--backbone", "dinov2-small"], ["CLIP backbone", "dinov2-small"]),
    ],
)
def test_bad_input_is_one_line(tmp_path, photo, clip_folder, published, capsys, monkeypatch, arguments, parts):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one.txt").write_text("a photo of a {}.\n")
    (tmp_path / "bad.txt").write_text("a photo of a {}.\na photo\n")
    path = published()
    arguments = [str(path) if argument == "RANKING" else argument for argument in arguments]
    options = {"--classes": WORDS, "--backbone": f"local-dir:{clip_folder}", "--size": "80", "--out": "out"}
    options |= dict(zip(arguments[::2], arguments[1::2], strict=True))
    assert run("segment", photo, *(word for pair in options.items() for word in pair)) == 2
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if not line.startswith("ovs: note:")]
    assert (len(lines), captured.out) == (1, "")
    assert lines[0].startswith("ovs segment: error: ")
    for part in parts:
        assert part in lines[0]
    assert not (tmp_path / "out").exists()


def test_points_need_text_for_floss_and_templates(tmp_path, photo, published, capsys):
    points = ["--point", "cat:50,30", "--point", "wall:5,5", "--out", tmp_path / "out"]
    assert run("segment", photo, *points, "--method", "floss", "--experts", published()) == 2
    assert "--method floss: expected --classes with it" in capsys.readouterr().err
    templates = tmp_path / "one.txt"
    templates.write_text("a photo of a {}.\n")
    assert run("segment", photo, *points, "--templates", templates) == 2
    assert "--templates: expected --classes with it" in capsys.readouterr().err


def test_points_work_with_the_heads(tmp_path, photo, clip_folder):
    points = ["--point", "cat:50,30", "--point", "wall:5,5", "--out", tmp_path / "out", *SMALL]
    for method in ("maskclip", "naclip"):
        assert run("segment", photo, *points, "--method", method, "--backbone", f"local-dir:{clip_folder}") == 0
        assert labels_of(tmp_path / "out" / "small_labels.png").shape == (70, 105)
