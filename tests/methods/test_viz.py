"""Colours and pictures."""

import numpy as np
import pytest

pytest.importorskip("PIL")

from ovs_methods import viz
from PIL import Image

# Simulation of full dichromacy in linear RGB (Machado, Oliveira and Fernandes 2009, severity 1).
DICHROMACY = {
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}


@pytest.mark.parametrize("vision", DICHROMACY)
def test_the_first_seven_colours_stay_apart_for_colour_blind_eyes(vision):
    color = pytest.importorskip("skimage.color")
    srgb = np.array([viz.color(index) for index in range(7)]) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    seen = (linear @ np.array(DICHROMACY[vision]).T).clip(0, 1)
    seen = np.where(seen <= 0.0031308, 12.92 * seen, 1.055 * seen ** (1 / 2.4) - 0.055)
    lab = color.rgb2lab(seen[None])[0]
    distance = np.linalg.norm(lab[:, None] - lab[None], axis=-1)
    assert distance[~np.eye(7, dtype=bool)].min() > 10  # 2.3 is just noticeable


def test_256_colours_are_different():
    assert len({viz.color(index) for index in range(256)}) == 256


def test_background_is_gray_and_costs_no_colour():
    colors = viz.class_colors(["Background", "a", "b"])
    assert len(set(colors[0])) == 1
    assert colors[1:] == [viz.color(0), viz.color(1)]


def test_label_image_holds_ids_and_colours(tmp_path):
    labels = np.array([[0, 1], [2, 1]])
    colors = [(1, 2, 3), (4, 5, 6), (7, 8, 9)]
    viz.label_image(labels, [0, 15, 20], colors).save(tmp_path / "labels.png")
    with Image.open(tmp_path / "labels.png") as read:
        assert read.mode == "P"
        assert np.array_equal(np.asarray(read), [[0, 15], [20, 15]])
        assert read.convert("RGB").getpixel((0, 1)) == (7, 8, 9)


def test_label_image_beyond_a_palette(tmp_path):
    viz.label_image(np.array([[0, 1]]), [0, 1000], [(0, 0, 0)] * 2).save(tmp_path / "labels.png")
    with Image.open(tmp_path / "labels.png") as read:
        assert np.array_equal(np.asarray(read), [[0, 1000]])


def test_overlay_tints_and_draws_the_border():
    photo = Image.new("RGB", (6, 4), (100, 100, 100))
    labels = np.zeros((4, 6), np.int64)
    labels[:, 3:] = 1
    picture = np.asarray(viz.overlay(photo, labels, [(200, 0, 0), (0, 0, 200)], opacity=0.5)).astype(int)
    assert picture[0, 0].tolist() == [150, 50, 50]
    assert picture[0, 5].tolist() == [50, 50, 150]
    assert picture[:, 3].min() > 180


@pytest.mark.parametrize(("size", "expected"), [((300, 200), 608), ((4000, 1000), 2568), ((10, 3), 320)])
def test_panel(size, expected):
    photo = Image.new("RGB", size)
    labels = np.zeros((size[1], size[0]), np.int64)
    names = ["a rather long name for a class, longer than any line", *"bcdefgh"]
    picture = viz.panel(photo, labels, names, [1.0] + [0.0] * 7, viz.class_colors(names))
    assert picture.width == expected
    assert picture.height > min(size[1], 320)
