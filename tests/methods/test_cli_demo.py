"""`ovs demo`."""

import pytest
import torch

pytest.importorskip("PIL")
pytest.importorskip("onnxruntime")

from ovs_methods.demo import PHOTOS, compare, demo_points, photo_path
from ovs_methods.images import read_photo, to_tensor
from ovs_methods.vocabulary.points import check_inside


@pytest.mark.parametrize("name", PHOTOS)
def test_every_demo_photo_is_there_and_holds_its_points(name, chelsea):
    photo = read_photo(photo_path(name))
    check_inside(demo_points(name), photo.height, photo.width, name)
    assert len(PHOTOS[name]) >= 4


def test_demo_writes_both_methods(ovs, tmp_path, onnx_model, chelsea):
    result = ovs("demo", "--photo", "chelsea", "--out", "demo", "--quiet")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert len(list((tmp_path / "demo").iterdir())) == 6


def test_the_comparison_runs_the_same_problem(chelsea):
    image = to_tensor(read_photo(chelsea), (60, 90))
    scores = torch.randn(4, 60, 90, generator=torch.Generator().manual_seed(0))
    found = compare(scores, image, repeats=2)
    assert found.agreement > 0.999
    assert 0 < found.ours_ms < found.reference_ms
