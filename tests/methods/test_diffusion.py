"""Self-attention of Stable Diffusion, against the maps that diffusers' own attention makes.

The classes are the real ones, their widths tiny, their weights random.
"""

import json
import math
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

pytest.importorskip("PIL")

from ovs_methods.attention import DiffusionAttention, attention_files, load_attention
from ovs_methods.attention.diffusion import is_diffusion, parse_blocks, self_attention
from ovs_methods.backbones.weights import import_models
from ovs_methods.errors import MissingDependency, UserError
from PIL import Image

BLOCKS = ("up_blocks.3.attentions.0", "up_blocks.3.attentions.1")


@pytest.fixture(scope="module")
def diffusers():
    try:
        import_models("transformers", "this test")
        return import_models("diffusers", "this test")
    except MissingDependency as error:
        pytest.skip(str(error))


def tiny_unet(diffusers, **changed):
    down, up = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"
    arguments = {
        "sample_size": 8,
        "layers_per_block": 1,
        "block_out_channels": (16, 16, 16, 16),
        "down_block_types": (down, down, down, "DownBlock2D"),
        "up_block_types": ("UpBlock2D", up, up, up),
        "cross_attention_dim": 24,
        "attention_head_dim": (2, 4, 4, 4),
        "use_linear_projection": True,
        "norm_num_groups": 4,
    }
    return diffusers.UNet2DConditionModel(**{**arguments, **changed}).eval()


def tokenizer_files(folder):
    """A byte-level vocabulary with CLIP's special tokens, and no merges."""
    letters = [chr(code) for code in range(33, 127)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return len(words)


@pytest.fixture(scope="module")
def pipeline(diffusers, tmp_path_factory):
    """Stable Diffusion as diffusers puts it together, with random weights."""
    transformers = import_models("transformers", "this test")
    folder = tmp_path_factory.mktemp("tokenizer")
    words = tokenizer_files(folder)
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=4,
    ).eval()
    text = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            vocab_size=words,
            hidden_size=24,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=20,
            bos_token_id=words - 2,
            eos_token_id=words - 1,
        )
    ).eval()
    tokens = {"vocab": str(folder / "vocab.json"), "merges": str(folder / "merges.txt")}
    tokenizer = transformers.CLIPTokenizer(**tokens, pad_token="!", model_max_length=20)
    scheduler = diffusers.DDIMScheduler(steps_offset=1, clip_sample=False)
    return diffusers.StableDiffusionPipeline(
        vae, text, tokenizer, tiny_unet(diffusers), scheduler, None, None, requires_safety_checker=False
    )


@pytest.fixture(scope="module")
def saved(pipeline, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sd")
    pipeline.save_pretrained(folder)
    return folder


def photo(height, width, seed=0):
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def probabilities(pipeline, image, blocks):
    """[heads, N, N] of each block: what diffusers' plain attention multiplies the values with."""
    from diffusers.models.attention_processor import AttnProcessor

    unet, seen, patched = pipeline.unet, {}, []
    before = unet.attn_processors
    unet.set_attn_processor(AttnProcessor())
    for block in blocks:
        attention = unet.get_submodule(f"{block}.transformer_blocks.0.attn1")

        def look(*arguments, own=attention.get_attention_scores, name=block):
            seen[name] = own(*arguments)
            return seen[name]

        attention.get_attention_scores = look
        patched.append(attention)
    pixels = torch.from_numpy(np.asarray(image) / 127.5 - 1).float().permute(2, 0, 1)[None]
    with torch.no_grad():
        prompt = pipeline.encode_prompt("", "cpu", 1, False)[0]
        latent = pipeline.vae.encode(pixels).latent_dist.mode() * pipeline.vae.config.scaling_factor
        unet(latent, torch.tensor(0), encoder_hidden_states=prompt)
    for attention in patched:
        del attention.get_attention_scores
    unet.set_attn_processor(before)
    return {name: maps.double().numpy() for name, maps in seen.items()}


def test_attention_is_the_mean_of_the_models_own_maps(pipeline, saved):
    image = photo(64, 64)
    source = DiffusionAttention(str(saved), image_size=64)
    found = source(image, (448, 448))
    maps = probabilities(pipeline, image, BLOCKS)
    expected = sum(maps[block].mean(0) for block in BLOCKS) / 2
    expected /= expected.sum(1, keepdims=True)
    assert found.grid == (8, 8)
    assert [maps[block].shape for block in BLOCKS] == [(2, 64, 64)] * 2
    assert expected.max() > 1.3 * expected.min()
    assert np.abs(found.matrix.numpy() - expected).max() < 1e-5 * expected.max()


def test_weights_of_the_blocks_count(pipeline, saved):
    image = photo(64, 64, 1)
    source = DiffusionAttention(str(saved), image_size=64, blocks="up_0:3, down_0:1")
    blocks = ("up_blocks.3.attentions.0", "down_blocks.0.attentions.0")
    maps = probabilities(pipeline, image, blocks)
    expected = 0.75 * maps[blocks[0]].mean(0) + 0.25 * maps[blocks[1]].mean(0)
    assert np.abs(source(image, (1, 1)).matrix.numpy() - expected).max() < 1e-5 * expected.max()
    assert source.identity["blocks"] == {blocks[0]: 0.75, blocks[1]: 0.25}


def linear(side_in, side_out):
    """[side_out, side_in] weights of bilinear resizing (half-pixel centres), one entry at a time."""
    weights = np.zeros((side_out, side_in))
    for row in range(side_out):
        place = max((row + 0.5) * side_in / side_out - 0.5, 0)
        first = int(place)
        weights[row, first] += 1 - (place - first)
        weights[row, min(first + 1, side_in - 1)] += place - first
    return weights


def test_coarser_blocks_are_enlarged_on_both_sides(pipeline, saved):
    image = photo(64, 64, 2)
    fine, coarse = "up_blocks.3.attentions.1", "up_blocks.2.attentions.0"
    maps = probabilities(pipeline, image, (fine, coarse))
    assert maps[coarse].shape == (4, 16, 16)
    enlarge = np.kron(linear(4, 8), linear(4, 8))
    wide = enlarge @ maps[coarse].mean(0) @ enlarge.T
    wide /= wide.sum(1, keepdims=True)
    expected = 0.5 * maps[fine].mean(0) + 0.5 * wide
    found = DiffusionAttention(str(saved), image_size=64, blocks=f"{fine},{coarse}")(image, (1, 1))
    assert np.abs(found.matrix.numpy() - expected).max() < 1e-5 * expected.max()
    alone = DiffusionAttention(str(saved), image_size=64, blocks=coarse)(image, (1, 1))
    assert alone.grid == (4, 4)


@pytest.mark.parametrize(("heads", "text", "linear"), [((5, 10, 20, 20), 1024, True), (8, 768, False)])
def test_the_default_blocks_are_those_of_the_published_networks(diffusers, heads, text, linear):
    """Stable Diffusion 2 and 1.5 as published, without memory for their numbers."""
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel(
            block_out_channels=(320, 640, 1280, 1280),
            attention_head_dim=heads,
            cross_attention_dim=text,
            use_linear_projection=linear,
        )
    for block in parse_blocks("up_0,up_1,up_2,down_0,down_1"):
        attention = self_attention(unet, block, "sd")
        assert attention is unet.get_submodule(f"{block}.transformer_blocks.0.attn1")
        assert attention.to_q.out_features == 320
        assert attention.heads == (heads if isinstance(heads, int) else heads[0])
        assert attention.scale == (320 / attention.heads) ** -0.5


def test_photos_are_looked_at_as_squares(saved):
    source = DiffusionAttention(str(saved), image_size=64)
    wide = photo(30, 100)
    square = wide.resize((64, 64), Image.Resampling.BILINEAR)
    assert torch.equal(source(wide, (30, 100)).matrix, source(square, (64, 64)).matrix)
    assert source(wide, (30, 100)).matrix.sum(1).sub(1).abs().max() < 1e-5


def test_the_unet_is_stopped_behind_the_last_wanted_key(saved):
    source = DiffusionAttention(str(saved), image_size=64, blocks="up_0")
    unet, ran = source._unet, []
    block = unet.up_blocks[3].attentions[0].transformer_blocks[0]
    for name, module in (("key", block.attn1.to_k), ("value", block.attn1.to_v), ("end", unet.conv_out)):
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
    source(photo(64, 64), (64, 64))
    source(photo(64, 64), (64, 64))
    assert ran == ["key", "key"]
    assert [len(part._forward_hooks) for part in (block.attn1.to_q, block.attn1.to_k)] == [0, 1]


def test_names_lead_to_folders_and_identities(saved, tmp_path):
    by_name, by_weights = load_attention(str(saved)), load_attention("sd2", str(saved), layer="up_1")
    assert isinstance(by_name, DiffusionAttention)
    assert by_name.identity["blocks"] == dict.fromkeys(BLOCKS, 0.5)
    assert (by_name.identity["image_size"], by_name.identity["timestep"]) == (512, 0)
    assert by_name.identity["weights"] == by_weights.identity["weights"]
    json.dumps(by_name.identity)
    files = {path.relative_to(saved).as_posix() for path in attention_files("sd2", str(saved))}
    assert {"unet/diffusion_pytorch_model.safetensors", "tokenizer/tokenizer_config.json"} <= files
    assert attention_files("sd2") == []
    assert set(by_name.identity["weights"]) == files


def test_folders_beside_the_user_do_not_capture_names(saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(saved, tmp_path / "mine")
    shutil.copytree(saved, tmp_path / "sd2")
    (tmp_path / "dino").mkdir()
    assert load_attention("mine").identity["weights"] == load_attention("./sd2").identity["weights"]
    assert attention_files("mine") == [path.relative_to(tmp_path) for path in attention_files(str(tmp_path / "mine"))]
    assert attention_files("sd2") == attention_files("dino") == []
    assert not is_diffusion("dino")
    with pytest.raises(UserError, match=r"fetch .*stabilityai"):
        load_attention("sd2")


def test_weights_of_half_precision_are_computed_with_in_single(saved, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "half"
    shutil.copytree(saved, folder)
    for file in folder.rglob("*.safetensors"):
        save_file({name: tensor.half() for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})
    image = photo(64, 64)
    full, half = (DiffusionAttention(str(place), image_size=64)(image, (64, 64)).matrix for place in (saved, folder))
    assert half.dtype == torch.float32
    assert 0 < (full - half).abs().max() < 0.01 * full.max()


def test_a_name_of_the_hub_is_found_in_the_download_cache(saved, tmp_path, environment):
    """The cache as huggingface_hub lays it out, in a process of its own: it is read when the package is imported."""
    repository, commit = tmp_path / "hub" / "models--somebody--tiny", "0123456789abcdef0123456789abcdef01234567"
    shutil.copytree(saved, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    script = (
        "import json; from ovs_methods.attention import load_attention; "
        "print(json.dumps(load_attention('somebody/tiny').identity))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**environment, "HF_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    identity = json.loads(done.stdout)
    assert (identity["model"], identity["weights"]) == ("somebody/tiny", commit)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("up_0", {"up_blocks.3.attentions.0": 1.0}),
        ("up_0:1,up_1:3", {"up_blocks.3.attentions.0": 0.25, "up_blocks.3.attentions.1": 0.75}),
        ("a.b , c", {"a.b": 0.5, "c": 0.5}),
    ],
)
def test_blocks_are_read(text, expected):
    assert parse_blocks(text) == expected


@pytest.mark.parametrize("text", ["", "up_0,", "up_0:0", "up_0:-1", "up_0:1,up_1", "up_0:x", "up_0:inf", "9", "a b"])
def test_blocks_that_cannot_be_read_are_one_line(text):
    with pytest.raises(UserError, match=r"--attention-layer: expected blocks as NAME\[:WEIGHT\]"):
        parse_blocks(text)


def test_a_block_is_named_once():
    with pytest.raises(UserError, match=r"up_blocks\.3\.attentions\.0 twice"):
        parse_blocks("up_0,up_blocks.3.attentions.0")


def test_blocks_that_are_not_there_are_listed(saved):
    for name in ("up_2", "up_blocks.3.attentions.0.transformer_blocks.0.attn2", "conv_in"):
        with pytest.raises(UserError, match=r"--attention-layer: expected blocks of .*up_blocks\.3\.attentions\.1"):
            DiffusionAttention(str(saved), blocks=name)
    for size in (0, 32, 100):
        with pytest.raises(UserError, match=f"image_size: expected a multiple of 64, got {size}"):
            DiffusionAttention(str(saved), image_size=size)


@pytest.mark.parametrize(
    "damage", ["cut", "text", "no tokenizer", "no vae", "other text encoder", "lacks a tensor", "inpainting"]
)
def test_damaged_folders_are_one_line(diffusers, saved, tmp_path, damage):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "sd"
    shutil.copytree(saved, folder)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    if damage == "cut":
        os.truncate(weights, weights.stat().st_size // 2)
    elif damage == "text":
        (folder / "vae" / "config.json").write_text("not json")
    elif damage.startswith("no "):
        shutil.rmtree(folder / damage.removeprefix("no "))
    elif damage == "other text encoder":
        tiny_unet(diffusers, cross_attention_dim=32).save_pretrained(folder / "unet")
    elif damage == "inpainting":
        tiny_unet(diffusers, in_channels=9).save_pretrained(folder / "unet")
    else:
        tensors = load_file(weights)
        del tensors["up_blocks.3.attentions.0.transformer_blocks.0.attn1.to_q.weight"]
        save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"--attention-weights: expected .*got .*sd") as caught:
        load_attention("sd2", str(folder))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    if damage == "lacks a tensor":
        assert "unet lacks up_blocks.3.attentions.0.transformer_blocks.0.attn1.to_q.weight" in str(caught.value)


def test_places_without_a_model_are_one_line(diffusers, tmp_path):
    (tmp_path / "file.safetensors").write_bytes(b"")
    for weights in (tmp_path, tmp_path / "file.safetensors"):
        with pytest.raises(UserError, match=r"--attention-weights: expected a folder in the layout of diffusers"):
            load_attention("sd2", str(weights))
    with pytest.raises(UserError, match=r"--attention-weights: expected .* no file at"):
        load_attention("sd2", str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"--attention: expected a folder in the layout of diffusers.*nothing at"):
        load_attention(str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"--attention: expected .* which has no unet/config\.json"):
        load_attention(str(tmp_path))


@pytest.mark.parametrize("name", ["sd2", "somebody/something"])
def test_downloads_that_fail_say_what_to_fetch(diffusers, name, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    repository = "stabilityai/stable-diffusion-2-base" if name == "sd2" else name
    with pytest.raises(UserError, match=f"fetch https://huggingface.co/{repository}, put it into") as caught:
        load_attention(name)
    place = tmp_path / "ovs_kernels" / "weights" / repository.split("/")[1]
    assert str(caught.value).endswith(f"name it: --attention-weights {place}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("package", ["diffusers", "transformers"])
def test_packages_that_are_missing_are_named(monkeypatch, saved, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependency, match=rf"needs the package {package}, .*ovs-kernels\[methods\]"):
        load_attention("sd2", str(saved))


def test_torchvision_is_not_needed(monkeypatch, diffusers):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    assert import_models("diffusers", "this test") is diffusers
    with pytest.raises(MissingDependency, match="torchvision"):
        import_models("timm", "this test")


def test_nothing_is_printed(saved, capfd):
    load_attention(str(saved), image_size=64)(photo(64, 64), (64, 64))
    assert capfd.readouterr() == ("", "")
    assert math.isclose(sum(parse_blocks("up_0:0.1,up_1:0.2,up_2:0.3").values()), 1)
