"""Rankings as files: exact sums, merging, what is damaged, and what they may be used for."""

import copy
import json
import logging

import pytest
import torch
from ovs_methods.errors import MissingDependency, UserError
from ovs_methods.rankings import Ranking, load_ranking, save_ranking

from ovs_kernels import TemplateScores

TEMPLATES = ["a photo of a {}.", "a {} in the dark.", "das ist ein schönes {}."]
IDENTITY = {"model": "ViT-B-16", "weights": "0123456789abcdef"}
COUNTS = [[4, 0], [2, 2], [1, 3]]
# Sums in units of 2^-32; the first is not a float64.
ENTROPY = [[2**54 + 1, 0], [2**32, 3 * 2**32], [3 * 2**31, 2**32 + 7]]
PROBABILITY = [[3 * 2**32, 0], [2**32, 2**32], [2**31, 2**33]]


def scores(counts=COUNTS, entropy=ENTROPY, probability=PROBABILITY, total=4) -> TemplateScores:
    sums = torch.tensor([entropy, probability])
    return TemplateScores(torch.tensor(counts), sums >> 32, sums & (2**32 - 1), total)


def settings(**changed) -> dict:
    made = {
        "format_version": 1,
        "version": "1.2.3",
        "base": "maskclip",
        "identity": IDENTITY,
        "dataset": "three photos",
    }
    made |= {"mode": "pixel_exact", "metric": "entropy", "windows": "448/224", "short_side": 448}
    made |= {"names": {"cat": ["cat"], "sofa": ["sofa", "couch"]}, "templates": TEMPLATES}
    return {**made, **changed}


def ranking(keys=("b", "a"), **changed) -> Ranking:
    return Ranking.of_scores(
        scores(), settings(**changed), failed=[("z.png", "damaged", "7"), ("c.png", "empty", "")], keys=keys
    )


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "experts.json"
    save_ranking(path, ranking())
    return path


def test_best_first_and_never_a_template_that_predicts_the_class_nowhere(saved):
    found = load_ranking(saved)
    # Means over the counts: cat 2^54 / 2^32 / 4 = 2^20, 1/2, 3/2; sofa none, 3/2, (1 + 7 / 2^32) / 3.
    assert [(e.template, e.entropy, e.percentage) for e in found.entries["cat"]] == [
        (1, 0.5, 50.0),
        (2, 1.5, 25.0),
        (0, 2.0**20, 100.0),
    ]
    assert [(e.template, e.percentage, e.probability) for e in found.entries["sofa"]] == [
        (2, 75.0, 2 / 3),
        (1, 50.0, 0.5),
    ]
    assert found.entries["sofa"][0].entropy == pytest.approx((1 + 7 / 2**32) / 3, rel=1e-15)
    assert found.experts(["sofa", "cat"], 2) == [[2, 1], [1, 2]]
    assert found.experts(["cat"], 1) == [[1]]


def test_the_other_metrics_sort_otherwise():
    by_probability = ranking(metric="probability")
    assert [entry.template for entry in by_probability.entries["cat"]] == [0, 1, 2]  # 3/4, 1/2, 1/2
    sums = torch.tensor([ENTROPY, PROBABILITY, PROBABILITY, PROBABILITY, PROBABILITY])
    with_mano = TemplateScores(torch.tensor(COUNTS), sums >> 32, sums & (2**32 - 1), 4)
    made = Ranking.of_scores(with_mano, settings(metric="mano", mode="patch"), keys=["a"])
    assert made.entries["cat"][0].mano == pytest.approx((0.75 / 2) ** 0.25, rel=1e-12)


def test_a_file_holds_the_exact_sums_and_one_line_per_entry(saved):
    text = saved.read_text(encoding="utf-8")
    document = json.loads(text)
    assert document["sums"] == {"counts": COUNTS, "entropy": ENTROPY, "probability": PROBABILITY}
    assert (document["images"], document["total_pixels"], document["model"]) == (2, 4, IDENTITY)
    assert (document["dataset"], document["base"], document["made_by"]) == ("three photos", "maskclip", "ovs 1.2.3")
    assert document["failed"] == [
        {"image": "c.png", "reason": "empty", "key": ""},
        {"image": "z.png", "reason": "damaged", "key": "7"},
    ]
    first = document["classes"]["sofa"][0]
    assert (first["rank"], first["template"], first["text"]) == (1, 2, "das ist ein schönes {}.")
    lines = [line for line in text.splitlines() if '"rank": ' in line]
    assert len(lines) == 5
    assert "das ist ein schönes {}." in lines[3]
    again = load_ranking(saved)
    save_ranking(saved.with_name("again.json"), again)
    assert saved.with_name("again.json").read_bytes() == saved.read_bytes()
    assert again.settings == settings()


def test_merging_is_exact_and_in_any_order(tmp_path):
    entropy = [[2**54 + 2**32 - 1, 5], [7, 9], [11, 13]]
    parts = [ranking(("d", "a"))]
    parts.append(Ranking.of_scores(scores(entropy=entropy), settings(), failed=[("b.png", "gone", "")], keys=["c"]))
    parts.append(Ranking.of_scores(scores(total=100), settings(), keys=["b", "e"]))
    files = []
    for number, order in enumerate(((0, 1, 2), (2, 0, 1), (1, 2, 0))):
        merged = parts[order[0]] + parts[order[1]] + parts[order[2]]
        files.append(tmp_path / f"{number}.json")
        save_ranking(files[-1], merged)
    assert files[0].read_bytes() == files[1].read_bytes() == files[2].read_bytes()
    document = json.loads(files[0].read_text(encoding="utf-8"))
    wanted = [[2 * x + y for x, y in zip(*rows, strict=True)] for rows in zip(ENTROPY, entropy, strict=True)]
    assert document["sums"]["entropy"] == wanted
    assert document["sums"]["counts"] == [[12, 0], [6, 6], [3, 9]]
    assert (document["images"], document["total_pixels"]) == (5, 108)
    assert document["keys"] == ["a", "b", "c", "d", "e"]
    assert [entry["image"] for entry in document["failed"]] == ["b.png", "c.png", "z.png"]


@pytest.mark.parametrize(
    ("changed", "parts"),
    [
        ({"identity": {**IDENTITY, "weights": "ffff"}}, ["model's weights", "0123456789abcdef", "ffff"]),
        ({"templates": [*TEMPLATES[:2], "a {}."]}, ["template 2", "'das ist ein schönes {}.'", "'a {}.'"]),
        ({"names": {"cat": ["cat"], "sofa": ["sofa"]}}, ["words of class 'sofa'", "sofa; couch"]),
        ({"names": {"cat": ["cat"], "dog": ["dog"]}}, ["classes", "cat, sofa", "cat, dog"]),
        ({"short_side": 336}, ["short side", "448", "336"]),
        ({"version": "1.2.4"}, ["version", "1.2.3", "1.2.4"]),
    ],
)
def test_rankings_of_something_else_do_not_merge(changed, parts):
    with pytest.raises(UserError) as caught:
        ranking(("a", "b")) + ranking(("c", "d"), **changed)
    for part in parts:
        assert part in str(caught.value)


def test_no_image_is_merged_twice():
    with pytest.raises(UserError, match=r"without a common image, got 1 in both.*belongs into one shard only"):
        ranking(("a", "b")) + ranking(("b", "c"))


def test_a_ranking_of_another_model_is_an_error_that_names_both(saved):
    found = load_ranking(saved)
    names = {"cat": ["cat"], "sofa": ["sofa", "couch"]}
    found.check(IDENTITY, "maskclip", TEMPLATES, names)
    found.check(IDENTITY, "maskclip", TEMPLATES, ["sofa", "cat"])
    cases = [
        (({"model": "ViT-L-14", "weights": "x"}, "maskclip", TEMPLATES, names), ["ViT-L-14", "ViT-B-16"]),
        (({**IDENTITY, "weights": "fedc"}, "maskclip", TEMPLATES, names), ["weights: fedc", "0123456789abcdef"]),
        (({**IDENTITY, "features": "kk"}, "maskclip", TEMPLATES, names), ["features: kk", "nothing"]),
        (({**IDENTITY, "guide": None}, "maskclip", TEMPLATES, names), ["guide: null", "guide: nothing"]),
        ((IDENTITY, "naclip", TEMPLATES, names), ["for naclip", "for maskclip"]),
        ((IDENTITY, "maskclip", TEMPLATES[:2], names), ["number of templates: 2", "number of templates: 3"]),
        ((IDENTITY, "maskclip", TEMPLATES[::-1], names), [f"'{TEMPLATES[2]}'", f"'{TEMPLATES[0]}'"]),
        ((IDENTITY, "maskclip", TEMPLATES, ["cat", "dog"]), ["the class 'dog'", "of cat, sofa"]),
        ((IDENTITY, "maskclip", TEMPLATES, {**names, "sofa": ["sofa"]}), ["class 'sofa'", "'sofa; couch'"]),
    ]
    for arguments, parts in cases:
        with pytest.raises(UserError) as caught:
            found.check(*arguments)
        assert str(caught.value).startswith("--experts: expected ")
        assert "\n" not in str(caught.value)
        for part in (*parts, str(saved)):
            assert part in str(caught.value)


def test_a_folder_of_weights_may_be_named_in_another_way(saved, tmp_path, monkeypatch):
    local = {"model": "local-dir:clip", "weights": "12"}
    found = Ranking.of_scores(scores(), settings(identity=local), keys=["a"])
    found.check({"model": f"local-dir:{tmp_path}/clip/", "weights": "12"}, "maskclip", TEMPLATES, ["cat"])
    with pytest.raises(UserError, match="weights: 13"):
        found.check({"model": f"local-dir:{tmp_path}/clip/", "weights": "13"}, "maskclip", TEMPLATES, ["cat"])


def test_classes_that_are_not_asked_for_are_a_note(saved, caplog):
    with caplog.at_level(logging.WARNING, logger="ovs_methods"):
        load_ranking(saved).check(IDENTITY, "maskclip", TEMPLATES, ["sofa"])
    assert f"{saved} also ranks cat: classes that are not asked for" in caplog.text


def damaged(change):
    def apply(document):
        change(document)
        return json.dumps(document)

    return apply


DAMAGES = {
    "cut": (lambda document: json.dumps(document)[:-200], "a ranking in JSON"),
    "binary": (lambda document: "\x00\x01", "a ranking in JSON"),
    "nested": (lambda document: "[" * 100000, "a ranking in JSON"),
    "list": (lambda document: "[1, 2]", "'format' is not"),
    "foreign": (lambda document: '{"a": 1}', "'format' is not"),
    "version": (damaged(lambda d: d.update(format_version=2)), "of version 2"),
    "no version": (damaged(lambda d: d.pop("format_version")), "of version null"),
    "nan": (damaged(lambda d: d["classes"]["cat"][0].update(entropy=float("nan"))), "class 'cat': 'entropy' is NaN"),
    "text": (damaged(lambda d: d["classes"]["cat"][0].update(entropy="low")), "class 'cat': 'entropy' is low"),
    "template": (damaged(lambda d: d["classes"]["cat"][0].update(template=3)), "template 3 is none of 3"),
    "boolean": (damaged(lambda d: d["classes"]["cat"][0].update(template=True)), "'template' is true"),
    "twice": (damaged(lambda d: d["classes"]["cat"].append(d["classes"]["cat"][0])), "a template occurs twice"),
    "class": (damaged(lambda d: d["classes"].pop("cat")), "'classes' and 'names' are not the same"),
    "words": (damaged(lambda d: d["names"].update(cat="cat")), "the words of 'cat'"),
    "row": (damaged(lambda d: d["sums"]["entropy"].pop()), "'entropy' is no table of 3 x 2 integers"),
    "float": (damaged(lambda d: d["sums"]["counts"][0].__setitem__(0, 1.5)), "'counts' is no table"),
    "negative": (damaged(lambda d: d["sums"]["counts"][0].__setitem__(0, -1)), "'counts' is no table"),
    "many": (damaged(lambda d: d["sums"]["counts"][0].__setitem__(0, 5)), "more places are counted than the 4"),
    "huge": (damaged(lambda d: d["sums"]["entropy"][0].__setitem__(0, 2**200)), "'entropy' is no table"),
    "sum": (damaged(lambda d: d["sums"].update(other=d["sums"]["counts"])), "the sums are wrong"),
    "sorted": (damaged(lambda d: d.update(names=dict(reversed(d["names"].items())))), "of class 'sofa' are not those"),
    "mode": (damaged(lambda d: d.update(mode="fast")), "'mode' is fast"),
    "base": (damaged(lambda d: d.update(base="other")), "'base' is 'other', none of maskclip, naclip"),
    "failed": (damaged(lambda d: d["failed"][0].pop("key")), "'failed': 'key' is missing"),
    "keys": (damaged(lambda d: d["keys"].pop()), "'keys' are not those of 2 images"),
}
for KEY in ("base", "model", "names", "templates", "classes", "sums", "images", "total_pixels", "failed", "dataset"):
    DAMAGES[f"no {KEY}"] = (damaged(lambda d, key=KEY: d.pop(key)), f"'{KEY}' is missing")


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_file_is_one_line(saved, name):
    change, part = DAMAGES[name]
    saved.write_text(change(json.loads(saved.read_text(encoding="utf-8"))), encoding="utf-8")
    with pytest.raises(UserError) as caught:
        load_ranking(saved)
    assert str(caught.value).startswith("--experts: expected ")
    assert part in str(caught.value)
    assert str(saved) in str(caught.value)


def test_a_file_that_is_not_there(tmp_path):
    for path in (tmp_path, tmp_path / "none.json"):
        with pytest.raises(UserError, match="no file at"):
            load_ranking(path)


# The form of the files that FLOSS has published: sorted by entropy, pairs without pixels first.
PUBLISHED = {
    "model": "naclip",
    "dataset": "pascalvoc20",
    "split": "train",
    "classes": {
        "aeroplane": {
            "entropy_ranking": [
                {"template_id": 5, "entropy": 0.0, "pixel_percentage": 0.0, "rank": 1},
                {"template_id": 73, "entropy": 1.198756960242558, "pixel_percentage": 2.3431381513875493, "rank": 2},
                {"template_id": 18, "entropy": 1.213548192936333, "pixel_percentage": 2.3126766917064057, "rank": 3},
            ]
        },
        "boat": {"entropy_ranking": [{"template_id": 76, "entropy": 1.13, "pixel_percentage": 1.4, "rank": 1}]},
        "tvmonitor": {"entropy_ranking": [{"template_id": 4, "entropy": 0, "pixel_percentage": 0, "rank": 1}]},
    },
}


@pytest.fixture
def published(tmp_path):
    def write(change=lambda document: None):
        document = copy.deepcopy(PUBLISHED)
        change(document)
        path = tmp_path / "template_rankings_naclip_pascalvoc20.json"
        path.write_text(json.dumps(document))
        try:
            return load_ranking(path)
        except MissingDependency as error:
            pytest.skip(str(error))

    return write


def test_a_published_ranking_loads(published, caplog):
    with caplog.at_level(logging.WARNING, logger="ovs_methods"):
        found = [published() for _ in range(2)][1]
    assert len(caplog.records) == 1
    assert "does not name the weights" in caplog.text
    assert (found.base, found.dataset, found.identity, found.scores) == ("naclip", "pascalvoc20", None, None)
    assert len(found.templates) == 80
    assert found.templates[0] == "a bad photo of a {}."
    assert found.experts(["aeroplane", "Boat", "ship", "tv monitor"]) == [[73, 18], [76], [76], None]
    assert found.experts(["aeroplane"], 1) == [[73]]
    found.check({"model": "anything"}, "naclip", found.templates, ["aeroplane", "ship", "screen"])
    others = published(lambda document: document.update(dataset="ade20k"))
    with pytest.raises(UserError, match="the class 'ship'"):
        others.class_of("ship")
    for base, templates, names, part in (
        ("maskclip", found.templates, ["boat"], "for maskclip, got"),
        ("naclip", found.templates[:4], ["boat"], "number of templates: 4"),
        ("naclip", found.templates, ["boat", "sheep"], "the class 'sheep'"),
    ):
        with pytest.raises(UserError, match=part):
            found.check({"model": "anything"}, base, templates, names)
    with pytest.raises(UserError, match="which FLOSS has published"):
        found + found


def test_the_base_of_clip_dinoiser_is_called_as_here(published):
    assert published(lambda document: document.update(model="clipdinoiser")).base == "clip-dinoiser"


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda d: d.update(model="other"), "'model' is 'other'"),
        (lambda d: d.pop("model"), "'model' is missing"),
        (lambda d: d["classes"].clear(), "'classes' is empty"),
        (lambda d: d["classes"].update(boat=3), "class 'boat': 'entropy_ranking' is missing"),
        (lambda d: d["classes"]["boat"]["entropy_ranking"][0].update(template_id=80), "template 80 is none of 80"),
        (lambda d: d["classes"]["boat"]["entropy_ranking"][0].pop("entropy"), "class 'boat': 'entropy' is missing"),
    ],
)
def test_a_damaged_published_ranking_is_one_line(published, change, part):
    with pytest.raises(UserError) as caught:
        published(change)
    assert str(caught.value).startswith("--experts: expected a complete ranking, got ")
    assert part in str(caught.value)
