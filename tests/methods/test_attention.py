"""Attention sources: what `Attention` accepts, files, and the embedded model against its own graph."""

import math

import numpy as np
import pytest
import torch

pytest.importorskip("PIL")

from ovs_methods.attention import Attention, BackboneAttention, MatrixAttention, attention_files, load_attention
from ovs_methods.errors import UserError
from ovs_methods.images import read_photo, to_tensor


def stochastic(count, seed=0):
    matrix = torch.rand(count, count, generator=torch.Generator().manual_seed(seed))
    return matrix / matrix.sum(1, keepdim=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int32])
def test_rows_sum_to_one_in_float32(dtype):
    given = torch.randint(0, 50, (6, 6), generator=torch.Generator().manual_seed(3)).to(dtype)
    given[:, 2] += 1
    found = Attention(given, (2, 3))
    expected = given.double().numpy() / given.double().numpy().sum(1, keepdims=True)
    assert found.matrix.dtype == torch.float32
    assert np.abs(found.matrix.double().numpy() - expected).max() < 1e-7
    assert found.grid == (2, 3)


def test_sums_beyond_float32_are_no_infinity():
    found = Attention(torch.full((4, 4), 3e38), (2, 2))
    assert torch.equal(found.matrix, torch.full((4, 4), 0.25))


def test_rows_that_sum_to_one_are_left_alone():
    given = torch.tensor([[0.25, 0.75], [1.0, 0.0]])
    assert torch.equal(Attention(given, (1, 2)).matrix, given)


def changed(value):
    matrix = stochastic(4)
    matrix[1, 2] = value
    return matrix


@pytest.mark.parametrize(
    ("matrix", "grid", "text"),
    [
        (torch.ones(3, 4), (1, 3), r"matrix: expected \[N, N\] with N >= 1, got \[3, 4\]"),
        (torch.ones(4), (2, 2), r"matrix: expected \[N, N\] with N >= 1, got \[4\]"),
        (torch.ones(0, 0), (0, 0), r"matrix: expected \[N, N\] with N >= 1, got \[0, 0\]"),
        (stochastic(4), (2, 3), r"grid: expected \(h, w\) with h \* w = 4, .* got \(2, 3\)"),
        (stochastic(4), (-2, -2), r"grid: expected .* got \(-2, -2\)"),
        (stochastic(4), (4,), r"grid: expected .* got \(4,\)"),
        (stochastic(4), (2.0, 2.0), r"grid: expected .* got \(2.0, 2.0\)"),
        (changed(math.nan), (2, 2), "got NaN"),
        (changed(math.inf), (2, 2), "got inf"),
        (changed(-0.5), (2, 2), r"not negative, got -0\.5"),
        (torch.cat([stochastic(4)[:3], torch.zeros(1, 4)]), (2, 2), "got row 3 of zeros"),
    ],
)
def test_what_is_no_attention_is_said(matrix, grid, text):
    with pytest.raises(ValueError, match=text):
        Attention(matrix, grid)


@pytest.mark.parametrize("matrix", [[[1.0]], torch.ones(1, 1, dtype=torch.bool), torch.ones(1, 1) * 1j])
def test_what_is_no_matrix_of_numbers_is_said(matrix):
    with pytest.raises(TypeError, match="matrix: expected a tensor of real numbers"):
        Attention(matrix, (1, 1))


def write(path, matrix, grid=None, name="attention"):
    if path.suffix == ".npy":
        np.save(path, matrix.numpy())
    elif path.suffix == ".npz":
        np.savez(path, **{name: matrix.numpy()}, **({} if grid is None else {"grid": np.array(grid)}))
    else:
        torch.save(matrix if grid is None else {name: matrix, "grid": torch.tensor(grid)}, path)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".pt"])
def test_a_square_matrix_comes_from_a_file(tmp_path, suffix):
    path, matrix = tmp_path / f"map{suffix}", stochastic(9)
    write(path, matrix)
    found = load_attention(str(path))
    attention = found(None, (48, 48))
    assert isinstance(found, MatrixAttention)
    assert torch.allclose(attention.matrix, matrix, atol=1e-7)
    assert attention.grid == (3, 3)
    assert attention_files(str(path)) == [path]


@pytest.mark.parametrize("suffix", [".npz", ".pt"])
@pytest.mark.parametrize("name", ["attention", "matrix", "anything"])
def test_a_file_may_hold_the_grid(tmp_path, suffix, name):
    path = tmp_path / f"map{suffix}"
    write(path, stochastic(6), (2, 3), name)
    assert load_attention(str(path))(None, (1, 1)).grid == (2, 3)
    assert load_attention(str(path), grid=(1, 6))(None, (1, 1)).grid == (1, 6)


def test_identities_tell_files_apart(tmp_path):
    for seed in (0, 1):
        write(tmp_path / f"{seed}.npy", stochastic(4, seed))
    first, second, again = (load_attention(str(tmp_path / f"{seed}.npy")).identity for seed in (0, 1, 0))
    assert first != second
    assert first == again


class Harmful:
    """Unpickling it would run code."""

    def __reduce__(self):
        return (print, ("executed",))


def test_files_that_cannot_be_used_are_one_line(tmp_path, capsys):
    np.save(tmp_path / "objects.npy", np.array([Harmful()], dtype=object))
    torch.save({"attention": Harmful()}, tmp_path / "objects.pt")
    for name in ("text.npy", "text.npz", "text.pt"):
        (tmp_path / name).write_text("not a matrix")
    np.savez(tmp_path / "two.npz", a=np.eye(4), b=np.eye(4))
    np.save(tmp_path / "strings.npy", np.array([["a"]]))
    torch.save([torch.eye(4)], tmp_path / "list.pt")
    np.save(tmp_path / "wide.npy", np.ones((3, 4)))
    np.save(tmp_path / "vector.npy", np.ones(4))
    np.save(tmp_path / "six.npy", np.eye(6))
    np.save(tmp_path / "negative.npy", -np.eye(4))
    expected = {
        "two.npz": "called attention or matrix, got a, b",
        "strings.npy": "expected an array of real numbers",
        "list.pt": "expected a tensor, got list",
        "wide.npy": r"expected \[N, N\]",
        "vector.npy": r"expected \[N, N\]",
        "six.npy": "6 patches are no square",
        "negative.npy": "not negative, got -1",
        "missing.npy": "no such file",
        "text.npy": r"text\.npy",
        "text.npz": r"text\.npz",
        "text.pt": r"text\.pt",
        "objects.npy": r"objects\.npy",
        "objects.pt": r"objects\.pt",
    }
    for name, text in expected.items():
        with pytest.raises(UserError, match=text) as caught:
            load_attention(str(tmp_path / name))
        assert "\n" not in str(caught.value)
    assert "executed" not in capsys.readouterr().out


@pytest.fixture(scope="module")
def softmax_maps(onnx_model):
    """The model as shipped shows the softmax of two blocks: [1, heads, 1 + N, 1 + N] of a photo."""
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    model = onnx.load(str(onnx_model))
    names = {n: f"/backbone/encoder/layer.{n}/attention/attention/Softmax_output_0" for n in (4, 9)}
    for name in names.values():
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, 1, None))
    for axis, name in ((2, "height"), (3, "width")):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = name
    session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]

    def run(image, layer):
        (maps,) = session.run([names[layer]], {"input_image": ((image - mean) / std)[None].numpy()})
        return maps.astype(np.float64)

    return run


def literal(maps):
    """Mean over heads, patches only, rows divided by their sums; [1, heads, 1 + N, 1 + N] float64."""
    mean = maps.mean(1)[0][1:, 1:]
    return mean / mean.sum(1, keepdims=True)


@pytest.mark.parametrize("layer", [9, 4])
def test_the_embedded_model_shows_its_own_attention(softmax_maps, backbone, chelsea, layer):
    photo = read_photo(chelsea)
    source = BackboneAttention(backbone, layer)
    features, attention = source.with_features(photo, (112, 168))
    expected = literal(softmax_maps(to_tensor(photo, (112, 168)), layer))
    assert attention.grid == (8, 12)
    assert np.abs(attention.matrix.numpy() - expected).max() < 1e-6
    assert attention.matrix.sum(1).sub(1).abs().max() < 1e-5
    assert torch.allclose(features, backbone.whole(photo, (112, 168)), atol=1e-4)
    assert torch.equal(source(photo, (112, 168)).matrix, attention.matrix)
    assert source.identity == {**backbone.identity, "attention_layer": layer}


def test_attention_of_a_batch_is_that_of_its_images(backbone):
    backbone.prepare_attention(9)
    images = torch.rand(2, 3, 28, 42, generator=torch.Generator().manual_seed(0))
    features, attention = backbone.dense_with_attention(images)
    for image, vector, matrix in zip(images, features, attention, strict=True):
        alone = backbone.dense_with_attention(image[None])
        assert torch.allclose(vector, alone[0][0], atol=1e-4)
        assert torch.allclose(matrix, alone[1][0], atol=1e-6)


def test_names_of_the_embedded_model(onnx_model, chelsea, cache, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    alone = load_attention("dinov2-small", layer="11", threads=2)
    shared = load_attention("dinov2-small", backbone=alone.backbone)
    assert shared.backbone is alone.backbone
    assert shared.identity == alone.identity
    assert shared.name == "dinov2-small"
    for layer in (12, "x", "-1"):
        with pytest.raises(UserError, match="--attention-layer: expected"):
            load_attention("dinov2-small", layer=layer, backbone=alone.backbone)
