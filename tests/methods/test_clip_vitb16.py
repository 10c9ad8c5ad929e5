"""Every form of features at the size of the published models: ViT-B/16 and a window of 224, random weights."""

import json

import pytest
import torch
from torch import nn

pytest.importorskip("PIL")

import tower_literal as literal
from ovs_methods.backbones import load_backbone
from ovs_methods.images import read_photo, to_tensor

GUIDE = "vit_small_patch8_224.dino"  # its grid is twice as fine, as that of ViT-B/8


@pytest.fixture(scope="module")
def clip(open_clip, tmp_path_factory):
    """open_clip's ViT-B-16 beside a small text tower, as `local-dir:` takes it."""
    folder = tmp_path_factory.mktemp("vitb16")
    config = open_clip.get_model_config("ViT-B-16")
    assert config["vision_cfg"] == {"image_size": 224, "layers": 12, "width": 768, "patch_size": 16}
    config["text_cfg"] |= {"width": 32, "heads": 2, "layers": 1}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    torch.manual_seed(9)
    made = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    torch.save(made.state_dict(), folder / "open_clip_pytorch_model.bin")
    return folder


@pytest.fixture(scope="module")
def guide(timm, tmp_path_factory):
    path = tmp_path_factory.mktemp("guide") / "small8.pth"
    torch.manual_seed(10)
    torch.save(timm.create_model(GUIDE, num_classes=0).state_dict(), path)
    return path


@pytest.fixture
def window(chelsea):
    return to_tensor(read_photo(chelsea), (300, 451))[None, :, 40:264, 60:284]


def check(found, expected, guide=None, form=""):
    """With a guide, but for the few patches where rounding decides on which side of the threshold a pair is."""
    assert found.shape == expected.shape
    wrong = (found - expected).abs().amax(-1) > 2e-5 * expected.abs().max()
    if guide is not None:
        unclear = literal.undecided(guide, form)
        assert unclear.float().mean() < 0.05
        wrong &= ~unclear
    assert not wrong.any()


def test_naclip(open_clip, clip, window):
    found = load_backbone(f"local-dir:{clip}", features="naclip").dense(window)
    assert found.shape == (1, 14, 14, 512)
    check(found, literal.key_key(open_clip, clip, window, literal.gaussian))


def test_clip_dinoiser(open_clip, timm, clip, guide, window):
    form = {"features": "clip-dinoiser", "guide": GUIDE, "guide_weights": str(guide)}
    found = load_backbone(f"local-dir:{clip}", **form).dense(window)
    assert found.shape == (1, 28, 28, 512)
    plain = literal.on_guide(literal.maskclip(open_clip, clip, window), (28, 28))
    values = literal.dino(timm, GUIDE, guide, window, "values")
    check(found, literal.weighted_pool(plain, values), values, "clip-dinoiser")


def test_clip_dinoiser_with_its_projection(open_clip, clip, window, tmp_path):
    torch.manual_seed(11)
    conv = nn.Conv2d(768, 256, 3, padding=1, padding_mode="replicate").requires_grad_(False)
    state = {f"obj_proj.{key}": part for key, part in conv.state_dict().items()}
    torch.save({"model_state_dict": state}, tmp_path / "p")
    found = load_backbone(f"local-dir:{clip}", features="clip-dinoiser", projection=str(tmp_path / "p")).dense(window)
    visual, grid = literal.image_tower(open_clip, clip, window)
    seen = []
    visual.transformer.resblocks[-3].ln_2.register_forward_hook(lambda _, __, output: seen.append(output))
    visual.transformer.resblocks[-1].attn.register_forward_hook(literal.values_only, with_kwargs=True)
    plain = literal.patches_of(visual, window).reshape(1, *grid, -1)
    descriptors = conv(seen[0][:, 1:].reshape(1, *grid, -1).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    check(found, literal.weighted_pool(plain, descriptors), descriptors, "clip-dinoiser")


def test_proxyclip(open_clip, timm, clip, guide, window):
    form = {"features": "proxyclip", "guide": GUIDE, "guide_weights": str(guide)}
    found = load_backbone(f"local-dir:{clip}", **form).dense(window)
    assert found.shape == (1, 28, 28, 512)
    tokens = literal.dino(timm, GUIDE, guide, window, "tokens")
    check(found, literal.proxy(open_clip, clip, window, tokens), tokens, "proxyclip")
