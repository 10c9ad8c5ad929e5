"""docs/drop_ins.md: its imports exist, and the lines that are changed by hand compute what they replace."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional

from ovs_kernels.testing import assert_close_rel

GUIDE = Path(__file__).resolve().parent.parent / "docs" / "drop_ins.md"


def added(heading):
    """The lines with a plus below a heading, as a program."""
    section = GUIDE.read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return "\n".join(re.findall(r"^\+(.*)", section, re.MULTILINE))


@pytest.mark.parametrize(
    "heading",
    ["LPOSS and LPOSS+", "NACLIP, SCLIP, TCL and others with PAMR", "FeatUp and SegEarth-OV"],
)
def test_what_the_guide_imports_exists(heading):
    program = added(heading)
    assert "ovs_kernels.compat" in program
    exec(program, {})


def test_proxyclip():
    heads, size, images, (height, width) = 3, 4, 2, (5, 6)
    v = torch.randn(images * heads, height * width, size)
    guide = torch.randn(images, 7, height, width)
    unit = functional.normalize(guide.double().flatten(2), dim=1)
    affinity = torch.einsum("bcm,bcn->bmn", unit, unit)
    scores = 3.0 * (affinity - 1.2 * affinity.mean((1, 2), keepdim=True))
    weights = scores.masked_fill(scores < 0, -torch.inf).softmax(-1)
    expected = torch.bmm(weights.repeat_interleave(heads, 0), v.double())
    expected = expected.transpose(0, 1).reshape(-1, images, heads * size)
    names = {"v": v, "ex_feats": guide, "beta": 1.2, "gamma": 3.0, "bsz": images, "num_heads": heads}
    names |= {"H": height, "W": width, "head_dim": size}
    exec(added("ProxyCLIP"), names)
    assert_close_rel(names["attn_output"], expected, 1e-5)


def test_clip_dinoiser():
    images, (height, width) = 2, (5, 6)
    output = torch.randn(images, 9, height, width)
    keys = functional.normalize(torch.randn(images, 7, height * width), dim=1)
    affinity = torch.einsum("bcm,bcn->bmn", keys.double(), keys.double())
    affinity = affinity.where(affinity >= 0.2, 0)
    expected = torch.einsum("bmn,bcn->bcm", affinity, output.double().flatten(2))
    expected = (expected / (affinity.sum(2)[:, None] + 1e-6)).reshape(output.shape)
    names = {"output": output, "proj_feats": keys, "self": SimpleNamespace(gamma=0.2), "hf": height, "wf": width}
    exec(added("CLIP-DINOiser"), names)
    assert_close_rel(names["out_feats"], expected, 1e-5)
