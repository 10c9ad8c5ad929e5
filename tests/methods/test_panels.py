"""Panels: what is where on them, whether errors are told by their colours, and whether these can be told apart."""

import json

import numpy as np
import pytest

pytest.importorskip("PIL")

from ovs_methods import panels
from ovs_methods.panels import Column, comparison, error_map
from PIL import Image

NAMES = ("background", "cat", "cup")

# Simulation of full dichromacy in linear RGB (Machado, Oliveira and Fernandes 2009, severity 1).
DICHROMACY = {
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


@pytest.fixture
def photo(chelsea) -> Image.Image:
    with Image.open(chelsea) as file:
        return file.convert("RGB")


def labels_of(photo: Image.Image) -> np.ndarray:
    made = np.zeros((photo.height, photo.width), np.uint8)
    made[60:240, 100:350] = 1
    made[:, 380:] = 2
    return made


@pytest.mark.parametrize("vision", DICHROMACY)
def test_kinds_of_errors_stay_apart_for_colour_blind_eyes(vision):
    color = pytest.importorskip("skimage.color")
    kinds = [panels._MISSED, panels._INVENTED, panels._CONFUSED, (190, 190, 190)]
    srgb = np.array(kinds) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    seen = (linear @ np.array(DICHROMACY[vision]).T).clip(0, 1)
    seen = np.where(seen <= 0.0031308, 12.92 * seen, 1.055 * seen ** (1 / 2.4) - 0.055)
    lab = color.rgb2lab(seen[None])[0]
    distance = np.linalg.norm(lab[:, None] - lab[None], axis=-1)
    assert distance[~np.eye(4, dtype=bool)].min() > 20  # 2.3 is just noticeable


def test_error_map_says_what_is_wrong_where(photo):
    target = labels_of(photo)
    target[:10] = 255
    found = labels_of(photo)
    found[100:150, 150:200] = 0  # a piece of the cat is missed
    found[100:150, 20:60] = 1  # a cat where there is none
    found[100:150, 400:440] = 1  # a cup is called a cat
    gray = np.full((photo.height, photo.width, 3), 255, np.uint8)
    made = error_map(gray, found, target, 255, 0)
    assert (made[120, 170] == panels._MISSED).all()
    assert (made[120, 40] == panels._INVENTED).all()
    assert (made[120, 420] == panels._CONFUSED).all()
    right = (found == target) & (target != 255)
    assert (made[right] == 255).all()
    assert set(np.unique(made[:10])) == {170, 235}  # hatched
    without = error_map(gray, found, target, 255, None)
    for place in ((120, 170), (120, 40), (120, 420)):
        assert (without[place] == panels._CONFUSED).all()


def test_a_panel_has_a_picture_for_everything(photo):
    target = labels_of(photo)
    columns = [Column(f"method {number}", np.roll(target, 20 * number, 1), "note") for number in range(3)]
    made = comparison(photo, columns, NAMES, target=target, title="chelsea")
    assert made.mode == "RGB"
    assert 1500 <= made.width <= 2100
    fewer = comparison(photo, columns[:1], NAMES, target=target)
    without = comparison(photo, columns[:1], NAMES)
    assert fewer.width < made.width
    assert without.height < fewer.height  # no ground truth, no errors
    many = comparison(photo, columns * 3, NAMES, target=target)  # nine methods: three bands of pictures
    assert many.width <= 2100
    assert many.height > 2 * made.height
    small = comparison(photo.resize((40, 20)), [Column("m", np.zeros((20, 40), int))], NAMES)
    assert small.width > 400  # readable all the same
    strip = np.zeros((3000, 20), int)
    tall = comparison(photo.resize((20, 3000)), [Column("m", strip)], NAMES, target=strip)
    assert tall.height < 3000  # two rows of pictures


def test_names_stand_inside_their_regions(photo):
    labels = labels_of(photo)
    for index, x, y in panels._regions(labels, [0, 1, 2], 0.01):
        assert labels[y, x] == index
        box = labels[max(0, y - 8) : y + 9, max(0, x - 8) : x + 9]
        assert (box == index).all()  # in the middle of them, not at their edge
    speck = np.zeros((50, 50), int)
    speck[3, 3] = 1
    assert [index for index, _, _ in panels._regions(speck, [0, 1], 0.01)] == [0]


def test_depth_is_the_distance_to_what_is_outside():
    rng = np.random.default_rng(0)
    mask = rng.random((17, 23)) < 0.8
    expected = np.zeros(mask.shape)
    outside = [(y, x) for y in range(-1, 18) for x in range(-1, 24) if not (0 <= y < 17 and 0 <= x < 23 and mask[y, x])]
    for y, x in zip(*np.nonzero(mask), strict=True):
        expected[y, x] = min(abs(y - a) + abs(x - b) for a, b in outside)
    np.testing.assert_array_equal(panels._depth(mask), expected)


def test_classes_of_a_large_data_set_get_the_colours_that_can_be_told_apart(photo):
    names = [f"class {number}" for number in range(171)]
    labels = labels_of(photo).astype(int) * 60
    colors = panels._panel_colors(names, [0, 60, 120])
    assert list(colors) == [0, 60, 120]
    assert list(colors.values()) == [(0, 114, 178), (230, 159, 0), (0, 158, 115)]  # Okabe and Ito's first three
    made = np.asarray(comparison(photo, [Column("m", labels)], names, target=labels))
    assert (made == (0, 158, 115)).all(-1).any()  # the legend


def test_segment_saves_panels_and_knows_when_they_are_there(ovs, tmp_path, chelsea, onnx_model):
    command = ["segment", chelsea, "--point", "cat:250,60", "--point", "wall:10,10", "--out", "out", "--size", "112"]
    command += ["--method", "coarse"]
    assert ovs(*command).returncode == 0
    made = ovs(*command, "--save-panels", "pictures")
    assert (made.returncode, "done before" in made.stdout) == (0, False)
    with Image.open(tmp_path / "pictures" / "chelsea_panel.png") as file:
        assert file.width > 2 * 400
    assert "done before" in ovs(*command, "--save-panels", "pictures").stdout
    assert json.loads((tmp_path / "out" / "chelsea.json").read_text())["image"] == "chelsea.png"
    (tmp_path / "file").write_text("")
    assert "error: --save-panels: expected a folder, got the file" in ovs(*command, "--save-panels", "file").stderr
