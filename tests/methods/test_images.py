"""Reading, resizing, the last argmax."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

pytest.importorskip("PIL")

from ovs_methods import images
from ovs_methods.errors import UserError
from PIL import Image


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((375, 500), (448, 597)),  # PASCAL VOC
        ((1024, 2048), (448, 896)),  # Cityscapes
        ((300, 451), (448, 673)),  # 673.49 rounds down
        ((10, 1000), (20, 2048)),  # the long side's bound
        ((1, 1), (448, 448)),
        ((1, 5000), (1, 2048)),  # 0.41 rounds to nothing
    ],
)
def test_working_size(size, expected):
    assert images.working_size(*size) == expected


def test_resize_argmax_is_argmax_of_torch_bilinear():
    scores = torch.randn(5, 13, 17, generator=torch.Generator().manual_seed(0))
    for size in [(13, 17), (40, 31), (7, 90), (1, 1)]:
        dense = F.interpolate(scores[None], size, mode="bilinear", align_corners=False)[0]
        found = images.resize_argmax(scores, size)
        best, second = dense.topk(2, dim=0).values
        clear = best - second > 1e-5
        assert clear.float().mean() > 0.99
        assert torch.equal(found[clear], dense.argmax(0)[clear])


def test_resize_argmax_in_bands_gives_the_same(monkeypatch):
    scores = torch.randn(3, 11, 9, generator=torch.Generator().manual_seed(1))
    whole = images.resize_argmax(scores, (101, 57))
    monkeypatch.setattr(images, "_BAND_BYTES", 4096)
    assert torch.equal(images.resize_argmax(scores, (101, 57)), whole)


def test_resize_argmax_ties_go_to_the_first_class():
    assert images.resize_argmax(torch.ones(4, 3, 3), (5, 5)).eq(0).all()


def test_resize_argmax_with_nan_and_infinity():
    scores = torch.zeros(3, 2, 2)
    scores[0] = torch.nan
    scores[1, :, 0] = -torch.inf
    scores[2, 1] = torch.inf
    assert images.resize_argmax(scores, (2, 2)).tolist() == [[2, 1], [2, 2]]
    enlarged = images.resize_argmax(scores, (8, 8))
    assert enlarged.ne(0).all()
    assert images.resize_argmax(torch.full((2, 2, 2), torch.nan), (4, 4)).eq(0).all()


@pytest.mark.parametrize("mode", ["L", "P", "1", "LA", "RGBA", "CMYK", "I;16"])
def test_every_common_mode_becomes_rgb(tmp_path, mode):
    path = tmp_path / ("photo.jpg" if mode == "CMYK" else "photo.png")
    if mode == "I;16":
        Image.fromarray(np.full((6, 5), 65535, np.uint16)).save(path)
    else:
        Image.new("RGB", (5, 6), "white").convert(mode).save(path)
    photo = images.read_photo(path)
    assert (photo.mode, photo.size) == ("RGB", (5, 6))
    assert np.asarray(photo).min() >= 254


def test_exif_orientation_is_obeyed(tmp_path):
    picture = Image.new("RGB", (20, 10), "red")
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to see it upright
    picture.save(tmp_path / "turned.jpg", exif=exif)
    assert images.read_photo(tmp_path / "turned.jpg").size == (10, 20)


def test_transparency_lies_on_white(tmp_path):
    Image.new("RGBA", (3, 3), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert images.read_photo(tmp_path / "clear.png").getpixel((1, 1)) == (255, 255, 255)


def test_unreadable_files_are_user_errors(tmp_path, coffee):
    whole = coffee.read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.jpg").write_text("not an image")
    (tmp_path / "empty.png").write_bytes(b"")
    for name in ("half.png", "text.jpg", "empty.png", "missing.png", "."):
        with pytest.raises(UserError, match=r"expected an? .*image file.*, got ") as caught:
            images.read_photo(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_to_tensor_reduces_without_aliasing():
    stripes = np.zeros((8, 400, 3), np.uint8)
    stripes[:, ::2] = 255
    reduced = images.to_tensor(Image.fromarray(stripes), (8, 25))
    assert reduced.shape == (3, 8, 25)
    assert (reduced - 0.5).abs().max() < 0.05


@pytest.mark.parametrize("size", [(53, 71), (120, 200), (300, 160)])
def test_sampled_is_bilinear_between_four_pixels(chelsea, size):
    with Image.open(chelsea) as file:
        photo = file.convert("RGB").crop((0, 0, 160, 120))
    made = np.asarray(images.sampled(photo, size))
    values = np.asarray(photo).astype(np.float64)
    taps = []
    for wanted, given in zip(size, values.shape[:2], strict=True):
        source = np.maximum((np.arange(wanted) + 0.5) * given / wanted - 0.5, 0)
        first = np.floor(source).astype(int)
        taps.append((first, np.minimum(first + 1, given - 1), source - first))
    (y0, y1, v), (x0, x1, u) = taps
    v, u = v[:, None, None], u[None, :, None]
    top = values[y0][:, x0] * (1 - u) + values[y0][:, x1] * u
    bottom = values[y1][:, x0] * (1 - u) + values[y1][:, x1] * u
    assert np.abs(made - (top * (1 - v) + bottom * v)).max() <= 0.501
    cv2 = pytest.importorskip("cv2")
    theirs = cv2.resize(np.asarray(photo), size[::-1], interpolation=cv2.INTER_LINEAR)
    assert np.abs(made.astype(int) - theirs).max() <= 1
    assert images.sampled(photo, (120, 160)) is photo
