"""Data sets in their published layouts: which files belong together, and what the masks mean."""

import numpy as np
import pytest

pytest.importorskip("PIL")

import dataset_layouts as layouts
from ovs_methods.data import CLASSES, load_dataset, published_numbers, query_words, read_class_list, read_target
from ovs_methods.data.layouts import Choices
from ovs_methods.data.masks import MaskRule
from ovs_methods.errors import UserError
from ovs_methods.vocabulary import parse_classes
from PIL import Image

# cityscapesscripts: the id of each class that is evaluated, and its train id.
CITY = {7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13, 27: 14}
CITY |= {28: 15, 31: 16, 32: 17, 33: 18}


def targets(dataset) -> dict[str, np.ndarray]:
    return {item.name: read_target(item.mask, dataset.rule) for item in dataset.items}


@pytest.fixture(scope="module")
def voc_root(tmp_path_factory, chelsea, coffee):
    return layouts.voc(tmp_path_factory.mktemp("voc") / "VOCdevkit" / "VOC2012", chelsea, coffee)


@pytest.mark.parametrize("below", ["", "..", "../.."])
def test_voc_takes_the_images_of_its_list_from_any_of_its_folders(voc_root, below):
    dataset = load_dataset("voc21", voc_root.root / below)
    assert [item.name for item in dataset.items] == [f"2007_{index:06d}" for index in (3, 2, 1, 0)]
    assert (dataset.missing, dataset.background, len(dataset.classes)) == ((), 0, 21)
    for name, found in targets(dataset).items():
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, voc_root.masks[name])  # 255 is "does not count" in both


def test_voc_without_its_background(voc_root):
    dataset = load_dataset("voc20", voc_root.root)
    assert (dataset.classes[7], dataset.classes[4], dataset.background) == ("cat", "bottle", None)
    for name, found in targets(dataset).items():
        values = voc_root.masks[name]
        np.testing.assert_array_equal(found, np.where((values == 0) | (values == 255), 255, values - 1))


def test_masks_coded_by_the_colours_of_voc(voc_root, tmp_path):
    rule = load_dataset("voc21", voc_root.root).rule
    values = np.array([[*range(21), 255]], np.uint8)
    colors = np.array([*layouts.VOC_PALETTE, layouts.VOC_BORDER], np.uint8)[None]
    Image.fromarray(colors).save(tmp_path / "rgb.png")
    np.testing.assert_array_equal(read_target(tmp_path / "rgb.png", rule), values)
    colors[0, 3] = 7, 8, 9
    Image.fromarray(colors).save(tmp_path / "other.png")
    with pytest.raises(UserError, match=r"other.png: expected colours of the class list, got also #070809"):
        read_target(tmp_path / "other.png", rule)


def test_indices_count_in_palette_masks_of_voc(voc_root, tmp_path):
    rule = load_dataset("voc21", voc_root.root).rule
    image = Image.fromarray(np.array([[0, 8, 15, 255]], np.uint8))
    image.putpalette([channel for index in range(256) for channel in (index, 255 - index, 0)])
    image.save(tmp_path / "own.png")
    np.testing.assert_array_equal(read_target(tmp_path / "own.png", rule), [[0, 8, 15, 255]])


def test_pascal_context(tmp_path, chelsea):
    root = tmp_path / "VOCdevkit" / "VOC2010"
    made = layouts.pairs(root, "JPEGImages/{}.jpg", "SegmentationClassContext/{}.png", [0, 1, 59], chelsea)
    lists = root / "ImageSets" / "SegmentationContext"
    lists.mkdir(parents=True)
    (lists / "val.txt").write_text("\n".join(made.masks))
    with_background, without = (load_dataset(kind, tmp_path) for kind in ("context60", "context59"))
    assert (len(with_background.classes), len(without.classes)) == (60, 59)
    for name, values in made.masks.items():
        np.testing.assert_array_equal(targets(with_background)[name], values)
        np.testing.assert_array_equal(targets(without)[name], np.where(values == 0, 255, values - 1))
    assert (without.classes[0], without.classes[58], with_background.classes[1]) == ("aeroplane", "wood", "aeroplane")


def test_coco(tmp_path, chelsea):
    layouts.pairs(tmp_path, "images/val2017/{}.jpg", "annotations/val2017/{}_labelTrainIds.png", [0, 170], chelsea)
    made = layouts.pairs(
        tmp_path, "images/val2017/{}.jpg", "annotations/val2017/{}_instanceTrainIds.png", [0, 80], chelsea
    )
    stuff, objects = (load_dataset(kind, tmp_path) for kind in ("coco-stuff", "coco-object"))
    assert (len(stuff.classes), len(objects.classes)) == (171, 81)
    assert (stuff.classes[170], objects.classes[80], objects.classes[1]) == ("wood", "toothbrush", "person")
    for name, values in made.masks.items():
        np.testing.assert_array_equal(targets(objects)[name], values)
        np.testing.assert_array_equal(targets(stuff)[name], np.where(values == 80, 170, 0))
    gap = layouts.pairs(tmp_path / "gap", "images/val2017/{}.jpg", "annotations/val2017/{}.png", [11], chelsea)
    dataset = load_dataset("coco-stuff", gap.root)
    with pytest.raises(UserError, match="labels of the class list"):  # 11 is a street sign, which no image has
        read_target(dataset.items[0].mask, dataset.rule)


def test_the_original_pixel_maps_of_coco_stuff(tmp_path, chelsea):
    raw = {0: 0, 10: 10, 12: 11, 24: 23, 26: 24, 27: 25, 30: 26, 43: 39, 45: 40, 46: 41, 89: 79, 91: 80, 181: 170}
    made = layouts.pairs(tmp_path, "images/val2017/{}.jpg", "annotations/val2017/{}.png", [*raw, 255], chelsea)
    found = targets(load_dataset("coco-stuff", tmp_path))
    table = np.full(256, 255)
    table[list(raw)] = list(raw.values())
    for name, values in made.masks.items():
        np.testing.assert_array_equal(found[name], table[values])


def test_ade20k_does_not_count_zero(tmp_path, chelsea):
    made = layouts.pairs(
        tmp_path / "ADEChallengeData2016",
        "images/validation/ADE_val_{}.jpg",
        "annotations/validation/ADE_val_{}.png",
        [0, 1, 150],
        chelsea,
    )
    dataset = load_dataset("ade20k", tmp_path)
    assert (len(dataset.classes), dataset.classes[0], dataset.classes[149]) == (150, "wall", "flag")
    for name, values in made.masks.items():
        expected = np.where(values == 0, 255, values - 1)
        np.testing.assert_array_equal(targets(dataset)[f"ADE_val_{name}"], expected)


def test_cityscapes_with_train_ids_and_as_its_archive_comes(tmp_path, chelsea):
    images = "leftImg8bit/val/lindau/lindau_{}_leftImg8bit.png"
    train = layouts.pairs(
        tmp_path / "a", images, "gtFine/val/lindau/lindau_{}_gtFine_labelTrainIds.png", [0, 18, 255], chelsea
    )
    ids = [*range(34)]
    raw = layouts.pairs(tmp_path / "b", images, "gtFine/val/lindau/lindau_{}_gtFine_labelIds.png", ids, chelsea)
    first, second = (load_dataset("cityscapes", made.root) for made in (train, raw))
    assert (len(first.classes), first.classes[0], first.classes[18]) == (19, "road", "bicycle")
    assert first.items[0].name == "lindau/lindau_2007_000000"
    table = np.array([CITY.get(value, 255) for value in ids])
    for name in train.masks:
        np.testing.assert_array_equal(targets(first)[f"lindau/lindau_{name}"], train.masks[name])
        np.testing.assert_array_equal(targets(second)[f"lindau/lindau_{name}"], table[raw.masks[name]])


def test_folder_with_other_names_colours_and_labels_that_do_not_count(tmp_path, chelsea):
    made = layouts.folder(tmp_path / "plain", chelsea)
    dataset = load_dataset("folder", made.root)
    assert (dataset.classes, dataset.words[2]) == (("background", "cat", "cup"), ("cup", "mug"))
    (made.root / "labelme.txt").write_text("_background_\ncat\ncup\n")
    labelme = load_dataset("folder", made.root, Choices(class_list="labelme.txt"))
    assert (labelme.classes[0], labelme.background) == ("background", 0)
    colored = made.root / "colors.txt"
    colored.write_text("#ff0000 background\n0 255 0 cat\n#0000ff cup\n#000000 -\n")
    colors = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)
    for name, values in made.masks.items():
        image = colors[values]
        image[0] = 0
        layouts.gray_png(image, made.root / "rgb" / f"{name}_mask.png")
    choices = Choices(masks="rgb", mask_suffix="_mask.png", class_list="colors.txt")
    for name, found in targets(load_dataset("folder", made.root, choices)).items():
        np.testing.assert_array_equal(found[1:], made.masks[name][1:])
        assert (found[0] == 255).all()
    reduced = (
        load_dataset("folder", made.root, Choices(class_list="two.txt", reduce_zero=True))
        if ((made.root / "two.txt").write_text("cat\ncup\n"))
        else None
    )
    for name, found in targets(reduced).items():
        np.testing.assert_array_equal(found, np.where(made.masks[name] == 0, 255, made.masks[name] - 1))
    ignored = load_dataset("folder", made.root, Choices(class_list="two.txt", ignored=(2, 255)))
    for name, found in targets(ignored).items():
        np.testing.assert_array_equal(found, np.where(made.masks[name] == 2, 255, made.masks[name]))


def test_mess_layout(tmp_path, chelsea):
    images, masks = "images_detectron2/test/{}.jpg", "annotations_detectron2/test/{}.png"
    made = layouts.pairs(tmp_path, images, masks, [0, 1, 255], chelsea)
    (tmp_path / "classes.json").write_text('{"0": "others", "1": "flood"}')
    dataset = load_dataset("folder", tmp_path)
    assert (dataset.classes, dataset.split, len(dataset.items)) == (("others", "flood"), "images_detectron2/test", 5)
    for name, found in targets(dataset).items():
        np.testing.assert_array_equal(found, made.masks[name])


@pytest.mark.parametrize(
    ("values", "mode"),
    [
        (np.array([[0, 1], [300, 2]], np.uint16), None),
        (np.array([[0, 1], [300, 2]], np.int32), None),
        (np.array([[0, 1], [2, 3]], np.uint8), "RGB"),
        (np.array([[0, 1], [2, 3]], np.uint8), "LA"),
        (np.array([[0, 1], [1, 0]], bool), None),
    ],
    ids=["16 bit", "32 bit", "gray as RGB", "with alpha", "1 bit"],
)
def test_masks_of_other_depths(tmp_path, values, mode):
    image = Image.fromarray(values)
    path = tmp_path / ("mask.tif" if values.dtype == np.int32 else "mask.png")
    (image.convert(mode) if mode else image).save(path)
    rule = MaskRule.plain(301)
    found = read_target(path, rule, (2, 2))
    assert (found.dtype, rule.ignore) == (np.uint16, 65535)
    np.testing.assert_array_equal(found, values.astype(int))


def test_masks_that_cannot_be_used_name_the_file(tmp_path):
    rule, path = MaskRule.plain(3), tmp_path / "mask.png"
    cases = [
        (np.zeros((2, 3), np.uint8), "expected a mask of 4 x 4 pixels as the image, got 2 x 3"),
        (
            np.full((4, 4), 7, np.uint8),
            r"expected labels of the class list \(0 to 2\), got also 7; --ignore-label VALUE",
        ),
        (np.full((4, 4), 3000, np.uint16), "got also 3000"),
        (np.zeros((4, 4, 3), np.uint8) + np.array([1, 2, 3], np.uint8), "an RGB image with colours; give the classes'"),
        (np.full((4, 4), 0.5, np.float32), "floating-point"),
    ]
    for values, text in cases:
        Image.fromarray(values).save(path if values.dtype != np.float32 else path.with_suffix(".tif"))
        with pytest.raises(UserError, match=rf"mask\.(png|tif): .*{text}"):
            read_target(path if values.dtype != np.float32 else path.with_suffix(".tif"), rule, (4, 4))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("c.txt", "cat\ndog\nCat\n", "every class once, got 'Cat' as class 0 and as class 2"),
        ("c.txt", "cat; dog\ndog\n", "every class once, got 'dog'"),
        ("c.txt", "\n\n", "a class per line, got none"),
        ("c.txt", "#ff0000 cat\n#ff0000 dog\n", "every colour once, got #ff0000 twice"),
        ("c.txt", "#ff0000 cat\ndog\n", "a colour for every class, or for none, got none for 'dog'"),
        ("c.txt", "300 0 0 cat\n", "line 1: expected a colour of three numbers up to 255"),
        ("c.txt", "cat;;dog\n", "line 1: expected a name"),
        ("c.json", '[{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]', "every label once, got 1 twice"),
        ("c.json", '[{"id": -1, "name": "a"}]', "an id from 0 to 65535"),
        ("c.json", '[{"color": [1, 2, 3]}]', "a name, or"),
        ("c.json", "{", "a class list in JSON"),
        ("c.json", "3", "a list of names"),
        ("c.txt", "cat\n\ndog\n", "line 2: expected a name, and other names behind semicolons, got ''"),
        ("c.txt", "\n".join(f"c{index}" for index in range(256)), "no class with the label 255, .* got 'c255'; --ign"),
        ("c.json", '{"0": "cat", "255": "border"}', "no class with the label 255, .* got 'border'"),
    ],
)
def test_class_lists_that_cannot_be_used(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        read_class_list(tmp_path / name)


def test_a_long_class_list_counts_255_or_leaves_it_out(tmp_path):
    names = [f"c{index}" for index in range(300)]
    (tmp_path / "c.txt").write_text("\n".join(names))
    assert read_class_list(tmp_path / "c.txt", ignored=(65535,)).values[255] == 255
    (tmp_path / "c.txt").write_text("\n".join(["-" if name == "c255" else name for name in names]))
    values = read_class_list(tmp_path / "c.txt").values
    assert (values[254], values[255], values[256]) == (254, -1, 255)


@pytest.mark.parametrize(
    ("kind", "choices", "message"),
    [
        ("voc21", {"mask_suffix": "_m.png"}, "--mask-suffix: expected --kind folder with it, got --kind voc21"),
        ("voc21", {"class_list": "c.txt"}, "--class-list: expected --kind folder with it"),
        ("voc21", {"reduce_zero": True}, "--reduce-zero-label: expected --kind folder with it"),
        ("folder", {"images": "images", "split": "val"}, "--split: expected no --images with it, .*, got 'val'"),
        ("folder", {"class_list": "ids.json", "reduce_zero": True}, "--reduce-zero-label: expected no class with .* 0"),
    ],
)
def test_choices_that_would_be_left_unused(tmp_path, chelsea, kind, choices, message):
    made = layouts.folder(tmp_path, chelsea)
    (made.root / "ids.json").write_text('{"0": "background", "1": "cat", "2": "cup"}')
    with pytest.raises(UserError, match=message):
        load_dataset(kind, made.root, Choices(**choices))


def test_missing_and_extra_files_are_listed(tmp_path, chelsea):
    made = layouts.folder(tmp_path, chelsea)
    first, second, *_ = made.masks
    (tmp_path / "images" / f"{first}.jpg").unlink()
    (tmp_path / "masks" / f"{second}.png").unlink()
    dataset = load_dataset("folder", tmp_path)
    assert [item.name for item in dataset.items] == list(made.masks)[2:]
    assert dataset.missing == (
        f"{tmp_path}/images/{second}.jpg (no mask)",
        f"{tmp_path}/masks/{first}.png (no image)",
    )
    for path in (tmp_path / "masks").iterdir():
        path.unlink()
    with pytest.raises(UserError, match=r"at least one image with a mask in .*, got none; the first of 4 alone"):
        load_dataset("folder", tmp_path)


@pytest.mark.parametrize(
    ("kind", "folders", "message"),
    [
        ("voc21", ["JPEGImages"], "a folder with the layout of voc21, got .*, without .*SegmentationClass"),
        ("voc21", ["SegmentationClass"], "a list of the images of voc21, got nothing at .*Segmentation/val.txt"),
        ("coco-stuff", ["annotations/val2017"], "without images/val2017"),
        ("ade20k", ["annotations/validation"], "without images/validation"),
        ("cityscapes", ["leftImg8bit"], "without leftImg8bit/val"),
        ("folder", ["images"], "--masks: expected a folder of masks in .*, got none; looked for masks, "),
        ("folder", ["images", "masks"], "--class-list: expected a file with a class per line"),
    ],
)
def test_other_layouts_say_what_is_wanted(tmp_path, kind, folders, message):
    for folder in folders:
        (tmp_path / folder).mkdir(parents=True)
    with pytest.raises(UserError, match=message):
        load_dataset(kind, tmp_path)


def test_words_of_the_papers():
    counts = {"voc21": 46, "context60": 60, "cityscapes": 19, "ade20k": 150, "coco-stuff": 171, "voc20": 20}
    for kind, count in counts.items():  # the numbers of names that LPOSS propagates
        classes = parse_classes(*query_words(kind, "lposs"))
        assert (len(classes), sum(map(len, classes.values()))) == (len(CLASSES[kind]), count)
    # COCO-Object has a bed and "bed" among the words of its background, where parse_classes leaves it out: 97 - 1.
    assert sum(map(len, parse_classes(*query_words("coco-object", "lposs")).values())) == 96
    naclip = parse_classes(*query_words("voc21", "naclip"))
    assert list(naclip)[4] == "ship"
    assert naclip["television monitor"] == ["television monitor", "tv monitor", "monitor", "television", "screen"]
    assert "trafficlight" in parse_classes(*query_words("cityscapes", "naclip"))


def test_numbers_of_the_papers_belong_to_their_settings():
    lposs = {"backbone": "ViT-B-16:laion2b_s34b_b88k", "graph_backbone": "dino_vitb16", "words": "lposs"}
    lposs |= {"short_side": 448, "style": "mmseg", "resize": "sampled"}
    found = published_numbers("lposs+", "cityscapes", {**lposs, "windows": "224/112"})
    assert {name: number.value for name, number in found.items()} == {"miou": 37.9, "biou": 29.5}
    found = published_numbers("lposs", "voc21", {**lposs, "windows": "448/224"})
    assert {name: number.value for name, number in found.items()} == {"miou": 61.3}
    for changed in (
        {"windows": "none"},
        {"windows": "224/112", "short_side": 336},
        {"windows": "224/112", "style": "pnp"},
    ):
        assert published_numbers("lposs", "voc21", {**lposs, **changed}) == {}
    naclip = {"backbone": "ViT-B-16:openai", "words": "naclip", "style": "mmseg", "resize": "sampled"}
    for kind, windows, side, value in [("voc20", "none", 336, 79.7), ("cityscapes", "224/112", 560, 35.5)]:
        assert (
            published_numbers("naclip", kind, {**naclip, "windows": windows, "short_side": side})["miou"].value == value
        )
        assert published_numbers("naclip", kind, {**naclip, "windows": windows, "short_side": 448}) == {}
    assert published_numbers("oracle", "ade20k", {"patch": 16, "style": "mmseg"})["biou"].value == 65.0
