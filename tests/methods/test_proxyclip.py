"""ProxyCLIP's features against the published procedure with whole matrices, and what the guides are."""

import pytest
import torch

pytest.importorskip("PIL")

import tower_literal as literal
from ovs_methods.backbones import DinoTokens, DinoV2, DinoValues, load_backbone
from ovs_methods.errors import UserError
from ovs_methods.images import read_photo, to_tensor
from tower_literal import images

TINY = "vit_tiny_patch16_224"


def proxy(folder, weights):
    return load_backbone(f"local-dir:{folder}", features="proxyclip", guide=TINY, guide_weights=str(weights))


@pytest.mark.parametrize("size", [(224, 224), (64, 96)])
def test_tokens_are_what_dino_puts_out(timm, dino_weights, size):
    batch = images(*size)
    found = DinoTokens(TINY, dino_weights)
    assert torch.allclose(found.dense(batch), literal.dino(timm, TINY, dino_weights, batch, "tokens"), atol=1e-4)
    values = DinoValues(TINY, dino_weights)
    assert (values.features, found.features) == ("values", "tokens")
    assert found.identity == {**values.identity, "features": "tokens"}


def test_registers_are_no_tokens_of_patches(timm, tmp_path):
    torch.manual_seed(2)
    vit = timm.create_model("vit_wee_patch16_reg1_gap_256", num_classes=0).eval()
    torch.save(vit.state_dict(), tmp_path / "wee.pth")
    batch, config = images(256, 256, 1), vit.pretrained_cfg
    with torch.no_grad():
        expected = vit.forward_features(literal.standardized(batch, config["mean"], config["std"]))[:, 1:]
    found = DinoTokens("vit_wee_patch16_reg1_gap_256", tmp_path / "wee.pth").dense(batch)
    assert torch.allclose(found, expected.reshape(1, 16, 16, -1), atol=1e-4)


@pytest.mark.parametrize("size", [(64, 64), (96, 160)])
def test_values_are_weighted_by_the_tokens_of_dino(open_clip, timm, clip_folder, dino_weights, size):
    batch = images(*size)
    guide = literal.dino(timm, TINY, dino_weights, batch, "tokens")
    clip = proxy(clip_folder, dino_weights)
    found = clip.dense(batch)
    assert found.shape == (2, size[0] // 16, size[1] // 16, 48)
    assert torch.allclose(found, literal.proxy(open_clip, clip_folder, batch, guide), atol=1e-4)
    assert torch.allclose(clip.dense(batch[1:]), found[1:], atol=1e-4)  # the mean is that of a window
    assert (found - load_backbone(f"local-dir:{clip_folder}").dense(batch)).abs().max() > 0.1


@pytest.mark.parametrize(("size", "padded"), [((64, 96), (64, 96)), ((50, 70), (64, 96))])
def test_values_are_resized_to_the_grid_of_the_guide(open_clip, timm, coarse_clip_folder, dino_weights, size, padded):
    """Patches of 32 in CLIP, of 16 in the guide; those of the guide that show nothing but padding take no part."""
    batch, whole = images(*size), literal.black(images(*size), *padded)
    kept = -(-size[0] // 16), -(-size[1] // 16)
    guide = literal.dino(timm, TINY, dino_weights, whole, "tokens")
    clip = proxy(coarse_clip_folder, dino_weights)
    found = clip.dense(batch)
    assert (clip.patch, found.shape) == (16, (2, *kept, 48))
    assert torch.allclose(found, literal.proxy(open_clip, coarse_clip_folder, whole, guide, kept), atol=1e-4)


def test_the_embedded_model_can_be_the_guide(open_clip, clip_folder, onnx_model, cache, chelsea):
    """On a cat: it finds all patches of noise alike, more so than the published formula can bear."""
    batch = to_tensor(read_photo(chelsea), (300, 451))[None, :, 40:152, 60:284]
    clip = load_backbone(f"local-dir:{clip_folder}", features="proxyclip", guide="dinov2-small")
    guide = DinoV2(cache_dir=cache / "ovs_kernels").dense(batch)
    found = clip.dense(batch)
    assert found.shape == (1, 8, 16, 48)
    assert torch.allclose(found, literal.proxy(open_clip, clip_folder, batch, guide), atol=1e-4)


@pytest.mark.parametrize(
    ("backbone", "options", "text"),
    [
        ("dinov2-small", {"features": "naclip"}, "--features: expected a CLIP backbone, .* got 'dinov2-small'"),
        ("dino_vitb16", {"features": "kk"}, "--features: expected a CLIP backbone, .* got 'dino_vitb16'"),
        ("dino_vitb16", {"guide": "dino_vitb8"}, "--guide: expected a CLIP backbone, .* got 'dino_vitb16'"),
        ("dinov2-small", {"projection": "p.pt"}, "--projection: expected a CLIP backbone"),
        ("CLIP", {"features": "qq"}, "--features: expected maskclip, kk, naclip, .* or proxyclip, got 'qq'"),
        (
            "CLIP",
            {"guide": "dino_vitb8"},
            "--guide: expected --features clip-dinoiser or proxyclip with it, got .*mask",
        ),
        (
            "CLIP",
            {"features": "naclip", "guide_weights": "g.pth"},
            "--guide-weights: expected --features clip-dinoiser or proxyclip with it, got --features naclip",
        ),
        (
            "CLIP",
            {"features": "proxyclip", "projection": "p.pt"},
            "--projection: expected --features clip-dinoiser with it, got --features proxyclip",
        ),
        ("CLIP", {"projection": "p.pt"}, "--projection: expected --features clip-dinoiser with it"),
        (
            "CLIP",
            {"features": "clip-dinoiser", "projection": "p.pt", "guide": "dino_vitb8"},
            "--projection: expected no --guide with it, whose place it takes, got 'dino_vitb8'",
        ),
        (
            "CLIP",
            {"features": "clip-dinoiser", "projection": "p.pt", "guide_weights": "g.pth"},
            "--projection: expected no --guide-weights with it",
        ),
        (
            "CLIP",
            {"features": "proxyclip", "guide": "ViT-B-16:openai"},
            "--guide: expected dinov2-small, dino_vits16, .* or a ViT of timm, got 'ViT-B-16:openai'",
        ),
        (
            "CLIP",
            {"features": "proxyclip", "guide": "nonsense_patch16"},
            "--guide: expected dino_vits16, .* or a ViT of timm, got 'nonsense_patch16'",
        ),
        (
            "CLIP",
            {"features": "proxyclip", "guide_weights": "none.pth"},
            "--guide-weights: expected a checkpoint of dino_vitb8, got no file at none.pth",
        ),
        (
            "CLIP",
            {"features": "clip-dinoiser", "guide_weights": "none.pth"},
            "--guide-weights: expected a checkpoint of dino_vitb16, got no file at none.pth",
        ),
    ],
)
def test_what_does_not_fit_together_is_one_line(timm, clip_folder, backbone, options, text):
    with pytest.raises(UserError, match=text) as caught:
        load_backbone(f"local-dir:{clip_folder}" if backbone == "CLIP" else backbone, **options)
    assert "\n" not in str(caught.value)
