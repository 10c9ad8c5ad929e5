"""CLIP-DINOiser's features against the published procedure with whole matrices, and its checkpoint."""

import json

import pytest
import torch
from torch import nn

pytest.importorskip("PIL")

import tower_literal as literal
from ovs_methods.backbones import AttentiveBackbone, ClipDinoiser, DinoV2, TextBackbone, load_backbone
from ovs_methods.errors import UserError
from ovs_methods.images import to_tensor
from PIL import Image
from tower_literal import images

TINY = "vit_tiny_patch16_224"
FEATURES = "clip-dinoiser"


def name(folder):
    return f"local-dir:{folder}"


@pytest.mark.parametrize("size", [(64, 64), (96, 160)])
def test_training_free_is_maskclip_pooled_by_dinos_values(open_clip, timm, clip_folder, dino_weights, size):
    batch = images(*size)
    guide = literal.dino(timm, TINY, dino_weights, batch, "values")
    plain = literal.maskclip(open_clip, clip_folder, batch)
    clip = load_backbone(name(clip_folder), features=FEATURES, guide=TINY, guide_weights=str(dino_weights))
    found = clip.dense(batch)
    assert torch.allclose(found, literal.weighted_pool(plain, guide), atol=1e-4)
    assert (found - plain).abs().max() > 0.1
    assert torch.allclose(clip.dense(batch[1:]), found[1:], atol=1e-4)  # a window is pooled by itself


@pytest.mark.parametrize(("size", "padded"), [((64, 96), (64, 96)), ((50, 70), (64, 96))])
def test_clip_is_resized_to_the_grid_of_the_guide(open_clip, timm, coarse_clip_folder, dino_weights, size, padded):
    """Patches of 32 in CLIP, of 16 in the guide; those of the guide that show nothing but padding take no part."""
    batch, whole = images(*size), literal.black(images(*size), *padded)
    kept = -(-size[0] // 16), -(-size[1] // 16)
    guide = literal.dino(timm, TINY, dino_weights, whole, "values")
    plain = literal.maskclip(open_clip, coarse_clip_folder, whole)
    assert plain.shape[1:3] == (2, 3)
    plain = literal.on_guide(plain, (4, 6))
    clip = load_backbone(name(coarse_clip_folder), features=FEATURES, guide=TINY, guide_weights=str(dino_weights))
    found = clip.dense(batch)
    assert (clip.patch, found.shape) == (16, (2, *kept, 48))
    expected = literal.weighted_pool(*(part[:, : kept[0], : kept[1]] for part in (plain, guide)))
    assert torch.allclose(found, expected, atol=1e-4)


def test_the_embedded_model_can_be_the_guide(open_clip, clip_folder, onnx_model, cache):
    """Patches of 14: a window of 112 is 7 patches of CLIP and 8 of the guide along a side."""
    batch = images(112, 112)
    clip = load_backbone(name(clip_folder), features=FEATURES, guide="dinov2-small", layer=8)
    plain = literal.on_guide(literal.maskclip(open_clip, clip_folder, batch), (8, 8))
    guide = DinoV2(8, cache_dir=cache / "ovs_kernels")
    expected = literal.weighted_pool(plain, guide.dense(batch))
    assert torch.allclose(clip.dense(batch), expected, atol=1e-4)
    assert clip.identity["guide"] == guide.identity


def test_on_a_whole_photo_each_model_sees_its_own_nearest_size(open_clip, clip_folder, onnx_model, cache, chelsea):
    with Image.open(chelsea) as file:
        photo = file.convert("RGB")
    clip = load_backbone(name(clip_folder), features=FEATURES, guide="dinov2-small")
    found = clip.whole(photo, (100, 150))
    plain = literal.maskclip(open_clip, clip_folder, to_tensor(photo, (96, 144))[None])
    guide = DinoV2(cache_dir=cache / "ovs_kernels").dense(to_tensor(photo, (98, 154))[None])
    expected = literal.weighted_pool(literal.on_guide(plain, (7, 11)), guide)
    assert torch.allclose(found, expected[0], atol=1e-4)


@pytest.fixture(scope="module")
def projection(tmp_path_factory):
    """A checkpoint as the authors save it, for a CLIP of width 64."""
    torch.manual_seed(5)
    conv = nn.Conv2d(64, 24, 3)
    state = {"obj_proj.weight": conv.weight.detach(), "obj_proj.bias": conv.bias.detach()}
    state |= {"bkg_decoder.weight": torch.zeros(1, 64, 1, 1), "bkg_decoder.bias": torch.zeros(1)}
    path = tmp_path_factory.mktemp("dinoiser") / "last.pt"
    torch.save({"epoch": 99, "model_state_dict": state}, path)
    return path


def learned_descriptors(open_clip, folder, batch, path):
    """As published: a hook reads what ln_2 of the third block from the end puts out while CLIP runs."""
    visual, grid = literal.image_tower(open_clip, folder, batch)
    seen = []
    visual.transformer.resblocks[-3].ln_2.register_forward_hook(lambda _, __, output: seen.append(output))
    with torch.no_grad():
        visual(literal.standardized(batch))
    state = torch.load(path)["model_state_dict"]
    conv = nn.Conv2d(64, 24, 3, stride=1, padding=1, padding_mode="replicate").requires_grad_(False)
    conv.load_state_dict({key: state[f"obj_proj.{key}"] for key in ("weight", "bias")})
    inner = seen[0][:, 1:].reshape(len(batch), *grid, -1)
    return conv(inner.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


@pytest.mark.parametrize("size", [(64, 64), (96, 160), (50, 70)])
def test_learned_is_maskclip_pooled_by_its_own_projection(open_clip, deep_clip_folder, projection, size):
    whole = literal.black(images(*size), -(-size[0] // 16) * 16, -(-size[1] // 16) * 16)
    plain = literal.maskclip(open_clip, deep_clip_folder, whole)
    descriptors = learned_descriptors(open_clip, deep_clip_folder, whole, projection)
    expected = literal.weighted_pool(plain, descriptors)
    clip = load_backbone(name(deep_clip_folder), features=FEATURES, projection=str(projection))
    found = clip.dense(images(*size))
    assert torch.allclose(found, expected, atol=1e-4)
    assert (found - plain).abs().max() > 0.1
    assert clip.guide is None


def test_the_checkpoint_may_hold_its_keys_at_the_top(deep_clip_folder, projection, tmp_path):
    torch.save(torch.load(projection)["model_state_dict"], tmp_path / "flat.pt")
    first, second = (
        load_backbone(name(deep_clip_folder), features=FEATURES, projection=str(path)).dense(images(64, 64))
        for path in (projection, tmp_path / "flat.pt")
    )
    assert torch.equal(first, second)


def test_identities_carry_everything_that_decides_the_features(clip_folder, dino_weights, projection, tmp_path):
    other = tmp_path / "other.pt"
    state = torch.load(projection)["model_state_dict"]
    torch.save({**state, "obj_proj.bias": state["obj_proj.bias"] + 1}, other)
    guide = {"guide": TINY, "guide_weights": str(dino_weights)}
    made = [
        load_backbone(name(clip_folder)),
        load_backbone(name(clip_folder), features=FEATURES, **guide),
        load_backbone(name(clip_folder), features="proxyclip", **guide),
        load_backbone(name(clip_folder), features=FEATURES, projection=str(projection)),
        load_backbone(name(clip_folder), features=FEATURES, projection=str(other)),
    ]
    texts = {json.dumps(clip.identity, sort_keys=True) for clip in made}
    assert len(texts) == len(made)
    assert all(clip.text_identity == made[0].text_identity for clip in made)
    assert all(isinstance(clip, TextBackbone) for clip in made)
    assert [isinstance(clip, AttentiveBackbone) for clip in made] == [True] + [False] * 4
    assert made[1].identity["guide"]["weights"] == made[2].identity["guide"]["weights"]
    assert [clip.identity["guide"]["features"] for clip in made[1:3]] == ["values", "tokens"]


def broken(kind, whole):
    """Something else than the checkpoint, as torch.save writes it."""
    state = dict(whole["model_state_dict"])
    if kind == "other keys":
        return {"model_state_dict": {"visual.proj": torch.zeros(2, 2), "a": 1, "b": 2, "c": 3}}
    if kind == "half of the keys":
        return {"obj_proj.weight": state["obj_proj.weight"]}
    if kind == "1 x 1":
        state["obj_proj.weight"] = torch.zeros(24, 64, 1, 1)
    if kind == "bias":
        state["obj_proj.bias"] = torch.zeros(23)
    if kind == "no tensors":
        state["obj_proj.weight"] = [1.0]
    return [1, 2] if kind == "a list" else state


@pytest.mark.parametrize(
    ("kind", "got"),
    [
        ("other keys", "with visual.proj, a, b, ..."),
        ("half of the keys", "with obj_proj.weight"),
        ("1 x 1", r"with \[24, 64, 1, 1\] and \[24\]"),
        ("bias", r"with \[24, 64, 3, 3\] and \[23\]"),
        ("no tensors", "with obj_proj.weight, obj_proj.bias"),
        ("a list", "with a list"),
        ("text", "wrong.pt"),
        ("empty", "wrong.pt"),
        ("cut", "wrong.pt"),
        ("missing", "no file at .*wrong.pt"),
    ],
)
def test_other_files_are_one_line(clip_folder, projection, tmp_path, kind, got):
    path, whole = tmp_path / "wrong.pt", projection.read_bytes()
    content = {"text": b"not a checkpoint", "empty": b"", "cut": whole[: len(whole) // 2]}
    if kind in content:
        path.write_bytes(content[kind])
    elif kind != "missing":
        torch.save(broken(kind, torch.load(projection)), path)
    wanted = rf"--projection: expected a checkpoint of CLIP-DINOiser \(obj_proj.weight .*\), got .*{got}"
    with pytest.raises(UserError, match=wanted) as caught:
        load_backbone(name(clip_folder), features=FEATURES, projection=str(path))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_projection_of_another_clip_is_one_line(clip_folder, shallow_clip_folder, projection, tmp_path):
    state = torch.load(projection)["model_state_dict"]
    torch.save({**state, "obj_proj.weight": torch.zeros(24, 768, 3, 3)}, tmp_path / "wide.pt")
    wanted = r"--projection: expected one for .*, obj_proj.weight \[E, 64, 3, 3\], got .*wide.pt with \[24, 768, 3, 3\]"
    with pytest.raises(UserError, match=wanted):
        load_backbone(name(clip_folder), features=FEATURES, projection=str(tmp_path / "wide.pt"))
    with pytest.raises(UserError, match=r"--projection: expected a CLIP with 3 blocks or more \(.* has 2\)"):
        load_backbone(name(shallow_clip_folder), features=FEATURES, projection=str(projection))


def test_exactly_one_of_guide_and_projection(clip_folder):
    with pytest.raises(ValueError, match="ClipDinoiser: guide, projection: expected one of the two"):
        ClipDinoiser(name(clip_folder))
