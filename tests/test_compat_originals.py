"""`compat.patch` on code like LPOSS's and FeatUp's: programs run, forks that compute something else are left alone."""

import os
import subprocess
import sys
from pathlib import Path

import featup_literal
import pytest
import torch
from test_compat_lposs import DEFAULTS, SINGLE, SIZES, literal, patches, pixels, published_pixels, solved

from ovs_kernels.compat import featup, lposs
from ovs_kernels.compat._originals import LPOSS_NAMES, published_featup, published_lposs
from ovs_kernels.compat._registry import LeaveAlone
from ovs_kernels.testing import assert_close_rel

TESTS = Path(__file__).resolve().parent

LPOSS_IMPORTS = """
from cupyx.scipy.sparse import csr_matrix, diags, eye
from cupyx.scipy.sparse import linalg as s_linalg
import cupy as cp
import faiss
import faiss.contrib.torch_utils
from kornia.color import rgb_to_lab

DEFAULT = cp.float64
"""
SIGNATURES = {
    "normalize_connection_graph": "G",
    "get_pixel_connections": "img, neigh=1",
    "get_lposs_laplacian": "feats, locations, height_width, sigma=0.0, pix_dist_pow=2, k=100, gamma=1.0, alpha=0.95, "
    "patch_size=16",
    "get_lposs_plus_laplacian": "img, preds, tau=0.1, neigh=6, alpha=0.95",
    "dfs_search": "L, Y, tol=1e-6, maxiter=10",
    "perform_lp": "L, preds",
}


def lposs_source(signatures=None, names=None):
    """Functions with the published signatures that use the published names; they cannot run."""
    source = ""
    for name, used in (LPOSS_NAMES | (names or {})).items():
        arguments = (SIGNATURES | (signatures or {}))[name]
        source += f"\n\ndef {name}({arguments}):\n    use = None.{' = None.'.join(used.split())}\n"
    return source


def functions(**changes):
    """The functions of `lposs_source`."""
    namespace = {}
    exec(lposs_source(**changes), namespace)
    return {name: namespace[name] for name in lposs.__dict__.keys() & namespace.keys() & SIGNATURES.keys()}


def run(folder, script, *arguments):
    """`python -m ovs_kernels.compat script` in a folder; stdout and stderr."""
    (folder / "script.py").write_text(script)
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([*paths, str(TESTS)])}
    command = [sys.executable, "-m", "ovs_kernels.compat", *arguments, "script.py"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def write(folder, **files):
    for name, text in files.items():
        path = folder / (name.replace("__", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


# Programs


def test_a_program_of_lposs_runs(tmp_path):
    """With faiss installed but broken, and without cupy and kornia."""
    write(tmp_path, segmentation__evaluation__lposs_eval=LPOSS_IMPORTS + lposs_source())
    write(tmp_path, faiss____init__="raise RuntimeError('no CUDA libraries')", faiss__contrib__torch_utils="")
    feats, locations, scores = patches()
    image, preds = pixels(9, 14, 3)
    torch.save((feats, locations, scores, image, preds), tmp_path / "in.pt")
    script = f"""
import sys, torch
from segmentation.evaluation.lposs_eval import get_lposs_laplacian, get_lposs_plus_laplacian, perform_lp
from segmentation.evaluation import lposs_eval
feats, locations, scores, image, preds = torch.load("in.pt")
L = get_lposs_laplacian(feats, locations, {SIZES}, sigma=0.01, pix_dist_pow=1.0, k=9, gamma=3.0)
first = perform_lp(L, scores)
second = lposs_eval.perform_lp(get_lposs_plus_laplacian(image, preds, tau=0.01, neigh=13 // 2, alpha=0.95), preds)
torch.save((first, second), "out.pt")
print("cupy" in sys.modules, "faiss" in sys.modules, lposs_eval.__name__)
"""
    out, log = run(tmp_path, script, "--only", "lposs")
    assert out == "False False segmentation.evaluation.lposs_eval\n"
    assert "segmentation.evaluation.lposs_eval.perform_lp -> ovs_kernels.compat.lposs.perform_lp" in log
    assert all(line.startswith("ovs_kernels.compat: ") for line in log.splitlines())
    first, second = torch.load(tmp_path / "out.pt")
    options = {"sigma": 0.01, "pix_dist_pow": 1.0, "k": 9, "gamma": 3.0}
    assert_close_rel(first, solved(literal(feats, locations, options), scores), SINGLE)
    assert_close_rel(second, solved(published_pixels(image[0], 0.01, 6, 0.95), preds), SINGLE)


FEATUP = {
    "featup____init__": "",
    "featup__adaptive_conv_cuda__adaptive_conv": "from featup.adaptive_conv_cuda import cuda_impl, cpp_impl\n",
    "featup__upsamplers": """
import featup_literal
from featup.adaptive_conv_cuda.adaptive_conv import AdaptiveConv


class JBULearnedRange(featup_literal.LearnedRange):
    def __init__(self, guidance_dim, feat_dim, key_dim, scale=2, radius=3):
        super().__init__(guidance_dim, key_dim, radius)


class JBUStack(featup_literal.Stack):
    def __init__(self, feat_dim, *args, **kwargs):
        super().__init__(feat_dim)


def get_upsampler(upsampler, dim):
    return {"jbu_stack": JBUStack}[upsampler](dim)
""",
}


def test_a_program_of_featup_runs(tmp_path):
    """With FeatUp's sources, and without its extension."""
    write(tmp_path, **FEATUP)
    generator = torch.Generator().manual_seed(2)
    source, guidance = torch.randn(1, 4, 3, 3, generator=generator), torch.rand(1, 3, 48, 48, generator=generator)
    theirs = featup_literal.Stack(4).eval()
    torch.save((source, guidance, theirs.state_dict()), tmp_path / "in.pt")
    script = """
import torch
from featup.adaptive_conv_cuda.adaptive_conv import AdaptiveConv
from featup.upsamplers import JBULearnedRange, get_upsampler
source, guidance, state = torch.load("in.pt")
module = get_upsampler("jbu_stack", 4).eval()
module.load_state_dict(state)
torch.save(module(source, guidance).detach(), "out.pt")
print(type(module).__module__, JBULearnedRange.__module__)
print(AdaptiveConv.apply(torch.ones(1, 3, 10, 10), torch.ones(1, 8, 8, 3, 3)).sum().item())
"""
    out, log = run(tmp_path, script)
    assert out == f"ovs_kernels.compat.featup ovs_kernels.compat.featup\n{9.0 * 3 * 64}\n"
    assert "featup.adaptive_conv_cuda.adaptive_conv -> ovs_kernels.compat.featup" in log
    assert_close_rel(torch.load(tmp_path / "out.pt"), theirs(source, guidance).detach(), 5e-6)


def test_programs_run_without_the_originals(tmp_path):
    script = """
from featup.adaptive_conv_cuda.adaptive_conv import AdaptiveConv
from featup.upsamplers import get_upsampler
from segmentation.evaluation.lposs_eval import dfs_search, get_lposs_laplacian, get_lposs_plus_laplacian, perform_lp
print(AdaptiveConv.__module__, get_upsampler("jbu_stack", 4).__module__, perform_lp.__module__)
"""
    out, log = run(tmp_path, script)
    assert out == "ovs_kernels.compat.featup ovs_kernels.compat.featup ovs_kernels.compat.lposs\n"
    assert "segmentation.evaluation.lposs_eval -> ovs_kernels.compat.lposs (not installed)" in log


# What is recognised


def test_the_published_functions_of_lposs_become_ours():
    for name, original in functions().items():
        assert published_lposs(original, getattr(lposs, name)) is getattr(lposs, name)
    assert len(functions()) == 4


def test_defaults_of_the_original_stay():
    changes = {
        "dfs_search": "L, Y, tol=1e-3, maxiter=50",
        "get_lposs_plus_laplacian": "img, preds, tau=0.05, neigh=2, alpha=0.9",
    }
    found = {
        name: published_lposs(original, getattr(lposs, name))
        for name, original in functions(signatures=changes).items()
    }
    assert found["get_lposs_laplacian"] is lposs.get_lposs_laplacian
    image, preds = pixels(9, 11, 2)
    matrix = published_pixels(image[0], 0.05, 2, 0.9)
    laplacian = found["get_lposs_plus_laplacian"](image, preds)
    expected = solved(matrix, preds, 1e-3, 50)
    assert_close_rel(found["perform_lp"](laplacian, preds), expected, SINGLE)
    assert_close_rel(found["dfs_search"](laplacian, preds[:, 0]), expected[:, 0], SINGLE)
    assert_close_rel(
        found["dfs_search"](laplacian, preds[:, 0], maxiter=2), solved(matrix, preds, 1e-3, 2)[:, 0], SINGLE
    )
    wide = found["get_lposs_plus_laplacian"](image, preds, neigh=6, tau=0.1)
    assert_close_rel(
        found["dfs_search"](wide, preds[:, 0], 1e-6),
        solved(published_pixels(image[0], 0.1, 6, 0.9), preds, 1e-6, 50)[:, 0],
        SINGLE,
    )
    assert DEFAULTS["alpha"] == 0.95


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"names": {"perform_lp": LPOSS_NAMES["perform_lp"] + " clip"}},
            "perform_lp is not the published one: clip is used in one of them only",
        ),
        (
            {"names": {"get_pixel_connections": LPOSS_NAMES["get_pixel_connections"].replace("rgb_to_lab", "depth")}},
            "get_pixel_connections is not the published one: depth is used in one of them only",
        ),
        ({"signatures": {"dfs_search": "L, Y, tol=1e-6"}}, "dfs_search does not take (L, Y, tol, maxiter)"),
    ],
)
def test_forks_of_lposs_are_left_alone_as_a_whole(changes, reason):
    for name, original in functions(**changes).items():
        with pytest.raises(LeaveAlone) as caught:
            published_lposs(original, getattr(lposs, name))
        assert str(caught.value) == reason


def test_another_argument_is_left_alone():
    original = functions(signatures={"get_lposs_plus_laplacian": "img, preds, tau=0.1, neigh=6, depth=None"})
    with pytest.raises(LeaveAlone, match=r"its arguments are \(img, preds, tau, neigh, depth\)"):
        published_lposs(original["get_lposs_plus_laplacian"], lposs.get_lposs_plus_laplacian)
    with pytest.raises(LeaveAlone, match="it is no function"):
        published_lposs(dict, lposs.perform_lp)


class Range(featup_literal.LearnedRange):
    """The published constructor."""

    def __init__(self, guidance_dim, feat_dim, key_dim, scale=2, radius=3):
        super().__init__(guidance_dim, key_dim, radius)


def test_the_published_modules_of_featup_become_ours():
    class One(featup_literal.Stack):
        def __init__(self, feat_dim, *args, **kwargs):
            super().__init__(feat_dim, shared=True)

    assert published_featup(Range, featup.JBULearnedRange) is featup.JBULearnedRange
    assert published_featup(One, featup.JBUOne) is featup.JBUOne
    with pytest.raises(LeaveAlone, match="its results could not be compared"):
        published_featup(One, featup.JBUStack)


def test_variants_of_featup_are_left_alone():
    class Doubled(Range):
        def forward(self, source, guidance):
            return 2 * super().forward(source, guidance)

    class Short(featup_literal.LearnedRange):
        def __init__(self, guidance_dim, key_dim, radius=3):
            super().__init__(guidance_dim, key_dim, radius)

    before = torch.get_rng_state()
    for original, reason in [
        (Doubled, "it computes something else: results differ by "),
        (Short, "its constructor takes (guidance_dim, key_dim, radius)"),
        (dict, "it is no torch.nn.Module"),
    ]:
        with pytest.raises(LeaveAlone) as caught:
            published_featup(original, featup.JBULearnedRange)
        assert str(caught.value).startswith(reason)
    assert torch.equal(torch.get_rng_state(), before)
