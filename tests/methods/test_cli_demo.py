"""`ovs demo`."""

import numpy as np
import pytest
import torch

pytest.importorskip("PIL")
pytest.importorskip("onnxruntime")

from ovs_methods.demo import PHOTOS, compare, demo_points, photo_path
from ovs_methods.images import read_photo, to_tensor
from ovs_methods.vocabulary.points import check_inside
from PIL import Image


@pytest.mark.parametrize("name", PHOTOS)
def test_every_demo_photo_is_there_and_holds_its_points(name, chelsea):
    photo = read_photo(photo_path(name))
    check_inside(demo_points(name), photo.height, photo.width, name)
    assert len(PHOTOS[name]) >= 4


def test_demo_writes_five_methods_and_one_picture_of_them(ovs, tmp_path, onnx_model, chelsea):
    result = ovs("demo", "--photo", "chelsea", "--out", "demo", "--quiet")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert len(list((tmp_path / "demo").iterdir())) == 16
    with Image.open(tmp_path / "demo" / "chelsea_side_by_side.png") as picture:
        assert picture.width == 2 * 451 + 8
        assert picture.height > 3 * 300
        cells = [np.asarray(picture)[y : y + 260, x : x + 451] for y in (32, 364, 696) for x in (0, 459)]
    assert len({part.tobytes() for part in cells}) == 6


def test_the_comparison_runs_the_same_problem(chelsea):
    image = to_tensor(read_photo(chelsea), (60, 90))
    scores = torch.randn(4, 60, 90, generator=torch.Generator().manual_seed(0))
    found = compare(scores, image, repeats=2)
    assert found.agreement > 0.999
    assert 0 < found.ours_ms < found.reference_ms
