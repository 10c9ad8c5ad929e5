"""CLIP's dense features and DINO's values, against the models' own forward passes."""

import pytest
import torch

pytest.importorskip("PIL")

import tower_literal as literal
from ovs_methods.attention import load_attention
from ovs_methods.backbones import DinoValues, MaskClip, is_clip, load_backbone
from ovs_methods.errors import MissingDependency, UserError
from tower_literal import images


@pytest.fixture(scope="module")
def packages():
    from ovs_methods.backbones.weights import import_models

    try:
        return import_models("open_clip", "this test"), import_models("timm", "this test")
    except MissingDependency as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("size", [(64, 64), (96, 160), (32, 48)])
def test_maskclip_is_clip_whose_last_attention_is_the_identity(packages, clip_folder, size):
    batch = images(*size)
    expected = literal.maskclip(packages[0], clip_folder, batch)
    clip = MaskClip(f"local-dir:{clip_folder}")
    found = clip.dense(batch)
    assert found.shape == (2, size[0] // 16, size[1] // 16, 48)
    assert torch.allclose(found, expected, atol=2e-5)
    again = MaskClip(f"local-dir:{clip_folder}")
    again.dense(images(64, 64))  # another size in between leaves the positions alone
    assert torch.equal(again.dense(batch), found)


def test_maskclip_pads_with_black_before_it_standardizes(packages, clip_folder):
    clip = MaskClip(f"local-dir:{clip_folder}")
    batch = images(50, 70)
    padded = torch.zeros(2, 3, 64, 80)
    padded[:, :, :50, :70] = batch
    assert torch.allclose(clip.dense(batch), literal.maskclip(packages[0], clip_folder, padded), atol=2e-5)


def test_text_is_what_open_clip_says(packages, clip_folder):
    open_clip = packages[0]
    model = open_clip.create_model(f"local-dir:{clip_folder}").eval()
    with torch.no_grad():
        expected = model.encode_text(open_clip.tokenize(["a cat", "two dogs"]), normalize=True)
    found = MaskClip(f"local-dir:{clip_folder}").encode_text(["a cat", "two dogs"])
    assert torch.allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("size", [(64, 64), (96, 160)])
def test_kk_is_clip_whose_last_keys_attend_to_keys(packages, clip_folder, size):
    batch = images(*size)
    clip = load_backbone(f"local-dir:{clip_folder}", features="kk")
    found = clip.dense(batch)
    plain = MaskClip(f"local-dir:{clip_folder}")
    assert torch.allclose(found, literal.key_key(packages[0], clip_folder, batch), atol=2e-5)
    assert (found - plain.dense(batch)).abs().max() > 0.1
    assert clip.identity == {**plain.identity, "features": "kk"}
    clip.prepare_attention()
    plain.prepare_attention()
    features, attention = clip.dense_with_attention(batch)
    assert torch.equal(features, found)
    assert torch.equal(attention, plain.dense_with_attention(batch)[1])  # CLIP's own, not that of the keys


def test_clip_is_told_by_its_name():
    assert (is_clip("ViT-B-16:openai"), is_clip("dino_vitb16"), is_clip("dinov2-small")) == (True, False, False)


def patches_only(maps, prefix):
    """[heads, T, T] to [N, N]: mean over heads, other tokens dropped, rows divided by their sums."""
    mean = maps.double().numpy().mean(0)[prefix:, prefix:]
    assert mean.max() > 1.1 * mean.min()  # far from uniform, compared with the tolerances below
    return torch.from_numpy(mean / mean.sum(1, keepdims=True)).float()


@pytest.mark.parametrize("layer", [None, 1])
@pytest.mark.parametrize("size", [(64, 64), (96, 160)])
def test_attention_of_clip_is_that_of_its_own_module(packages, clip_folder, size, layer):
    batch = images(*size)
    visual, grid = literal.image_tower(packages[0], clip_folder, batch)
    module, seen = visual.transformer.resblocks[-1 if layer is None else layer].attn, []

    def look(attention, arguments, keywords):
        seen.append(arguments[0] if arguments else keywords["query"])

    hook = module.register_forward_pre_hook(look, with_kwargs=True)
    with torch.no_grad():
        visual(literal.standardized(batch, literal.CLIP_MEAN, literal.CLIP_STD))
        hook.remove()
        maps = module(seen[0], seen[0], seen[0], need_weights=True, average_attn_weights=False)[1]
    clip = MaskClip(f"local-dir:{clip_folder}")
    assert clip.prepare_attention(layer) == (2 if layer is None else layer)
    features, found = clip.dense_with_attention(batch)
    assert torch.equal(features, clip.dense(batch))
    assert found.shape == (2, grid[0] * grid[1], grid[0] * grid[1])
    for image in range(2):
        expected = patches_only(maps[image], 1)
        assert (found[image] - expected).abs().max() < 1e-5 * expected.max()


def own_maps(vit, batch, layer, mean, std):
    """The softmax maps [B, heads, T, T] that timm's own attention computes in its own forward pass."""
    attention, seen = vit.blocks[layer].attn, []
    attention.fused_attn = False  # the path that has them in memory; they pass through this dropout
    attention.attn_drop.register_forward_hook(lambda _, __, output: seen.append(output))
    with torch.no_grad():
        vit.forward_features(literal.standardized(batch, mean, std))
    return seen[0]


@pytest.mark.parametrize("layer", [None, 3])
def test_attention_of_dino_is_that_of_its_own_module(packages, dino_weights, layer):
    batch, grid = images(64, 96), (4, 6)
    state = torch.load(dino_weights)
    table = literal.resized(state["pos_embed"][0], 1, (14, 14), grid)
    vit = packages[1].create_model("vit_tiny_patch16_224", num_classes=0, img_size=(64, 96)).eval()
    vit.load_state_dict({**state, "pos_embed": table[None]})
    maps = own_maps(vit, batch, -1 if layer is None else layer, literal.HALF, literal.HALF)
    dino = DinoValues("vit_tiny_patch16_224", dino_weights)
    assert dino.prepare_attention(layer) == (11 if layer is None else layer)
    features, found = dino.dense_with_attention(batch)
    assert torch.equal(features, dino.dense(batch))
    for image in range(2):
        expected = patches_only(maps[image], 1)
        assert (found[image] - expected).abs().max() < 1e-4 * expected.max()


def test_registers_are_left_out_of_attention(packages, tmp_path):
    name, batch = "vit_wee_patch16_reg1_gap_256", images(256, 256, 1)
    torch.manual_seed(2)
    vit = packages[1].create_model(name, num_classes=0).eval()
    torch.save(vit.state_dict(), tmp_path / "wee.pth")
    maps = own_maps(vit, batch, -1, vit.pretrained_cfg["mean"], vit.pretrained_cfg["std"])
    source = load_attention(name, str(tmp_path / "wee.pth"))
    found = source.backbone.dense_with_attention(batch)[1][0]
    expected = patches_only(maps[0], 1)
    assert found.shape == (256, 256)
    assert (found - expected).abs().max() < 1e-4 * expected.max()


def test_sources_by_name_cover_the_whole_photo(packages, clip_folder, dino_weights):
    photo = pytest.importorskip("PIL.Image").new("RGB", (100, 70), "red")
    clip = load_attention(f"local-dir:{clip_folder}")
    dino = load_attention("vit_tiny_patch16_224", str(dino_weights), layer="2")
    for source in (clip, dino):
        attention = source(photo, (70, 100))
        assert attention.grid == (4, 6)  # 64 x 96 pixels, not 80 x 112 with a black rim
        assert source.backbone.input_size(70, 100) == (64, 96)
        features, again = source.with_features(photo, (70, 100))
        assert features.shape[:2] == (4, 6)
        assert torch.equal(attention.matrix, again.matrix)
    assert clip.identity["attention_layer"] == 2
    assert dino.identity["attention_layer"] == 2
    with pytest.raises(UserError, match="--attention-layer: expected 0 to 2, got 3"):
        load_attention(f"local-dir:{clip_folder}", layer=3, backbone=clip.backbone)


@pytest.mark.parametrize(
    ("name", "model"), [("clip", "ViT-B-16:laion2b_s34b_b88k"), ("dino", "dino_vitb8"), ("dinov2", "dinov2_vitb14")]
)
def test_short_names_of_sources_are_models(packages, name, model):
    with pytest.raises(UserError, match=f"--attention-weights: expected a checkpoint of {model}, got no file at none"):
        load_attention(name, "none.pth")


def value_hook(vit, batch, mean, std):
    """What the last block's qkv layer puts out while timm runs its own forward pass: the third part."""
    seen = []
    vit.blocks[-1].attn.qkv.register_forward_hook(lambda _, __, output: seen.append(output))
    with torch.no_grad():
        vit.forward_features(literal.standardized(batch, mean, std))
    return seen[0].chunk(3, -1)[2]


@pytest.mark.parametrize("size", [(224, 224), (64, 96)])
def test_dino_values_are_the_third_part_of_qkv(packages, dino_weights, size):
    batch, grid = images(*size), (size[0] // 16, size[1] // 16)
    vit = packages[1].create_model("vit_tiny_patch16_224", num_classes=0, dynamic_img_size=True).eval()
    vit.load_state_dict(torch.load(dino_weights))
    found = DinoValues("vit_tiny_patch16_224", dino_weights).dense(batch)
    table = literal.resized(vit.pos_embed.detach()[0], 1, (14, 14), grid)
    vit = packages[1].create_model("vit_tiny_patch16_224", num_classes=0, img_size=size).eval()
    vit.load_state_dict({**torch.load(dino_weights), "pos_embed": table[None]})
    expected = value_hook(vit, batch, literal.HALF, literal.HALF)[
        :, 1:
    ]  # this one's mean and std; DINO's own are ImageNet's
    assert torch.allclose(found, expected.reshape(2, *grid, -1), atol=1e-4)


def test_registers_and_missing_class_tokens_are_left_out(packages, tmp_path):
    name = "vit_wee_patch16_reg1_gap_256"
    torch.manual_seed(2)
    vit = packages[1].create_model(name, num_classes=0).eval()
    torch.save(vit.state_dict(), tmp_path / "wee.pth")
    found = DinoValues(name, tmp_path / "wee.pth").dense(images(256, 256, 1))
    config = vit.pretrained_cfg
    expected = value_hook(vit, images(256, 256, 1), config["mean"], config["std"])[:, vit.num_prefix_tokens :]
    assert vit.num_prefix_tokens == 1
    assert torch.allclose(found, expected.reshape(1, 16, 16, -1), atol=1e-4)


def test_names_lead_to_backbones(packages, clip_folder, dino_weights):
    clip = load_backbone(f"local-dir:{clip_folder}")
    assert (type(clip), clip.patch) == (MaskClip, 16)
    dino = load_backbone("vit_tiny_patch16_224", str(dino_weights))
    assert (type(dino), dino.patch) == (DinoValues, 16)
    other = load_backbone(f"local-dir:{clip_folder}", str(clip_folder / "open_clip_pytorch_model.bin"))
    assert torch.equal(other.dense(images(64, 64)), clip.dense(images(64, 64)))
    assert other.identity == clip.identity


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        (
            "ViT-B-16:laion2b_s34b_b88k",
            ["open_clip_model.safetensors", "CLIP-ViT-B-16-laion2B", "--weights "],
        ),
        ("dino_vitb16", ["dino_vitbase16_pretrain.pth", "put it into", "--weights "]),
        ("dinov2_vitb14", ["dinov2_vitb14_pretrain.pth"]),
        ("ViT-B-16", ["ViT-B-16:TAG", "laion2b_s34b_b88k", "got none"]),
        ("ViT-B-16:nonsense", ["got 'nonsense'"]),
        ("RN50:openai", ["a ViT", "'RN50'"]),
        ("nonsense", ["list_models", "'nonsense'"]),
        ("nonsense_patch16", ["dino_vitb16", "'nonsense_patch16'"]),
    ],
)
def test_models_that_cannot_be_had_are_one_line(packages, name, parts):
    with pytest.raises(UserError) as caught:
        load_backbone(name)
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize("name", ["dino_vits16", "local-dir:"])
@pytest.mark.parametrize("damage", ["text", "cut", "other", "missing", "empty"])
def test_damaged_checkpoints_are_one_line(packages, clip_folder, dino_weights, tmp_path, name, damage):
    path = tmp_path / "weights.pth"
    whole = dino_weights.read_bytes()
    content = {"text": b"not a checkpoint", "cut": whole[: len(whole) // 2], "other": whole, "empty": b""}
    if damage != "missing":
        path.write_bytes(content[damage])
    with pytest.raises(UserError, match=r"--weights: expected a checkpoint of .*weights\.pth") as caught:
        load_backbone(f"local-dir:{clip_folder}" if name == "local-dir:" else name, str(path))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
