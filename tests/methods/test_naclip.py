"""NACLIP's features against CLIP's own forward pass with the whole Gaussian; the text tower that all forms share."""

import json

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("PIL")

import tower_literal as literal
from ovs_methods.backbones import AttentiveBackbone, TextBackbone, load_backbone, maskclip
from tower_literal import images


@pytest.mark.parametrize("size", [(64, 64), (96, 160), (16, 208)])
@pytest.mark.parametrize("tile", [2**20, 60])  # the bias in one piece, and a row or two of patches at a time
def test_naclip_is_clip_whose_last_keys_attend_to_near_keys(open_clip, clip_folder, monkeypatch, size, tile):
    monkeypatch.setattr(maskclip, "_TILE", tile)
    batch = images(*size)
    found = load_backbone(f"local-dir:{clip_folder}", features="naclip").dense(batch)
    expected = literal.key_key(open_clip, clip_folder, batch, literal.gaussian)
    assert found.shape == (2, size[0] // 16, size[1] // 16, 48)
    assert torch.allclose(found, expected, atol=2e-5)
    assert (found - literal.key_key(open_clip, clip_folder, batch)).abs().max() > 1e-3  # the Gaussian counts


def test_windows_are_padded_with_black_and_seen_alike_in_any_batch(open_clip, clip_folder):
    clip, batch = load_backbone(f"local-dir:{clip_folder}", features="naclip"), images(50, 70, 3)
    expected = literal.key_key(open_clip, clip_folder, literal.black(batch, 64, 80), literal.gaussian)
    assert torch.allclose(clip.dense(batch), expected, atol=2e-5)
    assert torch.allclose(clip.dense(batch[1:2]), expected[1:2], atol=2e-5)


class Largest(TorchDispatchMode):
    """The most numbers in a tensor that any operation makes."""

    numbers = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        made = function(*arguments, **keywords or {})
        for part in made if isinstance(made, tuple | list) else [made]:
            if isinstance(part, torch.Tensor):
                self.numbers = max(self.numbers, part.numel())
        return made


def test_naclip_never_holds_a_matrix_of_all_patches():
    h, w = 48, 64
    keys, values = torch.randn(2, 1, 2, 1 + h * w, 32, generator=torch.Generator().manual_seed(0))
    with Largest() as largest:
        maskclip._neighbour_aware(keys, values, (h, w))
    assert 0 < largest.numbers <= maskclip._TILE < (h * w) ** 2 / 8


def test_the_text_tower_is_that_of_every_form(open_clip, clip_folder):
    name, prompts = f"local-dir:{clip_folder}", ["a cat", "two dogs"]
    forms = [load_backbone(name, features=form) for form in ("maskclip", "kk", "naclip")]
    with torch.no_grad():
        tokens = open_clip.tokenize(prompts)
        expected = open_clip.create_model(name).eval().encode_text(tokens, normalize=True)
    for clip in forms:
        assert isinstance(clip, TextBackbone)
        assert isinstance(clip, AttentiveBackbone)
        assert torch.allclose(clip.encode_text(prompts), expected, atol=1e-6)
        assert clip.text_identity == forms[0].text_identity
        assert json.loads(json.dumps(clip.identity)) == {**clip.text_identity, "features": clip.features}
    assert [clip.features for clip in forms] == ["maskclip", "kk", "naclip"]


def test_a_tag_decides_activation_and_standardization_of_a_local_file(open_clip, monkeypatch, tmp_path):
    """As of ViT-B-16:openai: the model's config says GELU, the tag of the weights QuickGELU."""
    vision = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16}
    text = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    config = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}
    (tmp_path / "ViT-tiny-test.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path)
    tag = {"url": "", "hf_hub": "", "quick_gelu": True, "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4)}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "ViT-tiny-test", {"quick": tag})
    torch.manual_seed(3)
    model = open_clip.create_model("ViT-tiny-test", force_quick_gelu=True).eval()
    for parameter in model.parameters():
        parameter.data.mul_(2)  # so that the two activations differ visibly
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    quick = load_backbone("ViT-tiny-test:quick", str(tmp_path / "weights.pth"))
    plain = load_backbone("ViT-tiny-test", str(tmp_path / "weights.pth"))
    batch, prompts = images(32, 32), ["a cat"]
    model.visual.transformer.resblocks[-1].attn.register_forward_hook(literal.values_only, with_kwargs=True)
    seen = []
    model.visual.ln_post.register_forward_hook(lambda _, __, output: seen.append(output))
    with torch.no_grad():
        model.visual(literal.standardized(batch, tag["mean"], tag["std"]))
        words = model.encode_text(open_clip.tokenize(prompts), normalize=True)
    expected = (seen[0][:, 1:] @ model.visual.proj).reshape(2, 2, 2, 24)
    scale = expected.abs().max()
    assert (quick.dense(batch) - expected).abs().max() < 1e-4 * scale
    assert (plain.dense(batch) - expected).abs().max() > 1e-3 * scale
    assert torch.allclose(quick.encode_text(prompts), words, atol=1e-5)
    assert (plain.encode_text(prompts) - words).abs().max() > 1e-3
    assert quick.text_identity == {**plain.text_identity, "quick_gelu": True}
